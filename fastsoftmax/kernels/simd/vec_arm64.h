/* AArch64: Advanced SIMD (NEON), 16-byte registers, fused multiply-add. */
#include <arm_neon.h>
#define VECTOR_BYTES 16
#define REGISTERS 32
#include "vec_gnu.h"

#if REAL_BITS == 32
/* table[index mod 8] of each lane. */
SIMD_INLINE vreal table_lookup(const real *table, vint index) { return shuffle_pair(load(table), load(table + 4),
                                                                                    index & 7); }
SIMD_INLINE vreal fma_(vreal a, vreal b, vreal c) { return (vreal)vfmaq_f32((float32x4_t)c, (float32x4_t)a,
                                                                            (float32x4_t)b); }
SIMD_INLINE vreal fnma(vreal a, vreal b, vreal c) { return (vreal)vfmsq_f32((float32x4_t)c, (float32x4_t)a,
                                                                            (float32x4_t)b); }
SIMD_INLINE float64x2_t widen_low(vreal a) { return vcvt_f64_f32(vget_low_f32((float32x4_t)a)); }
SIMD_INLINE float64x2_t widen_high(vreal a) { return vcvt_high_f64_f32((float32x4_t)a); }
SIMD_INLINE vreal narrow(float64x2_t low, float64x2_t high) { return (vreal)vcvt_high_f32_f64(vcvt_f32_f64(low),
                                                                                              high); }
SIMD_INLINE float64x2_t widen_at(const float *p) { return vcvt_f64_f32(vld1_f32(p)); }
SIMD_INLINE float64x2_t fma_double(float64x2_t a, float64x2_t b, float64x2_t c) { return vfmaq_f64(c, a, b); }
SIMD_INLINE float64x2_t max_double(float64x2_t a, float64x2_t b) { return vbslq_f64(vcltq_f64(a, b), b, a); }
#else
SIMD_INLINE vreal fma_(vreal a, vreal b, vreal c) { return (vreal)vfmaq_f64((float64x2_t)c, (float64x2_t)a,
                                                                            (float64x2_t)b); }
SIMD_INLINE vreal fnma(vreal a, vreal b, vreal c) { return (vreal)vfmsq_f64((float64x2_t)c, (float64x2_t)a,
                                                                            (float64x2_t)b); }
#endif
SIMD_INLINE vreal vmax(vreal a, vreal b) { return vselect(lt(b, a), a, b); } /* b where either is NaN */
SIMD_INLINE vreal vmin(vreal a, vreal b) { return vselect(lt(a, b), a, b); }
SIMD_INLINE int any_lane(vmask m) { return vmaxvq_u32((uint32x4_t)m) != 0; }
SIMD_INLINE uint64_t lane_bits(vmask m)
{
    uint64_t bits = 0;
    for (int i = 0; i < LANES; i++)
        bits |= (uint64_t)(m[i] & 1) << i;
    return bits;
}
#define FUSED 1
SIMD_INLINE vreal two_prod_err(vreal a, vreal b, vreal product) { return fma_(a, b, -product); }
SIMD_INLINE vreal mul_dd(vreal a, vreal hi, vreal lo) { return fma_(a, hi, a * lo); } /* a * (hi + lo) */

SIMD_INLINE void stream(real *p, vreal a) { store(p, a); }
SIMD_INLINE void stream_end(void) {}
SIMD_INLINE void prefetch(const void *p) { __builtin_prefetch(p); }

/* The control register: round to nearest, no flushing to zero, no traps; and the exception flags. */
typedef struct { uint64_t control, status; } fp_state;
SIMD_INLINE fp_state fp_enter(void)
{
    fp_state s;
    __asm__ volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(s.control), "=r"(s.status));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
    return s;
}
SIMD_INLINE void fp_leave(fp_state s)
{
    __asm__ volatile("msr fpcr, %0\n\tmsr fpsr, %1" : : "r"(s.control), "r"(s.status) : "memory");
}
