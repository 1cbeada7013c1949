"""Rows in pieces: the states of pieces, their merging, and results from the state of a whole row.

A caller that never holds a row whole (`fastsoftmax.dask`) takes the state of each piece, merges states in any order and
grouping, and has the functions of the softmax family from the state of the whole row:

    row_max     the largest element; of integers that float64 does not hold, an integer
    others      the sum of all weights but one of the largest, in units of the largest
    surprise    the sum of weight * (largest score - score), in the same units; for the entropy

So nothing cancels, and a sum just above 1 keeps its digits: a logsumexp alone, rounded, would lose them, and
``exp(x - lse)`` would be wrong by as many ULP as lse has. Numbers are float64, or long double for long double. A piece
without an element above -inf has row_max -inf (or the least integer) and others -1: no weight at all.

The kernels compute states and results (kernels/softmax/states.pxi); NumPy does for long double and for temperatures at
which the kernels' arithmetic does not hold.
"""

import math

import numpy as np

from fastsoftmax import _dispatch, _fastpath, _layout, _softmax, _threads, reference
from fastsoftmax._dtypes import converted, is_wide_integer
from fastsoftmax._fastpath import SOFTMAX
from fastsoftmax._fp_env import default_fp_env
from fastsoftmax._layout import elements, kernel_ready
from fastsoftmax._validate import TEMPERATURES


def state_dtype(dtype):
    """The dtype of states of arrays of this dtype: a structure of three numbers."""
    wide = np.dtype(np.longdouble if dtype.kind == "f" and dtype.itemsize > 8 else np.float64)
    return np.dtype([("row_max", dtype.newbyteorder("=") if is_wide_integer(dtype) else wide), ("others", wide),
                     ("surprise", wide)])


@default_fp_env
def row_states(x, axes, compute_dtype, temperature=1.0, offset=None, surprise=False):
    """The states of x, an ndarray, with length 1 along the axes, a sorted tuple of ints from 0.

    compute_dtype: that of RowArguments. offset: of a causal mask over the last two dimensions. surprise: whether states
    are to have it.
    """
    states = np.empty([1 if i in axes else size for i, size in enumerate(x.shape)], state_dtype(x.dtype))
    states["others"], states["surprise"] = -1, 0
    states["row_max"] = np.iinfo(x.dtype).min if is_wide_integer(x.dtype) else -math.inf
    if x.size == 0:
        return states
    if is_wide_integer(x.dtype):        # the kernel sees distances from the largest, which it finds to be 0
        x, peak = reference.integer_distances(x, axes, None if offset is None else _visible(x, offset))
        distances = row_states(x, axes, compute_dtype, temperature, offset, surprise)
        states["row_max"], states["others"], states["surprise"] = peak, distances["others"], distances["surprise"]
    elif _has_kernel(compute_dtype, temperature):
        _kernel_states(converted(x, compute_dtype), states, axes, temperature, offset, surprise)
    else:
        _states_by_numpy(x, states, axes, temperature, offset)
    return states


@np.errstate(all="ignore")
def merged(states, axes, temperature=1.0):
    """The states of rows from those of their pieces, which lie along the axes; with length 1 there."""
    kept = tuple(i for i in range(states.ndim) if i not in axes)
    order = kept + tuple(axes)
    pieces = states.transpose(order).reshape(*(states.shape[i] for i in kept), math.prod(states.shape[i] for i in axes))
    top = pieces["row_max"].argmax(-1, keepdims=True)           # a NaN, if there is one
    row_max = np.take_along_axis(pieces["row_max"], top, -1)
    below, factor = _below(pieces["row_max"], row_max, temperature)
    seen = (pieces["others"] != -1) & (factor != 0)             # one of no weight may be infinitely far below
    total = np.where(seen, (1 + pieces["others"]) * factor, 0)
    of_piece = np.where(seen, pieces["surprise"] * factor - total * below, 0)
    result = np.empty(row_max.shape, states.dtype)
    result["row_max"] = row_max
    np.put_along_axis(total, top, np.take_along_axis(pieces["others"], top, -1), -1)
    result["others"] = total.sum(-1, keepdims=True)
    result["surprise"] = of_piece.sum(-1, keepdims=True)
    return result.reshape([1 if i in axes else size for i, size in enumerate(states.shape)])


@np.errstate(all="ignore")
def logsumexp(states, dtype):
    """The logarithm of the sum of exponentials of each row, in this dtype."""
    wide = np.longdouble if dtype.itemsize >= 8 else np.float64
    row_max = states["row_max"].astype(wide)
    result = row_max + np.log1p(states["others"].astype(wide))
    return _rounded(np.where(np.isfinite(row_max), result, row_max), dtype)


@np.errstate(all="ignore")
def entropy(states, dtype):
    """The entropy of each row, in this dtype, from states that have surprise."""
    result = np.log1p(states["others"]) + states["surprise"] / (1 + states["others"])
    return _rounded(np.where(np.isfinite(states["row_max"]), result, np.nan), dtype)


@default_fp_env
def from_states(op, x, states, axes, compute_dtype, temperature=1.0, offset=None):
    """The results of x, a piece of rows whose states these are: SOFTMAX or LOG_SOFTMAX, in the dtype of the
    computation. The rest as in `row_states`."""
    y = np.empty(x.shape, compute_dtype)
    if x.size == 0:
        return y
    if is_wide_integer(x.dtype):
        x, _ = _difference(x, states["row_max"])
        distances = np.zeros(states.shape, state_dtype(np.dtype(np.float64)))
        distances["others"] = states["others"]
        states = distances
    if _has_kernel(compute_dtype, temperature):
        _kernel_results(op, converted(x, compute_dtype), states, axes, temperature, offset, y)
    else:
        _results_by_numpy(op, x, states, temperature, offset, y)
    return y


def _has_kernel(dtype, temperature):
    least, most = TEMPERATURES
    return _fastpath.tag(dtype) is not None and least < temperature < most


def _kernel_states(x, states, axes, temperature, offset, surprise):
    """Write the states of x. Along axes that do not join, those along one of them are merged."""
    if not kernel_ready(x):
        x = x.copy(order="C")
    if offset is None and len(axes) > 1 and _layout_of(x, None, states, axes) is None:
        axis = min(axes, key=lambda i: (abs(x.strides[i]), -x.shape[i]))
        parts = np.empty([1 if i == axis else size for i, size in enumerate(x.shape)], states.dtype)
        _call(None, x, parts, (axis,), temperature, offset, surprise)
        states[...] = merged(parts, tuple(i for i in axes if i != axis), temperature)
    else:
        _call(None, x, states, axes, temperature, offset, surprise)


def _kernel_results(op, x, states, axes, temperature, offset, y):
    """Write y. A state serves any piece of its row, so one axis is as good as all."""
    x = x if kernel_ready(x) else x.copy(order="C")
    states = np.require(states, requirements="CA")      # those that another process has sent may lie anywhere
    axis = min(axes, key=lambda i: (abs(x.strides[i]), -x.shape[i]))
    _call(op, x, np.broadcast_to(states, [1 if i == axis else size for i, size in enumerate(x.shape)]), (axis,),
          temperature, offset, False, y)


def _call(op, x, states, axes, temperature, offset, surprise, y=None):
    """Write states, or y from them, by as few calls of a kernel as the strides allow; on a copy, if they are too many.
    """
    layout = _layout_of(x, y, states, axes, offset)
    if layout.calls > 1 and x.size < layout.calls * _softmax.MIN_ELEMENTS_PER_CALL:
        order = tuple(i for i in range(x.ndim) if i not in axes) + tuple(axes)      # whose dimensions then join
        of_x = states.transpose(order).copy(order="C")
        results = None if y is None else np.empty([x.shape[i] for i in order], y.dtype)
        last = tuple(range(x.ndim - len(axes), x.ndim))
        _call(op, x.transpose(order).copy(order="C"), of_x, last, temperature, offset, surprise, results)
        if y is None:
            states.transpose(order)[...] = of_x
        else:
            y.transpose(order)[...] = results
        return
    kernel = _dispatch.kernels(_fastpath.tag(x.dtype))
    threads = _threads.threads_for(x.size // layout.calls)
    nontemporal = y is not None and y.nbytes >= _softmax._nontemporal_bytes
    t = None if temperature == 1 else np.broadcast_to(np.float64(temperature), x.shape)
    for x_rows, y_rows, state_rows, t_rows in layout.views(
            elements(x), None if y is None else elements(y), states["row_max"], t):
        t_rows, state_rows = None if t_rows is None else t_rows[:, 0], state_rows[:, 0]
        if y is None:
            kernel.row_states(x_rows, t_rows, offset, state_rows, surprise, threads)
        else:
            kernel.rows_from_states(op, x_rows, y_rows, t_rows, offset, state_rows, threads, nontemporal)


def _layout_of(x, y, states, axes, offset=None):
    """Of x, y, states and temperatures, which are the same along the axes; None if the axes do not join."""
    none = (0,) * x.ndim
    of_states = tuple([0 if i in axes else stride for i, stride in enumerate(states.strides)])
    strides = x.strides, none if y is None else y.strides, of_states, none
    return (_layout.Layout.along(x.shape, tuple(axes), strides) if offset is None
            else _layout.Layout.of_matrices(x.shape, strides))


# ---- in NumPy


def _visible(x, offset):
    return np.broadcast_to(reference._causal(x.shape, offset), x.shape)


def _difference(x, row_max):
    """(x - row_max, the rounding error of this difference), of numbers not above row_max. Integers: without an error.
    """
    if row_max.dtype.kind in "iu":              # modulo 2**64, which no difference reaches
        return -(row_max.astype(np.uint64) - x.astype(np.uint64)).astype(np.float64), 0.0
    difference = x - row_max
    back = difference - x                       # two_sum (Knuth) of x and -row_max
    error = (x - (difference - back)) - (row_max + back)
    return difference, np.where(np.isfinite(error), error, 0)


def _below(x, row_max, temperature):
    """((x - row_max) / temperature, its exponential with the digits that the difference has lost)."""
    difference, error = _difference(x, row_max)
    score = difference / temperature
    return score, np.exp(score) * (1 + error / temperature)


@np.errstate(all="ignore")
def _states_by_numpy(x, states, axes, temperature, offset):
    x = x.astype(states["others"].dtype)
    if offset is not None:
        x = np.where(_visible(x, offset), x, -math.inf)
    row_max = x.max(axes, keepdims=True)
    score, weight = _below(x, row_max, temperature)
    largest = x == row_max
    others = np.where(largest, 0, weight).sum(axes, keepdims=True) + (largest.sum(axes, keepdims=True) - 1)
    surprise = np.where(weight > 0, weight * -score, 0).sum(axes, keepdims=True)
    finite = np.isfinite(row_max)
    states["row_max"] = row_max
    states["others"] = np.where(finite, others, np.where(row_max == -math.inf, -1, 0))
    states["surprise"] = np.where(finite, surprise, 0)


@np.errstate(all="ignore")
def _results_by_numpy(op, x, states, temperature, offset, y):
    x, row_max, others = x.astype(states["others"].dtype), states["row_max"], states["others"]
    score, weight = _below(x, row_max, temperature)
    if op == SOFTMAX:
        results = np.where(np.isfinite(row_max), weight / (1 + others), np.nan)
    else:                                       # of a row with +inf: -inf, and NaN at +inf
        results = score - np.where(np.isfinite(row_max), np.log1p(others), 0)
    if offset is not None:
        results = np.where(_visible(x, offset), results, 0)
    y[...] = _rounded(results, y.dtype)


def _rounded(x, dtype):
    return np.asarray(reference._round(np.asarray(x), dtype))
