"""Attention over packed sequences and over caches in pages: the definition, one call of attention for each sequence."""

import numpy as np

from fastsoftmax.reference.attention import scaled_dot_product_attention, scaled_dot_product_attention_backward


def varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k=None, *, causal_offset=None, alibi_slopes=None,
                     out=None, **options):
    """Attention of sequences that stand one after another; see `fastsoftmax.varlen_attention` for the parameters.

    query is ``(total_q, Hq, E)``, key and value are ``(total_k, Hk, ...)``; sequence b has the rows ``cu_seqlens[b]``
    to ``cu_seqlens[b + 1]``. The result is ``(total_q, Hq, Ev)``, lse and entropy are ``(Hq, total_q)``.

    >>> import numpy as np
    >>> value = np.array([1.0, 3.0, 5.0]).reshape(3, 1, 1)
    >>> varlen_attention(np.zeros((3, 1, 1)), np.zeros((3, 1, 1)), value, [0, 1, 3]).ravel()  # lengths 1 and 2
    array([1., 4., 4.])
    """
    results = [
        scaled_dot_product_attention(*(x[rows].swapaxes(0, 1) for x, rows in ((query, q), (key, k), (value, k))),
                                     **options, **of_sequence)
        for q, k, of_sequence in _sequences(query, cu_seqlens_q, cu_seqlens_k, causal_offset, alibi_slopes)]
    results = [x if isinstance(x, tuple) else (x,) for x in results]
    packed = [np.concatenate(parts, 1) for parts in zip(*results, strict=True)]
    packed[0] = packed[0].swapaxes(0, 1)
    return packed[0] if len(packed) == 1 else tuple(packed)


def varlen_attention_backward(grad_out, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k=None, *,
                              causal_offset=None, alibi_slopes=None, grad_lse=None, **options):
    """Gradients of `varlen_attention`: those of each sequence; what sequences share has the sum of theirs.

    See `fastsoftmax.varlen_attention_backward` for the parameters and the order of the results.

    >>> import numpy as np
    >>> zeros, value, grad_out = np.zeros((3, 1, 1)), np.ones((3, 1, 1)), np.array([1.0, 2.0, 4.0]).reshape(3, 1, 1)
    >>> out, lse = varlen_attention(zeros, zeros, value, [0, 1, 3], return_lse=True)
    >>> _, _, dvalue = varlen_attention_backward(grad_out, zeros, zeros, value, out, lse, [0, 1, 3])
    >>> dvalue.ravel()  # of two keys, each has half of every weight
    array([1., 3., 3.])
    """
    gradients = [np.zeros(x.shape, x.dtype) for x in (query, key, value)]
    shared = []
    for q, k, of_sequence in _sequences(query, cu_seqlens_q, cu_seqlens_k, causal_offset, alibi_slopes):
        found = scaled_dot_product_attention_backward(
            *(x[rows].swapaxes(0, 1) for x, rows in ((grad_out, q), (query, q), (key, k), (value, k), (out, q))),
            lse[:, q], grad_lse=None if grad_lse is None else grad_lse[:, q], **options, **of_sequence)
        for gradient, rows, dx in zip(gradients, (q, k, k), found[:3], strict=True):
            gradient[rows] = dx.swapaxes(0, 1)
        shared.append(found[3:])
    extra = [np.sum(parts, 0) for parts in zip(*shared, strict=True)]
    if options.get("grad_slopes") and shared and np.ndim(alibi_slopes) == 2 and len(alibi_slopes) > 1:
        extra[-1] = np.stack([found[-1] for found in shared])
    return (*gradients, *extra)


def paged_attention(query, key_cache, value_cache, block_table, key_lengths, *, is_causal=True, causal_offset=None,
                    alibi_slopes=None, out=None, **options):
    """Attention over caches in pages; see `fastsoftmax.paged_attention` for the parameters.

    query is ``(B, L, Hq, E)``, caches are ``(pages, page_size, Hk, E or Ev)``. Key j of sequence b is row
    ``j % page_size`` of page ``block_table[b, j // page_size]``. The result is ``(B, L, Hq, Ev)``, lse and entropy are
    ``(B, Hq, L)``.

    >>> import numpy as np
    >>> pages = np.array([7.0, 1.0, 3.0, 5.0]).reshape(2, 2, 1, 1)  # two pages of two keys
    >>> paged_attention(np.zeros((1, 1, 1, 1)), np.zeros((2, 2, 1, 1)), pages, [[1, 0]], [3]).item()  # 3, 5 and 7
    5.0
    """
    size, length = key_cache.shape[1], query.shape[1]
    results = []
    for b, keys in enumerate(key_lengths):
        j = np.arange(keys)
        at = np.asarray(block_table, np.int64)[b, j // size], j % size
        offset = keys - length if causal_offset is None else np.broadcast_to(causal_offset, len(key_lengths))[b]
        slopes = _of_sequence(alibi_slopes, len(key_lengths), b)
        found = scaled_dot_product_attention(
            *(x.swapaxes(0, 1) for x in (query[b], key_cache[at], value_cache[at])), is_causal=is_causal,
            causal_offset=int(offset), alibi_slopes=slopes, **options)
        results.append(found if isinstance(found, tuple) else (found,))
    stacked = [np.stack(parts) for parts in zip(*results, strict=True)]
    stacked[0] = stacked[0].swapaxes(1, 2)
    return stacked[0] if len(stacked) == 1 else tuple(stacked)


def _sequences(query, cu_seqlens_q, cu_seqlens_k, causal_offset, alibi_slopes):
    """(rows of queries, rows of keys, options) of each sequence."""
    first_query = [int(row) for row in cu_seqlens_q]
    first_key = first_query if cu_seqlens_k is None else [int(row) for row in cu_seqlens_k]
    count = len(first_query) - 1
    for b in range(count):
        q, k = slice(*first_query[b:b + 2]), slice(*first_key[b:b + 2])
        own = (k.stop - k.start) - (q.stop - q.start)
        offset = own if causal_offset is None else int(np.broadcast_to(causal_offset, count)[b])
        yield q, k, {"causal_offset": offset, "alibi_slopes": _of_sequence(alibi_slopes, count, b)}


def _of_sequence(alibi_slopes, count, b):
    """The slopes, (Hq,) or (B, Hq), of one sequence."""
    if np.ndim(alibi_slopes) < 2:
        return alibi_slopes
    return np.broadcast_to(alibi_slopes, (count, np.shape(alibi_slopes)[-1]))[b]
