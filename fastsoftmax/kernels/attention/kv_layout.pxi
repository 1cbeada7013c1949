# Where the rows of queries, keys, values and results stand. All address arithmetic of attention is here.
#
#   arrays   (B, H, rows, elements): sequence b is entry b
#   packed   (1, H, rows, elements): sequence b starts at row first[b] and ends before first[b + 1]
#   paged    (pages, H, page_size, elements), keys and values only: row j of sequence b is row j % page_size of
#            page table[b, j // page_size] (Kwon et al., PagedAttention, 2023)
#
# Keys and values are read a block at a time. The rows of a block are evenly spaced in memory, but for one that spans
# pages: decode has an offset for each row of it; prefill copies it.

ctypedef elem* RowPointer
ctypedef const elem* ConstRowPointer

cdef struct Tensor:                         # elements of a row are contiguous
    elem* data
    Py_ssize_t batch, head, row             # strides, in elements; batch: of pages where there are pages
    const long long* first                  # of packed sequences, else NULL

cdef inline elem* row_address(const Tensor* x, Py_ssize_t b, Py_ssize_t head, Py_ssize_t row) noexcept nogil:
    """Of arrays and packed sequences."""
    cdef elem* data = x.data + head * x.head
    if x.first == NULL:
        return data + b * x.batch + row * x.row
    return data + (x.first[b] + row) * x.row

cdef struct PageTable:
    const long long* pages                  # (B, most), or NULL: no pages
    Py_ssize_t most, page_size

cdef struct KvRows:                         # rows of keys or of values, of one head
    const elem* first
    Py_ssize_t step                         # elements from one row to the next
    const Py_ssize_t* offset                # elements from `first` to each row, or NULL: they are evenly spaced

cdef inline const elem* kv_row(const KvRows* rows, Py_ssize_t j) noexcept nogil:
    return rows.first + j * rows.step if rows.offset == NULL else rows.first + rows.offset[j]

cdef struct KvBlock:                        # the keys start .. stop - 1 of one head, and their values
    Py_ssize_t start, stop
    KvRows key, value
    bint spans_pages                        # then key and value want offsets, or copies: see page_offsets, copy_pages

cdef inline KvBlock kv_block(const PageTable* table, const Tensor* key, const Tensor* value, Py_ssize_t b,
                             Py_ssize_t head, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef KvBlock block
    cdef Py_ssize_t row = start
    block.start, block.stop, block.spans_pages = start, stop, False
    if table.pages != NULL:
        block.spans_pages = start % table.page_size + stop - start > table.page_size
        if block.spans_pages:               # offsets are counted from the first page of all
            b = row = 0
        else:
            b, row = <Py_ssize_t>table.pages[b * table.most + start // table.page_size], start % table.page_size
    block.key.first, block.key.step, block.key.offset = row_address(key, b, head, row), key.row, NULL
    block.value.first, block.value.step, block.value.offset = row_address(value, b, head, row), value.row, NULL
    return block

cdef void page_offsets(const PageTable* table, const Tensor* x, Py_ssize_t b, Py_ssize_t start, Py_ssize_t stop,
                       Py_ssize_t* offset) noexcept nogil:
    """Where the rows start .. stop - 1 of a sequence stand, counted from row 0 of page 0; the same for all heads."""
    cdef Py_ssize_t page = start // table.page_size, at = start % table.page_size, count, first, j
    while start < stop:
        first = <Py_ssize_t>table.pages[b * table.most + page] * x.batch + at * x.row
        count = min(table.page_size - at, stop - start)
        for j in range(count):
            offset[j] = first + j * x.row
        offset += count
        start += count
        page += 1
        at = 0

cdef void copy_pages(const PageTable* table, const Tensor* x, Py_ssize_t b, const KvBlock* block, Py_ssize_t dim,
                     elem* to, KvRows* rows) noexcept nogil:
    """Copies the rows of a block of at most KV_BLOCK keys to `to`, (keys, dim), and has `rows` say so."""
    cdef Py_ssize_t[KV_BLOCK] offset
    cdef Py_ssize_t j
    page_offsets(table, x, b, block.start, block.stop, offset)
    for j in range(block.stop - block.start):
        memcpy(to + j * dim, rows.first + offset[j], dim * sizeof(elem))
    rows.first, rows.step = to, dim
