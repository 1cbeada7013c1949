# One long row, shared by threads: the passes of dense_row, each over all chunks before the next.

cdef enum:                                      # the passes of a long row, in this order
    PASS_NONE = 0
    PASS_MAX = 1
    PASS_SUM = 2                                # twice, if SUM_EXCLUDING_MAX needs SUM_EXACT
    PASS_STORE = 3

cdef struct LongRow:
    Row row
    SumKind sum
    StoreKind stored
    real* maxima                                # (chunks)
    Sums* sums                                  # (chunks)
    Shift shift
    Normalizer normalizer

cdef inline void long_row_chunk(int pass_, const Rows* rows, const LongRow* state, Py_ssize_t chunk,
                                const RowWorkspace* workspace) noexcept nogil:
    cdef Py_ssize_t start = chunk * CHUNK, count = min(state.row.n - start, CHUNK)
    if pass_ == PASS_MAX:
        state.maxima[chunk] = max_of_chunk(rows, &state.row, start, count, workspace)
    elif pass_ == PASS_SUM:
        clear(&state.sums[chunk])
        sum_chunk(state.sum, rows, &state.row, start, count, &state.shift, workspace, &state.sums[chunk])
    else:
        store_chunk(state.stored, rows, &state.row, start, count, &state.shift, &state.normalizer, workspace)

# One pass over the chunks start .. stop - 1. Each thread has the same share of them in every pass.
cdef struct LongRowPass:
    int pass_
    const Rows* rows
    const LongRow* state
    Py_ssize_t start, stop, shares
    const RowWorkspace* workspaces

cdef Py_ssize_t long_row_task(const void* context, Py_ssize_t share, int thread) noexcept nogil:
    """A chunk is too short for the clock to be read after each, so a task is a share of the chunks."""
    cdef const LongRowPass* now = <const LongRowPass*>context
    cdef Py_ssize_t chunk, chunks = now.stop - now.start
    cdef Py_ssize_t first = now.start + chunks * share // now.shares
    cdef Py_ssize_t last = now.start + chunks * (share + 1) // now.shares
    for chunk in range(first, last):
        long_row_chunk(now.pass_, now.rows, now.state, chunk, &now.workspaces[thread])
    if now.rows.nontemporal:
        stream_end()
    return last - first

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
        for v in range(PARTIAL_REGS):
            sums.weights[v] = dd_add(sums.weights[v], state.sums[chunk].weights[v])
            sums.moments[v] = dd_add(sums.moments[v], state.sums[chunk].moments[v])
            sums.ties[v] = sums.ties[v] + state.sums[chunk].ties[v]

cdef int finish_sum(const Rows* rows, LongRow* state) noexcept nogil:
    """Computes the normalizer from the sums of all chunks. Returns the next pass."""
    cdef Sums sums
    cdef bint refine
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
        state.shift = shift_of(rows, &state.row, max_of_chunks(state))
        state.sum, state.stored = first_sum(rows.op), first_store(rows.op)
        next_pass = PASS_SUM
    elif pass_ == PASS_SUM:
        next_pass = finish_sum(rows, state)
    fp_leave(modes)
    return next_pass

cdef int long_row(const Rows* rows, Py_ssize_t r, int threads) except -1:
    cdef LongRow state
    cdef LongRowPass now
    cdef Py_ssize_t chunks, slice_
    cdef ParallelRegion region
    cdef Workspaces memory
    cdef void* block
    state.row = row_at(rows, r)
    clear_hidden(rows, &state.row)
    if state.row.n == 0:
        return 0
    chunks = ceil_div(state.row.n, CHUNK)
    memory = Workspaces(threads, state.row.n if state.row.n <= KEEP else CHUNK, keeps_weights(rows, state.row.n), False)
    now.rows, now.state, now.shares, now.workspaces = rows, &state, threads, memory.workspaces
    block = allocate(chunks * <Py_ssize_t>(sizeof(Sums) + sizeof(real)))
    try:
        region = open_region(threads)
        state.sums = <Sums*>block
        state.maxima = <real*>(state.sums + chunks)
        now.pass_ = PASS_MAX
        while now.pass_ != PASS_NONE:
            for slice_ in range(ceil_div(chunks, SLICE // CHUNK)):
                now.start = slice_ * (SLICE // CHUNK)
                now.stop = min(now.start + SLICE // CHUNK, chunks)
                with nogil:
                    parallel_for(long_row_task, &now, 0, threads, True, &region)
                    if chunks > SLICE // CHUNK:         # a slice is then long enough to be measured by itself
                        close_region(&region)
                PyErr_CheckSignals()
            now.pass_ = finish_pass(now.pass_, rows, &state)
        close_region(&region)
    finally:
        free(block)
    return 0
