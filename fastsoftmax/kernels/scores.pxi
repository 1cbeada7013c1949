# Scaled dot-product attention: what is asked, and what its two ways have in common.
#
#   query (B, Hq, L, E), key (B, Hk, S, E), value (B, Hk, S, Ev) -> out (B, Hq, L, Ev)
#
# Both ways are the online softmax of Milakov and Gimelshein (2018) over blocks of keys: no L x S array exists. Many
# queries stand in the lanes (attend.pxi); for few, the elements of a key do (decode.pxi). The query heads that share a
# key head are one matrix of rows, which share each pass over keys and values: row r is query r // shared of the head
# number r % shared among them.
#
# Sums of weights are taken in runs of WEIGHT_RUN, since the error of a sum grows with its length. Where lse or entropy is
# asked for (`statistics`), the `excess` of the total over 1 is summed beside it, without the largest weights, which are
# exactly 1: where one key leads by 17, a total has no digits left of the others (Blanchard, Higham and Higham, 2021).
# That sum and that of the moments are compensated, each a number and its `rest`.
#
# Sums of finite scores and terms saturate, since an overflow to -inf would hide a key.
#
# A row's result depends on its own elements and on KEYS or READ alone: not on the rows beside it, nor on threads. A key
# that is hidden from it adds exact zeros wherever it is not skipped.

cdef enum:
    KV_BLOCK = 128          # keys of a block: their scores stay in the L1 cache
    DECODE_KV_BLOCK = 512   # keys of a block where they are read for a few queries: long enough for streams of memory
    MAX_BIASES = 4
    WEIGHT_RUN = 32         # weights that are summed before they join the others
    # kinds of a term's elements
    BIAS_BOOL = 0
    BIAS_ELEM = 1
    BIAS_REAL = 2

ctypedef elem* RowPointer                   # a row of an array

cdef struct ScoreBias:                      # what is added to scores, (B, Hq, L, S); -inf, or False, hides
    const char* data
    int kind
    Py_ssize_t[4] stride                    # bytes

cdef struct AttentionParams:
    Py_ssize_t batch, heads, key_heads, queries_per_kv, length, keys, head_dim, value_dim
    const elem* query
    const elem* key
    const elem* value
    elem* out
    bint query_is_real, out_is_real         # they hold reals, beside keys and values of 16 bits
    Py_ssize_t[3] query_stride, key_stride, value_stride, out_stride    # batch, head, row; in elements
    int biases
    ScoreBias[MAX_BIASES] bias
    Py_ssize_t left, right                  # -1: no limit
    double softcap                          # 0: none
    const double* scale                     # a head
    const long long* offset                 # a batch
    const long long* lengths                # a batch, or NULL
    const double* slopes                    # a batch and head, or NULL
    const double* sinks                     # a head, or NULL
    real* lse                               # (B, Hq, L), or NULL
    real* entropy

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

cdef inline bint has_statistics(const AttentionParams* params) noexcept nogil:
    return params.lse != NULL or params.entropy != NULL

cdef inline Py_ssize_t multiplications_of_row(const AttentionParams* params) noexcept nogil:
    """Multiplications of a query, or as many as count; in integers, which leave no trace in floating-point flags."""
    return min(params.keys, <Py_ssize_t>1 << 30) * min(params.head_dim + params.value_dim, <Py_ssize_t>1 << 20)

cdef inline const elem* row_address(const elem* data, const Py_ssize_t* stride, Py_ssize_t b, Py_ssize_t head,
                                    Py_ssize_t row) noexcept nogil:
    return data + b * stride[0] + head * stride[1] + row * stride[2]

cdef inline vreal load_query(const AttentionParams* params, const elem* row, Py_ssize_t e) noexcept nogil:
    return load(<const real*>row + e) if sizeof(elem) < sizeof(real) and params.query_is_real else load_elem(row + e)

cdef inline real query_at(const AttentionParams* params, const elem* row, Py_ssize_t e) noexcept nogil:
    return (<const real*>row)[e] if sizeof(elem) < sizeof(real) and params.query_is_real else real_of(row + e)

cdef inline void store_out(const AttentionParams* params, vreal x, elem* row, Py_ssize_t e) noexcept nogil:
    if sizeof(elem) < sizeof(real) and params.out_is_real:
        store(<real*>row + e, x)
    else:
        store_elem(row + e, x)

cdef inline Py_ssize_t next_register(Py_ssize_t e, Py_ssize_t dim) noexcept nogil:
    """Where the register after that at e starts; the last one overlaps, so that it ends at width. width >= LANES."""
    return min(e + LANES, dim - LANES) if e + LANES < dim else dim

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

# --- the sums of the weights of a block, and what was found before

cdef struct BlockSums:                      # of a register of rows, or of a register's lanes of one row
    vreal row_sum
    vreal moment, moment_rest               # of weight * log(weight)
    vreal others, others_rest               # the total without the weights of 1
    vreal ones                              # how many these are

cdef inline void exp_and_sum_run(int columns, Py_ssize_t count, bint statistics, bint moments, const vreal* shift,
                                 real* scores, BlockSums* sums) noexcept nogil:
    """scores (count, columns) of registers, count <= WEIGHT_RUN, become weights, which are added up."""
    cdef vreal[COLUMNS] row_sum
    cdef vreal d, weight
    cdef vmask largest
    cdef real* score
    cdef Py_ssize_t j
    cdef int c
    for c in range(columns):
        row_sum[c] = broadcast(0)
    for j in range(count):
        for c in range(columns):
            score = scores + (j * columns + c) * LANES
            d = load(score) - shift[c]
            weight = exp_(d)
            store(score, weight)
            row_sum[c] = row_sum[c] + weight
            if statistics:
                largest = eq(d, broadcast(0))
                add_to(&sums[c].others, &sums[c].others_rest, zero_where(largest, weight))
                sums[c].ones = sums[c].ones + select_or_zero(largest, broadcast(1))
            if moments:
                add_to(&sums[c].moment, &sums[c].moment_rest, weight * vmax(broadcast(LEAST_EXPONENT), d))
    for c in range(columns):
        sums[c].row_sum = sums[c].row_sum + row_sum[c]

# --- values that are NaN or infinite: a weight of zero does not make them zero, so a hidden one must not be met

cdef bint is_finite(const elem* value, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t dim) noexcept nogil:
    cdef vreal sums = broadcast(0)
    cdef real rest = 0
    cdef Py_ssize_t j, e
    for j in range(count):
        e = 0
        while e + LANES <= dim:
            sums = fma_(load_elem(value + j * stride + e), broadcast(0), sums)
            e += LANES
        while e < dim:
            rest += real_of(value + j * stride + e) * 0
            e += 1
    return lane0(hsum(sums)) + rest == 0

cdef void clear_nonfinite(const elem* value, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t dim,
                          elem* clean) noexcept nogil:
    """A copy with zeros for what is not finite."""
    cdef Py_ssize_t j, e
    cdef real x
    for j in range(count):
        for e in range(dim):
            x = real_of(value + j * stride + e)
            clean[j * dim + e] = value[j * stride + e] if x - x == 0 else <elem>0

# --- what comes of it

cdef inline vreal finalize_rows(const AttentionParams* params, vreal row_max, vreal row_sum, vreal excess,
                                vreal excess_rest, vreal moment, vreal* lse, vreal* entropy) noexcept nogil:
    """1 / total; where asked for, lse = top + log(total) and entropy = log(total) - moment / total, in nats.

    total is the fast sum that the weights are divided by; for the other two it is 1 + excess.
    """
    cdef vreal hi, lo
    cdef vdd logarithm
    cdef vmask nothing = eq(row_sum, broadcast(0))
    cdef vreal inverse = vselect(nothing, broadcast(0), broadcast(1) / row_sum)
    lse[0] = entropy[0] = broadcast(0)
    if has_statistics(params):
        logarithm = dd_log1p(dd_of_sum(excess, excess_rest))
        dd_split_sum(row_max, broadcast(0), logarithm, &hi, &lo)
        lse[0] = vselect(nothing, broadcast(-INFINITY), hi)
        dd_split(logarithm, &hi, &lo)
        entropy[0] = vselect(nothing, broadcast(0), hi - moment / (broadcast(1) + (excess + excess_rest)))
    return inverse

cdef inline Py_ssize_t round_up_to_line(Py_ssize_t bytes) noexcept nogil:
    """Rounded up to cache lines."""
    return bytes + 63 & ~63
