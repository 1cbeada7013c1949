/* log(1 + z + c) in double, as the pair hi + lo; z >= 0, and c is at most an ULP of z.
 *
 * u = 1 + z = 2**k * (1 + g) with 1 + g between sqrt(1/2) and sqrt(2); what rounding u lost joins c.
 * log(1 + g) = g - g*g/2 + s * (g*g/2 + R(s*s)), s = g / (2 + g): the series of 2 atanh(s), whose tail R is a
 * minimax polynomial (Remez exchange in 200-bit arithmetic, error 2**-57 of the result).
 * Error of hi + lo: below 2**-57 relative for double kernels, 2**-52 for the others. NaN gives NaN.
 */
SIMD_INLINE void log1p_pair(vdouble z, vdouble c, vdouble *hi, vdouble *lo)
{
    const int64_t sqrt_half = 0x3fe6a09e667f3bcd, one = 0x3ff0000000000000;
    vdouble u = 1 + z, uu = u - 1;
    vdouble rounding = (1 - (u - uu)) + (z - uu);
    vlong k = ((long_bits(u) + (one - sqrt_half)) >> 52) - 1023;
    vdouble g = double_bits(long_bits(u) - (k << 52)) - 1;
    g = select_double(k == 0, z, g);
    c = select_double(k == 0, c, c + rounding) / u;     /* where k = 0, g is z, and nothing was lost */

    vdouble half_square = 0.5 * g * g, s = g / (2 + g), w = s * s;
    vdouble tail = w * (0.6666666666666670 + w * (0.3999999999989789 + w * (0.28571428626650863
                 + w * (0.22222211031875044 + w * (0.1818289619675807 + w * (0.1533149815911172
                 + w * 0.14619091909227452))))));
    vdouble first = g - half_square;
    vdouble second = ((g - first) - half_square) + s * (half_square + tail);
#if REAL_BITS == 64
    second = second - two_prod_err(0.5 * g, g, half_square);
#endif
    vdouble exponent = double_bits(k + 0x4338000000000000) - 0x1.8p52;
    vdouble ln2 = exponent * 0x1.62e42fefa3000p-1;
    vdouble sum = ln2 + first;
    *lo = (first - (sum - ln2)) + (second + (exponent * 0x1.3de6af278ece6p-42 + c));
    *hi = sum + *lo;
    *lo = *lo - (*hi - sum);
}
