"""The files of bench/results: `compare.py` and `accuracy.py` write them, `report.py` reads them."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def load(name):
    """A file of bench/results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def merged(old, new):
    """Results of a run in the file of earlier ones: its rows replace those of the same function, shape and threads.

    The date stays that of the first run, so that some rows measured again do not make the file the newest. A figure of
    another processor, version or number of rounds would stand under a wrong heading: SystemExit.
    """
    for key in ("cpu", "isa", "system", "python", "rounds", "versions"):
        if old[key] != new[key]:
            raise SystemExit(f"the file has {key} {old[key]}, this run {new[key]}: write to another with --json")

    def case(row):
        return row["function"], row["name"], row["threads"]

    rows = {case(row): row for row in [*old["rows"], *new["rows"]]}
    calls = {**old["calls"], **new["calls"]}
    for name in old["calls"].keys() & new["calls"].keys():
        before, after = old["calls"][name], new["calls"][name]
        errors = {dtype: max(found["errors"].get(dtype, 0.0) for found in (before, after))
                  for dtype in {**before["errors"], **after["errors"]}}
        calls[name] = {"calls": list(dict.fromkeys(before["calls"] + after["calls"])), "errors": errors}
    return {**new, "date": old["date"],
            "limits": old["limits"] | {str(key): found for key, found in new["limits"].items()},
            "rows": list(rows.values()), "unavailable": joined(old["unavailable"], new),
            "calls": calls, "notes": list(dict.fromkeys(old["notes"] + new["notes"]))}


def joined(before, new):
    """Reasons of earlier runs, without those for what this one has measured again, and its own."""
    again = {(row["name"], row["function"]) for row in new["rows"]}
    found = {}
    for item in [*before, *new["unavailable"]]:
        cases = found.setdefault((item["library"], item["why"]), {})
        for name, functions in item["cases"].items():
            kept = [function for function in functions if item not in before or (name, function) not in again]
            if kept:
                cases[name] = list(dict.fromkeys(cases.get(name, []) + kept))
    return [{"library": library, "why": why, "cases": cases} for (library, why), cases in found.items()
            if cases or why.startswith("absent")]


def save(path, data):
    """Write results with a line for each row, so that a diff shows which rows changed."""
    parts = []
    for key, value in data.items():
        text = json.dumps(value, ensure_ascii=False)
        if value and isinstance(value, list):
            text = "[\n" + ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in value) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
