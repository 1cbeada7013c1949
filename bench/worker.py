"""One library in a process of its own: `python worker.py LIBRARY THREADS`. The protocol is that of `turns`.

A case is [function, name of a shape]; "machine" is the library that knows the machine's limits, and a shape too: none.
The answer to the setup of attention is {"how": the operator called, "error": the largest}.
"""

import os
import sys
import time
import timeit

import peers
import shapes
from machine import Machine
from peers.common import checked
from standalone import turns

AFTER_CHECK = 0.05  # seconds: after the products of the check, NumPy's threads keep their cores for 20 ms


def start(name, threads):
    """The greeting, and the function that prepares a case."""
    if name == Machine.name:
        library = Machine(threads)
        greeting = {"version": "", "flops": library.flops}
    else:
        cls = peers.LIBRARIES[name]
        if gone := cls.missing():
            raise turns.UnavailableError(f"{gone} is not installed")
        if cls.pinned:
            pin(threads)
        library = cls(threads)
        greeting = {"version": cls.version()}
    return greeting, lambda case: prepare(library, *case)


def prepare(library, family, name):
    """The timer of one function on one shape, and what is known of the call."""
    shape = None if name == Machine.name else shapes.named(name)
    statement, space = library.call(family, shape)
    about = checked(family, shape, eval(statement, space), space) if "result" in space else {}
    time.sleep(AFTER_CHECK)
    return timeit.Timer(statement, globals=space), about


def pin(threads):
    """Keep this process on `threads` CPUs, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


if __name__ == "__main__":
    turns.serve(lambda: start(sys.argv[1], int(sys.argv[2])))
