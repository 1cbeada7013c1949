"""Losses and their gradients: the definition. The probabilities, of the logits' shape, are stored.

Error. float16, bfloat16 and float32 are computed in float64, float64 in long double, where it is wider; both are
rounded once.
"""

import numpy as np

from fastsoftmax.reference.softmax import _check_real, _natural, _precise, _round, log_softmax, logsumexp


@np.errstate(all="ignore")
def cross_entropy(logits, target, axis=-1, *, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean",
                  z_loss=0.0, softcap=None, temperature=1.0, return_lse=False, return_grad=False):
    """Cross entropy of classes: ``-log_softmax(logits)[target]``, and its gradient for the logits.

    With s the logits after softcap and temperature, lse their logsumexp, p their softmax, C classes, a row's loss is::

        loss = -sum(a * log(p)) + z_loss * lse**2

        a[c] = weight[c] * ((1 - label_smoothing) * target[c] + label_smoothing / C)

    where a class number t is the target that is 1 at t and 0 elsewhere [1]_ [2]_. The gradient of log(p[c]) for s[i] is
    ``(c == i) - p[i]``, so that of the loss is::

        d loss / d s = sum(a) * p - a + 2 * z_loss * lse * p
        d s / d logits = cap'(logits) / temperature,   cap(x) = softcap * tanh(x / softcap)

    Parameters
    ----------
    logits : array_like, (..., C, ...)
        Scores of the classes, which lie along `axis`.
    target : array_like
        Class numbers: integers, of the logits' shape without `axis`. Or probabilities: floats, of the logits' shape; a
        probability of 0 contributes 0, also at a logit of -inf.
    weight : array_like, (C,), optional
        Factor of each class.
    ignore_index : int
        Rows with this class number have loss 0 and gradient 0, whatever their logits hold.
    label_smoothing : float
        The part of the target that all classes share equally.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the sum of ``weight[target]`` over the rows that are not ignored, or by the number of
        rows for probabilities. If that is 0, the mean is NaN and its gradient 0. "none" gives one loss a row.
    z_loss : float
        Factor of ``lse**2``, which keeps lse near 0 [2]_.
    softcap : float, optional
        Limits the logits to -softcap .. softcap.
    temperature : float or array_like
        Divides the capped logits; a number or one for each row: the shape of the logits without `axis`, or with
        length 1 there.
    return_lse, return_grad : bool
        Also return lse, one for each row; the gradient of the reduced loss (of "none": each row's own), as the logits
        in shape and dtype.

    Returns
    -------
    loss, or (loss, lse), (loss, grad), (loss, lse, grad)
        Loss and lse are float32, float64 for float64 logits.

    References
    ----------
    .. [1] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens and Z. Wojna, "Rethinking the Inception architecture for
       computer vision", CVPR 2016, arXiv:1512.00567, section 7: label smoothing.
    .. [2] A. Chowdhery et al., "PaLM: scaling language modeling with pathways", arXiv:2204.02311 (2022), section 5:
       z-loss.

    Examples
    --------
    >>> import numpy as np
    >>> float(cross_entropy([20.0, 0.0], 0))  # log(1 + exp(-20))
    2.061153620314381e-09
    >>> loss, grad = cross_entropy(np.zeros((2, 4)), [1, -100], return_grad=True)
    >>> grad
    array([[ 0.25, -0.75,  0.25,  0.25],
           [ 0.  ,  0.  ,  0.  ,  0.  ]])
    """
    logits = np.asarray(logits)
    dtype = _natural(logits)
    _check_real("cross_entropy", dtype)
    wide = _precise(dtype)
    statistics = np.dtype(np.float32) if dtype.itemsize < 8 else dtype
    x = np.moveaxis(logits, axis, -1).astype(wide)  # (rows, C), the rows of any shape
    scores, scores_derivative = _capped(x, softcap, _of_rows(temperature, x, axis))
    lse = logsumexp(scores, -1, keepdims=True)

    # Forward: a, log(p) and the loss of each row.
    a, kept, count = _targets(np.asarray(target), x.shape, axis, weight, ignore_index, label_smoothing, wide)
    log_p = log_softmax(scores, -1)
    loss = 0 - np.where(a == 0, 0, a * log_p).sum(-1)  # 0 * -inf would be NaN
    if z_loss:
        loss = loss + z_loss * lse[..., 0] ** 2
    loss = np.where(np.isnan(lse[..., 0]), np.nan, loss)

    # Backward: sum(a) * p - a; near p = 1, where that cancels, as sum(a) * (p - 1) + (sum(a) - a).
    p = np.where(np.isfinite(lse), np.exp(log_p), np.nan)  # NaN for rows of -inf alone, with +inf or NaN
    total = a.sum(-1, keepdims=True)
    grad = np.where(log_p > -0.5, total * np.expm1(log_p) + (total - a), total * p - a)
    if z_loss:
        grad = grad + 2 * z_loss * lse * p
    grad = grad * scores_derivative

    loss, grad = np.where(kept, loss, 0), np.where(kept[..., None], grad, 0)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / count if count != 0 else np.nan
        grad = grad / count if count != 0 else np.zeros_like(grad)
    results = [_round(np.asarray(loss, wide), statistics)]
    if return_lse:
        results.append(_round(lse[..., 0], statistics))
    if return_grad:
        results.append(_round(np.moveaxis(grad, -1, axis), dtype))
    return results[0] if len(results) == 1 else tuple(results)


@np.errstate(all="ignore")
def linear_cross_entropy(hidden, linear_weight, target, *, linear_bias=None, weight=None, ignore_index=-100,
                         label_smoothing=0.0, reduction="mean", z_loss=0.0, softcap=None, return_grad=False):
    """``cross_entropy(hidden @ linear_weight.T + linear_bias, target)`` and its gradients.

    The logits are ``(N, V)``; dlogits, their gradient, gives::

        logits = hidden @ linear_weight.T + linear_bias
        dhidden = dlogits @ linear_weight,  dlinear_weight = dlogits.T @ hidden,  dlinear_bias = sum(dlogits, 0)

    Parameters
    ----------
    hidden : array_like, (N, D)
    linear_weight : array_like, (V, D)
    target : array_like, (N,) of ints or (N, V) of floats
    linear_bias : array_like, (V,), optional
    weight, ignore_index, label_smoothing, reduction, z_loss, softcap
        As in `cross_entropy`.
    return_grad : bool
        Also return the gradients; with "none" those of the sum of the losses.

    Returns
    -------
    loss, or (loss, (dhidden, dlinear_weight[, dlinear_bias]))
        The loss in the dtype of that of `cross_entropy` for logits of hidden's dtype; each gradient in the shape and
        dtype of its input. A row that is ignored adds nothing to them, whatever it holds.

    Examples
    --------
    >>> import numpy as np
    >>> loss, (dhidden, dweight) = linear_cross_entropy(np.ones((1, 2)), np.zeros((2, 2)), [0], return_grad=True)
    >>> round(float(loss), 4), dweight
    (0.6931, array([[-0.5, -0.5],
           [ 0.5,  0.5]]))
    """
    hidden, linear_weight, target = (np.asarray(x) for x in (hidden, linear_weight, target))
    dtype = _natural(hidden)
    wide = _precise(dtype)
    h, w = hidden.astype(wide), linear_weight.astype(wide)
    logits = h @ w.T
    if linear_bias is not None:
        linear_bias = np.asarray(linear_bias)
        logits = logits + linear_bias.astype(wide)
    loss, dlogits = cross_entropy(
        logits, target, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction,
        z_loss=z_loss, softcap=softcap, return_grad=True)
    loss = _round(loss, np.dtype(np.float32) if dtype.itemsize < 8 else dtype)
    if not return_grad:
        return loss
    kept = _is_kept(target, ignore_index, len(h))[:, None]  # 0 * NaN would be NaN
    gradients = [(np.where(kept, dlogits @ w, 0), hidden), (dlogits.T @ np.where(kept, h, 0), linear_weight)]
    if linear_bias is not None:
        gradients.append((dlogits.sum(0), linear_bias))
    return loss, tuple(_round(dx, _natural(x)) for dx, x in gradients)


def _capped(x, softcap, temperature):
    """``cap(x) / temperature`` and its derivative."""
    if softcap is None:
        return x / temperature, 1 / temperature
    scaled = x / softcap  # 1 / cosh**2 is 1 - tanh**2 without its cancellation
    return softcap * np.tanh(scaled) / temperature, 1 / np.cosh(scaled) ** 2 / temperature


def _of_rows(temperature, x, axis):
    """One number, or one for each row, as it broadcasts with x ``(rows, C)``."""
    temperature = np.asarray(temperature).astype(x.dtype)
    return np.moveaxis(temperature, axis, -1) if temperature.ndim == x.ndim else temperature[..., None]


def _targets(target, shape, axis, weight, ignore_index, label_smoothing, dtype):
    """``a (rows, C)``, the targets smoothed and weighted; which rows are kept; and by which number a mean divides."""
    rows, classes = shape[:-1], np.arange(shape[-1])
    weight = np.ones(len(classes), dtype) if weight is None else np.asarray(weight).astype(dtype)
    kept = _is_kept(target, ignore_index, rows)
    if target.dtype.kind in "iu":
        target = np.where(kept, target, 0)
        count = np.where(kept, weight[target], 0).sum()
        target = target[..., None] == classes
    else:
        target = np.moveaxis(target, axis, -1)
        count = np.prod(rows, dtype=dtype)
    smoothing = dtype.type(label_smoothing)
    return weight * ((1 - smoothing) * target.astype(dtype) + smoothing / len(classes)), kept, count


def _is_kept(target, ignore_index, rows):
    """Which rows are not ignored; for probabilities all are kept."""
    return target != ignore_index if target.dtype.kind in "iu" else np.ones(rows, bool)
