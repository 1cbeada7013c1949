# Queries into the lanes, and results back out of them.

cdef void pack_rows(bint is_real, Py_ssize_t dim, const ConstRowPointer* row, real* to, Py_ssize_t step) noexcept nogil:
    """LANES rows become a register for each element, `step` apart. dim >= LANES."""
    cdef vreal[LANES] square
    cdef Py_ssize_t e = 0
    cdef int k
    while e < dim:
        for k in range(LANES):
            square[k] = load_row(is_real, row[k], e)
        transpose(square)
        for k in range(LANES):
            store(to + (e + k) * step, square[k])
        e = next_register(e, dim)

cdef void pack_tile(bint is_real, Py_ssize_t dim, int columns, const ConstRowPointer* row, real* to) noexcept nogil:
    """to[e][lane] = element e of the lane's row."""
    cdef Py_ssize_t lane, e
    cdef int c
    if dim < LANES:
        for e in range(dim):
            for lane in range(columns * LANES):
                to[e * columns * LANES + lane] = real_at(is_real, row[lane], e)
        return
    for c in range(columns):
        pack_rows(is_real, dim, row + c * LANES, to + c * LANES, columns * LANES)

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
    """tile.query_t."""
    cdef ConstRowPointer[TILE_ROWS] row
    cdef Py_ssize_t lane
    for lane in range(tile.columns * LANES):
        row[lane] = row_address(&params.query, b, tile.head[lane], tile.query[lane])
    pack_tile(params.query_is_real, params.head_dim, tile.columns, row, tile.query_t)

cdef void scatter_row(const AttentionParams* params, const real* row, Py_ssize_t step, elem* out) noexcept nogil:
    cdef Py_ssize_t e
    for e in range(params.value_dim):
        if sizeof(elem) < sizeof(real) and params.out_is_real:
            (<real*>out)[e] = row[e * step]
        else:
            out[e] = elem_of(row[e * step])
