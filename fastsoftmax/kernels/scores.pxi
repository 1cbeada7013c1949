# Scaled dot-product attention: what is asked, and what its two ways have in common.
#
#   query (B, Hq, L, E), key (B, Hk, S, E), value (B, Hk, S, Ev) -> out (B, Hq, L, Ev)
#
# Both ways are the online softmax of Milakov and Gimelshein (2018) over blocks of keys: no L x S array exists. Many
# queries stand in the lanes (attend.pxi); for few, the elements of a key do (decode.pxi). The query heads that share a
# key head are one matrix of rows, which share each pass over keys and values: row r is query r // shared of the head
# number r % shared among them.
#
# Weights are powers of two, 2**(log2(e) * (score - top)). Where nothing but a scale comes to the products, log2(e)
# enters with it (`binary`); else that would be one more rounding of what may be large.
#
# A row's result depends on its own elements and on KEYS or READ alone: not on the rows beside it, nor on threads. A key
# that is hidden from it adds exact zeros wherever it is not skipped.

cdef enum:
    KEYS = 128              # keys of a block: their scores stay in the L1 cache
    READ = 512              # keys of a block where they are read for a few queries: long enough for streams of memory
    MAX_TERMS = 4
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
    Py_ssize_t[3] query_stride, key_stride, value_stride, out_stride    # batch, head, row; in elements
    int terms
    Term[MAX_TERMS] term
    Py_ssize_t left, right                  # -1: no limit
    double softcap                          # 0: none
    bint binary                             # scores are in units of ln 2, not in nats
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

cdef inline Py_ssize_t work_of_row(const Attention* a) noexcept nogil:
    """Multiplications of a query, or as many as count; in integers, which leave no trace in floating-point flags."""
    return min(a.keys, <Py_ssize_t>1 << 30) * min(a.width + a.value_width, <Py_ssize_t>1 << 20)

cdef inline const elem* row_of(const elem* data, const Py_ssize_t* stride, Py_ssize_t b, Py_ssize_t head,
                               Py_ssize_t row) noexcept nogil:
    return data + b * stride[0] + head * stride[1] + row * stride[2]

cdef inline Py_ssize_t next_register(Py_ssize_t e, Py_ssize_t width) noexcept nogil:
    """Where the register after that at e starts; the last one overlaps, so that it ends at width. width >= LANES."""
    return min(e + LANES, width - LANES) if e + LANES < width else width

# --- what is added to scores

cdef const real* line_of(const Term* term, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                         Py_ssize_t count, real* line) noexcept nogil:
    """What a term has for `count` keys of a query, as reals: where it stands, or in `line`."""
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
    """The sum of all terms; returns bits: 1, a key is visible; 2, something is to be added; 4, a key is hidden."""
    cdef real[READ] line
    cdef const real* x
    cdef Py_ssize_t j
    cdef int t, visible = 0, different = 0, hidden = 0
    for t in range(a.terms):
        x = line_of(&a.term[t], b, head, query, key, count, line)
        if t == 0:
            memcpy(added, x, count * sizeof(real))
        else:
            for j in range(count):
                added[j] = -INFINITY if (x[j] == -INFINITY) | (added[j] == -INFINITY) else added[j] + x[j]
    for j in range(count):
        visible |= added[j] != -INFINITY
        hidden |= added[j] == -INFINITY
        different |= added[j] != 0
    return visible | different << 1 | hidden << 2

cdef void cap_scores(double softcap, Py_ssize_t registers, real* scores) noexcept nogil:
    cdef Py_ssize_t r
    cdef vreal cap = fill(<real>softcap)
    for r in range(registers):
        store(scores + r * LANES, cap * tanh_(load(scores + r * LANES) / cap))

cdef inline vreal binary_fall(bint binary, vreal score, vreal top) noexcept nogil:
    """log2 of a weight."""
    return score - top if binary else (score - top) * fill(<real>LOG2E)

cdef inline void add_term(vreal term, real* score) noexcept nogil:
    """-inf hides, whatever the score."""
    store(score, choose(equal(term, fill(-INFINITY)), term, load(score) + term))

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

cdef inline vreal conclude_rows(const Attention* a, vreal top, vreal total, vreal moment, vreal* lse,
                                vreal* entropy) noexcept nogil:
    """1 / total; where asked for, lse = top + log(total) and entropy = log(total) - moment / total, in nats."""
    cdef vreal hi, lo = fill(0), base = top
    cdef vwide logarithm
    cdef vmask nothing = equal(total, fill(0))
    cdef vreal inverse = choose(nothing, fill(0), fill(1) / total)
    lse[0] = entropy[0] = fill(0)
    if a.lse != NULL or a.entropy != NULL:
        logarithm = wide_log1p(wide_of(total, fill(-1)))
        if a.binary:
            base = top * fill(LN2)
            lo = product_error(top, fill(LN2), base) + top * fill(LN2_REST)
        wide_split_sum(base, lo, logarithm, &hi, &lo)
        lse[0] = choose(nothing, fill(-INFINITY), hi)
        wide_split(logarithm, &hi, &lo)
        entropy[0] = choose(nothing, fill(0), fma_(moment * inverse, fill(-LN2), hi))
    return inverse

cdef inline Py_ssize_t lines(Py_ssize_t bytes) noexcept nogil:
    """Rounded up to cache lines."""
    return bytes + 63 & ~63
