"""The kinds of arrays that people have: each line of the table in docs/arrays.md."""

import ml_dtypes
import numpy as np
import pytest
from helpers import LAYOUTS, assert_same_bits

from fastsoftmax import (
    cross_entropy,
    logsumexp,
    merge_attention_states,
    scaled_dot_product_attention,
    softmax,
    softmax_backward,
    softmax_entropy,
)
from fastsoftmax._dtypes import converted

VALUES = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
EXPECTED = softmax(VALUES, 1)
QUERY, KEY, VALUE = np.random.default_rng(1).normal(size=(3, 5, 4)).astype(np.float32)


def assert_taken(x, expected=EXPECTED, values=VALUES):
    """As the plain array that it holds, by functions of each module; the result is a plain array."""
    got = softmax(x, 1)
    assert type(got) is np.ndarray
    assert_same_bits(got, expected)
    np.testing.assert_array_equal(logsumexp(x, 0), logsumexp(values, 0))
    np.testing.assert_array_equal(softmax_entropy(x, 1), softmax_entropy(values, 1))
    np.testing.assert_array_equal(cross_entropy(x, np.zeros(len(values), int)),
                                  cross_entropy(values, np.zeros(len(values), int)))
    np.testing.assert_array_equal(softmax_backward(x, x, 1), softmax_backward(values, values, 1))
    np.testing.assert_array_equal(scaled_dot_product_attention(x, x, x), scaled_dot_product_attention(*[values] * 3))


def test_lists_tuples_and_numbers():
    values = VALUES.astype(np.float64)
    for x in (values.tolist(), tuple(map(tuple, values)), list(values)):
        assert_taken(x, softmax(values, 1), values)
    for x in (3, 3.0, np.float32(3), np.array(3.0)):
        assert softmax(x) == softmax(x, 0) == softmax(x, -1) == 1
        assert np.isscalar(softmax(x))
        assert logsumexp(x) == 3
    assert softmax(np.float32(3)).dtype == np.float32


def test_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: frames and series are not tested")
    frame = pandas.DataFrame(VALUES, index=list("abcdef"), columns=range(9))
    assert_taken(frame)
    assert_same_bits(softmax(frame[3]), softmax(VALUES[:, 3]))
    assert_same_bits(softmax(frame, axis=1, where=frame.notna()), EXPECTED)
    assert_same_bits(softmax(pandas.Series([3, 2, 1])), softmax(np.array([3, 2, 1])))
    mixed = pandas.DataFrame({"a": [1, 2], "b": [0.5, 1.5]})
    assert_same_bits(softmax(mixed, axis=1), softmax(np.array([[1, 0.5], [2, 1.5]]), 1))
    assert_same_bits(cross_entropy(frame, pandas.Series(range(6))), cross_entropy(VALUES, range(6)))
    for bad in (pandas.DataFrame({"a": [1.0], "b": ["x"]}), pandas.Series(["x", "y"], dtype=object)):
        with pytest.raises(TypeError, match="x must be an array of numbers, got dtype object"):
            softmax(bad)


def test_xarray():
    xarray = pytest.importorskip("xarray", reason="xarray is not installed: DataArrays are not tested")
    assert_taken(xarray.DataArray(VALUES, dims=("row", "class")))


def test_dask_arrays_are_computed():
    da = pytest.importorskip("dask.array", reason="dask is not installed: its arrays are not tested")
    assert_taken(da.from_array(VALUES, chunks=(2, 4)))


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="torch is not installed: its tensors are not tested")
    tensor = torch.from_numpy(VALUES.copy())
    assert_taken(tensor)
    assert_same_bits(softmax(tensor.T, 0), np.ascontiguousarray(softmax(VALUES.T, 0)))
    half = tensor.half()
    assert_same_bits(softmax(half, 1), softmax(half.numpy(), 1))
    out, lse = merge_attention_states(torch.stack([tensor, tensor]), torch.zeros(2, 6))
    np.testing.assert_allclose(out, VALUES, rtol=1e-6)
    np.testing.assert_allclose(lse, np.log(2), rtol=1e-6)
    with pytest.raises(TypeError, match="out must be an ndarray, got Tensor"):
        softmax(tensor, 1, out=tensor)


def test_memory_maps(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, VALUES)
    x = np.load(file, mmap_mode="r")
    assert_taken(x)
    out = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", np.float32, x.shape)
    assert softmax(x, 1, out=out) is out
    out.flush()
    assert_same_bits(np.load(tmp_path / "y.npy"), EXPECTED)


def test_masked_arrays():
    masked = np.ma.masked_array(VALUES, VALUES > 1)
    for f, match in ((softmax, "pass x.data and where=~x.mask"), (softmax_entropy, "pass x.data and where=~x.mask"),
                     (logsumexp, "pass a.data and where=~a.mask")):
        with pytest.raises(TypeError, match=match):
            f(masked, 1)
    with pytest.raises(TypeError, match="query is a masked array"):
        scaled_dot_product_attention(masked, VALUES, VALUES)


def test_subclasses():
    class Named(np.ndarray):
        pass

    assert_taken(VALUES.view(Named))
    assert_taken(VALUES.view(np.matrix))
    assert_taken(np.rec.array(VALUES))


def test_byte_orders_alignment_strides_and_read_only_arrays():
    unaligned = np.zeros(VALUES.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(VALUES.shape)
    unaligned[...] = VALUES
    frozen = VALUES.copy()
    frozen.flags.writeable = False
    wide = np.zeros((12, 18), np.float32)
    wide[::2, ::2] = VALUES
    for x in (VALUES.astype(VALUES.dtype.newbyteorder()), unaligned, frozen, np.asfortranarray(VALUES), wide[::2, ::2],
              VALUES[::-1, ::-1].copy()[::-1, ::-1]):
        assert_taken(x)
    line = np.broadcast_to(VALUES[:1], (6, 9))
    assert_taken(line, softmax(line.copy(), 1), line.copy())
    with pytest.raises(ValueError, match="out is read-only"):
        softmax(VALUES, 1, out=frozen)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.longdouble, complex,
                                   np.complex64, bool, np.int8, np.int64], ids=lambda t: np.dtype(t).name)
def test_dtypes(dtype):
    """Results have the dtype that the table says; what is not taken is refused by its name."""
    x = (4 * VALUES).astype(dtype)
    kind = np.dtype(dtype).kind
    assert softmax(x, 1).dtype == (np.exp(x).dtype if kind in "biu" else x.dtype)
    assert logsumexp(x, 1).dtype == (np.float64 if kind in "biu" else x.dtype)
    np.testing.assert_allclose(softmax(x, 1).astype(complex).sum(1), 1, rtol=0.05)
    for f, allowed in ((lambda: softmax_entropy(x, 1), kind != "c"),
                       (lambda: cross_entropy(x, np.zeros(6, int)), kind != "c"),
                       (lambda: scaled_dot_product_attention(x, x, x), kind not in "cbiu"),
                       (lambda: softmax_backward(x, x), kind not in "cbiu")):
        if allowed:
            f()
        else:
            with pytest.raises(TypeError, match=str(np.dtype(dtype))):
                f()


def test_dtypes_that_are_no_numbers():
    for bad in (np.array([1.0, None]), np.array(["a"]), np.array([0], "M8[s]"), np.zeros(2, [("a", float)])):
        with pytest.raises(TypeError, match="x must be an array of numbers, got dtype"):
            softmax(bad)


@pytest.mark.parametrize("order", ["K", "C"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_converted_arrays_are_aligned(dtype, order):
    """So that kernels can take them: also where the dtype is that of the array."""
    x = LAYOUTS["unaligned by a byte"](VALUES)
    assert not x.flags.aligned
    got = converted(x, np.dtype(dtype), order)
    assert got.flags.aligned
    np.testing.assert_array_equal(got, VALUES)
