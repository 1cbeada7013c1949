"""Properties that hypothesis tries to break, with shapes, values and axes of its own choosing."""

import numpy as np
from helpers import FAMILY, assert_accurate, check
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import fastsoftmax
from fastsoftmax import causal_softmax, log_softmax, logsumexp, softmax, softmax_entropy

LIMIT = {"f32": 2.0**30, "f64": 2.0**60, "f16": 2.0**14, "bf16": 2.0**30}
# The kernel fixture is the same for all examples of a test: it needs no reset between them.
bounded = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=40)


@st.composite
def scores(draw, kernel, shapes=SHAPES, infinite=False):
    """An array of the kernel's dtype; magnitudes from tiny to huge, a few values repeated often."""
    limit = draw(st.sampled_from([1.0, 30.0, 300.0, LIMIT[kernel.tag]]))
    value = st.floats(-limit, limit, width=32)
    if infinite:
        value = st.one_of(value, st.just(-np.inf))
    x = draw(arrays.arrays(np.float64, shapes, elements=value)).astype(kernel.dtype)
    return np.array(x)


def axes(data, x):
    return data.draw(
        st.one_of(st.none(), st.integers(-x.ndim, x.ndim - 1), arrays.valid_tuple_axes(x.ndim)), label="axis"
    )


@bounded
@given(data=st.data())
def test_agrees_with_the_oracle(kernel, data):
    x = data.draw(scores(kernel, infinite=True))
    axis = axes(data, x)
    for f in FAMILY:
        check(f, getattr(fastsoftmax, f)(x, axis), x, axis)


@bounded
@given(data=st.data())
def test_agrees_with_the_oracle_where(kernel, data):
    x = data.draw(scores(kernel, infinite=True))
    keep = data.draw(
        arrays.arrays(bool, arrays.broadcastable_shapes(x.shape, max_dims=x.ndim, max_side=1) | st.just(x.shape))
    )
    keep = keep if np.broadcast_shapes(keep.shape, x.shape) == x.shape else np.array(True)
    axis = axes(data, x)
    for f in FAMILY:
        check(f, getattr(fastsoftmax, f)(x, axis, where=keep), x, axis, where=keep)


@bounded
@given(data=st.data())
def test_rows_sum_to_one(kernel, data):
    x = data.draw(scores(kernel))
    y = softmax(x, -1).astype(kernel.wide)
    quantum = float(np.nextafter(kernel.dtype.type(0), kernel.dtype.type(1)))
    assert np.all((y >= 0) & (y <= 1))
    assert np.all(abs(y.sum(-1) - 1) <= 2 * kernel.eps + x.shape[-1] * quantum)


@bounded
@given(data=st.data())
def test_shift_invariant(kernel, data):
    """Multiples of 1/4 below 2**6 shift by 64 exactly in every type."""
    quarters = data.draw(arrays.arrays(np.int64, SHAPES, elements=st.integers(-64, 63)))
    if kernel.tag == "bf16":
        quarters = quarters & ~3  # eight significant bits
    x = (quarters / 4).astype(kernel.dtype)
    shifted = x + kernel.dtype.type(64)
    for f in (softmax, log_softmax):
        assert_accurate(f(shifted, -1), f(x, -1).astype(kernel.wide), max(4, 2**23 * kernel.eps))


@bounded
@given(data=st.data())
def test_monotone(kernel, data):
    x = np.sort(data.draw(scores(kernel, infinite=True)).astype(np.float64), -1).astype(kernel.dtype)
    for f in (softmax, log_softmax):
        y = f(x, -1).astype(kernel.wide)
        rows = ~np.isnan(y).any(-1)
        assert np.all(y[rows][..., 1:] >= y[rows][..., :-1])


@bounded
@given(data=st.data())
def test_permutation_moves_no_weight_by_more_than_an_ulp_or_two(kernel, data):
    x = data.draw(scores(kernel))
    order = np.array(data.draw(st.permutations(range(x.shape[-1]))))
    y = softmax(x, -1)[..., order]
    assert_accurate(softmax(np.ascontiguousarray(x[..., order]), -1), y.astype(kernel.wide), 2)


@bounded
@given(data=st.data())
def test_log_softmax_exponentiates_to_softmax(kernel, data):
    x = data.draw(scores(kernel))
    with np.errstate(all="ignore"):
        y = np.exp(log_softmax(x, -1).astype(kernel.wide))
    limit = 4 * kernel.eps * (1 + np.where(y > 0, -np.log(np.maximum(y, 1e-300)), 0))
    quantum = float(np.nextafter(kernel.dtype.type(0), kernel.dtype.type(1)))
    assert np.all(abs(y - softmax(x, -1).astype(kernel.wide)) <= limit * y + 2 * quantum)


@bounded
@given(data=st.data())
def test_logsumexp_lies_between_the_peak_and_log_n_above(kernel, data):
    x = data.draw(scores(kernel))
    y, peak = logsumexp(x, -1).astype(kernel.wide), x.astype(kernel.wide).max(-1)
    slack = 2 * kernel.eps * (abs(peak) + 8)
    assert np.all((peak - slack <= y) & (y <= peak + np.log(x.shape[-1]) + slack))


@bounded
@given(data=st.data())
def test_entropy_lies_between_0_and_log_n(kernel, data):
    y = softmax_entropy(x := data.draw(scores(kernel)), -1).astype(kernel.wide)
    assert np.all((y >= 0) & (y <= np.log(x.shape[-1]) * (1 + 4 * kernel.eps)))


@bounded
@given(data=st.data())
def test_causal_softmax_is_softmax_where_visible(kernel, data):
    x = data.draw(scores(kernel, arrays.array_shapes(min_dims=2, max_dims=3, max_side=20)))
    offset = data.draw(st.integers(-25, 25))
    keep = np.tri(*x.shape[-2:], offset, dtype=bool)
    check("softmax", causal_softmax(x, offset=offset), x, where=keep)
