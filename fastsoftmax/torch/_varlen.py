"""varlen_attention for tensors, with the same three kinds of ops as scaled_dot_product_attention."""

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

_INPUTS = ("Tensor query, Tensor key, Tensor value, Tensor cu_seqlens_q, Tensor? cu_seqlens_k, "
           f"{_options.SCHEMA}")
_SCALE, _SLOPES, _SINKS = 5, 6, 7           # places of those with gradients beside the first three
_WANTED = {"grad_scale": _SCALE, "grad_sinks": _SINKS, "grad_slopes": _SLOPES}


def _arrays(inputs):
    """The arrays of query, key, value and of the cumulative lengths."""
    return [array(x) for x in inputs[:3]], [array(x) for x in inputs[3:5]]


def _kernel(*inputs):
    arrays, lengths = _arrays(inputs)
    return tensor(fastsoftmax.varlen_attention(*arrays, *lengths, **_options.for_numpy(*inputs[5:])), inputs[0].dtype)


def _out_shape(query, value):
    return (*query.shape[:2], value.shape[-1])


def _fake(*inputs):
    return inputs[0].new_empty(_out_shape(inputs[0], inputs[2]))


def _training_kernel(*inputs):
    arrays, lengths = _arrays(inputs)
    return _options.results(functools.partial(fastsoftmax.varlen_attention, *arrays, *lengths), inputs[0],
                            lambda: _out_shape(inputs[0], inputs[2]), inputs[-1], _options.for_numpy(*inputs[5:]))


def _training_fake(*inputs):
    query, value = inputs[0], inputs[2]
    return _options.fake_results(query, _out_shape(query, value), (query.shape[1], query.shape[0]), inputs[-1])


def _gradient_kernel(grad_out, out, lse, grad_lse, *arguments):
    *inputs, wanted = arguments
    arrays, lengths = _arrays(inputs)
    found = fastsoftmax.varlen_attention_backward(
        array(grad_out), *arrays, array(out), array(lse), *lengths, **_options.for_numpy(*inputs[5:]),
        grad_lse=array(grad_lse), **dict(zip(_WANTED, wanted, strict=True)))
    return _options.gradients_of(found, inputs, wanted, [statistics_dtype(inputs[0].dtype)] * len(wanted))


def _gradient_fake(grad_out, out, lse, grad_lse, *arguments):
    *inputs, wanted = arguments
    query, slopes = inputs[0], inputs[_SLOPES]
    dtype, heads = statistics_dtype(query.dtype), (query.shape[1],)
    shapes = [heads, heads, None if slopes is None else torch.broadcast_shapes(slopes.shape, heads)]
    return (*(x.new_empty(x.shape) for x in inputs[:3]),
            *(query.new_empty(shape if asked else 0, dtype=dtype) for shape, asked in zip(shapes, wanted, strict=True)))


_gradient = define_gradient(
    f"varlen_attention_backward(Tensor grad_out, Tensor out, Tensor lse, Tensor? grad_lse, {_INPUTS}, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)", _gradient_kernel, _gradient_fake, "varlen_attention")
_OPS = (
    define_without_gradient(f"varlen_attention({_INPUTS}) -> Tensor", _kernel, _fake, "varlen_attention"),
    define_without_gradient(
        f"varlen_attention_with_statistics({_INPUTS}) -> (Tensor, Tensor, Tensor)",
        lambda *inputs: _training_kernel(*inputs)[:3], lambda *inputs: _training_fake(*inputs)[:3], "varlen_attention"),
    define(f"varlen_attention_with_gradient({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)", _training_kernel,
           _training_fake, _options.setup_context, _options.backward_by(_gradient, tuple(_WANTED.values()))))


def varlen_attention(
        query, key, value, cu_seqlens_q, cu_seqlens_k=None, *, dropout_p=0.0, is_causal=False, scale=None,
        enable_gqa=False, causal_offset=None, window=None, softcap=None, alibi_slopes=None, sinks=None,
        return_lse=False, return_entropy=False):
    """`fastsoftmax.varlen_attention` of tensors: sequences of different lengths, packed one after another.

    Parameters
    ----------
    query, key, value : Tensor, (total_q, Hq, E), (total_k, Hk, E) and (total_k, Hk, Ev)
        The rows of all sequences: float32, float64, float16 or bfloat16, of any strides.
    cu_seqlens_q : Tensor of ints, (B + 1,)
        The queries of sequence b are the rows ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]``.
    cu_seqlens_k : Tensor of ints, (B + 1,), default cu_seqlens_q
        The same of the keys.
    dropout_p : float, default 0.0
        Must be 0.
    scale, alibi_slopes, sinks
        As in `scaled_dot_product_attention`: tensors get their gradients.
    is_causal, enable_gqa, causal_offset, window, softcap
        As in `fastsoftmax.varlen_attention`: by default the last query of a sequence stands on its last key.
    return_lse, return_entropy : bool, default False
        Also return the logsumexp and the entropy of each query's weights. lse is differentiable, entropy is not.

    Returns
    -------
    Tensor, (total_q, Hq, Ev)
        Of the dtype of query, contiguous.
    lse, entropy : Tensor, (Hq, total_q)
        As asked, in this order. float64 for float64, else float32.

    Raises
    ------
    TypeError, NotImplementedError, ValueError
        As `scaled_dot_product_attention` and `fastsoftmax.varlen_attention`.

    Examples
    --------
    >>> import torch
    >>> from fastsoftmax.torch import varlen_attention
    >>> x = torch.randn(6, 2, 8, requires_grad=True)            # three texts of 2, 1 and 3 words
    >>> out = varlen_attention(x, x, x, torch.tensor([0, 2, 3, 6]), is_causal=True)
    >>> out.sum().backward()
    >>> x.grad.shape
    torch.Size([6, 2, 8])
    """
    if dropout_p != 0:
        refuse_dropout(dropout_p)
    tensors = (floats(query, "query"), floats(key, "key"), floats(value, "value"),
               optional(cu_seqlens_q, "cu_seqlens_q"), optional(cu_seqlens_k, "cu_seqlens_k"))
    options = _options.of_call(is_causal, enable_gqa, scale, causal_offset, window, softcap, alibi_slopes, sinks)
    return _options.call(_OPS, tensors, options, return_lse, return_entropy)
