# The token that a uniform number draws from the candidates of a row: the inverse of the cumulative masses.

cdef int64_t kept_mass(const Candidates* c, Py_ssize_t start, Py_ssize_t count) noexcept nogil:
    """The sum of the masses of the kept candidates from `start` on, count <= CHUNK. They have been weighed."""
    cdef Py_ssize_t ties = min(max(c.bound.last + 1 - start, <Py_ssize_t>0), count) if c.has_bound else count
    cdef double bound = c.bound.key if c.has_bound else -INFINITY
    return (mass_of_keys_above(c.key + start, c.mass + start, ties, next_double_below(bound))
            + mass_of_keys_above(c.key + start + ties, c.mass + start + ties, count - ties, bound))

cdef Py_ssize_t draw(Candidates* c, double uniform, SamplingWorkspace* w) noexcept nogil:
    """The place of the token among the candidates. c.total becomes the mass of those that are kept."""
    cdef Py_ssize_t start = 0, count, chunk, i
    cdef int64_t left, mass
    cdef const int64_t* masses
    cdef MassSum target
    if c.has_bound:
        weigh(c, w)
    c.total = mass_sum(0)
    for chunk in range(ceil_div(c.count, CHUNK)):
        start = chunk * CHUNK
        count = min(c.count - start, <Py_ssize_t>CHUNK)
        if c.has_chunks:
            pass
        elif c.is_weighed:
            w.chunk_mass[chunk] = kept_mass(c, start, count)
        else:
            w.chunk_mass[chunk] = weigh_chunk(c.x + start, count, c.top, c.scale, NULL)
        c.total = sum_plus(c.total, mass_sum(w.chunk_mass[chunk]))
    target = share_of(c.total, uniform, False)
    chunk = 0
    while not sum_less(target, mass_sum(w.chunk_mass[chunk])):
        target = sum_minus(target, mass_sum(w.chunk_mass[chunk]))
        chunk += 1
    start, left = chunk * CHUNK, low_word(target)
    if c.is_weighed:
        mass = kept_mass(c, start, min(c.count - start, <Py_ssize_t>UNROLL))
        while left >= mass:                     # in blocks first: one by one, which are kept is hard to predict
            left -= mass
            start += UNROLL
            mass = kept_mass(c, start, min(c.count - start, <Py_ssize_t>UNROLL))
        masses = c.mass + start
    else:
        weigh_chunk(c.x + start, min(c.count - start, <Py_ssize_t>CHUNK), c.top, c.scale, w.masses)
        masses = w.masses
    i = 0
    while True:
        mass = masses[i] if is_kept(c, start + i) else 0
        if left < mass:
            return start + i
        left -= mass
        i += 1

cdef double log_probability(const Candidates* c, Py_ssize_t i) noexcept nogil:
    """Of a candidate that was drawn: log(weight) - log(sum of weights), which is 1 at least. Digits are kept near 0."""
    cdef double others = sum_to_double(sum_minus(c.total, mass_sum(<int64_t>1 << MASS_BITS))) / <double>(
        <int64_t>1 << MASS_BITS)
    return (<double>c.x[i] - c.top) * c.scale * LN2_DOUBLE - log1p(others)
