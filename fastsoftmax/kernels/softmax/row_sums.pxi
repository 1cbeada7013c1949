# A running sum that loses nothing: what rounding an addition loses is found exactly, and added up in `lost`.
# The weights come as f + p * f, which is more exact than their rounded sum. The p * f are so much smaller that they
# may be rounded when they are added up, in `rest`, which goes to the total once a RUN. The total starts at START, above
# everything that is added to it, so that the error takes three operations (Dekker); `lost` holds the digits far below
# START, rounded to a real. log_softmax needs log1p(sum excluding the maximum). SUM_EXCLUDING_MAX is a fast version of
# this sum, accurate where it exceeds n * 2**-LEAST; below that the row is summed again by SUM_EXACT: from zero, and
# with the error of each addition by six operations (Knuth).
cdef enum:
    START = 8               # times SCALE; above every f, and every rest
    LEAST = 18              # 2**-LEAST of the largest weight

cdef inline vreal start_of(SumKind sum) noexcept nogil:
    return broadcast(START * SCALE) if sum == SUM_WEIGHTS or sum == SUM_EXCLUDING_MAX else broadcast(0)

cdef inline void add_exactly(SumKind sum, vreal* total, vreal* lost, vreal term) noexcept nogil:
    cdef vreal before = total[0]
    total[0] = before + term
    if sum == SUM_WEIGHTS or sum == SUM_EXCLUDING_MAX:
        lost[0] = lost[0] + fast_two_sum_err(before, term, total[0])
    else:
        lost[0] = lost[0] + two_sum_err(before, term, total[0])

cdef inline void add_rest(SumKind sum, vreal* total, vreal* lost, vreal* rest) noexcept nogil:
    if RUN > UNROLL:
        add_exactly(sum, total, lost, rest[0])
        rest[0] = broadcast(0)

cdef inline void add_weights(SumKind sum, vreal* total, vreal* lost, vreal* rest, const vreal* p,
                             const vreal* f) noexcept nogil:
    """Adds the four f to the total, and the sum of their p * f to the rest."""
    cdef vreal pf = fma_(p[3], f[3], fma_(p[2], f[2], fma_(p[1], f[1], p[0] * f[0])))
    cdef int a
    for a in range(4):
        add_exactly(sum, total, lost, f[a])
    if RUN == UNROLL:
        add_exactly(sum, total, lost, pf)
    else:
        rest[0] = rest[0] + pf

cdef inline void exclude_max(SumKind sum, const Shift* s, vreal x, vreal* f, vcount* ties) noexcept nogil:
    """Excludes the largest elements from a logarithm's sum, and counts them. SUM_EXACT and SUM_MOMENTS exclude elements
    without weight too; SUM_EXCLUDING_MAX need not, since they add nothing that matters."""
    cdef vmask tie = eq(x, s.row_max)
    if sum == SUM_EXCLUDING_MAX:
        f[0] = zero_where(tie, f[0])
        ties[0] = count_where(tie, ties[0])
    elif sum != SUM_WEIGHTS:
        f[0] = select_or_zero(is_other(s, x), f[0])
        ties[0] = count_where(tie, ties[0])

cdef inline vdd sum_of_step(const vreal* p, const vreal* f) noexcept nogil:
    """The sum of a row that is one group."""
    cdef vreal pf = fma_(p[3], f[3], fma_(p[2], f[2], fma_(p[1], f[1], p[0] * f[0])))
    return dd_add(dd_add(dd_of_sum(f[0], f[1]), dd_of_sum(f[2], f[3])), dd_of_sum(pf, broadcast(0)))

# The sum of a row of at most PARTIALS elements, whose lost part is small beside it.
cdef struct ShortRow:
    vreal total, lost

cdef inline ShortRow sum_of_short_row(SumKind sum, const real* p, const real* f, Py_ssize_t n) noexcept nogil:
    """In every lane; as short_sums has it. Up to the next multiple of four, elements that weigh nothing follow."""
    cdef ShortRow short_row
    cdef vreal[4] p_, f_
    cdef vreal rest = broadcast(0)
    cdef Py_ssize_t turn
    cdef int k
    short_row.total, short_row.lost = start_of(sum), broadcast(0)
    for turn in range(ceil_div(n, 4)):
        for k in range(4):
            p_[k] = broadcast(p[4 * turn + k])
            f_[k] = broadcast(f[4 * turn + k])
        add_weights(sum, &short_row.total, &short_row.lost, &rest, p_, f_)
        add_rest(sum, &short_row.total, &short_row.lost, &rest)
    short_row.total = short_row.total - start_of(sum)
    return short_row

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
