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

cdef inline bint has_statistics(const AttentionParams* params) noexcept nogil:
    return params.lse != NULL or params.entropy != NULL

cdef inline Py_ssize_t multiplications_of_row(const AttentionParams* params) noexcept nogil:
    """Multiplications of a query, or as many as count; in integers, which leave no trace in floating-point flags."""
    return min(params.keys, <Py_ssize_t>1 << 30) * min(params.head_dim + params.value_dim, <Py_ssize_t>1 << 20)

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
