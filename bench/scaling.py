"""How calls scale beyond this machine: the schedule of their tasks, simulated on up to 64 cores and two sockets.

    python bench/scaling.py [--cores-per-node 32] [--node-bandwidth 200] [--remote 0.5] [--json FILE]

A call is divided into tasks here as the kernels divide it; the constants are those of softmax/params.pxi,
attention/prefill.pxi and attention/decode.pxi, and the number of threads is what `_threads.threads_for` gives. One
thread's time of the call is measured, and shared among its tasks by their cost. Each task goes to the thread that is
free first, as with schedule(dynamic). A region ends, and the next begins, where the kernels look for an interrupt. A
region costs `fork` for two threads, measured, and `--wake` for each further one. A call is never faster than its bytes
at the bandwidth that its threads have: of one core, measured, up to that of a node. Memory is that of the first node;
threads of the other read it at `--remote` of the bandwidth. Arrays that fit into the cache (`--cache`) have no such
limit. The times of two threads are measured too, and the table shows the error of the prediction.
"""

import argparse
import heapq
import math
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import machine
import numpy as np
import record
from figures import cpu

import fastsoftmax
from fastsoftmax import _attention, _threads

CORES = (1, 2, 4, 8, 16, 32, 64)
LANES, TASK, LONG_ROW, PARTIALS = 16, 1 << 14, 1 << 15, 16             # float32, AVX-512
PASSES_COST, TILE_REGISTERS, SPLIT_KEYS, MAX_SPLITS = TASK, 12, 512, 64
SLICE, PREFILL_SLICE = PARTIALS << 18, LANES << 28                      # elements or multiplications of a thread


class Case(NamedTuple):
    """A call, and how the package divides it."""

    name: str
    shape: tuple                    # (outer, n, inner), or (B, Hq, Hk, L, S, E)
    causal: bool = False


CASES = (
    Case("softmax (1024, 1000)", (1024, 1000, 1)), Case("softmax (32, 1000, 64) axis 1", (32, 1000, 64)),
    Case("softmax (8, 128256)", (8, 128256, 1)), Case("softmax (1, 128256)", (1, 128256, 1)),
    Case("softmax (4096, 4096)", (4096, 4096, 1)),
    Case("prefill 12 heads, 512 x 64", (1, 12, 12, 512, 512, 64)),
    Case("prefill 32 heads, 4096 x 128", (1, 32, 32, 4096, 4096, 128)),
    Case("prefill 32 heads, 4096 x 128, causal", (1, 32, 32, 4096, 4096, 128), True),
    Case("prefill 32 heads on 8, 4096 x 128, causal", (1, 32, 8, 4096, 4096, 128), True),
    Case("prefill 32 queries, 2**20 keys, 1 head", (1, 1, 1, 32, 1 << 20, 64)),
    Case("decoding 32 heads on 8, 4096 keys", (1, 32, 8, 1, 4096, 128)),
    Case("decoding 32 heads on 8, 4096 keys, 8 caches", (8, 32, 8, 1, 4096, 128)),
    Case("decoding 12 heads, 2048 keys", (1, 12, 12, 1, 2048, 64)),
    Case("decoding 1 head, 16384 keys", (1, 1, 1, 1, 16384, 128)),
)


def ceil_div(a, b):
    return -(-a // b)


class Plan(NamedTuple):
    """Regions one after another; each a list of the costs of its tasks, in a unit of all."""

    threads: int
    regions: list


def team(threads, tasks):
    """A single task is the caller's; more of them are for all threads, some of which may get none."""
    return threads if len(tasks) > 1 else 1


def plan(case, number):
    """How the kernels divide the call where `number` threads are allowed."""
    with fastsoftmax.num_threads(number):
        return plan_rows(*case.shape) if len(case.shape) == 3 else plan_attention(case.causal, *case.shape)


def regions(threads, tasks, slice_):
    """A region for each slice of the tasks: `slice_` tasks of each thread."""
    step = max(slice_, 1) * threads
    return [tasks[first:first + step] for first in range(0, len(tasks), step)]


def plan_rows(outer, n, inner):
    threads = _threads.threads_for(outer * n * inner)
    row, rows = n, outer * inner
    if inner >= PARTIALS // 2:                      # tiles of PARTIALS rows
        row, rows = n * PARTIALS, outer * ceil_div(inner, PARTIALS)
    sharers = min(threads, max(n // LONG_ROW, 1))
    if inner == 1 and sharers > 1 and rows * (n // sharers + PASSES_COST) < ceil_div(rows, threads) * n:
        return Plan(sharers, [[n / sharers / 3] * sharers] * (3 * rows))
    size = max(1, min(max(rows * row // (16 * threads), TASK), 4 * TASK) // row)
    tasks = [min(size, rows - first) * row for first in range(0, rows, size)]
    return Plan(team(threads, tasks), regions(threads, tasks, SLICE // (size * row)))


def plan_attention(causal, batch, heads, key_heads, length, keys, dim):
    q, k = (np.broadcast_to(np.float32(0), shape) for shape in (
        (batch, heads, length, dim), (batch, key_heads, keys, dim)))
    products = 2 * q.size * keys
    threads = _threads.threads_for(products // _attention.products_per_element(q, k, batch))
    rows, pairs = length * heads // key_heads, batch * key_heads
    if rows <= 16:                                  # decode
        split = max(SPLIT_KEYS, ceil_div(ceil_div(keys, MAX_SPLITS), 512) * 512)
        tasks = [min(split, keys - first) for first in range(0, keys, split)] * pairs
        return Plan(team(threads, tasks), [tasks] if len(tasks) == pairs else [tasks, [1] * pairs])
    registers = ceil_div(rows, LANES)
    size = ceil_div(registers, ceil_div(registers, TILE_REGISTERS)) * LANES
    tasks = [(min(first + size, rows) - first) * (keys * min(first + size, rows) // rows if causal else keys)
             for first in reversed(range(0, rows, size))]
    tasks *= pairs
    return Plan(team(threads, tasks), regions(threads, tasks, PREFILL_SLICE // (2 * size * keys * dim + 10000)))


def nbytes(case):
    """Bytes that a call moves between memory and the cores, once."""
    if len(case.shape) == 3:
        return 8 * math.prod(case.shape)
    batch, heads, key_heads, length, keys, dim = case.shape
    return 8 * batch * dim * (heads * length + key_heads * keys)


def simulate(regions, threads, second, fork):
    """Seconds of all regions; second: of a unit of cost; fork: of a region."""
    total = 0.0
    for tasks in regions:
        free = [0.0] * threads
        for cost in tasks:
            heapq.heapreplace(free, free[0] + cost * second)
        total += max(free) + (fork if threads > 1 else 0.0)
    return total


def predicted(case, number, one, host, options):
    """Seconds of the call where `number` threads are allowed, and the plan; one: one thread's time."""
    chosen = plan(case, number)
    units = sum(map(sum, chosen.regions))
    fork = host["fork"] + max(chosen.threads - 2, 0) * options.wake
    seconds = simulate(chosen.regions, chosen.threads, one / units, fork)
    if nbytes(case) > options.cache << 20:
        kind = "copy" if len(case.shape) == 3 else "read"
        near = min(chosen.threads, options.cores_per_node)
        far = chosen.threads - near
        limit = options.node_bandwidth * 1e9 * options.memory_nodes
        bandwidth = min((near + far * options.remote) * host[kind], limit)
        seconds = max(seconds, nbytes(case) / bandwidth)
    return seconds, chosen


# --- measurement


def median(call, seconds=0.15):
    """Seconds of a call."""
    call()
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def call_of(case):
    rng = np.random.default_rng(0)
    if len(case.shape) == 3:
        outer, n, inner = case.shape
        x = rng.standard_normal(case.shape, np.float32)
        out = np.empty_like(x)
        return lambda: fastsoftmax.softmax(x, 1, out=out)
    batch, heads, key_heads, length, keys, dim = case.shape
    q = rng.standard_normal((batch, heads, length, dim), np.float32)
    k, v = (rng.standard_normal((batch, key_heads, keys, dim), np.float32) for _ in range(2))
    out = np.empty_like(q)
    return lambda: fastsoftmax.scaled_dot_product_attention(
        q, k, v, is_causal=case.causal, enable_gqa=True, out=out)


def measured(case):
    """Seconds of one thread and of two, in turns."""
    call, times = call_of(case), {1: [], 2: []}
    for _ in range(3):
        for number, found in times.items():
            with fastsoftmax.num_threads(number):
                found.append(median(call, 0.1))
    return [statistics.median(found) for found in times.values()]


def host_limits():
    """fork: seconds of a parallel region of two threads; copy, read: bytes a second of one core.

    A long row takes three regions: fork is a third of what two threads take beyond half of one thread's time. That
    includes the cache lines that one thread reads after the other has written them.
    """
    one, two = measured(Case("long row", (1, 1 << 18, 1)))
    limits = {"fork": max(two - one / 2, 0.0) / 3}
    one = machine.Machine(1)
    for kind in ("copy", "read"):
        statement, space = one.call(kind, None)
        code = compile(statement, "limit", "eval")
        seconds = median(lambda code=code, space=space: eval(code, space))
        limits[kind] = machine.BYTES * (2 if kind == "copy" else 1) / seconds
    return limits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores-per-node", type=int, default=32)
    parser.add_argument("--node-bandwidth", type=float, default=200.0, help="GB/s; eight channels of DDR4-3200 are 205")
    parser.add_argument("--remote", type=float, default=0.5, help="bandwidth from the other socket, relative")
    parser.add_argument("--memory-nodes", type=int, default=1, help="2: arrays are interleaved over both sockets")
    parser.add_argument("--cache", type=int, default=32, help="MiB that stay in the caches from call to call")
    parser.add_argument("--wake", type=float, default=0.2e-6, help="seconds a region costs for each thread beyond two")
    parser.add_argument("--json", type=Path, default=record.RESULTS / "scaling.json")
    options = parser.parse_args()
    host, rows = host_limits(), []
    for case in CASES:
        one, two = measured(case)
        runs = {number: predicted(case, number, one, host, options) for number in CORES}
        rows.append({"name": case.name, "one": one, "two": two, "two_predicted": runs[2][0],
                     "threads": {str(number): chosen.threads for number, (_, chosen) in runs.items()},
                     "speedup": {str(number): round(one / seconds, 2) for number, (seconds, _) in runs.items()}})
        print(f"{case.name}: {one * 1e6:.1f} us, two threads {two * 1e6:.1f}, predicted {runs[2][0] * 1e6:.1f}; "
              + " ".join(f"{number}: {rows[-1]['speedup'][str(number)]}" for number in CORES), flush=True)
    record.save(options.json, {
        "cpu": cpu(), "host": host, "options": {name: value for name, value in vars(options).items() if name != "json"},
        "rows": rows})


if __name__ == "__main__":
    main()
