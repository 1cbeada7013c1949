"""fastsoftmax.dask: the results of the NumPy functions on any chunks, lazily, in tasks that hold a few chunks."""

import doctest
import functools
import inspect
import itertools
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_accurate, assert_same_bits, oracle
from test_doctests import run

import fastsoftmax
from fastsoftmax import reference

dask = pytest.importorskip("dask", reason="dask is not installed: fastsoftmax.dask is not tested")
da = pytest.importorskip("dask.array", reason="dask.array is not installed: fastsoftmax.dask is not tested")

import fastsoftmax.dask  # noqa: E402
from fastsoftmax.dask import (  # noqa: E402
    causal_softmax,
    log_softmax,
    logsumexp,
    scaled_dot_product_attention,
    softmax,
    softmax_entropy,
)

INF, NAN = np.inf, np.nan
FAMILY = (softmax, log_softmax, logsumexp, softmax_entropy)
FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)
SHAPE = (6, 10, 7)
CHUNKS = {
    "whole": SHAPE, "rows": (2, 10, 7), "columns": (6, 10, 3), "all": (4, 3, 2), "ones": (6, 1, 4),
    "uneven": ((1, 5), (7, 1, 2), (2, 5)), "empty ones": ((0, 6), (4, 0, 6), (7, 0))}
AXES = (0, 1, -1, (0, 2), (1, 2), (2, 0, 1), None, ())
by_name = {"ids": lambda f: f.__name__}


@pytest.fixture(autouse=True)
def _one_thread():
    with dask.config.set(scheduler="sync"):
        yield


def bound(f, dtype):
    """ULP: what the docstrings promise."""
    return 8 if f is softmax_entropy else 4 if dtype == np.float64 and f in (softmax, log_softmax) else 2


def numpy_function(f):
    return getattr(fastsoftmax, f.__name__)


def assert_near(f, got, x, axis, **options):
    """`got` is f(x, axis) as accurately as the docstrings promise."""
    exact = oracle(f.__name__, x, axis, **options)
    units = None
    if f is logsumexp:
        with np.errstate(all="ignore"):
            units = exact - x.astype(exact.dtype).max(axis, initial=-INF)
            units = np.nan_to_num(units, nan=0, posinf=0, neginf=0)
    assert_accurate(got, exact, bound(f, got.dtype), units)


def is_whole(x, axis):
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return all(x.numblocks[i] == 1 for i in axes)


# ---------------------------------------------------------------- the softmax family


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("f", FAMILY, **by_name)
def test_results_are_those_of_numpy(f, chunks):
    """Bit for bit where no axis is chunked. Each axis has two dtypes, the other two with the next one."""
    for i, axis in [*enumerate(AXES), *enumerate(AXES, 2)]:
        dtype = FLOATS[i % len(FLOATS)]
        values = np.random.default_rng(0).normal(0, 6, SHAPE).astype(dtype)
        x = da.from_array(values, chunks=CHUNKS[chunks])
        y, expected = f(x, axis), numpy_function(f)(values, axis)
        assert isinstance(y, da.Array)
        got = np.asarray(y.compute())
        assert y.dtype == y._meta.dtype == got.dtype == expected.dtype
        assert y.shape == got.shape == np.shape(expected)
        assert y.ndim == y._meta.ndim
        if y.ndim == x.ndim:
            assert y.chunks == x.chunks
        if is_whole(x, axis):
            assert_same_bits(got, np.asarray(expected))
        else:
            assert_near(f, got, values, axis)


@pytest.mark.parametrize("f", [logsumexp, softmax_entropy], **by_name)
def test_keepdims(f):
    values = np.random.default_rng(0).normal(size=SHAPE)
    for chunks, axis in itertools.product(("whole", "all", "empty ones"), AXES):
        x = da.from_array(values, chunks=CHUNKS[chunks])
        kept, dropped = f(x, axis, keepdims=True), f(x, axis)
        assert kept.shape == np.sum(values, axis, keepdims=True).shape
        np.testing.assert_array_equal(kept.compute().reshape(dropped.shape), dropped.compute())


@pytest.mark.parametrize("f", FAMILY, **by_name)
def test_dtypes_other_than_floats(f):
    for dtype in (bool, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64, ">f4", ">i8", np.longdouble):
        values = np.random.default_rng(0).integers(0, 20, (3, 40)).astype(dtype)
        for chunks in ((3, 40), (2, 7)):
            got, expected = f(da.from_array(values, chunks=chunks), 1).compute(), numpy_function(f)(values, 1)
            assert got.dtype == expected.dtype
            rtol = 8 * float(np.finfo(expected.dtype).eps)
            np.testing.assert_allclose(got.astype(np.longdouble), expected.astype(np.longdouble), rtol=rtol)


@pytest.mark.parametrize("f", FAMILY, **by_name)
def test_integers_that_float64_does_not_hold(f):
    for dtype, top in ((np.int64, 2**62), (np.int64, -(2**63) + 3), (np.uint64, 2**64 - 1)):
        values = np.array([[top - 3, top, top - 1, top - 2], [top, top - 2, top, top - 3]], dtype)
        expected = numpy_function(f)(values, 1)
        for chunks in (1, 3):
            got = f(da.from_array(values, chunks=(2, chunks)), 1).compute()
            np.testing.assert_allclose(got, expected, rtol=1e-15)
    lowest = np.full((1, 3), np.iinfo(np.int64).min)
    np.testing.assert_allclose(f(da.from_array(lowest, chunks=((1,), (2, 0, 1))), 1).compute(),
                               numpy_function(f)(lowest, 1), rtol=1e-15)


HARD = {
    "wide spread": lambda rng: rng.uniform(-700, 0, (3, 999)),
    "far from 0": lambda rng: 1e5 + rng.normal(0, 5, (3, 999)),
    "far below 0": lambda rng: -3e4 + rng.normal(0, 5, (3, 999)),
    "one large": lambda rng: np.where(np.arange(999) == [[0], [500], [998]], 30, rng.normal(size=(3, 999))),
    "one by far": lambda rng: np.where(np.arange(999) == [[1], [501], [997]], 60.0, -rng.random((3, 999))),
    "equal": lambda rng: np.full((3, 999), 7.25),
    "rising": lambda rng: np.broadcast_to(np.linspace(-50, 50, 999), (3, 999)),
    "falling": lambda rng: np.broadcast_to(np.linspace(50, -50, 999), (3, 999)),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("f", FAMILY, **by_name)
def test_accuracy_of_rows_in_pieces(f, kind):
    """Rows in the lanes and columns of tiles, contiguous and not."""
    for dtype in FLOATS:
        with np.errstate(over="ignore"):
            values = HARD[kind](np.random.default_rng(1)).astype(dtype)
        if not np.isfinite(values.astype(float)).all():
            continue                        # float16 holds no such scores
        for size in (1, 100, 400):
            if size > 1 or (dtype == np.float32 and kind == "one by far"):
                assert_near(f, f(da.from_array(values, chunks=(2, size)), 1).compute(), values, 1)
        columns = np.repeat(values.T, 11, axis=1)
        assert_near(f, f(da.from_array(columns, chunks=(250, 33)), 0).compute(), columns, 0)


def test_results_near_zero_keep_their_digits():
    for dtype in (np.float32, np.float64):
        x = da.from_array(np.array([0, -20], dtype), chunks=1)
        exact = np.log1p(np.exp(np.longdouble(-20)))
        assert_accurate(log_softmax(x).compute()[0], -exact, 2)
        assert_accurate(logsumexp(x).compute(), exact, 2)


def test_many_equal_float16_logits():
    y = softmax(da.zeros(70_000, chunks=10_000, dtype=np.float16)).compute()
    np.testing.assert_array_equal(y, np.float16(1 / 70_000))


@pytest.mark.parametrize("f", FAMILY, **by_name)
def test_special_values(f):
    """In the same piece as the others, or in another."""
    rows = np.array([
        [NAN, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, NAN], [INF, 1, 2, 3, 4, 5], [1, INF, 2, 3, INF, 4], [INF] * 6,
        [-INF] * 6, [-INF, -INF, -INF, 1, 2, 3], [-INF, 3, -INF, 1, 2, -INF], [-INF, INF, 0, -INF, NAN, INF],
        [-INF, -INF, NAN, -INF, -INF, -INF], [NAN] * 6, [INF, -INF, -INF, -INF, -INF, -INF]])
    for dtype in (*FLOATS, np.longdouble):
        values = rows.astype(dtype)
        for size in (1, 2, 3, 5):
            for array, axis in ((values, 1), (values.T, 0), (np.repeat(values, 9, 0).T, 0)):
                with np.errstate(all="raise"):
                    got = f(da.from_array(array, chunks={axis: size}), axis).compute()
                got, expected = got.astype(float), numpy_function(f)(array, axis).astype(float)
                special = ~np.isfinite(expected)
                np.testing.assert_array_equal(got[special], expected[special])
                np.testing.assert_allclose(got[~special], expected[~special],
                                           rtol=0.02 if np.dtype(dtype).itemsize == 2 else 1e-6)


@pytest.mark.parametrize("f", [softmax, log_softmax, softmax_entropy], **by_name)
def test_temperature(f):
    values = np.random.default_rng(0).normal(0, 3, (5, 60))
    for temperature in (0.25, 4, np.float32(0.7), 1e-35, 1e35):
        for dtype in (np.float32, np.float64, np.longdouble):
            for chunks in ((5, 60), (2, 13)):
                x = values.astype(dtype)
                got = f(da.from_array(x, chunks=chunks), 1, temperature=temperature).compute()
                expected = numpy_function(f)(x, 1, temperature=temperature)
                assert got.dtype == dtype
                rtol = 200 * max(float(np.finfo(dtype).eps), 1e-17 if temperature != 0.25 else 0)
                np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=rtol, atol=1e-45)
    exact = oracle(f.__name__, values.astype(np.float32), 1, temperature=0.25)
    got = f(da.from_array(values.astype(np.float32), chunks=(5, 7)), 1, temperature=0.25).compute()
    assert_accurate(got, exact, bound(f, got.dtype))


@pytest.mark.parametrize("dtype", [*FLOATS, np.longdouble, np.int64], ids=lambda t: np.dtype(t).name)
def test_causal(dtype):
    values = (8 * np.random.default_rng(0).normal(size=(3, 11, 17))).astype(dtype)
    for offset, chunks in itertools.product((0, 6, -4, 30, -20), ((3, 11, 17), (2, 4, 17), (1, 11, 5), (2, 3, 4))):
        x = values.copy()
        if dtype != np.int64:
            x[..., ~np.tril(np.ones((11, 17), bool), offset)] = NAN     # never read
        got = causal_softmax(da.from_array(x, chunks=chunks), offset=offset, temperature=2.0).compute()
        expected = fastsoftmax.causal_softmax(values, offset=offset, temperature=2.0)
        assert got.dtype == expected.dtype
        if chunks[-1] == 17:
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(got == 0, expected == 0)
        if dtype != np.longdouble and dtype != np.int64:
            exact = reference.causal_softmax(values.astype(np.longdouble), offset=offset, temperature=2.0)
            assert_accurate(got, exact, 4 if dtype == np.float64 else 2)
        np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=0.02 if got.itemsize == 2 else 1e-6)


def test_states_need_no_layout_that_the_kernels_take():
    """Transposed, sliced with steps, reversed and unaligned chunks, and axes that do not join."""
    values = np.random.default_rng(0).normal(size=(6, 8, 10, 4)).astype(np.float32)
    unaligned = np.zeros(values.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(values.shape)
    unaligned[...] = values
    for x in (values, values[::2, ::-1, 3:], values.transpose(2, 0, 3, 1), unaligned):
        for axis in (0, (0, 2), (1, 3), -1):
            chunked = da.from_array(x, chunks=(3, 4, 5, 4), asarray=False)
            for f in FAMILY:
                assert_near(f, f(chunked, axis).compute(), x, axis)
    chunked = da.from_array(unaligned, chunks=(3, -1, -1, -1), asarray=False)
    for f in FAMILY:
        assert_near(f, f(chunked, 0).compute(), values, 0)
        assert_near(f, f(chunked).compute(), values, None)


def test_empty_axes():
    nothing = da.zeros((3, 0), chunks=(2, 1))
    np.testing.assert_array_equal(logsumexp(nothing, 1).compute(), [-INF] * 3)
    assert logsumexp(nothing, 0).compute().shape == (0,)
    assert softmax(nothing, 0).compute().shape == (3, 0)
    for f in (softmax, log_softmax, softmax_entropy):
        with pytest.raises(ValueError, match="axis 1 of shape .3, 0. is empty"):
            f(nothing, 1)


def test_scalars_and_arrays_that_are_not_dask():
    np.testing.assert_array_equal(softmax(da.asarray(3.0)).compute(), 1)
    np.testing.assert_array_equal(logsumexp(da.asarray(3.0), 0).compute(), 3)
    for x in ([1.0, 2.0], np.array([1.0, 2.0])):
        np.testing.assert_array_equal(softmax(x).compute(), fastsoftmax.softmax(x))


# ---------------------------------------------------------------- attention

OPTIONS = {
    "none": {}, "causal": dict(is_causal=True), "bottom right": dict(is_causal=True, causal_offset=16),
    "early": dict(is_causal=True, causal_offset=-3), "per batch": dict(is_causal=True, causal_offset=[2, 20]),
    "window": dict(window=(3, 2), causal_offset=[2, 9]), "one-sided": dict(window=(4, None)),
    "boolean mask": dict(attn_mask=np.random.default_rng(1).random((13, 29)) < 0.5),
    "floating mask": dict(attn_mask=np.random.default_rng(2).normal(size=(2, 1, 13, 29))),
    "mask of keys": dict(attn_mask=np.arange(29) % 3 > 0), "bias": dict(bias=np.linspace(-2, 2, 116).reshape(4, 1, 29)),
    "mask and bias": dict(attn_mask=np.arange(13)[:, None] % 4 > 0, bias=np.linspace(0, 3, 29)),
    "scale": dict(scale=0.1), "scales": dict(scale=[0.1, 0.2, 0.3, 0.4]), "softcap": dict(softcap=0.5, scale=2.0),
    "slopes": dict(alibi_slopes=[0.1, 0.2, 0.3, 0.4], causal_offset=5),
    "slopes per batch": dict(alibi_slopes=np.linspace(0, 1, 8).reshape(2, 4)),
    "sinks": dict(sinks=np.array([1.0, 2.0, 0.0, -INF])),
    "sinks alone": dict(sinks=[1.0, 2.0, 0.0, -5.0], is_causal=True, causal_offset=-4),
    "lengths": dict(key_lengths=[29, 11]), "no keys": dict(key_lengths=[0, 3], sinks=[0.0, 1.0, 2.0, 3.0]),
}
ATTENTION_CHUNKS = {
    "whole": ((2, 4, 13, 8), (2, 2, 29, 8), (2, 2, 29, 5)), "queries": ((2, 2, 5, 8), (2, 2, 29, 8), (1, 2, 29, 5)),
    "keys": ((2, 4, 13, 8), (2, 2, 7, 8), (2, 2, 7, 5)), "all": ((1, 3, 5, 4), (1, 1, 3, 3), (2, 2, 10, 2)),
}


def attention_inputs(dtype, of_keys=None):
    rng = np.random.default_rng(0)
    of_keys = dtype if of_keys is None else of_keys
    return tuple(rng.normal(size=shape).astype(t) for shape, t in (
        ((2, 4, 13, 8), dtype), ((2, 2, 29, 8), of_keys), ((2, 2, 29, 5), of_keys)))


def assert_attention(got, expected, eps, lazy=None):
    for one, true, array in zip(got, expected, lazy or got, strict=True):
        assert one.shape == true.shape == array.shape
        assert one.dtype == true.dtype == array.dtype
        one, true = one.astype(np.longdouble), true.astype(np.longdouble)
        seen = np.isfinite(true)
        np.testing.assert_array_equal(one[~seen], true[~seen])
        np.testing.assert_allclose(one[seen], true[seen], rtol=0, atol=eps * max(1, abs(true[seen]).max(initial=0)))


@pytest.mark.parametrize("option", OPTIONS)
def test_attention_is_that_of_numpy(option):
    arrays, options = attention_inputs(np.float32), OPTIONS[option]
    if isinstance(options.get("attn_mask"), np.ndarray) and options["attn_mask"].dtype == np.float64:
        options = {**options, "attn_mask": options["attn_mask"].astype(np.float32)}
    expected = fastsoftmax.scaled_dot_product_attention(*arrays, enable_gqa=True, return_lse=True, **options)
    for chunks in ATTENTION_CHUNKS.values():
        lazy = scaled_dot_product_attention(
            *map(da.from_array, arrays, chunks), enable_gqa=True, return_lse=True, **options)
        got = dask.compute(*lazy)
        assert_attention(got, expected, 1e-6, lazy)
        alone = scaled_dot_product_attention(*map(da.from_array, arrays, chunks), enable_gqa=True, **options)
        np.testing.assert_array_equal(alone.compute(), got[0])
        if chunks is ATTENTION_CHUNKS["whole"]:
            assert_same_bits(got[0], expected[0])
            assert_same_bits(got[1], expected[1])


@pytest.mark.parametrize("chunked", ["attn_mask", "bias"])
def test_masks_of_other_chunks(chunked):
    arrays = attention_inputs(np.float64)
    mask = np.random.default_rng(3).normal(size=(2, 4, 13, 29))
    expected = fastsoftmax.scaled_dot_product_attention(*arrays, enable_gqa=True, **{chunked: mask})
    for chunks in ATTENTION_CHUNKS.values():
        for of_mask in ((1, 3, 6, 4), (2, 4, 13, 29)):
            got = scaled_dot_product_attention(*map(da.from_array, arrays, chunks), enable_gqa=True,
                                               **{chunked: da.from_array(mask, chunks=of_mask)})
            np.testing.assert_allclose(got.compute(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtypes", [(t,) for t in (*FLOATS, np.longdouble)] + [
    (np.float32, np.float16), (np.float32, ml_dtypes.bfloat16)], ids=lambda ts: "+".join(np.dtype(t).name for t in ts))
def test_attention_dtypes(dtypes):
    arrays = attention_inputs(*dtypes)
    wide = [x.astype(np.longdouble) for x in arrays]
    for options in ({}, {"is_causal": True, "causal_offset": 9, "sinks": np.arange(4.0)}):
        exact = reference.scaled_dot_product_attention(*wide, enable_gqa=True, return_lse=True, **options)
        plain = fastsoftmax.scaled_dot_product_attention(*arrays, enable_gqa=True, return_lse=True, **options)
        for chunks in ATTENTION_CHUNKS.values():
            got = dask.compute(*scaled_dot_product_attention(
                *map(da.from_array, arrays, chunks), enable_gqa=True, return_lse=True, **options))
            for one, true, same in zip(got, exact, plain, strict=True):
                assert one.dtype == same.dtype
                eps = float(ml_dtypes.finfo(one.dtype).eps if one.itemsize == 2 else np.finfo(one.dtype).eps)
                slack = max(eps / 2 if one.itemsize == 2 else 0, 4 * float(np.finfo(np.float32).eps)
                            if dtypes[0] not in (np.float64, np.longdouble) else 8 * eps)
                np.testing.assert_allclose(one.astype(np.longdouble), true, rtol=0,
                                           atol=slack * max(1, float(abs(true).max())))


def test_parts_of_16_bit_queries_are_rounded_once():
    """Rounded parts would be off by several times the rounding of the result."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(n, 16)).astype(np.float16) for n in (8, 640, 640))
    exact = reference.scaled_dot_product_attention(*(x.astype(np.float64) for x in (query, key, value)))
    key, value = (da.from_array(x, chunks=(10, 16)) for x in (key, value))
    got = scaled_dot_product_attention(query, key, value)
    assert_accurate(got.compute(), exact, 16, units=np.ones(1))


def test_attention_of_few_dimensions_and_of_batches_that_broadcast():
    rng = np.random.default_rng(0)
    for of_query, of_key, of_value in (
            ((7, 4), (9, 4), (9, 3)), ((1, 7, 4), (1, 9, 4), (1, 9, 3)), ((6, 7, 4), (2, 9, 4), (2, 9, 3)),
            ((6, 7, 4), (1, 9, 4), (9, 3)), ((7, 4), (3, 9, 4), (1, 9, 3)), ((7, 4), (5, 3, 9, 4), (9, 3)),
            ((3, 1, 6, 7, 4), (2, 3, 9, 4), (1, 1, 3, 9, 3)), ((2, 6, 7, 4), (1, 6, 9, 4), (6, 9, 3)),
            ((2, 6, 0, 4), (1, 6, 9, 4), (6, 9, 3)), ((2, 6, 7, 4), (1, 6, 0, 4), (6, 0, 3)),
            ((2, 6, 7, 0), (1, 6, 9, 0), (6, 9, 3)), ((0, 6, 7, 4), (1, 6, 9, 4), (6, 9, 3))):
        arrays = [rng.normal(size=shape) for shape in (of_query, of_key, of_value)]
        for options in ({}, {"is_causal": True, "sinks": 0.5}, {"key_lengths": min(4, of_key[-2]), "window": (2, 3)}):
            expected = fastsoftmax.scaled_dot_product_attention(*arrays, enable_gqa=True, return_lse=True, **options)
            for size in (2, 5):
                lazy = scaled_dot_product_attention(
                    *(da.from_array(x, chunks=tuple(min(size, max(n, 1)) for n in x.shape)) for x in arrays),
                    enable_gqa=True, return_lse=True, **options)
                assert_attention(dask.compute(*lazy), expected, 1e-14, lazy)


def must_not_be_computed(block):
    if block.size:
        raise AssertionError("a chunk that no query sees was computed")
    return block


def test_hidden_blocks_are_not_computed():
    """They are not in the graph: key chunks that none sees may raise."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(n, 8)) for n in (40, 100, 100))
    lazy_query, lazy_key, lazy_value = (da.from_array(x, chunks=(10, 8)) for x in (query, key, value))
    for options, unseen in (({"is_causal": True}, slice(40, 100)), ({"key_lengths": 35}, slice(40, 100)),
                            ({"window": (5, 0), "causal_offset": 60}, slice(0, 50)),
                            ({"window": (None, 3)}, slice(50, 100))):
        def spoilt(x, unseen=unseen):
            bad = x[unseen].map_blocks(must_not_be_computed, meta=x._meta)
            return da.concatenate([bad, x[unseen.stop:]] if unseen.start == 0 else [x[:unseen.start], bad])

        got = scaled_dot_product_attention(lazy_query, spoilt(lazy_key), spoilt(lazy_value), **options)
        expected = fastsoftmax.scaled_dot_product_attention(query, key, value, **options)
        np.testing.assert_allclose(got.compute(), expected, rtol=0, atol=1e-14)
    lazy = scaled_dot_product_attention(lazy_query, lazy_key, lazy_value, is_causal=True)
    parts = [k for k in dict(lazy.dask) if isinstance(k, tuple) and k[0].endswith("-part")]
    assert len(parts) == 2 + 3 + 4                          # the first block of queries sees one block of keys alone


# ---------------------------------------------------------------- graphs


def raises_when_computed(block):
    if block.size:
        raise AssertionError("computed")
    return block


def calls(x):
    """A call of each function, on chunked axes."""
    y = da.stack([x, x])
    return {
        "softmax": lambda: softmax(x, 1), "log_softmax": lambda: log_softmax(x, 0),
        "logsumexp": lambda: logsumexp(x, 1), "softmax_entropy": lambda: softmax_entropy(x),
        "causal_softmax": lambda: causal_softmax(x),
        "attention": lambda: scaled_dot_product_attention(x, y, y, return_lse=True)[0],
        "lse": lambda: scaled_dot_product_attention(x, y, y, return_lse=True)[1]}


@pytest.mark.parametrize("name", calls(da.zeros((6, 8), chunks=3)))
def test_nothing_is_computed_before_compute(name):
    x = da.zeros((6, 8), chunks=3).map_blocks(raises_when_computed, meta=np.empty((0, 0)))
    y = calls(x)[name]()
    with pytest.raises(AssertionError, match="computed"):
        y.compute()


@pytest.mark.parametrize("name", calls(da.zeros((6, 8), chunks=3)))
def test_equal_calls_have_equal_names(name):
    values = np.random.default_rng(0).normal(size=(6, 8))
    names = {calls(da.from_array(values.copy(), chunks=3))[name]().name for _ in range(2)}
    assert len(names) == 1
    for other in (da.from_array(values + 1, chunks=3), da.from_array(values, chunks=4)):
        assert calls(other)[name]().name not in names


def test_other_options_have_other_names():
    x = da.from_array(np.random.default_rng(0).normal(size=(6, 8)), chunks=3)
    names = [softmax(x, 0), softmax(x, 1), softmax(x), log_softmax(x), softmax(x, temperature=2.0), causal_softmax(x),
             causal_softmax(x, offset=1), causal_softmax(x, temperature=2.0), logsumexp(x), logsumexp(x, 0),
             logsumexp(x, keepdims=True), softmax_entropy(x), softmax_entropy(x, temperature=2.0)]
    mask = da.ones((6, 6), chunks=3)
    options = ({}, {"is_causal": True}, {"causal_offset": 1}, {"causal_offset": 1, "is_causal": True}, {"scale": 2.0},
               {"window": (1, 1)}, {"softcap": 3.0}, {"alibi_slopes": [0.5]}, {"sinks": [0.5]}, {"key_lengths": 3},
               {"attn_mask": mask}, {"bias": mask}, {"attn_mask": mask > 0})
    names += [scaled_dot_product_attention(x, x, x, **o) for o in options]
    names = [y.name for y in names]
    assert len(set(names)) == len(names)


def largest_input(*arrays):
    """Bytes of the arrays that the most burdened task holds, its result among them."""
    sizes, most = {}, 0

    def nbytes(value):
        return sum(map(nbytes, value)) if isinstance(value, tuple | list) else getattr(value, "nbytes", 0)

    def after(key, value, dsk, state, worker):
        nonlocal most
        sizes[key] = nbytes(value)
        most = max(most, sizes[key] + sum(sizes.get(k, 0) for k in state["dependencies"][key]))

    with dask.callbacks.Callback(posttask=after):
        dask.persist(*arrays)
    return most


def test_no_task_holds_more_than_a_few_chunks():
    side, keys, chunk = 512, 64 * 256, 64 * 512 * 4
    x = da.zeros((side, keys), chunks=(64, 512), dtype=np.float32)
    for y in (softmax(x, 1), softmax(x), logsumexp(x, 1), log_softmax(x, 0), softmax_entropy(x), causal_softmax(x)):
        assert largest_input(y) <= 3 * chunk
    query = da.zeros((512, 64), chunks=(64, 64), dtype=np.float32)
    key = da.zeros((keys, 64), chunks=(512, 64), dtype=np.float32)
    for options in ({}, {"is_causal": True, "causal_offset": 4000}):
        out, lse = scaled_dot_product_attention(query, key, key, return_lse=True, **options)
        assert largest_input(out, lse) <= 3 * 512 * 64 * 4


def test_kernels_in_tasks_use_one_thread(monkeypatch):
    seen = []

    def watched(function):
        @functools.wraps(function)
        def watching(*args, **kwargs):
            seen.append((function.__name__, fastsoftmax.get_num_threads()))
            return function(*args, **kwargs)
        return watching

    for module, name in ((fastsoftmax, "softmax"), (fastsoftmax, "causal_softmax"),
                         (fastsoftmax, "scaled_dot_product_attention"), (fastsoftmax, "merge_attention_states"),
                         (fastsoftmax._states, "row_states"), (fastsoftmax._states, "from_states")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    x = da.zeros((6, 8), chunks=3)
    with fastsoftmax.num_threads(2):
        dask.compute(softmax(x, 0), softmax(x.rechunk(-1), 0), causal_softmax(x), causal_softmax(x.rechunk({1: -1})),
                     scaled_dot_product_attention(x, x, x), scheduler="sync")
    assert {name for name, _ in seen} == {"softmax", "causal_softmax", "scaled_dot_product_attention",
                                          "merge_attention_states", "row_states", "from_states"}
    assert {threads for _, threads in seen} == {1}


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed", reason="distributed is not installed: no cluster is tested")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            yield client


def results_of_all_functions():
    rng = np.random.default_rng(0)
    x, values = rng.normal(size=(40, 300)).astype(np.float32), rng.normal(size=(300, 16)).astype(np.float32)
    lazy = da.from_array(x, chunks=(20, 60)), da.from_array(values, chunks=(100, 16))
    query = da.from_array(values[:40], chunks=(20, 16))
    attention = {"is_causal": True, "causal_offset": 150, "sinks": [0.5], "return_lse": True}
    ours = [f(lazy[0], axis) for f in FAMILY for axis in (0, 1, None)]
    ours += [causal_softmax(lazy[0], offset=200), *scaled_dot_product_attention(query, lazy[1], lazy[1], **attention)]
    theirs = [numpy_function(f)(x, axis) for f in FAMILY for axis in (0, 1, None)]
    theirs += [fastsoftmax.causal_softmax(x, offset=200),
               *fastsoftmax.scaled_dot_product_attention(values[:40], values, values, **attention)]
    return ours, theirs


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_schedulers(scheduler):
    ours, theirs = results_of_all_functions()
    for one, true in zip(dask.compute(*ours, scheduler=scheduler, num_workers=2), theirs, strict=True):
        np.testing.assert_allclose(one, true, rtol=2e-6, atol=1e-6)


def test_a_cluster_of_two_processes(cluster):
    ours, theirs = results_of_all_functions()
    got = cluster.gather(cluster.compute(ours))
    for one, true in zip(got, theirs, strict=True):
        np.testing.assert_allclose(one, true, rtol=2e-6, atol=1e-6)
    assert len(cluster.scheduler_info()["workers"]) == 2


def test_xarray():
    """apply_ufunc with the NumPy functions on chunks, and with those for dask arrays on chunked axes."""
    xarray = pytest.importorskip("xarray", reason="xarray is not installed: apply_ufunc is not tested")
    values = np.random.default_rng(0).normal(size=(4, 30, 8)).astype(np.float32)
    scores = xarray.DataArray(values, dims=("time", "place", "kind"), coords={"kind": list("abcdefgh")})
    expected = fastsoftmax.softmax(values, -1)
    got = xarray.apply_ufunc(
        fastsoftmax.softmax, scores.chunk(time=2, place=7), kwargs={"axis": -1}, input_core_dims=[["kind"]],
        output_core_dims=[["kind"]], dask="parallelized", output_dtypes=[scores.dtype])
    assert isinstance(got.data, da.Array)
    assert got.dims == scores.dims
    assert_same_bits(got.compute().values, expected)
    got = xarray.apply_ufunc(
        fastsoftmax.logsumexp, scores.chunk(time=2), kwargs={"axis": -1}, input_core_dims=[["kind"]],
        dask="parallelized", output_dtypes=[scores.dtype])
    assert_same_bits(got.compute().values, fastsoftmax.logsumexp(values, -1))
    got = xarray.apply_ufunc(softmax, scores.chunk(time=2, kind=3), kwargs={"axis": -1}, input_core_dims=[["kind"]],
                             output_core_dims=[["kind"]], dask="allowed")
    np.testing.assert_allclose(got.compute().values, expected, rtol=3e-7)
    np.testing.assert_allclose(softmax(scores.chunk(kind=3), -1).compute(), expected, rtol=3e-7)


# ---------------------------------------------------------------- bad input


def refuses(error, match, f, *args, **kwargs):
    with pytest.raises(error, match=match) as caught:
        f(*args, **kwargs)
    assert type(caught.value) is error


X = da.from_array(np.arange(24.0).reshape(4, 6), chunks=(2, 3)).map_blocks(raises_when_computed, meta=np.empty((0, 0)))


@pytest.mark.parametrize("f", [*FAMILY, causal_softmax], **by_name)
def test_arrays_that_are_refused_when_the_graph_is_built(f):
    unknown = da.concatenate([X[X[:, 0] > 1]] * 2)
    refuses(ValueError, r"unknown size.*compute_chunk_sizes\(\)", f, unknown)
    refuses(TypeError, "array of numbers, got dtype object", f, X.astype(object))
    refuses(TypeError, "got dtype datetime64", f, X.astype("M8[s]"))
    refuses(TypeError, "real.*complex128", f, X.astype(complex))
    refuses(TypeError, "masked", f, da.ma.masked_array(X, X > 3))
    refuses(TypeError, "masked", f, np.ma.masked_array(np.zeros((2, 2)), np.zeros((2, 2))))
    for name in ("where", "dtype", "out", "b", "return_sign"):
        refuses(TypeError, f"unexpected keyword argument '{name}'", f, X, **{name: None})


@pytest.mark.parametrize("f", FAMILY, **by_name)
def test_axes_that_are_refused_when_the_graph_is_built(f):
    refuses(np.exceptions.AxisError, "axis 2 is out of bounds for array of dimension 2", f, X, 2)
    refuses(ValueError, "duplicate value in 'axis'", f, X, (0, -2))
    refuses(TypeError, "axis must be an int", f, X, 1.0)
    refuses(TypeError, "pass axis=1", f, X, dim=1)


@pytest.mark.parametrize("f", [softmax, log_softmax, softmax_entropy, causal_softmax], **by_name)
def test_temperatures_that_are_refused_when_the_graph_is_built(f):
    for temperature in (0.0, -1, NAN, INF):
        refuses(ValueError, "temperature must be positive and finite", f, X, temperature=temperature)
    for temperature in ([1.0, 2.0], np.ones((4, 1)), da.ones(4), da.asarray(1.0)):
        refuses(TypeError, "temperature must be one number", f, X, temperature=temperature)


def test_causal_arguments():
    refuses(ValueError, "at least two dimensions", causal_softmax, X[0])
    refuses(TypeError, "offset must be an int", causal_softmax, X, offset=0.5)


def test_attention_arguments_that_are_refused_when_the_graph_is_built():
    query, key = da.zeros((2, 4, 3, 8), chunks=2), da.zeros((2, 2, 5, 8), chunks=2)
    attend = functools.partial(scaled_dot_product_attention, enable_gqa=True)
    refuses(ValueError, "query of shape .* does not fit key", attend, query, key[..., :7], key)
    refuses(ValueError, "there are 5 keys and 4 values", attend, query, key, key[:, :, :4])
    refuses(ValueError, "enable_gqa=True", scaled_dot_product_attention, query, key, key)
    refuses(TypeError, "one dtype", attend, query, key.astype(np.float32), key)
    refuses(TypeError, "query must be floating, got dtype int64", attend, query.astype(int), key, key)
    refuses(NotImplementedError, "dropout_p", attend, query, key, key, dropout_p=0.1)
    unknown = key[:, :, da.from_array(np.ones(5, bool), chunks=2)]
    refuses(ValueError, r"key has chunks of unknown size.*key.compute_chunk_sizes\(\)", attend, query, unknown, unknown)
    refuses(TypeError, "value is a dask array of masked", attend, query, key, da.ma.masked_array(key, key > 0))
    for name in ("attn_mask", "bias"):
        refuses(ValueError, f"{name} of shape", attend, query, key, key, **{name: np.ones((3, 4))})
        refuses(ValueError, f"{name} of shape", attend, query, key, key, **{name: da.ones((2, 5), chunks=1)})
        refuses(TypeError, f"{name} must be", attend, query, key, key, **{name: da.ones((3, 5), dtype=int)})
        refuses(ValueError, f"{name} of shape .* does not fit 5 keys", attend, query, key, key, key_lengths=3,
                **{name: np.ones((3, 4))})
    for option, bad, error in (("softcap", 0.0, ValueError), ("window", (-1, 0), ValueError), ("window", 3, TypeError),
                               ("key_lengths", 6, ValueError), ("causal_offset", 0.5, TypeError),
                               ("sinks", np.ones(3), ValueError), ("scale", np.ones(3), ValueError),
                               ("alibi_slopes", "a", TypeError)):
        refuses(error, option, attend, query, key, key, **{option: bad})
    for option in ("sinks", "scale", "alibi_slopes", "key_lengths", "causal_offset"):
        refuses(TypeError, rf"{option} must be a number or a NumPy array here: pass {option}.compute\(\)", attend,
                query, key, key, **{option: da.ones(4)})
    for name in ("out", "return_entropy"):
        refuses(TypeError, f"unexpected keyword argument '{name}'", attend, query, key, key, **{name: None})


@pytest.mark.parametrize("name", fastsoftmax.dask.__all__)
def test_docstring(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(fastsoftmax.dask, name), name, fastsoftmax.dask)
    assert run(test, {}) > 0
    parameters = inspect.signature(getattr(fastsoftmax.dask, name)).parameters
    assert "dim" not in parameters
    assert all(f"{parameter}" in test.docstring for parameter in parameters)


def test_importing_fastsoftmax_does_not_import_dask():
    code = "import sys, fastsoftmax; assert not [m for m in sys.modules if m.partition('.')[0] in ('dask', 'xarray')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_dask_the_error_names_the_extra():
    code = "import sys; sys.modules['dask'] = None; import fastsoftmax.dask"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"ImportError: .*pip install 'fastsoftmax\[dask\]'", last)
