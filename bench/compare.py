"""Compare fastsoftmax with its peers, every library in a process of its own: `python bench/compare.py`.

The workers are started once per number of threads and take turns, A B A B, with only one computing at any time: in
one process the thread pools of two libraries would spin against each other. A turn is about 50 ms of calls and
counts as its median; the ratio of two libraries is the median over the rounds of the ratio within a round, so that
a slow spell of the machine falls on both sides. Writes bench/results/<cpu>.json; `report.py` makes the tables and
plots of README.md and docs/ from such files. `--against REV` compares two commits of fastsoftmax in the same way.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import libraries
import machine
import report
import shapes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OURS = "fastsoftmax"
UNITS = {"elements": "G elements/s", "flops": "GFLOP/s", "bytes": "GB/s"}
SETTLE = 0.01  # seconds between turns, for the threads of the library before to fall asleep


class Row(NamedTuple):
    """The measurement of one function on one shape with so many threads, each by library."""

    family: str
    shape: tuple
    threads: int
    times: dict  # seconds per call, a list over the rounds
    reasons: dict  # why there are none
    notes: dict  # of attention: {"how": the operator called, "error": the largest}


class Worker:
    """A library in its own process (worker.py); `absent` says why there is none.

    Parameters
    ----------
    label : str
        The column it fills; the library's name, or a commit.
    library, threads
        What worker.py is to run.
    path : pathlib.Path, optional
        Where to import fastsoftmax from.
    """

    def __init__(self, label, library, threads, path=None):
        environment = {**os.environ, **libraries.environment(threads)}
        if path:
            environment["PYTHONPATH"] = os.fspath(path)
        command = [sys.executable, os.fspath(HERE / "worker.py"), library, str(threads)]
        self.label, self.path = label, path
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.greeting = self.hear()
        self.absent = self.greeting.get("absent")

    def hear(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"absent": f"the process ended ({self.process.wait()})"}

    def ask(self, **command):
        if self.process.poll() is not None:
            return {"absent": f"the process ended ({self.process.returncode})"}
        with contextlib.suppress(BrokenPipeError):  # it died in between: hear() tells
            print(json.dumps(command), file=self.process.stdin, flush=True)
        return self.hear()

    def close(self):
        with contextlib.suppress(BrokenPipeError):  # it died before
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def ours_path():
    """The checkout if it is built in place, else None: then the installed package is measured."""
    built = any((ROOT / "fastsoftmax").glob("_cpu*.so")) or any((ROOT / "fastsoftmax").glob("_cpu*.pyd"))
    return ROOT if built else None


@contextlib.contextmanager
def workers(threads, paths):
    """Every library's worker and the machine's, started one after the other; ended in any case."""
    crew = []
    try:
        for label, path in paths.items():
            crew.append(Worker(label, OURS, threads, path))
        if list(paths) == [OURS]:
            for name in (*libraries.LIBRARIES, "machine"):
                if name != OURS:
                    crew.append(Worker(name, name, threads, paths[OURS]))
        yield crew
    finally:
        for worker in crew:
            worker.close()


def measure(crew, family, shape, repeat, seconds):
    """(times, reasons, notes) as in Row. Workers of libraries that are not meant for the family are not asked."""
    able, reasons, notes = [], {}, {}
    for worker in crew:
        if worker.label == "machine" and not shape.limited or family not in families_of(worker.label):
            continue
        answer = {"absent": worker.absent} if worker.absent else worker.ask(setup=[family, shape.name])
        if "absent" in answer:
            reasons[worker.label] = answer["absent"]
        else:
            able.append(worker)
            notes[worker.label] = answer
    times = {worker.label: [] for worker in able}
    for _, worker in itertools.product(range(repeat), able):
        time.sleep(SETTLE)
        answer = worker.ask(run=seconds)
        if "absent" in answer:  # it crashed
            reasons[worker.label] = answer["absent"]
        times[worker.label].append(answer.get("median"))
    return {label: taken for label, taken in times.items() if label not in reasons}, reasons, notes


def families_of(label):
    """The functions that a library is asked for; the machine and our own commits are asked for all."""
    return libraries.LIBRARIES[label].families if label in libraries.LIBRARIES else shapes.FAMILIES


def measure_machine(crew, repeat, seconds):
    """The machine's limits in GB/s and GFLOP/s, best of the rounds: {name: "12.3 GB/s"} or {name: why not}."""
    (worker,) = [worker for worker in crew if worker.label == "machine"]
    limits = {}
    for kind in machine.MEASURED:
        reason = worker.absent or worker.ask(setup=[kind, "machine"]).get("absent")
        if reason:
            limits[kind] = f"absent: {reason}"
            continue
        best = min(worker.ask(run=seconds)["best"] for _ in range(repeat))
        work, unit = machine.amount(kind, worker.greeting["flops"])
        limits[kind] = f"{work / best / 1e9:.1f} {unit}"
    return limits


def ratio(others, ours):
    """How many times as long the other takes: the median of the pairwise ratios."""
    return statistics.median(other / mine for other, mine in zip(others, ours, strict=True))


def speed(times, shape, family):
    """G elements/s, GFLOP/s or GB/s."""
    return shape.work(family)[0] / statistics.median(times) / 1e9


def figure(times, shape, family):
    """A cell: the speed, or the time of a call where the call is what counts."""
    if shape.small:
        return f"{statistics.median(times) * 1e6:.2f} us"
    return f"{speed(times, shape, family):.{3 if shape.work(family)[1] == 'elements' else 1}f}"


def best_peer(times, family):
    """The peer with the lowest median ratio, and that ratio; (None, None) when there is none.

    The oracle is no peer; in decoding neither is what its caller rearranged by hand.
    """
    out = (OURS, libraries.Oracle.name, "machine", *(libraries.BY_HAND if family == "attention_decode" else ()))
    peers = {name: ratio(taken, times[OURS]) for name, taken in times.items() if name not in out}
    return min(peers.items(), key=lambda item: item[1]) if peers else (None, None)


def duration(times):
    """The median, three digits and a unit."""
    seconds = statistics.median(times)
    scale, unit = next(((s, u) for s, u in ((1e-6, "us"), (1e-3, "ms")) if seconds < 1000 * s), (1, "s"))
    return f"{seconds / scale:.3g} {unit}"


def cpu():
    """The processor's name, with the family and model that tell its generation."""
    names = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            names.setdefault(key.strip(), value.strip())
    model = names.get("model name") or platform.processor() or platform.machine()
    return model + (f", family {names['cpu family']} model {names['model']}" if "cpu family" in names else "")


def cpus():
    """The number of CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def isa_of(path):
    """The instruction set fastsoftmax uses, asked in a process of its own."""
    code = "import fastsoftmax; print(fastsoftmax.show_config(mode='dicts')['isa'])"
    environment = {**os.environ, **({"PYTHONPATH": os.fspath(path)} if path else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def results(rows, limits, versions, isa, rounds):
    """The content of a results file; report.py reads it.

    Of each row: each library's figure in `unit`; `times_best_peer`, the best peer's time over ours; `times_limit`, our
    time over that of the machine's own copy, read or write of the same memory; for attention `percent_of_limit`, the
    time of as many multiply-adds in registers (or of reading as much memory) over ours. All are medians over rounds.
    """
    return {
        "date": str(datetime.date.today()), "cpu": cpu(), "cpus": cpus(), "isa": isa,
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(), "rounds": rounds,
        "versions": {name: what for name, what in versions.items() if name != "machine"},
        "limits": limits, "rows": [result(row) for row in rows], "unavailable": unavailable(rows, versions),
        "calls": calls(rows), "notes": [],
    }


def result(row):
    """One row of a results file."""
    family, shape, threads, times, *_ = row
    unit = "us" if shape.small else UNITS[shape.work(family)[1]]
    peer, factor = best_peer(times, family) if OURS in times else (None, None)
    found = {
        "function": family, "name": shape.name, "shape": list(shape.shape), "dtype": shape.dtype, "threads": threads,
        "unit": unit, "best_peer": peer, "figures": {
            name: float(figure(taken, shape, family).removesuffix(" us"))
            for name, taken in times.items() if name != "machine"},
    }
    if getattr(shape, "axis", -1) != -1:
        found["axis"] = shape.axis
    if factor:
        found["times_best_peer"] = round(factor, 2)
    if OURS in times and family in shapes.ATTENTION:
        found["time"] = duration(times[OURS])
    if {OURS, "machine"} <= set(times):
        if family in shapes.ATTENTION:
            found["percent_of_limit"] = round(100 * ratio(times["machine"], times[OURS]))
        else:
            found["times_limit"] = round(ratio(times[OURS], times["machine"]), 2)
    folded = libraries.BY_HAND[0]
    if {OURS, folded} <= set(times):
        found["times_folded"] = round(ratio(times[folded], times[OURS]), 2)
    return found


def calls(rows):
    """How each library was called for attention, and its largest error by dtype."""
    found = {}
    for row in rows:
        for name, note in row.notes.items():
            if "error" in note:
                entry = found.setdefault(name, {"calls": [], "errors": {}})
                entry["calls"] = list(dict.fromkeys([*entry["calls"], note["how"]]))
                largest = max(note["error"], entry["errors"].get(row.shape.dtype, 0.0))
                entry["errors"][row.shape.dtype] = float(f"{largest:.1e}")
    return found


def unavailable(rows, versions):
    """Each library that is absent, and each reason why one could not do some of the cases."""
    absent = {name: what for name, what in versions.items() if what.startswith("absent")}
    cases = {}
    for row in rows:
        for name, why in row.reasons.items():
            if name not in absent:
                cases.setdefault((name, why), {}).setdefault(row.shape.name, {})[row.family] = None
    found = [{"library": name, "why": what, "cases": {}} for name, what in absent.items()]
    return found + [{"library": name, "why": why, "cases": {shape: list(families) for shape, families in where.items()}}
                    for (name, why), where in cases.items()]


def compare(cases, options):
    """Measure all cases with all libraries, and write the results file."""
    paths, rows, limits, versions = {OURS: ours_path()}, [], {}, {}
    for threads in options.threads:
        with workers(threads, paths) as crew:
            for worker in crew:
                what = worker.greeting.get("version", f"absent: {worker.absent}")
                versions[worker.label] = what
                tell(f"{worker.label} {what}, {threads} threads")
            limits[threads] = measure_machine(crew, 3, options.seconds)
            tell(f"machine: {limits[threads]}")
            for family, shape in cases:
                row = Row(family, shape, threads, *measure(crew, family, shape, options.repeat, options.seconds))
                rows.append(row)
                cells = (f"{name} {figure(taken, shape, family)}" for name, taken in row.times.items())
                tell(f"{family}, {shape.name}: " + ", ".join(cells))
    data = results(rows, limits, versions, isa_of(paths[OURS]), options.repeat)
    slug = re.sub(r"\W+", "-", data["cpu"].lower()).strip("-")
    target = Path(options.json) if options.json else report.RESULTS / f"{slug}.json"
    report.save(target, data)
    tell(f"wrote {target}")


def build(revision, folder):
    """Build one commit in a worktree of its own under `folder`; returns where to import it from."""
    tree, target = folder / "tree", folder / "lib"
    git = ["git", "-C", os.fspath(ROOT)]
    subprocess.run([*git, "worktree", "add", "--detach", "--quiet", os.fspath(tree), revision], check=True)
    try:
        command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", os.fspath(target)]
        subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", os.fspath(tree)], check=True)
    return target


def commit(revision):
    """The short hash of a revision."""
    command = ["git", "-C", os.fspath(ROOT), "rev-parse", "--short", "--verify", f"{revision}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"no such commit: {revision} ({done.stderr.strip()})")
    return done.stdout.strip()


def compare_commits(cases, options):
    """Build HEAD and another commit, let the two alternate, and print how much faster HEAD is."""
    old, new = (commit(revision) for revision in (options.against, "HEAD"))
    if old == new:
        raise SystemExit(f"{options.against} is HEAD ({new}): commit first, then compare")
    with tempfile.TemporaryDirectory(prefix="fastsoftmax-") as folder:
        paths = {}
        for label in (old, new):
            tell(f"building {label}")
            (Path(folder) / label).mkdir()
            paths[label] = build(label, Path(folder) / label)
        print(f"| function | shape | dtype | threads | {old} | {new} | {new} is faster by |\n" + "|" + " --- |" * 7)
        for threads in options.threads:
            with workers(threads, paths) as crew:
                for family, shape in cases:
                    times, reasons, _ = measure(crew, family, shape, options.repeat, options.seconds)
                    cells = [family, shape.name, shape.dtype, str(threads)]
                    cells += [figure(times[label], shape, family) if label in times else reasons[label]
                              for label in (old, new)]
                    cells.append(f"{ratio(times[old], times[new]):.3f}" if len(times) == 2 else "n/a")
                    print("| " + " | ".join(cells) + " |", flush=True)


def tell(line):
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer shapes, shorter turns, three rounds")
    parser.add_argument("--families", nargs="+", default=[], metavar="F", help=", ".join(shapes.FAMILIES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="part of a shape's name")
    parser.add_argument("--repeat", type=int, metavar="N", help="rounds; default 7, with --quick 3")
    parser.add_argument("--against", metavar="REV", help="compare HEAD with another commit of fastsoftmax")
    parser.add_argument("--json", metavar="FILE", help="where to write; default bench/results/<cpu>.json")
    options = parser.parse_args(arguments)
    options.repeat = options.repeat or (3 if options.quick else 7)
    options.seconds = 0.02 if options.quick else 0.05
    try:
        cases = shapes.select(options.only, options.families, options.quick)
    except ValueError as error:
        parser.error(str(error))
    if not cases:
        parser.error("no shape of that name with these functions")
    return cases, options


def main():
    cases, options = parse()
    if options.against:
        compare_commits(cases, options)
    else:
        compare(cases, options)


if __name__ == "__main__":
    main()
