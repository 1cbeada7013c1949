/* When a second thread costs more than it gains.

   At the end of a parallel region the caller waits for every thread. While another program has a worker's core, that
   worker may not run for one or several slices of the scheduler, 4 to 40 ms: a call of 40 us on two threads can then take
   a hundred times as long as on one. Nothing tells beforehand whether a core is free, so every region is measured. The
   caller's own tasks tell how long one thread would have needed for all of them. The time that the region took beyond
   that is its loss. After a loss, callers compute serially for FIRST_BACKOFF times the loss, which bounds the time lost
   to a tenth, whatever the scheduler does. The back-off counts the time of tasks, not that of the clock: otherwise it
   would have expired before each call of a program that calls only now and then. If loss follows loss, the factor doubles up to LARGEST_BACKOFF, and the time grows
   up to LONGEST_BACKOFF; a call that gains resets the factor. Earlier gains are set against a loss, up to MOST_CREDIT:
   one hiccup among thousands of calls is no reason to stop. The regions of a call count together, since the maximum of a
   long row is too short to gain, and its exponentials are not. Losses of less than a part in ALLOWANCE_SHARE of the time
   are ignored, up to ALLOWANCE: a worker that sleeps has to be woken, which costs more than a small call can gain, and
   pays in the calls that follow.

   Before the next attempt the system is asked for the time that other programs had of our cores since the loss, where it
   tells (stolen_time.h). If they had more than half a core of those that so many threads need, callers stay serial: an
   attempt would lose as much again.

   A process has one Contention, in _openmp.pyx, since all kernels share the cores. Callers read and write it without a
   lock: words that are old or overwritten cost a little time, and results do not depend on them. All arithmetic is on
   integers: it runs in the caller's floating-point environment, where an addition may trap or set a flag. */
#pragma once
#include <stdint.h>
#include <time.h>

typedef struct {
    int64_t serial_ns;                  /* ns for which callers still compute serially; below 0: none */
    int64_t factor;                     /* by which the next loss is multiplied */
    int64_t credit;                     /* ns gained lately, for losses to come */
    int64_t recorded;                   /* ns, when the last call was recorded */
    int64_t regions, losses;            /* counted for tests */
    int64_t since;                      /* ns, when callers began to compute serially; 0: they may try */
    int64_t backoff_ns;                 /* ns for which they should, counted from then */
    int64_t stolen_ns;                  /* ns of our cores that other programs had had until then */
    /* The ns that other programs have had of our cores until now, and the number of these; NULL, or a result below 0,
       where the system does not tell. */
    int64_t (*stolen_now)(int64_t *cores);
} Contention;

typedef struct {                        /* a call's parallel regions, one after the other */
    int threads, parallel;              /* parallel: in a region; else the caller runs the tasks */
    int64_t start;                      /* ns */
    int64_t first, last;                /* when the caller began its first task, and ended its last */
    int64_t own, all;                   /* the cost of the caller's tasks, and of all tasks */
    int64_t regions, loss;              /* their number, and the ns that they lost together */
} ParallelRegion;

#define FIRST_BACKOFF 10
#define LARGEST_BACKOFF 160
#define LONGEST_BACKOFF 1000000000      /* ns */
#define LONGEST_OF_POOL 10000000        /* ns; its callers wait for no worker that has no core, and so lose little */
#define MOST_CREDIT 4000000             /* ns */
#define ALLOWANCE 50000                 /* ns */
#define ALLOWANCE_SHARE 64
#define SHORTEST_ACCOUNT 50000000       /* ns from which the system's account, in ticks of 10 ms, is worth reading */

#if defined(__GNUC__)
#define ATOMIC_READ(word) __atomic_load_n(&(word), __ATOMIC_RELAXED)
#define ATOMIC_WRITE(word, value) __atomic_store_n(&(word), (value), __ATOMIC_RELAXED)
#define ATOMIC_ADD(word, value) ((void)__atomic_fetch_add(&(word), (value), __ATOMIC_RELAXED))
#define ATOMIC_TAKE(word) __atomic_exchange_n(&(word), 0, __ATOMIC_RELAXED)
#else
#define ATOMIC_READ(word) (word)
#define ATOMIC_WRITE(word, value) ((void)((word) = (value)))
#define ATOMIC_ADD(word, value) ((void)((word) += (value)))
#define ATOMIC_TAKE(word) atomic_take(&(word))
static inline int64_t atomic_take(int64_t *word) { int64_t was = *word; *word = 0; return was; }
#endif

static inline int64_t now_ns(void) {
#if defined(CLOCK_MONOTONIC)
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
#else
    return 0;                           /* no clock: nothing is ever lost */
#endif
}

/* By how much a region that ends now took longer than one thread would have; below 0, its gain. */
static inline int64_t region_loss(const ParallelRegion *region, int64_t now) {
    int64_t own = region->own, all = ATOMIC_READ(region->all);
    while (all >> 20) {                 /* so that the product below does not overflow */
        all >>= 1;
        own >>= 1;
    }
    if (own == 0)                       /* the other threads did it all: nothing to compare with */
        return -1;
    return now - region->start - (region->last - region->first) * all / own;
}

static inline void begin_backoff(Contention *contention, int64_t serial_ns, int64_t now, int64_t stolen_ns) {
    ATOMIC_WRITE(contention->stolen_ns, stolen_ns);
    ATOMIC_WRITE(contention->since, now);
    ATOMIC_WRITE(contention->backoff_ns, serial_ns);
    ATOMIC_WRITE(contention->serial_ns, serial_ns);
}

/* Decides, in the first call after the back-off has expired, whether to extend it: if other programs used at least half a
   core that so many threads need. Ignored if the program did not call us for most of the interval. */
static inline int extend_backoff(Contention *contention, int64_t threads, int64_t now) {
    int64_t since = ATOMIC_TAKE(contention->since), elapsed = now - since, cores = 0, stolen_ns, left, wanted;
    if (since == 0 || elapsed < SHORTEST_ACCOUNT || elapsed > 2 * ATOMIC_READ(contention->backoff_ns)
            || contention->stolen_now == 0)
        return 0;
    stolen_ns = contention->stolen_now(&cores);
    left = cores * elapsed - (stolen_ns - ATOMIC_READ(contention->stolen_ns));
    wanted = threads < cores ? threads : cores;
    if (stolen_ns < 0 || ATOMIC_READ(contention->stolen_ns) < 0 || 2 * left >= (2 * wanted - 1) * elapsed)
        return 0;
    begin_backoff(contention, elapsed < LONGEST_BACKOFF ? elapsed : LONGEST_BACKOFF, now, stolen_ns);
    return 1;
}

/* The credit of a call that is recorded now: what earlier calls gained, or the allowance of the time since the last. */
static inline int64_t credit_now(Contention *contention, int64_t now) {
    int64_t credit = ATOMIC_READ(contention->credit), elapsed = now - ATOMIC_READ(contention->recorded);
    ATOMIC_WRITE(contention->recorded, now);
    if (credit >= ALLOWANCE || elapsed <= 0)
        return credit;
    credit += elapsed < ALLOWANCE * ALLOWANCE_SHARE ? elapsed / ALLOWANCE_SHARE : ALLOWANCE;
    return credit < ALLOWANCE ? credit : ALLOWANCE;
}

/* Records the time that a call, or a slice of it, lost in all its regions. It ends now. A back-off grows up to `longest`
   nanoseconds. */
static inline void record_loss(Contention *contention, int64_t loss, int64_t now, int64_t longest) {
    int64_t factor = ATOMIC_READ(contention->factor), credit = credit_now(contention, now) - loss, serial_ns, cores;
    ATOMIC_WRITE(contention->credit, credit < 0 ? 0 : credit < MOST_CREDIT ? credit : MOST_CREDIT);
    if (loss <= 0)
        ATOMIC_WRITE(contention->factor, FIRST_BACKOFF);
    if (credit >= 0)
        return;
    loss = -credit;
    ATOMIC_ADD(contention->losses, 1);
    serial_ns = factor * loss < longest ? factor * loss : FIRST_BACKOFF * loss > longest ? FIRST_BACKOFF * loss : longest;
    if (loss > LONGEST_BACKOFF / FIRST_BACKOFF)
        serial_ns = LONGEST_BACKOFF;
    /* of callers that lose at the same time, one doubles the factor */
    if (ATOMIC_READ(contention->serial_ns) <= 0 && factor < LARGEST_BACKOFF)
        ATOMIC_WRITE(contention->factor, 2 * factor);
    if (serial_ns <= ATOMIC_READ(contention->serial_ns))
        return;
    /* what extend_backoff would not use is not read: it takes as long as a small call */
    begin_backoff(contention, serial_ns, now,
                  contention->stolen_now && 2 * serial_ns >= SHORTEST_ACCOUNT ? contention->stolen_now(&cores) : -1);
}
