"""The next token of a language model: sample, filter_logits, penalize_."""

from __future__ import annotations

from typing import Any, SupportsIndex

from numpy.random import Generator
from numpy.typing import ArrayLike

from fastsoftmax import _sampling
from fastsoftmax._typing import Array, Scores


def sample(logits: ArrayLike, axis: SupportsIndex = -1, *, temperature: ArrayLike = 1.0, top_k: ArrayLike | None = None,
           top_p: ArrayLike | None = None, min_p: ArrayLike | None = None, typical_p: ArrayLike | None = None,
           where: ArrayLike | None = None, rng: Generator | Any | None = None, uniform: ArrayLike | None = None,
           return_logprob: bool = False) -> Any:
    """Draw one token from each row of logits, with the probabilities of `softmax` over those that the filters keep.

    With p these probabilities and C their cumulative sums in index order, the token is the i for which
    ``C[i - 1] <= uniform < C[i]``. So it depends on its row, its parameters and its uniform number alone, not on other
    rows, threads or the instruction set. A token without weight is never drawn.

    Parameters
    ----------
    logits : array_like, (..., V, ...)
        Scores of V tokens, which lie along `axis`: float16, bfloat16, float32 or float64, any strides. Integers are
        converted, as `numpy.exp` does; long double and temperatures outside 1e-30 to 1e30 go through
        `fastsoftmax.reference`.
    axis : int, default -1
        That of the tokens.
    temperature : float or array_like, default 1.0
        Divides the logits. 0 takes the largest logit, the first of equal ones. As all parameters below: one number, or
        one for each row, an array of the logits' shape without `axis`.
    top_k : int or array_like of int, optional
        Keep the k largest [1]_.
    top_p : float or array_like, optional
        Then keep the smallest set of the largest whose probabilities together reach `top_p`, the one that crosses it
        included [2]_.
    min_p : float or array_like, optional
        Then keep those with at least `min_p` times the largest probability [3]_.
    typical_p : float or array_like, optional
        Then keep those whose ``-log(p)`` is nearest to the entropy, until their probabilities together reach
        `typical_p`, the one that crosses it included [4]_.
    where : array_like of bool, optional
        Broadcasts to the logits. Where it is False, the token is not drawn, whatever the logit is, NaN included.
    rng : numpy.random.Generator, seed or None
        A Generator is asked for one number a row, ``random(rows)`` in C order, whatever the temperature; a seed goes to
        `numpy.random.default_rng`; None is an unpredictable one.
    uniform : float or array_like, optional
        The numbers in [0, 1), in place of those of `rng`.
    return_logprob : bool, default False
        Also return the log probability of each token under the distribution that it was drawn from.

    Returns
    -------
    tokens, or (tokens, logprob)
        Token numbers, int64; logprob float32, float64 for float64 logits, and 0 at temperature 0. The logits' shape
        without `axis`; a scalar for one row.

    Raises
    ------
    TypeError
        If the logits are complex, not numeric or a masked array, or an argument has the wrong type.
    ValueError
        If a parameter is out of range or NaN; if shapes do not fit; if `rng` and `uniform` are both given; or if a row
        has NaN, +inf, or no token to draw: it is named.
    numpy.exceptions.AxisError
        If axis is out of range.

    See Also
    --------
    filter_logits : the distribution itself, as logits.
    penalize_ : against repetition, before this.

    Notes
    -----
    Each filter works on the probabilities that those before it left; equal ones are taken in index order, and one
    token always stays. ``top_k >= V``, ``top_p = 1``, ``min_p = 0``, ``typical_p = 1`` and None filter nothing.

    Weights are integers, ``round(2**50 * exp((x - max(x)) / temperature))``, whose sums are exact. A token's share of
    [0, 1) is its probability within 2**-40 for float64 logits, and within ``p * 2**-21 + 2**-50`` for others; logits of
    16 bits draw what the same numbers draw in float32. Nothing is sorted: a sample of the row tells about where a
    filter ends, and a selection exactly where. Beyond the results, each thread takes about 70 bytes a token of one row,
    or 4 without filters; up to 32 MiB of it are kept for the next call.

    References
    ----------
    .. [1] A. Fan, M. Lewis and Y. Dauphin, "Hierarchical neural story generation", ACL 2018, arXiv:1805.04833.
    .. [2] A. Holtzman, J. Buys, L. Du, M. Forbes and Y. Choi, "The curious case of neural text degeneration", ICLR
       2020, arXiv:1904.09751.
    .. [3] M. N. Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs", 2024,
       arXiv:2407.01082.
    .. [4] C. Meister, T. Pimentel, G. Wiher and R. Cotterell, "Locally typical sampling", TACL 2023,
       arXiv:2202.00666.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import sample
    >>> logits = np.log([0.5, 0.25, 0.125, 0.125])
    >>> sample([logits] * 4, uniform=[0.0, 0.4, 0.6, 0.9])
    array([0, 0, 1, 3])
    >>> sample([logits] * 4, uniform=[0.0, 0.4, 0.6, 0.9], top_p=0.7)
    array([0, 0, 0, 1])
    >>> tokens = sample([logits] * 1000, rng=0)
    >>> np.bincount(tokens)
    array([473, 260, 142, 125])
    """
    return _sampling.sample(logits, axis, temperature, top_k, top_p, min_p, typical_p, where, rng, uniform,
                            return_logprob)


def filter_logits(logits: ArrayLike, axis: SupportsIndex = -1, *, temperature: ArrayLike = 1.0,
                  top_k: ArrayLike | None = None, top_p: ArrayLike | None = None, min_p: ArrayLike | None = None,
                  typical_p: ArrayLike | None = None, where: ArrayLike | None = None,
                  out: Array | None = None) -> Array:
    """``logits / temperature`` of the tokens that `sample` may draw, and -inf for the others.

    `softmax` of the result along `axis` is the distribution that `sample` draws from.

    Parameters
    ----------
    logits, axis, temperature, top_k, top_p, min_p, typical_p, where
        As in `sample`. At temperature 0 the first of the largest logits stays, unchanged.
    out : ndarray, optional
        The array to write the result to: the shape of the logits, the result's dtype, any strides. May be `logits`.

    Returns
    -------
    ndarray
        Of the shape and dtype of the logits; `out`, if given. A quotient beyond the dtype's range becomes its largest
        number. A row of -inf, or one that is wholly hidden, is -inf.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As `sample`, and if `out` cannot take the result. Nothing is written then.

    See Also
    --------
    sample : the order of the filters, and their sources.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import filter_logits, softmax
    >>> kept = filter_logits([1.0, 3.0, 2.0, 2.0], top_k=3, temperature=0.5)
    >>> kept
    array([-inf,   6.,   4.,   4.])
    >>> softmax(kept).round(3)
    array([0.   , 0.787, 0.107, 0.107])
    """
    return _sampling.filter_logits(logits, axis, temperature, top_k, top_p, min_p, typical_p, where, out)


def penalize_(logits: Scores, tokens: ArrayLike, *, repetition: ArrayLike = 1.0, frequency: ArrayLike = 0.0,
              presence: ArrayLike = 0.0, lengths: ArrayLike | None = None) -> Scores:
    """Lower, in place, the logits of tokens that have been seen.

    Of a token that was seen `count` times, once or more::

        x = x * repetition if x < 0 else x / repetition
        x = x - (frequency * count + presence)

    Parameters
    ----------
    logits : ndarray, (..., V)
        Scores of V tokens, floating: float16, bfloat16, float32, float64 or long double, any strides. Overwritten.
    tokens : array_like of int, (..., T)
        The tokens seen so far, from 0 to V - 1.
    repetition : float or array_like, default 1.0
        Positive [1]_. One number, or one for each row, an array of the logits' shape without the last dimension, as for
        all that follow.
    frequency, presence : float or array_like, default 0.0
        Taken off for each time that the token was seen, and once.
    lengths : int or array_like of int, optional
        How many tokens of each row count, from its first on; those behind are not read.

    Returns
    -------
    ndarray
        `logits` itself.

    Raises
    ------
    IndexError
        If a token is out of range, negative ones too; it and its place are named, and nothing is written.
    TypeError
        If logits is not an ndarray of floats, or tokens or lengths are not integers.
    ValueError
        If a parameter is out of range or NaN, shapes do not fit, or logits is read-only.

    Notes
    -----
    Computed in double and rounded once.

    References
    ----------
    .. [1] N. S. Keskar, B. McCann, L. R. Varshney, C. Xiong and R. Socher, "CTRL: a conditional transformer language
       model for controllable generation", arXiv:1909.05858 (2019), section 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import penalize_
    >>> penalize_(np.array([4.0, -4.0, 4.0]), [0, 1, 1], repetition=2.0, frequency=0.5)
    array([ 1.5, -9. ,  4. ])
    """
    _sampling.penalize(logits, tokens, repetition, frequency, presence, lengths)
    return logits
