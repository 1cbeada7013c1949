"""softmax_backward, log_softmax_backward, logsumexp_backward, softmax_entropy_backward: each property for every kernel.

The oracle is the reference in a wider type, which test_reference_gradients.py compares with differences. Errors are
counted in ULP of the largest term of a row, since its elements cancel.
"""

import itertools
import timeit
import tracemalloc
import warnings

import ml_dtypes
import numpy as np
import pytest
from helpers import LAYOUTS, assert_accurate, assert_same_bits, bits, tail_lengths, wide

import fastsoftmax
from fastsoftmax import (
    _dispatch,
    _softmax,
    _threads,
    causal_softmax,
    log_softmax,
    log_softmax_backward,
    logsumexp,
    logsumexp_backward,
    reference,
    softmax,
    softmax_backward,
    softmax_entropy,
    softmax_entropy_backward,
)

INF, NAN = np.inf, np.nan
FULL = ("softmax_backward", "log_softmax_backward")
ALL = (*FULL, "logsumexp_backward", "softmax_entropy_backward")
full = pytest.mark.parametrize("name", FULL)
every = pytest.mark.parametrize("name", ALL)
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.fixture(autouse=True)
def _nothing_warns():
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def operands(name, dtype, shape, axis=-1, temperature=1.0, seed=0, hidden=True):
    """(grad, y or what stands for it[, lse]) in this dtype, a tenth of the weights 0, and NaN in grad there."""
    rng = np.random.default_rng([seed, *shape])
    x = 2 * rng.normal(size=shape)
    hide = rng.random(shape) < 0.1 if hidden and np.prod(shape) > 2 else np.zeros(shape, bool)
    hide &= ~hide.all(axis, keepdims=True)
    kept = np.sum(np.zeros(shape), axis).shape
    with np.errstate(all="ignore"):
        grad = rng.normal(size=shape).astype(dtype)
        if name == "softmax_backward":
            grad[hide] = NAN
            return grad, np.asarray(softmax(x, axis, where=~hide, temperature=temperature)).astype(dtype)
        if name == "log_softmax_backward":
            grad[hide] = NAN
            return grad, np.asarray(log_softmax(x, axis, where=~hide, temperature=temperature)).astype(dtype)
        x = np.where(hide, -INF, x).astype(dtype)
        grad = np.asarray(rng.normal(size=kept).astype(dtype))
        return (grad, x, logsumexp(x, axis)) if name == "logsumexp_backward" else (grad, x)


def call(name, arrays, axis=-1, module=fastsoftmax, **options):
    return getattr(module, name)(*arrays, axis, **options)


def exact(name, arrays, axis=-1, **options):
    """(gradient, largest term of each row), in the wide type."""
    grad, y, *lse = (np.asarray(a).astype(wide(arrays[1].dtype)) for a in arrays)
    with np.errstate(all="ignore"):
        dx = np.asarray(call(name, (grad, y, *lse), axis, reference, **options))
        t = np.asarray(options.get("temperature", 1.0)).astype(y.dtype)
        if name == "softmax_backward":
            terms = np.where(y == 0, 0, y * grad) / t
        elif name == "log_softmax_backward":
            shown = np.where(y == -INF, 0, grad)
            terms = np.maximum(abs(shown), np.exp(y) * abs(shown.sum(axis, keepdims=True))) / t
        elif name == "softmax_entropy_backward":     # a rounded log weight is off by half an ULP of itself
            where = {key: options[key] for key in ("where", "temperature") if key in options}
            logs = np.nan_to_num(reference.log_softmax(y, axis, **where), neginf=-800, nan=0)
            entropy = np.asarray(reference.softmax_entropy(y, axis, **where)).reshape(y.sum(axis, keepdims=True).shape)
            terms = np.exp(logs) * (1 + abs(logs)) * (abs(logs) + entropy) / t * grad.reshape(entropy.shape)
        else:
            terms = dx
        largest = abs(terms).max(axis, keepdims=True, initial=0)
        return dx, np.broadcast_to(largest, dx.shape)


def check(name, got, arrays, axis=-1, ulp=2, **options):
    dx, terms = exact(name, arrays, axis, **options)
    assert got.dtype == arrays[1].dtype
    assert_accurate(got, dx, ulp, terms)


# ---------------------------------------------------------------- accuracy


@every
def test_every_tail_length(kernel, name):
    for n in tail_lengths(kernel.lanes)[:-2]:
        arrays = operands(name, kernel.dtype, (n,), seed=1)
        check(name, call(name, arrays), arrays)


@every
def test_every_axis(kernel, name):
    for shape in ((3, 7), (37, 5), (5, 37), (2, 70, 3), (3, 4, 65), (2, 3, 4, 5), (1, 1000, 33)):
        axes = [*range(-len(shape), len(shape)), None, (), *itertools.permutations(range(len(shape)), 2)]
        for axis in axes:
            arrays = operands(name, kernel.dtype, shape, axis)
            check(name, call(name, arrays, axis), arrays, axis)


@every
def test_many_terms(kernel, name):
    """Where sums without their rounding errors would be off by many ULP."""
    for shape, axis in (((2, 40_000), -1), ((40_000, 17), 0)):
        arrays = operands(name, kernel.dtype, shape, axis)
        check(name, call(name, arrays, axis), arrays, axis)


def test_terms_that_cancel(kernel):
    """Weights of nearly one gradient: the sum is all but the gradient itself."""
    with np.errstate(under="ignore"):
        y = softmax(np.random.default_rng(0).normal(size=(3, 999)), -1).astype(kernel.dtype)
    grad = (1 + np.random.default_rng(1).normal(size=y.shape) / 64).astype(kernel.dtype)
    check("softmax_backward", softmax_backward(grad, y, -1), (grad, y))


def test_a_large_weight_multiplies_the_sum(kernel):
    """Its gradient of 0 leaves small terms, of whose sum an error would be much in units of the largest. Products of
    large gradients could not be split in halves."""
    rng = np.random.default_rng(7)
    for n, scale in itertools.product((40, 1003, 5001), (1, 1e3 if kernel.tag == "f16" else 1e37)):
        y = rng.uniform(0.2, 1, (3, n)) / n
        y[:, 1] = 0.5
        grad = scale * rng.uniform(0.5, 1.5, size=y.shape)
        grad[:, 1] = 0
        with np.errstate(under="ignore"):
            y, grad = y.astype(kernel.dtype), grad.astype(kernel.dtype)
        for axis, turned in ((1, lambda a: a), (0, lambda a: np.ascontiguousarray(a.T))):
            arrays = turned(grad), turned(y)
            check("softmax_backward", softmax_backward(*arrays, axis), arrays, axis)


@pytest.mark.parametrize("name", [*FULL, "softmax_entropy_backward"])
def test_temperatures(kernel, name):
    """One for all, or one a row: each acts, and on its row alone."""
    for shape, axis in (((5, 37), -1), ((5, 37), 0), ((2, 3, 70), (0, 2))):
        of_rows = np.random.default_rng(2).uniform(0.3, 3, np.zeros(shape).sum(axis, keepdims=True).shape)
        for temperature in (0.5, 0.7, 3, of_rows):
            arrays = operands(name, kernel.dtype, shape, axis, temperature)
            got = call(name, arrays, axis, temperature=temperature)
            check(name, got, arrays, axis, ulp=2.5, temperature=temperature)
            assert not np.array_equal(bits(got), bits(call(name, arrays, axis)))


@pytest.mark.parametrize("name", ALL[2:])
def test_where(kernel, name):
    for shape, axis in (((5, 37), -1), ((37, 5), 0), ((2, 3, 70), (0, 2))):
        where = np.random.default_rng(3).random(shape) < 0.7
        where[(0,) * (len(shape) - 1)] = False
        grad, x, *_ = operands(name, kernel.dtype, shape, axis)
        x[~where] = NAN
        arrays = (grad, x, logsumexp(x, axis, where=where))[:3 if name == "logsumexp_backward" else 2]
        got = call(name, arrays, axis, where=where)
        assert not got[~where].any()
        check(name, got, arrays, axis, where=where)


def test_gradients_are_differences():
    """By the functions themselves, in float64."""
    x, step = np.random.default_rng(4).normal(size=(3, 7)), 1e-6
    c, d, t = np.random.default_rng(5).normal(size=(3, 7)), np.array([1.0, -2, 3]), 0.7
    for loss, dx in (
        (lambda x: (c * softmax(x, 1, temperature=t)).sum(), softmax_backward(c, softmax(x, 1, temperature=t), 1,
                                                                               temperature=t)),
        (lambda x: (c * log_softmax(x, 1, temperature=t)).sum(),
         log_softmax_backward(c, log_softmax(x, 1, temperature=t), 1, temperature=t)),
        (lambda x: (d * logsumexp(x, 1)).sum(), logsumexp_backward(d, x, logsumexp(x, 1), 1)),
        (lambda x: (d * softmax_entropy(x, 1, temperature=t)).sum(), softmax_entropy_backward(d, x, 1, temperature=t)),
    ):
        for i in np.ndindex(x.shape):
            high, low = x.copy(), x.copy()
            high[i] += step
            low[i] -= step
            assert abs((loss(high) - loss(low)) / (2 * step) - dx[i]) < 1e-8


# ---------------------------------------------------------------- special values


@pytest.mark.parametrize(
    "shape, axis", [((5, 10, 5), 0), ((5, 10, 5), 1), ((5, 10, 5), -1), ((1, 1), 1), ((3, 2000), 1)])
def test_agrees_with_torch(kernel, shape, axis):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: not compared with it")
    real = np.float64 if kernel.tag == "f64" else np.float32    # of 16 bits PyTorch gets the same numbers in float32
    rng = np.random.default_rng([0, *shape])
    x, grad = ((2 * rng.normal(size=shape)).astype(kernel.dtype) for _ in range(2))
    # PyTorch's sum of 2,000 terms has an error of 500 epsilon; 16-bit weights have been rounded.
    tolerance = {"atol": (20 if kernel.dtype.itemsize == 2 else 500) * kernel.eps, "rtol": 0}
    for forward, backward in ((softmax, softmax_backward), (log_softmax, log_softmax_backward)):
        tensor = torch.tensor(x.astype(real), requires_grad=True)
        getattr(torch, forward.__name__)(tensor, axis).backward(torch.tensor(grad.astype(real)))
        dx = backward(grad, forward(x, axis), axis)
        np.testing.assert_allclose(dx.astype(real), tensor.grad.numpy(), **tolerance)
    tensor, grad = torch.tensor(x.astype(real), requires_grad=True), grad.sum(axis)
    torch.logsumexp(tensor, axis).backward(torch.tensor(grad.astype(real)))
    dx = logsumexp_backward(grad, x, logsumexp(x, axis), axis)
    np.testing.assert_allclose(dx.astype(real), tensor.grad.numpy(), **tolerance)


def test_grad_is_not_read_where_a_weight_is_zero(kernel):
    for n, bad in itertools.product((3, 40, 1003, 5001), (NAN, INF)):
        y = np.zeros((2, n), kernel.dtype)
        y[:, :2] = 0.75, 0.25
        grad = np.full((2, n), bad, kernel.dtype)
        grad[:, :2] = 1, 0
        with np.errstate(all="ignore"):
            log_y = np.log(y.astype(float)).astype(kernel.dtype)
        for axis, turned in ((1, lambda a: a), (0, lambda a: np.ascontiguousarray(a.T))):
            got = turned(softmax_backward(turned(grad), turned(y), axis))
            np.testing.assert_array_equal(got[:, :2].astype(float), [[0.1875, -0.1875]] * 2)
            assert not got[:, 2:].any()
            got = turned(log_softmax_backward(turned(grad), turned(log_y), axis))
            np.testing.assert_allclose(got[:, :2].astype(float), [[0.25, -0.25]] * 2, rtol=4 * kernel.eps)
            assert not got[:, 2:].any()


def test_rows_that_are_nan_have_gradients_of_nan(kernel):
    x = np.array([[NAN, 1, -INF], [-INF, -INF, -INF], [INF, 1, -INF], [1, 2, 3]]).astype(kernel.dtype)
    ones = np.ones((4, 3), kernel.dtype)
    is_nan = [True, True, True, False]
    for turn in (lambda a: a, lambda a: np.repeat(a, 30, 0)):
        x_, g, want = turn(x), turn(ones), turn(np.array(is_nan)[:, None] & np.ones(3, bool))
        np.testing.assert_array_equal(np.isnan(softmax_backward(g, softmax(x_, -1), -1)), want)
        np.testing.assert_array_equal(np.isnan(softmax_entropy_backward(g[:, 0], x_, -1)), want)
        np.testing.assert_array_equal(np.isnan(softmax_entropy_backward(g[:, 0], x_.T.copy(), 0)), want.T)
    expected = [[NAN] * 3, [0] * 3, [NAN, 0, 0]]
    np.testing.assert_array_equal(logsumexp_backward(ones[:, 0], x, logsumexp(x, -1), -1)[:3].astype(float), expected)
    expected = [[NAN] * 3, [NAN] * 3, [NAN, 0, 0]]
    np.testing.assert_array_equal(log_softmax_backward(ones, log_softmax(x, -1), -1)[:3].astype(float), expected)


def test_hidden_places_are_zero_in_rows_of_nan(kernel):
    x = np.array([[NAN, 5, 5], [NAN, NAN, NAN], [INF, 1, 2]]).astype(kernel.dtype)
    where = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 0]], bool)
    grad = np.array([1, NAN, 1]).astype(kernel.dtype)
    expected = [[NAN, NAN, 0], [0, 0, 0], [NAN, NAN, 0]]
    np.testing.assert_array_equal(softmax_entropy_backward(grad, x, 1, where=where).astype(float), expected)
    expected = [[NAN, NAN, 0], [0, 0, 0], [NAN, 0, 0]]
    np.testing.assert_array_equal(
        logsumexp_backward(grad, x, logsumexp(x, 1, where=where), 1, where=where).astype(float), expected)


def test_infinite_gradients(kernel):
    """As in the reference: the sum is infinite too, or NaN where two cancel; in float64 NaN, since double-double sums
    cannot be infinite. grad is still not read at weights of 0."""
    for n, (first, second) in itertools.product((3, 40, 1003, 5001), ((INF, 1), (INF, INF), (-INF, 1), (INF, -INF))):
        y = np.full((3, n), 0.5, kernel.dtype)
        y[:, -1] = 0
        grad = np.ones((3, n), kernel.dtype)
        grad[1, :2], grad[:, -1] = (first, second), NAN
        with np.errstate(all="ignore"):
            log_y = np.log(y.astype(float)).astype(kernel.dtype)
        for name, x in (("softmax_backward", y), ("log_softmax_backward", log_y)):
            expected = exact(name, (grad, x))[0].astype(float)
            for axis, turned in ((1, lambda a: a), (0, lambda a: np.ascontiguousarray(a.T))):
                got = turned(call(name, (turned(grad), turned(x)), axis))
                np.testing.assert_array_equal(np.isfinite(got[1].astype(float)), np.isfinite(expected[1]))
                if kernel.tag != "f64":
                    np.testing.assert_array_equal(np.isnan(got[1].astype(float)), np.isnan(expected[1]))
                check(name, got[::2], (grad[::2], x[::2]))


def test_a_weight_of_zero_stays_one_where_gradients_are_huge(kernel):
    """grad - sum overflows there, and 0 times infinity would be NaN. A gradient of -0 would have other bits."""
    largest = float(np.finfo(kernel.wide if kernel.tag == "f64" else np.float32).max)
    huge = np.array(min(largest, float(ml_dtypes.finfo(kernel.dtype).max))).astype(kernel.dtype)
    for n, sign in itertools.product((3, 14, 40, 64, 200, 1003, 5001), (1, -1)):
        y = np.zeros((40, n), kernel.dtype)
        y[::2, 0], y[1::2, :2] = 1, 0.5
        grad = np.full((40, n), -sign * huge, kernel.dtype)
        grad[:, 0] = sign * huge
        for axis, turned in ((1, lambda a: a), (0, lambda a: np.ascontiguousarray(a.T))):
            got = turned(softmax_backward(turned(grad), turned(y), axis))
            assert not bits(np.ascontiguousarray(got[:, 2:])).any()
            np.testing.assert_array_equal(got[::2].astype(float), np.zeros((20, n)))
            np.testing.assert_array_equal(got[1::2, :2], grad[1::2, :2] / 2)


def test_grad_of_a_row_is_not_read_where_a_weight_underflows(kernel):
    for n in (2, 40, 700):
        x = np.full((2, n), -1e4).astype(kernel.dtype)
        x[:, 0] = 0
        for bad in (NAN, INF):
            grad = np.full(2, bad).astype(kernel.dtype)
            lse = np.zeros(2, kernel.dtype)
            assert not logsumexp_backward(grad, x, lse, -1)[:, 1:].any()
            assert not logsumexp_backward(grad, x.T.copy(), lse, 0)[1:].any()
            assert not softmax_entropy_backward(grad, x, -1)[:, 1:].any()
            assert not softmax_entropy_backward(grad, x.T.copy(), 0)[1:].any()


def test_causal_weights(kernel):
    x = np.random.default_rng(6).normal(size=(2, 9, 12)).astype(kernel.dtype)
    y = causal_softmax(x, offset=-1)
    grad = np.where(y == 0, NAN, x).astype(kernel.dtype)
    got = softmax_backward(grad, y, -1)
    check("softmax_backward", got, (grad, y))
    assert not got[:, 0].any()
    assert not got[y == 0].any()


# ---------------------------------------------------------------- arrays


@every
def test_layouts_give_the_same_bits(kernel, name):
    for shape, axis in (((9, 70), -1), ((9, 70), 0), ((3, 5000), -1)):
        arrays = operands(name, kernel.dtype, shape, axis)
        expected = call(name, arrays, axis)
        for first, second in itertools.product(LAYOUTS.values(), [*LAYOUTS.values(), None]):
            grad, x, *lse = arrays
            if second is None:
                grad, x = grad if grad.ndim < 2 else first(grad), first(x)
            elif grad.ndim == 2 and first is not second:
                grad, x = first(grad), second(x)
            else:
                continue
            assert_same_bits(call(name, (grad, x, *lse), axis), expected)
        for order in itertools.permutations(range(3)):
            stacked = [np.stack([a] * 2) if np.ndim(a) == 2 else a for a in arrays]
            along = axis if axis < 0 else 1
            if name in FULL:
                turned = [np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order)) for a in stacked]
                assert_same_bits(call(name, turned, along), np.stack([expected] * 2))


@every
def test_rows_do_not_depend_on_their_neighbours_or_threads(kernel, name):
    for shape, axis in (((7, 40_000), -1), ((300, 400), -1), ((400, 300), 0), ((3, 50, 900), 1)):
        arrays = operands(name, kernel.dtype, shape, axis)
        found = []
        for threads in (1, 2, 5):
            with fastsoftmax.num_threads(threads):
                found.append(call(name, arrays, axis))
        for other in found[1:]:
            assert_same_bits(other, found[0])
        if name in FULL and axis == -1:
            assert_same_bits(call(name, [np.ascontiguousarray(a[2]) for a in arrays]), found[0][2])


@every
def test_threads_share_a_long_row(kernel, monkeypatch, name):
    """At lengths round those from which they do, and round those of the pieces; with gaps too."""
    monkeypatch.setattr(_threads, "PARALLEL", 2)
    for n in (32_768, 70_001, 98_303, 98_304, 98_305, 102_399, 102_400, 102_401, 131_073):
        arrays = operands(name, kernel.dtype, (1, n))
        apart = [np.repeat(a, 2, -1)[:, ::2] if np.ndim(a) == 2 else a for a in arrays]
        found = []
        for threads, inputs in itertools.product((1, 2, 5), (arrays, apart)):
            with fastsoftmax.num_threads(threads):
                found.append(call(name, inputs))
        check(name, found[0], arrays)
        for other in found[1:]:
            assert_same_bits(other, found[0])


@full
def test_rows_side_by_side_have_the_bits_of_contiguous_rows(kernel, name):
    """Whatever is left over of whole registers; in place; and where results start in the middle of a cache line."""
    for shape in ((5, 16), (70, 33), (2, 130, 300), (2, 9, 272), (4100, 47)):
        grad, y = operands(name, kernel.dtype, shape, -2)
        expected = call(name, [np.ascontiguousarray(a.swapaxes(-1, -2)) for a in (grad, y)]).swapaxes(-1, -2)
        for offset, from_bytes, threads in itertools.product((0, 3), (0, 1 << 60), (1, 5)):
            out = np.empty(y.size + 64, y.dtype)
            start = -(out.ctypes.data // y.itemsize) % (64 // y.itemsize) + offset
            out = out[start:start + y.size].reshape(shape)
            with fastsoftmax.num_threads(threads), _softmax.nontemporal_from(from_bytes):
                call(name, (grad, y), -2, out=out)
            assert_same_bits(out, expected)
        for place in (0, 1):
            arrays = [grad.copy(), y.copy()]
            assert_same_bits(call(name, arrays, -2, out=arrays[place]), expected)


@every
def test_nontemporal_stores_give_the_same_bits(kernel, name):
    for shape, axis in (((3, 5003), -1), ((70, 65), 0)):
        arrays = operands(name, kernel.dtype, shape, axis)
        expected = call(name, arrays, axis)
        with _softmax.nontemporal_from(0):
            assert_same_bits(call(name, arrays, axis), expected)


@every
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_and_overlap(name, dtype):
    """out is returned and written alone; it may be an operand, or overlap one."""
    for shape, axis in (((6, 37), -1), ((6, 37), 0), ((6, 3000), -1), ((6, 37), None)):
        arrays = operands(name, dtype, shape, axis)
        expected = call(name, arrays, axis)
        for out in (np.full(shape, 7, dtype), np.full(shape[::-1], 7, dtype).T, np.full(shape, 7, dtype)[::-1],
                    np.full(shape, 7, np.dtype(dtype).newbyteorder())):
            assert call(name, arrays, axis, out=out) is out
            assert_same_bits(out.astype(dtype), expected)
        for i, array in enumerate(arrays):
            if np.shape(array) != shape:
                continue
            copies = [np.copy(a) for a in arrays]
            assert call(name, copies, axis, out=copies[i]) is copies[i]
            assert_same_bits(copies[i], expected)
            for shift in (1, shape[1]):          # partly: as without
                memory = np.zeros(array.size + shift, dtype)
                copies = [np.copy(a) for a in arrays]
                copies[i] = memory[shift:].reshape(shape)
                copies[i][...] = array
                out = memory[:array.size].reshape(shape)
                call(name, copies, axis, out=out)
                assert_same_bits(out, expected)
            copies = [np.copy(a) for a in arrays]
            out = copies[i][::-1]
            call(name, copies, axis, out=out)
            assert_same_bits(np.ascontiguousarray(out), expected)


def test_out_that_overlaps_where_or_numbers_of_rows():
    grad, x, lse = operands("logsumexp_backward", np.float32, (6, 6))
    where = x > 0
    expected = logsumexp_backward(grad, x, lse, -1, where=where)
    memory = np.zeros((6, 6), np.float32)
    hiding = memory.view(bool)[:, :6]
    hiding[...] = where
    assert_same_bits(logsumexp_backward(grad, x, lse, -1, where=hiding, out=memory), expected)
    for i in range(2):
        rows = [grad.copy(), lse.copy()]
        memory = np.zeros((6, 6), np.float32)
        memory[3] = rows[i]
        rows[i] = memory[3]
        assert_same_bits(logsumexp_backward(rows[0], x, rows[1], -1, where=where, out=memory), expected)
    expected = softmax_entropy_backward(grad, x, -1)
    memory = np.zeros((6, 6), np.float32)
    memory[3] = grad
    assert_same_bits(softmax_entropy_backward(memory[3], x, -1, out=memory), expected)


@full
@pytest.mark.parametrize("dtype", [*DTYPES, np.longdouble])
@pytest.mark.parametrize("of_grad", [*DTYPES, np.longdouble])
def test_grad_of_another_dtype(name, dtype, of_grad):
    """The dtype is that of y. A wider grad is not rounded first."""
    _, y = operands(name, dtype, (5, 37), hidden=False)
    grad = np.random.default_rng(7).normal(size=(5, 37)).astype(of_grad)
    got = call(name, (grad, y))
    assert got.dtype == dtype
    if dtype != np.longdouble:
        check(name, got, (grad, y))
    if of_grad == np.float32 and np.dtype(dtype).itemsize == 2:
        large = np.float32(1e6) * grad
        assert np.isfinite(call(name, (large, y.astype(np.float32)))).all()
        close = (large, y) if name == "softmax_backward" else (large / 1e3, y)
        check(name, call(name, close), close)


def test_lse_of_another_dtype():
    x = np.random.default_rng(8).normal(size=(5, 37)) + 100
    for dtype in DTYPES[:3]:
        a = x.astype(dtype)
        lse = logsumexp(a.astype(np.float64), -1)
        got = logsumexp_backward(np.ones(5), a, lse, -1)
        assert got.dtype == dtype
        assert_accurate(got, softmax(a.astype(np.longdouble), -1).astype(wide(dtype)), 2)


def test_keepdims_and_shapes():
    x = np.random.default_rng(9).normal(size=(2, 3, 4))
    for axis in (0, -1, (0, 2), None):
        kept, gone = logsumexp(x, axis, keepdims=True), logsumexp(x, axis)
        expected = np.exp(x - kept)
        np.testing.assert_allclose(logsumexp_backward(np.ones_like(kept), x, kept, axis, keepdims=True), expected)
        np.testing.assert_allclose(logsumexp_backward(np.ones_like(gone), x, gone, axis), expected)


def test_integers():
    big = np.array([2**53, 2**53 + 2])
    np.testing.assert_allclose(logsumexp_backward(1.0, big, float(2**53 + 2)), [np.exp(-2), 1], rtol=1e-15)
    for dtype in (np.int8, np.int64, np.uint16, bool):
        x = np.array([[1, 0, 1], [0, 0, 1]]).astype(dtype)
        got = softmax_entropy_backward(np.ones(2), x, -1)
        assert got.dtype == softmax(x, -1).dtype
        np.testing.assert_allclose(got, reference.softmax_entropy_backward(np.ones(2), x, -1), rtol=2e-3)
        lse = logsumexp(x, -1)
        np.testing.assert_allclose(logsumexp_backward(np.ones(2), x, lse, -1), softmax(x.astype(float), -1))
    shifted = softmax_entropy_backward(1.0, np.array([2**60, 2**60 + 1]))
    np.testing.assert_allclose(shifted, softmax_entropy_backward(1.0, np.array([0.0, 1.0])))


def test_scalars_and_empty_arrays():
    for dtype in DTYPES:
        one = np.ones((), dtype)[()]
        for name in ALL:
            arrays = (one, np.zeros((), dtype)[()], np.zeros((), dtype)[()])[:3 if name == "logsumexp_backward" else 2]
            for axis in (None, 0, -1, ()):
                got = call(name, arrays, axis)
                assert type(got) is type(one)
                assert got == (1 if name == "logsumexp_backward" else 0)
    for name in FULL:
        for shape, axis in (((0, 3), 1), ((3, 0), 1), ((0,), None)):
            assert call(name, (np.zeros(shape), np.zeros(shape)), axis).shape == shape
    assert logsumexp_backward(np.zeros(3), np.zeros((3, 0)), np.full(3, -INF), 1).shape == (3, 0)
    assert softmax_entropy_backward(np.zeros(0), np.zeros((0, 3)), 1).shape == (0, 3)


@every
def test_long_double_and_extreme_temperatures_go_through_the_reference(name):
    arrays = operands(name, np.longdouble, (5, 37))
    with np.errstate(all="ignore"):
        expected = call(name, arrays, module=reference)
    got = call(name, arrays)
    assert got.dtype == np.longdouble
    np.testing.assert_array_equal(got, expected)
    out = np.zeros((5, 37), np.longdouble)
    assert call(name, arrays, out=out) is out
    np.testing.assert_array_equal(out, expected)
    if name != "logsumexp_backward":
        arrays = operands(name, np.float64, (5, 37))
        with np.errstate(all="ignore"):
            expected = call(name, arrays, module=reference, temperature=1e35)
        np.testing.assert_array_equal(call(name, arrays, temperature=1e35), expected)


@every
def test_few_columns_of_many_matrices(kernel, name):
    """Their rows share tiles with those of other matrices."""
    for columns, n in itertools.product((1, 2, 3, 4), (2, 10, 40, 100)):
        grad, y, *lse = operands(name, kernel.dtype, (70, columns, n))
        t = np.linspace(0.5, 2, 70 * columns).reshape(70, columns, 1)
        for options in ({}, {"temperature": t}) if name != "logsumexp_backward" else ({},):
            expected = call(name, (grad, y, *lse), **options)
            moved = [np.ascontiguousarray(a.swapaxes(1, 2)) if a.ndim == 3 else a for a in (grad, y, *lse)]
            options = {key: value.swapaxes(1, 2) for key, value in options.items()}
            assert_same_bits(call(name, moved, 1, **options).swapaxes(1, 2), expected)


# ---------------------------------------------------------------- speed


@pytest.mark.parametrize(("n", "most"), [(10, 1.7), (24, 0.8), (48, 0.6), (64, 0.6), (100, 0.6), (1000, 0.9)])
def test_gradients_take_a_part_of_the_time_of_softmax(n, most):
    """Rows of 24 and 48 elements took 0.94 and 0.73 of it, when they went through tiles, and the sums through memory.
    The limits are those of AVX2, on a Zen 3; other instruction sets have twice as much."""
    rng = np.random.default_rng(0)
    grad = rng.normal(size=(256_000 // n, n)).astype(np.float32)
    y, out = softmax(grad[::-1], -1), np.empty_like(grad)
    calls = [lambda: softmax(grad, -1, out=out), lambda: softmax_backward(grad, y, -1, out=out)]
    with fastsoftmax.num_threads(1):
        forward, backward = np.min([[timeit.timeit(call, number=1) for call in calls] for _ in range(60)], 0)
    assert backward < most * forward * (1 if _dispatch.isa() == "x86_64_v3" else 2)


# ---------------------------------------------------------------- memory


@every
def test_memory_is_that_of_the_result(name):
    """Also where operands are staged."""
    for dtype, layout in ((np.float32, lambda a: a), (np.float16, lambda a: a),
                          (np.float32, lambda a: a.astype(a.dtype.newbyteorder()))):
        grad, x, *lse = operands(name, dtype, (2000, 1000), hidden=False)
        x = layout(x)
        with fastsoftmax.num_threads(1):
            tracemalloc.start()
            try:
                got = call(name, (grad, x, *lse))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert peak < 2.0 * got.nbytes if dtype == np.float32 else 3 * got.nbytes


def test_the_fast_path_covers_ordinary_calls(monkeypatch):
    """And gives what the long way gives."""
    from fastsoftmax import _fastpath, _gradients

    grad, y = operands("softmax_backward", np.float32, (6, 7))
    calls = [((grad, y), {"axis": axis}) for axis in (None, 0, 1, -1, -2)]
    calls += [((grad, y), {"axis": 1, "out": np.zeros_like(y)}), ((grad, y), {"axis": 1, "temperature": 1})]
    calls += [((grad.astype(t), y.astype(t)), {"axis": 1}) for t in DTYPES]
    fast = []
    with monkeypatch.context() as patch:
        patch.setattr(_gradients, "_elementwise", None)
        fast.extend(softmax_backward(*arrays, **options).copy() for arrays, options in calls)
    monkeypatch.setattr(_fastpath, "gradient_operands", lambda *_: None)
    for (arrays, options), got in zip(calls, fast, strict=True):
        assert_same_bits(got, softmax_backward(*arrays, **options))


