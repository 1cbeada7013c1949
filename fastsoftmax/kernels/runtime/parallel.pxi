# The one loop over tasks.
#
# A task is a function of a context, which all tasks of a loop share, and of its own number. It returns its cost, in
# any unit that all tasks of the loop share. It runs in the default floating-point environment, whatever the caller's.
# It must not depend on which thread runs it, or when, but for the workspace of that thread.
#
# While the contention record asks for it (see contention.h), or all cores are taken by other callers, the caller runs
# tasks alone; then all threads share the rest. With one thread the caller runs them all. The threads are those of
# workers.h where the pool is enabled, otherwise OpenMP's.

ctypedef Py_ssize_t (*Task)(const void* context, Py_ssize_t task, int thread) noexcept nogil

ctypedef enum TaskOrder:
    IN_ORDER            # tasks are begun one after the other: the longest are first
    IN_SHARES           # each thread of the pool has tasks that follow one another; what is late is done by others
    IN_FIXED_SHARES     # of OpenMP's threads too, so that loops over the same data find it in the same cache

cdef struct Loop:
    Task function
    const void* context
    ParallelRegion* region

cdef void run_task(void* loop_, Py_ssize_t task, int thread) noexcept nogil:
    cdef const Loop* loop = <const Loop*>loop_
    cdef fp_state modes = fp_enter()
    cdef Py_ssize_t cost
    start_task(loop.region, thread)
    cost = loop.function(loop.context, task, thread)
    end_task(loop.region, cost, thread)
    fp_leave(modes)

cdef bint run_parallel(Loop* loop, Py_ssize_t start, Py_ssize_t stop, TaskOrder order) noexcept nogil:
    """False, having done nothing, where no other thread is to be had now."""
    cdef int threads = loop.region.threads
    cdef Py_ssize_t task
    begin_parallel(loop.region)
    if thread_pool.enabled:
        if not thread_pool.run(threads, run_task, loop, start, stop, order != IN_ORDER):
            abandon_parallel(loop.region)
            return False
    elif order == IN_FIXED_SHARES:
        for task in prange(start, stop, num_threads=threads, schedule="static"):
            run_task(loop, task, threadid())
    else:
        for task in prange(start, stop, num_threads=threads, schedule="dynamic"):
            run_task(loop, task, threadid())
    end_parallel(loop.region)
    return True

cdef void parallel_for(Task function, const void* context, Py_ssize_t start, Py_ssize_t stop, TaskOrder order,
                       ParallelRegion* region) noexcept nogil:
    """Runs the tasks start .. stop - 1."""
    cdef Loop loop
    loop.function, loop.context, loop.region = function, context, region
    while start < stop:
        if not is_serial(region) and run_parallel(&loop, start, stop, order):
            return
        run_task(&loop, start, 0)
        start += 1

cdef int run_tasks(Task function, const void* context, Py_ssize_t tasks, Py_ssize_t slice_, int threads,
                   TaskOrder order) except -1:
    """Runs tasks 0 .. tasks - 1, and looks for an interrupt (Control-C) each time a thread has had `slice_` of them."""
    cdef ParallelRegion region
    cdef Py_ssize_t start = 0, stop
    # A single task is the caller's. For a few, the team keeps its size: libgomp ends the threads that a smaller team
    # leaves out, and starts others for the next larger one.
    if tasks == 1:
        threads = 1
    while start < tasks:
        with nogil:
            region = open_region(threads)
            stop = min(start + slice_ * (1 if is_serial(&region) else threads), tasks)
            parallel_for(function, context, start, stop, order, &region)
            close_region(&region)
        start = stop
        PyErr_CheckSignals()
    return 0
