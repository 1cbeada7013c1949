# One row at a time, its elements in the lanes.
#
# A row is taken in chunks: `fetch` gives a chunk's elements one after another, from where they stand or, for
# rows with gaps or a mask, from a buffer. Three passes: the largest element; the sum of the weights, which
# are kept if they are the result; the results. One long row can be shared by threads, chunk by chunk.

cdef inline Py_ssize_t row_length(const Rows* rows, Py_ssize_t i) noexcept nogil:
    if not rows.causal:
        return rows.n
    return min(max(i + rows.offset + 1, 0), rows.n)

cdef inline const elem* fetch(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start, Py_ssize_t count,
                              elem* buffer) noexcept nogil:
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner + start * rows.x_n
    cdef const unsigned char* where
    cdef Py_ssize_t k
    if rows.where == NULL:
        if rows.x_n == 1:
            return x
        for k in range(count):
            buffer[k] = x[k * rows.x_n]
        return buffer
    where = rows.where + o * rows.where_outer + i * rows.where_inner + start * rows.where_n
    for k in range(count):
        buffer[k] = x[k * rows.x_n] if where[k * rows.where_n] else ELEM_MINUS_INFINITY
    return buffer

cdef inline vreal load_upto(const elem* x, Py_ssize_t k, Py_ssize_t count, Py_ssize_t before) noexcept nogil:
    """Elements k to k + LANES of x, which has `count`, and `before` more in front of it; beyond them, what weighs
    nothing."""
    if k + LANES <= count:
        return load_elem(x + k)
    if k >= count:
        return fill(-INFINITY)
    if before + count >= LANES:
        return load_last(x + count, count - k)
    return load_first(x + k, count - k)

# NumPy's arrays start anywhere in a cache line, and a register across two lines takes twice the time. So what may begin
# where it likes begins at a whole register, and the weights are kept as far from one as the results will be.
cdef enum:
    ALIGNED = 8 * LANES     # elements from which that is worth a register more

cdef inline Py_ssize_t to_register(const elem* x) noexcept nogil:
    """How many elements stand before the next whole register."""
    return (-(<Py_ssize_t>(<size_t>x // sizeof(elem)))) & (LANES - 1)

cdef inline real* beside(const elem* y, real* kept) noexcept nogil:
    """Where in `kept`, which has room for a register more, the weights go whose results go to y."""
    return kept + ((-(<Py_ssize_t>(<size_t>kept // sizeof(real))) - to_register(y)) & (LANES - 1))

cdef inline real largest(const elem* x, Py_ssize_t count) noexcept nogil:
    """NaN is passed over: it is found by its weight."""
    cdef vreal[4] top
    cdef Py_ssize_t k = 0
    cdef int a
    for a in range(4):
        top[a] = fill(-INFINITY)
    if count >= ALIGNED:
        top[0] = vmax(load_elem(x), top[0])
        k = to_register(x)
    while k + 4 * LANES <= count:
        for a in range(4):
            top[a] = vmax(load_elem(x + k + a * LANES), top[a])
        k += 4 * LANES
    while k + LANES <= count:
        top[0] = vmax(load_elem(x + k), top[0])
        k += LANES
    if k < count:
        top[1] = vmax(load_elem(x + count - LANES) if count >= LANES else load_upto(x, 0, count, 0), top[1])
    return hmax(vmax(vmax(top[0], top[1]), vmax(top[2], top[3])))

# Addresses to prefetch: the next row's elements, and the memory of the results, which stores alone would bring near too
# late. Not for rows beyond a chunk, whose next is far off.
cdef struct Soon:
    const elem* x
    const elem* y

cdef inline void prefetch_group(const elem* at) noexcept nogil:
    cdef int a
    for a in range(GROUP * <int>sizeof(elem) // 64):
        prefetch(<const char*>at + 64 * a)

# A chunk's running sums, and what a row of few elements has instead.
cdef struct Running:
    vreal[COLS] total, lost, rest
    vcount[COLS] ties

cdef struct FewWeights:
    real[WIDTH] p, f

cdef inline void weigh_part(int v, int result, const Shift* s, bint scaled, bint centered, const elem* group,
                            Py_ssize_t count, Py_ssize_t before, Py_ssize_t n, real* kept, Running* running,
                            FewWeights* few, Sums* sums) noexcept nogil:
    """Registers v, v + COLS, ... of a group of `count` elements, `before` of its row in front of it."""
    cdef vreal[4] e, p, f
    cdef vreal moment
    cdef int a
    for a in range(4):
        e[a] = load_upto(group, (a * COLS + v) * LANES, count, before)
    weigh4(e, s, False, scaled, centered, p, f)
    if result != SOFTMAX:
        for a in range(4):
            leave_out(result, s, e[a], &f[a], &running.ties[v])
    if result == ENTROPY:
        moment = fill(0)
        for a in range(4):
            moment = fma_(fma_(p[a], f[a], f[a]), score_below_top(s, e[a], scaled), moment)
        sums.moments[v] = wide_add(sums.moments[v], wide_of(moment, fill(0)))
    if n <= WIDTH:
        store(few.p + v * LANES, p[0])
        store(few.f + v * LANES, f[0])
    elif n <= GROUP:
        sums.weights[v] = sum_of_group(p, f)
    else:
        add_weights(result, &running.total[v], &running.lost[v], &running.rest[v], p, f)
    if result == SOFTMAX:
        for a in range(4):
            store(kept + (a * COLS + v) * LANES, fma_(p[a], f[a], f[a]))

cdef inline void weigh_group(int result, const Shift* s, bint scaled, bint centered, const elem* group,
                             Py_ssize_t count, Py_ssize_t before, Py_ssize_t n, real* kept, Running* running,
                             FewWeights* few, Sums* sums) noexcept nogil:
    cdef int v
    if result == SOFTMAX and COLS <= 2:     # written out, so that the running sums stay in registers
        weigh_part(0, result, s, scaled, centered, group, count, before, n, kept, running, few, sums)
        if COLS == 2:
            weigh_part(COLS - 1, result, s, scaled, centered, group, count, before, n, kept, running, few, sums)
    else:
        for v in range(rolled(COLS)):
            weigh_part(v, result, s, scaled, centered, group, count, before, n, kept, running, few, sums)

cdef inline void weigh(int result, const Shift* shift, bint scaled, bint centered, const elem* x, Py_ssize_t count,
                       Py_ssize_t n, real* kept, const Soon* soon, Sums* sums) noexcept nogil:
    """Adds a chunk of a row of n elements to `sums`; keeps the weights if they are the result. soon: may be NULL."""
    cdef Running running
    cdef FewWeights few
    cdef Shift s = shift[0]
    cdef Py_ssize_t k = 0, whole = count // GROUP * GROUP if n > GROUP else 0
    cdef int v
    for v in range(COLS):
        running.total[v] = start_of(result)
        running.lost[v] = fill(0)
        running.rest[v] = fill(0)
        running.ties[v] = no_count()
    while k < whole:
        if soon != NULL:
            prefetch_group(soon.x + k)
            prefetch_group(soon.y + k)
        # any n above GROUP
        weigh_group(result, &s, scaled, centered, x + k, GROUP, k, GROUP + 1, kept + k, &running, &few, sums)
        k += GROUP
        if RUN > GROUP and k % RUN == 0:
            for v in range(COLS):
                add_rest(result, &running.total[v], &running.lost[v], &running.rest[v])
    if k < count:
        weigh_group(result, &s, scaled, centered, x + k, count - k, k, n, kept + k, &running, &few, sums)
    if n <= WIDTH:
        sums.few = sum_of_few(result, few.p, few.f, count)
    for v in range(COLS):
        sums.ties[v] = sums.ties[v] + real_count(running.ties[v])
        if n > GROUP:
            add_rest(result, &running.total[v], &running.lost[v], &running.rest[v])
            sums.weights[v] = wide_add(sums.weights[v], wide_of(running.total[v] - start_of(result), running.lost[v]))

cdef void weigh_chunk(int result, bint scaled, const Shift* s, const elem* x, Py_ssize_t count, Py_ssize_t n,
                      real* kept, Sums* sums) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    cdef bint centered = first(s.center) != 0
    if result == ENTROPY:
        weigh(ENTROPY, s, True, True, x, count, n, kept, NULL, sums)
    elif result == SOFTMAX and scaled:
        weigh(SOFTMAX, s, True, True, x, count, n, kept, NULL, sums)
    elif result == SOFTMAX and centered:
        weigh(SOFTMAX, s, False, True, x, count, n, kept, NULL, sums)
    elif result == SOFTMAX:
        weigh(SOFTMAX, s, False, False, x, count, n, kept, NULL, sums)
    elif result == OTHERS and scaled:
        weigh(OTHERS, s, True, True, x, count, n, kept, NULL, sums)
    elif result == OTHERS and centered:
        weigh(OTHERS, s, False, True, x, count, n, kept, NULL, sums)
    elif result == OTHERS:
        weigh(OTHERS, s, False, False, x, count, n, kept, NULL, sums)
    elif scaled:
        weigh(LOGSUMEXP, s, True, True, x, count, n, kept, NULL, sums)
    else:
        weigh(LOGSUMEXP, s, False, True, x, count, n, kept, NULL, sums)

# Past the caches go whole cache lines, WIDTH reals each. A line that is written partly this way and partly through the
# caches takes as long as ten.

cdef inline Py_ssize_t to_line(const elem* y) noexcept nogil:
    """How many elements stand before the next cache line, where elements are reals."""
    return (-(<Py_ssize_t>(<size_t>y // sizeof(real)))) & (WIDTH - 1)

cdef inline void fill_elements(elem* y, elem value, Py_ssize_t count, bint streamed) noexcept nogil:
    """streamed: where elements are reals."""
    cdef Py_ssize_t k = 0, head
    cdef int v
    if streamed and sizeof(elem) == sizeof(real) and count >= 2 * WIDTH:
        head = to_line(y)
        while k < head:
            y[k] = value
            k += 1
        while k + WIDTH <= count:
            for v in range(COLS):
                stream(<real*>y + k + v * LANES, fill(<real>value))
            k += WIDTH
    while k < count:
        y[k] = value
        k += 1

cdef void clear_elements(elem* y, Py_ssize_t stride, Py_ssize_t count, bint streamed) noexcept nogil:
    """Zeros, whose bits are zero in every element type."""
    cdef Py_ssize_t k
    if streamed and stride == 1:
        fill_elements(y, <elem>0, count, True)
    elif stride == 1:
        memset(y, 0, count * sizeof(elem))
    else:
        for k in range(count):
            y[k * stride] = <elem>0

cdef inline void put(elem* y, Py_ssize_t stride, const elem* x, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k
    if stride == 1:
        memcpy(y, x, count * sizeof(elem))
    else:
        for k in range(count):
            y[k * stride] = x[k]

cdef inline vreal source(int result, const real* kept, const elem* x, Py_ssize_t k) noexcept nogil:
    if result == SOFTMAX or result == SOFTMAX_ONE:
        return load(kept + k)
    return load_elem(x + k)

cdef inline void finish_few(int result, const Shift* s, const Outcome* outcome, bint scaled, const real* kept,
                            const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t k, Py_ssize_t end) noexcept nogil:
    """Elements k to end of a chunk, through a buffer."""
    cdef elem[LANES] buffer
    cdef Py_ssize_t m
    while k < end:
        m = min(end - k, <Py_ssize_t>LANES)
        if result == LOG_SOFTMAX:
            memcpy(buffer, x + k, m * sizeof(elem))
        store_elem(buffer, result_of(result, s, outcome, scaled, source(result, kept + k, buffer, 0)))
        put(y + k * stride, stride, buffer, m)
        k += m

cdef inline void finish(int result, const Shift* shift, const Outcome* outcome_, bint scaled, real* kept,
                        const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t count, bint streamed) noexcept nogil:
    """The results of a chunk, from its weights `kept`, which may be changed, or from its elements x. y may be x, unless
    streamed."""
    cdef Shift s = shift[0]
    cdef Outcome outcome = outcome_[0]
    cdef Py_ssize_t k = 0, last = count - LANES
    cdef vreal begin, end
    cdef vreal[4] results
    cdef int a
    if stride != 1 or count < LANES:
        finish_few(result, &s, &outcome, scaled, kept, x, y, stride, 0, count)
        return
    begin = source(result, kept, x, 0)          # both overlap what is between, so they are read first: y may be x
    end = source(result, kept, x, last)
    if streamed and count >= 2 * WIDTH:
        k = to_line(y)
        finish_few(result, &s, &outcome, scaled, kept, x, y, 1, 0, k)
        while k + WIDTH <= count:
            if result == LOG_SOFTMAX:
                for a in range(COLS):
                    results[a] = result_of(result, &s, &outcome, scaled, load_elem(x + k + a * LANES))
            else:
                weights_of(result, outcome, COLS, kept + k, results)
            for a in range(COLS):
                stream(<real*>y + k + a * LANES, results[a])
            k += WIDTH
        if k == count:
            return
        while k < last:
            store_elem(y + k, result_of(result, &s, &outcome, scaled, source(result, kept, x, k)))
            k += LANES
        finish_few(result, &s, &outcome, scaled, kept, x, y, 1, k, count)
        return
    if count >= ALIGNED:
        k = to_register(y)
    while k + 4 * LANES <= count:
        if result == LOG_SOFTMAX:
            for a in range(4):
                results[a] = result_of(result, &s, &outcome, scaled, load_elem(x + k + a * LANES))
        else:
            weights_of(result, outcome, 4, kept + k, results)
        for a in range(4):
            store_elem(y + k + a * LANES, results[a])
        k += 4 * LANES
    while k < last:
        store_elem(y + k, result_of(result, &s, &outcome, scaled, source(result, kept, x, k)))
        k += LANES
    store_elem(y + last, result_of(result, &s, &outcome, scaled, end))
    if count >= ALIGNED:
        store_elem(y, result_of(result, &s, &outcome, scaled, begin))

cdef void finish_chunk(int result, bint scaled, const Shift* s, const Outcome* outcome, real* kept,
                       const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t count, bint streamed) noexcept nogil:
    if result == SOFTMAX:
        finish(SOFTMAX, s, outcome, False, kept, x, y, stride, count, streamed)
    elif result == SOFTMAX_ONE:
        finish(SOFTMAX_ONE, s, outcome, False, kept, x, y, stride, count, streamed)
    elif scaled:
        finish(LOG_SOFTMAX, s, outcome, True, kept, x, y, stride, count, streamed)
    else:
        finish(LOG_SOFTMAX, s, outcome, False, kept, x, y, stride, count, streamed)

cdef inline Shift shift_of(const Rows* rows, Py_ssize_t o, Py_ssize_t i, real top) noexcept nogil:
    cdef Shift s
    cdef double temperature
    if rows.scaled:
        temperature = rows.temperature[o * rows.temperature_outer + i * rows.temperature_inner]
        set_temperature(&s, fill(<real>temperature), fill(<real>(temperature - <real>temperature)))
    else:
        no_temperature(&s)
    set_top(&s, fill(top))
    return s

# The three passes over one chunk.

cdef inline real top_of_chunk(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start, Py_ssize_t count,
                              const Work* work) noexcept nogil:
    return largest(fetch(rows, o, i, start, count, work.elements), count)

# Where the weights of a row of several chunks are kept: of whole chunks in place of their results, if these are reals
# one after another that stay in the caches.

cdef inline bint keeps_in_place(const Rows* rows) noexcept nogil:
    return (rows.result == SOFTMAX and sizeof(elem) == sizeof(real) and rows.y_n == 1 and rows.where == NULL
            and not rows.streamed)

cdef inline bint keeps(const Rows* rows, Py_ssize_t n) noexcept nogil:
    return n <= KEEP or keeps_in_place(rows)

cdef inline real* weights_of_chunk(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t n, Py_ssize_t start,
                                   const Work* work) noexcept nogil:
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    if keeps_in_place(rows) and start + CHUNK <= n:
        return <real*>(y + start)
    return beside(y, work.kept) + (start if n <= KEEP else 0)

cdef inline void sum_chunk(int sum_of, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start,
                           Py_ssize_t count, Py_ssize_t n, const Shift* s, const Work* work, Sums* sums) noexcept nogil:
    weigh_chunk(sum_of, rows.scaled, s, fetch(rows, o, i, start, count, work.elements), count, n,
                weights_of_chunk(rows, o, i, n, start, work), sums)

cdef inline void write_chunk(int result, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start,
                             Py_ssize_t count, Py_ssize_t n, const Shift* s, const Outcome* outcome,
                             const Work* work) noexcept nogil:
    cdef const elem* x = NULL
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner + start * rows.y_n
    cdef real* kept = weights_of_chunk(rows, o, i, n, start, work)
    cdef Sums unused
    if rows.result != SOFTMAX or not keeps(rows, n):
        x = fetch(rows, o, i, start, count, work.elements)
    if rows.result == SOFTMAX and not keeps(rows, n):
        clear(&unused)
        weigh_chunk(SOFTMAX, rows.scaled, s, x, count, rows.n, kept, &unused)
    finish_chunk(result, rows.scaled, s, outcome, kept, x, y, rows.y_n, count, rows.streamed)

cdef inline int first_sum(const Rows* rows) noexcept nogil:
    """Which sum the first pass computes."""
    return rows.result if rows.result == SOFTMAX or rows.result == ENTROPY else OTHERS

cdef inline Outcome outcome_along(int sum_of, Py_ssize_t n, bint scaled, const Shift* s, const Sums* sums, vreal ties,
                                  vmask* doubt) noexcept nogil:
    cdef vwide moments = wide_total(sums.moments) if sum_of == ENTROPY else wide_zero()
    cdef Outcome outcome
    if n <= WIDTH:
        outcome = outcome_of_few(sum_of, s, scaled, n, sums.few, moments, ties, doubt)
        if sum_of == SOFTMAX:
            doubt[0] = may_be_nearly_one(&outcome)
        return outcome
    return outcome_of(sum_of, s, scaled, n, wide_total(sums.weights), moments, ties, doubt)

cdef bint conclude(int sum_of, const Rows* rows, Py_ssize_t n, const Shift* s, Sums* sums,
                   Outcome* outcome) noexcept nogil:
    """The outcome, and whether it wants more: OTHERS the sum of LOGSUMEXP, SOFTMAX that SOFTMAX_ONE is written."""
    cdef vreal ties = sums.ties[0]
    cdef vmask doubt
    cdef int v
    if sum_of == SOFTMAX:
        outcome[0] = outcome_along(SOFTMAX, n, rows.scaled, s, sums, ties, &doubt)
        return any_lane(doubt) and find_one(s, rows.scaled, outcome)
    for v in range(1, COLS):
        ties = ties + sums.ties[v]
    ties = hsum(ties)
    if sum_of == OTHERS:
        outcome[0] = outcome_along(OTHERS, n, rows.scaled, s, sums, ties, &doubt)
        return any_lane(doubt)
    if sum_of == ENTROPY:
        outcome[0] = outcome_along(ENTROPY, n, True, s, sums, ties, &doubt)
    else:
        outcome[0] = outcome_along(LOGSUMEXP, n, rows.scaled, s, sums, ties, &doubt)
    return False

# Rows whose maximum is not finite, or that hold a NaN beside hidden elements, take a scalar path.

cdef inline bint is_special(const Rows* rows, real top, real hi) noexcept nogil:
    if not (-INFINITY < top < INFINITY):
        return rows.result != SOFTMAX or rows.where != NULL
    return rows.where != NULL and isnan(hi)

cdef void special_row(const Rows* rows, Py_ssize_t o, Py_ssize_t i, real top) noexcept nogil:
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    cdef const unsigned char* where = rows.where
    cdef bint any_visible = False, any_nan = False, infinite
    cdef real value
    cdef Py_ssize_t k
    if where != NULL:
        where += o * rows.where_outer + i * rows.where_inner
    for k in range(rows.n):
        if where == NULL or where[k * rows.where_n]:
            any_visible = True
            if isnan(real_of(x + k * rows.x_n)):
                any_nan = True
    if rows.result == LOGSUMEXP:
        y[0] = elem_of(NAN if any_nan else top)
    elif rows.result == ENTROPY:
        y[0] = elem_of(NAN if any_visible else 0)
    else:
        for k in range(rows.n):
            infinite = top == INFINITY and real_of(x + k * rows.x_n) < INFINITY
            if where != NULL and not where[k * rows.where_n]:
                value = 0 if rows.result == SOFTMAX else -INFINITY
            elif rows.result == LOG_SOFTMAX and infinite and not any_nan:
                value = -INFINITY
            else:
                value = NAN
            y[k * rows.y_n] = elem_of(value)

cdef bint write_if_scalar(const Rows* rows, Py_ssize_t o, Py_ssize_t i, real top,
                          const Outcome* outcome) noexcept nogil:
    """Reductions and special rows are done when all is known of the row; False for the others."""
    if is_special(rows, top, first(outcome.hi)):
        special_row(rows, o, i, top)
        return True
    if rows.result == LOGSUMEXP or rows.result == ENTROPY:
        rows.y[o * rows.y_outer + i * rows.y_inner] = elem_of(first(outcome.hi + outcome.lo))
        return True
    return False

cdef real top_of_row(const Rows* rows, Py_ssize_t o, Py_ssize_t i, const Work* work) noexcept nogil:
    cdef Py_ssize_t n = row_length(rows, i), chunk, start
    cdef real top = -INFINITY
    for chunk in range(steps(n, CHUNK)):
        start = chunk * CHUNK
        top = max(top, top_of_chunk(rows, o, i, start, min(n - start, CHUNK), work))
    return top

cdef void sum_row(int sum_of, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t n, const Shift* s,
                  const Work* work, Sums* sums) noexcept nogil:
    cdef Py_ssize_t chunk, start
    clear(sums)
    for chunk in range(steps(n, CHUNK)):
        start = chunk * CHUNK
        sum_chunk(sum_of, rows, o, i, start, min(n - start, CHUNK), n, s, work, sums)

cdef real row_along(const Rows* rows, Py_ssize_t r, real top, Py_ssize_t next_row, const Work* work) noexcept nogil:
    """Row r, whose largest element is `top`. Returns that of next_row: finding it here, before the results of row r
    are written, gives the processor something to do while it waits for the row's sum, and brings the next row near."""
    cdef Py_ssize_t o = r // rows.inner, i = r % rows.inner
    cdef Py_ssize_t n = row_length(rows, i), chunk, start
    cdef int sum_of, result = rows.result
    cdef real next_top = -INFINITY
    cdef Shift s
    cdef Sums sums
    cdef Outcome outcome
    if n < rows.n:
        clear_elements(rows.y + o * rows.y_outer + i * rows.y_inner + n * rows.y_n, rows.y_n, rows.n - n,
                       rows.streamed)
    if n > 0:
        s = shift_of(rows, o, i, top)
        sum_of = first_sum(rows)
        sum_row(sum_of, rows, o, i, n, &s, work, &sums)
        if conclude(sum_of, rows, n, &s, &sums, &outcome):
            if sum_of == SOFTMAX:
                result = SOFTMAX_ONE
            else:
                sum_row(LOGSUMEXP, rows, o, i, n, &s, work, &sums)
                conclude(LOGSUMEXP, rows, n, &s, &sums, &outcome)
    if next_row != r:
        next_top = top_of_row(rows, next_row // rows.inner, next_row % rows.inner, work)
    if n == 0 or write_if_scalar(rows, o, i, top, &outcome):
        return next_top
    for chunk in range(steps(n, CHUNK)):
        start = chunk * CHUNK
        write_chunk(result, rows, o, i, start, min(n - start, CHUNK), n, &s, &outcome, work)
    return next_top

# The usual case: contiguous rows of one chunk, neither masked nor scaled. The same as row_along, in one piece: what is
# asked only once a row then costs nothing each time, which is a third of the time of 200 elements.

cdef inline bint is_plain(const Rows* rows) noexcept nogil:
    return rows.x_n == 1 and rows.y_n == 1 and rows.where == NULL and not rows.scaled and rows.n <= CHUNK

cdef inline void plain_rows(int result, const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                            const Work* work) noexcept nogil:
    cdef int sum_of = SOFTMAX if result == SOFTMAX else OTHERS
    cdef Py_ssize_t o = first_row // rows.inner, i = first_row % rows.inner, r
    cdef Py_ssize_t n = row_length(rows, i), next_n = n
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner
    cdef const elem* next_x = x
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    cdef elem* next_y = y
    cdef real* kept
    cdef real top = largest(x, n), next_top
    cdef vreal ties
    cdef vmask doubt
    cdef Soon soon
    cdef Shift s
    cdef Sums sums
    cdef Outcome outcome
    cdef int v
    for r in range(first_row, last_row + 1):
        if r < last_row and (r + 1) % rows.inner:
            i += 1
            next_x, next_y, next_n = x + rows.x_inner, y + rows.y_inner, row_length(rows, i)
        elif r < last_row:
            o, i = o + 1, 0
            next_x, next_y, next_n = rows.x + o * rows.x_outer, rows.y + o * rows.y_outer, row_length(rows, 0)
        else:
            next_n = 0
        if n > 0 and (result == SOFTMAX or -INFINITY < top < INFINITY):
            soon.x, soon.y = next_x, x if result == LOGSUMEXP or rows.streamed else y
            no_temperature(&s)
            set_top(&s, fill(top))
            clear(&sums)
            kept = beside(y, work.kept)
            if first(s.center) == 0:
                weigh(sum_of, &s, False, False, x, n, n, kept, &soon, &sums)
            else:
                weigh(sum_of, &s, False, True, x, n, n, kept, &soon, &sums)
            ties = sums.ties[0]
            for v in range(1, COLS):
                ties = ties + sums.ties[v]
            outcome = outcome_along(sum_of, n, False, &s, &sums, hsum(ties) if sum_of == OTHERS else ties,
                                    &doubt)
            next_top = largest(next_x, next_n)
            if sum_of == OTHERS and any_lane(doubt):
                weigh_again(rows, r, &s, work, &outcome)
            if result == LOGSUMEXP:
                y[0] = elem_of(first(outcome.hi + outcome.lo))
            elif result == SOFTMAX and any_lane(doubt) and find_one(&s, False, &outcome):
                finish_chunk(SOFTMAX_ONE, False, &s, &outcome, kept, x, y, 1, n, rows.streamed)
            else:
                finish(result, &s, &outcome, False, kept, x, y, 1, n, rows.streamed)
        else:
            next_top = largest(next_x, next_n)
            row_along(rows, r, top, r, work)
        if result == SOFTMAX and n < rows.n:
            clear_elements(y + n, 1, rows.n - n, rows.streamed)
        x, y, n, top = next_x, next_y, next_n, next_top

cdef void weigh_again(const Rows* rows, Py_ssize_t r, const Shift* s, const Work* work,
                      Outcome* outcome) noexcept nogil:
    cdef Sums sums
    sum_row(LOGSUMEXP, rows, r // rows.inner, r % rows.inner, rows.n, s, work, &sums)
    conclude(LOGSUMEXP, rows, rows.n, s, &sums, outcome)

cdef void rows_along(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row, const Work* work) noexcept nogil:
    cdef Py_ssize_t r
    cdef real top
    if is_plain(rows) and rows.result != ENTROPY:
        if rows.result == SOFTMAX:
            plain_rows(SOFTMAX, rows, first_row, last_row, work)
        elif rows.result == LOG_SOFTMAX:
            plain_rows(LOG_SOFTMAX, rows, first_row, last_row, work)
        else:
            plain_rows(LOGSUMEXP, rows, first_row, last_row, work)
        return
    top = top_of_row(rows, first_row // rows.inner, first_row % rows.inner, work)
    for r in range(first_row, last_row + 1):
        top = row_along(rows, r, top, min(r + 1, last_row), work)
