# Pass 2 of a dense row: exp of its elements, and the sums of its SumKind.
#
# Element k joins partial sum k % PARTIALS. The PARTIALS sums are PARTIAL_REGS registers, and a step is UNROLL elements:
# exp of four registers for each of them. Where the processor has registers enough, STEPS_AT_ONCE steps are one turn of
# the loop, so that fewer of its instructions wait for another: with AVX-512 5.5 cycles a register instead of 6.0 on a
# Zen 5. The order of the sums is the same. The error of the sums is that of row_sums.pxi.

# Addresses to prefetch: the elements of the next row, and the memory of the results, which would be a cache miss when
# they are stored. Rows longer than a chunk have no Prefetch, since their next row is too far away.
cdef struct Prefetch:
    const elem* x
    const elem* y

cdef inline void prefetch_step(const elem* at) noexcept nogil:
    cdef int a
    for a in range(UNROLL * <int>sizeof(elem) // 64):
        prefetch(<const char*>at + 64 * a)

# The running sums of a chunk.
cdef struct Running:
    vreal[PARTIAL_REGS] total, lost, rest, half, largest
    vcount[PARTIAL_REGS] ties
    vdd[PARTIAL_REGS] runs

# The weights f + p * f of a row of at most PARTIALS elements.
cdef struct ShortRowWeights:
    real[PARTIALS] p, f

cdef inline void exp_and_sum_registers(int steps, int v, SumKind sum, const Shift* s, bint scaled, bint plain,
                                       bint finds_max, const elem* step, Py_ssize_t count, Py_ssize_t before,
                                       Py_ssize_t n, real* weights_buf, Running* running, ShortRowWeights* short_row,
                                       Sums* sums) noexcept nogil:
    """Registers v, v + PARTIAL_REGS, ... of the `count` elements at `step`, which are `steps` steps, or the beginning
    of one; `before` elements of the row precede."""
    cdef vreal[MAX_EXP] e, p, f
    cdef vreal moment
    cdef int a
    for a in range(4 * steps):
        e[a] = load_upto(step, (a * PARTIAL_REGS + v) * LANES, count, before)
    if finds_max:
        for a in range(4 * steps):
            running.largest[v] = vmax(e[a], running.largest[v])
    exp_scores(4 * steps, e, s, False, scaled, not plain, plain, p, f)
    if sum == SUM_KEEPING_WEIGHTS:
        for a in range(4 * steps):
            store(weights_buf + (a * PARTIAL_REGS + v) * LANES, fma_(p[a], f[a], f[a]))
    if sum != SUM_WEIGHTS:
        for a in range(4 * steps):
            exclude_max(sum, s, e[a], &f[a], &running.ties[v])
    if sum == SUM_MOMENTS:                      # one step
        moment = broadcast(0)
        for a in range(4):
            moment = fma_(fma_(p[a], f[a], f[a]), score_below_max(s, e[a], scaled), moment)
        sums.moments[v] = dd_add(sums.moments[v], dd_of_sum(moment, broadcast(0)))
    if n <= PARTIALS:
        store(short_row.p + v * LANES, p[0])
        store(short_row.f + v * LANES, f[0])
    elif n <= UNROLL:
        sums.weights[v] = sum_of_step(p, f)
    else:
        for a in range(steps):
            add_weights(sum, &running.total[v], &running.lost[v], &running.rest[v], p + 4 * a, f + 4 * a)
    if sum == SUM_WEIGHTS:
        for a in range(4 * steps):
            store(weights_buf + (a * PARTIAL_REGS + v) * LANES, fma_(p[a], f[a], f[a]))

cdef inline void exp_and_sum_step(int steps, SumKind sum, const Shift* s, bint scaled, bint plain, bint finds_max,
                                  const elem* step, Py_ssize_t count, Py_ssize_t before, Py_ssize_t n,
                                  real* weights_buf, Running* running, ShortRowWeights* short_row,
                                  Sums* sums) noexcept nogil:
    cdef int v
    # written out, so that the running sums stay in registers
    if PARTIAL_REGS == 1 and is_fast_sum(sum) or PARTIAL_REGS == 2 and sum == SUM_WEIGHTS:
        exp_and_sum_registers(steps, 0, sum, s, scaled, plain, finds_max, step, count, before, n, weights_buf, running,
                              short_row, sums)
        if PARTIAL_REGS == 2:
            exp_and_sum_registers(steps, PARTIAL_REGS - 1, sum, s, scaled, plain, finds_max, step, count, before, n,
                                  weights_buf, running, short_row, sums)
    else:
        for v in range(opaque(PARTIAL_REGS)):
            exp_and_sum_registers(steps, v, sum, s, scaled, plain, finds_max, step, count, before, n, weights_buf,
                                  running, short_row, sums)

cdef inline void end_runs(SumKind sum, Py_ssize_t k, bint halves, Running* running) noexcept nogil:
    """After the first k elements of a chunk."""
    cdef int v
    if RUN > UNROLL and k % RUN == 0:
        for v in range(PARTIAL_REGS):
            end_run(sum, halves, &running.total[v], &running.lost[v], &running.rest[v], &running.half[v],
                    &running.runs[v])
    elif halves and k % (RUN // 2) == 0:
        for v in range(PARTIAL_REGS):
            end_half_run(&running.lost[v], &running.half[v])

cdef inline void exp_and_sum(SumKind sum, const Shift* shift, bint scaled, bint plain, bint finds_max, bint halves,
                             const elem* x, Py_ssize_t count, Py_ssize_t n, real* weights_buf, const Prefetch* ahead,
                             Sums* sums) noexcept nogil:
    """x (count): a chunk of a row of n elements. Adds to `sums`, and keeps weights in weights_buf (count). `ahead` may
    be NULL. finds_max: sums.largest takes part. halves: has_half_runs(n)."""
    cdef Running running
    cdef ShortRowWeights short_row
    cdef Shift s = shift[0]
    cdef Py_ssize_t k = 0, whole = count // UNROLL * UNROLL if n > UNROLL else 0
    cdef int v
    for v in range(PARTIAL_REGS):
        running.total[v] = start_of(sum, n)
        running.largest[v] = sums.largest
        running.lost[v] = broadcast(0)
        running.rest[v] = broadcast(0)
        running.half[v] = broadcast(0)
        running.ties[v] = no_count()
        running.runs[v] = dd_zero()
    if ADDS_TERMS:                              # GCC would clear them by halves, and a load of the whole would wait
        for v in range(opaque(PARTIAL_REGS)):
            running.ties[v] = no_count()
    if STEPS_AT_ONCE == 2 and is_fast_sum(sum):
        while k + 2 * UNROLL <= whole:
            if ahead != NULL:
                prefetch_step(ahead.x + k)
                prefetch_step(ahead.x + k + UNROLL)
                prefetch_step(ahead.y + k)
                prefetch_step(ahead.y + k + UNROLL)
            exp_and_sum_step(2, sum, &s, scaled, plain, finds_max, x + k, 2 * UNROLL, k, UNROLL + 1, weights_buf + k,
                             &running, &short_row, sums)
            k += 2 * UNROLL
            end_runs(sum, k, halves, &running)
    while k < whole:
        if ahead != NULL:
            prefetch_step(ahead.x + k)
            prefetch_step(ahead.y + k)
        # UNROLL + 1 stands for any n above UNROLL
        exp_and_sum_step(1, sum, &s, scaled, plain, finds_max, x + k, UNROLL, k, UNROLL + 1, weights_buf + k, &running,
                         &short_row, sums)
        k += UNROLL
        end_runs(sum, k, halves, &running)
    if k < count:
        exp_and_sum_step(1, sum, &s, scaled, plain, finds_max, x + k, count - k, k, n, weights_buf + k, &running,
                         &short_row, sums)
    if n <= PARTIALS:
        sums.short_row = sum_of_short_row(sum, short_row.p, short_row.f, count)
    for v in range(PARTIAL_REGS):
        if finds_max:
            sums.largest = vmax(running.largest[v], sums.largest)
        sums.ties[v] = sums.ties[v] + real_count(running.ties[v])
        if n > UNROLL:
            add_rest(sum, &running.total[v], &running.lost[v], &running.rest[v])
            sums.weights[v] = dd_add(sums.weights[v], sum_of_chunk(sum, n, halves, running.total[v], running.lost[v],
                                                                   running.half[v], running.runs[v]))

cdef inline void exp_and_sum_chunk(SumKind sum, bint scaled, const Shift* s, const elem* x, Py_ssize_t count,
                                   Py_ssize_t n, real* weights_buf, const Prefetch* ahead, Sums* sums) noexcept nogil:
    # one call for each case, so that the compiler makes each its own loop
    cdef bint plain = is_plain(s), halves = has_half_runs(n)
    if sum == SUM_MOMENTS:
        exp_and_sum(SUM_MOMENTS, s, sums_as_scaled(SUM_MOMENTS, scaled), False, False, halves, x, count, n, weights_buf,
                    ahead, sums)
    elif sum == SUM_WEIGHTS and scaled:
        exp_and_sum(SUM_WEIGHTS, s, True, False, False, halves, x, count, n, weights_buf, ahead, sums)
    elif sum == SUM_WEIGHTS and plain and sums.finds_max:
        exp_and_sum(SUM_WEIGHTS, s, False, True, True, RUN > UNROLL, x, count, n, weights_buf, ahead, sums)
    elif sum == SUM_WEIGHTS and plain and not halves:
        exp_and_sum(SUM_WEIGHTS, s, False, True, False, False, x, count, n, weights_buf, ahead, sums)
    elif sum == SUM_WEIGHTS and plain:
        exp_and_sum(SUM_WEIGHTS, s, False, True, False, True, x, count, n, weights_buf, ahead, sums)
    elif sum == SUM_WEIGHTS:
        exp_and_sum(SUM_WEIGHTS, s, False, False, False, halves, x, count, n, weights_buf, ahead, sums)
    elif sum == SUM_EXCLUDING_MAX and scaled:
        exp_and_sum(SUM_EXCLUDING_MAX, s, True, False, False, halves, x, count, n, weights_buf, ahead, sums)
    elif sum == SUM_EXCLUDING_MAX and plain:
        exp_and_sum(SUM_EXCLUDING_MAX, s, False, True, False, halves, x, count, n, weights_buf, ahead, sums)
    elif sum == SUM_EXCLUDING_MAX:
        exp_and_sum(SUM_EXCLUDING_MAX, s, False, False, False, halves, x, count, n, weights_buf, ahead, sums)
    elif sum == SUM_KEEPING_WEIGHTS and plain and not scaled:
        exp_and_sum(SUM_KEEPING_WEIGHTS, s, False, True, False, halves, x, count, n, weights_buf, ahead, sums)
    elif sum == SUM_KEEPING_WEIGHTS:            # a temperature of 1 gives the same bits as none
        exp_and_sum(SUM_KEEPING_WEIGHTS, s, True, False, False, halves, x, count, n, weights_buf, ahead, sums)
    else:
        exp_and_sum(SUM_EXACT, s, sums_as_scaled(SUM_EXACT, scaled), False, False, halves, x, count, n, weights_buf,
                    ahead, sums)

cdef inline void exp_and_sum_row(SumKind sum, const Shift* s, const elem* x, Py_ssize_t n, real* weights_buf,
                                 const Prefetch* ahead, Sums* sums) noexcept nogil:
    """A contiguous row of at most a chunk, without a temperature: fewer cases, so that its loop has more registers."""
    if is_plain(s):
        exp_and_sum(sum, s, False, True, False, False, x, n, n, weights_buf, ahead, sums)
    else:
        exp_and_sum(sum, s, False, False, False, False, x, n, n, weights_buf, ahead, sums)
