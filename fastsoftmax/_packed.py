"""Attention over packed sequences and over caches in pages, from checked arguments to kernel calls.

A kernel sees packed sequences as arrays (1, heads, rows of all sequences, elements) with the first row of each, and
caches in pages as arrays (pages, heads, page_size, elements) with a table. Everything else is as in `_attention`, which
also computes, one sequence at a time, what needs the reference.
"""

import numpy as np

from fastsoftmax import _attention, _dispatch, _fastpath, _validate, _validate_packed
from fastsoftmax._attention import BackwardCall, KernelCall, contiguous, rows_ready, sum_to
from fastsoftmax._dtypes import native
from fastsoftmax._fastpath import broadcast_to
from fastsoftmax._fp_env import default_fp_env
from fastsoftmax._layout import kernel_ready, no_overlap


@default_fp_env
def varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k, is_causal, scale, enable_gqa, causal_offset, window,
                     softcap, alibi_slopes, sinks, return_lse, return_entropy, out):
    """varlen_attention."""
    query, key, value, heads, key_heads, first_query, first_key = _validate_packed.packed_inputs(
        query, key, value, cu_seqlens_q, cu_seqlens_k, enable_gqa)
    inputs = _heads_first(query[None], key[None], value[None], heads, key_heads)
    options = _packed_options(inputs, first_query, first_key, is_causal, scale, causal_offset, window, softcap,
                              alibi_slopes, sinks, out)
    y, lse, entropy, kernel_y = _results(inputs, options, (1, len(query)), return_lse, return_entropy, out)
    if _attention.needs_reference(inputs, options):
        for b, (q, k) in enumerate(_rows(first_query, first_key)):
            _attend_sequence([x[0] for x in (inputs.q[:, :, q], inputs.k[:, :, k], inputs.v[:, :, k])], options, b,
                             [None if x is None else x[0, :, q] for x in (y.swapaxes(1, 2), lse, entropy)])
    else:
        _compute(inputs, options, kernel_y, lse, entropy, _score_count(first_query, first_key), first_query=first_query,
                 first_key=first_key)
    y, lse, entropy = (None if x is None else x[0] for x in (y, lse, entropy))
    return _attention.returned(y, lse, entropy, return_lse, return_entropy, out)


@default_fp_env
def paged_attention(query, key_cache, value_cache, block_table, key_lengths, is_causal, scale, enable_gqa,
                    causal_offset, window, softcap, alibi_slopes, sinks, return_lse, return_entropy, out):
    """paged_attention."""
    query, key, value, heads, key_heads = _validate_packed.paged_inputs(query, key_cache, value_cache, enable_gqa)
    batch, length = query.shape[:2]
    table, lengths = _validate_packed.page_table(block_table, key_lengths, batch, *key.shape[:2])
    inputs = _heads_first(query, key, value, heads, key_heads)
    options = _validate.packed_options(
        inputs, (batch,), (batch, length, heads, value.shape[-1]), is_causal, scale,
        lengths - length if causal_offset is None else causal_offset, window, softcap, alibi_slopes, sinks, out)
    y, lse, entropy, kernel_y = _results(inputs, options, (batch, length), return_lse, return_entropy, out)
    if _attention.needs_reference(inputs, options):
        for b in range(batch):
            j = np.arange(lengths[b])
            at = table[b, j // key.shape[1]], slice(None), j % key.shape[1]
            k, v = (x[at].swapaxes(0, 1) for x in (inputs.k, inputs.v))
            _attend_sequence((inputs.q[b], k, v), options, b,
                             [None if x is None else x[b] for x in (y.swapaxes(1, 2), lse, entropy)])
    else:
        _compute(inputs, options._replace(key_lengths=lengths), kernel_y, lse, entropy, length * int(lengths.sum()),
                 pages=table)
    return _attention.returned(y, lse, entropy, return_lse, return_entropy, out)


def _heads_first(query, key, value, heads, key_heads):
    """AttentionInputs of arrays (batch or pages, rows, heads, elements), whose heads are made to broadcast."""
    return _fastpath.AttentionInputs(*[
        broadcast_to(rows_ready(x), (*x.shape[:2], n, x.shape[3])).swapaxes(1, 2)
        for x, n in ((query, heads), (key, key_heads), (value, key_heads))], 0)


def _packed_options(inputs, first_query, first_key, is_causal, scale, causal_offset, window, softcap, alibi_slopes,
                    sinks, out):
    queries, keys = np.diff(first_query), np.diff(first_key)
    return _validate.packed_options(
        inputs, queries.shape, (inputs.q.shape[2], inputs.heads, inputs.v.shape[3]), is_causal, scale,
        keys - queries if causal_offset is None else causal_offset, window, softcap, alibi_slopes, sinks, out)


def _rows(first_query, first_key):
    """(rows of queries, rows of keys) of each sequence, as slices."""
    return [tuple([slice(first[b], first[b + 1]) for first in (first_query, first_key)])
            for b in range(len(first_query) - 1)]


def _score_count(first_query, first_key):
    return int(np.dot(np.diff(first_query), np.diff(first_key)))


def _results(inputs, options, rows, return_lse, return_entropy, out):
    """(y, lse, entropy, y as a kernel takes it): y is a view of `out` if the kernel can write there; None: not asked
    for. rows: the dimensions of y before the heads, of which a packed y has one more than `out`."""
    in_place = (out is not None and kernel_ready(out, contiguous_rows=True)
                and no_overlap(out, inputs.q, inputs.k, inputs.v))
    shape, lse_shape = (*rows, inputs.heads, inputs.v.shape[3]), (rows[0], inputs.heads, rows[1])
    y = np.asarray(out).reshape(shape) if in_place else np.empty(shape, options.result_dtype)
    lse, entropy = (np.empty(lse_shape, options.statistics_dtype) if asked else None
                    for asked in (return_lse, return_entropy))
    return y, lse, entropy, y.swapaxes(1, 2)


def _compute(inputs, options, y, lse, entropy, scores, **layout):
    """Write y, lse and entropy with one call of a kernel; scores: how many a head has."""
    if 0 in y.shape[:-1] or (y.size == 0 and lse is entropy is None):
        return
    call = _not_empty(KernelCall(inputs.q, inputs.k, inputs.v, y, (), *_attention.kernel_options(inputs, options), lse,
                                 entropy))
    products = scores * inputs.heads * (inputs.head_dim + inputs.v.shape[3])
    _attention.call_kernel(inputs.tag, *call._replace(**layout), products=products)


def _not_empty(call):
    """The same call with a row of keys that no sequence has, if there are none, and with vectors of one zero instead of
    none."""
    if 0 in call.k.shape[:3]:
        k, v = (np.zeros((1, x.shape[1], 1, x.shape[3]), x.dtype) for x in (call.k, call.v))
        call = call._replace(k=k, v=v)
    return _attention.not_empty(call)


def _attend_sequence(qkv, options, b, to):
    """Writes (y, lse, entropy) of one sequence to the arrays `to`, heads first, of which the last two may be None."""
    found = _attention.attention(None, *qkv, *_options_of(options, b), True, True, None)
    for array, x in zip(to, found, strict=True):
        if array is not None:
            array[...] = x


def _options_of(options, b):
    """The arguments of `_attention`'s functions, from attn_mask to key_lengths, for sequence b."""
    slopes = None if options.alibi_slopes is None else options.alibi_slopes[b]
    return (None, options.is_causal, options.scale, True, None, options.causal_offset[b], options.window,
            options.softcap, slopes, options.sinks, None)


@default_fp_env
def varlen_attention_backward(grad_out, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, is_causal, scale,
                              enable_gqa, causal_offset, window, softcap, alibi_slopes, sinks, grad_lse, grad_scale,
                              grad_sinks, grad_slopes):
    """varlen_attention_backward."""
    query, key, value, heads, key_heads, first_query, first_key = _validate_packed.packed_inputs(
        query, key, value, cu_seqlens_q, cu_seqlens_k, enable_gqa)
    inputs = _heads_first(query[None], key[None], value[None], heads, key_heads)
    options = _packed_options(inputs, first_query, first_key, is_causal, scale, causal_offset, window, softcap,
                              alibi_slopes, sinks, None)
    forward = _validate.forward_results(inputs.q.dtype, (len(query), heads, value.shape[-1]), (heads, len(query)),
                                        grad_out, out, lse, grad_lse)
    wanted = _validate.wanted_gradients(options, scale, (grad_scale, False, False, grad_sinks, grad_slopes))
    rows = _rows(first_query, first_key)
    if _attention.needs_reference(inputs, options):
        found = _gradients_by_sequence(inputs, options, forward, wanted, rows)
    else:
        found = _gradients_from_kernel(inputs, options, forward, wanted, first_query, first_key)
    # (rows, heads, elements), heads not summed yet; then one number for each sequence and head
    gradients = [sum_to(dx, x.shape, native(x.dtype)) for dx, x in zip(found[:3], (query, key, value), strict=True)]
    slopes_shape = np.broadcast_shapes(np.shape(alibi_slopes), (heads,)) if wanted.slopes else None
    for dx, shape in zip(found[3:], ((heads,), (heads,), slopes_shape), strict=True):
        if dx is not None:
            gradients.append(sum_to(dx, shape, options.statistics_dtype))
    return tuple(gradients)


def _gradients_from_kernel(inputs, options, forward, wanted, first_query, first_key):
    """[dquery, dkey, dvalue, dscale, dsinks, dslopes]; None: not asked for. The heads of dkey and dvalue are those of
    `inputs`, and the last three have a row for each sequence."""
    statistics, count = options.statistics_dtype, len(first_query) - 1
    per_head = (count, inputs.heads)
    dq, dk, dv = (np.zeros(_heads_last(x).shape, statistics if x.strides[1] == 0 else x.dtype)
                  for x in (inputs.q, inputs.k, inputs.v))
    dscale, dsinks = (np.zeros(per_head, np.float64) if asked else None for asked in (wanted.scale, wanted.sinks))
    splits = _dispatch.kernels(inputs.tag).attention_grad_splits(int(np.diff(first_key).max(initial=0)))
    dslopes = np.zeros((*per_head, splits), np.float64) if wanted.slopes else None
    lse, grad_lse = (None if x is None else contiguous(x)[None] for x in (forward.lse, forward.grad_lse))
    if 0 not in inputs.out_shape[:-1]:
        call = _attention.not_empty_backward(BackwardCall(
            rows_ready(forward.grad_out).swapaxes(0, 1)[None], inputs.q, inputs.k, inputs.v,
            rows_ready(forward.out).swapaxes(0, 1)[None], lse, (), *_attention.kernel_options(inputs, options),
            grad_lse, *(dx.swapaxes(0, 1)[None] for dx in (dq, dk, dv)), np.empty(lse.shape, statistics), dscale, (),
            dsinks, dslopes))._replace(lengths=None)        # sequences without keys have none by first_key
        products = _score_count(first_query, first_key) * inputs.heads * (3 * inputs.head_dim + 2 * inputs.v.shape[3])
        _attention.call_backward_kernel(inputs.tag, call, first_query, first_key, products)
    return [dq, dk, dv, dscale, dsinks, None if dslopes is None else dslopes.sum(-1)]


def _heads_last(x):
    """An array (1, heads, rows, elements) as (rows, heads, elements)."""
    return x[0].swapaxes(0, 1)


def _gradients_by_sequence(inputs, options, forward, wanted, rows):
    """As `_gradients_from_kernel`."""
    statistics = options.statistics_dtype
    gradients = [np.zeros(_heads_last(x).shape, statistics) for x in (inputs.q, inputs.k, inputs.v)]
    extra = [np.zeros((len(rows), inputs.heads), statistics) if asked else None
             for asked in (wanted.scale, wanted.sinks, wanted.slopes)]
    grad_out, out = (x.swapaxes(0, 1) for x in (forward.grad_out, forward.out))
    for b, (q, k) in enumerate(rows):
        found = _attention.attention_backward(
            None, grad_out[:, q], inputs.q[0, :, q], inputs.k[0, :, k], inputs.v[0, :, k], out[:, q], forward.lse[:, q],
            *_options_of(options, b), None if forward.grad_lse is None else forward.grad_lse[:, q], wanted)
        for dx, at, x in zip(gradients, (q, k, k), found[:3], strict=True):
            dx[at] = x.swapaxes(0, 1)
        of_sequence = iter(found[3:])
        for dx in extra:
            if dx is not None:
                dx[b] = next(of_sequence)
    return [*gradients, *extra]
