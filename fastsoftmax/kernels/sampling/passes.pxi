# Passes over the candidates of a row, UNROLL at a time. The last few are copied, with -inf after them.

cdef inline const real* block_of(const real* x, Py_ssize_t k, Py_ssize_t count, real* padded) noexcept nogil:
    """Elements k .. k + UNROLL - 1 of x (count), -inf beyond its end; in `padded` if there are such."""
    cdef Py_ssize_t i
    if k + UNROLL <= count:
        return x + k
    for i in range(UNROLL):
        padded[i] = x[k + i] if k + i < count else -INFINITY
    return padded

cdef real largest(const real* x, Py_ssize_t count, bint* has_nan) noexcept nogil:
    """The largest of x (count), and whether there is a NaN, which it leaves out."""
    cdef real[UNROLL] padded
    cdef vreal[4] row_max
    cdef vmask[4] whole
    cdef vreal a
    cdef const real* block
    cdef Py_ssize_t step, k
    cdef int v
    for v in range(4):
        row_max[v] = broadcast(-INFINITY)
        whole[v] = eq(row_max[v], row_max[v])
    for step in range(ceil_div(count, UNROLL)):
        k = step * UNROLL
        block = block_of(x, k, count, padded)
        for v in range(4 * PARTIAL_REGS):
            a = load(block + v * LANES)
            row_max[v & 3] = vmax(a, row_max[v & 3])
            whole[v & 3] = both(whole[v & 3], eq(a, a))
    whole[0] = both(both(whole[0], whole[1]), both(whole[2], whole[3]))
    has_nan[0] = any_lane(eq(select_or_zero(whole[0], broadcast(1)), broadcast(0)))
    return hmax(vmax(vmax(row_max[0], row_max[1]), vmax(row_max[2], row_max[3])))

cdef int64_t weigh_chunk(const real* x, Py_ssize_t count, double top, double scale, int64_t* mass) noexcept nogil:
    """The sum of the masses of x (count <= CHUNK). They are stored in `mass`, with room for a whole UNROLL, or NULL."""
    cdef real[UNROLL] padded
    cdef vlong[4] sum
    cdef vlong m
    cdef const real* block
    cdef Py_ssize_t step, k
    cdef int d
    for d in range(4):
        sum[d] = no_mass()
    for step in range(ceil_div(count, UNROLL)):
        k = step * UNROLL
        block = block_of(x, k, count, padded)
        for d in range(UNROLL // DOUBLES):
            m = mass_of(log2_weight(load_doubles(block + d * DOUBLES), broadcast_double(top), broadcast_double(scale)))
            sum[d & 3] = sum[d & 3] + m
            if mass != NULL:
                store_masses(mass + k + d * DOUBLES, m)
    return mass_in_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]))

cdef int64_t mass_of_keys_above(const real* key, const int64_t* mass, Py_ssize_t count, double bound) noexcept nogil:
    """The sum of mass (count <= CHUNK) where key > bound. Of `mass` a whole UNROLL is read."""
    cdef real[UNROLL] padded
    cdef vlong[4] sum
    cdef const real* block
    cdef Py_ssize_t step, k
    cdef int d
    for d in range(4):
        sum[d] = no_mass()
    for step in range(ceil_div(count, UNROLL)):
        k = step * UNROLL
        block = block_of(key, k, count, padded)
        for d in range(UNROLL // DOUBLES):
            sum[d & 3] = sum[d & 3] + mass_above(load_doubles(block + d * DOUBLES), broadcast_double(bound),
                                                 load_masses(mass + k + d * DOUBLES))
    return mass_in_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]))

cdef inline uint64_t bits_below(Py_ssize_t count) noexcept nogil:
    """The lowest `count` bits."""
    return ~<uint64_t>0 if count >= 64 else (<uint64_t>1 << count) - 1

cdef Py_ssize_t collect(const real* key, Py_ssize_t count, real low, real high, Py_ssize_t* places) noexcept nogil:
    """How many of key (count) are from low to high, and where they are, unless `places` is NULL."""
    cdef real[UNROLL] padded
    cdef const real* block
    cdef vreal a
    cdef Py_ssize_t step, k, found = 0
    cdef uint64_t bits
    cdef int v
    for step in range(ceil_div(count, UNROLL)):
        k = step * UNROLL
        block = block_of(key, k, count, padded)
        bits = 0
        for v in range(4 * PARTIAL_REGS):
            a = load(block + v * LANES)
            bits |= lane_bits(either(lt(a, broadcast(low)), lt(broadcast(high), a))) << (v * LANES)
        bits = ~bits & bits_below(min(count - k, <Py_ssize_t>UNROLL))
        if places == NULL:
            found += count_bits(bits)
            continue
        while bits:
            places[found] = k + first_bit(bits)
            found += 1
            bits &= bits - 1
    return found

cdef Py_ssize_t count_above(const real* key, Py_ssize_t count, real bound) noexcept nogil:
    """How many of key (count) are greater than bound."""
    return 0 if bound == INFINITY else collect(key, count, next_above(bound), INFINITY, NULL)
