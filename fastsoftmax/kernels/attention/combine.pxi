# The state of the online softmax over some of the keys, and how the states of all splits are combined.

cdef struct PartialState:                   # for one row in one part of the keys; followed by `padded` reals of out
    real row_max, row_sum, excess, excess_rest, moment, moment_rest

cdef inline Py_ssize_t state_size(const AttentionParams* params) noexcept nogil:
    """Reals of a row's Found and out, a whole number of cache lines."""
    return ceil_div(padded(params.value_dim) + STATE_REALS, PARTIALS) * PARTIALS

cdef inline PartialState* state_of(const AttentionParams* params, real* states, Py_ssize_t row) noexcept nogil:
    return <PartialState*>(states + row * state_size(params))

cdef inline real* out_of(const AttentionParams* params, real* states, Py_ssize_t row) noexcept nogil:
    return states + row * state_size(params) + STATE_REALS

cdef void finalize_row(const AttentionParams* params, Py_ssize_t b, Py_ssize_t head, Py_ssize_t query,
                       const PartialState* state) noexcept nogil:
    """Writes a row of the results from its state over all keys."""
    cdef vreal inverse, lse, entropy
    cdef Py_ssize_t i, at = (b * params.heads + head) * params.length + query
    cdef const real* x = &state.row_max + STATE_REALS
    cdef elem* out = <elem*>row_address(params.out, params.out_stride, b, head, query)
    inverse = finalize_rows(params, broadcast(state.row_max), broadcast(state.row_sum), broadcast(state.excess),
                            broadcast(state.excess_rest), broadcast(state.moment + state.moment_rest), &lse, &entropy)
    if params.lse != NULL:
        params.lse[at] = lane0(lse)
    if params.entropy != NULL:
        params.entropy[at] = lane0(entropy)
    for i in range(ceil_div(params.value_dim, LANES)):
        store_out(params, load(x + i * LANES) * inverse, out, register_at(i, params.value_dim))

cdef void combine_splits(const AttentionParams* params, Py_ssize_t pair, Py_ssize_t splits, real* states) noexcept nogil:
    """Combines the states of a pair's splits in the place of the first, and writes the results."""
    cdef Py_ssize_t b = pair // params.key_heads, key_head = pair % params.key_heads
    cdef Py_ssize_t rows = params.length * params.queries_per_kv, row, split, i
    cdef PartialState* combined
    cdef PartialState* other
    cdef real* to
    cdef const real* x
    cdef real row_max
    cdef vreal shift, log_rescale, split_log_rescale, rescale, split_rescale
    for row in range(rows):
        combined = state_of(params, states, row)
        to = out_of(params, states, row)
        for split in range(1, splits):
            other = state_of(params, states, split * (rows + 1) + row)
            x = out_of(params, states, split * (rows + 1) + row)
            row_max = max(combined.row_max, other.row_max)
            shift = broadcast(0 if row_max == -INFINITY else row_max)
            log_rescale = vmax(broadcast(LEAST_EXPONENT), broadcast(combined.row_max) - shift)
            split_log_rescale = vmax(broadcast(LEAST_EXPONENT), broadcast(other.row_max) - shift)
            rescale, split_rescale = exp_(log_rescale), exp_(split_log_rescale)
            if combined.row_max != row_max:
                combined.excess, combined.excess_rest = combined.row_sum * lane0(rescale), 0
            if other.row_max != row_max:
                other.excess, other.excess_rest = other.row_sum * lane0(split_rescale), 0
            combined.excess_rest += other.excess_rest
            add_real_to(&combined.excess, &combined.excess_rest, other.excess)
            if combined.row_max == other.row_max > -INFINITY:  # each has left out a 1
                add_real_to(&combined.excess, &combined.excess_rest, 1)
            combined.moment = lane0(rescale) * (combined.moment + combined.row_sum * lane0(log_rescale))
            combined.moment_rest = lane0(rescale) * combined.moment_rest + lane0(split_rescale) * other.moment_rest
            add_real_to(&combined.moment, &combined.moment_rest, lane0(split_rescale)
                        * (other.moment + other.row_sum * lane0(split_log_rescale)))
            combined.row_sum = combined.row_sum * lane0(rescale) + other.row_sum * lane0(split_rescale)
            combined.row_max = row_max
            for i in range(ceil_div(params.value_dim, LANES)):
                store(to + i * LANES, fma_(load(to + i * LANES), rescale, load(x + i * LANES) * split_rescale))
        finalize_row(params, b, key_head * params.queries_per_kv + row % params.queries_per_kv,
                     row // params.queries_per_kv, combined)
