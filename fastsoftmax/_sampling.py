"""Sampling from checked arguments to kernel calls: views of rows, staging, and the reference for other dtypes."""

import numpy as np

from fastsoftmax import _dispatch, _fastpath, _layout, _softmax, _threads, _validate_sampling, reference
from fastsoftmax._dtypes import converted, native, statistics_dtype
from fastsoftmax._fp_env import default_fp_env
from fastsoftmax._layout import copy_if_overlapping, elements, kernel_ready


@default_fp_env
def sample(logits, axis, temperature, top_k, top_p, min_p, typical_p, where, rng, uniform, return_logprob):
    """sample."""
    a = _validate_sampling.sampling(logits, axis, temperature, top_k, top_p, min_p, typical_p, where)
    uniform = _validate_sampling.uniform_of_rows(rng, uniform, a.rows)
    if not a.has_kernel:
        _check_rows_by_reference(a, drawn_from=True)
        return reference.sample(a.logits, a.axis, **_options_of_reference(a), where=a.where, uniform=uniform,
                                return_logprob=return_logprob)
    tokens, logprob = np.zeros(a.rows, np.int64), np.zeros(a.rows, np.float64) if return_logprob else None
    status = _run(a, None, uniform, tokens, logprob)
    _validate_sampling.check_rows(status, a.axis)
    if not return_logprob:
        return tokens[()]
    return tokens[()], converted(logprob, statistics_dtype(a.result_dtype))[()]


@default_fp_env
def filter_logits(logits, axis, temperature, top_k, top_p, min_p, typical_p, where, out):
    """filter_logits."""
    a = _validate_sampling.sampling(logits, axis, temperature, top_k, top_p, min_p, typical_p, where)
    _validate_sampling.filtered_out(out, a)
    if not a.has_kernel:
        _check_rows_by_reference(a, drawn_from=False)
        y = reference.filter_logits(a.logits, a.axis, **_options_of_reference(a), where=a.where)
        if out is None:
            return y
        with np.errstate(all="ignore"):
            np.copyto(out, y, casting="same_kind")
        return out
    if out is None:
        y = np.empty_like(a.logits, dtype=a.result_dtype, subok=False)
    else:
        y = out
        _check_status(a, _run(a))               # before anything is written
        a = a._replace(logits=copy_if_overlapping(a.logits, out, in_place=True),
                       where=None if a.where is None else copy_if_overlapping(a.where, out))
    _check_status(a, _run(a, y))
    return y


def _check_status(a, status):
    """A row of -inf stays so."""
    _validate_sampling.check_rows(np.where(status == _validate_sampling.NOTHING, 0, status), a.axis)


@np.errstate(all="ignore")
def _check_rows_by_reference(a, drawn_from):
    """As a kernel does it."""
    x = converted(a.logits, native(a.result_dtype))
    seen = np.where(True if a.where is None else a.where, x, np.asarray(-np.inf, x.dtype))
    status = np.where(np.isneginf(seen).all(a.axis) & drawn_from, _validate_sampling.NOTHING, 0)
    status = np.where(np.isposinf(seen).any(a.axis), _validate_sampling.INFINITE, status)
    _validate_sampling.check_rows(np.where(np.isnan(seen).any(a.axis), _validate_sampling.NAN, status), a.axis)


def _options_of_reference(a):
    options = np.moveaxis(a.options, -1, 0)
    names = "temperature", "top_k", "top_p", "min_p", "typical_p"
    return {name: v.astype(np.int64) if name == "top_k" else v for name, v in zip(names, options, strict=True)}


def _run(a, y=None, uniform=None, tokens=None, logprob=None):
    """The status of each row. Writes the filtered logits to y, or tokens and their log probabilities, if given."""
    status = np.zeros(a.rows, np.uint8)
    if a.logits.size and not _run_in_place(a, y, uniform, tokens, logprob, status):
        _run_by_pieces(a, y, uniform, tokens, logprob, status)
    return status


def _run_in_place(a, y, uniform, tokens, logprob, status):
    """_run, if the kernel takes the arrays as they are. Returns whether it does."""
    x = a.logits
    if x.dtype != a.result_dtype or not kernel_ready(x) or (y is not None and not kernel_ready(y)):
        return False
    if y is a.where is None and a.options.ndim == 1 and a.axis == x.ndim - 1 and x.flags.c_contiguous:
        _run_contiguous(a, x, uniform, tokens, logprob, status)
        return True
    of_rows = [_along(v, x.shape, a.axis) for v in (uniform, tokens, logprob, status)]
    operands = x, y, a.where, _first_options(a.options, x.shape, a.axis), *of_rows
    none = (0,) * x.ndim
    layout = _layout.Layout.along(x.shape, (a.axis,), tuple([none if v is None else v.strides for v in operands]))
    if layout.calls > 1 and x.size < layout.calls * _softmax.MIN_ELEMENTS_PER_CALL:
        return False
    kernel = _dispatch.kernels(_fastpath.tag(a.result_dtype)).sample_rows
    threads = _threads.threads_for(x.size // layout.calls)
    seen = [None if v is None else elements(v) for v in operands[:3]]
    for x_, y_, where_, *rest in layout.views(*seen, *operands[3:]):
        kernel(x_, y_, where_, *map(_first, rest), a.has_filters, threads)
    return True


def _run_contiguous(a, x, uniform, tokens, logprob, status):
    """The same for rows one after another, with options that they share: in less time than a layout takes."""
    rows = status.size
    columns = [None if v is None else v.reshape(rows, 1) for v in (uniform, tokens, logprob, status)]
    _dispatch.kernels(_fastpath.tag(x.dtype)).sample_rows(
        elements(x).reshape(rows, -1, 1), None, None, _fastpath.as_strided(a.options, (rows, 1), (0, 0)), *columns,
        a.has_filters, _threads.threads_for(x.size))


def _along(v, shape, axis):
    """An array of the rows' shape, repeated along the axis."""
    return None if v is None else _fastpath.as_strided(v, shape, (*v.strides[:axis], 0, *v.strides[axis:]))


def _first_options(options, shape, axis):
    """The first option of each row, which the others follow in memory, repeated along the axis."""
    if options.ndim == 1:
        return _fastpath.as_strided(options, shape, (0,) * len(shape))
    return _along(options[..., 0], shape, axis)


def _first(view):
    """(outer, inner) of (outer, n, inner) that is the same along n; None stays."""
    return None if view is None else view[:, 0]


def _run_by_pieces(a, y, uniform, tokens, logprob, status):
    """_run, with buffers in the kernel's order and dtype for some rows at a time."""
    x, where = (None if v is None else np.moveaxis(v, a.axis, -1) for v in (a.logits, a.where))
    y = None if y is None else np.moveaxis(y, a.axis, -1)
    shared = a.options.ndim == 1
    for piece in _layout.pieces(a.rows, max(1, _softmax.STAGED_ELEMENTS // x.shape[-1])):
        rows = converted(x[piece], a.result_dtype, "C", copy=True)
        part = a._replace(
            logits=rows, axis=rows.ndim - 1, rows=rows.shape[:-1],
            where=None if where is None else np.ascontiguousarray(where[piece]),
            options=a.options if shared else np.ascontiguousarray(a.options[piece]))
        found = [None if v is None else np.ascontiguousarray(v[piece]) for v in (uniform, tokens, logprob, status)]
        if not _run_in_place(part, None if y is None else rows, *found):
            raise AssertionError("contiguous rows are one call")
        for v, buffer in zip((tokens, logprob, status), found[1:], strict=True):
            if v is not None:
                v[piece] = buffer
        if y is not None:
            y[piece] = rows


@default_fp_env
def penalize(logits, tokens, repetition, frequency, presence, lengths):
    """penalize_."""
    a = _validate_sampling.penalties(logits, tokens, repetition, frequency, presence, lengths)
    x, tag = a.logits, _fastpath.tag(a.logits.dtype)
    if x.size == 0 or a.tokens.size == 0:
        return
    tokens = copy_if_overlapping(a.tokens, x)
    if not tokens.flags.aligned:
        tokens = tokens.copy()
    if tag is None or not kernel_ready(x):
        options = np.moveaxis(a.options, -1, 0)
        reference.penalize_(x, tokens, repetition=options[0], frequency=options[1], presence=options[2],
                            lengths=options[3].astype(np.int64))
        return
    axis = x.ndim - 1
    operands = x, _along(tokens[..., 0], x.shape, axis), _first_options(a.options, x.shape, axis)
    layout = _layout.Layout.along(x.shape, (axis,), tuple([v.strides for v in operands]))
    kernel = _dispatch.kernels(tag).penalize_rows
    for x_, tokens_, options_ in layout.views(elements(x), *operands[1:]):
        kernel(x_, _first(tokens_), tokens.shape[-1], tokens.strides[-1], _first(options_),
               _threads.threads_for(tokens.size // layout.calls))
