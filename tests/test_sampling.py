"""sample, filter_logits and penalize_: each property of docs/sampling.md, for every kernel.

The oracle is the reference in float64 or, for float64 logits, in long double. It decides otherwise where a mass and its
bound, or a uniform number and a cumulative probability, differ by less than the errors of both; where a test is about
such places, weights are powers of two, which are exact: with a temperature of log2(e), an integer x has weight 2**x.
"""

import fractions
import itertools
import math
import warnings

import ml_dtypes
import numpy as np
import pytest
from helpers import LAYOUTS, NUMPY, assert_same_bits

import fastsoftmax
from fastsoftmax import _dispatch, filter_logits, penalize_, reference, sample, softmax

INF, NAN = np.inf, np.nan
LOG2E = 1.4426950408889634
FILTERS = [
    {}, {"top_k": 7}, {"top_p": 0.7}, {"min_p": 0.02}, {"typical_p": 0.6}, {"top_k": 20, "top_p": 0.9},
    {"top_p": 0.95, "min_p": 0.01}, {"min_p": 0.01, "typical_p": 0.8},
    {"top_k": 100, "top_p": 0.98, "min_p": 0.001, "typical_p": 0.9, "temperature": 0.7}]
LENGTHS = (1, 2, 3, 7, 16, 17, 63, 64, 65, 200, 1000, 4096, 4097, 9000)


@pytest.fixture(autouse=True)
def _nothing_warns():
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def example(shape, dtype=np.float32, spread=3.0, seed=0, ties=False):
    x = spread * np.random.default_rng([seed, *np.atleast_1d(shape)]).normal(size=shape)
    return cast(np.round(x) if ties else x, dtype)


def cast(x, dtype):
    with np.errstate(all="ignore"):             # float16 underflows
        return x.astype(dtype)


def wider(x):
    return x.astype(np.longdouble if x.dtype == np.float64 else np.float64)


def kept(x, **options):
    return filter_logits(x, **options) > -INF


# ---------------------------------------------------------------- which token


@pytest.mark.parametrize("n", LENGTHS)
def test_tokens_and_kept_sets_are_those_of_the_definition(kernel, n):
    uniform = np.random.default_rng(n).random(3)
    for options, ties in itertools.product(FILTERS, (False, True)):
        x = example((3, n), kernel.dtype, ties=ties)
        tokens, logprob = sample(x, uniform=uniform, return_logprob=True, **options)
        expected, exact = reference.sample(wider(x), uniform=uniform, return_logprob=True, **options)
        np.testing.assert_array_equal(tokens, expected)
        assert tokens.dtype == np.int64
        assert logprob.dtype == (np.float64 if kernel.tag == "f64" else np.float32)
        tolerance = 1e-12 if kernel.tag == "f64" else 1e-6
        np.testing.assert_allclose(logprob, exact.astype(float), tolerance, tolerance)
        np.testing.assert_array_equal(kept(x, **options), reference.filter_logits(wider(x), **options) > -INF)


def test_a_token_is_drawn_from_its_own_interval_and_the_next_from_its_end(kernel):
    """At the boundaries exactly: the masses of powers of two, and their sums, are exact."""
    x = np.array([-1, 0, -3, -INF, -2, -3, -1], kernel.dtype)       # 1/2 1 1/8 0 1/4 1/8 1/2, their sum is 5/2
    weights = [fractions.Fraction(0 if v == -INF else 2 ** int(v)) for v in x.astype(float) + 3]
    ends = list(itertools.accumulate(weights))
    for i, end in enumerate(ends):
        share = end / ends[-1]
        at = float(share) if share == fractions.Fraction(float(share)) else None
        below = math.nextafter(float(share), 0) if at is not None or float(share) > share else float(share)
        above = at if at is not None else math.nextafter(below, 1)
        if weights[i]:
            assert sample(x, temperature=LOG2E, uniform=below) == i
        if i + 1 < len(x):
            following = next(j for j in range(i + 1, len(x)) if weights[j])
            assert sample(x, temperature=LOG2E, uniform=above) == following


def test_equal_logits_share_evenly_at_every_boundary(kernel):
    x = np.full(1024, 3, kernel.dtype)
    boundaries = np.arange(1024) / 1024
    for shift in (0.0, 2.0**-60):
        np.testing.assert_array_equal(sample(np.tile(x, (1024, 1)), uniform=boundaries + shift), np.arange(1024))
    np.testing.assert_array_equal(
        sample(np.tile(x, (1023, 1)), uniform=np.nextafter(boundaries[1:], 0)), np.arange(1023))


@pytest.mark.parametrize("n", [10, 5000, 70_001])
def test_the_extreme_numbers_draw_the_first_and_the_last_with_weight(kernel, n):
    x = example(n, kernel.dtype)
    x[[0, -1]] = -INF
    last = 1 - 2.0**-53
    assert [int(sample(x, uniform=u)) for u in (0.0, 5e-324, last)] == [1, 1, n - 2]
    x[:] = -1e4
    x[n // 2] = 0                               # all others have a weight of 0
    assert {int(sample(x, uniform=u)) for u in (0.0, 0.3, last)} == {n // 2}


def test_shares_are_probabilities(kernel):
    """The interval of each token, found by bisection, is its probability within 2**-40, or p * 2**-21 + 2**-50."""
    for options in ({}, {"temperature": 0.3}, {"top_p": 0.8}, {"typical_p": 0.05}):
        x = example(23, kernel.dtype, spread=2)
        exact = softmax(reference.filter_logits(wider(x), **options))
        low, high = np.zeros(24), np.ones(24)   # of the boundary at which tokens from i on start
        low[0] = high[0] = 0
        for _ in range(54):
            middle = (low + high) / 2
            drawn = sample(np.tile(x, (24, 1)), uniform=np.minimum(middle, 1 - 2.0**-53), **options)
            is_after = drawn >= np.arange(24)
            low, high = np.where(is_after, low, middle), np.where(is_after, middle, high)
        share = np.diff(np.where(np.arange(24) == 23, 1.0, high))
        bound = 2.0**-40 if kernel.tag == "f64" else exact * 2.0**-21 + 2.0**-50
        assert np.all(abs(share - exact) <= bound + 2.0**-52), options


def test_every_token_is_drawn_as_often_as_it_should_be(kernel):
    """Chi-square at a fixed seed: 99.9 % of seeds pass."""
    x = example(12, kernel.dtype, spread=1.5)
    for options, limit in (({"temperature": 0.8}, 31.3), ({"top_k": 6, "min_p": 0.05}, 20.5)):
        p = softmax(reference.filter_logits(wider(x), **options).astype(float))
        tokens = sample(np.tile(x, (50_000, 1)), rng=5, **options)
        count = np.bincount(tokens, minlength=12)
        assert np.all(count[p == 0] == 0)
        assert ((count - 50_000 * p)[p > 0] ** 2 / (50_000 * p[p > 0])).sum() < limit


@pytest.mark.parametrize("tag", ["f16", "bf16"])
def test_logits_of_16_bits_draw_what_the_same_numbers_draw_in_float32(tag):
    x, uniform = example((50, 300), NUMPY[tag], spread=8), np.random.default_rng(1).random(50)
    for options in FILTERS:
        drawn = sample(x, uniform=uniform, return_logprob=True, **options)
        for one, other in zip(
                drawn, sample(x.astype(np.float32), uniform=uniform, return_logprob=True, **options), strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("tag", ["f16", "bf16", "f32", "f64"])
def test_every_instruction_set_and_number_of_threads_draws_the_same(tag):
    x = np.stack([example(20_011, NUMPY[tag], spread) for spread in (0.1, 1, 3, 8)] * 3)
    uniform = np.random.default_rng(2).random(len(x))
    for options in FILTERS:
        found = []
        for isa in _dispatch.supported():
            with _dispatch.using(isa):
                for threads in (1, 2, 5):
                    with fastsoftmax.num_threads(threads):
                        found.append(sample(x, uniform=uniform, return_logprob=True, **options))
        for tokens, logprob in found[1:]:
            np.testing.assert_array_equal(tokens, found[0][0])
            assert_same_bits(logprob, found[0][1])


def test_a_row_draws_the_same_alone_and_in_a_batch(kernel):
    x, uniform = example((40, 77), kernel.dtype), np.random.default_rng(3).random(40)
    for options in FILTERS:
        tokens = sample(x, uniform=uniform, **options)
        assert [sample(row, uniform=u, **options) for row, u in zip(x, uniform, strict=True)] == tokens.tolist()


# ---------------------------------------------------------------- the generator


def test_a_generator_is_asked_for_one_number_a_row_in_C_order():
    x = example((3, 20, 4))
    for temperature in (1.0, 0.0, np.linspace(0, 1, 12).reshape(3, 4)):
        ours, same = np.random.default_rng(7), np.random.default_rng(7)
        tokens = sample(x, 1, temperature=temperature, rng=ours)
        np.testing.assert_array_equal(tokens, sample(x, 1, temperature=temperature, uniform=same.random((3, 4))))
        assert ours.bit_generator.state == same.bit_generator.state


def test_a_seed_is_that_of_default_rng_and_None_is_none():
    x = example((500, 50))
    np.testing.assert_array_equal(sample(x, rng=11), sample(x, rng=np.random.default_rng(11)))
    assert np.any(sample(x, rng=11) != sample(x, rng=12))
    assert np.any(sample(x) != sample(x))
    with pytest.raises(ValueError, match="rng and uniform are both given"):
        sample(x, rng=1, uniform=0.5)
    with pytest.raises(TypeError, match="rng must be a numpy.random.Generator, a seed or None"):
        sample(x, rng="seed")


# ---------------------------------------------------------------- the filters


def test_ties_are_kept_by_index(kernel):
    x = np.array([1, 2, 2, 0, 2, 2], kernel.dtype)
    assert kept(x, top_k=2).tolist() == [False, True, True, False, False, False]
    assert kept(x, top_k=5).tolist() == [True, True, True, False, True, True]
    equal = np.zeros(8, kernel.dtype)
    for p, count in ((0.0, 1), (0.1, 1), (0.125, 1), (0.1251, 2), (0.5, 4), (0.51, 5), (1 - 2.0**-53, 8), (1.0, 8)):
        for name in ("top_p", "typical_p"):
            assert kept(equal, **{name: p}).tolist() == [True] * count + [False] * (8 - count)
    assert kept(equal, min_p=1.0).all()


def test_the_crossing_token_is_kept(kernel):
    x = np.array([0, -1, -2, -3, -3], kernel.dtype)                # 1/2 1/4 1/8 1/16 1/16
    for p, count in ((0.5, 1), (0.5001, 2), (0.75, 2), (0.76, 3), (0.9375, 4), (0.94, 5)):
        assert kept(x, temperature=LOG2E, top_p=p).sum() == count


def test_min_p_keeps_what_is_at_its_bound(kernel):
    x = np.array([0, -1, -2, -3, -INF], kernel.dtype)
    for p, count in ((1.0, 1), (0.5, 2), (0.51, 1), (0.25, 3), (0.125, 4), (0.0, 4)):
        assert kept(x, temperature=LOG2E, min_p=p).sum() == count


def test_typical_p_may_hide_the_most_probable(kernel):
    """The entropy is 2.4 nats: a probability of 0.37, 1 nat, is farther from it than those of 0.027, 3.6 nats."""
    x = np.zeros(24, kernel.dtype)
    x[0] = 2.6
    assert kept(x, typical_p=0.4).tolist() == [False] + [True] * 15 + [False] * 8
    assert kept(x, typical_p=0.65).all()


@pytest.mark.parametrize("first, then", [("top_k", "top_p"), ("top_p", "min_p"), ("min_p", "typical_p"),
                                         ("top_k", "typical_p")])
def test_a_filter_works_on_what_those_before_it_left(kernel, first, then):
    values = {"top_k": 6, "top_p": 0.6, "min_p": 0.2, "typical_p": 0.6}
    x = example((20, 40), kernel.dtype)
    left = filter_logits(x, **{first: values[first]})
    both = kept(x, **{name: values[name] for name in (first, then)})
    np.testing.assert_array_equal(both, kept(left, **{then: values[then]}))


def test_what_filters_nothing_filters_nothing(kernel):
    x = example((3, 500), kernel.dtype)
    for nothing in ({"top_k": 500}, {"top_k": 10**30}, {"top_p": 1.0}, {"min_p": 0.0}, {"typical_p": 1}, {}):
        assert_same_bits(filter_logits(x, **nothing), x)


def test_one_token_always_stays(kernel):
    for n in (1, 2, 9000):
        x = example((4, n), kernel.dtype)
        for options in ({"top_p": 0.0}, {"typical_p": 0.0}, {"min_p": 1.0}, {"top_k": 1},
                        {"top_k": 1, "top_p": 0.0, "min_p": 1.0, "typical_p": 0.0}):
            assert np.all(kept(x, **options).sum(-1) == 1)
    assert sample(np.array([5], kernel.dtype), uniform=0.7, typical_p=0.3) == 0


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 4.0, 1e4])
def test_long_rows_keep_what_the_definition_keeps(kernel, scale):
    """Where a sample of the row tells about where a filter ends, and where it misleads."""
    if kernel.tag == "f16" and scale == 1e4:
        scale = 1e3
    n = 20_000
    rng = np.random.default_rng(4)
    peaked = np.where(np.arange(n) % 999 == 5, 6.0, -1.0)
    rows = [rng.normal(size=n), np.sort(rng.normal(size=n)), peaked, np.where(np.arange(n) < 9, 0.0, -rng.random(n))]
    x = cast(scale * np.stack(rows), kernel.dtype)
    for options in ({"top_k": 1}, {"top_k": 300}, {"top_k": n - 5}, {"top_p": 0.35}, {"top_p": 0.999},
                    {"min_p": 0.3, "typical_p": 0.5}, {"typical_p": 0.91}):
        got, exact = kept(x, **options), reference.filter_logits(wider(x), **options) > -INF
        others = (got != exact).sum(-1)         # a token at the bound, whose mass both round
        assert others.max() <= (1 if "top_p" in options or "typical_p" in options else 0), options


def test_masked_logits_do_not_mislead_the_selection(kernel):
    """The smallest number of the dtype, which stands for -inf in other libraries."""
    x = example((3, 20_000), kernel.dtype)
    x[:, 100:] = np.float16(-65504) if kernel.tag == "f16" else -3e38
    for options in ({"top_k": 40}, {"top_p": 0.8}, {"top_k": 5000}):
        np.testing.assert_array_equal(kept(x, **options), reference.filter_logits(wider(x), **options) > -INF)


PROCESSORS = {"top_k": "TopKLogitsWarper", "top_p": "TopPLogitsWarper", "min_p": "MinPLogitsWarper",
              "typical_p": "TypicalLogitsWarper"}
ARGUMENTS = {"typical_p": "mass"}


@pytest.mark.parametrize("names", [*((name,) for name in PROCESSORS), ("top_k", "top_p"), ("top_p", "min_p"),
                                   tuple(PROCESSORS)], ids="+".join)
def test_kept_sets_are_those_of_transformers(names):
    reason = "transformers and PyTorch are not installed: kept sets are NOT compared with theirs"
    torch = pytest.importorskip("torch", reason=reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processors = pytest.importorskip("transformers.generation.logits_process", reason=reason)
    values = {"top_k": 40, "top_p": 0.83, "min_p": 0.03, "typical_p": 0.77}
    x = example((30, 500), np.float64)
    theirs = torch.from_numpy(x.copy())
    for name in names:
        theirs = getattr(processors, PROCESSORS[name])(**{ARGUMENTS.get(name, name): values[name]})(None, theirs)
    np.testing.assert_array_equal(kept(x, **{name: values[name] for name in names}), np.isfinite(theirs.numpy()))


def test_penalties_are_those_of_transformers():
    reason = "transformers and PyTorch are not installed: penalties are NOT compared with theirs"
    torch = pytest.importorskip("torch", reason=reason)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processors = pytest.importorskip("transformers.generation.logits_process", reason=reason)
    x, tokens = example((5, 50), np.float64), np.random.default_rng(0).integers(0, 50, (5, 30))
    theirs = processors.RepetitionPenaltyLogitsProcessor(1.3)(torch.from_numpy(tokens), torch.from_numpy(x.copy()))
    np.testing.assert_array_equal(penalize_(x, tokens, repetition=1.3), theirs.numpy())


# ---------------------------------------------------------------- filtered logits


def test_softmax_of_filtered_logits_is_the_distribution_drawn_from(kernel):
    x = example((6, 90), kernel.dtype)
    for options in FILTERS:
        filtered = filter_logits(x, **options)
        assert filtered.dtype == x.dtype
        tokens, logprob = sample(x, rng=0, return_logprob=True, **options)
        expected = fastsoftmax.log_softmax(filtered.astype(float), -1)[np.arange(6), tokens]
        np.testing.assert_allclose(logprob, expected, 0, 30 * max(kernel.eps, 1e-15) if "temperature" in options else
                                   (1e-14 if kernel.tag == "f64" else 1e-6))


def test_what_stays_is_divided_by_the_temperature_and_rounded_once(kernel):
    x = example((4, 300), kernel.dtype)
    for temperature in (0.7, np.array([0.3, 1, 2, 1e3])):
        with np.errstate(all="ignore"):         # float16 underflows
            expected = reference._round(reference.filter_logits(wider(x), temperature=temperature), kernel.dtype)
        assert_same_bits(filter_logits(x, temperature=temperature), expected)


def test_quotients_beyond_the_range_saturate(kernel):
    largest = ml_dtypes.finfo(kernel.dtype).max
    x = np.array([largest, 1, -largest, -INF], kernel.dtype)
    np.testing.assert_array_equal(
        filter_logits(x, temperature=0.5).astype(np.float64), np.array([largest, 2, -largest, -INF], np.float64))


def test_temperature_0_is_argmax_and_the_first_of_equal_ones(kernel):
    x = example((50, 40), kernel.dtype, ties=True)
    largest = x.astype(float).argmax(-1)
    for u in (0.0, 0.99):
        tokens, logprob = sample(x, temperature=0, uniform=u, top_p=0.5, return_logprob=True)
        np.testing.assert_array_equal(tokens, largest)
        assert not logprob.any()
    filtered = filter_logits(x, temperature=0.0, top_k=3)
    expected = np.full(x.shape, -INF, x.dtype)
    expected[np.arange(50), largest] = x[np.arange(50), largest]
    assert_same_bits(filtered, expected)
    mixed = sample(x, temperature=np.where(np.arange(50) % 2, 0, 5.0), uniform=0.999)
    np.testing.assert_array_equal(mixed[1::2], largest[1::2])
    assert np.any(mixed[::2] != largest[::2])


def test_each_row_has_its_own_parameters(kernel):
    x, uniform = example((5, 80, 3), kernel.dtype), np.random.default_rng(5).random((5, 3))
    rng = np.random.default_rng(6)
    of_rows = {"temperature": rng.uniform(0.3, 2, (5, 3)), "top_k": rng.integers(1, 40, (5, 3)),
               "top_p": rng.uniform(0.3, 1, (5, 3)), "min_p": rng.uniform(0, 0.2, (5, 3)),
               "typical_p": rng.uniform(0.3, 1, (5, 3))}
    for names in (*((name,) for name in of_rows), tuple(of_rows)):
        tokens, logprob = sample(x, 1, uniform=uniform, return_logprob=True, **{n: of_rows[n] for n in names})
        filtered = filter_logits(x, 1, **{n: of_rows[n] for n in names})
        for i, j in np.ndindex(5, 3):
            own = {n: of_rows[n][i, j].item() for n in names}
            alone = sample(x[i, :, j], uniform=uniform[i, j], return_logprob=True, **own)
            assert (tokens[i, j], logprob[i, j]) == alone
            assert_same_bits(filtered[i, :, j], filter_logits(x[i, :, j], **own))
    wide = sample(x, 1, uniform=uniform, top_k=of_rows["top_k"][0])     # broadcast
    np.testing.assert_array_equal(wide, sample(x, 1, uniform=uniform, top_k=np.tile(of_rows["top_k"][0], (5, 1))))


def test_hidden_tokens_are_not_drawn_whatever_they_hold(kernel):
    x, where = example((6, 70), kernel.dtype), np.random.default_rng(7).random((6, 70)) < 0.5
    clean, dirty = np.where(where, x, np.array(-INF, x.dtype)), np.where(where, x, np.array(NAN, x.dtype))
    dirty[:, 3] = np.where(where[:, 3], dirty[:, 3], np.array(INF, x.dtype))
    for options in FILTERS:
        uniform = np.random.default_rng(8).random(6)
        np.testing.assert_array_equal(sample(dirty, uniform=uniform, where=where, **options),
                                      sample(clean, uniform=uniform, **options))
        assert_same_bits(filter_logits(dirty, where=where, **options), filter_logits(clean, **options))
    assert np.all(filter_logits(dirty, where=False) == -INF)


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same(kernel, layout):
    if "swapped" in layout and kernel.tag == "bf16":
        return                                  # ml_dtypes has but one byte order
    x = example((7, 90), kernel.dtype)
    placed = LAYOUTS[layout](x)
    for axis, options in itertools.product((0, 1), ({"top_p": 0.8}, {"temperature": 0.5, "top_k": 5}, {})):
        uniform = np.random.default_rng(9).random(x.shape[1 - axis])
        drawn, expected = (sample(v, axis, uniform=uniform, return_logprob=True, **options) for v in (placed, x))
        for one, other in zip(drawn, expected, strict=True):
            assert_same_bits(one, other)
        assert_same_bits(filter_logits(placed, axis, **options), filter_logits(x, axis, **options))
        out = placed.copy(order="K") if "read-only" in layout else placed
        before = placed.copy()
        assert filter_logits(placed, axis, out=out, **options) is out
        assert_same_bits(out.astype(x.dtype), filter_logits(x, axis, **options))
        if out is placed:
            placed[...] = before


def test_axes_and_dimensions():
    x = example((2, 3, 11, 4, 2))
    for axis in range(-5, 5):
        uniform = np.random.default_rng(0).random(np.delete(x.shape, axis))
        moved = np.ascontiguousarray(np.moveaxis(x, axis, -1))
        np.testing.assert_array_equal(
            sample(x, axis, uniform=uniform, top_p=0.9), sample(moved, uniform=uniform, top_p=0.9))
        assert_same_bits(np.moveaxis(filter_logits(x, axis, top_p=0.9), axis, -1), filter_logits(moved, top_p=0.9))
    one = sample([0.0, 1.0], uniform=0.5)
    assert isinstance(one, np.int64)
    assert sample(np.zeros((0, 5)), rng=0).shape == (0,)
    assert filter_logits(np.zeros((3, 0, 5))).shape == (3, 0, 5)
    with pytest.raises(np.exceptions.AxisError):
        sample(x, 5, uniform=0.5)


def test_out_may_be_the_logits_or_overlap_them(kernel):
    for options in ({}, {"top_k": 3}, {"top_p": 0.9, "temperature": 2.0}, {"temperature": 0.0}):
        memory = example(1000, kernel.dtype)
        x, out = memory[:900].reshape(9, 100), memory[100:].reshape(9, 100)
        expected = filter_logits(x.copy(), **options)
        assert filter_logits(x, out=out, **options) is out
        assert_same_bits(out, expected)
        x = example((9, 100), kernel.dtype)
        expected = filter_logits(x.copy(), **options)
        assert_same_bits(filter_logits(x, out=x, **options), expected)


def test_integers_and_long_double():
    x = np.random.default_rng(1).integers(-3, 3, (5, 30))
    uniform = np.random.default_rng(2).random(5)
    np.testing.assert_array_equal(
        sample(x, uniform=uniform, top_p=0.9), sample(x.astype(float), uniform=uniform, top_p=0.9))
    assert filter_logits(x.astype(np.int8)).dtype == np.float16
    long = x.astype(np.longdouble)
    for options in FILTERS:
        tokens, logprob = sample(long, uniform=uniform, return_logprob=True, **options)
        np.testing.assert_array_equal(tokens, sample(x.astype(float), uniform=uniform, **options))
        assert logprob.dtype == np.longdouble
    np.testing.assert_array_equal(filter_logits(long, top_k=4) > -INF, kept(x, top_k=4))
    np.testing.assert_array_equal(penalize_(long[:, :9].copy(), x[:, 9:12] + 3, repetition=2.0, presence=1.0),
                                  penalize_(x[:, :9].astype(float), x[:, 9:12] + 3, repetition=2.0, presence=1.0))


def test_extreme_temperatures(kernel):
    x = example((4, 50), kernel.dtype)
    largest = x.astype(float).argmax(-1)
    for temperature in (5e-324, 1e-31, 1e-29):
        np.testing.assert_array_equal(sample(x, temperature=temperature, uniform=0.999), largest)
    for temperature in (1e29, 1e31, 1e308):
        np.testing.assert_array_equal(sample(x, temperature=temperature, uniform=0.5 + 1e-9), 25)


# ---------------------------------------------------------------- penalties


@pytest.mark.parametrize("layout", LAYOUTS)
def test_penalties_are_those_of_the_definition(kernel, layout):
    if "swapped" in layout and kernel.tag == "bf16" or layout == "read-only":
        return
    x = example((6, 40), kernel.dtype)
    x[0, :3] = -INF, 0, INF
    rng = np.random.default_rng(10)
    tokens = rng.integers(0, 40, (6, 100))
    tokens[1] = 7
    for options in ({}, {"repetition": 1.3}, {"frequency": 0.2}, {"presence": -0.5}, {"lengths": 5, "presence": 1.0},
                    {"repetition": rng.uniform(0.5, 2, 6), "frequency": rng.normal(size=6),
                     "presence": rng.normal(size=6), "lengths": rng.integers(0, 101, 6)}):
        got = LAYOUTS[layout](x)
        assert penalize_(got, tokens, **options) is got
        exact = reference.penalize_(x.astype(np.float64), tokens, **options)
        if kernel.dtype.itemsize == 2:          # from the float32 next to it
            exact = exact.astype(np.float32)
        np.testing.assert_array_equal(got.astype(np.float64), reference._round(exact, kernel.dtype).astype(np.float64))


def test_tokens_behind_the_lengths_are_not_read():
    x = np.zeros((2, 5))
    penalize_(x, [[1, 99, -7], [2, 2, 3]], presence=1.0, lengths=[1, 2])
    np.testing.assert_array_equal(x, [[0, -1, 0, 0, 0], [0, 0, -1, 0, 0]])
    assert penalize_(x, np.zeros((2, 0), int), presence=5.0) is x
    assert x.sum() == -2


def test_penalties_of_many_rows_and_tokens_do_not_depend_on_threads():
    x, tokens = example((300, 500)), np.random.default_rng(0).integers(0, 500, (300, 900))
    found = []
    for threads in (1, 2, 5):
        with fastsoftmax.num_threads(threads):
            found.append(penalize_(x.copy(), tokens, repetition=1.2, frequency=0.01))
    for other in found[1:]:
        assert_same_bits(found[0], other)
