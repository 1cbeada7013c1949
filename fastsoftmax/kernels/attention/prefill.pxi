# Prefill: attention of many queries.
#
# The queries stand in the lanes. For a tile of COLUMNS registers of queries, transposed once, the scores of a block of
# keys come out transposed, COLUMNS registers for each key. So elements of a key are broadcast from where they stand,
# and keys and values are neither packed nor copied; maximum and sum run down the lanes, with no step across a register;
# and the weights already stand as the second product needs them. Blocks that no query sees are skipped, as in
# FlashAttention (Dao et al., 2022).

cdef struct PrefillWorkspace:               # one thread's buffers
    QueryTile[QUERY_TILES] tile
    real[KV_BLOCK * TILE_ROWS] scores       # of a block, transposed; then weights
    real[TILE_ROWS * KV_BLOCK] bias_sum     # a row a query, or one for all of a tile
    KvBlock block                           # the current block of keys
    const real* key                         # its keys as reals: where they stand, or in key_reals
    const real* value
    Py_ssize_t key_row, value_row
    bint value_known, value_finite          # whether its values were looked at, and all are finite
    bint key_huge, value_special            # pairs: see pairs.pxi
    real* key_reals                         # or pairs
    real* value_reals                       # with pairs: those that are special
    real* value_pairs                       # (steps, Ev)
    real* weight_pairs
    real* query_rows                        # room for a tile's, (TILE_ROWS, E)
    real* key_of_row                        # room for one key
    elem* clean                             # its values without NaN and infinities
    elem* page_keys                         # copies of keys and values that span pages
    elem* page_values

cdef bint pack_values(const KvRows* value, Py_ssize_t count, Py_ssize_t dim, PrefillWorkspace* ws) noexcept nogil:
    """ws.value_pairs. Returns whether a value is special; in the pairs it is 0."""
    cdef Py_ssize_t elements
    if not MATRIX_UNIT:
        pack_value_pairs(value, count, dim, ws.value_pairs)
        elements = 2 * steps_of(count) * dim
    else:
        pack_value_matrix(value, count, dim, ws.weight_pairs, ws.value_pairs)
        elements = ceil_div(count, MATRIX_KEYS) * MATRIX_KEYS * value_rows(dim)
    if not has_special(<const elem*>ws.value_pairs, elements):
        return False
    clear_special(<elem*>ws.value_pairs, elements)
    return True

cdef void load_kv_block(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t start,
                        Py_ssize_t stop, PrefillWorkspace* ws) noexcept nogil:
    """The next block of keys; 16-bit elements are converted once for all tiles."""
    ws.block = kv_block(&params.table, &params.key, &params.value, b, key_head, start, stop)
    ws.value_known, ws.value_finite = False, True
    if ws.block.spans_pages:
        copy_pages(&params.table, &params.key, b, &ws.block, params.head_dim, ws.page_keys, &ws.block.key)
        copy_pages(&params.table, &params.value, b, &ws.block, params.value_dim, ws.page_values, &ws.block.value)
    if uses_pairs(params):
        ws.key_huge = pack_key_pairs(&ws.block.key, stop - start, params.head_dim, ws.key_reals)
        ws.value_special = pack_values(&ws.block.value, stop - start, params.value_dim, ws)
        ws.key, ws.key_row = ws.key_reals, pairs_of(params.head_dim)
        if ws.value_special:
            pick_special(ws.block.value.first, ws.block.value.step, stop - start, params.value_dim, ws.value_reals)
    elif sizeof(elem) == sizeof(real):
        ws.key, ws.key_row = <const real*>ws.block.key.first, ws.block.key.step
        ws.value, ws.value_row = <const real*>ws.block.value.first, ws.block.value.step
    else:
        convert(ws.block.key.first, ws.block.key.step, stop - start, params.head_dim, ws.key_reals)
        convert(ws.block.value.first, ws.block.value.step, stop - start, params.value_dim, ws.value_reals)
        ws.key, ws.key_row = ws.key_reals, params.head_dim
        ws.value, ws.value_row = ws.value_reals, params.value_dim

cdef void find_nonfinite_values(const AttentionParams* params, PrefillWorkspace* ws) noexcept nogil:
    """Looks for values of the block that a hidden key must not bring into a sum, and clears them."""
    cdef Py_ssize_t count = ws.block.stop - ws.block.start
    if ws.value_known:
        return
    ws.value_known = True
    ws.value_finite = is_finite(&ws.block.value, count, params.value_dim)
    if ws.value_finite:
        return
    clear_nonfinite(&ws.block.value, count, params.value_dim, ws.clean)
    if uses_pairs(params):
        pick_special(ws.clean, params.value_dim, count, params.value_dim, ws.value_reals)
    elif sizeof(elem) == sizeof(real):
        ws.value, ws.value_row = <const real*>ws.clean, params.value_dim
    else:
        convert(ws.clean, params.value_dim, count, params.value_dim, ws.value_reals)

cdef void restore_nonfinite_values(const AttentionParams* params, QueryTile* tile, PrefillWorkspace* ws,
                                   const real* weights, Py_ssize_t key, Py_ssize_t count) noexcept nogil:
    cdef WeightedRows to
    cdef Py_ssize_t lanes = tile.columns * LANES
    to.rows, to.begin, to.end = lanes, tile.begin, tile.end
    to.bias_sum, to.bias_row = ws.bias_sum if params.biases else NULL, 0 if params.shared_bias else KV_BLOCK
    to.weights, to.weight_row, to.weight_key = weights, 1, lanes
    to.out, to.out_row, to.out_element, to.gap_at, to.gap = tile.out_t, 1, lanes, params.value_dim, 0
    add_nonfinite_values(&to, &ws.block.value, key - ws.block.start, params.value_dim, key, count)

cdef void add_tile_biases(int columns, Py_ssize_t count, bint huge, const real* bias_sum, real* scores) noexcept nogil:
    """bias_sum has a row of KV_BLOCK a query: LANES queries by LANES keys are transposed at a time."""
    cdef vreal[LANES] square
    cdef Py_ssize_t turn, j
    cdef int c, k
    for turn in range(ceil_div(count, LANES)):
        j = turn * LANES
        for c in range(columns):
            for k in range(LANES):
                square[k] = load(bias_sum + (c * LANES + k) * KV_BLOCK + j)
            transpose(square)
            for k in range(LANES):
                add_bias(huge, square[k], scores + ((j + k) * columns + c) * LANES)

cdef void add_shared_biases(int columns, Py_ssize_t count, bint huge, const real* bias_sum,
                            real* scores) noexcept nogil:
    """The same biases for all queries: bias_sum (count)."""
    cdef Py_ssize_t j
    cdef int c
    for j in range(count):
        for c in range(columns):
            add_bias(huge, broadcast(bias_sum[j]), scores + (j * columns + c) * LANES)

cdef inline void update_tile(int columns, bint matrix, bint scaled, Py_ssize_t skipped, Py_ssize_t count,
                             bint statistics, bint moments, real* scores, QueryTile* tile) noexcept nogil:
    """Scores become weights, for a matrix unit in pairs, and the tile's state that over its keys so far. scaled: they
    have been multiplied by scale; otherwise that is above 0."""
    cdef vreal[COLUMNS] row_max, shift, factor
    cdef BlockSums[COLUMNS] sums
    cdef OnlineState block
    cdef vreal one
    cdef Py_ssize_t j
    cdef int c
    if matrix:
        for j in range(count * columns, ceil_div(count, MATRIX_KEYS) * MATRIX_KEYS * columns):
            store(scores + j * LANES, broadcast(-INFINITY))
    for c in range(columns):
        row_max[c], sums[c] = tile.state[c].row_max, no_sums()
        if matrix:
            factor[c], row_max[c] = broadcast(1) if scaled else tile.scale[c], broadcast(-INFINITY)
    for j in range(count):
        for c in range(columns):
            row_max[c] = vmax(row_max[c], load(scores + (j * columns + c) * LANES))
    for c in range(columns):
        if matrix:
            row_max[c] = vmax(tile.state[c].row_max, row_max[c] * factor[c])
        shift[c] = finite_or_zero(row_max[c])
    if matrix:
        exp_and_pack_scores(columns, ceil_div(count, MATRIX_KEYS) * MATRIX_KEYS, statistics, moments, factor, shift,
                            scores, sums)
    else:
        exp_and_sum_scores(columns, skipped, count, statistics, moments, shift, scores, sums)
    for c in range(columns):
        block = state_of_block(statistics, row_max[c], &sums[c])
        merge_state(statistics, moments, True, &block, &tile.state[c], &tile.rescale[c], &one)

cdef inline void attend_kv_block(int rows, int columns, bint paired, const AttentionParams* params, Py_ssize_t b,
                                 QueryTile* tile, PrefillWorkspace* ws) noexcept nogil:
    """One tile of queries and the current block of keys. rows x columns: the tile of the products."""
    cdef Py_ssize_t lane, key = max(ws.block.start, tile.any_begin), end = min(ws.block.stop, tile.any_end)
    cdef Py_ssize_t count, skipped, steps
    cdef bint partial, matrix = paired and MATRIX_UNIT, scaled = True, huge
    cdef const real* weights = ws.scores
    cdef int bias = 0
    if end <= key:
        return
    if paired:                              # whole groups: the keys before any_begin are hidden
        key -= (key - ws.block.start) % (MATRIX_KEYS if matrix else PAIR_GROUP)
    count, skipped = end - key, key - ws.block.start
    partial = key < tile.all_begin or end > tile.all_end
    if params.biases:
        for lane in range(1 if params.shared_bias else tile.rows):
            bias |= load_score_bias(params, b, tile.head[lane], tile.query[lane], key, count,
                                    ws.bias_sum + lane * KV_BLOCK)
        if not bias & BIAS_SHOWS:
            return
    huge = paired and (ws.key_huge or tile.any_huge)
    if matrix:
        score_matrix(columns, ws.key + skipped * ws.key_row, ws.key_row, count, tile.query_t, ws.scores)
        scaled = huge or params.softcap != 0 or bias & BIAS_ADDS or params.slopes != NULL or not tile.scale_positive
        if scaled:
            scale_scores(columns, count, tile.scale, ws.scores)
    else:
        score_block(rows, columns, paired, ws.key + skipped * ws.key_row, ws.key_row, count,
                    pairs_of(params.head_dim) if paired else params.head_dim, tile.query_t, tile.scale, ws.scores)
    if huge:
        replace_huge_scores(params, tile, &ws.block.key, skipped, count, ws.query_rows, ws.key_of_row, ws.scores)
    if params.softcap != 0:
        cap_scores(params.softcap, count * columns, ws.scores)
    if bias & BIAS_ADDS and params.shared_bias:
        add_shared_biases(columns, count, bias & BIAS_IS_HUGE, ws.bias_sum, ws.scores)
    elif bias & BIAS_ADDS:
        add_tile_biases(columns, count, bias & BIAS_IS_HUGE, ws.bias_sum, ws.scores)
    if partial or params.slopes != NULL:
        mask_query_tile(params, b, key, count, tile)
    if params.slopes != NULL:
        add_alibi(columns, count, tile.mask, broadcast(0), 1, ws.scores)
    if partial:
        hide_keys(columns, count, tile.mask, broadcast(0), 1, ws.scores)
    if params.entropy != NULL:
        update_tile(columns, matrix, scaled, skipped, count, True, True, ws.scores, tile)
    elif params.lse != NULL:
        update_tile(columns, matrix, scaled, skipped, count, True, False, ws.scores, tile)
    else:
        update_tile(columns, matrix, scaled, skipped, count, False, False, ws.scores, tile)
    if (partial or bias & BIAS_HIDES) and (not paired or ws.value_special):
        find_nonfinite_values(params, ws)
    if matrix:
        add_value_matrix(columns, ws.value_pairs, skipped, count, params.value_dim, ws.scores, tile.rescale,
                         ws.weight_pairs, tile.out_t)
        if ws.value_special:
            unpack_weights(columns, count, ws.scores, ws.weight_pairs)
            weights = ws.weight_pairs
    elif paired:
        pack_weights(columns, count, ws.scores, ws.weight_pairs)
        steps = steps_of(skipped)
        add_weighted_values(rows, columns, True, ws.value_pairs + steps * params.value_dim, params.value_dim, steps,
                            steps_of(count), params.value_dim, ws.weight_pairs, tile.rescale, tile.out_t)
    else:
        add_weighted_values(rows, columns, False, ws.value + skipped * ws.value_row, ws.value_row, skipped, count,
                            params.value_dim, ws.scores, tile.rescale, tile.out_t)
    if paired and ws.value_special:
        add_special_values(columns * LANES, ws.value_reals, skipped, count, params.value_dim, weights, tile.out_t)
    if not ws.value_finite:
        restore_nonfinite_values(params, tile, ws, weights, key, count)

# One function for each number of columns, so that the compiler keeps the sums of the products in registers.

cdef void attend_kv_block_1(const AttentionParams* params, Py_ssize_t b, QueryTile* tile,
                            PrefillWorkspace* ws) noexcept nogil:
    attend_kv_block(TILE_1, 1, False, params, b, tile, ws)

cdef void attend_kv_block_2(const AttentionParams* params, Py_ssize_t b, QueryTile* tile,
                            PrefillWorkspace* ws) noexcept nogil:
    attend_kv_block(TILE_2, 2, False, params, b, tile, ws)

cdef void attend_kv_block_3(const AttentionParams* params, Py_ssize_t b, QueryTile* tile,
                            PrefillWorkspace* ws) noexcept nogil:
    attend_kv_block(TILE_3, 3, False, params, b, tile, ws)

cdef void attend_paired_block_1(const AttentionParams* params, Py_ssize_t b, QueryTile* tile,
                                PrefillWorkspace* ws) noexcept nogil:
    attend_kv_block(TILE_1, 1, True, params, b, tile, ws)

cdef void attend_paired_block_2(const AttentionParams* params, Py_ssize_t b, QueryTile* tile,
                                PrefillWorkspace* ws) noexcept nogil:
    attend_kv_block(TILE_2, 2, True, params, b, tile, ws)

cdef void attend_paired_block_3(const AttentionParams* params, Py_ssize_t b, QueryTile* tile,
                                PrefillWorkspace* ws) noexcept nogil:
    attend_kv_block(TILE_3, 3, True, params, b, tile, ws)

cdef inline void attend_tile(const AttentionParams* params, Py_ssize_t b, QueryTile* tile,
                             PrefillWorkspace* ws) noexcept nogil:
    if uses_pairs(params):
        if tile.columns == 3:
            attend_paired_block_3(params, b, tile, ws)
        elif tile.columns == 2:
            attend_paired_block_2(params, b, tile, ws)
        else:
            attend_paired_block_1(params, b, tile, ws)
    elif tile.columns == 3:
        attend_kv_block_3(params, b, tile, ws)
    elif tile.columns == 2:
        attend_kv_block_2(params, b, tile, ws)
    else:
        attend_kv_block_1(params, b, tile, ws)

cdef void finalize_query_tile(const AttentionParams* params, Py_ssize_t b, QueryTile* tile) noexcept nogil:
    """Writes the results of a tile's rows."""
    cdef RowPointer[TILE_ROWS] row
    cdef real[TILE_ROWS] lse, entropy
    cdef vreal[COLUMNS] inverse
    cdef vreal row_lse, row_entropy
    cdef Py_ssize_t lane, e
    cdef int c, columns = tile.columns
    for c in range(columns):
        inverse[c] = finalize_rows(params, &tile.state[c], &row_lse, &row_entropy)
        store(lse + c * LANES, row_lse)
        store(entropy + c * LANES, row_entropy)
    for lane in range(tile.rows):
        store_statistics(params, b, tile.head[lane], tile.query[lane], lse[lane], entropy[lane])
        row[lane] = row_address(&params.out, b, tile.head[lane], tile.query[lane])
    if params.value_dim < LANES:
        for e in range(params.value_dim):
            for c in range(columns):
                store(tile.out_t + (e * columns + c) * LANES,
                      load(tile.out_t + (e * columns + c) * LANES) * inverse[c])
        for lane in range(tile.rows):
            scatter_row(params, tile.out_t + lane, columns * LANES, row[lane])
        return
    for c in range(columns):
        unpack_output(params, tile.out_t + c * LANES, columns * LANES, inverse[c], tile.rows - c * LANES,
                      row + c * LANES)

# Tasks: rows_a_task rows of the queries that share a key head.

cdef inline Py_ssize_t most_tasks(Py_ssize_t rows) noexcept nogil:
    """The tasks of so many rows, or one more."""
    return ceil_div(ceil_div(rows, LANES), QUERY_TILES * COLUMNS)

cdef inline Py_ssize_t rows_a_task(Py_ssize_t rows) noexcept nogil:
    """As many as QUERY_TILES tiles hold, or fewer, so that all tasks have about the same."""
    return ceil_div(ceil_div(rows, LANES), most_tasks(rows)) * LANES

cdef enum:
    PLANNED_TASKS = 4096    # stand in the table at a time, or as many more as a pair has

cdef struct PrefillTask:
    Py_ssize_t b, key_head, row, stop           # the rows row .. stop - 1

cdef struct PrefillTasks:
    const AttentionParams* params
    const PrefillTask* tasks
    char* workspaces                            # PrefillWorkspace, one a thread
    Py_ssize_t workspace_bytes

cdef Py_ssize_t plan_prefill(const AttentionParams* params, const Sequence* sequences, Py_ssize_t pairs,
                             Py_ssize_t* first, PrefillTask* task) noexcept nogil:
    """Writes the tasks of some pairs of sequence and key head, from number first[0] on. Returns the number of tasks.

    The last rows of a head, which may see most, come first. All tasks of a head follow one another: its keys are in the
    cache then.
    """
    cdef Py_ssize_t rows, size, part, tasks = 0
    while first[0] < pairs and tasks < PLANNED_TASKS:
        task.b, task.key_head = sequence_at(sequences, first[0] // params.key_heads), first[0] % params.key_heads
        rows = rows_of_head(params, task.b)
        size = rows_a_task(rows)
        for part in range(ceil_div(rows, size) - 1, -1, -1):
            task[1] = task[0]
            task.row, task.stop = part * size, min((part + 1) * size, rows)
            task += 1
            tasks += 1
        first[0] += 1
    return tasks

cdef Py_ssize_t prefill_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    """The cost is the number of scores, by register."""
    cdef const PrefillTasks* tasks = <const PrefillTasks*>context
    cdef const AttentionParams* params = tasks.params
    cdef PrefillWorkspace* ws = <PrefillWorkspace*>(tasks.workspaces + thread * tasks.workspace_bytes)
    cdef Py_ssize_t b = tasks.tasks[task].b, key_head = tasks.tasks[task].key_head
    cdef Py_ssize_t row = tasks.tasks[task].row, last = tasks.tasks[task].stop, count
    cdef Py_ssize_t begin = keys_of(params, b), end = 0, start, cost = 0
    cdef QueryTile* tile
    cdef int tiles = 0, k
    while row < last:
        tile = &ws.tile[tiles]
        count = min(tile_registers(ceil_div(last - row, LANES)) * LANES, last - row)
        place_query_tile(params, b, key_head, row, count, tile)
        if uses_pairs(params):
            load_query_pairs(params, b, tile, ws.query_rows)
        else:
            load_query_tile(params, b, tile)
        init_query_tile(params, b, tile)
        begin, end = min(begin, tile.any_begin), max(end, tile.any_end)
        cost += tile.columns * (max(tile.any_end - tile.any_begin, 0) + LANES)
        row += count
        tiles += 1
    start = begin // KV_BLOCK * KV_BLOCK
    if uses_pairs(params):
        matrix_begin()
    while start < end:
        load_kv_block(params, b, key_head, start, min(start + KV_BLOCK, end), ws)
        for k in range(tiles):
            attend_tile(params, b, &ws.tile[k], ws)
        start = ws.block.stop
    if uses_pairs(params):
        matrix_end()
    for k in range(tiles):
        finalize_query_tile(params, b, &ws.tile[k])
    return cost

cdef class PrefillWorkspaces:
    """The buffers of `threads` threads, and room for a table of `tasks` tasks; freed with it."""
    cdef char* block
    cdef PrefillTask* tasks
    cdef Py_ssize_t thread_bytes

    cdef int reserve(self, int threads, Py_ssize_t tasks, Py_ssize_t head_dim, Py_ssize_t value_dim,
                     bint paged) except -1:
        cdef Py_ssize_t row = max(head_dim, pairs_of(head_dim)) * <Py_ssize_t>sizeof(real)
        cdef Py_ssize_t query_bytes = round_up_to_line(row * TILE_ROWS)
        cdef Py_ssize_t out_bytes = round_up_to_line(value_rows(value_dim) * TILE_ROWS * sizeof(real))
        cdef Py_ssize_t key_bytes = round_up_to_line(KV_BLOCK * row)
        cdef Py_ssize_t value_bytes = round_up_to_line(KV_BLOCK * value_dim * sizeof(real))
        cdef Py_ssize_t clean_bytes = round_up_to_line(KV_BLOCK * value_dim * sizeof(elem))
        cdef Py_ssize_t value_pair_bytes = 0, weight_pair_bytes = 0, key_of_row_bytes = 0, rows_bytes = 0
        cdef Py_ssize_t page_bytes = 0, t
        cdef int k
        cdef PrefillWorkspace* ws
        cdef char* at
        if sizeof(elem) == sizeof(real):        # nothing is converted
            key_bytes = value_bytes = 0
        if MATRIX_UNIT:
            value_pair_bytes = KV_BLOCK // 2 * value_rows(value_dim) * <Py_ssize_t>sizeof(real)
            weight_pair_bytes = max(KV_BLOCK * TILE_ROWS, MATRIX_PAIRS * value_rows(value_dim))
            weight_pair_bytes *= <Py_ssize_t>sizeof(real)
        elif PAIRED:
            value_pair_bytes = round_up_to_line(BLOCK_STEPS * value_dim * sizeof(real))
            weight_pair_bytes = BLOCK_STEPS * TILE_ROWS * sizeof(real)
        if PAIRED:
            key_of_row_bytes, rows_bytes = round_up_to_line(head_dim * sizeof(real)), query_bytes
        if paged:
            page_bytes = round_up_to_line(KV_BLOCK * head_dim * sizeof(elem))
        self.thread_bytes = (round_up_to_line(sizeof(PrefillWorkspace)) + QUERY_TILES * (query_bytes + out_bytes)
                             + key_bytes + value_bytes + value_pair_bytes + weight_pair_bytes + key_of_row_bytes
                             + rows_bytes + clean_bytes + page_bytes + (clean_bytes if paged else 0))
        self.block = <char*>allocate(threads * self.thread_bytes + tasks * <Py_ssize_t>sizeof(PrefillTask))
        self.tasks = <PrefillTask*>(self.block + threads * self.thread_bytes)
        for t in range(threads):
            ws = <PrefillWorkspace*>(self.block + t * self.thread_bytes)
            at = <char*>ws + round_up_to_line(sizeof(PrefillWorkspace))
            for k in range(QUERY_TILES):
                ws.tile[k].query_t = <real*>at
                ws.tile[k].out_t = <real*>(at + query_bytes)
                at += query_bytes + out_bytes
            ws.key_reals = <real*>at
            ws.value_reals = <real*>(at + key_bytes)
            at += key_bytes + value_bytes
            ws.value_pairs, ws.weight_pairs = <real*>at, <real*>(at + value_pair_bytes)
            at += value_pair_bytes + weight_pair_bytes
            ws.key_of_row, ws.query_rows = <real*>at, <real*>(at + key_of_row_bytes)
            at += key_of_row_bytes + rows_bytes
            ws.clean = <elem*>at
            ws.page_keys, ws.page_values = <elem*>(at + clean_bytes), <elem*>(at + clean_bytes + page_bytes)

    def __dealloc__(self):
        free(self.block)

cdef int prefill(const AttentionParams* params, const Sequence* sequences, Py_ssize_t count, int threads) except -1:
    cdef Py_ssize_t pairs = count * params.key_heads, rows = params.length * params.queries_per_kv, first = 0
    cdef Py_ssize_t most = most_tasks(rows), number, slice_
    cdef PrefillTasks tasks
    cdef PrefillWorkspaces workspaces = PrefillWorkspaces()
    threads = <int>min(threads, pairs * most)
    workspaces.reserve(threads, min(pairs * most, PLANNED_TASKS + most) + 1, params.head_dim, params.value_dim,
                       params.table.pages != NULL)
    tasks.params, tasks.tasks = params, workspaces.tasks
    tasks.workspaces, tasks.workspace_bytes = workspaces.block, workspaces.thread_bytes
    # a tenth of a second or two of the generic kernel; the smallest task takes microseconds
    slice_ = (<Py_ssize_t>LANES << 28) // (rows_a_task(rows) * multiplications_of_row(params, params.keys) + 10000)
    while first < pairs:
        number = plan_prefill(params, sequences, pairs, &first, workspaces.tasks)
        run_tasks(prefill_task, &tasks, number, max(slice_, 1), threads, IN_ORDER)
    return 0
