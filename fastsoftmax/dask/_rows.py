"""The softmax family on dask arrays.

Where no axis of the reduction is chunked, each chunk has whole rows, and the NumPy function computes it. Otherwise

    states = the state of each chunk, with length 1 along the axes      fastsoftmax/_states.py
    total  = states merged by tree, dask.config's split_every (4) at a time
    result = logsumexp and entropy: from total; softmax and log_softmax: from x and total, chunk by chunk
"""

import functools

import dask.array as da
import numpy as np

import fastsoftmax
from fastsoftmax import _states, _validate
from fastsoftmax._fastpath import LOG_SOFTMAX, SOFTMAX
from fastsoftmax._typing import signature_without_dim
from fastsoftmax.dask._arrays import dask_array, empty, stand_in, task


@signature_without_dim
def softmax(x, axis=None, *, temperature=1.0, dim=None):
    """`fastsoftmax.softmax` of a dask array, lazily.

    Parameters
    ----------
    x : dask array
        Scores, of any shape and chunks: float16, bfloat16, float32, float64, long double, integers or bool. A NumPy
        array becomes a dask array first.
    axis : int, tuple of ints or None, default None
        The axes along which the weights sum to one, chunked or not; None takes all elements.
    temperature : float, default 1.0
        Divides the scores: one positive, finite number.

    Returns
    -------
    dask array
        Of the shape and chunks of x. Equal calls have equal names.

    Raises
    ------
    TypeError
        If x is complex, not numeric, or not of plain NumPy chunks, or temperature is not one number.
    ValueError
        If chunks have unknown sizes, an axis of the reduction is empty, or temperature is not positive and finite.
    numpy.exceptions.AxisError
        If an axis is out of range.

    Notes
    -----
    All errors come when the graph is built. Error of the results at most 2 ULP, 4 for float64, and where no axis is
    chunked the very bits of `fastsoftmax.softmax`. Along a chunked axis x is needed twice, for the sum and for the
    weights, and dask keeps its chunks between. Each chunk gives its largest score and the sum of the other weights, in
    float64; these are merged by tree [1]_ [2]_.

    References
    ----------
    .. [1] M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867 (2018).
    .. [2] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and softmax functions",
       IMA Journal of Numerical Analysis 41 (2021).

    Examples
    --------
    >>> import dask.array as da
    >>> from fastsoftmax.dask import softmax
    >>> y = softmax(da.arange(6, chunks=2, dtype=float))
    >>> y
    dask.array<fastsoftmax.softmax, shape=(6,), dtype=float64, chunksize=(2,), chunktype=numpy.ndarray>
    >>> y.compute().round(3)
    array([0.004, 0.012, 0.032, 0.086, 0.233, 0.634])
    """
    return _elementwise("softmax", SOFTMAX, x, axis, temperature, dim)


@signature_without_dim
def log_softmax(x, axis=None, *, temperature=1.0, dim=None):
    """`fastsoftmax.log_softmax` of a dask array, lazily.

    Parameters
    ----------
    x, axis, temperature
        As in `softmax`.

    Returns
    -------
    dask array
        Of the shape and chunks of x.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastsoftmax.dask import log_softmax
    >>> log_softmax(da.from_array([0.0, -20.0], chunks=1)).compute()
    array([-2.06115362e-09, -2.00000000e+01])
    """
    return _elementwise("log_softmax", LOG_SOFTMAX, x, axis, temperature, dim)


@signature_without_dim
def logsumexp(a, axis=None, *, keepdims=False, dim=None):
    """`fastsoftmax.logsumexp` of a dask array, lazily.

    Parameters
    ----------
    a, axis
        As x and axis in `softmax`. Integers and bool give float64.
    keepdims : bool, default False
        Keep the axes, with length 1.

    Returns
    -------
    dask array
        -inf for an empty sum.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`; an empty axis is no error.

    Notes
    -----
    Error at most 2 ULP; for results near 0, in units of log(sum(exp(a - max(a)))).

    Examples
    --------
    >>> import dask.array as da
    >>> from fastsoftmax.dask import logsumexp
    >>> print(logsumexp(da.from_array([1000.0, 1000.0], chunks=1)).compute())
    1000.6931471805599
    """
    a = dask_array(a, "a")
    arguments, _, _, dtype = _validate.logsumexp(stand_in(a), axis, None, False, False, None, None, None, dim)
    _refuse_complex(arguments)
    return _reduced("logsumexp", a, arguments, 1.0, keepdims, _logsumexp_of_states, {})


@signature_without_dim
def softmax_entropy(x, axis=None, *, temperature=1.0, keepdims=False, dim=None):
    """`fastsoftmax.softmax_entropy` of a dask array, lazily.

    Parameters
    ----------
    x, axis, temperature
        As in `softmax`.
    keepdims : bool, default False
        Keep the axes, with length 1.

    Returns
    -------
    dask array
        The entropy of the weights along the axes, in nats.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `softmax`.

    Notes
    -----
    Error at most 8 ULP: where rows are in pieces, each piece adds its own entropy and its distance from the largest.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastsoftmax.dask import softmax_entropy
    >>> softmax_entropy(da.ones((2, 8), chunks=(1, 2)), axis=-1).compute().round(4)
    array([2.0794, 2.0794])
    """
    x = dask_array(x, "x")
    arguments = _validate.entropy(stand_in(x), axis, _one_temperature(temperature), None, dim)
    t = arguments.temperature
    return _reduced("softmax_entropy", x, arguments, t, keepdims, _entropy_of_states, {"temperature": t})


def causal_softmax(scores, *, offset=0, temperature=1.0):
    """`fastsoftmax.causal_softmax` of a dask array, lazily.

    Parameters
    ----------
    scores : dask array, (..., L, S)
        Score of query i for key j at ``[..., i, j]``; visible where ``j <= i + offset``. Queries and keys may be
        chunked.
    offset : int, default 0
        ``S - L`` aligns the last query with the last key.
    temperature : float, default 1.0
        As in `softmax`.

    Returns
    -------
    dask array, (..., L, S)
        0 at hidden keys, whatever their scores are; zeros for a query that sees no key.

    Raises
    ------
    TypeError, ValueError
        As `softmax`; also if scores has fewer than two dimensions or offset is not an int.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastsoftmax.dask import causal_softmax
    >>> causal_softmax(da.zeros((3, 3), chunks=2)).compute().round(3)
    array([[1.   , 0.   , 0.   ],
           [0.5  , 0.5  , 0.   ],
           [0.333, 0.333, 0.333]])
    """
    x = dask_array(scores, "scores")
    arguments, offset = _validate.causal_softmax(stand_in(x), offset, _one_temperature(temperature), None, None)
    _refuse_complex(arguments)
    dtype = arguments.result_dtype
    dimensions = tuple(range(x.ndim))
    positions = [v for i in (x.ndim - 2, x.ndim - 1) for v in (da.arange(x.shape[i], chunks=(x.chunks[i],)), (i,))]
    options = {"offset": offset, "temperature": arguments.temperature}
    whole = x.numblocks[-1] == 1
    if not whole:
        kind = _states.state_dtype(x.dtype)
        states = da.blockwise(
            _causal_states, dimensions, x, dimensions, *positions, **options, compute_dtype=dtype,
            adjust_chunks={x.ndim - 1: 1}, align_arrays=False, token="fastsoftmax.causal_states", dtype=kind,
            meta=empty(x.ndim, kind))
        total = _merged(states, (x.ndim - 1,), arguments.temperature)
    return da.blockwise(
        _causal_rows if whole else _causal_from_states, dimensions, x, dimensions,
        *positions, *(() if whole else (total, dimensions)), **options, align_arrays=False,
        token="fastsoftmax.causal_softmax", dtype=dtype, meta=empty(x.ndim, dtype),
        **({} if whole else {"compute_dtype": dtype}))


# ---- graphs


def _one_temperature(temperature):
    if isinstance(temperature, da.Array) or np.ndim(temperature):
        raise TypeError("temperature must be one number for a dask array; divide it by an array of temperatures first")
    return temperature


def _refuse_complex(arguments):
    if arguments.result_dtype.kind == "c":
        raise TypeError(f"fastsoftmax.dask takes real numbers, got {arguments.x.dtype}")


def _elementwise(name, op, x, axis, temperature, dim):
    """softmax and log_softmax."""
    x = dask_array(x, "x")
    arguments = _validate.elementwise(stand_in(x), axis, _one_temperature(temperature), None, None, None, dim)
    _refuse_complex(arguments)
    axes, dtype, dimensions = arguments.axes, arguments.result_dtype, tuple(range(x.ndim))
    options = {"dtype": dtype, "meta": empty(x.ndim, dtype), "token": f"fastsoftmax.{name}",
               "temperature": arguments.temperature}
    if _are_whole(x, axes):
        return da.blockwise(_rows, dimensions, x, dimensions, name_of_function=name, axis=axes, **options)
    total = _total(x, arguments, arguments.temperature)
    return da.blockwise(_from_states, dimensions, x, dimensions, total, dimensions, op=op, axes=axes,
                        compute_dtype=arguments.compute_dtype, align_arrays=False, **options)


def _are_whole(x, axes):
    """Whether each chunk has whole rows."""
    return all(x.numblocks[i] == 1 for i in axes)


def _total(x, arguments, temperature, surprise=False):
    """The states of the rows of x, with length 1 along the axes."""
    kind = _states.state_dtype(x.dtype)
    chunk = functools.partial(_states_of_chunk, compute_dtype=arguments.compute_dtype, temperature=temperature,
                              surprise=surprise)
    merge = functools.partial(_merge, temperature=temperature)
    return da.reduction(x, chunk=chunk, combine=merge, aggregate=merge, axis=arguments.axes, keepdims=True, dtype=kind,
                        meta=empty(x.ndim, kind), name="fastsoftmax.states")


def _merged(states, axes, temperature):
    """States along the axes merged by tree."""
    merge = functools.partial(_merge, temperature=temperature)
    return da.reduction(states, chunk=merge, combine=merge, aggregate=merge, axis=axes, keepdims=True,
                        dtype=states.dtype, meta=states._meta, name="fastsoftmax.merged_states")


def _reduced(name, x, arguments, temperature, keepdims, of_states, options):
    """logsumexp and softmax_entropy."""
    axes, dtype = arguments.axes, arguments.result_dtype
    shape = {"axis": axes, "keepdims": bool(keepdims), "dtype": dtype, "name": f"fastsoftmax.{name}",
             "meta": empty(x.ndim if keepdims else x.ndim - len(axes), dtype)}
    if not axes:
        return da.blockwise(_rows, tuple(range(x.ndim)), x, tuple(range(x.ndim)), name_of_function=name, axis=axes,
                            dtype=dtype, meta=empty(x.ndim, dtype), token=f"fastsoftmax.{name}", **options)
    if _are_whole(x, axes):
        chunk = functools.partial(_rows_with_their_axes, name_of_function=name, **options)
        return da.reduction(x, chunk=chunk, aggregate=_without_axes, **shape)
    total, dimensions = _total(x, arguments, temperature, name == "softmax_entropy"), tuple(range(x.ndim))
    kept = tuple(i for i in dimensions if keepdims or i not in axes)
    return da.blockwise(of_states, kept, total, dimensions, axes=axes, keepdims=bool(keepdims), result_dtype=dtype,
                        concatenate=True, token=shape["name"], dtype=dtype, meta=shape["meta"])


# ---- tasks: functions of chunks


@task
def _rows(x, *, name_of_function, axis, **options):
    return np.asarray(getattr(fastsoftmax, name_of_function)(x, axis, **options))


def _rows_with_their_axes(x, *, axis, keepdims, **options):
    shape = [1 if i in axis else size for i, size in enumerate(x.shape)]
    return _rows(x, axis=axis, **options).reshape(shape)


def _without_axes(x, axis, keepdims):
    return x if keepdims else x.reshape([size for i, size in enumerate(x.shape) if i not in axis])


@task
def _states_of_chunk(x, *, axis, keepdims, compute_dtype, temperature, surprise):
    return _states.row_states(np.asarray(x), tuple(sorted(axis)), compute_dtype, temperature, None, surprise)


@task
def _merge(states, *, axis, keepdims, temperature):
    return _states.merged(states, tuple(sorted(axis)), temperature)


def _logsumexp_of_states(states, *, axes, keepdims, result_dtype):
    return _without_axes(_states.logsumexp(states, result_dtype), axes, keepdims)


def _entropy_of_states(states, *, axes, keepdims, result_dtype):
    return _without_axes(_states.entropy(states, result_dtype), axes, keepdims)


@task
def _from_states(x, states, *, op, axes, compute_dtype, temperature):
    return _states.from_states(op, np.asarray(x), states, axes, compute_dtype, temperature)


def _offset_of_chunk(queries, keys, offset):
    """The offset of a causal mask over a chunk, from the positions of its queries and keys."""
    return offset + int(queries[0]) - int(keys[0]) if queries.size and keys.size else 0


@task
def _causal_rows(x, queries, keys, *, offset, temperature):
    return fastsoftmax.causal_softmax(x, offset=_offset_of_chunk(queries, keys, offset), temperature=temperature)


@task
def _causal_states(x, queries, keys, *, offset, temperature, compute_dtype):
    return _states.row_states(np.asarray(x), (x.ndim - 1,), compute_dtype, temperature,
                              _offset_of_chunk(queries, keys, offset), False)


@task
def _causal_from_states(x, queries, keys, states, *, offset, temperature, compute_dtype):
    return _states.from_states(SOFTMAX, np.asarray(x), states, (x.ndim - 1,), compute_dtype, temperature,
                               _offset_of_chunk(queries, keys, offset))
