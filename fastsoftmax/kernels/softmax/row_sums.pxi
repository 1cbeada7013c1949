# Sums of weights with twice the digits of a real, for one register.
#
# Compensated summation: the rounding error of each addition is computed exactly and added to `lost` (FastTwoSum,
# Dekker; TwoSum, Knuth). A weight is f + p * f, which is more accurate than its rounded value. The p * f are so small
# that they may be rounded: `rest` sums them, and joins the total once a RUN. exp4.h has the bound of this error.
#
# Where the largest weight is nearly all of a row, what the others add is in `lost` alone. If they are alike, so are the
# rounding errors of `lost`, which then do not cancel. So the errors of four terms are added to each other first. In
# long rows the small weights may be a large part of the sum: there `lost` begins anew after each half of a RUN, and
# both halves join a double-word sum.
#
# A fast sum (is_fast_sum) starts at START, above every term, so that FastTwoSum, three operations, finds the error;
# `lost` then holds the digits far below START, rounded to a real. In rows longer than BASES_MIN a weight may exceed 1,
# and the sum starts at LONG_START. log_softmax needs log1p of the sum without the largest weight.
# SUM_EXCLUDING_MAX is the fast version of this sum, and so is SUM_KEEPING_WEIGHTS. It is accurate if it exceeds
# n * 2**-LEAST; below that the row is summed again by SUM_EXACT, which starts at 0 and uses TwoSum, six operations.

cdef enum:
    START = 8               # times SCALE: above every f and every rest
    LONG_START = 256        # the same in rows longer than BASES_MIN
    LEAST = 18              # 2**-LEAST: in units of the largest weight

cdef inline vreal start_of(SumKind sum, Py_ssize_t n) noexcept nogil:
    """n: the length of the row."""
    if sum == SUM_WEIGHTS:
        return broadcast(<real>(START if n <= BASES_MIN else LONG_START) * SCALE)
    return broadcast(START * SCALE) if is_fast_sum(sum) else broadcast(0)

cdef inline vreal add_exactly(SumKind sum, vreal* total, vreal term) noexcept nogil:
    """Returns the rounding error."""
    cdef vreal before = total[0]
    total[0] = before + term
    return fast_two_sum_err(before, term, total[0]) if is_fast_sum(sum) else two_sum_err(before, term, total[0])

cdef inline void add_rest(SumKind sum, vreal* total, vreal* lost, vreal* rest) noexcept nogil:
    if RUN > UNROLL:
        lost[0] = lost[0] + add_exactly(sum, total, rest[0])
        rest[0] = broadcast(0)

cdef inline bint has_half_runs(Py_ssize_t n) noexcept nogil:
    """n: the length of the row."""
    return n > BASES_MIN and RUN > UNROLL

cdef inline void end_half_run(vreal* lost, vreal* half) noexcept nogil:
    half[0], lost[0] = lost[0], broadcast(0)

cdef inline void end_run(SumKind sum, bint halves, vreal* total, vreal* lost, vreal* rest, vreal* half,
                         vdd* runs) noexcept nogil:
    """halves: has_half_runs(n). runs: what was lost in the runs of a chunk so far."""
    add_rest(sum, total, lost, rest)
    if halves:
        runs[0] = dd_add(runs[0], dd_from(half[0] + lost[0]))
        half[0] = lost[0] = broadcast(0)

cdef inline vdd sum_of_chunk(SumKind sum, Py_ssize_t n, bint halves, vreal total, vreal lost, vreal half,
                             vdd runs) noexcept nogil:
    total = total - start_of(sum, n)
    if halves:
        return dd_add(runs, dd_of_sum(total, half + lost))
    return dd_of_sum(total, lost)

cdef inline vreal sum_of_products(const vreal* p, const vreal* f) noexcept nogil:
    return fma_(p[3], f[3], fma_(p[2], f[2], fma_(p[1], f[1], p[0] * f[0])))

cdef inline void add_weights(SumKind sum, vreal* total, vreal* lost, vreal* rest, const vreal* p,
                             const vreal* f) noexcept nogil:
    """Adds the four f to the total, and their p * f to the rest."""
    cdef vreal products = broadcast(0) if ADDS_TERMS else sum_of_products(p, f)
    cdef vreal error = add_exactly(sum, total, f[0])
    cdef int a
    for a in range(1, 4):
        error = error + add_exactly(sum, total, f[a])
    lost[0] = lost[0] + error
    if RUN == UNROLL:
        lost[0] = lost[0] + add_exactly(sum, total, products)
    elif ADDS_TERMS:
        for a in range(4):
            rest[0] = fma_(p[a], f[a], rest[0])
    else:
        rest[0] = rest[0] + products

cdef inline void exclude_max(SumKind sum, const Shift* s, vreal x, vreal* f, vcount* ties) noexcept nogil:
    """Makes the weights of the largest elements 0, and counts these elements in `ties`. SUM_EXACT and SUM_MOMENTS also
    exclude elements that are too small for a weight; SUM_EXCLUDING_MAX need not, since their effect is below its error.
    """
    cdef vmask tie = eq(x, s.row_max)
    if may_be_inaccurate(sum):
        f[0] = zero_where(tie, f[0])
        ties[0] = count_where(tie, ties[0])
    elif sum != SUM_WEIGHTS:
        f[0] = select_or_zero(is_other(s, x), f[0])
        ties[0] = count_where(tie, ties[0])

cdef inline vdd sum_of_step(const vreal* p, const vreal* f) noexcept nogil:
    """The sum of a row of at most UNROLL elements."""
    cdef vreal pf = sum_of_products(p, f)
    return dd_add(dd_add(dd_of_sum(f[0], f[1]), dd_of_sum(f[2], f[3])), dd_of_sum(pf, broadcast(0)))

# The sum of a row of at most PARTIALS elements; `lost` is small beside `total`.
cdef struct ShortRow:
    vreal total, lost

cdef inline ShortRow sum_of_short_row(SumKind sum, const real* p, const real* f, Py_ssize_t n) noexcept nogil:
    """The sum in every lane, in the order of short_sums. p and f hold zeros from n to a multiple of four."""
    cdef ShortRow short_row
    cdef vreal[4] p_, f_
    cdef vreal rest = broadcast(0)
    cdef Py_ssize_t step
    cdef int k
    short_row.total, short_row.lost = start_of(sum, n), broadcast(0)
    for step in range(ceil_div(n, 4)):
        for k in range(4):
            p_[k] = broadcast(p[4 * step + k])
            f_[k] = broadcast(f[4 * step + k])
        add_weights(sum, &short_row.total, &short_row.lost, &rest, p_, f_)
        add_rest(sum, &short_row.total, &short_row.lost, &rest)
    short_row.total = short_row.total - start_of(sum, n)
    return short_row

# The sums of a row, or of a chunk of it, in PARTIALS parts.
cdef struct Sums:
    vdd[PARTIAL_REGS] weights
    vdd[PARTIAL_REGS] moments                   # of weights * (scores - largest score), for SUM_MOMENTS
    vreal[PARTIAL_REGS] ties                    # the number of elements that equal the largest: see exclude_max
    bint finds_max                              # whether to find `largest`: only for SUM_WEIGHTS of plain rows
    vreal largest                               # the largest elements so far
    ShortRow short_row                          # replaces weights in a row of at most PARTIALS elements

cdef inline void clear(Sums* sums) noexcept nogil:
    cdef int v
    sums.finds_max, sums.largest = False, broadcast(-INFINITY)
    for v in range(PARTIAL_REGS):
        sums.weights[v] = dd_zero()
        sums.moments[v] = dd_zero()
        sums.ties[v] = broadcast(0)
