"""Which keys a mask function of transformers lets a query see, read by running the function on symbols.

A mask function takes the indices of a batch entry, a head, a query and a key, and tells whether the query sees the key.
transformers builds one from closures, for every kind of mask, and passes it on. Run on symbols, which record the
comparisons made on them, it yields a conjunction of terms. This works inside torch.compile too, where no tensor can be
read and no closure be looked into.
"""

from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode


class Pattern(NamedTuple):
    """The keys that a query sees, as a conjunction. `left`, `right`, `chunk`, `sequences` None: no such limit.

    Distances count positions: a key at position j and a query at position i.
    """

    causal: bool = False            # j <= i
    left: int | None = None         # j >= i - left
    right: int | None = None        # j <= i + right
    chunk: int | None = None        # (j - start) // chunk == (i - start) // chunk
    start: Any = None               # (B,) tensor: position of a row's first token
    sequences: Any = None           # (B, L) tensor: token's sequence in a packed row, the same for query and key
    positions: Any = None           # (B, L) tensor: position in its sequence, which chunks count


class NotCompact(Exception):
    """The function makes a comparison that no Pattern describes."""


def pattern_of(mask_function):
    """The Pattern of `mask_function`, or None if it has none."""
    try:
        with _Gather():
            terms = mask_function(_Batch(), 0, _Position("query"), _Position("key"))
        return _merged(terms.terms) if isinstance(terms, _Terms) else None
    except (NotCompact, TypeError, AttributeError):
        return None


def _merged(terms):
    pattern = Pattern()
    for term in terms:
        for name, value in term.items():
            known = getattr(pattern, name)
            if name in ("left", "right") and known is not None:
                value = min(known, value)
            elif name not in ("causal", "positions") and known is not None:
                raise NotCompact
            pattern = pattern._replace(**{name: value})
    if pattern.positions is not None and pattern.sequences is None:
        raise NotCompact            # distances of positions are distances of indices inside a sequence only
    return pattern


class _Terms:
    """A truth value: the conjunction of dicts of Pattern's fields."""

    device = None

    def __init__(self, *terms):
        self.terms = terms

    def to(self, device):
        return self

    def __and__(self, other):
        if not isinstance(other, _Terms):
            raise NotCompact
        return _Terms(*self.terms, *other.terms)


class _Batch:
    """The index of a batch entry."""


class _PerRow:
    """A number that depends on the batch entry: element b of `values`."""

    def __init__(self, values):
        self.values = values


class _Position:
    """The position of a query or key: its index, or element (b, index) of `table`, minus `less`."""

    device = None
    __hash__ = None

    def __init__(self, axis, table=None, less=None):
        self.axis, self.table, self.less = axis, table, less

    def new_ones(self, shape, dtype=None):
        return _Terms()

    def _is_plain(self, axis):
        return self.axis == axis and self.less is None

    def __sub__(self, other):
        if self.less is not None:
            raise NotCompact
        if not isinstance(other, _Position):
            return _Position(self.axis, self.table, other)
        if not (other.less is None and self.axis != other.axis and self.table is other.table):
            raise NotCompact
        return _Distance(self.table)

    def __floordiv__(self, size):
        return _Chunk(self, size)

    def __ge__(self, other):
        """Every index is at least 0: so bidirectional masks say "all"."""
        if not self._is_plain("query") or self.table is not None or type(other) is not int or other:
            raise NotCompact
        return _Terms()

    def __le__(self, other):
        """Key <= query: causal."""
        if not (isinstance(other, _Position) and self._is_plain("key") and other._is_plain("query")
                and self.table is other.table):
            raise NotCompact
        return _Terms({"causal": True, "positions": self.table})

    def __gt__(self, other):
        """Key > query - window: the window counts the query's own position."""
        if not (isinstance(other, _Position) and self._is_plain("key") and other.axis == "query"
                and self.table is other.table) or isinstance(other.less, _PerRow):
            raise NotCompact
        return _Terms({"left": other.less - 1, "positions": self.table})

    def __eq__(self, other):
        """Equal entries of a table: both tokens are of one sequence of a packed row."""
        if not (isinstance(other, _Position) and self.less is None and other.less is None and self.axis != other.axis
                and self.table is not None and self.table is other.table):
            raise NotCompact
        return _Terms({"sequences": self.table})


class _Distance:
    """|query - key|."""

    def __init__(self, table):
        self.table = table

    def __abs__(self):
        return self

    def __le__(self, window):
        return _Terms({"left": window, "right": window, "positions": self.table})


class _Chunk:
    """The chunk that a position is in."""

    __hash__ = None

    def __init__(self, position, size):
        self.position, self.size = position, size

    def __eq__(self, other):
        a, b = self.position, other.position
        if not (a.axis != b.axis and a.table is b.table and self.size == other.size
                and isinstance(a.less, _PerRow) and isinstance(b.less, _PerRow) and a.less.values is b.less.values):
            raise NotCompact
        return _Terms({"chunk": self.size, "start": a.less.values, "positions": a.table})


class _Gather(TorchFunctionMode):
    """Indexing of a tensor by symbols gives a symbol."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            table, index = args
            if isinstance(index, _Batch):
                return _PerRow(table)
            if isinstance(index, tuple) and len(index) == 2 and isinstance(index[1], _Position):
                if index[1].table is not None or index[1].less is not None:
                    raise NotCompact
                return _Position(index[1].axis, table)
        return func(*args, **(kwargs or {}))
