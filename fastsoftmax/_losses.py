"""The losses from checked arguments to kernel calls: reductions, softcap, staging, and the chunks of a linear layer."""

import math

import numpy as np

from fastsoftmax import _dispatch, _fastpath, _layout, _softmax, _threads, _validate, reference
from fastsoftmax._dtypes import converted, native, statistics_dtype
from fastsoftmax._fp_env import default_fp_env
from fastsoftmax._layout import copy_if_overlapping, elements, kernel_ready

# Logits of a linear layer that are in memory at a time: this share of them, between these numbers; and a few rows,
# which make a product of matrices worth while.
CHUNK_SHARE, MIN_CHUNK_ELEMENTS, MAX_CHUNK_ELEMENTS, MIN_CHUNK_ROWS = 1 / 16, 1 << 18, 1 << 22, 16
PRODUCT_ELEMENTS = 1 << 20          # of the gradient of a linear weight that are computed at a time


@default_fp_env
def cross_entropy(logits, target, axis, weight, ignore_index, label_smoothing, reduction, z_loss, softcap, temperature,
                  return_lse, return_grad, grad_into, dim):
    """cross_entropy."""
    if (weight is softcap is dim is None and type(label_smoothing) is type(z_loss) is type(temperature) is float
            and 0 <= label_smoothing <= 1 and 0 <= z_loss < math.inf and temperature == 1
            and type(reduction) is str and reduction in _validate.REDUCTIONS):
        operands = _fastpath.loss_operands(logits, target, axis, ignore_index, grad_into, bool(return_grad))
        if operands is not None:
            return _of_classes(operands, target, label_smoothing, reduction, z_loss, return_lse)
    return _of_any(logits, target, axis, weight, ignore_index, label_smoothing, reduction, z_loss, softcap, temperature,
                   return_lse, return_grad, grad_into, dim)


def _of_classes(operands, target, label_smoothing, reduction, z_loss, return_lse):
    """The results for what the fast path covers."""
    tag, x, classes, kept, dx_rows, dx, in_place = operands
    real = np.float64 if tag == "f64" else np.float32
    loss = np.empty(classes.shape, real)
    lse = np.empty(classes.shape, real) if return_lse else None
    divisor = float(kept) if reduction == "mean" else 1.0
    threads = 1 if x.size <= _softmax.SMALL_ELEMENTS else _threads.threads_for(x.size)
    nontemporal = dx is not None and not in_place and dx.nbytes >= _softmax._nontemporal_bytes
    _dispatch.kernels(tag).cross_entropy_rows(
        x, classes, None, None, float(x.shape[1]), label_smoothing, z_loss, 1 / divisor, None, loss, lse, dx_rows,
        threads, nontemporal)
    results = [_reduced(reduction, loss.reshape(target.shape), divisor, np.dtype(real))]
    if return_lse:
        results.append(lse.reshape(target.shape)[()])
    if dx is not None:
        results.append(dx)
    return results[0] if len(results) == 1 else tuple(results)


def _of_any(logits, target, axis, weight, ignore_index, label_smoothing, reduction, z_loss, softcap, temperature,
            return_lse, return_grad, grad_into, dim):
    a = _validate.cross_entropy(logits, target, axis, weight, ignore_index, label_smoothing, reduction, z_loss, softcap,
                                temperature, grad_into, dim)
    return_grad = bool(return_grad) or grad_into is not None
    if not a.has_kernel:
        return _by_reference(a, return_lse, return_grad, grad_into)
    if grad_into is not None:
        a = a._replace(logits=copy_if_overlapping(a.logits, grad_into, in_place=True), **{
            name: copy_if_overlapping(value, grad_into)
            for name, value in (("classes", a.classes), ("target", a.target), ("weight", a.weight))})
    x, dx = a.logits, grad_into
    if return_grad and dx is None:
        dx = np.empty_like(x, dtype=a.result_dtype, subok=False)
    divisor = _divisor(a)
    loss, lse = _loss_of_rows(a, x, None if divisor == 0 else dx, 1 / divisor if divisor else 1.0, bool(return_lse))
    if divisor == 0 and dx is not None:
        dx[...] = 0
    results = [_reduced(a.reduction, loss, divisor, a.loss_dtype)]
    if return_lse:
        results.append(lse[()])
    if return_grad:
        results.append(dx)
    return results[0] if len(results) == 1 else tuple(results)


def _by_reference(a, return_lse, return_grad, grad_into):
    logits, target, weight = (
        None if v is None else converted(v, native(v.dtype))
        for v in (a.logits, a.target if a.classes is None else a.classes, a.weight))
    results = reference.cross_entropy(
        logits, target, a.axis, weight=weight, ignore_index=-1, label_smoothing=a.smoothing, reduction=a.reduction,
        z_loss=a.z_loss, softcap=a.softcap, temperature=a.temperature, return_lse=return_lse, return_grad=return_grad)
    if grad_into is None:
        return results
    with np.errstate(all="ignore"):
        np.copyto(grad_into, results[-1], casting="same_kind")
    return (*results[:-1], grad_into)


def _divisor(a):
    """The number by which the sum of the losses is divided; 0 for a mean over nothing."""
    if a.reduction != "mean":
        return 1.0
    if a.classes is None:
        return float(a.target.size // a.target.shape[a.axis])
    kept = a.classes >= 0
    if a.weight is None:
        return float(np.count_nonzero(kept))
    return float(a.weight[a.classes[kept]].sum(dtype=np.longdouble))


def _reduced(reduction, loss, divisor, dtype):
    """The loss of each row, their sum or their mean, in the dtype of the loss."""
    if reduction == "none":
        return converted(loss, dtype)[()]
    loss = loss.sum(dtype=np.float64 if loss.dtype == np.float32 else np.longdouble)
    if reduction == "mean":
        loss = loss / divisor if divisor else math.nan
    return converted(np.asarray(loss), dtype)[()]


def _loss_of_rows(a, x, dx, grad_scale, wants_lse):
    """(loss, lse or None) of each row of x; writes the gradients of grad_scale times the losses to dx, if given."""
    shape = x.shape[:a.axis] + x.shape[a.axis + 1:]
    real = statistics_dtype(a.result_dtype)
    loss, lse = np.empty(shape, real), np.empty(shape, real) if wants_lse else None
    if x.size and not _compute(a, x, dx, grad_scale, loss, lse):
        _compute_by_pieces(a, x, dx, grad_scale, loss, lse)
    return loss, lse


def _compute(a, x, dx, grad_scale, loss, lse):
    """Write loss, lse and dx, if the kernel takes the arrays as they are. Returns whether it does."""
    written = x if dx is None else dx
    target = a.target if a.classes is None else a.classes
    if (a.softcap is not None or not x.dtype == written.dtype == a.result_dtype
            or (a.classes is None and target.dtype != loss.dtype) or not all(map(kernel_ready, (x, written, target)))):
        return False
    t = _softmax._broadcast_temperature(a.temperature, x.shape)
    classes, loss, lse = (
        None if v is None else _fastpath.as_strided(v, x.shape, (*v.strides[:a.axis], 0, *v.strides[a.axis:]))
        for v in (a.classes, loss, lse))
    operands = x, dx, classes, a.target, t, loss, lse
    none = (0,) * x.ndim
    layout = _layout.Layout.along(x.shape, (a.axis,), tuple([none if v is None else v.strides for v in operands]))
    if layout.calls > 1 and x.size < layout.calls * _softmax.MIN_ELEMENTS_PER_CALL:
        return False
    threads = _threads.threads_for(x.size // layout.calls)
    nontemporal = dx is not None and dx.nbytes >= _softmax._nontemporal_bytes and _layout.no_overlap(dx, x)
    for x_, dx_, classes_, target_, t_, loss_, lse_ in layout.views(
            elements(x), None if dx is None else elements(dx), *operands[2:]):
        _call(a, x_, dx_, _first(classes_), target_, _first(t_), grad_scale, _first(loss_), _first(lse_), threads,
              nontemporal)
    return True


def _first(view):
    """(outer, inner) of (outer, n, inner) that is the same along n; None stays."""
    return None if view is None else view[:, 0]


def _call(a, x, dx, classes, target, temperature, grad_scale, loss, lse, threads, nontemporal):
    """One call of the kernel, whose losses and lses are C-contiguous."""
    weight_sum = 0.0                            # read for smoothing alone: 0 * NaN would be NaN
    if a.smoothing:
        weight_sum = float(x.shape[1]) if a.weight is None else float(a.weight.sum(dtype=np.longdouble))
    written = [v if v is None or v.flags.c_contiguous else np.empty(v.shape, v.dtype) for v in (loss, lse)]
    _dispatch.kernels(_fastpath.tag(a.result_dtype)).cross_entropy_rows(
        x, classes, target, a.weight, weight_sum, a.smoothing, a.z_loss, grad_scale, temperature, *written, dx, threads,
        nontemporal)
    for v, buffer in zip((loss, lse), written, strict=True):
        if v is not buffer:
            v[...] = buffer


def _compute_by_pieces(a, x, dx, grad_scale, loss, lse):
    """As `_compute`, with buffers in the kernel's order and dtype for some rows at a time. A softcap is applied there,
    in float64: the loss of a class is a small difference of large capped logits."""
    n = x.shape[a.axis]
    dtype = a.result_dtype if a.softcap is None else np.dtype(np.float64)
    real = statistics_dtype(dtype)
    inner = a._replace(result_dtype=dtype, weight=None if a.weight is None else converted(a.weight, real))
    x, dx, target = (None if v is None else np.moveaxis(v, a.axis, -1) for v in (x, dx, a.target))
    t = a.temperature
    if not isinstance(t, float):
        t = _fastpath.broadcast_to(np.moveaxis(t, a.axis, -1)[..., 0], loss.shape)
    for piece in _layout.pieces(loss.shape, max(1, _softmax.STAGED_ELEMENTS // n)):
        scores = converted(x[piece], dtype, "C", copy=True)
        derivative = None if a.softcap is None else _cap(scores, a.softcap)
        rows = elements(scores).reshape(-1, n, 1)
        losses, lses = np.empty((len(rows), 1), real), None if lse is None else np.empty((len(rows), 1), real)
        classes = None if a.classes is None else np.ascontiguousarray(a.classes[piece]).reshape(-1, 1)
        probabilities = None if target is None else converted(target[piece], real, "C").reshape(-1, n, 1)
        temperature = None
        if not isinstance(t, float):
            temperature = np.ascontiguousarray(t[piece]).reshape(-1, 1)
        elif t != 1:
            temperature = np.full((len(rows), 1), t)
        _call(inner, rows, None if dx is None else rows, classes, probabilities, temperature, grad_scale, losses, lses,
              _threads.threads_for(rows.size), False)
        with np.errstate(all="ignore"):
            loss[piece] = losses.reshape(scores.shape[:-1])
            if lse is not None:
                lse[piece] = lses.reshape(scores.shape[:-1])
            if dx is None:
                continue
            if derivative is not None:          # an ignored row may hold NaN, and its gradient is 0
                np.multiply(scores, derivative, out=scores,
                            where=True if classes is None else classes.reshape(scores.shape[:-1])[..., None] >= 0)
            dx[piece] = scores


@np.errstate(all="ignore")
def _cap(scores, softcap):
    """Replace scores by ``softcap * tanh(scores / softcap)``, and return the derivative, ``1 / cosh(...)**2``."""
    scores /= softcap
    e = np.exp(-2 * abs(scores))
    np.tanh(scores, out=scores)
    scores *= softcap
    return 4 * e / (1 + e) ** 2                 # neither overflow nor cancellation


@default_fp_env
def linear_cross_entropy(hidden, linear_weight, target, linear_bias, weight, ignore_index, label_smoothing, reduction,
                         z_loss, softcap, return_grad):
    """linear_cross_entropy."""
    arguments = _validate.linear_cross_entropy(hidden, linear_weight, target, linear_bias, weight, ignore_index,
                                               label_smoothing, reduction, z_loss, softcap)
    hidden, linear_weight, linear_bias, a, dtype = arguments
    if not a.has_kernel:
        return _linear_by_reference(arguments, return_grad)
    divisor = _divisor(a)
    layer = _Linear(hidden, linear_weight, linear_bias, dtype, bool(return_grad))
    with np.errstate(all="ignore"):
        loss = np.zeros(len(hidden), dtype)
        if divisor != 0:
            layer.compute(a, 1 / divisor, loss)
        loss = _reduced(a.reduction, loss, divisor, a.loss_dtype)
        return (loss, layer.gradients()) if return_grad else loss


@np.errstate(all="ignore")
def _linear_by_reference(arguments, return_grad):
    hidden, linear_weight, linear_bias, a, dtype = arguments
    target = a.target if a.classes is None else a.classes
    arrays = [None if v is None else converted(v, native(v.dtype))
              for v in (hidden, linear_weight, target, linear_bias)]
    loss, gradients = reference.linear_cross_entropy(
        converted(arrays[0], dtype), *arrays[1:3], linear_bias=arrays[3], weight=a.weight, ignore_index=-1,
        label_smoothing=a.smoothing, reduction=a.reduction, z_loss=a.z_loss, softcap=a.softcap, return_grad=True)
    loss = converted(np.asarray(loss), a.loss_dtype)[()]
    return (loss, (converted(gradients[0], native(hidden.dtype)), *gradients[1:])) if return_grad else loss


class _Linear:
    """A linear layer and the gradients of its weights, which add up over chunks of rows.

    hidden and weight are aligned and in C order for BLAS, which adds up products of other arrays in another order.
    """

    def __init__(self, hidden, weight, bias, dtype, has_grad):
        self.hidden, self.dtype, self.has_grad = hidden, dtype, has_grad
        self.weight, self.bias = converted(weight, dtype, "C"), None if bias is None else converted(bias, dtype)
        self.dtypes = [native(v.dtype) for v in (hidden, weight, bias) if v is not None]
        if has_grad:
            self.dhidden = np.zeros(hidden.shape, self.dtypes[0])
            self.dweight = np.zeros(weight.shape, dtype)
            self.dbias = None if bias is None else np.zeros(bias.shape, dtype)

    def compute(self, a, grad_scale, loss):
        """Write the loss of each row that is not ignored; an ignored one may hold NaN, and is left out."""
        rows = None
        if a.classes is not None and (a.classes < 0).any():
            rows = np.flatnonzero(a.classes >= 0)
        count, n = len(loss) if rows is None else len(rows), len(self.weight)
        step = min(max(MIN_CHUNK_ELEMENTS // n, math.ceil(len(loss) * CHUNK_SHARE)), MAX_CHUNK_ELEMENTS // n)
        step = max(step, MIN_CHUNK_ROWS)
        buffer = np.empty((min(step, count), n), self.dtype)
        for start in range(0, count, step):
            part = slice(start, start + step) if rows is None else rows[start:start + step]
            hidden = converted(self.hidden[part], self.dtype, "C")
            logits = np.matmul(hidden, self.weight.T, out=buffer[:len(hidden)])
            if self.bias is not None:
                logits += self.bias
            chunk = a._replace(classes=None if a.classes is None else np.ascontiguousarray(a.classes[part]),
                               target=None if a.target is None else a.target[part])
            loss[part], _ = _loss_of_rows(chunk, logits, logits if self.has_grad else None, grad_scale, False)
            if self.has_grad:
                self._add(part, hidden, logits)

    def _add(self, part, hidden, dlogits):
        """The gradients from those of the logits."""
        self.dhidden[part] = dlogits @ self.weight
        step = max(1, PRODUCT_ELEMENTS // max(1, hidden.shape[1]))
        for start in range(0, len(self.weight), step):
            classes = slice(start, start + step)
            self.dweight[classes] += dlogits[:, classes].T @ hidden
        if self.dbias is not None:
            self.dbias += dlogits.sum(0)

    def gradients(self):
        """Each in the dtype of its input."""
        found = [self.dhidden, self.dweight] + ([] if self.dbias is None else [self.dbias])
        return tuple([converted(v, dtype) for v, dtype in zip(found, self.dtypes, strict=True)])
