"""Measurements of the experiments `ablations` and `temperature`.

First small tables, computed in the process of the lab; then jobs, and a probe of `training.train`. Symbols are bytes,
losses are in nats a symbol.
"""

import dataclasses
import functools
import re

import numpy as np

import fastsoftmax as fs
from fastsoftmax.lab import decoder, texts

# ---- for claims, tables and figures ---------------------------------------------------------------------------------


def claim(text, measured, holds):
    """A part of an article, for `claims`. holds : bool or "partly"."""
    return {"claim": text, "measured": measured, "holds": holds if holds == "partly" else "yes" if holds else "no"}


def shown(values, digits=4):
    """Numbers as text, NaN and infinity included, which JSON does not have."""
    return ", ".join(f"{x:.{digits}g}" for x in np.ravel(values).astype(float))


def percent(share):
    return "none" if share is None else f"{share:.0%}"


def several(values):
    """The mean, with the standard deviation over seeds where there are several."""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def mean(values):
    """The mean of the values that are numbers; None without any."""
    numbers = [x for x in values if x is not None and not np.isnan(x)]
    return float(np.mean(numbers)) if numbers else None


# ---- without the exponential ----------------------------------------------------------------------------------------


def divide(x):
    """Each row divided by its sum: normalisation without exp."""
    with np.errstate(all="ignore"):
        return x / x.sum(-1, keepdims=True)


def naive(x):
    """exp(x) / sum(exp(x)), without a shift."""
    with np.errstate(all="ignore"):
        return divide(np.exp(x))


def shifted(x):
    """exp(x - max) / sum, each step rounded in the type of x: the usual three lines of NumPy."""
    return naive(x - x.max(-1, keepdims=True))


def division_jacobian(x):
    """The derivatives of x_i / sum(x) for x_j: (sum * identity - x_i) / sum**2."""
    total = x.sum()
    return (total * np.eye(x.size) - x[:, None]) / total**2


def softmax_jacobian(x):
    """The derivatives of softmax(x)_i for x_j: row i is the gradient of weight i."""
    return fs.softmax_backward(np.eye(x.size), np.tile(fs.softmax(x), (x.size, 1)), axis=1)


def jacobians(sums=(1.0, 0.1, 0.01, 0.001, 0.0001)):
    """Spectral norms of both Jacobians at [3, -2, s - 1], the sum of which is s."""
    found = []
    for s in sums:
        x = np.array([3.0, -2.0, s - 1])
        found.append({"sum": s, "weights": divide(x), "softmax_weights": fs.softmax(x),
                      "division": np.linalg.norm(division_jacobian(x), 2),
                      "softmax": np.linalg.norm(softmax_jacobian(x), 2)})
    return found


def distance(weights, others):
    """The share of the weight that lies elsewhere: half the sum of the differences."""
    return np.abs(weights - others).sum() / 2


# ---- without the shift ----------------------------------------------------------------------------------------------


def last(dtype, holds):
    """The largest positive number of dtype for which `holds`, which is true up to there: by bisection."""
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")         # positive numbers are ordered as their bits are
    low, high = 0, int(np.array(np.finfo(dtype).max).view(bits))
    with np.errstate(all="ignore"):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(np.array(middle, bits).view(dtype)[()]) else (low, middle)
    return np.array(low, bits).view(dtype)[()]


def limits(dtype, count=1000):
    """Where exp and the naive softmax leave the range of dtype, and what comes out just beyond.

    "overflow": the last score with a finite exp; "sum_overflow": the same for the sum over `count` equal scores;
    "subnormal", "underflow": the last scores below 0 whose exp has all its digits, is not 0.
    """
    smallest = np.finfo(dtype).tiny
    over = last(dtype, lambda x: np.isfinite(np.exp(x)))
    total = last(dtype, lambda x: np.isfinite(np.exp(np.full(count, x)).sum()))
    normal, under = last(dtype, lambda x: np.exp(-x) >= smallest), last(dtype, lambda x: np.exp(-x) > 0)
    above, below = np.nextafter(over, dtype(np.inf)), -np.nextafter(under, dtype(np.inf))
    rows = {"above": np.array([above, above - 1, above - 2], dtype), "below": np.array([below] * 3, dtype)}
    return {"overflow": over, "sum_overflow": total, "count": count, "subnormal": -normal, "underflow": -under,
            "beyond": {name: {"scores": row.tolist(), "naive": shown(naive(row)), "shifted": shown(shifted(row)),
                              "ours": shown(fs.softmax(row))} for name, row in rows.items()}}


def errors(dtype, spreads, seed, rows=32, length=1000):
    """Largest errors in ULP, of rows of scores that are even over 0 to `spread`.

    The exact weights are those of the same scores in a wider type. An error of None: a weight was not a number.
    """
    wide = np.longdouble if dtype is np.float64 else np.float64
    found = {"spread": list(spreads), "naive": [], "shifted": [], "ours": []}
    for spread in spreads:
        x = (np.random.default_rng([seed, int(spread)]).random((rows, length)) * spread).astype(dtype)
        exact = fs.reference.softmax(x.astype(wide), axis=1)
        quantum = np.spacing(exact.astype(dtype)).astype(wide)
        for name, weights in (("naive", naive(x)), ("shifted", shifted(x)), ("ours", fs.softmax(x, axis=1))):
            worst = (np.abs(weights.astype(wide) - exact) / quantum).max()
            found[name].append(float(worst) if np.isfinite(worst) else None)
    return found


# ---- masking by 0 ---------------------------------------------------------------------------------------------------


def hidden_weight(seed, length=128):
    """A causal square of normal scores in which hidden ones were set to 0, through both functions.

    "hidden": the weight on hidden keys, the mean over queries; "negative": the share of seen weights below 0;
    "largest": the largest size of a weight.
    """
    scores = np.random.default_rng(seed).standard_normal((length, length))
    seen = np.tril(np.ones((length, length), bool))
    found = {}
    for name, weights in (("softmax", fs.softmax(np.where(seen, scores, 0), axis=1)),
                          ("division", divide(np.where(seen, scores, 0))),
                          ("causal_softmax", fs.causal_softmax(scores))):
        found[name] = {"hidden": np.where(seen, 0, weights).sum(1).mean(), "negative": (weights[seen] < 0).mean(),
                       "largest": np.abs(weights).max()}
    return found


# ---- jobs: a stack of layers ----------------------------------------------------------------------------------------


def norms(context, *, kinds, depth, length, width, seeds):
    """A job: states x after each layer x + attention(x), without norms, in float32, from normal x.

    Returns, for each kind of attention, "rms": [seed][layer] the root mean square of x, None once it is no number;
    and "reach": [seed] the largest element of a first layer's output over the largest element of its values, which
    no average exceeds.
    """
    found = {kind: {"rms": [], "reach": []} for kind in kinds}
    for seed in seeds:
        for kind in kinds:
            rng = np.random.default_rng(seed)       # the same start and matrices for all
            config = decoder.Config(width=width, heads=1, attention=kind)
            x = rng.standard_normal((1, 1, length, width), np.float32)
            rms = [np.sqrt(np.square(x, dtype=np.float64).mean())]
            for i in range(depth):
                parts = rng.standard_normal((3, 1, 1, width, width), np.float32) / np.float32(width**0.5)
                with np.errstate(all="ignore"):
                    query, key, value = x @ parts
                    out, _ = decoder.attention(query, key, value, config, config.scale)
                    x = x + out
                    rms.append(np.sqrt(np.square(x, dtype=np.float64).mean()))
                if i == 0:
                    found[kind]["reach"].append(np.abs(out).max() / np.abs(value).max())
            found[kind]["rms"].append(rms)
    return found


# ---- jobs: without a causal mask ------------------------------------------------------------------------------------


def of_model(job, **more):
    """The arguments of a job that works with the model that a `training.train` job keeps."""
    given = job.arguments
    return {"trained": job.key, "model": given["model"], "text": given["data"]["text"],
            "length": given["length"]} | more


def losses_alone(p, config, tokens, targets, step=1):
    """Losses (B, n) of a model that sees only the tokens so far: the last position of each prefix of tokens (B, T).

    Prefixes of step, 2 step, ..., T tokens. With a causal mask these are the losses of a single pass.
    """
    found = []
    for t in range(step, tokens.shape[1] + 1, step):
        states, _ = decoder.forward(p, config, tokens[:, :t])
        found.append(fs.linear_cross_entropy(states[t - 1::t], p["embedding"], targets[:, t - 1], reduction="none"))
    return np.stack(found, 1)


def loss_alone(p, config, tokens, targets):
    """A probe of `training.train`: the mean of `losses_alone` for sixteen prefixes of sixteen windows."""
    some = np.linspace(0, len(tokens) - 1, 16).astype(int)
    return float(losses_alone(p, config, tokens[some], targets[some], tokens.shape[1] // 16).mean())


def alone(context, *, trained, model, text, length, windows, samples, size):
    """A job: a model on held-out text as it was trained, and where it must predict alone.

    Returns "together": the loss of whole windows, as in training; "loss_alone": that of each symbol from those before
    it; "by_length": the latter for each number of symbols before; "samples": drawn texts; "known": the share of
    their words that occur in the training text.
    """
    p, config = context.arrays(trained), decoder.Config(**model)
    held = texts.load(context.folder, text, "held_out")
    tokens, targets = texts.spread_windows(held, length, windows)
    by_length = losses_alone(p, config, tokens, targets).mean(0)
    context.progress(0.5)
    prompts, _ = texts.spread_windows(held, length, samples)
    drawn = [draw_anew(p, config, prompt[:length // 2], size, length, 0.8, seed) for seed, prompt in enumerate(prompts)]
    known = [share_known(sample, vocabulary(context.folder, text)) for sample in drawn]
    return {"together": decoder.losses(p, config, tokens, targets).mean(), "loss_alone": by_length.mean(),
            "by_length": by_length, "known": mean(known), "prompt": readable(prompts[0][:length // 2]),
            "samples": [readable(sample) for sample in drawn[:3]]}


def draw_anew(p, config, prompt, size, length, temperature, seed):
    """`size` symbols after prompt, each from a new pass over the last `length`: without a causal mask, a state changes
    with every later symbol, so a cache would not hold."""
    symbols = list(prompt)
    for i in range(size):
        symbols += decoder.generate(p, config, symbols[-length:], 1, temperature, [seed, i])
    return bytes(symbols[len(prompt):])


def frequencies(context, *, text):
    """A job: the loss on held-out text of the frequencies of bytes in the training text, no context at all."""
    counts = [np.bincount(texts.load(context.folder, text, name), minlength=256) for name in ("train", "held_out")]
    predicted = (counts[0] + 1) / (counts[0] + 1).sum()
    return {"loss": -(counts[1] @ np.log(predicted)) / counts[1].sum()}


# ---- jobs: temperature ----------------------------------------------------------------------------------------------


def draw_texts(context, *, trained, model, text, length, temperatures, samples, size, seed):
    """A job: texts that a model writes at several temperatures, and how varied they are.

    Each has a start of held-out text, the same at all temperatures. Returns a list of `variety` with "temperature"
    and a "sample", and the variety of held-out texts of the same size.
    """
    p, config = context.arrays(trained), decoder.Config(**model)
    held, words = texts.load(context.folder, text, "held_out"), vocabulary(context.folder, text)
    prompts, _ = texts.spread_windows(held, length, samples)
    found = []
    for i, temperature in enumerate(temperatures):
        drawn = [draw_long(p, config, prompt[:length // 2], size, length, temperature, [seed, k])
                 for k, prompt in enumerate(prompts)]
        found.append(variety(drawn, words) | {"temperature": temperature, "sample": readable(drawn[0])})
        context.progress((i + 1) / len(temperatures))
    written, _ = texts.spread_windows(held, size, 4 * samples)
    return {"drawn": found, "written": variety([bytes(piece.tolist()) for piece in written], words)}


def draw_long(p, config, prompt, size, length, temperature, seed):
    """`size` symbols after prompt by a model of context `length`: half of it is kept whenever it is full."""
    symbols, half = list(prompt), length // 2
    while len(symbols) < len(prompt) + size:
        symbols += decoder.generate(p, config, symbols[-half:], half, temperature, [*seed, len(symbols)])
    return bytes(symbols[len(prompt):len(prompt) + size])


def variety(samples, known):
    """Means over texts: "distinct_1", "distinct_2", "distinct_3", the share of runs of n words that are different ones;
    "repeated_4", the share of runs of four words that came before; "repeated_bytes", the same of eight bytes, which
    spaces are too; "known", the share of known words; and "words"."""
    rows = []
    for sample in samples:
        words = whole_words(sample)
        row = {f"distinct_{n}": distinct(words, n) for n in (1, 2, 3)}
        rows.append(row | {"repeated_4": 1 - distinct(words, 4), "repeated_bytes": 1 - distinct(sample, 8),
                           "known": share_known(sample, known), "words": len(words)})
    return {name: mean([row[name] for row in rows]) for name in rows[0]}


def distinct(words, n):
    """The share of runs of n words or bytes that are different ones; NaN where there are none."""
    runs = [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if runs else np.nan


def whole_words(sample):
    """The words of ASCII letters in a text, without the first and the last, which may be cut."""
    return re.findall(rb"[A-Za-z]+", sample)[1:-1]


def share_known(sample, known):
    """The share of a text's words of three letters or more that are `known`: shorter ones are so by chance."""
    words = [word for word in whole_words(sample) if len(word) > 2]
    return sum(word in known for word in words) / len(words) if words else np.nan


@functools.lru_cache(1)
def vocabulary(folder, digest):
    """The words of the training text."""
    return frozenset(re.findall(rb"[A-Za-z]+", texts.load(folder, digest, "train").tobytes()))


def readable(symbols):
    """Bytes as text; what cannot be printed becomes a dot."""
    text = bytes(int(s) for s in symbols).decode("latin-1")
    return "".join(c if c.isprintable() or c == "\n" else "\N{MIDDLE DOT}" for c in text)


def read_at(context, *, trained, model, text, length, temperatures, windows):
    """A job: a trained model whose attention weights are computed at other temperatures, on held-out text.

    Returns lists over the temperatures: "loss"; "entropy": [layer], the mean over heads and queries; "tokens": [layer],
    how many hold 90 % of a query's weight, the mean over the queries of the second half; and the means of the entropy
    and the number of tokens of equal weights, "most_entropy" and "most_tokens".
    """
    p, config = context.arrays(trained), decoder.Config(**model)
    tokens, targets = texts.spread_windows(texts.load(context.folder, text, "held_out"), length, windows)
    seen = np.arange(1, length + 1)
    found = {"temperatures": list(temperatures), "loss": [], "entropy": [], "tokens": [],
             "most_entropy": np.log(seen).mean(), "most_tokens": np.ceil(0.9 * seen[length // 2:]).mean()}
    for i, temperature in enumerate(temperatures):
        changed = dataclasses.replace(config, scale=config.scale / temperature)
        found["loss"].append(decoder.losses(p, changed, tokens, targets).mean())
        found["entropy"].append(decoder.entropies(p, changed, tokens).mean(1))
        found["tokens"].append([holders(decoder.weights(p, changed, tokens, layer)[:, :, length // 2:])
                                for layer in range(config.layers)])
        context.progress((i + 1) / len(temperatures))
    return found


def holders(weights, share=0.9):
    """The number of weights, largest first, that together hold `share` of a row; the mean over rows."""
    held = np.cumsum(-np.sort(-weights, axis=-1), -1, dtype=np.float64)
    return ((held < share * held[..., -1:]).sum(-1) + 1).mean()
