"""Sampling: the definition. Each row is sorted, and all probabilities are stored.

Error. The computation is in float64, of long double in long double. A kernel may decide otherwise where a mass and its
bound, or a uniform number and a cumulative probability, differ by less than its error.
"""

import numpy as np

from fastsoftmax.reference.softmax import _check_real, _natural, _round


def sample(logits, axis=-1, *, temperature=1.0, top_k=None, top_p=None, min_p=None, typical_p=None, where=None,
           rng=None, uniform=None, return_logprob=False):
    """Draw one token from each row of logits.

    With p the probabilities of the tokens that `filter_logits` keeps, and C their cumulative sums in index order, the
    token is the i for which ``C[i - 1] <= uniform < C[i]``. A token without weight is never drawn.

    Parameters
    ----------
    logits : array_like, (..., V, ...)
        Scores of V tokens, which lie along `axis`.
    temperature, top_k, top_p, min_p, typical_p, where
        As in `filter_logits`.
    rng : numpy.random.Generator, seed or None
        Asked for one number a row, in C order.
    uniform : float or array_like, optional
        The numbers in [0, 1), one for each row, in place of those of `rng`.
    return_logprob : bool
        Also return the log probability of each token, 0 at temperature 0.

    Returns
    -------
    tokens, or (tokens, logprob)
        int64, and float32 (float64 for float64 logits), of the shape of the logits without `axis`.

    Examples
    --------
    >>> import numpy as np
    >>> tokens = sample(np.log([[0.5, 0.25, 0.25]] * 3), uniform=[0.49, 0.5, 0.75])
    >>> tokens
    array([0, 1, 2])
    """
    x, result = _rows(logits, axis, where)
    options = _options(x, temperature, top_k, top_p, min_p, typical_p)
    if uniform is None:
        uniform = np.random.default_rng(rng).random(x.shape[:-1])
    uniform = np.broadcast_to(np.asarray(uniform, np.float64), x.shape[:-1])
    tokens, logprob = np.zeros(x.shape[:-1], np.int64), np.zeros(x.shape[:-1], x.dtype)
    for row in np.ndindex(tokens.shape):
        below, kept = _kept(x[row], *(option[row] for option in options))
        p = _probabilities(below[kept])
        drawn = np.searchsorted(np.cumsum(p), uniform[row], side="right")
        drawn = min(drawn, np.flatnonzero(p)[-1])  # a sum of 1 - 1e-16
        tokens[row], logprob[row] = kept[drawn], np.log(p[drawn])
    logprob = _round(logprob, np.dtype(np.float32) if result.itemsize < 8 else result)
    return (tokens[()], logprob) if return_logprob else tokens[()]


@np.errstate(all="ignore")
def filter_logits(logits, axis=-1, *, temperature=1.0, top_k=None, top_p=None, min_p=None, typical_p=None, where=None):
    """``logits / temperature`` of the tokens that may be drawn, and -inf for the others.

    The filters come in this order, each with the probabilities of what those before it left, and one token always
    stays:

    - `top_k`: the k largest [1]_.
    - `top_p`: the smallest set of the largest whose probabilities reach p together [2]_.
    - `min_p`: those with at least ``min_p * max(p)`` [3]_.
    - `typical_p`: by ``abs(-log(p) - entropy)``, smallest first, until the probabilities reach p together [4]_.

    Equal ones are taken in index order.

    Parameters
    ----------
    logits : array_like, (..., V, ...)
        Scores of V tokens, which lie along `axis`.
    temperature : float or array_like
        One number, or one for each row: the shape of the logits without `axis`, as for all that follow. 0 keeps the
        first of the largest logits, which is not divided.
    top_k : int or array_like, optional
    top_p, min_p, typical_p : float or array_like, optional
    where : array_like of bool, optional
        Broadcasts to the logits. Where it is False, the token is hidden.

    Returns
    -------
    ndarray
        The shape and dtype of the logits.

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
    >>> filter_logits([0.0, 2.0, 1.0, 1.0], top_k=3, temperature=0.5)
    array([-inf,   4.,   2.,   2.])
    """
    x, result = _rows(logits, axis, where)
    options = _options(x, temperature, top_k, top_p, min_p, typical_p)
    y = np.full(x.shape, -np.inf, x.dtype)
    for row in np.ndindex(x.shape[:-1]):
        if np.isneginf(x[row]).all():
            continue
        _, kept = _kept(x[row], *(option[row] for option in options))
        y[row][kept] = x[row][kept] / (options[0][row] or 1)
    rounded = np.asarray(_round(y, result))
    beyond = np.isinf(rounded) & np.isfinite(y)  # a finite number stays finite
    return np.moveaxis(np.where(beyond, np.nextafter(rounded, np.zeros_like(rounded)), rounded), -1, axis)


@np.errstate(all="ignore")
def penalize_(logits, tokens, *, repetition=1.0, frequency=0.0, presence=0.0, lengths=None):
    """Lower, in place, the logits of tokens that have been seen: ``f(x) - (frequency * count + presence)``.

    f(x) is ``x / repetition``, or ``x * repetition`` where x is negative [1]_; each distinct token is changed once, and
    count says how often it was seen.

    Parameters
    ----------
    logits : ndarray, (..., V)
        Overwritten.
    tokens : array_like of int, (..., T)
        The tokens seen so far.
    repetition, frequency, presence : float or array_like
        One number, or one for each row.
    lengths : int or array_like of int, optional
        How many of the tokens of a row count: the others are not read.

    Returns
    -------
    ndarray
        `logits` itself.

    References
    ----------
    .. [1] N. S. Keskar, B. McCann, L. R. Varshney, C. Xiong and R. Socher, "CTRL: a conditional transformer language
       model for controllable generation", arXiv:1909.05858 (2019), section 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> penalize_(np.array([4.0, -4.0, 4.0]), [0, 1, 1], repetition=2.0, presence=0.5)
    array([ 1.5, -8.5,  4. ])
    """
    tokens, rows = np.asarray(tokens), logits.shape[:-1]
    lengths = tokens.shape[-1] if lengths is None else lengths
    options = [np.broadcast_to(option, rows) for option in (repetition, frequency, presence, lengths)]
    for row in np.ndindex(rows):
        repeated, often, once, length = (option[row] for option in options)
        seen, count = np.unique(tokens[row][:length], return_counts=True)
        x = logits[row][seen].astype(np.result_type(np.float64, logits.dtype))
        x = np.where(x < 0, x * repeated, x / repeated) - (often * count + once)
        logits[row][seen] = _round(x, logits.dtype.newbyteorder("="))
    return logits


def _rows(logits, axis, where):
    """The logits with `axis` last, in the precision of the computation, -inf where hidden; and the result's dtype."""
    x = np.asarray(logits)
    result = _natural(x)
    _check_real("sample", result)
    if where is not None:
        x = np.where(where, x.astype(np.result_type(np.float64, result)), -np.inf)
    return np.moveaxis(x.astype(np.result_type(np.float64, result)), axis, -1), result


def _options(x, *options):
    """Each option of each row; None: what filters nothing."""
    defaults = 1.0, x.shape[-1], 1.0, 0.0, 1.0
    return [np.broadcast_to(default if option is None else option, x.shape[:-1])
            for option, default in zip(options, defaults, strict=True)]


@np.errstate(all="ignore")
def _kept(x, temperature, top_k, top_p, min_p, typical_p):
    """One row's ``(x - max(x)) / temperature``, and the tokens that may be drawn, in index order."""
    if temperature == 0:
        return x, np.array([x.argmax()])
    below = (x - x.max()) / temperature
    kept = np.argsort(-x, kind="stable")[:max(1, top_k)]  # the largest first, equal ones in index order
    if top_p < 1:
        kept = kept[:_smallest_set(_probabilities(below[kept]), top_p)]
    if min_p > 0:
        kept = kept[below[kept] >= np.log(min_p)]
    if typical_p < 1:
        p = _probabilities(below[kept])
        surprise = -np.log(p)
        entropy = np.where(p > 0, p * surprise, 0).sum()
        order = np.lexsort((kept, abs(surprise - entropy)))
        kept = kept[order][:_smallest_set(p[order], typical_p)]
    return below, np.sort(kept)


def _smallest_set(p, needed):
    """How many of p, from the first on, reach `needed` together: the one with which they do so too."""
    return min(1 + np.searchsorted(np.cumsum(p), needed), len(p))


@np.errstate(all="ignore")
def _probabilities(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
