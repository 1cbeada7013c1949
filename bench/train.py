"""Trains a two-layer attention model with fastsoftmax and with PyTorch, from one start on the same data.

    python bench/train.py [--steps 100] [--threads 1] [--json FILE]

The model is that of docs/train.md: two layers of causal attention with a learned scale a head, no MLP. Prints the
losses of both, the largest relative difference, and the time of a step. Without PyTorch it says so, and trains ours.
"""

import argparse
import json
import sys
import time

import numpy as np

import fastsoftmax as fs

SYMBOLS, LENGTH, WIDTH, HEADS, BATCH = 12, 32, 48, 4, 32
LEARNING_RATE = 0.2


def start(rng):
    """The parameters, by name."""

    def normal(*shape):
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    parameters = {"embedding": normal(SYMBOLS, WIDTH), "position": normal(LENGTH, WIDTH),
                  "unembedding": normal(WIDTH, SYMBOLS)}
    for layer in (1, 2):
        parameters |= {f"{name}{layer}": normal(WIDTH, WIDTH) for name in ("query", "key", "value", "mix")}
        parameters[f"scale{layer}"] = np.full(HEADS, -0.5 * np.log(WIDTH / HEADS), np.float32)
    return parameters


def sequences(rng):
    """(tokens, targets): a random pattern twice; -100 where the next symbol cannot be known."""
    half = LENGTH // 2 + 1
    pattern = rng.integers(0, SYMBOLS, (BATCH, half))
    tokens = np.concatenate([pattern, pattern], 1)[:, :LENGTH + 1]
    return tokens[:, :-1], np.where(np.arange(LENGTH) < half, -100, tokens[:, 1:])


def split(x):
    return x.reshape(BATCH, LENGTH, HEADS, -1).swapaxes(1, 2)


def join(x):
    return x.swapaxes(1, 2).reshape(BATCH, LENGTH, WIDTH)


def product(x, grad):
    """The gradient of w in x @ w."""
    return x.reshape(-1, x.shape[-1]).T @ grad.reshape(-1, grad.shape[-1])


def step_of_ours(p, tokens, target):
    """(loss, gradients by name)."""
    x, kept = p["embedding"][tokens] + p["position"], {}
    for layer in (1, 2):
        q, k, v = (split(x @ p[f"{name}{layer}"]) for name in ("query", "key", "value"))
        scale = np.exp(p[f"scale{layer}"])
        out, lse = fs.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, return_lse=True)
        kept[layer] = x, q, k, v, scale, out, lse
        x = x + join(out) @ p[f"mix{layer}"]
    loss, grad = fs.cross_entropy(x @ p["unembedding"], target, return_grad=True)
    g = {"unembedding": product(x, grad)}
    grad = grad @ p["unembedding"].T
    for layer in (2, 1):
        x, q, k, v, scale, out, lse = kept[layer]
        g[f"mix{layer}"] = product(join(out), grad)
        *grads, grad_scale = fs.scaled_dot_product_attention_backward(
            split(grad @ p[f"mix{layer}"].T), q, k, v, out, lse, is_causal=True, scale=scale, grad_scale=True)
        g[f"scale{layer}"] = grad_scale * scale
        for name, of in zip(("query", "key", "value"), map(join, grads), strict=True):
            g[f"{name}{layer}"] = product(x, of)
            grad = grad + of @ p[f"{name}{layer}"].T
    g["position"], g["embedding"] = grad.sum(0), np.zeros_like(p["embedding"])
    np.add.at(g["embedding"], tokens, grad)
    return float(loss), g


def train_ours(steps):
    rng = np.random.default_rng(0)
    p, losses, seconds = start(rng), [], []
    for _ in range(steps):
        tokens, target = sequences(rng)
        began = time.perf_counter()
        loss, gradients = step_of_ours(p, tokens, target)
        for name, g in gradients.items():
            p[name] -= LEARNING_RATE * g
        seconds.append(time.perf_counter() - began)
        losses.append(loss)
    return losses, seconds


def train_torch(torch, steps):
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    p = {name: torch.nn.Parameter(torch.from_numpy(x)) for name, x in start(rng).items()}
    losses, seconds = [], []
    for _ in range(steps):
        tokens, target = (torch.from_numpy(x) for x in sequences(rng))
        began = time.perf_counter()
        x = p["embedding"][tokens] + p["position"]
        for layer in (1, 2):
            q, k, v = (split(x @ p[f"{name}{layer}"]) for name in ("query", "key", "value"))
            scale = p[f"scale{layer}"].exp()[:, None, None]
            out = functional.scaled_dot_product_attention(q * scale, k, v, is_causal=True, scale=1.0)
            x = x + join(out) @ p[f"mix{layer}"]
        loss = functional.cross_entropy((x @ p["unembedding"]).flatten(0, 1), target.flatten())
        gradients = torch.autograd.grad(loss, list(p.values()))
        with torch.no_grad():
            for parameter, g in zip(p.values(), gradients, strict=True):
                parameter -= LEARNING_RATE * g
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    return losses, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write losses and times to FILE")
    options = parser.parse_args()
    fs.set_num_threads(options.threads)
    losses, seconds = train_ours(options.steps)
    found = {"steps": options.steps, "threads": options.threads, "fastsoftmax": {"losses": losses, "seconds": seconds}}
    print(f"fastsoftmax: loss {losses[0]:.6f} -> {losses[-1]:.6f}, {np.median(seconds) * 1e3:.2f} ms a step")
    try:
        import torch
    except ImportError:
        print("PyTorch: absent, nothing to compare with (pip install torch)")
    else:
        torch.set_num_threads(options.threads)
        theirs, seconds = train_torch(torch, options.steps)
        found["PyTorch"] = {"losses": theirs, "seconds": seconds}
        apart = max(abs(a / b - 1) for a, b in zip(losses, theirs, strict=True))
        print(f"PyTorch:     loss {theirs[0]:.6f} -> {theirs[-1]:.6f}, {np.median(seconds) * 1e3:.2f} ms a step")
        print(f"largest relative difference of a loss: {apart:.1e}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
