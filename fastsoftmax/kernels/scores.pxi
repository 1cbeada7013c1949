# Scaled dot-product attention: what is asked, and what its two ways have in common.
#
#   query (B, Hq, L, E), key (B, Hk, S, E), value (B, Hk, S, Ev) -> out (B, Hq, L, Ev)
#
# Both ways are the online softmax of Milakov and Gimelshein (2018) over blocks of keys: no L x S array exists. Many
# queries stand in the lanes (attend.pxi); for few, the elements of a key do (decode.pxi). The query heads that share a
# key head are one matrix of rows, which share each pass over keys and values: row r is query r // shared of the head
# number r % shared among them.
#
# Sums of weights are taken in runs of RUN_KEYS, since the error of a sum grows with its length. Where lse or entropy is
# asked for (`statistics`), the `excess` of the total over 1 is summed beside it, without the largest weights, which are
# exactly 1: where one key leads by 17, a total has no digits left of the others (Blanchard, Higham and Higham, 2021).
# That sum and that of the moments are compensated, each a number and its `rest`.
#
# Sums of finite scores and terms saturate, since an overflow to -inf would hide a key.
#
# A row's result depends on its own elements and on KEYS or READ alone: not on the rows beside it, nor on threads. A key
# that is hidden from it adds exact zeros wherever it is not skipped.

cdef enum:
    KEYS = 128              # keys of a block: their scores stay in the L1 cache
    READ = 512              # keys of a block where they are read for a few queries: long enough for streams of memory
    MAX_TERMS = 4
    RUN_KEYS = 32           # weights that are summed before they join the others
    # kinds of a term's elements
    BOOLEAN = 0
    ELEMENT = 1
    REAL = 2

ctypedef elem* Line                         # a row of an array

cdef struct Term:                           # what is added to scores, (B, Hq, L, S); -inf, or False, hides
    const char* data
    int kind
    Py_ssize_t[4] stride                    # bytes

cdef struct Attention:
    Py_ssize_t batch, heads, key_heads, shared, length, keys, width, value_width
    const elem* query
    const elem* key
    const elem* value
    elem* out
    bint query_is_real, out_is_real         # they hold reals, beside keys and values of 16 bits
    Py_ssize_t[3] query_stride, key_stride, value_stride, out_stride    # batch, head, row; in elements
    int terms
    Term[MAX_TERMS] term
    Py_ssize_t left, right                  # -1: no limit
    double softcap                          # 0: none
    const double* scale                     # a head
    const long long* offset                 # a batch
    const long long* lengths                # a batch, or NULL
    const double* slopes                    # a batch and head, or NULL
    const double* sinks                     # a head, or NULL
    real* lse                               # (B, Hq, L), or NULL
    real* entropy

cdef inline void visible_keys(const Attention* a, Py_ssize_t b, Py_ssize_t i, Py_ssize_t* begin,
                              Py_ssize_t* end) noexcept nogil:
    """The keys that causal_offset, window and key_lengths leave to query i."""
    cdef Py_ssize_t position = i + a.offset[b]
    begin[0] = 0
    end[0] = a.keys
    if a.lengths != NULL:
        end[0] = a.lengths[b]
    if a.right >= 0:
        end[0] = min(end[0], position + a.right + 1)
    if a.left >= 0:
        begin[0] = max(position - a.left, 0)
    if end[0] <= begin[0]:
        begin[0] = end[0] = 0

cdef inline bint has_statistics(const Attention* a) noexcept nogil:
    return a.lse != NULL or a.entropy != NULL

cdef inline Py_ssize_t work_of_row(const Attention* a) noexcept nogil:
    """Multiplications of a query, or as many as count; in integers, which leave no trace in floating-point flags."""
    return min(a.keys, <Py_ssize_t>1 << 30) * min(a.width + a.value_width, <Py_ssize_t>1 << 20)

cdef inline const elem* row_of(const elem* data, const Py_ssize_t* stride, Py_ssize_t b, Py_ssize_t head,
                               Py_ssize_t row) noexcept nogil:
    return data + b * stride[0] + head * stride[1] + row * stride[2]

cdef inline vreal load_query(const Attention* a, const elem* row, Py_ssize_t e) noexcept nogil:
    return load(<const real*>row + e) if sizeof(elem) < sizeof(real) and a.query_is_real else load_elem(row + e)

cdef inline real query_at(const Attention* a, const elem* row, Py_ssize_t e) noexcept nogil:
    return (<const real*>row)[e] if sizeof(elem) < sizeof(real) and a.query_is_real else real_of(row + e)

cdef inline void store_out(const Attention* a, vreal x, elem* row, Py_ssize_t e) noexcept nogil:
    if sizeof(elem) < sizeof(real) and a.out_is_real:
        store(<real*>row + e, x)
    else:
        store_elem(row + e, x)

cdef inline Py_ssize_t next_register(Py_ssize_t e, Py_ssize_t width) noexcept nogil:
    """Where the register after that at e starts; the last one overlaps, so that it ends at width. width >= LANES."""
    return min(e + LANES, width - LANES) if e + LANES < width else width

# --- what is added to scores

cdef const real* line_of(const Term* term, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                         Py_ssize_t count, real* line) noexcept nogil:
    """The values of a term for `count` keys of a query, as reals: where they stand, or in `line`."""
    cdef const char* at = (term.data + b * term.stride[0] + head * term.stride[1] + query * term.stride[2]
                           + key * term.stride[3])
    cdef Py_ssize_t j = 0, stride = term.stride[3]
    if term.kind == BOOLEAN:
        if stride == 1:
            for j in range(count):
                line[j] = 0 if at[j] else -INFINITY
        else:
            for j in range(count):
                line[j] = 0 if at[j * stride] else -INFINITY
    elif term.kind == REAL:
        if stride == sizeof(real):
            return <const real*>at
        for j in range(count):
            line[j] = (<const real*>(at + j * stride))[0]
    else:
        if stride == sizeof(elem):
            while j + LANES <= count:
                store(line + j, load_elem(<const elem*>at + j))
                j += LANES
        while j < count:
            line[j] = real_of(<const elem*>(at + j * stride))
            j += 1
    return line

cdef int fetch_terms(const Attention* a, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                     Py_ssize_t count, real* added) noexcept nogil:
    """The sum of all terms; returns bits: 1, a key is visible; 2, something is to be added; 4, a key is hidden; 8, what
    is to be added is huge.
    """
    cdef real[READ] line
    cdef const real* x
    cdef Py_ssize_t j
    cdef int t, visible = 0, different = 0, hidden = 0, huge = 0
    for t in range(a.terms):
        x = line_of(&a.term[t], b, head, query, key, count, line)
        if t == 0:
            memcpy(added, x, count * sizeof(real))
        else:
            for j in range(count):
                added[j] = sum_of_terms(added[j], x[j])
    for j in range(count):
        visible |= added[j] != -INFINITY
        hidden |= added[j] == -INFINITY
        different |= added[j] != 0
        huge |= (added[j] > HUGE_TERM) | ((added[j] < -HUGE_TERM) & (added[j] != -INFINITY))
    return visible | different << 1 | hidden << 2 | huge << 3

cdef void cap_scores(double softcap, Py_ssize_t registers, real* scores) noexcept nogil:
    cdef Py_ssize_t r
    cdef vreal cap = fill(<real>softcap)
    for r in range(registers):
        store(scores + r * LANES, cap * tanh_(load(scores + r * LANES) / cap))

cdef inline void add_term(bint huge, vreal term, real* score) noexcept nogil:
    """-inf hides, whatever the score. huge: of what fetch_terms returned."""
    cdef vreal x = load(score), sum_ = x + term
    if huge:
        sum_ = saturated(sum_, x, term)
    store(score, choose(equal(term, fill(-INFINITY)), term, sum_))

cdef inline bint is_steep(real slope) noexcept nogil:
    """Whether its product with a distance may be huge: no distance is beyond 2**42, see FAR in attention.py."""
    return abs(slope) > HUGE_TERM / (<real>(1 << 21) * (1 << 21))

cdef inline void add_distance(bint steep, vreal slope, vreal distance, real* score) noexcept nogil:
    """ALiBi: minus slope * distance."""
    cdef vreal x = load(score), sum_ = fma_(-slope, distance, x)
    if steep:
        sum_ = saturated(sum_, x, slope)
    store(score, sum_)

# --- the sums of the weights of a block, and what was found before

cdef struct Weights:                        # of a register of rows, or of a register's lanes of one row
    vreal total
    vreal moment, moment_rest               # of weight * log(weight)
    vreal others, others_rest               # the total without the weights of 1
    vreal ones                              # how many these are

cdef inline void weigh_run(int columns, Py_ssize_t count, bint statistics, bint moments, const vreal* shift,
                           real* scores, Weights* sums) noexcept nogil:
    """scores (count, columns) of registers, count <= RUN_KEYS, become weights, which are added up."""
    cdef vreal[COLUMNS] total
    cdef vreal d, weight
    cdef vmask largest
    cdef real* score
    cdef Py_ssize_t j
    cdef int c
    for c in range(columns):
        total[c] = fill(0)
    for j in range(count):
        for c in range(columns):
            score = scores + (j * columns + c) * LANES
            d = load(score) - shift[c]
            weight = exp_(d)
            store(score, weight)
            total[c] = total[c] + weight
            if statistics:
                largest = equal(d, fill(0))
                add_to(&sums[c].others, &sums[c].others_rest, leave_where(largest, weight))
                sums[c].ones = sums[c].ones + keep_where(largest, fill(1))
            if moments:
                add_to(&sums[c].moment, &sums[c].moment_rest, weight * vmax(fill(LEAST_EXPONENT), d))
    for c in range(columns):
        sums[c].total = sums[c].total + total[c]

# --- values that are NaN or infinite: a weight of zero does not make them zero, so a hidden one must not be met

cdef bint is_finite(const elem* value, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t width) noexcept nogil:
    cdef vreal sums = fill(0)
    cdef real rest = 0
    cdef Py_ssize_t j, e
    for j in range(count):
        e = 0
        while e + LANES <= width:
            sums = fma_(load_elem(value + j * stride + e), fill(0), sums)
            e += LANES
        while e < width:
            rest += real_of(value + j * stride + e) * 0
            e += 1
    return first(hsum(sums)) + rest == 0

cdef void clear_nonfinite(const elem* value, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t width,
                          elem* clean) noexcept nogil:
    """A copy with zeros for what is not finite."""
    cdef Py_ssize_t j, e
    cdef real x
    for j in range(count):
        for e in range(width):
            x = real_of(value + j * stride + e)
            clean[j * width + e] = value[j * stride + e] if x - x == 0 else <elem>0

# --- what comes of it

cdef inline vreal conclude_rows(const Attention* a, vreal top, vreal total, vreal excess, vreal excess_rest,
                                vreal moment, vreal* lse, vreal* entropy) noexcept nogil:
    """1 / total; where asked for, lse = top + log(total) and entropy = log(total) - moment / total, in nats.

    total is the fast sum that the weights are divided by; for the other two it is 1 + excess.
    """
    cdef vreal hi, lo
    cdef vwide logarithm
    cdef vmask nothing = equal(total, fill(0))
    cdef vreal inverse = choose(nothing, fill(0), fill(1) / total)
    lse[0] = entropy[0] = fill(0)
    if has_statistics(a):
        logarithm = wide_log1p(wide_of(excess, excess_rest))
        wide_split_sum(top, fill(0), logarithm, &hi, &lo)
        lse[0] = choose(nothing, fill(-INFINITY), hi)
        wide_split(logarithm, &hi, &lo)
        entropy[0] = choose(nothing, fill(0), hi - moment / (fill(1) + (excess + excess_rest)))
    return inverse

cdef inline Py_ssize_t lines(Py_ssize_t bytes) noexcept nogil:
    """Rounded up to cache lines."""
    return bytes + 63 & ~63
