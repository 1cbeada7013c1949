# Attention of many queries.
#
# The queries stand in the lanes. For a group of COLUMNS registers of queries, transposed once, the scores of
# a block of keys come out transposed, a line of queries for each key: elements of a key are broadcast straight from
# where they lie, so keys and values are neither packed nor copied; maximum and sum run down the lanes, with no step
# across a register; and the weights already lie as the second product wants them. Blocks that nobody sees are
# skipped, as in FlashAttention (Dao et al., 2022).

cdef enum:
    PIECE = 32              # products of a score that are summed before they join the others
    KEY_PIECE = 64          # weighted values, likewise
    GROUPS = 4              # groups of queries that share a block of keys
    QUERIES = COLUMNS * LANES

cdef struct Group:                          # up to COLUMNS registers of queries, and what they have found so far
    int columns
    Py_ssize_t rows                         # lanes beyond these repeat the last row
    Py_ssize_t[QUERIES] head, query
    Py_ssize_t[QUERIES] begin, end          # the keys that causal, window and lengths leave to each row
    Py_ssize_t some_begin, some_end         # keys outside are hidden from all
    Py_ssize_t all_begin, all_end           # keys inside are hidden from none, but for terms
    vreal[COLUMNS] top                      # the largest score
    vreal[COLUMNS] total                    # of the weights
    vreal[COLUMNS] excess, excess_rest      # of the total over 1
    vreal[COLUMNS] moment, moment_rest      # of weight * log(weight)
    vreal[COLUMNS] scale                    # of products with keys; products of 16-bit numbers are exact before it
    vreal[COLUMNS] slope
    bint steep                              # a slope may take a score beyond a real's range
    vreal[COLUMNS] factor                   # what `out` is to be multiplied by, since top has risen
    real* query_t                           # (E, columns * LANES)
    real* out_t                             # (Ev, columns * LANES)

cdef struct Desk:                           # one thread's buffers
    Group[GROUPS] group
    real[KEYS * QUERIES] scores             # of a block, transposed; then weights
    real[QUERIES * KEYS] added              # terms, a line a query
    real* key                               # a block that had to be converted
    real* value
    elem* clean                             # a block of values whose NaN and infinities are left out
    bint value_known, value_finite          # what is known of the present block

# --- rows and what they may see

cdef void place_rows(const Attention* a, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t first_row, Py_ssize_t rows,
                     Group* g) noexcept nogil:
    """Which rows a group has, and what they may see."""
    cdef Py_ssize_t row, lane
    g.rows = rows
    g.columns = <int>steps(rows, LANES)
    g.some_begin, g.some_end, g.all_begin, g.all_end = a.keys, 0, 0, a.keys
    for lane in range(g.columns * LANES):
        row = first_row + min(lane, rows - 1)
        g.query[lane] = row // a.shared
        g.head[lane] = key_head * a.shared + row % a.shared
        visible_keys(a, b, g.query[lane], &g.begin[lane], &g.end[lane])
        if g.end[lane] > g.begin[lane]:
            g.some_begin = min(g.some_begin, g.begin[lane])
        g.some_end = max(g.some_end, g.end[lane])
        g.all_begin = max(g.all_begin, g.begin[lane])
        g.all_end = min(g.all_end, g.end[lane])

cdef void turn_in(const Attention* a, const Line* row, real* to, Py_ssize_t step) noexcept nogil:
    """LANES rows of query become a register for each element, `step` apart."""
    cdef vreal[LANES] square
    cdef Py_ssize_t e = 0
    cdef int k
    while e < a.width:
        for k in range(LANES):
            square[k] = load_query(a, row[k], e)
        transpose(square)
        for k in range(LANES):
            store(to + (e + k) * step, square[k])
        e = next_register(e, a.width)

cdef void turn_out(const Attention* a, const real* x, Py_ssize_t step, vreal factor, Py_ssize_t rows,
                   const Line* row) noexcept nogil:
    """The way back, for the first `rows` of the rows."""
    cdef vreal[LANES] square
    cdef Py_ssize_t e = 0, r
    cdef int k
    while e < a.value_width:
        for k in range(LANES):
            square[k] = load(x + (e + k) * step) * factor
        transpose(square)
        if rows >= LANES:
            for k in range(LANES):
                store_out(a, square[k], row[k], e)
        else:
            for r in range(rows):
                store_out(a, square[r], row[r], e)
        e = next_register(e, a.value_width)

cdef void load_queries(const Attention* a, Py_ssize_t b, Group* g) noexcept nogil:
    """query_t[e][lane] = query of the lane; and the heads' scales."""
    cdef Line[QUERIES] row
    cdef real[QUERIES] scale
    cdef Py_ssize_t lane, e
    cdef int c, columns = g.columns
    for lane in range(columns * LANES):
        row[lane] = <Line>row_of(a.query, a.query_stride, b, g.head[lane], g.query[lane])
        scale[lane] = <real>a.scale[g.head[lane]]
    for c in range(columns):
        g.scale[c] = load(scale + c * LANES)
    if a.width < LANES:
        for e in range(a.width):
            for lane in range(columns * LANES):
                g.query_t[e * columns * LANES + lane] = query_at(a, row[lane], e)
        return
    for c in range(columns):
        turn_in(a, row + c * LANES, g.query_t + c * LANES, columns * LANES)

cdef void start_rows(const Attention* a, Py_ssize_t b, Group* g) noexcept nogil:
    """Nothing seen yet but the sink."""
    cdef real[QUERIES] sink, slope
    cdef Py_ssize_t lane
    cdef int c
    g.steep = False
    for lane in range(g.columns * LANES):
        sink[lane] = -INFINITY if a.sinks == NULL else <real>a.sinks[g.head[lane]]
        slope[lane] = 0 if a.slopes == NULL else <real>a.slopes[b * a.heads + g.head[lane]]
        g.steep |= is_steep(slope[lane])
    for c in range(g.columns):
        g.top[c] = load(sink + c * LANES)
        g.total[c] = choose(equal(g.top[c], fill(-INFINITY)), fill(0), fill(1))
        g.excess[c] = g.excess_rest[c] = g.moment[c] = g.moment_rest[c] = fill(0)
        g.slope[c] = load(slope + c * LANES)
    memset(g.out_t, 0, a.value_width * g.columns * LANES * sizeof(real))

# --- the two products

cdef inline void multiply(int rows, int columns, const real* a, Py_ssize_t a_row, Py_ssize_t a_step, Py_ssize_t count,
                          const real* b, vreal* product) noexcept nogil:
    """product[row][column] = sum over t < count of a[row * a_row + t * a_step] * b[t][column]; stays in registers."""
    cdef vreal[COLUMNS] right
    cdef vreal left
    cdef Py_ssize_t t
    cdef int r, c
    for r in range(rows * columns):
        product[r] = fill(0)
    for t in range(count):
        for c in range(columns):
            right[c] = load(b + c * LANES)
        for r in range(rows):
            left = fill(a[r * a_row])
            for c in range(columns):
                product[r * columns + c] = fma_(left, right[c], product[r * columns + c])
        a += a_step
        b += columns * LANES

cdef inline void some_scores(int rows, int columns, const real* key, Py_ssize_t stride, Py_ssize_t width,
                             const real* query_t, const vreal* scale, real* scores) noexcept nogil:
    """In pieces, since the error of a sum grows with its length; then times scale."""
    cdef vreal[MAX_TILE] product
    cdef Py_ssize_t e = 0
    cdef real* score
    cdef int r, c
    while e + PIECE < width:
        multiply(rows, columns, key + e, stride, 1, PIECE, query_t + e * columns * LANES, product)
        for r in range(rows * columns):
            score = scores + r * LANES
            store(score, load(score) + product[r] if e > 0 else product[r])
        e += PIECE
    multiply(rows, columns, key + e, stride, 1, width - e, query_t + e * columns * LANES, product)
    for r in range(rows):
        for c in range(columns):
            score = scores + (r * columns + c) * LANES
            if e > 0:
                product[r * columns + c] = load(score) + product[r * columns + c]
            store(score, product[r * columns + c] * scale[c])

cdef inline void find_scores(int rows, int columns, const real* key, Py_ssize_t stride, Py_ssize_t count,
                             Py_ssize_t width, const real* query_t, const vreal* scale, real* scores) noexcept nogil:
    """scores[j][lane] = scale * key j times the lane's query; the last tile overlaps the one before."""
    cdef Py_ssize_t j = 0
    if count < rows:
        for j in range(count):
            some_scores(1, columns, key + j * stride, stride, width, query_t, scale, scores + j * columns * LANES)
        return
    while j < count:
        j = min(j, count - rows)
        some_scores(rows, columns, key + j * stride, stride, width, query_t, scale, scores + j * columns * LANES)
        j += rows

cdef inline void some_out(int rows, int columns, int first, const real* value, Py_ssize_t stride, Py_ssize_t skipped,
                          Py_ssize_t count, const real* weights, const vreal* factor, real* out_t) noexcept nogil:
    """In pieces that end at multiples of KEY_PIECE in the block, wherever the group's first key is."""
    cdef vreal[MAX_TILE] product
    cdef Py_ssize_t j = min(count, KEY_PIECE - skipped % KEY_PIECE)
    cdef real* to
    cdef int r, c
    multiply(rows, columns, value, 1, stride, j, weights, product)
    for r in range(rows):
        if r >= first:
            for c in range(columns):
                to = out_t + (r * columns + c) * LANES
                store(to, fma_(load(to), factor[c], product[r * columns + c]))
    while j < count:
        multiply(rows, columns, value + j * stride, 1, stride, min(count - j, <Py_ssize_t>KEY_PIECE),
                 weights + j * columns * LANES, product)
        for r in range(rows):
            if r >= first:
                for c in range(columns):
                    to = out_t + (r * columns + c) * LANES
                    store(to, load(to) + product[r * columns + c])
        j += KEY_PIECE

cdef inline void add_values(int rows, int columns, const real* value, Py_ssize_t stride, Py_ssize_t skipped,
                            Py_ssize_t count, Py_ssize_t width, const real* weights, const vreal* factor,
                            real* out_t) noexcept nogil:
    """out_t[e][lane] = out_t[e][lane] * factor + sum over j of value[j][e] * weights[j][lane]."""
    cdef Py_ssize_t e = 0, done
    if width < rows:
        for e in range(width):
            some_out(1, columns, 0, value + e, stride, skipped, count, weights, factor, out_t + e * columns * LANES)
        return
    while e < width:
        done = max(e + rows - width, 0)
        e -= done
        some_out(rows, columns, <int>done, value + e, stride, skipped, count, weights, factor,
                 out_t + e * columns * LANES)
        e += rows

# --- what happens to scores between the two

cdef void add_terms(int columns, Py_ssize_t count, bint huge, const real* added, real* scores) noexcept nogil:
    """added: a line of KEYS a query; turned LANES queries by LANES keys at a time."""
    cdef vreal[LANES] square
    cdef Py_ssize_t turn, j
    cdef int c, k
    for turn in range(steps(count, LANES)):
        j = turn * LANES
        for c in range(columns):
            for k in range(LANES):
                square[k] = load(added + (c * LANES + k) * KEYS + j)
            transpose(square)
            for k in range(LANES):
                add_term(huge, square[k], scores + ((j + k) * columns + c) * LANES)

cdef void add_slopes(const Attention* a, Py_ssize_t b, const Group* g, Py_ssize_t key, Py_ssize_t count,
                     real* scores) noexcept nogil:
    cdef real[QUERIES] position
    cdef Py_ssize_t j, lane
    cdef int c, columns = g.columns
    for lane in range(columns * LANES):
        position[lane] = <real>(g.query[lane] + a.offset[b] - key)
    for j in range(count):
        for c in range(columns):
            add_distance(g.steep, g.slope[c], vabs(load(position + c * LANES) - fill(<real>j)),
                         scores + (j * columns + c) * LANES)

cdef void hide_keys(const Group* g, Py_ssize_t key, Py_ssize_t count, real* scores) noexcept nogil:
    """Scores of keys that causal, window or lengths hide become -inf."""
    cdef real[QUERIES] before, end
    cdef real* score
    cdef vmask visible
    cdef vreal number
    cdef Py_ssize_t j, lane
    cdef int c, columns = g.columns
    for lane in range(columns * LANES):         # relative to the block, so that they are exact
        before[lane] = <real>(min(max(g.begin[lane] - key, 0), count) - 1)
        end[lane] = <real>min(max(g.end[lane] - key, 0), count)
    for j in range(count):
        number = fill(<real>j)
        for c in range(columns):
            score = scores + (j * columns + c) * LANES
            visible = both(less(load(before + c * LANES), number), less(number, load(end + c * LANES)))
            store(score, choose(visible, load(score), fill(-INFINITY)))

cdef inline void weigh_scores(int columns, Py_ssize_t skipped, Py_ssize_t count, bint statistics, bint moments,
                              real* scores, Group* g) noexcept nogil:
    """Scores become weights, and what was found before is brought to the new top."""
    cdef vreal[COLUMNS] top, shift
    cdef Weights[COLUMNS] sums
    cdef vreal fall, factor
    cdef vmask kept
    cdef Py_ssize_t j, run
    cdef int c
    for c in range(columns):
        top[c] = g.top[c]
        sums[c].total = sums[c].ones = fill(0)
        sums[c].moment = sums[c].moment_rest = sums[c].others = sums[c].others_rest = fill(0)
    for j in range(count):
        for c in range(columns):
            top[c] = vmax(top[c], load(scores + (j * columns + c) * LANES))
    for c in range(columns):
        shift[c] = choose(less(fill(-INFINITY), top[c]), top[c], fill(0))   # -inf minus -inf would be NaN
    j = 0
    while j < count:                            # in runs that end at multiples of RUN_KEYS in the block
        run = min(count - j, RUN_KEYS - (skipped + j) % RUN_KEYS)
        weigh_run(columns, run, statistics, moments, shift, scores + j * columns * LANES, sums)
        j += run
    for c in range(columns):
        fall = vmax(fill(LEAST_EXPONENT), g.top[c] - shift[c])
        factor = exp_(fall)
        if statistics:
            kept = equal(g.top[c], top[c])
            g.excess[c] = choose(kept, g.excess[c], g.total[c] * factor)
            g.excess_rest[c] = keep_where(kept, g.excess_rest[c]) + sums[c].others_rest
            add_to(&g.excess[c], &g.excess_rest[c], sums[c].others)
            add_to(&g.excess[c], &g.excess_rest[c], sums[c].ones - leave_where(kept, fill(1)))
        if moments:
            g.moment[c] = factor * fma_(g.total[c], fall, g.moment[c])
            g.moment_rest[c] = fma_(factor, g.moment_rest[c], sums[c].moment_rest)
            add_to(&g.moment[c], &g.moment_rest[c], sums[c].moment)
        g.total[c] = fma_(g.total[c], factor, sums[c].total)
        g.factor[c] = factor
        g.top[c] = top[c]

cdef void put_back(const Attention* a, const Group* g, Desk* desk, const elem* value, Py_ssize_t key,
                   Py_ssize_t count) noexcept nogil:
    """Adds what was left out, times its weight, to the rows that see it."""
    cdef Py_ssize_t j, e, lane, width = g.columns * LANES
    cdef real x
    for j in range(count):
        for e in range(a.value_width):
            x = real_of(value + j * a.value_stride[2] + e)
            if x - x == 0:
                continue
            for lane in range(width):
                if (g.begin[lane] <= key + j < g.end[lane]
                        and (a.terms == 0 or desk.added[lane * KEYS + j] != -INFINITY)):
                    g.out_t[e * width + lane] += desk.scores[j * width + lane] * x

# --- a group of queries and a block of keys

cdef void convert(const elem* x, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t width, real* to) noexcept nogil:
    """(count, width) elements as contiguous reals."""
    cdef Py_ssize_t j, e
    for j in range(count):
        e = 0
        while e + LANES <= width:
            store(to + j * width + e, load_elem(x + j * stride + e))
            e += LANES
        while e < width:
            to[j * width + e] = real_of(x + j * stride + e)
            e += 1

cdef inline void meet(int rows, int columns, const Attention* a, Py_ssize_t b, Py_ssize_t key_head, Group* g,
                      Desk* desk, const real* key_block, Py_ssize_t key_stride, const real* value_block,
                      Py_ssize_t value_stride, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Keys start .. stop - 1; the blocks begin at `start`."""
    cdef Py_ssize_t lane, skipped, count, first_key = max(start, g.some_begin), end = min(stop, g.some_end)
    cdef const elem* value
    cdef bint partial, careful
    cdef int what = 0
    count = end - first_key
    skipped = first_key - start
    if count <= 0:
        return
    partial = first_key < g.all_begin or end > g.all_end
    if a.terms:
        for lane in range(g.rows):
            what |= fetch_terms(a, b, g.head[lane], g.query[lane], first_key, count, desk.added + lane * KEYS)
        if not what & 1:
            return
    find_scores(rows, columns, key_block + skipped * key_stride, key_stride, count, a.width, g.query_t, g.scale,
                desk.scores)
    if a.softcap != 0:
        cap_scores(a.softcap, count * columns, desk.scores)
    if what & 2:
        add_terms(columns, count, what & 8, desk.added, desk.scores)
    if a.slopes != NULL:
        add_slopes(a, b, g, first_key, count, desk.scores)
    if partial:
        hide_keys(g, first_key, count, desk.scores)
    if a.entropy != NULL:
        weigh_scores(columns, skipped, count, True, True, desk.scores, g)
    elif a.lse != NULL:
        weigh_scores(columns, skipped, count, True, False, desk.scores, g)
    else:
        weigh_scores(columns, skipped, count, False, False, desk.scores, g)
    value = row_of(a.value, a.value_stride, b, key_head, start)
    if (partial or what & 4) and not desk.value_known:
        desk.value_known = True
        desk.value_finite = is_finite(value, a.value_stride[2], stop - start, a.value_width)
        if not desk.value_finite:
            clear_nonfinite(value, a.value_stride[2], stop - start, a.value_width, desk.clean)
            if sizeof(elem) != sizeof(real):
                convert(desk.clean, a.value_width, stop - start, a.value_width, desk.value)
    careful = desk.value_known and not desk.value_finite
    if careful:
        value_block = <const real*>desk.clean if sizeof(elem) == sizeof(real) else desk.value
        value_stride = a.value_width
    add_values(rows, columns, value_block + skipped * value_stride, value_stride, skipped, count, a.value_width,
               desk.scores, g.factor, g.out_t)
    if careful:
        put_back(a, g, desk, value + skipped * a.value_stride[2], first_key, count)

cdef void meet_1(const Attention* a, Py_ssize_t b, Py_ssize_t key_head, Group* g, Desk* desk, const real* key,
                 Py_ssize_t key_stride, const real* value, Py_ssize_t value_stride, Py_ssize_t start,
                 Py_ssize_t stop) noexcept nogil:
    meet(TILE_1, 1, a, b, key_head, g, desk, key, key_stride, value, value_stride, start, stop)

cdef void meet_2(const Attention* a, Py_ssize_t b, Py_ssize_t key_head, Group* g, Desk* desk, const real* key,
                 Py_ssize_t key_stride, const real* value, Py_ssize_t value_stride, Py_ssize_t start,
                 Py_ssize_t stop) noexcept nogil:
    meet(TILE_2, 2, a, b, key_head, g, desk, key, key_stride, value, value_stride, start, stop)

cdef void meet_3(const Attention* a, Py_ssize_t b, Py_ssize_t key_head, Group* g, Desk* desk, const real* key,
                 Py_ssize_t key_stride, const real* value, Py_ssize_t value_stride, Py_ssize_t start,
                 Py_ssize_t stop) noexcept nogil:
    meet(TILE_3, 3, a, b, key_head, g, desk, key, key_stride, value, value_stride, start, stop)

# --- a block of queries

cdef void spread_row(const Attention* a, const real* row, Py_ssize_t step, elem* out) noexcept nogil:
    cdef Py_ssize_t e
    for e in range(a.value_width):
        if sizeof(elem) < sizeof(real) and a.out_is_real:
            (<real*>out)[e] = row[e * step]
        else:
            out[e] = elem_of(row[e * step])

cdef void finish_group(const Attention* a, Py_ssize_t b, Group* g) noexcept nogil:
    cdef Line[QUERIES] row
    cdef real[QUERIES] lse, entropy
    cdef vreal[COLUMNS] inverse
    cdef vreal row_lse, row_entropy
    cdef Py_ssize_t lane, e, at
    cdef int c, columns = g.columns
    for c in range(columns):
        inverse[c] = conclude_rows(a, g.top[c], g.total[c], g.excess[c], g.excess_rest[c],
                                   g.moment[c] + g.moment_rest[c], &row_lse, &row_entropy)
        store(lse + c * LANES, row_lse)
        store(entropy + c * LANES, row_entropy)
    for lane in range(g.rows):
        at = (b * a.heads + g.head[lane]) * a.length + g.query[lane]
        if a.lse != NULL:
            a.lse[at] = lse[lane]
        if a.entropy != NULL:
            a.entropy[at] = entropy[lane]
        row[lane] = <Line>row_of(a.out, a.out_stride, b, g.head[lane], g.query[lane])
    if a.value_width < LANES:
        for e in range(a.value_width):
            for c in range(columns):
                store(g.out_t + (e * columns + c) * LANES, load(g.out_t + (e * columns + c) * LANES) * inverse[c])
        for lane in range(g.rows):
            spread_row(a, g.out_t + lane, columns * LANES, row[lane])
        return
    for c in range(columns):
        turn_out(a, g.out_t + c * LANES, columns * LANES, inverse[c], g.rows - c * LANES, row + c * LANES)

cdef inline int columns_of(Py_ssize_t registers) noexcept nogil:
    """The next group's share: 3, but rather 2 and 2 than 3 and 1, which has few multiply-adds for each load."""
    return <int>(registers if registers <= COLUMNS else 2 if registers == 4 else COLUMNS)

cdef inline Py_ssize_t rows_a_task(Py_ssize_t rows) noexcept nogil:
    """As many as GROUPS groups hold, or less, so that all tasks have about the same."""
    cdef Py_ssize_t registers = steps(rows, LANES)
    return steps(registers, steps(registers, GROUPS * COLUMNS)) * LANES

cdef void attend(const Attention* a, Py_ssize_t task, Desk* desk, Region* region) noexcept nogil:
    """One task: rows_a_task rows of the queries that share a key head; the last rows, which may see most, first."""
    cdef fp_state state = fp_enter()
    cdef Py_ssize_t rows = a.length * a.shared, size = rows_a_task(rows), blocks = steps(rows, size)
    cdef Py_ssize_t block = blocks - 1 - task % blocks, key_head = task // blocks % a.key_heads
    cdef Py_ssize_t b = task // blocks // a.key_heads
    cdef Py_ssize_t row = block * size, last = min(row + size, rows), count
    cdef Py_ssize_t begin = a.keys, end = 0, start, stop, key_stride = a.key_stride[2], value_stride = a.value_stride[2]
    cdef Py_ssize_t weight = 0
    cdef const elem* key
    cdef const elem* value
    cdef const real* key_block
    cdef const real* value_block
    cdef Group* g
    cdef int groups = 0, k
    start_task(region)
    while row < last:
        g = &desk.group[groups]
        count = min(columns_of(steps(last - row, LANES)) * LANES, last - row)
        place_rows(a, b, key_head, row, count, g)
        load_queries(a, b, g)
        start_rows(a, b, g)
        begin, end = min(begin, g.some_begin), max(end, g.some_end)
        weight += g.columns * (max(g.some_end - g.some_begin, 0) + LANES)
        row += count
        groups += 1
    start = begin // KEYS * KEYS
    while start < end:
        stop = min(start + KEYS, end)
        key = row_of(a.key, a.key_stride, b, key_head, start)
        value = row_of(a.value, a.value_stride, b, key_head, start)
        if sizeof(elem) == sizeof(real):
            key_block, value_block = <const real*>key, <const real*>value
        else:
            convert(key, a.key_stride[2], stop - start, a.width, desk.key)
            convert(value, a.value_stride[2], stop - start, a.value_width, desk.value)
            key_block, value_block, key_stride, value_stride = desk.key, desk.value, a.width, a.value_width
        desk.value_known, desk.value_finite = False, True
        for k in range(groups):
            g = &desk.group[k]
            if g.columns == 3:
                meet_3(a, b, key_head, g, desk, key_block, key_stride, value_block, value_stride, start, stop)
            elif g.columns == 2:
                meet_2(a, b, key_head, g, desk, key_block, key_stride, value_block, value_stride, start, stop)
            else:
                meet_1(a, b, key_head, g, desk, key_block, key_stride, value_block, value_stride, start, stop)
        start += KEYS
    for k in range(groups):
        finish_group(a, b, &desk.group[k])
    fp_leave(state)
    end_task(region, weight)

# --- all blocks

cdef class Desks:
    """The buffers of `threads` threads, freed with it."""
    cdef char* block
    cdef Py_ssize_t desk_bytes

    def __cinit__(self, int threads, Py_ssize_t width, Py_ssize_t value_width):
        cdef Py_ssize_t query_bytes = lines(width * QUERIES * sizeof(real))
        cdef Py_ssize_t out_bytes = lines(value_width * QUERIES * sizeof(real))
        cdef Py_ssize_t key_bytes = 0 if sizeof(elem) == sizeof(real) else lines(KEYS * width * sizeof(real))
        cdef Py_ssize_t value_bytes = 0 if sizeof(elem) == sizeof(real) else lines(KEYS * value_width * sizeof(real))
        cdef Py_ssize_t t
        cdef int k
        cdef Desk* desk
        cdef char* at
        self.desk_bytes = (lines(sizeof(Desk)) + GROUPS * (query_bytes + out_bytes) + key_bytes + value_bytes
                           + lines(KEYS * value_width * sizeof(elem)))
        self.block = <char*>allocate(threads * self.desk_bytes)
        for t in range(threads):
            desk = self.desk(t)
            at = <char*>desk + lines(sizeof(Desk))
            for k in range(GROUPS):
                desk.group[k].query_t = <real*>at
                desk.group[k].out_t = <real*>(at + query_bytes)
                at += query_bytes + out_bytes
            desk.key = <real*>at
            desk.value = <real*>(at + key_bytes)
            desk.clean = <elem*>(at + key_bytes + value_bytes)

    cdef inline Desk* desk(self, Py_ssize_t t) noexcept nogil:
        return <Desk*>(self.block + t * self.desk_bytes)

    def __dealloc__(self):
        free(self.block)

cdef int attend_all(const Attention* a, int threads) except -1:
    cdef Py_ssize_t t, turn, start, stop, slice_, rows = a.length * a.shared, size = rows_a_task(rows)
    cdef Py_ssize_t tasks = a.batch * a.key_heads * steps(rows, size)
    cdef Region region
    cdef Desks desks
    threads = <int>min(threads, tasks)
    desks = Desks(threads, a.width, a.value_width)
    # between two looks for an interrupt, a fraction of a second by any kernel; the smallest task takes microseconds
    slice_ = max(<Py_ssize_t>500000000 // (size * work_of_row(a) + 10000), <Py_ssize_t>(2 * threads))
    for turn in range(steps(tasks, slice_)):
        start = turn * slice_
        stop = min(start + slice_, tasks)
        with nogil:
            region = alone_at_first(threads)
            while start < stop and alone(&region):
                attend(a, start, desks.desk(0), &region)
                start += 1
            if start < stop:
                begin_region(&region)
                for t in prange(start, stop, num_threads=threads, schedule="dynamic"):
                    attend(a, t, desks.desk(threadid()), &region)
                end_region(&region)
            learn(&region)
        PyErr_CheckSignals()
    return 0
