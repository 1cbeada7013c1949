"""softmax, log_softmax, logsumexp, softmax_entropy, causal_softmax for tensors.

Gradients of softmax, log_softmax and logsumexp have gradients themselves, written as PyTorch's own operations, which
have all further ones.
"""

import torch

import fastsoftmax
from fastsoftmax.torch._library import (
    array,
    axes_of,
    define,
    define_gradient,
    empty,
    floats,
    number_or_tensor,
    numpy_axis,
    optional,
    reduced_shape,
    statistics_dtype,
    sum_to,
    tensor,
)


def _temperature(temperature, temperatures):
    return temperature if temperatures is None else array(temperatures)


def _divisor(ctx, temperatures):
    """The temperature, a number or a tensor, for PyTorch's operations."""
    return ctx.temperature if temperatures is None else temperatures


def _gradient_of_temperatures(dx, x, temperatures):
    """``-sum(dx * x) / temperature``; a score whose gradient is 0 may be infinite or NaN."""
    dtype = statistics_dtype(dx.dtype)
    products = torch.where(dx != 0, dx.to(dtype) * x.to(dtype), 0)
    wide = temperatures.to(dtype)
    return (-products.sum_to_size(temperatures.shape) / wide).to(temperatures.dtype)


# ---- softmax and log_softmax

def _forward_of(function):
    def kernel(x, axis, temperature, temperatures, where):
        y = empty(x.shape, x.dtype)
        function(array(x), numpy_axis(axis), temperature=_temperature(temperature, temperatures), where=array(where),
                 out=array(y))
        return y

    return kernel


def _fake(x, axis, temperature, temperatures, where):
    return x.new_empty(x.shape)


def _setup(ctx, inputs, output):
    x, ctx.axis, ctx.temperature, temperatures, _ = inputs
    ctx.save_for_backward(output, temperatures, None if temperatures is None else x)


def _backward_by(gradient):
    def backward(ctx, grad):
        y, temperatures, x = ctx.saved_tensors
        dx = gradient(grad, y, ctx.axis, ctx.temperature, temperatures)
        wanted = ctx.needs_input_grad[3]
        return dx, None, None, _gradient_of_temperatures(dx, x, temperatures) if wanted else None, None

    return backward


def _gradient_of(function):
    def kernel(grad, y, axis, temperature, temperatures):
        dx = empty(y.shape, y.dtype)
        function(array(grad), array(y), numpy_axis(axis), temperature=_temperature(temperature, temperatures),
                 out=array(dx))
        return dx

    return kernel


def _fake_gradient(grad, y, axis, temperature, temperatures):
    return y.new_empty(y.shape)


def _setup_gradient(ctx, inputs, output):
    grad, y, ctx.axis, ctx.temperature, temperatures = inputs
    ctx.save_for_backward(grad, y, temperatures)


def _sums(x, axis):
    """Sums along the axes; an empty list of axes means none, as in NumPy."""
    return x if axis == [] else x.sum(axis, keepdim=True) if axis is not None else x.sum()


def _second_of_softmax(ctx, h):
    """Of dx = y * (grad - s) / t with s = sum(y * grad): gradients for grad, y and t."""
    grad, y, temperatures = ctx.saved_tensors
    t = _divisor(ctx, temperatures)
    grad = torch.where(y != 0, grad, 0)
    h = torch.where(y != 0, h, 0)
    s, u = _sums(y * grad, ctx.axis), _sums(y * h, ctx.axis)
    dt = None
    if ctx.needs_input_grad[4]:
        dt = sum_to(-h * y * (grad - s) / t ** 2, temperatures.shape, temperatures.dtype)
    return (y * (h - u) / t).to(grad.dtype), ((h * (grad - s) - u * grad) / t).to(y.dtype), None, None, dt


def _second_of_log_softmax(ctx, h):
    """Of dx = (grad - p * s) / t with p = exp(log_y), s = sum(grad): gradients for grad, log_y and t."""
    grad, log_y, temperatures = ctx.saved_tensors
    t, p = _divisor(ctx, temperatures), log_y.exp()
    grad = torch.where(p != 0, grad, 0)
    h = torch.where(p != 0, h, 0)
    s = _sums(grad, ctx.axis)
    dt = None
    if ctx.needs_input_grad[4]:
        dt = sum_to(-h * (grad - p * s) / t ** 2, temperatures.shape, temperatures.dtype)
    return ((h - _sums(p * h, ctx.axis)) / t).to(grad.dtype), (-h * p * s / t).to(log_y.dtype), None, None, dt


_ARGUMENTS = "(Tensor x, int[]? axis, float temperature, Tensor? temperatures, Tensor? where) -> Tensor"
_OF_GRADIENT = "(Tensor grad, Tensor y, int[]? axis, float temperature, Tensor? temperatures) -> Tensor"

_softmax_gradient = define(
    f"softmax_backward{_OF_GRADIENT}", _gradient_of(fastsoftmax.softmax_backward), _fake_gradient, _setup_gradient,
    _second_of_softmax)
_log_softmax_gradient = define(
    f"log_softmax_backward{_OF_GRADIENT}", _gradient_of(fastsoftmax.log_softmax_backward), _fake_gradient,
    _setup_gradient, _second_of_log_softmax)
_softmax = define(f"softmax{_ARGUMENTS}", _forward_of(fastsoftmax.softmax), _fake, _setup,
                  _backward_by(_softmax_gradient))
_log_softmax = define(f"log_softmax{_ARGUMENTS}", _forward_of(fastsoftmax.log_softmax), _fake, _setup,
                      _backward_by(_log_softmax_gradient))


def softmax(x, axis=None, *, temperature=1.0, where=None, dim=None):
    """`fastsoftmax.softmax` of a tensor.

    Parameters
    ----------
    x : Tensor
        Scores, of any shape and strides: float32, float64, float16 or bfloat16.
    axis : int, tuple of ints or None, default None
        The axes along which the weights sum to one; None takes all elements, unlike `torch.softmax`.
    temperature : float or Tensor, default 1.0
        Divides the scores. Positive and finite. A tensor broadcasts against x with length 1 along the axes, and gets
        its gradient.
    where : Tensor of bool, optional
        Broadcasts to x. Where it is False, the weight is exactly 0, whatever x holds there.

    Returns
    -------
    Tensor
        Of the shape and dtype of x, contiguous.

    Raises
    ------
    TypeError
        If x is not a floating tensor.
    NotImplementedError
        If a tensor is on another device or not dense.
    ValueError, numpy.exceptions.AxisError
        As `fastsoftmax.softmax`.

    Notes
    -----
    Gradients of gradients are right, to any order.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import softmax
    >>> softmax(torch.tensor([3.0, 2.0, 1.0]))
    tensor([0.6652, 0.2447, 0.0900])
    """
    floats(x, "x")
    number, temperatures = number_or_tensor(temperature, "temperature")
    return _softmax(x, axes_of(axis, x, dim), number, temperatures, optional(where, "where"))


def log_softmax(x, axis=None, *, temperature=1.0, where=None, dim=None):
    """`fastsoftmax.log_softmax` of a tensor.

    Parameters
    ----------
    x, axis, temperature
        As in `softmax`.
    where : Tensor of bool, optional
        As in `softmax`; where it is False, the result is -inf.

    Returns
    -------
    Tensor
        Of the shape and dtype of x, contiguous.

    Raises
    ------
    TypeError, NotImplementedError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import log_softmax
    >>> log_softmax(torch.tensor([0.0, -20.0]))
    tensor([-2.0612e-09, -2.0000e+01])
    """
    floats(x, "x")
    number, temperatures = number_or_tensor(temperature, "temperature")
    return _log_softmax(x, axes_of(axis, x, dim), number, temperatures, optional(where, "where"))


# ---- logsumexp

def _logsumexp_kernel(a, axis, keepdims, where):
    return tensor(fastsoftmax.logsumexp(array(a), numpy_axis(axis), keepdims=keepdims, where=array(where)), a.dtype)


def _logsumexp_fake(a, axis, keepdims, where):
    return a.new_empty(reduced_shape(a, axis, keepdims))


def _logsumexp_setup(ctx, inputs, output):
    a, ctx.axis, ctx.keepdims, where = inputs
    ctx.save_for_backward(a, output, where)


def _logsumexp_backward(ctx, grad):
    a, lse, where = ctx.saved_tensors
    return _logsumexp_gradient(grad, a, lse, ctx.axis, ctx.keepdims, where), None, None, None


def _logsumexp_gradient_kernel(grad, a, lse, axis, keepdims, where):
    """The lse of 16-bit scores is computed again in float32: as much as it is rounded, so are the weights."""
    da = empty(a.shape, a.dtype)
    axis, scores, where, lse = numpy_axis(axis), array(a), array(where), array(lse)
    if a.itemsize == 2:
        lse = fastsoftmax.logsumexp(scores, axis, keepdims=keepdims, where=where, dtype="float32")
    fastsoftmax.logsumexp_backward(array(grad), scores, lse, axis, keepdims=keepdims, where=where, out=array(da))
    return da


def _logsumexp_gradient_fake(grad, a, lse, axis, keepdims, where):
    return a.new_empty(a.shape)


def _logsumexp_gradient_setup(ctx, inputs, output):
    grad, a, lse, ctx.axis, ctx.keepdims, where = inputs
    ctx.save_for_backward(grad, a, lse, where)


def _second_of_logsumexp(ctx, h):
    """Of da = grad * p with p = exp(a - lse): gradients for grad, a and lse."""
    grad, a, lse, where = ctx.saved_tensors
    shape = lse.shape
    kept = reduced_shape(a, ctx.axis, True)
    p = (a - lse.reshape(kept)).exp()
    p = torch.where(p != 0 if where is None else where & (p != 0), p, 0)
    h = torch.where(p != 0, h, 0)
    terms = h * p
    of_grad = _sums(terms, ctx.axis).reshape(shape)
    of_a = (grad.reshape(kept) * terms).to(a.dtype)
    return of_grad.to(grad.dtype), of_a, -(grad * of_grad).to(lse.dtype), None, None, None


_logsumexp_gradient = define(
    "logsumexp_backward(Tensor grad, Tensor a, Tensor lse, int[]? axis, bool keepdims, Tensor? where) -> Tensor",
    _logsumexp_gradient_kernel, _logsumexp_gradient_fake, _logsumexp_gradient_setup, _second_of_logsumexp)
_logsumexp = define("logsumexp(Tensor a, int[]? axis, bool keepdims, Tensor? where) -> Tensor", _logsumexp_kernel,
                    _logsumexp_fake, _logsumexp_setup, _logsumexp_backward)


def logsumexp(a, axis=None, keepdims=False, *, where=None, dim=None):
    """`fastsoftmax.logsumexp` of a tensor.

    Parameters
    ----------
    a : Tensor
        Exponents, of any shape and strides: float32, float64, float16 or bfloat16.
    axis : int, tuple of ints or None, default None
        The axes to sum over; None takes all elements.
    keepdims : bool, default False
        Keep the axes, with length 1.
    where : Tensor of bool, optional
        Broadcasts to a: elements to include.

    Returns
    -------
    Tensor
        Of the dtype of a; -inf for an empty sum.

    Raises
    ------
    TypeError, NotImplementedError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import logsumexp
    >>> float(logsumexp(torch.tensor([1000.0, 1000.0], dtype=torch.float64)))
    1000.6931471805599
    """
    floats(a, "a")
    return _logsumexp(a, axes_of(axis, a, dim), bool(keepdims), optional(where, "where"))


# ---- softmax_entropy

def _entropy_kernel(x, axis, temperature, temperatures, where):
    return tensor(fastsoftmax.softmax_entropy(
        array(x), numpy_axis(axis), temperature=_temperature(temperature, temperatures), where=array(where)), x.dtype)


def _entropy_fake(x, axis, temperature, temperatures, where):
    return x.new_empty(reduced_shape(x, axis, False))


def _entropy_setup(ctx, inputs, output):
    x, ctx.axis, ctx.temperature, temperatures, where = inputs
    ctx.save_for_backward(x, temperatures, where)


def _entropy_backward(ctx, grad):
    x, temperatures, where = ctx.saved_tensors
    dx = _entropy_gradient(grad, x, ctx.axis, ctx.temperature, temperatures, where)
    wanted = ctx.needs_input_grad[3]
    return dx, None, None, _gradient_of_temperatures(dx, x, temperatures) if wanted else None, None


def _entropy_gradient_kernel(grad, x, axis, temperature, temperatures, where):
    dx = empty(x.shape, x.dtype)
    fastsoftmax.softmax_entropy_backward(
        array(grad), array(x), numpy_axis(axis), temperature=_temperature(temperature, temperatures),
        where=array(where), out=array(dx))
    return dx


def _entropy_gradient_fake(grad, x, axis, temperature, temperatures, where):
    return x.new_empty(x.shape)


_entropy_gradient = define_gradient(
    "softmax_entropy_backward(Tensor grad, Tensor x, int[]? axis, float temperature, Tensor? temperatures, "
    "Tensor? where) -> Tensor", _entropy_gradient_kernel, _entropy_gradient_fake, "softmax_entropy")
_entropy = define(f"softmax_entropy{_ARGUMENTS}", _entropy_kernel, _entropy_fake, _entropy_setup, _entropy_backward)


def softmax_entropy(x, axis=None, *, temperature=1.0, where=None, dim=None):
    """`fastsoftmax.softmax_entropy` of a tensor, in nats.

    Parameters
    ----------
    x, axis, temperature, where
        As in `softmax`.

    Returns
    -------
    Tensor
        The shape of x without the axes.

    Raises
    ------
    TypeError, NotImplementedError, ValueError, numpy.exceptions.AxisError
        As `softmax`. NotImplementedError for a gradient of its gradient.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import softmax_entropy
    >>> softmax_entropy(torch.tensor([[1.0, 1.0], [9.0, 0.0]]), axis=-1)
    tensor([0.6931, 0.0012])
    """
    floats(x, "x")
    number, temperatures = number_or_tensor(temperature, "temperature")
    return _entropy(x, axes_of(axis, x, dim), number, temperatures, optional(where, "where"))


# ---- causal_softmax

def _causal_kernel(scores, offset, temperature, temperatures):
    y = empty(scores.shape, scores.dtype)
    fastsoftmax.causal_softmax(array(scores), offset=offset, temperature=_temperature(temperature, temperatures),
                               out=array(y))
    return y


def _causal_fake(scores, offset, temperature, temperatures):
    return scores.new_empty(scores.shape)


def _causal_setup(ctx, inputs, output):
    scores, _, ctx.temperature, temperatures = inputs
    ctx.save_for_backward(output, temperatures, None if temperatures is None else scores)


def _causal_backward(ctx, grad):
    y, temperatures, scores = ctx.saved_tensors
    dx = _softmax_gradient(grad, y, [-1], ctx.temperature, temperatures)
    wanted = ctx.needs_input_grad[3]
    return dx, None, None, _gradient_of_temperatures(dx, scores, temperatures) if wanted else None


_causal_softmax = define(
    "causal_softmax(Tensor scores, SymInt offset, float temperature, Tensor? temperatures) -> Tensor", _causal_kernel,
    _causal_fake, _causal_setup, _causal_backward)


def causal_softmax(scores, *, offset=0, temperature=1.0):
    """`fastsoftmax.causal_softmax` of a tensor: the weights of the keys that each query may see.

    Parameters
    ----------
    scores : Tensor, (..., L, S)
        Score of query i for key j at ``[..., i, j]``; visible where ``j <= i + offset``. Hidden ones are not read.
    offset : int, default 0
        ``S - L`` aligns the last query with the last key.
    temperature : float or Tensor, default 1.0
        As in `softmax`; a tensor broadcasts to (..., L, 1).

    Returns
    -------
    Tensor, (..., L, S)
        Exactly 0 at hidden keys.

    Raises
    ------
    TypeError, NotImplementedError, ValueError
        As `softmax`; also if scores has fewer than two dimensions.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import causal_softmax
    >>> causal_softmax(torch.tensor([[1.0, torch.nan], [2.0, 2.0]]))
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000]])
    """
    floats(scores, "scores")
    number, temperatures = number_or_tensor(temperature, "temperature")
    return _causal_softmax(scores, offset, number, temperatures)
