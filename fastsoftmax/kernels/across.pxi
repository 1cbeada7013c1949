# WIDTH rows at a time, each in a lane of its own: rows along another axis than the last, and narrow rows.
#
# A tile holds a BLOCK of elements of each of its rows, as reals, one line of WIDTH reals for each n. `fill_tile`
# brings it from any strides, contiguous rows by transposing registers, and finds the largest elements on the way;
# `empty_tile` takes the results back. In between no operation crosses lanes. The rows' sums are added up in the order
# of along.pxi, bit for bit.

# Where a tile stands: its rows are i to i + width of matrix o.
cdef struct Place:
    Py_ssize_t o, i, width

cdef inline Py_ssize_t tiles_of(const Rows* rows) noexcept nogil:
    return steps(rows.inner + rows.lead, WIDTH)

cdef inline Place place_of(const Rows* rows, Py_ssize_t tile) noexcept nogil:
    cdef Place place
    cdef Py_ssize_t tiles = tiles_of(rows), t = tile % tiles
    place.o = tile // tiles
    place.i = max(t * WIDTH - rows.lead, 0)
    place.width = min((t + 1) * WIDTH - rows.lead, rows.inner) - place.i
    return place

# A column is the rows of one register, `stride` elements apart, each of contiguous elements. It goes in and out by
# blocks of SIDE elements: squares, or where registers are long, two squares side by side, which take fewer steps to
# transpose and waste less of narrow rows. The last block overlaps the one before.

cdef inline Py_ssize_t next_square(Py_ssize_t start, Py_ssize_t count) noexcept nogil:
    """Where the squares after those at `start` start; count after the last."""
    return count if start + SIDE >= count else min(start + SIDE, count - SIDE)

cdef inline void fill_column(const elem* x, Py_ssize_t stride, Py_ssize_t count, real* tile, vreal* top) noexcept nogil:
    """Where rows are narrower than a square, it reads into the rows below."""
    cdef vreal[SIDE] square
    cdef vreal most = top[0]
    cdef Py_ssize_t start = 0, r
    if count >= SIDE:
        while start < count:
            load_squares(x + start, stride, square)
            for r in range(SIDE):
                store(tile + (start + r) * WIDTH, square[r])
                most = vmax(square[r], most)
            start = next_square(start, count)
    else:
        load_squares(x, stride, square)
        for r in range(SIDE):
            store(tile + r * WIDTH, square[r])
        for r in range(count):
            most = vmax(load(tile + r * WIDTH), most)
    top[0] = most

cdef void fill_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, Py_ssize_t j, Py_ssize_t count,
                    real* tile, vreal* top) noexcept nogil:
    """Raises top[COLS] to the largest elements on the way; NaN is passed over."""
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner + j * rows.x_n
    cdef Py_ssize_t x_n = rows.x_n, x_inner = rows.x_inner
    cdef const unsigned char* where = rows.where
    cdef vreal[COLS] most
    cdef vreal one
    cdef elem[WIDTH] line
    cdef Py_ssize_t k, c
    for c in range(COLS):
        most[c] = top[c]
    if where == NULL and width == WIDTH and x_inner == 1:
        for k in range(count):
            prefetch(x + k * x_n + 2 * WIDTH)       # each line is on a page of its own: no hardware does this
            for c in range(COLS):
                one = load_elem(x + k * x_n + c * LANES)
                store(tile + k * WIDTH + c * LANES, one)
                most[c] = vmax(one, most[c])
    elif where == NULL and width == WIDTH and x_n == 1 and (count >= SIDE or rows_below(rows, i)):
        for c in range(COLS):
            fill_column(x + c * LANES * x_inner, x_inner, count, tile + c * LANES, &most[c])
    else:
        if where != NULL:
            where += o * rows.where_outer + i * rows.where_inner + j * rows.where_n
        for c in range(width, WIDTH):
            line[c] = ELEM_MINUS_INFINITY
        for k in range(count):
            for c in range(width):
                if where == NULL or where[k * rows.where_n + c * rows.where_inner]:
                    line[c] = x[k * x_n + c * x_inner]
                else:
                    line[c] = ELEM_MINUS_INFINITY
            for c in range(COLS):
                one = load_elem(line + c * LANES)
                store(tile + k * WIDTH + c * LANES, one)
                most[c] = vmax(one, most[c])
    for c in range(COLS):
        top[c] = most[c]

cdef void fill_visible(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, Py_ssize_t j, Py_ssize_t count,
                       real* tile, vreal* top) noexcept nogil:
    """fill_tile for rows that see each one element more than the one before: what they do not see weighs nothing."""
    cdef Py_ssize_t visible = row_length(rows, i) - j, k
    cdef vreal[COLS] length, unused
    cdef real[WIDTH] lengths
    cdef vreal line
    cdef int c
    if count <= visible:
        fill_tile(rows, o, i, width, j, count, tile, top)
        return
    for c in range(WIDTH):
        lengths[c] = <real>(row_length(rows, i + c) - j)
    for c in range(COLS):
        length[c] = load(lengths + c * LANES)
        unused[c] = fill(-INFINITY)
    fill_tile(rows, o, i, width, j, count, tile, unused)
    for k in range(count):
        for c in range(COLS):
            line = load(tile + k * WIDTH + c * LANES)
            if k >= visible:
                line = choose(less(fill(<real>k), length[c]), line, fill(-INFINITY))
                store(tile + k * WIDTH + c * LANES, line)
            top[c] = vmax(line, top[c])

cdef inline bint rows_below(const Rows* rows, Py_ssize_t i) noexcept nogil:
    """Whether a register may be read from any element of the tile that starts at i: no gap, and rows enough."""
    return rows.x_inner == rows.n and i + WIDTH + SIDE <= rows.inner

cdef inline void empty_square(int result, bint scaled, const Shift* s, const Outcome* outcome, const real* tile,
                              vreal* square) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(SIDE):
        square[r] = plain_result_of(result, s, outcome, scaled, load(tile + r * WIDTH))
    transpose_squares(square)

cdef inline void empty_column(int result, bint scaled, const Shift* shift, const Outcome* outcome_, const real* tile,
                              elem* y, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t room) noexcept nogil:
    """The results. `room`: how many elements, from y on, may be written if rows are narrower than a square; then they
    have no gaps, and what goes beyond a row is overwritten by the next."""
    cdef Shift s = shift[0]
    cdef Outcome outcome = outcome_[0]
    cdef vreal[SIDE] square
    cdef elem[SIDE] line
    cdef Py_ssize_t start = 0, r
    if count >= SIDE:
        while start < count:
            empty_square(result, scaled, &s, &outcome, tile + start * WIDTH, square)
            for r in range(LANES):
                store_side(y + start + r * stride, square, r)
            start = next_square(start, count)
    else:
        empty_square(result, scaled, &s, &outcome, tile, square)
        for r in range(LANES):
            if r * count + SIDE <= room:
                store_side(y + r * count, square, r)
            else:
                store_side(line, square, r)
                put(y + r * count, 1, line, count)

cdef inline void empty_tile(int result, bint scaled, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width,
                            Py_ssize_t j, Py_ssize_t count, const Shift* shift, const Outcome* outcome_,
                            const real* tile) noexcept nogil:
    """The results, from the weights or elements in the tile."""
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner + j * rows.y_n
    cdef Py_ssize_t y_n = rows.y_n, y_inner = rows.y_inner
    cdef Shift[COLS] s
    cdef Outcome[COLS] outcome
    cdef vreal one
    cdef elem[LANES] line
    cdef Py_ssize_t k, c, a
    # a whole cache line at a time, or the caches had better gather it
    cdef bint streamed = rows.streamed and (<size_t>y | <size_t>(y_n * <Py_ssize_t>sizeof(elem))) % 64 == 0
    for c in range(COLS):
        s[c] = shift[c]
        outcome[c] = outcome_[c]
    if width == WIDTH and y_inner == 1:
        for k in range(count):
            for c in range(COLS):
                one = plain_result_of(result, &s[c], &outcome[c], scaled, load(tile + k * WIDTH + c * LANES))
                if streamed:
                    stream(<real*>(y + k * y_n + c * LANES), one)
                else:
                    store_elem(y + k * y_n + c * LANES, one)
    elif width == WIDTH and y_n == 1 and (count >= SIDE or y_inner == count):
        for c in range(COLS):
            empty_column(result, scaled, &s[c], &outcome[c], tile + c * LANES, y + c * LANES * y_inner, y_inner, count,
                         (WIDTH - c * LANES) * count)
    else:
        for k in range(count):
            for c in range(COLS):
                # each register apart: a load of two that were stored one by one would wait for both
                store_elem(line, plain_result_of(result, &s[c], &outcome[c], scaled,
                                                 load(tile + k * WIDTH + c * LANES)))
                for a in range(min(width - c * LANES, <Py_ssize_t>LANES)):
                    y[k * y_n + (c * LANES + a) * y_inner] = line[a]

cdef inline vmask may_be_subnormal(Py_ssize_t count, const real* tile, const Outcome* outcome) noexcept nogil:
    """Where a column's smallest result may be, or is 0: of a weight that is rounded away, or hidden."""
    cdef vreal least = fill(INFINITY)
    cdef Py_ssize_t k
    if sizeof(elem) != sizeof(real):            # 16 bits do not hold what is lost of them
        return nowhere()
    for k in range(count):
        least = vmin(load(tile + k * WIDTH), least)
    return less(scale(least, outcome.hi, outcome.lo), fill(LEAST_NORMAL))

cdef void round_subnormal(Py_ssize_t count, real* tile, Outcome* outcome) noexcept nogil:
    """Makes the weights results where some of a column's may be subnormal; the factor is 1 then."""
    cdef int c
    for c in range(COLS):
        if any_lane(may_be_subnormal(count, tile + c * LANES, &outcome[c])):
            scale_in_place(tile + c * LANES, WIDTH, count, outcome[c].hi, outcome[c].lo)
            outcome[c].hi, outcome[c].lo = fill(1), fill(0)

cdef void write_tile(int result, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, Py_ssize_t j,
                     Py_ssize_t count, const Shift* s, const Outcome* outcome_, real* tile) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    cdef Outcome[COLS] outcome
    cdef int c
    for c in range(COLS):
        outcome[c] = outcome_[c]
    if result != LOG_SOFTMAX:
        round_subnormal(count, tile, outcome)
    if result == SOFTMAX:
        empty_tile(SOFTMAX, False, rows, o, i, width, j, count, s, outcome, tile)
    elif result == SOFTMAX_ONE:
        empty_tile(SOFTMAX_ONE, False, rows, o, i, width, j, count, s, outcome, tile)
    elif rows.scaled:
        empty_tile(LOG_SOFTMAX, True, rows, o, i, width, j, count, s, outcome, tile)
    else:
        empty_tile(LOG_SOFTMAX, False, rows, o, i, width, j, count, s, outcome, tile)

# While a block is summed, the same block of the next tile and the memory of the results are prefetched. The hardware
# prefetcher cannot do it, since each line of a tile is on a page of its own.

cdef inline void prefetch_lines(const elem* at, Py_ssize_t n_stride, Py_ssize_t inner_stride,
                                Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k, c, line = 64 // <Py_ssize_t>sizeof(elem)
    if inner_stride == 1:
        for k in range(count):
            prefetch(at + k * n_stride)
    elif n_stride == 1:
        for c in range(WIDTH):
            for k in range(steps(count, line)):
                prefetch(at + c * inner_stride + k * line)

cdef void prefetch_block(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t j, Py_ssize_t count) noexcept nogil:
    if i + 2 * WIDTH <= rows.inner:
        prefetch_lines(rows.x + o * rows.x_outer + (i + WIDTH) * rows.x_inner + j * rows.x_n, rows.x_n, rows.x_inner,
                       count)
    elif o + 1 < rows.outer:
        prefetch_lines(rows.x + (o + 1) * rows.x_outer + j * rows.x_n, rows.x_n, rows.x_inner, count)
    if (rows.result == SOFTMAX or rows.result == LOG_SOFTMAX) and not rows.streamed:
        prefetch_lines(rows.y + o * rows.y_outer + i * rows.y_inner + j * rows.y_n, rows.y_n, rows.y_inner, count)

# Weights and sums. A full block goes at once, four elements of a partial sum together; the last block of a row, which
# may be nearly empty, in two steps.

cdef inline bint any_center(const Shift* s) noexcept nogil:
    """Whether a column's center is not zero: see weigh4."""
    cdef vreal largest_center = fill(0)
    cdef int c
    for c in range(COLS):
        largest_center = vmax(vabs(s[c].center), largest_center)
    return hmax(largest_center) != 0

cdef inline void full_block(int result, bint scaled, bint centered, const Shift* shift, real* x, Across* tile,
                            vcount* ties) noexcept nogil:
    cdef Shift[COLS] s
    cdef vreal[4] e, p, f
    cdef vreal total, lost, rest, moment
    cdef Py_ssize_t part, at
    cdef int a, c
    for c in range(COLS):
        s[c] = shift[c]
    for part in range(WIDTH):
        for c in range(COLS):
            at = part * WIDTH + c * LANES
            for a in range(4):
                e[a] = load(x + at + a * WIDTH * WIDTH)
            weigh4(e, &s[c], False, scaled, centered, p, f)
            if result == SOFTMAX:
                for a in range(4):
                    store(x + at + a * WIDTH * WIDTH, fma_(p[a], f[a], f[a]))
            else:
                for a in range(4):
                    leave_out(result, &s[c], e[a], &f[a], &ties[c])
            if result == ENTROPY:
                moment = fill(0)
                for a in range(4):
                    moment = fma_(fma_(p[a], f[a], f[a]), score_below_top(&s[c], e[a], scaled), moment)
                tile.moments[part * COLS + c] = wide_add(tile.moments[part * COLS + c], wide_of(moment, fill(0)))
            total = load(tile.total + at)
            lost = load(tile.lost + at)
            rest = load(tile.rest + at)
            add_weights(result, &total, &lost, &rest, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)
            store(tile.rest + at, rest)

cdef inline void weigh_block(int result, bint scaled, const Shift* shift, Py_ssize_t count, real* x, Across* tile,
                             vcount* ties) noexcept nogil:
    """First step: p and f of the elements, and the weights in place of them if they are the result."""
    cdef Shift[COLS] s
    cdef vreal[4] e, p, f
    cdef Py_ssize_t step, k
    cdef int a, c
    for c in range(COLS):
        s[c] = shift[c]
    for k in range(count * COLS, steps(count * COLS, 4) * 4):   # there is room for whole steps
        store(x + k * LANES, fill(-INFINITY))
    for step in range(steps(count * COLS, 4)):
        k = step * (4 * LANES)
        for a in range(4):
            e[a] = load(x + k + a * LANES)
        weigh4(e, s, True, scaled, True, p, f)
        for a in range(4):
            if result == SOFTMAX:
                store(x + k + a * LANES, fma_(p[a], f[a], f[a]))
            else:
                leave_out(result, &s[a % COLS], e[a], &f[a], &ties[a % COLS])
            store(tile.p + k + a * LANES, p[a])
            store(tile.f + k + a * LANES, f[a])

cdef inline void load_weights(const Across* tile, Py_ssize_t part, int c, Py_ssize_t count, vreal* p,
                              vreal* f) noexcept nogil:
    """Those of elements part, part + WIDTH, ... of the block, which go into one partial sum; zeros beyond its end."""
    cdef Py_ssize_t at = part * WIDTH + c * LANES
    cdef int a
    for a in range(4):
        p[a] = fill(0)
        f[a] = fill(0)
        if part + a * WIDTH < count:
            p[a] = load(tile.p + at + a * WIDTH * WIDTH)
            f[a] = load(tile.f + at + a * WIDTH * WIDTH)

cdef inline vwide moment_of(const Shift* s, bint scaled, const real* x, const Across* tile, Py_ssize_t part, int c,
                            Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at = part * WIDTH + c * LANES
    cdef vreal[4] p, f
    cdef vreal moment = fill(0)
    cdef int a
    load_weights(tile, part, c, count, p, f)
    for a in range(4):
        if part + a * WIDTH < count:
            moment = fma_(fma_(p[a], f[a], f[a]),
                          score_below_top(s, load(x + at + a * WIDTH * WIDTH), scaled), moment)
    return wide_of(moment, fill(0))

cdef inline void sum_block(int result, bint scaled, const Shift* s, Py_ssize_t count, const real* x,
                           Across* tile) noexcept nogil:
    """Second step: element j of a row goes to partial sum j modulo WIDTH."""
    cdef vreal[4] p, f
    cdef vreal total, lost, rest
    cdef Py_ssize_t part, at
    cdef int c
    for part in range(min(count, <Py_ssize_t>WIDTH)):
        for c in range(COLS):
            at = part * WIDTH + c * LANES
            load_weights(tile, part, c, count, p, f)
            if result == ENTROPY:
                tile.moments[part * COLS + c] = wide_add(
                    tile.moments[part * COLS + c], moment_of(&s[c], scaled, x, tile, part, c, count))
            total = load(tile.total + at)
            lost = load(tile.lost + at)
            rest = load(tile.rest + at)
            add_weights(result, &total, &lost, &rest, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)
            store(tile.rest + at, rest)

cdef inline void add_block(int result, bint scaled, const Shift* s, Py_ssize_t count, real* x, Across* tile,
                           vcount* ties) noexcept nogil:
    if count == BLOCK and not scaled and (result == SOFTMAX or result == OTHERS) and not any_center(s):
        full_block(result, False, False, s, x, tile, ties)
    elif count == BLOCK:
        full_block(result, scaled, True, s, x, tile, ties)
    else:
        weigh_block(result, scaled, s, count, x, tile, ties)
        sum_block(result, scaled, s, count, x, tile)

cdef void add_block_of(int sum_of, bint scaled, const Shift* s, Py_ssize_t count, real* x, Across* tile,
                       vcount* ties) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    if sum_of == SOFTMAX:
        if scaled:
            add_block(SOFTMAX, True, s, count, x, tile, ties)
        else:
            add_block(SOFTMAX, False, s, count, x, tile, ties)
    elif sum_of == ENTROPY:
        add_block(ENTROPY, True, s, count, x, tile, ties)
    elif sum_of == OTHERS:
        if scaled:
            add_block(OTHERS, True, s, count, x, tile, ties)
        else:
            add_block(OTHERS, False, s, count, x, tile, ties)
    elif scaled:
        add_block(LOGSUMEXP, True, s, count, x, tile, ties)
    else:
        add_block(LOGSUMEXP, False, s, count, x, tile, ties)

cdef inline void start_chunk(int result, Across* tile) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(WIDTH * COLS):
        store(tile.total + k * LANES, start_of(result))
        store(tile.lost + k * LANES, fill(0))
        store(tile.rest + k * LANES, fill(0))

cdef inline void load_sums(int result, const Across* tile, Py_ssize_t k, vreal* total, vreal* lost) noexcept nogil:
    """With the rest in them."""
    cdef vreal rest = load(tile.rest + k * LANES)
    total[0], lost[0] = load(tile.total + k * LANES), load(tile.lost + k * LANES)
    add_rest(result, total, lost, &rest)

cdef void end_run(int result, Across* tile) noexcept nogil:
    cdef vreal total, lost
    cdef Py_ssize_t k
    for k in range(WIDTH * COLS):
        load_sums(result, tile, k, &total, &lost)
        store(tile.total + k * LANES, total)
        store(tile.lost + k * LANES, lost)
        store(tile.rest + k * LANES, fill(0))

cdef void end_chunk(int result, Across* tile) noexcept nogil:
    cdef vreal total, lost
    cdef Py_ssize_t k
    for k in range(WIDTH * COLS):
        load_sums(result, tile, k, &total, &lost)
        tile.weights[k] = wide_add(tile.weights[k], wide_of(total - start_of(result), lost))

# Rows that are one block need no chunks. If they have no more elements than there are partial sums, as the narrowest
# have, they have one sum: see sum_of_few.

cdef inline void narrow_turn(int result, bint scaled, bint centered, const Shift* s, real* x, vcount* ties,
                             vreal* total, vreal* lost, vreal* most, vwide_sum* moments) noexcept nogil:
    """The next four elements of a column."""
    cdef vreal[4] e, p, f
    cdef vreal rest = fill(0)
    cdef int k
    for k in range(4):
        e[k] = load(x + k * WIDTH)
    weigh4(e, s, False, scaled, centered, p, f)
    for k in range(4):
        if result == SOFTMAX:
            e[k] = fma_(p[k], f[k], f[k])
            store(x + k * WIDTH, e[k])
        else:
            leave_out(result, s, e[k], &f[k], ties)
        if result == ENTROPY:
            moments.chain[k] = wide_add(moments.chain[k], wide_of(
                fma_(p[k], f[k], f[k]) * score_below_top(s, e[k], scaled), fill(0)))
    if result == SOFTMAX:
        most[0] = vmax(vmax(vmax(e[0], e[1]), vmax(e[2], e[3])), most[0])
    add_weights(result, total, lost, &rest, p, f)
    add_rest(result, total, lost, &rest)

# The sums of COLS registers' rows while they are made.
cdef struct Narrow:
    vreal[COLS] total
    vreal[COLS] lost
    vreal[COLS] most        # the largest weights
    vcount[COLS] ties
    vwide_sum[COLS] moments

cdef inline void narrow_sums(int result, bint scaled, bint centered, const Shift* s, Py_ssize_t n, real* x,
                             Narrow* sums) noexcept nogil:
    cdef Py_ssize_t turn, k, c
    for c in range(COLS):
        sums.moments[c] = wide_sum_start()
        sums.total[c] = start_of(result)
        sums.lost[c] = fill(0)
        sums.most[c] = fill(0)
        sums.ties[c] = no_count()
        for k in range(n, steps(n, 4) * 4):     # elements that weigh nothing, as from load_upto
            store(x + k * WIDTH + c * LANES, fill(-INFINITY))
    # the columns by turns, since each waits for its sums; one loop, since two together have too many registers
    for turn in range(steps(n, 4) * COLS):
        c = turn % COLS
        narrow_turn(result, scaled, centered, &s[c], x + turn // COLS * (4 * WIDTH) + c * LANES, &sums.ties[c],
                    &sums.total[c], &sums.lost[c], &sums.most[c], &sums.moments[c])

cdef inline void narrow_outcomes(int result, bint scaled, const Shift* s, Py_ssize_t n, const real* x,
                                 const Narrow* sums, Outcome* outcome, vmask* doubt) noexcept nogil:
    """For SOFTMAX, `doubt` also tells of results that may be subnormal, from the weights at x."""
    cdef Few few
    cdef int c
    for c in range(COLS):
        few.total, few.lost = sums.total[c] - start_of(result), sums.lost[c]
        outcome[c] = outcome_of_few(result, &s[c], scaled, n, few, wide_sum_end(sums.moments[c]),
                                    real_count(sums.ties[c]), &doubt[c])
        if result == SOFTMAX:
            doubt[c] = nowhere()
            if sizeof(elem) == sizeof(real):    # rounded to an elem, neither matters
                doubt[c] = either(is_nearly_one(sums.most[c], &outcome[c]),
                                  may_be_subnormal(n, x + c * LANES, &outcome[c]))

cdef inline Outcome single_column(int result, bint scaled, const Shift* s, Py_ssize_t n, real* x, int c,
                                  const Across* tile, vcount ties, vmask* doubt) noexcept nogil:
    cdef vwide_sum sum = wide_sum_start(), moments = wide_sum_start()
    cdef vreal[4] p, f
    cdef Py_ssize_t turn
    cdef int k
    for turn in range(WIDTH // 4):
        for k in range(4):
            load_weights(tile, 4 * turn + k, c, n, p, f)
            sum.chain[k] = wide_add(sum.chain[k], sum_of_group(p, f))
            if result == ENTROPY:
                moments.chain[k] = wide_add(moments.chain[k],
                                            moment_of(s, scaled, x, tile, 4 * turn + k, c, n))
    return outcome_of(result, s, scaled, n, wide_sum_end(sum), wide_sum_end(moments), real_count(ties), doubt)

cdef inline void conclude_block(int result, bint scaled, const Shift* s, Py_ssize_t n, real* x, Across* tile,
                                Outcome* outcome, vmask* doubt) noexcept nogil:
    cdef vcount[COLS] ties
    cdef Narrow sums
    cdef int c
    for c in range(COLS):
        ties[c] = no_count()
    if n <= WIDTH:
        narrow_sums(result, scaled, True, s, n, x, &sums)
        narrow_outcomes(result, scaled, s, n, x, &sums, outcome, doubt)
    else:
        weigh_block(result, scaled, s, n, x, tile, ties)
        for c in range(COLS):
            outcome[c] = single_column(result, scaled, &s[c], n, x, c, tile, ties[c], &doubt[c])

cdef void conclude_single(int sum_of, bint scaled, const Shift* s, Py_ssize_t n, real* x, Across* tile,
                          Outcome* outcome, vmask* doubt) noexcept nogil:
    if sum_of == SOFTMAX:
        if scaled:
            conclude_block(SOFTMAX, True, s, n, x, tile, outcome, doubt)
        else:
            conclude_block(SOFTMAX, False, s, n, x, tile, outcome, doubt)
    elif sum_of == ENTROPY:
        conclude_block(ENTROPY, True, s, n, x, tile, outcome, doubt)
    elif sum_of == OTHERS:
        if scaled:
            conclude_block(OTHERS, True, s, n, x, tile, outcome, doubt)
        else:
            conclude_block(OTHERS, False, s, n, x, tile, outcome, doubt)
    elif scaled:
        conclude_block(LOGSUMEXP, True, s, n, x, tile, outcome, doubt)
    else:
        conclude_block(LOGSUMEXP, False, s, n, x, tile, outcome, doubt)

cdef Outcome conclude_across(int sum_of, bint scaled, const Shift* s, Py_ssize_t n, int c, const Across* tile,
                             vcount ties, vmask* doubt) noexcept nogil:
    cdef vwide_sum sum = wide_sum_start(), moments = wide_sum_start()
    cdef vwide weights
    cdef int part
    for part in range(WIDTH):
        sum.chain[part % 4] = wide_add(sum.chain[part % 4], tile.weights[part * COLS + c])
    weights = wide_sum_end(sum)
    if sum_of == SOFTMAX:
        return outcome_of(SOFTMAX, s, scaled, n, weights, weights, real_count(ties), doubt)
    if sum_of == ENTROPY:
        for part in range(WIDTH):
            moments.chain[part % 4] = wide_add(moments.chain[part % 4], tile.moments[part * COLS + c])
        return outcome_of(ENTROPY, s, True, n, weights, wide_sum_end(moments), real_count(ties), doubt)
    if sum_of == OTHERS:
        return outcome_of(OTHERS, s, scaled, n, weights, weights, real_count(ties), doubt)
    return outcome_of(LOGSUMEXP, s, scaled, n, weights, weights, real_count(ties), doubt)

cdef inline Shift shift_across(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, bint scaled,
                               vreal top) noexcept nogil:
    """That of one register's rows, from i on."""
    cdef Shift s
    cdef real[LANES] temperature, temperature_lo
    cdef double t
    cdef Py_ssize_t k
    if scaled:
        for k in range(LANES):
            t = 1
            if k < width:
                t = rows.temperature[o * rows.temperature_outer + (i + k) * rows.temperature_inner]
            temperature[k] = <real>t
            temperature_lo[k] = <real>(t - temperature[k])
        set_temperature(&s, load(temperature), load(temperature_lo))
    else:
        no_temperature(&s)
    set_top(&s, top)
    return s

cdef bint any_special(const Rows* rows, Py_ssize_t width, const vreal* top, const Outcome* outcome) noexcept nogil:
    cdef real[WIDTH] tops, his
    cdef int c
    if rows.result == SOFTMAX and rows.where == NULL:
        return False
    for c in range(COLS):
        store(tops + c * LANES, top[c])
        store(his + c * LANES, outcome[c].hi)
    for c in range(width):
        if is_special(rows, tops[c], his[c]):
            return True
    return False

cdef void write_scalars(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width,
                        const Outcome* outcome) noexcept nogil:
    cdef elem[WIDTH] line
    cdef Py_ssize_t c
    for c in range(COLS):
        store_elem(line + c * LANES, outcome[c].hi + outcome[c].lo)
    for c in range(width):
        rows.y[o * rows.y_outer + (i + c) * rows.y_inner] = line[c]

cdef void sums_across(int sum_of, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, const Shift* s,
                      bint keep, real* kept, Across* tile, Outcome* outcome, vmask* doubt) noexcept nogil:
    """Rows longer than a block."""
    cdef vcount[COLS] ties
    cdef vreal[COLS] top
    cdef Py_ssize_t b, j, k, count
    cdef real* x
    cdef int c
    for c in range(COLS):
        ties[c] = no_count()
        top[c] = s[c].top
    for k in range(WIDTH * COLS):
        tile.weights[k] = wide_zero()
    if sum_of == ENTROPY:
        for k in range(WIDTH * COLS):
            tile.moments[k] = wide_zero()
    for b in range(steps(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = kept + j * WIDTH if keep else kept
        if not keep:
            fill_tile(rows, o, i, width, j, count, x, top)
        else:
            prefetch_block(rows, o, i, j, count)
        if j % CHUNK == 0:
            start_chunk(sum_of, tile)
        add_block_of(sum_of, rows.scaled, s, count, x, tile, ties)
        if (j + BLOCK) % CHUNK == 0 or j + BLOCK >= rows.n:
            end_chunk(sum_of, tile)
        elif RUN > BLOCK and (j + BLOCK) % RUN == 0:
            end_run(sum_of, tile)
    for c in range(COLS):
        outcome[c] = conclude_across(sum_of, rows.scaled, &s[c], rows.n, c, tile, ties[c], &doubt[c])

cdef void outcomes_across(int sum_of, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, const Shift* s,
                          bint keep, const Work* work, Outcome* outcome, vmask* doubt) noexcept nogil:
    if rows.n <= BLOCK:
        conclude_single(sum_of, rows.scaled, s, rows.n, work.kept, work.tile, outcome, doubt)
    else:
        sums_across(sum_of, rows, o, i, width, s, keep, work.kept, work.tile, outcome, doubt)

cdef inline bint any_column(const vmask* mask) noexcept nogil:
    cdef int c
    for c in range(COLS):
        if any_lane(mask[c]):
            return True
    return False

cdef inline void better_outcomes(const vmask* doubt, const Outcome* exact, Outcome* outcome) noexcept nogil:
    """Only where they are needed: what comes out for a row may not depend on its neighbours."""
    cdef int c
    for c in range(COLS):
        outcome[c].hi = choose(doubt[c], exact[c].hi, outcome[c].hi)
        outcome[c].lo = choose(doubt[c], exact[c].lo, outcome[c].lo)

cdef inline bint find_ones(const Shift* s, bint scaled, const vmask* doubt, Outcome* outcome) noexcept nogil:
    """find_one, for all columns."""
    cdef bint found = False
    cdef int c
    if any_column(doubt):
        for c in range(COLS):
            outcome[c].one = fill(NEARLY_ONE)
            found |= find_one(&s[c], scaled, &outcome[c])
    return found

cdef void rows_across(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, const Work* work) noexcept nogil:
    """The rows in columns i to i + width."""
    cdef bint keep = rows.n * WIDTH <= KEEP
    cdef vreal[COLS] top
    cdef vcount[COLS] ties
    cdef Shift[COLS] s
    cdef Outcome[COLS] outcome, exact
    cdef vmask[COLS] doubt, unused
    cdef Py_ssize_t b, j, count
    cdef real* x
    cdef int c, sum_of, result = rows.result
    for c in range(COLS):
        top[c] = fill(-INFINITY)
        ties[c] = no_count()
    for b in range(steps(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = work.kept + j * WIDTH if keep else work.kept
        if rows.causal:
            fill_visible(rows, o, i, width, j, count, x, top)
        else:
            fill_tile(rows, o, i, width, j, count, x, top)
    for c in range(COLS):
        s[c] = shift_across(rows, o, i + c * LANES, width - c * LANES, rows.scaled, top[c])

    sum_of = first_sum(rows)
    outcomes_across(sum_of, rows, o, i, width, s, keep, work, outcome, doubt)
    if sum_of == OTHERS and any_column(doubt):
        outcomes_across(LOGSUMEXP, rows, o, i, width, s, keep, work, exact, unused)
        better_outcomes(doubt, exact, outcome)
    elif sum_of == SOFTMAX and find_ones(s, rows.scaled, doubt, outcome):
        result = SOFTMAX_ONE
    if any_special(rows, width, top, outcome):
        for j in range(i, i + width):
            row_along(rows, o * rows.inner + j, top_of_row(rows, o, j, work), o * rows.inner + j, work)
        return
    if rows.result == LOGSUMEXP or rows.result == ENTROPY:
        write_scalars(rows, o, i, width, outcome)
        return

    for b in range(steps(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = work.kept + j * WIDTH if keep else work.kept
        if not keep:
            fill_tile(rows, o, i, width, j, count, x, top)
            if rows.result == SOFTMAX:
                # for the weights: the sums are known
                add_block_of(SOFTMAX, rows.scaled, s, count, x, work.tile, ties)
        write_tile(result, rows, o, i, width, j, count, s, outcome, x)

# The narrowest rows, if they are contiguous, and neither masked nor scaled. Most of a tile's time would be spent in
# waiting for its maxima and sums, so the next tile is filled in between.

cdef inline bint is_narrow(const Rows* rows) noexcept nogil:
    return (rows.n <= WIDTH and rows.where == NULL and not rows.scaled and rows.result != ENTROPY
            and rows.x_n == 1 and rows.y_n == 1)

cdef inline bint is_whole(const Rows* rows, Py_ssize_t i, Py_ssize_t width) noexcept nogil:
    """Whether a tile can be read and written by whole registers."""
    return width == WIDTH and (rows.n >= SIDE or (rows_below(rows, i) and rows.y_inner == rows.n))

cdef inline bint narrow_fill(int result, const Rows* rows, Py_ssize_t o, Py_ssize_t i, real* tile,
                             vreal* top) noexcept nogil:
    """False if the rows hold something special."""
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner
    cdef vreal finite = fill(1)
    cdef int c
    for c in range(COLS):
        top[c] = fill(-INFINITY)
        fill_column(x + c * LANES * rows.x_inner, rows.x_inner, rows.n, tile + c * LANES, &top[c])
        finite = keep_where(less(vabs(top[c]), fill(INFINITY)), finite)
    return result == SOFTMAX or hmax(-finite) == -1

cdef inline void narrow_results(int result, const Rows* rows, Py_ssize_t o, Py_ssize_t i, const Shift* s,
                                const Outcome* outcome, const real* tile) noexcept nogil:
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    cdef elem[LANES] line
    cdef Py_ssize_t k
    cdef int c
    for c in range(COLS):
        if result == LOGSUMEXP:
            store_elem(line, outcome[c].hi + outcome[c].lo)
            for k in range(LANES):
                y[(c * LANES + k) * rows.y_inner] = line[k]
        else:
            empty_column(result, False, &s[c], &outcome[c], tile + c * LANES, y + c * LANES * rows.y_inner,
                         rows.y_inner, rows.n, (WIDTH - c * LANES) * rows.n)

cdef void narrow_doubted(const Rows* rows, Py_ssize_t o, Py_ssize_t i, const Shift* s, const vmask* doubt,
                         Outcome* outcome, real* tile) noexcept nogil:
    """Results of SOFTMAX that may be NEARLY_ONE, or subnormal."""
    find_ones(s, False, doubt, outcome)
    round_subnormal(rows.n, tile, outcome)
    narrow_results(SOFTMAX_ONE, rows, o, i, s, outcome, tile)

cdef void narrow_exact(const Shift* s, Py_ssize_t n, real* tile, const vmask* doubt, Outcome* outcome) noexcept nogil:
    cdef Narrow sums
    cdef Outcome[COLS] exact
    cdef vmask[COLS] unused
    narrow_sums(LOGSUMEXP, False, True, s, n, tile, &sums)
    narrow_outcomes(LOGSUMEXP, False, s, n, tile, &sums, exact, unused)
    better_outcomes(doubt, exact, outcome)

cdef inline void narrow_tiles(int result, const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                              const Work* work) noexcept nogil:
    cdef real* tile = work.kept
    cdef real* next_tile = work.tile.p
    cdef Shift[2 * COLS] shifts
    cdef Shift* s = shifts
    cdef Shift* next_s = shifts + COLS
    cdef vreal[COLS] top
    cdef Narrow sums
    cdef Outcome[COLS] outcome
    cdef vmask[COLS] doubt
    cdef bint is_filled = False, fills
    cdef int sum_of = SOFTMAX if result == SOFTMAX else OTHERS
    cdef Place place, next_place
    cdef Py_ssize_t t
    cdef int c
    for t in range(first_tile, end + 1):
        if is_filled and any_center(s):
            narrow_sums(sum_of, False, True, s, rows.n, tile, &sums)
        elif is_filled:
            narrow_sums(sum_of, False, False, s, rows.n, tile, &sums)
        fills = False
        if t < end:
            next_place = place_of(rows, t)
            fills = is_whole(rows, next_place.i, next_place.width) and narrow_fill(
                result, rows, next_place.o, next_place.i, next_tile, top)
        if is_filled:
            narrow_outcomes(sum_of, False, s, rows.n, tile, &sums, outcome, doubt)
            if sum_of == OTHERS and any_column(doubt):
                narrow_exact(s, rows.n, tile, doubt, outcome)
        if fills:
            for c in range(COLS):
                next_s[c] = shift_across(rows, next_place.o, next_place.i, WIDTH, False, top[c])
        if is_filled:
            if result == SOFTMAX and sizeof(elem) == sizeof(real) and any_column(doubt):
                narrow_doubted(rows, place.o, place.i, s, doubt, outcome, tile)
            else:
                narrow_results(result, rows, place.o, place.i, s, outcome, tile)
        if t < end and not fills:
            rows_across(rows, next_place.o, next_place.i, next_place.width, work)
        is_filled, place = fills, next_place
        tile, next_tile = next_tile, tile
        s, next_s = next_s, s

# Causal rows. Tiles are laid so that the longest row of each, if it does not see all, is a multiple of WIDTH: then all
# its rows are summed in the same way (see the limits WIDTH, GROUP and CHUNK), and what one of them does not see of the
# longest adds nothing to its sum.

cdef inline Py_ssize_t causal_lead(const Rows* rows) noexcept nogil:
    return (rows.offset % WIDTH + WIDTH) % WIDTH

cdef void causal_tile(const Rows* rows, const Place* place, const Work* work) noexcept nogil:
    cdef Py_ssize_t o = place.o, i = place.i, first_row = o * rows.inner + i, end = i + place.width, k, n
    cdef Rows seen = rows[0]
    seen.n = row_length(rows, end - 1)
    if seen.n > CAUSAL_ACROSS or place.width < WIDTH:
        rows_along(rows, first_row, first_row + place.width - 1, work)
        return
    if seen.n > 0:
        rows_across(&seen, o, i, place.width, work)
    for k in range(i, end):
        n = row_length(rows, k)
        clear_elements(rows.y + o * rows.y_outer + k * rows.y_inner + n * rows.y_n, rows.y_n, rows.n - n, rows.streamed)

cdef void tiles_across(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end, const Work* work) noexcept nogil:
    cdef Place place
    cdef Py_ssize_t t
    if rows.causal:
        for t in range(first_tile, end):
            place = place_of(rows, t)
            causal_tile(rows, &place, work)
    elif not is_narrow(rows):
        for t in range(first_tile, end):
            place = place_of(rows, t)
            rows_across(rows, place.o, place.i, place.width, work)
    elif rows.result == SOFTMAX:
        narrow_tiles(SOFTMAX, rows, first_tile, end, work)
    elif rows.result == LOG_SOFTMAX:
        narrow_tiles(LOG_SOFTMAX, rows, first_tile, end, work)
    else:
        narrow_tiles(LOGSUMEXP, rows, first_tile, end, work)
