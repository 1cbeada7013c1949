"""Checks every function of every kernel that this CPU runs, in seconds: for emulators and wheels.

    python tests/smoke.py
    qemu-x86_64 -cpu Opteron_G1 "$(python -c 'import sys; print(sys.executable)')" tests/smoke.py

The second runs it on an early 64-bit CPU, without SSSE3 or anything newer (Debian's package qemu-user): an instruction
that stands in the wrong module ends it with SIGILL. Needs nothing but NumPy; says which instruction sets were used.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

import fastsoftmax
from fastsoftmax import _dispatch, reference

sys.path.append(str(Path(__file__).resolve().parent))   # python -P leaves it out
import functions  # noqa: E402

TOLERANCES = {np.float16: 2e-3, np.float32: 1e-6, np.float64: 1e-14}
ATTENTION = {       # few queries go another way than many
    "many queries": ((2, 4, 70, 40), {"is_causal": True}), "few queries": ((2, 4, 1, 40), {"key_lengths": [600, 77]}),
    "every option": ((2, 4, 50, 7), {
        "is_causal": True, "causal_offset": 550, "window": (300, 5), "softcap": 20.0, "sinks": [0.0, 1.0, 2.0, 3.0],
        "alibi_slopes": [0.1, 0.0, 0.2, 0.3], "key_lengths": [600, 77]}),
}


def check_samples(dtype):
    """Each sample of the table of functions, but for results' arrays (out, grad_into), which the reference has not."""
    for label, (name, sample) in functions.SAMPLES.items():
        sample = {key: argument for key, argument in sample.items()
                  if key != "grad_into" and not (isinstance(argument, functions.Operand) and argument.role == "out")}
        with fastsoftmax.num_threads(2):
            got = getattr(fastsoftmax, name)(**functions.arguments(sample, dtype))
        expected = getattr(reference, name)(**functions.arguments(sample, dtype, as_float64))
        for one, other in zip(functions.results(got), functions.results(expected), strict=True):
            tolerance = 3 * TOLERANCES.get(one.dtype.type, 0)       # some samples have a dtype of their own; tokens: 0
            np.testing.assert_allclose(one, other, tolerance, tolerance, err_msg=label)
    return len(functions.SAMPLES)


def as_float64(operand, values):
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def check_attention(dtype, tolerance, rng):
    for name, ((batch, heads, length, width), options) in ATTENTION.items():
        query = rng.normal(size=(batch, heads, length, width)).astype(dtype)
        key, value = rng.normal(size=(2, batch, 2, 600, width)).astype(dtype)
        with fastsoftmax.num_threads(2):
            got = fastsoftmax.scaled_dot_product_attention(query, key, value, enable_gqa=True, **options)
        wide = (a.astype(np.float64) for a in (query, key, value))
        expected = reference.scaled_dot_product_attention(*wide, enable_gqa=True, **options)
        np.testing.assert_allclose(got, expected, tolerance, tolerance, err_msg=name)
    return len(ATTENTION)


def main():
    rng = np.random.default_rng(0)
    checked = 0
    for isa in _dispatch.supported():
        with _dispatch.using(isa):
            for dtype, tolerance in TOLERANCES.items():
                for shape in ((1, 1), (5, 37), (40, 257), (3, 70_001)):
                    x = (rng.normal(size=shape) * 5).astype(dtype)
                    for name, axis in zip(functions.OF_SCORES, itertools.cycle((-1, 0)), strict=False):
                        with fastsoftmax.num_threads(2):
                            got = functions.of_scores(name, x, axis)
                        expected = functions.of_scores(name, x.astype(np.float64), axis, reference)
                        np.testing.assert_allclose(got, expected, tolerance, tolerance, err_msg=f"{name} {isa}")
                        checked += 1
                checked += check_attention(dtype, 3 * tolerance, rng) + check_samples(dtype)
    unsupported = [isa for isa in _dispatch.built() if isa not in _dispatch.supported()]
    print(f"fastsoftmax {fastsoftmax.__version__}: {checked} results right with {', '.join(_dispatch.supported())}; "
          f"not supported by this CPU: {', '.join(unsupported) or 'none'}")


if __name__ == "__main__":
    main()
