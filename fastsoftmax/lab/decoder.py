"""A decoder with its backward pass, in NumPy on the functions of this package: Llama's layout, to be read and changed.

Shapes: B sequences of T tokens, N = B * T rows; width C, H heads of width E, G key heads (G < H: grouped heads), F
hidden units, V symbols. Arrays between the parts of a layer are (N, C); attention works on views (B, H, T, E) of them.

    x = embedding[tokens]                                   (N, C)
    for each layer:
        x = x + attention(rotary(rms_norm(x) @ qkv)) @ out
        x = x + swiglu(rms_norm(x) @ gate_up) @ down
    loss = cross_entropy(rms_norm(x) @ embedding.T)         the head is the embedding

Every forward function has its backward function below it. A forward function returns its result and what the backward
one needs; a backward function takes the gradient of that result and returns that of the input. `backward` calls them in
reverse. The gradients of parameters go into a `Gradients`, by the names that the parameters have.

Change these to see their effect: `Config.scale`, `Config.is_causal`, `Config.attention`, `Config.learn_scale`; or the
line of `attention` that calls the function.

Sources: H. Touvron et al., "LLaMA", arXiv:2302.13971 (the layout); B. Zhang and R. Sennrich, "Root mean square layer
normalization", arXiv:1910.07467; J. Su et al., "RoFormer: enhanced transformer with rotary position embedding",
arXiv:2104.09864; N. Shazeer, "GLU variants improve transformer", arXiv:2002.05202.
"""

from dataclasses import dataclass

import numpy as np

import fastsoftmax as fs
from fastsoftmax.lab import alternatives

ROWS = 128  # what is computed element by element is done for so many rows at once: they stay in the cache


@dataclass(frozen=True)
class Config:
    """The shape of a decoder, and what its attention does.

    Parameters
    ----------
    symbols, width, layers, heads : int
        V, C, the number of layers, and H.
    key_heads, head_width, hidden : int, optional
        G, E and F; default H, C / H, and 8/3 C rounded up to a multiple of 16.
    theta, epsilon : float
        Of the rotary positions and of the norm.
    scale : float, optional
        Factor of the dot products; default 1/sqrt(E).
    learn_scale : bool
        A scale for each head, learned as its logarithm, which starts at the default.
    is_causal : bool
        Whether a token sees only itself and those before it.
    attention : str
        "softmax", or another of `alternatives.FUNCTIONS`.
    """

    symbols: int = 256
    width: int = 256
    layers: int = 4
    heads: int = 4
    key_heads: int | None = None
    head_width: int | None = None
    hidden: int | None = None
    theta: float = 10000.0
    epsilon: float = 1e-5
    scale: float | None = None
    learn_scale: bool = False
    is_causal: bool = True
    attention: str = "softmax"

    def __post_init__(self):
        for name, default in (("key_heads", self.heads), ("head_width", self.width // self.heads),
                              ("hidden", -(-self.width * 8 // 3 // 16) * 16)):
            object.__setattr__(self, name, getattr(self, name) or default)
        object.__setattr__(self, "scale", self.head_width**-0.5 if self.scale is None else self.scale)


def start(config, seed=0, dtype=np.float32):
    """The parameters by name, normal with variance 1 / (inputs): queries and keys have variance 1, as is assumed when
    dot products are divided by sqrt(E)."""
    rng, c = np.random.default_rng(seed), config

    def normal(*shape, fan_in):
        return (rng.standard_normal(shape, np.float32) / np.float32(fan_in**0.5)).astype(dtype)

    parameters = {"embedding": normal(c.symbols, c.width, fan_in=c.width)}
    inner, deep = c.heads * c.head_width, 2 * c.layers     # deep: each of the sums over layers adds its share
    for i in range(c.layers):
        parameters |= {
            f"{i}.norm": np.ones(c.width, dtype),
            f"{i}.qkv": normal(c.width, inner + 2 * c.key_heads * c.head_width, fan_in=c.width),
            f"{i}.out": normal(inner, c.width, fan_in=inner * deep),
            f"{i}.norm2": np.ones(c.width, dtype),
            f"{i}.gate_up": normal(c.width, 2 * c.hidden, fan_in=c.width),
            f"{i}.down": normal(c.hidden, c.width, fan_in=c.hidden * deep),
        }
        if c.learn_scale:
            parameters[f"{i}.log_scale"] = np.full(c.heads, np.log(c.scale), dtype)
    return parameters | {"norm": np.ones(c.width, dtype)}


class Gradients(dict):
    """The gradients by name. Those of parameters that are not `wanted` are not computed; None: all are wanted."""

    def __init__(self, wanted=None):
        super().__init__()
        self.wanted = wanted

    def want(self, name):
        return self.wanted is None or name in self.wanted


# ---- the parts ------------------------------------------------------------------------------------------------------


def linear_backward(g, name, x, weight, grad):
    """Of x (N, C) @ weight (C, D), from grad (N, D)."""
    if g.want(name):
        g[name] = x.T @ grad
    return grad @ weight.T


def rms_norm(x, weight, epsilon):
    """Each row of x (N, C) divided by its root mean square, times weight (C,)."""
    inverse = 1 / np.sqrt(np.einsum("nc,nc->n", x, x)[:, None] / x.dtype.type(x.shape[1]) + x.dtype.type(epsilon))
    return x * inverse * weight, inverse


def rms_norm_backward(g, name, x, weight, inverse, grad):
    # y = u * weight with u = x * inverse, and inverse depends on x: dx = inverse * (du - u * mean(u * du))
    total, dx = np.zeros(weight.shape, weight.dtype), np.empty_like(x)
    for rows in blocks(len(x)):
        unit, du = x[rows] * inverse[rows], grad[rows] * weight
        if g.want(name):
            total += np.einsum("nc,nc->c", grad[rows], unit)
        mean = np.einsum("nc,nc->n", unit, du)[:, None] / x.dtype.type(x.shape[1])
        unit *= mean
        du -= unit
        np.multiply(du, inverse[rows], out=dx[rows])
    if g.want(name):
        g[name] = total
    return dx


def rotary(x, cosine, sine):
    """Turns the pairs (x[e], x[e + E/2]) of x (B, T, heads, E) by angles (T, 1, E/2) that grow with the position, in
    place: the dot product of a query and a key then depends on their distance, not on their positions."""
    half = x.shape[-1] // 2
    for sequence in x:
        first, second = sequence[..., :half], sequence[..., half:]
        turned = first * cosine - second * sine
        second *= cosine
        second += first * sine
        first[...] = turned
    return x


def rotary_backward(grad, cosine, sine):
    # in the forward pass this was a rotation: so now it is the rotation back
    return rotary(grad, cosine, -sine)


def angles(positions, config, dtype):
    """(cosine, sine) (T, 1, E/2) for `rotary`."""
    half = config.head_width // 2
    turns = np.multiply.outer(positions, config.theta ** (-np.arange(half) / half))[:, None]
    return np.cos(turns).astype(dtype), np.sin(turns).astype(dtype)


def attention(query, key, value, config, scale, offset=0):
    """(out, lse) of (B, H, T, E) queries and (B, G, S, E) keys and values; out has the memory layout (B, T, H, E).

    offset : the position of the first query among the keys, where a cache holds those before it.
    """
    if config.attention != "softmax":
        return alternatives.FUNCTIONS[config.attention][0](query, key, value, config.is_causal, scale), None
    batch, heads, length, width = query.shape
    out = np.empty((batch, length, heads, width), query.dtype).swapaxes(1, 2)
    return fs.scaled_dot_product_attention(
        query, key, value, is_causal=config.is_causal, causal_offset=offset, scale=scale,
        enable_gqa=heads != key.shape[1], out=out, return_lse=True)


def attention_backward(grad, query, key, value, out, lse, config, scale, grad_scale):
    """[dquery, dkey, dvalue], and dscale (H,) where asked for."""
    if config.attention != "softmax":
        return alternatives.FUNCTIONS[config.attention][1](grad, query, key, value, config.is_causal, scale)
    return fs.scaled_dot_product_attention_backward(
        grad, query, key, value, out, lse, is_causal=config.is_causal, scale=scale,
        enable_gqa=query.shape[1] != key.shape[1], grad_scale=grad_scale)


def swiglu(gate_up):
    """silu(gate) * up (N, F), of the two halves of gate_up (N, 2F); silu(a) = a * sigmoid(a)."""
    half = gate_up.shape[1] // 2
    y = np.empty((len(gate_up), half), gate_up.dtype)
    for rows in blocks(len(y)):
        gate, up = gate_up[rows, :half], gate_up[rows, half:]
        np.multiply(gate, up, out=y[rows])
        y[rows] *= sigmoid(gate)
    return y


def swiglu_backward(gate_up, grad):
    """The gradient of gate_up, in its place."""
    half = gate_up.shape[1] // 2
    for rows in blocks(len(grad)):
        gate, up, d = gate_up[rows, :half], gate_up[rows, half:], grad[rows]
        s = sigmoid(gate)
        silu = gate * s
        slope = 1 - s               # silu' = s + gate * s * (1 - s) = s + silu * (1 - s)
        slope *= silu
        slope += s
        slope *= up
        np.multiply(slope, d, out=gate)
        np.multiply(silu, d, out=up)
    return gate_up


def sigmoid(x):
    """1 / (1 + exp(-x)), by tanh, which does not overflow."""
    y = np.tanh(x * x.dtype.type(0.5))
    y *= x.dtype.type(0.5)
    y += x.dtype.type(0.5)
    return y


def blocks(count):
    """Slices of ROWS rows."""
    return (slice(i, i + ROWS) for i in range(0, count, ROWS))


# ---- a layer --------------------------------------------------------------------------------------------------------


def split(qkv, batch, config):
    """Queries and keys together (B, T, H + G, E), for `rotary`; and queries, keys, values as (B, heads, T, E). Views of
    qkv (N, (H + 2G) E)."""
    heads = qkv.reshape(batch, len(qkv) // batch, -1, config.head_width)
    h, g = config.heads, config.key_heads
    parts = heads[:, :, :h], heads[:, :, h:h + g], heads[:, :, h + g:]
    return heads[:, :, :h + g], tuple(part.swapaxes(1, 2) for part in parts)


def layer(x, p, i, config, batch, turn, cache=None):
    """x after layer i, and what its backward pass needs. A `cache` (`Cache`, `generation.Pass`) has the keys before."""
    normed, inverse = rms_norm(x, p[f"{i}.norm"], config.epsilon)
    qkv = normed @ p[f"{i}.qkv"]
    to_turn, (query, key, value) = split(qkv, batch, config)
    rotary(to_turn, *turn)
    scale = scale_of(p, i, config)
    out, lse = (attention(query, key, value, config, scale) if cache is None else
                cache.attention(i, query, key, value, config, scale))
    joined = out.swapaxes(1, 2).reshape(len(x), -1)
    middle = x + joined @ p[f"{i}.out"]
    normed2, inverse2 = rms_norm(middle, p[f"{i}.norm2"], config.epsilon)
    gate_up = normed2 @ p[f"{i}.gate_up"]
    hidden = swiglu(gate_up)
    kept = x, inverse, normed, qkv, out, lse, joined, middle, inverse2, normed2, gate_up, hidden
    return middle + hidden @ p[f"{i}.down"], kept


def layer_backward(g, grad, p, i, config, batch, turn, kept):
    """The gradient of the layer's input; those of its parameters go into g."""
    x, inverse, normed, qkv, out, lse, joined, middle, inverse2, normed2, gate_up, hidden = kept
    d = swiglu_backward(gate_up, linear_backward(g, f"{i}.down", hidden, p[f"{i}.down"], grad))
    d = linear_backward(g, f"{i}.gate_up", normed2, p[f"{i}.gate_up"], d)
    grad = grad + rms_norm_backward(g, f"{i}.norm2", middle, p[f"{i}.norm2"], inverse2, d)
    d = linear_backward(g, f"{i}.out", joined, p[f"{i}.out"], grad)
    d = d.reshape(batch, -1, config.heads, config.head_width).swapaxes(1, 2)
    scale, learned = scale_of(p, i, config), g.want(f"{i}.log_scale") and f"{i}.log_scale" in p
    *parts, = attention_backward(d, *split(qkv, batch, config)[1], out, lse, config, scale, learned)
    if learned:
        g[f"{i}.log_scale"] = parts.pop() * scale       # scale = exp(log_scale)
    dqkv = np.empty_like(qkv)
    to_turn, places = split(dqkv, batch, config)
    for place, part in zip(places, parts, strict=True):
        place[...] = part
    rotary_backward(to_turn, *turn)
    d = linear_backward(g, f"{i}.qkv", normed, p[f"{i}.qkv"], dqkv)
    return grad + rms_norm_backward(g, f"{i}.norm", x, p[f"{i}.norm"], inverse, d)


def scale_of(p, i, config):
    """The attention's scale in layer i: one number, or (H,) where it is learned."""
    return np.exp(p[f"{i}.log_scale"]) if config.learn_scale else config.scale


# ---- the decoder ----------------------------------------------------------------------------------------------------


def forward(p, config, tokens, cache=None):
    """The last states (N, C), normalised, of tokens (B, T), and what the backward pass needs."""
    batch, length = tokens.shape
    positions = np.arange(length) if cache is None else cache.extend(length)
    turn = angles(positions, config, p["embedding"].dtype)
    x, kept = p["embedding"][tokens.reshape(-1)], []
    for i in range(config.layers):
        x, needed = layer(x, p, i, config, batch, turn, cache)
        if cache is None:
            kept.append(needed)
    normed, inverse = rms_norm(x, p["norm"], config.epsilon)
    return normed, (turn, kept, x, inverse)


def backward(g, grad, p, config, tokens, state):
    """Puts the gradients into g, from that of `forward`'s result."""
    turn, kept, x, inverse = state
    grad = rms_norm_backward(g, "norm", x, p["norm"], inverse, grad)
    for i in reversed(range(config.layers)):
        grad = layer_backward(g, grad, p, i, config, len(tokens), turn, kept.pop())
    if g.want("embedding"):     # its other part, as the head, is there already
        np.add.at(g["embedding"], tokens.reshape(-1), grad)


def loss_and_gradients(p, config, tokens, targets, wanted=None):
    """The mean cross entropy of the next symbol in nats, and its gradients by name.

    Parameters
    ----------
    p : dict of ndarray
        The parameters, as from `start`.
    tokens, targets : (B, T) ints
        What is read, and the symbol that follows each; -100 where no answer is asked for.
    wanted : set of str, optional
        The parameters whose gradients are computed; default all.
    """
    states, state = forward(p, config, tokens)
    loss, (grad, head) = fs.linear_cross_entropy(states, p["embedding"], targets.reshape(-1), return_grad=True)
    g = Gradients(wanted)
    if g.want("embedding"):
        g["embedding"] = head
    backward(g, grad, p, config, tokens, state)
    return float(loss), g


def losses(p, config, tokens, targets):
    """The cross entropy of each symbol (B, T), without gradients."""
    states = forward(p, config, tokens)[0]
    return fs.linear_cross_entropy(states, p["embedding"], targets.reshape(-1), reduction="none").reshape(targets.shape)


def entropies(p, config, tokens):
    """The entropy of the attention weights in nats: (layers, H), the mean over the queries of tokens (B, T).

    A query that sees n keys can have at most log(n)."""
    _, (_, kept, *_) = forward(p, config, tokens)
    found = []
    for i, needed in enumerate(kept):
        _, entropy = fs.scaled_dot_product_attention(
            *split(needed[3], len(tokens), config)[1], is_causal=config.is_causal, scale=scale_of(p, i, config),
            enable_gqa=config.heads != config.key_heads, return_entropy=True)
        found.append(entropy.mean((0, 2)))
    return np.array(found)


def weights(p, config, tokens, i):
    """The attention weights of layer i (B, H, T, T), for pictures: this once they are stored."""
    _, (_, kept, *_) = forward(p, config, tokens)
    query, key, _ = split(kept[i][3], len(tokens), config)[1]
    scores = query @ np.repeat(key, config.heads // config.key_heads, 1).swapaxes(2, 3)
    scores *= np.reshape(scale_of(p, i, config), (-1, 1, 1)).astype(scores.dtype)
    return fs.causal_softmax(scores) if config.is_causal else fs.softmax(scores, axis=-1)


# ---- generation -----------------------------------------------------------------------------------------------------


class Cache:
    """The keys and values of all tokens so far, so that a pass computes those of its own tokens only."""

    def __init__(self, config, batch, longest, dtype=np.float32):
        self.arrays = np.empty((config.layers, 2, batch, config.key_heads, longest, config.head_width), dtype)
        self.start = self.length = 0

    def extend(self, count):
        """The positions of the `count` tokens that the next pass adds."""
        self.start, self.length = self.length, self.length + count
        return np.arange(self.start, self.length)

    def attention(self, i, query, key, value, config, scale):
        """`attention` over all keys and values of layer i, those given included."""
        for stored, new in zip(self.arrays[i], (key, value), strict=True):
            stored[:, :, self.start:self.length] = new
        return attention(query, *self.arrays[i, :, :, :, :self.length], config, scale, self.start)


def generate(p, config, prompt, count, temperature=1.0, seed=0):
    """Yields `count` symbols after prompt (T,), each drawn from softmax(logits / temperature); 0: the most likely."""
    rng, cache = np.random.default_rng(seed), Cache(config, 1, len(prompt) + count, p["embedding"].dtype)
    tokens = np.asarray(prompt)[None]
    for _ in range(count):
        states, _ = forward(p, config, tokens, cache)
        logits = states[-1] @ p["embedding"].T
        if temperature == 0:
            symbol = int(logits.argmax())
        else:
            cumulative = np.cumsum(fs.softmax(logits.astype(np.float64), temperature=temperature))
            symbol = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        yield symbol
        tokens = np.array([[symbol]])
