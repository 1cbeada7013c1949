"""Tasks that show whether attention selects exactly: associative recall, copying, selective copying.

Each is a batch of (tokens, targets), (count, length) ints; targets are -100 where no answer is asked for.

Sources: S. Arora et al., "Zoology: measuring and improving recall in efficient language models", arXiv:2312.04927;
S. Jelassi et al., "Repeat after me: transformers are better than state space models at copying", arXiv:2402.01032;
A. Gu and T. Dao, "Mamba: linear-time sequence modeling with selective state spaces", arXiv:2312.00752 (selective
copying).
"""

import numpy as np

SYMBOLS = 128  # of every task; the first are marks
BLANK, COPY = 0, 1
FIRST = 2


def batch(rng, count, length, task, **options):
    """A batch of the task of that name."""
    return TASKS[task](rng, count, length, **options)


def recall(rng, count, length):
    """Pairs of a key and its value, then keys again in another order: each asks for its value.

    k1 v1 k2 v2 ... kn vn k3 k1 ... ; the answer to a key is expected at its place.
    """
    pairs = length // 3
    half = (SYMBOLS - FIRST) // 2
    if pairs > half:
        raise ValueError(f"recall of length {length} needs {pairs} different keys, and there are {half}")
    keys = np.argsort(rng.random((count, half)), 1)[:, :pairs]
    values = rng.integers(0, half, (count, pairs))
    asked = np.argsort(rng.random((count, pairs)), 1)
    tokens, targets = np.full((count, length), BLANK), np.full((count, length), -100)
    tokens[:, 0:2 * pairs:2], tokens[:, 1:2 * pairs:2] = FIRST + keys, FIRST + half + values
    tokens[:, 2 * pairs:3 * pairs] = FIRST + np.take_along_axis(keys, asked, 1)
    targets[:, 2 * pairs:3 * pairs] = FIRST + half + np.take_along_axis(values, asked, 1)
    return tokens, targets


def copying(rng, count, length):
    """A random string, a mark, and the string again: s1 s2 ... sn COPY s1 s2 ... sn-1, to be continued at each."""
    n = length // 2
    string = rng.integers(FIRST, SYMBOLS, (count, n))
    tokens, targets = np.full((count, length), BLANK), np.full((count, length), -100)
    tokens[:, :n], tokens[:, n], tokens[:, n + 1:2 * n] = string, COPY, string[:, :-1]
    targets[:, n:2 * n] = string
    return tokens, targets


def selective_copying(rng, count, length):
    """Symbols scattered among blanks, then a mark and the symbols without the blanks, to be continued at each."""
    n = length // 4
    place = np.sort(np.argsort(rng.random((count, length - n)), 1)[:, :n], 1)
    string = rng.integers(FIRST, SYMBOLS, (count, n))
    tokens, targets = np.full((count, length), BLANK), np.full((count, length), -100)
    np.put_along_axis(tokens[:, :length - n], place, string, 1)
    tokens[:, length - n], tokens[:, length - n + 1:] = COPY, string[:, :-1]
    targets[:, length - n:] = string
    return tokens, targets


TASKS = {"recall": recall, "copying": copying, "selective_copying": selective_copying}
