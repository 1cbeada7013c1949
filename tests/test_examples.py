"""Worked examples, and what breaks when a part of softmax attention is left out: each shown by running it."""

import numpy as np
import pytest

from fastsoftmax import causal_mask_, causal_softmax, log_softmax, softmax, softmax_entropy

INF = np.inf


@pytest.mark.parametrize(
    "scores, temperature, weights",
    [
        ([2.8, 1.2, 0.5, 3.1], 1, [0.377, 0.076, 0.038, 0.509]),
        ([2.8, 1.2, -INF, -INF], 1, [0.832, 0.168, 0, 0]),
        ([10, 9, 8], 1, [0.665, 0.245, 0.090]),
        ([5, 4.4, 3.9], 1, [0.531, 0.292, 0.177]),
        ([3, 2, 1], 1, [0.665, 0.245, 0.090]),
        ([3, 2, 1], 0.5, [0.867, 0.117, 0.016]),
        ([3, 2, 1], 2, [0.506, 0.307, 0.186]),
    ],
)
def test_worked_examples(kernel, scores, temperature, weights):
    y = softmax(np.array(scores, float).astype(kernel.dtype), temperature=temperature).astype(float)
    np.testing.assert_allclose(y, weights, rtol=0, atol=max(0.00051, 4 * kernel.eps))


def test_masked_scores_weigh_exactly_nothing():
    assert softmax([2.8, 1.2, -INF, -INF])[2:].tolist() == [0, 0]


def test_a_large_gap_saturates():
    np.testing.assert_allclose(softmax([100.0, 9, 8]), [1, 3.0e-40, 1.1e-40], rtol=0.02)
    np.testing.assert_allclose(softmax([45.0, 40, 35]), [0.9933, 0.0067, 0.00005], rtol=0, atol=0.00005)


def test_1_without_the_exponential_weights_turn_negative():
    scores = np.array([3.0, -2, 1])
    np.testing.assert_allclose(scores / scores.sum(), [1.5, -1.0, 0.5])
    balanced = np.array([3.0, -2, -1 + 1e-12])
    assert np.abs(balanced / balanced.sum()).max() > 1e12  # division by about zero
    for row in (scores, balanced):
        assert np.all(softmax(row) > 0)


@pytest.mark.parametrize("dtype, score", [(np.float32, 89), (np.float64, 710)])
def test_2_without_the_shift_exponentials_overflow(dtype, score):
    scores = np.array([score, score - 1], dtype)
    with np.errstate(all="ignore"):
        naive = np.exp(scores) / np.exp(scores).sum()
        assert np.isfinite(np.exp(scores - 2)).all()  # the edge is just there
    assert np.isnan(naive[0])
    np.testing.assert_allclose(softmax(scores), softmax(scores - dtype(score)), rtol=2 * np.finfo(dtype).eps)


def test_3_without_scaling_weights_saturate():
    rng = np.random.default_rng(0)
    d, keys = 1024, 64
    query, key = rng.normal(size=(200, d)), rng.normal(size=(keys, d))
    scores = query @ key.T
    assert scores.var() == pytest.approx(d, rel=0.1)
    raw, scaled = softmax(scores, -1), softmax(scores / np.sqrt(d), -1)
    assert softmax_entropy(scores, -1).mean() < 0.3
    assert softmax_entropy(scores / np.sqrt(d), -1).mean() > 3
    # Saturated: the derivative w (1 - w) of the largest weight all but vanishes.
    largest = raw.max(-1)
    assert np.median(largest * (1 - largest)) < 1e-3
    assert np.median(scaled.max(-1) * (1 - scaled.max(-1))) > 0.05
    # The same as a temperature of sqrt(d).
    np.testing.assert_allclose(softmax(scores, -1, temperature=np.sqrt(d)), scaled, rtol=1e-13)


def test_4_without_softmax_outputs_are_unbounded():
    rng = np.random.default_rng(1)
    scores, value = rng.normal(size=(50, 20)), rng.uniform(-1, 1, size=(20, 8))
    for factor in (1, 10, 1000):
        assert np.abs(softmax(factor * scores, -1) @ value).max() <= np.abs(value).max()  # an average of values
    raw = [np.abs(factor * scores @ value).max() for factor in (1, 10, 1000)]
    np.testing.assert_allclose(raw, raw[0] * np.array([1, 10, 1000]))
    assert raw[1] > np.abs(value).max()


def test_5_dividing_by_the_row_sum_flips_signs_and_has_poles():
    def divided(scores):
        return scores / scores.sum()

    before, after = divided(np.array([1.0, -0.99])), divided(np.array([1.0, -1.01]))
    assert before[0] > 90
    assert after[0] < -90  # a change of 0.02 in one score, from +100 to -100
    change = softmax([1.0, -0.99]) - softmax([1.0, -1.01])
    assert np.abs(change).max() < 0.01


def test_6_relu_and_feature_maps_are_linear_in_cost_and_flatter():
    rng = np.random.default_rng(2)
    d, keys = 16, 64
    query, key, value = (rng.normal(size=(keys, d)) for _ in range(3))
    scores = query @ key.T / np.sqrt(d)

    def entropy(weights):
        return -(weights * np.log(np.where(weights > 0, weights, 1))).sum(-1).mean()

    def elu1(x):  # the feature map of the Linear Transformer
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    # Keys and values first: the cost is linear in the number of keys; the result is the same.
    linear = elu1(query) @ elu1(key).T
    linear /= linear.sum(-1, keepdims=True)
    keys_first = elu1(query) @ (elu1(key).T @ value) / (elu1(query) @ elu1(key).sum(0))[:, None]
    np.testing.assert_allclose(keys_first, linear @ value, rtol=1e-9, atol=1e-12)
    assert entropy(linear) > softmax_entropy(scores, -1).mean() + 0.1

    # Performer: positive random features, whose product is exp(score) on average.
    directions = rng.normal(size=(50_000, d))

    def positive(x):
        x = x / d**0.25
        return np.exp(x @ directions.T - (x * x).sum(-1, keepdims=True) / 2) / np.sqrt(len(directions))

    estimate = positive(query[:4] / 2) @ positive(key).T
    np.testing.assert_allclose(estimate / estimate.sum(-1, keepdims=True), softmax(scores[:4] / 2, -1), atol=0.02)

    relu = np.maximum(scores, 0)
    relu /= relu.sum(-1, keepdims=True)
    sharp = 8 * scores  # sharper scores sharpen softmax; ReLU cannot tell, it is homogeneous
    relu_sharp = np.maximum(sharp, 0) / np.maximum(sharp, 0).sum(-1, keepdims=True)
    np.testing.assert_allclose(relu_sharp, relu)
    assert entropy(relu_sharp) > softmax_entropy(sharp, -1).mean() + 1


def test_7_masking_to_zero_is_not_masking():
    scores = np.array([-1.0, -2, 0, 0])  # the last two were to be hidden
    np.testing.assert_allclose(scores / scores.sum(), [1 / 3, 2 / 3, 0, 0])  # the lower score has the larger weight
    zeroed = softmax(scores)
    assert zeroed[2:].sum() > 0.5  # the hidden ones take most of the weight
    hidden = softmax([-1.0, -2, -INF, -INF])
    assert hidden[2:].tolist() == [0, 0]
    assert hidden[0] > hidden[1]
    np.testing.assert_array_equal(softmax(scores, where=[True, True, False, False]), hidden)


def test_8_without_a_mask_the_future_leaks_into_the_past():
    rng = np.random.default_rng(3)
    scores, value = rng.normal(size=(6, 6)), rng.normal(size=(6, 3))
    other = value.copy()
    other[-1] += 100  # only the last position changes
    assert np.all(np.abs(softmax(scores, -1) @ value - softmax(scores, -1) @ other) > 1e-3)
    for weights in (causal_softmax(scores), softmax(causal_mask_(scores.copy()), -1)):
        np.testing.assert_array_equal((weights @ value)[:-1], (weights @ other)[:-1])
        assert np.all((weights @ value)[-1] != (weights @ other)[-1])


def test_entropy_tells_peaked_from_flat():
    assert softmax_entropy([100.0, 9, 8]) < 1e-3
    assert softmax_entropy(np.zeros(8)) == pytest.approx(np.log(8))
    sharper = [float(softmax_entropy([3.0, 2, 1], temperature=t)) for t in (0.5, 1, 2)]
    assert sharper == sorted(sharper)


def test_log_weights_keep_what_weights_cannot():
    assert softmax([0.0, -1000])[1] == 0
    assert log_softmax([0.0, -1000])[1] == -1000
