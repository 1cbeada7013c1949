# The third pass over a row: its results.

cdef inline vreal weight_or_element(int stored, const real* weights_buf, const elem* x,
                                    Py_ssize_t k) noexcept nogil:
    if stored == STORE_WEIGHTS or stored == STORE_WEIGHTS_OR_ONE:
        return load(weights_buf + k)
    return load_elem(x + k)

cdef inline void normalize_store_short(int stored, const Shift* s, const Normalizer* normalizer, bint scaled,
                                       const real* weights_buf, const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t k,
                                       Py_ssize_t end) noexcept nogil:
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

cdef inline void normalize_store(int stored, const Shift* shift, const Normalizer* normalizer_, bint scaled,
                                 real* weights_buf, const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t count,
                                 bint nontemporal) noexcept nogil:
    """Writes the results of a chunk, from its weights in `weights_buf`, which may be changed, or from its elements x.
    y may be x, unless nontemporal."""
    cdef Shift s = shift[0]
    cdef Normalizer normalizer = normalizer_[0]
    cdef Py_ssize_t k = 0, last = count - LANES
    cdef vreal begin, end
    cdef vreal[4] results
    cdef int a
    if stride != 1 or count < LANES:
        normalize_store_short(stored, &s, &normalizer, scaled, weights_buf, x, y, stride, 0, count)
        return
    # The first and last register overlap those between, so they are read before any store: y may be x.
    begin = weight_or_element(stored, weights_buf, x, 0)
    end = weight_or_element(stored, weights_buf, x, last)
    if nontemporal and count >= 2 * PARTIALS:
        k = peel_to_cache_line(y)
        normalize_store_short(stored, &s, &normalizer, scaled, weights_buf, x, y, 1, 0, k)
        while k + PARTIALS <= count:
            if stored == STORE_LOGS:
                for a in range(PARTIAL_REGS):
                    results[a] = result_of(stored, &s, &normalizer, scaled, load_elem(x + k + a * LANES))
            else:
                normalize_weights(stored, normalizer, PARTIAL_REGS, weights_buf + k, results)
            for a in range(PARTIAL_REGS):
                stream(<real*>y + k + a * LANES, results[a])
            k += PARTIALS
        if k == count:
            return
        while k < last:
            store_elem(y + k, result_of(stored, &s, &normalizer, scaled,
                                        weight_or_element(stored, weights_buf, x, k)))
            k += LANES
        normalize_store_short(stored, &s, &normalizer, scaled, weights_buf, x, y, 1, k, count)
        return
    if count >= ALIGNED:
        k = peel_to_register(y)
    while k + 4 * LANES <= count:
        if stored == STORE_LOGS:
            for a in range(4):
                results[a] = result_of(stored, &s, &normalizer, scaled, load_elem(x + k + a * LANES))
        else:
            normalize_weights(stored, normalizer, 4, weights_buf + k, results)
        for a in range(4):
            store_elem(y + k + a * LANES, results[a])
        k += 4 * LANES
    while k < last:
        store_elem(y + k, result_of(stored, &s, &normalizer, scaled,
                                    weight_or_element(stored, weights_buf, x, k)))
        k += LANES
    store_elem(y + last, result_of(stored, &s, &normalizer, scaled, end))
    if count >= ALIGNED:
        store_elem(y, result_of(stored, &s, &normalizer, scaled, begin))

cdef void normalize_store_chunk(int stored, bint scaled, const Shift* s, const Normalizer* normalizer,
                                real* weights_buf, const elem* x, elem* y, Py_ssize_t stride, Py_ssize_t count,
                                bint nontemporal) noexcept nogil:
    if stored == STORE_WEIGHTS:
        normalize_store(STORE_WEIGHTS, s, normalizer, False, weights_buf, x, y, stride, count, nontemporal)
    elif stored == STORE_WEIGHTS_OR_ONE:
        normalize_store(STORE_WEIGHTS_OR_ONE, s, normalizer, False, weights_buf, x, y, stride, count, nontemporal)
    elif scaled:
        normalize_store(STORE_LOGS, s, normalizer, True, weights_buf, x, y, stride, count, nontemporal)
    else:
        normalize_store(STORE_LOGS, s, normalizer, False, weights_buf, x, y, stride, count, nontemporal)
