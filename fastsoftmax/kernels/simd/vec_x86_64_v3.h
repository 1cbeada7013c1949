/* x86-64-v3: AVX2, FMA and F16C, 32-byte registers. */
#include <immintrin.h>
#define VECTOR_BYTES 32
#define REGISTERS 16
#include "vec_gnu.h"
#include "fp_x86.h"

#if REAL_BITS == 32
SIMD_INLINE vreal fma_(vreal a, vreal b, vreal c) { return _mm256_fmadd_ps(a, b, c); }
SIMD_INLINE vreal fnma(vreal a, vreal b, vreal c) { return _mm256_fnmadd_ps(a, b, c); }
SIMD_INLINE vreal vmax(vreal a, vreal b) { return _mm256_max_ps(a, b); }
SIMD_INLINE vreal vmin(vreal a, vreal b) { return _mm256_min_ps(a, b); }
SIMD_INLINE void stream(real *p, vreal a) { _mm256_stream_ps(p, a); }
/* table[index mod 4] of each lane. On a Zen 3 a multiply-add and a look-up among eight take 1.8 cycles together, and with
 * this look-up one. */
#define FOUR_STEPS
SIMD_INLINE vreal table_lookup(const real *table, vint index)
{
    return _mm256_permutevar_ps(_mm256_broadcast_ps((const __m128 *)table), (__m256i)index);
}
#define ADDS_TERMS 1
SIMD_INLINE __m256d widen_low(vreal a) { return _mm256_cvtps_pd(_mm256_castps256_ps128(a)); }
SIMD_INLINE __m256d widen_high(vreal a) { return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)); }
SIMD_INLINE vreal narrow(__m256d low, __m256d high) { return _mm256_set_m128(_mm256_cvtpd_ps(high),
                                                                             _mm256_cvtpd_ps(low)); }
SIMD_INLINE __m256d widen_at(const float *p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
SIMD_INLINE __m256d fma_double(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
SIMD_INLINE __m256d max_double(__m256d a, __m256d b) { return _mm256_max_pd(a, b); }
SIMD_INLINE uint64_t lane_bits(vmask m) { return (uint64_t)_mm256_movemask_ps((__m256)m); }
#else
SIMD_INLINE vreal fma_(vreal a, vreal b, vreal c) { return _mm256_fmadd_pd(a, b, c); }
SIMD_INLINE vreal fnma(vreal a, vreal b, vreal c) { return _mm256_fnmadd_pd(a, b, c); }
SIMD_INLINE vreal vmax(vreal a, vreal b) { return _mm256_max_pd(a, b); }
SIMD_INLINE vreal vmin(vreal a, vreal b) { return _mm256_min_pd(a, b); }
SIMD_INLINE void stream(real *p, vreal a) { _mm256_stream_pd(p, a); }
SIMD_INLINE uint64_t lane_bits(vmask m) { return (uint64_t)_mm256_movemask_pd((__m256d)m); }
#endif
SIMD_INLINE int any_lane(vmask m) { return !_mm256_testz_si256((__m256i)m, (__m256i)m); }
#define FUSED 1
SIMD_INLINE vreal two_prod_err(vreal a, vreal b, vreal product) { return fma_(a, b, -product); }
SIMD_INLINE vreal mul_dd(vreal a, vreal hi, vreal lo) { return fma_(a, hi, a * lo); } /* a * (hi + lo) */

#if defined DTYPE_f16
#define NATIVE_HALF
SIMD_INLINE vreal load_elem(const elem *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
SIMD_INLINE void store_elem(elem *p, vreal a)
{
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
#endif

#if defined DTYPE_bf16
#define NATIVE_UNPACK
SIMD_INLINE vint unpack(const elem *p) { return (vint)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
#define NATIVE_PACK
SIMD_INLINE void pack(elem *p, vint a)
{
    __m128i low = _mm256_castsi256_si128((__m256i)a), high = _mm256_extracti128_si256((__m256i)a, 1);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(low, high));
}
#endif

#if defined DTYPE_f32 || defined DTYPE_f64
#define NATIVE_LOAD_FIRST
SIMD_INLINE vreal load_first(const elem *p, ptrdiff_t count)
{
    const vint lane = LANE_NUMBERS, wanted = lane < (ireal)count;
#if defined DTYPE_f32
    return vselect(wanted, _mm256_maskload_ps(p, (__m256i)wanted), broadcast(-(real)INFINITY));
#else
    return vselect(wanted, _mm256_maskload_pd(p, (__m256i)wanted), broadcast(-(real)INFINITY));
#endif
}
#endif
