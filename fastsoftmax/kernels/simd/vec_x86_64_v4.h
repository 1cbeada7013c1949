/* x86-64-v4: AVX-512 F, BW, CD, DQ and VL, 64-byte registers. */
#include <immintrin.h>
#define VECTOR_BYTES 64
#define REGISTERS 32
#include "vec_gnu.h"
#include "fp_x86.h"

#if REAL_BITS == 32
SIMD_INLINE vreal fma_(vreal a, vreal b, vreal c) { return _mm512_fmadd_ps(a, b, c); }
SIMD_INLINE vreal fnma(vreal a, vreal b, vreal c) { return _mm512_fnmadd_ps(a, b, c); }
SIMD_INLINE vreal vmax(vreal a, vreal b) { return _mm512_max_ps(a, b); }
SIMD_INLINE vreal vmin(vreal a, vreal b) { return _mm512_min_ps(a, b); }
SIMD_INLINE void stream(real *p, vreal a) { _mm512_stream_ps(p, a); }
/* table[index mod 8] of each lane: the table stands twice */
SIMD_INLINE vreal table_lookup(const real *table, vint index)
{
    return _mm512_permutexvar_ps((__m512i)index, _mm512_broadcast_f32x8(_mm256_loadu_ps(table)));
}
#define NATIVE_ANY_LT
SIMD_INLINE int any_lt(vreal a, vreal b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }
#define NATIVE_SCALE
SIMD_INLINE vreal scale(vreal a, vreal n) { return _mm512_scalef_ps(a, n); } /* a * 2**floor(n) */
SIMD_INLINE vreal permute(vreal table, vint index) /* table[index mod 16] of each lane */
{
    return _mm512_permutexvar_ps((__m512i)index, table);
}
SIMD_INLINE __m512d widen_low(vreal a) { return _mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
SIMD_INLINE __m512d widen_high(vreal a) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }
SIMD_INLINE vreal narrow(__m512d low, __m512d high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}
SIMD_INLINE __m512d widen_at(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
SIMD_INLINE __m512d fma_double(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
SIMD_INLINE __m512d max_double(__m512d a, __m512d b) { return _mm512_max_pd(a, b); }
SIMD_INLINE uint64_t lane_bits(vmask m) { return (uint64_t)_mm512_movepi32_mask((__m512i)m); }
#else
SIMD_INLINE vreal fma_(vreal a, vreal b, vreal c) { return _mm512_fmadd_pd(a, b, c); }
SIMD_INLINE vreal fnma(vreal a, vreal b, vreal c) { return _mm512_fnmadd_pd(a, b, c); }
SIMD_INLINE vreal vmax(vreal a, vreal b) { return _mm512_max_pd(a, b); }
SIMD_INLINE vreal vmin(vreal a, vreal b) { return _mm512_min_pd(a, b); }
SIMD_INLINE void stream(real *p, vreal a) { _mm512_stream_pd(p, a); }
SIMD_INLINE uint64_t lane_bits(vmask m) { return (uint64_t)_mm512_movepi64_mask((__m512i)m); }
#endif
SIMD_INLINE int any_lane(vmask m) { return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0; }
#define FUSED 1
SIMD_INLINE vreal two_prod_err(vreal a, vreal b, vreal product) { return fma_(a, b, -product); }
SIMD_INLINE vreal mul_dd(vreal a, vreal hi, vreal lo) { return fma_(a, hi, a * lo); } /* a * (hi + lo) */

#if defined DTYPE_f16
#define NATIVE_HALF
SIMD_INLINE vreal load_elem(const elem *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
SIMD_INLINE void store_elem(elem *p, vreal a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
#endif

#if defined DTYPE_bf16
#define NATIVE_HALF                         /* one permutation each: GCC 12 makes seven instructions of unpack */
SIMD_INLINE vreal load_elem(const elem *p)
{
    const vint lane = LANE_NUMBERS;
    const __m512i halves = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)p));
    return from_bits((vint)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, (__m512i)(lane << 16), halves));
}
SIMD_INLINE void store_elem(elem *p, vreal a)   /* as in half.h */
{
    const vint lane = LANE_NUMBERS, upper = (lane % 8 * 4 + 1) | (lane % 8 * 4 + 3) << 16;
    const vint rounded = bits(a) + 0x7fff + (shift_right(bits(a), 16) & 1);
    const __m512i halves = _mm512_permutexvar_epi16((__m512i)upper, (__m512i)rounded);
    _mm256_storeu_si256((__m256i *)p, _mm512_castsi512_si256(halves));
}
#endif

/* For half.h: rows of half a register, TRANSPOSE_ROWS elements from each of two places, and to one. Whole registers from
 * every row would cross a cache line nearly always, and take one more step to transpose. */
#if defined DTYPE_f32
#define HALVED
SIMD_INLINE vreal load_halves(const elem *low, const elem *high)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1);
}
SIMD_INLINE void store_low(elem *p, vreal a) { _mm256_storeu_ps(p, _mm512_castps512_ps256(a)); }
SIMD_INLINE void store_high(elem *p, vreal a) { _mm256_storeu_ps(p, _mm512_extractf32x8_ps(a, 1)); }
#elif defined DTYPE_f64
#define HALVED
SIMD_INLINE vreal load_halves(const elem *low, const elem *high)
{
    return _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(low)), _mm256_loadu_pd(high), 1);
}
SIMD_INLINE void store_low(elem *p, vreal a) { _mm256_storeu_pd(p, _mm512_castpd512_pd256(a)); }
SIMD_INLINE void store_high(elem *p, vreal a) { _mm256_storeu_pd(p, _mm512_extractf64x4_pd(a, 1)); }
#endif

#if defined DTYPE_f32
#define NATIVE_LOAD_FIRST
SIMD_INLINE vreal load_first(const elem *p, ptrdiff_t count)
{
    return _mm512_mask_loadu_ps(broadcast(-(real)INFINITY), (__mmask16)((1 << count) - 1), p);
}
#elif defined DTYPE_f64
#define NATIVE_LOAD_FIRST
SIMD_INLINE vreal load_first(const elem *p, ptrdiff_t count)
{
    return _mm512_mask_loadu_pd(broadcast(-(real)INFINITY), (__mmask8)((1 << count) - 1), p);
}
#endif
