"""Shared by the tests: the oracles, the distance in ULP, the ways an array can lie in memory, and fresh processes."""

import contextlib
import functools
import os
import subprocess
import sys

import ml_dtypes
import mpmath
import numpy as np
import pytest

from fastsoftmax import _dispatch, reference

NUMPY = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
ULP = {"softmax": 2.0, "log_softmax": 2.0, "logsumexp": 1.5}
FAMILY = tuple(ULP)
# what a process of ours takes from its environment
VARIABLES = ("FASTSOFTMAX_NUM_THREADS", "OMP_NUM_THREADS", "FASTSOFTMAX_ISA", "FASTSOFTMAX_THREADING_LAYER")


def wide(dtype):
    """The type of the oracle: float64 serves all but float64, which takes long double."""
    return np.longdouble if np.dtype(dtype) == np.float64 else np.float64


def oracle(function, x, axis=-1, **kwargs):
    """The exact result in a wide type. `x` holds the very values that the kernel saw."""
    x = np.asarray(x)
    return np.asarray(getattr(reference, function)(x.astype(wide(x.dtype)), axis, **kwargs))


def sample(dtype, shape, spread=8.0, offset=0.0, seed=0):
    """Scores spread evenly over `spread` below `offset`, the ends of that range included where there is room."""
    u = np.random.default_rng([seed, *np.atleast_1d(shape)]).random(shape)
    if u.size > 1:
        u.flat[[0, -1]] = 1, 0
    return (offset - spread * (1 - u)).astype(dtype)


def bits(a):
    """The raw bits, in index order, whatever the layout."""
    a = np.asarray(a)
    return np.ascontiguousarray(a.astype(a.dtype.newbyteorder("="))).reshape(-1).view(f"u{min(a.dtype.itemsize, 8)}")


def assert_same_bits(got, expected):
    assert np.shape(got) == np.shape(expected)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(bits(got), bits(expected))


def weight_rounding():
    """The relative error of a weight of attention in bfloat16: the kernels in use round weights, or not."""
    return _dispatch.kernels("bf16").weight_error


def assert_accurate(got, exact, ulp, units=None, more=0):
    """`got` within `ulp` units in the last place of `exact`; 16-bit types: as rounded from a float32 with that error.

    `units` is a quantity of which the larger ULP counts where the result cancels; `more` is an error allowed beside.
    """
    assert np.shape(got) == np.shape(exact)
    dtype = np.asarray(got).dtype
    arithmetic = np.float64 if dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        size = np.abs(exact) if units is None else np.maximum(np.abs(exact), np.abs(units))
        slack = ulp * np.spacing(size.astype(arithmetic)).astype(exact.dtype)
        slack = np.where(np.isfinite(exact), slack + more, 0)
        low, high = exact - slack, exact + slack
        if dtype.itemsize == 2:
            low, high = (reference._round(np.asarray(v), dtype).astype(np.float64) for v in (low, high))
        value = np.asarray(got).astype(exact.dtype)
        fine = ((low <= value) & (value <= high)) | (np.isnan(value) & np.isnan(exact))
        if np.all(fine):
            return
        error = np.where(fine, 0, np.abs(value - exact) / np.spacing(size.astype(arithmetic)))
        at = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), np.shape(error))
    raise AssertionError(
        f"{np.sum(~fine)} of {fine.size} off by more than {ulp} ULP; "
        f"worst at {tuple(map(int, at))}: {value[at]!r}, exact {exact[at]!r}, {float(error[at]):.2f} ULP "
        f"of {np.dtype(arithmetic)}"
    )


def check(function, got, x, axis=-1, **kwargs):
    """`got` is `function(x, axis, **kwargs)` to the accuracy that numerics.md asks for."""
    exact = oracle(function, x, axis, **kwargs)
    units = None
    if function == "logsumexp":
        keepdims = kwargs.get("keepdims", False)
        high = np.asarray(x).astype(exact.dtype)
        if kwargs.get("where") is not None:
            high = np.where(kwargs["where"], high, -np.inf)
        with np.errstate(all="ignore"):
            units = np.nan_to_num(exact - high.max(axis, keepdims=keepdims, initial=-np.inf), nan=0, posinf=0, neginf=0)
    assert_accurate(got, exact, ULP[function], units)


def exact_row(x, temperature=1, digits=60):
    """softmax, log_softmax, logsumexp and entropy of one row in mpmath, whose numbers hold the scores exactly."""
    with mpmath.workdps(digits):
        scores = [mpmath.mpf(int(v) if isinstance(v, (int, np.integer)) else float(v)) for v in x]
        temperature, top = mpmath.mpf(float(temperature)), max(scores)
        below = [(v - top) / temperature for v in scores]
        total = mpmath.log1p(mpmath.fsum(mpmath.exp(v) for v in below) - 1)
        log_weights = [v - total for v in below]
        return {
            "softmax": [mpmath.exp(v) for v in log_weights], "log_softmax": log_weights,
            "logsumexp": top / temperature + total,
            "softmax_entropy": -mpmath.fsum(mpmath.exp(v) * v for v in log_weights)}


def ulps(got, exact):
    """The largest distance of numbers from mpmath's, in ULP of the dtype; inf where one overflowed and ought not to."""
    worst = 0.0
    for value, true in zip(np.ravel(got), np.ravel(np.array(exact, object)), strict=True):
        limits = np.finfo(value.dtype) if value.dtype.kind == "f" else ml_dtypes.finfo(value.dtype)
        if abs(true) > float(limits.max):
            error = 0.0 if value == (np.inf if true > 0 else -np.inf) else np.inf
        else:
            unit = max(mpmath.mpf(2) ** (mpmath.frexp(true)[1] - limits.nmant - 1), float(limits.smallest_subnormal))
            error = float(abs(mpmath.mpf(float(value)) - true) / unit) if np.isfinite(float(value)) else np.inf
        worst = max(worst, error)
    return worst


def _into(buffer_view, x):
    buffer_view[...] = x
    return buffer_view


def _shifted_bytes(x, by):
    raw = np.zeros(x.nbytes + 64, np.uint8)
    return _into(raw[by : by + x.nbytes].view(x.dtype).reshape(x.shape), x)


def _readonly(x):
    x = x.copy()
    x.flags.writeable = False
    return x


# Each makes a copy of a 2-D array that lies differently in memory.
LAYOUTS = {
    "misaligned by an element": lambda x: _shifted_bytes(x, x.itemsize),
    "misaligned by 4 elements and to the end": lambda x: _shifted_bytes(x, 4 * x.itemsize),
    "unaligned by a byte": lambda x: _shifted_bytes(x, 1),
    "every second": lambda x: _into(np.zeros((2 * x.shape[0], 2 * x.shape[1]), x.dtype)[::2, ::2], x),
    "padded rows": lambda x: _into(np.zeros((x.shape[0], x.shape[1] + 3), x.dtype)[:, :-3], x),
    "reversed": lambda x: _into(np.zeros(x.shape, x.dtype)[::-1, ::-1], x),
    "Fortran-ordered": np.asfortranarray,
    "read-only": _readonly,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder("S")),
    "byte-swapped and strided": lambda x: _into(
        np.zeros((x.shape[0], 3 * x.shape[1]), x.dtype.newbyteorder("S"))[:, ::-3], x
    ),
}


@functools.cache
def tail_lengths(lanes):
    """Every tail of one and two registers, the edges of the narrow-row path, of unrolled loops, and large odd rows."""
    return sorted(
        {*range(1, 2 * lanes + 2), *range(15, 71), 127, 129, 255, 257, 511, 1023, 4095, 4096, 4097, 32003, 131071}
    )


# ---------------------------------------------------------------- attention


def plain_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, *,
                    bias=None, causal_offset=0, window=None, softcap=None, alibi_slopes=None, sinks=None,
                    key_lengths=None):
    """(out, lse, entropy) as one writes it in NumPy, in the dtype of the arguments; (B, H, L, E) alone.

    Head by head, apart from the reference: each checks the other, and this one's error is the measure of a kernel's.
    Last comes, for each row, what rounding acts upon: (..., 2), the average of the values' magnitudes, and the largest
    sum of the magnitudes that a score is made of.
    """
    dtype = query.dtype
    (batch, heads, queries, width), keys = query.shape, key.shape[2]
    out, rows = np.zeros((batch, heads, queries, value.shape[3]), dtype), np.zeros((4, batch, heads, queries), dtype)
    terms = [np.broadcast_to(x, (batch, heads, queries, keys)) for x in (bias, attn_mask) if x is not None]
    factors = np.broadcast_to(1 / np.sqrt(dtype.type(width)) if scale is None else scale, heads).astype(dtype)
    for b, h in np.ndindex(batch, heads):
        head = h * key.shape[1] // heads
        scores = query[b, h] @ key[b, head].T * factors[h]
        sizes = abs(query[b, h]) @ abs(key[b, head]).T * abs(factors[h])
        if softcap is not None:
            scores = dtype.type(softcap) * np.tanh(scores / dtype.type(softcap))
        behind = (np.arange(queries)[:, None] + np.broadcast_to(causal_offset, batch)[b]) - np.arange(keys)
        hide = np.zeros(scores.shape, bool)
        added = [term[b, h] for term in terms]
        if alibi_slopes is not None:
            added.append(-np.broadcast_to(alibi_slopes, (batch, heads))[b, h] * abs(behind))
        for term in added:
            if term.dtype == bool:
                hide |= ~term
            else:
                scores, sizes = scores + term.astype(dtype), sizes + abs(term.astype(dtype))
        if is_causal:
            hide |= behind < 0
        if window is not None and window[0] is not None:
            hide |= behind > window[0]
        if window is not None and window[1] is not None:
            hide |= -behind > window[1]
        if key_lengths is not None:
            hide[:, np.broadcast_to(key_lengths, batch)[b]:] = True
        scores[hide] = -np.inf
        sink = dtype.type(-np.inf if sinks is None else sinks[h])
        peak = np.maximum(scores.max(1, initial=-np.inf), sink)
        shift = np.where(np.isfinite(peak), peak, 0).astype(dtype)
        with np.errstate(all="ignore"):
            weights, last = np.exp(scores - shift[:, None]), np.exp(sink - shift)
            total = weights.sum(1) + last
            lse = shift + np.log(total)
            surprise = np.where(weights > 0, weights * (lse[:, None] - scores), 0).sum(1)
            surprise += np.where(last > 0, last * (lse - sink), 0)
            seen = total > 0
            out[b, h] = np.where(seen[:, None], weights @ value[b, head] / total[:, None], 0)
            average = (weights @ abs(value[b, head]) / total[:, None]).max(1, initial=0)
            rows[:, b, h] = (lse, np.where(seen, surprise / total, 0), np.where(seen, average, 0),
                             np.where(weights > 0, sizes, 0).max(1, initial=abs(sink) if np.isfinite(sink) else 0))
    return out, rows[0], rows[1], np.moveaxis(rows[2:], 0, -1)


def assert_attention_accurate(got, exact, plain):
    """Results (out, lse, entropy) at most 2 ULP worse than those of the plain computation in the same arithmetic.

    Units are those of the numbers that rounding acts upon, since averages of values of both signs cancel, and an error
    in a score is one in the weight's logarithm: for outputs, the average magnitude of the values times one more than
    the magnitude of the scores; for lse and entropy, the magnitude of the scores. Of the plain computation the largest
    error in the array counts. 16-bit results: as rounded from a float32 with such an error; where the kernels round
    weights to bfloat16, with that error beside.
    """
    *plain, sizes = plain
    average, scores = (sizes[..., i].astype(exact[0].dtype) for i in (0, 1))
    statistics = np.maximum(1, scores + np.where(np.isfinite(exact[1]), abs(exact[1]), 0))
    rounded = np.asarray(got[0]).dtype == ml_dtypes.bfloat16
    more = weight_rounding() * average[..., None] if rounded else 0
    sizes = (average * (1 + scores))[..., None], statistics, statistics
    for one, true, rough, units, beside in zip(got, exact, plain, sizes, (more, 0, 0), strict=True):
        arithmetic = np.float64 if np.asarray(one).dtype == np.float64 else np.float32
        assert rough.dtype == arithmetic
        with np.errstate(all="ignore"):
            units = np.maximum(units, abs(true))
            error = abs(rough.astype(true.dtype) - true) / np.spacing(units.astype(arithmetic))
        assert_accurate(one, true, 2 + float(error.max(initial=0, where=np.isfinite(error))), units, beside)


pytest_config = None                    # pytest's, set by conftest.py


class _RegisteringMarks:
    """pytest.mark, where a mark that nobody has registered is registered when it is first used."""

    def __init__(self, marks):
        self._marks = marks

    def __getattr__(self, name):
        registered = {line.split(":")[0].split("(")[0].strip() for line in pytest_config.getini("markers")}
        if name not in registered:
            pytest_config.addinivalue_line("markers", f"{name}: used by a test suite that is not ours")
        return getattr(self._marks, name)


@contextlib.contextmanager
def foreign_marks():
    """While a test module of another project is imported: its marks are registered, whatever their names are.

    Which marks it has changes from release to release, and only that project's conftest.py knows them. --strict-markers
    remains for our own tests.
    """
    marks = pytest.mark
    pytest.mark = _RegisteringMarks(marks)
    try:
        yield
    finally:
        pytest.mark = marks


def python(code, **env):
    """Run `code` in a fresh Python with none but the given variables of ours set."""
    clean = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    paths = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": paths, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def printed(code, **env):
    done = python(code, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
