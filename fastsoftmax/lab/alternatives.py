"""Attention without softmax, to set against softmax attention: each function with its gradient beside it.

======================== ===================================== ============================================
function                 weight of value j for query i         computed in
======================== ===================================== ============================================
relu_attention           relu(s_ij) / (sum + epsilon)          blocks of queries, O(L S) time
linear_attention         phi(q_i) . phi(k_j) / sum             chunks with a running state, O(L + S) time
performer_attention      the same, phi estimates exp(s_ij)     the same
sum_normalized_attention s_ij / sum                            the same, phi is the identity
dot_product_attention    s_ij                                  the same
======================== ===================================== ============================================

with the scores ``s_ij = scale * q_i . k_j`` and sums over the keys j that query i sees. Shapes in all functions: query
(..., L, E), key (..., S, E), value (..., S, Ev); their leading axes (batch, heads) are equal. Everything is NumPy, and
every product is one np.matmul for all leading axes.

Two ideas serve all functions.

- Sums as a column. Beside value, a column of ones is weighted too: ``weights @ [value, 1] = [numerator, sum]``. The
  gradient goes the same way back: with ``out = numerator / sum``, that of [numerator, sum] is
  ``[grad_out, -sum(grad_out * out)] / sum``, and one product with [value, 1].T yields the gradient of the weights.
- A running state. If the weights are products of features, ``phi(q_i) . phi(k_j)``, the sum over keys of all earlier
  chunks is ``phi(q_i) @ state`` with ``state = sum of phi(k_j).T [v_j, 1]``, M x (Ev + 1). Only within a chunk are the
  weights computed, C x C, and masked. The gradient of a key needs the sum over later queries: a state that runs back.

Backward functions take the inputs of the forward call and compute the rest again. They are exact gradients of what the
forward functions compute, but for rounding; tests compare them with finite differences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fastsoftmax._typing import Array

__all__ = [
    "dot_product_attention",
    "dot_product_attention_backward",
    "linear_attention",
    "linear_attention_backward",
    "performer_attention",
    "performer_attention_backward",
    "performer_features",
    "relu_attention",
    "relu_attention_backward",
    "sum_normalized_attention",
    "sum_normalized_attention_backward",
]

# Sizes are the fastest, or within 10 % of it, of 32 to 256 at (8, 4, 256, 64) and (1, 4, 8192, 64) in float32.
CHUNK = 64              # queries or keys at a time, with a running state
BLOCK = 128             # queries at a time, with their weights of all keys
EPSILON = 1e-6          # added to the sum of relu_attention's weights
SMALLEST = 1e-30        # added to the performer's features of keys

Gradients = tuple[Array, Array, Array]

# ---- ReLU


def relu_attention(query: ArrayLike, key: ArrayLike, value: ArrayLike, is_causal: bool = False, *,
                   scale: float | None = None) -> Array:
    """Averages of values, weighted by the positive part of the scores.

    ::

        A = relu(scale * query @ key.T)         0 where key j > query i, if is_causal
        out = A @ value / (sum(A) + epsilon)

    Parameters
    ----------
    query : array_like, (..., L, E)
        float32 or float64, as key and value; of mixed inputs, all are converted to the wider type.
    key : array_like, (..., S, E)
        The axes before the last two are those of query.
    value : array_like, (..., S, Ev)
        As key.
    is_causal : bool, default False
        Query i sees the keys 0 to i. Needs L = S.
    scale : float, default ``1 / sqrt(E)``
        Factor of the scores. Changes the weights only through epsilon, and by its sign.

    Returns
    -------
    ndarray, (..., L, Ev)
        Of the dtype of the inputs. 0 for a query that has a positive score with no key.

    Raises
    ------
    TypeError
        If an input is not float32 or float64, or a masked array.
    ValueError
        If shapes do not fit, or L is not S with is_causal.

    See Also
    --------
    relu_attention_backward : its gradients.

    Notes
    -----
    ReLU in the place of exp follows [1]_, which divides by the length; here, as with softmax, weights sum to 1. Only
    signs and ratios of scores matter, not their size: there is no temperature by which a query could put more emphasis
    on its best key. epsilon is 1e-6: where all positive scores are as small as that, out falls from an average of
    values to 0, and gradients are as large as ``value / epsilon``. Inputs are taken as finite, also later ones.

    Time is O(L S), memory beyond the result that for 128 queries, (..., 128, S).

    References
    ----------
    .. [1] M. Wortsman, J. Lee, J. Gilmer and S. Kornblith, "Replacing softmax with ReLU in vision transformers",
       arXiv:2309.08586 (2023).

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.lab.alternatives import relu_attention
    >>> query, value = np.array([[1.0, 0.0], [-1.0, -1.0]]), np.array([[10.0], [20.0], [30.0]])
    >>> key = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    >>> relu_attention(query, key, value).round(3)          # weights 1/4, 3/4, 0; no positive score
    array([[17.5],
           [ 0. ]])
    """
    query, key, value = _inputs(query, key, value, is_causal)
    query, columns = query * _scale(scale, query), _with_ones(value)
    out = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
    for start, stop in _chunks(query, BLOCK):
        end = stop if is_causal else key.shape[-2]
        weights = _relu_weights(query[..., start:stop, :], key[..., :end, :], is_causal)
        sums = weights @ columns[..., :end, :]
        sums[..., -1:] += EPSILON
        np.divide(sums[..., :-1], sums[..., -1:], out=out[..., start:stop, :])
    return out


def relu_attention_backward(grad_out: ArrayLike, query: ArrayLike, key: ArrayLike, value: ArrayLike,
                            is_causal: bool = False, *, scale: float | None = None) -> Gradients:
    """Gradients of `relu_attention` with respect to query, key and value.

    ::

        forward                                    backward, from grad_out
        A = relu(scale * query @ key.T)            A                                      again
        d = sum(A) + epsilon                       dN, dd = grad_out / d, -sum(grad_out * out) / d
        out = A @ value / d                        dA = [dN, dd] @ [value, 1].T           dA = 0 where A = 0

        dquery = scale * dA @ key
        dkey = scale * dA.T @ query
        dvalue = A.T @ dN

    Parameters
    ----------
    grad_out : array_like, (..., L, Ev)
        The gradient of the loss with respect to out; converted to the dtype of the inputs.
    query, key, value, is_causal, scale
        As in the forward call.

    Returns
    -------
    dquery, dkey, dvalue : ndarray
        Of the shapes of query, key and value, and of their common dtype.

    Raises
    ------
    TypeError, ValueError
        As the forward call, and if grad_out is not floating or not of the shape of out.

    See Also
    --------
    relu_attention : the forward call.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.lab.alternatives import relu_attention_backward
    >>> query, key = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])
    >>> dquery, dkey, dvalue = relu_attention_backward([[1.0]], query, key, [[10.0], [20.0], [30.0]], scale=1.0)
    >>> dkey.round(3)[:, 0], dvalue.round(3)[:, 0]
    (array([-1.875,  0.625,  0.   ]), array([0.25, 0.75, 0.  ]))
    """
    query, key, value = _inputs(query, key, value, is_causal)
    grad_out, scale = _grad_out(grad_out, query, value), _scale(scale, query)
    query, columns = query * scale, _with_ones(value)
    dquery, dkey, dvalue = np.empty_like(query), np.zeros_like(key), np.zeros_like(value)
    for start, stop in _chunks(query, BLOCK):
        end = stop if is_causal else key.shape[-2]
        q, k = query[..., start:stop, :], key[..., :end, :]
        weights = _relu_weights(q, k, is_causal)
        sums = weights @ columns[..., :end, :]
        sums[..., -1:] += EPSILON
        dsums = np.empty_like(sums)
        _divide_backward(grad_out[..., start:stop, :], sums, sums[..., -1:], out=dsums)
        dweights = dsums @ _T(columns[..., :end, :])
        dvalue[..., :end, :] += _T(weights) @ dsums[..., :-1]
        dweights *= weights > 0                 # and so 0 at hidden keys, whose weights are 0
        np.matmul(dweights, k, out=dquery[..., start:stop, :])
        dkey[..., :end, :] += _T(dweights) @ q  # this query is scaled
    dquery *= scale
    return dquery, dkey, dvalue


def _relu_weights(query, key, is_causal):
    """relu(query @ key.T), (..., C, n). If is_causal, query i of the last C of n positions sees keys up to its own."""
    weights = query @ _T(key)
    np.maximum(weights, 0, out=weights)
    if is_causal:
        _hide_later(weights[..., key.shape[-2] - query.shape[-2]:])
    return weights


# ---- products of features


def linear_attention(query: ArrayLike, key: ArrayLike, value: ArrayLike, is_causal: bool = False) -> Array:
    """Averages of values, weighted by products of positive features: the linear transformer.

    ::

        phi(x) = elu(x) + 1 = x + 1 where x > 0, exp(x) elsewhere
        A = phi(query) @ phi(key).T             0 where key j > query i, if is_causal
        out = A @ value / sum(A)

    Parameters
    ----------
    query : array_like, (..., L, E)
        float32 or float64, as key and value; of mixed inputs, all are converted to the wider type.
    key : array_like, (..., S, E)
        The axes before the last two are those of query.
    value : array_like, (..., S, Ev)
        As key.
    is_causal : bool, default False
        Query i sees the keys 0 to i. Needs L = S.

    Returns
    -------
    ndarray, (..., L, Ev)
        Of the dtype of the inputs. 0 for a query that sees no key, or only weights that underflow to 0.

    Raises
    ------
    TypeError
        If an input is not float32 or float64, or a masked array.
    ValueError
        If shapes do not fit, or L is not S with is_causal.

    See Also
    --------
    linear_attention_backward : its gradients.
    performer_attention : with features that estimate exp.

    Notes
    -----
    A has rank E at most: the state that stands for all keys, E x (Ev + 1) numbers [1]_, is of fixed size, and so is
    what can be told apart by it. Features are not scaled, as in [1]_.

    Time is O((L + S) E Ev + L C E) for chunks of C = 64, memory beyond the result that for a chunk and a state.

    References
    ----------
    .. [1] A. Katharopoulos, A. Vyas, N. Pappas and F. Fleuret, "Transformers are RNNs: fast autoregressive transformers
       with linear attention", ICML 2020, arXiv:2006.16236.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.lab.alternatives import linear_attention
    >>> query, key, value = np.array([[0.0], [2.0]]), np.array([[0.0], [2.0]]), np.array([[10.0], [20.0]])
    >>> linear_attention(query, key, value)                  # weights 1/4, 3/4 for any query: one feature
    array([[17.5],
           [17.5]])
    >>> linear_attention(query, key, value, is_causal=True)
    array([[10. ],
           [17.5]])
    """
    query, key, value = _inputs(query, key, value, is_causal)
    return _linear(_ELU, query, key, value, is_causal)


def linear_attention_backward(grad_out: ArrayLike, query: ArrayLike, key: ArrayLike, value: ArrayLike,
                              is_causal: bool = False) -> Gradients:
    """Gradients of `linear_attention` with respect to query, key and value.

    ::

        forward                                    backward, from grad_out
        A = phi(query) @ phi(key).T                A                                      again
        d = sum(A)                                 dN, dd = grad_out / d, -sum(grad_out * out) / d
        out = A @ value / d                        dA = [dN, dd] @ [value, 1].T

        dquery = phi'(query) * (dA @ phi(key))
        dkey = phi'(key) * (dA.T @ phi(query))
        dvalue = A.T @ dN

    Parameters
    ----------
    grad_out : array_like, (..., L, Ev)
        The gradient of the loss with respect to out; converted to the dtype of the inputs.
    query, key, value, is_causal
        As in the forward call.

    Returns
    -------
    dquery, dkey, dvalue : ndarray
        Of the shapes of query, key and value, and of their common dtype.

    Raises
    ------
    TypeError, ValueError
        As the forward call, and if grad_out is not floating or not of the shape of out.

    See Also
    --------
    linear_attention : the forward call.

    Notes
    -----
    In chunks, with a state that runs forwards for dquery and one that runs backwards for dkey and dvalue. Time and
    memory are linear in the length: beyond the results, [dN, dd] is stored, and with is_causal the gradient of
    phi(key).

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.lab.alternatives import linear_attention_backward
    >>> query, key, value = np.array([[0.0], [2.0]]), np.array([[0.0], [2.0]]), np.array([[10.0], [20.0]])
    >>> dquery, dkey, dvalue = linear_attention_backward(np.ones((2, 1)), query, key, value, is_causal=True)
    >>> dkey, dvalue
    (array([[-1.875],
           [ 0.625]]), array([[1.25],
           [0.75]]))
    """
    query, key, value = _inputs(query, key, value, is_causal)
    return _linear_backward(_ELU, grad_out, query, key, value, is_causal)


def performer_features(width: int, count: int | None = None, *, seed: Any = 0,
                       dtype: DTypeLike = np.float32) -> Array:
    """Orthogonal random directions for `performer_attention`.

    Parameters
    ----------
    width : int
        E, the width of a query.
    count : int, optional
        M, the number of directions; by default E log E, rounded to a multiple of E: 48 for E = 16, 256 for 64.
    seed : int or other argument of `numpy.random.default_rng`, default 0
        The same seed gives the same directions.
    dtype : dtype, default float32
        float32 or float64.

    Returns
    -------
    ndarray, (M, E)
        Each row has the distribution of E independent normal numbers; rows are orthogonal in blocks of E.

    Raises
    ------
    TypeError
        If dtype is not float32 or float64.
    ValueError
        If width or count is less than 1.

    Notes
    -----
    Rows of random orthogonal matrices with the lengths of normal vectors: estimates of exp(q . k) stay unbiased, and
    vary less than with independent rows [1]_.

    References
    ----------
    .. [1] K. Choromanski et al., "Rethinking attention with Performers", ICLR 2021, arXiv:2009.14794.

    Examples
    --------
    >>> from fastsoftmax.lab.alternatives import performer_features
    >>> w = performer_features(4, 8)
    >>> w.shape, bool(abs(w[0] @ w[1]) < 1e-6)
    ((8, 4), True)
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    if width < 1 or (count is not None and count < 1):
        raise ValueError(f"width and count must be at least 1, got {width} and {count}")
    if count is None:
        count = width * max(1, round(float(np.log(width))))
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(-(-count // width), width, width))
    directions, r = np.linalg.qr(normal)
    directions *= np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]    # else not uniform: QR fixes their signs
    lengths = np.linalg.norm(rng.normal(size=(count, width)), axis=-1, keepdims=True)
    return (directions.reshape(-1, width)[:count] * lengths).astype(dtype)


def performer_attention(query: ArrayLike, key: ArrayLike, value: ArrayLike, features: ArrayLike,
                        is_causal: bool = False, *, scale: float | None = None) -> Array:
    """Softmax attention, estimated in linear time with positive random features (FAVOR+).

    ::

        h(x) = sqrt(scale) * x @ features.T - scale * |x|**2 / 2        E[exp(h(q)) . exp(h(k))] = M exp(scale * q . k)
        A = exp(h(query) - max(h(query))) @ (exp(h(key)) + 1e-30).T     0 where key j > query i, if is_causal
        out = A @ value / sum(A)

    Parameters
    ----------
    query : array_like, (..., L, E)
        float32 or float64, as key and value; of mixed inputs, all are converted to the wider type.
    key : array_like, (..., S, E)
        The axes before the last two are those of query.
    value : array_like, (..., S, Ev)
        As key.
    features : array_like, (M, E)
        The directions, of `performer_features`; converted to the dtype of the inputs. Constants: they have no gradient.
    is_causal : bool, default False
        Query i sees the keys 0 to i. Needs L = S.
    scale : float, default ``1 / sqrt(E)``
        Factor of the scores. Positive: half of it goes to each side.

    Returns
    -------
    ndarray, (..., L, Ev)
        Of the dtype of the inputs. 0 for a query that sees no key.

    Raises
    ------
    TypeError
        If an input is not float32 or float64, or a masked array.
    ValueError
        If shapes do not fit, or L is not S with is_causal, or scale is not positive and finite.

    See Also
    --------
    performer_features : the directions.
    performer_attention_backward : its gradients.

    Notes
    -----
    Stabilisers. A query's row of features is divided by its largest. This factor is in numerator and sum alike and
    cancels exactly; so do ``|q|**2`` and the 1 / sqrt(M) of [1]_; none of them has a gradient. A key's features are
    divided by nothing: the maximum over all keys, which the authors' code takes, lets later keys change earlier results
    in a causal model, by rounding and by the constant that is added. Nor is there need for it, since the exponent is
    ``|w|**2 / 2 - |sqrt(scale) k - w|**2 / 2``, so at most ``|w|**2 / 2``. float32 could overflow only for a
    direction w longer than 13, which E = 64 does not bring forth, and a key that points along it.

    Added constant. It keeps sums from 0 where all features of all keys underflow, and its size tells which: [1]_ adds
    1e-6 to features of which the largest is 1. Here, where large keys have small features all together, that would turn
    attention into a plain mean at ``scale * |k|**2 > 28``; 1e-30 leaves room until 138, in float64 too. It is added to
    keys only: the largest feature of a query is 1 anyway.

    The relative variance of an estimate of exp(scale q . k) is about ``exp(scale * |q + k|**2) / M``: what makes
    attention sharp, long queries and keys, makes its estimate poor.

    Time is O((L + S) M (E + Ev) + L C M) for chunks of C = 64, memory beyond the result that for a chunk and a state.

    References
    ----------
    .. [1] K. Choromanski et al., "Rethinking attention with Performers", ICLR 2021, arXiv:2009.14794.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import scaled_dot_product_attention
    >>> from fastsoftmax.lab.alternatives import performer_attention, performer_features
    >>> query, key, value = np.random.default_rng(0).normal(size=(3, 100, 16)) * [[[0.5]], [[0.5]], [[1.0]]]
    >>> softmax = scaled_dot_product_attention(query, key, value)
    >>> for count in (16, 256, 4096):
    ...     error = performer_attention(query, key, value, performer_features(16, count)) - softmax
    ...     print(count, error.std().round(3))
    16 0.051
    256 0.017
    4096 0.005
    """
    query, key, value = _inputs(query, key, value, is_causal)
    return _linear(_performer(features, scale, query), query, key, value, is_causal)


def performer_attention_backward(grad_out: ArrayLike, query: ArrayLike, key: ArrayLike, value: ArrayLike,
                                 features: ArrayLike, is_causal: bool = False, *,
                                 scale: float | None = None) -> Gradients:
    """Gradients of `performer_attention` with respect to query, key and value.

    ::

        forward                                    backward, from grad_out
        F = exp(h(query) - max(h(query)))          F, G, A                                again
        G = exp(h(key)) + 1e-30                    dN, dd = grad_out / d, -sum(grad_out * out) / d
        A = F @ G.T                                dA = [dN, dd] @ [value, 1].T
        d = sum(A)                                 dF, dG = dA @ G, dA.T @ F
        out = A @ value / d                        dhq, dhk = dF * F, dG * (G - 1e-30)    sum(dhq) = 0 in a row

        dquery = sqrt(scale) * dhq @ features
        dkey = sqrt(scale) * dhk @ features - scale * sum(dhk) * key
        dvalue = A.T @ dN

    Parameters
    ----------
    grad_out : array_like, (..., L, Ev)
        The gradient of the loss with respect to out; converted to the dtype of the inputs.
    query, key, value, features, is_causal, scale
        As in the forward call.

    Returns
    -------
    dquery, dkey, dvalue : ndarray
        Of the shapes of query, key and value, and of their common dtype.

    Raises
    ------
    TypeError, ValueError
        As the forward call, and if grad_out is not floating or not of the shape of out.

    See Also
    --------
    performer_attention : the forward call.

    Notes
    -----
    out does not depend on the factor of a row of F, so the gradients of a row of h(query) sum to 0: whatever is
    subtracted from h(query), its maximum or ``|q|**2 / 2``, has no part in dquery.

    In chunks, with a state that runs forwards for dquery and one that runs backwards for dkey and dvalue. Time and
    memory are linear in the length: beyond the results, [dN, dd] is stored, and with is_causal dG, (..., S, M).

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.lab.alternatives import performer_attention_backward, performer_features
    >>> query, key, value = np.random.default_rng(0).normal(size=(3, 5, 4))
    >>> dquery, dkey, dvalue = performer_attention_backward(
    ...     np.ones((5, 4)), query, key, value, performer_features(4), is_causal=True)
    >>> bool(np.abs(dquery[0]).max() < 1e-6), dvalue.sum().round(3)     # query 0 has no choice; weights sum to 1
    (True, np.float64(20.0))
    """
    query, key, value = _inputs(query, key, value, is_causal)
    return _linear_backward(_performer(features, scale, query), grad_out, query, key, value, is_causal)


@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def sum_normalized_attention(query: ArrayLike, key: ArrayLike, value: ArrayLike, is_causal: bool = False, *,
                             scale: float | None = None) -> Array:
    """Sums of values, weighted by scores that are divided by their sum: softmax without exp, to show what exp is for.

    ::

        A = scale * query @ key.T               0 where key j > query i, if is_causal
        out = A @ value / sum(A)

    Parameters
    ----------
    query : array_like, (..., L, E)
        float32 or float64, as key and value; of mixed inputs, all are converted to the wider type.
    key : array_like, (..., S, E)
        The axes before the last two are those of query.
    value : array_like, (..., S, Ev)
        As key.
    is_causal : bool, default False
        Query i sees the keys 0 to i. Needs L = S.
    scale : float, default ``1 / sqrt(E)``
        Factor of the scores. It cancels, but for rounding, overflow and 0.

    Returns
    -------
    ndarray, (..., L, Ev)
        Of the dtype of the inputs. Infinite or NaN, without a warning, where scores sum to 0.

    Raises
    ------
    TypeError
        If an input is not float32 or float64, or a masked array.
    ValueError
        If shapes do not fit, or L is not S with is_causal.

    See Also
    --------
    sum_normalized_attention_backward : its gradients.
    dot_product_attention : without the division.

    Notes
    -----
    Weights are of either sign and of any size: out has a pole where the sum of the scores, ``q . sum(k)``, is 0, and
    changes sign there. Rounding errors are large near it.

    This is linear attention whose features are query and key themselves [1]_, and computed as such.

    References
    ----------
    .. [1] A. Katharopoulos, A. Vyas, N. Pappas and F. Fleuret, "Transformers are RNNs: fast autoregressive transformers
       with linear attention", ICML 2020, arXiv:2006.16236.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.lab.alternatives import sum_normalized_attention
    >>> key, value = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[10.0], [20.0]])
    >>> sum_normalized_attention([[1.0, 3.0], [1.0, -0.9]], key, value).round(3)     # weights 1/4, 3/4 and 10, -9
    array([[ 17.5],
           [-80. ]])
    """
    query, key, value = _inputs(query, key, value, is_causal)
    return _linear(_identity(scale, query, normalized=True), query, key, value, is_causal)


@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def sum_normalized_attention_backward(grad_out: ArrayLike, query: ArrayLike, key: ArrayLike, value: ArrayLike,
                                      is_causal: bool = False, *, scale: float | None = None) -> Gradients:
    """Gradients of `sum_normalized_attention` with respect to query, key and value.

    ::

        forward                                    backward, from grad_out
        A = scale * query @ key.T                  A                                      again
        d = sum(A)                                 dN, dd = grad_out / d, -sum(grad_out * out) / d
        out = A @ value / d                        dA = [dN, dd] @ [value, 1].T

        dquery = scale * dA @ key
        dkey = scale * dA.T @ query
        dvalue = A.T @ dN

    Parameters
    ----------
    grad_out : array_like, (..., L, Ev)
        The gradient of the loss with respect to out; converted to the dtype of the inputs.
    query, key, value, is_causal, scale
        As in the forward call.

    Returns
    -------
    dquery, dkey, dvalue : ndarray
        Of the shapes of query, key and value, and of their common dtype. Infinite or NaN where scores sum to 0.

    Raises
    ------
    TypeError, ValueError
        As the forward call, and if grad_out is not floating or not of the shape of out.

    See Also
    --------
    sum_normalized_attention : the forward call.

    Examples
    --------
    Near the pole, gradients grow with the square of the weights:

    >>> import numpy as np
    >>> from fastsoftmax.lab.alternatives import sum_normalized_attention_backward
    >>> key, value = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[10.0], [20.0]])
    >>> for query in ([[1.0, 3.0]], [[1.0, -0.9]]):
    ...     dquery, _, _ = sum_normalized_attention_backward([[1.0]], query, key, value)
    ...     print(dquery.round(3))
    [[-1.875  0.625]]
    [[ 900. 1000.]]
    """
    query, key, value = _inputs(query, key, value, is_causal)
    return _linear_backward(_identity(scale, query, normalized=True), grad_out, query, key, value, is_causal)


def dot_product_attention(query: ArrayLike, key: ArrayLike, value: ArrayLike, is_causal: bool = False, *,
                          scale: float | None = None) -> Array:
    """Sums of values, weighted by the raw scores: ``scale * (query @ key.T) @ value``, to show what softmax is for.

    Parameters
    ----------
    query : array_like, (..., L, E)
        float32 or float64, as key and value; of mixed inputs, all are converted to the wider type.
    key : array_like, (..., S, E)
        The axes before the last two are those of query.
    value : array_like, (..., S, Ev)
        As key.
    is_causal : bool, default False
        Query i sees the keys 0 to i. Needs L = S.
    scale : float, default ``1 / sqrt(E)``
        Factor of the scores.

    Returns
    -------
    ndarray, (..., L, Ev)
        Of the dtype of the inputs. Unbounded: it grows with the number of keys, and as the third power of the inputs.

    Raises
    ------
    TypeError
        If an input is not float32 or float64, or a masked array.
    ValueError
        If shapes do not fit, or L is not S with is_causal.

    See Also
    --------
    dot_product_attention_backward : its gradients.

    Notes
    -----
    Without softmax the product is associative, ``scale * query @ (key.T @ value)``, and computed as linear attention
    is [1]_: what the layer does to a query is to multiply it by one E x Ev matrix.

    References
    ----------
    .. [1] A. Katharopoulos, A. Vyas, N. Pappas and F. Fleuret, "Transformers are RNNs: fast autoregressive transformers
       with linear attention", ICML 2020, arXiv:2006.16236.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.lab.alternatives import dot_product_attention
    >>> query, key, value = np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]), np.array([[10.0], [20.0]])
    >>> dot_product_attention(query, key, value)
    array([[ 70.],
           [140.]])
    >>> dot_product_attention(query, key, value, is_causal=True)
    array([[ 10.],
           [140.]])
    """
    query, key, value = _inputs(query, key, value, is_causal)
    return _linear(_identity(scale, query, normalized=False), query, key, value, is_causal)


def dot_product_attention_backward(grad_out: ArrayLike, query: ArrayLike, key: ArrayLike, value: ArrayLike,
                                   is_causal: bool = False, *, scale: float | None = None) -> Gradients:
    """Gradients of `dot_product_attention` with respect to query, key and value.

    ::

        forward                                    backward, from grad_out
        A = scale * query @ key.T                  A                                      again
        out = A @ value                            dA = grad_out @ value.T

        dquery = scale * dA @ key
        dkey = scale * dA.T @ query
        dvalue = A.T @ grad_out

    Parameters
    ----------
    grad_out : array_like, (..., L, Ev)
        The gradient of the loss with respect to out; converted to the dtype of the inputs.
    query, key, value, is_causal, scale
        As in the forward call.

    Returns
    -------
    dquery, dkey, dvalue : ndarray
        Of the shapes of query, key and value, and of their common dtype.

    Raises
    ------
    TypeError, ValueError
        As the forward call, and if grad_out is not floating or not of the shape of out.

    See Also
    --------
    dot_product_attention : the forward call.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.lab.alternatives import dot_product_attention_backward
    >>> query, key, value = np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]]), np.array([[10.0], [20.0]])
    >>> [gradient[:, 0] for gradient in dot_product_attention_backward(np.ones((2, 1)), query, key, value)]
    [array([70., 70.]), array([30., 60.]), array([3., 9.])]
    """
    query, key, value = _inputs(query, key, value, is_causal)
    return _linear_backward(_identity(scale, query, normalized=False), grad_out, query, key, value, is_causal)


# ---- features


class _Features(NamedTuple):
    """phi of queries and of keys, each with its backward, and what becomes of the sums of their products.

    ``query(x)`` maps (..., C, E) to (..., C, M); ``query_backward(x, query(x), gradient)`` maps the gradient with
    respect to query(x), which it may overwrite, to that with respect to x.
    """

    query: Callable[[Array], Array]
    query_backward: Callable[[Array, Array, Array], Array]
    key: Callable[[Array], Array]
    key_backward: Callable[[Array, Array, Array], Array]
    normalized: bool = True         # divide by the sum
    positive: bool = True           # the sum is 0 only if there is no key or all underflows: then out is 0


def _elu_plus_one(x):
    features = np.minimum(x, 0)
    np.exp(features, out=features)
    features += np.maximum(x, 0)
    return features


def _elu_plus_one_backward(x, features, gradient):
    gradient *= np.minimum(features, 1)         # x > 0: features > 1 and slope 1; else both are exp(x)
    return gradient


_ELU = _Features(_elu_plus_one, _elu_plus_one_backward, _elu_plus_one, _elu_plus_one_backward)


def _identity(scale, like, normalized):
    """Query and key themselves; the query is scaled."""
    scale = _scale(scale, like)
    return _Features(query=lambda x: x * scale, query_backward=lambda x, features, gradient: gradient * scale,
                     key=lambda x: x, key_backward=lambda x, features, gradient: gradient,
                     normalized=normalized, positive=False)


def _performer(features, scale, like):
    """exp(w . x - |x|**2 / 2) for x = sqrt(scale) * query or key; see `performer_attention` for the stabilisers."""
    scale, directions = _scale(scale, like), _floating(features, "features")
    if not (0 < scale < np.inf):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if directions.ndim != 2 or directions.shape[0] < 1 or directions.shape[1] != like.shape[-1]:
        raise ValueError(f"features must have shape (M, {like.shape[-1]}) with M at least 1, got {directions.shape}")
    directions = (directions * scale**0.5).astype(like.dtype)

    def of_query(x):
        exponents = x @ directions.T
        exponents -= exponents.max(-1, keepdims=True)           # - |x|**2 / 2 cancels
        return np.exp(exponents, out=exponents)

    def of_query_backward(x, features, gradient):
        gradient *= features
        return gradient @ directions

    def of_key(x):
        exponents = x @ directions.T
        exponents -= (0.5 * scale) * _dot(x, x)
        np.exp(exponents, out=exponents)
        exponents += SMALLEST
        return exponents

    def of_key_backward(x, features, gradient):
        gradient *= features - SMALLEST
        dx = gradient @ directions
        dx -= scale * gradient.sum(-1, keepdims=True) * x
        return dx

    return _Features(of_query, of_query_backward, of_key, of_key_backward)


# ---- chunks with a running state


def _linear(phi: _Features, query: Array, key: Array, value: Array, is_causal: bool) -> Array:
    """Attention with weights phi(q_i) . phi(k_j). In a chunk: f, g are phi of queries and keys, columns [value, 1]."""
    out = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
    state = None if is_causal else _state(phi, key, value)
    for start, stop in _chunks(query, CHUNK):
        f = phi.query(query[..., start:stop, :])
        sums: Any = None if state is None else f @ state
        if is_causal:
            g, columns = _keys(phi, key, value, start, stop)
            sums = _add(sums, _hide_later(f @ _T(g)) @ columns)
            state = _add(state, _T(g) @ columns)
        if phi.normalized:
            np.divide(sums[..., :-1], _divisor(phi, sums), out=out[..., start:stop, :])
        else:
            out[..., start:stop, :] = sums
    return out


def _linear_backward(phi: _Features, grad_out: ArrayLike, query: Array, key: Array, value: Array,
                     is_causal: bool) -> Gradients:
    """Gradients of `_linear`, in two passes.

    1. Forwards through the queries, with the state of the forward pass: d, the gradient of a chunk's sums, from it that
       of f, and what the chunk itself adds to those of its keys and values.
    2. Backwards through the keys, with a state that is the sum of f.T d over the queries of later chunks.
    """
    grad_out = _grad_out(grad_out, query, value)
    state = None if is_causal else _state(phi, key, value)
    width = value.shape[-1]
    dquery, dkey, dvalue = np.empty_like(query), np.empty_like(key), np.zeros_like(value)
    dsums = np.empty((*query.shape[:-1], width + phi.normalized), query.dtype)
    dg = []                 # of each chunk, as far as the first pass knows it
    later = None

    for start, stop in _chunks(query, CHUNK):
        q, d = query[..., start:stop, :], dsums[..., start:stop, :]
        f = phi.query(q)
        sums: Any = None if state is None else f @ state
        if is_causal:
            g, columns = _keys(phi, key, value, start, stop)
            weights = _hide_later(f @ _T(g))
            sums = _add(sums, weights @ columns)
        if phi.normalized:
            _divide_backward(grad_out[..., start:stop, :], sums, _divisor(phi, sums), out=d)
        else:
            d[...] = grad_out[..., start:stop, :]
        df: Any = None if state is None else d @ _T(state)
        if is_causal:
            dweights = _hide_later(d @ _T(columns))
            df = _add(df, dweights @ g)
            dg.append(_T(dweights) @ f)
            np.matmul(_T(weights), d[..., :width], out=dvalue[..., start:stop, :])
            state = _add(state, _T(g) @ columns)
        else:
            later = _add(later, _T(f) @ d)
        dquery[..., start:stop, :] = phi.query_backward(q, f, df)

    for start, stop in reversed(_chunks(key, CHUNK)):
        k = key[..., start:stop, :]
        g, columns = _keys(phi, key, value, start, stop)
        gradient: Any = dg.pop() if is_causal else None
        if later is not None:
            gradient = _add(gradient, columns @ _T(later))
            dvalue[..., start:stop, :] += g @ later[..., :width]
        if is_causal:
            later = _add(later, _T(phi.query(query[..., start:stop, :])) @ dsums[..., start:stop, :])
        dkey[..., start:stop, :] = phi.key_backward(k, g, gradient)
    return dquery, dkey, dvalue


def _keys(phi, key, value, start, stop):
    """Of a chunk: phi of the keys, (..., C, M), and what is weighted, [value, 1], or value alone if not normalized."""
    columns = value[..., start:stop, :]
    return phi.key(key[..., start:stop, :]), _with_ones(columns) if phi.normalized else columns


def _state(phi, key, value):
    """The sum of phi(k_j).T [v_j, 1] over all keys, (..., M, Ev + 1)."""
    state = None
    for start, stop in _chunks(key, CHUNK):
        g, columns = _keys(phi, key, value, start, stop)
        state = _add(state, _T(g) @ columns)
    return state


def _divisor(phi, sums):
    """The last column of sums; infinite for 0 if it cannot cancel, so that out and all gradients of the query are 0."""
    total = sums[..., -1:]
    if phi.positive:
        total[total == 0] = np.inf
    return total


# ---- shared by all


def _divide_backward(grad_out, sums, divisor, out):
    """The gradient of sums, [numerator, sum], for numerator / sum; the numerators in sums are overwritten."""
    result = sums[..., :-1]
    result /= divisor
    np.divide(grad_out, divisor, out=out[..., :-1])
    np.negative(_dot(out[..., :-1], result), out=out[..., -1:])


def _with_ones(value):
    """[value, 1], (..., n, Ev + 1)."""
    columns = np.empty((*value.shape[:-1], value.shape[-1] + 1), value.dtype)
    columns[..., :-1] = value
    columns[..., -1] = 1
    return columns


def _hide_later(weights):
    """Sets those of keys after the query to 0, in place; weights is (..., n, n)."""
    weights *= _lower_triangle(weights.shape[-1], weights.dtype)
    return weights


@functools.lru_cache(maxsize=8)
def _lower_triangle(n, dtype):
    return np.tri(n, dtype=dtype)


def _add(total, product):
    """total + product, in place; total is None before the first."""
    if total is None:
        return product
    total += product
    return total


def _dot(x, y):
    return np.einsum("...i,...i->...", x, y)[..., None]


def _T(x):
    return x.swapaxes(-1, -2)


def _chunks(x, size):
    """(start, stop) of consecutive rows; one empty chunk if there are no rows."""
    length = x.shape[-2]
    return [(start, min(start + size, length)) for start in range(0, max(length, 1), size)]


# ---- arguments


def _inputs(query: ArrayLike, key: ArrayLike, value: ArrayLike, is_causal: bool) -> tuple[Array, Array, Array]:
    """The three as arrays of one dtype, whose shapes fit."""
    arrays = [_floating(x, name) for x, name in ((query, "query"), (key, "key"), (value, "value"))]
    shapes = [x.shape for x in arrays]
    if min(map(len, shapes)) < 2:
        raise ValueError("query, key and value must have at least two axes, got shapes {}, {}, {}".format(*shapes))
    (*batch, length, width), (*key_batch, keys, key_width), (*value_batch, values, _) = shapes
    if not batch == key_batch == value_batch:
        raise ValueError("query, key and value must be equal in all axes before the last two (no broadcasting, "
                         "no grouped heads), got shapes {}, {}, {}".format(*shapes))
    if width != key_width or width == 0:
        raise ValueError("query and key must have the same last axis, of at least 1, got shapes {}, {}".format(*shapes))
    if keys != values:
        raise ValueError("key and value must have as many rows, got shapes {1}, {2}".format(*shapes))
    if is_causal and length != keys:
        raise ValueError(f"is_causal needs as many queries as keys, got {length} and {keys}")
    dtype = np.result_type(*arrays)
    query, key, value = (x.astype(dtype, copy=False) for x in arrays)
    return query, key, value


def _grad_out(grad_out: ArrayLike, query: Array, value: Array) -> Array:
    grad_out = _floating(grad_out, "grad_out")
    shape = (*query.shape[:-1], value.shape[-1])
    if grad_out.shape != shape:
        raise ValueError(f"grad_out must have the shape of out, {shape}, got {grad_out.shape}")
    return grad_out.astype(query.dtype, copy=False)


def _floating(x: ArrayLike, name: str) -> Array:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, which is not supported")
    array = np.asarray(x)
    if array.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}")
    return array


def _scale(scale: float | None, query: Array) -> float:
    """A float, which leaves float32 arrays float32."""
    return float(query.shape[-1] ** -0.5) if scale is None else float(scale)


# ---- for the decoder ------------------------------------------------------------------------------------------------


def _plain(forward, backward):
    """A pair of functions of (query, key, value, is_causal, scale)."""
    def attention(query, key, value, is_causal, scale):
        return forward(query, key, value, is_causal, scale=scale)

    def attention_backward(grad_out, query, key, value, is_causal, scale):
        return backward(grad_out, query, key, value, is_causal, scale=scale)

    return attention, attention_backward


def _linear_pair():
    """The feature map of linear attention has no scale."""
    def attention(query, key, value, is_causal, scale):
        return linear_attention(query, key, value, is_causal)

    def attention_backward(grad_out, query, key, value, is_causal, scale):
        return linear_attention_backward(grad_out, query, key, value, is_causal)

    return attention, attention_backward


def _performer_pair():
    """The same features for all layers and heads of one width."""
    features = functools.lru_cache(lambda width, dtype: performer_features(width, dtype=dtype))

    def attention(query, key, value, is_causal, scale):
        drawn = features(query.shape[-1], query.dtype)
        return performer_attention(query, key, value, drawn, is_causal, scale=scale)

    def attention_backward(grad_out, query, key, value, is_causal, scale):
        drawn = features(query.shape[-1], query.dtype)
        return performer_attention_backward(grad_out, query, key, value, drawn, is_causal, scale=scale)

    return attention, attention_backward


# By the name in `decoder.Config.attention`: forward of (query, key, value, is_causal, scale), and its backward, which
# takes grad_out before them.
FUNCTIONS = {
    "relu": _plain(relu_attention, relu_attention_backward),
    "linear": _linear_pair(),
    "performer": _performer_pair(),
    "dot_product": _plain(dot_product_attention, dot_product_attention_backward),
    "sum_normalized": _plain(sum_normalized_attention, sum_normalized_attention_backward),
}
