# PARTIALS rows at a time, each in a lane of its own: rows along another axis than the last, and narrow rows.
#
# A tile holds a BLOCK of elements of each of its rows, as reals, one line of PARTIALS reals for each n. `load_tile`
# brings it from any strides, contiguous rows by transposing registers, and finds the largest elements on the way;
# `store_tile` takes the results back. In between no operation crosses lanes. The rows' sums are added up in the order
# of along.pxi, bit for bit.

# Where a tile stands: its rows are i to i + width of matrix o.
cdef struct TilePosition:
    Py_ssize_t o, i, tile_rows

cdef inline Py_ssize_t tiles_of(const Rows* rows) noexcept nogil:
    return ceil_div(rows.inner + rows.peel, PARTIALS)

cdef inline TilePosition tile_position(const Rows* rows, Py_ssize_t tile) noexcept nogil:
    cdef TilePosition position
    cdef Py_ssize_t tiles = tiles_of(rows), t = tile % tiles
    position.o = tile // tiles
    position.i = max(t * PARTIALS - rows.peel, 0)
    position.tile_rows = min((t + 1) * PARTIALS - rows.peel, rows.inner) - position.i
    return position

cdef inline bint rows_below(const Rows* rows, Py_ssize_t i) noexcept nogil:
    """Whether a register may be read from any element of the tile that starts at i: no gap, and rows enough."""
    return rows.x_inner == rows.n and i + PARTIALS + TRANSPOSE_ROWS <= rows.inner

# While a block is summed, the same block of the next tile and the memory of the results are prefetched. The hardware
# prefetcher cannot do it, since each line of a tile is on a page of its own.

cdef inline void prefetch_lines(const elem* at, Py_ssize_t n_stride, Py_ssize_t inner_stride,
                                Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k, c, line = 64 // <Py_ssize_t>sizeof(elem)
    if inner_stride == 1:
        for k in range(count):
            prefetch(at + k * n_stride)
    elif n_stride == 1:
        for c in range(PARTIALS):
            for k in range(ceil_div(count, line)):
                prefetch(at + c * inner_stride + k * line)

cdef void prefetch_block(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t j, Py_ssize_t count) noexcept nogil:
    if i + 2 * PARTIALS <= rows.inner:
        prefetch_lines(rows.x + o * rows.x_outer + (i + PARTIALS) * rows.x_inner + j * rows.x_n, rows.x_n, rows.x_inner,
                       count)
    elif o + 1 < rows.outer:
        prefetch_lines(rows.x + (o + 1) * rows.x_outer + j * rows.x_n, rows.x_n, rows.x_inner, count)
    if (rows.op == SOFTMAX or rows.op == LOG_SOFTMAX) and not rows.nontemporal:
        prefetch_lines(rows.y + o * rows.y_outer + i * rows.y_inner + j * rows.y_n, rows.y_n, rows.y_inner, count)
