"""The lab: the decoder and its gradients, training, tasks, texts, jobs that resume, and the command."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_lab_report import CHROMIUM, opened

pytest.importorskip("matplotlib", reason="the lab's extra is not installed: fastsoftmax[lab]")
pytest.importorskip("tqdm", reason="the lab's extra is not installed: fastsoftmax[lab]")

from fastsoftmax.lab import check, decoder, experiments, jobs, tasks, texts, training

SMALL = decoder.Config(symbols=13, width=16, layers=2, heads=2)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


# ---- the decoder ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked():
    """The lines that `--check` prints: {configuration: {parameter: error}}."""
    done = lab("--check")
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        parameter, error, name = line.split(maxsplit=2)
        found.setdefault(name, {})[parameter] = float(error)
    return found


@pytest.mark.parametrize("name", check.configurations())
def test_gradients_are_those_of_finite_differences(name, checked):
    assert set(checked[name]) == set(decoder.start(check.configurations()[name]))
    assert max(checked[name].values()) < 1e-6


def test_a_wrong_gradient_is_found(monkeypatch, capsys):
    right = decoder.rms_norm_backward
    monkeypatch.setattr(decoder, "rms_norm_backward", lambda *a: 1.01 * right(*a))
    monkeypatch.setattr(check, "configurations", lambda: {"softmax": check.CONFIG})
    assert check.main() == 1
    assert "WRONG" in capsys.readouterr().out


def test_only_wanted_gradients_are_computed(rng):
    p = decoder.start(dataclasses.replace(SMALL, learn_scale=True))
    tokens = rng.integers(0, 13, (2, 8))
    config = dataclasses.replace(SMALL, learn_scale=True)
    _, every = decoder.loss_and_gradients(p, config, tokens, tokens)
    _, some = decoder.loss_and_gradients(p, config, tokens, tokens, {"0.log_scale", "1.out"})
    assert set(some) == {"0.log_scale", "1.out"}
    for name, g in some.items():
        np.testing.assert_array_equal(g, every[name])


def test_a_token_does_not_see_those_after_it(rng):
    p, tokens = decoder.start(SMALL), rng.integers(0, 13, (1, 9))
    changed = tokens.copy()
    changed[0, 5] = (tokens[0, 5] + 1) % 13
    before, after = (decoder.losses(p, SMALL, t, tokens) for t in (tokens, changed))
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert (before[0, 5:] != after[0, 5:]).all()
    open_config = dataclasses.replace(SMALL, is_causal=False)
    before, after = (decoder.losses(p, open_config, t, tokens) for t in (tokens, changed))
    assert (before != after).all()


def test_attention_depends_on_distances_not_on_positions(rng):
    query, key = rng.normal(size=(2, 1, 1, 1, 16))
    products = []
    for shift in (0, 7):
        turn = [decoder.angles(np.array([p + shift]), decoder.Config(width=16, heads=1), float) for p in (5, 2)]
        q, k = (decoder.rotary(x.copy(), *t) for x, t in zip((query, key), turn, strict=True))
        products.append(float((q * k).sum()))
    assert products[0] == pytest.approx(products[1])
    assert products[0] != pytest.approx(float((query * key).sum()))


@pytest.mark.parametrize("options", [{"scale": 1.0}, {"learn_scale": True}, {"key_heads": 1}, {"epsilon": 0.1},
                                     {"theta": 100.0}, {"is_causal": False}, {"head_width": 4}, {"hidden": 64}])
def test_every_option_changes_the_loss(rng, options):
    tokens, config = rng.integers(0, 13, (2, 9)), dataclasses.replace(SMALL, **options)
    p = decoder.start(config, 1)
    if "learn_scale" in options:
        p["0.log_scale"] += 0.5
    assert decoder.losses(p, config, tokens, tokens).sum() != pytest.approx(
        decoder.losses(decoder.start(SMALL, 1), SMALL, tokens, tokens).sum(), rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"key_heads": 1}, {"learn_scale": True}])
def test_generation_with_a_cache_is_that_without(options, rng):
    config = dataclasses.replace(SMALL, **options)
    p, prompt = decoder.start(config), list(rng.integers(0, 13, 4))
    drawn, text = list(decoder.generate(p, config, prompt, 12, temperature=0)), list(prompt)
    for _ in range(12):
        states, _ = decoder.forward(p, config, np.array([text]))
        text.append(int((states[-1] @ p["embedding"].T).argmax()))
    assert drawn == text[4:]


def test_temperature_and_seed_decide_what_is_drawn(rng):
    p = decoder.start(SMALL)

    def draw(**options):
        return list(decoder.generate(p, SMALL, [1, 2], 40, **options))

    assert draw(temperature=1.0, seed=1) == draw(temperature=1.0, seed=1) != draw(temperature=1.0, seed=2)
    assert draw(temperature=1e-4) == draw(temperature=0) != draw(temperature=1.0)


@pytest.mark.parametrize("options", [{}, {"key_heads": 1}, {"learn_scale": True}, {"is_causal": False}])
def test_entropies_are_those_of_the_weights(options, rng):
    config = dataclasses.replace(SMALL, **options)
    p, tokens = decoder.start(config), rng.integers(0, 13, (2, 9))
    found = decoder.entropies(p, config, tokens)
    for i in range(config.layers):
        w = decoder.weights(p, config, tokens, i).astype(float)
        np.testing.assert_allclose(w.sum(-1), 1, rtol=1e-5)
        entropy = -np.where(w > 0, w * np.log(np.maximum(w, 1e-300)), 0).sum(-1).mean((0, 2))
        np.testing.assert_allclose(found[i], entropy, rtol=1e-5)


def test_dot_products_have_variance_d_at_the_start(rng):
    config = decoder.Config(symbols=64, width=256, layers=1, heads=4)
    p = decoder.start(config)
    x, _ = decoder.rms_norm(p["embedding"], p["0.norm"], 1e-5)
    query, key = np.split((x @ p["0.qkv"])[:, :512].reshape(64, 2, 4, 64), 2, axis=1)
    assert np.einsum("qxhe,kxhe->hqk", query, key).std() == pytest.approx(8, rel=0.1)


# ---- training -------------------------------------------------------------------------------------------------------


def test_two_threads_give_the_gradients_of_one(rng):
    p, tokens = decoder.start(SMALL), rng.integers(0, 13, (5, 9))
    loss, one = training.gradients_of(p, SMALL, tokens, tokens)
    loss2, two = training.gradients_of(p, SMALL, tokens, tokens, threads=2)
    assert loss == pytest.approx(loss2, rel=1e-5)
    for name, g in one.items():
        np.testing.assert_allclose(two[name], g, atol=1e-5 * np.abs(g).max())


def test_adamw_is_its_definition(rng):
    x, g1, g2 = rng.normal(size=(3, 4, 5))
    p = {"a": x.copy(), "a.log_scale": x[0].copy()}
    optimizer = training.AdamW(p, betas=(0.9, 0.95), epsilon=1e-8, decay=0.1, rates={"log_scale": 10})
    expected, m, v = x.copy(), np.zeros_like(x), np.zeros_like(x)
    for step, g in enumerate((g1, g2), 1):
        optimizer.step({"a": g, "a.log_scale": g[0]}, 0.01)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        update = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * update
    np.testing.assert_allclose(p["a"], expected, rtol=1e-12)
    first = x[0].copy()
    m = v = np.zeros(5)
    for step, g in enumerate((g1[0], g2[0]), 1):        # a vector: no decay, its own rate
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        first = first - 0.1 * m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
    np.testing.assert_allclose(p["a.log_scale"], first, rtol=1e-12)


def test_the_learning_rate_rises_and_falls():
    rates = [training.learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(1.0) == rates[5]
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert all(a < b for a, b in zip(rates[:4], rates[1:5], strict=True))
    assert all(a > b for a, b in zip(rates[5:-1], rates[6:], strict=True))


def test_clipping_bounds_the_norm_of_all_gradients(rng):
    gradients = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    kept = {name: g.copy() for name, g in gradients.items()}
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert training.clip(gradients, 2 * norm) == pytest.approx(norm)
    np.testing.assert_array_equal(gradients["a"], kept["a"])
    training.clip(gradients, 0.5)
    np.testing.assert_allclose(gradients["b"], kept["b"] * 0.5 / norm)


def train(tmp_path, stop=None, **changes):
    arguments = {"model": dataclasses.asdict(SMALL) | {"symbols": 128}, "data": {"task": "copying"}, "steps": 40,
                 "batch": 4, "length": 16, "rate": 3e-3, "seed": 1, "evaluations": 4, "rates": None,
                 "log_entropy": True} | changes
    job = jobs.Job("training:train", arguments)
    context = jobs.Context(tmp_path, job, stop=stop)
    result = training.train(context, **arguments)
    return {name: x for name, x in result.items() if name != "seconds"}, context.arrays(job.key)


class StopAfter:
    """A stop that is asked for after so many steps."""

    def __init__(self, steps):
        self.left = steps

    def is_set(self):
        self.left -= 1
        return self.left < 0


def test_training_lowers_the_loss_and_is_repeatable(tmp_path):
    result, p = train(tmp_path)
    assert result["held_out"][-1] < result["held_out"][0]
    assert result["at"] == [0, 10, 20, 30, 40]
    assert np.shape(result["entropy"]) == (5, 2, 2)
    again, q = train(tmp_path)
    assert again == result
    np.testing.assert_array_equal(p["0.qkv"], q["0.qkv"])
    assert train(tmp_path, seed=2)[0] != result


def test_a_stopped_training_resumes_to_the_same_numbers(tmp_path):
    expected, p = train(tmp_path)
    (tmp_path / "stopped").mkdir()
    with pytest.raises(jobs.Stopped):
        train(tmp_path / "stopped", StopAfter(17))
    with pytest.raises(jobs.Stopped):
        train(tmp_path / "stopped", StopAfter(9))
    result, q = train(tmp_path / "stopped")
    assert result == expected
    for name in p:
        np.testing.assert_array_equal(p[name], q[name])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_training_that_diverges_says_when(tmp_path):
    result, _ = train(tmp_path, rate=1e20)
    assert result["diverged"] is not None
    assert len(result["held_out"]) == len(result["at"]) == 1 + result["diverged"] // 10


# ---- tasks and texts ------------------------------------------------------------------------------------------------


def test_recall_asks_for_the_value_that_follows_its_key(rng):
    tokens, targets = tasks.batch(rng, 5, 30, "recall")
    for row, wanted in zip(tokens, targets, strict=True):
        values = dict(zip(row[0:20:2], row[1:20:2], strict=True))
        assert len(values) == 10
        assert [values[key] for key in row[20:]] == list(wanted[20:])
        assert (wanted[:20] == -100).all()


def test_copying_asks_for_the_string_again(rng):
    tokens, targets = tasks.batch(rng, 5, 20, "copying")
    np.testing.assert_array_equal(targets[:, 10:], tokens[:, :10])
    np.testing.assert_array_equal(tokens[:, 11:], tokens[:, :9])
    assert (tokens[:, 10] == tasks.COPY).all() and (targets[:, :10] == -100).all()


def test_selective_copying_leaves_the_blanks_out(rng):
    tokens, targets = tasks.batch(rng, 5, 24, "selective_copying")
    for row, wanted in zip(tokens, targets, strict=True):
        assert list(row[:18][row[:18] != tasks.BLANK]) == list(wanted[18:])
        assert list(row[19:]) == list(wanted[18:-1])


def test_held_out_sequences_are_never_trained_on(tmp_path):
    for seed in (0, 1, 97, 99):
        source = training.Source(tmp_path, {"task": "copying"}, 16, seed)
        held = {tuple(row) for row in source.held_out[0]}
        assert not any(tuple(row) in held for step in range(20) for row in source.batch(step, 64)[0])


def test_every_symbol_of_a_task_is_within_its_alphabet(rng):
    for name in tasks.TASKS:
        tokens, targets = tasks.batch(rng, 50, 48, name)
        assert 0 <= tokens.min() and tokens.max() < tasks.SYMBOLS and targets.max() < tasks.SYMBOLS
    with pytest.raises(ValueError, match="different keys"):
        tasks.batch(rng, 1, 4 * tasks.SYMBOLS, "recall")


def test_held_out_documents_are_not_trained_on(tmp_path):
    documents = {str(i): (f"document {i:03} " * 300).encode() for i in range(30)}
    text = texts.Text(documents, tmp_path, "test")
    train_bytes, held = (bytes(texts.load(tmp_path, text.digest, name)) for name in ("train", "held_out"))
    for i in range(30):
        mark = f"document {i:03} ".encode()
        assert (mark in held) == (i % 10 == 9) and (mark in train_bytes) == (i % 10 != 9)


def test_targets_are_the_symbols_that_follow(rng):
    data = np.arange(100, dtype=np.uint8)
    tokens, targets = texts.spread_windows(data, 10, 4)
    np.testing.assert_array_equal(targets, tokens + 1)
    assert tokens[0, 0] == 0 and targets[-1, -1] == 99


def test_what_python_carries_is_a_text(tmp_path):
    text = texts.Text(texts.python_documents(), tmp_path, "Python")
    assert text.sizes["train"] > 1_000_000 < 20 * text.sizes["held_out"]


# ---- jobs -----------------------------------------------------------------------------------------------------------


def test_a_key_depends_on_function_and_arguments():
    keys = {jobs.Job(name, arguments).key for name in ("tasks:batch", "texts:load")
            for arguments in ({"a": 1}, {"a": 2}, {"b": 1})}
    assert len(keys) == 6
    assert jobs.Job("a:b", {"x": 1, "y": 2}).key == jobs.Job("a:b", {"y": 2, "x": 1}).key


def test_results_hold_no_number_that_json_does_not_know(tmp_path):
    value = {"a": np.array([1.0, np.nan]), 3: (np.float32(0.5), np.int64(2), float("inf"), None, True)}
    jobs.save_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.0, None], "3": [0.5, 2, None, None, True]}


def test_a_result_that_is_there_is_not_computed_again(tmp_path):
    job = jobs.Job("nowhere:never", {"a": 1})
    (tmp_path / f"{job.key}.json").write_text('{"result": 17}')
    assert jobs.Runner(tmp_path, 1, bar=False).run([job, job], "test") == [17, 17]


@pytest.mark.parametrize("damaged", ["", '{"result"', "[1]", "{}"])
def test_a_damaged_result_is_computed_again(tmp_path, damaged):
    job = jobs.Job("experiments.scaling:spread", {"width": 4, "seed": 0})
    (tmp_path / f"{job.key}.json").write_text(damaged)
    runner = jobs.Runner(tmp_path, 1, bar=False)
    try:
        [result] = runner.run([job], "test")
    finally:
        runner.close()
    assert result["spread"] == pytest.approx(2, rel=0.1)
    assert json.loads((tmp_path / f"{job.key}.json").read_text())["result"] == result


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_damaged_checkpoint_is_not_used(tmp_path, size):
    with pytest.raises(jobs.Stopped):
        train(tmp_path, StopAfter(17))
    [checkpoint] = tmp_path.glob("*.part.npz")
    os.truncate(checkpoint, size)
    (tmp_path / "whole").mkdir()
    assert train(tmp_path)[0] == train(tmp_path / "whole")[0]


def test_a_text_that_was_cut_is_written_again(tmp_path):
    documents = {str(i): b"a line of text\n" * 200 for i in range(20)}
    text = texts.Text(documents, tmp_path, "test")
    os.truncate(tmp_path / f"{text.digest}.train", 7)
    texts.Text(documents, tmp_path, "test")
    assert len(texts.load(tmp_path, text.digest, "train")) == text.sizes["train"]


def test_an_error_leaves_no_part_of_a_file(tmp_path):
    with pytest.raises(OSError, match="full"), jobs.whole(tmp_path / "x.npz") as file:
        file.write(b"some")
        raise OSError("full")
    assert not list(tmp_path.iterdir())


def test_a_stopped_timing_is_no_result(tmp_path):
    from fastsoftmax.lab.experiments import alternatives

    job = jobs.Job("experiments.alternatives:timing", {"kind": "linear", "longest": 512})
    with pytest.raises(jobs.Stopped):
        alternatives.timing(jobs.Context(tmp_path, job, stop=StopAfter(1)), **job.arguments)
    assert alternatives.timing(jobs.Context(tmp_path, job), **job.arguments)["lengths"] == [128, 256, 512]


# ---- the command ----------------------------------------------------------------------------------------------------


def lab(*arguments, threads=None, **options):
    environment = os.environ | ({"FASTSOFTMAX_NUM_THREADS": str(threads)} if threads else {})
    return subprocess.run([sys.executable, "-m", "fastsoftmax.lab", *map(str, arguments)], capture_output=True,
                          text=True, env=environment, timeout=600, **options)


QUICK = ("--quick", "--steps", "20")        # of a quick run, the fewest steps


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder of a quick run of everything, and what it printed."""
    folder = tmp_path_factory.mktemp("lab") / "report"
    done = lab(*QUICK, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_quick_run_writes_what_it_promises(quick):
    folder, done = quick
    results = json.loads((folder / "results.json").read_text())
    assert list(results) == list(experiments.NAMES)
    for name, result in results.items():
        assert {"article", "settings", "measured", "claims", "verdict"} == set(result)
        assert result["article"] and result["verdict"].endswith(".") and "seed" in json.dumps(result["settings"])
        assert all({"claim", "measured", "holds"} == set(claim) and claim["holds"] in ("yes", "no", "partly")
                   for claim in result["claims"])
        assert experiments.find(name).TITLE in done.stdout
    measured = {name: result["measured"] for name, result in results.items()}
    for way in ("masked", "unmasked"):
        assert {"train_loss", "loss_alone"} <= set(measured["ablations"]["causal_mask"][way])
    for curves in measured["scaling"]["curves"].values():
        assert len(curves["scaled"]) == len(curves["unscaled"]) == len(curves["at"])
    assert {"loss", "temperatures"} <= set(measured["heads"])
    for kind in ("softmax", "relu", "linear", "performer"):
        found = measured["alternatives"][kind]
        assert len(found["lengths"]) == len(found["seconds"]) and found["losses"]
    assert len(list(folder.glob("*.png"))) >= 6
    assert (folder / "report.html").read_text().count("data:image/png") == len(list(folder.glob("*.png")))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on PATH")
def test_the_report_opens_in_a_browser_and_loads_nothing(quick, tmp_path):
    folder, _ = quick
    done = opened(folder / "report.html", tmp_path)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr
    assert done.stdout.count("<section") >= len(experiments.NAMES)
    sources = re.findall(r'(?:src|href)="([^"]*)"', done.stdout)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)


def test_a_second_run_reads_what_the_first_computed(quick):
    folder, _ = quick
    def written():
        return {path.name: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}

    expected, before = json.loads((folder / "results.json").read_text())["scaling"], written()
    done = lab("scaling", *QUICK, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "results.json").read_text())["scaling"] == expected
    assert written() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_do_not_depend_on_threads(quick, tmp_path, threads):
    folder, _ = quick
    done = lab("scaling", *QUICK, "--out", tmp_path, threads=threads)
    assert done.returncode == 0, done.stderr
    results = [json.loads((path / "results.json").read_text())["scaling"] for path in (folder, tmp_path)]
    assert results[0] == results[1]


def test_seed_steps_and_text_are_used(quick, tmp_path):
    folder, _ = quick
    path = tmp_path / "text.txt"
    path.write_bytes(b"The quick brown fox jumps over the lazy dog. " * 2000)
    done = lab("heads", "--quick", "--out", tmp_path / "out", "--seed", 5, "--steps", 21, "--text", path)
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["heads"]["settings"]
    assert settings["seeds"] == [5] and settings["training"]["steps"] == 21 and settings["text"] == str(path)


@contextlib.contextmanager
def sigint(action):
    """A process that starts inside does `action` at SIGINT. It would inherit that of the tests, and a shell starts them
    with SIGINT ignored in the background."""
    before = signal.signal(signal.SIGINT, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("sent, at_sigint", [(signal.SIGINT, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_IGN)])
def test_an_interrupted_run_goes_on_to_the_same_numbers(quick, tmp_path, sent, at_sigint):
    """By Ctrl-C, and by `kill` in the background."""
    folder, _ = quick
    with sigint(at_sigint):
        process = subprocess.Popen([sys.executable, "-m", "fastsoftmax.lab", "scaling", *QUICK, "--out", tmp_path],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("runs/train-*")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command goes on from here" in errors and "Traceback" not in errors
    done = lab("scaling", *QUICK, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    results = [json.loads((path / "results.json").read_text())["scaling"] for path in (folder, tmp_path)]
    assert results[0] == results[1]


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to a group of processes")
@pytest.mark.parametrize("seconds", [0, 0.2, 0.4])
def test_a_run_interrupted_as_its_workers_start_says_so_in_one_line(tmp_path, seconds):
    with sigint(signal.SIG_DFL):
        process = subprocess.Popen([sys.executable, "-m", "fastsoftmax.lab", "scaling", "--quick", "--out", tmp_path],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    process.stdout.readline()                   # about the text: the workers are started next
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)       # as the terminal does
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == "stopped; the same command goes on from here\n"


def bad(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    return {
        "no text": (["--text", tmp_path / "none.txt"], "No such file"),
        "empty text": (["--text", tmp_path / "empty.txt"], "0 bytes"),
        "a folder as text": (["--text", tmp_path], "Is a directory"),
        "out is a file": (["--out", tmp_path / "file"], "file"),
        "out within a file": (["--out", tmp_path / "file" / "report"], "Not a directory"),
        "too few steps": (["--steps", 5], "at least 20"),
        "too many steps": (["--steps", 10**400], "more than 1000000000"),
        "no such experiment": (["nothing"], "no such experiment: nothing"),
        "negative seed": (["--seed", -1], "from 0"),
    }


@pytest.mark.parametrize("name", ["no text", "empty text", "a folder as text", "out is a file", "out within a file",
                                  "too few steps", "too many steps", "no such experiment", "negative seed"])
def test_bad_input_is_told_in_one_line(tmp_path, name):
    arguments, message = bad(tmp_path)[name]
    done = lab("scaling" if "no such" not in name else "heads", "--quick", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith(("usage", " "))]) == 1


@pytest.mark.parametrize("package", ["matplotlib", "tqdm"])
def test_a_missing_package_is_named_with_its_extra(package):
    code = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['lab', '--quick']; " \
           "runpy.run_module('fastsoftmax.lab', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"{package} is not installed" in done.stderr and 'fastsoftmax[lab]"' in done.stderr
    assert "Traceback" not in done.stderr
