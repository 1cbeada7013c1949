"""The definitions, fastsoftmax.reference."""

import data
import shapes

from peers.common import Peer


class Oracle(Peer):
    """fastsoftmax.reference: the definition of each function, in a wider dtype; slow, and no peer."""

    name, needs, families = "oracle", ("fastsoftmax",), shapes.SOFTMAX

    def __init__(self, threads):
        from fastsoftmax import reference

        self.module = reference

    def call(self, family, shape):
        axis = "" if family in shapes.CAUSAL else ", axis"
        return f"f(x{axis})", {"f": getattr(self.module, family), "x": data.scores(shape), "axis": shape.axis}
