# Pass 3 of a dense row: its results, weights times the normalizer or scores minus it.

cdef inline vreal weight_or_element(StoreKind stored, const real* weights_buf, const elem* x,
                                    Py_ssize_t k) noexcept nogil:
    return load_elem(x + k) if stored == STORE_LOGS else load(weights_buf + k)

cdef inline void results_of(StoreKind stored, const Shift* s, const Normalizer* normalizer, bint scaled, int registers,
                            real* weights_buf, const elem* x, vreal* results) noexcept nogil:
    cdef int a
    if stored == STORE_LOGS:
        for a in range(registers):
            results[a] = result_of(stored, s, normalizer, scaled, load_elem(x + a * LANES))
    else:
        normalize_weights(stored, normalizer[0], registers, weights_buf, results)

cdef inline void normalize_store_short(StoreKind stored, const Shift* s, const Normalizer* normalizer, bint scaled,
                                       const real* weights_buf, const elem* x, elem* y, Py_ssize_t stride,
                                       Py_ssize_t k, Py_ssize_t end) noexcept nogil:
    """Elements k to end of a chunk, through a buffer."""
    cdef elem[LANES] buffer
    cdef Py_ssize_t m
    while k < end:
        m = min(end - k, <Py_ssize_t>LANES)
        if stored == STORE_LOGS:
            memcpy(buffer, x + k, m * sizeof(elem))
        store_elem(buffer, result_of(stored, s, normalizer, scaled,
                                     weight_or_element(stored, weights_buf + k, buffer, 0)))
        scatter(y + k * stride, stride, buffer, m)
        k += m

cdef inline void normalize_stream(StoreKind stored, const Shift* s, const Normalizer* normalizer, bint scaled,
                                  real* weights_buf, const elem* x, elem* y, Py_ssize_t count) noexcept nogil:
    """normalize_store with non-temporal stores of whole cache lines, and normal stores before and after them."""
    cdef Py_ssize_t k = peel_to_cache_line(y)
    cdef vreal[4] results
    cdef int a
    normalize_store_short(stored, s, normalizer, scaled, weights_buf, x, y, 1, 0, k)
    while k + PARTIALS <= count:
        results_of(stored, s, normalizer, scaled, PARTIAL_REGS, weights_buf + k, x + k, results)
        for a in range(PARTIAL_REGS):
            stream(<real*>y + k + a * LANES, results[a])
        k += PARTIALS
    while k < count - LANES:
        store_elem(y + k, result_of(stored, s, normalizer, scaled, weight_or_element(stored, weights_buf, x, k)))
        k += LANES
    normalize_store_short(stored, s, normalizer, scaled, weights_buf, x, y, 1, k, count)

cdef inline void normalize_store(StoreKind stored, const Shift* shift, const Normalizer* normalizer_, bint scaled,
                                 real* weights_buf, const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t count,
                                 bint nontemporal) noexcept nogil:
    """Writes y (count), elements `stride` apart, from weights_buf (count), which may be changed, or from x (count).
    y may be x, unless nontemporal."""
    cdef Shift s = shift[0]
    cdef Normalizer normalizer = normalizer_[0]
    cdef Py_ssize_t k = 0, last = count - LANES, last_four = count - 4 * LANES
    cdef vreal begin, end
    cdef vreal[4] results
    cdef int a
    if stride != 1 or count < LANES:
        normalize_store_short(stored, &s, &normalizer, scaled, weights_buf, x, y, stride, 0, count)
        return
    if nontemporal and count >= 2 * PARTIALS:
        normalize_stream(stored, &s, &normalizer, scaled, weights_buf, x, y, count)
        return
    # The first and the last register overlap those between. They are read before any store, since y may be x.
    begin = weight_or_element(stored, weights_buf, x, 0)
    end = weight_or_element(stored, weights_buf, x, last)
    if count >= ALIGNED:
        k = peel_to_register(y)
    while k <= last_four:
        results_of(stored, &s, &normalizer, scaled, 4, weights_buf + k, x + k, results)
        for a in range(4):
            store_elem(y + k + a * LANES, results[a])
        k += 4 * LANES
    while k < last:
        store_elem(y + k, result_of(stored, &s, &normalizer, scaled, weight_or_element(stored, weights_buf, x, k)))
        k += LANES
    store_elem(y + last, result_of(stored, &s, &normalizer, scaled, end))
    if count >= ALIGNED:
        store_elem(y, result_of(stored, &s, &normalizer, scaled, begin))

cdef void normalize_store_chunk(StoreKind stored, bint scaled, const Shift* s, const Normalizer* normalizer,
                                real* weights_buf, const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t count,
                                bint nontemporal) noexcept nogil:
    # one call for each case, so that the compiler makes each its own loop
    if stored == STORE_WEIGHTS:
        normalize_store(STORE_WEIGHTS, s, normalizer, False, weights_buf, x, y, stride, count, nontemporal)
    elif stored == STORE_WEIGHTS_OR_ONE:
        normalize_store(STORE_WEIGHTS_OR_ONE, s, normalizer, False, weights_buf, x, y, stride, count, nontemporal)
    elif scaled:
        normalize_store(STORE_LOGS, s, normalizer, True, weights_buf, x, y, stride, count, nontemporal)
    else:
        normalize_store(STORE_LOGS, s, normalizer, False, weights_buf, x, y, stride, count, nontemporal)
