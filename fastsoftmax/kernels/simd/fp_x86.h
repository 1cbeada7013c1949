/* Shared by all x86 kernels, whatever their registers: the control word, non-temporal stores, prefetch. */
enum { MXCSR_DEFAULT = 0x1f80 };            /* round to nearest, subnormals kept, every exception masked */
typedef unsigned int fp_state;
SIMD_INLINE fp_state fp_enter(void) { fp_state s = _mm_getcsr(); _mm_setcsr(MXCSR_DEFAULT); return s; }
SIMD_INLINE void fp_leave(fp_state s) { _mm_setcsr(s); }

SIMD_INLINE void stream_end(void) { _mm_sfence(); }
SIMD_INLINE void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
