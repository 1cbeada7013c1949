"""How each library is asked for each function: one class per library, one way of calling it.

``Library(threads).call(family, shape)`` gives a pair ``(statement, namespace)``, ready for ``timeit``: a string and
not a closure, so that on ten numbers nobody pays for one more Python call. What a library cannot do raises
``UnavailableError`` with the reason. Results go to preallocated memory where the library can, except for arrays below
``shapes.SMALL`` elements, which are measured as people write them.

For attention the namespace has two names more: ``result``, a function from the statement's value to the array
(B, Hq, L, E), which `checked` compares with float64, and ``how``, the operator that is called. Every library gets its
arrays in its own natural layout. Where it has several operators for the same work, each is tried, and the fastest is
the one that is measured.
"""

import functools
import importlib
import importlib.util
import os
import timeit
from pathlib import Path

import numpy as np
import shapes

THREADS_IN_ONE_PROCESS = 1  # with more, the thread pools of the libraries that share it would spin against each other


def load_baseline():
    """_selfcheck/numpy_baseline.py as a module of its own: the package's threads stay out of the peers' processes."""
    file = Path(__file__).resolve().parent.parent / "fastsoftmax" / "_selfcheck" / "numpy_baseline.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


baseline = load_baseline()


class UnavailableError(Exception):
    """The library cannot do this; the message says why."""


class WrongError(Exception):
    """The library's result is not that of the others."""


def numpy_data(shape):
    """The same normal deviates for every library, in the dtype asked for."""
    return converted(np.random.default_rng(2).standard_normal(shape.shape, dtype=np.float32) * 2, shape.dtype)


def converted(x, dtype):
    """The array in a dtype given by name."""
    if dtype != "bfloat16":
        return x.astype(dtype, copy=False)
    try:
        import ml_dtypes
    except ImportError:
        raise UnavailableError("ml_dtypes is not installed") from None
    return x.astype(ml_dtypes.bfloat16)


def attention_data(shape):
    """Queries, keys and values, normal deviates: (B, Hq, L, E), (B, Hk, S, E), (B, Hk, S, E)."""
    rng = np.random.default_rng(2)
    heads_and_lengths = ((shape.heads, shape.queries), (shape.key_heads, shape.keys), (shape.key_heads, shape.keys))
    sizes = [(shape.batch, *pair, shape.width) for pair in heads_and_lengths]
    return [converted(rng.standard_normal(size, dtype=np.float32), shape.dtype) for size in sizes]


def result_like(x, family, axis):
    """Where the result goes: of the input's shape, or without the axis for the reductions."""
    if family in ("logsumexp", "softmax_entropy"):
        return np.empty(x.shape[:axis % x.ndim] + x.shape[axis % x.ndim + 1:], x.dtype)
    return np.empty_like(x)


def hidden(shape):
    """(L, S) booleans, True above the diagonal: what a causal mask hides."""
    return ~np.tri(*shape.shape[-2:], dtype=bool)


def hidden_keys(shape, family):
    """(L, S) booleans, True where a query must not see a key; None where it sees all."""
    if family in ("attention", "attention_decode"):
        return None
    visible = np.tri(shape.queries, shape.keys, dtype=bool)
    if family == "attention_window":
        visible &= ~np.tri(shape.queries, shape.keys, -shapes.WINDOW, dtype=bool)
    return ~visible


TOLERANCE = {"float64": 1e-6, "float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}  # of values of size 1


def checked(family, shape, value, space):
    """How an attention was called, and the largest error of some of its rows; WrongError if that is too large."""
    rows = np.unique(np.linspace(0, shape.queries - 1, 16).astype(int))
    query, key, value64 = (x.astype(np.float64) for x in attention_data(shape))
    hidden = hidden_keys(shape, family)
    hidden = None if hidden is None else hidden[rows]
    exact = baseline.scaled_dot_product_attention(query[:, :, rows], key, value64, hidden)
    got = np.asarray(space["result"](value))
    if got.shape != query.shape:
        raise WrongError(f"wrong: the result has shape {got.shape}")
    error = np.abs(got[:, :, rows].astype(np.float64) - exact).max()
    if not error <= TOLERANCE[shape.dtype]:
        raise WrongError(f"wrong: {error:.1e} from the result in float64")
    return {"how": space["how"], "error": float(error)}


def fastest(candidates):
    """The (statement, namespace) that takes the least time; a candidate that raises is out, the last reason is kept.

    Parameters
    ----------
    candidates : iterable of functions
        Each returns such a pair.
    """
    tried, reason = [], UnavailableError("no operator for this")
    for candidate in candidates:
        try:
            statement, space = candidate()
            timer = timeit.Timer(statement, globals=space)
            timer.timeit(1)
            number = max(1, int(2e-3 / timer.timeit(1)))
            tried.append((min(timer.repeat(3, number)) / number, len(tried), (statement, space)))
        except Exception as error:
            reason = error
    if not tried:
        raise reason
    return min(tried)[2]


class Ours:
    """fastsoftmax, through its public functions."""

    name, needs, families = "fastsoftmax", ("fastsoftmax",), shapes.FAMILIES

    def __init__(self, threads):
        import fastsoftmax

        fastsoftmax.set_num_threads(threads)
        self.module = fastsoftmax

    def attention(self, family, shape):
        query, key, value = attention_data(shape)
        options = ", enable_gqa=True" if shape.heads != shape.key_heads else ""
        options += {
            "attention_causal": ", is_causal=True", "attention_window": f", window=({shapes.WINDOW - 1}, 0)",
        }.get(family, "")
        space = {"f": self.module.scaled_dot_product_attention, "q": query, "k": key, "v": value}
        space.update(result=lambda out: out, how=f"scaled_dot_product_attention(q, k, v{options})")
        if shape.small:
            return f"f(q, k, v{options})", space
        return f"f(q, k, v{options}, out=out)", {**space, "out": np.empty_like(query)}

    def call(self, family, shape):
        if family in shapes.ATTENTION:
            return self.attention(family, shape)
        x = numpy_data(shape)
        space = {"f": getattr(self.module, family), "x": x, "axis": shape.axis}
        if family == "causal_mask_":
            return "f(x)", space
        axis = "" if family == "causal_softmax" else ", axis"
        if shape.small or family == "softmax_entropy":
            return f"f(x{axis})", space
        space["out"] = result_like(x, family, shape.axis)
        return f"f(x{axis}, out=out)", space


class NumPy:
    """NumPy as one writes it: _selfcheck/numpy_baseline.py. 16-bit types in float32, which is four times as fast."""

    name, needs, families = "NumPy", ("numpy",), shapes.FAMILIES

    def __init__(self, threads):
        pass

    def attention(self, family, shape):
        query, key, value = attention_data(shape)
        space = {"f": baseline.scaled_dot_product_attention, "q": query, "k": key, "v": value}
        space.update(hidden=hidden_keys(shape, family), result=lambda out: out, how="softmax(q @ k.T) @ v")
        return "f(q, k, v, hidden)", space

    def call(self, family, shape):
        if family in shapes.ATTENTION:
            return self.attention(family, shape)
        x = numpy_data(shape)
        space = {"f": getattr(baseline, family), "x": x, "axis": shape.axis, "wide": np.float32, "dtype": x.dtype}
        if family in shapes.CAUSAL:
            return "f(x, hidden)", {**space, "hidden": hidden(shape)}
        return "f(x.astype(wide), axis).astype(dtype)" if x.dtype.itemsize == 2 else "f(x, axis)", space


class Oracle:
    """fastsoftmax.reference: the definition of each function, in a wider dtype; slow, and no peer."""

    name, needs, families = "oracle", ("fastsoftmax",), shapes.SOFTMAX

    def __init__(self, threads):
        from fastsoftmax import reference

        self.module = reference

    def call(self, family, shape):
        axis = "" if family in shapes.CAUSAL else ", axis"
        return f"f(x{axis})", {"f": getattr(self.module, family), "x": numpy_data(shape), "axis": shape.axis}


class SciPy:
    """scipy.special; it takes no `out`."""

    name, needs, families = "SciPy", ("scipy",), shapes.SOFTMAX

    def __init__(self, threads):
        import scipy.special

        self.special = scipy.special

    def call(self, family, shape):
        if shape.dtype == "bfloat16":
            raise UnavailableError("SciPy has no bfloat16")
        x = numpy_data(shape)
        space = {"x": x, "axis": shape.axis, "np": np, "special": self.special}
        if family == "causal_softmax":
            space["hidden"] = hidden(shape)
            return "special.softmax(np.where(hidden, -np.inf, x), -1)", space
        if family == "softmax_entropy":
            return "special.entr(special.softmax(x, axis)).sum(axis)", space
        if family == "causal_mask_":
            raise UnavailableError("SciPy has no masking; see NumPy")
        return f"special.{family}(x, axis)", space


TORCH = {
    "softmax": "torch._softmax(x, axis, False, out=out)",
    "log_softmax": "torch._log_softmax(x, axis, False, out=out)",
    "logsumexp": "torch.logsumexp(x, axis, out=out)",
    "softmax_entropy": "entropy(x, axis)",
    "causal_softmax": "torch._softmax(x.masked_fill(hidden, minus_inf), axis, False, out=out)",
    "causal_mask_": "x.masked_fill_(hidden, minus_inf)",
}


class PyTorch:
    """torch on the CPU, without gradients, with `out` where torch has it."""

    name, needs, families = "PyTorch", ("torch",), shapes.FAMILIES

    def __init__(self, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch

    def entropy(self, x, axis):
        logs = self.torch.log_softmax(x, axis)
        return -(logs.exp() * logs).sum(axis)

    def tensor(self, array):
        if array.dtype.name == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def attention(self, family, shape):
        query, key, value = (self.tensor(x) for x in attention_data(shape))
        options = {
            "attention_causal": ", is_causal=True", "attention_window": ", attn_mask=visible",
        }.get(family, "") + (", enable_gqa=True" if shape.heads != shape.key_heads else "")
        space = {"f": self.torch.nn.functional.scaled_dot_product_attention, "q": query, "k": key, "v": value}
        if family == "attention_window":
            space["visible"] = self.torch.from_numpy(~hidden_keys(shape, family))
        space.update(result=self.array, how=f"scaled_dot_product_attention(q, k, v{options})")
        return f"f(q, k, v{options})", space

    def array(self, tensor):
        return (tensor.float() if tensor.dtype == self.torch.bfloat16 else tensor).numpy()

    def call(self, family, shape):
        if family in shapes.ATTENTION:
            return self.attention(family, shape)
        x = numpy_data(shape)
        space = {"torch": self.torch, "x": self.tensor(x), "axis": shape.axis}
        space.update(minus_inf=-np.inf, entropy=self.entropy)
        if family.startswith("causal"):
            space["hidden"] = self.torch.from_numpy(hidden(shape))
        elif shape.small and family != "softmax_entropy":
            return f"torch.{family}(x, axis)", space
        space["out"] = self.tensor(result_like(x, family, shape.axis))
        return TORCH[family], space


class PyTorchFolded(PyTorch):
    """The same function, given by hand what it does not do itself: the heads that share a key as rows of one query."""

    name, families = "PyTorch folded", ("attention", "attention_decode")

    def attention(self, family, shape):
        if shape.heads == shape.key_heads:
            raise UnavailableError("no heads share a key")
        query, key, value = (self.tensor(x) for x in attention_data(shape))
        folded = (shape.batch, shape.key_heads, -1, shape.width)
        how = "f(q.reshape(B, Hk, G * L, E), k, v).reshape(B, Hq, L, E)"
        space = {"f": self.torch.nn.functional.scaled_dot_product_attention, "q": query, "k": key, "v": value}
        space.update(folded=folded, size=query.shape, result=self.array, how=how.replace("f(", "sdpa("))
        return "f(q.reshape(folded), k, v).reshape(size)", space


class OnnxRuntime:
    """ONNX Runtime's CPU provider on one operator, spinning as by default, I/O bound to NumPy's memory.

    Attention is ONNX's own operator, or one of its forerunners in com.microsoft, whose layout is (B, L, H * E):
    MultiHeadAttention where no heads share a key, GroupQueryAttention where the mask is causal. The latter appends
    the new keys and values to a cache that it shares with its caller.
    """

    name, needs, families = "ONNX Runtime", ("onnxruntime", "onnx"), shapes.FAMILIES

    def __init__(self, threads):
        import onnx
        import onnxruntime

        self.onnx, self.onnxruntime, self.threads = onnx, onnxruntime, threads

    def nodes(self, family, shape):
        """The graph: one operator where ONNX has one."""
        node = self.onnx.helper.make_node
        axis = shape.axis % len(shape.shape)
        if family in ("softmax", "log_softmax"):
            return [node("Softmax" if family == "softmax" else "LogSoftmax", ["x"], ["y"], axis=axis)]
        if family == "logsumexp":  # axes is an attribute up to opset 17
            return [node("ReduceLogSumExp", ["x"], ["y"], axes=[axis], keepdims=0)]
        if family == "softmax_entropy":
            return [
                node("LogSoftmax", ["x"], ["l"], axis=axis), node("Exp", ["l"], ["p"]), node("Mul", ["p", "l"], ["pl"]),
                node("ReduceSum", ["pl", "axes"], ["s"], keepdims=0), node("Neg", ["s"], ["y"]),
            ]
        if family == "causal_softmax":
            return [node("Where", ["hidden", "minus_inf", "x"], ["m"]), node("Softmax", ["m"], ["y"], axis=axis)]
        raise UnavailableError("ONNX Runtime works on no array in place")

    def session(self, family, shape, x, out):
        helper, from_array = self.onnx.helper, self.onnx.numpy_helper.from_array
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        constants = [from_array(np.array([shape.axis % x.ndim]), "axes")]
        if family == "causal_softmax":
            constants += [from_array(hidden(shape), "hidden"), from_array(np.array(-np.inf, x.dtype), "minus_inf")]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes(family, shape), family, [value("x", kind, x.shape)], [value("y", kind, out.shape)],
            [c for c in constants if c.name != "axes" or family == "softmax_entropy"],
        )
        return self.loaded(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

    def loaded(self, model):
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 3
        return self.onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def attention(self, family, shape):
        """The fastest of the operators that can."""
        candidates = [functools.partial(self.standard_attention, family, shape)]
        if shape.heads == shape.key_heads and family in ("attention", "attention_causal"):
            candidates.append(functools.partial(self.multi_head_attention, family, shape))
        if family != "attention":
            candidates.append(functools.partial(self.group_query_attention, family, shape))
        return fastest(candidates)

    def standard_attention(self, family, shape):
        """ONNX's Attention on (B, H, L, E); a window is a boolean mask."""
        inputs = dict(zip("qkv", attention_data(shape), strict=True))
        if family == "attention_window":
            inputs["visible"] = ~hidden_keys(shape, family)
        causal = int(family == "attention_causal")
        node = self.onnx.helper.make_node("Attention", list(inputs), ["y"], is_causal=causal)
        return self.one_node(node, inputs, {"y": np.empty_like(inputs["q"])}, lambda y: y)

    def multi_head_attention(self, family, shape):
        """com.microsoft.MultiHeadAttention on (B, L, H * E)."""
        inputs = dict(zip("qkv", map(rows_of_heads, attention_data(shape)), strict=True))
        arguments = {"num_heads": shape.heads, "unidirectional": int(family == "attention_causal")}
        node = self.onnx.helper.make_node("MultiHeadAttention", list(inputs), ["y"], domain=MICROSOFT, **arguments)
        return self.one_node(node, inputs, {"y": np.empty_like(inputs["q"])}, lambda y: heads_of_rows(y, shape))

    def group_query_attention(self, family, shape):
        """com.microsoft.GroupQueryAttention, always causal: the last L keys are new, those before them in the cache."""
        query, key, value = attention_data(shape)
        new = slice(shape.keys - shape.queries, None)
        inputs = {"q": rows_of_heads(query), "k": rows_of_heads(key[:, :, new]), "v": rows_of_heads(value[:, :, new])}
        inputs.update(past_k=key.copy(), past_v=value.copy())
        inputs.update(last=np.full(shape.batch, shape.keys - 1, np.int32), total=np.array([shape.keys], np.int32))
        arguments = {"num_heads": shape.heads, "kv_num_heads": shape.key_heads}
        if family == "attention_window":
            arguments["local_window_size"] = shapes.WINDOW
        names = ["y", "present_k", "present_v"]
        node = self.onnx.helper.make_node("GroupQueryAttention", list(inputs), names, domain=MICROSOFT, **arguments)
        outputs = dict(zip(names, (np.empty_like(inputs["q"]), inputs["past_k"], inputs["past_v"]), strict=True))
        return self.one_node(node, inputs, outputs, lambda y: heads_of_rows(y, shape))

    def one_node(self, node, inputs, outputs, result):
        """(statement, namespace) of a graph of one node, bound to the arrays given by name."""
        helper = self.onnx.helper
        values = [
            [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for k, x in xs.items()]
            for xs in (inputs, outputs)
        ]
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(helper.make_graph([node], "g", *values), opset_imports=opsets, ir_version=10)
        session = self.loaded(model)
        binding = session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, x in arrays.items():
                bind(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        space = {"run": session.run_with_iobinding, "binding": binding, "keep": (inputs, outputs)}
        return "run(binding)", {**space, "result": lambda _: result(outputs["y"]), "how": node.op_type}

    def call(self, family, shape):
        if shape.dtype == "bfloat16":
            raise UnavailableError("ONNX Runtime has no bfloat16 on the CPU")
        if family in shapes.ATTENTION:
            return self.attention(family, shape)
        x = numpy_data(shape)
        out = result_like(x, family, shape.axis)
        session = self.session(family, shape, x, out)
        if shape.small:
            return "run(None, feed)", {"run": session.run, "feed": {"x": x}}
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        binding.bind_output("y", "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        return "run(binding)", {"run": session.run_with_iobinding, "binding": binding, "keep": (x, out)}


MICROSOFT = "com.microsoft"


def rows_of_heads(x):
    """(B, H, L, E) as (B, L, H * E), the layout of com.microsoft's operators."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)


def heads_of_rows(x, shape):
    """And back, a view."""
    return x.reshape(shape.batch, shape.queries, shape.heads, shape.width).swapaxes(1, 2)


class OpenVino:
    """OpenVINO's CPU plugin on a graph of one ScaledDotProductAttention; inputs and result in NumPy's memory.

    It takes as many key heads as query heads. Fewer are repeated in the graph, as exported models do it, or given a
    dimension of groups to broadcast along; whichever is faster is measured.
    """

    name, needs, families = "OpenVINO", ("openvino",), shapes.ATTENTION

    def __init__(self, threads):
        import openvino
        import openvino.opset13

        self.openvino, self.ops, self.core = openvino, openvino.opset13, openvino.Core()
        self.settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}

    def call(self, family, shape):
        if shape.dtype == "float64":
            raise UnavailableError("OpenVINO computes float64 in float32")
        same = shape.heads == shape.key_heads
        return fastest(functools.partial(self.graph, family, shape, way)
                       for way in (("as it is",) if same else ("keys repeated", "groups broadcast")))

    def graph(self, family, shape, way):
        """(statement, namespace) of the graph that shares keys among heads in one of the ways."""
        arrays = attention_data(shape)
        arrays.append(np.empty_like(arrays[0]))
        kind = getattr(self.openvino.Type, {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[shape.dtype])
        parameters = [self.ops.parameter(x.shape, kind) for x in arrays[:3]]
        node = self.attention(family, shape, way, *parameters)
        model = self.openvino.Model([self.reshaped(node, *arrays[0].shape)], parameters, "attention")
        exact = {"INFERENCE_PRECISION_HINT": "f32"} if shape.dtype == "float32" else {}
        request = self.core.compile_model(model, "CPU", {**self.settings, **exact}).create_infer_request()
        for i, x in enumerate(arrays[:3]):
            request.set_input_tensor(i, self.tensor(x, kind))
        request.set_output_tensor(0, self.tensor(arrays[3], kind))
        how = f"ScaledDotProductAttention, {way}"
        return "infer(share_outputs=True)", {
            "infer": request.infer, "keep": arrays, "result": lambda _: arrays[3], "how": how}

    def attention(self, family, shape, way, query, key, value):
        """The node, of the query's shape, or with the heads in two dimensions."""
        b, h, g, s, e = shape.batch, shape.heads, shape.key_heads, shape.keys, shape.width
        if way == "keys repeated":
            pairs = self.ops.constant(np.array((b, g, h // g, s, e)))
            repeated = [self.ops.broadcast(self.reshaped(x, b, g, 1, s, e), pairs) for x in (key, value)]
            key, value = (self.reshaped(x, b, h, s, e) for x in repeated)
        elif way == "groups broadcast":
            query = self.reshaped(query, b, g, h // g, shape.queries, e)
            key, value = (self.reshaped(x, b, g, 1, s, e) for x in (key, value))
        if family != "attention_window":
            return self.ops.scaled_dot_product_attention(query, key, value, causal=family == "attention_causal")
        visible = self.ops.constant(~hidden_keys(shape, family)[None, None])
        return self.ops.scaled_dot_product_attention(query, key, value, visible)

    def reshaped(self, node, *shape):
        return self.ops.reshape(node, self.ops.constant(np.array(shape)), False)

    def tensor(self, array, kind):
        """NumPy's memory as a tensor; bfloat16 goes by its bits."""
        if array.dtype.name == "bfloat16":
            return self.openvino.Tensor(array.view(np.uint16), self.openvino.Shape(array.shape), kind)
        return self.openvino.Tensor(array, shared_memory=True)


class Jax:
    """jax.jit on the CPU with x64 enabled; XLA allocates its results itself."""

    name, needs, families = "JAX", ("jax",), shapes.FAMILIES

    def __init__(self, threads):
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # no hand-over to another thread in a small call
        self.jax = jax

    def function(self, family, shape):
        nn, jnp, axis = self.jax.nn, self.jax.numpy, shape.axis
        if family == "causal_softmax":
            mask = hidden(shape)
            return lambda x: nn.softmax(jnp.where(mask, -jnp.inf, x), axis)
        if family == "softmax_entropy":
            return lambda x: -(nn.softmax(x, axis) * nn.log_softmax(x, axis)).sum(axis)
        if family == "causal_mask_":
            raise UnavailableError("JAX's arrays are never written in place")
        f = self.jax.scipy.special.logsumexp if family == "logsumexp" else getattr(nn, family)
        return lambda x: f(x, axis)

    def attention(self, family, shape):
        """jax.nn.dot_product_attention on its own layout, (B, L, H, E)."""
        query, key, value = (self.jax.numpy.asarray(x.swapaxes(1, 2)) for x in attention_data(shape))
        options = {
            "attention_causal": {"is_causal": True}, "attention_window": {"local_window_size": (shapes.WINDOW - 1, 0)},
        }.get(family, {})
        f = self.jax.jit(functools.partial(self.jax.nn.dot_product_attention, **options))
        space = {"f": f, "q": query, "k": key, "v": value, "result": lambda out: np.asarray(out).swapaxes(1, 2)}
        return "f(q, k, v).block_until_ready()", {**space, "how": "jax.nn.dot_product_attention"}

    def call(self, family, shape):
        if family in shapes.ATTENTION:
            return self.attention(family, shape)
        f = self.jax.jit(self.function(family, shape))
        return "f(x).block_until_ready()", {"f": f, "x": self.jax.numpy.asarray(numpy_data(shape))}


CLASSES = (Ours, Oracle, NumPy, SciPy, PyTorch, PyTorchFolded, OnnxRuntime, OpenVino, Jax)
LIBRARIES = {cls.name: cls for cls in CLASSES}
BY_HAND = (PyTorchFolded.name,)  # rearranged by the caller: in decoding compared on its own, not as the best peer


def meant_for(families):
    """The names of the libraries that are asked for any of the families."""
    return [cls.name for cls in CLASSES if set(cls.families) & set(families)]


def missing(cls):
    """The first of the modules a library needs that cannot be found, or None."""
    return next((module for module in cls.needs if importlib.util.find_spec(module) is None), None)


def version(cls):
    """The installed version."""
    return importlib.import_module(cls.needs[0]).__version__.partition("-")[0]


def environment(threads):
    """The variables that hold a library to `threads`; they must be set before it is imported.

    XLA has no setting of its own for the number of threads: NPROC is what its pool reads, and a process that
    measures JAX alone is also pinned to as many CPUs (`pin`).
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTSOFTMAX_NUM_THREADS", "NPROC")
    settings = dict.fromkeys(names, str(threads))
    if threads == 1:
        settings["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return settings


def pin(threads):
    """Keep this process on `threads` CPUs, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
