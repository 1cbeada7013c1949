"""The attention function: arguments of transformers to those of `fastsoftmax.torch.scaled_dot_product_attention`."""

import torch
from transformers.utils import logging

from fastsoftmax.torch import scaled_dot_product_attention, varlen_attention
from fastsoftmax.transformers._masks import CompactMask

logger = logging.get_logger(__name__)


def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, softcap=None,
              s_aux=None, position_bias=None, **kwargs):
    """Attention as models of transformers call it.

    query : (B, Hq, L, E)
    key : (B, Hk, S, E), Hq a multiple of Hk
    value : (B, Hk, S, Ev)
    attention_mask : a CompactMask; a tensor that broadcasts to (B, Hq, L, S), boolean or added to the scores; one of
        (B, S), of which 0 marks padding; or None
    is_causal : whether queries see no later key, where attention_mask does not say; the module's own by default
    s_aux : (Hq,) sinks
    position_bias : broadcasts to (B, Hq, L, S), added to the scores

    Returns (B, L, Hq, Ev), contiguous, and None.
    """
    _refuse(dropout, kwargs)
    query, key, value = _one_dtype(query, key, value)
    keys = key.shape[2]
    options = dict(scale=_scale(scaling, query.shape[-1]), softcap=softcap, sinks=s_aux,
                   enable_gqa=query.shape[1] != key.shape[1],
                   bias=None if position_bias is None else position_bias[..., :keys])
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if isinstance(attention_mask, CompactMask):
        if attention_mask.query_blocks is not None and position_bias is None:
            return _by_blocks(query, key, value, attention_mask, options), None
        options |= _options_of(attention_mask, keys)
    elif attention_mask is None:
        options |= dict(is_causal=bool(is_causal and query.shape[2] > 1))
    elif attention_mask.ndim == 2:
        options |= dict(attn_mask=attention_mask[:, None, None, :keys].bool(), is_causal=bool(is_causal),
                        causal_offset=keys - query.shape[2])
    else:
        options |= dict(attn_mask=attention_mask[..., :keys])
    return scaled_dot_product_attention(query, key, value, **options).transpose(1, 2).contiguous(), None


def _refuse(dropout, kwargs):
    """Raise for what would change the result; warn for weights, which have no place to be returned in."""
    if dropout:
        raise NotImplementedError(
            f"fastsoftmax has no dropout of attention weights, got dropout={dropout}: set attention_dropout (or "
            "attn_pdrop, attention_probs_dropout_prob, dropout_rate) of the model's config to 0, or call model.eval()")
    for name in ("indices", "block_indices"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(
                f"fastsoftmax has no sparse attention, which {name} asks for: load the model with "
                'attn_implementation="sdpa" or "eager"')
    if kwargs.get("output_attentions"):
        logger.warning_once(
            'fastsoftmax returns no attention weights: set attn_implementation="eager" for output_attentions=True')


def _scale(scaling, head_dim):
    """The scale, or None for the default one, since calls without options take a shorter way."""
    return None if isinstance(scaling, float) and scaling == head_dim ** -0.5 else scaling


def _one_dtype(query, key, value):
    """The three in the dtype of autocast, as PyTorch's own attention has them."""
    if query.dtype == key.dtype == value.dtype or not torch.is_autocast_enabled("cpu"):
        return query, key, value
    dtype = torch.get_autocast_dtype("cpu")
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _options_of(mask, keys):
    """Keyword arguments of attention with a CompactMask."""
    if mask.query_blocks is not None:       # with a bias, which has L x S elements as well
        return dict(attn_mask=mask.dense()[..., :keys])
    options = dict(is_causal=mask.causal, causal_offset=mask.offset, window=mask.window, key_lengths=mask.key_lengths)
    if mask.padding is not None:
        options["attn_mask"] = mask.padding[:, None, None, :keys]
    return options


def _by_blocks(query, key, value, mask, options):
    """Attention within blocks, (B, L, Hq, Ev): a query sees keys of its own block alone."""
    options = {name: value for name, value in options.items() if name != "bias"}
    if mask.cu_seqlens is not None:
        rows = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        result = varlen_attention(*rows, mask.cu_seqlens, is_causal=mask.causal, window=mask.window, **options)
        return result.unflatten(0, (query.shape[0], query.shape[2]))
    if len(mask.segments) == 1:
        return _row(query, key, value, mask, options, mask.segments[0], slice(None))
    return torch.cat([_row(query, key, value, mask, options, segments, slice(b, b + 1))
                      for b, segments in enumerate(mask.segments)])


def _row(query, key, value, mask, options, segments, rows):
    """The rows of the batch that have these segments: (rows, L, Hq, Ev)."""
    parts = [_segment(query[rows], key[rows], value[rows], mask, options, segment, rows) for segment in segments]
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1)


def _segment(query, key, value, mask, options, segment, rows):
    """(rows, Hq, queries of the segment, Ev); zeros where no key belongs to the segment."""
    first, end, first_key, key_end = segment
    options = options | dict(is_causal=mask.causal, window=mask.window, causal_offset=mask.offset + first - first_key)
    if mask.key_lengths is not None:
        options["key_lengths"] = (mask.key_lengths[rows] - first_key).clamp(0, key_end - first_key)
    if mask.padding is not None:
        options["attn_mask"] = mask.padding[rows, None, None, first_key:key_end]
    return scaled_dot_product_attention(query[:, :, first:end], key[:, :, first_key:key_end],
                                        value[:, :, first_key:key_end], **options)
