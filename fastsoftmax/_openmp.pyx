"""The OpenMP runtime of this process: its path, forks, and contention for the cores.

The first of our modules that loads the runtime. Imported before any kernel.
"""

cdef extern from "kernels/runtime/forks.h" nogil:
    int OPENMP_VERSION
    const char* openmp_path()
    bint survives_forks()
    int prepare_forks()
    bint openmp_was_loaded()
    bint on_main_thread()
    bint inherited

cdef extern from "kernels/runtime/contention.h" nogil:
    ctypedef long long int64_t
    ctypedef struct Contention:
        int64_t serial_ns, factor, credit, recorded, regions, losses, since, backoff_ns, stolen_ns
        int64_t (*stolen_now)(int64_t* cores)
    const int64_t FIRST_BACKOFF

cdef extern from "kernels/runtime/stolen_time.h" nogil:
    int64_t (*STOLEN_NOW)(int64_t*)

# The one of this process; the kernels read and write it by its address.
cdef Contention contention = Contention(0, FIRST_BACKOFF, 0, 0, 0, 0, 0, 0, 0, STOLEN_NOW)
contention_address = <size_t>&contention


def runtime():
    """Version (a date, yyyymm) and path of the OpenMP runtime in this process."""
    return {"version": OPENMP_VERSION, "path": openmp_path().decode()}


def _was_forked():
    """Whether this process is a forked child that has not started another program since; False if that is not known."""
    try:
        with open("/proc/self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[6]) & 0x40 != 0      # PF_FORKNOEXEC of linux/sched.h
    except (OSError, ValueError, IndexError):
        return False


# A parent that had not imported this package could not dismiss its team before the fork. If another library shares the
# runtime with us, the thread that survives in the child may have a team of dead threads, and would wait for it forever.
was_loaded = bool(openmp_was_loaded())
inherited = not survives_forks() and was_loaded and _was_forked()


def is_inherited():
    """Whether must_be_serial() holds for the main thread."""
    return bool(inherited)


def must_be_serial():
    """Whether the calling thread must not start others: see forks.h."""
    return inherited and on_main_thread()


if prepare_forks() != 0:
    raise MemoryError("fastsoftmax: no memory to prepare for forks")
