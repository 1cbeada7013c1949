"""The head of `pytest bench/`: every library with its version, or that it is absent; and the settings of its clock."""

import functools
import os
import timeit
from collections import Counter

import peers
import pytest
from peers.common import UnavailableError, checked
from standalone import turns

THREADS = 1  # with more, the thread pools of the libraries that share the process would spin against each other
os.environ.update(turns.environment(THREADS))  # before any of them is imported


def state(cls):
    gone = cls.missing()
    return f"{cls.name}: absent ({gone} is not installed)" if gone else f"{cls.name}: {cls.version()}"


def pytest_report_header(config):
    return [f"libraries, {THREADS} thread each:", *(f"  {state(cls)}" for cls in peers.LIBRARIES.values())]


def pytest_terminal_summary(terminalreporter):
    """Nothing is passed over silently: absent libraries, and what the others cannot do."""
    absent = [state(cls) for cls in peers.LIBRARIES.values() if cls.missing()]
    terminalreporter.write_line("absent libraries: " + ("; ".join(absent) or "none"))
    skipped = terminalreporter.stats.get("skipped", ())
    for reason, count in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped).items():
        terminalreporter.write_line(f"not measured, {count} cases: {reason}")


@functools.cache
def library(name):
    """The library, imported once; a reason instead where it is absent."""
    cls = peers.LIBRARIES[name]
    if gone := cls.missing():
        raise UnavailableError(f"{gone} is not installed")
    return cls(THREADS)


@pytest.fixture
def measure(benchmark):
    """A function of (family, shape, library's name) that fills a bar of the group of that family and shape."""

    def bar(family, shape, name):
        try:
            statement, space = library(name).call(family, shape)
            if "result" in space:
                checked(family, shape, eval(statement, space), space)
            call = eval(f"lambda: {statement}", space)
            seconds = timeit.timeit(call, number=1)
        except Exception as reason:  # a kernel of a peer may be missing for a dtype: shown as skipped, with its words
            if name == "fastsoftmax" and not isinstance(reason, UnavailableError):
                raise
            pytest.skip(f"{name}: {reason}".partition("\n")[0])
        benchmark.group = f"{family}: {shape.name} {shape.shape} {shape.dtype}"
        rounds, calls = (20, 200) if shape.small else (3, 1) if seconds < 0.3 else (1, 1)
        benchmark.pedantic(call, rounds=rounds, iterations=calls, warmup_rounds=int(seconds < 0.3))

    return bar
