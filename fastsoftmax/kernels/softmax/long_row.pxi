# One long row, shared by threads: the passes of dense_row, a chunk after the other.
cdef struct LongRow:
    Py_ssize_t o, i, n
    int sum, stored                             # stored: how the results are written, see Normalizer
    real* maxima                                # a chunk
    Sums* sums                                  # a chunk
    Shift shift
    Normalizer normalizer

cdef inline void long_row_chunk(int phase, const Rows* rows, const LongRow* row, Py_ssize_t chunk,
                                const RowWorkspace* workspace) noexcept nogil:
    cdef Py_ssize_t start = chunk * CHUNK, count = min(row.n - start, CHUNK)
    if phase == 1:
        row.maxima[chunk] = max_of_chunk(rows, row.o, row.i, start, count, workspace)
    elif phase == 2:
        clear(&row.sums[chunk])
        sum_chunk(row.sum, rows, row.o, row.i, start, count, row.n, &row.shift, workspace, &row.sums[chunk])
    else:
        write_chunk(row.stored, rows, row.o, row.i, start, count, row.n, &row.shift, &row.normalizer, workspace)

# One pass over the chunks start .. stop - 1: a share for each thread, the same in every pass.
cdef struct LongRowPass:
    int phase
    const Rows* rows
    const LongRow* row
    Py_ssize_t start, stop, shares
    const RowWorkspace* workspaces

cdef Py_ssize_t long_row_task(const void* context, Py_ssize_t share, int thread) noexcept nogil:
    """A chunk would be too short to look at the clock after it, so a task has as many as come to its share."""
    cdef const LongRowPass* now = <const LongRowPass*>context
    cdef Py_ssize_t chunk, chunks = now.stop - now.start
    cdef Py_ssize_t first = now.start + chunks * share // now.shares
    cdef Py_ssize_t last = now.start + chunks * (share + 1) // now.shares
    for chunk in range(first, last):
        long_row_chunk(now.phase, now.rows, now.row, chunk, &now.workspaces[thread])
    if now.rows.nontemporal:
        stream_end()
    return last - first

cdef int long_row_between(int phase, const Rows* rows, LongRow* row) noexcept nogil:
    """Computes the row's constants from those of all chunks. Returns the next phase, or 0."""
    cdef fp_state modes = fp_enter()
    cdef Py_ssize_t task, tasks = ceil_div(row.n, CHUNK)
    cdef real row_max = -INFINITY
    cdef Sums sums
    cdef int v, next_phase = phase + 1
    cdef bint more
    for task in range(tasks):
        row_max = max(row_max, row.maxima[task])
    if phase == 1:
        row.shift = shift_of(rows, row.o, row.i, row_max)
        row.sum = first_sum(rows)
        row.stored = rows.op
    elif phase == 2:
        clear(&sums)
        sums.short_row = row.sums[0].short_row  # a causal row may see very few
        for task in range(tasks):
            for v in range(PARTIAL_REGS):
                sums.weights[v] = dd_add(sums.weights[v], row.sums[task].weights[v])
                sums.moments[v] = dd_add(sums.moments[v], row.sums[task].moments[v])
                sums.ties[v] = sums.ties[v] + row.sums[task].ties[v]
        more = finalize(row.sum, rows, row.n, &row.shift, &sums, &row.normalizer)
        if more and row.sum == SUM_EXCLUDING_MAX:
            row.sum = SUM_EXACT
            next_phase = 2
        elif write_if_scalar(rows, row.o, row.i, row_max, &row.normalizer):
            next_phase = 0
        elif more:
            row.stored = STORE_WEIGHTS_OR_ONE
    else:
        next_phase = 0
    fp_leave(modes)
    return next_phase

cdef int long_row(const Rows* rows, Py_ssize_t o, Py_ssize_t i, int threads) except -1:
    cdef LongRow row
    cdef LongRowPass now
    cdef Py_ssize_t tasks, turn
    cdef ParallelRegion region
    cdef Workspaces memory
    cdef void* chunks
    row.o, row.i, row.n = o, i, row_length(rows, i)
    if row.n < rows.n:
        clear_elements(rows.y + o * rows.y_outer + i * rows.y_inner + row.n * rows.y_n, rows.y_n, rows.n - row.n,
                       rows.nontemporal)
        if row.n == 0:
            return 0
    tasks = ceil_div(row.n, CHUNK)
    memory = Workspaces(threads, row.n if row.n <= KEEP else CHUNK, keeps_weights(rows, row.n), False)
    now.rows, now.row, now.shares, now.workspaces = rows, &row, threads, memory.workspaces
    chunks = allocate(tasks * <Py_ssize_t>(sizeof(Sums) + sizeof(real)))
    try:
        region = open_region(threads)
        row.sums = <Sums*>chunks
        row.maxima = <real*>(row.sums + tasks)
        now.phase = 1
        while now.phase:
            for turn in range(ceil_div(tasks, SLICE // CHUNK)):
                now.start = turn * (SLICE // CHUNK)
                now.stop = min(now.start + SLICE // CHUNK, tasks)
                with nogil:
                    parallel_for(long_row_task, &now, 0, threads, True, &region)
                    if tasks > SLICE // CHUNK:          # long enough to gain by itself
                        close_region(&region)
                PyErr_CheckSignals()
            now.phase = long_row_between(now.phase, rows, &row)
        close_region(&region)
    finally:
        free(chunks)
    return 0
