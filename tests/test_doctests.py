"""The examples in docstrings and in the README do what they show."""

import ast
import doctest
import inspect
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


def signatures(block):
    """Its lines as signatures, each joined to the lines that continue it inside brackets."""
    found = []
    for line in filter(None, block.splitlines()):
        if found and found[-1].count("(") > found[-1].count(")"):
            found[-1] += (" " if not found[-1].endswith("(") else "") + line.strip()
        else:
            found.append(line)
    return found


def is_signatures(block):
    """Whether it is a list of signatures, which are no statements: each is one after a def."""
    try:
        ast.parse("".join(f"def {line}: ...\n" for line in signatures(block)))
    except SyntaxError:
        return False
    return True


def python_blocks():
    """The README's python blocks, in order."""
    text = README.read_text() if README.exists() else ""
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def readme_blocks():
    """Those that can be run."""
    return [block for block in python_blocks() if not is_signatures(block)]


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


def test_readme_signatures():
    for line in signatures("\n".join(filter(is_signatures, python_blocks()))):
        name = line[: line.index("(")]
        true = inspect.signature(getattr(fastsoftmax, name))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in true.parameters.values()]
        assert line == name + str(inspect.Signature(bare))


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
