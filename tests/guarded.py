"""Arrays with pages before and after them that nobody may touch: one byte too far ends the process."""

import ctypes
import functools
import mmap
import os
import sys

import numpy as np
import pytest

PAGE = mmap.PAGESIZE
NONE, READ, WRITE = 0, 1, 2     # PROT_...

needs_mprotect = pytest.mark.skipif(
    sys.platform != "linux", reason="guard pages: made with mmap and mprotect, tried on Linux alone")


@functools.cache
def libc():
    return ctypes.CDLL(None, use_errno=True)


def protect(address, size, how):
    """mprotect. Takes no array: pytest prints the arguments of what raises, and this one could not be read."""
    if libc().mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), how) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mprotect: {os.strerror(error)}; a process has at most vm.max_map_count mappings")


class Guarded:
    """Lines of memory with a forbidden page before and after each: an array's last dimension goes into a line.

    So an array of one line is guarded as a whole, and a strided one at both ends of each of its rows.
    """

    def __init__(self, lines, size, dtype=np.uint8, fill=None, read_only=False):
        data = -(-size // PAGE) * PAGE
        self._step = PAGE + data
        self._map = mmap.mmap(-1, lines * self._step + PAGE)
        whole = np.frombuffer(self._map, np.uint8)
        first = whole.ctypes.data
        usable_lines = range(first + PAGE, first + lines * self._step, self._step)
        protect(first, whole.nbytes, NONE)
        for address in usable_lines:
            protect(address, data, READ | WRITE)
        if fill is not None:
            usable = np.lib.stride_tricks.as_strided(
                whole[PAGE:].view(dtype), (lines, data // np.dtype(dtype).itemsize),
                (self._step, np.dtype(dtype).itemsize))
            usable[...] = fill(usable.shape)
        for address in usable_lines if read_only else ():
            protect(address, data, READ)

    def array(self, dtype, shape, at_end, shift=0):
        """An array in the first lines, at the end or the start of each; `shift` bytes inwards."""
        width = shape[-1] * np.dtype(dtype).itemsize
        start = self._step - width - shift if at_end else PAGE + shift
        strides, step = [np.dtype(dtype).itemsize], self._step
        for size in reversed(shape[:-1]):
            strides.append(step)
            step *= size
        return np.ndarray(shape, dtype, self._map, start, strides[::-1])

    def contiguous(self, dtype, shape, at_end, shift=0):
        """A contiguous one, in the first line."""
        size = int(np.prod(shape))
        width = size * np.dtype(dtype).itemsize
        start = self._step - width - shift if at_end else PAGE + shift
        return np.ndarray(shape, dtype, self._map, start)

    def beyond(self, dtype, readable, shape):
        """One line of which only the first `readable` elements are there: the rest lies on forbidden ground.

        shape: all dimensions but the last are 1. For what a kernel promises not to touch, such as hidden scores; the
        array must not be printed or copied.
        """
        here = self.array(dtype, (readable,), at_end=True)
        return np.lib.stride_tricks.as_strided(here, shape, (0,) * (len(shape) - 1) + here.strides)
