"""Access to the contention record and the thread pool (contention.h, workers.h in kernels/runtime), for tests alone."""
import contextlib

from libc.stdlib cimport calloc, free

from fastsoftmax import _openmp, _thread_pool, _threads

cdef extern from *:
    """
    #include <stdint.h>
    static int64_t test_stolen, test_cores, test_readings;
    static int64_t stolen_in_test(int64_t *cores) { *cores = test_cores; test_readings++; return test_stolen; }
    """

cdef extern from "kernels/runtime/contention.h" nogil:
    ctypedef long long int64_t
    ctypedef struct Contention:
        int64_t serial_ns, factor, credit, recorded, regions, losses, since, backoff_ns, stolen_ns
        int64_t (*stolen_now)(int64_t* cores)
    ctypedef struct ParallelRegion:
        int64_t start, first, last, own, all
    int64_t region_loss(const ParallelRegion*, int64_t)
    void record_loss(Contention*, int64_t, int64_t, int64_t)
    bint extend_backoff(Contention*, int64_t threads, int64_t now)
    const int64_t FIRST_BACKOFF, LONGEST_BACKOFF, LONGEST_OF_POOL

cdef extern from *:
    int64_t stolen_in_test(int64_t*)
    int64_t test_stolen, test_cores, test_readings

cdef Contention* contention = <Contention*><size_t>_openmp.contention_address


def contention_state():
    """(ns for which callers still compute serially, number of parallel regions so far, number of losses so far)."""
    return max(contention.serial_ns, 0), contention.regions, contention.losses


def compute_serially(int64_t nanoseconds):
    """Callers compute serially for so long."""
    contention.serial_ns, contention.since = nanoseconds, 0


def backoffs_of(regions, int64_t apart=0, bint of_pool=False):
    """The back-off in ns that follows each of some regions, each a call of its own, from a fresh record on.

    Regions are (start, first, last, end, own, all), as in contention.h. Between them callers compute as long as the
    back-off asks. Each ends so many ns after the one before.
    """
    cdef Contention new = Contention(0, FIRST_BACKOFF, 0, 0, 0, 0, 0, 0, 0, NULL)
    cdef ParallelRegion region
    found = []
    for start, first, last, end, own, all_ in regions:
        region.start, region.first, region.last, region.own, region.all = start, first, last, own, all_
        new.serial_ns, new.recorded = 0, end - apart
        record_loss(&new, region_loss(&region, end), end, LONGEST_OF_POOL if of_pool else LONGEST_BACKOFF)
        found.append(new.serial_ns)
    return found


def backoff_extended(elapsed, backoff_ns, threads, cores, stolen_before, stolen_now):
    """The ns by which a back-off of backoff_ns is extended when it has expired after `elapsed` ns.

    Other programs have had the cores for stolen_now - stolen_before ns meanwhile.
    """
    global test_stolen, test_cores
    cdef Contention new = Contention(0, FIRST_BACKOFF, 0, 0, 0, 0, 1, backoff_ns, stolen_before, stolen_in_test)
    test_stolen, test_cores = stolen_now, cores
    if extend_backoff(&new, threads, 1 + elapsed):
        assert new.since == 1 + elapsed and new.stolen_ns == stolen_now
        return new.serial_ns
    assert new.since == 0
    return 0


def account_is_read(int64_t loss):
    """Whether the first loss of so many ns has the system's account read."""
    cdef Contention new = Contention(0, FIRST_BACKOFF, 0, 1, 0, 0, 0, 0, 0, stolen_in_test)
    global test_readings
    test_readings = 0
    record_loss(&new, loss, 1, LONGEST_BACKOFF)
    return test_readings > 0


def stolen():
    """(ns that other programs have had of the cores that the calling thread may use, the number of these).

    (-1, ...) where the system does not tell.
    """
    cdef int64_t cores = 0
    if contention.stolen_now == NULL:
        return -1, 0
    return contention.stolen_now(&cores), cores


@contextlib.contextmanager
def threading_layer(name):
    """Loops use that layer inside the block."""
    before = _threads.layer(), _threads._follows_torch
    _threads._layer, _threads._follows_torch = name, False
    _thread_pool.enable(name == "pool")
    try:
        yield
    finally:
        _threads._layer, _threads._follows_torch = before
        _thread_pool.enable(_threads._layer == "pool")


cdef extern from *:
    """
    #if defined(__linux__)          /* as the pool itself */
    #include <sched.h>
    #include <time.h>
    static void sleep_for(double seconds) {
        struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (time_t)seconds))};
        if (seconds > 0)
            nanosleep(&t, NULL);
    }
    static int only_cpu(void) {
        cpu_set_t cpus;
        if (sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) == 1)
            for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
                if (CPU_ISSET(cpu, &cpus))
                    return cpu;
        return -1;
    }
    static int cpu_number(void) { return sched_getcpu(); }
    #else
    static void sleep_for(double seconds) { (void)seconds; }
    static int only_cpu(void) { return -1; }
    static int cpu_number(void) { return -1; }
    #endif
    """
    void sleep_for(double) nogil
    int only_cpu() nogil            # that this thread may use, -1 if it may use more
    int cpu_number() nogil

cdef extern from "kernels/runtime/thread_pool.h" nogil:
    ctypedef void (*LoopBody)(void* loop, Py_ssize_t task, int thread) noexcept nogil
    ctypedef struct ThreadPool:
        bint (*run)(int threads, LoopBody body, void* loop, Py_ssize_t start, Py_ssize_t stop,
                    bint in_shares) noexcept nogil

cdef struct TestTask:
    int runs, thread, bound_before, bound_after, cpu

cdef struct TestLoop:
    double callers, workers         # how long each sleeps in a task
    TestTask* tasks

cdef void test_task(void* loop_, Py_ssize_t number, int thread) noexcept nogil:
    cdef TestLoop* loop = <TestLoop*>loop_
    cdef TestTask* task = &loop.tasks[number]
    task.bound_before = only_cpu()
    sleep_for(loop.workers if thread > 0 else loop.callers)
    task.runs += 1
    task.thread, task.bound_after, task.cpu = thread, only_cpu(), cpu_number()


def run_in_pool(int threads, Py_ssize_t tasks, bint in_shares=False, double callers=0, double workers=0):
    """Runs a loop, where the caller sleeps so many seconds in each of its tasks and the workers in each of theirs.

    Returns a dict for each task, or None if no other thread was to be had: "runs"; "thread"; "bound_before" and
    "bound_after", the only CPU that the thread may use at the task's beginning and at its end, -1 if it may use more;
    and "cpu", on which it ended.
    """
    cdef const ThreadPool* pool = <const ThreadPool*><size_t>_thread_pool.address
    cdef TestLoop loop
    cdef bint done
    loop.callers, loop.workers = callers, workers
    loop.tasks = <TestTask*>calloc(tasks, sizeof(TestTask))
    if loop.tasks == NULL:
        raise MemoryError
    try:
        with nogil:
            done = pool.run(threads, test_task, &loop, 0, tasks, in_shares)
        return [loop.tasks[i] for i in range(tasks)] if done else None
    finally:
        free(loop.tasks)
