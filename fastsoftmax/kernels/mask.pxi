# Causal masking in place.

cdef inline void fill_elements(elem* y, elem value, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(count):
        y[j] = value

cdef struct Masked:
    elem* y                                     # (outer, S, L)
    Py_ssize_t keys, queries
    Py_ssize_t y_outer, y_n, y_inner            # strides in elements
    Py_ssize_t offset
    elem value
    Py_ssize_t rows, size                       # of all; a task

cdef void mask_row(const Masked* m, Py_ssize_t r) noexcept nogil:
    """Element j of row i is overwritten where j > i + offset."""
    cdef Py_ssize_t o = r // m.queries, i = r % m.queries, j
    cdef Py_ssize_t visible = min(max(i + m.offset + 1, 0), m.keys)
    cdef elem* y = m.y + o * m.y_outer + i * m.y_inner + visible * m.y_n
    if m.y_n == 1:
        fill_elements(y, m.value, m.keys - visible)
    else:
        for j in range(m.keys - visible):
            y[j * m.y_n] = m.value

cdef void mask_rows(const void* asked, Py_ssize_t task, int thread) noexcept nogil:
    cdef const Masked* m = <const Masked*>asked
    cdef Py_ssize_t r
    for r in range(task * m.size, min((task + 1) * m.size, m.rows)):
        mask_row(m, r)

def causal_mask(elem[:, :, :] scores, Py_ssize_t offset, double value, int threads):
    """Overwrites scores (outer, S, L) with value where key j is after query i: j > i + offset."""
    cdef Masked m
    cdef Py_ssize_t turn, start, stop, tasks, slice_
    m.y, m.keys, m.queries = &scores[0, 0, 0], scores.shape[1], scores.shape[2]
    m.y_outer, m.y_n, m.y_inner = (
        scores.strides[0] // <Py_ssize_t>sizeof(elem), scores.strides[1] // <Py_ssize_t>sizeof(elem),
        scores.strides[2] // <Py_ssize_t>sizeof(elem))
    m.offset, m.value = offset, elem_of(<real>value)
    m.rows, m.size = scores.shape[0] * m.queries, max(1, TASK // m.keys)
    tasks, slice_ = steps(m.rows, m.size), SLICE // TASK
    for turn in range(steps(tasks, slice_)):
        start = turn * slice_
        stop = min(start + slice_, tasks)
        with nogil:
            share(mask_rows, &m, start, stop, threads, False)
        PyErr_CheckSignals()
