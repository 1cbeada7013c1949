"""The worker protocol of the measurements: workers answer, fail and die one by one, and each failure has its reason.

The workers of these tests are short programs that load the protocol by its path, as bench/ does.
"""

import textwrap
import timeit

import pytest

from fastsoftmax._selfcheck import turns

HEAD = f"""
import importlib.util, os, sys, time, timeit
spec = importlib.util.spec_from_file_location("turns", {turns.__file__!r})
turns = importlib.util.module_from_spec(spec)
spec.loader.exec_module(turns)
"""
GOOD = """
def prepare(case):
    print("a library that prints to stdout")
    if case == "impossible":
        raise turns.UnavailableError("cannot do this")
    if case == "broken":
        raise ValueError("first line\\nsecond line")
    return timeit.Timer("sum(x)", globals={"x": range(10)}), {"case": case}
turns.serve(lambda: ({"version": "1.0"}, prepare))
"""
DIES_LATER = """
def leave():
    print("out of memory", file=sys.stderr, flush=True)
    os._exit(3)
def be_killed(calls=iter(range(4))):  # two calls prepare it, and one is its first turn
    time.sleep(0.002)
    if next(calls) == 3:
        os.kill(os.getpid(), 9)
def prepare(case):
    return timeit.Timer({"exit": leave, "kill": be_killed}.get(case, "pass")), {}
turns.serve(lambda: ({"version": "2.0"}, prepare))
"""


def worker(name, text):
    return name, ["-c", textwrap.dedent(HEAD) + textwrap.dedent(text)], 1


@pytest.fixture
def crew():
    with turns.workers([worker("good", GOOD), worker("other", DIES_LATER)]) as found:
        yield found


def test_each_worker_is_measured_in_each_round(crew):
    times, reasons, notes = turns.take_turns(crew, "anything", 3, 0.001)
    assert list(times) == ["good", "other"] and not reasons
    assert all(len(taken) == 3 and min(taken) > 0 for taken in times.values())
    assert notes["good"] == {"case": "anything"}
    assert crew[0].greeting == {"version": "1.0"}


@pytest.mark.parametrize(("case", "why"), [("impossible", "cannot do this"), ("broken", "ValueError: first line")])
def test_a_case_that_a_library_cannot_do_has_its_reason_and_the_next_is_measured(crew, case, why):
    times, reasons, _ = turns.take_turns(crew, case, 2, 0.001)
    assert list(times) == ["other"] and reasons == {"good": why}
    times, reasons, _ = turns.take_turns(crew, "next", 2, 0.001)
    assert list(times) == ["good", "other"] and not reasons


@pytest.mark.parametrize(("case", "why"), [
    ("exit", "ended with status 3: out of memory"),
    ("kill", "ended by signal 9 (Killed)"),
])
def test_a_worker_that_dies_is_absent_from_then_on_with_its_error(crew, case, why):
    for asked in (case, "next"):
        times, reasons, _ = turns.take_turns(crew, asked, 2, 0.001)
        assert list(times) == ["good"] and reasons == {"other": why}
    assert crew[1].absent == why


@pytest.mark.parametrize(("text", "why"), [
    ("turns.serve(lambda: __import__('no_such_library'))", "ModuleNotFoundError: No module named 'no_such_library'"),
    ("def start():\n    raise turns.UnavailableError('torch is not installed')\nturns.serve(start)",
     "torch is not installed"),
    ("raise RuntimeError('at import')", "ended with status 1: RuntimeError: at import"),
])
def test_a_worker_that_does_not_start_says_why(text, why):
    with turns.workers([worker("bad", text), worker("good", GOOD)]) as crew:
        assert [each.absent for each in crew] == [why, None]
        times, reasons, _ = turns.take_turns(crew, "anything", 1, 0.001)
        assert list(times) == ["good"] and reasons == {"bad": why}


def test_no_worker_is_left_running():
    with pytest.raises(KeyError), turns.workers([worker("good", GOOD), worker("other", DIES_LATER)]) as crew:
        processes = [each.process for each in crew]
        raise KeyError
    assert all(process.returncode == 0 for process in processes)


def test_a_worker_is_held_to_its_threads():
    text = "turns.serve(lambda: (dict(os.environ), None))"
    with turns.workers([worker("one", text), (*worker("two", text)[:2], 2)]) as crew:
        assert [each.greeting["OMP_NUM_THREADS"] for each in crew] == ["1", "2"]


def test_a_turn_takes_a_batch_of_calls_and_frees_the_case_before():
    held = []

    def prepare(case):
        held.append(stopwatch.timing)
        return timeit.Timer("pass"), {}

    stopwatch = turns.Stopwatch(prepare)
    for case in (1, 2):
        stopwatch.answer({"setup": case})
        assert 0 < stopwatch.answer({"run": 0.001})["best"] < turns.BATCH
    assert held == [None, None]


def test_durations_and_ratios():
    assert turns.duration([2e-6]) == "2 us" and turns.duration([1, 1.5e-3, 0.1e-3]) == "1.5 ms"
    assert turns.duration([2.0]) == "2 s"
    assert turns.ratio([1, 2, 30], [1, 1, 10]) == 2
