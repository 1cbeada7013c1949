/* The rounding error of a product, without a fused multiply-add: each factor is split in halves whose products are exact
 * (Veltkamp; Dekker, 1971). Factors beyond 2**(range - mantissa/2) overflow the split and give NaN; the callers' factors
 * are scores and inverse temperatures, checked to be far below. */
SIMD_INLINE vreal two_prod_err(vreal a, vreal b, vreal product)
{
    const real splitter = REAL_BITS == 32 ? 4097 : 134217729;
    vreal t = broadcast(splitter) * a, u = broadcast(splitter) * b;
    vreal a1 = t - (t - a), b1 = u - (u - b), a2 = a - a1, b2 = b - b1;
    return ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2;
}

/* a * (hi + lo), rounded nearly as once. a contains the factor SCALE, and hi its inverse, so hi can be scaled up: then the
 * parts of the error are not subnormal where the result is. */
SIMD_INLINE vreal mul_dd(vreal a, vreal hi, vreal lo)
{
    const real up = REAL_BITS == 32 ? 0x1p64 : 0x1p512;
    vreal product = a * (hi * broadcast(up));
    return (product + (two_prod_err(a, hi * broadcast(up), product) + a * (lo * broadcast(up)))) * broadcast(1 / up);
}
