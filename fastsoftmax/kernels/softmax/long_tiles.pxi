# Tiles of long rows, shared by threads: the passes of strided_tile, each over all chunks before the next. A task is a
# chunk of up to STRIP_TILES tiles side by side, whose lines are read one after the other. Nothing is kept from pass to
# pass but the maxima and sums of chunks.

cdef enum:
    LONG_TILES = 8 * STRIP_TILES                # tiles at a time, which bounds the memory of their sums
    SHARED_TILE = 4 * CHUNK                     # elements: shorter rows are not shared

cdef struct LongTile:
    TilePosition position
    vreal[PARTIAL_REGS] row_max
    TileBases bases
    Shift[PARTIAL_REGS] s
    Normalizer[PARTIAL_REGS] normalizer
    vmask[PARTIAL_REGS] needs_refinement
    StoreKind stored
    bint special

cdef struct TileSums:                           # of a chunk
    vdd[PARTIALS * PARTIAL_REGS] weights
    vdd[PARTIALS * PARTIAL_REGS] moments
    vreal[PARTIAL_REGS] ties

cdef struct LongTilesWorkspace:                 # a thread's
    TileWorkspace[STRIP_TILES] tile
    real[BLOCK * PARTIALS] x                    # a block of a tile

cdef struct LongTiles:
    const Rows* rows
    int pass_
    SumKind sum
    Py_ssize_t tiles, chunks
    LongTile* tile                              # (tiles)
    TileSums* sums                              # (tiles, chunks)
    real* maxima                                # (tiles, chunks, PARTIALS)
    LongTilesWorkspace* workspaces

cdef inline bint has_long_tiles(const Rows* rows, int threads) noexcept nogil:
    """Whether the tiles of a matrix are computed so: where they are not kept, or are too few for the threads. With two
    threads, computing the weights of a tile twice would cost what the second thread gains."""
    if rows.causal or rows.in_turns:
        return False
    return not keeps_tile(rows) or (rows.n >= SHARED_TILE and 2 * rows.outer * tiles_of(rows) < threads)

cdef inline Py_ssize_t groups_of(const LongTiles* a) noexcept nogil:
    """Tasks of a chunk."""
    return ceil_div(a.tiles, STRIP_TILES)

cdef void max_of_long_tiles(const LongTiles* a, Py_ssize_t chunk, Py_ssize_t first, Py_ssize_t count,
                            LongTilesWorkspace* ws) noexcept nogil:
    """Pass 1 of tiles first .. first + count - 1."""
    cdef vreal[STRIP_TILES * PARTIAL_REGS] row_max
    cdef Py_ssize_t j = chunk * CHUNK, stop = min(j + CHUNK, a.rows.n), t, c
    for c in range(count * PARTIAL_REGS):
        row_max[c] = broadcast(-INFINITY)
    while j < stop:
        for t in range(count):
            load_tile(a.rows, &a.tile[first + t].position, j, min(stop - j, <Py_ssize_t>BLOCK), ws.x,
                      row_max + t * PARTIAL_REGS)
        j += BLOCK
    for t in range(count):
        for c in range(PARTIAL_REGS):
            store(a.maxima + ((first + t) * a.chunks + chunk) * PARTIALS + c * LANES, row_max[t * PARTIAL_REGS + c])

cdef void sum_long_tiles(const LongTiles* a, Py_ssize_t chunk, Py_ssize_t first, Py_ssize_t count,
                         LongTilesWorkspace* ws) noexcept nogil:
    """Pass 2."""
    cdef const Rows* rows = a.rows
    cdef LongTile* tile = a.tile + first
    cdef TileSums* sums
    cdef Shift[STRIP_TILES * PARTIAL_REGS] now
    cdef vcount[STRIP_TILES * PARTIAL_REGS] ties
    cdef vreal[PARTIAL_REGS] unused
    cdef Py_ssize_t j = chunk * CHUNK, stop = min(j + CHUNK, rows.n), lines, t, c, k
    for c in range(PARTIAL_REGS):
        unused[c] = broadcast(0)
    for t in range(count):
        for c in range(PARTIAL_REGS):
            now[t * PARTIAL_REGS + c], ties[t * PARTIAL_REGS + c] = tile[t].s[c], no_count()
        clear_tile_sums(a.sum, &ws.tile[t])
        if has_bases(rows, rows.n):             # the sums are still zeros
            start_chunk_from_bases(chunk, &tile[t].bases, tile[t].s, now + t * PARTIAL_REGS, &ws.tile[t])
        start_chunk(a.sum, rows.n, &ws.tile[t])
    while j < stop:
        lines = min(stop - j, <Py_ssize_t>BLOCK)
        for t in range(count):
            if a.sum == SUM_EXACT and not any_column(tile[t].needs_refinement):
                continue
            load_tile(rows, &tile[t].position, j, lines, ws.x, unused)
            exp_and_sum_block(a.sum, rows.scaled, registers_in_use(&tile[t].position), now + t * PARTIAL_REGS, lines,
                              ws.x, 0, &ws.tile[t], ties + t * PARTIAL_REGS)
            if j + BLOCK <= rows.n and ends_run(j + BLOCK, rows.n):
                end_runs_of_tile(a.sum, j + BLOCK, rows.n, &ws.tile[t])
        j += BLOCK
    for t in range(count):
        end_chunk(a.sum, rows.n, &ws.tile[t])
        sums = &a.sums[(first + t) * a.chunks + chunk]
        for k in range(PARTIALS * PARTIAL_REGS):
            sums.weights[k] = ws.tile[t].weights[k]
            if a.sum == SUM_MOMENTS:
                sums.moments[k] = ws.tile[t].moments[k]
        for c in range(PARTIAL_REGS):
            sums.ties[c] = real_count(ties[t * PARTIAL_REGS + c])

cdef void store_long_tiles(const LongTiles* a, Py_ssize_t chunk, Py_ssize_t first, Py_ssize_t count,
                           LongTilesWorkspace* ws) noexcept nogil:
    """Pass 3."""
    cdef const Rows* rows = a.rows
    cdef const LongTile* tile = a.tile + first
    cdef vcount[PARTIAL_REGS] ties
    cdef vreal[PARTIAL_REGS] unused
    cdef Py_ssize_t j = chunk * CHUNK, stop = min(j + CHUNK, rows.n), lines, t, c
    for c in range(PARTIAL_REGS):
        unused[c], ties[c] = broadcast(0), no_count()
    start_chunk(SUM_WEIGHTS, rows.n, &ws.tile[0])
    while j < stop:
        lines = min(stop - j, <Py_ssize_t>BLOCK)
        for t in range(count):
            if tile[t].special:
                continue
            load_tile(rows, &tile[t].position, j, lines, ws.x, unused)
            if tile[t].stored != STORE_LOGS:    # the weights once more; the sums are not used
                exp_and_sum_block(SUM_WEIGHTS, rows.scaled, registers_in_use(&tile[t].position), tile[t].s, lines,
                                  ws.x, 0, &ws.tile[0], ties)
            normalize_store_tile(tile[t].stored, rows, &tile[t].position, j, lines, tile[t].s, tile[t].normalizer, ws.x)
        j += BLOCK
    if rows.nontemporal:
        stream_end()

cdef Py_ssize_t long_tiles_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const LongTiles* a = <const LongTiles*>context
    cdef LongTilesWorkspace* ws = &a.workspaces[thread]
    cdef Py_ssize_t chunk = task // groups_of(a), first = task % groups_of(a) * STRIP_TILES
    cdef Py_ssize_t count = min(a.tiles - first, <Py_ssize_t>STRIP_TILES)
    if a.pass_ == PASS_MAX:
        max_of_long_tiles(a, chunk, first, count, ws)
    elif a.pass_ == PASS_SUM:
        sum_long_tiles(a, chunk, first, count, ws)
    else:
        store_long_tiles(a, chunk, first, count, ws)
    return count

cdef void finish_maxima_of_tile(const LongTiles* a, Py_ssize_t t) noexcept nogil:
    """After pass 1."""
    cdef LongTile* tile = &a.tile[t]
    cdef const real* maxima = a.maxima + t * a.chunks * PARTIALS
    cdef Py_ssize_t chunk
    cdef int c
    for c in range(PARTIAL_REGS):
        tile.row_max[c] = broadcast(-INFINITY)
    for chunk in range(a.chunks):
        for c in range(PARTIAL_REGS):
            tile.row_max[c] = vmax(load(maxima + chunk * PARTIALS + c * LANES), tile.row_max[c])
        if has_bases(a.rows, a.rows.n):
            join_max_of_tile(a.rows, min((chunk + 1) * CHUNK, a.rows.n), tile.row_max, &tile.bases)
    shifts_of_tile(a.rows, &tile.position, tile.row_max, &tile.bases, tile.s)

cdef void normalizers_of_long_tile(const LongTiles* a, Py_ssize_t t, TileWorkspace* total, Normalizer* normalizer,
                                   vmask* needs_refinement) noexcept nogil:
    """After pass 2: the sums of the chunks are added in their order."""
    cdef const LongTile* tile = &a.tile[t]
    cdef const TileSums* sums
    cdef Shift[PARTIAL_REGS] now
    cdef vreal[PARTIAL_REGS] ties
    cdef Py_ssize_t chunk, k
    cdef int c
    for c in range(PARTIAL_REGS):
        now[c], ties[c] = tile.s[c], broadcast(0)
    clear_tile_sums(a.sum, total)
    for chunk in range(a.chunks):
        sums = &a.sums[t * a.chunks + chunk]
        if has_bases(a.rows, a.rows.n):
            start_chunk_from_bases(chunk, &tile.bases, tile.s, now, total)
        for k in range(PARTIALS * PARTIAL_REGS):
            total.weights[k] = dd_add(total.weights[k], sums.weights[k])
            if a.sum == SUM_MOMENTS:
                total.moments[k] = dd_add(total.moments[k], sums.moments[k])
        for c in range(PARTIAL_REGS):
            ties[c] = ties[c] + sums.ties[c]
    for c in range(PARTIAL_REGS):
        normalizer[c] = finalize_column(a.sum, a.rows.scaled, &tile.s[c], a.rows.n, c, total, ties[c],
                                        NULL, &needs_refinement[c])
        if c >= registers_in_use(&tile.position):
            needs_refinement[c] = nowhere()

cdef bint finish_sums_of_tiles(const LongTiles* a) noexcept nogil:
    """Returns whether tiles need SUM_EXACT."""
    cdef LongTile* tile
    cdef Normalizer[PARTIAL_REGS] exact
    cdef vmask[PARTIAL_REGS] unused
    cdef bint refine = False
    cdef Py_ssize_t t
    for t in range(a.tiles):
        tile = &a.tile[t]
        if a.sum != SUM_EXACT:
            normalizers_of_long_tile(a, t, a.workspaces.tile, tile.normalizer, tile.needs_refinement)
        elif any_column(tile.needs_refinement):
            normalizers_of_long_tile(a, t, a.workspaces.tile, exact, unused)
            select_refined(tile.needs_refinement, exact, tile.normalizer)
        if a.sum == SUM_EXCLUDING_MAX:
            refine |= any_column(tile.needs_refinement)
        elif a.sum == SUM_WEIGHTS and find_ones(tile.s, a.rows.scaled, tile.needs_refinement, tile.normalizer):
            tile.stored = STORE_WEIGHTS_OR_ONE
    return refine

cdef void store_scalars_of_tiles(const LongTiles* a) noexcept nogil:
    cdef Py_ssize_t t
    for t in range(a.tiles):
        if not a.tile[t].special:
            store_scalars(a.rows, &a.tile[t].position, a.tile[t].normalizer)

cdef void finish_pass_of_tiles(LongTiles* a) noexcept nogil:
    """Computes the constants of the tiles from those of all chunks, and chooses the next pass."""
    cdef fp_state modes = fp_enter()
    cdef Py_ssize_t t
    if a.pass_ == PASS_MAX:
        for t in range(a.tiles):
            finish_maxima_of_tile(a, t)
        a.pass_ = PASS_SUM
    elif a.pass_ == PASS_SUM and finish_sums_of_tiles(a):
        a.sum = SUM_EXACT
    elif a.pass_ == PASS_SUM:
        for t in range(a.tiles):
            a.tile[t].special = any_special(a.rows, a.tile[t].position.tile_rows, a.tile[t].row_max,
                                            a.tile[t].normalizer)
        a.pass_ = PASS_STORE
        if is_reduction(a.rows.op):
            store_scalars_of_tiles(a)
            a.pass_ = PASS_NONE
    else:
        a.pass_ = PASS_NONE
    fp_leave(modes)

cdef int special_rows_of_tiles(const LongTiles* a) except -1:
    """Computes the rows of tiles with a special row one by one."""
    cdef Workspaces memory = Workspaces()
    cdef Py_ssize_t t
    cdef fp_state modes
    for t in range(a.tiles):
        if a.tile[t].special:
            if memory.block == NULL:
                memory.reserve(1, a.rows.n if a.rows.n <= KEEP else CHUNK, False, False)
            with nogil:
                modes = fp_enter()
                rows_of_tile(a.rows, &a.tile[t].position, memory.workspaces)
                fp_leave(modes)
            PyErr_CheckSignals()
    return 0

cdef int long_tiles(const Rows* rows, Py_ssize_t first_tile, Py_ssize_t tiles, int threads) except -1:
    """Computes tiles first_tile .. first_tile + tiles - 1, all of one matrix."""
    cdef LongTiles a
    cdef Py_ssize_t tile_bytes, sums_bytes, maxima_bytes, t
    cdef char* block
    a.rows, a.tiles, a.chunks, a.sum, a.pass_ = rows, tiles, ceil_div(rows.n, CHUNK), first_sum(rows.op), PASS_MAX
    tile_bytes = round_up_to_line(tiles * sizeof(LongTile))
    sums_bytes = round_up_to_line(tiles * a.chunks * sizeof(TileSums))
    maxima_bytes = round_up_to_line(tiles * a.chunks * PARTIALS * sizeof(real))
    block = <char*>allocate(tile_bytes + sums_bytes + maxima_bytes
                            + threads * <Py_ssize_t>sizeof(LongTilesWorkspace))
    try:
        a.tile, a.sums = <LongTile*>block, <TileSums*>(block + tile_bytes)
        a.maxima = <real*>(block + tile_bytes + sums_bytes)
        a.workspaces = <LongTilesWorkspace*>(block + tile_bytes + sums_bytes + maxima_bytes)
        for t in range(tiles):
            a.tile[t].position = tile_position(rows, first_tile + t)
            a.tile[t].stored = first_store(rows.op)
        while a.pass_ != PASS_NONE:
            run_tasks(long_tiles_task, &a, a.chunks * groups_of(&a),
                      max(1, SLICE // (CHUNK * PARTIALS * min(tiles, <Py_ssize_t>STRIP_TILES))), threads,
                      IN_FIXED_SHARES)
            finish_pass_of_tiles(&a)
        special_rows_of_tiles(&a)
    finally:
        free(block)
    return 0

cdef int all_long_tiles(const Rows* rows, int threads) except -1:
    cdef Py_ssize_t tiles = tiles_of(rows), o, first
    for o in range(rows.outer):
        for first in range(0, tiles, LONG_TILES):
            long_tiles(rows, o * tiles + first, min(tiles - first, <Py_ssize_t>LONG_TILES), threads)
    return 0
