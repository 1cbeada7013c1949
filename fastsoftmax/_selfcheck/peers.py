"""Calls of the functions in the most common libraries; `bench/peers` has more libraries.

Each library has a function of (function's name, x, axis, threads), and one of (query, key, value, causal, threads).
They return the call to measure, a function without arguments, and raise if the library has no such function.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import fastsoftmax
from fastsoftmax._selfcheck import numpy_baseline, onnx_model


class Peer(NamedTuple):
    """The module that is imported, and the two functions; None if there is no attention."""

    module: str
    softmax: Callable
    attention: Callable | None


def hidden_of(x):
    """(L, S) booleans, True above the diagonal: the elements that a causal mask hides."""
    return ~np.tri(*x.shape[-2:], dtype=bool)


def ours_softmax(function, x, axis, threads):
    fastsoftmax.set_num_threads(threads)
    f = getattr(fastsoftmax, function)
    return (lambda: f(x)) if function == "causal_softmax" else (lambda: f(x, axis))


def ours_attention(query, key, value, causal, threads):
    fastsoftmax.set_num_threads(threads)
    f = fastsoftmax.scaled_dot_product_attention
    return lambda: f(query, key, value, is_causal=causal, enable_gqa=True)


def numpy_softmax(function, x, axis, threads):
    f = getattr(numpy_baseline, function)
    if function == "causal_softmax":
        hidden = hidden_of(x)
        return lambda: f(x, hidden)
    return lambda: f(x, axis)


def numpy_attention(query, key, value, causal, threads):
    hidden = ~np.tri(query.shape[2], key.shape[2], dtype=bool) if causal else None
    return lambda: numpy_baseline.scaled_dot_product_attention(query, key, value, hidden)


def scipy_softmax(function, x, axis, threads):
    from scipy import special

    if function == "causal_softmax":
        hidden = hidden_of(x)
        return lambda: special.softmax(np.where(hidden, -np.inf, x), -1)
    f = getattr(special, function)
    return lambda: f(x, axis)


def torch_softmax(function, x, axis, threads):
    import torch

    torch.set_num_threads(threads)
    tensor = torch.from_numpy(x)
    if function == "causal_softmax":
        hidden = torch.from_numpy(hidden_of(x))
        return lambda: torch.softmax(tensor.masked_fill(hidden, -np.inf), -1)
    f = getattr(torch, function)
    return lambda: f(tensor, axis)


def torch_attention(query, key, value, causal, threads):
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    tensors, f = [torch.from_numpy(x) for x in (query, key, value)], torch.nn.functional.scaled_dot_product_attention
    return lambda: f(*tensors, is_causal=causal, enable_gqa=query.shape != key.shape)


def onnxruntime_softmax(function, x, axis, threads):
    axis %= x.ndim
    if function == "logsumexp":
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        return session(b"ReduceLogSumExp", {"axes": [axis], "keepdims": 0}, {"x": x}, shape, threads)
    operator = {"softmax": b"Softmax", "log_softmax": b"LogSoftmax"}[function]
    return session(operator, {"axis": axis}, {"x": x}, x.shape, threads)


def onnxruntime_attention(query, key, value, causal, threads):
    inputs = {"q": query, "k": key, "v": value}
    return session(b"Attention", {"is_causal": int(causal)}, inputs, query.shape, threads)


def session(operator, attributes, inputs, shape, threads):
    """The call of ONNX Runtime on a model of one operator."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    model = onnx_model.model(operator, attributes, inputs, shape)
    run = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run
    return lambda: run(None, inputs)


PEERS = {
    "fastsoftmax": Peer("fastsoftmax", ours_softmax, ours_attention),
    "NumPy": Peer("numpy", numpy_softmax, numpy_attention),
    "SciPy": Peer("scipy", scipy_softmax, None),
    "PyTorch": Peer("torch", torch_softmax, torch_attention),
    "ONNX Runtime": Peer("onnxruntime", onnxruntime_softmax, onnxruntime_attention),
}
