"""Writes every table and plot of README.md and docs/ from bench/results: `python bench/report.py [--check]`.

A table stands between `<!-- begin: NAME -->` and `<!-- end -->`, where NAME is a key of TABLES; the plots of PLOTS are
SVG files in docs/images. Both are replaced. With `--check` nothing is written, and the exit status is 1 if anything
would change: a figure that was edited by hand, or results that are newer than the text.

The files in bench/results are written by `compare.py --json` (speed) and `accuracy.py --json`; threads.json and
minilm.txt hold the output of busy.py and minilm.py.
"""

import argparse
import difflib
import math
import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from record import load

ROOT = Path(__file__).resolve().parent.parent
OURS = "fastsoftmax"
SOFTMAX, ATTENTION = "amd-epyc-zen4.json", "amd-epyc-zen3.json"
LOST = 1e6                  # ULP: a result close to 0 came out as 0
COLOURS = {                 # Okabe and Ito's, which colour-blind readers can tell apart
    OURS: "#000000", "PyTorch": "#d55e00", "PyTorch folded": "#e69f00", "ONNX Runtime": "#0072b2",
    "OpenVINO": "#cc79a7", "JAX": "#009e73", "SciPy": "#56b4e9", "NumPy": "#8a8a8a",
}
NO_PEER = ("oracle",)       # fastsoftmax.reference, which computes float32 in float64
README_SPEED = (            # file, function, name of the shape; one thread
    (SOFTMAX, "softmax", "ten numbers"), (SOFTMAX, "softmax", "ImageNet classes"),
    (SOFTMAX, "softmax", "channels of images"), (SOFTMAX, "log_softmax", "ImageNet classes"),
    (SOFTMAX, "logsumexp", "ImageNet classes"), (SOFTMAX, "causal_softmax", "causal square"),
    (ATTENTION, "attention", "BERT text"), (ATTENTION, "attention_decode", "4096 keys cached"),
)
KINDS = {
    "attention": "attention", "attention_causal": "causal attention", "attention_window": "window of 128",
    "attention_decode": "decoding",
}


def markdown(head, rows, left=1):
    """A table of which the first `left` columns are words."""
    lines = [head, [*["---"] * left, *["---:"] * (len(head) - left)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


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


def columns(data):
    """The libraries that a file has figures of, ours first."""
    found = dict.fromkeys(name for row in data["rows"] for name in row["figures"])
    return [OURS, *(name for name in found if name != OURS)]


def shape_of(row):
    return f"({', '.join(map(str, row['shape']))}{',' * (len(row['shape']) == 1)})" + (
        f" axis {row['axis']}" if "axis" in row else "")


def select(file, function=None, name=None, threads=1):
    """Rows of a file; None stands for all."""
    return [row for row in load(file)["rows"] if (function or row["function"]) == row["function"]
            and (name or row["name"]) == row["name"] and (threads or row["threads"]) == row["threads"]]


# --- tables


def speed():
    """The eight rows of the README."""
    rows = []
    for file, function, name in README_SPEED:
        (row,) = select(file, function, name)
        rest = "SciPy" if file == SOFTMAX else "NumPy"
        peer = row["best_peer"]
        rows.append([KINDS.get(function, f"`{function}`"), f"{row['name']} {shape_of(row)}", with_unit(row, OURS),
                     f"{figure(row, rest)}", f"{peer} {figure(row, peer)}", factor(row)])
    return markdown(["function", "shape", OURS, "SciPy or NumPy", "fastest other", "times as fast"], rows, 2)


def machines():
    """Where the figures come from, a line for each file."""
    return "\n".join(f"- {what}: {where(load(file))}" for what, file in (
        ("Softmax family", SOFTMAX), ("Attention", ATTENTION)))


def where(data):
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items()
                         if name not in (OURS, "PyTorch folded", *NO_PEER))
    return (f"{data['cpu']}, {data['cpus']} CPUs, instruction set `{data['isa']}`, {data['system']}, "
            f"Python {data['python']}, {versions}; {data['date']}, {data['rounds']} rounds.")


def standing():
    """How many rows are fastest, and where another library is: a line for each function."""
    lines = []
    for file in (SOFTMAX, ATTENTION):
        for function in dict.fromkeys(row["function"] for row in load(file)["rows"]):
            rows = [row for row in select(file, function, threads=None) if "times_best_peer" in row]
            if not rows:
                continue
            factors = [row["times_best_peer"] for row in rows]
            mean = math.exp(sum(map(math.log, factors)) / len(factors))
            slower = sorted((row for row in rows if row["times_best_peer"] < 1), key=lambda row: row["times_best_peer"])
            worst = "; ".join(f"{row['best_peer']}, {row['name']}" for row in slower[:1])
            lines.append([KINDS.get(function, f"`{function}`"), f"{len(rows)}", f"{len(rows) - len(slower)}",
                          f"{mean:.2f}", f"{min(factors):.2f}" + (f" ({worst})" if slower else ""),
                          f"{max(factors):.2f}"])
    head = ["function", "rows", "fastest in", "times as fast as the best other, geometric mean", "least", "most"]
    return markdown(head, lines)


def softmax_table():
    data = load(SOFTMAX)
    names = columns(data)
    rows = [[row["function"], f"{row['name']} {shape_of(row)}", row["dtype"], str(row["threads"]),
             *(figure(row, name) for name in names), row["best_peer"] or "n/a", factor(row),
             f"{row['times_limit']:.2f}" if "times_limit" in row else ""] for row in data["rows"]]
    return markdown(["function", "shape", "dtype", "threads", *names, "best peer", "x best peer", "x limit"], rows, 4)


def attention_table():
    data = load(ATTENTION)
    names = columns(data)
    rows = [[row["function"], f"{row['name']} {shape_of(row)}", row["dtype"], str(row["threads"]), row["time"],
             figure(row, OURS), str(row.get("percent_of_limit", "")), *(figure(row, name) for name in names[1:]),
             row["best_peer"] or "n/a", factor(row),
             f"{row['times_folded']:.2f}" if "times_folded" in row else ""] for row in data["rows"]]
    head = ["function", "shape (B, Hq, Hk, L, S, E)", "dtype", "threads", "time", OURS, "% of limit", *names[1:]]
    return markdown([*head, "best peer", "x best peer", "x PyTorch folded"], rows, 4)


def attention_summary():
    """Causal and windowed attention relative to the whole, and two threads relative to one."""
    rows = {(row["function"], row["name"], row["threads"]): row for row in load(ATTENTION)["rows"]}
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


def attention_calls():
    calls = load(ATTENTION)["calls"]
    dtypes = list(dict.fromkeys(dtype for found in calls.values() for dtype in found["errors"]))
    rows = [[name, ", ".join(f"`{call}`" for call in found["calls"]),
             *(f"{found['errors'][dtype]:.1e}" if dtype in found["errors"] else "n/a" for dtype in dtypes)]
            for name, found in calls.items()]
    return markdown(["library", "called", *(f"error, {dtype}" for dtype in dtypes)], rows, 2)


def notes():
    return "\n".join(f"- {note}" for file in (SOFTMAX, ATTENTION) for note in load(file)["notes"])


def limits():
    rows = [[what, threads, *(found[kind] for kind in ("copy", "read", "write", "fma"))]
            for what, file in (("softmax family", SOFTMAX), ("attention", ATTENTION))
            for threads, found in load(file)["limits"].items()]
    head = ["run", "threads", "copy (read and written)", "read", "write", "multiply-adds in registers"]
    return markdown(head, rows, 2)


def unavailable():
    lines = []
    for file in (SOFTMAX, ATTENTION):
        for item in load(file)["unavailable"]:
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
    names = [name for name in data["random"][dtype] if name.removeprefix(f"{OURS} ") in isa]
    found = [data["random"][dtype][name].get(function) for name in names]
    found += [data["search"].get(dtype, {}).get(function, {}).get(name) for name in isa]
    return max((value for value in found if value is not None), default=None)


ISAS = (("x86_64_v3", "x86_64_v4"), ("x86_64_v2",), ("generic",))


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
    return markdown(["dtype", "function", "bound, tested", *map(" and ".join, ISAS), *versioned(data)], rows, 2)


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


def second_thread():
    rows = [[f"{n}", *(f"{one:g} us, {two:g} us" for one, two in pairs)] for n, *pairs in
            load("threads.json")["second_thread"]]
    return markdown(["elements", "float32: one thread, two", "float64: one thread, two"], rows, 0)


def busy():
    data = load("threads.json")
    rows = [[row["shape"], *(f"{row[key][0]}, {row[key][1]}: {ratio:.2f}" for key, ratio in zip(
        ("before", "median", "mean", "p99", "max"), row["ratios"], strict=True))] for row in data["busy"]]
    return markdown(["shape", "mean, no back-off", "median", "mean", "99th percentile", "maximum"], rows)


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


TABLES = {
    function.__name__.replace("_", "-"): function for function in (
        speed, machines, standing, softmax_table, attention_table, attention_summary, attention_calls, limits,
        notes, unavailable, accuracy, accuracy_random, accuracy_sweep, accuracy_other, second_thread, busy, scaling,
        scaling_check, scaling_parameters)
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


def chart(title, subtitle, found, clip=8):
    """Bars of the time relative to ours, a group for each row; a bar longer than `clip` is cut and says its length."""
    names = [name for name in COLOURS if any(name in times for _, _, times in found)]
    left, step, gap, scale, width = 330, 13, 12, 46, 800
    height = 106 + sum(step * len(times) + gap for _, _, times in found)
    style = ("text{font:12px system-ui,sans-serif;fill:#222}.s{font-size:11px;fill:#555}"
             ".t{font-size:15px;font-weight:600}")
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           f'role="img" aria-label="{escape(title)}">', f"<style>{style}</style>",
           f'<rect width="{width}" height="{height}" fill="#fff"/>',
           f'<text class="t" x="12" y="24">{escape(title)}</text>', f'<text x="12" y="43">{escape(subtitle)}</text>']
    x = 12
    for name in names:
        out.append(f'<rect x="{x}" y="56" width="11" height="11" fill="{COLOURS[name]}"/>'
                   f'<text x="{x + 16}" y="66">{name}</text>')
        x += 34 + 7 * len(name)
    out.append(f'<line x1="{left + scale}" x2="{left + scale}" y1="78" y2="{height - 18}" stroke="#999"/>')
    y = 86
    for label, note, times in found:
        middle = y + step * len(times) / 2
        out.append(f'<text x="{left - 10}" y="{middle - 2:g}" text-anchor="end">{escape(label)}</text>')
        out.append(f'<text class="s" x="{left - 10}" y="{middle + 12:g}" text-anchor="end">{escape(note)}</text>')
        for name in (name for name in names if name in times):
            length = scale * min(times[name], clip)
            out.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{step - 2}" fill="{COLOURS[name]}"/>'
                       f'<text class="s" x="{left + length + 5:.1f}" y="{y + 10}">{times[name]:.3g}'
                       f"{' (bar cut)' if times[name] > clip else ''}</text>")
            y += step
        y += gap
    out.append(f'<text class="s" x="{left + scale}" y="{height - 5}" text-anchor="middle">1 = fastsoftmax</text>')
    return "\n".join([*out, "</svg>", ""])


SUBTITLE = "One thread; time of a call relative to fastsoftmax. Shorter is faster; below 1 is faster than fastsoftmax."


def plot_speed():
    found = groups([select(file, function, name)[0] for file, function, name in README_SPEED[1:]])
    for _, _, times in found:
        times.pop("PyTorch folded", None)
    return chart("The same work takes other libraries this many times as long", SUBTITLE, found)


def plot_softmax():
    return chart("softmax, every shape measured", SUBTITLE, groups(select(SOFTMAX, "softmax")))


def plot_attention():
    rows = [row for row in select(ATTENTION) if row["dtype"] == "float32" and row["unit"] != "us"]
    return chart("Attention in float32, every shape measured", SUBTITLE, groups(rows))


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
         "scaling.svg": plot_scaling}


# --- the files


def filled(text, file):
    """The text with every marked region replaced."""
    def region(match):
        if match[1] not in TABLES:
            raise SystemExit(f"{file}: no such table: {match[1]}; there are {', '.join(TABLES)}")
        return f"<!-- begin: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- begin: (\S+) -->\n.*?<!-- end -->", region, text, flags=re.DOTALL)


def files():
    """path -> the text that it must hold."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {page: filled(page.read_text(encoding="utf-8"), page.name) for page in pages}
    return found | {ROOT / "docs" / "images" / name: draw() for name, draw in PLOTS.items()}


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
                before.splitlines(True), text.splitlines(True), str(path), "bench/results", n=0))[:20])
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    if check and stale:
        sys.exit("run python bench/report.py")


if __name__ == "__main__":
    main()
