# A tile of any rows.

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
