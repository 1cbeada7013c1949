"""How the lab judges claims on models: by chance nothing holds, and every number that decides is looked at."""

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the lab's extra is not installed: fastsoftmax[lab]")

from fastsoftmax.lab import experiments
from fastsoftmax.lab.experiments import ablations, alternatives, heads, scaling


def test_student_excludes_chance_in_19_cases_of_20():
    rng = np.random.default_rng(0)
    for count in experiments.STUDENT:
        assert np.mean([experiments.sure(x) for x in rng.normal(size=(4000, count))]) == pytest.approx(0.05, abs=0.015)
    assert not experiments.sure([1.0]) and experiments.sure([1.0, 1.1, 0.9])


def test_perplexity_of_a_token_is_that_of_its_bytes():
    [more] = experiments.more_perplexity([2.0], [2.01])
    assert more == pytest.approx(100 * (np.exp(4 * 2.01) / np.exp(4 * 2.0) - 1))


def learned(gain, temperatures=((1.2, 1.3), (1.0, 1.1)), seeds=3):
    """The numbers that `heads` measures where the perplexity of a token falls by so many %, a value for each seed."""
    fixed = np.full(seeds, 2.0)
    losses = fixed + np.log(1 - np.resize(gain, seeds) / 100) / 4
    return {"loss_seeds": {"fixed": fixed.tolist(), "learned": losses.tolist()},
            "loss": {"fixed": 2.0, "learned": losses.mean()}, "temperatures": [list(x) * seeds for x in temperatures]}


@pytest.mark.parametrize("gain, holds", [
    ([2, 2.1, 1.9], "yes"), ([2, 0.1, 3.9], "no"), ([6, 6.1, 5.9], "partly"), ([-2, -2.1, -1.9], "no"), ([2], "no")])
def test_a_gain_holds_only_beyond_chance(gain, holds):
    assert heads.claim_of_gain(learned(gain, seeds=len(gain)))["holds"] == holds


def test_lower_layers_are_flatter_only_in_every_seed():
    assert heads.claim_of_layers(learned([2.0]))["holds"] == "yes"
    assert heads.claim_of_layers(learned([2.0], ((1.2, 1.3), (0.9, 0.9), (1.0, 1.1))))["holds"] == "partly"
    measured = learned([2.0])
    measured["temperatures"][1] = [0.5, 0.5, 0.5, 0.5, 1.4, 1.4]        # the third seed's last layer is flatter
    assert heads.claim_of_layers(measured)["holds"] == "no"


def selected(softmax, others):
    return {"selection": {"recall": {"softmax": dict(softmax)} | {
        kind: dict(others) for kind in alternatives.KINDS[1:]}}}


def test_selection_is_judged_where_softmax_selects():
    def holds(*shares):
        return alternatives.claim_of_selection(selected(*shares))["holds"]

    assert holds({"24": 0.9}, {"24": 0.2}) == "yes"
    assert holds({"24": 0.9}, {"24": 0.8}) == "no"
    assert holds({"24": 0.3}, {"24": 0.05}) == "no"                                     # nobody has learned it
    assert holds({"24": 0.9, "48": 0.1}, {"24": 0.2, "48": 0.1}) == "yes"               # as at the length before
    measured = selected({"24": 0.9}, {"24": 0.2})
    measured["selection"]["recall"]["relu"] = {"24": 0.9}
    assert alternatives.claim_of_selection(measured)["holds"] == "partly"


@pytest.mark.parametrize("differences, holds", [
    ([0.03, 0.035, 0.04], "yes"), ([0.1, 0.11, 0.12], "partly"), ([0.1, 0.1, -0.05], "no"), ([0.0, 0.0, 0.0], "no")])
def test_perplexity_is_worse_only_in_every_seed(differences, holds):
    seeds = {"scaled": [[3.0, 2.0]] * 3, "unscaled": [[3.0, 2.0 + x] for x in differences]}
    assert scaling.claim_of_perplexity({"curves": {"64": {"seeds": seeds}}}, [64])["holds"] == holds


def test_steps_to_equal_loss():
    fast = {"at": [0, 10, 20, 40], "held_out": [4.0, 3.0, 2.0, 1.5]}
    slow = {"at": [0, 10, 20, 40], "held_out": [4.0, 3.5, 3.0, 2.5]}
    assert scaling.times_longer(fast, slow) == pytest.approx(40 / 15)
    assert scaling.times_longer(slow, fast) == pytest.approx(15 / 40)


def test_a_loss_that_was_no_number_is_a_rise_without_bound():
    assert ablations.largest_rise([3.0, None, 2.0]) == np.inf
    assert ablations.largest_rise([3.0, 2.0, 2.5, 1.0]) == 0.5


def test_the_gradient_of_weights_for_a_query_is_that_of_differences():
    rng = np.random.default_rng(0)
    query, keys, scale = rng.normal(size=8), rng.normal(size=(6, 8)), 0.7
    weights = lambda q: scaling.fs.softmax(scale * keys @ q)        # noqa: E731
    steps = 1e-6 * np.eye(8)
    expected = np.linalg.norm([(weights(query + step) - weights(query - step)) / 2e-6 for step in steps])
    assert scaling.query_gradient(weights(query)[None], keys, scale)[0] == pytest.approx(expected, rel=1e-6)
