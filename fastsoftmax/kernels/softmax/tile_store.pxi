# Pass 3 of a tile: its results, from the weights (STORE_WEIGHTS) or the elements (STORE_LOGS) in the tile.

cdef inline void normalize_square(StoreKind stored, bint scaled, const Shift* s, const Normalizer* normalizer,
                                  const real* tile, vreal* square) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(TRANSPOSE_ROWS):
        square[r] = normal_result_of(stored, s, normalizer, scaled, load(tile + r * PARTIALS))
    transpose_squares(square)

cdef inline void store_column(StoreKind stored, bint scaled, const Shift* shift, const Normalizer* normalizer_,
                              const real* tile, elem* y, Py_ssize_t stride, Py_ssize_t count,
                              Py_ssize_t room) noexcept nogil:
    """y (LANES, count), rows `stride` elements apart. Rows narrower than a square have no gaps: a store writes into the
    next row, whose own store follows. `room`: the number of elements from y on that may be written so."""
    cdef Shift s = shift[0]
    cdef Normalizer normalizer = normalizer_[0]
    cdef vreal[TRANSPOSE_ROWS] square
    cdef elem[TRANSPOSE_ROWS] line
    cdef Py_ssize_t start = 0, r
    if count >= TRANSPOSE_ROWS:
        while start < count:
            normalize_square(stored, scaled, &s, &normalizer, tile + start * PARTIALS, square)
            for r in range(LANES):
                store_square_row(y + start + r * stride, square, r)
            start = next_square(start, count)
    else:
        normalize_square(stored, scaled, &s, &normalizer, tile, square)
        for r in range(LANES):
            if r * count + TRANSPOSE_ROWS <= room:
                store_square_row(y + r * count, square, r)
            else:
                store_square_row(line, square, r)
                scatter(y + r * count, 1, line, count)

cdef inline void store_tile(StoreKind stored, bint scaled, const Rows* rows, const TilePosition* position,
                            Py_ssize_t j, Py_ssize_t count, const Shift* shift, const Normalizer* normalizer_,
                            const real* tile) noexcept nogil:
    """Results j .. j + count - 1 of each row, from tile (count, PARTIALS)."""
    cdef elem* y = position.first.y + j * rows.y_n
    cdef Py_ssize_t y_n = rows.y_n, y_inner = rows.y_inner, tile_rows = position.tile_rows
    cdef Shift[PARTIAL_REGS] s
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef vreal one
    cdef elem[LANES] line
    cdef Py_ssize_t k, c, a
    # lines that are no whole cache lines are stored through the caches, which combine them
    cdef bint nontemporal = rows.nontemporal and (<size_t>y | <size_t>(y_n * <Py_ssize_t>sizeof(elem))) % 64 == 0
    for c in range(PARTIAL_REGS):
        s[c] = shift[c]
        normalizer[c] = normalizer_[c]
    if tile_rows == PARTIALS and y_inner == 1:
        for k in range(count):
            for c in range(PARTIAL_REGS):
                one = normal_result_of(stored, &s[c], &normalizer[c], scaled, load(tile + k * PARTIALS + c * LANES))
                if nontemporal:
                    stream(<real*>(y + k * y_n + c * LANES), one)
                else:
                    store_elem(y + k * y_n + c * LANES, one)
    elif tile_rows == PARTIALS and y_n == 1 and (count >= TRANSPOSE_ROWS or y_inner == count):
        for c in range(PARTIAL_REGS):
            store_column(stored, scaled, &s[c], &normalizer[c], tile + c * LANES, y + c * LANES * y_inner, y_inner,
                         count, (PARTIALS - c * LANES) * count)
    elif y_inner == 1:
        for k in range(count):
            for c in range(registers_in_use(position)):
                one = normal_result_of(stored, &s[c], &normalizer[c], scaled, load(tile + k * PARTIALS + c * LANES))
                store_first(y + k * y_n + c * LANES, one, min(tile_rows - c * LANES, <Py_ssize_t>LANES))
    else:
        for k in range(count):
            for c in range(registers_in_use(position)):
                # one buffer a register: a load across two buffers would wait for the stores to both
                one = normal_result_of(stored, &s[c], &normalizer[c], scaled, load(tile + k * PARTIALS + c * LANES))
                store_elem(line, one)
                for a in range(min(tile_rows - c * LANES, <Py_ssize_t>LANES)):
                    y[k * y_n + (c * LANES + a) * y_inner] = line[a]

cdef void store_tile_of_results(const Rows* rows, const TilePosition* position, Py_ssize_t j, Py_ssize_t count,
                                const real* tile) noexcept nogil:
    """Stores tile (count, PARTIALS) as it is."""
    cdef Shift[PARTIAL_REGS] unused
    cdef Normalizer[PARTIAL_REGS] zero
    cdef int c
    for c in range(PARTIAL_REGS):
        no_temperature(&unused[c])
        zero[c].hi = zero[c].lo = zero[c].one = broadcast(0)
    store_tile(STORE_LOGS, False, rows, position, j, count, unused, zero, tile)     # minus 0

cdef inline vmask any_subnormal(Py_ssize_t count, real* tile, const Normalizer* normalizer) noexcept nogil:
    """In which rows a result may be subnormal. Weights whose results are 0 become 0: see results.pxi."""
    cdef vreal least = broadcast(INFINITY)
    cdef Py_ssize_t k
    if sizeof(elem) == sizeof(real):
        for k in range(count):
            least = vmin(load(tile + k * PARTIALS), least)
        if any_near_subnormal(least, normalizer.hi):
            return clear_vanishing(PARTIALS, count, tile, normalizer.hi)
    return nowhere()

cdef void round_subnormal(int registers, Py_ssize_t count, real* tile, Normalizer* normalizer) noexcept nogil:
    """Where results of a register's rows may be subnormal, replaces its weights by the results, rounded once, and its
    normalizer by 1."""
    cdef int c
    for c in range(registers):
        if any_lane(any_subnormal(count, tile + c * LANES, &normalizer[c])):
            mul_dd_in_place(tile + c * LANES, PARTIALS, count, normalizer[c].hi, normalizer[c].lo)
            normalizer[c].hi, normalizer[c].lo = broadcast(1), broadcast(0)

cdef void normalize_store_tile(StoreKind stored, const Rows* rows, const TilePosition* position, Py_ssize_t j,
                               Py_ssize_t count, const Shift* s, const Normalizer* normalizer_,
                               real* tile) noexcept nogil:
    # one call for each case, so that the compiler makes each its own loop
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef int c
    for c in range(PARTIAL_REGS):
        normalizer[c] = normalizer_[c]
    if stored != STORE_LOGS:
        round_subnormal(registers_in_use(position), count, tile, normalizer)
    if stored == STORE_WEIGHTS:
        store_tile(STORE_WEIGHTS, False, rows, position, j, count, s, normalizer, tile)
    elif stored == STORE_WEIGHTS_OR_ONE:
        store_tile(STORE_WEIGHTS_OR_ONE, False, rows, position, j, count, s, normalizer, tile)
    elif rows.scaled:
        store_tile(STORE_LOGS, True, rows, position, j, count, s, normalizer, tile)
    else:
        store_tile(STORE_LOGS, False, rows, position, j, count, s, normalizer, tile)
