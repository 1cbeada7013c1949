# The usual case: contiguous rows of one chunk, neither masked nor scaled. The same as dense_row, in one piece: what is
# asked only once a row then costs nothing each time, which is a third of the time of 200 elements.

cdef inline bint is_contiguous_unmasked(const Rows* rows) noexcept nogil:
    return rows.x_n == 1 and rows.y_n == 1 and rows.where == NULL and not rows.scaled and rows.n <= CHUNK

cdef inline void contiguous_unmasked_rows(int op, const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                                          const RowWorkspace* workspace) noexcept nogil:
    cdef int sum = SUM_WEIGHTS if op == SOFTMAX else SUM_EXCLUDING_MAX
    cdef Py_ssize_t o = first_row // rows.inner, i = first_row % rows.inner, r
    cdef Py_ssize_t n = row_length(rows, i), next_n = n
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner
    cdef const elem* next_x = x
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    cdef elem* next_y = y
    cdef real* weights_buf
    cdef real row_max = reduce_max(x, n), next_max
    cdef vreal ties
    cdef vmask needs_refinement
    cdef Prefetch ahead
    cdef Shift s
    cdef Sums sums
    cdef Normalizer normalizer
    cdef int v
    for r in range(first_row, last_row + 1):
        if r < last_row and (r + 1) % rows.inner:
            i += 1
            next_x, next_y, next_n = x + rows.x_inner, y + rows.y_inner, row_length(rows, i)
        elif r < last_row:
            o, i = o + 1, 0
            next_x, next_y, next_n = rows.x + o * rows.x_outer, rows.y + o * rows.y_outer, row_length(rows, 0)
        else:
            next_n = 0
        if n > 0 and (op == SOFTMAX or -INFINITY < row_max < INFINITY):
            ahead.x, ahead.y = next_x, x if op == LOGSUMEXP or rows.nontemporal else y
            no_temperature(&s)
            set_row_max(&s, broadcast(row_max))
            clear(&sums)
            weights_buf = same_alignment(y, workspace.weights_buf)
            if lane0(s.center) == 0:
                exp_and_sum(sum, &s, False, False, x, n, n, weights_buf, &ahead, &sums)
            else:
                exp_and_sum(sum, &s, False, True, x, n, n, weights_buf, &ahead, &sums)
            ties = sums.ties[0]
            for v in range(1, PARTIAL_REGS):
                ties = ties + sums.ties[v]
            normalizer = dense_normalizer(sum, n, False, &s, &sums, hsum(ties) if sum == SUM_EXCLUDING_MAX else ties,
                                          &needs_refinement)
            next_max = reduce_max(next_x, next_n)
            if sum == SUM_EXCLUDING_MAX and any_lane(needs_refinement):
                refine_sum(rows, r, &s, workspace, &normalizer)
            if op == LOGSUMEXP:
                y[0] = elem_of(lane0(normalizer.hi + normalizer.lo))
            elif op == SOFTMAX and any_lane(needs_refinement) and find_one(&s, False, &normalizer):
                normalize_store_chunk(STORE_WEIGHTS_OR_ONE, False, &s, &normalizer, weights_buf, x, y, 1, n,
                                      rows.nontemporal)
            else:
                normalize_store(op, &s, &normalizer, False, weights_buf, x, y, 1, n, rows.nontemporal)
        else:
            next_max = reduce_max(next_x, next_n)
            dense_row(rows, r, row_max, r, workspace)
        if op == SOFTMAX and n < rows.n:
            clear_elements(y + n, 1, rows.n - n, rows.nontemporal)
        x, y, n, row_max = next_x, next_y, next_n, next_max

cdef void refine_sum(const Rows* rows, Py_ssize_t r, const Shift* s, const RowWorkspace* workspace,
                     Normalizer* normalizer) noexcept nogil:
    cdef Sums sums
    sum_row(SUM_EXACT, rows, r // rows.inner, r % rows.inner, rows.n, s, workspace, &sums)
    finalize(SUM_EXACT, rows, rows.n, s, &sums, normalizer)
