"""One library in a process of its own, told over a pipe what to do: `python worker.py LIBRARY THREADS`.

One JSON object a line. On start the worker says ``{"version": ..., "path": ...}`` or ``{"absent": why}``. Then

=====================================  ================================================================
``{"setup": [family, shape's name]}``  builds the arrays and calls once: ``{}``, for attention
                                       ``{"how": operator, "error": largest}``, or ``{"absent": why}``
``{"run": seconds}``                   computes for about that long: ``{"median": s, "best": s}`` per call
=====================================  ================================================================

An end of input ends it.
"""

import json
import os
import statistics
import sys
import time
import timeit

import libraries
import machine
import shapes


def prepare(library, family, name):
    """A warm timer for one function on one shape, and what is known of the call.

    Returns
    -------
    timing : tuple
        The timer, how many calls make a batch of about 1 ms, and seconds per batch.
    about : dict
        For attention the operator that is called and its largest error.
    """
    shape = None if name == "machine" else next(s for s in shapes.SHAPES if s.name == name)
    statement, space = library.call(family, shape)
    about = libraries.checked(family, shape, eval(statement, space), space) if "result" in space else {}
    timer = timeit.Timer(statement, globals=space)
    timer.timeit(1)
    number = 1
    while (batch := timer.timeit(number)) < 1e-3:
        number *= 2
    return (timer, number, batch), about


def run(timer, number, batch, seconds):
    """Seconds per call, median and best, over batches that together take about `seconds`."""
    if batch < seconds:
        timer.timeit(number)  # brings data and threads back after the others' turn
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        times.append(timer.timeit(number) / number)
    return {"median": statistics.median(times), "best": min(times)}


def answer(library, state, command):
    """Obey one command; `state` holds the timer between commands."""
    if "run" in command:
        return run(*state, command["run"])
    state.clear()  # the arrays of the shape before go first
    try:
        timing, about = prepare(library, *command["setup"])
    except Exception as reason:
        return {"absent": f"{reason}".partition("\n")[0] or type(reason).__name__}
    state.extend(timing)
    return about


def start(name, threads):
    """The library, and its greeting."""
    if name == "machine":
        limits = machine.Machine(threads)
        return limits, {"version": "", "path": "", "flops": limits.flops}
    cls = libraries.LIBRARIES[name]
    if gone := libraries.missing(cls):
        return None, {"absent": f"{gone} is not installed"}
    if name == "JAX":
        libraries.pin(threads)
    library = cls(threads)
    return library, {"version": libraries.version(cls), "path": getattr(sys.modules[cls.needs[0]], "__file__", "")}


def main(name, threads):
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, not into the protocol

    def say(what):
        print(json.dumps(what), file=pipe, flush=True)

    try:
        library, greeting = start(name, threads)
    except Exception as reason:
        library, greeting = None, {"absent": f"{type(reason).__name__}: {reason}".partition("\n")[0]}
    say(greeting)
    state = []
    for line in sys.stdin if library else ():
        say(answer(library, state, json.loads(line)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
