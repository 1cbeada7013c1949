/* The vocabulary of the kernels: one register, and the operations on it.
 *
 * Every kernel module is compiled for one element type (-DDTYPE_f32, _f64, _f16 or _bf16) and one
 * instruction set (-DISA_generic, _x86_64, _x86_64_v3, _x86_64_v4, _x86_64_v4_bf16,
 * _x86_64_v4_amx or _arm64). This header turns these two choices into types and words; the kernels are written in the
 * words alone.
 *
 *   elem    an element of an array: float, double, or the 16 bits of a float16 or bfloat16
 *   real    the type of the arithmetic: float, or double for double
 *   vreal   LANES reals in one register
 *   vmask   one truth value a lane
 *
 * PARTIALS is the number of partial sums of a row. It is the same for all vector instruction sets, a cache line of reals,
 * so that the order of a summation does not depend on the register's size: they stand in PARTIAL_REGS = PARTIALS / LANES
 * registers. A step of a loop along a row takes UNROLL = 4 * PARTIALS elements.
 */
#ifndef FASTSOFTMAX_VEC_H
#define FASTSOFTMAX_VEC_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined DTYPE_f64
typedef double real;
typedef int64_t ireal;                      /* as many bits as a real */
typedef uint64_t ubits;
#define REAL_BITS 64
#define EPSILON DBL_EPSILON
#define LEAST_NORMAL DBL_MIN
#define LARGEST DBL_MAX
#elif defined DTYPE_f32 || defined DTYPE_f16 || defined DTYPE_bf16
typedef float real;
typedef int32_t ireal;
typedef uint32_t ubits;
#define REAL_BITS 32
#define EPSILON FLT_EPSILON
#define LEAST_NORMAL FLT_MIN
#define LARGEST FLT_MAX
#else
#error "no DTYPE_... is defined"
#endif

#if defined DTYPE_f16 || defined DTYPE_bf16
typedef uint16_t elem;
#else
typedef real elem;
#endif

#if defined __GNUC__
#define SIMD_INLINE static inline __attribute__((always_inline, unused))
#define COLD static __attribute__((noinline, cold, unused))     /* rarely called, so kept out of the loops */
#else
#define SIMD_INLINE static inline
#define COLD static
#endif

enum { MATRIX_PAIRS = 16, MATRIX_ROWS = 16 };   /* of a matrix unit's registers: see matrix_unit.h */

#if defined ISA_generic
#include "vec_generic.h"
#elif defined ISA_x86_64
#include "vec_x86_64.h"
#elif defined ISA_x86_64_v3
#include "vec_x86_64_v3.h"
#elif defined ISA_x86_64_v4
#include "vec_x86_64_v4.h"
#elif defined ISA_x86_64_v4_bf16
#include "vec_x86_64_v4_bf16.h"
#elif defined ISA_x86_64_v4_amx
#include "vec_x86_64_v4_amx.h"
#elif defined ISA_arm64
#include "vec_arm64.h"
#else
#error "no ISA_... is defined"
#endif

#define NEARLY_ONE (1 - EPSILON / 2)
#define PARTIAL_REGS (PARTIALS / LANES)
#define UNROLL (4 * PARTIALS)
#if REGISTERS == 32 && PARTIALS == LANES && REAL_BITS == 32
enum { STEPS_AT_ONCE = 2 };                 /* steps of a loop along a row that are computed together */
#else
enum { STEPS_AT_ONCE = 1 };
#endif

/* Whether the p * f of a row are added one after another, which takes fewer instructions than four at a time: see
 * softmax/row_sums.pxi. */
#ifndef ADDS_TERMS
#define ADDS_TERMS 0
#endif

/* gemm_tile of attention multiplies TILE_n rows by n <= COLUMNS registers: n * TILE_n sums, n registers of the right
 * matrix and one of the left, as many as there are registers; TILE_1 = 16 leaves some, and no rest of 16 or 64 rows. */
enum { COLUMNS = 3 };
#if REGISTERS == 32
enum { TILE_1 = 16, TILE_2 = 12, TILE_3 = 8 };
#else
enum { TILE_1 = 12, TILE_2 = 6, TILE_3 = 4 };
#endif
enum { MAX_TILE = 24 };

#include "half.h"
#include "pairs.h"
#include "matrix_unit.h"
#include "math/double_word.h"

/* The last `count` elements before `end`, fewer than LANES, and -inf after them. LANES elements are read. */
SIMD_INLINE vreal load_last(const elem *end, ptrdiff_t count)
{
#if LANES > 1
    const vint lane = LANE_NUMBERS;
    return shuffle_pair(load_elem(end - LANES), broadcast(-(real)INFINITY), lane + (ireal)(LANES - count));
#else
    (void)end, (void)count;
    return -(real)INFINITY;
#endif
}

/* a with zeros from lane `count` on. */
SIMD_INLINE vreal zero_from(vreal a, ptrdiff_t count)
{
#if LANES > 1
    const vint lane = LANE_NUMBERS;
    return select_or_zero(lane < (ireal)count, a);
#else
    return count > 0 ? a : 0;
#endif
}

/* The first `count` elements at p, fewer than LANES, and -inf after them. Elements beyond are not read. */
#if !defined NATIVE_LOAD_FIRST
COLD vreal load_first(const elem *p, ptrdiff_t count)
{
    elem line[LANES];
    for (ptrdiff_t i = 0; i < LANES; i++)
        line[i] = i < count ? p[i] : ELEM_MINUS_INFINITY;
    return load_elem(line);
}
#endif

/* Stores the first `count` lanes, 0 to LANES, in pieces: loads of a part of what was stored do not wait for it. */
SIMD_INLINE void store_first(elem *p, vreal a, ptrdiff_t count)
{
    elem line[LANES];
    ptrdiff_t done = 0;
    if (count == LANES) {
        store_elem(p, a);
        return;
    }
    store_elem(line, a);
#if LANES > 8
    if (count & 8) {
        memcpy(p, line, 8 * sizeof(elem));
        done = 8;
    }
#endif
#if LANES > 4
    if (count & 4) {
        memcpy(p + done, line + done, 4 * sizeof(elem));
        done += 4;
    }
#endif
#if LANES > 2
    if (count & 2) {
        memcpy(p + done, line + done, 2 * sizeof(elem));
        done += 2;
    }
#endif
    if (count & 1)
        p[done] = line[done];
}

#if !defined NATIVE_ANY_LT
SIMD_INLINE int any_lt(vreal a, vreal b) { return any_lane(lt(a, b)); }
#endif

SIMD_INLINE vreal vabs(vreal a) { return vselect(lt(a, broadcast(0)), -a, a); }

#define HUGE_BIAS (LARGEST * EPSILON / 4)    /* adding a smaller number cannot make a finite one infinite */

/* sum = a + b; the largest number of its sign where a and b are finite and the sum has overflowed. */
SIMD_INLINE vreal saturated(vreal sum, vreal a, vreal b)
{
    const vreal infinite = broadcast((real)INFINITY);
    const vmask overflown = both(lt(vmax(vabs(a), vabs(b)), infinite), eq(vabs(sum), infinite));
    return vselect(overflown, vselect(lt(sum, broadcast(0)), broadcast(-LARGEST), broadcast(LARGEST)), sum);
}

/* a + b, two biases of a score, likewise; but -inf hides, whatever the other. */
SIMD_INLINE real saturated_sum(real a, real b)
{
    const real sum = a + b, most = a < 0 ? -LARGEST : LARGEST;
    const int finite = (a - a == 0) & (b - b == 0);
    const int hidden = (a == -(real)INFINITY) | (b == -(real)INFINITY);
    return hidden ? -(real)INFINITY : finite & (sum - sum != 0) ? most : sum;
}

SIMD_INLINE real lane0(vreal a) { real lane[LANES]; store(lane, a); return lane[0]; }

/* The sum of the lanes, in every lane. */
SIMD_INLINE vreal hsum(vreal a)
{
    real lane[LANES], sum = 0;
    store(lane, a);
    for (int i = 0; i < LANES; i++)
        sum += lane[i];
    return broadcast(sum);
}

/* The same of integers, whose sums are exact in any order. */
SIMD_INLINE vreal hsum_exact(vreal a)
{
#if LANES > 8
    a = a + exchange_reals(a, 8);
#endif
#if LANES > 4
    a = a + exchange_reals(a, 4);
#endif
#if LANES > 2
    a = a + exchange_reals(a, 2);
#endif
#if LANES > 1
    a = a + exchange_reals(a, 1);
#endif
    return a;
}

/* Where a, positive and normal, is a power of two: its mantissa is 0. */
SIMD_INLINE vmask is_power_of_two(vreal a)
{
    const ireal exponent = (ireal)((REAL_BITS == 32 ? (ubits)0xff << 23 : (ubits)0x7ff << (REAL_BITS - 12)));
    return eq(from_bits(bits(a) & exponent), a);
}

/* Where a, not negative, is subnormal and not 0. One comparison: minus 1, the bits of 0 become the largest integer. */
SIMD_INLINE vmask is_subnormal(vreal a)
{
    const ubits sign = (ubits)1 << (REAL_BITS - 1), least_normal = (ubits)1 << (REAL_BITS == 32 ? 23 : 52);
    return lt_bits(add_bits(bits(a), (ireal)(sign - 1)), broadcast_bits((ireal)(sign + least_normal - 1)));
}

#define UP ((real)(REAL_BITS == 32 ? 0x1p64 : 0x1p512))   /* subnormal numbers times this are normal */

/* Whether a * (hi + lo) may be subnormal or 0 in any lane, or so little above that a * lo is; where it may be so small;
 * and where it is 0, however it is rounded: below two fifths of the smallest subnormal number, as for the weights of
 * hidden elements. The products here do not underflow. On some processors a product that does takes as long as a
 * hundred others. */
#define LEAST_USUAL_UP (UP * LEAST_NORMAL * 16)
#define VANISHING_UP (UP * LEAST_NORMAL * EPSILON * (real)0.4)
SIMD_INLINE int any_near_subnormal(vreal a, vreal hi)
{
    return any_lt(a * (hi * broadcast(UP)), broadcast(LEAST_USUAL_UP));
}
SIMD_INLINE vmask result_is_near_subnormal(vreal a, vreal hi)
{
    const vreal up = a * (hi * broadcast(UP));
    return both(lt(broadcast(VANISHING_UP), up), lt(up, broadcast(LEAST_USUAL_UP)));
}
SIMD_INLINE vmask result_vanishes(vreal a, vreal hi) { return lt(a * (hi * broadcast(UP)), broadcast(VANISHING_UP)); }

/* mul_dd(a, hi, lo) where the result is subnormal, or little above. There a * lo of mul_dd is less than the smallest
 * step, and lost. So the product is computed on a larger scale. If the result is subnormal, it would be rounded twice:
 * then the product is rounded, and the error of that is added. A larger result is that of mul_dd, as beside others. */
COLD vreal mul_dd_rounded_once(vreal a, vreal hi, vreal lo)
{
    vreal hi_up = hi * broadcast(UP), lo_up = lo * broadcast(UP), product = a * hi_up;
    vreal low = two_prod_err(a, hi_up, product) + a * lo_up;
    vreal weight = mul_dd(a, hi, lo);           /* without FUSED it scales up itself */
    if (FUSED)
        weight = vselect(lt(product, broadcast(LEAST_USUAL_UP)), mul_dd(a, hi_up, lo_up) * broadcast(1 / UP), weight);
    vreal rounded = product * broadcast(1 / UP);
    rounded = rounded + ((product - rounded * broadcast(UP)) + low) * broadcast(1 / UP);
    return vselect(is_subnormal(weight), rounded, weight);
}

/* mul_dd_rounded_once for `count` registers at a, a + step, ..., in place. */
COLD void mul_dd_in_place(real *a, ptrdiff_t step, ptrdiff_t count, vreal hi, vreal lo)
{
    for (ptrdiff_t i = 0; i < count; i++)
        store(a + i * step, mul_dd_rounded_once(load(a + i * step), hi, lo));
}

/* Hides the value of n from the optimiser, so that it does not unroll a loop. */
SIMD_INLINE int opaque(int n)
{
#if defined __GNUC__
    __asm__("" : "+r"(n));
#endif
    return n;
}

/* The rounding error of sum = a + b (TwoSum; Knuth). */
SIMD_INLINE vreal two_sum_err(vreal a, vreal b, vreal sum)
{
    vreal bb = sum - a;
    return (a - (sum - bb)) + (b - bb);
}

/* The same where |a| >= |b|, or a is 0 (FastTwoSum; Dekker, 1971). */
SIMD_INLINE vreal fast_two_sum_err(vreal a, vreal b, vreal sum) { return b - (sum - a); }

/* Adds x to a compensated sum: `rest` holds the rounding errors of `sum`. */
SIMD_INLINE void add_to(vreal *sum, vreal *rest, vreal x)
{
    const vreal a = *sum;
    *sum = a + x;
    *rest = *rest + two_sum_err(a, x, *sum);
}
SIMD_INLINE void add_real_to(real *sum, real *rest, real x)
{
    const real a = *sum, s = a + x, b = s - a;
    *sum = s;
    *rest += (a - (s - b)) + (x - b);
}
SIMD_INLINE void add_lanes_to(real *sum, real *rest, vreal x)
{
    real lane[LANES];
    store(lane, x);
    for (int i = 0; i < LANES; i++)
        add_real_to(sum, rest, lane[i]);
}

#include "math/exact_sum.h"

/* 1 / (a + b), b small beside a, as the sum of two reals, with nearly twice the digits of a real. */
SIMD_INLINE void reciprocal(vreal a, vreal b, vreal *hi, vreal *lo)
{
    const vreal sum = a + b, q = broadcast(1) / sum, product = q * sum;
    *hi = q;
    *lo = (((broadcast(1) - product) - two_prod_err(q, sum, product)) - q * fast_two_sum_err(a, b, sum)) * q;
}

#endif
