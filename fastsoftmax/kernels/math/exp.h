/* exp and tanh of one register, for attention.
 *
 * exp_(d): d <= 1, at most 0.8 ULP off; 0 at LEAST_EXPONENT and below, -inf included; NaN gives NaN.
 * tanh_(a): every a, at most 2 ULP off.
 *
 * exp(d) = 2**n * (1 + p), n = round(d / ln 2), p = exp(r) - 1 at r = d - n ln 2. p = r + r*r*q(r), with q a minimax
 * polynomial (Remez exchange, weight |r|, computed in 200-bit arithmetic). ln 2 is in two parts (Cody and Waite):
 * n * LN2_HI is exact, and so is its difference from d. With a fused multiply-add one part suffices for float: its ln 2
 * is right to 2**-29, and n times that is below half an ULP down to exp(-21). d is rounded to an integer by adding a
 * large constant, whose low bits also hold the exponent bias, so that a shift makes 2**n of the sum.
 *
 * The polynomial's error is 2**-27 of 1 + p for float, 2**-57 for double; that of p is 2 ULP of p.
 */
#if REAL_BITS == 32
#define LEAST_EXPONENT (-88.0f)             /* n is -127 there */
#define LN2_HI 0.693145751953125f           /* 45426 / 65536 */
#define LN2_LO 1.4286068e-06f
#define LN2 0.693147180559945309417f
static const real EXP_Q[] = {
    0.5f, 0.16666543f, 0.04166628f, 0.008366578f, 0.001394644f,
};
#else
#define LEAST_EXPONENT (-709.0)             /* -1023 */
#define LN2_HI 0x1.62e42fefa3000p-1
#define LN2_LO 0x1.3de6af278ece6p-42
#define LN2 0.693147180559945309417
static const real EXP_Q[] = {
    0x1.0000000000005p-1, 0x1.555555555555cp-3, 0x1.55555555520fep-5, 0x1.111111110e6eap-7,
    0x1.6c16c17f34bf6p-10, 0x1.a01a01b5d0020p-13, 0x1.a019a68e68f01p-16, 0x1.71ddea18fb08ap-19,
    0x1.28a2a2933fac5p-22, 0x1.af768b53f5f61p-26,
};
#endif
enum { EXP_DEGREE = sizeof EXP_Q / sizeof *EXP_Q - 1 };

/* exp(d) = f + p*f, f a power of two */
SIMD_INLINE void exp_parts(vreal d, vreal *p, vreal *f)
{
    const vreal magic = broadcast(ROUNDER + EXPONENT_BIAS);
    vreal t, n, r, q;
    d = vmax(broadcast(LEAST_EXPONENT), d);
    t = fma_(d, broadcast((real)LOG2E), magic);
    n = t - magic;
    r = FUSED && REAL_BITS == 32 ? fnma(n, broadcast(LN2), d) : fnma(n, broadcast(LN2_LO), fnma(n, broadcast(LN2_HI),
                                                                                                d));
    q = broadcast(EXP_Q[EXP_DEGREE]);
    for (int i = EXP_DEGREE - 1; i >= 0; i--)
        q = fma_(r, q, broadcast(EXP_Q[i]));
    *p = fma_(r * r, q, r);
    *f = from_bits(shift_left(bits(t), MANTISSA));
}

SIMD_INLINE vreal exp_(vreal d)
{
    vreal p, f;
    exp_parts(d, &p, &f);
    return fma_(p, f, f);
}

/* tanh(a) = -e / (2 + e), e = exp(-2|a|) - 1 = (f - 1) + p*f: exact in its last digits near 0 too. */
SIMD_INLINE vreal tanh_(vreal a)
{
    vreal p, f, e;
    exp_parts(vabs(a) * broadcast(-2), &p, &f);
    e = fma_(p, f, f - broadcast(1));
    e = -e / (broadcast(2) + e);
    return vselect(lt(a, broadcast(0)), -e, e);
}
