/* exp(x) - 1 of one number x <= 0, without cancellation near 0, and the type with more digits than a real.
 *
 * For float, x is a float, and the result is off by less than 2**-40 of itself: x = k * log(2) + r, |r| <= log(2) / 2;
 * the series of exp(r) - 1 to r**11; exp(x) - 1 = 2**k * (exp(r) - 1) + (2**k - 1), where cancellation loses at most a
 * bit. NaN gives NaN.
 */
#if REAL_BITS == 32
typedef double wider;

SIMD_INLINE double expm1_of(double x)
{
    const double shift = 0x1.8p52;              /* adding it rounds to an integer, in the lowest bits */
    const double at = x < -64 ? -64 : x, shifted = at * 0x1.71547652b82fep+0 + shift, k = shifted - shift;
    const double r = at - k * 0x1.62e42fefa39efp-1;
    uint64_t exponent;
    double scale;
    memcpy(&exponent, &shifted, sizeof exponent);
    exponent = (exponent + 1023) << 52;
    memcpy(&scale, &exponent, sizeof scale);
    double series = 1. / 39916800;
    series = series * r + 1. / 3628800;
    series = series * r + 1. / 362880;
    series = series * r + 1. / 40320;
    series = series * r + 1. / 5040;
    series = series * r + 1. / 720;
    series = series * r + 1. / 120;
    series = series * r + 1. / 24;
    series = series * r + 1. / 6;
    series = series * r + 1. / 2;
    series = r * r * series + r;
    return scale * series + (scale - 1);
}
#else
typedef long double wider;

SIMD_INLINE double expm1_of(double x) { return expm1(x); }
#endif
