"""``python -m fastsoftmax`` shows each failure: a wrong kernel, a library that is absent or dies; its exit status."""

import importlib
import io
import os
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from test_turns import DIES_LATER, GOOD, worker

import fastsoftmax
from fastsoftmax._selfcheck import accuracy, gradients, sampling, speed, turns

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("wrong", "infinite"), [
    (lambda y: y * np.float32(1 + 1e-5), False), (lambda y: np.where(y == y.max(), np.nan, y), True),
    (lambda y: y[:, :-1], True),
])
def test_a_wrong_kernel_fails_the_check(wrong, infinite, monkeypatch, capsys):
    case = accuracy.Case("softmax", np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32), {"axis": -1})
    pairs, isa = [(case, accuracy.oracle(case))], fastsoftmax.show_config(mode="dicts")["isa"]
    assert accuracy.check_kernels(pairs, "f32", isa) == 0
    right = fastsoftmax.softmax
    monkeypatch.setattr(fastsoftmax, "softmax", lambda x, axis: wrong(right(x, axis)))
    assert accuracy.check_kernels(pairs, "f32", isa) == 1
    assert "FAIL" + " inf" * infinite in capsys.readouterr().out


def test_an_element_that_must_be_zero_and_is_not_fails_the_check():
    x = np.zeros((1, 4), np.float32)
    case = accuracy.Case("softmax", x, {"axis": -1}, zeros=np.array([[False, False, False, True]]))
    assert accuracy.check(case, accuracy.oracle(case), "f32") == np.inf


def test_the_table_shows_absent_libraries_and_our_own_failure():
    line = speed.row(3, {"fastsoftmax": [1e-3], "SciPy": [3e-3]})
    assert line.split()[-5:] == ["-", "x", "3.00", "-", "-"]
    assert speed.row(3, {"SciPy": [3e-3]}).endswith("FAILED")


def test_workers_measure_a_library_and_refuse_what_it_has_not():
    paths, names = os.pathsep.join(path for path in sys.path if path), ("fastsoftmax", "NumPy", "SciPy")
    with turns.workers((name, speed.command(name, 1), 1, paths) for name in names) as crew:
        attention = next(number for number, case in enumerate(speed.CASES) if case[1] == "attention")
        assert crew[1].set_up(0) == {} and 0 < crew[1].run(0.001)["median"] < 1
        assert crew[2].set_up(attention) == {"absent": "SciPy has no attention"}
        assert crew[0].greeting == {"version": fastsoftmax.__version__}


def test_a_library_that_is_absent_or_does_not_start_or_dies_is_printed(monkeypatch, capsys):
    """The whole table, with NumPy's worker broken, SciPy's dying, and no other library."""
    texts = {"fastsoftmax": GOOD, "NumPy": "raise RuntimeError('at import')", "SciPy": DIES_LATER}
    found = {speed.PEERS[name].module for name in texts}
    started = turns.workers
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda module: module in found or None)
    monkeypatch.setattr(turns, "workers", lambda each: started(worker(name, texts[name]) for name, *_ in each))
    monkeypatch.setattr(speed, "CASES", (speed.CASES[0],))
    monkeypatch.setattr(speed, "TURN", 0.001)
    take_turns = turns.take_turns
    monkeypatch.setattr(turns, "take_turns", lambda crew, case, *rest: take_turns(crew, "exit", *rest))
    assert speed.show() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  PyTorch: absent" in lines and "  ONNX Runtime: absent" in lines and "  fastsoftmax: 1.0" in lines
    assert any(line.startswith("  NumPy: installed, but does not start: ended with status 1: Runt") for line in lines)
    assert "  SciPy ended with status 3: out of memory" in lines


def test_the_exit_status_counts_failures_of_each_part(monkeypatch):
    main = importlib.import_module("fastsoftmax.__main__")
    for failed in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 2, 0, 0), (0, 0, 3, 0), (0, 0, 0, 4)):
        monkeypatch.setattr(main.configuration, "show", lambda: None)
        monkeypatch.setattr(main.demo, "show", lambda: None)
        monkeypatch.setattr(main.accuracy, "check_all", lambda failed=failed: failed[0])
        monkeypatch.setattr(main.gradients, "check_all", lambda failed=failed: failed[1])
        monkeypatch.setattr(main.sampling, "check_all", lambda failed=failed: failed[2])
        monkeypatch.setattr(main.speed, "show", lambda failed=failed: failed[3])
        monkeypatch.setattr(main.sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        assert main.main([]) == (1 if any(failed) else 0)


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("-h", 0), ("--unknown", 2)])
def test_arguments_show_the_help(argument, status, capsys):
    assert importlib.import_module("fastsoftmax.__main__").main([argument]) == status
    assert "The exit status is 1 if a check fails." in capsys.readouterr().out


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="pyproject.toml is not in this copy of the tree")
def test_the_wheel_holds_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "fastsoftmax").rglob("__init__.py")}
    assert set(listed) == found


def test_a_wrong_gradient_is_found():
    rng = np.random.default_rng(0)
    isa = fastsoftmax.show_config(mode="dicts")["isa"]
    cases = list(gradients.attention_errors(rng, "f32", np.dtype(np.float32)))
    assert gradients.check(cases, "f32", isa) == 0
    wrong = [(column, lambda exact=exact: exact * 1.001, exact, size) for column, _, exact, size in cases]
    assert gradients.check(wrong, "f32", isa) == 3      # dquery, dkey, dvalue


def test_a_wrong_token_is_found():
    isa = fastsoftmax.show_config(mode="dicts")["isa"]
    pairs = list(sampling.cases(np.dtype(np.float32)))
    assert sampling.check(pairs, "f32", isa) == 0
    wrong = [(column, lambda call=call: call() + 1, expected) for column, call, expected in pairs if column == "tokens"]
    assert sampling.check(wrong, "f32", isa) == 1
