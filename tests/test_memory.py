"""Nothing outside an array is read or written, nothing is left behind, and inputs are only read.

Inputs stand in pages that cannot be written, and everything stands between pages that cannot be touched. Who breaks the
rule ends the process; the traceback names the test, `pytest -v` the kernel.
"""

import ctypes
import functools
import gc
import itertools
import math
import os
import signal
import subprocess
import sys
import types

import functions
import ml_dtypes
import numpy as np
import pytest
from guarded import PAGE, Guarded, needs_mprotect
from helpers import NUMPY

import fastsoftmax
from fastsoftmax import (
    _dispatch,
    _fastpath,
    _layout,
    causal_softmax,
    logsumexp,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    softmax,
)

LONGEST = 300
MOST_COLUMNS = 41
ROWS = 3
SCALARS = (_fastpath.LOGSUMEXP, _fastpath.SOFTMAX_ENTROPY)
OPS = (_fastpath.SOFTMAX, _fastpath.LOG_SOFTMAX, *SCALARS)


def scores_like(tag, seed):
    """fill(shape): scores of a dtype as kernels see them, 16-bit ones by their bits."""
    def fill(shape):
        return _layout.elements(np.random.default_rng(seed).normal(0, 5, shape).astype(NUMPY[tag]))
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

    # an object without reference cycles: its thousand mappings go with the test, and not when the collector runs
    return types.SimpleNamespace(
        dtype=seen,
        x_whole=Guarded(1, room, seen, scores_like(kernel.tag, 0), read_only=True),
        x_lines=Guarded(LONGEST, LONGEST * 8, seen, scores_like(kernel.tag, 0), read_only=True),
        mask_lines=Guarded(LONGEST, LONGEST * 8, np.bool_, mostly_true, read_only=True),
        y_whole=Guarded(1, room),
        y_lines=Guarded(LONGEST, LONGEST * 8),
        temperature=Guarded(1, room, np.float64, temperatures, read_only=True))


def lengths(at_end):
    """All where a tail would run over the end; a third of them where something would start too early."""
    return range(1, LONGEST + 1, 1 if at_end else 3)


def run(kernel, op, x, y, temperature=None, where=None, offset=None, threads=1, nontemporal=False):
    """One call of a kernel on guarded arrays, (outer, n, inner); now and then compared with that on ordinary ones."""
    modules = _dispatch.kernels(kernel.tag)
    modules.softmax_rows(op, x, y, temperature, None if where is None else where.view(np.uint8), offset, threads,
                         nontemporal)
    if x.shape[1] % 5:
        return
    expected = np.empty(y.shape, y.dtype)
    modules.softmax_rows(op, x.copy(), expected, None if temperature is None else temperature.copy(),
                         None if where is None else where.copy().view(np.uint8), offset, 1, False)
    np.testing.assert_array_equal(y, expected)


def by_address(kernel, op, x, y, temperature=1.0, threads=1, nontemporal=False):
    """The same by the address that the fast path calls, for contiguous arrays."""
    function = ctypes.PYFUNCTYPE(
        ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_ssize_t,
        ctypes.c_ssize_t, ctypes.c_double, ctypes.c_int, ctypes.c_int)(_dispatch.kernels(kernel.tag).contiguous_address)
    outer, n, inner = x.shape
    function(op, x.ctypes.data, y.ctypes.data, outer, n, inner, temperature, threads, nontemporal)
    if n % 5:
        return
    expected = np.empty(y.shape, y.dtype)
    t = None if temperature == 1 else np.full((outer, inner), temperature)
    _dispatch.kernels(kernel.tag).softmax_rows(op, x.copy(), expected, t, None, None, 1, False)
    np.testing.assert_array_equal(y, expected)


def causal_by_address(kernel, x, y, offset, temperature=1.0, threads=1, nontemporal=False):
    """causal_softmax by its address, x and y (outer, L, S) and contiguous; compared with the kernel on other arrays."""
    modules = _dispatch.kernels(kernel.tag)
    function = ctypes.PYFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_ssize_t] * 4, ctypes.c_double, ctypes.c_int,
        ctypes.c_int)(modules.causal_address)
    function(x.ctypes.data, y.ctypes.data, *x.shape, offset, temperature, threads, nontemporal)
    expected = np.empty(y.shape, y.dtype)
    t = None if temperature == 1 else np.full(x.shape[:2], temperature)
    modules.softmax_rows(0, x.copy().swapaxes(1, 2), expected.swapaxes(1, 2), t, None, offset, 1, False)
    np.testing.assert_array_equal(y, expected)


def mask_by_address(kernel, y, offset, nontemporal):
    function = ctypes.PYFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, *[ctypes.c_ssize_t] * 4, ctypes.c_double, ctypes.c_int,
        ctypes.c_int)(_dispatch.kernels(kernel.tag).causal_mask_address)
    function(y.ctypes.data, *y.shape, offset, -math.inf, 1, nontemporal)


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
        for op, shape in itertools.product(OPS, ((ROWS, n, 1), (2, n, columns(n)))):
            x = arena.x_whole.contiguous(arena.dtype, shape, at_end)
            y = arena.y_whole.contiguous(arena.dtype, (shape[0], 1 if op in SCALARS else n, shape[2]), at_end)
            by_address(kernel, op, x, y, 1.0 if n % 2 else 0.7, nontemporal=n % 3 == 0 and op not in SCALARS)


@needs_mprotect
@ENDS
def test_rows_with_a_guard_between_any_two(kernel, arena, at_end):
    for n in lengths(at_end):
        x = arena.x_lines.array(arena.dtype, (ROWS, n), at_end)[:, :, None]
        where = arena.mask_lines.array(np.bool_, (ROWS, n), at_end)[:, :, None]
        temperature = arena.temperature.contiguous(np.float64, (ROWS, 1), at_end)
        for op in OPS:
            m = 1 if op in SCALARS else n
            y = arena.y_lines.array(arena.dtype, (ROWS, m), at_end)[:, :, None]
            run(kernel, op, x, y)
            run(kernel, op, x, y, temperature, where)


@needs_mprotect
@ENDS
def test_columns_with_a_guard_after_each_line(kernel, arena, at_end):
    for n in lengths(at_end):
        inner = columns(n)
        x = arena.x_lines.array(arena.dtype, (n, inner), at_end)[None]
        where = arena.mask_lines.array(np.bool_, (n, inner), at_end)[None]
        temperature = arena.temperature.contiguous(np.float64, (1, inner), at_end)
        for op in OPS:
            y = arena.y_lines.array(arena.dtype, (1 if op in SCALARS else n, inner), at_end)[None]
            run(kernel, op, x, y)
            run(kernel, op, x, y, temperature, where, nontemporal=op not in SCALARS)


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
        seen = np.tri(queries, keys, keys - queries, dtype=bool)
        masked = np.where(seen, y[0].T, _layout.elements(np.full(1, -np.inf, NUMPY[kernel.tag]))[0])
        before = y.copy()
        for nontemporal in (False, True):
            y[...] = before
            _dispatch.kernels(kernel.tag).causal_mask(y, keys - queries, -np.inf, 1, nontemporal)
            np.testing.assert_array_equal(y[0].T, masked)


@needs_mprotect
@ENDS
def test_contiguous_causal_rows(kernel, arena, at_end):
    """(2, L, S) by the addresses that the fast path calls, in all numbers of queries up to MOST_COLUMNS."""
    for keys in lengths(at_end):
        shape = 2, columns(keys), keys
        x = arena.x_whole.contiguous(arena.dtype, shape, at_end)
        y = arena.y_whole.contiguous(arena.dtype, shape, at_end)
        for offset in (keys - shape[1], 0, -2):
            causal_by_address(kernel, x, y, offset, 1.0 if keys % 2 else 0.7, nontemporal=keys % 3 == 0)
        masked = y.copy()
        masked[:, ~np.tri(*shape[1:], 1, dtype=bool)] = _layout.elements(np.full(1, -np.inf, NUMPY[kernel.tag]))[0]
        mask_by_address(kernel, y, 1, nontemporal=keys % 3 == 0)
        np.testing.assert_array_equal(y, masked)


@needs_mprotect
def test_hidden_scores_are_never_read(kernel, arena):
    """They lie where nobody may read."""
    for visible in (*range(1, 70), LONGEST, PAGE // 8):
        x = arena.x_lines.beyond(arena.dtype, visible, (1, 3 * LONGEST))[:, :, None]
        y = np.empty((1, 3 * LONGEST, 1), arena.dtype)
        _dispatch.kernels(kernel.tag).softmax_rows(0, x, y, None, None, visible - 1, 1, False)
        alone = np.empty((1, visible, 1), arena.dtype)
        _dispatch.kernels(kernel.tag).softmax_rows(0, x[:, :visible], alone, None, None, None, 1, False)
        if visible == 1 and arena.dtype != np.uint16:       # alone it is 1 exactly; among others to an ULP
            np.testing.assert_allclose(y[:, :1], alone, np.finfo(arena.dtype).eps, 0)
        else:
            np.testing.assert_array_equal(y[:, :visible], alone)
        assert not y[:, visible:].any()


@needs_mprotect
@ENDS
@pytest.mark.parametrize("nontemporal", [False, True])
@pytest.mark.parametrize("shape", [(1, 4100, 1), (2, 4095, 3), (1, 33_005, 1), (2, 4100, 17), (1, (1 << 20) + 4, 1)])
def test_long_rows(kernel, at_end, shape, nontemporal):
    """Beyond a chunk, shared by threads, with non-temporal stores, kept in place of the results, too long to keep."""
    outer, n, inner = shape
    if n > 1 << 20 and kernel.isa == "generic":
        shape = outer, n >> 4, inner
    seen = scores_like(kernel.tag, 0)((1,)).dtype
    size = outer * n * inner * seen.itemsize
    x = Guarded(1, size, seen, scores_like(kernel.tag, 0), read_only=True).contiguous(seen, shape, at_end)
    out = Guarded(1, size)
    for op in OPS:
        y = out.contiguous(seen, (shape[0], 1 if op in SCALARS else shape[1], inner), at_end)
        by_address(kernel, op, x, y, threads=2, nontemporal=nontemporal and op not in SCALARS)

# ---------------------------------------------------------------- attention

MOST_ROWS = 300             # of each operand with guards between rows
SIZES = (*range(1, 41), 65, 127, 129, 257)
TURNS = 4
MAX_WORK = 1 << 20          # multiplications of a shape, so that all kernels together take seconds


@functools.cache
def desk(tag):
    """Guarded memory for the operands of an attention kernel, as in `arena`; made once for a dtype."""
    seen, real = scores_like(tag, 0)((1,)).dtype, np.float64 if tag == "f64" else np.float32

    def biases(seed, dtype):
        def fill(shape):
            x = np.random.default_rng(seed).normal(0, 1, shape)
            x = np.where(np.random.default_rng(seed).random(shape) < 0.1, -np.inf, x).astype(dtype)
            return _layout.elements(x) if dtype is NUMPY[tag] else x
        return fill

    class Desk:
        dtype, real_dtype, held = seen, np.dtype(real), {}
        kinds = {
            "query": (seen, scores_like(tag, 1)), "key": (seen, scores_like(tag, 2)),
            "value": (seen, scores_like(tag, 3)), "out": (seen, None), "bool": (np.uint8, lambda s: mostly_true(s) * 1),
            "element": (seen, biases(4, NUMPY[tag])), "real": (real, biases(5, real)), "lse": (real, None),
            "entropy": (real, None),
            "scale": ("f8", temperatures), "slopes": ("f8", temperatures), "sinks": ("f8", temperatures),
            "offset": ("i8", None), "lengths": ("i8", None)}

        @classmethod
        def put(cls, operand, shape, at_end, guarded_rows=False, values=None):
            """An operand of this shape, with guards around all of it or around each row."""
            dtype, fill = cls.kinds[operand]
            many = guarded_rows and math.prod(shape[:-1]) > 1
            if (operand, many) not in cls.held:
                cls.held[operand, many] = Guarded(
                    MOST_ROWS if many else 1, PAGE if many else 1 << 22, dtype, fill, read_only=fill is not None)
            memory = cls.held[operand, many]
            array = (memory.array if many else memory.contiguous)(dtype, shape, at_end)
            if values is not None:
                array[...] = values
            return array

    return Desk


def shapes_of_attention(rng, lanes):
    """(batch, heads, key heads, L, S, E, Ev): in each turn every size once for each, every other turn with few rows."""
    for turn in range(TURNS):
        sizes = [rng.permutation(SIZES) for _ in range(4)]
        for queries, keys, width, value_width in np.stack(sizes, 1).tolist():
            batch, key_heads, shared = ((1, 1, 1), (2, 1, 2), (1, 2, 3), (1, 2, 1))[rng.integers(4)]
            if turn % 2:
                queries = max(1, queries % (lanes + 1) // shared)
            while queries * keys * (width + value_width) * batch * key_heads * shared > MAX_WORK:
                queries = -(-queries // 2)
            queries = min(queries, MOST_ROWS // (batch * key_heads * shared))
            yield batch, key_heads * shared, key_heads, queries, keys, width, value_width


def attend_guarded(kernel, memory, shape, at_end, guarded_rows, options):
    """One call of a kernel on guarded arrays, now and then compared with that on ordinary ones; options: ten bits."""
    batch, heads, key_heads, queries, keys, width, value_width = shape
    put = functools.partial(memory.put, at_end=at_end)
    q, k, v, y = (put(name, size, guarded_rows=guarded_rows) for name, size in (
        ("query", (batch, heads, queries, width)), ("key", (batch, key_heads, keys, width)),
        ("value", (batch, key_heads, keys, value_width)), ("out", (batch, heads, queries, value_width))))
    y[...] = 0
    wanted = [bool(options >> bit & 1) for bit in range(10)]
    terms = tuple(np.broadcast_to(put(name, size, guarded_rows=guarded_rows), (batch, heads, queries, keys))
                  for name, size, want in zip(
                      ("bool", "element", "real"), ((queries, keys), (heads, 1, keys), (1, queries, keys)), wanted,
                      strict=False) if want)
    per_head = {name: put(name, size) if want else None for name, size, want in (
        ("scale", (heads,), True), ("slopes", (batch, heads), wanted[3]), ("sinks", (heads,), wanted[4]))}
    offset = put("offset", (batch,), values=keys - queries + 1 if options % 3 else -1)
    lengths = put("lengths", (batch,), values=[keys, max(keys - 3, 1)][:batch]) if wanted[5] else None
    lse, entropy = (put(name, (batch, heads, queries)) if want else None
                    for name, want in (("lse", wanted[6]), ("entropy", wanted[7])))
    left, right = (7 if wanted[8] else -1), (0 if wanted[9] else -1)
    attention = _dispatch.kernels(kernel.tag).attention

    def call(q, k, v, y, terms, lse, entropy):
        attention(q, k, v, y, terms, per_head["scale"], offset, left, right, lengths, 2.5 if options % 5 == 0 else 0.0,
                  per_head["slopes"], per_head["sinks"], lse, entropy, 1)

    call(q, k, v, y, terms, lse, entropy)
    if options % 4:
        return
    plain = [None if x is None else np.empty(x.shape, x.dtype) for x in (y, lse, entropy)]
    call(q.copy(), k.copy(), v.copy(), plain[0], tuple(x.copy() for x in terms), *plain[1:])
    for got, expected in zip((y, lse, entropy), plain, strict=True):
        if got is not None:
            np.testing.assert_array_equal(got, expected)


@needs_mprotect
@ENDS
@pytest.mark.parametrize("guarded_rows", [False, True], ids=["as a whole", "each row"])
def test_attention(kernel, at_end, guarded_rows):
    rng, memory = np.random.default_rng(1), desk(kernel.tag)
    shapes = shapes_of_attention(rng, kernel.lanes)
    for (batch, heads, key_heads, queries, keys, *widths), options in zip(
            shapes, rng.integers(1 << 10, size=1 << 10).tolist(), strict=False):
        if guarded_rows and batch * key_heads * keys > MOST_ROWS:
            batch, heads, key_heads = 1, heads // key_heads, 1
        # calls with nothing but a scale have code of their own, so half of them are without terms, slopes and sinks
        options &= ~0b11111 if queries % 2 else -1
        attend_guarded(kernel, memory, (batch, heads, key_heads, queries, keys, *widths), at_end, guarded_rows, options)


@needs_mprotect
@ENDS
def test_attention_to_a_long_cache(kernel, at_end):
    """Few rows, but more than lanes, and keys in several parts."""
    for rows, keys, options in ((5, 4096, 0), (3, 4099, 0b1011000000), (7, 4133, 0b11100111)):
        width, value_width = kernel.lanes + rows, 2 * kernel.lanes + 1
        attend_guarded(kernel, desk(kernel.tag), (1, 2 * rows, 2, 1, keys, width, value_width), at_end, False, options)


@needs_mprotect
@pytest.mark.parametrize("queries", [1, 40])
def test_keys_beyond_the_lengths_are_never_read(kernel, queries):
    """Nor are their values: a cache need not have memory yet for keys that are to come."""
    attention, memory, width = _dispatch.kernels(kernel.tag).attention, desk(kernel.tag), 16
    for length in (*range(1, 35), 128, 129, 200):
        there = [memory.put(name, (1, 1, length, width), True) for name in ("key", "value")]
        keys = length + PAGE // (width * 8)     # so many more as a guard's page has room for
        longer = [np.lib.stride_tricks.as_strided(x, (1, 1, keys, width), x.strides) for x in there]
        query = memory.put("query", (1, 1, queries, width), True)
        got, alone = (np.empty((1, 1, queries, width), memory.dtype) for _ in range(2))
        scale, offset, lengths = np.ones(1), np.zeros(1, np.int64), np.full(1, length)
        for terms in ((), (np.ones((1, 1, queries, keys), np.uint8),)):
            for k, v, y in ((*longer, got), (*there, alone)):
                attention(query, k, v, y, tuple(x[..., :k.shape[2]] for x in terms), scale, offset, -1, -1,
                          lengths, 0.0, None, None, None, None, 1)
            np.testing.assert_array_equal(got, alone)



# ---------------------------------------------------------------- the public functions


@needs_mprotect
@ENDS
@pytest.mark.parametrize("name", functions.SAMPLES)
@pytest.mark.parametrize("way", ["contiguous", "lines", "unaligned", "byte-swapped"])
def test_public_functions(kernel, name, way, at_end):
    """The samples of functions.py, in every way that an array can lie between its guards."""
    if way == "byte-swapped" and kernel.tag == "bf16":
        return                                  # ml_dtypes has but one byte order
    held = []

    def between_guards(operand, values):
        if way == "byte-swapped":
            values = values.astype(values.dtype.newbyteorder())
        lines = math.prod(operand.shape[:-1]) if way in ("lines", "byte-swapped") else 1
        memory = Guarded(lines, values.nbytes + 1)
        held.append(memory)
        place = memory.array if lines > 1 else memory.contiguous
        array = place(values.dtype, operand.shape, at_end, 1 if way == "unaligned" else 0)
        array[...] = values
        return array

    function, sample = functions.SAMPLES[name]
    call = getattr(fastsoftmax, function)
    got = functions.results(call(**functions.arguments(sample, kernel.dtype, between_guards)))
    expected = functions.results(call(**functions.arguments(sample, kernel.dtype)))     # native, aligned
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.astype(np.float64), other.astype(np.float64))


def resident():
    """Bytes of memory that this process occupies."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory use is read from /proc")


def calls_that_return():
    """Small calls of every function, each with the objects that it is given: on the fast path and on the slow one."""
    arrays = functions.small_arrays()
    for function in functions.FUNCTIONS.values():
        for call in function.other_ways(arrays):
            yield call, list(vars(arrays).values())
    for name, sample in functions.SAMPLES.values():
        given = []

        def noted(operand, values, given=given):
            given.append(values)
            return values

        yield functools.partial(getattr(fastsoftmax, name), **functions.arguments(sample, np.float32, noted)), given


def calls_that_raise():
    arrays = functions.small_arrays()
    for function in functions.FUNCTIONS.values():
        for call in function.refused(arrays):
            yield functools.partial(swallow, call), list(vars(arrays).values())


def swallow(call):
    try:
        call()
    except (TypeError, ValueError, IndexError):
        return
    raise AssertionError("did not raise")


@needs_proc
@pytest.mark.parametrize("calls, total", [(calls_that_return, 100_000), (calls_that_raise, 10_000)],
                         ids=["returns", "raises"])
def test_memory_stays_flat(calls, total):
    calls = [call for call, _ in calls()]
    for _ in range(100):                        # pools fill up, caches get warm
        for call in calls:
            call()
    grown = []
    for _ in range(2):                          # the heap may grow once, by a few blocks; a leak grows all the time
        before = resident()
        for _ in range(-(-total // len(calls) // 2)):
            for call in calls:
                call()
        grown.append(resident() - before)
    assert min(grown) < 1 << 19


@needs_proc
def test_memory_stays_flat_over_calls_with_scratch_and_threads():
    """Buffers of threads, and rows shared by threads."""
    long, wide, heads = np.zeros(200_000, np.float32), np.zeros((300, 1000)), np.zeros((2, 200, 40), np.float32)
    with fastsoftmax.num_threads(2):
        for phase in range(2):
            for _ in range(200):
                softmax(long)
                logsumexp(wide, 0)
                causal_softmax(wide)
                scaled_dot_product_attention(heads, heads, heads)
                scaled_dot_product_attention(heads[:, :2], heads, heads)
                scaled_dot_product_attention_backward(heads, heads, heads, heads, heads, heads[:, :, 0])
            if phase == 0:
                before = resident()
    assert resident() - before < 1 << 20


@pytest.mark.parametrize("calls", [calls_that_return, calls_that_raise])
def test_reference_counts_stay(calls):
    shared = [np.dtype(t) for t in ("f2", "f4", "f8", "?")] + [np.ndarray, np.float32, np.float64, ml_dtypes.bfloat16]
    for call, given in calls():
        objects = given + shared
        call()
        before = [sys.getrefcount(o) for o in objects]
        for _ in range(50):
            call()
        after = [sys.getrefcount(o) for o in objects]
        assert after == before


def test_results_own_their_memory_and_keep_no_input_alive():
    x = np.ones((4, 9), np.float32)
    for name in functions.OF_SCORES:
        for array in (x, x[:, ::2], x.astype(">f4")):
            y = functions.of_scores(name, array, -1)
            assert not np.shares_memory(y, array)
            while y.base is not None:
                y = y.base
                assert y is not array
