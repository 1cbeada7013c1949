# sample and filter_logits: a row, the tasks and the entry point.

cdef inline const RowOptions* options_of(const Sampling* a, const Row* row) noexcept nogil:
    return <const RowOptions*>(a.options + row.o * a.options_outer + row.i * a.options_inner)

cdef const real* reals_of_row(const Sampling* a, const Row* row, SamplingWorkspace* w) noexcept nogil:
    """The row (n) as reals that are adjacent, -inf where it is masked."""
    cdef Py_ssize_t chunk, start, count, k
    cdef const elem* x
    if is_in_place(&a.rows):
        return <const real*>row.x
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        count = min(row.n - start, <Py_ssize_t>CHUNK)
        x = gather_chunk(&a.rows, row, start, count, w.elements)
        k = 0
        while k + LANES <= count:
            store(w.row + start + k, load_elem(x + k))
            k += LANES
        while k < count:
            w.row[start + k] = real_of(x + k)
            k += 1
    return w.row

cdef inline bint is_in_place(const Rows* rows) noexcept nogil:
    return sizeof(elem) == sizeof(real) and rows.x_n == 1 and rows.where == NULL

cdef inline real divided(real x, double temperature) noexcept nogil:
    """x / temperature, rounded once; a finite number stays finite."""
    cdef double quotient
    if temperature == 1 or not -INFINITY < x:
        return x
    quotient = <double>x / temperature
    return <real>min(max(quotient, -<double>LARGEST_ELEM), <double>LARGEST_ELEM)

cdef void hide(elem* y, Py_ssize_t stride, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(count):
        y[k * stride] = ELEM_MINUS_INFINITY

cdef void store_kept(const Sampling* a, const Row* row, const Candidates* c, double temperature,
                     SamplingWorkspace* w) noexcept nogil:
    """The row of filtered logits. y may be x: candidates that are all of the row are read before they are written."""
    cdef Py_ssize_t chunk, start, count, k
    if c.at != NULL:
        hide(row.y, a.rows.y_n, row.n)
        for k in range(c.count):
            if is_kept(c, k):
                row.y[c.at[k] * a.rows.y_n] = elem_of(divided(c.x[k], temperature))
        return
    for chunk in range(ceil_div(row.n, CHUNK)):
        start = chunk * CHUNK
        count = min(row.n - start, <Py_ssize_t>CHUNK)
        for k in range(count):
            w.reals[k] = divided(c.x[start + k], temperature) if is_kept(c, start + k) else -INFINITY
        store_reals(w.reals, row.y + start * a.rows.y_n, a.rows.y_n, count, False)

cdef Py_ssize_t first_equal(const real* x, real value) noexcept nogil:
    cdef Py_ssize_t k = 0
    while x[k] != value:
        k += 1
    return k

cdef void store_token(const Sampling* a, const Row* row, Py_ssize_t token, double logprob) noexcept nogil:
    (<int64_t*>(a.tokens + row.o * a.tokens_outer + row.i * a.tokens_inner))[0] = token
    if a.logprob != NULL:
        (<double*>(a.logprob + row.o * a.logprob_outer + row.i * a.logprob_inner))[0] = logprob

cdef RowStatus sample_row(const Sampling* a, const Row* row, SamplingWorkspace* w) noexcept nogil:
    cdef const RowOptions* options = options_of(a, row)
    cdef const real* x = reals_of_row(a, row, w)
    cdef Candidates c
    cdef bint has_nan
    cdef real top = largest(x, row.n, &has_nan)
    cdef Py_ssize_t token
    if has_nan:
        return ROW_HAS_NAN
    if top == INFINITY:
        return ROW_HAS_INFINITY
    if top == -INFINITY:
        if row.y != NULL:
            hide(row.y, a.rows.y_n, row.n)
        return ROW_IS_EMPTY
    if options.temperature == 0:
        token = first_equal(x, top)
        if row.y != NULL:
            hide(row.y, a.rows.y_n, row.n)
            row.y[token * a.rows.y_n] = elem_of(top)
        else:
            store_token(a, row, token, 0)
        return ROW_IS_FINE
    c.count, c.x, c.key, c.at, c.mass = row.n, x, x, NULL, w.mass
    c.is_weighed, c.has_bound, c.has_chunks = False, False, False
    c.top, c.scale = top, LOG2E_DOUBLE / options.temperature
    apply_filters(&c, options, w)
    if row.y != NULL:
        store_kept(a, row, &c, options.temperature, w)
        return ROW_IS_FINE
    token = draw(&c, (<const double*>(a.uniform + row.o * a.uniform_outer + row.i * a.uniform_inner))[0], w)
    store_token(a, row, token if c.at == NULL else c.at[token], log_probability(&c, token))
    return ROW_IS_FINE

cdef RowStatus status_of_row(const Sampling* a, const Row* row, SamplingWorkspace* w) noexcept nogil:
    """The same without a result: rows are looked at before the first is written."""
    cdef bint has_nan
    cdef real top = largest(reals_of_row(a, row, w), row.n, &has_nan)
    return ROW_HAS_NAN if has_nan else ROW_HAS_INFINITY if top == INFINITY else ROW_IS_FINE

cdef struct SamplingTasks:
    const Sampling* a
    Py_ssize_t size                             # rows of a task
    SamplingWorkspace* workspaces               # one for each thread

cdef Py_ssize_t sampling_task(const void* context, Py_ssize_t task, int thread) noexcept nogil:
    cdef const SamplingTasks* tasks = <const SamplingTasks*>context
    cdef const Sampling* a = tasks.a
    cdef SamplingWorkspace* w = &tasks.workspaces[thread]
    cdef Py_ssize_t start = task * tasks.size, r
    cdef Row row
    for r in range(start, min(start + tasks.size, a.rows.outer * a.rows.inner)):
        row = row_at(&a.rows, r)
        a.status[row.o * a.status_outer + row.i * a.status_inner] = (
            status_of_row(a, &row, w) if a.tokens == NULL and row.y == NULL else sample_row(a, &row, w))
    return 1

def sample_rows(const elem[:, :, :] x, elem[:, :, :] y, const unsigned char[:, :, :] where, const double[:, :] options,
                const double[:, :] uniform, long long[:, :] tokens, double[:, :] logprob, unsigned char[:, :] status,
                bint has_filters, int threads):
    """Of each row of x (outer, n, inner) along n: the token that `uniform` draws and its log probability, or with y the
    logits of the tokens that may be drawn; with neither tokens nor y nothing but the status, a RowStatus.

    options: (outer, inner) views of the first of five numbers that are adjacent, RowOptions. where, y, uniform, tokens
    and logprob may be None. y may be x, but must not overlap it otherwise. has_filters: whether a row may have one. No
    dimension is 0.
    """
    cdef Sampling a
    cdef SamplingTasks tasks
    cdef SamplingWorkspaces memory = SamplingWorkspaces()
    cdef Py_ssize_t row_count
    a.rows = describe(SOFTMAX, x, y, None, where, None, False)
    a.options = <const char*>&options[0, 0]
    a.options_outer, a.options_inner = options.strides[0], options.strides[1]
    a.uniform, a.tokens, a.logprob = NULL, NULL, NULL
    if tokens is not None:
        a.uniform, a.tokens = <const char*>&uniform[0, 0], <char*>&tokens[0, 0]
        a.uniform_outer, a.uniform_inner = uniform.strides[0], uniform.strides[1]
        a.tokens_outer, a.tokens_inner = tokens.strides[0], tokens.strides[1]
    if logprob is not None:
        a.logprob = <char*>&logprob[0, 0]
        a.logprob_outer, a.logprob_inner = logprob.strides[0], logprob.strides[1]
    a.status, a.status_outer, a.status_inner = &status[0, 0], status.strides[0], status.strides[1]
    memory.reserve(threads, a.rows.n, not is_in_place(&a.rows), has_filters)
    row_count = a.rows.outer * a.rows.inner
    tasks.a, tasks.workspaces = &a, memory.workspaces
    tasks.size = max(1, task_size(row_count * a.rows.n, threads) // a.rows.n)
    run_tasks(sampling_task, &tasks, ceil_div(row_count, tasks.size), max(1, SLICE // (tasks.size * a.rows.n)), threads,
              IN_SHARES)
