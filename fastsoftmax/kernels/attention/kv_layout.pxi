# Where the rows of queries, keys, values and results stand. All address arithmetic of attention is here.
#
# Keys and values are read through kv_block, which gives a run of keys whose rows are evenly spaced in memory, and says
# where it ends. A packed sequence joins with a first row of its own; pages of a cache join as runs that end where a
# page does. The kernels know of neither.

ctypedef elem* RowPointer
ctypedef const elem* ConstRowPointer

cdef struct Tensor:                         # (batch, heads, rows, elements); elements of a row are contiguous
    elem* data
    Py_ssize_t batch, head, row             # strides, in elements

cdef inline elem* row_address(const Tensor* x, Py_ssize_t b, Py_ssize_t head, Py_ssize_t row) noexcept nogil:
    return x.data + b * x.batch + head * x.head + row * x.row

cdef struct KvBlock:                        # the keys start .. stop - 1 of one head, and their values
    Py_ssize_t start, stop
    const elem* key
    const elem* value
    Py_ssize_t key_row, value_row           # elements from one key, or value, to the next

cdef inline KvBlock kv_block(const Tensor* key, const Tensor* value, Py_ssize_t b, Py_ssize_t head, Py_ssize_t start,
                             Py_ssize_t stop) noexcept nogil:
    """The longest run of keys from `start` on that ends at `stop` or before."""
    cdef KvBlock block
    block.start, block.stop = start, stop
    block.key, block.key_row = row_address(key, b, head, start), key.row
    block.value, block.value_row = row_address(value, b, head, start), value.row
    return block
