# From the running sums of a tile to its normalizers. A run, and then a chunk, ends after the same elements as in
# dense_sum.pxi.

cdef inline void clear_tile_sums(SumKind sum, TileWorkspace* tile) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        tile.weights[k] = dd_zero()
        if sum == SUM_MOMENTS:
            tile.moments[k] = dd_zero()

cdef inline void start_chunk(SumKind sum, Py_ssize_t n, TileWorkspace* tile) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        store(tile.total + k * LANES, start_of(sum, n))
        store(tile.lost + k * LANES, broadcast(0))
        store(tile.rest + k * LANES, broadcast(0))

cdef inline void load_sums(SumKind sum, const TileWorkspace* tile, Py_ssize_t k, vreal* total,
                           vreal* lost) noexcept nogil:
    """The running sums, with the rest added."""
    cdef vreal rest = load(tile.rest + k * LANES)
    total[0], lost[0] = load(tile.total + k * LANES), load(tile.lost + k * LANES)
    add_rest(sum, total, lost, &rest)

cdef void end_run(SumKind sum, TileWorkspace* tile) noexcept nogil:
    cdef vreal total, lost
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        load_sums(sum, tile, k, &total, &lost)
        store(tile.total + k * LANES, total)
        store(tile.lost + k * LANES, lost)
        store(tile.rest + k * LANES, broadcast(0))

cdef void end_chunk(SumKind sum, Py_ssize_t n, TileWorkspace* tile) noexcept nogil:
    cdef vreal total, lost
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        load_sums(sum, tile, k, &total, &lost)
        tile.weights[k] = dd_add(tile.weights[k], dd_of_sum(total - start_of(sum, n), lost))

cdef Normalizer finalize_column(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, int c,
                                const TileWorkspace* tile, vcount ties, vmask* needs_refinement) noexcept nogil:
    cdef vdd_sum weight_sum = dd_sum_start(), moments = dd_sum_start()
    cdef vdd weights
    cdef int part
    for part in range(PARTIALS):
        weight_sum.chain[part % 4] = dd_add(weight_sum.chain[part % 4], tile.weights[part * PARTIAL_REGS + c])
    weights = dd_sum_end(weight_sum)
    if sum == SUM_WEIGHTS:
        return normalizer_of(SUM_WEIGHTS, s, scaled, False, n, weights, weights, real_count(ties), needs_refinement)
    if sum == SUM_MOMENTS:
        for part in range(PARTIALS):
            moments.chain[part % 4] = dd_add(moments.chain[part % 4], tile.moments[part * PARTIAL_REGS + c])
        return normalizer_of(SUM_MOMENTS, s, True, False, n, weights, dd_sum_end(moments), real_count(ties),
                             needs_refinement)
    if sum == SUM_EXCLUDING_MAX:
        return normalizer_of(SUM_EXCLUDING_MAX, s, scaled, False, n, weights, weights, real_count(ties),
                             needs_refinement)
    return normalizer_of(SUM_EXACT, s, scaled, False, n, weights, weights, real_count(ties), needs_refinement)
