# One row at a time, its elements in the lanes.
#
# A row is computed in chunks of CHUNK elements, in three passes: maximum, sum and store (see params.pxi). A pass reads
# the elements of a chunk one after another, where they are, or through a buffer if the row has gaps or a mask. The
# first two passes may be one: see max_and_sum_of_row.

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

cdef inline bint has_bases(const Rows* rows, Py_ssize_t n) noexcept nogil:
    """Whether a row of n elements may have another base than row_max."""
    return rows.op == SOFTMAX and not rows.scaled and n > BASES_MIN

# The bases of a row: see shift.pxi.
cdef struct RowBases:
    real first_max, row_max
    Py_ssize_t rebased                          # the first chunk from row_max; the number of chunks if none is

cdef inline int binary_exponent_between(const Rows* rows, const Row* row, const RowBases* bases) noexcept nogil:
    """The logarithm to base 2 of weights measured from row_max, in units of those from first_max."""
    cdef Shift first = shift_of(rows, row, bases.first_max), last = shift_of(rows, row, bases.row_max)
    return <int>(lane0(last.rounder) - lane0(first.rounder))

# The weights of a row of several chunks are kept in workspace.weights_buf. Those of whole chunks are kept in y instead,
# if it has contiguous reals that are stored through the caches.

cdef inline bint keeps_weights_in_place(const Rows* rows) noexcept nogil:
    if rows.op == CROSS_ENTROPY and rows.x == rows.y:       # which reads x again
        return False
    return (keeps_weights_of(first_sum(rows.op)) and sizeof(elem) == sizeof(real) and rows.y_n == 1
            and rows.where == NULL and not rows.nontemporal)

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

cdef inline void join_max_of_chunk(Py_ssize_t chunk, Py_ssize_t chunks, real largest, RowBases* bases) noexcept nogil:
    """Takes the maxima of the chunks in their order; those within reach may be left out."""
    if chunk == 0:
        bases.first_max, bases.row_max, bases.rebased = largest, largest, chunks
    bases.row_max = max(bases.row_max, largest)
    if bases.rebased == chunks and not any_lane(is_within_reach(broadcast(bases.first_max), broadcast(bases.row_max))):
        bases.rebased = chunk

cdef inline void finish_bases(RowBases* bases) noexcept nogil:
    if not any_lane(may_be_base(broadcast(bases.first_max), broadcast(bases.row_max))):
        bases.rebased = 0

cdef void bases_of_row(const Rows* rows, const Row* row, const RowWorkspace* workspace, RowBases* bases) noexcept nogil:
    """Pass 1 of a row that has bases."""
    cdef Py_ssize_t chunk, start, chunks = ceil_div(row.n, CHUNK)
    for chunk in range(chunks):
        start = chunk * CHUNK
        join_max_of_chunk(chunk, chunks, max_of_chunk(rows, row, start, min(row.n - start, CHUNK), workspace), bases)
    finish_bases(bases)

cdef real first_max_of_row(const Rows* rows, const Row* row, const RowWorkspace* workspace) noexcept nogil:
    """The largest element; of a row that has bases, that of its first chunk."""
    if has_bases(rows, row.n):
        return max_of_chunk(rows, row, 0, min(row.n, CHUNK), workspace)
    return max_of_row(rows, row, workspace)

cdef inline void sum_row(SumKind sum, const Rows* rows, const Row* row, const Shift* s, const RowWorkspace* workspace,
                         Sums* sums) noexcept nogil:
    cdef Py_ssize_t chunk, start
    clear(sums)
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        sum_chunk(sum, rows, row, start, min(row.n - start, CHUNK), s, workspace, sums)

cdef void refine_sum(const Rows* rows, Row row, const Shift* s, const RowWorkspace* workspace,
                     Normalizer* normalizer) noexcept nogil:
    """Computes the normalizer again by SUM_EXACT, where the first sum was not accurate. `row` is a copy, so that
    the caller can keep its own in registers."""
    cdef Sums sums
    sum_row(SUM_EXACT, rows, &row, s, workspace, &sums)
    finalize(SUM_EXACT, rows.scaled, row.n, s, &sums, normalizer)

cdef void rescale_weights(real* weights, Py_ssize_t count, real factor) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(count):
        weights[k] *= factor

cdef inline void rescale_sums(int exponent, Sums* sums) noexcept nogil:
    cdef vdd unit = dd_from(broadcast(<real>ldexp(1, -exponent)))
    cdef int v
    for v in range(PARTIAL_REGS):
        sums.weights[v] = dd_div(sums.weights[v], unit)

cdef void rescale_chunk(const Rows* rows, const Row* row, const RowBases* bases, Py_ssize_t chunk,
                        const RowWorkspace* workspace) noexcept nogil:
    """Multiplies the weights of a chunk before `rebased` by a power of two, which brings them to row_max."""
    if chunk < bases.rebased < ceil_div(row.n, CHUNK) and keeps_weights(rows, row.n):
        rescale_weights(chunk_weights_buf(rows, row, chunk * CHUNK, workspace), CHUNK,
                        <real>ldexp(1, binary_exponent_between(rows, row, bases)))

cdef void sum_row_from(Py_ssize_t chunk, const Rows* rows, const Row* row, const RowBases* bases,
                       const RowWorkspace* workspace, Shift* s, Sums* sums) noexcept nogil:
    """Pass 2 of a row that has bases: of this chunk and those after it. s and sums: of those before; s becomes that of
    the whole row."""
    cdef Py_ssize_t start
    if chunk == 0:
        clear(sums)
        s[0] = shift_of(rows, row, bases.first_max)
    while chunk < ceil_div(row.n, CHUNK):
        if chunk == bases.rebased:
            s[0] = shift_of(rows, row, bases.row_max)
            if chunk > 0:
                rescale_sums(binary_exponent_between(rows, row, bases), sums)
        start = chunk * CHUNK
        sum_chunk(SUM_WEIGHTS, rows, row, start, min(row.n - start, CHUNK), s, workspace, sums)
        chunk += 1
    s.row_max = broadcast(bases.row_max)

cdef inline bint overwrites_elements(const Rows* rows, const Row* row) noexcept nogil:
    """Whether the sum of the weights does: then their maximum must be known before."""
    return keeps_weights_in_place(rows) and row.x == row.y

cdef void max_and_sum_of_row(const Rows* rows, const Row* row, real first_max, const RowWorkspace* workspace,
                             RowBases* bases, Shift* s, Sums* sums) noexcept nogil:
    """Passes 1 and 2 in one, for a row that has bases. At the first chunk with an element too far above first_max, the
    maximum of the others is found, and pass 2 goes on from that chunk."""
    cdef Py_ssize_t chunk = 0, later, start, chunks = ceil_div(row.n, CHUNK)
    cdef Sums before
    if overwrites_elements(rows, row) or not any_lane(may_be_base(broadcast(first_max), broadcast(first_max))):
        bases_of_row(rows, row, workspace, bases)
        sum_row_from(0, rows, row, bases, workspace, s, sums)
        return
    s[0] = shift_of(rows, row, first_max)
    join_max_of_chunk(0, chunks, first_max, bases)
    clear(sums)
    sums.finds_max = True
    while chunk < chunks and bases.rebased == chunks:
        before = sums[0]
        start = chunk * CHUNK
        sum_chunk(SUM_WEIGHTS, rows, row, start, min(row.n - start, CHUNK), s, workspace, sums)
        if chunk > 0:
            join_max_of_chunk(chunk, chunks, hmax(sums.largest), bases)
        chunk += 1
    if bases.rebased < chunks:
        sums[0] = before
        chunk = bases.rebased
        for later in range(chunk + 1, chunks):
            start = later * CHUNK
            join_max_of_chunk(later, chunks, max_of_chunk(rows, row, start, min(row.n - start, CHUNK), workspace),
                              bases)
    sums.finds_max = False
    finish_bases(bases)
    sum_row_from(min(chunk, bases.rebased), rows, row, bases, workspace, s, sums)

cdef inline StoreKind finish_sum_of_row(SumKind sum, const Rows* rows, const Row* row, const Shift* s,
                                        const Sums* sums, const RowWorkspace* workspace,
                                        Normalizer* normalizer) noexcept nogil:
    """Returns how to store the results."""
    if not finalize(sum, rows.scaled, row.n, s, sums, normalizer):
        return first_store(rows.op)
    if sum == SUM_WEIGHTS:
        return STORE_WEIGHTS_OR_ONE
    refine_sum(rows, row[0], s, workspace, normalizer)
    return first_store(rows.op)

cdef inline StoreKind normalizer_of_row(const Rows* rows, const Row* row, const Shift* s,
                                        const RowWorkspace* workspace, Normalizer* normalizer) noexcept nogil:
    """Pass 2. Returns how to store the results."""
    cdef SumKind sum = first_sum(rows.op)
    cdef Sums sums
    sum_row(sum, rows, row, s, workspace, &sums)
    return finish_sum_of_row(sum, rows, row, s, &sums, workspace, normalizer)

cdef inline StoreKind max_and_normalizer_of_row(const Rows* rows, const Row* row, real first_max,
                                                const RowWorkspace* workspace, RowBases* bases, Shift* s,
                                                Normalizer* normalizer) noexcept nogil:
    """Passes 1 and 2. Returns how to store the results."""
    cdef Sums sums
    if not has_bases(rows, row.n):
        bases.row_max, bases.rebased = first_max, 0
        s[0] = shift_of(rows, row, first_max)
        return normalizer_of_row(rows, row, s, workspace, normalizer)
    max_and_sum_of_row(rows, row, first_max, workspace, bases, s, &sums)
    return finish_sum_of_row(SUM_WEIGHTS, rows, row, s, &sums, workspace, normalizer)

cdef real dense_row(const Rows* rows, const Row* row, real first_max, const Row* following,
                    const RowWorkspace* workspace) noexcept nogil:
    """Computes a row. first_max: see first_max_of_row. Returns that of the following row (or NULL): finding it before
    the results of this row are stored fills the wait for the sum, and loads the row into the cache."""
    cdef Py_ssize_t chunk, start
    cdef StoreKind stored = STORE_SCALAR
    cdef real next_max = -INFINITY
    cdef RowBases bases
    cdef Shift s
    cdef Normalizer normalizer
    clear_hidden(rows, row)
    if row.n > 0:
        stored = max_and_normalizer_of_row(rows, row, first_max, workspace, &bases, &s, &normalizer)
    if following != NULL:
        next_max = first_max_of_row(rows, following, workspace)
    if row.n == 0 or store_if_scalar(rows, row, bases.row_max, &normalizer):
        return next_max
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        rescale_chunk(rows, row, &bases, chunk, workspace)
        store_chunk(stored, rows, row, start, min(row.n - start, CHUNK), &s, &normalizer, workspace)
    return next_max

cdef void single_row(const Rows* rows, Row row, real first_max, const RowWorkspace* workspace) noexcept nogil:
    """dense_row without a following row. `row` is a copy, as in refine_sum."""
    dense_row(rows, &row, first_max, NULL, workspace)

cdef void chunked_rows(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                       const RowWorkspace* workspace) noexcept nogil:
    cdef Row row, following = row_at(rows, first_row)
    cdef real first_max = first_max_of_row(rows, &following, workspace)
    cdef Py_ssize_t r
    for r in range(first_row, last_row):
        row = following
        next_row(rows, &following)
        first_max = dense_row(rows, &row, first_max, &following, workspace)
    dense_row(rows, &following, first_max, NULL, workspace)

cdef inline void dense_rows(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                            const RowWorkspace* workspace) noexcept nogil:
    if is_contiguous_unmasked(rows):
        contiguous_unmasked_rows(rows, first_row, last_row, workspace)
    else:
        chunked_rows(rows, first_row, last_row, workspace)
