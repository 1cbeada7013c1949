# The constants of one row, or of the LANES rows of a register, and the weights of the elements.
#
# scores = x / temperature, and weights = exp(scores - largest score), times a factor that cancels in every result: a
# number between 2**-1/2 and 2**1/2, BASE and SCALE. exp4.h has the method of exp, its valid range and its error. The
# largest score is the base of the weights, or another: see below.
#
# The plain x - row_max would be rounded. Its error, half an ULP of a number up to 104, would be 64 ULP of the weight.
# So a small maximum is not subtracted from x: the weight is exp(x), and the power of two nearest to exp(row_max) is
# subtracted from its exponent. A large maximum, |row_max| >= LARGE, is subtracted: wherever the weight is not zero, x
# and row_max are within a factor of two of each other, and such a difference is exact (Sterbenz).
#
# The base of a softmax row longer than BASES_MIN is first_max, the largest element of its first chunk, while all
# elements are less than REACH above it. The first chunk with a larger element is `rebased`: from there on row_max is
# the base. If one of the two is too large, or if they are FAR apart, `rebased` is 0. So the maximum need not be known
# before the weights are computed, and a pass over the row is saved (dense.pxi). A power of two brings weights from
# first_max to row_max. The last digits of a row's sum depend on its bases, which are therefore the same however it is
# computed.
cdef struct Shift:
    vreal row_max           # the largest x
    vreal center            # subtracted from x: 0 or the base
    vreal limit             # x - center below which a weight is zero
    vreal rounder           # rounds to steps, and sets the exponent: see exp4.h
    vreal temperature
    vreal factor            # 1 / temperature, as the sum of two reals
    vreal factor_lo
    vreal shrink            # see normal_result_of: 1, if logarithms are measured from 0; SHRINK, if from row_max
    vreal origin            # 0 or row_max, times shrink

cdef extern from "math.h" nogil:
    double ldexp(double, int)

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

cdef inline vmask is_within_reach(vreal first_max, vreal row_max) noexcept nogil:
    return lt(row_max - first_max, broadcast(REACH))

cdef inline vmask may_be_base(vreal first_max, vreal row_max) noexcept nogil:
    """Whether the weights of the first chunks may be measured from first_max. Otherwise `rebased` is 0."""
    return both(both(lt(vabs(first_max), broadcast(PLAIN)), lt(vabs(row_max), broadcast(LARGE))),
                lt(row_max - first_max, broadcast(FAR)))

cdef inline void set_row_max(Shift* s, vreal row_max) noexcept nogil:
    """Also makes it the base."""
    cdef vreal highest, exponent
    cdef vmask exact, moderate
    s.row_max = row_max
    s.center = vselect(lt(vabs(row_max * s.factor), broadcast(LARGE)), broadcast(0), row_max)
    highest = row_max - s.center
    s.limit = highest + broadcast(VANISHES) * s.temperature
    exponent = fma_(highest * s.factor, broadcast(LOG2E), broadcast(ROUNDER)) - broadcast(ROUNDER)
    s.rounder = rounder_of(exponent)
    # x / temperature is exact if the temperature is a power of two and the quotient does not overflow
    exact = both(is_power_of_two(s.factor), eq(s.factor_lo, broadcast(0)))
    moderate = lt(vmax(vabs(row_max), vabs(row_max * s.factor)), broadcast(HUGE_SCORE))
    s.shrink = vselect(both(exact, moderate), broadcast(1), broadcast(SHRINK))
    s.origin = vselect(from_zero(s), broadcast(0), row_max * broadcast(SHRINK))

cdef inline bint is_plain(const Shift* s) noexcept nogil:
    """Whether the row has no center, and an exponent with which exp4.h has less to do."""
    return -PLAIN < lane0(s.row_max) < PLAIN

cdef inline void scores_of(const Shift* s, vreal x, bint scaled, vreal* score, vreal* score_lo) noexcept nogil:
    """x / temperature as the sum of two reals."""
    score[0] = x
    score_lo[0] = broadcast(0)
    if scaled:
        score[0] = x * s.factor
        score_lo[0] = two_prod_err(x, s.factor, score[0]) + x * s.factor_lo

cdef inline void exp_scores(int count, const vreal* x, const Shift* s, bint by_column, bint scaled, bint centered,
                            bint plain, vreal* p, vreal* f) noexcept nogil:
    """The weights f + p * f of `count` registers of x. They share s[0]; by_column, register a has s[a % PARTIAL_REGS].

    centered: whether a center may differ from 0. If none does, not subtracting it saves a twelfth of the work.
    plain: whether all are elements of one plain row.
    """
    cdef vreal[MAX_EXP] d, d_lo, rounder
    cdef int a, c
    for a in range(count):
        c = a % PARTIAL_REGS if by_column else 0
        d[a] = vmax(s[c].limit, x[a] - s[c].center if centered else x[a])
        rounder[a] = s[c].rounder
    if scaled:
        for a in range(count):
            c = a % PARTIAL_REGS if by_column else 0
            scores_of(&s[c], d[a], True, &d[a], &d_lo[a])
        exp_regs(count, d, d_lo, rounder, plain, p, f)
    else:
        exp_regs(count, d, NULL, rounder, plain, p, f)

cdef inline void exp4_scores(const vreal* x, const Shift* s, bint by_column, bint scaled, bint centered, vreal* p,
                             vreal* f) noexcept nogil:
    exp_scores(4, x, s, by_column, scaled, centered, False, p, f)

cdef inline bint sums_as_scaled(SumKind sum, bint scaled) noexcept nogil:
    """`scaled` for pass 2. A temperature of 1 gives the same bits as none, so SUM_EXACT, which few rows need, and
    SUM_MOMENTS have no loop without one."""
    return scaled or not is_fast_sum(sum)

cdef inline vmask is_other(const Shift* s, vreal x) noexcept nogil:
    """Where x is below the maximum, but its weight is not zero."""
    return both(lt(x, s.row_max), lt(s.limit, x - s.center))

cdef inline void largest_weight(const Shift* s, bint scaled, vreal* p, vreal* f) noexcept nogil:
    """The weight f + p * f of row_max."""
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
