"""The threads that kernels share their work with: team.h, compiled once, handed to the kernels by address."""

cdef extern from "team.h":
    ctypedef void (*Task "team_task")(const void* work, Py_ssize_t task, int thread) noexcept nogil
    void team_share(Task run, const void* work, Py_ssize_t start, Py_ssize_t stop, int threads,
                    int in_order) noexcept nogil
    int team_prepare() nogil
    int team_size() nogil

share_address = <size_t>&team_share


def workers():
    """How many threads have been started so far in this process, beside those that call."""
    return team_size()


if team_prepare() != 0:
    raise MemoryError("fastsoftmax: no memory to prepare for forks")
