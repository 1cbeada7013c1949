"""The errors of sample, filter_logits and penalize_ for bad arguments; nothing is written then."""

import numpy as np
import pytest
from helpers import LAYOUTS
from test_sampling import FILTERS, INF, NAN, example

from fastsoftmax import filter_logits, penalize_, sample

ONE = np.zeros((2, 3))
OUT_OF_RANGE = [
    ({"temperature": -1.0}, "temperature must be finite and not negative, got -1.0"),
    ({"temperature": INF}, "temperature must be finite and not negative, got inf"),
    ({"temperature": NAN}, "temperature must be finite and not negative, got nan"),
    ({"temperature": [1.0, -2.0]}, r"temperature\[1\] must be finite and not negative, got -2.0"),
    ({"top_k": 0}, "top_k must be at least 1, got 0"), ({"top_k": -(10**30)}, "top_k must be at least 1"),
    ({"top_k": [3, 0]}, r"top_k\[1\] must be at least 1, got 0"),
    *(({name: value}, rf"{name} must be from 0 to 1, got {value}")
      for name in ("top_p", "min_p", "typical_p") for value in (-0.1, 1.5, NAN)),
    ({"top_p": [0.5, 1.1]}, r"top_p\[1\] must be from 0 to 1, got 1.1"),
    ({"top_p": [0.5] * 3}, r"top_p of shape \(3,\) does not broadcast to \(2,\)"),
    ({"temperature": [[1.0]] * 2}, r"temperature of shape \(2, 1\) does not broadcast to \(2,\)"),
    ({"where": np.ones(4, bool)}, "where of shape"),
]


@pytest.mark.parametrize("options, message", OUT_OF_RANGE)
def test_a_parameter_out_of_range_is_named(options, message):
    out = np.full((2, 3), 5.0)
    with pytest.raises(ValueError, match=message):
        sample(ONE, rng=0, **options)
    with pytest.raises(ValueError, match=message):
        filter_logits(ONE, out=out, **options)
    assert np.all(out == 5)


@pytest.mark.parametrize("uniform, message", [
    (1.0, r"uniform must be in \[0, 1\), got 1.0"), (-1e-9, "uniform must be in"), (NAN, "uniform must be in"),
    ([0.5, 1.5], r"uniform\[1\] must be in \[0, 1\), got 1.5"),
    ([0.1] * 3, r"uniform of shape \(3,\) does not broadcast")])
def test_uniform_numbers_out_of_range_are_named(uniform, message):
    with pytest.raises(ValueError, match=message):
        sample(ONE, uniform=uniform)


@pytest.mark.parametrize("options, message", [
    ({"top_k": 2.0}, "top_k must be an int or an array of ints, got dtype float64"),
    ({"top_k": True}, "top_k must be an int"), ({"top_p": "x"}, "top_p must be"),
    ({"temperature": 1j}, "temperature must be"), ({"where": [1, 1, 0]}, "where must be an array of bool"),
    ({"uniform": [True, False]}, "uniform must be real numbers")])
def test_a_parameter_of_the_wrong_type_is_named(options, message):
    with pytest.raises(TypeError, match=message):
        sample(ONE, **options)


def test_logits_of_the_wrong_kind():
    for bad, message in ((ONE.astype(complex), "real numbers"), (ONE.astype(object), "dtype object"),
                         (np.ma.masked_array(ONE), "masked array"), (np.array(["a"]), "array of numbers")):
        with pytest.raises(TypeError, match=message):
            sample(bad, rng=0)
        with pytest.raises(TypeError, match=message):
            filter_logits(bad)
    with pytest.raises(ValueError, match=r"there are no tokens: axis 1 of logits of shape \(2, 0\) is empty"):
        sample(np.zeros((2, 0)), rng=0)
    for out in (np.zeros((2, 4)), np.zeros((2, 3), np.float32), np.broadcast_to(0.0, (2, 3))):
        with pytest.raises((TypeError, ValueError), match="out"):
            filter_logits(ONE, out=out)


@pytest.mark.parametrize("layout", ["Fortran-ordered", "byte-swapped", "padded rows"])
def test_a_row_that_is_not_fine_is_named_and_nothing_is_written(kernel, layout):
    if "swapped" in layout and kernel.tag == "bf16":
        return
    for value, message in ((NAN, r"logits\[4, :\] holds NaN"), (INF, r"logits\[4, :\] holds \+inf")):
        x = example((6, 300), kernel.dtype)
        x[4, 299] = x[5, 0] = value
        x = LAYOUTS[layout](x)
        out = np.full_like(x, 5)
        for options in FILTERS:
            with pytest.raises(ValueError, match=message):
                sample(x, rng=0, **options)
            with pytest.raises(ValueError, match=message):
                filter_logits(x, **options)
            with pytest.raises(ValueError, match=message):
                filter_logits(x, out=out, **options)
        assert np.all(out == 5)
    x = example((2, 9, 3), kernel.dtype)
    x[1, :, 2] = -INF
    with pytest.raises(ValueError, match=r"logits\[1, :, 2\] has no token to draw: every logit is -inf or hidden"):
        sample(x, 1, rng=0)
    with pytest.raises(ValueError, match=r"logits\[0, :, 0\] has no token to draw"):
        sample(x, 1, rng=0, where=np.arange(3) > 0)
    with pytest.raises(ValueError, match="logits has no token to draw"):
        sample(x[1, :, 2], rng=0)
    assert np.all(filter_logits(x, 1, top_k=2)[1, :, 2] == -INF)


def test_a_row_of_long_double_is_named_too():
    for value, message in ((NAN, "holds NaN"), (INF, r"holds \+inf"), (-INF, "has no token")):
        x = np.zeros((3, 4), np.longdouble)
        x[2] = value
        with pytest.raises(ValueError, match=rf"logits\[2, :\] {message}"):
            sample(x, rng=0)


@pytest.mark.parametrize("arguments, error, message", [
    (([[0, 3]] * 2, {}), IndexError, r"tokens\[0, 1\] is 3, which is not from 0 to 2"),
    (([[0, 1], [-1, 0]], {}), IndexError, r"tokens\[1, 0\] is -1, which is not from 0 to 2"),
    (([[0, 1]], {}), ValueError,
     r"tokens of shape \(1, 2\) does not fit logits of shape \(2, 3\): it must be \(2, T\)"),
    (([[0.0]] * 2, {}), TypeError, "tokens must be integers, got dtype float64"),
    (([[0]] * 2, {"repetition": 0.0}), ValueError, "repetition must be positive and finite, got 0.0"),
    (([[0]] * 2, {"repetition": [1.0, -1.0]}), ValueError, r"repetition\[1\] must be positive and finite, got -1.0"),
    (([[0]] * 2, {"repetition": NAN}), ValueError, "repetition must be positive and finite, got nan"),
    (([[0]] * 2, {"frequency": NAN}), ValueError, "frequency must be finite, got nan"),
    (([[0]] * 2, {"presence": INF}), ValueError, "presence must be finite, got inf"),
    (([[0]] * 2, {"lengths": 2}), ValueError, "lengths must be from 0 to the number of tokens, 1, got 2"),
    (([[0]] * 2, {"lengths": [0, -1]}), ValueError, r"lengths\[1\] must be from 0 to the number of tokens, 1, got -1"),
    (([[0]] * 2, {"lengths": 1.0}), TypeError, "lengths must be an int or an array of ints"),
])
def test_bad_penalties_are_named_and_nothing_is_written(arguments, error, message):
    x = np.ones((2, 3))
    tokens, options = arguments
    with pytest.raises(error, match=message):
        penalize_(x, tokens, **{"presence": 1.0, **options})
    assert np.all(x == 1)


def test_only_a_writeable_array_of_floats_is_penalised():
    frozen = np.ones(3)
    frozen.flags.writeable = False
    for bad, error, message in (
            ([1.0, 2.0], TypeError, "must be an ndarray"), (np.ones(3, int), TypeError, "must be floating"),
            (np.ma.masked_array(np.ones(3)), TypeError, "masked array"), (frozen, ValueError, "read-only"),
            (np.broadcast_to(1.0, (3,)), ValueError, "read-only"), (np.array(1.0), ValueError, "dimension")):
        with pytest.raises(error, match=message):
            penalize_(bad, [0])
    shared = np.lib.stride_tricks.as_strided(np.zeros(4), (3, 2), (8, 8))
    with pytest.raises(ValueError, match="share memory"):
        penalize_(shared, [[0]] * 3)
