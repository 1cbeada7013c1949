/* The interface of the thread pool, for kernels; workers.h has the threads. A process has one, in _thread_pool.pyx. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Task `task` of a loop, run by thread `thread` of its team; the caller is thread 0. */
typedef void (*LoopBody)(void *loop, ptrdiff_t task, int thread);

typedef struct {
    /* Runs the tasks start .. stop - 1 on up to `threads` threads, and returns 1; or 0, having done nothing, where no
       other thread is to be had. in_shares: each thread has a share of tasks that follow one another, the same in every
       loop over so many tasks, and those of others only when it is done with its own. Otherwise tasks are begun in
       their order. */
    int (*run)(int threads, LoopBody body, void *loop, ptrdiff_t start, ptrdiff_t stop, int in_shares);
    int enabled;                        /* otherwise loops are OpenMP's */
} ThreadPool;
