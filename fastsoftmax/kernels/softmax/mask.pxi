# Causal masking in place: scores (outer, S, L); element j of row i is overwritten if j > i + offset.

cdef struct MaskTasks:
    elem* scores
    Py_ssize_t outer, keys, queries
    Py_ssize_t outer_stride, key_stride, query_stride       # in elements
    Py_ssize_t offset
    Py_ssize_t size                                         # rows of a task
    elem value
    bint nontemporal

cdef inline void mask_row(const MaskTasks* a, Py_ssize_t r) noexcept nogil:
    cdef Py_ssize_t o = r // a.queries, i = r % a.queries, j
    cdef Py_ssize_t visible = min(max(i + a.offset + 1, 0), a.keys)
    cdef elem* y = a.scores + o * a.outer_stride + i * a.query_stride + visible * a.key_stride
    if a.key_stride == 1:
        fill_elements(y, a.value, a.keys - visible, a.nontemporal)
    else:
        for j in range(a.keys - visible):
            y[j * a.key_stride] = a.value

cdef Py_ssize_t mask_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const MaskTasks* a = <const MaskTasks*>context
    cdef Py_ssize_t r, start = task * a.size
    for r in range(start, min(start + a.size, a.outer * a.queries)):
        mask_row(a, r)
    if a.nontemporal:
        stream_end()
    return 1

cdef int run_mask_tasks(MaskTasks* a, double value, int threads) except -1:
    cdef fp_state modes = fp_enter()
    a.value = elem_of(NAN if isnan(value) else <real>value)     # see store_elem of bfloat16
    fp_leave(modes)
    a.size = max(1, TASK // a.keys)
    return run_tasks(mask_task, a, ceil_div(a.outer * a.queries, a.size), max(1, SLICE // (a.size * a.keys)), threads,
                     IN_SHARES)

def causal_mask(elem[:, :, :] scores, Py_ssize_t offset, double value, int threads, bint nontemporal):
    """Overwrites scores (outer, S, L) with value where key j is after query i: j > i + offset."""
    cdef MaskTasks a
    a.scores = &scores[0, 0, 0]
    a.outer, a.keys, a.queries = scores.shape[0], scores.shape[1], scores.shape[2]
    a.outer_stride = scores.strides[0] // <Py_ssize_t>sizeof(elem)
    a.key_stride = scores.strides[1] // <Py_ssize_t>sizeof(elem)
    a.query_stride = scores.strides[2] // <Py_ssize_t>sizeof(elem)
    a.offset, a.nontemporal = offset, nontemporal
    run_mask_tasks(&a, value, threads)

cdef int contiguous_causal_mask(void* scores, Py_ssize_t outer, Py_ssize_t queries, Py_ssize_t keys, Py_ssize_t offset,
                                double value, int threads, bint nontemporal) except -1:
    """causal_mask for scores (outer, L, S), C-contiguous; called by its address."""
    cdef MaskTasks a
    a.scores = <elem*>scores
    a.outer, a.keys, a.queries = outer, keys, queries
    a.outer_stride, a.key_stride, a.query_stride = queries * keys, 1, keys
    a.offset, a.nontemporal = offset, nontemporal
    return run_mask_tasks(&a, value, threads)
