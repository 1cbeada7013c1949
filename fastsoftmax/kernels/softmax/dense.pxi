# One row at a time, its elements in the lanes.
#
# A row is computed in chunks of CHUNK elements, in three passes: maximum, sum and store (see params.pxi). A pass reads
# the elements of a chunk one after another, where they are, or through a buffer if the row has gaps or a mask.

cdef inline Shift shift_of(const Rows* rows, const Row* row, real row_max) noexcept nogil:
    cdef Shift s
    cdef double temperature
    if rows.scaled:
        temperature = rows.temperature[row.o * rows.temperature_outer + row.i * rows.temperature_inner]
        set_temperature(&s, broadcast(<real>temperature), broadcast(<real>(temperature - <real>temperature)))
    else:
        no_temperature(&s)
    set_row_max(&s, broadcast(row_max))
    return s

# The weights of a row of several chunks are kept in workspace.weights_buf. Those of whole chunks are kept in y instead,
# if it has contiguous reals that are stored through the caches.

cdef inline bint keeps_weights_in_place(const Rows* rows) noexcept nogil:
    return (rows.op == SOFTMAX and sizeof(elem) == sizeof(real) and rows.y_n == 1 and rows.where == NULL
            and not rows.nontemporal)

cdef inline bint keeps_weights(const Rows* rows, Py_ssize_t n) noexcept nogil:
    return n <= KEEP or keeps_weights_in_place(rows)

cdef inline real* chunk_weights_buf(const Rows* rows, const Row* row, Py_ssize_t start,
                                    const RowWorkspace* workspace) noexcept nogil:
    if keeps_weights_in_place(rows) and start + CHUNK <= row.n:
        return <real*>(row.y + start)
    return same_alignment(row.y, workspace.weights_buf) + (start if row.n <= KEEP else 0)

# The three passes over one chunk, elements start .. start + count - 1 of a row.

cdef inline real max_of_chunk(const Rows* rows, const Row* row, Py_ssize_t start, Py_ssize_t count,
                              const RowWorkspace* workspace) noexcept nogil:
    return reduce_max(gather_chunk(rows, row, start, count, workspace.elements), count)

cdef void sum_chunk(SumKind sum, const Rows* rows, const Row* row, Py_ssize_t start, Py_ssize_t count, const Shift* s,
                    const RowWorkspace* workspace, Sums* sums) noexcept nogil:
    exp_and_sum_chunk(sum, rows.scaled, s, gather_chunk(rows, row, start, count, workspace.elements), count, row.n,
                      chunk_weights_buf(rows, row, start, workspace), NULL, sums)

cdef inline void store_chunk(StoreKind stored, const Rows* rows, const Row* row, Py_ssize_t start, Py_ssize_t count,
                             const Shift* s, const Normalizer* normalizer,
                             const RowWorkspace* workspace) noexcept nogil:
    cdef const elem* x = NULL
    cdef Sums unused
    if stored == STORE_LOGS:
        x = gather_chunk(rows, row, start, count, workspace.elements)
    elif not keeps_weights(rows, row.n):
        clear(&unused)
        sum_chunk(SUM_WEIGHTS, rows, row, start, count, s, workspace, &unused)
    normalize_store_chunk(stored, rows.scaled, s, normalizer, chunk_weights_buf(rows, row, start, workspace), x,
                          row.y + start * rows.y_n, rows.y_n, count, rows.nontemporal)

# The passes over one row.

cdef real max_of_row(const Rows* rows, const Row* row, const RowWorkspace* workspace) noexcept nogil:
    cdef Py_ssize_t chunk, start
    cdef real row_max = -INFINITY
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        row_max = max(row_max, max_of_chunk(rows, row, start, min(row.n - start, CHUNK), workspace))
    return row_max

cdef void sum_row(SumKind sum, const Rows* rows, const Row* row, const Shift* s, const RowWorkspace* workspace,
                  Sums* sums) noexcept nogil:
    cdef Py_ssize_t chunk, start
    clear(sums)
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        sum_chunk(sum, rows, row, start, min(row.n - start, CHUNK), s, workspace, sums)

cdef void refine_sum(const Rows* rows, Row row, const Shift* s, const RowWorkspace* workspace,
                     Normalizer* normalizer) noexcept nogil:
    """Computes the normalizer again by SUM_EXACT, where SUM_EXCLUDING_MAX was not accurate. `row` is a copy, so that
    the caller can keep its own in registers."""
    cdef Sums sums
    sum_row(SUM_EXACT, rows, &row, s, workspace, &sums)
    finalize(SUM_EXACT, rows.scaled, row.n, s, &sums, normalizer)

cdef inline StoreKind normalizer_of_row(const Rows* rows, const Row* row, const Shift* s,
                                        const RowWorkspace* workspace, Normalizer* normalizer) noexcept nogil:
    """Returns how to store the results."""
    cdef SumKind sum = first_sum(rows.op)
    cdef Sums sums
    sum_row(sum, rows, row, s, workspace, &sums)
    if not finalize(sum, rows.scaled, row.n, s, &sums, normalizer):
        return first_store(rows.op)
    if sum == SUM_WEIGHTS:
        return STORE_WEIGHTS_OR_ONE
    refine_sum(rows, row[0], s, workspace, normalizer)
    return first_store(rows.op)

cdef real dense_row(const Rows* rows, const Row* row, real row_max, const Row* following,
                    const RowWorkspace* workspace) noexcept nogil:
    """Computes a row whose largest element is row_max. Returns the largest element of the following row (or NULL):
    finding it before the results of this row are stored fills the wait for the sum, and loads the row into the cache.
    """
    cdef Py_ssize_t chunk, start
    cdef StoreKind stored = STORE_SCALAR
    cdef real next_max = -INFINITY
    cdef Shift s
    cdef Normalizer normalizer
    clear_hidden(rows, row)
    if row.n > 0:
        s = shift_of(rows, row, row_max)
        stored = normalizer_of_row(rows, row, &s, workspace, &normalizer)
    if following != NULL:
        next_max = max_of_row(rows, following, workspace)
    if row.n == 0 or store_if_scalar(rows, row, row_max, &normalizer):
        return next_max
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        store_chunk(stored, rows, row, start, min(row.n - start, CHUNK), &s, &normalizer, workspace)
    return next_max

cdef void single_row(const Rows* rows, Row row, real row_max, const RowWorkspace* workspace) noexcept nogil:
    """dense_row without a following row. `row` is a copy, as in refine_sum."""
    dense_row(rows, &row, row_max, NULL, workspace)

cdef void chunked_rows(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                       const RowWorkspace* workspace) noexcept nogil:
    cdef Row row, following = row_at(rows, first_row)
    cdef real row_max = max_of_row(rows, &following, workspace)
    cdef Py_ssize_t r
    for r in range(first_row, last_row):
        row = following
        next_row(rows, &following)
        row_max = dense_row(rows, &row, row_max, &following, workspace)
    dense_row(rows, &following, row_max, NULL, workspace)

cdef inline void dense_rows(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                            const RowWorkspace* workspace) noexcept nogil:
    if is_contiguous_unmasked(rows):
        contiguous_unmasked_rows(rows, first_row, last_row, workspace)
    else:
        chunked_rows(rows, first_row, last_row, workspace)
