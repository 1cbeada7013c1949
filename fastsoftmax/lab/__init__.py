"""The lab: what each part of attention is for, shown by running it."""

from fastsoftmax.lab.alternatives import (
    dot_product_attention,
    dot_product_attention_backward,
    linear_attention,
    linear_attention_backward,
    performer_attention,
    performer_attention_backward,
    performer_features,
    relu_attention,
    relu_attention_backward,
    sum_normalized_attention,
    sum_normalized_attention_backward,
)

__all__ = [
    "dot_product_attention",
    "dot_product_attention_backward",
    "linear_attention",
    "linear_attention_backward",
    "performer_attention",
    "performer_attention_backward",
    "performer_features",
    "relu_attention",
    "relu_attention_backward",
    "sum_normalized_attention",
    "sum_normalized_attention_backward",
]
