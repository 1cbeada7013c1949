# Cross entropy of rows of logits x (outer, n, inner), n classes, with their gradient in the same call.
#
#   z = x / temperature, lse = logsumexp(z), log p = z - lse
#   loss = -sum(q * log p) + z_loss * lse**2
#   gradient of x = grad_scale / temperature * (p * (sum(q) + 2 * z_loss * lse) - q)     both terms rounded once
#
# q of a class c is weight[c] * ((1 - smoothing) * target[c] + smoothing / n), with target[c] 1 for the class of the row
# and 0 for others, or probabilities of the classes. Rows of class -1 are ignored: loss and gradient are 0.
#
# Passes: the maximum; the sum that LOG_SOFTMAX takes, so that a loss near 0 keeps its digits, and in the same pass the
# weights; where q has more than one term, the sum of q * log p; the store of the gradient. Rows stay in the cache
# meanwhile. Losses, and the factors of gradients, are computed for a group of up to GROUP_ROWS rows together, each in a
# lane: those of a few tiles, or of dense rows. For one tile they would wait for each other most of the time.
# z_loss: Chowdhery et al. (PaLM), 2022; smoothing: Szegedy et al., 2016.

cdef extern from "math.h" nogil:
    double expm1(double)

cdef extern from *:
    """
    #include "math/expm1.h"
    """
    double expm1_of(double) nogil
    ctypedef long double wider                  # has more digits than a real

cdef enum:
    GROUP_TILES = 4
    GROUP_ROWS = GROUP_TILES * PARTIALS
    GROUP_REGS = GROUP_TILES * PARTIAL_REGS
    ENTROPY_ELEMENTS = 1 << 14                  # of a group: their weights are in the L2 cache

cdef struct CrossEntropy:
    Rows rows                                   # x, y the gradient, temperature; op CROSS_ENTROPY, or LOG_SOFTMAX
    const long long* classes                    # (outer, inner), or NULL
    Py_ssize_t class_outer, class_inner
    const real* target                          # probabilities (outer, n, inner), or NULL
    Py_ssize_t target_outer, target_n, target_inner
    const real* weight                          # of each class, or NULL: 1
    double weight_sum                           # of all classes
    double smoothing, z_loss, grad_scale
    wider target_share, smooth_share            # 1 - smoothing, smoothing / n
    real* loss                                  # (outer, inner)
    real* lse                                   # likewise, or NULL
    Py_ssize_t loss_outer, loss_inner           # strides of both
    bint has_grad

cdef inline bint has_terms(const CrossEntropy* a) noexcept nogil:
    """Whether q has more than one element that is not 0."""
    return a.target != NULL or a.smoothing != 0

cdef inline const real* target_at(const CrossEntropy* a, const Row* row, Py_ssize_t k) noexcept nogil:
    return a.target + row.o * a.target_outer + row.i * a.target_inner + k * a.target_n

# Rows o, i to o, i + count - 1, and their constants, each in a lane.
cdef struct EntropyRows:
    Row first
    Py_ssize_t count
    Py_ssize_t lanes                            # count, up to whole tiles
    Shift[GROUP_REGS] s
    Normalizer[GROUP_REGS] normalizer           # of log p
    Normalizer[GROUP_REGS] of_weights           # by which weights become p, then p * factor of the gradient
    Py_ssize_t[GROUP_ROWS] cls                  # -1: ignored, or probabilities
    double[GROUP_ROWS] kept                     # 0: ignored, or no row
    double[GROUP_ROWS] temperature              # and as the sum of two reals
    real[GROUP_ROWS] temperature_hi, temperature_lo
    real[GROUP_ROWS] logits                     # of the class
    wider[GROUP_ROWS] class_share               # q of the class beyond the share of smoothing
    wider[GROUP_ROWS] class_smooth              # that share of the class
    wider[GROUP_ROWS] other_share               # sum(q) without class_share
    wider[GROUP_ROWS] terms                     # sum(q * -log p) without that of class_share
    wider[GROUP_ROWS] factor                    # grad_scale / temperature
    real[GROUP_ROWS] of_class                   # the gradient at the class

cdef void start_entropy_rows(const CrossEntropy* a, Py_ssize_t o, Py_ssize_t i, Py_ssize_t count,
                             EntropyRows* e) noexcept nogil:
    cdef const double* t = a.rows.temperature
    cdef wider weight
    cdef Py_ssize_t c, cls
    e.first, e.count, e.lanes = row_of(&a.rows, o, i), count, ceil_div(count, PARTIALS) * PARTIALS
    for c in range(e.lanes):
        e.cls[c], e.kept[c], e.temperature[c], e.logits[c] = -1, c < count, 1, 0
        e.class_share[c] = e.class_smooth[c] = e.other_share[c] = e.terms[c] = 0
    if a.rows.scaled:
        for c in range(count):
            e.temperature[c] = t[o * a.rows.temperature_outer + (i + c) * a.rows.temperature_inner]
    for c in range(e.lanes):
        e.temperature_hi[c] = <real>e.temperature[c]
        e.temperature_lo[c] = <real>(e.temperature[c] - <double>e.temperature_hi[c])
        e.factor[c] = a.grad_scale / e.temperature[c]
    if a.classes == NULL:
        return
    for c in range(count):
        cls = <Py_ssize_t>a.classes[o * a.class_outer + (i + c) * a.class_inner]
        if cls < 0:
            e.kept[c] = 0
            continue
        weight = 1 if a.weight == NULL else <wider>a.weight[cls]
        e.cls[c], e.logits[c] = cls, real_of(e.first.x + c * a.rows.x_inner + cls * a.rows.x_n)
        e.class_share[c] = a.target_share * weight
        if a.smoothing != 0:
            e.class_smooth[c], e.other_share[c] = a.smooth_share * weight, a.smooth_share * a.weight_sum

cdef inline void set_entropy_shift(bint scaled, Py_ssize_t v, vreal row_max, EntropyRows* e) noexcept nogil:
    """Of the rows of register v."""
    if scaled:
        set_temperature(&e.s[v], load(e.temperature_hi + v * LANES), load(e.temperature_lo + v * LANES))
    else:
        no_temperature(&e.s[v])
    set_row_max(&e.s[v], row_max)

# Shares q, times a factor: weight * (target * by + smooth), all as the sum of two reals.

cdef struct Shares:
    vreal by, by_lo, smooth, smooth_lo

cdef inline Shares shares_with(const CrossEntropy* a, const wider* factor) noexcept nogil:
    """Of LANES rows."""
    cdef Shares s
    cdef real[LANES] by, by_lo, smooth, smooth_lo
    cdef wider one
    cdef int k
    for k in range(LANES):
        one = factor[k] * a.target_share
        by[k] = <real>one
        by_lo[k] = <real>(one - <wider>by[k])
        one = factor[k] * a.smooth_share
        smooth[k] = <real>one
        smooth_lo[k] = <real>(one - <wider>smooth[k])
    s.by, s.by_lo, s.smooth, s.smooth_lo = load(by), load(by_lo), load(smooth), load(smooth_lo)
    return s

cdef inline Shares row_shares_with(const CrossEntropy* a, wider factor) noexcept nogil:
    """Of one row, in every lane."""
    cdef Shares s
    cdef wider by = factor * a.target_share, smooth = factor * a.smooth_share
    s.by, s.smooth = broadcast(<real>by), broadcast(<real>smooth)
    s.by_lo = broadcast(<real>(by - <wider>(<real>by)))
    s.smooth_lo = broadcast(<real>(smooth - <wider>(<real>smooth)))
    return s

cdef inline vreal class_share_of(const Shares* s, vreal target, vreal weight, vreal* q_lo) noexcept nogil:
    cdef vreal product = target * s.by
    cdef vreal sum = product + s.smooth
    cdef vreal rest = (fma_(target, s.by_lo, two_prod_err(target, s.by, product))
                       + (two_sum_err(product, s.smooth, sum) + s.smooth_lo))
    cdef vreal q = sum * weight
    q_lo[0] = finite_or_none(fma_(rest, weight, two_prod_err(sum, weight, q)))
    return q

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

cdef inline vdd add_entropy_term(bint has_rest, vdd sum, vreal q, vreal q_lo, vreal log_p, vreal rest) noexcept nogil:
    """sum - q * (log_p + rest); a term of 0 where q is 0, also at a logit of -inf."""
    cdef vmask none = eq(q, broadcast(0))
    log_p = zero_where(none, -log_p)
    sum = dd_add_small_product(dd_add_product(sum, factor_of(q), factor_of(log_p)), factor_of(q_lo), factor_of(log_p))
    return dd_add_small_product(sum, factor_of(q), factor_of(zero_where(none, -rest))) if has_rest else sum

cdef inline vdd add_share(vdd sum, vreal q, vreal q_lo) noexcept nogil:
    return dd_add_small_product(dd_add_term(sum, factor_of(q)), factor_of(q_lo), factor_of(broadcast(1)))

# The losses of all lanes. Loops over numbers of type `wider`, which the compiler makes vectors of doubles.

cdef wider lse_of_special(const CrossEntropy* a, const Row* row, real row_max) noexcept nogil:
    """Where the largest logit is not finite."""
    cdef Py_ssize_t k
    for k in range(row.n):
        if isnan(real_of(row.x + k * a.rows.x_n)):
            return NAN
    return row_max

cdef inline void lses_of(const CrossEntropy* a, const EntropyRows* e, wider* lse) noexcept nogil:
    """From what log_softmax subtracts, which may be counted from the largest score: see logarithm_of."""
    cdef real[GROUP_ROWS] hi, lo, maxima, shrink
    cdef Row row
    cdef Py_ssize_t c, v
    for v in range(e.lanes // LANES):
        store(hi + v * LANES, e.normalizer[v].hi)
        store(lo + v * LANES, e.normalizer[v].lo)
        store(maxima + v * LANES, e.s[v].row_max)
        store(shrink + v * LANES, e.s[v].shrink)
    for c in range(e.lanes):
        lse[c] = <wider>hi[c] + <wider>lo[c]
    if a.rows.scaled:
        for c in range(e.count):
            if shrink[c] != 1:
                lse[c] = <wider>maxima[c] / e.temperature[c] + lse[c]
    for c in range(e.count):
        if not (-INFINITY < maxima[c] < INFINITY) and is_wanted(a, e, c):
            row = row_of(&a.rows, e.first.o, e.first.i + c)
            lse[c] = lse_of_special(a, &row, maxima[c])

cdef inline bint is_wanted(const CrossEntropy* a, const EntropyRows* e, Py_ssize_t c) noexcept nogil:
    """Whether the logits of a row are to be read: not those of an ignored one, unless its lse is asked for."""
    return e.kept[c] != 0 or a.lse != NULL

cdef void finish_losses(const CrossEntropy* a, EntropyRows* e) noexcept nogil:
    """Stores the losses, and computes the factors of the gradients."""
    cdef real[GROUP_ROWS] log_p, rest
    cdef wider[GROUP_ROWS] lse, loss
    cdef wider value
    cdef vreal logit, of_logit
    cdef Py_ssize_t at = e.first.o * a.loss_outer + e.first.i * a.loss_inner, c, v
    for v in range(e.lanes // LANES):
        logit = load(e.logits + v * LANES)
        of_logit = normal_result_of(STORE_LOGS, &e.s[v], &e.normalizer[v], a.rows.scaled, logit)
        store(log_p + v * LANES, of_logit)
        store(rest + v * LANES, broadcast(0))
        if has_terms(a):                        # one of several terms
            store(rest + v * LANES, log_p_rest(&e.s[v], &e.normalizer[v], a.rows.scaled, logit, of_logit))
    lses_of(a, e, lse)
    for c in range(e.lanes):                    # the sum is rounded once
        value = e.class_share[c] * (<wider>log_p[c] + <wider>rest[c])
        value = e.terms[c] + a.z_loss * lse[c] * lse[c] - (value if e.class_share[c] != 0 else 0)
        value = value if lse[c] - lse[c] == 0 else NAN          # a row whose result is NaN
        loss[c] = value if e.kept[c] != 0 else 0
    for c in range(e.count):
        a.loss[at + c * a.loss_inner] = <real>loss[c]
    if a.lse != NULL:
        for c in range(e.count):
            a.lse[at + c * a.loss_inner] = <real>lse[c]
    if a.has_grad:
        set_grad_factors(a, log_p, lse, e)

cdef inline void set_grad_factors(const CrossEntropy* a, const real* log_p, const wider* lse,
                                  EntropyRows* e) noexcept nogil:
    cdef double[GROUP_ROWS] below_one           # p - 1, from log p, which keeps the digits of a small 1 - p
    cdef real[GROUP_ROWS] hi, lo
    cdef wider others, of_weights, of_class
    cdef vreal factor, normalizer_hi
    cdef Py_ssize_t c, v
    for c in range(e.lanes):                    # apart from the loop below, so that the compiler makes it vectors
        below_one[c] = expm1_of(log_p[c])
    for c in range(e.lanes):
        others = e.other_share[c] + 2 * a.z_loss * lse[c]
        of_weights = e.factor[c] * (e.class_share[c] + others)
        of_weights = of_weights if e.kept[c] != 0 else 0
        hi[c] = <real>of_weights
        lo[c] = <real>(of_weights - <wider>hi[c])
        of_class = e.class_share[c] * below_one[c] + others * (1 + below_one[c]) - e.class_smooth[c]
        e.of_class[c] = <real>(e.factor[c] * of_class)
    for v in range(e.lanes // LANES):           # weights times this are p * factor, rounded once
        factor, normalizer_hi = load(hi + v * LANES), e.of_weights[v].hi
        e.of_weights[v].hi = normalizer_hi * factor
        e.of_weights[v].lo = (two_prod_err(normalizer_hi, factor, e.of_weights[v].hi)
                              + fma_(normalizer_hi, load(lo + v * LANES), e.of_weights[v].lo * factor))

# Dense rows, in groups.

cdef inline Py_ssize_t group_stride(Py_ssize_t n) noexcept nogil:
    """Reals for the weights of a row of a group: same_alignment, and whole steps."""
    return ceil_div(n + LANES, UNROLL) * UNROLL + PARTIALS

cdef inline Py_ssize_t group_size(Py_ssize_t n) noexcept nogil:
    return min(max(<Py_ssize_t>ENTROPY_ELEMENTS // n, 1), <Py_ssize_t>GROUP_ROWS)

cdef inline vreal lane_of(vreal a, Py_ssize_t lane) noexcept nogil:
    """In every lane."""
    cdef real[LANES] lanes
    store(lanes, a)
    return broadcast(lanes[lane])

cdef inline Normalizer normalizer_in_lane(const Normalizer* normalizer, Py_ssize_t c) noexcept nogil:
    """That of row c, in every lane."""
    cdef const Normalizer* lanes = &normalizer[c // LANES]
    cdef Normalizer of_row
    of_row.hi, of_row.lo, of_row.one = lane_of(lanes.hi, c % LANES), lane_of(lanes.lo, c % LANES), broadcast(1)
    return of_row

cdef inline void set_normalizer_in_lane(Py_ssize_t c, const Normalizer* of_row, Normalizer* normalizer) noexcept nogil:
    cdef Normalizer* lanes = &normalizer[c // LANES]
    cdef real[LANES] here
    cdef vmask mask
    memset(here, 0, sizeof(here))
    here[c % LANES] = 1
    mask = lt(broadcast(0), load(here))
    lanes.hi, lanes.lo = vselect(mask, of_row.hi, lanes.hi), vselect(mask, of_row.lo, lanes.lo)

cdef inline Row row_in_lane(const CrossEntropy* a, const EntropyRows* e, Py_ssize_t c) noexcept nogil:
    return row_of(&a.rows, e.first.o, e.first.i + c)

cdef struct TermSums:
    ExactSums terms                             # of q * -log p, without the class_share
    ExactSums totals                            # of q

cdef inline void clear_terms(TermSums* sums) noexcept nogil:
    clear_exact(&sums.terms)
    clear_exact(&sums.totals)

cdef inline void gather_reals(const real* x, Py_ssize_t stride, Py_ssize_t count, real* buffer) noexcept nogil:
    """x (count), elements `stride` apart, and zeros up to a whole UNROLL. All are stored before any is loaded as part
    of a register: such a load would wait for the narrower stores just before it."""
    cdef Py_ssize_t k
    if stride == 1:
        memcpy(buffer, x, count * sizeof(real))
    else:
        for k in range(count):
            buffer[k] = x[k * stride]
    for k in range(count, ceil_div(count, UNROLL) * UNROLL):
        buffer[k] = 0

cdef struct ChunkTargets:                       # of the classes of a chunk
    real[CHUNK] target, weight

cdef inline void gather_targets(const CrossEntropy* a, const Row* row, Py_ssize_t start, Py_ssize_t count,
                                ChunkTargets* t) noexcept nogil:
    cdef real zero = 0, one = 1
    if a.target == NULL:
        gather_reals(&zero, 0, count, t.target)
    else:
        gather_reals(target_at(a, row, start), a.target_n, count, t.target)
    if a.weight == NULL:
        gather_reals(&one, 0, count, t.weight)
    else:
        gather_reals(a.weight + start, 1, count, t.weight)

cdef inline void add_row_terms(bint scaled, const Shift* s, const Normalizer* normalizer, const Shares* shares,
                               const ChunkTargets* t, const elem* x, Py_ssize_t count, TermSums* sums) noexcept nogil:
    cdef Py_ssize_t k = 0
    cdef vreal share, share_lo, x_, log_p
    cdef int v
    while k < count:
        for v in range(PARTIAL_REGS):
            share = class_share_of(shares, load(t.target + k + v * LANES), load(t.weight + k + v * LANES), &share_lo)
            x_ = load_upto(x, k + v * LANES, count, 0)
            log_p = normal_result_of(STORE_LOGS, s, normalizer, scaled, x_)
            sums.terms.running[v] = add_entropy_term(scaled, sums.terms.running[v], share, share_lo, log_p,
                                                     log_p_rest(s, normalizer, scaled, x_, log_p))
            sums.totals.running[v] = add_share(sums.totals.running[v], share, share_lo)
        k += PARTIALS

cdef void sum_terms_of_chunk(const CrossEntropy* a, const Row* row, Py_ssize_t start, Py_ssize_t count,
                             const Shift* s, const Normalizer* normalizer, const RowWorkspace* workspace,
                             TermSums* sums) noexcept nogil:
    cdef ChunkTargets t
    cdef const elem* x = gather_chunk(&a.rows, row, start, count, workspace.elements)
    cdef Shares shares = row_shares_with(a, 1)
    gather_targets(a, row, start, count, &t)
    if a.rows.scaled:
        add_row_terms(True, s, normalizer, &shares, &t, x, count, sums)
    else:
        add_row_terms(False, s, normalizer, &shares, &t, x, count, sums)
    end_exact_chunk(&sums.terms)
    end_exact_chunk(&sums.totals)

cdef inline wider finite_sum(real hi, real lo) noexcept nogil:
    """lo of an infinite hi is NaN."""
    return <wider>hi + (<wider>lo if -INFINITY < hi < INFINITY else 0)

cdef void set_terms(const CrossEntropy* a, const TermSums* sums, Py_ssize_t c, EntropyRows* e) noexcept nogil:
    cdef real hi, lo
    dd_split_total(dd_total(sums.terms.chunks), &hi, &lo)
    e.terms[c] = finite_sum(hi, lo)
    if a.target != NULL:
        dd_split_total(dd_total(sums.totals.chunks), &hi, &lo)
        e.other_share[c] = finite_sum(hi, lo)

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

cdef void store_grad_of_chunk(const CrossEntropy* a, const Row* row, const EntropyRows* e, Py_ssize_t c,
                              Py_ssize_t start, Py_ssize_t count, const Normalizer* of_weights,
                              real* weights) noexcept nogil:
    """weights become the gradients of row c, weights * of_weights - q * factor, and are stored."""
    cdef ChunkTargets t
    cdef Shares shares
    cdef vreal hi = of_weights.hi, lo = of_weights.lo, share, share_lo
    cdef Py_ssize_t k = 0
    if has_terms(a):
        shares = row_shares_with(a, e.factor[c])
        gather_targets(a, row, start, count, &t)
        while k < count:
            share = class_share_of(&shares, load(t.target + k), load(t.weight + k), &share_lo)
            store(weights + k, (mul_dd(load(weights + k), hi, lo) - share) - share_lo)
            k += LANES
    while k < count:
        store(weights + k, mul_dd(load(weights + k), hi, lo))
        k += LANES
    if start <= e.cls[c] < start + count:
        weights[e.cls[c] - start] = e.of_class[c]
    store_reals(weights, row.y + start * a.rows.y_n, a.rows.y_n, count, a.rows.nontemporal)

cdef void store_entropy_grads(const CrossEntropy* a, const Row* row, const EntropyRows* e, Py_ssize_t c,
                              Py_ssize_t start, Py_ssize_t count, const Shift* s, const Normalizer* of_weights,
                              const RowWorkspace* workspace) noexcept nogil:
    cdef Sums unused
    if not keeps_weights(&a.rows, row.n):
        clear(&unused)
        sum_chunk(SUM_WEIGHTS, &a.rows, row, start, count, s, workspace, &unused)
    store_grad_of_chunk(a, row, e, c, start, count, of_weights, chunk_weights_buf(&a.rows, row, start, workspace))

cdef struct EntropyGroup:
    EntropyRows e
    real[GROUP_ROWS] maxima, ties
    dd_numbers[GROUP_TILES] weights

cdef inline RowWorkspace workspace_of_row(const RowWorkspace* workspace, Py_ssize_t n, Py_ssize_t c) noexcept nogil:
    cdef RowWorkspace of_row = workspace[0]
    of_row.weights_buf += c * group_stride(n)
    return of_row

cdef inline void sum_entropy_group(const CrossEntropy* a, const RowWorkspace* workspace,
                                   EntropyGroup* group) noexcept nogil:
    cdef RowWorkspace of_row
    cdef Sums sums
    cdef Shift s
    cdef Row row
    cdef Py_ssize_t c
    cdef vreal ties
    cdef int v
    for c in range(group.e.lanes):              # lanes without a row: a sum of 1
        dd_put(&group.weights[c // PARTIALS], c % PARTIALS, dd_of_sum(broadcast(1), broadcast(0)))
        group.maxima[c], group.ties[c] = 0, 1
    for c in range(group.e.count):
        if not is_wanted(a, &group.e, c):
            continue
        row, of_row = row_in_lane(a, &group.e, c), workspace_of_row(workspace, a.rows.n, c)
        group.maxima[c] = max_of_row(&a.rows, &row, workspace)
        s = shift_of(&a.rows, &row, group.maxima[c])
        sum_row(first_sum(a.rows.op), &a.rows, &row, &s, &of_row, &sums)
        if row.n <= PARTIALS:
            dd_put(&group.weights[c // PARTIALS], c % PARTIALS, dd_of_sum(sums.short_row.total, sums.short_row.lost))
        else:
            dd_put(&group.weights[c // PARTIALS], c % PARTIALS, dd_total(sums.weights))
        ties = sums.ties[0]
        for v in range(1, PARTIAL_REGS):
            ties = ties + sums.ties[v]
        group.ties[c] = lane0(hsum_exact(ties))

cdef inline void finalize_entropy_group(const CrossEntropy* a, const RowWorkspace* workspace,
                                        EntropyGroup* group) noexcept nogil:
    cdef EntropyRows* e = &group.e
    cdef vmask needs_refinement
    cdef real[GROUP_ROWS] refined
    cdef Normalizer normalizer
    cdef bint any_refined = False
    cdef vdd weights
    cdef Shift s
    cdef Row row
    cdef Py_ssize_t c, v
    for v in range(e.lanes // LANES):
        set_entropy_shift(a.rows.scaled, v, load(group.maxima + v * LANES), e)
        weights = dd_get(&group.weights[v // PARTIAL_REGS], <int>(v % PARTIAL_REGS))
        e.normalizer[v] = normalizer_of(SUM_KEEPING_WEIGHTS, &e.s[v], a.rows.scaled, False, a.rows.n, weights,
                                        dd_zero(), load(group.ties + v * LANES), &needs_refinement)
        e.of_weights[v] = normalizer_of_weights(&e.s[v], a.rows.scaled, weights, load(group.ties + v * LANES))
        store(refined + v * LANES, select_or_zero(needs_refinement, broadcast(1)))
        any_refined |= any_lane(needs_refinement)
    if any_refined:
        for c in range(e.count):
            if refined[c] != 0 and is_wanted(a, e, c):
                row = row_in_lane(a, e, c)
                s = shift_of(&a.rows, &row, group.maxima[c])
                refine_sum(&a.rows, row, &s, workspace, &normalizer)
                set_normalizer_in_lane(c, &normalizer, e.normalizer)

cdef void sum_terms_of_row(const CrossEntropy* a, const Row* row, real row_max, Py_ssize_t c,
                           const RowWorkspace* workspace, EntropyRows* e) noexcept nogil:
    cdef Normalizer normalizer = normalizer_in_lane(e.normalizer, c)
    cdef Shift s = shift_of(&a.rows, row, row_max)
    cdef TermSums sums
    cdef Py_ssize_t chunk, start
    clear_terms(&sums)
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        sum_terms_of_chunk(a, row, start, min(row.n - start, CHUNK), &s, &normalizer, workspace, &sums)
    set_terms(a, &sums, c, e)

cdef void store_grads_of_row(const CrossEntropy* a, const Row* row, real row_max, Py_ssize_t c,
                             const RowWorkspace* workspace, const EntropyRows* e) noexcept nogil:
    cdef RowWorkspace of_row = workspace_of_row(workspace, row.n, c)
    cdef Normalizer of_weights = normalizer_in_lane(e.of_weights, c)
    cdef Shift s = shift_of(&a.rows, row, row_max)
    cdef Py_ssize_t chunk, start
    if e.kept[c] == 0:
        clear_elements(row.y, a.rows.y_n, row.n, a.rows.nontemporal)
        return
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        store_entropy_grads(a, row, e, c, start, min(row.n - start, CHUNK), &s, &of_weights, &of_row)

cdef void cross_entropy_group(const CrossEntropy* a, Py_ssize_t o, Py_ssize_t i, Py_ssize_t count,
                              const RowWorkspace* workspace) noexcept nogil:
    cdef EntropyGroup group
    cdef EntropyRows* e = &group.e
    cdef Row row
    cdef Py_ssize_t c
    start_entropy_rows(a, o, i, count, e)
    sum_entropy_group(a, workspace, &group)
    finalize_entropy_group(a, workspace, &group)
    for c in range(count):
        if has_terms(a) and e.kept[c] != 0:
            row = row_in_lane(a, e, c)
            sum_terms_of_row(a, &row, group.maxima[c], c, workspace, e)
    finish_losses(a, e)
    for c in range(count):
        if a.has_grad:
            row = row_in_lane(a, e, c)
            store_grads_of_row(a, &row, group.maxima[c], c, workspace, e)

# One long row, shared by threads: long_row.pxi. LongRow has the passes for the maximum and the sum of weights.

cdef struct LongEntropy:
    const CrossEntropy* a
    Row row
    EntropyRows e                               # with one row
    Shift s                                     # of the row, in every lane
    Normalizer normalizer, of_weights
    bint storing
    TermSums* sums                              # (chunks), of the terms

cdef void long_entropy_chunk(const void* context, Py_ssize_t chunk, const RowWorkspace* workspace) noexcept nogil:
    """The pass of the terms, and that of the gradient."""
    cdef const LongEntropy* now = <const LongEntropy*>context
    cdef Py_ssize_t start = chunk * CHUNK, count = min(now.row.n - start, CHUNK)
    if now.storing:
        store_entropy_grads(now.a, &now.row, &now.e, 0, start, count, &now.s, &now.of_weights, workspace)
    else:
        clear_terms(&now.sums[chunk])
        sum_terms_of_chunk(now.a, &now.row, start, count, &now.s, &now.normalizer, workspace, &now.sums[chunk])

cdef void finish_long_terms(LongEntropy* now) noexcept nogil:
    cdef TermSums sums
    cdef Py_ssize_t chunk
    cdef int v
    clear_terms(&sums)
    for chunk in range(ceil_div(now.row.n, CHUNK)):
        for v in range(PARTIAL_REGS):
            sums.terms.chunks[v] = dd_add(sums.terms.chunks[v], now.sums[chunk].terms.chunks[v])
            sums.totals.chunks[v] = dd_add(sums.totals.chunks[v], now.sums[chunk].totals.chunks[v])
    set_terms(now.a, &sums, 0, &now.e)

cdef void start_long_entropy(const LongRow* state, LongEntropy* now) noexcept nogil:
    """After the maximum."""
    cdef int v
    start_entropy_rows(now.a, now.row.o, now.row.i, 1, &now.e)
    now.s = shift_of(&now.a.rows, &now.row, max_of_chunks(state))
    for v in range(PARTIAL_REGS):
        now.e.s[v] = now.s

cdef int sum_long_row(LongRow* state, const RowWorkspace* workspaces, ParallelRegion* region,
                      LongEntropy* now) except -1:
    """Both normalizers."""
    cdef const Rows* rows = &now.a.rows
    cdef Sums sums
    cdef vreal ties
    cdef fp_state modes
    cdef bint refine
    cdef int v
    state.pass_, state.sum = PASS_SUM, SUM_KEEPING_WEIGHTS
    run_pass(long_row_chunk, state, state.row.n, workspaces, region)
    modes = fp_enter()
    sums_of_chunks(state, &sums)
    ties = sums.ties[0]
    for v in range(1, PARTIAL_REGS):
        ties = ties + sums.ties[v]
    now.of_weights = normalizer_of_weights(&now.s, rows.scaled, dd_total(sums.weights), hsum_exact(ties))
    refine = finalize(SUM_KEEPING_WEIGHTS, rows.scaled, state.row.n, &now.s, &sums, &now.normalizer)
    fp_leave(modes)
    if refine:
        state.sum = SUM_EXACT
        run_pass(long_row_chunk, state, state.row.n, workspaces, region)
        modes = fp_enter()
        sums_of_chunks(state, &sums)
        finalize(SUM_EXACT, rows.scaled, state.row.n, &now.s, &sums, &now.normalizer)
        fp_leave(modes)
    return 0

cdef int long_entropy_row(const CrossEntropy* a, Py_ssize_t r, int threads) except -1:
    cdef LongRow state
    cdef LongEntropy now
    cdef ParallelRegion region
    cdef fp_state modes
    cdef bint needs_terms, needs_grad
    cdef Py_ssize_t n = a.rows.n, chunks = ceil_div(n, CHUNK)
    cdef bint keeps = keeps_weights(&a.rows, n)
    cdef Workspaces memory = Workspaces()
    cdef void* block
    cdef int v
    memory.reserve(threads, n if n <= KEEP else CHUNK, keeps, False)
    block = allocate(chunks * <Py_ssize_t>(sizeof(Sums) + sizeof(TermSums) + sizeof(real)))
    try:
        region = open_region(threads)
        now.a, now.storing, now.sums = a, False, <TermSums*>block
        state.sums = <Sums*>(now.sums + chunks)
        state.maxima = <real*>(state.sums + chunks)
        now.row = state.row = row_at(&a.rows, r)
        state.rows, state.pass_ = &a.rows, PASS_MAX
        state.has_maxima, state.summed, state.bases.rebased = True, 0, 0        # row_max is the base
        run_pass(long_row_chunk, &state, n, memory.workspaces, &region)
        modes = fp_enter()
        start_long_entropy(&state, &now)
        state.shift = now.s
        fp_leave(modes)
        sum_long_row(&state, memory.workspaces, &region, &now)
        needs_terms, needs_grad = has_terms(a) and now.e.kept[0] != 0, a.has_grad and now.e.kept[0] != 0
        if needs_terms:
            run_pass(long_entropy_chunk, &now, n, memory.workspaces, &region)
        modes = fp_enter()
        for v in range(PARTIAL_REGS):
            now.e.normalizer[v], now.e.of_weights[v] = now.normalizer, now.of_weights
        if needs_terms:
            finish_long_terms(&now)
        finish_losses(a, &now.e)
        now.of_weights = normalizer_in_lane(now.e.of_weights, 0)
        if a.has_grad and not needs_grad:
            clear_elements(now.row.y, a.rows.y_n, n, a.rows.nontemporal)
        fp_leave(modes)
        if needs_grad:
            now.storing = True
            run_pass(long_entropy_chunk, &now, n, memory.workspaces, &region)
        close_region(&region)
    finally:
        free(block)
    return 0

# A tile of rows.

cdef void load_targets(const CrossEntropy* a, const TilePosition* position, Py_ssize_t j, Py_ssize_t count,
                       real* t) noexcept nogil:
    """t (count, PARTIALS): the probabilities of classes j .. j + count - 1 of each row."""
    cdef Rows rows = a.rows
    cdef TilePosition of_target = position[0]
    cdef const real* target = a.target
    cdef vreal[PARTIAL_REGS] unused
    cdef Py_ssize_t k, c
    if target == NULL:
        memset(t, 0, count * PARTIALS * sizeof(real))
        return
    target = target_at(a, &position.first, 0)
    if sizeof(elem) == sizeof(real):
        for c in range(PARTIAL_REGS):
            unused[c] = broadcast(0)
        rows.x_n, rows.x_inner = a.target_n, a.target_inner
        of_target.first.x = <const elem*>target
        load_tile(&rows, &of_target, j, count, t, unused)
        return
    memset(t, 0, count * PARTIALS * sizeof(real))
    for c in range(position.tile_rows):
        for k in range(count):
            t[k * PARTIALS + c] = target[c * a.target_inner + (j + k) * a.target_n]

cdef struct TileTerms:                          # running sums, and those of the chunks before
    vdd[PARTIALS * PARTIAL_REGS] terms, term_chunks, totals, total_chunks

cdef inline vreal weight_of_class(const CrossEntropy* a, Py_ssize_t k) noexcept nogil:
    return broadcast(1 if a.weight == NULL else a.weight[k])

cdef inline void add_tile_terms(const CrossEntropy* a, bint scaled, const Shift* s, const Normalizer* normalizer,
                                const Shares* shares, Py_ssize_t j, Py_ssize_t count, const real* t, const real* x,
                                TileTerms* sums) noexcept nogil:
    """Classes j .. j + count - 1, at t and x."""
    cdef vreal weight, share, share_lo, x_, log_p
    cdef Py_ssize_t k, at
    cdef int v
    for k in range(count):
        weight = weight_of_class(a, j + k)
        for v in range(PARTIAL_REGS):
            share = class_share_of(&shares[v], load(t + k * PARTIALS + v * LANES), weight, &share_lo)
            x_ = load(x + k * PARTIALS + v * LANES)
            log_p = normal_result_of(STORE_LOGS, &s[v], &normalizer[v], scaled, x_)
            at = (j + k) % PARTIALS * PARTIAL_REGS + v
            sums.terms[at] = add_entropy_term(scaled, sums.terms[at], share, share_lo, log_p,
                                              log_p_rest(&s[v], &normalizer[v], scaled, x_, log_p))
            sums.totals[at] = add_share(sums.totals[at], share, share_lo)

cdef void sum_tile_terms(const CrossEntropy* a, const TilePosition* position, Py_ssize_t tile, const real* x,
                         EntropyRows* e) noexcept nogil:
    """sum_terms_of_row of each row of a tile of the group, in the same order."""
    cdef TileTerms sums
    cdef Shares[PARTIAL_REGS] shares
    cdef real[BLOCK * PARTIALS] t
    cdef real[PARTIALS] hi, lo
    cdef vreal hi_, lo_
    cdef const Shift* s = &e.s[tile * PARTIAL_REGS]
    cdef const Normalizer* normalizer = &e.normalizer[tile * PARTIAL_REGS]
    cdef Py_ssize_t j = 0, count, c, row = tile * PARTIALS
    cdef int v
    for v in range(PARTIAL_REGS):
        shares[v] = row_shares_with(a, 1)
    clear_exact_tile(a.rows.n, sums.terms, sums.term_chunks)
    clear_exact_tile(a.rows.n, sums.totals, sums.total_chunks)
    while j < a.rows.n:
        count = min(a.rows.n - j, <Py_ssize_t>BLOCK)
        load_targets(a, position, j, count, t)
        if a.rows.scaled:
            add_tile_terms(a, True, s, normalizer, shares, j, count, t, x + j * PARTIALS, &sums)
        else:
            add_tile_terms(a, False, s, normalizer, shares, j, count, t, x + j * PARTIALS, &sums)
        j += BLOCK
        if j % CHUNK == 0 or j >= a.rows.n:
            end_exact_tile_chunk(a.rows.n, sums.terms, sums.term_chunks)
            end_exact_tile_chunk(a.rows.n, sums.totals, sums.total_chunks)
    for v in range(PARTIAL_REGS):
        split_exact(exact_tile_sum(a.rows.n, v, sums.term_chunks), &hi_, &lo_)
        store(hi + v * LANES, hi_)
        store(lo + v * LANES, lo_)
    for c in range(PARTIALS):
        e.terms[row + c] = <wider>hi[c] + <wider>lo[c] if e.kept[row + c] != 0 else 0
    if a.target == NULL:
        return
    for v in range(PARTIAL_REGS):
        split_exact(exact_tile_sum(a.rows.n, v, sums.total_chunks), &hi_, &lo_)
        store(hi + v * LANES, hi_)
        store(lo + v * LANES, lo_)
    for c in range(PARTIALS):
        e.other_share[row + c] = <wider>hi[c] + <wider>lo[c]

cdef inline void tile_grads(const CrossEntropy* a, bint terms, const EntropyRows* e, Py_ssize_t tile,
                            const Shares* shares, Py_ssize_t j, Py_ssize_t count, const real* t,
                            real* weights) noexcept nogil:
    """Weights of classes j .. j + count - 1 become gradients. A row that is ignored may hold NaN."""
    cdef vreal[PARTIAL_REGS] hi, lo
    cdef vmask[PARTIAL_REGS] ignored
    cdef real[PARTIALS] kept
    cdef vreal weight = broadcast(1), grad, share, share_lo
    cdef Py_ssize_t k, c
    cdef int v
    for c in range(PARTIALS):
        kept[c] = <real>e.kept[tile * PARTIALS + c]
    for v in range(PARTIAL_REGS):
        hi[v] = e.of_weights[tile * PARTIAL_REGS + v].hi
        lo[v] = e.of_weights[tile * PARTIAL_REGS + v].lo
        ignored[v] = eq(load(kept + v * LANES), broadcast(0))
    for k in range(count):
        if terms:
            weight = weight_of_class(a, j + k)
        for v in range(PARTIAL_REGS):
            grad = mul_dd(load(weights + k * PARTIALS + v * LANES), hi[v], lo[v])
            if terms:
                share = class_share_of(&shares[v], load(t + k * PARTIALS + v * LANES), weight, &share_lo)
                grad = (grad - share) - share_lo
            store(weights + k * PARTIALS + v * LANES, zero_where(ignored[v], grad))

cdef void store_tile_grads(const CrossEntropy* a, const TilePosition* position, Py_ssize_t tile, const EntropyRows* e,
                           real* weights) noexcept nogil:
    cdef real[BLOCK * PARTIALS] t
    cdef Shares[PARTIAL_REGS] shares
    cdef Py_ssize_t j = 0, count, c, row = tile * PARTIALS
    cdef int v
    if has_terms(a):
        for v in range(PARTIAL_REGS):
            shares[v] = shares_with(a, e.factor + row + v * LANES)
    while j < a.rows.n:
        count = min(a.rows.n - j, <Py_ssize_t>BLOCK)
        if has_terms(a):
            load_targets(a, position, j, count, t)
            tile_grads(a, True, e, tile, shares, j, count, t, weights + j * PARTIALS)
        else:
            tile_grads(a, False, e, tile, shares, j, count, t, weights + j * PARTIALS)
        j += BLOCK
    for c in range(position.tile_rows):
        if e.cls[row + c] >= 0:
            weights[e.cls[row + c] * PARTIALS + c] = e.of_class[row + c]
    j = 0
    while j < a.rows.n:
        store_tile_of_results(&a.rows, position, j, min(a.rows.n - j, <Py_ssize_t>BLOCK), weights + j * PARTIALS)
        j += BLOCK

cdef inline Py_ssize_t entropy_tile_size(const Rows* rows) noexcept nogil:
    """Reals of a tile in a group, and of its weights: one line more, so that tiles are not a power of two apart."""
    return (ceil_div(rows.n, 4) * 4 + 1) * PARTIALS + kept_at(SUM_KEEPING_WEIGHTS, rows.n)

cdef inline Py_ssize_t tiles_of_group(const Rows* rows) noexcept nogil:
    return min(max(<Py_ssize_t>ENTROPY_ELEMENTS // (rows.n * PARTIALS), 1), <Py_ssize_t>GROUP_TILES, tiles_of(rows))

cdef inline Py_ssize_t entropy_groups_of(const Rows* rows) noexcept nogil:
    """The number of groups of a matrix."""
    return ceil_div(tiles_of(rows), tiles_of_group(rows))

cdef void cross_entropy_tiles(const CrossEntropy* a, Py_ssize_t o, Py_ssize_t first_tile,
                              const RowWorkspace* workspace) noexcept nogil:
    """A group of tiles of matrix o."""
    cdef const Rows* rows = &a.rows
    cdef Py_ssize_t tiles = tiles_of(rows), count = min(tiles_of_group(rows), tiles - first_tile), t
    cdef Py_ssize_t i = first_tile * PARTIALS
    cdef vreal[PARTIAL_REGS] row_max
    cdef Normalizer[2 * PARTIAL_REGS] normalizer
    cdef RowWorkspace of_tile = workspace[0]
    cdef TilePosition position
    cdef EntropyRows e
    cdef int v
    start_entropy_rows(a, o, i, min(count * PARTIALS, rows.inner - i), &e)
    for t in range(count):
        position = tile_position(rows, o * tiles + first_tile + t)
        of_tile.weights_buf = workspace.weights_buf + t * entropy_tile_size(rows)
        for v in range(PARTIAL_REGS):
            row_max[v] = broadcast(-INFINITY)
        load_blocks(rows, &position, &of_tile, NULL, row_max)
        for v in range(PARTIAL_REGS):
            set_entropy_shift(rows.scaled, t * PARTIAL_REGS + v, row_max[v], &e)
        normalizers_of_tile(rows, &position, NULL, &e.s[t * PARTIAL_REGS], &of_tile, normalizer)
        for v in range(PARTIAL_REGS):
            e.normalizer[t * PARTIAL_REGS + v] = normalizer[v]
            if a.has_grad:
                e.of_weights[t * PARTIAL_REGS + v] = normalizer[PARTIAL_REGS + v]
        if has_terms(a):
            sum_tile_terms(a, &position, t, of_tile.weights_buf, &e)
    finish_losses(a, &e)
    if a.has_grad:
        for t in range(count):
            position = tile_position(rows, o * tiles + first_tile + t)
            store_tile_grads(a, &position, t, &e, workspace.weights_buf + t * entropy_tile_size(rows)
                             + kept_at(SUM_KEEPING_WEIGHTS, rows.n))

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
    cdef Py_ssize_t o, i, count
    if tasks.in_tiles:
        count = entropy_groups_of(&a.rows)
        for r in range(start, min(stop, a.rows.outer * count)):
            o, i = (r % a.rows.outer, r // a.rows.outer) if a.rows.in_turns else (r // count, r % count)
            cross_entropy_tiles(a, o, i * tiles_of_group(&a.rows), workspace)
    else:
        r, stop = start, min(stop, a.rows.outer * a.rows.inner)
        while r < stop:
            o, i = r // a.rows.inner, r % a.rows.inner
            count = min(group_size(a.rows.n), a.rows.inner - i, stop - r)
            cross_entropy_group(a, o, i, count, workspace)
            r += count
    if a.rows.nontemporal:
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
    a.rows = describe(LOG_SOFTMAX if grad is None else CROSS_ENTROPY, x, grad, temperature, None, None, nontemporal)
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
    a.loss_outer, a.loss_inner = x.shape[2], 1
    arrange(&a.rows)
    if a.rows.in_turns:
        a.loss_outer, a.loss_inner = a.loss_inner, a.loss_outer
        a.class_outer, a.class_inner = a.class_inner, a.class_outer
        a.target_outer, a.target_inner = a.target_inner, a.target_outer
    elif x.shape[2] == 1:
        a.class_inner, a.target_inner = a.class_outer, a.target_outer
    tasks.a, tasks.in_tiles = &a, uses_tiles(&a.rows) and keeps_tile(&a.rows)
    row_size, row_count = a.rows.n, a.rows.outer * a.rows.inner
    size = group_size(a.rows.n) * group_stride(a.rows.n) if a.rows.n <= KEEP else CHUNK
    if tasks.in_tiles:
        row_size, row_count = a.rows.n * PARTIALS * tiles_of_group(&a.rows), a.rows.outer * entropy_groups_of(&a.rows)
        size = tiles_of_group(&a.rows) * entropy_tile_size(&a.rows)
    elif is_shared(&a.rows, row_count, threads):
        for r in range(row_count):
            long_entropy_row(&a, r, row_threads(a.rows.n, threads))
        return
    memory.reserve(threads, size, False, tasks.in_tiles)
    tasks.workspaces = memory.workspaces
    tasks.size = max(1, task_size(row_count * row_size, threads) // row_size)
    run_tasks(cross_entropy_task, &tasks, ceil_div(row_count, tasks.size),
              max(1, SLICE // (tasks.size * row_size)), threads, IN_SHARES)
