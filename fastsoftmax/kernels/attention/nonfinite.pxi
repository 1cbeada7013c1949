# Values that are NaN or infinite. A weight of 0 times such a value is NaN, so a row from which it is hidden must not
# meet it: a block that hides keys and holds such values is computed without them, and the rows that see them get them
# added.

cdef bint is_finite(const KvRows* value, Py_ssize_t count, Py_ssize_t dim) noexcept nogil:
    cdef vreal sums = broadcast(0)
    cdef real rest = 0
    cdef Py_ssize_t j, e
    cdef const elem* row
    for j in range(count):
        row, e = kv_row(value, j), 0
        while e + LANES <= dim:
            sums = fma_(load_elem(row + e), broadcast(0), sums)
            e += LANES
        while e < dim:
            rest += real_of(row + e) * 0
            e += 1
    return lane0(hsum(sums)) + rest == 0

cdef void clear_nonfinite(const KvRows* value, Py_ssize_t count, Py_ssize_t dim, elem* clean) noexcept nogil:
    """clean (count, dim): the values, with 0 for those that are not finite."""
    cdef Py_ssize_t j, e
    cdef real x
    for j in range(count):
        for e in range(dim):
            x = real_of(kv_row(value, j) + e)
            clean[j * dim + e] = kv_row(value, j)[e] if x - x == 0 else <elem>0

cdef struct WeightedRows:                   # where the weights and the output of some rows stand
    Py_ssize_t rows
    const Py_ssize_t* begin                 # visible keys
    const Py_ssize_t* end
    const real* bias_sum                    # (rows, bias_row), or NULL
    Py_ssize_t bias_row
    const real* weights
    Py_ssize_t weight_row, weight_key       # strides
    real* out
    Py_ssize_t out_row, out_element
    Py_ssize_t gap_at, gap                  # elements from gap_at on stand `gap` farther: in the last register

cdef void add_nonfinite_values(const WeightedRows* to, const KvRows* value, Py_ssize_t skipped, Py_ssize_t dim,
                               Py_ssize_t key, Py_ssize_t count) noexcept nogil:
    """Adds weight * value for each value that is not finite, to the rows that see its key. Row `skipped` of `value` is
    that of key number `key`; the count - 1 after it join in."""
    cdef Py_ssize_t j, e, at, row
    cdef real x
    for j in range(count):
        for e in range(dim):
            x = real_of(kv_row(value, skipped + j) + e)
            if x - x == 0:
                continue
            at = (e + (to.gap if e >= to.gap_at else 0)) * to.out_element
            for row in range(to.rows):
                if (to.begin[row] <= key + j < to.end[row]
                        and (to.bias_sum == NULL or to.bias_sum[row * to.bias_row + j] != -INFINITY)):
                    to.out[row * to.out_row + at] += to.weights[row * to.weight_row + j * to.weight_key] * x
