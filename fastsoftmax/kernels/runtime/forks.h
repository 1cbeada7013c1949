/* OpenMP and forks: the runtime in this process, and what keeps a forked child from waiting for threads that it lost. */
#pragma once
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
/* A forked child has none of libgomp's threads, but libgomp's record of them, and a parallel region there would wait for
   them forever. So the idle team of the forking thread is dismissed before every fork; parent and child each start a new
   one when they next need it. In a process where `inherited` is true, the fork came before this module: the main
   thread's team, if it has one, was not dismissed, and cannot be any more. */
static int inherited = 0;
/* The runtime of LLVM and Intel, which may take libgomp's place, restores its threads by fork handlers of its own. They
   hold its locks during a fork: omp_pause_resource_all would wait for these forever. */
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
static int note_order(struct dl_phdr_info *object, size_t size, void *order_) {
    LoadOrder *order = order_;
    (void)size;
    if (holds(object, (void *)&omp_get_max_threads))
        order->runtime = order->count;
    if (holds(object, &inherited))
        order->own = order->count;
    order->count++;
    return 0;
}
/* Whether another library had loaded the runtime before this module did, the first of ours that needs it. */
static int openmp_was_loaded(void) {
    LoadOrder order = {0, 0, 0};
    dl_iterate_phdr(note_order, &order);
    return order.runtime < order.own;
}
#else
static int on_main_thread(void) { return 0; }
static int openmp_was_loaded(void) { return 0; }
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
static int openmp_was_loaded(void) { return 0; }
static const char *openmp_path(void) { return ""; }
static int prepare_forks(void) { return 0; }
#endif

#if defined(_OPENMP)
#define OPENMP_VERSION _OPENMP
#else
#define OPENMP_VERSION 0
#endif
