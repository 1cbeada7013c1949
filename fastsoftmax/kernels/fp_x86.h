/* Shared by all x86 kernels, whatever their registers: the control word, non-temporal stores, prefetch. */
enum { MXCSR_DEFAULT = 0x1f80 };            /* round to nearest, subnormals kept, every exception masked */
typedef unsigned int fp_state;
WORD fp_state fp_enter(void) { fp_state s = _mm_getcsr(); _mm_setcsr(MXCSR_DEFAULT); return s; }
WORD void fp_leave(fp_state s) { _mm_setcsr(s); }

WORD void stream_end(void) { _mm_sfence(); }
WORD void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
