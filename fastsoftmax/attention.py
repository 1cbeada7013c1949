"""Attention: scaled_dot_product_attention and its gradients, merge_attention_states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, SupportsIndex, TypedDict, Unpack, overload

from numpy.typing import ArrayLike

from fastsoftmax import _attention, _fastpath, _validate
from fastsoftmax._typing import Array, Window, signature_without_dim


class _Options(TypedDict, total=False):
    """The keyword arguments that do not change what is returned."""

    bias: ArrayLike | None
    causal_offset: ArrayLike
    window: Window | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    key_lengths: ArrayLike | None
    out: Array | None


@overload
def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, attn_mask: ArrayLike | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: ArrayLike | None = None, enable_gqa: bool = False, *,
    return_lse: Literal[False] = False, return_entropy: Literal[False] = False, **options: Unpack[_Options],
) -> Array: ...
@overload
def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, attn_mask: ArrayLike | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: ArrayLike | None = None, enable_gqa: bool = False, *,
    return_lse: Literal[True], return_entropy: Literal[False] = False, **options: Unpack[_Options],
) -> tuple[Array, Array]: ...
@overload
def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, attn_mask: ArrayLike | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: ArrayLike | None = None, enable_gqa: bool = False, *,
    return_lse: Literal[False] = False, return_entropy: Literal[True], **options: Unpack[_Options],
) -> tuple[Array, Array]: ...
@overload
def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, attn_mask: ArrayLike | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: ArrayLike | None = None, enable_gqa: bool = False, *,
    return_lse: Literal[True], return_entropy: Literal[True], **options: Unpack[_Options],
) -> tuple[Array, Array, Array]: ...
@overload
def scaled_dot_product_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, attn_mask: ArrayLike | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: ArrayLike | None = None, enable_gqa: bool = False, *,
    return_lse: bool = False, return_entropy: bool = False, **options: Unpack[_Options],
) -> Any: ...
def scaled_dot_product_attention(
        query: ArrayLike, key: ArrayLike, value: ArrayLike, attn_mask: ArrayLike | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: ArrayLike | None = None, enable_gqa: bool = False, *,
        bias: ArrayLike | None = None, causal_offset: ArrayLike = 0, window: Window | None = None,
        softcap: float | None = None, alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
        key_lengths: ArrayLike | None = None, return_lse: bool = False, return_entropy: bool = False,
        out: Array | None = None) -> Any:
    """Averages of values, weighted by the softmax of scores: ``softmax(scale * query @ key.T) @ value``.

    Takes the arguments of `torch.nn.functional.scaled_dot_product_attention`; the keyword-only ones are options that
    models need beside them. The L x S scores and weights are never stored.

    ::

        is_causal=True: key j is visible (x) to query i where j <= i + causal_offset

        causal_offset=0          causal_offset=S-L        causal_offset=S-L, window=(1, 0)
        torch's, top left        a cache, bottom right    also i + causal_offset - j <= 1
        i\\j 0 1 2 3 4            i\\j 0 1 2 3 4            i\\j 0 1 2 3 4
        0   x . . . .            0   x x x . .            0   . x x . .
        1   x x . . .            1   x x x x .            1   . . x x .
        2   x x x . .            2   x x x x x            2   . . . x x

    Parameters
    ----------
    query : array_like, (..., Hq, L, E)
        float16, bfloat16, float32 or float64 (16-bit types are computed in float32); long double goes through
        `fastsoftmax.reference`, which stores the scores. Two dimensions are one head, (L, E).
    key : array_like, (..., Hk, S, E)
        Of the dtype of query; or float16 or bfloat16 beside a float32 query, as a cache of half the size, which is
        converted block by block. All dimensions before the heads broadcast, and so do the heads if one side has one.
        Any strides: ``x.swapaxes(-2, -3)`` of a (B, S, H, E) array costs no copy. Only an array whose last dimension is
        not contiguous, or whose byte order is not native, is copied.
    value : array_like, (..., Hk, S, Ev)
        Of the dtype of key.
    attn_mask : array_like of bool or floats, optional
        Broadcasts to (..., Hq, L, S). Booleans: True is visible. Floats are added to the scaled scores; -inf hides.
        If key_lengths hides the keys after its end, it may be shorter than S in the last dimension.
    dropout_p : float, default 0.0
        Must be 0; only for compatibility with torch.
    is_causal : bool, default False
        Hide the keys after the query's own position, see above. Combines with attn_mask: a key must be visible in both.
    scale : float or array_like, (Hq,), default ``1 / sqrt(E)``
        Factor of the scores, or one for each query head.
    enable_gqa : bool, default False
        Grouped heads: Hq may be a multiple of Hk; query head h reads key head ``h // (Hq // Hk)`` [5]_.
    bias : array_like of floats, optional
        Added to the scaled scores, as a floating attn_mask is, and in addition to attn_mask. May end early, as that
        may.
    causal_offset : int or array_like of ints, default 0
        The position of query 0 among the keys, for is_causal, window and alibi_slopes; an array broadcasts to the
        dimensions before the heads. The unit is keys.
    window : (int or None, int or None), optional
        (left, right): visible is ``i + causal_offset - left <= j <= i + causal_offset + right``; None: no limit.
        The unit is keys; not negative.
    softcap : float, optional
        Positive and finite: scores become ``softcap * tanh(scores / softcap)``, before anything is added [6]_.
    alibi_slopes : array_like, (Hq,) or (..., Hq)
        Subtracts ``slope * abs(i + causal_offset - j)`` [7]_. Per key of distance.
    sinks : array_like, (Hq,)
        A logit for each head that counts in the normalisation and has no value [8]_.
    key_lengths : array_like of ints, optional
        Broadcasts to the dimensions before the heads: only so many keys, the first ones, exist. From 0 to S.
    return_lse : bool, default False
        Also return the logsumexp of each query's scores, natural logarithm.
    return_entropy : bool, default False
        Also return the Shannon entropy of each query's weights, in nats.
    out : ndarray, (..., Hq, L, Ev), optional
        The array to write the result to; of the dtype of query, or float32 for 16-bit queries, so that pieces can be
        merged without rounding twice; any strides. May overlap the inputs, at the cost of memory for a second result.

    Returns
    -------
    ndarray, (..., Hq, L, Ev)
        Of the dtype of query; `out`, if given. Zeros for a query that sees no key; NaN for one that sees NaN.
    lse : ndarray, (..., Hq, L)
        With return_lse. float64 for float64, else float32; -inf for a query that sees no key. Includes the sink.
    entropy : ndarray, (..., Hq, L)
        With return_entropy, the last of the tuple. Of the dtype of lse; 0 for a query that sees no key. A sink is an
        outcome.

    Raises
    ------
    TypeError
        If query, key and value are not floating, or of dtypes that do not go together, or are masked arrays, or
        another argument has the wrong type.
    ValueError
        If shapes do not fit, softcap is not positive and finite, a window is negative, a length is not in 0..S, or out
        has the wrong shape or is read-only.
    NotImplementedError
        If dropout_p is not 0.

    See Also
    --------
    merge_attention_states : attention over a cache of keys in pieces.
    scaled_dot_product_attention_backward : gradients with respect to all inputs.
    causal_softmax : weights of scores that are stored.

    Notes
    -----
    Order: scale, softcap, add bias, attn_mask and ALiBi, then hide. A hidden key has no effect, even if key or value
    holds NaN or infinity there. Method: blocks of keys with a running maximum and sum [1]_ [2]_; blocks that are hidden
    are skipped; few queries on many keys are split among threads by keys and merged by their lse [3]_ [4]_. The same
    bits for any number of threads. Beyond the result, each thread needs memory for a few blocks; but if a scale is
    beyond 1e30 (float64: 1e200), or a softcap outside 1e-30..1e30, the scores are stored.

    Finite numbers in a mask, bias, scale, sink or slope stay finite: those beyond the range of the arithmetic (float64
    for float64, else float32) become its largest number, and so do their sums with a score. Limits: a product of query
    and key beyond that range is infinite, and a score of -inf is hidden (for query 1e20 and keys -1e20 and -2e20 in
    float32 the result is 0). Values within a factor S of the largest number may sum to infinity, though their average
    is finite (two equal keys with values of 3e38).

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867 (2018).
    .. [2] T. Dao, D. Y. Fu, S. Ermon, A. Rudra and C. Ré, "FlashAttention: fast and memory-efficient exact attention
       with IO-awareness", NeurIPS 2022, arXiv:2205.14135.
    .. [3] T. Dao, D. Haziza, F. Massa and G. Sizov, "Flash-Decoding for long-context inference" (2023).
    .. [4] M. N. Rabe and C. Staats, "Self-attention does not need O(n^2) memory", arXiv:2112.05682 (2021).
    .. [5] N. Shazeer, "Fast transformer decoding: one write-head is all you need", arXiv:1911.02150 (2019); J. Ainslie
       et al., "GQA: training generalized multi-query transformer models from multi-head checkpoints",
       arXiv:2305.13245 (2023).
    .. [6] Gemma Team, "Gemma 2: improving open language models at a practical size", arXiv:2408.00118 (2024).
    .. [7] O. Press, N. A. Smith and M. Lewis, "Train short, test long: attention with linear biases enables input
       length extrapolation", ICLR 2022, arXiv:2108.12409.
    .. [8] G. Xiao, Y. Tian, B. Chen, S. Han and M. Lewis, "Efficient streaming language models with attention sinks",
       ICLR 2024, arXiv:2309.17453 (2023).

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import scaled_dot_product_attention
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> key = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> value = np.array([[10.0], [20.0], [30.0]])
    >>> scaled_dot_product_attention(query, key, value).round(3)
    array([[20.   ],
           [22.033]])

    Causal, with the last query on the last key, and the entropy of each query's weights:

    >>> out, entropy = scaled_dot_product_attention(
    ...     query, key, value, is_causal=True, causal_offset=1, return_entropy=True)
    >>> out.round(3)
    array([[13.302],
           [22.033]])
    >>> entropy.round(3)
    array([0.634, 1.053])

    Eight query heads that share two key heads, in the layout (batch, position, head, E):

    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.normal(size=(1, 5, heads, 16)).swapaxes(1, 2) for heads in (8, 2, 2))
    >>> scaled_dot_product_attention(query, key, value, enable_gqa=True).shape
    (1, 8, 5, 16)
    """
    if dropout_p != 0:
        _validate.refuse_dropout(dropout_p)
    inputs = _fastpath.attention_inputs(query, key, value, enable_gqa)
    if (attn_mask is bias is scale is window is softcap is alibi_slopes is sinks is key_lengths is None
            and inputs is not None and not (return_lse or return_entropy)):
        result = _attention.without_options(inputs, is_causal, causal_offset, out)
        if result is not None:
            return result
    return _attention.attention(inputs, query, key, value, attn_mask, is_causal, scale, enable_gqa, bias, causal_offset,
                                window, softcap, alibi_slopes, sinks, key_lengths, return_lse, return_entropy, out)


def scaled_dot_product_attention_backward(
        grad_out: ArrayLike, query: ArrayLike, key: ArrayLike, value: ArrayLike, out: ArrayLike, lse: ArrayLike,
        attn_mask: ArrayLike | None = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: ArrayLike | None = None, enable_gqa: bool = False, *, bias: ArrayLike | None = None,
        causal_offset: ArrayLike = 0, window: Window | None = None, softcap: float | None = None,
        alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None, key_lengths: ArrayLike | None = None,
        grad_lse: ArrayLike | None = None, grad_scale: bool = False, grad_mask: bool = False, grad_bias: bool = False,
        grad_sinks: bool = False, grad_slopes: bool = False) -> tuple[Array, ...]:
    """Gradients of `scaled_dot_product_attention` with respect to its inputs, from those with respect to its results.

    Takes the arguments of the forward call, by the same names, and its results `out` and `lse`. As in the forward call,
    the L x S weights are never stored: they are computed again from lse, block by block.

    ::

        forward                                   backward, from grad_out (and grad_lse, else 0)
        Z = scale * query @ key.T                 P = exp(scores - lse)                      the weights again
        scores = softcap(Z) + bias + attn_mask    dP = grad_out @ value.T
                 - slope * distance               delta = sum(grad_out * out) - grad_lse     one number a row
        P = softmax([scores, sink])               dS = P * (dP - delta)
        out = P @ value                           dZ = dS * softcap'(Z)

        dquery = scale * dZ @ key                 dscale = sum(dZ * (query @ key.T))
        dkey = scale * dZ.T @ query               dbias = dmask = dS, summed where they broadcast
        dvalue = P.T @ grad_out                   dslope = -sum(dS * distance)
                                                  dsink = -sum(exp(sink - lse) * delta)

    Parameters
    ----------
    grad_out : array_like, (..., Hq, L, Ev)
        The gradient of the loss with respect to out. Of the dtype of query, or float32 for 16-bit queries.
    query, key, value : array_like, (..., Hq, L, E), (..., Hk, S, E) and (..., Hk, S, Ev)
        The inputs of the forward call. Any strides; their dtypes and shapes may differ as they may there.
    out : array_like, (..., Hq, L, Ev)
        The result of the forward call. For 16-bit queries, of their dtype or, which is more accurate, the float32 one
        that the forward call wrote to its argument `out`.
    lse : array_like, (..., Hq, L)
        The second result of the forward call with return_lse. float64 for float64, else float32.
    attn_mask, dropout_p, is_causal, scale, enable_gqa
        As in the forward call.
    bias, causal_offset, window, softcap, alibi_slopes, sinks, key_lengths
        As in the forward call.
    grad_lse : array_like, (..., Hq, L), optional
        The gradient of the loss with respect to lse, if the loss depends on it. Of the dtype of lse.
    grad_scale : bool, default False
        Also return dscale. Needs a scale, of which it is the gradient: to learn the default, pass it.
    grad_mask, grad_bias : bool, default False
        Also return dmask, dbias. attn_mask must be floating.
    grad_sinks, grad_slopes : bool, default False
        Also return dsinks, dslopes.

    Returns
    -------
    dquery, dkey, dvalue : ndarray
        Of the shapes and dtypes of query, key and value. Dimensions that broadcast, and query heads that share a key
        head, are summed.
    dscale : ndarray, (Hq,)
        With grad_scale, one for each head, also if scale is one number: their sum is then its gradient. float64 for
        float64, else float32.
    dmask, dbias : ndarray
        With grad_mask, grad_bias. Of the shapes and dtypes of attn_mask and bias: dimensions that broadcast are summed.
    dsinks : ndarray, (Hq,)
        With grad_sinks. Of the dtype of dscale.
    dslopes : ndarray, (Hq,) or (..., Hq)
        With grad_slopes, one for each head; of the dimensions before the heads it has those that alibi_slopes has.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As the forward call; and a TypeError if grad_out, out, lse or grad_lse has another dtype, a ValueError if it has
        another shape, or if a gradient is asked for whose input is not given or boolean.

    See Also
    --------
    scaled_dot_product_attention : the forward call.

    Notes
    -----
    Hidden keys and values are not read and have a gradient of 0. So has a query that sees no key, whatever it and its
    grad_out hold; what grad_lse adds for it goes to its sink. A query whose result is NaN has a gradient of NaN, and so
    have the keys that it sees.

    Method: blocks of keys, and for each the queries that see it [1]_ [2]_; hidden blocks are skipped. There are no
    atomic additions: the bits are the same for any number of threads. One thread computes all where several batch
    entries or key heads share an element of dmask or dbias. Beyond results, memory is needed for a few blocks a thread
    and max(16, 4 threads) partial sums of dquery at most, of one key head each; for gradients of inputs whose batch or
    heads broadcast, before they are summed; and for float64 sums of the size of a mask or bias that broadcasts. Extreme
    scales and softcaps are computed as in the forward call.

    References
    ----------
    .. [1] T. Dao, D. Y. Fu, S. Ermon, A. Rudra and C. Ré, "FlashAttention: fast and memory-efficient exact attention
       with IO-awareness", NeurIPS 2022, arXiv:2205.14135.
    .. [2] T. Dao, "FlashAttention-2: faster attention with better parallelism and work partitioning",
       arXiv:2307.08691 (2023).

    Examples
    --------
    The sum of out as the loss: its gradient is 1 everywhere.

    >>> import numpy as np
    >>> from fastsoftmax import scaled_dot_product_attention, scaled_dot_product_attention_backward
    >>> query, key, value = np.zeros((1, 2)), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0], [3.0]])
    >>> out, lse = scaled_dot_product_attention(query, key, value, scale=1.0, return_lse=True)
    >>> dquery, dkey, dvalue = scaled_dot_product_attention_backward(
    ...     np.ones((1, 1)), query, key, value, out, lse, scale=1.0)
    >>> dquery, dvalue              # more weight on the second key raises the result
    (array([[-0.5,  0.5]]), array([[0.5],
           [0.5]]))

    A step of gradient descent on an inverse temperature for each of two heads, to come closer to a target:

    >>> rng = np.random.default_rng(0)
    >>> query, key, value, target = rng.normal(size=(4, 2, 5, 8))
    >>> def loss_and_gradient(scale):
    ...     out, lse = scaled_dot_product_attention(query, key, value, scale=scale, return_lse=True)
    ...     *_, dscale = scaled_dot_product_attention_backward(
    ...         out - target, query, key, value, out, lse, scale=scale, grad_scale=True)
    ...     return 0.5 * ((out - target) ** 2).sum(), dscale
    >>> scale = np.full(2, 8**-0.5)
    >>> loss, dscale = loss_and_gradient(scale)
    >>> closer, _ = loss_and_gradient(scale - 0.01 * dscale)
    >>> bool(closer < loss)
    True
    """
    if dropout_p != 0:
        _validate.refuse_dropout(dropout_p)
    inputs = _fastpath.attention_inputs(query, key, value, enable_gqa)
    return _attention.attention_backward(
        inputs, grad_out, query, key, value, out, lse, attn_mask, is_causal, scale, enable_gqa, bias, causal_offset,
        window, softcap, alibi_slopes, sinks, key_lengths, grad_lse,
        (grad_scale, grad_mask, grad_bias, grad_sinks, grad_slopes))


@signature_without_dim
def merge_attention_states(outputs: Iterable[ArrayLike] | ArrayLike, lses: Iterable[ArrayLike] | ArrayLike, *,
                           axis: SupportsIndex = 0, dim: None = None) -> tuple[Array, Array]:
    """Attention over all keys from attention over disjoint sets of them, exactly.

    Parameters
    ----------
    outputs : sequence of array_like, each (..., L, Ev); or one array
        Results of `scaled_dot_product_attention` for the same queries on different keys: pieces of a cache, or a
        prefix that many sequences share. All of one dtype and shape. One array holds them stacked along `axis`.
    lses : sequence of array_like, each (..., L); or one array
        Their logsumexps, as `return_lse` gives them. A sink must have been counted in one piece only.
    axis : int, default 0
        Where the parts lie in stacked arrays, as ``numpy.stack(outputs, axis)`` and ``numpy.stack(lses, axis)`` put
        them. A negative axis counts from the end of each array's own dimensions: with -1, outputs are
        (..., L, Ev, parts) and lses (..., L, parts). Sequences are stacked likewise: the default is their own order.

    Returns
    -------
    out : ndarray, (..., L, Ev)
        Of the dtype of the outputs.
    lse : ndarray, (..., L)
        float64 for float64 outputs, else float32.

    Raises
    ------
    TypeError
        If the arrays are not floating, the outputs are not of one dtype, or one is a masked array.
    ValueError
        If there are no parts, or not as many outputs as lses, or the shapes do not fit.
    numpy.exceptions.AxisError
        If axis is out of range.

    Notes
    -----
    Each output weighs ``exp(its lse - lse)``, where lse is the logsumexp of all [1]_ [2]_. A part with an lse of -inf
    has seen no key and is ignored, whatever its output holds; if all parts are ignored, the result is 0 with an lse of
    -inf. Sums are computed in float64 or better and rounded once, however many parts there are, so merge all parts in
    one call. If they come one by one, keep the state in float64: float32 states are rounded at each step, which over n
    steps costs about the square root of n roundings.

    References
    ----------
    .. [1] T. Dao, D. Haziza, F. Massa and G. Sizov, "Flash-Decoding for long-context inference" (2023).
    .. [2] M. N. Rabe and C. Staats, "Self-attention does not need O(n^2) memory", arXiv:2112.05682 (2021).

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import merge_attention_states, scaled_dot_product_attention
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.normal(size=(4, 8)), rng.normal(size=(100, 8)), rng.normal(size=(100, 8))
    >>> parts = [scaled_dot_product_attention(query, key[keys], value[keys], return_lse=True)
    ...          for keys in (slice(0, 70), slice(70, 100))]
    >>> out, lse = merge_attention_states(*zip(*parts))
    >>> np.allclose(out, scaled_dot_product_attention(query, key, value))
    True

    The same parts in one array each, (L, parts, Ev) and (L, parts):

    >>> outputs, lses = (np.stack(x, axis=1) for x in zip(*parts))
    >>> np.array_equal(merge_attention_states(outputs, lses, axis=1)[0], out)
    True
    """
    return _attention.merge_attention_states(outputs, lses, axis, dim)
