# Scaled dot-product attention: the arguments of a call, and the method that prefill and decode share.
#
#   query (B, Hq, L, E), key (B, Hk, S, E), value (B, Hk, S, Ev) -> out (B, Hq, L, Ev)
#
# L and S may differ from one sequence to the next where these are packed, S where keys are in pages: see kv_layout.pxi.
#
# Method: the online softmax of Milakov and Gimelshein (2018) over blocks of keys, so that no L x S array exists. Many
# queries stand in the lanes (prefill.pxi); for few, the elements of a key do (decode.pxi). The query heads that share a
# key head are one matrix of rows, which shares each pass over keys and values: row r is query r // queries_per_kv of
# head r % queries_per_kv among them.
#
# Sums of weights are taken in runs of WEIGHT_RUN, since the error of a sum grows with its length. For lse and entropy
# (`statistics`), the `excess` of row_sum over 1 is summed beside it, without the largest weights, which are exactly 1:
# if one score is 17 above the others, 1 + exp(-17) is 1 in float32 (Blanchard, Higham and Higham, 2021). The excess and
# the moment are compensated sums, each a number and its `rest`.
#
# Sums of finite scores and biases saturate, since an overflow to -inf would hide a key.
#
# A row's result depends on its own elements and on KV_BLOCK or DECODE_KV_BLOCK alone: not on the rows beside it, nor on
# threads. A key that is hidden from a row adds exact zeros to its sums wherever it is not skipped.

cdef enum:
    KV_BLOCK = 128          # keys of a block of prefill: their scores stay in the L1 cache
    DECODE_KV_BLOCK = 512   # keys of a block of decode: long enough for streams of memory
    MAX_BIASES = 4
    WEIGHT_RUN = 32         # weights that are summed before they join the others

# Kinds of a bias's elements.
cdef enum:
    BIAS_BOOL = 0           # True: visible
    BIAS_ELEM = 1
    BIAS_REAL = 2

cdef struct ScoreBias:                      # is added to scores, (B, Hq, L, S); -inf, or False, hides
    const char* data
    int kind
    Py_ssize_t[4] stride                    # bytes

cdef struct AttentionParams:
    Py_ssize_t batch, heads, key_heads, queries_per_kv, head_dim, value_dim
    Py_ssize_t length, keys                 # of the longest sequence
    Py_ssize_t statistics_batch, statistics_head    # strides of lse and entropy
    Tensor query, key, value, out
    PageTable table
    bint query_is_real, out_is_real         # they hold reals, beside keys and values of 16 bits
    int biases
    bint shared_bias                        # by all queries and heads of a tile, as a mask of padding is
    ScoreBias[MAX_BIASES] bias
    Py_ssize_t left, right                  # the window; -1: no limit
    double softcap                          # 0: none
    const double* scale                     # a head
    Py_ssize_t scale_step                   # 0: one number for all heads
    const long long* offset                 # a batch
    const long long* lengths                # a batch, or NULL; pages always have them
    const double* slopes                    # a batch and head, or NULL
    const double* sinks                     # a head, or NULL
    real* lse                               # (B, Hq, L), or NULL
    real* entropy

cdef inline Py_ssize_t length_of(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    """Queries of a sequence."""
    cdef const long long* first = params.query.first
    return params.length if first == NULL else <Py_ssize_t>(first[b + 1] - first[b])

cdef inline Py_ssize_t stored_keys(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    """Keys of a sequence, those beyond its length too."""
    cdef const long long* first = params.key.first
    return params.keys if first == NULL else <Py_ssize_t>(first[b + 1] - first[b])

cdef inline Py_ssize_t keys_of(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    return stored_keys(params, b) if params.lengths == NULL else <Py_ssize_t>params.lengths[b]

cdef inline Py_ssize_t rows_of_head(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    """Rows of a sequence that share a key head."""
    return length_of(params, b) * params.queries_per_kv

cdef inline Py_ssize_t query_of_row(const AttentionParams* params, Py_ssize_t row) noexcept nogil:
    return row // params.queries_per_kv

cdef inline Py_ssize_t head_of_row(const AttentionParams* params, Py_ssize_t key_head, Py_ssize_t row) noexcept nogil:
    return key_head * params.queries_per_kv + row % params.queries_per_kv

cdef inline bint has_statistics(const AttentionParams* params) noexcept nogil:
    return params.lse != NULL or params.entropy != NULL

cdef inline Py_ssize_t multiplications_of_row(const AttentionParams* params, Py_ssize_t keys) noexcept nogil:
    """Multiplications of a query and so many keys, or as many as count; in integers, which leave no trace in
    floating-point flags."""
    return min(keys, <Py_ssize_t>1 << 30) * min(params.head_dim + params.value_dim, <Py_ssize_t>1 << 20)

cdef inline double scale_of(const AttentionParams* params, Py_ssize_t head) noexcept nogil:
    return params.scale[head * params.scale_step]

cdef inline real sink_of(const AttentionParams* params, Py_ssize_t head) noexcept nogil:
    return -INFINITY if params.sinks == NULL else <real>params.sinks[head]

cdef inline real slope_of(const AttentionParams* params, Py_ssize_t b, Py_ssize_t head) noexcept nogil:
    return 0 if params.slopes == NULL else <real>params.slopes[b * params.heads + head]

# Rows of elements; or of reals, beside keys of 16 bits.

cdef inline vreal load_row(bint is_real, const elem* row, Py_ssize_t e) noexcept nogil:
    return load(<const real*>row + e) if sizeof(elem) < sizeof(real) and is_real else load_elem(row + e)

cdef inline real real_at(bint is_real, const elem* row, Py_ssize_t e) noexcept nogil:
    return (<const real*>row)[e] if sizeof(elem) < sizeof(real) and is_real else real_of(row + e)

cdef inline void store_out(const AttentionParams* params, vreal x, elem* row, Py_ssize_t e) noexcept nogil:
    if sizeof(elem) < sizeof(real) and params.out_is_real:
        store(<real*>row + e, x)
    else:
        store_elem(row + e, x)

cdef inline Py_ssize_t statistics_at(const AttentionParams* params, Py_ssize_t b, Py_ssize_t head,
                                     Py_ssize_t query) noexcept nogil:
    """Where the lse of a row stands: in (B, Hq, L), or in (Hq, rows of all sequences)."""
    if params.query.first != NULL:
        query += <Py_ssize_t>params.query.first[b]
    return b * params.statistics_batch + head * params.statistics_head + query

cdef void store_statistics(const AttentionParams* params, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, real lse,
                           real entropy) noexcept nogil:
    cdef Py_ssize_t at = statistics_at(params, b, head, query)
    if params.lse != NULL:
        params.lse[at] = lse
    if params.entropy != NULL:
        params.entropy[at] = entropy

cdef inline Py_ssize_t next_register(Py_ssize_t e, Py_ssize_t dim) noexcept nogil:
    """Where the register after that at e starts; the last one overlaps, so that it ends at dim. dim >= LANES."""
    return min(e + LANES, dim - LANES) if e + LANES < dim else dim
