"""Softmax on real text: the purpose of the function, and the effect of the temperature."""

import itertools
from collections import Counter

import numpy as np

import fastsoftmax

TEMPERATURES = (0.5, 1.0, 2.0)


def trigram_logits():
    """Next-character logits from Python's own help texts.

    Returns
    -------
    alphabet : list of str
        K characters.
    contexts : dict
        From two characters to their row.
    table : (C, K) float32 array
        log(count + 0.01): how often each character follows each context, as scores.
    """
    from pydoc_data import topics

    text = " ".join(" ".join(topics.topics.values()).split())
    alphabet = sorted(set(text))
    contexts = {pair: row for row, pair in enumerate(sorted({a + b for a, b in itertools.pairwise(text)}))}
    column = {character: k for k, character in enumerate(alphabet)}
    counts = np.zeros((len(contexts), len(alphabet)), np.float32)
    for trigram, count in Counter(a + b + c for a, b, c in zip(text, text[1:], text[2:], strict=False)).items():
        counts[contexts[trigram[:2]], column[trigram[2]]] = count
    return alphabet, contexts, np.log(counts + np.float32(0.01))


def sample(weights, alphabet, contexts, start="th", length=70):
    """A line of text: each character is drawn from the weights of the two before it; a dead end starts again."""
    rng, text = np.random.default_rng(7), start
    cumulative = weights.astype(np.float64).cumsum(axis=-1)
    while len(text) < length:
        row = cumulative[contexts.get(text[-2:], contexts[start])]
        text += alphabet[min(np.searchsorted(row, rng.random() * row[-1], side="right"), len(alphabet) - 1)]
    return text


def show():
    """Print the mean entropy of the whole table's weights, and a line of text, at three temperatures."""
    alphabet, contexts, table = trigram_logits()
    print(
        f"\nReal text: scores log(count + 0.01) for the next character, counted in Python's own help texts, for\n"
        f"{table.shape[0]} contexts of two characters x {table.shape[1]} characters. softmax makes of each row a "
        "distribution to draw from:\na low temperature draws likely characters, a high one also unlikely ones."
    )
    for temperature in TEMPERATURES:
        weights = fastsoftmax.softmax(table, axis=-1, temperature=temperature)
        entropy = fastsoftmax.softmax_entropy(table, axis=-1, temperature=temperature).mean()
        print(f"temperature {temperature:<4} mean entropy {entropy:.3f} nats   {sample(weights, alphabet, contexts)}")
