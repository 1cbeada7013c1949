# A tile of any rows: its passes, block by block. Reductions and stores are those of dense.pxi, for PARTIALS rows.

cdef inline Shift tile_shift(const Rows* rows, const TilePosition* position, int c, bint scaled,
                             vreal row_max) noexcept nogil:
    """The constants of the rows of register c."""
    cdef Shift s
    cdef real[LANES] temperature, temperature_lo
    cdef Py_ssize_t k, first = c * LANES
    cdef const double* t = rows.temperature
    cdef double value
    if scaled:
        t += position.first.o * rows.temperature_outer + (position.first.i + first) * rows.temperature_inner
        for k in range(LANES):
            value = t[k * rows.temperature_inner] if first + k < position.tile_rows else 1
            temperature[k] = <real>value
            temperature_lo[k] = <real>(value - temperature[k])
        set_temperature(&s, load(temperature), load(temperature_lo))
    else:
        no_temperature(&s)
    set_row_max(&s, row_max)
    return s

cdef inline void select_refined(const vmask* needs_refinement, const Normalizer* exact,
                                Normalizer* normalizer) noexcept nogil:
    """Takes `exact` only where it is needed, since the result of a row may not depend on its neighbours."""
    cdef int c
    for c in range(PARTIAL_REGS):
        normalizer[c].hi = vselect(needs_refinement[c], exact[c].hi, normalizer[c].hi)
        normalizer[c].lo = vselect(needs_refinement[c], exact[c].lo, normalizer[c].lo)

cdef inline bint find_ones(const Shift* s, bint scaled, const vmask* needs_refinement,
                           Normalizer* normalizer) noexcept nogil:
    """find_one for all registers."""
    cdef bint found = False
    cdef int c
    if any_column(needs_refinement):
        for c in range(PARTIAL_REGS):
            normalizer[c].one = broadcast(NEARLY_ONE)
            found |= find_one(&s[c], scaled, &normalizer[c])
    return found

# The elements, then the weights, of all blocks of a tile are kept if they fit. Otherwise the tile is one of long_tiles,
# or a block of it is read again for its sum (states.pxi).

cdef inline bint keeps_tile(const Rows* rows) noexcept nogil:
    return rows.n * PARTIALS <= KEEP

cdef inline real* block_at(const Rows* rows, Py_ssize_t j, const RowWorkspace* workspace) noexcept nogil:
    """The block that starts at element j."""
    return workspace.weights_buf + j * PARTIALS if keeps_tile(rows) else workspace.weights_buf

# The bases of the rows of a tile, as RowBases. rebased: INFINITY where no chunk is.
cdef struct TileBases:
    vreal[PARTIAL_REGS] first_max, rebased

cdef inline void join_max_of_tile(const Rows* rows, Py_ssize_t end, const vreal* row_max,
                                  TileBases* bases) noexcept nogil:
    """Takes the maxima of the first `end` elements, one chunk after another."""
    cdef int c
    if end % CHUNK != 0 and end < rows.n:
        return
    for c in range(PARTIAL_REGS):
        if end <= CHUNK:
            bases.first_max[c], bases.rebased[c] = row_max[c], broadcast(INFINITY)
        bases.rebased[c] = vselect(is_within_reach(bases.first_max[c], row_max[c]), bases.rebased[c],
                                   vmin(bases.rebased[c], broadcast(<real>((end - 1) // CHUNK))))

cdef inline void shifts_of_tile(const Rows* rows, const TilePosition* position, const vreal* row_max, TileBases* bases,
                                Shift* s) noexcept nogil:
    """The shifts of pass 3: from first_max in rows that are not rebased, otherwise from row_max. Finishes `bases`."""
    cdef vreal base
    cdef int c
    for c in range(PARTIAL_REGS):
        base = row_max[c]
        if has_bases(rows, rows.n):
            bases.rebased[c] = select_or_zero(may_be_base(bases.first_max[c], row_max[c]), bases.rebased[c])
            base = vselect(eq(bases.rebased[c], broadcast(INFINITY)), bases.first_max[c], row_max[c])
        s[c] = tile_shift(rows, position, c, rows.scaled, base)
        s[c].row_max = row_max[c]

cdef inline vreal powers_between(const TileBases* bases, const Shift* s, int c, int sign) noexcept nogil:
    """The factors, or for sign = -1 their inverses, by which weights from first_max become those from row_max; 1 in
    rows that are not rebased."""
    cdef real[LANES] exponent
    cdef vmask rebased = both(lt(broadcast(0), bases.rebased[c]), lt(bases.rebased[c], broadcast(INFINITY)))
    cdef Shift first
    cdef Py_ssize_t k
    no_temperature(&first)
    set_row_max(&first, bases.first_max[c])
    store(exponent, select_or_zero(rebased, s[c].rounder - first.rounder))
    for k in range(LANES):
        exponent[k] = <real>ldexp(1, sign * <int>exponent[k])
    return load(exponent)

cdef void start_chunk_from_bases(Py_ssize_t chunk, const TileBases* bases, const Shift* s, Shift* now,
                                 TileWorkspace* tile) noexcept nogil:
    """now: the shifts of this chunk. The sums of rows that are rebased in it are brought to row_max."""
    cdef vreal at = broadcast(<real>chunk), unit
    cdef vmask rebased
    cdef int part, c
    for c in range(PARTIAL_REGS):
        set_row_max(&now[c], vselect(lt(at, bases.rebased[c]), bases.first_max[c], s[c].row_max))
        rebased = eq(at, bases.rebased[c])
        if chunk > 0 and any_lane(rebased):
            unit = vselect(rebased, powers_between(bases, s, c, -1), broadcast(1))
            for part in range(PARTIALS):
                tile.weights[part * PARTIAL_REGS + c] = dd_div(tile.weights[part * PARTIAL_REGS + c],
                                                               dd_from(unit))

cdef void rescale_tile(const TileBases* bases, const Shift* s, Py_ssize_t chunks, real* x) noexcept nogil:
    """Brings the weights of the chunks before `rebased` to row_max."""
    cdef vreal factor, by
    cdef vmask before
    cdef Py_ssize_t chunk, j
    cdef int c
    for c in range(PARTIAL_REGS):
        factor = powers_between(bases, s, c, 1)
        for chunk in range(chunks):
            before = lt(broadcast(<real>chunk), bases.rebased[c])
            by = vselect(before, factor, broadcast(1))
            if any_lane(lt(by, broadcast(1))):
                for j in range(chunk * CHUNK, (chunk + 1) * CHUNK):
                    store(x + j * PARTIALS + c * LANES, load(x + j * PARTIALS + c * LANES) * by)

cdef inline void load_blocks(const Rows* rows, const TilePosition* position, const RowWorkspace* workspace,
                             TileBases* bases, vreal* row_max) noexcept nogil:
    """Pass 1. bases may be NULL."""
    cdef Py_ssize_t j = 0, count
    while j < rows.n:
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        if rows.causal:
            load_visible_tile(rows, position, j, count, block_at(rows, j, workspace), row_max)
        else:
            load_tile(rows, position, j, count, block_at(rows, j, workspace), row_max)
        j += BLOCK
        if bases != NULL and has_bases(rows, rows.n):
            join_max_of_tile(rows, min(j, rows.n), row_max, bases)

cdef void sum_blocks(SumKind sum, const Rows* rows, const TilePosition* position, const TileBases* bases,
                     const Shift* s, const RowWorkspace* workspace, Normalizer* normalizer,
                     vmask* needs_refinement) noexcept nogil:
    """Pass 2, for rows longer than a block. bases: NULL, or those of rows which have some."""
    cdef vcount[PARTIAL_REGS] ties
    cdef vreal[PARTIAL_REGS] unused
    cdef Shift[PARTIAL_REGS] now
    cdef Py_ssize_t j = 0, count
    cdef real* x
    cdef int c
    for c in range(PARTIAL_REGS):
        ties[c] = no_count()
        unused[c] = s[c].row_max
        now[c] = s[c]
    clear_tile_sums(sum, workspace.tile)
    while j < rows.n:
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = block_at(rows, j, workspace)
        if keeps_tile(rows):
            if tiles_of_strip(rows) == 1:
                prefetch_block(rows, position, j, count)
        else:
            load_tile(rows, position, j, count, x, unused)
        if j % CHUNK == 0:
            if bases != NULL:
                start_chunk_from_bases(j // CHUNK, bases, s, now, workspace.tile)
            start_chunk(sum, rows.n, workspace.tile)
        exp_and_sum_block(sum, rows.scaled, registers_in_use(position), now, count, x, kept_at(sum, rows.n),
                          workspace.tile, ties)
        j += BLOCK
        if j <= rows.n and ends_run(j, rows.n):
            end_runs_of_tile(sum, j, rows.n, workspace.tile)
        if j % CHUNK == 0 or j >= rows.n:
            end_chunk(sum, rows.n, workspace.tile)
    if bases != NULL and keeps_tile(rows):
        rescale_tile(bases, s, rows.n // CHUNK, workspace.weights_buf)
    for c in range(PARTIAL_REGS):
        normalizer[c] = finalize_column(sum, rows.scaled, &s[c], rows.n, c, workspace.tile,
                                        real_count(ties[c]), normalizer + PARTIAL_REGS + c, &needs_refinement[c])
        if c >= registers_in_use(position):     # it has no sums
            needs_refinement[c] = nowhere()

cdef void sum_tile(SumKind sum, const Rows* rows, const TilePosition* position, const TileBases* bases, const Shift* s,
                   const RowWorkspace* workspace, Normalizer* normalizer, vmask* needs_refinement) noexcept nogil:
    if rows.n <= BLOCK:
        finalize_single_block(sum, rows.scaled, s, rows.n, workspace.weights_buf, normalizer, needs_refinement)
    else:
        sum_blocks(sum, rows, position, bases, s, workspace, normalizer, needs_refinement)

cdef inline StoreKind normalizers_of_tile(const Rows* rows, const TilePosition* position, const TileBases* bases,
                                          const Shift* s, const RowWorkspace* workspace,
                                          Normalizer* normalizer) noexcept nogil:
    """Returns how to store the results."""
    cdef SumKind sum = first_sum(rows.op)
    cdef Normalizer[PARTIAL_REGS] exact
    cdef vmask[PARTIAL_REGS] needs_refinement, unused
    sum_tile(sum, rows, position, bases, s, workspace, normalizer, needs_refinement)
    if may_be_inaccurate(sum) and any_column(needs_refinement):
        sum_tile(SUM_EXACT, rows, position, NULL, s, workspace, exact, unused)
        select_refined(needs_refinement, exact, normalizer)
    elif sum == SUM_WEIGHTS and find_ones(s, rows.scaled, needs_refinement, normalizer):
        return STORE_WEIGHTS_OR_ONE
    return first_store(rows.op)

cdef inline void store_blocks(StoreKind stored, const Rows* rows, const TilePosition* position, const Shift* s,
                              const Normalizer* normalizer, const RowWorkspace* workspace) noexcept nogil:
    """Pass 3, of a tile that is kept."""
    cdef Py_ssize_t j = 0
    while j < rows.n:
        normalize_store_tile(stored, rows, position, j, min(rows.n - j, <Py_ssize_t>BLOCK), s, normalizer,
                             workspace.weights_buf + j * PARTIALS)
        j += BLOCK

cdef void store_scalars(const Rows* rows, const TilePosition* position, const Normalizer* normalizer) noexcept nogil:
    cdef elem[PARTIALS] line
    cdef Py_ssize_t c
    for c in range(PARTIAL_REGS):
        store_elem(line + c * LANES, normalizer[c].hi + normalizer[c].lo)
    for c in range(position.tile_rows):
        position.first.y[c * rows.y_inner] = line[c]

cdef bint any_special(const Rows* rows, Py_ssize_t tile_rows, const vreal* row_max,
                      const Normalizer* normalizer) noexcept nogil:
    cdef real[PARTIALS] maxima, his
    cdef int c
    if rows.op == SOFTMAX and rows.where == NULL:
        return False
    for c in range(PARTIAL_REGS):
        store(maxima + c * LANES, row_max[c])
        store(his + c * LANES, normalizer[c].hi)
    for c in range(tile_rows):
        if is_special(rows, maxima[c], his[c]):
            return True
    return False

cdef void rows_of_tile(const Rows* rows, const TilePosition* position, const RowWorkspace* workspace) noexcept nogil:
    """Computes the rows of a tile one by one, since one is special."""
    cdef Row row
    cdef Py_ssize_t c
    for c in range(position.tile_rows):
        row = row_of(rows, position.first.o, position.first.i + c)
        single_row(rows, row, first_max_of_row(rows, &row, workspace), workspace)

cdef void strided_tile(const Rows* rows, const TilePosition* position, const RowWorkspace* workspace) noexcept nogil:
    cdef vreal[PARTIAL_REGS] row_max
    cdef TileBases bases
    cdef Shift[PARTIAL_REGS] s
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef StoreKind stored
    cdef int c
    for c in range(PARTIAL_REGS):
        row_max[c] = broadcast(-INFINITY)
    load_blocks(rows, position, workspace, &bases, row_max)
    shifts_of_tile(rows, position, row_max, &bases, s)
    stored = normalizers_of_tile(rows, position, &bases if has_bases(rows, rows.n) else NULL, s, workspace, normalizer)
    if any_special(rows, position.tile_rows, row_max, normalizer):
        rows_of_tile(rows, position, workspace)
    elif stored == STORE_SCALAR:
        store_scalars(rows, position, normalizer)
    else:
        store_blocks(stored, rows, position, s, normalizer, workspace)

cdef void single_tile(const Rows* rows, TilePosition position, const RowWorkspace* workspace) noexcept nogil:
    """strided_tile with a copy of `position`, so that the caller can keep its own in registers."""
    strided_tile(rows, &position, workspace)

# Tiles side by side in memory make a strip. Passes 1 and 3 go over a few lines of all of its tiles at a time, and the
# next lines are prefetched: each line is on a page of its own, and a visit of a page for one tile alone costs more than
# the arithmetic of its elements.

cdef enum:
    STRIP_REALS = 1 << 19           # of all tiles of a strip

cdef struct StripTile:
    TilePosition position
    RowWorkspace workspace          # with a part of weights_buf
    vreal[PARTIAL_REGS] row_max
    TileBases bases
    Shift[PARTIAL_REGS] s
    Normalizer[PARTIAL_REGS] normalizer
    StoreKind stored
    bint special

cdef inline bint share_sets(Py_ssize_t stride) noexcept nogil:
    """Whether lines so many elements apart have few places in the caches."""
    return stride * <Py_ssize_t>sizeof(elem) % 2048 == 0

cdef inline Py_ssize_t lines_at_once(Py_ssize_t stride) noexcept nogil:
    return 8 if share_sets(stride) else 16

cdef inline Py_ssize_t tile_size(const Rows* rows) noexcept nogil:
    """Reals of a tile in a strip: pass 2 writes elements up to a multiple of four. There is one element more, so that
    tiles are not a power of two apart."""
    return (ceil_div(rows.n, 4) * 4 + 1) * PARTIALS

cdef inline Py_ssize_t tiles_of_strip(const Rows* rows) noexcept nogil:
    """Tiles of a strip, at most; 1: no strips. Rows of a block are read as fast without, unless lines share sets."""
    if (rows.causal or rows.in_turns or (rows.x_inner != 1 and rows.y_inner != 1) or rows.n * rows.inner <= CHUNK
            or (rows.n <= BLOCK and not share_sets(rows.x_n))):
        return 1
    return min(max(<Py_ssize_t>STRIP_REALS // tile_size(rows), 1), <Py_ssize_t>STRIP_TILES)

cdef inline void load_strip(const Rows* rows, Py_ssize_t count, StripTile* tiles) noexcept nogil:
    """Pass 1."""
    cdef Py_ssize_t lines = lines_at_once(rows.x_n) if rows.x_inner == 1 else rows.n, j = 0, t
    while j < rows.n:
        for t in range(count):
            load_tile_ahead(rows, &tiles[t].position, j, min(rows.n - j, lines),
                            tiles[t].workspace.weights_buf + j * PARTIALS, lines * rows.x_n, tiles[t].row_max)
            if has_bases(rows, rows.n):
                join_max_of_tile(rows, min(j + lines, rows.n), tiles[t].row_max, &tiles[t].bases)
        j += lines

cdef inline void sum_strip_tile(const Rows* rows, StripTile* tile) noexcept nogil:
    """Pass 2."""
    shifts_of_tile(rows, &tile.position, tile.row_max, &tile.bases, tile.s)
    tile.stored = normalizers_of_tile(rows, &tile.position, &tile.bases if has_bases(rows, rows.n) else NULL, tile.s,
                                      &tile.workspace, tile.normalizer)
    tile.special = any_special(rows, tile.position.tile_rows, tile.row_max, tile.normalizer)

cdef inline void store_strip_lines(const Rows* rows, Py_ssize_t count, StripTile* tiles) noexcept nogil:
    """Pass 3."""
    cdef Py_ssize_t lines = lines_at_once(rows.y_n) if rows.y_inner == 1 else rows.n, j = 0, t
    while j < rows.n:
        for t in range(count):
            if rows.y_inner == 1 and not rows.nontemporal:
                prefetch_lines(tiles[t].position.first.y + (j + lines) * rows.y_n, rows.y_n, 1,
                               min(rows.n - j - lines, lines))
            if not tiles[t].special:
                normalize_store_tile(tiles[t].stored, rows, &tiles[t].position, j, min(rows.n - j, lines), tiles[t].s,
                                     tiles[t].normalizer, tiles[t].workspace.weights_buf + j * PARTIALS)
        j += lines

cdef void strided_strip(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t count,
                        const RowWorkspace* workspace) noexcept nogil:
    cdef StripTile[STRIP_TILES] tiles
    cdef Py_ssize_t t
    cdef int c
    for t in range(count):
        tiles[t].position = tile_position(rows, first_tile + t)
        tiles[t].workspace = workspace[0]
        tiles[t].workspace.weights_buf += t * tile_size(rows)
        for c in range(PARTIAL_REGS):
            tiles[t].row_max[c] = broadcast(-INFINITY)
    load_strip(rows, count, tiles)
    for t in range(count):
        sum_strip_tile(rows, &tiles[t])
    if not is_reduction(rows.op):
        store_strip_lines(rows, count, tiles)
    for t in range(count):
        if tiles[t].special:
            rows_of_tile(rows, &tiles[t].position, workspace)
        elif is_reduction(rows.op):
            store_scalars(rows, &tiles[t].position, tiles[t].normalizer)

cdef void wide_tiles(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                     const RowWorkspace* workspace) noexcept nogil:
    cdef TilePosition position
    cdef Py_ssize_t t = first_tile, most = tiles_of_strip(rows), tiles = tiles_of(rows), count
    while t < end:
        count = min(most, end - t, tiles - t % tiles)
        if count > 1:
            strided_strip(rows, t, count, workspace)
        else:
            position = tile_position(rows, tile_in_turn(rows, t))
            if rows.causal:
                causal_tile(rows, &position, workspace)
            else:
                strided_tile(rows, &position, workspace)
        t += count

cdef inline void strided_tiles(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t end,
                               const RowWorkspace* workspace) noexcept nogil:
    if is_narrow(rows):
        narrow_tiles(rows, first_tile, end, workspace)
    else:
        wide_tiles(rows, first_tile, end, workspace)
