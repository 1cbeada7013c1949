"""Attention on dask arrays, whose queries and keys may be chunked.

    parts   (out, lse) of a block of queries on a block of keys, by the kernel; float32 out for 16-bit queries
    states  parts merged by tree, dask.config's split_every (4) at a time, in float64: `merge_attention_states`
    result  the last merge of a block of queries, in which a sink is one more part: an lse without values

A block of keys that the causal mask, the window or the lengths hide from a whole block of queries is not in the graph.
Where one block of keys remains, the kernel's result is the result.
"""

import functools
import itertools
import operator
from typing import NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

import fastsoftmax
from fastsoftmax import _attention, _validate, reference
from fastsoftmax._dtypes import saturated
from fastsoftmax.dask._arrays import dask_array, empty, stand_in, task


def scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                                 enable_gqa=False, *, bias=None, causal_offset=0, window=None, softcap=None,
                                 alibi_slopes=None, sinks=None, key_lengths=None, return_lse=False):
    """`fastsoftmax.scaled_dot_product_attention` of dask arrays, lazily; queries and keys may be chunked.

    Parameters
    ----------
    query, key, value : dask array, (..., Hq, L, E), (..., Hk, S, E) and (..., Hk, S, Ev)
        As there, in any chunks: those of key and value need not be the same. NumPy arrays become dask arrays first.
    attn_mask, bias : dask or NumPy array, optional
        As there; the last dimension must be S or 1.
    dropout_p : float, default 0.0
        Must be 0.
    is_causal, enable_gqa, window, softcap
        As there.
    scale, causal_offset, alibi_slopes, sinks, key_lengths
        As there: numbers or NumPy arrays. A sink counts once.
    return_lse : bool, default False
        Also return the logsumexp of each query's scores.

    Returns
    -------
    out : dask array, (..., Hq, L, Ev)
        In the chunks of the queries; heads that share keys lie in one chunk, and Ev is one chunk. Equal calls have
        equal names.
    lse : dask array, (..., Hq, L)
        With return_lse.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As there, when the graph is built; also if chunks have unknown sizes, or are not plain NumPy. `return_entropy`
        and `out` are not taken.

    See Also
    --------
    fastsoftmax.merge_attention_states : the merging of parts.

    Notes
    -----
    A task holds a block of queries and one of keys and values, or up to `split_every` states of a block of queries (4;
    ``dask.config``), in float64. E and Ev are brought into one chunk; nothing else is joined. Keys are split among
    tasks and merged by tree as in [1]_ [2]_. Memory is flat in the number of keys if all queries are in one chunk; with
    several, each chunk of keys is used several times, and dask keeps it between.

    References
    ----------
    .. [1] T. Dao, D. Haziza, F. Massa and G. Sizov, "Flash-Decoding for long-context inference" (2023).
    .. [2] M. N. Rabe and C. Staats, "Self-attention does not need O(n^2) memory", arXiv:2112.05682 (2021).

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastsoftmax.dask import scaled_dot_product_attention
    >>> query = np.random.default_rng(0).normal(size=(8, 5, 64))                 # (heads, queries, E)
    >>> keys, values = da.random.default_rng(0).normal(size=(2, 8, 100_000, 64), chunks=(1, 8, 10_000, 64))
    >>> out = scaled_dot_product_attention(query, keys, values)
    >>> out
    dask.array<fastsoftmax.attention, shape=(8, 5, 64), dtype=float64, chunksize=(8, 5, 64), chunktype=numpy.ndarray>
    """
    if dropout_p != 0:
        _validate.refuse_dropout(dropout_p)
    arrays = {"query": query, "key": key, "value": value, "attn_mask": attn_mask, "bias": bias}
    arrays = {name: dask_array(x, name) for name, x in arrays.items() if x is not None}
    numbers = {"scale": scale, "causal_offset": causal_offset, "alibi_slopes": alibi_slopes, "sinks": sinks,
               "key_lengths": key_lengths}
    for name, x in numbers.items():
        if isinstance(x, da.Array):
            raise TypeError(f"{name} must be a number or a NumPy array here: pass {name}.compute()")
    shapes = {name: stand_in(x) for name, x in arrays.items()}
    inputs = _attention.prepare_qkv(*_validate.query_key_value(
        shapes["query"], shapes["key"], shapes["value"], enable_gqa))
    for name in ("attn_mask", "bias"):
        if name in arrays and arrays[name].ndim and arrays[name].shape[-1] not in (1, inputs.keys):
            raise ValueError(f"{name} of shape {arrays[name].shape} does not fit {inputs.keys} keys")
    options = _validate.attention_options(
        inputs, shapes.get("attn_mask"), is_causal, scale, shapes.get("bias"), causal_offset, window, softcap,
        alibi_slopes, sinks, key_lengths, None)
    blocks = _blocks(arrays, inputs)
    arrays = {name: _rechunked(x, name, blocks) for name, x in arrays.items()}
    name = "fastsoftmax.attention_states-" + tokenize(
        *(x.name for x in arrays.values()), *arrays, options._replace(attn_mask=None, bias=None), _split_every())
    tasks = _Graph(name, arrays, blocks, options).tasks()
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=list(arrays.values()))
    chunks = (*blocks.batch, *blocks.heads[inputs.added == 2:], blocks.queries)
    out = _result(graph, name, "attention", 0, (*chunks, (inputs.v.shape[-1],)), options.result_dtype)
    if not return_lse:
        return out
    return out, _result(graph, name, "attention_lse", 1, chunks, options.statistics_dtype)


def _split_every():
    every = dask.config.get("split_every", 4)
    return every if isinstance(every, int) and every > 1 else 4


# ---- blocks


class _Blocks(NamedTuple):
    """The chunks of the result, and of the keys: sizes along each dimension."""

    batch: tuple[tuple[int, ...], ...]
    heads: tuple[tuple[int, ...]]           # of the queries; one dimension
    key_heads: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    added: int                              # as in AttentionInputs


def _refined(total, chunks):
    """The coarsest chunks of which all these chunks of one dimension are made."""
    edges = {0, total}.union(*(itertools.accumulate(sizes) for sizes in chunks))
    return tuple(b - a for a, b in itertools.pairwise(sorted(edges))) or (0,)


def _blocks(arrays, inputs):
    """The blocks of which the chunks of query, key and value are made. Masks follow."""
    three = [arrays[name] for name in ("query", "key", "value")]
    batch = () if inputs.added else tuple(
        _refined(size, [x.chunks[i - len(inputs.batch) - 3] for x in three
                        if x.ndim >= len(inputs.batch) + 3 - i and x.shape[i - len(inputs.batch) - 3] == size])
        for i, size in enumerate(inputs.batch))
    key_heads = inputs.k.shape[-3]
    group = inputs.heads // max(key_heads, 1)
    of_query, of_key, of_value = (x.chunks[-3] if x.ndim > 2 else (1,) for x in three)
    if key_heads == 1:
        heads = _refined(inputs.heads, [of_query])
    else:                                   # whole groups of heads, which share keys
        edges = [edge for edge in itertools.accumulate(of_query) if edge % max(group, 1) == 0 and sum(of_query) > 1]
        of_query = [b - a for a, b in itertools.pairwise([0, *(edge // max(group, 1) for edge in edges)])]
        shared = _refined(key_heads, [of_query, *(sizes for sizes in (of_key, of_value) if sum(sizes) > 1)])
        heads = tuple(size * group for size in shared)
    return _Blocks(batch, (heads,), (1,) if key_heads == 1 else shared,
                   _refined(inputs.q.shape[-2], [arrays["query"].chunks[-2]]),
                   _refined(inputs.keys, [x.chunks[-2] for x in three[1:]]), inputs.added)


def _rechunked(x, name, blocks):
    """x in these blocks; a dimension of size 1, which broadcasts, in one."""
    rows, columns = {"query": (blocks.queries, None), "key": (blocks.keys, None), "value": (blocks.keys, None)}.get(
        name, (blocks.queries, blocks.keys))
    heads = blocks.key_heads if name in ("key", "value") else blocks.heads[0]
    wanted = (*blocks.batch, heads, rows, columns)[-x.ndim:] if x.ndim else ()
    chunks = tuple((size,) if size == 1 or sizes is None else sizes
                   for size, sizes in zip(x.shape, wanted, strict=True))
    return x if chunks == x.chunks else x.rechunk(chunks)


# ---- the graph


class _Graph:
    """The tasks of a call: `tasks` has (out, lse) of each block of the result under (name, *its index)."""

    def __init__(self, name, arrays, blocks, options):
        self.name, self.arrays, self.blocks, self.options = name, arrays, blocks, options
        self.value_dim = arrays["value"].shape[-1]
        self.dsk = {}

    def tasks(self):
        """The graph, as a dict."""
        blocks = self.blocks
        batch = [list(enumerate(itertools.pairwise([0, *itertools.accumulate(sizes)]))) for sizes in (
            *blocks.batch, blocks.heads[0], blocks.queries)]
        for place in itertools.product(*batch):
            self._block_of_result(tuple(i for i, _ in place), [slice(*edges) for _, edges in place])
        return self.dsk

    def _block_of_result(self, index, where):
        """Of all keys. index, where: number and range of the block along batch, heads and queries."""
        *batch, heads, queries = where
        options = self._numbers(tuple(batch), heads)
        edges = list(itertools.pairwise([0, *itertools.accumulate(self.blocks.keys)]))
        seen = [(j, slice(*keys)) for j, keys in enumerate(edges) if self._sees(queries, *keys, options)]
        shape = tuple(s.stop - s.start for s in where)
        shape = shape if self.blocks.added < 2 else shape[1:]
        own = index if self.blocks.added < 2 else (*index[:-2], index[-1])
        last = functools.partial(_last, sinks=options["sinks"], shape=(*shape, self.value_dim),
                                 dtype=self.options.result_dtype, statistics=self.options.statistics_dtype)
        if len(seen) == 1:
            part = self._part(index, *seen[0], queries, options, None, options["sinks"])
            self.dsk[self.name, *own] = part
            return
        parts = []
        for j, keys in seen:
            parts.append((f"{self.name}-part", *index, j))
            wide = (*shape, self.value_dim) if self.options.result_dtype != self.options.statistics_dtype else None
            self.dsk[parts[-1]] = self._part(index, j, keys, queries, options, wide, None)
        self.dsk[self.name, *own] = (last, self._merged(index, parts))

    def _merged(self, index, parts):
        """At most split_every keys of states, of which the last merge is made."""
        every = _split_every()
        for level in itertools.count():
            if len(parts) <= every:
                return parts
            groups = [parts[i:i + every] for i in range(0, len(parts), every)]
            parts = [(f"{self.name}-merge", *index, level, i) for i in range(len(groups))]
            self.dsk.update(zip(parts, ((_merge, group) for group in groups), strict=True))

    def _part(self, index, j, keys, queries, options, wide_shape, sinks):
        """The task of a block of the result on a block of keys."""
        lengths = options["key_lengths"]
        if lengths is not None:
            lengths = np.clip(lengths - keys.start, 0, keys.stop - keys.start)
        attend = functools.partial(
            _attend, is_causal=self.options.is_causal, scale=options["scale"],
            causal_offset=options["causal_offset"] + (queries.start - keys.start), window=self.options.window,
            softcap=self.options.softcap, alibi_slopes=options["alibi_slopes"], sinks=sinks, key_lengths=lengths,
            wide_shape=wide_shape)
        return (attend, *(self._key(name, index, j) for name in ("query", "key", "value", "attn_mask", "bias")))

    def _key(self, name, index, j):
        """The key of the chunk of an argument that a block needs."""
        if name not in self.arrays:
            return None
        x = self.arrays[name]
        *batch, head, query = index
        last = {"query": (query, 0), "key": (j, 0), "value": (j, 0)}.get(name, (query, j))
        place = (*batch, head, *last)[-x.ndim:] if x.ndim else ()
        return (x.name, *(0 if blocks == 1 else i for i, blocks in zip(place, x.numblocks, strict=True)))

    def _numbers(self, batch, heads):
        """The options that are numbers of batch entries or heads, for a block."""
        o = self.options
        entries = batch or (slice(0, 1),)
        return {
            "scale": None if o.scale is None else o.scale[heads],
            "causal_offset": np.array(o.causal_offset[entries]),
            "alibi_slopes": None if o.alibi_slopes is None else o.alibi_slopes[(*entries, heads)],
            "sinks": None if o.sinks is None else o.sinks[heads],
            "key_lengths": None if o.key_lengths is None else o.key_lengths[entries]}

    def _sees(self, queries, first, end, options):
        """Whether a query of the block may see one of the keys first .. end - 1."""
        offset, lengths, (left, right) = options["causal_offset"], options["key_lengths"], self.options.window
        if offset.size == 0 or queries.start == queries.stop or first == end:
            return False
        if lengths is not None and first >= lengths.max():
            return False
        earliest, latest = queries.start + int(offset.min()), queries.stop - 1 + int(offset.max())
        if self.options.is_causal:
            right = 0
        return (right is None or first <= latest + right) and (left is None or end - 1 >= earliest - left)


def _result(graph, states, name, number, chunks, dtype):
    """A dask array of one of the two results of each block."""
    states_name, name = states, f"fastsoftmax.{name}-{states.rpartition('-')[2]}"
    blocks = itertools.product(*(range(len(sizes)) for sizes in chunks))
    ndim = len(chunks) - (number == 0)
    layer = {(name, *index): (operator.getitem, (states_name, *index[:ndim]), number) for index in blocks}
    graph = HighLevelGraph({**graph.layers, name: MaterializedLayer(layer)},
                           {**graph.dependencies, name: {states_name}})
    return da.Array(graph, name, chunks, meta=empty(len(chunks), dtype))


# ---- tasks: functions of chunks


@task
def _attend(query, key, value, attn_mask, bias, *, wide_shape, **options):
    """(out, lse); out in float32 for 16-bit queries, if its shape is given, so that it is rounded once."""
    out = None if wide_shape is None else np.empty(wide_shape, np.float32)
    return fastsoftmax.scaled_dot_product_attention(
        query, key, value, attn_mask, enable_gqa=True, bias=bias, return_lse=True, out=out, **options)


@task
def _merge(states):
    """In float64 or wider, whatever the parts are."""
    outputs, lses = zip(*states, strict=True)
    wide = np.result_type(outputs[0].dtype, np.float64)
    return fastsoftmax.merge_attention_states([x.astype(wide, copy=False) for x in outputs], lses)


def _last(states, *, sinks, shape, dtype, statistics):
    """(out, lse) of a block of queries on all keys."""
    parts, wide = list(states), np.result_type(statistics, np.float64)
    if sinks is not None or not parts:
        none = np.full(shape[:-1], -np.inf, wide) if sinks is None else np.broadcast_to(
            sinks[:, None].astype(wide) if len(shape) > 2 else sinks.astype(wide), shape[:-1])
        parts.append((np.zeros(shape, wide), none))
    out, lse = _merge(parts)
    return np.asarray(reference._round(out, dtype)), saturated(lse, statistics)

