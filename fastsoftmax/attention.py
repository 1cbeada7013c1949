"""Attention: scaled_dot_product_attention, merge_attention_states.

Checks arguments and prepares them for the kernels, one text for all dtypes and instruction sets: kernels/attention.pxi.
"""

import functools
import math
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsIndex, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsoftmax import _arrays, _dispatch, _fastpath, _threads, reference
from fastsoftmax.softmax import default_fp_env, logsumexp

Array = NDArray[Any]
Window = tuple[SupportsIndex | None, SupportsIndex | None]


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


MAX_DISTANCE = 1 << 40              # positions and distances beyond any array's length
CACHED_ELEMENTS = 1 << 10           # entries of the arrays that are kept from call to call
MERGE_ELEMENTS = 1 << 16            # elements of outputs that are merged at a time
PRODUCTS_PER_ELEMENT = 1 << 6       # multiplications that take about as long as an element of softmax


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
        raise NotImplementedError(f"dropout is not implemented: dropout_p must be 0, got {dropout_p}")
    tag = _arrays.tag(query.dtype) if type(query) is np.ndarray else None
    fit = _fastpath.attention_inputs(query, key, value, enable_gqa) if tag else None
    if (attn_mask is bias is scale is window is softcap is alibi_slopes is sinks is key_lengths is None and fit
            and type(causal_offset) is int and -MAX_DISTANCE <= causal_offset <= MAX_DISTANCE
            and not (return_lse or return_entropy)):
        # Fast path: no optional argument is set, so none is checked. Decoding makes very many such small calls.
        q, k, v, batch, heads, _, width, y_shape, added = fit
        y = np.empty(y_shape, q.dtype) if out is None else _fastpath.attention_result(out, q, k, v, y_shape, added)
        if y is not None:
            _call(tag, q, k, v, y, (), _default_scale(width, heads), _repeated(causal_offset, batch, np.int64), -1,
                  0 if is_causal else -1, None, 0.0, None, None, None, None)
            return out if out is not None else y if added == 0 else y[0] if added == 1 else y[0, 0]
    return _attention(fit, query, key, value, attn_mask, is_causal, scale, enable_gqa, bias, causal_offset, window,
                      softcap, alibi_slopes, sinks, key_lengths, return_lse, return_entropy, out)


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
    return _merge(outputs, lses)


@default_fp_env
def _merge(outputs, lses):
    parts, part_lses, dtype = _as_parts(outputs, lses)
    wide = np.result_type(_statistics(dtype), np.float64)       # rounded once, at the end
    *lead, width = parts[0].shape
    rows = math.prod(lead)
    parts = [x.reshape(rows, width) for x in parts]
    stacked = np.stack(part_lses, dtype=wide, casting="unsafe").reshape(-1, rows)
    out = np.empty((rows, width), wide)
    # blocks that stay in the cache
    rows_at_once = max(min(MERGE_ELEMENTS // 8 // max(width, 1), rows), 1)
    parts_at_once = max(MERGE_ELEMENTS // max(rows_at_once * width, 1), 1)
    with np.errstate(all="ignore"):
        peak = stacked.max(0)
        # Not softmax: the weight of a part that alone has seen keys is exactly 1 here.
        weights = np.exp(stacked - np.where(np.isfinite(peak), peak, 0))
        for row in range(0, rows, rows_at_once):
            here = slice(row, row + rows_at_once)
            out[here] = _pairwise(_weighted([x[here] for x in parts[first:first + parts_at_once]],
                                            weights[first:first + parts_at_once, here, None])
                                  for first in range(0, len(parts), parts_at_once))
        total = _folded(weights.copy())[:, None]
        np.divide(out, total, out=out, where=total != 0)
        lse = _saturated(np.asarray(logsumexp(stacked, 0)), _statistics(dtype))
    return reference._round(out, dtype).reshape(*lead, width), lse.reshape(lead)


def _weighted(parts, weights):
    """The sum of parts times their weights, in the dtype of these; what has no weight is not read."""
    terms = np.stack(parts, dtype=weights.dtype, casting="unsafe")
    if not weights.all():
        np.copyto(terms, 0, where=weights == 0)
    return _folded(np.multiply(terms, weights, out=terms))


def _folded(x):
    """The sum along the first dimension, by halves, in place: its error grows with the logarithm of their number."""
    while len(x) > 1:
        half = len(x) // 2
        x[:half] += x[len(x) - half:]
        x = x[:len(x) - half]
    return x[0]


def _pairwise(arrays):
    """The sum of arrays, two by two, those sums two by two, and so on; as many are held as their number has bits."""
    held = []
    for i, array in enumerate(arrays):
        while i & 1:
            array += held.pop()
            i >>= 1
        held.append(array)
    total = held.pop()
    while held:
        total += held.pop()
    return total


@default_fp_env
def _attention(fit, query, key, value, attn_mask, is_causal, scale, enable_gqa, bias, causal_offset, window, softcap,
               alibi_slopes, sinks, key_lengths, return_lse, return_entropy, out):
    """Whatever the options; `fit` are the inputs for the kernel, if it takes them as they are."""
    q, k, v, batch, heads, keys, width, y_shape, added = fit or prepare_qkv(query, key, value, enable_gqa)
    dtype, tag = q.dtype, _arrays.tag(k.dtype)
    # All is checked before anything is written.
    statistics = _statistics(dtype)
    if out is not None:
        if isinstance(out, np.ndarray) and _arrays.native(out.dtype) == statistics:
            dtype = statistics      # float32 for 16-bit queries: rounded once, when pieces have been merged
        _arrays.check_out(out, y_shape[added:], dtype)
    scale, alibi_slopes, sinks = (
        None if x is None or (name == "scale" and width == 0) else _as_reals(x, name, shape, statistics)
        for x, name, shape in ((scale, "scale", (heads,)), (alibi_slopes, "alibi_slopes", (*batch, heads)),
                               (sinks, "sinks", (heads,))))
    key_lengths = None if key_lengths is None else _as_lengths(key_lengths, batch, keys)
    bias, attn_mask = (
        None if x is None else _as_term(x, name, (*y_shape[:-1], keys), added, k.dtype, key_lengths)
        for x, name in ((bias, "bias"), (attn_mask, "attn_mask")))
    causal_offset = _as_offset(causal_offset, batch)
    left, right = window = (None, None) if window is None else _as_window(window)
    softcap = None if softcap is None else _as_softcap(softcap)
    is_causal = bool(is_causal)

    in_place = False
    if tag is None or not (softcap is None or 1e-30 < softcap < 1e30) or _is_extreme(scale, statistics):
        if tag is not None:     # of float64, a product with such a scale may be beyond the range
            q = q.astype(np.longdouble if tag == "f64" and scale is not None else np.float64)
        if key_lengths is not None:     # a mask may end where all lengths have
            most = key_lengths.max(initial=0)
            k, v = k[..., :most, :], v[..., :most, :]
            bias, attn_mask = (None if x is None else x[..., :most] for x in (bias, attn_mask))
        y, lse, entropy = reference.scaled_dot_product_attention(
            q, k, v, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa, bias=bias,
            causal_offset=causal_offset, window=window, softcap=softcap, alibi_slopes=alibi_slopes, sinks=sinks,
            key_lengths=key_lengths, return_lse=True, return_entropy=True)
        y, lse, entropy = reference._round(y, dtype), _saturated(lse, statistics), _saturated(entropy, statistics)
    else:
        in_place = out is not None and _is_ready(out) and no_overlap(out, q, k, v, bias, attn_mask)
        y = np.asarray(out)[(None,) * added] if in_place else np.empty(y_shape, dtype)
        lse = np.empty(y_shape[:-1], statistics) if return_lse else None
        entropy = np.empty(y_shape[:-1], statistics) if return_entropy else None
        terms = () if bias is None else (bias,)
        terms = terms if attn_mask is None else (*terms, attn_mask)
        scale = _default_scale(width, heads) if scale is None else scale
        left = -1 if left is None else min(left, MAX_DISTANCE)
        right = 0 if is_causal else -1 if right is None else min(right, MAX_DISTANCE)
        run = _call if fit else _compute
        run(tag, q, k, v, y, terms, scale, causal_offset, left, right, key_lengths, softcap or 0.0, alibi_slopes, sinks,
            lse, entropy)
    if added:
        y, lse, entropy = [None if x is None else x[(0,) * added] for x in (y, lse, entropy)]
    if out is not None:
        if not in_place:
            np.copyto(out, y)
        y = out
    if return_lse:
        return (y, lse, entropy) if return_entropy else (y, lse)
    return (y, entropy) if return_entropy else y


def prepare_qkv(query, key, value, enable_gqa):
    """(q, k, v, batch, heads, keys, width, shape of the result, added), or an error that says what does not fit.

    q, k and v are ready for a kernel and have all dimensions of the batch, one at least, and heads; `added` is how many
    of their dimensions the caller's have not, and the results lose again.
    """
    q, k, v = _as_floats(query, "query"), _as_floats(key, "key"), _as_floats(value, "value")
    _check_dtypes(q, k, v)
    lead, heads, key_heads = _fitted(q, k, v, enable_gqa)
    added = 0 if lead else 2 if q.ndim == k.ndim == v.ndim == 2 else 1
    lead = lead or (1,)
    q, k, v = [_fastpath.broadcast_to(
        x if _is_ready(x) else _copied(x, _arrays.native(x.dtype)), (*lead, n, *x.shape[-2:]))
               for x, n in ((q, heads), (k, key_heads), (v, key_heads))]
    return (q, k, v, q.shape[:-3], heads, k.shape[-2], q.shape[-1],
            (*q.shape[:-1], v.shape[-1]), added)


def _call(tag, q, k, v, y, terms, scale, offset, left, right, lengths, softcap, slopes, sinks, lse, entropy):
    """y, lse and entropy by one call of a kernel."""
    threads = _threads.threads_for((q.size + y.size) * k.shape[2] // PRODUCTS_PER_ELEMENT)
    if k.itemsize == 2:
        q, k, v, y = _halves(q), _bits(k), _bits(v), _halves(y)
    if terms:
        terms = tuple([_bits(x) for x in terms])
    _dispatch.kernels(tag).attention(
        q, k, v, y, terms, scale, offset, left, right, lengths, softcap, slopes, sinks, lse, entropy, threads)


def _compute(tag, q, k, v, y, terms, scale, offset, left, right, lengths, softcap, slopes, sinks, lse, entropy):
    """The same for arrays made to fit: empty, or with a batch of several dimensions, in as few calls as these allow."""
    if 0 in y.shape[:-1] or (y.size == 0 and lse is entropy is None):
        return
    q, k, v, y, terms, lengths = _not_empty(q, k, v, y, terms, lengths)
    dims, done = y.ndim - 3, 0
    if dims == 1:
        _call(tag, q, k, v, y, terms, scale, offset, left, right, lengths, softcap, slopes, sinks, lse, entropy)
        return
    wholes = [None if x is None else x.reshape(-1, *x.shape[dims:]) for x in (offset, lengths, slopes, lse, entropy)]
    for part in _calls(y.shape[:dims], [q, k, v, y, *terms]):
        q, k, v, y, *terms = part
        offset, lengths, slopes, lse, entropy = (None if x is None else x[done:done + len(q)] for x in wholes)
        _call(tag, q, k, v, y, tuple(terms), scale, offset, left, right, lengths, softcap, slopes, sinks, lse, entropy)
        done += len(q)


def _not_empty(q, k, v, y, terms, lengths):
    """The same with one hidden key instead of none, widths of one zero instead of none, and a y for that."""
    if k.shape[-2] == 0:
        k, v = (np.zeros((*x.shape[:-2], 1, x.shape[-1]), x.dtype) for x in (k, v))
        terms, lengths = (), np.zeros(q.shape[:-3], np.int64)
    if q.shape[-1] == 0:
        q, k = (np.zeros((*x.shape[:-1], 1), x.dtype) for x in (q, k))
    if v.shape[-1] == 0:
        v, y = (np.zeros((*x.shape[:-1], 1), x.dtype) for x in (v, y))
    return q, k, v, y, terms, lengths


def _bits(x):
    """The array as a kernel's memoryview sees it: booleans and 16-bit floats by their bits."""
    return x if x.itemsize > 2 else x.view(np.uint16 if x.itemsize == 2 else np.uint8)


def _halves(x):
    """A query or result as a kernel for 16-bit keys sees it: float32 as twice as many elements of 16 bits."""
    if x.strides[-1] != x.itemsize:         # of one element
        x = _fastpath.as_strided(x, x.shape, (*x.strides[:-1], x.itemsize))
    return x.view(np.uint16)


def _calls(lead, arrays):
    """Arrays (*lead, ...) as arrays (B, ...) for each call of a kernel, as few as the strides allow."""
    n = len(lead)
    sizes, strides = _joined(lead, tuple([x.strides[:n] for x in arrays]))
    seen = [_fastpath.as_strided(x, sizes + x.shape[n:], outer + x.strides[n:])
            for x, outer in zip(arrays, strides, strict=True)]
    if len(sizes) == 1:
        return [seen]
    return ([x[index] for x in seen] for index in np.ndindex(sizes[:-1]))


@functools.lru_cache(maxsize=64)
def _joined(lead, strides):
    """(sizes, each array's strides) of the fewest dimensions, one at least, that step through the same matrices."""
    dims = [(size, tuple(s[i] for s in strides)) for i, size in enumerate(lead) if size > 1]
    return _arrays.by_operand(_arrays.merged(dims) or [(1, (0,) * len(strides))], len(strides))


@functools.lru_cache(maxsize=64)
@default_fp_env
def _default_scale(width, heads):
    return np.full(heads, 1 / math.sqrt(width or 1))


@functools.lru_cache(maxsize=64)
def _kept(x, shape, dtype):
    array = np.full(shape, x, dtype)
    array.flags.writeable = False
    return array


def _repeated(x, shape, dtype):
    """An array of one number; a small one is kept from call to call, and read-only."""
    return _kept(x, shape, dtype) if math.prod(shape) <= CACHED_ELEMENTS else np.full(shape, x, dtype)


def _is_extreme(scale, arithmetic):
    """Whether the product of a query and the scale may be beyond the range of the arithmetic, where a score is not."""
    return scale is not None and abs(scale).max(initial=0) > (1e30 if arithmetic.itemsize < 8 else 1e200)


def no_overlap(out, *inputs):
    """Whether out shares no memory with an input."""
    for x in inputs:
        if x is not None and np.may_share_memory(x, out) and np.shares_memory(x, out):
            return False
    return True


def _is_ready(x):
    """Whether a kernel takes it: native, aligned, the elements of its last dimension side by side."""
    flags = x.flags
    if flags.c_contiguous and flags.aligned and x.dtype.isnative:
        return True
    return _arrays.kernel_ready(x) and (x.strides[-1] == x.itemsize or x.shape[-1] <= 1)


def _copied(x, dtype):
    """A copy in this dtype. Dimensions that repeat the same memory, of stride 0, go on doing so, but for the last."""
    once = x[(*(slice(0, 1) if stride == 0 else slice(None) for stride in x.strides[:-1]), slice(None))]
    return np.broadcast_to(_saturated(once, dtype), x.shape)


@np.errstate(all="ignore")
def _saturated(x, dtype):
    """A copy in this dtype; where that is narrower, what is finite stays so: an infinity hides, or makes NaN."""
    array = x.astype(dtype, order="C")
    if x.dtype.itemsize > array.itemsize:
        np.copyto(array, np.copysign(np.finfo(dtype).max, array), where=np.isinf(array) & np.isfinite(x))
    return array


def _statistics(dtype):
    """The dtype of lse and entropy, which is also that of the arithmetic."""
    return np.dtype(np.float32) if dtype.itemsize < 8 else dtype


def _as_floats(x, name):
    array = _arrays.as_array(x, name, instead_of_masked=f"{name}.data, with attn_mask to hide keys,")
    if array.dtype.kind != "f" and _arrays.tag(array.dtype) is None:
        raise TypeError(f"{name} must be floating, got dtype {array.dtype}")
    return array


def _check_dtypes(query, key, value):
    """One dtype, or float16 or bfloat16 for key and value beside a float32 query."""
    of_query, of_key, of_value = (_arrays.native(x.dtype) for x in (query, key, value))
    mixed = of_query == np.float32 and of_key.itemsize == 2
    if of_key != of_value or not (of_key == of_query or mixed):
        raise TypeError("query, key, value must have one dtype, or key and value be float16 or bfloat16 beside a "
                        f"float32 query; got {of_query}, {of_key}, {of_value}")


def _common_dtype(named):
    """The dtype of all, in native byte order."""
    dtypes = [_arrays.native(x.dtype) for x in named.values()]
    if dtypes.count(dtypes[0]) != len(dtypes):
        raise TypeError(f"{', '.join(named)} must have one dtype, got {', '.join(map(str, dtypes))}")
    return dtypes[0]


def _fitted(query, key, value, enable_gqa):
    """(dimensions before the heads, heads of the result, heads of key and value), where the shapes fit."""
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}

    def misfit(a, b, why):
        return ValueError(f"{a} of shape {shapes[a]} does not fit {b} of shape {shapes[b]}: {why}")

    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(f"{name} must have at least two dimensions (..., positions, width), got shape {shape}")
    of_query, of_key, of_value = shapes.values()
    if of_query[-1] != of_key[-1]:
        raise misfit("query", "key", f"their last dimensions, E, are {of_query[-1]} and {of_key[-1]}")
    if of_key[-2] != of_value[-2]:
        raise misfit("key", "value", f"there are {of_key[-2]} keys and {of_value[-2]} values")
    lead = of_query[:-3]
    if not lead == of_key[:-3] == of_value[:-3]:
        for a, b in (("query", "key"), ("query", "value"), ("key", "value")):
            try:
                np.broadcast_shapes(shapes[a][:-3], shapes[b][:-3])
            except ValueError:
                raise misfit(a, b, "the dimensions before the heads do not broadcast") from None
        lead = np.broadcast_shapes(lead, of_key[:-3], of_value[:-3])
    heads, in_key, in_value = (1, *of_query)[-3], (1, *of_key)[-3], (1, *of_value)[-3]
    if in_key != in_value and 1 not in (in_key, in_value):
        raise misfit("key", "value", f"they have {in_key} and {in_value} heads")
    key_heads, owner = (in_value, "value") if in_key == 1 else (in_key, "key")
    if heads in (1, key_heads) or key_heads == 1:
        return lead, key_heads if heads == 1 else heads, key_heads
    if key_heads == 0 or heads % key_heads:
        raise misfit("query", owner, f"the number of query heads, {heads}, is no multiple of {key_heads}")
    if not enable_gqa:
        raise misfit("query", owner, f"they have {heads} and {key_heads} heads; enable_gqa=True lets heads share keys")
    return lead, heads, key_heads


def _as_term(x, name, shape, added, dtype, lengths):
    """A mask or bias as a kernel takes it, broadcast to the shape of the scores, with a batch.

    It may end where all lengths have. The view has the scores' shape even then: no kernel reads behind a length.
    """
    array = _arrays.as_array(x, name, instead_of_masked=f"{name}.data")
    boolean = array.dtype.kind == "b" and name == "attn_mask"
    if not boolean and array.dtype.kind != "f" and _arrays.tag(array.dtype) is None:
        kinds = "boolean or floating" if name == "attn_mask" else "floating"
        raise TypeError(f"{name} must be {kinds}, got dtype {array.dtype}")
    wanted = array.dtype if boolean else dtype if _arrays.native(array.dtype) == dtype else _statistics(dtype)
    if array.dtype != wanted or not _arrays.kernel_ready(array):
        array = _copied(array, wanted) if array.ndim else _saturated(array, wanted)
    known = array.shape[-1] if array.ndim else 1
    full, short = shape, known != 1 and lengths is not None and lengths.max(initial=0) <= known < shape[-1]
    if short:
        shape = (*shape[:-1], known)
    try:
        seen = _fastpath.broadcast_to(array, shape) if not added else _fastpath.broadcast_to(array, shape[1:])[None]
        return _fastpath.as_strided(seen, full, seen.strides) if short else seen
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape} does not broadcast to {full[added > 0:]}, the shape of the "
                         "scores (..., heads, queries, keys)") from None


def _as_reals(x, name, shape, arithmetic):
    """float64 of this shape, apart from the caller's; what is finite is so in the dtype of the arithmetic too."""
    most = float(np.finfo(np.float32).max) if arithmetic.itemsize < 8 else sys.float_info.max
    if type(x) is float:
        return _repeated(min(max(x, -most), most) if math.isfinite(x) else x, shape, np.float64)
    array = _arrays.as_array(x, name, instead_of_masked=f"{name}.data")
    if array.dtype.kind not in "iuf" and _arrays.tag(array.dtype) is None:
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    reals = _broadcast_copy(_saturated(array, np.dtype(np.float64)), name, shape, np.float64)
    if arithmetic.itemsize < 8:
        np.clip(reals, -most, most, out=reals, where=np.isfinite(reals))
    return reals


def _as_ints(x, name, shape):
    """int64 of this shape, in memory of its own; a Python int beyond +-MAX_DISTANCE is clipped to it."""
    if type(x) is int:          # of any size; NumPy would make an object of a large one
        return _repeated(max(-MAX_DISTANCE, min(x, MAX_DISTANCE)), shape, np.int64)
    array = _arrays.as_array(x, name, instead_of_masked=f"{name}.data")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an int or an array of ints, got {array.dtype}")
    if array.dtype == np.uint64:
        array = np.asarray(np.minimum(array, np.uint64(1 << 62)))
    return _broadcast_copy(array, name, shape, np.int64)


def _as_offset(causal_offset, batch):
    """Clipped, so that the kernels can add and subtract."""
    offset = _as_ints(causal_offset, "causal_offset", batch)
    return offset if type(causal_offset) is int else np.minimum(np.maximum(offset, -MAX_DISTANCE), MAX_DISTANCE)


def _broadcast_copy(array, name, shape, dtype):
    try:
        return np.array(_fastpath.broadcast_to(array, shape), dtype, order="C")
    except ValueError:
        meant = "one for each head" if len(shape) == 1 and name in ("scale", "sinks") else (
            "the dimensions up to the heads" if name == "alibi_slopes" else "the dimensions before the heads")
        raise ValueError(f"{name} of shape {array.shape} does not broadcast to {shape}: {meant}") from None


def _as_lengths(key_lengths, batch, keys):
    lengths = _as_ints(key_lengths, "key_lengths", batch)
    seen = lengths.view(np.uint64)              # so seen, negative numbers are large
    if seen.size and seen.item(seen.argmax()) > keys:
        raise ValueError(f"key_lengths must be from 0 to the number of keys, {keys}; got {lengths[seen > keys][0]}")
    return lengths


def _as_window(window):
    """(left, right), ints or None."""
    if isinstance(window, str) or not isinstance(window, (tuple, Sequence, np.ndarray)):
        raise TypeError(f"window must be a pair (left, right) of ints or None, got {type(window).__name__}")
    if len(window) != 2:
        raise ValueError(f"window must be a pair (left, right), got {len(window)} numbers")
    limits = []
    for limit in window:
        if isinstance(limit, (bool, np.bool_)) or not (limit is None or hasattr(limit, "__index__")):
            raise TypeError(f"window must hold ints or None, got {type(limit).__name__}")
        limits.append(None if limit is None else operator.index(limit))
    if any(limit is not None and limit < 0 for limit in limits):
        raise ValueError(f"window must not be negative (None is no limit), got {window}")
    return tuple(limits)


def _as_softcap(softcap):
    if type(softcap) is float and 0 < softcap < math.inf:
        return softcap
    if isinstance(softcap, (str, bytes, bool, np.bool_)) or np.ndim(softcap):
        raise TypeError(f"softcap must be a number, got {softcap!r}")
    try:
        number = float(softcap)
    except (TypeError, ValueError):
        raise TypeError(f"softcap must be a number, got {type(softcap).__name__}") from None
    if not 0 < number < math.inf:
        raise ValueError(f"softcap must be positive and finite, got {softcap}")
    return number


def _as_parts(outputs, lses):
    """(outputs, lses, dtype of the outputs), checked, as lists of arrays."""
    outputs = [_as_floats(x, f"outputs[{i}]") for i, x in enumerate(outputs)]
    lses = [_as_floats(x, f"lses[{i}]") for i, x in enumerate(lses)]
    if len(outputs) != len(lses):
        raise ValueError(f"outputs and lses must be as many, got {len(outputs)} and {len(lses)}")
    if not outputs:
        raise ValueError("outputs and lses are empty: there is nothing to merge")
    dtype = _common_dtype({f"outputs[{i}]": x for i, x in enumerate(outputs)})
    shape = outputs[0].shape
    if len(shape) < 1:
        raise ValueError("outputs[0] must have at least one dimension, got shape ()")
    for i, (output, lse) in enumerate(zip(outputs, lses, strict=True)):
        if output.shape != shape:
            raise ValueError(f"outputs[{i}] of shape {output.shape} does not fit outputs[0] of shape {shape}")
        if lse.shape != shape[:-1]:
            raise ValueError(f"lses[{i}] of shape {lse.shape} does not fit outputs[{i}] of shape {shape}: it must be "
                             f"{shape[:-1]}")
    return outputs, lses, dtype
