"""OpenVINO."""

import functools

import data
import numpy as np
import shapes

from peers.common import Peer, UnavailableError, fastest


class OpenVino(Peer):
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
        arrays = data.attention(shape)
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
        visible = self.ops.constant(~data.hidden_keys(shape, family)[None, None])
        return self.ops.scaled_dot_product_attention(query, key, value, visible)

    def reshaped(self, node, *shape):
        return self.ops.reshape(node, self.ops.constant(np.array(shape)), False)

    def tensor(self, array, kind):
        """NumPy's memory as a tensor; bfloat16 goes by its bits."""
        if array.dtype.name == "bfloat16":
            return self.openvino.Tensor(array.view(np.uint16), self.openvino.Shape(array.shape), kind)
        return self.openvino.Tensor(array, shared_memory=True)
