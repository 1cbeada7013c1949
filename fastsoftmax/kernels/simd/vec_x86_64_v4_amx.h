/* x86-64-v4 with AMX, for bfloat16 alone. Its registers and words are those of v4; the products of attention's prefill
 * are taken by the matrix unit. Its eight registers, of 16 rows of 64 bytes, have no numbers that a program computes,
 * hence the branches below. */
#include "vec_x86_64_v4.h"

#define PAIRED 1
#define MATRIX_UNIT 1

/* Between these two the calling thread may multiply. Afterwards its registers are empty, and switches of threads do not
 * save them. */
SIMD_INLINE void matrix_begin(void)
{
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shape);
}
SIMD_INLINE void matrix_end(void) { _tile_release(); }

/* GCC does not know that tiles are loaded from memory, and stored to it. */
#define TILE_FENCE() __asm__ volatile("" : : : "memory")

/* Registers 0 to 2 have the scores of the first 16 keys, 3 to 5 those of the others. */
SIMD_INLINE void matrix_scores(int columns, const real *key, ptrdiff_t key_row, const real *query, ptrdiff_t count,
                               real *scores)
{
    const ptrdiff_t row = columns * LANES * sizeof(real), key_bytes = key_row * sizeof(real);
    real *others = scores + MATRIX_ROWS * columns * LANES;
    TILE_FENCE();
    _tile_zero(0);
    _tile_zero(3);
    if (columns > 1) {
        _tile_zero(1);
        _tile_zero(4);
    }
    if (columns > 2) {
        _tile_zero(2);
        _tile_zero(5);
    }
    for (ptrdiff_t t = 0; t < count; t++) {
        _tile_loadd(6, key, key_bytes);
        _tile_loadd(7, query, row);
        _tile_dpbf16ps(0, 6, 7);
        if (columns > 1) {
            _tile_loadd(7, query + LANES, row);
            _tile_dpbf16ps(1, 6, 7);
        }
        if (columns > 2) {
            _tile_loadd(7, query + 2 * LANES, row);
            _tile_dpbf16ps(2, 6, 7);
        }
        _tile_loadd(6, key + MATRIX_ROWS * key_row, key_bytes);
        if (columns > 2) {
            _tile_dpbf16ps(5, 6, 7);
            _tile_loadd(7, query + LANES, row);
        }
        if (columns > 1) {
            _tile_dpbf16ps(4, 6, 7);
            _tile_loadd(7, query, row);
        }
        _tile_dpbf16ps(3, 6, 7);
        key += MATRIX_PAIRS;
        query += MATRIX_PAIRS * columns * LANES;
    }
    _tile_stored(0, scores, row);
    _tile_stored(3, others, row);
    if (columns > 1) {
        _tile_stored(1, scores + LANES, row);
        _tile_stored(4, others + LANES, row);
    }
    if (columns > 2) {
        _tile_stored(2, scores + 2 * LANES, row);
        _tile_stored(5, others + 2 * LANES, row);
    }
    TILE_FENCE();
}

/* Registers 0 to 3 have the sums, 4 and 5 both parts of the weights, 6 and 7 values in turn. */
SIMD_INLINE void matrix_values(ptrdiff_t tiles, const real *value, ptrdiff_t value_step, const real *weights,
                               ptrdiff_t weight_row, ptrdiff_t count, real *sums, ptrdiff_t sums_row)
{
    enum { TILE = MATRIX_ROWS * MATRIX_PAIRS };
    const ptrdiff_t weight_bytes = 2 * weight_row * sizeof(real), sums_bytes = sums_row * sizeof(real);
    const ptrdiff_t value_bytes = MATRIX_PAIRS * sizeof(real);
    TILE_FENCE();
    _tile_zero(0);
    if (tiles > 1)
        _tile_zero(1);
    if (tiles > 2)
        _tile_zero(2);
    if (tiles > 3)
        _tile_zero(3);
    for (ptrdiff_t t = 0; t < count; t++) {
        _tile_loadd(4, weights, weight_bytes);
        _tile_loadd(5, weights + weight_row, weight_bytes);
        _tile_loadd(6, value, value_bytes);
        _tile_dpbf16ps(0, 6, 4);
        _tile_dpbf16ps(0, 6, 5);
        if (tiles > 1) {
            _tile_loadd(7, value + TILE, value_bytes);
            _tile_dpbf16ps(1, 7, 4);
            _tile_dpbf16ps(1, 7, 5);
        }
        if (tiles > 2) {
            _tile_loadd(6, value + 2 * TILE, value_bytes);
            _tile_dpbf16ps(2, 6, 4);
            _tile_dpbf16ps(2, 6, 5);
        }
        if (tiles > 3) {
            _tile_loadd(7, value + 3 * TILE, value_bytes);
            _tile_dpbf16ps(3, 7, 4);
            _tile_dpbf16ps(3, 7, 5);
        }
        value += value_step;
        weights += 2 * MATRIX_PAIRS * weight_row;
    }
    _tile_stored(0, sums, sums_bytes);
    if (tiles > 1)
        _tile_stored(1, sums + MATRIX_ROWS * sums_row, sums_bytes);
    if (tiles > 2)
        _tile_stored(2, sums + 2 * MATRIX_ROWS * sums_row, sums_bytes);
    if (tiles > 3)
        _tile_stored(3, sums + 3 * MATRIX_ROWS * sums_row, sums_bytes);
    TILE_FENCE();
}
