"""How arrays lie in memory: seen as (outer, n, inner), cut into pieces, and whether they overlap."""

import functools
import math

import numpy as np

from fastsoftmax import _fastpath

CACHED_ELEMENTS = 1 << 10           # elements of the largest arrays that cached_full keeps


def elements(array):
    """The array as a kernel's memoryview sees it: 16-bit floats and booleans by their bits."""
    return array if array.itemsize > 2 else array.view(np.uint16 if array.itemsize == 2 else np.uint8)


def kernel_ready(array, contiguous_rows=False):
    """Whether a kernel's memoryview can take the array: native, aligned, strides of whole elements.

    contiguous_rows: the elements of its last dimension must also be adjacent, as in attention.
    """
    flags = array.flags
    if not (array.dtype.isnative and flags.aligned):
        return False
    return flags.c_contiguous or (
        math.gcd(*array.strides) % array.itemsize == 0
        and (not contiguous_rows or array.strides[-1] == array.itemsize or array.shape[-1] <= 1))


def cached_full(number, shape, dtype):
    """np.full(shape, number, dtype), for reading only: a small array is cached, and is read-only."""
    cached = math.prod(shape) <= CACHED_ELEMENTS
    return _cached_full(number, shape, dtype) if cached else np.full(shape, number, dtype)


@functools.lru_cache(maxsize=64)
def _cached_full(number, shape, dtype):
    array = np.full(shape, number, dtype)
    array.flags.writeable = False
    return array


def elements_overlap(array):
    """Whether two elements of the array share memory, as they do if a stride is 0."""
    if array.flags.c_contiguous or array.flags.f_contiguous or array.size == 0:
        return False
    dims = sorted((abs(stride), i) for i, stride in enumerate(array.strides) if array.shape[i] > 1)
    extent = array.itemsize
    for stride, i in dims:
        if stride < extent:
            return stride == 0 or any(_blocks_overlap(array, k) for _, k in dims)
        extent += stride * (array.shape[i] - 1)
    return False


def _blocks_overlap(array, axis):
    """Whether a block of the array at one index of this axis shares memory with that at another."""
    blocks = np.moveaxis(array, axis, 0)
    extent = array.itemsize + sum(abs(s) * (n - 1) for s, n in zip(blocks.strides[1:], blocks.shape[1:], strict=True))
    reach = min(len(blocks), extent // abs(blocks.strides[0]) + 1)      # blocks farther away cannot overlap
    return any(np.shares_memory(blocks[0], blocks[k]) for k in range(1, reach))


def _same_elements(x, y):
    """Whether both are the same elements of memory in the same order."""
    return x is y or (
        x.__array_interface__["data"][0] == y.__array_interface__["data"][0] and x.strides == y.strides
        and x.shape == y.shape and x.dtype == y.dtype)


def no_overlap(out, *arrays):
    """Whether out shares no memory with any of the arrays; None stands for no array."""
    return not any(x is not None and np.may_share_memory(x, out) and np.shares_memory(x, out) for x in arrays)


def copy_if_overlapping(array, out, in_place=False):
    """array, or a copy if it overlaps out; with in_place, out may be the same elements in the same order."""
    if (in_place and _same_elements(array, out)) or no_overlap(out, array):
        return array
    return array.copy()


def merged(dims):
    """Adjacent dimensions joined where every operand steps through both evenly.

    dims: list of (size, strides), strides one for each operand; sizes above 1.
    """
    joined = []
    for size, strides in dims:
        if joined:
            outer_size, outer = joined[-1]
            if all(o == s * size for o, s in zip(outer, strides, strict=True)):
                joined[-1] = (outer_size * size, strides)
                continue
        joined.append((size, strides))
    return joined


def _by_operand(dims, count):
    """(sizes, each operand's strides) of dimensions as `merged` takes and returns them."""
    return tuple([size for size, _ in dims]), [tuple([strides[k] for _, strides in dims]) for k in range(count)]


class Layout:
    """Operands of one shape (strides may be 0), seen as calls on arrays of three dimensions.

    `shape` is that of each call; `calls` is their number. Made by `along` or `of_matrices`. Both cache their results,
    since many calls are on arrays of the same shape and strides.
    """

    def __init__(self, loops, dims, count):
        self.shape = tuple([size for size, _ in dims])
        self.calls = math.prod([size for size, _ in loops])
        self._sizes, self._strides = _by_operand([*loops, *dims], count)

    @classmethod
    @functools.lru_cache(maxsize=64)
    def along(cls, shape, axes, strides):
        """(outer, n, inner), n being the axes; None if the axes do not merge into one, since their order is that of the
        sum."""
        dims = [(size, tuple(s[i] for s in strides)) for i, size in enumerate(shape)]
        rows = merged([dims[i] for i in axes if shape[i] > 1])
        if len(rows) > 1:
            return None
        kept = merged(sorted((dims[i] for i in range(len(shape)) if i not in axes and shape[i] > 1),
                             key=lambda dim: tuple(-abs(s) for s in dim[1])))
        one = (1, (0,) * len(strides))
        inner = kept.pop() if kept else one
        outer = kept.pop() if kept else one
        return cls(kept, [outer, rows[0] if rows else one, inner], len(strides))

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of_matrices(cls, shape, strides):
        """(outer, S, L) for operands (..., L, S)."""
        dims = [(size, tuple(s[i] for s in strides)) for i, size in enumerate(shape)]
        kept = merged(sorted((dim for dim in dims[:-2] if dim[0] > 1), key=lambda dim: tuple(-abs(s) for s in dim[1])))
        outer = kept.pop() if kept else (1, (0,) * len(strides))
        return cls(kept, [outer, dims[-1], dims[-2]], len(strides))

    def views(self, *operands):
        """For each call, a list of the operands as arrays of `shape`; None stays None."""
        seen = [None if a is None else _fastpath.as_strided(a, self._sizes, strides)
                for a, strides in zip(operands, self._strides, strict=True)]
        if self.calls == 1:
            return [seen]
        loops = self._sizes[:-len(self.shape)]
        return ([None if a is None else a[index] for a in seen] for index in np.ndindex(loops))


def batches(batch, arrays):
    """Arrays (*batch, ...) as arrays (B, ...), for as few calls of a kernel as the strides allow."""
    n = len(batch)
    sizes, strides = _merged_batch(batch, tuple([x.strides[:n] for x in arrays]))
    seen = [_fastpath.as_strided(x, sizes + x.shape[n:], outer + x.strides[n:])
            for x, outer in zip(arrays, strides, strict=True)]
    if len(sizes) == 1:
        return [seen]
    return ([x[index] for x in seen] for index in np.ndindex(sizes[:-1]))


@functools.lru_cache(maxsize=64)
def _merged_batch(batch, strides):
    """(sizes, each array's strides) of the fewest dimensions, one at least, that step through the same matrices."""
    dims = [(size, tuple(s[i] for s in strides)) for i, size in enumerate(batch) if size > 1]
    return _by_operand(merged(dims) or [(1, (0,) * len(strides))], len(strides))


def pieces(shape, size):
    """Index tuples that cut an array of this shape into pieces of at most `size` elements, and at least one."""
    if not shape:
        yield ()
        return
    rest = math.prod(shape[1:])
    if rest > size:
        for i in range(shape[0]):
            for piece in pieces(shape[1:], size):
                yield (slice(i, i + 1), *piece)
        return
    step = max(1, size // max(rest, 1))
    for start in range(0, shape[0], step):
        yield (slice(start, start + step),)
