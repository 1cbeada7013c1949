"""Tables and plots of README.md and docs/ hold the figures of bench/results, and name files that exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "bench" / "report.py"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCE = re.compile(r"`((?:fastsoftmax|bench|tests|\.github|\.ci)/[\w./-]+\.\w+)`")

pytestmark = pytest.mark.skipif(
    not (REPORT.exists() and (ROOT / "docs").exists()), reason="bench/ or docs/ is not in this copy of the tree")


def check(report):
    """Run report.py --check; its folder is named, since PYTHONSAFEPATH keeps Python from looking there."""
    environment = {**os.environ, "PYTHONPATH": str(report.parent)}
    return subprocess.run([sys.executable, str(report), "--check"], capture_output=True, text=True, env=environment)


def test_tables_and_plots_are_those_of_the_results():
    done = check(REPORT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_figure_edited_by_hand_is_found(tmp_path):
    """The check fails where one digit of one table differs."""
    for folder in ("bench", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md", ".json", ".svg", ".txt"}:
                copy = tmp_path / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    edited = re.sub(r"(<!-- begin: speed -->\n(?:.*\n){2}.*?)(\d)(?=\.\d\d us)", lambda m: m[1] + "9", text, count=1)
    assert edited != text
    for readme, code in ((text, 0), (edited, 1)):
        (tmp_path / "README.md").write_text(readme, encoding="utf-8")
        done = check(tmp_path / "bench" / "report.py")
        assert done.returncode == code, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_that_exist(page):
    missing = [name for name in SOURCE.findall(page.read_text(encoding="utf-8")) if not (ROOT / name).exists()]
    assert not missing
