# The parameters of a softmax kernel: arrays seen as (outer, n, inner), rows running along n.
#
# A kernel workspaces on its rows in one of two ways, chosen by shape:
#   along   one row at a time, its elements in the lanes                      (along.pxi)
#   across  PARTIALS rows at a time, each in a lane of its own                   (across.pxi)
# Both add up a row in the same order, so that a row's result depends on its elements alone.
#
# Everything here is checked by the caller; kernels cannot fail, and what they allocate is allocated
# by the `def` at the end of softmax.pxi before the loops start.

cdef enum:
    TASK = 1 << 14          # elements: the least that a thread takes at a time, some microseconds of work
    SLICE = PARTIALS << 18  # elements: what is computed between two looks for an interrupt
    LONG_ROW = 1 << 15      # elements: rows from here on may be shared by threads
    CHUNK = 4096            # elements: what is summed up before digits are moved to wide sums; in the L1 cache
    BLOCK = UNROLL          # elements of each row of a tile
    NARROW_MAX = 3 * UNROLL  # elements: contiguous rows up to this go across, if there are enough of them
    CAUSAL_TILE_MAX = 3 * UNROLL  # elements: contiguous causal rows up to this go across
    KEEP = 1 << 20          # reals: up to this, a row's weights are kept; beyond, computed twice

cdef enum Op:
    SOFTMAX = 0
    LOG_SOFTMAX = 1
    LOGSUMEXP = 2
    ENTROPY = 3

cdef enum SumKind:
    SUM_WEIGHTS = 0         # sum(weights), which are kept too
    SUM_EXACT = 2           # sum(weights) without the largest, exact however small it is
    SUM_MOMENTS = 3         # the same, and sum(weights * (scores - the largest score))
    SUM_EXCLUDING_MAX = 4   # SUM_EXACT in fewer instructions, exact enough unless it is small

cdef enum StoreKind:
    STORE_WEIGHTS = 0       # weights times the normalizer
    STORE_LOGS = 1          # scores minus the normalizer
    STORE_SCALAR = 2        # the normalizer itself
    STORE_WEIGHTS_OR_ONE = 5    # weights, where the largest may have to become 1: see Normalizer

cdef struct Rows:
    int op
    bint scaled                                     # is there a temperature
    bint nontemporal                                # results go past the caches
    Py_ssize_t peel                                 # elements by which the first tile is narrower, to align the others
    bint causal                                     # row i sees the first i + offset + 1 elements
    Py_ssize_t offset
    Py_ssize_t outer, n, inner
    const elem* x
    Py_ssize_t x_outer, x_n, x_inner                # strides in elements
    elem* y
    Py_ssize_t y_outer, y_n, y_inner
    const unsigned char* where                      # NULL: everywhere
    Py_ssize_t where_outer, where_n, where_inner
    const double* temperature                       # not read unless scaled
    Py_ssize_t temperature_outer, temperature_inner

cdef inline int first_sum(const Rows* rows) noexcept nogil:
    """The sum that the first pass computes; op and sum have the same number, but for logarithms."""
    return rows.op if rows.op == SOFTMAX or rows.op == ENTROPY else SUM_EXCLUDING_MAX

cdef inline Py_ssize_t row_length(const Rows* rows, Py_ssize_t i) noexcept nogil:
    if not rows.causal:
        return rows.n
    return min(max(i + rows.offset + 1, 0), rows.n)

cdef Rows describe(int op, const elem[:, :, :] x, elem[:, :, :] y, const double[:, :] temperature,
                   const unsigned char[:, :, :] where, offset, bint nontemporal) except *:
    cdef Rows rows
    rows.op = op
    rows.scaled = temperature is not None
    rows.causal = offset is not None
    rows.offset = offset if rows.causal else 0
    rows.nontemporal = nontemporal and sizeof(elem) == sizeof(real)
    rows.peel = 0
    rows.outer, rows.n, rows.inner = x.shape[0], x.shape[1], x.shape[2]
    rows.x = &x[0, 0, 0]
    rows.x_outer, rows.x_n, rows.x_inner = (
        x.strides[0] // <Py_ssize_t>sizeof(elem), x.strides[1] // <Py_ssize_t>sizeof(elem),
        x.strides[2] // <Py_ssize_t>sizeof(elem))
    rows.y = &y[0, 0, 0]
    rows.y_outer, rows.y_n, rows.y_inner = (
        y.strides[0] // <Py_ssize_t>sizeof(elem), y.strides[1] // <Py_ssize_t>sizeof(elem),
        y.strides[2] // <Py_ssize_t>sizeof(elem))
    rows.where = NULL
    rows.where_outer = rows.where_n = rows.where_inner = 0
    if where is not None:
        rows.where = &where[0, 0, 0]
        rows.where_outer, rows.where_n, rows.where_inner = where.strides[0], where.strides[1], where.strides[2]
    rows.temperature = NULL
    rows.temperature_outer = rows.temperature_inner = 0
    if rows.scaled:
        rows.temperature = &temperature[0, 0]
        rows.temperature_outer = temperature.strides[0] // <Py_ssize_t>sizeof(double)
        rows.temperature_inner = temperature.strides[1] // <Py_ssize_t>sizeof(double)
    return rows

cdef void outer_to_inner(Rows* rows) noexcept nogil:
    """Where there is one row a matrix, the matrices are as good as rows."""
    rows.inner, rows.outer = rows.outer, 1
    rows.x_inner, rows.y_inner, rows.where_inner = rows.x_outer, rows.y_outer, rows.where_outer
    rows.temperature_inner = rows.temperature_outer
