# Masks and biases: which keys a query sees, and what is added to its scores. Prefill and decode share all of it.
#
# The scores of a block stand in (count, columns) registers. The lanes of register (j, c) are the keys first + j * step:
#
#   prefill   one key for LANES queries      first = 0, step = 1: count keys, `columns` registers of queries
#   decode    LANES keys for one query       first = (0, 1, ... LANES - 1), step = LANES, columns = 1

cdef inline void visible_keys(const AttentionParams* params, Py_ssize_t b, Py_ssize_t query, Py_ssize_t* begin,
                              Py_ssize_t* end) noexcept nogil:
    """The keys that causal_offset, window and key_lengths leave to a query: begin .. end - 1, or 0, 0 for none."""
    cdef Py_ssize_t position = query + params.offset[b]
    begin[0] = 0
    end[0] = keys_of(params, b)
    if params.right >= 0:
        end[0] = min(end[0], position + params.right + 1)
    if params.left >= 0:
        begin[0] = max(position - params.left, 0)
    if end[0] <= begin[0]:
        begin[0] = end[0] = 0

# Biases.

cdef enum:                                  # of a block of biases, as bits
    BIAS_SHOWS = 1                          # a key is visible
    BIAS_ADDS = 2                           # a bias is not 0
    BIAS_HIDES = 4                          # a key is hidden
    BIAS_IS_HUGE = 8                        # a sum with a score may overflow

cdef inline const char* bias_at(const ScoreBias* bias, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query,
                                Py_ssize_t key) noexcept nogil:
    return bias.data + b * bias.stride[0] + head * bias.stride[1] + query * bias.stride[2] + key * bias.stride[3]

cdef int load_visibility(const char* at, Py_ssize_t stride, Py_ssize_t count, real* bias_sum) noexcept nogil:
    """load_score_bias for booleans alone."""
    cdef Py_ssize_t j
    cdef char visible = 0, hidden = 0, one
    if stride == 1:
        for j in range(count):
            one = at[j] != 0
            visible |= one
            hidden |= one ^ 1
            bias_sum[j] = 0 if one else -INFINITY
    else:
        for j in range(count):
            one = at[j * stride] != 0
            visible |= one
            hidden |= one ^ 1
            bias_sum[j] = 0 if one else -INFINITY
    return visible * BIAS_SHOWS | hidden * (BIAS_ADDS | BIAS_HIDES)

cdef const real* bias_row(const ScoreBias* bias, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                          Py_ssize_t count, real* buffer) noexcept nogil:
    """The values of a bias for `count` keys of a query, as reals: where they stand, or in `buffer`."""
    cdef const char* at = bias_at(bias, b, head, query, key)
    cdef Py_ssize_t j = 0, stride = bias.stride[3]
    if bias.kind == BIAS_BOOL:
        load_visibility(at, stride, count, buffer)
    elif bias.kind == BIAS_REAL:
        if stride == sizeof(real):
            return <const real*>at
        for j in range(count):
            buffer[j] = (<const real*>(at + j * stride))[0]
    else:
        if stride == sizeof(elem):
            while j + LANES <= count:
                store(buffer + j, load_elem(<const elem*>at + j))
                j += LANES
        while j < count:
            buffer[j] = real_of(<const elem*>(at + j * stride))
            j += 1
    return buffer

cdef int load_score_bias(const AttentionParams* params, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                         Py_ssize_t count, real* bias_sum) noexcept nogil:
    """The sum of all biases for `count` keys of a query; returns BIAS_ bits."""
    cdef real[DECODE_KV_BLOCK] buffer
    cdef const real* x
    cdef Py_ssize_t j
    cdef int t, visible = 0, different = 0, hidden = 0, huge = 0
    if params.biases == 1 and params.bias[0].kind == BIAS_BOOL:
        return load_visibility(bias_at(&params.bias[0], b, head, query, key), params.bias[0].stride[3], count, bias_sum)
    for t in range(params.biases):
        x = bias_row(&params.bias[t], b, head, query, key, count, buffer)
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
    return visible * BIAS_SHOWS | different * BIAS_ADDS | hidden * BIAS_HIDES | huge * BIAS_IS_HUGE

cdef inline void add_bias(bint huge, vreal bias, real* score) noexcept nogil:
    """-inf hides, whatever the score."""
    cdef vreal x = load(score), sum_ = x + bias
    if huge:
        sum_ = saturated(sum_, x, bias)
    store(score, vselect(eq(bias, broadcast(-INFINITY)), bias, sum_))

# The position of a register's lanes: of LANES queries, or of one.

cdef struct LaneMask:
    vreal position                          # of the query; all are counted from the block's first key
    vreal before, end                       # keys between these, both excluded, are visible
    vreal slope                             # of ALiBi
    bint steep                              # slope * distance may overflow

cdef inline bint is_steep(real slope) noexcept nogil:
    """Whether its product with a distance may be huge: no distance is beyond 2**42, since no offset is
    beyond MAX_DISTANCE of _validate.py, 2**40."""
    return abs(slope) > HUGE_BIAS / (<real>(1 << 21) * (1 << 21))

cdef inline void limits_in_block(Py_ssize_t begin, Py_ssize_t end, Py_ssize_t key, Py_ssize_t count, real* before,
                                 real* after) noexcept nogil:
    """The limits of LaneMask for visible keys begin .. end - 1; small numbers, so that reals hold them exactly."""
    before[0] = <real>(min(max(begin - key, 0), count) - 1)
    after[0] = <real>min(max(end - key, 0), count)

cdef inline void add_alibi(int columns, Py_ssize_t count, const LaneMask* mask, vreal first, Py_ssize_t step,
                           real* scores) noexcept nogil:
    """Subtracts slope * |position - key number| (Press et al., 2022)."""
    cdef vreal number, x, sum_
    cdef real* score
    cdef Py_ssize_t j
    cdef int c
    for j in range(count):
        number = first + broadcast(<real>(j * step))
        for c in range(columns):
            score = scores + (j * columns + c) * LANES
            x = load(score)
            sum_ = fma_(-mask[c].slope, vabs(mask[c].position - number), x)
            if mask[c].steep:
                sum_ = saturated(sum_, x, mask[c].slope)
            store(score, sum_)

cdef inline void hide_keys(int columns, Py_ssize_t count, const LaneMask* mask, vreal first, Py_ssize_t step,
                           real* scores) noexcept nogil:
    """The scores of keys that causal_offset, window or key_lengths hide become -inf."""
    cdef vreal number
    cdef vmask visible
    cdef real* score
    cdef Py_ssize_t j
    cdef int c
    for j in range(count):
        number = first + broadcast(<real>(j * step))
        for c in range(columns):
            score = scores + (j * columns + c) * LANES
            visible = both(lt(mask[c].before, number), lt(number, mask[c].end))
            store(score, vselect(visible, load(score), broadcast(-INFINITY)))

cdef void cap_scores(double softcap, Py_ssize_t registers, real* scores) noexcept nogil:
    """softcap * tanh(score / softcap)."""
    cdef Py_ssize_t r
    cdef vreal cap = broadcast(<real>softcap)
    for r in range(registers):
        store(scores + r * LANES, cap * tanh_(load(scores + r * LANES) / cap))
