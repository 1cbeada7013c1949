/* Numbers with about twice the digits of a real: vdd.
 *
 * For float, a vdd is as many doubles, in two registers; for double, a double-double, a pair hi + lo without overlap
 * (Dekker, 1971). Each lane is a number of its own. dd_total adds the lanes in a fixed order, and leaves the total in
 * every lane.
 */
#if defined ISA_generic
typedef double vdouble;
typedef int64_t vlong;
SIMD_INLINE vdouble double_bits(vlong a) { vdouble b; memcpy(&b, &a, sizeof b); return b; }
SIMD_INLINE vlong long_bits(vdouble a) { vlong b; memcpy(&b, &a, sizeof b); return b; }
SIMD_INLINE vdouble select_double(int m, vdouble a, vdouble b) { return m ? a : b; }
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
SIMD_INLINE vdouble double_bits(vlong a) { return (vdouble)a; }
SIMD_INLINE vlong long_bits(vdouble a) { return (vlong)a; }
SIMD_INLINE vdouble select_double(vlong m, vdouble a, vdouble b) { return (vdouble)((m & (vlong)a) | (~m & (vlong)b)); }

/* Lane i gets lane i ^ distance. */
SIMD_INLINE vdouble exchange_lanes(vdouble a, const int distance)
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

#include "math/log.h"

#if REAL_BITS == 32
#if defined ISA_generic
enum { PARTS = 1 };
typedef struct { vdouble part[PARTS]; } vdd;
SIMD_INLINE vdd dd_from(vreal a) { return (vdd){{a}}; }
SIMD_INLINE vreal dd_to(vdd a) { return (vreal)a.part[0]; }
SIMD_INLINE vdd dd_lane0(vdd a) { return a; }
#else
enum { PARTS = 2 };
typedef struct { vdouble part[PARTS]; } vdd;
SIMD_INLINE vdd dd_from(vreal a) { return (vdd){{widen_low(a), widen_high(a)}}; }
SIMD_INLINE vreal dd_to(vdd a) { return narrow(a.part[0], a.part[1]); }
#endif
#define EACH_PART for (int i = 0; i < PARTS; i++)

SIMD_INLINE vdd dd_zero(void) { return dd_from(broadcast(0)); }
SIMD_INLINE vdd dd_add(vdd a, vdd b) { EACH_PART a.part[i] = a.part[i] + b.part[i]; return a; }
SIMD_INLINE vdd dd_sub(vdd a, vdd b) { EACH_PART a.part[i] = a.part[i] - b.part[i]; return a; }
SIMD_INLINE vdd dd_of_sum(vreal a, vreal b) { return dd_add(dd_from(a), dd_from(b)); }
SIMD_INLINE vdd dd_div(vdd a, vdd b) { EACH_PART a.part[i] = a.part[i] / b.part[i]; return a; }
#if !defined ISA_generic
SIMD_INLINE vdd dd_exchange(vdd a, const int distance)
{
    if (distance & (LANES / 2))
        a = (vdd){{a.part[1], a.part[0]}};
    if (distance & (LANES / 2 - 1))
        EACH_PART a.part[i] = exchange_lanes(a.part[i], distance & (LANES / 2 - 1));
    return a;
}
SIMD_INLINE vdd dd_lane0(vdd a)
{
    vdouble lane0 = a.part[0][0] - (vdouble){0};
    return (vdd){{lane0, lane0}};
}
#endif
/* PARTIALS numbers, which come one by one and are taken by the register. */
typedef struct { double number[PARTIALS]; } dd_numbers;
SIMD_INLINE void dd_put(dd_numbers *numbers, ptrdiff_t k, vdd a)
{
#if defined ISA_generic
    numbers->number[k] = a.part[0];
#else
    numbers->number[k] = a.part[0][0];
#endif
}
SIMD_INLINE vdd dd_get(const dd_numbers *numbers, int c)
{
    vdd a;
    EACH_PART memcpy(&a.part[i], numbers->number + c * LANES + i * (LANES / PARTS), sizeof a.part[i]);
    return a;
}
SIMD_INLINE vdd dd_log1p(vdd z)
{
    vdouble hi, lo;
    EACH_PART {
        log1p_pair(z.part[i], z.part[i] - z.part[i], &hi, &lo);
        z.part[i] = hi + lo;
    }
    return z;
}
/* a as the sum of two reals, the first its nearest real. */
SIMD_INLINE void dd_split(vdd a, vreal *hi, vreal *lo)
{
    *hi = dd_to(a);
    *lo = dd_to(dd_sub(a, dd_from(*hi)));
}
/* The same of a total, which is in every lane. */
SIMD_INLINE void dd_split_total(vdd a, real *hi, real *lo)
{
#if defined ISA_generic
    const double total = a.part[0];
#else
    const double total = a.part[0][0];
#endif
    *hi = (real)total;
    *lo = (real)(total - *hi);
}
/* base + base_lo + a likewise, also where base and a nearly cancel, or differ by many digits. */
SIMD_INLINE void dd_split_sum(vreal base, vreal base_lo, vdd a, vreal *hi, vreal *lo)
{
    vdd rest = dd_add(dd_from(base_lo), a);
    *hi = dd_to(dd_add(dd_from(base), rest));
    *lo = dd_to(dd_add(dd_sub(dd_from(base), dd_from(*hi)), rest));
}

#else
typedef struct { vreal hi, lo; } vdd;

SIMD_INLINE vdd dd_zero(void) { return (vdd){broadcast(0), broadcast(0)}; }
SIMD_INLINE vdd dd_from(vreal a) { return (vdd){a, broadcast(0)}; }
SIMD_INLINE vdd dd_of_sum(vreal a, vreal b)
{
    vreal hi = a + b, bb = hi - a;
    return (vdd){hi, (a - (hi - bb)) + (b - bb)};
}
SIMD_INLINE vdd dd_add(vdd a, vdd b)
{
    vdd sum = dd_of_sum(a.hi, b.hi);
    vreal lo = sum.lo + (a.lo + b.lo), hi = sum.hi + lo;
    return (vdd){hi, lo - (hi - sum.hi)};
}
#if !defined ISA_generic
SIMD_INLINE vdd dd_exchange(vdd a, const int distance)
{
    return (vdd){exchange_lanes(a.hi, distance), exchange_lanes(a.lo, distance)};
}
SIMD_INLINE vdd dd_lane0(vdd a) { return (vdd){broadcast(a.hi[0]), broadcast(a.lo[0])}; }
#else
SIMD_INLINE vdd dd_lane0(vdd a) { return a; }
#endif
SIMD_INLINE vdd dd_sub(vdd a, vdd b) { return dd_add(a, (vdd){-b.hi, -b.lo}); }
SIMD_INLINE vdd dd_div(vdd a, vdd b)
{
    vreal q = a.hi / b.hi, p = q * b.hi;
    vreal left = (((a.hi - p) - two_prod_err(q, b.hi, p)) + a.lo) - q * b.lo;
    return (vdd){q, left / b.hi};
}
typedef struct { real hi[PARTIALS], lo[PARTIALS]; } dd_numbers;
SIMD_INLINE void dd_put(dd_numbers *numbers, ptrdiff_t k, vdd a)
{
#if defined ISA_generic
    numbers->hi[k] = a.hi, numbers->lo[k] = a.lo;
#else
    numbers->hi[k] = a.hi[0], numbers->lo[k] = a.lo[0];
#endif
}
SIMD_INLINE vdd dd_get(const dd_numbers *numbers, int c)
{
    return (vdd){load(numbers->hi + c * LANES), load(numbers->lo + c * LANES)};
}
SIMD_INLINE vdd dd_log1p(vdd z)
{
    vdd y;
    log1p_pair(z.hi, z.lo, &y.hi, &y.lo);
    return y;
}
SIMD_INLINE void dd_split(vdd a, vreal *hi, vreal *lo) { *hi = a.hi; *lo = a.lo; }
#if defined ISA_generic
SIMD_INLINE void dd_split_total(vdd a, real *hi, real *lo) { *hi = a.hi; *lo = a.lo; }
#else
SIMD_INLINE void dd_split_total(vdd a, real *hi, real *lo) { *hi = a.hi[0]; *lo = a.lo[0]; }
#endif
SIMD_INLINE void dd_split_sum(vreal base, vreal base_lo, vdd a, vreal *hi, vreal *lo)
{
    vdd sum = dd_of_sum(base, a.hi);
    *hi = sum.hi;
    *lo = sum.lo + (a.lo + base_lo);
}
#endif

/* Partial sums are added up in this order, whatever a register's size: numbers 0, 4, 8, ... one after another,
 * likewise 1, 5, 9, ..., 2, 6, ... and 3, 7, ...; then these four, (0 + 2) + (1 + 3). */

/* Down the lanes: `count` <= PARTIALS numbers a lane come one by one. */
typedef struct { vdd chain[4]; } vdd_sum;
SIMD_INLINE vdd_sum dd_sum_start(void)
{
    return (vdd_sum){{dd_zero(), dd_zero(), dd_zero(), dd_zero()}};
}
SIMD_INLINE vdd dd_sum_end(vdd_sum s)
{
    return dd_add(dd_add(s.chain[0], s.chain[2]), dd_add(s.chain[1], s.chain[3]));
}

/* Along the lanes: the PARTIALS numbers of parts[PARTIAL_REGS]; the total comes in every lane. */
SIMD_INLINE vdd dd_total(const vdd *parts)
{
#if defined ISA_generic
    return dd_add(dd_add(parts[0], parts[2]), dd_add(parts[1], parts[3]));
#else
    vdd sum = parts[0];
#if LANES == 2
    vdd odd = dd_add(parts[1], parts[3]);
    sum = dd_add(dd_add(sum, parts[2]), odd);
#elif LANES == 4
    for (int i = 1; i < PARTIAL_REGS; i++)
        sum = dd_add(sum, parts[i]);
    sum = dd_add(sum, dd_exchange(sum, 2));
#else
    /* lanes 4 to 7, and 8 to 15, are brought to lanes 0 to 3; what happens in the others is not used */
    sum = dd_add(sum, dd_exchange(sum, 4));
    for (int from = 8; from < LANES; from += 4)
        sum = dd_add(sum, dd_exchange(parts[0], from));
    for (int i = 1; i < PARTIAL_REGS; i++)
        for (int from = 0; from < LANES; from += 4)
            sum = dd_add(sum, from ? dd_exchange(parts[i], from) : parts[i]);
    sum = dd_add(sum, dd_exchange(sum, 2));
#endif
    sum = dd_add(sum, dd_exchange(sum, 1));
    return dd_lane0(sum);
#endif
}
