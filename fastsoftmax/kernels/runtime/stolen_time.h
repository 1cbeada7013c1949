/* The time that other programs have had of the cores that the calling thread may use: see contention.h. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__linux__)
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
/* Nanoseconds since boot that other processes, and the host of a virtual machine (steal), have had of the cores that this
   thread may use; *cores: the number of these. -1 where the system does not tell. Reads the lines of /proc/stat, in
   ticks: cpu0 user nice system idle iowait irq softirq steal ... */
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
            if (column != 3 && column != 4)         /* idle, iowait */
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
