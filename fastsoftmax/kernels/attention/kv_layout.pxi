# Where the rows of queries, keys, values and results stand. All address arithmetic of attention is here.
#
# Keys and values are read in runs whose rows are evenly spaced in memory: kv_run gives the next run and its end. All
# kernels continue at the end of a run, wherever it is. Not implemented yet: packed sequences, which need a first row
# for each; pages of a cache, whose runs would end with the page. Both would change this file alone.

ctypedef elem* RowPointer
ctypedef const elem* ConstRowPointer

cdef struct Tensor:                         # (batch, heads, rows, elements); elements of a row are contiguous
    elem* data
    Py_ssize_t batch, head, row             # strides, in elements

cdef inline elem* row_address(const Tensor* x, Py_ssize_t b, Py_ssize_t head, Py_ssize_t row) noexcept nogil:
    return x.data + b * x.batch + head * x.head + row * x.row

cdef struct KvRun:                          # the keys start .. stop - 1 of one head, and their values
    Py_ssize_t start, stop
    const elem* key
    const elem* value
    Py_ssize_t key_row, value_row           # elements from one key, or value, to the next

cdef inline KvRun kv_run(const Tensor* key, const Tensor* value, Py_ssize_t b, Py_ssize_t head, Py_ssize_t start,
                         Py_ssize_t stop) noexcept nogil:
    """The longest run of keys from `start` on that ends at `stop` or before."""
    cdef KvRun run
    run.start, run.stop = start, stop
    run.key, run.key_row = row_address(key, b, head, start), key.row
    run.value, run.value_row = row_address(value, b, head, start), value.row
    return run
