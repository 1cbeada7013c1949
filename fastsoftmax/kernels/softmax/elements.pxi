# Elements of one row: reading them in order, with gaps or a mask; filling and scattering.

cdef inline const elem* gather_chunk(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t start, Py_ssize_t count,
                                     elem* buffer) noexcept nogil:
    cdef const elem* x = rows.x + o * rows.x_outer + i * rows.x_inner + start * rows.x_n
    cdef const unsigned char* where
    cdef Py_ssize_t k
    if rows.where == NULL:
        if rows.x_n == 1:
            return x
        for k in range(count):
            buffer[k] = x[k * rows.x_n]
        return buffer
    where = rows.where + o * rows.where_outer + i * rows.where_inner + start * rows.where_n
    for k in range(count):
        buffer[k] = x[k * rows.x_n] if where[k * rows.where_n] else ELEM_MINUS_INFINITY
    return buffer

cdef inline vreal load_upto(const elem* x, Py_ssize_t k, Py_ssize_t count, Py_ssize_t before) noexcept nogil:
    """Elements k to k + LANES of x, which has `count`, and `before` more in front of it; beyond them, what weighs
    nothing."""
    if k + LANES <= count:
        return load_elem(x + k)
    if k >= count:
        return broadcast(-INFINITY)
    if before + count >= LANES:
        return load_last(x + count, count - k)
    return load_first(x + k, count - k)

# NumPy's arrays start anywhere in a cache line, and a register across two lines takes twice the time. So what may begin
# where it likes begins at a whole register, and the weights are kept as far from one as the results will be.
cdef enum:
    ALIGNED = 8 * LANES     # elements from which that is worth a register more

cdef inline Py_ssize_t peel_to_register(const elem* x) noexcept nogil:
    """How many elements stand before the next whole register."""
    return (-(<Py_ssize_t>(<size_t>x // sizeof(elem)))) & (LANES - 1)

cdef inline real* same_alignment(const elem* y, real* weights_buf) noexcept nogil:
    """Where in `weights_buf`, which has room for a register more, the weights go whose results go to y."""
    return weights_buf + ((-(<Py_ssize_t>(<size_t>weights_buf // sizeof(real))) - peel_to_register(y)) & (LANES - 1))

# Non-temporal stores write whole cache lines, PARTIALS reals each. A line that is written partly this way and partly
# through the caches takes as long as ten.

cdef inline Py_ssize_t peel_to_cache_line(const elem* y) noexcept nogil:
    """How many elements stand before the next cache line, where elements are reals."""
    return (-(<Py_ssize_t>(<size_t>y // sizeof(real)))) & (PARTIALS - 1)

cdef inline void fill_elements(elem* y, elem value, Py_ssize_t count, bint nontemporal) noexcept nogil:
    """streamed: where elements are reals."""
    cdef Py_ssize_t k = 0, head
    cdef int v
    if nontemporal and sizeof(elem) == sizeof(real) and count >= 2 * PARTIALS:
        head = peel_to_cache_line(y)
        while k < head:
            y[k] = value
            k += 1
        while k + PARTIALS <= count:
            for v in range(PARTIAL_REGS):
                stream(<real*>y + k + v * LANES, broadcast(<real>value))
            k += PARTIALS
    while k < count:
        y[k] = value
        k += 1

cdef void clear_elements(elem* y, Py_ssize_t stride, Py_ssize_t count, bint nontemporal) noexcept nogil:
    """Zeros, whose bits are zero in every element type."""
    cdef Py_ssize_t k
    if nontemporal and stride == 1:
        fill_elements(y, <elem>0, count, True)
    elif stride == 1:
        memset(y, 0, count * sizeof(elem))
    else:
        for k in range(count):
            y[k * stride] = <elem>0

cdef inline void scatter(elem* y, Py_ssize_t stride, const elem* x, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k
    if stride == 1:
        memcpy(y, x, count * sizeof(elem))
    else:
        for k in range(count):
            y[k * stride] = x[k]
