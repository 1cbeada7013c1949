# One long row, shared by threads: the passes of dense_row, each over all chunks before the next. Gradients and losses
# share the loop over the chunks.

cdef enum:
    PASSES_COST = TASK          # elements that take about as long as starting and joining the threads of three passes

cdef inline int row_threads(Py_ssize_t n, int threads) noexcept nogil:
    """The threads that share one row: more than one for each LONG_ROW elements would wait longer than they compute."""
    return <int>min(<Py_ssize_t>threads, max(n // LONG_ROW, 1))

cdef inline bint is_shared(const Rows* rows, Py_ssize_t row_count, int threads) noexcept nogil:
    """Whether threads share each row, not the rows: where an interrupt would wait for a row, and where rows are so few
    that threads would be idle for longer than it takes to start them anew for each pass of each row."""
    cdef int sharers = row_threads(rows.n, threads)
    if rows.n >= SLICE:
        return True
    return sharers > 1 and row_count * (rows.n // sharers + PASSES_COST) < ceil_div(row_count, threads) * rows.n

# One pass over the chunks of a row. Each thread has the same share of them in every pass. What a chunk gives does not
# depend on which thread computes it.

ctypedef void (*ChunkFunction)(const void* context, Py_ssize_t chunk, const RowWorkspace* workspace) noexcept nogil

cdef struct ChunkPass:
    ChunkFunction function
    const void* context
    Py_ssize_t start, stop, shares
    const RowWorkspace* workspaces

cdef Py_ssize_t chunk_pass_task(const void* context, Py_ssize_t share, int thread) noexcept nogil:
    """A chunk is too short for the clock to be read after each, so a task is a share of the chunks."""
    cdef const ChunkPass* now = <const ChunkPass*>context
    cdef Py_ssize_t chunk, chunks = now.stop - now.start
    cdef Py_ssize_t first = now.start + chunks * share // now.shares
    cdef Py_ssize_t last = now.start + chunks * (share + 1) // now.shares
    for chunk in range(first, last):
        now.function(now.context, chunk, &now.workspaces[thread])
    stream_end()                                # if there were non-temporal stores
    return last - first

cdef int run_pass(ChunkFunction function, const void* context, Py_ssize_t n, const RowWorkspace* workspaces,
                  ParallelRegion* region) except -1:
    """Runs `function` for the chunks of a row of n elements, and looks for an interrupt after each slice of them."""
    cdef ChunkPass now
    cdef Py_ssize_t chunks = ceil_div(n, CHUNK), size
    now.function, now.context, now.shares, now.workspaces = function, context, region.threads, workspaces
    now.stop = 0
    while now.stop < chunks:
        size = SLICE // CHUNK * (1 if is_serial(region) else region.threads)
        now.start, now.stop = now.stop, min(now.stop + size, chunks)
        with nogil:
            parallel_for(chunk_pass_task, &now, 0, now.shares, IN_FIXED_SHARES, region)
            if chunks > size:                   # a slice is then long enough to be measured by itself
                close_region(region)
        PyErr_CheckSignals()
    return 0

cdef enum:                                      # the passes of a long row, in this order
    PASS_NONE = 0
    PASS_MAX = 1                                # left out where PASS_SUM finds the maxima: see start_row
    PASS_SUM = 2                                # twice, if SUM_EXCLUDING_MAX needs SUM_EXACT, or chunks another base
    PASS_STORE = 3

cdef struct LongRow:
    int pass_
    RowBases bases                              # rebased is 0 if row_max is the only base
    bint has_maxima                             # whether `maxima` are known
    Py_ssize_t summed                           # the chunks before have sums already
    const Rows* rows
    Row row
    SumKind sum
    StoreKind stored
    real* maxima                                # (chunks)
    Sums* sums                                  # (chunks)
    Shift shift
    Normalizer normalizer

cdef void sum_chunk_of_long_row(const LongRow* state, Py_ssize_t chunk, Py_ssize_t start, Py_ssize_t count,
                                const RowWorkspace* workspace) noexcept nogil:
    cdef Shift s = state.shift
    if chunk < state.summed:
        return
    if chunk < state.bases.rebased:
        s = shift_of(state.rows, &state.row, state.bases.first_max)
    clear(&state.sums[chunk])
    state.sums[chunk].finds_max = not state.has_maxima
    sum_chunk(state.sum, state.rows, &state.row, start, count, &s, workspace, &state.sums[chunk])

cdef void long_row_chunk(const void* context, Py_ssize_t chunk, const RowWorkspace* workspace) noexcept nogil:
    cdef const LongRow* state = <const LongRow*>context
    cdef Py_ssize_t start = chunk * CHUNK, count = min(state.row.n - start, CHUNK)
    if state.pass_ == PASS_MAX:
        state.maxima[chunk] = max_of_chunk(state.rows, &state.row, start, count, workspace)
    elif state.pass_ == PASS_SUM:
        sum_chunk_of_long_row(state, chunk, start, count, workspace)
    else:
        rescale_chunk(state.rows, &state.row, &state.bases, chunk, workspace)
        store_chunk(state.stored, state.rows, &state.row, start, count, &state.shift, &state.normalizer, workspace)

cdef real max_of_chunks(const LongRow* state) noexcept nogil:
    cdef real row_max = -INFINITY
    cdef Py_ssize_t chunk
    for chunk in range(ceil_div(state.row.n, CHUNK)):
        row_max = max(row_max, state.maxima[chunk])
    return row_max

cdef void sums_of_chunks(const LongRow* state, Sums* sums) noexcept nogil:
    cdef Py_ssize_t chunk
    cdef int v
    clear(sums)
    sums.short_row = state.sums[0].short_row    # a causal row may have at most PARTIALS visible elements
    for chunk in range(ceil_div(state.row.n, CHUNK)):
        if 0 < chunk == state.bases.rebased:
            rescale_sums(binary_exponent_between(state.rows, &state.row, &state.bases), sums)
        for v in range(PARTIAL_REGS):
            sums.weights[v] = dd_add(sums.weights[v], state.sums[chunk].weights[v])
            sums.moments[v] = dd_add(sums.moments[v], state.sums[chunk].moments[v])
            sums.ties[v] = sums.ties[v] + state.sums[chunk].ties[v]

cdef void start_row(const Rows* rows, const RowWorkspace* workspace, LongRow* state) noexcept nogil:
    """Chooses the first pass. PASS_SUM finds the maxima too, if it may be begun before they are known."""
    cdef fp_state modes = fp_enter()
    cdef real first_max
    state.pass_, state.has_maxima, state.summed, state.bases.rebased = PASS_MAX, True, 0, 0
    state.sum, state.stored = first_sum(rows.op), first_store(rows.op)
    if has_bases(rows, state.row.n) and not overwrites_elements(rows, &state.row):
        first_max = first_max_of_row(rows, &state.row, workspace)
        if any_lane(may_be_base(broadcast(first_max), broadcast(first_max))):
            state.pass_, state.has_maxima = PASS_SUM, False
            join_max_of_chunk(0, ceil_div(state.row.n, CHUNK), first_max, &state.bases)
            state.shift = shift_of(rows, &state.row, first_max)
    fp_leave(modes)

cdef void finish_maxima(const Rows* rows, LongRow* state) noexcept nogil:
    cdef Py_ssize_t chunk, chunks = ceil_div(state.row.n, CHUNK)
    cdef real row_max = max_of_chunks(state)
    state.shift = shift_of(rows, &state.row, row_max)
    if not has_bases(rows, state.row.n):
        return
    for chunk in range(chunks):
        join_max_of_chunk(chunk, chunks, state.maxima[chunk], &state.bases)
    finish_bases(&state.bases)
    if state.bases.rebased == chunks:
        state.shift = shift_of(rows, &state.row, state.bases.first_max)
        state.shift.row_max = broadcast(row_max)

cdef bint finish_first_sum(const Rows* rows, LongRow* state) noexcept nogil:
    """After a PASS_SUM that found the maxima. Returns False if the chunks from `rebased` on are to be summed again."""
    cdef Py_ssize_t chunk, chunks = ceil_div(state.row.n, CHUNK)
    for chunk in range(chunks):
        state.maxima[chunk] = hmax(state.sums[chunk].largest)
    finish_maxima(rows, state)
    state.has_maxima, state.summed = True, state.bases.rebased
    return state.bases.rebased == chunks

cdef int finish_sum(const Rows* rows, LongRow* state) noexcept nogil:
    """Computes the normalizer from the sums of all chunks. Returns the next pass."""
    cdef Sums sums
    cdef bint refine
    if not state.has_maxima and not finish_first_sum(rows, state):
        return PASS_SUM
    sums_of_chunks(state, &sums)
    refine = finalize(state.sum, rows.scaled, state.row.n, &state.shift, &sums, &state.normalizer)
    if refine and state.sum == SUM_EXCLUDING_MAX:
        state.sum = SUM_EXACT
        return PASS_SUM
    if store_if_scalar(rows, &state.row, max_of_chunks(state), &state.normalizer):
        return PASS_NONE
    if refine:
        state.stored = STORE_WEIGHTS_OR_ONE
    return PASS_STORE

cdef int finish_pass(int pass_, const Rows* rows, LongRow* state) noexcept nogil:
    """Computes the constants of the row from those of all chunks. Returns the next pass."""
    cdef fp_state modes = fp_enter()
    cdef int next_pass = PASS_NONE
    if pass_ == PASS_MAX:
        finish_maxima(rows, state)
        next_pass = PASS_SUM
    elif pass_ == PASS_SUM:
        next_pass = finish_sum(rows, state)
    fp_leave(modes)
    return next_pass

cdef int long_row(const Rows* rows, Py_ssize_t r, int threads) except -1:
    cdef LongRow state
    cdef Py_ssize_t chunks
    cdef ParallelRegion region
    cdef Workspaces memory = Workspaces()
    cdef void* block
    state.rows, state.row = rows, row_at(rows, r)
    clear_hidden(rows, &state.row)
    if state.row.n == 0:
        return 0
    chunks = ceil_div(state.row.n, CHUNK)
    memory.reserve(threads, state.row.n if state.row.n <= KEEP else CHUNK, keeps_weights(rows, state.row.n), False)
    block = allocate(chunks * <Py_ssize_t>(sizeof(Sums) + sizeof(real)))
    try:
        region = open_region(threads)
        state.sums = <Sums*>block
        state.maxima = <real*>(state.sums + chunks)
        start_row(rows, memory.workspaces, &state)
        while state.pass_ != PASS_NONE:
            run_pass(long_row_chunk, &state, state.row.n, memory.workspaces, &region)
            state.pass_ = finish_pass(state.pass_, rows, &state)
        close_region(&region)
    finally:
        free(block)
    return 0
