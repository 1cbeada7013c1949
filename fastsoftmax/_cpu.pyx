"""The machine as C sees it. Compiled for the baseline: it runs before anything is known of the CPU."""

cdef extern from *:
    """
    #if defined(_MSC_VER)
    #define COMPILER "MSVC"
    #elif defined(__clang__)
    #define COMPILER "Clang " __clang_version__
    #else
    #define COMPILER "GCC " __VERSION__
    #endif

    #if defined(__x86_64__) && defined(__GNUC__)
    #define SUPPORTS(level) (__builtin_cpu_init(), __builtin_cpu_supports(level) != 0)
    #else
    #define SUPPORTS(level) 0
    #endif
    /* The psABI's levels, spelled out where a compiler may not know their names. */
    static int supports_v2(void) {
        return SUPPORTS("ssse3") && SUPPORTS("sse4.1") && SUPPORTS("sse4.2") && SUPPORTS("popcnt");
    }
    static int supports_v3(void) {
        return supports_v2() && SUPPORTS("avx") && SUPPORTS("avx2") && SUPPORTS("bmi") && SUPPORTS("bmi2")
            && SUPPORTS("fma") && SUPPORTS("f16c");
    }
    static int supports_v4(void) {
        return supports_v3() && SUPPORTS("avx512f") && SUPPORTS("avx512bw") && SUPPORTS("avx512cd")
            && SUPPORTS("avx512dq") && SUPPORTS("avx512vl");
    }
    """
    const char* COMPILER
    const char* DTYPES "FASTSOFTMAX_DTYPES"
    const char* ISAS "FASTSOFTMAX_ISAS"
    bint supports_v2() nogil
    bint supports_v3() nogil
    bint supports_v4() nogil

cdef extern from "<fenv.h>" nogil:
    ctypedef struct fenv_t:
        pass
    int fegetenv(fenv_t* environment)
    int fesetenv(const fenv_t* environment)
    const fenv_t* FE_DFL_ENV

compiler = COMPILER.decode()
dtypes = tuple(DTYPES.decode().split())             # what this build has kernels for
isas_built = tuple(ISAS.decode().split())           # from the plainest to the best


def supports(isa):
    """Whether this CPU runs the instructions of `isa`."""
    return {
        "generic": True, "arm64": True,
        "x86_64_v2": supports_v2(), "x86_64_v3": supports_v3(), "x86_64_v4": supports_v4(),
    }[isa]


cdef class usual_modes:
    """Context manager: C's usual floating-point environment for the calling thread; afterwards its own, flags included.

    Kernels see to themselves. This is for what NumPy computes before and after them.
    """
    cdef fenv_t before

    def __enter__(self):
        fegetenv(&self.before)
        fesetenv(FE_DFL_ENV)

    def __exit__(self, *exc_info):
        fesetenv(&self.before)
