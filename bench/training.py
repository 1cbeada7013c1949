"""The time of a training step of the lab's decoder, here and in PyTorch: the same model, start, data and optimizer.

    python bench/training.py [--threads 1] [--rounds 9] [--layers 4 --width 256 --heads 4 --length 256 --batch 8]
                             [--json FILE]

PyTorch runs eagerly, with its fused attention and its fused AdamW. Each library has a process of its own, and they take
turns. With several threads ours splits the batch, a part for each, and NumPy's products have one. The losses of the
first steps are compared: the exit status is 1 if they differ by more than 1e-4.
"""

import argparse
import json
import os
import sys
import tempfile
import timeit

import numpy as np
from standalone import turns

STEPS_COMPARED, TOLERANCE = 5, 1e-4
RATE = 1e-3
SHAPE = ("layers", "width", "heads", "length", "batch")


def tokens_of(options, step):
    """(tokens, targets), each (batch, length): random, and the same for both."""
    drawn = np.random.default_rng([7, step]).integers(0, 256, (options.batch, options.length + 1))
    return drawn[:, :-1], drawn[:, 1:]


def start_of(options):
    """The lab's configuration and parameters."""
    from fastsoftmax.lab import decoder

    config = decoder.Config(width=options.width, layers=options.layers, heads=options.heads)
    return config, decoder.start(config)


class Ours:
    """The lab's decoder and optimizer."""

    def __init__(self, options):
        import fastsoftmax
        from fastsoftmax.lab import training

        self.version = fastsoftmax.__version__
        self.training, self.threads = training, options.threads
        self.config, self.parameters = start_of(options)
        self.optimizer = training.AdamW(self.parameters)

    def step(self, tokens, targets):
        loss, gradients = self.training.gradients_of(
            self.parameters, self.config, tokens, targets, threads=self.threads)
        self.training.clip(gradients)
        self.optimizer.step(gradients, RATE)
        return loss


class PyTorch:
    """The same in PyTorch, as its users write it."""

    def __init__(self, options):
        import torch

        torch.set_num_threads(options.threads)
        self.torch, self.version = torch, torch.__version__
        with np.load(options.start) as file:
            parameters = {name: torch.nn.Parameter(torch.from_numpy(file[name])) for name in file}
        # torch.nn.functional.linear takes its weights the other way round
        matrices = [name for name in parameters if name.split(".")[-1] in ("qkv", "out", "gate_up", "down")]
        for name in matrices:
            parameters[name] = torch.nn.Parameter(parameters[name].detach().T.contiguous())
        self.parameters, self.options = parameters, options
        decayed, plain = ([x for x in parameters.values() if (x.dim() > 1) == more] for more in (True, False))
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=RATE,
            betas=(0.9, 0.95), eps=1e-8, fused=True)
        half = options.width // options.heads // 2
        angles = torch.outer(torch.arange(options.length), 10000.0 ** (-torch.arange(half) / half))
        self.turn = angles.cos(), angles.sin()

    def rotary(self, x):
        first, second = x.chunk(2, -1)
        cosine, sine = self.turn
        return self.torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)

    def loss(self, tokens, targets):
        f, p, o = self.torch.nn.functional, self.parameters, self.options
        x = f.embedding(tokens, p["embedding"])
        for i in range(o.layers):
            qkv = f.linear(f.rms_norm(x, (o.width,), p[f"{i}.norm"], 1e-5), p[f"{i}.qkv"])
            query, key, value = qkv.view(*tokens.shape, 3, o.heads, -1).permute(2, 0, 3, 1, 4)
            out = f.scaled_dot_product_attention(self.rotary(query), self.rotary(key), value, is_causal=True)
            x = x + f.linear(out.transpose(1, 2).flatten(2), p[f"{i}.out"])
            gate, up = f.linear(f.rms_norm(x, (o.width,), p[f"{i}.norm2"], 1e-5), p[f"{i}.gate_up"]).chunk(2, -1)
            x = x + f.linear(f.silu(gate) * up, p[f"{i}.down"])
        logits = f.linear(f.rms_norm(x, (o.width,), p["norm"], 1e-5), p["embedding"])
        return f.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def step(self, tokens, targets):
        loss = self.loss(*map(self.torch.from_numpy, (tokens, targets)))
        self.optimizer.zero_grad()
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        return loss.item()


LIBRARIES = {"fastsoftmax": Ours, "PyTorch": PyTorch}


def serve(name, options):
    """The worker of one library: a case is the number of steps to compare, or 0 for what is timed."""
    def start():
        library = LIBRARIES[name](options)

        def prepare(steps):
            losses = [library.step(*tokens_of(options, step)) for step in range(steps)]
            tokens, targets = tokens_of(options, 0)
            return timeit.Timer(lambda: library.step(tokens, targets)), {"losses": losses}

        return {"version": library.version}, prepare

    turns.serve(start)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    for name, default in zip(SHAPE, (4, 256, 4, 256, 8), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    return parser.parse_args()


def command(name, options, start):
    """The arguments that start the worker of one library."""
    sizes = [f"--{size}={getattr(options, size)}" for size in (*SHAPE, "threads")]
    return [os.path.abspath(__file__), *sizes, "--start", start, "--worker", name]


def main():
    options = arguments()
    if options.worker:
        serve(options.worker, options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        start = os.path.join(folder, "start.npz")
        np.savez(start, **start_of(options)[1])
        threads = {"fastsoftmax": 1, "PyTorch": options.threads}        # of BLAS; ours splits the batch
        with turns.workers((name, command(name, options, start), threads[name]) for name in LIBRARIES) as crew:
            _, reasons, notes = turns.take_turns(crew, STEPS_COMPARED, 0, 0)
            times, _, _ = turns.take_turns(crew, 0, options.rounds, 1.0)
            versions = {worker.name: worker.greeting.get("version") for worker in crew}
    return show(options, times, reasons, notes, versions)


def show(options, times, reasons, notes, versions):
    """Print what was found; the exit status."""
    found = {"threads": options.threads, **{size: getattr(options, size) for size in SHAPE}, "libraries": {}}
    print(", ".join(f"{size} {found[size]}" for size in (*SHAPE, "threads")))
    for name in LIBRARIES:
        if name not in times:
            print(f"{name:<12} absent: {reasons[name]}")
            continue
        losses = notes[name]["losses"]
        print(f"{name:<12} {turns.duration(times[name]):>8} a step; losses {', '.join(f'{x:.5f}' for x in losses)}")
        found["libraries"][name] = {"version": versions[name], "seconds": times[name], "losses": losses}
    status = 0
    if len(times) == 2:
        apart = max(abs(a / b - 1) for a, b in zip(*(notes[name]["losses"] for name in LIBRARIES), strict=True))
        ratio = turns.ratio(times["PyTorch"], times["fastsoftmax"])
        print(f"PyTorch takes {ratio:.2f} times as long; largest relative difference of a loss: {apart:.1e}")
        found |= {"ratio": ratio, "apart": apart}
        status = int(not apart <= TOLERANCE)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file)
    return status


if __name__ == "__main__":
    sys.exit(main())
