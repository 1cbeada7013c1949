"""fastsoftmax.torch.varlen_attention: values, gradients, checks of PyTorch, and each sequence alone."""

import numpy as np
import pytest

import fastsoftmax as fs

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from tensors import EVERY_DTYPE, assert_same_as_numpy, layouts, numpy_of, random  # noqa: E402

import fastsoftmax.torch as ft  # noqa: E402

QUERIES, KEYS = torch.tensor([0, 3, 3, 8], dtype=torch.int32), torch.tensor([0, 4, 5, 11], dtype=torch.int32)
OPTIONS = [
    {}, {"is_causal": True}, {"is_causal": True, "causal_offset": 1}, {"causal_offset": torch.tensor([0, 1, 2]),
                                                                       "window": (2, 0)},
    {"scale": 0.3}, {"scale": random(4)}, {"softcap": 2.0}, {"alibi_slopes": random(4).abs()},
    {"alibi_slopes": random(3, 4).abs()}, {"sinks": random(4)}, {"return_lse": True}, {"return_entropy": True},
    {"return_lse": True, "return_entropy": True, "is_causal": True}]


def inputs_of(dtype=torch.float64, grad=False):
    return [random(n, heads, width, dtype=dtype, seed=seed, grad=grad)
            for seed, (n, heads, width) in enumerate(((8, 4, 6), (11, 2, 6), (11, 2, 5)))]


@EVERY_DTYPE
def test_results_are_those_of_the_numpy_function(dtype):
    query, key, value = inputs_of(dtype)
    for q in layouts(query):
        for options in OPTIONS:
            found = ft.varlen_attention(q, key, value, QUERIES, KEYS, enable_gqa=True, **options)
            expected = fs.varlen_attention(*map(numpy_of, (q, key, value, QUERIES, KEYS)), enable_gqa=True,
                                           **{name: numpy_of(x) for name, x in options.items()})
            assert_same_as_numpy(found, expected, [q, key, value])


def test_one_table_of_lengths_serves_queries_and_keys():
    x = random(8, 2, 6)
    torch.testing.assert_close(ft.varlen_attention(x, x, x, [0, 3, 3, 8]),
                               ft.varlen_attention(x, x, x, QUERIES, QUERIES))


def with_all(query, key, value, scale, slopes, sinks):
    return ft.varlen_attention(query, key, value, QUERIES, KEYS, is_causal=True, enable_gqa=True, window=(4, None),
                               softcap=4.0, scale=scale, alibi_slopes=slopes, sinks=sinks, return_lse=True)


def all_inputs():
    of_heads = random(4).abs(), random(3, 4).abs(), random(4, seed=2)
    return (*inputs_of(grad=True), *(x.requires_grad_() for x in of_heads))


def test_gradients_are_those_of_differences():
    assert torch.autograd.gradcheck(with_all, all_inputs())


def test_second_derivatives_are_never_missing_in_silence():
    inputs = all_inputs()
    out, lse = with_all(*inputs)
    for gradient in torch.autograd.grad(out.sin().sum() + lse.sin().sum(), inputs, create_graph=True):
        with pytest.raises(NotImplementedError, match="varlen_attention has no second derivatives"):
            torch.autograd.grad(gradient.sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_of_each_sequence_alone(dtype):
    inputs = inputs_of(dtype, grad=True)
    grad = random(8, 4, 5, dtype=dtype, seed=9)
    found = torch.autograd.grad(ft.varlen_attention(*inputs, QUERIES, KEYS, enable_gqa=True), inputs, grad)
    for i in range(3):
        rows, keys = slice(*QUERIES[i:i + 2]), slice(*KEYS[i:i + 2])
        parts = [x[part] for x, part in zip(inputs, (rows, keys, keys), strict=True)]
        alone = [x.transpose(0, 1).detach().requires_grad_() for x in parts]
        out = ft.scaled_dot_product_attention(*alone, enable_gqa=True)
        expected = torch.autograd.grad(out, alone, grad[rows].transpose(0, 1))
        for mine, theirs, part in zip(found, expected, (rows, keys, keys), strict=True):
            torch.testing.assert_close(mine[part], theirs.transpose(0, 1))


NUMBERS = [float("nan"), 0.0], [1, 1, 1, 1, -1, -1]


@pytest.mark.parametrize("kind", ["", "_with_statistics", "_with_gradient"])
def test_ops_pass_the_checks_of_pytorch(kind):
    op = getattr(torch.ops.fastsoftmax, f"varlen_attention{kind}").default
    inputs = inputs_of(torch.float32, grad="gradient" in kind)
    torch.library.opcheck(op, (*inputs, QUERIES, KEYS, *[None] * 4, *NUMBERS))


def test_it_compiles_whole_once_for_all_lengths():
    torch._dynamo.reset()

    def function(x, lengths):
        return ft.varlen_attention(x, x, x, lengths, is_causal=True, return_lse=True)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    compiled(random(8, 2, 4, grad=True), torch.tensor([0, 3, 8]))
    x, lengths = random(11, 2, 4, grad=True), torch.tensor([0, 3, 7, 11])
    with torch.compiler.set_stance("fail_on_recompile"):
        found = compiled(x, lengths)
    expected = function(x, lengths)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum() + lse.sum(), x)[0] for out, lse in (found, expected)))


def test_errors_say_what_to_do():
    x = random(8, 2, 6)
    with pytest.raises(ValueError, match="cu_seqlens_q"):
        ft.varlen_attention(x, x, x, torch.tensor([0, 9]))
    with pytest.raises(TypeError, match="cu_seqlens_q"):
        ft.varlen_attention(x, x, x, torch.tensor([0.0, 8.0]))
    with pytest.raises(NotImplementedError, match="cu_seqlens_k is on the device meta"):
        ft.varlen_attention(x, x, x, QUERIES, KEYS.to("meta"))
    with pytest.raises(NotImplementedError, match="dropout_p"):
        ft.varlen_attention(x, x, x, QUERIES, dropout_p=0.1)
    with pytest.raises(TypeError, match="must be a tensor"):
        ft.varlen_attention(np.zeros((8, 2, 6)), x, x, QUERIES)
