# States of pieces of rows, and results of pieces from the states of their whole rows.
#
# A caller that holds a row in pieces, the chunks of an array larger than memory, calls row_states for each piece,
# merges the states (../../_states.py), and then calls rows_from_states for each piece with the state of the whole row.
#
# A state is three doubles, in units of the largest weight:
#
#   row_max     the largest element
#   others      the sum of all weights but one of the largest
#   surprise    the sum of weight * (largest score - score); 0 if it is not asked for
#
# A piece without an element above -inf has no weight, (-inf, -1, 0), and one with a NaN has row_max NaN. The sums are
# those of LOG_SOFTMAX and ENTROPY, with the same error; of the weights, those of SOFTMAX.

cdef struct StateRows:
    Rows rows                                   # op LOGSUMEXP: to states; SOFTMAX or LOG_SOFTMAX: from them
    Rows scaled_rows                            # the same, with `scaled` set: see measure_from_max
    double* states
    Py_ssize_t states_outer, states_inner       # strides in doubles
    bint surprise

cdef inline double* row_state(const StateRows* a, const Row* row) noexcept nogil:
    return a.states + row.o * a.states_outer + row.i * a.states_inner

cdef inline bint is_regular(double row_max) noexcept nogil:
    return -INFINITY < row_max < INFINITY

cdef inline void measure_from_max(Shift* s) noexcept nogil:
    """Makes the normalizer of a row log1p(others), without row_max: see logarithm_of, which looks if it is `scaled`."""
    s.shrink = broadcast(SHRINK)

# To states.

cdef void store_row_state(const StateRows* a, const Row* row, double row_max, double log_hi, double log_lo,
                          double entropy_hi, double entropy_lo) noexcept nogil:
    """From log_hi + log_lo = log1p(others), and the entropy of the row, log1p(others) + surprise / (1 + others)."""
    cdef double* state = row_state(a, row)
    cdef double others = expm1(log_hi)
    others += (1 + others) * log_lo
    state[0] = NAN if isnan(others) else row_max
    state[1] = others
    state[2] = max((entropy_hi - log_hi) + (entropy_lo - log_lo), <double>0) * (1 + others) if a.surprise else 0

cdef void store_special_state(const StateRows* a, const Row* row, double row_max) noexcept nogil:
    """Of a row whose largest element is not finite."""
    cdef double* state = row_state(a, row)
    cdef Py_ssize_t k
    for k in range(row.n):
        if isnan(real_of(row.x + k * a.rows.x_n)):
            row_max = NAN
    state[0], state[1], state[2] = row_max, -1 if row_max == -INFINITY else 0, 0

cdef void sums_to_normalizer(SumKind sum, const StateRows* a, const Row* row, const Shift* s,
                             const RowWorkspace* workspace, Normalizer* normalizer) noexcept nogil:
    cdef Sums sums
    sum_row(sum, &a.rows, row, s, workspace, &sums)
    if finalize(sum, True, row.n, s, &sums, normalizer):
        sum_row(SUM_EXACT, &a.rows, row, s, workspace, &sums)
        finalize(SUM_EXACT, True, row.n, s, &sums, normalizer)

cdef void dense_state(const StateRows* a, const Row* row, const RowWorkspace* workspace) noexcept nogil:
    cdef Normalizer logarithm, entropy
    cdef Shift s
    cdef real row_max = max_of_row(&a.rows, row, workspace)
    if not is_regular(row_max):
        store_special_state(a, row, row_max)
        return
    s = shift_of(&a.rows, row, row_max)
    measure_from_max(&s)
    sums_to_normalizer(SUM_EXCLUDING_MAX, a, row, &s, workspace, &logarithm)
    entropy = logarithm
    if a.surprise:
        sums_to_normalizer(SUM_MOMENTS, a, row, &s, workspace, &entropy)
    store_row_state(a, row, row_max, lane0(logarithm.hi), lane0(logarithm.lo), lane0(entropy.hi), lane0(entropy.lo))

cdef void state_tile(const StateRows* a, const TilePosition* position, const RowWorkspace* workspace) noexcept nogil:
    cdef vreal[PARTIAL_REGS] row_max
    cdef Shift[PARTIAL_REGS] s
    cdef Normalizer[PARTIAL_REGS] logarithm, exact, entropy
    cdef vmask[PARTIAL_REGS] needs_refinement, unused
    cdef real[PARTIALS] maxima, log_hi, log_lo, entropy_hi, entropy_lo
    cdef Row row
    cdef Py_ssize_t c
    for c in range(PARTIAL_REGS):
        row_max[c] = broadcast(-INFINITY)
    load_blocks(&a.rows, position, workspace, NULL, row_max)
    for c in range(PARTIAL_REGS):
        s[c] = tile_shift(&a.rows, position, <int>c, a.rows.scaled, row_max[c])
        measure_from_max(&s[c])
    sum_tile(SUM_EXCLUDING_MAX, &a.scaled_rows, position, NULL, s, workspace, logarithm, needs_refinement)
    if any_column(needs_refinement):
        sum_tile(SUM_EXACT, &a.scaled_rows, position, NULL, s, workspace, exact, unused)
        select_refined(needs_refinement, exact, logarithm)
    if a.surprise:
        sum_tile(SUM_MOMENTS, &a.scaled_rows, position, NULL, s, workspace, entropy, unused)
    for c in range(PARTIAL_REGS):
        store(maxima + c * LANES, row_max[c])
        store(log_hi + c * LANES, logarithm[c].hi)
        store(log_lo + c * LANES, logarithm[c].lo)
        store(entropy_hi + c * LANES, entropy[c].hi if a.surprise else logarithm[c].hi)
        store(entropy_lo + c * LANES, entropy[c].lo if a.surprise else logarithm[c].lo)
    for c in range(position.tile_rows):
        row = row_of(&a.rows, position.first.o, position.first.i + c)
        if is_regular(maxima[c]):
            store_row_state(a, &row, maxima[c], log_hi[c], log_lo[c], entropy_hi[c], entropy_lo[c])
        else:
            store_special_state(a, &row, maxima[c])

# From states.

cdef inline Normalizer normalizer_from_state(Op op, const Shift* s, bint scaled, vreal others,
                                             vreal others_lo) noexcept nogil:
    """others: of the whole row, as the sum of two reals."""
    cdef Normalizer normalizer
    cdef vdd others_ = dd_of_sum(others, others_lo), one = dd_of_sum(broadcast(1), broadcast(0))
    cdef vreal p, f
    if op == LOG_SOFTMAX:
        return logarithm_of(s, scaled, others_)
    largest_weight(s, scaled, &p, &f)
    dd_split(dd_div(dd_div(one, dd_of_sum(f, p * f)), dd_add(one, others_)), &normalizer.hi, &normalizer.lo)
    return normalizer

cdef void special_from_state(const StateRows* a, const Row* row, double row_max) noexcept nogil:
    """Results of a row whose largest element is not finite: NaN, but for the logarithms of finite scores below +inf."""
    cdef Py_ssize_t k
    for k in range(row.n):
        row.y[k * a.rows.y_n] = elem_of(
            -INFINITY if a.rows.op == LOG_SOFTMAX and row_max == INFINITY
            and real_of(row.x + k * a.rows.x_n) < INFINITY else NAN)

cdef void dense_from_state(const StateRows* a, const Row* row, const RowWorkspace* workspace) noexcept nogil:
    cdef const Rows* rows = &a.rows
    cdef const double* state = row_state(a, row)
    cdef StoreKind stored = first_store(rows.op)
    cdef real others = <real>state[1]
    cdef Normalizer normalizer
    cdef Shift s
    cdef Sums unused
    cdef Py_ssize_t start = 0, count
    clear_hidden(rows, row)
    if not is_regular(state[0]):
        special_from_state(a, row, state[0])
        return
    s = shift_of(rows, row, <real>state[0])
    normalizer = normalizer_from_state(rows.op, &s, rows.scaled, broadcast(others),
                                       broadcast(<real>(state[1] - <double>others)))
    if (rows.op == SOFTMAX and any_lane(may_be_nearly_one(&normalizer, row.n))
            and find_one(&s, rows.scaled, &normalizer)):
        stored = STORE_WEIGHTS_OR_ONE
    while start < row.n:
        count = min(row.n - start, <Py_ssize_t>CHUNK)
        if rows.op == SOFTMAX:
            clear(&unused)
            sum_chunk(SUM_WEIGHTS, rows, row, start, count, &s, workspace, &unused)
            normalize_store_chunk(stored, rows.scaled, &s, &normalizer, chunk_weights_buf(rows, row, start, workspace),
                                  NULL, row.y + start * rows.y_n, rows.y_n, count, rows.nontemporal)
        else:
            store_chunk(stored, rows, row, start, count, &s, &normalizer, workspace)
        start += count

cdef void tile_from_states(const StateRows* a, const TilePosition* position,
                           const RowWorkspace* workspace) noexcept nogil:
    cdef const Rows* rows = &a.rows
    cdef StoreKind stored = first_store(rows.op)
    cdef real[PARTIALS] maxima, others, others_lo
    cdef vreal[PARTIAL_REGS] row_max
    cdef Shift[PARTIAL_REGS] s
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef vmask[PARTIAL_REGS] nearly_one
    cdef vcount[PARTIAL_REGS] ties
    cdef const double* state
    cdef real* x = workspace.weights_buf
    cdef Row row
    cdef Py_ssize_t c, j = 0, count
    cdef bint special = False
    for c in range(PARTIALS):
        maxima[c] = others[c] = others_lo[c] = 0
        if c < position.tile_rows:
            row = row_of(rows, position.first.o, position.first.i + c)
            state = row_state(a, &row)
            maxima[c], others[c] = <real>state[0], <real>state[1]
            others_lo[c] = <real>(state[1] - <double>others[c])
            special |= not is_regular(state[0])
    if special:
        for c in range(position.tile_rows):
            row = row_of(rows, position.first.o, position.first.i + c)
            dense_from_state(a, &row, workspace)
        return
    for c in range(PARTIAL_REGS):
        ties[c] = no_count()
        row_max[c] = load(maxima + c * LANES)
        s[c] = tile_shift(rows, position, <int>c, rows.scaled, row_max[c])
    for c in range(PARTIAL_REGS):               # a loop of its own, whose loads do not wait for tile_shift's stores
        normalizer[c] = normalizer_from_state(rows.op, &s[c], rows.scaled, load(others + c * LANES),
                                              load(others_lo + c * LANES))
        nearly_one[c] = may_be_nearly_one(&normalizer[c], rows.n)
    if rows.op == SOFTMAX and find_ones(s, rows.scaled, nearly_one, normalizer):
        stored = STORE_WEIGHTS_OR_ONE
    while j < rows.n:
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        load_tile(rows, position, j, count, x, row_max)
        if rows.op == SOFTMAX:                  # the weights; the sums are not used
            start_chunk(SUM_WEIGHTS, rows.n, workspace.tile)
            exp_and_sum_block(SUM_WEIGHTS, rows.scaled, registers_in_use(position), s, count, x, 0, workspace.tile,
                              ties)
        normalize_store_tile(stored, rows, position, j, count, s, normalizer, x)
        j += BLOCK

# Tasks.

cdef struct StateTasks:
    const StateRows* a
    bint in_tiles
    Py_ssize_t size
    const RowWorkspace* workspaces

cdef Py_ssize_t state_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const StateTasks* tasks = <const StateTasks*>context
    cdef const StateRows* a = tasks.a
    cdef const RowWorkspace* workspace = &tasks.workspaces[thread]
    cdef Py_ssize_t start = task * tasks.size, stop = start + tasks.size, r
    cdef bint to_states = is_reduction(a.rows.op)
    cdef TilePosition position
    cdef Row row
    if tasks.in_tiles:
        for r in range(start, min(stop, a.rows.outer * tiles_of(&a.rows))):
            position = tile_position(&a.rows, r)
            if to_states:
                state_tile(a, &position, workspace)
            else:
                tile_from_states(a, &position, workspace)
    else:
        for r in range(start, min(stop, a.rows.outer * a.rows.inner)):
            row = row_at(&a.rows, r)
            if to_states:
                dense_state(a, &row, workspace)
            else:
                dense_from_state(a, &row, workspace)
    if a.rows.nontemporal:
        stream_end()
    return 1

cdef StateRows describe_states(Rows rows, const double[:, :] states, bint surprise) noexcept:
    cdef StateRows a
    a.rows, a.surprise = rows, surprise
    a.states = <double*>&states[0, 0]           # written to for LOGSUMEXP alone
    a.states_outer = states.strides[0] // <Py_ssize_t>sizeof(double)
    a.states_inner = states.strides[1] // <Py_ssize_t>sizeof(double)
    return a

cdef int compute_states(StateRows* a, int threads) except -1:
    cdef StateTasks tasks
    cdef Workspaces memory = Workspaces()
    cdef Py_ssize_t row_size = a.rows.n, row_count, size
    if a.rows.inner == 1 and not a.rows.causal:
        outer_to_inner(&a.rows)
        a.states_inner = a.states_outer
    tasks.a, tasks.in_tiles = a, not a.rows.causal and uses_tiles(&a.rows)
    row_count, size = a.rows.outer * a.rows.inner, a.rows.n if a.rows.n <= KEEP else CHUNK
    if tasks.in_tiles:
        a.rows.peel = tile_peel(&a.rows)
        row_size, row_count = a.rows.n * PARTIALS, a.rows.outer * tiles_of(&a.rows)
        size = tile_buffer(&a.rows)
    a.scaled_rows = a.rows
    a.scaled_rows.scaled = True
    memory.reserve(threads, size, False, tasks.in_tiles)
    tasks.workspaces = memory.workspaces
    tasks.size = max(1, task_size(row_count * row_size, threads) // row_size)
    return run_tasks(state_task, &tasks, ceil_div(row_count, tasks.size), max(1, SLICE // (tasks.size * row_size)),
                     threads, IN_SHARES)

def row_states(const elem[:, :, :] x, const double[:, :] temperature, offset, double[:, :] states, bint surprise,
               int threads):
    """Writes the state of each row of x (outer, n, inner) along n to three doubles, the first of which is that of
    states (outer, inner). temperature (outer, inner) and the causal offset may be None, as in softmax_rows. No
    dimension is 0."""
    cdef StateRows a = describe_states(describe(LOGSUMEXP, x, None, temperature, None, offset, False), states, surprise)
    compute_states(&a, threads)

def rows_from_states(int op, const elem[:, :, :] x, elem[:, :, :] y, const double[:, :] temperature, offset,
                     const double[:, :] states, int threads, bint nontemporal):
    """Writes the results of x (outer, n, inner), pieces of rows, to y: SOFTMAX or LOG_SOFTMAX with the states of the
    whole rows, which are only read. The rest as in row_states."""
    cdef StateRows a = describe_states(describe(<Op>op, x, y, temperature, None, offset, nontemporal), states, False)
    compute_states(&a, threads)
