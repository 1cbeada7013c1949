"""Attention: the definition. The scores, (..., Hq, L, S), are stored.

Error. float16, bfloat16 and float32 are computed in float64 and rounded once; float64 is computed in float64: pass
``np.longdouble`` for an oracle of float64.
"""

import numpy as np

from fastsoftmax.reference.softmax import _round, logsumexp, softmax, softmax_entropy


@np.errstate(all="ignore")
def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                                 enable_gqa=False, *, bias=None, causal_offset=0, window=None, softcap=None,
                                 alibi_slopes=None, sinks=None, key_lengths=None, return_lse=False,
                                 return_entropy=False):
    """``softmax(scale * query @ key.T) @ value``, each query over the keys that it may see.

    query is ``(..., Hq, L, E)``, key ``(..., Hk, S, E)``, value ``(..., Hk, S, Ev)``, the result ``(..., Hq, L, Ev)``.
    Scores are scaled, capped, biased, then hidden: what is hidden counts for nothing, whatever it holds. A query that
    sees nothing gives zeros. See `fastsoftmax.scaled_dot_product_attention` for the parameters; `dropout_p` is 0.

    >>> import numpy as np
    >>> query, key, value = np.zeros((2, 4)), np.zeros((3, 4)), np.array([[1.0], [2.0], [6.0]])
    >>> scaled_dot_product_attention(query, key, value, causal_offset=1, is_causal=True)  # sees 2 keys, then 3
    array([[1.5],
           [3. ]])
    """
    query, key, value = (np.asarray(x) for x in (query, key, value))
    result, wide = query.dtype, np.result_type(query.dtype, np.float64)
    one_head = max(query.ndim, key.ndim, value.ndim) == 2
    q, k, v = (x.astype(wide)[(None,) * (3 - x.ndim)] for x in (query, key, value))
    if enable_gqa:
        k, v = (_for_each_query_head(x, q.shape[-3]) for x in (k, v))
    (queries, width), keys = q.shape[-2:], k.shape[-2]

    if scale is None or width == 0:
        scale = 1 / np.sqrt(wide.type(max(width, 1)))
    scores = _per_row(scale, wide) * (q @ k.swapaxes(-1, -2))
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    visible = np.True_
    for term in (_as_long_as(np.asarray(x), keys) for x in (bias, attn_mask) if x is not None):
        if term.dtype == bool:
            visible = visible & term
        else:
            scores = _finite_sum(scores, _finite(term, wide))
            visible = visible & (term != -np.inf)  # also where the score is NaN or +inf

    key_position = np.arange(keys)
    # How far key j lies before the place of query i: below 0 it is in the future.
    distance = np.arange(queries)[:, None] + _per_head(causal_offset) - key_position
    if alibi_slopes is not None:
        scores = _finite_sum(scores, _finite_product(-_per_row(alibi_slopes, wide), abs(distance)))
    left, right = window or (None, None)
    if is_causal:
        visible = visible & (distance >= 0)
    if left is not None:
        visible = visible & (distance <= left)
    if right is not None:
        visible = visible & (distance >= -right)
    if key_lengths is not None:
        visible = visible & (key_position < _per_head(key_lengths))
    scores = np.where(visible, scores, -np.inf)

    # A sink is one more outcome, without a value. Without sinks it is hidden, and no row is empty, even of no keys.
    sink = np.broadcast_to(-np.inf if sinks is None else _per_row(sinks, wide), (*scores.shape[:-1], 1))
    scores = np.concatenate([scores, sink], -1)
    visible = scores != -np.inf  # -inf hides, wherever it comes from
    weights = softmax(scores, -1, where=visible)[..., :-1]
    results = [_round(_average(weights, visible[..., :-1], v), result)]
    statistics = np.dtype(np.float32) if result.itemsize < 8 else wide
    if return_lse:
        results.append(_round(_like_rows(logsumexp(scores, -1, where=visible), results[0]), statistics))
    if return_entropy:
        results.append(_round(_like_rows(softmax_entropy(scores, -1, where=visible), results[0]), statistics))
    if one_head:
        results = [x[0] for x in results]
    return results[0] if len(results) == 1 else tuple(results)


@np.errstate(all="ignore")
def merge_attention_states(outputs, lses):
    """Attention over all keys from attention over disjoint sets of them: ``(out, lse)``.

    `outputs` and `lses` are sequences of what `scaled_dot_product_attention` returned, ``(..., L, Ev)`` and
    ``(..., L)``. Each output weighs as much as the sum of exponentials that it was divided by; one with an lse of
    -inf has seen nothing and counts for nothing, whatever it holds.

    >>> import numpy as np
    >>> out, lse = merge_attention_states([[[1.0]], [[4.0]]], [[np.log(2)], [np.log(1)]])
    >>> out.round(3), np.exp(lse).round(3)
    (array([[2.]]), array([3.]))
    """
    outputs, lses = np.stack([np.asarray(x) for x in outputs]), np.stack([np.asarray(x) for x in lses])
    wide = np.result_type(outputs.dtype, np.float64)
    seen = lses != -np.inf
    weights = softmax(lses.astype(wide), 0, where=seen)
    out = np.where(seen[..., None], weights[..., None] * outputs.astype(wide), 0).sum(0)
    statistics = np.dtype(np.float32) if outputs.dtype.itemsize < 8 else wide
    return _round(out, outputs.dtype), _round(logsumexp(lses.astype(wide), 0), statistics)


def _for_each_query_head(x, heads):
    """Keys or values ``(..., Hk, S, E)`` as ``(..., Hq, S, E)``; query head h reads head ``h // (Hq // Hk)``."""
    own = x.shape[-3]
    return np.repeat(x, heads // own, -3) if 1 < own < heads else x


def _per_head(numbers):
    """One number, or one for each batch entry, as it broadcasts with scores ``(..., Hq, L, S)``."""
    return np.asarray(numbers)[..., None, None, None]


def _per_row(numbers, dtype):
    """One number, or one for each head, ``(..., Hq)``, as it broadcasts with scores ``(..., Hq, L, S)``."""
    return _finite(np.asarray(numbers), dtype)[..., None, None]


def _finite(x, dtype):
    """In a dtype that may be narrower: what is finite saturates, since an infinity hides, or makes NaN."""
    return _saturated(x.astype(dtype), np.isfinite(x))


def _finite_sum(a, b):
    return _saturated(a + b, np.isfinite(a) & np.isfinite(b))


def _finite_product(a, b):
    return _saturated(a * b, np.isfinite(a) & np.isfinite(b))


def _saturated(x, finite):
    return np.where(np.isinf(x) & finite, np.copysign(np.finfo(x.dtype).max, x), x)


def _as_long_as(term, keys):
    """A mask that ends before the keys do, where `key_lengths` hides the rest."""
    if term.ndim == 0 or term.shape[-1] in (1, keys):
        return term
    return np.concatenate([term, np.zeros((*term.shape[:-1], keys - term.shape[-1]), term.dtype)], -1)


def _average(weights, visible, v):
    """``weights @ v``, in which a value that is not finite reaches only those who see it: 0 * NaN would be NaN."""
    out = weights @ np.where(np.isfinite(v), v, 0)
    for special, places in ((np.inf, v == np.inf), (-np.inf, v == -np.inf), (np.nan, np.isnan(v))):
        if places.any():
            out = out + np.where(visible @ places, special, 0)
    return out


def _like_rows(numbers, out):
    """One number for each row, where the values alone had some of the batch's dimensions."""
    return np.broadcast_to(numbers, out.shape[:-1])
