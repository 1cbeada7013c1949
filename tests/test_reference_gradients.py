"""The reference's gradients and losses, against central differences of its forward functions and closed forms."""

import warnings

import ml_dtypes
import numpy as np
import pytest

from fastsoftmax.reference import (
    causal_softmax,
    log_softmax,
    log_softmax_backward,
    logsumexp,
    logsumexp_backward,
    softmax,
    softmax_backward,
    softmax_entropy,
    softmax_entropy_backward,
)

INF, NAN = np.inf, np.nan
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.longdouble]
# Long double differences are good to 1e-11; where it is float64, to 1e-8.
RTOL = 1e-9 if np.finfo(np.longdouble).eps < 1e-18 else 1e-6
STEP = 1e-5


@pytest.fixture(autouse=True)
def _nothing_warns():
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def long(x):
    return np.asarray(x).astype(np.longdouble)


def differences(loss, x):
    """The gradient of the number ``loss(x)`` by central differences, in long double."""
    x, step = long(x), np.longdouble(STEP)
    gradient = np.zeros(x.shape, np.longdouble)
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i], low[i] = x[i] + step, x[i] - step
        gradient[i] = (loss(high) - loss(low)) / (2 * step)
    return gradient


def assert_gradient(got, loss, x):
    assert np.shape(got) == np.shape(x)
    np.testing.assert_allclose(long(got), differences(loss, x), rtol=RTOL, atol=RTOL)


# ---------------------------------------------------------------- softmax, log_softmax, logsumexp, softmax_entropy

RNG = np.random.default_rng(0)
X, GRAD = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 4))
KEEP = np.array([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0]], bool)
TEMPERATURES = [1.0, 0.7, np.array([[0.5], [1], [2]])]
AXES = [-1, 1, (0, 2), None]


def of_rows(axis):
    """An upstream gradient with one number for each row."""
    return GRAD.sum(axis)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("where", [None, KEEP], ids=["all", "where"])
def test_softmax_gradients_are_the_differences(axis, temperature, where):
    options = {"axis": axis, "temperature": temperature}
    grad = GRAD if where is None else np.where(where, GRAD, NAN)  # not read
    read = GRAD if where is None else np.where(where, GRAD, 0)
    y, log_y = (f(long(X), where=where, **options) for f in (softmax, log_softmax))
    assert_gradient(softmax_backward(grad, y, **options),
                    lambda x: (read * softmax(x, where=where, **options)).sum(), X)
    logs = lambda x: np.where(read == 0, 0, log_softmax(x, where=where, **options))  # noqa: E731
    assert_gradient(log_softmax_backward(grad, log_y, **options), lambda x: (read * logs(x)).sum(), X)
    assert_gradient(softmax_entropy_backward(of_rows(axis), long(X), where=where, **options),
                    lambda x: (of_rows(axis) * softmax_entropy(x, where=where, **options)).sum(), X)
    for keepdims in (False, True):
        lse = logsumexp(long(X), axis, keepdims=keepdims, where=where)
        upstream = GRAD.sum(axis, keepdims=keepdims)
        assert_gradient(logsumexp_backward(upstream, long(X), lse, axis, keepdims=keepdims, where=where),
                        lambda x: (of_rows(axis) * logsumexp(x, axis, where=where)).sum(), X)


def test_temperature_of_each_row():
    temperature = TEMPERATURES[-1]
    options = {"axis": -1, "temperature": temperature}
    y, log_y = softmax(long(X), **options), log_softmax(long(X), **options)
    dx = softmax_backward(GRAD, y, **options)
    assert_gradient(dx, lambda x: (GRAD * softmax(x, **options)).sum(), X)
    assert_gradient(log_softmax_backward(GRAD, log_y, **options), lambda x: (GRAD * log_softmax(x, **options)).sum(), X)
    assert_gradient(softmax_entropy_backward(of_rows(-1), long(X), **options),
                    lambda x: (of_rows(-1) * softmax_entropy(x, **options)).sum(), X)
    # the gradient of the temperature, as the docstring says
    assert_gradient(-(dx * X).sum((0, 2))[:, None] / temperature,
                    lambda t: (GRAD * softmax(long(X), -1, temperature=t)).sum(), temperature)


def test_causal_weights_go_through_softmax_backward():
    y = causal_softmax(long(X), offset=0)
    assert_gradient(softmax_backward(np.where(y == 0, NAN, GRAD), y, -1),
                    lambda x: (GRAD * causal_softmax(x, offset=0)).sum(), X)


def test_closed_forms_for_two_classes():
    """softmax([x, 0]) is (s, 1 - s) with s = sigmoid(x); its derivative is s * (1 - s)."""
    x = np.array([-3.0, 0, 20])
    s, rest = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
    rows = np.stack([x, 0 * x], -1)
    one = np.array([1.0, 0])
    for got, expected in (
        (softmax_backward(one + 0 * rows, np.stack([s, rest], -1), -1), s * rest),
        (log_softmax_backward(one + 0 * rows, log_softmax(rows, -1), -1), rest),
        (logsumexp_backward(np.ones(3), rows, logsumexp(rows, -1), -1), s),
        (softmax_entropy_backward(np.ones(3), rows, -1), -s * rest * x),
    ):
        np.testing.assert_allclose(got[:, 0], expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtype_and_one_rounding(dtype):
    x, grad = X.astype(dtype), GRAD.astype(np.float64)
    y, log_y, lse = softmax(x, -1), log_softmax(x, -1), logsumexp(x, -1)
    for f, args in ((softmax_backward, (grad, y)), (log_softmax_backward, (grad, log_y)),
                    (logsumexp_backward, (grad[..., 0], x, lse)), (softmax_entropy_backward, (grad[..., 0], x))):
        got = f(*args, -1)
        assert got.dtype == dtype
        exact = f(*(long(a) for a in args), -1)
        with np.errstate(all="ignore"):
            bound = 0.51 * np.finfo(np.float64).eps if dtype in (np.float64, np.longdouble) else \
                0.51 * float(ml_dtypes.finfo(dtype).eps)
            assert np.all(abs(long(got) - exact) <= bound * abs(exact) + np.finfo(np.float16).smallest_subnormal)


def test_float64_gradients_are_rounded_from_long_double():
    """512 terms that cancel: float64 sums would be off by more than an ULP."""
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("long double is no wider than float64 here")
    rng = np.random.default_rng(1)
    x, grad = 30 * rng.normal(size=512), rng.normal(size=512)
    y = softmax(x)
    np.testing.assert_array_equal(softmax_backward(grad, y), softmax_backward(long(grad), long(y)).astype(float))
    np.testing.assert_array_equal(softmax_entropy_backward(1, x), softmax_entropy_backward(1, long(x)).astype(float))


def test_a_row_that_is_nan_has_a_gradient_of_nan():
    x = np.array([[NAN, 1, -INF], [-INF, -INF, -INF], [INF, 1, 2], [1, 2, 3]])
    y, grad = softmax(x, -1), np.ones((4, 3))
    assert np.isnan(softmax_backward(grad, y, -1)).all(-1).tolist() == [True, True, True, False]
    assert np.isnan(softmax_entropy_backward(grad[:, 0], x, -1)).all(-1).tolist() == [True, True, True, False]
    assert np.isnan(log_softmax_backward(grad, log_softmax(x, -1), -1)).all(-1).tolist() == [True, True, False, False]
    # SciPy's log_softmax of a row with +inf is NaN there alone, and so is the gradient
    np.testing.assert_array_equal(log_softmax_backward(grad, log_softmax(x, -1), -1)[2], [NAN, 0, 0])
    # logsumexp of -inf is -inf, and of inf is inf
    np.testing.assert_array_equal(logsumexp_backward(grad[:, 0], x, logsumexp(x, -1), -1)[:3],
                                  [[NAN] * 3, [0] * 3, [NAN, 0, 0]])


def test_hidden_places_have_gradient_zero_whatever_they_hold():
    x = np.array([[0, NAN, 0], [1, INF, -INF], [NAN, NAN, NAN], [NAN, 5, 5]])
    keep = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
    grad = np.array([[1, NAN, 3], [1, NAN, INF], [NAN, INF, NAN], [1, 1, NAN]])
    expected = [[-0.5, 0, 0.5], [0, 0, 0], [0, 0, 0], [NAN, NAN, 0]]
    np.testing.assert_array_equal(softmax_backward(grad, softmax(x, 1, where=keep), 1), expected)
    expected = [[-1, 0, 1], [0, 0, 0], [0, 0, 0], [NAN, NAN, 0]]
    np.testing.assert_allclose(log_softmax_backward(grad, log_softmax(x, 1, where=keep), 1), expected, atol=1e-15)
    of_row = np.array([1, 1, NAN, 1])
    expected = [[0.5, 0, 0.5], [1, 0, 0], [0, 0, 0], [NAN, NAN, 0]]
    lse = logsumexp(x, 1, where=keep)
    np.testing.assert_allclose(logsumexp_backward(of_row, x, lse, 1, where=keep), expected, atol=1e-15)
    expected = [[0, 0, 0], [0, 0, 0], [0, 0, 0], [NAN, NAN, 0]]
    np.testing.assert_array_equal(softmax_entropy_backward(of_row, x, 1, where=keep), expected)


def test_minus_inf_among_others_has_gradient_zero():
    x, grad = np.array([0.0, -INF, 0]), np.array([1.0, NAN, 3])
    np.testing.assert_array_equal(softmax_backward(grad, softmax(x)), [-0.5, 0, 0.5])
    np.testing.assert_allclose(log_softmax_backward(grad, log_softmax(x)), [-1, 0, 1], atol=1e-15)
    np.testing.assert_allclose(logsumexp_backward(2.0, x, logsumexp(x)), [1, 0, 1], rtol=1e-15)
    np.testing.assert_array_equal(softmax_entropy_backward(NAN, x)[1], 0)


def test_integers_empty_axes_and_scalars():
    big = np.array([2**53, 2**53 + 2])
    np.testing.assert_allclose(logsumexp_backward(1, big, float(2**53 + 2)), [np.exp(-2), 1], rtol=1e-15)
    assert softmax_entropy_backward(np.float64(1), np.int64([1, 2])).dtype == np.float64
    assert logsumexp_backward(np.float64(1), np.int8([1, 2]), np.float64(2)).dtype == np.float64
    assert logsumexp_backward(np.zeros(3), np.zeros((3, 0)), np.full(3, -INF), 1).shape == (3, 0)
    assert type(softmax_backward(np.float32(3), np.float32(1))) is np.float32
    assert type(logsumexp_backward(2.0, 3.0, 3.0, 0)) is np.float64
    np.testing.assert_array_equal(softmax_entropy_backward([1.0, 1.0], [3.0, 4.0], ()), [0, 0])


def test_gradients_are_of_real_numbers():
    for f in (softmax_backward, log_softmax_backward):
        with pytest.raises(TypeError, match=f"{f.__name__} .* complex128"):
            f([1.0, 2.0], [1j, 2])
    with pytest.raises(TypeError, match="complex128"):
        logsumexp_backward(1, [1j, 2], 3)
    with pytest.raises(TypeError, match="complex128"):
        softmax_entropy_backward(1, [1j, 2])
