# A tile of queries of prefill: up to COLUMNS registers of rows that share a key head, each row in a lane.

cdef enum:
    QUERY_TILES = 4         # tiles of a task, which share each block of keys
    TILE_ROWS = COLUMNS * LANES

cdef struct QueryTile:
    int columns
    Py_ssize_t rows                         # lanes beyond these repeat the last row
    Py_ssize_t[TILE_ROWS] head, query
    Py_ssize_t[TILE_ROWS] begin, end        # the keys that causal_offset, window and key_lengths leave to each row
    Py_ssize_t any_begin, any_end           # keys outside are hidden from all
    Py_ssize_t all_begin, all_end           # keys inside are hidden from none, but for biases
    LaneMask[COLUMNS] mask
    OnlineState[COLUMNS] state
    vreal[COLUMNS] rescale                  # by which the output is to be multiplied, since row_max has risen
    vreal[COLUMNS] scale                    # applied after the dot product: products of 16-bit numbers are exact
    bint scale_positive                     # of all rows
    vreal[COLUMNS] huge                     # 1 for rows whose scores cannot be had from pairs, else 0
    bint any_huge
    real* query_t                           # (E, columns * LANES), or pairs
    real* out_t                             # (Ev, columns * LANES)

cdef void place_query_tile(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t first_row,
                           Py_ssize_t rows, QueryTile* tile) noexcept nogil:
    """The rows of a tile, and the keys that they see."""
    cdef Py_ssize_t lane, query = query_of_row(params, first_row), head = head_of_row(params, key_head, first_row)
    cdef Py_ssize_t last_head = key_head * params.queries_per_kv + params.queries_per_kv - 1
    tile.rows = rows
    tile.columns = <int>ceil_div(rows, LANES)
    tile.any_begin, tile.any_end, tile.all_begin, tile.all_end = keys_of(params, b), 0, 0, keys_of(params, b)
    for lane in range(tile.columns * LANES):
        tile.query[lane], tile.head[lane] = query, head
        visible_keys(params, b, query, &tile.begin[lane], &tile.end[lane])
        if tile.end[lane] > tile.begin[lane]:
            tile.any_begin = min(tile.any_begin, tile.begin[lane])
        tile.any_end = max(tile.any_end, tile.end[lane])
        tile.all_begin = max(tile.all_begin, tile.begin[lane])
        tile.all_end = min(tile.all_end, tile.end[lane])
        if lane + 1 < rows:                 # the next row, without a division
            if head < last_head:
                head += 1
            else:
                head -= params.queries_per_kv - 1
                query += 1

cdef void init_query_tile(const AttentionParams* params, Py_ssize_t b, QueryTile* tile) noexcept nogil:
    """The state before any key, and the constants of each row."""
    cdef real[TILE_ROWS] sink, slope, scale
    cdef Py_ssize_t lane
    cdef bint steep = False, positive = True
    cdef int c
    for lane in range(tile.columns * LANES):
        sink[lane] = sink_of(params, tile.head[lane])
        slope[lane] = slope_of(params, b, tile.head[lane])
        scale[lane] = <real>scale_of(params, tile.head[lane])
        steep |= is_steep(slope[lane])
        positive &= scale[lane] > 0
    tile.scale_positive = positive
    for c in range(tile.columns):
        tile.state[c] = state_of_sink(load(sink + c * LANES))
        tile.scale[c] = load(scale + c * LANES)
        tile.mask[c].slope, tile.mask[c].steep = load(slope + c * LANES), steep
    memset(tile.out_t, 0, value_rows(params.value_dim) * tile.columns * LANES * sizeof(real))

cdef void mask_query_tile(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key, Py_ssize_t count,
                          QueryTile* tile) noexcept nogil:
    """Prepares tile.mask for the keys key .. key + count - 1."""
    cdef real[TILE_ROWS] position, before, end
    cdef Py_ssize_t lane
    cdef int c
    for lane in range(tile.columns * LANES):
        position[lane] = <real>(tile.query[lane] + params.offset[b] - key)
        limits_in_block(tile.begin[lane], tile.end[lane], key, count, &before[lane], &end[lane])
    for c in range(tile.columns):
        tile.mask[c].position = load(position + c * LANES)
        tile.mask[c].before, tile.mask[c].end = load(before + c * LANES), load(end + c * LANES)
