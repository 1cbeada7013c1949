"""Every check of the arguments of sampling, and every error message: as `_validate`, whose helpers it uses."""

import math
from typing import Any, NamedTuple

import numpy as np

from fastsoftmax._dtypes import converted, native, natural_dtype
from fastsoftmax._fastpath import broadcast_to, tag
from fastsoftmax._layout import elements_overlap
from fastsoftmax._validate import (
    TEMPERATURES,
    _axis,
    _check_out,
    _refuse_complex,
    _where,
    as_numbers,
)

MOST_TOKENS = 1 << 52       # more than any array has, and an integer of a float64
NO_FILTER = [float(MOST_TOKENS), 1.0, 0.0, 1.0]            # top_k, top_p, min_p and typical_p that filter nothing
NAN, INFINITE, NOTHING = 1, 2, 3                           # RowStatus of kernels/sampling/params.pxi


class SamplingArguments(NamedTuple):
    """The checked arguments of sample and filter_logits."""

    logits: Any
    axis: int                   # from 0
    rows: tuple[int, ...]       # the shape without the axis
    where: Any                  # None, or booleans broadcast to the shape of the logits
    options: Any                # float64 (*rows, 5), or (5,) for all rows: temperature, top_k, top_p, min_p, typical_p
    has_filters: bool           # whether a row may have one
    result_dtype: Any           # of filtered logits
    has_kernel: bool


def sampling(logits, axis, temperature, top_k, top_p, min_p, typical_p, where):
    """The arguments that sample and filter_logits share."""
    x = as_numbers(logits, "logits")
    axis = _axis(axis, x.ndim)
    result_dtype = natural_dtype(x.dtype, integers_to_float64=False)
    _refuse_complex(result_dtype, "sampling")
    if x.shape[axis] == 0:
        raise ValueError(f"there are no tokens: axis {axis} of logits of shape {x.shape} is empty")
    rows = x.shape[:axis] + x.shape[axis + 1:]
    options = [
        _temperature(temperature, rows), _top_k(top_k, rows), _share(top_p, "top_p", 1.0, rows),
        _share(min_p, "min_p", 0.0, rows), _share(typical_p, "typical_p", 1.0, rows)]
    where = _where(where, x.shape)
    return SamplingArguments(x, axis, rows, where, _together(options, rows), _has_filter(options[1:]), result_dtype,
                             _is_moderate(options[0]) and tag(result_dtype) is not None)


def _has_filter(options):
    return any(type(option) is not float or option != nothing
               for option, nothing in zip(options, NO_FILTER, strict=True))


def _is_moderate(temperature):
    """Whether the kernels' arithmetic holds for it, or for all."""
    least, most = TEMPERATURES
    if type(temperature) is float:
        return temperature == 0 or least < temperature < most
    return bool(np.all((temperature == 0) | ((temperature > least) & (temperature < most))))


def filtered_out(out, arguments):
    """Check `out` of filter_logits."""
    if out is not None:
        _check_out(out, arguments.logits.shape, arguments.result_dtype)


def uniform_of_rows(rng, uniform, rows):
    """The numbers in [0, 1), float64 of the shape of the rows, in C order."""
    if uniform is None:
        if type(rng) is not np.random.Generator and not isinstance(rng, np.random.Generator):
            try:
                rng = np.random.default_rng(rng)
            except (TypeError, ValueError) as error:
                raise type(error)(f"rng must be a numpy.random.Generator, a seed or None: {error}") from None
        return np.asarray(rng.random(rows))
    if rng is not None:
        raise ValueError("rng and uniform are both given; pass the one or the other")
    numbers = _numbers(uniform, "uniform", rows, "in [0, 1)", lambda u: (u >= 0) & (u < 1))
    return np.array(np.broadcast_to(numbers, rows), np.float64, order="C")


def _together(options, rows):
    """float64 (*rows, count), or (count,) if every option is one number."""
    if all(type(option) is float for option in options):
        return np.array(options)
    together = np.empty((*rows, len(options)), np.float64)
    for i, option in enumerate(options):
        together[..., i] = option
    return together


def _numbers(x, name, rows, expected, is_valid):
    """A float, or float64 broadcast to the rows."""
    if type(x) is float:
        if not is_valid(x):
            raise ValueError(f"{name} must be {expected}, got {x}")
        return x
    array = as_numbers(x, name, instead_of_masked=f"{name}.data")
    if array.dtype.kind not in "iuf" and tag(array.dtype) is None:
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    return _of_rows(converted(array, np.float64), name, rows, expected, is_valid)


def _of_rows(numbers, name, rows, expected, is_valid):
    wrong = ~is_valid(numbers)
    if wrong.any():
        at = tuple([int(i) for i in np.argwhere(wrong)[0]])
        place = f"{name}[{', '.join(map(str, at))}]" if at else name
        raise ValueError(f"{place} must be {expected}, got {numbers[at]}")
    if numbers.ndim == 0:
        return float(numbers)
    view = broadcast_to(numbers, rows)
    if view is None:
        raise ValueError(f"{name} of shape {numbers.shape} does not broadcast to {rows}: one for each row, the shape "
                         "of the logits without their axis")
    return view


def _temperature(temperature, rows):
    return _numbers(temperature, "temperature", rows, "finite and not negative", lambda t: (t >= 0) & (t < math.inf))


def _share(share, name, nothing, rows):
    if share is None:
        return nothing
    return _numbers(share, name, rows, "from 0 to 1", lambda p: (p >= 0) & (p <= 1))


def _integers(x, name, rows, expected, is_valid):
    """A float, or float64 broadcast to the rows, of integers clipped to MOST_TOKENS."""
    if type(x) is int:          # of any size; NumPy would make an object of a large one
        if not is_valid(x):
            raise ValueError(f"{name} must be {expected}, got {x}")
        return float(min(x, MOST_TOKENS))
    array = as_numbers(x, name, instead_of_masked=f"{name}.data")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an int or an array of ints, got dtype {array.dtype}")
    if array.dtype.itemsize == 8:
        array = np.asarray(np.minimum(array, array.dtype.type(MOST_TOKENS)))
    numbers = _of_rows(array, name, rows, expected, is_valid)
    return numbers if type(numbers) is float else converted(numbers, np.float64)


def _top_k(top_k, rows):
    return NO_FILTER[0] if top_k is None else _integers(top_k, "top_k", rows, "at least 1", lambda k: k >= 1)


def check_rows(status, axis):
    """Raise a ValueError that names the first row, in C order, which is not fine."""
    if not status.any():
        return
    at = [int(i) for i in np.unravel_index(np.flatnonzero(status)[0], status.shape)]
    reason = {NAN: "holds NaN", INFINITE: "holds +inf",
              NOTHING: "has no token to draw: every logit is -inf or hidden by where"}[int(status[tuple(at)])]
    names = [*map(str, at[:axis]), ":", *map(str, at[axis:])]
    raise ValueError(f"logits[{', '.join(names)}] {reason}" if at else f"logits {reason}")


class PenaltyArguments(NamedTuple):
    """The checked arguments of penalize_."""

    logits: Any
    tokens: Any                 # int64 (*rows, T)
    options: Any                # float64 (*rows, 4), or (4,) for all rows: repetition, frequency, presence, length


def penalties(logits, tokens, repetition, frequency, presence, lengths):
    """The arguments of penalize_."""
    x = _changed_in_place(logits)
    rows, count = x.shape[:-1], x.shape[-1]
    tokens = as_numbers(tokens, "tokens", "tokens.filled(0), with lengths,")
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
    if tokens.shape[:-1] != rows or tokens.ndim == 0:
        raise ValueError(f"tokens of shape {tokens.shape} does not fit logits of shape {x.shape}: it must be "
                         f"({''.join(f'{size}, ' for size in rows)}T)")
    most = tokens.shape[-1]
    length = float(most) if lengths is None else _integers(
        lengths, "lengths", rows, f"from 0 to the number of tokens, {most}", lambda n: (n >= 0) & (n <= most))
    options = [
        _numbers(repetition, "repetition", rows, "positive and finite", lambda r: (r > 0) & (r < math.inf)),
        *(_numbers(value, name, rows, "finite", lambda v: abs(v) < math.inf)
          for value, name in ((frequency, "frequency"), (presence, "presence"))), length]
    wrong = (tokens < 0) | (tokens >= count)
    if lengths is not None:
        wrong &= np.arange(most) < np.asarray(length)[..., None]
    if wrong.any():
        at = tuple([int(i) for i in np.argwhere(wrong)[0]])
        raise IndexError(f"tokens[{', '.join(map(str, at))}] is {int(tokens[at])}, which is not from 0 to {count - 1}")
    return PenaltyArguments(x, converted(tokens, np.int64), _together(options, rows))


def _changed_in_place(logits):
    if isinstance(logits, np.ma.MaskedArray):
        raise TypeError("logits is a masked array; pass logits.data, which is then changed in place")
    if not isinstance(logits, np.ndarray):
        raise TypeError(f"logits must be an ndarray, since it is changed in place; got {type(logits).__name__}")
    if logits.dtype.kind != "f" and tag(native(logits.dtype)) is None:
        raise TypeError(f"logits must be floating, got dtype {logits.dtype}")
    if logits.ndim == 0:
        raise ValueError("logits must have at least one dimension (..., tokens), got shape ()")
    if not logits.flags.writeable:
        raise ValueError("logits is read-only; it is changed in place")
    if elements_overlap(logits):
        raise ValueError(f"elements of logits share memory (shape {logits.shape}, strides {logits.strides}); expected "
                         "an array with a place for each, since it is changed in place")
    return np.asarray(logits)
