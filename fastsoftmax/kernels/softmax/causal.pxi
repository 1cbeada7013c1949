# Tiles of causal rows. A tile starts so that its longest row, unless it sees all elements, sees a multiple of PARTIALS.
# Then all its rows are summed in the same way (see the limits PARTIALS, UNROLL and CHUNK), and an element of the
# longest row that another row does not see adds nothing to the sum of that row.

cdef inline Py_ssize_t causal_peel(const Rows* rows) noexcept nogil:
    return (rows.offset % PARTIALS + PARTIALS) % PARTIALS

cdef void causal_tile(const Rows* rows, const TilePosition* position, const RowWorkspace* workspace) noexcept nogil:
    cdef Row row = position.first
    cdef Py_ssize_t first_row = row.o * rows.inner + row.i, last = row.i + position.tile_rows - 1
    cdef Rows seen = rows[0]
    seen.n = row_length(rows, last)
    if seen.n > CAUSAL_TILE_MAX or position.tile_rows < PARTIALS:
        dense_rows(rows, first_row, first_row + position.tile_rows - 1, workspace)
        return
    if seen.n > 0:
        strided_tile(&seen, position, workspace)
    clear_hidden(rows, &row)
    while row.i < last:
        next_row(rows, &row)
        clear_hidden(rows, &row)
