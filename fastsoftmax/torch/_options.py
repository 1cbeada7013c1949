"""Shared by the dense and the packed form of attention: options as arguments of ops, results, the backward formula.

Each form has an op for the result alone, one with lse and entropy, one with what a backward pass needs, and its
gradient. An op has few arguments, since each costs time in every call: numbers come in two lists.
"""

import math

import torch

from fastsoftmax import _validate
from fastsoftmax.torch._library import (
    array,
    empty,
    nothing,
    number_or_tensor,
    optional,
    statistics_dtype,
    sum_to,
    tensor,
)

# The last arguments of each op. Of options that may be a number or a tensor, `floats` and `ints` hold the number:
# `floats` are scale and softcap, NaN and 0 if not set; `ints` are is_causal, enable_gqa, whether there will be a
# backward pass and whether to return entropy, the sides of the window, and, if there is one, causal_offset.
SCHEMA = "Tensor? scale, Tensor? alibi_slopes, Tensor? sinks, Tensor? causal_offset, float[] floats, SymInt[] ints"
UNLIMITED = -1      # a side of the window


def of_call(is_causal, enable_gqa, scale, causal_offset, window, softcap, alibi_slopes, sinks):
    """The arguments of SCHEMA."""
    number, scale = (math.nan, None) if scale is None else number_or_tensor(scale, "scale")
    left, right = (UNLIMITED, UNLIMITED) if window is None else _window(window)
    ints = [int(is_causal), int(enable_gqa), 0, 0, left, right]
    if causal_offset is not None:
        offset, causal_offset = number_or_tensor(causal_offset, "causal_offset")
        ints.append(offset)
    if softcap is not None and not 0 < softcap < math.inf:
        _validate._softcap(softcap)
    return (scale, optional(alibi_slopes, "alibi_slopes"), optional(sinks, "sinks"), causal_offset,
            [number, 0.0 if softcap is None else softcap], ints)


def _window(window):
    if type(window) is not tuple or len(window) != 2:
        window = _validate._window(window)
    for limit in window:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, torch.SymInt)) or limit < 0):
            window = _validate._window(window)
    return tuple([UNLIMITED if limit is None else limit for limit in window])


def for_numpy(scale, alibi_slopes, sinks, causal_offset, floats, ints):
    """Keyword arguments of the NumPy functions. Those not set are left out, which is their fast path."""
    is_causal, enable_gqa, _, _, left, right = ints[:6]
    options = {"is_causal": bool(is_causal), "enable_gqa": bool(enable_gqa)}
    number, softcap = floats
    if scale is not None or number == number:
        options["scale"] = number if scale is None else array(scale)
    if len(ints) > 6:
        options["causal_offset"] = ints[6] if causal_offset is None else array(causal_offset)
    if left != UNLIMITED or right != UNLIMITED:
        options["window"] = tuple([None if limit == UNLIMITED else limit for limit in (left, right)])
    if softcap:
        options["softcap"] = softcap
    if alibi_slopes is not None:
        options["alibi_slopes"] = array(alibi_slopes)
    if sinks is not None:
        options["sinks"] = array(sinks)
    return options


# ---- results

def call(ops, tensors, options, return_lse, return_entropy):
    """The results of the first, second or third of the ops; `tensors` and `options` are its arguments."""
    has_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (*tensors, *options[:4]))
    if not (has_grad or return_lse or return_entropy):
        return ops[0](*tensors, *options)
    *rest, ints = options
    ints = [*ints[:2], int(has_grad), int(return_entropy), *ints[4:]]
    out, lse, entropy, *_ = ops[2 if has_grad else 1](*tensors, *rest, ints)
    if not (return_lse or return_entropy):
        return out
    return (out, *([lse] if return_lse else []), *([entropy] if return_entropy else []))


def results(function, query, out_shape, ints, keywords):
    """(out, lse, entropy, out in float32 for 16-bit queries if there will be a backward pass).

    `out_shape` is a function, since it takes longer than all else here.
    """
    has_grad, return_entropy = bool(ints[2]), bool(ints[3])
    wide, dtype = has_grad and query.itemsize == 2, statistics_dtype(query.dtype)
    if wide:
        keywords["out"] = array(empty(out_shape(), dtype))
    out, lse, *entropy = function(**keywords, return_lse=True, return_entropy=return_entropy)
    out = tensor(out, dtype if wide else query.dtype)
    return (out.to(query.dtype) if wide else out, tensor(lse, dtype),
            tensor(entropy[0], dtype) if entropy else nothing(dtype), out if wide else nothing(dtype))


def fake_results(query, out_shape, lse_shape, ints):
    """As `results`, of shapes alone."""
    dtype = statistics_dtype(query.dtype)
    return (query.new_empty(out_shape), query.new_empty(lse_shape, dtype=dtype),
            query.new_empty(lse_shape if ints[3] else 0, dtype=dtype),
            query.new_empty(out_shape if ints[2] and query.itemsize == 2 else 0, dtype=dtype))


# ---- gradients

def setup_context(ctx, inputs, output):
    """Keep the tensors among the arguments of an op whose results are those of `results`."""
    out, lse, entropy, wide = output
    *tensors, ctx.floats, ctx.ints = inputs
    ctx.save_for_backward(*tensors, wide if tensors[0].itemsize == 2 else out, lse)
    ctx.mark_non_differentiable(entropy, wide)
    ctx.set_materialize_grads(False)


def backward_by(gradient, places):
    """The formula by an op; `places` are those of the arguments with gradients beside the first three, in the op's
    order."""
    def backward(ctx, grad_out, grad_lse, *_):
        *tensors, out, lse = ctx.saved_tensors
        needs, gradients = ctx.needs_input_grad, [None] * (len(tensors) + 2)
        if grad_out is None and grad_lse is None:
            return tuple(gradients)
        if not ctx.ints[2]:
            raise NotImplementedError("this call has kept nothing for a backward pass: call the function of "
                                      "fastsoftmax.torch, where gradients are enabled, and not its op")
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        found = gradient(grad_out, out, lse, grad_lse, *tensors, ctx.floats, ctx.ints, [needs[i] for i in places])
        for place, grad in zip((0, 1, 2, *places), found, strict=True):
            if needs[place]:            # an argument may be one number for all heads
                gradients[place] = grad if place < 3 else sum_to(grad, tensors[place].shape, tensors[place].dtype)
        return tuple(gradients)

    return backward


def gradients_of(found, inputs, wanted, dtypes):
    """The results of a gradient's op from those of the NumPy function: those not wanted have no elements."""
    others = iter(found[3:])
    return (*(tensor(grad, x.dtype) for grad, x in zip(found[:3], inputs[:3], strict=True)),
            *(tensor(next(others), dtype) if asked else nothing(dtype)
              for asked, dtype in zip(wanted, dtypes, strict=True)))
