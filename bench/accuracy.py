"""The largest errors seen on random rows, in ULP, beside SciPy's and PyTorch's where they are installed.

    python bench/accuracy.py [--rows 400] [--longest 20]

Rows have 1 to 2**longest elements, spreads from 0.1 to 104 (float32) or 700 (float64), offsets from 0 to a million.
The exact value is computed in long double. Where logsumexp comes out near 0, its unit is that of
log(sum(exp(a - max(a)))).
"""

import argparse
import importlib.util

import numpy as np

import fastsoftmax
from fastsoftmax import _dispatch

SPREAD = {"float32": 104.0, "float64": 700.0}


def rows(dtype, count, longest, rng):
    """Random rows: as many short ones as long ones, on a logarithmic scale."""
    for i in range(count):
        n = int(2 ** rng.uniform(0, longest if i % 8 == 0 else min(longest, 10)))
        spread = 10 ** rng.uniform(-1, np.log10(SPREAD[dtype]))
        offset = 0.0 if i % 2 else rng.normal() * 10 ** rng.uniform(0, 6)
        if i % 3:
            yield (offset - spread * rng.random(n)).astype(dtype)
        else:
            yield (offset - spread * rng.random(n) ** 4).astype(dtype)          # a few far below the others


def exact(x):
    """softmax, log_softmax, logsumexp and log(sum(exp(x - max(x)))) in long double."""
    x = x.astype(np.longdouble)
    below = x - x.max()
    others = np.exp(below[below < 0]).sum() + (np.count_nonzero(below == 0) - 1)
    log = np.log1p(others)
    return {"softmax": np.exp(below) / (1 + others), "log_softmax": below - log, "logsumexp": x.max() + log}, log


def ulp(got, true, unit_of):
    unit = np.spacing(np.abs(unit_of).astype(got.dtype)).astype(np.longdouble)
    return float(np.max(np.abs(got.astype(np.longdouble) - true) / unit))


def libraries():
    """name -> {function name: callable}."""
    ours = {name: getattr(fastsoftmax, name) for name in ("softmax", "log_softmax", "logsumexp")}
    found = {f"fastsoftmax {isa}": (isa, ours) for isa in _dispatch.supported()}
    if importlib.util.find_spec("scipy"):
        import scipy.special

        found["SciPy"] = (None, {name: getattr(scipy.special, name) for name in ours})
    if importlib.util.find_spec("torch"):
        import torch

        def through_torch(function):
            return lambda x: function(torch.from_numpy(x), dim=0).numpy()

        found["PyTorch"] = (None, {
            "softmax": through_torch(torch.softmax), "log_softmax": through_torch(torch.log_softmax),
            "logsumexp": through_torch(torch.logsumexp)})
    return found


def measure(dtype, count, longest):
    worst = {}
    for x in rows(dtype, count, longest, np.random.default_rng(0)):
        true, log = exact(x)
        for library, (isa, functions) in libraries().items():
            with np.errstate(all="ignore"), _dispatch.using(isa or _dispatch.isa()):
                for name, function in functions.items():
                    got = np.asarray(function(x))
                    unit = np.maximum(abs(true[name]), log) if name == "logsumexp" else true[name]
                    key = library, name
                    worst[key] = max(worst.get(key, 0.0), ulp(got, true[name], unit))
            if library.startswith("fastsoftmax"):
                key = library, "row sum - 1"
                with _dispatch.using(isa):
                    total = fastsoftmax.softmax(x).astype(np.longdouble).sum()
                worst[key] = max(worst.get(key, 0.0), float(abs(total - 1)))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--longest", type=int, default=20, help="longest row: 2 to this power")
    options = parser.parse_args()
    print("| dtype | library | softmax | log_softmax | logsumexp | row sum - 1 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for dtype in SPREAD:
        worst = measure(dtype, options.rows, options.longest)
        for library in dict.fromkeys(key[0] for key in worst):
            figures = [f"{worst[library, name]:.3g}" for name in ("softmax", "log_softmax", "logsumexp")]
            total = worst.get((library, "row sum - 1"))
            print(f"| {dtype} | {library} | {' | '.join(figures)} | {'' if total is None else f'{total:.1e}'} |")


if __name__ == "__main__":
    main()
