"""fastsoftmax.torch measured: what an op costs, from which sizes it gains, and a training step of a model.

    python bench/torch_ops.py overhead      each op beside the NumPy function that it calls, on small tensors
    python bench/torch_ops.py sizes         each op beside PyTorch's own, by size
    python bench/torch_ops.py step          a training step of 4 layers of torch.nn, attention ours beside PyTorch's
                              [--threads 1] [--rounds 9] [--json FILE] [--layers 4 --width 256 --heads 4 --length 512
                              --batch 4]

The two sides have a process each, and take turns; shown are medians, and the median over the rounds of the difference
or the ratio. `step` compares the losses of the first steps: the exit status is 1 if they differ by more than 1e-4.
"""

import argparse
import json
import os
import statistics
import sys
import timeit

from standalone import turns

STEPS_COMPARED, TOLERANCE = 5, 1e-4
SHAPE = ("layers", "width", "heads", "length", "batch")
ROWS = ("softmax", "log_softmax", "logsumexp", "softmax_entropy", "causal_softmax", "cross_entropy")
SMALL = (*ROWS, "attention", "attention, bfloat16", "attention, causal, lse")
SIZES = [(name, n) for name, sizes in (
    ("softmax", (64, 512, 2048, 8192, 32768)), ("cross_entropy, training", (64, 512, 2048, 8192, 32768)),
    ("attention", (16, 32, 64, 128, 256, 1024)), ("attention, training", (16, 64, 128, 256, 1024))) for n in sizes]


def overhead_call(side, name):
    """A call on a few numbers: the NumPy function, or the op."""
    import torch

    import fastsoftmax
    import fastsoftmax.torch

    torch.manual_seed(0)
    function, *options = name.split(", ")
    dtype = torch.bfloat16 if "bfloat16" in options else torch.float32
    x = torch.randn((1, 2, 8, 16) if function == "attention" else (8, 16)).to(dtype)
    keywords = {"is_causal": True, "return_lse": True} if "causal" in options else {}
    if function == "attention":
        function, arguments = "scaled_dot_product_attention", [x, x, x]
    elif function == "cross_entropy":
        arguments = [x, torch.zeros(8, dtype=torch.int64)]
    else:
        arguments = [x] if function == "causal_softmax" else [x, -1]
    if side == "op":
        call = getattr(fastsoftmax.torch, function)
    else:
        from fastsoftmax.torch._library import array

        call = getattr(fastsoftmax, function)
        arguments = [array(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    return lambda: call(*arguments, **keywords)


def sized_call(side, name, n):
    """A call of a size: rows of n scores, 8 of them; or attention of 8 heads of 64 features, n queries and n keys."""
    import torch

    torch.manual_seed(0)
    f = torch.nn.functional
    if side == "fastsoftmax":
        import fastsoftmax.torch as f
    if name.startswith("attention"):
        training = name.endswith("training")
        q, k, v = torch.randn(3, 1, 8, n, 64).requires_grad_(training)
        if training:
            leaves, grad = [x.detach().requires_grad_() for x in (q, k, v)], torch.randn(1, 8, n, 64)
            return lambda: torch.autograd.grad(f.scaled_dot_product_attention(*leaves), leaves, grad)
        return lambda: f.scaled_dot_product_attention(q, k, v)
    x, classes = torch.randn(8, n), torch.arange(8)
    if name.startswith("cross_entropy"):
        x.requires_grad_()
        return lambda: torch.autograd.grad(f.cross_entropy(x, classes), x)
    return lambda: f.softmax(x, -1)


class Model:
    """Layers of torch.nn: a causal language model on random tokens, with AdamW."""

    def __init__(self, side, options):
        import torch

        torch.manual_seed(0)
        self.torch, self.options = torch, options
        self.attention = torch.nn.functional.scaled_dot_product_attention
        if side == "fastsoftmax":
            import fastsoftmax.torch

            self.attention = fastsoftmax.torch.scaled_dot_product_attention
        nn, width = torch.nn, options.width
        self.embedding, self.head = nn.Embedding(256, width), nn.Linear(width, 256)
        self.layers = nn.ModuleList([nn.ModuleDict({
            "norm": nn.LayerNorm(width), "qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width),
            "mlp": nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(),
                                 nn.Linear(4 * width, width)),
        }) for _ in range(options.layers)])
        parameters = [p for module in (self.embedding, self.head, self.layers) for p in module.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
        self.tokens = torch.randint(0, 256, (STEPS_COMPARED, options.batch, options.length + 1))

    def step(self, i=0):
        tokens, targets = self.tokens[i, :, :-1], self.tokens[i, :, 1:]
        x = self.embedding(tokens)
        for layer in self.layers:
            qkv = layer["qkv"](layer["norm"](x)).view(*tokens.shape, 3, self.options.heads, -1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            out = self.attention(query, key, value, is_causal=True)
            x = x + layer["out"](out.transpose(1, 2).flatten(2))
            x = x + layer["mlp"](x)
        loss = self.torch.nn.functional.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def serve(side, options):
    """The worker of one side: a case is a name, a name and a size, or null for the model."""
    def start():
        import torch

        torch.set_num_threads(options.threads)

        def prepare(case):
            if options.measure == "step":
                model = Model(side, options)
                losses = [model.step(i) for i in range(STEPS_COMPARED)]
                return timeit.Timer(model.step), {"losses": losses}
            call = overhead_call(side, case) if options.measure == "overhead" else sized_call(side, *case)
            return timeit.Timer(call), {}

        return {"version": torch.__version__}, prepare

    turns.serve(start)


def measure(options, crew):
    """The measurements: a list of dicts."""
    found = []
    first, second = (worker.name for worker in crew)
    cases = {"overhead": SMALL, "sizes": SIZES, "step": [None]}[options.measure]
    for case in cases:
        times, reasons, notes = turns.take_turns(crew, case, options.rounds, 2.0 if options.measure == "step" else 0.1)
        if reasons:
            print(f"{case}: {reasons}")
            continue
        ours, other = times[first], times[second]
        more = statistics.median(a - b for a, b in zip(ours, other, strict=True))
        row = {"case": case, first: statistics.median(ours), second: statistics.median(other), "more": more,
               "ratio": turns.ratio(other, ours)}
        name = case if isinstance(case, str) else "step" if case is None else f"{case[0]}, {case[1]}"
        end = f"{1e6 * more:6.1f} us more" if options.measure == "overhead" else f"{row['ratio']:.2f} times as long"
        print(f"{name:<28} {first} {turns.duration(ours):>8}   {second} {turns.duration(other):>8}   {end}", flush=True)
        if options.measure == "step":
            row["losses"] = [notes[side]["losses"] for side in (first, second)]
            row["apart"] = max(abs(a / b - 1) for a, b in zip(*row["losses"], strict=True))
            print(f"largest relative difference of a loss: {row['apart']:.1e}")
        found.append(row)
    return found


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=("overhead", "sizes", "step"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    for name, default in zip(SHAPE, (4, 256, 4, 512, 4), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        serve(options.worker, options)
        return 0
    sides = ("op", "NumPy function") if options.measure == "overhead" else ("fastsoftmax", "PyTorch")
    sizes = [f"--{size}={getattr(options, size)}" for size in (*SHAPE, "threads")]
    command = [os.path.abspath(__file__), options.measure, *sizes, "--worker"]
    with turns.workers((side, [*command, side], options.threads) for side in sides) as crew:
        found = measure(options, crew)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"threads": options.threads, "measure": options.measure, "found": found,
                       **{size: getattr(options, size) for size in SHAPE}}, file)
    return int(not found or any(not row.get("apart", 0) <= TOLERANCE for row in found))


if __name__ == "__main__":
    sys.exit(main())
