/* Operations on GNU C's vector types, the same for all instruction sets, once VECTOR_BYTES is known.
 * GCC and Clang compile arithmetic, comparisons and conversions of these types to single instructions.
 */
#define LANES (8 * VECTOR_BYTES / REAL_BITS)
#define WIDTH (512 / REAL_BITS)

typedef real vreal __attribute__((vector_size(VECTOR_BYTES)));
typedef ireal vint __attribute__((vector_size(VECTOR_BYTES)));
typedef ubits vbits __attribute__((vector_size(VECTOR_BYTES)));
typedef vint vmask;                         /* all bits of a lane, or none */
typedef real vreal_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

WORD vreal load(const real *p) { return *(const vreal_anywhere *)p; }
WORD void store(real *p, vreal a) { *(vreal_anywhere *)p = a; }
WORD vreal fill(real a) { return a - (vreal){0}; }

WORD vint bits(vreal a) { return (vint)a; }
WORD vreal from_bits(vint a) { return (vreal)a; }
WORD vint fill_bits(ireal a) { return a - (vint){0}; }
WORD vint add_bits(vint a, ireal b) { return (vint)((vbits)a + (ubits)b); }
WORD vint shift_left(vint a, int n) { return a << n; }
WORD vint shift_right(vint a, int n) { return a >> n; }
WORD vint shift_in_zeros(vint a, int n) { return (vint)((vbits)a >> n); }

WORD vmask less(vreal a, vreal b) { return a < b; }
WORD vmask equal(vreal a, vreal b) { return a == b; }
WORD vmask less_bits(vint a, vint b) { return a < b; }
WORD vmask both(vmask a, vmask b) { return a & b; }
WORD vmask either(vmask a, vmask b) { return a | b; }
WORD vreal keep_where(vmask m, vreal a) { return (vreal)(m & (vint)a); }      /* a or zero */
WORD vreal leave_where(vmask m, vreal a) { return (vreal)(~m & (vint)a); }    /* zero or a */
WORD vint choose_bits(vmask m, vint a, vint b) { return (m & a) | (~m & b); }
WORD vreal choose(vmask m, vreal a, vreal b) { return (vreal)choose_bits(m, (vint)a, (vint)b); }

typedef vint vcount;                        /* how often something was true, a lane */
WORD vcount no_count(void) { return (vint){0}; }
WORD vcount count_where(vmask m, vcount a) { return a - m; }
WORD vreal real_count(vcount a) { return __builtin_convertvector(a, vreal); }

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
WORD vreal shuffle_pair(vreal a, vreal b, vint order)
{
    vreal c;
    for (int k = 0; k < LANES; k++)
        c[k] = order[k] < LANES ? a[order[k] & (LANES - 1)] : b[order[k] & (LANES - 1)];
    return c;
}
#else
#define shuffle_pair(a, b, order) __builtin_shuffle(a, b, order)
#endif

#if REAL_BITS == 32 && LANES == 4
/* table[index mod 8] of each lane. Longer registers have an instruction for it. */
WORD vreal look_up(const real *table, vint index) { return shuffle_pair(load(table), load(table + 4), index & 7); }
#endif

/* The largest lane; no lane may be NaN. Each instruction set has its vmax after this header. */
WORD vreal vmax(vreal a, vreal b);
WORD vreal exchange_reals(vreal a, const int distance)
{
    const vint lane = LANE_NUMBERS;
    return shuffle_pair(a, a, lane ^ distance);
}
WORD real hmax(vreal a)
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
WORD void exchange_blocks(vreal *rows, const int s, const int count)
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
WORD void transpose_fours(vreal *rows, const int count)
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
WORD void transpose_rows(vreal *rows, const int count)
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
WORD void transpose(vreal *rows) { transpose_rows(rows, LANES); }

/* rows: LANES registers; lane i of the result is the sum of the lanes of rows[i]. */
WORD void add_blocks(vreal *rows, const int s)
{
    const vint lane = LANE_NUMBERS, odd_block = (lane & s) != 0;
    const vint even = lane + (odd_block & (LANES - s)), odd = lane + s + (odd_block & (LANES - s));
    for (int i = 0; i < LANES / s; i += 2)
        rows[i / 2] = shuffle_pair(rows[i], rows[i + 1], even) + shuffle_pair(rows[i], rows[i + 1], odd);
}

#if REAL_BITS == 32
/* The first two steps of sums_of, within squares of four: as with transpose_fours, x86 has an instruction for each of
 * these orders. */
WORD void add_neighbours(vreal *rows, const int count)
{
    const vint lane = LANE_NUMBERS, even = (lane & ~3) + (lane & 1) * 2 + (lane & 2) / 2 * LANES;
    for (int i = 0; i < count; i += 2)
        rows[i / 2] = shuffle_pair(rows[i], rows[i + 1], even) + shuffle_pair(rows[i], rows[i + 1], even + 1);
}
#endif

WORD vreal sums_of(vreal *rows)
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
