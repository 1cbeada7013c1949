# Pass 2 of a tile whose rows are one block. Such rows have no chunks.
#
# Rows of at most PARTIALS elements (short rows) have one sum instead of PARTIALS: see sum_of_short_row.

cdef struct ShortSums:                          # the running sums of the rows of PARTIAL_REGS registers
    vreal[PARTIAL_REGS] total
    vreal[PARTIAL_REGS] lost
    vreal[PARTIAL_REGS] max_weight
    vcount[PARTIAL_REGS] ties
    vdd_sum[PARTIAL_REGS] moments

cdef inline void short_step(SumKind sum, bint scaled, bint centered, const Shift* s, real* x, Py_ssize_t kept, int c,
                            ShortSums* sums) noexcept nogil:
    """The next four elements of the rows of register c."""
    cdef vreal[4] e, p, f
    cdef vreal rest = broadcast(0), moment
    cdef int k
    for k in range(4):
        e[k] = load(x + k * PARTIALS)
    exp4_scores(e, s, False, scaled, centered, p, f)
    for k in range(4):
        if sum == SUM_KEEPING_WEIGHTS:
            store(x + kept + k * PARTIALS, fma_(p[k], f[k], f[k]))
        if sum == SUM_WEIGHTS:
            e[k] = fma_(p[k], f[k], f[k])
            store(x + k * PARTIALS, e[k])
        else:
            exclude_max(sum, s, e[k], &f[k], &sums.ties[c])
        if sum == SUM_MOMENTS:
            moment = fma_(p[k], f[k], f[k]) * score_below_max(s, e[k], scaled)
            sums.moments[c].chain[k] = dd_add(sums.moments[c].chain[k], dd_of_sum(moment, broadcast(0)))
    if sum == SUM_WEIGHTS:
        sums.max_weight[c] = vmax(vmax(vmax(e[0], e[1]), vmax(e[2], e[3])), sums.max_weight[c])
    add_weights(sum, &sums.total[c], &sums.lost[c], &rest, p, f)
    add_rest(sum, &sums.total[c], &sums.lost[c], &rest)

cdef inline void short_sums(SumKind sum, bint scaled, bint centered, const Shift* s, Py_ssize_t n, real* x,
                            ShortSums* sums) noexcept nogil:
    """x (n, PARTIALS). Keeps weights at kept_at."""
    cdef Py_ssize_t step, k, c
    for c in range(PARTIAL_REGS):
        sums.moments[c] = dd_sum_start()
        sums.total[c] = start_of(sum, n)
        sums.lost[c] = broadcast(0)
        sums.max_weight[c] = broadcast(0)
        sums.ties[c] = no_count()
        for k in range(n, ceil_div(n, 4) * 4):  # elements without weight, as load_upto gives them
            store(x + k * PARTIALS + c * LANES, broadcast(-INFINITY))
    # The registers alternate, since each waits for its sum. One loop, since two steps at once need too many registers.
    for step in range(ceil_div(n, 4) * PARTIAL_REGS):
        c = step % PARTIAL_REGS
        short_step(sum, scaled, centered, &s[c], x + step // PARTIAL_REGS * (4 * PARTIALS) + c * LANES,
                   kept_at(sum, n), c, sums)

cdef inline void short_normalizers(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, real* x,
                                   const ShortSums* sums, Normalizer* normalizer,
                                   vmask* needs_refinement) noexcept nogil:
    """x (n, PARTIALS). SUM_WEIGHTS: x holds the weights, and needs_refinement also marks rows whose results may be
    subnormal."""
    cdef ShortRow short_row
    cdef int c
    for c in range(PARTIAL_REGS):
        short_row.total, short_row.lost = sums.total[c] - start_of(sum, n), sums.lost[c]
        normalizer[c] = normalizer_of_short_row(sum, &s[c], scaled, n, short_row, dd_sum_end(sums.moments[c]),
                                                real_count(sums.ties[c]), &needs_refinement[c])
        if sum == SUM_KEEPING_WEIGHTS:
            normalizer[PARTIAL_REGS + c] = normalizer_of_weights(
                &s[c], scaled, dd_of_sum(short_row.total, short_row.lost), real_count(sums.ties[c]))
        if sum == SUM_WEIGHTS:
            needs_refinement[c] = nowhere()
            if sizeof(elem) == sizeof(real):    # rounded to 16 bits, neither matters
                needs_refinement[c] = either(is_nearly_one(sums.max_weight[c], &normalizer[c]),
                                             any_subnormal(n, x + c * LANES, &normalizer[c]))

# Rows of more than PARTIALS elements. A chain is every fourth partial sum (see dd_total); its four partial sums have as
# many elements, of which some may be without weight. They are computed side by side, or if they have four elements one
# after the other, since the four would need too many registers.

cdef struct ColumnSums:                         # the sums of the rows of PARTIAL_REGS registers
    vdd_sum[PARTIAL_REGS] weights
    vdd_sum[PARTIAL_REGS] moments
    vcount[PARTIAL_REGS] ties

cdef inline void exp_lines(Py_ssize_t distance, SumKind sum, bint scaled, bint centered, const Shift* s, real* x,
                           Py_ssize_t kept, vreal* e, vreal* p, vreal* f, vcount* ties) noexcept nogil:
    """p and f of four elements of x, `distance` apart; weights at x + kept."""
    cdef int a
    for a in range(4):
        e[a] = load(x + a * distance * PARTIALS)
    exp4_scores(e, s, False, scaled, centered, p, f)
    for a in range(4):
        if keeps_weights_of(sum):
            store(x + kept + a * distance * PARTIALS, fma_(p[a], f[a], f[a]))
        if sum != SUM_WEIGHTS:
            exclude_max(sum, s, e[a], &f[a], ties)

cdef inline vreal add_moment(bint scaled, const Shift* s, vreal e, vreal p, vreal f, vreal moment) noexcept nogil:
    return fma_(fma_(p, f, f), score_below_max(s, e, scaled), moment)

cdef struct Chain:                              # four partial sums
    vreal[4] last, pf, moments
    vdd[4] weights

cdef inline void chain_step(int a, SumKind sum, bint scaled, bint centered, const Shift* s, real* x, Py_ssize_t kept,
                            vcount* ties, Chain* chain) noexcept nogil:
    """Element a < 4 of each partial sum."""
    cdef vreal[4] e, p, f
    cdef int k
    exp_lines(1, sum, scaled, centered, s, x + a * PARTIALS * PARTIALS, kept, e, p, f, ties)
    for k in range(4):
        chain.pf[k] = fma_(p[k], f[k], chain.pf[k]) if a > 0 else p[k] * f[k]
        if a == 1:
            chain.weights[k] = dd_of_sum(chain.last[k], f[k])
        elif a == 3:
            chain.weights[k] = dd_add(chain.weights[k], dd_of_sum(chain.last[k], f[k]))
        chain.last[k] = f[k]
        if sum == SUM_MOMENTS:
            chain.moments[k] = add_moment(scaled, s, e[k], p[k], f[k], chain.moments[k] if a > 0 else broadcast(0))

cdef inline bint has_loops_by_count(SumKind sum, bint scaled) noexcept nogil:
    """Whether a chain has a loop for each number of elements. It is up to 20 % faster, and five times the code: not for
    cross entropy, which has other work beside."""
    return is_fast_sum(sum) and not scaled and sum != SUM_KEEPING_WEIGHTS

cdef inline vdd chain_sum(int count, const Chain* chain, int k) noexcept nogil:
    """sum_of_step, of `count` elements."""
    cdef vreal zero = broadcast(0)
    if count == 1:
        return dd_of_sum(chain.last[k], chain.pf[k])
    if count != 3:
        return dd_add(chain.weights[k], dd_of_sum(chain.pf[k], zero))
    return dd_add(dd_add(chain.weights[k], dd_of_sum(chain.last[k], zero)), dd_of_sum(chain.pf[k], zero))

cdef inline void sum_chain(int count, SumKind sum, bint scaled, bint centered, const Shift* s, real* x,
                           Py_ssize_t kept, vcount* ties, vdd_sum* weights, vdd_sum* moments) noexcept nogil:
    """Partial sums of `count` elements each."""
    cdef Chain chain
    cdef int a, k
    if not has_loops_by_count(sum, scaled):
        for a in range(count):
            chain_step(a, sum, scaled, centered, s, x, kept, ties, &chain)
    else:
        chain_step(0, sum, scaled, centered, s, x, kept, ties, &chain)
        if count > 1:
            chain_step(1, sum, scaled, centered, s, x, kept, ties, &chain)
        if count > 2:
            chain_step(2, sum, scaled, centered, s, x, kept, ties, &chain)
    for k in range(4):
        weights.chain[k] = dd_add(weights.chain[k], chain_sum(count, &chain, k))
        if sum == SUM_MOMENTS:
            moments.chain[k] = dd_add(moments.chain[k], dd_of_sum(chain.moments[k], broadcast(0)))

cdef inline void sum_full_chain(SumKind sum, bint scaled, bint centered, const Shift* s, real* x, Py_ssize_t kept,
                                vcount* ties, vdd_sum* weights, vdd_sum* moments) noexcept nogil:
    """Partial sums of four elements each."""
    cdef vreal[4] e, p, f
    cdef vreal moment = broadcast(0)
    cdef int a, k
    for k in range(4):
        exp_lines(PARTIALS, sum, scaled, centered, s, x + k * PARTIALS, kept, e, p, f, ties)
        weights.chain[k] = dd_add(weights.chain[k], sum_of_step(p, f))
        if sum == SUM_MOMENTS:
            for a in range(4):
                moment = add_moment(scaled, s, e[a], p[a], f[a], moment if a > 0 else broadcast(0))
            moments.chain[k] = dd_add(moments.chain[k], dd_of_sum(moment, broadcast(0)))

cdef inline void column_sums(SumKind sum, bint scaled, bint centered, const Shift* shift, Py_ssize_t n, real* x,
                             ColumnSums* sums) noexcept nogil:
    """x (n, PARTIALS), PARTIALS < n <= UNROLL. Keeps weights at kept_at."""
    cdef Shift s
    cdef vdd_sum weights, moments
    cdef vcount ties
    cdef Py_ssize_t chain, count, k, kept = kept_at(sum, n)
    cdef real* at
    cdef int c
    for k in range(n * PARTIAL_REGS, ceil_div(n, 4) * 4 * PARTIAL_REGS):  # elements without weight; x has room for them
        store(x + k * LANES, broadcast(-INFINITY))
    for c in range(PARTIAL_REGS):
        s, weights, moments, ties = shift[c], dd_sum_start(), dd_sum_start(), no_count()
        for chain in range(PARTIALS // 4):
            at = x + 4 * chain * PARTIALS + c * LANES
            count = ceil_div(n - 4 * chain, PARTIALS)
            if not has_loops_by_count(sum, scaled):
                sum_chain(<int>count, sum, scaled, centered, &s, at, kept, &ties, &weights, &moments)
            elif count == 4:
                sum_full_chain(sum, scaled, centered, &s, at, kept, &ties, &weights, &moments)
            elif count == 3:
                sum_chain(3, sum, scaled, centered, &s, at, kept, &ties, &weights, &moments)
            elif count == 2:
                sum_chain(2, sum, scaled, centered, &s, at, kept, &ties, &weights, &moments)
            else:
                sum_chain(1, sum, scaled, centered, &s, at, kept, &ties, &weights, &moments)
        sums.weights[c], sums.moments[c], sums.ties[c] = weights, moments, ties

cdef inline void column_normalizers(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, const ColumnSums* sums,
                                    Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    cdef int c
    for c in range(PARTIAL_REGS):
        normalizer[c] = normalizer_of(sum, &s[c], scaled, False, n, dd_sum_end(sums.weights[c]),
                                      dd_sum_end(sums.moments[c]), real_count(sums.ties[c]), &needs_refinement[c])
        if sum == SUM_KEEPING_WEIGHTS:
            normalizer[PARTIAL_REGS + c] = normalizer_of_weights(&s[c], scaled, dd_sum_end(sums.weights[c]),
                                                                 real_count(sums.ties[c]))

cdef inline void finalize_block(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, real* x,
                                Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    cdef ShortSums of_short_rows
    cdef ColumnSums sums
    cdef bint as_scaled = sums_as_scaled(sum, scaled)
    if n <= PARTIALS:
        short_sums(sum, as_scaled, True, s, n, x, &of_short_rows)
        short_normalizers(sum, scaled, s, n, x, &of_short_rows, normalizer, needs_refinement)
    else:
        column_sums(sum, as_scaled, True, s, n, x, &sums)
        column_normalizers(sum, scaled, s, n, &sums, normalizer, needs_refinement)

cdef void finalize_single_block(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, real* x,
                                Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    """x (n, PARTIALS), n <= BLOCK, with room for elements up to a multiple of four, and for weights at kept_at."""
    # one call for each case, so that the compiler makes each its own loop
    if sum == SUM_WEIGHTS and scaled:
        finalize_block(SUM_WEIGHTS, True, s, n, x, normalizer, needs_refinement)
    elif sum == SUM_WEIGHTS:
        finalize_block(SUM_WEIGHTS, False, s, n, x, normalizer, needs_refinement)
    elif sum == SUM_MOMENTS:
        finalize_block(SUM_MOMENTS, True, s, n, x, normalizer, needs_refinement)
    elif sum == SUM_EXCLUDING_MAX and scaled:
        finalize_block(SUM_EXCLUDING_MAX, True, s, n, x, normalizer, needs_refinement)
    elif sum == SUM_EXCLUDING_MAX:
        finalize_block(SUM_EXCLUDING_MAX, False, s, n, x, normalizer, needs_refinement)
    elif sum == SUM_KEEPING_WEIGHTS and scaled:
        finalize_block(SUM_KEEPING_WEIGHTS, True, s, n, x, normalizer, needs_refinement)
    elif sum == SUM_KEEPING_WEIGHTS:
        finalize_block(SUM_KEEPING_WEIGHTS, False, s, n, x, normalizer, needs_refinement)
    else:
        finalize_block(SUM_EXACT, scaled, s, n, x, normalizer, needs_refinement)
