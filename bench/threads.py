"""The figures of docs/threads.md: from which size two threads pay, and what other programs and libraries cost.

    python bench/threads.py [--seconds 2] [--json FILE]

Runs busy.py and beside_matmul.py with the threads of fastsoftmax (FASTSOFTMAX_THREADING_LAYER=pool) and with OpenMP's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from figures import cpu

import fastsoftmax
from fastsoftmax import _fastpath

HERE = Path(__file__).parent
SIZES = (24576, 32768, 65536, 131072)
LAYERS = ("pool", "openmp")


def median_us(call, seconds=0.25):
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 20:
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times[10:])) / 1e3


def second_thread():
    """[[elements, [us by one thread, by two] of float32, of float64], ...] for rows of 1024."""
    rows = []
    for size in SIZES:
        row = [size]
        for dtype in (np.float32, np.float64):
            x = np.random.default_rng(0).normal(size=(size // 1024, 1024)).astype(dtype)
            out, pair = np.empty_like(x), []
            for number in (1, 2):
                _fastpath.configure(lambda elements, number=number: number, 1 << 62)
                pair.append(median_us(lambda x=x, out=out: fastsoftmax.softmax(x, -1, out=out)))
            row.append([round(t, 1) for t in pair])
        rows.append(row)
    return rows


def rows_of(script, *arguments, layer):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        subprocess.run([sys.executable, str(HERE / script), *arguments, "--json", str(path)], check=True,
                       env={**os.environ, "FASTSOFTMAX_THREADING_LAYER": layer})
        return json.loads(path.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    seconds = ("--seconds", str(options.seconds))
    data = {"cpu": cpu(), "isa": fastsoftmax.show_config("dicts")["isa"], "second_thread": second_thread()}
    for row in data["second_thread"]:
        print(*row)
    for layer in LAYERS:
        print(f"\n{layer}", flush=True)
        data[layer] = {"busy": rows_of("busy.py", *seconds, layer=layer),
                       **rows_of("beside_matmul.py", *seconds, layer=layer)}
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
