/* exp of four registers at once, for softmax, as the two numbers whose sum it is.
 *
 * exp4(d): BASE * exp(d) = f + p * f, with a constant BASE that cancels in every result. Relative error of f + p * f: at
 * most 2**-27 for float, 2**-55 for double. Valid for limit <= d (see Shift), so that f is normal; NaN gives a NaN p.
 *
 * BASE * exp(d) = f + p * f, f = BASE * 2**(n / STEPS), n = round(STEPS * d / ln 2), p = exp(r) - 1 at
 * r = d - n ln 2 / STEPS.
 *
 * Method. Tang's (1989): the more steps between two powers of two, the smaller r, and with it the rounding errors of r
 * and p. With STEPS = 1 these alone are 0.6 ULP, in a weight and in the sum once more: results were up to 2.35 ULP off.
 * Without a fused multiply-add p * f is rounded before it is added to f. For double that was 0.02 ULP too many with two
 * steps; with four, p and what is lost of it are half as large.
 * 2**(k / STEPS) comes from a table. BASE is chosen so that all of its entries are reals to within 2**-28.4 (float),
 * 2**-64 or, with four steps, 2**-63.6 (double), found by trying every float, and some millions of doubles, between 1
 * and 2 (after Gal's accurate tables, 1986). ln 2 / STEPS is in two parts (Cody and Waite): n * STEP_HI is exact for
 * every n that occurs (13 bits by 11 for float, 14 by 39 for double), and so is its difference from d, because d is a
 * score as it stands in the array and not a rounded difference: see softmax/shift.pxi. p = r + r*r*q(r), with q a
 * minimax polynomial (Remez exchange, weight r*r / exp(r), computed in 240-bit arithmetic). STEPS * d / ln 2 is rounded
 * to an integer by adding a large constant, whose low bits also hold the exponent bias, so that a shift makes 2**n.
 *
 * RUN: elements of a row whose p*f are summed with rounding before they join an exact sum. Each partial sum takes four of
 * UNROLL elements; the sums of 8 * UNROLL may add 2**-25.9 relative for float, were all errors largest and of one sign.
 */
#if REAL_BITS == 32
#define STEPS 8
#define LOG2E 1.44269504088896341f
#define STEP_HI 0.086669921875f                 /* 1420 / 16384 */
#define STEP_LO (-2.65243050068e-5f)
#define ROUNDER 12582912.0f                     /* 1.5 * 2**23 */
#define MANTISSA 23
#define EXPONENT_BIAS 127
#define SCALE_BITS 64
#define SCALE 0x1p64f                           /* weights are kept multiplied by this: nothing is subnormal */
#define VANISHES (-106.0f)                      /* exp of it is below half of the smallest subnormal */
#define LARGE 256.0f                            /* a maximum beyond this is subtracted: exactly, see Shift */
#define HUGE_SCORE 0x1p100f
#define SHRINK 0x1p-14f                         /* keeps the largest differences small enough for two_prod_err */
#define RUN (8 * UNROLL)                        /* |p| < 0.045 */
#else
#define STEPS (FUSED ? 2 : 4)
#define LOG2E 1.44269504088896340736
#define STEP_HI (0x1.62e42fefa4000p-1 / STEPS)
#define STEP_LO (-0x1.8432a1b0e2634p-43 / STEPS)
#define ROUNDER 6755399441055744.0              /* 1.5 * 2**52 */
#define MANTISSA 52
#define EXPONENT_BIAS 1023
#define SCALE_BITS 512
#define SCALE 0x1p512
#define VANISHES (-748.0)
#define LARGE 2048.0
#define HUGE_SCORE 0x1p900
#define SHRINK 0x1p-53
#define RUN UNROLL                              /* |p| < 0.19, or 0.091 */
#endif

/* BASE * 2**(n / STEPS), n in the low bits of t. POWERS: the bits of BASE * 2**(k / STEPS) that shifting n does not give:
 * those of the mantissa beyond a straight line from 1 to 2. */
SIMD_INLINE vreal power_of(vint t)
{
#if REAL_BITS == 32
    static const ireal POWERS[STEPS] = {735806, 513060, 365058, 298565, 320958, 440282, 665310, 1005609};
    return from_bits(shift_left(t, MANTISSA - 3) + bits(table_lookup((const real *)POWERS, t)));
#else
    const vmask odd = lt_bits(shift_left(t, 63), broadcast_bits(0));
#if FUSED
    static const ireal POWERS[STEPS] = {745807135919264, 668382798001686};
    return from_bits(shift_left(t, MANTISSA - 1) + select_bits(odd, broadcast_bits(POWERS[1]),
                                                               broadcast_bits(POWERS[0])));
#else
    static const ireal POWERS[STEPS] = {778165415525100, 651613034570975, 714144315875320, 1001535233668209};
    const vmask upper = lt_bits(shift_left(t, 62), broadcast_bits(0));
    const vint low_two = select_bits(odd, broadcast_bits(POWERS[1]), broadcast_bits(POWERS[0]));
    const vint high_two = select_bits(odd, broadcast_bits(POWERS[3]), broadcast_bits(POWERS[2]));
    return from_bits(shift_left(t, MANTISSA - 2) + select_bits(upper, high_two, low_two));
#endif
#endif
}

/* d: four arguments. d_lo: what to add to them, or NULL. magic: ROUNDER plus STEPS times the exponent bias.
 * p, f: the results, exp = f + p * f. */
SIMD_INLINE void exp4(const vreal *d, const vreal *d_lo, const vreal *magic, vreal *p, vreal *f)
{
#if REAL_BITS == 32
    enum { DEGREE = 2 };
    const real q_[DEGREE + 1] = {0.50000001285360187f, 0.16668031315787589f, 0.041660407048071488f};
#else
    enum { DEGREE = 8 };
    const real q_[DEGREE + 1] = {
        0x1.0000000000000p-1, 0x1.5555555555507p-3, 0x1.5555555555896p-5, 0x1.11111111646f6p-7,
        0x1.6c16c169839dfp-10, 0x1.a019fa516add3p-13, 0x1.a01a1968648c1p-16, 0x1.722115f51f587p-19,
        0x1.27ad535b74c22p-22,
    };
#endif
    vreal t[4], n[4], r[4], q[4];
    for (int a = 0; a < 4; a++)
        t[a] = fma_(d[a], broadcast((real)(LOG2E * STEPS)), magic[a]);
    for (int a = 0; a < 4; a++)
        n[a] = t[a] - magic[a];
    for (int a = 0; a < 4; a++)
        f[a] = power_of(bits(t[a]));
    for (int a = 0; a < 4; a++)
        r[a] = fnma(n[a], broadcast(STEP_HI), d[a]);
    for (int a = 0; a < 4; a++)
        r[a] = fnma(n[a], broadcast(STEP_LO), r[a]);
    if (d_lo)
        for (int a = 0; a < 4; a++)
            r[a] = r[a] + d_lo[a];
#if REAL_BITS == 32
    for (int a = 0; a < 4; a++)
        q[a] = fma_(r[a], broadcast(q_[DEGREE]), broadcast(q_[DEGREE - 1]));
    for (int a = 0; a < 4; a++)
        q[a] = fma_(r[a], q[a], broadcast(q_[0]));
    for (int a = 0; a < 4; a++)
        p[a] = fma_(r[a] * r[a], q[a], r[a]);
#else
    /* Even and odd powers apart, each in steps of r*r: as many instructions, of which half as many wait for another. */
    vreal rr[4], odd[4];
    for (int a = 0; a < 4; a++)
        rr[a] = r[a] * r[a];
    for (int a = 0; a < 4; a++) {
        q[a] = fma_(rr[a], broadcast(q_[DEGREE]), broadcast(q_[DEGREE - 2]));
        odd[a] = fma_(rr[a], broadcast(q_[DEGREE - 1]), broadcast(q_[DEGREE - 3]));
    }
    for (int i = DEGREE - 4; i > 0; i -= 2)
        for (int a = 0; a < 4; a++) {
            q[a] = fma_(rr[a], q[a], broadcast(q_[i]));
            odd[a] = fma_(rr[a], odd[a], broadcast(q_[i - 1]));
        }
    for (int a = 0; a < 4; a++)
        q[a] = fma_(rr[a], q[a], broadcast(q_[0]));
    for (int a = 0; a < 4; a++)
        q[a] = fma_(r[a], odd[a], q[a]);
    for (int a = 0; a < 4; a++)
        p[a] = fma_(rr[a], q[a], r[a]);
#endif
}
