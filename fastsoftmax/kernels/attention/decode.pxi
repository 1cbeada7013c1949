# Decode: attention of few queries to many keys. The time goes into reading keys and values.
#
# The elements of a key stand in the lanes. All rows that share a key head are computed together, so that keys and
# values are read once; their scores are dot products, LANES of them summed across registers at a time by one
# transposition. Keys are split at boundaries that depend on their number alone; each split is a task, and combine.pxi
# combines their states.

cdef enum:
    DECODE_ROWS = 16        # at most so many rows; see uses_decode
    LONG_CACHE = 4096       # keys from which reading them is what takes the time
    STREAMS = 4             # parts of a block that are read side by side
    VALUE_RUNS = DECODE_KV_BLOCK // KV_BLOCK    # sums of KV_BLOCK values each: errors grow with the length of a sum
    SPLIT_KEYS = 512        # keys of a split, at least; more where there would be over MAX_SPLITS of them
    MAX_SPLITS = 64

cdef struct DecodeWorkspace:                # one thread's buffers
    real[DECODE_ROWS * DECODE_KV_BLOCK] scores  # a line a row; then weights
    real[DECODE_ROWS * DECODE_KV_BLOCK] bias_sum
    int[DECODE_ROWS] bias                   # BIAS_ bits of the present block
    Py_ssize_t[DECODE_ROWS] head, query, begin, end
    real[DECODE_ROWS + 1] rescale
    vmask tail                              # lanes of a key's last register that do not overlap the one before
    int skipped, count                      # which keys of a block `order` and `run_end` are of
    int[DECODE_KV_BLOCK] order
    int[VALUE_RUNS] run_end
    Py_ssize_t offsets_b, offsets_start     # the block that `key_offset` and `value_offset` are of; -1: none
    Py_ssize_t[DECODE_KV_BLOCK] key_offset, value_offset
    real* query_rows                        # (rows + 1, padded head_dim)
    real* sums                              # of up to four rows: the weighted values of a run
    elem* clean                             # the block's values without NaN and infinities

cdef inline Py_ssize_t split_size(Py_ssize_t keys) noexcept nogil:
    return max(<Py_ssize_t>SPLIT_KEYS, ceil_div(ceil_div(keys, MAX_SPLITS), DECODE_KV_BLOCK) * DECODE_KV_BLOCK)

cdef inline int rows_at_once(Py_ssize_t rows) noexcept nogil:
    """Of so many rows left, the number that share a pass over a block: 4, 2 or 1. If three are left, four are computed,
    and the fourth is dropped."""
    return 4 if rows >= 3 else <int>rows

cdef void load_query_rows(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head,
                          DecodeWorkspace* ws) noexcept nogil:
    """query_rows[row] = query; zero where the last register repeats elements of the one before."""
    cdef Py_ssize_t rows = rows_of_head(params, b), row, i, registers = ceil_div(params.head_dim, LANES)
    cdef real[LANES] is_new
    cdef real* to
    cdef const elem* query
    cdef vreal x
    for i in range(LANES):
        is_new[i] = i >= registers * LANES - params.head_dim
    ws.tail = lt(broadcast(0), load(is_new))
    for row in range(rows):
        ws.query[row], ws.head[row] = query_of_row(params, row), head_of_row(params, key_head, row)
        visible_keys(params, b, ws.query[row], &ws.begin[row], &ws.end[row])
        query = row_address(&params.query, b, ws.head[row], ws.query[row])
        to = ws.query_rows + row * padded(params.head_dim)
        for i in range(registers):
            x = load_row(params.query_is_real, query, register_at(i, params.head_dim))
            store(to + i * LANES, x if i < registers - 1 else select_or_zero(ws.tail, x))
    memset(ws.query_rows + rows * padded(params.head_dim), 0, padded(params.head_dim) * sizeof(real))
    ws.rescale[rows] = 0

# The order of keys. Memory is read fastest in several streams, each from one end to the other, which the hardware
# prefetcher recognises. So the first key of each of a block's STREAMS parts comes first, then the second of each, and
# so on. A key's place does not depend on which others are there, so that hidden keys can be left out.

cdef inline void order_keys(DecodeWorkspace* ws, int skipped, int count) noexcept nogil:
    """The order of keys skipped .. skipped + count - 1 of a block, numbered from 0."""
    cdef int length = DECODE_KV_BLOCK // STREAMS
    cdef int first_stream = skipped // length, last_stream = (skipped + count - 1) // length
    cdef int begin = 0, end = length, n = 0, run, j, stream, k
    if ws.skipped == skipped and ws.count == count:
        return
    ws.skipped, ws.count = skipped, count
    if first_stream == last_stream:
        begin, end = skipped % length, (skipped + count - 1) % length + 1
    for run in range(VALUE_RUNS):
        for j in range(max(begin, run * (length // VALUE_RUNS)), min(end, (run + 1) * (length // VALUE_RUNS))):
            for stream in range(first_stream, last_stream + 1):
                k = stream * length + j - skipped
                if 0 <= k < count:
                    ws.order[n] = k
                    n += 1
        ws.run_end[run] = n

# Scores of `rows` rows, 1, 2 or 4.

cdef inline void add_products(int rows, int keys, const ConstRowPointer* key, Py_ssize_t at, const vmask* only,
                              const real* query, Py_ssize_t query_step, vreal* sums) noexcept nogil:
    """A register of each key times that of each query. only: the lanes that count, or NULL."""
    cdef vreal x
    cdef int r, k
    for k in range(keys):
        x = load_elem(key[k] + at)
        if only != NULL:
            x = select_or_zero(only[0], x)
        for r in range(rows):
            sums[r * keys + k] = fma_(x, load(query + r * query_step), sums[r * keys + k])

cdef inline void dot_products(int rows, int keys, const AttentionParams* params, const DecodeWorkspace* ws,
                              const KvBlock* block, Py_ssize_t row, int first, int last,
                              real* scores) noexcept nogil:
    """The scores of keys number first to last - 1 in order, `keys` at a time."""
    cdef vreal[4 * LANES] sums
    cdef real[4 * LANES] lane
    cdef ConstRowPointer[LANES] at
    cdef const real* query = ws.query_rows + row * padded(params.head_dim)
    cdef Py_ssize_t i, step = padded(params.head_dim), full = params.head_dim // LANES
    cdef int turn, r, k, filled = (rows * keys + LANES - 1) // LANES * LANES
    for turn in range((last - first) // keys):
        for k in range(keys):
            at[k] = kv_row(&block.key, ws.order[first + turn * keys + k])
        for k in range(filled):
            sums[k] = broadcast(0)
        for i in range(full):
            add_products(rows, keys, at, i * LANES, NULL, query + i * LANES, step, sums)
        if full * LANES < params.head_dim:
            add_products(rows, keys, at, params.head_dim - LANES, &ws.tail, query + full * LANES, step, sums)
        for k in range(filled // LANES):
            store(lane + k * LANES, sums_of(sums + k * LANES))
        for k in range(keys):
            for r in range(rows):
                scores[r * DECODE_KV_BLOCK + ws.order[first + turn * keys + k]] = lane[r * keys + k]

cdef inline void scores_of_block(int rows, const AttentionParams* params, const DecodeWorkspace* ws,
                                 const KvBlock* block, Py_ssize_t row, real* scores) noexcept nogil:
    """(rows, DECODE_KV_BLOCK), of rows `row` and those after it."""
    cdef int keys = max(LANES // rows, 1), count = <int>(block.stop - block.start), done = count // keys * keys
    dot_products(rows, keys, params, ws, block, row, 0, done, scores)
    dot_products(rows, 1, params, ws, block, row, done, count, scores)

# Softmax of one row.

cdef void adjust_scores(const AttentionParams* params, Py_ssize_t b, Py_ssize_t row, Py_ssize_t key, Py_ssize_t count,
                        DecodeWorkspace* ws, real* scores) noexcept nogil:
    """Scale, softcap, biases, ALiBi and hidden keys, in this order."""
    cdef Py_ssize_t i, registers = ceil_div(count, LANES)
    cdef real[LANES] lane
    cdef real before, end
    cdef LaneMask mask
    cdef vreal scale = broadcast(<real>scale_of(params, ws.head[row]))
    cdef real slope = slope_of(params, b, ws.head[row])
    cdef bint partial = ws.begin[row] > key or ws.end[row] < key + count
    for i in range(registers):
        store(scores + i * LANES, load(scores + i * LANES) * scale)
    if params.softcap != 0:
        cap_scores(params.softcap, registers, scores)
    if ws.bias[row] & BIAS_ADDS:
        for i in range(registers):
            add_bias(ws.bias[row] & BIAS_IS_HUGE, load(ws.bias_sum + row * DECODE_KV_BLOCK + i * LANES),
                     scores + i * LANES)
    if not partial and params.slopes == NULL:
        return
    for i in range(LANES):
        lane[i] = <real>i
    if params.slopes != NULL:
        mask.position = broadcast(<real>(ws.query[row] + params.offset[b] - key))
        mask.slope, mask.steep = broadcast(slope), is_steep(slope)
        add_alibi(1, registers, &mask, load(lane), LANES, scores)
    if partial:
        limits_in_block(ws.begin[row], ws.end[row], key, count, &before, &end)
        mask.before, mask.end = broadcast(before), broadcast(end)
        hide_keys(1, registers, &mask, load(lane), LANES, scores)

cdef inline void sum_lanes(bint statistics, bint moments, BlockSums* sums) noexcept nogil:
    """The sums of a row's lanes, in every lane; compensated sums stay so."""
    cdef real others = 0, moment = 0, rest
    sums.row_sum = hsum(sums.row_sum)
    if statistics:
        sums.ones = hsum(sums.ones)
        rest = lane0(hsum(sums.others_rest))
        add_lanes_to(&others, &rest, sums.others)
        sums.others, sums.others_rest = broadcast(others), broadcast(rest)
    if moments:
        rest = lane0(hsum(sums.moment_rest))
        add_lanes_to(&moment, &rest, sums.moment)
        sums.moment, sums.moment_rest = broadcast(moment), broadcast(rest)

cdef inline void update_row(Py_ssize_t skipped, Py_ssize_t count, bint statistics, bint moments, real* scores,
                            PartialState* x, real* rescale) noexcept nogil:
    """Scores become weights, and x the state over the keys so far. skipped: registers of the block before these."""
    cdef Py_ssize_t i, registers = ceil_div(count, LANES)
    cdef OnlineState state = load_state(x), block
    cdef vreal row_max = state.row_max, shift, factor, one
    cdef BlockSums sums = no_sums()
    for i in range(count, registers * LANES):
        scores[i] = -INFINITY
    for i in range(registers):
        row_max = vmax(row_max, load(scores + i * LANES))
    row_max = broadcast(hmax(row_max))
    shift = finite_or_zero(row_max)
    exp_and_sum_scores(1, skipped, registers, statistics, moments, &shift, scores, &sums)
    sum_lanes(statistics, moments, &sums)
    block = state_of_block(statistics, row_max, &sums)
    merge_state(statistics, moments, True, &block, &state, &factor, &one)
    store_state(x, &state)
    rescale[0] = lane0(factor)

cdef void softmax_row(const AttentionParams* params, Py_ssize_t skipped, Py_ssize_t count, real* scores,
                      PartialState* x, real* rescale) noexcept nogil:
    if params.entropy != NULL:
        update_row(skipped, count, True, True, scores, x, rescale)
    elif params.lse != NULL:
        update_row(skipped, count, True, False, scores, x, rescale)
    else:
        update_row(skipped, count, False, False, scores, x, rescale)

# Values.

cdef inline void add_weighted(int rows, int values, const KvRows* value, const int* order, int first, int last,
                              Py_ssize_t dim, const real* weights, real* sums, Py_ssize_t step) noexcept nogil:
    """sums[row] += weights[row][j] * value[j], one after the other, j number first to last - 1 in order; `values` at a
    time, as many as have their weights in registers."""
    cdef vreal[8] weight
    cdef vreal[4] sum_
    cdef ConstRowPointer[8] at
    cdef vreal x
    cdef Py_ssize_t i, registers = ceil_div(dim, LANES)
    cdef int turn, r, k, j
    for turn in range((last - first) // values):
        for k in range(values):
            j = order[first + turn * values + k]
            at[k] = kv_row(value, j)
            for r in range(rows):
                weight[r * values + k] = broadcast(weights[r * DECODE_KV_BLOCK + j])
        for i in range(registers):
            for r in range(rows):
                sum_[r] = load(sums + r * step + i * LANES)
            for k in range(values):
                x = load_elem(at[k] + register_at(i, dim))
                for r in range(rows):
                    sum_[r] = fma_(weight[r * values + k], x, sum_[r])
            for r in range(rows):
                store(sums + r * step + i * LANES, sum_[r])

cdef inline void add_values_of_rows(int rows, const AttentionParams* params, const DecodeWorkspace* ws,
                                    const KvRows* value, Py_ssize_t row, real* states) noexcept nogil:
    """out[r] = out[r] * rescale[r] + sum over the block's keys j of weights[r][j] * value[j], for rows `row` and those
    after it."""
    cdef Py_ssize_t dim = params.value_dim, step = padded(dim), out_step = state_size(params), i
    cdef const real* weights = ws.scores + row * DECODE_KV_BLOCK
    cdef const real* rescale = ws.rescale + row
    cdef real* out = out_of(params, states, row)
    cdef real* sums = ws.sums
    cdef real* to
    cdef int values = max(8 // rows, 1), run, first = 0, last, r, done
    for r in range(rows):
        for i in range(step // LANES):
            to = out + r * out_step + i * LANES
            store(to, load(to) * broadcast(rescale[r]))
    for run in range(VALUE_RUNS):
        last = ws.run_end[run]
        if last == first:
            continue
        done = first + (last - first) // values * values
        memset(sums, 0, rows * step * sizeof(real))
        add_weighted(rows, values, value, ws.order, first, done, dim, weights, sums, step)
        add_weighted(rows, 1, value, ws.order, done, last, dim, weights, sums, step)
        for r in range(rows):
            for i in range(step // LANES):
                to = out + r * out_step + i * LANES
                store(to, load(to) + load(sums + r * step + i * LANES))
        first = last

cdef void restore_nonfinite_rows(const AttentionParams* params, Py_ssize_t b, DecodeWorkspace* ws,
                                 const KvBlock* block, real* states) noexcept nogil:
    cdef WeightedRows to
    cdef Py_ssize_t dim = params.value_dim
    to.rows, to.begin, to.end = rows_of_head(params, b), ws.begin, ws.end
    to.bias_sum, to.bias_row = ws.bias_sum if params.biases else NULL, DECODE_KV_BLOCK
    to.weights, to.weight_row, to.weight_key = ws.scores, DECODE_KV_BLOCK, 1
    to.out, to.out_row, to.out_element = out_of(params, states, 0), state_size(params), 1
    to.gap_at, to.gap = dim - LANES, padded(dim) - dim
    add_nonfinite_values(&to, &block.value, 0, dim, block.start, block.stop - block.start)

# One block of keys, for all rows.

cdef bint load_biases(const AttentionParams* params, Py_ssize_t b, const KvBlock* block, DecodeWorkspace* ws,
                      bint* hidden) noexcept nogil:
    """The biases of all rows; hidden: whether a key is hidden from a row. False if no key is visible to any."""
    cdef Py_ssize_t row
    cdef int any_ = 0
    hidden[0] = False
    for row in range(rows_of_head(params, b)):
        ws.bias[row] = 0
        if params.biases:
            ws.bias[row] = load_score_bias(params, b, ws.head[row], ws.query[row], block.start,
                                           block.stop - block.start, ws.bias_sum + row * DECODE_KV_BLOCK)
            any_ |= ws.bias[row]
        if ws.bias[row] & BIAS_HIDES or ws.begin[row] > block.start or ws.end[row] < block.stop:
            hidden[0] = True
    return params.biases == 0 or any_ & BIAS_SHOWS

cdef void decode_kv_block(const AttentionParams* params, Py_ssize_t b, const KvBlock* block, DecodeWorkspace* ws,
                          real* states) noexcept nogil:
    """Updates the states of all rows with the keys of a block."""
    cdef Py_ssize_t rows = rows_of_head(params, b), row, count = block.stop - block.start
    cdef Py_ssize_t skipped = block.start % DECODE_KV_BLOCK
    cdef KvRows value = block.value
    cdef bint hidden, cleared = False
    cdef real* scores
    cdef int many
    if not load_biases(params, b, block, ws, &hidden):
        return
    order_keys(ws, <int>skipped, <int>count)
    row = 0
    while row < rows:
        scores, many = ws.scores + row * DECODE_KV_BLOCK, rows_at_once(rows - row)
        if many == 4:
            scores_of_block(4, params, ws, block, row, scores)
        elif many == 2:
            scores_of_block(2, params, ws, block, row, scores)
        else:
            scores_of_block(1, params, ws, block, row, scores)
        row += many
    for row in range(rows):
        scores = ws.scores + row * DECODE_KV_BLOCK
        adjust_scores(params, b, row, block.start, count, ws, scores)
        softmax_row(params, skipped // LANES, count, scores, state_of(params, states, row), &ws.rescale[row])
    if hidden and not is_finite(&value, count, params.value_dim):
        clear_nonfinite(&value, count, params.value_dim, ws.clean)
        value.first, value.step, value.offset, cleared = ws.clean, params.value_dim, NULL, True
    row = 0
    while row < rows:
        many = rows_at_once(rows - row)
        if many == 4:
            add_values_of_rows(4, params, ws, &value, row, states)
        elif many == 2:
            add_values_of_rows(2, params, ws, &value, row, states)
        else:
            add_values_of_rows(1, params, ws, &value, row, states)
        row += many
    if cleared:
        restore_nonfinite_rows(params, b, ws, block, states)

# Tasks: a pair of sequence and key head with one split of its keys.

cdef inline Py_ssize_t decode_splits(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    cdef Py_ssize_t keys = keys_of(params, b)
    return max(<Py_ssize_t>1, ceil_div(keys, split_size(keys)))

cdef struct DecodePair:
    Py_ssize_t b, key_head, splits
    real* states                                # (splits, rows + 1, state_size)

cdef struct DecodeTask:
    Py_ssize_t pair, split

cdef struct DecodeTasks:                        # of the pairs between two looks for an interrupt
    const AttentionParams* params
    DecodePair* pairs
    DecodeTask* tasks
    char* workspaces                            # DecodeWorkspace, one a thread
    Py_ssize_t workspace_bytes

cdef void load_offsets(const AttentionParams* params, Py_ssize_t b, KvBlock* block,
                       DecodeWorkspace* ws) noexcept nogil:
    """Where the rows of a block that spans pages stand. The task before has often found it, for another head."""
    cdef Py_ssize_t keys = keys_of(params, b)
    cdef Py_ssize_t first = block.start - block.start % DECODE_KV_BLOCK, last = min(first + DECODE_KV_BLOCK, keys)
    if ws.offsets_b != b or ws.offsets_start != first:
        page_offsets(&params.table, &params.key, b, first, last, ws.key_offset)
        page_offsets(&params.table, &params.value, b, first, last, ws.value_offset)
        ws.offsets_b, ws.offsets_start = b, first
    block.key.offset = ws.key_offset + (block.start - first)
    block.value.offset = ws.value_offset + (block.start - first)

cdef Py_ssize_t decode_split(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    """The cost is the number of keys read."""
    cdef const DecodeTasks* tasks = <const DecodeTasks*>context
    cdef const AttentionParams* params = tasks.params
    cdef DecodeWorkspace* ws = <DecodeWorkspace*>(tasks.workspaces + thread * tasks.workspace_bytes)
    cdef const DecodePair* pair = &tasks.pairs[tasks.tasks[task].pair]
    cdef Py_ssize_t b = pair.b, split = tasks.tasks[task].split, rows = rows_of_head(params, b), row
    cdef Py_ssize_t size = split_size(keys_of(params, b)), start = split * size, stop
    cdef Py_ssize_t begin = keys_of(params, b), end = 0, read = 0
    cdef real* states = pair.states + split * (rows + 1) * state_size(params)
    cdef OnlineState state
    cdef KvBlock block
    load_query_rows(params, b, pair.key_head, ws)
    memset(states, 0, (rows + 1) * state_size(params) * sizeof(real))
    for row in range(rows):
        state = state_of_sink(broadcast(sink_of(params, ws.head[row]) if split == 0 else -INFINITY))
        store_state(state_of(params, states, row), &state)
        if ws.end[row] > ws.begin[row]:
            begin = min(begin, ws.begin[row])
        end = max(end, ws.end[row])
    end = min(end, start + size)
    start = max(start, begin // LANES * LANES)      # a score's lane must not depend on where the others begin
    while start < end:
        stop = min(start - start % DECODE_KV_BLOCK + DECODE_KV_BLOCK, end)
        block = kv_block(&params.table, &params.key, &params.value, b, pair.key_head, start, stop)
        if block.spans_pages:
            load_offsets(params, b, &block, ws)
        decode_kv_block(params, b, &block, ws, states)
        read += stop - start
        start = stop
    if pair.splits == 1:
        for row in range(rows):
            finalize_row(params, b, pair.key_head, row, states)
    return read + DECODE_ROWS

cdef Py_ssize_t combine_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const DecodeTasks* tasks = <const DecodeTasks*>context
    cdef const DecodePair* pair = &tasks.pairs[task]
    if pair.splits > 1:
        combine_splits(tasks.params, pair.b, pair.key_head, pair.splits, pair.states)
    return 1

cdef struct DecodeSlice:                        # pairs between two looks for an interrupt, and the room that they need
    Py_ssize_t pairs, tasks, rows, states       # rows: the most of a pair; states: reals

cdef DecodeSlice decode_slice(const AttentionParams* params, const Sequence* sequences, Py_ssize_t first,
                              Py_ssize_t pairs, int threads) noexcept nogil:
    """The slice from pair number `first` on: some tasks for each thread and work for a fraction of a second, but, with
    few keys, not so many pairs that their states need much memory."""
    cdef DecodeSlice x
    cdef Py_ssize_t b, rows, splits, work = 0
    x.pairs = x.tasks = x.rows = x.states = 0
    while first + x.pairs < pairs and (x.tasks < 16 * threads or work < 100000000):
        b = sequence_at(sequences, (first + x.pairs) // params.key_heads)
        rows, splits = rows_of_head(params, b), decode_splits(params, b)
        x.pairs += 1
        x.tasks += splits
        x.rows = max(x.rows, rows)
        x.states += splits * (rows + 1) * state_size(params)
        work += multiplications_of_row(params, keys_of(params, b)) + 100000
    return x

cdef void plan_decode(const AttentionParams* params, const Sequence* sequences, Py_ssize_t first,
                      const DecodeSlice* slice_, real* states, DecodeTasks* tasks) noexcept nogil:
    """Writes the pairs and tasks of a slice. All heads of a split follow one another: where the heads of a key stand
    side by side, as in (S, H, E), they share pages of memory, whose addresses are then at hand."""
    cdef Py_ssize_t i, k, split, task = 0, begin = 0
    cdef DecodePair* pair
    for i in range(slice_.pairs):
        pair = &tasks.pairs[i]
        pair.b = sequence_at(sequences, (first + i) // params.key_heads)
        pair.key_head = (first + i) % params.key_heads
        pair.splits, pair.states = decode_splits(params, pair.b), states
        states += pair.splits * (rows_of_head(params, pair.b) + 1) * state_size(params)
        if i + 1 < slice_.pairs and pair.key_head + 1 < params.key_heads:
            continue
        for split in range(pair.splits):
            for k in range(begin, i + 1):
                tasks.tasks[task].pair, tasks.tasks[task].split = k, split
                task += 1
        begin = i + 1

cdef class DecodeWorkspaces:
    """The buffers of `threads` threads, and the tables and states of a slice as large as `most`; freed with it."""
    cdef char* block
    cdef real* states
    cdef DecodePair* pairs
    cdef DecodeTask* tasks
    cdef Py_ssize_t thread_bytes

    cdef int reserve(self, int threads, Py_ssize_t head_dim, Py_ssize_t value_dim, const DecodeSlice* most) except -1:
        cdef Py_ssize_t query_bytes = round_up_to_line((most.rows + 1) * padded(head_dim) * sizeof(real))
        cdef Py_ssize_t sums_bytes = round_up_to_line(4 * padded(value_dim) * sizeof(real))
        cdef Py_ssize_t states_bytes = round_up_to_line(most.states * sizeof(real))
        cdef Py_ssize_t pairs_bytes = round_up_to_line(most.pairs * sizeof(DecodePair))
        cdef Py_ssize_t t
        cdef DecodeWorkspace* ws
        cdef char* at
        self.thread_bytes = (round_up_to_line(sizeof(DecodeWorkspace)) + query_bytes + sums_bytes
                             + round_up_to_line(DECODE_KV_BLOCK * value_dim * sizeof(elem)))
        self.block = <char*>allocate(threads * self.thread_bytes + states_bytes + pairs_bytes
                                     + most.tasks * <Py_ssize_t>sizeof(DecodeTask))
        self.states = <real*>(self.block + threads * self.thread_bytes)
        self.pairs = <DecodePair*>(<char*>self.states + states_bytes)
        self.tasks = <DecodeTask*>(<char*>self.pairs + pairs_bytes)
        for t in range(threads):
            ws = <DecodeWorkspace*>(self.block + t * self.thread_bytes)
            at = <char*>ws + round_up_to_line(sizeof(DecodeWorkspace))
            ws.query_rows = <real*>at
            ws.skipped = ws.count = 0
            ws.offsets_b = -1
            ws.sums = <real*>(at + query_bytes)
            ws.clean = <elem*>(at + query_bytes + sums_bytes)

    def __dealloc__(self):
        free(self.block)

cdef inline Py_ssize_t keys_for_decode(Py_ssize_t rows) noexcept nogil:
    """The number of keys from which decode takes so many rows, as measured.

    The time of prefill is that of full lanes. Decode takes rows in fours, and has more work before the first key; but
    it reads long caches faster, and threads share more than SPLIT_KEYS of them.
    """
    if rows <= min(LANES, rows_at_once(rows)):
        return 0
    if rows > LANES:
        return LONG_CACHE
    if rows > 12:
        return SPLIT_KEYS + 1
    return KV_BLOCK + 1 if 2 * rows > LANES else KV_BLOCK // 4 + 1

cdef inline bint uses_decode(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    """Whether rows are few for the number of keys."""
    cdef Py_ssize_t rows = rows_of_head(params, b)
    return (params.head_dim >= LANES and params.value_dim >= LANES and rows <= DECODE_ROWS
            and keys_of(params, b) >= keys_for_decode(rows))

cdef int decode(const AttentionParams* params, const Sequence* sequences, Py_ssize_t count, int threads) except -1:
    cdef Py_ssize_t pairs = count * params.key_heads, first = 0
    cdef DecodeSlice slice_, most
    cdef ParallelRegion region
    cdef DecodeTasks tasks
    cdef DecodeWorkspaces workspaces = DecodeWorkspaces()
    most.pairs = most.tasks = most.rows = most.states = 0
    while first < pairs:
        slice_ = decode_slice(params, sequences, first, pairs, threads)
        most.pairs, most.tasks = max(most.pairs, slice_.pairs), max(most.tasks, slice_.tasks)
        most.rows, most.states = max(most.rows, slice_.rows), max(most.states, slice_.states)
        first += slice_.pairs if is_ragged(params) else pairs   # the first slice is the largest, if all are alike
    workspaces.reserve(<int>min(threads, most.tasks), params.head_dim, params.value_dim, &most)
    tasks.params, tasks.pairs, tasks.tasks = params, workspaces.pairs, workspaces.tasks
    tasks.workspaces, tasks.workspace_bytes = workspaces.block, workspaces.thread_bytes
    first = 0
    while first < pairs:
        slice_ = decode_slice(params, sequences, first, pairs, threads)
        with nogil:
            plan_decode(params, sequences, first, &slice_, workspaces.states, &tasks)
            region = open_region(<int>min(threads, most.tasks))
            parallel_for(decode_split, &tasks, 0, slice_.tasks, IN_ORDER, &region)
            if slice_.tasks > slice_.pairs:
                parallel_for(combine_task, &tasks, 0, slice_.pairs, IN_ORDER, &region)
            close_region(&region)
        first += slice_.pairs
        PyErr_CheckSignals()
    return 0
