"""The arrays that every library is measured on, and the masks that go with them."""

import numpy as np
import shapes
from standalone import turns


def scores(shape):
    """The array that a function of the softmax family reads: normal deviates, the same for every library; if the shape
    says so, -inf in random places."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape.shape, dtype=np.float32) * 2
    if shape.masked:
        x[rng.random(shape.shape, dtype=np.float32) < shape.masked] = -np.inf
    return converted(x, shape.dtype)


def converted(x, dtype):
    """The array in a dtype given by name."""
    if dtype != "bfloat16":
        return x.astype(dtype, copy=False)
    try:
        import ml_dtypes
    except ImportError:
        raise turns.UnavailableError("ml_dtypes is not installed") from None
    return x.astype(ml_dtypes.bfloat16)


def attention(shape):
    """Queries, keys and values, normal deviates: (B, Hq, L, E), (B, Hk, S, E), (B, Hk, S, E)."""
    rng = np.random.default_rng(2)
    heads_and_lengths = ((shape.heads, shape.queries), (shape.key_heads, shape.keys), (shape.key_heads, shape.keys))
    sizes = [(shape.batch, *pair, shape.width) for pair in heads_and_lengths]
    return [converted(rng.standard_normal(size, dtype=np.float32), shape.dtype) for size in sizes]


def result_like(x, family, axis):
    """Where the result goes: of the input's shape, or without the axis for the reductions."""
    if family in ("logsumexp", "softmax_entropy"):
        return np.empty(x.shape[:axis % x.ndim] + x.shape[axis % x.ndim + 1:], x.dtype)
    return np.empty_like(x)


def hidden(shape):
    """(L, S) booleans, True above the diagonal: what a causal mask hides."""
    return ~np.tri(*shape.shape[-2:], dtype=bool)


def hidden_keys(shape, family):
    """(L, S) booleans, True where a query must not see a key; None where it sees all."""
    if family in ("attention", "attention_decode"):
        return None
    visible = np.tri(shape.queries, shape.keys, dtype=bool)
    if family == "attention_window":
        visible &= ~np.tri(shape.queries, shape.keys, -shapes.WINDOW, dtype=bool)
    return ~visible
