"""cross_entropy for tensors. The forward pass computes the gradient for the logits, if there will be a backward pass.

An op has few arguments, since each costs time in every call: `floats` are label_smoothing, z_loss, softcap (0: not
set) and temperature; `ints` are axis, ignore_index, and whether to return lse and the gradient for the logits.
"""

import math

import torch

import fastsoftmax
from fastsoftmax import _validate
from fastsoftmax.torch._library import (
    array,
    define,
    define_gradient,
    define_without_gradient,
    empty,
    floats,
    nothing,
    number_or_tensor,
    optional,
    statistics_dtype,
    tensor,
)

_INPUTS = ("Tensor logits, Tensor target, Tensor? weight, Tensor? temperatures, str reduction, float[] floats, "
           "int[] ints")


def _kernel(logits, target, weight, temperatures, reduction, floats, ints):
    smoothing, z_loss, softcap, temperature = floats
    axis, ignore_index, return_lse, has_grad = ints
    dtype = statistics_dtype(logits.dtype)
    grad = empty(logits.shape, logits.dtype) if has_grad else nothing(logits.dtype)
    results = fastsoftmax.cross_entropy(
        array(logits), array(target), axis, weight=array(weight), ignore_index=ignore_index, label_smoothing=smoothing,
        reduction=reduction, z_loss=z_loss, softcap=softcap or None,
        temperature=temperature if temperatures is None else array(temperatures), return_lse=bool(return_lse),
        grad_into=array(grad) if has_grad else None)
    loss, *others = results if isinstance(results, tuple) else (results,)
    return tensor(loss, dtype), tensor(others[0], dtype) if return_lse else nothing(dtype), grad


def _fake(logits, target, weight, temperatures, reduction, floats, ints):
    axis, _, return_lse, has_grad = ints
    axis, dtype = _validate._axis(axis, logits.ndim), statistics_dtype(logits.dtype)
    rows = logits.shape[:axis] + logits.shape[axis + 1:]
    return (logits.new_empty(rows if reduction == "none" else (), dtype=dtype),
            logits.new_empty(rows if return_lse else 0, dtype=dtype),
            logits.new_empty(logits.shape if has_grad else 0))


def _setup(ctx, inputs, output):
    *tensors, ctx.reduction, ctx.floats, ctx.ints = inputs
    loss, _, grad = output
    ctx.save_for_backward(*tensors, loss, grad)
    ctx.is_taken = False
    ctx.mark_non_differentiable(grad)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_loss, grad_lse, _):
    """From the stored gradient; those for the target, the weights and temperatures, or of lse, with whole arrays."""
    logits, _, _, _, _, grad = ctx.saved_tensors
    of_logits, of_target, of_weight, of_temperatures = ctx.needs_input_grad[:4]
    dlogits = dtarget = dweight = dtemperatures = None
    if of_logits and grad_loss is not None:
        if not ctx.ints[3]:
            raise NotImplementedError("this call has computed no gradient for the logits: call "
                                      "fastsoftmax.torch.cross_entropy where gradients are enabled")
        factor = grad_loss.unsqueeze(ctx.ints[0]) if ctx.reduction == "none" else grad_loss
        if ctx.is_taken:                        # a second backward pass of the graph
            with torch.no_grad():
                grad = _training_cross_entropy(*ctx.saved_tensors[:4], ctx.reduction, ctx.floats, ctx.ints)[2]
        dlogits = _taken(ctx, grad, factor) if _is_plain(factor) else _gradient(factor, grad, logits)
    if of_target or of_weight or of_temperatures or grad_lse is not None:
        more, dtarget, dweight, dtemperatures = _other_gradients(ctx, grad_loss, grad_lse)
        if of_logits and grad_lse is not None:
            dlogits = more if dlogits is None else dlogits + more
    return (dlogits, dtarget if of_target else None, dweight if of_weight else None,
            dtemperatures if of_temperatures else None, None, None, None)


def _is_plain(factor):
    """Whether a backward pass is neither traced nor itself differentiated."""
    return not torch.is_grad_enabled() and type(factor) is torch.Tensor and torch._C._len_torch_dispatch_stack() == 0


def _taken(ctx, grad, factor):
    """The stored gradient times factor, in its own memory: new memory for it would take half the time of a training
    step's loss."""
    ctx.is_taken = True
    grad = grad.data                            # whose changes PyTorch does not count
    return grad if factor.ndim == 0 and float(factor) == 1 else grad.mul_(factor)


def _gradient_kernel(grad_loss, grad, logits):
    """grad * grad_loss; of the logits, only that there is a second derivative for them matters, which is refused."""
    return torch.mul(grad, grad_loss, out=empty(grad.shape, grad.dtype))


def _gradient_fake(grad_loss, grad, logits):
    return grad.new_empty(grad.shape)


def _other_gradients(ctx, grad_loss, grad_lse):
    """Gradients for the logits (through lse alone), the target, the weights and the temperatures."""
    logits, target, weight, temperatures, loss, _ = ctx.saved_tensors
    axis, count = ctx.ints[0] % logits.ndim, logits.shape[ctx.ints[0]]
    wide = statistics_dtype(logits.dtype)
    smoothing, z_loss, cap, temperature = ctx.floats
    # The classes last. Capped scores c, s = c / t, log weights log_p; a row has the upstream gradients u and v.
    x = logits.to(wide).movedim(axis, -1)
    c = x if not cap else cap * torch.tanh(x / cap)
    t, row_t = temperature, None
    if temperatures is not None:
        row_t = temperatures.to(wide)
        if row_t.ndim == logits.ndim:
            row_t = row_t.movedim(axis, -1)
        elif row_t.ndim:
            row_t = row_t.unsqueeze(-1)
        t = row_t
    s = c / t
    lse = torch.logsumexp(s, -1, keepdim=True)
    log_p = s - lse
    p = log_p.exp()
    shape = x.shape[:-1] + (1,)
    by_class = not target.is_floating_point()
    kept = (target != ctx.ints[1]).unsqueeze(-1) if by_class else logits.new_ones(shape, dtype=torch.bool)
    q = torch.nn.functional.one_hot(torch.where(kept[..., 0], target, 0).long(), count).to(wide) if by_class else (
        target.to(wide).movedim(axis, -1))
    mixed = (1 - smoothing) * q + smoothing / count
    w = logits.new_ones(count, dtype=wide) if weight is None else weight.to(wide)
    divisor = 1.0
    if ctx.reduction == "mean":
        divisor = (w * q * kept).sum() if by_class else float(kept.numel())
    g = logits.new_zeros((), dtype=wide) if grad_loss is None else grad_loss
    u = torch.where(kept, (g.unsqueeze(-1) if ctx.reduction == "none" else g) / divisor, 0)
    v = logits.new_zeros((), dtype=wide) if grad_lse is None else grad_lse.unsqueeze(-1)
    log_terms = torch.where(mixed != 0, log_p, 0)       # a share of 0 counts for nothing, also beside -inf
    dtarget = None if by_class else (
        -(1 - smoothing) * u * w * log_p).movedim(-1, axis).to(target.dtype)
    dweight = (-u * torch.where(kept, mixed * log_terms, 0)).reshape(-1, count).sum(0)
    if by_class and ctx.reduction == "mean":
        dweight = dweight - g * loss / divisor * (q * kept).reshape(-1, count).sum(0)
    dweight = None if weight is None else dweight.to(weight.dtype)
    dtemperatures = None
    if row_t is not None:
        a = w * mixed
        ds = u * (a.sum(-1, keepdim=True) * p - a + 2 * z_loss * lse * p) + v * p
        ds = torch.where(kept | (v != 0), ds, 0)
        dt = -torch.where(ds != 0, ds * s, 0).sum(-1, keepdim=True) / t
        dt = dt.sum_to_size(row_t.shape)
        dtemperatures = (dt.movedim(-1, axis) if temperatures.ndim == logits.ndim else dt).reshape(
            temperatures.shape).to(temperatures.dtype)
    dx = v * p / t
    if cap:
        dx = dx * (1 - (c / cap) ** 2)
    return dx.movedim(-1, axis).to(logits.dtype), dtarget, dweight, dtemperatures


_gradient = define_gradient("cross_entropy_backward(Tensor grad_loss, Tensor grad, Tensor logits) -> Tensor",
                            _gradient_kernel, _gradient_fake, "cross_entropy")
_training_cross_entropy = define(f"cross_entropy_with_gradient({_INPUTS}) -> (Tensor, Tensor, Tensor)", _kernel, _fake,
                                 _setup, _backward)
_cross_entropy = define_without_gradient(f"cross_entropy({_INPUTS}) -> Tensor", lambda *inputs: _kernel(*inputs)[0],
                                         lambda *inputs: _fake(*inputs)[0], "cross_entropy")


def cross_entropy(logits, target, axis=-1, *, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean",
                  z_loss=0.0, softcap=None, temperature=1.0, return_lse=False):
    """`fastsoftmax.cross_entropy` of tensors: the loss, with its gradient computed in the same pass.

    Parameters
    ----------
    logits : Tensor, (..., C, ...)
        Scores of the classes, of any strides: float32, float64, float16 or bfloat16.
    target : Tensor
        Class numbers: integers, of the logits' shape without `axis`. Or probabilities: floats, of the logits' shape.
    axis : int, default -1
        That of the classes. `torch.nn.functional.cross_entropy` has 1: the same for (N, C).
    weight : Tensor, (C,), optional
        Factor of each class.
    ignore_index, label_smoothing, reduction, z_loss, softcap
        As in `fastsoftmax.cross_entropy`.
    temperature : float or Tensor, default 1.0
        Divides the capped logits; one number, or one for each row.
    return_lse : bool, default False
        Also return the lse of each row.

    Returns
    -------
    loss : Tensor
        float64 for float64 logits, else float32. A number, or one for each row with ``reduction="none"``.
    lse : Tensor
        With return_lse. Of the dtype of the loss.

    Raises
    ------
    TypeError
        If logits is not a floating tensor, or target has no dtype that is taken.
    NotImplementedError
        If a tensor is on another device or not dense; for a gradient of a gradient.
    IndexError, ValueError, numpy.exceptions.AxisError
        As `fastsoftmax.cross_entropy`.

    Notes
    -----
    If the logits require a gradient, it is computed in the forward pass and kept, in their shape. Gradients for
    probabilities, weights, temperatures and through lse are computed with PyTorch's operations on whole arrays.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import cross_entropy
    >>> logits = torch.zeros(2, 4, requires_grad=True)
    >>> cross_entropy(logits, torch.tensor([1, -100])).backward()
    >>> logits.grad
    tensor([[ 0.2500, -0.7500,  0.2500,  0.2500],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    floats(logits, "logits")
    target, weight = optional(target, "target"), optional(weight, "weight")
    number, temperatures = number_or_tensor(temperature, "temperature")
    grads = torch.is_grad_enabled()
    has_grad = grads and logits.requires_grad
    if softcap is not None and not 0 < softcap < math.inf:
        _validate._softcap(softcap)
    inputs = (logits, target, weight, temperatures, reduction,
              [label_smoothing, z_loss, 0.0 if softcap is None else softcap, number],
              [axis, ignore_index, int(return_lse), int(has_grad)])
    if not (has_grad or return_lse or (
            grads and any(x is not None and x.requires_grad for x in (target, weight, temperatures)))):
        return _cross_entropy(*inputs)
    loss, lse, _ = _training_cross_entropy(*inputs)
    return (loss, lse) if return_lse else loss
