"""The softmax family and attention for NumPy on CPUs: fast, and accurate to 2 ULP."""

from fastsoftmax import _dispatch  # noqa: F401  (first: it checks the environment and loads the kernels)
from fastsoftmax._config import show_config
from fastsoftmax._threads import get_num_threads, num_threads, set_num_threads
from fastsoftmax._version import __version__
from fastsoftmax.attention import (
    merge_attention_states,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from fastsoftmax.losses import cross_entropy, linear_cross_entropy
from fastsoftmax.packed import paged_attention, varlen_attention, varlen_attention_backward
from fastsoftmax.sampling import filter_logits, penalize_, sample
from fastsoftmax.softmax import (
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

__all__ = [
    "__version__",
    "causal_mask_",
    "causal_softmax",
    "cross_entropy",
    "filter_logits",
    "get_num_threads",
    "linear_cross_entropy",
    "log_softmax",
    "log_softmax_backward",
    "logsumexp",
    "logsumexp_backward",
    "merge_attention_states",
    "num_threads",
    "paged_attention",
    "penalize_",
    "sample",
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_backward",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_backward",
    "softmax_entropy",
    "softmax_entropy_backward",
    "varlen_attention",
    "varlen_attention_backward",
]
