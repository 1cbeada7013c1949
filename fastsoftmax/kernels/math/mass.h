/* Weights of sampling, as integers: mass(x) = round(2**50 * exp((x - top) / temperature)), top the largest logit.
 *
 * Sums of integers are exact in any order. So which token a uniform number draws does not depend on how a row is cut
 * into registers, chunks and threads; and no fused multiply-add stands here, so that all instruction sets compute the
 * same bits. A mass is off by half a unit and by 2**-27 of itself, or 2**-52 for double logits. A chunk of 4096 masses
 * is summed in 63 bits, a row in 128.
 *
 * exp in base 2: t = (x - top) * log2(e) / temperature, in doubles, so that subtraction and scale cost nothing beside
 * float logits. n = round(t), f = t - n, 2**f = 1 + f*q(f), with q from interpolation at Chebyshev nodes (computed in
 * 200-bit arithmetic). t is rounded by adding a large constant, whose low bits also hold n and the exponent of 2**50.
 */
enum { DOUBLES = sizeof(vdouble) / sizeof(double), MASS_BITS = 50, MEAN_PARTIALS = 8 };
#define LEAST_LOG2 (-1000.0)                /* the mass is 0 from -51 on */
#define LOG2E_DOUBLE 0x1.71547652b82fep0
#define LN2_DOUBLE 0x1.62e42fefa39efp-1

#if REAL_BITS == 32
static const double EXP2_Q[] = {
    0x1.62e4302fc626ep-1, 0x1.ebfbe00e63baep-3, 0x1.c6af6cdbbdcc7p-5, 0x1.3b2a53045179ap-7, 0x1.5f0890162a90ap-10,
    0x1.4413896e1ad27p-13,
};
#if defined ISA_generic
SIMD_INLINE vdouble load_doubles(const real *p) { return *p; }
#else
SIMD_INLINE vdouble load_doubles(const real *p) { return (vdouble)widen_at(p); }
#endif
#else
static const double EXP2_Q[] = {
    0x1.62e42fefa39efp-1, 0x1.ebfbdff82c598p-3, 0x1.c6b08d704a0c2p-5, 0x1.3b2ab6fba1ddap-7, 0x1.5d87fe78a5276p-10,
    0x1.430913096fd9fp-13, 0x1.ffcbfc670dcd4p-17, 0x1.62bfd47773353p-20, 0x1.b524fae627834p-24, 0x1.e6063f7217bc6p-28,
    0x1.e9d3fe3952179p-32,
};
SIMD_INLINE vdouble load_doubles(const real *p) { return (vdouble)load(p); }
SIMD_INLINE vdouble max_double(vdouble a, vdouble b) { return (vdouble)vmax((vreal)a, (vreal)b); }
#endif
enum { EXP2_TERMS = sizeof EXP2_Q / sizeof *EXP2_Q };

#if defined ISA_generic
SIMD_INLINE vlong load_masses(const int64_t *p) { return *p; }
SIMD_INLINE void store_masses(int64_t *p, vlong a) { *p = a; }
SIMD_INLINE vdouble broadcast_double(double a) { return a; }
SIMD_INLINE void store_doubles(double *p, vdouble a) { *p = a; }
SIMD_INLINE vlong no_mass(void) { return 0; }
SIMD_INLINE int64_t mass_in_lanes(vlong a) { return a; }
SIMD_INLINE vlong mass_above(vdouble key, vdouble bound, vlong mass) { return key > bound ? mass : 0; }
SIMD_INLINE vdouble times_power(vdouble a, vdouble u)
{
    return double_bits((vlong)((uint64_t)long_bits(a) + ((uint64_t)long_bits(u) << 52)));
}
#else
typedef int64_t vlong_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
SIMD_INLINE vlong load_masses(const int64_t *p) { return *(const vlong_anywhere *)p; }
SIMD_INLINE void store_masses(int64_t *p, vlong a) { *(vlong_anywhere *)p = a; }
SIMD_INLINE vdouble broadcast_double(double a) { return a - (vdouble){0}; }
SIMD_INLINE void store_doubles(double *p, vdouble a) { store_masses((int64_t *)p, long_bits(a)); }
SIMD_INLINE vlong no_mass(void) { return (vlong){0}; }
SIMD_INLINE int64_t mass_in_lanes(vlong a)
{
    int64_t sum = 0;
    for (int i = 0; i < DOUBLES; i++)
        sum += a[i];
    return sum;
}
/* The mass where key > bound, else 0. */
SIMD_INLINE vlong mass_above(vdouble key, vdouble bound, vlong mass) { return (vlong)(key > bound) & mass; }
/* a * 2**n, n in the low bits of u. */
SIMD_INLINE vdouble times_power(vdouble a, vdouble u) { return double_bits(long_bits(a) + (long_bits(u) << 52)); }
#endif

/* t: the logarithm of the weight, in base 2. */
SIMD_INLINE vdouble log2_weight(vdouble x, vdouble top, vdouble scale)
{
    return max_double((x - top) * scale, broadcast_double(LEAST_LOG2));
}

SIMD_INLINE vlong mass_of(vdouble t)
{
    const double rounder = 0x1.8p52 + MASS_BITS, units = 0x1p52;
    const vdouble u = t + broadcast_double(rounder), f = t - (u - broadcast_double(rounder));
    vdouble q = broadcast_double(EXP2_Q[EXP2_TERMS - 1]);
    for (int i = EXP2_TERMS - 2; i >= 0; i--)
        q = q * f + broadcast_double(EXP2_Q[i]);
    q = q * f + broadcast_double(1);
    q = times_power(q, u);
    return long_bits(q + broadcast_double(units)) - long_bits(broadcast_double(units));
}

/* Exactly: below 2**52, an integer is what follows 2**52 in the bits of a double. */
SIMD_INLINE vdouble mass_to_double(vlong mass)
{
    const vdouble units = broadcast_double(0x1p52);
    return double_bits(mass + long_bits(units)) - units;
}

/* Sums of masses of more than a chunk: hi * 2**64 + lo. */
typedef struct { uint64_t lo, hi; } MassSum;

SIMD_INLINE MassSum mass_sum(int64_t mass) { return (MassSum){(uint64_t)mass, 0}; }
SIMD_INLINE MassSum sum_plus(MassSum a, MassSum b)
{
    const uint64_t lo = a.lo + b.lo;
    return (MassSum){lo, a.hi + b.hi + (lo < b.lo)};
}
SIMD_INLINE MassSum sum_minus(MassSum a, MassSum b) { return (MassSum){a.lo - b.lo, a.hi - b.hi - (a.lo < b.lo)}; }
SIMD_INLINE int sum_less(MassSum a, MassSum b) { return a.hi < b.hi || (a.hi == b.hi && a.lo < b.lo); }
SIMD_INLINE int64_t low_word(MassSum a) { return (int64_t)a.lo; }
SIMD_INLINE double sum_to_double(MassSum a) { return (double)a.hi * 0x1p64 + (double)a.lo; }

/* a * b, low and high halves. */
SIMD_INLINE MassSum long_product(uint64_t a, uint64_t b)
{
    const uint64_t low = 0xffffffff, a0 = a & low, a1 = a >> 32, b0 = b & low, b1 = b >> 32;
    const uint64_t ll = a0 * b0, lh = a0 * b1, hl = a1 * b0;
    const uint64_t middle = (ll >> 32) + (lh & low) + (hl & low);
    return (MassSum){(ll & low) | (middle << 32), a1 * b1 + (lh >> 32) + (hl >> 32) + (middle >> 32)};
}

/* floor(total * share), exactly, or with round_up the ceiling; 0 <= share <= 1, total.hi < 2**32. The product of the
 * total and the significand, an integer of 53 bits, stands in three words, and is shifted right. */
COLD MassSum share_of(MassSum total, double share, int round_up)
{
    int exponent;
    const uint64_t significand = (uint64_t)ldexp(frexp(share, &exponent), 53);
    const MassSum low = long_product(total.lo, significand), high = long_product(total.hi, significand);
    const uint64_t middle = low.hi + high.lo;
    uint64_t word[3] = {low.lo, middle, high.hi + (middle < low.hi)}, lost = 0;
    int shift = 53 - exponent;
    for (; shift >= 64 && (word[0] | word[1] | word[2]); shift -= 64) {
        lost |= word[0];
        word[0] = word[1], word[1] = word[2], word[2] = 0;
    }
    if (shift > 0 && shift < 64) {
        lost |= word[0] << (64 - shift);
        word[0] = (word[0] >> shift) | (word[1] << (64 - shift));
        word[1] = (word[1] >> shift) | (word[2] << (64 - shift));
    }
    const MassSum part = {word[0], word[1]};
    return round_up && lost ? sum_plus(part, mass_sum(1)) : part;
}

/* An integer with the order of doubles, of which -0 and 0 are equal. No NaN. */
SIMD_INLINE uint64_t ordered(double a)
{
    const double sum = a + 0.0;
    uint64_t b;
    memcpy(&b, &sum, sizeof b);
    return b >> 63 ? ~b : b | (uint64_t)1 << 63;
}

SIMD_INLINE real next_above(real a)
{
#if REAL_BITS == 32
    return nextafterf(a, INFINITY);
#else
    return nextafter(a, INFINITY);
#endif
}
SIMD_INLINE double next_double_below(double a) { return nextafter(a, -INFINITY); }

SIMD_INLINE int count_bits(uint64_t b)
{
#if defined __GNUC__
    return __builtin_popcountll(b);
#else
    int count = 0;
    for (; b; b &= b - 1)
        count++;
    return count;
#endif
}

/* The number of the lowest bit that is set. For CPUs without tzcnt, GCC writes the same bytes, which they take for bsf:
 * harmless, but tests/test_objects.py cannot see that. */
SIMD_INLINE int first_bit(uint64_t b)
{
#if defined __BMI__ || defined __aarch64__
    return __builtin_ctzll(b);
#else
    return count_bits((b & -b) - 1);
#endif
}

/* The number of the highest bit that is set. */
SIMD_INLINE int leading_bit(uint64_t b)
{
    int i = 0;
    for (int step = 32; step; step /= 2)
        if (b >> step)
            i += step, b >>= step;
    return i;
}
