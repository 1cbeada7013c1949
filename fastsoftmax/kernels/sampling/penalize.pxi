# penalize_: logits (outer, n, inner) of the tokens that were seen, in place. The first `length` tokens of a row count,
# each from 0 to n - 1. Keskar et al. (CTRL), 2019.

cdef struct RowPenalties:                       # of one row, as they lie in the array `options`
    double repetition, frequency, presence, length

cdef struct Seen:                               # an entry of a hash table
    int64_t token, count                        # count 0: the entry is free

cdef struct Penalties:
    Rows rows                                   # y: the logits
    const char* tokens                          # int64: the first of each row (outer, inner); strides in bytes
    Py_ssize_t tokens_outer, tokens_inner, token_stride
    const char* options                         # RowPenalties (outer, inner)
    Py_ssize_t options_outer, options_inner
    Py_ssize_t size                             # rows of a task
    Seen* seen                                  # (threads, 1 << seen_bits), zeros
    int seen_bits

cdef inline Seen* entry_of(const Penalties* a, Seen* seen, int64_t token) noexcept nogil:
    """The entry of a token, or the free one where it belongs: at least half of them are free."""
    cdef uint64_t at = (<uint64_t>token * <uint64_t>0x9e3779b97f4a7c15) >> (64 - a.seen_bits)
    while seen[at].count and seen[at].token != token:
        at = (at + 1) & ((<uint64_t>1 << a.seen_bits) - 1)
    return &seen[at]

cdef inline real penalized(double x, const RowPenalties* options, int64_t count) noexcept nogil:
    x = x * options.repetition if x < 0 else x / options.repetition
    return <real>(x - (options.frequency * <double>count + options.presence))

cdef void penalize_row(const Penalties* a, const Row* row, Seen* seen) noexcept nogil:
    cdef const RowPenalties* options = <const RowPenalties*>(
        a.options + row.o * a.options_outer + row.i * a.options_inner)
    cdef const char* tokens = a.tokens + row.o * a.tokens_outer + row.i * a.tokens_inner
    cdef Py_ssize_t length = <Py_ssize_t>options.length, k
    cdef int64_t token
    cdef Seen* entry
    cdef elem* y
    for k in range(length):
        token = (<const int64_t*>(tokens + k * a.token_stride))[0]
        entry = entry_of(a, seen, token)
        entry.token = token
        entry.count += 1
    for k in range((<Py_ssize_t>1) << a.seen_bits):
        if seen[k].count:
            y = row.y + seen[k].token * a.rows.y_n
            y[0] = elem_of(penalized(real_of(y), options, seen[k].count))
            seen[k].count = 0

cdef Py_ssize_t penalize_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const Penalties* a = <const Penalties*>context
    cdef Py_ssize_t start = task * a.size, r
    cdef Row row
    for r in range(start, min(start + a.size, a.rows.outer * a.rows.inner)):
        row = row_at(&a.rows, r)
        penalize_row(a, &row, a.seen + (<Py_ssize_t>thread << a.seen_bits))
    return 1

def penalize_rows(elem[:, :, :] logits, const long long[:, :] tokens, Py_ssize_t count, Py_ssize_t token_stride,
                  const double[:, :] options, int threads):
    """Penalises the logits (outer, n, inner) of the tokens of each row. No dimension is 0, nor is `count`.

    tokens: (outer, inner) views of the first of `count` tokens, token_stride bytes apart. options: (outer, inner) views
    of the first of four numbers that are adjacent, RowPenalties.
    """
    cdef Penalties a
    cdef Py_ssize_t row_count, bytes
    a.rows = describe(SOFTMAX, logits, logits, None, None, None, False)
    a.tokens, a.token_stride = <const char*>&tokens[0, 0], token_stride
    a.tokens_outer, a.tokens_inner = tokens.strides[0], tokens.strides[1]
    a.options = <const char*>&options[0, 0]
    a.options_outer, a.options_inner = options.strides[0], options.strides[1]
    row_count = a.rows.outer * a.rows.inner
    a.size = max(1, task_size(row_count * count, threads) // count)
    a.seen_bits = leading_bit(count) + 2
    bytes = (<Py_ssize_t>threads << a.seen_bits) * <Py_ssize_t>sizeof(Seen)
    a.seen = <Seen*>allocate(bytes)
    try:
        memset(a.seen, 0, bytes)
        run_tasks(penalize_task, &a, ceil_div(row_count, a.size), max(1, SLICE // (a.size * count)), threads,
                  IN_SHARES)
    finally:
        free(a.seen)
