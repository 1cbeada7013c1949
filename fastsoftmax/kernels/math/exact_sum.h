/* Sums of products of any sign, where the rounding errors of reals would show. A running sum is a vdd.
 *
 * For float, factors are doubles, whose products are exact, and so a sum of n terms is off by at most n * 2**-53 of the
 * sum of their sizes. For double, hi is the running sum, and lo adds up what hi has lost: the errors of the products
 * (Dekker) and of the additions (Knuth), rounded to doubles: n * 2**-106. hi and lo are made a double-double by
 * dd_end. An infinite term has no error, but NaN is computed for it, so lo is then left out.
 */
SIMD_INLINE vreal finite_or_none(vreal rest)
{
    return vselect(lt(vabs(rest), broadcast((real)INFINITY)), rest, broadcast(0));
}

#if REAL_BITS == 32
typedef vdd vfactor;
SIMD_INLINE vfactor factor_of(vreal a) { return dd_from(a); }
SIMD_INLINE vdd dd_add_term(vdd sum, vfactor a) { return dd_add(sum, a); }
SIMD_INLINE vdd dd_add_product(vdd sum, vfactor a, vfactor b)
{
    EACH_PART sum.part[i] = fma_double(a.part[i], b.part[i], sum.part[i]);
    return sum;
}
/* The same where the rounding of the product does not matter. */
SIMD_INLINE vdd dd_add_small_product(vdd sum, vfactor a, vfactor b) { return dd_add_product(sum, a, b); }
SIMD_INLINE vdd dd_join(vdd a, vdd b) { return dd_add(a, b); }
SIMD_INLINE vdd dd_end(vdd sum) { return sum; }
#else
typedef vreal vfactor;
SIMD_INLINE vfactor factor_of(vreal a) { return a; }
SIMD_INLINE vdd dd_add_term(vdd sum, vfactor a)
{
    add_to(&sum.hi, &sum.lo, a);
    return sum;
}
SIMD_INLINE vdd dd_add_product(vdd sum, vfactor a, vfactor b)
{
    const vreal product = a * b, hi = sum.hi + product, added = hi - sum.hi;
#if FUSED                                   /* product - added, which is exact, and the error of the product, at once */
    const vreal rest = fma_(a, b, -added);
#else
    const vreal rest = (product - added) + two_prod_err(a, b, product);
#endif
    return (vdd){hi, sum.lo + ((sum.hi - (hi - added)) + rest)};
}
SIMD_INLINE vdd dd_add_small_product(vdd sum, vfactor a, vfactor b) { return (vdd){sum.hi, fma_(a, b, sum.lo)}; }
SIMD_INLINE vdd dd_join(vdd a, vdd b)
{
    add_to(&a.hi, &a.lo, b.hi);
    a.lo = a.lo + b.lo;
    return a;
}
SIMD_INLINE vdd dd_end(vdd sum) { return dd_of_sum(sum.hi, finite_or_none(sum.lo)); }
#endif

/* A register of elements as factors. */
#if defined DTYPE_f32 && !defined ISA_generic
SIMD_INLINE vfactor load_factor(const elem *p) { return (vfactor){{widen_at(p), widen_at(p + LANES / 2)}}; }
#else
SIMD_INLINE vfactor load_factor(const elem *p) { return factor_of(load_elem(p)); }
#endif

/* Up to four products of elements. Those of 16-bit elements are exact as floats, and four are added as floats, which
 * takes an eighth of the conversions: the sum is off by 2**-22 of their sizes, where results are rounded to 2**-8 or
 * 2**-11. */
#if defined DTYPE_f16 || defined DTYPE_bf16
typedef vreal vproducts;
SIMD_INLINE vproducts no_products(void) { return broadcast(0); }
SIMD_INLINE vproducts add_elements(vproducts sum, vreal a, vreal b) { return fma_(a, b, sum); }
SIMD_INLINE vproducts add_elements_at(vproducts sum, const elem *a, const elem *b)
{
    return fma_(load_elem(a), load_elem(b), sum);
}
SIMD_INLINE vdd dd_join_products(vdd a, vproducts b) { return dd_add_term(a, factor_of(b)); }
#else
typedef vdd vproducts;
SIMD_INLINE vproducts no_products(void) { return dd_zero(); }
SIMD_INLINE vproducts add_elements(vproducts sum, vreal a, vreal b)
{
    return dd_add_product(sum, factor_of(a), factor_of(b));
}
SIMD_INLINE vproducts add_elements_at(vproducts sum, const elem *a, const elem *b)
{
    return dd_add_product(sum, load_factor(a), load_factor(b));
}
SIMD_INLINE vdd dd_join_products(vdd a, vproducts b) { return dd_join(a, b); }
#endif
