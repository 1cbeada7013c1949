"""Attention: scaled_dot_product_attention, merge_attention_states.

Here is checked what was asked; the kernels, one text for all dtypes and instruction sets, are in kernels/attention.pxi.
"""

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal, SupportsIndex, TypedDict, Unpack, overload

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import ArrayLike, NDArray

from fastsoftmax import _arrays, _dispatch, _threads, reference
from fastsoftmax.softmax import _undisturbed, logsumexp

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


FAR = 1 << 40               # positions and distances beyond any array's length
SMALL_BATCH = 1 << 10       # entries of the arrays that are kept from call to call
WORK = 1 << 6               # multiplications that take about as long as an element of softmax; see _threads.PARALLEL


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
        Of the dtype of query. All dimensions before the heads broadcast; so do the heads, where one side has one.
        Strides are taken as they are: ``x.swapaxes(-2, -3)`` of a (B, S, H, E) array costs no copy. Only elements of
        the last dimension that do not lie side by side, and foreign byte order, are copied.
    value : array_like, (..., Hk, S, Ev)
        Of the dtype of query.
    attn_mask : array_like of bool or floats, optional
        Broadcasts to (..., Hq, L, S). Booleans: True is visible. Floats are added to the scaled scores; -inf hides.
    dropout_p : float, default 0.0
        For torch's signature alone: must be 0.
    is_causal : bool, default False
        Hide the keys after the query's own position, see above. Works along with attn_mask: both must allow a key.
    scale : float or array_like, (Hq,), default ``1 / sqrt(E)``
        Factor of the scores, or one for each query head.
    enable_gqa : bool, default False
        Grouped heads: Hq may be a multiple of Hk; query head h reads key head ``h // (Hq // Hk)`` [5]_.
    bias : array_like of floats, optional
        Added to the scaled scores, as a floating attn_mask, beside whatever attn_mask does.
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
        Where to put the result; of the dtype of query, any strides. May overlap the inputs, which then takes memory
        for a second result.

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
        If query, key and value are not floating, or not of one dtype, or are masked arrays, or another argument has
        the wrong type.
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
    number of threads. Memory beyond the result is that of a few blocks for each thread.

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
    if (attn_mask is None and dropout_p == 0 and bias is None and window is None and softcap is None
            and alibi_slopes is None and sinks is None and key_lengths is None and out is None
            and return_lse is False and return_entropy is False):
        y = _plain(query, key, value, is_causal, scale, enable_gqa, causal_offset)
        if y is not None:
            return y
    return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, bias, causal_offset,
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
        Of the dtype of the outputs; float16 and bfloat16 are merged in float32.
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
    of -inf.

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


@_undisturbed
def _merge(outputs, lses):
    parts, part_lses, dtype = _as_parts(outputs, lses)
    statistics = _statistics(dtype)
    stacked = np.stack(part_lses).astype(statistics)
    out = np.zeros(parts[0].shape, statistics)
    with np.errstate(all="ignore"):
        peak = stacked.max(0)
        # Not softmax: the weight of a part that alone has seen keys is exactly 1 here.
        weights = np.exp(stacked - np.where(np.isfinite(peak), peak, 0))
        total = weights.sum(0)[..., None]
        for part, weight in zip(parts, weights[..., None], strict=True):
            np.add(out, part * weight, out=out, where=weight != 0)
        np.divide(out, total, out=out, where=total != 0)
        return out.astype(dtype, copy=False), np.asarray(logsumexp(stacked, 0))


def _plain(query, key, value, is_causal, scale, enable_gqa, causal_offset):
    """The result for arrays that a kernel takes as they are, of four dimensions or fewer; None if these are not.

    Decoding makes very many small calls: this way costs no Python that is not needed, and explains no mistakes.
    """
    if type(query) is not np.ndarray or type(key) is not np.ndarray or type(value) is not np.ndarray:
        return None
    dtype = query.dtype
    if key.dtype is not dtype or value.dtype is not dtype or not dtype.isnative:
        return None
    tag = _arrays.tag(dtype)
    ndim = query.ndim
    if tag is None or not (query.flags.aligned and key.flags.aligned and value.flags.aligned):
        return None
    if ndim == 3:
        query, key, value = query[None], key[None], value[None]
    elif ndim == 2:
        query, key, value = query[None, None], key[None, None], value[None, None]
    try:
        batch, heads, queries, width = query.shape
        key_batch, key_heads, keys, key_width = key.shape
        value_batch, value_heads, value_keys, value_width = value.shape
        q0, q1, q2, q3 = query.strides
        k0, k1, k2, k3 = key.strides
        v0, v1, v2, v3 = value.strides
    except ValueError:
        return None
    size = dtype.itemsize
    if not (key_batch == value_batch == batch <= SMALL_BATCH and key_heads == value_heads and keys == value_keys
            and key_width == width and q3 == k3 == v3 == size
            and not (q0 | q1 | q2 | k0 | k1 | k2 | v0 | v1 | v2) & (size - 1)):
        return None
    work = batch * heads * queries * keys * (width + value_width)
    if work == 0 or width == 0 or value_width == 0 or heads > SMALL_BATCH:
        return None
    if key_heads != heads and key_heads != 1 and (not enable_gqa or heads % key_heads):
        return None
    if type(causal_offset) is not int or not -FAR <= causal_offset <= FAR:
        return None
    if scale is None:
        scale = _usual_scale(width, heads)
    elif type(scale) is float:
        scale = np.full(heads, scale)       # no cache: to hash a float raises the inexact flag
    else:
        return None
    out = np.empty((batch, heads, queries, value_width), dtype)
    q, k, v, y = query, key, value, out
    if size == 2:
        q, k, v, y = q.view(np.uint16), k.view(np.uint16), v.view(np.uint16), y.view(np.uint16)
    _dispatch.kernels(tag).attention(
        q, k, v, y, (), scale, _repeated_int(causal_offset, batch), -1,
        0 if is_causal else -1, None, 0.0, None, None, None, None, _threads.threads_for(work // WORK))
    return out if ndim == 4 else out[0] if ndim == 3 else out[0, 0]


@functools.lru_cache(maxsize=64)
@_undisturbed
def _usual_scale(width, heads):
    return np.full(heads, 1 / math.sqrt(width))


@functools.lru_cache(maxsize=64)
def _repeated_int(x, n):
    return np.full(n, x, np.int64)


@_undisturbed
def _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, bias, causal_offset, window,
               softcap, alibi_slopes, sinks, key_lengths, return_lse, return_entropy, out):
    """Whatever the arguments: checked first, all of them, so that `out` is not touched if one is wrong."""
    if dropout_p != 0:
        raise NotImplementedError(f"dropout is not implemented: dropout_p must be 0, got {dropout_p}")
    named = {"query": _as_floats(query, "query"), "key": _as_floats(key, "key"), "value": _as_floats(value, "value")}
    dtype = _common_dtype(named)
    lead, heads, key_heads = _fitted(named, enable_gqa)
    one_head = all(x.ndim == 2 for x in named.values())
    q, k, v = (x[None] if x.ndim == 2 else x for x in named.values())
    (queries, width), (keys, value_width) = q.shape[-2:], v.shape[-2:]
    rows = (*lead, heads, queries)
    if out is not None:
        _arrays.check_out(out, (*rows[one_head:], value_width), dtype)

    batch = lead or (1,)
    options = {
        "scale": None if scale is None or width == 0 else _as_reals(scale, "scale", (heads,)),
        "bias": _as_term(bias, "bias", (*rows, keys), dtype),
        "attn_mask": _as_term(attn_mask, "attn_mask", (*rows, keys), dtype),
        "causal_offset": _as_ints(causal_offset, "causal_offset", batch, FAR),
        "window": _as_window(window),
        "softcap": _as_softcap(softcap),
        "alibi_slopes": _as_reals(alibi_slopes, "alibi_slopes", (*batch, heads)),
        "sinks": _as_reals(sinks, "sinks", (heads,)),
        "key_lengths": _as_lengths(key_lengths, batch, keys),
        "is_causal": bool(is_causal),
    }
    if _arrays.tag(dtype) is None or not 1e-30 < (options["softcap"] or 1) < 1e30:
        in_place = False
        y, lse, entropy = _by_reference(q, k, v, lead, heads, enable_gqa, options)
    else:
        in_place = out is not None and _is_ready(out) and _is_apart(
            out, (q, k, v, options["bias"], options["attn_mask"]))
        y = out.reshape((*rows, value_width)) if in_place else np.empty((*rows, value_width), dtype)
        lse = np.empty(rows, _statistics(dtype)) if return_lse else None
        entropy = np.empty(rows, _statistics(dtype)) if return_entropy else None
        if math.prod(rows):
            _compute(q, k, v, y, lse, entropy, lead, key_heads, options)

    results = [y]
    if return_lse:
        results.append(lse)
    if return_entropy:
        results.append(entropy)
    if one_head:
        results = [x[0] for x in results]
    if out is not None:
        if not in_place:
            np.copyto(out, results[0])
        results[0] = out
    return results[0] if len(results) == 1 else tuple(results)


def _compute(q, k, v, y, lse, entropy, lead, key_heads, options):
    """y, lse and entropy by the kernels, for arguments that are checked and at least one row."""
    if y.size == 0 and lse is None and entropy is None:
        return
    heads, queries = y.shape[-3:-1]
    offset, lengths, slopes = options["causal_offset"].reshape(-1), options["key_lengths"], options["alibi_slopes"]
    lengths = None if lengths is None else lengths.reshape(-1)
    slopes = None if slopes is None else slopes.reshape(-1, heads)
    scale = np.full(heads, 1 / math.sqrt(q.shape[-1] or 1)) if options["scale"] is None else options["scale"]
    terms = [x for x in (options["bias"], options["attn_mask"]) if x is not None]
    # The kernels take nothing that is empty.
    if k.shape[-2] == 0:
        k, v = (np.zeros((*x.shape[:-2], 1, x.shape[-1]), x.dtype) for x in (k, v))
        lengths, terms = np.zeros(offset.size, np.int64), []
    if q.shape[-1] == 0:
        q, k = (np.zeros((*x.shape[:-1], 1), x.dtype) for x in (q, k))
    if v.shape[-1] == 0:
        v, y = (np.zeros((*x.shape[:-1], 1), x.dtype) for x in (v, y))

    q, k, v = (_spread(_ready(x), (*lead, n, *x.shape[-2:])) for x, n in ((q, heads), (k, key_heads), (v, key_heads)))
    seen = [_arrays.elements(x) for x in (q, k, v, y)]
    seen += [x.view(np.uint8) if x.dtype == np.bool_ else _arrays.elements(x) for x in terms]
    left, right = (-1 if limit is None else min(limit, FAR) for limit in options["window"])
    lse, entropy = (None if x is None else x.reshape(-1, heads, queries) for x in (lse, entropy))
    kernel = _dispatch.kernels(_arrays.tag(y.dtype)).attention
    done = 0
    for batch, (q, k, v, y, *terms) in _calls(lead, seen):
        part = slice(done, done + batch)
        done += batch
        work = batch * heads * queries * k.shape[-2] * (k.shape[-1] + v.shape[-1])
        kernel(q, k, v, y, tuple(terms), scale, offset[part], left, 0 if options["is_causal"] else right,
               None if lengths is None else lengths[part], options["softcap"] or 0.0,
               None if slopes is None else slopes[part], options["sinks"], None if lse is None else lse[part],
               None if entropy is None else entropy[part], _threads.threads_for(work // WORK))


def _calls(lead, arrays):
    """(B, arrays as (B, ...)) for each call of a kernel, as few as the strides of arrays (*lead, ...) allow."""
    if len(lead) == 1:
        yield lead[0], arrays
        return
    if not lead:
        yield 1, [x[None] for x in arrays]
        return
    n = len(lead)
    loops = _arrays.merged([(lead[i], tuple(x.strides[i] for x in arrays)) for i in range(n) if lead[i] > 1])
    batch, steps = loops.pop() if loops else (1, (0,) * len(arrays))
    sizes = tuple(size for size, _ in loops)
    seen = [as_strided(x, (*sizes, batch, *x.shape[n:]), (*(strides[i] for _, strides in loops), step, *x.strides[n:]))
            for i, (x, step) in enumerate(zip(arrays, steps, strict=True))]
    for index in np.ndindex(sizes):
        yield batch, [x[index] for x in seen]


def _by_reference(q, k, v, lead, heads, enable_gqa, options):
    """(y, lse, entropy) where no kernel's arithmetic will do."""
    def per_batch(numbers, *more):
        return None if numbers is None else numbers.reshape((*lead, *more))

    options = {**options, "causal_offset": per_batch(options["causal_offset"]),
               "key_lengths": per_batch(options["key_lengths"]),
               "alibi_slopes": per_batch(options["alibi_slopes"], heads)}
    return reference.scaled_dot_product_attention(
        q, k, v, enable_gqa=enable_gqa, return_lse=True, return_entropy=True, **options)


def _is_apart(out, inputs):
    """Whether out shares no memory with an input."""
    return not any(x is not None and np.may_share_memory(x, out) and np.shares_memory(x, out) for x in inputs)


def _is_ready(x):
    """Whether a kernel takes it: native, aligned, the elements of its last dimension side by side."""
    flags = x.flags
    if flags.c_contiguous and flags.aligned and x.dtype.isnative:
        return True
    return _arrays.takes(x) and (x.strides[-1] == x.itemsize or x.shape[-1] <= 1)


def _ready(x):
    return x if _is_ready(x) else _copied(x, _arrays.native(x.dtype))


def _copied(x, dtype):
    """A copy in this dtype. Dimensions that repeat the same memory, of stride 0, go on doing so, but for the last."""
    once = x[(*(slice(0, 1) if stride == 0 else slice(None) for stride in x.strides[:-1]), slice(None))]
    with np.errstate(all="ignore"):
        return np.broadcast_to(once.astype(dtype, order="C"), x.shape)


def _spread(x, shape):
    return x if x.shape == shape else np.broadcast_to(x, shape)


def _statistics(dtype):
    """The dtype of lse and entropy, which is also that of the arithmetic."""
    return np.dtype(np.float32) if dtype.itemsize < 8 else dtype


def _as_floats(x, name):
    array = _arrays.as_array(x, name, instead_of_masked=f"{name}.data, with attn_mask to hide keys,")
    if array.dtype.kind != "f" and _arrays.tag(array.dtype) is None:
        raise TypeError(f"{name} must be floating, got dtype {array.dtype}")
    return array


def _common_dtype(named):
    """The dtype of all, in native byte order."""
    dtypes = [_arrays.native(x.dtype) for x in named.values()]
    if any(dtype != dtypes[0] for dtype in dtypes):
        raise TypeError(f"{', '.join(named)} must have one dtype, got {', '.join(map(str, dtypes))}")
    return dtypes[0]


def _fitted(named, enable_gqa):
    """(dimensions before the heads, heads of the result, heads of key and value), where the shapes fit."""
    def misfit(a, b, why):
        return ValueError(f"{a} of shape {named[a].shape} does not fit {b} of shape {named[b].shape}: {why}")

    for name, x in named.items():
        if x.ndim < 2:
            raise ValueError(f"{name} must have at least two dimensions (..., positions, width), got shape {x.shape}")
    query, key, value = named.values()
    if query.shape[-1] != key.shape[-1]:
        raise misfit("query", "key", f"their last dimensions, E, are {query.shape[-1]} and {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise misfit("key", "value", f"there are {key.shape[-2]} keys and {value.shape[-2]} values")
    lead = query.shape[:-3]
    if not lead == key.shape[:-3] == value.shape[:-3]:
        for a, b in (("query", "key"), ("query", "value"), ("key", "value")):
            try:
                np.broadcast_shapes(named[a].shape[:-3], named[b].shape[:-3])
            except ValueError:
                raise misfit(a, b, "the dimensions before the heads do not broadcast") from None
        lead = np.broadcast_shapes(*(x.shape[:-3] for x in named.values()))
    heads, in_key, in_value = (x.shape[-3] if x.ndim > 2 else 1 for x in named.values())
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


def _as_term(x, name, shape, dtype):
    """What is added to scores, or hides them, as a kernel takes it, broadcast to their shape; None stays."""
    if x is None:
        return None
    array = _arrays.as_array(x, name, instead_of_masked=f"{name}.data")
    boolean = array.dtype == np.bool_ and name == "attn_mask"
    if not boolean and array.dtype.kind != "f" and _arrays.tag(array.dtype) is None:
        kinds = "boolean or floating" if name == "attn_mask" else "floating"
        raise TypeError(f"{name} must be {kinds}, got dtype {array.dtype}")
    wanted = array.dtype if boolean else dtype if _arrays.native(array.dtype) == dtype else _statistics(dtype)
    if array.dtype != wanted or not _arrays.takes(array):
        array = _copied(array, wanted) if array.ndim else array.astype(wanted)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape} does not broadcast to {shape}, the shape of the scores "
                         "(..., heads, queries, keys)") from None


def _as_reals(x, name, shape):
    """float64 of this shape, apart from the caller's; None stays."""
    if x is None:
        return None
    array = _arrays.as_array(x, name, instead_of_masked=f"{name}.data")
    if array.dtype.kind not in "iuf" and _arrays.tag(array.dtype) is None:
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    with np.errstate(all="ignore"):
        return _broadcast_copy(array, name, shape, np.float64)


def _as_ints(x, name, shape, limit=1 << 62):
    """int64 of this shape, apart from the caller's, clipped at -limit and limit."""
    if type(x) is int:          # of any size; NumPy would make an object of a large one
        return np.full(shape, max(-limit, min(x, limit)), np.int64)
    array = _arrays.as_array(x, name, instead_of_masked=f"{name}.data")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an int or an array of ints, got {array.dtype}")
    if array.dtype == np.uint64:
        array = np.minimum(array, np.uint64(limit))
    return np.minimum(np.maximum(_broadcast_copy(array, name, shape, np.int64), -limit), limit)


def _broadcast_copy(array, name, shape, dtype):
    try:
        return np.array(_spread(array, shape), dtype, order="C")
    except ValueError:
        meant = "one for each head" if len(shape) == 1 and name in ("scale", "sinks") else (
            "the dimensions up to the heads" if name == "alibi_slopes" else "the dimensions before the heads")
        raise ValueError(f"{name} of shape {array.shape} does not broadcast to {shape}: {meant}") from None


def _as_lengths(key_lengths, batch, keys):
    if key_lengths is None:
        return None
    lengths = _as_ints(key_lengths, "key_lengths", batch)
    bad = lengths.view(np.uint64) > keys        # so seen, negative numbers are large
    if bad.any():
        raise ValueError(f"key_lengths must be from 0 to the number of keys, {keys}; got {lengths[bad][0]}")
    return lengths


def _as_window(window):
    """(left, right), ints or None."""
    if window is None:
        return None, None
    if isinstance(window, str) or not isinstance(window, (Sequence, np.ndarray)):
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
    if softcap is None:
        return None
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
