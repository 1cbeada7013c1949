"""Shared by the tests of fastsoftmax.torch, which need PyTorch."""

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16,
          torch.bfloat16: ml_dtypes.bfloat16}
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def random(*shape, dtype=torch.float64, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def numpy_of(x):
    """The numbers of a tensor in a new array, made without fastsoftmax; anything else as it is."""
    if not isinstance(x, torch.Tensor):
        return x
    x = x.detach()
    if x.dtype in DTYPES:
        return x.double().numpy().astype(DTYPES[x.dtype])
    return x.numpy().copy()


def layouts(x):
    """A tensor of these numbers in each way that a view can lie in memory."""
    yield x
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    wide = torch.zeros(*x.shape[:-1], 3 * x.shape[-1] + 1, dtype=x.dtype)
    wide[..., 1::3] = x
    yield wide[..., 1::3]
    yield x[..., :1, :].expand(x.shape)


def tuples(x):
    return x if isinstance(x, tuple) else (x,)


def assert_same_as_numpy(found, expected, inputs):
    """The same bits and shapes; contiguous; in memory of their own."""
    for y, e in zip(tuples(found), tuples(expected), strict=True):
        assert tuple(y.shape) == np.shape(e)
        assert DTYPES[y.dtype] == np.asarray(e).dtype
        assert y.is_contiguous()
        np.testing.assert_array_equal(numpy_of(y), np.asarray(e))
        for x in inputs:
            if isinstance(x, torch.Tensor) and x.numel():
                assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
