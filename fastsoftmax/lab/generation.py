"""Generation of text by `decoder`, as a server does it: many sequences at once, their keys and values in pages.

A pass takes the unread tokens of some sequences, packed one after another without padding: whole prompts at first, then
the token that each has drawn. Only the attention tells sequences apart: `varlen_attention` among the tokens of a pass,
where the sequences are new, `paged_attention` where there are keys before them.

Sources: G.-I. Yu et al., "Orca: a distributed serving system for transformer-based generative models", OSDI 2022
(sequences join and leave between passes); W. Kwon et al., "Efficient memory management for large language model serving
with PagedAttention", SOSP 2023, arXiv:2309.06180.
"""

import collections
import time
from dataclasses import dataclass, field

import numpy as np

import fastsoftmax as fs
from fastsoftmax.lab import decoder

PAGE = 16  # tokens in a page
AT_ONCE = 16  # sequences that are generated at once; others wait


# ---- pages ----------------------------------------------------------------------------------------------------------


@dataclass
class Sequence:
    """A text in the making.

    Parameters
    ----------
    unread : list of int
        The tokens that the next pass reads, one at least: the prompt, then the token that was drawn last.
    rng : numpy.random.Generator
        Its own, so that its tokens do not depend on the sequences beside it.
    number : int
        Which prompt it continues.
    length : int
        How many tokens have been read: they have keys and values.
    pages : list of int
        Where these are: those of token j in row ``j % size`` of page ``pages[j // size]``.
    drawn : int
        How many tokens have been drawn.
    """

    unread: list
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    number: int = 0
    length: int = 0
    pages: list = field(default_factory=list)
    drawn: int = 0


class Pages:
    """The keys and values of all sequences, in pages that a sequence takes as it grows and gives back at its end.

    Parameters
    ----------
    config : decoder.Config
    count : int
        So many pages. Their memory is not touched before they are used.
    size : int
        Tokens in a page.
    dtype : dtype

    Attributes
    ----------
    arrays : ndarray, (layers, 2, count, size, G, E)
        Keys and values of each layer, as `paged_attention` takes them.
    free : list of int
        The pages that no sequence has. The one given back last is taken first: it may still be in the CPU's cache.
    """

    def __init__(self, config, count, size=PAGE, dtype=np.float32):
        self.size = size
        self.arrays = np.empty((config.layers, 2, count, size, config.key_heads, config.head_width), dtype)
        self.free = list(range(count))[::-1]

    def needed(self, tokens):
        """How many pages so many tokens of one sequence take."""
        return -(-tokens // self.size)

    def grow(self, sequences, lengths):
        """Give each sequence the pages for so many tokens; if not enough are free, a MemoryError, and none is taken."""
        missing = [self.needed(length) - len(s.pages) for s, length in zip(sequences, lengths, strict=True)]
        if sum(missing) > len(self.free):
            raise MemoryError(f"{sum(missing)} pages of {self.size} tokens are needed, and {len(self.free)} are free")
        for sequence, count in zip(sequences, missing, strict=True):
            sequence.pages += [self.free.pop() for _ in range(count)]

    def release(self, sequence):
        """Take all its pages back."""
        self.free += sequence.pages[::-1]
        sequence.pages, sequence.length = [], 0


# ---- a pass ---------------------------------------------------------------------------------------------------------


@dataclass
class Record:
    """The time of generation, in seconds, and how even the attention was.

    Parameters
    ----------
    attention, sampling : float
        Seconds in the functions of fastsoftmax.
    keep_entropies : bool
        Whether each pass leaves its `entropies`.
    entropies : list of ndarray, (sequences, H)
        For each layer, the entropy of the weights of each sequence's last token, in nats.
    """

    attention: float = 0.0
    sampling: float = 0.0
    keep_entropies: bool = False
    entropies: list = field(default_factory=list)


class Pass:
    """The unread tokens of some sequences on their way through the layers: the `cache` of `decoder.forward`.

    All sequences are new, or all have as many unread tokens.
    """

    def __init__(self, pages, sequences, record):
        self.pages, self.sequences, self.record = pages, sequences, record
        counts = [len(s.unread) for s in sequences]
        before = np.array([s.length for s in sequences])
        self.is_first = not before.any()
        if not self.is_first and min(counts) != max(counts):
            raise ValueError("sequences that are not new must have as many unread tokens as each other")
        self.lengths = before + counts
        pages.grow(sequences, self.lengths)
        self.cumulative = np.concatenate([[0], np.cumsum(counts)])
        self.table = np.zeros((len(sequences), max(len(s.pages) for s in sequences)), np.int64)
        for row, sequence in zip(self.table, sequences, strict=True):
            row[:len(sequence.pages)] = sequence.pages
        # where the keys and values of the new tokens go
        owner = np.repeat(np.arange(len(sequences)), counts)
        self.positions = np.arange(len(owner)) - self.cumulative[owner] + before[owner]
        self.place = self.table[owner, self.positions // pages.size], self.positions % pages.size

    def tokens(self):
        """(1, N): as one sequence, which the decoder takes them for, but for the attention and the positions."""
        return np.concatenate([s.unread for s in self.sequences])[None]

    def extend(self, count):
        """The positions (N,), each in its own sequence."""
        return self.positions

    def attention(self, i, query, key, value, config, scale):
        """As `decoder.attention`, of (1, H, N, E) queries and (1, G, N, E) keys and values."""
        start = time.perf_counter()
        query, key, value = (x[0].swapaxes(0, 1) for x in (query, key, value))      # (N, heads, E)
        caches = self.pages.arrays[i]
        for cache, new in zip(caches, (key, value), strict=True):
            cache[self.place] = new
        options = {"is_causal": True, "scale": scale, "enable_gqa": config.heads != config.key_heads,
                   "return_entropy": self.record.keep_entropies}
        if self.is_first:
            out = fs.varlen_attention(query, key, value, self.cumulative, **options)
        else:
            query = query.reshape(len(self.sequences), -1, *query.shape[1:])        # a view
            out = fs.paged_attention(query, *caches, self.table, self.lengths, **options)
        if self.record.keep_entropies:
            out, entropy = out
            self.record.entropies.append(entropy[:, self.cumulative[1:] - 1].T if self.is_first else entropy[:, :, -1])
        self.record.attention += time.perf_counter() - start
        return out.reshape(1, -1, config.heads, config.head_width).swapaxes(1, 2), None


def read(p, config, pages, sequences, record):
    """Let the sequences read their unread tokens; the logits (sequences, V) of those that may follow."""
    if config.attention != "softmax" or not config.is_causal:
        raise ValueError("generation needs causal softmax attention")
    record.entropies.clear()
    step = Pass(pages, sequences, record)
    states, _ = decoder.forward(p, config, step.tokens(), step)
    for sequence, length in zip(sequences, step.lengths, strict=True):
        sequence.length, sequence.unread = int(length), []
    return states[step.cumulative[1:] - 1] @ p["embedding"].T


def draw(logits, sequences, record, **options):
    """Draw the next token of each sequence (len(sequences),), with the options of `fastsoftmax.sample`."""
    start = time.perf_counter()
    tokens = fs.sample(logits, uniform=[s.rng.random() for s in sequences], **options)
    record.sampling += time.perf_counter() - start
    for sequence, token in zip(sequences, tokens.tolist(), strict=True):
        sequence.unread, sequence.drawn = [token], sequence.drawn + 1
    return tokens


# ---- whole texts ----------------------------------------------------------------------------------------------------


def generate(p, config, prompts, count, *, end=None, seed=0, at_once=AT_ONCE, record=None, **options):
    """Continue each prompt by `count` tokens, or until its end.

    Parameters
    ----------
    p, config : dict and decoder.Config
        The model.
    prompts : list of lists of int
        The tokens of each prompt, one at least.
    count : int
        How many tokens are drawn for each, at most.
    end : int, optional
        The token that ends a text. It is yielded too.
    seed : int or None
        Of the draws; None is unpredictable. The draws of a prompt depend on the seed and its number.
    at_once : int
        So many sequences are generated at once. The next prompt begins when one of them ends.
    record : Record, optional
        Where the time goes.
    options
        Those of `fastsoftmax.sample`, one for all: temperature (0: the most likely token), top_k, top_p, min_p,
        typical_p.

    Yields
    ------
    number, token : int
        The number of the prompt and its next token, as soon as it is drawn.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ValueError(f"prompt {[len(prompt) for prompt in prompts].index(0)} is empty")
    record = Record() if record is None else record
    seeds = np.random.SeedSequence(seed).spawn(len(prompts))
    waiting = collections.deque(
        Sequence(list(prompt), np.random.default_rng(seed), number)
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)) if count > 0)
    most = sorted(-(-(len(prompt) + count) // PAGE) for prompt in prompts)[-at_once:]
    pages, running = Pages(config, sum(most), dtype=p["embedding"].dtype), []
    while waiting or running:
        new = [waiting.popleft() for _ in range(min(len(waiting), at_once - len(running)))]
        for sequences in filter(None, (running, new)):
            tokens = draw(read(p, config, pages, sequences, record), sequences, record, **options)
            yield from zip([s.number for s in sequences], tokens.tolist(), strict=True)
        running, ended = [], [*running, *new]
        for sequence in ended:
            if sequence.unread == [end] or sequence.drawn == count:
                pages.release(sequence)
            else:
                running.append(sequence)


class Conversation:
    """One sequence that grows in turns: the keys and values of what was said stay.

    Parameters
    ----------
    p, config : dict and decoder.Config
        The model.
    end : int
        The token that ends an answer.
    longest : int
        So many tokens fit in.
    seed : int or None
        Of the draws.
    """

    def __init__(self, p, config, end, longest, seed=None):
        self.p, self.config, self.end, self.longest = p, config, end, longest
        self.pages = Pages(config, -(-longest // PAGE), dtype=p["embedding"].dtype)
        self.sequence = Sequence([], np.random.default_rng(seed))

    @property
    def is_new(self):
        """Whether nothing has been read."""
        return self.sequence.length == 0

    def forget(self):
        """Begin anew."""
        self.pages.release(self.sequence)
        self.sequence.unread = []

    def has_room(self, tokens):
        """Whether so many tokens fit in, beside those that have been read and the last answer's end."""
        return self.sequence.length + len(self.sequence.unread) + 1 + tokens <= self.longest

    def ask(self, question, count, record=None, **options):
        """Yields the tokens of an answer to a list of tokens: `count` at most, the last one the end if it is reached.

        If the caller stops earlier, the next question follows the token that was yielded last. `options` are those of
        `fastsoftmax.sample`.
        """
        sequence, record = self.sequence, Record() if record is None else record
        if self.is_new:
            sequence.unread = []
        elif sequence.unread[-1:] != [self.end]:        # the answer was cut
            sequence.unread.append(self.end)
        sequence.unread += question
        for _ in range(count):
            logits = read(self.p, self.config, self.pages, [sequence], record)
            token = int(draw(logits, [sequence], record, **options)[0])
            yield token
            if token == self.end:
                return
