"""fastsoftmax.dask on chunks of 64 MB beside the call on the whole array in memory.

    python bench/dask_chunks.py [--threads 1 2] [--rounds 7] [--only logsumexp] [--json FILE]

Both sides have the same threads: those of the kernel in memory, those of dask's threaded scheduler with one of ours
each. Each side runs in a process of its own, taking turns. The arrays are in memory on both sides, so the difference
is the cost of chunks: the graph, its scheduling, states and their merging. Prints the time of both, and the speed of
dask as a share of that in memory, the median over the rounds: the bar is 0.8 for logsumexp and attention.
"""

import argparse
import json
import math
import os
import sys
import timeit
from pathlib import Path

import numpy as np
from standalone import turns

TURN = 0.5      # seconds
MEMORY, DASK = "in memory", "dask"

# name -> function, shape of the array (or of the keys), shape of a chunk of 64 MB, axis
CASES = {
    "logsumexp, whole rows": ("logsumexp", (8192, 16384), (1024, 16384), -1),
    "logsumexp, rows in 8 pieces": ("logsumexp", (1024, 131072), (1024, 16384), -1),
    "logsumexp, one row in 8 pieces": ("logsumexp", (1 << 27,), (1 << 24,), 0),
    "logsumexp, columns in 8 pieces": ("logsumexp", (131072, 1024), (16384, 1024), 0),
    "logsumexp, everything": ("logsumexp", (8192, 16384), (4096, 4096), None),
    "entropy, rows in 8 pieces": ("softmax_entropy", (1024, 131072), (1024, 16384), -1),
    "softmax, whole rows": ("softmax", (8192, 16384), (1024, 16384), -1),
    "softmax, rows in 8 pieces": ("softmax", (1024, 131072), (1024, 16384), -1),
    "log_softmax, rows in 8 pieces": ("log_softmax", (1024, 131072), (1024, 16384), -1),
    "attention, 32 queries": ("attention", (1 << 20, 64), (1 << 18, 64), 32),
    "attention, 512 queries": ("attention", (1 << 20, 64), (1 << 18, 64), 512),
    "attention, 512 queries in 2 chunks": ("attention", (1 << 20, 64), (1 << 18, 64), (512, 256)),
}


def normal(shape, seed):
    """float32; a block repeated, since only the time matters."""
    block = np.random.default_rng(seed).normal(0, 1, 1 << 16).astype(np.float32)
    return np.resize(block, math.prod(shape)).reshape(shape)


def call_of(side, threads, name):
    """A function of nothing that computes the case."""
    import fastsoftmax

    function, shape, chunk, axis = CASES[name]
    if function == "attention":
        queries, of_queries = axis if isinstance(axis, tuple) else (axis, axis)
        arrays = [normal((queries, shape[1]), 0), normal(shape, 1), normal(shape, 2)]
        chunks, f, options = [(of_queries, shape[1]), chunk, chunk], "scaled_dot_product_attention", {}
    else:
        arrays, chunks, f, options = [3 * normal(shape, 0)], [chunk], function, {"axis": axis}
    out = np.zeros(shape, np.float32) if function in ("softmax", "log_softmax") else None   # the same place each time
    if side == MEMORY:
        options |= {} if out is None else {"out": out}
        return lambda: getattr(fastsoftmax, f)(*arrays, **options)
    try:
        import dask.array as da

        import fastsoftmax.dask
    except ImportError as error:
        raise turns.UnavailableError(str(error)) from None
    lazy = [da.from_array(x, chunks=c, name=f"array{i}") for i, (x, c) in enumerate(zip(arrays, chunks, strict=True))]
    run = {"scheduler": "threads", "num_workers": threads}
    if out is not None:
        return lambda: da.store(getattr(fastsoftmax.dask, f)(*lazy, **options), out, lock=False, **run)
    return lambda: getattr(fastsoftmax.dask, f)(*lazy, **options).compute(**run)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="only the cases whose name holds this")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        threads = int(os.environ["FASTSOFTMAX_NUM_THREADS"])
        turns.serve(lambda: ({}, lambda name: (timeit.Timer(call_of(arguments.worker, threads, name)), {})))
        return 0
    figures, failed = [], False
    for threads in arguments.threads:
        crew_arguments = [(side, [__file__, "--worker", side], threads) for side in (MEMORY, DASK)]
        with turns.workers(crew_arguments) as crew:
            for name in (name for name in CASES if arguments.only in name):
                times, reasons, _ = turns.take_turns(crew, name, arguments.rounds, TURN)
                if reasons:
                    failed = True
                    print(f"{name}: {reasons}")
                    continue
                share = turns.ratio(times[MEMORY], times[DASK])
                figures.append({"case": name, "threads": threads, "share": share, **times})
                print(f"{threads} thread{'s' * (threads > 1)}  {name:36} {turns.duration(times[MEMORY]):>9} in memory "
                      f"{turns.duration(times[DASK]):>9} by dask   {share:.2f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
