"""``python -m fastsoftmax``: what is installed, whether it is right, what it is for, and how fast it is.

1. The configuration: version, compiler, instruction sets, threads and why that many, OpenMP runtime.
2. A self-check: every kernel of every (dtype, ISA) this CPU can run, against `fastsoftmax.reference` in a wider type.
3. Softmax on real text: what the function is for, and what the temperature does.
4. Speed against NumPy as one writes it, and against SciPy, PyTorch and ONNX Runtime where they are installed.

Softmax comes first in each part, then attention.

The exit status is 1 if a check fails.
"""

import contextlib
import functools
import importlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import timeit
from collections import Counter
from typing import NamedTuple

import numpy as np

import fastsoftmax
from fastsoftmax import _dispatch, _front, _threads, reference
from fastsoftmax._selfcheck import numpy_baseline

# ---- 1. configuration -----------------------------------------------------------------------------------------------


def print_configuration():
    """What `fastsoftmax.show_config` knows, a line each."""
    config = fastsoftmax.show_config(mode="dicts")
    openmp = config["openmp"] or {}
    lines = {
        "fastsoftmax": f"{config['version']}, NumPy {np.__version__}, Python {sys.version.split()[0]}",
        "compiler": config["compiler"],
        "instruction sets": f"in use {config['isa']}; supported by this CPU {', '.join(config['isa_available'])}; "
        f"built {', '.join(config['isa_built'])}",
        "threads": f"{config['threads']}: {config['threads_why']}",
        "OpenMP": " ".join(str(openmp[key]) for key in ("runtime", "path") if openmp.get(key)) or "none",
    }
    for name, text in lines.items():
        print(f"{name:<17} {text}")


# ---- 2. self-check --------------------------------------------------------------------------------------------------

# Bits of the significand, and the exponent of the smallest subnormal.
PRECISION = {"f32": (24, -149), "f64": (53, -1074), "f16": (11, -24), "bf16": (8, -133)}
SPREADS = {"f32": (0.1, 5, 80), "f64": (0.1, 5, 700), "f16": (0.1, 5, 15), "bf16": (0.1, 5, 80)}
BOUNDS = {  # ULP
    "softmax": 2, "log_softmax": 2, "causal_softmax": 2, "logsumexp": 1.5, "softmax_entropy": 4, "causal_mask_": 0,
}
ROUNDED = 0.51  # for the 16-bit types: half a unit, and a little for the float32 computation before it
LENGTHS = (*range(1, 36), 63, 64, 65, 127, 200, 1021)  # every tail of every vector width


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
    """What every kernel is tried on: lengths and tails, spreads, axes, strides, temperatures, `where`, causal."""
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
    top = seen.max(axis=case.kwargs["axis"])
    rest = np.where(np.isfinite(top), exact - np.where(np.isfinite(top), top, 0), 0)
    return exact, np.maximum(np.abs(exact), rest)


def error(got, exact, magnitude, tag):
    """The largest error in units in the last place of the type; infinite where nan or inf stand in the wrong place."""
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


def self_check():
    """Check all dtypes under all instruction sets; print the largest errors; return the number of failures."""
    print(f"\nSelf-check: largest error in ULP\n{'':<18}" + "".join(f"{name:>17}" for name in BOUNDS))
    failures = 0
    for tag, dtype in checkable():
        pairs = [(case, oracle(case)) for case in cases(tag, dtype)]
        for isa in _dispatch.supported():
            failures += check_kernels(pairs, tag, isa)
    print("\nAttention: largest error in ULP of the mean of abs(value), of lse and entropy in ULP of at least 1")
    print(f"{'':<18}" + "".join(f"{name:>17}" for name in ATTENTION_BOUNDS))
    for tag, dtype in checkable():
        pairs = [(case, attention_oracle(case)) for case in attention_cases(dtype)]
        for isa in _dispatch.supported():
            failures += check_attention(pairs, tag, isa)
    print("every check passed" if not failures else f"{failures} CHECKS FAILED")
    return failures


def checkable():
    """The (tag, dtype) pairs that can be checked here; for the others it says why not."""
    for tag in _dispatch.DTYPES:
        dtype, reason = dtype_of(tag)
        if dtype is None:
            print(f"{tag:<18}  not checked: {reason}")
        else:
            yield tag, dtype


@contextlib.contextmanager
def streaming():
    """Results of any size are written past the caches, as otherwise only those are that no cache holds."""
    module = sys.modules["fastsoftmax.softmax"]  # the name in the package is the function
    before = module._STREAM_FROM
    try:
        module._STREAM_FROM = 1
        _front.configure(_threads.threads_for, 1)
        yield
    finally:
        module._STREAM_FROM = before
        _front.configure(_threads.threads_for, before)


def check_kernels(pairs, tag, isa):
    """Check one dtype under one instruction set, print its line, return how many functions are out of bounds."""
    worst = dict.fromkeys(BOUNDS, 0.0)
    with _dispatch.using(isa):
        for stores in (contextlib.nullcontext, streaming):
            with stores():
                for case, answer in pairs:
                    worst[case.function] = max(worst[case.function], check(case, answer, tag))
    rounded = tag in ("f16", "bf16")
    return print_errors(tag, isa, worst, {f: min(bound, ROUNDED) if rounded else bound for f, bound in BOUNDS.items()})


def print_errors(tag, isa, worst, bounds):
    """The line of one dtype and instruction set; how many of its errors are out of bounds."""
    failed = {name for name, bound in bounds.items() if not worst[name] <= bound}
    numbers = {name: f"{ulp:.3f}" if ulp < 1000 else f"{ulp:.2g}" for name, ulp in worst.items()}
    cells = ["FAIL " * (name in failed) + number for name, number in numbers.items()]
    print(f"{tag + ' ' + isa:<18}" + "".join(f"{cell:>17}" for cell in cells), flush=True)
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
    """What every kernel is tried on: sizes and tails, several blocks, one query, each option and many at once."""
    rng = np.random.default_rng(3)
    arrays = functools.partial(queries_keys_values, rng, dtype)
    for length, keys, width in itertools.product((1, 2, 9, 35), (1, 7, 65, 130), (1, 8, 33)):
        yield AttentionCase("sizes", *arrays(1, 2, 2, length, keys, width), {})
    for width in (64, 128):
        yield AttentionCase("long", *arrays(1, 2, 1, 131, 300, width), {})
        yield AttentionCase("long", *arrays(1, 2, 2, 300, 300, width), {"is_causal": True})
    for keys, group in itertools.product((1, 50, 700), (1, 4)):
        yield AttentionCase("decoding", *arrays(2, 2 * group, 2, 1, keys, 64), {"enable_gqa": group > 1})
    yield from attention_cases_with_options(rng, dtype)


def queries_keys_values(rng, dtype, batch, heads, key_heads, queries, keys, width):
    """Normal deviates, as views with the heads in the last dimension but one, as a projection leaves them."""
    sizes = ((queries, heads), (keys, key_heads), (keys, key_heads))
    return [rng.normal(size=(batch, *size, width)).astype(dtype).swapaxes(1, 2) for size in sizes]


def attention_cases_with_options(rng, dtype):
    """Each option alone, then all at once; what `key_lengths` cuts off is NaN, and of one entry that is all."""
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
    return print_errors(tag, isa, worst, {**ATTENTION_BOUNDS, **rounded})


# ---- 3. real text ---------------------------------------------------------------------------------------------------

TEMPERATURES = (0.5, 1.0, 2.0)


def trigram_logits():
    """Next-character logits from Python's own help texts.

    Returns
    -------
    alphabet : list of str
        K characters.
    contexts : dict
        From two characters to their row.
    table : (C, K) float32 array
        log(count + 0.01): how often each character follows each context, as scores.
    """
    from pydoc_data import topics

    text = " ".join(" ".join(topics.topics.values()).split())
    alphabet = sorted(set(text))
    contexts = {pair: row for row, pair in enumerate(sorted({a + b for a, b in itertools.pairwise(text)}))}
    column = {character: k for k, character in enumerate(alphabet)}
    counts = np.zeros((len(contexts), len(alphabet)), np.float32)
    for trigram, count in Counter(a + b + c for a, b, c in zip(text, text[1:], text[2:], strict=False)).items():
        counts[contexts[trigram[:2]], column[trigram[2]]] = count
    return alphabet, contexts, np.log(counts + np.float32(0.01))


def sample(weights, alphabet, contexts, start="th", length=70):
    """A line of text: each character is drawn from the weights of the two before it; a dead end starts again."""
    rng, text = np.random.default_rng(7), start
    cumulative = weights.astype(np.float64).cumsum(axis=-1)
    while len(text) < length:
        row = cumulative[contexts.get(text[-2:], contexts[start])]
        text += alphabet[min(np.searchsorted(row, rng.random() * row[-1], side="right"), len(alphabet) - 1)]
    return text


def print_text():
    """Softmax over the whole table at three temperatures, and what it does to a line of text."""
    alphabet, contexts, table = trigram_logits()
    print(
        f"\nReal text: scores log(count + 0.01) for the next character, counted in Python's own help texts, for\n"
        f"{table.shape[0]} contexts of two characters x {table.shape[1]} characters. softmax makes of each row a "
        "distribution to draw from:\na low temperature keeps to the likely, a high one wanders."
    )
    for temperature in TEMPERATURES:
        weights = fastsoftmax.softmax(table, axis=-1, temperature=temperature)
        entropy = fastsoftmax.softmax_entropy(table, axis=-1, temperature=temperature).mean()
        print(f"temperature {temperature:<4} mean entropy {entropy:.3f} nats   {sample(weights, alphabet, contexts)}")


# ---- 4. speed -------------------------------------------------------------------------------------------------------

LIBRARIES = {
    "fastsoftmax": "fastsoftmax", "NumPy": "numpy", "SciPy": "scipy", "PyTorch": "torch", "ONNX Runtime": "onnxruntime",
}
WORK = (  # what it stands for, function, shape, axis, dtype
    ("ten numbers", "softmax", (10,), -1, "float32"),
    ("GPT-2 vocabulary row", "softmax", (50257,), -1, "float32"),
    ("Llama-3 vocabulary row", "softmax", (128256,), -1, "float32"),
    ("ImageNet classes", "softmax", (1024, 1000), -1, "float32"),
    ("ImageNet classes", "log_softmax", (1024, 1000), -1, "float32"),
    ("ImageNet classes", "logsumexp", (1024, 1000), -1, "float32"),
    ("ImageNet classes", "softmax", (1024, 1000), -1, "float64"),
    ("attention scores", "softmax", (12, 512, 512), -1, "float32"),
    ("attention scores", "causal_softmax", (12, 512, 512), -1, "float32"),
    ("narrow classifier", "softmax", (100000, 10), -1, "float32"),
    ("channels of images", "softmax", (16, 128, 56, 56), 1, "float32"),
    ("BERT text", "attention", (1, 12, 12, 512, 512, 64), -1, "float32"),  # (B, Hq, Hk, L, S, E)
    ("BERT text", "causal attention", (1, 12, 12, 512, 512, 64), -1, "float32"),
    ("4096 keys cached", "attention", (1, 32, 8, 1, 4096, 128), -1, "float32"),
)
ROUNDS, TURN = 3, 0.02  # seconds


def ours_call(function, x, axis, threads):
    fastsoftmax.set_num_threads(threads)
    f = getattr(fastsoftmax, function)
    return (lambda: f(x)) if function == "causal_softmax" else (lambda: f(x, axis))


def numpy_call(function, x, axis, threads):
    f = getattr(numpy_baseline, function)
    if function == "causal_softmax":
        hidden = ~np.tri(*x.shape[-2:], dtype=bool)
        return lambda: f(x, hidden)
    return lambda: f(x, axis)


def scipy_call(function, x, axis, threads):
    from scipy import special

    if function == "causal_softmax":
        hidden = ~np.tri(*x.shape[-2:], dtype=bool)
        return lambda: special.softmax(np.where(hidden, -np.inf, x), -1)
    f = getattr(special, function)
    return lambda: f(x, axis)


def torch_call(function, x, axis, threads):
    import torch

    torch.set_num_threads(threads)
    tensor = torch.from_numpy(x)
    if function == "causal_softmax":
        hidden = torch.from_numpy(~np.tri(*x.shape[-2:], dtype=bool))
        return lambda: torch.softmax(tensor.masked_fill(hidden, -np.inf), -1)
    f = getattr(torch, function)
    return lambda: f(tensor, axis)


def onnxruntime_call(function, x, axis, threads):
    axis %= x.ndim
    if function == "logsumexp":
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        return onnxruntime_run(b"ReduceLogSumExp", {"axes": [axis], "keepdims": 0}, {"x": x}, shape, threads)
    operator = {"softmax": b"Softmax", "log_softmax": b"LogSoftmax"}[function]
    return onnxruntime_run(operator, {"axis": axis}, {"x": x}, x.shape, threads)


def onnxruntime_run(operator, attributes, inputs, shape, threads):
    """The call of a model of one operator."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    model = onnx_model(operator, attributes, inputs, shape)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def field(number, value):
    """One field of a protobuf message: an int, or the bytes of a string or of a message."""
    if isinstance(value, int):
        return bytes([number << 3]) + varint(value)
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def varint(value):
    """A number as protobuf writes it: seven bits a byte, lowest first."""
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def onnx_model(operator, attributes, inputs, shape):
    """A model of one operator, in ONNX's protobuf by hand, so that the `onnx` package is not needed.

    The numbers are those of onnx.proto3: a model holds ir_version (1), graph (7) and opset (8); a graph nodes (1),
    name (2), inputs (11) and outputs (12); a node inputs (1), outputs (2), operator (4) and attributes (5).
    """
    names = {name.encode(): x for name, x in inputs.items()}
    node = b"".join(field(1, name) for name in names) + field(2, b"y") + field(4, operator)
    node += b"".join(field(5, attribute(name.encode(), value)) for name, value in attributes.items())
    graph = field(1, node) + field(2, b"g")
    graph += b"".join(field(11, onnx_value(name, x.shape, x.dtype)) for name, x in names.items())
    graph += field(12, onnx_value(b"y", shape, next(iter(inputs.values())).dtype))
    opset = 23 if operator == b"Attention" else 17
    return field(1, 10 if opset == 23 else 8) + field(7, graph) + field(8, field(1, b"") + field(2, opset))


def attribute(name, value):
    """Name (1), an integer (3) or integers (8), and the type (20) 2 or 7; the number 20 takes two bytes."""
    numbers, kind = (field(3, value), 2) if isinstance(value, int) else (b"".join(field(8, v) for v in value), 7)
    return field(1, name) + numbers + varint(20 << 3) + varint(kind)


def onnx_value(name, shape, dtype):
    """A graph's input or output: name (1), type (2) of tensor (1) with element type (1) and shape (2) of sizes."""
    sizes = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, {"float32": 1, "float64": 11}[dtype.name]) + field(2, sizes)))


CALLS = dict(zip(LIBRARIES, (ours_call, numpy_call, scipy_call, torch_call, onnxruntime_call), strict=True))


def ours_attention(query, key, value, causal, threads):
    fastsoftmax.set_num_threads(threads)
    f = fastsoftmax.scaled_dot_product_attention
    return lambda: f(query, key, value, is_causal=causal, enable_gqa=True)


def numpy_attention(query, key, value, causal, threads):
    hidden = ~np.tri(query.shape[2], key.shape[2], dtype=bool) if causal else None
    return lambda: numpy_baseline.scaled_dot_product_attention(query, key, value, hidden)


def torch_attention(query, key, value, causal, threads):
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    tensors, f = [torch.from_numpy(x) for x in (query, key, value)], torch.nn.functional.scaled_dot_product_attention
    return lambda: f(*tensors, is_causal=causal, enable_gqa=query.shape != key.shape)


def onnxruntime_attention(query, key, value, causal, threads):
    inputs = {"q": query, "k": key, "v": value}
    return onnxruntime_run(b"Attention", {"is_causal": int(causal)}, inputs, query.shape, threads)


ATTENTION_CALLS = {
    "fastsoftmax": ours_attention, "NumPy": numpy_attention, "PyTorch": torch_attention,
    "ONNX Runtime": onnxruntime_attention,
}


def worker(name, threads):
    """The child process: on each line of input, an entry of WORK, it computes for a turn and says seconds per call."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints is not to be taken for an answer
    timer = functools.cache(lambda entry: prepare(name, threads, entry))
    print(importlib.import_module(LIBRARIES[name]).__version__, file=pipe, flush=True)
    for line in sys.stdin:
        try:
            seconds = turn(*timer(json.loads(line)))
        except Exception as reason:  # what a library cannot do is shown as n/a
            seconds = None
            print(f"{name}: {reason}", file=sys.stderr)
        print(json.dumps(seconds), file=pipe, flush=True)


def prepare(name, threads, entry):
    """A warm timer for one entry of WORK, and how many calls make about a millisecond."""
    _, function, shape, axis, dtype = WORK[entry]
    rng = np.random.default_rng(2)
    if function.endswith("attention"):
        arrays = (np.ascontiguousarray(x) for x in queries_keys_values(rng, dtype, *shape))
        call = ATTENTION_CALLS[name](*arrays, function.startswith("causal"), threads)
    else:
        call = CALLS[name](function, rng.standard_normal(shape).astype(dtype), axis, threads)
    timer = timeit.Timer(call)
    timer.timeit(2)
    return timer, max(1, int(1e-3 / timer.timeit(1)))


def turn(timer, number):
    """The median over a turn, in seconds per call."""
    times, end = [], time.perf_counter() + TURN
    while not times or time.perf_counter() < end:
        times.append(timer.timeit(number) / number)
    return statistics.median(times)


def start_worker(name, threads):
    """(process, version), or (None, why not)."""
    if importlib.util.find_spec(LIBRARIES[name]) is None:
        return None, "absent"
    settings = {"OMP_NUM_THREADS": str(threads), "FASTSOFTMAX_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "fastsoftmax", "--worker", name, str(threads)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, env={**os.environ, **settings}, **pipes)
    version = process.stdout.readline().strip()
    return (process, version) if version else (None, "installed, but does not start")


def measure(processes, entry):
    """Seconds per call of each library on one entry of WORK, a list over rounds of alternating turns; n/a left out."""
    times = {name: [] for name in processes}
    for _, (name, process) in itertools.product(range(ROUNDS), processes.items()):
        time.sleep(0.005)  # the threads of the one before fall asleep
        try:
            print(entry, file=process.stdin, flush=True)
            times[name].append(json.loads(process.stdout.readline()))
        except (OSError, ValueError):  # it died
            times[name].append(None)
    return {name: taken for name, taken in times.items() if None not in taken}


def duration(seconds):
    """Three digits and a unit."""
    scale, unit = next(((s, u) for s, u in ((1e-6, "us"), (1e-3, "ms")) if seconds < 1000 * s), (1, "s"))
    return f"{seconds / scale:.3g} {unit}"


def row(entry, times):
    """One line of the table: our time, and how many times as long each other library takes."""
    what, function, shape, axis, dtype = WORK[entry]
    along = "" if axis == -1 else f" axis {axis}"
    line = f"{function:<17}{what:<23}{f'{shape}{along} {dtype}':<37}"
    if "fastsoftmax" not in times:
        return line + "FAILED"
    ours = times["fastsoftmax"]
    line += f"{duration(statistics.median(ours)):>11}"
    for name in list(LIBRARIES)[1:]:
        cell = "-"
        if name in times:
            cell = f"x {statistics.median(a / b for a, b in zip(times[name], ours, strict=True)):.2f}"
        line += f"{cell:>{len(name) + 4}}"
    return line


def print_speed():
    """The table of times, every library in a process of its own; return how often ours failed."""
    threads = fastsoftmax.get_num_threads()
    print(f"\nSpeed with {threads} threads at most: the time of our call, and how many times as long the others take")
    processes, failures = {}, 0
    try:
        for name in LIBRARIES:
            process, version = start_worker(name, threads)
            print(f"  {name}: {version}" + ", exp(x - max) / sum in the dtype of x" * (name == "NumPy"))
            if process:
                processes[name] = process
        print(f"{'':<77}{'fastsoftmax':>11}" + "".join(f"{name:>{len(name) + 4}}" for name in list(LIBRARIES)[1:]))
        for entry in range(len(WORK)):
            times = measure(processes, entry)
            failures += "fastsoftmax" not in times
            print(row(entry, times), flush=True)
        print("-: not installed, or has no such function")
    finally:
        for process in processes.values():
            with contextlib.suppress(BrokenPipeError):  # it died before
                process.stdin.close()
            process.wait()
    return failures


def main(arguments):
    """Run all four parts; the exit status."""
    if arguments[:1] == ["--worker"]:
        worker(arguments[1], int(arguments[2]))
        return 0
    if arguments:
        print(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    sys.stdout.reconfigure(errors="replace")  # the sampled text may hold characters that a terminal has not
    print_configuration()
    failures = self_check()
    print_text()
    failures += print_speed()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
