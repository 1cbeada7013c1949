"""scaled_dot_product_attention for tensors: ops for the result alone, with statistics, and for a backward pass."""

import functools

import torch

import fastsoftmax
from fastsoftmax.torch import _options
from fastsoftmax.torch._library import (
    array,
    define,
    define_gradient,
    define_without_gradient,
    floats,
    optional,
    refuse_dropout,
    statistics_dtype,
    tensor,
)

_INPUTS = ("Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor? bias, Tensor? key_lengths, "
           f"{_options.SCHEMA}")
_MASK, _BIAS, _SCALE, _SLOPES, _SINKS = 3, 4, 6, 7, 8   # places of those with gradients beside the first three
_WANTED = {"grad_scale": _SCALE, "grad_mask": _MASK, "grad_bias": _BIAS, "grad_sinks": _SINKS, "grad_slopes": _SLOPES}


def _out_shape(query, key, value):
    """The shape of the result."""
    if query.ndim == key.ndim == value.ndim == 2:
        return (query.shape[0], value.shape[1])
    heads, key_heads, value_heads = (x.shape[-3] if x.ndim > 2 else 1 for x in (query, key, value))
    batch = torch.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))
    if heads == 1:
        heads = value_heads if key_heads == 1 else key_heads
    return (*batch, heads, query.shape[-2], value.shape[-1])


def _keywords(arguments):
    """The keyword arguments of the NumPy functions; `arguments` are those of _INPUTS."""
    _, _, _, attn_mask, bias, key_lengths, *options = arguments
    keywords = _options.for_numpy(*options)
    if attn_mask is not None:
        keywords["attn_mask"] = array(attn_mask)
    if bias is not None:
        keywords["bias"] = array(bias)
    if key_lengths is not None:
        keywords["key_lengths"] = array(key_lengths)
    return keywords


def _kernel(*arguments):
    query, key, value = arguments[:3]
    return tensor(fastsoftmax.scaled_dot_product_attention(
        array(query), array(key), array(value), **_keywords(arguments)), query.dtype)


def _fake(*arguments):
    query, key, value = arguments[:3]
    return query.new_empty(_out_shape(query, key, value))


_attention = define_without_gradient(f"attention({_INPUTS}) -> Tensor", _kernel, _fake, "scaled_dot_product_attention")


# ---- the result, its statistics, and what the backward pass needs

def _training_kernel(*arguments):
    query, key, value = arguments[:3]
    function = functools.partial(fastsoftmax.scaled_dot_product_attention, array(query), array(key), array(value))
    return _options.results(function, query, lambda: _out_shape(query, key, value), arguments[-1], _keywords(arguments))


def _training_fake(*arguments):
    query, key, value = arguments[:3]
    shape = _out_shape(query, key, value)
    return _options.fake_results(query, shape, shape[:-1], arguments[-1])


def _gradient_kernel(grad_out, out, lse, grad_lse, *arguments):
    *inputs, wanted = arguments
    query, key, value = inputs[:3]
    found = fastsoftmax.scaled_dot_product_attention_backward(
        array(grad_out), array(query), array(key), array(value), array(out), array(lse), **_keywords(inputs),
        grad_lse=array(grad_lse), **dict(zip(_WANTED, wanted, strict=True)))
    dtype = statistics_dtype(query.dtype)
    dtypes = [inputs[place].dtype if asked and place in (_MASK, _BIAS) else dtype
              for asked, place in zip(wanted, _WANTED.values(), strict=True)]
    return _options.gradients_of(found, inputs, wanted, dtypes)


def _gradient_fake(grad_out, out, lse, grad_lse, *arguments):
    *inputs, wanted = arguments
    query, key, value = inputs[:3]
    dtype, shape = statistics_dtype(query.dtype), _out_shape(query, key, value)
    heads = (shape[-3] if len(shape) > 2 else 1,)

    def extra(place):
        x = inputs[place]
        if place in (_MASK, _BIAS):
            return x.new_empty(x.shape)
        return query.new_empty(torch.broadcast_shapes(x.shape, heads) if place == _SLOPES else heads, dtype=dtype)

    return (*(x.new_empty(x.shape) for x in (query, key, value)),
            *(extra(place) if asked else query.new_empty(0, dtype=dtype)
              for asked, place in zip(wanted, _WANTED.values(), strict=True)))


_gradient = define_gradient(
    f"attention_backward(Tensor grad_out, Tensor out, Tensor lse, Tensor? grad_lse, {_INPUTS}, bool[] wanted) -> ("
    + ", ".join(["Tensor"] * 8) + ")", _gradient_kernel, _gradient_fake, "scaled_dot_product_attention")
_OPS = (
    _attention,
    define_without_gradient(
        f"attention_with_statistics({_INPUTS}) -> (Tensor, Tensor, Tensor)", lambda *a: _training_kernel(*a)[:3],
        lambda *a: _training_fake(*a)[:3], "scaled_dot_product_attention"),
    define(f"attention_with_gradient({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)", _training_kernel, _training_fake,
           _options.setup_context, _options.backward_by(_gradient, tuple(_WANTED.values()))))


def scaled_dot_product_attention(
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, *, bias=None,
        causal_offset=0, window=None, softcap=None, alibi_slopes=None, sinks=None, key_lengths=None, return_lse=False,
        return_entropy=False):
    """`fastsoftmax.scaled_dot_product_attention` of tensors.

    Parameters
    ----------
    query, key, value : Tensor, (..., Hq, L, E), (..., Hk, S, E) and (..., Hk, S, Ev)
        float32, float64, float16 or bfloat16, of any strides; or key and value float16 or bfloat16 beside a float32
        query.
    attn_mask : Tensor of bool or floats, optional
        Broadcasts to (..., Hq, L, S). Booleans: True is visible. Floats are added to the scaled scores.
    dropout_p : float, default 0.0
        Must be 0: pass ``dropout_p if self.training else 0.0`` and train without it.
    is_causal, enable_gqa
        As in `torch.nn.functional.scaled_dot_product_attention`.
    scale : float or Tensor, (Hq,), optional
        A tensor gets its gradient.
    bias, alibi_slopes, sinks : Tensor, optional
        As in `fastsoftmax.scaled_dot_product_attention`. They get their gradients.
    causal_offset, window, softcap, key_lengths
        As in `fastsoftmax.scaled_dot_product_attention`.
    return_lse, return_entropy : bool, default False
        Also return the logsumexp and the entropy of each query's weights. lse is differentiable, entropy is not.

    Returns
    -------
    Tensor, (..., Hq, L, Ev)
        Of the dtype of query, contiguous.
    lse, entropy : Tensor, (..., Hq, L)
        As asked, in this order. float64 for float64, else float32.

    Raises
    ------
    TypeError
        If query, key and value are not floating tensors, or of dtypes that do not go together.
    NotImplementedError
        If a tensor is on another device or not dense; if dropout_p is not 0; for a gradient of a gradient.
    ValueError
        As `fastsoftmax.scaled_dot_product_attention`.

    Notes
    -----
    Nothing L x S is stored, neither forward nor backward. A backward pass of 16-bit queries keeps the result in
    float32, since gradients from a rounded one have up to 2.5 times the error.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import scaled_dot_product_attention
    >>> x = torch.eye(2, requires_grad=True)
    >>> out = scaled_dot_product_attention(x, x, x, is_causal=True)
    >>> out.sum().backward()
    >>> x.grad.shape
    torch.Size([2, 2])
    """
    if dropout_p != 0:
        refuse_dropout(dropout_p)
    tensors = (floats(query, "query"), floats(key, "key"), floats(value, "value"), optional(attn_mask, "attn_mask"),
               optional(bias, "bias"), optional(key_lengths, "key_lengths"))
    options = _options.of_call(is_causal, enable_gqa, scale, causal_offset, window, softcap, alibi_slopes, sinks)
    return _options.call(_OPS, tensors, options, return_lse, return_entropy)
