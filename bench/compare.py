"""Compare fastsoftmax with its peers, every library in a process of its own: `python bench/compare.py`.

The workers are started once per number of threads and take turns, A B A B, with only one computing at any time: in
one process the thread pools of two libraries would spin against each other. A turn is about 50 ms of calls and
counts as its median; the ratio of two libraries is the median over the rounds of the ratio within a round, so that
a slow spell of the machine falls on both sides. Writes bench/results/<cpu>.json; `report.py` makes the tables and
plots of README.md and docs/ from such files. `--merge` keeps the other rows of the file. `--widths` measures rows of
every width from 2 to 128 and writes bench/results/widths-<cpu>.json. `--against REV` compares two commits of
fastsoftmax in the same way.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
import peers
import record
import shapes
from figures import OURS, Row, figure, percent_of_limit, results, slug, speed
from machine import Machine
from standalone import turns

IN_WIDTHS = (OURS, peers.PyTorch.name, peers.OnnxRuntime.name, peers.Xnnpack.name)
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def ours_path():
    """The checkout if it is built in place, else None: then the installed package is measured."""
    built = any((ROOT / "fastsoftmax").glob("_cpu*.so")) or any((ROOT / "fastsoftmax").glob("_cpu*.pyd"))
    return ROOT if built else None


def workers(threads, paths, names=(*peers.LIBRARIES, Machine.name)):
    """The workers of our own commits; with one alone also those of the other libraries named and of the machine."""
    def worker(label, library, path):
        return label, [os.fspath(HERE / "worker.py"), library, str(threads)], threads, path

    ours = [worker(label, OURS, path) for label, path in paths.items()]
    names = names if list(paths) == [OURS] else ()
    return turns.workers(ours + [worker(name, name, paths[OURS]) for name in names if name != OURS])


def measure(crew, family, shape, repeat, seconds):
    """(times, reasons, notes) as in Row. Workers of libraries that are not meant for the family are not asked."""
    asked = [worker for worker in crew if family in families_of(worker.name)
             and (shape.limited or worker.name != Machine.name)]
    return turns.take_turns(asked, [family, shape.name], repeat, seconds)


def families_of(label):
    """The functions that a library is asked for; the machine and our own commits are asked for all."""
    return peers.LIBRARIES[label].families if label in peers.LIBRARIES else shapes.FAMILIES


def measure_machine(crew, repeat, seconds):
    """The machine's limits in GB/s and GFLOP/s, best of the rounds: {name: "12.3 GB/s"} or {name: why not}."""
    (worker,) = [worker for worker in crew if worker.name == Machine.name]
    limits = {}
    for kind in machine.MEASURED:
        answers = [worker.set_up([kind, Machine.name]), *(worker.run(seconds) for _ in range(repeat))]
        if reason := next((answer["absent"] for answer in answers if "absent" in answer), None):
            limits[kind] = f"absent: {reason}"
            continue
        work, unit = machine.amount(kind, worker.greeting["flops"])
        limits[kind] = f"{work / min(answer['best'] for answer in answers[1:]) / 1e9:.1f} {unit}"
    return limits


def compare(cases, options):
    """Measure all cases with all libraries, and write the results file."""
    paths, rows, limits, versions = {OURS: ours_path()}, [], {}, {}
    names = [name for name in (*peers.LIBRARIES, Machine.name) if name not in options.without]
    for threads in options.threads:
        with workers(threads, paths, names) as crew:
            for worker in crew:
                what = worker.greeting.get("version", f"absent: {worker.absent}")
                versions[worker.name] = what
                tell(f"{worker.name} {what}, {threads} threads")
            limits[threads] = measure_machine(crew, 3, options.seconds)
            tell(f"machine: {limits[threads]}")
            for family, shape in cases:
                row = Row(family, shape, threads, *measure(crew, family, shape, options.repeat, options.seconds))
                rows.append(row)
                tell(f"{family}, {shape.name}: {progress(row, versions)}")
    data = results(rows, limits, versions, isa_of(paths[OURS]), options.repeat)
    write(data, options, "")


def write(data, options, prefix):
    """Write a results file, into that which is there where this is asked for."""
    target = Path(options.json) if options.json else record.RESULTS / f"{prefix}{slug(data['cpu'])}.json"
    if options.merge and target.exists():
        data = record.merged(json.loads(target.read_text(encoding="utf-8")), data)
    record.save(target, data)
    tell(f"wrote {target}")


def compare_widths(options):
    """Measure rows of every width with one thread, and write their results file."""
    paths, speeds = {OURS: ours_path()}, {}
    with workers(1, paths, IN_WIDTHS) as crew:
        versions = {worker.name: worker.greeting.get("version", f"absent: {worker.absent}") for worker in crew}
        for elements, shape in ((elements, shape) for elements, line in shapes.WIDTHS.items() for shape in line):
            times, reasons, _ = measure(crew, "softmax", shape, options.repeat, options.seconds)
            row = Row("softmax", shape, 1, times, reasons, {})
            for worker in crew:
                series = speeds.setdefault((elements, worker.name), [])
                taken = times.get(worker.name)
                series.append(round(speed(taken, shape, "softmax"), 3) if taken else None)
            tell(f"{shape.name}: {progress(row, versions)}")
    data = results([], {}, versions, isa_of(paths[OURS]), options.repeat)
    data = {key: data[key] for key in ("date", "cpu", "cpus", "isa", "system", "python", "rounds", "versions")}
    data["first_width"] = next(iter(shapes.WIDTHS.values()))[0].shape[1]
    data["series"] = [{"elements": elements, "library": name, "speeds": taken}
                      for (elements, name), taken in speeds.items() if any(taken)]
    write(data, options, "widths-")


def progress(row, versions):
    """Each library's figure, or why it has none; those that are absent from the start have been told."""
    cells = [f"{name} {figure(taken, row.shape, row.family)}" for name, taken in row.times.items()
             if name != Machine.name]
    if {OURS, Machine.name} <= set(row.times):
        kind, limit = machine.limit(row.family, row.shape)[0], figure(row.times[Machine.name], row.shape, row.family)
        cells.append(f"limit ({kind}) {limit}, {percent_of_limit(row.times)} % of it")
    cells += [f"{name}: {why}" for name, why in row.reasons.items() if not versions[name].startswith("absent")]
    return ", ".join(cells)


def isa_of(path):
    """The instruction set fastsoftmax uses, asked in a process of its own."""
    code = "import fastsoftmax; print(fastsoftmax.show_config(mode='dicts')['isa'])"
    environment = {**os.environ, **({"PYTHONPATH": os.fspath(path)} if path else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


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
                    cells.append(f"{turns.ratio(times[old], times[new]):.3f}" if len(times) == 2 else "n/a")
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
    parser.add_argument("--without", nargs="+", default=[], metavar="LIBRARY", choices=list(peers.LIBRARIES)[1:],
                        help="libraries to leave out, as the slow oracle")
    parser.add_argument("--repeat", type=int, metavar="N", help="rounds; default 7, with --quick 3")
    parser.add_argument("--against", metavar="REV", help="compare HEAD with another commit of fastsoftmax")
    parser.add_argument("--widths", action="store_true", help="softmax of rows of 2 to 128, one thread")
    parser.add_argument("--merge", action="store_true", help="keep the rows of the file that are not measured")
    parser.add_argument("--json", metavar="FILE", help="where to write; default bench/results/<cpu>.json")
    options = parser.parse_args(arguments)
    options.repeat = options.repeat or (3 if options.quick else 7)
    options.seconds = 0.02 if options.quick else 0.05
    try:
        cases = shapes.select(options.only, options.families, options.quick)
    except ValueError as error:
        parser.error(str(error))
    if options.merge and (options.widths or options.against):
        parser.error("--merge is for the table of shapes")
    if not cases:
        parser.error("no shape of that name with these functions")
    return cases, options


def main():
    cases, options = parse()
    if options.against:
        compare_commits(cases, options)
    elif options.widths:
        compare_widths(options)
    else:
        compare(cases, options)


if __name__ == "__main__":
    main()
