/* Plain C, one lane, for any compiler and any CPU: what the others are checked against, and the fallback. */
#include <fenv.h>

#define LANES 1
#define PARTIALS 4
#define REGISTERS 16

typedef real vreal;
typedef ireal vint;
typedef int vmask;

SIMD_INLINE vreal load(const real *p) { return *p; }
SIMD_INLINE void store(real *p, vreal a) { *p = a; }
SIMD_INLINE void stream(real *p, vreal a) { *p = a; }
SIMD_INLINE void stream_end(void) {}
SIMD_INLINE void prefetch(const void *p) { (void)p; }
SIMD_INLINE vreal broadcast(real a) { return a; }

SIMD_INLINE vint bits(vreal a) { vint b; memcpy(&b, &a, sizeof b); return b; }
SIMD_INLINE vreal from_bits(vint b) { vreal a; memcpy(&a, &b, sizeof a); return a; }
SIMD_INLINE vint broadcast_bits(ireal a) { return a; }
SIMD_INLINE vint add_bits(vint a, ireal b) { return (vint)((ubits)a + (ubits)b); }
SIMD_INLINE vint shift_left(vint a, int n) { return (vint)((ubits)a << n); }
SIMD_INLINE vint shift_right(vint a, int n) { return a >> n; }
SIMD_INLINE vint shift_in_zeros(vint a, int n) { return (vint)((ubits)a >> n); }

SIMD_INLINE vreal table_lookup(const real *table, vint index) { return table[index & (REAL_BITS == 32 ? 7 : 3)]; }
SIMD_INLINE vmask lt(vreal a, vreal b) { return a < b; }
SIMD_INLINE vmask eq(vreal a, vreal b) { return a == b; }
SIMD_INLINE vmask lt_bits(vint a, vint b) { return a < b; }
SIMD_INLINE int any_lane(vmask m) { return m; }
SIMD_INLINE uint64_t lane_bits(vmask m) { return (uint64_t)m; }
SIMD_INLINE vmask both(vmask a, vmask b) { return a & b; }
SIMD_INLINE vmask either(vmask a, vmask b) { return a | b; }
SIMD_INLINE vreal select_or_zero(vmask m, vreal a) { return m ? a : 0; }
SIMD_INLINE vreal zero_where(vmask m, vreal a) { return m ? 0 : a; }
SIMD_INLINE vint select_bits(vmask m, vint a, vint b) { return m ? a : b; }
SIMD_INLINE vreal vselect(vmask m, vreal a, vreal b) { return m ? a : b; }

typedef ireal vcount;
SIMD_INLINE vcount no_count(void) { return 0; }
SIMD_INLINE vcount count_where(vmask m, vcount a) { return a + m; }
SIMD_INLINE vreal real_count(vcount a) { return (vreal)a; }

SIMD_INLINE vreal fma_(vreal a, vreal b, vreal c) { return a * b + c; }
#if REAL_BITS == 32
SIMD_INLINE double fma_double(double a, double b, double c) { return a * b + c; }
SIMD_INLINE double max_double(double a, double b) { return a > b ? a : b; }
#endif
SIMD_INLINE vreal fnma(vreal a, vreal b, vreal c) { return c - a * b; }
SIMD_INLINE vreal vmax(vreal a, vreal b) { return a > b ? a : b; }
SIMD_INLINE vreal vmin(vreal a, vreal b) { return a < b ? a : b; }
SIMD_INLINE real hmax(vreal a) { return a; }
SIMD_INLINE void transpose(vreal *rows) { (void)rows; }
SIMD_INLINE vreal sums_of(vreal *rows) { return rows[0]; }

#define FUSED 0
#include "math/two_prod.h"

typedef fenv_t fp_state;
SIMD_INLINE fp_state fp_enter(void) { fp_state s; fegetenv(&s); fesetenv(FE_DFL_ENV); return s; }
SIMD_INLINE void fp_leave(fp_state s) { fesetenv(&s); }
