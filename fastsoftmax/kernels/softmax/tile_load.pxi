# A column is the rows of one register, `stride` elements apart, each of contiguous elements. It goes in and out by
# blocks of TRANSPOSE_ROWS elements: squares, or where registers are long, two squares side by side, which take fewer
# steps to transpose and waste less of narrow rows. The last block overlaps the one before.

cdef inline Py_ssize_t next_square(Py_ssize_t start, Py_ssize_t count) noexcept nogil:
    """Where the squares after those at `start` start; count after the last."""
    return count if start + TRANSPOSE_ROWS >= count else min(start + TRANSPOSE_ROWS, count - TRANSPOSE_ROWS)

cdef inline void load_column(const elem* x, Py_ssize_t stride, Py_ssize_t count, real* tile,
                             vreal* row_max) noexcept nogil:
    """Where rows are narrower than a square, it reads into the rows below."""
    cdef vreal[TRANSPOSE_ROWS] square
    cdef vreal most = row_max[0]
    cdef Py_ssize_t start = 0, r
    if count >= TRANSPOSE_ROWS:
        while start < count:
            load_squares(x + start, stride, square)
            for r in range(TRANSPOSE_ROWS):
                store(tile + (start + r) * PARTIALS, square[r])
                most = vmax(square[r], most)
            start = next_square(start, count)
    else:
        load_squares(x, stride, square)
        for r in range(TRANSPOSE_ROWS):
            store(tile + r * PARTIALS, square[r])
        for r in range(count):
            most = vmax(load(tile + r * PARTIALS), most)
    row_max[0] = most

cdef void load_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows, Py_ssize_t j, Py_ssize_t count,
                    real* tile, vreal* row_max) noexcept nogil:
    """Raises top[PARTIAL_REGS] to the largest elements on the way; NaN is passed over."""
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner + j * rows.x_n
    cdef Py_ssize_t x_n = rows.x_n, x_inner = rows.x_inner
    cdef const unsigned char* where = rows.where
    cdef vreal[PARTIAL_REGS] most
    cdef vreal one
    cdef elem[PARTIALS] line
    cdef Py_ssize_t k, c
    for c in range(PARTIAL_REGS):
        most[c] = row_max[c]
    if where == NULL and tile_rows == PARTIALS and x_inner == 1:
        for k in range(count):
            prefetch(x + k * x_n + 2 * PARTIALS)    # each line is on a page of its own: no hardware does this
            for c in range(PARTIAL_REGS):
                one = load_elem(x + k * x_n + c * LANES)
                store(tile + k * PARTIALS + c * LANES, one)
                most[c] = vmax(one, most[c])
    elif where == NULL and tile_rows == PARTIALS and x_n == 1 and (count >= TRANSPOSE_ROWS or rows_below(rows, i)):
        for c in range(PARTIAL_REGS):
            load_column(x + c * LANES * x_inner, x_inner, count, tile + c * LANES, &most[c])
    else:
        if where != NULL:
            where += o * rows.where_outer + i * rows.where_inner + j * rows.where_n
        for c in range(tile_rows, PARTIALS):
            line[c] = ELEM_MINUS_INFINITY
        for k in range(count):
            for c in range(tile_rows):
                if where == NULL or where[k * rows.where_n + c * rows.where_inner]:
                    line[c] = x[k * x_n + c * x_inner]
                else:
                    line[c] = ELEM_MINUS_INFINITY
            for c in range(PARTIAL_REGS):
                one = load_elem(line + c * LANES)
                store(tile + k * PARTIALS + c * LANES, one)
                most[c] = vmax(one, most[c])
    for c in range(PARTIAL_REGS):
        row_max[c] = most[c]

cdef void load_visible_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows, Py_ssize_t j,
                            Py_ssize_t count, real* tile, vreal* row_max) noexcept nogil:
    """load_tile for rows that see each one element more than the one before: what they do not see weighs nothing."""
    cdef Py_ssize_t visible = row_length(rows, i) - j, k
    cdef vreal[PARTIAL_REGS] length, unused
    cdef real[PARTIALS] lengths
    cdef vreal line
    cdef int c
    if count <= visible:
        load_tile(rows, o, i, tile_rows, j, count, tile, row_max)
        return
    for c in range(PARTIALS):
        lengths[c] = <real>(row_length(rows, i + c) - j)
    for c in range(PARTIAL_REGS):
        length[c] = load(lengths + c * LANES)
        unused[c] = broadcast(-INFINITY)
    load_tile(rows, o, i, tile_rows, j, count, tile, unused)
    for k in range(count):
        for c in range(PARTIAL_REGS):
            line = load(tile + k * PARTIALS + c * LANES)
            if k >= visible:
                line = vselect(lt(broadcast(<real>k), length[c]), line, broadcast(-INFINITY))
                store(tile + k * PARTIALS + c * LANES, line)
            row_max[c] = vmax(line, row_max[c])
