"""Every kernel of every (dtype, instruction set) that this CPU can run, against `fastsoftmax.reference`.

The reference computes in a wider type than the kernel's. Errors are counted in ULP; `BOUNDS` and `ATTENTION_BOUNDS` are
the largest that pass.
"""

import contextlib
import functools
import importlib
import importlib.util
import itertools
from typing import NamedTuple

import numpy as np

import fastsoftmax
from fastsoftmax import _dispatch, _softmax, reference

# Bits of the significand, and the exponent of the smallest subnormal.
PRECISION = {"f32": (24, -149), "f64": (53, -1074), "f16": (11, -24), "bf16": (8, -133)}
SPREADS = {"f32": (0.1, 5, 80), "f64": (0.1, 5, 700), "f16": (0.1, 5, 15), "bf16": (0.1, 5, 80)}
BOUNDS = {  # ULP
    "softmax": 2, "log_softmax": 2, "causal_softmax": 2, "logsumexp": 1.5, "softmax_entropy": 4, "causal_mask_": 0,
}
ROUNDED = 0.51  # for the 16-bit types: half a unit, and a little for the float32 computation before it
ROUNDED_WEIGHTS = 1.5  # where kernels also round weights of attention to bfloat16: a unit more
LENGTHS = (*range(1, 36), 63, 64, 65, 127, 200, 1021)  # each tail of each vector width


class Case(NamedTuple):
    """One call: a function's name, its array, its other arguments, and which results must be exactly zero."""

    function: str
    x: np.ndarray
    kwargs: dict
    zeros: np.ndarray | None = None


def dtype_of(tag):
    """(NumPy dtype, None), or (None, why this dtype cannot be checked here)."""
    if tag == "f64" and np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant:
        return None, "long double is no wider than double here"
    if tag != "bf16":
        return np.dtype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[tag]), None
    if importlib.util.find_spec("ml_dtypes") is None:
        return None, "ml_dtypes is not installed"
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16), None


def logits(rng, shape, spread, dtype):
    """Numbers within `spread` of each other, around a random centre, in `dtype`."""
    return (rng.uniform(-spread / 2, spread / 2, shape) + rng.normal()).astype(dtype)


def cases(tag, dtype):
    """Calls of the softmax family: lengths and tails, spreads, axes, strides, temperatures, `where`, causal."""
    rng = np.random.default_rng(2)
    data = functools.partial(logits, rng, dtype=dtype)
    along = ("softmax", "log_softmax", "logsumexp", "softmax_entropy")
    wide = SPREADS[tag][1]
    for spread, n, f in itertools.product(SPREADS[tag], LENGTHS, along):
        yield Case(f, data((3, n), spread), {"axis": -1})
    for n, f in itertools.product((2, 5, 10, 17, 64), along):
        yield Case(f, data((301, n), wide), {"axis": -1})
    for n, f in itertools.product((2, 9, 100), along):
        yield Case(f, data((3, n, 37), wide), {"axis": 1})
        yield Case(f, data((n, 2, 70), wide)[::-1, :, ::2], {"axis": 0})
        yield Case(f, data((4, n, 3), wide), {"axis": (0, 2)})
    for f in along:
        yield Case(f, data((1, 40009), wide), {"axis": -1})
    yield from cases_with_arguments(rng, data, wide)


def cases_with_arguments(rng, data, spread):
    """Temperatures that are powers of two (the others add rounding of their own), `where`, and the causal functions."""
    rows = np.array([0.25, 0.5, 1, 2, 4])[:, None]
    for f, temperature in itertools.product(("softmax", "log_softmax", "softmax_entropy"), (0.5, 2.0, rows)):
        yield Case(f, data((5, 67), spread), {"axis": -1, "temperature": temperature})
    for f, axis in itertools.product(("softmax", "log_softmax", "logsumexp", "softmax_entropy"), (-1, 1)):
        x, where = data((4, 37, 21), spread), rng.random((4, 37, 21)) < 0.6
        where[0] = False  # rows with nothing to see
        x[~where] = np.nan  # must not be read into any result
        yield Case(f, x, {"axis": axis, "where": where}, ~where if f == "softmax" else None)
    for (length, keys), offset in itertools.product([(37, 37), (20, 70)], (-3, 0, 5, 50)):
        x, hidden = data((2, length, keys), spread), ~np.tri(length, keys, offset, dtype=bool)
        hidden = np.broadcast_to(hidden, x.shape)
        yield Case("causal_mask_", x.copy(), {"offset": offset})
        x[hidden] = np.nan
        yield Case("causal_softmax", x, {"offset": offset}, hidden)
        yield Case("causal_softmax", x, {"offset": offset, "temperature": 0.5}, hidden)


def wider(x):
    """The array in a type in which the reference is an oracle."""
    return x.astype(np.longdouble if x.dtype == np.float64 else np.float64)


def oracle(case):
    """(exact result, magnitude whose units its error is counted in).

    The magnitude is the result's own; for a logsumexp that cancels to near 0, that of log(sum exp(x - max)).
    """
    x = wider(case.x)
    exact = np.asarray(getattr(reference, case.function)(x.copy(), **case.kwargs))
    if case.function != "logsumexp":
        return exact, np.abs(exact)
    seen = np.where(case.kwargs.get("where", True), x, -np.inf)
    row_max = seen.max(axis=case.kwargs["axis"])
    rest = np.where(np.isfinite(row_max), exact - np.where(np.isfinite(row_max), row_max, 0), 0)
    return exact, np.maximum(np.abs(exact), rest)


def error(got, exact, magnitude, tag):
    """The largest error in units in the last place of the type; infinite if a NaN or infinity is in the wrong place."""
    digits, quantum = PRECISION[tag]
    got, finite = np.asarray(got).astype(exact.dtype), np.isfinite(exact)
    if got.shape != exact.shape or not np.array_equal(got[~finite], exact[~finite], equal_nan=True):
        return np.inf
    size = magnitude[finite]
    exponent = np.where(size > 0, np.frexp(size)[1] - digits, quantum)
    unit = np.ldexp(exact.dtype.type(1), np.maximum(exponent, quantum))
    errors = np.abs(got[finite] - exact[finite]) / unit
    return np.inf if np.isnan(errors).any() else float(errors.max(initial=0))


def check(case, answer, tag):
    """The error of one call in ULP; infinite if a place that must be zero is not."""
    x = case.x.copy(order="K") if case.function == "causal_mask_" else case.x
    got = getattr(fastsoftmax, case.function)(x, **case.kwargs)
    if case.zeros is not None and np.any(np.asarray(got)[case.zeros] != 0):
        return np.inf
    return error(got, *answer, tag)


def checkable():
    """The (tag, dtype) pairs that can be checked here; prints the reason for each of the others."""
    for tag in _dispatch.DTYPES:
        dtype, reason = dtype_of(tag)
        if dtype is None:
            print(f"{tag:<20}  not checked: {reason}")
        else:
            yield tag, dtype


def check_kernels(pairs, tag, isa):
    """Check one dtype under one instruction set, print its line, return how many functions are out of bounds."""
    worst = dict.fromkeys(BOUNDS, 0.0)
    with _dispatch.using(isa):
        for stores in (contextlib.nullcontext(), _softmax.nontemporal_from(1)):  # then for results of every size
            with stores:
                for case, answer in pairs:
                    worst[case.function] = max(worst[case.function], check(case, answer, tag))
    rounded = tag in ("f16", "bf16")
    return print_errors(tag, isa, worst, {f: min(bound, ROUNDED) if rounded else bound for f, bound in BOUNDS.items()})


def print_errors(tag, isa, worst, bounds, width=17):
    """Print the line of one dtype and instruction set; return how many of its errors are out of bounds."""
    failed = {name for name, bound in bounds.items() if not worst[name] <= bound}
    numbers = {name: f"{ulp:.3f}" if ulp < 1000 else f"{ulp:.2g}" for name, ulp in worst.items()}
    cells = ["FAIL " * (name in failed) + number for name, number in numbers.items()]
    print(f"{tag + ' ' + isa:<20}" + "".join(f"{cell:>{width}}" for cell in cells), flush=True)
    return len(failed)


# An output is a mean of values. Its error has two parts: that of the weights, which grows with the scores, and that of
# the sum. Both are proportional to the mean of abs(value), and so are the units in which it is counted here.
ATTENTION_BOUNDS = {"sizes": 24, "long": 24, "decoding": 24, "options": 24, "lse": 8, "entropy": 24}  # ULP


class AttentionCase(NamedTuple):
    """One call of scaled_dot_product_attention, and the column that its error belongs to."""

    column: str
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    options: dict


def attention_cases(dtype):
    """Calls of attention: sizes and tails, several blocks of keys, one query, each option and many at once."""
    rng = np.random.default_rng(3)
    arrays = functools.partial(queries_keys_values, rng, dtype)
    for length, keys, head_dim in itertools.product((1, 2, 9, 35), (1, 7, 65, 130), (1, 8, 33)):
        yield AttentionCase("sizes", *arrays(1, 2, 2, length, keys, head_dim), {})
    for head_dim in (64, 128):
        yield AttentionCase("long", *arrays(1, 2, 1, 131, 300, head_dim), {})
        yield AttentionCase("long", *arrays(1, 2, 2, 300, 300, head_dim), {"is_causal": True})
    for keys, shared_by in itertools.product((1, 50, 700), (1, 4)):
        yield AttentionCase("decoding", *arrays(2, 2 * shared_by, 2, 1, keys, 64), {"enable_gqa": shared_by > 1})
    yield from attention_cases_with_options(rng, dtype)


def queries_keys_values(rng, dtype, batch, heads, key_heads, queries, keys, head_dim):
    """Normal deviates of shape (B, L, H, E), as a projection returns them, viewed as (B, H, L, E)."""
    sizes = ((queries, heads), (keys, key_heads), (keys, key_heads))
    return [rng.normal(size=(batch, *size, head_dim)).astype(dtype).swapaxes(1, 2) for size in sizes]


def attention_cases_with_options(rng, dtype):
    """Each option alone, then all at once. Keys beyond `key_lengths` are NaN; one batch entry has none but these."""
    visible = rng.random((3, 1, 37, 70)) < 0.5
    visible[1, 0, :5] = False
    floats = np.where(rng.random((37, 70)) < 0.9, rng.normal(size=(37, 70)), -np.inf).astype(dtype)
    options = {
        "attn_mask": visible, "bias": floats, "window": (20, 3), "softcap": 2.5,
        "scale": np.array([0.1, 0.2, 0.3, 0.4]), "alibi_slopes": np.array([0.5, 0.25, 0.125, 0.0625]),
        "sinks": np.array([-1.0, 0.0, 1.0, 2.0]),
        "causal_offset": np.array([33, 0, -5]), "key_lengths": np.array([70, 41, 0]),
    }
    sets = [{"is_causal": True}, {"attn_mask": floats}, *({name: value} for name, value in options.items()), options]
    for chosen, length in itertools.product(sets, (37, 1)):
        query, key, value = queries_keys_values(rng, dtype, 3, 4, 2, length, 70, 24)
        rows = {name: chosen[name][..., :length, :] for name in ("attn_mask", "bias") if name in chosen}
        if "key_lengths" in chosen:
            cut = np.broadcast_to(np.arange(70) >= options["key_lengths"][:, None, None], key.shape[:3])
            key[cut] = value[cut] = np.nan
        causal = {"is_causal": True} if "causal_offset" in chosen else {}
        yield AttentionCase("options", query, key, value, {**chosen, **rows, **causal, "enable_gqa": True})


STATISTICS = {"return_lse": True, "return_entropy": True}


def attention_oracle(case):
    """(exact result, exact lse, exact entropy, mean of abs(value))."""
    query, key, value = (wider(x) for x in case[1:4])
    exact = reference.scaled_dot_product_attention(query, key, value, **case.options, **STATISTICS)
    return *exact, reference.scaled_dot_product_attention(query, key, np.abs(value), **case.options)


def attention_errors(case, answer, tag):
    """The errors of one call, by column: of its result, its lse and its entropy."""
    got = fastsoftmax.scaled_dot_product_attention(*case[1:4], **case.options, **STATISTICS)
    exact, lse, entropy, magnitude = answer
    numbers = "f64" if tag == "f64" else "f32"
    return {
        case.column: error(got[0], exact, magnitude, tag),
        "lse": error(got[1], lse, np.maximum(np.abs(lse), 1), numbers),
        "entropy": error(got[2], entropy, np.maximum(entropy, 1), numbers),
    }


def check_attention(pairs, tag, isa):
    """Check attention in one dtype under one instruction set, print its line, return how many errors are too large."""
    worst = dict.fromkeys(ATTENTION_BOUNDS, 0.0)
    with _dispatch.using(isa):
        for case, answer in pairs:
            for column, ulp in attention_errors(case, answer, tag).items():
                worst[column] = max(worst[column], ulp)
    rounded = {} if tag in ("f32", "f64") else dict.fromkeys(("sizes", "long", "decoding", "options"), ROUNDED)
    with _dispatch.using(isa):
        if _dispatch.kernels(tag).weight_error == 2.0**-8:      # of weights rounded to bfloat16
            rounded |= dict.fromkeys(("sizes", "long", "options"), ROUNDED_WEIGHTS)
    return print_errors(tag, isa, worst, {**ATTENTION_BOUNDS, **rounded})


def check_all():
    """Check all dtypes under all instruction sets; print the largest errors; return the number of failures."""
    print(f"\nSelf-check: largest error in ULP\n{'':<20}" + "".join(f"{name:>17}" for name in BOUNDS))
    failures = 0
    for tag, dtype in checkable():
        pairs = [(case, oracle(case)) for case in cases(tag, dtype)]
        for isa in _dispatch.supported_by(tag):
            failures += check_kernels(pairs, tag, isa)
    print("\nAttention: largest error in ULP of the mean of abs(value), of lse and entropy in ULP of at least 1")
    print(f"{'':<20}" + "".join(f"{name:>17}" for name in ATTENTION_BOUNDS))
    for tag, dtype in checkable():
        pairs = [(case, attention_oracle(case)) for case in attention_cases(dtype)]
        for isa in _dispatch.supported_by(tag):
            failures += check_attention(pairs, tag, isa)
    return failures
