"""Threads: right in forked children of every kind, and for however many threads that call at once."""

import ctypes
import ctypes.util
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import functions
import numpy as np
import pytest

import fastsoftmax
from fastsoftmax import _testing, _thread_pool, num_threads, set_num_threads, softmax

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")       # that is what is tested
can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")

ROOM = 300 * 1000 * 4                           # bytes of a result, at most
CALLS = [functions.prepared(name, sample, np.float32) for name, sample in functions.LARGE.values()]
# A fork while another thread is in a matrix product of NumPy may hang, since OpenBLAS holds locks then.
WITHOUT_BLAS = [functions.prepared(name, sample, np.float32) for name, sample in functions.LARGE.values()
                if name != "linear_cross_entropy"]


@pytest.fixture(autouse=True)
def _restore():
    before = fastsoftmax.get_num_threads()
    yield
    set_num_threads(before)


both_layers = pytest.mark.parametrize("layer", ["pool", "openmp"], indirect=True)


@pytest.fixture(autouse=True, params=["pool", pytest.param("openmp", marks=pytest.mark.slow)])
def layer(request):
    if request.param == "pool" and not _thread_pool.available:
        pytest.skip("no thread pool on this platform")
    with _testing.threading_layer(request.param):
        yield request.param


def results(calls=CALLS):
    found = []
    for call in calls:
        _testing.compute_serially(0)                      # or a busy machine would have it done by one thread
        found.extend(functions.results(call()))
    return found


@pytest.fixture(scope="module")
def expected():
    with num_threads(1):
        return results()


def right(expected, threads=3, calls=CALLS):
    """Whether all calls on several threads give what they should."""
    with num_threads(threads):
        return all(map(np.array_equal, results(calls), expected))


def in_child(work, seconds=300):
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
@both_layers
@pytest.mark.parametrize("forks", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_forked_children_compute(expected, forks, layer):
    for _ in range(forks):
        assert right(expected)
        assert in_child(lambda: right(expected))


@can_fork
def test_children_of_children_compute(expected):
    assert right(expected)
    assert in_child(lambda: right(expected) and in_child(lambda: right(expected) and in_child(lambda: right(expected))))
    assert in_child(lambda: in_child(lambda: right(expected)) and right(expected))      # with a team made in between


@can_fork
def test_a_fork_in_a_thread_while_others_call():
    """At the moment of the fork other threads are in calls, and workers in tasks; the child has none of them."""
    stop = threading.Event()
    with num_threads(1):
        expected = results(WITHOUT_BLAS)

    def call_on():
        while not stop.is_set():
            if not right(expected, calls=WITHOUT_BLAS):
                return False
        return True

    def fork_on(_):
        return all(in_child(lambda: right(expected, calls=WITHOUT_BLAS)) for _ in range(5))

    with ThreadPoolExecutor(2) as callers, ThreadPoolExecutor(3) as forkers:
        calling = [callers.submit(call_on) for _ in range(2)]
        try:
            assert all(forkers.map(fork_on, range(3), timeout=600))
        finally:
            stop.set()
        assert all(c.result(600) for c in calling)


def runtime_in_use(name):
    """(its path, variables that bring it) of our OpenMP runtime, or of LLVM's in its place."""
    path = fastsoftmax.show_config("dicts")["openmp"]["path"]
    if name == "LLVM's":
        path = ctypes.util.find_library("omp") or ctypes.util.find_library("iomp5")
    if not path or not hasattr(ctypes.CDLL(path), "GOMP_parallel"):     # LLVM's has it, too
        pytest.skip(f"{name} OpenMP runtime is not on this machine, or lacks the entries of libgomp: {path}")
    return path, {"LD_PRELOAD": path} if name == "LLVM's" else {}


@linux
@both_layers
@pytest.mark.parametrize("imported", ["in the child", "in the parent"])
@pytest.mark.parametrize("runtime", ["ours", "LLVM's"])
def test_another_library_of_the_same_runtime(runtime, imported, layer):
    """A library that shares our OpenMP runtime has worked on several threads when the process forks. Its team is not
    there in the child; whoever joins it hangs. A fork by another thread than the library's is no problem."""
    program = """
import ctypes, os, sys, threading
if {early}:
    import fastsoftmax
runtime = ctypes.CDLL({path!r})
def work():                             # a region of two threads whose body is a function of the runtime's
    runtime.GOMP_parallel(runtime.omp_get_thread_num, None, 2, 0)
work()
def right():
    import numpy as np, fastsoftmax
    x = np.random.default_rng(0).normal(size=(300, 1000))
    with fastsoftmax.num_threads(1):
        expected = fastsoftmax.softmax(x, -1)
    with fastsoftmax.num_threads(3):
        return np.array_equal(fastsoftmax.softmax(x, -1), expected)
def in_child(work):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if work() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
def in_thread(work):
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found == [True]
in_child(right)
in_child(lambda: in_thread(right) and right() and in_thread(right))
in_child(lambda: right() and in_child(lambda: right() and in_thread(right)) is None and right())
assert right()
work()
"""
    path, variables = runtime_in_use(runtime)
    subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c",
         program.format(early=imported == "in the parent", path=path)],
        env={**os.environ, **variables, "FASTSOFTMAX_THREADING_LAYER": layer,
             "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, timeout=300, check=True)


def _in_pool(k):
    with num_threads(1 + k % 3):
        return [np.asarray(y).sum(dtype=np.float64) for y in results()]


@can_fork
def test_a_pool_of_forked_processes(expected):
    assert right(expected)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        sums = pool.map_async(_in_pool, range(12)).get(600)
    assert sums == [[y.sum(dtype=np.float64) for y in expected]] * 12


def threads():
    """Ids of this process's threads."""
    return set(os.listdir("/proc/self/task"))


@linux
def test_many_callers_at_once(expected):
    """64 threads at once, each asking for 3: right, no more threads than they asked for, no more memory with time."""
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    peak, memory = [], []
    ready = threading.Barrier(64)

    def caller(k):
        ready.wait(300)
        if k == 0:                              # a thread that ends is listed for a moment longer
            peak.append(min(len(threads()) for _ in range(20)))
        return right(expected, 3)

    np.ones((512, 512)) @ np.ones((512, 512))   # starts the threads of NumPy's BLAS, which a fork before ended
    others = len(threads())
    with ThreadPoolExecutor(64) as pool:
        for _ in range(8):
            assert all(pool.map(caller, range(64), timeout=600))
            memory.append(resident())           # of the 64 threads while none computes
            # The heaps of so many threads fill for several turns. A result that each caller leaves behind would show
            # in every turn.
            if len(memory) > 1 and memory[-1] - memory[-2] < 64 * ROOM:
                break
        else:
            pytest.fail(f"memory grew by {np.diff(memory)} bytes")
    assert max(peak) <= others + 64 * 3


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
