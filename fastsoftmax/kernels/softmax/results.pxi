# From weights or elements and the normalizer to results, for one register.
#
# A subnormal result is computed so that it is rounded once: see mul_dd_rounded_once in vec.h. Hidden elements have tiny
# weights, whose results are 0 anyway. Where a result is below the normal numbers, a second look tells the two apart.
# None of that is done for 16-bit results, which do not show the double rounding.

cdef inline vmask clear_vanishing(Py_ssize_t step, Py_ssize_t count, real* x, vreal hi) noexcept nogil:
    """Where one of the results of x, x + step, ... (count registers) may be subnormal. Weights whose results are 0
    become 0, so that the products with them do not underflow."""
    cdef vmask subnormal = nowhere()
    cdef vreal weight
    cdef Py_ssize_t k
    for k in range(count):
        weight = load(x + k * step)
        subnormal = either(subnormal, result_is_near_subnormal(weight, hi))
        store(x + k * step, zero_where(result_vanishes(weight, hi), weight))
    return subnormal

cdef inline void normalize_weights(StoreKind stored, Normalizer normalizer, int count, real* x,
                                   vreal* weight) noexcept nogil:
    """The results of `count` registers of weights x, which may be changed."""
    cdef vreal least
    cdef int a
    if sizeof(elem) == sizeof(real):
        least = load(x)
        for a in range(1, count):
            least = vmin(load(x + a * LANES), least)
        if any_near_subnormal(least, normalizer.hi) and any_lane(clear_vanishing(LANES, count, x, normalizer.hi)):
            mul_dd_in_place(x, LANES, count, normalizer.hi, normalizer.lo)
            normalizer.hi, normalizer.lo = broadcast(1), broadcast(0)
    for a in range(count):
        weight[a] = mul_dd(load(x + a * LANES), normalizer.hi, normalizer.lo)
    if stored == STORE_WEIGHTS_OR_ONE:
        for a in range(count):
            weight[a] = vselect(eq(weight[a], broadcast(NEARLY_ONE)), normalizer.one, weight[a])

cdef inline vreal normal_result_of(StoreKind stored, const Shift* s, const Normalizer* normalizer, bint scaled,
                                   vreal x) noexcept nogil:
    """x: the elements for STORE_LOGS, otherwise the weights. Results must not be subnormal."""
    cdef vreal below, factor, score, score_lo, difference, rest
    if stored == STORE_WEIGHTS:
        return mul_dd(x, normalizer.hi, normalizer.lo)
    if stored == STORE_WEIGHTS_OR_ONE:
        x = mul_dd(x, normalizer.hi, normalizer.lo)
        return vselect(eq(x, broadcast(NEARLY_ONE)), normalizer.one, x)
    if not scaled:
        return (x - normalizer.hi) - normalizer.lo
    # From row_max: (x - row_max) / temperature - (hi + lo). Neither term is positive, so nothing cancels. The sum is
    # rounded once, so that a larger score never has a smaller result. SHRINK prevents overflow of x - row_max and of
    # the halves in two_prod_err. From 0, if x / temperature is exact: the arithmetic of rows without a temperature.
    below = fma_(x, s.shrink, -s.origin)
    factor = s.factor / s.shrink
    score = below * factor
    score_lo = two_prod_err(below, factor, score) + below * (s.factor_lo / s.shrink)
    difference = score - normalizer.hi
    rest = (vselect(from_zero(s), broadcast(0), two_sum_err(score, -normalizer.hi, difference))
            + (score_lo - normalizer.lo))
    # the rest of an infinite score is NaN
    return difference + vselect(lt(vabs(rest), broadcast(INFINITY)), rest, broadcast(0))

cdef inline vreal result_of(StoreKind stored, const Shift* s, const Normalizer* normalizer, bint scaled,
                            vreal x) noexcept nogil:
    if stored != STORE_LOGS and sizeof(elem) == sizeof(real) and any_near_subnormal(x, normalizer.hi):
        if any_lane(result_is_near_subnormal(x, normalizer.hi)):
            x = mul_dd_rounded_once(x, normalizer.hi, normalizer.lo)
            return vselect(eq(x, broadcast(NEARLY_ONE)), normalizer.one, x) if stored == STORE_WEIGHTS_OR_ONE else x
        x = zero_where(result_vanishes(x, normalizer.hi), x)
    return normal_result_of(stored, s, normalizer, scaled, x)
