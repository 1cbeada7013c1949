"""fastsoftmax.torch: values, gradients and second derivatives.

Values have the bits of the NumPy functions; gradients are those of PyTorch's gradcheck, which takes differences.
"""

import numpy as np
import pytest

import fastsoftmax as fs

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from tensors import EVERY_DTYPE, assert_same_as_numpy, layouts, numpy_of, random, tuples  # noqa: E402

import fastsoftmax.torch as ft  # noqa: E402


def call_both(name, *args, **options):
    found = getattr(ft, name)(*args, **options)
    expected = getattr(fs, name)(*map(numpy_of, args), **{k: numpy_of(v) for k, v in options.items()})
    assert_same_as_numpy(found, expected, [*args, *options.values()])
    return found


# ---- values

@EVERY_DTYPE
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "softmax_entropy"])
def test_rows_are_those_of_the_numpy_function(name, dtype):
    for x in layouts(random(3, 4, 50, dtype=dtype)):
        for axis in (None, -1, 0, (0, 2), [1], ()):
            call_both(name, x, tuple(axis) if isinstance(axis, list) else axis)
        call_both(name, x, -1, where=random(4, 50, seed=1) > 0)
        if name == "logsumexp":
            call_both(name, x, 1, keepdims=True)
            call_both(name, x, (0, 1), keepdims=True)
        else:
            call_both(name, x, 1, temperature=3)
            call_both(name, x, 2, temperature=random(4, 1, seed=2, dtype=dtype).abs() + 0.5)
    for axis in (0, -1, None, ()):
        call_both(name, torch.tensor(2.5, dtype=dtype), axis)
    assert getattr(ft, name)(torch.zeros(0, 3, dtype=dtype), -1).shape == getattr(fs, name)(np.zeros((0, 3)), -1).shape


@EVERY_DTYPE
def test_causal_softmax_is_that_of_the_numpy_function(dtype):
    for x in layouts(random(2, 7, 9, dtype=dtype)):
        call_both("causal_softmax", x)
        call_both("causal_softmax", x, offset=2, temperature=0.5)
        call_both("causal_softmax", x, temperature=random(7, 1, seed=3).abs() + 1)


@EVERY_DTYPE
def test_cross_entropy_is_that_of_the_numpy_function(dtype):
    target = torch.randint(-1, 6, (4, 5), generator=torch.Generator().manual_seed(0))
    for x in layouts(random(4, 5, 6, dtype=dtype)):
        call_both("cross_entropy", x, target, ignore_index=-1)
        call_both("cross_entropy", x, target, ignore_index=-1, reduction="none", label_smoothing=0.2, z_loss=0.5,
                  return_lse=True, softcap=2.0, temperature=random(4, 5, seed=1).abs() + 0.5)
        call_both("cross_entropy", x.transpose(1, 2), target, 1, ignore_index=-1, reduction="sum",
                  weight=random(6, dtype=dtype).abs())
        call_both("cross_entropy", x, random(4, 5, 6, seed=4, dtype=dtype).softmax(-1), temperature=2)
    call_both("cross_entropy", random(6, dtype=dtype), torch.tensor(2))
    with_grad = ft.cross_entropy(random(4, 6, dtype=dtype, grad=True), target[0, :4].clamp(min=0))
    assert with_grad.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@EVERY_DTYPE
def test_attention_is_that_of_the_numpy_function(dtype):
    key, value = random(2, 2, 9, 8, dtype=dtype, seed=1), random(2, 2, 9, 5, dtype=dtype, seed=2)
    mask = random(7, 9, seed=3)
    option_sets = [
        {}, {"is_causal": True}, {"is_causal": True, "causal_offset": 2}, {"window": (3, None)}, {"window": (1, 2)},
        {"attn_mask": mask > 0}, {"attn_mask": mask.to(dtype)}, {"bias": mask, "attn_mask": mask > -1}, {"scale": 0.3},
        {"scale": random(4, seed=4)}, {"softcap": 2.0}, {"alibi_slopes": random(4, seed=5).abs()},
        {"sinks": random(4, seed=6)}, {"key_lengths": torch.tensor([9, 3])}, {"key_lengths": [9, 0]},
        {"causal_offset": torch.tensor([0, 2]), "window": (None, 0)}, {"return_lse": True}, {"return_entropy": True},
        {"return_lse": True, "return_entropy": True, "sinks": random(4, seed=6), "is_causal": True}]
    for query in layouts(random(2, 4, 7, 8, dtype=dtype)):
        for options in option_sets:
            call_both("scaled_dot_product_attention", query, key, value, enable_gqa=True, **options)
    query = random(2, 4, 7, 8, dtype=dtype)
    for inputs in ((query[0, 0], key[0, 0], value[0, 0]), (query[0, :2], key[0], value[0]),
                   (query, key[0, :1], value[0, :1]), (query[:, :1], key, value), (query[0, 0], key[0], value),
                   (query[:, :2, :0], key, value), (query[:, :2], key[:, :, :0], value[:, :, :0])):
        call_both("scaled_dot_product_attention", *inputs, return_lse=True)
        call_both("scaled_dot_product_attention", *inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_keys_beside_a_float32_query(dtype):
    query = random(2, 4, 7, 8, dtype=torch.float32, grad=True)
    key, value = (random(2, 4, 9, 8, dtype=dtype, seed=s, grad=True) for s in (1, 2))
    out = call_both("scaled_dot_product_attention", query.detach(), key.detach(), value.detach())
    assert out.dtype == torch.float32
    gradients = torch.autograd.grad(ft.scaled_dot_product_attention(query, key, value).sum(), (query, key, value))
    assert [g.dtype for g in gradients] == [torch.float32, dtype, dtype]


@EVERY_DTYPE
def test_kernels_see_the_memory_of_a_tensor(dtype):
    """No copy goes in, whatever the strides, and whether or not a gradient is required."""
    from fastsoftmax.torch import _library

    for x in layouts(random(3, 4, 5, dtype=dtype)):
        for tensor in (x, x.detach().requires_grad_()):
            array = _library.array(tensor)
            assert array.ctypes.data == x.data_ptr()
            assert array.strides == tuple(s * x.itemsize for s in x.stride())


def test_a_negated_view_is_resolved():
    x = torch.randn(3, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    torch.testing.assert_close(ft.softmax(x, -1), torch.softmax(x, -1))


# ---- gradients

def tensors_of_attention(dtype=torch.float64):
    return [x.requires_grad_() for x in (
        random(2, 4, 5, 3, dtype=dtype), random(2, 2, 6, 3, dtype=dtype, seed=1),
        random(2, 2, 6, 2, dtype=dtype, seed=2), random(5, 6, dtype=dtype, seed=3),
        random(4, 1, 6, dtype=dtype, seed=4), random(4, seed=5).abs(), random(2, 4, seed=6).abs(), random(4, seed=7))]


def attention_with_all(query, key, value, mask, bias, scale, slopes, sinks):
    return ft.scaled_dot_product_attention(
        query, key, value, mask, is_causal=True, scale=scale, enable_gqa=True, bias=bias, causal_offset=2,
        window=(3, None), softcap=5.0, alibi_slopes=slopes, sinks=sinks, key_lengths=[6, 4], return_lse=True)


X, T = random(3, 5, grad=True), (random(3, 1, seed=1).abs() + 0.5).requires_grad_()
VISIBLE = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]]) > 0
GRADIENTS = {
    "softmax": (lambda x, t: ft.softmax(x, -1, temperature=t), (X, T)),
    "softmax of all": (lambda x: ft.softmax(x, temperature=2.0), (X,)),
    "softmax, masked": (lambda x: ft.softmax(x, (0, 1), where=VISIBLE), (X,)),
    "log_softmax": (lambda x, t: ft.log_softmax(x, -1, temperature=t), (X, T)),
    "log_softmax of columns": (lambda x: ft.log_softmax(x, 0), (X,)),
    "log_softmax of all": (lambda x, t: ft.log_softmax(x, temperature=t), (X, T[:1].detach().requires_grad_())),
    "logsumexp": (lambda x: ft.logsumexp(x, -1), (X,)),
    "logsumexp, masked": (lambda x: ft.logsumexp(x, 1, True, where=VISIBLE), (X,)),
    "logsumexp of all": (lambda x: ft.logsumexp(x), (X,)),
    "causal_softmax": (lambda x, t: ft.causal_softmax(x, offset=2, temperature=t), (X, T)),
}
FIRST_ALONE = {
    "softmax_entropy": (lambda x, t: ft.softmax_entropy(x, -1, temperature=t), (X, T)),
    "softmax_entropy, masked": (lambda x: ft.softmax_entropy(x, 0, where=VISIBLE), (X,)),
    "cross_entropy": (lambda x: ft.cross_entropy(x, torch.tensor([1, -100, 4])), (X,)),
    "attention": (attention_with_all, tensors_of_attention()),
    "attention, numbers for all heads": (
        lambda q, k, s, sinks, slopes: ft.scaled_dot_product_attention(
            q, k, k, scale=s, sinks=sinks, alibi_slopes=slopes), [x.requires_grad_() for x in (
                random(2, 4, 3), random(2, 5, 3, seed=1), torch.tensor(0.3).double(), random(1),
                torch.tensor(0.2).double())]),
}


@pytest.mark.parametrize("name", [*GRADIENTS, *FIRST_ALONE])
def test_gradients_are_those_of_differences(name):
    function, inputs = {**GRADIENTS, **FIRST_ALONE}[name]
    assert torch.autograd.gradcheck(function, tuple(inputs))


@pytest.mark.parametrize("name", GRADIENTS)
def test_second_derivatives_are_those_of_differences(name):
    function, inputs = GRADIENTS[name]
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", FIRST_ALONE)
def test_second_derivatives_are_never_missing_in_silence(name):
    function, inputs = FIRST_ALONE[name]
    result = sum(x.sin().sum() for x in tuples(function(*inputs)))
    first = torch.autograd.grad(result, inputs, create_graph=True)
    for gradient in first:
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            torch.autograd.grad(gradient.sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("softcap", [None, 1.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_every_tensor_of_cross_entropy_gets_its_gradient(kind, reduction, softcap):
    def function(x, weight, t, target):
        return ft.cross_entropy(x, target if kind == "probabilities" else torch.tensor([1, -100, 4]), weight=weight,
                                reduction=reduction, label_smoothing=0.1, z_loss=0.3, softcap=softcap, temperature=t,
                                return_lse=True)

    weight, target = (random(5, seed=2).abs() + 0.2).requires_grad_(), random(3, 5, seed=3).softmax(-1).requires_grad_()
    temperature = T if kind == "classes" else T.detach()[:, 0].clone().requires_grad_()
    inputs = [X, weight, temperature, target if kind == "probabilities" else target.detach()]
    assert torch.autograd.gradcheck(function, inputs)
    inputs[0] = X.detach()
    assert torch.autograd.gradcheck(function, inputs)


def test_ignored_rows_and_masked_places_are_not_read():
    x = X.detach().clone()
    x[1] = torch.nan
    x.requires_grad_()
    loss = ft.cross_entropy(x, torch.tensor([1, -100, 4]), weight=torch.ones(5, dtype=torch.float64).requires_grad_())
    (gradient,) = torch.autograd.grad(loss, x)
    assert (gradient[1] == 0).all() and gradient[[0, 2]].isfinite().all()
    y = torch.where(VISIBLE, X.detach(), torch.nan).requires_grad_()
    t = T.detach().requires_grad_()
    for function in (ft.softmax, ft.log_softmax, ft.softmax_entropy):
        result = function(y, -1, where=VISIBLE, temperature=t)
        gradients = torch.autograd.grad(result[result.isfinite()].sum(), (y, t))
        assert all(g.isfinite().all() for g in gradients), function
        assert (gradients[0][~VISIBLE] == 0).all()


@EVERY_DTYPE
def test_gradients_are_those_of_the_numpy_functions(dtype):
    """In every dtype; with a gradient of any strides."""
    x = random(6, 8, dtype=dtype, grad=True)
    a, grad = numpy_of(x), random(8, 6, dtype=dtype, seed=1).t()
    for name in ("softmax", "log_softmax"):
        y = getattr(ft, name)(x, -1)
        (dx,) = torch.autograd.grad(y, x, grad)
        assert_same_as_numpy(dx, getattr(fs, f"{name}_backward")(numpy_of(grad), numpy_of(y), -1), [y])
    (dx,) = torch.autograd.grad(ft.softmax_entropy(x, -1), x, grad[:, 0])
    assert_same_as_numpy(dx, fs.softmax_entropy_backward(numpy_of(grad[:, 0]), a, -1), [])
    (dx,) = torch.autograd.grad(ft.logsumexp(x, -1), x, grad[:, 0])
    wide = fs.logsumexp(a, -1, dtype=np.float32 if dtype.itemsize == 2 else None)
    assert_same_as_numpy(dx, fs.logsumexp_backward(numpy_of(grad[:, 0]), a, wide, -1), [])
    target = torch.tensor([1, 7, -100, 0, 3, 2])
    (dx,) = torch.autograd.grad(ft.cross_entropy(x, target), x)
    assert_same_as_numpy(dx, fs.cross_entropy(a, target.numpy(), return_grad=True)[1], [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_16_bit_attention_are_as_accurate_as_those_of_plain_formulas(dtype):
    worst = {"ours": 0.0, "plain": 0.0}
    for seed in range(4):
        inputs = [random(1, 2, 40, 16, dtype=dtype, seed=seed + s) for s in (0, 10, 20)]
        grad = random(1, 2, 40, 16, dtype=dtype, seed=seed + 30)

        def gradients(function, wide, inputs=inputs, grad=grad):
            tensors = [x.to(wide).requires_grad_() for x in inputs]
            return torch.autograd.grad(function(*tensors), tensors, grad.to(wide))

        def plain(q, k, v):
            return torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v

        exact = gradients(plain, torch.float64)
        for name, function in (("ours", ft.scaled_dot_product_attention), ("plain", plain)):
            found = gradients(function, dtype)
            error = max(float((g.double() - e).abs().max() / e.abs().max()) for g, e in zip(found, exact, strict=True))
            worst[name] = max(worst[name], error)
    assert worst["ours"] <= worst["plain"]


def test_gradients_that_are_not_asked_for_are_none():
    query, key, value = (random(1, 2, 5, 4, seed=s) for s in range(3))
    for which in range(3):
        inputs = [x.clone().requires_grad_(i == which) for i, x in enumerate((query, key, value))]
        ft.scaled_dot_product_attention(*inputs).sum().backward()
        assert [x.grad is not None for x in inputs] == [i == which for i in range(3)]
    out, entropy = ft.scaled_dot_product_attention(query.requires_grad_(), key, value, return_entropy=True)
    assert out.requires_grad and not entropy.requires_grad
    with torch.no_grad():
        assert not ft.scaled_dot_product_attention(query, key, value).requires_grad


def test_a_backward_pass_can_be_repeated():
    """Also after a change of the gradients that the first has returned."""
    inputs, classes = tensors_of_attention(), torch.tensor([0, 1, 2])
    for result, leaves in ((ft.cross_entropy(X, classes), [X]), (3 * ft.cross_entropy(X, classes), [X]),
                           (ft.cross_entropy(X, classes, reduction="none").square().sum(), [X]),
                           (attention_with_all(*inputs)[0].sum(), inputs)):
        first = torch.autograd.grad(result, leaves, retain_graph=True)
        kept = [g.clone() for g in first]
        for g in first:
            g.zero_()
        for _ in range(2):
            for one, other in zip(kept, torch.autograd.grad(result, leaves, retain_graph=True), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_gradients_accumulate():
    x = X.detach().clone().requires_grad_()
    loss = ft.cross_entropy(x, torch.tensor([0, 1, 2]))
    for count in range(1, 4):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(x.grad, count * torch.autograd.grad(
            torch.nn.functional.cross_entropy(x, torch.tensor([0, 1, 2])), x)[0])
