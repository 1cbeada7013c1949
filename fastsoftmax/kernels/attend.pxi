# AttentionParams of many queries.
#
# The queries stand in the lanes. For a group of COLUMNS registers of queries, transposed once, the scores of
# a block of keys come out transposed, a line of queries for each key: elements of a key are broadcast straight from
# where they lie, so keys and values are neither packed nor copied; maximum and sum run down the lanes, with no step
# across a register; and the weights already lie as the second product wants them. Blocks that nobody sees are
# skipped, as in FlashAttention (Dao et al., 2022).

cdef enum:
    DOT_RUN = 32            # products of a score that are summed before they join the others
    VALUE_RUN = 64          # weighted values, likewise
    QUERY_TILES = 4         # tiles of queries that share a block of keys
    TILE_ROWS = COLUMNS * LANES

cdef struct QueryTile:                      # up to COLUMNS registers of queries, and what they have found so far
    int columns
    Py_ssize_t rows                         # lanes beyond these repeat the last row
    Py_ssize_t[TILE_ROWS] head, query
    Py_ssize_t[TILE_ROWS] begin, end        # the keys that causal, window and lengths leave to each row
    Py_ssize_t any_begin, any_end           # keys outside are hidden from all
    Py_ssize_t all_begin, all_end           # keys inside are hidden from none, but for terms
    vreal[COLUMNS] row_max                  # the largest score
    vreal[COLUMNS] row_sum                  # of the weights
    vreal[COLUMNS] excess, excess_rest      # of the total over 1
    vreal[COLUMNS] moment, moment_rest      # of weight * log(weight)
    vreal[COLUMNS] scale                    # of products with keys; products of 16-bit numbers are exact before it
    vreal[COLUMNS] slope
    bint steep                              # a slope may take a score beyond a real's range
    vreal[COLUMNS] rescale                  # what `out` is to be multiplied by, since top has risen
    real* query_t                           # (E, columns * LANES)
    real* out_t                             # (Ev, columns * LANES)

cdef struct PrefillWorkspace:               # one thread's buffers
    QueryTile[QUERY_TILES] tile
    real[KV_BLOCK * TILE_ROWS] scores       # of a block, transposed; then weights
    real[TILE_ROWS * KV_BLOCK] bias_sum     # terms, a line a query
    real* key                               # a block that had to be converted
    real* value
    elem* clean                             # a block of values whose NaN and infinities are left out
    bint value_known, value_finite          # what is known of the present block

# --- rows and what they may see

cdef void place_query_tile(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t first_row,
                           Py_ssize_t rows, QueryTile* tile) noexcept nogil:
    """Which rows a group has, and what they may see."""
    cdef Py_ssize_t row, lane
    tile.rows = rows
    tile.columns = <int>ceil_div(rows, LANES)
    tile.any_begin, tile.any_end, tile.all_begin, tile.all_end = params.keys, 0, 0, params.keys
    for lane in range(tile.columns * LANES):
        row = first_row + min(lane, rows - 1)
        tile.query[lane] = row // params.queries_per_kv
        tile.head[lane] = key_head * params.queries_per_kv + row % params.queries_per_kv
        visible_keys(params, b, tile.query[lane], &tile.begin[lane], &tile.end[lane])
        if tile.end[lane] > tile.begin[lane]:
            tile.any_begin = min(tile.any_begin, tile.begin[lane])
        tile.any_end = max(tile.any_end, tile.end[lane])
        tile.all_begin = max(tile.all_begin, tile.begin[lane])
        tile.all_end = min(tile.all_end, tile.end[lane])

cdef void pack_queries(const AttentionParams* params, const RowPointer* row, real* to, Py_ssize_t step) noexcept nogil:
    """LANES rows of query become a register for each element, `step` apart."""
    cdef vreal[LANES] square
    cdef Py_ssize_t e = 0
    cdef int k
    while e < params.head_dim:
        for k in range(LANES):
            square[k] = load_query(params, row[k], e)
        transpose(square)
        for k in range(LANES):
            store(to + (e + k) * step, square[k])
        e = next_register(e, params.head_dim)

cdef void unpack_output(const AttentionParams* params, const real* x, Py_ssize_t step, vreal inverse, Py_ssize_t rows,
                        const RowPointer* row) noexcept nogil:
    """The way back, for the first `rows` of the rows."""
    cdef vreal[LANES] square
    cdef Py_ssize_t e = 0, r
    cdef int k
    while e < params.value_dim:
        for k in range(LANES):
            square[k] = load(x + (e + k) * step) * inverse
        transpose(square)
        if rows >= LANES:
            for k in range(LANES):
                store_out(params, square[k], row[k], e)
        else:
            for r in range(rows):
                store_out(params, square[r], row[r], e)
        e = next_register(e, params.value_dim)

cdef void load_query_tile(const AttentionParams* params, Py_ssize_t b, QueryTile* tile) noexcept nogil:
    """query_t[e][lane] = query of the lane; and the heads' scales."""
    cdef RowPointer[TILE_ROWS] row
    cdef real[TILE_ROWS] scale
    cdef Py_ssize_t lane, e
    cdef int c, columns = tile.columns
    for lane in range(columns * LANES):
        row[lane] = <RowPointer>row_address(params.query, params.query_stride, b, tile.head[lane], tile.query[lane])
        scale[lane] = <real>params.scale[tile.head[lane]]
    for c in range(columns):
        tile.scale[c] = load(scale + c * LANES)
    if params.head_dim < LANES:
        for e in range(params.head_dim):
            for lane in range(columns * LANES):
                tile.query_t[e * columns * LANES + lane] = query_at(params, row[lane], e)
        return
    for c in range(columns):
        pack_queries(params, row + c * LANES, tile.query_t + c * LANES, columns * LANES)

cdef void init_query_tile(const AttentionParams* params, Py_ssize_t b, QueryTile* tile) noexcept nogil:
    """Nothing seen yet but the sink."""
    cdef real[TILE_ROWS] sink, slope
    cdef Py_ssize_t lane
    cdef int c
    tile.steep = False
    for lane in range(tile.columns * LANES):
        sink[lane] = -INFINITY if params.sinks == NULL else <real>params.sinks[tile.head[lane]]
        slope[lane] = 0 if params.slopes == NULL else <real>params.slopes[b * params.heads + tile.head[lane]]
        tile.steep |= is_steep(slope[lane])
    for c in range(tile.columns):
        tile.row_max[c] = load(sink + c * LANES)
        tile.row_sum[c] = vselect(eq(tile.row_max[c], broadcast(-INFINITY)), broadcast(0), broadcast(1))
        tile.excess[c] = tile.excess_rest[c] = tile.moment[c] = tile.moment_rest[c] = broadcast(0)
        tile.slope[c] = load(slope + c * LANES)
    memset(tile.out_t, 0, params.value_dim * tile.columns * LANES * sizeof(real))

# --- the two products

cdef inline void gemm_tile(int rows, int columns, const real* left, Py_ssize_t left_row, Py_ssize_t left_step,
                           Py_ssize_t count, const real* right, vreal* product) noexcept nogil:
    """product[row][column] = sum over t < count of left[row * left_row + t * left_step] * right[t][column]."""
    cdef vreal[COLUMNS] b
    cdef vreal a_
    cdef Py_ssize_t t
    cdef int r, c
    for r in range(rows * columns):
        product[r] = broadcast(0)
    for t in range(count):
        for c in range(columns):
            b[c] = load(right + c * LANES)
        for r in range(rows):
            a_ = broadcast(left[r * left_row])
            for c in range(columns):
                product[r * columns + c] = fma_(a_, b[c], product[r * columns + c])
        left += left_step
        right += columns * LANES

cdef inline void score_tile(int rows, int columns, const real* key, Py_ssize_t stride, Py_ssize_t dim,
                            const real* query_t, const vreal* scale, real* scores) noexcept nogil:
    """In pieces, since the error of a sum grows with its length; then times scale."""
    cdef vreal[MAX_TILE] product
    cdef Py_ssize_t e = 0
    cdef real* score
    cdef int r, c
    while e + DOT_RUN < dim:
        gemm_tile(rows, columns, key + e, stride, 1, DOT_RUN, query_t + e * columns * LANES, product)
        for r in range(rows * columns):
            score = scores + r * LANES
            store(score, load(score) + product[r] if e > 0 else product[r])
        e += DOT_RUN
    gemm_tile(rows, columns, key + e, stride, 1, dim - e, query_t + e * columns * LANES, product)
    for r in range(rows):
        for c in range(columns):
            score = scores + (r * columns + c) * LANES
            if e > 0:
                product[r * columns + c] = load(score) + product[r * columns + c]
            store(score, product[r * columns + c] * scale[c])

cdef inline void score_block(int rows, int columns, const real* key, Py_ssize_t stride, Py_ssize_t count,
                             Py_ssize_t dim, const real* query_t, const vreal* scale, real* scores) noexcept nogil:
    """scores[j][lane] = scale * key j times the lane's query; the last tile overlaps the one before."""
    cdef Py_ssize_t j = 0
    if count < rows:
        for j in range(count):
            score_tile(1, columns, key + j * stride, stride, dim, query_t, scale, scores + j * columns * LANES)
        return
    while j < count:
        j = min(j, count - rows)
        score_tile(rows, columns, key + j * stride, stride, dim, query_t, scale, scores + j * columns * LANES)
        j += rows

cdef inline void weighted_value_tile(int rows, int columns, int first, const real* value, Py_ssize_t stride,
                                     Py_ssize_t skipped, Py_ssize_t count, const real* weights, const vreal* rescale,
                                     real* out_t) noexcept nogil:
    """In pieces that end at multiples of VALUE_RUN in the block, wherever the group's first key is."""
    cdef vreal[MAX_TILE] product
    cdef Py_ssize_t j = min(count, VALUE_RUN - skipped % VALUE_RUN)
    cdef real* to
    cdef int r, c
    gemm_tile(rows, columns, value, 1, stride, j, weights, product)
    for r in range(rows):
        if r >= first:
            for c in range(columns):
                to = out_t + (r * columns + c) * LANES
                store(to, fma_(load(to), rescale[c], product[r * columns + c]))
    while j < count:
        gemm_tile(rows, columns, value + j * stride, 1, stride, min(count - j, <Py_ssize_t>VALUE_RUN), weights
                  + j * columns * LANES, product)
        for r in range(rows):
            if r >= first:
                for c in range(columns):
                    to = out_t + (r * columns + c) * LANES
                    store(to, load(to) + product[r * columns + c])
        j += VALUE_RUN

cdef inline void add_weighted_values(int rows, int columns, const real* value, Py_ssize_t stride, Py_ssize_t skipped,
                                     Py_ssize_t count, Py_ssize_t dim, const real* weights, const vreal* rescale,
                                     real* out_t) noexcept nogil:
    """out_t[e][lane] = out_t[e][lane] * factor + sum over j of value[j][e] * weights[j][lane]."""
    cdef Py_ssize_t e = 0, done
    if dim < rows:
        for e in range(dim):
            weighted_value_tile(1, columns, 0, value + e, stride, skipped, count, weights, rescale, out_t
                                + e * columns * LANES)
        return
    while e < dim:
        done = max(e + rows - dim, 0)
        e -= done
        weighted_value_tile(rows, columns, <int>done, value + e, stride, skipped, count, weights, rescale, out_t
                            + e * columns * LANES)
        e += rows

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

cdef inline void online_softmax_tile(int columns, Py_ssize_t skipped, Py_ssize_t count, bint statistics, bint moments,
                                     real* scores, QueryTile* tile) noexcept nogil:
    """Scores become weights, and what was found before is brought to the new top."""
    cdef vreal[COLUMNS] row_max, shift
    cdef BlockSums[COLUMNS] sums
    cdef vreal log_rescale, rescale
    cdef vmask unchanged
    cdef Py_ssize_t j, run
    cdef int c
    for c in range(columns):
        row_max[c] = tile.row_max[c]
        sums[c].row_sum = sums[c].ones = broadcast(0)
        sums[c].moment = sums[c].moment_rest = sums[c].others = sums[c].others_rest = broadcast(0)
    for j in range(count):
        for c in range(columns):
            row_max[c] = vmax(row_max[c], load(scores + (j * columns + c) * LANES))
    for c in range(columns):
        # -inf minus -inf would be NaN
        shift[c] = vselect(lt(broadcast(-INFINITY), row_max[c]), row_max[c], broadcast(0))
    j = 0
    while j < count:                            # in runs that end at multiples of WEIGHT_RUN in the block
        run = min(count - j, WEIGHT_RUN - (skipped + j) % WEIGHT_RUN)
        exp_and_sum_run(columns, run, statistics, moments, shift, scores + j * columns * LANES, sums)
        j += run
    for c in range(columns):
        log_rescale = vmax(broadcast(LEAST_EXPONENT), tile.row_max[c] - shift[c])
        rescale = exp_(log_rescale)
        if statistics:
            unchanged = eq(tile.row_max[c], row_max[c])
            tile.excess[c] = vselect(unchanged, tile.excess[c], tile.row_sum[c] * rescale)
            tile.excess_rest[c] = select_or_zero(unchanged, tile.excess_rest[c]) + sums[c].others_rest
            add_to(&tile.excess[c], &tile.excess_rest[c], sums[c].others)
            add_to(&tile.excess[c], &tile.excess_rest[c], sums[c].ones - zero_where(unchanged, broadcast(1)))
        if moments:
            tile.moment[c] = rescale * fma_(tile.row_sum[c], log_rescale, tile.moment[c])
            tile.moment_rest[c] = fma_(rescale, tile.moment_rest[c], sums[c].moment_rest)
            add_to(&tile.moment[c], &tile.moment_rest[c], sums[c].moment)
        tile.row_sum[c] = fma_(tile.row_sum[c], rescale, sums[c].row_sum)
        tile.rescale[c] = rescale
        tile.row_max[c] = row_max[c]

cdef void add_nonfinite_values(const AttentionParams* params, const QueryTile* tile, PrefillWorkspace* workspace,
                               const elem* value, Py_ssize_t key, Py_ssize_t count) noexcept nogil:
    """Adds what was left out, times its weight, to the rows that see it."""
    cdef Py_ssize_t j, e, lane, lanes = tile.columns * LANES
    cdef real x
    for j in range(count):
        for e in range(params.value_dim):
            x = real_of(value + j * params.value_stride[2] + e)
            if x - x == 0:
                continue
            for lane in range(lanes):
                if (tile.begin[lane] <= key + j < tile.end[lane]
                    and (params.biases == 0 or workspace.bias_sum[lane * KV_BLOCK + j] != -INFINITY)):
                    tile.out_t[e * lanes + lane] += workspace.scores[j * lanes + lane] * x

# --- a group of queries and a block of keys

cdef void convert(const elem* x, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t dim, real* to) noexcept nogil:
    """(count, width) elements as contiguous reals."""
    cdef Py_ssize_t j, e
    for j in range(count):
        e = 0
        while e + LANES <= dim:
            store(to + j * dim + e, load_elem(x + j * stride + e))
            e += LANES
        while e < dim:
            to[j * dim + e] = real_of(x + j * stride + e)
            e += 1

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

cdef void scatter_row(const AttentionParams* params, const real* row, Py_ssize_t step, elem* out) noexcept nogil:
    cdef Py_ssize_t e
    for e in range(params.value_dim):
        if sizeof(elem) < sizeof(real) and params.out_is_real:
            (<real*>out)[e] = row[e * step]
        else:
            out[e] = elem_of(row[e * step])

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

cdef void prefill_task(const AttentionParams* params, Py_ssize_t task, PrefillWorkspace* workspace,
                       ParallelRegion* region) noexcept nogil:
    """One task: rows_a_task rows of the queries that share a key head; the last rows, which may see most, first."""
    cdef fp_state modes = fp_enter()
    cdef Py_ssize_t rows = params.length * params.queries_per_kv, size = rows_a_task(rows), blocks = ceil_div(rows,
                                                                                                              size)
    cdef Py_ssize_t block = blocks - 1 - task % blocks, key_head = task // blocks % params.key_heads
    cdef Py_ssize_t b = task // blocks // params.key_heads
    cdef Py_ssize_t row = block * size, last = min(row + size, rows), count
    cdef Py_ssize_t begin = params.keys, end = 0, start, stop
    cdef Py_ssize_t key_stride = params.key_stride[2], value_stride = params.value_stride[2]
    cdef Py_ssize_t weight = 0
    cdef const elem* key
    cdef const elem* value
    cdef const real* key_block
    cdef const real* value_block
    cdef QueryTile* tile
    cdef int tiles = 0, k
    start_task(region)
    while row < last:
        tile = &workspace.tile[tiles]
        count = min(tile_registers(ceil_div(last - row, LANES)) * LANES, last - row)
        place_query_tile(params, b, key_head, row, count, tile)
        load_query_tile(params, b, tile)
        init_query_tile(params, b, tile)
        begin, end = min(begin, tile.any_begin), max(end, tile.any_end)
        weight += tile.columns * (max(tile.any_end - tile.any_begin, 0) + LANES)
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
    fp_leave(modes)
    end_task(region, weight)

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
    cdef Py_ssize_t t, turn, start, stop, slice_, rows = params.length * params.queries_per_kv, size = rows_a_task(rows)
    cdef Py_ssize_t tasks = params.batch * params.key_heads * ceil_div(rows, size)
    cdef ParallelRegion region
    cdef PrefillWorkspaces workspaces
    threads = <int>min(threads, tasks)
    workspaces = PrefillWorkspaces(threads, params.head_dim, params.value_dim)
    # between two looks for an interrupt, a fraction of a second by any kernel; the smallest task takes microseconds
    slice_ = max(<Py_ssize_t>500000000 // (size * multiplications_of_row(params) + 10000), <Py_ssize_t>(2 * threads))
    for turn in range(ceil_div(tasks, slice_)):
        start = turn * slice_
        stop = min(start + slice_, tasks)
        with nogil:
            region = open_region(threads)
            while start < stop and is_serial(&region):
                prefill_task(params, start, workspaces.of_thread(0), &region)
                start += 1
            if start < stop:
                begin_parallel(&region)
                for t in prange(start, stop, num_threads=threads, schedule="dynamic"):
                    prefill_task(params, t, workspaces.of_thread(threadid()), &region)
                end_parallel(&region)
            close_region(&region)
        PyErr_CheckSignals()
    return 0
