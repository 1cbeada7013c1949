"""The softmax family and attention as a NumPy user writes them: the column "NumPy" of every table of speed.

Shift, exponential, sum and division, in the dtype of the input, with temporaries reused. `fastsoftmax.reference`
is no baseline: it is an oracle, which computes float32 in float64. x is an array, `axis` an int, `hidden` booleans made
beforehand.
"""

import numpy as np


def softmax(x, axis):
    weights = x - x.max(axis, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis, keepdims=True)
    return weights


def log_softmax(x, axis):
    shifted = x - x.max(axis, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis, keepdims=True))
    return shifted


def logsumexp(x, axis):
    peak = x.max(axis, keepdims=True)
    shifted = x - peak
    np.exp(shifted, out=shifted)
    return np.log(shifted.sum(axis)) + peak.squeeze(axis)


def softmax_entropy(x, axis):
    logs = log_softmax(x, axis)
    return -(np.exp(logs) * logs).sum(axis)


def causal_softmax(x, hidden):
    return softmax(np.where(hidden, x.dtype.type(-np.inf), x), -1)


def causal_mask_(x, hidden):
    np.copyto(x, -np.inf, where=hidden)
    return x


def scaled_dot_product_attention(query, key, value, hidden=None):
    """Two products by BLAS with a softmax between: (B, Hq, L, E) on (B, Hk, S, E).

    The heads that share a key are multiplied together. 16-bit types are computed in float32: BLAS has no others.
    """
    dtype, (batch, heads, length, width), groups = query.dtype, query.shape, key.shape[1]
    if dtype.itemsize == 2:
        query, key, value = (x.astype(np.float32) for x in (query, key, value))
    query = query.reshape(batch, groups, heads // groups, length, width) * query.dtype.type(width**-0.5)
    scores = query @ key[:, :, None].swapaxes(-1, -2)
    if hidden is not None:
        np.copyto(scores, -np.inf, where=hidden)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return (scores @ value[:, :, None]).reshape(batch, heads, length, width).astype(dtype, copy=False)
