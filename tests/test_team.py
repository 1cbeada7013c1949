"""The team of threads: right in forked children of every kind, and one team for however many threads that call."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastsoftmax
from fastsoftmax import _team, causal_softmax, log_softmax, logsumexp, num_threads, set_num_threads, softmax

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")       # that is what is tested
can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")

X = np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32)
CALLS = {                                       # each on several threads: rows, columns, one long row; others join here
    "rows": lambda x: softmax(x, -1),
    "columns": lambda x: log_softmax(x, 0),
    "one long row": lambda x: logsumexp(x),
    "causal": lambda x: causal_softmax(x),
}


@pytest.fixture(autouse=True)
def _restore():
    before = fastsoftmax.get_num_threads()
    yield
    set_num_threads(before)


def results():
    return [np.asarray(call(X)) for call in CALLS.values()]


@pytest.fixture(scope="module")
def expected():
    with num_threads(1):
        return results()


def right(expected, threads=3):
    """Whether all calls on several threads give what they should."""
    with num_threads(threads):
        return all(map(np.array_equal, results(), expected))


def in_child(work, seconds=60):
    """work() in a forked child: its truth. A child that hangs is ended, and fails the test."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    deadline, pause = time.monotonic() + seconds, 0.001
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the forked child hangs")


@can_fork
@pytest.mark.parametrize("forks", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_forked_children_compute(expected, forks):
    for _ in range(forks):
        assert right(expected)
        assert in_child(lambda: right(expected))


@can_fork
def test_children_of_children_compute(expected):
    assert right(expected)
    assert in_child(lambda: right(expected) and in_child(lambda: right(expected) and in_child(lambda: right(expected))))
    assert in_child(lambda: in_child(lambda: right(expected)) and right(expected))      # with a team made in between


@can_fork
def test_a_fork_in_a_thread_while_others_call(expected):
    """At the moment of the fork other threads are in calls, and workers in tasks; the child has none of them."""
    stop = threading.Event()

    def call_on():
        while not stop.is_set():
            if not right(expected):
                return False
        return True

    def fork_on(_):
        return all(in_child(lambda: right(expected)) for _ in range(5))

    with ThreadPoolExecutor(2) as callers, ThreadPoolExecutor(3) as forkers:
        calling = [callers.submit(call_on) for _ in range(2)]
        try:
            assert all(forkers.map(fork_on, range(3), timeout=120))
        finally:
            stop.set()
        assert all(c.result(60) for c in calling)


def _in_pool(k):
    with num_threads(1 + k % 3):
        return [np.asarray(y).sum(dtype=np.float64) for y in results()]


@can_fork
def test_a_pool_of_forked_processes(expected):
    assert right(expected)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sums = pool.map_async(_in_pool, range(12)).get(120)
    assert sums == [[y.sum(dtype=np.float64) for y in expected]] * 12


@can_fork
def test_the_team_is_started_anew_in_a_child():
    with num_threads(2):
        softmax(X, -1)

    def new_team():
        return _team.workers() == 0 and softmax(X, -1) is not None and _team.workers() <= 1

    assert _team.workers() > 0
    with num_threads(2):
        assert in_child(new_team)


def threads():
    """Ids of this process's threads."""
    return set(os.listdir("/proc/self/task"))


@linux
def test_many_callers_share_one_team(expected):
    """64 threads at once, each asking for 4: right, with three workers in all, and no more memory with time."""
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    before, peak, memory = _team.workers(), [], []
    ready = threading.Barrier(64)

    def caller(k):
        ready.wait(60)
        for turn in range(6):
            if not right(expected, 4):
                return False
            if k == 0:
                peak.append(len(threads()))
                if turn >= 1:
                    memory.append(resident())
        return True

    others = len(threads()) - before
    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(caller, range(64), timeout=300))
    assert _team.workers() == max(before, 3)
    assert max(peak) <= others + 64 + _team.workers()
    # results and scratch of 64 calls come and go; what must not be is growth turn by turn
    assert max(memory) - memory[0] < 64 * (X.nbytes + (4 << 20))


def test_tasks_are_done_once():
    """In place, a task done twice or never shows."""
    rows = np.random.default_rng(1).normal(size=(3000, 60))
    with num_threads(1):
        once = softmax(softmax(rows, -1), -1)
    with num_threads(5):
        for _ in range(30):
            y = rows.copy()
            softmax(y, -1, out=y)
            softmax(y, -1, out=y)
            np.testing.assert_array_equal(y, once)


def test_workers_are_no_more_than_asked_for():
    code = """
import numpy as np, fastsoftmax as f
from fastsoftmax import _team
x = np.zeros((400, 1000), np.float32)
for n in (1, 3, 2, 5):
    with f.num_threads(n):
        f.softmax(x, -1)
    print(_team.workers(), end=' ')
f.softmax(x[:2], -1)
print(_team.workers())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert done.stdout == "0 2 2 4 4\n"


@linux
def test_workers_take_no_signals():
    """They are for the threads that Python knows."""
    code = """
import os, numpy as np, fastsoftmax as f
before = set(os.listdir('/proc/self/task'))
with f.num_threads(3):
    f.softmax(np.zeros((400, 1000), np.float32), -1)
for task in set(os.listdir('/proc/self/task')) - before:
    print([line.split()[1] for line in open(f'/proc/self/task/{task}/status') if line.startswith('SigBlk')][0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    blocked = [int(line, 16) for line in done.stdout.split()]
    assert len(blocked) == 2
    for mask in blocked:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGPROF, signal.SIGCHLD):
            assert mask >> (number - 1) & 1


@linux
def test_no_openmp_runtime_is_brought_along():
    code = """
import numpy as np, fastsoftmax as f
with f.num_threads(2):
    f.softmax(np.zeros((400, 1000), np.float32), -1)
print(open('/proc/self/maps').read())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert not re.search(r"lib[gi]?omp\b", done.stdout)


def test_the_rest_is_done_where_no_thread_can_be_started():
    """With no more threads allowed, the caller does everything."""
    code = """
import resource, numpy as np, fastsoftmax as f
from fastsoftmax import _team
x = np.random.default_rng(0).normal(size=(400, 1000))
with f.num_threads(1):
    expected = f.softmax(x, -1)
used = int(open('/proc/self/statm').read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 20), used + (6 << 20)))     # a thread's stack takes 8 MiB
out = np.empty_like(expected[:0])
with f.num_threads(64):
    f.softmax(x, -1, out=x)
assert (x == expected).all()
print(_team.workers() < 63)
"""
    if sys.platform != "linux":
        pytest.skip("address space is limited on Linux alone")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
