"""The thread pool (kernels/runtime/workers.h), and when OpenMP's threads are used instead."""

import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import printed, python

from fastsoftmax import _testing, _thread_pool, num_threads, show_config, softmax

pytestmark = pytest.mark.skipif(not _thread_pool.available, reason="no thread pool on this platform")

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
LAYER = "import fastsoftmax; print(fastsoftmax.show_config('dicts')['threading_layer'])"


def test_the_threading_layer():
    assert printed(LAYER) == "pool"
    for name in ("pool", "openmp"):
        assert printed(LAYER, FASTSOFTMAX_THREADING_LAYER=name) == name
    done = python("import fastsoftmax", FASTSOFTMAX_THREADING_LAYER="tbb")
    assert done.returncode != 0
    assert "FASTSOFTMAX_THREADING_LAYER='tbb'" in done.stderr
    assert "pool, openmp" in done.stderr


def test_who_shares_the_openmp_runtime_shares_its_threads():
    """A library that had loaded it before, or PyTorch, whenever it comes; a variable stands above both."""
    path = show_config("dicts")["openmp"]["path"]
    loaded = f"import ctypes; ctypes.CDLL({path!r}); "
    torch_later = "import fastsoftmax, sys; sys.modules['torch'] = sys; " + LAYER
    assert [printed(code) for code in (loaded + LAYER, torch_later)] == ["openmp", "openmp"]
    for code in (loaded + LAYER, torch_later):
        assert printed(code, FASTSOFTMAX_THREADING_LAYER="pool") == "pool"


def test_both_layers_give_the_same_bits():
    x, found = np.random.default_rng(0).normal(size=(300, 4000)).astype(np.float32), []
    for name in ("pool", "openmp"):
        with _testing.threading_layer(name), num_threads(3):
            _testing.compute_serially(0)
            before = _testing.contention_state()[1]
            found.append(softmax(x, -1))
            assert _testing.contention_state()[1] > before
    assert np.array_equal(*found)


def seen(happens, attempts=20):
    """Whether it happens in one of some attempts: a busy machine may delay any thread."""
    return any(happens() for _ in range(attempts))


@pytest.mark.parametrize("in_shares", [False, True])
@pytest.mark.parametrize("tasks", [2, 3, 64, 1024, 1025, 5000])
def test_each_task_runs_once(tasks, in_shares):
    for threads in (2, 5, 2):
        done = _testing.run_in_pool(threads, tasks, in_shares)
        assert {task["runs"] for task in done} == {1}
        assert {task["thread"] for task in done} <= set(range(threads))


def test_shares_stay_with_their_thread():
    def stay():
        done = _testing.run_in_pool(3, 6, True, callers=0.05, workers=0.05)
        return [task["thread"] for task in done] == [0, 0, 1, 1, 2, 2]

    assert seen(stay)


def test_shares_of_late_threads_are_taken_from_them():
    def taken():
        done = _testing.run_in_pool(2, 6, True, workers=0.2)
        return [task["thread"] for task in done] in ([0] * 6, [0] * 3 + [1] + [0] * 2)

    assert seen(taken)


def test_one_task_and_one_thread_are_the_callers():
    assert _testing.run_in_pool(5, 1) is None
    assert _testing.run_in_pool(1, 5) is None


@pytest.fixture
def two_cores():
    """The only two that the calling thread may use."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("this needs two cores")
    cpus = sorted(before)[:2]
    os.sched_setaffinity(0, cpus)
    yield cpus
    os.sched_setaffinity(0, before)


def of_worker(done):
    """Its first task, if it got one."""
    return next((task for task in done if task["thread"] > 0), None)


def run_after_sleep(**how):
    """Two threads, once the worker sleeps: it is placed anew when it is woken."""
    time.sleep(0.01)
    return _testing.run_in_pool(2, 8, **how)


def test_workers_stay_off_the_callers_core(two_cores):
    def apart():
        done = run_after_sleep(callers=0.05)
        first = of_worker(done)
        return first and first["bound_before"] in set(two_cores) - {task["cpu"] for task in done if not task["thread"]}

    assert seen(apart)


def test_workers_without_a_core_are_brought_to_the_callers(two_cores):
    """Its CPU time stands still, here since it sleeps; its caller waits, and needs its own core no more."""
    def brought():
        task = of_worker(run_after_sleep(callers=0.002, workers=0.2))
        return task and {task["bound_before"], task["bound_after"]} == set(two_cores)

    assert seen(brought)


def test_callers_with_one_core_share_it_with_their_workers(two_cores):
    for cpu in two_cores:
        os.sched_setaffinity(0, {cpu})
        assert seen(lambda: {task["cpu"] for task in run_after_sleep(callers=0.01, workers=0.01)} == {cpu})  # noqa: B023


def test_callers_share_the_cores():
    """No caller has more threads than cores are free, nor waits for them."""
    cores = max(CPUS, 2)
    both = threading.Barrier(2)

    def call(_):
        both.wait(120)
        return _testing.run_in_pool(cores, cores, True, callers=0.3, workers=0.3)

    def shared():
        with ThreadPoolExecutor(2) as callers:
            found = list(callers.map(call, range(2), timeout=600))
        assert all(task["runs"] == 1 for done in found if done for task in done)
        assert _testing.run_in_pool(cores, 2 * cores) is not None   # all are free again
        return cores > 3 or [done is None for done in found].count(True) == 1      # up to three: one of them has all

    assert seen(shared)


def test_idle_workers_sleep_and_take_no_signals():
    code = """
import os, time, numpy as np, fastsoftmax
before = set(os.listdir('/proc/self/task'))
x = np.zeros((1000, 1000), np.float32)
with fastsoftmax.num_threads(3):
    fastsoftmax.softmax(x, -1)
workers = set(os.listdir('/proc/self/task')) - before
for worker in workers:
    status = open(f'/proc/self/task/{worker}/status').read()
    blocked = int(status.partition('SigBlk:')[2].split()[0], 16)
    assert blocked >> 1 & 1 and blocked >> 14 & 1, hex(blocked)     # SIGINT, SIGTERM
time.sleep(0.1)
start = time.process_time()
time.sleep(1)
assert time.process_time() - start < 0.1
print(len(workers))
"""
    assert printed(code) == "2"


def test_without_a_thread_to_be_had_the_caller_does_it_all():
    code = """
import resource, numpy as np, fastsoftmax
from fastsoftmax import _testing
x = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
with fastsoftmax.num_threads(1):
    expected = fastsoftmax.softmax(x, -1)
out = np.zeros_like(x)
with open('/proc/self/statm') as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 19), resource.RLIM_INFINITY))
with fastsoftmax.num_threads(3):
    fastsoftmax.softmax(x, -1, out=out)
    assert _testing.run_in_pool(3, 6) is None
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    assert _testing.run_in_pool(3, 6) is not None
print(np.array_equal(out, expected))
"""
    assert printed(code) == "True"


RACES = r"""
#define _GNU_SOURCE
#include "workers.h"
#include <stdio.h>
typedef struct { long sums[8], runs[1500]; } Loop;
static ThreadPool pool;
static void task(void *loop_, ptrdiff_t number, int thread) {
    Loop *loop = loop_;
    loop->runs[number]++;               /* not atomic: the sanitizer sees who runs a task without the others knowing */
    loop->sums[thread] += number;
}
static void *caller(void *seed) {
    for (int turn = 0; turn < 1000; turn++) {
        Loop loop = {{0}, {0}};
        int tasks = 2 + (int)((long)seed * 7 + turn * 13) % 1400;
        int alone = !pool.run(2 + turn % 5, task, &loop, 0, tasks, turn & 1);
        for (int number = 0; number < tasks; number++)
            if (loop.runs[number] != !alone)
                abort();
        if (turn % 100 == 0)
            usleep(200);                /* workers sleep meanwhile */
    }
    return NULL;
}
int main(void) {
    pthread_t callers[6];
    prepare_pool(&pool);
    for (long i = 0; i < 6; i++)
        pthread_create(&callers[i], NULL, caller, (void *)i);
    for (int i = 0; i < 6; i++)
        pthread_join(callers[i], NULL);
    puts("done");
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler: races are NOT looked for")
def test_no_race(tmp_path):
    """Six callers at once, under ThreadSanitizer."""
    (tmp_path / "races.c").write_text(RACES)
    folder = Path(__file__).parent.parent / "fastsoftmax" / "kernels" / "runtime"
    build = ["cc", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{folder}", "races.c", "-o", "races"]
    made = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no ThreadSanitizer, races are NOT looked for: {made.stderr[-200:]}")
    done = subprocess.run([tmp_path / "races"], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
