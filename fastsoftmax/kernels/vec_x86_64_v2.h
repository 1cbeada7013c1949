/* x86-64-v2: SSE up to 4.2, 16-byte registers, no fused multiply-add; the wheel's baseline. */
#include <immintrin.h>
#define VECTOR_BYTES 16
#include "vec_gnu.h"
#include "fp_x86.h"

#if REAL_BITS == 32
WORD vreal vmax(vreal a, vreal b) { return _mm_max_ps(a, b); }
WORD void stream(real *p, vreal a) { _mm_stream_ps(p, a); }
#else
WORD vreal vmax(vreal a, vreal b) { return _mm_max_pd(a, b); }
WORD void stream(real *p, vreal a) { _mm_stream_pd(p, a); }
#endif
WORD vreal fma_(vreal a, vreal b, vreal c) { return a * b + c; }
WORD vreal fnma(vreal a, vreal b, vreal c) { return c - a * b; }

#define FUSED 0
#include "product_error.h"
