"""The sampling of every (dtype, instruction set) that this CPU can run, against `fastsoftmax.reference`.

Tokens and what filters keep must be the same; penalised logits and logits that stay are rounded once, and so are the
same numbers.
"""

import functools
import itertools

import numpy as np

import fastsoftmax
from fastsoftmax import _dispatch, reference
from fastsoftmax._dtypes import statistics_dtype
from fastsoftmax._selfcheck.accuracy import checkable, wider

FILTERS = (
    {}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.02}, {"typical_p": 0.6},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9, "temperature": 0.7},
)
LENGTHS = (1, 2, 17, 64, 65, 1021, 20_000)
COLUMNS = "tokens", "filtered logits", "penalised logits"
WIDTH = 19


def rows(rng, n, dtype):
    """(4, n): normal deviates of several spreads, and ties."""
    x = np.array([0.3, 1, 3, 6])[:, None] * rng.normal(size=(4, n))
    x[1] = np.round(x[1])
    return x.astype(dtype)


def cases(dtype):
    """(column, a function that computes, what it must return)."""
    rng = np.random.default_rng(5)
    for n, options in itertools.product(LENGTHS, FILTERS):
        x, uniform = rows(rng, n, dtype), rng.random(4)
        yield ("tokens", functools.partial(_public, "sample", x, uniform=uniform, **options),
               reference.sample(wider(x), uniform=uniform, **options))
        yield ("filtered logits", functools.partial(_public, "filter_logits", x, **options),
               reference._round(reference.filter_logits(wider(x), **options), x.dtype))
    for n in LENGTHS:
        x, tokens = rows(rng, n, dtype), rng.integers(0, n, (4, 100))
        options = {"repetition": 1.25, "frequency": 0.5, "presence": np.array([0, 0.25, -1, 2])}
        exact = reference.penalize_(x.astype(statistics_dtype(x.dtype)), tokens, **options)
        yield ("penalised logits", lambda x=x, tokens=tokens, options=options: _public(
            "penalize_", x.copy(), tokens, **options), exact.astype(x.dtype))


def _public(name, *arguments, **options):
    return getattr(fastsoftmax, name)(*arguments, **options)


def check(pairs, tag, isa):
    """Check one dtype under one instruction set, print its line, return how many columns have a difference."""
    found = dict.fromkeys(COLUMNS, 0)
    with _dispatch.using(isa):
        for column, call, expected in pairs:
            found[column] += int((call() != expected).sum())
    cells = ["FAIL " * (count > 0) + str(count) for count in found.values()]
    print(f"{tag + ' ' + isa:<20}" + "".join(f"{cell:>{WIDTH}}" for cell in cells), flush=True)
    return sum(count > 0 for count in found.values())


def check_all():
    """Check all dtypes under all instruction sets; print how many numbers differ; return the number of failures."""
    print("\nSampling: numbers that differ from the reference's")
    print(f"{'':<20}" + "".join(f"{name:>{WIDTH}}" for name in COLUMNS))
    failures = 0
    for tag, dtype in checkable():
        pairs = list(cases(dtype))
        for isa in _dispatch.supported_by(tag):
            failures += check(pairs, tag, isa)
    return failures
