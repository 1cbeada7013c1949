/* Operations on GNU C's vector types, the same for all instruction sets, once VECTOR_BYTES is known.
 * GCC and Clang compile arithmetic, comparisons and conversions of these types to single instructions.
 */
#define LANES (8 * VECTOR_BYTES / REAL_BITS)
#define PARTIALS (512 / REAL_BITS)

typedef real vreal __attribute__((vector_size(VECTOR_BYTES)));
typedef ireal vint __attribute__((vector_size(VECTOR_BYTES)));
typedef ubits vbits __attribute__((vector_size(VECTOR_BYTES)));
typedef vint vmask;                         /* all bits of a lane, or none */
typedef real vreal_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

SIMD_INLINE vreal load(const real *p) { return *(const vreal_anywhere *)p; }
SIMD_INLINE void store(real *p, vreal a) { *(vreal_anywhere *)p = a; }
SIMD_INLINE vreal broadcast(real a) { return a - (vreal){0}; }

SIMD_INLINE vint bits(vreal a) { return (vint)a; }
SIMD_INLINE vreal from_bits(vint a) { return (vreal)a; }
SIMD_INLINE vint broadcast_bits(ireal a) { return a - (vint){0}; }
SIMD_INLINE vint add_bits(vint a, ireal b) { return (vint)((vbits)a + (ubits)b); }
SIMD_INLINE vint shift_left(vint a, int n) { return a << n; }
SIMD_INLINE vint shift_right(vint a, int n) { return a >> n; }
SIMD_INLINE vint shift_in_zeros(vint a, int n) { return (vint)((vbits)a >> n); }

SIMD_INLINE vmask lt(vreal a, vreal b) { return a < b; }
SIMD_INLINE vmask eq(vreal a, vreal b) { return a == b; }
SIMD_INLINE vmask lt_bits(vint a, vint b) { return a < b; }
SIMD_INLINE vmask both(vmask a, vmask b) { return a & b; }
SIMD_INLINE vmask either(vmask a, vmask b) { return a | b; }
SIMD_INLINE vreal select_or_zero(vmask m, vreal a) { return (vreal)(m & (vint)a); } /* a or zero */
SIMD_INLINE vreal zero_where(vmask m, vreal a) { return (vreal)(~m & (vint)a); } /* zero or a */
SIMD_INLINE vint select_bits(vmask m, vint a, vint b) { return (m & a) | (~m & b); }
SIMD_INLINE vreal vselect(vmask m, vreal a, vreal b) { return (vreal)select_bits(m, (vint)a, (vint)b); }

typedef vint vcount;                        /* how often something was true, a lane */
SIMD_INLINE vcount no_count(void) { return (vint){0}; }
SIMD_INLINE vcount count_where(vmask m, vcount a) { return a - m; }
SIMD_INLINE vreal real_count(vcount a) { return __builtin_convertvector(a, vreal); }

#if LANES == 2
#define LANE_NUMBERS {0, 1}
#elif LANES == 4
#define LANE_NUMBERS {0, 1, 2, 3}
#elif LANES == 8
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7}
#elif LANES == 16
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#endif

#if defined __clang__                       /* which has no shuffle by a vector, but sees through this */
SIMD_INLINE vreal shuffle_pair(vreal a, vreal b, vint order)
{
    vreal c;
    for (int k = 0; k < LANES; k++)
        c[k] = order[k] < LANES ? a[order[k] & (LANES - 1)] : b[order[k] & (LANES - 1)];
    return c;
}
#else
#define shuffle_pair(a, b, order) __builtin_shuffle(a, b, order)
#endif

/* The largest lane; no lane may be NaN. Each instruction set has its vmax after this header. */
SIMD_INLINE vreal vmax(vreal a, vreal b);
SIMD_INLINE vreal exchange_reals(vreal a, const int distance)
{
    const vint lane = LANE_NUMBERS;
    return shuffle_pair(a, a, lane ^ distance);
}
SIMD_INLINE real hmax(vreal a)
{
#if LANES > 8
    a = vmax(a, exchange_reals(a, 8));
#endif
#if LANES > 4
    a = vmax(a, exchange_reals(a, 4));
#endif
#if LANES > 2
    a = vmax(a, exchange_reals(a, 2));
#endif
    a = vmax(a, exchange_reals(a, 1));
    return a[0];
}

/* One step of a transposition: the off-diagonal blocks of s lanes and rows change places. */
SIMD_INLINE void exchange_blocks(vreal *rows, const int s, const int count)
{
    const vint lane = LANE_NUMBERS, odd_block = (lane & s) != 0;
    const vint even = lane + (odd_block & (LANES - s)), odd = lane + s + (odd_block & (LANES - s));
    for (int i = 0; i < count; i++)
        if (!(i & s)) {
            vreal a = rows[i], b = rows[i + s];
            rows[i] = shuffle_pair(a, b, even);
            rows[i + s] = shuffle_pair(a, b, odd);
        }
}

#if REAL_BITS == 32
/* The first two steps at once, in squares of four: rows a to d become columns. x86 has an instruction for each of
 * these orders, and none for those of exchange_blocks(rows, 1). */
SIMD_INLINE void transpose_fours(vreal *rows, const int count)
{
    const vint lane = LANE_NUMBERS, of_b = (lane & 1) * LANES, of_c = (lane & 2) / 2 * LANES;
    const vint interleaved = (lane & ~3) + (lane & 2) / 2 + of_b, halves = (lane & ~2) + of_c;
    for (int i = 0; i < count; i += 4) {
        vreal ab01 = shuffle_pair(rows[i], rows[i + 1], interleaved);
        vreal ab23 = shuffle_pair(rows[i], rows[i + 1], interleaved + 2);
        vreal cd01 = shuffle_pair(rows[i + 2], rows[i + 3], interleaved);
        vreal cd23 = shuffle_pair(rows[i + 2], rows[i + 3], interleaved + 2);
        rows[i] = shuffle_pair(ab01, cd01, halves);
        rows[i + 1] = shuffle_pair(ab01, cd01, halves + 2);
        rows[i + 2] = shuffle_pair(ab23, cd23, halves);
        rows[i + 3] = shuffle_pair(ab23, cd23, halves + 2);
    }
}
#endif

/* rows: `count` registers, the rows of LANES / count squares side by side; afterwards their columns. */
SIMD_INLINE void transpose_rows(vreal *rows, const int count)
{
#if REAL_BITS == 32
    transpose_fours(rows, count);
#else
    exchange_blocks(rows, 1, count);
    if (count > 2)
        exchange_blocks(rows, 2, count);
#endif
    if (count > 4)
        exchange_blocks(rows, 4, count);
    if (count > 8)
        exchange_blocks(rows, 8, count);
}

/* rows: LANES registers, the rows of a square; afterwards its columns. */
SIMD_INLINE void transpose(vreal *rows) { transpose_rows(rows, LANES); }

/* rows: LANES registers; lane i of the result is the sum of the lanes of rows[i]. */
SIMD_INLINE void add_blocks(vreal *rows, const int s)
{
    const vint lane = LANE_NUMBERS, odd_block = (lane & s) != 0;
    const vint even = lane + (odd_block & (LANES - s)), odd = lane + s + (odd_block & (LANES - s));
    for (int i = 0; i < LANES / s; i += 2)
        rows[i / 2] = shuffle_pair(rows[i], rows[i + 1], even) + shuffle_pair(rows[i], rows[i + 1], odd);
}

#if REAL_BITS == 32
/* The first two steps of sums_of, within squares of four: as with transpose_fours, x86 has an instruction for each of
 * these orders. */
SIMD_INLINE void add_neighbours(vreal *rows, const int count)
{
    const vint lane = LANE_NUMBERS, even = (lane & ~3) + (lane & 1) * 2 + (lane & 2) / 2 * LANES;
    for (int i = 0; i < count; i += 2)
        rows[i / 2] = shuffle_pair(rows[i], rows[i + 1], even) + shuffle_pair(rows[i], rows[i + 1], even + 1);
}
#endif

SIMD_INLINE vreal sums_of(vreal *rows)
{
#if REAL_BITS == 32
    add_neighbours(rows, LANES);
    add_neighbours(rows, LANES / 2);
#else
    add_blocks(rows, 1);
#if LANES > 2
    add_blocks(rows, 2);
#endif
#endif
#if LANES > 4
    add_blocks(rows, 4);
#endif
#if LANES > 8
    add_blocks(rows, 8);
#endif
    return rows[0];
}
