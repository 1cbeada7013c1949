"""Losses over classes, with their gradients in the same pass: cross_entropy, linear_cross_entropy."""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex

from numpy.typing import ArrayLike

from fastsoftmax import _losses
from fastsoftmax._typing import Array, signature_without_dim

Reduction = Literal["mean", "sum", "none"]


@signature_without_dim
def cross_entropy(logits: ArrayLike, target: ArrayLike, axis: SupportsIndex = -1, *, weight: ArrayLike | None = None,
                  ignore_index: SupportsIndex = -100, label_smoothing: float = 0.0, reduction: Reduction = "mean",
                  z_loss: float = 0.0, softcap: float | None = None, temperature: ArrayLike = 1.0,
                  return_lse: bool = False, return_grad: bool = False, grad_into: Array | None = None,
                  dim: None = None) -> Any:
    """Cross entropy of classes, ``-log_softmax(logits)[target]``, and its gradient in the same pass.

    With s the logits after softcap and temperature, lse their logsumexp, p their softmax and C classes, the loss of a
    row and its gradient are::

        loss = -sum(a * log(p)) + z_loss * lse**2
        d loss / d s = sum(a) * p - a + 2 * z_loss * lse * p
        a[c] = weight[c] * ((1 - label_smoothing) * target[c] + label_smoothing / C)

    where a class number t stands for a target that is 1 at t and 0 elsewhere.

    Parameters
    ----------
    logits : array_like, (..., C, ...)
        Scores of the classes, which lie along `axis`: float16, bfloat16, float32 or float64, any strides. Long double
        and temperatures outside 1e-30 to 1e30 go through `fastsoftmax.reference`. Integers are converted, as
        `numpy.exp` does.
    target : array_like
        Class numbers: integers, of the logits' shape without `axis`. Or probabilities: floats, of the logits' shape; a
        probability of 0 contributes 0, also at a logit of -inf.
    axis : int, default -1
        That of the classes. PyTorch's is 1: the same for (N, C).
    weight : array_like, (C,), optional
        Factor of each class; floating.
    ignore_index : int, default -100
        Rows with this class number have loss 0 and gradient 0, whatever their logits hold.
    label_smoothing : float, default 0.0
        From 0 to 1: the part of the target that all classes share equally [1]_.
    reduction : {"mean", "sum", "none"}
        "mean" divides the sum by the sum of ``weight[target]`` over the rows that are not ignored, or by the number of
        rows for probabilities. If that is 0, the mean is NaN and its gradient 0. "none" gives one loss a row.
    z_loss : float, default 0.0
        Adds ``z_loss * lse**2`` to the loss of each row that is not ignored, which keeps lse near 0 [2]_. It has no
        class weight, and is divided as the rest is.
    softcap : float, optional
        Positive. Logits become ``softcap * tanh(logits / softcap)``, in float64; -inf becomes -softcap.
    temperature : float or array_like, default 1.0
        Divides the capped logits. Positive and finite; one number, or one for each row: the shape of the logits without
        `axis`, or with length 1 there.
    return_lse : bool, default False
        Also return the lse of each row, ignored rows too.
    return_grad : bool, default False
        Also return the gradient of the reduced loss for the logits; with "none", of each row's own loss.
    grad_into : ndarray, optional
        The array to write the gradient to, which is then returned: shape and dtype of the logits, any strides. May be
        `logits` itself.

    Returns
    -------
    loss, or (loss, lse), (loss, grad), (loss, lse, grad)
        loss and lse are float32, float64 for float64 logits; grad has the dtype of the logits.

    Raises
    ------
    IndexError
        If a class number is neither `ignore_index` nor from 0 to C - 1; it and its place are named, and nothing is
        written.
    TypeError
        If an array has no dtype that is taken, or is a masked array.
    ValueError
        If shapes do not fit, an option is out of range, or `grad_into` cannot take the gradient.
    numpy.exceptions.AxisError
        If axis is out of range.

    See Also
    --------
    linear_cross_entropy : without the logits in memory.
    log_softmax_backward : the gradient for a loss of another form.

    Notes
    -----
    Error: at most 2 ULP for the loss of a row, also near 0, and 4 for sums; of the gradient 2 ULP of the largest term
    in the row. Probabilities, smoothing and a temperature may add half an ULP to a loss and one to a gradient. With
    softcap, losses of float64 are exact to some ULP of the capped logits. The logits are read once from memory, and the
    gradient is written once.

    References
    ----------
    .. [1] C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens and Z. Wojna, "Rethinking the Inception architecture for
       computer vision", CVPR 2016, arXiv:1512.00567, section 7.
    .. [2] A. Chowdhery et al., "PaLM: scaling language modeling with pathways", arXiv:2204.02311 (2022), section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import cross_entropy
    >>> print(cross_entropy(np.array([20.0, 0.0]), 0))          # log(1 + exp(-20))
    2.061153620314381e-09
    >>> loss, grad = cross_entropy(np.zeros((2, 4)), [1, -100], return_grad=True)
    >>> grad
    array([[ 0.25, -0.75,  0.25,  0.25],
           [ 0.  ,  0.  ,  0.  ,  0.  ]])
    """
    return _losses.cross_entropy(logits, target, axis, weight, ignore_index, label_smoothing, reduction, z_loss,
                                 softcap, temperature, return_lse, return_grad, grad_into, dim)


def linear_cross_entropy(hidden: ArrayLike, linear_weight: ArrayLike, target: ArrayLike, *,
                         linear_bias: ArrayLike | None = None, weight: ArrayLike | None = None,
                         ignore_index: SupportsIndex = -100, label_smoothing: float = 0.0,
                         reduction: Reduction = "mean", z_loss: float = 0.0, softcap: float | None = None,
                         return_grad: bool = False) -> Any:
    """``cross_entropy(hidden @ linear_weight.T + linear_bias, target)`` in chunks of rows: the logits are never whole.

    With dlogits the gradient for the logits (N, V), which `cross_entropy` gives, the gradients are::

        dhidden = dlogits @ linear_weight
        dlinear_weight = dlogits.T @ hidden
        dlinear_bias = sum(dlogits, 0)

    Parameters
    ----------
    hidden : array_like, (N, D)
        float16, bfloat16, float32 or float64; long double goes through `fastsoftmax.reference`.
    linear_weight : array_like, (V, D)
        A row for each class.
    target : array_like, (N,) of ints or (N, V) of floats
        As in `cross_entropy`.
    linear_bias : array_like, (V,), optional
        Added to the logits of each row.
    weight, ignore_index, label_smoothing, reduction, z_loss, softcap
        As in `cross_entropy`.
    return_grad : bool, default False
        Also return the gradients; with "none" those of the sum of the losses.

    Returns
    -------
    loss, or (loss, (dhidden, dlinear_weight[, dlinear_bias]))
        loss is float64 for float64 hidden, else float32; each gradient has the shape and dtype of its input. A row that
        is ignored adds nothing to them, whatever it holds.

    Raises
    ------
    IndexError, TypeError, ValueError
        As `cross_entropy`.

    Notes
    -----
    Products are NumPy's, in float32 for 16-bit inputs (float64 where an input is float64), and so is the sum of
    dlinear_weight over chunks. Memory beyond inputs and results: a sixteenth of the logits, but from 1 to 16 MB of them
    in float32 and at least 16 rows; for inputs of 16 bits also a float32 copy of `linear_weight` and of its gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import linear_cross_entropy
    >>> loss, (dhidden, dweight) = linear_cross_entropy(np.ones((1, 2)), np.zeros((2, 2)), [0], return_grad=True)
    >>> dweight
    array([[-0.5, -0.5],
           [ 0.5,  0.5]])
    """
    return _losses.linear_cross_entropy(hidden, linear_weight, target, linear_bias, weight, ignore_index,
                                        label_smoothing, reduction, z_loss, softcap, return_grad)
