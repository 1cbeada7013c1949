"""The softmax family and its gradients: the definition of each function.

Method. A row is shifted by its maximum, its peak, before any exponential, so that nothing overflows and the sum is at
least 1 [1]_. The log of that sum is ``log1p`` of the *other* terms, so that a sum just above 1 keeps its digits.

Error. float16, bfloat16 and float32 are computed in float64 and rounded once: at most 0.51 ULP of the result. float64
is computed in float64, where rounding ``x - peak`` alone may cost ``peak - x`` ULP / 2 in `softmax`; pass
``np.longdouble`` for an oracle of float64. The gradients of float64 are computed in long double, where it is wider, and
rounded once. Special values and masked places come out of the arithmetic as commented where it happens; no data ever
warns.

.. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax functions", IMA J.
       Numer. Anal. 41 (2021).
"""

import numpy as np


@np.errstate(all="ignore")
def softmax(x, axis=None, *, temperature=1.0, where=None, dtype=None):
    """Weights ``exp(x / temperature) / sum(exp(x / temperature))``, with x's shape; each row along `axis` sums to 1.

    Places where `where` is False get 0, whatever they hold. See `fastsoftmax.softmax` for the parameters.

    >>> softmax([2.8, 1.2, 0.5, 3.1]).round(3)
    array([0.377, 0.076, 0.038, 0.509])
    >>> softmax([3.0, 2.0, 1.0], temperature=0.5).round(3)
    array([0.867, 0.117, 0.016])
    """
    x, _, result = _prepare(x, axis, where, dtype)
    _, weights = _scores_and_weights(x, axis, temperature)
    return _finish(weights, result, where, masked=0)


@np.errstate(all="ignore")
def softmax_backward(grad, y, axis=None, *, temperature=1.0):
    """Gradient of `softmax` for x: ``y * (grad - sum(y * grad)) / temperature``, with y's shape and dtype.

    Parameters
    ----------
    grad : array_like, (...)
        Gradient for y. It is not read where y is 0: the result is 0 there.
    y : array_like, (...)
        The weights that `softmax` or `causal_softmax` returned.
    axis, temperature
        As they were given to the forward function.

    Notes
    -----
    The gradient for a temperature is ``-sum(dx * x) / temperature``, where dx is the result here and the sum is over
    the elements of x which that temperature divides.

    Examples
    --------
    >>> import numpy as np
    >>> softmax_backward([1.0, 0.0, np.nan], [0.75, 0.25, 0.0])
    array([ 0.1875, -0.1875,  0.    ])
    """
    (y, grad), result = _prepare_gradient("softmax_backward", y, grad)
    return _round(_through_softmax(grad, y, axis) / _as(temperature, y), result)


@np.errstate(all="ignore")
def log_softmax(x, axis=None, *, temperature=1.0, where=None, dtype=None):
    """Log weights ``x / temperature - logsumexp(x / temperature)``, with x's shape.

    Places where `where` is False get -inf. See `fastsoftmax.log_softmax` for the parameters.

    >>> log_softmax([0.0, -20.0])  # the first is -log(1 + exp(-20)), not 0
    array([-2.06115362e-09, -2.00000000e+01])
    """
    x, _, result = _prepare(x, axis, where, dtype)
    x.max(axis)  # an empty axis is a ValueError, as in softmax
    scores, _, _, log_total = _shifted_sum(x, axis, temperature)
    return _finish(scores - log_total, result, where, masked=-np.inf)


@np.errstate(all="ignore")
def log_softmax_backward(grad, log_y, axis=None, *, temperature=1.0):
    """Gradient of `log_softmax` for x: ``(grad - exp(log_y) * sum(grad)) / temperature``, as log_y in shape and dtype.

    Parameters
    ----------
    grad : array_like, (...)
        Gradient for log_y. It is not read where log_y is -inf: the result is 0 there.
    log_y : array_like, (...)
        The result of `log_softmax`.
    axis, temperature
        As they were given to the forward function.

    Examples
    --------
    >>> import numpy as np
    >>> log_softmax_backward([1.0, 0.0, np.nan], [np.log(0.75), np.log(0.25), -np.inf])
    array([ 0.25, -0.25,  0.  ])
    """
    (log_y, grad), result = _prepare_gradient("log_softmax_backward", log_y, grad)
    hidden = log_y == -np.inf
    grad = np.where(hidden, 0, grad)
    dx = (grad - np.exp(log_y) * grad.sum(axis, keepdims=True)) / _as(temperature, log_y)
    return _round(np.where(hidden, 0, dx), result)


@np.errstate(all="ignore")
def logsumexp(a, axis=None, b=None, keepdims=False, return_sign=False, *, where=None, dtype=None):
    """``log(sum(b * exp(a)))`` along `axis`; -inf for a sum over nothing.

    A term whose `b` is 0 or whose `where` is False counts for nothing, whatever `a` holds there. A negative sum gives
    NaN; with `return_sign` the result is ``(log(abs(sum)), sign(sum))`` instead, the sign being a phase for complex
    input.

    >>> round(float(logsumexp([1000.0, 1000.0])), 4)
    1000.6931
    >>> log_of_abs, sign = logsumexp([1.0, 2.0], b=[1.0, -1.0], return_sign=True)
    >>> round(float(log_of_abs), 4), float(sign)
    (1.5413, -1.0)
    """
    a = np.asarray(a)
    common = a.dtype
    if b is not None:
        weak = type(b) in (bool, int, float, complex)  # a Python number does not promote
        common = np.result_type(a.dtype, b if weak else np.asarray(b).dtype)
        a, b = np.broadcast_arrays(a, b)
        counts = b != 0
        where = counts if where is None else counts & where
    # softmax follows np.exp, which makes float16 of int8; here integers give float64
    natural = np.dtype(np.float64) if common.kind in "biuO" else common
    # With factors the sum may cancel, or come close to 1: long double keeps digits for that, where it has more.
    a, peak, result = _prepare(a, axis, where, natural if dtype is None else dtype,
                               np.float64 if b is None else np.result_type(natural, np.longdouble))
    b = None if b is None else np.where(where, b.astype(a.dtype), 0)

    _, shift, total, log_total = _shifted_sum(a, axis, 1.0, b)
    lse = shift + log_total + peak
    if np.iscomplexobj(total):
        sign = np.where(total == 0, 0, total / abs(total)) * np.exp(1j * shift.imag)
        lse = lse.real if return_sign else lse.real + 1j * np.angle(np.exp(1j * lse.imag))  # phase in (-pi, pi]
    else:
        sign = np.sign(total)
        lse = lse if return_sign else np.where(sign < 0, np.nan, lse)

    # The sign of a complex sum is complex, the log of its absolute value is real.
    log_result = np.empty(0, result).real.dtype if return_sign and result.kind == "c" else result
    lse, sign = (v if keepdims else v.squeeze(_axes(axis, v.ndim)) for v in (lse, sign))
    return (_round(lse, log_result), _round(sign, result)) if return_sign else _round(lse, result)


@np.errstate(all="ignore")
def logsumexp_backward(grad, a, lse, axis=None, *, keepdims=False, where=None):
    """Gradient of `logsumexp` for a: ``grad * exp(a - lse)``, with a's shape.

    Parameters
    ----------
    grad : array_like
        Gradient for lse, in its shape. It is not read for an element whose weight ``exp(a - lse)`` is 0: the result is
        0 there, also where lse is -inf.
    a : array_like, (...)
        As it was given to the forward function.
    lse : array_like
        The result of ``logsumexp(a, axis, keepdims=keepdims, where=where)``.
    axis, keepdims, where
        As they were given to the forward function.

    Examples
    --------
    >>> import numpy as np
    >>> logsumexp_backward(2.0, [0.0, 0.0], np.log(2)).round(3)
    array([1., 1.])
    """
    a = np.asarray(a)
    natural = np.dtype(np.float64) if a.dtype.kind in "biuO" else _natural(a)  # the result dtype of logsumexp
    a, peak, result = _prepare(a, axis, where, natural, _precise(natural))
    _check_real("logsumexp_backward", result)
    lse, grad = (_along(x, a, axis, keepdims) for x in (lse, grad))
    shift = np.where(lse == -np.inf, 0, lse - peak)  # a sum over nothing: -inf - -inf would be NaN
    weights = np.exp(a - shift)
    return _finish(np.where(weights == 0, 0, grad * weights), result, where, masked=0)


def causal_softmax(scores, *, offset=0, temperature=1.0, dtype=None):
    """Softmax over the keys that each query may see; ``scores[..., i, j]`` counts where ``j <= i + offset``.

    The rest gets 0 and may hold anything; so does a row that sees nothing. `scores` is ``(..., L, S)``, as the result.

    >>> import numpy as np
    >>> causal_softmax(np.zeros((3, 3))).round(3)
    array([[1.   , 0.   , 0.   ],
           [0.5  , 0.5  , 0.   ],
           [0.333, 0.333, 0.333]])
    """
    scores = np.asarray(scores)
    return softmax(scores, -1, temperature=temperature, where=_causal(scores.shape, offset), dtype=dtype)


@np.errstate(all="ignore")
def causal_mask_(scores, *, offset=0, fill_value=-np.inf):
    """Write `fill_value` in place where `causal_softmax` sees nothing, ``j > i + offset``; returns `scores`.

    >>> import numpy as np
    >>> causal_mask_(np.zeros((2, 3)), offset=1)
    array([[  0.,   0., -inf],
           [  0.,   0.,   0.]])
    """
    # As an array: ml_dtypes stores a scalar in native order even where the array's is the other.
    scores[..., ~_causal(scores.shape, offset)] = np.asarray(fill_value)
    return scores


@np.errstate(all="ignore")
def softmax_entropy(x, axis=None, *, temperature=1.0, where=None):
    """Shannon entropy of ``softmax(x)`` in nats, ``-sum(weights * log(weights))``: from 0 to log n.

    >>> float(softmax_entropy([0.0, 0.0, 0.0, 0.0]).round(4))
    1.3863
    """
    x, _, result = _prepare(x, axis, where, None)
    _check_real("softmax_entropy", result)
    x.max(axis)  # an empty axis is a ValueError, as in softmax
    scores, _, total, log_total = _shifted_sum(x, axis, temperature)
    # -log(weight) = log_total - score; both terms are >= 0, so nothing cancels. A weight of 0 adds 0, not 0 * -inf.
    surprise = np.where(scores == -np.inf, 0, np.exp(scores) * -scores).sum(axis, keepdims=True)
    entropy = log_total + surprise / total
    if where is not None:
        entropy = np.where(np.any(np.broadcast_to(where, x.shape), axis, keepdims=True), entropy, 0)
    return _round(entropy.squeeze(_axes(axis, x.ndim)), result)


@np.errstate(all="ignore")
def softmax_entropy_backward(grad, x, axis=None, *, temperature=1.0, where=None):
    """Gradient of `softmax_entropy` for x: ``-grad * weights * (log(weights) + entropy) / temperature``.

    Parameters
    ----------
    grad : array_like
        Gradient for the entropy, in its shape: that of x without the axes.
    x : array_like, (...)
        As it was given to the forward function.
    axis, temperature, where
        As they were given to the forward function.

    Notes
    -----
    The entropy is ``sum(weights * -log(weights))``: its gradient for the weights is ``-log(weights) - 1``, which goes
    backward through the softmax. The softmax removes a term that all elements of a row share. So -scores can replace
    ``-log(weights) - 1``.

    Examples
    --------
    >>> import numpy as np
    >>> softmax_entropy_backward(1.0, [0.0, 0.0, np.log(2)]).round(4)
    array([ 0.0866,  0.0866, -0.1733])
    """
    x = np.asarray(x)
    x, _, result = _prepare(x, axis, where, None, _precise(_natural(x)))
    _check_real("softmax_entropy_backward", result)
    scores, weights = _scores_and_weights(x, axis, temperature)
    grad = _along(grad, x, axis)
    dx = grad * _through_softmax(-scores, weights, axis) / _as(temperature, x)
    return _finish(np.where(weights == 0, 0, dx), result, where, masked=0)


def _scores_and_weights(x, axis, temperature):
    """``scores = (x - peak) / temperature`` and the weights of `softmax`: NaN in rows of -inf alone or with +inf."""
    scores = _below(x, x.max(axis, keepdims=True), temperature)  # inf - inf: NaN
    weights = np.exp(scores)
    return scores, weights / weights.sum(axis, keepdims=True)


def _through_softmax(grad, weights, axis):
    """The gradient for scores from `grad`, that for their weights: ``weights * (grad - sum(weights * grad))``.

    Since ``d weights[i] / d scores[j] = weights[i] * ((i == j) - weights[j])``. Where a weight is 0, grad is not read.
    """
    hidden = weights == 0
    grad = np.where(hidden, 0, grad)
    mean = (weights * grad).sum(axis, keepdims=True)
    return np.where(hidden, 0, weights * (grad - mean))


def _shifted_sum(x, axis, temperature, b=None):
    """``scores = (x - shift) / temperature``, and `shift`, ``total = sum(b * exp(scores))``, ``log(abs(total))``."""
    peak = x.max(axis, keepdims=True, initial=-np.inf)  # initial: the sum over an empty axis is 0
    shift = np.where(np.isfinite(peak), peak, 0)  # inf - inf would be NaN; exp(inf) and exp(-inf) are right as they are
    scores = _below(x, shift, temperature)
    terms = np.exp(scores) if b is None else b * np.exp(scores)
    if b is None or np.iscomplexobj(b):
        at_peak = np.where(x == peak, terms, 0).sum(axis, keepdims=True)  # without b: how many share the peak
        others = np.where(x == peak, 0, terms).sum(axis, keepdims=True)
    else:  # factors may cancel: near the peak they are summed alone, and what exp takes off them apart
        near = scores > -0.5
        at_peak = np.where(near, b, 0).sum(axis, keepdims=True)
        others = np.where(near, b * np.expm1(scores), terms).sum(axis, keepdims=True)
    total = np.where(np.isfinite(peak), at_peak + others, terms.sum(axis, keepdims=True))
    negative = not np.iscomplexobj(total) and total < 0  # then of its absolute value
    at_peak, others, magnitude = (np.where(negative, -part, part) for part in (at_peak, others, total))
    excess = (at_peak - 1) + others  # of the total over 1: [0, -20] has 2e-9, of which the total would keep 7 digits
    log_total = np.where(abs(magnitude - 1) < 0.5, np.log1p(excess), np.log(magnitude))
    return scores, shift, total, log_total


def _prepare(x, axis, where, dtype, least=np.float64):
    """x in the precision of the computation, -inf where masked; what was subtracted; and the dtype of the result.

    Integers come as their distances from the largest along `axis`, which float64 holds where it does not hold them.
    """
    x, peak = np.asarray(x), 0
    natural = _natural(x)
    result = natural if dtype is None else np.dtype(dtype)
    wide = np.result_type(np.result_type(least, natural), result)
    if x.dtype.kind in "iuO":
        x, peak = integer_distances(x, axis, where)
        peak = peak.astype(wide)
    x = x.astype(wide)
    return (x if where is None else np.where(where, x, -np.inf).astype(wide)), peak, result


def _prepare_gradient(name, y, grad):
    """``(y, grad)`` in the precision of the computation, and the dtype of the result."""
    y = np.asarray(y)
    result = _natural(y)
    _check_real(name, result)
    return [np.asarray(x).astype(_precise(result)) for x in (y, grad)], result


def _natural(x):
    """The dtype of a softmax of x; integers and booleans promote as np.exp promotes them."""
    if x.dtype.kind == "O":  # Python ints that no integer dtype holds
        return np.dtype(np.float64)
    return np.exp(np.empty(0, x.dtype)).dtype if x.dtype.kind in "biu" else x.dtype.newbyteorder("=")


def _precise(dtype):
    """The dtype in which a gradient or a loss is computed, so that only the last rounding counts."""
    return np.dtype(np.float64 if dtype.itemsize < 8 else np.longdouble)


def _check_real(name, dtype):
    if dtype.kind == "c":
        raise TypeError(f"{name} takes real numbers, got {dtype}")


def _as(numbers, x):
    return np.asarray(numbers).astype(x.dtype)


def _along(numbers, x, axis, keepdims=False):
    """One number for each row of x, as it broadcasts with x."""
    numbers = _as(numbers, x)
    return numbers if keepdims else numbers.reshape(x.any(axis, keepdims=True).shape)


def integer_distances(x, axis, where=None):
    """``(x - peak, peak)`` for integers, exact but for one rounding to float64; peak is the largest where `where` is.

    >>> import numpy as np
    >>> integer_distances(np.array([2**53, 2**53 + 1]), 0)
    (array([-1., -0.]), array([9007199254740993]))
    """
    if x.dtype.kind == "O":
        peak = x.max(axis, keepdims=True, where=True if where is None else where, initial=x.min(initial=0))
        return (x - peak).astype(np.float64), peak
    x = x.astype(x.dtype.newbyteorder("="), copy=False)
    lowest = np.iinfo(x.dtype).min
    peak = x.max(axis, keepdims=True, where=True if where is None else where, initial=lowest)
    # Modulo 2**64, which no difference reaches; a masked x above the peak gives a number that nobody reads.
    return -(peak.astype(np.uint64) - x.astype(np.uint64)).astype(np.float64), peak


def _finish(values, result, where, masked):
    """The last step for results of the input's shape: masked places whatever became of their row, and one rounding."""
    return _round(values if where is None else np.where(where, values, masked), result)


def _round(values, dtype):
    """`values` in `dtype`, rounded once; a 0-d array becomes a scalar."""
    if dtype.name == "bfloat16":
        # Its cast goes by float32, which would round twice. Rounded to odd there (truncate; if inexact, set the last
        # bit) the first rounding cannot change the second.
        single = values.astype(np.float32)
        truncated = np.where(abs(single) > abs(values), np.nextafter(single, np.float32(0)), single)
        values = (truncated.view(np.uint32) | (single != values)).view(np.float32)
    return np.asarray(values).astype(dtype)[()]


def _causal(shape, offset):
    """The (L, S) booleans, True where query i sees key j."""
    queries, keys = shape[-2:]
    return np.arange(keys) <= np.arange(queries)[:, None] + offset


def _below(x, shift, temperature):
    """``(x - shift) / temperature`` in the precision of x; not divided by 1, which costs complex infinities."""
    temperature = np.asarray(temperature).astype(x.real.dtype)
    below = x - shift
    if np.all(temperature == 1):
        return below
    halves = (x / 2 - shift / 2) / (temperature / 2)  # where the difference is beyond the largest number
    return np.where(np.isfinite(below), below / temperature, halves)


def _axes(axis, ndim):
    return tuple(range(ndim)) if axis is None else axis
