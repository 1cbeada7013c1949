# One row at a time, its elements in the lanes.
#
# A row is taken in chunks: `gather_chunk` gives a chunk's elements one after another, from where they stand or, for
# rows with gaps or a mask, from a buffer. Three passes: the largest element; the sum of the weights, which
# are kept if they are the result; the results. One long row can be shared by threads, chunk by chunk.

cdef inline real reduce_max(const elem* x, Py_ssize_t count) noexcept nogil:
    """NaN is passed over: it is found by its weight."""
    cdef vreal[4] row_max
    cdef Py_ssize_t k = 0
    cdef int a
    for a in range(4):
        row_max[a] = broadcast(-INFINITY)
    if count >= ALIGNED:
        row_max[0] = vmax(load_elem(x), row_max[0])
        k = peel_to_register(x)
    while k + 4 * LANES <= count:
        for a in range(4):
            row_max[a] = vmax(load_elem(x + k + a * LANES), row_max[a])
        k += 4 * LANES
    while k + LANES <= count:
        row_max[0] = vmax(load_elem(x + k), row_max[0])
        k += LANES
    if k < count:
        row_max[1] = vmax(load_elem(x + count - LANES) if count >= LANES else load_upto(x, 0, count, 0), row_max[1])
    return hmax(vmax(vmax(row_max[0], row_max[1]), vmax(row_max[2], row_max[3])))

# Addresses to prefetch: the next row's elements, and the memory of the results, which stores alone would bring near too
# late. Not for rows beyond a chunk, whose next is far off.
cdef struct Prefetch:
    const elem* x
    const elem* y

cdef inline void prefetch_group(const elem* at) noexcept nogil:
    cdef int a
    for a in range(UNROLL * <int>sizeof(elem) // 64):
        prefetch(<const char*>at + 64 * a)

# A chunk's running sums, and what a row of few elements has instead.
cdef struct Running:
    vreal[PARTIAL_REGS] total, lost, rest
    vcount[PARTIAL_REGS] ties

cdef struct ShortRowWeights:
    real[PARTIALS] p, f

cdef inline void exp_and_sum_registers(int v, int sum, const Shift* s, bint scaled, bint centered,
                                       const elem* group, Py_ssize_t count, Py_ssize_t before, Py_ssize_t n,
                                       real* weights_buf, Running* running, ShortRowWeights* short_row,
                                       Sums* sums) noexcept nogil:
    """Registers v, v + PARTIAL_REGS, ... of a group of `count` elements, `before` of its row in front of it."""
    cdef vreal[4] e, p, f
    cdef vreal moment
    cdef int a
    for a in range(4):
        e[a] = load_upto(group, (a * PARTIAL_REGS + v) * LANES, count, before)
    exp4_scores(e, s, False, scaled, centered, p, f)
    if sum != SUM_WEIGHTS:
        for a in range(4):
            exclude_max(sum, s, e[a], &f[a], &running.ties[v])
    if sum == SUM_MOMENTS:
        moment = broadcast(0)
        for a in range(4):
            moment = fma_(fma_(p[a], f[a], f[a]), score_below_max(s, e[a], scaled), moment)
        sums.moments[v] = dd_add(sums.moments[v], dd_of_sum(moment, broadcast(0)))
    if n <= PARTIALS:
        store(short_row.p + v * LANES, p[0])
        store(short_row.f + v * LANES, f[0])
    elif n <= UNROLL:
        sums.weights[v] = sum_of_group(p, f)
    else:
        add_weights(sum, &running.total[v], &running.lost[v], &running.rest[v], p, f)
    if sum == SUM_WEIGHTS:
        for a in range(4):
            store(weights_buf + (a * PARTIAL_REGS + v) * LANES, fma_(p[a], f[a], f[a]))

cdef inline void exp_and_sum_group(int sum, const Shift* s, bint scaled, bint centered, const elem* group,
                                   Py_ssize_t count, Py_ssize_t before, Py_ssize_t n, real* weights_buf,
                                   Running* running, ShortRowWeights* short_row, Sums* sums) noexcept nogil:
    cdef int v
    if sum == SUM_WEIGHTS and PARTIAL_REGS <= 2:  # written out, so that the running sums stay in registers
        exp_and_sum_registers(0, sum, s, scaled, centered, group, count, before, n, weights_buf, running, short_row,
                              sums)
        if PARTIAL_REGS == 2:
            exp_and_sum_registers(PARTIAL_REGS - 1, sum, s, scaled, centered, group, count, before, n, weights_buf,
                                  running, short_row, sums)
    else:
        for v in range(opaque(PARTIAL_REGS)):
            exp_and_sum_registers(v, sum, s, scaled, centered, group, count, before, n, weights_buf, running, short_row,
                                  sums)

cdef inline void exp_and_sum(int sum, const Shift* shift, bint scaled, bint centered, const elem* x,
                             Py_ssize_t count, Py_ssize_t n, real* weights_buf, const Prefetch* ahead,
                             Sums* sums) noexcept nogil:
    """Adds a chunk of a row of n elements to `sums`; keeps the weights of SUM_WEIGHTS. ahead: may be NULL."""
    cdef Running running
    cdef ShortRowWeights short_row
    cdef Shift s = shift[0]
    cdef Py_ssize_t k = 0, whole = count // UNROLL * UNROLL if n > UNROLL else 0
    cdef int v
    for v in range(PARTIAL_REGS):
        running.total[v] = start_of(sum)
        running.lost[v] = broadcast(0)
        running.rest[v] = broadcast(0)
        running.ties[v] = no_count()
    while k < whole:
        if ahead != NULL:
            prefetch_group(ahead.x + k)
            prefetch_group(ahead.y + k)
        # any n above UNROLL
        exp_and_sum_group(sum, &s, scaled, centered, x + k, UNROLL, k, UNROLL + 1, weights_buf + k, &running,
                          &short_row, sums)
        k += UNROLL
        if RUN > UNROLL and k % RUN == 0:
            for v in range(PARTIAL_REGS):
                add_rest(sum, &running.total[v], &running.lost[v], &running.rest[v])
    if k < count:
        exp_and_sum_group(sum, &s, scaled, centered, x + k, count - k, k, n, weights_buf + k, &running, &short_row,
                          sums)
    if n <= PARTIALS:
        sums.short_row = sum_of_short_row(sum, short_row.p, short_row.f, count)
    for v in range(PARTIAL_REGS):
        sums.ties[v] = sums.ties[v] + real_count(running.ties[v])
        if n > UNROLL:
            add_rest(sum, &running.total[v], &running.lost[v], &running.rest[v])
            sums.weights[v] = dd_add(sums.weights[v], dd_of_sum(running.total[v] - start_of(sum), running.lost[v]))

cdef void exp_and_sum_chunk(int sum, bint scaled, const Shift* s, const elem* x, Py_ssize_t count, Py_ssize_t n,
                            real* weights_buf, Sums* sums) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    cdef bint centered = lane0(s.center) != 0
    if sum == SUM_MOMENTS:
        exp_and_sum(SUM_MOMENTS, s, True, True, x, count, n, weights_buf, NULL, sums)
    elif sum == SUM_WEIGHTS and scaled:
        exp_and_sum(SUM_WEIGHTS, s, True, True, x, count, n, weights_buf, NULL, sums)
    elif sum == SUM_WEIGHTS and centered:
        exp_and_sum(SUM_WEIGHTS, s, False, True, x, count, n, weights_buf, NULL, sums)
    elif sum == SUM_WEIGHTS:
        exp_and_sum(SUM_WEIGHTS, s, False, False, x, count, n, weights_buf, NULL, sums)
    elif sum == SUM_EXCLUDING_MAX and scaled:
        exp_and_sum(SUM_EXCLUDING_MAX, s, True, True, x, count, n, weights_buf, NULL, sums)
    elif sum == SUM_EXCLUDING_MAX and centered:
        exp_and_sum(SUM_EXCLUDING_MAX, s, False, True, x, count, n, weights_buf, NULL, sums)
    elif sum == SUM_EXCLUDING_MAX:
        exp_and_sum(SUM_EXCLUDING_MAX, s, False, False, x, count, n, weights_buf, NULL, sums)
    elif scaled:
        exp_and_sum(SUM_EXACT, s, True, True, x, count, n, weights_buf, NULL, sums)
    else:
        exp_and_sum(SUM_EXACT, s, False, True, x, count, n, weights_buf, NULL, sums)

cdef inline vreal weight_or_element(int stored, const real* weights_buf, const elem* x,
                                    Py_ssize_t k) noexcept nogil:
    if stored == STORE_WEIGHTS or stored == STORE_WEIGHTS_OR_ONE:
        return load(weights_buf + k)
    return load_elem(x + k)

cdef inline void normalize_store_short(int stored, const Shift* s, const Normalizer* normalizer, bint scaled,
                                       const real* weights_buf, const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t k,
                                       Py_ssize_t end) noexcept nogil:
    """Elements k to end of a chunk, through a buffer."""
    cdef elem[LANES] buffer
    cdef Py_ssize_t m
    while k < end:
        m = min(end - k, <Py_ssize_t>LANES)
        if stored == STORE_LOGS:
            memcpy(buffer, x + k, m * sizeof(elem))
        store_elem(buffer, result_of(stored, s, normalizer, scaled,
                                     weight_or_element(stored, weights_buf + k, buffer, 0)))
        scatter(y + k * stride, stride, buffer, m)
        k += m

cdef inline void normalize_store(int stored, const Shift* shift, const Normalizer* normalizer_, bint scaled,
                                 real* weights_buf, const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t count,
                                 bint nontemporal) noexcept nogil:
    """Writes the results of a chunk, from its weights in `weights_buf`, which may be changed, or from its elements x.
    y may be x, unless nontemporal."""
    cdef Shift s = shift[0]
    cdef Normalizer normalizer = normalizer_[0]
    cdef Py_ssize_t k = 0, last = count - LANES
    cdef vreal begin, end
    cdef vreal[4] results
    cdef int a
    if stride != 1 or count < LANES:
        normalize_store_short(stored, &s, &normalizer, scaled, weights_buf, x, y, stride, 0, count)
        return
    # The first and last register overlap those between, so they are read before any store: y may be x.
    begin = weight_or_element(stored, weights_buf, x, 0)
    end = weight_or_element(stored, weights_buf, x, last)
    if nontemporal and count >= 2 * PARTIALS:
        k = peel_to_cache_line(y)
        normalize_store_short(stored, &s, &normalizer, scaled, weights_buf, x, y, 1, 0, k)
        while k + PARTIALS <= count:
            if stored == STORE_LOGS:
                for a in range(PARTIAL_REGS):
                    results[a] = result_of(stored, &s, &normalizer, scaled, load_elem(x + k + a * LANES))
            else:
                normalize_weights(stored, normalizer, PARTIAL_REGS, weights_buf + k, results)
            for a in range(PARTIAL_REGS):
                stream(<real*>y + k + a * LANES, results[a])
            k += PARTIALS
        if k == count:
            return
        while k < last:
            store_elem(y + k, result_of(stored, &s, &normalizer, scaled,
                                        weight_or_element(stored, weights_buf, x, k)))
            k += LANES
        normalize_store_short(stored, &s, &normalizer, scaled, weights_buf, x, y, 1, k, count)
        return
    if count >= ALIGNED:
        k = peel_to_register(y)
    while k + 4 * LANES <= count:
        if stored == STORE_LOGS:
            for a in range(4):
                results[a] = result_of(stored, &s, &normalizer, scaled, load_elem(x + k + a * LANES))
        else:
            normalize_weights(stored, normalizer, 4, weights_buf + k, results)
        for a in range(4):
            store_elem(y + k + a * LANES, results[a])
        k += 4 * LANES
    while k < last:
        store_elem(y + k, result_of(stored, &s, &normalizer, scaled,
                                    weight_or_element(stored, weights_buf, x, k)))
        k += LANES
    store_elem(y + last, result_of(stored, &s, &normalizer, scaled, end))
    if count >= ALIGNED:
        store_elem(y, result_of(stored, &s, &normalizer, scaled, begin))

cdef void normalize_store_chunk(int stored, bint scaled, const Shift* s, const Normalizer* normalizer,
                                real* weights_buf, const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t count,
                                bint nontemporal) noexcept nogil:
    if stored == STORE_WEIGHTS:
        normalize_store(STORE_WEIGHTS, s, normalizer, False, weights_buf, x, y, stride, count, nontemporal)
    elif stored == STORE_WEIGHTS_OR_ONE:
        normalize_store(STORE_WEIGHTS_OR_ONE, s, normalizer, False, weights_buf, x, y, stride, count, nontemporal)
    elif scaled:
        normalize_store(STORE_LOGS, s, normalizer, True, weights_buf, x, y, stride, count, nontemporal)
    else:
        normalize_store(STORE_LOGS, s, normalizer, False, weights_buf, x, y, stride, count, nontemporal)

cdef inline Shift shift_of(const Rows* rows, Py_ssize_t o, Py_ssize_t i, real row_max) noexcept nogil:
    cdef Shift s
    cdef double temperature
    if rows.scaled:
        temperature = rows.temperature[o * rows.temperature_outer + i * rows.temperature_inner]
        set_temperature(&s, broadcast(<real>temperature), broadcast(<real>(temperature - <real>temperature)))
    else:
        no_temperature(&s)
    set_row_max(&s, broadcast(row_max))
    return s

# The three passes over one chunk.

cdef inline real max_of_chunk(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start, Py_ssize_t count,
                              const RowWorkspace* workspace) noexcept nogil:
    return reduce_max(gather_chunk(rows, o, i, start, count, workspace.elements), count)

# Where the weights of a row of several chunks are kept: of whole chunks in place of their results, if these are reals
# one after another that stay in the caches.

cdef inline bint keeps_weights_in_place(const Rows* rows) noexcept nogil:
    return (rows.op == SOFTMAX and sizeof(elem) == sizeof(real) and rows.y_n == 1 and rows.where == NULL
            and not rows.nontemporal)

cdef inline bint keeps_weights(const Rows* rows, Py_ssize_t n) noexcept nogil:
    return n <= KEEP or keeps_weights_in_place(rows)

cdef inline real* chunk_weights_buf(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t n, Py_ssize_t start,
                                    const RowWorkspace* workspace) noexcept nogil:
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    if keeps_weights_in_place(rows) and start + CHUNK <= n:
        return <real*>(y + start)
    return same_alignment(y, workspace.weights_buf) + (start if n <= KEEP else 0)

cdef inline void sum_chunk(int sum, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start,
                           Py_ssize_t count, Py_ssize_t n, const Shift* s, const RowWorkspace* workspace,
                           Sums* sums) noexcept nogil:
    exp_and_sum_chunk(sum, rows.scaled, s, gather_chunk(rows, o, i, start, count, workspace.elements), count, n,
                      chunk_weights_buf(rows, o, i, n, start, workspace), sums)

cdef inline void write_chunk(int stored, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start,
                             Py_ssize_t count, Py_ssize_t n, const Shift* s, const Normalizer* normalizer,
                             const RowWorkspace* workspace) noexcept nogil:
    cdef const elem* x = NULL
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner + start * rows.y_n
    cdef real* weights_buf = chunk_weights_buf(rows, o, i, n, start, workspace)
    cdef Sums unused
    if rows.op != SOFTMAX or not keeps_weights(rows, n):
        x = gather_chunk(rows, o, i, start, count, workspace.elements)
    if rows.op == SOFTMAX and not keeps_weights(rows, n):
        clear(&unused)
        exp_and_sum_chunk(SUM_WEIGHTS, rows.scaled, s, x, count, rows.n, weights_buf, &unused)
    normalize_store_chunk(stored, rows.scaled, s, normalizer, weights_buf, x, y, rows.y_n, count, rows.nontemporal)

cdef inline Normalizer dense_normalizer(int sum, Py_ssize_t n, bint scaled, const Shift* s, const Sums* sums,
                                        vreal ties, vmask* needs_refinement) noexcept nogil:
    cdef vdd moments = dd_total(sums.moments) if sum == SUM_MOMENTS else dd_zero()
    cdef Normalizer normalizer
    if n <= PARTIALS:
        normalizer = normalizer_of_short_row(sum, s, scaled, n, sums.short_row, moments, ties, needs_refinement)
        if sum == SUM_WEIGHTS:
            needs_refinement[0] = may_be_nearly_one(&normalizer)
        return normalizer
    return normalizer_of(sum, s, scaled, n, dd_total(sums.weights), moments, ties, needs_refinement)

cdef bint finalize(int sum, const Rows* rows, Py_ssize_t n, const Shift* s, Sums* sums,
                   Normalizer* normalizer) noexcept nogil:
    """Computes the normalizer. Returns whether SUM_EXCLUDING_MAX needs SUM_EXACT, or SUM_WEIGHTS the second store."""
    cdef vreal ties = sums.ties[0]
    cdef vmask needs_refinement
    cdef int v
    if sum == SUM_WEIGHTS:
        normalizer[0] = dense_normalizer(SUM_WEIGHTS, n, rows.scaled, s, sums, ties, &needs_refinement)
        return any_lane(needs_refinement) and find_one(s, rows.scaled, normalizer)
    for v in range(1, PARTIAL_REGS):
        ties = ties + sums.ties[v]
    ties = hsum(ties)
    if sum == SUM_EXCLUDING_MAX:
        normalizer[0] = dense_normalizer(SUM_EXCLUDING_MAX, n, rows.scaled, s, sums, ties, &needs_refinement)
        return any_lane(needs_refinement)
    if sum == SUM_MOMENTS:
        normalizer[0] = dense_normalizer(SUM_MOMENTS, n, True, s, sums, ties, &needs_refinement)
    else:
        normalizer[0] = dense_normalizer(SUM_EXACT, n, rows.scaled, s, sums, ties, &needs_refinement)
    return False

cdef real max_of_row(const Rows* rows, Py_ssize_t o, Py_ssize_t i, const RowWorkspace* workspace) noexcept nogil:
    cdef Py_ssize_t n = row_length(rows, i), chunk, start
    cdef real row_max = -INFINITY
    for chunk in range(ceil_div(n, CHUNK)):
        start = chunk * CHUNK
        row_max = max(row_max, max_of_chunk(rows, o, i, start, min(n - start, CHUNK), workspace))
    return row_max

cdef void sum_row(int sum, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t n, const Shift* s,
                  const RowWorkspace* workspace, Sums* sums) noexcept nogil:
    cdef Py_ssize_t chunk, start
    clear(sums)
    for chunk in range(ceil_div(n, CHUNK)):
        start = chunk * CHUNK
        sum_chunk(sum, rows, o, i, start, min(n - start, CHUNK), n, s, workspace, sums)

cdef real dense_row(const Rows* rows, Py_ssize_t r, real row_max, Py_ssize_t next_row,
                    const RowWorkspace* workspace) noexcept nogil:
    """Row r, whose largest element is `row_max`. Returns that of next_row: finding it here, before the results of row r
    are written, gives the processor something to do while it waits for the row's sum, and brings the next row near."""
    cdef Py_ssize_t o = r // rows.inner, i = r % rows.inner
    cdef Py_ssize_t n = row_length(rows, i), chunk, start
    cdef int sum, stored = rows.op
    cdef real next_max = -INFINITY
    cdef Shift s
    cdef Sums sums
    cdef Normalizer normalizer
    if n < rows.n:
        clear_elements(rows.y + o * rows.y_outer + i * rows.y_inner + n * rows.y_n, rows.y_n, rows.n - n,
                       rows.nontemporal)
    if n > 0:
        s = shift_of(rows, o, i, row_max)
        sum = first_sum(rows)
        sum_row(sum, rows, o, i, n, &s, workspace, &sums)
        if finalize(sum, rows, n, &s, &sums, &normalizer):
            if sum == SUM_WEIGHTS:
                stored = STORE_WEIGHTS_OR_ONE
            else:
                sum_row(SUM_EXACT, rows, o, i, n, &s, workspace, &sums)
                finalize(SUM_EXACT, rows, n, &s, &sums, &normalizer)
    if next_row != r:
        next_max = max_of_row(rows, next_row // rows.inner, next_row % rows.inner, workspace)
    if n == 0 or write_if_scalar(rows, o, i, row_max, &normalizer):
        return next_max
    for chunk in range(ceil_div(n, CHUNK)):
        start = chunk * CHUNK
        write_chunk(stored, rows, o, i, start, min(n - start, CHUNK), n, &s, &normalizer, workspace)
    return next_max

# The usual case: contiguous rows of one chunk, neither masked nor scaled. The same as dense_row, in one piece: what is
# asked only once a row then costs nothing each time, which is a third of the time of 200 elements.

cdef inline bint is_contiguous_unmasked(const Rows* rows) noexcept nogil:
    return rows.x_n == 1 and rows.y_n == 1 and rows.where == NULL and not rows.scaled and rows.n <= CHUNK

cdef inline void contiguous_unmasked_rows(int op, const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                                          const RowWorkspace* workspace) noexcept nogil:
    cdef int sum = SUM_WEIGHTS if op == SOFTMAX else SUM_EXCLUDING_MAX
    cdef Py_ssize_t o = first_row // rows.inner, i = first_row % rows.inner, r
    cdef Py_ssize_t n = row_length(rows, i), next_n = n
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner
    cdef const elem* next_x = x
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    cdef elem* next_y = y
    cdef real* weights_buf
    cdef real row_max = reduce_max(x, n), next_max
    cdef vreal ties
    cdef vmask needs_refinement
    cdef Prefetch ahead
    cdef Shift s
    cdef Sums sums
    cdef Normalizer normalizer
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
        if n > 0 and (op == SOFTMAX or -INFINITY < row_max < INFINITY):
            ahead.x, ahead.y = next_x, x if op == LOGSUMEXP or rows.nontemporal else y
            no_temperature(&s)
            set_row_max(&s, broadcast(row_max))
            clear(&sums)
            weights_buf = same_alignment(y, workspace.weights_buf)
            if lane0(s.center) == 0:
                exp_and_sum(sum, &s, False, False, x, n, n, weights_buf, &ahead, &sums)
            else:
                exp_and_sum(sum, &s, False, True, x, n, n, weights_buf, &ahead, &sums)
            ties = sums.ties[0]
            for v in range(1, PARTIAL_REGS):
                ties = ties + sums.ties[v]
            normalizer = dense_normalizer(sum, n, False, &s, &sums, hsum(ties) if sum == SUM_EXCLUDING_MAX else ties,
                                          &needs_refinement)
            next_max = reduce_max(next_x, next_n)
            if sum == SUM_EXCLUDING_MAX and any_lane(needs_refinement):
                refine_sum(rows, r, &s, workspace, &normalizer)
            if op == LOGSUMEXP:
                y[0] = elem_of(lane0(normalizer.hi + normalizer.lo))
            elif op == SOFTMAX and any_lane(needs_refinement) and find_one(&s, False, &normalizer):
                normalize_store_chunk(STORE_WEIGHTS_OR_ONE, False, &s, &normalizer, weights_buf, x, y, 1, n,
                                      rows.nontemporal)
            else:
                normalize_store(op, &s, &normalizer, False, weights_buf, x, y, 1, n, rows.nontemporal)
        else:
            next_max = reduce_max(next_x, next_n)
            dense_row(rows, r, row_max, r, workspace)
        if op == SOFTMAX and n < rows.n:
            clear_elements(y + n, 1, rows.n - n, rows.nontemporal)
        x, y, n, row_max = next_x, next_y, next_n, next_max

cdef void refine_sum(const Rows* rows, Py_ssize_t r, const Shift* s, const RowWorkspace* workspace,
                     Normalizer* normalizer) noexcept nogil:
    cdef Sums sums
    sum_row(SUM_EXACT, rows, r // rows.inner, r % rows.inner, rows.n, s, workspace, &sums)
    finalize(SUM_EXACT, rows, rows.n, s, &sums, normalizer)

cdef void dense_rows(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                     const RowWorkspace* workspace) noexcept nogil:
    cdef Py_ssize_t r
    cdef real row_max
    if is_contiguous_unmasked(rows) and rows.op != ENTROPY:
        if rows.op == SOFTMAX:
            contiguous_unmasked_rows(SOFTMAX, rows, first_row, last_row, workspace)
        elif rows.op == LOG_SOFTMAX:
            contiguous_unmasked_rows(LOG_SOFTMAX, rows, first_row, last_row, workspace)
        else:
            contiguous_unmasked_rows(LOGSUMEXP, rows, first_row, last_row, workspace)
        return
    row_max = max_of_row(rows, first_row // rows.inner, first_row % rows.inner, workspace)
    for r in range(first_row, last_row + 1):
        row_max = dense_row(rows, r, row_max, min(r + 1, last_row), workspace)
