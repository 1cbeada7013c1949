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
        if has_half_runs(n):
            store(tile.half + k * LANES, broadcast(0))
            tile.runs[k] = dd_zero()

cdef inline bint ends_run(Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    """Whether a run, or the half of one, ends after j elements of a row."""
    return RUN > UNROLL and (j % RUN == 0 or has_half_runs(n) and j % (RUN // 2) == 0)

cdef void end_runs_of_tile(SumKind sum, Py_ssize_t j, Py_ssize_t n, TileWorkspace* tile) noexcept nogil:
    """After the first j elements of the rows."""
    cdef vreal total, lost, rest, half
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        total, lost, rest = load(tile.total + k * LANES), load(tile.lost + k * LANES), load(tile.rest + k * LANES)
        if has_half_runs(n):
            half = load(tile.half + k * LANES)
        if j % RUN == 0:
            end_run(sum, has_half_runs(n), &total, &lost, &rest, &half, &tile.runs[k])
        else:
            end_half_run(&lost, &half)
        store(tile.total + k * LANES, total)
        store(tile.lost + k * LANES, lost)
        store(tile.rest + k * LANES, rest)
        if has_half_runs(n):
            store(tile.half + k * LANES, half)

cdef void end_chunk(SumKind sum, Py_ssize_t n, TileWorkspace* tile) noexcept nogil:
    cdef vreal total, lost, rest, half = broadcast(0)
    cdef vdd runs = dd_zero()
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        total, lost, rest = load(tile.total + k * LANES), load(tile.lost + k * LANES), load(tile.rest + k * LANES)
        add_rest(sum, &total, &lost, &rest)
        if has_half_runs(n):
            half, runs = load(tile.half + k * LANES), tile.runs[k]
        tile.weights[k] = dd_add(tile.weights[k], sum_of_chunk(sum, n, has_half_runs(n), total, lost, half, runs))

cdef Normalizer finalize_column(SumKind sum, bint scaled, const Shift* s, Py_ssize_t n, int c,
                                const TileWorkspace* tile, vreal ties, Normalizer* of_weights,
                                vmask* needs_refinement) noexcept nogil:
    """of_weights is written for SUM_KEEPING_WEIGHTS alone."""
    cdef vdd_sum weight_sum = dd_sum_start(), moments = dd_sum_start()
    cdef vdd weights
    cdef int part
    for part in range(PARTIALS):
        weight_sum.chain[part % 4] = dd_add(weight_sum.chain[part % 4], tile.weights[part * PARTIAL_REGS + c])
    weights = dd_sum_end(weight_sum)
    if sum == SUM_MOMENTS:
        for part in range(PARTIALS):
            moments.chain[part % 4] = dd_add(moments.chain[part % 4], tile.moments[part * PARTIAL_REGS + c])
    if sum == SUM_KEEPING_WEIGHTS:
        of_weights[0] = normalizer_of_weights(s, scaled, weights, ties)
    return normalizer_of(sum, s, scaled, False, n, weights, dd_sum_end(moments), ties, needs_refinement)
