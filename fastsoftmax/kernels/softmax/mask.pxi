# Causal masking in place.

cdef inline void mask_row(elem[:, :, :] scores, Py_ssize_t r, Py_ssize_t offset, elem value,
                          bint nontemporal) noexcept nogil:
    """One row of scores (outer, S, L): element j of row i is overwritten where j > i + offset."""
    cdef Py_ssize_t o = r // scores.shape[2], i = r % scores.shape[2], j
    cdef Py_ssize_t stride = scores.strides[1] // <Py_ssize_t>sizeof(elem)
    cdef Py_ssize_t visible = min(max(i + offset + 1, 0), scores.shape[1])
    cdef elem* y = &scores[o, 0, i] + visible * stride
    if stride == 1:
        fill_elements(y, value, scores.shape[1] - visible, nontemporal)
    else:
        for j in range(scores.shape[1] - visible):
            y[j * stride] = value

cdef void mask_rows(elem[:, :, :] scores, Py_ssize_t task, Py_ssize_t rows_a_task, Py_ssize_t offset, elem value,
                    bint nontemporal, ParallelRegion* region) noexcept nogil:
    cdef Py_ssize_t r, first = task * rows_a_task
    start_task(region)
    for r in range(first, min(first + rows_a_task, scores.shape[0] * scores.shape[2])):
        mask_row(scores, r, offset, value, nontemporal)
    if nontemporal:
        stream_end()
    end_task(region, 1)

def causal_mask(elem[:, :, :] scores, Py_ssize_t offset, double value, int threads, bint nontemporal):
    """Overwrites scores (outer, S, L) with value where key j is after query i: j > i + offset."""
    cdef elem with_ = elem_of(NAN if isnan(value) else <real>value)     # see store_elem of bfloat16
    cdef Py_ssize_t t, turn, start, stop, size = max(1, TASK // scores.shape[1])
    cdef Py_ssize_t tasks = ceil_div(scores.shape[0] * scores.shape[2], size)
    cdef Py_ssize_t slice_ = max(1, SLICE // (size * scores.shape[1]))
    cdef ParallelRegion region
    for turn in range(ceil_div(tasks, slice_)):
        start = turn * slice_
        stop = min(start + slice_, tasks)
        with nogil:
            region = open_region(threads)
            while start < stop and is_serial(&region):
                mask_rows(scores, start, size, offset, with_, nontemporal, &region)
                start += 1
            if start < stop:
                begin_parallel(&region)
                for t in prange(start, stop, num_threads=threads, schedule="dynamic"):
                    mask_rows(scores, t, size, offset, with_, nontemporal, &region)
                end_parallel(&region)
            close_region(&region)
        PyErr_CheckSignals()
