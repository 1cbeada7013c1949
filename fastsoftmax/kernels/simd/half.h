/* Elements to reals and back. float and double are what they are; bfloat16 is the upper half of a float;
 * float16 goes through integers. NATIVE_HALF: the instruction set has conversions of its own.
 * Stores round to nearest, ties to even; NaN stays NaN. */
#if defined DTYPE_f32 || defined DTYPE_f64
SIMD_INLINE vreal load_elem(const elem *p) { return load(p); }
SIMD_INLINE void store_elem(elem *p, vreal a) { store(p, a); }

#else
#if defined ISA_generic
SIMD_INLINE vint load_16(const elem *p) { return *p; }
SIMD_INLINE void store_16(elem *p, vint a) { *p = (elem)a; }
#else
typedef elem vhalf __attribute__((vector_size(2 * LANES)));
typedef elem vhalf_anywhere __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
#if !defined NATIVE_UNPACK                  /* 16 bits for each lane, and zeros above them */
SIMD_INLINE vint unpack(const elem *p) { return __builtin_convertvector(*(const vhalf_anywhere *)p, vint); }
#endif
SIMD_INLINE vint load_16(const elem *p) { return unpack(p); }
#if defined NATIVE_PACK                     /* 16 bits of each lane, side by side */
SIMD_INLINE void store_16(elem *p, vint a) { pack(p, a); }
#else
SIMD_INLINE void store_16(elem *p, vint a) { *(vhalf_anywhere *)p = __builtin_convertvector(a, vhalf); }
#endif
#endif

#if defined NATIVE_HALF
#elif defined DTYPE_bf16
SIMD_INLINE vreal load_elem(const elem *p) { return from_bits(shift_left(load_16(p), 16)); }
/* A NaN here is an element's or the processor's own: its lower half is zero, and nothing is carried into the sign. */
SIMD_INLINE void store_elem(elem *p, vreal a)
{
    vint b = bits(a);
    store_16(p, shift_in_zeros(b + 0x7fff + (shift_right(b, 16) & 1), 16));
}

#else
/* As a float of exponent 15 less, a float16's bits lie 13 places up; a product with 2**112 puts the
 * exponent right, and normalises subnormals on the way. */
SIMD_INLINE vreal load_elem(const elem *p)
{
    vint h = load_16(p), magnitude = shift_left(h & 0x7fff, 13);
    vint finite = bits(from_bits(magnitude) * broadcast(0x1p112f));
    vint special = magnitude | 0x7f800000;
    vint is_finite = select_bits(lt_bits(magnitude, broadcast_bits(0x7c00 << 13)), finite, special);
    return from_bits(is_finite | shift_left(h & 0x8000, 16));
}
SIMD_INLINE void store_elem(elem *p, vreal a)
{
    vint b = bits(a), m = b & 0x7fffffff;
    /* below 2**-14: adding 0.5 puts the float16's subnormal bits at the end of the float's, rounded */
    vint subnormal = bits(from_bits(m) + broadcast(0.5f)) - 0x3f000000;
    vint normal = shift_right(m + (shift_right(m, 13) & 1) + (0xfff - (112 << 23)), 13);
    vint h = select_bits(lt_bits(m, broadcast_bits(0x38800000)), subnormal, normal);
    h = select_bits(lt_bits(m, broadcast_bits(0x477ff000)), h, broadcast_bits(0x7c00));
    h = select_bits(lt_bits(broadcast_bits(0x7f800000), m), broadcast_bits(0x7e00), h);
    store_16(p, h | (shift_right(b, 16) & 0x8000));
}
#endif
#endif

/* LANES rows of TRANSPOSE_ROWS elements become TRANSPOSE_ROWS registers, one a column, and back. If registers are longer
 * than rows (HALVED), each is loaded with two rows. With 4 lanes and rows of 2 elements:
 *
 *   rows  a0 a1    registers, loaded  [a0 a1 c0 c1]    transposed  [a0 b0 c0 d0]
 *         b0 b1                       [b0 b1 d0 d1]                [a1 b1 c1 d1]
 *         c0 c1
 *         d0 d1
 */
#if defined HALVED
#define TRANSPOSE_ROWS (LANES / 2)
SIMD_INLINE void load_squares(const elem *x, ptrdiff_t stride, vreal *square)
{
    for (int r = 0; r < TRANSPOSE_ROWS; r++)
        square[r] = load_halves(x + r * stride, x + (r + TRANSPOSE_ROWS) * stride);
    transpose_rows(square, TRANSPOSE_ROWS);
}
SIMD_INLINE void transpose_squares(vreal *square) { transpose_rows(square, TRANSPOSE_ROWS); }
SIMD_INLINE void store_square_row(elem *y, const vreal *square, ptrdiff_t row)
{
    if (row < TRANSPOSE_ROWS)
        store_low(y, square[row]);
    else
        store_high(y, square[row - TRANSPOSE_ROWS]);
}
#else
#define TRANSPOSE_ROWS LANES
SIMD_INLINE void load_squares(const elem *x, ptrdiff_t stride, vreal *square)
{
    for (int r = 0; r < TRANSPOSE_ROWS; r++)
        square[r] = load_elem(x + r * stride);
    transpose(square);
}
SIMD_INLINE void transpose_squares(vreal *square) { transpose(square); }
SIMD_INLINE void store_square_row(elem *y, const vreal *square, ptrdiff_t row) { store_elem(y, square[row]); }
#endif

/* One element, for what is not done by the register. */
#if defined DTYPE_f16
#define ELEM_MINUS_INFINITY 0xfc00
#define LARGEST_ELEM 65504.0f
#elif defined DTYPE_bf16
#define ELEM_MINUS_INFINITY 0xff80
#define LARGEST_ELEM 0x1.fep127f
#else
#define ELEM_MINUS_INFINITY (-INFINITY)
#define LARGEST_ELEM LARGEST
#endif

/* All lanes are set: a load of a register of which only one lane was stored would wait for that store. */
SIMD_INLINE real real_of(const elem *p)
{
    elem copies[LANES];
    real lane[LANES];
    for (int i = 0; i < LANES; i++)
        copies[i] = *p;
    store(lane, load_elem(copies));
    return lane[0];
}

SIMD_INLINE elem elem_of(real a)
{
    elem lane[LANES];
    store_elem(lane, broadcast(a));
    return lane[0];
}
