"""The definition of each function in NumPy, before anything is made fast.

Read this package first: `softmax.py`, `attention.py`, `packed.py`, `losses.py`, `sampling.py`. It serves three times:
as the oracle of the tests, as the baseline of the benchmarks, and at run time as the implementation for complex, for
long double and for `logsumexp` with weights `b`. Arguments are taken as valid; `_validate.py` checks them for the
public functions.
"""

from fastsoftmax.reference.attention import (
    merge_attention_states,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from fastsoftmax.reference.losses import cross_entropy, linear_cross_entropy
from fastsoftmax.reference.packed import paged_attention, varlen_attention, varlen_attention_backward
from fastsoftmax.reference.sampling import filter_logits, penalize_, sample
from fastsoftmax.reference.softmax import _causal as _causal
from fastsoftmax.reference.softmax import _round as _round
from fastsoftmax.reference.softmax import (
    causal_mask_,
    causal_softmax,
    log_softmax,
    log_softmax_backward,
    logsumexp,
    logsumexp_backward,
    softmax,
    softmax_backward,
    softmax_entropy,
    softmax_entropy_backward,
)
from fastsoftmax.reference.softmax import integer_distances as integer_distances

__all__ = [
    "causal_mask_",
    "causal_softmax",
    "cross_entropy",
    "filter_logits",
    "linear_cross_entropy",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "logsumexp_backward",
    "merge_attention_states",
    "paged_attention",
    "penalize_",
    "sample",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_backward",
    "softmax",
    "softmax_backward",
    "softmax_entropy",
    "softmax_entropy_backward",
    "varlen_attention",
    "varlen_attention_backward",
]
