"""The softmax family: softmax, log_softmax, logsumexp, causal_softmax, causal_mask_, softmax_entropy; gradients."""

from __future__ import annotations

import math
from typing import Any, Literal, SupportsIndex, overload

from numpy.typing import ArrayLike, DTypeLike

from fastsoftmax import _fastpath, _gradients, _softmax
from fastsoftmax._fastpath import LOG_SOFTMAX, LOGSUMEXP, SOFTMAX, SOFTMAX_ENTROPY
from fastsoftmax._gradients import GRAD_LOG_SOFTMAX, GRAD_SOFTMAX
from fastsoftmax._typing import Array, Axis, Scores, signature_without_dim


@signature_without_dim
def softmax(x: ArrayLike, axis: Axis = None, *, temperature: ArrayLike = 1.0, where: ArrayLike | None = None,
            dtype: DTypeLike | None = None, out: Array | None = None, dim: None = None) -> Array:
    """Turn scores into weights that are positive and sum to one: ``exp(x / temperature) / sum(exp(x / temperature))``.

    Parameters
    ----------
    x : array_like
        Scores, of any shape. float16, bfloat16, float32 and float64 keep their dtype (16-bit types are computed in
        float32); integers and bool are promoted as `numpy.exp` promotes them, and integers are subtracted from each
        other before they are converted; complex and long double go through `fastsoftmax.reference`.
    axis : int, tuple of ints or None, default None
        The axes along which the weights sum to one; None takes all elements. 0-d x takes 0 and -1.
    temperature : float or array_like, default 1.0
        Divides the scores: below 1 sharpens, above 1 flattens. Positive and finite. An array broadcasts against x
        with length 1 along the axes: one temperature per row or per head, for instance.
    where : array_like of bool, optional
        Broadcasts to x. Where it is False, the weight is exactly 0, whatever x holds there, NaN included; a row
        without True gives zeros.
    dtype : dtype, optional
        Floating dtype of the result, and of the computation if it is wider than that of x.
    out : ndarray, optional
        The array to write the result to: the shape of x, the result's dtype, any strides, no two elements at the same
        address. May be x itself.

    Returns
    -------
    ndarray or scalar
        Of the shape of x; `out`, if given. A scalar for 0-d x.

    Raises
    ------
    TypeError
        If x is not numeric or is a masked array, or an argument has the wrong type.
    ValueError
        If an axis of the reduction is empty, a temperature is not positive and finite, or shapes do not fit.
    numpy.exceptions.AxisError
        If an axis is out of range.

    See Also
    --------
    log_softmax : its logarithm, accurate also where weights underflow.
    causal_softmax : for attention scores; it never reads a hidden one.

    Notes
    -----
    Error at most 2 ULP for float32 and float64, at any length, spread and temperature; one quantum where a weight is
    subnormal. 16-bit results are the rounded float32 ones.
    A row holding NaN or +inf, or nothing but -inf, gives NaN; a score of -inf among others gives exactly 0.
    Method: the power of two of the maximum's exponential is subtracted from the exponents. Subtracting the maximum
    itself would cost up to 64 ULP of rounding. Sums include their rounding errors [1]_ [2]_.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
       IMA Journal of Numerical Analysis 41 (2021).
    .. [2] T. J. Dekker, "A floating-point technique for extending the available precision", Numerische Mathematik 18
       (1971).

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import softmax
    >>> softmax(np.array([3.0, 2.0, 1.0])).round(3)
    array([0.665, 0.245, 0.09 ])
    >>> softmax(np.array([3.0, 2.0, 1.0]), temperature=0.5).round(3)
    array([0.867, 0.117, 0.016])
    >>> softmax(np.array([3.0, 2.0, np.nan]), where=[True, True, False]).round(3)
    array([0.731, 0.269, 0.   ])
    """
    y = _fastpath.rows(SOFTMAX, x, axis, temperature, where, dtype, out, dim)
    return _softmax.elementwise(SOFTMAX, x, axis, temperature, where, dtype, out, dim) if y is None else y


@signature_without_dim
def softmax_backward(grad: ArrayLike, y: ArrayLike, axis: Axis = None, *, temperature: ArrayLike = 1.0,
                     out: Array | None = None, dim: None = None) -> Array:
    """Gradient of `softmax` or `causal_softmax` for x: ``y * (grad - sum(y * grad)) / temperature``.

    Parameters
    ----------
    grad : array_like
        Gradient of the loss with respect to y, in its shape. Floating; of another dtype than y, the computation is in
        the wider of the two. Where y is 0, grad is not read, and the result is 0.
    y : array_like
        The weights that the forward function returned: float16, bfloat16, float32 or float64. Long double goes
        through `fastsoftmax.reference`.
    axis, temperature
        As they were given to the forward function; -1 for `causal_softmax`.
    out : ndarray, optional
        The array to write the result to: shape and dtype of y, any strides, no two elements at the same address. May be
        grad or y itself.

    Returns
    -------
    ndarray or scalar
        Shape and dtype of y; `out`, if given. NaN for a row of NaN.

    Raises
    ------
    TypeError
        If grad or y is not floating or is a masked array, or an argument has the wrong type.
    ValueError
        If grad does not have the shape of y, a temperature is not positive and finite, or `out` does not fit.
    numpy.exceptions.AxisError
        If an axis is out of range.

    See Also
    --------
    log_softmax_backward : of log weights. `cross_entropy` has it built in.

    Notes
    -----
    Error at most 2 ULP of the largest ``abs(y * grad)`` of the row: the sum includes its rounding errors. The gradient
    for a temperature is ``-sum(dx * x) / temperature``, where dx is the result here and the sum is over the elements
    which that temperature divides, as below.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import softmax, softmax_backward
    >>> softmax_backward(np.array([1.0, 0.0, np.nan]), np.array([0.75, 0.25, 0.0]))
    array([ 0.1875, -0.1875,  0.    ])

    The gradient of a loss ``sum(c * y)`` for one temperature a row, beside a difference:

    >>> x, c = np.array([[3.0, 2.0, 1.0], [0.0, 2.0, 2.0]]), np.array([1.0, 0.0, 0.0])
    >>> temperature = np.array([[0.5], [2.0]])
    >>> dx = softmax_backward(np.tile(c, (2, 1)), softmax(x, -1, temperature=temperature), -1, temperature=temperature)
    >>> (-(dx * x).sum(-1, keepdims=True) / temperature).round(4).tolist()
    [[-0.5168], [0.0656]]
    >>> high, low = (softmax(x, -1, temperature=temperature + step) @ c for step in (1e-5, -1e-5))
    >>> ((high - low) / 2e-5).round(4).tolist()
    [-0.5168, 0.0656]
    """
    return _gradients.elementwise(GRAD_SOFTMAX, grad, y, axis, temperature, out, dim)


@signature_without_dim
def log_softmax(x: ArrayLike, axis: Axis = None, *, temperature: ArrayLike = 1.0, where: ArrayLike | None = None,
                dtype: DTypeLike | None = None, out: Array | None = None, dim: None = None) -> Array:
    """Logarithm of `softmax`: ``x / temperature - logsumexp(x / temperature)``, without forming the weights.

    Parameters
    ----------
    x, axis, temperature, dtype, out
        As in `softmax`.
    where : array_like of bool, optional
        As in `softmax`; where it is False, the result is -inf.

    Returns
    -------
    ndarray or scalar
        Of the shape of x, all at most 0; `out`, if given.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Notes
    -----
    Error at most 2 ULP, also for results close to 0: that of the largest score is -log1p(sum of the others' weights),
    after Blanchard, Higham and Higham (2021). If a row holds +inf, its results are those of SciPy: -inf, and NaN at
    +inf.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import log_softmax
    >>> log_softmax(np.array([0.0, -20.0]))
    array([-2.06115362e-09, -2.00000000e+01])
    """
    y = _fastpath.rows(LOG_SOFTMAX, x, axis, temperature, where, dtype, out, dim)
    return _softmax.elementwise(LOG_SOFTMAX, x, axis, temperature, where, dtype, out, dim) if y is None else y


@signature_without_dim
def log_softmax_backward(grad: ArrayLike, log_y: ArrayLike, axis: Axis = None, *, temperature: ArrayLike = 1.0,
                         out: Array | None = None, dim: None = None) -> Array:
    """Gradient of `log_softmax` for x: ``(grad - exp(log_y) * sum(grad)) / temperature``.

    Parameters
    ----------
    grad : array_like
        Gradient of the loss with respect to log_y, in its shape; dtypes as in `softmax_backward`. Where log_y is -inf,
        grad is not read, and the result is 0.
    log_y : array_like
        The log weights that `log_softmax` returned.
    axis, temperature
        As they were given to `log_softmax`.
    out : ndarray, optional
        As in `softmax_backward`; may be grad or log_y itself.

    Returns
    -------
    ndarray or scalar
        Shape and dtype of log_y; `out`, if given.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax_backward`.

    Notes
    -----
    Error at most 2 ULP of the largest term of the row, grad or ``exp(log_y) * sum(grad)``. The gradient for a
    temperature is ``-sum(dx * x) / temperature``, as in `softmax_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import log_softmax_backward
    >>> log_softmax_backward(np.array([1.0, 0.0, np.nan]), np.array([np.log(0.75), np.log(0.25), -np.inf])).round(4)
    array([ 0.25, -0.25,  0.  ])
    """
    return _gradients.elementwise(GRAD_LOG_SOFTMAX, grad, log_y, axis, temperature, out, dim)


@overload
def logsumexp(a: ArrayLike, axis: Axis = None, b: ArrayLike | None = None, keepdims: bool = False,
              return_sign: Literal[False] = False, *, where: ArrayLike | None = None, dtype: DTypeLike | None = None,
              out: Array | None = None) -> Any: ...
@overload
def logsumexp(a: ArrayLike, axis: Axis = None, b: ArrayLike | None = None, keepdims: bool = False, *,
              return_sign: Literal[True], where: ArrayLike | None = None, dtype: DTypeLike | None = None,
              out: Array | None = None) -> tuple[Any, Any]: ...
@overload
def logsumexp(a: ArrayLike, axis: Axis, b: ArrayLike | None, keepdims: bool, return_sign: Literal[True], *,
              where: ArrayLike | None = None, dtype: DTypeLike | None = None,
              out: Array | None = None) -> tuple[Any, Any]: ...
@overload
def logsumexp(a: ArrayLike, axis: Axis = None, b: ArrayLike | None = None, keepdims: bool = False,
              return_sign: bool = False, *, where: ArrayLike | None = None, dtype: DTypeLike | None = None,
              out: Array | None = None) -> Any: ...
@signature_without_dim
def logsumexp(a: ArrayLike, axis: Axis = None, b: ArrayLike | None = None, keepdims: bool = False,
              return_sign: bool = False, *, where: ArrayLike | None = None, dtype: DTypeLike | None = None,
              out: Array | None = None, dim: None = None) -> Any:
    """Logarithm of the sum of exponentials, ``log(sum(b * exp(a)))``, without overflow or underflow.

    Parameters
    ----------
    a : array_like
        Exponents, of any shape. Integers and bool give float64.
    axis : int, tuple of ints or None, default None
        The axes to sum over; None takes all elements.
    b : array_like, optional
        Factors of the exponentials, broadcast against a; may be negative or zero. Computed by `fastsoftmax.reference`.
    keepdims : bool, default False
        Keep the axes, with length 1.
    return_sign : bool, default False
        Also return the sign of the sum; the logarithm is then of its magnitude.
    where : array_like of bool, optional
        Broadcasts to a: elements to include.
    dtype : dtype, optional
        Floating dtype of the result, and of the computation if it is wider than that of a.
    out : ndarray, optional
        The array to write the (first) result to.

    Returns
    -------
    ndarray or scalar, or a tuple of two with return_sign
        -inf for an empty sum.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Notes
    -----
    Error at most 1.5 ULP; for results near 0, in units of log(sum(exp(a - max(a)))). After Blanchard, Higham
    and Higham (2021).

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import logsumexp
    >>> float(logsumexp(np.array([1000.0, 1000.0])))
    1000.6931471805599
    """
    if b is None and not return_sign:
        y = _fastpath.rows(LOGSUMEXP, a, axis, 1.0, where, dtype, out, dim, keepdims)
        if y is not None:
            return y
    return _softmax.logsumexp(a, axis, b, keepdims, return_sign, where, dtype, out, dim)


@signature_without_dim
def logsumexp_backward(grad: ArrayLike, a: ArrayLike, lse: ArrayLike, axis: Axis = None, *, keepdims: bool = False,
                       where: ArrayLike | None = None, out: Array | None = None, dim: None = None) -> Array:
    """Gradient of `logsumexp` for a: ``grad * exp(a - lse)``.

    Parameters
    ----------
    grad : array_like
        Gradient of the loss with respect to lse, in its shape. Floating; converted to the dtype of the computation.
    a : array_like
        As it was given to `logsumexp`.
    lse : array_like
        The result of ``logsumexp(a, axis, keepdims=keepdims, where=where)``. If it is wider than a, so is the
        computation.
    axis, keepdims, where
        As they were given to `logsumexp`.
    out : ndarray, optional
        The array to write the result to; may be a itself.

    Returns
    -------
    ndarray or scalar
        Shape of a and dtype of its `logsumexp`; `out`, if given. 0 where a weight ``exp(a - lse)`` is 0 or `where` is
        False, whatever grad holds.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax_backward`.

    Notes
    -----
    The error follows that of lse: half an ULP of lse is as much in the logarithm of every weight. For 16-bit input pass
    the lse of ``logsumexp(a, axis, dtype=numpy.float32)``.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import logsumexp, logsumexp_backward
    >>> a = np.array([1000.0, 1000.0])
    >>> logsumexp_backward(2.0, a, logsumexp(a)).round(3)
    array([1., 1.])
    """
    return _gradients.logsumexp(grad, a, lse, axis, keepdims, where, out, dim)


@signature_without_dim
def softmax_entropy(x: ArrayLike, axis: Axis = None, *, temperature: ArrayLike = 1.0,
                    where: ArrayLike | None = None, dim: None = None) -> Any:
    """Shannon entropy of the weights of `softmax`, in nats, without storing the weights.

    Parameters
    ----------
    x, axis, temperature, where
        As in `softmax`.

    Returns
    -------
    ndarray or scalar
        The shape of x without the axes: from 0, if one weight is 1, to log(n), if all are equal. 0 for a row without
        True in `where`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Notes
    -----
    Computed as ``logsumexp(s) - sum(weight * s)``, s being the scores minus the largest, so that both terms are
    positive and nothing cancels.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import softmax_entropy
    >>> softmax_entropy(np.array([[1.0, 1.0], [9.0, 0.0]]), axis=-1).round(4)
    array([0.6931, 0.0012])
    """
    y = _fastpath.rows(SOFTMAX_ENTROPY, x, axis, temperature, where, None, None, dim)
    return _softmax.entropy(x, axis, temperature, where, dim) if y is None else y


@signature_without_dim
def softmax_entropy_backward(grad: ArrayLike, x: ArrayLike, axis: Axis = None, *, temperature: ArrayLike = 1.0,
                             where: ArrayLike | None = None, out: Array | None = None, dim: None = None) -> Array:
    """Gradient of `softmax_entropy` for x: ``-grad * weights * (log(weights) + entropy) / temperature``.

    Parameters
    ----------
    grad : array_like
        Gradient of the loss with respect to the entropy, in its shape: that of x without the axes. Floating; converted
        to the dtype of the computation.
    x, axis, temperature, where
        As they were given to `softmax_entropy`.
    out : ndarray, optional
        The array to write the result to; may be x itself.

    Returns
    -------
    ndarray or scalar
        Shape of x and dtype of its `softmax`; `out`, if given. 0 where a weight is 0.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax_entropy`, and as `softmax_backward` for grad and `out`.

    Notes
    -----
    The entropy is ``sum(weights * -log(weights))``; of its gradient for the weights, ``-log(weights) - 1``, the softmax
    removes what all elements of a row share. The log weights stand where the result will be.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import softmax_entropy_backward
    >>> softmax_entropy_backward(1.0, np.array([0.0, 0.0, np.log(2)])).round(4)
    array([ 0.0866,  0.0866, -0.1733])
    """
    return _gradients.entropy(grad, x, axis, temperature, where, out, dim)


def causal_softmax(scores: ArrayLike, *, offset: SupportsIndex = 0, temperature: ArrayLike = 1.0,
                   dtype: DTypeLike | None = None, out: Array | None = None) -> Array:
    """Softmax of attention scores over the keys that each query may see; the others are never read.

    ::

        offset = 0             offset = 2, as with two cached keys
        i\\j 0 1 2 3            i\\j 0 1 2 3 4 5
        0   x . . .            0   x x x . . .
        1   x x . .            1   x x x x . .
        2   x x x .            2   x x x x x .
        3   x x x x            3   x x x x x x

    Parameters
    ----------
    scores : array_like, (..., L, S)
        Score of query i for key j at ``[..., i, j]``; visible where ``j <= i + offset``.
    offset : int, default 0
        ``S - L`` aligns the last query with the last key.
    temperature : float or array_like, default 1.0
        As in `softmax`; an array broadcasts to (..., L, 1).
    dtype, out
        As in `softmax`.

    Returns
    -------
    ndarray, (..., L, S)
        Exactly 0 at hidden keys, whatever their scores are; zeros for a query that sees no key.

    Raises
    ------
    TypeError, ValueError
        As `softmax`; also if scores has fewer than two dimensions or offset is not an int.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import causal_softmax
    >>> causal_softmax(np.array([[1.0, np.nan], [2.0, 2.0]]))
    array([[1. , 0. ],
           [0.5, 0.5]])
    """
    y = _fastpath.causal_rows(scores, offset, temperature, dtype, out)
    return _softmax.causal_softmax(scores, offset, temperature, dtype, out) if y is None else y


def causal_mask_(scores: Scores, *, offset: SupportsIndex = 0, fill_value: float = -math.inf) -> Scores:
    """Overwrite, in place, the scores of keys that a query must not see.

    Parameters
    ----------
    scores : ndarray, (..., L, S)
        Floating. Element ``[..., i, j]`` is kept where ``j <= i + offset``; see the drawing in `causal_softmax`.
    offset : int, default 0
        ``S - L`` aligns the last query with the last key.
    fill_value : float, default -inf
        The number to write; -inf gives a weight of exactly 0 in a softmax.

    Returns
    -------
    ndarray
        `scores` itself.

    Raises
    ------
    TypeError
        If scores is not an ndarray of floats, or offset is not an int.
    ValueError
        If scores has fewer than two dimensions or is read-only.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import causal_mask_
    >>> causal_mask_(np.zeros((2, 3)), offset=1)
    array([[  0.,   0., -inf],
           [  0.,   0.,   0.]])
    """
    if not _fastpath.causal_mask(scores, offset, fill_value):
        _softmax.causal_mask(scores, offset, fill_value)
    return scores
