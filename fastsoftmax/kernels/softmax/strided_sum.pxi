# Pass 2 of a tile: exp of a block, and its sums. Element j of a row joins partial sum j % PARTIALS, as in
# dense_sum.pxi.
#
# A full block takes one step: four elements of a partial sum together. The last block of a row, which may be nearly
# empty, takes two: exp_block, then sum_block.

cdef inline Py_ssize_t kept_at(SumKind sum, Py_ssize_t n) noexcept nogil:
    """How far behind the elements of a tile their weights are kept: those of SUM_WEIGHTS replace them."""
    return (ceil_div(n, 4) * 4 + 1) * PARTIALS if sum == SUM_KEEPING_WEIGHTS else 0

cdef inline bint any_center(const Shift* s) noexcept nogil:
    """Whether the center of a row is not zero: see exp4_scores."""
    cdef vreal largest_center = broadcast(0)
    cdef int c
    for c in range(PARTIAL_REGS):
        largest_center = vmax(vabs(s[c].center), largest_center)
    return hmax(largest_center) != 0

cdef inline void full_block(SumKind sum, bint scaled, bint centered, int registers, const Shift* shift, real* x,
                            Py_ssize_t kept, TileWorkspace* tile, vcount* ties) noexcept nogil:
    cdef Shift s
    cdef vreal[4] e, p, f
    cdef vreal total, lost, rest, moment
    cdef Py_ssize_t part, at
    cdef int a, c
    for c in range(registers):
        s = shift[c]
        for part in range(PARTIALS):
            at = part * PARTIALS + c * LANES
            for a in range(4):
                e[a] = load(x + at + a * PARTIALS * PARTIALS)
            exp4_scores(e, &s, False, scaled, centered, p, f)
            if keeps_weights_of(sum):
                for a in range(4):
                    store(x + at + kept + a * PARTIALS * PARTIALS, fma_(p[a], f[a], f[a]))
            if sum != SUM_WEIGHTS:
                for a in range(4):
                    exclude_max(sum, &s, e[a], &f[a], &ties[c])
            if sum == SUM_MOMENTS:
                moment = broadcast(0)
                for a in range(4):
                    moment = fma_(fma_(p[a], f[a], f[a]), score_below_max(&s, e[a], scaled), moment)
                tile.moments[part * PARTIAL_REGS + c] = dd_add(tile.moments[part * PARTIAL_REGS + c],
                                                               dd_of_sum(moment, broadcast(0)))
            total = load(tile.total + at)
            lost = load(tile.lost + at)
            rest = load(tile.rest + at)
            add_weights(sum, &total, &lost, &rest, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)
            store(tile.rest + at, rest)

cdef inline void exp_block(SumKind sum, bint scaled, const Shift* shift, Py_ssize_t count, real* x, Py_ssize_t kept,
                           TileWorkspace* tile, vcount* ties) noexcept nogil:
    """Step 1: p and f of x (count, PARTIALS) into `tile`; weights at x + kept."""
    cdef Shift[PARTIAL_REGS] s
    cdef vreal[4] e, p, f
    cdef Py_ssize_t step, k
    cdef int a, c
    for c in range(PARTIAL_REGS):
        s[c] = shift[c]
    for k in range(count * PARTIAL_REGS, ceil_div(count * PARTIAL_REGS, 4) * 4):  # x has room for whole steps
        store(x + k * LANES, broadcast(-INFINITY))
    for step in range(ceil_div(count * PARTIAL_REGS, 4)):
        k = step * (4 * LANES)
        for a in range(4):
            e[a] = load(x + k + a * LANES)
        exp4_scores(e, s, True, scaled, True, p, f)
        for a in range(4):
            if keeps_weights_of(sum):
                store(x + k + kept + a * LANES, fma_(p[a], f[a], f[a]))
            if sum != SUM_WEIGHTS:
                exclude_max(sum, &s[a % PARTIAL_REGS], e[a], &f[a], &ties[a % PARTIAL_REGS])
            store(tile.p + k + a * LANES, p[a])
            store(tile.f + k + a * LANES, f[a])

cdef inline void load_weights(const TileWorkspace* tile, Py_ssize_t part, int c, Py_ssize_t count, vreal* p,
                              vreal* f) noexcept nogil:
    """p and f of elements part, part + PARTIALS, ..., which join one partial sum; zeros beyond the end of the block."""
    cdef Py_ssize_t at = part * PARTIALS + c * LANES
    cdef int a
    for a in range(4):
        p[a] = broadcast(0)
        f[a] = broadcast(0)
        if part + a * PARTIALS < count:
            p[a] = load(tile.p + at + a * PARTIALS * PARTIALS)
            f[a] = load(tile.f + at + a * PARTIALS * PARTIALS)

cdef inline vdd moment_of(const Shift* s, bint scaled, const real* x, const TileWorkspace* tile, Py_ssize_t part, int c,
                          Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at = part * PARTIALS + c * LANES
    cdef vreal[4] p, f
    cdef vreal moment = broadcast(0)
    cdef int a
    load_weights(tile, part, c, count, p, f)
    for a in range(4):
        if part + a * PARTIALS < count:
            moment = fma_(fma_(p[a], f[a], f[a]), score_below_max(s, load(x + at + a * PARTIALS * PARTIALS), scaled),
                          moment)
    return dd_of_sum(moment, broadcast(0))

cdef inline void sum_block(SumKind sum, bint scaled, const Shift* s, Py_ssize_t count, const real* x,
                           TileWorkspace* tile) noexcept nogil:
    """Step 2: adds p and f of the block to the running sums in `tile`."""
    cdef vreal[4] p, f
    cdef vreal total, lost, rest
    cdef Py_ssize_t part, at
    cdef int c
    for part in range(min(count, <Py_ssize_t>PARTIALS)):
        for c in range(PARTIAL_REGS):
            at = part * PARTIALS + c * LANES
            load_weights(tile, part, c, count, p, f)
            if sum == SUM_MOMENTS:
                tile.moments[part * PARTIAL_REGS + c] = dd_add(tile.moments[part * PARTIAL_REGS + c],
                                                               moment_of(&s[c], scaled, x, tile, part, c, count))
            total = load(tile.total + at)
            lost = load(tile.lost + at)
            rest = load(tile.rest + at)
            add_weights(sum, &total, &lost, &rest, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)
            store(tile.rest + at, rest)

cdef inline void exp_and_sum_tile(SumKind sum, bint scaled, int registers, const Shift* s, Py_ssize_t count,
                                  real* x, Py_ssize_t kept, TileWorkspace* tile, vcount* ties) noexcept nogil:
    """x (count, PARTIALS). Adds to the running sums in `tile`, and keeps weights at x + kept."""
    if count == BLOCK and not scaled and is_fast_sum(sum) and not any_center(s):
        full_block(sum, False, False, registers, s, x, kept, tile, ties)
    elif count == BLOCK:
        full_block(sum, scaled, True, registers, s, x, kept, tile, ties)
    else:
        exp_block(sum, scaled, s, count, x, kept, tile, ties)
        sum_block(sum, scaled, s, count, x, tile)

cdef void exp_and_sum_block(SumKind sum, bint scaled, int registers, const Shift* s, Py_ssize_t count, real* x,
                            Py_ssize_t kept, TileWorkspace* tile, vcount* ties) noexcept nogil:
    """The rows of so many registers; in a block that is not full, of all."""
    # one call for each case, so that the compiler makes each its own loop
    if sum == SUM_WEIGHTS and scaled:
        exp_and_sum_tile(SUM_WEIGHTS, True, registers, s, count, x, 0, tile, ties)
    elif sum == SUM_WEIGHTS:
        exp_and_sum_tile(SUM_WEIGHTS, False, registers, s, count, x, 0, tile, ties)
    elif sum == SUM_MOMENTS:
        exp_and_sum_tile(SUM_MOMENTS, sums_as_scaled(SUM_MOMENTS, scaled), registers, s, count, x, 0, tile, ties)
    elif sum == SUM_EXCLUDING_MAX and scaled:
        exp_and_sum_tile(SUM_EXCLUDING_MAX, True, registers, s, count, x, 0, tile, ties)
    elif sum == SUM_EXCLUDING_MAX:
        exp_and_sum_tile(SUM_EXCLUDING_MAX, False, registers, s, count, x, 0, tile, ties)
    elif sum == SUM_KEEPING_WEIGHTS and scaled:
        exp_and_sum_tile(SUM_KEEPING_WEIGHTS, True, registers, s, count, x, kept, tile, ties)
    elif sum == SUM_KEEPING_WEIGHTS:
        exp_and_sum_tile(SUM_KEEPING_WEIGHTS, False, registers, s, count, x, kept, tile, ties)
    else:
        exp_and_sum_tile(SUM_EXACT, sums_as_scaled(SUM_EXACT, scaled), registers, s, count, x, 0, tile, ties)
