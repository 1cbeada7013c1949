# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# Table of contents. Everything in this folder is compiled once for each element type and instruction set.
include "base.pxi"

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

include "attention_forward.pxi"
include "attention/grad_weights.pxi"        # gradients: weights again, and dS
include "attention/backward.pxi"            # gradients
include "attention/attention_backward.pxi"  # scaled_dot_product_attention_backward, varlen_attention_backward
