"""Masks of transformers in a few numbers a token: `compact_mask`, the mask function, and `CompactMask`, its result."""

import dataclasses
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask
from transformers.utils.import_utils import is_tracing

from fastsoftmax.transformers._symbols import pattern_of


@dataclasses.dataclass(eq=False)
class CompactMask:
    """Which keys each query sees, without an element for each pair of them.

    Query i sees key j where all hold that are set: j <= i + offset (causal); i + offset - left <= j and
    j <= i + offset + right (window); j < key_lengths[b]; padding[b, j]; query_blocks[b, i] == key_blocks[b, j]. Blocks
    lie one after another: their numbers do not decrease along a row.

    Model code hands it on as if it were a boolean tensor (batch_size, 1, query_length, key_length); code that looks
    into it, or passes it to a function of torch, gets that tensor.
    """

    batch_size: int
    query_length: int
    key_length: int
    causal: bool = False
    offset: Any = 0                                             # an int, or a 0-d tensor while a graph is traced
    window: tuple[int | None, int | None] | None = None
    key_lengths: torch.Tensor | None = None                     # (B,) integers
    padding: torch.Tensor | None = None                         # (B, S) booleans, True: a token
    query_blocks: torch.Tensor | None = None                    # (B, L) integers
    key_blocks: torch.Tensor | None = None                      # (B, S) integers
    # Of the blocks, how attention is computed, one of:
    cu_seqlens: torch.Tensor | None = None                          # by `cu_seqlens_of`
    segments: list[list[tuple[int, int, int, int]]] | None = None   # by `segments_of`

    ndim = 4
    dtype = torch.bool
    device = torch.device("cpu")

    @property
    def shape(self):
        return torch.Size((self.batch_size, 1, self.query_length, self.key_length))

    def set_blocks(self, query_blocks, key_blocks, tracing):
        """Divide into blocks, unless one holds all; False if that takes numbers that cannot be read while tracing."""
        if query_blocks is key_blocks and self.key_lengths is self.padding is None:
            self.cu_seqlens = cu_seqlens_of(query_blocks, tracing)
            one = len(self.cu_seqlens) == 1 + self.batch_size
        elif tracing:
            return False
        else:
            self.segments = segments_of(query_blocks, key_blocks)
            one = self.segments == [[(0, self.query_length, 0, self.key_length)]]
        if one:
            self.cu_seqlens = self.segments = None
        else:
            self.query_blocks, self.key_blocks = query_blocks, key_blocks
        return True

    def is_plain(self):
        """Whether the mask is that of is_causal alone."""
        return (self.causal and self.query_length == self.key_length and not isinstance(self.offset, torch.Tensor)
                and self.offset == 0
                and self.window is self.key_lengths is self.padding is self.query_blocks is None)

    def dense(self):
        """The boolean tensor (B, 1, L, S)."""
        query = torch.arange(self.query_length)[:, None] + self.offset
        key = torch.arange(self.key_length)
        sees = torch.ones((self.batch_size, 1, self.query_length, self.key_length), dtype=torch.bool)
        if self.causal:
            sees = sees & (key <= query)
        left, right = self.window or (None, None)
        if left is not None:
            sees = sees & (key >= query - left)
        if right is not None:
            sees = sees & (key <= query + right)
        if self.key_lengths is not None:
            sees = sees & (key < self.key_lengths[:, None, None, None])
        if self.padding is not None:
            sees = sees & self.padding[:, None, None, :]
        if self.query_blocks is not None:
            sees = sees & (self.query_blocks[:, None, :, None] == self.key_blocks[:, None, None, :])
        return sees

    def contiguous(self):
        return self

    def to(self, *args, **kwargs):
        """Itself where that changes nothing: models move masks to the device of the hidden states."""
        if all(x in (self.device, "cpu", self.dtype) for x in (*args, *kwargs.values())):
            return self
        return self.dense().to(*args, **kwargs)

    def __getitem__(self, index):
        return self.dense()[index]

    def __and__(self, other):
        return self.dense() & other

    def __or__(self, other):
        return self.dense() | other

    def __invert__(self):
        return ~self.dense()

    def __getattr__(self, name):
        if name.startswith("__") or not hasattr(torch.Tensor, name):
            raise AttributeError(f"a CompactMask has no attribute {name!r}")
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        def given(x):
            if isinstance(x, (tuple, list)):
                return type(x)(given(y) for y in x)
            return x.dense() if isinstance(x, cls) else x

        return func(*given(args), **{name: given(x) for name, x in (kwargs or {}).items()})


def compact_mask(batch_size, q_length=None, kv_length=None, q_offset=0, kv_offset=0, mask_function=causal_mask_function,
                 attention_mask=None, local_size=None, allow_is_causal_skip=True, allow_is_bidirectional_skip=False,
                 use_vmap=False, device="cpu", cache_position=None, **kwargs):
    """The mask function. It returns a CompactMask; None for a plain causal mask, and for one query that sees all keys;
    or a boolean tensor (B, 1, L, S) where a model passes a function that no Pattern describes.

    batch_size, q_length, kv_length : B, L, S
    q_offset, kv_offset : positions of the first query and of the first key
    attention_mask : (B, positions) booleans, True for tokens, or None; or a mask that this function made
    local_size : size of the window or chunk, or None
    allow_is_causal_skip, allow_is_bidirectional_skip : whether None may be returned
    cache_position : (L,) positions of the queries, which releases before 5.4 pass for q_length and q_offset
    """
    if isinstance(attention_mask, CompactMask):
        return attention_mask       # generate() makes the masks of static caches ahead
    if cache_position is not None:
        q_length, q_offset = len(cache_position), cache_position[0]
    tracing = is_tracing(attention_mask) or is_tracing(q_offset if isinstance(q_offset, torch.Tensor) else None)
    if isinstance(q_offset, torch.Tensor) and not tracing:
        q_offset = int(q_offset)
    every = dict(batch_size=batch_size, kv_length=kv_length, kv_offset=kv_offset, mask_function=mask_function,
                 attention_mask=attention_mask, allow_is_causal_skip=False, use_vmap=use_vmap, device=device)
    every |= dict(q_length=q_length, q_offset=q_offset) if cache_position is None else dict(
        cache_position=cache_position)
    if use_vmap:                    # a function of the caller's, which may do anything
        return sdpa_mask(**every)
    if q_length == 1:
        sees = sdpa_mask(**every)[:, 0, 0, :]
        if allow_is_causal_skip or allow_is_bidirectional_skip:
            return _mask_of_one_query(sees, tracing)
        return _mask_of_one_query(sees, tracing, stable=True, holes=local_size is not None)
    pattern = pattern_of(mask_function)
    if pattern is None:
        return sdpa_mask(**every)
    blocks = _blocks(pattern, batch_size, q_length, kv_length, q_offset, kv_offset)
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is not None:
        padding = padding[:, kv_offset:kv_offset + kv_length]
    key_lengths, padding = _lengths_and_padding(padding, tracing)
    mask = CompactMask(batch_size, q_length, kv_length, pattern.causal, q_offset - kv_offset,
                       _window(pattern, kv_length), key_lengths, padding)
    if blocks is not None and not mask.set_blocks(*blocks, tracing):
        return sdpa_mask(**every)
    return None if allow_is_causal_skip and mask.is_plain() else mask


def _mask_of_one_query(sees, tracing, stable=False, holes=False):
    """The mask of a query that sees the keys `sees`, (B, S) booleans.

    None if those are all, unless `stable`: the steps of a static cache, which are compiled once, get masks of the same
    fields, with padding where `holes` says that a later step may need it.
    """
    key_lengths, padding = _lengths_and_padding(sees, tracing, stable, holes)
    if key_lengths is None:
        return None
    return CompactMask(len(sees), 1, sees.shape[1], key_lengths=key_lengths, padding=padding)


def _lengths_and_padding(tokens, tracing, stable=False, holes=False):
    """The number of keys up to each row's last token, (B,), and `tokens` itself; None for what hides no key.

    tokens : (B, S) booleans, or None
    tracing : nothing can be read, and so nothing is left out
    stable, holes : leave out no lengths; no `tokens`
    """
    if tokens is None or not (tracing or stable) and tokens.all():
        return None, None
    keys = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    lengths = (tokens * keys).amax(-1)
    if tracing or holes:
        return lengths, tokens
    return lengths, None if torch.equal(tokens.sum(-1), lengths) else tokens


def _window(pattern, kv_length):
    """(left, right) of a Pattern, or None where it hides no key."""
    left, right = (None if limit is None or limit >= kv_length else limit for limit in (pattern.left, pattern.right))
    return None if left is right is None else (left, right)


def _blocks(pattern, batch_size, q_length, kv_length, q_offset, kv_offset):
    """The block of each query (B, L) and of each key (B, S), or None: chunks, sequences of packed rows, or both."""
    sequences, positions = pattern.sequences, pattern.positions
    if pattern.chunk is None:
        return None if sequences is None else (sequences, sequences)
    known = not isinstance(q_offset, torch.Tensor)
    if known and pattern.causal and q_length + q_offset <= pattern.chunk:
        # All queries are in the first chunk, and so are the keys up to theirs, but for padding before a row's start.
        return None if sequences is None else (sequences, sequences)
    query, key = (
        ((torch.arange(n)[None] + offset if positions is None else positions) - pattern.start[:, None]) // pattern.chunk
        for n, offset in ((q_length, q_offset), (kv_length, kv_offset)))
    if sequences is not None:
        ends = (torch.diff(query, dim=-1) != 0) | (torch.diff(sequences, dim=-1) != 0)
        query = key = torch.nn.functional.pad(ends.cumsum(-1), (1, 0))
    elif known and (q_length, q_offset) == (kv_length, kv_offset):
        key = query
    query, same = query.expand(batch_size, -1), key is query
    return query, query if same else key.expand(batch_size, -1)


def cu_seqlens_of(blocks, tracing):
    """Where each block of `blocks`, (B, L), begins in the rows one after another, and B * L, as varlen_attention takes
    it.

    While a graph is traced the number of blocks cannot be read: there are B * L, the last of which have no elements.
    """
    starts = torch.nn.functional.pad(torch.diff(blocks, dim=-1) != 0, (1, 0), value=True).flatten()
    if not tracing:
        return torch.nn.functional.pad(starts.nonzero()[:, 0], (0, 1), value=starts.numel())
    elements = torch.arange(starts.numel())
    first = torch.where(starts, elements, starts.numel()).sort().values
    return torch.nn.functional.pad(first, (0, 1), value=starts.numel())


def segments_of(query_blocks, key_blocks):
    """The blocks of each row as ranges (first query, end, first key, end), in order: a list a row of the batch, or a
    single list where all rows have the same."""
    rows = []
    for queries, keys in zip(query_blocks, key_blocks, strict=True):
        blocks, counts = torch.unique_consecutive(queries, return_counts=True)
        ends = counts.cumsum(0)
        first_keys, key_ends = (torch.searchsorted(keys.contiguous(), blocks, right=right) for right in (False, True))
        rows.append(list(zip((ends - counts).tolist(), ends.tolist(), first_keys.tolist(), key_ends.tolist(),
                             strict=True)))
    return rows[:1] if all(row == rows[0] for row in rows) else rows
