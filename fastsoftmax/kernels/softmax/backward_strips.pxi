# Gradients of softmax and log_softmax along another axis than the last: backward.pxi, for strips of rows side by side.
#
# A strip is up to STRIP_TILES tiles and a part of one, so that several cache lines are read from each page, and both
# passes read the arrays themselves. A part of a tile is computed as a whole one that overlaps the tile beside it, in
# the same strip. Sums are in the order of sum_grad_block.

cdef enum:
    STRIP_REGS = (STRIP_TILES + 1) * PARTIAL_REGS
    STRIP_ELEMENTS = 1 << 16                    # of both x and g: they stay in the L2 cache between the passes

cdef struct Strip:
    const elem* x                               # the first row of the whole tiles
    const elem* g
    elem* y
    Py_ssize_t x_n, g_n, y_n, n
    Py_ssize_t regs                             # of the whole tiles
    bint overlaps
    Py_ssize_t other                            # where overlaps: the first row of the overlapping tile
    bint nontemporal

cdef inline Py_ssize_t strip_rows(const Rows* rows) noexcept nogil:
    return PARTIALS * min(max(<Py_ssize_t>STRIP_ELEMENTS // (rows.n * PARTIALS), 1), <Py_ssize_t>STRIP_TILES)

cdef inline Py_ssize_t strips_of(const Rows* rows) noexcept nogil:
    """The number of strips of a matrix. The last one has the rows left over, if they are fewer than a tile."""
    cdef Py_ssize_t size = strip_rows(rows), count = rows.inner + rows.peel
    return max(count // size + (count % size >= PARTIALS), 1)

cdef inline bint uses_strips(const GradRows* a) noexcept nogil:
    return (has_sum(a.kind) and a.rows.inner >= PARTIALS and a.rows.x_inner == 1 and a.grads.x_inner == 1
            and a.rows.y_inner == 1 and a.rows.x_n != 1)

cdef inline bint is_whole_lines(Py_ssize_t stride) noexcept nogil:
    return stride * <Py_ssize_t>sizeof(elem) % 64 == 0

cdef inline Py_ssize_t strip_peel(const Rows* rows) noexcept nogil:
    """Rows by which the first strip is narrower, so that the next ones write whole cache lines."""
    cdef Py_ssize_t size = strip_rows(rows), peel = (PARTIALS - peel_to_cache_line(rows.y)) % PARTIALS
    if not rows.nontemporal or size == PARTIALS or rows.inner < 2 * size:
        return 0
    return peel if is_whole_lines(rows.y_n) and (is_whole_lines(rows.y_outer) or rows.outer == 1) else 0

cdef inline Strip strip_at(const GradRows* a, Py_ssize_t strip, Py_ssize_t* o, Py_ssize_t* i) noexcept nogil:
    """o, i: the first row of the whole tiles."""
    cdef Strip s
    cdef Py_ssize_t strips = strips_of(&a.rows), size = strip_rows(&a.rows)
    cdef Py_ssize_t start = strip % strips * size - a.rows.peel, stop = start + size
    if strip % strips + 1 == strips:
        stop = a.rows.inner
    o[0], i[0], s.other = strip // strips, start, stop - start - PARTIALS
    if start < 0:                               # narrower by the peel: a part of a tile comes first
        i[0] = start + PARTIALS
        s.other = -i[0]
    s.regs = (stop - i[0]) // PARTIALS * PARTIAL_REGS
    s.overlaps = start < 0 or (stop - start) % PARTIALS != 0
    s.x = a.rows.x + o[0] * a.rows.x_outer + i[0]
    s.g = a.grads.x + o[0] * a.grads.x_outer + i[0]
    s.y = a.rows.y + o[0] * a.rows.y_outer + i[0]
    s.x_n, s.g_n, s.y_n, s.n = a.rows.x_n, a.grads.x_n, a.rows.y_n, a.rows.n
    s.nontemporal = (a.rows.nontemporal and not s.overlaps and is_whole_lines(s.y_n)
                     and peel_to_cache_line(s.y) == 0)
    return s

cdef inline Py_ssize_t strip_register(const Strip* s, Py_ssize_t r) noexcept nogil:
    """The first row of register r."""
    return r * LANES if r < s.regs else s.other + (r - s.regs) * LANES

cdef inline Py_ssize_t registers_of(const Strip* s) noexcept nogil:
    return s.regs + (PARTIAL_REGS if s.overlaps else 0)

cdef inline GradTerms strip_terms(GradKind kind, bint hiding, const Strip* s, const elem* x, const elem* g,
                                  Py_ssize_t count) noexcept nogil:
    """The sum of elements 0, PARTIALS, ... below count, at most 4."""
    cdef GradTerms sum = no_grad_terms()
    cdef Py_ssize_t a
    for a in range(4):
        if a * PARTIALS >= count:
            break
        if hiding:
            add_grad_term(kind, &sum, load_elem(x + a * PARTIALS * s.x_n), load_elem(g + a * PARTIALS * s.g_n))
        else:
            sum.products = add_elements_at(sum.products, x + a * PARTIALS * s.x_n, g + a * PARTIALS * s.g_n)
    return sum

cdef inline void prefetch_strip(const elem* at, Py_ssize_t stride) noexcept nogil:
    """The elements of strip_terms of the next block."""
    cdef Py_ssize_t a
    for a in range(4):
        prefetch(at + (UNROLL + a * PARTIALS) * stride)

cdef inline void sum_strip_block(GradKind kind, bint hiding, const Strip* s, Py_ssize_t j, Py_ssize_t count,
                                 vdd* running) noexcept nogil:
    cdef Py_ssize_t part, at, regs = registers_of(s)
    cdef const elem* x = s.x + j * s.x_n
    cdef const elem* g = s.g + j * s.g_n
    cdef GradTerms terms
    cdef vdd* sum
    cdef Py_ssize_t r
    for part in range(min(count, <Py_ssize_t>PARTIALS)):
        for r in range(regs):
            at = strip_register(s, r)
            sum = &running[part * STRIP_REGS + r]
            if count == UNROLL:
                prefetch_strip(x + at + part * s.x_n, s.x_n)
                prefetch_strip(g + at + part * s.g_n, s.g_n)
                terms = strip_terms(kind, hiding, s, x + at + part * s.x_n, g + at + part * s.g_n, UNROLL)
            else:
                terms = strip_terms(kind, hiding, s, x + at + part * s.x_n, g + at + part * s.g_n, count - part)
            sum[0] = join_grad_terms(kind, sum[0], &terms)

cdef inline void clear_strip(Py_ssize_t regs, vdd* sums) noexcept nogil:
    cdef Py_ssize_t part, r
    for part in range(PARTIALS):
        for r in range(regs):
            sums[part * STRIP_REGS + r] = dd_zero()

cdef inline void end_strip_chunk(Py_ssize_t regs, vdd* running, vdd* chunks) noexcept nogil:
    cdef Py_ssize_t part, r, at
    for part in range(PARTIALS):
        for r in range(regs):
            at = part * STRIP_REGS + r
            chunks[at] = dd_add(chunks[at], dd_end(running[at]))
            running[at] = dd_zero()

cdef inline vdd strip_total(const vdd* chunks, Py_ssize_t r) noexcept nogil:
    cdef vdd_sum sum = dd_sum_start()
    cdef int part
    for part in range(PARTIALS):
        sum.chain[part % 4] = dd_add(sum.chain[part % 4], chunks[part * STRIP_REGS + r])
    return dd_sum_end(sum)

cdef inline bint sum_strip(GradKind kind, bint hiding, const Strip* s, GradShift* shifts) noexcept nogil:
    """Returns whether all sums are harmless."""
    cdef vdd[PARTIALS * STRIP_REGS] running, chunks
    cdef vreal harmless = broadcast(1)
    cdef Py_ssize_t j = 0, r, regs = registers_of(s)
    clear_strip(regs, running)
    clear_strip(regs, chunks)
    while j < s.n:
        sum_strip_block(kind, hiding, s, j, min(s.n - j, <Py_ssize_t>UNROLL), running)
        j += UNROLL
        if j % CHUNK == 0 or j >= s.n:
            end_strip_chunk(regs, running, chunks)
    for r in range(regs):
        split_exact(strip_total(chunks, r), &shifts[r].hi, &shifts[r].lo)
        harmless = select_or_zero(are_harmless(shifts[r].hi), harmless)
    return hmax(-harmless) == -1

cdef inline void store_strip(GradKind kind, bint scaled, bint nontemporal, const Strip* s,
                             const GradShift* shifts) noexcept nogil:
    """y may be x or g: the overlapping tile is read before y overwrites some of it."""
    cdef vreal[PARTIAL_REGS] x_other, g_other
    cdef const elem* x = s.x
    cdef const elem* g = s.g
    cdef elem* y = s.y
    cdef Py_ssize_t k, r, regs = s.regs, other = s.other
    cdef bint overlaps = s.overlaps
    cdef vreal x_, g_, grad
    cdef int v
    for v in range(PARTIAL_REGS):
        x_other[v] = g_other[v] = broadcast(0)
    for k in range(s.n):
        if overlaps:
            for v in range(PARTIAL_REGS):
                x_other[v], g_other[v] = load_elem(x + other + v * LANES), load_elem(g + other + v * LANES)
        x_, g_ = load_elem(x), load_elem(g)
        for r in range(regs):
            grad = grad_of(kind, scaled, &shifts[r], x_, g_)
            if r + 1 < regs:                    # before the store: see store_whole_grads
                x_, g_ = load_elem(x + (r + 1) * LANES), load_elem(g + (r + 1) * LANES)
            if nontemporal:
                stream(<real*>y + r * LANES, grad)
            else:
                store_elem(y + r * LANES, grad)
        if overlaps:
            for v in range(PARTIAL_REGS):
                store_elem(y + other + v * LANES, grad_of(kind, scaled, &shifts[regs + v], x_other[v], g_other[v]))
        x, g, y = x + s.x_n, g + s.g_n, y + s.y_n

cdef void hidden_strip(bint scaled, Strip s, GradShift* shifts) noexcept nogil:
    """A strip of GRAD_SOFTMAX with a sum that is not harmless. It is a copy, as the rows of sum_hidden_grads are."""
    sum_strip(GRAD_SOFTMAX, True, &s, shifts)
    if scaled:                                  # two calls: GCC 12 fails on the one with `scaled`, for double and SSE2
        store_strip(GRAD_SOFTMAX, True, False, &s, shifts)
    else:
        store_strip(GRAD_SOFTMAX, False, False, &s, shifts)

cdef inline void grad_strips(GradKind kind, bint scaled, const GradRows* a, Py_ssize_t first,
                             Py_ssize_t end) noexcept nogil:
    cdef GradKind stored = GRAD_SOFTMAX_FINITE if kind == GRAD_SOFTMAX else kind
    cdef GradShift[STRIP_REGS] shifts
    cdef TilePosition position
    cdef Strip s
    cdef Py_ssize_t t, o, i, r
    position.tile_rows = LANES
    for t in range(first, end):
        s = strip_at(a, t, &o, &i)
        for r in range(registers_of(&s)):
            position.first = row_of(&a.rows, o, i + strip_register(&s, r))
            shifts[r] = tile_grad_shift(a, &position, 0)
        if not sum_strip(kind, must_hide(kind), &s, shifts) and not must_hide(kind):
            hidden_strip(scaled, s, shifts)
        elif s.nontemporal:
            store_strip(stored, scaled, True, &s, shifts)
        else:
            store_strip(stored, scaled, False, &s, shifts)
