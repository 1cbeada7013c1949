"""How many threads, who decides, and that calls survive forks, other threads and Control-C."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from functions import LARGE, prepared, results
from helpers import VARIABLES, printed, python

import fastsoftmax
from fastsoftmax import (
    _dispatch,
    _testing,
    _threads,
    get_num_threads,
    logsumexp,
    num_threads,
    set_num_threads,
    show_config,
    softmax,
)

BIG = np.random.default_rng(0).normal(size=(300, 4000)).astype(np.float32)


@pytest.fixture(autouse=True)
def _restore():
    before = get_num_threads()
    _testing.compute_serially(0)
    yield
    set_num_threads(before)
    _testing.compute_serially(0)


THREADS = "import fastsoftmax; print(fastsoftmax.get_num_threads())"


def test_set_is_process_wide():
    for n in (3, 1, np.int64(2)):
        set_num_threads(n)
        assert get_num_threads() == n
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(get_num_threads).result() == n
    assert type(get_num_threads()) is int


def test_context_manager_acts_on_its_thread_alone_and_nests():
    set_num_threads(2)
    with num_threads(5):
        assert get_num_threads() == 5
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(get_num_threads).result() == 2
        with num_threads(1):
            assert get_num_threads() == 1
        assert get_num_threads() == 5
    assert get_num_threads() == 2
    with pytest.raises(KeyError), num_threads(3):
        raise KeyError
    assert get_num_threads() == 2


def test_a_decorated_function_in_two_threads_at_once():
    """One context manager serves both: what it restores must be each thread's own."""
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    @num_threads(3)
    def inside(is_first):
        (first_in if is_first else second_in).set()
        (second_in if is_first else first_out).wait(120)
        return get_num_threads()

    def caller(number):
        is_first = number == 5
        if not is_first:
            first_in.wait(120)
        with num_threads(number):
            seen = inside(is_first), get_num_threads()
        if is_first:
            first_out.set()
        return seen

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(caller, (7, 5), timeout=300)) == [(3, 7), (3, 5)]


@pytest.mark.parametrize("function", [set_num_threads, num_threads])
def test_impossible_counts(function):
    before = get_num_threads()
    for bad in (0, -1, -(10**30)):
        with pytest.raises(ValueError, match=str(bad)):
            function(bad)
    for bad in (1.0, "2", None, [1]):
        with pytest.raises(TypeError, match="int"):
            function(bad)
    assert get_num_threads() == before


def test_default_is_what_affinity_allows():
    assert 1 <= int(printed(THREADS)) <= len(os.sched_getaffinity(0))
    assert printed("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});" + THREADS) == "1"


CGROUPS = {  # /proc/self/cgroup, files under /sys/fs/cgroup, and what they allow
    "v2, 2.5 CPUs": ("0::/box\n", {"box/cpu.max": "250000 100000\n"}, 3),
    "v2, half a CPU": ("0::/box\n", {"box/cpu.max": "50000 100000\n"}, 1),
    "v2, no quota": ("0::/box\n", {"box/cpu.max": "max 100000\n", "cpu.max": "max 100000\n"}, None),
    "v2, a parent's quota": ("0::/a/b/c\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
    "v2, the smallest counts": ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "600000 100000"}, 2),
    "v2, the host's path in a container": ("0::/host/only\n", {"cpu.max": "400000 100000\n"}, 4),
    "v2, outside of the namespace": ("0::/../other\n", {"cpu.max": "400000 100000\n"}, 4),
    "v1": (
        "5:cpu,cpuacct:/box\n4:memory:/box\n",
        {"cpu/box/cpu.cfs_quota_us": "150000\n", "cpu/box/cpu.cfs_period_us": "100000\n"},
        2,
    ),
    "v1, no quota": (
        "5:cpuacct,cpu:/box\n",
        {"cpu/box/cpu.cfs_quota_us": "-1\n", "cpu/box/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "v1, a path with colons": (
        "5:cpu:/box:1:2\n",
        {"cpu/box:1:2/cpu.cfs_quota_us": "50000\n", "cpu/box:1:2/cpu.cfs_period_us": "50000\n"},
        1,
    ),
    "both": (
        "5:cpu:/box\n0::/box\n",
        {"cpu/box/cpu.cfs_quota_us": "500000", "cpu/box/cpu.cfs_period_us": "100000", "box/cpu.max": "200000 100000"},
        2,
    ),
    "no files": ("0::/box\n", {}, None),
    "nonsense": ("cpu\n", {"cpu.max": "1 1"}, None),
    "nonsense quotas": ("0::/\n1:cpu:/\n", {"cpu.max": "many", "cpu/cpu.cfs_quota_us": ""}, None),
    "a period of 0": ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "5", "cpu/cpu.cfs_period_us": "0"}, None),
    "v2, a period of 0": ("0::/\n", {"cpu.max": "100000 0\n"}, None),
    "no cgroups": (None, {}, None),
}


@pytest.mark.parametrize("case", CGROUPS)
def test_the_containers_quota(tmp_path, case):
    cgroup, files, allowed = CGROUPS[case]
    if cgroup is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _threads._container_limit(str(tmp_path)) == allowed


def test_variables_set_the_default():
    assert printed(THREADS, FASTSOFTMAX_NUM_THREADS="3") == "3"
    assert printed(THREADS, OMP_NUM_THREADS="3") == "3"
    assert printed(THREADS, OMP_NUM_THREADS="3,2,1") == "3"
    assert printed(THREADS, FASTSOFTMAX_NUM_THREADS="2", OMP_NUM_THREADS="3") == "2"


@pytest.mark.parametrize("variable", ["FASTSOFTMAX_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_bad_count_is_an_error_at_import(variable, value):
    done = python("import fastsoftmax", **{variable: value})
    assert done.returncode != 0
    assert "Error" in done.stderr
    assert variable in done.stderr
    assert value in done.stderr


def test_a_dtype_may_lack_an_instruction_set_or_have_it_for_attention_alone(monkeypatch):
    """All that a dtype lacks in an instruction set is that of the one before."""
    whole = ["f32_generic", "f32_v3", "f32_v4", "bf16_generic", "bf16_v3", "bf16_v4"]
    built = {f"fastsoftmax.kernels.{name}": SimpleNamespace(softmax_rows=name, attention=name) for name in whole}
    built["fastsoftmax.kernels.bf16_v4_bf16"] = SimpleNamespace(attention="bf16_v4_bf16")
    monkeypatch.setattr(_dispatch, "_cpu", SimpleNamespace(modules_built={*whole, "bf16_v4_bf16"}))
    monkeypatch.setattr(_dispatch.importlib, "import_module", built.__getitem__)

    def chosen(tag, isas):
        kernels = _dispatch.load(tag, isas)
        return kernels.softmax_rows, kernels.attention

    isas = ["generic", "v3", "v4", "v4_bf16"]
    assert [chosen("f32", isas[:n])[0] for n in (1, 2, 3, 4)] == ["f32_generic", "f32_v3", "f32_v4", "f32_v4"]
    assert chosen("bf16", isas[:3]) == ("bf16_v4", "bf16_v4")
    assert chosen("bf16", isas) == ("bf16_v4", "bf16_v4_bf16")


@pytest.mark.parametrize("isa", _dispatch.supported())
def test_isa_variable_chooses(isa):
    code = "import fastsoftmax; print(fastsoftmax.show_config('dicts')['isa'], fastsoftmax.softmax([0.0, 0.0]))"
    assert printed(code, FASTSOFTMAX_ISA=isa) == f"{isa} [0.5 0.5]"


@pytest.mark.parametrize("isa", ["x86_64_v9", "AVX2", "x86_64_v3 ", "arm64", "x86_64_v4"])
def test_an_isa_that_cannot_run_is_an_error_that_lists_those_that_can(isa):
    if isa in _dispatch.supported():
        assert printed("import fastsoftmax", FASTSOFTMAX_ISA=isa) == ""
        return
    done = python("import fastsoftmax", FASTSOFTMAX_ISA=isa)
    assert done.returncode != 0
    assert "FASTSOFTMAX_ISA" in done.stderr
    for available in _dispatch.supported():
        assert available in done.stderr


@pytest.mark.skipif("x86_64_v4_amx" not in _dispatch.supported(), reason="this CPU has no AMX, or Linux refuses it")
def test_amx_is_left_out_where_a_signal_stack_has_no_room_for_its_registers():
    code = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(6144)
stack = Stack(ctypes.addressof(memory), 0, 6144)
assert ctypes.CDLL(None, use_errno=True).sigaltstack(ctypes.byref(stack), None) == 0, ctypes.get_errno()
import ml_dtypes, numpy as np, fastsoftmax
x = np.zeros((64, 64), ml_dtypes.bfloat16)
fastsoftmax.scaled_dot_product_attention(x, x, x)
print(fastsoftmax.show_config("dicts")["isa"])
"""
    assert printed(code) == "x86_64_v4_bf16"


def test_show_config(capsys):
    config = show_config(mode="dicts")
    assert {"version", "compiler", "isa", "isa_available", "threads", "openmp"} <= set(config)
    assert config["isa"] in config["isa_available"]
    assert set(_dispatch.supported()) <= set(config["isa_available"])
    assert str(config["version"])
    with num_threads(3):
        assert "3" in str(show_config("dicts")["threads"])
    assert capsys.readouterr().out == ""
    assert show_config() is None
    text = capsys.readouterr().out
    for word in ("isa", "threads", "openmp", config["isa"]):
        assert word in text.lower()
    with pytest.raises(ValueError, match="yaml"):
        show_config("yaml")


def test_using_an_isa_is_seen_in_the_configuration():
    for isa in _dispatch.supported():
        with _dispatch.using(isa):
            assert show_config("dicts")["isa"] == isa


def test_other_libraries_openmp_settings_are_not_touched():
    code = """
import ctypes, glob, numpy as np, fastsoftmax
x = np.zeros((300, 4000), np.float32)
fastsoftmax.softmax(x, -1)
path = next((l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l or 'libomp' in l), None)
if path is None: raise SystemExit(0)
omp = ctypes.CDLL(path)
omp.omp_set_num_threads(7)
fastsoftmax.set_num_threads(2)
with fastsoftmax.num_threads(3):
    fastsoftmax.softmax(x, -1)
print(omp.omp_get_max_threads())
"""
    assert printed(code) in ("7", "")


def test_a_forked_child_computes_after_a_threaded_call():
    with num_threads(3):
        expected = softmax(BIG, -1)
        for _ in range(3):
            _testing.compute_serially(0)          # or a busy machine would have it done by one thread
            pid = os.fork()
            if pid == 0:
                os._exit(0 if np.array_equal(softmax(BIG, -1), expected) else 1)
            deadline = time.monotonic() + 120           # a guard against hanging, no measure of speed
            done = 0
            while not done and time.monotonic() < deadline:
                done, status = os.waitpid(pid, os.WNOHANG)
                time.sleep(0.005)
            if not done:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                pytest.fail("the forked child hangs")
            assert os.waitstatus_to_exitcode(status) == 0
        assert np.array_equal(softmax(BIG, -1), expected)  # and the parent still can


def test_many_python_threads_at_once():
    inputs = [BIG[i : i + 60] for i in range(0, 240, 10)]
    expected = [softmax(x, -1) for x in inputs]
    start = threading.Barrier(8)

    def work(k):
        start.wait(120)
        with num_threads(1 + k % 3):
            assert get_num_threads() == 1 + k % 3
            for _ in range(5):
                for x, y in zip(inputs, expected, strict=True):
                    if not np.array_equal(softmax(x, -1), y):
                        return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8), timeout=600))


def endless(rows, columns):
    """Scores without memory of their own: every row is the same one."""
    return np.broadcast_to(np.zeros(columns, np.float32), (rows, columns))


def test_the_gil_is_released():
    """Another Python thread runs on while a long call is under way: it never waits for half of the call.

    The call's progress is the CPU time that the process has spent, not the time that has passed: other programs may
    have the cores.
    """
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.process_time())
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    with num_threads(1):
        rows, spent = 1000, 0.0
        while spent < 0.5:  # one call of half a second at least
            rows *= 2
            start = time.process_time()
            logsumexp(endless(rows, 10_000), -1)
            spent = time.process_time() - start
    stop.set()
    ticker.join()
    during = [start, *(t for t in ticks if start < t < start + spent), start + spent]
    assert max(b - a for a, b in pairwise(during)) < spent / 2


# --- when several threads cost more than they gain: kernels/runtime/contention.h

def regions():
    return _testing.contention_state()[1]


@pytest.mark.parametrize("label", LARGE)
def test_threads_are_used_unless_callers_must_compute_alone(label):
    """The same bits, alone, together, and where being alone ends in the middle of the call."""
    call = prepared(*LARGE[label], np.float32)
    with num_threads(1):
        before = regions()
        expected = results(call())
        assert regions() == before
    with num_threads(3):
        _testing.compute_serially(10**15)
        assert all(map(np.array_equal, results(call()), expected))
        assert regions() == before
        assert 0 < _testing.contention_state()[0] < 10**15       # the time of its tasks is taken off
        for nanoseconds in (0, 1):                  # 1: the first task pays that
            _testing.compute_serially(nanoseconds)
            before = regions()
            assert all(map(np.array_equal, results(call()), expected))
            assert regions() > before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1_500_000, 3_000_000, 6_000_000])
def test_threads_share_rows_of_millions(columns, dtype):
    """As many rows as threads are computed between two checks for an interrupt, not a single one by the caller."""
    before = regions()
    with num_threads(2):
        logsumexp(np.zeros((4, columns), dtype), -1)
    assert regions() > before


@pytest.mark.parametrize("function", [logsumexp, softmax])
def test_threads_share_columns_of_long_rows(function):
    """Columns that fill one tile are not left to one thread."""
    before = regions()
    with num_threads(2):
        function(np.zeros((140_001, 5), np.float32), 0)
    assert regions() > before


def test_slices_grow_with_the_threads():
    """32 rows of this length are a thread's slice: 64 of them are one region for two threads or more."""
    before = regions()
    with num_threads(4):
        logsumexp(endless(64, 128_256), -1)
    assert before < regions() <= before + 1


def test_small_calls_and_single_threads_do_not_pay():
    _testing.compute_serially(10**15)
    with num_threads(1):
        softmax(BIG, -1)
    with num_threads(3):
        softmax(BIG[:2], -1)
    assert _testing.contention_state()[0] == 10**15


def region(wall, busy, own, all_, waking=0):
    return 5000, 5000 + waking, 5000 + waking + busy, 5000 + wall, own, all_


LOST = region(150, 50, 1, 2)            # one thread would have needed 100


def test_what_is_lost_is_followed_by_ten_times_as_long_alone():
    assert _testing.backoffs_of([LOST]) == [500]
    assert _testing.backoffs_of([region(150, 75, 3, 4)]) == [500]
    assert _testing.backoffs_of([region(150, 150, 3, 3)]) == [0]        # the caller did it all, and did not wait
    assert _testing.backoffs_of([region(180, 150, 3, 3)]) == [300]      # and waited
    assert _testing.backoffs_of([region(60, 50, 1, 2)]) == [0]
    assert _testing.backoffs_of([region(150, 50, 1, 2, waking=30)]) == [500]
    assert _testing.backoffs_of([region(100, 50, 1, 2)]) == [0]
    assert _testing.backoffs_of([region(10**6, 0, 0, 4)]) == [0]        # others did it all: nothing to compare with
    for weight in (1, 10**5, 10**13):                           # in any units
        assert _testing.backoffs_of([region(150, 75, 3 * weight, 4 * weight)])[0] == pytest.approx(500, rel=0.05)


def test_loss_after_loss_takes_longer_until_a_region_gains():
    gained = region(100, 50, 1, 2)
    assert _testing.backoffs_of([LOST] * 7) == [500, 1000, 2000, 4000, 8000, 8000, 8000]
    assert _testing.backoffs_of([LOST, LOST, gained, LOST]) == [500, 1000, 0, 500]
    hour = 3600 * 10**9
    assert _testing.backoffs_of([region(hour, hour // 4, 1, 2)] * 2) == [10**9] * 2     # at most a second
    ms = 10**6
    slow = region(ms + 10_000, ms // 2, 1, 2)                   # 10 us lost, by the pool: at most 10 ms
    assert _testing.backoffs_of([slow] * 9, of_pool=True) == [n * ms // 10 for n in (1, 2, 4, 8, 16, 16, 16, 16, 16)]
    slow = region(ms + 100_000, ms // 2, 1, 2)
    assert _testing.backoffs_of([slow] * 5, of_pool=True) == [n * ms for n in (1, 2, 4, 8, 10)]
    slow = region(9 * ms, 2 * ms, 1, 2)                         # but for ten times what is lost
    assert _testing.backoffs_of([slow] * 3, of_pool=True) == [50 * ms] * 3


def test_a_small_part_of_the_time_may_be_lost():
    """A small call that wakes the threads loses by it; the next calls gain."""
    woke = region(10_000 + 1000, 5000, 1, 2)                    # 1000
    assert _testing.backoffs_of([woke] * 3, apart=64_000) == [0, 0, 0]
    assert _testing.backoffs_of([woke] * 3, apart=32_000) == [5000, 10000, 20000]
    assert _testing.backoffs_of([region(60_000, 5000, 1, 2)] * 2, apart=10**12) == [0, 0]       # 50 us at most
    assert _testing.backoffs_of([region(60_001, 5000, 1, 2)], apart=10**12) == [10]


def test_the_system_is_asked_only_where_its_answer_may_be_used():
    """An account of less than 50 ms tells nothing, and reading it takes as long as a small call."""
    assert [_testing.account_is_read(loss) for loss in (10_000, 2_400_000, 2_600_000)] == [False, False, True]


def test_what_was_gained_is_set_against_a_loss():
    gained = region(60, 50, 1, 2)                                       # 40
    assert _testing.backoffs_of([gained, LOST]) == [0, 100]
    assert _testing.backoffs_of([gained, gained, LOST, LOST]) == [0, 0, 0, 200]
    most = 4_000_000
    long_ago = region(most, 10 * most, 1, 2)                            # far more than is remembered
    assert _testing.backoffs_of([long_ago, region(most + 150, 50, 1, 2)]) == [0, 500]


def test_no_attempt_while_others_have_the_cores():
    second = 10**9

    def goes_on(others, threads=2, cores=2, spell=second, elsewhere=0, before=7 * second):
        granted = spell - int(elsewhere * spell)
        return _testing.backoff_extended(spell, granted, threads, cores, before, before + int(others * spell)) / second

    assert [goes_on(others) for others in (0, 0.4, 0.6, 1, 2)] == [0, 0, 1, 1, 1]
    assert [goes_on(others, threads=3, cores=8) for others in (0, 5.4, 5.6, 8)] == [0, 0, 1, 1]
    assert goes_on(0, threads=64) == 0          # more threads than cores: as many as there are
    assert goes_on(1, spell=second // 10) == 0.1
    assert goes_on(1, spell=second // 25) == 0  # too short a time to say
    assert goes_on(1, spell=3600 * second) == 1     # at most a second, then the system is asked again
    assert goes_on(-8) == 0                     # the system does not tell
    # others had the cores while the caller did not want them: two programs that take turns
    assert [goes_on(2, elsewhere=share) for share in (0.4, 0.6, 0.9)] == [1, 0, 0]


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell here what other programs use")
def test_what_other_programs_use_is_known():
    """An endless loop on each of our cores takes what we leave; our own work is not counted."""
    cores = sorted(os.sched_getaffinity(0))
    loop = "import os; os.sched_setaffinity(0, {%d}); print(flush=True)\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", loop % core], stdout=subprocess.PIPE) for core in cores]
    try:
        for other in loops:
            other.stdout.readline()
        before, known = _testing.stolen()
        start, own = time.monotonic_ns(), time.process_time_ns()
        while time.monotonic_ns() < start + 10**9:
            pass
        taken, spell, own = _testing.stolen()[0] - before, time.monotonic_ns() - start, time.process_time_ns() - own
    finally:
        for other in loops:
            other.kill()
            other.wait()
    assert known == len(cores)
    # every core was busy all the time, with them or with us; the account is in ticks
    assert taken == pytest.approx(len(cores) * spell - own, abs=0.1 * len(cores) * spell)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept to one CPU here")
def test_losses_are_noticed():
    """Two threads of OpenMP's on one CPU must lose before long: the runtime counted CPUs when it was loaded, and spins.
    Callers of the pool do not wait there for a thread that has no core, and may never lose more than is allowed."""
    code = """
import os, numpy as np, fastsoftmax
from fastsoftmax import _testing
x = np.zeros((100, 1000), np.float32)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
with fastsoftmax.num_threads(2):
    while not _testing.contention_state()[2]:
        fastsoftmax.softmax(x, -1)
    _testing.compute_serially(10**15)
    before = _testing.contention_state()
    fastsoftmax.softmax(x, -1)
    print(before[1] == _testing.contention_state()[1])
"""
    assert printed(code, FASTSOFTMAX_THREADING_LAYER="openmp") == "True"


LONG = {  # each a single call of many seconds, but for softmax, which cannot do without memory
    "logsumexp of one row": "logsumexp(row)",
    "logsumexp of many rows": "logsumexp(endless, -1)",
    "logsumexp of columns": "logsumexp(endless, 0)",
    "entropy of many rows": "softmax_entropy(endless, -1)",
    "softmax of one row": "softmax(line, out=line)",
    "softmax of many rows": "softmax(line.reshape(-1, 1000), -1, out=line.reshape(-1, 1000))",
    "softmax of columns": "softmax(line.reshape(1000, -1), 0, out=line.reshape(1000, -1))",
    "causal softmax": "causal_softmax(line.reshape(15000, 20000), out=line.reshape(15000, 20000))",
    "attention of many queries": "scaled_dot_product_attention(queries, keys, keys)",
    "attention of many heads": "scaled_dot_product_attention(*[np.broadcast_to(few, (30_000, 64, 64))] * 3)",
    "attention of a query": "scaled_dot_product_attention(queries[:1], many, many)",
    "attention of many small heads": "scaled_dot_product_attention(small, small, small)",
    "attention by the general way": "scaled_dot_product_attention(queries, keys, keys, softcap=3, return_entropy=True)",
}


def cpu_time(pid):
    """Seconds of CPU time that a process has spent."""
    with open(f"/proc/{pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="the CPU time of a process is read in /proc")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", LONG.values(), ids=LONG)
def test_control_c_arrives_within_a_second(call, threads):
    """A second of CPU time for each thread, which a process that has the cores to itself spends in a second."""
    code = f"""
import signal, time
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
from fastsoftmax import causal_softmax, logsumexp, num_threads, scaled_dot_product_attention, softmax, softmax_entropy
few = np.ones((64, 64), np.float32)
queries, keys = np.broadcast_to(few[0], (100_000, 64)), np.broadcast_to(few[0], (300_000, 64))
many, small = np.broadcast_to(keys, (300, 300_000, 64)), np.broadcast_to(few[:2, :1], (50_000_000, 2, 1))
endless = np.broadcast_to(np.zeros(100_000, np.float32), (1_000_000, 100_000))
row = np.broadcast_to(np.float32(0), (10**11,))
line = np.ones(300_000_000 if 'line' in {call!r} else 0, np.float16)     # not zeros: pages that are there
print(time.process_time(), flush=True)
try:
    with num_threads({threads}):
        while True:
            {call}
except KeyboardInterrupt:
    print(time.process_time(), flush=True)
"""
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    env |= {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "FASTSOFTMAX_ISA": _dispatch.supported()[0],
    }  # slow
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as child:
        watchdog = threading.Timer(300, child.kill)
        watchdog.start()
        try:
            begun = float(child.stdout.readline())
            while cpu_time(child.pid) < begun + 0.2:
                assert child.poll() is None
                time.sleep(0.01)
            sent = cpu_time(child.pid)
            child.send_signal(signal.SIGINT)
            arrived = float(child.stdout.readline())
            assert arrived - sent < threads
            assert child.wait(60) == 0
        finally:
            watchdog.cancel()
            child.kill()


def test_decoding_has_threads_by_what_it_reads(monkeypatch):
    """One query for each key head takes fewer multiplications than a prefill on as many keys, but reads as much."""
    seen = []
    monkeypatch.setattr(_threads, "threads_for", lambda elements: seen.append(elements) or 1)
    key = np.zeros((1, 12, 2048, 64), np.float32)
    for length in (1, 4, 16, 32):
        query = np.zeros((1, 12, length, 64), np.float32)
        fastsoftmax.scaled_dot_product_attention(query, key, key)
    assert seen == [2 * key.size // 4] * 3 + [2 * key.size // 2]
    shared = np.zeros((1, 4, 2048, 64), np.float32)
    fastsoftmax.scaled_dot_product_attention(query[:, :, :1], shared, shared, enable_gqa=True)
    assert seen[-1] == 2 * shared.size // 4


def test_module_prints_no_warning_on_import():
    done = python("import warnings; warnings.simplefilter('error'); import fastsoftmax")
    assert (done.returncode, done.stderr) == (0, "")
    assert fastsoftmax.__name__ == "fastsoftmax"


def test_a_folder_that_is_not_built_says_how_to_build_it(tmp_path):
    source = Path(fastsoftmax.__file__).parent
    shutil.copytree(source, tmp_path / "fastsoftmax", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    # The finder of an editable installation serves any folder of that name: only Python's own finders are left.
    done = python(f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if getattr(finder, "__module__", "").startswith("_frozen_import")]
sys.path.insert(0, {str(tmp_path)!r})
import fastsoftmax
""")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: fastsoftmax has not been built in {tmp_path / 'fastsoftmax'}; "
        "run `python -m pip install -e .` in the folder that holds setup.py")
