"""The only validation: what came in, what goes out, and how to see both as (outer, n, inner)."""

import functools
import math

import numpy as np

from fastsoftmax import _fastpath

# dtype -> tag of its kernels; bfloat16 is known by name, since it is another package's
_TAGS = {np.dtype(np.float16): "f16", np.dtype(np.float32): "f32", np.dtype(np.float64): "f64"}
_BITS = {"f16": np.uint16, "bf16": np.uint16, "f32": None, "f64": None}     # how a memoryview sees the elements

STAGED_ELEMENTS = 1 << 18        # elements that are staged at a time where a kernel cannot take them as they are
PIECE_ELEMENTS = 1 << 16         # elements of a longer row that a reduction stages at a time
MIN_ELEMENTS_PER_CALL = 1 << 11      # elements a kernel call should have where several calls are needed


def tag(dtype):
    """The tag of a dtype's kernels, or None where there are none."""
    found = _TAGS.get(dtype)
    if found is None and dtype.name == "bfloat16" and dtype.itemsize == 2:
        return "bf16"
    if found is None and dtype.kind == "f":
        return _TAGS.get(dtype.newbyteorder("="))
    return found


def native(dtype):
    """The dtype in this machine's byte order."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def as_array(x, name, instead_of_masked=None):
    """x as a plain ndarray of numbers."""
    if isinstance(x, np.ma.MaskedArray):
        instead = instead_of_masked or f"{name}.data and where=~{name}.mask"
        raise TypeError(f"{name} is a masked array; pass {instead} instead")
    array = np.asarray(x)
    if array.dtype.kind not in "biufc" and tag(array.dtype) is None:
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
    return array


def as_scores(x, name):
    """As `as_array`; a list of Python ints that no integer dtype holds, [2**63, -1], stays exact, as objects."""
    array = as_array(x, name)
    if isinstance(x, (list, tuple)) and array.dtype == np.float64 and array.size and abs(array).max() >= 2.0**63:
        exact = np.asarray(x, object)
        if exact.shape == array.shape and all(isinstance(number, (int, np.integer)) for number in exact.flat):
            return exact
    return array


def is_wide_integer(dtype):
    """Whether there are integers of this dtype that float64 does not hold."""
    return (dtype.kind in "iu" and dtype.itemsize == 8) or dtype.kind == "O"


def converted(array, dtype, order="K", copy=False):
    """array.astype(dtype, order, copy=copy), without warnings of what the dtype does not hold."""
    if array.dtype == dtype:        # nothing to warn of, and errstate costs as much as a small array's kernel
        return array.astype(dtype, order, copy=copy)
    with np.errstate(all="ignore"):
        return array.astype(dtype, order, copy=copy)


def as_axes(axis, ndim):
    """The axes as a sorted tuple of distinct ints from 0."""
    if axis is None:
        return tuple(range(ndim))
    if not isinstance(axis, tuple):
        if ndim == 0:               # as NumPy's reductions: 0 and -1 are the axis that a scalar might have
            _as_axis(axis, 1)
            return ()
        return (_as_axis(axis, ndim),)
    axes = tuple(_as_axis(a, ndim) for a in axis)
    if len(set(axes)) != len(axes):
        raise ValueError("duplicate value in 'axis'")
    return tuple(sorted(axes))


def _as_axis(a, ndim):
    if isinstance(a, (bool, np.bool_)) or not hasattr(a, "__index__"):
        raise TypeError(f"an axis must be an int, not {type(a).__name__}")
    a = a.__index__()
    if not -ndim <= a < ndim:
        raise np.exceptions.AxisError(a, ndim)
    return a % ndim


def common_dtype(a, a_array, b, b_array):
    """The dtype that a and b promote to, given as they came and as arrays; a Python number does not widen the other."""
    kinds = [x if type(x) in (bool, int, float, complex) else array.dtype for x, array in ((a, a_array), (b, b_array))]
    for kind, other in (kinds, kinds[::-1]):
        if isinstance(kind, np.dtype) and kind.name == "bfloat16":
            if isinstance(other, (bool, int, float)) or other == kind:
                return native(kind)
            try:
                return np.result_type(*kinds)
            except TypeError:       # ml_dtypes leaves float16 and most integers out
                return np.result_type(np.float32, other)
    return np.result_type(*kinds)


def real_dtype(dtype):
    """That of the real part."""
    return np.empty(0, dtype).real.dtype if dtype.kind == "c" else dtype


def result_dtype(x_dtype, dtype, *, integers_to_float64):
    """(dtype of the computation, dtype of the result)."""
    if x_dtype.kind in "biuO":
        wide = integers_to_float64 or x_dtype.kind == "O"
        natural = np.dtype(np.float64) if wide else np.exp(np.empty(0, x_dtype)).dtype
    else:
        natural = native(x_dtype)
    if dtype is None:
        return natural, natural
    final = native(np.dtype(dtype))
    if final.kind not in "fc" and tag(final) is None:
        raise TypeError(f"dtype must be a floating dtype, got {final}")
    if natural.kind == "c" and final.kind != "c":
        raise TypeError(f"the result of complex input cannot be {final}")
    if final == natural:
        return natural, final
    if final.itemsize > natural.itemsize or (final.kind == "c" and natural.kind != "c"):
        return final, final
    if final.itemsize == natural.itemsize:          # float16 and bfloat16: neither holds the other
        return np.dtype(np.float32), final
    return natural, final


def as_temperature(temperature, shape, axes):
    """(temperature, whether the kernels' arithmetic holds for it; beyond, the reference does).

    The temperature is a float, or a float64 array of the input's number of dimensions with length 1 along the axes.
    """
    if type(temperature) is float and 0 < temperature < math.inf:
        return temperature, 1e-30 < temperature < 1e30
    if isinstance(temperature, np.ma.MaskedArray):
        raise TypeError("temperature must not be a masked array")
    if type(temperature) is int:                # of any size; NumPy would make an object of a large one
        temperature = float(max(-1 << 1023, min(temperature, 1 << 1023)))
    t = np.asarray(temperature)
    if t.dtype.kind not in "iuf" and tag(t.dtype) is None:
        raise TypeError(f"temperature must be real numbers, got dtype {t.dtype}")
    t = converted(t, np.float64, copy=True)
    lowest, highest = (t.item(t.argmin()), t.item(t.argmax())) if t.size else (1.0, 1.0)    # a NaN, if there is one
    if not (lowest > 0 and highest < math.inf):
        bad = t[~((t > 0) & (t < np.inf))].flat[0]
        meant = "; the limit of softmax at 0 is a weight of 1 at argmax(x)" if bad == 0 else ""
        raise ValueError(f"temperature must be positive and finite, got {bad}{meant}")
    moderate = lowest > 1e-30 and highest < 1e30
    if t.ndim == 0:
        return lowest, moderate
    reduced = tuple([1 if i in axes else size for i, size in enumerate(shape)])
    try:
        return _fastpath.broadcast_to(t, reduced), moderate
    except ValueError:
        raise ValueError(f"temperature of shape {t.shape} does not broadcast to {reduced}: the shape of the input "
                         f"{tuple(shape)} with length 1 along the axes of the reduction") from None


def as_where(where, shape):
    """The mask, broadcast to the input's shape; None stays."""
    if where is None:
        return None
    if isinstance(where, np.ma.MaskedArray):
        raise TypeError("where must not be a masked array")
    mask = np.asarray(where)
    if mask.dtype != np.bool_:
        raise TypeError(f"where must be an array of bool, got dtype {mask.dtype}")
    try:
        return _fastpath.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"where of shape {mask.shape} does not broadcast to the input's shape {tuple(shape)}") from None


def check_out(out, shape, dtype):
    """Raise unless out is a writeable array of this shape and dtype."""
    if isinstance(out, np.ma.MaskedArray) or not isinstance(out, np.ndarray):
        raise TypeError(f"out must be an ndarray, got {type(out).__name__}")
    if native(out.dtype) != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if out.shape != tuple(shape):
        raise ValueError(f"out must have shape {tuple(shape)}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; expected a writeable array")
    if elements_overlap(out):
        raise ValueError(f"elements of out share memory (shape {out.shape}, strides {out.strides}); expected an array "
                         "with a place for each result")


def elements_overlap(array):
    """Whether two elements of the array share memory, as where a stride is 0."""
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
    reach = min(len(blocks), extent // abs(blocks.strides[0]) + 1)      # blocks farther off cannot touch
    return any(np.shares_memory(blocks[0], blocks[k]) for k in range(1, reach))


def same_elements(x, y):
    """Whether both are the same elements of memory in the same order."""
    return (x.__array_interface__["data"][0] == y.__array_interface__["data"][0] and x.strides == y.strides
            and x.shape == y.shape and x.dtype == y.dtype)


def copy_if_overlapping(array, out):
    """array itself, or a copy where writing to out would change it before it is read."""
    if array is None or not isinstance(array, np.ndarray) or not np.may_share_memory(array, out):
        return array
    return array.copy() if np.shares_memory(array, out) else array


def separate(x, out):
    """x, or a copy of it where it overlaps out without being the same elements."""
    if x is out or not np.may_share_memory(x, out) or same_elements(x, out):
        return x
    return copy_if_overlapping(x, out)


def kernel_ready(array):
    """Whether a kernel's memoryview can take it: native, aligned, whole elements between elements."""
    flags = array.flags
    return (array.dtype.isnative and flags.aligned
            and (flags.c_contiguous or math.gcd(*array.strides) % array.itemsize == 0))


def elements(array):
    """The array as a kernel sees it: 16-bit floats by their bits."""
    bits = _BITS[tag(array.dtype)]
    return array if bits is None else array.view(bits)


def merged(dims):
    """Neighbouring dimensions joined where every operand steps through both evenly.

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


def by_operand(dims, count):
    """(sizes, each operand's strides) of dimensions as `merged` takes and returns them."""
    return tuple([size for size, _ in dims]), [tuple([strides[k] for _, strides in dims]) for k in range(count)]


class Layout:
    """Operands of one shape (strides may be 0), seen as calls on arrays of three dimensions.

    `shape` is that of each call; `calls` is their number. Made by `along` or `of_matrices`, which remember their last
    answers: many calls are on arrays that lie as others did.
    """

    def __init__(self, loops, dims, count):
        self.shape = tuple([size for size, _ in dims])
        self.calls = math.prod([size for size, _ in loops])
        self._sizes, self._strides = by_operand([*loops, *dims], count)

    @classmethod
    @functools.lru_cache(maxsize=64)
    def along(cls, shape, axes, strides):
        """(outer, n, inner) with the axes as n; None where these are no single step: their order is part of the sum."""
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


def pieces(shape, size):
    """Index tuples that cut an array of this shape into pieces of at most `size` elements, where it can."""
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
