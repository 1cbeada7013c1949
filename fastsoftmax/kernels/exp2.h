/* 2**y of one register, for the weights of attention: y <= 1.
 *
 * 2**y = 2**n * (1 + p), n = round(y), p = 2**r - 1 at r = y - n, which is exact. p = r*q(r), with q a minimax
 * polynomial (Remez exchange, weight about r / 2**r, computed in 200-bit arithmetic). Rounding to integer by a large
 * constant whose low bits also hold the exponent bias, so that a shift makes 2**n from it.
 *
 * Error: exp2_ at most 1.1e-7 relative for float, which is 0.9 ULP, and 2**-54 for double before the last rounding.
 * tanh_ subtracts 1 from it: it takes one power more for float, and p then has an error of 2 ULP of p.
 * Valid for every y <= 1: below LEAST_EXPONENT, -inf included, the result is 0. NaN gives NaN.
 */
#if REAL_BITS == 32
#define LEAST_EXPONENT (-127.0f)
#define LN2 0.693147180559945309417f
#define LN2_REST (-1.904654299957768e-09f)
static const real EXP2_Q[] = {
    0.693147f, 0.24022266f, 0.055507135f, 0.009670373f, 0.0013266493f,
};
static const real EXP2_EXACT_Q[] = {
    0.6931472243545659f, 0.2402265099744378f, 0.055502987484062224f, 0.009618043168680531f,
    0.001340957924390788f, 0.000154659847459772f,
};
#else
#define LEAST_EXPONENT (-1023.0)
#define LN2 0.693147180559945309417
#define LN2_REST 2.3190468138462996e-17
static const real EXP2_Q[] = {
    0x1.62e42fefa39efp-1, 0x1.ebfbdff82c5a4p-3, 0x1.c6b08d7049fe7p-5, 0x1.3b2ab6fba00c9p-7,
    0x1.5d87fe78cd97cp-10, 0x1.4309130eedd5bp-13, 0x1.ffcbfba8d5221p-17, 0x1.62bfc75e7b6dcp-20,
    0x1.b5267dc7c15dbp-24, 0x1.e61bca9e1ab6fp-28, 0x1.e79b3ddec41fbp-32,
};
#define EXP2_EXACT_Q EXP2_Q
#endif

/* f + p*f, f a power of two */
WORD void exp2_parts(vreal y, const real *q_, const int degree, vreal *p, vreal *f)
{
    const vreal magic = fill(ROUNDER + EXPONENT_BIAS);
    vreal t, r, q;
    y = vmax(fill(LEAST_EXPONENT), y);
    t = y + magic;
    r = y - (t - magic);
    q = fill(q_[degree]);
    for (int i = degree - 1; i >= 0; i--)
        q = fma_(r, q, fill(q_[i]));
    *p = r * q;
    *f = from_bits(shift_left(bits(t), MANTISSA));
}
#define EXP2_PARTS(y, q, p, f) exp2_parts(y, q, sizeof(q) / sizeof(real) - 1, p, f)

WORD vreal exp2_(vreal y)
{
    vreal p, f;
    EXP2_PARTS(y, EXP2_Q, &p, &f);
    return fma_(p, f, f);
}

/* tanh(a) = -e / (2 + e), e = exp(-2|a|) - 1 = (f - 1) + p*f: exact in its last digits near 0 too. */
WORD vreal tanh_(vreal a)
{
    vreal p, f, e;
    EXP2_PARTS(vabs(a) * fill((real)(-2 * LOG2E)), EXP2_EXACT_Q, &p, &f);
    e = fma_(p, f, f - fill(1));
    e = -e / (fill(2) + e);
    return choose(less(a, fill(0)), -e, e);
}
