# The iterator of rows. Every pass takes a Row, or a tile of PARTIALS rows that starts at one.

# x and y are not adjacent: for AVX-512, GCC would compute both addresses in one register by vpmullq, three times the
# latency of two multiplications. Tiles of 3 float64 columns took 25 % longer.
cdef struct Row:
    const elem* x                               # the first element, and likewise for the other arrays
    Py_ssize_t n                                # visible elements: all of them, unless the mask is causal
    elem* y
    Py_ssize_t o, i                             # row i of matrix o
    const unsigned char* where                  # NULL: no mask

cdef inline Py_ssize_t row_length(const Rows* rows, Py_ssize_t i) noexcept nogil:
    """The visible elements of row i of any matrix."""
    if not rows.causal:
        return rows.n
    return min(max(i + rows.offset + 1, 0), rows.n)

cdef inline Row row_of(const Rows* rows, Py_ssize_t o, Py_ssize_t i) noexcept nogil:
    cdef Row row
    row.o, row.i, row.n = o, i, row_length(rows, i)
    row.x = rows.x + o * rows.x_outer + i * rows.x_inner
    row.y = rows.y + o * rows.y_outer + i * rows.y_inner
    row.where = rows.where
    if row.where != NULL:
        row.where += o * rows.where_outer + i * rows.where_inner
    return row

cdef inline Row row_at(const Rows* rows, Py_ssize_t r) noexcept nogil:
    """Row r, counted through all matrices."""
    return row_of(rows, r // rows.inner, r % rows.inner)

cdef inline void next_row(const Rows* rows, Row* row) noexcept nogil:
    """Advances `row`, which is not the last."""
    if row.i + 1 == rows.inner:
        row[0] = row_of(rows, row.o + 1, 0)
        return
    row.i += 1
    row.n = row_length(rows, row.i)
    row.x += rows.x_inner
    row.y += rows.y_inner
    if row.where != NULL:
        row.where += rows.where_inner
