"""The experiments `ablations` and `temperature`: their measurements, their judgement, and both from end to end."""

import copy
import json

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax.lab import ablation_jobs, decoder, jobs, texts
from fastsoftmax.lab.experiments import Lab, ablations, temperature

CONFIG = decoder.Config(symbols=40, width=32, layers=2, heads=2)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Both experiments, as read back from JSON, and the lab that ran them."""
    folder = tmp_path_factory.mktemp("lab")
    runner = jobs.Runner(folder, 2, bar=False)
    lab = Lab(runner, texts.Text(texts.python_documents(), folder, "Python's own texts"), quick=True, steps=60)
    try:
        found = {module.NAME: json.loads(json.dumps(module.run(lab), allow_nan=False))
                 for module in (ablations, temperature)}
    finally:
        runner.close()
    return found | {"lab": lab}


def tokens_of(config, batch=3, length=16, seed=0):
    both = np.random.default_rng(seed).integers(0, config.symbols, (2, batch, length))
    return both[0], both[1]


# ---- measurements ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scores", "divided", "softmax"), [
    ([10, 9, 8], [0.370, 0.333, 0.296], [0.665, 0.245, 0.090]),
    ([100, 9, 8], [0.855, 0.077, 0.068], [1, 0, 0]),
    ([45, 40, 35], [0.375, 0.333, 0.292], [0.993, 0.007, 0.000]),
    ([5, 4.4, 3.9], [0.376, 0.331, 0.293], [0.531, 0.292, 0.177]),
    ([2.8, 1.2, 0.5, 3.1], [0.368, 0.158, 0.066, 0.408], [0.377, 0.076, 0.038, 0.509]),
    ([3, -2, 1], [1.5, -1, 0.5], [0.876, 0.006, 0.118]),
])
def test_worked_cases(scores, divided, softmax):
    row = next(row for row in ablations.exponential()["cases"] if row["scores"] == scores)
    np.testing.assert_allclose(row["division"], divided, atol=6e-4)
    np.testing.assert_allclose(row["softmax"], softmax, atol=6e-4)


@pytest.mark.parametrize(("function", "jacobian"), [
    (ablation_jobs.divide, ablation_jobs.division_jacobian), (fs.softmax, ablation_jobs.softmax_jacobian)])
def test_jacobians_are_those_of_finite_differences(function, jacobian):
    x, step = np.array([3.0, -2.0, 0.5, 1.0]), 1e-6
    columns = [(function(x + d) - function(x - d)) / (2 * step) for d in step * np.eye(4)]
    np.testing.assert_allclose(jacobian(x), np.transpose(columns), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_limits_are_the_last_numbers_within(dtype):
    found = ablation_jobs.limits(dtype)
    top, bottom = dtype(found["overflow"]), dtype(found["underflow"])
    with np.errstate(all="ignore"):
        assert np.isfinite(np.exp(top)) and np.isinf(np.exp(np.nextafter(top, dtype(np.inf))))
        assert np.exp(bottom) > 0 and np.exp(np.nextafter(bottom, dtype(-np.inf))) == 0
    assert bottom < found["subnormal"] < 0 < found["sum_overflow"] < top
    for row in found["beyond"].values():
        assert "nan" in row["naive"] and "nan" not in row["shifted"] + row["ours"]


def test_errors_of_the_three_ways():
    found = ablation_jobs.errors(np.float32, (1, 80, 200), seed=0)
    assert max(found["ours"]) <= 2
    assert found["naive"][2] is None and max(found["naive"][:2]) < 20
    assert 10 < found["shifted"][1] < 70 and found["shifted"][0] < 10


def test_hidden_scores_of_0_get_weight():
    found = ablation_jobs.hidden_weight(0)
    assert found["causal_softmax"] == {"hidden": 0, "negative": 0, "largest": 1}
    assert found["softmax"]["hidden"] > 0.3 and found["division"]["negative"] > 0.3


@pytest.mark.parametrize("is_causal", [True, False])
def test_alone_a_model_does_not_see_later_tokens(is_causal):
    config = decoder.Config(**vars(CONFIG) | {"is_causal": is_causal})
    p, (tokens, targets) = decoder.start(config), tokens_of(config)
    found, whole = ablation_jobs.losses_alone(p, config, tokens, targets), decoder.losses(p, config, tokens, targets)
    np.testing.assert_allclose(found[:, -1], whole[:, -1], rtol=1e-5)
    assert np.allclose(found, whole, rtol=1e-4) == is_causal
    changed = tokens.copy()
    changed[:, 9:] = 0
    np.testing.assert_array_equal(ablation_jobs.losses_alone(p, config, changed, targets)[:, :9], found[:, :9])
    np.testing.assert_array_equal(ablation_jobs.losses_alone(p, config, tokens, targets, 4), found[:, 3::4])


def test_drawn_texts_have_their_size_and_seed():
    p, prompt = decoder.start(CONFIG), np.arange(8)
    long = ablation_jobs.draw_long(p, CONFIG, prompt, 50, 16, 1.0, [0, 0])
    assert len(long) == 50 and max(long) < CONFIG.symbols
    assert long == ablation_jobs.draw_long(p, CONFIG, prompt, 50, 16, 1.0, [0, 0])
    assert long != ablation_jobs.draw_long(p, CONFIG, prompt, 50, 16, 1.0, [1, 0])
    cold = ablation_jobs.draw_anew(p, CONFIG, prompt, 8, 16, 0.0, 0)     # with a mask, as with a cache
    assert list(cold) == list(decoder.generate(p, CONFIG, prompt, 8, 0.0))


def test_variety():
    known = {b"the", b"cat", b"sat"}
    same = ablation_jobs.variety([b"x " + b"the cat " * 20 + b"x"], known)
    assert same["words"] == 40 and same["known"] == 1 and same["distinct_1"] == 2 / 40
    assert same["repeated_4"] == 1 - 2 / 37 and same["repeated_bytes"] > 0.9
    varied = ablation_jobs.variety([b"x the dog sat under four trees x"], known)
    assert varied["distinct_2"] == 1 and varied["repeated_4"] == 0 and varied["known"] == 2 / 6
    assert ablation_jobs.variety([b"   "], known)["distinct_1"] is None
    assert ablation_jobs.readable(b"a\n\x00\xe9") == "a\n\N{MIDDLE DOT}é"


def test_holders_of_the_weight():
    assert ablation_jobs.holders(np.array([[0, 0, 1.0, 0], [0.25] * 4])) == (1 + 4) / 2
    assert ablation_jobs.holders(np.array([[0.5, 0.1, 0.4]]), share=0.85) == 2


def test_a_probe_is_called_at_every_evaluation(results):
    lab = results["lab"]
    [history] = lab.run(ablations.mask_jobs(lab)["unmasked"], "")
    assert len(history["probe"]) == len(history["at"]) and history["at"][-1] == 60


# ---- from end to end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [ablations, temperature], ids=lambda module: module.NAME)
def test_an_experiment_returns_what_the_protocol_says(results, module):
    result = results[module.NAME]
    assert set(result) == {"article", "settings", "measured", "claims", "verdict"}
    assert {"seeds", "steps", "text", "digest"} <= set(result["settings"])
    assert all(row["holds"] in ("yes", "no", "partly") and row["claim"] and row["measured"] for row in result["claims"])
    for table in module.tables(result):
        assert table.rows and all(len(row) == len(table.header) for row in table.rows), table.title


@pytest.mark.parametrize(("module", "count"), [(ablations, 4), (temperature, 3)], ids=["ablations", "temperature"])
def test_pictures(results, module, count):
    pytest.importorskip("matplotlib")
    pictures = module.draw(results[module.NAME])
    assert len({picture.name for picture in pictures}) == count
    for picture in pictures:
        assert picture.caption.endswith(".") and picture.figure.axes
        picture.figure.canvas.draw()


def test_without_a_causal_mask_the_answer_leaks(results):
    found = results["ablations"]["measured"]["causal_mask"]
    masked, unmasked = found["masked"], found["unmasked"]
    assert unmasked["train_loss"] < masked["train_loss"] - 0.5
    assert unmasked["loss_alone"] > masked["loss_alone"] + 0.5
    assert masked["loss_alone"] == pytest.approx(masked["together"], rel=1e-5)
    assert all(len(one["samples"][0]) == 200 for one in (masked, unmasked))


def test_only_softmax_averages(results):
    stack = results["ablations"]["measured"]["normalisation"]["stack"]
    assert max(stack["softmax"]["reach"]) <= 1 < min(max(stack[kind]["reach"]) for kind in
                                                     ("dot_product", "sum_normalized"))
    assert stack["dot_product"]["rms"][0][-1] is None and stack["softmax"]["rms"][0][-1] < 1e4


def test_entropy_rises_with_the_temperature(results):
    measured = results["temperature"]["measured"]
    assert np.all(np.diff(measured["weights"]["curve"]["entropy"]) > 0)
    assert np.all(np.diff(measured["attention"]["entropy"], axis=0) > 0)
    assert np.all(np.diff(measured["attention"]["tokens"], axis=0) > 0)
    assert measured["text"]["temperatures"] == list(temperature.DRAWN)
    np.testing.assert_allclose(measured["weights"]["cases"]["weights"], [
        [0.867, 0.117, 0.016], [0.665, 0.245, 0.090], [0.506, 0.307, 0.186]], atol=6e-4)


# ---- judgement ------------------------------------------------------------------------------------------------------


def answers(claims):
    return {row["claim"]: row["holds"] for row in claims}


def test_answers_follow_the_numbers_of_ablations(results):
    measured = copy.deepcopy(results["ablations"]["measured"])
    found = measured["causal_mask"]
    found["unmasked"] |= {"train_loss": found["masked"]["train_loss"], "loss_alone": found["masked"]["loss_alone"],
                          "known": 1.0}
    measured["shift"]["errors"]["float64"]["shifted"] = measured["shift"]["errors"]["float64"]["ours"]
    for row in measured["normalisation"]["curves"]:
        row["final"], row["rise"] = [None if row["kind"] != "softmax" else 2.0], None
    measured["normalisation"]["stack"]["softmax"]["reach"] = [1.5]
    after = answers([*ablations.claims_of_numbers(measured), *ablations.claims_of_models(measured)])
    assert after["Without a causal mask the training loss falls below what is possible."] == "no"
    assert after["Such a model cannot predict alone."] == "no"
    assert after["The text that it generates is garbage."] == "no"
    assert after["Training without normalisation is unstable."] == "yes"
    assert after["Without normalisation the outputs of attention are unbounded; those of softmax are averages of "
                 "values."] == "no"
    assert after["Divided by their sum, 10, 9, 8 and 100, 9, 8 hardly differ."] == "no"

    for row in measured["normalisation"]["curves"]:
        row["final"], row["rise"] = [2.0], 0.0
    after = answers(ablations.claims_of_curves(measured["normalisation"]["curves"]))
    assert set(after.values()) == {"no"}
    measured["normalisation"]["curves"][-1] |= {"final": [2.5], "rise": 1.0}
    after = answers(ablations.claims_of_curves(measured["normalisation"]["curves"]))
    assert set(after.values()) == {"partly"}


def test_answers_follow_the_numbers_of_temperature(results):
    measured = copy.deepcopy(results["temperature"]["measured"])
    text, attention = measured["text"], measured["attention"]
    for name in ("repeated_4", "repeated_bytes", "known", "distinct_2"):
        text[name] = [0.5] * len(text["temperatures"])
    assert set(answers(temperature.claims_of_text(text)).values()) == {"no"}
    text["repeated_4"][0] = text["repeated_bytes"][0] = 0.9
    assert answers(temperature.claims_of_text(text))["Text drawn at a low temperature repeats itself."] == "yes"

    attention["loss"] = [1.0, *attention["loss"][1:]]
    attention["tokens"] = [[attention["most_tokens"]] * 2] * len(attention["loss"])
    after = answers(temperature.claims_of_attention(attention))
    assert after["A trained model is best read at the temperature that it was trained with."] == "no"
    assert after["A trained model relies on few tokens."] == "no"
