# Causal rows. Tiles start so that the longest row of each, if it does not see all, is a multiple of PARTIALS: then all
# its rows are summed in the same way (see the limits PARTIALS, UNROLL and CHUNK), and the elements of the longest row
# that another row does not see add nothing to that row's sum.

cdef inline Py_ssize_t causal_peel(const Rows* rows) noexcept nogil:
    return (rows.offset % PARTIALS + PARTIALS) % PARTIALS

cdef void causal_tile(const Rows* rows, const TilePosition* position, const RowWorkspace* workspace) noexcept nogil:
    cdef Py_ssize_t o = position.o, i = position.i, first_row = o * rows.inner + i, end = i + position.tile_rows, k, n
    cdef Rows seen = rows[0]
    seen.n = row_length(rows, end - 1)
    if seen.n > CAUSAL_TILE_MAX or position.tile_rows < PARTIALS:
        dense_rows(rows, first_row, first_row + position.tile_rows - 1, workspace)
        return
    if seen.n > 0:
        strided_tile(&seen, o, i, position.tile_rows, workspace)
    for k in range(i, end):
        n = row_length(rows, k)
        clear_elements(rows.y + o * rows.y_outer + k * rows.y_inner + n * rows.y_n, rows.y_n, rows.n - n,
                       rows.nontemporal)
