"""fastsoftmax.lab.alternatives: each function against its definition, each gradient against finite differences.

The definition stores the weights of all queries and keys, in float64, without chunks or stabilisers.
"""

import doctest
import functools
import tracemalloc

import numpy as np
import pytest
from helpers import assert_same_bits

import fastsoftmax.lab
from fastsoftmax import scaled_dot_product_attention
from fastsoftmax.lab import alternatives

CHUNK, BLOCK = alternatives.CHUNK, alternatives.BLOCK
LENGTHS = sorted({n for size in (CHUNK, BLOCK) for n in (1, size - 1, size, size + 1, 3 * size + 5)})
NAMES = ("relu", "linear", "performer", "sum_normalized", "dot_product")
SCALED = tuple(name for name in NAMES if name != "linear")
WIDTH = 8


def definition(name, query, key, value, is_causal=False, scale=None, features=None):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * query @ key.swapaxes(-1, -2)
    if name == "relu":
        weights = np.maximum(scores, 0)
    elif name == "linear":
        weights = elu_plus_one(query) @ elu_plus_one(key).swapaxes(-1, -2)
    elif name == "performer":
        weights = (positive_features(scale**0.5 * query, features)
                   @ positive_features(scale**0.5 * key, features).swapaxes(-1, -2))
    else:
        weights = scores
    if is_causal:
        weights = np.where(np.tri(*weights.shape[-2:], dtype=bool), weights, 0)
    if name != "dot_product":
        weights = weights / (weights.sum(-1, keepdims=True) + (1e-6 if name == "relu" else 0))
    return weights @ value


def elu_plus_one(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def positive_features(x, w):
    return np.exp(x @ w.T.astype(np.float64) - (x * x).sum(-1, keepdims=True) / 2) / len(w) ** 0.5


@functools.cache
def features(dtype=np.float64, count=11, width=WIDTH):
    return alternatives.performer_features(width, count, seed=3, dtype=dtype)


def forward(name, arrays, is_causal=False, **options):
    if name == "performer":
        options = {"features": features(np.float64, width=arrays[0].shape[-1]), **options}
    return getattr(alternatives, f"{name}_attention")(*arrays, is_causal=is_causal, **options)


def backward(name, grad_out, arrays, is_causal=False, **options):
    if name == "performer":
        options = {"features": features(np.float64, width=arrays[0].shape[-1]), **options}
    return getattr(alternatives, f"{name}_attention_backward")(grad_out, *arrays, is_causal=is_causal, **options)


def expected(name, arrays, is_causal=False, **options):
    if name == "performer":
        options = {"features": features(np.float64, width=arrays[0].shape[-1]), **options}
    return definition(name, *arrays, is_causal, **options)


def inputs(name, length, keys=None, batch=(2, 3), dtype=np.float64, seed=0):
    """query, key, value. Scores that are divided by their sum are mostly positive, so that no sum is close to 0."""
    keys = length if keys is None else keys
    rng = np.random.default_rng([seed, length, keys])
    shapes = (length, WIDTH), (keys, WIDTH), (keys, 5)
    query, key, value = (rng.normal(size=(*batch, *shape)) for shape in shapes)
    if name == "sum_normalized":
        query, key = np.abs(query) + 0.5, np.abs(key) + 0.5
        key[..., 1::2, 0] = -2
    return [x.astype(dtype) for x in (query, key, value)]


def upstream(arrays, seed=0):
    query, _, value = arrays
    shape = (*query.shape[:-1], value.shape[-1])
    return np.random.default_rng([7, seed]).normal(size=shape).astype(query.dtype)


def assert_close(got, exact, tolerance):
    """Within `tolerance` of the largest number."""
    assert got.shape == exact.shape
    assert np.abs(got - exact).max(initial=0) <= tolerance * np.abs(exact).max(initial=1e-300)


# ---- results


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", LENGTHS)
def test_definition_causal(name, length):
    arrays = inputs(name, length)
    assert_close(forward(name, arrays, True), expected(name, arrays, True), 1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("more", [0, 70])
def test_definition(name, length, more):
    arrays = inputs(name, length, length + more)
    assert_close(forward(name, arrays), expected(name, arrays), 1e-11)
    if more:
        arrays = inputs(name, length + more, length)
        assert_close(forward(name, arrays), expected(name, arrays), 1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_float32(name, is_causal):
    """Within 100 roundings of the largest number, the gradients too."""
    arrays = inputs(name, 3 * CHUNK + 5, dtype=np.float32)
    wide = [x.astype(np.float64) for x in arrays]
    grad_out = upstream(arrays)
    for got, exact in zip((forward(name, arrays, is_causal), *backward(name, grad_out, arrays, is_causal)),
                          (expected(name, wide, is_causal), *backward(name, grad_out, wide, is_causal)), strict=True):
        assert got.dtype == np.float32
        assert_close(got, exact, 100 * 2.0**-23)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_axes_before_the_last_two(name, is_causal):
    """None, one or two, and any strides: the same as head by head."""
    query, key, value = (x.swapaxes(1, 2).copy().swapaxes(1, 2) for x in inputs(name, CHUNK + 3))
    grad_out = upstream((query, key, value))
    out, gradients = forward(name, (query, key, value), is_causal), backward(name, grad_out, (query, key, value),
                                                                             is_causal)
    for head in np.ndindex(2, 3):
        one = [np.ascontiguousarray(x[head]) for x in (query, key, value)]
        assert_close(out[head], forward(name, one, is_causal), 1e-12)
        for got, exact in zip(gradients, backward(name, grad_out[head], one, is_causal), strict=True):
            assert_close(got[head], exact, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_no_queries_and_no_keys(name):
    for length, keys, is_causal in ((0, 3, False), (0, 0, True), (3, 0, False)):
        arrays = inputs(name, length, keys)
        out = forward(name, arrays, is_causal)
        assert out.shape == (2, 3, length, 5)
        if name != "sum_normalized":
            assert np.all(out == 0)
            for x, gradient in zip(arrays, backward(name, np.ones(out.shape), arrays, is_causal), strict=True):
                assert gradient.shape == x.shape
                assert np.all(gradient == 0)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_are(name):
    arrays = inputs(name, CHUNK + 3)
    grad_out = upstream(arrays)
    before = [x.copy() for x in (*arrays, grad_out)]
    for x in (*arrays, grad_out):
        x.flags.writeable = False
    for is_causal in (False, True):
        forward(name, arrays, is_causal)
        backward(name, grad_out, arrays, is_causal)
    for x, y in zip((*arrays, grad_out), before, strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_are_promoted(name):
    query, key, value = inputs(name, 5)
    mixed = query.astype(np.float32), key.astype(np.float32), value
    assert forward(name, mixed, True).dtype == np.float64
    assert [x.dtype for x in backward(name, upstream(mixed), mixed, True)] == [np.float64] * 3
    swapped = [x.astype(x.dtype.newbyteorder()) for x in (query, key, value)]
    assert_same_bits(forward(name, swapped), forward(name, (query, key, value)))


# ---- gradients


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_are_finite_differences(name, is_causal, monkeypatch):
    """For every number of the inputs, over several chunks."""
    monkeypatch.setattr(alternatives, "CHUNK", 4)
    monkeypatch.setattr(alternatives, "BLOCK", 4)
    arrays = inputs(name, 10, None if is_causal else 13, batch=(2,))
    grad_out = upstream(arrays)
    step = 1e-5
    for x, gradient in zip(arrays, backward(name, grad_out, arrays, is_causal), strict=True):
        assert gradient.shape == x.shape
        differences = np.empty_like(x)
        for at in np.ndindex(x.shape):
            value, ends = x[at], []
            for x[at] in (value + step, value - step):
                ends.append((grad_out * forward(name, arrays, is_causal)).sum())
            x[at] = value
            differences[at] = (ends[0] - ends[1]) / (2 * step)
        assert_close(gradient, differences, 1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_gradients_do_not_depend_on_chunks(name, is_causal, length, monkeypatch):
    arrays = inputs(name, length, batch=(2,))
    grad_out = upstream(arrays)
    chunked = backward(name, grad_out, arrays, is_causal)
    monkeypatch.setattr(alternatives, "CHUNK", length)
    monkeypatch.setattr(alternatives, "BLOCK", length)
    for got, exact in zip(chunked, backward(name, grad_out, arrays, is_causal), strict=True):
        assert_close(got, exact, 1e-11)


# ---- options


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("is_causal", [False, True])
def test_scale(name, is_causal):
    """Of relu_attention it changes the sign and how much epsilon is; sums of scores are 0 only with scale=0."""
    arrays = inputs(name, 20)
    grad_out = upstream(arrays)
    for scale in {"relu": (-1.0, 1e-6), "performer": (0.1, 1.5)}.get(name, (-0.1, 1.5)):
        assert_close(forward(name, arrays, is_causal, scale=scale),
                     expected(name, arrays, is_causal, scale=scale), 1e-11)
        rescaled = [arrays[0] * (scale * WIDTH**0.5), *arrays[1:]]
        if name != "performer":
            dquery, *others = backward(name, grad_out, rescaled, is_causal)
            exact = dquery * (scale * WIDTH**0.5), *others
        else:
            both = [arrays[0] * (scale * WIDTH**0.5) ** 0.5, arrays[1] * (scale * WIDTH**0.5) ** 0.5, arrays[2]]
            dquery, dkey, dvalue = backward(name, grad_out, both, is_causal)
            exact = dquery * (scale * WIDTH**0.5) ** 0.5, dkey * (scale * WIDTH**0.5) ** 0.5, dvalue
        for got, one in zip(backward(name, grad_out, arrays, is_causal, scale=scale), exact, strict=True):
            assert_close(got, one, 1e-10)
    if name == "sum_normalized":
        assert np.isnan(forward(name, arrays, is_causal, scale=0.0)).all()
        assert all(np.isnan(x).all() for x in backward(name, grad_out, arrays, is_causal, scale=0.0))


@pytest.mark.parametrize("name", NAMES)
def test_causal_is_not_the_default(name):
    arrays = inputs(name, 20)
    grad_out = upstream(arrays)
    assert not np.allclose(forward(name, arrays), forward(name, arrays, True))
    for one, other in zip(backward(name, grad_out, arrays), backward(name, grad_out, arrays, True), strict=True):
        assert not np.allclose(one, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("change", [1.0, 1e3])
def test_later_keys_and_values_change_nothing(name, dtype, change):
    """To the bit, whatever chunk they are in; and the gradients of earlier results with respect to them are 0."""
    length = 2 * BLOCK + 3
    for position in (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * BLOCK):
        query, key, value = inputs(name, length, batch=(2,), dtype=dtype)
        grad_out = upstream((query, key, value))
        grad_out[..., position:, :] = 0
        gradients = backward(name, grad_out, (query, key, value), True)
        assert all(np.all(x[..., position:, :] == 0) for x in gradients)
        if position > 1:        # the first query has no choice
            assert all(np.any(x[..., :position, :]) for x in gradients)
        before = forward(name, (query, key, value), True)
        key[..., position:, :] *= -change
        value[..., position:, :] *= change + 1
        after = forward(name, (query, key, value), True)
        assert_same_bits(after[..., :position, :], before[..., :position, :])
        assert not np.array_equal(after[..., position:, :], before[..., position:, :])


# ---- each function's own


def test_relu_of_negative_scores():
    query, key, value = np.ones((2, 3)), -np.ones((4, 3)), np.ones((4, 2))
    assert np.all(alternatives.relu_attention(query, key, value) == 0)
    for gradient in alternatives.relu_attention_backward(np.ones((2, 2)), query, key, value):
        assert np.all(gradient == 0)


def test_linear_attention_whose_features_underflow():
    """exp(-1000) is 0: the first query sees nothing, and has no part in any gradient."""
    query, key, value = inputs("linear", 5, batch=())
    query[0] = -1000
    grad_out = np.ones((5, 5))
    out, gradients = forward("linear", (query, key, value)), backward("linear", grad_out, (query, key, value))
    assert np.all(out[0] == 0)
    assert np.all(gradients[0][0] == 0)
    for got, exact in zip(gradients[1:], backward("linear", grad_out[1:], (query[1:], key, value))[1:], strict=True):
        assert_close(got, exact, 1e-12)


def test_performer_approaches_softmax():
    rng = np.random.default_rng(0)
    query, key, value, grad_out = rng.normal(size=(4, 2, 100, 16)) * np.array([0.3, 0.3, 1, 1]).reshape(-1, 1, 1, 1)
    for is_causal in (False, True):
        softmax, lse = scaled_dot_product_attention(query, key, value, is_causal=is_causal, return_lse=True)
        exact = (softmax, *fastsoftmax.scaled_dot_product_attention_backward(
            grad_out, query, key, value, softmax, lse, is_causal=is_causal))
        errors = []
        for count in (32, 512, 8192):
            w = alternatives.performer_features(16, count, dtype=np.float64)
            got = (alternatives.performer_attention(query, key, value, w, is_causal),
                   *alternatives.performer_attention_backward(grad_out, query, key, value, w, is_causal))
            errors.append([np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(got, exact, strict=True)])
        errors = np.array(errors)
        assert np.all(errors[1:] < 0.5 * errors[:-1])         # as 1 / sqrt(count): a quarter
        assert np.all(errors[-1] < [0.02, 0.2, 0.2, 0.02])    # out, dquery, dkey, dvalue


@pytest.mark.parametrize("is_causal", [False, True])
def test_performer_of_large_inputs_in_float32(is_causal):
    """Queries of any size, and keys up to scale |k|^2 = 138, on which the features of 1e-6 would be lost."""
    query, key, value = inputs("performer", CHUNK + 9, batch=(), dtype=np.float32)
    key *= np.float32((100 / WIDTH**-0.5) ** 0.5) / np.linalg.norm(key, axis=-1, keepdims=True)
    query *= 10
    got, exact = forward("performer", (query, key, value), is_causal), expected("performer", (query, key, value),
                                                                               is_causal)
    assert_close(got, exact, 1e-4)
    grad_out = upstream((query, key, value))
    wide = [x.astype(np.float64) for x in (query, key, value)]
    for one, other in zip(backward("performer", grad_out, (query, key, value), is_causal),
                          backward("performer", grad_out, wide, is_causal), strict=True):
        assert_close(one, other, 1e-3)
    query *= 1000
    assert np.isfinite(forward("performer", (query, key, value), is_causal)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_performer_of_keys_whose_features_underflow(dtype):
    """The constant alone is left: out is the mean of the values, and the keys have no gradient."""
    query, key, value = inputs("performer", 9, batch=(), dtype=dtype)
    key *= dtype(1e4)
    out = forward("performer", (query, key, value))
    assert_close(out, np.broadcast_to(value.mean(0), out.shape), 1e-6)
    _, dkey, dvalue = backward("performer", np.ones_like(out), (query, key, value))
    assert np.all(dkey == 0)
    assert_close(dvalue, np.ones_like(dvalue), 1e-6)


def test_performer_uses_its_features():
    arrays = inputs("performer", 20)
    grad_out = upstream(arrays)
    one, other = features(), alternatives.performer_features(WIDTH, 11, seed=4)
    assert not np.allclose(forward("performer", arrays, features=one), forward("performer", arrays, features=other))
    for x, y in zip(backward("performer", grad_out, arrays, features=one),
                    backward("performer", grad_out, arrays, features=other), strict=True):
        assert not np.allclose(x, y)
    assert forward("performer", [x.astype(np.float32) for x in arrays], features=one).dtype == np.float32


def test_performer_features():
    w = alternatives.performer_features(16, 40, dtype=np.float64)
    assert w.shape == (40, 16)
    for block in (w[:16], w[16:32], w[32:]):
        products = block @ block.T
        np.fill_diagonal(products, 0)
        assert np.abs(products).max() < 1e-12
    assert alternatives.performer_features(3).dtype == np.float32
    assert_same_bits(w, alternatives.performer_features(16, 40, seed=0, dtype=np.float64))
    assert not np.allclose(w, alternatives.performer_features(16, 40, seed=1, dtype=np.float64))
    assert [len(alternatives.performer_features(n)) for n in (1, 16, 32, 64)] == [1, 48, 96, 256]


def test_performer_features_are_normal():
    """Each number has mean 0, variance 1 and fourth moment 3, and the first column of QR is no exception."""
    w = alternatives.performer_features(4, 40_000, dtype=np.float64).reshape(-1, 4, 4)
    assert np.abs(w.mean(0)).max() < 0.05
    assert np.abs((w**2).mean(0) - 1).max() < 0.08
    assert np.abs((w**4).mean(0) - 3).max() < 0.6


def test_sum_normalized_has_poles_and_negative_weights():
    key, value = np.eye(2), np.array([[1.0], [0.0]])
    weights = [alternatives.sum_normalized_attention([[1.0, y]], key, value).item() for y in (-2.0, -0.99, -1.01)]
    np.testing.assert_allclose(weights, [-1, 100, -100])
    assert np.isinf(alternatives.sum_normalized_attention([[1.0, -1.0]], key, value))


# ---- memory


def peak(function, *args, **kwargs):
    tracemalloc.start()
    try:
        function(*args, **kwargs)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("is_causal", [False, True])
def test_memory_is_linear_in_the_length(is_causal):
    """float32, 32768 x 16: 2 MiB an array; the weights would be 4 GiB."""
    arrays = np.ones((3, 1, 32768, 16), np.float32)
    w = features(np.float32, width=16)
    for name, options in (("linear", ()), ("performer", (w,)), ("sum_normalized", ()), ("dot_product", ())):
        assert peak(getattr(alternatives, f"{name}_attention"), *arrays, *options, is_causal) < 3 << 20
        assert peak(getattr(alternatives, f"{name}_attention_backward"), arrays[0], *arrays, *options,
                    is_causal) < 14 << 20


@pytest.mark.parametrize("is_causal", [False, True])
def test_memory_of_relu_attention_is_that_of_a_block(is_causal):
    """float32, 2048 x 2048 weights: 16 MiB; a block of them is 1 MiB, an array 0.125 MiB."""
    arrays = np.ones((3, 1, 2048, 16), np.float32)
    assert peak(alternatives.relu_attention, *arrays, is_causal) < 3 << 20
    assert peak(alternatives.relu_attention_backward, arrays[0], *arrays, is_causal) < 5 << 20


# ---- errors


@pytest.mark.parametrize("name", NAMES)
def test_errors(name):
    query, key, value = arrays = inputs(name, 4)
    grad_out = upstream(arrays)
    both = [functools.partial(forward, name), functools.partial(backward, name, grad_out)]
    for call in both:
        for wrong in (query.astype(np.float16), query.astype(int), query.astype(complex), query.astype(np.longdouble)):
            with pytest.raises(TypeError, match="^query must be float32 or float64, got "):
                call((wrong, key, value))
        with pytest.raises(TypeError, match="^value is a masked array"):
            call((query, key, np.ma.masked_array(value)))
        with pytest.raises(ValueError, match="at least two axes"):
            call((query, key, value[0, 0, 0]))
        with pytest.raises(ValueError, match="equal in all axes before the last two"):
            call((query, key[:, :1], value[:, :1]))
        with pytest.raises(ValueError, match="^query and key must have the same last axis"):
            call((query[..., :-1], key, value))
        with pytest.raises(ValueError, match="^key and value must have as many rows"):
            call((query, key, value[..., :-1, :]))
        with pytest.raises(ValueError, match="^is_causal needs as many queries as keys, got 4 and 3"):
            call((query, key[..., :-1, :], value[..., :-1, :]), True)
    with pytest.raises(ValueError, match=r"^grad_out must have the shape of out, \(2, 3, 4, 5\)"):
        backward(name, grad_out[:1], arrays)
    with pytest.raises(TypeError, match="^grad_out must be float32 or float64, got int64"):
        backward(name, np.ones((2, 3, 4, 5), np.int64), arrays)
    with pytest.raises(ValueError, match="^query and key must have the same last axis, of at least 1"):
        alternatives.linear_attention(query[..., :0], key[..., :0], value)
    if name == "linear":
        for call in both:
            with pytest.raises(TypeError, match="scale"):
                call(arrays, scale=1.0)
    if name == "performer":
        for call in both:
            for scale in (0.0, -1.0, np.inf, np.nan):
                with pytest.raises(ValueError, match="^scale must be positive and finite"):
                    call(arrays, scale=scale)
            for wrong in (features()[0], features()[:0], features()[:, 1:]):
                with pytest.raises(ValueError, match=r"^features must have shape \(M, 8\)"):
                    call(arrays, features=wrong)
            with pytest.raises(TypeError, match="^features must be float32 or float64"):
                call(arrays, features=np.ones((3, WIDTH), int))


def test_errors_of_performer_features():
    for width, count in ((0, None), (4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            alternatives.performer_features(width, count)
    with pytest.raises(TypeError, match="^dtype must be float32 or float64, got float16"):
        alternatives.performer_features(4, dtype=np.float16)


# ---- documentation


@pytest.mark.parametrize("name", alternatives.__all__)
def test_docstring(name):
    function = getattr(alternatives, name)
    assert getattr(fastsoftmax.lab, name) is function
    for test in doctest.DocTestFinder(recurse=False).find(function, name, alternatives):
        failed, attempted = doctest.DocTestRunner().run(test)
        assert not failed
        assert attempted
