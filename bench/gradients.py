"""Gradients and losses: the largest errors, and the time, beside PyTorch's.

    python bench/gradients.py [--threads 1] [--rounds 5] [--only cross_entropy] [--python /path/to/python/with/torch]

Errors are those of float32 results against `fastsoftmax.reference` in wider precision, on the same numbers, in ULP of
the largest term of a row: abs(y * grad) or abs(y * sum(y * grad)) for softmax_backward, abs(grad) or the gradient for
log_softmax_backward, w * (abs(log w) + H) for the entropy, a head's largest gradient for attention, and the row's
largest gradient for all others. A gradient that comes by two products of matrices has the error of the products.

Each library runs in a process of its own, taking turns, as in compare.py. `--python` names an interpreter that has
PyTorch, if this one has not; where there is none, PyTorch is shown as absent. PyTorch's own backward operators are
timed where they exist (`torch._softmax_backward_data`), else autograd's backward pass; for a loss, the loss and its
gradient.
"""

import argparse
import os
import sys
import tempfile
import timeit
from pathlib import Path

import numpy as np
from standalone import turns

OURS, TORCH = "fastsoftmax", "PyTorch"
TURN = 0.3      # seconds

# function -> (shapes whose errors are measured, shapes that are timed)
CASES = {
    "softmax_backward": ([(200, 1000), (4, 50_000), (20_000, 10)], [(1024, 1000), (12, 512, 512), (25_600, 10)]),
    "log_softmax_backward": ([(200, 1000), (4, 50_000)], [(1024, 1000)]),
    "logsumexp_backward": ([(200, 1000), (4, 50_000)], [(1024, 1000)]),
    "softmax_entropy_backward": ([(200, 1000), (4, 50_000)], [(1024, 1000)]),
    "cross_entropy": ([(200, 1000), (4, 50_000), (20_000, 10)], [(1024, 32_000), (256, 1000), (25_600, 10)]),
    "linear_cross_entropy": ([(300, 64, 2000)], [(4096, 64, 32_000)]),
    "attention_backward": ([(4, 200, 64)], [(12, 512, 64)]),
    "causal_attention_backward": ([(4, 200, 64)], [(12, 512, 64)]),
}


def operands(function, shape):
    """The arrays of a case, float32 (class numbers int64), the same in every process."""
    rng = np.random.default_rng(list(shape))

    def normal(size, spread=1.0):
        return (spread * rng.normal(size=size)).astype(np.float32)

    if function.endswith("attention_backward"):
        return [normal(shape) for _ in range(4)]
    if function == "linear_cross_entropy":
        rows, width, classes = shape
        return [normal((rows, width)), normal((classes, width), width**-0.5), rng.integers(0, classes, rows)]
    x = normal(shape, 3)
    if function == "cross_entropy":
        return [x, rng.integers(0, shape[-1], shape[0])]
    if function in ("softmax_backward", "log_softmax_backward"):
        logs = x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True))
        return [normal(shape), (np.exp(logs) if function == "softmax_backward" else logs).astype(np.float32)]
    return [normal(shape[:-1]), x]


# ---- the libraries --------------------------------------------------------------------------------------------------


def ours(function, arrays):
    """call(), which returns gradients as a list."""
    import fastsoftmax

    if function.endswith("attention_backward"):
        backward = getattr(fastsoftmax, "scaled_dot_product_attention_backward", None)
        if backward is None:
            raise turns.UnavailableError("not in this version")
        grad, *inputs = arrays
        options = {"is_causal": function.startswith("causal")}
        out, lse = fastsoftmax.scaled_dot_product_attention(*inputs, return_lse=True, **options)
        return lambda: list(backward(grad, *inputs, out, lse, **options))
    f = getattr(fastsoftmax, function)
    if function == "cross_entropy":
        into = np.empty_like(arrays[0])
        return lambda: [f(*arrays, grad_into=into)[1]]
    if function == "linear_cross_entropy":
        return lambda: list(f(*arrays, return_grad=True)[1])
    if function == "logsumexp_backward":
        arrays = [*arrays, fastsoftmax.logsumexp(arrays[1], -1)]
    out = np.empty_like(arrays[1])
    return lambda: [f(*arrays, -1, out=out)]


def pytorch(function, arrays):
    """The same by PyTorch."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    F, tensors = torch.nn.functional, [torch.from_numpy(a) for a in arrays]
    if function == "softmax_backward":
        return lambda: [torch._softmax_backward_data(*tensors, -1, torch.float32)]
    if function == "log_softmax_backward":
        return lambda: [torch._log_softmax_backward_data(*tensors, -1, torch.float32)]
    if function in ("cross_entropy", "linear_cross_entropy"):
        inputs = [t.requires_grad_() for t in tensors[:-1]]
        if function == "cross_entropy":
            loss = F.cross_entropy
        else:                                   # new in PyTorch 2.13
            loss = getattr(F, function, None) or (lambda h, w, target: F.cross_entropy(F.linear(h, w), target))
        return lambda: list(torch.autograd.grad(loss(*inputs, tensors[-1]), inputs))
    grad, *inputs = tensors
    inputs = [t.requires_grad_() for t in inputs]
    if function == "logsumexp_backward":
        result = torch.logsumexp(*inputs, -1)
    elif function == "softmax_entropy_backward":
        logs = torch.log_softmax(*inputs, -1)
        result = -(logs.exp() * logs).sum(-1)
    else:
        result = F.scaled_dot_product_attention(*(t[None] for t in inputs), is_causal=function.startswith("causal"))[0]
    return lambda: list(torch.autograd.grad(result, inputs, grad, retain_graph=True))


def prepare(library, folder, case):
    """The timer of a case; its gradients are in a file."""
    function, shape, is_timed = case
    call = {OURS: ours, TORCH: pytorch}[library](function, operands(function, shape))
    path = os.path.join(folder, f"{library}.npz")
    if not is_timed:
        np.savez(path, *[np.asarray(dx) for dx in call()])
    return timeit.Timer(call), {"file": path}


def start(library, folder):
    if library == OURS:
        import fastsoftmax

        return {"version": fastsoftmax.__version__}, lambda case: prepare(library, folder, case)
    import torch

    return {"version": torch.__version__}, lambda case: prepare(library, folder, case)


# ---- errors ---------------------------------------------------------------------------------------------------------


def exact(function, arrays):
    """(gradients in wider precision, the largest term of each row or head)."""
    from fastsoftmax import reference

    wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    if function.endswith("attention_backward"):
        grad, *inputs = wide
        options = {"is_causal": function.startswith("causal")}
        out, lse = reference.scaled_dot_product_attention(*inputs, return_lse=True, **options)
        found = list(reference.scaled_dot_product_attention_backward(grad, *inputs, out, lse, **options))
    elif function == "cross_entropy":
        found = [reference.cross_entropy(*wide, return_grad=True)[1]]
    elif function == "linear_cross_entropy":
        found = list(reference.linear_cross_entropy(*wide, return_grad=True)[1])
    else:
        if function == "logsumexp_backward":    # as rounded as the one that the functions get
            wide.append(reference.logsumexp(arrays[1], -1).astype(np.float64))
        found = [getattr(reference, function)(*wide, -1)]
    terms = found
    if function == "softmax_backward":
        products = wide[0] * wide[1]
        terms = [np.maximum(abs(products), wide[1] * abs(products.sum(-1, keepdims=True)))]
    elif function == "log_softmax_backward":
        terms = [np.maximum(abs(wide[0]), abs(found[0]))]
    elif function == "softmax_entropy_backward":
        logs = reference.log_softmax(wide[1], -1)
        entropy = reference.softmax_entropy(wide[1], -1)
        terms = [np.exp(logs) * (abs(logs) + entropy[:, None]) * wide[0][:, None]]
    axes = (-2, -1) if function.endswith("attention_backward") else -1     # causal: the first query's gradient is 0
    return found, [abs(t).max(axes, keepdims=True) for t in terms]


def error(path, found, terms):
    """The largest, in ULP of float32."""
    with np.load(path) as stored:
        return max(float(np.max(abs(stored[name] - dx) / np.spacing(t.astype(np.float32))))
                   for name, dx, t in zip(stored.files, found, terms, strict=True))


# ---- the measurement ------------------------------------------------------------------------------------------------


def report(crew, only, rounds):
    print(f"{'':27}{'shape':>16}{'':>12}" + "".join(f"{worker.name:>14}" for worker in crew))
    for function, (measured, timed) in CASES.items():
        if only and function not in only:
            continue
        reasons = {}
        for shape in measured:
            found, terms = exact(function, operands(function, shape))
            cells = []
            for worker in crew:
                answer = worker.set_up([function, shape, False])
                reasons[worker.name] = answer.get("absent")
                cells.append("absent" if "absent" in answer else f"{error(answer['file'], found, terms):.3g}")
            line(function, shape, "error, ULP", cells)
        for shape in timed:
            times, absent, _ = turns.take_turns(crew, [function, shape, True], rounds, TURN)
            reasons.update(absent)
            cells = [turns.duration(times[w.name]) if w.name in times else "absent" for w in crew]
            if len(times) == len(crew) > 1:
                cells.append(f"{turns.ratio(times[crew[1].name], times[crew[0].name]):.2f} times as fast")
            line(function, shape, "time", cells)
        for name, why in reasons.items():
            if why:
                print(f"    {name}: {why}")


def line(function, shape, what, cells):
    print(f"{function:27}{'x'.join(map(str, shape)):>16}{what:>12}" + "".join(f"{cell:>14}" for cell in cells[:2])
          + "".join(f"   {cell}" for cell in cells[2:]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="FUNCTION")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        library, folder = options.worker
        if library == TORCH and options.python != sys.executable:
            os.execv(options.python, [options.python, os.path.abspath(__file__), "--worker", library, folder,
                                      "--python", options.python])
        turns.serve(lambda: start(library, folder))
        return
    path = os.pathsep.join([str(Path(__file__).resolve().parent), *filter(None, sys.path)])
    with tempfile.TemporaryDirectory() as folder:
        # PyTorch's process keeps its own path, which may be another interpreter's
        arguments = [(name, [os.path.abspath(__file__), "--worker", name, folder, "--python", options.python],
                      options.threads, path if name == OURS else None) for name in (OURS, TORCH)]
        with turns.workers(arguments) as crew:
            for worker in crew:
                print(f"{worker.name} {worker.greeting.get('version', '')}".rstrip(),
                      f"absent: {worker.absent}" if worker.absent else f"{options.threads} thread(s)", sep=", ")
            report(crew, options.only, options.rounds)


if __name__ == "__main__":
    main()
