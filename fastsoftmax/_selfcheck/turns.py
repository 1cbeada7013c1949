"""The worker protocol of every measurement: a process for each library, taking turns, told by JSON lines over pipes.

In one process the thread pools of two libraries would spin against each other. So each runs in a worker of its own, and
only one computes at any time: A B A B. A turn counts as its median, and two libraries are compared by the median over
the rounds of the ratio within a round, so that a slow spell of the machine falls on both.

A worker first greets: ``{"version": ...}``, and other items for its caller. Then it answers each command with a line,

====================  ======================================================================================
``{"setup": case}``   prepares and calls once: a dict of what is known of the call
``{"run": seconds}``  computes for about that long: ``{"median": s, "best": s}``, seconds per call
====================  ======================================================================================

Each answer, also the first, may be ``{"absent": reason}``. A worker ends when its input ends. One that dies is absent
from then on; the reason is the last line that it wrote to stderr.

Nothing else of fastsoftmax is imported here: `bench/` loads this file by its path, so that a process that measures
another library does not hold fastsoftmax's threads.
"""

import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

SETTLE = 0.01  # seconds between turns, for the threads of the library before to fall asleep
BATCH = 1e-3  # seconds that one reading of the clock covers at least


class UnavailableError(Exception):
    """The library is not there, or cannot do this; the message says why."""


# ---- the worker's side ----------------------------------------------------------------------------------------------


def serve(start):
    """Answer until the input ends.

    Parameters
    ----------
    start : function of nothing
        Imports the library. Returns the greeting, a dict, and `prepare`: a function from a case, as JSON gives it, to a
        `timeit.Timer` and a dict of what is known of the call.
    """
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, not into the protocol

    def say(answer):
        print(json.dumps(answer), file=pipe, flush=True)

    try:
        greeting, prepare = start()
    except Exception as error:
        say({"absent": reason(error)})
        return
    say(greeting)
    stopwatch = Stopwatch(prepare)
    for line in sys.stdin:
        try:
            answer = stopwatch.answer(json.loads(line))
        except Exception as error:
            answer = {"absent": reason(error)}
        say(answer)


class Stopwatch:
    """The case that a worker has prepared."""

    def __init__(self, prepare):
        self.prepare = prepare
        self.timing = None  # the timer, calls in a batch, seconds that a batch takes

    def answer(self, command):
        """Obey one command."""
        return self.run(command["run"]) if "run" in command else self.set_up(command["setup"])

    def set_up(self, case):
        """Prepare a case and find how many calls take a `BATCH`."""
        self.timing = None  # frees the arrays of the case before
        timer, about = self.prepare(case)
        timer.timeit(1)
        number = 1
        while (batch := timer.timeit(number)) < BATCH:
            number *= 2
        self.timing = timer, number, batch
        return about

    def run(self, seconds):
        """Seconds per call, median and best, over batches that together take about `seconds`."""
        timer, number, batch = self.timing
        if batch < seconds:
            timer.timeit(number)  # brings data and threads back after the others' turn
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            times.append(timer.timeit(number) / number)
        return {"median": statistics.median(times), "best": min(times)}


def reason(error):
    """The first line of an exception; its type too, where the exception was not written for people to read."""
    line = str(error).partition("\n")[0]
    if isinstance(error, UnavailableError):
        return line
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


# ---- the caller's side ----------------------------------------------------------------------------------------------


def environment(threads):
    """The variables that hold a library to `threads`; it reads them when it is imported.

    XLA has no setting of its own for the number of threads; NPROC is what its pool reads.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTSOFTMAX_NUM_THREADS", "NPROC")
    settings = dict.fromkeys(names, str(threads))
    if threads == 1:
        settings["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return settings


class Worker:
    """A process that runs `serve`.

    Parameters
    ----------
    name : str
        The library, or whatever else tells it from the others.
    command : list of str
        Arguments for Python.
    threads : int
        How many the library may use.
    path : path-like, optional
        Where it imports from first (PYTHONPATH).

    Attributes
    ----------
    greeting : dict
        What it said first.
    absent : str or None
        Why it cannot be asked.
    """

    def __init__(self, name, command, threads, path=None):
        settings = {**os.environ, **environment(threads), **({"PYTHONPATH": os.fspath(path)} if path else {})}
        self.name, self.errors = name, tempfile.TemporaryFile()  # a file: nobody has to empty it, as with a pipe
        self.process = subprocess.Popen(
            [sys.executable, *command], text=True, env=settings,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.absent = None
        self.greeting = self.hear()
        self.absent = self.greeting.get("absent")

    def set_up(self, case):
        """Prepare a case, anything that JSON can hold."""
        return self.ask({"setup": case})

    def run(self, seconds):
        """Take a turn."""
        return self.ask({"run": seconds})

    def ask(self, command):
        if self.absent is None:
            with contextlib.suppress(BrokenPipeError):  # it died in between: hear() tells
                print(json.dumps(command), file=self.process.stdin, flush=True)
            return self.hear()
        return {"absent": self.absent}

    def hear(self):
        line = self.process.stdout.readline()
        if line.endswith("\n"):
            return json.loads(line)
        self.absent = self.death()
        return {"absent": self.absent}

    def death(self):
        """How the process ended, and the last line that it wrote to stderr."""
        status = self.process.wait()
        end = f"ended with status {status}"
        if status < 0:
            end = f"ended by signal {-status} ({signal.strsignal(-status)})"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        return ": ".join([end, *[line.strip() for line in lines if line.strip()][-1:]])

    def close(self):
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # it died before
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


@contextlib.contextmanager
def workers(arguments):
    """The workers of these arguments of Worker, started one after the other, and ended in any case."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Worker(*each))) for each in arguments]


def take_turns(crew, case, rounds, seconds):
    """Measure one case with every worker.

    Returns
    -------
    times : dict
        From a worker's name to its seconds per call, a list over the rounds.
    reasons : dict
        Why there are none, of each of the others.
    notes : dict
        The answer to the setup, of each worker that could do it.
    """
    answers = {worker.name: worker.set_up(case) for worker in crew}
    reasons = {name: answer["absent"] for name, answer in answers.items() if "absent" in answer}
    notes = {name: answer for name, answer in answers.items() if name not in reasons}
    times = {name: [] for name in notes}
    for _, worker in itertools.product(range(rounds), [worker for worker in crew if worker.name in notes]):
        time.sleep(SETTLE)
        answer = worker.run(seconds)
        if "absent" in answer:
            reasons[worker.name] = answer["absent"]
        times[worker.name].append(answer.get("median"))
    return {name: taken for name, taken in times.items() if name not in reasons}, reasons, notes


def ratio(others, ours):
    """How many times as long the other takes: the median over the rounds."""
    return statistics.median(other / mine for other, mine in zip(others, ours, strict=True))


def duration(times):
    """The median in three digits and a unit."""
    seconds = statistics.median(times)
    scale, unit = next(((s, u) for s, u in ((1e-6, "us"), (1e-3, "ms")) if seconds < 1000 * s), (1, "s"))
    return f"{seconds / scale:.3g} {unit}"
