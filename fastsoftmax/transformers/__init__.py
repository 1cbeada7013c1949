"""Attention of Hugging Face models on CPUs: `register()`, then `attn_implementation="fastsoftmax"`.

Importing this module registers nothing. Its parts: `_symbols` reads from a mask function of transformers which keys it
lets a query see, `_masks` keeps that as a few numbers a token instead of a mask of L x S elements, `_attention`
calls `fastsoftmax.torch.scaled_dot_product_attention` with it.
"""

try:
    import torch  # noqa: F401
    from transformers import AttentionInterface, AttentionMaskInterface
except ImportError as error:
    raise ImportError(
        f"fastsoftmax.transformers needs transformers and torch ({error}): pip install 'fastsoftmax[transformers]'"
    ) from error

from fastsoftmax.transformers._attention import attention
from fastsoftmax.transformers._masks import compact_mask

__all__ = ["register"]

NAME = "fastsoftmax"


def register():
    """Make ``attn_implementation="fastsoftmax"`` known to transformers.

    It registers an attention function with `transformers.AttentionInterface` and a mask function with
    `transformers.AttentionMaskInterface`; without the second, transformers would drop padding. It may be called twice.
    Models that are loaded already change over by ``model.set_attn_implementation("fastsoftmax")``.

    Models run on CPUs, in float32, float64, float16 or bfloat16, and train. Prefill makes no mask of L x S elements
    where the model's mask is causal, bidirectional, windowed, chunked or packed, padded on either side or not padded;
    any other mask function of a model gives a boolean mask, as transformers' "sdpa" does. Attention returns no weights.

    Raises
    ------
    NotImplementedError
        From the model's forward pass: dropout of attention weights in training (set the configuration's
        ``attention_dropout`` to 0), and sparse attention, which passes ``indices`` or ``block_indices``.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> import fastsoftmax.transformers
    >>> fastsoftmax.transformers.register()
    >>> config = LlamaConfig(vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
    ...                      num_attention_heads=4, num_key_value_heads=2, attn_implementation="fastsoftmax")
    >>> model = LlamaForCausalLM(config).eval()
    >>> with torch.no_grad():
    ...     model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 100])
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, compact_mask)
