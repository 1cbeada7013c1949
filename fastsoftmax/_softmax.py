"""The softmax family from checked arguments to kernel calls: staging, threads, non-temporal stores, long reductions.

Each function takes the arguments of a public function as the caller passed them, has them checked by `_validate`, and
computes the result with a kernel; or, for complex, long double, factors `b` and extreme temperatures, with the
reference.
"""

import contextlib
import math

import numpy as np

from fastsoftmax import _dispatch, _fastpath, _layout, _threads, _validate, reference
from fastsoftmax._dtypes import converted, is_wide_integer
from fastsoftmax._fastpath import LOG_SOFTMAX, LOGSUMEXP, SOFTMAX, SOFTMAX_ENTROPY
from fastsoftmax._fp_env import default_fp_env
from fastsoftmax._layout import elements, kernel_ready

SMALL_ELEMENTS = 1 << 12            # up to this size a copy takes less time than the description of a layout
STAGED_ELEMENTS = 1 << 18           # elements that are staged at a time if a kernel cannot take them as they are
PIECE_ELEMENTS = 1 << 16            # elements of a longer row that a reduction stages at a time
MIN_ELEMENTS_PER_CALL = 1 << 11     # elements a kernel call should have, if several calls are needed

_REFERENCE = {SOFTMAX: reference.softmax, LOG_SOFTMAX: reference.log_softmax}


def nontemporal_threshold():
    """Bytes of results from which they are written with non-temporal stores: half of the last-level cache."""
    try:                        # not sysconf, which in a virtual machine may give the cache of the whole processor
        with open("/sys/devices/system/cpu/cpu0/cache/index3/size") as file:
            cache = int(file.read().strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        cache = 1 << 25
    return max(cache, 1 << 23) // 2


def _set_nontemporal_bytes(size):
    global _nontemporal_bytes
    _nontemporal_bytes = size
    _fastpath.configure(_threads.threads_for, size)


_set_nontemporal_bytes(nontemporal_threshold())


@contextlib.contextmanager
def nontemporal_from(size):
    """For tests: results of this many bytes or more are written with non-temporal stores while the block runs."""
    before = _nontemporal_bytes
    _set_nontemporal_bytes(size)
    try:
        yield
    finally:
        _set_nontemporal_bytes(before)


@default_fp_env
def elementwise(op, x, axis, temperature, where, dtype, out, dim):
    """softmax and log_softmax."""
    arguments = _validate.elementwise(x, axis, temperature, where, dtype, out, dim)
    if not arguments.has_kernel:
        y = _REFERENCE[op](arguments.x, arguments.axes, temperature=arguments.temperature, where=arguments.where,
                           dtype=arguments.compute_dtype)
        return _deliver(y, arguments.result_dtype, out)
    y = _small_fast_path(op, arguments)
    if y is not None:
        return _deliver(y, arguments.result_dtype, out)
    y, x, where = _operands(arguments, out)
    _compute(op, arguments, x, y, where)
    return y[()] if out is None else y


@default_fp_env
def logsumexp(a, axis, b=None, keepdims=False, return_sign=False, where=None, dtype=None, out=None, dim=None):
    """logsumexp."""
    arguments, b, shape, log_dtype = _validate.logsumexp(a, axis, b, keepdims, return_sign, where, dtype, out, dim)
    if not arguments.has_kernel:
        return _reference_logsumexp(arguments, b, keepdims, return_sign, log_dtype, out)
    y = _deliver(_reduced(LOGSUMEXP, arguments).reshape(shape), log_dtype, out)
    if not return_sign:
        return y
    with np.errstate(all="ignore"):
        return y, np.where(np.isnan(y), y, (y != -math.inf)).astype(arguments.result_dtype)[()]


def _reference_logsumexp(arguments, b, keepdims, return_sign, log_dtype, out):
    x = arguments.x
    if b is not None:       # conversion to a common dtype of enough bits keeps the value of both
        wide = np.result_type(arguments.compute_dtype, np.float64)
        x, b = x if x.dtype.kind in "iuO" else x.astype(wide), b.astype(wide)
    y = reference.logsumexp(x, arguments.axes, b, keepdims, return_sign, where=arguments.where,
                            dtype=arguments.compute_dtype)
    if return_sign:
        return _deliver(y[0], log_dtype, out), _deliver(y[1], arguments.result_dtype, None)
    return _deliver(y, log_dtype, out)


@default_fp_env
def entropy(x, axis, temperature, where, dim):
    """softmax_entropy."""
    arguments = _validate.entropy(x, axis, temperature, where, dim)
    if not arguments.has_kernel:
        return reference.softmax_entropy(
            arguments.x, arguments.axes, temperature=arguments.temperature, where=arguments.where)
    shape = [size for i, size in enumerate(arguments.x.shape) if i not in arguments.axes]
    return _reduced(SOFTMAX_ENTROPY, arguments).reshape(shape)[()]


@default_fp_env
def causal_softmax(scores, offset, temperature, dtype, out):
    """causal_softmax."""
    arguments, offset = _validate.causal_softmax(scores, offset, temperature, dtype, out)
    if not arguments.has_kernel and arguments.x.size:
        y = reference.causal_softmax(
            arguments.x, offset=offset, temperature=arguments.temperature, dtype=arguments.compute_dtype)
        return _deliver(y, arguments.result_dtype, out)
    y, x, _ = _operands(arguments, out)
    _compute_causal(arguments, x, y, offset)
    return y


@default_fp_env
def causal_mask(scores, offset, fill_value):
    """causal_mask_."""
    x, offset, value = _validate.causal_mask(scores, offset, fill_value)
    tag = _fastpath.tag(x.dtype)
    if x.size == 0:
        return
    if tag is None or not kernel_ready(x):
        with np.errstate(all="ignore"):
            reference.causal_mask_(x, offset=offset, fill_value=value)
        return
    seen = elements(x)
    for (matrices,) in _layout.Layout.of_matrices(seen.shape, (seen.strides,)).views(seen):
        _dispatch.kernels(tag).causal_mask(
            matrices, offset, value, _threads.threads_for(x.size // 2), x.nbytes >= _nontemporal_bytes)


def _small_fast_path(op, arguments):
    """The result for a few elements, copied for the fast path; None if it does not take them."""
    x, axes, temperature, where, compute_dtype, _, _ = arguments
    if where is not None or x.size > SMALL_ELEMENTS or len(axes) not in (1, x.ndim) or type(temperature) is not float:
        return None
    x, peak = _contiguous(x, compute_dtype, axes)
    y = _fastpath.rows(op, x, None if len(axes) == x.ndim else axes[0], temperature)
    return y if peak is None or op != LOGSUMEXP or y is None else y + peak.reshape(np.shape(y)).astype(compute_dtype)


def _reduced(op, arguments):
    """logsumexp or entropy: the axes are gone or have length 1."""
    y = _small_fast_path(op, arguments)
    if y is not None:
        y = np.asarray(y)
    else:
        shape = [1 if i in arguments.axes else size for i, size in enumerate(arguments.x.shape)]
        y = np.full(shape, -math.inf, arguments.result_dtype)       # a logsumexp over nothing
        _compute(op, arguments, arguments.x, y, arguments.where)
    return y


def _contiguous(x, dtype, axes, where=None, copy=False):
    """(x in this dtype and C order, None); for wide integers, (distances from the peaks of the rows, peaks)."""
    if is_wide_integer(x.dtype):
        distances, peak = reference.integer_distances(x, axes, where)
        return converted(distances, dtype, "C"), peak
    return converted(x, dtype, "C", copy=copy), None


def _operands(arguments, out):
    """(y, x, where): y for the results, and inputs that do not overlap it; x may be y itself."""
    x, where = arguments.x, arguments.where
    if out is None:
        return np.empty_like(x, dtype=arguments.result_dtype, subok=False), x, where
    return out, _layout.copy_if_overlapping(x, out, in_place=True), _layout.copy_if_overlapping(where, out)


def _deliver(y, dtype, out):
    """A finished result in its dtype, in out if there is one."""
    if out is None:
        return converted(np.asarray(y), dtype)[()]
    with np.errstate(all="ignore"):
        np.copyto(out, y, casting="same_kind")
    return out


def _broadcast_temperature(temperature, shape):
    """None for a temperature of 1."""
    if isinstance(temperature, float):
        return None if temperature == 1 else _fastpath.broadcast_to(np.asarray(temperature), shape)
    return _fastpath.broadcast_to(temperature, shape)


def _compute(op, arguments, x, y, where):
    """Write y, which has x's number of dimensions, with length 1 along the axes if they are reduced."""
    axes, dtype = arguments.axes, arguments.compute_dtype
    if x.size == 0:
        return
    temperature = _broadcast_temperature(arguments.temperature, x.shape)
    if x.dtype == dtype == y.dtype and kernel_ready(x) and kernel_ready(y):
        none = (0,) * x.ndim
        y_strides = y.strides
        if op >= LOGSUMEXP:
            y_strides = tuple([0 if i in axes else stride for i, stride in enumerate(y.strides)])
        layout = _layout.Layout.along(x.shape, axes, (
            x.strides, y_strides, none if temperature is None else temperature.strides,
            none if where is None else where.strides))
        if layout is not None and (layout.calls == 1 or x.size >= layout.calls * MIN_ELEMENTS_PER_CALL):
            _call(op, layout, x, y, temperature, where, None)
            return
    _compute_staged(op, x, y, dtype, axes, temperature, where)


def _call(op, layout, x, y, temperature, where, offset):
    """Write y by the kernel calls of a layout of x, y, temperature and where."""
    kernel = _dispatch.kernels(_fastpath.tag(x.dtype)).softmax_rows
    threads = _threads.threads_for(x.size // layout.calls)
    nontemporal = y.nbytes >= _nontemporal_bytes and not np.may_share_memory(x, y)
    mask = None if where is None else elements(where)
    for x_rows, y_rows, t, mask_rows in layout.views(elements(x), elements(y), temperature, mask):
        kernel(op, x_rows, y_rows, None if t is None else t[:, 0], mask_rows, offset, threads, nontemporal)


def _compute_staged(op, x, y, dtype, axes, temperature, where):
    """As `_compute`, with a buffer in the kernel's order and dtype for some rows at a time.

    A row is staged whole, since its sum has an order; its buffer may be as long as the result, which softmax and
    log_softmax need anyway. Reductions need no such memory: a long row is reduced in pieces.
    """
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    order = kept + axes
    n = math.prod(x.shape[i] for i in axes)
    kernel = _dispatch.kernels(_fastpath.tag(dtype)).softmax_rows
    x, y = x.transpose(order), y.transpose(order)
    kept_shape = x.shape[:len(kept)]
    if temperature is not None:
        temperature = temperature.transpose(order)[(..., *(0,) * len(axes))]
    if where is not None:
        where = where.transpose(order)
    if op >= LOGSUMEXP and n > STAGED_ELEMENTS:
        for index in np.ndindex(kept_shape):
            y[index] = _reduced_in_pieces(op, x[index], 1.0 if temperature is None else temperature[index],
                                          True if where is None else where[index])
        return
    for piece in _layout.pieces(kept_shape, max(1, STAGED_ELEMENTS // n)):
        along = tuple(range(len(kept), x.ndim))
        rows, peak = _contiguous(x[piece], dtype, along, None if where is None else where[piece], copy=True)
        shape = rows.shape[:len(kept)]
        rows = elements(rows).reshape(-1, n, 1)
        results = np.empty((len(rows), n if op < LOGSUMEXP else 1, 1), dtype)
        t = None if temperature is None else np.ascontiguousarray(temperature[piece]).reshape(-1, 1)
        mask = None if where is None else elements(np.ascontiguousarray(where[piece])).reshape(-1, n, 1)
        kernel(op, rows, elements(results), t, mask, None, _threads.threads_for(rows.size), False)
        results = results.reshape(shape + y.shape[len(kept):])
        with np.errstate(all="ignore"):
            y[piece] = results if peak is None or op != LOGSUMEXP else results + peak.astype(dtype)


@np.errstate(all="ignore")
def _reduced_in_pieces(op, row, temperature, where):
    """logsumexp or entropy of one row, of any number of dimensions, from those of its pieces, in bounded memory.

    Entropy needs the differences of the pieces' lses to more digits than large lses have, so each piece is shifted by
    its own maximum, its peak. So are integers. logsumexp of floats needs no shift: rounding the lse of a piece loses no
    more than rounding that of the row.
    """
    buffer = np.empty(PIECE_ELEMENTS)
    peaks, lses, entropies = [], [], []
    any_visible = False
    integers = is_wide_integer(row.dtype)
    for piece in _layout.pieces(row.shape, PIECE_ELEMENTS):
        part = row[piece]
        scores = buffer[:part.size]
        visible = True if where is True else where[piece].reshape(-1)
        peak = 0.0
        if integers or op == SOFTMAX_ENTROPY:
            part_visible = part.size > 0 and bool(np.any(visible))
            any_visible = any_visible or part_visible
            if integers and not part_visible:
                continue
        if integers:
            distances, peak = reference.integer_distances(part.reshape(-1), 0, visible)
            scores[:], peak = distances, int(peak[0])
        else:
            np.copyto(scores.reshape(part.shape), part, casting="unsafe")
            if op == SOFTMAX_ENTROPY:
                peak = float(scores.max(where=visible, initial=-math.inf))
                if peak == -math.inf:           # all weights of the piece are 0
                    continue
                if not math.isfinite(peak):
                    return math.nan
                scores -= peak
        if op == SOFTMAX_ENTROPY:
            entropies.append(_reduced_line(op, scores, temperature, visible))
        peaks.append(peak)
        lses.append(_reduced_line(LOGSUMEXP, scores, temperature, visible))
    if not peaks:
        return -math.inf if op == LOGSUMEXP else math.nan if any_visible else 0.0
    top = max(peaks)
    below_top = [peak - top if integers else np.longdouble(peak) - top for peak in peaks]
    lses = np.array(below_top, np.longdouble) / temperature + np.array(lses)
    lse, mean_surprise = _merged(lses, np.array(entropies or 0.0))
    return mean_surprise if op == SOFTMAX_ENTROPY else top + lse


def _reduced_line(op, scores, temperature, visible):
    """The kernel's result for a contiguous line of float64."""
    y = np.empty((1, 1, 1))                     # with a temperature, the largest score is 0, as the kernel requires
    t = None if temperature == 1 else np.full((1, 1), temperature)
    mask = None if visible is True else elements(visible).reshape(1, -1, 1)
    _dispatch.kernels("f64").softmax_rows(
        op, scores.reshape(1, -1, 1), y, t, mask, None, _threads.threads_for(scores.size), False)
    return float(y[0, 0, 0])


def _merged(lses, entropies):
    """The lse and the entropy of a row from those of its pieces, which come in long double.

    lse = logsumexp(lses), and the entropy is the mean surprise sum(w_k * (H_k + lse - lse_k)), w_k = exp(lse_k - lse),
    of which no term is negative, so that nothing cancels.
    """
    first = lses.argmax()                       # a NaN, if there is one
    if not np.isfinite(lses[first]):
        return float(lses[first]), math.nan
    weights = np.exp(lses - lses[first])
    weights[first] = 0                          # log1p of the others keeps the digits of a small sum
    lse = lses[first] + np.log1p(weights.sum())
    return float(lse), float((np.exp(lses - lse) * (entropies + (lse - lses))).sum())


def _compute_causal(arguments, x, y, offset):
    dtype = arguments.compute_dtype
    if x.size == 0:
        return
    temperature = _broadcast_temperature(arguments.temperature, x.shape)
    if x.dtype == dtype == y.dtype and kernel_ready(x) and kernel_ready(y):
        none = (0,) * x.ndim
        layout = _layout.Layout.of_matrices(x.shape, (
            x.strides, y.strides, none if temperature is None else temperature.strides, none))
        _call(SOFTMAX, layout, x, y, temperature, None, offset)
        return
    kernel = _dispatch.kernels(_fastpath.tag(dtype)).softmax_rows
    for index in np.ndindex(x.shape[:-2]):      # one matrix at a time, so the buffers are no larger than the result
        visible = reference._causal(x.shape, offset) if is_wide_integer(x.dtype) else None
        matrix, _ = _contiguous(x[index], dtype, (1,), visible, copy=True)
        results = np.empty_like(matrix)
        t = None if temperature is None else np.ascontiguousarray(temperature[index][:, 0])[None]
        kernel(SOFTMAX, elements(matrix).T[None], elements(results).T[None], t, None, offset,
               _threads.threads_for(matrix.size), False)
        with np.errstate(all="ignore"):
            y[index] = results
