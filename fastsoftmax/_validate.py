"""Every check of the array functions' arguments, and every error message.

Each public function has its function here. It takes the arguments as the caller passed them and returns them checked:
arrays of known dtypes, axes from 0, temperatures, masks and numbers per head broadcast to the input. No other module
raises an error about an argument of theirs.
"""

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._dtypes import (
    common_dtype,
    converted,
    native,
    natural_dtype,
    real_dtype,
    saturated,
    statistics_dtype,
)
from fastsoftmax._fastpath import broadcast_to, tag
from fastsoftmax._layout import cached_full, elements_overlap

MAX_DISTANCE = 1 << 40      # of positions: larger than any array, and small enough that their sums fit in int64
TEMPERATURES = 1e-30, 1e30  # between these the kernels' arithmetic holds

# ---- the softmax family


class RowArguments(NamedTuple):
    """The checked arguments of a function of rows."""

    x: Any
    axes: tuple[int, ...]       # sorted, from 0
    temperature: Any            # a float, or a float64 array with x's number of dimensions and length 1 along the axes
    where: Any                  # None, or booleans broadcast to the shape of x
    compute_dtype: Any          # the kernel's or the reference's
    result_dtype: Any
    has_kernel: bool            # otherwise the reference computes the result


def elementwise(x, axis, temperature, where, dtype, out, dim):
    """The arguments of softmax and log_softmax."""
    arguments = _rows(x, axis, temperature, where, dtype, dim)
    if out is not None:
        _check_out(out, arguments.x.shape, arguments.result_dtype)
    return arguments


def entropy(x, axis, temperature, where, dim):
    """The arguments of softmax_entropy."""
    arguments = _rows(x, axis, temperature, where, None, dim)
    if arguments.result_dtype.kind == "c":
        raise TypeError(f"softmax_entropy takes real scores, got {arguments.result_dtype}")
    return arguments


def _rows(x, axis, temperature, where, dtype, dim):
    _refuse_dim(dim)
    x = _scores(x, "x")
    axes = _axes(axis, x.ndim)
    compute_dtype, result_dtype = _result_dtypes(x.dtype, dtype, integers_to_float64=False)
    temperature, moderate = _temperature(temperature, x.shape, axes)
    where = _where(where, x.shape)
    if x.size == 0 and any(x.shape[i] == 0 for i in axes):
        raise ValueError(f"the reduction is over nothing: axis {next(i for i in axes if x.shape[i] == 0)} of shape "
                         f"{x.shape} is empty")
    return RowArguments(x, axes, temperature, where, compute_dtype, result_dtype,
                        moderate and tag(compute_dtype) is not None)


def logsumexp(a, axis, b, keepdims, return_sign, where, dtype, out, dim):
    """(arguments, b with the shape of their x or None, shape of the result, dtype of its logarithm)."""
    _refuse_dim(dim)
    x = _scores(a, "a")
    dtype_of_x = np.dtype(np.float64) if x.dtype.kind == "O" else x.dtype
    if b is not None:
        factors = as_numbers(b, "b")
        dtype_of_x = dtype_of_x if x.dtype.kind == "O" else common_dtype(a, x, b, factors)
        x, b = np.broadcast_arrays(x, factors)
    axes = _axes(axis, x.ndim)
    compute_dtype, result_dtype = _result_dtypes(dtype_of_x, dtype, integers_to_float64=True)
    where = _where(where, x.shape)
    if keepdims:
        shape = tuple([1 if i in axes else size for i, size in enumerate(x.shape)])
    else:
        shape = tuple([size for i, size in enumerate(x.shape) if i not in axes])
    # The sign of a complex sum is complex; the logarithm is then that of its magnitude.
    log_dtype = real_dtype(result_dtype) if return_sign else result_dtype
    if out is not None:
        _check_out(out, shape, log_dtype)
    arguments = RowArguments(x, axes, 1.0, where, compute_dtype, result_dtype,
                             b is None and tag(compute_dtype) is not None)
    return arguments, b, shape, log_dtype


def causal_softmax(scores, offset, temperature, dtype, out):
    """(arguments, offset)."""
    x = _matrices(scores)
    offset = _offset(offset)
    compute_dtype, result_dtype = _result_dtypes(x.dtype, dtype, integers_to_float64=False)
    axes = (x.ndim - 1,)
    temperature, moderate = _temperature(temperature, x.shape, axes)
    if out is not None:
        _check_out(out, x.shape, result_dtype)
    return RowArguments(x, axes, temperature, None, compute_dtype, result_dtype,
                        moderate and tag(compute_dtype) is not None), offset


def causal_mask(scores, offset, fill_value):
    """(scores as an ndarray, offset, fill_value as a float)."""
    if isinstance(scores, np.ma.MaskedArray):
        raise TypeError("scores is a masked array; pass scores.data, which is then changed in place")
    if not isinstance(scores, np.ndarray):
        raise TypeError(f"scores must be an ndarray, since it is changed in place; got {type(scores).__name__}")
    x = _matrices(scores)
    if x.dtype.kind not in "fc" and tag(x.dtype) is None:
        raise TypeError(f"scores must be floating, got dtype {x.dtype}")
    if not x.flags.writeable:
        raise ValueError("scores is read-only; it is changed in place")
    if elements_overlap(x):
        raise ValueError(f"elements of scores share memory (shape {x.shape}, strides {x.strides}); expected an array "
                         "with a place for each, since it is changed in place")
    return x, _offset(offset), float(fill_value)


def _refuse_dim(dim):
    if dim is not None:
        raise TypeError(f"dim is not an argument here: pass axis={dim!r}, which has the same meaning")


def _scores(x, name):
    """As `_array`; a list of Python ints that no integer dtype holds, [2**63, -1], stays exact, as objects."""
    array = as_numbers(x, name)
    if isinstance(x, (list, tuple)) and array.dtype == np.float64 and array.size:
        first = x
        while isinstance(first, (list, tuple)):
            first = first[0]
        if isinstance(first, float) or abs(array).max() < 2.0**63:
            return array
        exact = np.asarray(x, object)
        if exact.shape == array.shape and all(isinstance(number, (int, np.integer)) for number in exact.flat):
            return exact
    return array


def _matrices(scores):
    x = as_numbers(scores, "scores", instead_of_masked="scores.filled(-inf)")
    if x.ndim < 2:
        raise ValueError(f"scores must have at least two dimensions (..., queries, keys), got shape {x.shape}")
    return x


def _axes(axis, ndim):
    """The axes as a sorted tuple of distinct ints from 0."""
    if axis is None:
        return tuple(range(ndim))
    if not isinstance(axis, tuple):
        if ndim == 0:               # as in NumPy's reductions, 0 and -1 are valid for a scalar
            _axis(axis, 1)
            return ()
        return (_axis(axis, ndim),)
    axes = tuple([_axis(a, ndim) for a in axis])
    if len(set(axes)) != len(axes):
        raise ValueError("duplicate value in 'axis'")
    return tuple(sorted(axes))


def _axis(a, ndim):
    if isinstance(a, (bool, np.bool_)) or not hasattr(a, "__index__"):
        raise TypeError(f"an axis must be an int, not {type(a).__name__}")
    a = a.__index__()
    if not -ndim <= a < ndim:
        raise np.exceptions.AxisError(a, ndim)
    return a % ndim


def _result_dtypes(x_dtype, dtype, *, integers_to_float64):
    """(dtype of the computation, dtype of the result)."""
    natural = natural_dtype(x_dtype, integers_to_float64=integers_to_float64)
    if dtype is None:
        return natural, natural
    final = native(np.dtype(dtype))
    if final.kind not in "fc" and tag(final) is None:
        raise TypeError(f"dtype must be a floating dtype, got {final}")
    if natural.kind == "c" and final.kind != "c":
        raise TypeError(f"the result of complex input cannot be {final}")
    if final == natural:
        return natural, final
    if final.itemsize > natural.itemsize or (final.kind == "c" and natural.kind != "c"):
        return final, final
    if final.itemsize == natural.itemsize:          # float16 and bfloat16: neither holds the other
        return np.dtype(np.float32), final
    return natural, final


def _temperature(temperature, shape, axes):
    """(temperature as in RowArguments, whether the kernels' arithmetic holds for it)."""
    least, most = TEMPERATURES
    if type(temperature) is float and 0 < temperature < math.inf:
        return temperature, least < temperature < most
    if isinstance(temperature, np.ma.MaskedArray):
        raise TypeError("temperature must not be a masked array")
    if type(temperature) is int:                # of any size; NumPy would make an object of a large one
        temperature = float(max(-1 << 1023, min(temperature, 1 << 1023)))
    t = _as_ndarray(temperature, "temperature")
    if t.dtype.kind not in "iuf" and tag(t.dtype) is None:
        raise TypeError(f"temperature must be real numbers, got dtype {t.dtype}")
    t = converted(t, np.float64, copy=True)
    lowest, highest = (t.item(t.argmin()), t.item(t.argmax())) if t.size else (1.0, 1.0)    # a NaN, if there is one
    if not (lowest > 0 and highest < math.inf):
        bad = t[~((t > 0) & (t < np.inf))].flat[0]
        hint = "; the limit of softmax at 0 is a weight of 1 at argmax(x)" if bad == 0 else ""
        raise ValueError(f"temperature must be positive and finite, got {bad}{hint}")
    moderate = lowest > least and highest < most
    if t.ndim == 0:
        return lowest, moderate
    reduced = tuple([1 if i in axes else size for i, size in enumerate(shape)])
    view = broadcast_to(t, reduced)
    if view is None:
        raise ValueError(f"temperature of shape {t.shape} does not broadcast to {reduced}: the shape of the input "
                         f"{tuple(shape)} with length 1 along the axes of the reduction")
    return view, moderate


def _where(where, shape):
    """The mask, broadcast to the input's shape; None stays."""
    if where is None:
        return None
    if isinstance(where, np.ma.MaskedArray):
        raise TypeError("where must not be a masked array")
    mask = _as_ndarray(where, "where")
    if mask.dtype != np.bool_:
        raise TypeError(f"where must be an array of bool, got dtype {mask.dtype}")
    view = broadcast_to(mask, shape)
    if view is None:
        raise ValueError(f"where of shape {mask.shape} does not broadcast to the input's shape {tuple(shape)}")
    return view


def _offset(offset):
    """A Python int within +-MAX_DISTANCE, to which it is clipped."""
    if type(offset) is not int:
        if isinstance(offset, (bool, np.bool_)):
            raise TypeError("offset must be an int, not bool")
        try:
            offset = operator.index(offset)
        except TypeError:
            raise TypeError(f"offset must be an int, not {type(offset).__name__}") from None
    return _clipped(offset)


# ---- the gradients of the softmax family


class GradientArguments(NamedTuple):
    """The checked arguments of a gradient of rows."""

    x: Any                      # what the forward function returned or took: the gradient has its shape
    grad: Any                   # of the shape of x, or with length 1 along the axes
    value: Any                  # the lse, with length 1 along the axes; or None
    axes: tuple[int, ...]
    temperature: Any            # these three as in RowArguments
    where: Any
    compute_dtype: Any
    result_dtype: Any
    has_kernel: bool


def elementwise_gradient(grad, y, name, axis, temperature, out, dim):
    """The arguments of softmax_backward and log_softmax_backward, whose y has this name."""
    _refuse_dim(dim)
    y = _real_floats(y, name, f"{name}.filled({'0' if name == 'y' else '-inf'})")
    axes = _axes(axis, y.ndim)
    grad = _upstream(grad, y.shape, f"{name} of shape {y.shape}")
    temperature, moderate = _temperature(temperature, y.shape, axes)
    result_dtype = native(y.dtype)
    compute_dtype = _wider(result_dtype, grad.dtype)
    if out is not None:
        _check_out(out, y.shape, result_dtype)
    return GradientArguments(y, grad, None, axes, temperature, None, compute_dtype, result_dtype,
                             moderate and tag(compute_dtype) is not None)


def logsumexp_gradient(grad, a, lse, axis, keepdims, where, out, dim):
    """The arguments of logsumexp_backward."""
    _refuse_dim(dim)
    x = _scores(a, "a")
    axes = _axes(axis, x.ndim)
    result_dtype = natural_dtype(x.dtype, integers_to_float64=True)
    _refuse_complex(result_dtype, "logsumexp_backward")
    kept, shape = _reduced_shapes(x.shape, axes)
    fitting = f"a logsumexp of a of shape {x.shape} along axis {axis}, keepdims={bool(keepdims)}"
    lse = _real_floats(lse, "lse", "lse.filled(-inf)")
    if lse.shape != (kept if keepdims else shape):
        raise ValueError(f"lse of shape {lse.shape} does not fit a of shape {x.shape}: the shape of {fitting} is "
                         f"{kept if keepdims else shape}")
    grad = _upstream(grad, kept if keepdims else shape, fitting)
    where = _where(where, x.shape)
    compute_dtype = result_dtype
    if lse.dtype.itemsize > statistics_dtype(result_dtype).itemsize:
        compute_dtype = native(lse.dtype)
    if out is not None:
        _check_out(out, x.shape, result_dtype)
    return GradientArguments(x, grad.reshape(kept), lse.reshape(kept), axes, 1.0, where, compute_dtype, result_dtype,
                             tag(compute_dtype) is not None)


def entropy_gradient(grad, x, axis, temperature, where, out, dim):
    """The arguments of softmax_entropy_backward."""
    rows = _rows(x, axis, temperature, where, None, dim)
    _refuse_complex(rows.result_dtype, "softmax_entropy_backward")
    kept, shape = _reduced_shapes(rows.x.shape, rows.axes)
    grad = _upstream(grad, shape, f"an entropy of x of shape {rows.x.shape} along axis {axis}")
    if out is not None:
        _check_out(out, rows.x.shape, rows.result_dtype)
    return GradientArguments(rows.x, grad.reshape(kept), None, rows.axes, rows.temperature, rows.where,
                             statistics_dtype(rows.compute_dtype), rows.result_dtype, rows.has_kernel)


def _reduced_shapes(shape, axes):
    """(with length 1 along the axes, without them)."""
    return (tuple([1 if i in axes else size for i, size in enumerate(shape)]),
            tuple([size for i, size in enumerate(shape) if i not in axes]))


def _upstream(grad, shape, like):
    """The gradient with respect to a result of this shape."""
    grad = _real_floats(grad, "grad", "grad.filled(0)")
    if grad.shape != tuple(shape):
        raise ValueError(f"grad of shape {grad.shape} does not fit {like}: it must be {tuple(shape)}")
    return grad


def _real_floats(x, name, instead_of_masked):
    array = as_numbers(x, name, instead_of_masked)
    if array.dtype.kind != "f" and tag(array.dtype) is None:
        raise TypeError(f"{name} must be floating, got dtype {array.dtype}")
    return array


def _refuse_complex(dtype, name):
    if dtype.kind == "c":
        raise TypeError(f"{name} takes real numbers, got {dtype}")


def _wider(dtype, other):
    """The dtype of a computation on two floating dtypes: that which holds both."""
    other = native(other)
    if other.itemsize == dtype.itemsize:
        return dtype if other == dtype else np.dtype(np.float32)        # float16 and bfloat16: neither holds the other
    return other if other.itemsize > dtype.itemsize else dtype


# ---- the losses

REDUCTIONS = "mean", "sum", "none"


class LossArguments(NamedTuple):
    """The checked arguments of cross_entropy."""

    logits: Any
    axis: int                   # from 0
    classes: Any                # int64 of the shape of the rows, -1 where ignored; or None
    target: Any                 # probabilities of the shape of the logits; or None
    weight: Any                 # (C,), C-contiguous, in the dtype of the loss; or None
    smoothing: float
    reduction: str
    z_loss: float
    softcap: float | None
    temperature: Any            # as in RowArguments
    result_dtype: Any           # of the gradient
    loss_dtype: Any
    has_kernel: bool


def cross_entropy(logits, target, axis, weight, ignore_index, label_smoothing, reduction, z_loss, softcap, temperature,
                  grad_into, dim):
    """The arguments of cross_entropy."""
    _refuse_dim(dim)
    x = as_numbers(logits, "logits", "logits.filled(-inf)")
    axis = _axis(axis, x.ndim)
    result_dtype = natural_dtype(x.dtype, integers_to_float64=False)
    _refuse_complex(result_dtype, "cross_entropy")
    loss_dtype = statistics_dtype(result_dtype)
    rows, count = x.shape[:axis] + x.shape[axis + 1:], x.shape[axis]
    if count == 0:
        raise ValueError(f"there are no classes: axis {axis} of logits of shape {x.shape} is empty")
    options = _loss_options(weight, count, label_smoothing, reduction, z_loss, softcap, loss_dtype)
    temperature, moderate = _temperature_of_rows(temperature, x.shape, axis)
    classes, probabilities = _target(target, rows, x.shape, f"logits of shape {x.shape}", count, ignore_index)
    if grad_into is not None:
        _check_out(grad_into, x.shape, result_dtype, "grad_into")
    return LossArguments(x, axis, classes, probabilities, *options, temperature, result_dtype, loss_dtype,
                         moderate and tag(result_dtype) is not None)


class LinearLossArguments(NamedTuple):
    """The checked arguments of linear_cross_entropy."""

    hidden: Any                 # (N, D)
    linear_weight: Any          # (V, D)
    linear_bias: Any            # (V,) or None
    loss: LossArguments         # for logits of the dtype of the computation; their place is empty
    compute_dtype: Any


def linear_cross_entropy(hidden, linear_weight, target, linear_bias, weight, ignore_index, label_smoothing, reduction,
                         z_loss, softcap):
    """The arguments of linear_cross_entropy."""
    h = _real_floats(hidden, "hidden", "hidden.filled(0)")
    w = _real_floats(linear_weight, "linear_weight", "linear_weight.filled(0)")
    for array, name, dims in ((h, "hidden", "(N, D)"), (w, "linear_weight", "(V, D)")):
        if array.ndim != 2:
            raise ValueError(f"{name} must have two dimensions {dims}, got shape {array.shape}")
    if h.shape[1] != w.shape[1]:
        raise ValueError(f"linear_weight of shape {w.shape} does not fit hidden of shape {h.shape}: their last "
                         f"dimensions, D, are {w.shape[1]} and {h.shape[1]}")
    if len(w) == 0:
        raise ValueError(f"there are no classes: linear_weight of shape {w.shape} is empty")
    compute_dtype = _wider(statistics_dtype(native(h.dtype)), w.dtype)
    b = None
    if linear_bias is not None:
        b = _real_floats(linear_bias, "linear_bias", "linear_bias.filled(0)")
        if b.shape != (len(w),):
            raise ValueError(f"linear_bias of shape {b.shape} does not fit linear_weight of shape {w.shape}: it must "
                             f"be {(len(w),)}")
        compute_dtype = _wider(compute_dtype, b.dtype)
    options = _loss_options(weight, len(w), label_smoothing, reduction, z_loss, softcap, compute_dtype)
    shape = len(h), len(w)
    classes, probabilities = _target(target, shape[:1], shape, f"logits of shape {shape}", len(w), ignore_index)
    loss = LossArguments(None, 1, classes, probabilities, *options, 1.0, compute_dtype,
                         statistics_dtype(native(h.dtype)), tag(compute_dtype) is not None)
    return LinearLossArguments(h, w, b, loss, compute_dtype)


def _loss_options(weight, count, label_smoothing, reduction, z_loss, softcap, dtype):
    """(weight, smoothing, reduction, z_loss, softcap), checked."""
    if weight is not None:
        weight = _real_floats(weight, "weight", "weight.filled(0)")
        if weight.shape != (count,):
            raise ValueError(f"weight of shape {weight.shape} does not fit: there are {count} classes, so that it must "
                             f"be {(count,)}")
        weight = converted(weight, dtype, "C")
    smoothing = _number(label_smoothing, "label_smoothing")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing must be from 0 to 1, got {label_smoothing}")
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}")
    z_loss = _number(z_loss, "z_loss")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss must be finite and not negative, got {z_loss}")
    return weight, smoothing, reduction, z_loss, None if softcap is None else _softcap(softcap)


def _temperature_of_rows(temperature, shape, axis):
    """As `_temperature`; an array may also have the shape of the rows, without the axis."""
    if not isinstance(temperature, np.ma.MaskedArray) and 0 < np.ndim(temperature) < len(shape):
        t = _as_ndarray(temperature, "temperature")
        view = broadcast_to(t, shape[:axis] + shape[axis + 1:])
        if view is None:
            raise ValueError(f"temperature of shape {t.shape} does not broadcast to {shape[:axis] + shape[axis + 1:]}: "
                             "one for each row")
        temperature = np.expand_dims(view, axis)
    return _temperature(temperature, shape, (axis,))


def _target(target, rows, shape, like, count, ignore_index):
    """(classes, None) for class numbers, (None, probabilities) for floats."""
    target = as_numbers(target, "target", "target.filled(ignore_index)")
    if target.dtype.kind == "f" or tag(target.dtype) is not None:
        if target.shape != shape:
            raise ValueError(f"target of shape {target.shape} does not fit {like}: probabilities have their shape, "
                             f"class numbers are integers of shape {rows}")
        return None, target
    if target.dtype.kind not in "iu":
        raise TypeError(f"target must be class numbers (integers) or probabilities (floats), got dtype {target.dtype}")
    if target.shape != rows:
        raise ValueError(f"target of shape {target.shape} does not fit {like}: class numbers have shape {rows}")
    ignore_index = _int(ignore_index, "ignore_index")
    if not 0 <= ignore_index < count and target.size and target.min() >= 0 and target.max() < count:    # none ignored
        return converted(target, np.dtype(np.int64)), None
    ignored = np.asarray(target == ignore_index)
    wrong = ~ignored & ((target < 0) | (target >= count))
    if wrong.any():
        at = tuple([int(i) for i in np.argwhere(wrong)[0]])
        place = f"target[{', '.join(map(str, at))}]" if at else "target"
        raise IndexError(f"{place} is class {int(target[at])}, which is neither from 0 to {count - 1} nor "
                         f"ignore_index, {ignore_index}")
    if not ignored.any():
        return converted(target, np.dtype(np.int64)), None
    return np.where(ignored, -1, converted(target, np.dtype(np.int64))), None


def _int(x, name):
    if isinstance(x, (bool, np.bool_)) or not hasattr(x, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(x).__name__}")
    return operator.index(x)


def _number(x, name):
    if type(x) is float:
        return x
    if isinstance(x, (str, bytes, bool, np.bool_)) or np.ndim(x):
        raise TypeError(f"{name} must be a number, got {x!r}")
    try:
        return float(x)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {type(x).__name__}") from None


# ---- attention


class AttentionOptions(NamedTuple):
    """The checked options of scaled_dot_product_attention. None: not set."""

    attn_mask: Any              # broadcast to the scores' shape (*batch, Hq, L, S), or to its first keys alone
    bias: Any                   # likewise
    is_causal: bool
    scale: Any                  # float64, (Hq,)
    causal_offset: Any          # int64, (*batch,)
    window: tuple[int | None, int | None]
    softcap: float | None
    alibi_slopes: Any           # float64, (*batch, Hq)
    sinks: Any                  # float64, (Hq,)
    key_lengths: Any            # int64, (*batch,)
    result_dtype: Any
    statistics_dtype: Any       # of lse and entropy, and of the arithmetic


def refuse_dropout(dropout_p):
    """Raise: dropout_p is not 0."""
    raise NotImplementedError(f"dropout is not implemented: dropout_p must be 0, got {dropout_p}")


def query_key_value(query, key, value, enable_gqa):
    """(query, key, value, batch, query heads, key heads): arrays that fit, and sizes that they broadcast to."""
    query, key, value = of_one_dtype(query=query, key=key, value=value)
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(f"{name} must have at least two dimensions (..., positions, width), got shape {shape}")
    if query.shape[-1] != key.shape[-1]:
        raise misfit(shapes, "query", "key", f"their last dimensions, E, are {query.shape[-1]} and {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise misfit(shapes, "key", "value", f"there are {key.shape[-2]} keys and {value.shape[-2]} values")
    heads = [(1, *shape)[-3] for shape in shapes.values()]
    return query, key, value, _batch(shapes), *common_heads(shapes, heads, enable_gqa)


def of_one_dtype(**inputs):
    """The query, key and value as arrays; the arguments have the caller's names for them."""
    arrays = [_floats(x, name) for name, x in inputs.items()]
    of_query, of_key, of_value = (native(x.dtype) for x in arrays)
    mixed = of_query == np.float32 and of_key.itemsize == 2
    if of_key != of_value or not (of_key == of_query or mixed):
        query, key, value = inputs
        raise TypeError(f"{query}, {key}, {value} must have one dtype, or {key} and {value} be float16 or bfloat16 "
                        f"beside a float32 {query}; got {of_query}, {of_key}, {of_value}")
    return arrays


def misfit(shapes, a, b, reason):
    return ValueError(f"{a} of shape {shapes[a]} does not fit {b} of shape {shapes[b]}: {reason}")


def _batch(shapes):
    """The dimensions before the heads, broadcast."""
    batches = [shape[:-3] for shape in shapes.values()]
    if batches.count(batches[0]) == 3:
        return batches[0]
    for a, b in (("query", "key"), ("query", "value"), ("key", "value")):
        try:
            np.broadcast_shapes(shapes[a][:-3], shapes[b][:-3])
        except ValueError:
            raise misfit(shapes, a, b, "the dimensions before the heads do not broadcast") from None
    return np.broadcast_shapes(*batches)


def common_heads(shapes, counts, enable_gqa):
    """(heads of the result, heads of key and value), from those of query, key and value."""
    query, key, value = shapes
    heads, in_key, in_value = counts
    if in_key != in_value and 1 not in (in_key, in_value):
        raise misfit(shapes, key, value, f"they have {in_key} and {in_value} heads")
    key_heads, owner = (in_value, value) if in_key == 1 else (in_key, key)
    if heads in (1, key_heads) or key_heads == 1:
        return key_heads if heads == 1 else heads, key_heads
    if key_heads == 0 or heads % key_heads:
        raise misfit(shapes, query, owner, f"the number of query heads, {heads}, is no multiple of {key_heads}")
    if not enable_gqa:
        raise misfit(shapes, query, owner,
                     f"they have {heads} and {key_heads} heads; enable_gqa=True lets heads share keys")
    return heads, key_heads


def attention_options(inputs, attn_mask, is_causal, scale, bias, causal_offset, window, softcap, alibi_slopes, sinks,
                      key_lengths, out):
    """The options for inputs that fit, an AttentionInputs, and the dtype of the result."""
    options = packed_options(inputs, inputs.batch, inputs.out_shape[inputs.added:], is_causal, scale, causal_offset,
                             window, softcap, alibi_slopes, sinks, out)
    key_lengths = None if key_lengths is None else check_key_lengths(key_lengths, inputs.batch, inputs.keys)
    return options._replace(
        bias=None if bias is None else _score_bias(bias, "bias", inputs, key_lengths),
        attn_mask=None if attn_mask is None else _score_bias(attn_mask, "attn_mask", inputs, key_lengths),
        key_lengths=key_lengths)


def packed_options(inputs, batch, out_shape, is_causal, scale, causal_offset, window, softcap, alibi_slopes, sinks,
                   out):
    """The options that packed sequences have too; batch: the dimensions of what there is one of for each sequence."""
    result_dtype, arithmetic = inputs.q.dtype, statistics_dtype(inputs.q.dtype)
    if out is not None:
        if isinstance(out, np.ndarray) and native(out.dtype) == arithmetic:
            result_dtype = arithmetic       # float32 for 16-bit queries, so that merged pieces are rounded once
        _check_out(out, out_shape, result_dtype)
    heads = inputs.heads
    scale = None if scale is None or inputs.head_dim == 0 else _reals(scale, "scale", (heads,), arithmetic)
    if alibi_slopes is not None:
        alibi_slopes = _reals(alibi_slopes, "alibi_slopes", (*batch, heads), arithmetic)
    sinks = None if sinks is None else _reals(sinks, "sinks", (heads,), arithmetic)
    offsets = _ints(causal_offset, "causal_offset", batch)
    if type(causal_offset) is not int:      # an int is clipped already
        offsets = np.minimum(np.maximum(offsets, -MAX_DISTANCE), MAX_DISTANCE)
    return AttentionOptions(None, None, bool(is_causal), scale, offsets,
                            (None, None) if window is None else _window(window),
                            None if softcap is None else _softcap(softcap), alibi_slopes, sinks, None, result_dtype,
                            arithmetic)


class ForwardResults(NamedTuple):
    """The checked results of the forward function, and the gradients for them."""

    grad_out: Any               # (*batch, Hq, L, Ev); float32 or the dtype of query for 16-bit queries, as is out
    out: Any
    lse: Any                    # (*batch, Hq, L), of the dtype of the statistics
    grad_lse: Any               # likewise, or None


class WantedGradients(NamedTuple):
    """Which gradients are asked for beside those of query, key and value; in the order of the results."""

    scale: bool
    mask: bool
    bias: bool
    sinks: bool
    slopes: bool


def forward_results(query_dtype, out_shape, lse_shape, grad_out, out, lse, grad_lse):
    """ForwardResults of a call with such queries and results."""
    statistics = (statistics_dtype(query_dtype),)
    either = query_dtype, *(statistics if query_dtype.itemsize == 2 else ())
    return ForwardResults(
        _of_result(grad_out, "grad_out", "out", out_shape, either),
        _of_result(out, "out", "the result", out_shape, either),
        _of_result(lse, "lse", "the result", lse_shape, statistics),
        None if grad_lse is None else _of_result(grad_lse, "grad_lse", "lse", lse_shape, statistics))


def _of_result(x, name, of, shape, dtypes):
    array = as_numbers(x, name, instead_of_masked=f"{name}.data")
    if native(array.dtype) not in dtypes:
        raise TypeError(f"{name} must have dtype {' or '.join(map(str, dtypes))}, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, as {of}; got {array.shape}")
    return array


def wanted_gradients(options, scale, wanted):
    """The WantedGradients `wanted`, if they have inputs."""
    wanted = WantedGradients(*map(bool, wanted))
    inputs = (("scale", scale), ("attn_mask", options.attn_mask), ("bias", options.bias), ("sinks", options.sinks),
              ("alibi_slopes", options.alibi_slopes))
    for asked, option, (name, x) in zip(wanted, WantedGradients._fields, inputs, strict=True):
        if asked and x is None:
            raise ValueError(f"grad_{option} asks for the gradient of {name}, which is not given")
        if asked and option == "mask" and x.dtype.kind == "b":
            raise ValueError("grad_mask asks for the gradient of attn_mask, which is boolean and has none")
    return wanted


def attention_states(outputs, lses, axis, dim):
    """(outputs, lses, dtype of the outputs). Both are lists of arrays, or arrays of which the first axis has the parts.
    """
    _refuse_dim(dim)
    outputs, lses = _float_parts(outputs, "outputs", axis), _float_parts(lses, "lses", axis)
    if len(outputs) != len(lses):
        raise ValueError(f"outputs and lses must be as many, got {len(outputs)} and {len(lses)}")
    if len(outputs) == 0:
        raise ValueError("outputs and lses are empty: there is nothing to merge")
    # the parts of an array are alike: one of them stands for all
    different = slice(1 if isinstance(outputs, np.ndarray) and isinstance(lses, np.ndarray) else None)
    dtypes = [native(x.dtype) for x in outputs[different]]
    if dtypes.count(dtypes[0]) != len(dtypes):
        names = ", ".join(f"outputs[{i}]" for i in range(len(outputs)))
        raise TypeError(f"{names} must have one dtype, got {', '.join(map(str, dtypes))}")
    shape = outputs[0].shape
    if len(shape) < 1:
        raise ValueError("outputs[0] must have at least one dimension, got shape ()")
    for i, (output, lse) in enumerate(zip(outputs[different], lses[different], strict=True)):
        if output.shape != shape:
            raise ValueError(f"outputs[{i}] of shape {output.shape} does not fit outputs[0] of shape {shape}")
        if lse.shape != shape[:-1]:
            raise ValueError(f"lses[{i}] of shape {lse.shape} does not fit outputs[{i}] of shape {shape}: it must be "
                             f"{shape[:-1]}")
    return outputs, lses, dtypes[0]


def _float_parts(stacked, name, axis):
    """The parts, of a sequence of them or of one array in which they are stacked along this axis."""
    if type(axis) is int and axis == 0 and not hasattr(stacked, "dtype"):
        return [_floats(x, f"{name}[{i}]") for i, x in enumerate(stacked)]
    if isinstance(stacked, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; pass {name}.data, with attn_mask to hide keys, instead")
    array = _as_ndarray(stacked if hasattr(stacked, "dtype") else list(stacked), name)
    if array.ndim == 0:
        raise ValueError(f"{name} must be parts, or an array in which they are stacked; got one number")
    return _floats(np.moveaxis(array, _axis(axis, array.ndim), 0), name)


def _floats(x, name):
    return _real_floats(x, name, f"{name}.data, with attn_mask to hide keys,")


def _score_bias(x, name, inputs, lengths):
    """attn_mask or bias, broadcast to the shape of the scores, or to its first keys if no length exceeds these."""
    array = as_numbers(x, name, instead_of_masked=f"{name}.data")
    boolean = array.dtype.kind == "b" and name == "attn_mask"
    if not boolean and array.dtype.kind != "f" and tag(array.dtype) is None:
        kinds = "boolean or floating" if name == "attn_mask" else "floating"
        raise TypeError(f"{name} must be {kinds}, got dtype {array.dtype}")
    shape, keys = inputs.out_shape[:-1], inputs.keys
    known = array.shape[-1] if array.ndim else 1
    short = known != 1 and lengths is not None and lengths.max(initial=0) <= known < keys
    shape = (*shape[1 if inputs.added else 0:], known if short else keys)
    view = broadcast_to(array, shape)
    if view is None:
        raise ValueError(f"{name} of shape {array.shape} does not broadcast to {(*shape[:-1], keys)}, the shape of the "
                         "scores (..., heads, queries, keys)")
    return view[None] if inputs.added else view


def _reals(x, name, shape, arithmetic):
    """float64 of this shape, in memory of its own; finite numbers are finite in the dtype of the arithmetic too."""
    most = float(np.finfo(np.float32).max) if arithmetic.itemsize < 8 else sys.float_info.max
    if type(x) is float:
        return cached_full(min(max(x, -most), most) if math.isfinite(x) else x, shape, np.float64)
    array = as_numbers(x, name, instead_of_masked=f"{name}.data")
    if array.dtype.kind not in "iuf" and tag(array.dtype) is None:
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    reals = _broadcast_copy(saturated(array, np.dtype(np.float64)), name, shape, np.float64)
    if arithmetic.itemsize < 8:
        np.clip(reals, -most, most, out=reals, where=np.isfinite(reals))
    return reals


def _ints(x, name, shape):
    """int64 of this shape, in memory of its own or read-only; a Python int is clipped to +-MAX_DISTANCE."""
    if type(x) is int:          # of any size; NumPy would make an object of a large one
        return cached_full(_clipped(x), shape, np.int64)
    array = as_numbers(x, name, instead_of_masked=f"{name}.data")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an int or an array of ints, got {array.dtype}")
    if array.dtype == np.uint64:
        array = np.asarray(np.minimum(array, np.uint64(1 << 62)))
    return _broadcast_copy(array, name, shape, np.int64)


def _clipped(position):
    if -MAX_DISTANCE <= position <= MAX_DISTANCE:       # half the time of min and max
        return position
    return MAX_DISTANCE if position > 0 else -MAX_DISTANCE


def _broadcast_copy(array, name, shape, dtype):
    view = broadcast_to(array, shape)
    if view is None:
        expected = "one for each head" if len(shape) == 1 and name in ("scale", "sinks") else (
            "the dimensions up to the heads" if name == "alibi_slopes" else "the dimensions before the heads")
        raise ValueError(f"{name} of shape {array.shape} does not broadcast to {shape}: {expected}")
    return np.array(view, dtype, order="C")


def check_key_lengths(key_lengths, batch, keys, of="the number of keys"):
    lengths = _ints(key_lengths, "key_lengths", batch)
    unsigned = lengths.view(np.uint64)          # in which negative numbers are large
    if unsigned.size and unsigned.item(unsigned.argmax()) > keys:
        raise ValueError(f"key_lengths must be from 0 to {of}, {keys}; got {lengths[unsigned > keys][0]}")
    return lengths


def _window(window):
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


def _softcap(softcap):
    number = _number(softcap, "softcap")
    if not 0 < number < math.inf:
        raise ValueError(f"softcap must be positive and finite, got {softcap}")
    return number


# ---- arrays


def as_numbers(x, name, instead_of_masked=None):
    """x as a plain ndarray of numbers."""
    if isinstance(x, np.ma.MaskedArray):
        advice = instead_of_masked or f"{name}.data and where=~{name}.mask"
        raise TypeError(f"{name} is a masked array; pass {advice} instead")
    array = _as_ndarray(x, name)
    if array.dtype.kind not in "biufc" and tag(array.dtype) is None:
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
    return array


def _as_ndarray(x, name):
    """np.asarray(x). PyTorch is not imported for its tensors: the name of their type tells them."""
    try:
        return np.asarray(x)
    except (TypeError, RuntimeError) as error:
        if type(x).__module__.partition(".")[0] != "torch":
            raise
        if getattr(x, "requires_grad", False):
            advice = "requires grad: use fastsoftmax.torch, which has gradients, or pass"
        elif str(getattr(x, "dtype", "")) == "torch.bfloat16":
            advice = "is bfloat16, which NumPy does not take from PyTorch: use fastsoftmax.torch, or pass"
        else:
            raise TypeError(f"{name} is a torch tensor that NumPy does not take ({error}); fastsoftmax.torch takes CPU "
                            "tensors") from error
        copy = f"{name}.detach()" if "grad" in advice else f"{name}.float()"
        raise TypeError(f"{name} is a torch tensor that {advice} {copy}") from error


def _check_out(out, shape, dtype, name="out"):
    """Raise unless out is a writeable array of this shape and dtype, with a place for each result."""
    if isinstance(out, np.ma.MaskedArray) or not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be an ndarray, got {type(out).__name__}")
    if native(out.dtype) != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {out.dtype}")
    if out.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only; expected a writeable array")
    if elements_overlap(out):
        raise ValueError(f"elements of {name} share memory (shape {out.shape}, strides {out.strides}); expected an "
                         "array with a place for each result")
