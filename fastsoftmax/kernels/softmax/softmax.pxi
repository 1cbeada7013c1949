# The softmax family: who does which rows.

# The tasks of a call: `size` rows, or tiles of rows, each.
cdef struct RowTasks:
    const Rows* rows
    bint in_tiles
    Py_ssize_t size
    const RowWorkspace* workspaces              # one a thread

cdef Py_ssize_t row_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const RowTasks* tasks = <const RowTasks*>context
    cdef const Rows* rows = tasks.rows
    cdef Py_ssize_t start = task * tasks.size, stop = start + tasks.size
    if tasks.in_tiles:
        strided_tiles(rows, start, min(stop, rows.outer * tiles_of(rows)), &tasks.workspaces[thread])
    else:
        dense_rows(rows, start, min(stop, rows.outer * rows.inner) - 1, &tasks.workspaces[thread])
    if rows.nontemporal:
        stream_end()
    return 1

cdef inline bint uses_tiles(const Rows* rows) noexcept nogil:
    if rows.causal:
        return rows.where == NULL and rows.x_n == 1 and rows.y_n == 1 and rows.inner >= PARTIALS and rows.n < LONG_ROW
    return 2 * rows.inner >= PARTIALS and (rows.n <= NARROW_MAX or (rows.x_inner == 1 and rows.x_n != 1))

cdef inline Py_ssize_t task_size(Py_ssize_t size, int threads) noexcept nogil:
    """A task's first row is a cache miss, so tasks are as large as their even distribution allows."""
    if threads == 1:
        return SLICE
    return min(max(size // (16 * threads), <Py_ssize_t>TASK), <Py_ssize_t>(4 * TASK))

cdef int compute(Rows* rows, int threads) except -1:
    """All rows, on `threads` threads, with a look for an interrupt now and then."""
    cdef Py_ssize_t row_size, row_count, size, r
    cdef Workspaces memory
    cdef RowTasks tasks
    tasks.rows, tasks.in_tiles = rows, uses_tiles(rows)
    if tasks.in_tiles:
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
            for r in range(row_count):
                long_row(rows, r, threads)
            return 0
        memory = Workspaces(threads, rows.n if rows.n <= KEEP else CHUNK, False, False)
    tasks.workspaces = memory.workspaces
    tasks.size = max(1, task_size(row_count * row_size, threads) // row_size)
    return run_tasks(row_task, &tasks, ceil_div(row_count, tasks.size), max(1, SLICE // (tasks.size * row_size)),
                     threads)

def softmax_rows(int op, const elem[:, :, :] x, elem[:, :, :] y, const double[:, :] temperature,
                 const unsigned char[:, :, :] where, offset, int threads, bint nontemporal):
    """Writes `op` of x (outer, n, inner) along n into y, of the same shape, or with n = 1 for reductions.

    temperature (outer, inner) and where (outer, n, inner) may be None; with a temperature, LOGSUMEXP is for rows
    whose largest score is 0; offset is None or that of a causal mask over
    (inner, n). No dimension is 0. y may be x, but not overlap it otherwise.
    """
    cdef Rows rows = describe(<Op>op, x, y, temperature, where, offset, nontemporal)
    if rows.inner == 1 and not rows.causal:
        outer_to_inner(&rows)
    compute(&rows, threads)

# The short way in, for contiguous arrays: _front.pyx calls it by address, without a memoryview. What is
# small is computed here and now, with buffers on the stack.

cdef enum:
    STACK_ELEMENTS = CHUNK  # elements

cdef void compute_small(const Rows* rows) noexcept nogil:
    """All rows as one task, on the calling thread."""
    cdef RowTasks tasks
    cdef RowWorkspace workspace
    cdef TileWorkspace tile
    cdef real[STACK_ELEMENTS + BLOCK * PARTIALS] weights_buf  # a tile's last block may be filled beyond its end
    cdef elem[STACK_ELEMENTS] elements
    cdef fp_state modes = fp_enter()
    workspace.weights_buf = weights_buf
    workspace.tile = &tile
    workspace.elements = elements
    tasks.rows, tasks.in_tiles, tasks.size = rows, uses_tiles(rows), rows.outer * rows.inner
    tasks.workspaces = &workspace
    row_task(&tasks, 0, 0)
    fp_leave(modes)

cdef int contiguous_rows(int op, const void* x, void* y, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
                         double temperature, int threads, bint nontemporal) except -1:
    """x: (outer, n, inner), C-contiguous; y: the same, or (outer, inner) for reductions."""
    cdef Rows rows
    memset(&rows, 0, sizeof(Rows))
    rows.op = <Op>op
    rows.scaled = temperature != 1
    rows.temperature = &temperature
    rows.nontemporal = nontemporal and sizeof(elem) == sizeof(real)
    rows.outer, rows.n, rows.inner = outer, n, inner
    rows.x, rows.x_outer, rows.x_n, rows.x_inner = <const elem*>x, n * inner, inner, 1
    rows.y, rows.y_outer, rows.y_n, rows.y_inner = <elem*>y, n * inner, inner, 1
    if is_reduction(rows.op):
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
