# Table of contents of attention without its gradient.
include "attention/kv_layout.pxi"           # addresses: arrays, packed sequences, pages
include "attention/params.pxi"              # the arguments of a call
include "attention/mask.pxi"                # masks and biases
include "attention/online_softmax.pxi"      # scores to weights, states of rows
include "attention/nonfinite.pxi"           # values that are NaN or infinite
include "attention/gemm.pxi"                # the microkernel and the two products of prefill
include "attention/query_tile.pxi"          # a tile of queries
include "attention/pack.pxi"                # queries into the lanes, and results out of them
include "attention/pairs.pxi"               # products of bfloat16 in pairs
include "attention/matrix.pxi"              # these products by a matrix unit
include "attention/sequences.pxi"           # their order, and which of them decode takes
include "attention/prefill.pxi"             # many queries, in the lanes
include "attention/combine.pxi"             # states in memory, and splits
include "attention/decode.pxi"              # few queries
include "attention/attention.pxi"           # scaled_dot_product_attention, varlen_attention, paged_attention
