"""The workers of bench/ measure their libraries; one that is absent, fails or dies is in the results with a reason."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastsoftmax._selfcheck import turns

BENCH = Path(__file__).resolve().parent.parent / "bench"
pytestmark = pytest.mark.skipif(not BENCH.exists(), reason="bench/ is not in this copy of the tree")


def worker(name):
    # bench/ too: where PYTHONSAFEPATH is set, Python does not look in the folder of a script
    paths = os.pathsep.join([os.fspath(BENCH), *filter(None, sys.path)])
    return name, [os.fspath(BENCH / "worker.py"), name, "1"], 1, paths


@pytest.fixture
def bench(monkeypatch):
    """A function that imports a module of bench/."""
    monkeypatch.syspath_prepend(os.fspath(BENCH))
    return importlib.import_module


def test_a_worker_measures_its_library_and_checks_attention():
    with turns.workers([worker("fastsoftmax"), worker("NumPy")]) as crew:
        for family, name in (("softmax", "ten numbers"), ("attention_causal", "eight tokens")):
            times, reasons, notes = turns.take_turns(crew, [family, name], 2, 0.001)
            assert list(times) == ["fastsoftmax", "NumPy"] and not reasons
        assert all(note["error"] < 1e-5 and note["how"] for note in notes.values())


def test_a_worker_of_another_library_does_not_load_fastsoftmax():
    code = (f"import sys; sys.path.insert(0, {os.fspath(BENCH)!r}); import worker; worker.start('NumPy', 1); "
            "assert not [name for name in sys.modules if name.startswith('fastsoftmax')]")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_peer_says_what_it_needs_and_is_for(bench):
    peers, shapes = bench("peers"), bench("shapes")
    assert len(peers.LIBRARIES) == len(peers.CLASSES)
    for cls in peers.CLASSES:
        assert cls.needs and set(cls.families) <= set(shapes.FAMILIES)
    assert peers.meant_for(["causal_mask_"]) == [
        "fastsoftmax", "oracle", "NumPy", "SciPy", "PyTorch", "ONNX Runtime", "JAX"]


def test_a_schedule_is_bounded_by_its_work_and_its_longest_task(bench):
    scaling = bench("scaling")
    for threads in (1, 2, 5, 64):
        for tasks in ([3.0], [1.0] * 64, [5.0, 1.0, 1.0, 8.0, 2.0]):
            seconds = scaling.simulate([tasks], threads, 1.0, 0.25) - 0.25 * (threads > 1)
            lower = max(sum(tasks) / threads, max(tasks))
            assert lower <= seconds <= sum(tasks) / threads + max(tasks)
    assert scaling.simulate([[2.0, 2.0, 1.0]], 2, 1.0, 0.0) == 3.0
    assert scaling.simulate([[1.0], [1.0]], 2, 1.0, 0.25) == 2.5


def test_a_plan_covers_a_call_by_the_constants_of_the_kernels(bench):
    scaling = bench("scaling")
    for case in scaling.CASES:
        plans = [scaling.plan(case, number) for number in scaling.CORES]
        assert plans[0].threads == 1 and all(1 <= x.threads <= n for x, n in zip(plans, scaling.CORES, strict=True))
    kernels = BENCH.parent / "fastsoftmax" / "kernels"
    for file, text in (
        ("softmax/params.pxi", "TASK = 1 << 14 "), ("softmax/params.pxi", "LONG_ROW = 1 << 15 "),
        ("softmax/long_row.pxi", "PASSES_COST = TASK "), ("attention/decode.pxi", "SPLIT_KEYS = 512 "),
        ("attention/decode.pxi", "MAX_SPLITS = 64"), ("attention/query_tile.pxi", "QUERY_TILES = 4 "),
    ):
        assert text in (kernels / file).read_text(encoding="utf-8")
    assert (scaling.TASK, scaling.LONG_ROW, scaling.SPLIT_KEYS, scaling.MAX_SPLITS) == (1 << 14, 1 << 15, 512, 64)
    assert (scaling.PASSES_COST, scaling.TILE_REGISTERS) == (scaling.TASK, 3 * 4)


def test_a_wrong_result_is_not_measured(bench):
    common, data, shapes = bench("peers.common"), bench("data"), bench("shapes")
    shape = next(shape for shape in shapes.SHAPES if shape.name == "eight tokens")
    right = common.numpy_baseline.scaled_dot_product_attention(*data.attention(shape))
    space = {"result": lambda out: out, "how": "by hand"}
    assert common.checked("attention", shape, right, space)["how"] == "by hand"
    for wrong in (right * 1.01, right[..., :-1], right * float("nan")):
        with pytest.raises(common.WrongError):
            common.checked("attention", shape, wrong, space)


def test_a_wrong_softmax_is_not_measured(bench):
    common, data, shapes = bench("peers.common"), bench("data"), bench("shapes")
    shape = shapes.named("65536 elements in rows of 7")
    right = common.numpy_baseline.softmax(data.scores(shape).astype("float64"), -1)
    space = {"result": lambda out: out}
    assert common.checked("softmax", shape, right.astype("float32"), space) == {}
    for wrong in (right * 1.0001, right[1:], right * float("nan"), right.round(3)):
        with pytest.raises(common.WrongError):
            common.checked("softmax", shape, wrong, space)


def test_xnnpack_is_measured_or_its_absence_told(bench):
    """XNNPACK has no other axis than the last, and no other dtype is measured."""
    with turns.workers([worker("XNNPACK")]) as crew:
        for name, reason in (("ten numbers", None), ("ImageNet classes", None), ("middle axis", "last axis"),
                             ("ImageNet classes float16", "float32")):
            times, reasons, _ = turns.take_turns(crew, ["softmax", name], 1, 0.001)
            if missing := bench("peers").Xnnpack.missing():
                reason = f"{missing} is not installed"
            assert (reason in reasons["XNNPACK"]) if reason else list(times) == ["XNNPACK"], reasons


@pytest.mark.parametrize("vendor, family, model, name", [
    ("AuthenticAMD", 25, 1, "Zen 3"), ("AuthenticAMD", 25, 17, "Zen 4"), ("AuthenticAMD", 26, 2, "Zen 5"),
    ("AuthenticAMD", 99, 0, None), ("GenuineIntel", 6, 143, "Sapphire Rapids"), ("GenuineIntel", 6, 9999, None)])
def test_a_processor_is_named_by_its_generation(bench, vendor, family, model, name):
    assert bench("figures").generation(vendor, family, model) == name


def test_a_processor_of_a_virtual_machine_is_named_by_its_features(bench):
    name = bench("figures").identity("Intel(R) Xeon(R) Processor", {
        "vendor_id": "GenuineIntel", "cpu family": "6", "model": "167", "flags": "fpu avx512f amx_bf16 amx_tile"})
    assert name == "Intel(R) Xeon(R) Processor, family 6 model 167 (Sapphire or Emerald Rapids)"
    assert bench("figures").generation("GenuineIntel", 6, 167, ["amx_tile", "amx_fp16"]) == "Granite Rapids"
    assert bench("figures").generation("GenuineIntel", 6, 143, ["amx_tile"]) == "Sapphire Rapids"
    assert bench("figures").generation("GenuineIntel", 6, 85, ["avx512f"]) == "Skylake or Cascade Lake"


def test_a_file_of_results_is_named_after_the_processor(bench):
    slug = bench("figures").slug
    assert slug("AMD EPYC, family 26 model 2 (Zen 5)") == "amd-epyc-zen5"
    assert slug("AMD EPYC 9R45 96-Core Processor, family 26 model 2 (Zen 5)") == "amd-epyc-9r45-zen5"
    assert slug("Intel(R) Xeon(R) CPU @ 2.20GHz, family 6 model 200") == "intel-xeon-6-model-200"
    assert slug("aarch64 (Neoverse N1)") == "aarch64-neoverse-n1"


def test_a_merged_run_replaces_its_rows_alone(bench):
    record, figures, shapes = bench("record"), bench("figures"), bench("shapes")

    def run(family, name, seconds, **why):
        row = figures.Row(family, shapes.named(name), 1, {"fastsoftmax": [seconds]}, why, {})
        return figures.results([row], {}, {"fastsoftmax": "1", "A": "1"}, "generic", 1)

    first = record.merged(run("softmax", "ten numbers", 1e-6, A="too slow"), run("logsumexp", "ten numbers", 2e-6))
    assert [row["function"] for row in first["rows"]] == ["softmax", "logsumexp"]
    assert first["unavailable"][0]["cases"] == {"ten numbers": ["softmax"]}
    again = record.merged({**first, "date": "2026-01-02"}, run("softmax", "ten numbers", 3e-6))
    assert again["date"] == "2026-01-02"
    assert [row["figures"]["fastsoftmax"] for row in again["rows"]] == [3.0, 2.0]
    assert again["unavailable"] == []
    with pytest.raises(SystemExit, match="rounds"):
        record.merged(first, {**first, "rounds": 2})


def test_results_hold_the_best_peer_and_every_reason(bench):
    figures, shapes = bench("figures"), bench("shapes")
    shape = next(shape for shape in shapes.SHAPES if shape.name == "ten numbers")
    times = {"fastsoftmax": [1e-6, 2e-6], "oracle": [1e-7, 1e-7], "NumPy": [4e-6, 8e-6], "SciPy": [3e-6, 6e-6]}
    reasons = {"PyTorch": "ended by signal 9 (Killed)", "JAX": "jax is not installed"}
    versions = {**dict.fromkeys([*times, "PyTorch"], "1.0"), "JAX": "absent: jax is not installed"}
    row = figures.Row("softmax", shape, 1, times, reasons, {})
    found = figures.results([row], {}, versions, "generic", 2)
    assert found["rows"][0]["best_peer"] == "SciPy" and found["rows"][0]["times_best_peer"] == 3
    assert found["unavailable"] == [
        {"library": "JAX", "why": "absent: jax is not installed", "cases": {}},
        {"library": "PyTorch", "why": "ended by signal 9 (Killed)", "cases": {"ten numbers": ["softmax"]}},
    ]


def test_files_of_results_are_read_as_they_were_written(bench, tmp_path, monkeypatch):
    record = bench("record")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    data = {"date": "2026-01-01", "rows": [{"a": 1}, {"a": 2}], "notes": [], "name": "µ"}
    record.save(tmp_path / "x.json", data)
    assert record.load("x.json") == data
    assert len((tmp_path / "x.json").read_text(encoding="utf-8").splitlines()) == 9


def test_a_training_step_is_timed_and_an_absent_peer_is_named(tmp_path):
    sizes = ["--layers=1", "--width=16", "--heads=2", "--length=8", "--batch=2", "--threads=2", "--rounds=1"]
    paths = os.pathsep.join([os.fspath(BENCH), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, os.fspath(BENCH / "training.py"), *sizes, "--json", tmp_path / "out.json"],
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["width"] == 16 and found["threads"] == 2 and found["libraries"]["fastsoftmax"]["seconds"]
    assert ("PyTorch" in found["libraries"]) != ("absent" in done.stdout)


def test_sampling_is_timed_beside_softmax_and_an_absent_peer_is_named(tmp_path):
    sizes = ["--tokens=3000", "--rows=2", "--rounds=1", "--seconds=0.001"]
    paths = os.pathsep.join([os.fspath(BENCH), *filter(None, sys.path)])
    done = subprocess.run([sys.executable, os.fspath(BENCH / "sampling.py"), *sizes, "--json", tmp_path / "out.json"],
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["cases"]) == 18 and found["tokens"] == 3000
    assert all({"sample", "softmax", "NumPy"} <= set(case["seconds"]) and case["ratio"] > 0 for case in found["cases"])
    assert [case["left"] for case in found["cases"] if case["filters"] == "top_k"] == [50, 50, 50]
    assert ("PyTorch" in found["cases"][0]["seconds"]) != ("PyTorch is absent" in done.stdout)
