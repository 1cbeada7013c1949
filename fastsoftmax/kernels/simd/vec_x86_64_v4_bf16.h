/* x86-64-v4 with AVX512-BF16, for bfloat16 alone. Its registers and words are those of v4; the products of attention's
 * prefill are taken in pairs. */
#include "vec_x86_64_v4.h"

/* Two products a lane, each added with one rounding. Whatever is below 2**-126, operand or sum, counts as 0, and the
 * control word does not matter. */
#define PAIRED 1
#define NATIVE_DOT_PAIRS
SIMD_INLINE vreal dot_pairs(vreal a, vreal b, vreal sum)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
