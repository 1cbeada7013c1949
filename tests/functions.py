"""The public functions that compute on arrays, each with sample calls. A new function joins the tests here alone.

A sample is a set of keyword arguments in which an `Operand` stands for an array: its shape, its values, and whether the
call reads it, overwrites it or fills it. Every sample is called

- between guard pages, in every dtype and memory layout, with every instruction set     test_memory.py
- 100,000 times: memory and reference counts stay                                       test_memory.py
- with operands of any layout and alignment, and known bytes round them                 test_hostile.py
- in every floating-point environment                                                   test_floating_point.py
- with every instruction set, against the reference                                     smoke.py, memcheck.py

`large` samples are long enough for several threads; test_forks.py, test_threads.py and test_floating_point.py call
them. The other fields are for what a sample cannot say. test_functions.py fails if a public function has no entry.

Like smoke.py, this module needs nothing but NumPy; `small_arrays` alone needs ml_dtypes.
"""

import functools
import itertools
from collections.abc import Callable
from inspect import signature
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

import fastsoftmax
from fastsoftmax import (
    causal_mask_,
    causal_softmax,
    cross_entropy,
    filter_logits,
    linear_cross_entropy,
    log_softmax,
    log_softmax_backward,
    logsumexp,
    logsumexp_backward,
    merge_attention_states,
    paged_attention,
    penalize_,
    sample,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    softmax,
    softmax_backward,
    softmax_entropy,
    softmax_entropy_backward,
    varlen_attention,
    varlen_attention_backward,
)

STATISTICS = "statistics"               # a dtype: float32 for the 16-bit types and float32, else that under test
NOT_OF_ARRAYS = {"__version__", "get_num_threads", "num_threads", "set_num_threads", "show_config"}


class Operand(NamedTuple):
    """An array that a call takes; `dtype` None stands for the dtype under test."""

    shape: tuple
    fill: Callable                      # fill(rng, shape), the values
    dtype: object = None                # or STATISTICS
    role: str = "read"                  # or "in place": the call reads and overwrites it; or "out": the call fills it

    @property
    def is_written(self):
        return self.role != "read"

    def values(self, dtype, seed=0):
        """A new array of the values, in the dtype under test unless the operand has its own."""
        if self.dtype != STATISTICS:
            dtype = self.dtype or dtype
        elif np.dtype(dtype).itemsize == 2:
            dtype = np.float32
        return self.fill(np.random.default_rng(seed), self.shape).astype(dtype)


def scores(*shape, dtype=None, role="read"):
    return Operand(shape, lambda rng, size: rng.normal(0, 5, size), dtype, role)


def vectors(*shape, dtype=None):
    """Queries, keys and values: their products are scores of about 1."""
    return Operand(shape, lambda rng, size: rng.normal(0, 1, size), dtype)


def visible(*shape):
    return Operand(shape, lambda rng, size: rng.random(size) < 0.9, np.bool_)


def positive(*shape):
    """Temperatures, slopes, statistics: float64, whatever dtype is under test."""
    return Operand(shape, lambda rng, size: rng.uniform(0.5, 2, size), np.float64)


def shares(*shape, least=0.0):
    """Uniform numbers, and what top_p, min_p and typical_p take: float64, whatever dtype is under test."""
    return Operand(shape, lambda rng, size: rng.uniform(least, 1, size), np.float64)


def whole(*shape, below):
    """Integers from 1 on: token numbers, top_k, lengths."""
    return Operand(shape, lambda rng, size: rng.integers(1, below, size), np.int64)


def weights(*shape, axis=-1):
    """Weights of a softmax along the axis, some of which are 0."""
    def fill(rng, size):
        w = rng.exponential(size=size) * (rng.random(size) < 0.9)
        return w / w.sum(axis, keepdims=True).clip(1e-3)
    return Operand(shape, fill)


def below_zero(*shape):
    """Log weights, or scores none of which is above its lse."""
    return Operand(shape, lambda rng, size: -rng.uniform(0, 4, size))


def above_zero(*shape):
    """lse that no score of `below_zero` exceeds."""
    return Operand(shape, lambda rng, size: rng.uniform(0, 1, size))


def classes(*shape, count):
    """Class numbers below `count`; every fifth or so is to be ignored."""
    return Operand(shape, lambda rng, size: np.where(rng.random(size) < 0.2, -100, rng.integers(0, count, size)),
                   np.int64)


def integers(*shape, below):
    """Page numbers."""
    return Operand(shape, lambda rng, size: rng.integers(0, below, size), np.int64)


def out(*shape, dtype=None):
    return Operand(shape, lambda rng, size: np.zeros(size), dtype, "out")


class Function(NamedTuple):
    """An entry of the table. `samples` is all that a new function needs."""

    samples: dict                       # name -> keyword arguments
    large: dict = {}                    # the same, so much that several threads share the work
    # For a function of one array of scores and perhaps an axis: whether it gives a number for "each score" or "each
    # row". test_hostile.py then calls it with any dtype, shape, axis, `where`, `temperature` and `out` that it takes.
    gives: str | None = None
    # From small_arrays(), calls that go other ways through the package than samples: scalars, lists, byte orders. They
    # and those that raise run thousands of times: memory and reference counts stay.
    other_ways: Callable = lambda a: []
    refused: Callable = lambda a: []


def lses(*shape, least=6, dtype=STATISTICS):
    """Above all scores, as those of a forward call are."""
    return Operand(shape, lambda rng, size: rng.uniform(least, least + 1, size), dtype)


attend = scaled_dot_product_attention
attend_backward = scaled_dot_product_attention_backward

FUNCTIONS = {
    "softmax": Function(
        gives="each score",
        samples={"every option": dict(
            x=scores(5, 37), axis=-1, where=visible(5, 37), temperature=positive(5, 1), out=out(5, 37))},
        large={"rows": dict(x=scores(300, 1000), axis=-1), "columns": dict(x=scores(300, 1000), axis=0),
               "a long row": dict(x=scores(100_000))},
        other_ways=lambda a: [
            lambda: softmax(a.x), lambda: softmax(a.x, -1), lambda: softmax(a.x, 0, out=a.out),
            lambda: softmax(a.x, -1, where=a.where, temperature=a.temperature), lambda: softmax(a.swapped, -1),
            lambda: softmax(a.bfloat, -1), lambda: softmax(a.x[:, ::2], -1), lambda: softmax([1.0, 2.0]),
            lambda: softmax(a.x, -1, dtype=np.float64)],
        refused=lambda a: [
            lambda: softmax(a.x, 2), lambda: softmax(a.x, "0"), lambda: softmax(a.x, -1, temperature=0.0),
            lambda: softmax(a.x, -1, out=a.frozen), lambda: softmax(a.x, -1, out=a.row), lambda: softmax(a.objects),
            lambda: softmax(a.x, 10**30)]),
    "log_softmax": Function(
        gives="each score",
        samples={"every option": dict(
            x=scores(37, 5), axis=0, where=visible(1, 5), temperature=positive(1, 5), out=out(37, 5))},
        large={"columns": dict(x=scores(300, 1000), axis=0)},
        other_ways=lambda a: [lambda: log_softmax(a.x, -1), lambda: log_softmax(a.half, 0, temperature=0.5)],
        refused=lambda a: [lambda: log_softmax(a.x, -1, temperature=a.numbers)]),
    "logsumexp": Function(
        gives="each row",
        samples={"where": dict(a=scores(5, 37), axis=0, where=visible(5, 37), out=out(37)),
                 "factors": dict(a=scores(5, 37), axis=1, b=scores(37), out=out(5), return_sign=True)},
        large={"a long row": dict(a=scores(300, 1000))},
        other_ways=lambda a: [
            lambda: logsumexp(a.x), lambda: logsumexp(a.x, 1, keepdims=True),
            lambda: logsumexp(a.x, 1, return_sign=True)],
        refused=lambda a: [lambda: logsumexp(a.x, 0, where=a.ints)]),
    "softmax_entropy": Function(
        gives="each row",
        samples={"every option": dict(x=scores(5, 37), axis=1, where=visible(37), temperature=positive(5, 1))},
        large={"rows": dict(x=scores(300, 1000), axis=-1)},
        other_ways=lambda a: [lambda: softmax_entropy(a.x, 1), lambda: softmax_entropy(a.x, 1, where=a.where)],
        refused=lambda a: [lambda: softmax_entropy(a.empty, 0)]),
    "causal_softmax": Function(
        gives="each score",
        samples={"every option": dict(
            scores=scores(3, 7, 37), offset=30, temperature=positive(7, 1), out=out(3, 7, 37))},
        large={"square": dict(scores=scores(300, 1000))},
        other_ways=lambda a: [lambda: causal_softmax(a.x), lambda: causal_softmax(a.x, out=a.out)],
        refused=lambda a: [lambda: causal_softmax(a.x, offset=0.5)]),
    "causal_mask_": Function(
        samples={"an offset": dict(scores=scores(3, 7, 37, role="in place"), offset=30)},
        large={"square": dict(scores=scores(300, 600, role="in place"))},
        other_ways=lambda a: [lambda: causal_mask_(a.out)],
        refused=lambda a: [lambda: causal_mask_(a.frozen)]),
    "softmax_backward": Function(
        samples={"every option": dict(
                     grad=scores(5, 37), y=weights(5, 37), axis=-1, temperature=positive(5, 1), out=out(5, 37)),
                 "columns": dict(grad=scores(37, 5), y=weights(37, 5, axis=0), axis=0)},
        large={"rows": dict(grad=scores(300, 1000), y=weights(300, 1000), axis=-1),
               "columns": dict(grad=scores(300, 1000), y=weights(300, 1000, axis=0), axis=0)},
        other_ways=lambda a: [
            lambda: softmax_backward(a.x, a.x, -1), lambda: softmax_backward(a.x, a.x, 0, out=a.out),
            lambda: softmax_backward(a.double, a.x, -1), lambda: softmax_backward(a.swapped, a.swapped),
            lambda: softmax_backward(a.bfloat, a.bfloat, -1), lambda: softmax_backward(a.x[:, ::2], a.x[:, ::2], -1),
            lambda: softmax_backward(a.x, a.x, 1, temperature=a.temperature)],
        refused=lambda a: [
            lambda: softmax_backward(a.x, a.short, -1), lambda: softmax_backward(a.x, a.x, 2),
            lambda: softmax_backward(a.x, a.x, -1, temperature=0.0), lambda: softmax_backward(a.where, a.x, -1),
            lambda: softmax_backward(a.x, a.x, -1, out=a.frozen)]),
    "log_softmax_backward": Function(
        samples={"every option": dict(
            grad=scores(37, 5), log_y=below_zero(37, 5), axis=0, temperature=positive(1, 5), out=out(37, 5))},
        large={"rows": dict(grad=scores(300, 1000), log_y=below_zero(300, 1000), axis=-1)},
        other_ways=lambda a: [lambda: log_softmax_backward(a.x, a.x, -1), lambda: log_softmax_backward(a.half, a.half)],
        refused=lambda a: [lambda: log_softmax_backward(a.x, a.x, -1, temperature=a.numbers)]),
    "logsumexp_backward": Function(
        samples={"where": dict(grad=vectors(37), a=below_zero(5, 37), lse=positive(37), axis=0, where=visible(5, 37),
                               out=out(5, 37)),
                 "rows": dict(grad=vectors(5, 1), a=below_zero(5, 37), lse=above_zero(5, 1), axis=1, keepdims=True)},
        large={"rows": dict(grad=vectors(300), a=below_zero(300, 1000), lse=above_zero(300), axis=-1)},
        other_ways=lambda a: [lambda: logsumexp_backward(a.numbers, a.x - 9, a.numbers, 0)],
        refused=lambda a: [lambda: logsumexp_backward(a.numbers, a.x, a.numbers, 1)]),
    "softmax_entropy_backward": Function(
        samples={"every option": dict(grad=vectors(5), x=scores(5, 37), axis=1, where=visible(37),
                                      temperature=positive(5, 1), out=out(5, 37))},
        large={"rows": dict(grad=vectors(300), x=scores(300, 1000), axis=-1)},
        other_ways=lambda a: [lambda: softmax_entropy_backward(a.numbers, a.x, 0),
                              lambda: softmax_entropy_backward(a.numbers, a.half, 0, where=a.where)],
        refused=lambda a: [lambda: softmax_entropy_backward(a.row, a.x, 0)]),
    "cross_entropy": Function(
        samples={
            "classes": dict(
                logits=scores(5, 37, 3), target=classes(5, 3, count=37), axis=1, weight=positive(37), z_loss=0.01,
                label_smoothing=0.1, temperature=positive(5, 3), reduction="none", return_lse=True, return_grad=True,
                grad_into=out(5, 37, 3)),
            "rows": dict(logits=scores(5, 37), target=classes(5, count=37), return_grad=True),
            "probabilities": dict(
                logits=scores(37, 5), target=weights(37, 5, axis=0), axis=0, reduction="sum", return_grad=True),
            "a softcap": dict(logits=scores(5, 37), target=classes(5, count=37), softcap=3.0, return_grad=True)},
        large={"rows": dict(logits=scores(300, 1000), target=classes(300, count=1000), return_grad=True),
               "columns": dict(logits=scores(10, 9000), target=classes(9000, count=10), axis=0, return_grad=True)},
        other_ways=lambda a: [
            lambda: cross_entropy(a.x, [0, 1, -100, 2]), lambda: cross_entropy(a.x, a.x, return_grad=True),
            lambda: cross_entropy(a.bfloat, [0, 1, 2, 3], return_lse=True, grad_into=a.bfloat.copy()),
            lambda: cross_entropy(a.swapped, [0, 1, 2, 3], softcap=2.0, weight=a.numbers, return_grad=True)],
        refused=lambda a: [
            lambda: cross_entropy(a.x, [0, 1, 2, 9]), lambda: cross_entropy(a.x, a.short),
            lambda: cross_entropy(a.x, [0, 1, 2, 3], reduction="mena"), lambda: cross_entropy(a.x, a.where),
            lambda: cross_entropy(a.x, [0, 1, 2, 3], grad_into=a.frozen)]),
    "linear_cross_entropy": Function(
        samples={"every option": dict(
            hidden=vectors(40, 7), linear_weight=vectors(37, 7), target=classes(40, count=37), linear_bias=vectors(37),
            weight=positive(37), label_smoothing=0.1, reduction="sum", z_loss=0.01, softcap=8.0, return_grad=True)},
        large={"rows": dict(hidden=vectors(300, 16), linear_weight=vectors(1000, 16), target=classes(300, count=1000),
                            return_grad=True)},
        other_ways=lambda a: [
            lambda: linear_cross_entropy(a.x, a.x, [0, 1, -100, 2], return_grad=True),
            lambda: linear_cross_entropy(a.half, a.half, [0, 1, 3, 2], linear_bias=a.half[:, 0])],
        refused=lambda a: [
            lambda: linear_cross_entropy(a.x, a.short, [0, 1, 2, 3]), lambda: linear_cross_entropy(a.x, a.x, [4] * 4)]),
    "sample": Function(
        samples={
            "every option": dict(
                logits=scores(5, 37, 3), axis=1, temperature=positive(5, 3), top_k=whole(5, 3, below=37),
                top_p=shares(5, 3, least=0.3), min_p=shares(5, 3), typical_p=shares(5, 3, least=0.3),
                uniform=shares(5, 3), return_logprob=True),     # `where` may hide a row: see filter_logits
            "a seed": dict(logits=scores(5, 37), temperature=0.7, rng=3, return_logprob=True)},
        large={"rows": dict(logits=scores(300, 1000), top_p=0.9, rng=1, return_logprob=True),
               "long rows": dict(
                   logits=scores(3, 40_000), top_p=0.9, min_p=shares(3), typical_p=0.8, uniform=shares(3)),
               "columns": dict(logits=scores(1000, 300), axis=0, top_k=50, rng=1)},
        other_ways=lambda a: [
            lambda: sample(a.x, rng=0), lambda: sample(a.x, 0, uniform=0.5), lambda: sample(a.bfloat, uniform=0.25),
            lambda: sample(a.swapped, top_p=0.5, uniform=0.5), lambda: sample([1.0, 2.0], temperature=0.0, rng=1),
            lambda: sample(a.x[:, ::2], where=a.where[:, ::2], top_k=2, uniform=0.5, return_logprob=True)],
        refused=lambda a: [
            lambda: sample(a.x, 2), lambda: sample(a.x, temperature=-1.0), lambda: sample(a.x, top_k=0),
            lambda: sample(a.x, top_p=1.5), lambda: sample(a.x, uniform=1.0), lambda: sample(a.x, top_k=a.numbers),
            lambda: sample(a.x, rng=0, uniform=0.5), lambda: sample(a.x * np.float32(np.inf), rng=0)]),
    "filter_logits": Function(
        samples={
            "every option": dict(
                logits=scores(5, 37, 3), axis=1, temperature=positive(5, 3), top_k=whole(5, 3, below=37),
                top_p=shares(5, 3, least=0.3), min_p=shares(5, 3), typical_p=shares(5, 3, least=0.3),
                where=visible(5, 37, 3), out=out(5, 37, 3)),
            "no filter": dict(logits=scores(5, 37), temperature=0.7, out=out(5, 37))},
        large={"rows": dict(logits=scores(300, 1000), top_p=0.9),
               "long rows": dict(logits=scores(3, 40_000), top_k=9000, typical_p=0.8)},
        other_ways=lambda a: [
            lambda: filter_logits(a.x, top_k=2), lambda: filter_logits(a.x, 0, top_p=0.5, out=a.out),
            lambda: filter_logits(a.half, min_p=0.1), lambda: filter_logits(a.swapped, typical_p=0.5)],
        refused=lambda a: [
            lambda: filter_logits(a.x, out=a.frozen), lambda: filter_logits(a.x, out=a.row),
            lambda: filter_logits(a.x * np.float32(np.nan), out=a.out), lambda: filter_logits(a.masked)]),
    "penalize_": Function(
        samples={"every option": dict(
            logits=scores(3, 5, 37, role="in place"), tokens=whole(3, 5, 12, below=37), repetition=positive(3, 5),
            frequency=shares(3, 5), presence=shares(3, 5), lengths=whole(3, 5, below=13))},
        large={"rows": dict(
            logits=scores(300, 100, role="in place"), tokens=whole(300, 400, below=100), repetition=1.2)},
        other_ways=lambda a: [
            lambda: penalize_(a.out, [[1, 2, 2]] * 4, repetition=1.5),
            lambda: penalize_(a.x.copy(), [[1]] * 4, lengths=0)],
        refused=lambda a: [
            lambda: penalize_(a.out, [[1, 2, 9]] * 4), lambda: penalize_(a.frozen, [[1]] * 4),
            lambda: penalize_(a.out, [[1]] * 4, repetition=0.0), lambda: penalize_(a.out, [1]),
            lambda: penalize_(a.out, a.x)]),
    "scaled_dot_product_attention": Function(
        samples={
            "every option": dict(
                query=vectors(2, 4, 5, 19), key=vectors(2, 2, 37, 19), value=vectors(2, 2, 37, 21), enable_gqa=True,
                is_causal=True, causal_offset=32, attn_mask=visible(2, 1, 5, 37), bias=scores(4, 5, 37),
                alibi_slopes=positive(2, 4), sinks=positive(4), out=out(2, 4, 5, 21)),
            "the fast path": dict(
                query=vectors(1, 6, 2, 19), key=vectors(1, 2, 37, 19), value=vectors(1, 2, 37, 33), enable_gqa=True),
            "masks that end early": dict(
                query=vectors(2, 4, 25, 19), key=vectors(2, 2, 90, 19), value=vectors(2, 2, 90, 21), enable_gqa=True,
                attn_mask=visible(2, 1, 25, 37), bias=scores(37), key_lengths=[37, 36], out=out(2, 4, 25, 21)),
            "a mask that ends early, few queries": dict(
                query=vectors(1, 2, 1, 19), key=vectors(1, 2, 700, 19), value=vectors(1, 2, 700, 21),
                attn_mask=visible(1, 1, 1, 600), key_lengths=600),
            "16-bit keys": dict(
                query=vectors(2, 4, 25, 19, dtype="f4"), key=vectors(2, 2, 90, 19, dtype="f2"),
                value=vectors(2, 2, 90, 21, dtype="f2"), enable_gqa=True, out=out(2, 4, 25, 21, dtype="f4")),
            "16-bit keys, few queries": dict(
                query=vectors(1, 4, 1, 19, dtype="f4"), key=vectors(1, 2, 700, 19, dtype="f2"),
                value=vectors(1, 2, 700, 21, dtype="f2"), enable_gqa=True, out=out(1, 4, 1, 21, dtype="f4"))},
        large={
            "many queries": dict(query=vectors(4, 300, 64), key=vectors(4, 300, 64), value=vectors(4, 300, 64),
                                 is_causal=True),
            "few queries of four heads": dict(
                query=vectors(4, 3, 64), key=vectors(4, 4000, 64), value=vectors(4, 4000, 64)),
            "few queries of one head": dict(
                query=vectors(3, 64), key=vectors(20_001, 64), value=vectors(20_001, 64))},
        other_ways=lambda a: [
            lambda: attend(a.x, a.x, a.x), lambda: attend(a.heads, a.heads, a.heads, is_causal=True),
            lambda: attend(a.x, a.x, a.x, out=a.out), lambda: attend(a.half, a.half, a.half),
            lambda: attend(a.wide, a.wide, a.wide, return_lse=True, return_entropy=True),
            lambda: attend(a.swapped, a.swapped, a.swapped), lambda: attend(a.bfloat, a.bfloat, a.bfloat, scale=0.5),
            lambda: attend(a.wide, a.wide, a.wide, a.where[:3, :3], bias=a.x[:3, :3], window=(1, 2), softcap=3.0,
                           alibi_slopes=[1, 2], sinks=[0.5, 0], key_lengths=2)],
        refused=lambda a: [
            lambda: attend(a.x, a.x, a.double), lambda: attend(a.x, a.short, a.x), lambda: attend(a.x, a.x, a.masked),
            lambda: attend(a.x, a.x, a.x, out=a.frozen), lambda: attend(a.x, a.x, a.x, a.ints),
            lambda: attend(a.x, a.x, a.x, softcap=-1), lambda: attend(a.x, a.x, a.x, window=(1, -1)),
            lambda: attend(a.x, a.x, a.x, key_lengths=5), lambda: attend(a.x, a.x, a.x, alibi_slopes=a.numbers)]),
    "scaled_dot_product_attention_backward": Function(
        samples={
            "every option": dict(
                grad_out=vectors(2, 4, 5, 19), query=vectors(2, 4, 5, 21), key=vectors(2, 2, 37, 21),
                value=vectors(2, 2, 37, 19), out=vectors(2, 4, 5, 19), lse=lses(2, 4, 5, least=9),
                enable_gqa=True, is_causal=True, causal_offset=32, scale=positive(4), attn_mask=vectors(2, 1, 5, 37),
                bias=vectors(4, 5, 1), softcap=3.0, alibi_slopes=positive(2, 4), sinks=positive(4),
                grad_lse=vectors(2, 4, 5, dtype=STATISTICS),
                grad_scale=True, grad_mask=True, grad_bias=True, grad_sinks=True, grad_slopes=True),
            "no option": dict(
                grad_out=vectors(1, 6, 2, 33), query=vectors(1, 6, 2, 19), key=vectors(1, 2, 37, 19),
                value=vectors(1, 2, 37, 33), out=vectors(1, 6, 2, 33), lse=lses(1, 6, 2), enable_gqa=True),
            "masks that end early": dict(
                grad_out=vectors(2, 4, 25, 21), query=vectors(2, 4, 25, 19), key=vectors(2, 2, 90, 19),
                value=vectors(2, 2, 90, 21), out=vectors(2, 4, 25, 21), lse=lses(2, 4, 25), enable_gqa=True,
                attn_mask=visible(2, 1, 25, 37), bias=vectors(37), key_lengths=[37, 36], grad_bias=True),
            "16-bit keys": dict(
                grad_out=vectors(2, 4, 25, 21, dtype="f4"), query=vectors(2, 4, 25, 19, dtype="f4"),
                key=vectors(2, 2, 90, 19, dtype="f2"), value=vectors(2, 1, 90, 21, dtype="f2"),
                out=vectors(2, 4, 25, 21, dtype="f4"), lse=lses(2, 4, 25, dtype="f4"), enable_gqa=True)},
        large={
            "many queries": dict(
                grad_out=vectors(4, 300, 64), query=vectors(4, 300, 64), key=vectors(4, 300, 64),
                value=vectors(4, 300, 64), out=vectors(4, 300, 64), lse=lses(4, 300), is_causal=True),
            "many keys": dict(
                grad_out=vectors(3, 64), query=vectors(3, 64), key=vectors(20_001, 64), value=vectors(20_001, 64),
                out=vectors(3, 64), lse=lses(3))},
        other_ways=lambda a: [
            lambda: attend_backward(a.x, a.x, a.x, a.x, a.x, a.row_lse),
            lambda: attend_backward(a.half, a.half, a.half, a.half, a.half, a.row_lse),
            lambda: attend_backward(a.swapped, a.swapped, a.swapped, a.swapped, a.swapped, a.row_lse, is_causal=True),
            lambda: attend_backward(a.wide, a.wide, a.wide, a.wide, a.wide, a.lse, a.x[:3, :3], bias=a.x[:3, :3],
                                    scale=[0.5, 1], window=(1, 2), softcap=3.0, alibi_slopes=[1, 2], sinks=[0.5, 0],
                                    key_lengths=2, grad_lse=a.lse, grad_scale=True, grad_mask=True, grad_bias=True,
                                    grad_sinks=True, grad_slopes=True)],
        refused=lambda a: [
            lambda: attend_backward(a.x, a.x, a.x, a.x, a.x, a.lse),
            lambda: attend_backward(a.double, a.x, a.x, a.x, a.x, a.row_lse),
            lambda: attend_backward(a.x, a.x, a.x, a.x, a.short, a.row_lse),
            lambda: attend_backward(a.x, a.x, a.x, a.x, a.x, a.row_lse, grad_scale=True)]),
    "varlen_attention": Function(
        samples={
            "every option": dict(
                query=vectors(31, 4, 19), key=vectors(660, 2, 19), value=vectors(660, 2, 21),
                cu_seqlens_q=[0, 3, 3, 28, 31], cu_seqlens_k=[0, 7, 9, 60, 660], is_causal=True,
                scale=positive(4), enable_gqa=True, causal_offset=[1, 0, 40, 500], window=(600, 0), softcap=3.0,
                alibi_slopes=positive(4, 4), sinks=positive(4), return_lse=True, return_entropy=True,
                out=out(31, 4, 21)),
            "16-bit keys": dict(
                query=vectors(28, 4, 19, dtype="f4"), key=vectors(90, 2, 19, dtype="f2"),
                value=vectors(90, 1, 21, dtype="f2"), cu_seqlens_q=[0, 3, 28], cu_seqlens_k=[0, 40, 90],
                enable_gqa=True)},
        large={"many sequences": dict(
            query=vectors(900, 4, 64), key=vectors(900, 4, 64), value=vectors(900, 4, 64),
            cu_seqlens_q=[0, 100, 350, 350, 600, 900], is_causal=True)},
        other_ways=lambda a: [
            lambda: varlen_attention(a.wide, a.wide, a.wide, [0, 1, 2]),
            lambda: varlen_attention(a.wide, a.wide, a.wide, a.ends, softcap=1e35)],
        refused=lambda a: [
            lambda: varlen_attention(a.wide, a.wide, a.wide, [0, 1]),
            lambda: varlen_attention(a.wide, a.wide, a.wide, [0.0, 2.0]),
            lambda: varlen_attention(a.x, a.x, a.x, [0, 4])]),
    "varlen_attention_backward": Function(
        samples={
            "every gradient": dict(
                grad_out=vectors(31, 4, 21), query=vectors(31, 4, 19), key=vectors(660, 2, 19),
                value=vectors(660, 2, 21), out=vectors(31, 4, 21), lse=lses(4, 31, least=9),
                cu_seqlens_q=[0, 3, 3, 28, 31], cu_seqlens_k=[0, 7, 9, 60, 660], is_causal=True,
                scale=positive(4), enable_gqa=True, causal_offset=[1, 0, 40, 500], window=(600, 0), softcap=3.0,
                alibi_slopes=positive(4, 4), sinks=positive(4), grad_lse=vectors(4, 31, dtype=STATISTICS),
                grad_scale=True, grad_sinks=True, grad_slopes=True),
            "16-bit keys": dict(
                grad_out=vectors(28, 4, 21, dtype="f4"), query=vectors(28, 4, 19, dtype="f4"),
                key=vectors(90, 2, 19, dtype="f2"), value=vectors(90, 1, 21, dtype="f2"),
                out=vectors(28, 4, 21, dtype="f4"), lse=lses(4, 28, dtype="f4"), cu_seqlens_q=[0, 3, 28],
                cu_seqlens_k=[0, 40, 90], enable_gqa=True)},
        large={"many sequences": dict(
            grad_out=vectors(900, 4, 64), query=vectors(900, 4, 64), key=vectors(900, 4, 64), value=vectors(900, 4, 64),
            out=vectors(900, 4, 64), lse=lses(4, 900), cu_seqlens_q=[0, 100, 350, 350, 600, 900], is_causal=True)},
        other_ways=lambda a: [
            lambda: varlen_attention_backward(a.wide, a.wide, a.wide, a.wide, a.wide, a.lse.T.copy(), [0, 1, 2])],
        refused=lambda a: [
            lambda: varlen_attention_backward(a.wide, a.wide, a.wide, a.wide, a.wide, a.lse, [0, 2]),
            lambda: varlen_attention_backward(a.wide, a.wide, a.wide, a.wide, a.wide, a.lse.T.copy(), [0, 1])]),
    "paged_attention": Function(
        samples={
            "decode, every option": dict(
                query=vectors(3, 2, 4, 19), key_cache=vectors(4, 9, 2, 19), value_cache=vectors(4, 9, 2, 21),
                block_table=integers(3, 3, below=4), key_lengths=[25, 0, 9], scale=positive(4), enable_gqa=True,
                causal_offset=[20, 0, 7], window=(12, 0), softcap=3.0, alibi_slopes=positive(3, 4), sinks=positive(4),
                return_lse=True, return_entropy=True, out=out(3, 2, 4, 21)),
            "prefill": dict(
                query=vectors(2, 40, 4, 19), key_cache=vectors(4, 70, 2, 19), value_cache=vectors(4, 70, 2, 21),
                block_table=integers(2, 3, below=4), key_lengths=[200, 71], enable_gqa=True),
            "16-bit keys": dict(
                query=vectors(2, 30, 4, 19, dtype="f4"), key_cache=vectors(4, 9, 2, 19, dtype="f2"),
                value_cache=vectors(4, 9, 1, 21, dtype="f2"), block_table=integers(2, 3, below=4),
                key_lengths=[25, 9], enable_gqa=True)},
        large={"long caches": dict(
            query=vectors(2, 1, 4, 64), key_cache=vectors(90, 64, 4, 64), value_cache=vectors(90, 64, 4, 64),
            block_table=integers(2, 80, below=90), key_lengths=[5000, 4000])},
        other_ways=lambda a: [
            lambda: paged_attention(a.heads_third[:, :1], a.heads_third, a.heads_third, a.pages, [3, 2]),
            lambda: paged_attention(a.heads_third[:, :1], a.heads_third, a.heads_third, a.pages, 2, softcap=1e35)],
        refused=lambda a: [
            lambda: paged_attention(a.heads_third[:, :1], a.heads_third, a.heads_third, a.pages, [7, 2]),
            lambda: paged_attention(a.heads_third[:, :1], a.heads_third, a.heads_third, a.pages + 1, [3, 2])]),
    "merge_attention_states": Function(
        samples={"two parts": dict(
            outputs=[vectors(3, 5, 17), vectors(3, 5, 17)], lses=[positive(3, 5), positive(3, 5)]),
                 "stacked": dict(outputs=vectors(3, 2, 5, 17), lses=positive(3, 2, 5), axis=1)},
        other_ways=lambda a: [lambda: merge_attention_states([a.wide] * 2, [a.lse] * 2)],
        refused=lambda a: [lambda: merge_attention_states([a.x], [a.x])]),
}

SAMPLES = {f"{name}, {label}": (name, sample)
           for name, function in FUNCTIONS.items() for label, sample in function.samples.items()}
LARGE = {f"{name}, {label}": (name, sample)
         for name, function in FUNCTIONS.items() for label, sample in function.large.items()}
OF_SCORES = [name for name, function in FUNCTIONS.items() if function.gives]


def arguments(sample, dtype, place=lambda operand, values: values):
    """The sample's keyword arguments: place(operand, its values in the dtype) in place of each operand."""
    seeds = itertools.count(1)
    return {name: _placed(argument, dtype, place, seeds) for name, argument in sample.items()}


def _placed(argument, dtype, place, seeds):
    if isinstance(argument, list):
        return [_placed(item, dtype, place, seeds) for item in argument]
    return place(argument, argument.values(dtype, next(seeds))) if isinstance(argument, Operand) else argument


def prepared(name, sample, dtype):
    """call() with the sample's arrays, made once; those that a call overwrites are made anew each time."""
    written = {key for key, argument in sample.items() if isinstance(argument, Operand) and argument.is_written}
    made = arguments(sample, dtype)

    def call():
        fresh = {key: made[key].copy() for key in written}
        return getattr(fastsoftmax, name)(**{**made, **fresh})

    return call


def results(got):
    """A call's results as a list of arrays, however many there are, and however deep."""
    if isinstance(got, tuple | list):
        return [array for y in got for array in results(y)]
    return [np.asarray(got)]


@functools.cache
def takes(name, *options):
    """Whether the function has all these parameters."""
    return set(options) <= set(signature(getattr(fastsoftmax, name)).parameters)


def of_scores(name, x, axis, module=fastsoftmax, **options):
    """A function of `OF_SCORES`, of the package or its reference: along `axis` if it has one to choose."""
    if takes(name, "axis"):
        return getattr(module, name)(x, axis, **options)
    return getattr(module, name)(x, **options)


def small_arrays():
    """Arrays for `other_ways` and `refused`.

    All are made here: NumPy 2.4's own np.empty(3) never returns the reference that it takes to its dtype.
    """
    import ml_dtypes

    x, frozen = (np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32) for _ in range(2))
    frozen.flags.writeable = False
    wide = np.ones((2, 3, 40), np.float32)
    return SimpleNamespace(
        x=x, frozen=frozen, out=np.empty_like(x), where=x < 1, temperature=np.full((4, 1), 0.7), heads=x[None],
        wide=wide, lse=wide[..., 0].copy(), row_lse=np.full(4, 9, np.float32), half=x.astype(np.float16),
        swapped=x.astype(">f4"), double=x.astype(float), bfloat=x.astype(ml_dtypes.bfloat16), objects=x.astype(object),
        masked=np.ma.masked_array(x), short=x[:, :3], empty=x[:0], row=x[0, :3].copy(), numbers=x[0].copy(),
        ints=np.ones(3, int), heads_third=wide[:, :, None], pages=np.array([[1], [0]]), ends=np.array([0, 2], np.uint8))
