"""dtypes: how they promote, and conversions that never warn. `_fastpath.tag` tells which of them have kernels."""

import numpy as np

_FLOAT32 = np.dtype(np.float32)


def native(dtype):
    """The dtype in this machine's byte order."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def is_wide_integer(dtype):
    """Whether there are integers of this dtype that float64 does not hold."""
    return (dtype.kind in "iu" and dtype.itemsize == 8) or dtype.kind == "O"


def natural_dtype(dtype, *, integers_to_float64):
    """The dtype of the result for input of this dtype."""
    if dtype.kind == "O" or (dtype.kind in "biu" and integers_to_float64):
        return np.dtype(np.float64)
    return np.exp(np.empty(0, dtype)).dtype if dtype.kind in "biu" else native(dtype)


def common_dtype(a, a_array, b, b_array):
    """The dtype that a and b promote to, given as passed and as arrays; a Python number does not widen the other."""
    kinds = [x if type(x) in (bool, int, float, complex) else array.dtype for x, array in ((a, a_array), (b, b_array))]
    for kind, other in (kinds, kinds[::-1]):
        if isinstance(kind, np.dtype) and kind.name == "bfloat16":
            if isinstance(other, (bool, int, float)) or other == kind:
                return native(kind)
            try:
                return np.result_type(*kinds)
            except TypeError:       # ml_dtypes defines no promotion with float16 and most integers
                return np.result_type(np.float32, other)
    return np.result_type(*kinds)


def real_dtype(dtype):
    """The dtype of the real part."""
    return np.empty(0, dtype).real.dtype if dtype.kind == "c" else dtype


def statistics_dtype(dtype):
    """The dtype of attention's lse and entropy, and of its arithmetic, for queries of this dtype."""
    return _FLOAT32 if dtype.itemsize < 8 else dtype


def converted(array, dtype, order="K", copy=False):
    """array.astype(dtype, order, copy=copy), aligned, and without a warning for numbers beyond the dtype's range."""
    if array.dtype == dtype:        # no warning is possible, and errstate costs as much as a small array's kernel
        return array.astype(dtype, order, copy=copy or not array.flags.aligned)
    with np.errstate(all="ignore"):
        return array.astype(dtype, order, copy=copy)


@np.errstate(all="ignore")
def saturated(x, dtype):
    """A copy in this dtype, in which finite numbers stay finite: an infinite score would hide a key, or give NaN."""
    array = x.astype(dtype, order="C")
    if x.dtype.itemsize > array.itemsize:
        np.copyto(array, np.copysign(np.finfo(dtype).max, array), where=np.isinf(array) & np.isfinite(x))
    return array
