"""pytest-benchmark of the softmax family: a group per function and shape, a bar per library.

One thread each, because the libraries share a process here; `compare.py` is the measurement to quote.
"""

import functools
import timeit

import libraries
import pytest
import shapes

CASES = shapes.select()


@functools.cache
def library(name):
    """The library, imported once; a reason instead where it is absent."""
    cls = libraries.LIBRARIES[name]
    if gone := libraries.missing(cls):
        raise libraries.UnavailableError(f"{gone} is not installed")
    return cls(libraries.THREADS_IN_ONE_PROCESS)


@pytest.mark.parametrize("name", libraries.LIBRARIES)
@pytest.mark.parametrize(("family", "shape"), CASES, ids=[f"{family}-{shape.name}" for family, shape in CASES])
def test_speed(benchmark, family, shape, name):
    try:
        statement, space = library(name).call(family, shape)
        call = eval(f"lambda: {statement}", space)
        seconds = timeit.timeit(call, number=1)
    except Exception as reason:  # a kernel of a peer may be missing for a dtype: shown as skipped, with its words
        if name == "fastsoftmax" and not isinstance(reason, libraries.UnavailableError):
            raise
        pytest.skip(f"{name}: {reason}".partition("\n")[0])
    benchmark.group = f"{family}: {shape.name} {shape.shape} {shape.dtype}"
    rounds, calls = (20, 200) if shape.small else (3, 1) if seconds < 0.3 else (1, 1)
    benchmark.pedantic(call, rounds=rounds, iterations=calls, warmup_rounds=int(seconds < 0.3))
