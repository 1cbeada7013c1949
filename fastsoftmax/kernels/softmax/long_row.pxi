# One long row, shared by threads: the passes of dense_row, a chunk after the other.
cdef struct LongRow:
    Py_ssize_t o, i, n
    int sum_of, result                          # what is written: see conclude
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
        sum_chunk(row.sum_of, rows, row.o, row.i, start, count, row.n, &row.shift, workspace, &row.sums[chunk])
    else:
        write_chunk(row.result, rows, row.o, row.i, start, count, row.n, &row.shift, &row.normalizer, workspace)

cdef void long_row_share(int phase, const Rows* rows, const LongRow* row, Py_ssize_t start, Py_ssize_t stop,
                         Py_ssize_t share, Py_ssize_t shares, const RowWorkspace* workspace,
                         ParallelRegion* region) noexcept nogil:
    """One task: of the chunks start .. stop - 1 those of one thread, the same in every phase. A chunk would be too
    short to look at the clock after it."""
    cdef fp_state modes = fp_enter()
    cdef Py_ssize_t chunk, end = start + (stop - start) * (share + 1) // shares
    start_task(region)
    start += (stop - start) * share // shares
    for chunk in range(start, end):
        long_row_chunk(phase, rows, row, chunk, workspace)
    if rows.nontemporal:
        stream_end()
    fp_leave(modes)
    end_task(region, end - start)

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
        row.sum_of = first_sum(rows)
        row.result = rows.result
    elif phase == 2:
        clear(&sums)
        sums.short_row = row.sums[0].short_row  # a causal row may see very few
        for task in range(tasks):
            for v in range(PARTIAL_REGS):
                sums.weights[v] = dd_add(sums.weights[v], row.sums[task].weights[v])
                sums.moments[v] = dd_add(sums.moments[v], row.sums[task].moments[v])
                sums.ties[v] = sums.ties[v] + row.sums[task].ties[v]
        more = finalize(row.sum_of, rows, row.n, &row.shift, &sums, &row.normalizer)
        if more and row.sum_of == SUM_EXCLUDING_MAX:
            row.sum_of = LOGSUMEXP
            next_phase = 2
        elif write_if_scalar(rows, row.o, row.i, row_max, &row.normalizer):
            next_phase = 0
        elif more:
            row.result = SOFTMAX_ONE
    else:
        next_phase = 0
    fp_leave(modes)
    return next_phase

cdef int long_row(const Rows* rows, Py_ssize_t o, Py_ssize_t i, int threads) except -1:
    cdef LongRow row
    cdef Py_ssize_t tasks, turn, start, stop
    cdef int phase = 1, share
    cdef ParallelRegion region
    cdef Workspaces memory
    cdef RowWorkspace* workspaces
    cdef void* chunks
    row.o, row.i, row.n = o, i, row_length(rows, i)
    if row.n < rows.n:
        clear_elements(rows.y + o * rows.y_outer + i * rows.y_inner + row.n * rows.y_n, rows.y_n, rows.n - row.n,
                       rows.nontemporal)
        if row.n == 0:
            return 0
    tasks = ceil_div(row.n, CHUNK)
    memory = Workspaces(threads, row.n if row.n <= KEEP else CHUNK, keeps_weights(rows, row.n), False)
    workspaces = memory.workspaces
    chunks = allocate(tasks * <Py_ssize_t>(sizeof(Sums) + sizeof(real)))
    try:
        region = open_region(threads)
        row.sums = <Sums*>chunks
        row.maxima = <real*>(row.sums + tasks)
        while phase:
            for turn in range(ceil_div(tasks, SLICE // CHUNK)):
                start = turn * (SLICE // CHUNK)
                stop = min(start + SLICE // CHUNK, tasks)
                with nogil:
                    if is_serial(&region):
                        long_row_share(phase, rows, &row, start, stop, 0, 1, workspaces, &region)
                    else:
                        begin_parallel(&region)
                        for share in prange(threads, num_threads=threads, schedule="static"):
                            long_row_share(phase, rows, &row, start, stop, share, threads, &workspaces[share], &region)
                        end_parallel(&region)
                    if tasks > SLICE // CHUNK:          # long enough to gain by itself
                        close_region(&region)
                PyErr_CheckSignals()
            phase = long_row_between(phase, rows, &row)
        close_region(&region)
    finally:
        free(chunks)
    return 0
