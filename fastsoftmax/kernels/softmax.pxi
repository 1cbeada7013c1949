# The softmax family: who does which rows.

cdef void dense_task(const Rows* rows, Py_ssize_t task, Py_ssize_t rows_a_task,
                     const RowWorkspace* workspace) noexcept nogil:
    cdef fp_state modes = fp_enter()
    cdef Py_ssize_t first_row = task * rows_a_task
    dense_rows(rows, first_row, min(first_row + rows_a_task, rows.outer * rows.inner) - 1, workspace)
    if rows.nontemporal:
        stream_end()
    fp_leave(modes)

cdef void tile_task(const Rows* rows, Py_ssize_t task, Py_ssize_t tiles_a_task,
                    const RowWorkspace* workspace) noexcept nogil:
    cdef fp_state modes = fp_enter()
    cdef Py_ssize_t first_tile = task * tiles_a_task
    strided_tiles(rows, first_tile, min(first_tile + tiles_a_task, rows.outer * tiles_of(rows)), workspace)
    if rows.nontemporal:
        stream_end()
    fp_leave(modes)

cdef void some_rows(const Rows* rows, bint in_tiles, Py_ssize_t task, Py_ssize_t size, const RowWorkspace* workspace,
                    ParallelRegion* region) noexcept nogil:
    start_task(region)
    if in_tiles:
        tile_task(rows, task, size, workspace)
    else:
        dense_task(rows, task, size, workspace)
    end_task(region, 1)

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

cdef void* allocate(Py_ssize_t bytes) except NULL:
    """64-byte aligned; the compiler's vector types stand in it."""
    cdef void* block = aligned_alloc(64, (bytes + 63) & ~<size_t>63)
    if block == NULL:
        raise MemoryError(f"fastsoftmax: no memory for {bytes} bytes of scratch")
    return block

cdef class Workspaces:
    """The buffers of `threads` threads, freed with it."""
    cdef char* block
    cdef RowWorkspace* workspaces

    def __cinit__(self, int threads, Py_ssize_t weights_buf, bint shared, bint tiles):
        cdef Py_ssize_t weights_bytes = (weights_buf + BLOCK * PARTIALS) * sizeof(real) + 63 & ~63
        cdef Py_ssize_t elements_bytes = (CHUNK + UNROLL) * sizeof(elem) + 63 & ~63
        cdef Py_ssize_t tile_bytes = sizeof(TileWorkspace) + 63 & ~63 if tiles else 0
        cdef Py_ssize_t workspaces_bytes = threads * sizeof(RowWorkspace) + 63 & ~63
        cdef Py_ssize_t t
        cdef char* at
        self.block = <char*>allocate(workspaces_bytes + (1 if shared else threads) * weights_bytes
                                     + threads * (elements_bytes + tile_bytes))
        self.workspaces = <RowWorkspace*>self.block
        at = self.block + workspaces_bytes
        for t in range(threads):
            self.workspaces[t].weights_buf = <real*>at
            if not shared or t == threads - 1:
                at += weights_bytes
        for t in range(threads):
            self.workspaces[t].elements = <elem*>at
            at += elements_bytes
            self.workspaces[t].tile = <TileWorkspace*>at
            at += tile_bytes

    def __dealloc__(self):
        free(self.block)

cdef Rows describe(int result, const elem[:, :, :] x, elem[:, :, :] y, const double[:, :] temperature,
                   const unsigned char[:, :, :] where, offset, bint nontemporal) except *:
    cdef Rows rows
    rows.result = result
    rows.scaled = temperature is not None
    rows.causal = offset is not None
    rows.offset = offset if rows.causal else 0
    rows.nontemporal = nontemporal and sizeof(elem) == sizeof(real)
    rows.peel = 0
    rows.outer, rows.n, rows.inner = x.shape[0], x.shape[1], x.shape[2]
    rows.x = &x[0, 0, 0]
    rows.x_outer, rows.x_n, rows.x_inner = (
        x.strides[0] // <Py_ssize_t>sizeof(elem), x.strides[1] // <Py_ssize_t>sizeof(elem),
        x.strides[2] // <Py_ssize_t>sizeof(elem))
    rows.y = &y[0, 0, 0]
    rows.y_outer, rows.y_n, rows.y_inner = (
        y.strides[0] // <Py_ssize_t>sizeof(elem), y.strides[1] // <Py_ssize_t>sizeof(elem),
        y.strides[2] // <Py_ssize_t>sizeof(elem))
    rows.where = NULL
    rows.where_outer = rows.where_n = rows.where_inner = 0
    if where is not None:
        rows.where = &where[0, 0, 0]
        rows.where_outer, rows.where_n, rows.where_inner = where.strides[0], where.strides[1], where.strides[2]
    rows.temperature = NULL
    rows.temperature_outer = rows.temperature_inner = 0
    if rows.scaled:
        rows.temperature = &temperature[0, 0]
        rows.temperature_outer = temperature.strides[0] // <Py_ssize_t>sizeof(double)
        rows.temperature_inner = temperature.strides[1] // <Py_ssize_t>sizeof(double)
    return rows

cdef void outer_to_inner(Rows* rows) noexcept nogil:
    """Where there is one row a matrix, the matrices are as good as rows."""
    rows.inner, rows.outer = rows.outer, 1
    rows.x_inner, rows.y_inner, rows.where_inner = rows.x_outer, rows.y_outer, rows.where_outer
    rows.temperature_inner = rows.temperature_outer

cdef inline bint uses_tiles(const Rows* rows) noexcept nogil:
    if rows.causal:
        return rows.where == NULL and rows.x_n == 1 and rows.y_n == 1 and rows.inner >= PARTIALS and rows.n < LONG_ROW
    return 2 * rows.inner >= PARTIALS and (rows.n <= NARROW_MAX or (rows.x_inner == 1 and rows.x_n != 1))

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

cdef inline Py_ssize_t task_size(Py_ssize_t size, int threads) noexcept nogil:
    """A task's first row is a cache miss, so tasks are as large as their even distribution allows."""
    if threads == 1:
        return SLICE
    return min(max(size // (16 * threads), <Py_ssize_t>TASK), <Py_ssize_t>(4 * TASK))

cdef int compute(Rows* rows, int threads) except -1:
    """All rows, on `threads` threads, with a look for an interrupt now and then."""
    cdef Py_ssize_t row_size, row_count, size, tasks, slice_, t, turn, start, stop
    cdef bint in_tiles = uses_tiles(rows)
    cdef ParallelRegion region
    cdef Workspaces memory
    cdef RowWorkspace* workspaces
    if in_tiles:
        if rows.causal:
            rows.peel = causal_peel(rows)
        elif rows.nontemporal and rows.y_inner == 1:
            rows.peel = <Py_ssize_t>(<size_t>rows.y // sizeof(elem)) % PARTIALS
        row_size, row_count = rows.n * PARTIALS, rows.outer * tiles_of(rows)
        size = row_size if row_size <= KEEP else max(min(rows.n, <Py_ssize_t>KEEP), CHUNK)
        if rows.causal:
            size = max(rows.n, min(row_size, <Py_ssize_t>(CAUSAL_TILE_MAX * PARTIALS)))
        memory = Workspaces(threads, size, False, True)
    else:
        row_size, row_count = rows.n, rows.outer * rows.inner
        if rows.n >= SLICE or (threads > 1 and rows.n >= LONG_ROW and row_count < 4 * threads):
            for t in range(row_count):
                long_row(rows, t // rows.inner, t % rows.inner, threads)
            return 0
        memory = Workspaces(threads, rows.n if rows.n <= KEEP else CHUNK, False, False)
    size = max(1, task_size(row_count * row_size, threads) // row_size)
    tasks = ceil_div(row_count, size)
    slice_ = max(1, SLICE // (size * row_size))
    workspaces = memory.workspaces
    for turn in range(ceil_div(tasks, slice_)):
        start = turn * slice_
        stop = min(start + slice_, tasks)
        with nogil:
            region = open_region(threads)
            while start < stop and is_serial(&region):
                some_rows(rows, in_tiles, start, size, workspaces, &region)
                start += 1
            if start < stop:
                begin_parallel(&region)
                for t in prange(start, stop, num_threads=threads, schedule="dynamic"):
                    some_rows(rows, in_tiles, t, size, &workspaces[threadid()], &region)
                end_parallel(&region)
            close_region(&region)
        PyErr_CheckSignals()
    return 0

def softmax_rows(int result, const elem[:, :, :] x, elem[:, :, :] y, const double[:, :] temperature,
                 const unsigned char[:, :, :] where, offset, int threads, bint nontemporal):
    """Writes `result` of x (outer, n, inner) along n into y, of the same shape, or with n = 1 for reductions.

    temperature (outer, inner) and where (outer, n, inner) may be None; with a temperature, LOGSUMEXP is for rows
    whose largest score is 0; offset is None or that of a causal mask over
    (inner, n). No dimension is 0. y may be x, but not overlap it otherwise.
    """
    cdef Rows rows = describe(result, x, y, temperature, where, offset, nontemporal)
    if rows.inner == 1 and not rows.causal:
        outer_to_inner(&rows)
    compute(&rows, threads)

# The short way in, for contiguous arrays: _front.pyx calls it by address, without a memoryview. What is
# small is computed here and now, with buffers on the stack.

cdef enum:
    STACK_ELEMENTS = CHUNK  # elements

cdef void compute_small(const Rows* rows) noexcept nogil:
    cdef RowWorkspace workspace
    cdef TileWorkspace tile
    cdef real[STACK_ELEMENTS + BLOCK * PARTIALS] weights_buf  # a tile's last block may be filled beyond its end
    cdef elem[STACK_ELEMENTS] elements
    workspace.weights_buf = weights_buf
    workspace.tile = &tile
    workspace.elements = elements
    if uses_tiles(rows):
        tile_task(rows, 0, rows.outer * rows.inner, &workspace)
    else:
        dense_task(rows, 0, rows.outer * rows.inner, &workspace)

cdef int contiguous_rows(int result, const void* x, void* y, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
                         double temperature, int threads, bint nontemporal) except -1:
    """x: (outer, n, inner), C-contiguous; y: the same, or (outer, inner) for reductions."""
    cdef Rows rows
    memset(&rows, 0, sizeof(Rows))
    rows.result = result
    rows.scaled = temperature != 1
    rows.temperature = &temperature
    rows.nontemporal = nontemporal and sizeof(elem) == sizeof(real)
    rows.outer, rows.n, rows.inner = outer, n, inner
    rows.x, rows.x_outer, rows.x_n, rows.x_inner = <const elem*>x, n * inner, inner, 1
    rows.y, rows.y_outer, rows.y_n, rows.y_inner = <elem*>y, n * inner, inner, 1
    if result == LOGSUMEXP or result == ENTROPY:
        rows.y_outer = inner
    if inner == 1:
        outer_to_inner(&rows)
    if outer * n * inner <= STACK_ELEMENTS and (n <= BLOCK or n * PARTIALS <= STACK_ELEMENTS or not uses_tiles(&rows)):
        compute_small(&rows)
    else:
        compute(&rows, threads)
    return 0

contiguous_address = <size_t>&contiguous_rows
lanes = LANES
