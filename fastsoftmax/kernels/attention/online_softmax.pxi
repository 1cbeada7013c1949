# The online softmax (Milakov and Gimelshein, 2018): scores become weights, and the state of their rows is updated.
#
# A state over some of the keys is (row_max, row_sum), with the output that belongs to it: sums of exp(score - row_max)
# and of weighted values. States over different keys are merged by bringing both to the larger maximum. A block of keys
# is such a state too, at the maximum of all keys so far; so are the splits of decode. merge_state serves them all.

cdef struct OnlineState:                    # of a register of rows
    vreal row_max
    vreal row_sum                           # of the weights; the output is divided by it
    vreal excess, excess_rest               # row_sum - 1, without cancellation; if these keys reach row_max
    vreal moment, moment_rest               # of weight * log(weight)

cdef inline OnlineState state_of_sink(vreal sink) noexcept nogil:
    """Before any key: a sink is a score without a value; -inf is none."""
    cdef OnlineState state
    state.row_max = sink
    state.row_sum = zero_where(eq(sink, broadcast(-INFINITY)), broadcast(1))
    state.excess = state.excess_rest = state.moment = state.moment_rest = broadcast(0)
    return state

cdef inline vreal finite_or_zero(vreal row_max) noexcept nogil:
    """The maximum that scores are measured from: where all are -inf, -inf minus -inf would be NaN."""
    return select_or_zero(lt(broadcast(-INFINITY), row_max), row_max)

cdef inline void merge_state(bint statistics, bint moments, bint is_block, const OnlineState* other, OnlineState* state,
                             vreal* rescale, vreal* other_rescale) noexcept nogil:
    """`state` becomes that over the keys of both. rescale and other_rescale: the factors of their outputs.

    is_block: other.row_max is the larger of both, so that other_rescale is 1, and not computed.
    """
    cdef vreal row_max = other.row_max if is_block else vmax(state.row_max, other.row_max)
    cdef vreal shift = finite_or_zero(row_max), log_rescale, other_log_rescale, excess, one, moment
    cdef vmask at_max, other_at_max
    log_rescale = vmax(broadcast(LEAST_EXPONENT), state.row_max - shift)
    rescale[0] = exp_(log_rescale)
    other_log_rescale, other_rescale[0] = broadcast(0), broadcast(1)
    if not is_block:
        other_log_rescale = vmax(broadcast(LEAST_EXPONENT), other.row_max - shift)
        other_rescale[0] = exp_(other_log_rescale)
    if statistics:
        at_max, other_at_max = eq(state.row_max, row_max), eq(other.row_max, row_max)
        excess = other.excess if is_block else vselect(other_at_max, other.excess, other.row_sum * other_rescale[0])
        state.excess = vselect(at_max, state.excess, state.row_sum * rescale[0])
        state.excess_rest = select_or_zero(at_max, state.excess_rest) + (
            other.excess_rest if is_block else select_or_zero(other_at_max, other.excess_rest))
        add_to(&state.excess, &state.excess_rest, excess)
        # where both have left out a 1, only one of these is to be left out
        one = select_or_zero(both(both(at_max, other_at_max), lt(broadcast(-INFINITY), row_max)), broadcast(1))
        add_to(&state.excess, &state.excess_rest, one)
    if moments:
        state.moment = rescale[0] * fma_(state.row_sum, log_rescale, state.moment)
        moment = other.moment if is_block else other_rescale[0] * fma_(other.row_sum, other_log_rescale, other.moment)
        state.moment_rest = fma_(rescale[0], state.moment_rest,
                                 other.moment_rest if is_block else other_rescale[0] * other.moment_rest)
        add_to(&state.moment, &state.moment_rest, moment)
    state.row_sum = fma_(state.row_sum, rescale[0],
                         other.row_sum if is_block else other.row_sum * other_rescale[0])
    state.row_max = row_max

# The sums of a block's weights, while they are made.
cdef struct BlockSums:                      # of a register of rows, or of a register's lanes of one row
    vreal row_sum
    vreal moment, moment_rest               # of weight * log(weight)
    vreal others, others_rest               # row_sum without the weights of 1
    vreal ones                              # how many these are

cdef inline BlockSums no_sums() noexcept nogil:
    cdef BlockSums sums
    sums.row_sum = sums.moment = sums.moment_rest = sums.others = sums.others_rest = sums.ones = broadcast(0)
    return sums

cdef inline void add_weight(bint statistics, bint moments, vreal d, vreal weight, BlockSums* sums) noexcept nogil:
    """To the sums but row_sum. d: the weight's logarithm."""
    cdef vmask largest
    if statistics:
        largest = eq(d, broadcast(0))
        add_to(&sums.others, &sums.others_rest, zero_where(largest, weight))
        sums.ones = sums.ones + select_or_zero(largest, broadcast(1))
    if moments:
        add_to(&sums.moment, &sums.moment_rest, weight * vmax(broadcast(LEAST_EXPONENT), d))

cdef inline void exp_and_sum_run(int columns, Py_ssize_t count, bint statistics, bint moments, const vreal* shift,
                                 real* scores, BlockSums* sums) noexcept nogil:
    """scores (count, columns) of registers, count <= WEIGHT_RUN, become weights, which are summed."""
    cdef vreal[COLUMNS] row_sum
    cdef vreal d, weight
    cdef real* score
    cdef Py_ssize_t j
    cdef int c
    for c in range(columns):
        row_sum[c] = broadcast(0)
    for j in range(count):
        for c in range(columns):
            score = scores + (j * columns + c) * LANES
            d = load(score) - shift[c]
            weight = exp_(d)
            store(score, weight)
            row_sum[c] = row_sum[c] + weight
            add_weight(statistics, moments, d, weight, &sums[c])
    for c in range(columns):
        sums[c].row_sum = sums[c].row_sum + row_sum[c]

cdef inline void exp_and_sum_scores(int columns, Py_ssize_t skipped, Py_ssize_t count, bint statistics, bint moments,
                                    const vreal* shift, real* scores, BlockSums* sums) noexcept nogil:
    """scores (count, columns) of registers become weights. skipped: registers of the block before these. Runs end at
    multiples of WEIGHT_RUN in the block, so that they do not depend on what was skipped."""
    cdef Py_ssize_t j = 0, run
    while j < count:
        run = min(count - j, WEIGHT_RUN - (skipped + j) % WEIGHT_RUN)
        exp_and_sum_run(columns, run, statistics, moments, shift, scores + j * columns * LANES, sums)
        j += run

cdef inline OnlineState state_of_block(bint statistics, vreal row_max, const BlockSums* sums) noexcept nogil:
    """row_max: of all keys so far. Where this block does not reach it, `ones` is 0, and so the excess is below 0."""
    cdef OnlineState block
    block.row_max, block.row_sum = row_max, sums.row_sum
    block.moment, block.moment_rest = sums.moment, sums.moment_rest
    block.excess, block.excess_rest = sums.others, sums.others_rest
    if statistics:
        add_to(&block.excess, &block.excess_rest,
               sums.ones - select_or_zero(lt(broadcast(-INFINITY), row_max), broadcast(1)))
    return block

cdef inline vreal finalize_rows(const AttentionParams* params, const OnlineState* state, vreal* lse,
                                vreal* entropy) noexcept nogil:
    """1 / row_sum; where asked for, lse = row_max + log(1 + excess) and entropy = log(1 + excess) - moment / (1 +
    excess), in nats. A row that saw nothing has 0, -inf and 0."""
    cdef vreal hi, lo
    cdef vdd logarithm
    cdef vmask empty = eq(state.row_sum, broadcast(0))
    cdef vreal inverse = zero_where(empty, broadcast(1) / state.row_sum)
    lse[0] = entropy[0] = broadcast(0)
    if has_statistics(params):
        logarithm = dd_log1p(dd_of_sum(state.excess, state.excess_rest))
        dd_split_sum(state.row_max, broadcast(0), logarithm, &hi, &lo)
        lse[0] = vselect(empty, broadcast(-INFINITY), hi)
        dd_split(logarithm, &hi, &lo)
        entropy[0] = zero_where(empty, hi - (state.moment + state.moment_rest)
                                / (broadcast(1) + (state.excess + state.excess_rest)))
    return inverse
