# The constants of one row, or of LANES rows. Weights are exp(scores - top), scores = x / temperature, times
# a factor between 2**-1/2 and 2**1/2, BASE (exp.h) and SCALE, which cancel in every result.
#
# Why not simply exp(x - top): x - top is rounded, and that error, half an ULP of a number up to 104,
# is 64 ULP of the weight. So a small maximum is not subtracted from x: exp(x) is computed, and the power of
# two nearest to exp(top) taken off its exponent. A large maximum, |top| >= LARGE, is subtracted: there x and top
# are within a factor of two of each other wherever the weight is not zero, and such differences are exact (Sterbenz).
cdef struct Shift:
    vreal row_max           # the largest x
    vreal center            # subtracted from x: zero or top
    vreal limit             # x - center below which a weight is zero
    vreal magic             # rounds to integer and puts the exponent right: see exp4
    vreal temperature
    vreal factor            # 1 / temperature, as the sum of two reals
    vreal factor_lo
    vreal shrink            # see result_of: 1, where logarithms are measured from 0; or SHRINK, from top
    vreal origin            # 0 or top, times shrink

cdef inline void set_temperature(Shift* s, vreal temperature, vreal temperature_lo) noexcept nogil:
    """factor + factor_lo = 1 / temperature to twice a real's digits."""
    cdef vreal q = broadcast(1) / temperature
    cdef vreal product = q * temperature
    s.temperature = temperature
    s.factor = q
    s.factor_lo = (((broadcast(1) - product) - two_prod_err(q, temperature, product)) - q * temperature_lo) * q

cdef inline void no_temperature(Shift* s) noexcept nogil:
    s.temperature = broadcast(1)
    s.factor = broadcast(1)
    s.factor_lo = broadcast(0)

cdef inline vmask from_zero(const Shift* s) noexcept nogil:
    return eq(s.shrink, broadcast(1))

cdef inline void set_row_max(Shift* s, vreal row_max) noexcept nogil:
    cdef vreal highest, exponent
    cdef vmask exact, moderate
    s.row_max = row_max
    s.center = vselect(lt(vabs(row_max * s.factor), broadcast(LARGE)), broadcast(0), row_max)
    highest = row_max - s.center
    s.limit = highest + broadcast(VANISHES) * s.temperature
    exponent = fma_(highest * s.factor, broadcast(LOG2E), broadcast(ROUNDER)) - broadcast(ROUNDER)
    s.magic = broadcast(ROUNDER + STEPS * (EXPONENT_BIAS + SCALE_BITS)) - exponent * broadcast(STEPS)
    # x / temperature is a real where the temperature is a power of two, unless that is too large
    exact = both(is_power_of_two(s.factor), eq(s.factor_lo, broadcast(0)))
    moderate = lt(vmax(vabs(row_max), vabs(row_max * s.factor)), broadcast(HUGE_SCORE))
    s.shrink = vselect(both(exact, moderate), broadcast(1), broadcast(SHRINK))
    s.origin = vselect(from_zero(s), broadcast(0), row_max * broadcast(SHRINK))

cdef inline void scores_of(const Shift* s, vreal x, bint scaled, vreal* score, vreal* score_lo) noexcept nogil:
    """x / temperature as the sum of two reals."""
    score[0] = x
    score_lo[0] = broadcast(0)
    if scaled:
        score[0] = x * s.factor
        score_lo[0] = two_prod_err(x, s.factor, score[0]) + x * s.factor_lo

cdef inline void exp4_scores(const vreal* x, const Shift* s, bint by_column, bint scaled, bint centered, vreal* p,
                             vreal* f) noexcept nogil:
    """The weights f + p * f of four registers of x. Along a row there is one Shift; by_column, one a column.

    centered: whether a center may be other than zero; where all are zero, subtracting them is a twelfth of the work.
    """
    cdef vreal[4] d, d_lo, magic
    cdef int a, c
    for a in range(4):
        c = a % PARTIAL_REGS if by_column else 0
        d[a] = vmax(s[c].limit, x[a] - s[c].center if centered else x[a])
        magic[a] = s[c].magic
    if scaled:
        for a in range(4):
            c = a % PARTIAL_REGS if by_column else 0
            scores_of(&s[c], d[a], True, &d[a], &d_lo[a])
        exp4(d, d_lo, magic, p, f)
    else:
        exp4(d, NULL, magic, p, f)

cdef inline vmask is_other(const Shift* s, vreal x) noexcept nogil:
    """Where x is below the row's maximum, but not so far that its weight is zero."""
    return both(lt(x, s.row_max), lt(s.limit, x - s.center))

cdef inline void largest_weight(const Shift* s, bint scaled, vreal* p, vreal* f) noexcept nogil:
    """It is f + p * f."""
    cdef vreal[4] x, p_, f_
    cdef int a
    for a in range(4):
        x[a] = s.row_max
    exp4_scores(x, s, False, scaled, True, p_, f_)
    p[0], f[0] = p_[0], f_[0]

cdef inline vreal score_below_max(const Shift* s, vreal x, bint scaled) noexcept nogil:
    cdef vreal score, score_lo, row_max, row_max_lo
    scores_of(s, s.row_max - s.center, scaled, &row_max, &row_max_lo)
    scores_of(s, vmax(s.limit, x - s.center), scaled, &score, &score_lo)
    return (score - row_max) + (score_lo - row_max_lo)
