"""The files of bench/results: `compare.py` and `accuracy.py` write them, `report.py` reads them."""

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def load(name):
    """A file of bench/results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


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
