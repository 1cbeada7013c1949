"""All threads against one: in quiet, after a matmul of NumPy in the same process, and after another program.

    python bench/beside_matmul.py [quiet] [matmul] [disturbance] [--seconds 2] [--json FILE]

quiet: calls one after the other. matmul: each call follows a product of NumPy, whose library (OpenBLAS) keeps its own
threads on their cores for a while. disturbance: another program has one core for some milliseconds; how long after it
calls still take nearly the time of one thread, and what they lose. Times are medians in microseconds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from busy import call_of

import fastsoftmax
from fastsoftmax import _testing

QUIET = ((64, 1024), (128, 1024), (256, 1024), (1024, 1000), (1, 12, 12, 512, 512, 64))
AFTER_MATMUL = ((64, 1000), (256, 1000), (1024, 1000), (1, 12, 12, 512, 512, 64))
DISTURBANCES = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)        # ms
DISTURBED = (256, 1000)

without_back_off = False

# Has one core for so many ms whenever a line asks for it; says when it has begun, and when it has ended.
PROGRAM = """
import os, sys, time
os.sched_setaffinity(0, {%d})
for line in sys.stdin:
    begin = time.perf_counter_ns()
    while time.perf_counter_ns() < begin + float(line) * 1e6:
        pass
    print(begin, time.perf_counter_ns(), flush=True)
"""


def timed(call):
    if without_back_off:
        _testing.compute_serially(0)
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e3


def in_turns(work, all_threads, seconds, rounds=6):
    """{threads: a list of what work() returns}, and the share of work() by all threads that used one alone."""
    found, alone = {1: [], all_threads: []}, 0
    for _ in range(rounds):
        for threads, results in found.items():
            with fastsoftmax.num_threads(threads):
                for _ in range(3):
                    work()
                end = time.perf_counter() + seconds / rounds / 2
                while time.perf_counter() < end:
                    before = _testing.contention_state()[1]
                    results.append(work())
                    alone += threads > 1 and _testing.contention_state()[1] == before
    return found, alone / max(1, len(found[all_threads]))


def quiet(all_threads, seconds):
    print(f"| in quiet | 1 thread | {all_threads} threads | faster by | 90th percentile | by one thread |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for shape in QUIET:
        call = call_of(shape)
        found, alone = in_turns(lambda call=call: timed(call), all_threads, seconds)
        one, all_ = (np.median(found[n]) for n in (1, all_threads))
        print(f"| {shape} | {one:.1f} | {all_:.1f} | {one / all_:.2f} | {np.percentile(found[all_threads], 90):.1f} | "
              f"{alone:.1%} |", flush=True)
        rows.append({"shape": str(shape), "times": [one, all_], "alone": alone})
    return rows


def after_matmul(all_threads, seconds):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 512, 512)).astype(np.float32)
    out = np.empty_like(a)
    print(f"| after a matmul | 1 thread | {all_threads} threads | faster by | 90th percentile / 1 thread "
          f"| by one thread | matmul beside 1 | beside {all_threads} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for shape in AFTER_MATMUL:
        call = call_of(shape)

        def work(call=call):
            return timed(lambda: np.matmul(a, b, out=out)), timed(call)

        found, alone = in_turns(work, all_threads, seconds)
        (matmul_1, one), (matmul_n, all_) = (np.median(found[n], axis=0) for n in (1, all_threads))
        tail = np.percentile([t for _, t in found[all_threads]], 90)
        print(f"| {shape} | {one:.0f} | {all_:.0f} | {one / all_:.2f} | {tail / one:.2f} | {alone:.1%} | "
              f"{matmul_1:.0f} | {matmul_n:.0f} |", flush=True)
        rows.append({"shape": str(shape), "times": [one, all_], "tail": tail, "matmul": [matmul_1, matmul_n],
                     "alone": alone})
    return rows


def disturbed(call, program, length, usual, alone, settle=0.5):
    """(ms from the end of a disturbance of `length` ms until calls are fast again, ms that all calls lost)."""
    end = time.perf_counter() + settle
    while time.perf_counter() < end:
        call()
    program.stdin.write(f"{length}\n")
    program.stdin.flush()
    times = []
    stop = time.perf_counter_ns() + int(length * 1e6) + 2_000_000_000
    while (now := time.perf_counter_ns()) < stop:
        call()
        times.append((now, time.perf_counter_ns() - now))
        if now > stop - 1_900_000_000 and len(times) > 10 and fast(times, usual, alone):
            break
    _, ended = map(int, program.stdout.readline().split())
    starts, spent = np.array(times).T
    # the last time that most of ten calls in a row are slow
    slow = [i for i in range(0, len(spent) - 10) if not fast(times[i:i + 10], usual, alone)]
    back = max(0, starts[min(slow[-1] + 10, len(starts) - 1)] - ended) / 1e6 if slow else 0.0
    return back, np.sum(np.clip(spent / 1e3 - usual, 0, None)[spent / 1e3 > 1.3 * usual]) / 1e3


def fast(times, usual, alone):
    """Whether the median of the last calls is nearer to that of all threads than to that of one."""
    return np.median([spent for _, spent in times[-10:]]) / 1e3 < (usual * alone) ** 0.5


def disturbance(all_threads, seconds):
    call = call_of(DISTURBED)
    found, _ = in_turns(lambda: timed(call), all_threads, seconds)
    alone, usual = (np.median(found[n]) for n in (1, all_threads))
    print(f"softmax of {DISTURBED}: {alone:.0f} us by one thread, {usual:.0f} by {all_threads}; the table is in ms")
    if usual > 0.8 * alone:
        sys.exit("the machine is not quiet: all threads gain too little to tell when they are back")
    core = max(os.sched_getaffinity(0))
    program = subprocess.Popen([sys.executable, "-c", PROGRAM % core], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    print("| another program has a core for | slow afterwards: median, largest | lost by all calls |")
    print("| ---: | ---: | ---: |")
    rows = []
    try:
        with fastsoftmax.num_threads(all_threads):
            for length in DISTURBANCES:
                back, lost = np.array([disturbed(call, program, length, usual, alone) for _ in range(5)]).T
                print(f"| {length} | {np.median(back):.1f}, {back.max():.1f} | {np.median(lost):.1f} |", flush=True)
                rows.append({"length": length, "back": [np.median(back), back.max()], "lost": np.median(lost)})
    finally:
        program.kill()
        program.wait()
    return rows


PARTS = {"quiet": quiet, "matmul": after_matmul, "disturbance": disturbance}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="quiet, matmul, disturbance; all by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape")
    parser.add_argument("--no-back-off", action="store_true", help="all threads in each call, whatever it costs")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args()
    if not PARTS.keys() >= set(options.parts):
        parser.error(f"the parts are {', '.join(PARTS)}")
    global without_back_off
    without_back_off = options.no_back_off
    all_threads = len(os.sched_getaffinity(0))
    if all_threads < 2:
        sys.exit("this needs two cores")
    found = {}
    for name in options.parts or PARTS:
        found[name] = PARTS[name](all_threads, options.seconds)
        print()
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
