"""The softmax family: softmax, log_softmax, logsumexp, causal_softmax, causal_mask_, softmax_entropy."""

import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastsoftmax import _arrays, _cpu, _dispatch, _fastpath, _threads, reference

# For type checkers a result is an array, though a 0-d one is a scalar; that of a reduction is Any, as in NumPy's stubs.
Axis = SupportsIndex | tuple[SupportsIndex, ...] | None
Array = NDArray[Any]
Scores = TypeVar("Scores", bound=Array)
Function = TypeVar("Function", bound=Callable[..., Any])

SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, ENTROPY = range(4)
_REFERENCE = (reference.softmax, reference.log_softmax, reference.logsumexp, reference.softmax_entropy)


def nontemporal_threshold():
    """Bytes of results from which they are written past the caches: half of the last-level cache."""
    try:                        # not by sysconf: in a virtual machine that may be the cache of the whole processor
        with open("/sys/devices/system/cpu/cpu0/cache/index3/size") as file:
            cache = int(file.read().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        cache = 1 << 25
    return max(cache, 1 << 23) // 2


_nontemporal_bytes = nontemporal_threshold()
SMALL_ELEMENTS = 1 << 12               # elements that are copied in less time than it takes to describe how they lie
_fastpath.configure(_threads.threads_for, _nontemporal_bytes)


def default_fp_env(function):
    """For what computes with NumPy, too: the caller's floating-point modes and flags are neither used nor changed."""

    @functools.wraps(function)
    def in_default_fp_env(*args):
        with _cpu.DefaultFPEnv():
            return function(*args)

    return in_default_fp_env


def _signature_without_dim(function: Function) -> Function:
    """`dim` is PyTorch's name for axis, taken only to say so; `help` does not offer it."""
    signature = inspect.signature(function)
    offered = [parameter for parameter in signature.parameters.values() if parameter.name != "dim"]
    vars(function)["__signature__"] = signature.replace(parameters=offered)
    return function


def _refuse_dim(dim):
    if dim is not None:
        raise TypeError(f"dim is not an argument here: pass axis={dim!r}, which has the same meaning")


@_signature_without_dim
def softmax(x: ArrayLike, axis: Axis = None, *, temperature: ArrayLike = 1.0, where: ArrayLike | None = None,
            dtype: DTypeLike | None = None, out: Array | None = None, dim: None = None) -> Array:
    """Turn scores into weights that are positive and sum to one: ``exp(x / temperature) / sum(exp(x / temperature))``.

    Parameters
    ----------
    x : array_like
        Scores, of any shape. float16, bfloat16, float32 and float64 keep their dtype (16-bit types are computed in
        float32); integers and bool are promoted as `numpy.exp` promotes them, after integers were subtracted as
        integers; complex and long double go through `fastsoftmax.reference`.
    axis : int, tuple of ints or None, default None
        The axes along which the weights sum to one; None takes all elements. 0-d x takes 0 and -1.
    temperature : float or array_like, default 1.0
        Divides the scores: below 1 sharpens, above 1 flattens. Positive and finite. An array broadcasts against x
        with length 1 along the axes: one temperature per row, per head ...
    where : array_like of bool, optional
        Broadcasts to x. Where it is False, the weight is exactly 0, whatever x holds there, NaN included; a row
        without True gives zeros.
    dtype : dtype, optional
        Floating dtype of the result, and of the computation where it is wider than that of x.
    out : ndarray, optional
        Where to put the result: the shape of x, the result's dtype, any strides, a place for each element. May be x
        itself.

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
    log_softmax : its logarithm, exact where weights vanish.
    causal_softmax : for attention scores, never reading a masked one.

    Notes
    -----
    Error at most 2 ULP for float32 and float64, at any length, spread and temperature; one quantum where a weight is
    subnormal. 16-bit results are the rounded float32 ones.
    A row holding NaN or +inf, or nothing but -inf, gives NaN; a score of -inf among others gives exactly 0.
    Method: the maximum's power of two is taken off the exponents instead of subtracting the maximum, whose rounding
    would cost up to 64 ULP; sums carry their rounding errors along [1]_ [2]_.

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
    if where is dtype is dim is None and temperature is not None:
        y = _fastpath.contiguous(SOFTMAX, x, axis, temperature, out)
        if y is not None:
            return y
    _refuse_dim(dim)
    return _elementwise(SOFTMAX, x, axis, temperature, where, dtype, out)


@_signature_without_dim
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
    Error at most 2 ULP, also for results close to 0: the largest score's is -log1p(sum of the others' weights), after
    Blanchard, Higham and Higham (2021). Where x holds +inf, results are as SciPy's: -inf, and NaN at +inf itself.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import log_softmax
    >>> log_softmax(np.array([0.0, -20.0]))
    array([-2.06115362e-09, -2.00000000e+01])
    """
    if where is dtype is dim is None and temperature is not None:
        y = _fastpath.contiguous(LOG_SOFTMAX, x, axis, temperature, out)
        if y is not None:
            return y
    _refuse_dim(dim)
    return _elementwise(LOG_SOFTMAX, x, axis, temperature, where, dtype, out)


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
@_signature_without_dim
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
        Floating dtype of the result, and of the computation where it is wider than that of a.
    out : ndarray, optional
        Where to put the (first) result.

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
    Error at most 1.5 ULP; where the result is near 0, in units of log(sum(exp(a - max(a)))). After Blanchard, Higham
    and Higham (2021).

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import logsumexp
    >>> float(logsumexp(np.array([1000.0, 1000.0])))
    1000.6931471805599
    """
    if b is where is dtype is out is dim is None and not return_sign and not keepdims:
        y = _fastpath.contiguous(LOGSUMEXP, a, axis, None, None)
        if y is not None:
            return y
    _refuse_dim(dim)
    return _logsumexp(a, axis, b, keepdims, return_sign, where, dtype, out)


@_signature_without_dim
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
        The shape of x without the axes: from 0, where one weight is 1, to log(n), where all are equal. 0 for a row
        without True in `where`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Notes
    -----
    Computed as ``logsumexp(s) - sum(weight * s)`` with the scores s measured from the largest, so that both parts are
    positive and nothing cancels.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import softmax_entropy
    >>> softmax_entropy(np.array([[1.0, 1.0], [9.0, 0.0]]), axis=-1).round(4)
    array([0.6931, 0.0012])
    """
    if where is dim is None and temperature is not None:
        y = _fastpath.contiguous(ENTROPY, x, axis, temperature, None)
        if y is not None:
            return y
    _refuse_dim(dim)
    return _entropy(x, axis, temperature, where)


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
        Exactly 0 at hidden keys, whatever stands there; zeros for a query that sees no key.

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
    return _causal_softmax(scores, offset, temperature, dtype, out)


def causal_mask_(scores: Scores, *, offset: SupportsIndex = 0, fill_value: float = -math.inf) -> Scores:
    """Overwrite, in place, the scores of keys that a query must not see.

    Parameters
    ----------
    scores : ndarray, (..., L, S)
        Floating. Element ``[..., i, j]`` is kept where ``j <= i + offset``; see the drawing in `causal_softmax`.
    offset : int, default 0
        ``S - L`` aligns the last query with the last key.
    fill_value : float, default -inf
        What is written; -inf gives a weight of exactly 0 in a softmax.

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
    _causal_mask(scores, offset, fill_value)
    return scores


@default_fp_env
def _elementwise(result, x, axis, temperature, where, dtype, out):
    """softmax and log_softmax, whatever their arguments."""
    x, axes, compute, final = _asked(x, axis, dtype)
    temperature, moderate, where = _modifiers(x, axes, temperature, where)
    _refuse_empty(x, axes)
    if not (moderate and _arrays.tag(compute)):
        y = _REFERENCE[result](x, axes, temperature=temperature, where=where, dtype=compute)
        return _deliver(y, final, out)
    y = _small_fast_path(result, x, compute, axes, temperature, where)
    if y is not None:
        return _deliver(y, final, out)
    y, x, temperature, where = _outputs(x, final, out, temperature, where)
    if x.size:
        _compute(result, x, y, compute, axes, temperature, where)
    return y[()] if out is None else y


@default_fp_env
def _logsumexp(a, axis, b, keepdims, return_sign, where, dtype, out):
    x = _arrays.as_scores(a, "a")
    natural = np.dtype(np.float64) if x.dtype.kind == "O" else x.dtype
    if b is not None:
        factors = _arrays.as_array(b, "b")
        natural = np.dtype(np.float64) if x.dtype.kind == "O" else _arrays.common_dtype(a, x, b, factors)
        x, factors = np.broadcast_arrays(x, factors)
    axes = _arrays.as_axes(axis, x.ndim)
    compute, final = _arrays.result_dtype(natural, dtype, integers_to_float64=True)
    where = _arrays.as_where(where, x.shape)
    wide_shape = tuple(1 if i in axes else size for i, size in enumerate(x.shape))
    shape = wide_shape if keepdims else tuple(size for i, size in enumerate(x.shape) if i not in axes)
    # The sign of a complex sum is complex; the logarithm is then that of its magnitude.
    log_final = _arrays.real_dtype(final) if return_sign else final
    if out is not None:
        _arrays.check_out(out, shape, log_final)
    sign = None
    if b is not None or not _arrays.tag(compute):
        if b is not None:       # each keeps its value, and that they promote is settled
            wide = np.result_type(compute, np.float64)
            x, b = x if x.dtype.kind in "iuO" else x.astype(wide), factors.astype(wide)
        y = reference.logsumexp(x, axes, b, keepdims, return_sign, where=where, dtype=compute)
        if return_sign:
            y, sign = y
            sign = _deliver(sign, final, None)
        y = _deliver(y, log_final, out)
    else:
        y = _small_fast_path(LOGSUMEXP, x, compute, axes, 1.0, where)
        if y is None:
            y = np.full(wide_shape, -math.inf, final)
            if x.size:
                _compute(LOGSUMEXP, x, y, compute, axes, 1.0, where)
        y = _deliver(y.reshape(shape), final, out)
        if return_sign:
            with np.errstate(all="ignore"):
                sign = np.where(np.isnan(y), y, (y != -math.inf)).astype(final)[()]
    return (y, sign) if return_sign else y


@default_fp_env
def _entropy(x, axis, temperature, where):
    x, axes, compute, final = _asked(x, axis, None)
    temperature, moderate, where = _modifiers(x, axes, temperature, where)
    _refuse_empty(x, axes)
    if not (moderate and _arrays.tag(compute)):
        return _REFERENCE[ENTROPY](x, axes, temperature=temperature, where=where)[()]
    y = _small_fast_path(ENTROPY, x, compute, axes, temperature, where)
    if y is not None:
        return y
    y = np.empty([1 if i in axes else size for i, size in enumerate(x.shape)], final)
    if x.size:
        _compute(ENTROPY, x, y, compute, axes, temperature, where)
    return y.reshape([size for i, size in enumerate(x.shape) if i not in axes])[()]


@default_fp_env
def _causal_softmax(scores, offset, temperature, dtype, out):
    x = _as_matrices(scores)
    offset = _as_offset(offset)
    compute, final = _arrays.result_dtype(x.dtype, dtype, integers_to_float64=False)
    axes = (x.ndim - 1,)
    temperature, moderate = _arrays.as_temperature(temperature, x.shape, axes)
    if not (moderate and _arrays.tag(compute)) and x.size:
        return _deliver(reference.causal_softmax(x, offset=offset, temperature=temperature, dtype=compute), final, out)
    y, x, temperature, _ = _outputs(x, final, out, temperature, None)
    if x.size:
        _compute_causal(x, y, compute, offset, temperature)
    return y


@default_fp_env
def _causal_mask(scores, offset, fill_value):
    if isinstance(scores, np.ma.MaskedArray):
        raise TypeError("scores is a masked array; pass scores.data, which is then changed in place")
    if not isinstance(scores, np.ndarray):
        raise TypeError(f"scores must be an ndarray, since it is changed in place; got {type(scores).__name__}")
    x = _as_matrices(scores)
    if x.dtype.kind not in "fc" and _arrays.tag(x.dtype) is None:
        raise TypeError(f"scores must be floating, got dtype {x.dtype}")
    if not x.flags.writeable:
        raise ValueError("scores is read-only; it is changed in place")
    if _arrays.elements_overlap(x):
        raise ValueError(f"elements of scores share memory (shape {x.shape}, strides {x.strides}); expected an array "
                         "with a place for each, since it is changed in place")
    offset, value = _as_offset(offset), float(fill_value)
    if x.size == 0:
        return
    tag = _arrays.tag(x.dtype)
    if tag is None or not _arrays.kernel_ready(x):
        with np.errstate(all="ignore"):
            reference.causal_mask_(x, offset=offset, fill_value=value)
        return
    kernel = _dispatch.kernels(tag).causal_mask
    elements = _arrays.elements(x)
    threads = _threads.threads_for(x.size // 2)
    for (view,) in _arrays.Layout.of_matrices(elements.shape, (elements.strides,)).views(elements):
        kernel(view, offset, value, threads, x.nbytes >= _nontemporal_bytes)


def _asked(x, axis, dtype):
    x = _arrays.as_scores(x, "x")
    axes = _arrays.as_axes(axis, x.ndim)
    compute, final = _arrays.result_dtype(x.dtype, dtype, integers_to_float64=False)
    return x, axes, compute, final


def _modifiers(x, axes, temperature, where):
    """(temperature, whether it is moderate, where), checked."""
    return *_arrays.as_temperature(temperature, x.shape, axes), _arrays.as_where(where, x.shape)


def _refuse_empty(x, axes):
    if x.size == 0 and any(x.shape[i] == 0 for i in axes):
        raise ValueError(f"the reduction is over nothing: axis {next(i for i in axes if x.shape[i] == 0)} of shape "
                         f"{x.shape} is empty")


def _small_fast_path(result, x, compute, axes, temperature, where):
    """The result for a few elements, brought into order for the short way in; None if it does not take them."""
    if where is not None or x.size > SMALL_ELEMENTS or len(axes) not in (1, x.ndim) or type(temperature) is not float:
        return None
    x, peak = _in_order(x, compute, axes)
    y = _fastpath.contiguous(result, x, None if len(axes) == x.ndim else axes[0], temperature, None)
    return y if peak is None or result != LOGSUMEXP or y is None else y + peak.reshape(np.shape(y)).astype(compute)


def _in_order(x, compute, axes, where=None, copy=False):
    """(x in the dtype of the computation, C-contiguous, None), or (its integers' distances from their peaks, these)."""
    if _arrays.is_wide_integer(x.dtype):
        distances, peak = reference.integer_distances(x, axes, where)
        return _arrays.converted(distances, compute, "C"), peak
    return _arrays.converted(x, compute, "C", copy=copy), None


def _outputs(x, final, out, temperature, where):
    """Where the results go, and the inputs, copied where they overlap it."""
    if out is None:
        return np.empty_like(x, dtype=final, subok=False), x, temperature, where
    _arrays.check_out(out, x.shape, final)
    temperature, where = (_arrays.copy_if_overlapping(array, out) for array in (temperature, where))
    return out, _arrays.separate(x, out), temperature, where


def _deliver(y, final, out):
    """A finished result in its dtype, in out if there is one."""
    if out is None:
        return _arrays.converted(np.asarray(y), final)[()]
    _arrays.check_out(out, np.shape(y), final)
    with np.errstate(all="ignore"):
        np.copyto(out, y, casting="same_kind")
    return out


def _as_matrices(scores):
    x = _arrays.as_array(scores, "scores", instead_of_masked="scores.filled(-inf)")
    if x.ndim < 2:
        raise ValueError(f"scores must have at least two dimensions (..., queries, keys), got shape {x.shape}")
    return x


def _as_offset(offset):
    if type(offset) is not int:
        if isinstance(offset, (bool, np.bool_)):
            raise TypeError("offset must be an int, not bool")
        try:
            offset = operator.index(offset)
        except TypeError:
            raise TypeError(f"offset must be an int, not {type(offset).__name__}") from None
    return max(-(1 << 62), min(offset, 1 << 62))


def _broadcast_temperature(temperature, shape):
    if isinstance(temperature, float):
        return None if temperature == 1 else _fastpath.broadcast_to(np.asarray(temperature), shape)
    return _fastpath.broadcast_to(temperature, shape)


def _zeros_along(axes, strides):
    return tuple([0 if i in axes else s for i, s in enumerate(strides)])


def _compute(result, x, y, compute, axes, temperature, where):
    """y from x, all checked and not empty; y has x's number of dimensions, with length 1 where it is reduced."""
    temperature = _broadcast_temperature(temperature, x.shape)
    if x.dtype == compute == y.dtype and _arrays.kernel_ready(x) and _arrays.kernel_ready(y):
        x_seen, y_seen = _arrays.elements(x), _arrays.elements(y)
        mask = None if where is None else where.view(np.uint8)
        none = (0,) * x.ndim
        layout = _arrays.Layout.along(x.shape, axes, (
            x.strides, y.strides if result < LOGSUMEXP else _zeros_along(axes, y.strides),
            none if temperature is None else temperature.strides, none if mask is None else mask.strides))
        if layout is not None and (layout.calls == 1 or x.size >= layout.calls * _arrays.MIN_ELEMENTS_PER_CALL):
            kernel = _dispatch.kernels(_arrays.tag(compute)).softmax_rows
            threads = _threads.threads_for(x.size // layout.calls)
            nontemporal = y.nbytes >= _nontemporal_bytes and not np.may_share_memory(x, y)
            for x_rows, y_rows, t, mask_rows in layout.views(x_seen, y_seen, temperature, mask):
                kernel(result, x_rows, y_rows, None if t is None else t[:, 0], mask_rows, None, threads, nontemporal)
            return
    _compute_staged(result, x, y, compute, axes, temperature, where)


def _compute_staged(result, x, y, compute, axes, temperature, where):
    """The same by way of a buffer in the kernel's order and dtype, some rows at a time.

    A row is staged whole, since its sum has an order; it may be as long as the result, which softmax and log_softmax
    need anyway. The reductions do without: their long rows are worked on in pieces.
    """
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    order = kept + axes
    n = math.prod(x.shape[i] for i in axes)
    kernel = _dispatch.kernels(_arrays.tag(compute)).softmax_rows
    x, y = x.transpose(order), y.transpose(order)
    kept_shape = x.shape[:len(kept)]
    if temperature is not None:
        temperature = temperature.transpose(order)[(..., *(0,) * len(axes))]
    if where is not None:
        where = where.transpose(order)
    if result >= LOGSUMEXP and n > _arrays.STAGED_ELEMENTS:
        for index in np.ndindex(kept_shape):
            y[index] = _reduced_in_pieces(result, x[index], 1.0 if temperature is None else temperature[index],
                                          True if where is None else where[index])
        return
    for piece in _arrays.pieces(kept_shape, max(1, _arrays.STAGED_ELEMENTS // n)):
        along = tuple(range(len(kept), x.ndim))
        rows, peak = _in_order(x[piece], compute, along, None if where is None else where[piece], copy=True)
        shape = rows.shape[:len(kept)]
        rows = _arrays.elements(rows).reshape(-1, n, 1)
        results = np.empty((len(rows), n if result < LOGSUMEXP else 1, 1), compute)
        t = None if temperature is None else np.ascontiguousarray(temperature[piece]).reshape(-1, 1)
        mask = None if where is None else np.ascontiguousarray(where[piece]).view(np.uint8).reshape(-1, n, 1)
        kernel(result, rows, _arrays.elements(results), t, mask, None, _threads.threads_for(rows.size), False)
        results = results.reshape(shape + y.shape[len(kept):])
        with np.errstate(all="ignore"):
            y[piece] = results if peak is None or result != LOGSUMEXP else results + peak.astype(compute)


@np.errstate(all="ignore")
def _reduced_in_pieces(result, row, temperature, where):
    """logsumexp or entropy of one row, of any number of dimensions, from those of its pieces, in bounded memory.

    Entropy needs the differences of the pieces' lses, to more digits than large ones have: each piece is shifted by its
    own maximum, its peak, and so are integers. logsumexp of floats needs no shift: rounding a piece's lse loses no more
    than rounding the row's.
    """
    buffer = np.empty(_arrays.PIECE_ELEMENTS)
    peaks, lses, entropies = [], [], []
    any_visible = False
    integers = _arrays.is_wide_integer(row.dtype)
    for piece in _arrays.pieces(row.shape, _arrays.PIECE_ELEMENTS):
        part = row[piece]
        scores = buffer[:part.size]
        visible = True if where is True else where[piece].reshape(-1)
        peak = 0.0
        if integers or result == ENTROPY:
            part_visible = part.size > 0 and bool(np.any(visible))
            any_visible = any_visible or part_visible
            if integers and not part_visible:
                continue
        if integers:
            distances, peak = reference.integer_distances(part.reshape(-1), 0, visible)
            scores[:], peak = distances, int(peak[0])
        else:
            np.copyto(scores.reshape(part.shape), part, casting="unsafe")
            if result == ENTROPY:
                peak = float(scores.max(where=visible, initial=-math.inf))
                if peak == -math.inf:           # nothing here has a weight
                    continue
                if not math.isfinite(peak):
                    return math.nan
                scores -= peak
        if result == ENTROPY:
            entropies.append(_reduced_line(ENTROPY, scores, temperature, visible))
        peaks.append(peak)
        lses.append(_reduced_line(LOGSUMEXP, scores, temperature, visible))
    if not peaks:
        return -math.inf if result == LOGSUMEXP else math.nan if any_visible else 0.0
    top = max(peaks)
    below_top = [peak - top if integers else np.longdouble(peak) - top for peak in peaks]
    lses = np.array(below_top, np.longdouble) / temperature + np.array(lses)
    lse, mean_surprise = _merged(lses, np.array(entropies or 0.0))
    return mean_surprise if result == ENTROPY else top + lse


def _reduced_line(result, scores, temperature, visible):
    """The kernel's result for a contiguous line of float64."""
    y = np.empty((1, 1, 1))                     # with a temperature, the largest score is 0: see softmax.pxi
    t = None if temperature == 1 else np.full((1, 1), temperature)
    mask = None if visible is True else visible.view(np.uint8).reshape(1, -1, 1)
    _dispatch.kernels("f64").softmax_rows(
        result, scores.reshape(1, -1, 1), y, t, mask, None, _threads.threads_for(scores.size), False)
    return float(y[0, 0, 0])


def _merged(lses, entropies):
    """The lse and the entropy of a row from those of its pieces, which come in long double.

    lse = logsumexp(lses), and the entropy is the mean surprise sum(w_k * (H_k + lse - lse_k)), w_k = exp(lse_k - lse),
    of which no term is negative, so that nothing cancels.
    """
    first = lses.argmax()                       # a NaN, if there is one
    if not np.isfinite(lses[first]):
        return float(lses[first]), math.nan
    weights = np.exp(lses - lses[first])
    weights[first] = 0                          # log1p of the others keeps the digits of a small sum
    lse = lses[first] + np.log1p(weights.sum())
    return float(lse), float((np.exp(lses - lse) * (entropies + (lse - lses))).sum())


def _compute_causal(x, y, compute, offset, temperature):
    temperature = _broadcast_temperature(temperature, x.shape)
    kernel = _dispatch.kernels(_arrays.tag(compute)).softmax_rows
    if x.dtype == compute == y.dtype and _arrays.kernel_ready(x) and _arrays.kernel_ready(y):
        x_seen, y_seen = _arrays.elements(x), _arrays.elements(y)
        layout = _arrays.Layout.of_matrices(x.shape, (
            x.strides, y.strides, (0,) * x.ndim if temperature is None else temperature.strides))
        threads = _threads.threads_for(x.size // layout.calls)
        nontemporal = y.nbytes >= _nontemporal_bytes and not np.may_share_memory(x, y)
        for x_rows, y_rows, t in layout.views(x_seen, y_seen, temperature):
            kernel(SOFTMAX, x_rows, y_rows, None if t is None else t[:, 0], None, offset, threads, nontemporal)
        return
    for index in np.ndindex(x.shape[:-2]):      # a matrix at a time is staged: no more than the result takes
        visible = reference._causal(x.shape, offset) if _arrays.is_wide_integer(x.dtype) else None
        matrix, _ = _in_order(x[index], compute, (1,), visible, copy=True)
        results = np.empty_like(matrix)
        t = None if temperature is None else np.ascontiguousarray(temperature[index][:, 0])[None]
        kernel(SOFTMAX, _arrays.elements(matrix).T[None], _arrays.elements(results).T[None], t, None, offset,
               _threads.threads_for(matrix.size), False)
        with np.errstate(all="ignore"):
            y[index] = results
