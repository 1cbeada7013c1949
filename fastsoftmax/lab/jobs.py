"""Jobs: the pieces of work of the experiments, computed once, kept on disk, resumed where they were stopped.

A job is a function of this package with arguments that JSON can hold. Its result is kept in a file whose name is a
digest of both, so a job that was computed is read again, by whichever experiment asks for it. Jobs run in processes of
one thread each, as many as there are threads: no result depends on their number.
"""

import concurrent.futures
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import queue
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
              "VECLIB_MAXIMUM_THREADS", "FASTSOFTMAX_NUM_THREADS")


class LabError(Exception):
    """The lab cannot go on, for a reason that the message says in one line."""


class Stopped(Exception):
    """The user stopped the run; what was computed is on disk."""


@dataclass(frozen=True)
class Job:
    """A call of ``function(context, **arguments)``.

    Parameters
    ----------
    function : str
        "module:name", the module within fastsoftmax.lab. It returns what JSON can hold; arrays it may keep in
        `context.path`, a file ending .npz.
    arguments : dict
        Everything that the result depends on, seed and digest of the text included.
    cost : float
        Relative to the other jobs that run with it: their share of the progress bar.
    """

    function: str
    arguments: dict
    cost: float = 1.0

    @property
    def key(self):
        text = json.dumps([self.function, self.arguments], sort_keys=True)
        return f"{self.function.split(':')[1]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Context:
    """The first argument of a running job: its files, its progress, and whether to stop.

    Attributes
    ----------
    folder : Path
        Where results, arrays and texts are kept.
    path : Path
        The job's own .npz file: arrays to be used after it.
    checkpoint : Path
        A .npz file to resume from, which is deleted when the job is done.
    """

    def __init__(self, folder, job, report=None, stop=None):
        self.folder = Path(folder)
        self.path, self.checkpoint = self.folder / f"{job.key}.npz", self.folder / f"{job.key}.part.npz"
        self._report, self._stop, self._last = report, stop, 0.0

    def progress(self, fraction):
        """Tell how much of the job is done, 0 to 1; at most ten times a second."""
        if self._report is not None and time.monotonic() - self._last > 0.1:
            self._last = time.monotonic()
            self._report(fraction)

    def stopped(self):
        """Whether to save a checkpoint and raise `Stopped`."""
        return self._stop is not None and self._stop.is_set()

    def arrays(self, key):
        """The arrays that the job with this key kept."""
        with np.load(self.folder / f"{key}.npz") as file:
            return dict(file)


def find(function):
    """The function that "module:name" means, the module within fastsoftmax.lab."""
    module, name = function.split(":")
    return getattr(importlib.import_module(f"fastsoftmax.lab.{module}"), name)


@contextlib.contextmanager
def whole(path):
    """A file to write bytes to, which is at `path` when it is complete and nowhere if an error ends the writing."""
    part = path.with_suffix(f".{os.getpid()}.writing")      # another run on the folder has its own
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_arrays(path, arrays):
    """Writes a .npz file that is either whole or not there."""
    with whole(path) as file:
        np.savez(file, **arrays)


def save_json(path, value):
    """Writes a JSON file that is either whole or not there; numbers that are not finite become null."""
    text = json.dumps(plain(value), indent=1, allow_nan=False)
    text = re.sub(r"\[\n[-+.,\deEnul\s]*\]", lambda numbers: " ".join(numbers[0].split()), text)     # on one line
    with whole(path) as file:
        file.write(text.encode())


def plain(value):
    """value in what JSON knows: lists for arrays and tuples, str for keys, None for NaN and infinity."""
    if isinstance(value, dict):
        return {str(name): plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(x) for x in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


class Runner:
    """Runs jobs in processes of one thread each, and keeps their results in `folder`.

    Parameters
    ----------
    folder : Path
    processes : int
    bar : bool
        Whether progress is shown, on a terminal.
    """

    def __init__(self, folder, processes, bar=True):
        self.folder, self.processes, self.bar = Path(folder), processes, bar
        self._pool = None

    def run(self, jobs, title, alone=False):
        """The results of the jobs, in their order.

        alone : one at a time, for what is timed.
        """
        found = {job.key: self._read(job) for job in jobs}
        missing = {job.key: job for job in jobs if found[job.key] is None}
        if missing:
            with self._progress(list(missing.values()), title) as move:
                for key, result in self._compute(missing, move, 1 if alone else self.processes):
                    found[key] = result
        return [found[job.key] for job in jobs]

    def close(self):
        if self._pool is not None:
            self._stop.set()                    # jobs that an error left running save their checkpoints
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _read(self, job):
        """The kept result; None if there is none, or the file was damaged: then the job is computed again."""
        try:
            return json.loads((self.folder / f"{job.key}.json").read_bytes())["result"]
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None

    def _compute(self, jobs, move, at_once):
        """Yields (key, result) as the jobs end; `at_once` of them run together."""
        if self._pool is None:
            self._start()
        waiting, running = sorted(jobs.values(), key=lambda job: -job.cost), {}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    job = waiting.pop(0)
                    running[self._pool.submit(work, self.folder, job)] = job
                done, _ = concurrent.futures.wait(running, 0.2, concurrent.futures.FIRST_COMPLETED)
                self._read_progress(move)
                for future in done:
                    job = running.pop(future)
                    result = future.result()
                    move(job.key, 1.0)
                    yield job.key, result
        except (KeyboardInterrupt, Stopped):
            self._stop.set()                    # the running jobs save their checkpoints
            concurrent.futures.wait(running)
            raise Stopped from None
        except concurrent.futures.process.BrokenProcessPool:
            raise LabError("a worker process died; was memory short? The same command goes on from here") from None

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self._queue, self._stop = context.Queue(), context.Event()
        self._pool = concurrent.futures.ProcessPoolExecutor(
            self.processes, context, initializer=start_worker, initargs=(self._queue, self._stop))
        saved = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(dict.fromkeys(ONE_THREAD, "1"))       # read when a worker imports NumPy
        # Ctrl-C is sent to the workers too, and would end one before `start_worker`; they inherit this thread's mask.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
        try:
            concurrent.futures.wait([self._pool.submit(time.sleep, 0.05) for _ in range(self.processes)])
        finally:
            for name, value in saved.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _read_progress(self, move):
        with contextlib.suppress(queue.Empty):
            while True:
                move(*self._queue.get_nowait())

    @contextlib.contextmanager
    def _progress(self, jobs, title):
        """A function of (key, fraction) that moves a bar."""
        from tqdm import tqdm

        costs, done = {job.key: job.cost for job in jobs}, dict.fromkeys((job.key for job in jobs), 0.0)
        with tqdm(total=100, desc=title, disable=None if self.bar else True, leave=False,
                  bar_format="{desc}: {percentage:3.0f} %|{bar}| {elapsed} < {remaining}") as bar:
            def move(key, fraction):
                if key in done:
                    done[key] = max(done[key], fraction)
                    bar.update(100 * sum(done[k] * costs[k] for k in costs) / sum(costs.values()) - bar.n)

            yield move


# ---- in a worker ----------------------------------------------------------------------------------------------------

_progress = _stop = None


def start_worker(progress, stop):
    """Runs first in each worker process."""
    global _progress, _stop
    _progress, _stop = progress, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # the parent decides, and sets `stop`
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def work(folder, job):
    """Computes a job and keeps its result."""
    context = Context(folder, job, lambda fraction: _progress.put((job.key, fraction)), _stop)
    if context.stopped():
        raise Stopped
    began = time.process_time()
    result = plain(find(job.function)(context, **job.arguments))
    save_json(context.folder / f"{job.key}.json",
              {"function": job.function, "arguments": job.arguments, "cpu_seconds": time.process_time() - began,
               "result": result})
    context.checkpoint.unlink(missing_ok=True)
    return result
