"""Writes the lab's results into pages: figures, tables and claims, from bench/results/lab.json, before each build.

The results are those of `python -m fastsoftmax.lab --out DIR`, whose DIR/results.json that file is.
"""

import json
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent
RESULTS = DOCS.parent / "bench" / "results" / "lab.json"
MARKS = {"yes": "yes", "partly": "partly", "no": "**no**"}


def overview(results):
    """A table of every claim and whether it held."""
    from fastsoftmax.lab import experiments

    lines = ["| experiment | claim | holds |", "| --- | --- | --- |"]
    for name, result in results.items():
        link = f"[{experiments.find(name).TITLE}]({name}.md)"
        for claim in result["claims"]:
            lines.append(f"| {link} | {claim['claim'].replace('|', '/')} | {MARKS[claim['holds']]} |")
            link = ""
    return "\n".join(lines) + "\n"


def write(app):
    """The PNGs and fragments that the pages of docs/lab include, in docs/generated/lab."""
    from fastsoftmax.lab import report

    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    folder = DOCS / "generated" / "lab"
    report.write(results, folder, {})
    report.pages(results, folder, images="../generated/lab")
    (folder / "index.md").write_text(overview(results), encoding="utf-8")


def setup(app):
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
