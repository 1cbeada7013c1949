/* Sums that carry more digits than a real: vwide.
 *
 * For float, a vwide is as many doubles; for double, a pair hi + lo without overlap (Dekker's double
 * length). Each lane is a number of its own; wide_total adds the lanes in a fixed order, halving their
 * number at each step, and leaves the total in every lane.
 */
#if defined ISA_generic
typedef double vdouble;
typedef int64_t vlong;
WORD vdouble double_bits(vlong a) { vdouble b; memcpy(&b, &a, sizeof b); return b; }
WORD vlong long_bits(vdouble a) { vlong b; memcpy(&b, &a, sizeof b); return b; }
WORD vdouble choose_double(int m, vdouble a, vdouble b) { return m ? a : b; }
#define TO_DOUBLE(a) ((double)(a))
#define TO_REAL(a) ((real)(a))
#else
typedef double vdouble __attribute__((vector_size(8 * LANES)));
typedef int64_t vlong __attribute__((vector_size(8 * LANES)));
WORD vdouble double_bits(vlong a) { return (vdouble)a; }
WORD vlong long_bits(vdouble a) { return (vlong)a; }
WORD vdouble choose_double(vlong m, vdouble a, vdouble b) { return (vdouble)((m & (vlong)a) | (~m & (vlong)b)); }
#define TO_DOUBLE(a) __builtin_convertvector(a, vdouble)
#define TO_REAL(a) __builtin_convertvector(a, vreal)
#endif

/* Lane i gets lane i ^ distance. */
#if defined ISA_generic
#define exchange_lanes(a, distance) (a)
#elif defined __clang__
WORD vdouble exchange_lanes(vdouble a, const int distance)
{
    vdouble b;
    for (int i = 0; i < LANES; i++)
        b[i] = a[i ^ distance];
    return b;
}
#else
WORD vdouble exchange_lanes(vdouble a, const int distance)
{
    const vlong lane = LANE_NUMBERS;
    return __builtin_shuffle(a, lane ^ distance);
}
#endif

#include "log.h"

#if REAL_BITS == 32
typedef vdouble vwide;

WORD vwide wide_zero(void) { return TO_DOUBLE(fill(0)); }
WORD vwide wide_of(vreal a, vreal b) { return TO_DOUBLE(a) + TO_DOUBLE(b); }
WORD vwide wide_add(vwide a, vwide b) { return a + b; }
WORD vwide wide_negative(vwide a) { return -a; }
WORD vwide wide_exchange(vwide a, const int distance) { return exchange_lanes(a, distance); }
WORD vwide wide_divide(vwide a, vwide b) { return a / b; }
WORD vwide wide_log1p(vwide z)
{
    vdouble hi, lo;
    log1p_pair(z, wide_zero(), &hi, &lo);
    return hi + lo;
}
/* a as the sum of two reals, the first as near to it as a real can be */
WORD void wide_split(vwide a, vreal *hi, vreal *lo)
{
    *hi = TO_REAL(a);
    *lo = TO_REAL(a - TO_DOUBLE(*hi));
}
/* base + base_lo + a likewise; exact even where base and a nearly cancel or differ by many digits */
WORD void wide_split_sum(vreal base, vreal base_lo, vwide a, vreal *hi, vreal *lo)
{
    vdouble rest = TO_DOUBLE(base_lo) + a;
    *hi = TO_REAL(TO_DOUBLE(base) + rest);
    *lo = TO_REAL((TO_DOUBLE(base) - TO_DOUBLE(*hi)) + rest);
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
WORD vwide wide_exchange(vwide a, const int distance)
{
    return (vwide){exchange_lanes(a.hi, distance), exchange_lanes(a.lo, distance)};
}
WORD vwide wide_negative(vwide a) { return (vwide){-a.hi, -a.lo}; }
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

/* The sum of all lanes of parts[COLS], in every lane. */
WORD vwide wide_total(vwide *parts)
{
    for (int half = COLS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            parts[i] = wide_add(parts[i], parts[i + half]);
    vwide sum = parts[0];
#if LANES > 8
    sum = wide_add(sum, wide_exchange(sum, 8));
#endif
#if LANES > 4
    sum = wide_add(sum, wide_exchange(sum, 4));
#endif
#if LANES > 2
    sum = wide_add(sum, wide_exchange(sum, 2));
#endif
#if LANES > 1
    sum = wide_add(sum, wide_exchange(sum, 1));
#endif
    return sum;
}

/* The sum of WIDTH numbers a lane, in the same order. */
WORD vwide wide_total_down(vwide *parts)
{
    for (int half = WIDTH / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            parts[i] = wide_add(parts[i], parts[i + half]);
    return parts[0];
}
