"""Access to the contention record (kernels/runtime/contention.h), for tests alone."""
from fastsoftmax import _openmp

cdef extern from *:
    """
    #include <stdint.h>
    static int64_t test_stolen, test_cores;
    static int64_t stolen_in_test(int64_t *cores) { *cores = test_cores; return test_stolen; }
    """

cdef extern from "kernels/runtime/contention.h" nogil:
    ctypedef long long int64_t
    ctypedef struct Contention:
        int64_t serial_ns, factor, credit, regions, losses, since, backoff_ns, stolen_ns
        int64_t (*stolen_now)(int64_t* cores)
    ctypedef struct ParallelRegion:
        int64_t start, first, last, own, all
    int64_t region_loss(const ParallelRegion*, int64_t)
    void record_loss(Contention*, int64_t)
    bint extend_backoff(Contention*, int64_t threads, int64_t now)
    const int64_t FIRST_BACKOFF

cdef extern from *:
    int64_t stolen_in_test(int64_t*)
    int64_t test_stolen, test_cores

cdef Contention* contention = <Contention*><size_t>_openmp.contention_address


def contention_state():
    """(ns for which callers still compute serially, number of parallel regions so far, number of losses so far)."""
    return max(contention.serial_ns, 0), contention.regions, contention.losses


def compute_serially(int64_t nanoseconds):
    """Callers compute serially for so long."""
    contention.serial_ns, contention.since = nanoseconds, 0


def backoffs_of(regions):
    """The back-off in ns that follows each of some regions, each a call of its own, from a fresh record on.

    Regions are (start, first, last, end, own, all), as in contention.h. Between them callers compute as long as the
    back-off asks.
    """
    cdef Contention new = Contention(0, FIRST_BACKOFF, 0, 0, 0, 0, 0, 0, NULL)
    cdef ParallelRegion region
    found = []
    for start, first, last, end, own, all_ in regions:
        region.start, region.first, region.last, region.own, region.all = start, first, last, own, all_
        new.serial_ns = 0
        record_loss(&new, region_loss(&region, end))
        found.append(new.serial_ns)
    return found


def backoff_extended(elapsed, backoff_ns, threads, cores, stolen_before, stolen_now):
    """The ns by which a back-off of backoff_ns is extended when it has expired after `elapsed` ns.

    Other programs have had the cores for stolen_now - stolen_before ns meanwhile.
    """
    global test_stolen, test_cores
    cdef Contention new = Contention(0, FIRST_BACKOFF, 0, 0, 0, 1, backoff_ns, stolen_before, stolen_in_test)
    test_stolen, test_cores = stolen_now, cores
    if extend_backoff(&new, threads, 1 + elapsed):
        assert new.since == 1 + elapsed and new.stolen_ns == stolen_now
        return new.serial_ns
    assert new.since == 0
    return 0


def stolen():
    """(ns that other programs have had of the cores that the calling thread may use, the number of these).

    (-1, ...) where the system does not tell.
    """
    cdef int64_t cores = 0
    if contention.stolen_now == NULL:
        return -1, 0
    return contention.stolen_now(&cores), cores
