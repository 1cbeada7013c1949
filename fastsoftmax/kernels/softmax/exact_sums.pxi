# Sums of terms of any sign for gradients and losses, in the order of the other sums of a row: math/exact_sum.h.
#
# Element k joins partial sum k % PARTIALS; after each chunk the partial sums join double-word sums, which are added up
# at the end. So the result does not depend on whether the row was dense or in a tile.

cdef struct ExactSums:                          # of a dense row
    vdd[PARTIAL_REGS] running                   # of the chunk
    vdd[PARTIAL_REGS] chunks

cdef inline void clear_exact(ExactSums* sums) noexcept nogil:
    cdef int v
    for v in range(PARTIAL_REGS):
        sums.running[v] = dd_zero()
        sums.chunks[v] = dd_zero()

cdef inline void end_exact_chunk(ExactSums* sums) noexcept nogil:
    cdef int v
    for v in range(PARTIAL_REGS):
        sums.chunks[v] = dd_add(sums.chunks[v], dd_end(sums.running[v]))
        sums.running[v] = dd_zero()

cdef inline void add_exact_chunks(const ExactSums* parts, Py_ssize_t chunks, ExactSums* sums) noexcept nogil:
    """The sums of a row from those of its chunks."""
    cdef Py_ssize_t chunk
    cdef int v
    clear_exact(sums)
    for chunk in range(chunks):
        for v in range(PARTIAL_REGS):
            sums.chunks[v] = dd_add(sums.chunks[v], parts[chunk].chunks[v])

cdef inline void split_exact(vdd sum, vreal* hi, vreal* lo) noexcept nogil:
    dd_split(sum, hi, lo)
    lo[0] = finite_or_none(lo[0])

# The same for a tile of rows of n elements: `running` and `chunks` (min(n, PARTIALS), PARTIAL_REGS), a line of lanes
# for each partial sum that has elements.

cdef inline Py_ssize_t exact_tile_parts(Py_ssize_t n) noexcept nogil:
    return min(n, <Py_ssize_t>PARTIALS)

cdef inline void clear_exact_tile(Py_ssize_t n, vdd* running, vdd* chunks) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(exact_tile_parts(n) * PARTIAL_REGS):
        running[k] = dd_zero()
        chunks[k] = dd_zero()

cdef void end_exact_tile_chunk(Py_ssize_t n, vdd* running, vdd* chunks) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(exact_tile_parts(n) * PARTIAL_REGS):
        chunks[k] = dd_add(chunks[k], dd_end(running[k]))
        running[k] = dd_zero()

cdef inline vdd exact_tile_sum(Py_ssize_t n, int c, const vdd* chunks) noexcept nogil:
    cdef vdd_sum sum = dd_sum_start()
    cdef Py_ssize_t part
    for part in range(exact_tile_parts(n)):
        sum.chain[part % 4] = dd_add(sum.chain[part % 4], chunks[part * PARTIAL_REGS + c])
    return dd_sum_end(sum)
