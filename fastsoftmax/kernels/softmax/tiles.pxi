# PARTIALS rows at a time, each in a lane of its own: rows along another axis than the last, and narrow rows.
#
# A tile holds a BLOCK of elements of each of its rows as reals: tile (count, PARTIALS), the elements k of all rows side
# by side. load_tile reads it from any strides (contiguous rows by transposing registers) and finds the maxima of the
# rows; store_tile writes the results. No operation in between crosses lanes. The elements of a row are added in the
# order of dense_sum.pxi, so the results have the same bits.

# The rows of a tile: tile_rows rows of one matrix, at most PARTIALS.
cdef struct TilePosition:
    Row first
    Py_ssize_t tile_rows

cdef inline Py_ssize_t tiles_of(const Rows* rows) noexcept nogil:
    """The number of tiles of a matrix."""
    return ceil_div(rows.inner + rows.peel, PARTIALS)

cdef inline TilePosition tile_position(const Rows* rows, Py_ssize_t tile) noexcept nogil:
    cdef TilePosition position
    cdef Py_ssize_t tiles = tiles_of(rows), t = tile % tiles, i = max(t * PARTIALS - rows.peel, 0)
    position.first = row_of(rows, tile // tiles, i)
    position.tile_rows = min((t + 1) * PARTIALS - rows.peel, rows.inner) - i
    return position

cdef inline Py_ssize_t tile_in_turn(const Rows* rows, Py_ssize_t t) noexcept nogil:
    """The t-th tile to be computed: where tiles take turns, those of all matrices that start at the same row follow one
    another."""
    return t % rows.outer * tiles_of(rows) + t // rows.outer if rows.in_turns else t

cdef inline int registers_in_use(const TilePosition* position) noexcept nogil:
    """The registers that hold rows."""
    return PARTIAL_REGS if PARTIAL_REGS == 1 else <int>ceil_div(position.tile_rows, LANES)

cdef inline bint rows_below(const Rows* rows, const TilePosition* position) noexcept nogil:
    """Whether a register may be read from any element of the tile: rows have no gaps, and enough rows follow."""
    return rows.x_inner == rows.n and position.first.i + PARTIALS + TRANSPOSE_ROWS <= rows.inner

# While a block is summed, the same block of the next tile and the memory of the results are prefetched. The hardware
# prefetcher cannot do this, since each line of a tile is on its own page.

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

cdef void prefetch_block(const Rows* rows, const TilePosition* position, Py_ssize_t j, Py_ssize_t count) noexcept nogil:
    """Elements j .. j + count - 1 of the rows of the next tile, and the results of this one."""
    cdef const Row* first = &position.first
    if first.i + 2 * PARTIALS <= rows.inner:
        prefetch_lines(first.x + PARTIALS * rows.x_inner + j * rows.x_n, rows.x_n, rows.x_inner, count)
    elif first.o + 1 < rows.outer:
        prefetch_lines(rows.x + (first.o + 1) * rows.x_outer + j * rows.x_n, rows.x_n, rows.x_inner, count)
    if not is_reduction(rows.op) and not rows.nontemporal:
        prefetch_lines(first.y + j * rows.y_n, rows.y_n, rows.y_inner, count)
