# From the sums of a row to its normalizer.

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
