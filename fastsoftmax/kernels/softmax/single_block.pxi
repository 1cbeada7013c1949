# Pass 2 of a tile whose rows are one block. Such rows have no chunks.
#
# Rows of at most PARTIALS elements (short rows) have one sum instead of PARTIALS: see sum_of_short_row.

cdef struct ShortSums:                          # the running sums of the rows of PARTIAL_REGS registers
    vreal[PARTIAL_REGS] total
    vreal[PARTIAL_REGS] lost
    vreal[PARTIAL_REGS] max_weight
    vcount[PARTIAL_REGS] ties
    vdd_sum[PARTIAL_REGS] moments

cdef inline void short_step(SumKind sum, bint scaled, bint centered, const Shift* s, real* x, int c,
                            ShortSums* sums) noexcept nogil:
    """The next four elements of the rows of register c."""
    cdef vreal[4] e, p, f
    cdef vreal rest = broadcast(0), moment
    cdef int k
    for k in range(4):
        e[k] = load(x + k * PARTIALS)
    exp4_scores(e, s, False, scaled, centered, p, f)
    for k in range(4):
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
    """x (n, PARTIALS). SUM_WEIGHTS replaces the elements by their weights."""
    cdef Py_ssize_t step, k, c
    for c in range(PARTIAL_REGS):
        sums.moments[c] = dd_sum_start()
        sums.total[c] = start_of(sum)
        sums.lost[c] = broadcast(0)
        sums.max_weight[c] = broadcast(0)
        sums.ties[c] = no_count()
        for k in range(n, ceil_div(n, 4) * 4):  # elements without weight, as load_upto gives them
            store(x + k * PARTIALS + c * LANES, broadcast(-INFINITY))
    # The registers alternate, since each waits for its sum. One loop, since two steps at once need too many registers.
    for step in range(ceil_div(n, 4) * PARTIAL_REGS):
        c = step % PARTIAL_REGS
        short_step(sum, scaled, centered, &s[c], x + step // PARTIAL_REGS * (4 * PARTIALS) + c * LANES, c, sums)

cdef inline void short_normalizers(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, const real* x,
                                   const ShortSums* sums, Normalizer* normalizer,
                                   vmask* needs_refinement) noexcept nogil:
    """x (n, PARTIALS). SUM_WEIGHTS: x holds the weights, and needs_refinement also marks rows whose results may be
    subnormal."""
    cdef ShortRow short_row
    cdef int c
    for c in range(PARTIAL_REGS):
        short_row.total, short_row.lost = sums.total[c] - start_of(sum), sums.lost[c]
        normalizer[c] = normalizer_of_short_row(sum, &s[c], scaled, n, short_row, dd_sum_end(sums.moments[c]),
                                                real_count(sums.ties[c]), &needs_refinement[c])
        if sum == SUM_WEIGHTS:
            needs_refinement[c] = nowhere()
            if sizeof(elem) == sizeof(real):    # rounded to 16 bits, neither matters
                needs_refinement[c] = either(is_nearly_one(sums.max_weight[c], &normalizer[c]),
                                             may_be_subnormal(n, x + c * LANES, &normalizer[c]))

cdef inline Normalizer block_normalizer(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, const real* x, int c,
                                        const TileWorkspace* tile, vcount ties,
                                        vmask* needs_refinement) noexcept nogil:
    """That of the rows of register c, from the weights in `tile`."""
    cdef vdd_sum weight_sum = dd_sum_start(), moments = dd_sum_start()
    cdef vreal[4] p, f
    cdef Py_ssize_t step
    cdef int k
    for step in range(PARTIALS // 4):
        for k in range(4):
            load_weights(tile, 4 * step + k, c, n, p, f)
            weight_sum.chain[k] = dd_add(weight_sum.chain[k], sum_of_step(p, f))
            if sum == SUM_MOMENTS:
                moments.chain[k] = dd_add(moments.chain[k], moment_of(s, scaled, x, tile, 4 * step + k, c, n))
    return normalizer_of(sum, s, scaled, False, n, dd_sum_end(weight_sum), dd_sum_end(moments), real_count(ties),
                         needs_refinement)

cdef inline void finalize_block(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, real* x, TileWorkspace* tile,
                                Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    """x (n, PARTIALS). SUM_WEIGHTS replaces the elements by their weights."""
    cdef vcount[PARTIAL_REGS] ties
    cdef ShortSums sums
    cdef int c
    for c in range(PARTIAL_REGS):
        ties[c] = no_count()
    if n <= PARTIALS:
        short_sums(sum, scaled, True, s, n, x, &sums)
        short_normalizers(sum, scaled, s, n, x, &sums, normalizer, needs_refinement)
    else:
        exp_block(sum, scaled, s, n, x, tile, ties)
        for c in range(PARTIAL_REGS):
            normalizer[c] = block_normalizer(sum, scaled, &s[c], n, x, c, tile, ties[c], &needs_refinement[c])

cdef void finalize_single_block(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, real* x, TileWorkspace* tile,
                                Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    # one call for each case, so that the compiler makes each its own loop
    if sum == SUM_WEIGHTS and scaled:
        finalize_block(SUM_WEIGHTS, True, s, n, x, tile, normalizer, needs_refinement)
    elif sum == SUM_WEIGHTS:
        finalize_block(SUM_WEIGHTS, False, s, n, x, tile, normalizer, needs_refinement)
    elif sum == SUM_MOMENTS:
        finalize_block(SUM_MOMENTS, True, s, n, x, tile, normalizer, needs_refinement)
    elif sum == SUM_EXCLUDING_MAX and scaled:
        finalize_block(SUM_EXCLUDING_MAX, True, s, n, x, tile, normalizer, needs_refinement)
    elif sum == SUM_EXCLUDING_MAX:
        finalize_block(SUM_EXCLUDING_MAX, False, s, n, x, tile, normalizer, needs_refinement)
    elif scaled:
        finalize_block(SUM_EXACT, True, s, n, x, tile, normalizer, needs_refinement)
    else:
        finalize_block(SUM_EXACT, False, s, n, x, tile, normalizer, needs_refinement)
