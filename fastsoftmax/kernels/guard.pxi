# Many threads, or the caller alone: see guard.h. A loop over tasks is
#
#   region = alone_at_first(threads)
#   while tasks are left and alone(&region): the next task
#   if tasks are left: begin_region(&region), prange over them, end_region(&region)
#   learn(&region), perhaps after more such loops
#
# and every task stands between `start_task` and `end_task`. So one thread and many go the same way, and where callers
# need no longer be alone in the middle of a long call, the rest of it is parallel.
from fastsoftmax import _cpu

cdef extern from "guard.h" nogil:
    ctypedef long long int64_t
    ctypedef struct Guard:
        int64_t alone, regions, since
    ctypedef struct Region:
        int threads, parallel
        int64_t start, first, last, own, all, regions, loss
    int64_t guard_now() noexcept
    int64_t GUARD_READ(int64_t) noexcept
    void GUARD_ADD(int64_t, int64_t) noexcept
    int64_t region_loss(const Region*, int64_t) noexcept
    void guard_learn(Guard*, int64_t) noexcept
    bint guard_goes_on(Guard*, int64_t, int64_t) noexcept

cdef Guard* guard = <Guard*><size_t>_cpu.guard_address

cdef inline Region alone_at_first(int threads) noexcept nogil:
    cdef Region region
    region.threads, region.parallel = threads, False
    region.start = region.first = region.last = guard_now() if threads > 1 else 0
    region.own = region.all = region.regions = region.loss = 0
    return region

cdef inline bint alone(const Region* region) noexcept nogil:
    if region.threads == 1 or GUARD_READ(guard.alone) > 0:
        return True
    return GUARD_READ(guard.since) != 0 and guard_goes_on(guard, region.threads, guard_now())

cdef inline void begin_region(Region* region) noexcept nogil:
    region.parallel = True
    region.start = guard_now()
    region.own = region.all = 0

cdef inline void start_task(Region* region) noexcept nogil:
    """Waking the others is no part of the caller's first task."""
    if region.parallel and threadid() == 0 and region.own == 0:
        region.first = guard_now()

cdef inline void end_task(Region* region, Py_ssize_t weight) noexcept nogil:
    """weight: what the task cost, in units that are the region's own. Only the caller looks at the clock."""
    cdef int64_t now
    if region.threads == 1:
        return
    if region.parallel:
        GUARD_ADD(region.all, weight)
        if threadid() == 0:
            region.own += weight
            region.last = guard_now()
    else:
        now = guard_now()
        GUARD_ADD(guard.alone, region.last - now)
        region.last = now

cdef inline void end_region(Region* region) noexcept nogil:
    cdef int64_t now = guard_now()
    region.loss += region_loss(region, now)
    region.regions += 1
    region.parallel, region.last = False, now

cdef inline void learn(Region* region) noexcept nogil:
    if region.regions:
        GUARD_ADD(guard.regions, region.regions)
        guard_learn(guard, region.loss)
        region.regions = region.loss = 0
