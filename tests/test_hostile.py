"""Whatever array comes in: the right answer or the documented error, never a crash, a warning or a changed input.

Arrays are drawn as no sane program lays them out: any dtype and byte order, strides negative, zero or odd, elements on
odd addresses, read-only, overlapping, of size 0 and 1. Known bytes round every buffer show what was written. The
functions are those of functions.py.
"""

import ctypes
import functools
import math
import threading
import warnings

import ml_dtypes
import numpy as np
import pytest
from functions import FUNCTIONS, OF_SCORES, SAMPLES, arguments, of_scores, results, takes
from helpers import NUMPY, assert_accurate, assert_same_bits
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import fastsoftmax
from fastsoftmax import (
    _attention,
    _fastpath,
    _layout,
    _softmax,
    _validate,
    causal_mask_,
    causal_softmax,
    log_softmax,
    logsumexp,
    reference,
    scaled_dot_product_attention,
    softmax,
    softmax_entropy,
)

try:
    from numpy.lib.array_utils import normalize_axis_tuple
except ImportError:                             # NumPy 1
    from numpy.core.numeric import normalize_axis_tuple

NUMPY_2 = int(np.__version__.partition(".")[0]) >= 2
hostile = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# dtype -> what the functions do with it
NUMBERS = [*"?bBhHiIlLqQefdgFDG", ">f2", ">f4", ">f8", ">i2", ">i4", ">i8", ">u2", ">c8", ml_dtypes.bfloat16]
REFUSED = ["O", "U3", "S3", "V5", "M8[s]", "m8[ns]", [("a", "f4"), ("b", "f8")], [("a", "f8", (2,))],
           ml_dtypes.float8_e4m3fn, ml_dtypes.int4]
DOCUMENTED = (TypeError, ValueError)            # AxisError is a ValueError
MARGIN = 64


@st.composite
def arrays(draw, dtypes, min_dims=0, max_dims=4, writeable=False, shape=None):
    """A view of a buffer, laid out by chance; and the buffer's bytes."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    asked = shape is not None
    shape = list(shape) if asked else draw(
        st.lists(st.sampled_from([0, 1, 1, 2, 3, 4, 5, 7, 17, 33]), min_size=min_dims, max_size=max_dims))
    while not asked and math.prod(shape) > 2000:
        shape[shape.index(max(shape))] = 2
    # from the innermost outwards: a step of whole elements or of any number of bytes, none, or backwards
    order, strides, extent = draw(st.permutations(range(len(shape)))), [0] * len(shape), dtype.itemsize
    start = 0
    for i in order:
        kind = draw(st.sampled_from(["close", "close", "gap", "odd gap", "zero"] if not writeable else
                                    ["close", "close", "gap", "odd gap"]))
        step = {"close": extent, "gap": extent + 3 * dtype.itemsize, "odd gap": extent + 1, "zero": 0}[kind]
        if shape[i] > 1:
            strides[i] = step
            extent += step * (shape[i] - 1)
    buffer = np.full(extent + 2 * MARGIN, 0xA5, np.uint8)
    for i in range(len(shape)):
        if shape[i] > 1 and draw(st.booleans()):
            start += strides[i] * (shape[i] - 1)
            strides[i] = -strides[i]
    offset = MARGIN + draw(st.sampled_from([0, 0, 1, 2, 4, 8, 31])) - 31
    view = np.ndarray(tuple(shape), dtype, buffer, max(offset, 0) + start, tuple(strides))
    if dtype.kind in "fciub" or dtype.name == "bfloat16":
        scale = draw(st.sampled_from([1, 30, 1000]))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            view[...] = (rng.normal(0, 1, shape) * scale).astype(dtype)
            if dtype.kind in "fc" and view.size and draw(st.booleans()):
                view[...] = np.where(rng.random(shape) < 0.2, draw(st.sampled_from([np.inf, -np.inf, np.nan])), view)
    else:
        buffer[:] = 0 if dtype.kind == "O" else 1       # NULL is None; Hypothesis prints what it has drawn
    if not writeable and draw(st.booleans()):
        view.flags.writeable = False
    return view, buffer


def expected_of(name, x, axis):
    """The reference, in the widest type, for finite and infinite scores alike."""
    kind = x.dtype.kind
    wide = np.clongdouble if kind == "c" else np.longdouble if x.dtype.itemsize >= 8 or kind in "iu" else np.float64
    x = np.ascontiguousarray(x).reshape(x.shape).astype(wide)
    return np.asarray(of_scores(name, x, axis, reference))


def quiet(call, *args, **kwargs):
    """call(), where every warning and every floating-point condition would raise."""
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        return call(*args, **kwargs)


def assert_close(name, got, x, axis):
    got, exact = np.asarray(got), expected_of(name, x, axis)
    if got.dtype.kind == "c" or got.dtype.itemsize > 8:
        # the reference itself, in a narrower type: its own tests say how good it is
        with np.errstate(all="ignore"):
            tolerance = 1e-4 if got.dtype == np.complex64 else 1e-9
            fine = np.isclose(got, exact, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert np.all(fine | ~np.isfinite(exact) | ~np.isfinite(got))
        return
    if FUNCTIONS[name].gives == "each row":
        with np.errstate(all="ignore"):
            scale = np.nan_to_num(np.abs(exact), posinf=0) + 1
        assert_accurate(got, exact, 4, units=scale)
    else:
        assert_accurate(got, exact, 2.01)


@hostile
@given(drawn=arrays(NUMBERS), name=st.sampled_from(sorted(OF_SCORES)), data=st.data())
def test_any_array_of_numbers(drawn, name, data):
    x, buffer = drawn
    axis = data.draw(st.one_of(st.none(), st.integers(-5, 5), st.lists(st.integers(-4, 4), max_size=3).map(tuple)))
    before = buffer.copy()
    try:
        got = quiet(of_scores, name, x, axis)
    except DOCUMENTED as error:
        event(f"{name} of {x.dtype}: {error}")
        if name == "causal_softmax":
            assert x.ndim < 2
        elif not (x.size == 0 and name != "logsumexp") and "real scores" not in str(error):
            with pytest.raises((ValueError, TypeError)):
                normalize_axis_tuple(range(x.ndim) if axis is None else axis, x.ndim)
        return
    np.testing.assert_array_equal(buffer, before)
    assert type(got) is np.ndarray or np.ndim(got) == 0
    if got.size:
        assert_close(name, got, x, axis)


@hostile
@given(drawn=arrays(REFUSED), name=st.sampled_from(sorted(OF_SCORES)), axis=st.one_of(st.none(), st.just(-1)))
def test_any_array_of_anything_else(drawn, name, axis):
    x, _ = drawn
    with pytest.raises(TypeError, match="dtype"):
        quiet(of_scores, name, x, axis)


OUT = ["e", "f", "d", ml_dtypes.bfloat16, ">f4", ">f8"]


def beside(view, buffer):
    """Which bytes of the buffer are none of the view's."""
    untouched = np.ones(buffer.shape, bool)
    if view.size:
        start = view.__array_interface__["data"][0] - buffer.ctypes.data
        as_strided(untouched[start:], (*view.shape, view.itemsize), (*view.strides, 1))[...] = False
    return untouched


@hostile
@given(drawn=arrays(OUT, min_dims=2, writeable=True), data=st.data(),
       name=st.sampled_from([f for f in OF_SCORES if FUNCTIONS[f].gives == "each score" and takes(f, "out")]))
def test_any_out(drawn, name, data):
    """Written where it should be, and nowhere else: in place, beside, or overlapping."""
    out, buffer = drawn
    if out.size == 0:
        return
    way = data.draw(st.sampled_from(["in place", "apart", "overlapping", "reversed"]))
    axis = data.draw(st.integers(0, out.ndim - 1))
    values = out.copy()
    x = {"in place": out, "apart": values, "reversed": out[::-1], "overlapping": out}[way]
    if way == "overlapping":                    # x begins an element later than out
        if out.shape[-1] < 2:
            return
        x, out = out[..., 1:], out[..., :-1]
    expected_x = x.copy()
    untouched = beside(out, buffer)
    before = buffer.copy()
    got, expected = quiet(of_scores, name, x, axis, out=out), of_scores(name, expected_x, axis)
    assert got is out
    np.testing.assert_array_equal(out.astype(np.float64), expected.astype(np.float64))
    np.testing.assert_array_equal(buffer[untouched], before[untouched])


@hostile
@given(drawn=arrays(OUT + ["g", "F"], writeable=True), offset=st.integers(-40, 40),
       fill=st.sampled_from([-math.inf, 0.5]))
def test_any_array_is_masked_in_place(drawn, offset, fill):
    x, _ = drawn
    if x.ndim < 2:
        with pytest.raises(ValueError, match="dimension"):
            causal_mask_(x, offset=offset)
        return
    expected = x.copy()
    expected[..., ~np.tri(*x.shape[-2:], offset, dtype=bool)] = fill
    assert quiet(causal_mask_, x, offset=offset, fill_value=fill) is x
    np.testing.assert_array_equal(x, expected)


@hostile
@given(drawn=arrays(["f", "d", "e"], min_dims=1), data=st.data())
def test_any_where_and_temperature(drawn, data):
    x, _ = drawn
    where, _ = data.draw(arrays(["?"], max_dims=x.ndim))
    temperature, _ = data.draw(arrays(["f", "d", "i", ">f8"], max_dims=x.ndim))
    name = data.draw(st.sampled_from([f for f in OF_SCORES if takes(f, "axis", "where", "temperature")]))
    axis = data.draw(st.integers(0, x.ndim - 1))
    try:
        fits = np.broadcast_shapes(where.shape, x.shape) == x.shape
        kept = tuple(1 if i == axis else size for i, size in enumerate(x.shape))
        fits = fits and np.broadcast_shapes(temperature.shape, kept) == kept
    except ValueError:
        fits = False
    positive = bool(np.all((temperature > 0) & np.isfinite(temperature)))
    function = getattr(fastsoftmax, name)
    if not fits or not positive or x.shape[axis] == 0:
        with pytest.raises(ValueError):
            quiet(function, x, axis, where=where, temperature=temperature)
        return
    got = quiet(function, x, axis, where=where, temperature=temperature)
    if not np.size(got):
        return
    plain = np.ascontiguousarray(x).reshape(x.shape)
    expected = function(plain, axis, where=where.copy(), temperature=temperature.astype(np.float64))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


@hostile
@given(label=st.sampled_from(sorted(SAMPLES)), dtype=st.sampled_from(["e", "f", "d", ml_dtypes.bfloat16]),
       data=st.data())
def test_any_layout_of_a_sample(label, dtype, data):
    """However the operands lie: the bits that contiguous ones give, and nothing written but what they say."""
    placed, plain = [], []

    def anywhere(operand, values):
        dtypes = [values.dtype, values.dtype.newbyteorder()] if values.dtype.kind == "f" else [values.dtype]
        view, buffer = data.draw(arrays(dtypes, shape=operand.shape, writeable=operand.is_written))
        writeable, view.flags.writeable = view.flags.writeable, True
        view[...] = values
        view.flags.writeable = writeable
        kept = beside(view, buffer) if operand.is_written else np.ones(buffer.shape, bool)
        placed.append((view, buffer, kept, buffer[kept]))
        return view

    def as_usual(operand, values):
        view = placed[len(plain)][0]            # where its stride is 0, one value is left of many
        plain.append(np.array(view, values.dtype, order="C"))
        return plain[-1]

    name, sample = SAMPLES[label]
    hostile_ones, plain_ones = arguments(sample, dtype, anywhere), arguments(sample, dtype, as_usual)
    function = getattr(fastsoftmax, name)
    expected, got = results(function(**plain_ones)), results(quiet(function, **hostile_ones))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.astype("g"), other.astype("g"))
    for (view, buffer, kept, before), other in zip(placed, plain, strict=True):
        np.testing.assert_array_equal(view.astype("g"), other.astype("g"))
        np.testing.assert_array_equal(buffer[kept], before)


# ---------------------------------------------------------------- attention

FLOATS = [["e"], ["f"], ["d"], [ml_dtypes.bfloat16], ["f", ">f4"], ["d", ">f8"], ["e", ">f2"], ["g"]]
LENGTHS = st.sampled_from([0, 1, 1, 2, 3, 5, 8, 9, 17, 33])


@st.composite
def broadcastable(draw, shape):
    """A shape that broadcasts to this one: without some leading dimensions, and others of length 1."""
    shape = [1 if draw(st.integers(0, 3)) == 0 else size for size in shape]
    return shape[draw(st.integers(0, len(shape))):]


@st.composite
def attentions(draw):
    """Arguments that fit, their buffers, and the shape of the result."""
    dtypes = draw(st.sampled_from(FLOATS))
    lead = draw(st.lists(st.sampled_from([0, 1, 2, 2, 3]), max_size=2))
    key_heads, shared = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (0, 1)]))
    queries, keys, width, value_width = (draw(LENGTHS) for _ in range(4))
    rows = (*lead, key_heads * shared, queries)
    shapes = {"query": (*rows, width), "key": (*lead, key_heads, keys, width),
              "value": (*lead, key_heads, keys, value_width), "attn_mask": (*rows, keys), "bias": (*rows, keys)}
    given, buffers = {}, []
    for name, shape in shapes.items():
        if name == "attn_mask" and draw(st.booleans()) or name == "bias" and draw(st.integers(0, 2)):
            continue
        asked = dtypes
        if name in ("attn_mask", "bias"):
            shape = draw(broadcastable(shape))
            asked = [["?"], ["f"], ["d", ">f4"], dtypes][draw(st.integers(name == "bias", 3))]
        given[name], buffer = draw(arrays(asked, shape=shape))
        buffers.append(buffer)
    given |= {"enable_gqa": True, "is_causal": draw(st.booleans()), "causal_offset": draw(st.integers(-3, 20))}
    return given, buffers, (*rows, value_width)


def tame(given):
    """The same arguments in arrays as one expects them."""
    return {name: np.array(x, x.dtype.newbyteorder("="), order="C", copy=True) if isinstance(x, np.ndarray) else x
            for name, x in given.items()}


def assert_attention_close(got, given):
    """Near the reference in a wider type, where all is finite and nothing overflows."""
    q, k, v = (given[name] for name in ("query", "key", "value"))
    wide = {name: x.astype(np.longdouble) if isinstance(x, np.ndarray) and x.dtype != bool else x
            for name, x in given.items()}
    size = sum(float(abs(x.astype(np.float64)).max(initial=0, where=np.isfinite(x))) for x in (
        given[name] for name in ("attn_mask", "bias") if name in given) if x.dtype != bool)
    if not all(np.isfinite(x).all() for x in (q, k, v)) or size > 1e4:
        return
    size += float(abs(q.astype(np.float64)).max(initial=0) * abs(k.astype(np.float64)).max(initial=0)
                   * math.sqrt(q.shape[-1]))
    largest = float(abs(v.astype(np.float64)).max(initial=0))
    exact = reference.scaled_dot_product_attention(**wide)
    arithmetic = 2.0**-52 if got.dtype.itemsize >= 8 else 2.0**-23
    rounding = {"e": 2.0**-10, "f": 2.0**-23, "d": 2.0**-52, "g": 2.0**-52}.get(got.dtype.char, 2.0**-7)
    np.testing.assert_allclose(got.astype(np.longdouble), exact, rtol=rounding,
                               atol=1e-7 * (got.dtype.itemsize == 2) + 16 * (1 + size) * arithmetic * largest)


@hostile
@given(drawn=attentions(), data=st.data())
def test_any_attention(drawn, data):
    """However the operands lie: the bits that contiguous ones give, near the reference, and nothing else written."""
    given, buffers, shape = drawn
    before, plain = [buffer.copy() for buffer in buffers], tame(given)
    expected = scaled_dot_product_attention(**plain)
    assert expected.shape == shape
    got = quiet(scaled_dot_product_attention, **given)
    np.testing.assert_array_equal(got.astype("g"), expected.astype("g"))     # NaN of bfloat16 are not equal, it says
    if all(shape):
        assert_attention_close(got, plain)
    out, buffer = data.draw(arrays(
        [expected.dtype, expected.dtype.newbyteorder()] if expected.dtype.kind == "f" else [expected.dtype],
        shape=shape, writeable=True))
    untouched = beside(out, buffer)
    around = buffer[untouched].copy()
    assert quiet(scaled_dot_product_attention, **given, out=out) is out
    np.testing.assert_array_equal(out.astype("g"), expected.astype("g"))
    np.testing.assert_array_equal(buffer[untouched], around)
    for buffer, old in zip(buffers, before, strict=True):
        np.testing.assert_array_equal(buffer, old)


@hostile
@given(drawn=arrays(["e", "f", "d", ml_dtypes.bfloat16, ">f4"], min_dims=2, writeable=True), data=st.data())
def test_attention_into_its_own_operands(drawn, data):
    """Any of them may be `out`, or overlap it; all three may be one array."""
    x, _ = drawn
    if x.shape[-1] < 2:
        return
    own = x.copy()
    operands, plain = {}, {}
    out = data.draw(st.sampled_from([x, x[..., ::-1, :], x[..., ::-1]]))
    for name in ("query", "key", "value"):
        operands[name] = data.draw(st.sampled_from([x, x[..., ::-1, :], x[..., ::-1], own]))
        plain[name] = operands[name].copy()
    expected = scaled_dot_product_attention(**plain)
    assert quiet(scaled_dot_product_attention, **operands, out=out) is out
    np.testing.assert_array_equal(out.astype(np.float64), expected.astype(np.float64))


@hostile
@given(data=st.data(), kind=st.sampled_from([NUMBERS, REFUSED, ["f"], ["e", "f"]]))
def test_attention_of_anything(data, kind):
    """Shapes and dtypes that need not fit: a result of the right shape, or the documented error; nothing changes."""
    drawn = [data.draw(arrays(kind, max_dims=4)) for _ in range(3)]
    mask = data.draw(st.one_of(st.none(), arrays([*NUMBERS, "O"], max_dims=3).map(lambda pair: pair[0])))
    before = [buffer.copy() for _, buffer in drawn]
    query, key, value = (x for x, _ in drawn)
    try:
        got = quiet(scaled_dot_product_attention, query, key, value, mask)
    except DOCUMENTED as error:
        event(str(error)[:30])
    else:
        assert got.shape[-2:] == (query.shape[-2], value.shape[-1])
        assert query.dtype.kind == key.dtype.kind == value.dtype.kind
    for (_, buffer), old in zip(drawn, before, strict=True):
        np.testing.assert_array_equal(buffer, old)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name, dtype, count", [
    ("softmax_entropy", np.float32, 2**31 + 9),
    *(pytest.param(name, dtype, count, marks=SLOW) for name in ("logsumexp", "softmax_entropy")
      for dtype, count in ((np.float32, 2**32 + 9), (np.float64, 2**31 + 9), (np.float16, 2**32 + 9)))])
def test_more_elements_than_an_int_counts(name, dtype, count):
    """By zero strides, in a few bytes of memory: as one row, and as many rows."""
    line = np.broadcast_to(dtype(0), (count,))
    with np.errstate(all="ignore"):
        exact = np.asarray(np.log(np.longdouble(count))).astype(dtype)
    function = getattr(fastsoftmax, name)
    assert function(line) == exact
    if name == "logsumexp":
        rows = np.broadcast_to(np.array([[0], [0]], dtype), (2, count // 2))
        assert (function(rows, 1) == np.log(np.longdouble(count // 2)).astype(dtype)).all()


@pytest.mark.parametrize("name", OF_SCORES)
def test_giants_without_elements(name):
    """Entropies of no rows were once computed from what lies beside, and written there."""
    for shape in ((1 << 40, 0), (0, 1 << 40)):
        x = np.lib.stride_tricks.as_strided(np.zeros(0, np.float32), shape, (0, 0))
        if shape[1] or not takes(name, "axis"):
            assert of_scores(name, x, 1).shape == (shape if FUNCTIONS[name].gives == "each score" else (0,))
        elif name != "logsumexp":
            with pytest.raises(ValueError, match="nothing"):
                of_scores(name, x, 1)


class Angry(np.ndarray):
    """A subclass that lets nobody do anything with it."""

    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError("asked for a ufunc")

    def __array_function__(self, *args, **kwargs):
        raise AssertionError("asked for a function")

    def __array_wrap__(self, *args, **kwargs):
        raise AssertionError("asked to wrap")


class Lying:
    """Has an __array__ that gives what it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class NoInterface:
    """An array interface with a pointer to nothing, but no elements either."""

    __array_interface__ = {"shape": (0, 3), "typestr": "<f4", "data": (0, True), "version": 3}


@pytest.mark.parametrize("name", OF_SCORES)
def test_other_things_that_are_arrays_in_some_way(name):
    f, x = functools.partial(of_scores, name), np.arange(6.0).reshape(2, 3)
    expected = f(x, 1)
    for same in (x.view(Angry), x.view(np.recarray), Lying(x), memoryview(x), x.tolist(), tuple(map(tuple, x)),
                 np.lib.stride_tricks.as_strided(x, subok=False)):
        got = f(same, 1)
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, expected)
    for error in (KeyError("mine"), MemoryError("mine")):
        with pytest.raises(type(error), match="mine"):
            f(Lying(error), 1)
    for nonsense in (Lying("no array"), object(), {1: 2.0}, {1.0}, [[1.0], [2.0, 3.0]], b"bytes", "text", None, [None],
                     lambda: 0, Ellipsis, slice(3), type, iter([1.0])):
        with pytest.raises((TypeError, ValueError)):
            f(nonsense, 1)
    if name == "causal_softmax" and NUMPY_2:    # NumPy 1 takes it for no array
        assert f(NoInterface(), 1).shape == (0, 3)


def test_tensors_of_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for dtype in (torch.float16, torch.float32, torch.float64):
        base = torch.arange(24, dtype=dtype).reshape(4, 6)
        for tensor in (base, base.t(), base[::2, 1::2], base[0], base.expand(3, 4, 6), torch.tensor(3.0, dtype=dtype)):
            for name in ("softmax", "log_softmax", "logsumexp"):
                got = getattr(fastsoftmax, name)(tensor, None)
                np.testing.assert_array_equal(got, getattr(fastsoftmax, name)(tensor.numpy(), None))
    x = torch.zeros(3)
    for tensor in (x.to(torch.bfloat16), torch.zeros(3, requires_grad=True), x.to_sparse()):
        with pytest.raises(TypeError, match="x is a torch tensor that .*fastsoftmax.torch"):
            softmax(tensor, -1)
    with pytest.raises(TypeError, match="ndarray"):
        softmax(np.zeros(3, np.float32), out=torch.zeros(3))


def test_an_array_whose_memory_is_given_back_while_it_is_in_use():
    """A resize behind our back cannot happen: the call holds the buffer."""
    x = np.zeros(100)
    y = softmax(x)
    with pytest.raises(ValueError):
        view = memoryview(x)
        x.resize(200)
    del view
    assert y.shape == (100,)


def test_axes_and_offsets_of_any_size():
    x = np.zeros((3, 4), np.float32)
    for axis in (2**31, -(2**31), 2**63, -(2**63), 2**64, 10**30):
        with pytest.raises((ValueError, OverflowError)):
            softmax(x, axis)
        with pytest.raises((ValueError, OverflowError)):
            logsumexp(x, (0, axis))
    for offset in (2**31, 2**63, 2**64, 10**30):
        np.testing.assert_array_equal(causal_softmax(x, offset=offset), softmax(x, -1))
        np.testing.assert_array_equal(causal_softmax(x, offset=-offset), np.zeros_like(x))
        np.testing.assert_array_equal(causal_mask_(x.copy(), offset=offset), x)
        assert np.all(causal_mask_(x.copy(), offset=-offset) == -np.inf)


def test_an_array_of_many_dimensions():
    most = 64 if NUMPY_2 else 32
    x = np.zeros((1,) * most, np.float32)
    assert softmax(x).shape == softmax(x, tuple(range(most))).shape == x.shape
    assert logsumexp(x, most - 1).shape == (1,) * (most - 1)
    x = np.random.default_rng(0).normal(size=(2,) * 15)
    np.testing.assert_array_equal(logsumexp(x.transpose(), 0), logsumexp(np.ascontiguousarray(x.transpose()), 0))


def test_bools_that_are_neither_0_nor_1():
    """A mask made from bytes: any but zero is True, as in NumPy."""
    mask = np.array([0, 1, 2, 255], np.uint8).view(np.bool_)
    for shape in ((4,), (1, 4)):
        x = np.zeros(shape)
        np.testing.assert_array_equal(softmax(x, -1, where=mask), np.broadcast_to([0, 1 / 3, 1 / 3, 1 / 3], shape))
    x = np.zeros((4, 5), np.float32)
    np.testing.assert_allclose(softmax(x, 0, where=mask[:, None])[:, 0], [0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)


def test_calls_survive_a_small_stack():
    """Threads with 128 KiB of stack, as some servers have: what small calls keep there must fit."""
    results = []

    def call():
        for dtype in (np.float16, np.float32, np.float64):
            results.extend(softmax(np.zeros((63, 63), dtype), axis) for axis in (None, 0, 1))
            results.append(causal_softmax(np.zeros((63, 63), dtype)))

    before = threading.stack_size(128 << 10)
    try:
        thread = threading.Thread(target=call)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert len(results) == 12


@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", "bool", ml_dtypes.bfloat16])
def test_views_are_those_of_numpy(dtype):
    """_fastpath.as_strided is as_strided: the same memory, kept alive, and read-only where the array is."""
    base = np.arange(24).reshape(4, 6).astype(dtype)
    fixed = base.copy()
    fixed.flags.writeable = False
    for x in (base, fixed, base.T, base[::-1, ::-2], base[:, 1:][:, :2]):
        rows, columns = x.strides
        for shape, strides in (((), ()), (x.shape, x.strides), ((2, 3, 2), (rows, 0, columns)), ((0, 5), (0, rows)),
                               (x.shape[::-1], (columns, rows))):
            got, expected = _fastpath.as_strided(x, shape, strides), as_strided(x, shape, strides)
            assert got.__array_interface__ == expected.__array_interface__
            assert got.dtype == x.dtype and type(got) is np.ndarray
            assert got.flags.writeable == x.flags.writeable and got.flags.aligned == expected.flags.aligned
            assert got.flags.c_contiguous == expected.flags.c_contiguous
    lasting = _fastpath.as_strided(np.full(100_000, 1, dtype), (2,), (8,))
    others = [np.zeros(100_000, dtype) for _ in range(10)]
    assert lasting.astype(float).tolist() == [1, 1] and len(others) == 10
    for shape, strides in (((2,), ()), ((1,) * 65, (0,) * 65)):
        assert _fastpath.as_strided(base, shape, strides) is None


def test_the_fast_path_returns_none_for_calls_that_it_does_not_cover():
    for x in (None, 1.0, [1.0], np.zeros(3, int), np.zeros((3, 3))[:, ::2], np.zeros(0), np.float64(1), np.zeros(())):
        assert _fastpath.rows(_fastpath.SOFTMAX, x, None, 1.0) is None
    x = np.zeros(3)
    for axis in (1, -2, 2**70, -(2**70), (0,), 0.0, True, "0"):
        assert _fastpath.rows(_fastpath.SOFTMAX, x, axis, 1.0) is None
    for temperature in (None, 0, -1, math.nan, math.inf, 10**400, "1", np.ones(1), np.float64(2)):
        assert _fastpath.rows(_fastpath.SOFTMAX, x, None, temperature) is None
    for out in (1.0, np.zeros(4), np.zeros((3, 1)), np.zeros(3, np.float32), x[::-1], ctypes.c_double(0)):
        assert _fastpath.rows(_fastpath.SOFTMAX, x, None, 1.0, out=out) is None
    rows = np.zeros((3, 4))
    for out in (np.zeros(4), np.zeros((3, 1)), np.zeros(()), np.zeros(3, np.float32), np.zeros(6)[::2], rows[0, :3]):
        assert _fastpath.rows(_fastpath.LOGSUMEXP, rows, 1, 1.0, out=out) is None
    for keepdims, out in ((True, np.zeros(3)), (False, np.zeros((3, 1))), (True, np.zeros((1, 3)))):
        assert _fastpath.rows(_fastpath.LOGSUMEXP, rows, 1, 1.0, out=out, keepdims=keepdims) is None
    x = np.zeros((2, 4, 3))
    assert _fastpath.attention_inputs(x, x, x, False) is not None
    for other in (None, 1.0, x.tolist(), np.ma.array(x), np.zeros(()), x[0, 0], x[0], x[None, None], x[:, :0],
                  x[..., :2], x.swapaxes(1, 2), x[..., ::-1], x.astype(">f8"), x.astype("f4"), np.zeros((3, 4, 3))):
        assert _fastpath.attention_inputs(x, other, other, True) is None
        assert _fastpath.attention_inputs(other, x, x, True) is None
    inputs = _fastpath.attention_inputs(x, x, x, False)
    fixed, named = np.zeros((2, 4, 3)), np.zeros((2, 4, 3)).view(type("Named", (np.ndarray,), {}))
    fixed.flags.writeable = False
    assert _fastpath.attention_out(inputs, np.zeros((2, 3, 4)).swapaxes(1, 2)[..., ::-1][..., ::-1]) is None
    for out in (1.0, x, x[::-1], fixed, named, np.zeros((1, 2, 4, 3)), np.zeros((4, 3)), np.zeros((2, 4, 4)),
                np.zeros((2, 4, 3), "f4"), np.zeros((2, 4, 3), ">f8"), np.zeros((2, 4, 6))[..., ::2],
                np.ma.zeros((2, 4, 3)), np.zeros((2, 4, 3)).tolist()):
        assert _fastpath.attention_out(inputs, out) is None
    out = np.zeros((4, 2, 5))[::-1, :, 1:4].swapaxes(0, 1)
    seen = _fastpath.attention_out(inputs, out)
    assert seen.shape == (1, 2, 4, 3) and seen[0].__array_interface__ == out.__array_interface__


def test_the_fast_path_of_causal_functions_covers_no_unusual_calls():
    fixed, x = np.zeros((3, 4)), np.zeros((3, 4))
    fixed.flags.writeable = False
    for scores in (None, 1.0, x.tolist(), x.astype(int), x.T, x[:, ::2], x[0], np.zeros(()), np.zeros((3, 0)),
                   np.zeros((0, 4)), np.ma.array(x), x.astype(">f8"), x.astype(np.longdouble), x.astype(complex),
                   x.view(type("Named", (np.ndarray,), {}))):
        assert _fastpath.causal_rows(scores, 0, 1.0, None, None) is None
        assert not _fastpath.causal_mask(scores, 0, -math.inf)
    for offset in (None, True, np.True_, np.int64(1), 1.0, "1", 2**31, -(2**31), 2**70, -(2**70)):
        assert _fastpath.causal_rows(x, offset, 1.0, None, None) is None
        assert not _fastpath.causal_mask(x, offset, -math.inf)
    for temperature in (None, True, 0, -1, math.nan, math.inf, 1e31, 10**400, "1", np.ones(1), np.float64(2)):
        assert _fastpath.causal_rows(x, 0, temperature, None, None) is None
    for dtype in (np.float32, x.dtype):
        assert _fastpath.causal_rows(x, 0, 1.0, dtype, None) is None
    buffer = np.zeros(20)
    scores = buffer[:12].reshape(3, 4)
    for out in (1.0, np.zeros(12), np.zeros((1, 3, 4)), np.zeros((4, 3)), x.astype("f4"), x.astype(">f8"), fixed,
                x[::-1], x.T.copy().T, np.ma.array(x), buffer[1:13].reshape(3, 4), x.tolist()):
        assert _fastpath.causal_rows(scores, 0, 1.0, None, out) is None
    for value in (None, 0, True, 1j, "0", np.float64(0), np.float32(0), np.zeros(())):
        assert not _fastpath.causal_mask(x, 0, value)
    assert not _fastpath.causal_mask(fixed, 0, -math.inf)
    assert not buffer.any() and not x.any()


def test_the_fast_path_takes_the_usual_calls_of_causal_functions(monkeypatch):
    monkeypatch.setattr(_softmax, "causal_softmax", None)
    monkeypatch.setattr(_softmax, "causal_mask", None)
    for tag in NUMPY:
        for shape in ((1, 1), (4, 10), (2, 1, 64), (2, 3, 90, 100)):
            x = np.zeros(shape, NUMPY[tag])
            keep, out = np.tri(*shape[-2:], dtype=bool), np.zeros_like(x)
            fixed = x.copy()
            fixed.flags.writeable = False
            for y in (causal_softmax(x), causal_softmax(x, temperature=2), causal_softmax(fixed, temperature=0.5),
                      causal_softmax(x, out=out)):
                assert y.dtype == x.dtype and y.shape == shape and type(y) is np.ndarray
                np.testing.assert_array_equal(y != 0, np.broadcast_to(keep, shape))
            assert causal_softmax(out, out=out) is out
            assert (causal_softmax(x, offset=shape[-1]) != 0).all() and not causal_softmax(x, offset=-shape[-2]).any()
            assert causal_mask_(x) is x and causal_mask_(x, offset=-1, fill_value=2.0) is x
            np.testing.assert_array_equal(x == 2, np.broadcast_to(~np.tri(*shape[-2:], -1, dtype=bool), shape))


@pytest.mark.parametrize("tag", NUMPY)
def test_the_fast_path_of_causal_functions_has_the_bits_of_the_slow_path(tag):
    """With any offset, in place, small and large; of NaN, whose sign depends on where it is written, not the bits."""
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 1), (1, 9), (4, 10), (2, 12, 1, 64), (3, 33, 31), (40, 17, 5), (2, 70, 70), (3, 5, 900),
                  (1, 5000), (5000, 2), (2, 300, 300)):
        x = rng.normal(0, 5, shape).astype(NUMPY[tag])
        special = x.copy()
        special.reshape(-1)[rng.integers(x.size, size=1 + x.size // 500)] = rng.choice([np.nan, np.inf, -np.inf])
        far, many = shape[-1] - shape[-2], shape[-1]
        for offset in (0, 1, -1, -9, far, far - 1, many - 2, many - 1, many, 2**30, -(2**30)):
            slow, given = np.int64(offset), x.copy()
            y = _fastpath.causal_rows(x, offset, 1.0, None, None)
            assert_same_bits(y, causal_softmax(x, offset=slow))
            assert _fastpath.causal_rows(given, offset, 1.0, None, given) is given
            assert_same_bits(given, y)
            assert_same_bits(_fastpath.causal_rows(x, offset, 0.7, None, None),
                             causal_softmax(x, offset=slow, temperature=0.7))
            np.testing.assert_array_equal(_fastpath.causal_rows(special, offset, 1.0, None, None).astype(float),
                                          causal_softmax(special, offset=slow).astype(float))
            for value in (-math.inf, math.nan, 0.1, 1e-310, 1e300):
                fast, expected = x.copy(), causal_mask_(x.copy(), offset=slow, fill_value=value)
                assert _fastpath.causal_mask(fast, offset, value)
                assert_same_bits(fast, expected)


@pytest.mark.parametrize("tag", NUMPY)
def test_the_fast_path_of_logsumexp_keeps_dimensions(tag):
    """With the bits and the shape of the slow path, in which `where` is set."""
    x = np.random.default_rng(0).normal(0, 5, (3, 40, 70)).astype(NUMPY[tag])
    for scores in (x, x[0], x[0, 0]):
        for axis in (None, 0, -1, scores.ndim // 2):
            expected = logsumexp(scores, axis, keepdims=True, where=np.True_)
            got = _fastpath.rows(_fastpath.LOGSUMEXP, scores, axis, 1.0, keepdims=True)
            assert type(got) is type(expected) is np.ndarray and got.shape == expected.shape
            assert_same_bits(got, expected)
            assert_same_bits(logsumexp(scores, axis, keepdims=True), expected)
            out = np.empty_like(expected)
            assert _fastpath.rows(_fastpath.LOGSUMEXP, scores, axis, 1.0, out=out, keepdims=True) is out
            assert_same_bits(out, expected)


@pytest.mark.parametrize("tag", NUMPY)
def test_the_fast_path_takes_every_dtype_that_has_kernels(tag):
    """With the bits of the slow path, in which `where` is set; not with another byte order, nor other small floats."""
    x = np.random.default_rng(0).normal(0, 5, (3, 40)).astype(NUMPY[tag])
    for op, f in enumerate((softmax, log_softmax, logsumexp, softmax_entropy)):
        for axis in (0, -1, None):
            got = _fastpath.rows(op, x, axis, 1.0)
            assert_same_bits(got, f(x, axis, where=np.True_))
            assert type(got) is type(f(x, axis, where=np.True_))
    out = np.empty_like(x)
    assert _fastpath.rows(_fastpath.SOFTMAX, x, -1, 0.5, out=out) is out
    assert_same_bits(out, softmax(x, -1, temperature=0.5, where=np.True_))
    for axis in (0, -1, None):
        expected = np.asarray(logsumexp(x, axis, where=np.True_))
        out = np.empty_like(expected)
        assert _fastpath.rows(_fastpath.LOGSUMEXP, x, axis, 1.0, out=out) is out
        assert_same_bits(out, expected)
    for other in (x.astype(x.dtype.newbyteorder()), x.astype(ml_dtypes.float8_e5m2), x.astype(np.longdouble)):
        assert _fastpath.rows(_fastpath.SOFTMAX, other, -1, 1.0) is None
    assert _fastpath.tag(x.dtype) == _fastpath.tag(x.dtype.newbyteorder()) == tag
    assert _fastpath.tag(np.dtype(ml_dtypes.float8_e5m2)) is None


def test_both_paths_make_the_same_inputs_of_attention():
    rng = np.random.default_rng(0)
    for dtype in NUMPY.values():
        for lead, key_lead in (((), ()), ((2,), (2,)), ((3, 4), (3, 2))):
            query, key, value = (rng.normal(size=shape).astype(dtype) for shape in (
                (*lead, 4, 3), (*key_lead, 5, 3), (*key_lead, 5, 2)))
            fast = _fastpath.attention_inputs(query, key, value, True)
            slow = _attention.prepare_qkv(*_validate.query_key_value(query, key, value, True))
            for name in ("tag", "batch", "out_shape", "heads", "keys", "head_dim", "added"):
                assert getattr(fast, name) == getattr(slow, name)
            for name in ("q", "k", "v"):
                assert getattr(fast, name).__array_interface__ == getattr(slow, name).__array_interface__
            with pytest.raises(AttributeError):
                fast.heads = 1


def test_the_fast_path_takes_no_out_that_overlaps_an_input():
    """Whatever the signs of the strides."""
    rng = np.random.default_rng(5)
    taken = 0
    for _ in range(3000):
        memory = np.zeros(rng.integers(60, 200), np.float32)
        views = []
        for _ in range(4):
            steps = [int(rng.choice([-1, 1]) * rng.integers(2, 9)) for _ in range(2)] + [1]
            low = sum(min(s * (n - 1), 0) for s, n in zip(steps, (2, 3, 2), strict=True))
            high = sum(max(s * (n - 1), 0) for s, n in zip(steps, (2, 3, 2), strict=True))
            first = int(rng.integers(-low, len(memory) - high))
            views.append(as_strided(memory[first:], (2, 3, 2), [4 * s for s in steps]))
        *inputs, out = views
        if _fastpath.attention_out(_fastpath.attention_inputs(*inputs, False), out) is not None:
            taken += 1
            assert not any(np.shares_memory(out, x) for x in inputs)
            assert not _layout.elements_overlap(out)
        else:
            # The slow path decides where a larger stride does not step over the extent of the smaller ones.
            reach = np.cumsum([1, *(stride * (size - 1) for stride, size in sorted(
                (abs(stride) // 4, size) for stride, size in zip(out.strides, out.shape, strict=True)))])
            steps_over = np.all(np.sort(np.abs(out.strides)) // 4 >= reach[:-1])
            assert not steps_over or any(np.may_share_memory(out, x) for x in inputs)
    assert 300 < taken < 2700
