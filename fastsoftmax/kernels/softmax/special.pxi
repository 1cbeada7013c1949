# Rows whose maximum is not finite, or that hold a NaN beside hidden elements, take a scalar path.

cdef inline bint is_special(const Rows* rows, real row_max, real hi) noexcept nogil:
    if not (-INFINITY < row_max < INFINITY):
        return rows.op != SOFTMAX or rows.where != NULL
    return rows.where != NULL and isnan(hi)

cdef void special_row(const Rows* rows, Py_ssize_t o, Py_ssize_t i, real row_max) noexcept nogil:
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner
    cdef elem* y = rows.y + o * rows.y_outer + i * rows.y_inner
    cdef const unsigned char* where = rows.where
    cdef bint any_visible = False, any_nan = False, infinite
    cdef real value
    cdef Py_ssize_t k
    if where != NULL:
        where += o * rows.where_outer + i * rows.where_inner
    for k in range(rows.n):
        if where == NULL or where[k * rows.where_n]:
            any_visible = True
            if isnan(real_of(x + k * rows.x_n)):
                any_nan = True
    if rows.op == LOGSUMEXP:
        y[0] = elem_of(NAN if any_nan else row_max)
    elif rows.op == ENTROPY:
        y[0] = elem_of(NAN if any_visible else 0)
    else:
        for k in range(rows.n):
            infinite = row_max == INFINITY and real_of(x + k * rows.x_n) < INFINITY
            if where != NULL and not where[k * rows.where_n]:
                value = 0 if rows.op == SOFTMAX else -INFINITY
            elif rows.op == LOG_SOFTMAX and infinite and not any_nan:
                value = -INFINITY
            else:
                value = NAN
            y[k * rows.y_n] = elem_of(value)

cdef bint write_if_scalar(const Rows* rows, Py_ssize_t o, Py_ssize_t i, real row_max,
                          const Normalizer* normalizer) noexcept nogil:
    """Reductions and special rows are done when all is known of the row; False for the others."""
    if is_special(rows, row_max, lane0(normalizer.hi)):
        special_row(rows, o, i, row_max)
        return True
    if rows.op == LOGSUMEXP or rows.op == ENTROPY:
        rows.y[o * rows.y_outer + i * rows.y_inner] = elem_of(lane0(normalizer.hi + normalizer.lo))
        return True
    return False
