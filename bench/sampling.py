"""The time to draw a token from 128256 logits: sample, beside our softmax of the row, PyTorch and NumPy.

    python bench/sampling.py [--threads 1] [--rounds 9] [--tokens 128256] [--rows 1] [--json FILE]
                             [--python /path/to/python/with/torch]

The logits are normal deviates ("flat 1" and "flat 3", of this standard deviation), and peaked as a language model's, of
which thirty stand out. PyTorch and NumPy filter as most of their users do: top_k by topk or partition, top_p by a sort.
Each library has a process of its own, and they take turns; `--python` names an interpreter that has PyTorch, if this
one has not. The ratio is that of sample to our softmax of the same row in the same round; the aim is 3 for a
temperature alone, and 6 with filters. The last figure of a line says how many tokens are left.
"""

import argparse
import json
import os
import sys
import timeit

import numpy as np
from standalone import turns

FILTERS = {
    "temperature": {}, "top_k": {"top_k": 50}, "top_p": {"top_p": 0.9}, "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.9}, "all": {"top_k": 50, "top_p": 0.9, "min_p": 0.05},
}
LOGITS = "flat 1", "flat 3", "peaked"
TEMPERATURE = 0.8
OURS, SOFTMAX, TORCH, NUMPY = "sample", "softmax", "PyTorch", "NumPy"
BARS = {name: 6 if filters else 3 for name, filters in FILTERS.items()}


def logits_of(kind, rows, tokens):
    """float32 (rows, tokens), the same in every process."""
    rng = np.random.default_rng([len(kind), tokens])
    if kind != "peaked":
        return (float(kind.split()[1]) * rng.normal(size=(rows, tokens))).astype(np.float32)
    x = 1.5 * rng.normal(size=(rows, tokens))
    for row in x:
        row[rng.integers(0, tokens, 30)] = 12 + rng.exponential(1, 30)
    return x.astype(np.float32)


def ours(x, filters):
    import fastsoftmax

    rng = np.random.default_rng(0)
    return lambda: fastsoftmax.sample(x, temperature=TEMPERATURE, rng=rng, **filters)


def our_softmax(x, filters):
    import fastsoftmax

    return lambda: fastsoftmax.softmax(x, -1)


def pytorch(x, filters):
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    scores = torch.from_numpy(x)

    def call(top_k=None, top_p=None, min_p=None, typical_p=None):
        z = scores / TEMPERATURE
        if top_k is not None:
            z = z.masked_fill(z < z.topk(top_k).values[..., -1:], -torch.inf)
        if top_p is not None:
            ordered, at = z.sort(descending=False)
            removed = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
            z = z.masked_fill(removed.scatter(-1, at, removed), -torch.inf)
        if min_p is not None:
            p = z.softmax(-1)
            z = z.masked_fill(p < min_p * p.amax(-1, keepdim=True), -torch.inf)
        if typical_p is not None:
            logs = z.log_softmax(-1)
            distance = (-logs - -(logs.exp() * logs).nansum(-1, keepdim=True)).abs()
            _, at = distance.sort()
            reached = z.gather(-1, at).softmax(-1).cumsum(-1) >= typical_p
            removed = reached.roll(1, -1)
            removed[..., 0] = False
            z = z.masked_fill(removed.scatter(-1, at, removed), -torch.inf)
        return torch.multinomial(z.softmax(-1), 1)

    return lambda: call(**filters)


def numpy(x, filters):
    rng = np.random.default_rng(0)

    def weights(z):
        w = np.exp(z - z.max(-1, keepdims=True))
        return w / w.sum(-1, keepdims=True)

    def call(top_k=None, top_p=None, min_p=None, typical_p=None):
        z = x / np.float32(TEMPERATURE)
        if top_k is not None:
            z = np.where(z < np.partition(z, -top_k, -1)[..., -top_k, None], -np.inf, z)
        if top_p is not None:
            at = np.argsort(z, -1)
            removed = np.cumsum(np.take_along_axis(weights(z), at, -1), -1) <= 1 - top_p
            hidden = np.empty_like(removed)
            np.put_along_axis(hidden, at, removed, -1)
            z = np.where(hidden, -np.inf, z)
        if min_p is not None:
            p = weights(z)
            z = np.where(p < min_p * p.max(-1, keepdims=True), -np.inf, z)
        if typical_p is not None:
            p = weights(z)
            logs = np.log(np.maximum(p, np.finfo(np.float32).tiny))
            at = np.argsort(abs(logs - (p * logs).sum(-1, keepdims=True)), -1)
            reached = np.cumsum(np.take_along_axis(p, at, -1), -1)
            hidden = np.empty(z.shape, bool)
            np.put_along_axis(hidden, at, reached - np.take_along_axis(p, at, -1) >= typical_p, -1)
            z = np.where(hidden, -np.inf, z)
        return [np.searchsorted(np.cumsum(p), u * p.sum(), "right") for p, u in zip(
            weights(z), rng.random(len(z)), strict=True)]

    return lambda: call(**filters)


LIBRARIES = {OURS: ours, SOFTMAX: our_softmax, TORCH: pytorch, NUMPY: numpy}


def start(name):
    """Import the library; return the greeting, and the function that makes a case's timer."""
    def prepare(case):
        kind, filters, rows, tokens = case
        x = logits_of(kind, rows, tokens)
        about = {}
        if name == OURS:
            left = fastsoftmax.filter_logits(x, temperature=TEMPERATURE, **filters) > -np.inf
            about["left"] = int(left.sum(-1).mean())
        return timeit.Timer(LIBRARIES[name](x, filters)), about

    if name in (OURS, SOFTMAX):
        import fastsoftmax

        return {"version": fastsoftmax.__version__}, prepare
    module = __import__("torch" if name == TORCH else "numpy")
    return {"version": module.__version__}, prepare


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a turn")
    parser.add_argument("--tokens", type=int, default=128_256)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(options):
    """The worker of one library; PyTorch's may run in another interpreter."""
    if options.worker == TORCH and options.python != sys.executable:
        os.execv(options.python, [options.python, os.path.abspath(__file__), "--worker", TORCH, "--python",
                                  options.python])
    turns.serve(lambda: start(options.worker))


def measure(options):
    """A dict of each case."""
    folder = os.path.dirname(os.path.abspath(__file__))
    path = os.pathsep.join([folder, *filter(None, sys.path)])
    commands = [(name, [os.path.abspath(__file__), "--worker", name, "--python", options.python], options.threads,
                 path if name != TORCH or options.python == sys.executable else folder) for name in LIBRARIES]
    found = []
    with turns.workers(commands) as crew:
        print(f"{'':26}" + "".join(f"{worker.name:>12}" for worker in crew) + f"{'ratio':>8}{'bar':>5}{'left':>8}")
        for kind in LOGITS:
            for name, filters in FILTERS.items():
                case = [kind, filters, options.rows, options.tokens]
                times, reasons, notes = turns.take_turns(crew, case, options.rounds, options.seconds)
                cells = [turns.duration(times[w.name]) if w.name in times else "absent" for w in crew]
                ratio = turns.ratio(times[OURS], times[SOFTMAX])
                print(f"{kind + ', ' + name:26}" + "".join(f"{cell:>12}" for cell in cells)
                      + f"{ratio:>8.2f}{BARS[name]:>5}{notes[OURS]['left']:>8}", flush=True)
                found.append({"logits": kind, "filters": name, "seconds": times, "ratio": ratio, "bar": BARS[name],
                              "left": notes[OURS]["left"], "absent": reasons})
        for name, why in found[0]["absent"].items():
            print(f"{name} is absent: {why}")
        versions = {worker.name: worker.greeting.get("version") for worker in crew}
    return {"threads": options.threads, "rows": options.rows, "tokens": options.tokens, "versions": versions,
            "cases": found}


def main():
    options = arguments()
    if options.worker:
        return work(options)
    found = measure(options)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file)
    return None


if __name__ == "__main__":
    main()
