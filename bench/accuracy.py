"""The largest errors, in ULP, beside SciPy's and PyTorch's where they are installed.

    python bench/accuracy.py [--rows 400] [--longest 20]    # random rows
    python bench/accuracy.py --sweep [1]                    # every float32 (or every k-th) in the domain of exp
    python bench/accuracy.py --hard [400]                   # rows of float64 that are hard for exp, against mpmath

With `--json bench/results/accuracy.json` random rows and the sweep also replace their part of that file, from which
`report.py` makes the tables of README.md and docs/.

Random rows have 1 to 2**longest elements, spreads from 0.1 to 104 (float32) or 700 (float64), offsets from 0 to a
million. The exact value is computed in long double. Where logsumexp comes out near 0, its unit is that of
log(sum(exp(a - max(a)))). Columns with "at T" are of the same rows times one of the temperatures 0.3, 0.7, 1.3 and
3, and of four rows with one of these each. Other libraries have no temperature and get x / T; none has an entropy.

The sweep takes the pairs (x, 0) or (0, x), by turns, of all x from -104 to 0, beyond which weights are 0. float64
is exact enough there: 2**-28 ULP of float32. It takes some minutes; other libraries get every 64th x.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from record import save

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


def exact(x, temperature=1.0):
    """The exact results along the last axis, and log(sum(exp(x - max(x)))), in long double."""
    below = (x.astype(np.longdouble) - x.max(-1, keepdims=True)) / np.longdouble(temperature)
    is_top = below == 0
    weights = np.exp(below)
    others = np.where(is_top, 0, weights).sum(-1, keepdims=True) + (is_top.sum(-1, keepdims=True) - 1)
    log = np.log1p(others)
    entropy = log - (weights * below).sum(-1, keepdims=True) / (1 + others)
    return {"softmax": weights / (1 + others), "log_softmax": below - log,
            "logsumexp": (x.max(-1, keepdims=True) + log)[..., 0], "softmax_entropy": entropy[..., 0]}, log[..., 0]


def ulp(got, true, unit_of):
    unit = np.spacing(np.abs(unit_of).astype(got.dtype)).astype(np.longdouble)
    return float(np.max(np.abs(got.astype(np.longdouble) - true) / unit))


FUNCTIONS = ("softmax", "log_softmax", "logsumexp", "softmax_entropy")
TEMPERATURES = (0.3, 0.7, 1.3, 3.0)


@functools.cache
def implementations(dim=0):
    """name -> (instruction set or None, {function name: callable}); PyTorch's along dimension `dim`."""
    ours = {name: getattr(fastsoftmax, name) for name in FUNCTIONS}
    found = {f"fastsoftmax {isa}": (isa, ours) for isa in _dispatch.supported()}
    if importlib.util.find_spec("scipy"):
        import scipy.special

        found["SciPy"] = (None, {name: getattr(scipy.special, name) for name in FUNCTIONS[:3]})
    if importlib.util.find_spec("torch"):
        import torch

        def through_torch(function):
            return lambda x, axis=None: function(
                torch.from_numpy(np.ascontiguousarray(x)), dim=dim if axis is None else axis).numpy()

        found["PyTorch"] = (None, {
            "softmax": through_torch(torch.softmax), "log_softmax": through_torch(torch.log_softmax),
            "logsumexp": through_torch(torch.logsumexp)})
    return found


def tempered(x, number):
    """(rows, temperature): the scores times a temperature, or four such rows, with a temperature each."""
    if number % 5 < 4:
        return x * x.dtype.type(TEMPERATURES[number % 5]), TEMPERATURES[number % 5]
    each = np.array(TEMPERATURES)[:, None]
    return (x * each).astype(x.dtype), each


def errors(functions, x, temperature, at_temperature):
    """function name -> largest error in ULP along the last axis."""
    true, log = exact(x, temperature)
    found = {}
    for name, function in functions.items():
        if not at_temperature:
            got = function(x, axis=-1)
        elif name == "logsumexp":
            continue
        elif function is getattr(fastsoftmax, name):
            got = function(x, axis=-1, temperature=temperature)
        else:
            got = function(x / np.asarray(temperature, x.dtype), axis=-1)
        unit = np.maximum(abs(true[name]), log) if name == "logsumexp" else true[name]
        found[name + (" at T" if at_temperature else "")] = ulp(np.asarray(got), true[name], unit)
    return found


def measure(dtype, count, longest):
    worst = {}
    for number, x in enumerate(rows(dtype, count, longest, np.random.default_rng(0))):
        rows_at_t, temperature = tempered(x, number)
        for library, (isa, functions) in implementations().items():
            with np.errstate(all="ignore"), _dispatch.using(isa or _dispatch.isa()):
                found = errors(functions, x, 1.0, False) | errors(functions, rows_at_t, temperature, True)
                if isa:
                    found["row sum - 1"] = float(abs(fastsoftmax.softmax(x).astype(np.longdouble).sum() - 1))
            for name, error in found.items():
                worst[library, name] = max(worst.get((library, name), 0.0), error)
    return worst


def pairs_of(start, stop, step):
    """Pairs (x, 0) or (0, x) by turns, and what is exact for them: the x by their bits, from -start upwards in size."""
    x = np.arange(start, stop, step, dtype=np.uint32).view(np.float32)
    np.negative(x, x)
    e = np.exp(x.astype(np.float64))
    log = np.log1p(e)
    scores, softmax, log_softmax = (np.zeros((x.size, 2), t) for t in (np.float32, np.float64, np.float64))
    scores[:, 0], softmax[:, 0], softmax[:, 1] = x, e / (1 + e), 1 / (1 + e)
    log_softmax[:, 0], log_softmax[:, 1] = x - log, -log
    for a in (scores, softmax, log_softmax):
        a[1::2] = a[1::2, ::-1].copy()
    return scores, {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": log}


def sweep(step):
    """library, function -> (largest error, the x where it is)."""
    worst, measured = {}, implementations(dim=1)
    last, chunk = int(np.float32(104).view(np.uint32)), step << 17        # in the cache
    for number, start in enumerate(range(0, last + 1, chunk)):
        scores, true = pairs_of(start, min(start + chunk, last + 1), step)
        units = {name: np.spacing(np.abs(values).astype(np.float32)) for name, values in true.items()}
        few = slice(None, None, max(1, 64 // step))
        for library, (isa, functions) in measured.items():
            part = slice(None) if isa else few
            with np.errstate(all="ignore"), _dispatch.using(isa or _dispatch.isa()):
                for name, function in functions.items():
                    if name not in true:
                        continue
                    error = np.abs(np.asarray(function(scores[part], axis=1)) - true[name][part])
                    error /= units[name][part]
                    at = error.argmax()
                    if error.flat[at] > worst.get((library, name), (-1,))[0]:
                        row = scores[part][at // 2 if error.ndim == 2 else at]
                        worst[library, name] = float(error.flat[at]), row.tolist()
        if number % 100 == 0:
            print(f"\r{start / last:.0%}", end="", file=sys.stderr, flush=True)
    print("\r", end="", file=sys.stderr)
    return worst


def hard_rows(count, rng):
    """Rows of float64 where exp is hardest: next to multiples of ln 2 / 2, at the ends of its domain, far from 0."""
    near = np.log(2) / 2
    for i in range(count):
        n = int(rng.integers(2, 24))
        k = rng.integers(-2040, 1, n)
        x = k * near
        x += rng.integers(-3, 4, n) * np.spacing(x)                     # on either side of where n changes
        if i % 4 == 1:
            x = -10.0 ** rng.uniform(-18, 0, n)                         # results next to 1
        elif i % 4 == 2:
            x = rng.uniform(-745.2, -690, n)                            # subnormal weights
        elif i % 4 == 3:
            x += rng.normal() * 10 ** rng.uniform(0, 6)                 # offsets
        x[rng.integers(n)] = max(x.max(), 0.0) if i % 4 != 3 else x.max()
        yield x


def hard(count):
    """library, function -> largest error of float64, against 40 digits."""
    import mpmath

    worst = {}
    with mpmath.workdps(40):
        for x in hard_rows(count, np.random.default_rng(0)):
            exact = [mpmath.mpf(float(v)) for v in x]
            top = max(exact)
            others = mpmath.fsum(mpmath.exp(v - top) for k, v in enumerate(exact) if k != x.argmax())
            log = mpmath.log1p(others)
            true = {
                "softmax": [mpmath.exp(v - top) / (1 + others) for v in exact],
                "log_softmax": [v - top - log for v in exact], "logsumexp": [top + log]}
            for library, (isa, functions) in implementations().items():
                with np.errstate(all="ignore"), _dispatch.using(isa or _dispatch.isa()):
                    for name, function in functions.items():
                        if name not in true:
                            continue
                        for value, right in zip(np.ravel(function(x)), true[name], strict=True):
                            size = max(abs(right), log) if name == "logsumexp" else abs(right)
                            error = abs(mpmath.mpf(float(value)) - right) / mpmath.mpf(float(np.spacing(float(size))))
                            worst[library, name] = max(worst.get((library, name), 0.0), float(error))
    return worst


def print_by_function(dtype, worst, note):
    print(f"| {dtype}, {note} | softmax | log_softmax | logsumexp |\n| --- | --- | --- | --- |")
    for library in dict.fromkeys(key[0] for key in worst):
        found = [worst[library, name] for name in ("softmax", "log_softmax", "logsumexp")]
        figures = [f"{f:.4g}" if isinstance(f, float) else f"{f[0]:.4g} at {f[1][0]:.9g}, {f[1][1]:.9g}" for f in found]
        print(f"| {library} | {' | '.join(figures)} |")


def replace_part(file, part, found):
    """Replace the measured libraries in one part of a results file: {library: {function: largest error}}."""
    path = Path(file)
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key, errors in found.items():
        data.setdefault(part, {}).setdefault(key, {}).update(errors)
    for module, name in (("scipy", "SciPy"), ("torch", "PyTorch")):
        if importlib.util.find_spec(module):
            version = importlib.metadata.version(module)
            data.setdefault("versions", {})[name] = ".".join(version.split(".")[:2])
    save(path, data)


def by_library(worst):
    """{library: {function: largest error}}, to three digits, from {(library, function): error or (error, place)}."""
    found = {}
    for (library, name), error in worst.items():
        found.setdefault(library, {})[name] = float(f"{error if isinstance(error, float) else error[0]:.3g}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--longest", type=int, default=20, help="longest row: 2 to this power")
    parser.add_argument("--sweep", type=int, nargs="?", const=1, metavar="K", help="every K-th float32")
    parser.add_argument("--hard", type=int, nargs="?", const=400, metavar="ROWS")
    parser.add_argument("--json", metavar="FILE", help="also replace the part of this results file that was measured")
    options = parser.parse_args()
    if options.sweep:
        kind = "every x" if options.sweep == 1 else f"every {options.sweep}th x"
        worst = sweep(options.sweep)
        print_by_function("float32", worst, f"{kind} from -104 to 0")
        if options.json:
            replace_part(options.json, "sweep", by_library(worst))
    if options.hard:
        print_by_function("float64", hard(options.hard), f"{options.hard} hard rows")
    if options.sweep or options.hard:
        return
    columns = (*FUNCTIONS, "softmax at T", "log_softmax at T", "softmax_entropy at T", "row sum - 1")
    print(f"| dtype | library | {' | '.join(columns)} |")
    print(f"| --- | --- |{' --- |' * len(columns)}")
    measured = {}
    for dtype in SPREAD:
        worst = measure(dtype, options.rows, options.longest)
        measured[dtype] = by_library(worst)
        for library in dict.fromkeys(key[0] for key in worst):
            figures = [f"{worst[library, name]:.3g}" if (library, name) in worst else "" for name in columns]
            print(f"| {dtype} | {library} | {' | '.join(figures)} |")
    if options.json:
        replace_part(options.json, "random", measured)


if __name__ == "__main__":
    main()
