"""The number of threads: of the process, of the calling thread, and for a call of a given size; whose they are."""

import contextlib
import math
import operator
import os
import sys
import threading
from typing import Self, SupportsIndex

from fastsoftmax import _openmp, _thread_pool

# Elements from which a second thread saves more time than its start costs; see docs/threads.md for the measurement.
PARALLEL = 1 << 16


class _Local(threading.local):
    """The numbers of the `num_threads` blocks that a thread is in, the innermost last."""

    def __init__(self):
        self.numbers = []


_local = _Local()


def _container_limit(root="/"):
    """CPUs that the cgroup's quota allows, rounded up; None without a quota. Tests pass another `root`."""
    try:
        paths = {}
        with open(os.path.join(root, "proc/self/cgroup")) as lines:
            for line in lines:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                for controller in controllers.split(","):
                    paths[controller] = path
    except (OSError, ValueError):
        return None
    limits = []
    for folder, controller, read in (("sys/fs/cgroup", "", _quota_v2), ("sys/fs/cgroup/cpu", "cpu", _quota_v1)):
        path = paths.get(controller)
        while path is not None:                     # a quota may be set at any level above
            quota = read(os.path.join(root, folder) + path)
            if quota is not None:
                limits.append(quota)
            path = os.path.dirname(path) if path not in ("", "/") else None
    return max(1, math.ceil(min(limits))) if limits else None


def _quota_v2(folder):
    try:
        with open(os.path.join(folder, "cpu.max")) as file:
            quota, period = file.read().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder):
    try:
        with open(os.path.join(folder, "cpu.cfs_quota_us")) as file:
            quota = int(file.read())
        with open(os.path.join(folder, "cpu.cfs_period_us")) as file:
            period = int(file.read())
        return None if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _from_environment(name):
    text = os.environ.get(name)
    if text is None or (name == "OMP_NUM_THREADS" and not text.strip()):
        return None
    try:
        number = int(text.split(",")[0] if name == "OMP_NUM_THREADS" else text)
        if number < 1:
            raise ValueError
    except ValueError:
        raise ImportError(f"{name}={text!r} is not a number of threads: a whole number from 1") from None
    return number


def _default():
    """The initial number of threads, and the reason for it."""
    for name in ("FASTSOFTMAX_NUM_THREADS", "OMP_NUM_THREADS"):
        number = _from_environment(name)
        if number is not None:
            return number, name
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _container_limit()
    if quota is not None and quota < cpus:
        return quota, "the container's CPU quota"
    return cpus, "the CPUs that this process may run on"


_process, _reason = _default()

LAYERS = ("pool", "openmp")


def _default_layer():
    """(whose threads run loops, whether that depends on PyTorch). A library that shares our OpenMP runtime has threads
    which spin on the cores for milliseconds after its work: then these do ours, too."""
    name = os.environ.get("FASTSOFTMAX_THREADING_LAYER")
    available = LAYERS if _thread_pool.available else ("openmp",)
    if name is not None and name not in available:
        raise ImportError(f"FASTSOFTMAX_THREADING_LAYER={name!r} is not among those of this platform: "
                          + ", ".join(available))
    if name is not None or not _thread_pool.available:
        return name or "openmp", False
    if _openmp.is_inherited():               # OpenMP would be left with one thread
        return "pool", False
    return ("openmp", False) if _openmp.was_loaded else ("pool", True)


_layer, _follows_torch = _default_layer()
_thread_pool.enable(_layer == "pool")


def layer():
    """Whose threads run loops: "pool", our own, or "openmp"."""
    global _layer, _follows_torch
    if _follows_torch and "torch" in sys.modules:
        _layer, _follows_torch = "openmp", False
        _thread_pool.enable(False)
    return _layer


def _checked(n):
    if isinstance(n, bool):
        raise TypeError("the number of threads must be an int, not bool")
    try:
        n = operator.index(n)
    except TypeError:
        raise TypeError(f"the number of threads must be an int, not {type(n).__name__}") from None
    if not 1 <= n <= 1 << 16:
        raise ValueError(f"the number of threads must be from 1 to {1 << 16}, got {n}")
    return n


def get_num_threads() -> int:
    """The number of threads that a call from this thread may use.

    Returns
    -------
    int

    Examples
    --------
    >>> import fastsoftmax
    >>> with fastsoftmax.num_threads(1):
    ...     fastsoftmax.get_num_threads()
    1
    """
    return _local.numbers[-1] if _local.numbers else _process


def set_num_threads(n: SupportsIndex) -> None:
    """Set the number of threads for the whole process.

    Results do not depend on it, nor do other libraries' thread settings.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If n is not an int.
    ValueError
        If n is below 1.

    Examples
    --------
    >>> import fastsoftmax
    >>> before = fastsoftmax.get_num_threads()
    >>> fastsoftmax.set_num_threads(2)
    >>> fastsoftmax.get_num_threads()
    2
    >>> fastsoftmax.set_num_threads(before)
    """
    global _process, _reason
    _process, _reason = _checked(n), "set_num_threads"


class num_threads(contextlib.ContextDecorator):
    """Context manager: calls from this thread use at most n threads while the block runs.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        If n is not an int.
    ValueError
        If n is below 1.

    Examples
    --------
    >>> import fastsoftmax
    >>> with fastsoftmax.num_threads(1):
    ...     y = fastsoftmax.softmax([3.0, 2.0, 1.0])
    """

    def __init__(self, n: SupportsIndex) -> None:
        self._number = _checked(n)          # the only state, since a decorator is one object for all threads

    def __enter__(self) -> Self:
        _local.numbers.append(self._number)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _local.numbers.pop()


def _must_be_serial():
    return layer() == "openmp" and _openmp.must_be_serial()


def why():
    """The reason for the number of threads."""
    if _must_be_serial():
        return "1 here: forked from a process in which another library may have used the same OpenMP runtime"
    return "num_threads" if _local.numbers else _reason


def threads_for(elements):
    """The number of threads that a call on so many elements should use."""
    if elements < PARALLEL or _must_be_serial():
        return 1
    return max(1, min(get_num_threads(), elements // (PARALLEL // 2)))
