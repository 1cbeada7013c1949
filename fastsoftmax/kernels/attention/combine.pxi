# Decode's states in memory: one row over one split of the keys, and how the splits are combined (Dao et al.,
# Flash-Decoding, 2023).
#
# Each row has a state for each split: a PartialState, followed by its output of `padded` reals. They stand in an array
# states (splits, rows + 1, state_size). The extra row takes the results of the fourth row where three are left: see
# rows_at_once.

cdef enum:
    STATE_REALS = 6

cdef struct PartialState:
    real row_max, row_sum, excess, excess_rest, moment, moment_rest     # see OnlineState

cdef inline Py_ssize_t padded(Py_ssize_t dim) noexcept nogil:
    """Up to whole registers."""
    return ceil_div(dim, LANES) * LANES

cdef inline Py_ssize_t register_at(Py_ssize_t i, Py_ssize_t dim) noexcept nogil:
    """Where register i of a row starts; the last one overlaps. dim >= LANES."""
    return min(i * LANES, dim - LANES)

cdef inline Py_ssize_t state_size(const AttentionParams* params) noexcept nogil:
    """Reals of a row's state and output, a whole number of cache lines."""
    return ceil_div(padded(params.value_dim) + STATE_REALS, PARTIALS) * PARTIALS

cdef inline PartialState* state_of(const AttentionParams* params, real* states, Py_ssize_t row) noexcept nogil:
    return <PartialState*>(states + row * state_size(params))

cdef inline real* out_of(const AttentionParams* params, real* states, Py_ssize_t row) noexcept nogil:
    return states + row * state_size(params) + STATE_REALS

cdef inline OnlineState load_state(const PartialState* x) noexcept nogil:
    """In every lane."""
    cdef OnlineState state
    state.row_max, state.row_sum = broadcast(x.row_max), broadcast(x.row_sum)
    state.excess, state.excess_rest = broadcast(x.excess), broadcast(x.excess_rest)
    state.moment, state.moment_rest = broadcast(x.moment), broadcast(x.moment_rest)
    return state

cdef inline void store_state(PartialState* x, const OnlineState* state) noexcept nogil:
    x.row_max, x.row_sum = lane0(state.row_max), lane0(state.row_sum)
    x.excess, x.excess_rest = lane0(state.excess), lane0(state.excess_rest)
    x.moment, x.moment_rest = lane0(state.moment), lane0(state.moment_rest)

cdef void finalize_row(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t row,
                       real* states) noexcept nogil:
    """Writes the results of a row from its state over all keys."""
    cdef Py_ssize_t i, head = head_of_row(params, key_head, row), query = query_of_row(params, row)
    cdef OnlineState state = load_state(state_of(params, states, row))
    cdef const real* x = out_of(params, states, row)
    cdef elem* out = row_address(&params.out, b, head, query)
    cdef vreal lse, entropy, inverse = finalize_rows(params, &state, &lse, &entropy)
    store_statistics(params, b, head, query, lane0(lse), lane0(entropy))
    for i in range(ceil_div(params.value_dim, LANES)):
        store_out(params, load(x + i * LANES) * inverse, out, register_at(i, params.value_dim))

cdef void combine_splits(const AttentionParams* params, Py_ssize_t b, Py_ssize_t key_head, Py_ssize_t splits,
                         real* states) noexcept nogil:
    """Combines the states of all splits in the place of the first, and writes the results."""
    cdef Py_ssize_t rows = rows_of_head(params, b), row, split, i
    cdef OnlineState state, other
    cdef vreal rescale, other_rescale
    cdef real* to
    cdef const real* x
    for row in range(rows):
        state, to = load_state(state_of(params, states, row)), out_of(params, states, row)
        for split in range(1, splits):
            other = load_state(state_of(params, states, split * (rows + 1) + row))
            x = out_of(params, states, split * (rows + 1) + row)
            merge_state(True, True, False, &other, &state, &rescale, &other_rescale)
            for i in range(ceil_div(params.value_dim, LANES)):
                store(to + i * LANES, fma_(load(to + i * LANES), rescale, load(x + i * LANES) * other_rescale))
        store_state(state_of(params, states, row), &state)
        finalize_row(params, b, key_head, row, states)
