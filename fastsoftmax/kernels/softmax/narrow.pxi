# The narrowest rows, if they are contiguous, and neither masked nor scaled. Most of a tile's time would be spent in
# waiting for its maxima and sums, so the next tile is filled in between.

cdef inline bint is_narrow(const Rows* rows) noexcept nogil:
    return (rows.n <= PARTIALS and rows.where == NULL and not rows.scaled and rows.op != ENTROPY and rows.x_n == 1
            and rows.y_n == 1)

cdef inline bint is_whole(const Rows* rows, Py_ssize_t i, Py_ssize_t tile_rows) noexcept nogil:
    """Whether a tile can be read and written by whole registers."""
    return tile_rows == PARTIALS and (rows.n >= TRANSPOSE_ROWS or (rows_below(rows, i) and rows.y_inner == rows.n))

cdef inline bint narrow_load(int op, const Rows* rows, Py_ssize_t o, Py_ssize_t i, real* tile,
                             vreal* row_max) noexcept nogil:
    """False if the rows hold something special."""
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner
    cdef vreal finite = broadcast(1)
    cdef int c
    for c in range(PARTIAL_REGS):
        row_max[c] = broadcast(-INFINITY)
        load_column(x + c * LANES * rows.x_inner, rows.x_inner, rows.n, tile + c * LANES, &row_max[c])
        finite = select_or_zero(lt(vabs(row_max[c]), broadcast(INFINITY)), finite)
    return op == SOFTMAX or hmax(-finite) == -1

cdef inline void narrow_results(int stored, const Rows* rows, Py_ssize_t o, Py_ssize_t i, const Shift* s,
                                const Normalizer* normalizer, const real* tile) noexcept nogil:
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    cdef elem[LANES] line
    cdef Py_ssize_t k
    cdef int c
    for c in range(PARTIAL_REGS):
        if stored == STORE_SCALAR:
            store_elem(line, normalizer[c].hi + normalizer[c].lo)
            for k in range(LANES):
                y[(c * LANES + k) * rows.y_inner] = line[k]
        else:
            store_column(stored, False, &s[c], &normalizer[c], tile + c * LANES, y + c * LANES * rows.y_inner,
                         rows.y_inner, rows.n, (PARTIALS - c * LANES) * rows.n)

cdef void narrow_refined(const Rows* rows, Py_ssize_t o, Py_ssize_t i, const Shift* s, const vmask* needs_refinement,
                         Normalizer* normalizer, real* tile) noexcept nogil:
    """Results of STORE_WEIGHTS that may be NEARLY_ONE, or subnormal."""
    find_ones(s, False, needs_refinement, normalizer)
    round_subnormal(rows.n, tile, normalizer)
    narrow_results(STORE_WEIGHTS_OR_ONE, rows, o, i, s, normalizer, tile)

cdef void narrow_exact(const Shift* s, Py_ssize_t n, real* tile, const vmask* needs_refinement,
                       Normalizer* normalizer) noexcept nogil:
    cdef Narrow sums
    cdef Normalizer[PARTIAL_REGS] exact
    cdef vmask[PARTIAL_REGS] unused
    narrow_sums(SUM_EXACT, False, True, s, n, tile, &sums)
    narrow_normalizers(SUM_EXACT, False, s, n, tile, &sums, exact, unused)
    select_refined(needs_refinement, exact, normalizer)

cdef inline void narrow_tiles(int op, const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                              const RowWorkspace* workspace) noexcept nogil:
    cdef real* tile = workspace.weights_buf
    cdef real* next_tile = workspace.tile.p
    cdef Shift[2 * PARTIAL_REGS] shifts
    cdef Shift* s = shifts
    cdef Shift* next_s = shifts + PARTIAL_REGS
    cdef vreal[PARTIAL_REGS] row_max
    cdef Narrow sums
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef vmask[PARTIAL_REGS] needs_refinement
    cdef bint is_loaded = False, loads
    cdef int sum = SUM_WEIGHTS if op == SOFTMAX else SUM_EXCLUDING_MAX
    cdef TilePosition position, next_position
    cdef Py_ssize_t t
    cdef int c
    for t in range(first_tile, end + 1):
        if is_loaded and any_center(s):
            narrow_sums(sum, False, True, s, rows.n, tile, &sums)
        elif is_loaded:
            narrow_sums(sum, False, False, s, rows.n, tile, &sums)
        loads = False
        if t < end:
            next_position = tile_position(rows, t)
            loads = is_whole(rows, next_position.i, next_position.tile_rows) and narrow_load(op, rows, next_position.o,
                                                                                             next_position.i, next_tile,
                                                                                             row_max)
        if is_loaded:
            narrow_normalizers(sum, False, s, rows.n, tile, &sums, normalizer, needs_refinement)
            if sum == SUM_EXCLUDING_MAX and any_column(needs_refinement):
                narrow_exact(s, rows.n, tile, needs_refinement, normalizer)
        if loads:
            for c in range(PARTIAL_REGS):
                next_s[c] = tile_shift(rows, next_position.o, next_position.i, PARTIALS, False, row_max[c])
        if is_loaded:
            if op == SOFTMAX and sizeof(elem) == sizeof(real) and any_column(needs_refinement):
                narrow_refined(rows, position.o, position.i, s, needs_refinement, normalizer, tile)
            else:
                narrow_results(op, rows, position.o, position.i, s, normalizer, tile)
        if t < end and not loads:
            strided_tile(rows, next_position.o, next_position.i, next_position.tile_rows, workspace)
        is_loaded, position = loads, next_position
        tile, next_tile = next_tile, tile
        s, next_s = next_s, s
