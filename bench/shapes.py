"""The named shapes that every measurement uses: one table for `pytest bench/` and for `bench/compare.py`.

A shape is named after the work it stands for, so that a table reads as a list of uses and not of numbers.
"""

import math
from typing import NamedTuple

ALONG_AXIS = ("softmax", "log_softmax", "logsumexp", "softmax_entropy")
CAUSAL = ("causal_softmax", "causal_mask_")
FAMILIES = ALONG_AXIS + CAUSAL

SMALL = 4096  # elements; below this a call is measured as people write it, without `out`


class Shape(NamedTuple):
    """One piece of work: an array, the axis that is reduced, and the functions that are measured on it."""

    name: str
    shape: tuple
    axis: int = -1
    dtype: str = "float32"
    families: tuple = ALONG_AXIS
    quick: bool = False  # also part of `compare.py --quick`

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.size * {"float64": 8, "float32": 4}.get(self.dtype, 2)

    @property
    def small(self):
        return self.size <= SMALL

    @property
    def beyond_cache(self):
        return self.nbytes >= 48 << 20


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
    Shape("causal square", (12, 1024, 1024), families=("softmax", *CAUSAL), quick=True),
    Shape("narrow classifier", (100000, 10), quick=True),
    Shape("two classes", (500000, 2)),
    Shape("channels of images", (64, 128, 56, 56), axis=1),
    Shape("middle axis", (32, 1000, 64), axis=1, quick=True),
    Shape("beyond the cache", (8192, 4096)),
)


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
