"""Attention and its gradients: the definition. The scores, (..., Hq, L, S), are stored.

The forward pass goes: product, scale, cap, bias, mask, ALiBi, hide, sink, softmax, average. The backward pass goes
through the same steps in reverse; both take the scores from `_scores`.

Error. float16, bfloat16 and float32 are computed in float64 and rounded once; float64 is computed in float64: pass
``np.longdouble`` for an oracle of float64.
"""

from typing import NamedTuple

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
    q, k, v = _prepare(query, key, value, enable_gqa)
    result, wide = query.dtype, q.dtype
    scores = _with_sink(_scores(q, k, attn_mask, is_causal, scale, bias, causal_offset, window, softcap, alibi_slopes,
                                key_lengths).hidden, sinks)
    visible = scores != -np.inf  # -inf hides, wherever it comes from
    weights = softmax(scores, -1, where=visible)[..., :-1]
    results = [_round(_average(weights, visible[..., :-1], v), result)]
    statistics = _statistics(result, wide)
    if return_lse:
        results.append(_round(_like_rows(logsumexp(scores, -1, where=visible), results[0]), statistics))
    if return_entropy:
        results.append(_round(_like_rows(softmax_entropy(scores, -1, where=visible), results[0]), statistics))
    if max(query.ndim, key.ndim, value.ndim) == 2:
        results = [x[0] for x in results]
    return results[0] if len(results) == 1 else tuple(results)


@np.errstate(all="ignore")
def scaled_dot_product_attention_backward(
        grad_out, query, key, value, out, lse, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
        enable_gqa=False, *, bias=None, causal_offset=0, window=None, softcap=None, alibi_slopes=None, sinks=None,
        key_lengths=None, grad_lse=None, grad_scale=False, grad_mask=False, grad_bias=False, grad_sinks=False,
        grad_slopes=False):
    """Gradients of `scaled_dot_product_attention` for its inputs, from those for its results.

    W are the weights, S the scores; dX is the gradient for X. The steps of both passes are [1]_ [2]_::

        out = W @ V             dV = W.T @ dOut,  dW = dOut @ V.T
        W = softmax(S)          dS = W * (dW - rowsum(W * dW)) + W * dLse = W * (dW - D),
                                D = rowsum(dOut * out) - dLse, since rowsum(W * dW) = rowsum(dOut * (W @ V))
        S = C + bias + mask - slope * distance
                                dBias = dMask = dC = dS,  dSlope = -sum(dS * distance)
        C = cap(scale * P)      dP = dC * cap'(scale * P) * scale,  dScale = sum(dC * cap'(scale * P) * P)
        P = Q @ K.T             dQ = dP @ K,  dK = dP.T @ Q

    Parameters
    ----------
    grad_out : array_like, (..., Hq, L, Ev)
        Gradient for out.
    query, key, value : array_like, (..., Hq, L, E), (..., Hk, S, E) and (..., Hk, S, Ev)
        As they were given to the forward function, as are all its options, by the same names.
    out, lse : array_like, (..., Hq, L, Ev) and (..., Hq, L)
        The results of the forward function. If they are merged from parts of the keys, `merge_attention_states`, a call
        with the keys of one part gives the gradients for these keys.
    grad_lse : array_like, (..., Hq, L), optional
        Gradient for lse.
    grad_scale, grad_mask, grad_bias, grad_sinks, grad_slopes : bool
        Which further gradients to return.

    Returns
    -------
    dquery, dkey, dvalue
        Shapes and dtypes of the inputs; broadcast dimensions and the query heads of a shared key head are summed.
    dscale : (Hq,), dmask, dbias : as their inputs, dsinks : (Hq,), dslopes : (Hq,) or (..., Hq)
        As asked for, in this order. dscale, dsinks and dslopes are float32, float64 for float64 inputs.

    Notes
    -----
    Hidden keys and values get 0 and are not read. A query that sees no key gives 0, whatever it and its grad_out hold;
    its sink, the only outcome, has the gradient for its lse. A row of which lse or out is NaN gives NaN. A visible
    query or key that is not finite gives NaN.

    References
    ----------
    .. [1] T. Dao, D. Y. Fu, S. Ermon, A. Rudra and C. Ré, "FlashAttention: fast and memory-efficient exact attention
       with IO-awareness", NeurIPS 2022, arXiv:2205.14135, appendix B.
    .. [2] T. Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning",
       arXiv:2307.08691 (2023).

    Examples
    --------
    >>> import numpy as np
    >>> query, key, value = np.zeros((1, 2)), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0], [3.0]])
    >>> out, lse = scaled_dot_product_attention(query, key, value, scale=1.0, return_lse=True)
    >>> dquery, dkey, dvalue = scaled_dot_product_attention_backward(
    ...     np.ones((1, 1)), query, key, value, out, lse, scale=1.0)
    >>> dquery, dvalue  # more of the second key raises the result
    (array([[-0.5,  0.5]]), array([[0.5],
           [0.5]]))
    """
    query, key, value = (np.asarray(x) for x in (query, key, value))
    q, k, v = _prepare(query, key, value, enable_gqa)
    dtype, wide = query.dtype, q.dtype
    statistics = _statistics(dtype, wide)
    one_head = max(query.ndim, key.ndim, value.ndim) == 2
    do, out, lse, dlse = (np.asarray(x).astype(wide)[(None,) * one_head]
                          for x in (grad_out, out, lse, np.zeros_like(lse) if grad_lse is None else grad_lse))

    # Recompute the weights, (..., Hq, L, S + 1) with the sink, from the scores and lse.
    s = _scores(q, k, attn_mask, is_causal, scale, bias, causal_offset, window, softcap, alibi_slopes, key_lengths)
    scores = _with_sink(s.hidden, sinks)
    outcomes = scores != -np.inf
    visible = outcomes[..., :-1]  # without the sink
    lse = np.where(lse == np.inf, np.nan, lse)  # a score of +inf: the row's result is NaN
    weights = np.where(outcomes, np.exp(scores - lse[..., None]), 0)

    # Backward through the average: out = weights @ v.
    dv = _average(weights[..., :-1].swapaxes(-1, -2), visible.swapaxes(-1, -2), do)
    dweights = _with_column(do @ v.swapaxes(-1, -2), 0)  # a sink has no value

    # Backward through the softmax, and lse = logsumexp(scores). Without a key, out is 0, and grad_out is not read.
    reads = visible.any(-1, keepdims=True) | (out != 0)
    delta = np.where(reads, do * out, 0).sum(-1) - dlse
    dscores = np.where(outcomes, weights * (dweights - delta[..., None]), 0)
    dscores, dsink = dscores[..., :-1], dscores[..., -1]

    # Backward through scale and cap: scores = cap(scale * product) + ...
    dscaled = np.where(visible, dscores * s.cap_derivative, 0)
    dproduct = dscaled * s.scale

    # Backward through the product: product = q @ k.T.
    dq = _sum_of_visible(dproduct, visible, k)
    dk = _sum_of_visible(dproduct.swapaxes(-1, -2), visible.swapaxes(-1, -2), q)
    if enable_gqa:
        dk, dv = (_for_each_key_head(dx, x) for dx, x in ((dk, key), (dv, value)))
    results = [_round(_sum_to(dx, x.shape), x.dtype) for dx, x in ((dq, query), (dk, key), (dv, value))]

    heads = dscores.shape[-3:-2]
    if grad_scale:
        dscale = np.where(visible, dscaled * s.product, 0).sum((-1, -2))
        results.append(_round(_sum_to(dscale, heads), statistics))
    for wanted, term in ((grad_mask, attn_mask), (grad_bias, bias)):
        if wanted:
            term = np.asarray(term)
            length = term.shape[-1] if term.ndim and term.shape[-1] != 1 else None  # a mask may end early
            results.append(_round(_sum_to(dscores[..., :length], term.shape), term.dtype))
    if grad_sinks:
        results.append(_round(_sum_to(dsink.sum(-1), heads), statistics))
    if grad_slopes:
        dslopes = -(dscores * abs(s.distance)).sum((-1, -2))
        results.append(_round(_sum_to(dslopes, np.broadcast_shapes(np.shape(alibi_slopes), heads)), statistics))
    return tuple(results)


@np.errstate(all="ignore")
def merge_attention_states(outputs, lses, *, axis=0):
    """Attention over all keys from attention over disjoint sets of them: ``(out, lse)``.

    `outputs` and `lses` are sequences of what `scaled_dot_product_attention` returned, ``(..., L, Ev)`` and
    ``(..., L)``. Each output weighs as much as the sum of exponentials that it was divided by; one with an lse of
    -inf has seen nothing and counts for nothing, whatever it holds. Or they are one array each, in which the parts are
    stacked along `axis`, which counts each array's own dimensions.

    >>> import numpy as np
    >>> out, lse = merge_attention_states([[[1.0]], [[4.0]]], [[np.log(2)], [np.log(1)]])
    >>> out.round(3), np.exp(lse).round(3)
    (array([[2.]]), array([3.]))
    """
    outputs, lses = (np.moveaxis(np.asarray(x if hasattr(x, "dtype") else list(x)), axis, 0) for x in (outputs, lses))
    wide = np.result_type(outputs.dtype, np.float64)
    seen = lses != -np.inf
    weights = softmax(lses.astype(wide), 0, where=seen)
    out = np.where(seen[..., None], weights[..., None] * outputs.astype(wide), 0).sum(0)
    statistics = np.dtype(np.float32) if outputs.dtype.itemsize < 8 else wide
    return _round(out, outputs.dtype), _round(logsumexp(lses.astype(wide), 0), statistics)


def _prepare(query, key, value, enable_gqa):
    """``q (..., Hq, L, E)``, ``k`` and ``v (..., Hq or 1, S, E)`` in the precision of the computation, with heads."""
    wide = np.result_type(query.dtype, np.float64)
    q, k, v = (x.astype(wide)[(None,) * (3 - x.ndim)] for x in (query, key, value))
    if enable_gqa:
        k, v = (_for_each_query_head(x, q.shape[-3]) for x in (k, v))
    return q, k, v


class _Scores(NamedTuple):
    """The scores of ``(..., Hq, L, S)`` and the parts that the backward pass needs."""

    hidden: np.ndarray  # the scores; -inf where hidden
    product: np.ndarray  # query @ key.T
    scale: np.ndarray  # as it broadcasts with product
    cap_derivative: np.ndarray | int  # of cap(x) at x = scale * product
    distance: np.ndarray  # i + causal_offset - j: how far key j lies before query i; below 0 it is in the future


def _scores(q, k, attn_mask, is_causal, scale, bias, causal_offset, window, softcap, alibi_slopes, key_lengths):
    """The scores of queries ``(..., Hq, L, E)`` for keys ``(..., Hq, S, E)``: scaled, capped, biased, then hidden."""
    wide, (queries, width), keys = q.dtype, q.shape[-2:], k.shape[-2]
    if scale is None or width == 0:
        scale = 1 / np.sqrt(wide.type(max(width, 1)))
    scale, product = _per_row(scale, wide), q @ k.swapaxes(-1, -2)
    scores, cap_derivative = scale * product, 1
    if softcap is not None:
        cap_derivative = 1 / np.cosh(scores / softcap) ** 2  # 1 - tanh**2 without its cancellation
        scores = softcap * np.tanh(scores / softcap)

    visible = np.True_
    for term in (_as_long_as(np.asarray(x), keys) for x in (bias, attn_mask) if x is not None):
        if term.dtype == bool:
            visible = visible & term
        else:
            scores = _finite_sum(scores, _finite(term, wide))
            visible = visible & (term != -np.inf)  # also where the score is NaN or +inf

    key_position = np.arange(keys)
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
    return _Scores(np.where(visible, scores, -np.inf), product, scale, cap_derivative, distance)


def _with_sink(scores, sinks):
    """One more column: a sink is one more outcome, without a value.

    Without sinks it is hidden. It is there all the same, so that no row is empty, even of no keys.
    """
    return _with_column(scores, -np.inf if sinks is None else _per_row(sinks, scores.dtype))


def _with_column(x, column):
    column = np.asarray(column, x.dtype)
    lead = np.broadcast_shapes(x.shape[:-1], column.shape[:-1])  # sinks have the heads, which values alone may have
    return np.concatenate([np.broadcast_to(part, (*lead, n)) for part, n in ((x, x.shape[-1]), (column, 1))], -1)


def _statistics(dtype, wide):
    """The dtype of lse, entropy and the gradients of numbers of a head."""
    return np.dtype(np.float32) if dtype.itemsize < 8 else wide


def _for_each_query_head(x, heads):
    """Keys or values ``(..., Hk, S, E)`` as ``(..., Hq, S, E)``; query head h reads head ``h // (Hq // Hk)``."""
    own = x.shape[-3]
    return np.repeat(x, heads // own, -3) if 1 < own < heads else x


def _for_each_key_head(dx, x):
    """The reverse for the gradient of x: the sums over the query heads that share a key head."""
    own, heads = (1, *x.shape)[-3], dx.shape[-3]
    return dx.reshape(*dx.shape[:-3], own, heads // own, *dx.shape[-2:]).sum(-3) if 1 < own < heads else dx


def _sum_to(dx, shape):
    """The gradient of an array of this shape, which was broadcast: sums over the dimensions that it had not."""
    dx = dx.sum(tuple(range(dx.ndim - len(shape))))
    return dx.sum(tuple(i for i, size in enumerate(shape) if size == 1), keepdims=True)


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


def _sum_of_visible(a, visible, b):
    """``a @ b``, in which a row of b that is not finite gives NaN to those who see it, and nothing to others."""
    special = ~np.isfinite(b)
    return np.where(visible @ special, np.nan, a @ np.where(special, 0, b))


def _like_rows(numbers, out):
    """One number for each row, where the values alone had some of the batch's dimensions."""
    return np.broadcast_to(numbers, out.shape[:-1])
