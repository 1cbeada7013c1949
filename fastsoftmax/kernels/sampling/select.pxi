# The bound of the smallest set of candidates, largest keys first, whose measure reaches `needed`: by selection.
#
#   1. A range of keys that holds the bound: a sample of the candidates tells, with a margin, where it about is. Step 2
#      proves it right or wrong; if it is wrong, the next range is wider, and the last is that of all keys.
#   2. The candidates in this range, `picks`, and the measure above it: passes over registers.
#   3. Their measures in a histogram over keys; the bucket in which the sum of measures reaches `needed` takes their
#      place, until all keys are equal.

cdef inline int64_t measure_of(const Candidates* c, bint by_count, Py_ssize_t i) noexcept nogil:
    return 1 if by_count else c.mass[i]

cdef MassSum measure_above(const Candidates* c, bint by_count, real bound, SamplingWorkspace* w) noexcept nogil:
    """The measure of all candidates with keys above the bound; the masses of chunks of them in chunk_mass."""
    cdef MassSum sum = mass_sum(0)
    cdef Py_ssize_t chunk, start
    if by_count:
        return mass_sum(count_above(c.key, c.count, bound))
    for chunk in range(ceil_div(c.count, CHUNK)):
        start = chunk * CHUNK
        w.chunk_mass[chunk] = 0 if bound == INFINITY else mass_of_keys_above(
            c.key + start, c.mass + start, min(c.count - start, <Py_ssize_t>CHUNK), bound)
        sum = sum_plus(sum, mass_sum(w.chunk_mass[chunk]))
    return sum

# Step 3.

cdef struct Histogram:                          # buckets of keys, from the largest key down
    double high
    double per_key                              # buckets for a unit of the key; 0: buckets of keys as integers
    uint64_t high_bits
    int shift, last                             # the last bucket

cdef Histogram histogram_of(double low, double high, Py_ssize_t count, bint linear) noexcept nogil:
    """Buckets of equal width. Those of keys as integers halve the range at least, however keys are distributed."""
    cdef Histogram h
    cdef int bits = BUCKET_BITS if count > FEW // 16 else BUCKET_BITS - 4
    h.high, h.last = high, (1 << bits) - 1
    h.per_key = <double>h.last / (high - low) if linear else 0
    if not 0 < h.per_key < INFINITY:
        h.per_key = 0
        h.high_bits = ordered(high)
        h.shift = max(0, leading_bit(h.high_bits - ordered(low)) + 1 - bits)
        h.last = <int>((h.high_bits - ordered(low)) >> h.shift)
    return h

cdef inline int bucket_of(const Histogram* h, double key) noexcept nogil:
    if h.per_key > 0:
        return min(<int>((h.high - key) * h.per_key), h.last)
    return <int>((h.high_bits - ordered(key)) >> h.shift)

cdef double crossing(SamplingWorkspace* w, Py_ssize_t count, MassSum needed, MassSum* above) noexcept nogil:
    """The key, among pick_key (count), at which the sum of measures, from the largest key down, reaches `needed`.

    above: the measure of all larger keys, to which that of the picks above the result is added.
    """
    cdef Histogram h
    cdef const double* keys = w.pick_key
    cdef const int64_t* measures = w.pick_measure
    cdef double low, high
    cdef Py_ssize_t i, left
    cdef MassSum sum
    cdef int bucket, turn = 0
    while True:
        low = high = keys[0]
        for i in range(1, count):
            low, high = min(low, keys[i]), max(high, keys[i])
        if low == high:
            return low
        h = histogram_of(low, high, count, turn < LINEAR_TURNS and low > -INFINITY)
        turn += 1
        memset(w.buckets, 0, (h.last + 1) * sizeof(MassSum))
        for i in range(count):
            bucket = bucket_of(&h, keys[i])
            w.buckets[bucket] = sum_plus(w.buckets[bucket], mass_sum(measures[i]))
        for bucket in range(h.last + 1):
            sum = sum_plus(above[0], w.buckets[bucket])
            if not sum_less(sum, needed) or bucket == h.last:
                break
            above[0] = sum
        left = 0
        for i in range(count):
            w.left_key[left], w.left_measure[left] = keys[i], measures[i]
            left += bucket_of(&h, keys[i]) == bucket
        keys, measures, count = w.left_key, w.left_measure, left

# Step 1. The measure below the bound is known exactly, and is that of many candidates, none of which has much of it. So
# a sample estimates it well, even where a few large masses, which the sample misses, are most of all.

cdef void take_sample(const Candidates* c, bint by_count, SamplingWorkspace* w) noexcept nogil:
    """Makes SAMPLE candidates, in groups that lie together, spread evenly, the first picks. Their masses are computed
    again, in less time than it takes to fetch them."""
    cdef uint64_t turn = 0
    cdef Py_ssize_t i, k, start
    for i in range(SAMPLE // GROUP):
        turn += <uint64_t>0x9e3779b97f4a7c15        # 2**64 times the golden ratio's fraction
        start = <Py_ssize_t>(<double>(turn >> 11) * 2.0**-53 * <double>(c.count - GROUP))
        for k in range(GROUP):
            w.reals[i * GROUP + k], w.pick_key[i * GROUP + k] = c.x[start + k], c.key[start + k]
            w.masses[i * GROUP + k] = 1
    if not by_count:
        weigh_chunk(w.reals, SAMPLE, c.top, c.scale, w.masses)

cdef void fill_buckets(const SamplingWorkspace* w, double floor, double per_key, SampleBucket* buckets) noexcept nogil:
    """Keys below `floor` are in the first bucket."""
    cdef SampleBucket* bucket
    cdef double measure
    cdef Py_ssize_t i
    memset(buckets, 0, (1 << BUCKET_BITS) * sizeof(SampleBucket))
    for i in range(SAMPLE):
        bucket = buckets + <int>min(max((w.pick_key[i] - floor) * per_key, 0.0), <double>((1 << BUCKET_BITS) - 1))
        measure = <double>w.masses[i]
        bucket.sum += measure
        bucket.squares += measure * measure

cdef void range_by_sample(const Candidates* c, bint by_count, MassSum needed, double deviations, SamplingWorkspace* w,
                          real* low, real* high) noexcept nogil:
    """A range of keys that holds the bound, unless the sample is off by more than this many standard deviations."""
    cdef SampleBucket* buckets = <SampleBucket*>w.buckets
    cdef MassSum all_ = mass_sum(c.count) if by_count else c.total
    cdef double target = sum_to_double(sum_minus(all_, needed)) * (<double>SAMPLE / <double>c.count)
    cdef double ceiling = c.top if c.key == c.x else 0, span = SPAN / (c.scale if c.key == c.x else 1)
    cdef double floor = ceiling - span, per_key = (1 << BUCKET_BITS) / span, below = 0, squares = 0, margin = 0
    cdef int b, first = 0
    take_sample(c, by_count, w)
    fill_buckets(w, floor, per_key, buckets)
    for b in range(1 << BUCKET_BITS):
        below += buckets[b].sum
        squares += buckets[b].squares
        if buckets[b].sum > 0:                  # about the mass of the last
            margin = 2 * buckets[b].squares / buckets[b].sum
        if below > target:
            break
    margin = deviations * (sqrt(max(squares - below * below / SAMPLE, 0.0)) + margin)
    below = 0
    for b in range(1 << BUCKET_BITS):
        if buckets[b].sum > 0:
            if below <= target - margin:
                first = b
            below += buckets[b].sum
        if below > target + margin:
            high[0] = <real>(floor + <double>(b + 1) / per_key)
            break
    if first > 0:
        low[0] = <real>(floor + <double>first / per_key)

cdef void select(Candidates* c, bint by_count, MassSum needed, SamplingWorkspace* w) noexcept nogil:
    """Sets the bound of the smallest set, largest keys first and ties by place, whose measure reaches `needed`.

    needed: from 1 to the measure of all candidates. After a selection by mass, chunk_mass is that of what is kept.
    """
    cdef real low, high
    cdef MassSum above, sum
    cdef Py_ssize_t picks, i
    cdef double key
    cdef int turn = 0 if c.count > FEW else 2
    while True:
        low, high = -INFINITY, INFINITY
        if turn < 2:
            range_by_sample(c, by_count, needed, 2.5 if turn == 0 else 15, w, &low, &high)
        above = measure_above(c, by_count, high, w)
        picks = collect(c.key, c.count, low, high, w.pick)
        sum = above
        for i in range(picks):
            w.pick_key[i], w.pick_measure[i] = c.key[w.pick[i]], measure_of(c, by_count, w.pick[i])
            sum = sum_plus(sum, mass_sum(w.pick_measure[i]))
        if sum_less(above, needed) and not sum_less(sum, needed):
            break
        turn += 1                               # the range does not hold the bound
    key = crossing(w, picks, needed, &above)
    set_bound(c, by_count, key, picks, needed, above, w)

cdef void set_bound(Candidates* c, bint by_count, double key, Py_ssize_t picks, MassSum needed, MassSum above,
                    SamplingWorkspace* w) noexcept nogil:
    """The bound at this key, which candidates of measure `above` exceed, and the first that are equal to it."""
    cdef Py_ssize_t i
    c.bound.key, c.bound.last, c.has_bound, c.has_chunks = <real>key, -1, True, not by_count
    for i in range(picks):
        if w.pick_key[i] == key and sum_less(above, needed):
            above = sum_plus(above, mass_sum(w.pick_measure[i]))
            c.bound.last = w.pick[i]
        elif w.pick_key[i] <= key:
            continue
        if not by_count:
            w.chunk_mass[w.pick[i] // CHUNK] += w.pick_measure[i]
