"""A library as the measurements see it: which functions it is asked for, and how it is called."""

import importlib
import importlib.util
import timeit

import data
import numpy as np
from standalone import numpy_baseline, turns

UnavailableError = turns.UnavailableError


class WrongError(Exception):
    """The library's result is not that of the others."""


class Peer:
    """A library that is held to so many threads.

    Class attributes
    ----------------
    name : str
        The column of its figures.
    needs : tuple of str
        The modules that must be installed; the first gives the version.
    families : tuple of str
        The functions that it is asked for.
    pinned : bool
        Its process has to be kept on as many CPUs as it may use threads.
    """

    name, needs, families, pinned = "", (), (), False

    def __init__(self, threads):
        pass

    def call(self, family, shape):
        """The pair (statement, namespace) for `timeit`: a string, so that nobody pays for one more Python call.

        The result goes to preallocated memory where the library can do that, except for arrays below `shapes.SMALL`
        elements, which are measured as people write them. For attention the namespace has two names more: ``result``,
        a function from the statement's value to the array (B, Hq, L, E), which `checked` compares with float64, and
        ``how``, the operator that is called. For softmax it may have ``result``. UnavailableError says that the library
        cannot do this, and why.
        """
        raise NotImplementedError

    @classmethod
    def missing(cls):
        """The first of the modules it needs that cannot be found, or None."""
        return next((module for module in cls.needs if importlib.util.find_spec(module) is None), None)

    @classmethod
    def version(cls):
        """The installed version."""
        return importlib.import_module(cls.needs[0]).__version__.partition("-")[0]


TOLERANCE = {"float64": 1e-6, "float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}  # of values of size 1


def checked(family, shape, value, space):
    """Facts of a call whose result is right: {} of softmax, of attention as `checked_attention` says."""
    if family == "softmax":
        return checked_softmax(shape, space["result"](value))
    return checked_attention(family, shape, value, space)


def checked_softmax(shape, got):
    """Compare some rows with float64; WrongError where a weight is off by more than the tolerance, relative to it."""
    got, x = (np.moveaxis(array, shape.axis, -1) for array in (np.asarray(got), data.scores(shape)))
    if got.shape != x.shape:
        raise WrongError(f"the result has shape {got.shape}")
    got, x = (array.reshape(-1, x.shape[-1]) for array in (got, x))
    rows = np.unique(np.linspace(0, len(x) - 1, 16).astype(int))
    exact = numpy_baseline.softmax(x[rows].astype(np.float64), -1)
    error = np.abs(got[rows].astype(np.float64) / exact - 1).max()
    if not error <= TOLERANCE[shape.dtype]:
        raise WrongError(f"a weight is off by {error:.1e} of itself from the result in float64")
    return {}


def checked_attention(family, shape, value, space):
    """How an attention was called, and the largest error of some of its rows; WrongError if that is too large."""
    rows = np.unique(np.linspace(0, shape.queries - 1, 16).astype(int))
    query, key, value64 = (x.astype(np.float64) for x in data.attention(shape))
    hidden = data.hidden_keys(shape, family)
    hidden = None if hidden is None else hidden[rows]
    exact = numpy_baseline.scaled_dot_product_attention(query[:, :, rows], key, value64, hidden)
    got = np.asarray(space["result"](value))
    if got.shape != query.shape:
        raise WrongError(f"the result has shape {got.shape}")
    error = np.abs(got[:, :, rows].astype(np.float64) - exact).max()
    if not error <= TOLERANCE[shape.dtype]:
        raise WrongError(f"{error:.1e} from the result in float64")
    return {"how": space["how"], "error": float(error)}


def fastest(candidates):
    """The (statement, namespace) that takes the least time; a candidate that raises is out, the last reason is kept.

    Parameters
    ----------
    candidates : iterable of functions
        Each returns such a pair.
    """
    tried, reason = [], UnavailableError("no operator for this")
    for candidate in candidates:
        try:
            statement, space = candidate()
            timer = timeit.Timer(statement, globals=space)
            timer.timeit(1)
            number = max(1, int(2e-3 / timer.timeit(1)))
            tried.append((min(timer.repeat(3, number)) / number, len(tried), (statement, space)))
        except Exception as error:
            reason = error
    if not tried:
        raise reason
    return min(tried)[2]
