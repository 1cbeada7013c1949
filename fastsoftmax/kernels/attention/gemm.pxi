# The two products of prefill: scores = query @ key.T, and out += weights @ value.
#
# gemm_tile is the microkernel: `rows` numbers of the left matrix, each broadcast, times `columns` registers of the
# right one, as many sums as registers hold (TILE_n in simd/vec.h). Look here first when a compiler is new. What is left
# over, if it is not more than half a tile, is a tile of half as many rows, which may overlap the one before.
#
# paired: both matrices hold pairs of bfloat16, so that a step adds two products: see pairs.pxi.

cdef enum:
    DOT_RUN = 32            # steps of a score that are summed before they join the others
    VALUE_RUN = 64          # steps of weighted values, likewise
    PAIR_RUN = KV_BLOCK     # likewise if paired: all of a block

cdef inline void gemm_tile(int rows, int columns, bint paired, const real* left, Py_ssize_t left_row,
                           Py_ssize_t left_step, Py_ssize_t count, const real* right, Py_ssize_t right_step,
                           vreal* product) noexcept nogil:
    """product[row][c] = sum over t < count of left[row * left_row + t * left_step] times register c of the reals at
    right + t * right_step."""
    cdef vreal[COLUMNS] r_
    cdef vreal l_
    cdef Py_ssize_t t
    cdef int r, c
    for r in range(rows):
        for c in range(columns):
            product[r * columns + c] = broadcast(0)
    for t in range(count):
        for c in range(columns):
            r_[c] = load(right + c * LANES)
        for r in range(rows):
            l_ = broadcast_pair(left + r * left_row) if paired else broadcast(left[r * left_row])
            for c in range(columns):
                if paired:
                    product[r * columns + c] = dot_pairs(l_, r_[c], product[r * columns + c])
                else:
                    product[r * columns + c] = fma_(l_, r_[c], product[r * columns + c])
        left += left_step
        right += right_step

cdef inline void score_tile(int rows, int columns, bint paired, const real* key, Py_ssize_t stride,
                            Py_ssize_t dim, const real* query_t, const vreal* scale, real* scores) noexcept nogil:
    """Sums in runs of DOT_RUN steps, since the error of a sum grows with its length; then times scale."""
    cdef vreal[MAX_TILE] product
    cdef Py_ssize_t e = 0
    cdef real* score
    cdef int r, c
    while e + DOT_RUN < dim:
        gemm_tile(rows, columns, paired, key + e, stride, 1, DOT_RUN, query_t + e * columns * LANES, columns * LANES,
                  product)
        for r in range(rows):
            for c in range(columns):
                score = scores + (r * columns + c) * LANES
                store(score, load(score) + product[r * columns + c] if e > 0 else product[r * columns + c])
        e += DOT_RUN
    gemm_tile(rows, columns, paired, key + e, stride, 1, dim - e, query_t + e * columns * LANES, columns * LANES,
              product)
    for r in range(rows):
        for c in range(columns):
            score = scores + (r * columns + c) * LANES
            if e > 0:
                product[r * columns + c] = load(score) + product[r * columns + c]
            store(score, product[r * columns + c] * scale[c])

cdef inline void score_block(int rows, int columns, bint paired, const real* key, Py_ssize_t stride,
                             Py_ssize_t count, Py_ssize_t dim, const real* query_t, const vreal* scale,
                             real* scores) noexcept nogil:
    """scores[j][lane] = scale * key j times the lane's query."""
    cdef Py_ssize_t j = 0
    cdef int half = rows // 2
    if count < half:
        for j in range(count):
            score_tile(1, columns, paired, key + j * stride, stride, dim, query_t, scale, scores + j * columns * LANES)
        return
    while j < count:
        if count >= rows and count - j > half:
            j = min(j, count - rows)
            score_tile(rows, columns, paired, key + j * stride, stride, dim, query_t, scale,
                       scores + j * columns * LANES)
            j += rows
        else:
            j = min(j, count - half)
            score_tile(half, columns, paired, key + j * stride, stride, dim, query_t, scale,
                       scores + j * columns * LANES)
            j += half

cdef inline void weighted_value_tile(int rows, int columns, bint paired, int first, const real* value,
                                     Py_ssize_t stride, Py_ssize_t skipped, Py_ssize_t count, const real* weights,
                                     const vreal* rescale, real* out_t) noexcept nogil:
    """Sums in runs that end at multiples of `run` in the block, wherever the tile's first key is. Rows before
    `first` are computed, and dropped: the tile before has them."""
    cdef vreal[MAX_TILE] product
    cdef Py_ssize_t run = PAIR_RUN if paired else VALUE_RUN, j = min(count, run - skipped % run)
    cdef real* to
    cdef int r, c
    gemm_tile(rows, columns, paired, value, 1, stride, j, weights, columns * LANES, product)
    for r in range(rows):
        if r >= first:
            for c in range(columns):
                to = out_t + (r * columns + c) * LANES
                store(to, fma_(load(to), rescale[c], product[r * columns + c]))
    while j < count:
        gemm_tile(rows, columns, paired, value + j * stride, 1, stride, min(count - j, run),
                  weights + j * columns * LANES, columns * LANES, product)
        for r in range(rows):
            if r >= first:
                for c in range(columns):
                    to = out_t + (r * columns + c) * LANES
                    store(to, load(to) + product[r * columns + c])
        j += run

cdef inline void add_weighted_values(int rows, int columns, bint paired, const real* value, Py_ssize_t stride,
                                     Py_ssize_t skipped, Py_ssize_t count, Py_ssize_t dim, const real* weights,
                                     const vreal* rescale, real* out_t) noexcept nogil:
    """out_t[e][lane] = out_t[e][lane] * rescale[lane] + sum over j of value[j][e] * weights[j][lane]."""
    cdef Py_ssize_t e = 0, done
    cdef int half = rows // 2
    if dim < half:
        for e in range(dim):
            weighted_value_tile(1, columns, paired, 0, value + e, stride, skipped, count, weights, rescale,
                                out_t + e * columns * LANES)
        return
    while e < dim:
        if dim >= rows and dim - e > half:
            done = max(e + rows - dim, 0)
            e -= done
            weighted_value_tile(rows, columns, paired, <int>done, value + e, stride, skipped, count, weights, rescale,
                                out_t + e * columns * LANES)
            e += rows
        else:
            done = max(e + half - dim, 0)
            e -= done
            weighted_value_tile(half, columns, paired, <int>done, value + e, stride, skipped, count, weights, rescale,
                                out_t + e * columns * LANES)
            e += half

# sums += left @ right, for gradients: the right matrix and the sums have rows of whole registers.

cdef inline void add_product_tile(int rows, int columns, int first, Py_ssize_t count, const real* left,
                                  Py_ssize_t left_row, Py_ssize_t left_step, const real* right, Py_ssize_t right_step,
                                  real* sums, Py_ssize_t sums_row) noexcept nogil:
    """In runs of VALUE_RUN. Rows before `first` are computed, and dropped."""
    cdef vreal[MAX_TILE] product
    cdef Py_ssize_t t = 0
    cdef real* to
    cdef int r, c
    while t < count:
        gemm_tile(rows, columns, False, left + t * left_step, left_row, left_step,
                  min(count - t, <Py_ssize_t>VALUE_RUN),
                  right + t * right_step, right_step, product)
        for r in range(rows):
            if r >= first:
                for c in range(columns):
                    to = sums + r * sums_row + c * LANES
                    store(to, load(to) + product[r * columns + c])
        t += VALUE_RUN

cdef inline void add_product_panel(int rows, int columns, Py_ssize_t m, Py_ssize_t count, const real* left,
                                   Py_ssize_t left_row, Py_ssize_t left_step, const real* right, Py_ssize_t right_step,
                                   real* sums, Py_ssize_t sums_row) noexcept nogil:
    """`columns` registers of m rows; the last tile overlaps the one before."""
    cdef Py_ssize_t i = 0, done
    if m < rows:
        for i in range(m):
            add_product_tile(1, columns, 0, count, left + i * left_row, left_row, left_step, right, right_step,
                             sums + i * sums_row, sums_row)
        return
    while i < m:
        done = max(i + rows - m, 0)
        i -= done
        add_product_tile(rows, columns, <int>done, count, left + i * left_row, left_row, left_step, right, right_step,
                         sums + i * sums_row, sums_row)
        i += rows

cdef void add_product(Py_ssize_t m, Py_ssize_t n, Py_ssize_t count, const real* left, Py_ssize_t left_row,
                      Py_ssize_t left_step, const real* right, Py_ssize_t right_step, real* sums,
                      Py_ssize_t sums_row) noexcept nogil:
    """sums[i][k] += sum over t < count of left[i * left_row + t * left_step] * right[t * right_step + k], for i < m and
    k < n, a whole number of registers."""
    cdef Py_ssize_t k = 0
    cdef int columns
    while k < n:
        columns = tile_registers((n - k) // LANES)
        if columns == 3:
            add_product_panel(TILE_3, 3, m, count, left, left_row, left_step, right + k, right_step, sums + k, sums_row)
        elif columns == 2:
            add_product_panel(TILE_2, 2, m, count, left, left_row, left_step, right + k, right_step, sums + k, sums_row)
        else:
            add_product_panel(TILE_1, 1, m, count, left, left_row, left_step, right + k, right_step, sums + k, sums_row)
        k += columns * LANES

cdef inline int tile_registers(Py_ssize_t registers) noexcept nogil:
    """The next tile's: COLUMNS, but rather 2 and 2 than 3 and 1, which has few multiply-adds for each load."""
    return <int>(registers if registers <= COLUMNS else 2 if registers == 4 else COLUMNS)

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
