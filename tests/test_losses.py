"""cross_entropy and linear_cross_entropy: each property for every kernel, against the reference in a wider type.

Losses are within 2 ULP a row (2.5 where log p is multiplied) and 4 for sums; gradients within 2 ULP of the largest term
of the row (3 where two rounded terms are subtracted), which is p or the target, times the factors of both.
"""

import itertools
import timeit
import tracemalloc
import warnings

import ml_dtypes
import numpy as np
import pytest
from helpers import LAYOUTS, assert_accurate, assert_same_bits, wide

import fastsoftmax
from fastsoftmax import (
    _dispatch,
    _fastpath,
    _losses,
    _softmax,
    _threads,
    cross_entropy,
    linear_cross_entropy,
    log_softmax,
    logsumexp,
    reference,
    softmax,
)

INF, NAN = np.inf, np.nan
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
REDUCTIONS = ("mean", "sum", "none")


@pytest.fixture(autouse=True)
def _nothing_warns():
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def of_loss(dtype):
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def example(dtype, shape, axis=-1, seed=0, spread=3, ignored=0.2):
    """(logits, class numbers, probabilities)."""
    rng = np.random.default_rng([seed, *shape])
    with np.errstate(all="ignore"):
        logits = (spread * rng.normal(size=shape)).astype(dtype)
        rows = np.zeros(shape).sum(axis).shape
        classes = np.asarray(rng.integers(0, shape[axis], rows))
        classes = np.where(rng.random(rows) < ignored, -100, classes)
        target = rng.random(shape) * (rng.random(shape) < 0.7) + 1e-3
        return logits, classes, (target / target.sum(axis, keepdims=True)).astype(of_loss(dtype))


def options_of(dtype, shape, axis=-1, seed=0):
    """Every option alone, and all together."""
    rng = np.random.default_rng([seed, 1])
    rows = np.zeros(shape).sum(axis).shape
    each = {"weight": rng.uniform(0.2, 2, shape[axis]).astype(of_loss(dtype)), "label_smoothing": 0.1, "z_loss": 0.01,
            "temperature": rng.uniform(0.5, 2, rows)}
    return [{}, *({name: value} for name, value in each.items()), {"temperature": 2.0}, each]


def units(logits, target, axis, reduction, weight=None, label_smoothing=0.0, z_loss=0.0, temperature=1.0, softcap=None):
    """The largest term of each row's gradient, of the shape of the logits: p and the target with their factors."""
    x = np.moveaxis(logits, axis, -1)
    t = np.asarray(temperature).astype(x.dtype)
    t = t[..., None] if np.ndim(t) and np.ndim(t) < x.ndim else np.moveaxis(t, axis, -1) if np.ndim(t) else t
    a, kept, count = reference.losses._targets(
        np.asarray(target), x.shape, axis, weight, -100, label_smoothing, x.dtype)
    s = x / t if softcap is None else softcap * np.tanh(x / softcap) / t
    p, lse = np.exp(log_softmax(s, -1)), logsumexp(s, -1, keepdims=True)
    p = np.where(kept[..., None], p, 0)
    total = abs(a).sum(-1, keepdims=True)
    if target.dtype.kind == "f":
        terms = np.maximum(abs(a), p * total)
    else:                   # 1 - p of the class keeps its digits: the terms are class * (1 - p) and smoothing * p
        terms = np.where(a == a.max(-1, keepdims=True), np.maximum(a * (1 - p), label_smoothing * total * p), a)
    terms = np.maximum(terms, 2 * z_loss * abs(lse) * p) / t / (count if reduction == "mean" else 1)
    return np.moveaxis(np.broadcast_to(np.where(kept[..., None], terms, 0).max(-1, keepdims=True), x.shape), -1, axis)


def check(logits, target, axis=-1, *, reduction="none", **options):
    """Loss, lse and gradient; returns them."""
    got = cross_entropy(logits, target, axis, reduction=reduction, return_lse=True, return_grad=True, **options)
    type_ = wide(logits.dtype)
    widened = {name: v.astype(type_) if name == "weight" else v for name, v in options.items()}
    x = logits.astype(type_)
    t = target if target.dtype.kind in "iu" else target.astype(type_)
    loss, lse, grad = reference.cross_entropy(
        x, t, axis, reduction=reduction, return_lse=True, return_grad=True, **widened)
    assert got[0].dtype == got[1].dtype == of_loss(logits.dtype)
    assert got[2].dtype == logits.dtype
    ulp_of_loss = 2.5 if "temperature" in options else 2
    assert_accurate(got[0], np.asarray(loss, type_), ulp_of_loss if reduction == "none" else 4)
    with np.errstate(all="ignore"):
        near = abs(np.asarray(lse)) + 1              # near 0 an lse cancels
        assert_accurate(got[1], np.asarray(lse, type_), 2, near)
        rows = np.broadcast_to(abs(grad).max(axis, keepdims=True), grad.shape)
        # p and the target are rounded before they cancel; a temperature costs up to |x - max| / temperature more
        ulp = 2 if target.dtype.kind in "iu" and "temperature" not in options else 3
        assert_gradient(got[2], grad, ulp, np.maximum(rows, units(x, t, axis, reduction, **widened)))
    return got


def assert_gradient(got, exact, ulp, terms):
    """Within `ulp` times the rounding unit of the largest term; 16-bit results: as rounded from a float32 that is."""
    slack = ulp * np.finfo(of_loss(got.dtype)).eps * terms
    low, high = exact - slack, exact + slack
    if got.dtype.itemsize == 2:
        low, high = (reference._round(v, got.dtype).astype(exact.dtype) for v in (low, high))
    fine = (low <= got.astype(exact.dtype)) & (got.astype(exact.dtype) <= high)
    assert fine.all(), float((abs(got.astype(exact.dtype) - exact) / slack).max()) * ulp


SHAPES = [((5, 37), -1), ((37, 5), 0), ((2, 10, 70), 1), ((3, 10, 4, 5), 1), ((600, 3), -1), ((3, 1000), -1),
          ((70, 10, 3), 1), ((90, 100), -1), ((70, 200), -1)]


# ---------------------------------------------------------------- accuracy


@pytest.mark.parametrize("shape, axis", SHAPES)
def test_every_option_alone_and_together(kernel, shape, axis):
    logits, classes, target = example(kernel.dtype, shape, axis)
    for options, reduction in itertools.product(options_of(kernel.dtype, shape, axis), REDUCTIONS):
        check(logits, classes, axis, reduction=reduction, **options)
        check(logits, target, axis, reduction=reduction, **options)


def test_every_length(kernel):
    for n in [*range(1, 70), 127, 129, 255, 300, 1023, 4097]:
        logits, classes, target = example(kernel.dtype, (3, n), ignored=0)
        check(logits, classes)
        check(logits, target, label_smoothing=0.1)
        check(np.ascontiguousarray(logits.T), classes, 0)


def test_terms_larger_than_their_sum_add_no_rounding(kernel):
    """A log p beyond a power of two is rounded to multiples of twice the ULP of a loss below it."""
    for seed in (42, 187, 206, 249):
        rng = np.random.default_rng(seed)
        for n, spread in ((2, 0.3), (5, 0.3), (3, 3), (5, 30), (70, 3)):
            with np.errstate(under="ignore"):
                logits = (spread * rng.normal(size=(400, n))).astype(kernel.dtype)
            target = rng.integers(0, n, 400)
            for axis, turned in ((-1, logits), (0, np.ascontiguousarray(logits.T))):
                loss = cross_entropy(turned, target, axis, label_smoothing=0.1, reduction="none")
                exact = reference.cross_entropy(logits.astype(wide(kernel.dtype)), target, label_smoothing=0.1,
                                                reduction="none")
                assert_accurate(loss, exact, 1.5)


def test_rows_are_computed_alike_whatever_is_beside_them(kernel):
    """Alone, in groups of dense rows, and in tiles."""
    for n in (3, 10, 40, 100, 200, 1100):
        logits, classes, target = example(kernel.dtype, (90, n))
        for t, more in ((classes, {}), (classes, {"label_smoothing": 0.1, "z_loss": 1e-3}), (target, {})):
            options = {"reduction": "none", "return_lse": True, "return_grad": True}
            whole = cross_entropy(logits, t, **options, **more)
            options |= more
            columns = cross_entropy(np.ascontiguousarray(logits.T), t if t is classes else t.T, 0, **options)
            parts = t.reshape(30, 3) if t is classes else t.reshape(30, 3, n).swapaxes(1, 2)
            three = cross_entropy(np.ascontiguousarray(logits.reshape(30, 3, n).swapaxes(1, 2)), parts, 1, **options)
            for i in range(2):
                assert_same_bits(columns[i], whole[i])
                assert_same_bits(three[i].reshape(90), whole[i])
            assert_same_bits(columns[2].T, whole[2])
            assert_same_bits(three[2].swapaxes(1, 2).reshape(90, n), whole[2])
            for i in (0, 7, 89):
                for one, other in zip(cross_entropy(logits[i], t[i], **options), whole, strict=True):
                    assert_same_bits(one, other[i])


@pytest.mark.parametrize(("n", "most"), [(10, 1.7), (64, 1.25), (1000, 1.25)])
def test_loss_and_gradient_take_no_longer_than_softmax_and_logsumexp(n, most):
    """It took 1.9 times as long for 10 classes, 1.3 times for more: rows waited for each other, and weights were
    computed twice. The limits are those of AVX2, on a Zen 3; other instruction sets have twice as much."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(256_000 // n, n)).astype(np.float32)
    classes, out = rng.integers(0, n, len(logits)), np.empty_like(logits)
    calls = [lambda: softmax(logits, -1, out=out), lambda: logsumexp(logits, -1),
             lambda: cross_entropy(logits, classes, grad_into=out)]
    with fastsoftmax.num_threads(1):
        softmax_, logsumexp_, loss = np.min([[timeit.timeit(call, number=1) for call in calls] for _ in range(60)], 0)
    assert loss < most * (softmax_ + logsumexp_) * (1 if _dispatch.isa() == "x86_64_v3" else 2)


@pytest.mark.parametrize("n", [32, 64])
def test_probabilities_take_no_longer_than_four_times_class_numbers(n):
    """It was 5 times: their shares were computed one by one. The limit is that of AVX2, as above."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(256_000 // n, n)).astype(np.float32)
    classes, target, out = rng.integers(0, n, len(logits)), softmax(logits[::-1], -1), np.empty_like(logits)
    calls = [lambda t=t: cross_entropy(logits, t, grad_into=out) for t in (classes, target)]
    with fastsoftmax.num_threads(1):
        of_classes, of_target = np.min([[timeit.timeit(call, number=1) for call in calls] for _ in range(60)], 0)
    assert of_target < 4 * of_classes * (1 if _dispatch.isa() == "x86_64_v3" else 2)


def test_the_fast_path_covers_ordinary_calls(monkeypatch):
    """And gives what the long way gives."""
    logits, classes, _ = example(np.float32, (6, 5, 7), 1)
    moved, rows = np.ascontiguousarray(logits.swapaxes(1, 2)), {"return_lse": True, "return_grad": True}
    calls = [((logits, classes), {"axis": 1, **rows}), ((logits, classes), {"axis": -2})]
    calls += [((moved, classes), options) for options in (
        {}, rows, {"axis": 2}, {"label_smoothing": 0.1, **rows}, {"z_loss": 1e-3, "return_grad": True},
        {"grad_into": np.empty_like(moved)})]
    calls += [((moved, np.where(classes < 0, 3, classes)), {"ignore_index": 3, **rows})]
    calls += [((moved, classes), {"reduction": reduction, **rows}) for reduction in REDUCTIONS]
    calls += [((moved[0, 0], np.asarray(2)), {"return_grad": True})]
    calls += [((moved.astype(dtype), classes), rows) for dtype in DTYPES]
    fast = []
    with monkeypatch.context() as patch:
        patch.setattr(_losses, "_of_any", None)
        for arrays, options in calls:
            got = cross_entropy(*arrays, **options)
            fast.append([np.copy(v) for v in got] if type(got) is tuple else [np.copy(got)])
    monkeypatch.setattr(_fastpath, "loss_operands", lambda *_: None)
    for (arrays, options), got in zip(calls, fast, strict=True):
        expected = cross_entropy(*arrays, **options)
        for one, other in zip(got, expected if type(expected) is tuple else [expected], strict=True):
            assert_same_bits(one, np.asarray(other))


def test_what_the_fast_path_does_not_take_is_computed_all_the_same():
    logits, classes, _ = example(np.float64, (6, 5))
    expected = cross_entropy(logits, classes, return_grad=True)
    for x, t in ((logits[::-1][::-1], classes), (logits, classes.astype(np.int8)), (logits, list(classes)),
                 (np.asfortranarray(logits), classes), (logits, np.repeat(classes, 2)[::2]),
                 (logits.astype(">f8"), classes.astype(">i8"))):
        for one, other in zip(cross_entropy(x, t, return_grad=True), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    into = logits.copy()
    overlapping = into.ravel()[:6].view(np.int64)           # class numbers in the memory of the gradient
    overlapping[:] = [0, 1, 2, 3, 4, 0]
    numbers = overlapping.copy()
    loss, grad = cross_entropy(logits, overlapping, grad_into=into)
    assert grad is into
    assert_same_bits(grad, cross_entropy(logits, numbers, return_grad=True)[1])
    with pytest.raises(IndexError, match=r"target\[4\] is class 5"):
        cross_entropy(logits, np.array([0, 1, 2, 3, 5, 6]))
    with pytest.raises(IndexError, match=r"target\[0\] is class -1"):
        cross_entropy(logits, np.array([-1, 1, 2, 3, 4, 0]), grad_into=into)
    assert np.isnan(cross_entropy(logits, np.full(6, -100)))


def test_a_long_row(kernel):
    for n in (32_003, 70_001):
        logits, classes, target = example(kernel.dtype, (1, n), ignored=0)
        check(logits, classes, z_loss=1e-4, label_smoothing=0.1)
        check(logits, target)


def test_threads_share_a_long_row(kernel, monkeypatch):
    """At lengths round those from which they do, and round those of the pieces; with gaps, and over the logits."""
    monkeypatch.setattr(_threads, "PARALLEL", 2)
    for n in (32_768, 98_303, 98_304, 98_305, 102_400, 102_401):
        logits, classes, target = example(kernel.dtype, (1, n), ignored=0)
        for t, options in ((classes, {"z_loss": 1e-4}), (target, {"label_smoothing": 0.1}), (classes - n - 1, {})):
            options = {"reduction": "none", "ignore_index": int(classes[0]) - n - 1, **options}
            found = []
            for threads in (1, 2, 5):
                with fastsoftmax.num_threads(threads):
                    found.append([cross_entropy(logits, t, **options)])
                    apart = np.repeat(logits, 2, -1)[:, ::2]
                    for x, into in ((logits, None), (apart, None), (copy := logits.copy(), copy)):
                        found.append(
                            cross_entropy(x, t, return_lse=True, return_grad=True, grad_into=into, **options))
            for got in found:
                for one, other in zip(got, found[1], strict=False):
                    assert_same_bits(one, other)


def test_losses_near_zero_keep_their_digits(kernel):
    for gap in (3, 5, 9, 12, 16, 20):
        loss, lse, grad = check(np.array([[gap, 0]]).astype(kernel.dtype), np.array([0]))
        np.testing.assert_allclose(float(loss[0]), np.log1p(np.exp(-gap)), rtol=2e-7)
        np.testing.assert_allclose(grad[0].astype(float), np.array([-1, 1]) / (1 + np.exp(gap)), rtol=kernel.eps,
                                   atol=6e-8 if kernel.tag == "f16" else 0)
    assert abs(float(cross_entropy(np.array([20, 0], kernel.dtype), 0)) / 2.061153620314381e-09 - 1) < 2.5e-7


@pytest.mark.parametrize("softcap", [2.0, 30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softcap(dtype, softcap):
    for shape, axis in SHAPES[:4]:
        logits, classes, target = example(dtype, shape, axis)
        for options in ({}, {"temperature": 0.5}, options_of(dtype, shape, axis)[-1]):
            for t in (classes, target):
                if dtype != np.float64:
                    check(logits, t, axis, softcap=softcap, **options)
                    continue
                got = cross_entropy(logits, t, axis, softcap=softcap, reduction="none", return_grad=True, **options)
                expected = reference.cross_entropy(
                    logits.astype("g"), t, axis, softcap=softcap, reduction="none", return_grad=True, **options)
                for one, other in zip(got, expected, strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-14)


def test_softcap_limits_infinite_logits():
    logits, cap = np.array([[-INF, 0, INF], [-INF, -INF, -INF]], np.float32), 3.0
    loss, lse, grad = cross_entropy(logits, [0, 1], softcap=cap, reduction="none", return_lse=True, return_grad=True)
    expected = cross_entropy(np.array([[-cap, 0, cap], [-cap] * 3]), [0, 1], reduction="none", return_lse=True)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-7)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-7)
    np.testing.assert_allclose(grad, [[0, np.exp(0 - expected[1][0]), 0], [0, 0, 0]], rtol=1e-6)


def test_gradients_are_differences():
    rng, step = np.random.default_rng(3), 1e-6
    x = rng.normal(size=(4, 6))
    options = {"weight": rng.uniform(0.5, 2, 6), "label_smoothing": 0.2, "z_loss": 0.1, "softcap": 2.0,
               "temperature": rng.uniform(0.5, 2, 4)}
    for target in (np.array([0, 5, -100, 2]), rng.dirichlet(np.ones(6), 4)):
        for reduction in ("mean", "sum"):
            _, grad = cross_entropy(x, target, reduction=reduction, return_grad=True, **options)
            for i in np.ndindex(x.shape):
                high, low = x.copy(), x.copy()
                high[i] += step
                low[i] -= step
                difference = cross_entropy(high, target, reduction=reduction, **options) - cross_entropy(
                    low, target, reduction=reduction, **options)
                assert abs(difference / (2 * step) - grad[i]) < 1e-8


# ---------------------------------------------------------------- meaning


LOGITS = np.array([[1.0, 2, 3], [0, 0, 0], [3, 1, 0], [0, 5, 0]])
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
CLASSES = np.array([2, 0, -100, 1])
WEIGHT = np.array([0.5, 2.0, 1.0])


def test_class_numbers_of_every_integer_type():
    expected = cross_entropy(LOGITS, [2, 0, 1, 1])
    for dtype in "bBhHiIlLqQ":
        assert cross_entropy(LOGITS, np.array([2, 0, 1, 1], dtype)) == expected
        assert cross_entropy(LOGITS, np.array([2, 0, 1, 1], np.dtype(dtype).newbyteorder())) == expected
    np.testing.assert_allclose(expected, -np.log(P[range(4), [2, 0, 1, 1]]).mean(), rtol=1e-14)


def test_mean_divides_by_the_weights_of_the_rows_kept():
    kept = [0, 1, 3]
    rows = -np.log(P[kept, CLASSES[kept]])
    np.testing.assert_allclose(cross_entropy(LOGITS, CLASSES), rows.mean(), rtol=1e-14)
    np.testing.assert_allclose(cross_entropy(LOGITS, CLASSES, reduction="sum"), rows.sum(), rtol=1e-14)
    weights = WEIGHT[CLASSES[kept]]
    loss, grad = cross_entropy(LOGITS, CLASSES, weight=WEIGHT, return_grad=True)
    np.testing.assert_allclose(loss, (weights * rows).sum() / weights.sum(), rtol=1e-14)
    expected = (P[kept] - np.eye(3)[CLASSES[kept]]) * weights[:, None] / weights.sum()
    np.testing.assert_allclose(grad[kept], expected, rtol=1e-13)
    assert not grad[2].any()


def test_probabilities_are_averaged_over_all_rows():
    target = np.array([[0, 0, 1], [0.5, 0.5, 0], [0.2, 0.3, 0.5], [0, 1, 0]])
    rows = -(WEIGHT * target * np.log(P)).sum(1)
    np.testing.assert_allclose(cross_entropy(LOGITS, target, weight=WEIGHT, ignore_index=1), rows.mean(), rtol=1e-14)
    np.testing.assert_allclose(cross_entropy(LOGITS, target, weight=WEIGHT, reduction="none"), rows, rtol=1e-14)
    for dtype in DTYPES:                          # converted
        got = cross_entropy(LOGITS.astype(np.float32), target.astype(dtype), weight=WEIGHT.astype(dtype))
        np.testing.assert_allclose(got, rows.mean(), rtol=1e-2)


def test_a_probability_of_zero_contributes_nothing(kernel):
    for n in (3, 20, 700):
        logits, target = np.zeros((2, n), kernel.dtype), np.zeros((2, n), of_loss(kernel.dtype))
        logits[:, 2:] = -INF
        target[:, 0] = 1
        loss, grad = cross_entropy(logits, target, reduction="none", return_grad=True)
        np.testing.assert_allclose(loss, np.log(2), rtol=3e-7)
        np.testing.assert_array_equal(grad[:, :2].astype(float), [[-0.5, 0.5]] * 2)
        assert not grad[:, 2:].any()


def test_ignored_rows_are_zero_whatever_they_hold(kernel):
    for n, bad in itertools.product((3, 20, 700), (NAN, INF, -INF)):
        logits, classes, _ = example(kernel.dtype, (40, n), ignored=0)
        expected = cross_entropy(logits[1:], classes[1:], return_grad=True, label_smoothing=0.1, z_loss=0.1)
        for softcap in (None, 5.0):
            logits[0], classes[0] = bad, 7777
            loss, lse, grad = cross_entropy(logits, classes, ignore_index=7777, label_smoothing=0.1, z_loss=0.1,
                                            softcap=softcap, return_lse=True, return_grad=True)
            assert not grad[0].any()
            assert np.isfinite(lse[1:]).all()
            if softcap is None:
                assert loss == expected[0]
                assert_same_bits(grad[1:], expected[1])
                assert np.isnan(lse[0]) if np.isnan(bad) else lse[0] == bad
            got = cross_entropy(logits, classes, ignore_index=7777, reduction="none", softcap=softcap)
            assert got[0] == 0
            assert np.isfinite(got).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_any_size(kernel, sign):
    """Also beyond the range in which logarithms are measured from 0."""
    largest = float(ml_dtypes.finfo(kernel.dtype).max)
    rtol = 1e-3 if kernel.tag == "f64" else 8 * kernel.eps      # differences of the oracle's logits are rounded too
    for n, top in itertools.product((3, 40, 700), (largest, largest / 3, 1e4)):
        logits = np.full((5, n), -sign * top).astype(kernel.dtype)
        logits[:, 1] = sign * top
        logits[:, 2] = (sign * top * (1 - 4 * kernel.eps))
        classes = np.array([0, 1, 2, 1, -100])
        for options in ({}, {"temperature": np.array([1.0, 2, 3, 2, 1])}):
            for turned, axis in ((logits, 1), (np.ascontiguousarray(logits.T), 0)):
                got = cross_entropy(
                    turned, classes, axis, reduction="none", return_lse=True, return_grad=True, **options)
                with np.errstate(all="ignore"):
                    expected = reference.cross_entropy(turned.astype(np.longdouble), classes, axis, reduction="none",
                                                       return_lse=True, return_grad=True, **options)
                    finite = [np.asarray(v).astype(one.dtype) for v, one in zip(expected, got, strict=True)]
                    for one, other in zip(got, finite, strict=True):
                        np.testing.assert_allclose(one.astype("g"), other.astype("g"), rtol=rtol, atol=1e-6)


def test_rows_that_are_nan(kernel):
    for n in (3, 40, 700):
        logits = np.zeros((3, n), kernel.dtype)
        logits[0, 1], logits[1, 1], logits[2] = NAN, INF, -INF
        for turned, axis in ((logits, 1), (np.ascontiguousarray(logits.T), 0)):
            loss, lse, grad = cross_entropy(
                turned, [0, 0, 0], axis, reduction="none", return_lse=True, return_grad=True)
            assert np.isnan(loss).all()
            assert np.isnan(grad).all()
            np.testing.assert_array_equal(lse, [NAN, INF, -INF])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_over_nothing(dtype):
    logits = np.full((3, 4), NAN, dtype)
    zeros = np.zeros((3, 4), dtype)
    for x, target, options in ((logits, [-100] * 3, {}), (zeros, [0] * 3, {"weight": np.array([0.0, 1, 1, 1])}),
                               (logits, [0] * 3, {"weight": np.array([0.0, 1, 1, 1])}),
                               (zeros[:0], np.zeros(0, int), {}), (zeros[:0], np.zeros((0, 4)), {})):
        loss, grad = cross_entropy(x, target, return_grad=True, **options)
        assert np.isnan(loss)
        assert grad.shape == x.shape
        assert not grad.any()
    assert cross_entropy(zeros[:0], np.zeros(0, int), reduction="sum") == 0
    assert cross_entropy(logits, [-100] * 3, reduction="sum") == 0
    assert cross_entropy(zeros[:0], np.zeros(0, int), reduction="none").shape == (0,)
    loss, grad = linear_cross_entropy(zeros[:, :2], zeros[:, :2], [-100] * 3, return_grad=True)
    assert np.isnan(loss)
    assert not any(dx.any() for dx in grad)


def test_z_loss_is_of_every_row_kept():
    lse = np.log(np.exp(LOGITS).sum(1))
    for weight in (None, WEIGHT):
        plain = cross_entropy(LOGITS, CLASSES, weight=weight, reduction="none")
        got = cross_entropy(LOGITS, CLASSES, weight=weight, reduction="none", z_loss=0.5)
        np.testing.assert_allclose(got - plain, 0.5 * lse**2 * (CLASSES >= 0), rtol=1e-12)
    divisor = WEIGHT[CLASSES[[0, 1, 3]]].sum()
    got = cross_entropy(LOGITS, CLASSES, weight=WEIGHT, z_loss=0.5) - cross_entropy(LOGITS, CLASSES, weight=WEIGHT)
    np.testing.assert_allclose(got, 0.5 * (lse**2)[[0, 1, 3]].sum() / divisor, rtol=1e-12)


def test_temperature_of_each_row():
    t = np.array([0.5, 1, 2, 4])
    expected = cross_entropy(LOGITS / t[:, None], CLASSES, reduction="none", return_grad=True, return_lse=True)
    for temperature in (t, t[:, None], t.tolist()):
        got = cross_entropy(LOGITS, CLASSES, temperature=temperature, reduction="none", return_grad=True,
                            return_lse=True)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-14)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-14)
        np.testing.assert_allclose(got[2], expected[2] / t[:, None], rtol=1e-13)
    got = cross_entropy(LOGITS.T, CLASSES, 0, temperature=t, reduction="none")
    np.testing.assert_allclose(got, expected[0], rtol=1e-14)


def test_softcap_comes_before_temperature():
    x = np.array([[8.0, -3, 1]])
    got = cross_entropy(x, [1], softcap=4.0, temperature=0.5)
    np.testing.assert_allclose(got, cross_entropy(4 * np.tanh(x / 4) / 0.5, [1]), rtol=1e-14)


def test_results_come_in_this_order():
    loss = cross_entropy(LOGITS, CLASSES)
    assert type(loss) is np.float64
    lse, grad = np.log(np.exp(LOGITS).sum(1)), np.empty_like(LOGITS)
    for n, options in ((2, {"return_lse": True}), (2, {"return_grad": True}), (2, {"grad_into": grad}),
                       (3, {"return_lse": True, "return_grad": True}), (3, {"return_lse": True, "grad_into": grad})):
        got = cross_entropy(LOGITS, CLASSES, **options)
        assert len(got) == n
        assert got[0] == loss
        if "return_lse" in options:
            np.testing.assert_allclose(got[1], lse, rtol=1e-15)
        if n == 3 or "return_lse" not in options:
            assert got[-1].shape == LOGITS.shape
        if "grad_into" in options:
            assert got[-1] is grad
    for dtype in DTYPES:
        loss, lse, grad = cross_entropy(np.zeros(3, dtype), 1, return_lse=True, return_grad=True)
        assert loss.dtype == lse.dtype == of_loss(dtype)
        assert loss.shape == lse.shape == ()
        assert (grad.shape, grad.dtype) == ((3,), dtype)
        assert type(cross_entropy(np.zeros(3, dtype), 1, reduction="none")) is of_loss(dtype).type


def test_integers_and_long_double():
    for dtype in (np.int8, np.int64, bool):
        x = LOGITS.astype(dtype)
        loss, grad = cross_entropy(x, CLASSES, return_grad=True)
        exact = reference.cross_entropy(x, CLASSES, return_grad=True)
        np.testing.assert_allclose(loss, exact[0], rtol=1e-6)
        np.testing.assert_allclose(grad.astype(float), exact[1].astype(float), rtol=1e-3, atol=1e-4)
        assert grad.dtype == exact[1].dtype
    x, into = LOGITS.astype(np.longdouble), np.zeros((4, 3), np.longdouble)
    options = {"weight": WEIGHT, "z_loss": 0.1, "temperature": np.array([1.0, 2, 3, 4])}
    got = cross_entropy(x, CLASSES, return_lse=True, grad_into=into, **options)
    expected = reference.cross_entropy(x, CLASSES, return_lse=True, return_grad=True, **options)
    assert got[2] is into
    for one, other in zip(got, expected, strict=True):
        assert_same_value(one, other)
    assert cross_entropy(x, CLASSES).dtype == np.longdouble
    extreme = cross_entropy(LOGITS, CLASSES, temperature=1e31, return_grad=True)
    for one, other in zip(extreme, reference.cross_entropy(LOGITS, CLASSES, temperature=1e31, return_grad=True),
                          strict=True):
        assert_same_value(one, other)


def assert_same_value(one, other):
    assert np.asarray(one).dtype == np.asarray(other).dtype
    np.testing.assert_array_equal(one, other)


def test_onnx_definitions():
    """SoftmaxCrossEntropyLoss and NegativeLogLikelihoodLoss, as ONNX's node tests compute them along axis 1."""
    rng = np.random.default_rng(0)
    for shape in ((3, 5), (3, 5, 2), (3, 5, 6, 6), (2, 3, 2, 2, 2)):
        x = rng.random(shape, np.float32)
        labels = rng.integers(0, shape[1], (shape[0], *shape[2:]))
        for weight, ignore_index, reduction in itertools.product(
                (None, np.float32([0.9, 0.7, 0.8, 0.9, 0.9])[:shape[1]]), (None, 0, 2), REDUCTIONS):
            shifted = x - x.max(1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
            picked = -np.take_along_axis(log_p, labels[:, None], 1)[:, 0]
            gather = np.ones_like(picked) if weight is None else weight[labels]
            if ignore_index is not None:
                gather = np.where(labels == ignore_index, 0, gather)
            loss = picked * gather
            expected = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / gather.sum()}[reduction]
            options = {} if ignore_index is None else {"ignore_index": ignore_index}
            got = cross_entropy(x, labels, 1, weight=weight, reduction=reduction, **options)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


# The shapes of PyTorch's own samples (OpInfo of cross_entropy), classes along axis 1, then a row and narrow rows.
TORCH_SHAPES = ((2, 3), (5, 3), (5, 3, 2), (5, 3, 4, 2), (4, 50), (3, 70, 6))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", TORCH_SHAPES)
def test_agrees_with_torch(kernel, shape, reduction):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: not compared with it")
    real = of_loss(kernel.dtype)                        # of 16-bit logits PyTorch gets the same numbers in float32
    logits, classes, probabilities = example(kernel.dtype, shape, 1, ignored=0.3)
    classes.flat[0] = 1                                 # a mean over nothing has a test of its own
    weight = np.random.default_rng(0).uniform(0.2, 2, shape[1]).astype(real)
    for use_weight, smoothing, ignored in itertools.product((False, True), (0.0, 0.3), (None, -100, 2)):
        options = {"label_smoothing": smoothing, "reduction": reduction}
        theirs = dict(options)
        if use_weight:
            options["weight"], theirs["weight"] = weight, torch.tensor(weight)
        if ignored is None:                             # PyTorch takes no ignore_index beside probabilities
            target, tensor = probabilities, torch.tensor(probabilities)
        else:
            target = np.where(classes == -100, ignored, classes)
            tensor = torch.tensor(target)
            options["ignore_index"] = theirs["ignore_index"] = ignored
        x = torch.tensor(logits.astype(real), requires_grad=True)
        expected = torch.nn.functional.cross_entropy(x, tensor, **theirs)
        expected.sum().backward()
        loss, grad = cross_entropy(logits, target, 1, return_grad=True, **options)
        assert loss.dtype == real
        for one, other, eps in ((loss, expected.detach(), np.finfo(real).eps), (grad, x.grad, kernel.eps)):
            np.testing.assert_allclose(one.astype(real), other.numpy(), atol=20 * eps, rtol=20 * eps)


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("shape, axis", [((9, 70), -1), ((9, 70), 0), ((3, 5000), -1)])
def test_layouts_give_the_same_bits(kernel, shape, axis):
    logits, classes, target = example(kernel.dtype, shape, axis)
    for t, options in ((classes, {}), (target, {"label_smoothing": 0.1}), (classes, {"softcap": 5.0})):
        def call(x, t, into=None, options=options):
            return cross_entropy(x, t, axis, reduction="none", return_lse=True, return_grad=True, grad_into=into,
                                 **options)

        expected = call(logits, t)
        for layout in LAYOUTS.values():
            for target_ in (t, layout(t) if t.ndim == 2 else t[::-1].copy()[::-1]):
                for one, other in zip(call(layout(logits), target_), expected, strict=True):
                    assert_same_bits(one, other)
            into = layout(np.zeros_like(logits))
            into.flags.writeable = True
            got = call(logits, t, into)[2]
            assert got is into
            assert_same_bits(got.astype(kernel.dtype), expected[2])


def test_dimensions_in_any_order(kernel):
    logits, classes, target = example(kernel.dtype, (4, 10, 6, 70), 1)
    expected = cross_entropy(logits, classes, 1, reduction="none", return_lse=True, return_grad=True)
    soft = cross_entropy(logits, target, 1, reduction="none", return_lse=True, return_grad=True)
    for order in itertools.permutations(range(4)):
        def turned(a, order=order):
            return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))

        for t, of_t in ((classes, expected), (turned(target), soft)):
            got = cross_entropy(turned(logits), t, 1, reduction="none", return_lse=True, return_grad=True)
            for one, other in zip(got, of_t, strict=True):
                assert_same_bits(one, other)


def test_threads_neighbours_and_nontemporal_stores_change_no_bit(kernel):
    for shape, axis in (((7, 40_000), -1), ((2000, 10), -1), ((300, 400), -1), ((10, 9000), 0)):
        logits, classes, _ = example(kernel.dtype, shape, axis)
        found = []
        for threads in (1, 2, 5):
            with fastsoftmax.num_threads(threads):
                found.append(cross_entropy(logits, classes, axis, return_lse=True, return_grad=True))
        with _softmax.nontemporal_from(0):
            found.append(cross_entropy(logits, classes, axis, return_lse=True, return_grad=True))
        for other in found[1:]:
            for one, first in zip(other, found[0], strict=True):
                assert_same_bits(one, first)
        if axis == -1:
            alone = cross_entropy(logits[2], classes[2], return_lse=True, reduction="sum", return_grad=True)
            rows = cross_entropy(logits, classes, return_lse=True, reduction="none", return_grad=True)
            for one, other in zip(alone, rows, strict=True):
                assert_same_bits(one, other[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_grad_into_the_logits_and_partly_over_an_operand(dtype):
    logits, classes, target = example(dtype, (6, 40))
    for t, options in itertools.product((classes, target), ({}, {"softcap": 5.0}, {"label_smoothing": 0.1})):
        expected = cross_entropy(logits, t, return_grad=True, **options)
        x = logits.copy()
        loss, grad = cross_entropy(x, t, grad_into=x, **options)
        assert grad is x
        assert loss == expected[0]
        assert_same_bits(x, expected[1])
        for shift in (1, 40):
            memory = np.zeros(280, dtype)
            x = memory[shift:shift + 240].reshape(6, 40)
            x[...] = logits
            into = memory[:240].reshape(6, 40)
            assert cross_entropy(x, t, grad_into=into, **options)[0] == expected[0]
            assert_same_bits(into, expected[1])
        x = logits.copy()
        cross_entropy(x, t, grad_into=x[::-1], **options)
        assert_same_bits(x[::-1].copy(), expected[1])
    if dtype == of_loss(dtype):                   # over the probabilities, and over the weights
        expected = cross_entropy(logits, target, return_grad=True)[1]
        into = target.copy()
        cross_entropy(logits, into, grad_into=into)
        assert_same_bits(into, expected)
        weight = np.linspace(0.5, 2, 40).astype(dtype)
        expected = cross_entropy(logits, classes, weight=weight, return_grad=True)[1]
        into[2] = weight
        cross_entropy(logits, classes, weight=into[2], grad_into=into)
        assert_same_bits(into, expected)
    expected = cross_entropy(logits, np.abs(classes) % 40, return_grad=True)[1]
    memory = np.zeros((6, 40), dtype)
    over = memory.reshape(-1).view(np.uint8)[:6]
    over[...] = np.abs(classes) % 40
    cross_entropy(logits, over, grad_into=memory)
    assert_same_bits(memory, expected)


def test_class_numbers_are_checked_before_anything_is_written():
    into = np.full((4, 3), 7.0)
    for bad, place in (([0, 3, 1, 1], r"target\[1\] is class 3"), ([0, 1, -1, 9], r"target\[2\] is class -1"),
                       (np.array([0, 1, 2**63, 1], np.uint64), r"target\[2\] is class 9223372036854775808")):
        with pytest.raises(IndexError, match=place + r".* from 0 to 2 .*-100"):
            cross_entropy(LOGITS, bad, grad_into=into)
        with pytest.raises(IndexError, match=place):
            linear_cross_entropy(LOGITS[:, :2], LOGITS[:3, :2], bad, return_grad=True)
    with pytest.raises(IndexError, match=r"target\[1, 2\] is class 5"):
        cross_entropy(np.zeros((2, 5, 3)), [[0, 1, 2], [3, 4, 5]], 1)
    with pytest.raises(IndexError, match="target is class 5"):
        cross_entropy(np.zeros(3), 5)
    assert np.all(into == 7)
    cross_entropy(LOGITS, [0, 3, 1, 1], ignore_index=3, grad_into=into)


def peak_of(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory():
    """The gradient; in place nothing; and buffers of a few rows where operands are staged."""
    rng = np.random.default_rng(0)
    x, classes = rng.normal(size=(2000, 1000)).astype(np.float32), rng.integers(0, 1000, 2000)
    with fastsoftmax.num_threads(1):
        assert peak_of(lambda: cross_entropy(x, classes)) < 0.05 * x.nbytes
        assert peak_of(lambda: cross_entropy(x, classes, return_grad=True)) < 1.05 * x.nbytes
        assert peak_of(lambda: cross_entropy(x, classes, grad_into=x)) < 0.05 * x.nbytes
        large = rng.normal(size=(8000, 4000)).astype(np.float32)
        classes = rng.integers(0, 4000, 8000)
        assert peak_of(lambda: cross_entropy(large, classes, softcap=5.0, grad_into=large)) < 0.15 * large.nbytes
        swapped = large.view(large.dtype.newbyteorder())
        assert peak_of(lambda: cross_entropy(swapped, classes, grad_into=swapped)) < 0.1 * large.nbytes


# ---------------------------------------------------------------- linear_cross_entropy


def layer(dtype, rows=50, classes=37, width=7, seed=0):
    rng = np.random.default_rng([seed, rows, classes])
    hidden, weight = rng.normal(size=(rows, width)).astype(dtype), rng.normal(size=(classes, width)).astype(dtype)
    bias = rng.normal(size=classes).astype(dtype)
    target = np.where(rng.random(rows) < 0.2, -100, rng.integers(0, classes, rows))
    return hidden, weight, bias, target


OPTIONS = [{}, {"weight": np.linspace(0.5, 2, 37)}, {"label_smoothing": 0.1}, {"z_loss": 0.05}, {"softcap": 3.0},
           {"ignore_index": 5}, {"weight": np.linspace(0.5, 2, 37), "label_smoothing": 0.1, "z_loss": 0.05,
                                 "softcap": 3.0}]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("chunk", [None, 100])
def test_linear_is_cross_entropy_of_a_product(monkeypatch, dtype, has_bias, chunk):
    if chunk is not None:                         # several chunks, and several products of a weight's gradient
        for name, value in (("MIN_CHUNK_ELEMENTS", chunk), ("MAX_CHUNK_ELEMENTS", chunk), ("MIN_CHUNK_ROWS", 3),
                            ("PRODUCT_ELEMENTS", 70)):
            monkeypatch.setattr(_losses, name, value)
    with np.errstate(all="ignore"):
        hidden, weight, bias, target = layer(dtype)
    bias = bias if has_bias else None
    soft = np.random.default_rng(1).dirichlet(np.ones(37), 50)
    tolerance = {2: 2e-2 if dtype == ml_dtypes.bfloat16 else 2e-3, 4: 2e-5, 8: 1e-12}[np.dtype(dtype).itemsize]
    for options, reduction in itertools.product(OPTIONS, REDUCTIONS):
        for t in (np.where(target < 0, 5, target) if "ignore_index" in options else target, soft):
            loss, grads = linear_cross_entropy(
                hidden, weight, t, linear_bias=bias, reduction=reduction, return_grad=True, **options)
            type_ = wide(dtype)
            expected, exact = reference.linear_cross_entropy(
                hidden.astype(type_), weight.astype(type_), t,
                linear_bias=None if bias is None else bias.astype(type_), reduction=reduction, return_grad=True,
                **options)
            assert loss.dtype == of_loss(dtype)
            np.testing.assert_allclose(loss, np.asarray(expected).astype(float), rtol=max(1e-12, min(tolerance, 1e-5)),
                                       atol=1e-6 if dtype != np.float64 else 1e-14)
            assert len(grads) == 2 + has_bias
            for got, dx, x in zip(grads, exact, (hidden, weight, bias), strict=False):
                assert got.dtype == x.dtype
                np.testing.assert_allclose(got.astype(float), dx.astype(float), rtol=tolerance,
                                           atol=tolerance * float(abs(dx).max()))
            assert linear_cross_entropy(hidden, weight, t, linear_bias=bias, reduction=reduction, **options
                                        ).tobytes() == loss.tobytes()


def test_linear_rows_that_are_ignored_add_nothing():
    hidden, weight, bias, target = layer(np.float32)
    hidden[target < 0] = NAN
    loss, grads = linear_cross_entropy(hidden, weight, target, linear_bias=bias, return_grad=True)
    clean = linear_cross_entropy(np.nan_to_num(hidden), weight, target, linear_bias=bias, return_grad=True)
    assert loss == clean[0]
    for one, other in zip(grads, clean[1], strict=True):
        assert_same_bits(one, other)
    assert not grads[0][target < 0].any()
    rows = linear_cross_entropy(hidden, weight, target, reduction="none")
    assert not rows[target < 0].any()


def test_linear_layouts_give_the_same_bits():
    hidden, weight, bias, target = layer(np.float32)
    expected = linear_cross_entropy(hidden, weight, target, linear_bias=bias, return_grad=True)
    for layout in LAYOUTS.values():
        got = linear_cross_entropy(layout(hidden), layout(weight), target, linear_bias=layout(bias[:, None])[:, 0],
                                   return_grad=True)
        assert got[0] == expected[0]
        for one, other in zip(got[1], expected[1], strict=True):
            assert_same_bits(one, other)


def test_linear_inputs_of_different_dtypes():
    """Computed in the widest, and each gradient in its input's dtype."""
    hidden, weight, bias, target = layer(np.float64)
    for dtypes in itertools.product((np.float16, np.float32, np.float64), repeat=3):
        with np.errstate(all="ignore"):
            inputs = [a.astype(t) for a, t in zip((hidden, weight, bias), dtypes, strict=True)]
        loss, grads = linear_cross_entropy(*inputs[:2], target, linear_bias=inputs[2], return_grad=True)
        assert loss.dtype == of_loss(dtypes[0])
        assert [dx.dtype for dx in grads] == [np.dtype(t) for t in dtypes]
        exact = reference.linear_cross_entropy(*(a.astype("g") for a in inputs[:2]), target,
                                               linear_bias=inputs[2].astype("g"))
        np.testing.assert_allclose(loss, float(exact), rtol=1e-6)


def test_linear_of_long_double_and_without_rows_or_columns():
    hidden, weight, bias, target = layer(np.longdouble)
    got = linear_cross_entropy(hidden, weight, target, linear_bias=bias, return_grad=True)
    expected = reference.linear_cross_entropy(hidden, weight, target, linear_bias=bias, return_grad=True)
    assert got[0] == expected[0]
    for one, other in zip(got[1], expected[1], strict=True):
        np.testing.assert_array_equal(one, other)
    loss, grads = linear_cross_entropy(np.zeros((0, 3)), np.ones((4, 3)), np.zeros(0, int), return_grad=True)
    assert np.isnan(loss)
    assert [dx.shape for dx in grads] == [(0, 3), (4, 3)]
    loss, grads = linear_cross_entropy(np.zeros((2, 0)), np.ones((4, 0)), [0, 1], return_grad=True)
    np.testing.assert_allclose(loss, np.log(4))
    assert [dx.shape for dx in grads] == [(2, 0), (4, 0)]


def test_linear_memory_is_a_tenth_of_the_logits():
    rng = np.random.default_rng(0)
    hidden, weight = rng.normal(size=(4096, 8)).astype(np.float32), rng.normal(size=(8000, 8)).astype(np.float32)
    target = rng.integers(0, 8000, 4096)
    with fastsoftmax.num_threads(1):
        peak = peak_of(lambda: linear_cross_entropy(hidden, weight, target, return_grad=True))
    assert peak < 0.1 * 4096 * 8000 * 4
