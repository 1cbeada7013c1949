# The softmax family: who does which rows.

cdef void along_task(const Rows* rows, Py_ssize_t task, Py_ssize_t rows_a_task, const Work* work) noexcept nogil:
    cdef fp_state state = fp_enter()
    cdef Py_ssize_t first_row = task * rows_a_task
    rows_along(rows, first_row, min(first_row + rows_a_task, rows.outer * rows.inner) - 1, work)
    if rows.streamed:
        stream_end()
    fp_leave(state)

cdef void across_task(const Rows* rows, Py_ssize_t task, Py_ssize_t tiles_a_task, const Work* work) noexcept nogil:
    cdef fp_state state = fp_enter()
    cdef Py_ssize_t first_tile = task * tiles_a_task
    tiles_across(rows, first_tile, min(first_tile + tiles_a_task, rows.outer * tiles_of(rows)), work)
    if rows.streamed:
        stream_end()
    fp_leave(state)

cdef void some_rows(const Rows* rows, bint across, Py_ssize_t task, Py_ssize_t size, const Work* work,
                    Region* region) noexcept nogil:
    start_task(region)
    if across:
        across_task(rows, task, size, work)
    else:
        along_task(rows, task, size, work)
    end_task(region, 1)

# One long row, shared by threads: the passes of row_along, a chunk after the other.
cdef struct LongRow:
    Py_ssize_t o, i, n
    int sum_of, result                          # what is written: see conclude
    real* tops                                  # a chunk
    Sums* sums                                  # a chunk
    Shift shift
    Outcome outcome

cdef inline void long_row_chunk(int phase, const Rows* rows, const LongRow* row, Py_ssize_t chunk,
                                const Work* work) noexcept nogil:
    cdef Py_ssize_t start = chunk * CHUNK, count = min(row.n - start, CHUNK)
    if phase == 1:
        row.tops[chunk] = top_of_chunk(rows, row.o, row.i, start, count, work)
    elif phase == 2:
        clear(&row.sums[chunk])
        sum_chunk(row.sum_of, rows, row.o, row.i, start, count, row.n, &row.shift, work, &row.sums[chunk])
    else:
        write_chunk(row.result, rows, row.o, row.i, start, count, row.n, &row.shift, &row.outcome, work)

cdef void long_row_share(int phase, const Rows* rows, const LongRow* row, Py_ssize_t start, Py_ssize_t stop,
                         Py_ssize_t share, Py_ssize_t shares, const Work* work, Region* region) noexcept nogil:
    """One task: of the chunks start .. stop - 1 those of one thread, the same in every phase. A chunk would be too
    short to look at the clock after it."""
    cdef fp_state state = fp_enter()
    cdef Py_ssize_t chunk, end = start + (stop - start) * (share + 1) // shares
    start_task(region)
    start += (stop - start) * share // shares
    for chunk in range(start, end):
        long_row_chunk(phase, rows, row, chunk, work)
    if rows.streamed:
        stream_end()
    fp_leave(state)
    end_task(region, end - start)

cdef int long_row_between(int phase, const Rows* rows, LongRow* row) noexcept nogil:
    """Computes the row's constants from those of all chunks. Returns the next phase, or 0."""
    cdef fp_state state = fp_enter()
    cdef Py_ssize_t task, tasks = steps(row.n, CHUNK)
    cdef real top = -INFINITY
    cdef Sums sums
    cdef int v, next_phase = phase + 1
    cdef bint more
    for task in range(tasks):
        top = max(top, row.tops[task])
    if phase == 1:
        row.shift = shift_of(rows, row.o, row.i, top)
        row.sum_of = first_sum(rows)
        row.result = rows.result
    elif phase == 2:
        clear(&sums)
        sums.few = row.sums[0].few          # a causal row may see very few
        for task in range(tasks):
            for v in range(COLS):
                sums.weights[v] = wide_add(sums.weights[v], row.sums[task].weights[v])
                sums.moments[v] = wide_add(sums.moments[v], row.sums[task].moments[v])
                sums.ties[v] = sums.ties[v] + row.sums[task].ties[v]
        more = conclude(row.sum_of, rows, row.n, &row.shift, &sums, &row.outcome)
        if more and row.sum_of == OTHERS:
            row.sum_of = LOGSUMEXP
            next_phase = 2
        elif write_if_scalar(rows, row.o, row.i, top, &row.outcome):
            next_phase = 0
        elif more:
            row.result = SOFTMAX_ONE
    else:
        next_phase = 0
    fp_leave(state)
    return next_phase

cdef void* allocate(Py_ssize_t bytes) except NULL:
    """64-byte aligned; the compiler's vector types stand in it."""
    cdef void* block = aligned_alloc(64, (bytes + 63) & ~<size_t>63)
    if block == NULL:
        raise MemoryError(f"fastsoftmax: no memory for {bytes} bytes of scratch")
    return block

cdef class Scratch:
    """The buffers of `threads` threads, freed with it."""
    cdef char* block
    cdef Work* works

    def __cinit__(self, int threads, Py_ssize_t kept, bint shared, bint tiles):
        cdef Py_ssize_t kept_bytes = (kept + BLOCK * WIDTH) * sizeof(real) + 63 & ~63
        cdef Py_ssize_t elements_bytes = (CHUNK + GROUP) * sizeof(elem) + 63 & ~63
        cdef Py_ssize_t tile_bytes = sizeof(Across) + 63 & ~63 if tiles else 0
        cdef Py_ssize_t works_bytes = threads * sizeof(Work) + 63 & ~63
        cdef Py_ssize_t t
        cdef char* at
        self.block = <char*>allocate(
            works_bytes + (1 if shared else threads) * kept_bytes + threads * (elements_bytes + tile_bytes))
        self.works = <Work*>self.block
        at = self.block + works_bytes
        for t in range(threads):
            self.works[t].kept = <real*>at
            if not shared or t == threads - 1:
                at += kept_bytes
        for t in range(threads):
            self.works[t].elements = <elem*>at
            at += elements_bytes
            self.works[t].tile = <Across*>at
            at += tile_bytes

    def __dealloc__(self):
        free(self.block)

cdef Rows describe(int result, const elem[:, :, :] x, elem[:, :, :] y, const double[:, :] temperature,
                   const unsigned char[:, :, :] where, offset, bint streamed) except *:
    cdef Rows rows
    rows.result = result
    rows.scaled = temperature is not None
    rows.causal = offset is not None
    rows.offset = offset if rows.causal else 0
    rows.streamed = streamed and sizeof(elem) == sizeof(real)
    rows.lead = 0
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

cdef inline bint goes_across(const Rows* rows) noexcept nogil:
    if rows.causal:
        return rows.where == NULL and rows.x_n == 1 and rows.y_n == 1 and rows.inner >= WIDTH and rows.n < SPLIT
    return 2 * rows.inner >= WIDTH and (rows.n <= NARROW or (rows.x_inner == 1 and rows.x_n != 1))

cdef int long_row(const Rows* rows, Py_ssize_t o, Py_ssize_t i, int threads) except -1:
    cdef LongRow row
    cdef Py_ssize_t tasks, turn, start, stop
    cdef int phase = 1, share
    cdef Region region
    cdef Scratch scratch
    cdef Work* works
    cdef void* chunks
    row.o, row.i, row.n = o, i, row_length(rows, i)
    if row.n < rows.n:
        clear_elements(rows.y + o * rows.y_outer + i * rows.y_inner + row.n * rows.y_n, rows.y_n, rows.n - row.n,
                       rows.streamed)
        if row.n == 0:
            return 0
    tasks = steps(row.n, CHUNK)
    scratch = Scratch(threads, row.n if row.n <= KEEP else CHUNK, keeps(rows, row.n), False)
    works = scratch.works
    chunks = allocate(tasks * <Py_ssize_t>(sizeof(Sums) + sizeof(real)))
    try:
        region = alone_at_first(threads)
        row.sums = <Sums*>chunks
        row.tops = <real*>(row.sums + tasks)
        while phase:
            for turn in range(steps(tasks, SLICE // CHUNK)):
                start = turn * (SLICE // CHUNK)
                stop = min(start + SLICE // CHUNK, tasks)
                with nogil:
                    if alone(&region):
                        long_row_share(phase, rows, &row, start, stop, 0, 1, works, &region)
                    else:
                        begin_region(&region)
                        for share in prange(threads, num_threads=threads, schedule="static"):
                            long_row_share(phase, rows, &row, start, stop, share, threads, &works[share], &region)
                        end_region(&region)
                    if tasks > SLICE // CHUNK:          # long enough to gain by itself
                        learn(&region)
                PyErr_CheckSignals()
            phase = long_row_between(phase, rows, &row)
        learn(&region)
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
    cdef bint across = goes_across(rows)
    cdef Region region
    cdef Scratch scratch
    cdef Work* works
    if across:
        if rows.causal:
            rows.lead = causal_lead(rows)
        elif rows.streamed and rows.y_inner == 1:
            rows.lead = <Py_ssize_t>(<size_t>rows.y // sizeof(elem)) % WIDTH
        row_size, row_count = rows.n * WIDTH, rows.outer * tiles_of(rows)
        size = row_size if row_size <= KEEP else max(min(rows.n, <Py_ssize_t>KEEP), CHUNK)
        if rows.causal:
            size = max(rows.n, min(row_size, <Py_ssize_t>(CAUSAL_ACROSS * WIDTH)))
        scratch = Scratch(threads, size, False, True)
    else:
        row_size, row_count = rows.n, rows.outer * rows.inner
        if rows.n >= SLICE or (threads > 1 and rows.n >= SPLIT and row_count < 4 * threads):
            for t in range(row_count):
                long_row(rows, t // rows.inner, t % rows.inner, threads)
            return 0
        scratch = Scratch(threads, rows.n if rows.n <= KEEP else CHUNK, False, False)
    size = max(1, task_size(row_count * row_size, threads) // row_size)
    tasks = steps(row_count, size)
    slice_ = max(1, SLICE // (size * row_size))
    works = scratch.works
    for turn in range(steps(tasks, slice_)):
        start = turn * slice_
        stop = min(start + slice_, tasks)
        with nogil:
            region = alone_at_first(threads)
            while start < stop and alone(&region):
                some_rows(rows, across, start, size, works, &region)
                start += 1
            if start < stop:
                begin_region(&region)
                for t in prange(start, stop, num_threads=threads, schedule="dynamic"):
                    some_rows(rows, across, t, size, &works[threadid()], &region)
                end_region(&region)
            learn(&region)
        PyErr_CheckSignals()
    return 0

def softmax_rows(int result, const elem[:, :, :] x, elem[:, :, :] y, const double[:, :] temperature,
                 const unsigned char[:, :, :] where, offset, int threads, bint streamed):
    """Writes `result` of x (outer, n, inner) along n into y, of the same shape, or with n = 1 for reductions.

    temperature (outer, inner) and where (outer, n, inner) may be None; with a temperature, LOGSUMEXP is for rows
    whose largest score is 0; offset is None or that of a causal mask over
    (inner, n). No dimension is 0. y may be x, but not overlap it otherwise.
    """
    cdef Rows rows = describe(result, x, y, temperature, where, offset, streamed)
    if rows.inner == 1 and not rows.causal:
        outer_to_inner(&rows)
    compute(&rows, threads)

# The short way in, for contiguous arrays: _front.pyx calls it by address, without a memoryview. What is
# small is computed here and now, with buffers on the stack.

cdef enum:
    SMALL = CHUNK           # elements

cdef void compute_small(const Rows* rows) noexcept nogil:
    cdef Work work
    cdef Across tile
    cdef real[SMALL + BLOCK * WIDTH] kept       # a tile's last block may be filled beyond its end
    cdef elem[SMALL] elements
    work.kept = kept
    work.tile = &tile
    work.elements = elements
    if goes_across(rows):
        across_task(rows, 0, rows.outer * rows.inner, &work)
    else:
        along_task(rows, 0, rows.outer * rows.inner, &work)

cdef int contiguous_rows(int result, const void* x, void* y, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
                         double temperature, int threads, bint streamed) except -1:
    """x: (outer, n, inner), C-contiguous; y: the same, or (outer, inner) for reductions."""
    cdef Rows rows
    memset(&rows, 0, sizeof(Rows))
    rows.result = result
    rows.scaled = temperature != 1
    rows.temperature = &temperature
    rows.streamed = streamed and sizeof(elem) == sizeof(real)
    rows.outer, rows.n, rows.inner = outer, n, inner
    rows.x, rows.x_outer, rows.x_n, rows.x_inner = <const elem*>x, n * inner, inner, 1
    rows.y, rows.y_outer, rows.y_n, rows.y_inner = <elem*>y, n * inner, inner, 1
    if result == LOGSUMEXP or result == ENTROPY:
        rows.y_outer = inner
    if inner == 1:
        outer_to_inner(&rows)
    if outer * n * inner <= SMALL and (n <= BLOCK or n * WIDTH <= SMALL or not goes_across(&rows)):
        compute_small(&rows)
    else:
        compute(&rows, threads)
    return 0

contiguous_address = <size_t>&contiguous_rows
lanes = LANES
