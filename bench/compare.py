"""Compare fastsoftmax with its peers, every library in a process of its own: `python bench/compare.py`.

The workers are started once per number of threads and take turns, A B A B, with only one computing at any time: in
one process the thread pools of two libraries would spin against each other. A turn is about 50 ms of calls and
counts as its median; the ratio of two libraries is the median over the rounds of the ratio within a round, so that
a slow spell of the machine falls on both sides. Writes bench/results.md and, where matplotlib is installed,
bench/results.png, and bench/results_attention.png for attention. `--against REV` compares two commits of fastsoftmax
in the same way.
"""

import argparse
import contextlib
import datetime
import importlib.util
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import libraries
import machine
import shapes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OURS = "fastsoftmax"
SETTLE = 0.01  # seconds between turns, for the threads of the library before to fall asleep


class Row(NamedTuple):
    """What was measured of one function on one shape with so many threads, each by library."""

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
    """What a library is asked for; the machine and our own commits for everything."""
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


def columns_for(families, versions):
    """The libraries that are meant for any of the families, ours first."""
    return [name for name in libraries.meant_for(families) if name in versions]


def softmax_table(rows, versions):
    """The softmax family as Markdown: one line per function, shape and number of threads."""
    columns = columns_for(shapes.SOFTMAX, versions)
    head = ["function", "shape", "dtype", "threads", *columns, "best peer", "x best peer", "x limit"]
    lines = markdown_head(head, 4)
    for family, shape, threads, times, *_ in rows:
        cells = [family, shape.text, shape.dtype, str(threads)]
        cells += [figure(times[name], shape, family) if name in times else "n/a" for name in columns]
        peer, factor = best_peer(times, family) if OURS in times else (None, None)
        cells += [peer or "n/a", f"{factor:.2f}" if factor else "n/a", over_limit(times)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def attention_table(rows, versions):
    """Attention as Markdown: our time, speed and part of the limit, the others' speed, and the ratios."""
    columns = columns_for(shapes.ATTENTION, versions)
    head = ["function", "shape (B, Hq, Hk, L, S, E)", "dtype", "threads", "time", OURS, "% of limit", *columns[1:]]
    folded = libraries.BY_HAND[0]
    lines = markdown_head([*head, "best peer", "x best peer", f"x {folded}"], 4)
    for family, shape, threads, times, *_ in rows:
        cells = [family, shape.text, shape.dtype, str(threads)]
        cells += [duration(times[OURS]), figure(times[OURS], shape, family)] if OURS in times else ["n/a", "n/a"]
        part = {OURS, "machine"} <= set(times)
        cells.append(f"{100 * ratio(times['machine'], times[OURS]):.0f}" if part else "")
        cells += [figure(times[name], shape, family) if name in times else "n/a" for name in columns[1:]]
        peer, factor = best_peer(times, family) if OURS in times else (None, None)
        cells += [peer or "n/a", f"{factor:.2f}" if factor else "n/a"]
        cells.append(f"{ratio(times[folded], times[OURS]):.2f}" if {OURS, folded} <= set(times) else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def markdown_head(head, left):
    """The two lines at the head of a table whose first `left` columns are words."""
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * left + " ---: |" * (len(head) - left)]


def duration(times):
    """The median, three digits and a unit."""
    seconds = statistics.median(times)
    scale, unit = next(((s, u) for s, u in ((1e-6, "us"), (1e-3, "ms")) if seconds < 1000 * s), (1, "s"))
    return f"{seconds / scale:.3g} {unit}"


def attention_summary(rows):
    """What the table of attention comes to: means over the prefill shapes, and our times relative to each other."""
    ours = {(row.family, row.shape.name, row.threads): statistics.median(row.times[OURS])
            for row in rows if OURS in row.times and not row.shape.small}
    lines = []
    for family, threads in dict.fromkeys((row.family, row.threads) for row in rows if row.shape.prefill):
        mine = [row for row in rows if (row.family, row.threads) == (family, threads) and row.shape.prefill]
        factors = [best_peer(row.times, family)[1] for row in mine if OURS in row.times]
        factors = [factor for factor in factors if factor]
        if factors:
            mean = statistics.geometric_mean(factors)
            lines.append(f"- {family}, {threads} threads: {mean:.2f} times as fast as the best peer (geometric mean "
                         f"of {len(factors)} prefill shapes), at least {min(factors):.2f}")
    for (family, name, threads), seconds in ours.items():
        full = ours.get(("attention", name, threads))
        if full and family in ("attention_causal", "attention_window"):
            lines.append(f"- {name}, {threads} threads: {family} takes {seconds / full:.3f} of the time of attention")
        alone = ours.get((family, name, 1))
        if threads > 1 and alone:
            lines.append(f"- {name}, {family}: {threads} threads are {alone / seconds:.2f} times as fast as 1")
    return lines


def attention_calls(rows):
    """How each library was called for attention, and its largest error by dtype."""
    dtypes = list(dict.fromkeys(row.shape.dtype for row in rows))
    lines = markdown_head(["library", "called", *(f"error, {dtype}" for dtype in dtypes)], 2)
    for name in libraries.LIBRARIES:
        notes = [(row, row.notes[name]) for row in rows if name in row.notes]
        if not notes:
            continue
        errors = [[note["error"] for row, note in notes if row.shape.dtype == dtype] for dtype in dtypes]
        calls = ", ".join(f"`{how}`" for how in dict.fromkeys(note["how"] for _, note in notes))
        cells = [name, calls, *(f"{max(found):.1e}" if found else "n/a" for found in errors)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def over_limit(times):
    """Our time as a multiple of the machine's, for arrays too large for any cache."""
    if not {OURS, "machine"} <= set(times):
        return ""
    return f"{ratio(times[OURS], times['machine']):.2f}"


def cpu():
    """The processor's name and the number of CPUs this process may use."""
    names = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            names.setdefault(key.strip(), value.strip())
    model = names.get("model name") or platform.processor() or platform.machine()
    family = f", family {names['cpu family']} model {names['model']}" if "cpu family" in names else ""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}{family}, {count} CPUs"


def isa_of(path):
    """The instruction set fastsoftmax uses, asked in a process of its own."""
    code = "import fastsoftmax; print(fastsoftmax.show_config(mode='dicts')['isa'])"
    environment = {**os.environ, **({"PYTHONPATH": os.fspath(path)} if path else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def context(versions, isa):
    """The lines that say where and with what it was measured."""
    return [
        f"- {datetime.date.today()}, {cpu()}, ISA in use: {isa}",
        f"- {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "- " + ", ".join(f"{name} {what}" for name, what in versions.items() if name != "machine"),
    ]


def report(rows, limits, versions, isa):
    """The whole of results.md."""
    softmax, attention = split(rows)
    lines = ["# fastsoftmax and its peers", "", *context(versions, isa), ""]
    if softmax:
        lines += [
            "Figures are G elements/s, or the time of one call where a call is what counts. `x best peer` is the best",
            "peer's time divided by ours, `x limit` our time divided by that of the machine's own copy (softmax),",
            "read (reductions) or write (masks) of the same memory: both medians of the ratios within a round.", "",
            *softmax_table(softmax, versions), "",
        ]
    if attention:
        lines += [
            "## Attention", "",
            "Figures are GFLOP/s, counting 4 E for each visible pair of a query and a key; for decoding GB/s of keys",
            "and values; for the smallest the time of one call. `% of limit` is the time of as many multiply-adds in",
            "registers, or of reading as much memory, divided by ours.", "",
            *attention_table(attention, versions), "", *attention_summary(attention), "",
            "How it was called, and the largest difference from float64 of 16 rows of every case:", "",
            *attention_calls(attention), "",
        ]
    lines += [
        "## The machine's own limits", "",
        "| threads | " + " | ".join(f"{k} ({what})" for k, what in machine.MEASURED.items()) + " |",
        "|" + " --- |" * (1 + len(machine.MEASURED)),
    ]
    lines += [f"| {threads} | " + " | ".join(found.values()) + " |" for threads, found in limits.items()]
    lines += ["", "## Not available", "", *(not_available(rows, versions) or ["nothing"])]
    return "\n".join(lines) + "\n"


def split(rows):
    """The rows of the softmax family, and those of attention."""
    return [[row for row in rows if row.family in families] for families in (shapes.SOFTMAX, shapes.ATTENTION)]


def not_available(rows, versions):
    """One line for each library that is absent, and for each reason why one could not do some of the cases."""
    lines = [f"- {name}: {what}" for name, what in versions.items() if what.startswith("absent")]
    cases = {}
    for row in rows:
        for name, why in row.reasons.items():
            if not versions[name].startswith("absent"):
                cases.setdefault((name, why), {}).setdefault(row.shape.name, {})[row.family] = None
    for (name, why), found in cases.items():
        where = "; ".join(f"{shape} ({', '.join(families)})" for shape, families in found.items())
        lines.append(f"- {name}: {why}: {where}")
    return lines


def plot(rows, file, isa):
    """Speed relative to the best peer by shape, for one function, a panel per number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    family = rows[0].family
    rows = [row for row in rows if row.family == family and OURS in row.times]
    counts = sorted({row.threads for row in rows})
    names = [name for name in libraries.LIBRARIES if any(name in row.times for row in rows)]
    height = 1.5 + 0.15 * len(names) * len({row.shape for row in rows})
    size = {"figsize": (6 * len(counts), height), "layout": "constrained"}
    page, panels = pyplot.subplots(1, len(counts), sharey=True, squeeze=False, **size)
    for panel, threads in zip(panels[0], counts, strict=True):
        draw(panel, [row for row in rows if row.threads == threads], names)
        panel.set_title(f"{family}, {threads} thread{'s' * (threads > 1)}")
    panels[0][0].invert_yaxis()
    page.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(names)))
    page.suptitle(f"{cpu()}, {isa}", fontsize="small")
    page.savefig(file, dpi=110)


def draw(panel, rows, names):
    """One panel: a group of bars per shape, a colour per library; longer is faster, 1 is the best peer."""
    for k, name in enumerate(names):
        here = [(place, row.times) for place, row in enumerate(rows) if name in row.times]
        bars = panel.barh(
            [place + 0.8 * (k + 0.5) / len(names) - 0.4 for place, _ in here],
            [ratio(times[best_peer(times, rows[place].family)[0] or OURS], times[name]) for place, times in here],
            height=0.8 / len(names), label=name, color="black" if name == OURS else f"C{k - 1}",
        )
        if name == OURS:
            texts = [figure_with_unit(rows[place]) for place, times in here]
            panel.bar_label(bars, texts, size=7, padding=2)
    labels = [f"{row.shape.name}\n{row.shape.dtype} {row.shape.shape}" for row in rows]
    panel.set_yticks(range(len(rows)), labels)
    panel.tick_params(axis="y", labelsize="x-small")
    panel.margins(x=0.2)
    panel.axvline(1, color="grey", linewidth=0.6)
    panel.set_xlabel("speed, best peer = 1")


def figure_with_unit(row):
    """Our cell of the table as the plot shows it."""
    cell = figure(row.times[OURS], row.shape, row.family)
    unit = {"elements": "G/s", "flops": "GFLOP/s", "bytes": "GB/s"}[row.shape.work(row.family)[1]]
    return cell if row.shape.small else f"{cell} {unit}"


def compare(cases, options):
    """Measure all cases with all libraries, and write the table and the plot."""
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
    isa, target = isa_of(paths[OURS]), Path(options.output)
    target.with_suffix(".md").write_text(report(rows, limits, versions, isa), encoding="utf-8")
    tell(f"wrote {target.with_suffix('.md')}")
    if importlib.util.find_spec("matplotlib") is None:
        tell("no plot: matplotlib is not installed")
    else:
        for part, ending in zip(split(rows), ("", "_attention"), strict=True):
            if any(OURS in row.times for row in part):
                picture = target.with_name(f"{target.stem}{ending}.png")
                plot(part, picture, isa)
                tell(f"wrote {picture}")


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
    parser.add_argument("--output", default=os.fspath(HERE / "results"), metavar="PATH", help="without .md and .png")
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
