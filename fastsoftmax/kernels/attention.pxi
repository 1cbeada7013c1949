# Scaled dot-product attention, forward.
#
#   query (B, Hq, L, E), key (B, Hk, S, E), value (B, Hk, S, Ev) -> out (B, Hq, L, Ev)
#
# Method: the online softmax of Milakov and Gimelshein (2018) over blocks of keys, as in FlashAttention (Dao et al.,
# 2022): no L x S array exists. The queries stand in the lanes. For a group of COLUMNS registers of queries, transposed
# and scaled once, the scores of a block of keys come out transposed, a line of queries for each key: elements of a
# key are broadcast straight from where they lie, so keys and values are neither packed nor copied; maximum and
# sum run down the lanes, with no step across a register; and the weights already lie as the second product wants them.
#
# The query heads that share a key head are one matrix of rows: row r is query r // shared of the head number
# r % shared among them, so that they fill the lanes together and share each pass over keys and values.
#
# Scores are kept times log2(e), which enters with the scale, so that a weight is a power of two: 2**(score - top).
#
# A row's result depends on its own elements and on KEYS alone: not on the rows beside it, nor on threads. A key that is
# hidden from it adds exact zeros wherever it is not skipped.

cdef enum:
    KEYS = 128              # keys of a block; its scores, keys and values stay in the L1 cache up to E = 64
    GROUPS = 4              # groups of queries that share a block of keys
    MAX_TERMS = 4
    QUERIES = COLUMNS * LANES
    # kinds of a term's elements
    BOOLEAN = 0
    ELEMENT = 1
    REAL = 2

ctypedef elem* Line                         # a row of an array

cdef struct Term:                           # what is added to scores, (B, Hq, L, S); -inf, or False, hides
    const char* data
    int kind
    Py_ssize_t[4] stride                    # bytes

cdef struct Attention:
    Py_ssize_t batch, heads, key_heads, shared, length, keys, width, value_width
    const elem* query
    const elem* key
    const elem* value
    elem* out
    Py_ssize_t[3] query_stride, key_stride, value_stride, out_stride    # batch, head, row; in elements
    int terms
    Term[MAX_TERMS] term
    Py_ssize_t left, right                  # -1: no limit
    real softcap                            # 0: none
    const double* scale                     # a head
    const long long* offset                 # a batch
    const long long* lengths                # a batch, or NULL
    const double* slopes                    # a batch and head, or NULL
    const double* sinks                     # a head, or NULL
    real* lse                               # (B, Hq, L), or NULL
    real* entropy
    Py_ssize_t rows_a_block                 # rows of one task

cdef struct Group:                          # up to COLUMNS registers of queries, and what has been found for them so far
    int columns
    Py_ssize_t rows                         # lanes beyond these repeat the last row
    Py_ssize_t[QUERIES] head, query
    Py_ssize_t[QUERIES] begin, end          # the keys that causal, window and lengths leave to each row
    Py_ssize_t some_begin, some_end         # keys outside are hidden from all
    Py_ssize_t all_begin, all_end           # keys inside are hidden from none, but for terms
    vreal[COLUMNS] top                      # the largest score
    vreal[COLUMNS] total                    # of the weights, 2**(score - top)
    vreal[COLUMNS] moment                   # of weight * (score - top)
    vreal[COLUMNS] slope
    vreal[COLUMNS] factor                   # what `out` is to be multiplied by, since top has risen
    real* query_t                           # (E, columns * LANES), scaled
    real* out_t                             # (Ev, columns * LANES)

cdef struct Desk:                           # one thread's buffers
    Group[GROUPS] group
    real[KEYS * QUERIES] scores             # of a block, transposed; then weights
    real[QUERIES * KEYS] added              # terms, a line a query
    real* key                               # a block that had to be converted
    real* value                             # the same; or one whose NaN and infinities are left out
    bint value_known, value_finite

# --- rows and what they may see

cdef inline void visible_keys(const Attention* a, Py_ssize_t b, Py_ssize_t i, Py_ssize_t* begin,
                              Py_ssize_t* end) noexcept nogil:
    """The keys that causal_offset, window and key_lengths leave to query i."""
    cdef Py_ssize_t position = i + a.offset[b]
    begin[0] = 0
    end[0] = a.keys
    if a.lengths != NULL:
        end[0] = a.lengths[b]
    if a.right >= 0:
        end[0] = min(end[0], position + a.right + 1)
    if a.left >= 0:
        begin[0] = max(position - a.left, 0)
    if end[0] <= begin[0]:
        begin[0] = end[0] = 0

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

cdef inline const elem* row_of(const elem* data, const Py_ssize_t* stride, Py_ssize_t b, Py_ssize_t head,
                               Py_ssize_t row) noexcept nogil:
    return data + b * stride[0] + head * stride[1] + row * stride[2]

cdef inline Py_ssize_t next_register(Py_ssize_t e, Py_ssize_t width) noexcept nogil:
    """Where the register after that at e starts; the last one overlaps, so that it ends at width. width >= LANES."""
    return min(e + LANES, width - LANES) if e + LANES < width else width

cdef void turn_in(const Line* row, Py_ssize_t width, vreal factor, real* to, Py_ssize_t step) noexcept nogil:
    """LANES rows become a register for each element, `step` apart; times factor."""
    cdef vreal[LANES] square
    cdef Py_ssize_t e = 0
    cdef int k
    while e < width:
        for k in range(LANES):
            square[k] = load_elem(row[k] + e)
        transpose(square)
        for k in range(LANES):
            store(to + (e + k) * step, square[k] * factor)
        e = next_register(e, width)

cdef void turn_out(const real* x, Py_ssize_t step, vreal factor, Py_ssize_t width, Py_ssize_t rows,
                   const Line* row) noexcept nogil:
    """The way back, for the first `rows` of the rows."""
    cdef vreal[LANES] square
    cdef Py_ssize_t e = 0, r
    cdef int k
    while e < width:
        for k in range(LANES):
            square[k] = load(x + (e + k) * step) * factor
        transpose(square)
        if rows >= LANES:
            for k in range(LANES):
                store_elem(row[k] + e, square[k])
        else:
            for r in range(rows):
                store_elem(row[r] + e, square[r])
        e = next_register(e, width)

cdef void load_queries(const Attention* a, Py_ssize_t b, Group* g) noexcept nogil:
    """query_t[e][lane] = query of the lane * its head's scale."""
    cdef Line[QUERIES] row
    cdef real[QUERIES] scale
    cdef Py_ssize_t lane, e
    cdef int c, columns = g.columns
    for lane in range(columns * LANES):
        row[lane] = <Line>row_of(a.query, a.query_stride, b, g.head[lane], g.query[lane])
        scale[lane] = <real>(a.scale[g.head[lane]] * LOG2E)
    if a.width < LANES:
        for e in range(a.width):
            for lane in range(columns * LANES):
                g.query_t[e * columns * LANES + lane] = real_of(row[lane] + e) * scale[lane]
        return
    for c in range(columns):
        turn_in(row + c * LANES, a.width, load(scale + c * LANES), g.query_t + c * LANES, columns * LANES)

cdef void start_rows(const Attention* a, Py_ssize_t b, Group* g) noexcept nogil:
    """Nothing seen yet but the sink."""
    cdef real[QUERIES] sink, slope
    cdef Py_ssize_t lane
    cdef int c
    for lane in range(g.columns * LANES):
        sink[lane] = -INFINITY if a.sinks == NULL else <real>(a.sinks[g.head[lane]] * LOG2E)
        slope[lane] = 0 if a.slopes == NULL else <real>(a.slopes[b * a.heads + g.head[lane]] * LOG2E)
    for c in range(g.columns):
        g.top[c] = load(sink + c * LANES)
        g.total[c] = choose(equal(g.top[c], fill(-INFINITY)), fill(0), fill(1))
        g.moment[c] = fill(0)
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
                             const real* query_t, real* scores) noexcept nogil:
    cdef vreal[MAX_TILE] product
    cdef int r
    multiply(rows, columns, key, stride, 1, width, query_t, product)
    for r in range(rows * columns):
        store(scores + r * LANES, product[r])

cdef inline void find_scores(int rows, int columns, const real* key, Py_ssize_t stride, Py_ssize_t count,
                             Py_ssize_t width, const real* query_t, real* scores) noexcept nogil:
    """scores[j][lane] = key j times the lane's query; what is left over is computed with rows before it once more."""
    cdef Py_ssize_t j = 0
    if count < rows:
        for j in range(count):
            some_scores(1, columns, key + j * stride, stride, width, query_t, scores + j * columns * LANES)
        return
    while j < count:
        j = min(j, count - rows)
        some_scores(rows, columns, key + j * stride, stride, width, query_t, scores + j * columns * LANES)
        j += rows

cdef inline void some_out(int rows, int columns, int first, const real* value, Py_ssize_t stride, Py_ssize_t count,
                          const real* weights, const vreal* factor, real* out_t) noexcept nogil:
    cdef vreal[MAX_TILE] product
    cdef real* to
    cdef int r, c
    multiply(rows, columns, value, 1, stride, count, weights, product)
    for r in range(rows):
        if r >= first:
            for c in range(columns):
                to = out_t + (r * columns + c) * LANES
                store(to, fma_(load(to), factor[c], product[r * columns + c]))

cdef inline void add_values(int rows, int columns, const real* value, Py_ssize_t stride, Py_ssize_t count,
                            Py_ssize_t width, const real* weights, const vreal* factor, real* out_t) noexcept nogil:
    """out_t[e][lane] = out_t[e][lane] * factor + sum over j of value[j][e] * weights[j][lane]."""
    cdef Py_ssize_t e = 0, done
    if width < rows:
        for e in range(width):
            some_out(1, columns, 0, value + e, stride, count, weights, factor, out_t + e * columns * LANES)
        return
    while e < width:
        done = max(e + rows - width, 0)
        e -= done
        some_out(rows, columns, <int>done, value + e, stride, count, weights, factor, out_t + e * columns * LANES)
        e += rows

# --- what happens to scores between the two

cdef const real* line_of(const Term* term, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                         Py_ssize_t count, real* line) noexcept nogil:
    """What a term has for `count` keys of a query, as reals: where it stands, or in `line`."""
    cdef const char* at = (term.data + b * term.stride[0] + head * term.stride[1] + query * term.stride[2]
                           + key * term.stride[3])
    cdef Py_ssize_t j = 0, stride = term.stride[3]
    if term.kind == BOOLEAN:
        if stride == 1:
            for j in range(count):
                line[j] = 0 if at[j] else -INFINITY
        else:
            for j in range(count):
                line[j] = 0 if at[j * stride] else -INFINITY
    elif term.kind == REAL:
        if stride == sizeof(real):
            return <const real*>at
        for j in range(count):
            line[j] = (<const real*>(at + j * stride))[0]
    else:
        if stride == sizeof(elem):
            while j + LANES <= count:
                store(line + j, load_elem(<const elem*>at + j))
                j += LANES
        while j < count:
            line[j] = real_of(<const elem*>(at + j * stride))
            j += 1
    return line

cdef int fetch_terms(const Attention* a, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                     Py_ssize_t count, real* added) noexcept nogil:
    """The sum of all terms; returns bits: 1, a key is visible; 2, something is to be added; 4, a key is hidden."""
    cdef real[KEYS] line
    cdef const real* x
    cdef Py_ssize_t j
    cdef int t, visible = 0, different = 0, hidden = 0
    for t in range(a.terms):
        x = line_of(&a.term[t], b, head, query, key, count, line)
        if t == 0:
            memcpy(added, x, count * sizeof(real))
        else:
            for j in range(count):
                added[j] = -INFINITY if (x[j] == -INFINITY) | (added[j] == -INFINITY) else added[j] + x[j]
    for j in range(count):
        visible |= added[j] != -INFINITY
        hidden |= added[j] == -INFINITY
        different |= added[j] != 0
    return visible | different << 1 | hidden << 2

cdef void cap_scores(real softcap, Py_ssize_t registers, real* scores) noexcept nogil:
    cdef Py_ssize_t r
    cdef vreal cap = fill(softcap)
    for r in range(registers):
        store(scores + r * LANES, cap * tanh_(load(scores + r * LANES) / cap))

cdef void add_terms(int columns, Py_ssize_t count, const real* added, real* scores) noexcept nogil:
    """added: a line of KEYS a query; turned LANES queries by LANES keys at a time."""
    cdef vreal[LANES] square
    cdef vreal term
    cdef real* score
    cdef Py_ssize_t turn, j
    cdef int c, k
    for turn in range(steps(count, LANES)):
        j = turn * LANES
        for c in range(columns):
            for k in range(LANES):
                square[k] = load(added + (c * LANES + k) * KEYS + j)
            transpose(square)
            for k in range(LANES):
                score = scores + ((j + k) * columns + c) * LANES
                term = vmax(fill(-REAL_MAX), square[k] * fill(<real>LOG2E))     # the lowest number does not hide
                store(score, choose(equal(square[k], fill(-INFINITY)), square[k], load(score) + term))

cdef void add_slopes(const Attention* a, Py_ssize_t b, const Group* g, Py_ssize_t key, Py_ssize_t count,
                     real* scores) noexcept nogil:
    """ALiBi: minus slope * distance."""
    cdef real[QUERIES] position
    cdef real* score
    cdef Py_ssize_t j, lane
    cdef int c, columns = g.columns
    for lane in range(columns * LANES):
        position[lane] = <real>(g.query[lane] + a.offset[b] - key)
    for j in range(count):
        for c in range(columns):
            score = scores + (j * columns + c) * LANES
            store(score, load(score) - g.slope[c] * vabs(load(position + c * LANES) - fill(<real>j)))

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

cdef inline void weigh_scores(int columns, Py_ssize_t count, bint moments, real* scores, Group* g) noexcept nogil:
    """Scores become weights 2**(score - top), and what was found before is brought to the new top."""
    cdef vreal[COLUMNS] top, shift, total, moment
    cdef vreal fall, y, weight
    cdef real* score
    cdef Py_ssize_t j
    cdef int c
    for c in range(columns):
        top[c] = g.top[c]
        total[c] = moment[c] = fill(0)
    for j in range(count):
        for c in range(columns):
            top[c] = vmax(top[c], load(scores + (j * columns + c) * LANES))
    for c in range(columns):
        shift[c] = choose(less(fill(-INFINITY), top[c]), top[c], fill(0))   # -inf minus -inf would be NaN
    for j in range(count):
        for c in range(columns):
            score = scores + (j * columns + c) * LANES
            y = load(score) - shift[c]
            weight = exp2_(y)
            store(score, weight)
            total[c] = total[c] + weight
            if moments:
                moment[c] = fma_(weight, vmax(fill(LEAST), y), moment[c])
    for c in range(columns):
        fall = vmax(fill(LEAST), g.top[c] - shift[c])
        g.factor[c] = exp2_(fall)
        g.moment[c] = fma_(g.factor[c], fma_(g.total[c], fall, g.moment[c]), moment[c])
        g.total[c] = fma_(g.total[c], g.factor[c], total[c])
        g.top[c] = top[c]

# --- values that are NaN or infinite: a weight of zero does not make them zero, so a hidden one must not be met

cdef bint is_finite(const real* value, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t width) noexcept nogil:
    cdef vreal sum0 = fill(0)
    cdef real rest = 0
    cdef Py_ssize_t j, e
    for j in range(count):
        e = 0
        while e + LANES <= width:
            sum0 = fma_(load(value + j * stride + e), fill(0), sum0)
            e += LANES
        while e < width:
            rest += value[j * stride + e] * 0
            e += 1
    return first(hsum(sum0)) + rest == 0

cdef void leave_out(const real* value, Py_ssize_t stride, Py_ssize_t count, Py_ssize_t width,
                    real* clean) noexcept nogil:
    """A copy with zeros for what is not finite; may be in place."""
    cdef Py_ssize_t j, e
    cdef real x
    for j in range(count):
        for e in range(width):
            x = value[j * stride + e]
            clean[j * width + e] = x if x - x == 0 else 0

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

cdef inline void meet(int rows, int columns, const Attention* a, Py_ssize_t b, Py_ssize_t key_head, Group* g,
                      Desk* desk, const real* key_block, Py_ssize_t key_stride, const real* value_block,
                      Py_ssize_t value_stride, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Keys start .. stop - 1; the blocks begin at `start`."""
    cdef Py_ssize_t lane, skipped, count, first_key = max(start, g.some_begin), end = min(stop, g.some_end)
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
    find_scores(rows, columns, key_block + skipped * key_stride, key_stride, count, a.width, g.query_t, desk.scores)
    if a.softcap != 0:
        cap_scores(<real>(a.softcap * LOG2E), count * columns, desk.scores)
    if what & 2:
        add_terms(columns, count, desk.added, desk.scores)
    if a.slopes != NULL:
        add_slopes(a, b, g, first_key, count, desk.scores)
    if partial:
        hide_keys(g, first_key, count, desk.scores)
    if a.entropy != NULL:
        weigh_scores(columns, count, True, desk.scores, g)
    else:
        weigh_scores(columns, count, False, desk.scores, g)
    if (partial or what & 4) and not desk.value_known:
        desk.value_known = True
        desk.value_finite = is_finite(value_block, value_stride, stop - start, a.value_width)
        if not desk.value_finite:
            leave_out(value_block, value_stride, stop - start, a.value_width, desk.value)
    careful = desk.value_known and not desk.value_finite
    if careful:
        value_block, value_stride = desk.value, a.value_width
    add_values(rows, columns, value_block + skipped * value_stride, value_stride, count, a.value_width, desk.scores,
               g.factor, g.out_t)
    if careful:
        put_back(a, g, desk, row_of(a.value, a.value_stride, b, key_head, first_key), first_key, count)

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

cdef void spread_row(const real* row, Py_ssize_t step, Py_ssize_t width, elem* out) noexcept nogil:
    cdef Py_ssize_t e
    for e in range(width):
        out[e] = elem_of(row[e * step])

cdef void finish_group(const Attention* a, Py_ssize_t b, Group* g) noexcept nogil:
    """out = out_t / total; lse = top + log(total) and entropy = log(total) - moment / total, in nats."""
    cdef Line[QUERIES] row
    cdef real[QUERIES] lse, entropy
    cdef vreal[COLUMNS] inverse
    cdef vreal top, hi, lo
    cdef vwide logarithm
    cdef vmask nothing
    cdef Py_ssize_t lane, e, at
    cdef int c, columns = g.columns
    for c in range(columns):
        nothing = equal(g.total[c], fill(0))
        inverse[c] = choose(nothing, fill(0), fill(1) / g.total[c])
        if a.lse != NULL or a.entropy != NULL:
            logarithm = wide_log1p(wide_of(g.total[c], fill(-1)))
            top = g.top[c] * fill(LN2)
            lo = product_error(g.top[c], fill(LN2), top) + g.top[c] * fill(LN2_REST)
            wide_split_sum(top, lo, logarithm, &hi, &lo)
            store(lse + c * LANES, choose(nothing, fill(-INFINITY), hi))
            wide_split(logarithm, &hi, &lo)
            store(entropy + c * LANES,
                  choose(nothing, fill(0), fma_(g.moment[c] * inverse[c], fill(-LN2), hi)))
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
            spread_row(g.out_t + lane, columns * LANES, a.value_width, row[lane])
        return
    for c in range(columns):
        turn_out(g.out_t + c * LANES, columns * LANES, inverse[c], a.value_width, g.rows - c * LANES, row + c * LANES)

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

cdef inline int columns_of(Py_ssize_t registers) noexcept nogil:
    """The next group's share: 3, but rather 2 and 2 than 3 and 1, which has few multiply-adds for each load."""
    return <int>(registers if registers <= COLUMNS else 2 if registers == 4 else COLUMNS)

cdef void attend(const Attention* a, Py_ssize_t task, Desk* desk) noexcept nogil:
    """One task: rows_a_block rows of the queries that share a key head; the last rows, which may see most, first."""
    cdef fp_state state = fp_enter()
    cdef Py_ssize_t rows = a.length * a.shared, blocks = steps(rows, a.rows_a_block)
    cdef Py_ssize_t block = blocks - 1 - task % blocks, key_head = task // blocks % a.key_heads
    cdef Py_ssize_t b = task // blocks // a.key_heads
    cdef Py_ssize_t row = block * a.rows_a_block, last = min(row + a.rows_a_block, rows), count
    cdef Py_ssize_t begin = a.keys, end = 0, start, stop, key_stride = a.key_stride[2], value_stride = a.value_stride[2]
    cdef const elem* key
    cdef const elem* value
    cdef const real* key_block
    cdef const real* value_block
    cdef Group* g
    cdef int groups = 0, k
    while row < last:
        g = &desk.group[groups]
        count = min(columns_of(steps(last - row, LANES)) * LANES, last - row)
        place_rows(a, b, key_head, row, count, g)
        load_queries(a, b, g)
        start_rows(a, b, g)
        begin, end = min(begin, g.some_begin), max(end, g.some_end)
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
        desk.value_known = False
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

# --- the call

cdef inline Py_ssize_t lines(Py_ssize_t bytes) noexcept nogil:
    """Rounded up to cache lines."""
    return bytes + 63 & ~63

cdef class Desks:
    """The buffers of `threads` threads, freed with it."""
    cdef char* block
    cdef Py_ssize_t desk_bytes

    def __cinit__(self, int threads, Py_ssize_t width, Py_ssize_t value_width):
        cdef Py_ssize_t query_bytes = lines(width * QUERIES * sizeof(real))
        cdef Py_ssize_t out_bytes = lines(value_width * QUERIES * sizeof(real))
        cdef Py_ssize_t key_bytes = 0 if sizeof(elem) == sizeof(real) else lines(KEYS * width * sizeof(real))
        cdef Py_ssize_t t
        cdef int k
        cdef Desk* desk
        cdef char* at
        self.desk_bytes = (lines(sizeof(Desk)) + GROUPS * (query_bytes + out_bytes) + key_bytes
                           + lines(KEYS * value_width * sizeof(real)))
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

    cdef inline Desk* desk(self, Py_ssize_t t) noexcept nogil:
        return <Desk*>(self.block + t * self.desk_bytes)

    def __dealloc__(self):
        free(self.block)

cdef int describe_term(object array, Term* term) except -1:
    cdef const unsigned char[:, :, :, :] boolean
    cdef const elem[:, :, :, :] element
    cdef const real[:, :, :, :] number
    cdef Py_ssize_t* strides
    cdef int k
    if array.itemsize == 1:
        boolean = array
        term.kind, term.data, strides = BOOLEAN, <const char*>&boolean[0, 0, 0, 0], boolean.strides
    elif array.itemsize == sizeof(real):
        number = array
        term.kind, term.data, strides = REAL, <const char*>&number[0, 0, 0, 0], number.strides
    else:
        element = array
        term.kind, term.data, strides = ELEMENT, <const char*>&element[0, 0, 0, 0], element.strides
    for k in range(4):
        term.stride[k] = strides[k]
    return 0

cdef inline void in_elements(Py_ssize_t* to, const Py_ssize_t* strides) noexcept nogil:
    cdef int k
    for k in range(3):
        to[k] = strides[k] // <Py_ssize_t>sizeof(elem)

def attention(const elem[:, :, :, :] query, const elem[:, :, :, :] key, const elem[:, :, :, :] value,
              elem[:, :, :, :] out, tuple terms, const double[:] scale, const long long[:] offset, Py_ssize_t left,
              Py_ssize_t right, const long long[:] lengths, double softcap, const double[:, :] slopes,
              const double[:] sinks, real[:, :, :] lse, real[:, :, :] entropy, int threads):
    """See Attention for the shapes. Elements of a row lie side by side; `out` is apart from all inputs."""
    cdef Attention a
    cdef Desks desks
    cdef Py_ssize_t t, turn, start, stop, tasks, slice_, registers, blocks
    cdef double work
    a.batch, a.heads, a.length, a.width = query.shape[0], query.shape[1], query.shape[2], query.shape[3]
    a.key_heads, a.keys, a.value_width = key.shape[1], key.shape[2], value.shape[3]
    a.shared = a.heads // a.key_heads
    a.query, a.key, a.value, a.out = &query[0, 0, 0, 0], &key[0, 0, 0, 0], &value[0, 0, 0, 0], &out[0, 0, 0, 0]
    in_elements(a.query_stride, query.strides)
    in_elements(a.key_stride, key.strides)
    in_elements(a.value_stride, value.strides)
    in_elements(a.out_stride, out.strides)
    a.terms = <int>len(terms)
    for t in range(len(terms)):
        describe_term(terms[t], &a.term[t])
    a.left, a.right, a.softcap = left, right, <real>softcap
    a.scale, a.offset = &scale[0], &offset[0]
    a.lengths = NULL if lengths is None else &lengths[0]
    a.slopes = NULL if slopes is None else &slopes[0, 0]
    a.sinks = NULL if sinks is None else &sinks[0]
    a.lse = NULL if lse is None else &lse[0, 0, 0]
    a.entropy = NULL if entropy is None else &entropy[0, 0, 0]

    registers = steps(a.length * a.shared, LANES)
    blocks = steps(registers, GROUPS * COLUMNS)
    a.rows_a_block = steps(registers, blocks) * LANES
    tasks = a.batch * a.key_heads * steps(a.length * a.shared, a.rows_a_block)
    threads = <int>min(threads, tasks)
    desks = Desks(threads, a.width, a.value_width)
    work = <double>a.rows_a_block * a.keys * (a.width + a.value_width)
    slice_ = max(<Py_ssize_t>(4e9 / work), 2 * threads)     # a tenth of a second or so between looks for an interrupt
    for turn in range(steps(tasks, slice_)):
        start = turn * slice_
        stop = min(start + slice_, tasks)
        with nogil:
            if threads == 1:
                for t in range(start, stop):
                    attend(&a, t, desks.desk(0))
            else:
                for t in prange(start, stop, num_threads=threads, schedule="dynamic"):
                    attend(&a, t, desks.desk(threadid()))
        PyErr_CheckSignals()
