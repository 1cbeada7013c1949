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
SIMD_INLINE vproducts add_reals_at(vproducts sum, const real *a, const real *b) { return fma_(load(a), load(b), sum); }
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
SIMD_INLINE vproducts add_reals_at(vproducts sum, const real *a, const real *b) { return add_elements_at(sum, a, b); }
SIMD_INLINE vdd dd_join_products(vdd a, vproducts b) { return dd_join(a, b); }
#endif

/* One step of a dense row: x[0 .. count - 1] and g likewise, 1 <= count <= UNROLL, which `before` elements precede. Sums
 * of four products, or of g alone, join the running sums. If `hiding`, g is left out where x is `hidden`. */
SIMD_INLINE vreal load_part(const elem *x, ptrdiff_t count, ptrdiff_t before)
{
    return zero_from(before + count >= LANES ? load_last(x + count, count) : load_first(x, count), count);
}
typedef struct { vproducts products; vdd terms; } step_sum;
SIMD_INLINE step_sum add_to_step(int is_product, int hiding, real hidden, step_sum sum, vreal x, vreal g)
{
    if (hiding)
        g = zero_where(eq(x, broadcast(hidden)), g);
    if (is_product)
        sum.products = add_elements(sum.products, x, g);
    else
        sum.terms = dd_add_term(sum.terms, factor_of(g));
    return sum;
}
SIMD_INLINE void add_step(int is_product, int hiding, real hidden, const elem *x, const elem *g, ptrdiff_t count,
                          ptrdiff_t before, vdd *running)
{
    const ptrdiff_t rest = count % LANES, whole = count - rest;
    step_sum sum[PARTIAL_REGS];
    for (int v = 0; v < PARTIAL_REGS; v++)
        sum[v] = (step_sum){no_products(), dd_zero()};
#if defined __GNUC__
#pragma GCC unroll 16                       /* or the sums would be kept in memory */
#endif
    for (int r = 0; r < 4 * PARTIAL_REGS; r++) {
        const ptrdiff_t at = r * LANES;
        step_sum *to = &sum[r % PARTIAL_REGS];
        if (at >= whole)
            break;
        if (is_product && !hiding)
            to->products = add_elements_at(to->products, x + at, g + at);
        else
            *to = add_to_step(is_product, hiding, hidden, *to, load_elem(x + at), load_elem(g + at));
    }
    if (rest != 0) {
        const vreal x_ = load_part(x + whole, rest, before + whole), g_ = load_part(g + whole, rest, before + whole);
        for (int v = 0; v < PARTIAL_REGS; v++)
            if (whole / LANES % PARTIAL_REGS == v)
                sum[v] = add_to_step(is_product, hiding, hidden, sum[v], x_, g_);
    }
    for (int v = 0; v < PARTIAL_REGS; v++)
        running[v] = is_product ? dd_join_products(running[v], sum[v].products) : dd_join(running[v], sum[v].terms);
}
