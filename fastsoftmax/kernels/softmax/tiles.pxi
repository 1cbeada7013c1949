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

# A column is the rows of one register, `stride` elements apart, each of contiguous elements. It goes in and out by
# blocks of TRANSPOSE_ROWS elements: squares, or where registers are long, two squares side by side, which take fewer
# steps to transpose and waste less of narrow rows. The last block overlaps the one before.

cdef inline Py_ssize_t next_square(Py_ssize_t start, Py_ssize_t count) noexcept nogil:
    """Where the squares after those at `start` start; count after the last."""
    return count if start + TRANSPOSE_ROWS >= count else min(start + TRANSPOSE_ROWS, count - TRANSPOSE_ROWS)

cdef inline void load_column(const elem* x, Py_ssize_t stride, Py_ssize_t count, real* tile,
                             vreal* row_max) noexcept nogil:
    """Where rows are narrower than a square, it reads into the rows below."""
    cdef vreal[TRANSPOSE_ROWS] square
    cdef vreal most = row_max[0]
    cdef Py_ssize_t start = 0, r
    if count >= TRANSPOSE_ROWS:
        while start < count:
            load_squares(x + start, stride, square)
            for r in range(TRANSPOSE_ROWS):
                store(tile + (start + r) * PARTIALS, square[r])
                most = vmax(square[r], most)
            start = next_square(start, count)
    else:
        load_squares(x, stride, square)
        for r in range(TRANSPOSE_ROWS):
            store(tile + r * PARTIALS, square[r])
        for r in range(count):
            most = vmax(load(tile + r * PARTIALS), most)
    row_max[0] = most

cdef void load_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows, Py_ssize_t j, Py_ssize_t count,
                    real* tile, vreal* row_max) noexcept nogil:
    """Raises top[PARTIAL_REGS] to the largest elements on the way; NaN is passed over."""
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner + j * rows.x_n
    cdef Py_ssize_t x_n = rows.x_n, x_inner = rows.x_inner
    cdef const unsigned char* where = rows.where
    cdef vreal[PARTIAL_REGS] most
    cdef vreal one
    cdef elem[PARTIALS] line
    cdef Py_ssize_t k, c
    for c in range(PARTIAL_REGS):
        most[c] = row_max[c]
    if where == NULL and tile_rows == PARTIALS and x_inner == 1:
        for k in range(count):
            prefetch(x + k * x_n + 2 * PARTIALS)    # each line is on a page of its own: no hardware does this
            for c in range(PARTIAL_REGS):
                one = load_elem(x + k * x_n + c * LANES)
                store(tile + k * PARTIALS + c * LANES, one)
                most[c] = vmax(one, most[c])
    elif where == NULL and tile_rows == PARTIALS and x_n == 1 and (count >= TRANSPOSE_ROWS or rows_below(rows, i)):
        for c in range(PARTIAL_REGS):
            load_column(x + c * LANES * x_inner, x_inner, count, tile + c * LANES, &most[c])
    else:
        if where != NULL:
            where += o * rows.where_outer + i * rows.where_inner + j * rows.where_n
        for c in range(tile_rows, PARTIALS):
            line[c] = ELEM_MINUS_INFINITY
        for k in range(count):
            for c in range(tile_rows):
                if where == NULL or where[k * rows.where_n + c * rows.where_inner]:
                    line[c] = x[k * x_n + c * x_inner]
                else:
                    line[c] = ELEM_MINUS_INFINITY
            for c in range(PARTIAL_REGS):
                one = load_elem(line + c * LANES)
                store(tile + k * PARTIALS + c * LANES, one)
                most[c] = vmax(one, most[c])
    for c in range(PARTIAL_REGS):
        row_max[c] = most[c]

cdef void load_visible_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows, Py_ssize_t j,
                            Py_ssize_t count, real* tile, vreal* row_max) noexcept nogil:
    """load_tile for rows that see each one element more than the one before: what they do not see weighs nothing."""
    cdef Py_ssize_t visible = row_length(rows, i) - j, k
    cdef vreal[PARTIAL_REGS] length, unused
    cdef real[PARTIALS] lengths
    cdef vreal line
    cdef int c
    if count <= visible:
        load_tile(rows, o, i, tile_rows, j, count, tile, row_max)
        return
    for c in range(PARTIALS):
        lengths[c] = <real>(row_length(rows, i + c) - j)
    for c in range(PARTIAL_REGS):
        length[c] = load(lengths + c * LANES)
        unused[c] = broadcast(-INFINITY)
    load_tile(rows, o, i, tile_rows, j, count, tile, unused)
    for k in range(count):
        for c in range(PARTIAL_REGS):
            line = load(tile + k * PARTIALS + c * LANES)
            if k >= visible:
                line = vselect(lt(broadcast(<real>k), length[c]), line, broadcast(-INFINITY))
                store(tile + k * PARTIALS + c * LANES, line)
            row_max[c] = vmax(line, row_max[c])

cdef inline bint rows_below(const Rows* rows, Py_ssize_t i) noexcept nogil:
    """Whether a register may be read from any element of the tile that starts at i: no gap, and rows enough."""
    return rows.x_inner == rows.n and i + PARTIALS + TRANSPOSE_ROWS <= rows.inner

cdef inline void normalize_square(int stored, bint scaled, const Shift* s, const Normalizer* normalizer,
                                  const real* tile, vreal* square) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(TRANSPOSE_ROWS):
        square[r] = normal_result_of(stored, s, normalizer, scaled, load(tile + r * PARTIALS))
    transpose_squares(square)

cdef inline void store_column(int stored, bint scaled, const Shift* shift, const Normalizer* normalizer_,
                              const real* tile, elem* y, Py_ssize_t stride, Py_ssize_t count,
                              Py_ssize_t room) noexcept nogil:
    """The results. `room`: how many elements, from y on, may be written if rows are narrower than a square; then they
    have no gaps, and what goes beyond a row is overwritten by the next."""
    cdef Shift s = shift[0]
    cdef Normalizer normalizer = normalizer_[0]
    cdef vreal[TRANSPOSE_ROWS] square
    cdef elem[TRANSPOSE_ROWS] line
    cdef Py_ssize_t start = 0, r
    if count >= TRANSPOSE_ROWS:
        while start < count:
            normalize_square(stored, scaled, &s, &normalizer, tile + start * PARTIALS, square)
            for r in range(LANES):
                store_square_row(y + start + r * stride, square, r)
            start = next_square(start, count)
    else:
        normalize_square(stored, scaled, &s, &normalizer, tile, square)
        for r in range(LANES):
            if r * count + TRANSPOSE_ROWS <= room:
                store_square_row(y + r * count, square, r)
            else:
                store_square_row(line, square, r)
                scatter(y + r * count, 1, line, count)

cdef inline void store_tile(int stored, bint scaled, const Rows* rows, Py_ssize_t o, Py_ssize_t i,
                            Py_ssize_t tile_rows, Py_ssize_t j, Py_ssize_t count, const Shift* shift,
                            const Normalizer* normalizer_, const real* tile) noexcept nogil:
    """The results, from the weights or elements in the tile."""
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner + j * rows.y_n
    cdef Py_ssize_t y_n = rows.y_n, y_inner = rows.y_inner
    cdef Shift[PARTIAL_REGS] s
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef vreal one
    cdef elem[LANES] line
    cdef Py_ssize_t k, c, a
    # a whole cache line at a time, or the caches had better gather it
    cdef bint nontemporal = rows.nontemporal and (<size_t>y | <size_t>(y_n * <Py_ssize_t>sizeof(elem))) % 64 == 0
    for c in range(PARTIAL_REGS):
        s[c] = shift[c]
        normalizer[c] = normalizer_[c]
    if tile_rows == PARTIALS and y_inner == 1:
        for k in range(count):
            for c in range(PARTIAL_REGS):
                one = normal_result_of(stored, &s[c], &normalizer[c], scaled, load(tile + k * PARTIALS + c * LANES))
                if nontemporal:
                    stream(<real*>(y + k * y_n + c * LANES), one)
                else:
                    store_elem(y + k * y_n + c * LANES, one)
    elif tile_rows == PARTIALS and y_n == 1 and (count >= TRANSPOSE_ROWS or y_inner == count):
        for c in range(PARTIAL_REGS):
            store_column(stored, scaled, &s[c], &normalizer[c], tile + c * LANES, y + c * LANES * y_inner, y_inner,
                         count, (PARTIALS - c * LANES) * count)
    else:
        for k in range(count):
            for c in range(PARTIAL_REGS):
                # each register apart: a load of two that were stored one by one would wait for both
                store_elem(line, normal_result_of(stored, &s[c], &normalizer[c], scaled,
                                                  load(tile + k * PARTIALS + c * LANES)))
                for a in range(min(tile_rows - c * LANES, <Py_ssize_t>LANES)):
                    y[k * y_n + (c * LANES + a) * y_inner] = line[a]

cdef inline vmask may_be_subnormal(Py_ssize_t count, const real* tile, const Normalizer* normalizer) noexcept nogil:
    """Where a column's smallest op may be, or is 0: of a weight that is rounded away, or hidden."""
    cdef vreal least = broadcast(INFINITY)
    cdef Py_ssize_t k
    if sizeof(elem) != sizeof(real):            # 16 bits do not hold what is lost of them
        return nowhere()
    for k in range(count):
        least = vmin(load(tile + k * PARTIALS), least)
    return lt(mul_dd(least, normalizer.hi, normalizer.lo), broadcast(LEAST_NORMAL))

cdef void round_subnormal(Py_ssize_t count, real* tile, Normalizer* normalizer) noexcept nogil:
    """Makes the weights results where some of a column's may be subnormal; the factor is 1 then."""
    cdef int c
    for c in range(PARTIAL_REGS):
        if any_lane(may_be_subnormal(count, tile + c * LANES, &normalizer[c])):
            mul_dd_in_place(tile + c * LANES, PARTIALS, count, normalizer[c].hi, normalizer[c].lo)
            normalizer[c].hi, normalizer[c].lo = broadcast(1), broadcast(0)

cdef void write_tile(int stored, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows,
                     Py_ssize_t j, Py_ssize_t count, const Shift* s, const Normalizer* normalizer_,
                     real* tile) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef int c
    for c in range(PARTIAL_REGS):
        normalizer[c] = normalizer_[c]
    if stored != STORE_LOGS:
        round_subnormal(count, tile, normalizer)
    if stored == STORE_WEIGHTS:
        store_tile(STORE_WEIGHTS, False, rows, o, i, tile_rows, j, count, s, normalizer, tile)
    elif stored == STORE_WEIGHTS_OR_ONE:
        store_tile(STORE_WEIGHTS_OR_ONE, False, rows, o, i, tile_rows, j, count, s, normalizer, tile)
    elif rows.scaled:
        store_tile(STORE_LOGS, True, rows, o, i, tile_rows, j, count, s, normalizer, tile)
    else:
        store_tile(STORE_LOGS, False, rows, o, i, tile_rows, j, count, s, normalizer, tile)

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
