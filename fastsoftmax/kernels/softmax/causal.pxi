# Tiles of causal rows. A tile starts so that its longest row sees a multiple of PARTIALS elements, or all of them. The
# shorter rows hold -inf where they do not see, which adds exactly 0 to their sums. No limit at which rows are summed in
# another way (PARTIALS, UNROLL, CHUNK) then falls between the rows of a tile.

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
