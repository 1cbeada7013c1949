"""scaled_dot_product_attention_backward: each property for every kernel.

The oracle is the reference, in the type `wide` and from its own out and lse; what bounds an error is the same gradient
as one writes it in NumPy, `plain_gradients`.
"""

import functools
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest
from helpers import LAYOUTS, NUMPY, assert_same_bits, wide
from test_attention import LAID, MASKED, MIXED, OPINFO, OPTIONS, inputs

import fastsoftmax
from fastsoftmax import (
    _dispatch,
    _threads,
    reference,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

INF, NAN = np.inf, np.nan
NAMES = ("dquery", "dkey", "dvalue", "dscale", "dmask", "dbias", "dsinks", "dslopes")
INPUTS = {"grad_scale": "scale", "grad_mask": "attn_mask", "grad_bias": "bias", "grad_sinks": "sinks",
          "grad_slopes": "alibi_slopes"}


SUMS = ("dscale", "dsinks", "dslopes")     # of all scores of a head, which cancel


def everything(kwargs):
    """The options with all gradients that they have."""
    return {**kwargs, **{f: True for f, name in INPUTS.items()
                         if kwargs.get(name) is not None and np.asarray(kwargs[name]).dtype != bool}}


def asked(kwargs):
    """The names of the gradients that a call with these options returns."""
    return [*NAMES[:3], *(name for name, flag in zip(NAMES[3:], INPUTS, strict=True) if kwargs.get(flag))]


def forward(arrays, kwargs):
    """(out, lse), out in the dtype of the arithmetic; the options may be those of the backward call."""
    options = {k: v for k, v in kwargs.items() if not k.startswith("grad_")}
    out, lse = scaled_dot_product_attention(*arrays, return_lse=True, **options)
    if out.dtype != lse.dtype:
        out = np.empty(out.shape, lse.dtype)
        scaled_dot_product_attention(*arrays, out=out, **options)
    return out, lse


def gradients(grad_out, arrays, kwargs):
    return scaled_dot_product_attention_backward(grad_out, *arrays, *forward(arrays, kwargs), **kwargs)


def upstream(shape, dtype, seed=0):
    return np.random.default_rng([5, seed]).normal(size=shape).astype(dtype)


def out_shape(arrays):
    query, _, value = arrays
    return (*query.shape[:-1], value.shape[-1])


def exact_gradients(grad_out, arrays, kwargs):
    kind = np.longdouble if arrays[0].dtype == np.longdouble else wide(arrays[0].dtype)
    arrays = [x.astype(kind) for x in arrays]
    kwargs = {k: v.astype(kind) if k in ("attn_mask", "bias", "grad_lse") and v.dtype != bool else v
              for k, v in kwargs.items()}
    options = {k: v for k, v in kwargs.items() if not k.startswith("grad_")}
    out, lse = reference.scaled_dot_product_attention(*arrays, return_lse=True, **options)
    return reference.scaled_dot_product_attention_backward(grad_out.astype(kind), *arrays, out, lse, **kwargs)


def assert_close(got, exact, arithmetic, kwargs, many=100):
    """Within so many units of rounding of the gradient's largest number, and of 1, beside the rounding to its dtype."""
    names = asked(kwargs)
    assert len(got) == len(exact) == len(names)
    for name, one, true in zip(names, got, exact, strict=True):
        assert type(one) is np.ndarray
        assert one.shape == np.shape(true), name
        eps = np.finfo(arithmetic).eps
        true = np.asarray(true)
        rounding = max(eps, {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}.get(one.dtype.name, 0))
        largest = max(1, abs(true).max(initial=0)) * (10 if name in SUMS else 1)
        error = abs(one.astype(true.dtype) - true)
        slack = many * eps * largest + float(ml_dtypes.finfo(one.dtype).smallest_subnormal)
        assert np.all(error <= rounding * abs(true) + slack), (name, float(error.max() / eps / largest))


def arithmetic_of(tag):
    return np.float64 if tag == "f64" else np.float32


# ---------------------------------------------------------------- options

GRADIENT_OPTIONS = {
    **OPTIONS,
    "grad_lse": lambda rng, b, h, n, s: {"grad_lse": rng.normal(size=(b, h, n))},
    "softcap and scale": lambda rng, b, h, n, s: {"softcap": 0.7, "scale": rng.uniform(0.1, 1, h)},
    "bias of float64, broadcast": lambda rng, b, h, n, s: {"bias": rng.normal(size=(h, n, 1))},
    "mask of one number": lambda rng, b, h, n, s: {"attn_mask": np.array(0.5)},
    "sinks and grad_lse": lambda rng, b, h, n, s: {
        "sinks": rng.normal(size=h), "grad_lse": rng.normal(size=(b, h, n))},
}


def with_dtypes(tag, kwargs):
    if "grad_lse" in kwargs:
        kwargs["grad_lse"] = kwargs["grad_lse"].astype(arithmetic_of(tag))
    return everything(kwargs)


@functools.cache
def one_option(tag, option):
    arrays = inputs(tag)
    kwargs = {"enable_gqa": True, **GRADIENT_OPTIONS[option](np.random.default_rng(1), 2, 4, 7, 9)}
    grad_out, kwargs = upstream(out_shape(arrays), NUMPY[tag]), with_dtypes(tag, kwargs)
    return grad_out, arrays, kwargs, exact_gradients(grad_out, arrays, kwargs)


@pytest.mark.parametrize("option", GRADIENT_OPTIONS)
def test_each_option(kernel, option):
    grad_out, arrays, kwargs, exact = one_option(kernel.tag, option)
    out, lse = forward(arrays, kwargs)

    def backward(**options):
        return scaled_dot_product_attention_backward(grad_out, *arrays, out, lse, **options)

    got = backward(**kwargs)
    assert_close(got, exact, arithmetic_of(kernel.tag), kwargs)
    statistics = lse.dtype
    of_biases = [getattr(kwargs.get(name), "dtype", None) for name in ("attn_mask", "bias")]
    dtypes = dict(zip(NAMES, [*[kernel.dtype] * 3, statistics, *of_biases, statistics, statistics], strict=True))
    assert [x.dtype for x in got] == [dtypes[name] for name in asked(kwargs)]
    # Each is heeded: without it, for the same out and lse, a gradient is another. An offset alone moves windows, slopes
    # and the diagonal; sinks have no other effect than on lse, and on their own gradient; nor has a mask of queries.
    said_elsewhere = {"is_causal"} if "causal_offset" in kwargs else {"attn_mask"} if "of queries" in option else set()
    for name in kwargs.keys() - {"enable_gqa", *INPUTS} - said_elsewhere:
        if name == "sinks":
            without = backward(**{**kwargs, "sinks": np.zeros(4)})[-1:]
            same = got[-1:]
        else:
            flag = {v: k for k, v in INPUTS.items()}.get(name)
            without = backward(**{k: v for k, v in kwargs.items() if k not in (name, flag)})[:3]
            same = got[:3]
        moved = [abs(a.astype(float) - b.astype(float)).max() for a, b in zip(without, same, strict=True)]
        assert max(moved) > 0.01, name


@functools.cache
def some_options(tag, seed):
    """A shape and options, drawn at random."""
    rng = np.random.default_rng([8, seed])
    group, key_heads = int(rng.choice([1, 2, 3, 7])), int(rng.choice([1, 2]))
    batch, heads = int(rng.integers(1, 4)), group * key_heads
    queries, keys = (int(x) for x in np.exp(rng.uniform(0, np.log([60, 180]))).round())
    width, value_width = (int(x) for x in np.exp(rng.uniform(0, np.log(60), 2)).round())
    arrays = inputs(tag, batch, heads, key_heads, queries, keys, width, value_width, seed)
    kwargs = {"enable_gqa": True}
    for name in rng.permutation(list(GRADIENT_OPTIONS))[: rng.integers(2, 8)]:
        kwargs.update(GRADIENT_OPTIONS[name](rng, batch, heads, queries, keys))
    grad_out, kwargs = upstream(out_shape(arrays), arithmetic_of(tag), seed), with_dtypes(tag, kwargs)
    return grad_out, arrays, kwargs, exact_gradients(grad_out, arrays, kwargs)


@pytest.mark.parametrize("seed", range(24))
def test_options_in_any_combination(kernel, seed):
    grad_out, arrays, kwargs, exact = some_options(kernel.tag, seed)
    got = gradients(grad_out, arrays, kwargs)
    assert_close(got, exact, arithmetic_of(kernel.tag), kwargs, many=300)
    # The others do not depend on which are asked for.
    few = gradients(grad_out, arrays, {k: v for k, v in kwargs.items() if k not in INPUTS})
    for one, other in zip(few, got, strict=False):
        assert_same_bits(one, other)
    for flag in INPUTS.keys() & kwargs.keys():
        alone = gradients(grad_out, arrays, {k: v for k, v in kwargs.items() if k == flag or k not in INPUTS})
        assert len(alone) == 4
        assert_same_bits(alone[3], got[asked(kwargs).index(NAMES[3 + list(INPUTS).index(flag)])])


@pytest.mark.parametrize("option", GRADIENT_OPTIONS)
def test_finite_differences(option):
    """Of the forward function, along one direction in each input."""
    rng = np.random.default_rng(3)
    arrays = inputs("f64", seed=4)
    kwargs = {"enable_gqa": True, "scale": rng.uniform(0.2, 0.5, 4), "grad_lse": rng.normal(size=(2, 4, 7)),
              **GRADIENT_OPTIONS[option](rng, 2, 4, 7, 9)}
    kwargs["scale"] = np.broadcast_to(np.asarray(kwargs["scale"], float), 4)
    kwargs = everything({k: v.astype(float) if k in ("attn_mask", "bias") and v.dtype != bool else v
                         for k, v in kwargs.items()})
    grad_out = upstream(out_shape(arrays), float)
    found = dict(zip(asked(kwargs), gradients(grad_out, arrays, kwargs), strict=True))

    def loss(name, x):
        at = dict(zip(("query", "key", "value"), arrays, strict=True))
        at.update(kwargs)
        at[name] = x
        out, lse = forward([at[name] for name in ("query", "key", "value")], {
            k: v for k, v in at.items() if k not in ("query", "key", "value")})
        seen = lse != -INF
        return (out * grad_out).sum() + (lse * kwargs["grad_lse"])[seen].sum()

    for result, name in zip(NAMES, ("query", "key", "value", *INPUTS.values()), strict=True):
        if result not in found:
            continue
        x = np.asarray(kwargs.get(name, dict(zip(("query", "key", "value"), arrays, strict=True)).get(name)), float)
        direction = rng.normal(size=x.shape)
        step = 1e-5
        difference = (loss(name, x + step * direction) - loss(name, x - step * direction)) / (2 * step)
        slope = (found[result] * np.where(np.isfinite(x), direction, 0)).sum()
        assert abs(difference - slope) <= 1e-7 * max(1, abs(slope)), result


# ---------------------------------------------------------------- shapes

WIDTHS = (*range(1, 20), 31, 32, 33, 47, 48, 65, 129)
SHAPES = {  # heads, key heads, queries, keys, width, width of values
    "queries": [(2, 1, n, 11, 5, 3) for n in (*WIDTHS, 300)],
    "keys": [(2, 1, 5, n, 5, 3) for n in (*WIDTHS, 127, 128, 257)],
    "width": [(2, 2, 3, 7, n, 4) for n in WIDTHS],
    "width of values": [(2, 2, 3, 7, 4, n) for n in WIDTHS],
    "all": [(1, 1, n, n, n, n) for n in WIDTHS],
    "groups": [(g * h, h, n, 33, 17, 9) for g in (1, 2, 3, 7, 16) for h in (1, 3) for n in (1, 9)],
    "splits of keys": [(2, 1, 3, n, 9, 8) for n in (1023, 1024, 1700)],
}


@functools.cache
def of_shape(tag, shape, causal):
    arrays = inputs(tag, 1, *shape)
    kwargs = {"enable_gqa": True, "is_causal": causal, "causal_offset": max(0, shape[3] - shape[2])}
    if causal:
        kwargs.update(alibi_slopes=np.full(shape[0], 0.01), scale=0.3)
    grad_out, kwargs = upstream(out_shape(arrays), NUMPY[tag]), everything(kwargs)
    return grad_out, arrays, kwargs, exact_gradients(grad_out, arrays, kwargs)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("group", SHAPES)
def test_every_shape(kernel, group, causal):
    for shape in SHAPES[group]:
        grad_out, arrays, kwargs, exact = of_shape(kernel.tag, shape, causal)
        assert_close(gradients(grad_out, arrays, kwargs), exact, arithmetic_of(kernel.tag), kwargs, many=300)


def test_nothing_of_something(kernel):
    """Empty dimensions: gradients of no elements, and zeros."""
    for empty in range(7):
        sizes = [2, 4, 2, 3, 5, 6, 7]
        sizes[empty] = 0
        if empty == 2:
            sizes[1] = 0
        if sizes[1] == 0:
            sizes[1:3] = 0, 0
        arrays = inputs(kernel.tag, *sizes)
        rng = np.random.default_rng(0)
        shape = (*arrays[0].shape[:-1], arrays[1].shape[-2])
        kwargs = everything({
            "enable_gqa": True, "scale": 0.5, "bias": rng.normal(size=shape[1:]), "sinks": rng.normal(size=sizes[1]),
            "attn_mask": rng.normal(size=(shape[0], 1, 1, shape[3])), "alibi_slopes": rng.random(sizes[1]),
            "grad_lse": rng.normal(size=shape[:-1]).astype(arithmetic_of(kernel.tag))})
        grad_out = upstream(out_shape(arrays), kernel.dtype)
        exact = exact_gradients(grad_out, arrays, kwargs)
        assert_close(gradients(grad_out, arrays, kwargs), exact, arithmetic_of(kernel.tag), kwargs)


BROADCAST = {   # query, key, value
    "two dimensions": ((7, 5), (9, 5), (9, 6)),
    "keys of two": ((4, 7, 5), (9, 5), (9, 6)),
    "one key head": ((2, 4, 7, 5), (2, 1, 9, 5), (2, 1, 9, 6)),
    "a value head for each key head": ((2, 4, 7, 5), (2, 1, 9, 5), (2, 4, 9, 6)),
    "one query head": ((2, 1, 7, 5), (2, 3, 9, 5), (2, 3, 9, 6)),
    "keys of all entries": ((3, 4, 7, 5), (1, 2, 9, 5), (2, 9, 6)),
    "queries of all entries": ((4, 7, 5), (3, 2, 9, 5), (3, 1, 9, 6)),
    "three dimensions of batch": ((2, 1, 3, 4, 7, 5), (4, 1, 2, 9, 5), (2, 1, 3, 2, 9, 6)),
    "no dimension of batch": ((4, 7, 5), (2, 9, 5), (2, 9, 6)),
}


@pytest.mark.parametrize("name", BROADCAST)
def test_gradients_of_what_broadcasts_are_summed(kernel, name):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(kernel.dtype) for shape in BROADCAST[name]]
    out = scaled_dot_product_attention(*arrays, enable_gqa=True)
    batch, heads = out.shape[:-3], (out.shape[-3] if out.ndim > 2 else 1)
    for bias, mask, slopes in (
            ((9,), (7, 1), (heads,)), ((), (1, 9), (heads,)),
            ((*batch, heads, 7, 9)[-out.ndim:], (7, 9), (*batch, heads)),
            ((1,) * out.ndim, (*batch, heads, 1, 9)[-out.ndim:], (*(1,) * len(batch), heads))):
        kwargs = everything({
            "enable_gqa": True, "bias": np.asarray(rng.normal(size=bias)),
            "attn_mask": np.asarray(rng.normal(size=mask)), "alibi_slopes": rng.random(slopes), "scale": 0.4,
            "sinks": rng.normal(size=heads)})
        grad_out = upstream(out.shape, kernel.dtype)
        got = gradients(grad_out, arrays, kwargs)
        assert_close(got, exact_gradients(grad_out, arrays, kwargs), arithmetic_of(kernel.tag), kwargs)
        assert [x.shape for x in got] == [*(x.shape for x in arrays), (heads,), mask, bias, (heads,), slopes]


def test_gradients_for_each_head_whatever_broadcasts_to_it():
    arrays = inputs("f64")
    grad_out = upstream(out_shape(arrays), float)
    for scale, slopes, shape in ((0.5, 0.1, (4,)), ([0.5], [0.1], (4,)), ([0.5], [[0.1], [0.2]], (2, 4))):
        kwargs = {"enable_gqa": True, "scale": scale, "alibi_slopes": slopes, "sinks": 0.3}
        *_, dscale, dsinks, dslopes = gradients(grad_out, arrays, everything(kwargs))
        whole = {"enable_gqa": True, "scale": np.full(4, 0.5), "alibi_slopes": np.broadcast_to(slopes, (2, 4)),
                 "sinks": np.full(4, 0.3)}
        *_, each, each_sink, each_slope = gradients(grad_out, arrays, everything(whole))
        np.testing.assert_array_equal(dscale, each)
        np.testing.assert_array_equal(dsinks, each_sink)
        np.testing.assert_allclose(dslopes, each_slope if len(shape) == 2 else each_slope.sum(0), 1e-14)
        assert dslopes.shape == shape


@pytest.mark.parametrize("scores", [(2, 4, 25, 37), (37,), (25, 37), (2, 1, 1, 37)])
def test_a_bias_may_end_where_key_lengths_do(kernel, scores):
    arrays = inputs(kernel.tag, 2, 4, 2, 25, 90, 19, 21)
    rng = np.random.default_rng(0)
    lengths = np.array([37, 20])
    kwargs = {"enable_gqa": True, "bias": rng.normal(size=scores), "attn_mask": rng.normal(size=scores),
              "key_lengths": lengths}
    grad_out = upstream(out_shape(arrays), kernel.dtype)
    got = gradients(grad_out, arrays, everything(kwargs))
    assert_close(got, exact_gradients(grad_out, arrays, everything(kwargs)), arithmetic_of(kernel.tag),
                 everything(kwargs))
    if len(scores) == 4:
        assert not got[3][1, ..., 20:].any()
    assert not got[1][:, :, 37:].any()


# ---------------------------------------------------------------- special values


def lay_traps(arrays, hidden_from, special):
    """Keys and values hold special numbers from this key on."""
    query, key, value = (x.copy() for x in arrays)
    key[:, :, hidden_from:], value[:, :, hidden_from:] = special, special
    return query, key, value


@pytest.mark.parametrize("special", [NAN, INF])
@pytest.mark.parametrize("shape", [(2, 4, 2, 7, 40, 5, 6), (1, 4, 2, 50, 300, 33, 17)], ids=["small", "large"])
def test_hidden_keys_are_not_read_and_get_zeros(kernel, shape, special):
    batch, heads, _, queries, keys, *_ = shape
    arrays = inputs(kernel.tag, *shape)
    visible = 25
    keep = np.arange(keys) < visible
    slopes = {"alibi_slopes": np.full(heads, 0.1), "scale": 0.3}
    for kwargs in ({"attn_mask": keep}, {"attn_mask": np.where(keep, 0.5, -INF)}, {"bias": np.where(keep, 0.5, -INF)},
                   {"key_lengths": visible}, {"window": (None, 0), "causal_offset": visible - queries},
                   {"is_causal": True, "causal_offset": visible - queries, "softcap": 2.0}):
        kwargs = everything({"enable_gqa": True, **kwargs, **slopes})
        grad_out = upstream(out_shape(arrays), kernel.dtype)
        expected = gradients(grad_out, arrays, kwargs)
        got = gradients(grad_out, lay_traps(arrays, visible, special), kwargs)
        for one, clean in zip(got, expected, strict=True):
            assert_same_bits(one, clean)
        assert not got[1][:, :, visible:].any()
        assert not got[2][:, :, visible:].any()
        for extra in got[4:-1]:
            assert not extra[..., visible:].any()


def test_a_query_that_sees_nothing_gives_zeros(kernel):
    arrays = inputs(kernel.tag, 2, 4, 2, 7, 9, 5, 6)
    clean_out = upstream(out_shape(arrays), kernel.dtype)
    arrays[0][:, :, 2], clean_out[:, :, 2] = 0, 0
    grad_lse = upstream((2, 4, 7), arithmetic_of(kernel.tag), 1)
    nothing = np.ones((7, 9), bool)
    nothing[2] = False
    for kwargs in ({"attn_mask": nothing}, {"attn_mask": np.where(nothing, 0.5, -INF)}, {"bias": np.where(
            nothing, 0.5, -INF), "scale": 0.5}, {"attn_mask": nothing, "sinks": np.array([0, 1.5, -INF, -2])}):
        for options in (kwargs, {**kwargs, "grad_lse": grad_lse}):
            options = everything({"enable_gqa": True, "alibi_slopes": np.full(4, 0.1), **options})
            expected = gradients(clean_out, arrays, options)
            for special in (NAN, INF):
                query, grad_out = arrays[0].copy(), clean_out.copy()
                query[:, :, 2] = grad_out[:, :, 2] = special
                got = gradients(grad_out, (query, *arrays[1:]), options)
                assert not got[0][:, :, 2].any()
                for one, clean in zip(got, expected, strict=True):
                    assert_same_bits(one, clean)
    # The sink of a row that sees nothing else has the whole gradient of its lse.
    *_, dsinks = gradients(clean_out, arrays, {"enable_gqa": True, "attn_mask": np.zeros(9, bool), "sinks": np.ones(4),
                                               "grad_lse": grad_lse, "grad_sinks": True})
    np.testing.assert_allclose(dsinks, grad_lse.sum((0, 2)), 1e-5)


@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_visible_numbers_that_are_not_finite_reach_who_sees_them(kernel, special):
    """And no others: not the rows and keys of the same block."""
    arrays = inputs(kernel.tag, 1, 2, 1, 40, 50, 19, 17)
    grad_out = upstream(out_shape(arrays), kernel.dtype)
    kwargs = everything({"is_causal": True, "scale": 0.3, "enable_gqa": True})
    clean = gradients(grad_out, arrays, kwargs)
    bad = grad_out.copy()
    bad[0, 1, 20, 3] = special
    dquery, dkey, dvalue, dscale = gradients(bad, arrays, kwargs)
    assert not np.isfinite(dquery[0, 1, 20]).any()
    assert not np.isfinite(dkey[0, 0, :21]).any()
    assert not np.isfinite(dvalue[0, 0, :21, 3]).any()
    assert not np.isfinite(dscale[1])
    others = np.ones(dquery.shape[:3], bool)
    others[0, 1, 20] = False
    assert_same_bits(dquery[others], clean[0][others])
    assert_same_bits(dkey[0, 0, 21:], clean[1][0, 0, 21:])
    assert_same_bits(dvalue[0, 0, 21:], clean[2][0, 0, 21:])
    assert_same_bits(np.delete(dvalue[0, 0], 3, -1), np.delete(clean[2][0, 0], 3, -1))
    for which in range(3):      # in a query, key or value: all who see it
        changed = [x.copy() for x in arrays]
        changed[which][0, 0, 20, 3] = special
        dquery, dkey, dvalue, _ = gradients(grad_out, changed, kwargs)
        rows = [[20], range(20, 40), range(20, 40)][which]
        if not (which == 1 and special != NAN):         # a score of -inf hides the key
            assert np.isnan(dquery[0, 0, rows].astype(float)).any(-1).all()
        others = np.setdiff1d(range(40), rows)
        assert_same_bits(dquery[0, 0, others], clean[0][0, 0, others])
        if which == 0:
            assert_same_bits(dkey[0, 0, 21:], clean[1][0, 0, 21:])


def test_no_data_warns_or_raises(kernel):
    arrays = inputs(kernel.tag, 2, 4, 2, 9, 70, 8, 5)
    rng = np.random.default_rng(0)
    largest = float(ml_dtypes.finfo(kernel.dtype).max)
    for special in (NAN, INF, -INF, largest, 5e-324):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            spoiled = [np.where(rng.random(x.shape) < 0.1, special, x.astype(float)).astype(kernel.dtype)
                       for x in (*arrays, upstream((2, 4, 9, 5), kernel.dtype))]
        kwargs = everything({
            "enable_gqa": True, "bias": np.where(rng.random(70) < 0.2, special, 0.5), "scale": 1e5, "softcap": 1e20,
            "attn_mask": np.float16(0.5), "alibi_slopes": np.full(4, 1e30), "sinks": np.full(4, special)})
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
            gradients(spoiled[3], spoiled[:3], kwargs)


# ---------------------------------------------------------------- memory layout, batches, threads

EVERY_OPTION = {"enable_gqa": True, "is_causal": True, "causal_offset": 2, "softcap": 3.0}


def with_arrays(shape, dtype, seed=0):
    """EVERY_OPTION with arrays."""
    batch, heads, _, queries, keys, *_ = shape
    rng = np.random.default_rng([9, seed])
    return everything({
        **EVERY_OPTION, "bias": rng.normal(size=(1, heads, queries, keys)).astype(dtype), "scale": rng.random(heads),
        "attn_mask": rng.normal(size=(batch, 1, queries, keys)), "alibi_slopes": rng.random((batch, heads)),
        "sinks": rng.normal(size=heads),
        "grad_lse": rng.normal(size=(batch, heads, queries)).astype(np.float64 if dtype == np.float64 else np.float32)})


@pytest.mark.parametrize("layout", LAID)
def test_layout_does_not_change_bits(kernel, layout):
    lay = LAID[layout]
    for shape in ((2, 4, 2, 7, 9, 5, 6), (2, 2, 2, 40, 70, 33, 17), (2, 1, 1, 3, 4, 1, 1)):
        arrays = inputs(kernel.tag, *shape)
        grad_out = upstream(out_shape(arrays), kernel.dtype)
        for kwargs in ({"enable_gqa": True}, with_arrays(shape, kernel.dtype)):
            out, lse = forward(arrays, kwargs)
            given = [grad_out, *arrays, out]
            expected = scaled_dot_product_attention_backward(*given, lse, **kwargs)
            laid = [lay(x) for x in given]
            lse, options = _lines(lse, layout), dict(kwargs)
            for name in ("bias", "attn_mask"):
                if name in kwargs:
                    options[name] = lay(kwargs[name])
            if "grad_lse" in kwargs:
                options["grad_lse"] = _lines(kwargs["grad_lse"], layout)
            got = scaled_dot_product_attention_backward(*laid, lse, **options)
            for one, x in zip(laid, given, strict=True):
                assert_same_bits(one.astype(x.dtype), x)
            for one, same in zip(got, expected, strict=True):
                assert_same_bits(one, same)
                assert one.flags.c_contiguous
                assert one.flags.writeable


def _lines(x, layout):
    """Three dimensions laid out as LAYOUTS do with two, where they have such a layout."""
    lay = LAYOUTS.get({"unaligned": "unaligned by a byte", "packed": "every second"}.get(layout, layout), np.array)
    return lay(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def test_an_entry_alone_and_in_a_batch(kernel):
    for shape in ((3, 4, 2, 33, 70, 16, 16), (2, 2, 1, 5, 1100, 24, 9), (20, 2, 1, 3, 1100, 8, 8)):
        arrays = inputs(kernel.tag, *shape)
        grad_out = upstream(out_shape(arrays), kernel.dtype)
        for kwargs in ({}, {"is_causal": True}, {"window": (9, 3)}):
            kwargs = {"enable_gqa": True, **kwargs}
            got = gradients(grad_out, arrays, kwargs)
            for b in range(shape[0]):
                alone = gradients(grad_out[b], [x[b] for x in arrays], kwargs)
                for one, whole in zip(alone, got, strict=True):
                    assert_same_bits(one, whole[b])


def test_dimensions_of_the_batch_do_not_change_bits(kernel):
    shape = (6, 4, 2, 7, 1100, 5, 6)
    arrays = inputs(kernel.tag, *shape)
    kwargs = with_arrays(shape, kernel.dtype)
    grad_out = upstream(out_shape(arrays), kernel.dtype)
    out, lse = forward(arrays, kwargs)
    expected = scaled_dot_product_attention_backward(grad_out, *arrays, out, lse, **kwargs)
    given = [x.reshape(2, 3, *x.shape[1:]) for x in (grad_out, *arrays, out, lse)]
    options = {k: v.reshape(2, 3, *v.shape[1:]) if k in ("attn_mask", "alibi_slopes", "grad_lse") else v
               for k, v in kwargs.items()}
    apart = [np.stack([x] * 2, 2)[:, :, 0] for x in given[1:4]]             # no one stride leads from entry to entry
    turned = [np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1) for x in given[1:4]]
    for views in (given[1:4], apart, turned):
        got = scaled_dot_product_attention_backward(given[0], *views, *given[4:], **options)
        for one, same in zip(got, expected, strict=True):
            if one.shape == same.shape:     # sums over the batch
                np.testing.assert_allclose(one.astype(float), same.astype(float), 1e-5, 1e-5)
            else:
                assert_same_bits(one.reshape(same.shape), same)


@pytest.mark.parametrize(
    "shape", [(2, 4, 2, 64, 128, 32, 32), (1, 8, 2, 1, 5000, 64, 64), (1, 1, 1, 200, 1100, 33, 65)])
def test_threads_do_not_change_bits(kernel, monkeypatch, shape):
    monkeypatch.setattr(_threads, "PARALLEL", 2)
    arrays = inputs(kernel.tag, *shape)
    grad_out = upstream(out_shape(arrays), kernel.dtype)
    keys = np.random.default_rng(0).normal(size=shape[4])
    for kwargs in ({"enable_gqa": True}, with_arrays(shape, kernel.dtype),
                   everything({"enable_gqa": True, "bias": keys, "attn_mask": np.zeros((shape[3], 1))})):
        given = (grad_out, *arrays, *forward(arrays, kwargs))
        results = []
        for threads in (1, 2, 5):
            with fastsoftmax.num_threads(threads):
                results.append(scaled_dot_product_attention_backward(*given, **kwargs))
        for other in results[1:]:
            for got, expected in zip(other, results[0], strict=True):
                assert_same_bits(got, expected)


def test_tasks_that_share_elements_of_a_bias_run_in_order(monkeypatch):
    """Those of batch entries, key heads and splits of the keys; others run at once."""
    seen = []
    kernels = _dispatch.kernels("f32")

    class Spy:
        attention_grad_splits = staticmethod(kernels.attention_grad_splits)
        attention = staticmethod(kernels.attention)

        @staticmethod
        def attention_backward(*args):
            *_, in_order, _, first_query, first_key = args
            assert first_query is first_key is None
            seen.append(in_order)
            return kernels.attention_backward(*args)

    monkeypatch.setattr(_dispatch, "kernels", lambda tag: Spy)
    for shape, bias, in_order in (
            ((2, 4, 2, 3, 5, 4, 4), (2, 4, 3, 5), False), ((2, 4, 2, 3, 5, 4, 4), (1, 4, 3, 5), True),
            ((2, 4, 2, 3, 5, 4, 4), (2, 1, 3, 5), True), ((2, 4, 1, 3, 5, 4, 4), (2, 1, 3, 5), False),
            ((2, 4, 2, 3, 5, 4, 4), (2, 4, 1, 5), False), ((2, 4, 2, 3, 5, 4, 4), (2, 4, 3, 1), False),
            ((2, 4, 2, 3, 1100, 4, 4), (2, 4, 3, 1), True), ((1, 2, 1, 3, 1100, 4, 4), (3, 1100), False)):
        arrays = inputs("f32", *shape)
        gradients(upstream(out_shape(arrays), np.float32), arrays, everything(
            {"enable_gqa": True, "bias": np.zeros(bias, np.float32)}))
        assert seen.pop() == in_order, (shape, bias)


MEMORY = """
import resource, sys
import numpy as np
from fastsoftmax import num_threads, scaled_dot_product_attention, scaled_dot_product_attention_backward
def held():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
rng = np.random.default_rng(0)
query, key, value, grad_out = rng.standard_normal((4, 1, 1, 8192, 64), np.float32)
bias = np.broadcast_to(rng.standard_normal(8192, np.float32), (1, 1, 8192, 8192))
everything = {"is_causal": True, "bias": bias[:, :, :1], "attn_mask": rng.standard_normal((8192, 1), np.float32),
              "alibi_slopes": [0.01], "key_lengths": 8000, "scale": 0.1, "sinks": 0.0}
wanted = dict.fromkeys(["grad_scale", "grad_bias", "grad_mask", "grad_sinks", "grad_slopes"], True)
def call(length, wanted, **options):
    q, g = query[:, :, :length], grad_out[:, :, :length]
    out, lse = scaled_dot_product_attention(q, key, value, return_lse=True, **options)
    scaled_dot_product_attention_backward(g, q, key, value, out, lse, **options, **wanted)
with num_threads(2):
    call(300, {}, is_causal=True)
    before = held()
    call(8192, {}, is_causal=True)
    call(8192, wanted, **everything)
    print(held() - before)
"""


def test_memory_does_not_grow_with_queries_times_keys():
    """At L = S = 8192 scores would take 256 MiB. The results take 6; 16 sums of dquery take 32."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 56 << 20


def test_a_bias_that_broadcasts_needs_no_memory_for_scores(monkeypatch):
    """(1, 1, S) beside 2**14 heads of 64 queries: its gradient would have 2**30 elements for all scores."""
    seen = []
    kernels = _dispatch.kernels("f32")

    class Spy:
        attention_grad_splits = staticmethod(kernels.attention_grad_splits)

        @staticmethod
        def attention_backward(*args):
            seen.extend(args[21])

    monkeypatch.setattr(_dispatch, "kernels", lambda tag: Spy)
    query = np.broadcast_to(np.float32(0), (1 << 14, 1, 64, 4))
    key = np.zeros((1, 1, 1024, 4), np.float32)
    lse = np.broadcast_to(np.float32(0), query.shape[:3])
    scaled_dot_product_attention_backward(
        query, query, key, key, query, lse, bias=np.zeros((1, 1, 1024)), grad_bias=True)
    assert seen[0].shape == (1 << 14, 1, 64, 1024)
    assert seen[0].strides == (0, 0, 0, 8)


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize("isa, tag", MIXED)
@pytest.mark.parametrize("shape", [(2, 4, 2, 70, 90, 40, 24), (1, 2, 1, 1, 1100, 19, 18), (1, 1, 1, 5, 9, 1, 1)])
def test_float32_queries_beside_keys_and_values_of_16_bits(isa, tag, shape):
    query, key, value = inputs(tag, *shape)
    arrays = query.astype(np.float32) * np.float32(1.001), key, value
    grad_out = upstream(out_shape(arrays), np.float32)
    with _dispatch.using(isa):
        for kwargs in ({"enable_gqa": True}, with_arrays(shape, np.float32)):
            got = gradients(grad_out, arrays, kwargs)
            assert [x.dtype for x in got[:3]] == [np.float32, key.dtype, key.dtype]
            assert_close(got, exact_gradients(grad_out, arrays, kwargs), np.float32, kwargs, many=300)


@pytest.mark.parametrize("isa, tag", MIXED)
def test_16_bit_results_are_rounded_once(isa, tag):
    """From float32 out and grad_out: as the same numbers give in float32. Sums over the batch too."""
    shape = (4, 4, 2, 20, 40, 16, 24)
    query, key, value = inputs(tag, *shape)
    key, value = key[:1], value[:1]
    grad_out = upstream((4, 4, 20, 24), np.float32)
    with _dispatch.using(isa):
        kwargs = {"enable_gqa": True}
        given = (grad_out, query, key, value, *forward((query, key, value), kwargs))
        assert given[4].dtype == np.float32
        got = scaled_dot_product_attention_backward(*given, **kwargs)
        in_float32 = [x.astype(np.float32) for x in (query, key, value)]
        single = scaled_dot_product_attention_backward(
            grad_out, *in_float32, *forward(in_float32, kwargs), **kwargs)
    for one, other in zip(got, single, strict=True):
        eps = 2.0**-11 if tag == "f16" else 2.0**-8
        error = abs(one.astype(np.float32) - other)
        assert np.all(error <= eps * abs(other) * 1.001 + 1e-5)
        assert np.mean(one == other.astype(one.dtype)) > 0.99
    with _dispatch.using(isa):      # out and grad_out of 16 bits
        rough = scaled_dot_product_attention_backward(
            grad_out.astype(query.dtype), query, key, value, given[4].astype(query.dtype), given[5], **kwargs)
    for one, other in zip(rough, single, strict=True):
        assert abs(one.astype(np.float32) - other).max() <= 4 * eps * abs(other).max()


def test_long_double_goes_through_the_reference():
    arrays = [x.astype(np.longdouble) for x in inputs("f64")]
    kwargs = everything({
        "enable_gqa": True, "is_causal": True, "scale": [0.5, 1, 0.7, 1], "bias": np.ones(9, np.float32),
        "alibi_slopes": np.ones((2, 4)), "sinks": np.ones(4)})
    grad_out = upstream(out_shape(arrays), np.longdouble)
    got = gradients(grad_out, arrays, kwargs)
    assert_close(got, exact_gradients(grad_out, arrays, kwargs), np.longdouble, kwargs, many=500)
    assert [x.dtype for x in got] == [*[np.longdouble] * 4, np.float32, *[np.longdouble] * 2]


def test_extreme_scales_and_softcaps(kernel):
    """The forward function computes them by the reference; so does this one, from the lse before it was rounded."""
    arrays = inputs(kernel.tag, 2, 4, 2, 5, 9, 4, 3)
    rng = np.random.default_rng(0)
    huge = 1e35 if kernel.tag != "f64" else 1e250
    for kwargs in ({"scale": [huge, 1, 0.5, -huge]}, {"softcap": huge}, {"softcap": 1e-35},
                   {"scale": huge, "softcap": 0.5, "bias": rng.normal(size=(4, 5, 1)), "key_lengths": [7, 9],
                    "attn_mask": rng.normal(size=(2, 1, 1, 9))}):
        kwargs = everything({"enable_gqa": True, **kwargs})
        kwargs.pop("grad_scale", None)
        grad_out = upstream(out_shape(arrays), kernel.dtype)
        got = gradients(grad_out, arrays, kwargs)
        assert all(np.isfinite(x.astype(float)).all() for x in got)
        assert_close(got, exact_gradients(grad_out, arrays, kwargs), arithmetic_of(kernel.tag), kwargs)


def test_lists_and_subclasses_give_plain_results():
    class Mine(np.ndarray):
        pass

    arrays = inputs("f64")
    grad_out = upstream(out_shape(arrays), float)
    kwargs = everything({"enable_gqa": True, "bias": np.ones(9)})
    given = (grad_out, *arrays, *forward(arrays, kwargs))
    expected = scaled_dot_product_attention_backward(*given, **kwargs)
    for change in (lambda x: x.view(Mine), lambda x: x.tolist()):
        got = scaled_dot_product_attention_backward(*map(change, given), **{**kwargs, "bias": change(kwargs["bias"])})
        for one, same in zip(got, expected, strict=True):
            assert type(one) is np.ndarray
            assert_same_bits(one, same)


@pytest.mark.parametrize(
    "sample, causal", [(s, causal) for s in OPINFO for causal in (False, True) if not (causal and s in MASKED)])
def test_agrees_with_torch(kernel, sample, causal):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: not compared with it")
    real = np.float64 if kernel.tag == "f64" else np.float32    # of 16 bits PyTorch gets the same numbers in float32
    *shapes, kwargs = OPINFO[sample]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(kernel.dtype) for shape in shapes]
    tensors = [torch.tensor(x.astype(real), requires_grad=True) for x in arrays]
    kwargs = {**kwargs, "is_causal": causal}
    theirs = dict(kwargs)
    if "attn_mask" in kwargs:
        shape, kind = kwargs["attn_mask"]
        mask = rng.random(shape) < 0.7 if kind is bool else rng.normal(size=shape).astype(kernel.dtype)
        if kind is bool and shape[-1] > 1:
            mask[..., 0] = True     # PyTorch's results for a row of False differ among its ways
        theirs["attn_mask"] = torch.tensor(mask if kind is bool else mask.astype(real), requires_grad=kind is float)
        kwargs.update(attn_mask=mask, grad_mask=kind is float)
    result = torch.nn.functional.scaled_dot_product_attention(*tensors, **theirs)
    grad_out = upstream(tuple(result.shape), kernel.dtype)
    result.backward(torch.tensor(grad_out.astype(real)))
    expected = [x.grad for x in (*tensors, *([theirs["attn_mask"]] if kwargs.get("grad_mask") else []))]
    tolerance = (4 if kernel.dtype.itemsize == 2 else 50) * kernel.eps
    for one, other in zip(gradients(grad_out, arrays, kwargs), expected, strict=True):
        np.testing.assert_allclose(one.astype(real), other.numpy(), atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------- accuracy


def plain_gradients(grad_out, query, key, value, *, bias=None, scale=None, is_causal=False, causal_offset=0,
                    softcap=None, alibi_slopes=None, sinks=None):
    """{name: gradient} as one writes it in NumPy, in the dtype of the arguments; grouped heads."""
    real = query.dtype.type
    group = query.shape[1] // key.shape[1]
    k, v = (np.repeat(x, group, 1) for x in (key, value))
    queries, keys = query.shape[2], key.shape[2]
    factor = np.asarray(1 / np.sqrt(real(query.shape[3])) if scale is None else scale).astype(real)[..., None, None]
    product = query @ k.swapaxes(-1, -2)
    capped = product * factor if softcap is None else real(softcap) * np.tanh(product * factor / real(softcap))
    behind = np.arange(queries)[:, None] + causal_offset - np.arange(keys)
    distance = abs(behind).astype(real)
    scores = capped if bias is None else capped + bias.astype(real)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.astype(real)[:, None, None] * distance
    if is_causal:
        scores = np.where(behind >= 0, scores, real(-INF))
    sink = real(-INF) if sinks is None else sinks.astype(real)[:, None, None]
    peak = np.maximum(scores.max(-1, keepdims=True), sink)
    weights, last = np.exp(scores - peak), np.exp(sink - peak)
    total = weights.sum(-1, keepdims=True) + last
    weights, last = weights / total, last / total
    dweights = grad_out @ v.swapaxes(-1, -2)
    delta = (weights * dweights).sum(-1, keepdims=True)
    dscores = weights * (dweights - delta)
    dscaled = dscores if softcap is None else dscores * (1 - (capped / real(softcap)) ** 2)

    def over_group(x):
        return x.reshape(*key.shape[:2], group, *x.shape[2:]).sum(2)

    found = {"dquery": (dscaled * factor) @ k, "dkey": over_group((dscaled * factor).swapaxes(-1, -2) @ query),
             "dvalue": over_group(weights.swapaxes(-1, -2) @ grad_out), "dscale": (dscaled * product).sum((0, 2, 3)),
             "dsinks": -(last * delta).sum((0, 2, 3)), "dslopes": -(dscores * distance).sum((0, 2, 3))}
    if bias is not None:
        total = dscores.sum(tuple(range(4 - bias.ndim)))
        found["dbias"] = total.sum(tuple(i for i in range(bias.ndim) if bias.shape[i] != total.shape[i]), keepdims=True)
    return found


DRAWS = {   # batch, heads, key heads, queries, keys, width, width of values
    "full": ((1, 4, 2, 64, 300, 32, 40), lambda rng, h, n, s: {}),
    "causal": ((1, 2, 2, 200, 200, 64, 64), lambda rng, h, n, s: {"is_causal": True}),
    "one query": ((1, 8, 2, 1, 1000, 128, 64), lambda rng, h, n, s: {}),
    "short and causal": ((1, 8, 8, 128, 128, 32, 32), lambda rng, h, n, s: {"is_causal": True}),
    "splits": ((1, 1, 1, 40, 1100, 64, 64), lambda rng, h, n, s: {}),
    "bias of keys": ((2, 4, 2, 100, 65, 64, 64), lambda rng, h, n, s: {"bias": rng.normal(size=s)}),
    "bias of queries": ((2, 4, 2, 33, 200, 64, 64), lambda rng, h, n, s: {"bias": rng.normal(size=(h, 1, s))}),
    "all": ((2, 4, 2, 50, 90, 48, 32), lambda rng, h, n, s: {
        "softcap": 5.0, "bias": rng.normal(size=(h, n, s)), "scale": rng.uniform(0.1, 0.5, h), "is_causal": True,
        "alibi_slopes": 0.2 * rng.random(h), "sinks": rng.normal(size=h), "causal_offset": 40}),
}


def errors_in_units(got, exact, dtype):
    """(largest, root mean square) in ULP of the largest number of the array."""
    error = abs(got.astype(exact.dtype) - exact) / np.spacing(abs(exact).max().astype(dtype)).astype(exact.dtype)
    return float(error.max()), float(np.sqrt((error**2).mean()))


@functools.cache
def drawn(tag, name, seed):
    """grad_out, arrays, options, exact gradients, and the errors of the plain ones."""
    shape, options = DRAWS[name]
    arithmetic = arithmetic_of(tag)
    arrays = [x.astype(arithmetic) for x in inputs(tag, *shape, seed=seed)]
    rng = np.random.default_rng([13, seed])
    kwargs = options(rng, shape[1], shape[3], shape[4])
    if "bias" in kwargs:
        kwargs["bias"] = kwargs["bias"].astype(arithmetic)
    grad_out = upstream(out_shape(arrays), arithmetic, seed)
    kind = wide(arithmetic)
    exact = plain_gradients(*(x.astype(kind) for x in (grad_out, *arrays)), **{
        k: v.astype(kind) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()})
    plain = plain_gradients(grad_out, *arrays, **kwargs)
    return grad_out, arrays, kwargs, exact, {k: errors_in_units(v, exact[k], arithmetic) for k, v in plain.items()}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("isa, tag", [(isa, tag) for tag, isa in _dispatch.modules(_dispatch.supported())
                                      if tag in ("f32", "f64")])
def test_error_is_that_of_plain_numpy(isa, tag, name):
    """In ULP of a gradient's largest number, over draws: the root mean square at most 1.1 times plain NumPy's and 0.1;
    of dquery, in which the rounding of lse is made good, 1.1 times.

    The largest error, and those of the few numbers of dscale, dsinks and dslopes, are those of the draw in which the
    most has cancelled, ours or NumPy's. They are held to FlashAttention's rule, twice the plain computation's.
    """
    ours, rough = {}, {}
    with _dispatch.using(isa):
        for seed in range(3 if tag == "f64" else 6):
            grad_out, arrays, kwargs, exact, plain = drawn(tag, name, seed)
            options = everything({"enable_gqa": True, **kwargs})
            for one, got in zip(asked(options), gradients(grad_out, arrays, options), strict=True):
                ours.setdefault(one, []).append(errors_in_units(got, exact[one].reshape(got.shape), got.dtype))
                rough.setdefault(one, []).append(plain[one])
    for one, errors in ours.items():
        largest, most = (np.max(x, 0)[0] for x in (errors, rough[one]))
        rms, plain_rms = (np.sqrt(np.mean(np.square(x), 0))[1] for x in (errors, rough[one]))
        assert largest <= 2 * most + (30 if one in SUMS else 2), one
        assert one in SUMS or rms <= (1.1 * plain_rms if one == "dquery" else 1.1 * plain_rms + 0.1), one


def test_lse_may_count_keys_of_other_calls(kernel):
    """As where each process has some of the keys: out and lse are those of all of them."""
    arrays = [x.astype(arithmetic_of(kernel.tag)) for x in inputs("f32", 1, 2, 2, 20, 90, 16, 16, seed=3)]
    query, key, value = arrays = [x.astype(kernel.dtype) for x in arrays]
    grad_out = upstream(out_shape(arrays), kernel.dtype)
    out, lse = forward(arrays, {})
    parts = [slice(0, 30), slice(30, 90)]
    found = [scaled_dot_product_attention_backward(grad_out, query, key[..., part, :], value[..., part, :], out, lse)
             for part in parts]
    exact = exact_gradients(grad_out, arrays, {})
    for one, part in zip(found, parts, strict=True):
        assert_close([exact[0].astype(one[0].dtype), *one[1:]], [exact[0], *(x[..., part, :] for x in exact[1:])],
                     arithmetic_of(kernel.tag), {})
    total = np.sum([one[0].astype(kernel.wide) for one in found], 0)
    assert np.all(abs(total - exact[0]) <= 4 * kernel.eps * abs(exact[0]).max() + 100 * kernel.eps)
