"""fastsoftmax."""

import data
import numpy as np
import shapes

from peers.common import Peer


class Ours(Peer):
    """fastsoftmax, through its public functions."""

    name, needs, families = "fastsoftmax", ("fastsoftmax",), shapes.FAMILIES

    def __init__(self, threads):
        import fastsoftmax

        fastsoftmax.set_num_threads(threads)
        self.module = fastsoftmax

    def attention(self, family, shape):
        query, key, value = data.attention(shape)
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
        x = data.scores(shape)
        space = {"f": getattr(self.module, family), "x": x, "axis": shape.axis}
        if family == "causal_mask_":
            return "f(x)", space
        axis = "" if family == "causal_softmax" else ", axis"
        if shape.small or family == "softmax_entropy":
            return f"f(x{axis})", space
        space["out"] = data.result_like(x, family, shape.axis)
        return f"f(x{axis}, out=out)", space
