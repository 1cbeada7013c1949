# Masks and biases: the keys that a query sees, and the terms that join its scores.

cdef inline void visible_keys(const AttentionParams* params, Py_ssize_t b, Py_ssize_t i, Py_ssize_t* begin,
                              Py_ssize_t* end) noexcept nogil:
    """The keys that causal_offset, window and key_lengths leave to query i."""
    cdef Py_ssize_t position = i + params.offset[b]
    begin[0] = 0
    end[0] = params.keys
    if params.lengths != NULL:
        end[0] = params.lengths[b]
    if params.right >= 0:
        end[0] = min(end[0], position + params.right + 1)
    if params.left >= 0:
        begin[0] = max(position - params.left, 0)
    if end[0] <= begin[0]:
        begin[0] = end[0] = 0

# --- what is added to scores

cdef const real* bias_row(const ScoreBias* bias, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                          Py_ssize_t count, real* row_buffer) noexcept nogil:
    """The values of a term for `count` keys of a query, as reals: where they stand, or in `row_buffer`."""
    cdef const char* at = (bias.data + b * bias.stride[0] + head * bias.stride[1] + query * bias.stride[2]
                           + key * bias.stride[3])
    cdef Py_ssize_t j = 0, stride = bias.stride[3]
    if bias.kind == BIAS_BOOL:
        if stride == 1:
            for j in range(count):
                row_buffer[j] = 0 if at[j] else -INFINITY
        else:
            for j in range(count):
                row_buffer[j] = 0 if at[j * stride] else -INFINITY
    elif bias.kind == BIAS_REAL:
        if stride == sizeof(real):
            return <const real*>at
        for j in range(count):
            row_buffer[j] = (<const real*>(at + j * stride))[0]
    else:
        if stride == sizeof(elem):
            while j + LANES <= count:
                store(row_buffer + j, load_elem(<const elem*>at + j))
                j += LANES
        while j < count:
            row_buffer[j] = real_of(<const elem*>(at + j * stride))
            j += 1
    return row_buffer

cdef int load_score_bias(const AttentionParams* params, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                         Py_ssize_t count, real* bias_sum) noexcept nogil:
    """The sum of all terms; returns bits: 1, a key is visible; 2, something is to be added; 4, a key is hidden; 8, what
    is to be added is huge.
    """
    cdef real[DECODE_KV_BLOCK] row_buffer
    cdef const real* x
    cdef Py_ssize_t j
    cdef int t, visible = 0, different = 0, hidden = 0, huge = 0
    for t in range(params.biases):
        x = bias_row(&params.bias[t], b, head, query, key, count, row_buffer)
        if t == 0:
            memcpy(bias_sum, x, count * sizeof(real))
        else:
            for j in range(count):
                bias_sum[j] = saturated_sum(bias_sum[j], x[j])
    for j in range(count):
        visible |= bias_sum[j] != -INFINITY
        hidden |= bias_sum[j] == -INFINITY
        different |= bias_sum[j] != 0
        huge |= (bias_sum[j] > HUGE_BIAS) | ((bias_sum[j] < -HUGE_BIAS) & (bias_sum[j] != -INFINITY))
    return visible | different << 1 | hidden << 2 | huge << 3

cdef void cap_scores(double softcap, Py_ssize_t registers, real* scores) noexcept nogil:
    cdef Py_ssize_t r
    cdef vreal cap = broadcast(<real>softcap)
    for r in range(registers):
        store(scores + r * LANES, cap * tanh_(load(scores + r * LANES) / cap))

cdef inline void add_bias(bint huge, vreal bias, real* score) noexcept nogil:
    """-inf hides, whatever the score. huge: of what load_score_bias returned."""
    cdef vreal x = load(score), sum_ = x + bias
    if huge:
        sum_ = saturated(sum_, x, bias)
    store(score, vselect(eq(bias, broadcast(-INFINITY)), bias, sum_))

cdef inline bint is_steep(real slope) noexcept nogil:
    """Whether its product with a distance may be huge: no distance is beyond 2**42, see FAR in attention.py."""
    return abs(slope) > HUGE_BIAS / (<real>(1 << 21) * (1 << 21))

cdef inline void add_distance(bint steep, vreal slope, vreal distance, real* score) noexcept nogil:
    """ALiBi: minus slope * distance."""
    cdef vreal x = load(score), sum_ = fma_(-slope, distance, x)
    if steep:
        sum_ = saturated(sum_, x, slope)
    store(score, sum_)

# --- what happens to scores between the two

cdef void add_biases(int columns, Py_ssize_t count, bint huge, const real* bias_sum, real* scores) noexcept nogil:
    """added: a line of KEYS a query; turned LANES queries by LANES keys at a time."""
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

cdef void add_slopes(const AttentionParams* params, Py_ssize_t b, const QueryTile* tile, Py_ssize_t key,
                     Py_ssize_t count, real* scores) noexcept nogil:
    cdef real[TILE_ROWS] position
    cdef Py_ssize_t j, lane
    cdef int c, columns = tile.columns
    for lane in range(columns * LANES):
        position[lane] = <real>(tile.query[lane] + params.offset[b] - key)
    for j in range(count):
        for c in range(columns):
            add_distance(tile.steep, tile.slope[c], vabs(load(position + c * LANES) - broadcast(<real>j)), scores
                         + (j * columns + c) * LANES)

cdef void hide_keys(const QueryTile* tile, Py_ssize_t key, Py_ssize_t count, real* scores) noexcept nogil:
    """Scores of keys that causal, window or lengths hide become -inf."""
    cdef real[TILE_ROWS] before, end
    cdef real* score
    cdef vmask visible
    cdef vreal number
    cdef Py_ssize_t j, lane
    cdef int c, columns = tile.columns
    for lane in range(columns * LANES):         # relative to the block, so that they are exact
        before[lane] = <real>(min(max(tile.begin[lane] - key, 0), count) - 1)
        end[lane] = <real>min(max(tile.end[lane] - key, 0), count)
    for j in range(count):
        number = broadcast(<real>j)
        for c in range(columns):
            score = scores + (j * columns + c) * LANES
            visible = both(lt(load(before + c * LANES), number), lt(number, load(end + c * LANES)))
            store(score, vselect(visible, load(score), broadcast(-INFINITY)))
