# Weights and sums. A full block goes at once, four elements of a partial sum together; the last block of a row, which
# may be nearly empty, in two steps.

cdef inline bint any_center(const Shift* s) noexcept nogil:
    """Whether a column's center is not zero: see exp4_scores."""
    cdef vreal largest_center = broadcast(0)
    cdef int c
    for c in range(PARTIAL_REGS):
        largest_center = vmax(vabs(s[c].center), largest_center)
    return hmax(largest_center) != 0

cdef inline void full_block(int sum, bint scaled, bint centered, const Shift* shift, real* x, TileWorkspace* tile,
                            vcount* ties) noexcept nogil:
    cdef Shift[PARTIAL_REGS] s
    cdef vreal[4] e, p, f
    cdef vreal total, lost, rest, moment
    cdef Py_ssize_t part, at
    cdef int a, c
    for c in range(PARTIAL_REGS):
        s[c] = shift[c]
    for part in range(PARTIALS):
        for c in range(PARTIAL_REGS):
            at = part * PARTIALS + c * LANES
            for a in range(4):
                e[a] = load(x + at + a * PARTIALS * PARTIALS)
            exp4_scores(e, &s[c], False, scaled, centered, p, f)
            if sum == SUM_WEIGHTS:
                for a in range(4):
                    store(x + at + a * PARTIALS * PARTIALS, fma_(p[a], f[a], f[a]))
            else:
                for a in range(4):
                    exclude_max(sum, &s[c], e[a], &f[a], &ties[c])
            if sum == SUM_MOMENTS:
                moment = broadcast(0)
                for a in range(4):
                    moment = fma_(fma_(p[a], f[a], f[a]), score_below_max(&s[c], e[a], scaled), moment)
                tile.moments[part * PARTIAL_REGS + c] = dd_add(tile.moments[part * PARTIAL_REGS + c],
                                                               dd_of_sum(moment, broadcast(0)))
            total = load(tile.total + at)
            lost = load(tile.lost + at)
            rest = load(tile.rest + at)
            add_weights(sum, &total, &lost, &rest, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)
            store(tile.rest + at, rest)

cdef inline void exp_block(int sum, bint scaled, const Shift* shift, Py_ssize_t count, real* x, TileWorkspace* tile,
                           vcount* ties) noexcept nogil:
    """First step: p and f of the elements, and the weights in place of them if they are kept."""
    cdef Shift[PARTIAL_REGS] s
    cdef vreal[4] e, p, f
    cdef Py_ssize_t step, k
    cdef int a, c
    for c in range(PARTIAL_REGS):
        s[c] = shift[c]
    for k in range(count * PARTIAL_REGS, ceil_div(count * PARTIAL_REGS, 4) * 4):  # there is room for whole steps
        store(x + k * LANES, broadcast(-INFINITY))
    for step in range(ceil_div(count * PARTIAL_REGS, 4)):
        k = step * (4 * LANES)
        for a in range(4):
            e[a] = load(x + k + a * LANES)
        exp4_scores(e, s, True, scaled, True, p, f)
        for a in range(4):
            if sum == SUM_WEIGHTS:
                store(x + k + a * LANES, fma_(p[a], f[a], f[a]))
            else:
                exclude_max(sum, &s[a % PARTIAL_REGS], e[a], &f[a], &ties[a % PARTIAL_REGS])
            store(tile.p + k + a * LANES, p[a])
            store(tile.f + k + a * LANES, f[a])

cdef inline void load_weights(const TileWorkspace* tile, Py_ssize_t part, int c, Py_ssize_t count, vreal* p,
                              vreal* f) noexcept nogil:
    """Of elements part, part + PARTIALS, ... of the block, which join one partial sum; zeros beyond its end."""
    cdef Py_ssize_t at = part * PARTIALS + c * LANES
    cdef int a
    for a in range(4):
        p[a] = broadcast(0)
        f[a] = broadcast(0)
        if part + a * PARTIALS < count:
            p[a] = load(tile.p + at + a * PARTIALS * PARTIALS)
            f[a] = load(tile.f + at + a * PARTIALS * PARTIALS)

cdef inline vdd moment_of(const Shift* s, bint scaled, const real* x, const TileWorkspace* tile, Py_ssize_t part, int c,
                          Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t at = part * PARTIALS + c * LANES
    cdef vreal[4] p, f
    cdef vreal moment = broadcast(0)
    cdef int a
    load_weights(tile, part, c, count, p, f)
    for a in range(4):
        if part + a * PARTIALS < count:
            moment = fma_(fma_(p[a], f[a], f[a]), score_below_max(s, load(x + at + a * PARTIALS * PARTIALS), scaled),
                          moment)
    return dd_of_sum(moment, broadcast(0))

cdef inline void sum_block(int sum, bint scaled, const Shift* s, Py_ssize_t count, const real* x,
                           TileWorkspace* tile) noexcept nogil:
    """Second step: element j of a row goes to partial sum j modulo PARTIALS."""
    cdef vreal[4] p, f
    cdef vreal total, lost, rest
    cdef Py_ssize_t part, at
    cdef int c
    for part in range(min(count, <Py_ssize_t>PARTIALS)):
        for c in range(PARTIAL_REGS):
            at = part * PARTIALS + c * LANES
            load_weights(tile, part, c, count, p, f)
            if sum == SUM_MOMENTS:
                tile.moments[part * PARTIAL_REGS + c] = dd_add(tile.moments[part * PARTIAL_REGS + c],
                                                               moment_of(&s[c], scaled, x, tile, part, c, count))
            total = load(tile.total + at)
            lost = load(tile.lost + at)
            rest = load(tile.rest + at)
            add_weights(sum, &total, &lost, &rest, p, f)
            store(tile.total + at, total)
            store(tile.lost + at, lost)
            store(tile.rest + at, rest)

cdef inline void add_block(int sum, bint scaled, const Shift* s, Py_ssize_t count, real* x, TileWorkspace* tile,
                           vcount* ties) noexcept nogil:
    if count == BLOCK and not scaled and (sum == SUM_WEIGHTS or sum == SUM_EXCLUDING_MAX) and not any_center(s):
        full_block(sum, False, False, s, x, tile, ties)
    elif count == BLOCK:
        full_block(sum, scaled, True, s, x, tile, ties)
    else:
        exp_block(sum, scaled, s, count, x, tile, ties)
        sum_block(sum, scaled, s, count, x, tile)

cdef void add_block_of(int sum, bint scaled, const Shift* s, Py_ssize_t count, real* x, TileWorkspace* tile,
                       vcount* ties) noexcept nogil:
    # one call for each of the cases, so that the compiler makes each its own loop
    if sum == SUM_WEIGHTS:
        if scaled:
            add_block(SUM_WEIGHTS, True, s, count, x, tile, ties)
        else:
            add_block(SUM_WEIGHTS, False, s, count, x, tile, ties)
    elif sum == SUM_MOMENTS:
        add_block(SUM_MOMENTS, True, s, count, x, tile, ties)
    elif sum == SUM_EXCLUDING_MAX:
        if scaled:
            add_block(SUM_EXCLUDING_MAX, True, s, count, x, tile, ties)
        else:
            add_block(SUM_EXCLUDING_MAX, False, s, count, x, tile, ties)
    elif scaled:
        add_block(SUM_EXACT, True, s, count, x, tile, ties)
    else:
        add_block(SUM_EXACT, False, s, count, x, tile, ties)

cdef inline void start_chunk(int sum, TileWorkspace* tile) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        store(tile.total + k * LANES, start_of(sum))
        store(tile.lost + k * LANES, broadcast(0))
        store(tile.rest + k * LANES, broadcast(0))

cdef inline void load_sums(int sum, const TileWorkspace* tile, Py_ssize_t k, vreal* total,
                           vreal* lost) noexcept nogil:
    """With the rest in them."""
    cdef vreal rest = load(tile.rest + k * LANES)
    total[0], lost[0] = load(tile.total + k * LANES), load(tile.lost + k * LANES)
    add_rest(sum, total, lost, &rest)

cdef void end_run(int sum, TileWorkspace* tile) noexcept nogil:
    cdef vreal total, lost
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        load_sums(sum, tile, k, &total, &lost)
        store(tile.total + k * LANES, total)
        store(tile.lost + k * LANES, lost)
        store(tile.rest + k * LANES, broadcast(0))

cdef void end_chunk(int sum, TileWorkspace* tile) noexcept nogil:
    cdef vreal total, lost
    cdef Py_ssize_t k
    for k in range(PARTIALS * PARTIAL_REGS):
        load_sums(sum, tile, k, &total, &lost)
        tile.weights[k] = dd_add(tile.weights[k], dd_of_sum(total - start_of(sum), lost))

cdef Normalizer finalize_column(int sum, bint scaled, const Shift* s, Py_ssize_t n, int c,
                                const TileWorkspace* tile, vcount ties, vmask* needs_refinement) noexcept nogil:
    cdef vdd_sum weight_sum = dd_sum_start(), moments = dd_sum_start()
    cdef vdd weights
    cdef int part
    for part in range(PARTIALS):
        weight_sum.chain[part % 4] = dd_add(weight_sum.chain[part % 4], tile.weights[part * PARTIAL_REGS + c])
    weights = dd_sum_end(weight_sum)
    if sum == SUM_WEIGHTS:
        return normalizer_of(SUM_WEIGHTS, s, scaled, n, weights, weights, real_count(ties), needs_refinement)
    if sum == SUM_MOMENTS:
        for part in range(PARTIALS):
            moments.chain[part % 4] = dd_add(moments.chain[part % 4], tile.moments[part * PARTIAL_REGS + c])
        return normalizer_of(SUM_MOMENTS, s, True, n, weights, dd_sum_end(moments), real_count(ties), needs_refinement)
    if sum == SUM_EXCLUDING_MAX:
        return normalizer_of(SUM_EXCLUDING_MAX, s, scaled, n, weights, weights, real_count(ties), needs_refinement)
    return normalizer_of(SUM_EXACT, s, scaled, n, weights, weights, real_count(ties), needs_refinement)

cdef inline Shift tile_shift(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows, bint scaled,
                             vreal row_max) noexcept nogil:
    """That of one register's rows, from i on."""
    cdef Shift s
    cdef real[LANES] temperature, temperature_lo
    cdef double t
    cdef Py_ssize_t k
    if scaled:
        for k in range(LANES):
            t = 1
            if k < tile_rows:
                t = rows.temperature[o * rows.temperature_outer + (i + k) * rows.temperature_inner]
            temperature[k] = <real>t
            temperature_lo[k] = <real>(t - temperature[k])
        set_temperature(&s, load(temperature), load(temperature_lo))
    else:
        no_temperature(&s)
    set_row_max(&s, row_max)
    return s

cdef bint any_special(const Rows* rows, Py_ssize_t tile_rows, const vreal* row_max,
                      const Normalizer* normalizer) noexcept nogil:
    cdef real[PARTIALS] maxima, his
    cdef int c
    if rows.op == SOFTMAX and rows.where == NULL:
        return False
    for c in range(PARTIAL_REGS):
        store(maxima + c * LANES, row_max[c])
        store(his + c * LANES, normalizer[c].hi)
    for c in range(tile_rows):
        if is_special(rows, maxima[c], his[c]):
            return True
    return False

cdef void write_scalars(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows,
                        const Normalizer* normalizer) noexcept nogil:
    cdef elem[PARTIALS] line
    cdef Py_ssize_t c
    for c in range(PARTIAL_REGS):
        store_elem(line + c * LANES, normalizer[c].hi + normalizer[c].lo)
    for c in range(tile_rows):
        rows.y[o * rows.y_outer + (i + c) * rows.y_inner] = line[c]

cdef void strided_sums(int sum, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows, const Shift* s,
                       bint keep, real* weights_buf, TileWorkspace* tile, Normalizer* normalizer,
                       vmask* needs_refinement) noexcept nogil:
    """Rows longer than a block."""
    cdef vcount[PARTIAL_REGS] ties
    cdef vreal[PARTIAL_REGS] row_max
    cdef Py_ssize_t b, j, k, count
    cdef real* x
    cdef int c
    for c in range(PARTIAL_REGS):
        ties[c] = no_count()
        row_max[c] = s[c].row_max
    for k in range(PARTIALS * PARTIAL_REGS):
        tile.weights[k] = dd_zero()
    if sum == SUM_MOMENTS:
        for k in range(PARTIALS * PARTIAL_REGS):
            tile.moments[k] = dd_zero()
    for b in range(ceil_div(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = weights_buf + j * PARTIALS if keep else weights_buf
        if not keep:
            load_tile(rows, o, i, tile_rows, j, count, x, row_max)
        else:
            prefetch_block(rows, o, i, j, count)
        if j % CHUNK == 0:
            start_chunk(sum, tile)
        add_block_of(sum, rows.scaled, s, count, x, tile, ties)
        if (j + BLOCK) % CHUNK == 0 or j + BLOCK >= rows.n:
            end_chunk(sum, tile)
        elif RUN > BLOCK and (j + BLOCK) % RUN == 0:
            end_run(sum, tile)
    for c in range(PARTIAL_REGS):
        normalizer[c] = finalize_column(sum, rows.scaled, &s[c], rows.n, c, tile, ties[c], &needs_refinement[c])

cdef void tile_normalizers(int sum, const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows,
                           const Shift* s, bint keep, const RowWorkspace* workspace, Normalizer* normalizer,
                           vmask* needs_refinement) noexcept nogil:
    if rows.n <= BLOCK:
        finalize_single_block(sum, rows.scaled, s, rows.n, workspace.weights_buf, workspace.tile, normalizer,
                              needs_refinement)
    else:
        strided_sums(sum, rows, o, i, tile_rows, s, keep, workspace.weights_buf, workspace.tile, normalizer,
                     needs_refinement)

cdef inline bint any_column(const vmask* mask) noexcept nogil:
    cdef int c
    for c in range(PARTIAL_REGS):
        if any_lane(mask[c]):
            return True
    return False

cdef inline void select_refined(const vmask* needs_refinement, const Normalizer* exact,
                                Normalizer* normalizer) noexcept nogil:
    """Only where they are needed: what comes out for a row may not depend on its neighbours."""
    cdef int c
    for c in range(PARTIAL_REGS):
        normalizer[c].hi = vselect(needs_refinement[c], exact[c].hi, normalizer[c].hi)
        normalizer[c].lo = vselect(needs_refinement[c], exact[c].lo, normalizer[c].lo)

cdef inline bint find_ones(const Shift* s, bint scaled, const vmask* needs_refinement,
                           Normalizer* normalizer) noexcept nogil:
    """find_one, for all columns."""
    cdef bint found = False
    cdef int c
    if any_column(needs_refinement):
        for c in range(PARTIAL_REGS):
            normalizer[c].one = broadcast(NEARLY_ONE)
            found |= find_one(&s[c], scaled, &normalizer[c])
    return found

cdef void strided_tile(const Rows* rows, Py_ssize_t o, Py_ssize_t i, Py_ssize_t tile_rows,
                       const RowWorkspace* workspace) noexcept nogil:
    """The rows in columns i to i + width."""
    cdef bint keep = rows.n * PARTIALS <= KEEP
    cdef vreal[PARTIAL_REGS] row_max
    cdef vcount[PARTIAL_REGS] ties
    cdef Shift[PARTIAL_REGS] s
    cdef Normalizer[PARTIAL_REGS] normalizer, exact
    cdef vmask[PARTIAL_REGS] needs_refinement, unused
    cdef Py_ssize_t b, j, count
    cdef real* x
    cdef int c, sum, stored = rows.op
    for c in range(PARTIAL_REGS):
        row_max[c] = broadcast(-INFINITY)
        ties[c] = no_count()
    for b in range(ceil_div(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = workspace.weights_buf + j * PARTIALS if keep else workspace.weights_buf
        if rows.causal:
            load_visible_tile(rows, o, i, tile_rows, j, count, x, row_max)
        else:
            load_tile(rows, o, i, tile_rows, j, count, x, row_max)
    for c in range(PARTIAL_REGS):
        s[c] = tile_shift(rows, o, i + c * LANES, tile_rows - c * LANES, rows.scaled, row_max[c])

    sum = first_sum(rows)
    tile_normalizers(sum, rows, o, i, tile_rows, s, keep, workspace, normalizer, needs_refinement)
    if sum == SUM_EXCLUDING_MAX and any_column(needs_refinement):
        tile_normalizers(SUM_EXACT, rows, o, i, tile_rows, s, keep, workspace, exact, unused)
        select_refined(needs_refinement, exact, normalizer)
    elif sum == SUM_WEIGHTS and find_ones(s, rows.scaled, needs_refinement, normalizer):
        stored = STORE_WEIGHTS_OR_ONE
    if any_special(rows, tile_rows, row_max, normalizer):
        for j in range(i, i + tile_rows):
            dense_row(rows, o * rows.inner + j, max_of_row(rows, o, j, workspace), o * rows.inner + j, workspace)
        return
    if rows.op == LOGSUMEXP or rows.op == ENTROPY:
        write_scalars(rows, o, i, tile_rows, normalizer)
        return

    for b in range(ceil_div(rows.n, BLOCK)):
        j = b * BLOCK
        count = min(rows.n - j, <Py_ssize_t>BLOCK)
        x = workspace.weights_buf + j * PARTIALS if keep else workspace.weights_buf
        if not keep:
            load_tile(rows, o, i, tile_rows, j, count, x, row_max)
            if rows.op == SOFTMAX:
                # for the weights: the sums are known
                add_block_of(SUM_WEIGHTS, rows.scaled, s, count, x, workspace.tile, ties)
        write_tile(stored, rows, o, i, tile_rows, j, count, s, normalizer, x)
