"""The named shapes that every measurement uses: one table for `pytest bench/` and for `bench/compare.py`.

A shape is named after the work it stands for, so that a table reads as a list of uses and not of numbers.
"""

import itertools
import math
from typing import NamedTuple

ALONG_AXIS = ("softmax", "log_softmax", "logsumexp", "softmax_entropy")
CAUSAL = ("causal_softmax", "causal_mask_")
SOFTMAX = ALONG_AXIS + CAUSAL
ATTENTION = ("attention", "attention_causal", "attention_window", "attention_decode")
FAMILIES = SOFTMAX + ATTENTION

SMALL = 4096  # elements; below this a call is measured as people write it, without `out`
SMALL_FLOPS = 1 << 20  # the same for attention
WINDOW = 128  # keys that a query sees in attention_window: itself and those before it


class Shape(NamedTuple):
    """One piece of work: an array, the axis that is reduced, and the functions that are measured on it."""

    name: str
    shape: tuple
    axis: int = -1
    dtype: str = "float32"
    families: tuple = ALONG_AXIS
    quick: bool = False  # also part of `compare.py --quick`
    masked: float = 0.0  # the share of scores that are -inf

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.size * itemsize(self.dtype)

    @property
    def small(self):
        return self.size <= SMALL

    @property
    def limited(self):
        """Whether it is also measured against the machine's own limit: beyond any cache."""
        return self.nbytes >= 48 << 20

    @property
    def text(self):
        return f"{self.name} {self.shape}" + (f" axis {self.axis}" if self.axis != -1 else "")

    def work(self, family):
        """(how much is done in a call, unit)."""
        return self.size, "elements"


class Attention(NamedTuple):
    """Queries (batch, heads, queries, width) on keys and values (batch, key_heads, keys, width)."""

    name: str
    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    width: int
    dtype: str = "float32"
    families: tuple = ("attention", "attention_causal")
    prefill: bool = False  # one of those whose geometric mean is quoted
    quick: bool = False

    @property
    def shape(self):
        """(B, Hq, Hk, L, S, E)."""
        return self[1:7]

    @property
    def small(self):
        return self.work("attention")[0] <= SMALL_FLOPS

    @property
    def limited(self):
        return not self.small

    @property
    def text(self):
        return f"{self.name} {self.shape}"

    def pairs(self, family):
        """How many (query, key) pairs of one head are visible."""
        if family in ("attention", "attention_decode"):
            return self.queries * self.keys
        before = WINDOW if family == "attention_window" else self.keys
        return sum(min(i + 1, self.keys, before) for i in range(self.queries))

    def work(self, family):
        """(how much is done in a call, unit): multiply-adds of the visible pairs; the bytes of a cache for decoding."""
        if family == "attention_decode":
            return 2 * self.batch * self.key_heads * self.keys * self.width * itemsize(self.dtype), "bytes"
        return 4 * self.batch * self.heads * self.pairs(family) * self.width, "flops"


def itemsize(dtype):
    return {"float64": 8, "float32": 4}.get(dtype, 2)


SHAPES = (
    Shape("ten numbers", (10,), quick=True),
    Shape("one row of 1000", (1000,), quick=True),
    Shape("GPT-2 vocabulary row", (50257,)),
    Shape("Llama-3 vocabulary row", (128256,), quick=True),
    Shape("GPT-2 vocabulary batch", (32, 50257)),
    Shape("ImageNet classes", (1024, 1000), quick=True),
    Shape("ImageNet classes float64", (1024, 1000), dtype="float64"),
    Shape("ImageNet classes float16", (1024, 1000), dtype="float16"),
    Shape("ImageNet classes bfloat16", (1024, 1000), dtype="bfloat16"),
    Shape("attention scores", (12, 512, 512), families=ALONG_AXIS + CAUSAL),
    Shape("masked scores", (12, 512, 512), families=("softmax", "log_softmax"), masked=0.2),
    Shape("causal square", (12, 1024, 1024), families=("softmax", *CAUSAL), quick=True),
    Shape("narrow classifier", (100000, 10), quick=True),
    Shape("two classes", (500000, 2)),
    Shape("channels of images", (64, 128, 56, 56), axis=1),
    Shape("middle axis", (32, 1000, 64), axis=1, quick=True),
    Shape("axis beside 8 columns", (32, 4096, 8), axis=1),
    Shape("axis beside 3 columns", (20000, 10, 3), axis=1),
    Shape("first axis, long", (1000000, 10), axis=0),
    Shape("beyond the cache", (8192, 4096)),
    Attention("short text", 1, 12, 12, 128, 128, 64, prefill=True, quick=True),
    Attention("BERT text", 1, 12, 12, 512, 512, 64, prefill=True, quick=True),
    Attention("long text", 1, 16, 16, 2048, 2048, 64, prefill=True),
    Attention("wide heads", 1, 8, 8, 4096, 4096, 128, prefill=True),
    Attention("batch of sentences", 8, 12, 12, 256, 256, 32, prefill=True),
    Attention("grouped heads", 1, 32, 8, 1024, 1024, 128, prefill=True),
    Attention("sliding window", 1, 12, 12, 1024, 1024, 64, families=ATTENTION[:3], quick=True),
    Attention("eight tokens", 1, 1, 1, 8, 8, 16, quick=True),
    Attention("sixteen tokens", 1, 12, 12, 16, 16, 64, quick=True),
    Attention("BERT text float64", 1, 12, 12, 512, 512, 64, dtype="float64"),
    Attention("BERT text float16", 1, 12, 12, 512, 512, 64, dtype="float16"),
    Attention("BERT text bfloat16", 1, 12, 12, 512, 512, 64, dtype="bfloat16"),
    Attention("4096 keys cached", 1, 32, 8, 1, 4096, 128, families=("attention_decode",), quick=True),
    Attention("8 caches of 1024", 8, 32, 8, 1, 1024, 128, families=("attention_decode",)),
    Attention("16384 keys cached", 1, 32, 8, 1, 16384, 128, families=("attention_decode",)),
)

# Rows of every width, by the number of elements: an array beyond the caches of a core and one inside
WIDTHS = {
    elements: tuple(
        Shape(f"{elements} elements in rows of {width}", (elements // width, width), families=("softmax",))
        for width in range(2, 129))
    for elements in (1_000_000, 65536)
}


def named(name):
    """The shape of that name."""
    return next(shape for shape in itertools.chain(SHAPES, *WIDTHS.values()) if shape.name == name)


def select(names=(), families=(), quick=False):
    """The (family, Shape) pairs asked for; `names` are parts of names, in any case.

    Parameters
    ----------
    names, families : sequences of str
        Empty means all. A family that does not exist is a ValueError that lists those that do.
    quick : bool
        Only the shapes marked as quick.
    """
    unknown = set(families) - set(FAMILIES)
    if unknown:
        raise ValueError(f"no such family: {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
    return [
        (family, shape)
        for family in families or FAMILIES
        for shape in SHAPES
        if family in shape.families
        and (shape.quick or not quick)
        and (not names or any(name.lower() in shape.name.lower() for name in names))
    ]
