# Causal masking in place.

cdef inline void fill_elements(elem* y, elem value, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(count):
        y[j] = value

cdef void mask_row(elem[:, :, :] scores, Py_ssize_t r, Py_ssize_t offset, elem value) noexcept nogil:
    """One row of scores (outer, S, L): element j of row i is overwritten where j > i + offset."""
    cdef Py_ssize_t o = r // scores.shape[2], i = r % scores.shape[2], j
    cdef Py_ssize_t stride = scores.strides[1] // <Py_ssize_t>sizeof(elem)
    cdef Py_ssize_t visible = min(max(i + offset + 1, 0), scores.shape[1])
    cdef elem* y = &scores[o, 0, i] + visible * stride
    if stride == 1:
        fill_elements(y, value, scores.shape[1] - visible)
    else:
        for j in range(scores.shape[1] - visible):
            y[j * stride] = value

def causal_mask(elem[:, :, :] scores, Py_ssize_t offset, double value, int threads):
    """Overwrites scores (outer, S, L) with value where key j is after query i: j > i + offset."""
    cdef elem with_ = elem_of(<real>value)
    cdef Py_ssize_t r, turn, start, stop, tasks = scores.shape[0] * scores.shape[2]
    cdef Py_ssize_t slice_ = max(1, SLICE // scores.shape[1])
    for turn in range(steps(tasks, slice_)):
        start = turn * slice_
        stop = min(start + slice_, tasks)
        with nogil:
            if threads == 1:
                for r in range(start, stop):
                    mask_row(scores, r, offset, with_)
            else:
                for r in prange(start, stop, num_threads=threads, schedule="dynamic", chunksize=16):
                    mask_row(scores, r, offset, with_)
        PyErr_CheckSignals()
