# From the sums of a dense row to its normalizer.

cdef inline Normalizer dense_normalizer(SumKind sum, Py_ssize_t n, bint scaled, const Shift* s, const Sums* sums,
                                        vmask* needs_refinement) noexcept nogil:
    cdef vdd moments = dd_total(sums.moments) if sum == SUM_MOMENTS else dd_zero()
    cdef vreal ties = sums.ties[0]
    cdef Normalizer normalizer
    cdef int v
    for v in range(1, PARTIAL_REGS):
        ties = ties + sums.ties[v]
    if sum != SUM_WEIGHTS:
        ties = hsum_exact(ties)
    if n > PARTIALS:
        return normalizer_of(sum, s, scaled, True, n, dd_total(sums.weights), moments, ties, needs_refinement)
    normalizer = normalizer_of_short_row(sum, s, scaled, n, sums.short_row, moments, ties, needs_refinement)
    if sum == SUM_WEIGHTS:
        needs_refinement[0] = may_be_nearly_one(&normalizer, n)
    return normalizer

cdef bint finalize(SumKind sum, bint scaled, Py_ssize_t n, const Shift* s, const Sums* sums,
                   Normalizer* normalizer) noexcept nogil:
    """Computes the normalizer. Returns whether it needs SUM_EXACT, or for SUM_WEIGHTS STORE_WEIGHTS_OR_ONE.
    """
    # one call for each case, so that the compiler specialises each
    cdef vmask needs_refinement
    if sum == SUM_WEIGHTS:
        normalizer[0] = dense_normalizer(SUM_WEIGHTS, n, scaled, s, sums, &needs_refinement)
        return any_lane(needs_refinement) and find_one(s, scaled, normalizer)
    if may_be_inaccurate(sum):
        normalizer[0] = dense_normalizer(SUM_EXCLUDING_MAX, n, scaled, s, sums, &needs_refinement)
        return any_lane(needs_refinement)
    if sum == SUM_MOMENTS:
        normalizer[0] = dense_normalizer(SUM_MOMENTS, n, True, s, sums, &needs_refinement)
    else:
        normalizer[0] = dense_normalizer(SUM_EXACT, n, scaled, s, sums, &needs_refinement)
    return False
