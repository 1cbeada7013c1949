/* The threads of this package: a team of workers that take tasks from the calls under way.
 *
 * Why not OpenMP's parallel regions: at their end the caller waits for every thread of the team, whether it had a task or
 * not. Where another program has a core, the thread there does not run for one or more of the scheduler's slices, 4 ms
 * and more, and a call of 40 us takes as long. Nor do libgomp's threads survive a fork, and each calling thread gets a
 * team of its own.
 *
 * Here tasks are claimed one by one. The caller works too, and at the end waits only for workers that are inside a task; one
 * that was called but has not yet run finds nothing left, and nobody waited for it. All calling threads share one team.
 *
 * An idle worker looks for work for a while before it sleeps, so that the next call, or the next phase of this one, need
 * not wake it; it offers its core to others meanwhile. A caller that has to wait sleeps soon, too: an idle core is where
 * the scheduler moves the worker it waits for.
 */
#ifndef FASTSOFTMAX_TEAM_H
#define FASTSOFTMAX_TEAM_H

#include <stddef.h>

typedef void (*team_task)(const void *work, ptrdiff_t task, int thread);

#if defined __GNUC__ && !defined _WIN32
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>

enum {
    RANGES = 32,            /* contiguous parts of the tasks, one for each thread to start with */
    IDLE = 100000,          /* ns that a worker looks for work before it sleeps */
    LOOK = 5000,            /* of these, ns before it offers its core to others at every look */
    PATIENCE = 10000,       /* ns, and two tasks' time, that a caller looks for the last tasks' end before it sleeps */
};

/* One call. It stands on the caller's stack; workers know of it from when it is linked until they leave it. */
typedef struct call {
    struct call *next;
    team_task run;
    const void *work;
    int threads, ranges;    /* that may take part */
    int joined;             /* that have, the caller included: the next one's number */
    int inside;             /* workers in it now; changed under the lock */
    int awaited;            /* the caller sleeps until nobody is inside */
    pthread_cond_t done;
    struct { ptrdiff_t next, stop; char own_line[64 - 2 * sizeof(ptrdiff_t)]; } range[RANGES];
} call;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    call *calls;            /* that are under way */
    unsigned count;         /* of all calls ever, for workers to see a new one without the lock */
    int workers;            /* each is in a call, looking for one, or asleep: */
    int looking;            /* or told to, and not yet awake */
    int asleep;
    int called;             /* how many were told to look and are not yet awake */
} team = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline long long team_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static inline void team_pause(void)
{
#if defined __x86_64__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

/* Takes tasks until none is left; returns how many. A thread begins with its own range, then helps with the others. */
static ptrdiff_t team_take(call *c, int thread)
{
    ptrdiff_t taken = 0, t;
    for (int k = 0; k < c->ranges; k++) {
        int r = (thread + k) % c->ranges;
        while (__atomic_load_n(&c->range[r].next, __ATOMIC_RELAXED) < c->range[r].stop
               && (t = __atomic_fetch_add(&c->range[r].next, 1, __ATOMIC_RELAXED)) < c->range[r].stop) {
            c->run(c->work, t, thread);
            taken++;
        }
    }
    return taken;
}

static int team_has_tasks(const call *c)
{
    for (int r = 0; r < c->ranges; r++)
        if (__atomic_load_n(&c->range[r].next, __ATOMIC_RELAXED) < c->range[r].stop)
            return 1;
    return 0;
}

static void *team_work(void *nothing)
{
    pthread_mutex_lock(&team.lock);
    for (;;) {
        call *c = team.calls;
        while (c && (c->joined == c->threads || !team_has_tasks(c)))
            c = c->next;
        if (c) {
            int thread = c->joined++;
            c->inside++;
            team.looking--;
            pthread_mutex_unlock(&team.lock);
            team_take(c, thread);
            pthread_mutex_lock(&team.lock);
            team.looking++;
            if (__atomic_sub_fetch(&c->inside, 1, __ATOMIC_RELEASE) == 0 && c->awaited)
                pthread_cond_signal(&c->done);
            continue;
        }
        unsigned seen = team.count;
        pthread_mutex_unlock(&team.lock);
        long long start = team_clock(), now = start;
        while (__atomic_load_n(&team.count, __ATOMIC_RELAXED) == seen && now - start < IDLE) {
            if (now - start < LOOK)
                team_pause();
            else
                sched_yield();
            now = team_clock();
        }
        pthread_mutex_lock(&team.lock);
        if (team.count == seen) {
            team.looking--;
            team.asleep++;
            while (!team.called)
                pthread_cond_wait(&team.wake, &team.lock);
            team.called--;          /* looking, as the caller has written down */
        }
    }
    return nothing;
}

/* With the lock: starts workers until there are so many, if the system lets it. */
static void team_grow(int workers)
{
    sigset_t all, before;
    pthread_attr_t detached;
    pthread_t thread;
    if (team.workers >= workers || pthread_attr_init(&detached) != 0)
        return;
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);               /* signals are for the threads that Python knows */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (team.workers < workers && pthread_create(&thread, &detached, team_work, NULL) == 0) {
        team.workers++;
        team.looking++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
}

/* run(work, task, thread) for each task from start to stop; threads are numbered from 0, the caller, to threads - 1.
 * In order: tasks are begun in their order, for those that should be the longest first. Else each thread begins with a part
 * of its own, so that neighbours stay in one core's cache, from call to call. */
static void team_share(team_task run, const void *work, ptrdiff_t start, ptrdiff_t stop, int threads, int in_order)
{
    ptrdiff_t tasks = stop - start;
    if (threads > tasks)
        threads = (int)tasks;
    if (threads <= 1) {
        for (ptrdiff_t t = start; t < stop; t++)
            run(work, t, 0);
        return;
    }
    call c = {.run = run, .work = work, .threads = threads, .joined = 1, .done = PTHREAD_COND_INITIALIZER};
    c.ranges = in_order ? 1 : threads < RANGES ? threads : RANGES;
    for (int r = 0; r < c.ranges; r++) {
        c.range[r].next = start + tasks / c.ranges * r + (tasks % c.ranges < r ? tasks % c.ranges : r);
        c.range[r].stop = c.range[r].next + tasks / c.ranges + (r < tasks % c.ranges);
    }

    pthread_mutex_lock(&team.lock);
    team_grow(threads - 1);
    c.next = team.calls;
    team.calls = &c;
    __atomic_store_n(&team.count, team.count + 1, __ATOMIC_RELAXED);
    int wake = threads - 1 - team.looking;
    wake = wake < 0 ? 0 : wake < team.asleep ? wake : team.asleep;
    team.asleep -= wake;
    team.looking += wake;
    team.called += wake;
    pthread_mutex_unlock(&team.lock);
    while (wake-- > 0)
        pthread_cond_signal(&team.wake);

    long long began = team_clock();
    ptrdiff_t taken = team_take(&c, 0);

    pthread_mutex_lock(&team.lock);
    call **link = &team.calls;
    while (*link != &c)
        link = &(*link)->next;
    *link = c.next;
    if (c.inside) {
        pthread_mutex_unlock(&team.lock);
        long long now = team_clock(), until = now + PATIENCE + (taken ? 2 * (now - began) / taken : 0);
        while (__atomic_load_n(&c.inside, __ATOMIC_ACQUIRE) && now < until) {
            team_pause();
            now = team_clock();
        }
        pthread_mutex_lock(&team.lock);
        c.awaited = 1;
        while (c.inside)
            pthread_cond_wait(&c.done, &team.lock);
    }
    pthread_mutex_unlock(&team.lock);
    pthread_cond_destroy(&c.done);
}

static int team_size(void)
{
    pthread_mutex_lock(&team.lock);
    int workers = team.workers;
    pthread_mutex_unlock(&team.lock);
    return workers;
}

/* A forked child has the forking thread alone, and starts with a new team. */
static void team_before_fork(void) { pthread_mutex_lock(&team.lock); }
static void team_after_fork(void) { pthread_mutex_unlock(&team.lock); }
static void team_in_child(void)
{
    const pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
    memset(&team, 0, sizeof team);
    team.lock = lock;
    team.wake = wake;
}
static int team_prepare(void) { return pthread_atfork(team_before_fork, team_after_fork, team_in_child); }

#else           /* no threads: the caller does it all */
static void team_share(team_task run, const void *work, ptrdiff_t start, ptrdiff_t stop, int threads, int in_order)
{
    for (ptrdiff_t t = start; t < stop; t++)
        run(work, t, 0);
}
static int team_size(void) { return 0; }
static int team_prepare(void) { return 0; }
#endif
#endif
