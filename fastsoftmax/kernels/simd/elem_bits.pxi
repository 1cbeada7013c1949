# A module for float16 or bfloat16: an array's elements are seen as 16 bits each.
cdef extern from "simd/vec.h" nogil:
    ctypedef unsigned short elem
