"""JAX."""

import functools

import data
import numpy as np
import shapes

from peers.common import Peer, UnavailableError


class Jax(Peer):
    """jax.jit on the CPU with x64 enabled; XLA allocates its results itself, and has no setting for its threads."""

    name, needs, families, pinned = "JAX", ("jax",), shapes.FAMILIES, True

    def __init__(self, threads):
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # no hand-over to another thread in a small call
        self.jax = jax

    def function(self, family, shape):
        nn, jnp, axis = self.jax.nn, self.jax.numpy, shape.axis
        if family == "causal_softmax":
            mask = data.hidden(shape)
            return lambda x: nn.softmax(jnp.where(mask, -jnp.inf, x), axis)
        if family == "softmax_entropy":
            return lambda x: -(nn.softmax(x, axis) * nn.log_softmax(x, axis)).sum(axis)
        if family == "causal_mask_":
            raise UnavailableError("JAX's arrays are never written in place")
        f = self.jax.scipy.special.logsumexp if family == "logsumexp" else getattr(nn, family)
        return lambda x: f(x, axis)

    def attention(self, family, shape):
        """jax.nn.dot_product_attention on its own layout, (B, L, H, E)."""
        query, key, value = (self.jax.numpy.asarray(x.swapaxes(1, 2)) for x in data.attention(shape))
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
        return "f(x).block_until_ready()", {"f": f, "x": self.jax.numpy.asarray(data.scores(shape))}
