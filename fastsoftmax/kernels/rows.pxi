# The parameters of a softmax kernel: arrays seen as (outer, n, inner), rows running along n.
#
# A kernel works on its rows in one of two ways, chosen by shape:
#   along   one row at a time, its elements in the lanes                      (along.pxi)
#   across  WIDTH rows at a time, each in a lane of its own                   (across.pxi)
# Both add up a row in the same order, so that a row's result depends on its elements alone.
#
# Everything here is checked by the caller; kernels cannot fail, and what they allocate is allocated
# by the `def` at the end of softmax.pxi before the loops start.

cdef enum:
    TASK = 1 << 14          # elements: the least that a thread takes at a time, some microseconds of work
    SLICE = WIDTH << 18     # elements: what is computed between two looks for an interrupt
    SPLIT = 1 << 15         # elements: rows from here on may be shared by threads
    CHUNK = 4096            # elements: what is summed up before digits are moved to wide sums; in the L1 cache
    BLOCK = GROUP           # elements of each row of a tile
    NARROW = 3 * GROUP      # elements: contiguous rows up to this go across, if there are enough of them
    CAUSAL_ACROSS = 3 * GROUP   # elements: contiguous causal rows up to this go across
    KEEP = 1 << 20          # reals: up to this, a row's weights are kept; beyond, computed twice
    # results of a row
    SOFTMAX = 0
    LOG_SOFTMAX = 1
    LOGSUMEXP = 2
    ENTROPY = 3
    # and a sum that is not a result: for a logarithm, in fewer instructions, where it is exact enough
    OTHERS = 4
    # and how softmax is written where the largest result may have to become 1: see Outcome
    SOFTMAX_ONE = 5

cdef struct Rows:
    int result
    bint scaled                                     # is there a temperature
    bint streamed                                   # results go past the caches
    Py_ssize_t lead                                 # elements by which the first tile is narrower, to align the others
    bint causal                                     # row i sees the first i + offset + 1 elements
    Py_ssize_t offset
    Py_ssize_t outer, n, inner
    const elem* x
    Py_ssize_t x_outer, x_n, x_inner                # strides in elements
    elem* y
    Py_ssize_t y_outer, y_n, y_inner
    const unsigned char* where                      # NULL: everywhere
    Py_ssize_t where_outer, where_n, where_inner
    const double* temperature                       # not read unless scaled
    Py_ssize_t temperature_outer, temperature_inner

# The constants of one row, or of LANES rows. Weights are exp(scores - top), scores = x / temperature, times
# a factor between 2**-1/2 and 2**1/2, BASE (exp.h) and SCALE, which cancel in every result.
#
# Why not simply exp(x - top): x - top is rounded, and that error, half an ULP of a number up to 104,
# is 64 ULP of the weight. So a small maximum is not subtracted from x: exp(x) is computed, and the power of
# two nearest to exp(top) taken off its exponent. A large maximum, |top| >= LARGE, is subtracted: there x and top
# are within a factor of two of each other wherever the weight is not zero, and such differences are exact (Sterbenz).
cdef struct Shift:
    vreal top               # the largest x
    vreal center            # subtracted from x: zero or top
    vreal limit             # x - center below which a weight is zero
    vreal magic             # rounds to integer and puts the exponent right: see exp4
    vreal temperature
    vreal factor            # 1 / temperature, as the sum of two reals
    vreal factor_lo
    vreal shrink            # see result_of: 1, where logarithms are measured from 0; or SHRINK, from top
    vreal origin            # 0 or top, times shrink

cdef inline Py_ssize_t steps(Py_ssize_t count, Py_ssize_t size) noexcept nogil:
    return (count + size - 1) // size

cdef inline void set_temperature(Shift* s, vreal temperature, vreal temperature_lo) noexcept nogil:
    """factor + factor_lo = 1 / temperature to twice a real's digits."""
    cdef vreal q = fill(1) / temperature
    cdef vreal product = q * temperature
    s.temperature = temperature
    s.factor = q
    s.factor_lo = (((fill(1) - product) - product_error(q, temperature, product)) - q * temperature_lo) * q

cdef inline void no_temperature(Shift* s) noexcept nogil:
    s.temperature = fill(1)
    s.factor = fill(1)
    s.factor_lo = fill(0)

cdef inline vmask from_zero(const Shift* s) noexcept nogil:
    return equal(s.shrink, fill(1))

cdef inline void set_top(Shift* s, vreal top) noexcept nogil:
    cdef vreal highest, exponent
    cdef vmask exact, moderate
    s.top = top
    s.center = choose(less(vabs(top * s.factor), fill(LARGE)), fill(0), top)
    highest = top - s.center
    s.limit = highest + fill(VANISHES) * s.temperature
    exponent = fma_(highest * s.factor, fill(LOG2E), fill(ROUNDER)) - fill(ROUNDER)
    s.magic = fill(ROUNDER + STEPS * (EXPONENT_BIAS + SCALE_BITS)) - exponent * fill(STEPS)
    # x / temperature is a real where the temperature is a power of two, unless that is too large
    exact = both(is_power_of_two(s.factor), equal(s.factor_lo, fill(0)))
    moderate = less(vmax(vabs(top), vabs(top * s.factor)), fill(HUGE_SCORE))
    s.shrink = choose(both(exact, moderate), fill(1), fill(SHRINK))
    s.origin = choose(from_zero(s), fill(0), top * fill(SHRINK))

cdef inline void scores_of(const Shift* s, vreal x, bint scaled, vreal* score, vreal* score_lo) noexcept nogil:
    """x / temperature as the sum of two reals."""
    score[0] = x
    score_lo[0] = fill(0)
    if scaled:
        score[0] = x * s.factor
        score_lo[0] = product_error(x, s.factor, score[0]) + x * s.factor_lo

cdef inline void weigh4(const vreal* x, const Shift* s, bint across, bint scaled, bint centered, vreal* p,
                        vreal* f) noexcept nogil:
    """The weights f + p * f of four registers of x. Along a row there is one Shift; across, one a column.

    centered: whether a center may be other than zero; where all are zero, subtracting them is a twelfth of the work.
    """
    cdef vreal[4] d, d_lo, magic
    cdef int a, c
    for a in range(4):
        c = a % COLS if across else 0
        d[a] = vmax(s[c].limit, x[a] - s[c].center if centered else x[a])
        magic[a] = s[c].magic
    if scaled:
        for a in range(4):
            c = a % COLS if across else 0
            scores_of(&s[c], d[a], True, &d[a], &d_lo[a])
        exp4(d, d_lo, magic, p, f)
    else:
        exp4(d, NULL, magic, p, f)

cdef inline vmask is_other(const Shift* s, vreal x) noexcept nogil:
    """Where x is below the row's maximum, but not so far that its weight is zero."""
    return both(less(x, s.top), less(s.limit, x - s.center))

# A running sum that loses nothing: what rounding an addition loses is found exactly, and added up in `lost`.
# The weights come as f + p * f, which is more exact than their rounded sum. The p * f are so much smaller that they
# may be rounded when they are added up, in `rest`, which goes to the total once a RUN. The total starts at START, above
# everything that is added to it, so that the error takes three operations (Dekker); `lost` holds the digits far below
# START, rounded to a real. log_softmax needs log1p(sum excluding the maximum). OTHERS is a fast version of this sum,
# accurate where it exceeds n * 2**-LEAST; below that the row is summed again by LOGSUMEXP: from zero, and with the
# error of each addition by six operations (Knuth).
cdef enum:
    START = 8               # times SCALE; above every f, and every rest
    LEAST = 18              # 2**-LEAST of the largest weight

cdef inline vreal start_of(int result) noexcept nogil:
    return fill(START * SCALE) if result == SOFTMAX or result == OTHERS else fill(0)

cdef inline void add_exactly(int result, vreal* total, vreal* lost, vreal term) noexcept nogil:
    cdef vreal before = total[0]
    total[0] = before + term
    if result == SOFTMAX or result == OTHERS:
        lost[0] = lost[0] + fast_sum_error(before, term, total[0])
    else:
        lost[0] = lost[0] + sum_error(before, term, total[0])

cdef inline void add_rest(int result, vreal* total, vreal* lost, vreal* rest) noexcept nogil:
    if RUN > GROUP:
        add_exactly(result, total, lost, rest[0])
        rest[0] = fill(0)

cdef inline void add_weights(int result, vreal* total, vreal* lost, vreal* rest, const vreal* p,
                             const vreal* f) noexcept nogil:
    """Adds the four f to the total, and the sum of their p * f to the rest."""
    cdef vreal pf = fma_(p[3], f[3], fma_(p[2], f[2], fma_(p[1], f[1], p[0] * f[0])))
    cdef int a
    for a in range(4):
        add_exactly(result, total, lost, f[a])
    if RUN == GROUP:
        add_exactly(result, total, lost, pf)
    else:
        rest[0] = rest[0] + pf

cdef inline void leave_out(int result, const Shift* s, vreal x, vreal* f, vcount* ties) noexcept nogil:
    """Leaves the largest elements out of a logarithm's sum, and counts them; those without weight too, but for OTHERS,
    in which they do no harm."""
    cdef vmask tie = equal(x, s.top)
    if result == OTHERS:
        f[0] = leave_where(tie, f[0])
        ties[0] = count_where(tie, ties[0])
    elif result != SOFTMAX:
        f[0] = keep_where(is_other(s, x), f[0])
        ties[0] = count_where(tie, ties[0])

cdef inline vwide sum_of_group(const vreal* p, const vreal* f) noexcept nogil:
    """The sum of a row that is one group."""
    cdef vreal pf = fma_(p[3], f[3], fma_(p[2], f[2], fma_(p[1], f[1], p[0] * f[0])))
    return wide_add(wide_add(wide_of(f[0], f[1]), wide_of(f[2], f[3])), wide_of(pf, fill(0)))

# The sum of a row of at most WIDTH elements, whose lost part is small beside it.
cdef struct Few:
    vreal total, lost

cdef inline Few sum_of_few(int result, const real* p, const real* f, Py_ssize_t n) noexcept nogil:
    """In every lane; as narrow_sums has it. Up to the next multiple of four, elements that weigh nothing follow."""
    cdef Few few
    cdef vreal[4] p_, f_
    cdef vreal rest = fill(0)
    cdef Py_ssize_t turn
    cdef int k
    few.total, few.lost = start_of(result), fill(0)
    for turn in range(steps(n, 4)):
        for k in range(4):
            p_[k] = fill(p[4 * turn + k])
            f_[k] = fill(f[4 * turn + k])
        add_weights(result, &few.total, &few.lost, &rest, p_, f_)
        add_rest(result, &few.total, &few.lost, &rest)
    few.total = few.total - start_of(result)
    return few

cdef inline vreal score_below_top(const Shift* s, vreal x, bint scaled) noexcept nogil:
    cdef vreal score, score_lo, top, top_lo
    scores_of(s, s.top - s.center, scaled, &top, &top_lo)
    scores_of(s, vmax(s.limit, x - s.center), scaled, &score, &score_lo)
    return (score - top) + (score_lo - top_lo)

# The sums of a row's elements.
cdef struct Sums:
    vwide[COLS] weights
    vwide[COLS] moments     # weight * (score - top), for the entropy
    vreal[COLS] ties        # how many elements are as large as the largest: see leave_out
    Few few                 # instead of weights, for a row of at most WIDTH elements

cdef inline void clear(Sums* sums) noexcept nogil:
    cdef int v
    for v in range(COLS):
        sums.weights[v] = wide_zero()
        sums.moments[v] = wide_zero()
        sums.ties[v] = fill(0)

cdef inline void largest_weight(const Shift* s, bint scaled, vreal* p, vreal* f) noexcept nogil:
    """It is f + p * f."""
    cdef vreal[4] x, p_, f_
    cdef int a
    for a in range(4):
        x[a] = s.top
    weigh4(x, s, False, scaled, True, p_, f_)
    p[0], f[0] = p_[0], f_[0]

# The results of a row are weights * (hi + lo), or scores - (hi + lo), with scores measured from s.origin.
#
# Some want a second look, `doubt`: of OTHERS, where the sum is not exact enough; of SOFTMAX, where the largest weight
# may be all there is. As it is rounded, and divided by a sum in which it is not rounded, one in seven such weights
# would come out as NEARLY_ONE, and is written as `one` instead.
cdef struct Outcome:
    vreal hi
    vreal lo
    vreal one               # for SOFTMAX_ONE: what is written for NEARLY_ONE

cdef inline vmask nowhere() noexcept nogil:
    return less(fill(0), fill(0))

cdef inline vmask is_nearly_one(vreal weight, const Outcome* outcome) noexcept nogil:
    """weight: the largest, rounded, as it is kept."""
    return equal(scale(weight, outcome.hi, outcome.lo), fill(NEARLY_ONE))

cdef inline vmask may_be_nearly_one(const Outcome* outcome) noexcept nogil:
    """Where the sum is not beyond all that a weight can be. In long rows it is, most often."""
    if sizeof(elem) != sizeof(real):            # rounded to an elem, it is 1
        return nowhere()
    return less(fill(1 / (2 * SCALE)), outcome.hi)

cdef bint find_one(const Shift* s, bint scaled, Outcome* outcome) noexcept nogil:
    """`one`: 1 where all other weights together are less than a quarter of an EPSILON of the largest, so that no other
    result is NEARLY_ONE. False if that changes nothing."""
    cdef vreal p, f, share, more, rest, others
    cdef vmask nearly
    largest_weight(s, scaled, &p, &f)
    nearly = is_nearly_one(fma_(p, f, f), outcome)
    if not any_lane(nearly):
        return False
    share = f * outcome.hi                      # 1 - (f + p * f) * (hi + lo), to twice a real's digits
    more = p * share
    rest = product_error(f, outcome.hi, share) + f * outcome.lo
    others = ((fill(1) - share) - more) - (fma_(p, rest, rest) + product_error(p, share, more))
    outcome.one = choose(both(nearly, less(others, fill(EPSILON / 4))), fill(1), fill(NEARLY_ONE))
    return True

cdef inline Outcome logarithm_of(const Shift* s, bint scaled, vwide others) noexcept nogil:
    """others: the sum of all weights but one of the largest, in units of the largest.

    Where top / temperature is no real, the result is measured from the row's largest score, so that no digit is lost
    beside it: see result_of.
    """
    cdef Outcome outcome
    cdef vreal top = choose(from_zero(s), s.top * s.factor, fill(0)) if scaled else s.top
    wide_split_sum(top, fill(0), wide_log1p(others), &outcome.hi, &outcome.lo)
    return outcome

cdef inline Outcome outcome_of_few(int result, const Shift* s, bint scaled, Py_ssize_t n, Few few, vwide moments,
                                   vreal ties, vmask* doubt) noexcept nogil:
    """outcome_of for rows of at most WIDTH elements; `doubt` of SOFTMAX is left to the caller."""
    cdef Outcome outcome
    cdef vreal p, f
    if result != SOFTMAX:
        return outcome_of(result, s, scaled, n, wide_of(few.total, few.lost), moments, ties, doubt)
    doubt[0] = nowhere()
    if n == 1:                                  # divided by itself as it was rounded, so that it is 1, or NaN
        largest_weight(s, scaled, &p, &f)
        few.total, few.lost = fma_(p, f, f) + (few.total - few.total), fill(0)
    reciprocal(few.total, few.lost, &outcome.hi, &outcome.lo)
    return outcome

cdef inline Outcome outcome_of(int result, const Shift* s, bint scaled, Py_ssize_t n, vwide weights, vwide moments,
                               vreal ties, vmask* doubt) noexcept nogil:
    """`weights`, `moments` and `ties` are the whole row's, in every lane that has this row."""
    cdef Outcome outcome
    cdef vwide of_top, others
    cdef vreal zero = fill(0), hi, lo, p, f
    doubt[0] = nowhere()
    if result == SOFTMAX:
        wide_split(wide_divide(wide_of(fill(1), zero), weights), &outcome.hi, &outcome.lo)
        doubt[0] = may_be_nearly_one(&outcome)
        return outcome
    largest_weight(s, scaled, &p, &f)
    of_top = wide_of(f, p * f)
    others = wide_add(wide_of(ties, fill(-1)), wide_divide(weights, of_top))
    if result == ENTROPY:
        moments = wide_divide(wide_divide(moments, of_top), wide_add(wide_of(fill(1), zero), others))
        wide_split_sum(zero, zero, wide_subtract(wide_log1p(others), moments), &outcome.hi, &outcome.lo)
        return outcome
    if result == OTHERS:
        wide_split(others, &hi, &lo)
        doubt[0] = less(hi, fill(<real>n / <real>(1 << LEAST)))
    return logarithm_of(s, scaled, others)

cdef inline bint any_subnormal(vreal least, const Outcome* outcome) noexcept nogil:
    """Whether a result may be: `least`, the smallest weights, or one of them. Hidden elements, which give 0, count."""
    if sizeof(elem) != sizeof(real):            # 16 bits do not hold what is lost
        return False
    return any_lane(less(scale(least, outcome.hi, outcome.lo), fill(LEAST_NORMAL)))

cdef inline void weights_of(int result, Outcome outcome, int count, real* x, vreal* weight) noexcept nogil:
    """The results of `count` registers of weights for SOFTMAX and SOFTMAX_ONE; x may be changed."""
    cdef vreal least
    cdef int a
    for a in range(count):
        weight[a] = scale(load(x + a * LANES), outcome.hi, outcome.lo)
    least = weight[0]
    for a in range(1, count):
        least = vmin(weight[a], least)
    if sizeof(elem) == sizeof(real) and any_lane(less(least, fill(LEAST_NORMAL))):
        scale_in_place(x, LANES, count, outcome.hi, outcome.lo)
        for a in range(count):
            weight[a] = load(x + a * LANES)
    if result == SOFTMAX_ONE:
        for a in range(count):
            weight[a] = choose(equal(weight[a], fill(NEARLY_ONE)), outcome.one, weight[a])

cdef inline vreal plain_result_of(int result, const Shift* s, const Outcome* outcome, bint scaled,
                                  vreal x) noexcept nogil:
    """x: the weight for SOFTMAX and SOFTMAX_ONE, the element itself for LOG_SOFTMAX. Not for subnormal results."""
    cdef vreal below, factor, score, score_lo, difference, rest
    if result == SOFTMAX:
        return scale(x, outcome.hi, outcome.lo)
    if result == SOFTMAX_ONE:
        x = scale(x, outcome.hi, outcome.lo)
        return choose(equal(x, fill(NEARLY_ONE)), outcome.one, x)
    if not scaled:
        return (x - outcome.hi) - outcome.lo
    # From top: (x - top) / temperature - (hi + lo). Neither term is positive, so nothing cancels. The sum is rounded
    # once, so that larger scores never come out smaller. SHRINK keeps x - top, and the halves of product_error, from
    # overflow. From 0, where x / temperature is a real: the arithmetic of rows without a temperature.
    below = fma_(x, s.shrink, -s.origin)
    factor = s.factor / s.shrink
    score = below * factor
    score_lo = product_error(below, factor, score) + below * (s.factor_lo / s.shrink)
    difference = score - outcome.hi
    rest = choose(from_zero(s), fill(0), sum_error(score, -outcome.hi, difference)) + (score_lo - outcome.lo)
    return difference + choose(less(vabs(rest), fill(INFINITY)), rest, fill(0))     # an infinite score has no rest

cdef inline vreal result_of(int result, const Shift* s, const Outcome* outcome, bint scaled, vreal x) noexcept nogil:
    if result != LOG_SOFTMAX and any_subnormal(x, outcome):
        x = scale_rounded_once(x, outcome.hi, outcome.lo)
        return choose(equal(x, fill(NEARLY_ONE)), outcome.one, x) if result == SOFTMAX_ONE else x
    return plain_result_of(result, s, outcome, scaled, x)

cdef struct Across:                             # one thread's tile
    real[BLOCK * WIDTH] p                       # weights are f + p * f
    real[BLOCK * WIDTH] f
    real[WIDTH * WIDTH] total                   # running sums, a line for each partial sum: see add_weights
    real[WIDTH * WIDTH] lost
    real[WIDTH * WIDTH] rest
    vwide[WIDTH * COLS] weights                 # of the chunks before
    vwide[WIDTH * COLS] moments

cdef struct Work:                               # one thread's buffers
    real* kept                                  # weights of a row; elements, then weights, of a tile's rows
    elem* elements                              # CHUNK elements of a row with gaps
    Across* tile
