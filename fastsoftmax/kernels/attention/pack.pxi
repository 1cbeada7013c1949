# Queries into the lanes, and results back out of them.

cdef void pack_queries(const AttentionParams* params, const ConstRowPointer* row, real* to,
                       Py_ssize_t step) noexcept nogil:
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
    """The way back, times `inverse`, for the first `rows` of the LANES rows."""
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
    """query_t[e][lane] = element e of the lane's query."""
    cdef ConstRowPointer[TILE_ROWS] row
    cdef Py_ssize_t lane, e
    cdef int c, columns = tile.columns
    for lane in range(columns * LANES):
        row[lane] = row_address(&params.query, b, tile.head[lane], tile.query[lane])
    if params.head_dim < LANES:
        for e in range(params.head_dim):
            for lane in range(columns * LANES):
                tile.query_t[e * columns * LANES + lane] = query_at(params, row[lane], e)
        return
    for c in range(columns):
        pack_queries(params, row + c * LANES, tile.query_t + c * LANES, columns * LANES)

cdef void scatter_row(const AttentionParams* params, const real* row, Py_ssize_t step, elem* out) noexcept nogil:
    cdef Py_ssize_t e
    for e in range(params.value_dim):
        if sizeof(elem) < sizeof(real) and params.out_is_real:
            (<real*>out)[e] = row[e * step]
        else:
            out[e] = elem_of(row[e * step])
