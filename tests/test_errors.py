"""What bad input gets: the type of the error, a message that names the fault, `out` untouched, the next call fine."""

import numpy as np
import pytest

import fastsoftmax
from fastsoftmax import causal_mask_, causal_softmax, log_softmax, logsumexp, softmax, softmax_entropy

X = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
FULL = (softmax, log_softmax)
REDUCING = (*FULL, logsumexp, softmax_entropy)
by_name = {"ids": lambda f: f.__name__}


@pytest.fixture(autouse=True)
def _input_unchanged_and_next_call_fine():
    before = X.copy()
    yield
    np.testing.assert_array_equal(X, before)
    np.testing.assert_allclose(softmax(X, 1).sum(1), 1, rtol=1e-15)
    np.testing.assert_allclose(logsumexp(X, 1), [3.40760596, 6.40760596])


def refuses(error, match, f, *args, **kwargs):
    """`f` raises, and an `out` given to it along with the fault keeps its content."""
    with pytest.raises(error, match=match) as caught:
        f(*args, **kwargs)
    assert type(caught.value) is error
    if f in FULL and args[0] is X:
        out = np.full(X.shape, 7.0)
        with pytest.raises(error, match=match):
            f(*args, **{"out": out, **kwargs})
        assert np.all(out == 7)


@pytest.mark.parametrize("f", REDUCING, **by_name)
def test_axis(f):
    for axis in (2, -3, (0, 2), (-3,)):
        refuses(np.exceptions.AxisError, "axis -?[23] is out of bounds for array of dimension 2", f, X, axis)
    for axis in ((0, 0), (1, -1)):
        refuses(ValueError, "(?i)(repeated|duplicate)", f, X, axis)
    for axis in (1.0, "1", (0, 1.0), [0.5]):
        refuses(TypeError, r"\bint", f, X, axis)


UNSUPPORTED = [
    np.array([1.0, None], object),
    np.array(["a", "bc"]),
    np.array([b"a"]),
    np.zeros(2, [("score", "f4")]),
    np.zeros(2, "M8[s]"),
    np.zeros(2, "m8[s]"),
    np.zeros(2, "V4"),
]


@pytest.mark.parametrize("f", (*REDUCING, causal_softmax), **by_name)
@pytest.mark.parametrize("x", UNSUPPORTED, ids=lambda x: x.dtype.str)
def test_unsupported_dtypes_are_named(f, x):
    x = np.broadcast_to(x, (2, x.size))
    kind = {"O": "object", "U": "<U2", "S": "S1", "M": "datetime64", "m": "timedelta64", "V": "score|V4|void"}[
        x.dtype.kind
    ]
    refuses(TypeError, kind, f, x)


@pytest.mark.parametrize("f", (*FULL, logsumexp, causal_softmax), **by_name)
def test_result_dtypes_that_are_not_floating(f):
    for dtype in (int, bool, "U3", object):
        refuses(TypeError, "dtype", f, X, dtype=dtype)


@pytest.mark.parametrize("f", (*FULL, logsumexp, causal_softmax), **by_name)
def test_real_results_of_complex_input(f):
    """Also where the item sizes are the same, complex64 and float64: there the imaginary part was once dropped."""
    for given, wanted in (("c8", "f4"), ("c8", "f8"), ("c16", "f4"), ("c16", "g"), ("c16", "f2")):
        refuses(TypeError, f"complex.*{np.dtype(wanted)}", f, X.astype(given), dtype=wanted)


@pytest.mark.parametrize("f", (*FULL, logsumexp, causal_softmax), **by_name)
def test_out(f):
    args = () if f is causal_softmax else (1,)
    right = f(X, *args).shape
    named = ", ".join(map(str, right))
    for shape in ((3,), (3, 2), (2, 3, 1), ()):
        out = np.full(shape, 7.0)
        refuses(ValueError, rf"(?s){named}", f, X, *args, out=out)
        assert np.all(out == 7)
    for dtype in (np.float32, np.int64, np.complex128, object):
        out = np.full(right, 7, dtype)
        refuses(TypeError, "float64", f, X, *args, out=out)
        assert np.all(out == 7)
    out = np.full(right, 7.0)
    out.flags.writeable = False
    refuses(ValueError, "(?i)read-?only|writ(e|a)able", f, X, *args, out=out)
    assert np.all(out == 7)
    refuses(TypeError, "(?i)out.*(array|list)", f, X, *args, out=[0.0, 0.0])


@pytest.mark.parametrize("f", (*FULL, softmax_entropy), **by_name)
def test_temperature(f):
    impossible = [0, 0.0, -1, -(10**400), np.longdouble("1e-4000"), np.nan, np.inf, -np.inf]
    for bad in (*impossible, np.array([[1.0], [0.0]]), np.array([[1.0], [np.nan]])):
        refuses(ValueError, "temperature", f, X, 1, temperature=bad)
    for bad in (np.ones(2), np.ones((3, 1)), np.ones(3), np.ones((1, 2, 1))):  # does not fit, or varies along the row
        refuses(ValueError, "temperature", f, X, 1, temperature=bad)
    for bad in ("1", 1j, [object()], None):
        refuses(TypeError, "temperature", f, X, 1, temperature=bad)


def test_temperature_of_causal_softmax():
    for bad in (0, -1, np.nan, np.inf, np.ones(3), np.zeros((2, 1))):
        refuses(ValueError, "temperature", causal_softmax, X, temperature=bad)
    refuses(TypeError, "temperature", causal_softmax, X, temperature=None)


@pytest.mark.parametrize("f", REDUCING, **by_name)
def test_where(f):
    for bad in (np.ones(3, int), [1, 0, 1], 1.0, np.ones(3, "U1")):
        refuses(TypeError, "where.*bool|bool.*where", f, X, 1, where=bad)
    for shape in ((2,), (3, 3), (4, 2, 3), (2, 4)):
        refuses(ValueError, "where", f, X, 1, where=np.ones(shape, bool))


@pytest.mark.parametrize("f", (*REDUCING, causal_softmax, causal_mask_), **by_name)
def test_masked_arrays_are_told_what_to_pass(f):
    masked = np.ma.masked_array(X, X > 4)
    advice = {causal_softmax: r"pass scores\.filled\(-inf\)", causal_mask_: r"pass scores\.data"}  # no `where` there
    refuses(TypeError, "masked array.*" + advice.get(f, r"pass (\w+)\.data and where=~\1\.mask"), f, masked)
    if f in advice:
        with pytest.raises(TypeError, match="^((?!where).)*$"):
            f(masked)
    np.testing.assert_array_equal(masked.data, X)


def test_an_empty_axis():
    for f in (*FULL, softmax_entropy):
        for shape, axis in (((0,), None), ((3, 0), 1), ((0, 3), 0), ((0, 3), None), ((2, 0, 3), (0, 1))):
            refuses(ValueError, "(?i)(empty|zero-size)", f, np.zeros(shape), axis)
    assert softmax(np.zeros((0, 3)), 1).shape == (0, 3)
    assert logsumexp([]) == -np.inf
    np.testing.assert_array_equal(logsumexp(np.zeros((3, 0), np.float32), 1), np.full(3, -np.inf, np.float32))
    assert logsumexp(np.zeros((0, 3)), 1).shape == (0,)
    for shape in ((3, 0), (0, 3), (0, 2, 2)):  # a query that sees no key has no weights either
        for dtype in (np.float32, np.longdouble, complex):
            y = causal_softmax(np.zeros(shape, dtype))
            assert y.shape == shape
            assert y.dtype == dtype


@pytest.mark.parametrize("f", [causal_softmax, causal_mask_], **by_name)
def test_causal_arguments(f):
    for shape in ((), (3,)):
        refuses(ValueError, "(?i)dimension", f, np.zeros(shape))
    for offset in (1.0, "1", None, [1]):
        refuses(TypeError, "offset|integer", f, X.copy(), offset=offset)


def test_causal_mask_takes_an_array_it_can_write():
    refuses(TypeError, "(?i)array", causal_mask_, [[1.0, 2.0], [3.0, 4.0]])
    frozen = X.copy()
    frozen.flags.writeable = False
    refuses(ValueError, "(?i)read-?only|writ(e|a)able", causal_mask_, frozen)
    refuses(TypeError, "int64", causal_mask_, np.zeros((2, 2), np.int64))
    refuses(TypeError, "datetime64", causal_mask_, np.zeros((2, 2), "M8[s]"))


def test_logsumexp_b_that_does_not_fit():
    refuses(ValueError, "(?i)(broadcast|shape|b )", logsumexp, X, 1, np.ones((3, 3)))
    refuses(TypeError, "<U1", logsumexp, X, 1, np.array(["a"]))


def test_everything_behind_the_star_is_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        softmax(X, 1, 2.0)
    with pytest.raises(TypeError, match="positional"):
        causal_softmax(X, 0)
    with pytest.raises(TypeError, match="unexpected"):
        softmax(X, axes=1)
    assert fastsoftmax.softmax is softmax
