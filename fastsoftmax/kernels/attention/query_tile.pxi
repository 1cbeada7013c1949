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
