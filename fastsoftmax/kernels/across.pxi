# WIDTH rows at a time, each in a lane of its own: rows along another axis than the last, and narrow rows.
#
# A tile holds a BLOCK of elements of each of its rows, as reals, one line of WIDTH reals for each n. `fill_tile`
# brings it from any strides, narrow contiguous rows by transposing registers; `empty_tile` takes it back. In
# between no operation crosses lanes. The rows' sums are added up in the order of along.pxi, bit for bit.

cdef void fill_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, Py_ssize_t j, Py_ssize_t count,
                    real* tile) noexcept nogil:
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner + j * rows.x_n
    cdef Py_ssize_t x_n = rows.x_n, x_inner = rows.x_inner
    cdef const unsigned char* where = rows.where
    cdef vreal[LANES] square
    cdef elem[WIDTH] line
    cdef Py_ssize_t k, c, r, b, block
    if where == NULL and width == WIDTH and x_inner == 1:
        for k in range(count):
            prefetch(x + k * x_n + 2 * WIDTH)       # each line is on a page of its own: no hardware does this
            for c in range(COLS):
                store(tile + k * WIDTH + c * LANES, load_elem(x + k * x_n + c * LANES))
    elif where == NULL and width == WIDTH and x_n == 1 and (
            count >= LANES or (x_inner > 0 and i + WIDTH + LANES <= rows.inner)):
        # the last square overlaps the one before; where there is none before, it reads into the rows below
        for c in range(COLS):
            for b in range(steps(count, LANES)):
                block = max(min(b * LANES, count - LANES), 0)
                for r in range(LANES):
                    square[r] = load_elem(x + (c * LANES + r) * x_inner + block)
                transpose(square)
                for r in range(LANES):
                    store(tile + (block + r) * WIDTH + c * LANES, square[r])
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
                store(tile + k * WIDTH + c * LANES, load_elem(line + c * LANES))

cdef void empty_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, Py_ssize_t j, Py_ssize_t count,
                     const real* tile) noexcept nogil:
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner + j * rows.y_n
    cdef Py_ssize_t y_n = rows.y_n, y_inner = rows.y_inner
    cdef vreal[LANES] square
    cdef elem[WIDTH] line
    cdef Py_ssize_t k, c, r, b, block
    # a whole cache line at a time, or the caches had better gather it
    cdef bint streamed = rows.streamed and (<size_t>y | <size_t>(y_n * <Py_ssize_t>sizeof(elem))) % 64 == 0
    if width == WIDTH and y_inner == 1:
        for k in range(count):
            for c in range(COLS):
                if streamed:
                    stream(<real*>(y + k * y_n + c * LANES), load(tile + k * WIDTH + c * LANES))
                else:
                    store_elem(y + k * y_n + c * LANES, load(tile + k * WIDTH + c * LANES))
    elif width == WIDTH and y_n == 1 and count >= LANES:
        for c in range(COLS):
            for b in range(steps(count, LANES)):
                block = min(b * LANES, count - LANES)
                for r in range(LANES):
                    square[r] = load(tile + (block + r) * WIDTH + c * LANES)
                transpose(square)
                for r in range(LANES):
                    store_elem(y + (c * LANES + r) * y_inner + block, square[r])
    elif width == WIDTH and y_n == 1 and y_inner == count:
        # rows narrower than a register, from the first to the last: what goes beyond one is overwritten by the next
        for c in range(COLS):
            for r in range(LANES):
                square[r] = load(tile + r * WIDTH + c * LANES)
            transpose(square)
            for r in range(LANES):
                if (c * LANES + r) * count + LANES <= WIDTH * count:
                    store_elem(y + (c * LANES + r) * count, square[r])
                else:
                    store_elem(line, square[r])
                    put(y + (c * LANES + r) * count, 1, line, count)
    else:
        for k in range(count):
            for c in range(COLS):
                store_elem(line + c * LANES, load(tile + k * WIDTH + c * LANES))
            for c in range(width):
                y[k * y_n + c * y_inner] = line[c]

# Weights and sums. A full block goes at once, four elements of a partial sum together; the last block of a row, which
# may be nearly empty, in two steps.

cdef inline void weigh_others(int result, const Shift* s, const vreal* x, vreal* f, vreal* ties) noexcept nogil:
    """Leaves the largest elements and those without weight out of the sum."""
    cdef int a
    for a in range(4):
        f[a] = keep_where(is_other(s, x[a]), f[a])
        ties[0] = ties[0] + keep_where(equal(x[a], s.top), fill(1))

cdef inline void full_block(int result, bint scaled, const Shift* shift, real* x, Across* tile,
                            vreal* ties) noexcept nogil:
    cdef Shift[COLS] s
    cdef vreal[4] e, p, f
    cdef vreal total, lost, moment
    cdef Py_ssize_t part, at
    cdef int a, c
    for c in range(COLS):
        s[c] = shift[c]
    for part in range(WIDTH):
        for c in range(COLS):
            at = part * WIDTH + c * LANES
            for a in range(4):
                e[a] = load(x + at + a * WIDTH * WIDTH)
            weigh4(e, &s[c], False, scaled, p, f)
            if result == SOFTMAX:
                for a in range(4):
                    store(x + at + a * WIDTH * WIDTH, fma_(p[a], f[a], f[a]))
            elif result != ALL:
                weigh_others(result, &s[c], e, f, &ties[c])
            if result == ENTROPY:
                moment = fill(0)
                for a in range(4):
                    moment = fma_(fma_(p[a], f[a], f[a]), score_below_top(&s[c], e[a], scaled), moment)
                tile.moments[part * COLS + c] = wide_add(tile.moments[part * COLS + c], wide_of(moment, fill(0)))
            total = load(tile.total + at)
            lost = load(tile.lost + at)
            add_weights(result, &total, &lost, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)

cdef inline void weigh_block(int result, bint scaled, const Shift* shift, Py_ssize_t count, real* x, Across* tile,
                             vreal* ties) noexcept nogil:
    """First step: p and f of the elements, and the weights in place of them if they are the result."""
    cdef Shift[COLS] s
    cdef vreal[4] e, p, f
    cdef Py_ssize_t step, k
    cdef int a, c
    for c in range(COLS):
        s[c] = shift[c]
    for step in range(steps(count * WIDTH, 4 * LANES)):     # there is room for whole steps
        k = step * (4 * LANES)
        for a in range(4):
            e[a] = load(x + k + a * LANES)
        weigh4(e, s, True, scaled, p, f)
        for a in range(4):
            if result == SOFTMAX:
                store(x + k + a * LANES, fma_(p[a], f[a], f[a]))
            elif result != ALL:
                f[a] = keep_where(is_other(&s[a % COLS], e[a]), f[a])
            store(tile.p + k + a * LANES, p[a])
            store(tile.f + k + a * LANES, f[a])
    if result != SOFTMAX and result != ALL:
        for k in range(count):
            for c in range(COLS):
                ties[c] = ties[c] + keep_where(equal(load(x + k * WIDTH + c * LANES), s[c].top), fill(1))

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
    cdef vreal total, lost
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
            add_weights(result, &total, &lost, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)

cdef inline void add_block(int result, bint scaled, const Shift* s, Py_ssize_t count, real* x, Across* tile,
                           vreal* ties) noexcept nogil:
    if count == BLOCK:
        full_block(result, scaled, s, x, tile, ties)
    else:
        weigh_block(result, scaled, s, count, x, tile, ties)
        sum_block(result, scaled, s, count, x, tile)

cdef void add_block_of(int sum_of, bint scaled, const Shift* s, Py_ssize_t count, real* x, Across* tile,
                       vreal* ties) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    if sum_of == SOFTMAX:
        if scaled:
            add_block(SOFTMAX, True, s, count, x, tile, ties)
        else:
            add_block(SOFTMAX, False, s, count, x, tile, ties)
    elif sum_of == ENTROPY:
        add_block(ENTROPY, True, s, count, x, tile, ties)
    elif sum_of == ALL:
        if scaled:
            add_block(ALL, True, s, count, x, tile, ties)
        else:
            add_block(ALL, False, s, count, x, tile, ties)
    elif scaled:
        add_block(LOGSUMEXP, True, s, count, x, tile, ties)
    else:
        add_block(LOGSUMEXP, False, s, count, x, tile, ties)

cdef inline void start_chunk(int result, Across* tile) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(WIDTH * COLS):
        store(tile.total + k * LANES, start_of(result))
        store(tile.lost + k * LANES, fill(0))

cdef void end_chunk(int result, Across* tile) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(WIDTH * COLS):
        tile.weights[k] = wide_add(tile.weights[k], wide_of(
            load(tile.total + k * LANES) - start_of(result), load(tile.lost + k * LANES)))

# Rows that are one block need no running totals. If they have no more elements than there are partial sums, as the
# narrowest have, each element is a partial sum, and all is done at once.

cdef inline void narrow_column(int result, bint scaled, const Shift* shift, Py_ssize_t n, real* x, int c, vreal* ties,
                               vwide_sum* sum, vwide_sum* moments) noexcept nogil:
    cdef Shift s = shift[0]
    cdef vreal[4] e, p, f
    cdef Py_ssize_t turn, at
    cdef int k
    for turn in range(steps(n, 4)):
        at = 4 * turn * WIDTH + c * LANES
        for k in range(4):
            e[k] = load(x + at + k * WIDTH)
        weigh4(e, &s, False, scaled, p, f)
        for k in range(4):
            if 4 * turn + k >= n:
                break
            if result == SOFTMAX:
                store(x + at + k * WIDTH, fma_(p[k], f[k], f[k]))
            else:
                f[k] = keep_where(is_other(&s, e[k]), f[k])
                ties[0] = ties[0] + keep_where(equal(e[k], s.top), fill(1))
            sum.chain[k] = wide_add(sum.chain[k], wide_of(f[k], p[k] * f[k]))
            if result == ENTROPY:
                moments.chain[k] = wide_add(moments.chain[k], wide_of(
                    fma_(p[k], f[k], f[k]) * score_below_top(&s, e[k], scaled), fill(0)))

cdef inline Outcome single_column(int result, bint scaled, const Shift* s, Py_ssize_t n, real* x, int c,
                                  const Across* tile, vreal ties) noexcept nogil:
    cdef vwide_sum sum = wide_sum_start(), moments = wide_sum_start()
    cdef vreal[4] p, f
    cdef Py_ssize_t turn
    cdef int k
    if n <= WIDTH:
        narrow_column(result, scaled, s, n, x, c, &ties, &sum, &moments)
    else:
        for turn in range(WIDTH // 4):
            for k in range(4):
                load_weights(tile, 4 * turn + k, c, n, p, f)
                sum.chain[k] = wide_add(sum.chain[k], sum_of_group(p, f))
                if result == ENTROPY:
                    moments.chain[k] = wide_add(moments.chain[k],
                                                moment_of(s, scaled, x, tile, 4 * turn + k, c, n))
    return outcome_of(result, s, scaled, wide_sum_end(sum), wide_sum_end(moments), ties)

cdef inline void conclude_block(int result, bint scaled, const Shift* s, Py_ssize_t n, real* x, Across* tile,
                                Outcome* outcome) noexcept nogil:
    cdef vreal[COLS] ties
    cdef int c
    for c in range(COLS):
        ties[c] = fill(0)
    if n > WIDTH:
        weigh_block(result, scaled, s, n, x, tile, ties)
    for c in range(COLS):
        outcome[c] = single_column(result, scaled, &s[c], n, x, c, tile, ties[c])

cdef void conclude_single(int sum_of, bint scaled, const Shift* s, Py_ssize_t n, real* x, Across* tile,
                          Outcome* outcome) noexcept nogil:
    if sum_of == SOFTMAX:
        if scaled:
            conclude_block(SOFTMAX, True, s, n, x, tile, outcome)
        else:
            conclude_block(SOFTMAX, False, s, n, x, tile, outcome)
    elif sum_of == ENTROPY:
        conclude_block(ENTROPY, True, s, n, x, tile, outcome)
    elif scaled:
        conclude_block(LOGSUMEXP, True, s, n, x, tile, outcome)
    else:
        conclude_block(LOGSUMEXP, False, s, n, x, tile, outcome)

cdef Outcome conclude_across(int sum_of, bint scaled, const Shift* s, int c, const Across* tile, vreal ties,
                             vmask* enough) noexcept nogil:
    cdef vwide_sum sum = wide_sum_start(), moments = wide_sum_start()
    cdef vwide weights
    cdef Outcome outcome
    cdef int part
    for part in range(WIDTH):
        sum.chain[part % 4] = wide_add(sum.chain[part % 4], tile.weights[part * COLS + c])
        moments.chain[part % 4] = wide_add(moments.chain[part % 4], tile.moments[part * COLS + c])
    weights = wide_sum_end(sum)
    if sum_of == SOFTMAX:
        return outcome_of(SOFTMAX, s, False, weights, weights, ties)
    if sum_of == ENTROPY:
        return outcome_of(ENTROPY, s, True, weights, wide_sum_end(moments), ties)
    if sum_of == ALL:
        enough[0] = outcome_of_all(s, scaled, weights, &outcome)
        return outcome
    return outcome_of(LOGSUMEXP, s, scaled, weights, weights, ties)

cdef inline void top_of_tile(const real* x, Py_ssize_t count, vreal* top) noexcept nogil:
    cdef vreal[COLS] most
    cdef Py_ssize_t k
    cdef int c
    for c in range(COLS):
        most[c] = top[c]
    for k in range(count):
        for c in range(COLS):
            most[c] = vmax(load(x + k * WIDTH + c * LANES), most[c])
    for c in range(COLS):
        top[c] = most[c]

cdef void shifts_across(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, const vreal* top,
                        Shift* s) noexcept nogil:
    cdef real[WIDTH] temperature, temperature_lo
    cdef double t
    cdef int c
    for c in range(WIDTH if rows.scaled else 0):
        t = 1
        if c < width:
            t = rows.temperature[o * rows.temperature_outer + (i + c) * rows.temperature_inner]
        temperature[c] = <real>t
        temperature_lo[c] = <real>(t - temperature[c])
    for c in range(COLS):
        if rows.scaled:
            set_temperature(&s[c], load(temperature + c * LANES), load(temperature_lo + c * LANES))
        else:
            no_temperature(&s[c])
        set_top(&s[c], top[c])

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

cdef inline void finish_columns(int result, bint scaled, const Shift* shift, const Outcome* outcome_, Py_ssize_t count,
                                real* x) noexcept nogil:
    cdef Shift[COLS] s
    cdef Outcome[COLS] outcome
    cdef Py_ssize_t k
    cdef int c
    for c in range(COLS):
        s[c] = shift[c]
        outcome[c] = outcome_[c]
    for k in range(count):
        for c in range(COLS):
            store(x + k * WIDTH + c * LANES, result_of(result, &s[c], &outcome[c], scaled,
                                                       load(x + k * WIDTH + c * LANES)))

cdef void finish_tile(const Rows* rows, const Shift* s, const Outcome* outcome, Py_ssize_t count,
                      real* x) noexcept nogil:
    if rows.result == SOFTMAX:
        finish_columns(SOFTMAX, False, s, outcome, count, x)
    elif rows.scaled:
        finish_columns(LOG_SOFTMAX, True, s, outcome, count, x)
    else:
        finish_columns(LOG_SOFTMAX, False, s, outcome, count, x)

cdef void sums_across(int sum_of, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, const Shift* s,
                      bint keep, real* kept, Across* tile, Outcome* outcome, vmask* enough) noexcept nogil:
    """Rows longer than a block."""
    cdef vreal[COLS] ties
    cdef Py_ssize_t b, j, k, count
    cdef real* x
    cdef int c
    for c in range(COLS):
        ties[c] = fill(0)
    for k in range(WIDTH * COLS):
        tile.weights[k] = wide_zero()
        tile.moments[k] = wide_zero()
    for b in range(steps(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = kept + j * WIDTH if keep else kept
        if not keep:
            fill_tile(rows, o, i, width, j, count, x)
        if j % CHUNK == 0:
            start_chunk(sum_of, tile)
        add_block_of(sum_of, rows.scaled, s, count, x, tile, ties)
        if (j + BLOCK) % CHUNK == 0 or j + BLOCK >= rows.n:
            end_chunk(sum_of, tile)
    for c in range(COLS):
        outcome[c] = conclude_across(sum_of, rows.scaled, &s[c], c, tile, ties[c], &enough[c])

cdef void outcomes_across(int sum_of, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, const Shift* s,
                          bint keep, const Work* work, Outcome* outcome, vmask* enough) noexcept nogil:
    if rows.n <= BLOCK:
        conclude_single(sum_of, rows.scaled, s, rows.n, work.kept, work.tile, outcome)
    else:
        sums_across(sum_of, rows, o, i, width, s, keep, work.kept, work.tile, outcome, enough)

cdef bint all_enough(const vmask* enough, Py_ssize_t width) noexcept nogil:
    cdef real[WIDTH] each
    cdef Py_ssize_t k
    cdef int c
    for c in range(COLS):
        store(each + c * LANES, keep_where(enough[c], fill(1)))
    for k in range(width):
        if each[k] == 0:
            return False
    return True

cdef void rows_across(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, const Work* work) noexcept nogil:
    """The rows in columns i to i + width."""
    cdef bint keep = rows.n * WIDTH <= KEEP
    cdef vreal[COLS] top, ties
    cdef Shift[COLS] s
    cdef Outcome[COLS] outcome, exact
    cdef vmask[COLS] enough, enough_
    cdef Py_ssize_t b, j, count
    cdef real* x
    cdef int c, sum_of
    for c in range(COLS):
        top[c] = fill(-INFINITY)
        ties[c] = fill(0)
    for b in range(steps(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = work.kept + j * WIDTH if keep else work.kept
        fill_tile(rows, o, i, width, j, count, x)
        top_of_tile(x, count, top)
    shifts_across(rows, o, i, width, top, s)

    sum_of = first_sum(rows)
    outcomes_across(sum_of, rows, o, i, width, s, keep, work, outcome, enough)
    if sum_of == ALL and not all_enough(enough, width):
        outcomes_across(LOGSUMEXP, rows, o, i, width, s, keep, work, exact, enough_)
        for c in range(COLS):
            outcome[c].hi = choose(enough[c], outcome[c].hi, exact[c].hi)
            outcome[c].lo = choose(enough[c], outcome[c].lo, exact[c].lo)
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
            fill_tile(rows, o, i, width, j, count, x)
            if rows.result == SOFTMAX:
                # for the weights: the sums are known
                add_block_of(SOFTMAX, rows.scaled, s, count, x, work.tile, ties)
        finish_tile(rows, s, outcome, count, x)
        empty_tile(rows, o, i, width, j, count, x)
