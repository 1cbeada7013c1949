# WIDTH rows at a time, each in a lane of its own: rows along another axis than the last, and narrow rows.
#
# A tile holds a BLOCK of elements of each of its rows, as reals, one line of WIDTH reals for each n. `fill_tile`
# brings it from any strides, narrow contiguous rows by transposing registers; `empty_tile` takes it back. In
# between no operation crosses lanes. The rows' sums are added up in the order of along.pxi, bit for bit.

cdef void fill_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, Py_ssize_t j, Py_ssize_t count,
                    real* tile) noexcept nogil:
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner + j * rows.x_n
    cdef const unsigned char* where = rows.where
    cdef vreal[LANES] square
    cdef elem[WIDTH] line
    cdef Py_ssize_t k, c, r, b, block
    if where == NULL and width == WIDTH and rows.x_inner == 1:
        for k in range(count):
            for c in range(COLS):
                store(tile + k * WIDTH + c * LANES, load_elem(x + k * rows.x_n + c * LANES))
    elif where == NULL and width == WIDTH and rows.x_n == 1 and count >= LANES:
        for c in range(COLS):
            for b in range(steps(count, LANES)):
                block = min(b * LANES, count - LANES)           # the last square overlaps the one before
                for r in range(LANES):
                    square[r] = load_elem(x + (c * LANES + r) * rows.x_inner + block)
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
                    line[c] = x[k * rows.x_n + c * rows.x_inner]
                else:
                    line[c] = ELEM_MINUS_INFINITY
            for c in range(COLS):
                store(tile + k * WIDTH + c * LANES, load_elem(line + c * LANES))

cdef void empty_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, Py_ssize_t j, Py_ssize_t count,
                     const real* tile) noexcept nogil:
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner + j * rows.y_n
    cdef vreal[LANES] square
    cdef elem[WIDTH] line
    cdef Py_ssize_t k, c, r, b, block
    # a whole cache line at a time, or the caches had better gather it
    cdef bint streamed = rows.streamed and (<size_t>y | <size_t>(rows.y_n * <Py_ssize_t>sizeof(elem))) % 64 == 0
    if width == WIDTH and rows.y_inner == 1:
        for k in range(count):
            for c in range(COLS):
                if streamed:
                    stream(<real*>(y + k * rows.y_n + c * LANES), load(tile + k * WIDTH + c * LANES))
                else:
                    store_elem(y + k * rows.y_n + c * LANES, load(tile + k * WIDTH + c * LANES))
    elif width == WIDTH and rows.y_n == 1 and count >= LANES:
        for c in range(COLS):
            for b in range(steps(count, LANES)):
                block = min(b * LANES, count - LANES)
                for r in range(LANES):
                    square[r] = load(tile + (block + r) * WIDTH + c * LANES)
                transpose(square)
                for r in range(LANES):
                    store_elem(y + (c * LANES + r) * rows.y_inner + block, square[r])
    else:
        for k in range(count):
            for c in range(COLS):
                store_elem(line + c * LANES, load(tile + k * WIDTH + c * LANES))
            for c in range(width):
                y[k * rows.y_n + c * rows.y_inner] = line[c]

cdef inline void weigh_tile(int result, bint scaled, const Shift* shift, Py_ssize_t count, Across* tile,
                            vreal* ties) noexcept nogil:
    """p and f of the tile's elements, and the weights in place of them if they are the result."""
    cdef Shift[COLS] s
    cdef vreal[4] x, p, f
    cdef Py_ssize_t step, k
    cdef int a, c
    for c in range(COLS):
        s[c] = shift[c]
    for step in range(steps(count * WIDTH, 4 * LANES)):     # a tile has room for whole steps
        k = step * (4 * LANES)
        for a in range(4):
            x[a] = load(tile.x + k + a * LANES)
        weigh4(x, s, True, scaled, p, f)
        for a in range(4):
            if result == SOFTMAX:
                store(tile.x + k + a * LANES, fma_(p[a], f[a], f[a]))
            else:
                f[a] = keep_where(is_other(&s[a % COLS], x[a]), f[a])
            store(tile.p + k + a * LANES, p[a])
            store(tile.f + k + a * LANES, f[a])
    if result != SOFTMAX:
        for k in range(count):
            for c in range(COLS):
                ties[c] = ties[c] + keep_where(equal(load(tile.x + k * WIDTH + c * LANES), s[c].top), fill(1))

cdef inline void sum_tile(int result, bint scaled, const Shift* s, Py_ssize_t count, bint single,
                          Across* tile) noexcept nogil:
    """Adds the tile's weights to the partial sums: element j of a row to number j modulo WIDTH."""
    cdef vreal[4] p, f
    cdef vreal total, lost, moment, score, score_lo, top_score, top_score_lo
    cdef Py_ssize_t l, at
    cdef int a, c
    for l in range(min(count, <Py_ssize_t>WIDTH)):
        for c in range(COLS):
            at = l * WIDTH + c * LANES
            moment = fill(0)
            for a in range(4):
                if l + a * WIDTH < count:
                    p[a] = load(tile.p + at + a * WIDTH * WIDTH)
                    f[a] = load(tile.f + at + a * WIDTH * WIDTH)
                else:
                    p[a] = fill(0)
                    f[a] = fill(0)
                if result == ENTROPY and l + a * WIDTH < count:
                    scores_of(&s[c], s[c].top - s[c].center, scaled, &top_score, &top_score_lo)
                    score = load(tile.x + at + a * WIDTH * WIDTH) - s[c].center
                    scores_of(&s[c], vmax(s[c].limit, score), scaled, &score, &score_lo)
                    score = (score - top_score) + (score_lo - top_score_lo)
                    moment = fma_(fma_(p[a], f[a], f[a]), score, moment)
            if result == ENTROPY:
                tile.moments[l * COLS + c] = wide_add(tile.moments[l * COLS + c], wide_of(moment, fill(0)))
            if single:
                total = start_of(result)
                lost = fill(0)
            else:
                total = load(tile.total + at)
                lost = load(tile.lost + at)
            add_weights(result, &total, &lost, p, f)
            if single:
                tile.weights[l * COLS + c] = wide_of(total - start_of(result), lost)
            else:
                store(tile.total + at, total)
                store(tile.lost + at, lost)

cdef void weigh_and_sum(int result, bint scaled, const Shift* s, Py_ssize_t count, bint single, Across* tile,
                        vreal* ties) noexcept nogil:
    if result == SOFTMAX:
        if scaled:
            weigh_tile(SOFTMAX, True, s, count, tile, ties)
        else:
            weigh_tile(SOFTMAX, False, s, count, tile, ties)
        sum_tile(SOFTMAX, False, s, count, single, tile)
    elif result == ENTROPY:
        weigh_tile(ENTROPY, True, s, count, tile, ties)
        sum_tile(ENTROPY, True, s, count, single, tile)
    else:
        if scaled:
            weigh_tile(LOGSUMEXP, True, s, count, tile, ties)
        else:
            weigh_tile(LOGSUMEXP, False, s, count, tile, ties)
        sum_tile(LOGSUMEXP, False, s, count, single, tile)

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

cdef void tops_across(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t width, Across* tile,
                      vreal* top) noexcept nogil:
    cdef Py_ssize_t b, j, k, count
    cdef int c
    for c in range(COLS):
        top[c] = fill(-INFINITY)
    for b in range(steps(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        fill_tile(rows, o, i, width, j, count, tile.x)
        for k in range(count):
            for c in range(COLS):
                top[c] = vmax(load(tile.x + k * WIDTH + c * LANES), top[c])

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

cdef inline Outcome conclude_across(const Rows* rows, const Shift* s, vwide* weights, vwide* moments,
                                    vreal ties) noexcept nogil:
    cdef vwide sum = wide_total_down(weights)
    if rows.result == SOFTMAX:
        return outcome_of(SOFTMAX, s, False, sum, sum, ties)
    if rows.result == ENTROPY:
        return outcome_of(ENTROPY, s, True, sum, wide_total_down(moments), ties)
    return outcome_of(LOGSUMEXP, s, rows.scaled, sum, sum, ties)

cdef inline void finish_columns(int result, bint scaled, const Shift* s, const Outcome* outcome, Py_ssize_t count,
                                const real* x, real* y) noexcept nogil:
    cdef Py_ssize_t k
    cdef int c
    for k in range(count):
        for c in range(COLS):
            store(y + k * WIDTH + c * LANES, result_of(result, &s[c], &outcome[c], scaled,
                                                       load(x + k * WIDTH + c * LANES)))

cdef void finish_tile(const Rows* rows, const Shift* s, const Outcome* outcome, Py_ssize_t count, const real* x,
                      real* y) noexcept nogil:
    if rows.result == SOFTMAX:
        finish_columns(SOFTMAX, False, s, outcome, count, x, y)
    elif rows.scaled:
        finish_columns(LOG_SOFTMAX, True, s, outcome, count, x, y)
    else:
        finish_columns(LOG_SOFTMAX, False, s, outcome, count, x, y)

cdef void rows_across(const Rows* rows, Py_ssize_t o, Py_ssize_t i, const Work* work) noexcept nogil:
    cdef Py_ssize_t n = rows.n, width = min(rows.inner - i, <Py_ssize_t>WIDTH), b, j, k, count
    cdef bint single = n <= BLOCK, keep = single or n * WIDTH <= KEEP
    cdef bint weighs_again = rows.result == SOFTMAX and not keep
    cdef Across* tile = work.tile
    cdef vreal[COLS] top, ties
    cdef Shift[COLS] s
    cdef Outcome[COLS] outcome
    cdef vwide[WIDTH] weights, moments
    cdef real* from_
    cdef int c

    tops_across(rows, o, i, width, tile, top)
    shifts_across(rows, o, i, width, top, s)

    for c in range(COLS):
        ties[c] = fill(0)
    for k in range(WIDTH * COLS):
        tile.weights[k] = wide_zero()
        tile.moments[k] = wide_zero()
    for b in range(steps(n, BLOCK)):
        j = b * BLOCK
        count = min(n - j, <Py_ssize_t>BLOCK)
        if not single:
            fill_tile(rows, o, i, width, j, count, tile.x)
            if j % CHUNK == 0:
                start_chunk(rows.result, tile)
        weigh_and_sum(rows.result, rows.scaled, s, count, single, tile, ties)
        if not single:
            if rows.result == SOFTMAX and keep:
                memcpy(work.kept + j * WIDTH, tile.x, count * WIDTH * sizeof(real))
            if (j + BLOCK) % CHUNK == 0 or j + BLOCK >= n:
                end_chunk(rows.result, tile)
    for c in range(COLS):
        for k in range(WIDTH):
            weights[k] = tile.weights[k * COLS + c]
            if rows.result == ENTROPY:
                moments[k] = tile.moments[k * COLS + c]
        outcome[c] = conclude_across(rows, &s[c], weights, moments, ties[c])
    if any_special(rows, width, top, outcome):
        for k in range(width):
            row_along(rows, o, i + k, work)
        return
    if rows.result == LOGSUMEXP or rows.result == ENTROPY:
        write_scalars(rows, o, i, width, outcome)
        return

    for b in range(steps(n, BLOCK)):
        j = b * BLOCK
        count = min(n - j, <Py_ssize_t>BLOCK)
        from_ = tile.x
        if rows.result == SOFTMAX and keep and not single:
            from_ = work.kept + j * WIDTH
        elif not single:
            fill_tile(rows, o, i, width, j, count, tile.x)
            if weighs_again:
                weigh_and_sum(SOFTMAX, rows.scaled, s, count, False, tile, ties)
        finish_tile(rows, s, outcome, count, from_, tile.x)
        empty_tile(rows, o, i, width, j, count, tile.x)
