/* exp of four registers at once, as the two numbers whose sum it is.
 *
 * exp(d) = 2**n * (1 + p), n = round(d / ln 2), p = exp(r) - 1 at r = d - n ln 2, |r| <= ln 2 / 2.
 *
 * Method. Cody and Waite's reduction with ln 2 in two parts: n * LN2_HI is exact for every n that occurs
 * (10 bits by 14 for float, 12 by 41 for double), and so is its difference from d, because d is a score as
 * it stands in the array and not a rounded difference: see `Shift` in softmax.pxi. p = r + r*r*q(r), with q
 * a minimax polynomial (Remez exchange, weight r*r / exp(r), computed in 200-bit arithmetic).
 * Rounding to integer by a large constant whose low bits also hold the exponent bias, so that a shift
 * makes 2**n from it.
 *
 * Error of f + p*f: at most 2**-26 relative for float (a quarter ULP), 2**-55 for double; after rounding to
 * a real, at most 0.8 ULP. Valid for limit <= d, where 2**n must be normal: the caller's `bias` sees to it.
 * NaN gives a NaN p.
 */
#if REAL_BITS == 32
#define LOG2E 1.44269504088896341f
#define LN2_HI 0.69317626953125f                /* 11357 / 16384 */
#define LN2_LO (-2.908897130469058e-05f)
#define ROUNDER 12582912.0f                     /* 1.5 * 2**23 */
#define MANTISSA 23
#define EXPONENT_BIAS 127
#define SCALE_BITS 64
#define SCALE 0x1p64f                           /* weights are kept multiplied by this: nothing is subnormal */
#define VANISHES (-106.0f)                      /* exp of it is below half of the smallest subnormal */
#define LARGE 256.0f                            /* a maximum beyond this is subtracted: exactly, see Shift */
#else
#define LOG2E 1.44269504088896340736
#define LN2_HI 0x1.62e42fefa3000p-1
#define LN2_LO 0x1.3de6af278ece6p-42
#define ROUNDER 6755399441055744.0              /* 1.5 * 2**52 */
#define MANTISSA 52
#define EXPONENT_BIAS 1023
#define SCALE_BITS 512
#define SCALE 0x1p512
#define VANISHES (-748.0)
#define LARGE 2048.0
#endif

/* Whether r may be rounded before it enters p: the faster way, and with a fused multiply-add close enough; without one
 * the digits are needed. */
#define REDUCTION_IN_ONE FUSED

/* d: four arguments. d_lo: what to add to them, or NULL. magic: ROUNDER plus the exponent bias.
 * p, f: the results, exp = f + p * f. */
WORD void exp4(const vreal *d, const vreal *d_lo, const vreal *magic, vreal *p, vreal *f)
{
#if REAL_BITS == 32
    enum { DEGREE = 4 };
    const real q_[DEGREE + 1] = {
        0.4999999376822507f, 0.1666652250850946f, 0.04166834772383511f, 0.008368574122854357f,
        0.001381574490040078f,
    };
#else
    enum { DEGREE = 9 };
    const real q_[DEGREE + 1] = {
        0x1.0000000000007p-1, 0x1.5555555555500p-3, 0x1.55555555512dbp-5, 0x1.11111111274cdp-7,
        0x1.6c16c182586bcp-10, 0x1.a01a012945718p-13, 0x1.a0199e28ddec4p-16, 0x1.71df2cf1b2ed9p-19,
        0x1.28aa348f1eed0p-22, 0x1.ad6da8f2366c0p-26,
    };
#endif
    vreal t[4], n[4], r[4], q[4];
#if !REDUCTION_IN_ONE
    vreal w[4];                                 /* the reduction's small part, kept apart to the end */
#endif
    for (int a = 0; a < 4; a++)
        t[a] = fma_(d[a], fill((real)LOG2E), magic[a]);
    for (int a = 0; a < 4; a++)
        n[a] = t[a] - magic[a];
    for (int a = 0; a < 4; a++)
        r[a] = fnma(n[a], fill(LN2_HI), d[a]);
#if REDUCTION_IN_ONE
    for (int a = 0; a < 4; a++)
        r[a] = fnma(n[a], fill(LN2_LO), r[a]);
    if (d_lo)
        for (int a = 0; a < 4; a++)
            r[a] = r[a] + d_lo[a];
#else
    for (int a = 0; a < 4; a++)
        w[a] = n[a] * fill(-LN2_LO);
    if (d_lo)
        for (int a = 0; a < 4; a++)
            w[a] = w[a] + d_lo[a];
    for (int a = 0; a < 4; a++)
        p[a] = r[a];
    for (int a = 0; a < 4; a++)
        r[a] = r[a] + w[a];
#endif
    for (int a = 0; a < 4; a++)
        q[a] = fma_(r[a], fill(q_[DEGREE]), fill(q_[DEGREE - 1]));
    for (int i = DEGREE - 2; i >= 0; i--)
        for (int a = 0; a < 4; a++)
            q[a] = fma_(r[a], q[a], fill(q_[i]));
    for (int a = 0; a < 4; a++)
#if REDUCTION_IN_ONE
        p[a] = fma_(r[a] * r[a], q[a], r[a]);
#else
        p[a] = p[a] + fma_(r[a] * r[a], q[a], w[a]);
#endif
    for (int a = 0; a < 4; a++)
        f[a] = from_bits(shift_left(bits(t[a]), MANTISSA));
}
