/* The threads that run a loop over tasks together with its caller: teams of workers.

   A caller takes a free team, wakes its workers, and computes with them. Tasks are handed out one by one. When none is
   left, the caller waits for the workers that are in a task, and for no other: one that has not woken by then finds
   nothing to do. So a worker that gets no core costs its wake-up, and no time slice.

   Other programs and libraries want the same cores (docs/threads.md has the measurements):
   - A worker that has nothing to do spins for SPIN_NS, then sleeps. While it spins, others wait for its core.
   - Workers stay off the core of their caller. OpenBLAS's threads yield on their cores for milliseconds after a matrix
     product. The scheduler takes such a core for busy, and would put a worker that wakes on the core of its caller. On the
     other core it runs at once, since the thread there yields. The affinity of a worker is that of the caller without the
     core that the caller is on; it is set when a worker is woken and one of the two has changed.
   - A worker may lose its core to another program in the middle of a task, for one or several time slices. Its CPU time
     stands still then. A caller that waits notices, moves the worker to its own core, and sleeps.

   A forked child has none of the workers. It forgets them, and starts its own. */
#pragma once
#include "thread_pool.h"

#if defined(__linux__) && defined(__GNUC__) && __SIZEOF_POINTER__ == 8
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    TEAMS = 64,                         /* callers that have workers at the same time */
    WORKERS = 511,                      /* of a team, at most */
    BITS = 8 * sizeof(long), WORDS = 4096 / BITS,           /* of an affinity */
    STACK = 1 << 20                     /* bytes; kernels have their buffers elsewhere */
};
#define SPIN_NS 30000                   /* the time that a worker spins before it sleeps */
#define PATIENCE_NS 50000               /* the time that a caller waits before it looks whether the workers have cores */
#define CHECK_NS 20000                  /* for so long */

#define LOAD(word) __atomic_load_n(&(word), __ATOMIC_SEQ_CST)
#define STORE(word, value) __atomic_store_n(&(word), (value), __ATOMIC_SEQ_CST)
#define ADD(word, value) __atomic_add_fetch(&(word), (value), __ATOMIC_SEQ_CST)

typedef struct { unsigned long word[WORDS]; } Affinity;

enum { AWAKE, ASLEEP, WOKEN };

typedef struct Team Team;
typedef struct {                        /* lines of its own */
    _Alignas(128) uint32_t calls;       /* how often it was called; it sleeps on this word */
    uint32_t state;                     /* AWAKE, ASLEEP; WOKEN: it is about to be awake */
    uint32_t inside;                    /* whether it looks at the loop */
    int number;                         /* from 1 */
    pthread_t thread;
    clockid_t clock;                    /* of its CPU time */
    int64_t time;                       /* by that clock, when its caller looked last */
    Team *team;
} Worker;

/* The tasks of a thread's share that are left, counted from the loop's first: it takes them from the front, others from the
   back. */
typedef struct { _Alignas(128) uint64_t first_and_end; } Share;

struct Team {
    _Alignas(128) uint32_t taken;       /* by a caller */
    int started;                        /* workers */
    Worker *workers;
    Share *shares;                      /* (WORKERS + 1), that of the caller first */
    int cpu;                            /* of the caller that placed the workers last, and its affinity */
    Affinity affinity;
    /* the loop, which does not change while a worker is inside */
    LoopBody body;
    void *loop;
    ptrdiff_t start, stop;
    int threads, in_shares;
    _Alignas(128) uint32_t open;        /* whether workers may join the loop */
    _Alignas(128) uint32_t inside;      /* the workers that look at the loop; its caller sleeps on this word */
    uint32_t caller_sleeps;
    _Alignas(128) ptrdiff_t next;       /* task to hand out */
};

static Team teams[TEAMS];
static int running;                     /* threads of all loops, and of callers who are about to begin one */
static int cores;                       /* of the last caller's affinity */

static inline void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static inline int64_t pool_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

/* Whether *word changed from `value`, or became it, within so many nanoseconds. */
static inline int spin_until(const uint32_t *word, uint32_t value, int equal, int64_t ns) {
    int64_t end = pool_clock() + ns;
    do {
        for (int i = 0; i < 16; i++) {
            if ((LOAD(*word) == value) == equal)
                return 1;
            spin_pause();
        }
    } while (pool_clock() < end);
    return 0;
}

static inline void futex_wait(uint32_t *word, uint32_t value, const struct timespec *longest) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, longest, NULL, 0);
}

static inline void futex_wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }

static inline uint64_t share_of(ptrdiff_t first, ptrdiff_t end) { return (uint64_t)end << 32 | (uint32_t)first; }

/* A task of the share; -1 if none is left. */
static inline ptrdiff_t take_task(Share *share, int from_back) {
    uint64_t left = LOAD(share->first_and_end);
    ptrdiff_t first, end;
    do {
        first = (uint32_t)left;
        end = (ptrdiff_t)(left >> 32);
        if (first >= end)
            return -1;
    } while (!__atomic_compare_exchange_n(&share->first_and_end, &left,
                                          from_back ? share_of(first, end - 1) : share_of(first + 1, end), 0,
                                          __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return from_back ? end - 1 : first;
}

static void run_team_tasks(Team *team, int thread) {
    ptrdiff_t task;
    if (!team->in_shares) {
        while ((task = ADD(team->next, 1) - 1) < team->stop)
            team->body(team->loop, task, thread);
        return;
    }
    for (int i = 0; i < team->threads; i++) {
        Share *share = &team->shares[(thread + i) % team->threads];
        while ((task = take_task(share, i > 0)) >= 0)
            team->body(team->loop, team->start + task, thread);
    }
}

/* A worker is inside before it asks whether the loop is open, and a caller closes the loop before it asks who is inside:
   one of the two sees the other. */
static void join_loop(Worker *worker) {
    Team *team = worker->team;
    STORE(worker->inside, 1);
    ADD(team->inside, 1);
    if (LOAD(team->open) && worker->number < team->threads)
        run_team_tasks(team, worker->number);
    STORE(worker->inside, 0);
    if (ADD(team->inside, -1) == 0 && LOAD(team->caller_sleeps))
        futex_wake(&team->inside);
}

static void *work(void *worker_) {
    Worker *worker = worker_;
    uint32_t seen = 0;
    for (;;) {
        while (!spin_until(&worker->calls, seen, 0, SPIN_NS)) {
            STORE(worker->state, ASLEEP);
            if (LOAD(worker->calls) == seen)
                futex_wait(&worker->calls, seen, NULL);
            STORE(worker->state, AWAKE);
        }
        seen = LOAD(worker->calls);
        join_loop(worker);
    }
    return NULL;
}

static inline void call_worker(Worker *worker) {
    uint32_t asleep = ASLEEP;
    ADD(worker->calls, 1);
    if (LOAD(worker->state) == ASLEEP
            && __atomic_compare_exchange_n(&worker->state, &asleep, WOKEN, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        futex_wake(&worker->calls);
}

/* Starts workers until there are so many, or the system gives no more. They take no signals: these are for the program's
   own threads. Returns their number. */
static int start_workers(Team *team, int wanted) {
    pthread_attr_t attributes;
    sigset_t all, before;
    if (wanted <= team->started)
        return wanted;
    if (team->workers == NULL) {
        if ((team->workers = aligned_alloc(128, WORKERS * sizeof(Worker) + (WORKERS + 1) * sizeof(Share))) == NULL)
            return 0;
        team->shares = (Share *)(team->workers + WORKERS);
    }
    if (pthread_attr_init(&attributes) != 0)
        return team->started;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (team->started < wanted) {
        Worker *worker = &team->workers[team->started];
        memset(worker, 0, sizeof *worker);
        worker->number = team->started + 1;
        worker->team = team;
        if (pthread_create(&worker->thread, &attributes, work, worker) != 0)
            break;
        pthread_getcpuclockid(worker->thread, &worker->clock);
        team->started++;
        team->cpu = -1;                 /* it has no place yet */
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return team->started < wanted ? team->started : wanted;
}

static void place_worker(const Worker *worker, const Affinity *affinity) {
    pthread_setaffinity_np(worker->thread, sizeof *affinity, (const cpu_set_t *)affinity);
}

/* The affinity of this thread, and the number of its CPUs; 0 for more CPUs than an Affinity holds. */
static int own_affinity(Affinity *affinity) {
    int cpus = 0;
    memset(affinity, 0, sizeof *affinity);
    if (syscall(SYS_sched_getaffinity, 0, sizeof *affinity, affinity) < 0)
        return 0;
    for (int i = 0; i < WORDS; i++)
        for (unsigned long word = affinity->word[i]; word != 0; word &= word - 1)
            cpus++;
    return cpus;
}

/* Keeps the workers off the caller's core, unless it has no other. */
static void place_workers(Team *team) {
    Affinity callers, others;
    int cpus = own_affinity(&callers), cpu = sched_getcpu();
    if (cpus == 0 || cpu < 0 || (cpu == team->cpu && memcmp(&callers, &team->affinity, sizeof callers) == 0))
        return;
    STORE(cores, cpus);
    team->cpu = cpu;
    team->affinity = others = callers;
    others.word[cpu / BITS] &= ~(1UL << cpu % BITS);
    for (int i = 0; i < team->started; i++)
        place_worker(&team->workers[i], cpus > 1 ? &others : &callers);
}

/* The CPU time of a worker, which stands still while another program has its core. */
static int64_t worker_time(const Worker *worker) {
    struct timespec t;
    return clock_gettime(worker->clock, &t) == 0 ? t.tv_sec * (int64_t)1000000000 + t.tv_nsec : -1;
}

/* Brings the workers that have no core to that of the caller. Returns whether there are any. */
static int rescue_workers(Team *team) {
    Affinity here;
    int cpu = sched_getcpu(), moved = 0;
    memset(&here, 0, sizeof here);
    if (cpu < 0 || cpu >= (int)(8 * sizeof here))
        return 0;
    here.word[cpu / BITS] = 1UL << cpu % BITS;
    for (Worker *worker = team->workers; worker < team->workers + team->started; worker++)
        if (LOAD(worker->inside) && worker_time(worker) == worker->time) {
            place_worker(worker, &here);
            moved = 1;
            team->cpu = -1;             /* they are placed anew for the next loop */
        }
    return moved;
}

/* Waits for the workers that are inside. Where another program has the core of one, the caller leaves it its own. */
static void wait_for_workers(Team *team) {
    static const struct timespec a_while = {0, PATIENCE_NS};
    uint32_t inside;
    while (!spin_until(&team->inside, 0, 1, PATIENCE_NS)) {
        for (int i = 0; i < team->started; i++)
            team->workers[i].time = worker_time(&team->workers[i]);
        if (spin_until(&team->inside, 0, 1, CHECK_NS))
            return;
        if (!rescue_workers(team))
            continue;
        STORE(team->caller_sleeps, 1);
        if ((inside = LOAD(team->inside)) != 0)
            futex_wait(&team->inside, inside, &a_while);
        STORE(team->caller_sleeps, 0);
    }
}

static Team *take_team(void) {
    for (int i = 0; i < TEAMS; i++) {
        uint32_t free_ = 0;
        if (!LOAD(teams[i].taken)
                && __atomic_compare_exchange_n(&teams[i].taken, &free_, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return &teams[i];
    }
    return NULL;
}

static void run_loop(Team *team, int threads, LoopBody body, void *loop, ptrdiff_t start, ptrdiff_t stop,
                     int in_shares) {
    ptrdiff_t tasks = stop - start;
    team->body = body;
    team->loop = loop;
    team->start = team->next = start;
    team->stop = stop;
    team->threads = threads;
    team->in_shares = in_shares && tasks <= INT32_MAX;
    for (int i = 0; i < threads && team->in_shares; i++)
        STORE(team->shares[i].first_and_end, share_of(tasks * i / threads, tasks * (i + 1) / threads));
    for (int i = 0; i < threads - 1; i++)
        if (LOAD(team->workers[i].state) == ASLEEP || team->cpu < 0) {
            place_workers(team);
            break;
        }
    STORE(team->open, 1);
    for (int i = 0; i < threads - 1; i++)
        call_worker(&team->workers[i]);
    run_team_tasks(team, 0);
    STORE(team->open, 0);
    wait_for_workers(team);
}

/* As many threads as a caller may have besides those that run already, of those that it wants: no more run together
   than there are cores, or than it wants. */
static int reserve_threads(int wanted) {
    int most = LOAD(cores) > wanted ? LOAD(cores) : wanted, excess = ADD(running, wanted) - most;
    int threads = excess <= 0 ? wanted : excess < wanted - 1 ? wanted - excess : 1;
    ADD(running, threads - wanted);
    return threads;
}

static int pool_run(int wanted, LoopBody body, void *loop, ptrdiff_t start, ptrdiff_t stop, int in_shares) {
    int threads, started = 0;
    Team *team;
    if (wanted > WORKERS + 1)
        wanted = WORKERS + 1;
    if (wanted > stop - start)
        wanted = (int)(stop - start);
    if (wanted < 2)
        return 0;
    threads = reserve_threads(wanted);
    if (threads > 1 && (team = take_team()) != NULL) {
        started = start_workers(team, threads - 1);
        if (started > 0)
            run_loop(team, started + 1, body, loop, start, stop, in_shares);
        STORE(team->taken, 0);
    }
    ADD(running, -threads);
    return started > 0;
}

static void forget_workers(void) {
    for (int i = 0; i < TEAMS; i++) {
        Team *team = &teams[i];
        team->taken = team->open = team->inside = team->caller_sleeps = 0;
        team->started = 0;
    }
    running = 0;
}

/* Returns an error number. */
static int prepare_pool(ThreadPool *pool) {
    Affinity affinity;
    cores = own_affinity(&affinity);
    pool->run = pool_run;
    return pthread_atfork(NULL, NULL, forget_workers);
}
#define HAS_THREAD_POOL 1
#else
static int prepare_pool(ThreadPool *pool) {
    pool->run = 0;
    return 0;
}
#define HAS_THREAD_POOL 0
#endif
