"""ONNX models of one operator, written as protobuf by hand, so that the `onnx` package is not needed.

The numbers of the fields are those of onnx.proto3.
"""


def model(operator, attributes, inputs, shape):
    """The bytes of a model of one operator with the output y: a name and attributes, and arrays by the inputs' names.

    A model holds ir_version (1), graph (7) and opset (8); a graph nodes (1), name (2), inputs (11) and outputs (12);
    a node inputs (1), outputs (2), operator (4) and attributes (5).
    """
    names = {name.encode(): x for name, x in inputs.items()}
    node = b"".join(field(1, name) for name in names) + field(2, b"y") + field(4, operator)
    node += b"".join(field(5, attribute(name.encode(), value)) for name, value in attributes.items())
    graph = field(1, node) + field(2, b"g")
    graph += b"".join(field(11, value_info(name, x.shape, x.dtype)) for name, x in names.items())
    graph += field(12, value_info(b"y", shape, next(iter(inputs.values())).dtype))
    opset = 23 if operator == b"Attention" else 17
    return field(1, 10 if opset == 23 else 8) + field(7, graph) + field(8, field(1, b"") + field(2, opset))


def attribute(name, value):
    """Name (1), an integer (3) or integers (8), and the type (20) 2 or 7; the number 20 takes two bytes."""
    numbers, kind = (field(3, value), 2) if isinstance(value, int) else (b"".join(field(8, v) for v in value), 7)
    return field(1, name) + numbers + varint(20 << 3) + varint(kind)


def value_info(name, shape, dtype):
    """A graph's input or output: name (1), type (2) of tensor (1) with element type (1) and shape (2) of sizes."""
    sizes = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, {"float32": 1, "float64": 11}[dtype.name]) + field(2, sizes)))


def field(number, value):
    """One field of a protobuf message: an int, or the bytes of a string or of a message."""
    if isinstance(value, int):
        return bytes([number << 3]) + varint(value)
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def varint(value):
    """A number as protobuf writes it: seven bits a byte, lowest first."""
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])
