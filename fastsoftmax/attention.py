"""Attention: scaled_dot_product_attention, merge_attention_states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypedDict, Unpack, overload

from numpy.typing import ArrayLike

from fastsoftmax import _attention, _fastpath, _validate
from fastsoftmax._typing import Array, Window


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

    Takes the arguments of `torch.nn.functional.scaled_dot_product_attention`, and behind the star what models need
    beside them. The L x S scores and weights are never stored.

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
        converted block by block. All dimensions before the heads broadcast; so do the heads, where one side has one.
        Strides are taken as they are: ``x.swapaxes(-2, -3)`` of a (B, S, H, E) array costs no copy. Only elements of
        the last dimension that do not lie side by side, and foreign byte order, are copied.
    value : array_like, (..., Hk, S, Ev)
        Of the dtype of key.
    attn_mask : array_like of bool or floats, optional
        Broadcasts to (..., Hq, L, S). Booleans: True is visible. Floats are added to the scaled scores; -inf hides.
        Where key_lengths hides what is behind its end, it may be shorter than S in the last dimension.
    dropout_p : float, default 0.0
        For torch's signature alone: must be 0.
    is_causal : bool, default False
        Hide the keys after the query's own position, see above. Works along with attn_mask: both must allow a key.
    scale : float or array_like, (Hq,), default ``1 / sqrt(E)``
        Factor of the scores, or one for each query head.
    enable_gqa : bool, default False
        Grouped heads: Hq may be a multiple of Hk; query head h reads key head ``h // (Hq // Hk)`` [5]_.
    bias : array_like of floats, optional
        Added to the scaled scores, as a floating attn_mask, beside whatever attn_mask does. May end early likewise.
    causal_offset : int or array_like of ints, default 0
        The position of query 0 among the keys, for is_causal, window and alibi_slopes; an array broadcasts to the
        dimensions before the heads. In keys.
    window : (int or None, int or None), optional
        (left, right): visible is ``i + causal_offset - left <= j <= i + causal_offset + right``; None: no limit.
        In keys, from 0.
    softcap : float, optional
        Positive and finite: scores become ``softcap * tanh(scores / softcap)``, before anything is added [6]_.
    alibi_slopes : array_like, (Hq,) or (..., Hq)
        Subtracts ``slope * abs(i + causal_offset - j)`` [7]_. Per key of distance.
    sinks : array_like, (Hq,)
        A logit for each head that takes part in the normalisation and has no value [8]_.
    key_lengths : array_like of ints, optional
        Broadcasts to the dimensions before the heads: how many keys, the first ones, exist. From 0 to S.
    return_lse : bool, default False
        Also return the logsumexp of each query's scores, natural logarithm.
    return_entropy : bool, default False
        Also return the Shannon entropy of each query's weights, in nats.
    out : ndarray, (..., Hq, L, Ev), optional
        Where to put the result; of the dtype of query, or float32 for 16-bit queries, so that pieces merge without
        being rounded twice; any strides. May overlap the inputs, which then takes memory for a second result.

    Returns
    -------
    ndarray, (..., Hq, L, Ev)
        Of the dtype of query; `out`, if given. Zeros for a query that sees no key; NaN where it sees NaN.
    lse : ndarray, (..., Hq, L)
        With return_lse. float64 for float64, else float32; -inf for a query that sees no key. A sink counts.
    entropy : ndarray, (..., Hq, L)
        With return_entropy, the last of the tuple. Likewise; 0 for a query that sees no key. A sink is an outcome.

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
    causal_softmax : weights of scores that are stored.

    Notes
    -----
    Order: scale, softcap, add bias, attn_mask and ALiBi, then hide. What is hidden is as if absent, even NaN or
    infinity in key or value. Method: blocks of keys with a running maximum and sum [1]_ [2]_, hidden blocks left out;
    few queries on many keys are split among threads by keys and merged by their lse [3]_ [4]_. The same bits for any
    number of threads. Memory beyond the result is that of a few blocks for each thread; but where a scale is beyond
    1e30 (float64: 1e200), or a softcap outside 1e-30..1e30, the scores are stored.

    A finite number of a mask, bias, scale, sink or slope stays finite: beyond the range of the arithmetic, which is
    float32 but for float64, it is the largest number that is not, and so are sums of them and a score. Limits: a
    product of query and key beyond that range is infinite, and a score of -inf is hidden (for query 1e20 and keys
    -1e20 and -2e20 in float32 the result is 0). Values within a factor S of the largest number may sum up to infinity,
    though their average is finite (two equal keys with values of 3e38).

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

    Causal, with the last query on the last key; and how even each query's weights are:

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


def merge_attention_states(outputs: Iterable[ArrayLike], lses: Iterable[ArrayLike]) -> tuple[Array, Array]:
    """Attention over all keys from attention over disjoint sets of them, exactly.

    Parameters
    ----------
    outputs : sequence of array_like, each (..., L, Ev)
        Results of `scaled_dot_product_attention` for the same queries on different keys: pieces of a cache, or a
        prefix that many sequences share. All of one dtype and shape.
    lses : sequence of array_like, each (..., L)
        Their logsumexps, as `return_lse` gives them. A sink must have been counted in one piece only.

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

    Notes
    -----
    Each output weighs ``exp(its lse - lse)``, where lse is the logsumexp of all [1]_ [2]_. A part with an lse of -inf
    has seen no key and counts for nothing, whatever its output holds; if all parts are so, the result is 0 with an lse
    of -inf. Arithmetic and sums are those of float64 or better, as many parts as there are, and rounded once: merge all
    in one call. Where parts come one by one, keep the state in float64: float32 states are rounded at each step, which
    over n steps costs about the square root of n roundings.

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
    """
    return _attention.merge_attention_states(outputs, lses)
