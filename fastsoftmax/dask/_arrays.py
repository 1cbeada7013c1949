"""Shared by both modules of functions: arguments as dask arrays, checked, and functions as tasks."""

import functools
import math

import dask.array as da
import numpy as np

import fastsoftmax


def dask_array(x, name):
    """x as a dask array of plain NumPy chunks of known sizes."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill it first: {name}.filled(-inf)")
    array = x if isinstance(x, da.Array) else da.asarray(x)
    if any(math.isnan(size) for size in array.shape):
        raise ValueError(f"{name} has chunks of unknown size, shape {array.shape}: call {name}.compute_chunk_sizes() "
                         "first")
    meta = array._meta
    if isinstance(meta, np.ma.MaskedArray):
        raise TypeError(f"{name} is a dask array of masked arrays; fill them first: da.ma.filled({name}, -inf)")
    if not isinstance(meta, np.ndarray | np.generic):
        kind = f"{type(meta).__module__}.{type(meta).__qualname__}"
        raise TypeError(f"{name} is a dask array of {kind}, which no kernel takes: NumPy chunks are needed, as "
                        f"{name}.map_blocks(numpy.asarray) makes them")
    return array


def stand_in(array):
    """An ndarray of the shape and dtype of a dask array, without its memory, for checks."""
    return np.broadcast_to(np.empty((), array.dtype), array.shape)


def empty(ndim, dtype):
    """The meta of a dask array."""
    return np.empty((0,) * ndim, dtype)


def task(function):
    """Decorator: a function that runs inside a task, in which kernels use one thread: the workers are the threads."""
    @functools.wraps(function)
    def serial(*args, **kwargs):
        with fastsoftmax.num_threads(1):
            return function(*args, **kwargs)

    return serial
