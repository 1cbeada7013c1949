# Attention of few queries to many keys, as when decoding; what bounds it is the reading of keys and values.
#
# The elements of a key stand in the lanes. All rows that share a key head are computed together, so that keys and
# values are read once; their scores are dot products, LANES of them summed across registers at a time by one
# transposition. Keys are split into parts at boundaries that depend on their number alone; each part is a task, and
# what the parts find is merged by the logarithm of their sums (Dao et al., Flash-Decoding, 2023).

cdef enum:
    FEW_ROWS = 16           # at most so many rows; see is_decoding
    LONG_CACHE = 4096       # keys from which reading them is what takes the time
    STREAMS = 4             # parts of a block that are read side by side
    PIECES = READ // KEYS   # sums of KEYS values each, since errors grow with the length of a sum
    PART = 512              # keys of a part, at least; more where there would be over MOST_PARTS of them
    MOST_PARTS = 64
    FOUND_REALS = 6

ctypedef const elem* Source                  # of a key or value

cdef struct Found:                          # for one row in one part of the keys; followed by `padded` reals of out
    real top, total, excess, excess_rest, moment, moment_rest

cdef struct Reader:                         # one thread's buffers
    real[FEW_ROWS * READ] scores            # a line a row; then weights. Three rows left over count as four
    real[FEW_ROWS * READ] added
    Py_ssize_t[FEW_ROWS] head, query, begin, end
    real[FEW_ROWS + 1] factor
    vmask tail                              # the lanes of a key's last register that the one before has not
    int skipped, count                      # which keys of a block `order` and `piece_end` are of
    int[READ] order
    int[PIECES] piece_end
    real* query_rows                        # (rows, padded width)
    real* sums                              # of up to four rows: the weighted values of a block
    elem* clean                             # a block of values whose NaN and infinities are left out

cdef inline Py_ssize_t padded(Py_ssize_t width) noexcept nogil:
    return steps(width, LANES) * LANES

cdef inline Py_ssize_t part_size(Py_ssize_t keys) noexcept nogil:
    return max(<Py_ssize_t>PART, steps(steps(keys, MOST_PARTS), READ) * READ)

cdef inline Py_ssize_t found_size(const Attention* a) noexcept nogil:
    """Reals of a row's Found and out, a whole number of cache lines."""
    return steps(padded(a.value_width) + FOUND_REALS, WIDTH) * WIDTH

cdef inline Found* found_of(const Attention* a, real* found, Py_ssize_t row) noexcept nogil:
    return <Found*>(found + row * found_size(a))

cdef inline real* out_of(const Attention* a, real* found, Py_ssize_t row) noexcept nogil:
    return found + row * found_size(a) + FOUND_REALS

cdef inline Py_ssize_t register_at(Py_ssize_t i, Py_ssize_t width) noexcept nogil:
    """Where register i of a row starts; the last one overlaps. width >= LANES."""
    return min(i * LANES, width - LANES)

cdef void read_queries(const Attention* a, Py_ssize_t b, Py_ssize_t key_head, Reader* reader) noexcept nogil:
    """query_rows[row] = query; zero where the last register repeats what the one before has."""
    cdef Py_ssize_t rows = a.length * a.shared, row, i, registers = steps(a.width, LANES)
    cdef real[LANES] is_new
    cdef real* to
    cdef const elem* query
    cdef vreal x
    for i in range(LANES):
        is_new[i] = i >= registers * LANES - a.width
    reader.tail = less(fill(0), load(is_new))
    for row in range(rows):
        reader.query[row] = row // a.shared
        reader.head[row] = key_head * a.shared + row % a.shared
        visible_keys(a, b, reader.query[row], &reader.begin[row], &reader.end[row])
        query = row_of(a.query, a.query_stride, b, reader.head[row], reader.query[row])
        to = reader.query_rows + row * padded(a.width)
        for i in range(registers):
            x = load_query(a, query, register_at(i, a.width))
            store(to + i * LANES, x if i < registers - 1 else keep_where(reader.tail, x))
    memset(reader.query_rows + rows * padded(a.width), 0, padded(a.width) * sizeof(real))
    reader.factor[rows] = 0

# --- in which order
#
# Memory is read best in several streams, each from one end to the other, which the processor foresees by itself. So
# the first key of each of a block's STREAMS parts comes first, then the second of each, and so on. A key's place does
# not depend on which others are there, so that hidden keys can be left out.

cdef inline void order_keys(Reader* reader, int skipped, int count) noexcept nogil:
    """The order of keys skipped .. skipped + count - 1 of a block, numbered from 0."""
    cdef int length = READ // STREAMS, first_stream = skipped // length, last_stream = (skipped + count - 1) // length
    cdef int begin = 0, end = length, n = 0, piece, j, stream, k
    if reader.skipped == skipped and reader.count == count:
        return
    reader.skipped, reader.count = skipped, count
    if first_stream == last_stream:
        begin, end = skipped % length, (skipped + count - 1) % length + 1
    for piece in range(PIECES):
        for j in range(max(begin, piece * (length // PIECES)), min(end, (piece + 1) * (length // PIECES))):
            for stream in range(first_stream, last_stream + 1):
                k = stream * length + j - skipped
                if 0 <= k < count:
                    reader.order[n] = k
                    n += 1
        reader.piece_end[piece] = n

# --- scores of `rows` rows, 1, 2 or 4

cdef inline void add_products(int rows, int keys, const Source* key, Py_ssize_t at, const vmask* only,
                              const real* query, Py_ssize_t query_step, vreal* sums) noexcept nogil:
    """A register of each key times that of each query. only: the lanes that count, or NULL."""
    cdef vreal x
    cdef int r, k
    for k in range(keys):
        x = load_elem(key[k] + at)
        if only != NULL:
            x = keep_where(only[0], x)
        for r in range(rows):
            sums[r * keys + k] = fma_(x, load(query + r * query_step), sums[r * keys + k])

cdef inline void dot_products(int rows, int keys, const Attention* a, const Reader* reader, const elem* key,
                              Py_ssize_t row, int first, int last, real* scores) noexcept nogil:
    """The scores of keys number first to last - 1 in order, `keys` at a time."""
    cdef vreal[4 * LANES] sums
    cdef real[4 * LANES] lane
    cdef Source[LANES] at
    cdef const real* query = reader.query_rows + row * padded(a.width)
    cdef Py_ssize_t i, step = padded(a.width), whole = a.width // LANES
    cdef int turn, r, k, filled = (rows * keys + LANES - 1) // LANES * LANES
    for turn in range((last - first) // keys):
        for k in range(keys):
            at[k] = key + reader.order[first + turn * keys + k] * a.key_stride[2]
        for k in range(filled):
            sums[k] = fill(0)
        for i in range(whole):
            add_products(rows, keys, at, i * LANES, NULL, query + i * LANES, step, sums)
        if whole * LANES < a.width:
            add_products(rows, keys, at, a.width - LANES, &reader.tail, query + whole * LANES, step, sums)
        for k in range(filled // LANES):
            store(lane + k * LANES, sums_of(sums + k * LANES))
        for k in range(keys):
            for r in range(rows):
                scores[r * READ + reader.order[first + turn * keys + k]] = lane[r * keys + k]

cdef inline void scores_of_block(int rows, const Attention* a, const Reader* reader, const elem* key, int count,
                                 Py_ssize_t row, real* scores) noexcept nogil:
    cdef int keys = max(LANES // rows, 1), done = count // keys * keys
    dot_products(rows, keys, a, reader, key, row, 0, done, scores)
    dot_products(rows, 1, a, reader, key, row, done, count, scores)

# --- what happens to the scores of one row

cdef inline void adjust_scores(const Attention* a, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query, Py_ssize_t key,
                               Py_ssize_t count, int what, const real* added, real* scores) noexcept nogil:
    cdef Py_ssize_t i, registers = steps(count, LANES)
    cdef real[LANES] number
    cdef vreal slope, distance, scale = fill(<real>a.scale[head])
    for i in range(registers):
        store(scores + i * LANES, load(scores + i * LANES) * scale)
    if a.softcap != 0:
        cap_scores(a.softcap, registers, scores)
    if what & 2:
        for i in range(registers):
            add_term(what & 8, load(added + i * LANES), scores + i * LANES)
    if a.slopes != NULL:
        slope = fill(<real>a.slopes[b * a.heads + head])
        for i in range(LANES):
            number[i] = <real>i
        for i in range(registers):
            distance = fill(<real>(query + a.offset[b] - key - i * LANES)) - load(number)
            add_distance(is_steep(first(slope)), slope, vabs(distance), scores + i * LANES)

cdef inline void weigh_row(Py_ssize_t skipped, Py_ssize_t count, bint statistics, bint moments, real* scores,
                           Found* found, real* factor) noexcept nogil:
    """Scores become weights; `factor` brings what was found before to the new top. skipped: registers of the block
    before these; runs end at multiples of RUN_KEYS registers in the block."""
    cdef Py_ssize_t i, run, registers = steps(count, LANES)
    cdef vreal top = fill(found.top), shift, fall
    cdef Weights sums
    cdef bint kept
    for i in range(count, registers * LANES):
        scores[i] = -INFINITY
    for i in range(registers):
        top = vmax(top, load(scores + i * LANES))
    top = fill(hmax(top))
    shift = choose(less(fill(-INFINITY), top), top, fill(0))
    sums.total = sums.ones = sums.moment = sums.moment_rest = sums.others = sums.others_rest = fill(0)
    i = 0
    while i < registers:
        run = min(registers - i, RUN_KEYS - (skipped + i) % RUN_KEYS)
        weigh_run(1, run, statistics, moments, &shift, scores + i * LANES, &sums)
        i += run
    fall = vmax(fill(LEAST_EXPONENT), fill(found.top) - shift)
    factor[0] = first(exp_(fall))
    if statistics:
        kept = found.top == first(top)
        if not kept:
            found.excess, found.excess_rest = found.total * factor[0], 0
        found.excess_rest += first(hsum(sums.others_rest))
        add_lanes_to(&found.excess, &found.excess_rest, sums.others)
        add_real_to(&found.excess, &found.excess_rest, first(hsum(sums.ones)) - (0 if kept else 1))
    if moments:
        found.moment = factor[0] * (found.moment + found.total * first(fall))
        found.moment_rest = factor[0] * found.moment_rest + first(hsum(sums.moment_rest))
        add_lanes_to(&found.moment, &found.moment_rest, sums.moment)
    found.total = found.total * factor[0] + first(hsum(sums.total))
    found.top = first(top)

# --- values

cdef inline void add_weighted(int rows, int values, const elem* value, Py_ssize_t stride, const int* order, int first,
                              int last, Py_ssize_t width, const real* weights, real* sums,
                              Py_ssize_t step) noexcept nogil:
    """sums[row] += weights[row][j] * value[j], one after the other, j number first to last - 1 in order; `values` at a
    time, as many as have their weights in registers."""
    cdef vreal[8] weight
    cdef vreal[4] sum_
    cdef Source[8] at
    cdef vreal x
    cdef Py_ssize_t i, registers = steps(width, LANES)
    cdef int turn, r, k, j
    for turn in range((last - first) // values):
        for k in range(values):
            j = order[first + turn * values + k]
            at[k] = value + j * stride
            for r in range(rows):
                weight[r * values + k] = fill(weights[r * READ + j])
        for i in range(registers):
            for r in range(rows):
                sum_[r] = load(sums + r * step + i * LANES)
            for k in range(values):
                x = load_elem(at[k] + register_at(i, width))
                for r in range(rows):
                    sum_[r] = fma_(weight[r * values + k], x, sum_[r])
            for r in range(rows):
                store(sums + r * step + i * LANES, sum_[r])

cdef inline void add_rows(int rows, const elem* value, Py_ssize_t stride, const Reader* reader, Py_ssize_t width,
                          const real* weights, const real* factor, real* out, Py_ssize_t out_step) noexcept nogil:
    """out[row] = out[row] * factor[row] + sum over the block's keys j of weights[row][j] * value[j]."""
    cdef Py_ssize_t step = padded(width), i
    cdef real* sums = reader.sums
    cdef real* to
    cdef int values = max(8 // rows, 1), piece, first = 0, last, r, done
    for r in range(rows):
        for i in range(step // LANES):
            to = out + r * out_step + i * LANES
            store(to, load(to) * fill(factor[r]))
    for piece in range(PIECES):
        last = reader.piece_end[piece]
        if last == first:
            continue
        done = first + (last - first) // values * values
        memset(sums, 0, rows * step * sizeof(real))
        add_weighted(rows, values, value, stride, reader.order, first, done, width, weights, sums, step)
        add_weighted(rows, 1, value, stride, reader.order, done, last, width, weights, sums, step)
        for r in range(rows):
            for i in range(step // LANES):
                to = out + r * out_step + i * LANES
                store(to, load(to) + load(sums + r * step + i * LANES))
        first = last

cdef void put_back_rows(const Attention* a, const Reader* reader, const elem* value, Py_ssize_t key,
                        Py_ssize_t count, real* found) noexcept nogil:
    """Adds the values that are NaN or infinite, times their weights, to the rows that see them."""
    cdef Py_ssize_t j, e, i, row, at
    cdef real x
    for j in range(count):
        for e in range(a.value_width):
            x = real_of(value + j * a.value_stride[2] + e)
            if x - x == 0:
                continue
            for row in range(a.length * a.shared):
                if (reader.begin[row] <= key + j < reader.end[row]
                        and (a.terms == 0 or reader.added[row * READ + j] != -INFINITY)):
                    for i in range(steps(a.value_width, LANES)):        # the last register repeats some
                        at = register_at(i, a.value_width)
                        if at <= e < at + LANES:
                            out_of(a, found, row)[i * LANES + e - at] += reader.scores[row * READ + j] * x

# --- a block of keys, and a part

cdef void read_block(const Attention* a, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t start, Py_ssize_t stop,
                     Reader* reader, real* found) noexcept nogil:
    """Updates the online softmax of all rows with the keys start .. stop - 1."""
    cdef Py_ssize_t rows = a.length * a.shared, row, j, count = stop - start
    cdef Py_ssize_t begin, end, value_stride = a.value_stride[2]
    cdef const elem* key = row_of(a.key, a.key_stride, b, key_head, start)
    cdef const elem* value = row_of(a.value, a.value_stride, b, key_head, start)
    cdef const elem* finite = value
    cdef int[FEW_ROWS] what
    cdef int all_ = 0
    cdef bint hidden = False
    cdef real* scores
    cdef real* factor
    cdef real* out
    for row in range(rows):
        what[row] = 0
        if a.terms:
            what[row] = fetch_terms(a, b, reader.head[row], reader.query[row], start, count, reader.added + row * READ)
            all_ |= what[row]
        if what[row] & 4 or reader.begin[row] > start or reader.end[row] < stop:
            hidden = True
    if a.terms and not all_ & 1:
        return
    order_keys(reader, <int>(start % READ), <int>count)
    row = 0
    while row < rows:
        scores = reader.scores + row * READ
        if rows - row >= 3:
            scores_of_block(4, a, reader, key, <int>count, row, scores)
            row += 4
        elif rows - row >= 2:
            scores_of_block(2, a, reader, key, <int>count, row, scores)
            row += 2
        else:
            scores_of_block(1, a, reader, key, <int>count, row, scores)
            row += 1
    for row in range(rows):
        scores = reader.scores + row * READ
        adjust_scores(a, b, reader.head[row], reader.query[row], start, count, what[row], reader.added + row * READ,
                      scores)
        begin, end = min(max(reader.begin[row] - start, 0), count), max(reader.end[row] - start, 0)
        for j in range(begin):
            scores[j] = -INFINITY
        for j in range(max(begin, end), count):
            scores[j] = -INFINITY
        if a.entropy != NULL:
            weigh_row(start % READ // LANES, count, True, True, scores, found_of(a, found, row), &reader.factor[row])
        elif a.lse != NULL:
            weigh_row(start % READ // LANES, count, True, False, scores, found_of(a, found, row), &reader.factor[row])
        else:
            weigh_row(start % READ // LANES, count, False, False, scores, found_of(a, found, row), &reader.factor[row])
    if hidden and not is_finite(value, value_stride, count, a.value_width):
        clear_nonfinite(value, value_stride, count, a.value_width, reader.clean)
        finite, value_stride = reader.clean, a.value_width
    row = 0
    while row < rows:
        scores, factor, out = reader.scores + row * READ, reader.factor + row, out_of(a, found, row)
        if rows - row >= 3:
            add_rows(4, finite, value_stride, reader, a.value_width, scores, factor, out, found_size(a))
            row += 4
        elif rows - row >= 2:
            add_rows(2, finite, value_stride, reader, a.value_width, scores, factor, out, found_size(a))
            row += 2
        else:
            add_rows(1, finite, value_stride, reader, a.value_width, scores, factor, out, found_size(a))
            row += 1
    if finite != value:
        put_back_rows(a, reader, value, start, count, found)

cdef void finish_row(const Attention* a, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query,
                     const Found* found) noexcept nogil:
    """Writes a row of the results from its state over all keys."""
    cdef vreal inverse, lse, entropy
    cdef Py_ssize_t i, at = (b * a.heads + head) * a.length + query
    cdef const real* x = &found.top + FOUND_REALS
    cdef elem* out = <elem*>row_of(a.out, a.out_stride, b, head, query)
    inverse = conclude_rows(a, fill(found.top), fill(found.total), fill(found.excess), fill(found.excess_rest),
                            fill(found.moment + found.moment_rest), &lse, &entropy)
    if a.lse != NULL:
        a.lse[at] = first(lse)
    if a.entropy != NULL:
        a.entropy[at] = first(entropy)
    for i in range(steps(a.value_width, LANES)):
        store_out(a, load(x + i * LANES) * inverse, out, register_at(i, a.value_width))

cdef void read_part(const Attention* a, Py_ssize_t pair, Py_ssize_t part, Reader* reader, real* found,
                    Region* region) noexcept nogil:
    """One task: the queries of a batch and key head with one part of the keys; found: (parts, rows + 1, found_size)."""
    cdef fp_state state = fp_enter()
    cdef Py_ssize_t b = pair // a.key_heads, key_head = pair % a.key_heads, rows = a.length * a.shared, row
    cdef Py_ssize_t size = part_size(a.keys), start = part * size, stop, begin = a.keys, end = 0, read = 0
    cdef Found* one
    start_task(region)
    read_queries(a, b, key_head, reader)
    found += part * (rows + 1) * found_size(a)
    memset(found, 0, (rows + 1) * found_size(a) * sizeof(real))
    for row in range(rows):
        one = found_of(a, found, row)
        one.top = -INFINITY
        if part == 0 and a.sinks != NULL:
            one.top = <real>a.sinks[reader.head[row]]
            one.total = 0 if one.top == -INFINITY else 1
        if reader.end[row] > reader.begin[row]:
            begin = min(begin, reader.begin[row])
        end = max(end, reader.end[row])
    end = min(end, start + size)
    start = max(start, begin // LANES * LANES)      # a score's lane must not depend on where the others begin
    while start < end:
        stop = min(start - start % READ + READ, end)
        read_block(a, b, key_head, start, stop, reader, found)
        read += stop - start
        start = stop
    if size >= a.keys:
        for row in range(rows):
            finish_row(a, b, reader.head[row], reader.query[row], found_of(a, found, row))
    fp_leave(state)
    end_task(region, read + FEW_ROWS)

cdef void merge_parts(const Attention* a, Py_ssize_t pair, Py_ssize_t parts, real* found,
                      Region* region) noexcept nogil:
    """Combines the states of the parts, brought to one top, in the place of the first part's."""
    cdef fp_state state = fp_enter()
    cdef Py_ssize_t b = pair // a.key_heads, key_head = pair % a.key_heads, rows = a.length * a.shared, row, part, i
    cdef Found* whole
    cdef Found* one
    cdef real* to
    cdef const real* x
    cdef real top
    cdef vreal shift, fall, own_fall, factor, own_factor
    start_task(region)
    for row in range(rows):
        whole = found_of(a, found, row)
        to = out_of(a, found, row)
        for part in range(1, parts):
            one = found_of(a, found, part * (rows + 1) + row)
            x = out_of(a, found, part * (rows + 1) + row)
            top = max(whole.top, one.top)
            shift = fill(0 if top == -INFINITY else top)
            fall = vmax(fill(LEAST_EXPONENT), fill(whole.top) - shift)
            own_fall = vmax(fill(LEAST_EXPONENT), fill(one.top) - shift)
            factor, own_factor = exp_(fall), exp_(own_fall)
            if whole.top != top:
                whole.excess, whole.excess_rest = whole.total * first(factor), 0
            if one.top != top:
                one.excess, one.excess_rest = one.total * first(own_factor), 0
            whole.excess_rest += one.excess_rest
            add_real_to(&whole.excess, &whole.excess_rest, one.excess)
            if whole.top == one.top > -INFINITY:        # each has left out a 1
                add_real_to(&whole.excess, &whole.excess_rest, 1)
            whole.moment = first(factor) * (whole.moment + whole.total * first(fall))
            whole.moment_rest = first(factor) * whole.moment_rest + first(own_factor) * one.moment_rest
            add_real_to(&whole.moment, &whole.moment_rest,
                        first(own_factor) * (one.moment + one.total * first(own_fall)))
            whole.total = whole.total * first(factor) + one.total * first(own_factor)
            whole.top = top
            for i in range(steps(a.value_width, LANES)):
                store(to + i * LANES, fma_(load(to + i * LANES), factor, load(x + i * LANES) * own_factor))
        finish_row(a, b, key_head * a.shared + row % a.shared, row // a.shared, whole)
    fp_leave(state)
    end_task(region, 1)

# --- the call

cdef class Readers:
    """The buffers of `threads` threads, and what is found for `pairs` batches and key heads; freed with it."""
    cdef char* block
    cdef Py_ssize_t reader_bytes, pair_reals, threads

    def __cinit__(self, int threads, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t value_width, Py_ssize_t pairs,
                  Py_ssize_t pair_reals):
        cdef Py_ssize_t query_bytes = lines((rows + 1) * padded(width) * sizeof(real))
        cdef Py_ssize_t sums_bytes = lines(4 * padded(value_width) * sizeof(real))
        cdef Py_ssize_t t
        cdef Reader* reader
        cdef char* at
        self.reader_bytes = lines(sizeof(Reader)) + query_bytes + sums_bytes + lines(READ * value_width * sizeof(elem))
        self.threads, self.pair_reals = threads, pair_reals
        self.block = <char*>allocate(threads * self.reader_bytes + pairs * pair_reals * <Py_ssize_t>sizeof(real))
        for t in range(threads):
            reader = self.reader(t)
            at = <char*>reader + lines(sizeof(Reader))
            reader.query_rows = <real*>at
            reader.skipped = reader.count = 0
            reader.sums = <real*>(at + query_bytes)
            reader.clean = <elem*>(at + query_bytes + sums_bytes)

    cdef inline Reader* reader(self, Py_ssize_t t) noexcept nogil:
        return <Reader*>(self.block + t * self.reader_bytes)

    cdef inline real* found(self, Py_ssize_t pair) noexcept nogil:
        return <real*>(self.block + self.threads * self.reader_bytes) + pair * self.pair_reals

    def __dealloc__(self):
        free(self.block)

cdef inline bint is_decoding(const Attention* a) noexcept nogil:
    """Whether rows are too few to fill the lanes, or better spend their time on sharing long keys between threads."""
    cdef Py_ssize_t rows = a.length * a.shared
    return (a.width >= LANES and a.value_width >= LANES
            and (rows <= min(LANES, FEW_ROWS) or rows <= FEW_ROWS and a.keys >= LONG_CACHE))

cdef int decode(const Attention* a, int threads) except -1:
    cdef Py_ssize_t rows = a.length * a.shared, parts = steps(a.keys, part_size(a.keys)), pairs = a.batch * a.key_heads
    cdef Py_ssize_t turn, start, count, t, first
    cdef Region region
    cdef Py_ssize_t at_once = <Py_ssize_t>100000000 // (work_of_row(a) + 100000)
    cdef Readers readers
    # Pairs that are worked on at a time: some for each thread, not too long without a look for an interrupt, and, with
    # few keys, not so many that what they find needs much memory.
    at_once = max(<Py_ssize_t>1, min(pairs, max(<Py_ssize_t>(16 * threads) // parts, at_once)))
    threads = <int>min(threads, at_once * parts)
    readers = Readers(threads, rows, a.width, a.value_width, at_once, parts * (rows + 1) * found_size(a))
    for turn in range(steps(pairs, at_once)):
        start = turn * at_once
        count = min(at_once, pairs - start)
        with nogil:
            region = alone_at_first(threads)
            first = 0
            while first < count * parts and alone(&region):
                read_part(a, start + first // parts, first % parts, readers.reader(0), readers.found(first // parts),
                          &region)
                first += 1
            if first < count * parts:
                begin_region(&region)
                for t in prange(first, count * parts, num_threads=threads, schedule="dynamic"):
                    read_part(a, start + t // parts, t % parts, readers.reader(threadid()), readers.found(t // parts),
                              &region)
                end_region(&region)
            first = 0 if parts > 1 else count
            while first < count and alone(&region):
                merge_parts(a, start + first, parts, readers.found(first), &region)
                first += 1
            if first < count:
                begin_region(&region)
                for t in prange(first, count, num_threads=threads, schedule="static"):
                    merge_parts(a, start + t, parts, readers.found(t), &region)
                end_region(&region)
            learn(&region)
        PyErr_CheckSignals()
    return 0
