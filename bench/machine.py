"""The limits of the machine itself, in the same run: a copy, a read, a write and a loop of multiply-adds in C.

The C text is compiled with `cc` into a temporary directory when it is needed. Without a compiler the limits are
shown as absent. The copy writes past the caches (non-temporal stores), as the fastest possible softmax of an
array beyond the cache would.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile

import numpy as np
import shapes
from peers.common import Peer, UnavailableError

SOURCE = r"""
#include <stddef.h>
#include <omp.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* The widest native register: vectors wider than that would go through the stack. */
#if defined(__AVX512F__)
enum { WIDTH = 64 };
#elif defined(__AVX__)
enum { WIDTH = 32 };
#else
enum { WIDTH = 16 };
#endif
typedef float vec __attribute__((vector_size(WIDTH), may_alias));

static inline void stream(vec *to, vec value)
{
#if defined(__AVX512F__)
    _mm512_stream_ps((float *)to, (__m512)value);
#elif defined(__AVX__)
    _mm256_stream_ps((float *)to, (__m256)value);
#elif defined(__x86_64__)
    _mm_stream_ps((float *)to, (__m128)value);
#else
    *to = value;
#endif
}

void limit_copy(vec *to, const vec *from, ptrdiff_t bytes, int threads)
{
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t i = 0; i < bytes / WIDTH; i++) stream(to + i, from[i]);
}

float limit_read(const vec *from, ptrdiff_t bytes, int threads)
{
    float total = 0;
    #pragma omp parallel num_threads(threads) reduction(+:total)
    {
        vec s[8] = {{0}};
        #pragma omp for schedule(static)
        for (ptrdiff_t i = 0; i < bytes / (8 * WIDTH); i++)
            for (int c = 0; c < 8; c++) s[c] += from[8 * i + c];
        for (int c = 1; c < 8; c++) s[0] += s[c];
        total += s[0][0];
    }
    return total;
}

void limit_write(vec *to, ptrdiff_t bytes, int threads)
{
    const vec minus_inf = (vec){0} - __builtin_inff();
    #pragma omp parallel for schedule(static) num_threads(threads)
    for (ptrdiff_t i = 0; i < bytes / WIDTH; i++) to[i] = minus_inf;
}

/* 12 chains: as many multiply-adds in flight as two ports with a latency of 4 to 5 need. They start from n: GCC
   folded a chain that started from 1, which stays 1, and the peak came out 12/11 too high. */
float limit_fma(ptrdiff_t n, int threads)            /* n * flops_per_step() flops per thread */
{
    float total = 0;
    #pragma omp parallel num_threads(threads) reduction(+:total)
    {
        vec s[12], a = (vec){0} + 0.999f, b = (vec){0} + 0.001f;
        for (int c = 0; c < 12; c++) s[c] = (vec){0} + (float)(n + c);
        for (ptrdiff_t i = 0; i < n; i++)
            for (int c = 0; c < 12; c++) s[c] = s[c] * a + b;
        for (int c = 1; c < 12; c++) s[0] += s[c];
        total += s[0][0];
    }
    return total;
}

int flops_per_step(void) { return 2 * 12 * WIDTH / 4; }
"""
FLAGS = ("-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
MEASURED = {"copy": "read and written", "read": "read", "write": "written", "fma": "multiply-adds"}
BYTES = 1 << 28
STEPS = 1_000_000


def compiled():
    """The C text as a loaded library; UnavailableError without a compiler."""
    compiler = os.environ.get("CC", "cc").split()
    if shutil.which(compiler[0]) is None:
        raise UnavailableError(f"no C compiler ({compiler[0]})")
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "machine.c"), os.path.join(folder, "machine.so")
        with open(source, "w") as file:
            file.write(SOURCE)
        done = subprocess.run([*compiler, *FLAGS, source, "-o", target], capture_output=True, text=True)
        if done.returncode:
            raise UnavailableError(f"{compiler[0]} failed: {done.stderr.partition(chr(10))[0]}")
        return ctypes.CDLL(target)


def aligned(nbytes):
    """Memory that starts at a cache line, and its address; written once, or all pages would be one page of zeros."""
    memory = np.full(nbytes + 64, 1, np.uint8)
    return memory, ctypes.c_void_p(memory.ctypes.data + -memory.ctypes.data % 64)


class Machine(Peer):
    """The limits, spoken to as the libraries are: call(family, shape)."""

    name = "machine"

    def __init__(self, threads):
        self.library, self.threads = compiled(), threads
        self.flops = self.library.flops_per_step() * STEPS * threads

    def call(self, family, shape):
        """A limit by its own name with no shape, or the one that bounds a function on a shape."""
        kind, n = limit(family, shape)
        if kind == "fma":
            steps = STEPS if shape is None else max(1, n // (self.library.flops_per_step() * self.threads))
            return "f(*arguments)", {"f": self.library.limit_fma, "arguments": (ctypes.c_ssize_t(steps), self.threads)}
        n = n // 512 * 512
        threads, count = ctypes.c_int(self.threads), ctypes.c_ssize_t(n)
        first, a = aligned(n)
        second, b = aligned(n if kind == "copy" else 64)
        arguments = {"copy": (b, a, count, threads), "read": (a, count, threads), "write": (a, count, threads)}[kind]
        f = getattr(self.library, f"limit_{kind}")
        return "f(*arguments)", {"f": f, "arguments": arguments, "keep": (first, second)}


def limit(family, shape):
    """The machine's limit that bounds a function on a shape, and how many bytes or float32 operations it takes.

    softmax reads and writes its array once (a copy), a reduction reads it, a causal mask writes half of it,
    a causal softmax reads half and writes all (taken as the copy of three quarters). Decoding reads the keys and
    values. Other attention is multiply-adds: in float64, of which a register holds half as many, each counts for two;
    the 16-bit types are computed in float32.
    """
    if family in MEASURED:
        return family, BYTES
    if family in shapes.ATTENTION:
        work, unit = shape.work(family)
        return ("read", work) if unit == "bytes" else ("fma", work * (2 if shape.dtype == "float64" else 1))
    if family in ("logsumexp", "softmax_entropy"):
        return "read", shape.nbytes
    kind, part = {"causal_mask_": ("write", 0.5), "causal_softmax": ("copy", 0.75)}.get(family, ("copy", 1))
    return kind, int(shape.nbytes * part)


def amount(kind, flops):
    """(amount of work per call, unit) of a limit measured by its own name."""
    if kind == "fma":
        return flops, "GFLOP/s"
    return BYTES * (2 if kind == "copy" else 1), "GB/s"
