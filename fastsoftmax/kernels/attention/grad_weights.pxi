# From scores and dP to the weights P and to dS = P * (dP - delta), for one block of keys and one tile of queries.
#
# lse is rounded, so all weights of a row are off by one factor: by 4 ULP if lse is 8 and off by half an ULP. Their sum
# and the sink's weight, together 1, show it. A row that sees no other block of keys is put right at once, and delta
# with it: it becomes the sum of P * dP, whose rounding errors are those of dS, so that they cancel where few keys have
# all the weight. For other rows the sum is known too late for dkey and dvalue; dquery_task divides dquery by it.
#
# A sum that is farther from 1 than the rounding of lse explains says that lse counts keys that this call does not
# have, as when each process has some of the keys (Liu et al., 2023). It corrects nothing.

cdef struct GradRowConstants:               # of the rows of a tile
    vreal[COLUMNS] lse, delta, grad_lse
    vreal[COLUMNS] sink_weight
    vreal[COLUMNS] whole                    # 1 for rows that see no other block of keys, else 0
    bint any_whole

cdef struct WeightSums:                     # of a tile's rows
    vreal[COLUMNS] sum, rest                # of weights, as the sum of two numbers
    vreal[COLUMNS] grads                    # of dS

cdef inline vreal error_of_sum(vreal row_sum, vreal rest, vreal sink_weight) noexcept nogil:
    return ((row_sum - broadcast(1)) + sink_weight) + rest

cdef inline vmask is_rounding_of(vreal lse, vreal error) noexcept nogil:
    """Whether this error of a sum of weights comes from the rounding of lse; False for rows that saw nothing."""
    cdef vreal unit = broadcast(1.2e-7 if sizeof(real) == sizeof(float) else 2.3e-16)
    return lt(vabs(error), vmin(broadcast(0.25), unit * fma_(broadcast(2), vabs(lse), broadcast(4))))

cdef inline void weights_and_grads_run(int columns, int c, Py_ssize_t count, const GradRowConstants* rows,
                                       real* weights, real* grads, WeightSums* sums) noexcept nogil:
    """One column: the constants of several would not fit into registers."""
    cdef vreal lse = rows.lse[c], delta = rows.delta[c], sum_ = broadcast(0), grad_sum = broadcast(0)
    cdef vreal score, weight, grad, below, rest
    cdef vmask hidden
    cdef Py_ssize_t j, at
    for j in range(count):
        at = (j * columns + c) * LANES
        score = load(weights + at)
        hidden = eq(score, broadcast(-INFINITY))
        below = score - lse
        rest = zero_where(eq(below, broadcast(-INFINITY)), two_sum_err(score, -lse, below))
        weight = exp_(vmin(broadcast(1), below))                # exp_ is valid to 1; rounding may put a score above lse
        weight = zero_where(hidden, fma_(weight, rest, weight))
        sum_ = sum_ + weight
        store(weights + at, weight)
        grad = zero_where(hidden, weight * (load(grads + at) - delta))
        store(grads + at, grad)
        grad_sum = grad_sum + grad
    add_to(&sums.sum[c], &sums.rest[c], sum_)
    sums.grads[c] = sums.grads[c] + grad_sum

cdef inline void weights_and_grads(int columns, Py_ssize_t skipped, Py_ssize_t count, const GradRowConstants* rows,
                                   real* weights, real* grads, WeightSums* sums) noexcept nogil:
    """weights: scores, which become P; grads: dP, which become dS. Both are (count, columns) registers. skipped: keys
    of the block before these; runs of WEIGHT_RUN do not depend on it.

    The rounding of score - lse is made good, since lse may be far larger than the maximum that softmax subtracts.
    """
    cdef Py_ssize_t j = 0, run
    cdef int c
    for c in range(columns):
        sums.sum[c] = sums.rest[c] = sums.grads[c] = broadcast(0)
    while j < count:
        run = min(count - j, WEIGHT_RUN - (skipped + j) % WEIGHT_RUN)
        for c in range(columns):
            weights_and_grads_run(columns, c, run, rows, weights + j * columns * LANES, grads + j * columns * LANES,
                                  sums)
        j += run

cdef void correct_whole_rows(int columns, Py_ssize_t count, const GradRowConstants* rows, real* weights, real* grads,
                             WeightSums* sums) noexcept nogil:
    """P, dS and the sum of weights of the rows that see no other block: with the sink's weight, the sum is 1."""
    cdef vreal error, share, sink_weight, delta, weight, grad
    cdef vmask corrects
    cdef Py_ssize_t j, at
    cdef int c
    for c in range(columns):
        error = error_of_sum(sums.sum[c], sums.rest[c], rows.sink_weight[c])
        corrects = both(is_rounding_of(rows.lse[c], error), lt(broadcast(0), rows.whole[c]))
        share = select_or_zero(corrects, error / (broadcast(1) + error))    # of the weights, too much
        # to be added to delta: the sum of P * dP is that of dS and delta * (1 - sink_weight)
        sink_weight = fma_(-rows.sink_weight[c], share, rows.sink_weight[c])
        delta = fma_(-sums.grads[c], share, sums.grads[c]) - fma_(rows.delta[c], sink_weight, rows.grad_lse[c])
        delta = select_or_zero(both(corrects, lt(vabs(delta), broadcast(INFINITY))), delta)
        sums.sum[c] = vselect(corrects, broadcast(1), sums.sum[c])
        sums.rest[c] = vselect(corrects, -rows.sink_weight[c], sums.rest[c])
        for j in range(count):
            at = (j * columns + c) * LANES
            weight, grad = load(weights + at), load(grads + at)
            weight = fma_(-weight, share, weight)
            store(weights + at, weight)
            store(grads + at, fma_(-weight, delta, fma_(-grad, share, grad)))
