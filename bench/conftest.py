"""What `pytest bench/` says at its head: every library with its version, or that it is absent."""

import os
from collections import Counter

import libraries

THREADS = libraries.THREADS_IN_ONE_PROCESS
os.environ.update(libraries.environment(THREADS))  # before any of them is imported


def state(cls):
    gone = libraries.missing(cls)
    return f"{cls.name}: absent ({gone} is not installed)" if gone else f"{cls.name}: {libraries.version(cls)}"


def pytest_report_header(config):
    return [f"libraries, {THREADS} thread each:", *(f"  {state(cls)}" for cls in libraries.LIBRARIES.values())]


def pytest_terminal_summary(terminalreporter):
    """Nothing is passed over silently: absent libraries, and what the others cannot do."""
    absent = [state(cls) for cls in libraries.LIBRARIES.values() if libraries.missing(cls)]
    terminalreporter.write_line("absent libraries: " + ("; ".join(absent) or "none"))
    skipped = terminalreporter.stats.get("skipped", ())
    for reason, count in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped).items():
        terminalreporter.write_line(f"not measured, {count} cases: {reason}")
