"""The gradients and losses of every (dtype, instruction set) that this CPU can run, against `fastsoftmax.reference`.

The elements of a gradient cancel, so errors are counted in ULP of the largest number of a row: of y * grad for
softmax_backward, of the gradient itself for the others. Attention's are counted in ULP of the largest of the array.
"""

import functools
import itertools

import numpy as np

import fastsoftmax
from fastsoftmax import _dispatch, reference
from fastsoftmax._selfcheck.accuracy import (
    ROUNDED,
    checkable,
    error,
    logits,
    print_errors,
    queries_keys_values,
    wider,
)

BOUNDS = {  # ULP
    "softmax_backward": 3, "log_softmax_backward": 3, "loss": 2, "gradient of loss": 3, "dquery": 24, "dkey": 24,
    "dvalue": 24,
}
WIDTH = 21          # of a column
LENGTHS = (1, 2, 7, 16, 17, 33, 65, 200, 1021)


def largest(x, axis):
    """The largest magnitude along the axis, in every place."""
    return np.broadcast_to(np.abs(x).max(axis, keepdims=True, initial=0), x.shape)


def row_errors(rng, tag, dtype):
    """(column, a function that computes, exact result, magnitude) of the softmax family and cross entropy."""
    data = functools.partial(logits, rng, dtype=dtype)
    for n, (shape, axis) in itertools.product(LENGTHS, (((5, -1), -1), ((3, -1, 19), 1))):
        shape = tuple([n if size < 0 else size for size in shape])
        x, grad = data(shape, 5), rng.normal(size=shape).astype(dtype)
        for name, forward in (("softmax_backward", reference.softmax), ("log_softmax_backward", reference.log_softmax)):
            y = forward(wider(x), axis).astype(dtype)
            exact = np.asarray(getattr(reference, name)(wider(grad), wider(y), axis))
            size = wider(grad) * (wider(y) if name == "softmax_backward" else 1)
            yield name, functools.partial(getattr(fastsoftmax, name), grad, y, axis), exact, np.maximum(
                largest(size, axis), np.abs(exact))
        target = rng.integers(0, n, x.sum(axis).shape)
        answer = functools.lru_cache(functools.partial(
            fastsoftmax.cross_entropy, x, target, axis, reduction="none", return_grad=True))
        loss, exact = reference.cross_entropy(wider(x), target, axis, reduction="none", return_grad=True)
        yield "loss", lambda answer=answer: answer()[0], loss, np.abs(loss)
        yield "gradient of loss", lambda answer=answer: answer()[1], exact, largest(exact, axis)


def attention_errors(rng, tag, dtype):
    """The same of attention, several blocks of keys, heads that share keys, with a mask and options."""
    for length, keys, head_dim in ((1, 1, 1), (9, 70, 8), (35, 130, 33), (131, 300, 64)):
        query, key, value = queries_keys_values(rng, dtype, 2, 4, 2, length, keys, head_dim)
        options = {"is_causal": length > 9, "causal_offset": keys - length, "enable_gqa": True, "softcap": 5.0}
        grad = rng.normal(size=query.shape[:-1] + value.shape[-1:]).astype(dtype)
        arrays = [wider(x) for x in (query, key, value)]
        out, lse = reference.scaled_dot_product_attention(*arrays, **options, return_lse=True)
        out, lse = out.astype(dtype), lse.astype(np.float64 if tag == "f64" else np.float32)
        exact = reference.scaled_dot_product_attention_backward(
            wider(grad), *arrays, *map(wider, (out, lse)), **options)
        answer = functools.lru_cache(functools.partial(
            fastsoftmax.scaled_dot_product_attention_backward, grad, query, key, value, out, lse, **options))
        for i, name in enumerate(("dquery", "dkey", "dvalue")):
            yield name, lambda answer=answer, i=i: answer()[i], exact[i], largest(exact[i], None)


def check(cases, tag, isa):
    """Check one dtype under one instruction set, print its line, return how many errors are too large."""
    worst = dict.fromkeys(BOUNDS, 0.0)
    with _dispatch.using(isa):
        for column, call, exact, magnitude in cases:
            of = tag if tag == "f64" or column != "loss" else "f32"
            worst[column] = max(worst[column], error(call(), np.asarray(exact), np.asarray(magnitude), of))
    rounded = {} if tag in ("f32", "f64") else dict.fromkeys(("softmax_backward", "log_softmax_backward"), ROUNDED)
    return print_errors(tag, isa, worst, {**BOUNDS, **rounded}, WIDTH)


def check_all():
    """Check all dtypes under all instruction sets; print the largest errors; return the number of failures."""
    print("\nGradients and losses: largest error in ULP of the row's or array's largest number")
    print(f"{'':<20}" + "".join(f"{name:>{WIDTH}}" for name in BOUNDS))
    failures = 0
    for tag, dtype in checkable():
        for isa in _dispatch.supported_by(tag):
            rng = np.random.default_rng(4)
            failures += check(itertools.chain(row_errors(rng, tag, dtype), attention_errors(rng, tag, dtype)), tag, isa)
    return failures
