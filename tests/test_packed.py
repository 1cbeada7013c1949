"""varlen_attention and paged_attention: each sequence as if it were alone, bit for bit, and nothing else is read."""

import itertools

import numpy as np
import pytest
from helpers import NUMPY, assert_same_bits, wide
from numpy.testing import assert_array_equal

from fastsoftmax import (
    _attention,
    num_threads,
    paged_attention,
    reference,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    varlen_attention,
    varlen_attention_backward,
)

NAN = np.nan
# Of queries, of keys: for prefill and for decode, and one sequence without a query.
LENGTHS = [3, 0, 150, 1, 40], [5, 2, 150, 700, 40]
RESULTS = {"return_lse": True, "return_entropy": True}

# Options as a function of a random generator, the number of sequences and of query heads.
OPTIONS = {
    "none": lambda rng, b, h: {},
    "is_causal": lambda rng, b, h: {"is_causal": True},
    "one causal_offset": lambda rng, b, h: {"is_causal": True, "causal_offset": 2},
    "causal_offset per sequence": lambda rng, b, h: {"is_causal": True, "causal_offset": rng.integers(-1, 9, b)},
    "scale": lambda rng, b, h: {"scale": 0.7},
    "scale per head": lambda rng, b, h: {"scale": rng.uniform(0.1, 1, h)},
    "window": lambda rng, b, h: {"window": (3, 2)},
    "softcap": lambda rng, b, h: {"softcap": 0.8},
    "slopes per head": lambda rng, b, h: {"alibi_slopes": rng.uniform(0.1, 1, h)},
    "slopes per sequence": lambda rng, b, h: {"alibi_slopes": rng.uniform(0.1, 1, (b, h)), "is_causal": True},
    "sinks": lambda rng, b, h: {"sinks": rng.normal(size=h)},
}


def cumulative(lengths):
    return np.concatenate([[0], np.cumsum(lengths)])


def packed_arrays(dtype, heads=4, key_heads=2, width=24, value_width=17, lengths=LENGTHS, seed=0):
    rng = np.random.default_rng([seed, heads, key_heads])
    queries, keys = map(sum, lengths)
    return [rng.normal(size=shape).astype(dtype) for shape in (
        (queries, heads, width), (keys, key_heads, width), (keys, key_heads, value_width))]


def heads_first(*arrays):
    return [x.swapaxes(-3, -2) for x in arrays]


def sequences(lengths):
    """(rows of queries, rows of keys) of each sequence."""
    return list(zip(*([slice(a, b) for a, b in itertools.pairwise(cumulative(x))] for x in lengths), strict=True))


def of_sequence(options, b, queries, keys):
    """The options of scaled_dot_product_attention for one sequence."""
    offset = options.get("causal_offset", keys - queries)
    slopes = options.get("alibi_slopes")
    own = {"causal_offset": int(np.broadcast_to(offset, 5)[b])}
    if np.ndim(slopes) == 2:
        own["alibi_slopes"] = slopes[b]
    return {**options, **own}


def paged_arrays(dtype, lengths, length=1, page_size=4, heads=4, key_heads=2, width=24, value_width=17, spare=2,
                 spoilt=True, seed=0):
    """(query, key_cache, value_cache, block_table, [(keys, values)]): pages in random order, NaN where nothing is."""
    rng = np.random.default_rng([seed, page_size, length])
    most = max(-(-max(lengths) // page_size), 1) + 1
    pages = sum(-(-n // page_size) for n in lengths) + spare
    order = iter(rng.permutation(pages))
    table = np.full((len(lengths), most), 10**6)
    caches = [np.full((pages, page_size, key_heads, n), NAN if spoilt else 0, dtype) for n in (width, value_width)]
    alone = []
    for b, keys in enumerate(lengths):
        key, value = (rng.normal(size=(keys, key_heads, n)).astype(dtype) for n in (width, value_width))
        for start in range(0, keys, page_size):
            page = table[b, start // page_size] = next(order)
            for cache, x in zip(caches, (key, value), strict=True):
                rows = x[start:start + page_size]
                cache[page, :len(rows)] = rows
        alone.append((key, value))
    query = rng.normal(size=(len(lengths), length, heads, width)).astype(dtype)
    return query, *caches, table, alone


# ---------------------------------------------------------------- packed

@pytest.mark.parametrize("option", OPTIONS)
def test_a_packed_sequence_has_the_bits_of_a_call_of_its_own(kernel, option):
    options = {"enable_gqa": True, **OPTIONS[option](np.random.default_rng(1), 5, 4)}
    query, key, value = packed_arrays(kernel.dtype)
    out, lse, entropy = varlen_attention(query, key, value, *map(cumulative, LENGTHS), **RESULTS, **options)
    assert (out.shape, lse.shape, entropy.shape) == ((194, 4, 17), (4, 194), (4, 194))
    for b, (q, k) in enumerate(sequences(LENGTHS)):
        own = of_sequence(options, b, q.stop - q.start, k.stop - k.start)
        expected = scaled_dot_product_attention(*heads_first(query[q], key[k], value[k]), **RESULTS, **own)
        for got, one in zip((out[q].swapaxes(0, 1), lse[:, q], entropy[:, q]), expected, strict=True):
            assert_same_bits(got, one)
    without = varlen_attention(query, key, value, *map(cumulative, LENGTHS), enable_gqa=True)
    assert option == "none" or not np.array_equal(out, without)
    for name in options.keys() - {"enable_gqa", "is_causal"}:      # each is heeded
        fewer = {k: v for k, v in options.items() if k != name}
        assert not np.array_equal(out, varlen_attention(query, key, value, *map(cumulative, LENGTHS), **fewer))


@pytest.mark.parametrize("option", [*OPTIONS, "grad_lse"])
def test_packed_gradients_have_the_bits_of_calls_of_their_own(kernel, option):
    rng = np.random.default_rng(2)
    statistics = np.float64 if kernel.tag == "f64" else np.float32
    query, key, value = packed_arrays(kernel.dtype)
    options = {"enable_gqa": True, **OPTIONS.get(option, OPTIONS["none"])(rng, 5, 4)}
    grad_out = rng.normal(size=(194, 4, 17)).astype(kernel.dtype)
    grad_lse = rng.normal(size=(4, 194)).astype(statistics) if option == "grad_lse" else None
    inputs = {"grad_scale": "scale", "grad_sinks": "sinks", "grad_slopes": "alibi_slopes"}
    flags = {flag: True for flag, name in inputs.items() if name in options}
    out, lse = varlen_attention(query, key, value, *map(cumulative, LENGTHS), return_lse=True, **options)
    got = varlen_attention_backward(grad_out, query, key, value, out, lse, *map(cumulative, LENGTHS),
                                    grad_lse=grad_lse, **options, **flags)
    assert [x.dtype for x in got] == [kernel.dtype] * 3 + [statistics] * len(flags)
    extra = []
    for b, (q, k) in enumerate(sequences(LENGTHS)):
        own = of_sequence(options, b, q.stop - q.start, k.stop - k.start)
        expected = scaled_dot_product_attention_backward(
            *heads_first(grad_out[q], query[q], key[k], value[k], out[q]), lse[:, q],
            grad_lse=None if grad_lse is None else grad_lse[:, q], **own, **flags)
        for x, rows, one in zip(got, (q, k, k), expected, strict=False):
            assert_same_bits(x[rows].swapaxes(0, 1), one)
        extra += expected[3:]
    if option == "slopes per sequence":
        assert_same_bits(got[3], np.stack(extra))
    elif flags:
        total = np.sum(extra, 0, dtype=float)
        np.testing.assert_allclose(got[3], total, rtol=1e-5, atol=1e-5 * abs(total).max())


@pytest.mark.parametrize("option", OPTIONS)
def test_packed_gradients_agree_with_finite_differences(option):
    rng = np.random.default_rng(3)
    lengths = [3, 0, 2], [4, 1, 2]
    arrays = packed_arrays(float, lengths=lengths, width=5, value_width=3)
    options = {"enable_gqa": True, "scale": 0.4, **OPTIONS[option](rng, 3, 4)}
    rows = [*map(cumulative, lengths)]
    grad_out = rng.normal(size=(5, 4, 3))
    out, lse = varlen_attention(*arrays, *rows, return_lse=True, **options)
    gradients = varlen_attention_backward(grad_out, *arrays, out, lse, *rows, **options)
    for i, dx in enumerate(gradients):
        direction, step = rng.normal(size=dx.shape), 1e-6
        ends = []
        for sign in (1, -1):
            moved = [x + sign * step * direction if j == i else x for j, x in enumerate(arrays)]
            ends.append((varlen_attention(*moved, *rows, **options) * grad_out).sum())
        np.testing.assert_allclose((dx * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_one_set_of_lengths_serves_queries_and_keys(kernel):
    lengths = [7, 1, 20]
    arrays = packed_arrays(kernel.dtype, lengths=(lengths, lengths))
    rows = cumulative(lengths)
    both = varlen_attention(*arrays, rows, rows, is_causal=True, enable_gqa=True)
    assert_same_bits(varlen_attention(*arrays, rows, is_causal=True, enable_gqa=True), both)
    for kind in (np.int8, np.uint16, np.int32, np.uint64):
        assert_same_bits(varlen_attention(*arrays, rows.astype(kind), is_causal=True, enable_gqa=True), both)


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_a_bit(kernel, threads):
    query, key, value = packed_arrays(kernel.dtype)
    rows = [*map(cumulative, LENGTHS)]
    paged = paged_arrays(kernel.dtype, [700, 3, 0, 130])
    found = []
    for n in (1, threads):
        with num_threads(n):
            out, lse = varlen_attention(query, key, value, *rows, enable_gqa=True, return_lse=True)
            gradients = varlen_attention_backward(out, query, key, value, out, lse, *rows, enable_gqa=True)
            found.append([out, lse, *gradients, paged_attention(*paged[:4], [700, 3, 0, 130], enable_gqa=True)])
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


def test_heads_broadcast_in_packed_arrays(kernel):
    rows = cumulative([4, 3])
    query, key, value = packed_arrays(kernel.dtype, 3, 3, lengths=([4, 3], [4, 3]))
    one = key[:, :1], value[:, :1]
    same = [np.repeat(x, 3, 1) for x in one]
    out, lse = varlen_attention(query, *one, rows, return_lse=True)
    near = {"rtol": 16 * kernel.eps, "atol": 16 * kernel.eps}
    np.testing.assert_allclose(*(x.astype(float) for x in (out, varlen_attention(query, *same, rows))), **near)
    dquery, dkey, dvalue = varlen_attention_backward(out, query, *one, out, lse, rows)
    assert (dkey.shape, dvalue.shape) == (one[0].shape, one[1].shape)
    expected = varlen_attention_backward(out, query, *same, out, lse, rows)
    np.testing.assert_allclose(*(x.astype(float) for x in (dquery, expected[0])), **near)
    total = expected[2].sum(1, dtype=float, keepdims=True)
    np.testing.assert_allclose(dvalue.astype(float), total, **near)
    assert varlen_attention(query[:, :1], key, value, rows).shape == out.shape


def test_packed_arrays_of_any_layout(kernel):
    arrays, rows = packed_arrays(kernel.dtype), [*map(cumulative, LENGTHS)]
    expected = varlen_attention(*arrays, *rows, enable_gqa=True)
    layouts = [
        lambda x: np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2), lambda x: x[::-1].copy()[::-1],
        lambda x: np.repeat(x, 2, 2)[..., ::2], lambda x: x.astype(x.dtype.newbyteorder("S")), np.asfortranarray]
    for layout in layouts:
        assert_same_bits(varlen_attention(*map(layout, arrays), *rows, enable_gqa=True), expected)
        out = layout(np.zeros_like(expected))
        assert varlen_attention(*arrays, *rows, enable_gqa=True, out=out) is out
        assert_array_equal(out, expected)
    query = arrays[0][..., :17].copy()
    key = arrays[1][..., :17].copy()
    expected = varlen_attention(query, key, arrays[2], *rows, enable_gqa=True)
    assert_array_equal(varlen_attention(query, key, arrays[2], *rows, enable_gqa=True, out=query), expected)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_keys_of_16_bits_beside_float32_queries(kind):
    query, key, value = packed_arrays(np.float32)
    key, value = (x.astype(NUMPY[kind]) for x in (key, value))
    rows = [*map(cumulative, LENGTHS)]
    out, lse = varlen_attention(query, key, value, *rows, enable_gqa=True, return_lse=True)
    expected = varlen_attention(query, *(x.astype(np.float32) for x in (key, value)), *rows, enable_gqa=True)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    gradients = varlen_attention_backward(out, query, key, value, out, lse, *rows, enable_gqa=True)
    assert [x.dtype for x in gradients] == [np.float32, key.dtype, key.dtype]
    paged_query, *caches, table, _ = paged_arrays(np.float32, [9, 700], spoilt=False)
    caches = [x.astype(NUMPY[kind]) for x in caches]
    got = paged_attention(paged_query, *caches, table, [9, 700], enable_gqa=True)
    expected = paged_attention(paged_query, *(x.astype(np.float32) for x in caches), table, [9, 700], enable_gqa=True)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_out_of_float32_for_queries_of_16_bits():
    arrays, rows = packed_arrays(np.float16), [*map(cumulative, LENGTHS)]
    out = np.empty((194, 4, 17), np.float32)
    assert varlen_attention(*arrays, *rows, enable_gqa=True, out=out) is out
    assert_array_equal(out.astype(np.float16), varlen_attention(*arrays, *rows, enable_gqa=True))
    query, *caches, table, _ = paged_arrays(np.float16, [9, 3])
    wide_out = np.empty((2, 1, 4, 17), np.float32)
    paged_attention(query, *caches, table, [9, 3], enable_gqa=True, out=wide_out)
    assert_array_equal(wide_out.astype(np.float16), paged_attention(query, *caches, table, [9, 3], enable_gqa=True))


def test_nothing_to_attend_to():
    query, key, value = packed_arrays(np.float32)
    none = varlen_attention(query[:0], key[:0], value[:0], [0], enable_gqa=True, **RESULTS)
    assert [x.shape for x in none] == [(0, 4, 17), (4, 0), (4, 0)]
    rows = [0, 1, 3], [0, 0, 0]
    out, lse, entropy = varlen_attention(query[:3], key[:0], value[:0], *rows, enable_gqa=True, **RESULTS)
    assert not out.any() and np.all(lse == -np.inf) and not entropy.any()
    _, sink_lse = varlen_attention(query[:3], key[:0], value[:0], [0, 1, 3], [0, 0, 0], enable_gqa=True,
                                   sinks=[1.0, 2, 3, 4], return_lse=True)
    assert_array_equal(sink_lse, np.repeat([[1], [2], [3], [4]], 3, 1).astype(np.float32))
    gradients = varlen_attention_backward(out, query[:3], key[:0], value[:0], out, lse, [0, 1, 3], [0, 0, 0],
                                          enable_gqa=True)
    assert [x.shape for x in gradients] == [(3, 4, 24), (0, 2, 24), (0, 2, 17)] and not gradients[0].any()
    no_rows = varlen_attention_backward(out[:0], query[:0], key[:5], value[:5], out[:0], lse[:, :0], [0, 0], [0, 5],
                                        enable_gqa=True, scale=0.1, grad_scale=True)
    assert [x.shape for x in no_rows] == [(0, 4, 24), (5, 2, 24), (5, 2, 17), (4,)]
    assert not any(x.any() for x in no_rows)
    for e, ev in ((0, 17), (24, 0), (0, 0)):
        arrays = query[:3, :, :e], key[:3, :, :e], value[:3, :, :ev]
        out, lse = varlen_attention(*arrays, [0, 3], enable_gqa=True, return_lse=True)
        assert out.shape == (3, 4, ev)
        gradients = varlen_attention_backward(out, *arrays, out, lse, [0, 3], enable_gqa=True)
        assert [x.shape for x in gradients] == [x.shape for x in arrays]


def test_no_length_beside_first_rows(monkeypatch):
    """A kernel would read one for each sequence."""
    calls = []
    monkeypatch.setattr(_attention, "call_backward_kernel", lambda tag, call, *rest: calls.append(call))
    query, key, value = packed_arrays(np.float32)
    for keys in (0, 5):
        varlen_attention_backward(query[:3, :, :17], query[:3], key[:keys], value[:keys], query[:3, :, :17],
                                  np.zeros((4, 3), np.float32), [0, 1, 3], [0, 0, keys], enable_gqa=True)
    assert [call.lengths for call in calls] == [None, None]


@pytest.mark.parametrize("options", [{"softcap": 1e35}, {"scale": 1e35}], ids=lambda x: next(iter(x)))
def test_what_the_kernels_do_not_take_goes_through_the_reference(options):
    rows = [*map(cumulative, LENGTHS)]
    for kind, more in ((np.longdouble, {}), (np.float32, options)):
        arrays = packed_arrays(kind)
        out, lse = varlen_attention(*arrays, *rows, enable_gqa=True, return_lse=True, is_causal=True, **more)
        gradients = varlen_attention_backward(out, *arrays, out, lse, *rows, enable_gqa=True, is_causal=True, **more)
        for b, (q, k) in enumerate(sequences(LENGTHS)):
            own = of_sequence({"is_causal": True, **more}, b, q.stop - q.start, k.stop - k.start)
            alone = [x.swapaxes(0, 1) for x in (arrays[0][q], arrays[1][k], arrays[2][k])]
            one, one_lse = scaled_dot_product_attention(*alone, enable_gqa=True, return_lse=True, **own)
            assert_array_equal(out[q].swapaxes(0, 1), one)
            assert_array_equal(lse[:, q], one_lse)
            expected = scaled_dot_product_attention_backward(one, *alone, one, one_lse, enable_gqa=True, **own)
            for dx, x, at in zip(gradients, expected, (q, k, k), strict=True):
                assert_array_equal(dx[at].swapaxes(0, 1), x)
    query, *caches, table, alone = paged_arrays(np.longdouble, [9, 3])
    out = paged_attention(query, *caches, table, [9, 3], enable_gqa=True)
    for b, (key, value) in enumerate(alone):
        expected = scaled_dot_product_attention(*heads_first(query[b], key, value), enable_gqa=True)
        assert_array_equal(out[b].swapaxes(0, 1), expected)


def test_more_sequences_than_are_planned_at_a_time(kernel):
    """Of equal lengths, so that a batch of arrays gives the same bits."""
    x = np.random.default_rng(5).normal(size=(3, 3000, 2, 3, 1)).astype(kernel.dtype)
    query, key, value = (np.ascontiguousarray(part.swapaxes(1, 2)).reshape(6000, 3, 1) for part in x.swapaxes(2, 3))
    got, lse = varlen_attention(query, key, value, np.arange(3001) * 2, return_lse=True)
    alone = [part.reshape(3000, 2, 3, 1).swapaxes(1, 2) for part in (query, key, value)]
    expected, expected_lse = scaled_dot_product_attention(*alone, return_lse=True)
    assert_same_bits(got.reshape(3000, 2, 3, 1).swapaxes(1, 2), expected)
    gradients = varlen_attention_backward(got, query, key, value, got, lse, np.arange(3001) * 2)
    one = scaled_dot_product_attention_backward(expected, *alone, expected, expected_lse)
    for dx, true in zip(gradients, one, strict=True):
        assert_same_bits(dx.reshape(3000, 2, 3, 1).swapaxes(1, 2), true)


# ---------------------------------------------------------------- pages

@pytest.mark.parametrize("page_size", [1, 4, 16, 256, 1000])
def test_a_sequence_in_pages_has_the_bits_of_its_keys_in_one_array(kernel, page_size):
    lengths = [9, 0, 130, 700, 512]
    for length, options in ((1, {}), (3, {"window": (4, 0)}), (50, {"softcap": 2.0, "causal_offset": 3})):
        query, *caches, table, alone = paged_arrays(kernel.dtype, lengths, length, page_size)
        got = paged_attention(query, *caches, table, lengths, enable_gqa=True, **RESULTS, **options)
        assert [x.shape for x in got] == [(5, length, 4, 17), (5, 4, length), (5, 4, length)]
        for b, (key, value) in enumerate(alone):
            expected = scaled_dot_product_attention(
                *heads_first(query[b], key, value), enable_gqa=True, is_causal=True,
                **{"causal_offset": lengths[b] - length, **options}, **RESULTS)
            for x, one in zip((got[0][b].swapaxes(0, 1), got[1][b], got[2][b]), expected, strict=True):
                assert_same_bits(x, one)


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_over_pages(kernel, option):
    lengths = [9, 0, 130, 40, 33]
    options = {"enable_gqa": True, "is_causal": False, **OPTIONS[option](np.random.default_rng(1), 5, 4)}
    query, *caches, table, alone = paged_arrays(kernel.dtype, lengths, 3)
    got = paged_attention(query, *caches, table, lengths, **options)
    for b, (key, value) in enumerate(alone):
        own = of_sequence(options, b, 3, lengths[b])
        assert_same_bits(got[b].swapaxes(0, 1), scaled_dot_product_attention(*heads_first(query[b], key, value), **own))
    for name in options.keys() - {"enable_gqa", "is_causal"}:
        fewer = {k: v for k, v in options.items() if k != name}
        assert not np.array_equal(got, paged_attention(query, *caches, table, lengths, **fewer))


def test_pages_are_causal_unless_told_otherwise(kernel):
    query, *caches, table, _ = paged_arrays(kernel.dtype, [9], 3)
    default = paged_attention(query, *caches, table, [9], enable_gqa=True)
    assert_same_bits(default, paged_attention(query, *caches, table, [9], enable_gqa=True, is_causal=True))
    assert not np.array_equal(default, paged_attention(query, *caches, table, [9], enable_gqa=True, is_causal=False))


def test_values_that_are_not_finite_reach_those_alone_who_see_them(kernel):
    """Pages hold NaN beyond every length already; here a visible value is infinite, and a hidden one NaN."""
    lengths = [600, 40]
    for length in (1, 3, 40):
        query, *caches, table, _ = paged_arrays(kernel.dtype, lengths, length)
        key_cache, value_cache = caches
        value_cache[table[1, 9], 3] = NAN              # the last key: seen by the last query alone
        value_cache[table[0, 0], 0, :, 0] = np.inf     # seen by all
        got = paged_attention(query, key_cache, value_cache, table, lengths, enable_gqa=True).astype(float)
        assert np.isnan(got[1, -1]).all() and np.isfinite(got[1, :-1]).all()
        assert np.all(got[0, ..., 0] == np.inf) and np.isfinite(got[0, ..., 1:]).all()


def test_sequences_share_pages(kernel):
    query, *caches, table, alone = paged_arrays(kernel.dtype, [8, 5])
    shared = np.stack([table[0], [*table[0, :1], *table[1, :2]]])
    got = paged_attention(query, *caches, shared, [8, 8 + 1], enable_gqa=True)
    key, value = (np.concatenate([x[:4], y]) for x, y in zip(*alone, strict=True))
    assert_same_bits(got[1].swapaxes(0, 1),
                     scaled_dot_product_attention(*heads_first(query[1], key, value), enable_gqa=True))


def test_the_reference_agrees(kernel):
    """Of packed sequences and pages, in its wider arithmetic."""
    kind = wide(kernel.dtype)
    arrays, rows = packed_arrays(kernel.dtype), [*map(cumulative, LENGTHS)]
    got = varlen_attention(*arrays, *rows, enable_gqa=True, is_causal=True, **RESULTS)
    exact = reference.varlen_attention(*(x.astype(kind) for x in arrays), *rows, enable_gqa=True, is_causal=True,
                                       **RESULTS)
    query, *caches, table, _ = paged_arrays(kernel.dtype, [9, 600, 3], 2)
    got += paged_attention(query, *caches, table, [9, 600, 3], enable_gqa=True, **RESULTS)
    exact += reference.paged_attention(*(x.astype(kind) for x in (query, *caches)), table, [9, 600, 3], enable_gqa=True,
                                       **RESULTS)
    for one, true in zip(got, exact, strict=True):
        assert one.shape == true.shape
        np.testing.assert_allclose(one.astype(kind), true, rtol=8 * kernel.eps, atol=8 * kernel.eps)


# ---------------------------------------------------------------- bad input

def packed_call(**changes):
    query, key, value = packed_arrays(np.float32, lengths=([2, 1], [2, 1]))
    arguments = {"query": query, "key": key, "value": value, "cu_seqlens_q": [0, 2, 3], "enable_gqa": True}
    return varlen_attention(**{**arguments, **changes})


def paged_call(**changes):
    query, key_cache, value_cache, table, _ = paged_arrays(np.float32, [9, 3])
    return paged_attention(**{"query": query, "key_cache": key_cache, "value_cache": value_cache, "block_table": table,
                              "key_lengths": [9, 3], "enable_gqa": True, **changes})


X = np.zeros((3, 4, 24), np.float32)


@pytest.mark.parametrize("changes, error, says", [
    ({"cu_seqlens_q": [1, 2, 3]}, ValueError, "cu_seqlens_q must start at 0, got 1"),
    ({"cu_seqlens_q": [0, 3, 2, 3]}, ValueError,
     r"cu_seqlens_q must not fall, but cu_seqlens_q\[1\] is 3 and cu_seqlens_q\[2\] is 2"),
    ({"cu_seqlens_q": [0, 2, 4]}, ValueError, "cu_seqlens_q must end at 3, the number of rows of query; got 4"),
    ({"cu_seqlens_k": [0, 2, 2]}, ValueError, "cu_seqlens_k must end at 3, the number of rows of key; got 2"),
    ({"cu_seqlens_k": [0, 3]}, ValueError, "must be of one length.*got 3 and 2"),
    ({"cu_seqlens_q": [0.0, 2, 3]}, TypeError, "cu_seqlens_q must be integers, got dtype float64"),
    ({"cu_seqlens_q": [False, True, True]}, TypeError, "cu_seqlens_q must be integers, got dtype bool"),
    ({"cu_seqlens_q": 3}, ValueError, "cu_seqlens_q must have one dimension"),
    ({"cu_seqlens_q": np.zeros(0, int)}, ValueError, "at least one number"),
    ({"cu_seqlens_q": np.array([0, 2**64 - 1, 3], np.uint64)}, ValueError, "must not fall"),
    ({"cu_seqlens_q": np.ma.masked_array([0, 2, 3])}, TypeError, "cu_seqlens_q is a masked array"),
    ({"query": X[0]}, ValueError, r"query must have three dimensions.*\(4, 24\)"),
    ({"query": X[..., :3]}, ValueError,
     r"query of shape \(3, 4, 3\) does not fit key of shape \(3, 2, 24\).*E, are 3 and 24"),
    ({"value": X[:2, :2]}, ValueError, "there are 3 keys and 2 values"),
    ({"query": X[:2], "cu_seqlens_q": [0, 2]}, ValueError,
     "without cu_seqlens_k there must be as many keys as queries"),
    ({"query": X[:, :3]}, ValueError, "3, is no multiple of 2"),
    ({"enable_gqa": False}, ValueError, "enable_gqa=True"),
    ({"query": X.astype(float)}, TypeError, "one dtype"),
    ({"query": X.astype(int)}, TypeError, "query"),
    ({"causal_offset": [1, 2, 3]}, ValueError, "causal_offset"),
    ({"causal_offset": 0.5}, TypeError, "causal_offset"),
    ({"window": (-1, 0)}, ValueError, "window"),
    ({"softcap": 0}, ValueError, "softcap"),
    ({"dropout_p": 0.1}, NotImplementedError, "dropout"),
    ({"out": X}, ValueError, r"out must have shape \(3, 4, 17\)"),
    ({"attn_mask": None}, TypeError, "attn_mask"),
    ({"key_lengths": None}, TypeError, "key_lengths"),
])
def test_bad_packed_input(changes, error, says):
    with pytest.raises(error, match=says):
        packed_call(**changes)


@pytest.mark.parametrize("changes, error, says", [
    ({"block_table": [[0, 1, 9], [2, -1, -1]]}, ValueError,
     r"block_table\[0, 2\] is 9; pages are numbered from 0 to 5"),
    ({"block_table": [[0, 1, 2], [-1, 3, 3]]}, ValueError, r"block_table\[1, 0\] is -1"),
    ({"block_table": [[0, 1, 2]]}, ValueError,
     r"block_table must have shape \(2, most pages of a sequence\).*\(1, 3\)"),
    ({"block_table": [0, 1]}, ValueError, "block_table must have shape"),
    ({"block_table": [[0.0, 1, 2], [3, 4, 5]]}, TypeError, "block_table must be integers, got dtype float64"),
    ({"key_lengths": [9, 17]}, ValueError,
     "key_lengths must be from 0 to the room of block_table's pages, 16; got 17"),
    ({"key_lengths": [-1, 3]}, ValueError, "key_lengths.*got -1"),
    ({"key_lengths": [9.0, 3]}, TypeError, "key_lengths must be integers, got dtype float64"),
    ({"key_lengths": [9, 3, 1]}, ValueError, "key_lengths"),
    ({"query": X}, ValueError, r"query must have four dimensions \(batch, queries, heads, E\)"),
    ({"value_cache": np.zeros((5, 4, 2, 17), np.float32)}, ValueError, "pages and page_size"),
    ({"query": np.zeros((2, 1, 4, 5), np.float32)}, ValueError, "key_cache.*E, are 5 and 24"),
    ({"query": np.zeros((2, 1, 4, 24))}, TypeError, "query, key_cache, value_cache must have one dtype"),
    ({"out": np.zeros((2, 4, 1, 17), np.float32)}, ValueError, r"out must have shape \(2, 1, 4, 17\)"),
    ({"bias": None}, TypeError, "bias"),
])
def test_bad_paged_input(changes, error, says):
    with pytest.raises(error, match=says):
        paged_call(**changes)


def test_bad_input_of_the_packed_gradient():
    query, key, value = packed_arrays(np.float32, lengths=([2, 1], [2, 1]))
    out, lse = varlen_attention(query, key, value, [0, 2, 3], enable_gqa=True, return_lse=True)

    def backward(**changes):
        return varlen_attention_backward(**{
            "grad_out": out, "query": query, "key": key, "value": value, "out": out, "lse": lse,
            "cu_seqlens_q": [0, 2, 3], "enable_gqa": True, **changes})

    for changes, error, says in (
            ({"lse": lse.T}, ValueError, r"lse must have shape \(4, 3\)"),
            ({"grad_out": out.astype(float)}, TypeError, "grad_out must have dtype float32"),
            ({"out": out[:2]}, ValueError, r"out must have shape \(3, 4, 17\)"),
            ({"grad_scale": True}, ValueError, "grad_scale asks for the gradient of scale"),
            ({"grad_lse": lse[0]}, ValueError, "grad_lse must have shape"),
            ({"cu_seqlens_q": [0, 2]}, ValueError, "must end at 3")):
        with pytest.raises(error, match=says):
            backward(**changes)


def test_lengths_of_arrays_give_the_bits_of_shorter_arrays(kernel):
    """As with pages: how many keys there is room for does not matter."""
    rng = np.random.default_rng(4)
    query, key, value = (rng.normal(size=(2, 2, n, 32)).astype(kernel.dtype) for n in (1, 5000, 5000))
    lengths = [700, 4100]
    got = scaled_dot_product_attention(query, key, value, key_lengths=lengths, return_lse=True)
    for b, keys in enumerate(lengths):
        expected = scaled_dot_product_attention(query[b], key[b, :, :keys], value[b, :, :keys], return_lse=True)
        for x, one in zip(got, expected, strict=True):
            assert_same_bits(x[b], one)
