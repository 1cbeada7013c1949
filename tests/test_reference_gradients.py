"""The reference's gradients and losses, against central differences of its forward functions and closed forms."""

import warnings

import ml_dtypes
import numpy as np
import pytest

from fastsoftmax.reference import (
    causal_softmax,
    cross_entropy,
    linear_cross_entropy,
    log_softmax,
    log_softmax_backward,
    logsumexp,
    logsumexp_backward,
    merge_attention_states,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
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
    np.testing.assert_array_equal(logsumexp_backward(NAN, [0.0, -INF, -1e5], 0.0), [NAN, 0, 0])


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


# ---------------------------------------------------------------- attention

B, H, L, S, E, EV = 2, 4, 3, 5, 2, 3
NAMES = {"scale": "grad_scale", "attn_mask": "grad_mask", "bias": "grad_bias", "sinks": "grad_sinks",
         "alibi_slopes": "grad_slopes"}  # in the order of the results


def normal(*shape):
    return np.random.default_rng(shape).normal(size=shape)


# name -> (shapes of query, key, value; options)
FULL = (B, H, L, E), (B, H, S, E), (B, H, S, EV)
HOLES = np.random.default_rng(3).random((B, H, L, S)) < 0.6
HOLES[0, 0, 1] = False
ATTENTION = {
    "none": (FULL, {}),
    "two dimensions": (((L, E), (S, E), (S, EV)), {"scale": 0.9}),
    "grouped heads": (((B, H, L, E), (B, 2, S, E), (B, 2, S, EV)), {"enable_gqa": True}),
    "a shared head": (((B, H, L, E), (B, 1, S, E), (B, 1, S, EV)), {}),
    "a shared query head": (((B, 1, L, E), (B, H, S, E), (B, 1, S, EV)), {"scale": normal(H)}),
    "heads of the values alone": (((B, 1, L, E), (B, 1, S, E), (B, H, S, EV)), {"sinks": normal(H)}),
    "a shared cache": (((B, H, L, E), (H, S, E), (1, H, S, EV)), {}),
    "a batch of the values alone": (((H, L, E), (H, S, E), (B, H, S, EV)), {"scale": normal(H), "bias": normal(L, S)}),
    "one query for a batch": (((L, E), (B, H, S, E), (B, H, S, EV)), {"sinks": normal(H)}),
    "boolean mask": (FULL, {"attn_mask": HOLES}),
    "boolean mask of keys": (FULL, {"attn_mask": HOLES[:, :1, :1]}),
    "floating mask": (FULL, {"attn_mask": np.where(HOLES[:, 0, :, :][:, None], normal(B, 1, L, S), -INF)}),
    "floating mask of keys": (FULL, {"attn_mask": normal(S)}),
    "floating mask of queries": (FULL, {"attn_mask": np.array([[0.5], [-INF], [2]]), "sinks": normal(H)}),
    "bias": (FULL, {"bias": normal(H, 1, S)}),
    "a number for a bias": (FULL, {"bias": np.array(0.5), "sinks": normal(H)}),
    "bias and boolean mask": (FULL, {"bias": normal(B, H, L, S), "attn_mask": HOLES}),
    "causal": (FULL, {"is_causal": True}),
    "causal with an offset a batch entry": (FULL, {"is_causal": True, "causal_offset": [2, -1]}),
    "window": (FULL, {"window": (1, 0), "causal_offset": [1, 0]}),
    "window to the left": (FULL, {"window": (1, None), "causal_offset": 2}),
    "scale": (FULL, {"scale": 0.3}),
    "scale a head": (FULL, {"scale": normal(H)}),
    "softcap": (FULL, {"softcap": 0.7}),
    "alibi": (FULL, {"alibi_slopes": normal(H)}),
    "alibi with an offset": (FULL, {"alibi_slopes": normal(B, H), "causal_offset": [2, 0]}),
    "one slope": (FULL, {"alibi_slopes": np.array(0.3)}),
    "sinks": (FULL, {"sinks": normal(H)}),
    "one sink": (FULL, {"sinks": np.array(0.5)}),
    "key lengths": (FULL, {"key_lengths": [3, 0]}),
    "a mask that ends early": (FULL, {"key_lengths": [3, 1], "bias": normal(L, 3), "attn_mask": normal(B, 1, 1, 4)}),
    "no width": (((B, H, L, 0), (B, H, S, 0), (B, H, S, EV)), {"scale": 2.0, "bias": normal(S)}),
    "no keys": (((B, H, L, E), (B, H, 0, E), (B, H, 0, EV)), {"sinks": normal(H)}),
    "all": (((B, H, L, E), (B, 2, S, E), (2, S, EV)), {
        "enable_gqa": True, "attn_mask": np.where(HOLES, normal(B, H, L, S), -INF), "bias": normal(H, L, 1),
        "is_causal": True, "causal_offset": [3, 1], "window": (2, 1), "softcap": 1.3, "alibi_slopes": normal(B, H),
        "sinks": normal(H), "scale": normal(H), "key_lengths": [4, 5]}),
}


def is_float(x):
    return np.asarray(x).dtype.kind == "f"


def attention_case(name):
    """Long doubles: query, key and value, the options, and which gradients to ask for."""
    shapes, options = ATTENTION[name]
    options = {k: long(v) if k in NAMES and is_float(v) else v for k, v in options.items()}
    return [long(normal(*shape)) for shape in shapes], options, {
        flag: True for name, flag in NAMES.items() if name in options and is_float(options[name])}


def backward(arrays, options, asked=None, with_lse=True):
    """The gradients by name, for upstream gradients made of the shapes alone."""
    out, lse = scaled_dot_product_attention(*arrays, return_lse=True, **options)
    grad_lse = normal(*lse.shape) if with_lse else None
    asked = asked or {}
    results = scaled_dot_product_attention_backward(
        normal(*out.shape), *arrays, out, lse, **options, grad_lse=grad_lse, **asked)
    names = ["query", "key", "value", *(name for name, flag in NAMES.items() if flag in asked)]
    return dict(zip(names, results, strict=True))


def attention_loss(arrays, options, with_lse=True):
    out, lse = scaled_dot_product_attention(*arrays, return_lse=True, **options)
    loss = (normal(*out.shape) * out).sum()
    return loss + (normal(*lse.shape) * np.where(lse == -INF, 0, lse)).sum() if with_lse else loss


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_gradients_are_the_differences(name):
    arrays, options, asked = attention_case(name)
    inputs = dict(zip(("query", "key", "value"), arrays, strict=True))

    def loss_of(name, x):
        given = {**inputs, **options, name: x}
        return attention_loss([given.pop(k) for k in inputs], given)

    for name, got in backward(arrays, options, asked).items():
        x = inputs[name] if name in inputs else options[name]
        if name in ("scale", "sinks", "alibi_slopes"):  # one for each head, even if a number was given for all
            heads = scaled_dot_product_attention(*arrays, **options).shape[-3:-2] or (1,)
            x = np.broadcast_to(x, np.broadcast_shapes(np.shape(x), heads))
        assert_gradient(got, lambda x, name=name: loss_of(name, x), x)


def test_grad_lse_is_optional():
    arrays, options, asked = attention_case("all")
    got = backward(arrays, options, asked, with_lse=False)
    assert_gradient(got["query"], lambda x: attention_loss([x, *arrays[1:]], options, with_lse=False), arrays[0])
    assert not np.allclose(got["query"].astype(float), backward(arrays, options, asked)["query"].astype(float))


@pytest.mark.parametrize("option", ["attn_mask", "bias", "is_causal", "causal_offset", "window", "softcap",
                                    "alibi_slopes", "sinks", "scale", "key_lengths"])
def test_no_option_is_ignored(option):
    arrays, options, _ = attention_case("all")
    whole = backward(arrays, options)
    without = backward(arrays, {k: v for k, v in options.items() if k != option})
    for name in ("query", "key", "value"):
        assert not np.allclose(whole[name].astype(float), without[name].astype(float))


def test_attention_gradients_are_the_chain_of_the_softmax_family():
    (query, key, value), options, _ = attention_case("none")
    out, lse = scaled_dot_product_attention(query, key, value, scale=1, return_lse=True)
    grad_out, grad_lse = normal(*out.shape), normal(*lse.shape)
    scores = query @ key.swapaxes(-1, -2)
    weights = softmax(scores, -1)
    dscores = (softmax_backward(grad_out @ value.swapaxes(-1, -2), weights, -1)
               + logsumexp_backward(grad_lse, scores, lse, -1))
    got = scaled_dot_product_attention_backward(grad_out, query, key, value, out, lse, scale=1, grad_lse=grad_lse)
    for one, expected in zip(got, (dscores @ key, dscores.swapaxes(-1, -2) @ query,
                                   weights.swapaxes(-1, -2) @ grad_out), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-12, atol=1e-15)


def test_only_the_asked_gradients_come_in_order():
    arrays, options, asked = attention_case("all")
    whole = backward(arrays, options, asked)
    assert list(whole) == ["query", "key", "value", "scale", "attn_mask", "bias", "sinks", "alibi_slopes"]
    for name, flag in NAMES.items():
        part = backward(arrays, options, {flag: True})
        assert list(part) == ["query", "key", "value", name]
        np.testing.assert_array_equal(part[name], whole[name])


def test_hidden_keys_are_not_read_and_get_zero():
    arrays, options, asked = attention_case("all")
    clean = backward(arrays, options, asked)
    hidden = np.ones((B, 2, S), bool)  # keys that no query sees
    hidden[0, :, :4], hidden[1] = False, False
    for special in (NAN, INF, -INF):
        query, key, value = (x.copy() for x in arrays)
        key[hidden], value[:, 4] = special, value[:, 4]
        got = backward([query, key, value], options, asked)
        np.testing.assert_array_equal(got["key"][hidden], 0)
        for name in clean:
            np.testing.assert_array_equal(got[name], clean[name])


def test_a_key_reaches_only_those_who_see_it():
    """The last key holds NaN or infinity, and the last query alone sees it."""
    query, key, value = abs(normal(3, 2)), normal(3, 2), normal(3, 1)  # a key of infinity scores infinity
    grad_out, grad_lse = normal(3, 1), normal(3)
    for which in (1, 2):
        for special in (NAN, INF):
            arrays = [query.copy(), key.copy(), value.copy()]
            arrays[which][2] = special
            out, lse = scaled_dot_product_attention(*arrays, is_causal=True, return_lse=True)
            dquery, dkey, dvalue = scaled_dot_product_attention_backward(
                grad_out, *arrays, out, lse, is_causal=True, grad_lse=grad_lse)
            assert np.isfinite(dquery[:2]).all()
            assert np.isnan(dquery[2]).all()
            assert not np.isfinite(dkey).any()  # the last query sees all keys
            if which == 1:
                assert np.isnan(dkey).all()
                assert np.isnan(dvalue).all()
            else:
                assert np.isfinite(dvalue).all()  # the weights alone
    grad_out[0] = NAN
    out, lse = scaled_dot_product_attention(query, key, value, is_causal=True, return_lse=True)
    dquery, dkey, dvalue = scaled_dot_product_attention_backward(grad_out, query, key, value, out, lse, is_causal=True)
    for dx in (dquery[0], dkey[0], dvalue[0]):
        assert np.isnan(dx).all()
    for dx in (dquery[1:], dkey[1:], dvalue[1:]):
        assert np.isfinite(dx).all()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("special", [NAN, INF])
def test_a_visible_query_or_key_that_is_not_finite_gives_nan(softcap, special):
    """With a softcap, infinity has a finite score, of derivative 0: 0 * inf is NaN."""
    mask = np.array([[True, False, True], [True, True, False]])
    for where, expected in (("query", "key"), ("key", "query")):
        arrays = {"query": abs(normal(2, 2)), "key": abs(normal(3, 2)), "value": normal(3, 1)}
        arrays[where][0] = special
        options = {"attn_mask": mask, "softcap": softcap}
        out, lse = scaled_dot_product_attention(*arrays.values(), return_lse=True, **options)
        got = scaled_dot_product_attention_backward(normal(2, 1), *arrays.values(), out, lse, **options)
        got = dict(zip(arrays, got, strict=True))[expected]
        assert np.isnan(got).all(-1).tolist() == ([True, False, True] if where == "query" else [True, True])


@pytest.mark.parametrize("special", [NAN, INF])
def test_a_query_that_sees_nothing_gives_zero_whatever_it_holds(special):
    query, key, value, sinks = normal(1, 3, 2), normal(1, 4, 2), normal(1, 4, 2), np.array([0.5])
    mask = np.array([[True], [False], [True]])
    options = {"attn_mask": mask, "scale": 1.0, "alibi_slopes": np.ones(1), "bias": np.zeros((3, 4)), "sinks": sinks}
    asked = {"grad_scale": True, "grad_bias": True, "grad_sinks": True, "grad_slopes": True}
    grad_out, grad_lse = normal(1, 3, 2), normal(1, 3)
    results = []
    for dirty in (False, True):
        query, grad_out = query.copy(), grad_out.copy()
        if dirty:
            query[0, 1] = grad_out[0, 1] = special
        out, lse = scaled_dot_product_attention(query, key, value, return_lse=True, **options)
        results.append(scaled_dot_product_attention_backward(
            grad_out, query, key, value, out, lse, grad_lse=grad_lse, **options, **asked))
        np.testing.assert_array_equal(results[-1][0][0, 1], 0)
    for clean, dirty in zip(*results, strict=True):
        np.testing.assert_array_equal(clean, dirty)
    # without a sink its lse is a constant, and grad_lse is not read
    grad_lse[0, 1] = special
    del options["sinks"], asked["grad_sinks"]
    out, lse = scaled_dot_product_attention(query, key, value, return_lse=True, **options)
    for dx in scaled_dot_product_attention_backward(
            grad_out, query, key, value, out, lse, grad_lse=grad_lse, **options, **asked):
        assert np.isfinite(dx).all()


def test_a_row_that_sees_its_sink_alone_gives_it_the_gradient_of_lse():
    arrays = normal(1, 2, 2), normal(1, 3, 2), normal(1, 3, 2)
    options = {"attn_mask": np.zeros((2, 3), bool), "sinks": np.array([0.3])}
    out, lse = scaled_dot_product_attention(*arrays, return_lse=True, **options)
    *_, dsinks = scaled_dot_product_attention_backward(
        np.full((1, 2, 2), NAN), *arrays, out, lse, grad_lse=np.array([[2.0, 3]]), grad_sinks=True, **options)
    np.testing.assert_array_equal(dsinks, [5])


def test_parts_of_the_keys_have_their_gradients_from_the_merged_result():
    """The sinks count in the second part, of which the first query sees no key."""
    (query, key, value), _, _ = attention_case("none")
    parts, sinks = [slice(2), slice(2, None)], normal(H)
    options = [{"is_causal": True, "causal_offset": 1}, {"is_causal": True, "causal_offset": -1, "sinks": sinks}]
    cut = [(query, key[..., p, :], value[..., p, :]) for p in parts]
    states = [scaled_dot_product_attention(*x, return_lse=True, **o) for x, o in zip(cut, options, strict=True)]
    out, lse = merge_attention_states(*zip(*states, strict=True))
    grad = normal(*out.shape)
    *whole, dsinks = scaled_dot_product_attention_backward(
        grad, query, key, value, out, lse, is_causal=True, causal_offset=1, sinks=sinks, grad_sinks=True)
    pieces = [scaled_dot_product_attention_backward(grad, *x, out, lse, grad_sinks="sinks" in o, **o)
              for x, o in zip(cut, options, strict=True)]
    np.testing.assert_allclose(pieces[1][3], dsinks, rtol=1e-12)
    np.testing.assert_allclose(pieces[0][0] + pieces[1][0], whole[0], rtol=1e-12, atol=1e-15)
    for i in (1, 2):
        np.testing.assert_allclose(np.concatenate([p[i] for p in pieces], -2), whole[i], rtol=1e-12, atol=1e-15)


def test_attention_gradients_have_the_dtypes_of_the_inputs():
    half, bfloat = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
    for of_query, of_key, numbers in (
        (np.float64, np.float64, np.float64), (np.float32, np.float32, np.float32), (half, half, np.float32),
        (bfloat, bfloat, np.float32), (np.float32, half, np.float32), (np.float32, bfloat, np.float32),
        (np.longdouble, np.longdouble, np.longdouble),
    ):
        arrays, options, asked = attention_case("all")
        exact = backward(arrays, options, asked)
        query, key, value = (x.astype(d) for x, d in zip(arrays, (of_query, of_key, of_key), strict=True))
        options["bias"], options["attn_mask"] = options["bias"].astype(np.float64), options["attn_mask"].astype(of_key)
        got = backward([query, key, value], options, asked)
        dtypes = {k: v.dtype for k, v in got.items()}
        assert dtypes == {"query": of_query, "key": of_key, "value": of_key, "attn_mask": of_key, "bias": np.float64,
                          "scale": numbers, "sinks": numbers, "alibi_slopes": numbers}
        eps = float(ml_dtypes.finfo(of_key).eps) if np.dtype(of_key).itemsize < 16 else 1e-15
        for name in exact:
            np.testing.assert_allclose(got[name].astype(float), exact[name].astype(float), rtol=20 * eps, atol=20 * eps)


# ---------------------------------------------------------------- losses

N, C, D = 5, 4, 3
LOGITS, HIDDEN, LINEAR, LINEAR_BIAS = normal(N, C), normal(N, D), normal(C, D), normal(C)
CLASSES = np.array([2, 0, -100, 3, 1])
PROBABILITIES = np.where(normal(N, C) < 0, 0, abs(normal(C, N).T))
WEIGHT = np.array([0.5, 2, 0, 1.5])
LOSS_OPTIONS = {
    "none": {}, "weight": {"weight": WEIGHT}, "ignore_index": {"ignore_index": 3},
    "smoothing": {"label_smoothing": 0.2}, "z_loss": {"z_loss": 0.3}, "softcap": {"softcap": 0.8},
    "temperature": {"temperature": 0.6},
    "temperature a row": {"temperature": np.array([0.5, 1, 2, 3, 0.25])},
    "smoothing and weight": {"label_smoothing": 0.3, "weight": WEIGHT},
    "all": {"weight": WEIGHT, "ignore_index": 0, "label_smoothing": 0.1, "z_loss": 0.2, "softcap": 1.5,
            "temperature": np.array([0.5, 1, 2, 3, 0.25])},
}
REDUCTIONS = ["mean", "sum", "none"]
TARGETS = {"classes": CLASSES, "probabilities": PROBABILITIES}


def for_target(target, options):
    """The options, with no row of class -100 where another class is ignored."""
    if target == "classes" and options.get("ignore_index", -100) != -100:
        return np.where(CLASSES == -100, 1, CLASSES)
    return TARGETS[target]


def plain_cross_entropy(logits, target, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean",
                        z_loss=0.0, softcap=None, temperature=1.0):
    """PyTorch's documented formulas, row by row, and lse; (N, C) alone."""
    losses, divisor = [], 0
    weight = [1.0] * logits.shape[1] if weight is None else weight
    temperature = np.broadcast_to(temperature, len(logits))
    for row, t, degree in zip(logits, target, temperature, strict=True):
        s = (row if softcap is None else softcap * np.tanh(row / softcap)) / degree
        lse = np.log(np.exp(s).sum())
        log_p = s - lse
        if np.ndim(t) == 0:
            if t == ignore_index:
                losses.append(0.0)
                continue
            nll = -weight[t] * log_p[t]
            smooth = -sum(w * lp for w, lp in zip(weight, log_p, strict=True))
            loss = (1 - label_smoothing) * nll + label_smoothing / len(row) * smooth
            divisor += weight[t]
        else:
            smoothed = t * (1 - label_smoothing) + label_smoothing / len(row)
            loss = -sum(w * y * lp for w, y, lp in zip(weight, smoothed, log_p, strict=True))
            divisor += 1
        losses.append(loss + z_loss * lse ** 2)
    return np.array(losses) if reduction == "none" else sum(losses) / (divisor if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("option", LOSS_OPTIONS)
def test_cross_entropy_is_the_documented_one_and_its_gradient_the_differences(option, target, reduction):
    options = {**LOSS_OPTIONS[option], "reduction": reduction}
    y = for_target(target, options)
    loss, lse, grad = cross_entropy(long(LOGITS), y, return_lse=True, return_grad=True, **options)
    np.testing.assert_allclose(loss.astype(float), plain_cross_entropy(LOGITS, y, **options), rtol=1e-13)
    assert lse.shape == (N,)
    assert_gradient(grad, lambda x: cross_entropy(x, y, **options).sum(), LOGITS)  # "none": the losses' sum
    if option != "none" and not (option == "ignore_index" and target == "probabilities"):
        plain = cross_entropy(LOGITS, y, reduction=reduction, return_grad=True)
        assert not np.allclose(plain[0], np.asarray(loss, float))
        assert not np.allclose(plain[1], grad.astype(float))
    # the results come in this order, whichever are asked for
    for flags in ({"return_lse": True}, {"return_grad": True}, {}):
        got = cross_entropy(long(LOGITS), y, **options, **flags)
        expected = [loss, *([lse] if "return_lse" in flags else []), *([grad] if "return_grad" in flags else [])]
        for one, other in zip(got if flags else [got], expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_cross_entropy_of_known_logits():
    """Equal logits cost log C, and their lse is log C too."""
    np.testing.assert_allclose(cross_entropy(np.zeros((2, 4)), [0, 3]), np.log(4), rtol=1e-15)
    np.testing.assert_allclose(cross_entropy(np.zeros((2, 4)), [0, 3], z_loss=1, reduction="none"),
                               np.log(4) + np.log(4) ** 2, rtol=1e-15)
    np.testing.assert_allclose(cross_entropy([[np.log(3), 0]], [0], weight=[5.0, 1]), np.log(4 / 3), rtol=1e-15)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("target", TARGETS)
def test_the_axis_of_the_classes(axis, target):
    rng = np.random.default_rng(5)
    logits, weight = rng.normal(size=(2, 3, 4)), rng.random(4)
    y, t = rng.integers(4, size=(2, 3)) if target == "classes" else rng.random((2, 3, 4)), rng.random((2, 3)) + 0.5
    options = {"weight": weight, "label_smoothing": 0.1, "return_lse": True, "return_grad": True, "softcap": 2}
    loss, lse, grad = cross_entropy(logits, y, temperature=t, **options)
    moved = y if target == "classes" else np.moveaxis(y, -1, axis)
    for temperature in (t, np.expand_dims(t, axis)):
        got = cross_entropy(np.moveaxis(logits, -1, axis), moved, axis, temperature=temperature, **options)
        np.testing.assert_allclose(got[0], loss, rtol=1e-15)
        np.testing.assert_array_equal(got[1], lse)
        np.testing.assert_array_equal(got[2], np.moveaxis(grad, -1, axis))


def test_losses_near_zero_keep_their_digits():
    small = np.log1p(np.exp(-20))
    for dtype in (np.float32, np.float64):
        loss, grad = cross_entropy(np.array([[20, 0]], dtype), [0], return_grad=True)
        np.testing.assert_allclose(loss, small, rtol=np.finfo(dtype).eps)
        np.testing.assert_allclose(grad, [[-1 / (1 + np.exp(20)), 1 / (1 + np.exp(20))]], rtol=np.finfo(dtype).eps)
        loss, grad = cross_entropy(np.array([[800, 0]], dtype), [0], return_grad=True)
        assert loss == 0
        np.testing.assert_array_equal(grad, 0)


def test_ignored_rows_give_zero_whatever_they_hold():
    logits = np.array([[1.0, 2], [NAN, 3], [INF, 0]])
    for reduction, expected in (("mean", 1), ("sum", 1), ("none", [1, 0, 0])):
        loss, lse, grad = cross_entropy(logits, [0, -100, -100], reduction=reduction, return_lse=True, return_grad=True,
                                        z_loss=0.5, label_smoothing=0.1)
        one = cross_entropy(logits[0], 0, z_loss=0.5, label_smoothing=0.1)
        np.testing.assert_allclose(loss, np.multiply(expected, one), rtol=1e-15)
        np.testing.assert_array_equal(grad[1:], 0)
        np.testing.assert_array_equal(lse[1:], [NAN, INF])  # ignored rows have theirs
    # the matrix product with an ignored row of NaN must not spread it
    loss, (dhidden, dweight, dbias) = linear_cross_entropy(
        np.array([[1.0, 2], [NAN, 1]]), normal(3, 2), [2, -100], linear_bias=normal(3), return_grad=True)
    assert np.isfinite(loss)
    np.testing.assert_array_equal(dhidden[1], 0)
    assert np.isfinite(dweight).all() and np.isfinite(dbias).all() and np.any(dweight)
    _, (dhidden, _) = linear_cross_entropy(normal(2, 2), np.full((3, 2), NAN), [2, -100], return_grad=True)
    np.testing.assert_array_equal(dhidden, [[NAN, NAN], [0, 0]])


def test_a_mean_over_nothing_is_nan_and_its_gradient_zero():
    for logits, target, options in (
        (LOGITS, np.full(N, -100), {}), (np.zeros((0, C)), np.zeros(0, int), {}),
        (np.zeros((0, C)), np.zeros((0, C)), {}),
        (LOGITS, np.full(N, 2), {"weight": WEIGHT}), (LOGITS, np.full(N, 2), {"weight": WEIGHT, "z_loss": 1.0}),
    ):
        loss, grad = cross_entropy(logits, target, return_grad=True, **options)
        assert np.isnan(loss)
        np.testing.assert_array_equal(grad, np.zeros(logits.shape))
    assert cross_entropy(LOGITS, np.full(N, -100), reduction="sum") == 0
    loss, (dhidden, dweight) = linear_cross_entropy(HIDDEN, LINEAR, np.full(N, -100), return_grad=True)
    assert np.isnan(loss)
    assert not np.any(dhidden) and not np.any(dweight)


def test_a_probability_of_zero_contributes_zero():
    logits, target = np.array([0.0, -INF, 0]), np.array([0.25, 0, 0.75])
    loss, grad = cross_entropy(logits, target, return_grad=True)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-15)
    np.testing.assert_array_equal(grad, [0.25, 0, -0.25])
    assert cross_entropy(logits, target, label_smoothing=0.1) == INF
    loss, grad = cross_entropy(logits, 1, return_grad=True)
    assert loss == INF
    np.testing.assert_array_equal(grad, [0.5, -1, 0.5])
    assert cross_entropy(logits, 0) == np.log(2)
    # softcap makes -inf a number
    loss, grad = cross_entropy(logits, 1, softcap=2.0, return_grad=True)
    np.testing.assert_allclose(loss, np.log(2 + np.exp(-2)) + 2, rtol=1e-15)
    assert grad[1] == 0


def test_special_rows_of_the_loss():
    logits = np.array([[NAN, 0, 1], [-INF, -INF, -INF], [INF, 0, 1], [INF, 0, 1]])
    loss, lse, grad = cross_entropy(logits, [1, 1, 1, 0], reduction="none", return_lse=True, return_grad=True)
    np.testing.assert_array_equal(loss, [NAN, NAN, INF, NAN])
    np.testing.assert_array_equal(lse, [NAN, -INF, INF, INF])
    np.testing.assert_array_equal(grad, NAN)
    # a class of weight 0 does not hide the NaN of its row
    assert np.isnan(cross_entropy([[NAN, 0], [1, 0]], [0, 1], weight=[0.0, 1]))


def test_losses_have_the_dtypes_of_the_api():
    for dtype, of_loss in ((np.float32, np.float32), (np.float64, np.float64), (np.float16, np.float32),
                           (ml_dtypes.bfloat16, np.float32), (np.longdouble, np.longdouble)):
        x = LOGITS.astype(dtype)
        for target in TARGETS.values():
            loss, lse, grad = cross_entropy(x, target, return_lse=True, return_grad=True)
            assert loss.dtype == lse.dtype == of_loss
            assert grad.dtype == dtype
            exact = cross_entropy(long(x), target, return_lse=True, return_grad=True)
            for got, true in zip((loss, lse, grad), exact, strict=True):
                eps = float(ml_dtypes.finfo(got.dtype).eps) if got.dtype.itemsize < 16 else np.finfo(float).eps
                np.testing.assert_allclose(got.astype(float), true.astype(float), rtol=0.51 * eps, atol=1e-9 * eps)
        loss, gradients = linear_cross_entropy(HIDDEN.astype(dtype), LINEAR.astype(dtype), CLASSES,
                                               linear_bias=LINEAR_BIAS.astype(np.float32), return_grad=True)
        assert loss.dtype == of_loss
        assert [dx.dtype for dx in gradients] == [dtype, dtype, np.float32]
    assert cross_entropy(np.arange(4), 2).dtype == np.float64
    for target in (np.uint8([1, 2]), np.int32([1, 2]), [1, 2]):
        assert cross_entropy(np.zeros((2, 4)), target) == np.log(4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("option", [name for name in LOSS_OPTIONS if "temperature" not in name])
def test_linear_cross_entropy_is_cross_entropy_of_a_product(option, target, reduction):
    options = {k: v for k, v in LOSS_OPTIONS[option].items() if k != "temperature"} | {"reduction": reduction}
    y = for_target(target, options)
    arrays = [long(x) for x in (HIDDEN, LINEAR, LINEAR_BIAS)]

    def loss_of(hidden, linear_weight, linear_bias=None):
        return linear_cross_entropy(hidden, linear_weight, y, linear_bias=linear_bias, **options)

    loss, gradients = linear_cross_entropy(*arrays[:2], y, linear_bias=arrays[2], return_grad=True, **options)
    np.testing.assert_array_equal(loss, cross_entropy(arrays[0] @ arrays[1].T + arrays[2], y, **options))
    np.testing.assert_array_equal(loss, loss_of(*arrays))
    for i, got in enumerate(gradients):
        assert_gradient(got, lambda x, i=i: loss_of(*arrays[:i], x, *arrays[i + 1:]).sum(), arrays[i])
    loss, gradients = linear_cross_entropy(*arrays[:2], y, return_grad=True, **options)
    assert len(gradients) == 2
    np.testing.assert_array_equal(loss, loss_of(*arrays[:2]))
    for i, got in enumerate(gradients):
        assert_gradient(got, lambda x, i=i: loss_of(*arrays[:i], x, *arrays[i + 1:2]).sum(), arrays[i])


def test_cross_entropy_is_of_real_numbers():
    with pytest.raises(TypeError, match="complex128"):
        cross_entropy([1j, 2], 0)
