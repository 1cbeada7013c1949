"""softmax, log_softmax, logsumexp, causal_softmax, causal_mask_, softmax_entropy: each property for every kernel."""

import ctypes
import platform
import timeit
import tracemalloc
import warnings

import ml_dtypes
import mpmath
import numpy as np
import pytest
from helpers import (
    FAMILY,
    LAYOUTS,
    NUMPY,
    assert_accurate,
    assert_same_bits,
    bits,
    check,
    exact_row,
    oracle,
    sample,
    tail_lengths,
    ulps,
)

import fastsoftmax
from fastsoftmax import (
    _dispatch,
    _softmax,
    causal_mask_,
    causal_softmax,
    log_softmax,
    logsumexp,
    reference,
    softmax,
    softmax_entropy,
)

INF, NAN = np.inf, np.nan
family = pytest.mark.parametrize("function", FAMILY)
SPREADS = {
    "f32": (0.1, 1, 30, 87, 104),
    "f64": (0.1, 1, 30, 400, 700),
    "f16": (0.1, 1, 8, 17),
    "bf16": (0.1, 1, 30, 104),
}
OFFSETS = {"f32": (-1e6, 1e6, 1e30), "f64": (-1e6, 1e6, 1e200), "f16": (-3e4, 3e4), "bf16": (-1e6, 1e30)}


def call(function, x, axis=-1, **kwargs):
    return getattr(fastsoftmax, function)(x, axis, **kwargs)


def expect(values, dtype):
    return np.asarray(values, np.float64).astype(dtype)


# ---------------------------------------------------------------- accuracy


@family
def test_every_tail_length(kernel, function):
    for n in tail_lengths(kernel.lanes):
        x = sample(kernel.dtype, n, spread=20)
        got = call(function, x)
        assert got.dtype == kernel.dtype
        check(function, got, x)


@family
def test_every_spread_and_offset(kernel, function):
    for spread in SPREADS[kernel.tag]:
        for n in (2, 3, 37, 1000, 5001):
            x = sample(kernel.dtype, (3, n), spread)
            check(function, call(function, x), x)
    for offset in OFFSETS[kernel.tag]:
        x = sample(kernel.dtype, (3, 1000), SPREADS[kernel.tag][-1], offset)
        check(function, call(function, x), x)
        x = sample(kernel.dtype, (3, 1000), abs(offset) / 2, offset)
        check(function, call(function, x), x)


@family
def test_few_large_among_many_small(kernel, function):
    """Where a sum that drops its small terms would show."""
    x = np.full((2, 20001), -12, kernel.dtype)
    x[0, 777] = x[1, 20000] = 3
    check(function, call(function, x), x)


def test_log_softmax_keeps_small_results(kernel):
    for gap in (3, 5, 9, 12, 16):
        x = expect([0, -gap], kernel.dtype)
        y = log_softmax(x)
        assert y[0] < 0
        check("log_softmax", y, x)
    x = expect(np.r_[0, np.full(999, -16.0)], kernel.dtype)
    check("log_softmax", log_softmax(x), x)


@pytest.mark.parametrize("n", [2, 3, 10, 16, 17, 40, 64, 65, 300, 1000, 5000])
def test_logarithms_of_any_sum_of_the_others(kernel, n):
    """From far less than the largest element to many times as much: two ways of summing meet in between."""
    rng = np.random.default_rng(n)
    x = np.log(2.0 ** np.arange(-30, 5, 2 if n < 300 else 5) / (n - 1))[:, None] - 2 * rng.random((1, n))
    x[:, rng.integers(n)] = 0
    x = x.astype(kernel.dtype)
    y, z = log_softmax(x, -1), logsumexp(x, -1)
    check("log_softmax", y, x)
    check("logsumexp", z, x)
    assert_same_bits(log_softmax(x.T.copy(), 0).T, y)
    assert_same_bits(logsumexp(x.T.copy(), 0), z)
    for i in range(0, len(x), 3):               # whichever way its neighbours need
        assert_same_bits(log_softmax(x[i]), y[i])
        assert_same_bits(logsumexp(x[i]), z[i])


def test_rows_sum_to_one(kernel):
    for n in (1, 2, 7, 64, 1000, 32000, 128256) + ((1_000_003,) if kernel.tag == "f32" else ()):
        for spread in (0.1, 20):
            y = softmax(sample(kernel.dtype, n, spread))
            # Two ULP of every weight; sixteen bits: half an ULP, and half a quantum where weights are subnormal.
            quantum = float(np.nextafter(kernel.dtype.type(0), kernel.dtype.type(1)))
            limit = 2 * kernel.eps if kernel.dtype.itemsize > 2 else 0.51 * kernel.eps + n * quantum / 2
            assert abs(y.astype(kernel.wide).sum() - 1) <= limit, (n, spread)


def test_equal_logits_share_equally(kernel):
    for n in (1, 2, 3, 100, 70000):
        y = softmax(np.full(n, 3, kernel.dtype))
        assert_accurate(y, np.full(n, kernel.wide(1) / n), 1)
        assert len(np.unique(bits(y))) == 1
    for n in (1000, 5001):                      # errors of one sign add up, beside one that is larger
        x = np.repeat(sample(kernel.dtype, (50, 1), 8, 4), n, 1)
        x[:, 0] += 5
        check("softmax", softmax(x, -1), x, -1)


@family
@pytest.mark.parametrize("steps", [2, 4, 8, 16])
def test_every_element_at_the_end_of_a_step_of_exp(kernel, function, steps):
    """exp takes so many steps between two powers of two. At their ends its polynomial and the errors of it are largest.
    In a row of ends of one side, these errors and those of the sum have one sign; a few elements, which lie at the
    middle of a step, have none."""
    rng = np.random.default_rng(steps)
    for n in (40, 130, 513, 1000, 5000, 30_000):
        end = rng.choice([-0.499, 0.499, 0.4, -0.45], (40_000 // n + 1, 1))
        for lowest, at_ends in ((-1, 1), (-5 * steps, 1), (-5 * steps, 0.95)):
            place = rng.integers(lowest, 1, (len(end), n)) + end * (rng.random((len(end), n)) < at_ends)
            x = (np.log(2) / steps * place).astype(kernel.dtype)
            check(function, call(function, x), x)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_monotone(kernel, function):
    if kernel.dtype.itemsize == 2:  # every value there is
        with np.errstate(invalid="ignore"):
            x = np.arange(2**16, dtype=np.uint16).view(kernel.dtype).astype(np.float32)
        x = np.sort(x[(x >= -30) & (x <= 20)]).astype(kernel.dtype)
    else:
        x = np.sort(sample(kernel.dtype, 300, SPREADS[kernel.tag][-1]))
        x = np.sort(np.concatenate([x, *(np.nextafter(x, x.dtype.type(d)) for d in (-INF, INF))]))
    for block in (x, x[-50:], x[:40]):
        y = call(function, block).astype(kernel.wide)
        assert np.all(np.diff(y) >= 0)
        assert np.all(np.diff(call(function, block[::-1]).astype(kernel.wide)) <= 0)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_shift_invariant(kernel, function):
    """Where the shifted scores are exact, within the two errors."""
    x = (np.random.default_rng(1).integers(-128, 1, (5, 67)) / 16).astype(kernel.dtype)
    if kernel.tag == "bf16":
        x = np.round(x.astype(float)).astype(kernel.dtype)
    y = call(function, x).astype(kernel.wide)
    for shift in (128, -64):
        assert_accurate(call(function, x + kernel.dtype.type(shift)), y, max(4, 2**23 * kernel.eps))


def test_subnormal_weights_are_kept(kernel):
    depths = {"f32": (88, 95, 100, 103), "f64": (709, 720, 740, 744), "f16": (10, 12, 15, 17), "bf16": (88, 90, 91, 92)}
    for n in (5, 40, 300):
        x = np.zeros(n, kernel.dtype)
        x[1:5] = expect([-d for d in depths[kernel.tag]], kernel.dtype)
        x[5:] = -INF
        y = softmax(x)
        exact = oracle("softmax", x)
        quantum = kernel.wide(np.nextafter(kernel.dtype.type(0), kernel.dtype.type(1)))
        assert np.all(y[1:5].astype(kernel.wide) > 0)
        assert np.all(abs(y.astype(kernel.wide) - exact)[1:5] <= quantum)


def test_results_just_above_the_subnormal(kernel):
    """A product of a weight and of the lower half of 1 / sum is subnormal there, but must not be lost."""
    tiny = {"f32": 2.0**-126, "f64": 2.0**-1022, "f16": 2.0**-14, "bf16": 2.0**-126}[kernel.tag]
    rng = np.random.default_rng(0)
    for n in (2, 3, 70):
        x = -rng.random((100_000 // n, n)) * 0.5
        x[:, 1:] += np.log(tiny) + np.log(2) * 5 * rng.random((len(x), n - 1))
        x = x.astype(kernel.dtype)
        exact = oracle("softmax", x)
        normal = exact >= tiny
        y = softmax(x, -1)
        assert_accurate(y[normal], exact[normal], 1.7)
        for row in range(0, len(x), 97):        # whatever is beside them
            assert_same_bits(softmax(x[row]), y[row])
        assert_same_bits(softmax(x.T.copy(), 0).T, y)


@pytest.mark.parametrize("n", [2, 10, 16, 17, 64, 100, 4096, 9000])
def test_subnormal_weights_are_within_a_quantum(kernel, n):
    """Most of all just below the smallest normal number, where a rounded factor's lost part is half a quantum."""
    edges = {"f32": (-87.3365, -104), "f64": (-708.396, -745), "f16": (-9.7, -17), "bf16": (-87.3365, -92)}
    edge, least = edges[kernel.tag]
    rng = np.random.default_rng(n)
    count = max(2, 40_000 // n)
    for low, high in ((edge - 1, edge + 0.5), (least, edge + 4)):
        x = rng.uniform(low, high, (count, n)).astype(kernel.dtype)
        x[:, 0] = rng.uniform(-1, 1, count)
        if n > 2:
            x[:, n // 2] = rng.uniform(-3, 3, count)
        if n > 10:
            x[:, n // 3] = -INF
            x[::2, 2::3] = -INF                 # 0, and not computed with the subnormal ones beside them
        exact = oracle("softmax", x)
        quantum = kernel.wide(np.nextafter(kernel.dtype.type(0), kernel.dtype.type(1)))
        small = exact < float(ml_dtypes.finfo(kernel.dtype).tiny)
        assert small.any()
        y = softmax(x, -1)
        assert_same_bits(softmax(np.asfortranarray(x), -1), y)
        assert_same_bits(softmax(x.T.copy(), 0).T, y)
        in_place = x.copy()
        assert_same_bits(softmax(in_place, -1, out=in_place), y)
        assert np.all(abs(y - exact)[small] <= quantum)
        check("softmax", y, x)                  # half a quantum for 16 bits


# ---------------------------------------------------------------- special values

TABLE = {  # what a row of zeros holds besides -> weights and log weights at (the special place, the others), logsumexp
    "NaN": ([NAN], (NAN, NAN), (NAN, NAN), NAN),
    "NaN and inf": ([NAN, INF, -INF], (NAN, NAN), (NAN, NAN), NAN),
    "inf": ([INF], (NAN, NAN), (NAN, -INF), INF),
    "two inf": ([INF, INF], (NAN, NAN), (NAN, -INF), INF),
}


@pytest.mark.parametrize("case", TABLE)
def test_special_values_take_their_row_alone(kernel, case):
    specials, weights, log_weights, lse = TABLE[case]
    for n in (len(specials) + 1, kernel.lanes - 1, kernel.lanes + 3, 64, 65, 1000):
        if n <= len(specials):
            continue
        x = np.zeros((3, n), kernel.dtype)
        clean = {f: call(f, x[0]) for f in FAMILY}
        for start in {0, (n - len(specials)) // 2, n - len(specials)}:
            x[1] = 0
            x[1, start : start + len(specials)] = specials
            at = np.zeros(n, bool)
            at[start : start + len(specials)] = True
            for f, (here, other) in (("softmax", weights), ("log_softmax", log_weights)):
                y = call(f, x)
                np.testing.assert_array_equal(y[1].astype(float), np.where(at, here, other))
                assert_same_bits(y[0], clean[f])
                assert_same_bits(y[2], clean[f])
            y = logsumexp(x, -1)
            np.testing.assert_array_equal(y[1:2].astype(float), lse)
            assert_same_bits(y[::2], np.stack([clean["logsumexp"]] * 2))


def test_minus_infinity_weighs_exactly_nothing(kernel):
    for n in (2, 3, max(2, kernel.lanes), kernel.lanes + 2, 40, 70, 1001):
        x = sample(kernel.dtype, (4, n), 5)
        x[0, 0] = x[1, -1] = x[2, 1:] = x[3, : n // 2] = -INF
        hidden = np.isneginf(x.astype(float))
        y, log_y = softmax(x, -1), log_softmax(x, -1)
        assert np.all(y[hidden] == 0)
        assert np.all(y[~hidden] > 0)
        assert np.all(np.isneginf(log_y[hidden].astype(float)))
        for f in FAMILY:
            check(f, call(f, x), x)


def test_only_minus_infinity(kernel):
    for shape in ((1,), (7,), (kernel.lanes,), (100,), (3, 5), (2, 1000)):
        x = np.full(shape, -INF, kernel.dtype)
        assert np.all(np.isnan(softmax(x, -1)))
        assert np.all(np.isnan(log_softmax(x, -1)))
        assert np.all(np.isneginf(np.asarray(logsumexp(x, -1)).astype(float)))


def test_the_only_element_weighs_one(kernel):
    x = (np.random.default_rng(0).normal(size=(500, 1)) * 30).astype(kernel.dtype)
    np.testing.assert_array_equal(call("softmax", x), 1)
    np.testing.assert_array_equal(call("softmax", x.T.copy(), 0), 1)
    np.testing.assert_array_equal(call("softmax", x[0]), 1)


def one_above(kernel, shape, gap):
    """Rows in which one score is above all others by `gap`; and where that is."""
    rng = np.random.default_rng(shape)
    highest = rng.normal(size=(*shape[:-1], 1)) * 10
    is_top = np.arange(shape[-1]) == rng.integers(shape[-1], size=highest.shape)
    return np.where(is_top, highest, highest - gap).astype(kernel.dtype), is_top


@pytest.mark.parametrize("shape", [(300, 2), (300, 5), (100, 10), (100, 17), (99, 64), (50, 70), (40, 300), (9, 5000)])
@pytest.mark.parametrize("gap", [INF, 900])
def test_the_element_that_takes_all_weighs_one(kernel, shape, gap):
    x, is_top = one_above(kernel, shape, gap)
    np.testing.assert_array_equal(call("softmax", x), is_top)
    np.testing.assert_array_equal(call("softmax", x, temperature=0.7), is_top)
    np.testing.assert_array_equal(call("softmax", x[::-1, ::-1]), is_top[::-1, ::-1])
    np.testing.assert_array_equal(call("softmax", x.T.copy(), 0), is_top.T)
    np.testing.assert_array_equal([call("softmax", row) for row in x[:30]], is_top[:30])
    np.testing.assert_array_equal(call("softmax", np.zeros_like(x) + x.max(1, keepdims=True), where=is_top), is_top)
    np.testing.assert_array_equal(call("softmax", np.stack([x.T] * 3), 1), np.stack([is_top.T] * 3))
    np.testing.assert_array_equal(call("softmax", x, out=x), is_top)


CHUNK, BASES_MIN = 4096, 7 * 4096               # see params.pxi
LATER = {                                       # what comes after the first chunk of a row, by the largest there
    "no larger": lambda largest: largest - 1,
    "a little larger": lambda largest: largest + 2,
    "as large as may be": lambda largest: largest + 4.47,
    "just too large": lambda largest: largest + 4.5,
    "larger": lambda largest: largest + 7,
    "takes all": lambda largest: largest + 59,
    "too far": lambda largest: largest + 61,
    "infinite": lambda largest: np.full_like(largest, INF),
    "NaN": lambda largest: np.full_like(largest, np.nan),
}


@pytest.mark.parametrize("offset", [0, 39, 240])
@pytest.mark.parametrize("later", LATER)
def test_rows_with_bases(kernel, later, offset):
    """Their weights are computed before the maximum is known, until an element is far above those of the first chunk: a
    row has the same bits by each way, in every layout, in place, and with any number of threads."""
    x = (sample(kernel.dtype, (5, BASES_MIN + 333), 6).astype(kernel.wide) + offset).astype(kernel.dtype)
    first = x[:, :CHUNK].max(1).astype(kernel.wide)
    x[:2, CHUNK + 5::9000] = LATER[later](first[:2, None])
    x[1:3, -1] = LATER[later](first[1:3])
    x[2:4, 3 * CHUNK] = first[2:4] + 5          # twice, or once in the middle
    expected = call("softmax", x)
    finite = np.isfinite(x).all(1)
    check("softmax", expected[finite], x[finite])
    assert np.isnan(expected[~finite]).all()
    for threads in (1, 5):
        with fastsoftmax.num_threads(threads):
            place = x.copy()
            for got in (call("softmax", x), call("softmax", x.T.copy(), 0).T,
                        call("softmax", np.stack([x.T] * 2), 1)[1].T, call("softmax", place, out=place),
                        call("softmax", x, where=np.ones(x.shape, bool)),
                        call("softmax", x, out=np.zeros(x.shape[::-1], x.dtype).T)):
                assert_same_bits(got[finite], expected[finite])
                assert np.isnan(got[~finite]).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_shared_row_has_the_bits_of_one_that_is_not(kernel, threads):
    x = sample(kernel.dtype, (3, 300_000), 6)
    x[1, 200_000], x[2, 200_000] = x[1, :CHUNK].max() + 3, x[2, :CHUNK].max() + 20
    columns = call("softmax", np.stack([x.T] * 6, 2).reshape(300_000, 18), 0)[:, ::6].T
    with fastsoftmax.num_threads(threads):
        for row, expected in zip(x, columns, strict=True):
            assert_same_bits(call("softmax", row), expected)
            place = row.copy()
            assert_same_bits(call("softmax", place, out=place), expected)


@pytest.mark.parametrize("hidden", [CHUNK, CHUNK - 1, 7])
def test_rows_whose_first_chunk_is_hidden(kernel, hidden):
    x = sample(kernel.dtype, (9, BASES_MIN + 5), 6)
    seen = np.arange(x.shape[1]) >= hidden
    shown = np.where(seen, x, -INF).astype(x.dtype)
    expected = call("softmax", shown)
    check("softmax", expected, shown)
    assert_same_bits(call("softmax", x, where=seen), expected)
    assert_same_bits(call("softmax", x.T, 0, where=seen[:, None]).T, expected)


@pytest.mark.parametrize("threads", [1, 5])
def test_the_element_of_a_long_row_that_takes_all_weighs_one(kernel, threads):
    with fastsoftmax.num_threads(threads):
        for more in range(20):
            x, is_top = one_above(kernel, (1, 100_000 + more), INF)
            np.testing.assert_array_equal(call("softmax", x), is_top)


@pytest.mark.parametrize("n", [5000, 110_000, 1_000_000])
def test_many_alike_far_below_the_largest(kernel, n):
    """Their weights are below the digits of the largest, but not their sum."""
    for gap in (11, 12, 14.5):
        x = sample(kernel.dtype, n, 0.02)
        x[n * 3 // 4] = gap
        for function in FAMILY:
            check(function, call(function, x), x)


@pytest.mark.parametrize("n", [2, 5, 16, 30, 70, 300])
def test_others_than_the_largest_that_weigh_little(kernel, n):
    """About where the largest weight becomes 1, and beyond: the others are as accurate as ever."""
    widest = 40 if kernel.dtype.itemsize == 8 else 20
    for gap in np.linspace(widest / 2, widest + 5, 23):
        x, is_top = one_above(kernel, (60, n), gap)
        y = call("softmax", x)
        check("softmax", y, x)
        if kernel.dtype.itemsize >= 4 and n * np.exp(-0.99 * gap) < np.finfo(kernel.dtype).eps / 8:
            np.testing.assert_array_equal(y[is_top], 1)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 9, 17, 40])
def test_many_short_rows(kernel, n):
    """The worst of a row's errors come together in one of millions: one where the weight lies above a power of two, and
    the result below."""
    rng = np.random.default_rng(n)
    widest = 700 if kernel.dtype.itemsize == 8 else 100
    for case in range(8):
        offset = rng.normal() * 10 ** rng.uniform(0, 3) if case % 3 == 0 else 0
        x = (offset - rng.random((40_000 // n, n)) * 10 ** rng.uniform(-2, np.log10(widest))).astype(kernel.dtype)
        if case % 2:
            x[:, 0] = x.max(1)
        check("softmax", call("softmax", x), x)


HARD_ROWS = [       # which were 2.02 (the last, in float64) to 2.6 ULP off in the library's first days
    [float.fromhex(v) for v in row.split()] for row in (
        "0x1.c8de86p+7 0x1.a79478p+7 0x1.9c93d8p+7 0x1.b99a48p+7",
        "-0x1.0f0a2cp+4 -0x1.11e388p+3 -0x1.1b1a34p+3 -0x1.882fe0p+1 -0x1.d82c18p+3 -0x1.2af7dep+3",
        "-0x1.787cb8p+2 -0x1.2c4b44p+4 -0x1.b06df2p+3 -0x1.d0ceb8p+3",
        "-0x1.151e879c236b9p+2 -0x1.64ff0a396b1a5p+4 -0x1.df69d1badb066p+4 -0x1.151e879c236b9p+2 "
        "-0x1.b0149d5cd15b7p+2 -0x1.b663f3fe29918p+4")]


@pytest.mark.parametrize("row", HARD_ROWS)
def test_hard_rows(kernel, row):
    x = expect([row] * 40, kernel.dtype)
    check("softmax", call("softmax", x), x)


@pytest.mark.parametrize("value", [0.0, -0.0, 5.0, -INF, INF, NAN])
def test_a_row_of_one(kernel, value):
    x = np.full((3, 1), value, kernel.dtype)
    for f in FAMILY:
        np.testing.assert_array_equal(call(f, x).astype(float), oracle(f, x).astype(float))


def test_no_data_warns_or_raises(kernel):
    rows = [[NAN, 1, 2], [INF, 1, 2], [-INF, -INF, -INF], [-INF, 1, 2], [0, -1e4, 1], [6e4, -6e4, 0], [INF, -INF, NAN]]
    for wide_enough in (1, 9, 200):
        x = np.tile(expect(rows, kernel.dtype), wide_enough)
        hidden = np.zeros(x.shape, bool)
        with np.errstate(all="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            for f in FAMILY:
                call(f, x)
                call(f, x, 0)
                call(f, x, where=hidden)
            softmax_entropy(x, -1)
            causal_softmax(x)
            causal_mask_(x.copy())
            softmax(x, -1, temperature=1e-30)
            softmax(x, -1, temperature=1e30)


# ---------------------------------------------------------------- the same bits, however the array lies


@family
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_change_bits(kernel, function, layout):
    for shape in ((5, 7), (9, 33), (3, 257)):
        x = sample(kernel.dtype, shape, 10)
        laid = LAYOUTS[layout](x)
        before = laid.tobytes()
        for axis in (-1, 0):
            assert_same_bits(call(function, laid, axis), call(function, x, axis))
        assert laid.tobytes() == before


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_every_address(kernel, function):
    """Wherever in a cache line rows and results begin, also in place; nothing beside the results is written."""
    for n in (17, 63, 64, 65, 200):
        x = sample(kernel.dtype, (3, n), 10)
        expected = call(function, x)
        for start in range(17):
            memory = np.full(x.size + 34, 7, kernel.dtype)
            given = memory[start : start + x.size].reshape(x.shape)
            given[:] = x
            assert_same_bits(call(function, given), expected)
            for first in {0, 5, start}:
                room = np.full(x.size + 34, 7, kernel.dtype)
                call(function, given, out=room[first : first + x.size].reshape(x.shape))
                assert_same_bits(room[first : first + x.size].reshape(x.shape), expected)
                assert np.all(room[:first] == 7) and np.all(room[first + x.size :] == 7)
            assert_same_bits(call(function, given, out=given), expected)
            assert np.all(memory[:start] == 7) and np.all(memory[start + x.size :] == 7)


@pytest.mark.parametrize("largest", [0.0, 255.0, -255.0, 257.0, -257.0, 2047.0, 2049.0, 30000.0])
def test_largest_elements_on_either_side_of_what_is_subtracted(kernel, largest):
    """A large maximum is subtracted, a small one is not; neighbours may be of either kind."""
    for function in FAMILY:
        for shape in ((40, 10), (40, 100), (3, 300)):
            x = sample(kernel.dtype, shape, 3)
            x[::2] = (x[::2].astype(np.float64) + largest).astype(kernel.dtype)
            check(function, call(function, x), x)
            check(function, call(function, np.ascontiguousarray(x.T), 0).T, x)
            alone = np.stack([np.asarray(call(function, row)) for row in x])
            assert_same_bits(call(function, x), alone)


@family
def test_transposed_and_broadcast_inputs(kernel, function):
    x = sample(kernel.dtype, (4, 6, 35), 10)
    for axes in ((1, 0, 2), (2, 1, 0), (0, 2, 1)):
        laid = x.transpose(axes)
        for axis in range(3):
            assert_same_bits(call(function, laid, axis), call(function, np.ascontiguousarray(laid), axis))
    for laid in (
        np.broadcast_to(x[:, :1], (4, 5, 35)),
        np.broadcast_to(x[0, 0, 0], (3, 40)),
        np.broadcast_to(x[..., :1], (4, 6, 9)),
    ):
        for axis in (0, 1, -1):
            assert_same_bits(call(function, laid, axis), call(function, laid.copy(), axis))


@family
def test_a_row_alone_and_in_a_batch(kernel, function):
    """Narrow rows are worked on several at a time; no row may feel its neighbours."""
    for n in (*range(2, 18), 24, 31, 32, 33, 48, 63, 64, 65, 300):
        for rows in (1, 2, 3, 7, 8, 15, 16, 17, 40):
            x = sample(kernel.dtype, (rows, n), 15)
            alone = np.stack([np.asarray(call(function, row)) for row in x])
            assert_same_bits(call(function, x), alone)


def one_nan(values):
    """The sign of a NaN says nothing, and depends on where in the row it arose."""
    return np.where(np.isnan(values), values.dtype.type(NAN), values)


@family
def test_rows_of_a_group_do_not_feel_each_other(kernel, function):
    """Rows of up to 192 elements, and logarithms of up to 1365, are computed together, whatever each of them needs."""
    for n in (9, 16, 20, 40, 64, 100, 200, 700, 1365, 1366):
        x = sample(kernel.dtype, (21, n), 4)
        x[3, 7] = 40                            # outweighs all others: log_softmax sums such rows again
        x[4] += 300                             # is subtracted before exp
        x[12:15] = np.array([[NAN], [INF], [-INF]])
        alone = one_nan(np.stack([np.asarray(call(function, row)) for row in x]))
        assert_same_bits(one_nan(call(function, x)), alone)
        if function in ("softmax", "log_softmax"):
            out = x.copy()
            call(function, out, out=out)
            assert_same_bits(one_nan(out), alone)


@family
def test_inner_axes(kernel, function):
    for inner in (1, 3, 7, 8, 9, 16, 33, 64):
        for n in (1, 2, 5, 70) if inner not in (9, 16) else (70, 511, 512, 513, 577, 1024, 4100):
            x = sample(kernel.dtype, (2, n, 1, inner), 15)
            check(function, call(function, x, 1), x, 1)
            alone = call(function, x[1:, :, :, inner // 2 : inner // 2 + 1], 1)
            assert_same_bits(call(function, x, 1)[1:, ..., inner // 2 : inner // 2 + 1], alone)


@family
@pytest.mark.parametrize(
    "n, inner", [(65, 200), (200, 300), (64, 1024), (33, 512), (130, 1024), (2100, 40), (4100, 17)])
def test_columns_do_not_feel_each_other(kernel, function, n, inner):
    """Columns side by side are computed in strips; lines 2048 bytes apart, or a multiple of that, fewer at a time."""
    x = sample(kernel.dtype, (n, inner), 4)
    x[n // 2, inner // 2] = 40                  # outweighs all others: log_softmax sums such rows again
    x[:, 3] += 30
    x[n // 3, [1, 5, 16]] = NAN, INF, -INF
    x[:, inner - 1] = -INF
    alone = one_nan(call(function, np.ascontiguousarray(x.T)))
    assert_same_bits(one_nan(call(function, x, 0)), alone.T if alone.ndim == 2 else alone)
    if function not in ("softmax", "log_softmax"):
        return
    for out in (x.copy(), np.empty_like(x), np.empty((inner, n), x.dtype).T):   # in place; lines; rows
        out[...] = x
        call(function, out if out.flags.c_contiguous else x, 0, out=out)
        assert_same_bits(one_nan(out), alone.T)
    rows = np.ascontiguousarray(x.T).T          # from rows to lines
    call(function, rows, 0, out=(out := np.empty((n, inner), x.dtype)))
    assert_same_bits(one_nan(out), alone.T)


@family
def test_few_short_columns_of_many_matrices(kernel, function):
    """The first columns of all matrices are computed together, then the second ones."""
    for n, inner in ((2, 2), (4, 3), (9, 4), (31, 2), (60, 3), (200, 2)):
        x = sample(kernel.dtype, (41, n, inner), 4)
        x[3, n // 2, 1] = 40
        x[4] += 300
        x[5:8, 0, 0] = NAN, INF, -INF
        alone = one_nan(call(function, np.ascontiguousarray(np.swapaxes(x, 1, 2))))
        expected = np.swapaxes(alone, 1, 2) if alone.ndim == 3 else alone
        assert_same_bits(one_nan(call(function, x, 1)), expected)
        assert_same_bits(one_nan(call(function, x[::-1], 1)), expected[::-1])
        assert_same_bits(one_nan(call(function, np.asfortranarray(x), 1)), expected)
        if function in ("softmax", "log_softmax"):
            out = x.copy()
            call(function, out, 1, out=out)
            assert_same_bits(one_nan(out), expected)
            temperature = np.linspace(0.5, 3, 41 * inner).reshape(41, 1, inner)
            assert_same_bits(
                one_nan(call(function, x, 1, temperature=temperature)),
                one_nan(np.stack([call(function, np.ascontiguousarray(m), 0, temperature=t)
                                  for m, t in zip(x, temperature, strict=True)])))


@family
@pytest.mark.parametrize("threads", [1, 9])
@pytest.mark.parametrize("n, inner", [(140_001, 5), (17_000, 20), (70_000, 35)])
def test_columns_of_long_rows(kernel, function, n, inner, threads):
    """Where a tile is too large to be kept, or tiles are too few for the threads, these share its chunks."""
    x = sample(kernel.dtype, (n, inner), 4)
    x[n // 2, 1] = 40                           # outweighs all others: log_softmax sums such rows again
    x[:, 2] += 30
    alone = call(function, np.ascontiguousarray(x.T))
    with fastsoftmax.num_threads(threads):
        assert_same_bits(call(function, x, 0), alone.T)
        if function in ("softmax", "log_softmax"):
            out = x.copy()
            call(function, out, 0, out=out)
            assert_same_bits(out, alone.T)
            scaled = call(function, np.ascontiguousarray(x.T), temperature=0.7)
            assert_same_bits(call(function, x, 0, temperature=0.7), scaled.T)
    x[n // 3, :3] = NAN, INF, -INF
    x[:, inner - 1] = -INF
    alone = one_nan(call(function, np.ascontiguousarray(x.T)))
    with fastsoftmax.num_threads(threads):
        assert_same_bits(one_nan(call(function, x, 0)), alone.T)


@pytest.mark.parametrize(
    "shape, axis",
    [((300_001,), 0), ((257, 1031), 1), ((1031, 257), 0), ((20_000, 10), 1), ((3, 129, 700), 1), ((3, 70_001), 1)],
)
def test_threads_do_not_change_bits(kernel, shape, axis):
    x = sample(kernel.dtype, shape, 12)
    results = []
    for threads in (1, 2, 5):
        with fastsoftmax.num_threads(threads):
            results.append([call(f, x, axis) for f in FAMILY])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert_same_bits(np.asarray(got), np.asarray(expected))
    for f, got in zip(FAMILY, results[0], strict=True):
        check(f, got, x, axis)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc", reason="reads MXCSR by glibc's fenv_t"
)
@pytest.mark.parametrize("mode", ["upward", "flush subnormals"])
def test_the_callers_rounding_mode_and_flush_bits_do_nothing_and_stay(kernel, mode):
    libm = ctypes.CDLL("libm.so.6")
    x = sample(kernel.dtype, (40, 999), 90 if kernel.tag != "f16" else 16)
    expected = [call(f, x) for f in FAMILY]
    default, changed, after = (ctypes.create_string_buffer(32) for _ in range(3))  # fenv_t; MXCSR is its last word
    libm.fegetenv(default)
    changed.raw = default.raw
    mxcsr = int.from_bytes(default.raw[28:], "little") | (0x4000 if mode == "upward" else 0x8040)
    changed.raw = default.raw[:28] + mxcsr.to_bytes(4, "little")
    with fastsoftmax.num_threads(2):
        try:
            libm.fesetenv(changed)
            got = [call(f, x) for f in FAMILY]
            libm.fegetenv(after)
        finally:
            libm.fesetenv(default)
    assert int.from_bytes(after.raw[28:], "little") & ~0x3F == mxcsr & ~0x3F  # but for the sticky exception flags
    for a, b in zip(got, expected, strict=True):
        assert_same_bits(a, b)


def memory(f, *args, **kwargs):
    """The result, and the largest number of bytes that the call held at a time, its result included."""
    f(*args, **kwargs)
    tracemalloc.start()
    try:
        return f(*args, **kwargs), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("axis", [1, -1])
@family
def test_input_is_never_copied(kernel, function, axis):
    x = sample(kernel.dtype, (2, 500, 2000), 10)[:, ::-1, ::2]
    out = None if function == "logsumexp" else np.empty(x.shape, kernel.dtype)
    assert memory(call, function, x, axis, out=out)[1] < x.nbytes / 8


LONG_ROWS = {  # rows of more than 2**18 elements that no single stride runs through
    "steps that do not merge": (lambda x: x[:, ::-1, ::2], None),
    "axes apart": (lambda x: x.reshape(20, -1, 20000)[:, ::2, ::-1], (0, 2)),
    "far from zero": (lambda x: (x - x.dtype.type(9000))[:, ::-1, ::2], None),
    "broadcast": (lambda x: np.broadcast_to(x[:1, :, None, :300], (2, x.shape[1], 2, 300)), (0, 1, 3)),
    "byte-swapped": (lambda x: x.astype(x.dtype.newbyteorder("S"))[0], None),
    "unaligned": (lambda x: LAYOUTS["unaligned by a byte"](x)[:1].reshape(-1), 0),
}


long_rows_dtypes = pytest.mark.parametrize("dtype", [np.dtype(d) for d in NUMPY.values()], ids=NUMPY)


@long_rows_dtypes
@pytest.mark.parametrize("case", LONG_ROWS)
def test_reductions_of_long_rows_take_no_memory(dtype, case):
    lay, axis = LONG_ROWS[case]
    x = lay(sample(dtype, (2, 500, 2000), 12))
    dense = np.ascontiguousarray(x.astype(dtype))
    y, bytes_held = memory(logsumexp, x, axis)
    assert bytes_held < 2**20
    check("logsumexp", y, dense, axis)
    y, bytes_held = memory(softmax_entropy, x, axis)
    assert bytes_held < 2**20
    check_entropy(dense, axis, y)
    y, bytes_held = memory(softmax, x, axis)
    assert bytes_held < 4 * dense.nbytes
    check("softmax", y, dense, axis)


@long_rows_dtypes
def test_temperature_and_where_of_long_rows(dtype):
    x = sample(dtype, (3, 4, 400, 300), 12)[..., ::-1].transpose(1, 0, 2, 3)
    keep = np.random.default_rng(9).random((3, 400, 1)) < 0.3
    temperature = np.array([0.5, 1, 3, 7.7]).reshape(4, 1, 1, 1)
    dense = np.ascontiguousarray(x)
    for kwargs in ({}, {"where": keep}, {"temperature": temperature}, {"where": keep, "temperature": temperature}):
        check_entropy(dense, (1, 2, 3), softmax_entropy(x, (1, 2, 3), **kwargs), **kwargs)
        if "temperature" not in kwargs:
            check("logsumexp", logsumexp(x, (1, 2, 3), **kwargs), dense, (1, 2, 3), **kwargs)


def test_entropy_of_a_long_row_far_from_zero():
    """Where lse, were it formed, would drop log(n): 1e30 + log(n) is 1e30."""
    for dtype, offset in ((np.float32, 1e30), (np.float64, 1e300), (np.float32, -1e30)):
        x = np.broadcast_to(np.array([offset, -np.inf, offset], dtype)[:, None], (1000, 3, 150)).transpose(2, 1, 0)
        assert_accurate(np.asarray(softmax_entropy(x)), np.log(np.longdouble(300_000)), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda d: d.__name__)
def test_special_values_in_long_rows(dtype):
    shape, cut = (2, 700, 300), np.s_[:, ::-1, :-1]
    first, last = (0, 699, 0), (1, 0, 298)

    def row(value=0.0, **places):
        x = np.full(shape, value, dtype)
        for place, special in places.items():
            x[{"first": first, "last": last}[place]] = special
        return x[cut]

    for x, lse, entropy in (
        (row(first=NAN), NAN, NAN),
        (row(last=NAN), NAN, NAN),
        (row(first=INF, last=NAN), NAN, NAN),
        (row(first=INF), INF, NAN),
        (row(last=INF, first=INF), INF, NAN),
        (row(-INF), -INF, NAN),
        (row(-INF, last=3), 3, 0),
        (row(-INF, first=-3), -3, 0),
        (row(-INF, first=0, last=0), np.log(2), np.log(2)),
        (row(first=-INF), np.log(2 * 700 * 299 - 1), np.log(2 * 700 * 299 - 1)),
    ):
        with np.errstate(all="raise"), warnings.catch_warnings():
            warnings.simplefilter("error")
            got = np.array([logsumexp(x), softmax_entropy(x)]).astype(float)
        np.testing.assert_allclose(got, [lse, entropy], rtol=np.finfo(dtype).eps, atol=0)
        keep = ~(np.isnan(x) | np.isposinf(x.astype(float)))
        if keep.all():
            keep = np.zeros(x.shape, bool)
            keep[0, 0, 0] = keep[-1, -1, -1] = True
        for f in (logsumexp, softmax_entropy):
            with np.errstate(all="raise"):
                got = f(x, where=keep)
            exact = float(getattr(reference, f.__name__)(x, where=keep))
            np.testing.assert_allclose(float(got), exact, rtol=np.finfo(dtype).eps)
    x = row(NAN)
    assert logsumexp(x, where=False) == -INF
    assert softmax_entropy(x, where=False) == 0
    keep = np.zeros(x.shape, bool)
    keep[-1, -1, -1] = True  # one in the last piece alone, and that of no weight
    assert np.isnan(softmax_entropy(row(-INF), where=keep))
    assert logsumexp(row(-INF), where=keep) == -INF


@pytest.mark.parametrize("reduction", [logsumexp, softmax_entropy])
def test_broadcast_giants_take_no_memory(reduction):
    x = np.broadcast_to(np.array([0, 1], np.float32)[:, None], (1000, 2, 10_000))  # no step leads to the next row
    y, bytes_held = memory(reduction, x)
    assert bytes_held < 2**20
    n, p = 10_000_000, 1 / (1 + np.e)
    lse = np.log(n) + np.log1p(np.e)
    np.testing.assert_allclose(y, lse if reduction is logsumexp else lse - (1 - p), rtol=1e-7)


# ---------------------------------------------------------------- arguments


@family
def test_axis(kernel, function):
    x = sample(kernel.dtype, (2, 3, 4, 5), 10)
    assert_same_bits(call(function, x, -2), call(function, x, 2))
    assert_same_bits(np.asarray(getattr(fastsoftmax, function)(x)), np.asarray(call(function, x, (0, 1, 2, 3))))
    for axis in (None, 0, 1, 2, 3, (0, 1), (1, 2), (3, 2), (0, 2), (1, -1), (0, -1, 1), (2,), ()):
        check(function, call(function, x, axis), x, axis)


def test_logsumexp_keepdims(kernel):
    x = sample(kernel.dtype, (2, 3, 4), 10)
    for axis, shape in ((None, (1, 1, 1)), (1, (2, 1, 4)), ((0, -1), (1, 3, 1)), ((), (2, 3, 4))):
        y = logsumexp(x, axis, keepdims=True)
        assert y.shape == shape
        assert_same_bits(y.reshape(-1), np.asarray(logsumexp(x, axis)).reshape(-1))


def test_logsumexp_return_sign(kernel):
    x = sample(kernel.dtype, (3, 40), 10)
    y, sign = logsumexp(x, -1, return_sign=True)
    assert_same_bits(y, logsumexp(x, -1))
    assert sign.dtype == kernel.dtype
    np.testing.assert_array_equal(sign, 1)
    assert logsumexp(np.full(3, -INF, kernel.dtype), return_sign=True)[1] == 0


def test_logsumexp_b(kernel):
    x, b = sample(kernel.dtype, (3, 40), 10), sample(kernel.dtype, (40,), 3, 1)
    for got, exact in zip(
        logsumexp(x, -1, b, return_sign=True), oracle_pair(x.astype(kernel.wide), b.astype(kernel.wide)), strict=True
    ):
        assert got.dtype == kernel.dtype
        assert_accurate(got, exact, 4, units=np.maximum(abs(exact), 1))


def test_factors_keep_the_digits_of_log1p():
    """Of a sum close to 1, or to -1, whatever it is made of."""
    assert np.isnan(logsumexp([0.0, -40.0], b=[-1.0, -1.0]))
    cases = [
        ([0, -40], [-1, -1]), ([0, -40], [1, 1]), ([-40, 0, -41], [2, -1, 3]), ([0, 0, -30], [3, -2, 1]),
        ([0, 0, -50], [-3, 2, 5]), ([1, 1 - 40], [-1, -1]), ([0] * 10, [0.1] * 10), ([0] * 10, [-0.1] * 10),
        ([0, -0.001], [2, -1]), ([0, -1e-9], [-2, 1]), ([700, -40], [1, -1]), ([5, -np.inf, np.nan], [-1, -7, 0]),
    ]
    for a, b in cases:
        with mpmath.workdps(60):
            total = mpmath.fsum(mpmath.mpf(f) * mpmath.exp(mpmath.mpf(v)) for v, f in zip(a, b, strict=True) if f)
            true, sign = mpmath.log(abs(total)), int(mpmath.sign(total))
        for dtype in (np.float64, np.float32):
            x, factors = np.array(a, dtype), np.array(b, dtype)
            if np.any(x.astype(float) != np.array(a, float)) or np.any(factors.astype(float) != np.array(b, float)):
                if not np.isnan(a).any():       # other numbers, of which the sum is another
                    continue
            for got in (logsumexp(x, b=factors, return_sign=True),
                        logsumexp(x[None].T, 0, factors[None].T, True, True)):
                assert ulps(got[0], true) <= 2, (a, b, got)
                assert got[1] == sign


def test_logsumexp_promotes_a_and_b_as_scipy():
    """float32 exponents and float64 factors were once float32, and the imaginary part of b was lost with real a."""
    special = pytest.importorskip("scipy.special", reason="compares with SciPy")
    dtypes = ["f2", "f4", "f8", "c8", "c16", "g", "G", "i1", "u2", "i4", "i8", "?", ">f4", ">c8"]
    values = np.array([0.0, 1, 1])
    pairs = [(values.astype(s), values.astype(t)) for s in dtypes for t in dtypes]
    pairs += [(x, values.astype(t)) for x in (1, 2.5, 1j, True, np.float64(2), [1, 2, 3]) for t in dtypes]
    pairs += [(y, x) for x, y in pairs[len(dtypes) ** 2 :]] + [(1, 2), (1, 2.0), (1j, 2)]
    if np.__version__.startswith("1."):         # there SciPy promotes by the values of numbers, as NumPy did
        del pairs[len(dtypes) ** 2 :]
    for a, b in pairs:
        try:
            with np.errstate(all="ignore"):
                expected = special.logsumexp(a, b=b), *special.logsumexp(a, b=b, return_sign=True)
        except TypeError:                       # SciPy 1.15 subtracts booleans from each other
            assert np.result_type(a, b).kind == "b"
            continue
        got = logsumexp(a, b=b), *logsumexp(a, b=b, return_sign=True)
        for g, e in zip(got, expected, strict=True):
            assert g.dtype == e.dtype, (a, b)
            np.testing.assert_allclose(g, e, rtol=1e-3 if e.dtype == np.float16 else 1e-6)
        for out, e in ((np.empty((), expected[1].dtype), expected[1]),):
            assert logsumexp(a, b=b, return_sign=True, out=out)[0] is out
            np.testing.assert_allclose(out, e, rtol=1e-3 if e.dtype == np.float16 else 1e-6)


def test_logsumexp_b_of_bfloat16():
    bfloat16 = ml_dtypes.bfloat16
    x = np.array([1, 2, 3]).astype(bfloat16)
    for b, dtype in (
        (x, bfloat16),
        (2, bfloat16),
        (2.5, bfloat16),
        (x.astype("i1"), bfloat16),
        (x.astype("f2"), np.float32),
        (x.astype("f4"), np.float32),
        (x.astype("i8"), np.float64),
        (x.astype("c8"), np.complex64),
        (2j, np.complex64),
        (x.astype(x.dtype.newbyteorder("S")), bfloat16),
    ):
        exact = np.log((np.asarray(b).astype(complex) * np.exp([1.0, 2.0, 3.0])).sum())
        for got in (logsumexp(x, b=b), logsumexp(b, b=x)):
            assert got.dtype == dtype
            assert got.dtype.isnative
        np.testing.assert_allclose(complex(logsumexp(x, b=b)), exact, rtol=2**-8)


def test_the_log_of_a_complex_sum_with_its_sign_is_real():
    special = pytest.importorskip("scipy.special", reason="compares with SciPy")
    rng = np.random.default_rng(10)
    for dtype, real in ((np.complex64, np.float32), (np.complex128, np.float64), (np.clongdouble, np.longdouble)):
        x = (rng.normal(size=(3, 5)) + 2j * rng.normal(size=(3, 5))).astype(dtype)
        for kwargs in ({}, {"b": np.ones(5, real)}, {"b": np.ones(5, dtype)}):
            out = np.empty(3, real)
            lse, sign = logsumexp(x, 1, return_sign=True, out=out, **kwargs)
            assert lse is out
            expected = special.logsumexp(x, 1, return_sign=True, **kwargs)
            for got, e in zip((lse, sign), expected, strict=True):
                assert got.dtype == e.dtype
                np.testing.assert_allclose(got, e, rtol=1e-5)
            with pytest.raises(TypeError, match=f"{np.dtype(real)}"):
                logsumexp(x, 1, return_sign=True, out=np.empty(3, dtype), **kwargs)
        assert logsumexp(x, 1).dtype == dtype
        with pytest.raises(TypeError, match="complex"):
            logsumexp(np.ones(3), b=np.ones(3, dtype), dtype=np.float64)


def oracle_pair(x, b):
    total = (b * np.exp(x)).sum(-1)
    return np.log(abs(total)), np.sign(total)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_temperature_scalar_per_row_and_per_head(kernel, function):
    x = sample(kernel.dtype, (3, 4, 37), 12)
    rng = np.random.default_rng(3)
    for temperature in (
        0.5,
        2,
        0.7,
        3.1,
        rng.uniform(0.3, 3, (3, 4, 1)),
        rng.uniform(0.3, 3, (3, 1, 1)),
        np.float32([[0.6]]),
    ):
        check(function, call(function, x, temperature=temperature), x, temperature=temperature)
        assert not np.array_equal(bits(call(function, x, temperature=temperature)), bits(call(function, x)))
    for huge in (10**29, 10**30, 10**400):  # of any type and size, contiguous or not
        for scores in (x, x[..., ::-1], x[..., :5]):
            weights = softmax(scores, -1, temperature=huge).astype(kernel.wide)
            assert_accurate(weights.astype(kernel.dtype), np.full(scores.shape, kernel.wide(1) / scores.shape[-1]), 1)
    per_inner = rng.uniform(0.3, 3, (37,))
    check(function, call(function, x, 1, temperature=per_inner), x, 1, temperature=per_inner)
    each = np.array([0.25, 1, 8]).reshape(3, 1, 1)
    for i in range(3):
        assert_same_bits(call(function, x, temperature=each)[i], call(function, x[i], temperature=float(each[i, 0, 0])))
        assert_same_bits(
            call(function, x, temperature=each)[i], call(function, x[i] / kernel.dtype.type(each[i, 0, 0]))
        )


# Scores and a temperature for which x / temperature is no number of the dtype: (scores, temperature, of 64 bits only).
TEMPERED = [
    ([3, -20], 0.7), ([3, -20, -21], 1.3), ([0, -16], 0.3), ([-100, -90, -140], 3.0), ([200, 199.5, 150], 0.7),
    ([1e16, 1e16], 0.7), ([1e30, 1e30, 1e29], 1e29), ([2.5e38, 0], 0.7), ([2e38, 2e38, -2e38], 0.7),
    ([3e38, -3e38], 2.0), ([3e38, -3e38, 3e38], 2.3), ([-3e38, -3.1e38], 1e29), ([3.38e38, -3.38e38], 9e29),
    ([1e-38, 3e-38], 1e-29), ([5, 5, 5], 0.7), ([-1e6, -1e6 - 7, -1e6 + 0.5], 0.1),
]


@pytest.mark.parametrize("scores, temperature", TEMPERED)
def test_a_temperature_costs_no_digits(kernel, scores, temperature):
    """However far the scores are from 0, from each other and from the largest number; along rows and across."""
    x = np.array(scores, np.float64)
    if kernel.tag == "f16":
        x = x / max(1, abs(x).max() / 6e4)
    x = x.astype(kernel.dtype)
    for filling in (0, 20, 100):                # the least that there is besides
        row = np.concatenate([x, np.full(filling, -np.inf, kernel.dtype)])
        exact = exact_row(x, temperature)
        block = np.repeat(row[None], 40, 0)
        for function in ("softmax", "log_softmax"):
            for got in (call(function, row, temperature=temperature), call(function, block, temperature=temperature)[7],
                        call(function, block.T, 0, temperature=temperature)[:, 39]):
                got = got[:len(x)]
                if kernel.dtype.itemsize == 2:
                    wanted = np.array([float(v) for v in exact[function]])
                    assert_accurate(got, np.where(wanted < -float(np.finfo(np.float32).max), -INF, wanted), 2)
                else:
                    assert ulps(got, exact[function]) <= 2, (function, got, exact[function])
        entropy = softmax_entropy(row, temperature=temperature)
        assert_accurate(np.asarray(entropy), np.asarray(float(exact["softmax_entropy"])).astype(kernel.wide), 4)


def test_temperatures_beyond_the_kernels_keep_the_digits():
    """NumPy computes these; a difference of scores may be beyond the largest number, and the quotient is not."""
    for scores, temperature in (
            ([1.7e308, -1.7e308], 1e308), ([1.7e308, -1.7e308, 1e308], 5e307), ([3e-310, 0], 1e-310),
            ([2e31, -1e31], 1e31)):
        exact = exact_row(scores, temperature)
        assert ulps(softmax(scores, temperature=temperature), exact["softmax"]) <= 2
        assert ulps(log_softmax(scores, temperature=temperature), exact["log_softmax"]) <= 2
        assert ulps(softmax_entropy(scores, temperature=temperature), exact["softmax_entropy"]) <= 4
    x = np.array([[1.7e308, np.inf], [-1.7e308, -np.inf], [-np.inf, -np.inf], [np.nan, 0]])
    np.testing.assert_array_equal(softmax(x[1], temperature=1e308), [1, 0])
    assert np.all(np.isnan(softmax(x[[0, 2, 3]], -1, temperature=1e308)))


def test_log_softmax_of_minus_infinity_at_a_temperature(kernel):
    for n in (2, 40, 300):
        x = sample(kernel.dtype, (3, n), 10)
        x[:, 1] = -INF
        keep = np.ones(n, bool)
        keep[-1] = False
        for temperature in (0.5, 3.0, np.array([[0.5], [1], [2]])):
            check("log_softmax", log_softmax(x, -1, temperature=temperature), x, temperature=temperature)
            got = log_softmax(x, -1, temperature=temperature, where=keep)
            check("log_softmax", got, x, temperature=temperature, where=keep)
        got = log_softmax(np.asfortranarray(x), -1, temperature=2.0)
        check("log_softmax", got, x, temperature=2.0)


@family
def test_where_hides(kernel, function):
    rng = np.random.default_rng(4)
    for shape in ((4, 5), (3, 40), (2, 700)):
        x = sample(kernel.dtype, shape, 10)
        keep = rng.random(shape) < 0.5
        keep[:, 1] = True
        results = []
        for junk in (0, NAN, INF, -INF):
            results.append(call(function, np.where(keep, x, kernel.dtype.type(junk)), where=keep))
            assert_same_bits(results[-1], results[0])
        check(function, results[0], x, where=keep)
        if function == "softmax":
            assert np.all(results[0][~keep] == 0)
        for axis in (0, (0, 1)):
            check(function, call(function, x, axis, where=keep), x, axis, where=keep)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 17, 40, 64, 65, 200])
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_where_equals_minus_infinity_in_any_layout(kernel, function, n):
    """Bit for bit: rows without gaps, with gaps, turned, and into turned results, by tiles of any number of rows."""
    rng = np.random.default_rng(n)
    for count in (1, 3, 16, 37, 150):
        x, keep = sample(kernel.dtype, (count, n), 10), rng.random((count, n)) < 0.7
        keep[range(count), rng.integers(0, n, count)] = True
        expected = call(function, np.where(keep, x, kernel.dtype.type(-INF)))
        wide, wide_keep = np.repeat(x, 2, -1)[:, ::2], np.repeat(keep, 3, -1)[:, ::3]
        for array in (x, wide, np.asfortranarray(x)):
            for where in (keep, wide_keep, np.asfortranarray(keep)):
                assert_same_bits(call(function, array, where=where), expected)
        assert_same_bits(call(function, x, where=keep, out=np.empty_like(expected, order="F")), expected)
        assert_same_bits(call(function, x.T.copy(), 0, where=keep.T).T, expected)


@pytest.mark.parametrize("n", [64, 1000, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_with_hidden_elements_take_no_longer(dtype, n):
    """Their results, 0, were computed with the care that subnormal ones need: 2.7 to 4.5 times as long."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256_000 // n, n)).astype(dtype)
    hidden, out = np.where(rng.random(x.shape) < 0.8, x, dtype(-INF)), np.empty_like(x)
    with fastsoftmax.num_threads(1):
        times = [[timeit.timeit(lambda array=array: softmax(array, -1, out=out), number=1) for array in (x, hidden)]
                 for _ in range(60)]
    plain, masked = np.min(times, 0)
    assert masked < 2 * plain


@family
def test_where_broadcasts_in_any_layout(kernel, function):
    x = sample(kernel.dtype, (3, 4, 21), 10)
    rng = np.random.default_rng(5)
    for shape in ((21,), (1, 4, 1), (4, 21), (3, 1, 21), (3, 4, 21)):
        keep = rng.random(shape) < 0.6
        full = np.broadcast_to(keep, x.shape).copy()
        assert_same_bits(call(function, x, where=keep), call(function, x, where=full))
        assert_same_bits(
            call(function, x, where=full[:, ::-1][:, ::-1]), call(function, x, where=np.asfortranarray(full))
        )
        assert_same_bits(call(function, x, 1, where=keep), call(function, x, 1, where=full))
    check(function, call(function, x, where=True), x)


def test_a_row_without_any_true(kernel):
    for n in (1, 5, 40, 500):
        x = np.full((3, n), NAN, kernel.dtype)
        keep = np.zeros((3, n), bool)
        keep[1] = True
        x[1] = 0
        np.testing.assert_array_equal(softmax(x, -1, where=keep)[::2], 0)
        np.testing.assert_array_equal(log_softmax(x, -1, where=keep)[::2].astype(float), -INF)
        np.testing.assert_array_equal(logsumexp(x, -1, where=keep)[::2].astype(float), -INF)
        np.testing.assert_array_equal(softmax_entropy(x, -1, where=keep)[::2], 0)
        for f in FAMILY:
            check(f, call(f, x, where=keep)[1], x[1])


def test_masked_places_of_a_nan_row_stay_masked(kernel):
    x = expect([[NAN, 1, 2], [-INF, 1, 2], [INF, 1, 2]], kernel.dtype)
    keep = np.array([[True, True, False], [True, False, False], [True, True, False]])
    np.testing.assert_array_equal(softmax(x, -1, where=keep).astype(float), [[NAN, NAN, 0], [NAN, 0, 0], [NAN, NAN, 0]])
    np.testing.assert_array_equal(
        log_softmax(x, -1, where=keep).astype(float), [[NAN, NAN, -INF], [NAN, -INF, -INF], [NAN, -INF, -INF]]
    )
    np.testing.assert_array_equal(logsumexp(x, -1, where=keep).astype(float), [NAN, -INF, INF])


@family
def test_wider_dtype_is_the_computations_too(kernel, function):
    for to in (np.float64, np.float32):
        if np.dtype(to).itemsize <= kernel.dtype.itemsize:
            continue
        x = sample(kernel.dtype, (3, 41), 12)
        got = call(function, x, dtype=to)
        assert got.dtype == to
        check(function, got, x.astype(to))
        assert_same_bits(got, call(function, x.astype(to)))


@family
def test_narrower_dtype_only_rounds(kernel, function):
    x = sample(kernel.dtype, (3, 41), 6)
    for to in ("f2", "f4"):
        if np.dtype(to).itemsize < kernel.dtype.itemsize:
            got = call(function, x, dtype=to)
            assert got.dtype == to
            assert_accurate(got, oracle(function, x), 2)


@family
def test_out_is_filled_and_returned(kernel, function):
    x = sample(kernel.dtype, (6, 35), 10)
    for axis in (-1, 0):
        expected = call(function, x, axis)
        shape = expected.shape
        outs = [np.empty(shape, kernel.dtype), np.empty(shape, kernel.dtype, order="F")]
        big = np.full([3 * s for s in shape], 7, kernel.dtype)
        outs += [big[tuple(slice(1, None, 3) for _ in shape)], np.empty(shape, kernel.dtype)[::-1]]
        for out in outs:
            assert call(function, x, axis, out=out) is out
            assert_same_bits(out, expected)
        outs[2][...] = 7
        assert np.all(big == 7)  # nothing beside `out` was written


def test_out_of_logsumexp(kernel):
    x = sample(kernel.dtype, (6, 35), 10)
    out = np.empty((), kernel.dtype)
    assert logsumexp(x, out=out) is out
    assert_same_bits(out, np.asarray(logsumexp(x)))
    out = np.empty((6, 1), kernel.dtype)
    assert logsumexp(x, 1, keepdims=True, out=out) is out
    out = np.empty(6, kernel.dtype)
    first, sign = logsumexp(x, 1, return_sign=True, out=out)
    assert first is out
    assert_same_bits(out, logsumexp(x, 1))
    np.testing.assert_array_equal(sign, 1)


def test_out_of_logsumexp_may_overlap_the_input(kernel):
    for shape in ((40, 3), (40, 35), (5, 300), (3, 9001)):
        x = sample(kernel.dtype, shape, 10)
        for axis in (0, 1):
            expected = logsumexp(x, axis)
            for start in (0, 1, x.size - expected.size):
                line = x.ravel().copy()
                out = line[start : start + expected.size]
                assert logsumexp(line.reshape(shape), axis, out=out) is out
                assert_same_bits(out, expected)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_out_may_overlap_the_input(kernel, function):
    for shape in ((6, 35), (40, 8), (2, 3000), (2, 9001), (2, 8192)):      # the last two: weights in place of results
        x = sample(kernel.dtype, shape, 10)
        for axis in (-1, 0):
            expected = call(function, x, axis)
            same = x.copy()
            assert call(function, same, axis, out=same) is same
            assert_same_bits(same, expected)
            for view in (slice(None, None, -1), slice(None)):
                base = np.concatenate([x, x])
                for start in (1, shape[0] - 1):
                    base[: shape[0]] = x
                    call(function, base[: shape[0]], axis, out=base[start : start + shape[0]][view])
                    assert_same_bits(base[start : start + shape[0]][view], expected)
            backwards = x.copy()
            call(function, backwards, axis, out=backwards[:, ::-1])
            assert_same_bits(backwards[:, ::-1], expected)
            line = np.concatenate([x.ravel(), x.ravel()[:3]])  # shifted by less than a register
            call(function, line[: x.size].reshape(shape), axis, out=line[3:].reshape(shape))
            assert_same_bits(line[3:].reshape(shape), expected)


def test_where_may_overlap_out(kernel):
    if kernel.tag == "f32":
        memory = np.zeros(12, np.float32)
        keep = memory.view(bool)[:12]
        keep[::2] = True
        expected = softmax(np.arange(12, dtype=np.float32), where=keep.copy())
        assert_same_bits(softmax(np.arange(12, dtype=np.float32), where=keep, out=memory), expected)


# ---------------------------------------------------------------- types of input and result


def test_0d_gives_a_scalar(kernel):
    x = np.asarray(3, kernel.dtype)
    for f, value in (("softmax", 1), ("log_softmax", 0), ("logsumexp", 3)):
        for given in (x, kernel.dtype.type(3)):
            y = getattr(fastsoftmax, f)(given)
            assert type(y) is kernel.dtype.type
            assert y == value
    y = logsumexp(np.zeros((2, 2), kernel.dtype))
    assert type(y) is kernel.dtype.type
    assert type(softmax_entropy(np.zeros(3, kernel.dtype))) is kernel.dtype.type


@pytest.mark.parametrize("axis", [0, -1])
def test_a_scalar_has_the_axes_0_and_minus_1(kernel, axis):
    x = np.asarray(3, kernel.dtype)
    for f, value in ((softmax, 1), (log_softmax, 0), (logsumexp, 3), (softmax_entropy, 0)):
        for given in (x, kernel.dtype.type(3)):
            y = f(given, axis)
            assert type(y) is kernel.dtype.type
            assert y == value
    assert softmax(x, axis, where=False) == 0
    assert logsumexp(x, axis, b=2.0, keepdims=True) == np.asarray(3 + np.log(2)).astype(kernel.dtype)
    out = np.empty((), kernel.dtype)
    assert softmax(x, axis, out=out) is out
    assert out == 1


def test_python_numbers_and_lists():
    assert type(softmax(1.0)) is np.float64
    assert softmax(5) == 1
    assert logsumexp(5) == 5
    check("softmax", softmax([1.0, 2.0]), np.array([1.0, 2.0]))
    check("softmax", softmax([[1, 2], [3, 5]], 1), np.array([[1.0, 2.0], [3.0, 5.0]]))


@pytest.mark.parametrize("dtype", ["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", ">i4"])
def test_integers_promote_as_scipys(dtype):
    limits = (0, 1) if dtype == "?" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    for values in ([0, 1, 1], [limits[0], limits[1]], [limits[1], limits[1]]):
        x = np.array(values, dtype)
        as_exp = np.exp(np.zeros(1, dtype)).dtype
        for f in ("softmax", "log_softmax"):
            y = call(f, x)
            assert y.dtype == as_exp
            assert_accurate(y, oracle(f, x.astype(np.longdouble)).astype(np.longdouble if as_exp == "f8" else "f8"), 2)
        y = logsumexp(x, -1)
        assert y.dtype == np.float64
        assert_accurate(y, oracle("logsumexp", x.astype(np.longdouble)), 1.5)


WIDE_INTEGERS = {                                # beyond 2**53, where float64 has no place for each
    "neighbours": np.array([2**53, 2**53 + 1]),
    "time stamps": np.array([1_700_000_000_000_000_001, 1_700_000_000_000_000_000, 1_700_000_000_000_000_003]),
    "the ends of int64": np.array([-2**63, 2**63 - 1, 2**63 - 2, 0]),
    "uint64": np.array([2**64 - 1, 2**64 - 3, 0, 1], np.uint64),
    "foreign byte order": np.array([2**60 + 1, 2**60, 2**60 + 3], ">i8"),
    "a list that no integer dtype holds": [2**63 + 1, -5, 2**63],
    "negative": np.array([-2**62, -2**62 - 1, -2**62 - 2]),
}


@pytest.mark.parametrize("x", WIDE_INTEGERS.values(), ids=WIDE_INTEGERS)
def test_integers_are_subtracted_as_integers(x):
    for temperature in (1, 0.7, 1e18, 1e40):
        exact = exact_row(x, temperature)
        for scores in (x, np.asarray(x)[::-1][::-1] if isinstance(x, np.ndarray) else x):
            assert ulps(softmax(scores, temperature=temperature), exact["softmax"]) <= 2
            assert ulps(log_softmax(scores, temperature=temperature), exact["log_softmax"]) <= 2
            assert ulps(softmax_entropy(scores, temperature=temperature), exact["softmax_entropy"]) <= 4
    assert ulps(logsumexp(x), exact_row(x)["logsumexp"]) <= 1.5
    factors = np.arange(1, len(x) + 1)
    with mpmath.workdps(60):
        true = mpmath.log(mpmath.fsum(int(b) * mpmath.exp(int(v)) for v, b in zip(x, factors, strict=True)))
    assert ulps(logsumexp(x, b=factors), true) <= 1.5


def test_integers_of_any_shape_are_subtracted_as_integers():
    rng = np.random.default_rng(11)
    x = 2**61 + rng.integers(0, 30, (3, 5, 100))
    near = (x - 2**61).astype(np.float64)
    hide = rng.random(x.shape) < 0.3
    hidden = np.where(hide, 2**62, x)           # larger than all that is visible
    for axis in (0, 1, 2, None, (0, 2), (1, 2)):
        for f in FAMILY[:2]:
            check(f, call(f, x, axis), near, axis)
            check(f, call(f, hidden, axis, where=~hide), near, axis, where=~hide)
            check(f, call(f, x.astype(np.uint64), axis, temperature=3.0), near, axis, temperature=3.0)
        for keep in (None, ~hide):
            got = softmax_entropy(hidden if keep is not None else x, axis, where=keep)
            assert_accurate(np.asarray(got), np.asarray(softmax_entropy(near, axis, where=keep), np.longdouble), 4)
            got = logsumexp(hidden if keep is not None else x, axis, where=keep, keepdims=True)
            exact = np.longdouble(2**61) + logsumexp(near, axis, where=keep, keepdims=True)
            assert_accurate(np.asarray(got), exact, 1.5)
    assert_accurate(causal_softmax(x, offset=2), reference.causal_softmax(near.astype(np.longdouble), offset=2), 2)
    late = x.copy()
    late[..., -1] = 2**62                       # hidden from all queries but the last
    later = near.astype(np.longdouble)
    later[..., -1] = 2**61
    assert_accurate(causal_softmax(late, offset=95), reference.causal_softmax(later, offset=95), 2)
    assert np.all(softmax(x, 1, where=np.zeros_like(hide)) == 0)
    assert np.all(logsumexp(x, 1, where=np.zeros_like(hide)) == -INF)


def test_integers_of_long_rows_are_subtracted_as_integers():
    """Reductions take them in pieces."""
    rng = np.random.default_rng(12)
    near = rng.integers(-40, 0, 700_001)
    near[5] = 0
    for x in (near + 2**60, near + 2**60 - (np.arange(near.size) < 300_000) * 2**59):
        exact = exact_long = (x - x.max()).astype(np.longdouble)
        total = np.exp(exact_long).sum()
        assert_accurate(np.asarray(logsumexp(x)), np.asarray(np.longdouble(int(x.max())) + np.log(total)), 1.5)
        entropy = np.log(total) - (np.exp(exact) * np.where(exact < -1e4, 0, exact)).sum() / total
        assert_accurate(np.asarray(softmax_entropy(x)), np.asarray(entropy), 8)
        hidden = x.copy()
        hidden[1000:200_000] = 2**62
        keep = hidden < 2**62
        total = np.exp(exact[keep]).sum()
        got = logsumexp(hidden, where=keep)
        assert_accurate(np.asarray(got), np.asarray(np.longdouble(int(x.max())) + np.log(total)), 1.5)


@pytest.mark.parametrize("dtype", [np.longdouble, np.complex64, np.complex128, np.clongdouble])
@family
def test_other_inexact_types_go_through_the_reference(dtype, function):
    rng = np.random.default_rng(6)
    x = rng.normal(size=(3, 4, 5)).astype(dtype)
    if np.iscomplexobj(x):
        x = (x + 3j * rng.normal(size=x.shape)).astype(dtype)
    keep = rng.random(x.shape) < 0.7
    for axis in (None, 1, (0, 2)):
        for kwargs in ({}, {"where": keep}) if function == "logsumexp" else ({}, {"where": keep, "temperature": 0.7}):
            got = call(function, x, axis, **kwargs)
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, getattr(reference, function)(x, axis, **kwargs))
            out = np.empty(np.shape(got), dtype)
            assert call(function, x, axis, out=out, **kwargs) is out
            np.testing.assert_array_equal(out, got)


def test_softmax_of_complex_is_scipys():
    special = pytest.importorskip("scipy.special", reason="compares with SciPy")
    rng = np.random.default_rng(7)
    x = rng.normal(size=(3, 4)) + 4j * rng.normal(size=(3, 4))
    np.testing.assert_allclose(softmax(x, 1), special.softmax(x, 1), rtol=1e-14)
    np.testing.assert_allclose(log_softmax(x, 0), special.log_softmax(x, 0), rtol=1e-14)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # np.matrix
@family
def test_subclasses_come_back_as_ndarray(kernel, function):
    class Sub(np.ndarray):
        pass

    x = sample(kernel.dtype, (3, 4))
    for given in (x.view(Sub), x.view(Sub)[:, ::2]):
        got = call(function, given)
        assert type(got) is np.ndarray
        assert_same_bits(got, call(function, np.asarray(given)))
    if kernel.tag != "bf16":
        assert type(call(function, np.asmatrix(x), 0)) is np.ndarray


# ---------------------------------------------------------------- entropy


def test_entropy_of_equal_scores_is_log_n(kernel):
    for n in (1, 2, 7, 64, 1000, 5001):
        y = softmax_entropy(np.full((2, n), 5, kernel.dtype), -1)
        assert y.shape == (2,)
        assert y.dtype == kernel.dtype
        assert_accurate(y, np.full(2, np.log(kernel.wide(n))), 3)


def test_entropy_is_that_of_the_weights(kernel):
    for n in (2, 5, 33, 64, 65, 1000):
        for spread in (0.1, 5, 16):
            x = sample(kernel.dtype, (4, n), spread)
            check_entropy(x, -1)
            check_entropy(x, -1, temperature=2.0)
    x = sample(kernel.dtype, (3, 4, 20), 9)
    for axis in (None, 0, 1, (0, 2), ()):
        check_entropy(x, axis)
    check_entropy(x, 1, temperature=np.array([0.5, 1, 4]).reshape(3, 1, 1))
    keep = np.random.default_rng(8).random(x.shape) < 0.5
    check_entropy(x, -1, where=keep)
    x[~keep] = NAN
    check_entropy(x, -1, where=keep)


def check_entropy(x, axis, got=None, **kwargs):
    exact = oracle("softmax_entropy", x, axis, **kwargs)
    got = np.asarray(softmax_entropy(x, axis, **kwargs) if got is None else got)
    assert got.dtype == x.dtype
    assert_accurate(got, exact, 4)


def test_entropy_of_special_rows(kernel):
    x = expect([[NAN, 0, 0], [INF, 0, 0], [-INF] * 3, [0, -INF, -INF], [0, 0, -INF]], kernel.dtype)
    y = softmax_entropy(x, -1)
    assert np.all(np.isnan(y[:3]))
    assert y[3] == 0
    assert_accurate(y[4:], np.log(np.full(1, 2, kernel.wide)), 2)


# ---------------------------------------------------------------- causal


def visible(shape, offset):
    return np.array([[j <= i + offset for j in range(shape[-1])] for i in range(shape[-2])]).reshape(shape[-2:])


CAUSAL = [
    ((5, 5), 0),
    ((5, 9), 4),
    ((9, 5), -4),
    ((9, 5), 0),
    ((7, 40), -3),
    ((40, 40), 0),
    ((70, 130), 60),
    ((3, 4), 99),
    ((4, 3), -99),
]


@pytest.mark.parametrize("shape, offset", CAUSAL)
def test_causal_softmax_sees_no_future(kernel, shape, offset):
    keep = visible(shape, offset)
    for lead in ((), (2, 3)):
        x = sample(kernel.dtype, (*lead, *shape), 10)
        expected = causal_softmax(x, offset=offset)
        check("softmax", expected, x, where=keep)
        np.testing.assert_array_equal(expected[..., ~keep], 0)
        for junk in (NAN, INF, -INF):
            assert_same_bits(causal_softmax(np.where(keep, x, kernel.dtype.type(junk)), offset=offset), expected)
        laid = np.full((*x.shape[:-1], 2 * x.shape[-1]), NAN, kernel.dtype)[..., ::2]
        laid[...] = x
        assert_same_bits(causal_softmax(laid, offset=offset), expected)
        assert_same_bits(
            causal_softmax(np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2), offset=offset), expected
        )


def test_causal_softmax_arguments(kernel):
    x = sample(kernel.dtype, (2, 3, 9, 9), 10)
    keep = visible(x.shape, 0)
    assert_same_bits(causal_softmax(x), causal_softmax(x, offset=0))
    assert_same_bits(causal_softmax(x, offset=np.int64(2)), causal_softmax(x, offset=2))
    for temperature in (0.5, 1.7, np.array([0.5, 1, 3]).reshape(3, 1, 1)):
        check("softmax", causal_softmax(x, temperature=temperature), x, where=keep, temperature=temperature)
    got = causal_softmax(x, dtype=np.float64)
    assert got.dtype == np.float64
    check("softmax", got, x.astype(np.float64), where=keep)
    for out in (np.full(x.shape, 7, kernel.dtype), np.full((*x.shape[:-1], 18), 7, kernel.dtype)[..., ::2], x.copy()):
        source = out if np.array_equal(bits(out), bits(x)) else x
        assert causal_softmax(source, out=out) is out
        assert_same_bits(out, causal_softmax(x))
    assert causal_softmax(np.arange(6).reshape(2, 3)).dtype == np.float64


def test_causal_rows_are_the_softmax_of_what_they_see(kernel):
    x = sample(kernel.dtype, (70, 70), 10)
    y = causal_softmax(x)
    for i in range(70):
        check("softmax", y[i, : i + 1], x[i, : i + 1])
    with fastsoftmax.num_threads(2):
        assert_same_bits(causal_softmax(x), y)


@pytest.mark.parametrize("shape, offset", [((70, 70), 0), ((67, 90), 21), ((90, 67), -9), ((300, 601), 290)])
def test_causal_rows_have_the_bits_of_what_they_see(kernel, shape, offset):
    """One by one, in tiles of any place, and where one of the tile's rows is not finite."""
    x = sample(kernel.dtype, (3, *shape), 10)
    x[1, 33, 3], x[1, 35, 0], x[2, 40, :] = NAN, INF, -INF
    y = causal_softmax(x, offset=offset)
    for i in [*range(0, shape[0], 7), 33, 34, 35, 40]:
        seen = min(max(i + offset + 1, 0), shape[1])
        if seen:
            for o in range(3):
                assert_same_bits(y[o, i, :seen], softmax(x[o, i, :seen]))
        np.testing.assert_array_equal(y[:, i, seen:], 0)
    assert_same_bits(causal_softmax(x, offset=offset, out=x), y)


@pytest.mark.parametrize(
    "shape, offset", [((200, 4, 4), 0), ((50, 40, 40), 0), ((30, 40, 300), 0), ((50, 70, 60), -9), ((3, 3, 5000), 0)])
def test_the_only_element_that_a_causal_row_sees_weighs_one(kernel, shape, offset):
    x = sample(kernel.dtype, shape, 20)
    for options in ({}, {"temperature": 0.7}, {"out": x}):
        np.testing.assert_array_equal(causal_softmax(x, offset=offset, **options)[:, -offset, 0], 1)


def test_causal_rows_of_few_among_many(kernel):
    """Rows long enough to be shared by threads, of which the first see one element, two, ..."""
    x = sample(kernel.dtype, (19, 100_000), 5)
    expected = causal_softmax(np.ascontiguousarray(x[:, :19]))
    for threads in (1, 5):
        with fastsoftmax.num_threads(threads):
            y = np.concatenate([causal_softmax(x[i:i + 1], offset=i) for i in range(19)])
        assert not np.any(y[:, 19:])
        assert_same_bits(y[:, :19], expected)


def test_causal_softmax_of_special_rows(kernel):
    x = np.zeros((3, 3), kernel.dtype)
    x[1, 0], x[2, 2] = NAN, INF
    np.testing.assert_array_equal(causal_softmax(x).astype(float), [[1, 0, 0], [NAN, NAN, 0], [NAN, NAN, NAN]])
    x = np.full((2, 2), -INF, kernel.dtype)
    np.testing.assert_array_equal(causal_softmax(x, offset=-1).astype(float), [[0, 0], [NAN, 0]])


@pytest.mark.parametrize("shape, offset", CAUSAL)
def test_causal_mask_writes_only_the_future(kernel, shape, offset):
    keep = visible(shape, offset)
    for lead in ((), (2, 3)):
        x = sample(kernel.dtype, (*lead, *shape), 10)
        x[..., 0, 0] = NAN
        for fill, kwargs in ((-INF, {}), (-1000.0, {"fill_value": -1000.0}), (0.0, {"fill_value": 0})):
            expected = np.where(keep, x, kernel.dtype.type(fill))
            memory = np.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 7, kernel.dtype)
            turned = np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
            for scores in (x.copy(), memory[..., 1::2], turned.copy(order="K")[..., ::-1, :]):
                scores[...] = x
                assert causal_mask_(scores, offset=offset, **kwargs) is scores
                assert_same_bits(scores, expected)
            assert np.all(memory[..., ::2] == 7)


@pytest.mark.parametrize("layout", ["unaligned by a byte", "byte-swapped", "Fortran-ordered"])
def test_causal_functions_in_any_layout(kernel, layout):
    x = sample(kernel.dtype, (9, 12), 10)
    scores = LAYOUTS[layout](x)
    assert_same_bits(causal_softmax(scores, offset=1), causal_softmax(x, offset=1))
    causal_mask_(scores, offset=1)
    assert_same_bits(scores.astype(kernel.dtype), np.where(visible(x.shape, 1), x, kernel.dtype.type(-INF)))


@pytest.mark.parametrize("isa", _dispatch.supported())
@pytest.mark.parametrize("dtype, span", [(np.float32, 100), (np.float64, 700)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_monotone_where_the_reduction_of_exp_breaks(isa, dtype, span, temperature):
    for top in (0.0, -0.7, 5.0, 100.0, 300.0):
        middles = dtype(top) - (np.arange(int(span / np.log(2))) + dtype(0.5)) * dtype(np.log(2) * temperature)
        neighbours = [middles]
        for _ in range(30):
            neighbours.insert(0, np.nextafter(neighbours[0], dtype(-INF)))
            neighbours.append(np.nextafter(neighbours[-1], dtype(INF)))
        x = np.sort(np.concatenate([*neighbours, [dtype(top)]]).astype(dtype))
        with _dispatch.using(isa):
            for function in (softmax, log_softmax):
                assert (np.diff(function(x, temperature=temperature)) >= 0).all()


def test_non_temporal_stores_write_the_same_bits(kernel):
    calls = {
        (3, 33, 129): lambda x, out: causal_softmax(x, offset=-5, out=out),
        (5, 300): lambda x, out: softmax(x, -1, out=out),
        (4, 333): lambda x, out: log_softmax(x, -1, out=out),
        (2, 70, 48): lambda x, out: softmax(x, 1, out=out),
        (2, 70, 80): lambda x, out: softmax(x, 1, out=out),
        (2, 70, 96): lambda x, out: log_softmax(x, 1, out=out),
        (2, 70, 37): lambda x, out: log_softmax(x, 1, out=out),
        (2, 70, 5): lambda x, out: softmax(x, 1, out=out),
        (40, 9, 3): lambda x, out: softmax(x, 1, out=out),
        (140_000, 5): lambda x, out: softmax(x, 0, out=out),
        (40, 6): lambda x, out: softmax(x, -1, out=out),
        (300, 3): lambda x, out: softmax(x, 0, out=out),
    }
    scores = {shape: sample(kernel.dtype, shape, 10) for shape in calls}
    usual = {shape: call(scores[shape], np.empty_like(scores[shape])) for shape, call in calls.items()}
    with _softmax.nontemporal_from(1):
        for shape, call in calls.items():
            for shift in (0, 1, 3):
                room = np.full(scores[shape].size + 8, 7, kernel.dtype)
                out = room[shift:shift + scores[shape].size].reshape(shape)
                assert_same_bits(call(scores[shape], out), usual[shape])
                assert (room[:shift] == 7).all() and (room[shift + out.size:] == 7).all()
