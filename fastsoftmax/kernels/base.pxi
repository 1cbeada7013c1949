# Registers, memory, and the loop over tasks, for all kernels.
from cython.parallel cimport prange, threadid
from cpython.exc cimport PyErr_CheckSignals

include "simd/vec.pxi"                      # the vocabulary: registers, exp, log
include "runtime/workspace.pxi"             # memory
include "runtime/contention.pxi"            # when other programs have the cores
include "runtime/parallel.pxi"              # the one loop over tasks
