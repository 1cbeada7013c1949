"""PyTorch's own samples of each operation (its OpInfo database), and ONNX's node tests of its two losses.

Results and gradients are those of PyTorch's autograd in float64, and those that ONNX's tests hold.
"""

import warnings

import numpy as np
import pytest

import fastsoftmax as fs

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}     # of the largest element: PyTorch's own float64 has some ULP
OPERATIONS = ("softmax", "log_softmax", "logsumexp", "nn.functional.cross_entropy",
              "nn.functional.linear_cross_entropy", "nn.functional.scaled_dot_product_attention")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture(scope="module")
def database(torch):
    methods = pytest.importorskip("torch.testing._internal.common_methods_invocations",
                                  reason="PyTorch's test samples need the package expecttest")
    return [op for op in methods.op_db if op.name in OPERATIONS]


def samples(torch, database, name):
    """Every sample of an operation, with its tensors in float64."""
    def wide(x):
        return x.detach().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    for op in database:
        if op.name == name:
            for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
                yield [wide(x) for x in (sample.input, *sample.args)], {k: wide(v) for k, v in sample.kwargs.items()}


def numpy_of(x, dtype):
    """The array of a tensor, in dtype if it is floating; anything else as it is."""
    if not hasattr(x, "numpy"):
        return x
    return x.numpy().astype(dtype) if x.is_floating_point() else x.numpy()


def autograd(torch, function, inputs):
    """(result, grad, gradients of the inputs), grad being random, in float64."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    result = function(*inputs)
    grad = torch.from_numpy(np.random.default_rng(5).normal(size=tuple(result.shape)))
    gradients = torch.autograd.grad(result, inputs, grad, allow_unused=True)
    return result.detach().numpy(), grad.numpy(), [None if g is None else g.numpy() for g in gradients]


def assert_close(found, expected, dtype, largest=0.0):
    """`largest`: the size of the terms of a sum that cancels, if it is larger than the sum."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    assert found.shape == expected.shape
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=max(largest, 1e-3))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * largest, equal_nan=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(torch, database, name, dtype):
    forward, back = {"softmax": (fs.softmax, fs.softmax_backward),
                     "log_softmax": (fs.log_softmax, fs.log_softmax_backward)}[name]
    count = 0
    for (x, axis), options in samples(torch, database, name):
        if "dtype" in options:                  # its result in another dtype: ours takes `dtype` likewise
            continue
        if x.ndim == 0 or x.shape[axis] == 0:   # PyTorch takes a number for a vector of one, and a sum over nothing
            continue
        y, grad, (dx,) = autograd(torch, lambda t, axis=axis: getattr(torch, name)(t, axis), [x])
        ours = forward(numpy_of(x, dtype), axis=axis)
        assert_close(ours, y, dtype)
        assert_close(back(grad.astype(dtype), ours, axis=axis), dx, dtype)
        count += 1
    assert count >= 5


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logsumexp(torch, database, dtype):
    count = 0
    for (x, axis, keep), _ in samples(torch, database, "logsumexp"):
        if x.ndim == 0 or x.is_complex() or not x.is_floating_point():
            continue
        y, grad, (dx,) = autograd(torch, lambda t, a=axis, k=keep: torch.logsumexp(t, a, k), [x])
        a = numpy_of(x, dtype)
        lse = fs.logsumexp(a, axis=axis, keepdims=keep)
        assert_close(lse, y, dtype)
        assert_close(fs.logsumexp_backward(grad.astype(dtype), a, lse, axis=axis, keepdims=keep), dx, dtype)
        count += 1
    assert count >= 4


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_cross_entropy(torch, database, dtype):
    count = 0
    for (x, target), options in samples(torch, database, "nn.functional.cross_entropy"):
        def function(t, target=target, options=options):
            return torch.nn.functional.cross_entropy(t, target, **options)

        loss, grad, (dx,) = autograd(torch, function, [x])
        reduced = options.get("reduction", "mean") != "none"
        ours, gradient = fs.cross_entropy(
            numpy_of(x, dtype), numpy_of(target, dtype), axis=min(1, x.ndim - 1), return_grad=True,
            **{name: numpy_of(value, dtype) for name, value in options.items()})
        assert_close(ours, loss, dtype)
        factor = grad if reduced or grad.ndim == 0 else np.expand_dims(grad, min(1, x.ndim - 1))
        if not np.isnan(loss).any():            # a mean over nothing: NaN in PyTorch's gradient too, 0 in ours
            assert_close(gradient * factor, dx, dtype)
        count += 1
    assert count >= 20


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_linear_cross_entropy(torch, database, dtype):
    """Those of (N, D) states and (V, D) weights: PyTorch takes more axes."""
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if function is None:
        pytest.skip("this PyTorch has no linear_cross_entropy")
    count = 0
    for (hidden, weight, target), options in samples(torch, database, "nn.functional.linear_cross_entropy"):
        bias = options.get("linear_bias")
        if hidden.ndim != 2 or weight.ndim != 2 or target.ndim not in (1, 2) or options.get("reduction") == "none":
            continue
        names = {name: value for name, value in options.items() if name != "linear_bias"}
        inputs = [hidden, weight] + ([] if bias is None else [bias])

        def call(h, w, b=None, target=target, names=names):
            return function(h, w, target, **names, **({} if b is None else {"linear_bias": b}))

        loss, grad, gradients = autograd(torch, call, inputs)
        known = {"weight", "ignore_index", "label_smoothing", "reduction"}
        ours, found = fs.linear_cross_entropy(
            numpy_of(hidden, dtype), numpy_of(weight, dtype), numpy_of(target, dtype),
            linear_bias=None if bias is None else numpy_of(bias, dtype), return_grad=True,
            **{name: numpy_of(value, dtype) for name, value in names.items() if name in known})
        assert_close(ours, loss, dtype)
        if not np.isnan(loss).any():
            for mine, theirs in zip(found, gradients, strict=True):
                assert_close(mine * grad, theirs, dtype)
        count += 1
    assert count >= 10


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_attention(torch, database, dtype):
    count = 0
    for (query, key, value), options in samples(torch, database, "nn.functional.scaled_dot_product_attention"):
        if options.get("dropout_p"):            # random
            continue

        def function(q, k, v, options=options):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)

        out, grad, gradients = autograd(torch, function, [query, key, value])
        arrays = [numpy_of(x, dtype) for x in (query, key, value)]
        ours = {name: numpy_of(value, dtype) for name, value in options.items()}
        result, lse = fs.scaled_dot_product_attention(*arrays, **ours, return_lse=True)
        assert_close(result, out, dtype)
        found = fs.scaled_dot_product_attention_backward(grad.astype(dtype), *arrays, result, lse, **ours)
        largest = max(np.abs(g).max() for g in gradients)      # weights near 1 leave little of dquery and dkey
        for mine, theirs in zip(found, gradients, strict=True):
            assert_close(mine, theirs, dtype, largest)
        count += 1
    assert count >= 10


# ---- ONNX -----------------------------------------------------------------------------------------------------------


def node_tests(operator):
    """The node tests of an operator: (attributes, inputs, outputs)."""
    case = pytest.importorskip("onnx.backend.test.case.node", reason="onnx is not installed")
    with warnings.catch_warnings():             # of the arithmetic of other operators' tests
        warnings.simplefilter("ignore")
        tests = case.collect_testcases(None)
    for test in tests:
        nodes = test.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type == operator:
            yield {a.name: a.i if a.type == 2 else a.s.decode() for a in nodes[0].attribute}, *test.data_sets[0]


def test_softmax_cross_entropy_of_onnx():
    count = 0
    for attributes, (x, target, *weight), outputs in node_tests("SoftmaxCrossEntropyLoss"):
        loss = fs.cross_entropy(
            x, target, axis=1, weight=weight[0] if weight else None,
            ignore_index=attributes.get("ignore_index", -100), reduction=attributes.get("reduction", "mean"))
        assert_close(loss, outputs[0], "float32")
        if len(outputs) > 1:
            assert_close(fs.log_softmax(x, axis=1), outputs[1], "float32")
        count += 1
    assert count >= 30


def test_negative_log_likelihood_of_onnx():
    """Its inputs are taken for logarithms: the cross entropy of each row, less its lse."""
    count = 0
    for attributes, (x, target, *weight), outputs in node_tests("NegativeLogLikelihoodLoss"):
        ignored = target == attributes.get("ignore_index", -100)
        factor = np.where(ignored, 0, (weight[0] if weight else np.ones(x.shape[1]))[np.where(ignored, 0, target)])
        loss, lse = fs.cross_entropy(x, target, axis=1, weight=weight[0] if weight else None, reduction="none",
                                     ignore_index=attributes.get("ignore_index", -100), return_lse=True)
        loss = loss - factor * lse
        reduction = attributes.get("reduction", "mean")
        if reduction != "none":
            loss = loss.sum() / (factor.sum() if reduction == "mean" else 1)
        assert_close(loss, outputs[0], "float32")
        count += 1
    assert count >= 15
