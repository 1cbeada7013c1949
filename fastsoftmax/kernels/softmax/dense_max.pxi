# Pass 1 of a dense row: its largest element.

cdef inline real reduce_max(const elem* x, Py_ssize_t count) noexcept nogil:
    """The largest of x (count); -inf if there is none. NaN is ignored here: it makes the sum of the weights NaN."""
    cdef vreal[MAX_EXP] row_max
    cdef Py_ssize_t k = 0
    cdef int a
    for a in range(MAX_EXP):
        row_max[a] = broadcast(-INFINITY)
    if count >= ALIGNED:
        row_max[0] = vmax(load_elem(x), row_max[0])
        k = peel_to_register(x)
    while k + MAX_EXP * LANES <= count:
        for a in range(MAX_EXP):
            row_max[a] = vmax(load_elem(x + k + a * LANES), row_max[a])
        k += MAX_EXP * LANES
    while k + LANES <= count:
        row_max[0] = vmax(load_elem(x + k), row_max[0])
        k += LANES
    if k < count:
        row_max[1] = vmax(load_elem(x + count - LANES) if count >= LANES else load_upto(x, 0, count, 0), row_max[1])
    for a in range(4, MAX_EXP):
        row_max[a - 4] = vmax(row_max[a - 4], row_max[a])
    return hmax(vmax(vmax(row_max[0], row_max[1]), vmax(row_max[2], row_max[3])))
