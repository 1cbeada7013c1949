/* x86-64, any CPU: SSE2, 16-byte registers, no fused multiply-add. SSE 4.2 would save an eighth of the time at most. */
#include <immintrin.h>
#define VECTOR_BYTES 16
#define REGISTERS 16
#include "vec_gnu.h"
#include "fp_x86.h"

#if REAL_BITS == 32
/* table[index mod 8] of each lane; no index goes through memory. */
SIMD_INLINE vreal table_lookup(const real *table, vint index)
{
    const __m128i i = (__m128i)(index & 7);
    const __m128 a = _mm_load_ss(table + _mm_extract_epi16(i, 0)), b = _mm_load_ss(table + _mm_extract_epi16(i, 2));
    const __m128 c = _mm_load_ss(table + _mm_extract_epi16(i, 4)), d = _mm_load_ss(table + _mm_extract_epi16(i, 6));
    return _mm_movelh_ps(_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
}

SIMD_INLINE vreal vmax(vreal a, vreal b) { return _mm_max_ps(a, b); }
SIMD_INLINE vreal vmin(vreal a, vreal b) { return _mm_min_ps(a, b); }
SIMD_INLINE void stream(real *p, vreal a) { _mm_stream_ps(p, a); }
SIMD_INLINE __m128d widen_low(vreal a) { return _mm_cvtps_pd(a); }
SIMD_INLINE __m128d widen_high(vreal a) { return _mm_cvtps_pd(_mm_movehl_ps(a, a)); }
SIMD_INLINE vreal narrow(__m128d low, __m128d high) { return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high)); }
SIMD_INLINE __m128d widen_at(const float *p) { return _mm_cvtps_pd((__m128)_mm_loadl_epi64((const __m128i *)p)); }
SIMD_INLINE __m128d fma_double(__m128d a, __m128d b, __m128d c) { return a * b + c; }
SIMD_INLINE __m128d max_double(__m128d a, __m128d b) { return _mm_max_pd(a, b); }
SIMD_INLINE uint64_t lane_bits(vmask m) { return (uint64_t)_mm_movemask_ps((__m128)m); }
#else
/* table[index mod 4] of each lane */
SIMD_INLINE vreal table_lookup(const real *table, vint index)
{
    const __m128i i = (__m128i)(index & 3);
    return _mm_loadh_pd(_mm_load_sd(table + _mm_extract_epi16(i, 0)), table + _mm_extract_epi16(i, 4));
}

SIMD_INLINE vreal vmax(vreal a, vreal b) { return _mm_max_pd(a, b); }
SIMD_INLINE vreal vmin(vreal a, vreal b) { return _mm_min_pd(a, b); }
SIMD_INLINE void stream(real *p, vreal a) { _mm_stream_pd(p, a); }
SIMD_INLINE uint64_t lane_bits(vmask m) { return (uint64_t)_mm_movemask_pd((__m128d)m); }
#endif
SIMD_INLINE int any_lane(vmask m) { return _mm_movemask_epi8((__m128i)m) != 0; }
SIMD_INLINE vreal fma_(vreal a, vreal b, vreal c) { return a * b + c; }
SIMD_INLINE vreal fnma(vreal a, vreal b, vreal c) { return c - a * b; }

#define FUSED 0
#include "math/two_prod.h"

#if defined DTYPE_f16 || defined DTYPE_bf16
#define NATIVE_PACK
SIMD_INLINE void pack(elem *p, vint a)      /* there is no packing of unsigned numbers before SSE 4.1 */
{
    const __m128i b = (__m128i)shift_right(shift_left(a, 16), 16);
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi32(b, b));
}
#endif
