"""SciPy."""

import data
import numpy as np
import shapes

from peers.common import Peer, UnavailableError


class SciPy(Peer):
    """scipy.special; it takes no `out`."""

    name, needs, families = "SciPy", ("scipy",), shapes.SOFTMAX

    def __init__(self, threads):
        import scipy.special

        self.special = scipy.special

    def call(self, family, shape):
        if shape.dtype == "bfloat16":
            raise UnavailableError("SciPy has no bfloat16")
        x = data.scores(shape)
        space = {"x": x, "axis": shape.axis, "np": np, "special": self.special}
        if family == "causal_softmax":
            space["hidden"] = data.hidden(shape)
            return "special.softmax(np.where(hidden, -np.inf, x), -1)", space
        if family == "softmax_entropy":
            return "special.entr(special.softmax(x, axis)).sum(axis)", space
        if family == "causal_mask_":
            raise UnavailableError("SciPy has no masking; see NumPy")
        return f"special.{family}(x, axis)", space
