"""Attention and its gradients from checked arguments to kernel calls, for all dtypes and instruction sets.

`without_options` is for calls that set no optional argument, since decoding makes very many of them. All others have
their arguments checked by `_validate`, and made as the kernels take them here; the reference computes long double,
extreme scales and extreme softcaps.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax import _dispatch, _fastpath, _softmax, _threads, _validate, reference
from fastsoftmax._dtypes import converted, native, saturated, statistics_dtype
from fastsoftmax._fastpath import as_strided, broadcast_to
from fastsoftmax._fp_env import default_fp_env
from fastsoftmax._layout import batches, cached_full, elements, kernel_ready, no_overlap
from fastsoftmax._validate import MAX_DISTANCE

MERGE_ELEMENTS = 1 << 16            # elements of outputs that are merged at a time, in the cache
PRODUCTS_PER_ELEMENT = 1 << 6       # multiplications that take about as long as one element of softmax
READS_PER_ELEMENT = 1 << 2          # numbers of keys and values that take as long to read, if there are few queries
SOFTCAPS = 1e-30, 1e30              # between these the kernels' arithmetic holds


class KernelCall(NamedTuple):
    """The operands of a kernel's function `attention`, which describes their shapes. None, -1: not set."""

    q: Any
    k: Any
    v: Any
    y: Any
    biases: tuple[Any, ...]
    scale: Any
    offset: Any
    left: int
    right: int
    lengths: Any
    softcap: float              # 0.0: not set
    slopes: Any
    sinks: Any
    lse: Any
    entropy: Any
    first_query: Any = None     # of packed sequences
    first_key: Any = None
    pages: Any = None


def without_options(inputs, is_causal, causal_offset, out):
    """The result of a call that sets no optional argument, so that none is checked; None if causal_offset or out needs
    a check."""
    if type(causal_offset) is not int or not -MAX_DISTANCE <= causal_offset <= MAX_DISTANCE:
        return None
    y = _fastpath.attention_out(inputs, out)
    if y is None:
        return None
    threads = _threads.threads_for(inputs.products // _products_of_rows(inputs.rows))
    call_kernel(inputs.tag, inputs.q, inputs.k, inputs.v, y, (), _default_scale(inputs.head_dim, inputs.heads),
                cached_full(causal_offset, inputs.batch, np.int64), -1, 0 if is_causal else -1, None, 0.0, None, None,
                None, None, threads=threads)
    return out if out is not None else y[(0,) * inputs.added] if inputs.added else y


@default_fp_env
def attention(inputs, query, key, value, attn_mask, is_causal, scale, enable_gqa, bias, causal_offset, window, softcap,
              alibi_slopes, sinks, key_lengths, return_lse, return_entropy, out):
    """scaled_dot_product_attention; `inputs` are those of the fast path, or None."""
    if inputs is None:
        inputs = prepare_qkv(*_validate.query_key_value(query, key, value, enable_gqa))
    options = _validate.attention_options(inputs, attn_mask, is_causal, scale, bias, causal_offset, window, softcap,
                                          alibi_slopes, sinks, key_lengths, out)
    bias, attn_mask = _prepare_bias(options.bias, inputs), _prepare_bias(options.attn_mask, inputs)
    if needs_reference(inputs, options):
        y, lse, entropy = _from_reference(inputs, options, bias, attn_mask)
    else:
        y, lse, entropy = _from_kernel(inputs, options, bias, attn_mask, return_lse, return_entropy, out)
    if inputs.added:
        y, lse, entropy = [None if x is None else x[(0,) * inputs.added] for x in (y, lse, entropy)]
    return returned(y, lse, entropy, return_lse, return_entropy, out)


def returned(y, lse, entropy, return_lse, return_entropy, out):
    """The results that were asked for; y is brought to `out`, if that is given."""
    if out is not None:
        if not np.may_share_memory(y, out):     # otherwise the kernel has written to out
            np.copyto(out, y)
        y = out
    if return_lse:
        return (y, lse, entropy) if return_entropy else (y, lse)
    return (y, entropy) if return_entropy else y


def prepare_qkv(query, key, value, batch, heads, key_heads):
    """AttentionInputs of arrays that fit: copied if a kernel does not take them, and broadcast."""
    added = 0 if batch else 2 if query.ndim == key.ndim == value.ndim == 2 else 1
    batch = batch or (1,)
    q, k, v = (broadcast_to(rows_ready(x), (*batch, n, *x.shape[-2:]))
               for x, n in ((query, heads), (key, key_heads), (value, key_heads)))
    return _fastpath.AttentionInputs(q, k, v, added)


def rows_ready(x):
    """x, or a copy if a kernel does not take it as rows of elements."""
    return x if kernel_ready(x, contiguous_rows=True) else _copied(x, native(x.dtype))


def _prepare_bias(x, inputs):
    """A mask or bias as a kernel takes it; None stays.

    Where it ends early, the view has all keys even so: no kernel reads beyond a length.
    """
    if x is None:
        return None
    dtype = x.dtype
    if dtype.kind != "b":
        dtype = inputs.k.dtype if native(dtype) == inputs.k.dtype else statistics_dtype(inputs.k.dtype)
    if x.dtype != dtype or not kernel_ready(x):
        x = _copied(x, dtype, broadcast_rows=True)
    return x if x.shape[-1] == inputs.keys else as_strided(x, (*x.shape[:-1], inputs.keys), x.strides)


def _copied(x, dtype, broadcast_rows=False):
    """A copy in this dtype, in which dimensions of stride 0 keep that stride; the last one only with broadcast_rows."""
    strides = x.strides if broadcast_rows else (*x.strides[:-1], None)
    once = x[tuple([slice(0, 1) if stride == 0 else slice(None) for stride in strides])]
    return broadcast_to(saturated(once, dtype), x.shape)


def needs_reference(inputs, options):
    """Whether the kernels have no such dtype, or a product with the scale or softcap may be beyond their range."""
    least, most = SOFTCAPS
    if inputs.tag is None or not (options.softcap is None or least < options.softcap < most):
        return True
    if options.scale is None:
        return False
    return abs(options.scale).max(initial=0) > (1e30 if options.statistics_dtype.itemsize < 8 else 1e200)


def _from_reference(inputs, options, bias, attn_mask):
    """(y, lse, entropy)."""
    q, k, v, statistics = inputs.q, inputs.k, inputs.v, options.statistics_dtype
    if inputs.tag is not None:      # a product of float64 with an extreme scale may be beyond the range of float64
        q = q.astype(np.longdouble if inputs.tag == "f64" and options.scale is not None else np.float64)
    if options.key_lengths is not None:         # a mask may hold nothing beyond the longest length
        longest = options.key_lengths.max(initial=0)
        k, v = k[..., :longest, :], v[..., :longest, :]
        bias, attn_mask = (None if x is None else x[..., :longest] for x in (bias, attn_mask))
    y, lse, entropy = reference.scaled_dot_product_attention(
        q, k, v, attn_mask, is_causal=options.is_causal, scale=options.scale, enable_gqa=True, bias=bias,
        causal_offset=options.causal_offset, window=options.window, softcap=options.softcap,
        alibi_slopes=options.alibi_slopes, sinks=options.sinks, key_lengths=options.key_lengths, return_lse=True,
        return_entropy=True)
    return reference._round(y, options.result_dtype), saturated(lse, statistics), saturated(entropy, statistics)


def _from_kernel(inputs, options, bias, attn_mask, return_lse, return_entropy, out):
    """(y, lse, entropy); y is a view of `out` if the kernel can write there. None: not returned."""
    q, k, v, statistics = inputs.q, inputs.k, inputs.v, options.statistics_dtype
    in_place = (out is not None and kernel_ready(out, contiguous_rows=True)
                and no_overlap(out, q, k, v, bias, attn_mask))
    y = np.asarray(out)[(None,) * inputs.added] if in_place else np.empty(inputs.out_shape, options.result_dtype)
    lse = np.empty(inputs.out_shape[:-1], statistics) if return_lse else None
    entropy = np.empty(inputs.out_shape[:-1], statistics) if return_entropy else None
    _compute(inputs.tag, (q, k, v, y, _given(bias, attn_mask), *kernel_options(inputs, options), lse, entropy))
    return y, lse, entropy


def kernel_options(inputs, options):
    """(scale, offset, left, right, lengths, softcap, slopes, sinks) as a kernel takes them."""
    left, right = _limits(options.window)
    return (_default_scale(inputs.head_dim, inputs.heads) if options.scale is None else options.scale,
            options.causal_offset, left, 0 if options.is_causal else right, options.key_lengths,
            options.softcap or 0.0, options.alibi_slopes, options.sinks)


def _limits(window):
    """(left, right) as a kernel takes them: -1 for no limit."""
    if window == (None, None):
        return -1, -1
    return tuple([-1 if limit is None else min(limit, MAX_DISTANCE) for limit in window])


def _given(bias, attn_mask):
    """Those of the two that are not None."""
    return () if bias is None and attn_mask is None else tuple([x for x in (bias, attn_mask) if x is not None])


@functools.lru_cache(maxsize=64)
@default_fp_env
def _default_scale(head_dim, heads):
    return np.broadcast_to(1 / math.sqrt(head_dim or 1), (heads,))      # one number: there may be millions of heads


def _compute(tag, operands):
    """Write y, lse and entropy, with as few calls of a kernel as a batch of several dimensions allows."""
    q, k, v, y, *_ = operands
    if y.ndim == 4 and q.size and k.size and v.size:
        call_kernel(tag, *operands)
        return
    call, batch = KernelCall(*operands), y.shape[:-3]
    if 0 in y.shape[:-1] or (y.size == 0 and call.lse is call.entropy is None):
        return
    call = not_empty(call)
    if len(batch) == 1:
        call_kernel(tag, *call)
        return
    per_entry = [None if x is None else x.reshape(-1, *x.shape[len(batch):])
                 for x in (call.offset, call.lengths, call.slopes, call.lse, call.entropy)]
    done = 0
    for q, k, v, y, *biases in batches(batch, [*call[:4], *call.biases]):
        offset, lengths, slopes, lse, entropy = (None if x is None else x[done:done + len(q)] for x in per_entry)
        call_kernel(tag, *call._replace(q=q, k=k, v=v, y=y, biases=tuple(biases), offset=offset, lengths=lengths,
                                        slopes=slopes, lse=lse, entropy=entropy))
        done += len(q)


def not_empty(call):
    """The same call with one hidden key instead of none, and with vectors of one zero instead of none."""
    q, k, v, y = call.q, call.k, call.v, call.y
    if k.shape[-2] == 0:
        k, v = (np.zeros((*x.shape[:-2], 1, x.shape[-1]), x.dtype) for x in (k, v))
        call = call._replace(biases=(), lengths=np.zeros(q.shape[:-3], np.int64))
    if q.shape[-1] == 0:
        q, k = (np.zeros((*x.shape[:-1], 1), x.dtype) for x in (q, k))
    if v.shape[-1] == 0:
        v, y = (np.zeros((*x.shape[:-1], 1), x.dtype) for x in (v, y))
    return call._replace(q=q, k=k, v=v, y=y)


def products_per_element(q, k, sequences):
    """Multiplications that take as long as one element of softmax: fewer, where few queries share the reading of a key.

    The queries of packed sequences are counted as if the sequences were of one length.
    """
    return _products_of_rows(q.shape[1] // k.shape[1] * max(q.shape[0] * q.shape[2] // sequences, 1))


def _products_of_rows(rows):
    """products_per_element, from the number of rows of queries that share a key head."""
    return PRODUCTS_PER_ELEMENT if rows >= PRODUCTS_PER_ELEMENT // READS_PER_ELEMENT else READS_PER_ELEMENT * rows


def call_kernel(tag, q, k, v, y, biases, scale, offset, left, right, lengths, softcap, slopes, sinks, lse, entropy,
                first_query=None, first_key=None, pages=None, products=None, threads=None):
    """Write y, lse and entropy with one call of a kernel; products: multiplications of numbers, if fewer than L x S a
    head; threads: how many, if that is known."""
    if threads is None:
        if products is None:
            products = (q.size + y.size) * k.shape[2]
        threads = _threads.threads_for(products // products_per_element(q, k, len(offset)))
    if k.itemsize == 2:
        q, k, v, y = _halves(q), elements(k), elements(v), _halves(y)
    if biases:
        biases = tuple([elements(x) for x in biases])
    _dispatch.kernels(tag).attention(
        q, k, v, y, biases, scale, offset, left, right, lengths, softcap, slopes, sinks, lse, entropy, threads,
        first_query, first_key, pages)


# ---- gradients

class BackwardCall(NamedTuple):
    """The operands of a kernel's function `attention_backward`, which describes their shapes. None, -1: not set."""

    grad_out: Any
    q: Any
    k: Any
    v: Any
    y: Any
    lse: Any
    biases: tuple[Any, ...]
    scale: Any
    offset: Any
    left: int
    right: int
    lengths: Any
    softcap: float              # 0.0: not set
    slopes: Any
    sinks: Any
    grad_lse: Any
    dq: Any
    dk: Any
    dv: Any
    delta: Any
    dscale: Any
    dbiases: tuple[Any, ...]
    dsinks: Any
    dslopes: Any


@default_fp_env
def attention_backward(inputs, grad_out, query, key, value, out, lse, attn_mask, is_causal, scale, enable_gqa, bias,
                       causal_offset, window, softcap, alibi_slopes, sinks, key_lengths, grad_lse, wanted):
    """scaled_dot_product_attention_backward; `inputs` are those of the fast path, or None; `wanted` are five bools."""
    if inputs is None:
        query, key, value, *sizes = _validate.query_key_value(query, key, value, enable_gqa)
        inputs = prepare_qkv(query, key, value, *sizes)
    options = _validate.attention_options(inputs, attn_mask, is_causal, scale, bias, causal_offset, window, softcap,
                                          alibi_slopes, sinks, key_lengths, None)
    shape, added = inputs.out_shape[inputs.added:], (None,) * inputs.added
    forward = _validate.forward_results(inputs.q.dtype, shape, shape[:-1], grad_out, out, lse, grad_lse)
    forward = forward._make([None if x is None else x[added] for x in forward])
    wanted = _validate.wanted_gradients(options, scale, wanted)
    per_head = (inputs.heads,), options.statistics_dtype
    results = [             # shape and dtype of each
        *((x.shape, native(x.dtype)) for x in (query, key, value)), per_head if wanted.scale else None,
        (np.shape(attn_mask), native(options.attn_mask.dtype)) if wanted.mask else None,
        (np.shape(bias), native(options.bias.dtype)) if wanted.bias else None, per_head if wanted.sinks else None,
        (np.broadcast_shapes(np.shape(alibi_slopes), per_head[0]), per_head[1]) if wanted.slopes else None]
    if needs_reference(inputs, options):
        gradients = _gradients_from_reference(inputs, options, forward, wanted)
    else:
        gradients = _gradients_from_kernel(inputs, options, forward, wanted, results)
    return tuple([sum_to(x, *result) for x, result in zip(gradients, results, strict=True) if result is not None])


def sum_to(x, shape, dtype):
    """x summed over the dimensions that `shape` has not, or has with length 1; rounded to dtype once."""
    if x.shape == shape and x.dtype == dtype:
        return x
    own = (1,) * (x.ndim - len(shape)) + shape
    axes = tuple([i for i, size in enumerate(x.shape) if size != own[i]])
    if axes:
        with np.errstate(all="ignore"):
            x = x.sum(axes, np.result_type(x.dtype, np.float64))
    x = x.reshape(shape)
    if x.dtype == dtype:
        return x
    with np.errstate(all="ignore"):
        return np.asarray(reference._round(x, dtype))


def _gradients_from_reference(inputs, options, forward, wanted):
    """As `_gradients_from_kernel`."""
    wide = np.longdouble if inputs.tag in (None, "f64") else np.float64
    q, k, v, grad_out, out = (converted(x, wide) for x in (inputs.q, inputs.k, inputs.v, forward.grad_out, forward.out))
    attn_mask, bias = (x if x is None or x.dtype.kind == "b" else converted(x, wide)
                       for x in (options.attn_mask, options.bias))
    arguments = {
        "attn_mask": attn_mask, "is_causal": options.is_causal, "scale": options.scale, "enable_gqa": True,
        "bias": bias, "causal_offset": options.causal_offset, "window": options.window, "softcap": options.softcap,
        "alibi_slopes": options.alibi_slopes, "sinks": options.sinks, "key_lengths": options.key_lengths}
    lse, grad_lse = converted(forward.lse, wide), forward.grad_lse
    if inputs.tag is not None:      # of large scores, a rounded lse has no digits left: take it as it was before
        _, unrounded = reference.scaled_dot_product_attention(q, k, v, **arguments, return_lse=True)
        lse = np.where(saturated(unrounded, options.statistics_dtype) == forward.lse, unrounded, lse)
    found = reference.scaled_dot_product_attention_backward(
        grad_out, q, k, v, out, lse, **arguments, grad_lse=None if grad_lse is None else converted(grad_lse, wide),
        **{f"grad_{name}": asked for name, asked in wanted._asdict().items()})
    extra = iter(found[3:])
    return [*found[:3], *(next(extra) if asked else None for asked in wanted)]


def _gradients_from_kernel(inputs, options, forward, wanted, results):
    """[dquery, dkey, dvalue, dscale, dmask, dbias, dsinks, dslopes]; None: not asked for.

    results: shape and dtype of each. Those of arrays that broadcast have all dimensions of the batch, and the heads,
    and wider numbers, to be summed; but dmask and dbias are sums already, since all their terms need L x S numbers.
    """
    q, k, v, statistics = inputs.q, inputs.k, inputs.v, options.statistics_dtype
    per_head, splits = (*inputs.batch, inputs.heads), _dispatch.kernels(inputs.tag).attention_grad_splits(inputs.keys)
    dq, dk, dv = (np.empty(x.shape, dtype if math.prod(shape) == x.size else statistics)
                  for x, (shape, dtype) in ((q, results[0]), (k, results[1]), (v, results[2])))
    dscale, dsinks = (np.zeros(per_head, np.float64) if asked else None for asked in (wanted.scale, wanted.sinks))
    dmask, dbias = (
        np.zeros(result[0], statistics if math.prod(result[0]) == x.size else np.float64) if result else None
        for x, result in ((options.attn_mask, results[4]), (options.bias, results[5])))
    dslopes = np.zeros((*per_head, splits), np.float64) if wanted.slopes else None
    _compute_backward(inputs.tag, BackwardCall(
        rows_ready(forward.grad_out), q, k, v, rows_ready(forward.out), contiguous(forward.lse),
        tuple([_prepare_bias(x, inputs) for x in (options.bias, options.attn_mask) if x is not None]),
        *kernel_options(inputs, options), None if forward.grad_lse is None else contiguous(forward.grad_lse),
        dq, dk, dv, np.empty(inputs.out_shape[:-1], statistics), dscale,
        tuple([broadcast_to(dx, x.shape) for dx, x in ((dbias, options.bias), (dmask, options.attn_mask))
               if dx is not None]),
        dsinks, dslopes))
    return [dq, dk, dv, dscale, dmask, dbias, dsinks, None if dslopes is None else dslopes.sum(-1)]


def contiguous(x):
    """x, or a native copy of adjacent elements."""
    flags = x.flags
    if flags.c_contiguous and flags.aligned and x.dtype.isnative:
        return x
    return np.require(x, native(x.dtype), "CA")


def _compute_backward(tag, call):
    """Write the gradients, with as few calls of a kernel as a batch of several dimensions allows."""
    batch = call.q.shape[:-3]
    if 0 in call.delta.shape:
        call.dk[...] = call.dv[...] = 0
        return
    call = not_empty_backward(call)
    if len(batch) == 1:
        call_backward_kernel(tag, call)
        return
    names = ("lse", "offset", "lengths", "slopes", "grad_lse", "delta", "dscale", "dsinks", "dslopes")
    per_entry = {name: x.reshape(-1, *x.shape[len(batch):]) for name in names
                 if (x := getattr(call, name)) is not None}
    done, count = 0, len(call.biases)
    for arrays in batches(batch, [*call[:5], call.dq, call.dk, call.dv, *call.biases, *call.dbiases]):
        grad_out, q, k, v, y, dq, dk, dv, *biases = arrays
        of_entries = {name: x[done:done + len(q)] for name, x in per_entry.items()}
        call_backward_kernel(tag, call._replace(
            grad_out=grad_out, q=q, k=k, v=v, y=y, dq=dq, dk=dk, dv=dv, biases=tuple(biases[:count]),
            dbiases=tuple(biases[count:]), **of_entries))
        done += len(q)


def not_empty_backward(call):
    """As `not_empty`. A gradient that is empty is written to an array that is not, and lost."""
    if call.k.size and call.q.size and call.v.size:
        return call
    padded = not_empty(call)
    if call.k.shape[-2] == 0:
        padded = padded._replace(dbiases=())
    grad_out = call.grad_out if call.v.shape[-1] else np.zeros(padded.y.shape, call.grad_out.dtype)
    dq, dk, dv = (dx if dx.shape == x.shape else np.empty(x.shape, dx.dtype) for dx, x in (
        (call.dq, padded.q), (call.dk, padded.k), (call.dv, padded.v)))
    return padded._replace(grad_out=grad_out, dq=dq, dk=dk, dv=dv)


def call_backward_kernel(tag, call, first_query=None, first_key=None, products=None):
    """Write the gradients with one call of a kernel."""
    q, k = call.q, call.k
    if products is None:
        products = (3 * q.size + 2 * call.y.size) * k.shape[2]
    threads = _threads.threads_for(products // PRODUCTS_PER_ELEMENT)
    splits = _dispatch.kernels(tag).attention_grad_splits(k.shape[2])
    several = len(q) > 1, k.shape[1] > 1, False, splits > 1         # tasks in each dimension of the scores
    in_order = any(many and stride == 0
                   for dx in call.dbiases for many, stride in zip(several, dx.strides, strict=True))
    if k.itemsize == 2:
        call = call._replace(**{name: _halves(getattr(call, name)) for name in (
            "grad_out", "q", "k", "v", "y", "dq", "dk", "dv")})
    if call.biases:
        call = call._replace(biases=tuple([elements(x) for x in call.biases]))
    _dispatch.kernels(tag).attention_backward(*call, in_order, threads, first_query, first_key)


def _halves(x):
    """A query or result as a kernel for 16-bit keys sees it: float32 as twice as many elements of 16 bits."""
    if x.strides[-1] != x.itemsize:         # the stride of a single element is arbitrary, but a view needs it right
        x = as_strided(x, x.shape, (*x.strides[:-1], x.itemsize))
    return x.view(np.uint16)


@default_fp_env
def merge_attention_states(outputs, lses, axis=0, dim=None):
    """merge_attention_states."""
    parts, part_lses, dtype = _validate.attention_states(outputs, lses, axis, dim)
    statistics = statistics_dtype(dtype)
    wide = np.result_type(statistics, np.float64)               # rounded once, at the end
    *lead, width = parts[0].shape
    rows = math.prod(lead)
    if isinstance(parts, np.ndarray):
        parts = parts.reshape(len(parts), rows, width)
    else:
        parts = [x.reshape(rows, width) for x in parts]
    stacked = np.array(part_lses, wide).reshape(len(parts), rows)
    out = np.empty((rows, width), wide)
    rows_at_once = max(min(MERGE_ELEMENTS // 8 // max(width, 1), rows), 1)
    parts_at_once = max(MERGE_ELEMENTS // max(rows_at_once * width, 1), 1)
    with np.errstate(all="ignore"):
        peak = stacked.max(0)
        # Not softmax: here the weight of a part that alone has seen keys is exactly 1.
        weights = np.exp(stacked - np.where(np.isfinite(peak), peak, 0))
        for row in range(0, rows, rows_at_once):
            here = slice(row, row + rows_at_once)
            out[here] = _pairwise_sum(_weighted_sum(_of_rows(parts[first:first + parts_at_once], here),
                                                    weights[first:first + parts_at_once, here, None])
                                      for first in range(0, len(parts), parts_at_once))
        total = _sum_by_halves(weights.copy())[:, None]
        np.divide(out, total, out=out, where=total != 0)
        lse = saturated(np.asarray(_softmax.logsumexp(stacked, 0)), statistics)
    return reference._round(out, dtype).reshape(*lead, width), lse.reshape(lead)


def _of_rows(parts, here):
    """These rows of parts: of an array that holds them, or of each in a list."""
    return parts[:, here] if isinstance(parts, np.ndarray) else [x[here] for x in parts]


def _weighted_sum(parts, weights):
    """The sum of parts times their weights, in the dtype of the weights; a part of weight 0 is not read."""
    terms = np.array(parts, weights.dtype)
    if not weights.all():
        np.copyto(terms, 0, where=weights == 0)
    return _sum_by_halves(np.multiply(terms, weights, out=terms))


def _sum_by_halves(x):
    """The sum along the first dimension, in place, by halves: its error grows with the logarithm of their number."""
    while len(x) > 1:
        half = len(x) // 2
        x[:half] += x[len(x) - half:]
        x = x[:len(x) - half]
    return x[0]


def _pairwise_sum(arrays):
    """The sum of an iterable's arrays, two by two, those sums two by two, and so on, in memory of log2(n) arrays."""
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
