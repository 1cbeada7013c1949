"""The caller's floating-point environment: it changes no result, and no call changes it.

Some libraries leave a thread with another rounding mode, or with subnormals flushed to zero; some programs let
exceptions trap. Every way through the package is called so: kernels, what NumPy does round them, the reference. The
functions are those of functions.py.
"""

import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import warnings

import functions
import numpy as np
import pytest

from fastsoftmax import (
    causal_mask_,
    causal_softmax,
    log_softmax,
    logsumexp,
    merge_attention_states,
    num_threads,
    scaled_dot_product_attention,
    softmax,
    softmax_entropy,
)

glibc_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc", reason="reads MXCSR by glibc's fenv_t")


@pytest.fixture(autouse=True)
def _no_garbage_collection():
    """Hypothesis adds its times up in a callback of each collection, which leaves a flag in the calling thread."""
    gc.disable()
    yield
    gc.enable()


# bits of MXCSR
FLAGS, MASKS, DOWN, UP, TO_ZERO, FTZ, DAZ = 0x3F, 0x1F80, 0x2000, 0x4000, 0x6000, 0x8000, 0x0040
MODES = {"downward": DOWN, "upward": UP, "to zero": TO_ZERO, "flush subnormals": FTZ | DAZ}

RNG = np.random.default_rng(0)
X = {t: (RNG.normal(size=(7, 40)) * 20).astype(t) for t in ("f2", "f4", "f8", "g", "c8", "c16", ">f4", "i8")}
X["f4"][0, 0] = X["f8"][0, 0] = -90             # a weight that is subnormal in float32
LONG = (RNG.normal(size=70_000) * 30).astype("f4")
ONES = np.ones((7, 40), bool)
T = RNG.uniform(0.3, 3, (7, 1))
T_NARROW, WIDE, LARGE = T.astype("f4"), np.tile(X["f8"], (40, 30)), X["i8"] * (2**55 + 1)
LENGTHY = np.broadcast_to(X["f4"][:1, None], (1, 7000, 40))
SWAPPED = np.zeros((7, 40), ">f4")
MASKED = {t: X[t].copy() for t in ("f2", "f4", "f8", "g")}
HEADS = {t: (RNG.normal(size=(2, 4, 60, 40)) * 2).astype(t) for t in ("f2", "f4", "f8", "g", ">f4")}
CACHE = (RNG.normal(size=(2, 1100, 40)) * 3).astype("f4")
BIAS, TINY = RNG.normal(size=(4, 60, 60)), np.full((4, 60, 60), 1e-310)     # the latter vanishes in float32
VISIBLE = RNG.random((60, 60)) < 0.8
SMALL = {t: (HEADS[t] * 2.0**-63).astype(t) for t in ("f4", "f8")}          # scores that are subnormal in float32
OUT, SWAPPED_BIAS, BIASES = np.zeros((2, 4, 60, 40), ">f4"), BIAS.astype(">f8"), (BIAS, TINY, BIAS.astype("f2"))
FAR = 10**18
THIRDS = np.full(4, 1 / 3, "g")
STATES = {}                                     # parts of attention, of which one has seen no key
for _t in ("f2", "f4", "f8"):
    _lse = RNG.normal(size=(2, 4, 60)).astype("f4" if _t == "f2" else _t)
    STATES[_t] = [HEADS[_t], -HEADS[_t], HEADS[_t]], [_lse, _lse - _lse.dtype.type(20), np.full_like(_lse, -np.inf)]


def attend(x, **options):
    """All that can be asked of attention to itself; every result."""
    return scaled_dot_product_attention(x, x, x, return_lse=True, return_entropy=True, **options)


def samples_of(name):
    """call() of all that the table has of a function, in each dtype; what several threads share in float32."""
    function = functions.FUNCTIONS[name]
    calls = [functions.prepared(name, sample, t) for sample in function.samples.values() for t in ("f2", "f4", "f8")]
    calls += [functions.prepared(name, sample, "f4") for sample in function.large.values()]
    return lambda: [y for call in calls for y in functions.results(call())]


def of_scores(x, *needed, axis=None, **options):
    """The results of every function of one array of scores that takes what is needed."""
    return [functions.of_scores(f, x, axis, **options) for f in functions.OF_SCORES if functions.takes(f, *needed)]


# Every function, by the table; then numbers and dtypes at which these modes are known to matter.
CALLS = {
    **{name: samples_of(name) for name in functions.FUNCTIONS},
    "fast path": lambda: [y for t in ("f2", "f4", "f8") for y in of_scores(X[t], "axis")],
    "rows": lambda: [y for t in ("f2", "f4", "f8") for y in of_scores(X[t], axis=-1)],
    "columns": lambda: [y for t in ("f2", "f4", "f8")
                        for y in of_scores(X[t], "axis", "temperature", axis=0, temperature=0.7)],
    "temperatures": lambda: [softmax(X[t], -1, temperature=T, where=ONES) for t in ("f2", "f4", "f8")],
    "temperatures in float32": lambda: [softmax(X["f4"], -1, temperature=T_NARROW)],
    "odd temperatures": lambda: [softmax(X["f8"], -1, temperature=1e-31), log_softmax(X["f4"], temperature=1e35)],
    "threads": lambda: [*of_scores(LONG, "axis"), *of_scores(WIDE, axis=-1)],
    "narrowing": lambda: [y for t in ("f4", "f2") for axis in (0, -1)
                          for y in of_scores(X["f8"], "dtype", axis=axis, dtype=t)],
    "widening": lambda: [y for t in ("f2", "f4", "i8") for y in of_scores(X[t], "dtype", axis=-1, dtype="f8")],
    "other byte order": lambda: [*of_scores(X[">f4"], axis=-1), softmax(X["f4"], -1, out=SWAPPED)],
    "integers": lambda: [y for x in (LARGE, X["i8"]) for axis in (0, -1) for y in of_scores(x, axis=axis)],
    "in pieces": lambda: [f(LENGTHY) for f in (logsumexp, softmax_entropy)],
    "factors": lambda: [logsumexp(X["f4"], 1, X["f8"]), *logsumexp(X["f8"], 0, X["f8"], return_sign=True)],
    "reference": lambda: [f(X[t], -1) for t in ("g", "c8", "c16") for f in (softmax, log_softmax, logsumexp)],
    "causal": lambda: [causal_softmax(X[t], dtype=d) for t in ("f4", "f8") for d in (None, "f4", "f8")],
    "mask": lambda: [causal_mask_(x, fill_value=0.1) for x in MASKED.values()],
    "attention": lambda: [scaled_dot_product_attention(x, x, x, is_causal=c) for x in (
        HEADS["f2"], HEADS["f4"], HEADS["f8"], SMALL["f4"], SMALL["f8"]) for c in (False, True)],
    "attention, few queries": lambda: [scaled_dot_product_attention(x[..., :2, :], x, x) for x in (
        CACHE, HEADS["f2"], HEADS["f4"], HEADS["f8"], SMALL["f4"])],
    "attention, narrow": lambda: [
        scaled_dot_product_attention(x[..., :3], x[..., :3], x[..., :1], scale=1 / 3) for x in HEADS.values()],
    "attention with statistics": lambda: [y for t in ("f2", "f4", "f8") for y in attend(HEADS[t])],
    "attention with terms": lambda: [y for t in ("f2", "f4", "f8") for bias in BIASES for y in
                                     attend(HEADS[t], bias=bias, attn_mask=VISIBLE, window=(5, 3))],
    "attention with numbers": lambda: [y for t in ("f2", "f4", "f8") for y in attend(
        HEADS[t], scale=[0.1, 0.7, 1 / 3, 1e-310], softcap=1.1, alibi_slopes=[0.1, 1e-45, 1e300, 1e-300],
        sinks=[0.3, 1e-310, 1e300, -np.inf], key_lengths=[60, 33], causal_offset=FAR)],
    "attention in another byte order": lambda: [
        *attend(HEADS[">f4"], attn_mask=SWAPPED_BIAS),
        scaled_dot_product_attention(*[HEADS["f4"]] * 3, scale=THIRDS, out=OUT)],
    "attention by the reference": lambda: [*attend(HEADS["g"]), *attend(HEADS["f4"], softcap=1e-31, bias=BIAS)],
    "attention in parts": lambda: [y for parts in STATES.values() for y in merge_attention_states(*parts)],
}


class Environment:
    """glibc's fenv_t, as bytes; MXCSR is its last word."""

    libm = ctypes.CDLL("libm.so.6") if platform.libc_ver()[0] == "glibc" else None

    @classmethod
    def get(cls):
        buffer = ctypes.create_string_buffer(32)
        cls.libm.fegetenv(buffer)
        return buffer.raw[:32]

    @classmethod
    def set(cls, raw):
        cls.libm.fesetenv(ctypes.create_string_buffer(raw, 32))

    @staticmethod
    def mxcsr(raw):
        return int.from_bytes(raw[28:], "little")

    @classmethod
    def with_mxcsr(cls, raw, value):
        return raw[:28] + value.to_bytes(4, "little")


def results(call):
    return [np.asarray(y) for y in call()]


def under(mxcsr, call):
    """The results with MXCSR so, and what it was after the call."""
    usual = Environment.get()
    try:
        Environment.set(Environment.with_mxcsr(usual, mxcsr))
        got = call()
        after = Environment.get()
    finally:
        Environment.set(usual)
    return [np.asarray(y) for y in got], Environment.mxcsr(after)


@glibc_x86
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CALLS)
def test_modes_change_no_result_and_stay(name, mode):
    with num_threads(2):
        expected = results(CALLS[name])
        wanted = MASKS | MODES[mode]
        got, after = under(wanted, CALLS[name])
    assert after & ~FLAGS == wanted
    for a, b in zip(got, expected, strict=True):
        if a.dtype.char == "g":                 # has bytes that mean nothing
            np.testing.assert_array_equal(a, b)
        else:
            assert a.tobytes() == b.tobytes()


@glibc_x86
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("flags", [0, FLAGS])
def test_exception_flags_stay(name, flags):
    with num_threads(2):
        _, after = under(MASKS | flags, CALLS[name])
    assert after == MASKS | flags


def call_with_traps(name):
    """The call with every exception of C unmasked but inexact and denormal, which nobody can compute without."""
    results(CALLS[name])
    usual = Environment.get()
    Environment.libm.feenableexcept(0x1D)
    CALLS[name]()
    trapping = Environment.libm.fegetexcept()
    Environment.set(usual)
    assert trapping == 0x1D, trapping


@pytest.fixture(scope="module")
def exit_codes():
    """{name: exit status of a process that calls it with traps}: -SIGFPE if one was taken."""
    code = f"""
import json, os, sys, traceback
sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}
from test_floating_point import CALLS, call_with_traps
found = {{}}
for name in CALLS:
    child = os.fork()
    if child == 0:
        try:
            call_with_traps(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    found[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


@glibc_x86
@pytest.mark.parametrize("name", CALLS)
def test_nothing_traps(name, exit_codes):
    assert exit_codes[name] == 0


@pytest.mark.parametrize("name", CALLS)
def test_neither_errstate_nor_warnings_as_errors_matter(name):
    """Data that overflows, vanishes or is no number at all gives results, whatever is asked of NumPy."""
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        got = results(CALLS[name])
    handler = []
    before = np.seterrcall(lambda *args: handler.append(args))
    try:
        with np.errstate(all="call"):
            again = results(CALLS[name])
    finally:
        np.seterrcall(before)
    assert handler == []
    for a, b in zip(got, again, strict=True):
        np.testing.assert_array_equal(a, b)


STATE = """
import ctypes, gc, locale, os, signal, sys, threading, warnings
import numpy as np
libm = ctypes.CDLL('libm.so.6') if sys.platform == 'linux' else None
def state():
    env = ctypes.create_string_buffer(64)
    if libm: libm.fegetenv(env)
    return dict(
        modes=env.raw[:4] + env.raw[28:32], errstate=np.geterr(), errcall=np.geterrcall(),
        filters=list(warnings.filters),
        signals=[signal.getsignal(s) for s in range(1, 32)], recursion=sys.getrecursionlimit(),
        switch=sys.getswitchinterval(), locale=locale.setlocale(locale.LC_ALL), environ=dict(os.environ),
        cwd=os.getcwd(), printing=np.get_printoptions(), gc=(gc.isenabled(), gc.get_threshold()),
        threads=threading.active_count(), tasks=os.listdir('/proc/self/task') if libm else None,
        affinity=os.sched_getaffinity(0) if libm else None, trace=sys.gettrace(), hook=sys.excepthook,
        finders=sys.meta_path[:], path=sys.path[:], files=len(os.listdir('/proc/self/fd')) if libm else None)
"""


def test_import_changes_nothing_of_the_process():
    code = STATE + """
before = state()
import fastsoftmax
after = state()
for key in before:
    assert before[key] == after[key], (key, before[key], after[key])
new = {name.partition('.')[0] for name in sys.modules} - {'fastsoftmax'}
print('scipy' in new, 'torch' in new, 'ml_dtypes' in new)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False False False\n"


def test_calls_change_nothing_of_the_process():
    code = STATE + f"""
sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}
import fastsoftmax, test_floating_point
from test_floating_point import CALLS
with fastsoftmax.num_threads(2):
    for call in CALLS.values(): call()          # threads and modules that are wanted are there
    before = state()
    for call in CALLS.values(): call()
after = state()
for key in before:
    assert before[key] == after[key], (key, before[key], after[key])
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


