"""Training of the decoder: AdamW, a cosine schedule, clipped gradients, evaluation on held-out text, checkpoints.

Sources: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019, arXiv:1711.05101 (AdamW);
"SGDR: stochastic gradient descent with warm restarts", ICLR 2017, arXiv:1608.03983 (the cosine).
"""

import concurrent.futures
import json
import time
import zipfile

import numpy as np

import fastsoftmax as fs
from fastsoftmax.lab import decoder, jobs, tasks, texts

HELD_OUT = (0, 0, 1)  # the seed of a task's held-out sequences; those trained on have two numbers: seed, step
PIECE = 1 << 14  # elements of a parameter that are updated at once: they stay in the cache


class AdamW:
    """Moves parameters against their gradients, each by about the rate, whatever the gradient's size.

    Parameters
    ----------
    parameters : dict of ndarray
        Updated in place.
    decay : float
        Matrices shrink by rate * decay a step.
    rates : dict of str to float
        Factors of the rate for the parameters whose names end so.
    """

    def __init__(self, parameters, betas=(0.9, 0.95), epsilon=1e-8, decay=0.1, rates=()):
        self.parameters, self.betas, self.epsilon, self.decay = parameters, betas, epsilon, decay
        self.rates, self.steps = dict(rates), 0
        self.moments = {name: np.zeros((2, x.size), x.dtype) for name, x in parameters.items()}

    def step(self, gradients, rate):
        """One step with the gradients by name; parameters without one stay."""
        self.steps += 1
        first, second = (1 - beta**self.steps for beta in self.betas)
        for name, gradient in gradients.items():
            x = self.parameters[name]
            factor = next((f for end, f in self.rates.items() if name.endswith(end)), 1.0)
            shrink = 1 - rate * self.decay if x.ndim > 1 else 1.0
            flat, g, moments = x.reshape(-1), gradient.reshape(-1), self.moments[name]
            for i in range(0, x.size, PIECE):
                piece = slice(i, i + PIECE)
                self._update(flat[piece], g[piece], *moments[:, piece], shrink, factor * rate / first, second)

    def _update(self, x, g, mean, square, shrink, rate, second):
        mean += (g - mean) * x.dtype.type(1 - self.betas[0])
        square += (g * g - square) * x.dtype.type(1 - self.betas[1])
        root = np.sqrt(square / x.dtype.type(second))
        root += x.dtype.type(self.epsilon)
        x *= x.dtype.type(shrink)
        x -= mean / root * x.dtype.type(rate)


def learning_rate(step, steps, peak):
    """Rises over the first twentieth, then falls along a cosine to a tenth of the peak."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.1 + 0.45 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def clip(gradients, largest=1.0):
    """Scales the gradients in place so that their common norm is at most `largest`; returns the norm before."""
    norm = float(np.sqrt(sum(np.vdot(g, g) for g in gradients.values())))
    if norm > largest:
        for g in gradients.values():
            g *= g.dtype.type(largest / norm)
    return norm


def gradients_of(p, config, tokens, targets, wanted=None, threads=1):
    """`decoder.loss_and_gradients`, the batch split over threads; BLAS should have one thread then."""
    if threads == 1:
        return decoder.loss_and_gradients(p, config, tokens, targets, wanted)

    def part(some_tokens, some_targets):
        with fs.num_threads(1):
            return decoder.loss_and_gradients(p, config, some_tokens, some_targets, wanted)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(part, np.array_split(tokens, threads), np.array_split(targets, threads)))
    shares = [len(some) / len(tokens) for some in np.array_split(tokens, threads)]
    total = found[0][1]
    for name, g in total.items():
        g *= g.dtype.type(shares[0])
        for share, (_, more) in zip(shares[1:], found[1:], strict=True):
            g += more[name] * g.dtype.type(share)
    return sum(share * loss for share, (loss, _) in zip(shares, found, strict=True)), total


def train(context, *, model, data, steps, batch, length, rate, seed, evaluations=20, rates=None, log_entropy=False,
          probe=None):
    """A job: trains a decoder and keeps its parameters.

    Parameters
    ----------
    model : dict
        Arguments of `decoder.Config`.
    data : dict
        {"text": digest} for the prepared text of that digest, or {"task": name, ...} for `tasks.batch`.
    steps, batch, length : int
        Of `batch` sequences of `length` symbols each step.
    rate : float
        The highest learning rate.
    seed : int
        Of the parameters and the batches. Step i has its own generator, so that a stopped run goes on as if it had
        not been stopped.
    evaluations : int
        So many times, at equal distances and at the end, the loss on held-out data is taken.
    rates : dict, optional
        Of `AdamW`.
    log_entropy : bool
        Also take the entropy of the attention weights then.
    probe : str, optional
        "module:name" of a function of (p, config, tokens, targets), the held-out data, whose results are taken then.

    Returns
    -------
    dict
        "at": steps, "held_out": losses there in nats a symbol, "train": mean training losses since the last one,
        "accuracy": the share of symbols guessed (of a task), "entropy": [evaluation][layer][head], "temperatures"
        likewise for learned scales (1: the default scale; higher: flatter), "probe": its results, "seconds": CPU time
        of the steps until then, "diverged": the step at which the loss was no longer a number, or None.
    """
    config = decoder.Config(**model)
    source = Source(context.folder, data, length, seed)
    p = decoder.start(config, seed)
    optimizer = AdamW(p, rates=rates or ())
    history = {name: [] for name in (
        "at", "held_out", "train", "accuracy", "entropy", "temperatures", "probe", "seconds")}
    history |= {"diverged": None, "running": [], "spent": 0.0}
    first = resume(context, p, optimizer, history)
    every = max(1, steps // evaluations)

    def evaluate(step):
        loss, accuracy = source.evaluate(p, config)
        history["at"].append(step)
        history["held_out"].append(loss)
        history["accuracy"].append(accuracy)
        history["train"].append(float(np.mean(history["running"])) if history["running"] else None)
        history["seconds"].append(history["spent"])
        history["running"] = []
        if log_entropy:
            history["entropy"].append(decoder.entropies(p, config, source.held_out[0][:8]).tolist())
        if config.learn_scale:
            history["temperatures"].append(temperatures(p, config))
        if probe:
            history["probe"].append(jobs.find(probe)(p, config, *source.held_out))

    if not history["at"]:
        evaluate(0)
    for step in range(first, steps):
        if context.stopped():
            save(context, p, optimizer, history, step)
            raise jobs.Stopped
        began = time.process_time()
        loss, gradients = decoder.loss_and_gradients(p, config, *source.batch(step, batch))
        norm = clip(gradients)
        if not np.isfinite(loss) or not np.isfinite(norm):
            history["diverged"] = step
            break
        history["running"].append(loss)
        optimizer.step(gradients, learning_rate(step, steps, rate))
        history["spent"] += time.process_time() - began
        if (step + 1) % every == 0 or step + 1 == steps:
            evaluate(step + 1)
            save(context, p, optimizer, history, step + 1)
        context.progress((step + 1) / steps)
    jobs.save_arrays(context.path, p)
    return {name: value for name, value in history.items() if name not in ("running", "spent")}


def temperatures(p, config):
    """[layer][head]: the default scale over the learned one."""
    return [(config.scale / decoder.scale_of(p, i, config)).tolist() for i in range(config.layers)]


def tune_scales(context, p, step_gradients, steps, rate, history, evaluate):
    """Moves the log scales among the parameters p by Adam; stops and goes on as `train` does.

    Parameters
    ----------
    step_gradients : function of the number of the step
        Gives (loss, gradients of the log scales by name).
    history : dict
        Gets the "losses", and what `evaluate` returns, which is called before the first step.
    """
    scales = {name: x for name, x in p.items() if name.endswith(".log_scale")}
    optimizer = AdamW(scales)                  # decays no vectors
    first = resume(context, scales, optimizer, history)
    if first == 0:
        history.update(evaluate())
    for step in range(first, steps):
        if context.stopped():
            save(context, scales, optimizer, history, step)
            raise jobs.Stopped
        loss, gradients = step_gradients(step)
        history["losses"].append(loss)
        optimizer.step(gradients, learning_rate(step, steps, rate))
        if (step + 1) % 10 == 0:
            save(context, scales, optimizer, history, step + 1)
        context.progress((step + 1) / (steps + 1))      # the rest: what is measured afterwards


class Source:
    """Batches to train on and held-out ones, of a text or a task."""

    def __init__(self, folder, data, length, seed):
        self.data, self.length, self.seed = data, length, seed
        if "text" in data:
            self.train = texts.load(folder, data["text"], "train")
            held = texts.load(folder, data["text"], "held_out")
            self.held_out = texts.spread_windows(held, length, data.get("windows", 64))
        else:
            self.held_out = tasks.batch(np.random.default_rng(HELD_OUT), 128, length, **data)

    def batch(self, step, count):
        rng = np.random.default_rng([self.seed, step])
        if "text" in self.data:
            starts = rng.integers(0, len(self.train) - self.length - 1, count)
            return texts.windows(self.train, self.length, starts)
        return tasks.batch(rng, count, self.length, **self.data)

    def evaluate(self, p, config):
        """(loss in nats, share of symbols guessed) on held-out data, sixteen sequences at a time."""
        tokens, targets = self.held_out
        total, right, asked = 0.0, 0, 0
        for i in range(0, len(tokens), 16):
            states, _ = decoder.forward(p, config, tokens[i:i + 16])
            logits, target = states @ p["embedding"].T, targets[i:i + 16].reshape(-1)
            known = target != -100
            total += float(fs.cross_entropy(logits, target, reduction="sum"))
            right += int((logits.argmax(1) == target)[known].sum())
            asked += int(known.sum())
        return total / asked, right / asked


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def save(context, p, optimizer, history, step):
    arrays = {f"p:{name}": x for name, x in p.items()} | {f"m:{name}": x for name, x in optimizer.moments.items()}
    jobs.save_arrays(context.checkpoint, arrays | {"step": step, "history": np.array(json.dumps(history))})


def resume(context, p, optimizer, history):
    """Reads a checkpoint, if there is one that is whole, into what is given; returns the step to go on with."""
    try:
        with np.load(context.checkpoint) as file:
            kept = dict(file)
    except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile):
        return 0
    for name in p:
        p[name][...], optimizer.moments[name][...] = kept[f"p:{name}"], kept[f"m:{name}"]
    history.update(json.loads(str(kept["history"])))
    optimizer.steps = int(kept["step"])
    return optimizer.steps
