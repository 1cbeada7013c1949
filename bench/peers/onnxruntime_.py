"""ONNX Runtime."""

import functools

import data
import numpy as np
import shapes

from peers.common import Peer, UnavailableError, fastest

MICROSOFT = "com.microsoft"  # the domain of its own operators


class OnnxRuntime(Peer):
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
            minus_inf = np.array(-np.inf, x.dtype)
            constants += [from_array(data.hidden(shape), "hidden"), from_array(minus_inf, "minus_inf")]
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
        inputs = dict(zip("qkv", data.attention(shape), strict=True))
        if family == "attention_window":
            inputs["visible"] = ~data.hidden_keys(shape, family)
        causal = int(family == "attention_causal")
        node = self.onnx.helper.make_node("Attention", list(inputs), ["y"], is_causal=causal)
        return self.one_node(node, inputs, {"y": np.empty_like(inputs["q"])}, lambda y: y)

    def multi_head_attention(self, family, shape):
        """com.microsoft.MultiHeadAttention on (B, L, H * E)."""
        inputs = dict(zip("qkv", map(rows_of_heads, data.attention(shape)), strict=True))
        arguments = {"num_heads": shape.heads, "unidirectional": int(family == "attention_causal")}
        node = self.onnx.helper.make_node("MultiHeadAttention", list(inputs), ["y"], domain=MICROSOFT, **arguments)
        return self.one_node(node, inputs, {"y": np.empty_like(inputs["q"])}, lambda y: heads_of_rows(y, shape))

    def group_query_attention(self, family, shape):
        """com.microsoft.GroupQueryAttention, always causal: the last L keys are new, those before them in the cache."""
        query, key, value = data.attention(shape)
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
        x = data.scores(shape)
        out = data.result_like(x, family, shape.axis)
        session = self.session(family, shape, x, out)
        if shape.small:
            return "run(None, feed)", {"run": session.run, "feed": {"x": x}}
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        binding.bind_output("y", "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        return "run(binding)", {"run": session.run_with_iobinding, "binding": binding, "keep": (x, out)}


def rows_of_heads(x):
    """(B, H, L, E) as (B, L, H * E), the layout of com.microsoft's operators."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)


def heads_of_rows(x, shape):
    """And back, a view."""
    return x.reshape(shape.batch, shape.queries, shape.heads, shape.width).swapaxes(1, 2)
