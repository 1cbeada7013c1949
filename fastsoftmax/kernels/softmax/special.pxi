# Rows whose maximum is not finite, or that hold a NaN beside masked elements, take a scalar path.

cdef inline bint is_special(const Rows* rows, real row_max, real hi) noexcept nogil:
    """hi: of the normalizer, NaN if the row holds a NaN."""
    if not (-INFINITY < row_max < INFINITY):
        return rows.op != SOFTMAX or rows.where != NULL
    return rows.where != NULL and isnan(hi)

cdef void special_row(const Rows* rows, const Row* row, real row_max) noexcept nogil:
    cdef bint any_visible = False, any_nan = False, infinite
    cdef real value
    cdef Py_ssize_t k
    for k in range(row.n):
        if row.where == NULL or row.where[k * rows.where_n]:
            any_visible = True
            if isnan(real_of(row.x + k * rows.x_n)):
                any_nan = True
    if rows.op == LOGSUMEXP:
        row.y[0] = elem_of(NAN if any_nan else row_max)
    elif rows.op == ENTROPY:
        row.y[0] = elem_of(NAN if any_visible else 0)
    else:
        for k in range(row.n):
            infinite = row_max == INFINITY and real_of(row.x + k * rows.x_n) < INFINITY
            if row.where != NULL and not row.where[k * rows.where_n]:
                value = 0 if rows.op == SOFTMAX else -INFINITY
            elif rows.op == LOG_SOFTMAX and infinite and not any_nan:
                value = -INFINITY
            else:
                value = NAN
            row.y[k * rows.y_n] = elem_of(value)

cdef bint store_if_scalar(const Rows* rows, const Row* row, real row_max, const Normalizer* normalizer) noexcept nogil:
    """Stores the result of a reduction or of a special row; returns False for all others."""
    if is_special(rows, row_max, lane0(normalizer.hi)):
        special_row(rows, row, row_max)
        return True
    if is_reduction(rows.op):
        row.y[0] = elem_of(lane0(normalizer.hi + normalizer.lo))
        return True
    return False
