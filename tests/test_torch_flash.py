"""fastsoftmax.torch.enable: the kernels behind torch.nn.functional.scaled_dot_product_attention."""

import subprocess
import sys
import warnings

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from tensors import EVERY_DTYPE, random  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

import fastsoftmax as fs  # noqa: E402
import fastsoftmax.torch as ft  # noqa: E402

attention = torch.nn.attention
OP = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@pytest.fixture
def enabled():
    ft.enable()
    yield
    ft.disable()


@pytest.fixture
def calls(monkeypatch):
    """The names of the NumPy functions that were called."""
    names = []

    def recorded(name, function):
        def record(*args, **options):
            names.append(name)
            return function(*args, **options)

        monkeypatch.setattr(fs, name, record)

    for name in ("scaled_dot_product_attention", "scaled_dot_product_attention_backward"):
        recorded(name, getattr(fs, name))
    return names


def inputs_of(dtype=torch.float32, heads=(4, 2), lengths=(7, 9), width=8):
    """Query, key and value; the last as a (B, S, H, E) array."""
    query = random(2, heads[0], lengths[0], width, dtype=dtype, grad=True)
    key = random(2, heads[1], lengths[1], width, dtype=dtype, seed=1, grad=True)
    value = random(2, lengths[1], heads[1], width, dtype=dtype, seed=2).transpose(1, 2).requires_grad_()
    return query, key, value


def results(inputs, **options):
    """The result, and the gradients of the inputs that require them."""
    out = scaled_dot_product_attention(*inputs, **options)
    leaves = [x for x in (*inputs, options.get("attn_mask")) if isinstance(x, torch.Tensor) and x.requires_grad]
    return [out, *(torch.autograd.grad(out.sin().sum(), leaves) if leaves else ())]


MASK = random(7, 9, seed=3)
CALLS = {
    "plain": {}, "causal": {"is_causal": True}, "boolean mask": {"attn_mask": MASK > 0}, "scale": {"scale": 0.3},
    "floating mask": {"attn_mask": MASK}, "hidden rows": {"attn_mask": (MASK > 0) & (torch.arange(7)[:, None] > 2)},
}


@EVERY_DTYPE
@pytest.mark.parametrize("name", CALLS)
def test_results_gradients_and_strides_are_those_of_pytorch(name, dtype, calls):
    options = {key: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
               for key, x in CALLS[name].items()}
    inputs = inputs_of(dtype)
    expected = results(inputs, enable_gqa=True, **options)
    exact = results([x.detach().double().requires_grad_() for x in inputs], enable_gqa=True, **{
        key: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for key, x in options.items()})
    assert not calls
    ft.enable()
    try:
        found = results(inputs, enable_gqa=True, **options)
    finally:
        ft.disable()
    assert calls == ["scaled_dot_product_attention", "scaled_dot_product_attention_backward"]
    tolerance = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for mine, theirs, true in zip(found, expected, exact, strict=True):
        assert mine.dtype == theirs.dtype and mine.stride() == theirs.stride()
        torch.testing.assert_close(mine.double(), true, rtol=0, atol=tolerance * float(true.abs().max().detach()))


@EVERY_DTYPE
def test_lse_lies_in_memory_as_that_of_pytorch(dtype, calls):
    inputs = [x.detach() for x in inputs_of(dtype)]
    expected = OP(*inputs, is_causal=True)
    ft.enable()
    try:
        found = OP(*inputs, is_causal=True)
        with pytest.raises(NotImplementedError, match="dropout"):
            OP(*inputs, dropout_p=0.5)
    finally:
        ft.disable()
    assert calls
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape and mine.stride() == theirs.stride() and mine.dtype == theirs.dtype
        if dtype.itemsize == 2:                 # PyTorch rounds some scores to 16 bits
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0.02)
        else:
            torch.testing.assert_close(mine, theirs)


def test_other_calls_stay_those_of_pytorch(calls):
    """Their bits are the same: with dropout, other numbers of dimensions, Ev != E, a mask with gradient, MATH."""
    query, key, value = inputs_of(heads=(2, 2), lengths=(9, 9))

    def other_calls():
        torch.manual_seed(0)
        mask = random(9, 9, dtype=torch.float32, seed=4, grad=True)
        found = [*results((query, key, value), dropout_p=0.5), *results([x[0].detach() for x in (query, key, value)]),
                 *results((query, key, value[..., :4].detach())), *results((query, key, value), attn_mask=mask)]
        with sdpa_kernel(SDPBackend.MATH):
            return [*found, *results((query, key, value))]

    expected = other_calls()
    ft.enable()
    try:
        found = other_calls()
    finally:
        ft.disable()
    assert not calls
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_samples_of_pytorch(enabled):
    """Its own database of samples: values and gradients are those of the plain formula in float64."""
    methods = pytest.importorskip("torch.testing._internal.common_methods_invocations",
                                  reason="PyTorch's test samples need the package expecttest")
    (op,) = [op for op in methods.op_db if op.name == "nn.functional.scaled_dot_product_attention"]
    count = 0
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
            if sample.kwargs.get("dropout_p"):      # random
                continue
            inputs = [sample.input, *sample.args]
            found = results(inputs, **sample.kwargs)
            wide = [x.detach().double().requires_grad_() for x in inputs]
            kwargs = {k: x.detach().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                      for k, x in sample.kwargs.items()}
            with sdpa_kernel(SDPBackend.MATH):
                expected = results(wide, **kwargs)
            largest = max(float(x.detach().abs().max()) for x in expected)
            for mine, theirs in zip(found, expected, strict=False):
                torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=tolerance * max(largest, 1))
            count += 1
    assert count >= 20


def test_a_layer_of_pytorch_trains(calls):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    x = random(2, 10, 32, dtype=torch.float32)

    def gradients():
        return torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))

    expected = gradients()
    ft.enable()
    try:
        found = gradients()
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        also = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
    finally:
        ft.disable()
    assert len(calls) == 4
    for one, other, theirs in zip(found, also, expected, strict=True):
        torch.testing.assert_close(one, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other, theirs, rtol=1e-4, atol=1e-4)


def test_enabling_twice_warns_of_nothing_and_disabling_twice_restores_pytorch(calls):
    inputs = [x.detach() for x in inputs_of(heads=(2, 2))]
    before = scaled_dot_product_attention(*inputs)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ft.enable()
            ft.enable()
        assert attention.current_flash_attention_impl() == "fastsoftmax"
        scaled_dot_product_attention(*inputs)
        assert len(calls) == 1
        ft.disable()
        ft.disable()
        assert attention.current_flash_attention_impl() is None
        assert torch.equal(scaled_dot_product_attention(*inputs), before) and len(calls) == 1
        calls.clear()


def test_nothing_is_printed():
    code = "import fastsoftmax.torch as ft; ft.enable(); ft.enable(); ft.disable(); ft.disable()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_implementation_of_another_provider_stays(calls):
    removed = []

    class Handle:
        def remove(self):
            removed.append(True)

    attention.register_flash_attention_impl("another", register_fn=Handle)
    ft.enable()
    attention.activate_flash_attention_impl("another")      # takes ours away
    ft.disable()
    assert attention.current_flash_attention_impl() == "another" and not removed
    scaled_dot_product_attention(*inputs_of(heads=(2, 2)))
    assert not calls
    ft.enable()
    assert removed and attention.current_flash_attention_impl() == "fastsoftmax"
    ft.disable()
    assert attention.current_flash_attention_impl() is None


def test_threads_are_those_of_pytorch(enabled, monkeypatch):
    from fastsoftmax import _threads

    numbers, before, ours = set(), torch.get_num_threads(), _threads.threads_for

    def record(elements):
        numbers.add(fs.get_num_threads())
        return ours(elements)

    monkeypatch.setattr(_threads, "threads_for", record)
    try:
        torch.set_num_threads(3)
        results(inputs_of(heads=(2, 2)))
    finally:
        torch.set_num_threads(before)
    assert numbers == {3}
