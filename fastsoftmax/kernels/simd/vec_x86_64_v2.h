/* x86-64-v2: SSE up to 4.2, 16-byte registers, no fused multiply-add; the wheel's baseline. */
#include <immintrin.h>
#define VECTOR_BYTES 16
#define REGISTERS 16
#include "vec_gnu.h"
#include "fp_x86.h"

#if REAL_BITS == 32
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
SIMD_INLINE void pack(elem *p, vint a) { _mm_storel_epi64((__m128i *)p, _mm_packus_epi32((__m128i)a, (__m128i)a)); }
#endif
