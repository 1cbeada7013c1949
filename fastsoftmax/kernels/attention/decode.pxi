# AttentionParams of few queries to many keys, as when decoding; what bounds it is the reading of keys and values.
#
# The elements of a key stand in the lanes. All rows that share a key head are computed together, so that keys and
# values are read once; their scores are dot products, LANES of them summed across registers at a time by one
# transposition. Keys are split into parts at boundaries that depend on their number alone; each part is a task, and
# what the parts find is merged by the logarithm of their sums (Dao et al., Flash-Decoding, 2023).

cdef enum:
    DECODE_ROWS = 16        # at most so many rows; see uses_decode
    LONG_CACHE = 4096       # keys from which reading them is what takes the time
    STREAMS = 4             # parts of a block that are read side by side
    VALUE_RUNS = DECODE_KV_BLOCK // KV_BLOCK  # sums of KEYS values each, since errors grow with the length of a sum
    SPLIT_KEYS = 512        # keys of a part, at least; more where there would be over MAX_SPLITS of them
    MAX_SPLITS = 64
    STATE_REALS = 6

ctypedef const elem* KeyPointer              # of a key or value

cdef struct DecodeWorkspace:                # one thread's buffers
    real[DECODE_ROWS * DECODE_KV_BLOCK] scores  # a line a row; then weights. Three rows left over count as four
    real[DECODE_ROWS * DECODE_KV_BLOCK] bias_sum
    Py_ssize_t[DECODE_ROWS] head, query, begin, end
    real[DECODE_ROWS + 1] rescale
    vmask tail                              # the lanes of a key's last register that the one before has not
    int skipped, count                      # which keys of a block `order` and `run_end` are of
    int[DECODE_KV_BLOCK] order
    int[VALUE_RUNS] run_end
    real* query_rows                        # (rows, padded width)
    real* sums                              # of up to four rows: the weighted values of a block
    elem* clean                             # a block of values whose NaN and infinities are left out

cdef inline Py_ssize_t padded(Py_ssize_t dim) noexcept nogil:
    return ceil_div(dim, LANES) * LANES

cdef inline Py_ssize_t split_size(Py_ssize_t keys) noexcept nogil:
    return max(<Py_ssize_t>SPLIT_KEYS, ceil_div(ceil_div(keys, MAX_SPLITS), DECODE_KV_BLOCK) * DECODE_KV_BLOCK)

cdef inline Py_ssize_t register_at(Py_ssize_t i, Py_ssize_t dim) noexcept nogil:
    """Where register i of a row starts; the last one overlaps. width >= LANES."""
    return min(i * LANES, dim - LANES)

cdef void load_query_rows(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head,
                          DecodeWorkspace* workspace) noexcept nogil:
    """query_rows[row] = query; zero where the last register repeats what the one before has."""
    cdef Py_ssize_t rows = params.length * params.queries_per_kv, row, i, registers = ceil_div(params.head_dim, LANES)
    cdef real[LANES] is_new
    cdef real* to
    cdef const elem* query
    cdef vreal x
    for i in range(LANES):
        is_new[i] = i >= registers * LANES - params.head_dim
    workspace.tail = lt(broadcast(0), load(is_new))
    for row in range(rows):
        workspace.query[row] = row // params.queries_per_kv
        workspace.head[row] = key_head * params.queries_per_kv + row % params.queries_per_kv
        visible_keys(params, b, workspace.query[row], &workspace.begin[row], &workspace.end[row])
        query = row_address(params.query, params.query_stride, b, workspace.head[row], workspace.query[row])
        to = workspace.query_rows + row * padded(params.head_dim)
        for i in range(registers):
            x = load_query(params, query, register_at(i, params.head_dim))
            store(to + i * LANES, x if i < registers - 1 else select_or_zero(workspace.tail, x))
    memset(workspace.query_rows + rows * padded(params.head_dim), 0, padded(params.head_dim) * sizeof(real))
    workspace.rescale[rows] = 0

# --- in which order
#
# Memory is read best in several streams, each from one end to the other, which the processor foresees by itself. So
# the first key of each of a block's STREAMS parts comes first, then the second of each, and so on. A key's place does
# not depend on which others are there, so that hidden keys can be left out.

cdef inline void order_keys(DecodeWorkspace* workspace, int skipped, int count) noexcept nogil:
    """The order of keys skipped .. skipped + count - 1 of a block, numbered from 0."""
    cdef int length = DECODE_KV_BLOCK // STREAMS, first_stream = skipped // length, last_stream = (skipped + count
                                                                                                   - 1) // length
    cdef int begin = 0, end = length, n = 0, run, j, stream, k
    if workspace.skipped == skipped and workspace.count == count:
        return
    workspace.skipped, workspace.count = skipped, count
    if first_stream == last_stream:
        begin, end = skipped % length, (skipped + count - 1) % length + 1
    for run in range(VALUE_RUNS):
        for j in range(max(begin, run * (length // VALUE_RUNS)), min(end, (run + 1) * (length // VALUE_RUNS))):
            for stream in range(first_stream, last_stream + 1):
                k = stream * length + j - skipped
                if 0 <= k < count:
                    workspace.order[n] = k
                    n += 1
        workspace.run_end[run] = n

# --- scores of `rows` rows, 1, 2 or 4

cdef inline void add_products(int rows, int keys, const KeyPointer* key, Py_ssize_t at, const vmask* only,
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

cdef inline void dot_products(int rows, int keys, const AttentionParams* params, const DecodeWorkspace* workspace,
                              const elem* key, Py_ssize_t row, int first, int last, real* scores) noexcept nogil:
    """The scores of keys number first to last - 1 in order, `keys` at a time."""
    cdef vreal[4 * LANES] sums
    cdef real[4 * LANES] lane
    cdef KeyPointer[LANES] at
    cdef const real* query = workspace.query_rows + row * padded(params.head_dim)
    cdef Py_ssize_t i, step = padded(params.head_dim), full = params.head_dim // LANES
    cdef int turn, r, k, filled = (rows * keys + LANES - 1) // LANES * LANES
    for turn in range((last - first) // keys):
        for k in range(keys):
            at[k] = key + workspace.order[first + turn * keys + k] * params.key_stride[2]
        for k in range(filled):
            sums[k] = broadcast(0)
        for i in range(full):
            add_products(rows, keys, at, i * LANES, NULL, query + i * LANES, step, sums)
        if full * LANES < params.head_dim:
            add_products(rows, keys, at, params.head_dim - LANES, &workspace.tail, query + full * LANES, step, sums)
        for k in range(filled // LANES):
            store(lane + k * LANES, sums_of(sums + k * LANES))
        for k in range(keys):
            for r in range(rows):
                scores[r * DECODE_KV_BLOCK + workspace.order[first + turn * keys + k]] = lane[r * keys + k]

cdef inline void scores_of_block(int rows, const AttentionParams* params, const DecodeWorkspace* workspace,
                                 const elem* key, int count, Py_ssize_t row, real* scores) noexcept nogil:
    cdef int keys = max(LANES // rows, 1), done = count // keys * keys
    dot_products(rows, keys, params, workspace, key, row, 0, done, scores)
    dot_products(rows, 1, params, workspace, key, row, done, count, scores)

# --- what happens to the scores of one row

cdef inline void adjust_scores(const AttentionParams* params, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query,
                               Py_ssize_t key, Py_ssize_t count, int bias_flags, const real* bias_sum,
                               real* scores) noexcept nogil:
    cdef Py_ssize_t i, registers = ceil_div(count, LANES)
    cdef real[LANES] number
    cdef vreal slope, distance, scale = broadcast(<real>params.scale[head])
    for i in range(registers):
        store(scores + i * LANES, load(scores + i * LANES) * scale)
    if params.softcap != 0:
        cap_scores(params.softcap, registers, scores)
    if bias_flags & 2:
        for i in range(registers):
            add_bias(bias_flags & 8, load(bias_sum + i * LANES), scores + i * LANES)
    if params.slopes != NULL:
        slope = broadcast(<real>params.slopes[b * params.heads + head])
        for i in range(LANES):
            number[i] = <real>i
        for i in range(registers):
            distance = broadcast(<real>(query + params.offset[b] - key - i * LANES)) - load(number)
            add_distance(is_steep(lane0(slope)), slope, vabs(distance), scores + i * LANES)

cdef inline void online_softmax_row(Py_ssize_t skipped, Py_ssize_t count, bint statistics, bint moments, real* scores,
                                    PartialState* state, real* rescale) noexcept nogil:
    """Scores become weights; `rescale` brings what was found before to the new top. skipped: registers of the block
    before these; runs end at multiples of WEIGHT_RUN registers in the block."""
    cdef Py_ssize_t i, run, registers = ceil_div(count, LANES)
    cdef vreal row_max = broadcast(state.row_max), shift, log_rescale
    cdef BlockSums sums
    cdef bint unchanged
    for i in range(count, registers * LANES):
        scores[i] = -INFINITY
    for i in range(registers):
        row_max = vmax(row_max, load(scores + i * LANES))
    row_max = broadcast(hmax(row_max))
    shift = vselect(lt(broadcast(-INFINITY), row_max), row_max, broadcast(0))
    sums.row_sum = sums.ones = sums.moment = sums.moment_rest = sums.others = sums.others_rest = broadcast(0)
    i = 0
    while i < registers:
        run = min(registers - i, WEIGHT_RUN - (skipped + i) % WEIGHT_RUN)
        exp_and_sum_run(1, run, statistics, moments, &shift, scores + i * LANES, &sums)
        i += run
    log_rescale = vmax(broadcast(LEAST_EXPONENT), broadcast(state.row_max) - shift)
    rescale[0] = lane0(exp_(log_rescale))
    if statistics:
        unchanged = state.row_max == lane0(row_max)
        if not unchanged:
            state.excess, state.excess_rest = state.row_sum * rescale[0], 0
        state.excess_rest += lane0(hsum(sums.others_rest))
        add_lanes_to(&state.excess, &state.excess_rest, sums.others)
        add_real_to(&state.excess, &state.excess_rest, lane0(hsum(sums.ones)) - (0 if unchanged else 1))
    if moments:
        state.moment = rescale[0] * (state.moment + state.row_sum * lane0(log_rescale))
        state.moment_rest = rescale[0] * state.moment_rest + lane0(hsum(sums.moment_rest))
        add_lanes_to(&state.moment, &state.moment_rest, sums.moment)
    state.row_sum = state.row_sum * rescale[0] + lane0(hsum(sums.row_sum))
    state.row_max = lane0(row_max)

# --- values

cdef inline void add_weighted(int rows, int values, const elem* value, Py_ssize_t stride, const int* order, int first,
                              int last, Py_ssize_t dim, const real* weights, real* sums,
                              Py_ssize_t step) noexcept nogil:
    """sums[row] += weights[row][j] * value[j], one after the other, j number first to last - 1 in order; `values` at a
    time, as many as have their weights in registers."""
    cdef vreal[8] weight
    cdef vreal[4] sum_
    cdef KeyPointer[8] at
    cdef vreal x
    cdef Py_ssize_t i, registers = ceil_div(dim, LANES)
    cdef int turn, r, k, j
    for turn in range((last - first) // values):
        for k in range(values):
            j = order[first + turn * values + k]
            at[k] = value + j * stride
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

cdef inline void add_rows(int rows, const elem* value, Py_ssize_t stride, const DecodeWorkspace* workspace,
                          Py_ssize_t dim, const real* weights, const real* rescale, real* out,
                          Py_ssize_t out_step) noexcept nogil:
    """out[row] = out[row] * factor[row] + sum over the block's keys j of weights[row][j] * value[j]."""
    cdef Py_ssize_t step = padded(dim), i
    cdef real* sums = workspace.sums
    cdef real* to
    cdef int values = max(8 // rows, 1), run, first = 0, last, r, done
    for r in range(rows):
        for i in range(step // LANES):
            to = out + r * out_step + i * LANES
            store(to, load(to) * broadcast(rescale[r]))
    for run in range(VALUE_RUNS):
        last = workspace.run_end[run]
        if last == first:
            continue
        done = first + (last - first) // values * values
        memset(sums, 0, rows * step * sizeof(real))
        add_weighted(rows, values, value, stride, workspace.order, first, done, dim, weights, sums, step)
        add_weighted(rows, 1, value, stride, workspace.order, done, last, dim, weights, sums, step)
        for r in range(rows):
            for i in range(step // LANES):
                to = out + r * out_step + i * LANES
                store(to, load(to) + load(sums + r * step + i * LANES))
        first = last

cdef void add_nonfinite_rows(const AttentionParams* params, const DecodeWorkspace* workspace, const elem* value,
                             Py_ssize_t key, Py_ssize_t count, real* states) noexcept nogil:
    """Adds the values that are NaN or infinite, times their weights, to the rows that see them."""
    cdef Py_ssize_t j, e, i, row, at
    cdef real x
    for j in range(count):
        for e in range(params.value_dim):
            x = real_of(value + j * params.value_stride[2] + e)
            if x - x == 0:
                continue
            for row in range(params.length * params.queries_per_kv):
                if (workspace.begin[row] <= key + j < workspace.end[row]
                    and (params.biases == 0 or workspace.bias_sum[row * DECODE_KV_BLOCK + j] != -INFINITY)):
                    for i in range(ceil_div(params.value_dim, LANES)):  # the last register repeats some
                        at = register_at(i, params.value_dim)
                        if at <= e < at + LANES:
                            out_of(params, states, row)[i * LANES + e - at] += workspace.scores[row * DECODE_KV_BLOCK
                                                                                                + j] * x

# --- a block of keys, and a part

cdef void decode_kv_block(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t start,
                          Py_ssize_t stop, DecodeWorkspace* workspace, real* states) noexcept nogil:
    """Updates the online softmax of all rows with the keys start .. stop - 1."""
    cdef Py_ssize_t rows = params.length * params.queries_per_kv, row, j, count = stop - start
    cdef Py_ssize_t begin, end, value_stride = params.value_stride[2]
    cdef const elem* key = row_address(params.key, params.key_stride, b, key_head, start)
    cdef const elem* value = row_address(params.value, params.value_stride, b, key_head, start)
    cdef const elem* finite = value
    cdef int[DECODE_ROWS] bias_flags
    cdef int all_ = 0
    cdef bint hidden = False
    cdef real* scores
    cdef real* rescale
    cdef real* out
    for row in range(rows):
        bias_flags[row] = 0
        if params.biases:
            bias_flags[row] = load_score_bias(params, b, workspace.head[row], workspace.query[row], start, count,
                                              workspace.bias_sum + row * DECODE_KV_BLOCK)
            all_ |= bias_flags[row]
        if bias_flags[row] & 4 or workspace.begin[row] > start or workspace.end[row] < stop:
            hidden = True
    if params.biases and not all_ & 1:
        return
    order_keys(workspace, <int>(start % DECODE_KV_BLOCK), <int>count)
    row = 0
    while row < rows:
        scores = workspace.scores + row * DECODE_KV_BLOCK
        if rows - row >= 3:
            scores_of_block(4, params, workspace, key, <int>count, row, scores)
            row += 4
        elif rows - row >= 2:
            scores_of_block(2, params, workspace, key, <int>count, row, scores)
            row += 2
        else:
            scores_of_block(1, params, workspace, key, <int>count, row, scores)
            row += 1
    for row in range(rows):
        scores = workspace.scores + row * DECODE_KV_BLOCK
        adjust_scores(params, b, workspace.head[row], workspace.query[row], start, count, bias_flags[row],
                      workspace.bias_sum + row * DECODE_KV_BLOCK, scores)
        begin, end = min(max(workspace.begin[row] - start, 0), count), max(workspace.end[row] - start, 0)
        for j in range(begin):
            scores[j] = -INFINITY
        for j in range(max(begin, end), count):
            scores[j] = -INFINITY
        if params.entropy != NULL:
            online_softmax_row(start % DECODE_KV_BLOCK // LANES, count, True, True, scores,
                               state_of(params, states, row), &workspace.rescale[row])
        elif params.lse != NULL:
            online_softmax_row(start % DECODE_KV_BLOCK // LANES, count, True, False, scores,
                               state_of(params, states, row), &workspace.rescale[row])
        else:
            online_softmax_row(start % DECODE_KV_BLOCK // LANES, count, False, False, scores,
                               state_of(params, states, row), &workspace.rescale[row])
    if hidden and not is_finite(value, value_stride, count, params.value_dim):
        clear_nonfinite(value, value_stride, count, params.value_dim, workspace.clean)
        finite, value_stride = workspace.clean, params.value_dim
    row = 0
    while row < rows:
        scores, rescale, out = workspace.scores + row * DECODE_KV_BLOCK, workspace.rescale + row, out_of(params, states,
                                                                                                         row)
        if rows - row >= 3:
            add_rows(4, finite, value_stride, workspace, params.value_dim, scores, rescale, out, state_size(params))
            row += 4
        elif rows - row >= 2:
            add_rows(2, finite, value_stride, workspace, params.value_dim, scores, rescale, out, state_size(params))
            row += 2
        else:
            add_rows(1, finite, value_stride, workspace, params.value_dim, scores, rescale, out, state_size(params))
            row += 1
    if finite != value:
        add_nonfinite_rows(params, workspace, value, start, count, states)

# The tasks of a slice of a call: a pair of batch and key head with one split of its keys, `splits` a pair.
cdef struct DecodeTasks:
    const AttentionParams* params
    Py_ssize_t first_pair, splits
    char* workspaces                            # DecodeWorkspace, one a thread
    Py_ssize_t workspace_bytes
    real* states                                # (pairs of the slice, splits, rows + 1, state_size)

cdef inline real* states_of_pair(const DecodeTasks* tasks, Py_ssize_t pair) noexcept nogil:
    """pair: counted from first_pair."""
    cdef Py_ssize_t rows = tasks.params.length * tasks.params.queries_per_kv
    return tasks.states + pair * tasks.splits * (rows + 1) * state_size(tasks.params)

cdef Py_ssize_t decode_split(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    """The cost is the number of keys read."""
    cdef const DecodeTasks* tasks = <const DecodeTasks*>context
    cdef const AttentionParams* params = tasks.params
    cdef DecodeWorkspace* workspace = <DecodeWorkspace*>(tasks.workspaces + thread * tasks.workspace_bytes)
    cdef Py_ssize_t pair = tasks.first_pair + task // tasks.splits, split = task % tasks.splits
    cdef Py_ssize_t b = pair // params.key_heads, key_head = pair % params.key_heads
    cdef Py_ssize_t rows = params.length * params.queries_per_kv, row
    cdef Py_ssize_t size = split_size(params.keys), start = split * size, stop, begin = params.keys, end = 0, read = 0
    cdef real* states = states_of_pair(tasks, task // tasks.splits)
    cdef PartialState* state
    load_query_rows(params, b, key_head, workspace)
    states += split * (rows + 1) * state_size(params)
    memset(states, 0, (rows + 1) * state_size(params) * sizeof(real))
    for row in range(rows):
        state = state_of(params, states, row)
        state.row_max = -INFINITY
        if split == 0 and params.sinks != NULL:
            state.row_max = <real>params.sinks[workspace.head[row]]
            state.row_sum = 0 if state.row_max == -INFINITY else 1
        if workspace.end[row] > workspace.begin[row]:
            begin = min(begin, workspace.begin[row])
        end = max(end, workspace.end[row])
    end = min(end, start + size)
    start = max(start, begin // LANES * LANES)      # a score's lane must not depend on where the others begin
    while start < end:
        stop = min(start - start % DECODE_KV_BLOCK + DECODE_KV_BLOCK, end)
        decode_kv_block(params, b, key_head, start, stop, workspace, states)
        read += stop - start
        start = stop
    if size >= params.keys:
        for row in range(rows):
            finalize_row(params, b, workspace.head[row], workspace.query[row], state_of(params, states, row))
    return read + DECODE_ROWS

cdef Py_ssize_t combine_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const DecodeTasks* tasks = <const DecodeTasks*>context
    combine_splits(tasks.params, tasks.first_pair + task, tasks.splits, states_of_pair(tasks, task))
    return 1

# --- the call

cdef class DecodeWorkspaces:
    """The buffers of `threads` threads, and the states of `pairs` batches and key heads; freed with it."""
    cdef char* block
    cdef real* states
    cdef Py_ssize_t thread_bytes

    def __cinit__(self, int threads, Py_ssize_t rows, Py_ssize_t dim, Py_ssize_t value_dim, Py_ssize_t pairs,
                  Py_ssize_t pair_reals):
        cdef Py_ssize_t query_bytes = round_up_to_line((rows + 1) * padded(dim) * sizeof(real))
        cdef Py_ssize_t sums_bytes = round_up_to_line(4 * padded(value_dim) * sizeof(real))
        cdef Py_ssize_t t
        cdef DecodeWorkspace* workspace
        cdef char* at
        self.thread_bytes = (round_up_to_line(sizeof(DecodeWorkspace)) + query_bytes + sums_bytes
                             + round_up_to_line(DECODE_KV_BLOCK * value_dim * sizeof(elem)))
        self.block = <char*>allocate(threads * self.thread_bytes + pairs * pair_reals * <Py_ssize_t>sizeof(real))
        self.states = <real*>(self.block + threads * self.thread_bytes)
        for t in range(threads):
            workspace = self.of_thread(t)
            at = <char*>workspace + round_up_to_line(sizeof(DecodeWorkspace))
            workspace.query_rows = <real*>at
            workspace.skipped = workspace.count = 0
            workspace.sums = <real*>(at + query_bytes)
            workspace.clean = <elem*>(at + query_bytes + sums_bytes)

    cdef inline DecodeWorkspace* of_thread(self, Py_ssize_t t) noexcept nogil:
        return <DecodeWorkspace*>(self.block + t * self.thread_bytes)

    def __dealloc__(self):
        free(self.block)

cdef inline bint uses_decode(const AttentionParams* params) noexcept nogil:
    """Whether rows are too few to fill the lanes, or better spend their time on sharing long keys between threads."""
    cdef Py_ssize_t rows = params.length * params.queries_per_kv
    return (params.head_dim >= LANES and params.value_dim >= LANES
            and (rows <= min(LANES, DECODE_ROWS) or rows <= DECODE_ROWS and params.keys >= LONG_CACHE))

cdef int decode(const AttentionParams* params, int threads) except -1:
    cdef Py_ssize_t rows = params.length * params.queries_per_kv, pairs = params.batch * params.key_heads, count
    cdef Py_ssize_t at_once = <Py_ssize_t>100000000 // (multiplications_of_row(params) + 100000)
    cdef ParallelRegion region
    cdef DecodeTasks tasks
    cdef DecodeWorkspaces workspaces
    tasks.params, tasks.first_pair, tasks.splits = params, 0, ceil_div(params.keys, split_size(params.keys))
    # Pairs that are computed before a look for an interrupt: some for each thread, but for a fraction of a second, and,
    # with few keys, not so many that their states need much memory.
    at_once = max(<Py_ssize_t>1, min(pairs, max(<Py_ssize_t>(16 * threads) // tasks.splits, at_once)))
    threads = <int>min(threads, at_once * tasks.splits)
    workspaces = DecodeWorkspaces(threads, rows, params.head_dim, params.value_dim, at_once,
                                  tasks.splits * (rows + 1) * state_size(params))
    tasks.workspaces, tasks.workspace_bytes = workspaces.block, workspaces.thread_bytes
    tasks.states = workspaces.states
    while tasks.first_pair < pairs:
        count = min(at_once, pairs - tasks.first_pair)
        with nogil:
            region = open_region(threads)
            parallel_for(decode_split, &tasks, 0, count * tasks.splits, False, &region)
            if tasks.splits > 1:
                parallel_for(combine_task, &tasks, 0, count, False, &region)
            close_region(&region)
        tasks.first_pair += at_once
        PyErr_CheckSignals()
    return 0
