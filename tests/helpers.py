"""What the tests share: the oracle, the distance in ULP, and the ways an array can lie in memory."""

import functools

import ml_dtypes
import numpy as np

from fastsoftmax import reference

NUMPY = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
ULP = {"softmax": 2.0, "log_softmax": 2.0, "logsumexp": 1.5}
FAMILY = tuple(ULP)


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


def assert_accurate(got, exact, ulp, extra=0.0, units=None):
    """`got` within `ulp` units in the last place of `exact`; 16-bit types: as rounded from a float32 with that error.

    `extra` is added to `ulp`; `units` is a quantity of which the larger ULP counts where the result cancels.
    """
    assert np.shape(got) == np.shape(exact)
    dtype = np.asarray(got).dtype
    arithmetic = np.float64 if dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        size = np.abs(exact) if units is None else np.maximum(np.abs(exact), np.abs(units))
        slack = (ulp + extra) * np.spacing(size.astype(arithmetic)).astype(exact.dtype)
        slack = np.where(np.isfinite(exact), slack, 0)
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
    units, extra = None, 0.0
    if function == "logsumexp":
        keepdims = kwargs.get("keepdims", False)
        high = np.asarray(x).astype(exact.dtype)
        if kwargs.get("where") is not None:
            high = np.where(kwargs["where"], high, -np.inf)
        with np.errstate(all="ignore"):
            units = np.nan_to_num(exact - high.max(axis, keepdims=keepdims, initial=-np.inf), nan=0, posinf=0, neginf=0)
    temperature = np.asarray(kwargs.get("temperature", 1.0), wide(np.asarray(x).dtype))
    if not np.all(np.frexp(temperature)[0] == 0.5):
        with np.errstate(all="ignore"):
            high = np.asarray(x).astype(exact.dtype)
            if kwargs.get("where") is not None:
                high = np.where(kwargs["where"], high, -np.inf)
            extra = np.nan_to_num(np.abs(high - high.max(axis, keepdims=True)) / temperature, posinf=0)
    assert_accurate(got, exact, ULP[function], extra, units)


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
