"""The threads of this process that run loops over tasks, where they are not OpenMP's: kernels/runtime/workers.h.

Imported before any kernel.
"""

cdef extern from "kernels/runtime/workers.h" nogil:
    ctypedef struct ThreadPool:
        bint enabled
    int prepare_pool(ThreadPool*)
    bint HAS_THREAD_POOL

# The one of this process; the kernels read it by its address.
cdef ThreadPool pool
address = <size_t>&pool
available = bool(HAS_THREAD_POOL)


def enable(bint enabled):
    """Loops use the pool from now on, or OpenMP."""
    pool.enabled = enabled and available


if prepare_pool(&pool) != 0:
    raise MemoryError("fastsoftmax: no memory to prepare for forks")
