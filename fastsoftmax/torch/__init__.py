"""The functions of fastsoftmax for PyTorch's tensors on CPUs: they train, compile and export.

Importing this module replaces nothing in PyTorch; `enable` does.
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastsoftmax.torch needs PyTorch: pip install 'fastsoftmax[torch]'") from error

from fastsoftmax.torch._attention import scaled_dot_product_attention
from fastsoftmax.torch._flash import disable, enable
from fastsoftmax.torch._losses import cross_entropy
from fastsoftmax.torch._softmax import causal_softmax, log_softmax, logsumexp, softmax, softmax_entropy
from fastsoftmax.torch._varlen import varlen_attention

__all__ = [
    "causal_softmax",
    "cross_entropy",
    "disable",
    "enable",
    "log_softmax",
    "logsumexp",
    "scaled_dot_product_attention",
    "softmax",
    "softmax_entropy",
    "varlen_attention",
]
