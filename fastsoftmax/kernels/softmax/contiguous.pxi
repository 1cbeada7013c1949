# Contiguous rows of at most a chunk, without mask and temperature: the usual case.
#
# The passes are those of dense_row, in one function for SOFTMAX and one for both logarithms. dense_row tests the
# options for each row, which would be a third of the time of a row of 200 elements.

cdef inline bint is_contiguous_unmasked(const Rows* rows) noexcept nogil:
    return (rows.x_n == 1 and (rows.y_n == 1 or is_reduction(rows.op)) and rows.where == NULL and not rows.scaled
            and rows.n <= CHUNK and rows.op != ENTROPY)

cdef inline Py_ssize_t distance_ahead(const Rows* rows) noexcept nogil:
    """Elements from the following row to that which is prefetched: memory takes as long as about CHUNK elements, and
    the last-level cache as long as three short rows. 0 where the array may be in the L2 cache: prefetched so early, a
    row may leave the L1 cache before it is read."""
    if rows.n > DELAYED_MAX:
        return (CHUNK // rows.n - 1) * rows.x_inner if rows.nontemporal else 0
    return 2 * rows.x_inner if rows.outer * rows.inner * rows.n > FAR_ELEMENTS else 0

cdef inline real contiguous_unmasked_row(Op op, const Rows* rows, const Row* row, real row_max, const Row* following,
                                         Py_ssize_t distance, const RowWorkspace* workspace) noexcept nogil:
    """dense_row for a row that has a finite maximum, or any for SOFTMAX. Returns the largest of the following row."""
    cdef SumKind sum = first_sum(op)
    cdef real* weights_buf = same_alignment(row.y, workspace.weights_buf)
    cdef real next_max
    cdef vmask needs_refinement
    cdef Prefetch ahead
    cdef Shift s
    cdef Sums sums
    cdef Normalizer normalizer
    ahead.x = following.x + distance
    ahead.y = row.x if rows.op == LOGSUMEXP or rows.nontemporal else row.y
    no_temperature(&s)
    set_row_max(&s, broadcast(row_max))
    clear(&sums)
    exp_and_sum_row(sum, &s, row.x, row.n, weights_buf, &ahead, &sums)
    normalizer = dense_normalizer(sum, row.n, False, &s, &sums, &needs_refinement)
    next_max = reduce_max(following.x, following.n)
    if sum == SUM_EXCLUDING_MAX and any_lane(needs_refinement):
        refine_sum(rows, row[0], &s, workspace, &normalizer)
    if op != SOFTMAX and rows.op == LOGSUMEXP:
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
    cdef Py_ssize_t distance = distance_ahead(rows), r
    for r in range(first_row, last_row + 1):
        if r < last_row:
            next_row(rows, &following)
        else:
            following.n = 0
        if row.n > 0 and (op == SOFTMAX or -INFINITY < row_max < INFINITY):
            next_max = contiguous_unmasked_row(op, rows, &row, row_max, &following, distance, workspace)
        else:
            next_max = reduce_max(following.x, following.n)
            single_row(rows, row, row_max, workspace)
        row, row_max = following, next_max

# softmax of rows so short that two of them and their weights are in the L1 cache. Each is stored after the exp of the
# next one, so that neither waits: by then the normalizer of the one and the maximum of the other are known.

cdef inline bint is_delayed(const Rows* rows) noexcept nogil:
    """Two rows need twice the weights_buf. Rows that are stored past the caches took longer so."""
    return rows.op == SOFTMAX and rows.n <= DELAYED_MAX and not rows.nontemporal

cdef struct SummedRow:                          # a row that is not yet stored
    Row row
    real* weights_buf
    Shift s
    Sums sums
    Normalizer normalizer
    vmask needs_refinement

cdef inline void sum_contiguous_row(const Rows* rows, const Row* row, real row_max, const Row* following,
                                    Py_ssize_t distance, real* weights_buf, SummedRow* summed) noexcept nogil:
    """Pass 2."""
    cdef Prefetch ahead
    cdef Shift s
    summed.row, summed.weights_buf = row[0], same_alignment(row.y, weights_buf)
    ahead.x, ahead.y = following.x + distance, row.x if rows.nontemporal else row.y
    no_temperature(&s)
    set_row_max(&s, broadcast(row_max))
    clear(&summed.sums)
    exp_and_sum_row(SUM_WEIGHTS, &s, row.x, row.n, summed.weights_buf, &ahead, &summed.sums)
    summed.s = s

cdef inline void store_contiguous_row(const Rows* rows, SummedRow* summed) noexcept nogil:
    cdef const Row* row = &summed.row
    if any_lane(summed.needs_refinement) and find_one(&summed.s, False, &summed.normalizer):
        normalize_store_chunk(STORE_WEIGHTS_OR_ONE, False, &summed.s, &summed.normalizer, summed.weights_buf, row.x,
                              row.y, 1, row.n, rows.nontemporal)
    else:
        normalize_store(STORE_WEIGHTS, &summed.s, &summed.normalizer, False, summed.weights_buf, row.x, row.y, 1,
                        row.n, rows.nontemporal)
    clear_hidden(rows, row)

cdef void delayed_softmax(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                          const RowWorkspace* workspace) noexcept nogil:
    cdef Row row = row_at(rows, first_row), following = row
    cdef real row_max = reduce_max(row.x, row.n), next_max
    cdef real* weights_buf = workspace.weights_buf
    cdef real* other_buf = weights_buf + rows.n + UNROLL + LANES  # the last step writes whole registers
    cdef SummedRow[2] summed
    cdef SummedRow* now = summed
    cdef SummedRow* before = summed + 1
    cdef bint is_usual, was_usual = False
    cdef Py_ssize_t distance = distance_ahead(rows), r
    for r in range(first_row, last_row + 2):
        if r < last_row:
            next_row(rows, &following)
        else:
            following.n = 0
        is_usual = r <= last_row and row.n > 0
        if is_usual:
            sum_contiguous_row(rows, &row, row_max, &following, distance, weights_buf, now)
        next_max = reduce_max(following.x, following.n)
        if was_usual:
            store_contiguous_row(rows, before)
        if is_usual:
            now.normalizer = dense_normalizer(SUM_WEIGHTS, row.n, False, &now.s, &now.sums, &now.needs_refinement)
        elif r <= last_row:
            single_row(rows, row, row_max, workspace)
        row, row_max, was_usual = following, next_max, is_usual
        weights_buf, other_buf = other_buf, weights_buf
        now, before = before, now

# log_softmax and logsumexp of several rows at once, a group. Each pass goes over all of its rows, so that no row waits
# for its maximum or its sum. Between the passes, the constants of all rows and the logarithms of their sums are
# computed at once, each in a lane.

cdef enum:
    GROUP_ELEMENTS = 4096                       # so that the group is in the L1 cache

cdef inline bint is_far(const Rows* rows) noexcept nogil:
    """Whether the array may be beyond the L2 cache. In a nearer one, prefetches cost a twentieth of the
    time (Zen 3)."""
    return rows.outer * rows.inner * rows.n > NEAR_ELEMENTS

cdef inline bint is_grouped(const Rows* rows) noexcept nogil:
    """Rows of at most PARTIALS elements have sums of another kind."""
    return rows.op != SOFTMAX and PARTIALS < rows.n <= GROUP_ELEMENTS // 3

cdef struct RowGroup:
    Py_ssize_t count
    Row[PARTIALS] row
    Shift[PARTIAL_REGS] s                       # here each row has a lane
    dd_numbers weights                          # and from here on a number
    real[PARTIALS] maxima, centers, limits, rounders, shrinks, origins, ties, his, los

cdef inline Shift group_shift(const RowGroup* group, Py_ssize_t k) noexcept nogil:
    """The constants of row k, in every lane."""
    cdef Shift s
    no_temperature(&s)
    s.row_max, s.center = broadcast(group.maxima[k]), broadcast(group.centers[k])
    s.limit, s.rounder = broadcast(group.limits[k]), broadcast(group.rounders[k])
    s.shrink, s.origin = broadcast(group.shrinks[k]), broadcast(group.origins[k])
    return s

cdef inline bint start_group(const Rows* rows, Py_ssize_t first_row, Py_ssize_t count, RowGroup* group) noexcept nogil:
    """Pass 1. Returns whether all maxima are finite."""
    cdef bint finite = True
    cdef Py_ssize_t k
    cdef int c
    group.count = count
    group.row[0] = row_at(rows, first_row)
    for k in range(count, PARTIALS):
        group.maxima[k] = 0
    for k in range(count):
        if k > 0:
            group.row[k] = group.row[k - 1]
            next_row(rows, &group.row[k])
        group.maxima[k] = reduce_max(group.row[k].x, rows.n)
        finite &= -INFINITY < group.maxima[k] < INFINITY
    for c in range(PARTIAL_REGS):
        no_temperature(&group.s[c])
        set_row_max(&group.s[c], load(group.maxima + c * LANES))
        store(group.centers + c * LANES, group.s[c].center)
        store(group.limits + c * LANES, group.s[c].limit)
        store(group.rounders + c * LANES, group.s[c].rounder)
        store(group.shrinks + c * LANES, group.s[c].shrink)
        store(group.origins + c * LANES, group.s[c].origin)
    return finite

cdef inline void sum_group(const Rows* rows, const RowWorkspace* workspace, RowGroup* group) noexcept nogil:
    """Pass 2."""
    cdef Py_ssize_t k
    cdef Prefetch ahead
    cdef Sums sums
    cdef Shift s
    cdef vreal ties
    cdef int c
    for k in range(group.count, PARTIALS):      # lanes without a row: a sum of 1
        dd_put(&group.weights, k, dd_of_sum(broadcast(1), broadcast(0)))
        group.ties[k] = 1
    for k in range(group.count):
        s = group_shift(group, k)
        clear(&sums)
        ahead.x = group.row[k].x + group.count * rows.x_inner
        ahead.y = group.row[k].x if rows.op == LOGSUMEXP or rows.nontemporal else group.row[k].y
        exp_and_sum_row(SUM_EXCLUDING_MAX, &s, group.row[k].x, rows.n, workspace.weights_buf,
                        &ahead if is_far(rows) else NULL, &sums)
        dd_put(&group.weights, k, dd_total(sums.weights))
        ties = sums.ties[0]
        for c in range(1, PARTIAL_REGS):
            ties = ties + sums.ties[c]
        group.ties[k] = lane0(hsum_exact(ties))

cdef inline void finalize_group(const Rows* rows, const RowWorkspace* workspace, RowGroup* group) noexcept nogil:
    cdef vmask[PARTIAL_REGS] needs_refinement
    cdef real[PARTIALS] refined
    cdef Normalizer normalizer
    cdef vdd weights
    cdef Shift s
    cdef Py_ssize_t k
    cdef int c
    for c in range(PARTIAL_REGS):
        weights = dd_get(&group.weights, c)
        normalizer = normalizer_of(SUM_EXCLUDING_MAX, &group.s[c], False, False, rows.n, weights, weights,
                                   load(group.ties + c * LANES), &needs_refinement[c])
        store(group.his + c * LANES, normalizer.hi)
        store(group.los + c * LANES, normalizer.lo)
        store(refined + c * LANES, select_or_zero(needs_refinement[c], broadcast(1)))
    if any_column(needs_refinement):
        for k in range(group.count):
            if refined[k] != 0:
                s = group_shift(group, k)
                refine_sum(rows, group.row[k], &s, workspace, &normalizer)
                group.his[k], group.los[k] = lane0(normalizer.hi), lane0(normalizer.lo)

cdef inline void store_group(const Rows* rows, const RowGroup* group) noexcept nogil:
    """Pass 3."""
    cdef Normalizer normalizer
    cdef Shift s
    cdef Py_ssize_t k
    for k in range(group.count):
        if rows.op == LOGSUMEXP:
            group.row[k].y[0] = elem_of(group.his[k] + group.los[k])
            continue
        s = group_shift(group, k)
        normalizer.hi, normalizer.lo = broadcast(group.his[k]), broadcast(group.los[k])
        normalize_store(STORE_LOGS, &s, &normalizer, False, NULL, group.row[k].x, group.row[k].y, 1, rows.n,
                        rows.nontemporal)

cdef void grouped_logarithms(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                             const RowWorkspace* workspace) noexcept nogil:
    cdef RowGroup group
    cdef Py_ssize_t r = first_row, count = min(GROUP_ELEMENTS // rows.n, <Py_ssize_t>PARTIALS)
    while r <= last_row:
        count = min(count, last_row + 1 - r)
        if start_group(rows, r, count, &group):
            sum_group(rows, workspace, &group)
            finalize_group(rows, workspace, &group)
            store_group(rows, &group)
        else:
            logarithms_loop(rows, r, r + count - 1, workspace)
        r += count

# One function for each case, so that the compiler makes each its own loop. They are called by a pointer: as parts of
# one function, they would have fewer of its registers.
ctypedef void (*RowsLoop)(const Rows*, Py_ssize_t, Py_ssize_t, const RowWorkspace*) noexcept nogil

cdef void softmax_loop(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                       const RowWorkspace* workspace) noexcept nogil:
    contiguous_unmasked_loop(SOFTMAX, rows, first_row, last_row, workspace)

cdef void logarithms_loop(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                          const RowWorkspace* workspace) noexcept nogil:
    contiguous_unmasked_loop(LOG_SOFTMAX, rows, first_row, last_row, workspace)

cdef inline RowsLoop loop_of(const Rows* rows) noexcept nogil:
    if rows.op == SOFTMAX:
        return delayed_softmax if is_delayed(rows) else softmax_loop
    return grouped_logarithms if is_grouped(rows) else logarithms_loop

cdef inline void contiguous_unmasked_rows(const Rows* rows, Py_ssize_t first_row, Py_ssize_t last_row,
                                          const RowWorkspace* workspace) noexcept nogil:
    loop_of(rows)(rows, first_row, last_row, workspace)
