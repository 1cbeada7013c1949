# The elements of one row: gathered from strides and masks, loaded at the end of a row, filled, cleared and scattered.

cdef void gather_elements(const elem* x, Py_ssize_t stride, const unsigned char* where, Py_ssize_t where_stride,
                          Py_ssize_t count, elem* buffer) noexcept nogil:
    """Copies x (count), -inf where it is masked, to buffer (count)."""
    cdef elem one
    cdef Py_ssize_t k
    if where == NULL:
        for k in range(count):
            buffer[k] = x[k * stride]
    elif stride == 1 and where_stride == 1:
        for k in range(count):
            one = x[k]                          # read whether masked or not: the compiler takes registers of elements
            buffer[k] = one if where[k] else ELEM_MINUS_INFINITY
    else:
        for k in range(count):
            buffer[k] = x[k * stride] if where[k * where_stride] else ELEM_MINUS_INFINITY

cdef inline const elem* gather_chunk(const Rows* rows, const Row* row, Py_ssize_t start, Py_ssize_t count,
                                     elem* buffer) noexcept nogil:
    """Elements start .. start + count - 1 of a row; in `buffer`, unless they are contiguous and have no mask."""
    cdef const elem* x = row.x + start * rows.x_n
    if row.where != NULL:
        gather_elements(x, rows.x_n, row.where + start * rows.where_n, rows.where_n, count, buffer)
        return buffer
    if rows.x_n != 1:
        gather_elements(x, rows.x_n, NULL, 0, count, buffer)
        return buffer
    return x

cdef inline vreal load_upto(const elem* x, Py_ssize_t k, Py_ssize_t count, Py_ssize_t before) noexcept nogil:
    """Elements k .. k + LANES - 1 of x (count), which `before` elements precede; -inf beyond the end of x."""
    if k + LANES <= count:
        return load_elem(x + k)
    if k >= count:
        return broadcast(-INFINITY)
    if before + count >= LANES:
        return load_last(x + count, count - k)
    return load_first(x + k, count - k)

# An array may start anywhere in a cache line, and a register that crosses two lines takes twice the time. So the loops
# over x and y start at a whole register, and weights_buf starts as far from one as y does.
cdef enum:
    ALIGNED = 8 * LANES     # elements: for shorter rows, alignment costs more than it saves

cdef inline Py_ssize_t peel_to_register(const elem* x) noexcept nogil:
    """The number of elements before the next whole register."""
    return (-(<Py_ssize_t>(<size_t>x // sizeof(elem)))) & (LANES - 1)

cdef inline real* same_alignment(const elem* y, real* weights_buf) noexcept nogil:
    """The first place in weights_buf with the alignment of y. weights_buf has room for one register more."""
    return weights_buf + ((-(<Py_ssize_t>(<size_t>weights_buf // sizeof(real))) - peel_to_register(y)) & (LANES - 1))

# Non-temporal stores write whole cache lines of PARTIALS reals. A line that is written partly by non-temporal stores
# and partly by others takes as long as ten.

cdef inline Py_ssize_t peel_to_cache_line(const elem* y) noexcept nogil:
    """The number of elements before the next cache line. Elements are reals."""
    return (-(<Py_ssize_t>(<size_t>y // sizeof(real)))) & (PARTIALS - 1)

cdef inline void fill_elements(elem* y, elem value, Py_ssize_t count, bint nontemporal) noexcept nogil:
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
    """Writes zeros, whose bits are zero in every element type."""
    cdef Py_ssize_t k
    if nontemporal and stride == 1:
        fill_elements(y, <elem>0, count, True)
    elif stride == 1:
        memset(y, 0, count * sizeof(elem))
    else:
        for k in range(count):
            y[k * stride] = <elem>0

cdef void scatter(elem* y, Py_ssize_t stride, const elem* x, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k
    if stride == 1:
        memcpy(y, x, count * sizeof(elem))
    else:
        for k in range(count):
            y[k * stride] = x[k]

cdef inline void clear_hidden(const Rows* rows, const Row* row) noexcept nogil:
    """The results of the elements that a causal mask hides."""
    if row.n < rows.n:
        clear_elements(row.y + row.n * rows.y_n, rows.y_n, rows.n - row.n, rows.nontemporal)
