"""Attention over sequences of different lengths: packed one after another, or with their keys in pages."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack, overload

from numpy.typing import ArrayLike

from fastsoftmax import _packed, _validate
from fastsoftmax._typing import Array, Window


class _Options(TypedDict, total=False):
    """The keyword arguments that do not change what is returned."""

    dropout_p: float
    is_causal: bool
    scale: ArrayLike | None
    enable_gqa: bool
    causal_offset: ArrayLike | None
    window: Window | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    out: Array | None


@overload
def varlen_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike | None = None,
    *, return_lse: Literal[False] = False, return_entropy: Literal[False] = False, **options: Unpack[_Options],
) -> Array: ...
@overload
def varlen_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike | None = None,
    *, return_lse: bool = False, return_entropy: bool = False, **options: Unpack[_Options],
) -> Any: ...
def varlen_attention(
        query: ArrayLike, key: ArrayLike, value: ArrayLike, cu_seqlens_q: ArrayLike,
        cu_seqlens_k: ArrayLike | None = None, *, dropout_p: float = 0.0, is_causal: bool = False,
        scale: ArrayLike | None = None, enable_gqa: bool = False, causal_offset: ArrayLike | None = None,
        window: Window | None = None, softcap: float | None = None, alibi_slopes: ArrayLike | None = None,
        sinks: ArrayLike | None = None, return_lse: bool = False, return_entropy: bool = False,
        out: Array | None = None) -> Any:
    """Attention of sequences of different lengths that are packed: one after another, without padding.

    ::

        lengths 2, 1, 3: cu_seqlens = [0, 2, 3, 6]          with is_causal: key j is visible (x) to query i
                                                            i\\j 0 1 2 3 4 5
        rows    0   1   2   3   4   5                       0   x . . . . .
        texts   a0  a1  b0  c0  c1  c2                      1   x x . . . .
                                                            2   . . x . . .
                                                            3   . . . x . .
                                                            4   . . . x x .
                                                            5   . . . x x x

    Parameters
    ----------
    query : array_like, (total_q, Hq, E)
        The queries of all sequences; dtypes and strides as `scaled_dot_product_attention` takes them. The heads stand
        after the rows, as a projection of packed text has them.
    key, value : array_like, (total_k, Hk, E) and (total_k, Hk, Ev)
        The keys and values of all sequences.
    cu_seqlens_q : array_like of ints, (B + 1,)
        The cumulative lengths of the sequences: the queries of sequence b are the rows ``cu_seqlens_q[b]`` to
        ``cu_seqlens_q[b + 1]``. From 0 to total_q, not falling; a sequence may be empty.
    cu_seqlens_k : array_like of ints, (B + 1,), default cu_seqlens_q
        The same of the keys.
    dropout_p, scale, enable_gqa, window, softcap, sinks, return_lse, return_entropy
        As in `scaled_dot_product_attention`.
    is_causal : bool, default False
        Hide the keys after each query's own position.
    causal_offset : int or array_like of ints, (B,), optional
        The position of a sequence's first query among its keys, for is_causal, window and alibi_slopes. By default its
        last query stands on its last key; in sequences with as many queries as keys that is torch's alignment. The unit
        is keys.
    alibi_slopes : array_like, (Hq,) or (B, Hq)
        Subtracts ``slope * abs(i + causal_offset - j)``, rows counted within the sequence.
    out : ndarray, (total_q, Hq, Ev), optional
        The array to write the result to; of the dtype of query, or float32 for 16-bit queries. Any strides.

    Returns
    -------
    ndarray, (total_q, Hq, Ev)
        Of the dtype of query; `out`, if given. Zeros for a query that sees no key.
    lse : ndarray, (Hq, total_q)
        With return_lse. float64 for float64, else float32; -inf for a query that sees no key.
    entropy : ndarray, (Hq, total_q)
        With return_entropy, the last of the tuple. In nats, of the dtype of lse.

    Raises
    ------
    TypeError
        If cu_seqlens are not integers, or for another reason of `scaled_dot_product_attention`.
    ValueError
        If cu_seqlens do not start at 0, fall, or end elsewhere than at the number of rows, or shapes do not fit.
    NotImplementedError
        If dropout_p is not 0.

    See Also
    --------
    varlen_attention_backward : gradients with respect to all inputs.
    paged_attention : keys and values in pages, for serving.

    Notes
    -----
    The bits of a sequence's result are those of a call of `scaled_dot_product_attention` with this sequence alone, for
    any number of threads [1]_. Sequences with most work are computed first. Nothing is padded, and no L x S array is
    made.

    References
    ----------
    .. [1] T. Dao, D. Y. Fu, S. Ermon, A. Rudra and C. Ré, "FlashAttention: fast and memory-efficient exact attention
       with IO-awareness", NeurIPS 2022, arXiv:2205.14135.

    Examples
    --------
    Three texts of 2, 1 and 3 words, two heads:

    >>> import numpy as np
    >>> from fastsoftmax import scaled_dot_product_attention, varlen_attention
    >>> query, key, value = np.random.default_rng(0).normal(size=(3, 6, 2, 8))
    >>> out = varlen_attention(query, key, value, [0, 2, 3, 6], is_causal=True)
    >>> out.shape
    (6, 2, 8)

    The third text by itself, heads first, gives the same:

    >>> alone = scaled_dot_product_attention(*(x[3:6].swapaxes(0, 1) for x in (query, key, value)), is_causal=True)
    >>> np.array_equal(out[3:6].swapaxes(0, 1), alone)
    True
    """
    if dropout_p != 0:
        _validate.refuse_dropout(dropout_p)
    return _packed.varlen_attention(query, key, value, cu_seqlens_q, cu_seqlens_k, is_causal, scale, enable_gqa,
                                    causal_offset, window, softcap, alibi_slopes, sinks, return_lse, return_entropy,
                                    out)


def varlen_attention_backward(
        grad_out: ArrayLike, query: ArrayLike, key: ArrayLike, value: ArrayLike, out: ArrayLike, lse: ArrayLike,
        cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike | None = None, *, dropout_p: float = 0.0,
        is_causal: bool = False, scale: ArrayLike | None = None, enable_gqa: bool = False,
        causal_offset: ArrayLike | None = None, window: Window | None = None, softcap: float | None = None,
        alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None, grad_lse: ArrayLike | None = None,
        grad_scale: bool = False, grad_sinks: bool = False, grad_slopes: bool = False) -> tuple[Array, ...]:
    """Gradients of `varlen_attention` with respect to its inputs, from those with respect to its results.

    Parameters
    ----------
    grad_out : array_like, (total_q, Hq, Ev)
        The gradient of the loss with respect to out. Of the dtype of query, or float32 for 16-bit queries.
    query, key, value : array_like, (total_q, Hq, E), (total_k, Hk, E) and (total_k, Hk, Ev)
        The inputs of the forward call.
    out, lse : array_like, (total_q, Hq, Ev) and (Hq, total_q)
        The results of the forward call with return_lse. For 16-bit queries, out may be the float32 one that the forward
        call wrote to its argument `out`.
    cu_seqlens_q, cu_seqlens_k : array_like of ints, (B + 1,)
        As in the forward call.
    dropout_p, is_causal, scale, enable_gqa, causal_offset, window, softcap, alibi_slopes, sinks
        As in the forward call.
    grad_lse : array_like, (Hq, total_q), optional
        The gradient of the loss with respect to lse, if the loss depends on it. Of the dtype of lse.
    grad_scale, grad_sinks, grad_slopes : bool, default False
        Also return dscale, dsinks, dslopes, in this order, as `scaled_dot_product_attention_backward` does.

    Returns
    -------
    dquery, dkey, dvalue : ndarray
        Of the shapes and dtypes of query, key and value.
    dscale, dsinks : ndarray, (Hq,)
        With grad_scale, grad_sinks: the sums over all sequences. float64 for float64, else float32.
    dslopes : ndarray, (Hq,) or (B, Hq)
        With grad_slopes. Of the shape of alibi_slopes.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `varlen_attention` and `scaled_dot_product_attention_backward`.

    See Also
    --------
    varlen_attention : the forward call.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax import varlen_attention, varlen_attention_backward
    >>> query, key, value = np.random.default_rng(0).normal(size=(3, 6, 2, 8))
    >>> lengths = [0, 2, 3, 6]
    >>> out, lse = varlen_attention(query, key, value, lengths, is_causal=True, return_lse=True)
    >>> dquery, dkey, dvalue = varlen_attention_backward(out, query, key, value, out, lse, lengths, is_causal=True)
    >>> float(abs(dquery[2]).max()) < 1e-12     # the one query of the second text sees one key: its weight is always 1
    True
    """
    if dropout_p != 0:
        _validate.refuse_dropout(dropout_p)
    return _packed.varlen_attention_backward(
        grad_out, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, is_causal, scale, enable_gqa, causal_offset,
        window, softcap, alibi_slopes, sinks, grad_lse, grad_scale, grad_sinks, grad_slopes)


@overload
def paged_attention(
    query: ArrayLike, key_cache: ArrayLike, value_cache: ArrayLike, block_table: ArrayLike, key_lengths: ArrayLike,
    *, return_lse: Literal[False] = False, return_entropy: Literal[False] = False, **options: Unpack[_Options],
) -> Array: ...
@overload
def paged_attention(
    query: ArrayLike, key_cache: ArrayLike, value_cache: ArrayLike, block_table: ArrayLike, key_lengths: ArrayLike,
    *, return_lse: bool = False, return_entropy: bool = False, **options: Unpack[_Options],
) -> Any: ...
def paged_attention(
        query: ArrayLike, key_cache: ArrayLike, value_cache: ArrayLike, block_table: ArrayLike, key_lengths: ArrayLike,
        *, dropout_p: float = 0.0, is_causal: bool = True, scale: ArrayLike | None = None, enable_gqa: bool = False,
        causal_offset: ArrayLike | None = None, window: Window | None = None, softcap: float | None = None,
        alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None, return_lse: bool = False,
        return_entropy: bool = False, out: Array | None = None) -> Any:
    """Attention over caches whose keys and values stand in pages, as a server of many sequences keeps them [1]_.

    ::

        page_size 4; sequence 0 has 6 keys, sequence 1 has 9, and both begin with the same 4

        block_table     [[2, 0, -], [2, 3, 1]]              - is not read, whatever it holds
        sequence 0      page 2: keys 0 to 3    page 0: keys 4, 5
        sequence 1      page 2: keys 0 to 3    page 3: keys 4 to 7    page 1: key 8

    Parameters
    ----------
    query : array_like, (B, L, Hq, E)
        L queries of each sequence: 1 for decoding, more for a prompt or for tokens to be verified. Dtypes and strides
        as `scaled_dot_product_attention` takes them.
    key_cache, value_cache : array_like, (pages, page_size, Hk, E) and (pages, page_size, Hk, Ev)
        All pages; float16 or bfloat16 beside a float32 query too.
    block_table : array_like of ints, (B, most)
        The pages of each sequence: its key j is row ``j % page_size`` of page ``block_table[b, j // page_size]``.
        Several sequences may have the same page. Numbers beyond a sequence's length are not read.
    key_lengths : array_like of ints, (B,)
        How many keys each sequence has, those of the present queries included. From 0 to ``most * page_size``.
    is_causal : bool, default True
        Hide the keys after each query's own position.
    causal_offset : int or array_like of ints, (B,), default ``key_lengths - L``
        The position of a sequence's first query among its keys, for is_causal, window and alibi_slopes. By default its
        last query stands on its last key. The unit is keys.
    alibi_slopes : array_like, (Hq,) or (B, Hq)
        Subtracts ``slope * abs(i + causal_offset - j)``.
    dropout_p, scale, enable_gqa, window, softcap, sinks, return_lse, return_entropy
        As in `scaled_dot_product_attention`.
    out : ndarray, (B, L, Hq, Ev), optional
        The array to write the result to; of the dtype of query, or float32 for 16-bit queries. Any strides.

    Returns
    -------
    ndarray, (B, L, Hq, Ev)
        Of the dtype of query; `out`, if given. Zeros for a query that sees no key.
    lse : ndarray, (B, Hq, L)
        With return_lse. float64 for float64, else float32; -inf for a query that sees no key.
    entropy : ndarray, (B, Hq, L)
        With return_entropy, the last of the tuple. In nats, of the dtype of lse.

    Raises
    ------
    TypeError
        If block_table or key_lengths are not integers, or for another reason of `scaled_dot_product_attention`.
    ValueError
        If a length is not in 0..most * page_size, a page that is used does not exist, or shapes do not fit.
    NotImplementedError
        If dropout_p is not 0.

    See Also
    --------
    varlen_attention : sequences packed one after another, for their first pass through a model.
    merge_attention_states : attention over pieces of the keys.

    Notes
    -----
    The bits of a sequence's result are those of `scaled_dot_product_attention` with its keys in one array. Rows of a
    page beyond a sequence's length, and pages that no sequence uses, are not read. Pages are not copied together first,
    but for blocks of 128 keys where there are many queries.

    References
    ----------
    .. [1] W. Kwon et al., "Efficient memory management for large language model serving with PagedAttention",
       SOSP 2023, arXiv:2309.06180.

    Examples
    --------
    The picture above: two sequences that share their first page, one query each.

    >>> import numpy as np
    >>> from fastsoftmax import paged_attention, scaled_dot_product_attention
    >>> rng = np.random.default_rng(0)
    >>> key_cache, value_cache = rng.normal(size=(2, 4, 4, 2, 8))       # 4 pages of 4 keys, 2 heads
    >>> query = rng.normal(size=(2, 1, 2, 8))
    >>> out = paged_attention(query, key_cache, value_cache, [[2, 0, -1], [2, 3, 1]], [6, 9])
    >>> out.shape
    (2, 1, 2, 8)

    The first one, its keys brought together, heads first:

    >>> key, value = (np.concatenate([x[2], x[0, :2]]).swapaxes(0, 1) for x in (key_cache, value_cache))
    >>> np.array_equal(out[0].swapaxes(0, 1), scaled_dot_product_attention(query[0].swapaxes(0, 1), key, value))
    True
    """
    if dropout_p != 0:
        _validate.refuse_dropout(dropout_p)
    return _packed.paged_attention(query, key_cache, value_cache, block_table, key_lengths, is_causal, scale,
                                   enable_gqa, causal_offset, window, softcap, alibi_slopes, sinks, return_lse,
                                   return_entropy, out)
