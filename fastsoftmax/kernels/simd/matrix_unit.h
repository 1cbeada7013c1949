/* A matrix unit: its registers hold 16 rows of 16 reals or pairs of bfloat16 numbers, and one instruction adds the
 * product of two of them to a third. MATRIX_UNIT is 1 where the instruction set has one and elements are bfloat16, and
 * prefill uses it there; elsewhere these words are compiled and dropped.
 *
 * matrix_scores: scores of 32 keys and of `columns` registers of queries; count * 16 pairs in a row.
 *
 *   scores[j][c] = sum over p of pair p of key + j * key_row times register c of row p of `query`
 *
 * matrix_values: weights of 32 * count keys, for one register of queries, and 16 * tiles elements of values, with
 * tiles <= MATRIX_TILES. A weight is the sum of two numbers. Pair p of keys has the first ones at
 * weights + 2 * p * weight_row, the second ones a weight_row after them. value[t][tile][16 elements][16 pairs of keys],
 * the t value_step apart.
 *
 *   register at sums + e * sums_row = sum over p of pair p of element e times the pairs p of weights
 *
 * Of 16 pairs, the products of the first numbers are added with one rounding each, those of the second likewise; then
 * the two sums, and that to the sum of those before. Whatever is below 2**-126 counts as 0.
 */
enum { MATRIX_TILES = 4 };
#if !defined MATRIX_UNIT
#define MATRIX_UNIT 0
SIMD_INLINE void matrix_begin(void) { }
SIMD_INLINE void matrix_end(void) { }
SIMD_INLINE void matrix_scores(int columns, const real *key, ptrdiff_t key_row, const real *query, ptrdiff_t count,
                               real *scores)
{
    (void)columns, (void)key, (void)key_row, (void)query, (void)count, (void)scores;
}
SIMD_INLINE void matrix_values(ptrdiff_t tiles, const real *value, ptrdiff_t value_step, const real *weights,
                               ptrdiff_t weight_row, ptrdiff_t count, real *sums, ptrdiff_t sums_row)
{
    (void)tiles, (void)value, (void)value_step, (void)weights, (void)weight_row, (void)count, (void)sums;
    (void)sums_row;
}
#endif
