# The parameters of a softmax kernel: the op, and the arrays, seen as (outer, n, inner) with rows along n. There are
# `outer` matrices of `inner` rows each.
#
# An op is a set of passes over rows:
#
#   op            pass 1    pass 2: a sum                                  pass 3: a store
#   SOFTMAX       maximum   SUM_WEIGHTS                                    STORE_WEIGHTS, rarely STORE_WEIGHTS_OR_ONE
#   LOG_SOFTMAX   maximum   SUM_EXCLUDING_MAX; if it is small, SUM_EXACT   STORE_LOGS
#   LOGSUMEXP     maximum   SUM_EXCLUDING_MAX; if it is small, SUM_EXACT   STORE_SCALAR
#   ENTROPY       maximum   SUM_MOMENTS                                    STORE_SCALAR
#   CROSS_ENTROPY maximum   SUM_KEEPING_WEIGHTS; likewise SUM_EXACT        that of cross_entropy.pxi
#
# The gradients are in backward.pxi, which has passes of its own over the same rows. Cross entropy without its gradient
# has the passes of LOG_SOFTMAX.
#
# Rows are computed in one of two ways, chosen by shape:
#   dense     one row at a time, its elements in the lanes                      (dense.pxi, contiguous.pxi)
#   strided   a tile of PARTIALS rows at a time, each row in a lane of its own  (strided.pxi, narrow.pxi)
# Both add the elements of a row in the same order, so the result of a row depends on its elements alone.
#
# The caller has checked the arguments, and a kernel cannot fail. Buffers are allocated before the loops start.

cdef enum:
    TASK = 1 << 14                  # elements: the least work of a thread, a few microseconds
    SLICE = PARTIALS << 18          # elements that a thread computes between two checks for an interrupt
    LONG_ROW = 1 << 15              # elements: longer rows may be shared by threads
    CHUNK = 4096                    # elements: they fit in the L1 cache; their sum then joins a double-word sum
    BASES_MIN = 7 * CHUNK           # elements: softmax rows longer than this have bases, see shift.pxi
    BLOCK = UNROLL                  # elements of each row of a tile that are computed together
    # elements: contiguous rows up to this use tiles, if there are enough rows; fewer where a tile has several registers
    NARROW_MAX = (7 + 5 * (PARTIAL_REGS == 1)) * PARTIALS
    FEW_NARROW_MAX = 3 * PARTIALS // 2          # the same for fewer than PARTIALS rows
    CAUSAL_TILE_MAX = 2 * PARTIALS  # the same for causal rows: all of a tile take as long as the longest
    DELAYED_MAX = 48 * PARTIALS     # elements: contiguous rows up to this are stored after the next row is summed
    FAR_ELEMENTS = 1 << 20          # elements: larger arrays are not in the L2 cache
    NEAR_ELEMENTS = 1 << 16         # elements: arrays up to this may be in the L2 cache with their results
    FEW_ROWS = 4                    # rows of a matrix: see matrices_to_rows
    PEELED_MIN = 4 * PARTIALS       # rows: of fewer, one tile more costs more than aligned lines save
    STRIP_TILES = 8                 # tiles side by side that are computed together: see strided.pxi
    KEEP = 1 << 20                  # reals: up to this, the weights of a row are kept; beyond, they are computed twice

cdef enum Op:                       # the same numbers as in _fastpath.pyx
    SOFTMAX = 0
    LOG_SOFTMAX = 1
    LOGSUMEXP = 2
    ENTROPY = 3
    CROSS_ENTROPY = 4               # with its gradient

cdef enum SumKind:
    SUM_WEIGHTS = 0                 # sum(weights); the pass also keeps the weights
    SUM_EXACT = 2                   # sum(weights) without the largest, accurate however small it is
    SUM_MOMENTS = 3                 # SUM_EXACT, and sum(weights * (scores - largest score))
    SUM_EXCLUDING_MAX = 4           # SUM_EXACT in fewer instructions, accurate unless it is small: see row_sums.pxi
    SUM_KEEPING_WEIGHTS = 5         # SUM_EXCLUDING_MAX; the pass also keeps the weights

cdef enum StoreKind:
    STORE_WEIGHTS = 0               # weights times the normalizer
    STORE_LOGS = 1                  # scores minus the normalizer
    STORE_SCALAR = 2                # the normalizer itself, one number a row
    STORE_WEIGHTS_OR_ONE = 5        # STORE_WEIGHTS, where the largest weight may have to be 1: see normalizer.pxi

cdef inline bint is_reduction(Op op) noexcept nogil:
    return op == LOGSUMEXP or op == ENTROPY

cdef inline SumKind first_sum(Op op) noexcept nogil:
    if op == CROSS_ENTROPY:
        return SUM_KEEPING_WEIGHTS
    return SUM_WEIGHTS if op == SOFTMAX else SUM_MOMENTS if op == ENTROPY else SUM_EXCLUDING_MAX

cdef inline StoreKind first_store(Op op) noexcept nogil:
    return STORE_WEIGHTS if op == SOFTMAX else STORE_LOGS if op == LOG_SOFTMAX else STORE_SCALAR

cdef inline bint may_be_inaccurate(SumKind sum) noexcept nogil:
    """Whether a small sum must be computed again by SUM_EXACT."""
    return sum == SUM_EXCLUDING_MAX or sum == SUM_KEEPING_WEIGHTS

cdef inline bint keeps_weights_of(SumKind sum) noexcept nogil:
    return sum == SUM_WEIGHTS or sum == SUM_KEEPING_WEIGHTS

cdef inline bint is_fast_sum(SumKind sum) noexcept nogil:
    """Whether the sum starts at START: see row_sums.pxi."""
    return sum == SUM_WEIGHTS or may_be_inaccurate(sum)

cdef struct Rows:
    Op op
    bint scaled                                     # whether there is a temperature
    bint nontemporal                                # results bypass the caches
    Py_ssize_t peel                                 # rows by which the first tile is narrower, to align the others
    bint in_turns                                   # tiles of all matrices take turns: see matrices_to_rows
    bint causal                                     # row i sees its first i + offset + 1 elements
    Py_ssize_t offset
    Py_ssize_t outer, n, inner
    const elem* x
    Py_ssize_t x_outer, x_n, x_inner                # strides in elements
    elem* y
    Py_ssize_t y_outer, y_n, y_inner
    const unsigned char* where                      # NULL: no mask
    Py_ssize_t where_outer, where_n, where_inner
    const double* temperature                       # not read unless scaled
    Py_ssize_t temperature_outer, temperature_inner

cdef Rows describe(Op op, const elem[:, :, :] x, elem[:, :, :] y, const double[:, :] temperature,
                   const unsigned char[:, :, :] where, offset, bint nontemporal) except *:
    cdef Rows rows
    rows.op = op
    rows.scaled = temperature is not None
    rows.causal = offset is not None
    rows.offset = offset if rows.causal else 0
    rows.nontemporal = nontemporal and sizeof(elem) == sizeof(real)
    rows.peel, rows.in_turns = 0, False
    rows.outer, rows.n, rows.inner = x.shape[0], x.shape[1], x.shape[2]
    rows.x = &x[0, 0, 0]
    rows.x_outer, rows.x_n, rows.x_inner = (
        x.strides[0] // <Py_ssize_t>sizeof(elem), x.strides[1] // <Py_ssize_t>sizeof(elem),
        x.strides[2] // <Py_ssize_t>sizeof(elem))
    rows.y = NULL                                   # nothing is written
    rows.y_outer = rows.y_n = rows.y_inner = 0
    if y is not None:
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
    """Makes the matrices of one row each the rows of one matrix."""
    rows.inner, rows.outer = rows.outer, 1
    rows.x_inner, rows.y_inner, rows.where_inner = rows.x_outer, rows.y_outer, rows.where_outer
    rows.temperature_inner = rows.temperature_outer

cdef void matrices_to_rows(Rows* rows) noexcept nogil:
    """Makes the first rows of all matrices one matrix, the second ones another: a matrix of a few short rows would
    leave most of a tile empty. The tiles take turns, so that what they share of a cache line is read once."""
    rows.in_turns = True
    rows.outer, rows.inner = rows.inner, rows.outer
    rows.x_outer, rows.x_inner = rows.x_inner, rows.x_outer
    rows.y_outer, rows.y_inner = rows.y_inner, rows.y_outer
    rows.where_outer, rows.where_inner = rows.where_inner, rows.where_outer
    rows.temperature_outer, rows.temperature_inner = rows.temperature_inner, rows.temperature_outer

cdef inline void arrange(Rows* rows) noexcept nogil:
    """Chooses which rows are side by side."""
    if rows.causal:
        return
    if rows.inner == 1:
        outer_to_inner(rows)
    elif rows.inner <= FEW_ROWS and rows.outer >= 2 * PARTIALS and rows.n <= NARROW_MAX:
        matrices_to_rows(rows)
