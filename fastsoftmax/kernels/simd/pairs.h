/* Pairs of bfloat16 numbers: a lane holds two, the first in its lower half. They are for instructions that add two
 * products to each lane. PAIRED is 1 where the instruction set has one and elements are bfloat16, and prefill uses
 * pairs there; elsewhere these words are compiled and dropped. A pair is moved as bits: as a number it may be
 * anything, even a signaling NaN.
 */
#define UPPER_HALF ((ireal)0xffff0000u)

/* float to bfloat16 by truncation: the difference is exact, and again a float */
SIMD_INLINE vreal upper_half(vreal a) { return from_bits(bits(a) & UPPER_HALF); }
/* upper_half of this is `a` rounded to bfloat16, ties away from zero */
SIMD_INLINE vreal before_truncation(vreal a) { return from_bits(add_bits(bits(a), 0x8000)); }

SIMD_INLINE vreal pair_of(vreal first, vreal second)
{
    return from_bits(shift_in_zeros(bits(first), 16) | (bits(second) & UPPER_HALF));
}
SIMD_INLINE vreal first_of_pair(vreal a) { return from_bits(shift_left(bits(a), 16)); }
SIMD_INLINE vreal second_of_pair(vreal a) { return upper_half(a); }

SIMD_INLINE vreal broadcast_pair(const real *p)
{
    ireal pair;
    memcpy(&pair, p, sizeof pair);
    return from_bits(broadcast_bits(pair));
}

/* The upper 16 bits of a number, without its sign: they order bfloat16 numbers by size. */
SIMD_INLINE uint16_t magnitude(const elem *p)
{
#if defined DTYPE_bf16 || defined DTYPE_f16
    return *p & 0x7fff;
#else
    ubits number;
    memcpy(&number, p, sizeof number);
    return (uint16_t)(number >> (REAL_BITS - 16)) & 0x7fff;
#endif
}
#define HUGE_FACTOR 0x1p40f
enum { HUGE_MAGNITUDE = (127 + 40) << 7, SMALL_MAGNITUDE = (127 - 60) << 7, INFINITE_MAGNITUDE = 255 << 7 };

/* Whether one of n elements is 2**40 or more, or NaN. */
static inline int has_huge(const elem *x, ptrdiff_t n)
{
    uint16_t most = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        most = magnitude(x + i) > most ? magnitude(x + i) : most;
    return most >= HUGE_MAGNITUDE;
}

/* Whether one of n elements is special: NaN, infinite, or below 2**-60 and not 0. */
static inline int has_special(const elem *x, ptrdiff_t n)
{
    uint16_t most = 0, least = 0xffff;          /* least: of magnitude - 1, so that 0 becomes the largest */
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint16_t size = magnitude(x + i), less = (uint16_t)(size - 1);
        most = size > most ? size : most;
        least = less < least ? less : least;
    }
    return most >= INFINITE_MAGNITUDE || least < SMALL_MAGNITUDE - 1;
}

static inline void clear_special(elem *x, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        if (has_special(x + i, 1))
            x[i] = 0;
}

#if !defined PAIRED
#define PAIRED 0
#endif
#if !defined NATIVE_DOT_PAIRS
SIMD_INLINE vreal dot_pairs(vreal a, vreal b, vreal sum)
{
    return fma_(first_of_pair(a), first_of_pair(b), fma_(second_of_pair(a), second_of_pair(b), sum));
}
#endif
