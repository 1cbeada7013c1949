# The parameters of a softmax kernel: arrays seen as (outer, n, inner), rows running along n.
#
# A kernel workspaces on its rows in one of two ways, chosen by shape:
#   along   one row at a time, its elements in the lanes                      (along.pxi)
#   across  PARTIALS rows at a time, each in a lane of its own                   (across.pxi)
# Both add up a row in the same order, so that a row's result depends on its elements alone.
#
# Everything here is checked by the caller; kernels cannot fail, and what they allocate is allocated
# by the `def` at the end of softmax.pxi before the loops start.

cdef enum:
    TASK = 1 << 14          # elements: the least that a thread takes at a time, some microseconds of work
    SLICE = PARTIALS << 18  # elements: what is computed between two looks for an interrupt
    LONG_ROW = 1 << 15      # elements: rows from here on may be shared by threads
    CHUNK = 4096            # elements: what is summed up before digits are moved to wide sums; in the L1 cache
    BLOCK = UNROLL          # elements of each row of a tile
    NARROW_MAX = 3 * UNROLL  # elements: contiguous rows up to this go across, if there are enough of them
    CAUSAL_TILE_MAX = 3 * UNROLL  # elements: contiguous causal rows up to this go across
    KEEP = 1 << 20          # reals: up to this, a row's weights are kept; beyond, computed twice
    # results of a row
    SOFTMAX = 0
    LOG_SOFTMAX = 1
    LOGSUMEXP = 2
    ENTROPY = 3
    # and a sum that is not a result: for a logarithm, in fewer instructions, where it is exact enough
    SUM_EXCLUDING_MAX = 4
    # and how softmax is written where the largest result may have to become 1: see Outcome
    SOFTMAX_ONE = 5

cdef struct Rows:
    int result
    bint scaled                                     # is there a temperature
    bint nontemporal                                # results go past the caches
    Py_ssize_t peel                                 # elements by which the first tile is narrower, to align the others
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
    vreal row_max           # the largest x
    vreal center            # subtracted from x: zero or top
    vreal limit             # x - center below which a weight is zero
    vreal magic             # rounds to integer and puts the exponent right: see exp4
    vreal temperature
    vreal factor            # 1 / temperature, as the sum of two reals
    vreal factor_lo
    vreal shrink            # see result_of: 1, where logarithms are measured from 0; or SHRINK, from top
    vreal origin            # 0 or top, times shrink

cdef inline Py_ssize_t ceil_div(Py_ssize_t count, Py_ssize_t size) noexcept nogil:
    return (count + size - 1) // size

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

# A running sum that loses nothing: what rounding an addition loses is found exactly, and added up in `lost`.
# The weights come as f + p * f, which is more exact than their rounded sum. The p * f are so much smaller that they
# may be rounded when they are added up, in `rest`, which goes to the total once a RUN. The total starts at START, above
# everything that is added to it, so that the error takes three operations (Dekker); `lost` holds the digits far below
# START, rounded to a real. log_softmax needs log1p(sum excluding the maximum). SUM_EXCLUDING_MAX is a fast version of
# this sum, accurate where it exceeds n * 2**-LEAST; below that the row is summed again by LOGSUMEXP: from zero, and
# with the error of each addition by six operations (Knuth).
cdef enum:
    START = 8               # times SCALE; above every f, and every rest
    LEAST = 18              # 2**-LEAST of the largest weight

cdef inline vreal start_of(int result) noexcept nogil:
    return broadcast(START * SCALE) if result == SOFTMAX or result == SUM_EXCLUDING_MAX else broadcast(0)

cdef inline void add_exactly(int result, vreal* total, vreal* lost, vreal term) noexcept nogil:
    cdef vreal before = total[0]
    total[0] = before + term
    if result == SOFTMAX or result == SUM_EXCLUDING_MAX:
        lost[0] = lost[0] + fast_two_sum_err(before, term, total[0])
    else:
        lost[0] = lost[0] + two_sum_err(before, term, total[0])

cdef inline void add_rest(int result, vreal* total, vreal* lost, vreal* rest) noexcept nogil:
    if RUN > UNROLL:
        add_exactly(result, total, lost, rest[0])
        rest[0] = broadcast(0)

cdef inline void add_weights(int result, vreal* total, vreal* lost, vreal* rest, const vreal* p,
                             const vreal* f) noexcept nogil:
    """Adds the four f to the total, and the sum of their p * f to the rest."""
    cdef vreal pf = fma_(p[3], f[3], fma_(p[2], f[2], fma_(p[1], f[1], p[0] * f[0])))
    cdef int a
    for a in range(4):
        add_exactly(result, total, lost, f[a])
    if RUN == UNROLL:
        add_exactly(result, total, lost, pf)
    else:
        rest[0] = rest[0] + pf

cdef inline void exclude_max(int result, const Shift* s, vreal x, vreal* f, vcount* ties) noexcept nogil:
    """Excludes the largest elements from a logarithm's sum, and counts them. LOGSUMEXP and ENTROPY exclude elements
    without weight too; SUM_EXCLUDING_MAX need not, since they add nothing that matters."""
    cdef vmask tie = eq(x, s.row_max)
    if result == SUM_EXCLUDING_MAX:
        f[0] = zero_where(tie, f[0])
        ties[0] = count_where(tie, ties[0])
    elif result != SOFTMAX:
        f[0] = select_or_zero(is_other(s, x), f[0])
        ties[0] = count_where(tie, ties[0])

cdef inline vdd sum_of_group(const vreal* p, const vreal* f) noexcept nogil:
    """The sum of a row that is one group."""
    cdef vreal pf = fma_(p[3], f[3], fma_(p[2], f[2], fma_(p[1], f[1], p[0] * f[0])))
    return dd_add(dd_add(dd_of_sum(f[0], f[1]), dd_of_sum(f[2], f[3])), dd_of_sum(pf, broadcast(0)))

# The sum of a row of at most PARTIALS elements, whose lost part is small beside it.
cdef struct ShortRow:
    vreal total, lost

cdef inline ShortRow sum_of_short_row(int result, const real* p, const real* f, Py_ssize_t n) noexcept nogil:
    """In every lane; as narrow_sums has it. Up to the next multiple of four, elements that weigh nothing follow."""
    cdef ShortRow short_row
    cdef vreal[4] p_, f_
    cdef vreal rest = broadcast(0)
    cdef Py_ssize_t turn
    cdef int k
    short_row.total, short_row.lost = start_of(result), broadcast(0)
    for turn in range(ceil_div(n, 4)):
        for k in range(4):
            p_[k] = broadcast(p[4 * turn + k])
            f_[k] = broadcast(f[4 * turn + k])
        add_weights(result, &short_row.total, &short_row.lost, &rest, p_, f_)
        add_rest(result, &short_row.total, &short_row.lost, &rest)
    short_row.total = short_row.total - start_of(result)
    return short_row

cdef inline vreal score_below_max(const Shift* s, vreal x, bint scaled) noexcept nogil:
    cdef vreal score, score_lo, row_max, row_max_lo
    scores_of(s, s.row_max - s.center, scaled, &row_max, &row_max_lo)
    scores_of(s, vmax(s.limit, x - s.center), scaled, &score, &score_lo)
    return (score - row_max) + (score_lo - row_max_lo)

# The sums of a row's elements.
cdef struct Sums:
    vdd[PARTIAL_REGS] weights
    vdd[PARTIAL_REGS] moments  # weight * (score - top), for the entropy
    vreal[PARTIAL_REGS] ties  # how many elements are as large as the largest: see exclude_max
    ShortRow short_row      # instead of weights, for a row of at most PARTIALS elements

cdef inline void clear(Sums* sums) noexcept nogil:
    cdef int v
    for v in range(PARTIAL_REGS):
        sums.weights[v] = dd_zero()
        sums.moments[v] = dd_zero()
        sums.ties[v] = broadcast(0)

cdef inline void largest_weight(const Shift* s, bint scaled, vreal* p, vreal* f) noexcept nogil:
    """It is f + p * f."""
    cdef vreal[4] x, p_, f_
    cdef int a
    for a in range(4):
        x[a] = s.row_max
    exp4_scores(x, s, False, scaled, True, p_, f_)
    p[0], f[0] = p_[0], f_[0]

# The results of a row are weights * (hi + lo), or scores - (hi + lo), with scores measured from s.origin.
#
# needs_refinement marks rows that need a second look: for SUM_EXCLUDING_MAX those whose sum is not exact enough, for
# SOFTMAX those whose other weights may vanish beside the largest. The largest weight is rounded, and divided by a sum in
# which it is not: one in seven such weights would come out as NEARLY_ONE, and is written as `one` instead.
cdef struct Normalizer:
    vreal hi
    vreal lo
    vreal one               # for SOFTMAX_ONE: what is written for NEARLY_ONE

cdef inline vmask nowhere() noexcept nogil:
    return lt(broadcast(0), broadcast(0))

cdef inline vmask is_nearly_one(vreal weight, const Normalizer* normalizer) noexcept nogil:
    """weight: the largest, rounded, as it is kept."""
    return eq(mul_dd(weight, normalizer.hi, normalizer.lo), broadcast(NEARLY_ONE))

cdef inline vmask may_be_nearly_one(const Normalizer* normalizer) noexcept nogil:
    """Where the sum is not beyond all that a weight can be. In long rows it is, most often."""
    if sizeof(elem) != sizeof(real):            # rounded to an elem, it is 1
        return nowhere()
    return lt(broadcast(1 / (2 * SCALE)), normalizer.hi)

cdef bint find_one(const Shift* s, bint scaled, Normalizer* normalizer) noexcept nogil:
    """`one`: 1 where all other weights together are less than a quarter of an EPSILON of the largest, so that no other
    result is NEARLY_ONE. False if that changes nothing."""
    cdef vreal p, f, share, more, rest, others
    cdef vmask nearly
    largest_weight(s, scaled, &p, &f)
    nearly = is_nearly_one(fma_(p, f, f), normalizer)
    if not any_lane(nearly):
        return False
    share = f * normalizer.hi                   # 1 - (f + p * f) * (hi + lo), to twice a real's digits
    more = p * share
    rest = two_prod_err(f, normalizer.hi, share) + f * normalizer.lo
    others = ((broadcast(1) - share) - more) - (fma_(p, rest, rest) + two_prod_err(p, share, more))
    normalizer.one = vselect(both(nearly, lt(others, broadcast(EPSILON / 4))), broadcast(1), broadcast(NEARLY_ONE))
    return True

cdef inline Normalizer logarithm_of(const Shift* s, bint scaled, vdd others) noexcept nogil:
    """others: the sum of all weights but one of the largest, in units of the largest.

    Where top / temperature is no real, the result is measured from the row's largest score, so that no digit is lost
    beside it: see result_of.
    """
    cdef Normalizer normalizer
    cdef vreal row_max = vselect(from_zero(s), s.row_max * s.factor, broadcast(0)) if scaled else s.row_max
    dd_split_sum(row_max, broadcast(0), dd_log1p(others), &normalizer.hi, &normalizer.lo)
    return normalizer

cdef inline Normalizer normalizer_of_short_row(int result, const Shift* s, bint scaled, Py_ssize_t n,
                                               ShortRow short_row, vdd moments, vreal ties,
                                               vmask* needs_refinement) noexcept nogil:
    """normalizer_of for rows of at most PARTIALS elements; `needs_refinement` of SOFTMAX is left to the caller."""
    cdef Normalizer normalizer
    cdef vreal p, f
    if result != SOFTMAX:
        return normalizer_of(result, s, scaled, n, dd_of_sum(short_row.total, short_row.lost), moments, ties,
                             needs_refinement)
    needs_refinement[0] = nowhere()
    if n == 1:                                  # divided by itself as it was rounded, so that it is 1, or NaN
        largest_weight(s, scaled, &p, &f)
        short_row.total, short_row.lost = fma_(p, f, f) + (short_row.total - short_row.total), broadcast(0)
    reciprocal(short_row.total, short_row.lost, &normalizer.hi, &normalizer.lo)
    return normalizer

cdef inline Normalizer normalizer_of(int result, const Shift* s, bint scaled, Py_ssize_t n, vdd weights, vdd moments,
                                     vreal ties, vmask* needs_refinement) noexcept nogil:
    """`weights`, `moments` and `ties` are the whole row's, in every lane that has this row."""
    cdef Normalizer normalizer
    cdef vdd of_max, others
    cdef vreal zero = broadcast(0), hi, lo, p, f
    needs_refinement[0] = nowhere()
    if result == SOFTMAX:
        dd_split(dd_div(dd_of_sum(broadcast(1), zero), weights), &normalizer.hi, &normalizer.lo)
        needs_refinement[0] = may_be_nearly_one(&normalizer)
        return normalizer
    largest_weight(s, scaled, &p, &f)
    of_max = dd_of_sum(f, p * f)
    others = dd_add(dd_of_sum(ties, broadcast(-1)), dd_div(weights, of_max))
    if result == ENTROPY:
        moments = dd_div(dd_div(moments, of_max), dd_add(dd_of_sum(broadcast(1), zero), others))
        dd_split_sum(zero, zero, dd_sub(dd_log1p(others), moments), &normalizer.hi, &normalizer.lo)
        return normalizer
    if result == SUM_EXCLUDING_MAX:
        dd_split(others, &hi, &lo)
        needs_refinement[0] = lt(hi, broadcast(<real>n / <real>(1 << LEAST)))
    return logarithm_of(s, scaled, others)

cdef inline bint any_subnormal(vreal least, const Normalizer* normalizer) noexcept nogil:
    """Whether a result may be: `least`, the smallest weights, or one of them. Hidden elements, which give 0, count."""
    if sizeof(elem) != sizeof(real):            # 16 bits do not hold what is lost
        return False
    return any_lane(lt(mul_dd(least, normalizer.hi, normalizer.lo), broadcast(LEAST_NORMAL)))

cdef inline void normalize_weights(int result, Normalizer normalizer, int count, real* x, vreal* weight) noexcept nogil:
    """The results of `count` registers of weights for SOFTMAX and SOFTMAX_ONE; x may be changed."""
    cdef vreal least
    cdef int a
    for a in range(count):
        weight[a] = mul_dd(load(x + a * LANES), normalizer.hi, normalizer.lo)
    least = weight[0]
    for a in range(1, count):
        least = vmin(weight[a], least)
    if sizeof(elem) == sizeof(real) and any_lane(lt(least, broadcast(LEAST_NORMAL))):
        mul_dd_in_place(x, LANES, count, normalizer.hi, normalizer.lo)
        for a in range(count):
            weight[a] = load(x + a * LANES)
    if result == SOFTMAX_ONE:
        for a in range(count):
            weight[a] = vselect(eq(weight[a], broadcast(NEARLY_ONE)), normalizer.one, weight[a])

cdef inline vreal normal_result_of(int result, const Shift* s, const Normalizer* normalizer, bint scaled,
                                   vreal x) noexcept nogil:
    """x: the weight for SOFTMAX and SOFTMAX_ONE, the element itself for LOG_SOFTMAX. Not for subnormal results."""
    cdef vreal below, factor, score, score_lo, difference, rest
    if result == SOFTMAX:
        return mul_dd(x, normalizer.hi, normalizer.lo)
    if result == SOFTMAX_ONE:
        x = mul_dd(x, normalizer.hi, normalizer.lo)
        return vselect(eq(x, broadcast(NEARLY_ONE)), normalizer.one, x)
    if not scaled:
        return (x - normalizer.hi) - normalizer.lo
    # From top: (x - top) / temperature - (hi + lo). Neither term is positive, so nothing cancels. The sum is rounded
    # once, so that larger scores never come out smaller. SHRINK keeps x - row_max, and the halves of two_prod_err,
    # from overflow. From 0, where x / temperature is a real: the arithmetic of rows without a temperature.
    below = fma_(x, s.shrink, -s.origin)
    factor = s.factor / s.shrink
    score = below * factor
    score_lo = two_prod_err(below, factor, score) + below * (s.factor_lo / s.shrink)
    difference = score - normalizer.hi
    rest = vselect(from_zero(s), broadcast(0), two_sum_err(score, -normalizer.hi, difference)) + (score_lo
                                                                                                 - normalizer.lo)
    return difference + vselect(lt(vabs(rest), broadcast(INFINITY)), rest, broadcast(0))  # an infinite score has no rest

cdef inline vreal result_of(int result, const Shift* s, const Normalizer* normalizer, bint scaled,
                            vreal x) noexcept nogil:
    if result != LOG_SOFTMAX and any_subnormal(x, normalizer):
        x = mul_dd_rounded_once(x, normalizer.hi, normalizer.lo)
        return vselect(eq(x, broadcast(NEARLY_ONE)), normalizer.one, x) if result == SOFTMAX_ONE else x
    return normal_result_of(result, s, normalizer, scaled, x)

cdef struct TileWorkspace:                      # one thread's tile
    real[BLOCK * PARTIALS] p                    # weights are f + p * f
    real[BLOCK * PARTIALS] f
    real[PARTIALS * PARTIALS] total             # running sums, a line for each partial sum: see add_weights
    real[PARTIALS * PARTIALS] lost
    real[PARTIALS * PARTIALS] rest
    vdd[PARTIALS * PARTIAL_REGS] weights        # of the chunks before
    vdd[PARTIALS * PARTIAL_REGS] moments

cdef struct RowWorkspace:                       # one thread's buffers
    real* weights_buf                           # weights of a row; elements, then weights, of a tile's rows
    elem* elements                              # CHUNK elements of a row with gaps
    TileWorkspace* tile
