# --- the sums of the weights of a block, and what was found before

cdef struct BlockSums:                      # of a register of rows, or of a register's lanes of one row
    vreal row_sum
    vreal moment, moment_rest               # of weight * log(weight)
    vreal others, others_rest               # the total without the weights of 1
    vreal ones                              # how many these are

cdef inline void exp_and_sum_run(int columns, Py_ssize_t count, bint statistics, bint moments, const vreal* shift,
                                 real* scores, BlockSums* sums) noexcept nogil:
    """scores (count, columns) of registers, count <= WEIGHT_RUN, become weights, which are added up."""
    cdef vreal[COLUMNS] row_sum
    cdef vreal d, weight
    cdef vmask largest
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
            if statistics:
                largest = eq(d, broadcast(0))
                add_to(&sums[c].others, &sums[c].others_rest, zero_where(largest, weight))
                sums[c].ones = sums[c].ones + select_or_zero(largest, broadcast(1))
            if moments:
                add_to(&sums[c].moment, &sums[c].moment_rest, weight * vmax(broadcast(LEAST_EXPONENT), d))
    for c in range(columns):
        sums[c].row_sum = sums[c].row_sum + row_sum[c]

cdef inline void online_softmax_tile(int columns, Py_ssize_t skipped, Py_ssize_t count, bint statistics, bint moments,
                                     real* scores, QueryTile* tile) noexcept nogil:
    """Scores become weights, and what was found before is brought to the new top."""
    cdef vreal[COLUMNS] row_max, shift
    cdef BlockSums[COLUMNS] sums
    cdef vreal log_rescale, rescale
    cdef vmask unchanged
    cdef Py_ssize_t j, run
    cdef int c
    for c in range(columns):
        row_max[c] = tile.row_max[c]
        sums[c].row_sum = sums[c].ones = broadcast(0)
        sums[c].moment = sums[c].moment_rest = sums[c].others = sums[c].others_rest = broadcast(0)
    for j in range(count):
        for c in range(columns):
            row_max[c] = vmax(row_max[c], load(scores + (j * columns + c) * LANES))
    for c in range(columns):
        # -inf minus -inf would be NaN
        shift[c] = vselect(lt(broadcast(-INFINITY), row_max[c]), row_max[c], broadcast(0))
    j = 0
    while j < count:                            # in runs that end at multiples of WEIGHT_RUN in the block
        run = min(count - j, WEIGHT_RUN - (skipped + j) % WEIGHT_RUN)
        exp_and_sum_run(columns, run, statistics, moments, shift, scores + j * columns * LANES, sums)
        j += run
    for c in range(columns):
        log_rescale = vmax(broadcast(LEAST_EXPONENT), tile.row_max[c] - shift[c])
        rescale = exp_(log_rescale)
        if statistics:
            unchanged = eq(tile.row_max[c], row_max[c])
            tile.excess[c] = vselect(unchanged, tile.excess[c], tile.row_sum[c] * rescale)
            tile.excess_rest[c] = select_or_zero(unchanged, tile.excess_rest[c]) + sums[c].others_rest
            add_to(&tile.excess[c], &tile.excess_rest[c], sums[c].others)
            add_to(&tile.excess[c], &tile.excess_rest[c], sums[c].ones - zero_where(unchanged, broadcast(1)))
        if moments:
            tile.moment[c] = rescale * fma_(tile.row_sum[c], log_rescale, tile.moment[c])
            tile.moment_rest[c] = fma_(rescale, tile.moment_rest[c], sums[c].moment_rest)
            add_to(&tile.moment[c], &tile.moment_rest[c], sums[c].moment)
        tile.row_sum[c] = fma_(tile.row_sum[c], rescale, sums[c].row_sum)
        tile.rescale[c] = rescale
        tile.row_max[c] = row_max[c]

# --- what comes of it

cdef inline vreal finalize_rows(const AttentionParams* params, vreal row_max, vreal row_sum, vreal excess,
                                vreal excess_rest, vreal moment, vreal* lse, vreal* entropy) noexcept nogil:
    """1 / total; where asked for, lse = top + log(total) and entropy = log(total) - moment / total, in nats.

    total is the fast sum that the weights are divided by; for the other two it is 1 + excess.
    """
    cdef vreal hi, lo
    cdef vdd logarithm
    cdef vmask nothing = eq(row_sum, broadcast(0))
    cdef vreal inverse = vselect(nothing, broadcast(0), broadcast(1) / row_sum)
    lse[0] = entropy[0] = broadcast(0)
    if has_statistics(params):
        logarithm = dd_log1p(dd_of_sum(excess, excess_rest))
        dd_split_sum(row_max, broadcast(0), logarithm, &hi, &lo)
        lse[0] = vselect(nothing, broadcast(-INFINITY), hi)
        dd_split(logarithm, &hi, &lo)
        entropy[0] = vselect(nothing, broadcast(0), hi - moment / (broadcast(1) + (excess + excess_rest)))
    return inverse
