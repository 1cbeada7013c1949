/* 2**y of one register, for the weights of attention: y <= 1.
 *
 * 2**y = 2**n * (1 + p), n = round(y), p = 2**r - 1 at r = y - n, which is exact. p = r*q(r), with q a minimax
 * polynomial (Remez exchange, weight r / 2**r, computed in 200-bit arithmetic). Rounding to integer by a large
 * constant whose low bits also hold the exponent bias, so that a shift makes 2**n from it.
 *
 * Error of f + p*f: at most 2**-25 relative for float, 2**-54 for double; of p alone, as for expm1, a few ULP.
 * Valid for every y <= 1: below LEAST, -inf included, f is 0. NaN gives NaN.
 */
#if REAL_BITS == 32
#define LEAST (-127.0f)
#define LN2 0.693147180559945309417f
#define LN2_REST (-1.904654299957768e-09f)
#else
#define LEAST (-1023.0)
#define LN2 0.693147180559945309417
#define LN2_REST 2.3190468138462996e-17
#endif

WORD void exp2_parts(vreal y, vreal *p, vreal *f)
{
#if REAL_BITS == 32
    enum { DEGREE = 5 };
    const real q_[DEGREE + 1] = {
        0.6931472243545659f, 0.2402265099744378f, 0.055502987484062224f, 0.009618043168680531f,
        0.001340957924390788f, 0.000154659847459772f,
    };
#else
    enum { DEGREE = 10 };
    const real q_[DEGREE + 1] = {
        0x1.62e42fefa39efp-1, 0x1.ebfbdff82c5a4p-3, 0x1.c6b08d7049fe7p-5, 0x1.3b2ab6fba00c9p-7,
        0x1.5d87fe78cd97cp-10, 0x1.4309130eedd5bp-13, 0x1.ffcbfba8d5221p-17, 0x1.62bfc75e7b6dcp-20,
        0x1.b5267dc7c15dbp-24, 0x1.e61bca9e1ab6fp-28, 0x1.e79b3ddec41fbp-32,
    };
#endif
    const vreal magic = fill(ROUNDER + EXPONENT_BIAS);
    vreal t, r, rr, even, odd;
    y = vmax(fill(LEAST), y);
    t = y + magic;
    r = y - (t - magic);
    /* Even and odd powers apart: a shorter chain than Horner's, of which more are in flight at once. */
    rr = r * r;
    even = fill(q_[DEGREE & ~1]);
    for (int i = (DEGREE & ~1) - 2; i >= 0; i -= 2)
        even = fma_(rr, even, fill(q_[i]));
    odd = fill(q_[(DEGREE - 1) | 1]);
    for (int i = ((DEGREE - 1) | 1) - 2; i > 0; i -= 2)
        odd = fma_(rr, odd, fill(q_[i]));
    *p = r * fma_(r, odd, even);
    *f = from_bits(shift_left(bits(t), MANTISSA));
}

WORD vreal exp2_(vreal y)
{
    vreal p, f;
    exp2_parts(y, &p, &f);
    return fma_(p, f, f);
}

/* tanh(a) = -e / (2 + e), e = exp(-2|a|) - 1 = (f - 1) + p*f: exact in its last digits near 0 too. */
WORD vreal tanh_(vreal a)
{
    vreal p, f, e;
    exp2_parts(vabs(a) * fill((real)(-2 * LOG2E)), &p, &f);
    e = fma_(p, f, f - fill(1));
    e = -e / (fill(2) + e);
    return choose(less(a, fill(0)), -e, e);
}
