/* Sums that carry more digits than a real: vwide.
 *
 * For float, a vwide is as many doubles, in two registers; for double, a pair hi + lo without overlap (Dekker's double
 * length). Each lane is a number of its own; wide_total adds the lanes in a fixed order, halving their
 * number at each step, and leaves the total in every lane.
 */
#if defined ISA_generic
typedef double vdouble;
typedef int64_t vlong;
WORD vdouble double_bits(vlong a) { vdouble b; memcpy(&b, &a, sizeof b); return b; }
WORD vlong long_bits(vdouble a) { vlong b; memcpy(&b, &a, sizeof b); return b; }
WORD vdouble choose_double(int m, vdouble a, vdouble b) { return m ? a : b; }
#define exchange_lanes(a, distance) (a)
#else
#if VECTOR_BYTES == 16
#define DOUBLE_NUMBERS {0, 1}
#elif VECTOR_BYTES == 32
#define DOUBLE_NUMBERS {0, 1, 2, 3}
#else
#define DOUBLE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7}
#endif
typedef double vdouble __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t vlong __attribute__((vector_size(VECTOR_BYTES)));
WORD vdouble double_bits(vlong a) { return (vdouble)a; }
WORD vlong long_bits(vdouble a) { return (vlong)a; }
WORD vdouble choose_double(vlong m, vdouble a, vdouble b) { return (vdouble)((m & (vlong)a) | (~m & (vlong)b)); }

/* Lane i gets lane i ^ distance. */
WORD vdouble exchange_lanes(vdouble a, const int distance)
{
#if defined __clang__
    vdouble b;
    for (int i = 0; i < VECTOR_BYTES / 8; i++)
        b[i] = a[i ^ distance];
    return b;
#else
    const vlong lane = DOUBLE_NUMBERS;
    return __builtin_shuffle(a, lane ^ distance);
#endif
}
#endif

#include "log.h"

#if REAL_BITS == 32
#if defined ISA_generic
enum { PARTS = 1 };
typedef struct { vdouble part[PARTS]; } vwide;
WORD vwide wide_from(vreal a) { return (vwide){{a}}; }
WORD vreal wide_to(vwide a) { return (vreal)a.part[0]; }
#else
enum { PARTS = 2 };
typedef struct { vdouble part[PARTS]; } vwide;
WORD vwide wide_from(vreal a) { return (vwide){{widen_low(a), widen_high(a)}}; }
WORD vreal wide_to(vwide a) { return narrow(a.part[0], a.part[1]); }
#endif
#define EACH_PART for (int i = 0; i < PARTS; i++)

WORD vwide wide_zero(void) { return wide_from(fill(0)); }
WORD vwide wide_add(vwide a, vwide b) { EACH_PART a.part[i] = a.part[i] + b.part[i]; return a; }
WORD vwide wide_subtract(vwide a, vwide b) { EACH_PART a.part[i] = a.part[i] - b.part[i]; return a; }
WORD vwide wide_of(vreal a, vreal b) { return wide_add(wide_from(a), wide_from(b)); }
WORD vwide wide_divide(vwide a, vwide b) { EACH_PART a.part[i] = a.part[i] / b.part[i]; return a; }
#if !defined ISA_generic
WORD vwide wide_exchange(vwide a, const int distance)
{
    if (distance & (LANES / 2))
        a = (vwide){{a.part[1], a.part[0]}};
    if (distance & (LANES / 2 - 1))
        EACH_PART a.part[i] = exchange_lanes(a.part[i], distance & (LANES / 2 - 1));
    return a;
}
WORD vwide wide_first(vwide a)
{
    vdouble lane0 = a.part[0][0] - (vdouble){0};
    return (vwide){{lane0, lane0}};
}
#endif
WORD vwide wide_log1p(vwide z)
{
    vdouble hi, lo;
    EACH_PART {
        log1p_pair(z.part[i], z.part[i] - z.part[i], &hi, &lo);
        z.part[i] = hi + lo;
    }
    return z;
}
/* a as the sum of two reals, the first as near to it as a real can be */
WORD void wide_split(vwide a, vreal *hi, vreal *lo)
{
    *hi = wide_to(a);
    *lo = wide_to(wide_subtract(a, wide_from(*hi)));
}
/* base + base_lo + a likewise; exact even where base and a nearly cancel or differ by many digits */
WORD void wide_split_sum(vreal base, vreal base_lo, vwide a, vreal *hi, vreal *lo)
{
    vwide rest = wide_add(wide_from(base_lo), a);
    *hi = wide_to(wide_add(wide_from(base), rest));
    *lo = wide_to(wide_add(wide_subtract(wide_from(base), wide_from(*hi)), rest));
}

#else
typedef struct { vreal hi, lo; } vwide;

WORD vwide wide_zero(void) { return (vwide){fill(0), fill(0)}; }
WORD vwide wide_of(vreal a, vreal b)
{
    vreal hi = a + b, bb = hi - a;
    return (vwide){hi, (a - (hi - bb)) + (b - bb)};
}
WORD vwide wide_add(vwide a, vwide b)
{
    vwide sum = wide_of(a.hi, b.hi);
    vreal lo = sum.lo + (a.lo + b.lo), hi = sum.hi + lo;
    return (vwide){hi, lo - (hi - sum.hi)};
}
#if !defined ISA_generic
WORD vwide wide_exchange(vwide a, const int distance)
{
    return (vwide){exchange_lanes(a.hi, distance), exchange_lanes(a.lo, distance)};
}
WORD vwide wide_first(vwide a) { return (vwide){fill(a.hi[0]), fill(a.lo[0])}; }
#endif
WORD vwide wide_subtract(vwide a, vwide b) { return wide_add(a, (vwide){-b.hi, -b.lo}); }
WORD vwide wide_divide(vwide a, vwide b)
{
    vreal q = a.hi / b.hi, p = q * b.hi;
    vreal left = (((a.hi - p) - product_error(q, b.hi, p)) + a.lo) - q * b.lo;
    return (vwide){q, left / b.hi};
}
WORD vwide wide_log1p(vwide z)
{
    vwide y;
    log1p_pair(z.hi, z.lo, &y.hi, &y.lo);
    return y;
}
WORD void wide_split(vwide a, vreal *hi, vreal *lo) { *hi = a.hi; *lo = a.lo; }
WORD void wide_split_sum(vreal base, vreal base_lo, vwide a, vreal *hi, vreal *lo)
{
    vwide sum = wide_of(base, a.hi);
    *hi = sum.hi;
    *lo = sum.lo + (a.lo + base_lo);
}
#endif

/* Partial sums are added up in this order, whatever a register's size: numbers 0, 4, 8, ... one after another,
 * likewise 1, 5, 9, ..., 2, 6, ... and 3, 7, ...; then these four, (0 + 2) + (1 + 3). */

/* Down the lanes: `count` <= WIDTH numbers a lane come one by one. */
typedef struct { vwide chain[4]; } vwide_sum;
WORD vwide_sum wide_sum_start(void)
{
    return (vwide_sum){{wide_zero(), wide_zero(), wide_zero(), wide_zero()}};
}
WORD vwide wide_sum_end(vwide_sum s)
{
    return wide_add(wide_add(s.chain[0], s.chain[2]), wide_add(s.chain[1], s.chain[3]));
}

/* Along the lanes: the WIDTH numbers of parts[COLS]; the total comes in every lane. */
WORD vwide wide_total(const vwide *parts)
{
#if defined ISA_generic
    return wide_add(wide_add(parts[0], parts[2]), wide_add(parts[1], parts[3]));
#else
    vwide sum = parts[0];
#if LANES == 2
    vwide odd = wide_add(parts[1], parts[3]);
    sum = wide_add(wide_add(sum, parts[2]), odd);
#elif LANES == 4
    for (int i = 1; i < COLS; i++)
        sum = wide_add(sum, parts[i]);
    sum = wide_add(sum, wide_exchange(sum, 2));
#else
    /* lanes 4 to 7, and 8 to 15, are brought to lanes 0 to 3; what happens in the others is not used */
    sum = wide_add(sum, wide_exchange(sum, 4));
    for (int from = 8; from < LANES; from += 4)
        sum = wide_add(sum, wide_exchange(parts[0], from));
    for (int i = 1; i < COLS; i++)
        for (int from = 0; from < LANES; from += 4)
            sum = wide_add(sum, from ? wide_exchange(parts[i], from) : parts[i]);
    sum = wide_add(sum, wide_exchange(sum, 2));
#endif
    sum = wide_add(sum, wide_exchange(sum, 1));
    return wide_first(sum);
#endif
}
