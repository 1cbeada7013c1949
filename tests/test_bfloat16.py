"""This package's own bfloat16 dtype, for where ml_dtypes is not installed: its numbers are those of ml_dtypes."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import _bfloat16, _fastpath

OWN, OTHER = _bfloat16.own(), np.dtype(ml_dtypes.bfloat16)
X = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
Q = np.random.default_rng(1).normal(size=(2, 4, 9, 8)).astype(np.float32)
OUT, LSE = fs.scaled_dot_product_attention(Q, Q, Q, return_lse=True)
CLASSES = np.array([3, -100, 0, 39, 7, -100])

CALLS = {
    **{f"{f.__name__}, {name}": (lambda a, f=f, axis=axis, o=options: f(a(X), axis, **o))
       for f in (fs.softmax, fs.log_softmax, fs.softmax_entropy)
       for name, axis, options in (("rows", -1, {}), ("columns", 0, {}), ("all", None, {}), ("both", (0, 1), {}),
                                   ("masked", -1, {"where": X > 0}), ("temperature", 1, {"temperature": 2.0}),
                                   ("reference", -1, {"temperature": 1e35}))},
    "logsumexp": lambda a: fs.logsumexp(a(X), -1),
    "logsumexp, of all": lambda a: fs.logsumexp(a(X)[:, ::2]),
    "strided": lambda a: fs.softmax(a(X)[:, ::2].T, -1),
    "causal_softmax": lambda a: fs.causal_softmax(a(X), temperature=0.3),
    "softmax_backward": lambda a: fs.softmax_backward(a(X)[:, ::2], a(abs(X))[:, ::2], 0),
    "log_softmax_backward": lambda a: fs.log_softmax_backward(a(X), a(-abs(X)), -1, temperature=1e35),
    "logsumexp_backward": lambda a: fs.logsumexp_backward(a(X[:, 0]), a(X), fs.logsumexp(a(X), -1), -1),
    "softmax_entropy_backward": lambda a: fs.softmax_entropy_backward(a(X[:, 0]), a(X), -1),
    "cross_entropy": lambda a: fs.cross_entropy(a(X), CLASSES, return_lse=True, return_grad=True),
    "cross_entropy, of nothing": lambda a: fs.cross_entropy(a(X), CLASSES * 0 - 100, return_grad=True),
    "cross_entropy, capped": lambda a: fs.cross_entropy(a(X), a(abs(X)), weight=a(abs(X[0])), softcap=3.0,
                                                        return_grad=True),
    "attention": lambda a: fs.scaled_dot_product_attention(
        a(Q), a(Q[:, :2]), a(Q[:, :2]), a(Q[0, 0, :, :1]), is_causal=True, enable_gqa=True, bias=Q[0, 0, :, :1],
        sinks=a(Q[0, :, 0, 0]), return_lse=True, return_entropy=True),
    "attention, strided": lambda a: fs.scaled_dot_product_attention(a(Q)[..., ::2], a(Q)[..., ::2], a(Q)),
    "attention, by the reference": lambda a: fs.scaled_dot_product_attention(a(Q), a(Q), a(Q), scale=1e35),
    "attention_backward": lambda a: fs.scaled_dot_product_attention_backward(
        a(Q), a(Q), a(Q[:, :1]), a(Q), OUT, LSE, a(Q[0, 0, :, :1]), grad_mask=True),
    "attention_backward, no keys": lambda a: fs.scaled_dot_product_attention_backward(
        a(Q), a(Q), a(Q[:, :, :0]), a(Q[:, :, :0]), OUT, LSE),
    "linear_cross_entropy": lambda a: fs.linear_cross_entropy(a(X[:2]), a(X[2:]), [1, -100]),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_ml_dtypes(name):
    own, other = (CALLS[name](lambda x, dtype=dtype: np.asarray(x).astype(dtype)) for dtype in (OWN, OTHER))
    for mine, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in (own, other)), strict=True):
        assert np.shape(mine) == np.shape(theirs)
        if np.shape(mine):
            assert mine.dtype == (OWN if theirs.dtype == OTHER else theirs.dtype)
        np.testing.assert_array_equal(np.asarray(mine).astype(float), np.asarray(theirs).astype(float))


def test_every_number_converts_as_in_ml_dtypes():
    bits = np.arange(1 << 16, dtype=np.uint16)
    number = bits.view(OTHER).astype(np.float32)
    np.testing.assert_array_equal(bits.view(OWN).astype(np.float32), number)
    is_nan = np.isnan(number)
    for dtype in (np.float32, np.float64, np.longdouble):
        with np.errstate(invalid="ignore"):     # of signalling NaN
            back = number.astype(dtype).astype(OWN).view(np.uint16)
        np.testing.assert_array_equal(back[~is_nan], bits[~is_nan])
    assert np.isnan(number[is_nan].astype(OWN).astype(float)).all()


@pytest.mark.parametrize("shift", [-1, 0, 1, 0x7fff, 0x8000, 0x8001])
def test_conversion_rounds_to_nearest_and_ties_to_even(shift):
    """Every bfloat16, and numbers beside it and beside the middle of it and the next."""
    single = ((np.arange(0x7f80, dtype=np.int64) << 16) + shift).clip(0).astype(np.uint32).view(np.float32)
    single = np.concatenate([single, -single])
    np.testing.assert_array_equal(single.astype(OWN).view(np.uint16), single.astype(OTHER).view(np.uint16))


def test_arrays_are_filled_indexed_and_swapped():
    x = np.zeros((2, 3), OWN)
    x[0], x[1, 1] = 1.5, np.nan
    assert x[0, 0] == 1.5 and np.isnan(x[1, 1]) and x[1, 2] == 0
    assert x.astype(OWN.newbyteorder(">")).astype(np.float32)[0, 2] == 1.5
    assert _fastpath.tag(OWN) == "bf16"
    assert np.count_nonzero(x) == 4
    with pytest.raises(TypeError):
        x[0] = "a"


def test_ml_dtypes_is_not_needed():
    """Without it, the dtype is this package's, and both may live in one process."""
    code = """if True:
        import sys
        import numpy as np
        sys.modules["ml_dtypes"] = None
        import fastsoftmax
        from fastsoftmax import _bfloat16
        x = np.ones((2, 4), np.float32)
        y = fastsoftmax.softmax(x.astype(_bfloat16.dtype()), -1)
        assert y.dtype == _bfloat16.dtype() == _bfloat16.own() and (y.astype(float) == 0.25).all()
        del sys.modules["ml_dtypes"]
        import ml_dtypes
        y = fastsoftmax.softmax(x.astype(ml_dtypes.bfloat16), -1)
        assert y.dtype == ml_dtypes.bfloat16 and (y.astype(float) == 0.25).all()
        y = fastsoftmax.softmax(x.astype(_bfloat16.own()), -1)
        assert y.dtype == _bfloat16.own()
    """
    subprocess.run([sys.executable, "-c", code], check=True)
