"""XNNPACK, through LiteRT."""

import importlib.metadata

import data

from peers.common import Peer, UnavailableError

MAIN = "main"


class Xnnpack(Peer):
    """LiteRT's interpreter on a model of one operator, which it hands to XNNPACK; the arrays are the interpreter's own.

    XNNPACK's softmax is 4 to 33 ULP from the exact result in float32, which `common.TOLERANCE` allows. It has no
    log_softmax, which LiteRT computes by a kernel of its own.
    """

    name, needs, families = "XNNPACK", ("ai_edge_litert", "tflite", "flatbuffers"), ("softmax",)

    def __init__(self, threads):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter, self.threads = Interpreter, threads

    @classmethod
    def version(cls):
        return f"of LiteRT {importlib.metadata.version('ai-edge-litert')}"

    def call(self, family, shape):
        if shape.dtype != "float32":
            raise UnavailableError("XNNPACK's softmax is measured in float32")
        if shape.axis % len(shape.shape) != len(shape.shape) - 1:
            raise UnavailableError("LiteRT's softmax takes the last axis only")
        interpreter = self.interpreter(model_content=model(shape.shape), num_threads=self.threads)
        interpreter.allocate_tensors()
        if not any(node["op_name"] == "DELEGATE" for node in interpreter._get_ops_details()):
            raise UnavailableError("LiteRT does not hand this softmax to XNNPACK")
        (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.set_tensor(source["index"], data.scores(shape))
        space = {"invoke": interpreter.invoke, "result": lambda _: interpreter.get_tensor(target["index"])}
        return "invoke()", space


def model(shape):
    """The flatbuffer of a model that applies softmax to the last axis of a float32 array.

    A flatbuffer is written from its leaves to its root: tables name others by their offset, so those come first.
    """
    import flatbuffers
    import tflite

    builder = flatbuffers.Builder(1024)
    options, code = table(builder, "SoftmaxOptions", Beta=1.0), tflite.BuiltinOperator.SOFTMAX
    tensors = [tensor(builder, name, shape) for name in ("x", "y")]
    operator = table(
        builder, "Operator", OpcodeIndex=0, Inputs=integers(builder, tflite.OperatorStartInputsVector, [0]),
        Outputs=integers(builder, tflite.OperatorStartOutputsVector, [1]), BuiltinOptions=options,
        BuiltinOptionsType=tflite.BuiltinOptions.SoftmaxOptions)
    graph = table(
        builder, "SubGraph", Tensors=offsets(builder, tflite.SubGraphStartTensorsVector, tensors),
        Inputs=integers(builder, tflite.SubGraphStartInputsVector, [0]),
        Outputs=integers(builder, tflite.SubGraphStartOutputsVector, [1]),
        Operators=offsets(builder, tflite.SubGraphStartOperatorsVector, [operator]), Name=builder.CreateString(MAIN))
    # Both fields hold the operator: readers before schema 3a know only the first
    opcode = table(builder, "OperatorCode", DeprecatedBuiltinCode=code, BuiltinCode=code, Version=1)
    root = table(
        builder, "Model", Version=3,
        OperatorCodes=offsets(builder, tflite.ModelStartOperatorCodesVector, [opcode]),
        Subgraphs=offsets(builder, tflite.ModelStartSubgraphsVector, [graph]),
        Buffers=offsets(builder, tflite.ModelStartBuffersVector, [table(builder, "Buffer")]))
    builder.Finish(root, file_identifier=b"TFL3")
    return bytes(builder.Output())


def tensor(builder, name, shape):
    """A float32 tensor without content: buffer 0 is empty by definition."""
    import tflite

    sizes, name = integers(builder, tflite.TensorStartShapeVector, shape), builder.CreateString(name)
    return table(builder, "Tensor", Shape=sizes, Type=tflite.TensorType.FLOAT32, Buffer=0, Name=name)


def table(builder, kind, **fields):
    """A table of the schema, and its fields by name; returns its offset."""
    import tflite

    getattr(tflite, f"{kind}Start")(builder)
    for name, value in fields.items():
        getattr(tflite, f"{kind}Add{name}")(builder, value)
    return getattr(tflite, f"{kind}End")(builder)


def integers(builder, start, values):
    return vector(builder, start, builder.PrependInt32, values)


def offsets(builder, start, values):
    return vector(builder, start, builder.PrependUOffsetTRelative, values)


def vector(builder, start, prepend, values):
    """A vector, which is written from its end."""
    start(builder, len(values))
    for value in reversed(values):
        prepend(value)
    return builder.EndVector()
