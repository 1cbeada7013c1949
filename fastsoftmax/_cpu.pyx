"""The compiler, the modules of this build, and the instruction sets of this CPU.

Compiled for the baseline, and without OpenMP: it runs before anything is known of the CPU, and must not load the OpenMP
runtime before _openmp.pyx looks for it.
"""

cdef extern from "kernels/runtime/cpu_features.h" nogil:
    const char* COMPILER
    bint supports_v3()
    bint supports_v4()
    bint supports_v4_bf16()
    bint supports_v4_amx()

cdef extern from *:
    const char* DTYPES "FASTSOFTMAX_DTYPES"
    const char* ISAS "FASTSOFTMAX_ISAS"
    const char* MODULES "FASTSOFTMAX_MODULES"

cdef extern from "<fenv.h>" nogil:
    ctypedef struct fenv_t:
        pass
    int fegetenv(fenv_t* environment)
    int fesetenv(const fenv_t* environment)
    const fenv_t* FE_DFL_ENV

compiler = COMPILER.decode()
dtypes = tuple(DTYPES.decode().split())             # that this build has kernels for
isas_built = tuple(ISAS.decode().split())           # from the plainest to the best
modules_built = frozenset(MODULES.decode().split())  # "f32_x86_64", ...: not every dtype need have every ISA


def supports(isa):
    """Whether this CPU runs the instructions of `isa`."""
    return {
        "generic": True, "arm64": True, "x86_64": True,
        "x86_64_v3": supports_v3(), "x86_64_v4": supports_v4(), "x86_64_v4_bf16": supports_v4_bf16(),
        "x86_64_v4_amx": supports_v4_amx(),
    }[isa]


cdef class DefaultFPEnv:
    """Context manager: C's default floating-point environment for the calling thread; its own, flags too, afterwards.

    Kernels set it themselves. This is for the NumPy functions that run before and after them.
    """
    cdef fenv_t before

    def __enter__(self):
        fegetenv(&self.before)
        fesetenv(FE_DFL_ENV)

    def __exit__(self, *exc_info):
        fesetenv(&self.before)
