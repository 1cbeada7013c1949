# softmax, log_softmax, logsumexp, softmax_entropy and causal_softmax: the entry points, and the division of rows
# into tasks.

# The tasks of a call, of `size` rows or tiles each.
cdef struct RowTasks:
    const Rows* rows
    bint in_tiles
    Py_ssize_t size
    const RowWorkspace* workspaces              # one for each thread

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
    if rows.x_inner == 1 and rows.x_n != 1:     # side by side: a line is read at once
        return rows.inner > 2 and (4 * rows.inner > PARTIALS or (4 * rows.inner == PARTIALS and rows.op != SOFTMAX))
    return 2 * rows.inner >= PARTIALS and rows.n <= (NARROW_MAX if rows.inner >= PARTIALS else FEW_NARROW_MAX)

cdef inline Py_ssize_t task_size(Py_ssize_t size, int threads) noexcept nogil:
    """Elements of a task. The first row of a task is a cache miss, so tasks are as large as an even load allows."""
    if threads == 1:
        return SLICE
    return min(max(size // (16 * threads), <Py_ssize_t>TASK), <Py_ssize_t>(4 * TASK))

cdef inline Py_ssize_t tile_peel(const Rows* rows) noexcept nogil:
    """Rows by which the first tile is narrower, so that the others write whole cache lines, or suit causal rows."""
    if rows.causal:
        return causal_peel(rows)
    if (rows.nontemporal and rows.y_inner == 1 and rows.inner >= PEELED_MIN
            and rows.y_n * <Py_ssize_t>sizeof(elem) % 64 == 0):
        return <Py_ssize_t>(<size_t>rows.y // sizeof(elem)) % PARTIALS
    return 0

cdef inline Py_ssize_t tile_buffer(const Rows* rows) noexcept nogil:
    """Reals of weights_buf for tiles: enough for one dense row too, or two, which special and causal rows need."""
    cdef Py_ssize_t size = rows.n * PARTIALS
    if rows.causal:
        return max(2 * rows.n if is_delayed(rows) else rows.n, min(size, <Py_ssize_t>(CAUSAL_TILE_MAX * PARTIALS)))
    return size if size <= KEEP else max(min(rows.n, <Py_ssize_t>KEEP), CHUNK)

cdef int compute(Rows* rows, int threads) except -1:
    """Computes all rows on `threads` threads, with checks for an interrupt in between."""
    cdef Py_ssize_t row_size = rows.n, row_count = rows.outer * rows.inner, size, strip = 1, r
    cdef Workspaces memory = Workspaces()
    cdef RowTasks tasks
    tasks.rows, tasks.in_tiles = rows, uses_tiles(rows)
    if tasks.in_tiles:
        rows.peel = tile_peel(rows)
        if has_long_tiles(rows, threads):
            return all_long_tiles(rows, threads)
        row_size, row_count = rows.n * PARTIALS, rows.outer * tiles_of(rows)
        strip = tiles_of_strip(rows)
        size = tile_buffer(rows) if strip == 1 else strip * tile_size(rows)
    elif is_shared(rows, row_count, threads):
        for r in range(row_count):
            long_row(rows, r, row_threads(rows.n, threads))
        return 0
    else:
        size = rows.n if rows.n <= KEEP else CHUNK
        if is_delayed(rows) and is_contiguous_unmasked(rows):
            size *= 2
    memory.reserve(threads, size, False, tasks.in_tiles)
    tasks.workspaces = memory.workspaces
    # tasks of whole strips, if that leaves each thread two
    tasks.size = max(task_size(row_count * row_size, threads) // row_size, min(strip, row_count // (2 * threads)), 1)
    return run_tasks(row_task, &tasks, ceil_div(row_count, tasks.size), max(1, SLICE // (tasks.size * row_size)),
                     threads, IN_SHARES)

def softmax_rows(int op, const elem[:, :, :] x, elem[:, :, :] y, const double[:, :] temperature,
                 const unsigned char[:, :, :] where, offset, int threads, bint nontemporal):
    """Writes the results of x (outer, n, inner) along n to y, of the same shape, or with n = 1 for reductions.

    op: see Op. temperature (outer, inner) and where (outer, n, inner) may be None; LOGSUMEXP with a temperature is only
    for rows whose largest score is 0. offset is None, or that of a causal mask over (inner, n), for SOFTMAX only.
    No dimension is 0. y may be x, but must not overlap it otherwise.
    """
    cdef Rows rows = describe(<Op>op, x, y, temperature, where, offset, nontemporal)
    arrange(&rows)
    compute(&rows, threads)

# The entry points for contiguous arrays, which are called by their addresses, without a memoryview. Small arrays are
# computed at once, with buffers on the stack.

cdef enum:
    STACK_ELEMENTS = CHUNK      # elements: larger arrays are not small

cdef void compute_small(Rows* rows) noexcept nogil:
    """Computes all rows as one task on the calling thread."""
    cdef RowTasks tasks
    cdef RowWorkspace workspace
    cdef TileWorkspace tile
    cdef real[STACK_ELEMENTS + BLOCK * PARTIALS] weights_buf  # the last block of a tile may be filled beyond its end
    cdef elem[STACK_ELEMENTS] elements
    cdef fp_state modes = fp_enter()
    workspace.weights_buf = weights_buf
    workspace.tile = &tile
    workspace.elements = elements
    tasks.rows, tasks.in_tiles, tasks.size = rows, uses_tiles(rows), rows.outer * rows.inner
    tasks.workspaces = &workspace
    if rows.causal and tasks.in_tiles:
        rows.peel = causal_peel(rows)
    row_task(&tasks, 0, 0)
    fp_leave(modes)

cdef inline int compute_contiguous(Rows* rows, int threads) except -1:
    cdef Py_ssize_t n = rows.n
    if (rows.outer * n * rows.inner <= STACK_ELEMENTS
            and (n <= BLOCK or n * PARTIALS <= STACK_ELEMENTS or not uses_tiles(rows))):
        compute_small(rows)
        return 0
    return compute(rows, threads)

cdef inline void describe_contiguous(Rows* rows, Op op, const void* x, void* y, const double* temperature,
                                     bint nontemporal) noexcept nogil:
    """All but sizes and strides."""
    memset(rows, 0, sizeof(Rows))
    rows.op, rows.x, rows.y = op, <const elem*>x, <elem*>y
    rows.scaled, rows.temperature = temperature[0] != 1, temperature
    rows.nontemporal = nontemporal and sizeof(elem) == sizeof(real)

cdef int contiguous_rows(int op, const void* x, void* y, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
                         double temperature, int threads, bint nontemporal) except -1:
    """x: (outer, n, inner), C-contiguous; y: the same, or (outer, inner) for reductions."""
    cdef Rows rows
    describe_contiguous(&rows, <Op>op, x, y, &temperature, nontemporal)
    rows.outer, rows.n, rows.inner = outer, n, inner
    rows.x_outer, rows.x_n, rows.x_inner = n * inner, inner, 1
    rows.y_outer, rows.y_n, rows.y_inner = n * inner, inner, 1
    if is_reduction(rows.op):
        rows.y_outer = inner
    arrange(&rows)
    return compute_contiguous(&rows, threads)

cdef int contiguous_causal_rows(const void* x, void* y, Py_ssize_t outer, Py_ssize_t queries, Py_ssize_t keys,
                                Py_ssize_t offset, double temperature, int threads, bint nontemporal) except -1:
    """causal_softmax. x, y: (outer, L, S), C-contiguous."""
    cdef Rows rows
    describe_contiguous(&rows, SOFTMAX, x, y, &temperature, nontemporal)
    rows.causal, rows.offset = True, offset
    rows.outer, rows.n, rows.inner = outer, keys, queries
    rows.x_outer, rows.x_n, rows.x_inner = queries * keys, 1, keys
    rows.y_outer, rows.y_n, rows.y_inner = queries * keys, 1, keys
    return compute_contiguous(&rows, threads)

contiguous_address = <size_t>&contiguous_rows
causal_address = <size_t>&contiguous_causal_rows
causal_mask_address = <size_t>&contiguous_causal_mask
lanes = LANES
