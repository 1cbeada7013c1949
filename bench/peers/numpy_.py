"""NumPy."""

import data
import numpy as np
import shapes
from standalone import numpy_baseline

from peers.common import Peer


class NumPy(Peer):
    """NumPy as one writes it: _selfcheck/numpy_baseline.py. 16-bit types in float32, which is four times as fast."""

    name, needs, families = "NumPy", ("numpy",), shapes.FAMILIES

    def attention(self, family, shape):
        query, key, value = data.attention(shape)
        space = {"f": numpy_baseline.scaled_dot_product_attention, "q": query, "k": key, "v": value}
        space.update(hidden=data.hidden_keys(shape, family), result=lambda out: out, how="softmax(q @ k.T) @ v")
        return "f(q, k, v, hidden)", space

    def call(self, family, shape):
        if family in shapes.ATTENTION:
            return self.attention(family, shape)
        x = data.scores(shape)
        space = {"f": getattr(numpy_baseline, family), "x": x, "axis": shape.axis, "wide": np.float32, "dtype": x.dtype}
        if family in shapes.CAUSAL:
            return "f(x, hidden)", {**space, "hidden": data.hidden(shape)}
        return "f(x.astype(wide), axis).astype(dtype)" if x.dtype.itemsize == 2 else "f(x, axis)", space
