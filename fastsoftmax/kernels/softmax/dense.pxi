# One row at a time, its elements in the lanes.
#
# A row is taken in chunks: `gather_chunk` gives a chunk's elements one after another, from where they stand or, for
# rows with gaps or a mask, from a buffer. Three passes: the largest element; the sum of the weights, which
# are kept if they are the result; the results. One long row can be shared by threads, chunk by chunk.

cdef inline Shift shift_of(const Rows* rows, Py_ssize_t o, Py_ssize_t i, real row_max) noexcept nogil:
    cdef Shift s
    cdef double temperature
    if rows.scaled:
        temperature = rows.temperature[o * rows.temperature_outer + i * rows.temperature_inner]
        set_temperature(&s, broadcast(<real>temperature), broadcast(<real>(temperature - <real>temperature)))
    else:
        no_temperature(&s)
    set_row_max(&s, broadcast(row_max))
    return s

# The three passes over one chunk.

cdef inline real max_of_chunk(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start, Py_ssize_t count,
                              const RowWorkspace* workspace) noexcept nogil:
    return reduce_max(gather_chunk(rows, o, i, start, count, workspace.elements), count)

# Where the weights of a row of several chunks are kept: of whole chunks in place of their results, if these are reals
# one after another that stay in the caches.

cdef inline bint keeps_weights_in_place(const Rows* rows) noexcept nogil:
    return (rows.op == SOFTMAX and sizeof(elem) == sizeof(real) and rows.y_n == 1 and rows.where == NULL
            and not rows.nontemporal)

cdef inline bint keeps_weights(const Rows* rows, Py_ssize_t n) noexcept nogil:
    return n <= KEEP or keeps_weights_in_place(rows)

cdef inline real* chunk_weights_buf(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t n, Py_ssize_t start,
                                    const RowWorkspace* workspace) noexcept nogil:
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    if keeps_weights_in_place(rows) and start + CHUNK <= n:
        return <real*>(y + start)
    return same_alignment(y, workspace.weights_buf) + (start if n <= KEEP else 0)

cdef inline void sum_chunk(int sum, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start,
                           Py_ssize_t count, Py_ssize_t n, const Shift* s, const RowWorkspace* workspace,
                           Sums* sums) noexcept nogil:
    exp_and_sum_chunk(sum, rows.scaled, s, gather_chunk(rows, o, i, start, count, workspace.elements), count, n,
                      chunk_weights_buf(rows, o, i, n, start, workspace), sums)

cdef inline void write_chunk(int stored, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start,
                             Py_ssize_t count, Py_ssize_t n, const Shift* s, const Normalizer* normalizer,
                             const RowWorkspace* workspace) noexcept nogil:
    cdef const elem* x = NULL
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner + start * rows.y_n
    cdef real* weights_buf = chunk_weights_buf(rows, o, i, n, start, workspace)
    cdef Sums unused
    if rows.op != SOFTMAX or not keeps_weights(rows, n):
        x = gather_chunk(rows, o, i, start, count, workspace.elements)
    if rows.op == SOFTMAX and not keeps_weights(rows, n):
        clear(&unused)
        exp_and_sum_chunk(SUM_WEIGHTS, rows.scaled, s, x, count, rows.n, weights_buf, &unused)
    normalize_store_chunk(stored, rows.scaled, s, normalizer, weights_buf, x, y, rows.y_n, count, rows.nontemporal)

cdef real max_of_row(const Rows* rows, Py_ssize_t o, Py_ssize_t i, const RowWorkspace* workspace) noexcept nogil:
    cdef Py_ssize_t n = row_length(rows, i), chunk, start
    cdef real row_max = -INFINITY
    for chunk in range(ceil_div(n, CHUNK)):
        start = chunk * CHUNK
        row_max = max(row_max, max_of_chunk(rows, o, i, start, min(n - start, CHUNK), workspace))
    return row_max

cdef void sum_row(int sum, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t n, const Shift* s,
                  const RowWorkspace* workspace, Sums* sums) noexcept nogil:
    cdef Py_ssize_t chunk, start
    clear(sums)
    for chunk in range(ceil_div(n, CHUNK)):
        start = chunk * CHUNK
        sum_chunk(sum, rows, o, i, start, min(n - start, CHUNK), n, s, workspace, sums)

cdef real dense_row(const Rows* rows, Py_ssize_t r, real row_max, Py_ssize_t next_row,
                    const RowWorkspace* workspace) noexcept nogil:
    """Row r, whose largest element is `row_max`. Returns that of next_row: finding it here, before the results of row r
    are written, gives the processor something to do while it waits for the row's sum, and brings the next row near."""
    cdef Py_ssize_t o = r // rows.inner, i = r % rows.inner
    cdef Py_ssize_t n = row_length(rows, i), chunk, start
    cdef int sum, stored = rows.op
    cdef real next_max = -INFINITY
    cdef Shift s
    cdef Sums sums
    cdef Normalizer normalizer
    if n < rows.n:
        clear_elements(rows.y + o * rows.y_outer + i * rows.y_inner + n * rows.y_n, rows.y_n, rows.n - n,
                       rows.nontemporal)
    if n > 0:
        s = shift_of(rows, o, i, row_max)
        sum = first_sum(rows)
        sum_row(sum, rows, o, i, n, &s, workspace, &sums)
        if finalize(sum, rows, n, &s, &sums, &normalizer):
            if sum == SUM_WEIGHTS:
                stored = STORE_WEIGHTS_OR_ONE
            else:
                sum_row(SUM_EXACT, rows, o, i, n, &s, workspace, &sums)
                finalize(SUM_EXACT, rows, n, &s, &sums, &normalizer)
    if next_row != r:
        next_max = max_of_row(rows, next_row // rows.inner, next_row % rows.inner, workspace)
    if n == 0 or write_if_scalar(rows, o, i, row_max, &normalizer):
        return next_max
    for chunk in range(ceil_div(n, CHUNK)):
        start = chunk * CHUNK
        write_chunk(stored, rows, o, i, start, min(n - start, CHUNK), n, &s, &normalizer, workspace)
    return next_max

cdef void dense_rows(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                     const RowWorkspace* workspace) noexcept nogil:
    cdef Py_ssize_t r
    cdef real row_max
    if is_contiguous_unmasked(rows) and rows.op != ENTROPY:
        if rows.op == SOFTMAX:
            contiguous_unmasked_rows(SOFTMAX, rows, first_row, last_row, workspace)
        elif rows.op == LOG_SOFTMAX:
            contiguous_unmasked_rows(LOG_SOFTMAX, rows, first_row, last_row, workspace)
        else:
            contiguous_unmasked_rows(LOGSUMEXP, rows, first_row, last_row, workspace)
        return
    row_max = max_of_row(rows, first_row // rows.inner, first_row % rows.inner, workspace)
    for r in range(first_row, last_row + 1):
        row_max = dense_row(rows, r, row_max, min(r + 1, last_row), workspace)
