# Products of bfloat16 in pairs, for prefill, where the instruction set adds two products to a lane (PAIRED).
#
#   scores     a step takes elements 2p and 2p + 1 of a key and of the queries; products of bfloat16 are exact in float
#   output     a step takes the values of two keys, and their weights as bfloat16
#
# A weight rounded to bfloat16 is up to 2**-8 off. Weights as two such numbers each would cost as many steps as floats
# do. So of each PAIR_GROUP keys, counted from the start of the block, the first two alone have a step more, for the
# rest of their weights, which leaves 2**-14. With groups of 8 and normally distributed inputs the root mean square of
# the error is .93 to .98 of that with all weights rounded; groups of 4 have .89, and take 8 % longer.
#
#   step 5g: weights of keys 8g, 8g + 1      5g + 1: the rest of these      5g + 2: weights of keys 8g + 2, 8g + 3  ...
#
# Row sums, lse and entropy are those of the weights as floats. A result in floats is computed in floats.
#
# The instruction takes what is below 2**-126 as 0. What that could change is left to floats, number by number, so that
# a row's bits do not depend on others:
#   scores     of a query or key with an element of 2**40 or more, NaN and infinity among them: replace_huge_scores.
#              Elsewhere a score loses at most 2**-86 an element, times scale; beyond a scale of 2**40 all are huge.
#   values     special ones: below 2**-60, NaN and infinity. They are 0 in the pairs, and stand in value_reals, where
#              the others are 0.

cdef enum:
    GROUP_PAIRS = 4
    PAIR_GROUP = 2 * GROUP_PAIRS
    GROUP_STEPS = GROUP_PAIRS + 1
    BLOCK_STEPS = KV_BLOCK // PAIR_GROUP * GROUP_STEPS

cdef inline bint uses_pairs(const AttentionParams* params) noexcept nogil:
    """Only for a result that is rounded to bfloat16 too."""
    return PAIRED and not (params.query_is_real or params.out_is_real)

cdef inline Py_ssize_t pairs_of(Py_ssize_t dim) noexcept nogil:
    """Of a row of queries or keys; for a matrix unit whole registers of it."""
    return ceil_div(dim, 2 * MATRIX_PAIRS) * MATRIX_PAIRS if MATRIX_UNIT else ceil_div(dim, 2)

cdef inline Py_ssize_t steps_of(Py_ssize_t keys) noexcept nogil:
    return ceil_div(keys, PAIR_GROUP) * GROUP_STEPS

cdef void copy_pairs(const elem* x, Py_ssize_t dim, real* to) noexcept nogil:
    """A row as pairs, with zeros to the last."""
    memcpy(to, x, dim * sizeof(elem))
    memset(<elem*>to + dim, 0, (2 * pairs_of(dim) - dim) * sizeof(elem))

cdef bint pack_key_pairs(const KvRows* key, Py_ssize_t count, Py_ssize_t dim, real* to) noexcept nogil:
    """to (count, pairs). Returns whether an element is huge."""
    cdef Py_ssize_t j
    for j in range(count):
        copy_pairs(kv_row(key, j), dim, to + j * pairs_of(dim))
    return has_huge(<const elem*>to, 2 * count * pairs_of(dim))

cdef void load_query_pairs(const AttentionParams* params, Py_ssize_t b, QueryTile* tile, real* rows) noexcept nogil:
    """tile.query_t (pairs, columns * LANES), and which lanes are huge. rows: room for TILE_ROWS rows."""
    cdef ConstRowPointer[TILE_ROWS] row
    cdef real[TILE_ROWS] huge
    cdef Py_ssize_t lane, pairs = pairs_of(params.head_dim), h
    cdef int c
    tile.any_huge = False
    for lane in range(tile.columns * LANES):
        row[lane] = <const elem*>(rows + lane * pairs)
        h = tile.head[lane]
        copy_pairs(row_address(&params.query, b, h, tile.query[lane]), params.head_dim, rows + lane * pairs)
        huge[lane] = has_huge(row[lane], 2 * pairs) or not abs(scale_of(params, h)) < HUGE_FACTOR
        tile.any_huge |= huge[lane] != 0
    for c in range(tile.columns):
        tile.huge[c] = load(huge + c * LANES)
    pack_tile(True, pairs, tile.columns, row, tile.query_t)

cdef void replace_huge_scores(const AttentionParams* params, const QueryTile* tile, const KvRows* key,
                              Py_ssize_t skipped, Py_ssize_t count, real* query_reals, real* key_reals,
                              real* scores) noexcept nogil:
    """Computes scores as floats where the key or the lane's query is huge; `skipped` keys of the block come first.

    query_reals: room for (E, TILE_ROWS); key_reals: for E.
    """
    cdef vreal[COLUMNS] product, total
    cdef vreal pair, score
    cdef Py_ssize_t dim = params.head_dim, j, e, at
    cdef bint huge
    cdef int c
    memset(query_reals, 0, dim * TILE_ROWS * sizeof(real))
    for e in range(dim):
        for c in range(tile.columns):
            pair = load(tile.query_t + (e // 2 * tile.columns + c) * LANES)
            store(query_reals + e * TILE_ROWS + c * LANES, second_of_pair(pair) if e % 2 else first_of_pair(pair))
    for j in range(count):
        huge = has_huge(kv_row(key, skipped + j), dim)
        if not (huge or tile.any_huge):
            continue
        convert(kv_row(key, skipped + j), 0, 1, dim, key_reals)
        for c in range(COLUMNS):
            total[c] = broadcast(0)
        at = 0
        while at < dim:
            gemm_tile(1, COLUMNS, False, key_reals + at, 0, 1, min(dim - at, <Py_ssize_t>DOT_RUN),
                      query_reals + at * TILE_ROWS, TILE_ROWS, product)
            for c in range(COLUMNS):
                total[c] = total[c] + product[c]
            at += DOT_RUN
        for c in range(tile.columns):
            score = load(scores + (j * tile.columns + c) * LANES)
            if huge:
                score = total[c] * tile.scale[c]
            else:
                score = vselect(eq(tile.huge[c], broadcast(0)), score, total[c] * tile.scale[c])
            store(scores + (j * tile.columns + c) * LANES, score)

# Values.

cdef void pair_value_rows(const elem* first, const elem* second, Py_ssize_t dim, real* to) noexcept nogil:
    """The values of two keys, or of one and zeros if `second` is NULL."""
    cdef vreal y = broadcast(0)
    cdef elem* scalar = <elem*>to
    cdef Py_ssize_t e = 0
    if dim < LANES:
        for e in range(dim):
            scalar[2 * e], scalar[2 * e + 1] = first[e], <elem>0 if second == NULL else second[e]
        return
    while e < dim:
        if second != NULL:
            y = load_elem(second + e)
        store(to + e, pair_of(load_elem(first + e), y))
        e = next_register(e, dim)

cdef void pack_value_pairs(const KvRows* value, Py_ssize_t count, Py_ssize_t dim, real* to) noexcept nogil:
    """to (steps, Ev)."""
    cdef Py_ssize_t j, pair
    for pair in range(ceil_div(count, PAIR_GROUP) * GROUP_PAIRS):
        j = 2 * pair
        if j < count:
            pair_value_rows(kv_row(value, j), kv_row(value, j + 1) if j + 1 < count else NULL, dim, to)
        else:
            memset(to, 0, dim * sizeof(real))
        to += dim
        if pair % GROUP_PAIRS == 0:
            memcpy(to, to - dim, dim * sizeof(real))
            to += dim

cdef void pick_special(const elem* x, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t dim, real* to) noexcept nogil:
    """to (count, dim): the values that the pairs leave out, and 0 for the others."""
    cdef Py_ssize_t j, e
    for j in range(count):
        for e in range(dim):
            to[j * dim + e] = real_of(x + j * stride + e) if has_special(x + j * stride + e, 1) else 0

cdef inline void pack_weights(int columns, Py_ssize_t count, real* weights, real* to) noexcept nogil:
    """to (steps, columns) of registers. Behind `count` weights, zeros are written."""
    cdef Py_ssize_t j, pair, lanes = columns * LANES
    cdef vreal a, b
    cdef bint rest
    cdef int c
    for j in range(count * columns, ceil_div(count, PAIR_GROUP) * PAIR_GROUP * columns):
        store(weights + j * LANES, broadcast(0))
    for pair in range(ceil_div(count, PAIR_GROUP) * GROUP_PAIRS):
        rest = pair % GROUP_PAIRS == 0
        for c in range(columns):
            a, b = load(weights + c * LANES), load(weights + lanes + c * LANES)
            if rest:
                store(to + c * LANES, pair_of(a, b))
                store(to + lanes + c * LANES, pair_of(a - upper_half(a), b - upper_half(b)))
            else:
                store(to + c * LANES, pair_of(before_truncation(a), before_truncation(b)))
        weights += 2 * lanes
        to += 2 * lanes if rest else lanes

cdef void add_special_values(Py_ssize_t lanes, const real* value, Py_ssize_t skipped, Py_ssize_t count, Py_ssize_t dim,
                             const real* weights, real* out_t) noexcept nogil:
    """out_t += weights times the values that the pairs leave out, as floats; `skipped` keys of the block come first.
    Runs end where those of add_weighted_values do, whatever was skipped."""
    cdef Py_ssize_t first = min(count, VALUE_RUN - skipped % VALUE_RUN)
    add_product(dim, lanes, first, value + skipped * dim, 1, dim, weights, lanes, out_t, lanes)
    add_product(dim, lanes, count - first, value + (skipped + first) * dim, 1, dim, weights + first * lanes, lanes,
                out_t, lanes)
