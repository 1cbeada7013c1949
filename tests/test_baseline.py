"""The column "NumPy" of the tables of speed is what a NumPy user writes, not the oracle."""

import numpy as np
import pytest

import fastsoftmax
from fastsoftmax import reference
from fastsoftmax._selfcheck import numpy_baseline, speed

X = np.random.default_rng(0).normal(size=(4, 37, 50))
HIDDEN = ~np.tri(37, 50, dtype=bool)
CALLS = {
    "softmax": (1,), "log_softmax": (1,), "logsumexp": (1,), "softmax_entropy": (1,),
    "causal_softmax": (HIDDEN,), "causal_mask_": (HIDDEN,),
}


@pytest.fixture
def no_oracle(monkeypatch):
    """`fastsoftmax.reference` out of reach."""
    for name in reference.__all__:
        monkeypatch.delattr(reference, name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CALLS)
def test_the_baseline_is_right_and_computes_in_the_dtype_of_its_input(name, dtype, no_oracle):
    x = X.astype(dtype)
    extra = () if name.startswith("causal") else (1,)
    expected = getattr(fastsoftmax, name)(x.copy(), *extra)
    got = getattr(numpy_baseline, name)(x.copy(), *CALLS[name])
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=100 * np.finfo(dtype).eps, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("causal", [False, True])
def test_the_baseline_of_attention_is_right(causal, dtype, no_oracle):
    query, key, value = (np.random.default_rng(1).normal(size=(2, heads, 20, 8)).astype(dtype) for heads in (4, 2, 2))
    expected = fastsoftmax.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
    got = numpy_baseline.scaled_dot_product_attention(query, key, value, ~np.tri(20, dtype=bool) if causal else None)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("case", speed.CASES, ids=lambda case: f"{case[1]}-{case[0]}")
def test_the_printed_column_is_the_baseline(case, no_oracle):
    _, function, shape, _, dtype = case
    small = (1, 4, 2, 20, 20, 8) if function.endswith("attention") else (4, 37, 50)[-len(shape):]
    result = speed.call_of("NumPy", function, small, -1, dtype, 1)()
    assert result.dtype == dtype
