"""`enable`: the kernels of fastsoftmax behind `torch.nn.functional.scaled_dot_product_attention` on CPUs."""

import warnings

import torch

import fastsoftmax
from fastsoftmax.torch._library import array, refuse_dropout, statistics_dtype, tensor, with_threads_of_torch

_NAME = "fastsoftmax"
_OP = "_scaled_dot_product_flash_attention_for_cpu"


@with_threads_of_torch
def _forward(query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
    """(out in the order of the query's dimensions, lse (B, H, L) in memory as (B, L, H)), as PyTorch's own."""
    if dropout_p:
        refuse_dropout(dropout_p)
    out = torch.empty_like(query)
    _, lse = fastsoftmax.scaled_dot_product_attention(
        array(query), array(key), array(value), array(attn_mask), is_causal=is_causal, scale=scale, enable_gqa=True,
        return_lse=True, out=array(out))
    rows = torch.empty_permuted(lse.shape, (0, 2, 1), dtype=statistics_dtype(query.dtype), device="cpu")
    return out, rows.copy_(tensor(lse, rows.dtype))


@with_threads_of_torch
def _backward(grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, *, attn_mask=None, scale=None):
    """The gradients (B, H, L, E), in memory as (B, L, H, E), as PyTorch's own."""
    if dropout_p:
        refuse_dropout(dropout_p)
    found = fastsoftmax.scaled_dot_product_attention_backward(
        array(grad_out), array(query), array(key), array(value), array(out), array(logsumexp), array(attn_mask),
        is_causal=is_causal, scale=scale, enable_gqa=True)
    return tuple([torch.empty_permuted(x.shape, (0, 2, 1, 3), dtype=x.dtype, device="cpu").copy_(tensor(g, x.dtype))
                  for g, x in zip(found, (query, key, value), strict=True)])


class _Handle:
    """The overriding kernels; PyTorch calls `remove` when another implementation, or its own, becomes active."""

    def __init__(self):
        self._library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():         # that there is another kernel for the same op, which is the purpose
            warnings.simplefilter("ignore")
            self._library.impl(_OP, _forward, "CPU")
            self._library.impl(f"{_OP}_backward", _backward, "CPU")

    def remove(self):
        """PyTorch's own kernels are back."""
        if self._library is not None:
            self._library._destroy()
            self._library = None


def _registry():
    attention = torch.nn.attention
    if not hasattr(attention, "register_flash_attention_impl"):
        raise NotImplementedError(f"PyTorch {torch.__version__} cannot be given another kernel of attention: install "
                                  "torch>=2.10, or call fastsoftmax.torch.scaled_dot_product_attention")
    return attention


def enable():
    """Let `torch.nn.functional.scaled_dot_product_attention` compute with fastsoftmax on CPUs, in the whole process.

    That is for calls with 4-D tensors, as many value as query features and no dropout, for which PyTorch takes its
    kernel "flash attention for CPUs"; all other calls, and other devices, stay as they are. Models need no change.
    A second call changes nothing.

    Raises
    ------
    NotImplementedError
        If PyTorch is too old.

    Notes
    -----
    Registered by `torch.nn.attention.register_flash_attention_impl` under the name "fastsoftmax". Of such
    implementations PyTorch has one active at a time: another one that is active is replaced.

    Examples
    --------
    >>> import torch
    >>> import fastsoftmax.torch
    >>> fastsoftmax.torch.enable()
    >>> torch.nn.attention.current_flash_attention_impl()
    'fastsoftmax'
    >>> fastsoftmax.torch.disable()
    """
    registry = _registry()
    if registry.current_flash_attention_impl() != _NAME:
        registry.register_flash_attention_impl(_NAME, register_fn=_Handle)
        registry.activate_flash_attention_impl(_NAME)


def disable():
    """Undo `enable`; nothing, if fastsoftmax is not active: another provider's implementation stays.

    Examples
    --------
    >>> import fastsoftmax.torch
    >>> fastsoftmax.torch.disable()
    """
    registry = _registry()
    if registry.current_flash_attention_impl() == _NAME:
        registry.restore_flash_attention_impl()
