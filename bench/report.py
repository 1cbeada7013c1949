"""Writes every table and plot of README.md and docs/ from bench/results: `python bench/report.py [--check]`.

A table stands between `<!-- begin: NAME -->` and `<!-- end -->`, where NAME is a key of TABLES; the plots of PLOTS are
SVG files in docs/images. Both are replaced. Each processor with results has a page in docs/results;
README.md and the plots show the newest that has the row. With `--check` nothing is written, and the exit status is 1
if anything would change: a figure that was edited by hand, or results that are newer than the text.

The files in bench/results are written by `--json` of `compare.py` (speed), `accuracy.py`, `threads.py`, `scaling.py`;
minilm.txt holds the output of minilm.py.
"""

import argparse
import difflib
import math
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import report_threads
from charts import COLOURS, chart, lines, markdown
from record import RESULTS, load

ROOT = Path(__file__).resolve().parent.parent
OURS = "fastsoftmax"
LOST = 1e6                  # ULP: a result close to 0 came out as 0
NO_PEER = ("oracle",)       # fastsoftmax.reference, which computes float32 in float64
README_SPEED = (            # function, name of the shape; one thread, from the newest file that has it
    ("softmax", "ten numbers"), ("softmax", "ImageNet classes"),
    ("softmax", "channels of images"), ("log_softmax", "ImageNet classes"),
    ("logsumexp", "ImageNet classes"), ("causal_softmax", "causal square"),
    ("attention", "BERT text"), ("attention_decode", "4096 keys cached"),
)
KINDS = {
    "attention": "attention", "attention_causal": "causal attention", "attention_window": "window of 128",
    "attention_decode": "decoding",
}


def figure(row, library):
    """A cell: the time of a call with its unit, or a rate."""
    value = row["figures"].get(library)
    if value is None:
        return "n/a"
    return f"{value:.2f} us" if row["unit"] == "us" else f"{value:.{3 if row['unit'] == 'G elements/s' else 1}f}"


def with_unit(row, library):
    return figure(row, library) + ("" if row["unit"] == "us" else " " + row["unit"])


def factor(row):
    """How many times as fast as the best peer: a cell."""
    return f"{row['times_best_peer']:.2f}" if "times_best_peer" in row else "n/a"


def columns(rows):
    """The libraries that some rows have figures of, ours first."""
    found = dict.fromkeys(name for row in rows for name in row["figures"])
    return [OURS, *(name for name in found if name != OURS)]


def shape_of(row):
    return f"({', '.join(map(str, row['shape']))}{',' * (len(row['shape']) == 1)})" + (
        f" axis {row['axis']}" if "axis" in row else "")


def newest_first(files):
    """{name: content}, of one day the last name first."""
    return dict(sorted(files.items(), key=lambda item: (item[1]["date"], item[0]), reverse=True))


def runs():
    """{name: content} of the files that compare.py wrote, the newest first."""
    found = {path.stem: load(path.name) for path in sorted(RESULTS.glob("*.json"))}
    found = {name: data for name, data in found.items() if "limits" in data}
    return newest_first(found)


def newest(function, name=None):
    """The newest file that has a function, on a shape and with one thread if that is named."""
    return next(file for file, data in runs().items() if select(data, function, name, 1))


def select(data, function=None, name=None, threads=1):
    """Rows of a file; None stands for all."""
    return [row for row in data["rows"] if (function or row["function"]) == row["function"]
            and (name or row["name"]) == row["name"] and (threads or row["threads"]) == row["threads"]]


def quoted():
    """(file, row) of the README's speed."""
    found = ((newest(function, name), function, name) for function, name in README_SPEED)
    return [(file, *select(runs()[file], function, name)) for file, function, name in found]


def is_attention(row):
    return row["function"] in KINDS


# --- tables


def speed():
    """The eight rows of the README."""
    rows = []
    for _, row in quoted():
        rest, peer = "NumPy" if is_attention(row) else "SciPy", row["best_peer"]
        rows.append([KINDS.get(row["function"], f"`{row['function']}`"), f"{row['name']} {shape_of(row)}",
                     with_unit(row, OURS), f"{figure(row, rest)}", f"{peer} {figure(row, peer)}", factor(row)])
    return markdown(["function", "shape", OURS, "SciPy or NumPy", "fastest other", "times as fast"], rows, 2)


def machines():
    """Where the README's figures come from, a line for each file."""
    kinds = {}
    for file, row in quoted():
        kinds.setdefault(file, {})["attention" if is_attention(row) else "softmax family"] = None
    return "\n".join(f"- {' and '.join(found).capitalize()}: {where(runs()[file])}" for file, found in kinds.items())


def where(data):
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items()
                         if name not in (OURS, "PyTorch folded", *NO_PEER))
    return (f"{data['cpu']}, {data['cpus']} CPUs, instruction set `{data['isa']}`, {data['system']}, "
            f"Python {data['python']}, {versions}; {data['date']}, {data['rounds']} rounds.")


def standing():
    """How many rows are fastest, and where another library is: a line for each function."""
    rows = []
    for data in runs().values():
        for function in dict.fromkeys(row["function"] for row in data["rows"]):
            found = [row for row in select(data, function, threads=None) if "times_best_peer" in row]
            if not found:
                continue
            factors = [row["times_best_peer"] for row in found]
            mean = math.exp(sum(map(math.log, factors)) / len(factors))
            slower = sorted((row for row in found if row["times_best_peer"] < 1),
                            key=lambda row: row["times_best_peer"])
            worst = "; ".join(f"{row['best_peer']}, {row['name']}" for row in slower[:1])
            rows.append([KINDS.get(function, f"`{function}`"), short(data), f"{len(found)}",
                         f"{len(found) - len(slower)}", f"{mean:.2f}",
                         f"{min(factors):.2f}" + (f" ({worst})" if slower else ""), f"{max(factors):.2f}"])
    head = ["function", "CPU", "rows", "fastest in", "times as fast as the best other, geometric mean", "least", "most"]
    return markdown(head, rows, 2)


def short(data):
    """The generation of a processor, or its name where that is not known."""
    kind = re.search(r"\(([^()]*)\)$", data["cpu"])
    return kind[1] if kind else data["cpu"]


def cpus():
    """The processors with results, each with its page."""
    rows = [[f"[{data['cpu']}](results/{name}.md)", f"`{data['isa']}`", data["date"],
             ", ".join(dict.fromkeys(KINDS.get(row["function"], f"`{row['function']}`") for row in data["rows"]))]
            for name, data in runs().items()]
    return markdown(["CPU", "instruction set", "measured", "functions"], rows, 4)


def softmax_table(data):
    names = columns([row for row in data["rows"] if not is_attention(row)])
    rows = [[row["function"], f"{row['name']} {shape_of(row)}", row["dtype"], str(row["threads"]),
             *(figure(row, name) for name in names), row["best_peer"] or "n/a", factor(row), limit(row)]
            for row in data["rows"] if not is_attention(row)]
    head = ["function", "shape", "dtype", "threads", *names, "best peer", "x best peer", "% of limit"]
    return markdown(head, rows, 4)


def limit(row):
    """How much of the machine's limit is reached, and which limit that is: a cell."""
    return f"{row['percent_of_limit']} ({row['limit']})" if "limit" in row else ""


def attention_table(data):
    chosen = [row for row in data["rows"] if is_attention(row)]
    names = columns(chosen)
    rows = [[row["function"], f"{row['name']} {shape_of(row)}", row["dtype"], str(row["threads"]), row["time"],
             figure(row, OURS), limit(row), *(figure(row, name) for name in names[1:]),
             row["best_peer"] or "n/a", factor(row),
             f"{row['times_folded']:.2f}" if "times_folded" in row else ""] for row in chosen]
    head = ["function", "shape (B, Hq, Hk, L, S, E)", "dtype", "threads", "time", OURS, "% of limit", *names[1:]]
    return markdown([*head, "best peer", "x best peer", "x PyTorch folded"], rows, 4)


def attention_summary():
    """Causal and windowed attention relative to the whole, and two threads relative to one."""
    data = runs()[newest("attention")]
    rows = {(row["function"], row["name"], row["threads"]): row for row in data["rows"] if is_attention(row)}
    lines = []
    for (function, name, threads), row in rows.items():
        if threads != 1 or row["unit"] == "us":
            continue
        two, full = rows.get((function, name, 2)), rows.get(("attention", name, 1))
        lines.append([KINDS[function], name, row["time"],
                      f"{seconds(row) / seconds(full):.2f}" if full and function != "attention" else "",
                      f"{seconds(row) / seconds(two):.2f}" if two else ""])
    head = ["function", "shape", "time, one thread", "part of the time of full attention", "two threads, times as fast"]
    return markdown(head, lines, 2)


def seconds(row):
    value, unit = row["time"].split()
    return float(value) * {"s": 1, "ms": 1e-3, "us": 1e-6}[unit]


def attention_calls(data):
    calls = data["calls"]
    dtypes = list(dict.fromkeys(dtype for found in calls.values() for dtype in found["errors"]))
    rows = [[name, ", ".join(f"`{call}`" for call in found["calls"]),
             *(f"{found['errors'][dtype]:.1e}" if dtype in found["errors"] else "n/a" for dtype in dtypes)]
            for name, found in calls.items()]
    return markdown(["library", "called", *(f"error, {dtype}" for dtype in dtypes)], rows, 2)


def limits(data):
    rows = [[threads, *(found[kind] for kind in ("copy", "read", "write", "fma"))]
            for threads, found in data["limits"].items()]
    return markdown(["threads", "copy (read and written)", "read", "write", "multiply-adds in registers"], rows, 1)


def unavailable(data):
    lines = []
    for item in data["unavailable"]:
        cases = "; ".join(f"{name} ({', '.join(functions)})" for name, functions in item["cases"].items())
        lines.append(f"- {item['library']}: {item['why']}{': ' + cases if cases else ''}")
    return "\n".join(lines) or "Every library did every case."


def ulps(value, digits=None):
    """A cell: hundredths of a ULP, or so many digits."""
    if value is None:
        return ""
    if value == "lost" or value > LOST:
        return "digits lost"
    return f"{float(f'{value:.{digits}g}'):g}" if digits else f"{value:.2f}"


def largest(data, dtype, function, isa):
    """The largest error found, by random rows and by the search where there was one."""
    found = [data["random"][dtype][f"{OURS} {isa}"].get(function),
             data["search"].get(dtype, {}).get(function, {}).get(isa)]
    return max((value for value in found if value is not None), default=None)


ISAS = ("x86_64_v3", "x86_64")


def accuracy():
    """The three rows of the README."""
    data = load("accuracy.json")
    rows = []
    for function in ("softmax", "log_softmax", "logsumexp"):
        ours = [ulps(max(largest(data, dtype, function, isa) for isa in ISAS)) for dtype in ("float32", "float64")]
        others = [" / ".join(ulps(data["random"][dtype][name][function], 2) for dtype in ("float32", "float64"))
                  for name in ("SciPy", "PyTorch")]
        rows.append([f"`{function}`", f"{data['bounds'][function]:g}", " / ".join(ours),
                     *(" / ".join(dict.fromkeys(cell.split(" / "))) for cell in others)])
    return markdown(["function", "bound, tested", f"{OURS}, float32 / float64", *versioned(data)], rows)


def versioned(data):
    return [f"{name} {data['versions'][name]}" for name in ("SciPy", "PyTorch")]


def accuracy_random():
    data = load("accuracy.json")
    rows = []
    for dtype in ("float32", "float64"):
        measured = dict.fromkeys(name for found in data["random"][dtype].values() for name in found)
        for name in measured:
            function, _, tempered = name.partition(" at ")
            if function not in data["bounds"]:
                continue
            cells = [ulps(largest(data, dtype, name, isa)) for isa in ISAS]
            cells += [ulps(data["random"][dtype][other].get(name), 2) for other in ("SciPy", "PyTorch")]
            rows.append([dtype, f"`{function}`" + ", with a temperature" * bool(tempered),
                         f"{data['bounds'][function]:g}", *cells])
    return markdown(["dtype", "function", "bound, tested", *ISAS, *versioned(data)], rows, 2)


def accuracy_sweep():
    data = load("accuracy.json")
    rows = [[name.removeprefix(f"{OURS} "), *(ulps(found[f]) for f in ("softmax", "log_softmax", "logsumexp"))]
            for name, found in data["sweep"].items()]
    return markdown(["", "`softmax`", "`log_softmax`", "`logsumexp`"], rows)


def accuracy_other():
    """Temperatures, sums of rows and subnormal weights: the largest found."""
    data = load("accuracy.json")
    return markdown(["quantity", "bound, tested", "largest found"],
                    [[item["what"], item["bound"], item["found"]] for item in data["other"]], 1)


SCALING = "scaling.json"


def scaling():
    """Predicted speed-up of each call by the number of cores, with the most threads that it uses."""
    rows = load(SCALING)["rows"]
    cores = list(rows[0]["speedup"])
    head = [f"cores: {number}" if number == "1" else number for number in cores]
    return markdown(["call", *head, "threads at most"], [
        [row["name"], *(f"{row['speedup'][number]:.3g}" for number in cores), str(max(row["threads"].values()))]
        for row in rows])


def scaling_check():
    """One thread measured; two threads predicted and measured."""
    return markdown(["call", "one thread", "two, measured", "two, predicted", "error of the prediction"], [
        [row["name"], *(f"{row[key] * 1e6:.4g} us" for key in ("one", "two", "two_predicted")),
         f"{100 * (row['two_predicted'] / row['two'] - 1):+.0f} %"] for row in load(SCALING)["rows"]])


def scaling_parameters():
    data = load(SCALING)
    host, options = data["host"], data["options"]
    return (f"{data['cpu']}: a region of two threads costs {host['fork'] * 1e6:.1f} us; one core copies "
            f"{host['copy'] / 1e9:.0f} GB/s and reads {host['read'] / 1e9:.0f} GB/s. Assumed: "
            f"{options['cores_per_node']} cores a socket, {options['node_bandwidth']:g} GB/s a socket, the other "
            f"socket's memory at {options['remote']:g} of the speed, {options['cache']} MiB of cache, "
            f"{options['wake'] * 1e6:g} us a region for each thread beyond two.")


def widths():
    """The plots over the width of rows, of every processor."""
    return "\n\n".join(map(widths_of, rows_of_every_width())) or "Not measured."


def widths_of(name):
    """The plot of a processor, and the widths at which ours is slow."""
    data = rows_of_every_width()[name]
    found = []
    for series in (series for series in data["series"] if series["library"] == OURS):
        widths = ", ".join(map(str, slow(data["first_width"], series["speeds"])))
        found.append(f"{series['elements']} elements: {widths or 'none'}")
    return f"""```{{image}} images/widths-{name}.svg
:alt: G elements/s of softmax over the width of rows
:width: 100%
```

On {data['cpu']}; {data['date']}, {data['rounds']} rounds. Widths at which fastsoftmax is more than 25 % slower
than at the width before or after: {"; ".join(found)}."""


def rows_of_every_width():
    """{name of the processor: content} of the files of `compare.py --widths`, the newest first."""
    found = {path.stem.removeprefix("widths-"): load(path.name) for path in sorted(RESULTS.glob("widths-*.json"))}
    return newest_first(found)


def slow(first, speeds):
    """The widths at which the speed is below 3/4 of that of a neighbour."""
    return [first + i for i in range(len(speeds))
            if speeds[i] and speeds[i] < 0.75 * max(filter(None, speeds[max(i - 1, 0):i + 2]))]


TABLES = {
    function.__name__.replace("_", "-"): function for function in (
        speed, machines, standing, cpus, attention_summary, accuracy, accuracy_random, accuracy_sweep, accuracy_other,
        widths, scaling, scaling_check, scaling_parameters, *report_threads.TABLES)
}


# --- plots


def groups(rows):
    """(label, note, {library: time relative to ours}) of each row."""
    found = []
    for row in rows:
        ours = row["figures"][OURS]
        times = {name: value / ours if row["unit"] == "us" else ours / value
                 for name, value in row["figures"].items() if name not in NO_PEER and name in COLOURS}
        label = f"{KINDS.get(row['function'], row['function'])}, {row['name']}"
        found.append((label, f"{shape_of(row)} {row['dtype']}: {with_unit(row, OURS)}", times))
    return found


SUBTITLE = "One thread; time of a call relative to fastsoftmax. Shorter is faster; below 1 is faster than fastsoftmax."


def plot_speed():
    found = groups([row for _, row in quoted()[1:]])
    for _, _, times in found:
        times.pop("PyTorch folded", None)
    return chart("The same work takes other libraries this many times as long", SUBTITLE, found)


def plot_softmax():
    data = runs()[newest("softmax")]
    return chart(f"softmax, every shape measured, {short(data)}", SUBTITLE, groups(select(data, "softmax")))


def plot_attention():
    data = runs()[newest("attention")]
    rows = [row for row in select(data) if is_attention(row) and row["dtype"] == "float32" and row["unit"] != "us"]
    return chart(f"Attention in float32, every shape measured, {short(data)}", SUBTITLE, groups(rows))


def plot_widths(data):
    panels = [(f"{elements:,} elements", {series["library"]: series["speeds"] for series in data["series"]
                                          if series["elements"] == elements})
              for elements in dict.fromkeys(series["elements"] for series in data["series"])]
    return lines(f"softmax by the width of rows, {short(data)}", "One thread, float32; G elements/s over the width.",
                 range(data["first_width"], data["first_width"] + len(data["series"][0]["speeds"])), panels)


def plot_scaling():
    """Speed-up over cores, both logarithmic: a line for each call."""
    rows = load(SCALING)["rows"]
    colours = list(COLOURS.values())
    cores = [int(number) for number in rows[0]["speedup"]]
    left, top, side, width, height = 50, 64, 360, 800, 470

    def at(number, speedup):
        largest = math.log2(cores[-1])
        return (f"{left + side * math.log2(number) / largest:.1f},"
                f"{top + side * (1 - max(math.log2(max(speedup, 1)), 0) / largest):.1f}")

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           'role="img" aria-label="Predicted speed-up by cores">',
           "<style>text{font:12px system-ui,sans-serif;fill:#222}.t{font-size:15px;font-weight:600}</style>",
           f'<rect width="{width}" height="{height}" fill="#fff"/>',
           '<text class="t" x="12" y="24">Predicted speed-up by cores</text>',
           '<text x="12" y="43">Both axes are logarithmic; the grey line is ideal.</text>',
           f'<polyline points="{at(1, 1)} {at(cores[-1], cores[-1])}" stroke="#bbb" fill="none"/>']
    for number in cores:
        x, y = at(number, 1).split(",")
        out.append(f'<text x="{x}" y="{top + side + 18}" text-anchor="middle">{number}</text>')
        y = at(1, number).split(",")[1]
        out.append(f'<text x="{left - 8}" y="{y}" text-anchor="end">{number}</text>')
    for i, row in enumerate(rows):
        points = " ".join(at(int(number), speedup) for number, speedup in row["speedup"].items())
        style = f'stroke="{colours[i % len(colours)]}" stroke-width="1.5"'
        style += ' stroke-dasharray="5 3"' * (i >= len(colours))
        y = top + 12 + 24 * i
        out.append(f'<polyline points="{points}" fill="none" {style}/>'
                   f'<line x1="440" x2="464" y1="{y}" y2="{y}" {style}/>'
                   f'<text x="472" y="{y + 4}">{escape(row["name"])}</text>')
    return "\n".join([*out, "</svg>", ""])


PLOTS = {"speed.svg": plot_speed, "softmax.svg": plot_softmax, "attention.svg": plot_attention,
         "scaling.svg": plot_scaling, "disturbance.svg": report_threads.plot_disturbance}


# --- a page for each processor


PAGE = """---
html_theme.sidebar_secondary.remove: true
---

# {cpu}

Written by `python bench/report.py` from `bench/results/{name}.json`. [](../performance.md) says how it is measured.

{where}

Machines are shared with other users: a ratio within a row stands for more than a figure beside another.
"""
SOFTMAX_HEAD = """\
Figures are G elements/s, or the time of one call for small arrays. "x best peer" is the best peer's time over ours:
above 1, fastsoftmax is faster. "% of limit", for arrays of 48 MiB and more, is the time of the machine's own copy
(softmax), read (reductions) or write (masks) of the same memory over ours: 100 cannot be beaten. Both are medians of
the ratios within a round. The column "oracle" is `fastsoftmax.reference`, which computes float32 in float64; it is no
peer."""
ATTENTION_HEAD = """\
Figures are GFLOP/s, counting 4 E operations for each visible pair of a query and a key; for decoding GB/s of keys and
values; for the smallest shapes the time of one call. "% of limit" is the time of as many multiply-adds in registers
(fma), or of reading as much memory (read), over ours."""
CALLS_HEAD = "How each library was called, and the largest difference from float64 of 16 rows of every case:"


def page(name, data):
    """The page of a processor: sections of what was measured on it."""
    attention = any(map(is_attention, data["rows"]))
    sections = [PAGE.format(cpu=data["cpu"], name=name, where=where(data))]
    if not all(map(is_attention, data["rows"])):
        sections.append(f"## Softmax family\n\n{SOFTMAX_HEAD}\n\n{softmax_table(data)}\n")
    if attention:
        sections.append(f"## Attention\n\n{ATTENTION_HEAD}\n\n{attention_table(data)}\n")
        sections.append(f"## Calls and errors of attention\n\n{CALLS_HEAD}\n\n{attention_calls(data)}\n")
    if name in rows_of_every_width():
        sections.append(f"## Rows of every width\n\n{widths_of(name).replace('} images/', '} ../images/')}\n")
    sections.append(f"## The machine's own limits\n\n{limits(data)}\n")
    if data["notes"]:
        sections.append("## Notes\n\n" + "\n".join(f"- {note}" for note in data["notes"]) + "\n")
    sections.append(f"## Not available\n\n{unavailable(data)}\n")
    return "\n".join(sections)


# --- the files


def filled(text, file):
    """The text with every marked region replaced."""
    def region(match):
        if match[1] not in TABLES:
            raise SystemExit(f"{file}: no such table: {match[1]}; there are {', '.join(TABLES)}")
        return f"<!-- begin: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- begin: (\S+) -->\n.*?<!-- end -->", region, text, flags=re.DOTALL)


def files():
    """path -> the text that it must hold; None for a page or plot whose results are gone."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {page: filled(page.read_text(encoding="utf-8"), page.name) for page in pages}
    folder, images = ROOT / "docs" / "results", ROOT / "docs" / "images"
    found |= {old: None for old in folder.glob("*.md")} | {old: None for old in images.glob("widths-*.svg")}
    found |= {folder / f"{name}.md": page(name, data) for name, data in runs().items()}
    found |= {images / f"widths-{name}.svg": plot_widths(data) for name, data in rows_of_every_width().items()}
    return found | {images / name: draw() for name, draw in PLOTS.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; the exit status is 1 if a file differs")
    check = parser.parse_args().check
    stale = 0
    for path, text in files().items():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if text == before:
            continue
        stale += 1
        if check:
            sys.stdout.writelines(list(difflib.unified_diff(
                before.splitlines(True), (text or "").splitlines(True), str(path), "bench/results", n=0))[:20])
        elif text is None:
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    if check and stale:
        sys.exit("run python bench/report.py")


if __name__ == "__main__":
    main()
