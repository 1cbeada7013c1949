"""Worked examples, and what breaks when a part of softmax attention is left out: each shown by running it."""

import numpy as np
import pytest

from fastsoftmax import (
    causal_mask_,
    causal_softmax,
    log_softmax,
    scaled_dot_product_attention,
    softmax,
    softmax_entropy,
)

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


# ---------------------------------------------------------------- the same, of attention


def test_3_attention_without_scaling_saturates():
    """Persistently below 1 nat, entropy tells of a scaling fault; with 1 / sqrt(d) it does not depend on the width."""
    rng = np.random.default_rng(0)
    scaled, raw = [], []
    for width in (16, 64, 256, 1024):
        query, key, value = (rng.normal(size=(8, 64, width)) for _ in range(3))
        scaled.append(scaled_dot_product_attention(query, key, value, return_entropy=True)[1].mean())
        raw.append(scaled_dot_product_attention(query, key, value, scale=1.0, return_entropy=True)[1].mean())
    assert min(scaled) > 3.4  # of at most log(64) = 4.16
    assert max(scaled) - min(scaled) < 0.3
    assert raw == sorted(raw, reverse=True)
    assert raw[-1] < 0.3


def test_3_outputs_answer_to_the_query_only_while_weights_are_not_saturated():
    """The gradient vanishes: a small change of the query changes nothing any more."""
    rng = np.random.default_rng(1)
    query, key, value = (rng.normal(size=(64, 1024)) for _ in range(3))
    step = 1e-3 * rng.normal(size=query.shape)

    def change(scale):
        out, moved = (scaled_dot_product_attention(q, key, value, scale=scale) for q in (query, query + step))
        return np.median(abs(moved - out).max(1)) / scale  # for each unit of change in the scores

    assert change(1.0) < 0.1 * change(1 / np.sqrt(1024))


def test_4_attention_is_an_average_of_values():
    rng = np.random.default_rng(2)
    query, key, value = rng.normal(size=(50, 8)), rng.normal(size=(20, 8)), rng.uniform(-1, 1, size=(20, 4))
    for factor in (1, 10, 1000):
        out = scaled_dot_product_attention(factor * query, key, value)
        assert np.all((value.min(0) <= out + 1e-15) & (out - 1e-15 <= value.max(0)))
        assert np.abs(factor * query @ key.T / np.sqrt(8) @ value).max() > np.abs(out).max()


def test_8_the_last_token_reaches_its_own_output_only():
    rng = np.random.default_rng(3)
    query, key, value = (rng.normal(size=(6, 4)) for _ in range(3))
    other_key, other_value = key.copy(), value.copy()
    other_key[-1] += 1
    other_value[-1] += 100
    before, after = (scaled_dot_product_attention(query, k, v) for k, v in ((key, value), (other_key, other_value)))
    assert np.all(before != after)
    before, after = (scaled_dot_product_attention(query, k, v, is_causal=True)
                     for k, v in ((key, value), (other_key, other_value)))
    np.testing.assert_array_equal(before[:-1], after[:-1])
    assert np.all(before[-1] != after[-1])


def test_decoding_token_by_token_is_the_causal_whole():
    """A query with a cache of the keys so far: causal attention, a row at a time."""
    rng = np.random.default_rng(4)
    query, key, value = (rng.normal(size=(2, 12, 8)) for _ in range(3))
    whole = scaled_dot_product_attention(query, key, value, is_causal=True)
    for i in range(12):
        row = scaled_dot_product_attention(query[:, i:i + 1], key[:, :i + 1], value[:, :i + 1])
        np.testing.assert_allclose(row[:, 0], whole[:, i], rtol=1e-14, atol=1e-15)
        row = scaled_dot_product_attention(query[:, i:i + 1], key, value, is_causal=True, causal_offset=i)
        np.testing.assert_allclose(row[:, 0], whole[:, i], rtol=1e-14, atol=1e-15)


def test_one_temperature_a_head_makes_heads_sharp_or_flat():
    rng = np.random.default_rng(5)
    query, key, value = (rng.normal(size=(3, 40, 16)) for _ in range(3))
    query[:] = query[0]
    key[:] = key[0]
    _, entropy = scaled_dot_product_attention(query, key, value, scale=[0.1, 0.25, 1], return_entropy=True)
    sharper = entropy.mean(-1)
    assert np.all(np.diff(sharper) < -0.1)


def test_a_sink_lets_a_head_attend_to_nothing():
    rng = np.random.default_rng(6)
    query, key, value = (rng.normal(size=(1, 5, 8)) for _ in range(3))
    outs = [abs(scaled_dot_product_attention(query, key, value, sinks=[s])).mean() for s in (-np.inf, 0, 3, 30)]
    assert outs == sorted(outs, reverse=True)
    assert outs[-1] < 1e-9
    assert outs[0] == abs(scaled_dot_product_attention(query, key, value)).mean()
