"""Attention over packed sequences and over pages: the time of a call, beside what one does without them.

    python bench/packed.py [--threads 1] [--rounds 9] [--json FILE]

Packed: 16 sequences of 30 to 700 words, 12 heads of 64, causal or not; beside a loop of calls, one a sequence, and
PyTorch's attention on the padded batch and in a loop. Pages: decoding over 2 to 16 caches of 500 to 4000 keys, pages of
16 and of 256 keys in random order; beside decoding over the same caches in one array, with the layout of the pages,
(B, S, H, E), and with heads first, (B, H, S, E). Each library has a process of its own, and all take turns. The results
of all are compared with those of ours: the exit status is 1 if one differs by more than 1e-4.
"""

import argparse
import json
import os
import sys
import timeit

import numpy as np
from standalone import turns

HEADS, WIDTH = 12, 64
LENGTHS = [700, 30, 412, 55, 260, 640, 98, 333, 45, 580, 120, 200, 75, 501, 160, 290]
CACHES = {  # sequences, query heads, key heads, width
    "2 caches": (2, 8, 8, 128), "16 caches, grouped heads": (16, 32, 8, 128), "4 caches, 12 heads": (4, 12, 12, 64)}
TOLERANCE = 1e-4


def sequences():
    """(query, key, value), each (rows of all, heads, width), and where the sequences start and end."""
    ends = np.concatenate([[0], np.cumsum(LENGTHS)])
    return np.random.default_rng(0).normal(size=(3, ends[-1], HEADS, WIDTH)).astype(np.float32), ends


def caches(name, page_size):
    """(query, key_cache, value_cache, block_table, lengths): the same keys whatever the size of pages."""
    count, heads, key_heads, width = CACHES[name]
    rng = np.random.default_rng(1)
    lengths = np.linspace(500, 4000, count).astype(int)
    room = 4096
    key, value = rng.normal(size=(2, count, room, key_heads, width)).astype(np.float32)
    query = rng.normal(size=(count, 1, heads, width)).astype(np.float32)
    each = room // page_size
    order = rng.permutation(count * each)
    key_cache, value_cache = (np.empty_like(x).reshape(-1, page_size, key_heads, width) for x in (key, value))
    for cache, x in ((key_cache, key), (value_cache, value)):
        cache[order] = x.reshape(-1, page_size, key_heads, width)
    return query, key_cache, value_cache, order.reshape(count, each), lengths


class Ours:
    """varlen_attention and paged_attention, or what there was before them."""

    def __init__(self, options):
        import fastsoftmax

        self.f, self.version = fastsoftmax, fastsoftmax.__version__
        fastsoftmax.set_num_threads(options.threads)

    def packed(self, causal):
        x, ends = sequences()
        return lambda: self.f.varlen_attention(*x, ends, is_causal=causal)

    def pages(self, name, page_size):
        *arrays, table, lengths = caches(name, page_size)
        return lambda: self.f.paged_attention(*arrays, table, lengths, enable_gqa=True)


class OursWithout(Ours):
    """A call a sequence, and caches in one array."""

    heads_first = False

    def packed(self, causal):
        x, ends = sequences()
        out = np.empty_like(x[0])

        def loop():
            for start, stop in zip(ends, ends[1:], strict=False):
                self.f.scaled_dot_product_attention(*(part[start:stop].swapaxes(0, 1) for part in x), is_causal=causal,
                                                    out=out[start:stop].swapaxes(0, 1))
            return out
        return loop

    def pages(self, name, page_size):
        query, *cache, table, lengths = caches(name, 4096)
        query, key, value = (x.swapaxes(1, 2) for x in (query, *(x[table[:, 0]] for x in cache)))
        if self.heads_first:
            key, value = map(np.ascontiguousarray, (key, value))
        return lambda: self.f.scaled_dot_product_attention(
            query, key, value, enable_gqa=True, key_lengths=lengths).swapaxes(1, 2)


class OursHeadsFirst(OursWithout):
    heads_first = True

    def packed(self, causal):
        raise turns.UnavailableError("there are no caches")


class PyTorch:
    """The padded batch; it has no pages."""

    def __init__(self, options):
        import torch

        torch.set_num_threads(options.threads)
        self.torch, self.version = torch, torch.__version__

    def attend(self, *x, **options):
        with self.torch.no_grad():
            return self.torch.nn.functional.scaled_dot_product_attention(*x, **options)

    def packed(self, causal):
        x, ends = sequences()
        longest = max(LENGTHS)
        padded = self.torch.zeros(3, len(LENGTHS), longest, HEADS, WIDTH)
        seen = self.torch.zeros(len(LENGTHS), 1, 1, longest, dtype=self.torch.bool)
        for b, (start, stop) in enumerate(zip(ends, ends[1:], strict=False)):
            padded[:, b, :stop - start], seen[b, ..., :stop - start] = self.torch.from_numpy(x[:, start:stop]), True
        mask = {"is_causal": True} if causal else {"attn_mask": seen}   # causal queries see no padding anyway
        query, key, value = padded.transpose(2, 3)

        def padded_batch():
            return self.attend(query, key, value, **mask)
        self.result = lambda out: np.concatenate(
            [out[b, :, :length].transpose(0, 1).numpy() for b, length in enumerate(LENGTHS)])
        return padded_batch


    def pages(self, name, page_size):
        raise turns.UnavailableError("it has no attention over pages")


class PyTorchLoop(PyTorch):
    """A call for each sequence."""

    def packed(self, causal):
        x, ends = sequences()
        parts = [[self.torch.from_numpy(part[start:stop]).transpose(0, 1)[None] for part in x]
                 for start, stop in zip(ends, ends[1:], strict=False)]
        self.result = lambda out: np.concatenate([y[0].transpose(0, 1).numpy() for y in out])
        return lambda: [self.attend(*part, is_causal=causal) for part in parts]


OURS, WITHOUT = "fastsoftmax", "fastsoftmax, one by one, or in one array"
LIBRARIES = {OURS: Ours, WITHOUT: OursWithout, "fastsoftmax, in one array, heads first": OursHeadsFirst,
             "PyTorch, padded": PyTorch, "PyTorch, one by one": PyTorchLoop}
CASES = {"16 sequences": ("packed", False), "16 sequences, causal": ("packed", True),
         **{f"{name}, pages of {size}": ("pages", name, size) for name in CACHES for size in (16, 256)}}


def serve(name, options):
    """The worker of one library."""
    def start():
        library = LIBRARIES[name](options)

        def prepare(case):
            kind, *arguments = CASES[case]
            call = getattr(library, kind)(*arguments)
            out = getattr(library, "result", lambda out: out)(call())
            return timeit.Timer(call), {"sample": out.ravel()[::997].astype(float).tolist()}

        return {"version": library.version}, prepare

    turns.serve(start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.worker, options)
        return 0
    found, apart = {"threads": options.threads}, 0.0
    with turns.workers((name, [os.path.abspath(__file__), "--threads", str(options.threads), "--worker", name],
                        options.threads) for name in LIBRARIES) as crew:
        found["versions"] = {worker.name: worker.greeting.get("version") for worker in crew}
        for case in CASES:
            times, reasons, notes = turns.take_turns(crew, case, options.rounds, 0.3)
            print(f"{case}: {turns.duration(times[OURS])}")
            for name in list(LIBRARIES)[1:]:
                if name in times:
                    ratio = turns.ratio(times[name], times[OURS])
                    print(f"    {name:<40} {turns.duration(times[name]):>8}, {ratio:.2f} times as long")
                    difference = np.subtract(notes[name]["sample"], notes[OURS]["sample"])
                    apart = max(apart, float(abs(difference).max()))
                else:
                    print(f"    {name:<40} absent: {reasons[name]}")
            found[case] = times
    print(f"largest difference from ours: {apart:.1e}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file)
    return int(not apart <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
