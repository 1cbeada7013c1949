"""Rows in pieces: states of pieces, merged in any grouping, give the results of the whole rows, for every kernel."""

import itertools

import numpy as np
import pytest
from guarded import Guarded, needs_mprotect
from helpers import assert_accurate, oracle

from fastsoftmax import _fastpath, _states, reference

SOFTMAX, LOG_SOFTMAX = _fastpath.SOFTMAX, _fastpath.LOG_SOFTMAX
INF = np.inf
ULP = {"f64": 4.0}              # else 2: the state of a row in float64 has been rounded


def whole_state(pieces, compute_dtype, axes=(1,), surprise=False):
    """The state of the rows of which these are pieces, along the first of the axes."""
    states = [_states.row_states(x, axes, compute_dtype, 1.0, None, surprise) for x in pieces]
    return _states.merged(np.concatenate(states, axes[0]), axes)


def scores(kernel, shape, spread=8.0):
    return np.random.default_rng(len(shape)).uniform(-spread, 0, shape).astype(kernel.dtype)


@pytest.mark.parametrize("axis", [0, 1])
def test_lengths(kernel, axis):
    """Dense rows and tiles; pieces of every length to beyond a block, and some long ones."""
    lengths = [*range(1, 4 * kernel.lanes + 2), 63, 64, 65, 129, 200, 257, 4095, 4097, 9000]
    for n in lengths[::1 if axis else 2]:
        x = scores(kernel, (n + 40, 19) if axis == 0 else (3, n + 40))
        pieces = np.split(x, [n, n + 3], axis)
        state = whole_state(pieces, kernel.dtype, (axis,))
        for op, function in ((SOFTMAX, "softmax"), (LOG_SOFTMAX, "log_softmax")):
            got = [_states.from_states(op, piece, state, (axis,), kernel.dtype) for piece in pieces]
            assert_accurate(np.concatenate(got, axis), oracle(function, x, axis), ULP.get(kernel.tag, 2.0))


def test_states_are_exact(kernel):
    """To 2**-24 of others, or of its own in float64; and the surprise, of which the entropy is made."""
    arithmetic = np.longdouble
    for spread in (1e-3, 8.0, 60.0):
        for x, axis in ((scores(kernel, (7, 1000), spread), 1), (scores(kernel, (333, 40), spread), 0)):
            state = _states.row_states(x, (axis,), kernel.dtype, 1.0, None, True)
            wide = x.astype(arithmetic)
            below = wide - wide.max(axis, keepdims=True)
            weights = np.exp(below)
            at = np.where(below == 0, 0, weights).sum(axis, keepdims=True) + (below == 0).sum(axis, keepdims=True) - 1
            surprise = (weights * -below).sum(axis, keepdims=True)
            np.testing.assert_array_equal(state["row_max"], wide.max(axis, keepdims=True))
            eps = 2.0**-51 if kernel.tag == "f64" else 2.0**-25
            np.testing.assert_allclose(state["others"], at.astype(float), rtol=eps)
            np.testing.assert_allclose(state["surprise"], surprise.astype(float), rtol=4 * eps, atol=4 * eps)


def test_the_grouping_of_pieces_does_not_matter(kernel):
    x = scores(kernel, (5, 240), 30.0)
    pieces = [_states.row_states(piece, (1,), kernel.dtype) for piece in np.split(x, 24, 1)]
    at_once = _states.merged(np.concatenate(pieces, 1), (1,))
    one_by_one = pieces[0]
    for piece in pieces[1:]:
        one_by_one = _states.merged(np.concatenate([one_by_one, piece], 1), (1,))
    backwards = _states.merged(np.concatenate(pieces[::-1], 1), (1,))
    for other in (one_by_one, backwards):
        np.testing.assert_array_equal(other["row_max"], at_once["row_max"])
        np.testing.assert_allclose(other["others"], at_once["others"], rtol=1e-14)


def test_a_row_does_not_depend_on_its_neighbours_and_strides(kernel):
    x = scores(kernel, (37, 150), 20.0)
    x[5, 3], x[7, 7], x[8] = np.nan, INF, -INF
    def numbers(x):
        return _states.row_states(x, (1,), kernel.dtype, 1.0, None, True).view(np.float64)

    states = _states.row_states(x, (1,), kernel.dtype, 1.0, None, True)
    results = [_states.from_states(op, x, states, (1,), kernel.dtype) for op in (SOFTMAX, LOG_SOFTMAX)]
    for i in (0, 4, 5, 6, 7, 8, 9, 36):
        np.testing.assert_array_equal(numbers(x[i:i + 1]), numbers(x)[i:i + 1])
    columns = np.asfortranarray(x)              # each row in a lane
    np.testing.assert_array_equal(numbers(columns), numbers(x))
    for op, expected in zip((SOFTMAX, LOG_SOFTMAX), results, strict=True):
        got = _states.from_states(op, columns, states, (1,), kernel.dtype)
        np.testing.assert_array_equal(got.astype(float), expected.astype(float))


def test_special_rows(kernel):
    rows = np.array([[np.nan, 1, 2], [1, INF, 2], [INF, INF, 1], [-INF] * 3, [-INF, 1, -INF], [-INF, np.nan, -INF]])
    x = rows.astype(kernel.dtype)
    for values, axis in ((x, 1), (np.asfortranarray(x), 1), (np.repeat(x, 7, 0).T, 0)):
        state = _states.row_states(values, (axis,), kernel.dtype, 1.0, None, True)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(
                state["row_max"], values.astype(float).max(axis, keepdims=True))
        assert np.all((state["others"] == -1) == (state["row_max"] == -INF))
        for op, function in ((SOFTMAX, "softmax"), (LOG_SOFTMAX, "log_softmax")):
            got = _states.from_states(op, values, state, (axis,), kernel.dtype)
            expected = getattr(reference, function)(values, axis)
            np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=0.01)


def test_causal_pieces(kernel):
    x = scores(kernel, (2, 21, 90))
    for offset, edges in itertools.product((0, 15, -5, 80), ([40], [1, 30, 70])):
        pieces = np.split(x, edges, 2)
        starts = [0, *edges]
        states = [_states.row_states(piece, (2,), kernel.dtype, 0.5, offset - start, False)
                  for piece, start in zip(pieces, starts, strict=True)]
        state = _states.merged(np.concatenate(states, 2), (2,), 0.5)
        got = [_states.from_states(SOFTMAX, piece, state, (2,), kernel.dtype, 0.5, offset - start)
               for piece, start in zip(pieces, starts, strict=True)]
        exact = reference.causal_softmax(x.astype(kernel.wide), offset=offset, temperature=0.5)
        assert_accurate(np.concatenate(got, 2), exact, ULP.get(kernel.tag, 2.0))


@needs_mprotect
@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
def test_no_byte_beyond_the_arrays(kernel, at_end):
    """x, y and the states between pages that nobody may touch."""
    seen = np.uint16 if kernel.dtype.itemsize == 2 else kernel.dtype
    x_memory, y_memory = (Guarded(1, 64 * 200 * 8) for _ in range(2))
    state_memory = Guarded(1, 64 * 24)
    for n in (*range(1, 2 * kernel.lanes + 2), 31, 64, 65, 130, 200):
        for count, axis in ((3, 1), (19, 0), (40, 0), (33, 1)):
            shape = (count, n) if axis else (n, count)
            x, y = (m.contiguous(seen, shape, at_end).view(kernel.dtype) for m in (x_memory, y_memory))
            x[...] = scores(kernel, shape)
            kind, of_states = _states.state_dtype(kernel.dtype), (count, 1) if axis else (1, count)
            states = state_memory.contiguous(kind, of_states, at_end)
            states["others"] = states["surprise"] = states["row_max"] = 0
            _states._call(None, x, states, (axis,), 1.0, None, True)
            _states._call(SOFTMAX, x, states, (axis,), 1.0, None, False, y)
            np.testing.assert_allclose(y.astype(float).sum(axis), 1, rtol=0.05)
            _states._call(LOG_SOFTMAX, x, states, (axis,), 1.5, None, False, y)
