/* Plain C, one lane, for any compiler and any CPU: what the others are checked against, and the fallback. */
#include <fenv.h>

#define LANES 1
#define WIDTH 4
#define REGISTERS 16

typedef real vreal;
typedef ireal vint;
typedef int vmask;

WORD vreal load(const real *p) { return *p; }
WORD void store(real *p, vreal a) { *p = a; }
WORD void stream(real *p, vreal a) { *p = a; }
WORD void stream_end(void) {}
WORD void prefetch(const void *p) { (void)p; }
WORD vreal fill(real a) { return a; }

WORD vint bits(vreal a) { vint b; memcpy(&b, &a, sizeof b); return b; }
WORD vreal from_bits(vint b) { vreal a; memcpy(&a, &b, sizeof a); return a; }
WORD vint fill_bits(ireal a) { return a; }
WORD vint add_bits(vint a, ireal b) { return (vint)((ubits)a + (ubits)b); }
WORD vint shift_left(vint a, int n) { return (vint)((ubits)a << n); }
WORD vint shift_right(vint a, int n) { return a >> n; }
WORD vint shift_in_zeros(vint a, int n) { return (vint)((ubits)a >> n); }

WORD vreal look_up(const real *table, vint index) { return table[index & 7]; }
WORD vmask less(vreal a, vreal b) { return a < b; }
WORD vmask equal(vreal a, vreal b) { return a == b; }
WORD vmask less_bits(vint a, vint b) { return a < b; }
WORD int any_lane(vmask m) { return m; }
WORD vmask both(vmask a, vmask b) { return a & b; }
WORD vmask either(vmask a, vmask b) { return a | b; }
WORD vreal keep_where(vmask m, vreal a) { return m ? a : 0; }
WORD vreal leave_where(vmask m, vreal a) { return m ? 0 : a; }
WORD vint choose_bits(vmask m, vint a, vint b) { return m ? a : b; }
WORD vreal choose(vmask m, vreal a, vreal b) { return m ? a : b; }

typedef ireal vcount;
WORD vcount no_count(void) { return 0; }
WORD vcount count_where(vmask m, vcount a) { return a + m; }
WORD vreal real_count(vcount a) { return (vreal)a; }

WORD vreal fma_(vreal a, vreal b, vreal c) { return a * b + c; }
WORD vreal fnma(vreal a, vreal b, vreal c) { return c - a * b; }
WORD vreal vmax(vreal a, vreal b) { return a > b ? a : b; }
WORD vreal vmin(vreal a, vreal b) { return a < b ? a : b; }
WORD real hmax(vreal a) { return a; }
WORD void transpose(vreal *rows) { (void)rows; }
WORD vreal sums_of(vreal *rows) { return rows[0]; }

#define FUSED 0
#include "product_error.h"

typedef fenv_t fp_state;
WORD fp_state fp_enter(void) { fp_state s; fegetenv(&s); fesetenv(FE_DFL_ENV); return s; }
WORD void fp_leave(fp_state s) { fesetenv(&s); }
