# Rows that are one block need no chunks. If they have no more elements than there are partial sums, as the narrowest
# have, they have one sum: see sum_of_short_row.

cdef inline void narrow_turn(int sum, bint scaled, bint centered, const Shift* s, real* x, vcount* ties,
                             vreal* total, vreal* lost, vreal* most, vdd_sum* moments) noexcept nogil:
    """The next four elements of a column."""
    cdef vreal[4] e, p, f
    cdef vreal rest = broadcast(0)
    cdef int k
    for k in range(4):
        e[k] = load(x + k * PARTIALS)
    exp4_scores(e, s, False, scaled, centered, p, f)
    for k in range(4):
        if sum == SUM_WEIGHTS:
            e[k] = fma_(p[k], f[k], f[k])
            store(x + k * PARTIALS, e[k])
        else:
            exclude_max(sum, s, e[k], &f[k], ties)
        if sum == SUM_MOMENTS:
            moments.chain[k] = dd_add(moments.chain[k],
                                      dd_of_sum(fma_(p[k], f[k], f[k]) * score_below_max(s, e[k], scaled),
                                                broadcast(0)))
    if sum == SUM_WEIGHTS:
        most[0] = vmax(vmax(vmax(e[0], e[1]), vmax(e[2], e[3])), most[0])
    add_weights(sum, total, lost, &rest, p, f)
    add_rest(sum, total, lost, &rest)

# The sums of PARTIAL_REGS registers' rows while they are made.
cdef struct Narrow:
    vreal[PARTIAL_REGS] total
    vreal[PARTIAL_REGS] lost
    vreal[PARTIAL_REGS] most  # the largest weights
    vcount[PARTIAL_REGS] ties
    vdd_sum[PARTIAL_REGS] moments

cdef inline void narrow_sums(int sum, bint scaled, bint centered, const Shift* s, Py_ssize_t n, real* x,
                             Narrow* sums) noexcept nogil:
    cdef Py_ssize_t turn, k, c
    for c in range(PARTIAL_REGS):
        sums.moments[c] = dd_sum_start()
        sums.total[c] = start_of(sum)
        sums.lost[c] = broadcast(0)
        sums.most[c] = broadcast(0)
        sums.ties[c] = no_count()
        for k in range(n, ceil_div(n, 4) * 4):  # elements that weigh nothing, as from load_upto
            store(x + k * PARTIALS + c * LANES, broadcast(-INFINITY))
    # the columns by turns, since each waits for its sums; one loop, since two together have too many registers
    for turn in range(ceil_div(n, 4) * PARTIAL_REGS):
        c = turn % PARTIAL_REGS
        narrow_turn(sum, scaled, centered, &s[c], x + turn // PARTIAL_REGS * (4 * PARTIALS) + c * LANES, &sums.ties[c],
                    &sums.total[c], &sums.lost[c], &sums.most[c], &sums.moments[c])

cdef inline void narrow_normalizers(int sum, bint scaled, const Shift* s, Py_ssize_t n, const real* x,
                                    const Narrow* sums, Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    """For SUM_WEIGHTS, `needs_refinement` also tells of results that may be subnormal, from the weights at x."""
    cdef ShortRow short_row
    cdef int c
    for c in range(PARTIAL_REGS):
        short_row.total, short_row.lost = sums.total[c] - start_of(sum), sums.lost[c]
        normalizer[c] = normalizer_of_short_row(sum, &s[c], scaled, n, short_row, dd_sum_end(sums.moments[c]),
                                                real_count(sums.ties[c]), &needs_refinement[c])
        if sum == SUM_WEIGHTS:
            needs_refinement[c] = nowhere()
            if sizeof(elem) == sizeof(real):    # rounded to an elem, neither matters
                needs_refinement[c] = either(is_nearly_one(sums.most[c], &normalizer[c]),
                                             may_be_subnormal(n, x + c * LANES, &normalizer[c]))

cdef inline Normalizer single_column(int sum, bint scaled, const Shift* s, Py_ssize_t n, real* x, int c,
                                     const TileWorkspace* tile, vcount ties, vmask* needs_refinement) noexcept nogil:
    cdef vdd_sum weight_sum = dd_sum_start(), moments = dd_sum_start()
    cdef vreal[4] p, f
    cdef Py_ssize_t turn
    cdef int k
    for turn in range(PARTIALS // 4):
        for k in range(4):
            load_weights(tile, 4 * turn + k, c, n, p, f)
            weight_sum.chain[k] = dd_add(weight_sum.chain[k], sum_of_group(p, f))
            if sum == SUM_MOMENTS:
                moments.chain[k] = dd_add(moments.chain[k], moment_of(s, scaled, x, tile, 4 * turn + k, c, n))
    return normalizer_of(sum, s, scaled, n, dd_sum_end(weight_sum), dd_sum_end(moments), real_count(ties),
                         needs_refinement)

cdef inline void finalize_block(int sum, bint scaled, const Shift* s, Py_ssize_t n, real* x, TileWorkspace* tile,
                                Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    cdef vcount[PARTIAL_REGS] ties
    cdef Narrow sums
    cdef int c
    for c in range(PARTIAL_REGS):
        ties[c] = no_count()
    if n <= PARTIALS:
        narrow_sums(sum, scaled, True, s, n, x, &sums)
        narrow_normalizers(sum, scaled, s, n, x, &sums, normalizer, needs_refinement)
    else:
        exp_block(sum, scaled, s, n, x, tile, ties)
        for c in range(PARTIAL_REGS):
            normalizer[c] = single_column(sum, scaled, &s[c], n, x, c, tile, ties[c], &needs_refinement[c])

cdef void finalize_single_block(int sum, bint scaled, const Shift* s, Py_ssize_t n, real* x, TileWorkspace* tile,
                                Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    if sum == SUM_WEIGHTS:
        if scaled:
            finalize_block(SUM_WEIGHTS, True, s, n, x, tile, normalizer, needs_refinement)
        else:
            finalize_block(SUM_WEIGHTS, False, s, n, x, tile, normalizer, needs_refinement)
    elif sum == SUM_MOMENTS:
        finalize_block(SUM_MOMENTS, True, s, n, x, tile, normalizer, needs_refinement)
    elif sum == SUM_EXCLUDING_MAX:
        if scaled:
            finalize_block(SUM_EXCLUDING_MAX, True, s, n, x, tile, normalizer, needs_refinement)
        else:
            finalize_block(SUM_EXCLUDING_MAX, False, s, n, x, tile, normalizer, needs_refinement)
    elif scaled:
        finalize_block(SUM_EXACT, True, s, n, x, tile, normalizer, needs_refinement)
    else:
        finalize_block(SUM_EXACT, False, s, n, x, tile, normalizer, needs_refinement)
