"""Checks of what packed and paged attention take beside the arguments of scaled_dot_product_attention."""

import numpy as np

from fastsoftmax import _validate
from fastsoftmax._dtypes import converted


def packed_inputs(query, key, value, cu_seqlens_q, cu_seqlens_k, enable_gqa):
    """(query, key, value, query heads, key heads, first rows of queries, first rows of keys): what fits together."""
    query, key, value = _validate.of_one_dtype(query=query, key=key, value=value)
    shapes = {"query": query.shape, "key": key.shape, "value": value.shape}
    for name, shape in shapes.items():
        if len(shape) != 3:
            raise ValueError(
                f"{name} must have three dimensions (rows of all sequences, heads, width), got shape {shape}")
    if len(key) != len(value):
        raise _validate.misfit(shapes, "key", "value", f"there are {len(key)} keys and {len(value)} values")
    heads = _common_heads(shapes, enable_gqa)
    first_query = _first_rows(cu_seqlens_q, "cu_seqlens_q", "query", len(query))
    if cu_seqlens_k is None:
        if len(query) != len(key):
            raise _validate.misfit(shapes, "query", "key", "without cu_seqlens_k there must be as many keys as queries")
        first_key = first_query
    else:
        first_key = _first_rows(cu_seqlens_k, "cu_seqlens_k", "key", len(key))
        if len(first_key) != len(first_query):
            raise ValueError(f"cu_seqlens_q and cu_seqlens_k must be of one length, one more than there are sequences; "
                             f"got {len(first_query)} and {len(first_key)}")
    return query, key, value, *heads, first_query, first_key


def paged_inputs(query, key_cache, value_cache, enable_gqa):
    """(query, key_cache, value_cache, query heads, key heads): arrays that fit together."""
    query, key, value = _validate.of_one_dtype(query=query, key_cache=key_cache, value_cache=value_cache)
    shapes = {"query": query.shape, "key_cache": key.shape, "value_cache": value.shape}
    for name, dimensions in zip(shapes, ("(batch, queries, heads, E)", "(pages, page_size, heads, E)",
                                         "(pages, page_size, heads, Ev)"), strict=True):
        if len(shapes[name]) != 4:
            raise ValueError(f"{name} must have four dimensions {dimensions}, got shape {shapes[name]}")
    if key.shape[:2] != value.shape[:2]:
        raise _validate.misfit(shapes, "key_cache", "value_cache",
                               "pages and page_size, their first two dimensions, differ")
    return query, key, value, *_common_heads(shapes, enable_gqa)


def _common_heads(shapes, enable_gqa):
    """(query heads, key heads) of arrays (..., heads, width) whose widths fit."""
    query, key, _ = shapes
    if shapes[query][-1] != shapes[key][-1]:
        raise _validate.misfit(shapes, query, key,
                               f"their last dimensions, E, are {shapes[query][-1]} and {shapes[key][-1]}")
    return _validate.common_heads(shapes, [shape[-2] for shape in shapes.values()], enable_gqa)


def _first_rows(cu_seqlens, name, of, total):
    """int64, in memory of its own: from 0 to total, and never less than the number before."""
    array = _integers(cu_seqlens, name)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must have one dimension and at least one number, got shape {array.shape}")
    rows = array.astype(np.int64)               # a number beyond int64 becomes negative, and falls
    if rows[0] != 0:
        raise ValueError(f"{name} must start at 0, got {array[0]}")
    if rows[-1] != total:
        raise ValueError(f"{name} must end at {total}, the number of rows of {of}; got {array[-1]}")
    falls = np.flatnonzero(rows[1:] < rows[:-1])
    if falls.size:
        b = falls[0]
        raise ValueError(f"{name} must not fall, but {name}[{b}] is {array[b]} and {name}[{b + 1}] is {array[b + 1]}")
    return rows


def _integers(x, name):
    array = _validate.as_numbers(x, name, instead_of_masked=f"{name}.data")
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    return array


def page_table(block_table, key_lengths, batch, pages, page_size):
    """(table (B, most), lengths (B,)), int64 and contiguous: entries that name no page, beyond a sequence's length, are
    0."""
    table = _integers(block_table, "block_table")
    if table.ndim != 2 or len(table) != batch:
        raise ValueError(f"block_table must have shape ({batch}, most pages of a sequence), as query has {batch} "
                         f"sequences; got {table.shape}")
    most = table.shape[1]
    _integers(key_lengths, "key_lengths")
    lengths = _validate.check_key_lengths(key_lengths, (batch,), most * page_size, "the room of block_table's pages")
    numbers = converted(table, np.dtype(np.int64), "C")
    if numbers.size == 0 or numbers.view(np.uint64).max() < pages:      # negative numbers are large there
        return numbers, lengths
    used = np.arange(most) < -(-lengths[:, None] // max(page_size, 1))
    wrong = used & ((table < 0) | (table >= pages))
    if wrong.any():
        b, j = np.argwhere(wrong)[0]
        raise ValueError(f"block_table[{b}, {j}] is {table[b, j]}; pages are numbered from 0 to {pages - 1}")
    return np.where(used, numbers, 0), lengths
