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

cdef inline void normalize_square(int result, bint scaled, const Shift* s, const Normalizer* normalizer,
                                  const real* tile, vreal* square) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(TRANSPOSE_ROWS):
        square[r] = normal_result_of(result, s, normalizer, scaled, load(tile + r * PARTIALS))
    transpose_squares(square)

cdef inline void store_column(int result, bint scaled, const Shift* shift, const Normalizer* normalizer_,
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
            normalize_square(result, scaled, &s, &normalizer, tile + start * PARTIALS, square)
            for r in range(LANES):
                store_square_row(y + start + r * stride, square, r)
            start = next_square(start, count)
    else:
        normalize_square(result, scaled, &s, &normalizer, tile, square)
        for r in range(LANES):
            if r * count + TRANSPOSE_ROWS <= room:
                store_square_row(y + r * count, square, r)
            else:
                store_square_row(line, square, r)
                scatter(y + r * count, 1, line, count)

cdef inline void store_tile(int result, bint scaled, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows,
                            Py_ssize_t j, Py_ssize_t count, const Shift* shift, const Normalizer* normalizer_,
                            const real* tile) noexcept nogil:
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
                one = normal_result_of(result, &s[c], &normalizer[c], scaled, load(tile + k * PARTIALS + c * LANES))
                if nontemporal:
                    stream(<real*>(y + k * y_n + c * LANES), one)
                else:
                    store_elem(y + k * y_n + c * LANES, one)
    elif tile_rows == PARTIALS and y_n == 1 and (count >= TRANSPOSE_ROWS or y_inner == count):
        for c in range(PARTIAL_REGS):
            store_column(result, scaled, &s[c], &normalizer[c], tile + c * LANES, y + c * LANES * y_inner, y_inner,
                         count, (PARTIALS - c * LANES) * count)
    else:
        for k in range(count):
            for c in range(PARTIAL_REGS):
                # each register apart: a load of two that were stored one by one would wait for both
                store_elem(line, normal_result_of(result, &s[c], &normalizer[c], scaled,
                                                  load(tile + k * PARTIALS + c * LANES)))
                for a in range(min(tile_rows - c * LANES, <Py_ssize_t>LANES)):
                    y[k * y_n + (c * LANES + a) * y_inner] = line[a]

cdef inline vmask may_be_subnormal(Py_ssize_t count, const real* tile, const Normalizer* normalizer) noexcept nogil:
    """Where a column's smallest result may be, or is 0: of a weight that is rounded away, or hidden."""
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

cdef void write_tile(int result, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows, Py_ssize_t j,
                     Py_ssize_t count, const Shift* s, const Normalizer* normalizer_, real* tile) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef int c
    for c in range(PARTIAL_REGS):
        normalizer[c] = normalizer_[c]
    if result != LOG_SOFTMAX:
        round_subnormal(count, tile, normalizer)
    if result == SOFTMAX:
        store_tile(SOFTMAX, False, rows, o, i, tile_rows, j, count, s, normalizer, tile)
    elif result == SOFTMAX_ONE:
        store_tile(SOFTMAX_ONE, False, rows, o, i, tile_rows, j, count, s, normalizer, tile)
    elif rows.scaled:
        store_tile(LOG_SOFTMAX, True, rows, o, i, tile_rows, j, count, s, normalizer, tile)
    else:
        store_tile(LOG_SOFTMAX, False, rows, o, i, tile_rows, j, count, s, normalizer, tile)

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
    if (rows.result == SOFTMAX or rows.result == LOG_SOFTMAX) and not rows.nontemporal:
        prefetch_lines(rows.y + o * rows.y_outer + i * rows.y_inner + j * rows.y_n, rows.y_n, rows.y_inner, count)

# Weights and sums. A full block goes at once, four elements of a partial sum together; the last block of a row, which
# may be nearly empty, in two steps.

cdef inline bint any_center(const Shift* s) noexcept nogil:
    """Whether a column's center is not zero: see exp4_scores."""
    cdef vreal largest_center = broadcast(0)
    cdef int c
    for c in range(PARTIAL_REGS):
        largest_center = vmax(vabs(s[c].center), largest_center)
    return hmax(largest_center) != 0

cdef inline void full_block(int result, bint scaled, bint centered, const Shift* shift, real* x, TileWorkspace* tile,
                            vcount* ties) noexcept nogil:
    cdef Shift[PARTIAL_REGS] s
    cdef vreal[4] e, p, f
    cdef vreal total, lost, rest, moment
    cdef Py_ssize_t part, at
    cdef int a, c
    for c in range(PARTIAL_REGS):
        s[c] = shift[c]
    for part in range(PARTIALS):
        for c in range(PARTIAL_REGS):
            at = part * PARTIALS + c * LANES
            for a in range(4):
                e[a] = load(x + at + a * PARTIALS * PARTIALS)
            exp4_scores(e, &s[c], False, scaled, centered, p, f)
            if result == SOFTMAX:
                for a in range(4):
                    store(x + at + a * PARTIALS * PARTIALS, fma_(p[a], f[a], f[a]))
            else:
                for a in range(4):
                    exclude_max(result, &s[c], e[a], &f[a], &ties[c])
            if result == ENTROPY:
                moment = broadcast(0)
                for a in range(4):
                    moment = fma_(fma_(p[a], f[a], f[a]), score_below_max(&s[c], e[a], scaled), moment)
                tile.moments[part * PARTIAL_REGS + c] = dd_add(tile.moments[part * PARTIAL_REGS + c],
                                                               dd_of_sum(moment, broadcast(0)))
            total = load(tile.total + at)
            lost = load(tile.lost + at)
            rest = load(tile.rest + at)
            add_weights(result, &total, &lost, &rest, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)
            store(tile.rest + at, rest)

cdef inline void exp_block(int result, bint scaled, const Shift* shift, Py_ssize_t count, real* x, TileWorkspace* tile,
                           vcount* ties) noexcept nogil:
    """First step: p and f of the elements, and the weights in place of them if they are the result."""
    cdef Shift[PARTIAL_REGS] s
    cdef vreal[4] e, p, f
    cdef Py_ssize_t step, k
    cdef int a, c
    for c in range(PARTIAL_REGS):
        s[c] = shift[c]
    for k in range(count * PARTIAL_REGS, ceil_div(count * PARTIAL_REGS, 4) * 4):  # there is room for whole steps
        store(x + k * LANES, broadcast(-INFINITY))
    for step in range(ceil_div(count * PARTIAL_REGS, 4)):
        k = step * (4 * LANES)
        for a in range(4):
            e[a] = load(x + k + a * LANES)
        exp4_scores(e, s, True, scaled, True, p, f)
        for a in range(4):
            if result == SOFTMAX:
                store(x + k + a * LANES, fma_(p[a], f[a], f[a]))
            else:
                exclude_max(result, &s[a % PARTIAL_REGS], e[a], &f[a], &ties[a % PARTIAL_REGS])
            store(tile.p + k + a * LANES, p[a])
            store(tile.f + k + a * LANES, f[a])

cdef inline void load_weights(const TileWorkspace* tile, Py_ssize_t part, int c, Py_ssize_t count, vreal* p,
                              vreal* f) noexcept nogil:
    """Of elements part, part + PARTIALS, ... of the block, which join one partial sum; zeros beyond its end."""
    cdef Py_ssize_t at = part * PARTIALS + c * LANES
    cdef int a
    for a in range(4):
        p[a] = broadcast(0)
        f[a] = broadcast(0)
        if part + a * PARTIALS < count:
            p[a] = load(tile.p + at + a * PARTIALS * PARTIALS)
            f[a] = load(tile.f + at + a * PARTIALS * PARTIALS)

cdef inline vdd moment_of(const Shift* s, bint scaled, const real* x, const TileWorkspace* tile, Py_ssize_t part, int c,
                          Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at = part * PARTIALS + c * LANES
    cdef vreal[4] p, f
    cdef vreal moment = broadcast(0)
    cdef int a
    load_weights(tile, part, c, count, p, f)
    for a in range(4):
        if part + a * PARTIALS < count:
            moment = fma_(fma_(p[a], f[a], f[a]), score_below_max(s, load(x + at + a * PARTIALS * PARTIALS), scaled),
                          moment)
    return dd_of_sum(moment, broadcast(0))

cdef inline void sum_block(int result, bint scaled, const Shift* s, Py_ssize_t count, const real* x,
                           TileWorkspace* tile) noexcept nogil:
    """Second step: element j of a row goes to partial sum j modulo PARTIALS."""
    cdef vreal[4] p, f
    cdef vreal total, lost, rest
    cdef Py_ssize_t part, at
    cdef int c
    for part in range(min(count, <Py_ssize_t>PARTIALS)):
        for c in range(PARTIAL_REGS):
            at = part * PARTIALS + c * LANES
            load_weights(tile, part, c, count, p, f)
            if result == ENTROPY:
                tile.moments[part * PARTIAL_REGS + c] = dd_add(tile.moments[part * PARTIAL_REGS + c],
                                                               moment_of(&s[c], scaled, x, tile, part, c, count))
            total = load(tile.total + at)
            lost = load(tile.lost + at)
            rest = load(tile.rest + at)
            add_weights(result, &total, &lost, &rest, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)
            store(tile.rest + at, rest)

cdef inline void add_block(int result, bint scaled, const Shift* s, Py_ssize_t count, real* x, TileWorkspace* tile,
                           vcount* ties) noexcept nogil:
    if count == BLOCK and not scaled and (result == SOFTMAX or result == SUM_EXCLUDING_MAX) and not any_center(s):
        full_block(result, False, False, s, x, tile, ties)
    elif count == BLOCK:
        full_block(result, scaled, True, s, x, tile, ties)
    else:
        exp_block(result, scaled, s, count, x, tile, ties)
        sum_block(result, scaled, s, count, x, tile)

cdef void add_block_of(int sum_of, bint scaled, const Shift* s, Py_ssize_t count, real* x, TileWorkspace* tile,
                       vcount* ties) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    if sum_of == SOFTMAX:
        if scaled:
            add_block(SOFTMAX, True, s, count, x, tile, ties)
        else:
            add_block(SOFTMAX, False, s, count, x, tile, ties)
    elif sum_of == ENTROPY:
        add_block(ENTROPY, True, s, count, x, tile, ties)
    elif sum_of == SUM_EXCLUDING_MAX:
        if scaled:
            add_block(SUM_EXCLUDING_MAX, True, s, count, x, tile, ties)
        else:
            add_block(SUM_EXCLUDING_MAX, False, s, count, x, tile, ties)
    elif scaled:
        add_block(LOGSUMEXP, True, s, count, x, tile, ties)
    else:
        add_block(LOGSUMEXP, False, s, count, x, tile, ties)

cdef inline void start_chunk(int result, TileWorkspace* tile) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        store(tile.total + k * LANES, start_of(result))
        store(tile.lost + k * LANES, broadcast(0))
        store(tile.rest + k * LANES, broadcast(0))

cdef inline void load_sums(int result, const TileWorkspace* tile, Py_ssize_t k, vreal* total,
                           vreal* lost) noexcept nogil:
    """With the rest in them."""
    cdef vreal rest = load(tile.rest + k * LANES)
    total[0], lost[0] = load(tile.total + k * LANES), load(tile.lost + k * LANES)
    add_rest(result, total, lost, &rest)

cdef void end_run(int result, TileWorkspace* tile) noexcept nogil:
    cdef vreal total, lost
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        load_sums(result, tile, k, &total, &lost)
        store(tile.total + k * LANES, total)
        store(tile.lost + k * LANES, lost)
        store(tile.rest + k * LANES, broadcast(0))

cdef void end_chunk(int result, TileWorkspace* tile) noexcept nogil:
    cdef vreal total, lost
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        load_sums(result, tile, k, &total, &lost)
        tile.weights[k] = dd_add(tile.weights[k], dd_of_sum(total - start_of(result), lost))

# Rows that are one block need no chunks. If they have no more elements than there are partial sums, as the narrowest
# have, they have one sum: see sum_of_short_row.

cdef inline void narrow_turn(int result, bint scaled, bint centered, const Shift* s, real* x, vcount* ties,
                             vreal* total, vreal* lost, vreal* most, vdd_sum* moments) noexcept nogil:
    """The next four elements of a column."""
    cdef vreal[4] e, p, f
    cdef vreal rest = broadcast(0)
    cdef int k
    for k in range(4):
        e[k] = load(x + k * PARTIALS)
    exp4_scores(e, s, False, scaled, centered, p, f)
    for k in range(4):
        if result == SOFTMAX:
            e[k] = fma_(p[k], f[k], f[k])
            store(x + k * PARTIALS, e[k])
        else:
            exclude_max(result, s, e[k], &f[k], ties)
        if result == ENTROPY:
            moments.chain[k] = dd_add(moments.chain[k],
                                      dd_of_sum(fma_(p[k], f[k], f[k]) * score_below_max(s, e[k], scaled),
                                                broadcast(0)))
    if result == SOFTMAX:
        most[0] = vmax(vmax(vmax(e[0], e[1]), vmax(e[2], e[3])), most[0])
    add_weights(result, total, lost, &rest, p, f)
    add_rest(result, total, lost, &rest)

# The sums of PARTIAL_REGS registers' rows while they are made.
cdef struct Narrow:
    vreal[PARTIAL_REGS] total
    vreal[PARTIAL_REGS] lost
    vreal[PARTIAL_REGS] most  # the largest weights
    vcount[PARTIAL_REGS] ties
    vdd_sum[PARTIAL_REGS] moments

cdef inline void narrow_sums(int result, bint scaled, bint centered, const Shift* s, Py_ssize_t n, real* x,
                             Narrow* sums) noexcept nogil:
    cdef Py_ssize_t turn, k, c
    for c in range(PARTIAL_REGS):
        sums.moments[c] = dd_sum_start()
        sums.total[c] = start_of(result)
        sums.lost[c] = broadcast(0)
        sums.most[c] = broadcast(0)
        sums.ties[c] = no_count()
        for k in range(n, ceil_div(n, 4) * 4):  # elements that weigh nothing, as from load_upto
            store(x + k * PARTIALS + c * LANES, broadcast(-INFINITY))
    # the columns by turns, since each waits for its sums; one loop, since two together have too many registers
    for turn in range(ceil_div(n, 4) * PARTIAL_REGS):
        c = turn % PARTIAL_REGS
        narrow_turn(result, scaled, centered, &s[c], x + turn // PARTIAL_REGS * (4 * PARTIALS) + c * LANES,
                    &sums.ties[c], &sums.total[c], &sums.lost[c], &sums.most[c], &sums.moments[c])

cdef inline void narrow_normalizers(int result, bint scaled, const Shift* s, Py_ssize_t n, const real* x,
                                    const Narrow* sums, Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    """For SOFTMAX, `needs_refinement` also tells of results that may be subnormal, from the weights at x."""
    cdef ShortRow short_row
    cdef int c
    for c in range(PARTIAL_REGS):
        short_row.total, short_row.lost = sums.total[c] - start_of(result), sums.lost[c]
        normalizer[c] = normalizer_of_short_row(result, &s[c], scaled, n, short_row, dd_sum_end(sums.moments[c]),
                                                real_count(sums.ties[c]), &needs_refinement[c])
        if result == SOFTMAX:
            needs_refinement[c] = nowhere()
            if sizeof(elem) == sizeof(real):    # rounded to an elem, neither matters
                needs_refinement[c] = either(is_nearly_one(sums.most[c], &normalizer[c]),
                                             may_be_subnormal(n, x + c * LANES, &normalizer[c]))

cdef inline Normalizer single_column(int result, bint scaled, const Shift* s, Py_ssize_t n, real* x, int c,
                                     const TileWorkspace* tile, vcount ties, vmask* needs_refinement) noexcept nogil:
    cdef vdd_sum sum = dd_sum_start(), moments = dd_sum_start()
    cdef vreal[4] p, f
    cdef Py_ssize_t turn
    cdef int k
    for turn in range(PARTIALS // 4):
        for k in range(4):
            load_weights(tile, 4 * turn + k, c, n, p, f)
            sum.chain[k] = dd_add(sum.chain[k], sum_of_group(p, f))
            if result == ENTROPY:
                moments.chain[k] = dd_add(moments.chain[k], moment_of(s, scaled, x, tile, 4 * turn + k, c, n))
    return normalizer_of(result, s, scaled, n, dd_sum_end(sum), dd_sum_end(moments), real_count(ties), needs_refinement)

cdef inline void finalize_block(int result, bint scaled, const Shift* s, Py_ssize_t n, real* x, TileWorkspace* tile,
                                Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    cdef vcount[PARTIAL_REGS] ties
    cdef Narrow sums
    cdef int c
    for c in range(PARTIAL_REGS):
        ties[c] = no_count()
    if n <= PARTIALS:
        narrow_sums(result, scaled, True, s, n, x, &sums)
        narrow_normalizers(result, scaled, s, n, x, &sums, normalizer, needs_refinement)
    else:
        exp_block(result, scaled, s, n, x, tile, ties)
        for c in range(PARTIAL_REGS):
            normalizer[c] = single_column(result, scaled, &s[c], n, x, c, tile, ties[c], &needs_refinement[c])

cdef void finalize_single_block(int sum_of, bint scaled, const Shift* s, Py_ssize_t n, real* x, TileWorkspace* tile,
                                Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    if sum_of == SOFTMAX:
        if scaled:
            finalize_block(SOFTMAX, True, s, n, x, tile, normalizer, needs_refinement)
        else:
            finalize_block(SOFTMAX, False, s, n, x, tile, normalizer, needs_refinement)
    elif sum_of == ENTROPY:
        finalize_block(ENTROPY, True, s, n, x, tile, normalizer, needs_refinement)
    elif sum_of == SUM_EXCLUDING_MAX:
        if scaled:
            finalize_block(SUM_EXCLUDING_MAX, True, s, n, x, tile, normalizer, needs_refinement)
        else:
            finalize_block(SUM_EXCLUDING_MAX, False, s, n, x, tile, normalizer, needs_refinement)
    elif scaled:
        finalize_block(LOGSUMEXP, True, s, n, x, tile, normalizer, needs_refinement)
    else:
        finalize_block(LOGSUMEXP, False, s, n, x, tile, normalizer, needs_refinement)

cdef Normalizer finalize_column(int sum_of, bint scaled, const Shift* s, Py_ssize_t n, int c, const TileWorkspace* tile,
                                vcount ties, vmask* needs_refinement) noexcept nogil:
    cdef vdd_sum sum = dd_sum_start(), moments = dd_sum_start()
    cdef vdd weights
    cdef int part
    for part in range(PARTIALS):
        sum.chain[part % 4] = dd_add(sum.chain[part % 4], tile.weights[part * PARTIAL_REGS + c])
    weights = dd_sum_end(sum)
    if sum_of == SOFTMAX:
        return normalizer_of(SOFTMAX, s, scaled, n, weights, weights, real_count(ties), needs_refinement)
    if sum_of == ENTROPY:
        for part in range(PARTIALS):
            moments.chain[part % 4] = dd_add(moments.chain[part % 4], tile.moments[part * PARTIAL_REGS + c])
        return normalizer_of(ENTROPY, s, True, n, weights, dd_sum_end(moments), real_count(ties), needs_refinement)
    if sum_of == SUM_EXCLUDING_MAX:
        return normalizer_of(SUM_EXCLUDING_MAX, s, scaled, n, weights, weights, real_count(ties), needs_refinement)
    return normalizer_of(LOGSUMEXP, s, scaled, n, weights, weights, real_count(ties), needs_refinement)

cdef inline Shift tile_shift(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows, bint scaled,
                             vreal row_max) noexcept nogil:
    """That of one register's rows, from i on."""
    cdef Shift s
    cdef real[LANES] temperature, temperature_lo
    cdef double t
    cdef Py_ssize_t k
    if scaled:
        for k in range(LANES):
            t = 1
            if k < tile_rows:
                t = rows.temperature[o * rows.temperature_outer + (i + k) * rows.temperature_inner]
            temperature[k] = <real>t
            temperature_lo[k] = <real>(t - temperature[k])
        set_temperature(&s, load(temperature), load(temperature_lo))
    else:
        no_temperature(&s)
    set_row_max(&s, row_max)
    return s

cdef bint any_special(const Rows* rows, Py_ssize_t tile_rows, const vreal* row_max,
                      const Normalizer* normalizer) noexcept nogil:
    cdef real[PARTIALS] maxima, his
    cdef int c
    if rows.result == SOFTMAX and rows.where == NULL:
        return False
    for c in range(PARTIAL_REGS):
        store(maxima + c * LANES, row_max[c])
        store(his + c * LANES, normalizer[c].hi)
    for c in range(tile_rows):
        if is_special(rows, maxima[c], his[c]):
            return True
    return False

cdef void write_scalars(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows,
                        const Normalizer* normalizer) noexcept nogil:
    cdef elem[PARTIALS] line
    cdef Py_ssize_t c
    for c in range(PARTIAL_REGS):
        store_elem(line + c * LANES, normalizer[c].hi + normalizer[c].lo)
    for c in range(tile_rows):
        rows.y[o * rows.y_outer + (i + c) * rows.y_inner] = line[c]

cdef void strided_sums(int sum_of, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows, const Shift* s,
                       bint keep, real* weights_buf, TileWorkspace* tile, Normalizer* normalizer,
                       vmask* needs_refinement) noexcept nogil:
    """Rows longer than a block."""
    cdef vcount[PARTIAL_REGS] ties
    cdef vreal[PARTIAL_REGS] row_max
    cdef Py_ssize_t b, j, k, count
    cdef real* x
    cdef int c
    for c in range(PARTIAL_REGS):
        ties[c] = no_count()
        row_max[c] = s[c].row_max
    for k in range(PARTIALS * PARTIAL_REGS):
        tile.weights[k] = dd_zero()
    if sum_of == ENTROPY:
        for k in range(PARTIALS * PARTIAL_REGS):
            tile.moments[k] = dd_zero()
    for b in range(ceil_div(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = weights_buf + j * PARTIALS if keep else weights_buf
        if not keep:
            load_tile(rows, o, i, tile_rows, j, count, x, row_max)
        else:
            prefetch_block(rows, o, i, j, count)
        if j % CHUNK == 0:
            start_chunk(sum_of, tile)
        add_block_of(sum_of, rows.scaled, s, count, x, tile, ties)
        if (j + BLOCK) % CHUNK == 0 or j + BLOCK >= rows.n:
            end_chunk(sum_of, tile)
        elif RUN > BLOCK and (j + BLOCK) % RUN == 0:
            end_run(sum_of, tile)
    for c in range(PARTIAL_REGS):
        normalizer[c] = finalize_column(sum_of, rows.scaled, &s[c], rows.n, c, tile, ties[c], &needs_refinement[c])

cdef void tile_normalizers(int sum_of, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows,
                           const Shift* s, bint keep, const RowWorkspace* workspace, Normalizer* normalizer,
                           vmask* needs_refinement) noexcept nogil:
    if rows.n <= BLOCK:
        finalize_single_block(sum_of, rows.scaled, s, rows.n, workspace.weights_buf, workspace.tile, normalizer,
                              needs_refinement)
    else:
        strided_sums(sum_of, rows, o, i, tile_rows, s, keep, workspace.weights_buf, workspace.tile, normalizer,
                     needs_refinement)

cdef inline bint any_column(const vmask* mask) noexcept nogil:
    cdef int c
    for c in range(PARTIAL_REGS):
        if any_lane(mask[c]):
            return True
    return False

cdef inline void select_refined(const vmask* needs_refinement, const Normalizer* exact,
                                Normalizer* normalizer) noexcept nogil:
    """Only where they are needed: what comes out for a row may not depend on its neighbours."""
    cdef int c
    for c in range(PARTIAL_REGS):
        normalizer[c].hi = vselect(needs_refinement[c], exact[c].hi, normalizer[c].hi)
        normalizer[c].lo = vselect(needs_refinement[c], exact[c].lo, normalizer[c].lo)

cdef inline bint find_ones(const Shift* s, bint scaled, const vmask* needs_refinement,
                           Normalizer* normalizer) noexcept nogil:
    """find_one, for all columns."""
    cdef bint found = False
    cdef int c
    if any_column(needs_refinement):
        for c in range(PARTIAL_REGS):
            normalizer[c].one = broadcast(NEARLY_ONE)
            found |= find_one(&s[c], scaled, &normalizer[c])
    return found

cdef void strided_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows,
                       const RowWorkspace* workspace) noexcept nogil:
    """The rows in columns i to i + width."""
    cdef bint keep = rows.n * PARTIALS <= KEEP
    cdef vreal[PARTIAL_REGS] row_max
    cdef vcount[PARTIAL_REGS] ties
    cdef Shift[PARTIAL_REGS] s
    cdef Normalizer[PARTIAL_REGS] normalizer, exact
    cdef vmask[PARTIAL_REGS] needs_refinement, unused
    cdef Py_ssize_t b, j, count
    cdef real* x
    cdef int c, sum_of, result = rows.result
    for c in range(PARTIAL_REGS):
        row_max[c] = broadcast(-INFINITY)
        ties[c] = no_count()
    for b in range(ceil_div(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = workspace.weights_buf + j * PARTIALS if keep else workspace.weights_buf
        if rows.causal:
            load_visible_tile(rows, o, i, tile_rows, j, count, x, row_max)
        else:
            load_tile(rows, o, i, tile_rows, j, count, x, row_max)
    for c in range(PARTIAL_REGS):
        s[c] = tile_shift(rows, o, i + c * LANES, tile_rows - c * LANES, rows.scaled, row_max[c])

    sum_of = first_sum(rows)
    tile_normalizers(sum_of, rows, o, i, tile_rows, s, keep, workspace, normalizer, needs_refinement)
    if sum_of == SUM_EXCLUDING_MAX and any_column(needs_refinement):
        tile_normalizers(LOGSUMEXP, rows, o, i, tile_rows, s, keep, workspace, exact, unused)
        select_refined(needs_refinement, exact, normalizer)
    elif sum_of == SOFTMAX and find_ones(s, rows.scaled, needs_refinement, normalizer):
        result = SOFTMAX_ONE
    if any_special(rows, tile_rows, row_max, normalizer):
        for j in range(i, i + tile_rows):
            dense_row(rows, o * rows.inner + j, max_of_row(rows, o, j, workspace), o * rows.inner + j, workspace)
        return
    if rows.result == LOGSUMEXP or rows.result == ENTROPY:
        write_scalars(rows, o, i, tile_rows, normalizer)
        return

    for b in range(ceil_div(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = workspace.weights_buf + j * PARTIALS if keep else workspace.weights_buf
        if not keep:
            load_tile(rows, o, i, tile_rows, j, count, x, row_max)
            if rows.result == SOFTMAX:
                # for the weights: the sums are known
                add_block_of(SOFTMAX, rows.scaled, s, count, x, workspace.tile, ties)
        write_tile(result, rows, o, i, tile_rows, j, count, s, normalizer, x)

# The narrowest rows, if they are contiguous, and neither masked nor scaled. Most of a tile's time would be spent in
# waiting for its maxima and sums, so the next tile is filled in between.

cdef inline bint is_narrow(const Rows* rows) noexcept nogil:
    return (rows.n <= PARTIALS and rows.where == NULL and not rows.scaled and rows.result != ENTROPY and rows.x_n == 1
            and rows.y_n == 1)

cdef inline bint is_whole(const Rows* rows, Py_ssize_t i, Py_ssize_t tile_rows) noexcept nogil:
    """Whether a tile can be read and written by whole registers."""
    return tile_rows == PARTIALS and (rows.n >= TRANSPOSE_ROWS or (rows_below(rows, i) and rows.y_inner == rows.n))

cdef inline bint narrow_load(int result, const Rows* rows, Py_ssize_t o, Py_ssize_t i, real* tile,
                             vreal* row_max) noexcept nogil:
    """False if the rows hold something special."""
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner
    cdef vreal finite = broadcast(1)
    cdef int c
    for c in range(PARTIAL_REGS):
        row_max[c] = broadcast(-INFINITY)
        load_column(x + c * LANES * rows.x_inner, rows.x_inner, rows.n, tile + c * LANES, &row_max[c])
        finite = select_or_zero(lt(vabs(row_max[c]), broadcast(INFINITY)), finite)
    return result == SOFTMAX or hmax(-finite) == -1

cdef inline void narrow_results(int result, const Rows* rows, Py_ssize_t o, Py_ssize_t i, const Shift* s,
                                const Normalizer* normalizer, const real* tile) noexcept nogil:
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    cdef elem[LANES] line
    cdef Py_ssize_t k
    cdef int c
    for c in range(PARTIAL_REGS):
        if result == LOGSUMEXP:
            store_elem(line, normalizer[c].hi + normalizer[c].lo)
            for k in range(LANES):
                y[(c * LANES + k) * rows.y_inner] = line[k]
        else:
            store_column(result, False, &s[c], &normalizer[c], tile + c * LANES, y + c * LANES * rows.y_inner,
                         rows.y_inner, rows.n, (PARTIALS - c * LANES) * rows.n)

cdef void narrow_refined(const Rows* rows, Py_ssize_t o, Py_ssize_t i, const Shift* s, const vmask* needs_refinement,
                         Normalizer* normalizer, real* tile) noexcept nogil:
    """Results of SOFTMAX that may be NEARLY_ONE, or subnormal."""
    find_ones(s, False, needs_refinement, normalizer)
    round_subnormal(rows.n, tile, normalizer)
    narrow_results(SOFTMAX_ONE, rows, o, i, s, normalizer, tile)

cdef void narrow_exact(const Shift* s, Py_ssize_t n, real* tile, const vmask* needs_refinement,
                       Normalizer* normalizer) noexcept nogil:
    cdef Narrow sums
    cdef Normalizer[PARTIAL_REGS] exact
    cdef vmask[PARTIAL_REGS] unused
    narrow_sums(LOGSUMEXP, False, True, s, n, tile, &sums)
    narrow_normalizers(LOGSUMEXP, False, s, n, tile, &sums, exact, unused)
    select_refined(needs_refinement, exact, normalizer)

cdef inline void narrow_tiles(int result, const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                              const RowWorkspace* workspace) noexcept nogil:
    cdef real* tile = workspace.weights_buf
    cdef real* next_tile = workspace.tile.p
    cdef Shift[2 * PARTIAL_REGS] shifts
    cdef Shift* s = shifts
    cdef Shift* next_s = shifts + PARTIAL_REGS
    cdef vreal[PARTIAL_REGS] row_max
    cdef Narrow sums
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef vmask[PARTIAL_REGS] needs_refinement
    cdef bint is_loaded = False, loads
    cdef int sum_of = SOFTMAX if result == SOFTMAX else SUM_EXCLUDING_MAX
    cdef TilePosition position, next_position
    cdef Py_ssize_t t
    cdef int c
    for t in range(first_tile, end + 1):
        if is_loaded and any_center(s):
            narrow_sums(sum_of, False, True, s, rows.n, tile, &sums)
        elif is_loaded:
            narrow_sums(sum_of, False, False, s, rows.n, tile, &sums)
        loads = False
        if t < end:
            next_position = tile_position(rows, t)
            loads = is_whole(rows, next_position.i, next_position.tile_rows) and narrow_load(result, rows,
                                                                                             next_position.o,
                                                                                             next_position.i, next_tile,
                                                                                             row_max)
        if is_loaded:
            narrow_normalizers(sum_of, False, s, rows.n, tile, &sums, normalizer, needs_refinement)
            if sum_of == SUM_EXCLUDING_MAX and any_column(needs_refinement):
                narrow_exact(s, rows.n, tile, needs_refinement, normalizer)
        if loads:
            for c in range(PARTIAL_REGS):
                next_s[c] = tile_shift(rows, next_position.o, next_position.i, PARTIALS, False, row_max[c])
        if is_loaded:
            if result == SOFTMAX and sizeof(elem) == sizeof(real) and any_column(needs_refinement):
                narrow_refined(rows, position.o, position.i, s, needs_refinement, normalizer, tile)
            else:
                narrow_results(result, rows, position.o, position.i, s, normalizer, tile)
        if t < end and not loads:
            strided_tile(rows, next_position.o, next_position.i, next_position.tile_rows, workspace)
        is_loaded, position = loads, next_position
        tile, next_tile = next_tile, tile
        s, next_s = next_s, s

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

cdef void strided_tiles(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                        const RowWorkspace* workspace) noexcept nogil:
    cdef TilePosition position
    cdef Py_ssize_t t
    if rows.causal:
        for t in range(first_tile, end):
            position = tile_position(rows, t)
            causal_tile(rows, &position, workspace)
    elif not is_narrow(rows):
        for t in range(first_tile, end):
            position = tile_position(rows, t)
            strided_tile(rows, position.o, position.i, position.tile_rows, workspace)
    elif rows.result == SOFTMAX:
        narrow_tiles(SOFTMAX, rows, first_tile, end, workspace)
    elif rows.result == LOG_SOFTMAX:
        narrow_tiles(LOG_SOFTMAX, rows, first_tile, end, workspace)
    else:
        narrow_tiles(LOGSUMEXP, rows, first_tile, end, workspace)
