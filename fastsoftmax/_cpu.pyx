"""The machine as C sees it. Compiled for the baseline: it runs before anything is known of the CPU."""

cdef extern from *:
    """
    #if defined(_MSC_VER)
    #define COMPILER "MSVC"
    #elif defined(__clang__)
    #define COMPILER "Clang " __clang_version__
    #else
    #define COMPILER "GCC " __VERSION__
    #endif

    #if defined(__x86_64__) && defined(__GNUC__)
    #include <cpuid.h>
    #define SUPPORTS(feature) (__builtin_cpu_init(), __builtin_cpu_supports(feature) != 0)
    /* Not every compiler knows F16C by name: Clang 14 does not. Its registers are AVX's, so the test for AVX tells
       whether the operating system saves them. */
    static int supports_f16c(void) {
        unsigned int a, b, c, d;
        return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
    }
    #else
    #define SUPPORTS(feature) 0
    static int supports_f16c(void) { return 0; }
    #endif
    /* The psABI's levels, spelled out where a compiler may not know their names. */
    static int supports_v2(void) {
        return SUPPORTS("ssse3") && SUPPORTS("sse4.1") && SUPPORTS("sse4.2") && SUPPORTS("popcnt");
    }
    static int supports_v3(void) {
        return supports_v2() && SUPPORTS("avx") && SUPPORTS("avx2") && SUPPORTS("bmi") && SUPPORTS("bmi2")
            && SUPPORTS("fma") && supports_f16c();
    }
    static int supports_v4(void) {
        return supports_v3() && SUPPORTS("avx512f") && SUPPORTS("avx512bw") && SUPPORTS("avx512cd")
            && SUPPORTS("avx512dq") && SUPPORTS("avx512vl");
    }

    #include <stdint.h>
    #if defined(_OPENMP)
    #include <omp.h>
    #endif
    #if defined(_OPENMP) && !defined(_WIN32)
    #include <dlfcn.h>
    #include <pthread.h>
    static const char *openmp_path(void) {
        Dl_info info;
        return dladdr((void *)&omp_get_max_threads, &info) && info.dli_fname ? info.dli_fname : "";
    }
    /* libgomp's threads do not live on in a forked child, but its record of them does, and a parallel region there
       would wait for them forever. So the forking thread's idle team is dismissed before every fork; parent
       and child each make a new one when they next need it. Nobody did so for the main thread of a process where
       `inherited` is true: its team, if it has one, cannot even be dismissed. */
    static int inherited = 0;
    /* The runtime of LLVM and Intel, which may stand in for libgomp, sees to its threads itself, by fork handlers of
       its own. They hold its locks meanwhile: omp_pause_resource_all would wait for them forever. */
    static int survives_forks(void) {
        void *runtime = *openmp_path() ? dlopen(openmp_path(), RTLD_LAZY | RTLD_NOLOAD) : NULL;
        int found = runtime != NULL && dlsym(runtime, "__kmpc_fork_call") != NULL;
        if (runtime != NULL)
            dlclose(runtime);
        return found;
    }
    #if defined(__linux__)
    #include <link.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static int on_main_thread(void) { return getpid() == (pid_t)syscall(SYS_gettid); }
    typedef struct { int count, runtime, own; } LoadOrder;
    static int holds(const struct dl_phdr_info *object, const void *address) {
        for (int i = 0; i < object->dlpi_phnum; i++) {
            const ElfW(Phdr) *part = &object->dlpi_phdr[i];
            const char *start = (const char *)object->dlpi_addr + part->p_vaddr;
            if (part->p_type == PT_LOAD && (const char *)address >= start
                    && (const char *)address < start + part->p_memsz)
                return 1;
        }
        return 0;
    }
    static int look_at(struct dl_phdr_info *object, size_t size, void *order_) {
        LoadOrder *order = order_;
        (void)size;
        if (holds(object, (void *)&omp_get_max_threads))
            order->runtime = order->count;
        if (holds(object, &inherited))
            order->own = order->count;
        order->count++;
        return 0;
    }
    /* Whether the runtime was loaded before this module, the first of ours: by another library that uses it. */
    static int openmp_was_here(void) {
        LoadOrder order = {0, 0, 0};
        dl_iterate_phdr(look_at, &order);
        return order.runtime < order.own;
    }
    #else
    static int on_main_thread(void) { return 0; }
    static int openmp_was_here(void) { return 0; }
    #endif
    static void dismiss_team(void) {
        if (!omp_in_parallel() && !(inherited && on_main_thread()))
            omp_pause_resource_all(omp_pause_hard);
    }
    static int prepare_forks(void) { return survives_forks() ? 0 : pthread_atfork(dismiss_team, NULL, NULL); }
    #else
    static int inherited = 0;
    static int survives_forks(void) { return 1; }
    static int on_main_thread(void) { return 0; }
    static int openmp_was_here(void) { return 0; }
    static const char *openmp_path(void) { return ""; }
    static int prepare_forks(void) { return 0; }
    #endif
    #if defined(__linux__)
    #include <fcntl.h>
    #include <sched.h>
    #include <stdlib.h>
    #include <string.h>
    #include <time.h>
    #include <unistd.h>
    /* ns that others than this process have had of the cores that this thread may use, and how many cores those are;
       -1 where the system does not tell. From the lines of /proc/stat: cpu0 user nice system idle iowait irq softirq
       steal ... in ticks; what a virtual machine's host took from it, steal, is taken too. */
    static int64_t stolen_now(int64_t *cores) {
        char text[1 << 15], *line = text;
        cpu_set_t ours;
        struct timespec own;
        long long ticks = 0, tick = sysconf(_SC_CLK_TCK);
        int file = open("/proc/stat", O_RDONLY | O_CLOEXEC);
        ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
        if (file >= 0)
            close(file);
        if (length <= 0 || tick <= 0 || sched_getaffinity(0, sizeof ours, &ours) != 0
                || clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own) != 0)
            return -1;
        text[length] = 0;
        *cores = 0;
        while ((line = strchr(line, 10)) != NULL && strncmp(++line, "cpu", 3) == 0) {
            char *end;
            long number = strtol(line + 3, &end, 10);
            if (number < 0 || number >= CPU_SETSIZE || !CPU_ISSET(number, &ours))
                continue;
            for (int column = 0; column < 8; column++) {
                long long value = strtoll(end, &end, 10);
                if (column != 3 && column != 4)
                    ticks += value;
            }
            ++*cores;
        }
        if (line == NULL || *cores != CPU_COUNT(&ours))         /* cut off, or some are not listed */
            return -1;
        ticks = ticks * (1000000000 / tick) - (own.tv_sec * 1000000000LL + own.tv_nsec);
        return ticks < 0 ? 0 : ticks;
    }
    #define STOLEN_NOW stolen_now
    #else
    #define STOLEN_NOW NULL
    #endif
    static int64_t test_stolen, test_cores;
    static int64_t stolen_in_test(int64_t *cores) { *cores = test_cores; return test_stolen; }

    #if defined(_OPENMP)
    #define OPENMP_VERSION _OPENMP
    #else
    #define OPENMP_VERSION 0
    #endif
    """
    const char* COMPILER
    const char* DTYPES "FASTSOFTMAX_DTYPES"
    const char* ISAS "FASTSOFTMAX_ISAS"
    int OPENMP_VERSION
    bint supports_v2() nogil
    bint supports_v3() nogil
    bint supports_v4() nogil
    const char* openmp_path() nogil
    bint survives_forks() nogil
    int prepare_forks() nogil
    bint openmp_was_here() nogil
    bint on_main_thread() nogil
    bint inherited

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
    int64_t (*STOLEN_NOW)(int64_t*)
    int64_t stolen_in_test(int64_t*)
    int64_t test_stolen, test_cores

cdef extern from "<fenv.h>" nogil:
    ctypedef struct fenv_t:
        pass
    int fegetenv(fenv_t* environment)
    int fesetenv(const fenv_t* environment)
    const fenv_t* FE_DFL_ENV

compiler = COMPILER.decode()
dtypes = tuple(DTYPES.decode().split())             # what this build has kernels for
isas_built = tuple(ISAS.decode().split())           # from the plainest to the best


def supports(isa):
    """Whether this CPU runs the instructions of `isa`."""
    return {
        "generic": True, "arm64": True,
        "x86_64_v2": supports_v2(), "x86_64_v3": supports_v3(), "x86_64_v4": supports_v4(),
    }[isa]


cdef class usual_modes:
    """Context manager: C's usual floating-point environment for the calling thread; afterwards its own, flags included.

    Kernels see to themselves. This is for what NumPy computes before and after them.
    """
    cdef fenv_t before

    def __enter__(self):
        fegetenv(&self.before)
        fesetenv(FE_DFL_ENV)

    def __exit__(self, *exc_info):
        fesetenv(&self.before)


# The process's: see kernels/runtime/contention.h.
cdef Contention contention = Contention(0, FIRST_BACKOFF, 0, 0, 0, 0, 0, 0, STOLEN_NOW)
contention_address = <size_t>&contention


def contention_state():
    """Nanoseconds that callers still compute alone, how many parallel regions there were, how many of these lost."""
    return max(contention.serial_ns, 0), contention.regions, contention.losses


def compute_serially(int64_t nanoseconds):
    """For tests: callers compute alone for so long."""
    contention.serial_ns, contention.since = nanoseconds, 0


def backoffs_of(regions):
    """For tests: nanoseconds that a new contention has callers compute alone after each of some regions.

    Regions are (start, first, last, end, own, all), as in kernels/runtime/contention.h; between them callers do compute for so long.
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
    """For tests: nanoseconds that callers go on alone after a elapsed in which they computed alone for `backoff_ns`, and
    other programs had the cores for stolen_now - stolen_before nanoseconds."""
    global test_stolen, test_cores
    cdef Contention new = Contention(0, FIRST_BACKOFF, 0, 0, 0, 1, backoff_ns, stolen_before, stolen_in_test)
    test_stolen, test_cores = stolen_now, cores
    if extend_backoff(&new, threads, 1 + elapsed):
        assert new.since == 1 + elapsed and new.stolen_ns == stolen_now
        return new.serial_ns
    assert new.since == 0
    return 0


def stolen():
    """(ns that other programs have had of the cores that the calling thread may use, how many those are); (-1, ...)
    where the system does not tell."""
    cdef int64_t cores = 0
    if contention.stolen_now == NULL:
        return -1, 0
    return contention.stolen_now(&cores), cores


def openmp():
    """Version (a date, yyyymm) and path of the OpenMP runtime in this process."""
    return {"version": OPENMP_VERSION, "path": openmp_path().decode()}


def _was_forked():
    """Whether this process is a forked child that has not started another program since. Linux tells, others do not."""
    try:
        with open("/proc/self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[6]) & 0x40 != 0      # PF_FORKNOEXEC of linux/sched.h
    except (OSError, ValueError, IndexError):
        return False


# A parent that had not imported this package could not dismiss a team before the fork. Where another library shares the
# runtime with us, the thread that lives on in the child may have a team of dead threads, and would wait for it forever.
inherited = not survives_forks() and openmp_was_here() and _was_forked()


def must_be_serial():
    """Whether the calling thread may not start others."""
    return inherited and on_main_thread()


if prepare_forks() != 0:
    raise MemoryError("fastsoftmax: no memory to prepare for forks")
