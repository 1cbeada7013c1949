"""Speed beside other libraries, each in a process of its own.

As a program, ``python -m fastsoftmax._selfcheck.speed LIBRARY THREADS``, it is the worker of one library.
"""

import importlib
import importlib.util
import sys
import timeit

import numpy as np

import fastsoftmax
from fastsoftmax._selfcheck import turns
from fastsoftmax._selfcheck.accuracy import queries_keys_values
from fastsoftmax._selfcheck.peers import PEERS

CASES = (  # name, function, shape, axis, dtype
    ("ten numbers", "softmax", (10,), -1, "float32"),
    ("GPT-2 vocabulary row", "softmax", (50257,), -1, "float32"),
    ("Llama-3 vocabulary row", "softmax", (128256,), -1, "float32"),
    ("ImageNet classes", "softmax", (1024, 1000), -1, "float32"),
    ("ImageNet classes", "log_softmax", (1024, 1000), -1, "float32"),
    ("ImageNet classes", "logsumexp", (1024, 1000), -1, "float32"),
    ("ImageNet classes", "softmax", (1024, 1000), -1, "float64"),
    ("attention scores", "softmax", (12, 512, 512), -1, "float32"),
    ("attention scores", "causal_softmax", (12, 512, 512), -1, "float32"),
    ("narrow classifier", "softmax", (100000, 10), -1, "float32"),
    ("channels of images", "softmax", (16, 128, 56, 56), 1, "float32"),
    ("BERT text", "attention", (1, 12, 12, 512, 512, 64), -1, "float32"),  # (B, Hq, Hk, L, S, E)
    ("BERT text", "causal attention", (1, 12, 12, 512, 512, 64), -1, "float32"),
    ("4096 keys cached", "attention", (1, 32, 8, 1, 4096, 128), -1, "float32"),
)
ROUNDS, TURN = 3, 0.02  # seconds
OURS, *OTHERS = PEERS


def call_of(name, function, shape, axis, dtype, threads):
    """The call to measure, a function without arguments: a library on random numbers."""
    rng, peer = np.random.default_rng(2), PEERS[name]
    if not function.endswith("attention"):
        return peer.softmax(function, rng.standard_normal(shape).astype(dtype), axis, threads)
    if peer.attention is None:
        raise turns.UnavailableError(f"{name} has no attention")
    arrays = (np.ascontiguousarray(x) for x in queries_keys_values(rng, dtype, *shape))
    return peer.attention(*arrays, function.startswith("causal"), threads)


def serve(name, threads):
    """The worker of one library; a case is an index into CASES."""
    def prepare(case):
        return timeit.Timer(call_of(name, *CASES[case][1:], threads)), {}

    turns.serve(lambda: ({"version": importlib.import_module(PEERS[name].module).__version__}, prepare))


def command(name, threads):
    """The arguments for Python that start the worker of a library."""
    return ["-m", "fastsoftmax._selfcheck.speed", name, str(threads)]


def row(case, times):
    """One line of the table: our time, and how many times as long each other library takes."""
    label, function, shape, axis, dtype = CASES[case]
    along = "" if axis == -1 else f" axis {axis}"
    line = f"{function:<17}{label:<23}{f'{shape}{along} {dtype}':<37}"
    if OURS not in times:
        return line + "FAILED"
    line += f"{turns.duration(times[OURS]):>11}"
    for name in OTHERS:
        cell = f"x {turns.ratio(times[name], times[OURS]):.2f}" if name in times else "-"
        line += f"{cell:>{len(name) + 4}}"
    return line


def show():
    """Print the table of times; return how often ours failed."""
    threads = fastsoftmax.get_num_threads()
    print(f"\nSpeed with {threads} threads at most: the time of our call, and how many times as long the others take")
    installed = [name for name, peer in PEERS.items() if importlib.util.find_spec(peer.module)]
    with turns.workers((name, command(name, threads), threads) for name in installed) as crew:
        print_versions(crew)
        print(f"{'':<77}{OURS:>11}" + "".join(f"{name:>{len(name) + 4}}" for name in OTHERS))
        started, failures = [worker for worker in crew if not worker.absent], 0
        for case in range(len(CASES)):
            times, reasons, _ = turns.take_turns(crew, case, ROUNDS, TURN)
            failures += OURS not in times
            print(row(case, times), flush=True)
            if OURS in reasons:
                print(f"  {OURS}: {reasons[OURS]}")
        print("-: not installed, or has no such function")
        for worker in started:
            if worker.absent:
                print(f"  {worker.name} {worker.absent}")
    return failures


def print_versions(crew):
    """Print each library with its version, or the reason why it is not measured."""
    found = {worker.name: worker for worker in crew}
    for name in PEERS:
        state = "absent"
        if name in found:
            state = found[name].greeting.get("version") or f"installed, but does not start: {found[name].absent}"
        print(f"  {name}: {state}" + ", exp(x - max) / sum in the dtype of x" * (name == "NumPy"))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
