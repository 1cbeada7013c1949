"""Calls while other programs have the cores: two threads against one.

    python bench/busy.py [--busy 1] [--seconds 4] [--json FILE]

Each of `--busy` cores runs an endless loop, as another program might. Calls by one thread and by all threads take
turns. Median, mean, 99th percentile and maximum, since what another program costs shows in the tail.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import fastsoftmax

SOFTMAX = ((66, 1000), (256, 1000), (1024, 1000), (1, 128256), (4096, 1000), (1, 2_000_000))
ATTENTION = ((1, 12, 12, 512, 512, 64), (1, 32, 8, 1, 4096, 128))       # B, Hq, Hk, L, S, E: a prefill, and a decoding
STATISTICS = {"median": np.median, "mean": np.mean, "p99": lambda t: np.percentile(t, 99), "max": np.max}


def durations(call, seconds):
    """Microseconds of one call after the other."""
    call()
    found, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 5:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return np.array(found) * 1e6


def call_of(shape):
    """Softmax of (rows, n), or attention of (B, Hq, Hk, L, S, E)."""
    rng = np.random.default_rng(0)
    if len(shape) == 2:
        x = rng.normal(size=shape).astype(np.float32)
        out = np.empty_like(x)
        return lambda: fastsoftmax.softmax(x, -1, out=out)
    b, hq, hk, length, s, e = shape
    q, k, v = (rng.normal(size=size).astype(np.float32) for size in ((b, hq, length, e), (b, hk, s, e), (b, hk, s, e)))
    out = np.empty_like(q)
    return lambda: fastsoftmax.scaled_dot_product_attention(q, k, v, enable_gqa=True, out=out)


def measure(shape, threads, seconds):
    call = call_of(shape)
    found = {1: [], threads: []}
    for _ in range(4):
        for number in found:
            with fastsoftmax.num_threads(number):
                found[number].append(durations(call, seconds / 8))
    return [np.concatenate(found[number]) for number in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each shape")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        sys.exit("this needs two cores")
    others = [
        subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"])
        for cpu in cpus[:options.busy]
    ]
    try:
        time.sleep(0.5)
        rows = []
        print(f"{options.busy} of {len(cpus)} cores busy; microseconds by 1 thread and by {len(cpus)}, and their ratio")
        print("| shape | " + " | ".join(STATISTICS) + " |\n| --- | --- | --- | --- | --- |")
        for shape in SOFTMAX + ATTENTION:
            one, all_ = measure(shape, len(cpus), options.seconds)
            row = {"shape": str(shape)} | {name: [float(f(one)), float(f(all_))] for name, f in STATISTICS.items()}
            cells = [f"{a:.0f}, {b:.0f}: {b / a:.2f}" for a, b in (row[name] for name in STATISTICS)]
            print(f"| {shape} | {' | '.join(cells)} |", flush=True)
            rows.append(row)
        if options.json:
            options.json.write_text(json.dumps(rows))
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
