"""The gradients of the softmax family from checked arguments to kernel calls, as `_softmax` for the functions.

The kernel takes weights (or log weights, or scores) and gradients of one dtype. Operands of other dtypes, and arrays
that it cannot take as they are, are staged: some rows at a time are copied to buffers of the dtype of the computation.
"""

import math

import numpy as np

from fastsoftmax import _dispatch, _fastpath, _layout, _softmax, _threads, _validate, reference
from fastsoftmax._dtypes import converted, native, statistics_dtype
from fastsoftmax._fastpath import LOG_SOFTMAX, SOFTMAX_ENTROPY
from fastsoftmax._fp_env import default_fp_env
from fastsoftmax._layout import copy_if_overlapping, elements, kernel_ready

# The kinds of gradients, as the kernels number them.
GRAD_SOFTMAX, GRAD_LOG_SOFTMAX, GRAD_LOGSUMEXP, GRAD_ENTROPY = range(4)

_REFERENCE = {GRAD_SOFTMAX: reference.softmax_backward, GRAD_LOG_SOFTMAX: reference.log_softmax_backward}
_NAMES = {GRAD_SOFTMAX: "y", GRAD_LOG_SOFTMAX: "log_y"}


def elementwise(kind, grad, y, axis, temperature, out, dim):
    """softmax_backward and log_softmax_backward."""
    operands = None if dim is not None else _fastpath.gradient_operands(grad, y, axis, temperature, out)
    if operands is None:
        return _elementwise(kind, grad, y, axis, temperature, out, dim)
    tag, y_rows, grad_rows, dx_rows, dx, in_place = operands
    threads = 1 if y_rows.size <= _softmax.SMALL_ELEMENTS else _threads.threads_for(y_rows.size)
    nontemporal = not in_place and dx_rows.nbytes >= _softmax._nontemporal_bytes
    _dispatch.kernels(tag).softmax_backward_rows(
        kind, y_rows, grad_rows, dx_rows, None, None, None, None, threads, nontemporal)
    return dx


@default_fp_env
def _elementwise(kind, grad, y, axis, temperature, out, dim):
    arguments = _validate.elementwise_gradient(grad, y, _NAMES[kind], axis, temperature, out, dim)
    if not arguments.has_kernel:
        dx = _REFERENCE[kind](_in_native_order(arguments.grad), _in_native_order(arguments.x), arguments.axes,
                              temperature=arguments.temperature)
        return _softmax._deliver(dx, arguments.result_dtype, out)
    x, grad = arguments.x, arguments.grad
    if out is None:
        dx = np.empty_like(x, dtype=arguments.result_dtype, subok=False)
    else:
        dx = out
        x, grad = copy_if_overlapping(x, out, in_place=True), copy_if_overlapping(grad, out, in_place=True)
    _compute(kind, arguments, dx, x, grad=grad)
    return dx[()] if out is None else dx


@default_fp_env
def logsumexp(grad, a, lse, axis, keepdims, where, out, dim):
    """logsumexp_backward."""
    arguments = _validate.logsumexp_gradient(grad, a, lse, axis, keepdims, where, out, dim)
    if not arguments.has_kernel:
        da = reference.logsumexp_backward(
            _in_native_order(arguments.grad), _in_native_order(arguments.x), _in_native_order(arguments.value),
            arguments.axes, keepdims=True, where=arguments.where)
        return _softmax._deliver(da, arguments.result_dtype, out)
    of_rows = statistics_dtype(arguments.compute_dtype)
    upstream, lse = converted(arguments.grad, of_rows), converted(arguments.value, of_rows)
    x, where = arguments.x, arguments.where
    if out is None:
        da = np.empty_like(x, dtype=arguments.result_dtype, subok=False)
    else:
        da = out
        x, where = copy_if_overlapping(x, out, in_place=True), copy_if_overlapping(where, out)
        upstream, lse = copy_if_overlapping(upstream, out), copy_if_overlapping(lse, out)
    _compute(GRAD_LOGSUMEXP, arguments, da, x, where=where, upstream=upstream, value=lse)
    _spread_nan(da, lse, where)
    return da[()] if out is None else da


@default_fp_env
def entropy(grad, x, axis, temperature, where, out, dim):
    """softmax_entropy_backward."""
    arguments = _validate.entropy_gradient(grad, x, axis, temperature, where, out, dim)
    if not arguments.has_kernel:
        dx = reference.softmax_entropy_backward(
            _in_native_order(arguments.grad), _in_native_order(arguments.x), arguments.axes,
            temperature=arguments.temperature, where=arguments.where)
        return _softmax._deliver(dx, arguments.result_dtype, out)
    x, where, upstream = arguments.x, arguments.where, converted(arguments.grad, arguments.compute_dtype)
    if out is None:
        dx = np.empty_like(x, dtype=arguments.result_dtype, subok=False)
    else:
        dx = out
        x, where = copy_if_overlapping(x, out, in_place=True), copy_if_overlapping(where, out)
        upstream = copy_if_overlapping(upstream, out)
    if x.dtype == dx.dtype == arguments.compute_dtype:
        _entropy_gradient(arguments._replace(x=x, where=where), upstream, dx)
    else:
        _entropy_gradient_staged(arguments, x, where, upstream, dx)
    return dx[()] if out is None else dx


def _entropy_gradient(arguments, upstream, dx):
    """Write dx, of the dtype of the computation; x may be dx itself. Log weights stand in dx meanwhile."""
    axes, dtype, x, where = arguments.axes, arguments.compute_dtype, arguments.x, arguments.where
    if x.size == 0:
        return
    entropies = np.empty(upstream.shape, dtype)
    rows = _validate.RowArguments(x, axes, arguments.temperature, where, dtype, dtype, True)
    _softmax._compute(SOFTMAX_ENTROPY, rows, x, entropies, where)
    _softmax._compute(LOG_SOFTMAX, rows, x, dx, where)
    _compute(GRAD_ENTROPY, arguments, dx, dx, upstream=upstream, value=entropies)
    _spread_nan(dx, entropies, where)           # log weights beside +inf are -inf, as if masked


def _entropy_gradient_staged(arguments, x, where, upstream, dx):
    """As `_entropy_gradient`, for some rows at a time in the dtype of the computation: 16-bit log weights would lose
    most of a weight's digits."""
    axes = arguments.axes
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    order = kept + axes
    along = tuple(range(len(kept), x.ndim))
    n = math.prod(x.shape[i] for i in axes)
    x, dx, upstream = x.transpose(order), dx.transpose(order), upstream.transpose(order)
    where = None if where is None else where.transpose(order)
    temperature = arguments.temperature
    if not isinstance(temperature, float):
        temperature = _fastpath.broadcast_to(temperature.transpose(order), x.shape[:len(kept)] + (1,) * len(axes))
    for piece in _layout.pieces(x.shape[:len(kept)], max(1, _softmax.STAGED_ELEMENTS // max(n, 1))):
        visible = None if where is None else where[piece]
        rows, _ = _softmax._contiguous(x[piece], arguments.compute_dtype, along, visible, copy=True)
        rows = np.asarray(rows)                 # of 0-d x, a scalar
        _entropy_gradient(
            arguments._replace(x=rows, axes=along, where=visible,
                               temperature=temperature if isinstance(temperature, float) else temperature[piece]),
            np.asarray(upstream[piece]), rows)
        with np.errstate(all="ignore"):
            dx[piece] = rows


def _in_native_order(array):
    return converted(array, native(array.dtype))


def _spread_nan(dx, values, where):
    """Rows whose forward result is NaN have a gradient of NaN, also where a score is -inf."""
    is_nan = np.isnan(values)
    if is_nan.any():
        np.copyto(dx, np.asarray(math.nan, dx.dtype), where=is_nan if where is None else is_nan & where)


def _compute(kind, arguments, dx, x, grad=None, where=None, upstream=None, value=None):
    """Write dx. grad has the shape of x; upstream and value have length 1 along the axes. dx may be x or grad."""
    axes, dtype = arguments.axes, arguments.compute_dtype
    if x.size == 0:
        return
    t = _softmax._broadcast_temperature(arguments.temperature, x.shape)
    upstream, value = (None if v is None else _fastpath.broadcast_to(v, x.shape) for v in (upstream, value))
    of_elements = [a for a in (x, grad, dx) if a is not None]
    of_rows = [a for a in (upstream, value) if a is not None]
    if all(a.dtype == dtype for a in of_elements) and all(map(kernel_ready, of_elements + of_rows)):
        operands = x, grad, dx, t, where, upstream, value
        none = (0,) * x.ndim
        layout = _layout.Layout.along(x.shape, axes, tuple([none if a is None else a.strides for a in operands]))
        if layout is not None and (
                layout.calls == 1 or x.size >= layout.calls * _softmax.MIN_ELEMENTS_PER_CALL):
            threads = _threads.threads_for(x.size // layout.calls)
            nontemporal = dx.nbytes >= _softmax._nontemporal_bytes and _layout.no_overlap(dx, x, grad)
            views = layout.views(elements(x), None if grad is None else elements(grad), elements(dx), t,
                                 None if where is None else elements(where), upstream, value)
            for view in views:
                _call(kind, dtype, *view, threads, nontemporal)
            return
    _compute_staged(kind, dtype, axes, x, grad, dx, t, where, upstream, value)


def _call(kind, dtype, x, grad, dx, temperature, where, upstream, value, threads, nontemporal):
    """One call of the kernel. All are (outer, n, inner), and the same along n where they are one number a row."""
    temperature, upstream, value = (None if v is None else v[:, 0] for v in (temperature, upstream, value))
    _dispatch.kernels(_fastpath.tag(dtype)).softmax_backward_rows(
        kind, x, grad, dx, temperature, where, upstream, value, threads, nontemporal)


def _compute_staged(kind, dtype, axes, x, grad, dx, temperature, where, upstream, value):
    """As `_compute`, with buffers in the kernel's order and dtype for some rows at a time."""
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    order = kept + axes
    n = math.prod(x.shape[i] for i in axes)
    first = (..., *(0,) * len(axes))            # of a row
    x, dx = x.transpose(order), dx.transpose(order)
    grad, where = (None if a is None else a.transpose(order) for a in (grad, where))
    temperature, upstream, value = (
        None if v is None else v.transpose(order)[first] for v in (temperature, upstream, value))
    along = tuple(range(len(kept), x.ndim))
    of_rows = statistics_dtype(dtype)
    for piece in _layout.pieces(x.shape[:len(kept)], max(1, _softmax.STAGED_ELEMENTS // n)):
        visible = None if where is None else where[piece]
        rows, peak = _softmax._contiguous(x[piece], dtype, along, visible, copy=True)
        shape = rows.shape
        rows = elements(np.asarray(rows)).reshape(-1, n, 1)
        grads = None if grad is None else elements(converted(grad[piece], dtype, "C", copy=True)).reshape(-1, n, 1)
        mask = None if visible is None else elements(np.ascontiguousarray(visible)).reshape(-1, n, 1)
        t = None if temperature is None else np.ascontiguousarray(temperature[piece]).reshape(-1, 1)
        numbers = [None if v is None else v[piece] for v in (upstream, value)]
        if peak is not None:                    # of wide integers: rows are distances from it
            numbers[1] = numbers[1].astype(np.longdouble) - peak.reshape(numbers[1].shape).astype(np.longdouble)
        numbers = [None if v is None else converted(v, of_rows, "C").reshape(-1, 1) for v in numbers]
        _dispatch.kernels(_fastpath.tag(dtype)).softmax_backward_rows(
            kind, rows, grads, rows, t, mask, *numbers, _threads.threads_for(rows.size), False)
        with np.errstate(all="ignore"):
            dx[piece] = rows.view(dtype).reshape(shape)
