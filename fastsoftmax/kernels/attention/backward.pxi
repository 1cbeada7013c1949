# The gradient of attention (Dao et al., 2022, 2023), from out and lse of the forward pass.
#
#   grad_out (B, Hq, L, Ev) -> dquery (B, Hq, L, E), dkey (B, Hk, S, E), dvalue (B, Hk, S, Ev)
#
#   P = exp(scores - lse)              the weights again, a block at a time: grad_weights.pxi
#   dP = grad_out @ value.T
#   dS = P * (dP - delta)              delta = sum of grad_out * out over Ev, minus grad_lse: one number a row
#   dvalue = P.T @ grad_out            dkey = scale * dS.T @ query            dquery = scale * dS @ key
#
# where dS is multiplied by the derivative of softcap at the score, if there is one. P, dP and dS exist for one block of
# keys and one tile of queries at a time.
#
# One pass: blocks of keys, and for each the tiles of queries that see it. dkey and dvalue of a block stay in the cache
# until it is done. dquery is summed over the blocks in a buffer of its own, dquery_sums, before scale: the gradient of
# scale is then the sum of query * dquery_sums. A task is a pair of batch and key head, with one split of its keys.
# Splits are a function of the number of keys alone, and their dquery_sums are added in order, so that neither threads
# nor the rest of the batch change a bit.
#
# A key that is hidden from a row has P = dS = 0, whatever it, the row or grad_out hold. Since 0 times NaN is not 0, the
# operands of the products that sum over keys or rows are copied without NaN and infinities wherever there are any. A
# visible NaN still reaches the result, through P or dS. Only dvalue multiplies by grad_out itself: there
# restore_nonfinite_grads adds it.

cdef enum:
    MAX_GRAD_SPLITS = 16
    GRAD_SPLIT_KEYS = 512   # keys of a split, at least

cdef struct ScoreGrad:                      # the gradient of a bias, with stride 0 where the bias broadcasts
    char* data
    bint is_double                          # doubles, else reals
    Py_ssize_t[4] stride                    # bytes

cdef struct BackwardParams:
    AttentionParams forward
    Tensor grad_out, dquery, dkey, dvalue
    bint grad_is_real, dquery_is_real, dkey_is_real, dvalue_is_real     # they hold reals, beside keys of 16 bits
    const real* lse                         # (B, Hq, L)
    const real* grad_lse                    # (B, Hq, L), or NULL
    real* delta                             # (B, Hq, L): as lse, see statistics_at
    double* dscale                          # (B, Hq), or NULL
    double* dsinks                          # (B, Hq), or NULL
    double* dslopes                         # (B, Hq, splits of the longest), or NULL
    int biases
    ScoreGrad[MAX_BIASES] dbias

cdef struct BackwardWorkspace:              # one thread's buffers; rows are padded to whole registers
    QueryTile tile
    GradRowConstants rows                   # of the tile
    real* row_sums                          # of the tile's weights; their rests are row_sums_step further on
    Py_ssize_t row_sums_step
    real[KV_BLOCK * TILE_ROWS] weights      # P, a row of lanes for each key
    real[KV_BLOCK * TILE_ROWS] grads        # dP, then dS
    real[KV_BLOCK * TILE_ROWS] capped       # scores after softcap
    real[TILE_ROWS * KV_BLOCK] bias_sum     # a row a query
    real* grad_t                            # (Ev, columns * LANES): grad_out of the tile
    real* query_rows                        # (TILE_ROWS, E): scale * query, finite
    real* grad_out_rows                     # (TILE_ROWS, Ev): grad_out, finite
    bint grad_finite
    KvBlock block
    const real* key                         # the block's keys and values as reals, where they stand or in *_reals
    const real* value
    Py_ssize_t key_row, value_row
    const real* finite_key                  # without NaN and infinities
    Py_ssize_t finite_row
    real* key_reals                         # (KV_BLOCK, E)
    real* value_reals
    real* finite_reals
    real* dkey                              # (KV_BLOCK, E): sums of the block
    real* dvalue

cdef inline Py_ssize_t grad_splits(Py_ssize_t keys) noexcept nogil:
    return max(<Py_ssize_t>1, min(<Py_ssize_t>MAX_GRAD_SPLITS, keys // GRAD_SPLIT_KEYS))

cdef inline Py_ssize_t splits_of(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    return grad_splits(stored_keys(params, b))

cdef inline Py_ssize_t grad_split_keys(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    """Keys of a split: whole blocks."""
    return ceil_div(ceil_div(stored_keys(params, b), splits_of(params, b)), KV_BLOCK) * KV_BLOCK

# A task's sums, for each row: of dquery, a padded row; then of the weights, in two parts. The last tile may write
# beyond its rows.

cdef inline Py_ssize_t row_sums_at(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    """Where the sums of weights begin, in reals."""
    return (rows_of_head(params, b) + TILE_ROWS) * padded(params.head_dim)

cdef inline Py_ssize_t row_sums_size(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    return padded(rows_of_head(params, b) + TILE_ROWS)

cdef inline Py_ssize_t dquery_sums_size(const AttentionParams* params, Py_ssize_t b) noexcept nogil:
    return row_sums_at(params, b) + 2 * row_sums_size(params, b)

# Operands as reals.

cdef void convert_padded(const elem* x, bint is_real, Py_ssize_t dim, real scale, real* to) noexcept nogil:
    """A row times scale, and zeros up to a whole register."""
    cdef Py_ssize_t e = 0
    while e + LANES <= dim:
        store(to + e, load_row(is_real, x, e) * broadcast(scale))
        e += LANES
    while e < dim:
        to[e] = real_at(is_real, x, e) * scale
        e += 1
    while e < padded(dim):
        to[e] = 0
        e += 1

cdef bint clear_nonfinite_reals(const real* x, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t size,
                                real* clean) noexcept nogil:
    """Whether all of count rows of `size` reals, whole registers, are finite. Where not, clean is a copy with 0 for
    those that are not."""
    cdef vreal[4] sums                      # four, since an addition waits for the one before
    cdef Py_ssize_t j = 0, r, e
    cdef real y
    cdef int i
    for i in range(4):
        sums[i] = broadcast(0)
    while j < count:
        for r in range(size // LANES):
            for i in range(4):
                sums[i] = fma_(load(x + min(j + i, count - 1) * stride + r * LANES), broadcast(0), sums[i])
        j += 4
    if lane0(hsum((sums[0] + sums[1]) + (sums[2] + sums[3]))) == 0:
        return True
    for j in range(count):
        for e in range(size):
            y = x[j * stride + e]
            clean[j * size + e] = y if y - y == 0 else 0
    return False

cdef void load_grad_block(const BackwardParams* p, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t start,
                          Py_ssize_t stop, BackwardWorkspace* ws) noexcept nogil:
    """The next block of keys, and no gradient of it yet."""
    cdef const AttentionParams* params = &p.forward
    cdef Py_ssize_t dim = padded(params.head_dim), value_dim = padded(params.value_dim), j, count
    ws.block = kv_block(&params.table, &params.key, &params.value, b, key_head, start, stop)
    count = stop - start
    ws.key, ws.key_row = <const real*>ws.block.key.first, ws.block.key.step
    if sizeof(elem) < sizeof(real) or dim != params.head_dim:
        ws.key, ws.key_row = ws.key_reals, dim
        for j in range(count):
            convert_padded(kv_row(&ws.block.key, j), False, params.head_dim, 1, ws.key_reals + j * dim)
    ws.value, ws.value_row = <const real*>ws.block.value.first, ws.block.value.step
    if sizeof(elem) < sizeof(real) or value_dim != params.value_dim:
        ws.value, ws.value_row = ws.value_reals, value_dim
        for j in range(count):
            convert_padded(kv_row(&ws.block.value, j), False, params.value_dim, 1, ws.value_reals + j * value_dim)
    ws.finite_key, ws.finite_row = ws.key, ws.key_row
    if not clear_nonfinite_reals(ws.key, ws.key_row, count, dim, ws.finite_reals):
        ws.finite_key, ws.finite_row = ws.finite_reals, dim
    memset(ws.dkey, 0, count * dim * sizeof(real))
    memset(ws.dvalue, 0, count * value_dim * sizeof(real))

cdef inline real lse_of_lane(real lse) noexcept nogil:
    """+inf, which makes all weights 0, for a row that saw nothing; NaN for a row whose result is NaN."""
    return INFINITY if lse == -INFINITY else NAN if lse == INFINITY else lse

cdef void load_grad_tile(const BackwardParams* p, Py_ssize_t b, BackwardWorkspace* ws) noexcept nogil:
    """The operands of the tile that ws.tile places. Lanes without a row have weights of 0, and rows of 0."""
    cdef const AttentionParams* params = &p.forward
    cdef QueryTile* tile = &ws.tile
    cdef Py_ssize_t dim = padded(params.head_dim), value_dim = padded(params.value_dim)
    cdef Py_ssize_t lane, at, lanes = tile.columns * LANES
    cdef ConstRowPointer[TILE_ROWS] grad
    cdef real[TILE_ROWS] lse, delta, grad_lse, sink, whole, scale, slope
    cdef bint steep = False
    cdef int c
    ws.rows.any_whole = False
    for lane in range(lanes):
        at = statistics_at(params, b, tile.head[lane], tile.query[lane])
        lse[lane] = lse_of_lane(p.lse[at]) if lane < tile.rows else INFINITY
        delta[lane] = p.delta[at] if lane < tile.rows else 0
        grad_lse[lane] = p.grad_lse[at] if p.grad_lse != NULL else 0
        sink[lane] = sink_of(params, tile.head[lane])
        whole[lane] = ws.block.start <= tile.begin[lane] and tile.end[lane] <= ws.block.stop
        ws.rows.any_whole |= whole[lane] != 0
        scale[lane] = <real>scale_of(params, tile.head[lane])
        slope[lane] = slope_of(params, b, tile.head[lane])
        steep |= is_steep(slope[lane])
        grad[lane] = row_address(&p.grad_out, b, tile.head[lane], tile.query[lane])
        if lane < tile.rows:
            convert_padded(row_address(&params.query, b, tile.head[lane], tile.query[lane]), params.query_is_real,
                           params.head_dim, scale[lane], ws.query_rows + lane * dim)
            convert_padded(grad[lane], p.grad_is_real, params.value_dim, 1, ws.grad_out_rows + lane * value_dim)
        else:
            memset(ws.query_rows + lane * dim, 0, dim * sizeof(real))
            memset(ws.grad_out_rows + lane * value_dim, 0, value_dim * sizeof(real))
    clear_nonfinite_reals(ws.query_rows, dim, lanes, dim, ws.query_rows)
    ws.grad_finite = clear_nonfinite_reals(ws.grad_out_rows, value_dim, lanes, value_dim, ws.grad_out_rows)
    for c in range(tile.columns):
        ws.rows.lse[c], ws.rows.delta[c] = load(lse + c * LANES), load(delta + c * LANES)
        ws.rows.grad_lse[c], ws.rows.whole[c] = load(grad_lse + c * LANES), load(whole + c * LANES)
        ws.rows.sink_weight[c] = broadcast(0)
        if params.sinks != NULL:
            ws.rows.sink_weight[c] = exp_(vmin(broadcast(1), load(sink + c * LANES) - ws.rows.lse[c]))
        tile.scale[c] = load(scale + c * LANES)
        tile.mask[c].slope, tile.mask[c].steep = load(slope + c * LANES), steep
    load_query_tile(params, b, tile)
    pack_tile(p.grad_is_real, params.value_dim, tile.columns, grad, ws.grad_t)

# Gradients of what was added to scores or multiplied with them.

cdef void multiply_softcap_grads(double softcap, Py_ssize_t registers, const real* capped, real* grads) noexcept nogil:
    """d(cap tanh(x / cap)) / dx = 1 - (capped / cap)**2."""
    cdef vreal cap = broadcast(<real>softcap), t, grad
    cdef Py_ssize_t r
    for r in range(registers):
        t = load(capped + r * LANES) / cap
        grad = load(grads + r * LANES)
        # where dS is 0, as for hidden keys, t may be NaN
        store(grads + r * LANES, zero_where(eq(grad, broadcast(0)), grad * fma_(-t, t, broadcast(1))))

cdef void add_bias_grads(const BackwardParams* p, Py_ssize_t b, const QueryTile* tile, Py_ssize_t key,
                         Py_ssize_t count, const real* grads) noexcept nogil:
    cdef Py_ssize_t lane, j, lanes = tile.columns * LANES
    cdef const ScoreGrad* to
    cdef char* at
    cdef int t
    for t in range(p.biases):
        to = &p.dbias[t]
        for lane in range(tile.rows):
            at = (to.data + b * to.stride[0] + tile.head[lane] * to.stride[1] + tile.query[lane] * to.stride[2]
                  + key * to.stride[3])
            for j in range(count):
                if to.is_double:
                    (<double*>(at + j * to.stride[3]))[0] += grads[j * lanes + lane]
                else:
                    (<real*>(at + j * to.stride[3]))[0] += grads[j * lanes + lane]

cdef void add_slope_grads(const BackwardParams* p, Py_ssize_t b, Py_ssize_t split, const QueryTile* tile,
                          Py_ssize_t count, const real* grads) noexcept nogil:
    """dslope = minus the sum of dS * distance; tile.mask is of these keys."""
    cdef Py_ssize_t j, lane
    cdef vreal sum_
    cdef real[LANES] lanes
    cdef int c
    for c in range(tile.columns):
        sum_ = broadcast(0)
        for j in range(count):
            sum_ = fma_(load(grads + (j * tile.columns + c) * LANES),
                        vabs(tile.mask[c].position - broadcast(<real>j)), sum_)
        store(lanes, sum_)
        for lane in range(min(<Py_ssize_t>LANES, tile.rows - c * LANES)):
            p.dslopes[(b * p.forward.heads + tile.head[c * LANES + lane]) * grad_splits(p.forward.keys)
                      + split] -= lanes[lane]

cdef void restore_nonfinite_grads(const BackwardParams* p, Py_ssize_t b, Py_ssize_t skipped, Py_ssize_t count,
                                  BackwardWorkspace* ws) noexcept nogil:
    """Adds P * grad_out to dvalue where grad_out is not finite and the key is visible."""
    cdef const AttentionParams* params = &p.forward
    cdef QueryTile* tile = &ws.tile
    cdef Py_ssize_t lane, j, e, key = ws.block.start + skipped, lanes = tile.columns * LANES
    cdef const elem* grad
    cdef real x
    for lane in range(tile.rows):
        grad = row_address(&p.grad_out, b, tile.head[lane], tile.query[lane])
        for e in range(params.value_dim):
            x = real_at(p.grad_is_real, grad, e)
            if x - x == 0:
                continue
            for j in range(count):
                if (tile.begin[lane] <= key + j < tile.end[lane]
                        and (params.biases == 0 or ws.bias_sum[lane * KV_BLOCK + j] != -INFINITY)):
                    ws.dvalue[(skipped + j) * padded(params.value_dim) + e] += ws.weights[j * lanes + lane] * x

# One tile of queries and the current block of keys.

cdef inline void add_row_sums(int columns, const WeightSums* sums, real* row_sums, Py_ssize_t step) noexcept nogil:
    cdef vreal sum_, rest
    cdef int c
    for c in range(columns):
        sum_, rest = load(row_sums + c * LANES), load(row_sums + step + c * LANES)
        add_to(&sum_, &rest, sums.sum[c])
        store(row_sums + c * LANES, sum_)
        store(row_sums + step + c * LANES, rest + sums.rest[c])

cdef inline void grad_kv_block(int rows, int columns, const BackwardParams* p, Py_ssize_t b, Py_ssize_t split,
                               int bias, Py_ssize_t key, Py_ssize_t count, BackwardWorkspace* ws,
                               real* dquery_sums) noexcept nogil:
    """dquery_sums: of the tile's first row. rows x columns: the tile of the products."""
    cdef const AttentionParams* params = &p.forward
    cdef QueryTile* tile = &ws.tile
    cdef Py_ssize_t skipped = key - ws.block.start, lanes = columns * LANES
    cdef Py_ssize_t dim = padded(params.head_dim), value_dim = padded(params.value_dim)
    cdef vreal[COLUMNS] one
    cdef WeightSums sums
    cdef int c
    for c in range(columns):
        one[c] = broadcast(1)
    score_block(rows, columns, False, ws.key + skipped * ws.key_row, ws.key_row, count, params.head_dim, tile.query_t,
                tile.scale, ws.weights)
    if params.softcap != 0:
        cap_scores(params.softcap, count * columns, ws.weights)
        memcpy(ws.capped, ws.weights, count * lanes * sizeof(real))
    if bias & BIAS_ADDS:
        add_tile_biases(columns, count, bias & BIAS_IS_HUGE, ws.bias_sum, ws.weights)
    mask_query_tile(params, b, key, count, tile)
    if params.slopes != NULL:
        add_alibi(columns, count, tile.mask, broadcast(0), 1, ws.weights)
    if key < tile.all_begin or key + count > tile.all_end:
        hide_keys(columns, count, tile.mask, broadcast(0), 1, ws.weights)
    score_block(rows, columns, False, ws.value + skipped * ws.value_row, ws.value_row, count, params.value_dim,
                ws.grad_t, one, ws.grads)
    weights_and_grads(columns, skipped, count, &ws.rows, ws.weights, ws.grads, &sums)
    if ws.rows.any_whole:
        correct_whole_rows(columns, count, &ws.rows, ws.weights, ws.grads, &sums)
    add_row_sums(columns, &sums, ws.row_sums, ws.row_sums_step)
    add_bias_grads(p, b, tile, key, count, ws.grads)
    if p.dslopes != NULL:
        add_slope_grads(p, b, split, tile, count, ws.grads)
    if params.softcap != 0:
        multiply_softcap_grads(params.softcap, count * columns, ws.capped, ws.grads)
    add_product(count, value_dim, lanes, ws.weights, lanes, 1, ws.grad_out_rows, value_dim,
                ws.dvalue + skipped * value_dim, value_dim)
    if not ws.grad_finite:
        restore_nonfinite_grads(p, b, skipped, count, ws)
    add_product(count, dim, lanes, ws.grads, lanes, 1, ws.query_rows, dim, ws.dkey + skipped * dim, dim)
    add_product(lanes, dim, count, ws.grads, 1, lanes, ws.finite_key + skipped * ws.finite_row, ws.finite_row,
                dquery_sums, dim)

cdef void grad_kv_block_1(const BackwardParams* p, Py_ssize_t b, Py_ssize_t split, int bias, Py_ssize_t key,
                          Py_ssize_t count, BackwardWorkspace* ws, real* dquery_sums) noexcept nogil:
    grad_kv_block(TILE_1, 1, p, b, split, bias, key, count, ws, dquery_sums)

cdef void grad_kv_block_2(const BackwardParams* p, Py_ssize_t b, Py_ssize_t split, int bias, Py_ssize_t key,
                          Py_ssize_t count, BackwardWorkspace* ws, real* dquery_sums) noexcept nogil:
    grad_kv_block(TILE_2, 2, p, b, split, bias, key, count, ws, dquery_sums)

cdef void grad_kv_block_3(const BackwardParams* p, Py_ssize_t b, Py_ssize_t split, int bias, Py_ssize_t key,
                          Py_ssize_t count, BackwardWorkspace* ws, real* dquery_sums) noexcept nogil:
    grad_kv_block(TILE_3, 3, p, b, split, bias, key, count, ws, dquery_sums)

cdef Py_ssize_t grad_tile(const BackwardParams* p, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t split,
                          Py_ssize_t row, BackwardWorkspace* ws, real* dquery_sums) noexcept nogil:
    """The tile of rows from `row` on and the current block. Returns the number of its rows."""
    cdef const AttentionParams* params = &p.forward
    cdef QueryTile* tile = &ws.tile
    cdef Py_ssize_t left = rows_of_head(params, b) - row, rows, lane, key, count
    cdef int bias = 0
    rows = min(tile_registers(ceil_div(left, LANES)) * LANES, left)
    place_query_tile(params, b, key_head, row, rows, tile)
    key = max(ws.block.start, tile.any_begin)
    count = min(ws.block.stop, tile.any_end) - key
    if count <= 0:
        return rows
    if params.biases:
        for lane in range(rows):
            bias |= load_score_bias(params, b, tile.head[lane], tile.query[lane], key, count,
                                    ws.bias_sum + lane * KV_BLOCK)
        if not bias & BIAS_SHOWS:
            return rows
        # lanes without a row see nothing: their weights are multiplied by rows of 0, and a hidden key may hold NaN
        for lane in range(rows * KV_BLOCK, tile.columns * LANES * KV_BLOCK):
            ws.bias_sum[lane] = -INFINITY
    load_grad_tile(p, b, ws)
    ws.row_sums, ws.row_sums_step = dquery_sums + row_sums_at(params, b) + row, row_sums_size(params, b)
    if tile.columns == 3:
        grad_kv_block_3(p, b, split, bias, key, count, ws, dquery_sums + row * padded(params.head_dim))
    elif tile.columns == 2:
        grad_kv_block_2(p, b, split, bias, key, count, ws, dquery_sums + row * padded(params.head_dim))
    else:
        grad_kv_block_1(p, b, split, bias, key, count, ws, dquery_sums + row * padded(params.head_dim))
    return rows

cdef void store_row(const real* x, bint is_real, Py_ssize_t dim, elem* row) noexcept nogil:
    """x: padded reals."""
    cdef Py_ssize_t e = 0
    cdef elem[LANES] buffer
    while e + LANES <= dim:
        if sizeof(elem) < sizeof(real) and is_real:
            store(<real*>row + e, load(x + e))
        else:
            store_elem(row + e, load(x + e))
        e += LANES
    if e == dim:
        return
    if sizeof(elem) < sizeof(real) and is_real:
        memcpy(<real*>row + e, x + e, (dim - e) * sizeof(real))
    else:
        store_elem(buffer, load(x + e))
        memcpy(row + e, buffer, (dim - e) * sizeof(elem))

cdef void store_grad_block(const BackwardParams* p, Py_ssize_t b, Py_ssize_t key_head,
                           const BackwardWorkspace* ws) noexcept nogil:
    cdef Py_ssize_t j
    cdef Py_ssize_t dim = p.forward.head_dim, value_dim = p.forward.value_dim
    for j in range(ws.block.stop - ws.block.start):
        store_row(ws.dkey + j * padded(dim), p.dkey_is_real, dim,
                  row_address(&p.dkey, b, key_head, ws.block.start + j))
        store_row(ws.dvalue + j * padded(value_dim), p.dvalue_is_real, value_dim,
                  row_address(&p.dvalue, b, key_head, ws.block.start + j))

# Tasks: first delta, a sequence and head each; then a pair of sequence and key head with one split of its keys; then
# dquery, a pair each.

cdef struct BackwardPair:
    Py_ssize_t b, key_head, splits
    real* dquery_sums                           # (splits, dquery_sums_size)

cdef struct BackwardTask:
    Py_ssize_t pair, split

cdef struct BackwardTasks:                      # of the pairs of a slice
    const BackwardParams* p
    BackwardPair* pairs
    BackwardTask* tasks
    char* workspaces                            # BackwardWorkspace, one a thread
    Py_ssize_t workspace_bytes

cdef bint saw_sink_alone(const AttentionParams* params, real lse, Py_ssize_t head, const elem* out) noexcept nogil:
    """Whether lse and out of a row are those of its sink and no key."""
    cdef Py_ssize_t e
    if params.sinks == NULL or lse != sink_of(params, head):
        return False
    for e in range(params.value_dim):
        if real_at(params.out_is_real, out, e) != 0:
            return False
    return True

cdef Py_ssize_t delta_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    """delta, and the gradient of the sink, of one batch entry and head."""
    cdef const BackwardParams* p = (<const BackwardTasks*>context).p
    cdef const AttentionParams* params = &p.forward
    cdef Py_ssize_t b = task // params.heads, head = task % params.heads, i, at, e
    cdef const elem* grad
    cdef const elem* out
    cdef vreal sums
    cdef real delta
    cdef double dsink = 0
    for i in range(length_of(params, b)):
        at = statistics_at(params, b, head, i)
        p.delta[at] = 0
        if p.lse[at] == -INFINITY:              # saw nothing
            continue
        grad, out = row_address(&p.grad_out, b, head, i), row_address(&params.out, b, head, i)
        sums, delta, e = broadcast(0), 0, 0
        while e + LANES <= params.value_dim:
            sums = fma_(load_row(p.grad_is_real, grad, e), load_row(params.out_is_real, out, e), sums)
            e += LANES
        while e < params.value_dim:
            delta += real_at(p.grad_is_real, grad, e) * real_at(params.out_is_real, out, e)
            e += 1
        delta += lane0(hsum(sums))
        if delta - delta != 0 and saw_sink_alone(params, p.lse[at], head, out):
            delta = 0                           # whatever grad_out holds
        if p.grad_lse != NULL:
            delta -= p.grad_lse[at]
        p.delta[at] = delta
        if p.dsinks != NULL:
            dsink -= <double>(lane0(exp_(vmin(broadcast(1), broadcast(sink_of(params, head) - p.lse[at])))) * delta)
    if p.dsinks != NULL:
        p.dsinks[task] = dsink
    return length_of(params, b)

cdef Py_ssize_t grad_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const BackwardTasks* tasks = <const BackwardTasks*>context
    cdef const BackwardParams* p = tasks.p
    cdef const AttentionParams* params = &p.forward
    cdef BackwardWorkspace* ws = <BackwardWorkspace*>(tasks.workspaces + thread * tasks.workspace_bytes)
    cdef const BackwardPair* pair = &tasks.pairs[tasks.tasks[task].pair]
    cdef Py_ssize_t b = pair.b, key_head = pair.key_head, split = tasks.tasks[task].split
    cdef Py_ssize_t start = split * grad_split_keys(params, b), row, cost = 0
    cdef Py_ssize_t end = min(start + grad_split_keys(params, b), stored_keys(params, b))
    cdef real* dquery_sums = pair.dquery_sums + split * dquery_sums_size(params, b)
    memset(dquery_sums, 0, dquery_sums_size(params, b) * sizeof(real))
    while start < end:
        load_grad_block(p, b, key_head, start, min(start + KV_BLOCK, end), ws)
        row = 0
        while row < rows_of_head(params, b):
            row += grad_tile(p, b, key_head, split, row, ws, dquery_sums)
        store_grad_block(p, b, key_head, ws)
        cost += ws.block.stop - start
        start = ws.block.stop
    return cost + 1

cdef inline vreal share_of_rounding(const BackwardParams* p, const BackwardPair* pair, Py_ssize_t head,
                                    Py_ssize_t query, Py_ssize_t row) noexcept nogil:
    """Which share of a row's weights is the rounding of lse; in every lane."""
    cdef const AttentionParams* params = &p.forward
    cdef const real* at = pair.dquery_sums + row_sums_at(params, pair.b) + row
    cdef vreal sum_ = broadcast(0), rest = broadcast(0), sink_weight = broadcast(0), error
    cdef vreal lse = broadcast(lse_of_lane(p.lse[statistics_at(params, pair.b, head, query)]))
    cdef Py_ssize_t split
    for split in range(pair.splits):
        add_to(&sum_, &rest, broadcast(at[0]))
        rest = rest + broadcast(at[row_sums_size(params, pair.b)])
        at += dquery_sums_size(params, pair.b)
    if params.sinks != NULL:
        sink_weight = exp_(vmin(broadcast(1), broadcast(sink_of(params, head)) - lse))
    error = error_of_sum(sum_, rest, sink_weight)
    return select_or_zero(is_rounding_of(lse, error), error / (broadcast(1) + error))

cdef Py_ssize_t dquery_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    """The splits' sums of a pair in order, less what the rounding of lse added to them, times scale; and the gradient
    of scale, the sum of query * these sums."""
    cdef const BackwardTasks* tasks = <const BackwardTasks*>context
    cdef const BackwardParams* p = tasks.p
    cdef const AttentionParams* params = &p.forward
    cdef BackwardWorkspace* ws = <BackwardWorkspace*>(tasks.workspaces + thread * tasks.workspace_bytes)
    cdef const BackwardPair* pair = &tasks.pairs[task]
    cdef Py_ssize_t b = pair.b, dim = padded(params.head_dim), size = dquery_sums_size(params, b)
    cdef Py_ssize_t row, split, r, head, query, registers = dim // LANES
    cdef real* x
    cdef vreal sums, scale, grad, share
    for row in range(rows_of_head(params, b)):
        x = pair.dquery_sums + row * dim
        head, query = head_of_row(params, pair.key_head, row), query_of_row(params, row)
        share = share_of_rounding(p, pair, head, query, row)
        scale, sums = broadcast(<real>scale_of(params, head)), broadcast(0)
        if p.dscale != NULL:
            convert_padded(row_address(&params.query, b, head, query), params.query_is_real, params.head_dim, 1,
                           ws.query_rows)
        for r in range(registers):
            grad = load(x + r * LANES)
            for split in range(1, pair.splits):
                grad = grad + load(x + split * size + r * LANES)
            grad = fma_(-grad, share, grad)
            if p.dscale != NULL:                # a row that saw nothing has sums of 0, and may have a query of NaN
                sums = fma_(zero_where(eq(grad, broadcast(0)), load(ws.query_rows + r * LANES)), grad, sums)
            store(x + r * LANES, grad * scale)
        if p.dscale != NULL:
            p.dscale[b * params.heads + head] += lane0(hsum(sums))
        store_row(x, p.dquery_is_real, params.head_dim, row_address(&p.dquery, b, head, query))
    return 1

cdef struct BackwardSlice:                      # pairs that are computed at a time, and the room that they need
    Py_ssize_t pairs, tasks, sums               # sums: reals

cdef BackwardSlice backward_slice(const AttentionParams* params, const Sequence* order, Py_ssize_t first,
                                  int threads) noexcept nogil:
    """The slice from pair number `first` on: some tasks for each thread."""
    cdef BackwardSlice x
    cdef Py_ssize_t b
    x.pairs = x.tasks = x.sums = 0
    while first + x.pairs < params.batch * params.key_heads and (x.pairs == 0 or x.tasks < 4 * threads):
        b = sequence_at(order, (first + x.pairs) // params.key_heads)
        x.pairs += 1
        x.tasks += splits_of(params, b)
        x.sums += splits_of(params, b) * dquery_sums_size(params, b)
    return x

cdef void plan_backward(const AttentionParams* params, const Sequence* order, Py_ssize_t first,
                        const BackwardSlice* slice_, real* dquery_sums, BackwardTasks* tasks) noexcept nogil:
    """Writes the pairs and tasks of a slice."""
    cdef Py_ssize_t i, split, task = 0
    cdef BackwardPair* pair
    for i in range(slice_.pairs):
        pair = &tasks.pairs[i]
        pair.b, pair.key_head = sequence_at(order, (first + i) // params.key_heads), (first + i) % params.key_heads
        pair.splits, pair.dquery_sums = splits_of(params, pair.b), dquery_sums
        dquery_sums += pair.splits * dquery_sums_size(params, pair.b)
        for split in range(pair.splits):
            tasks.tasks[task].pair, tasks.tasks[task].split = i, split
            task += 1

cdef class BackwardWorkspaces:
    """The buffers of `threads` threads, and the tables and sums of a slice as large as `most`; freed with it."""
    cdef char* block
    cdef real* dquery_sums
    cdef BackwardPair* pairs
    cdef BackwardTask* tasks
    cdef Py_ssize_t thread_bytes

    cdef int reserve(self, int threads, Py_ssize_t head_dim, Py_ssize_t value_dim, const BackwardSlice* most) except -1:
        cdef Py_ssize_t dim = padded(head_dim) * sizeof(real), value_bytes = padded(value_dim) * sizeof(real)
        cdef Py_ssize_t sums_bytes = round_up_to_line(most.sums * sizeof(real))
        cdef Py_ssize_t pairs_bytes = round_up_to_line(most.pairs * sizeof(BackwardPair))
        cdef Py_ssize_t t
        cdef BackwardWorkspace* ws
        cdef char* at
        self.thread_bytes = (round_up_to_line(sizeof(BackwardWorkspace))
                             + round_up_to_line((2 * TILE_ROWS + 3 * KV_BLOCK) * dim)
                             + round_up_to_line((2 * TILE_ROWS + 2 * KV_BLOCK) * value_bytes))
        self.block = <char*>allocate(threads * self.thread_bytes + sums_bytes + pairs_bytes
                                     + most.tasks * <Py_ssize_t>sizeof(BackwardTask))
        self.dquery_sums = <real*>(self.block + threads * self.thread_bytes)
        self.pairs = <BackwardPair*>(<char*>self.dquery_sums + sums_bytes)
        self.tasks = <BackwardTask*>(<char*>self.pairs + pairs_bytes)
        for t in range(threads):
            ws = <BackwardWorkspace*>(self.block + t * self.thread_bytes)
            at = <char*>ws + round_up_to_line(sizeof(BackwardWorkspace))
            ws.tile.query_t, ws.query_rows = <real*>at, <real*>(at + TILE_ROWS * dim)
            at += 2 * TILE_ROWS * dim
            ws.key_reals, ws.finite_reals = <real*>at, <real*>(at + KV_BLOCK * dim)
            ws.dkey = <real*>(at + 2 * KV_BLOCK * dim)
            at += round_up_to_line(3 * KV_BLOCK * dim)
            ws.grad_t, ws.grad_out_rows = <real*>at, <real*>(at + TILE_ROWS * value_bytes)
            at += 2 * TILE_ROWS * value_bytes
            ws.value_reals, ws.dvalue = <real*>at, <real*>(at + KV_BLOCK * value_bytes)

    def __dealloc__(self):
        free(self.block)

cdef int backward(const BackwardParams* p, bint in_order, int threads) except -1:
    """in_order: the tasks add to the same elements of dbias, so one thread does them all."""
    cdef const AttentionParams* params = &p.forward
    cdef Py_ssize_t pairs = params.batch * params.key_heads, first = 0, work, step
    cdef BackwardSlice slice_, most
    cdef BackwardTasks tasks
    cdef BackwardWorkspaces workspaces = BackwardWorkspaces()
    cdef Sequences order = order_sequences(params)
    cdef ParallelRegion region
    most.pairs = most.tasks = most.sums = 0
    while first < pairs:
        slice_ = backward_slice(params, order.all, first, threads)
        most.pairs, most.tasks = max(most.pairs, slice_.pairs), max(most.tasks, slice_.tasks)
        most.sums = max(most.sums, slice_.sums)
        first += slice_.pairs if is_ragged(params) else pairs   # the first slice is the largest, if all are alike
    workspaces.reserve(threads, params.head_dim, params.value_dim, &most)
    tasks.p, tasks.pairs, tasks.tasks = p, workspaces.pairs, workspaces.tasks
    tasks.workspaces, tasks.workspace_bytes = workspaces.block, workspaces.thread_bytes
    run_tasks(delta_task, &tasks, params.batch * params.heads,
              max((<Py_ssize_t>LANES << 24) // (params.length * params.value_dim), 1), threads, IN_ORDER)
    work = params.length * params.queries_per_kv * multiplications_of_row(params, params.keys)
    step = max((<Py_ssize_t>LANES << 26) // (work // grad_splits(params.keys) + 10000), 1)
    first = 0
    while first < pairs:
        slice_ = backward_slice(params, order.all, first, threads)
        plan_backward(params, order.all, first, &slice_, workspaces.dquery_sums, &tasks)
        run_tasks(grad_task, &tasks, slice_.tasks, step, 1 if in_order else threads, IN_ORDER)
        with nogil:
            region = open_region(threads)
            parallel_for(dquery_task, &tasks, 0, slice_.pairs, IN_ORDER, &region)
            close_region(&region)
        first += slice_.pairs
    return 0
