# The results of a tile.

cdef inline void normalize_square(int stored, bint scaled, const Shift* s, const Normalizer* normalizer,
                                  const real* tile, vreal* square) noexcept nogil:
    cdef Py_ssize_t r
    for r in range(TRANSPOSE_ROWS):
        square[r] = normal_result_of(stored, s, normalizer, scaled, load(tile + r * PARTIALS))
    transpose_squares(square)

cdef inline void store_column(int stored, bint scaled, const Shift* shift, const Normalizer* normalizer_,
                              const real* tile, elem* y, Py_ssize_t stride, Py_ssize_t count,
                              Py_ssize_t room) noexcept nogil:
    """The results. `room`: how many elements, from y on, may be written if rows are narrower than a square; then they
    have no gaps, and what goes beyond a row is overwritten by the next."""
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

cdef inline void store_tile(int stored, bint scaled, const Rows* rows, Py_ssize_t o, Py_ssize_t i,
                            Py_ssize_t tile_rows, Py_ssize_t j, Py_ssize_t count, const Shift* shift,
                            const Normalizer* normalizer_, const real* tile) noexcept nogil:
    """The results, from the weights or elements in the tile."""
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner + j * rows.y_n
    cdef Py_ssize_t y_n = rows.y_n, y_inner = rows.y_inner
    cdef Shift[PARTIAL_REGS] s
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef vreal one
    cdef elem[LANES] line
    cdef Py_ssize_t k, c, a
    # a whole cache line at a time, or the caches had better gather it
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
    else:
        for k in range(count):
            for c in range(PARTIAL_REGS):
                # each register apart: a load of two that were stored one by one would wait for both
                store_elem(line, normal_result_of(stored, &s[c], &normalizer[c], scaled,
                                                  load(tile + k * PARTIALS + c * LANES)))
                for a in range(min(tile_rows - c * LANES, <Py_ssize_t>LANES)):
                    y[k * y_n + (c * LANES + a) * y_inner] = line[a]

cdef inline vmask may_be_subnormal(Py_ssize_t count, const real* tile, const Normalizer* normalizer) noexcept nogil:
    """Where a column's smallest op may be, or is 0: of a weight that is rounded away, or hidden."""
    cdef vreal least = broadcast(INFINITY)
    cdef Py_ssize_t k
    if sizeof(elem) != sizeof(real):            # 16 bits do not hold what is lost of them
        return nowhere()
    for k in range(count):
        least = vmin(load(tile + k * PARTIALS), least)
    return lt(mul_dd(least, normalizer.hi, normalizer.lo), broadcast(LEAST_NORMAL))

cdef void round_subnormal(Py_ssize_t count, real* tile, Normalizer* normalizer) noexcept nogil:
    """Makes the weights results where some of a column's may be subnormal; the factor is 1 then."""
    cdef int c
    for c in range(PARTIAL_REGS):
        if any_lane(may_be_subnormal(count, tile + c * LANES, &normalizer[c])):
            mul_dd_in_place(tile + c * LANES, PARTIALS, count, normalizer[c].hi, normalizer[c].lo)
            normalizer[c].hi, normalizer[c].lo = broadcast(1), broadcast(0)

cdef void write_tile(int stored, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows,
                     Py_ssize_t j, Py_ssize_t count, const Shift* s, const Normalizer* normalizer_,
                     real* tile) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef int c
    for c in range(PARTIAL_REGS):
        normalizer[c] = normalizer_[c]
    if stored != STORE_LOGS:
        round_subnormal(count, tile, normalizer)
    if stored == STORE_WEIGHTS:
        store_tile(STORE_WEIGHTS, False, rows, o, i, tile_rows, j, count, s, normalizer, tile)
    elif stored == STORE_WEIGHTS_OR_ONE:
        store_tile(STORE_WEIGHTS_OR_ONE, False, rows, o, i, tile_rows, j, count, s, normalizer, tile)
    elif rows.scaled:
        store_tile(STORE_LOGS, True, rows, o, i, tile_rows, j, count, s, normalizer, tile)
    else:
        store_tile(STORE_LOGS, False, rows, o, i, tile_rows, j, count, s, normalizer, tile)
