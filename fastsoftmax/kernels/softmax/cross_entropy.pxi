# Cross entropy of rows of logits x (outer, n, inner), n classes, with their gradient in the same call.
#
#   z = x / temperature, lse = logsumexp(z), log p = z - lse
#   loss = -sum(q * log p) + z_loss * lse**2
#   gradient of x = grad_scale / temperature * (p * (sum(q) + 2 * z_loss * lse) - q)     both terms rounded once
#
# q of a class c is weight[c] * ((1 - smoothing) * target[c] + smoothing / n), with target[c] 1 for the class of the row
# and 0 for others, or probabilities of the classes. Rows of class -1 are ignored: loss and gradient are 0.
#
# Passes: those of LOG_SOFTMAX for log p, so that a loss near 0 keeps its digits; the sum of q * log p, where there is
# more than one term; those of SOFTMAX for the weights; the store of the gradient. Rows stay in the cache meanwhile.
# z_loss: Chowdhery et al. (PaLM), 2022; smoothing: Szegedy et al., 2016.

cdef extern from "math.h" nogil:
    double expm1(double)

cdef extern from *:
    """
    #include "math/expm1.h"
    """
    double expm1_of(double) nogil
    ctypedef long double wider                  # has more digits than a real

cdef struct CrossEntropy:
    Rows log_rows                               # x, y the gradient, temperature; op LOG_SOFTMAX
    Rows weight_rows                            # the same with op SOFTMAX
    const long long* classes                    # (outer, inner), or NULL
    Py_ssize_t class_outer, class_inner
    const real* target                          # probabilities (outer, n, inner), or NULL
    Py_ssize_t target_outer, target_n, target_inner
    const real* weight                          # of each class, or NULL: 1
    double weight_sum                           # of all classes
    double smoothing, z_loss, grad_scale
    wider target_share, smooth_share            # 1 - smoothing, smoothing / n
    real* loss                                  # (outer, inner), C-contiguous
    real* lse                                   # likewise, or NULL
    bint has_grad

cdef struct RowTarget:                          # of one row
    Py_ssize_t cls                              # -1: ignored, or probabilities
    bint ignored
    wider class_share                           # q of the class beyond the share of smoothing
    wider other_share                           # that of all classes by smoothing, together
    wider total                                 # sum of q

cdef inline const real* target_at(const CrossEntropy* a, const Row* row, Py_ssize_t k) noexcept nogil:
    return a.target + row.o * a.target_outer + row.i * a.target_inner + k * a.target_n

cdef inline RowTarget target_of(const CrossEntropy* a, const Row* row) noexcept nogil:
    cdef RowTarget t
    t.cls, t.class_share, t.total = -1, 0, 0
    t.other_share = a.smooth_share * a.weight_sum
    t.ignored = False
    if a.classes != NULL:
        t.cls = <Py_ssize_t>a.classes[row.o * a.class_outer + row.i * a.class_inner]
        t.ignored = t.cls < 0
        if not t.ignored:
            t.class_share = a.target_share * (1 if a.weight == NULL else <wider>a.weight[t.cls])
            t.total = t.class_share + t.other_share
    return t

cdef inline bint has_terms(const CrossEntropy* a) noexcept nogil:
    """Whether q has more than one element that is not 0."""
    return a.target != NULL or a.smoothing != 0

cdef void shares_of(const CrossEntropy* a, const Row* row, Py_ssize_t start, Py_ssize_t count, double factor,
                    real* q, real* q_lo) noexcept nogil:
    """q * factor of the classes start .. start + count - 1, without the class_share of the row's class, as the sum of
    two reals; zeros up to a whole UNROLL. Many classes are stored before any is loaded as part of a register: such a
    load would wait for the narrower stores just before it."""
    cdef Py_ssize_t k
    cdef wider share
    for k in range(count):
        share = a.smooth_share
        if a.target != NULL:
            share += a.target_share * <wider>target_at(a, row, start + k)[0]
        if a.weight != NULL:
            share *= <wider>a.weight[start + k]
        share *= factor
        q[k] = <real>share
        q_lo[k] = <real>(share - <wider>q[k])
    for k in range(count, ceil_div(count, UNROLL) * UNROLL):
        q[k] = q_lo[k] = 0

cdef inline vreal log_p_rest(const Shift* s, const Normalizer* normalizer, bint scaled, vreal x,
                             vreal log_p) noexcept nogil:
    """The digits that the log p of normal_result_of lacks. In a sum, they count beside a smaller loss."""
    cdef vreal below, factor, difference, score = x, score_lo = broadcast(0)
    if scaled:
        below = fma_(x, s.shrink, -s.origin)
        factor = s.factor / s.shrink
        score = below * factor
        score_lo = two_prod_err(below, factor, score) + below * (s.factor_lo / s.shrink)
    difference = score - normalizer.hi
    return finite_or_none(two_sum_err(score, -normalizer.hi, difference) + (score_lo - normalizer.lo)
                          - (log_p - difference))

cdef inline vdd add_entropy_term(vdd sum, vreal q, vreal q_lo, vreal log_p, vreal rest) noexcept nogil:
    """sum - q * (log_p + rest); a term of 0 where q is 0, also at a logit of -inf."""
    cdef vmask none = eq(q, broadcast(0))
    log_p, rest = zero_where(none, -log_p), zero_where(none, -rest)
    sum = dd_add_small_product(dd_add_product(sum, factor_of(q), factor_of(log_p)), factor_of(q_lo), factor_of(log_p))
    return dd_add_small_product(sum, factor_of(q), factor_of(rest))

cdef inline vdd add_share(vdd sum, vreal q, vreal q_lo) noexcept nogil:
    return dd_add_small_product(dd_add_term(sum, factor_of(q)), factor_of(q_lo), factor_of(broadcast(1)))

cdef inline wider lse_of(const CrossEntropy* a, const Row* row, real row_max, real hi, real lo,
                         real shrink) noexcept nogil:
    """From what log_softmax subtracts, which may be counted from the largest score: see logarithm_of."""
    cdef wider top = 0
    cdef double temperature
    if not (-INFINITY < row_max < INFINITY):
        return lse_of_special(a, row, row_max)
    if a.log_rows.scaled and shrink != 1:
        temperature = a.log_rows.temperature[row.o * a.log_rows.temperature_outer
                                             + row.i * a.log_rows.temperature_inner]
        top = <wider>row_max / temperature
    return top + (<wider>hi + <wider>lo)

cdef wider lse_of_special(const CrossEntropy* a, const Row* row, real row_max) noexcept nogil:
    """Where the largest logit is not finite."""
    cdef Py_ssize_t k
    for k in range(row.n):
        if isnan(real_of(row.x + k * a.log_rows.x_n)):
            return NAN
    return row_max

cdef inline double grad_factor(const CrossEntropy* a, const Row* row) noexcept nogil:
    """grad_scale / temperature."""
    if not a.log_rows.scaled:
        return a.grad_scale
    return a.grad_scale / a.log_rows.temperature[row.o * a.log_rows.temperature_outer
                                                 + row.i * a.log_rows.temperature_inner]

cdef inline double class_grad(const CrossEntropy* a, const Row* row, const RowTarget* t, double below_one,
                              double lse) noexcept nogil:
    """The gradient at the class of the row. below_one: p - 1, from log p, which keeps the digits of a small 1 - p."""
    cdef real[UNROLL] q, q_lo
    cdef double other_share = t.other_share + 2 * a.z_loss * lse
    cdef wider grad = t.class_share * below_one + other_share * (1 + below_one)
    if has_terms(a):
        shares_of(a, row, t.cls, 1, 1, q, q_lo)
        grad -= <double>q[0] + <double>q_lo[0]
    return grad_factor(a, row) * grad

cdef inline void store_loss(const CrossEntropy* a, const Row* row, const RowTarget* t, wider class_log_p,
                            wider terms, wider lse) noexcept nogil:
    """As wider numbers, so that the sum of the terms is rounded once."""
    cdef Py_ssize_t at = row.o * a.log_rows.inner + row.i
    cdef wider loss = terms + a.z_loss * lse * lse
    if a.lse != NULL:
        a.lse[at] = <real>lse
    if t.ignored:
        a.loss[at] = 0
        return
    if t.class_share != 0:
        loss -= t.class_share * class_log_p
    if lse - lse != 0:                          # a row whose result is NaN
        loss = NAN
    a.loss[at] = <real>loss

# One dense row.

cdef struct TermSums:
    ExactSums terms                             # of q * -log p, without the class_share
    ExactSums totals                            # of q

cdef void sum_terms_of_chunk(const CrossEntropy* a, const Row* row, Py_ssize_t start, Py_ssize_t count,
                             const Shift* s, const Normalizer* normalizer, const RowWorkspace* workspace,
                             TermSums* sums) noexcept nogil:
    cdef real[CHUNK] q, q_lo
    cdef elem[PARTIALS] end
    cdef const elem* x = gather_chunk(&a.log_rows, row, start, count, workspace.elements)
    cdef Py_ssize_t k, j
    cdef vreal share, share_lo, x_, log_p
    cdef int v
    shares_of(a, row, start, count, 1, q, q_lo)
    for k in range(ceil_div(count, PARTIALS)):
        if (k + 1) * PARTIALS > count:
            for j in range(PARTIALS):
                end[j] = x[k * PARTIALS + j] if k * PARTIALS + j < count else elem_of(0)
            x = <const elem*>end - k * PARTIALS
        for v in range(PARTIAL_REGS):
            share = load(q + k * PARTIALS + v * LANES)
            share_lo = load(q_lo + k * PARTIALS + v * LANES)
            x_ = load_elem(x + k * PARTIALS + v * LANES)
            log_p = normal_result_of(STORE_LOGS, s, normalizer, a.log_rows.scaled, x_)
            sums.terms.running[v] = add_entropy_term(sums.terms.running[v], share, share_lo, log_p,
                                                     log_p_rest(s, normalizer, a.log_rows.scaled, x_, log_p))
            sums.totals.running[v] = add_share(sums.totals.running[v], share, share_lo)
    end_exact_chunk(&sums.terms)
    end_exact_chunk(&sums.totals)

cdef void sums_of_terms(const TermSums* sums, wider* terms, double* total) noexcept nogil:
    cdef real hi, lo
    dd_split_total(dd_total(sums.terms.chunks), &hi, &lo)
    terms[0] = <wider>hi + (<wider>lo if -INFINITY < hi < INFINITY else 0)
    dd_split_total(dd_total(sums.totals.chunks), &hi, &lo)
    total[0] = <double>hi + (<double>lo if -INFINITY < hi < INFINITY else 0)

cdef void store_reals(const real* x, elem* y, Py_ssize_t stride, Py_ssize_t count, bint nontemporal) noexcept nogil:
    """x as elements; x may be y."""
    cdef elem[LANES] line
    cdef Py_ssize_t k = 0, m
    cdef int v
    if <const void*>x == <const void*>y:
        return
    if stride == 1 and nontemporal and count >= 2 * PARTIALS:
        m = peel_to_cache_line(y)
        while k < m:
            y[k] = elem_of(x[k])
            k += 1
        while k + PARTIALS <= count:
            for v in range(PARTIAL_REGS):
                stream(<real*>y + k + v * LANES, load(x + k + v * LANES))
            k += PARTIALS
    if stride == 1:
        while k + LANES <= count:
            store_elem(y + k, load(x + k))
            k += LANES
    while k < count:
        m = min(count - k, <Py_ssize_t>LANES)
        store_elem(line, load(x + k))           # x has whole registers
        scatter(y + k * stride, stride, line, m)
        k += m

cdef inline Normalizer times(const Normalizer* normalizer, vreal factor, vreal factor_lo) noexcept nogil:
    """The normalizer of p * (factor + factor_lo), so that this product is rounded once."""
    cdef Normalizer scaled
    scaled.hi = normalizer.hi * factor
    scaled.lo = two_prod_err(normalizer.hi, factor, scaled.hi) + fma_(normalizer.hi, factor_lo, normalizer.lo * factor)
    scaled.one = normalizer.one
    return scaled

cdef void store_grad_of_chunk(const CrossEntropy* a, const Row* row, const RowTarget* t, Py_ssize_t start,
                              Py_ssize_t count, const Normalizer* normalizer, double factor, double of_class,
                              real* weights) noexcept nogil:
    """weights become weights * normalizer - q * factor, and are stored. of_class: the gradient at the row's class."""
    cdef real[CHUNK] q, q_lo
    cdef vreal hi = normalizer.hi, lo = normalizer.lo
    cdef elem* y = row.y + start * a.log_rows.y_n
    cdef Py_ssize_t k = 0
    if has_terms(a):
        shares_of(a, row, start, count, factor, q, q_lo)
        while k < count:
            store(weights + k, mul_dd(load(weights + k), hi, lo) - load(q + k))
            k += LANES
    while k < count:
        store(weights + k, mul_dd(load(weights + k), hi, lo))
        k += LANES
    if start <= t.cls < start + count:
        weights[t.cls - start] = <real>of_class
    store_reals(weights, y, a.log_rows.y_n, count, a.log_rows.nontemporal)

# The constants of a row between its passes: those of log_softmax, the terms, those of softmax, the gradient.
cdef struct EntropyRow:
    RowTarget t
    real row_max
    Shift s
    Normalizer normalizer                       # of log p, then of the gradient: times its factor
    double class_log_p, factor, of_class
    double class_rest                           # of log p, where it is one of several terms
    wider lse, terms

cdef void start_entropy_row(const CrossEntropy* a, const Row* row, real row_max, EntropyRow* e) noexcept nogil:
    e.t = target_of(a, row)
    e.row_max = row_max
    e.s = shift_of(&a.log_rows, row, row_max)
    e.class_log_p, e.class_rest, e.of_class, e.terms = 0, 0, 0, 0

cdef inline bint needs_terms(const CrossEntropy* a, const EntropyRow* e) noexcept nogil:
    return has_terms(a) and not e.t.ignored

cdef void set_log_p(const CrossEntropy* a, const Row* row, EntropyRow* e) noexcept nogil:
    cdef vreal x, log_p
    e.lse = lse_of(a, row, e.row_max, lane0(e.normalizer.hi), lane0(e.normalizer.lo), lane0(e.s.shrink))
    if e.t.cls >= 0:
        x = broadcast(real_of(row.x + e.t.cls * a.log_rows.x_n))
        log_p = normal_result_of(STORE_LOGS, &e.s, &e.normalizer, a.log_rows.scaled, x)
        e.class_log_p = <double>lane0(log_p)
        if has_terms(a):
            e.class_rest = <double>lane0(log_p_rest(&e.s, &e.normalizer, a.log_rows.scaled, x, log_p))

cdef void set_terms(const CrossEntropy* a, const TermSums* sums, EntropyRow* e) noexcept nogil:
    cdef double total
    sums_of_terms(sums, &e.terms, &total)
    if a.target != NULL:
        e.t.total = total

cdef bint finish_loss(const CrossEntropy* a, const Row* row, EntropyRow* e) noexcept nogil:
    """Returns whether there is a gradient to compute."""
    store_loss(a, row, &e.t, <wider>e.class_log_p + <wider>e.class_rest, e.terms, e.lse)
    if a.has_grad and e.t.ignored:
        clear_elements(row.y, a.log_rows.y_n, row.n, a.log_rows.nontemporal)
    return a.has_grad and not e.t.ignored

cdef void set_grad_factors(const CrossEntropy* a, const Row* row, EntropyRow* e) noexcept nogil:
    cdef double weight_factor
    e.factor = grad_factor(a, row)
    weight_factor = e.factor * (e.t.total + 2 * a.z_loss * e.lse)
    e.normalizer = times(&e.normalizer, broadcast(<real>weight_factor),
                         broadcast(<real>(weight_factor - <double>(<real>weight_factor))))
    if e.t.cls >= 0:
        e.of_class = class_grad(a, row, &e.t, expm1_of(e.class_log_p), e.lse)

cdef void store_entropy_grads(const CrossEntropy* a, const Row* row, Py_ssize_t start, Py_ssize_t count,
                              const EntropyRow* e, const RowWorkspace* workspace) noexcept nogil:
    cdef Sums unused
    if not keeps_weights(&a.weight_rows, row.n):
        clear(&unused)
        sum_chunk(SUM_WEIGHTS, &a.weight_rows, row, start, count, &e.s, workspace, &unused)
    store_grad_of_chunk(a, row, &e.t, start, count, &e.normalizer, e.factor, e.of_class,
                        chunk_weights_buf(&a.weight_rows, row, start, workspace))

cdef void cross_entropy_row(const CrossEntropy* a, const Row* row, const RowWorkspace* workspace) noexcept nogil:
    cdef EntropyRow e
    cdef TermSums sums
    cdef Py_ssize_t chunk, start
    start_entropy_row(a, row, max_of_row(&a.log_rows, row, workspace), &e)
    normalizer_of_row(&a.log_rows, row, &e.s, workspace, &e.normalizer)
    set_log_p(a, row, &e)
    if needs_terms(a, &e):
        clear_terms(&sums)
        for chunk in range(ceil_div(row.n, CHUNK)):
            start = chunk * CHUNK
            sum_terms_of_chunk(a, row, start, min(row.n - start, CHUNK), &e.s, &e.normalizer, workspace, &sums)
        set_terms(a, &sums, &e)
    if not finish_loss(a, row, &e):
        return
    normalizer_of_row(&a.weight_rows, row, &e.s, workspace, &e.normalizer)
    set_grad_factors(a, row, &e)
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        store_entropy_grads(a, row, start, min(row.n - start, CHUNK), &e, workspace)

cdef inline void clear_terms(TermSums* sums) noexcept nogil:
    clear_exact(&sums.terms)
    clear_exact(&sums.totals)

# One long row, shared by threads: long_row.pxi. LongRow has the passes for the maximum and the two sums of weights.

cdef struct LongEntropy:
    const CrossEntropy* a
    Row row
    EntropyRow e
    bint storing
    TermSums* sums                              # (chunks), of the terms

cdef void long_entropy_chunk(const void* context, Py_ssize_t chunk, const RowWorkspace* workspace) noexcept nogil:
    """The pass of the terms, and that of the gradient."""
    cdef const LongEntropy* now = <const LongEntropy*>context
    cdef Py_ssize_t start = chunk * CHUNK, count = min(now.row.n - start, CHUNK)
    if now.storing:
        store_entropy_grads(now.a, &now.row, start, count, &now.e, workspace)
    else:
        clear_terms(&now.sums[chunk])
        sum_terms_of_chunk(now.a, &now.row, start, count, &now.e.s, &now.e.normalizer, workspace, &now.sums[chunk])

cdef void finish_long_terms(LongEntropy* now) noexcept nogil:
    cdef TermSums sums
    cdef Py_ssize_t chunk
    cdef int v
    clear_terms(&sums)
    for chunk in range(ceil_div(now.row.n, CHUNK)):
        for v in range(PARTIAL_REGS):
            sums.terms.chunks[v] = dd_add(sums.terms.chunks[v], now.sums[chunk].terms.chunks[v])
            sums.totals.chunks[v] = dd_add(sums.totals.chunks[v], now.sums[chunk].totals.chunks[v])
    set_terms(now.a, &sums, &now.e)

cdef int sum_long_row(LongRow* state, const Rows* rows, const RowWorkspace* workspaces, ParallelRegion* region,
                      Normalizer* normalizer) except -1:
    """normalizer_of_row."""
    cdef Sums sums
    cdef fp_state modes
    cdef bint refine = True
    state.rows, state.pass_, state.sum = rows, PASS_SUM, first_sum(rows.op)
    while refine:
        run_pass(long_row_chunk, state, state.row.n, workspaces, region)
        modes = fp_enter()
        sums_of_chunks(state, &sums)
        refine = finalize(state.sum, rows.scaled, state.row.n, &state.shift, &sums, normalizer)
        fp_leave(modes)
        refine = refine and state.sum == SUM_EXCLUDING_MAX
        state.sum = SUM_EXACT
    return 0

cdef int long_entropy_row(const CrossEntropy* a, Py_ssize_t r, int threads) except -1:
    cdef LongRow state
    cdef LongEntropy now
    cdef ParallelRegion region
    cdef fp_state modes
    cdef bint has_grad
    cdef Py_ssize_t n = a.log_rows.n, chunks = ceil_div(n, CHUNK)
    cdef bint keeps = a.has_grad and keeps_weights(&a.weight_rows, n)
    cdef Workspaces memory = Workspaces()
    cdef void* block
    memory.reserve(threads, n if keeps and n <= KEEP else CHUNK, keeps, False)
    block = allocate(chunks * <Py_ssize_t>(sizeof(Sums) + sizeof(TermSums) + sizeof(real)))
    try:
        region = open_region(threads)
        now.a, now.storing, now.sums = a, False, <TermSums*>block
        state.sums = <Sums*>(now.sums + chunks)
        state.maxima = <real*>(state.sums + chunks)
        now.row = state.row = row_at(&a.log_rows, r)
        state.rows, state.pass_ = &a.log_rows, PASS_MAX
        state.has_maxima, state.summed, state.bases.rebased = True, 0, 0        # row_max is the base
        run_pass(long_row_chunk, &state, n, memory.workspaces, &region)
        modes = fp_enter()
        start_entropy_row(a, &now.row, max_of_chunks(&state), &now.e)
        state.shift = now.e.s
        fp_leave(modes)
        sum_long_row(&state, &a.log_rows, memory.workspaces, &region, &now.e.normalizer)
        if needs_terms(a, &now.e):
            run_pass(long_entropy_chunk, &now, n, memory.workspaces, &region)
        modes = fp_enter()
        set_log_p(a, &now.row, &now.e)
        if needs_terms(a, &now.e):
            finish_long_terms(&now)
        has_grad = finish_loss(a, &now.row, &now.e)
        fp_leave(modes)
        if has_grad:
            sum_long_row(&state, &a.weight_rows, memory.workspaces, &region, &now.e.normalizer)
            modes = fp_enter()
            set_grad_factors(a, &now.row, &now.e)
            fp_leave(modes)
            now.storing = True
            run_pass(long_entropy_chunk, &now, n, memory.workspaces, &region)
        close_region(&region)
    finally:
        free(block)
    return 0

# A tile of rows, each in a lane.

cdef void cross_entropy_tile(const CrossEntropy* a, const TilePosition* position,
                             const RowWorkspace* workspace) noexcept nogil:
    cdef const Rows* rows = &a.log_rows
    cdef vreal[PARTIAL_REGS] row_max
    cdef Shift[PARTIAL_REGS] s
    cdef Normalizer[PARTIAL_REGS] normalizer
    cdef RowTarget[PARTIALS] t
    cdef wider[PARTIALS] terms
    cdef double[PARTIALS] below_one, of_class, total, factor
    cdef real[PARTIALS] maxima, hi, lo, shrink, logits, log_p, rest, weight_factor, weight_factor_lo
    cdef real* x = workspace.weights_buf
    cdef vreal logit, of_logit
    cdef Row row
    cdef wider lse, class_log_p
    cdef double of_weights
    cdef Py_ssize_t k, c
    cdef int v
    for v in range(PARTIAL_REGS):
        row_max[v] = broadcast(-INFINITY)
    load_blocks(rows, position, workspace, NULL, row_max)
    for v in range(PARTIAL_REGS):
        s[v] = tile_shift(rows, position, v, rows.scaled, row_max[v])
        store(maxima + v * LANES, row_max[v])
    normalizers_of_tile(rows, position, NULL, s, workspace, normalizer)
    for v in range(PARTIAL_REGS):
        store(hi + v * LANES, normalizer[v].hi)
        store(lo + v * LANES, normalizer[v].lo)
        store(shrink + v * LANES, s[v].shrink)
    if has_terms(a):
        sum_tile_terms(a, position, s, normalizer, workspace, terms, total)
    for c in range(PARTIALS):
        logits[c] = weight_factor[c] = weight_factor_lo[c] = 0
        factor[c] = 0
        if c < position.tile_rows:
            row = row_of(rows, position.first.o, position.first.i + c)
            t[c] = target_of(a, &row)
            if t[c].cls >= 0:
                logits[c] = x[t[c].cls * PARTIALS + c]
    for v in range(PARTIAL_REGS):
        logit = load(logits + v * LANES)
        of_logit = normal_result_of(STORE_LOGS, &s[v], &normalizer[v], rows.scaled, logit)
        store(log_p + v * LANES, of_logit)
        store(rest + v * LANES, log_p_rest(&s[v], &normalizer[v], rows.scaled, logit, of_logit))
    if a.has_grad:
        for c in range(PARTIALS):               # apart from the loop below, so that the compiler makes it vectors
            below_one[c] = expm1_of(log_p[c])
    for c in range(position.tile_rows):
        row = row_of(rows, position.first.o, position.first.i + c)
        lse = lse_of(a, &row, maxima[c], hi[c], lo[c], shrink[c])
        if a.target != NULL:
            t[c].total = total[c]
        if a.has_grad and not t[c].ignored:
            factor[c] = grad_factor(a, &row)
            of_weights = factor[c] * (t[c].total + 2 * a.z_loss * lse)
            weight_factor[c] = <real>of_weights
            weight_factor_lo[c] = <real>(of_weights - <double>weight_factor[c])
        if a.has_grad and t[c].cls >= 0:
            of_class[c] = class_grad(a, &row, &t[c], below_one[c], lse)
        class_log_p = <wider>log_p[c] + (<wider>rest[c] if has_terms(a) else 0)
        store_loss(a, &row, &t[c], class_log_p, terms[c] if has_terms(a) and not t[c].ignored else 0, lse)
    if not a.has_grad:
        return
    normalizers_of_tile(&a.weight_rows, position, NULL, s, workspace, normalizer)
    for v in range(PARTIAL_REGS):
        normalizer[v] = times(&normalizer[v], load(weight_factor + v * LANES), load(weight_factor_lo + v * LANES))
    tile_grads(a, position, normalizer, t, of_class, factor, x)
    k = 0
    while k < rows.n:
        store_tile_of_results(rows, position, k, min(rows.n - k, <Py_ssize_t>BLOCK), x + k * PARTIALS)
        k += BLOCK

cdef void sum_tile_terms(const CrossEntropy* a, const TilePosition* position, const Shift* s,
                         const Normalizer* normalizer, const RowWorkspace* workspace, wider* terms,
                         double* total) noexcept nogil:
    """sum_terms of each row, in the same order."""
    cdef const real* x = workspace.weights_buf
    cdef real[PARTIALS] hi, lo
    cdef vreal hi_, lo_
    cdef int v, pass_
    for pass_ in range(2):                      # the terms, then q
        clear_exact_tile(workspace.tile)
        add_tile_terms(a, position, pass_ == 1, s, normalizer, x, workspace.tile)
        for v in range(PARTIAL_REGS):
            split_exact(exact_tile_sum(v, workspace.tile), &hi_, &lo_)
            store(hi + v * LANES, hi_)
            store(lo + v * LANES, lo_)
        for v in range(PARTIALS):
            if pass_ == 0:
                terms[v] = <wider>hi[v] + <wider>lo[v]
            else:
                total[v] = <double>hi[v] + <double>lo[v]

cdef void load_shares(const CrossEntropy* a, const TilePosition* position, Py_ssize_t start, Py_ssize_t count,
                      const double* factor, real* q, real* q_lo) noexcept nogil:
    """q, q_lo (count, PARTIALS): shares_of the classes from `start` on, for each row of a tile; factor NULL: 1.
    count <= BLOCK."""
    cdef Row row = position.first
    cdef real[BLOCK] share, share_lo
    cdef Py_ssize_t c, k
    for c in range(PARTIALS):
        if c < position.tile_rows and (c == 0 or a.target != NULL or factor != NULL):
            row.i = position.first.i + c
            shares_of(a, &row, start, count, 1 if factor == NULL else factor[c], share, share_lo)
        for k in range(count):
            q[k * PARTIALS + c], q_lo[k * PARTIALS + c] = share[k], share_lo[k]

cdef void add_tile_terms(const CrossEntropy* a, const TilePosition* position, bint only_shares, const Shift* s,
                         const Normalizer* normalizer, const real* x, TileWorkspace* tile) noexcept nogil:
    cdef real[BLOCK * PARTIALS] q, q_lo
    cdef vreal share, share_lo, x_, log_p
    cdef vdd* running
    cdef Py_ssize_t k, of
    cdef int v
    for k in range(a.log_rows.n):
        if k % BLOCK == 0:
            load_shares(a, position, k, min(a.log_rows.n - k, <Py_ssize_t>BLOCK), NULL, q, q_lo)
        for v in range(PARTIAL_REGS):
            of = k % BLOCK * PARTIALS + v * LANES
            share, share_lo = load(q + of), load(q_lo + of)
            running = &tile.moments[k % PARTIALS * PARTIAL_REGS + v]
            if only_shares:
                running[0] = add_share(running[0], share, share_lo)
            else:
                x_ = load(x + k * PARTIALS + v * LANES)
                log_p = normal_result_of(STORE_LOGS, &s[v], &normalizer[v], a.log_rows.scaled, x_)
                running[0] = add_entropy_term(running[0], share, share_lo, log_p,
                                              log_p_rest(&s[v], &normalizer[v], a.log_rows.scaled, x_, log_p))
        if (k + 1) % CHUNK == 0 or k + 1 == a.log_rows.n:
            end_exact_tile_chunk(tile)

cdef void tile_grads(const CrossEntropy* a, const TilePosition* position, const Normalizer* normalizer,
                     const RowTarget* t, const double* of_class, const double* factor, real* x) noexcept nogil:
    """Weights x (n, PARTIALS) become gradients; a row that is ignored has a factor of 0, and may hold NaN."""
    cdef real[BLOCK * PARTIALS] q, q_lo
    cdef real[PARTIALS] kept
    cdef vreal grad
    cdef Py_ssize_t k, c
    cdef int v
    for c in range(PARTIALS):
        kept[c] = c < position.tile_rows and not t[c].ignored
    for k in range(a.log_rows.n):
        if has_terms(a) and k % BLOCK == 0:
            load_shares(a, position, k, min(a.log_rows.n - k, <Py_ssize_t>BLOCK), factor, q, q_lo)
        for v in range(PARTIAL_REGS):
            grad = mul_dd(load(x + k * PARTIALS + v * LANES), normalizer[v].hi, normalizer[v].lo)
            if has_terms(a):
                grad = grad - load(q + k % BLOCK * PARTIALS + v * LANES)
            if a.classes != NULL:
                grad = zero_where(eq(load(kept + v * LANES), broadcast(0)), grad)
            store(x + k * PARTIALS + v * LANES, grad)
    for c in range(position.tile_rows):
        if t[c].cls >= 0:
            x[t[c].cls * PARTIALS + c] = <real>of_class[c]

# Tasks.

cdef struct CrossEntropyTasks:
    const CrossEntropy* a
    bint in_tiles
    Py_ssize_t size
    const RowWorkspace* workspaces

cdef Py_ssize_t cross_entropy_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const CrossEntropyTasks* tasks = <const CrossEntropyTasks*>context
    cdef const CrossEntropy* a = tasks.a
    cdef const RowWorkspace* workspace = &tasks.workspaces[thread]
    cdef Py_ssize_t start = task * tasks.size, stop = start + tasks.size, r
    cdef TilePosition position
    cdef Row row
    if tasks.in_tiles:
        for r in range(start, min(stop, a.log_rows.outer * tiles_of(&a.log_rows))):
            position = tile_position(&a.log_rows, r)
            cross_entropy_tile(a, &position, workspace)
    else:
        for r in range(start, min(stop, a.log_rows.outer * a.log_rows.inner)):
            row = row_at(&a.log_rows, r)
            cross_entropy_row(a, &row, workspace)
    if a.log_rows.nontemporal:
        stream_end()
    return 1

def cross_entropy_rows(const elem[:, :, :] x, const long long[:, :] classes, const real[:, :, :] target,
                       const real[:] weight, double weight_sum, double smoothing, double z_loss, double grad_scale,
                       const double[:, :] temperature, real[:, :] loss, real[:, :] lse, elem[:, :, :] grad,
                       int threads, bint nontemporal):
    """Writes the loss of each row of x (outer, n, inner) along n, its lse, and the gradient of grad_scale times it.

    Either classes (outer, inner), -1 for a row to be ignored, or probabilities target (outer, n, inner). weight (n),
    temperature (outer, inner), lse and grad may be None. loss and lse (outer, inner) are C-contiguous. grad may be x,
    but must not overlap it otherwise. No dimension is 0.
    """
    cdef CrossEntropy a
    cdef CrossEntropyTasks tasks
    cdef Workspaces memory = Workspaces()
    cdef Py_ssize_t row_size, row_count, size, r
    a.log_rows = describe(LOG_SOFTMAX, x, grad, temperature, None, None, nontemporal)
    a.classes, a.target, a.weight, a.has_grad = NULL, NULL, NULL, grad is not None
    a.class_outer = a.class_inner = a.target_outer = a.target_n = a.target_inner = 0
    if classes is not None:
        a.classes = <long long*>&classes[0, 0]
        a.class_outer = classes.strides[0] // <Py_ssize_t>sizeof(long long)
        a.class_inner = classes.strides[1] // <Py_ssize_t>sizeof(long long)
    else:
        a.target = <real*>&target[0, 0, 0]
        a.target_outer = target.strides[0] // <Py_ssize_t>sizeof(real)
        a.target_n = target.strides[1] // <Py_ssize_t>sizeof(real)
        a.target_inner = target.strides[2] // <Py_ssize_t>sizeof(real)
    if weight is not None:
        a.weight = <real*>&weight[0]
    a.weight_sum, a.smoothing, a.z_loss, a.grad_scale = weight_sum, smoothing, z_loss, grad_scale
    a.target_share, a.smooth_share = <wider>1 - <wider>smoothing, <wider>smoothing / <wider>x.shape[1]
    a.loss, a.lse = &loss[0, 0], NULL if lse is None else &lse[0, 0]
    if a.log_rows.inner == 1:
        outer_to_inner(&a.log_rows)
        a.class_inner, a.target_inner = a.class_outer, a.target_outer
    a.weight_rows = a.log_rows
    a.weight_rows.op = SOFTMAX
    tasks.a, tasks.in_tiles = &a, uses_tiles(&a.log_rows) and keeps_tile(&a.log_rows)
    row_size, row_count = a.log_rows.n, a.log_rows.outer * a.log_rows.inner
    size = a.log_rows.n if a.log_rows.n <= KEEP else CHUNK
    if tasks.in_tiles:
        row_size, row_count = a.log_rows.n * PARTIALS, a.log_rows.outer * tiles_of(&a.log_rows)
        size = tile_buffer(&a.log_rows)
    elif is_shared(&a.log_rows, row_count, threads):
        for r in range(row_count):
            long_entropy_row(&a, r, row_threads(a.log_rows.n, threads))
        return
    memory.reserve(threads, size, False, tasks.in_tiles)
    tasks.workspaces = memory.workspaces
    tasks.size = max(1, task_size(row_count * row_size, threads) // row_size)
    run_tasks(cross_entropy_task, &tasks, ceil_div(row_count, tasks.size),
              max(1, SLICE // (tasks.size * row_size)), threads, IN_SHARES)
