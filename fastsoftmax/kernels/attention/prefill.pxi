# AttentionParams of many queries.
#
# The queries stand in the lanes. For a group of COLUMNS registers of queries, transposed once, the scores of
# a block of keys come out transposed, a line of queries for each key: elements of a key are broadcast straight from
# where they lie, so keys and values are neither packed nor copied; maximum and sum run down the lanes, with no step
# across a register; and the weights already lie as the second product wants them. Blocks that nobody sees are
# skipped, as in FlashAttention (Dao et al., 2022).

# --- a group of queries and a block of keys

cdef inline void attend_kv_block(int rows, int columns, const AttentionParams* params, Py_ssize_t b,
                                 Py_ssize_t key_head, QueryTile* tile, PrefillWorkspace* workspace,
                                 const real* key_block, Py_ssize_t key_stride, const real* value_block,
                                 Py_ssize_t value_stride, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Keys start .. stop - 1; the blocks begin at `start`."""
    cdef Py_ssize_t lane, skipped, count, first_key = max(start, tile.any_begin), end = min(stop, tile.any_end)
    cdef const elem* value
    cdef bint partial, careful
    cdef int bias_flags = 0
    count = end - first_key
    skipped = first_key - start
    if count <= 0:
        return
    partial = first_key < tile.all_begin or end > tile.all_end
    if params.biases:
        for lane in range(tile.rows):
            bias_flags |= load_score_bias(params, b, tile.head[lane], tile.query[lane], first_key, count,
                                          workspace.bias_sum + lane * KV_BLOCK)
        if not bias_flags & 1:
            return
    score_block(rows, columns, key_block + skipped * key_stride, key_stride, count, params.head_dim, tile.query_t,
                tile.scale, workspace.scores)
    if params.softcap != 0:
        cap_scores(params.softcap, count * columns, workspace.scores)
    if bias_flags & 2:
        add_biases(columns, count, bias_flags & 8, workspace.bias_sum, workspace.scores)
    if params.slopes != NULL:
        add_slopes(params, b, tile, first_key, count, workspace.scores)
    if partial:
        hide_keys(tile, first_key, count, workspace.scores)
    if params.entropy != NULL:
        online_softmax_tile(columns, skipped, count, True, True, workspace.scores, tile)
    elif params.lse != NULL:
        online_softmax_tile(columns, skipped, count, True, False, workspace.scores, tile)
    else:
        online_softmax_tile(columns, skipped, count, False, False, workspace.scores, tile)
    value = row_address(params.value, params.value_stride, b, key_head, start)
    if (partial or bias_flags & 4) and not workspace.value_known:
        workspace.value_known = True
        workspace.value_finite = is_finite(value, params.value_stride[2], stop - start, params.value_dim)
        if not workspace.value_finite:
            clear_nonfinite(value, params.value_stride[2], stop - start, params.value_dim, workspace.clean)
            if sizeof(elem) != sizeof(real):
                convert(workspace.clean, params.value_dim, stop - start, params.value_dim, workspace.value)
    careful = workspace.value_known and not workspace.value_finite
    if careful:
        value_block = <const real*>workspace.clean if sizeof(elem) == sizeof(real) else workspace.value
        value_stride = params.value_dim
    add_weighted_values(rows, columns, value_block + skipped * value_stride, value_stride, skipped, count,
                        params.value_dim, workspace.scores, tile.rescale, tile.out_t)
    if careful:
        add_nonfinite_values(params, tile, workspace, value + skipped * params.value_stride[2], first_key, count)

cdef void attend_kv_block_1(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head, QueryTile* tile,
                            PrefillWorkspace* workspace, const real* key, Py_ssize_t key_stride, const real* value,
                            Py_ssize_t value_stride, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    attend_kv_block(TILE_1, 1, params, b, key_head, tile, workspace, key, key_stride, value, value_stride, start, stop)

cdef void attend_kv_block_2(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head, QueryTile* tile,
                            PrefillWorkspace* workspace, const real* key, Py_ssize_t key_stride, const real* value,
                            Py_ssize_t value_stride, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    attend_kv_block(TILE_2, 2, params, b, key_head, tile, workspace, key, key_stride, value, value_stride, start, stop)

cdef void attend_kv_block_3(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head, QueryTile* tile,
                            PrefillWorkspace* workspace, const real* key, Py_ssize_t key_stride, const real* value,
                            Py_ssize_t value_stride, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    attend_kv_block(TILE_3, 3, params, b, key_head, tile, workspace, key, key_stride, value, value_stride, start, stop)

# --- a block of queries

cdef void finalize_query_tile(const AttentionParams* params, Py_ssize_t b, QueryTile* tile) noexcept nogil:
    cdef RowPointer[TILE_ROWS] row
    cdef real[TILE_ROWS] lse, entropy
    cdef vreal[COLUMNS] inverse
    cdef vreal row_lse, row_entropy
    cdef Py_ssize_t lane, e, at
    cdef int c, columns = tile.columns
    for c in range(columns):
        inverse[c] = finalize_rows(params, tile.row_max[c], tile.row_sum[c], tile.excess[c], tile.excess_rest[c],
                                   tile.moment[c] + tile.moment_rest[c], &row_lse, &row_entropy)
        store(lse + c * LANES, row_lse)
        store(entropy + c * LANES, row_entropy)
    for lane in range(tile.rows):
        at = (b * params.heads + tile.head[lane]) * params.length + tile.query[lane]
        if params.lse != NULL:
            params.lse[at] = lse[lane]
        if params.entropy != NULL:
            params.entropy[at] = entropy[lane]
        row[lane] = <RowPointer>row_address(params.out, params.out_stride, b, tile.head[lane], tile.query[lane])
    if params.value_dim < LANES:
        for e in range(params.value_dim):
            for c in range(columns):
                store(tile.out_t + (e * columns + c) * LANES, load(tile.out_t + (e * columns + c) * LANES) * inverse[c])
        for lane in range(tile.rows):
            scatter_row(params, tile.out_t + lane, columns * LANES, row[lane])
        return
    for c in range(columns):
        unpack_output(params, tile.out_t + c * LANES, columns * LANES, inverse[c], tile.rows - c * LANES, row
                      + c * LANES)

cdef inline int tile_registers(Py_ssize_t registers) noexcept nogil:
    """The next group's share: 3, but rather 2 and 2 than 3 and 1, which has few multiply-adds for each load."""
    return <int>(registers if registers <= COLUMNS else 2 if registers == 4 else COLUMNS)

cdef inline Py_ssize_t rows_a_task(Py_ssize_t rows) noexcept nogil:
    """As many as QUERY_TILES tiles hold, or less, so that all tasks have about the same."""
    cdef Py_ssize_t registers = ceil_div(rows, LANES)
    return ceil_div(registers, ceil_div(registers, QUERY_TILES * COLUMNS)) * LANES

# The tasks of a call: rows_a_task rows each, of the queries that share a key head.
cdef struct PrefillTasks:
    const AttentionParams* params
    char* workspaces                            # PrefillWorkspace, one a thread
    Py_ssize_t workspace_bytes

cdef Py_ssize_t prefill_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    """The last rows of a head, which may see most, come first. The cost is the number of scores, by register."""
    cdef const PrefillTasks* tasks = <const PrefillTasks*>context
    cdef const AttentionParams* params = tasks.params
    cdef PrefillWorkspace* workspace = <PrefillWorkspace*>(tasks.workspaces + thread * tasks.workspace_bytes)
    cdef Py_ssize_t rows = params.length * params.queries_per_kv, size = rows_a_task(rows), blocks = ceil_div(rows,
                                                                                                              size)
    cdef Py_ssize_t block = blocks - 1 - task % blocks, key_head = task // blocks % params.key_heads
    cdef Py_ssize_t b = task // blocks // params.key_heads
    cdef Py_ssize_t row = block * size, last = min(row + size, rows), count
    cdef Py_ssize_t begin = params.keys, end = 0, start, stop
    cdef Py_ssize_t key_stride = params.key_stride[2], value_stride = params.value_stride[2]
    cdef Py_ssize_t cost = 0
    cdef const elem* key
    cdef const elem* value
    cdef const real* key_block
    cdef const real* value_block
    cdef QueryTile* tile
    cdef int tiles = 0, k
    while row < last:
        tile = &workspace.tile[tiles]
        count = min(tile_registers(ceil_div(last - row, LANES)) * LANES, last - row)
        place_query_tile(params, b, key_head, row, count, tile)
        load_query_tile(params, b, tile)
        init_query_tile(params, b, tile)
        begin, end = min(begin, tile.any_begin), max(end, tile.any_end)
        cost += tile.columns * (max(tile.any_end - tile.any_begin, 0) + LANES)
        row += count
        tiles += 1
    start = begin // KV_BLOCK * KV_BLOCK
    while start < end:
        stop = min(start + KV_BLOCK, end)
        key = row_address(params.key, params.key_stride, b, key_head, start)
        value = row_address(params.value, params.value_stride, b, key_head, start)
        if sizeof(elem) == sizeof(real):
            key_block, value_block = <const real*>key, <const real*>value
        else:
            convert(key, params.key_stride[2], stop - start, params.head_dim, workspace.key)
            convert(value, params.value_stride[2], stop - start, params.value_dim, workspace.value)
            key_block, key_stride = workspace.key, params.head_dim
            value_block, value_stride = workspace.value, params.value_dim
        workspace.value_known, workspace.value_finite = False, True
        for k in range(tiles):
            tile = &workspace.tile[k]
            if tile.columns == 3:
                attend_kv_block_3(params, b, key_head, tile, workspace, key_block, key_stride, value_block,
                                  value_stride, start, stop)
            elif tile.columns == 2:
                attend_kv_block_2(params, b, key_head, tile, workspace, key_block, key_stride, value_block,
                                  value_stride, start, stop)
            else:
                attend_kv_block_1(params, b, key_head, tile, workspace, key_block, key_stride, value_block,
                                  value_stride, start, stop)
        start += KV_BLOCK
    for k in range(tiles):
        finalize_query_tile(params, b, &workspace.tile[k])
    return cost

# --- all blocks

cdef class PrefillWorkspaces:
    """The buffers of `threads` threads, freed with it."""
    cdef char* block
    cdef Py_ssize_t thread_bytes

    def __cinit__(self, int threads, Py_ssize_t dim, Py_ssize_t value_dim):
        cdef Py_ssize_t query_bytes = round_up_to_line(dim * TILE_ROWS * sizeof(real))
        cdef Py_ssize_t out_bytes = round_up_to_line(value_dim * TILE_ROWS * sizeof(real))
        cdef Py_ssize_t key_bytes = 0 if sizeof(elem) == sizeof(real) else round_up_to_line(KV_BLOCK * dim
                                                                                            * sizeof(real))
        cdef Py_ssize_t value_bytes = 0 if sizeof(elem) == sizeof(real) else round_up_to_line(KV_BLOCK * value_dim
                                                                                              * sizeof(real))
        cdef Py_ssize_t t
        cdef int k
        cdef PrefillWorkspace* workspace
        cdef char* at
        self.thread_bytes = (round_up_to_line(sizeof(PrefillWorkspace)) + QUERY_TILES * (query_bytes + out_bytes)
                             + key_bytes + value_bytes + round_up_to_line(KV_BLOCK * value_dim * sizeof(elem)))
        self.block = <char*>allocate(threads * self.thread_bytes)
        for t in range(threads):
            workspace = self.of_thread(t)
            at = <char*>workspace + round_up_to_line(sizeof(PrefillWorkspace))
            for k in range(QUERY_TILES):
                workspace.tile[k].query_t = <real*>at
                workspace.tile[k].out_t = <real*>(at + query_bytes)
                at += query_bytes + out_bytes
            workspace.key = <real*>at
            workspace.value = <real*>(at + key_bytes)
            workspace.clean = <elem*>(at + key_bytes + value_bytes)

    cdef inline PrefillWorkspace* of_thread(self, Py_ssize_t t) noexcept nogil:
        return <PrefillWorkspace*>(self.block + t * self.thread_bytes)

    def __dealloc__(self):
        free(self.block)

cdef int prefill(const AttentionParams* params, int threads) except -1:
    cdef Py_ssize_t rows = params.length * params.queries_per_kv, size = rows_a_task(rows)
    cdef Py_ssize_t count = params.batch * params.key_heads * ceil_div(rows, size), slice_
    cdef PrefillTasks tasks
    cdef PrefillWorkspaces workspaces
    threads = <int>min(threads, count)
    workspaces = PrefillWorkspaces(threads, params.head_dim, params.value_dim)
    tasks.params, tasks.workspaces, tasks.workspace_bytes = params, workspaces.block, workspaces.thread_bytes
    # between two looks for an interrupt, a fraction of a second by any kernel; the smallest task takes microseconds
    slice_ = max(<Py_ssize_t>500000000 // (size * multiplications_of_row(params) + 10000), <Py_ssize_t>(2 * threads))
    return run_tasks(prefill_task, &tasks, count, slice_, threads)
