"""The lab's report: text, page, figures and files, from results with awkward content."""

import base64
import html.parser
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fastsoftmax.lab import experiments, report

HOSTILE = '<script>alert("a & b")</script> </style> | `x` $y$ [z](w) *v* \x1b[31m\x00 \u202e \ud800 日本語 café'
LONG = "attention " * 60 + "w" * 150
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def result(**changes):
    return {
        "article": f"First paragraph. {HOSTILE}\n\n- second paragraph, {LONG}",
        "settings": {"model": {"width": 64, "layers": 2}, "seeds": [0], "none": None, "empty": [], "text": HOSTILE},
        "measured": {"losses": [[1.5, None, 0.25]], "spread": np.float32(2.5), "bad": float("nan")},
        "claims": [
            {"claim": "it holds", "measured": "0.5 of 1", "holds": "yes"},
            {"claim": HOSTILE, "measured": LONG, "holds": "partly"},
            {"claim": "it does not", "measured": "3", "holds": "no"},
        ],
        "verdict": f"Some of it. {HOSTILE}",
    } | changes


def tables(_):
    return [
        report.Table("Numbers", ["name", "count", "loss", "temperature"],
                     [["first", 128, 1.23456, 0.5], ["a longer name", 32768, None, 1.0],
                      [None, 3, float("nan"), 2.0], ["日本", 0, 12345.6, 2.0], ["x", -1, 3.4e38, 0.0]]),
        report.Table(f"Text {HOSTILE}", ["temperature", "text"], [[0.5, LONG], [1.5, HOSTILE], [2.0, "two\nlines"]]),
        report.Table("No rows", ["a", "b"], []),
        report.Table("Rows of different lengths", ["a"], [[1, "x"], [], [True]]),
    ]


def draw(read):
    one, two, three = report.figure(), report.figure(8, 3, columns=2), report.figure()
    report.curves(one.axes[0], [1, 2, 4], {"one seed": read["measured"]["losses"], "<b>": [[1, 2], [None] * 3]},
                  "step", "loss", "xy")
    report.heat(two.axes[0], [[1, None], [0.5, 0.5]], "heat", "key", "query", 0, 1)
    report.curves(two.axes[1], [], {}, "x", "y", "xy")
    report.bars(three.axes[0], ["a", "associative recall", "c"], {"first": [1, None, -2], "second": [3, 2, 1]},
                {"first": [0.1, None, 0.2], "second": [(2, 3.5), (1, 2), (1, 1)]}, "accuracy")
    return [report.Picture("curves", f"Curves {HOSTILE}", LONG, one), report.Picture("maps", "Maps", HOSTILE, two),
            report.Picture("bars", "Bars", "One sentence.", three)]


NOTHING = SimpleNamespace(TITLE="Nothing", tables=lambda _: [], draw=lambda _: [])
MODULES = {"full": SimpleNamespace(TITLE=f"Full {HOSTILE}", tables=tables, draw=draw), "empty": NOTHING,
           "single": NOTHING}
SETTINGS = {"quick": True, "note": HOSTILE}


@pytest.fixture(autouse=True, scope="module")
def made_up():
    """Three experiments: with everything, with nothing, with one claim."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "find", MODULES.__getitem__)
        yield


@pytest.fixture(scope="module")
def results():
    return {"full": result(), "empty": result(article="", claims=[], settings={}, measured={}, verdict=""),
            "single": result(claims=[{"claim": "one", "measured": "1", "holds": "yes"}])}


@pytest.fixture(scope="module")
def written(results, tmp_path_factory):
    """The folder of a report, which no test changes."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    report.write(results, folder, SETTINGS)
    return folder


class Page(html.parser.HTMLParser):
    """Reads a page; every tag must be closed in its order."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


# ---- terminal -------------------------------------------------------------------------------------------------------


def shown(results, name="full", **attributes):
    file = io.StringIO()
    for key, value in attributes.items():
        setattr(file, key, value)
    report.show(name, results[name], file)
    return file.getvalue()


def test_text_is_whole_plain_and_at_most_100_wide(results):
    text = shown(results)
    assert all(report._width(line) <= 100 for line in text.split("\n"))
    assert not any(line.endswith(" ") for line in text.split("\n"))
    assert "\033" not in text and "\x00" not in text and "\u202e" not in text and "\ud800" not in text
    for expected in ("Full", "First paragraph.", "second paragraph", "  yes     it holds", "  no      it does not",
                     "  partly  <script>", "Measured: 0.5 of 1", "Verdict: Some of it.", "(no rows)"):
        assert expected in text
    assert "(no claims)" in shown(results, "empty")


def test_columns_of_tables_are_aligned(results):
    lines = shown(results).split("\n")
    start = lines.index("Numbers") + 1
    assert lines[start:start + 7] == [
        "  name           count       loss  temperature",
        "  -------------  -----  ---------  -----------",
        "  first            128      1.235          0.5",
        "  a longer name  32768          -            1",
        "  -                  3          -            2",
        "  日本               0      12346            2",
        "  x                 -1  3.400e+38            0",
    ]


@pytest.mark.parametrize("values, digits, text", [
    ([0.665, 0.24472, 0.0900305], 4, ["0.6650", "0.2447", "0.09003"]),
    ([0.5, 1.0, 2.0], 4, ["0.5", "1", "2"]),
    ([99999.6, 1e-7, -0.0], 3, ["100000", "1.00e-07", "0.00"]),
    ([1, 1.234], 2, ["1", "1.2"]),
    ([True, False, None, "x"], 4, ["yes", "no", "-", "x"]),
])
def test_numbers_have_so_many_significant_digits(values, digits, text):
    assert report._text_of(values, digits) == text


def test_colour_only_on_a_terminal(results, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    plain, coloured = shown(results, "single"), shown(results, "single", isatty=lambda: True)
    assert "\033[" in coloured and "\033[" not in plain
    bare = re.sub(r"\033\[[\d;]*m", "", coloured)
    assert max(map(report._width, bare.split("\n"))) <= 60
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[" not in shown(results, "single", isatty=lambda: True)


def test_text_goes_to_files_that_know_ascii_only(results):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    report.show("full", results["full"], file)
    file.flush()
    assert b"Verdict" in file.buffer.getvalue()


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_are_those_named_and_no_others(written):
    assert sorted(path.name for path in written.iterdir()) == [
        "full-bars.png", "full-curves.png", "full-maps.png", "report.html", "results.json"]


def test_json_has_a_key_for_each_experiment(written, results):
    read = json.loads((written / "results.json").read_text())
    assert list(read) == list(results)
    assert read["full"]["measured"] == {"losses": [[1.5, None, 0.25]], "spread": 2.5, "bad": None}
    assert read["full"]["claims"] == results["full"]["claims"] and read["full"]["article"] == results["full"]["article"]


def test_figures_are_twice_as_dense_as_shown_and_small(written):
    for name, size in (("curves", (1280, 760)), ("maps", (1600, 600)), ("bars", (1280, 760))):
        data = (written / f"full-{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG") and struct.unpack(">II", data[16:24]) == size and len(data) <= 150_000


def test_a_large_figure_is_made_smaller():
    pytest.importorskip("matplotlib")
    figure = report.figure()
    report.heat(figure.axes[0], np.random.default_rng(0).random((300, 400)), "noise", "x", "y")
    assert len(report.png(figure)) <= 150_000


def test_the_same_results_give_the_same_files(written, results, tmp_path):
    report.write(results, tmp_path / "again", SETTINGS)
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_experiments_written_one_after_another_give_the_same_files(written, results, tmp_path, monkeypatch):
    """Each experiment's figures are drawn once."""
    drawn, sections = [], {}
    monkeypatch.setattr(report, "png", lambda figure, png=report.png: drawn.append(figure) or png(figure))
    for count in range(1, len(results) + 1):
        report.write(dict(list(results.items())[:count]), tmp_path, SETTINGS, sections)
    assert len(drawn) == len(list(written.glob("*.png")))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in written.iterdir()}


def test_a_folder_that_cannot_be_written_is_one_clear_line(results, tmp_path):
    (tmp_path / "file").write_text("")
    for call in (lambda folder: report.write(results, folder, {}), lambda folder: report.pages(results, folder)):
        for folder in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(report.ReportError, match="cannot make the folder .*file") as caught:
                call(folder)
            assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_one_clear_line(results, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(report.ReportError, match="cannot write .*results.json: Permission denied"):
            report.write({"empty": results["empty"]}, tmp_path, {})
    finally:
        tmp_path.chmod(0o700)


def test_a_file_stays_whole_when_writing_fails(results, tmp_path, monkeypatch):
    results = {"empty": results["empty"]}
    report.write(results, tmp_path, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(report.ReportError, match="No space left on device"):
        report.write(results, tmp_path, {"changed": True})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'python -m pip install "fastsoftmax\[lab\]"'):
        report.figure()


def test_matplotlib_is_loaded_only_to_draw_and_pyplot_never():
    pytest.importorskip("matplotlib")
    code = """
import sys
from fastsoftmax.lab import report
assert "matplotlib" not in sys.modules
import matplotlib
def settings():
    names = set(matplotlib.rcParams) - {"backend"}      # to read it loads pyplot
    return {name: matplotlib.rcParams[name] for name in names}
before = settings()
report.png(report.figure())
assert before == settings()
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- page -----------------------------------------------------------------------------------------------------------


def test_page_is_well_formed_and_loads_nothing(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and not page.open
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith(("#", "data:")), tag
        assert not any(name.startswith("on") for name in attributes)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert links == {"full", "empty", "single"} and links <= set(identifiers)
    assert ("html", {"lang": "en"}) in page.tags and {"title", "details", "blockquote", "nav"} <= tags
    assert any(a.get("name") == "viewport" for tag, a in page.tags if tag == "meta")


def test_page_shows_all_texts_and_counts_the_claims(written, results):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    text = " ".join("".join(page.text).split())
    for expected in ("Of 4 claims put to the test, 2 held, 1 held in part, 1 did not hold.", "it does not",
                     '<script>alert("a & b")</script> </style>', "second paragraph", "3.400e+38", "no rows",
                     "model.width", LONG):
        assert expected in text
    for name in ("yes", "no", "partly"):
        assert report.MARKS[name] in page.text
    assert not set(text) & {"\x00", "\x1b", "\u202e", "\ud800"}


def test_embedded_figures_are_the_files(written):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    images = [a for tag, a in page.tags if tag == "img"]
    data = [base64.b64decode(a["src"].removeprefix("data:image/png;base64,"), validate=True) for a in images]
    assert data == [(written / f"full-{name}.png").read_bytes() for name in ("curves", "maps", "bars")]
    assert all(a["alt"] for a in images) and [a["width"] for a in images] == ["640", "800", "640"]


def opened(page, folder):
    """Chromium's answer to a page: what it shows on stdout, its complaints on stderr."""
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on PATH")
def test_page_opens_in_a_browser_without_complaint(written, tmp_path):
    done = opened(written / "report.html", tmp_path)
    assert done.returncode == 0 and "Claim by claim" in done.stdout and done.stdout.count("<section") == 3
    assert "CONSOLE" not in done.stderr


# ---- Markdown -------------------------------------------------------------------------------------------------------


def test_pages_link_the_figures_that_were_written(written, results, tmp_path):
    shutil.copytree(written, tmp_path / "images")
    report.pages(results, tmp_path / "pages", images="../images")
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["empty.md", "full.md", "single.md"]
    text = (tmp_path / "pages" / "full.md").read_text(encoding="utf-8")
    links = re.findall(r"```\{figure\} (.*)", text)
    assert len(links) == 3 and all((tmp_path / "pages" / link).is_file() for link in links)
    assert "| it holds | 0.5 of 1 | yes |" in text and "| first | 128 | 1.235 | 0.5 |" in text
    assert "> \\- second paragraph" in text


def test_pages_are_read_by_sphinx_as_they_were_meant(results):
    """MyST finds tables, figures and a quotation, and nothing in the hostile text."""
    pytest.importorskip("matplotlib")
    myst = pytest.importorskip("myst_parser.parsers.docutils_")
    from docutils.core import publish_doctree

    text = report._markdown("full", results["full"], draw(results["full"]), tables(results["full"]), "images")
    messages = io.StringIO()
    tree = publish_doctree(text, parser=myst.Parser(), settings_overrides={
        "warning_stream": messages, "myst_enable_extensions": ["dollarmath", "deflist"]})
    counts = {name: len(list(tree.findall(lambda node, name=name: node.tagname == name)))
              for name in ("table", "figure", "block_quote", "reference", "raw", "math", "literal", "list_item")}
    assert messages.getvalue() == ""
    assert counts == {"table": 5, "figure": 3, "block_quote": 1, "reference": 0, "raw": 0, "math": 0, "literal": 0,
                      "list_item": 0}
    assert '<script>alert("a & b")</script>' in tree.astext()
