# Memory for kernels: allocated before the loops start, freed with the object that holds it.

cdef inline Py_ssize_t ceil_div(Py_ssize_t count, Py_ssize_t size) noexcept nogil:
    return (count + size - 1) // size

cdef inline Py_ssize_t round_up_to_line(Py_ssize_t bytes) noexcept nogil:
    """Rounded up to cache lines."""
    return bytes + 63 & ~63

cdef void* allocate(Py_ssize_t bytes) except NULL:
    """64-byte aligned; the compiler's vector types stand in it."""
    cdef void* block = aligned_alloc(64, (bytes + 63) & ~<size_t>63)
    if block == NULL:
        raise MemoryError(f"fastsoftmax: no memory for {bytes} bytes of scratch")
    return block
