"""The report: tables on the terminal, and with a folder report.html, PNG figures and results.json.

`show` prints one experiment; `write` and `pages` write all of them, as one HTML page or as Markdown for docs/. All
read what an experiment returned as it is read back from JSON, and ask its module for tables and figures. `figure`,
`curves`, `bars` and `heat` draw in one style; matplotlib is imported where something is drawn, and nowhere else.
"""

import base64
import html
import io
import json
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastsoftmax.lab import experiments, jobs

# Okabe and Ito's colours, which colour-blind readers can tell apart; each also has its own dash and marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (8, 3, 2, 3, 2, 3)))
MARKERS = "osD^vPXp<>*h"
HATCHES = ("", "///", "...", "\\\\\\", "xxx")

COLUMNS = 100           # of the terminal
PIXELS = 100            # of the page for an inch of a figure; its PNG has twice as many
LARGEST = 150_000       # bytes of a PNG

HOLDS = ("yes", "partly", "no")
MARKS = {"yes": "✓", "partly": "~", "no": "×"}


class ReportError(jobs.LabError):
    """The report could not be written; the message is one line."""


@dataclass
class Table:
    """Rows of text and numbers under a heading; numbers are shown with `digits` significant digits."""

    title: str
    header: list[str]
    rows: list[list[Any]]
    digits: int = 4


@dataclass
class Picture:
    """A figure with a name for its file and a caption of one sentence: the claim, and what was measured."""

    name: str
    title: str
    caption: str
    figure: Any = field(repr=False)     # of matplotlib


def show(name, result, file=None):
    """Prints one experiment: the article, tables, claims and verdict.

    Parameters
    ----------
    name : str
    result : dict
        What the experiment's `run` returned.
    file : text file, optional
        sys.stdout by default. Colour is used only on a terminal.
    """
    file = file or sys.stdout
    terminal = file.isatty()
    width = max(40, min(COLUMNS, shutil.get_terminal_size().columns)) if terminal else COLUMNS
    paint = _paint if terminal and not os.environ.get("NO_COLOR") else lambda text, style: text
    module, result = experiments.find(name), jobs.plain(result)

    lines = [paint(line, "bold") for line in _wrap(module.TITLE, width)]
    lines += ["=" * max(map(_width, _wrap(module.TITLE, width))), ""]
    lines += [("  " + line).rstrip() for line in _wrap(result["article"], width - 2)]
    for table in module.tables(result):
        lines += ["", *(paint(line, "bold") for line in _wrap(table.title, width)), *_aligned(table, width)]
    lines += ["", *_claims(result["claims"], width, paint)]
    first, *rest = _wrap("Verdict: " + result["verdict"], width)
    lines += ["", paint("Verdict:", "bold") + first.removeprefix("Verdict:"), *rest, ""]
    encoding = getattr(file, "encoding", None) or "utf-8"
    print("\n".join(lines).encode(encoding, "replace").decode(encoding), file=file, flush=True)


def write(results, folder, settings, sections=None):
    """Writes results.json, <experiment>-<picture>.png and report.html.

    Parameters
    ----------
    results : dict of str to dict
        What each experiment returned, by its name.
    folder : path
        Made if it is not there.
    settings : dict
        How the lab was run; shown under the summary.
    sections : dict of str to str, optional
        The HTML of experiments that an earlier call wrote to the same folder. Their figures are not drawn again; what
        is drawn is added.
    """
    folder, results = _folder(folder), jobs.plain(results)
    sections = {} if sections is None else sections
    _save(folder / "results.json", results)         # first: it needs no matplotlib
    for name, result in results.items():
        if name in sections:
            continue
        module = experiments.find(name)
        pictures = [(picture, png(picture.figure)) for picture in module.draw(result)]
        for picture, data in pictures:
            _save(folder / f"{name}-{picture.name}.png", data)
        sections[name] = _section(name, module.TITLE, result, pictures, module.tables(result))
    page = _page(results, [sections[name] for name in results], jobs.plain(settings))
    _save(folder / "report.html", page.encode())


def pages(results, folder, images="."):
    """Writes <experiment>.md, a part of a page in MyST Markdown, for each experiment.

    Parameters
    ----------
    results : dict of str to dict
        What each experiment returned, by its name.
    folder : path
        Made if it is not there.
    images : str
        Where the PNGs that `write` makes are, seen from the page.
    """
    folder, results = _folder(folder), jobs.plain(results)
    for name, result in results.items():
        module = experiments.find(name)
        text = _markdown(name, result, module.draw(result), module.tables(result), images)
        _save(folder / f"{name}.md", text.encode())


# ---- files ----------------------------------------------------------------------------------------------------------


def _folder(path):
    """The folder, made if it is not there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"cannot make the folder {path}: {error.strerror or error}") from error
    return Path(path)


def _save(path, value):
    """Writes bytes, or JSON of anything else, to a file that is either whole or as it was before."""
    try:
        if isinstance(value, bytes):
            with jobs.whole(path) as file:
                file.write(value)
        else:
            jobs.save_json(path, value)
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror or error}") from error


# ---- text and numbers -----------------------------------------------------------------------------------------------

# Characters that would move the cursor, turn the direction of writing or cannot be encoded, as visible ones.
VISIBLE = {code: chr(0x2400 + code) for code in range(32)} | {9: " ", 10: "\n", 127: "␡"}
VISIBLE |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF], "\ufffd")
VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def _clean(value):
    return str(value).translate(VISIBLE)


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(x, digits, zeros):
    """x with so many significant digits; integers in full; zeros : whether those at the end are kept."""
    if isinstance(x, int):
        return str(x)
    text = f"{x + 0.0:{'#' if zeros else ''}.{digits}g}"
    if "e" in text and 1 <= abs(x) < 1e7:
        text = f"{x:.0f}"
    return text.removesuffix(".")


def _text_of(values, digits=4):
    """Values as text, formatted alike: 0.5, 1, 2 stay short, measured numbers all keep their digits."""
    zeros = any(isinstance(x, float) and float(f"{x:.2g}") != x for x in values)
    return ["-" if x is None else {True: "yes", False: "no"}[x] if isinstance(x, bool)
            else _number(x, digits, zeros) if _is_number(x) else _clean(x) for x in values]


def _grid(table):
    """The table as text: header, rows, and whether each column is one of numbers, to be aligned right."""
    rows = jobs.plain(table.rows)
    count = max([len(table.header), *map(len, rows)])
    rows = [row + [None] * (count - len(row)) for row in rows]
    header = [_clean(x) for x in table.header] + [""] * (count - len(table.header))
    columns = list(zip(*rows, strict=True)) if rows else [()] * count
    right = [2 * sum(map(_is_number, x)) >= max(1, sum(v is not None for v in x)) for x in columns]
    return header, list(zip(*(_text_of(x, table.digits) for x in columns), strict=True)), right


def _settings(value, name=""):
    """Yields (name, text) of settings: dotted names for what is nested, lists in a line."""
    if isinstance(value, dict) and value:
        for key, x in value.items():
            yield from _settings(x, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and not any(isinstance(x, dict | list) for x in value):
        yield _clean(name), ", ".join(_text_of(value)) or "-"
    else:
        yield _clean(name), _clean(json.dumps(value, ensure_ascii=False)) if isinstance(value, dict | list) \
            else _text_of([value])[0]


def _count(results):
    """A sentence: how many claims there are, and how many hold."""
    holds = [claim["holds"] for result in results.values() for claim in result["claims"]]
    if not holds:
        return "No claim was put to the test."
    found = ", ".join(f"{holds.count(word)} {text}" for word, text in zip(
        HOLDS, ("held", "held in part", "did not hold"), strict=True))
    return f"Of {len(holds)} claim{'s' * (len(holds) != 1)} put to the test, {found}."


# ---- terminal -------------------------------------------------------------------------------------------------------


def _paint(text, style):
    codes = {"bold": "1", "yes": "1;36", "partly": "1;33", "no": "1;31"}
    return f"\033[{codes[style]}m{text}\033[0m" if style in codes else text


def _width(text):
    """Columns that the text takes on a terminal: two for East Asian wide characters, none for accents put over."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF"
               else 1 for c in text)


def _wrap(text, width):
    """Lines of at most that width, broken at spaces, in words only where one is too long."""
    lines = []
    for paragraph in _clean(text).split("\n"):
        line = ""
        for word in paragraph.split():
            if line and _width(line) + 1 + _width(word) > width:
                lines.append(line)
                line = ""
            line = f"{line} {word}" if line else word
            while _width(line) > width:
                end = len(line)
                while end > 1 and _width(line[:end]) > width:
                    end -= 1
                lines.append(line[:end])
                line = line[end:]
        lines.append(line)
    return lines


def _aligned(table, width):
    """Lines of the table, numbers to the right; cells of text are wrapped if it would be too wide."""
    header, rows, right = _grid(table)
    if not rows:
        return ["  (no rows)"]
    widths = [max(_width(line) for cell in column for line in cell.split("\n"))
              for column in zip(header, *rows, strict=True)]
    fixed = [max([_width(row[i]) for row in rows]) if right[i] else 8 for i in range(len(widths))]
    while sum(widths) + 2 * len(widths) > width:
        loose = [i for i, w in enumerate(widths) if w > max(fixed[i], 4)]
        if not loose:
            break
        widths[max(loose, key=lambda i: widths[i])] -= 1

    def lines(row):
        cells = [_wrap(cell, w) for cell, w in zip(row, widths, strict=True)]
        for k in range(max(map(len, cells))):
            parts = [cell[k] if k < len(cell) else "" for cell in cells]
            yield "  " + "  ".join(" " * (w - _width(x)) + x if r else x + " " * (w - _width(x))
                                   for x, w, r in zip(parts, widths, right, strict=True)).rstrip()

    rule = "  " + "  ".join("-" * w for w in widths)
    return [*lines(header), rule, *(line for row in rows for line in lines(row))]


def _claims(claims, width, paint):
    """Lines of the claims, each under whether it holds."""
    lines = [paint("Does it hold?", "bold")]
    for claim in claims:
        holds = _clean(claim["holds"])
        first, *rest = _wrap(claim["claim"], width - 10)
        lines.append(f"  {paint(holds, holds)}{' ' * (6 - len(holds))}  {first}")
        lines += [" " * 10 + line for line in rest + _wrap("Measured: " + claim["measured"], width - 10)]
    return lines if claims else [*lines, "  (no claims)"]


# ---- HTML -----------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #56606b; --line: #d5dbe1; --paper: #ffffff;
  --shade: #f3f6f8; --link: #0b5a9d; --yes: #00639c; --partly: #8a5a00; --no: #b34700; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ea; --soft: #a5afb9; --line: #3a424b; --paper: #14171b; --shade: #1e2328; --link: #7cbcf2;
    --yes: #6fc0f5; --partly: #f0b849; --no: #ff9257; }
  figure img { filter: brightness(.9); } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 64rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  overflow-wrap: break-word; }
a { color: var(--link); text-underline-offset: .15em; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
h1, h2, h3 { line-height: 1.25; text-wrap: balance; }
h1 { margin: 0 0 .5rem; font-size: 2rem; }
h2 { margin: 0 0 1rem; font-size: 1.5rem; }
h3 { margin: 2rem 0 .75rem; font-size: 1.1rem; }
p, ol, ul, blockquote { margin: 0 0 1rem; max-width: 46rem; }
.lead { font-size: 1.1rem; }
section { margin-top: 3.5rem; padding-top: 2rem; border-top: 1px solid var(--line); }
nav { margin-bottom: 2.5rem; }
nav ol { padding-left: 1.5rem; }
nav li { margin-bottom: .5rem; }
nav li span { color: var(--soft); }
nav a, .summary a { font-weight: 600; }
blockquote { padding: .1rem 0 .1rem 1rem; border-left: 3px solid var(--line); color: var(--soft); font-style: italic; }
blockquote p:last-child { margin: 0; }
.verdict { padding: .75rem 1rem; background: var(--shade); border-radius: .4rem; }
.holds { display: inline-flex; align-items: center; gap: .4rem; font-weight: 600; white-space: nowrap; }
.mark { display: inline-block; width: 1.3em; height: 1.3em; border: .13em solid; text-align: center;
  font: bold .85rem/1.04em "DejaVu Sans", system-ui, sans-serif; }
.yes { color: var(--yes); } .yes .mark { border-radius: 50%; }
.partly { color: var(--partly); } .partly .mark { border-radius: 50% 0; }
.no { color: var(--no); } .no .mark { border-radius: 0; }
.claims { list-style: none; padding: 0; }
.claims li { display: grid; grid-template-columns: 5.5rem 1fr; gap: .25rem .75rem; padding: .75rem 0;
  border-top: 1px solid var(--line); }
.claims p { margin: 0; }
.claims .seen { grid-column: 2; color: var(--soft); }
.scroll { max-width: 100%; overflow-x: auto; margin-bottom: 1.5rem; }
table { border-collapse: collapse; font-size: .92rem; }
caption { padding-bottom: .5rem; text-align: left; font-weight: 600; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
thead th { border-bottom: 2px solid var(--line); color: var(--soft); font-weight: 600; vertical-align: bottom; }
td { max-width: 34rem; white-space: pre-line; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
thead .n { white-space: normal; }
.summary { width: 100%; }
.summary td:first-child { padding-left: .75rem; }
.summary tbody th { width: 11rem; }
.summary tbody + tbody { border-top: 2px solid var(--line); }
figure { margin: 0 0 2rem; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .4rem; }
figcaption { margin-top: .5rem; max-width: 46rem; font-size: .92rem; color: var(--soft); }
figcaption b { color: var(--ink); }
details { margin-bottom: 1rem; }
summary { margin-bottom: .75rem; cursor: pointer; color: var(--link); font-weight: 600; }
details td { overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  body { padding-top: 1.5rem; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; }
  section { margin-top: 2.5rem; padding-top: 1.5rem; }
  .summary, .summary tbody, .summary tr, .summary th, .summary td { display: block; width: auto; max-width: none; }
  .summary thead { display: none; }
  .summary th, .summary td, .summary td:first-child { padding: .15rem 0; border: 0; }
  .summary tbody th { padding: .75rem 0 .25rem; font-size: 1rem; }
  .summary tr { padding-bottom: .6rem; }
  .summary tbody + tbody { border-top: 1px solid var(--line); }
  .summary .seen { color: var(--soft); }
  .summary .seen::before { content: "Measured: "; }
  .claims li { grid-template-columns: 1fr; }
  .claims .seen { grid-column: 1; } }
@media print {
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  a { color: inherit; }
  section { break-before: page; margin: 0; padding: 0; border: 0; }
  h2, h3, caption { break-after: avoid; }
  figure, tr, .claims li { break-inside: avoid; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""


def _page(results, sections, settings):
    """The HTML page around the experiments. The policy lets nothing be loaded or run, whatever stands in the text."""
    titles = {name: _escape(experiments.find(name).TITLE) for name in results}
    contents = "".join(f'<li><a href="#{_escape(name)}">{titles[name]}</a><br><span>{_escape(result["verdict"])}'
                       f"</span></li>\n" for name, result in results.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>fastsoftmax lab: what softmax in attention is for</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>What softmax in attention is for</h1>
<p class="lead">Common claims about softmax in attention, put to the test on one machine by
<code>python -m fastsoftmax.lab</code>. {_count(results)}</p>
</header>
<main>
<nav aria-label="Contents">
<ol>
{contents}</ol>
</nav>
<h2>Claim by claim</h2>
{_summary(results, titles)}
{_details("How the lab was run", settings)}
{"".join(sections)}</main>
</body>
</html>
"""


def _summary(results, titles):
    """The table of all claims."""
    bodies = []
    for name, result in results.items():
        claims = result["claims"]
        heading = (f'<th scope="rowgroup" rowspan="{max(1, len(claims))}"><a href="#{_escape(name)}">{_escape(name)}'
                   "</a></th>")
        rows = [f'<td>{_escape(x["claim"])}</td><td class="seen">{_escape(x["measured"])}</td><td>{_holds(x)}</td>'
                for x in claims] or ['<td colspan="3">no claims</td>']
        bodies.append(f"<tbody>\n<tr>{heading}" + "</tr>\n<tr>".join(rows) + "</tr>\n</tbody>\n")
    return f"""<div class="scroll"><table class="summary">
<thead><tr><th scope="col">Experiment</th><th scope="col">Claim</th><th scope="col">Measured</th>
<th scope="col">Verdict</th></tr></thead>
{"".join(bodies)}</table></div>"""


def _section(name, title, result, pictures, tables):
    """One experiment; pictures : list of (Picture, bytes of its PNG)."""
    claims = "".join(f'<li>{_holds(x)}<p>{_escape(x["claim"])}</p><p class="seen">Measured: {_escape(x["measured"])}'
                     '</p></li>\n'
                     for x in result["claims"])
    article = "".join(f"<p>{_escape(text)}</p>" for text in _paragraphs(result["article"]))
    parts = [f"<blockquote>{article}</blockquote>",
             f'<p class="verdict"><b>Verdict.</b> {_escape(result["verdict"])}</p>',
             f'<h3>Claims</h3>\n<ol class="claims">\n{claims}</ol>' if claims else "",
             "<h3>Figures</h3>" if pictures else "",
             *(_figure(picture, data) for picture, data in pictures),
             "<h3>Tables</h3>" if tables else "",
             *map(_table, tables),
             _details("Settings of this experiment", result.get("settings", {}))]
    name, title = _escape(name), _escape(title)
    return (f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n'
            + "\n".join(filter(None, parts)) + "\n</section>\n")


def _figure(picture, data):
    width, height = (round(PIXELS * x) for x in picture.figure.get_size_inches())
    image = base64.b64encode(data).decode()
    return (f'<figure><img src="data:image/png;base64,{image}" alt="{_escape(picture.title)}" width="{width}" '
            f'height="{height}">\n<figcaption><b>{_escape(picture.title)}.</b> {_escape(picture.caption)}'
            "</figcaption></figure>")


def _table(table):
    header, rows, right = _grid(table)
    style = [' class="n"' if x else "" for x in right]
    head = "".join(f'<th scope="col"{s}>{_escape(x)}</th>' for x, s in zip(header, style, strict=True))
    body = "".join("<tr>" + "".join(f"<td{s}>{_escape(x)}</td>" for x, s in zip(row, style, strict=True)) + "</tr>\n"
                   for row in rows) or f'<tr><td colspan="{max(1, len(header))}">no rows</td></tr>\n'
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{_escape(table.title)}"><table>\n'
            f"<caption>{_escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n"
            "</table></div>")


def _details(title, settings):
    rows = "".join(f'<tr><th scope="row">{_escape(name)}</th><td>{_escape(text)}</td></tr>\n'
                   for name, text in _settings(settings) if name)
    return f"<details><summary>{title}</summary>\n<table><tbody>\n{rows}</tbody></table>\n</details>" if rows else ""


def _holds(claim):
    """The word and a mark whose shape says the same."""
    word = claim["holds"]
    style = word if word in MARKS else "other"
    return (f'<span class="holds {style}"><span class="mark" aria-hidden="true">{MARKS.get(word, "?")}</span> '
            f"{_escape(word)}</span>")


def _escape(value):
    return html.escape(_clean(value))


def _paragraphs(text):
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", _clean(text).strip())]


# ---- Markdown -------------------------------------------------------------------------------------------------------


def _markdown(name, result, pictures, tables, images):
    """One experiment as part of a page, without a heading."""
    claims = Table("", ["Claim", "Measured", "Verdict"],
                   [[x["claim"], x["measured"], x["holds"]] for x in result["claims"]])
    article = [re.sub(r"^(\d*)([-+=%:().])", r"\1\\\2", _mark(text)) for text in _paragraphs(result["article"])]
    parts = ["\n>\n".join(f"> {text}" for text in article),      # one that begins like a list begins with a backslash
             f"**Verdict.** {_mark(result['verdict'])}"]
    parts += [_pipes(claims)] if claims.rows else []
    for picture in pictures:
        parts.append(f"```{{figure}} {images}/{name}-{picture.name}.png\n"
                     f":alt: {json.dumps(_clean(picture.title), ensure_ascii=False)}\n"
                     f":width: {round(PIXELS * picture.figure.get_figwidth())}px\n\n"
                     f"**{_mark(picture.title)}.** {_mark(picture.caption)}\n```")
    for table in tables:
        parts += [f"**{_mark(table.title)}**", _pipes(table)]
    return "\n\n".join(parts) + "\n"


def _pipes(table):
    header, rows, right = _grid(table)
    rule = ["--:" if x else ":--" for x in right]
    lines = [[_mark(x) for x in header], rule, *([_mark(x) for x in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mark(value):
    """Text in one line, in which Markdown finds nothing to interpret."""
    return re.sub(r"([\\`*_{}\[\]<>$|~&#^@])", r"\\\1", " ".join(_clean(value).split()))


# ---- figures --------------------------------------------------------------------------------------------------------


def caption(claim):
    """A caption from one of an experiment's claims."""
    return f"Claimed: {claim['claim'][0].lower()}{claim['claim'][1:-1]}; measured: {claim['measured']}"


def figure(width=6.4, height=3.8, columns=1, rows=1):
    """A matplotlib figure in the style of the report, with its axes in `figure.axes`, row after row.

    Parameters
    ----------
    width, height : float
        Of the whole, in inches; 6.4 is half as wide as the page, and what a phone shows at half the size.
    columns, rows : int
    """
    _need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure((width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(made)
    made.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    for axis in made.subplots(rows, columns, squeeze=False).flat:
        axis.set_facecolor("white")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#8a939c")
        axis.tick_params(labelsize=11, color="#8a939c", labelcolor="#333333")
        axis.grid(True, color="#e3e7ea", linewidth=0.8)
        axis.set_axisbelow(True)
    return made


def curves(axis, x, series, xlabel, ylabel, log=""):
    """The mean over seeds as a line, from the least to the largest shaded.

    Parameters
    ----------
    axis : of matplotlib
    x : list of numbers
    series : dict of str to list of list
        By label, for each seed its values at x; None where there is none, which leaves a gap.
    log : "", "x", "y" or "xy"
        The axes that are logarithmic.
    """
    x = np.asarray(x, float)
    for i, (label, seeds) in enumerate(series.items()):
        values = _seeds(seeds, x.size, positive="y" in log)
        mean, low, high = (getattr(values, name)(0).filled(np.nan) for name in ("mean", "min", "max"))
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(x, mean, color=colour, linestyle=DASHES[i % len(DASHES)], linewidth=2, label=str(label),
                  marker=MARKERS[i % len(MARKERS)], markersize=6, markevery=_marked(mean, i), markeredgecolor="white",
                  markeredgewidth=0.6)
        axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    for name in log:
        if np.any(getattr(axis.dataLim, f"interval{name}") > 0) and np.isfinite(axis.dataLim.get_points()).all():
            _logarithmic(axis, name, x)         # nothing drawn has no logarithm
    _finish(axis, xlabel, ylabel, len(series))


def bars(axis, labels, series, errors=None, ylabel=""):
    """Bars in groups, one group for each of `labels`, one colour and hatch for each of `series`.

    Parameters
    ----------
    axis : of matplotlib
    labels : list of str
    series : dict of str to list
        By label of the series, a value for each group; None where there is none.
    errors : dict of str to list, optional
        For the same values: half the length of a line through the end of the bar, or the pair (least, largest) that it
        joins, or None.
    """
    width = 0.8 / max(1, len(series))
    for i, (label, values) in enumerate(series.items()):
        values = np.asarray(values, float)
        place = np.arange(values.size) + width * (i - (len(series) - 1) / 2)
        axis.bar(place, values, 0.92 * width, color=COLOURS[i % len(COLOURS)], label=str(label), edgecolor="white",
                 linewidth=0, hatch=HATCHES[i % len(HATCHES)])
        for at, value, error in zip(place, values, (errors or {}).get(label) or [], strict=False):
            if error is not None and np.isfinite(value):
                ends = error if isinstance(error, list | tuple) else (value - error, value + error)
                axis.errorbar(at, value, [[max(0, value - ends[0])], [max(0, ends[1] - value)]], color="#222222",
                              capsize=3, linewidth=1.2)
    axis.axhline(0, color="#8a939c", linewidth=0.8)
    _name_groups(axis, [str(label) for label in labels])
    axis.grid(False, axis="x")
    _finish(axis, "", ylabel, 1)
    if len(series) > 1:
        _legend_above(axis, [str(label) for label in series])


def heat(axis, matrix, title, xlabel, ylabel, low=None, high=None):
    """A matrix as colours, row 0 at the top; grey where a value is None.

    Parameters
    ----------
    low, high : float, optional
        What the ends of the scale stand for; by default the least and the largest value. Maps that are compared should
        have the same.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    values = np.ma.masked_invalid(np.array(matrix, float, ndmin=2))
    shades = colormaps["viridis"].with_extremes(bad="#d0d4d8")
    image = axis.imshow(values, cmap=shades, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    for line in (axis.xaxis, axis.yaxis):
        line.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    bar = axis.figure.colorbar(image, ax=axis, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=10, color="#8a939c", labelcolor="#333333")
    axis.set_title(title, fontsize=12)
    _finish(axis, xlabel, ylabel, 1)


def png(drawn):
    """The bytes of a figure's PNG: twice as dense as the page shows it, less only if the file would be too large."""
    from PIL import Image  # which matplotlib requires

    for density in (PIXELS * factor for factor in (2, 1.6, 1.3, 1, 0.7)):
        file = io.BytesIO()
        drawn.savefig(file, format="png", dpi=density, facecolor="white", metadata={"Software": None})
        if len(file.getvalue()) > LARGEST:
            image = Image.open(file).convert("RGB").quantize(256)
            image.save(file := io.BytesIO(), "PNG", optimize=True, dpi=(density, density))
        if len(file.getvalue()) <= LARGEST:
            break
    return file.getvalue()


def _need_matplotlib():
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError('figures need matplotlib: python -m pip install "fastsoftmax[lab]"') from error


def _seeds(seeds, count, positive):
    """A masked array (seeds, count): what is missing, not finite or, if positive, not above 0 is masked."""
    if seeds and not isinstance(seeds[0], list | tuple | np.ndarray):
        seeds = [seeds]         # one seed
    values = np.full((max(1, len(seeds)), count), np.nan)
    for row, seed in zip(values, seeds, strict=False):
        row[:len(seed)] = np.asarray(seed, float)
    values = np.ma.masked_invalid(values)
    return np.ma.masked_less_equal(values, 0) if positive else values


def _marked(mean, i):
    """Indices that get a marker: about ten, other ones for each series, and points without a neighbour."""
    there = np.pad(np.isfinite(mean), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]
    every = max(1, mean.size // 10)
    return sorted({*range(i * every // 4 % every, mean.size, every), *np.flatnonzero(alone).tolist()})


def _logarithmic(axis, name, x):
    """Makes axis "x" or "y" logarithmic, its ticks plain numbers; lengths that are powers of 2 are ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    line = axis.xaxis if name == "x" else axis.yaxis
    two = name == "x" and x.size and np.all(np.log2(np.maximum(x, 0.5)) % 1 == 0)
    getattr(axis, f"set_{name}scale")("log", base=2 if two else 10)
    low, high = sorted(line.get_view_interval())
    if not two and high < 100 * low:        # two powers of ten or fewer would be too few ticks
        line.set_major_locator(LogLocator(10, (1, 2, 5)))
    line.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1e6 else f"{value:.0e}"))
    line.set_minor_formatter(NullFormatter())


def _name_groups(axis, labels):
    """Labels under the groups of bars, in lines between words; slanted where a word is wider than its group."""
    room = max(1, int(11 * _size(axis)[0] / max(1, len(labels))))      # in letters
    if max((len(word) for label in labels for word in label.split()), default=0) > room:
        axis.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor")
    else:
        axis.set_xticks(range(len(labels)), [textwrap.fill(label, room) for label in labels])
    axis.tick_params(axis="x", length=0)


def _size(axis):
    """Width and height of the axes, in inches, about: the layout is made when the figure is drawn."""
    grid = axis.get_subplotspec().get_gridspec()
    return axis.figure.get_size_inches() / (grid.ncols, grid.nrows) - 0.9


def _legend_above(axis, labels):
    """A legend between the bars and the top, in as many columns as there is place for."""
    width, height = _size(axis)
    across = max(1, int(width // (0.6 + 0.09 * max(map(len, labels)))))
    taken = min(0.6, (0.15 + 0.22 * -(-len(labels) // across)) / height)
    low, high = axis.get_ylim()
    axis.set_ylim(low, low + (high - low) / (1 - taken))
    axis.legend(loc="upper left", ncols=min(across, len(labels)), fontsize=11, framealpha=0.85, edgecolor="none",
                columnspacing=1.2)


def _finish(axis, xlabel, ylabel, count):
    axis.set_xlabel(xlabel, fontsize=12, color="#333333")
    axis.set_ylabel(ylabel, fontsize=12, color="#333333")
    if count > 1:
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if count > 4 else {}
        axis.legend(fontsize=11, framealpha=0.85, edgecolor="none", **beside)
