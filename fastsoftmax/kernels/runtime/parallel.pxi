# The one loop over tasks.
#
# A task is a function of a context, which all tasks of a loop share, and of its own number. It returns its cost, in
# any unit that all tasks of the loop share. It runs in the default floating-point environment, whatever the caller's.
# It must not depend on which thread runs it, or when, but for the workspace of that thread.
#
# While the contention record asks for it (see contention.h), the caller runs tasks alone; then all threads share the
# rest. With one thread the caller runs them all.

ctypedef Py_ssize_t (*Task)(const void* context, Py_ssize_t task, int thread) noexcept nogil

cdef inline void run_task(Task function, const void* context, Py_ssize_t task, int thread,
                          ParallelRegion* region) noexcept nogil:
    cdef fp_state modes = fp_enter()
    cdef Py_ssize_t cost
    start_task(region)
    cost = function(context, task, thread)
    end_task(region, cost)
    fp_leave(modes)

cdef void parallel_for(Task function, const void* context, Py_ssize_t start, Py_ssize_t stop, bint keep_order,
                       ParallelRegion* region) noexcept nogil:
    """Runs the tasks start .. stop - 1. With keep_order, and as many tasks as threads, thread t runs task start + t:
    loops after one another over the same data then find it in the same cache."""
    cdef Py_ssize_t task
    while start < stop and is_serial(region):
        run_task(function, context, start, 0, region)
        start += 1
    if start < stop:
        begin_parallel(region)
        if keep_order:
            for task in prange(start, stop, num_threads=region.threads, schedule="static"):
                run_task(function, context, task, threadid(), region)
        else:
            for task in prange(start, stop, num_threads=region.threads, schedule="dynamic"):
                run_task(function, context, task, threadid(), region)
        end_parallel(region)

cdef int run_tasks(Task function, const void* context, Py_ssize_t tasks, Py_ssize_t slice_, int threads) except -1:
    """Runs tasks 0 .. tasks - 1, and looks for an interrupt (Control-C) after each `slice_` of them."""
    cdef ParallelRegion region
    cdef Py_ssize_t start = 0
    # A single task is the caller's. For a few, the team keeps its size: libgomp ends the threads that a smaller team
    # leaves out, and starts others for the next larger one.
    if min(slice_, tasks) == 1:
        threads = 1
    while start < tasks:
        with nogil:
            region = open_region(threads)
            parallel_for(function, context, start, min(start + slice_, tasks), False, &region)
            close_region(&region)
        start += slice_
        PyErr_CheckSignals()
    return 0
