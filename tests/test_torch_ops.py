"""fastsoftmax.torch: its ops under PyTorch's own checks, compilation and export, threads, imports and errors."""

import doctest
import io
import subprocess
import sys

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import _threads

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from tensors import random  # noqa: E402

import fastsoftmax.torch as ft  # noqa: E402

OPS = torch.ops.fastsoftmax
VISIBLE = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]]) > 0

# ---- ops

SAMPLES = {
    "softmax": (random(5, 3, grad=True).t(), [-1], 1.0, None, None),
    "log_softmax": (random(3, 5, grad=True), None, 2.0, None, VISIBLE),
    "logsumexp": (random(3, 5, grad=True), [0], False, None),
    "softmax_entropy": (random(3, 5, grad=True), [1], 1.0, random(3, 1).abs() + 0.5, None),
    "causal_softmax": (random(3, 5, grad=True), 1, 2.0, None),
    "cross_entropy": (random(3, 5), torch.tensor([0, 1, 2]), None, None, "none", [0.0, 0.0, 0.0, 1.0],
                      [-1, -100, 0, 0]),
    "cross_entropy_with_gradient": (random(3, 5, grad=True), torch.tensor([0, 1, 2]), None, None, "mean",
                                    [0.0, 0.0, 0.0, 1.0], [-1, -100, 1, 1]),
    "attention": (random(2, 4, 5, 3), random(2, 2, 6, 3), random(2, 2, 6, 2), *[None] * 7, [float("nan"), 0.0],
                  [1, 1, 0, 0, -1, -1, 1]),
    "attention_with_statistics": (random(2, 4, 5, 3), random(2, 2, 6, 3), random(2, 2, 6, 2), *[None] * 7,
                                  [float("nan"), 0.0], [0, 1, 0, 1, 2, -1, 1]),
    "attention_with_gradient": (
        random(2, 4, 5, 3, dtype=torch.bfloat16, grad=True), random(2, 2, 6, 3, dtype=torch.bfloat16, grad=True),
        random(2, 2, 6, 2, dtype=torch.bfloat16, grad=True), *[None] * 7, [0.5, 2.0], [1, 1, 1, 1, 3, -1]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_ops_pass_the_checks_of_pytorch(name):
    """Schemas that are true, autograd, fake kernels with the real strides, and compilation with dynamic shapes."""
    torch.library.opcheck(getattr(OPS, name).default, SAMPLES[name])


def test_every_op_with_a_gradient_is_sampled():
    names = [name.removeprefix("fastsoftmax::") for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("fastsoftmax::") and "varlen" not in name]      # those have their own module
    assert {name for name in names if not name.endswith("_backward")} == set(SAMPLES)


def model(query, key, value, mask, target, weight):
    """Each function once or more, with lengths that are not constant."""
    length, keys, width = query.shape[-2], key.shape[-2], query.shape[-1]
    x = ft.scaled_dot_product_attention(query, key, value, mask, is_causal=True, causal_offset=keys - length,
                                        window=(keys - 1, None), softcap=3.0, scale=width ** -0.5, enable_gqa=True)
    x, lse = ft.scaled_dot_product_attention(x, x, x, return_lse=True)
    x = ft.softmax(x, -1, temperature=2) + ft.log_softmax(x, (1, -1)) + ft.causal_softmax(x, offset=width - length)
    return (ft.cross_entropy(x, target, label_smoothing=0.1, weight=weight) + lse.sum() + ft.logsumexp(x)
            + ft.softmax_entropy(x, -1).sum())


def inputs_of_model(length, keys):
    tensors = [random(2, heads, n, 8, seed=heads, grad=True) for heads, n in ((4, length), (2, keys), (2, keys))]
    target = torch.arange(2 * 4 * length).reshape(2, 4, length) % 8
    return [*tensors, random(length, keys, grad=True), target, random(8).abs()]


def test_a_model_compiles_whole_once_for_all_lengths():
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    compiled(*inputs_of_model(5, 7))
    for length, keys in ((6, 9), (11, 11)):
        inputs = inputs_of_model(length, keys)
        expected = model(*inputs)
        with torch.compiler.set_stance("fail_on_recompile"):
            found = compiled(*inputs)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(result, inputs[:4]) for result in (found, expected)]
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_the_default_compiler_takes_the_ops():
    torch._dynamo.reset()

    def function(q, k, v):
        return ft.softmax(ft.scaled_dot_product_attention(q * 2, k, v), -1).square()

    inputs = [random(1, 2, 5, 4, seed=s, dtype=torch.float32, grad=True) for s in range(3)]
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(function, fullgraph=True)(*inputs), function(*inputs))


def test_a_module_is_exported_saved_and_loaded():
    class Attention(torch.nn.Module):
        def forward(self, query, key, value):
            return ft.scaled_dot_product_attention(query, key, value, is_causal=True)

    length = {2: torch.export.Dim("length")}
    program = torch.export.export(Attention(), tuple(random(2, 3, 6, 4, seed=s) for s in range(3)),
                                  dynamic_shapes=(length,) * 3)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    inputs = [random(2, 3, 9, 4, seed=s) for s in range(3)]
    torch.testing.assert_close(torch.export.load(buffer).module()(*inputs), Attention()(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("transform", ["hessian", "grad", "jvp", "dual"])
def test_transforms_that_are_not_supported_raise(transform):
    x = random(3, 5)

    def function(x):
        return ft.softmax(x, -1).square().sum()

    with pytest.raises((NotImplementedError, RuntimeError)):
        if transform == "dual":
            with torch.autograd.forward_ad.dual_level():
                function(torch.autograd.forward_ad.make_dual(x, x))
        elif transform == "jvp":
            torch.func.jvp(function, (x,), (x,))
        else:
            getattr(torch.func, transform)(function)(x)


# ---- threads

def threads_of(call, monkeypatch):
    """The numbers of threads with which its kernels run."""
    numbers, before = set(), _threads.threads_for

    def record(elements):
        numbers.add(_threads.get_num_threads())
        return before(elements)

    monkeypatch.setattr(_threads, "threads_for", record)
    call()
    monkeypatch.undo()
    return numbers


def training_step():
    x = torch.zeros(1, 2, 300, 64, requires_grad=True)
    out = ft.scaled_dot_product_attention(x, x, x)
    loss = ft.cross_entropy(ft.log_softmax(out.mT, -1), torch.zeros(1, 2, 64, dtype=torch.int64))
    loss.backward()


def test_kernels_run_with_the_threads_of_pytorch(monkeypatch):
    before, ours = torch.get_num_threads(), fs.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            assert threads_of(training_step, monkeypatch) == {number}
            assert torch.get_num_threads() == number and fs.get_num_threads() == ours
            with fs.num_threads(2):
                assert threads_of(training_step, monkeypatch) == {2}
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError):
        ft.softmax(torch.zeros(3, 0), -1)
    assert fs.get_num_threads() == ours and not _threads._local.numbers


# ---- imports and errors

def run_python(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)


def test_importing_overrides_and_activates_nothing():
    code = """if True:
        import sys, fastsoftmax
        assert "torch" not in sys.modules and "fastsoftmax.torch" not in sys.modules
        import torch
        q = torch.randn(1, 2, 8, 16)
        before = torch.nn.functional.scaled_dot_product_attention(q, q, q), torch.get_num_threads()
        import fastsoftmax.torch
        assert torch.nn.attention.current_flash_attention_impl() is None
        after = torch.nn.functional.scaled_dot_product_attention(q, q, q), torch.get_num_threads()
        assert torch.equal(before[0], after[0]) and before[1] == after[1]
    """
    result = run_python(code)
    assert result.returncode == 0 and not result.stderr, result.stderr


def test_without_pytorch_the_error_is_a_line_that_says_how_to_install_it():
    result = run_python("import sys; sys.modules['torch'] = None; import fastsoftmax.torch")
    assert result.stderr.rstrip().splitlines()[-1].startswith("ImportError: ")
    assert "pip install 'fastsoftmax[torch]'" in result.stderr.rstrip().splitlines()[-1]


X32 = torch.zeros(2, 3)
Q = [X32] * 3
CLASSES = torch.tensor([0, 1])
ERRORS = {
    "another device": (lambda: ft.softmax(X32.to("meta")), NotImplementedError, "x is on the device meta"),
    "mixed devices": (lambda: ft.scaled_dot_product_attention(X32, X32, X32.to("meta")), NotImplementedError,
                      "value is on"),
    "mixed devices, option": (lambda: ft.softmax(X32, where=(X32 > 0).to("meta")), NotImplementedError, "where is on"),
    "sparse": (lambda: ft.softmax(X32.to_sparse()), NotImplementedError, "x.to_dense"),
    "a sparse mask": (lambda: ft.scaled_dot_product_attention(*Q, X32.to_sparse()), NotImplementedError,
                      "attn_mask has the layout"),
    "nested": (lambda: ft.softmax(torch.nested.nested_tensor([X32], layout=torch.jagged), -1), NotImplementedError,
               "nested"),
    "dropout": (lambda: ft.scaled_dot_product_attention(*Q, None, 0.1), NotImplementedError, "dropout_p must be 0"),
    "dim": (lambda: ft.softmax(X32, dim=-1), TypeError, "axis=-1"),
    "integers": (lambda: ft.softmax(X32.long()), TypeError, "x.float"),
    "an array": (lambda: ft.softmax(X32.numpy()), TypeError, "must be a tensor"),
    "an axis that is no int": (lambda: ft.softmax(X32, 1.5), TypeError, "axis must be an int"),
    "an axis out of range": (lambda: ft.logsumexp(X32, 2), np.exceptions.AxisError, "out of bounds"),
    "a temperature of 0": (lambda: ft.softmax(X32, temperature=0), ValueError, "temperature must be positive"),
    "a negative window": (lambda: ft.scaled_dot_product_attention(*Q, window=(-1, 0)), ValueError, "window"),
    "a softcap of 0": (lambda: ft.scaled_dot_product_attention(*Q, softcap=0.0), ValueError, "softcap"),
    "a softcap of 0, loss": (lambda: ft.cross_entropy(X32, CLASSES, softcap=0), ValueError, "softcap"),
    "a class out of range": (lambda: ft.cross_entropy(X32, 3 * CLASSES), IndexError, r"target\[1\] is class 3"),
    "a reduction": (lambda: ft.cross_entropy(X32, CLASSES, reduction="max"), ValueError, "reduction"),
    "shapes": (lambda: ft.scaled_dot_product_attention(X32, torch.zeros(2, 4), X32), ValueError, "last dimensions"),
    "the op without a gradient": (
        lambda: OPS.attention(*[X32.clone().requires_grad_()] * 3, *[None] * 7, [0.1, 0.0], [0, 0, 0, 0, -1, -1]),
        NotImplementedError, "call fastsoftmax.torch.scaled_dot_product_attention"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ft.__all__)
def test_docstring(name):
    tests = doctest.DocTestFinder(recurse=False).find(getattr(ft, name), name, ft)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    results = [runner.run(test) for test in tests]
    assert sum(r.attempted for r in results) > 0 and not any(r.failed for r in results)
