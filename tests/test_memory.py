"""Nothing outside an array is read or written, nothing is left behind, and inputs are only read.

Inputs stand in pages that cannot be written, and everything stands between pages that cannot be touched. Who breaks the
rule ends the process; the traceback names the test, `pytest -v` the kernel.
"""

import ctypes
import gc
import itertools
import os
import signal
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from guarded import PAGE, Guarded, needs_mprotect
from helpers import NUMPY

import fastsoftmax
from fastsoftmax import _arrays, _dispatch, causal_mask_, causal_softmax, log_softmax, logsumexp, softmax

LONGEST = 300
MOST_COLUMNS = 41
ROWS = 3
RESULTS = _dispatch.RESULTS.values()
SCALARS = (_dispatch.RESULTS["logsumexp"], _dispatch.RESULTS["softmax_entropy"])


def scores_like(tag, seed):
    """fill(shape): scores of a dtype as kernels see them, 16-bit ones by their bits."""
    def fill(shape):
        return _arrays.elements(np.random.default_rng(seed).normal(0, 5, shape).astype(NUMPY[tag]))
    return fill


def mostly_true(shape):
    return np.random.default_rng(1).random(shape) < 0.9


def temperatures(shape):
    return np.random.default_rng(2).uniform(0.5, 2, shape)


@pytest.fixture
def arena(kernel):
    """Guarded memory for each operand of a kernel: one line (`whole`), or as many lines as rows (`lines`)."""
    seen = scores_like(kernel.tag, 0)((1,)).dtype
    room = 2 * LONGEST * MOST_COLUMNS * 8

    class Arena:
        dtype = seen
        x_whole = Guarded(1, room, seen, scores_like(kernel.tag, 0), read_only=True)
        x_lines = Guarded(LONGEST, LONGEST * 8, seen, scores_like(kernel.tag, 0), read_only=True)
        mask_lines = Guarded(LONGEST, LONGEST * 8, np.bool_, mostly_true, read_only=True)
        y_whole = Guarded(1, room)
        y_lines = Guarded(LONGEST, LONGEST * 8)
        temperature = Guarded(1, room, np.float64, temperatures, read_only=True)

    return Arena


def lengths(at_end):
    """All where a tail would run over the end; a third of them where something would start too early."""
    return range(1, LONGEST + 1, 1 if at_end else 3)


def run(kernel, result, x, y, temperature=None, where=None, offset=None, threads=1, streamed=False):
    """One call of a kernel on guarded arrays, (outer, n, inner); now and then compared with that on ordinary ones."""
    modules = _dispatch.kernels(kernel.tag)
    modules.softmax_rows(result, x, y, temperature, None if where is None else where.view(np.uint8), offset, threads,
                         streamed)
    if x.shape[1] % 5:
        return
    expected = np.empty(y.shape, y.dtype)
    modules.softmax_rows(result, x.copy(), expected, None if temperature is None else temperature.copy(),
                         None if where is None else where.copy().view(np.uint8), offset, 1, False)
    np.testing.assert_array_equal(y, expected)


def by_address(kernel, result, x, y, temperature=1.0, threads=1, streamed=False):
    """The same by the short way in, for contiguous arrays."""
    function = ctypes.PYFUNCTYPE(
        ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t,
        ctypes.c_ssize_t, ctypes.c_double, ctypes.c_int, ctypes.c_int)(_dispatch.kernels(kernel.tag).contiguous_address)
    outer, n, inner = x.shape
    function(result, x.ctypes.data, y.ctypes.data, outer, n, inner, temperature, threads, streamed)
    if n % 5:
        return
    expected = np.empty(y.shape, y.dtype)
    t = None if temperature == 1 else np.full((outer, inner), temperature)
    _dispatch.kernels(kernel.tag).softmax_rows(result, x.copy(), expected, t, None, None, 1, False)
    np.testing.assert_array_equal(y, expected)


def columns(n):
    """How many columns to try with rows of n: all numbers up to MOST_COLUMNS in turn."""
    return 1 + n * 7 % MOST_COLUMNS


@needs_mprotect
def test_the_guards_bite():
    code = "from guarded import Guarded; a = Guarded(2, 8).array('u1', (2, 8), {}); print(ctypes.string_at({}))"
    for at_end, address in ((True, "a[0].ctypes.data, 9"), (False, "a[1].ctypes.data - 1, 1"),
                            (True, "a[1].ctypes.data, 9"), (False, "a.ctypes.data - 1, 1"), (True, "a.ctypes.data, 8")):
        died = subprocess.run(
            [sys.executable, "-c", "import ctypes;" + code.format(at_end, address)], check=False, capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}).returncode
        assert died == (0 if address.endswith(" 8") else -signal.SIGSEGV)


ENDS = pytest.mark.parametrize("at_end", [False, True], ids=["first in its page", "last in its page"])


@needs_mprotect
@ENDS
def test_contiguous_rows(kernel, arena, at_end):
    for n in lengths(at_end):
        for result, shape in itertools.product(RESULTS, ((ROWS, n, 1), (2, n, columns(n)))):
            x = arena.x_whole.contiguous(arena.dtype, shape, at_end)
            y = arena.y_whole.contiguous(arena.dtype, (shape[0], 1 if result in SCALARS else n, shape[2]), at_end)
            by_address(kernel, result, x, y, 1.0 if n % 2 else 0.7, streamed=n % 3 == 0 and result not in SCALARS)


@needs_mprotect
@ENDS
def test_rows_with_a_guard_between_any_two(kernel, arena, at_end):
    for n in lengths(at_end):
        x = arena.x_lines.array(arena.dtype, (ROWS, n), at_end)[:, :, None]
        where = arena.mask_lines.array(np.bool_, (ROWS, n), at_end)[:, :, None]
        temperature = arena.temperature.contiguous(np.float64, (ROWS, 1), at_end)
        for result in RESULTS:
            m = 1 if result in SCALARS else n
            y = arena.y_lines.array(arena.dtype, (ROWS, m), at_end)[:, :, None]
            run(kernel, result, x, y)
            run(kernel, result, x, y, temperature, where)


@needs_mprotect
@ENDS
def test_columns_with_a_guard_after_each_line(kernel, arena, at_end):
    for n in lengths(at_end):
        inner = columns(n)
        x = arena.x_lines.array(arena.dtype, (n, inner), at_end)[None]
        where = arena.mask_lines.array(np.bool_, (n, inner), at_end)[None]
        temperature = arena.temperature.contiguous(np.float64, (1, inner), at_end)
        for result in RESULTS:
            y = arena.y_lines.array(arena.dtype, (1 if result in SCALARS else n, inner), at_end)[None]
            run(kernel, result, x, y)
            run(kernel, result, x, y, temperature, where, streamed=result not in SCALARS)


@needs_mprotect
@ENDS
def test_causal_rows(kernel, arena, at_end):
    """(L, S) with a guard after each row, L and S odd and even, every offset's sign."""
    for keys in lengths(at_end):
        queries = 1 + keys * 5 % 17
        x = arena.x_lines.array(arena.dtype, (queries, keys), at_end).T[None]
        y = arena.y_lines.array(arena.dtype, (queries, keys), at_end).T[None]
        temperature = arena.temperature.contiguous(np.float64, (1, queries), at_end)
        for offset in (keys - queries, -2):
            run(kernel, 0, x, y, temperature if keys % 2 else None, offset=offset)
        _dispatch.kernels(kernel.tag).causal_mask(y, keys - queries, -np.inf, 1)
        hidden = ~np.tri(queries, keys, keys - queries, dtype=bool)
        assert (y[0].T[hidden] == _arrays.elements(np.full(1, -np.inf, NUMPY[kernel.tag]))[0]).all()


@needs_mprotect
def test_hidden_scores_are_never_read(kernel, arena):
    """They lie where nobody may read."""
    for visible in (*range(1, 70), LONGEST, PAGE // 8):
        x = arena.x_lines.beyond(arena.dtype, visible, (1, 3 * LONGEST))[:, :, None]
        y = np.empty((1, 3 * LONGEST, 1), arena.dtype)
        _dispatch.kernels(kernel.tag).softmax_rows(0, x, y, None, None, visible - 1, 1, False)
        alone = np.empty((1, visible, 1), arena.dtype)
        _dispatch.kernels(kernel.tag).softmax_rows(0, x[:, :visible], alone, None, None, None, 1, False)
        np.testing.assert_array_equal(y[:, :visible], alone)
        assert not y[:, visible:].any()


@needs_mprotect
@ENDS
@pytest.mark.parametrize("shape", [(1, 4100, 1), (2, 4095, 3), (1, 33_005, 1), (2, 4100, 17), (1, (1 << 20) + 4, 1)])
def test_long_rows(kernel, at_end, shape):
    """Beyond a chunk, shared by threads, streamed, and too long to be kept."""
    outer, n, inner = shape
    if n > 1 << 20 and kernel.isa == "generic":
        shape = outer, n >> 4, inner
    seen = scores_like(kernel.tag, 0)((1,)).dtype
    size = outer * n * inner * seen.itemsize
    x = Guarded(1, size, seen, scores_like(kernel.tag, 0), read_only=True).contiguous(seen, shape, at_end)
    out = Guarded(1, size)
    for result in RESULTS:
        y = out.contiguous(seen, (shape[0], 1 if result in SCALARS else shape[1], inner), at_end)
        by_address(kernel, result, x, y, threads=2, streamed=result not in SCALARS)


# What users call, in every way that an array can lie between its guards. A line for each function: operands by name,
# with dtype and shape, and the call. Others join by a line.
PUBLIC = {
    "softmax": (
        {"x": ("scores", (5, 37)), "where": ("bool", (5, 37)), "temperature": ("f8", (5, 1)), "out": ("out", (5, 37))},
        lambda x, where, temperature, out: softmax(x, -1, where=where, temperature=temperature, out=out)),
    "log_softmax": (
        {"x": ("scores", (37, 5)), "where": ("bool", (1, 5)), "temperature": ("f8", (1, 5)), "out": ("out", (37, 5))},
        lambda x, where, temperature, out: log_softmax(x, 0, where=where, temperature=temperature, out=out)),
    "logsumexp": (
        {"a": ("scores", (5, 37)), "where": ("bool", (5, 37)), "out": ("out", (37,))},
        lambda a, where, out: logsumexp(a, 0, where=where, out=out)),
    "logsumexp with factors": (
        {"a": ("scores", (5, 37)), "b": ("scores", (37,)), "out": ("out", (5,))},
        lambda a, b, out: logsumexp(a, 1, b, out=out, return_sign=True)[0]),
    "softmax_entropy": (
        {"x": ("scores", (5, 37)), "where": ("bool", (37,)), "temperature": ("f8", (5, 1))},
        lambda x, where, temperature: fastsoftmax.softmax_entropy(x, 1, where=where, temperature=temperature)),
    "causal_softmax": (
        {"scores": ("scores", (3, 7, 37)), "temperature": ("f8", (7, 1)), "out": ("out", (3, 7, 37))},
        lambda scores, temperature, out: causal_softmax(scores, offset=30, temperature=temperature, out=out)),
    "causal_mask_": (
        {"scores": ("out", (3, 7, 37))}, lambda scores: causal_mask_(scores, offset=30)),
}


@needs_mprotect
@ENDS
@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("way", ["contiguous", "lines", "unaligned", "byte-swapped"])
def test_public_functions(kernel, name, way, at_end):
    operands, call = PUBLIC[name]
    if way == "byte-swapped" and kernel.tag == "bf16":
        return                                  # ml_dtypes has but one byte order
    guarded, plain, held = {}, {}, []
    for operand, (kind, shape) in operands.items():
        dtype = np.dtype({"scores": kernel.dtype, "out": kernel.dtype}.get(kind, kind))
        values = {"scores": lambda s: np.random.default_rng(3).normal(0, 5, s), "bool": mostly_true,
                  "f8": temperatures, "out": np.zeros}[kind](shape).astype(dtype)
        if way == "byte-swapped":
            values = values.astype(dtype.newbyteorder())
        lines = int(np.prod(shape[:-1])) if way in ("lines", "byte-swapped") else 1
        memory = Guarded(lines, values.nbytes + 1)
        held.append(memory)
        shift = 1 if way == "unaligned" else 0
        place = memory.array if lines > 1 else memory.contiguous
        guarded[operand] = place(values.dtype, shape, at_end, shift)
        guarded[operand][...] = values
        plain[operand] = values.astype(dtype)   # native, aligned
    got, expected = call(**guarded), call(**plain)
    np.testing.assert_array_equal(np.asarray(got, np.float64), np.asarray(expected, np.float64))


def resident():
    """Bytes of memory that this process occupies."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory use is read from /proc")


def calls_of_every_kind():
    """Small calls: every function, the short way in and the long one, and results as scalars, arrays and out."""
    x = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    out, where, temperature = np.empty_like(x), x < 1, np.full((4, 1), 0.7)
    half, swapped, bfloat = x.astype(np.float16), x.astype(">f4"), x.astype(ml_dtypes.bfloat16)
    return [
        lambda: softmax(x), lambda: softmax(x, -1), lambda: softmax(x, 0, out=out), lambda: log_softmax(x, -1),
        lambda: softmax(x, -1, where=where, temperature=temperature), lambda: softmax(swapped, -1),
        lambda: log_softmax(half, 0, temperature=0.5), lambda: softmax(bfloat, -1), lambda: softmax(x[:, ::2], -1),
        lambda: logsumexp(x), lambda: logsumexp(x, 1, keepdims=True), lambda: logsumexp(x, 1, return_sign=True),
        lambda: fastsoftmax.softmax_entropy(x, 1), lambda: fastsoftmax.softmax_entropy(x, 1, where=where),
        lambda: causal_softmax(x), lambda: causal_softmax(x, out=out), lambda: causal_mask_(out),
        lambda: softmax([1.0, 2.0]), lambda: softmax(x, -1, dtype=np.float64),
    ]


def calls_that_raise():
    # All arrays are made here: NumPy 2.4's own np.empty(3) never returns the reference that it takes to its dtype.
    x = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    objects, small, empty, varying, ints = x.astype(object), x[0, :3].copy(), x[:0], x[0].copy(), np.ones(3, int)
    return [
        lambda: softmax(x, 2), lambda: softmax(x, "0"), lambda: softmax(x, -1, temperature=0.0),
        lambda: softmax(x, -1, out=frozen), lambda: softmax(x, -1, out=small), lambda: softmax(objects),
        lambda: logsumexp(x, 0, where=ints), lambda: log_softmax(x, -1, temperature=varying),
        lambda: causal_softmax(x, offset=0.5), lambda: causal_mask_(frozen), lambda: softmax(x, 10**30),
        lambda: fastsoftmax.softmax_entropy(empty, 0),
    ]


def swallow(call):
    try:
        call()
    except (TypeError, ValueError):
        return
    raise AssertionError("did not raise")


@needs_proc
@pytest.mark.parametrize("what, total", [("returns", 100_000), ("raises", 10_000)])
def test_memory_stays_flat(what, total):
    calls = calls_of_every_kind() if what == "returns" else [
        lambda call=call: swallow(call) for call in calls_that_raise()]
    for _ in range(200):                        # pools fill up, caches get warm
        for call in calls:
            call()
    before = resident()
    for _ in range(-(-total // len(calls))):
        for call in calls:
            call()
    assert resident() - before < 1 << 20


@needs_proc
def test_memory_stays_flat_over_calls_with_scratch_and_threads():
    """Buffers of threads, and rows shared by threads."""
    long, wide = np.zeros(200_000, np.float32), np.zeros((300, 1000))
    with fastsoftmax.num_threads(2):
        for phase in range(2):
            for _ in range(200):
                softmax(long)
                logsumexp(wide, 0)
                causal_softmax(wide)
            if phase == 0:
                before = resident()
    assert resident() - before < 1 << 20


@pytest.mark.parametrize("calls", [calls_of_every_kind, calls_that_raise])
def test_reference_counts_stay(calls):
    shared = [np.dtype(t) for t in ("f2", "f4", "f8", "?")] + [np.ndarray, np.float32, np.float64, ml_dtypes.bfloat16]
    for call in calls():
        objects = [cell.cell_contents for cell in call.__closure__ or ()] + shared
        run_one = call if calls is calls_of_every_kind else lambda call=call: swallow(call)
        run_one()
        before = [sys.getrefcount(o) for o in objects]
        for _ in range(50):
            run_one()
        after = [sys.getrefcount(o) for o in objects]
        assert after == before


def test_results_own_their_memory_and_keep_no_input_alive():
    x = np.ones((4, 9), np.float32)
    for f in (softmax, log_softmax, logsumexp, fastsoftmax.softmax_entropy):
        for array in (x, x[:, ::2], x.astype(">f4")):
            y = f(array, -1)
            assert not np.shares_memory(y, array)
            while y.base is not None:
                y = y.base
                assert y is not array
