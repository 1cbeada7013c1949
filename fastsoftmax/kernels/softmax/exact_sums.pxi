# Sums of terms of any sign for gradients and losses: compensated, in the order of the other sums of a row.
#
# Element k joins partial sum k % PARTIALS; after each chunk the partial sums join double-word sums, which are added up
# at the end. So the result does not depend on whether the row was dense or in a tile.

cdef struct ExactSums:                          # of a dense row
    vreal[PARTIAL_REGS] total, rest             # of the chunk; rest: what the rounding of total has lost
    vdd[PARTIAL_REGS] chunks

cdef inline void clear_exact(ExactSums* sums) noexcept nogil:
    cdef int v
    for v in range(PARTIAL_REGS):
        sums.total[v] = sums.rest[v] = broadcast(0)
        sums.chunks[v] = dd_zero()

cdef inline void add_exact(vreal term, vreal term_lo, vreal* total, vreal* rest) noexcept nogil:
    """Adds term + term_lo."""
    add_to(total, rest, term)
    rest[0] = rest[0] + term_lo

cdef inline vreal finite_or_none(vreal rest) noexcept nogil:
    """An infinite term has no rounding error, but NaN is computed for it."""
    return vselect(lt(vabs(rest), broadcast(INFINITY)), rest, broadcast(0))

cdef inline void end_exact_chunk(ExactSums* sums) noexcept nogil:
    cdef int v
    for v in range(PARTIAL_REGS):
        sums.chunks[v] = dd_add(sums.chunks[v], dd_of_sum(sums.total[v], finite_or_none(sums.rest[v])))
        sums.total[v] = sums.rest[v] = broadcast(0)

cdef inline void split_exact(vdd sum, vreal* hi, vreal* lo) noexcept nogil:
    dd_split(sum, hi, lo)
    lo[0] = finite_or_none(lo[0])

cdef inline void clear_exact_tile(TileWorkspace* tile) noexcept nogil:
    """The same for a tile: a line of lanes for each partial sum."""
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        tile.weights[k] = dd_zero()
        store(tile.total + k * LANES, broadcast(0))
        store(tile.lost + k * LANES, broadcast(0))

cdef void end_exact_tile_chunk(TileWorkspace* tile) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        tile.weights[k] = dd_add(tile.weights[k], dd_of_sum(load(tile.total + k * LANES),
                                                            finite_or_none(load(tile.lost + k * LANES))))
        store(tile.total + k * LANES, broadcast(0))
        store(tile.lost + k * LANES, broadcast(0))

cdef inline vdd exact_tile_sum(int c, const TileWorkspace* tile) noexcept nogil:
    cdef vdd_sum sum = dd_sum_start()
    cdef int part
    for part in range(PARTIALS):
        sum.chain[part % 4] = dd_add(sum.chain[part % 4], tile.weights[part * PARTIAL_REGS + c])
    return dd_sum_end(sum)
