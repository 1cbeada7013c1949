"""Compares the gradients of the decoder, and of each attention function in it, with finite differences in float64."""

import dataclasses
import sys

import numpy as np

from fastsoftmax.lab import alternatives, decoder

CONFIG = decoder.Config(symbols=7, width=8, layers=2, heads=2, hidden=8)
BOUND = 1e-4  # of the largest element of a gradient
STEP = 1e-5


def errors(config, seed=0):
    """{parameter: the largest error of its gradient, relative to the gradient's largest element}."""
    rng = np.random.default_rng(seed)
    p = {name: x + 0.1 * rng.standard_normal(x.shape) for name, x in decoder.start(config, seed, np.float64).items()}
    tokens, targets = rng.integers(0, config.symbols, (2, 2, 9))
    targets[0, 3] = -100
    answers = np.count_nonzero(targets != -100)
    _, gradients = decoder.loss_and_gradients(p, config, tokens, targets)
    found = {}
    for name, x in p.items():
        expected = np.empty_like(x)
        for place in np.ndindex(x.shape):
            kept, sides = x[place], []
            for step in (STEP, -STEP):
                x[place] = kept + step
                sides.append(decoder.losses(p, config, tokens, targets).sum() / answers)
            x[place] = kept
            expected[place] = (sides[0] - sides[1]) / (2 * STEP)
        found[name] = float(np.abs(gradients[name] - expected).max() / np.abs(expected).max())
    return found


def configurations():
    """{name: Config}: softmax attention with grouped heads and learned scales, without a mask, and each other one."""
    return {
        "softmax": dataclasses.replace(CONFIG, key_heads=1, learn_scale=True),
        "softmax, no mask": dataclasses.replace(CONFIG, is_causal=False),
        **{name: dataclasses.replace(CONFIG, attention=name) for name in alternatives.FUNCTIONS},
    }


def main():
    """Print a line for each parameter; return the exit status."""
    wrong = 0
    for name, config in configurations().items():
        for parameter, error in errors(config).items():
            wrong += not error <= BOUND
            print(f"{parameter:<14}{error:10.1e}   {name}{'' if error <= BOUND else '   WRONG'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
