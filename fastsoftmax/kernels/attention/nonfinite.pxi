# --- values that are NaN or infinite: a weight of zero does not make them zero, so a hidden one must not be met

cdef bint is_finite(const elem* value, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t dim) noexcept nogil:
    cdef vreal sums = broadcast(0)
    cdef real rest = 0
    cdef Py_ssize_t j, e
    for j in range(count):
        e = 0
        while e + LANES <= dim:
            sums = fma_(load_elem(value + j * stride + e), broadcast(0), sums)
            e += LANES
        while e < dim:
            rest += real_of(value + j * stride + e) * 0
            e += 1
    return lane0(hsum(sums)) + rest == 0

cdef void clear_nonfinite(const elem* value, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t dim,
                          elem* clean) noexcept nogil:
    """A copy with zeros for what is not finite."""
    cdef Py_ssize_t j, e
    cdef real x
    for j in range(count):
        for e in range(dim):
            x = real_of(value + j * stride + e)
            clean[j * dim + e] = value[j * stride + e] if x - x == 0 else <elem>0

cdef void add_nonfinite_values(const AttentionParams* params, const QueryTile* tile, PrefillWorkspace* workspace,
                               const elem* value, Py_ssize_t key, Py_ssize_t count) noexcept nogil:
    """Adds what was left out, times its weight, to the rows that see it."""
    cdef Py_ssize_t j, e, lane, lanes = tile.columns * LANES
    cdef real x
    for j in range(count):
        for e in range(params.value_dim):
            x = real_of(value + j * params.value_stride[2] + e)
            if x - x == 0:
                continue
            for lane in range(lanes):
                if (tile.begin[lane] <= key + j < tile.end[lane]
                    and (params.biases == 0 or workspace.bias_sum[lane * KV_BLOCK + j] != -INFINITY)):
                    tile.out_t[e * lanes + lane] += workspace.scores[j * lanes + lane] * x
