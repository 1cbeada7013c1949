"""The reference itself, against mpmath, SciPy and the tables of values: everything else is tested against it."""

import warnings

import ml_dtypes
import mpmath
import numpy as np
import pytest
from helpers import assert_accurate, plain_attention

from fastsoftmax import reference
from fastsoftmax.reference import (
    causal_mask_,
    causal_softmax,
    log_softmax,
    logsumexp,
    merge_attention_states,
    scaled_dot_product_attention,
    softmax,
    softmax_entropy,
)

INF, NAN = np.inf, np.nan
ROWS = {  # a row -> softmax, log_softmax, logsumexp
    (0.0,): ([1], [0], 0),
    (NAN, 1, -INF): ([NAN] * 3, [NAN] * 3, NAN),
    (-INF, -INF): ([NAN] * 2, [NAN] * 2, -INF),
    (INF, 1): ([NAN] * 2, [NAN, -INF], INF),
    (INF, INF, -INF): ([NAN] * 3, [NAN, NAN, -INF], INF),
    (NAN, INF): ([NAN] * 2, [NAN] * 2, NAN),
    (0, -INF): ([1, 0], [0, -INF], 0),
}


@pytest.fixture(autouse=True)
def _nothing_warns():
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def exact(x, temperature=1):
    """Weights, log weights, logsumexp and entropy of a row with 60 digits, as long doubles."""
    with mpmath.workdps(60):
        row = [mpmath.mpf(float(v)) / mpmath.mpf(float(temperature)) for v in x]
        peak = max(row)
        terms = [mpmath.exp(v - peak) for v in row]
        total = mpmath.fsum(terms)
        log_total = mpmath.log(total)
        weights = [t / total for t in terms]
        logs = [v - peak - log_total for v in row]
        entropy = -mpmath.fsum(w * v for w, v in zip(weights, logs, strict=True))
        to_long = np.vectorize(lambda v: np.longdouble(mpmath.nstr(v, 30)), otypes=[np.longdouble])
        return to_long(weights), to_long(logs), to_long(peak + log_total), to_long(entropy)


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.longdouble])
def test_special_values(row, dtype):
    x = np.array(row).astype(dtype)
    for f, expected in zip((softmax, log_softmax, logsumexp), ROWS[row], strict=True):
        y = f(x)
        assert y.dtype == dtype
        np.testing.assert_array_equal(np.asarray(y).astype(float), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("spread", [0.1, 5, 16, 100])
@pytest.mark.parametrize("temperature", [1, 0.7])
def test_narrow_types_are_correctly_rounded(dtype, spread, temperature):
    x = (-spread * np.random.default_rng(0).random(40)).astype(dtype)
    weights, logs, lse, entropy = exact(x, temperature)
    assert_accurate(softmax(x, temperature=temperature), weights.astype(float), 0.51)
    assert_accurate(log_softmax(x, temperature=temperature), logs.astype(float), 0.51)
    assert_accurate(softmax_entropy(x, temperature=temperature), entropy.astype(float), 0.51)
    if temperature == 1:
        assert_accurate(logsumexp(x), lse.astype(float), 0.51)


@pytest.mark.parametrize("spread", [0.1, 30, 700])
def test_long_double_is_an_oracle_of_float64(spread):
    x = np.append(-spread * np.random.default_rng(0).random(40), 0.0)
    for got, true in zip(
        (f(x.astype(np.longdouble)) for f in (softmax, log_softmax, logsumexp, softmax_entropy)), exact(x), strict=True
    ):
        assert np.asarray(got).dtype == np.longdouble
        assert_accurate(np.asarray(got).astype(np.float64), true, 0.8)
    assert_accurate(log_softmax(x), exact(x)[1], 2)
    assert_accurate(logsumexp(x), exact(x)[2], 1.5)


def test_bfloat16_is_rounded_once():
    """By way of float32, 1 + 2**-8 + 2**-40 would become a tie, and then 1."""
    values = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8, 1 + 3 * 2**-8 - 2**-40, -1 - 2**-8 - 2**-40, 1e39, NAN, -INF])
    with np.errstate(all="ignore"):
        rounded = reference._round(values, np.dtype(ml_dtypes.bfloat16)).astype(float)
    np.testing.assert_array_equal(rounded, [1 + 2**-7, 1, 1 + 2**-7, -1 - 2**-7, INF, NAN, -INF])


def test_small_log_weights():
    np.testing.assert_allclose(log_softmax([0.0, -20.0])[0], -np.log1p(np.exp(-20.0)), rtol=1e-15)
    np.testing.assert_allclose(logsumexp([0.0, -40.0]), np.exp(-40.0), rtol=1e-15)


def test_where_hides_whatever_is_stored():
    x = np.array([[0, NAN, 0], [1, INF, -INF], [NAN, NAN, NAN], [NAN, 5, 5]])
    keep = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool)
    np.testing.assert_array_equal(softmax(x, 1, where=keep), [[0.5, 0, 0.5], [1, 0, 0], [0, 0, 0], [NAN, NAN, 0]])
    np.testing.assert_array_equal(
        log_softmax(x, 1, where=keep), [[-np.log(2), -INF, -np.log(2)], [0, -INF, -INF], [-INF] * 3, [NAN, NAN, -INF]]
    )
    np.testing.assert_array_equal(logsumexp(x, 1, where=keep), [np.log(2), 1, -INF, NAN])
    np.testing.assert_array_equal(softmax_entropy(x, 1, where=keep), [np.log(2), 0, 0, NAN])


def test_temperature_divides_scores():
    x = np.random.default_rng(1).normal(size=(2, 3, 5))
    t = np.array([0.5, 1, 3]).reshape(3, 1)
    np.testing.assert_allclose(softmax(x, -1, temperature=t), softmax(x / t, -1), rtol=1e-14)
    np.testing.assert_allclose(log_softmax(x, -1, temperature=t), log_softmax(x / t, -1), rtol=1e-14)
    np.testing.assert_allclose(softmax_entropy(x, -1, temperature=t), softmax_entropy(x / t, -1), rtol=1e-13)
    np.testing.assert_allclose(causal_softmax(x, temperature=0.3), causal_softmax(x / 0.3), rtol=1e-14)


def test_dtype_is_the_results():
    x = np.float32([0.1, 0.7])
    for f in (softmax, log_softmax, logsumexp):
        for dtype in (np.float16, np.float64, np.longdouble, ml_dtypes.bfloat16):
            assert f(x, dtype=dtype).dtype == dtype
        np.testing.assert_array_equal(f(x, dtype=np.float64), f(x.astype(np.float64)))
    assert causal_softmax(np.zeros((2, 2), np.float32), dtype=np.float64).dtype == np.float64


def test_integers_are_converted_before_any_subtraction():
    np.testing.assert_array_equal(softmax(np.array([-128, 127], np.int8)), np.array([0, 1], np.float16))
    np.testing.assert_array_equal(log_softmax(np.array([0, 255], np.uint8)), np.array([-255, 0], np.float16))
    assert logsumexp(np.array([True, True])) == 1 + np.log(2)
    assert softmax(np.array([True, False])).dtype == np.float16
    assert logsumexp(np.int8([1])).dtype == np.float64


def test_an_empty_axis():
    for f in (softmax, log_softmax, softmax_entropy):
        with pytest.raises(ValueError, match="zero-size"):
            f(np.zeros((3, 0)), 1)
        assert f(np.zeros((0, 3)), 1).shape[0] == 0
    np.testing.assert_array_equal(logsumexp(np.zeros((3, 0)), 1), [-INF] * 3)
    np.testing.assert_array_equal(logsumexp(np.zeros((3, 0)), 1, return_sign=True)[1], 0)


def test_scalars_and_empty_tuples():
    assert type(softmax(np.float32(3))) is np.float32
    np.testing.assert_array_equal(softmax(np.array([[3.0, 4.0]]), ()), [[1, 1]])
    np.testing.assert_array_equal(logsumexp(np.array([3.0, 4.0]), ()), [3, 4])


def test_logsumexp_ignores_terms_of_weight_zero():
    assert logsumexp([1, NAN], b=[1, 0]) == 1
    assert logsumexp([1, INF], b=[1, 0]) == 1
    assert logsumexp([NAN, INF], b=[0, 0]) == -INF
    assert logsumexp([1.0, 2.0], b=[1, NAN], where=[True, False]) == 1


def test_logsumexp_of_a_negative_sum():
    assert np.isnan(logsumexp([1.0, 2.0], b=[1, -1]))
    value, sign = logsumexp([1.0, 2.0], b=[1, -1], return_sign=True)
    np.testing.assert_allclose((value, sign), (np.log(np.e**2 - np.e), -1), rtol=1e-15)
    assert logsumexp([1.0, 1.0], b=[1, -1], return_sign=True) == (-INF, 0)
    assert logsumexp([INF], b=[-1], return_sign=True) == (INF, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("b_dtype", [None, np.int64, np.float32, np.complex128])
def test_agrees_with_scipy(dtype, b_dtype):
    special = pytest.importorskip("scipy.special", reason="compares with SciPy")
    rng = np.random.default_rng(2)
    x = (
        5 * rng.normal(size=(4, 3, 7))
        + (20j * rng.normal(size=(4, 3, 7)) if dtype in (np.complex64, np.complex128) else 0)
    ).astype(dtype)
    rtol = 2e-5 if dtype in (np.float32, np.complex64) else 1e-12
    b = (
        None
        if b_dtype is None
        else (3 * rng.normal(size=(3, 7)) + (1j if b_dtype is np.complex128 else 0)).astype(b_dtype)
    )
    for axis in (None, 1, (0, 2), -1):
        for kwargs in ({}, {"keepdims": True}, {"return_sign": True}):
            with np.errstate(all="ignore"):
                expected = special.logsumexp(x, axis, b, **kwargs)
            got = logsumexp(x, axis, b, **kwargs)
            for g, e in zip(np.atleast_1d(got), np.atleast_1d(expected), strict=True):
                assert np.asarray(g).dtype == e.dtype
                np.testing.assert_allclose(g, e, rtol=rtol, atol=rtol)
        if b is None:
            np.testing.assert_allclose(softmax(x, axis), special.softmax(x, axis), rtol=rtol, atol=rtol)
            np.testing.assert_allclose(log_softmax(x, axis), special.log_softmax(x, axis), rtol=rtol, atol=rtol)


def test_entropy_is_of_real_scores():
    with pytest.raises(TypeError, match="complex128"):
        softmax_entropy([1j, 2])


def test_causal():
    x = np.array([[0, NAN, INF], [0, 0, NAN]])
    np.testing.assert_array_equal(causal_softmax(x), [[1, 0, 0], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(causal_softmax(x, offset=-1), [[0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(causal_softmax(np.zeros((1, 2)), offset=1), [[0.5, 0.5]])
    assert causal_mask_(x, offset=-1, fill_value=9) is x
    np.testing.assert_array_equal(x, [[9, 9, 9], [0, 9, 9]])


# ---------------------------------------------------------------- attention


def random_attention(heads=4, key_heads=2):
    rng = np.random.default_rng(0)
    return (*(rng.normal(size=(2, h, n, e)) for h, n, e in ((heads, 5, 3), (key_heads, 7, 3), (key_heads, 7, 2))), rng)


OPTIONS = {
    "none": lambda rng: {},
    "causal": lambda rng: {"is_causal": True, "causal_offset": [2, -1]},
    "window": lambda rng: {"window": (2, 1), "causal_offset": 1},
    "masks": lambda rng: {"attn_mask": rng.random((2, 1, 5, 7)) < 0.5, "bias": rng.normal(size=(4, 1, 7))},
    "floating mask": lambda rng: {"attn_mask": np.where(rng.random((5, 7)) < 0.5, 1, -INF), "scale": 0.3},
    "scale per head": lambda rng: {"scale": rng.random(4), "softcap": 0.7},
    "alibi": lambda rng: {"alibi_slopes": rng.random((2, 4)), "causal_offset": 2},
    "sinks": lambda rng: {"sinks": rng.normal(size=4), "key_lengths": [3, 0]},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_attention_is_what_one_writes_head_by_head(option):
    *arrays, rng = random_attention()
    kwargs = {"enable_gqa": True, **OPTIONS[option](rng)}
    results = scaled_dot_product_attention(*arrays, return_lse=True, return_entropy=True, **kwargs)
    for got, expected in zip(results, plain_attention(*arrays, **kwargs)[:3], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(scaled_dot_product_attention(*arrays, **kwargs), results[0])


def test_attention_is_softmax_of_scores_times_values():
    query, key, value, _ = random_attention(2)
    weights = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(3), -1)
    out, lse, entropy = scaled_dot_product_attention(query, key, value, return_lse=True, return_entropy=True)
    np.testing.assert_allclose(out, weights @ value, rtol=1e-14)
    np.testing.assert_allclose(lse, logsumexp(query @ key.swapaxes(-1, -2) / np.sqrt(3), -1), rtol=1e-14)
    np.testing.assert_allclose(entropy, -(weights * np.log(weights)).sum(-1), rtol=1e-13)


def test_attention_hides_whatever_is_stored():
    query, key, value = np.ones((2, 1)), np.array([[1.0], [NAN], [2]]), np.array([[1.0], [NAN], [3]])
    for mask in (np.array([True, False, True]), np.array([0, -INF, 0])):
        out = scaled_dot_product_attention(query, key, value, mask)
        np.testing.assert_allclose(out, [[(1 + 3 * np.e) / (1 + np.e)]] * 2)
    key[1] = 1
    for special in (NAN, INF, -INF):
        value[1] = special
        np.testing.assert_array_equal(
            scaled_dot_product_attention(query, key, value, is_causal=True), [[1], [special]])
    out, lse, entropy = scaled_dot_product_attention(
        query, key, value, np.zeros(3, bool), return_lse=True, return_entropy=True)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(lse, -INF)
    np.testing.assert_array_equal(entropy, 0)
    key[1] = NAN
    assert np.isnan(scaled_dot_product_attention(query, key, value)).all()


def test_attention_dtypes():
    query, key, value, _ = random_attention(2)
    for dtype, statistics in ((np.float32, np.float32), (np.float16, np.float32), (ml_dtypes.bfloat16, np.float32),
                              (np.float64, np.float64), (np.longdouble, np.longdouble)):
        arrays = [x.astype(dtype) for x in (query, key, value)]
        out, lse, entropy = scaled_dot_product_attention(*arrays, return_lse=True, return_entropy=True)
        assert out.dtype == dtype
        assert lse.dtype == entropy.dtype == statistics
        merged, merged_lse = merge_attention_states([out, out], [lse, lse])
        assert merged.dtype == dtype
        assert merged_lse.dtype == statistics


def test_merged_halves_are_the_whole():
    query, key, value, _ = random_attention(2)
    whole = scaled_dot_product_attention(query, key, value, return_lse=True)
    halves = [scaled_dot_product_attention(query, key[:, :, part], value[:, :, part], return_lse=True)
              for part in (slice(3), slice(3, None), slice(0))]
    halves[2][0][:] = NAN  # of no keys: counts for nothing
    for got, expected in zip(merge_attention_states(*zip(*halves, strict=True)), whole, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-14)
    out, lse = merge_attention_states(*zip(halves[2], strict=True))
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(lse, -INF)
