/* exp of several registers at once, for softmax, as the two numbers whose sum it is.
 *
 * exp_regs(d): BASE * exp(d) = f + p * f, with a constant BASE that cancels in every result. Relative error of f + p * f:
 * at most 2**-27 for float (2**-26 with four steps), 2**-55 for double. Valid for limit <= d (see Shift), so that f is
 * normal; NaN gives a NaN p.
 *
 * BASE * exp(d) = f + p * f, f = BASE * 2**n, n = round(STEPS * d / ln 2) / STEPS, p = exp(r) - 1 at r = d - n ln 2.
 *
 * Method. Tang's (1989): the more steps between two powers of two, the smaller r, and with it the rounding errors of r
 * and p. With STEPS = 1 these alone are 0.6 ULP, in a weight and in the sum once more: results were up to 2.35 ULP off.
 * float has eight steps, or four where FOUR_STEPS says that a look-up among four numbers takes less time.
 * Without a fused multiply-add p * f is rounded before it is added to f. For double that was 0.02 ULP too many with two
 * steps; with four, p and what is lost of it are half as large.
 * 2**(k / STEPS) comes from a table. BASE is chosen so that all of its entries are reals to within 2**-28.4 (float;
 * 2**-31.2 with four steps), 2**-64 or, with four steps, 2**-63.6 (double), found by trying every float, and some
 * millions of doubles, between 1 and 2 (after Gal's accurate tables, 1986). ln 2 is in two parts (Cody and Waite):
 * n * LN2_FIRST is exact for every n that occurs (13 bits by 9 for float, 14 by 39 for double), and so is its difference
 * from d, because d is a score as it stands in the array and not a rounded difference: see softmax/shift.pxi.
 * p = r + r*r*q(r), with q a minimax polynomial (Remez exchange, weight r*r / exp(r), computed in 240-bit arithmetic; by
 * linear programming on 1200 points for four steps). d / ln 2 is rounded to 1 / STEPS by adding a large constant, whose
 * low bits also hold the exponent bias, so that a shift makes 2**n.
 * Where an instruction multiplies by 2**n (NATIVE_SCALE), it does that for plain rows. f is the same.
 *
 * RUN: elements of a row whose p*f are summed with rounding before they join an exact sum. Each partial sum takes four of
 * UNROLL elements; the sums of 8 * UNROLL may add 2**-25.9 relative for float, were all errors largest and of one sign,
 * and 2**-23.4 with four steps and ADDS_TERMS. No such row was found, not among rows of equal or the largest p either.
 */
#if REAL_BITS == 32
#if defined FOUR_STEPS
#define STEPS 4
#define STEP_BITS 2
#else
#define STEPS 8
#define STEP_BITS 3
#endif
#define LOG2E 1.44269504088896341f
#define LN2_FIRST 0.693359375f                  /* 355 / 512 */
#define LN2_REST (-2.12194440054e-4f)
#define ROUNDER 12582912.0f                     /* 1.5 * 2**23 */
#define MANTISSA 23
#define EXPONENT_BIAS 127
#define SCALE_BITS 64
#define SCALE 0x1p64f                           /* weights are kept multiplied by this: nothing is subnormal */
#define VANISHES (-106.0f)                      /* exp of it is below half of the smallest subnormal */
#define LARGE 256.0f                            /* a maximum beyond this is subtracted: exactly, see Shift */
#define HUGE_SCORE 0x1p100f
#define SHRINK 0x1p-14f                         /* keeps the largest differences small enough for two_prod_err */
#define RUN (8 * UNROLL)                        /* |p| < 0.045, or 0.091 */
#if defined NATIVE_SCALE
#define PLAIN 40.0f                             /* |base| below this: SCALE * exp(-base) is a normal float */
#else
#define PLAIN LARGE                             /* no center, see Shift */
#endif
#else
#define STEPS (FUSED ? 2 : 4)
#define LOG2E 1.44269504088896340736
#define LN2_FIRST 0x1.62e42fefa4000p-1
#define LN2_REST (-0x1.8432a1b0e2634p-43)
#define ROUNDER 6755399441055744.0              /* 1.5 * 2**52 */
#define MANTISSA 52
#define EXPONENT_BIAS 1023
#define SCALE_BITS 512
#define SCALE 0x1p512
#define VANISHES (-748.0)
#define LARGE 2048.0
#define PLAIN LARGE
#define HUGE_SCORE 0x1p900
#define SHRINK 0x1p-53
#define RUN UNROLL                              /* |p| < 0.19, or 0.091 */
#endif
#define REACH 4.5                               /* scores are less than this above the base: see softmax/shift.pxi */
#define FAR 60                                  /* two bases of a row are less than this apart, and their weights 2**88 */
enum { MAX_EXP = 4 * STEPS_AT_ONCE };

/* The number that rounds d / ln 2 to 1 / STEPS when it is added. Its low bits hold the exponent bias, which divides the
 * results by 2**exponent and multiplies them by SCALE. */
SIMD_INLINE vreal rounder_of(vreal exponent)
{
    return broadcast(ROUNDER / STEPS + (EXPONENT_BIAS + SCALE_BITS)) - exponent;
}

/* The scaled BASE * 2**n, n in the low bits of t. POWERS: the bits of BASE * 2**(k / STEPS) that shifting n does not give:
 * those of the mantissa beyond a straight line from 1 to 2. */
SIMD_INLINE vreal power_of(vint t)
{
#if REAL_BITS == 32
#if STEPS == 4
    static const ireal POWERS[STEPS] = {242838, -221183, -376204, -163760};
#else
    static const ireal POWERS[STEPS] = {735806, 513060, 365058, 298565, 320958, 440282, 665310, 1005609};
#endif
    return from_bits(shift_left(t, MANTISSA - STEP_BITS) + bits(table_lookup((const real *)POWERS, t)));
#elif FUSED
    static const ireal POWERS[STEPS] = {745807135919264, 668382798001686};
    const vmask odd = lt_bits(shift_left(t, 63), broadcast_bits(0));
    return from_bits(shift_left(t, MANTISSA - 1) + select_bits(odd, broadcast_bits(POWERS[1]),
                                                               broadcast_bits(POWERS[0])));
#else
    static const ireal POWERS[STEPS] = {778165415525100, 651613034570975, 714144315875320, 1001535233668209};
    return from_bits(shift_left(t, MANTISSA - 2) + bits(table_lookup((const real *)POWERS, t)));
#endif
}

/* The same where `rounder` is that of one row whose base is below PLAIN in size; n = t - rounder. The scaled
 * table stays in its register. */
#if defined NATIVE_SCALE
SIMD_INLINE vreal power_of_plain(vreal t, vreal n, vreal rounder)
{
    static const ireal POWERS[16] = {           /* BASE * 2**(k / 8), twice */
        0x3f8b3a3e, 0x3f97d424, 0x3fa59202, 0x3fb48e45, 0x3fc4e5be, 0x3fd6b7da, 0x3fea26de, 0x3fff5829,
        0x3f8b3a3e, 0x3f97d424, 0x3fa59202, 0x3fb48e45, 0x3fc4e5be, 0x3fd6b7da, 0x3fea26de, 0x3fff5829,
    };
    const vreal exponent = rounder - broadcast(ROUNDER / STEPS + EXPONENT_BIAS);
    return scale(permute(scale(load((const real *)POWERS), exponent), bits(t)), n);
}
#else
SIMD_INLINE vreal power_of_plain(vreal t, vreal n, vreal rounder) { return (void)n, (void)rounder, power_of(bits(t)); }
#endif

/* d: `count` <= MAX_EXP arguments. d_lo: what to add to them, or NULL. rounder: see rounder_of. plain: whether all are of
 * one row whose base is below PLAIN in size. p, f: the results, exp = f + p * f. */
SIMD_INLINE void exp_regs(const int count, const vreal *d, const vreal *d_lo, const vreal *rounder, const int plain,
                          vreal *p, vreal *f)
{
#if REAL_BITS == 32
    enum { DEGREE = 2 };
#if STEPS == 4
    const real q_[DEGREE + 1] = {0.50000020381957234f, 0.16672103060644796f, 0.041641758487224076f};
#else
    const real q_[DEGREE + 1] = {0.50000001285360187f, 0.16668031315787589f, 0.041660407048071488f};
#endif
#else
    enum { DEGREE = 8 };
    const real q_[DEGREE + 1] = {
        0x1.0000000000000p-1, 0x1.5555555555507p-3, 0x1.5555555555896p-5, 0x1.11111111646f6p-7,
        0x1.6c16c169839dfp-10, 0x1.a019fa516add3p-13, 0x1.a01a1968648c1p-16, 0x1.722115f51f587p-19,
        0x1.27ad535b74c22p-22,
    };
#endif
    vreal t[MAX_EXP], n[MAX_EXP], r[MAX_EXP], q[MAX_EXP];
    for (int a = 0; a < count; a++)
        t[a] = fma_(d[a], broadcast(LOG2E), rounder[a]);
    for (int a = 0; a < count; a++)
        n[a] = t[a] - rounder[a];
    for (int a = 0; a < count; a++)
        f[a] = plain ? power_of_plain(t[a], n[a], rounder[a]) : power_of(bits(t[a]));
    for (int a = 0; a < count; a++)
        r[a] = fnma(n[a], broadcast(LN2_FIRST), d[a]);
    for (int a = 0; a < count; a++)
        r[a] = fnma(n[a], broadcast(LN2_REST), r[a]);
    if (d_lo)
        for (int a = 0; a < count; a++)
            r[a] = r[a] + d_lo[a];
#if REAL_BITS == 32
    for (int a = 0; a < count; a++)
        q[a] = fma_(r[a], broadcast(q_[DEGREE]), broadcast(q_[DEGREE - 1]));
    for (int a = 0; a < count; a++)
        q[a] = fma_(r[a], q[a], broadcast(q_[0]));
    for (int a = 0; a < count; a++)
        p[a] = fma_(r[a] * r[a], q[a], r[a]);
#else
    /* Even and odd powers apart, each in steps of r*r: as many instructions, of which half as many wait for another. */
    vreal rr[MAX_EXP], odd[MAX_EXP];
    for (int a = 0; a < count; a++)
        rr[a] = r[a] * r[a];
    for (int a = 0; a < count; a++) {
        q[a] = fma_(rr[a], broadcast(q_[DEGREE]), broadcast(q_[DEGREE - 2]));
        odd[a] = fma_(rr[a], broadcast(q_[DEGREE - 1]), broadcast(q_[DEGREE - 3]));
    }
    for (int i = DEGREE - 4; i > 0; i -= 2)
        for (int a = 0; a < count; a++) {
            q[a] = fma_(rr[a], q[a], broadcast(q_[i]));
            odd[a] = fma_(rr[a], odd[a], broadcast(q_[i - 1]));
        }
    for (int a = 0; a < count; a++)
        q[a] = fma_(rr[a], q[a], broadcast(q_[0]));
    for (int a = 0; a < count; a++)
        q[a] = fma_(r[a], odd[a], q[a]);
    for (int a = 0; a < count; a++)
        p[a] = fma_(rr[a], q[a], r[a]);
#endif
}
