# The thread pool (see workers.h) and the measurement of parallel regions (see contention.h), for parallel.pxi.
from fastsoftmax import _openmp, _thread_pool

cdef extern from "runtime/thread_pool.h" nogil:
    ctypedef void (*LoopBody)(void* loop, Py_ssize_t task, int thread) noexcept nogil
    ctypedef struct ThreadPool:
        bint (*run)(int threads, LoopBody body, void* loop, Py_ssize_t start, Py_ssize_t stop,
                    bint in_shares) noexcept nogil
        bint enabled

cdef const ThreadPool* thread_pool = <const ThreadPool*><size_t>_thread_pool.address

cdef extern from "runtime/contention.h" nogil:
    ctypedef struct Contention:
        int64_t serial_ns, regions, since
    ctypedef struct ParallelRegion:
        int threads, parallel
        int64_t start, first, last, own, all, regions, loss
    int64_t now_ns() noexcept
    int64_t ATOMIC_READ(int64_t) noexcept
    void ATOMIC_ADD(int64_t, int64_t) noexcept
    int64_t region_loss(const ParallelRegion*, int64_t) noexcept
    void record_loss(Contention*, int64_t, int64_t, int64_t) noexcept
    const int64_t LONGEST_BACKOFF, LONGEST_OF_POOL
    bint extend_backoff(Contention*, int64_t, int64_t) noexcept

cdef Contention* contention = <Contention*><size_t>_openmp.contention_address

cdef inline ParallelRegion open_region(int threads) noexcept nogil:
    cdef ParallelRegion region
    region.threads, region.parallel = threads, False
    region.start = region.first = region.last = now_ns() if threads > 1 else 0
    region.own = region.all = region.regions = region.loss = 0
    return region

cdef inline bint is_serial(const ParallelRegion* region) noexcept nogil:
    if region.threads == 1 or ATOMIC_READ(contention.serial_ns) > 0:
        return True
    if thread_pool.enabled or ATOMIC_READ(contention.since) == 0:
        return False
    return extend_backoff(contention, region.threads, now_ns())

cdef inline void begin_parallel(ParallelRegion* region) noexcept nogil:
    region.parallel = True
    region.start = now_ns()
    region.own = region.all = 0

cdef inline void abandon_parallel(ParallelRegion* region) noexcept nogil:
    region.parallel, region.last = False, now_ns()

cdef inline void start_task(ParallelRegion* region, int thread) noexcept nogil:
    """The caller's first task starts the clock: the time to wake the other threads is not its own."""
    if region.parallel and thread == 0 and region.own == 0:
        region.first = now_ns()

cdef inline void end_task(ParallelRegion* region, Py_ssize_t cost, int thread) noexcept nogil:
    """cost: in any unit that the region's tasks share. Only the caller's thread reads the clock."""
    cdef int64_t now
    if region.threads == 1:
        return
    if region.parallel:
        ATOMIC_ADD(region.all, cost)
        if thread == 0:
            region.own += cost
            region.last = now_ns()
    else:
        now = now_ns()
        ATOMIC_ADD(contention.serial_ns, region.last - now)
        region.last = now

cdef inline void end_parallel(ParallelRegion* region) noexcept nogil:
    cdef int64_t now = now_ns()
    region.loss += region_loss(region, now)
    region.regions += 1
    region.parallel, region.last = False, now

cdef inline void close_region(ParallelRegion* region) noexcept nogil:
    if region.regions:
        ATOMIC_ADD(contention.regions, region.regions)
        record_loss(contention, region.loss, region.last,
                    LONGEST_OF_POOL if thread_pool.enabled else LONGEST_BACKOFF)
        region.regions = region.loss = 0
