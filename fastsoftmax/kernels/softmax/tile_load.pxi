# Pass 1 of a tile: its elements, as reals, and the maxima of its rows.
#
# A column is the rows of one register, `stride` elements apart, each of contiguous elements. It is transposed in blocks
# of TRANSPOSE_ROWS elements: squares, or where registers are long, two squares side by side, which take fewer steps and
# waste less of narrow rows. The last block overlaps the one before.

cdef inline Py_ssize_t next_square(Py_ssize_t start, Py_ssize_t count) noexcept nogil:
    """The start of the squares after those at `start`; count after the last."""
    return count if start + TRANSPOSE_ROWS >= count else min(start + TRANSPOSE_ROWS, count - TRANSPOSE_ROWS)

cdef inline void load_column(const elem* x, Py_ssize_t stride, Py_ssize_t count, real* tile,
                             vreal* row_max) noexcept nogil:
    """x (LANES, count). If a row is narrower than a square, the rows below are read too."""
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

cdef inline void load_line(const elem* x, real* tile, vreal* row_max) noexcept nogil:
    """Element k of all rows: x (PARTIALS), contiguous."""
    cdef vreal one
    cdef int c
    for c in range(PARTIAL_REGS):
        one = load_elem(x + c * LANES)
        store(tile + c * LANES, one)
        row_max[c] = vmax(one, row_max[c])

cdef inline void load_part_of_line(const elem* x, Py_ssize_t count, Py_ssize_t before, real* tile,
                                   vreal* row_max) noexcept nogil:
    """load_line for fewer rows: x (count), which `before` elements precede; the lanes beyond hold 0."""
    cdef vreal one
    cdef int c
    for c in range(PARTIAL_REGS):
        one = zero_from(load_upto(x, c * LANES, count, before), count - c * LANES)
        store(tile + c * LANES, one)
        row_max[c] = vmax(one, row_max[c])

# Copies of a tile's elements, for any strides, masks, and fewer rows than PARTIALS. The lanes beyond hold 0: a row of
# nothing but -inf would be a special one.

cdef void gather_lines(const Rows* rows, const TilePosition* position, Py_ssize_t j, Py_ssize_t count, real* tile,
                       vreal* row_max) noexcept nogil:
    """load_tile by a copy of each line."""
    cdef const elem* x = position.first.x + j * rows.x_n
    cdef const unsigned char* where = position.first.where
    cdef bint whole = position.tile_rows == PARTIALS and where == NULL
    cdef elem[PARTIALS] line
    cdef Py_ssize_t k, c
    memset(line, 0, sizeof(line))
    for k in range(count):
        if whole:
            for c in range(PARTIALS):
                line[c] = x[k * rows.x_n + c * rows.x_inner]
        else:
            gather_elements(x + k * rows.x_n, rows.x_inner, NULL if where == NULL else where + (j + k) * rows.where_n,
                            rows.where_inner, position.tile_rows, line)
        load_line(line, tile + k * PARTIALS, row_max)

cdef void gather_rows(const Rows* rows, const TilePosition* position, Py_ssize_t j, Py_ssize_t count, real* tile,
                      vreal* row_max) noexcept nogil:
    """load_tile by a copy of each row, for x_n = 1; count <= BLOCK."""
    cdef const elem* x = position.first.x + j * rows.x_n
    cdef const unsigned char* where = position.first.where
    cdef elem[PARTIALS * BLOCK + LANES] copies  # a square of narrow rows reaches beyond the last
    cdef Py_ssize_t copied = position.tile_rows * count, c
    if where != NULL:
        where += j * rows.where_n
    if rows.x_inner == count and rows.where_inner == count and rows.where_n == 1:
        gather_elements(x, rows.x_n, where, 1, copied, copies)      # without gaps
    else:
        for c in range(position.tile_rows):
            gather_elements(x + c * rows.x_inner, rows.x_n, NULL if where == NULL else where + c * rows.where_inner,
                            rows.where_n, count, copies + c * count)
    memset(copies + copied, 0, (PARTIALS * count + LANES - copied) * sizeof(elem))
    for c in range(PARTIAL_REGS):
        load_column(copies + c * LANES * count, count, count, tile + c * LANES, &row_max[c])

cdef void load_tile_ahead(const Rows* rows, const TilePosition* position, Py_ssize_t j, Py_ssize_t count, real* tile,
                          Py_ssize_t ahead, vreal* row_max) noexcept nogil:
    """Elements j .. j + count - 1 of each row, and zeros for the rows that a tile lacks. Raises row_max[PARTIAL_REGS]
    to the largest; NaN is ignored.

    ahead: where rows lie side by side, which elements are prefetched, counted from those that are read."""
    cdef const elem* x = position.first.x + j * rows.x_n
    cdef Py_ssize_t x_n = rows.x_n, x_inner = rows.x_inner, tile_rows = position.tile_rows
    cdef bint whole = tile_rows == PARTIALS, adjacent = tile_rows == x_n
    cdef vreal[PARTIAL_REGS] most
    cdef Py_ssize_t k, c
    if rows.where != NULL or (x_inner != 1 and not (whole and x_n == 1 and (count >= TRANSPOSE_ROWS
                                                                            or rows_below(rows, position)))):
        if x_n == 1 and x_inner != 1:
            k = 0
            while k < count:
                gather_rows(rows, position, j + k, min(count - k, <Py_ssize_t>BLOCK), tile + k * PARTIALS, row_max)
                k += BLOCK
        else:
            gather_lines(rows, position, j, count, tile, row_max)
        return
    for c in range(PARTIAL_REGS):
        most[c] = row_max[c]
    if x_inner == 1 and not whole:
        for k in range(count):                  # adjacent lines of this block, and no others, may be read with it
            prefetch(x + k * x_n + ahead)
            load_part_of_line(x + k * x_n, tile_rows, k * x_n if adjacent else 0, tile + k * PARTIALS, most)
    elif x_inner == 1:
        for k in range(count):
            prefetch(x + k * x_n + ahead)       # the hardware does not: each line is on its own page
            load_line(x + k * x_n, tile + k * PARTIALS, most)
    else:
        for c in range(PARTIAL_REGS):
            load_column(x + c * LANES * x_inner, x_inner, count, tile + c * LANES, &most[c])
    for c in range(PARTIAL_REGS):
        row_max[c] = most[c]

cdef inline void load_tile(const Rows* rows, const TilePosition* position, Py_ssize_t j, Py_ssize_t count, real* tile,
                           vreal* row_max) noexcept nogil:
    load_tile_ahead(rows, position, j, count, tile, 2 * PARTIALS, row_max)

cdef void load_visible_tile(const Rows* rows, const TilePosition* position, Py_ssize_t j, Py_ssize_t count, real* tile,
                            vreal* row_max) noexcept nogil:
    """load_tile for causal rows, each of which sees one element more than the row before: hidden elements are -inf."""
    cdef Py_ssize_t visible = position.first.n - j, k
    cdef vreal[PARTIAL_REGS] length, unused
    cdef real[PARTIALS] lengths
    cdef vreal line
    cdef int c
    if count <= visible:
        load_tile(rows, position, j, count, tile, row_max)
        return
    for c in range(PARTIALS):
        lengths[c] = <real>(row_length(rows, position.first.i + c) - j)
    for c in range(PARTIAL_REGS):
        length[c] = load(lengths + c * LANES)
        unused[c] = broadcast(-INFINITY)
    load_tile(rows, position, j, count, tile, unused)
    for k in range(count):
        for c in range(PARTIAL_REGS):
            line = load(tile + k * PARTIALS + c * LANES)
            if k >= visible:
                line = vselect(lt(broadcast(<real>k), length[c]), line, broadcast(-INFINITY))
                store(tile + k * PARTIALS + c * LANES, line)
            row_max[c] = vmax(line, row_max[c])
