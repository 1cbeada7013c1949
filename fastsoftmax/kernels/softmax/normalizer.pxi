# From the sums of a row to its normalizer: the results are weights * (hi + lo), or scores - (hi + lo). hi + lo has
# nearly twice the digits of a real.
#
# needs_refinement marks rows whose normalizer is not final. Where may_be_inaccurate: the sum is not accurate enough.
# For SUM_WEIGHTS: the largest weight may outweigh all others together. The weight was rounded and the sum was not, so a
# result that should be 1 comes out one step below it, as NEARLY_ONE, in one of seven such rows. Those rows store `one`
# in its place.
#
# After a SUM_KEEPING_WEIGHTS a tile has PARTIAL_REGS normalizers for logarithms, and then as many for weights.

cdef struct Normalizer:
    vreal hi
    vreal lo
    vreal one               # for STORE_WEIGHTS_OR_ONE: the result where NEARLY_ONE was computed

cdef inline vmask nowhere() noexcept nogil:
    return lt(broadcast(0), broadcast(0))

cdef inline bint any_column(const vmask* mask) noexcept nogil:
    cdef int c
    for c in range(PARTIAL_REGS):
        if any_lane(mask[c]):
            return True
    return False

cdef inline vmask is_nearly_one(vreal weight, const Normalizer* normalizer) noexcept nogil:
    """weight: the largest, rounded as in the buffer."""
    return eq(mul_dd(weight, normalizer.hi, normalizer.lo), broadcast(NEARLY_ONE))

cdef inline vmask may_be_nearly_one(const Normalizer* normalizer, Py_ssize_t n) noexcept nogil:
    """Where the sum is small enough for the largest weight to be nearly all of it. In most long rows it is not."""
    if sizeof(elem) != sizeof(real):            # rounded to 16 bits, NEARLY_ONE is 1
        return nowhere()
    return lt(broadcast(1 / ((2 if n <= BASES_MIN else LONG_START) * SCALE)), normalizer.hi)

cdef bint find_one(const Shift* s, bint scaled, Normalizer* normalizer) noexcept nogil:
    """Computes `one`: 1 where all other weights together are less than a quarter of EPSILON of the largest, so that no
    other result is NEARLY_ONE. Returns False if no largest result is NEARLY_ONE."""
    cdef vreal p, f, share, more, rest, others
    cdef vmask nearly
    largest_weight(s, scaled, &p, &f)
    nearly = is_nearly_one(fma_(p, f, f), normalizer)
    if not any_lane(nearly):
        return False
    share = f * normalizer.hi                   # others = 1 - (f + p * f) * (hi + lo), with twice a real's digits
    more = p * share
    rest = two_prod_err(f, normalizer.hi, share) + f * normalizer.lo
    others = ((broadcast(1) - share) - more) - (fma_(p, rest, rest) + two_prod_err(p, share, more))
    normalizer.one = vselect(both(nearly, lt(others, broadcast(EPSILON / 4))), broadcast(1), broadcast(NEARLY_ONE))
    return True

cdef inline Normalizer logarithm_of(const Shift* s, bint scaled, vdd others) noexcept nogil:
    """others: the sum of all weights except one of the largest, in units of the largest.

    If row_max / temperature is not exact, the logarithm is measured from the largest score, so that the digits of
    log1p(others) are not lost beside it: see normal_result_of.
    """
    cdef Normalizer normalizer
    cdef vreal row_max = vselect(from_zero(s), s.row_max * s.factor, broadcast(0)) if scaled else s.row_max
    dd_split_sum(row_max, broadcast(0), dd_log1p(others), &normalizer.hi, &normalizer.lo)
    return normalizer

cdef inline Normalizer normalizer_of_short_row(SumKind sum, const Shift* s, bint scaled, Py_ssize_t n,
                                               ShortRow short_row, vdd moments, vreal ties,
                                               vmask* needs_refinement) noexcept nogil:
    """normalizer_of for rows of at most PARTIALS elements. The caller computes needs_refinement of SUM_WEIGHTS."""
    cdef Normalizer normalizer
    cdef vreal p, f
    if sum != SUM_WEIGHTS:
        return normalizer_of(sum, s, scaled, False, n, dd_of_sum(short_row.total, short_row.lost), moments, ties,
                             needs_refinement)
    needs_refinement[0] = nowhere()
    if n == 1:                                  # the rounded weight divided by itself: 1, or NaN
        largest_weight(s, scaled, &p, &f)
        short_row.total, short_row.lost = fma_(p, f, f) + (short_row.total - short_row.total), broadcast(0)
    reciprocal(short_row.total, short_row.lost, &normalizer.hi, &normalizer.lo)
    return normalizer

cdef inline Normalizer normalizer_of(SumKind sum, const Shift* s, bint scaled, bint dense, Py_ssize_t n, vdd weights,
                                     vdd moments, vreal ties, vmask* needs_refinement) noexcept nogil:
    """weights, moments, ties: of the whole row, in each lane of the row. dense: all lanes are the same row, so that the
    registers of a vdd are computed once."""
    cdef Normalizer normalizer
    cdef vdd of_max, others
    cdef vreal zero = broadcast(0), hi, lo, p, f
    needs_refinement[0] = nowhere()
    if sum == SUM_WEIGHTS:
        dd_split(dd_div(dd_of_sum(broadcast(1), zero), weights), &normalizer.hi, &normalizer.lo)
        needs_refinement[0] = may_be_nearly_one(&normalizer, n)
        return normalizer
    largest_weight(s, scaled, &p, &f)
    of_max = dd_of_sum(f, p * f)
    others = dd_of_sum(ties, broadcast(-1))
    if dense:
        of_max, others = dd_lane0(of_max), dd_lane0(others)
    others = dd_add(others, dd_div(weights, of_max))
    if sum == SUM_MOMENTS:
        moments = dd_div(dd_div(moments, of_max), dd_add(dd_of_sum(broadcast(1), zero), others))
        dd_split_sum(zero, zero, dd_sub(dd_log1p(others), moments), &normalizer.hi, &normalizer.lo)
        return normalizer
    if may_be_inaccurate(sum):
        dd_split(others, &hi, &lo)
        needs_refinement[0] = lt(hi, broadcast(<real>n / <real>(1 << LEAST)))
    return logarithm_of(s, scaled, others)

cdef inline Normalizer normalizer_of_weights(const Shift* s, bint scaled, vdd weights, vreal ties) noexcept nogil:
    """By which weights are multiplied, after a SUM_KEEPING_WEIGHTS. It needs no refinement."""
    cdef Normalizer normalizer
    cdef vreal p, f
    largest_weight(s, scaled, &p, &f)
    weights = dd_add_product(weights, factor_of(f), factor_of(ties))
    weights = dd_end(dd_add_small_product(weights, factor_of(p * f), factor_of(ties)))
    dd_split(dd_div(dd_of_sum(broadcast(1), broadcast(0)), weights), &normalizer.hi, &normalizer.lo)
    return normalizer
