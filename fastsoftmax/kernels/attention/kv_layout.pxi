# Where the rows of queries, keys, values and results stand.

cdef inline const elem* row_address(const elem* data, const Py_ssize_t* stride, Py_ssize_t b, Py_ssize_t head,
                                    Py_ssize_t row) noexcept nogil:
    return data + b * stride[0] + head * stride[1] + row * stride[2]
