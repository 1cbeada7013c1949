# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# Table of contents. Everything in this folder is compiled once for each element type and instruction set.
from cython.parallel cimport prange, threadid
from cpython.exc cimport PyErr_CheckSignals

include "vec.pxi"           # the words
include "guard.pxi"         # many threads, or the caller alone
include "rows.pxi"          # what is asked, and the constants of a row
include "along.pxi"         # one row at a time
include "across.pxi"        # WIDTH rows at a time
include "softmax.pxi"       # softmax, log_softmax, logsumexp, softmax_entropy, causal_softmax
include "mask.pxi"          # causal_mask_
include "scores.pxi"        # what attention is asked, and its masks
include "attend.pxi"        # many queries, in the lanes
include "decode.pxi"        # few queries
include "attention.pxi"     # scaled_dot_product_attention
