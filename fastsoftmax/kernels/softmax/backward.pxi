# The gradients of softmax, log_softmax, logsumexp and softmax_entropy with respect to x, with g that of the result:
#
#   kind               x holds           gradient
#   GRAD_SOFTMAX       weights y         y * (g - sum(y * g)) / temperature
#   GRAD_LOG_SOFTMAX   log weights       (g - exp(x) * sum(g)) / temperature
#   GRAD_LOGSUMEXP     scores            g * exp(x - value)                          value: the logsumexp
#   GRAD_ENTROPY       log weights       -g * exp(x) * (x + value) / temperature     value: the entropy
#
# g has the shape of x in the first two, and one number a row in the others. A weight of 0 (a log weight or score of
# -inf; in the last two also an exponential that underflows) has a gradient of exactly 0; g is not read there. The sums
# contain their rounding errors: exact_sums.pxi. Two passes over a row, the sum and the store; the last two kinds need
# none but the store.

cdef enum GradKind:                             # the same numbers as in _gradients.py
    GRAD_SOFTMAX = 0
    GRAD_LOG_SOFTMAX = 1
    GRAD_LOGSUMEXP = 2
    GRAD_ENTROPY = 3
    GRAD_SOFTMAX_FINITE = 4                     # the store of GRAD_SOFTMAX where is_harmless(sum)

cdef enum:
    GRAD_NARROW_MAX = 12                        # elements: contiguous rows up to this are as fast in tiles, or faster
    LOG_GRAD_NARROW_MAX = 24                    # likewise where exp is computed
    GRAD_DELAYED_MAX = 64                       # elements: rows up to this are stored after the sum of the next one
    GRAD_DELAYED_IN_CACHE = 256                 # likewise in arrays of up to FAR_ELEMENTS
    GRAD_ALIGNED = 16 * LANES                   # elements: for shorter rows, alignment costs more than it saves
    MIN_STREAMED = 2048                         # elements: streaming shorter rows costs more, if they share cache lines

cdef struct GradRows:
    GradKind kind
    Rows rows                                   # rows.x, rows.where, rows.temperature; rows.y: the gradient
    Rows grads                                  # grads.x: g, where it has the shape of x
    const real* g                               # otherwise one number a row
    const real* value                           # of GRAD_LOGSUMEXP and GRAD_ENTROPY
    Py_ssize_t g_outer, g_inner, value_outer, value_inner

cdef inline bint has_sum(GradKind kind) noexcept nogil:
    return kind == GRAD_SOFTMAX or kind == GRAD_LOG_SOFTMAX or kind == GRAD_SOFTMAX_FINITE

cdef struct GradShift:                          # the constants of one row, or of LANES rows
    vreal hi, lo                                # the sum
    vreal g, value
    vreal factor, factor_lo                     # 1 / temperature
    bint harmless                               # the sum

cdef inline vmask has_no_weight(GradKind kind, vreal x) noexcept nogil:
    return eq(x, broadcast(0) if kind == GRAD_SOFTMAX else broadcast(-INFINITY))

# UNROLL elements are a step: the up to 4 terms of each partial sum are added up, and join it together, so that most
# additions need not wait for one another. A weight of 0 makes a term of 0 unless g is infinite or NaN, so a row is
# first summed without `hiding` g there, and again if the sum is not finite. Where it is, all g are, and y needs no mask
# either: unless g - sum overflows, 0 times it is 0.

cdef inline bint must_hide(GradKind kind) noexcept nogil:
    return kind != GRAD_SOFTMAX

cdef inline bint is_harmless(real sum_) noexcept nogil:
    """Whether all g are finite, and so is g - sum_ for any."""
    return -HUGE_BIAS < sum_ < HUGE_BIAS

cdef inline vmask are_harmless(vreal sums) noexcept nogil:
    return lt(vabs(sums), broadcast(HUGE_BIAS))

cdef struct GradTerms:                          # the sum of up to 4; `products` for GRAD_SOFTMAX alone
    vproducts products
    vdd terms

cdef inline GradTerms no_grad_terms() noexcept nogil:
    cdef GradTerms sum
    sum.products, sum.terms = no_products(), dd_zero()
    return sum

cdef inline void add_grad_term(GradKind kind, GradTerms* sum, vreal x, vreal g) noexcept nogil:
    g = zero_where(has_no_weight(kind, x), g)
    if kind == GRAD_SOFTMAX:
        sum.products = add_elements(sum.products, x, g)
    else:
        sum.terms = dd_add_term(sum.terms, factor_of(g))

cdef inline vdd join_grad_terms(GradKind kind, vdd running, const GradTerms* sum) noexcept nogil:
    return dd_join_products(running, sum.products) if kind == GRAD_SOFTMAX else dd_join(running, sum.terms)

cdef inline vreal grad_of(GradKind kind, bint scaled, const GradShift* s, vreal x, vreal g) noexcept nogil:
    cdef vreal d, weight, y
    cdef vmask none = has_no_weight(kind, x)
    if kind == GRAD_SOFTMAX or kind == GRAD_SOFTMAX_FINITE:
        y = fma_(x, (g - s.hi) - s.lo, broadcast(0))                # 0, not -0, where x is 0
    elif kind == GRAD_LOG_SOFTMAX:
        weight = exp_(vmin(broadcast(1), x))    # exp_ is valid to 1, and no log weight is above 0
        y = fma_(-weight, s.lo, fma_(-weight, s.hi, g))
    elif kind == GRAD_LOGSUMEXP:
        d = x - s.value
        weight = zero_where(none, exp_(vmin(broadcast(1), d)))      # -inf - -inf would be NaN
        none = eq(weight, broadcast(0))         # also where it underflows: s.g may be infinite or NaN
        y = s.g * fma_(weight, finite_or_none(two_sum_err(x, -s.value, d)), weight)
    else:
        weight = exp_(vmin(broadcast(1), x))
        none = eq(weight, broadcast(0))
        y = -(s.g * weight) * (x + s.value)
    if scaled:
        y = fma_(y, s.factor, y * s.factor_lo)
    return y if kind == GRAD_SOFTMAX_FINITE else zero_where(none, y)

cdef GradShift grad_shift(const GradRows* a, const Row* row) noexcept nogil:
    """All but the sum."""
    cdef GradShift s
    cdef Shift unused
    cdef double t
    s.hi = s.lo = s.g = s.value = broadcast(0)
    s.harmless = False
    if not has_sum(a.kind):
        s.g = broadcast(a.g[row.o * a.g_outer + row.i * a.g_inner])
        s.value = broadcast(a.value[row.o * a.value_outer + row.i * a.value_inner])
    no_temperature(&unused)
    if a.rows.scaled:
        t = a.rows.temperature[row.o * a.rows.temperature_outer + row.i * a.rows.temperature_inner]
        set_temperature(&unused, broadcast(<real>t), broadcast(<real>(t - <real>t)))
    s.factor, s.factor_lo = unused.factor, unused.factor_lo
    return s

# Dense rows.

cdef inline void add_grad_steps(GradKind kind, bint hiding, const elem* x, const elem* g, Py_ssize_t count,
                                vdd* running) noexcept nogil:
    """The elements of a chunk."""
    cdef bint is_product = kind == GRAD_SOFTMAX
    cdef real hidden = <real>0 if is_product else <real>-INFINITY
    cdef Py_ssize_t k = 0
    while k + UNROLL <= count:
        add_step(is_product, hiding, hidden, x + k, g + k, UNROLL, 0, running)
        k += UNROLL
    if k < count:
        add_step(is_product, hiding, hidden, x + k, g + k, count - k, k, running)

cdef inline void add_grad_chunk(GradKind kind, bint hiding, const elem* x, const elem* g, Py_ssize_t count,
                                ExactSums* sums) noexcept nogil:
    cdef vdd[PARTIAL_REGS] running
    cdef int v
    for v in range(PARTIAL_REGS):
        running[v] = dd_zero()
    add_grad_steps(kind, hiding, x, g, count, running)
    for v in range(PARTIAL_REGS):
        sums.chunks[v] = dd_add(sums.chunks[v], dd_end(running[v]))

# One function for each case, which all rows but contiguous ones of one chunk share.

cdef void sum_grad_chunk(GradKind kind, bint hiding, const elem* x, const elem* g, Py_ssize_t count,
                         ExactSums* sums) noexcept nogil:
    if kind == GRAD_LOG_SOFTMAX:
        add_grad_chunk(GRAD_LOG_SOFTMAX, True, x, g, count, sums)
    elif hiding:
        add_grad_chunk(GRAD_SOFTMAX, True, x, g, count, sums)
    else:
        add_grad_chunk(GRAD_SOFTMAX, False, x, g, count, sums)

# A load is taken for one of what was stored just before if their addresses agree modulo 4096, as those of large arrays
# of NumPy nearly do. So the next registers are loaded before one is stored.

cdef inline void store_grad(bint nontemporal, elem* y, vreal grad) noexcept nogil:
    if nontemporal:
        stream(<real*>y, grad)
    else:
        store_elem(y, grad)

cdef inline Py_ssize_t store_whole_grads(GradKind kind, bint scaled, bint nontemporal, const GradShift* s,
                                         const elem* x, const elem* g, elem* y, Py_ssize_t k,
                                         Py_ssize_t count) noexcept nogil:
    """Elements k .. count - 1, in whole registers. Returns the element after them."""
    cdef vreal x_, g_, x_next, g_next, grad
    g_ = g_next = broadcast(0)
    if k + LANES > count:
        return k
    x_ = load_elem(x + k)
    if has_sum(kind):
        g_ = load_elem(g + k)
    if kind == GRAD_SOFTMAX_FINITE:             # one in a turn takes 1.5 times as long (Zen 3)
        while k + 3 * LANES <= count:
            x_next, g_next = load_elem(x + k + LANES), load_elem(g + k + LANES)
            store_grad(nontemporal, y + k, grad_of(kind, scaled, s, x_, g_))
            x_, g_ = load_elem(x + k + 2 * LANES), load_elem(g + k + 2 * LANES)
            store_grad(nontemporal, y + k + LANES, grad_of(kind, scaled, s, x_next, g_next))
            k += 2 * LANES
    while k + LANES <= count:
        grad = grad_of(kind, scaled, s, x_, g_)
        if k + 2 * LANES <= count:
            x_ = load_elem(x + k + LANES)
            if has_sum(kind):
                g_ = load_elem(g + k + LANES)
        store_grad(nontemporal, y + k, grad)
        k += LANES
    return k

cdef inline void store_grad_chunk(GradKind kind, bint scaled, const GradShift* shift, const elem* x, const elem* g,
                                  elem* y, Py_ssize_t stride, Py_ssize_t count, bint nontemporal) noexcept nogil:
    """y may be x or g."""
    cdef GradShift s = shift[0]
    cdef Py_ssize_t k = 0, m, last = count - LANES
    cdef vreal x_last, g_last
    cdef bint overlaps = stride == 1 and count >= LANES and count % LANES != 0
    x_last = g_last = broadcast(0)
    if overlaps:                                # read before y overwrites some of it
        x_last = load_elem(x + last)
        if has_sum(kind):
            g_last = load_elem(g + last)
    if stride == 1 and nontemporal and count >= 2 * PARTIALS:
        m = peel_to_cache_line(y)
        if m:
            store_grad_chunk_end(kind, scaled, &s, x, g, y, 1, m)
        k = store_whole_grads(kind, scaled, True, &s, x, g, y, m, m + (count - m) // PARTIALS * PARTIALS)
    if stride == 1:
        k = store_whole_grads(kind, scaled, False, &s, x, g, y, k, count)
    if overlaps:
        store_elem(y + last, grad_of(kind, scaled, &s, x_last, g_last))
    elif k < count:
        store_grad_chunk_end(kind, scaled, &s, x + k, g + k, y + k * stride, stride, count - k)

cdef inline void store_grad_chunk_end(GradKind kind, bint scaled, const GradShift* s, const elem* x, const elem* g,
                                      elem* y, Py_ssize_t stride, Py_ssize_t count) noexcept nogil:
    """Results with gaps, and those after the last whole register."""
    cdef elem[LANES] x_end, g_end, line
    cdef Py_ssize_t k = 0
    cdef vreal grad, zero = broadcast(0)
    while k + LANES <= count:
        grad = load_elem(g + k) if has_sum(kind) else zero
        store_elem(line, grad_of(kind, scaled, s, load_elem(x + k), grad))
        scatter(y + k * stride, stride, line, LANES)
        k += LANES
    if k < count:
        memset(x_end, 0, sizeof(x_end))
        memset(g_end, 0, sizeof(g_end))
        memcpy(x_end, x + k, (count - k) * sizeof(elem))
        if has_sum(kind):
            memcpy(g_end, g + k, (count - k) * sizeof(elem))
        store_elem(line, grad_of(kind, scaled, s, load_elem(x_end), load_elem(g_end)))
        scatter(y + k * stride, stride, line, count - k)

cdef inline const elem* gather_grads(const GradRows* a, const Row* grad, Py_ssize_t start, Py_ssize_t count,
                                     const RowWorkspace* workspace) noexcept nogil:
    return gather_chunk(&a.grads, grad, start, count, <elem*>workspace.weights_buf)

cdef inline void store_grad_chunks(GradKind kind, bint scaled, const GradRows* a, const Row* row, const Row* grad,
                                   Py_ssize_t first, Py_ssize_t last, const GradShift* s,
                                   const RowWorkspace* workspace) noexcept nogil:
    cdef Py_ssize_t chunk, start, count
    cdef const elem* g = NULL
    for chunk in range(first, last):
        start = chunk * CHUNK
        count = min(row.n - start, CHUNK)
        if has_sum(kind):
            g = gather_grads(a, grad, start, count, workspace)
        store_grad_chunk(kind, scaled, s, gather_chunk(&a.rows, row, start, count, workspace.elements), g,
                         row.y + start * a.rows.y_n, a.rows.y_n, count, a.rows.nontemporal)

# Chunks first .. last - 1 of one row.

cdef void sum_chunks_of(const GradRows* a, bint hiding, const Row* row, const Row* grad, Py_ssize_t first,
                        Py_ssize_t last, const RowWorkspace* workspace, ExactSums* sums) noexcept nogil:
    cdef Py_ssize_t chunk, start, count
    for chunk in range(first, last):
        start = chunk * CHUNK
        count = min(row.n - start, CHUNK)
        sum_grad_chunk(a.kind, hiding, gather_chunk(&a.rows, row, start, count, workspace.elements),
                       gather_grads(a, grad, start, count, workspace), count, sums)

# One call for each case, so that the compiler makes each its own loop.

cdef void store_chunks_of(const GradRows* a, const Row* row, const Row* grad, Py_ssize_t first, Py_ssize_t last,
                          const GradShift* s, const RowWorkspace* workspace) noexcept nogil:
    cdef bint scaled = a.rows.scaled
    if a.kind == GRAD_SOFTMAX and not s.harmless:
        store_grad_chunks(GRAD_SOFTMAX, scaled, a, row, grad, first, last, s, workspace)
    elif a.kind == GRAD_SOFTMAX and scaled:
        store_grad_chunks(GRAD_SOFTMAX_FINITE, True, a, row, grad, first, last, s, workspace)
    elif a.kind == GRAD_SOFTMAX:
        store_grad_chunks(GRAD_SOFTMAX_FINITE, False, a, row, grad, first, last, s, workspace)
    elif a.kind == GRAD_LOG_SOFTMAX:
        store_grad_chunks(GRAD_LOG_SOFTMAX, scaled, a, row, grad, first, last, s, workspace)
    elif a.kind == GRAD_LOGSUMEXP:
        store_grad_chunks(GRAD_LOGSUMEXP, False, a, row, grad, first, last, s, workspace)
    else:
        store_grad_chunks(GRAD_ENTROPY, scaled, a, row, grad, first, last, s, workspace)

cdef inline bint set_grad_sum(vdd total, GradShift* s) noexcept nogil:
    """Returns whether the sum is harmless."""
    cdef real hi, lo
    dd_split_total(total, &hi, &lo)
    s.harmless = is_harmless(hi)
    s.hi, s.lo = broadcast(hi), finite_or_none(broadcast(lo))
    return s.harmless

cdef void sum_hidden_grads(const GradRows* a, Row row, Row grad, const RowWorkspace* workspace,
                           GradShift* s) noexcept nogil:
    """The sum without g where a weight is 0. The rows are copies, so that the caller can keep its own in registers."""
    cdef ExactSums sums
    clear_exact(&sums)
    sum_chunks_of(a, True, &row, &grad, 0, ceil_div(row.n, CHUNK), workspace, &sums)
    set_grad_sum(dd_total(sums.chunks), s)
    s.harmless = False

cdef void chunked_grad_rows(const GradRows* a, Py_ssize_t first_row, Py_ssize_t last_row,
                            const RowWorkspace* workspace) noexcept nogil:
    cdef Row row = row_at(&a.rows, first_row), grad = row
    cdef Py_ssize_t r, chunks = ceil_div(row.n, CHUNK)
    cdef ExactSums sums
    cdef GradShift s
    if has_sum(a.kind):
        grad = row_at(&a.grads, first_row)
    for r in range(first_row, last_row + 1):
        s = grad_shift(a, &row)
        if has_sum(a.kind):
            clear_exact(&sums)
            sum_chunks_of(a, False, &row, &grad, 0, chunks, workspace, &sums)
            if not set_grad_sum(dd_total(sums.chunks), &s) and not must_hide(a.kind):
                sum_hidden_grads(a, row, grad, workspace, &s)
        store_chunks_of(a, &row, &grad, 0, chunks, &s, workspace)
        if r < last_row:
            next_row(&a.rows, &row)
            if has_sum(a.kind):
                next_row(&a.grads, &grad)

# Contiguous rows of one chunk.

cdef inline bint is_one_contiguous_chunk(const GradRows* a) noexcept nogil:
    return (LANES <= a.rows.n <= CHUNK and a.rows.x_n == 1 and a.grads.x_n == 1 and a.rows.y_n == 1
            and not a.rows.nontemporal)

cdef struct GradSum:                            # of one row
    real hi, lo
    bint harmless

cdef inline GradSum sum_contiguous_grads(GradKind kind, const elem* x, const elem* g, Py_ssize_t n) noexcept nogil:
    cdef vdd[PARTIAL_REGS] sums
    cdef GradSum sum
    cdef int v
    for v in range(PARTIAL_REGS):
        sums[v] = dd_zero()
    add_grad_steps(kind, must_hide(kind), x, g, n, sums)
    for v in range(PARTIAL_REGS):
        sums[v] = dd_end(sums[v])
    dd_split_total(dd_total(sums), &sum.hi, &sum.lo)
    sum.harmless = is_harmless(sum.hi)
    return sum

cdef inline void store_contiguous_grads(GradKind kind, bint scaled, const GradShift* shift, const elem* x,
                                        const elem* g, elem* y, Py_ssize_t n) noexcept nogil:
    """y may be x or g. A first or last register that overlaps others is read before these are written."""
    cdef GradShift s = shift[0]
    cdef Py_ssize_t last = n - LANES, peel = peel_to_register(y) if n >= GRAD_ALIGNED else 0
    cdef vreal x_first, g_first, x_last, g_last
    cdef bint overlaps = (n - peel) % LANES != 0
    x_first = g_first = x_last = g_last = broadcast(0)
    if peel:
        x_first, g_first = load_elem(x), load_elem(g)
    if overlaps:
        x_last, g_last = load_elem(x + last), load_elem(g + last)
    store_whole_grads(kind, scaled, False, &s, x, g, y, peel, n)
    if peel:
        store_elem(y, grad_of(kind, scaled, &s, x_first, g_first))
    if overlaps:
        store_elem(y + last, grad_of(kind, scaled, &s, x_last, g_last))

cdef void store_hidden_grads(bint scaled, GradShift s, const elem* x, const elem* g, elem* y,
                             Py_ssize_t n) noexcept nogil:
    """A row of GRAD_SOFTMAX whose sum is not harmless."""
    cdef ExactSums sums
    clear_exact(&sums)
    sum_grad_chunk(GRAD_SOFTMAX, True, x, g, n, &sums)
    set_grad_sum(dd_total(sums.chunks), &s)
    store_contiguous_grads(GRAD_SOFTMAX, scaled, &s, x, g, y, n)

cdef void store_contiguous_log_grads(bint scaled, GradShift s, const elem* x, const elem* g, elem* y,
                                     Py_ssize_t n) noexcept nogil:
    """A function of its own: exp needs all registers."""
    s.lo = finite_or_none(s.lo)
    if scaled:
        store_contiguous_grads(GRAD_LOG_SOFTMAX, True, &s, x, g, y, n)
    else:
        store_contiguous_grads(GRAD_LOG_SOFTMAX, False, &s, x, g, y, n)

# A short row is stored after the sum of the next one, which does not wait for that of its own. Of arrays beyond the
# caches, only the shortest: one row is read while another is written.

cdef inline bint stores_late(const GradRows* a) noexcept nogil:
    if a.rows.outer * a.rows.inner * a.rows.n <= FAR_ELEMENTS:
        return a.rows.n <= GRAD_DELAYED_IN_CACHE
    return a.rows.n <= GRAD_DELAYED_MAX

cdef inline void contiguous_grad_rows(GradKind kind, const GradRows* a, Py_ssize_t first_row,
                                      Py_ssize_t last_row) noexcept nogil:
    cdef bint scaled = a.rows.scaled
    cdef Py_ssize_t r = first_row, n = a.rows.n, delay = stores_late(a), count, i, x_step, g_step, y_step
    cdef const elem* x
    cdef const elem* g
    cdef elem* y
    cdef Row row
    cdef GradSum sum, before
    cdef GradShift s
    x_step, g_step, y_step = a.rows.x_inner, a.grads.x_inner, a.rows.y_inner
    while r <= last_row:
        row = row_at(&a.rows, r)
        s = grad_shift(a, &row)
        x, g, y = row.x, row_at(&a.grads, r).x, row.y - delay * y_step
        count = min(last_row + 1 - r, a.rows.inner - row.i)         # rows of one matrix
        sum.hi = sum.lo = 0
        sum.harmless = True
        for i in range(count + delay):
            before = sum
            if i < count:
                sum = sum_contiguous_grads(kind, x, g, n)
            if not delay:
                before = sum
            if i >= delay:
                if scaled:
                    row.i = row.i + (i > delay)
                    s = grad_shift(a, &row)
                s.hi, s.lo = broadcast(before.hi), broadcast(before.lo)
                if kind == GRAD_LOG_SOFTMAX:
                    store_contiguous_log_grads(scaled, s, x - delay * x_step, g - delay * g_step, y, n)
                elif not before.harmless:
                    store_hidden_grads(scaled, s, x - delay * x_step, g - delay * g_step, y, n)
                elif scaled:
                    store_contiguous_grads(GRAD_SOFTMAX_FINITE, True, &s, x - delay * x_step, g - delay * g_step, y, n)
                else:
                    store_contiguous_grads(GRAD_SOFTMAX_FINITE, False, &s, x - delay * x_step, g - delay * g_step, y, n)
            x, g, y = x + x_step, g + g_step, y + y_step
        r += count

# Tiles, for other rows, and for narrow ones. The operands of a block stand in tile.p (x) and tile.f (g).

cdef inline bint uses_grad_tiles(const GradRows* a) noexcept nogil:
    cdef Py_ssize_t narrow = GRAD_NARROW_MAX if a.kind == GRAD_SOFTMAX else LOG_GRAD_NARROW_MAX
    return uses_tiles(&a.rows) and not (has_sum(a.kind) and is_one_contiguous_chunk(a) and a.rows.n > narrow)

cdef void load_grad_tiles(const GradRows* a, const TilePosition* position, const TilePosition* grad,
                          Py_ssize_t j, Py_ssize_t count, TileWorkspace* tile) noexcept nogil:
    cdef vreal[PARTIAL_REGS] unused
    cdef int c
    for c in range(PARTIAL_REGS):
        unused[c] = broadcast(0)
    load_tile(&a.rows, position, j, count, tile.p, unused)
    if has_sum(a.kind):
        load_tile(&a.grads, grad, j, count, tile.f, unused)

cdef GradShift tile_grad_shift(const GradRows* a, const TilePosition* position, int c) noexcept nogil:
    """The constants of the rows of register c, but the sum."""
    cdef GradShift s
    cdef Shift shift = tile_shift(&a.rows, position, c, a.rows.scaled, broadcast(0))
    cdef real[LANES] g, value
    cdef Py_ssize_t k, i
    s.hi = s.lo = s.g = s.value = broadcast(0)
    s.harmless = False                          # not used
    s.factor, s.factor_lo = shift.factor, shift.factor_lo
    if has_sum(a.kind):
        return s
    for k in range(LANES):
        i = position.first.i + min(c * LANES + k, position.tile_rows - 1)
        g[k] = a.g[position.first.o * a.g_outer + i * a.g_inner]
        value[k] = a.value[position.first.o * a.value_outer + i * a.value_inner]
    s.g, s.value = load(g), load(value)
    return s

cdef inline GradTerms tile_terms(GradKind kind, bint hiding, Py_ssize_t part, int c, Py_ssize_t count,
                                 const TileWorkspace* tile) noexcept nogil:
    """The sum of elements part, part + PARTIALS, ... below count, at most 4."""
    cdef GradTerms sum = no_grad_terms()
    cdef Py_ssize_t k, at
    for k in range(ceil_div(count - part, PARTIALS)):
        at = (part + k * PARTIALS) * PARTIALS + c * LANES
        if hiding:
            add_grad_term(kind, &sum, load(tile.p + at), load(tile.f + at))
        else:
            sum.products = add_reals_at(sum.products, tile.p + at, tile.f + at)
    return sum

cdef inline void sum_grad_block(GradKind kind, bint hiding, Py_ssize_t count, TileWorkspace* tile) noexcept nogil:
    """The terms of a block, which is a step: elements part, part + PARTIALS, ... join partial sum `part`."""
    cdef GradTerms sum
    cdef Py_ssize_t part, at
    cdef int c
    for part in range(min(count, <Py_ssize_t>PARTIALS)):
        for c in range(PARTIAL_REGS):
            sum = tile_terms(kind, hiding, part, c, count, tile)
            at = part * PARTIAL_REGS + c
            tile.moments[at] = join_grad_terms(kind, tile.moments[at], &sum)

cdef inline void sum_single_grad_block(GradKind kind, bint hiding, Py_ssize_t n, const TileWorkspace* tile,
                                       GradShift* s) noexcept nogil:
    """The sums of rows of at most a block: a partial sum is a step, and need not be kept."""
    cdef GradTerms sum
    cdef vdd_sum total
    cdef Py_ssize_t first, parts = min(n, <Py_ssize_t>PARTIALS)
    cdef int c, k
    for c in range(PARTIAL_REGS):
        total = dd_sum_start()
        first = 0
        while first < parts:
            for k in range(4):
                if first + k < parts:
                    sum = tile_terms(kind, hiding, first + k, c, n, tile)
                    total.chain[k] = dd_add(total.chain[k], dd_end(join_grad_terms(kind, dd_zero(), &sum)))
            first += 4
        split_exact(dd_sum_end(total), &s[c].hi, &s[c].lo)

cdef inline bint sum_grad_tile(GradKind kind, bint hiding, const GradRows* a, const TilePosition* position,
                               const TilePosition* grad, TileWorkspace* tile, GradShift* s) noexcept nogil:
    """Returns whether all sums are harmless."""
    cdef Py_ssize_t j = 0, count, n = a.rows.n
    cdef vreal harmless = broadcast(1)
    cdef int c
    if n <= BLOCK:
        sum_single_grad_block(kind, hiding, n, tile, s)
    else:
        clear_exact_tile(n, tile.moments, tile.weights)
        while j < n:
            count = min(n - j, <Py_ssize_t>BLOCK)
            load_grad_tiles(a, position, grad, j, count, tile)
            sum_grad_block(kind, hiding, count, tile)
            j += BLOCK
            if j % CHUNK == 0 or j >= n:
                end_exact_tile_chunk(n, tile.moments, tile.weights)
        for c in range(PARTIAL_REGS):
            split_exact(exact_tile_sum(n, c, tile.weights), &s[c].hi, &s[c].lo)
    for c in range(PARTIAL_REGS):
        harmless = select_or_zero(are_harmless(s[c].hi), harmless)
    return hmax(-harmless) == -1

cdef inline void store_grad_tile(GradKind kind, bint scaled, const GradRows* a, const TilePosition* position,
                                 const TilePosition* grad, TileWorkspace* tile, const GradShift* s) noexcept nogil:
    cdef Py_ssize_t j = 0, k, count, n = a.rows.n
    cdef real* at
    cdef int c
    while j < n:
        count = min(n - j, <Py_ssize_t>BLOCK)
        if n > BLOCK or not has_sum(kind):
            load_grad_tiles(a, position, grad, j, count, tile)
        for k in range(count):
            for c in range(PARTIAL_REGS):
                at = tile.p + k * PARTIALS + c * LANES
                store(at, grad_of(kind, scaled, &s[c], load(at), load(tile.f + k * PARTIALS + c * LANES)))
        store_tile_of_results(&a.rows, position, j, count, tile.p)
        j += BLOCK

cdef void hidden_grad_tile(const GradRows* a, TilePosition position, TilePosition grad, TileWorkspace* tile,
                           GradShift* s) noexcept nogil:
    """A tile of GRAD_SOFTMAX with a sum that is not harmless. Positions are copies, as those of sum_hidden_grads."""
    sum_grad_tile(GRAD_SOFTMAX, True, a, &position, &grad, tile, s)
    store_grad_tile(GRAD_SOFTMAX, a.rows.scaled, a, &position, &grad, tile, s)

cdef inline void grad_tile_of_rows(GradKind kind, bint scaled, const GradRows* a, const TilePosition* position,
                                   const TilePosition* grad, const RowWorkspace* workspace) noexcept nogil:
    cdef TileWorkspace* tile = workspace.tile
    cdef GradShift[PARTIAL_REGS] s
    cdef int c
    for c in range(PARTIAL_REGS):
        s[c] = tile_grad_shift(a, position, c)
    if has_sum(kind):
        if a.rows.n <= BLOCK:
            load_grad_tiles(a, position, grad, 0, a.rows.n, tile)
        if not sum_grad_tile(kind, must_hide(kind), a, position, grad, tile, s) and not must_hide(kind):
            hidden_grad_tile(a, position[0], grad[0], tile, s)
            return
    store_grad_tile(GRAD_SOFTMAX_FINITE if kind == GRAD_SOFTMAX else kind, scaled, a, position, grad, tile, s)

# Tasks, and the choice among the kinds.

cdef struct GradTasks:
    const GradRows* a
    bint in_tiles, in_strips
    Py_ssize_t size                             # rows, tiles or strips
    const RowWorkspace* workspaces

cdef inline void tiles_or_strips(GradKind kind, bint scaled, const GradTasks* tasks, Py_ssize_t start,
                                 Py_ssize_t stop, const RowWorkspace* workspace) noexcept nogil:
    cdef const GradRows* a = tasks.a
    cdef TilePosition position, grad
    cdef Py_ssize_t t, at
    if has_sum(kind) and tasks.in_strips:
        grad_strips(kind, scaled, a, start, min(stop, a.rows.outer * strips_of(&a.rows)))
        return
    for t in range(start, min(stop, a.rows.outer * tiles_of(&a.rows))):
        at = tile_in_turn(&a.rows, t)
        position = tile_position(&a.rows, at)
        grad = position
        if has_sum(kind):
            grad = tile_position(&a.grads, at)
        grad_tile_of_rows(kind, scaled, a, &position, &grad, workspace)

cdef Py_ssize_t softmax_grad_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    # one call for each case, so that the compiler makes each its own loop
    cdef const GradTasks* tasks = <const GradTasks*>context
    cdef Py_ssize_t start = task * tasks.size, stop = start + tasks.size
    cdef const RowWorkspace* workspace = &tasks.workspaces[thread]
    cdef const GradRows* a = tasks.a
    cdef bint scaled = a.rows.scaled, is_dense = not tasks.in_tiles and not tasks.in_strips
    cdef Py_ssize_t last_row = min(stop, a.rows.outer * a.rows.inner) - 1
    if is_dense and has_sum(a.kind) and is_one_contiguous_chunk(a):
        if a.kind == GRAD_SOFTMAX:
            contiguous_grad_rows(GRAD_SOFTMAX, a, start, last_row)
        else:
            contiguous_grad_rows(GRAD_LOG_SOFTMAX, a, start, last_row)
    elif is_dense:
        chunked_grad_rows(a, start, last_row, workspace)
    elif a.kind == GRAD_SOFTMAX:
        if scaled:
            tiles_or_strips(GRAD_SOFTMAX, True, tasks, start, stop, workspace)
        else:
            tiles_or_strips(GRAD_SOFTMAX, False, tasks, start, stop, workspace)
    elif a.kind == GRAD_LOG_SOFTMAX:
        tiles_or_strips(GRAD_LOG_SOFTMAX, scaled, tasks, start, stop, workspace)
    elif a.kind == GRAD_LOGSUMEXP:
        tiles_or_strips(GRAD_LOGSUMEXP, False, tasks, start, stop, workspace)
    else:
        tiles_or_strips(GRAD_ENTROPY, scaled, tasks, start, stop, workspace)
    if a.rows.nontemporal:
        stream_end()
    return 1

# One long row, shared by threads: long_row.pxi.

cdef struct LongGrad:
    const GradRows* a
    Row row, grad
    bint storing, hiding
    GradShift s
    ExactSums* sums                             # (chunks)

cdef void long_grad_chunk(const void* context, Py_ssize_t chunk, const RowWorkspace* workspace) noexcept nogil:
    cdef const LongGrad* now = <const LongGrad*>context
    if now.storing:
        store_chunks_of(now.a, &now.row, &now.grad, chunk, chunk + 1, &now.s, workspace)
    else:
        clear_exact(&now.sums[chunk])
        sum_chunks_of(now.a, now.hiding, &now.row, &now.grad, chunk, chunk + 1, workspace, &now.sums[chunk])

cdef bint finish_long_sum(LongGrad* now) noexcept nogil:
    """Returns whether the sum is harmless."""
    cdef fp_state modes = fp_enter()
    cdef ExactSums sums
    cdef bint harmless
    add_exact_chunks(now.sums, ceil_div(now.row.n, CHUNK), &sums)
    harmless = set_grad_sum(dd_total(sums.chunks), &now.s)
    fp_leave(modes)
    return harmless

cdef void start_long_grad(LongGrad* now, Py_ssize_t r) noexcept nogil:
    cdef fp_state modes = fp_enter()
    now.row = now.grad = row_at(&now.a.rows, r)
    if has_sum(now.a.kind):
        now.grad = row_at(&now.a.grads, r)
    now.s = grad_shift(now.a, &now.row)
    now.storing = now.hiding = False
    fp_leave(modes)

cdef int long_grad_row(const GradRows* a, Py_ssize_t r, int threads) except -1:
    cdef LongGrad now
    cdef ParallelRegion region
    cdef Workspaces memory = Workspaces()
    now.a = a
    start_long_grad(&now, r)
    memory.reserve(threads, CHUNK, False, False)
    now.sums = <ExactSums*>allocate(ceil_div(a.rows.n, CHUNK) * <Py_ssize_t>sizeof(ExactSums))
    try:
        region = open_region(threads)
        if has_sum(a.kind):
            run_pass(long_grad_chunk, &now, a.rows.n, memory.workspaces, &region)
            if not finish_long_sum(&now) and not must_hide(a.kind):
                now.hiding = True
                run_pass(long_grad_chunk, &now, a.rows.n, memory.workspaces, &region)
                finish_long_sum(&now)
                now.s.harmless = False
        now.storing = True
        run_pass(long_grad_chunk, &now, a.rows.n, memory.workspaces, &region)
        close_region(&region)
    finally:
        free(now.sums)
    return 0

def softmax_backward_rows(int kind, const elem[:, :, :] x, const elem[:, :, :] grad, elem[:, :, :] y,
                          const double[:, :] temperature, const unsigned char[:, :, :] where, const real[:, :] g,
                          const real[:, :] value, int threads, bint nontemporal):
    """Writes the gradient of the rows x (outer, n, inner) along n to y; see GradKind.

    grad (outer, n, inner) for GRAD_SOFTMAX and GRAD_LOG_SOFTMAX; g and value (outer, inner) for the others. where is
    for GRAD_LOGSUMEXP alone. No dimension is 0. y may be x or grad, but must not overlap them otherwise.
    """
    cdef GradRows a
    cdef GradTasks tasks
    cdef Workspaces memory = Workspaces()
    cdef Py_ssize_t row_size, row_count, r
    a.kind = <GradKind>kind
    a.rows = describe(SOFTMAX, x, y, temperature, where, None, nontemporal)
    a.grads = describe(SOFTMAX, x if grad is None else grad, y, None, None, None, False)
    a.g = a.value = NULL
    a.g_outer = a.g_inner = a.value_outer = a.value_inner = 0
    if g is not None:
        a.g, a.value = <real*>&g[0, 0], <real*>&value[0, 0]
        a.g_outer = g.strides[0] // <Py_ssize_t>sizeof(real)
        a.g_inner = g.strides[1] // <Py_ssize_t>sizeof(real)
        a.value_outer = value.strides[0] // <Py_ssize_t>sizeof(real)
        a.value_inner = value.strides[1] // <Py_ssize_t>sizeof(real)
    arrange(&a.rows)
    arrange(&a.grads)                           # which has the same shape
    if a.rows.in_turns:
        a.g_outer, a.g_inner = a.g_inner, a.g_outer
        a.value_outer, a.value_inner = a.value_inner, a.value_outer
    elif x.shape[2] == 1:
        a.g_inner, a.value_inner = a.g_outer, a.value_outer
    tasks.a, tasks.in_tiles, tasks.in_strips = &a, uses_grad_tiles(&a), uses_strips(&a)
    row_size, row_count = a.rows.n, a.rows.outer * a.rows.inner
    if tasks.in_strips:
        a.rows.peel = strip_peel(&a.rows)
        row_size, row_count = a.rows.n * strip_rows(&a.rows), a.rows.outer * strips_of(&a.rows)
    elif tasks.in_tiles:
        row_size, row_count = a.rows.n * PARTIALS, a.rows.outer * tiles_of(&a.rows)
    elif is_shared(&a.rows, row_count, threads):
        for r in range(row_count):
            long_grad_row(&a, r, row_threads(a.rows.n, threads))
        return
    elif row_size < MIN_STREAMED and not is_whole_lines(row_size):
        a.rows.nontemporal = False
    memory.reserve(threads, CHUNK, False, tasks.in_tiles)
    tasks.workspaces = memory.workspaces
    tasks.size = max(1, task_size(row_count * row_size, threads) // row_size)
    run_tasks(softmax_grad_task, &tasks, ceil_div(row_count, tasks.size),
              max(1, SLICE // (tasks.size * row_size)), threads, IN_SHARES)
