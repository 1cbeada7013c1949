# Contiguous rows of at most a chunk, without mask and temperature: the usual case.
#
# The passes are those of dense_row, in one function for each op. dense_row tests the options for each row, which would
# be a third of the time of a row of 200 elements.

cdef inline bint is_contiguous_unmasked(const Rows* rows) noexcept nogil:
    return (rows.x_n == 1 and rows.y_n == 1 and rows.where == NULL and not rows.scaled and rows.n <= CHUNK
            and rows.op != ENTROPY)

cdef inline real contiguous_unmasked_row(Op op, const Rows* rows, const Row* row, real row_max, const Row* following,
                                         const RowWorkspace* workspace) noexcept nogil:
    """dense_row for a row that has a finite maximum, or any for SOFTMAX. Returns the largest of the following row."""
    cdef SumKind sum = first_sum(op)
    cdef real* weights_buf = same_alignment(row.y, workspace.weights_buf)
    cdef real next_max
    cdef vmask needs_refinement
    cdef Prefetch ahead
    cdef Shift s
    cdef Sums sums
    cdef Normalizer normalizer
    ahead.x, ahead.y = following.x, row.x if op == LOGSUMEXP or rows.nontemporal else row.y
    no_temperature(&s)
    set_row_max(&s, broadcast(row_max))
    clear(&sums)
    exp_and_sum_chunk(sum, False, &s, row.x, row.n, row.n, weights_buf, &ahead, &sums)
    normalizer = dense_normalizer(sum, row.n, False, &s, &sums, &needs_refinement)
    next_max = reduce_max(following.x, following.n)
    if sum == SUM_EXCLUDING_MAX and any_lane(needs_refinement):
        refine_sum(rows, row[0], &s, workspace, &normalizer)
    if op == LOGSUMEXP:
        row.y[0] = elem_of(lane0(normalizer.hi + normalizer.lo))
    elif op == SOFTMAX and any_lane(needs_refinement) and find_one(&s, False, &normalizer):
        normalize_store_chunk(STORE_WEIGHTS_OR_ONE, False, &s, &normalizer, weights_buf, row.x, row.y, 1, row.n,
                              rows.nontemporal)
    else:
        normalize_store(first_store(op), &s, &normalizer, False, weights_buf, row.x, row.y, 1, row.n, rows.nontemporal)
    if op == SOFTMAX:
        clear_hidden(rows, row)
    return next_max

cdef inline void contiguous_unmasked_loop(Op op, const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                                          const RowWorkspace* workspace) noexcept nogil:
    cdef Row row = row_at(rows, first_row), following = row
    cdef real row_max = reduce_max(row.x, row.n), next_max
    cdef Py_ssize_t r
    for r in range(first_row, last_row + 1):
        if r < last_row:
            next_row(rows, &following)
        else:
            following.n = 0
        if row.n > 0 and (op == SOFTMAX or -INFINITY < row_max < INFINITY):
            next_max = contiguous_unmasked_row(op, rows, &row, row_max, &following, workspace)
        else:
            next_max = reduce_max(following.x, following.n)
            single_row(rows, row, row_max, workspace)
        row, row_max = following, next_max

cdef void contiguous_unmasked_rows(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                                   const RowWorkspace* workspace) noexcept nogil:
    # one call for each case, so that the compiler makes each its own loop
    if rows.op == SOFTMAX:
        contiguous_unmasked_loop(SOFTMAX, rows, first_row, last_row, workspace)
    elif rows.op == LOG_SOFTMAX:
        contiguous_unmasked_loop(LOG_SOFTMAX, rows, first_row, last_row, workspace)
    else:
        contiguous_unmasked_loop(LOGSUMEXP, rows, first_row, last_row, workspace)
