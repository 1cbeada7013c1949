# A module for float32 or float64: an array's elements are C numbers.
cdef extern from "simd/vec.h" nogil:
    ctypedef float elem
