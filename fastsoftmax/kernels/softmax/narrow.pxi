# Narrow rows: contiguous, of at most UNROLL elements, without mask and temperature.
#
# The passes of strided_tile would mostly wait for the maxima and sums of one tile. So this is a pipeline of two tiles:
# pass 1 of the next tile is interleaved with passes 2 and 3 of this one.

cdef inline bint is_narrow(const Rows* rows) noexcept nogil:
    return (rows.n <= UNROLL and rows.where == NULL and not rows.scaled and not rows.causal and rows.op != ENTROPY
            and not rows.in_turns and rows.x_n == 1 and (rows.y_n == 1 or is_reduction(rows.op)))

cdef inline bint is_whole(const Rows* rows, const TilePosition* position) noexcept nogil:
    """Whether a tile can be read and written in whole registers."""
    return position.tile_rows == PARTIALS and (rows.n >= TRANSPOSE_ROWS
                                               or (rows_below(rows, position)
                                                   and (rows.y_inner == rows.n or is_reduction(rows.op))))

cdef inline bint narrow_load(Op op, const Rows* rows, const TilePosition* position, real* tile,
                             vreal* row_max) noexcept nogil:
    """Pass 1. Returns whether the tile is whole and has no special row."""
    cdef vreal finite = broadcast(1)
    cdef int c
    if not is_whole(rows, position):
        return False
    for c in range(PARTIAL_REGS):
        row_max[c] = broadcast(-INFINITY)
        load_column(position.first.x + c * LANES * rows.x_inner, rows.x_inner, rows.n, tile + c * LANES, &row_max[c])
        finite = select_or_zero(lt(vabs(row_max[c]), broadcast(INFINITY)), finite)
    return op == SOFTMAX or hmax(-finite) == -1

# `wide`: whether rows have more than PARTIALS elements.

cdef struct NarrowSums:
    ShortSums short_rows
    ColumnSums wide_rows

cdef inline void narrow_sums(bint wide, SumKind sum, bint centered, const Shift* s, Py_ssize_t n, real* tile,
                             NarrowSums* sums) noexcept nogil:
    if wide:
        column_sums(sum, False, centered, s, n, tile, &sums.wide_rows)
    else:
        short_sums(sum, False, centered, s, n, tile, &sums.short_rows)

cdef inline void narrow_normalizers(bint wide, SumKind sum, const Shift* s, Py_ssize_t n, real* tile,
                                    const NarrowSums* sums, Normalizer* normalizer,
                                    vmask* needs_refinement) noexcept nogil:
    """SUM_WEIGHTS: needs_refinement also marks rows whose results may be subnormal."""
    cdef int c
    if not wide:
        short_normalizers(sum, False, s, n, tile, &sums.short_rows, normalizer, needs_refinement)
        return
    column_normalizers(sum, False, s, n, &sums.wide_rows, normalizer, needs_refinement)
    if sum == SUM_WEIGHTS and sizeof(elem) == sizeof(real):
        for c in range(PARTIAL_REGS):
            needs_refinement[c] = either(needs_refinement[c], any_subnormal(n, tile + c * LANES, &normalizer[c]))

cdef void narrow_refine(bint wide, const Shift* s, Py_ssize_t n, real* tile, const vmask* needs_refinement,
                        Normalizer* normalizer) noexcept nogil:
    """Computes normalizers again by SUM_EXACT, where the first sum was not accurate."""
    cdef NarrowSums sums
    cdef Normalizer[PARTIAL_REGS] exact
    cdef vmask[PARTIAL_REGS] unused
    narrow_sums(wide, SUM_EXACT, True, s, n, tile, &sums)
    narrow_normalizers(wide, SUM_EXACT, s, n, tile, &sums, exact, unused)
    select_refined(needs_refinement, exact, normalizer)

cdef inline void narrow_store_as(StoreKind stored, const Rows* rows, const TilePosition* position, const Shift* s,
                                 const Normalizer* normalizer, const real* tile) noexcept nogil:
    cdef elem* y = position.first.y
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

cdef void narrow_store_refined(const Rows* rows, TilePosition position, const Shift* s,
                               const vmask* needs_refinement, Normalizer* normalizer, real* tile) noexcept nogil:
    """narrow_store for weights that may be NEARLY_ONE or subnormal. `position` is a copy: see single_tile."""
    find_ones(s, False, needs_refinement, normalizer)
    round_subnormal(PARTIAL_REGS, rows.n, tile, normalizer)
    narrow_store_as(STORE_WEIGHTS_OR_ONE, rows, &position, s, normalizer, tile)

cdef inline void narrow_store(Op op, const Rows* rows, const TilePosition* position, const Shift* s,
                              const vmask* needs_refinement, Normalizer* normalizer, real* tile) noexcept nogil:
    """Pass 3."""
    if op == SOFTMAX and sizeof(elem) == sizeof(real) and any_column(needs_refinement):
        narrow_store_refined(rows, position[0], s, needs_refinement, normalizer, tile)
    elif op != SOFTMAX and rows.op == LOGSUMEXP:
        narrow_store_as(STORE_SCALAR, rows, position, s, normalizer, tile)
    else:
        narrow_store_as(first_store(op), rows, position, s, normalizer, tile)

cdef inline void narrow_loop(bint wide, Op op, const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                             const RowWorkspace* workspace) noexcept nogil:
    cdef SumKind sum = first_sum(op)
    cdef real* tile = workspace.weights_buf
    cdef real* next_tile = workspace.tile.p
    cdef Shift[2 * PARTIAL_REGS] shifts
    cdef Shift* s = shifts
    cdef Shift* next_s = shifts + PARTIAL_REGS
    cdef vreal[PARTIAL_REGS] row_max
    cdef NarrowSums sums
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef vmask[PARTIAL_REGS] needs_refinement
    cdef bint is_loaded = False, next_is_loaded
    cdef TilePosition position, next_position
    cdef Py_ssize_t t
    cdef int c
    for t in range(first_tile, end + 1):
        if is_loaded and any_center(s):
            narrow_sums(wide, sum, True, s, rows.n, tile, &sums)
        elif is_loaded:
            narrow_sums(wide, sum, False, s, rows.n, tile, &sums)
        next_is_loaded = False
        if t < end:
            next_position = tile_position(rows, t)
            next_is_loaded = narrow_load(op, rows, &next_position, next_tile, row_max)
        if is_loaded:
            narrow_normalizers(wide, sum, s, rows.n, tile, &sums, normalizer, needs_refinement)
            if sum == SUM_EXCLUDING_MAX and any_column(needs_refinement):
                narrow_refine(wide, s, rows.n, tile, needs_refinement, normalizer)
        if next_is_loaded:
            for c in range(PARTIAL_REGS):
                next_s[c] = tile_shift(rows, &next_position, c, False, row_max[c])
        if is_loaded:
            narrow_store(op, rows, &position, s, needs_refinement, normalizer, tile)
        if t < end and not next_is_loaded:
            single_tile(rows, next_position, workspace)
        is_loaded, position = next_is_loaded, next_position
        tile, next_tile = next_tile, tile
        s, next_s = next_s, s

cdef void narrow_softmax(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                         const RowWorkspace* workspace) noexcept nogil:
    narrow_loop(False, SOFTMAX, rows, first_tile, end, workspace)

cdef void narrow_logarithms(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                            const RowWorkspace* workspace) noexcept nogil:
    narrow_loop(False, LOG_SOFTMAX, rows, first_tile, end, workspace)

cdef void wider_softmax(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                        const RowWorkspace* workspace) noexcept nogil:
    narrow_loop(True, SOFTMAX, rows, first_tile, end, workspace)

cdef void wider_logarithms(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                           const RowWorkspace* workspace) noexcept nogil:
    narrow_loop(True, LOG_SOFTMAX, rows, first_tile, end, workspace)

cdef inline void narrow_tiles(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                              const RowWorkspace* workspace) noexcept nogil:
    cdef bint wide = rows.n > PARTIALS
    cdef RowsLoop loop                          # see contiguous.pxi
    if rows.op == SOFTMAX:
        loop = wider_softmax if wide else narrow_softmax
    else:
        loop = wider_logarithms if wide else narrow_logarithms
    loop(rows, first_tile, end, workspace)
