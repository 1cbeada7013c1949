# The two products of prefill: scores = query @ key.T, and out += weights @ value.
#
# gemm_tile is the microkernel: `rows` numbers of the left matrix, each broadcast, times `columns` registers of the
# right one, as many sums as registers hold (TILE_n in simd/vec.h). Look here first when a compiler is new.

cdef enum:
    DOT_RUN = 32            # products of a score that are summed before they join the others
    VALUE_RUN = 64          # weighted values, likewise

cdef inline void gemm_tile(int rows, int columns, const real* left, Py_ssize_t left_row, Py_ssize_t left_step,
                           Py_ssize_t count, const real* right, vreal* product) noexcept nogil:
    """product[row][column] = sum over t < count of left[row * left_row + t * left_step] * right[t][column]."""
    cdef vreal[COLUMNS] r_
    cdef vreal l_
    cdef Py_ssize_t t
    cdef int r, c
    for r in range(rows * columns):
        product[r] = broadcast(0)
    for t in range(count):
        for c in range(columns):
            r_[c] = load(right + c * LANES)
        for r in range(rows):
            l_ = broadcast(left[r * left_row])
            for c in range(columns):
                product[r * columns + c] = fma_(l_, r_[c], product[r * columns + c])
        left += left_step
        right += columns * LANES

cdef inline void score_tile(int rows, int columns, const real* key, Py_ssize_t stride, Py_ssize_t dim,
                            const real* query_t, const vreal* scale, real* scores) noexcept nogil:
    """Sums in runs of DOT_RUN products, since the error of a sum grows with its length; then times scale."""
    cdef vreal[MAX_TILE] product
    cdef Py_ssize_t e = 0
    cdef real* score
    cdef int r, c
    while e + DOT_RUN < dim:
        gemm_tile(rows, columns, key + e, stride, 1, DOT_RUN, query_t + e * columns * LANES, product)
        for r in range(rows * columns):
            score = scores + r * LANES
            store(score, load(score) + product[r] if e > 0 else product[r])
        e += DOT_RUN
    gemm_tile(rows, columns, key + e, stride, 1, dim - e, query_t + e * columns * LANES, product)
    for r in range(rows):
        for c in range(columns):
            score = scores + (r * columns + c) * LANES
            if e > 0:
                product[r * columns + c] = load(score) + product[r * columns + c]
            store(score, product[r * columns + c] * scale[c])

cdef inline void score_block(int rows, int columns, const real* key, Py_ssize_t stride, Py_ssize_t count,
                             Py_ssize_t dim, const real* query_t, const vreal* scale, real* scores) noexcept nogil:
    """scores[j][lane] = scale * key j times the lane's query; the last tile overlaps the one before."""
    cdef Py_ssize_t j = 0
    if count < rows:
        for j in range(count):
            score_tile(1, columns, key + j * stride, stride, dim, query_t, scale, scores + j * columns * LANES)
        return
    while j < count:
        j = min(j, count - rows)
        score_tile(rows, columns, key + j * stride, stride, dim, query_t, scale, scores + j * columns * LANES)
        j += rows

cdef inline void weighted_value_tile(int rows, int columns, int first, const real* value, Py_ssize_t stride,
                                     Py_ssize_t skipped, Py_ssize_t count, const real* weights, const vreal* rescale,
                                     real* out_t) noexcept nogil:
    """Sums in runs that end at multiples of VALUE_RUN in the block, wherever the tile's first key is. Rows before
    `first` are computed, and dropped: the tile before has them."""
    cdef vreal[MAX_TILE] product
    cdef Py_ssize_t j = min(count, VALUE_RUN - skipped % VALUE_RUN)
    cdef real* to
    cdef int r, c
    gemm_tile(rows, columns, value, 1, stride, j, weights, product)
    for r in range(rows):
        if r >= first:
            for c in range(columns):
                to = out_t + (r * columns + c) * LANES
                store(to, fma_(load(to), rescale[c], product[r * columns + c]))
    while j < count:
        gemm_tile(rows, columns, value + j * stride, 1, stride, min(count - j, <Py_ssize_t>VALUE_RUN),
                  weights + j * columns * LANES, product)
        for r in range(rows):
            if r >= first:
                for c in range(columns):
                    to = out_t + (r * columns + c) * LANES
                    store(to, load(to) + product[r * columns + c])
        j += VALUE_RUN

cdef inline void add_weighted_values(int rows, int columns, const real* value, Py_ssize_t stride, Py_ssize_t skipped,
                                     Py_ssize_t count, Py_ssize_t dim, const real* weights, const vreal* rescale,
                                     real* out_t) noexcept nogil:
    """out_t[e][lane] = out_t[e][lane] * rescale[lane] + sum over j of value[j][e] * weights[j][lane]."""
    cdef Py_ssize_t e = 0, done
    if dim < rows:
        for e in range(dim):
            weighted_value_tile(1, columns, 0, value + e, stride, skipped, count, weights, rescale,
                                out_t + e * columns * LANES)
        return
    while e < dim:
        done = max(e + rows - dim, 0)
        e -= done
        weighted_value_tile(rows, columns, <int>done, value + e, stride, skipped, count, weights, rescale,
                            out_t + e * columns * LANES)
        e += rows

cdef void convert(const elem* x, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t dim, real* to) noexcept nogil:
    """to (count, dim): the elements as contiguous reals."""
    cdef Py_ssize_t j, e
    for j in range(count):
        e = 0
        while e + LANES <= dim:
            store(to + j * dim + e, load_elem(x + j * stride + e))
            e += LANES
        while e < dim:
            to[j * dim + e] = real_of(x + j * stride + e)
            e += 1
