# The filters. Each sets the bound of the candidates; `settle` makes a list of those that it keeps.

cdef inline bint is_kept(const Candidates* c, Py_ssize_t i) noexcept nogil:
    return not c.has_bound or c.key[i] > c.bound.key or (c.key[i] == c.bound.key and i <= c.bound.last)

cdef void settle(Candidates* c, SamplingWorkspace* w) noexcept nogil:
    """Makes the kept candidates a list, in the order of the row; their lists may be those before, since a place never
    becomes larger."""
    cdef Py_ssize_t picks, i, k, count = 0
    if not c.has_bound:
        return
    picks = collect(c.key, c.count, c.bound.key, INFINITY, w.pick)
    for i in range(picks):
        k = w.pick[i]
        if is_kept(c, k):
            w.x[count] = c.x[k]
            w.at[count] = k if c.at == NULL else c.at[k]
            if c.is_weighed:
                w.mass[count] = c.mass[k]
            count += 1
    c.count, c.x, c.key, c.at, c.has_bound, c.has_chunks = count, w.x, w.x, w.at, False, False
    if c.is_weighed:
        memset(w.mass + count, 0, UNROLL * sizeof(int64_t))
        add_up(c)

cdef void add_up(Candidates* c) noexcept nogil:
    cdef Py_ssize_t i
    c.total = mass_sum(0)
    for i in range(c.count):
        c.total = sum_plus(c.total, mass_sum(c.mass[i]))

cdef void weigh(Candidates* c, SamplingWorkspace* w) noexcept nogil:
    """The masses of all candidates."""
    cdef Py_ssize_t chunk, start
    if c.is_weighed:
        return
    c.total, c.mass, c.is_weighed = mass_sum(0), w.mass, True
    for chunk in range(ceil_div(c.count, CHUNK)):
        start = chunk * CHUNK
        c.total = sum_plus(c.total, mass_sum(weigh_chunk(
            c.x + start, min(c.count - start, <Py_ssize_t>CHUNK), c.top, c.scale, w.mass + start)))

cdef inline MassSum needed_of(const Candidates* c, double p) noexcept nogil:
    """The least that a filter keeps: one token always stays."""
    cdef MassSum needed = share_of(c.total, p, True)
    return mass_sum(1) if sum_less(needed, mass_sum(1)) else needed

cdef void keep_top_k(Candidates* c, double k, SamplingWorkspace* w) noexcept nogil:
    if k < c.count:
        select(c, True, mass_sum(<int64_t>k), w)

cdef void keep_top_p(Candidates* c, double p, SamplingWorkspace* w) noexcept nogil:
    if p < 1:
        settle(c, w)
        weigh(c, w)
        select(c, False, needed_of(c, p), w)

cdef void keep_min_p(Candidates* c, double p) noexcept nogil:
    """Logits are compared, so that equal ones are treated alike."""
    cdef double least
    cdef real key
    if p > 0:
        least = min(c.top + log2(p) / c.scale, c.top)
        key = <real>least
        if key < least:
            key = next_above(key)
        if not c.has_bound or key > c.bound.key:
            c.bound.key, c.bound.last, c.has_bound, c.has_chunks = key, c.count - 1, True, False

cdef double mean_log2_weight(const Candidates* c) noexcept nogil:
    """The mean of t = log2(weight). In MEAN_PARTIALS sums, for registers of any size; masses after the last are 0."""
    cdef real[UNROLL] padded
    cdef vdouble[MEAN_PARTIALS] sum
    cdef vdouble t
    cdef double[MEAN_PARTIALS] lane
    cdef const real* block
    cdef Py_ssize_t step, k
    cdef int d, part
    for d in range(MEAN_PARTIALS // DOUBLES):
        sum[d] = broadcast_double(0)
    for step in range(ceil_div(c.count, UNROLL)):
        k = step * UNROLL
        block = block_of(c.x, k, c.count, padded)
        for d in range(UNROLL // DOUBLES):
            part = d & (MEAN_PARTIALS // DOUBLES - 1)
            t = log2_weight(load_doubles(block + d * DOUBLES), broadcast_double(c.top), broadcast_double(c.scale))
            sum[part] = sum[part] + t * mass_to_double(load_masses(c.mass + k + d * DOUBLES))
    for d in range(MEAN_PARTIALS // DOUBLES):
        store_doubles(lane + d * DOUBLES, sum[d])
    for d in range(1, MEAN_PARTIALS):
        lane[0] += lane[d]
    return lane[0] / sum_to_double(c.total)

cdef void store_typicality(const real* x, Py_ssize_t count, double top, double scale, double mean,
                           real* key) noexcept nogil:
    """key = -abs(log p + entropy), in base 2. x and key may be the same."""
    cdef Py_ssize_t i
    for i in range(count):
        key[i] = <real>-fabs((<double>x[i] - top) * scale - mean)

cdef void keep_typical_p(Candidates* c, double p, SamplingWorkspace* w) noexcept nogil:
    """-log p - entropy is mean(t) - t, in base 2. The largest may go. If what is kept is less than its mass was, masses
    are computed anew from the largest that is kept, so that shares are as exact as ever."""
    cdef MassSum needed
    cdef Py_ssize_t i
    if p == 1:
        return
    settle(c, w)
    weigh(c, w)
    store_typicality(c.x, c.count, c.top, c.scale, mean_log2_weight(c), w.key)
    c.key, needed = w.key, needed_of(c, p)
    select(c, False, needed, w)
    if not sum_less(needed, mass_sum(<int64_t>1 << MASS_BITS)):
        return
    settle(c, w)
    c.top, c.is_weighed = -INFINITY, False
    for i in range(c.count):
        c.top = max(c.top, <double>c.x[i])

cdef void apply_filters(Candidates* c, const RowOptions* options, SamplingWorkspace* w) noexcept nogil:
    keep_top_k(c, options.top_k, w)
    keep_top_p(c, options.top_p, w)
    keep_min_p(c, options.min_p)
    keep_typical_p(c, options.typical_p, w)
    if c.has_bound and not c.is_weighed and collect(c.key, c.count, c.bound.key, INFINITY, NULL) * MOST_OF < c.count:
        settle(c, w)
