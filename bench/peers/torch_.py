"""PyTorch."""

import data
import numpy as np
import shapes

from peers.common import Peer, UnavailableError

TORCH = {
    "softmax": "torch._softmax(x, axis, False, out=out)",
    "log_softmax": "torch._log_softmax(x, axis, False, out=out)",
    "logsumexp": "torch.logsumexp(x, axis, out=out)",
    "softmax_entropy": "entropy(x, axis)",
    "causal_softmax": "torch._softmax(x.masked_fill(hidden, minus_inf), axis, False, out=out)",
    "causal_mask_": "x.masked_fill_(hidden, minus_inf)",
}


class PyTorch(Peer):
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
        query, key, value = (self.tensor(x) for x in data.attention(shape))
        options = {
            "attention_causal": ", is_causal=True", "attention_window": ", attn_mask=visible",
        }.get(family, "") + (", enable_gqa=True" if shape.heads != shape.key_heads else "")
        space = {"f": self.torch.nn.functional.scaled_dot_product_attention, "q": query, "k": key, "v": value}
        if family == "attention_window":
            space["visible"] = self.torch.from_numpy(~data.hidden_keys(shape, family))
        space.update(result=self.array, how=f"scaled_dot_product_attention(q, k, v{options})")
        return f"f(q, k, v{options})", space

    def array(self, tensor):
        return (tensor.float() if tensor.dtype == self.torch.bfloat16 else tensor).numpy()

    def call(self, family, shape):
        if family in shapes.ATTENTION:
            return self.attention(family, shape)
        x = data.scores(shape)
        space = {"torch": self.torch, "x": self.tensor(x), "axis": shape.axis}
        space.update(minus_inf=-np.inf, entropy=self.entropy)
        if family.startswith("causal"):
            space["hidden"] = self.torch.from_numpy(data.hidden(shape))
        elif shape.small and family != "softmax_entropy":
            return f"torch.{family}(x, axis)", space
        space["out"] = self.tensor(data.result_like(x, family, shape.axis))
        return TORCH[family], space


class PyTorchFolded(PyTorch):
    """The same function, given by hand what it does not do itself: the heads that share a key as rows of one query."""

    name, families = "PyTorch folded", ("attention", "attention_decode")

    def attention(self, family, shape):
        if shape.heads == shape.key_heads:
            raise UnavailableError("no heads share a key")
        query, key, value = (self.tensor(x) for x in data.attention(shape))
        folded = (shape.batch, shape.key_heads, -1, shape.width)
        how = "f(q.reshape(B, Hk, G * L, E), k, v).reshape(B, Hq, L, E)"
        space = {"f": self.torch.nn.functional.scaled_dot_product_attention, "q": query, "k": key, "v": value}
        space.update(folded=folded, size=query.shape, result=self.array, how=how.replace("f(", "sdpa("))
        return "f(q.reshape(folded), k, v).reshape(size)", space
