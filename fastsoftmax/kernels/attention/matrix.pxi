# The two products of prefill by a matrix unit (MATRIX_UNIT; see simd/matrix_unit.h), for bfloat16 in pairs.
#
#   scores     left: MATRIX_ROWS keys, as they stand; right: the queries, pairs of elements
#   output     left: MATRIX_ROWS elements of values, transposed, for pairs of keys; right: the weights of pairs of keys
#
# The products take about as long as exp, so each weight is the sum of two bfloat16 numbers, both rounded towards 0: up
# to 2**-16 of it is lost, of all weights of a row about as much. What pairs.pxi says of huge and special elements holds
# here too. Rows end in zeros where they do not fill the unit's registers; keys behind the last have weights of 0.

cdef enum:
    MATRIX_KEYS = 2 * MATRIX_PAIRS          # keys whose weights fill a register of the matrix unit

cdef inline Py_ssize_t value_rows(Py_ssize_t dim) noexcept nogil:
    """Rows of the outputs of a tile."""
    return ceil_div(dim, MATRIX_ROWS) * MATRIX_ROWS if MATRIX_UNIT else dim

cdef inline void score_matrix(int columns, const real* key, Py_ssize_t key_row, Py_ssize_t count,
                              const real* query_t, real* scores) noexcept nogil:
    """scores[j][lane] = key j times the lane's query, without scale. Scores are written up to whole MATRIX_KEYS."""
    cdef Py_ssize_t j = 0
    while j < count:
        matrix_scores(columns, key + j * key_row, key_row, query_t, key_row // MATRIX_PAIRS,
                      scores + j * columns * LANES)
        j += MATRIX_KEYS

cdef inline void scale_scores(int columns, Py_ssize_t count, const vreal* scale, real* scores) noexcept nogil:
    cdef Py_ssize_t j
    cdef int c
    for j in range(count):
        for c in range(columns):
            store(scores + (j * columns + c) * LANES, load(scores + (j * columns + c) * LANES) * scale[c])

cdef inline void transpose_value_pairs(const real* pairs, Py_ssize_t row, real* to) noexcept nogil:
    """LANES elements of MATRIX_PAIRS rows of pairs."""
    cdef vreal[LANES] square
    cdef int k
    for k in range(LANES):
        square[k] = load(pairs + k * row)
    transpose(square)
    for k in range(LANES):
        store(to + k * MATRIX_PAIRS, square[k])

cdef void pack_value_matrix(const KvRows* value, Py_ssize_t count, Py_ssize_t dim, real* pairs,
                            real* to) noexcept nogil:
    """to[keys / MATRIX_KEYS][dim / MATRIX_ROWS][element][pair of keys]. pairs: room for MATRIX_PAIRS rows of values."""
    cdef Py_ssize_t row = value_rows(dim), j = 0, e
    cdef int pair
    memset(pairs, 0, MATRIX_PAIRS * row * sizeof(real))
    while j < count:
        for pair in range(MATRIX_PAIRS):
            if j < count:
                pair_value_rows(kv_row(value, j), kv_row(value, j + 1) if j + 1 < count else NULL, dim,
                                pairs + pair * row)
            else:
                memset(pairs + pair * row, 0, dim * sizeof(real))
            j += 2
        e = 0
        while e < row:
            transpose_value_pairs(pairs + e, row, to)
            to += MATRIX_ROWS * MATRIX_PAIRS
            e += MATRIX_ROWS

cdef inline void exp_and_pack_scores(int columns, Py_ssize_t keys, bint statistics, bint moments, const vreal* factor,
                                     const vreal* shift, real* scores, BlockSums* sums) noexcept nogil:
    """`scores` times `factor` become weights, in pairs of keys: in the place of the scores of two keys stand the pairs
    of their weights rounded towards 0, and the pairs of the rests. keys: a multiple of MATRIX_KEYS, a WEIGHT_RUN."""
    cdef vreal[COLUMNS] row_sum
    cdef vreal d, next_d, a, b
    cdef real* score
    cdef Py_ssize_t run, j
    cdef int c
    for run in range(keys // MATRIX_KEYS):
        for c in range(columns):
            row_sum[c] = broadcast(0)
        for j in range(MATRIX_KEYS // 2):
            for c in range(columns):
                score = scores + ((run * MATRIX_KEYS + 2 * j) * columns + c) * LANES
                d = load(score) * factor[c] - shift[c]
                next_d = load(score + columns * LANES) * factor[c] - shift[c]
                a, b = exp_(d), exp_(next_d)
                row_sum[c] = (row_sum[c] + a) + b
                add_weight(statistics, moments, d, a, &sums[c])
                add_weight(statistics, moments, next_d, b, &sums[c])
                store(score, pair_of(a, b))
                store(score + columns * LANES, pair_of(a - upper_half(a), b - upper_half(b)))
        for c in range(columns):
            sums[c].row_sum = sums[c].row_sum + row_sum[c]

cdef void unpack_weights(int columns, Py_ssize_t count, const real* pairs, real* weights) noexcept nogil:
    """The way back, to (count, columns) of registers, or one more row."""
    cdef vreal pair, rest
    cdef const real* at
    cdef Py_ssize_t j, lanes = columns * LANES
    cdef int c
    for j in range(ceil_div(count, 2)):
        for c in range(columns):
            at = pairs + 2 * j * lanes + c * LANES
            pair, rest = load(at), load(at + lanes)
            store(weights + 2 * j * lanes + c * LANES, first_of_pair(pair) + first_of_pair(rest))
            store(weights + (2 * j + 1) * lanes + c * LANES, second_of_pair(pair) + second_of_pair(rest))

cdef inline void multiply_value_tiles(Py_ssize_t tiles, int columns, const real* value, Py_ssize_t step,
                                      const real* weights, Py_ssize_t steps, const vreal* rescale, real* sums,
                                      real* out_t) noexcept nogil:
    """MATRIX_TILES tiles of elements, or fewer."""
    cdef Py_ssize_t lanes = columns * LANES, e
    cdef real* to
    cdef int c
    for c in range(columns):
        matrix_values(tiles, value, step, weights + c * LANES, lanes, steps, sums + c * LANES, lanes)
    for e in range(tiles * MATRIX_ROWS):
        for c in range(columns):
            to = out_t + e * lanes + c * LANES
            store(to, fma_(load(to), rescale[c], load(sums + e * lanes + c * LANES)))

cdef inline void add_value_matrix(int columns, const real* value, Py_ssize_t skipped, Py_ssize_t count, Py_ssize_t dim,
                                  const real* weights, const vreal* rescale, real* sums, real* out_t) noexcept nogil:
    """out_t[e][lane] = out_t[e][lane] * rescale[lane] + sum over j of value[j][e] * weights[j][lane].

    value: of the whole block; `skipped` keys of it, a multiple of MATRIX_KEYS, come before `count` weights. sums: room
    for MATRIX_TILES * MATRIX_ROWS elements of a tile's rows. The unit does not add to out_t: it would lose what special
    values have left there below 2**-126.
    """
    cdef Py_ssize_t tile = 0, tiles = value_rows(dim) // MATRIX_ROWS, steps = ceil_div(count, MATRIX_KEYS)
    cdef Py_ssize_t step = tiles * MATRIX_ROWS * MATRIX_PAIRS
    value += skipped // MATRIX_KEYS * step
    while tile < tiles:
        multiply_value_tiles(min(tiles - tile, <Py_ssize_t>MATRIX_TILES), columns, value, step, weights, steps, rescale,
                             sums, out_t)
        tile += MATRIX_TILES
        value += MATRIX_TILES * MATRIX_ROWS * MATRIX_PAIRS
        out_t += MATRIX_TILES * MATRIX_ROWS * columns * LANES
