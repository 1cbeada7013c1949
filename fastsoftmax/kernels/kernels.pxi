# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# Table of contents. Everything in this folder is compiled once for each element type and instruction set.
from cython.parallel cimport prange, threadid
from cpython.exc cimport PyErr_CheckSignals

include "simd/vec.pxi"                      # the vocabulary: registers, exp, log
include "runtime/workspace.pxi"             # memory
include "runtime/contention.pxi"            # when other programs have the cores
include "runtime/parallel.pxi"              # the one loop over tasks

include "softmax/params.pxi"                # the arguments of a call; op, sum, store
include "softmax/rows.pxi"                  # the iterator of rows
include "softmax/shift.pxi"                 # the constants of a row, and its weights
include "softmax/row_sums.pxi"              # exact sums
include "softmax/normalizer.pxi"            # from sums to a normalizer
include "softmax/results.pxi"               # from weights and a normalizer to results
include "softmax/workspace.pxi"             # the buffers of a thread
include "softmax/elements.pxi"              # reading and writing elements of a row
include "softmax/special.pxi"               # rows with infinities or NaN
include "softmax/dense_max.pxi"             # one row at a time, its elements in the lanes: its passes
include "softmax/dense_sum.pxi"
include "softmax/dense_finalize.pxi"
include "softmax/dense_store.pxi"
include "softmax/dense.pxi"                 # the iteration
include "softmax/contiguous.pxi"            # contiguous rows without a mask or a temperature
include "softmax/tiles.pxi"                 # PARTIALS rows at a time, each in a lane
include "softmax/tile_load.pxi"
include "softmax/tile_store.pxi"
include "softmax/strided_sum.pxi"           # tiles of any rows: their passes
include "softmax/strided_finalize.pxi"
include "softmax/single_block.pxi"          # tiles of rows of at most a block
include "softmax/strided.pxi"               # the iteration
include "softmax/narrow.pxi"                # tiles of narrow contiguous rows
include "softmax/causal.pxi"                # tiles of causal rows
include "softmax/long_row.pxi"              # one row shared by threads
include "softmax/long_tiles.pxi"            # tiles of long rows
include "softmax/exact_sums.pxi"            # compensated sums for gradients and losses
include "softmax/mask.pxi"                  # causal_mask_
include "softmax/softmax.pxi"               # softmax, log_softmax, logsumexp, softmax_entropy, causal_softmax
include "softmax/backward.pxi"              # gradients of softmax, log_softmax, logsumexp, softmax_entropy
include "softmax/backward_strips.pxi"       # the first two, along another axis than the last
include "softmax/cross_entropy.pxi"
include "softmax/states.pxi"                # rows in pieces

include "sampling/params.pxi"               # the arguments of a call; filters, candidates
include "sampling/workspace.pxi"            # the buffers of a thread
include "sampling/passes.pxi"               # passes over registers: largest, masses, collections
include "sampling/select.pxi"               # where a filter ends, by selection
include "sampling/filters.pxi"              # top_k, top_p, min_p, typical_p
include "sampling/draw.pxi"                 # the token that a uniform number draws
include "sampling/sampling.pxi"             # sample, filter_logits
include "sampling/penalize.pxi"             # penalize_

include "attention/kv_layout.pxi"           # addresses: arrays, packed sequences, pages
include "attention/params.pxi"              # the arguments of a call
include "attention/mask.pxi"                # masks and biases
include "attention/online_softmax.pxi"      # scores to weights, states of rows
include "attention/nonfinite.pxi"           # values that are NaN or infinite
include "attention/gemm.pxi"                # the microkernel and the two products of prefill
include "attention/query_tile.pxi"          # a tile of queries
include "attention/pack.pxi"                # queries into the lanes, and results out of them
include "attention/pairs.pxi"               # products of bfloat16 in pairs
include "attention/sequences.pxi"           # their order, and which of them decode takes
include "attention/prefill.pxi"             # many queries, in the lanes
include "attention/combine.pxi"             # states in memory, and splits
include "attention/decode.pxi"              # few queries
include "attention/grad_weights.pxi"        # gradients: weights again, and dS
include "attention/backward.pxi"            # gradients
include "attention/attention.pxi"           # scaled_dot_product_attention, varlen_attention, paged_attention
