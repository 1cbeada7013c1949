# The sequences of a call, in the order in which they are computed. Each goes to prefill or to decode by its own size:
# its result does not depend on the sequences beside it.

cdef struct Sequence:
    Py_ssize_t b
    Py_ssize_t work                         # multiplications, or as many as count

cdef int more_work(const void* x, const void* y) noexcept nogil:
    """For qsort: most work first, equal ones by number."""
    cdef const Sequence* a = <const Sequence*>x
    cdef const Sequence* c = <const Sequence*>y
    if a.work != c.work:
        return -1 if a.work > c.work else 1
    return -1 if a.b < c.b else 1

cdef class Sequences:
    """The sequences of a call, `prefill` and `decode` those that have queries. If their lengths differ, those with most
    work come first, so that no thread is left with a long one at the end. If not, the lists are NULL: see sequence_at.
    """
    cdef Sequence* all
    cdef Sequence* prefill
    cdef Sequence* decode
    cdef Py_ssize_t prefills, decodes

    def __cinit__(self):
        self.all = self.prefill = self.decode = NULL

    def __dealloc__(self):
        free(self.all)

cdef inline Py_ssize_t sequence_at(const Sequence* list_, Py_ssize_t i) noexcept nogil:
    return i if list_ == NULL else list_[i].b

cdef inline bint is_ragged(const AttentionParams* params) noexcept nogil:
    """Whether sequences may differ in length."""
    return params.query.first != NULL or params.lengths != NULL

cdef Sequences order_sequences(const AttentionParams* params):
    cdef Sequences x = Sequences()
    cdef Py_ssize_t i, b
    if not is_ragged(params):
        x.decodes = params.batch if uses_decode(params, 0) else 0
        x.prefills = params.batch - x.decodes
        return x
    x.all = <Sequence*>allocate(3 * params.batch * <Py_ssize_t>sizeof(Sequence))
    x.prefill, x.decode = x.all + params.batch, x.all + 2 * params.batch
    for b in range(params.batch):
        x.all[b].b = b
        x.all[b].work = rows_of_head(params, b) * multiplications_of_row(params, keys_of(params, b))
    qsort(x.all, params.batch, sizeof(Sequence), more_work)
    for i in range(params.batch):
        b = x.all[i].b
        if rows_of_head(params, b) == 0:
            continue
        if uses_decode(params, b):
            x.decode[x.decodes] = x.all[i]
            x.decodes += 1
        else:
            x.prefill[x.prefills] = x.all[i]
            x.prefills += 1
    return x
