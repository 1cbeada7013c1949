"""The examples in docstrings and in the README do what they show."""

import doctest
import re
from pathlib import Path

import pytest

import fastsoftmax
from fastsoftmax import reference

README = Path(__file__).parent.parent / "README.md"
DOCUMENTED = [
    (module, name)
    for module in (fastsoftmax, reference)
    for name in module.__all__
    if callable(getattr(module, name))
]


def readme_blocks():
    """The README's python blocks, in order."""
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def run(test, names):
    """The number of examples in a doctest, which share `names`; fails with what they print instead."""
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    test.globs = names
    failed, attempted = runner.run(test, out=report.append, clear_globs=False)
    assert not failed, "".join(report)
    return attempted


@pytest.mark.parametrize("module, name", DOCUMENTED, ids=[f"{m.__name__}.{n}" for m, n in DOCUMENTED])
def test_docstring(module, name):
    tests = doctest.DocTestFinder(recurse=False).find(getattr(module, name), name, module)
    assert sum(run(test, dict(vars(reference)) if module is reference else {}) for test in tests) > 0


def test_readme_names_every_function():
    functions = {name for name in fastsoftmax.__all__ if callable(getattr(fastsoftmax, name))}
    assert functions <= set(re.findall(r"`(?:with )?(\w+)", README.read_text()))


def test_readme(tmp_path, monkeypatch, capsys):
    """Block after block, as a reader types them: later ones may use what earlier ones have set."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    for number, block in enumerate(readme_blocks(), 1):
        if ">>>" in block:
            run(doctest.DocTestParser().get_doctest(block, names, f"block {number}", str(README), 0), names)
        else:
            exec(compile(block, f"README.md, python block {number}", "exec"), names)
    capsys.readouterr()
