# Causal masking in place.

cdef inline void mask_row(elem[:, :, :] scores, Py_ssize_t r, Py_ssize_t offset, elem value,
                          bint streamed) noexcept nogil:
    """One row of scores (outer, S, L): element j of row i is overwritten where j > i + offset."""
    cdef Py_ssize_t o = r // scores.shape[2], i = r % scores.shape[2], j
    cdef Py_ssize_t stride = scores.strides[1] // <Py_ssize_t>sizeof(elem)
    cdef Py_ssize_t visible = min(max(i + offset + 1, 0), scores.shape[1])
    cdef elem* y = &scores[o, 0, i] + visible * stride
    if stride == 1:
        fill_elements(y, value, scores.shape[1] - visible, streamed)
    else:
        for j in range(scores.shape[1] - visible):
            y[j * stride] = value

cdef void mask_rows(elem[:, :, :] scores, Py_ssize_t task, Py_ssize_t rows_a_task, Py_ssize_t offset, elem value,
                    bint streamed, Region* region) noexcept nogil:
    cdef Py_ssize_t r, first = task * rows_a_task
    start_task(region)
    for r in range(first, min(first + rows_a_task, scores.shape[0] * scores.shape[2])):
        mask_row(scores, r, offset, value, streamed)
    if streamed:
        stream_end()
    end_task(region, 1)

def causal_mask(elem[:, :, :] scores, Py_ssize_t offset, double value, int threads, bint streamed):
    """Overwrites scores (outer, S, L) with value where key j is after query i: j > i + offset."""
    cdef elem with_ = elem_of(NAN if isnan(value) else <real>value)     # see store_elem of bfloat16
    cdef Py_ssize_t t, turn, start, stop, size = max(1, TASK // scores.shape[1])
    cdef Py_ssize_t tasks = steps(scores.shape[0] * scores.shape[2], size)
    cdef Py_ssize_t slice_ = max(1, SLICE // (size * scores.shape[1]))
    cdef Region region
    for turn in range(steps(tasks, slice_)):
        start = turn * slice_
        stop = min(start + slice_, tasks)
        with nogil:
            region = alone_at_first(threads)
            while start < stop and alone(&region):
                mask_rows(scores, start, size, offset, with_, streamed, &region)
                start += 1
            if start < stop:
                begin_region(&region)
                for t in prange(start, stop, num_threads=threads, schedule="dynamic"):
                    mask_rows(scores, t, size, offset, with_, streamed, &region)
                end_region(&region)
            learn(&region)
        PyErr_CheckSignals()
