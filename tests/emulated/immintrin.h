/* The AVX-512 and AMX intrinsics of vec_x86_64_v4*.h as AVX2 ones, for emulate_avx512.py. It stands before the
 * compiler's header of this name; 64-byte vector types need no help, the compiler splits them itself. */
#include_next <immintrin.h>
#include <stddef.h>
#include <string.h>

#define EMULATED static inline __attribute__((always_inline, unused))
typedef union { __m512 whole; __m256 half[2]; } floats_;
typedef union { __m512d whole; __m256d half[2]; } doubles_;

#define EACH_HALF(name, type, register_, parameters, ...) \
    EMULATED register_ emulated_##name parameters \
    { \
        type r; \
        for (int h = 0; h < 2; h++) \
            r.half[h] = _mm256_##name(__VA_ARGS__); \
        return r.whole; \
    }
#define HALF(type, x) ((type){.whole = x}).half[h]
#define THREE(name) \
    EACH_HALF(name##_ps, floats_, __m512, (__m512 a, __m512 b, __m512 c), HALF(floats_, a), HALF(floats_, b), HALF(floats_, c)) \
    EACH_HALF(name##_pd, doubles_, __m512d, (__m512d a, __m512d b, __m512d c), HALF(doubles_, a), HALF(doubles_, b), HALF(doubles_, c))
#define TWO(name) \
    EACH_HALF(name##_ps, floats_, __m512, (__m512 a, __m512 b), HALF(floats_, a), HALF(floats_, b)) \
    EACH_HALF(name##_pd, doubles_, __m512d, (__m512d a, __m512d b), HALF(doubles_, a), HALF(doubles_, b))

THREE(fmadd)
THREE(fnmadd)
TWO(max)
TWO(min)

EMULATED int emulated_test_epi32_mask(__m512i a, __m512i b)
{
    const union { __m512i whole; __m256i half[2]; } both = {.whole = a & b};
    return !_mm256_testz_si256(both.half[0], both.half[0]) | !_mm256_testz_si256(both.half[1], both.half[1]);
}
EMULATED int emulated_movepi32_mask(__m512i a)
{
    const floats_ of = {.whole = (__m512)a};
    return _mm256_movemask_ps(of.half[0]) | _mm256_movemask_ps(of.half[1]) << 8;
}
EMULATED int emulated_movepi64_mask(__m512i a)
{
    const doubles_ of = {.whole = (__m512d)a};
    return _mm256_movemask_pd(of.half[0]) | _mm256_movemask_pd(of.half[1]) << 4;
}
EMULATED void emulated_stream_ps(float *p, __m512 a)
{
    for (int h = 0; h < 2; h++)
        _mm256_stream_ps(p + 8 * h, HALF(floats_, a));
}
EMULATED void emulated_stream_pd(double *p, __m512d a)
{
    for (int h = 0; h < 2; h++)
        _mm256_stream_pd(p + 4 * h, HALF(doubles_, a));
}
EMULATED __m512 emulated_cvtph_ps(__m256i a)
{
    floats_ r;
    r.half[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(a));
    r.half[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1));
    return r.whole;
}
#define emulated_cvtps_ph(a, rounding) _mm256_set_m128i( \
    _mm256_cvtps_ph(((floats_){.whole = a}).half[1], rounding), _mm256_cvtps_ph(((floats_){.whole = a}).half[0], rounding))

EMULATED __m512d emulated_cvtps_pd(__m256 a)
{
    doubles_ r;
    r.half[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    r.half[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
    return r.whole;
}
EMULATED __m256 emulated_cvtpd_ps(__m512d a)
{
    return _mm256_set_m128(_mm256_cvtpd_ps(((doubles_){.whole = a}).half[1]),
                           _mm256_cvtpd_ps(((doubles_){.whole = a}).half[0]));
}
EMULATED __m512 emulated_joined(__m256 low, __m256 high)
{
    return ((floats_){.half = {low, high}}).whole;
}

/* An element at a time, so that none without a bit in the mask is touched. */
EMULATED __m512 emulated_mask_loadu_ps(__m512 other, int mask, const float *p)
{
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            other[i] = p[i];
    return other;
}
EMULATED __m512d emulated_mask_loadu_pd(__m512d other, int mask, const double *p)
{
    for (int i = 0; i < 8; i++)
        if (mask >> i & 1)
            other[i] = p[i];
    return other;
}
EMULATED __m512 emulated_permutexvar_ps(__m512i index, __m512 table)
{
    __m512 r;
    const __m512i at = index & (__m512i)((__v16si){} + 15);
    for (int i = 0; i < 16; i++)
        r[i] = table[((__v16si)at)[i]];
    return r;
}
EMULATED __m512i emulated_permutexvar_epi16(unsigned mask, __m512i index, __m512i table)
{
    __v32hi r;
    for (int i = 0; i < 32; i++)
        r[i] = mask >> i & 1 ? ((__v32hi)table)[((__v32hi)index)[i] & 31] : 0;
    return (__m512i)r;
}
/* a * 2**floor(n) in two steps, each by a power of two that is normal: exact where the result is. */
EMULATED __m512 emulated_scalef_ps(__m512 a, __m512 n)
{
    floats_ r = {.whole = a}, by = {.whole = n};
    for (int h = 0; h < 2; h++) {
        const __m256 most = _mm256_set1_ps(252), whole = _mm256_floor_ps(by.half[h]);
        const __m256i all = _mm256_cvtps_epi32(_mm256_max_ps(-most, _mm256_min_ps(most, whole)));
        const __m256i part = _mm256_srai_epi32(all, 1), bias = _mm256_set1_epi32(127);
        const __m256i rest = _mm256_sub_epi32(all, part);
        r.half[h] *= (__m256)_mm256_slli_epi32(_mm256_add_epi32(part, bias), 23);
        r.half[h] *= (__m256)_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    }
    return r.whole;
}
EMULATED int emulated_less_mask(__m512 a, __m512 b)
{
    int mask = 0;
    for (int h = 0; h < 2; h++)
        mask |= _mm256_movemask_ps(_mm256_cmp_ps(HALF(floats_, a), HALF(floats_, b), _CMP_LT_OQ)) << 8 * h;
    return mask;
}
/* Two products of bfloat16 a lane, the upper one first, each added with one rounding; what is below 2**-126 is 0. */
EMULATED __m256 emulated_flush(__m256 a)
{
    const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a), sign = _mm256_and_ps(_mm256_set1_ps(-0.0f), a);
    const __m256 tiny = _mm256_cmp_ps(size, _mm256_set1_ps(0x1p-126f), _CMP_LT_OQ);
    return _mm256_blendv_ps(a, sign, tiny);
}
EMULATED __m256 emulated_upper(__m256 a) { return (__m256)_mm256_and_si256((__m256i)a, _mm256_set1_epi32(-65536)); }
EMULATED __m256 emulated_lower(__m256 a) { return (__m256)_mm256_slli_epi32((__m256i)a, 16); }
EMULATED __m256 emulated_add_product(__m256 a, __m256 b, __m256 sum)
{
    return emulated_flush(_mm256_fmadd_ps(emulated_flush(a), emulated_flush(b), emulated_flush(sum)));
}
EMULATED __m512 emulated_dpbf16_ps(__m512 sum, __m512 a, __m512 b)
{
    floats_ r = {.whole = sum}, x = {.whole = a}, y = {.whole = b};
    for (int h = 0; h < 2; h++) {
        r.half[h] = emulated_add_product(emulated_upper(x.half[h]), emulated_upper(y.half[h]), r.half[h]);
        r.half[h] = emulated_add_product(emulated_lower(x.half[h]), emulated_lower(y.half[h]), r.half[h]);
    }
    return r.whole;
}
/* Tiles, all of 16 rows of 16 words, each thread's own. In a product, the upper halves of words are summed apart from the
 * lower ones. */
static _Thread_local float emulated_tiles[8][16][16];
EMULATED void emulated_load_tile(int tile, const void *from, ptrdiff_t stride)
{
    for (int row = 0; row < 16; row++)
        memcpy(emulated_tiles[tile][row], (const char *)from + row * stride, 64);
}
EMULATED void emulated_store_tile(int tile, void *to, ptrdiff_t stride)
{
    for (int row = 0; row < 16; row++)
        memcpy((char *)to + row * stride, emulated_tiles[tile][row], 64);
}
static __attribute__((noinline, unused)) void emulated_multiply_tiles(int to, int left, int right)
{
    for (int row = 0; row < 16; row++)
        for (int at = 0; at < 16; at += 8) {
            __m256 lower = _mm256_setzero_ps(), upper = lower, sum = _mm256_loadu_ps(emulated_tiles[to][row] + at);
            for (int k = 0; k < 16; k++) {
                int pair;
                memcpy(&pair, &emulated_tiles[left][row][k], sizeof pair);
                const __m256 x = (__m256)_mm256_set1_epi32(pair), y = _mm256_loadu_ps(emulated_tiles[right][k] + at);
                lower = emulated_add_product(emulated_lower(x), emulated_lower(y), lower);
                upper = emulated_add_product(emulated_upper(x), emulated_upper(y), upper);
            }
            sum = emulated_flush(_mm256_add_ps(emulated_flush(sum), emulated_flush(_mm256_add_ps(lower, upper))));
            _mm256_storeu_ps(emulated_tiles[to][row] + at, sum);
        }
}

#undef _tile_loadconfig
#define _tile_loadconfig(shape) ((void)(shape))
#undef _tile_release
#define _tile_release() ((void)0)
#undef _tile_zero
#define _tile_zero(tile) memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile])
#undef _tile_loadd
#define _tile_loadd emulated_load_tile
#undef _tile_stored
#define _tile_stored emulated_store_tile
#undef _tile_dpbf16ps
#define _tile_dpbf16ps emulated_multiply_tiles

#define _mm512_mask_loadu_ps emulated_mask_loadu_ps
#define _mm512_mask_loadu_pd emulated_mask_loadu_pd
#define _mm512_permutexvar_ps emulated_permutexvar_ps
#define _mm512_permutexvar_epi16(index, table) emulated_permutexvar_epi16(~0u, index, table)
#define _mm512_maskz_permutexvar_epi16 emulated_permutexvar_epi16
#undef _mm512_scalef_ps
#define _mm512_scalef_ps emulated_scalef_ps
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, comparison) emulated_less_mask(a, b)                       /* _CMP_LT_OQ */
#undef _mm512_broadcast_f32x8
#define _mm512_broadcast_f32x8(a) emulated_joined(a, a)
#define _mm512_cvtps_pd emulated_cvtps_pd
#define _mm512_cvtpd_ps emulated_cvtpd_ps
#define _mm512_castsi512_si256(a) ((__m256i)(((floats_){.whole = (__m512)(a)}).half[0]))
#define _mm512_castsi256_si512(a) ((__m512i)emulated_joined((__m256)(a), (__m256)(a)))
#define _mm512_castps512_ps256(a) (((floats_){.whole = a}).half[0])
#define _mm512_castps256_ps512(a) emulated_joined(a, a)
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(a, i) (((floats_){.whole = a}).half[i])
#undef _mm512_insertf32x8
#define _mm512_insertf32x8(a, b, i) emulated_joined(((floats_){.whole = a}).half[0], b)     /* i is 1 */
#define _mm512_castpd512_pd256(a) (((doubles_){.whole = a}).half[0])
#define _mm512_castpd256_pd512(a) ((doubles_){.half = {a, a}}).whole
#undef _mm512_extractf64x4_pd
#define _mm512_extractf64x4_pd(a, i) (((doubles_){.whole = a}).half[i])
#undef _mm512_insertf64x4
#define _mm512_insertf64x4(a, b, i) ((doubles_){.half = {((doubles_){.whole = a}).half[0], b}}).whole      /* i is 1 */
#define _mm512_fmadd_ps emulated_fmadd_ps
#define _mm512_fmadd_pd emulated_fmadd_pd
#define _mm512_fnmadd_ps emulated_fnmadd_ps
#define _mm512_fnmadd_pd emulated_fnmadd_pd
#define _mm512_max_ps emulated_max_ps
#define _mm512_min_ps emulated_min_ps
#undef _mm512_test_epi32_mask
#define _mm512_test_epi32_mask emulated_test_epi32_mask
#define _mm512_movepi32_mask emulated_movepi32_mask
#define _mm512_movepi64_mask emulated_movepi64_mask
#define _mm512_max_pd emulated_max_pd
#define _mm512_min_pd emulated_min_pd
#define _mm512_stream_ps emulated_stream_ps
#define _mm512_stream_pd emulated_stream_pd
#define _mm512_cvtph_ps emulated_cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph emulated_cvtps_ph
#define _mm512_dpbf16_ps(sum, a, b) emulated_dpbf16_ps(sum, (__m512)(a), (__m512)(b))
