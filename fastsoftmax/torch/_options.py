"""The options of attention as arguments of ops, shared by the dense and the packed form.

An op has few arguments, since each costs time in every call: numbers come in two lists.
"""

import math

import torch

from fastsoftmax import _validate
from fastsoftmax.torch._library import array, number_or_tensor, optional, sum_to

# The last arguments of each op. Of options that may be a number or a tensor, `floats` and `ints` hold the number.
SCHEMA = "Tensor? scale, Tensor? alibi_slopes, Tensor? sinks, Tensor? causal_offset, float[] floats, SymInt[] ints"
COUNT = 6
FLAGS = 4           # of `ints`: is_causal, enable_gqa, and the two of `flagged`; behind them left, right, causal_offset
UNLIMITED = -1      # of `ints`, a side of the window


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


def flagged(options, has_grad, return_entropy):
    """The same arguments, with what else a call returns."""
    *rest, ints = options
    return (*rest, [*ints[:2], int(has_grad), int(return_entropy), *ints[FLAGS:]])


def flags(ints):
    """(has_grad, return_entropy)."""
    return bool(ints[2]), bool(ints[3])


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


def to_argument(grad, x):
    """A gradient in the shape and dtype of its argument, which may be one number for all heads."""
    return sum_to(grad, x.shape, x.dtype)
