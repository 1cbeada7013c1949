# A module for float32 or float64: an array's elements are C numbers.
cdef extern from "vec.h" nogil:
    ctypedef float elem
