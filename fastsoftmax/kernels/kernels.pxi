# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# Table of contents. Everything in this folder is compiled once for each element type and instruction set.
from cpython.exc cimport PyErr_CheckSignals
from fastsoftmax import _team

# share(task, work, start, stop, threads, in_order) calls task(work, t, thread) for each t: see ../team.h
ctypedef void (*Task)(const void* work, Py_ssize_t task, int thread) noexcept nogil
ctypedef void (*Share)(
    Task, const void* work, Py_ssize_t start, Py_ssize_t stop, int threads, bint in_order) noexcept nogil
cdef Share share = <Share><size_t>_team.share_address

include "vec.pxi"           # the words
include "rows.pxi"          # what is asked, and the constants of a row
include "along.pxi"         # one row at a time
include "across.pxi"        # WIDTH rows at a time
include "softmax.pxi"       # softmax, log_softmax, logsumexp, softmax_entropy, causal_softmax
include "mask.pxi"          # causal_mask_
