"""Models of transformers with attn_implementation="fastsoftmax": as with "eager", without masks of L x S elements."""

import doctest
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch
import transformers as hf
from hf_models import BUILD, GENERATORS, LENGTH, TEXT, built, inputs_of, padding
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

import fastsoftmax.transformers
from fastsoftmax.transformers import _attention, _masks, _symbols

fastsoftmax.transformers.register()
hf.logging.set_verbosity_error()
SIDES = "left", "right", "both", "inside"
TOLERANCE = 1e-5                # of the largest logit: eager computes in float32


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they gain in models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits(model, implementation, **inputs):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**inputs).logits


def assert_same(found, expected, tolerance=TOLERANCE, least=0.0):
    """To within `tolerance` of the largest element, or of `least` if that is more."""
    assert found.shape == expected.shape
    error, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    assert error <= tolerance * max(largest, least), (error, largest)


def assert_same_gradients(found, expected, tolerance=3e-4):
    """`found`, `expected`: gradients by parameter. Those of biases of keys are 0 but for rounding."""
    assert found.keys() == expected.keys()
    largest = max(grad.abs().max().item() for grad in expected.values())
    for grad, other in zip(found.values(), expected.values(), strict=True):
        assert_same(grad, other, tolerance, 1e-3 * largest)


def assert_same_as_eager(model, tokens=slice(None), **inputs):
    assert_same(logits(model, "fastsoftmax", **inputs)[tokens], logits(model, "eager", **inputs)[tokens])


# ---------------------------------------------------------------- whole models

@pytest.mark.parametrize("name", BUILD)
def test_logits_are_those_of_eager(name):
    assert_same_as_eager(built(name), **inputs_of(name))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", TEXT)
def test_padding_is_as_with_eager(name, side):
    """At all tokens; what a model says at padding is nobody's business. T5's decoder has no padding here."""
    mask = padding(side)
    assert_same_as_eager(built(name), slice(None) if name == "t5" else mask.bool(), attention_mask=mask,
                         **inputs_of(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(dtype):
    """16-bit models differ from eager's in float32 by no more than eager's own 16-bit ones, give or take half."""
    name = "qwen3"
    model, inputs = built(name), inputs_of(name)
    exact = logits(model, "eager", **inputs).double()
    model = model.to(dtype)
    ours, eager = (logits(model, x, **inputs) for x in ("fastsoftmax", "eager"))
    assert ours.dtype == dtype
    assert (ours.double() - exact).abs().mean() <= 1.5 * (eager.double() - exact).abs().mean() + 1e-5


def test_autocast():
    """Query and key, which rotary embedding makes float32, come to the dtype of values."""
    model, inputs = built("qwen3"), inputs_of("qwen3")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(logits(model, "fastsoftmax", **inputs), logits(model, "sdpa", **inputs), 0.1)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", GENERATORS)
def test_greedy_generation_is_that_of_eager(name, cache):
    """Of a batch with left padding, past the ends of windows and chunks."""
    model, inputs = built(name), inputs_of(name)
    inputs.pop("decoder_input_ids", None)
    if name != "whisper":
        inputs["attention_mask"] = padding("left")
    generated = []
    for implementation in ("eager", "fastsoftmax"):
        model.set_attn_implementation(implementation)
        generated.append(model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False,
                                        cache_implementation=cache))
    assert torch.equal(*generated)
    assert generated[0].shape[1] >= 12


def gradients(model, implementation, weights, **inputs):
    model.set_attn_implementation(implementation)
    model.zero_grad()
    (model(**inputs).logits * weights).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", BUILD)
def test_gradients_are_those_of_eager(name):
    """Of every parameter, sinks and tables of position bias among them; padded where a model takes a mask."""
    model, inputs = built(name).train(), inputs_of(name)
    weights = torch.randn(model(**inputs).logits.shape, generator=torch.Generator().manual_seed(2))
    if name in TEXT:
        inputs["attention_mask"] = padding("left")
        if name != "t5":
            weights = weights * inputs["attention_mask"][..., None]
    ours, eager = (gradients(model, x, weights, **inputs) for x in ("fastsoftmax", "eager"))
    assert_same_gradients(ours, eager)
    if name in ("gpt_oss", "t5"):
        assert any("sinks" in parameter or "relative_attention_bias" in parameter for parameter in ours)


def test_gradient_checkpointing_changes_no_gradient():
    model, inputs = built("mistral").train(), inputs_of("mistral") | dict(attention_mask=padding("right"))
    weights = padding("right")[..., None] * torch.ones(100)
    plain = gradients(model, "fastsoftmax", weights, use_cache=False, **inputs)
    model.gradient_checkpointing_enable()
    again = gradients(model, "fastsoftmax", weights, use_cache=False, **inputs)
    assert_same_gradients(again, plain, 1e-6)


# ---------------------------------------------------------------- caches, packed rows, masks of the caller

def cache_of(output):
    """The cache by the name that this release gives it."""
    name = "cache" if "cache" in output else "past_key_values"
    return {name: output[name]}


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt_oss", "llama4"])
def test_prefill_in_pieces_is_prefill_at_once(name, static, side):
    """The second piece starts inside a window and a chunk; the last has one token."""
    model, ids = built(name), inputs_of(name)["input_ids"]
    mask = torch.ones_like(ids) if side is None else padding(side)
    expected = logits(model, "eager", input_ids=ids, attention_mask=mask)
    model.set_attn_implementation("fastsoftmax")
    cache, found = {}, []
    with torch.no_grad():
        if static:
            name = next(iter(cache_of(model(ids))))
            cache = {name: hf.StaticCache(config=model.config, max_cache_len=LENGTH + 7)}
        for start, end in itertools.pairwise((0, 11, LENGTH - 1, LENGTH)):
            positions = (mask.cumsum(-1) - 1).clamp(0)[:, start:end]
            output = model(ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions, use_cache=True,
                           **cache)
            cache = cache_of(output)
            found.append(output.logits)
    expected = expected if side is None else logits(
        model, "eager", input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(0))
    tokens = mask.bool()
    assert_same(torch.cat(found, 1)[tokens], expected[tokens])


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_keys_beyond_the_length_of_a_cache_are_not_read(implementation, monkeypatch):
    """NaN there changes nothing: it would reach a sum even with weight 0."""
    seen = []
    attend = _attention.scaled_dot_product_attention

    def poisoned(query, key, value, **options):
        end = options["key_lengths"].max() if options.get("key_lengths") is not None else key.shape[2]
        if options["is_causal"]:
            end = min(end, query.shape[2] + options.get("causal_offset", 0))
        seen.append(key.shape[2] - int(end))
        value[:, :, end:] = float("nan")
        return attend(query, key, value, **options)

    monkeypatch.setattr(_attention, "scaled_dot_product_attention", poisoned)
    model, inputs = built("llama"), inputs_of("llama")
    options = dict(max_new_tokens=8, do_sample=False, cache_implementation=implementation)
    generated = model.generate(**inputs, **options)
    model.set_attn_implementation("eager")
    assert torch.equal(generated, model.generate(**inputs, **options))
    assert (max(seen) > 0) == (implementation == "static")


POSITIONS = torch.tensor([[*range(9), *range(7), *range(4)], [0, *range(14), *range(5)]])


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "llama4"])
def test_packed_rows_are_separate_sequences(name):
    """Logits are those of each sequence alone, gradients those of eager."""
    model, ids = built(name).train(), inputs_of(name)["input_ids"]
    inputs = dict(input_ids=ids, position_ids=POSITIONS, use_cache=False)
    found = logits(model, "fastsoftmax", **inputs)
    for row in range(2):
        starts = [*torch.where(POSITIONS[row] == 0)[0].tolist(), LENGTH]
        for start, end in itertools.pairwise(starts):
            alone = logits(model, "eager", input_ids=ids[row:row + 1, start:end])
            assert_same(found[row:row + 1, start:end], alone)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    assert_same_gradients(*(gradients(model, x, weights, **inputs) for x in ("fastsoftmax", "eager")))


@pytest.mark.parametrize("kind", ["boolean", "floating", "a row for all queries", "keys beyond"])
def test_masks_of_the_caller_are_kept(kind):
    model, inputs = built("llama"), inputs_of("llama")
    see = torch.rand((2, 1, LENGTH, LENGTH), generator=torch.Generator().manual_seed(3)) < 0.5
    see |= torch.eye(LENGTH, dtype=torch.bool)
    if kind == "a row for all queries":
        see = see[:, :, :1]
    added = torch.zeros(see.shape).masked_fill(~see, torch.finfo(torch.float32).min)
    expected = logits(model, "eager", attention_mask=added, **inputs)
    mask = see if kind in ("boolean", "a row for all queries") else added
    if kind == "keys beyond":
        mask = torch.nn.functional.pad(mask, (0, 3))
    assert_same(logits(model, "fastsoftmax", attention_mask=mask, **inputs), expected)


def test_mask_functions_of_the_caller_are_kept():
    """Image tokens that see each other, as block_sequence_ids and as or_mask_function."""
    model, ids = built("llama"), inputs_of("llama")["input_ids"]
    blocks = torch.full_like(ids, -1)
    blocks[:, 4:9] = 0
    overlay = masking_utils.blockwise_overlay(blocks)
    for option in (dict(block_sequence_ids=blocks), dict(or_mask_function=overlay), dict(and_mask_function=overlay)):
        found = []
        for implementation in ("eager", "fastsoftmax"):
            model.set_attn_implementation(implementation)
            mask = masking_utils.create_causal_mask(model.config, model.get_input_embeddings()(ids), padding("left"),
                                                    None, **option)
            assert isinstance(mask, torch.Tensor)
            found.append(logits(model, implementation, input_ids=ids, attention_mask=mask))
        tokens = padding("left").bool()
        if "and_mask_function" in option:
            tokens &= blocks == 0       # the others see no key
        assert_same(found[1][tokens], found[0][tokens])


def test_a_decoder_made_bidirectional():
    model = built("llama")
    model.config.is_causal = False
    inputs = inputs_of("llama")
    assert_same_as_eager(model, **inputs)
    model.config.is_causal = True
    causal = logits(model, "fastsoftmax", **inputs)
    model.config.is_causal = False
    assert (logits(model, "fastsoftmax", **inputs) - causal).abs().max() > 0.1


# ---------------------------------------------------------------- compact masks

B, L = 2, 12
START = torch.tensor([0, 3])
PACKED = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
PACKED_POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3], [0, *range(11)]])


def packed(function, remapped=True):
    """A mask function of packed rows; releases before 5.15 do not map indices to positions."""
    if remapped:
        function = masking_utils.remap_positions_for_packed_sequence(function, PACKED_POSITIONS)
    return masking_utils.and_masks(function, masking_utils.packed_sequence_mask_function(PACKED))


FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "bidirectional": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(4),
    "window both ways": masking_utils.sliding_window_bidirectional_mask_function(2),
    "chunked": masking_utils.chunked_causal_mask_function(5, START),
    "chunks of almost all": masking_utils.chunked_causal_mask_function(L + 1, START * 0),
}
FUNCTIONS |= {f"packed {name}": packed(FUNCTIONS[name]) for name in ("causal", "window")}
TWO = masking_utils.chunked_causal_mask_function(2, torch.zeros(B, dtype=torch.long))
FUNCTIONS |= {"packed chunked": packed(TWO), "packed chunked by index": packed(TWO, remapped=False)}


@pytest.mark.parametrize("side", [None, *SIDES])
@pytest.mark.parametrize("queries, q_offset, kv_offset",
                         [(L, 0, 0), (L, 3, 0), (4, 5, 0), (4, 9, 2), (1, 7, 0), (1, 9, 3)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compact_masks_say_what_the_mask_function_says(name, queries, q_offset, kv_offset, side):
    if "packed" in name and (queries, q_offset, side) != (L, 0, None):
        return                  # transformers packs rows only without a cache and without padding
    mask = None if side is None else padding(side, L + kv_offset, 3).bool()
    shape = dict(batch_size=B, q_length=queries, kv_length=L, q_offset=q_offset, kv_offset=kv_offset,
                 mask_function=FUNCTIONS[name], attention_mask=mask)
    expected = masking_utils.sdpa_mask(**shape, allow_is_causal_skip=False)
    compact = _masks.compact_mask(**shape)
    if compact is None:
        assert torch.equal(expected, torch.ones(queries, L, dtype=torch.bool).tril().expand(B, 1, -1, -1)) or (
            queries == 1 and expected.all())
        return
    assert isinstance(compact, _masks.CompactMask)
    assert compact.shape == expected.shape
    assert torch.equal(compact.dense(), expected)
    for field in vars(compact).values():
        assert not isinstance(field, torch.Tensor) or field.numel() <= B * L


@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("side", [None, *SIDES])
def test_attention_with_a_compact_mask_is_that_with_its_dense_form(name, side, biased):
    """Results and gradients, with options of every shape."""
    if "packed" in name and side is not None:
        return
    generator = torch.Generator().manual_seed(4)
    query, key, value, bias, sinks = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((B, 4, L, 8), (B, 2, L, 8), (B, 2, L, 6), (1, 4, L, L), (4,)))
    mask = _masks.compact_mask(B, L, L, mask_function=FUNCTIONS[name], allow_is_causal_skip=False,
                               attention_mask=None if side is None else padding(side, L, 3).bool())
    found, inputs = [], (query, key, value, sinks, *([bias] if biased else []))
    for given in (mask, mask.dense()):
        output, weights = _attention.attention(None, query, key, value, given, scaling=0.7, softcap=3.0, s_aux=sinks,
                                               position_bias=bias if biased else None)
        assert weights is None
        assert output.is_contiguous()
        assert output.shape == (B, L, 4, 6)
        found.append((output, *torch.autograd.grad(output.sin().sum(), inputs)))
    for ours, dense in zip(*found, strict=True):
        assert_same(ours, dense, 1e-12)


def test_a_function_that_no_pattern_describes_gives_a_tensor():
    def even(batch, head, query, key):
        return (query + key) % 2 == 0

    def far(batch, head, query, key):
        return key < query - 2

    def other_half(batch, head, query, key):
        return query <= key

    either = masking_utils.or_masks(FUNCTIONS["window"], FUNCTIONS["chunked"])
    both = masking_utils.and_masks(FUNCTIONS["chunked"], masking_utils.chunked_overlay(3, START))
    for function in (even, far, other_half, either, both, masking_utils.blockwise_overlay(PACKED)):
        shape = dict(batch_size=B, q_length=L, kv_length=L, mask_function=function)
        mask = _masks.compact_mask(**shape)
        assert isinstance(mask, torch.Tensor)
        assert torch.equal(mask, masking_utils.sdpa_mask(**shape, allow_is_causal_skip=False))


def test_model_code_may_look_into_a_compact_mask():
    mask = _masks.compact_mask(B, L, L, mask_function=FUNCTIONS["window"])
    dense = mask.dense()
    assert mask.to("cpu") is mask.to(torch.bool) is mask.contiguous() is mask
    for found, expected in [
            (mask[:, :, :, :5], dense[..., :5]), (torch.cat([mask, mask], 2), torch.cat([dense, dense], 2)),
            (~mask, ~dense), (mask & dense, dense), (mask | ~dense, torch.ones_like(dense)),
            (mask.to(torch.float32), dense.float()), (mask.expand(-1, 3, -1, -1), dense.expand(-1, 3, -1, -1)),
            (torch.where(mask, 1.0, 2.0), torch.where(dense, 1.0, 2.0)), (mask.size(-1), L)]:
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))
    with pytest.raises(AttributeError, match="CompactMask has no attribute 'nothing'"):
        mask.nothing  # noqa: B018


def test_patterns_are_read_from_symbols():
    """Each field of a Pattern, so that none is lost."""
    pattern = _symbols.pattern_of(FUNCTIONS["packed chunked"])
    assert pattern.causal
    assert pattern.chunk == 2
    assert pattern.sequences is PACKED
    assert pattern.positions is PACKED_POSITIONS
    assert _symbols.pattern_of(FUNCTIONS["window"])[:3] == (True, 3, None)
    assert _symbols.pattern_of(FUNCTIONS["window both ways"])[:3] == (False, 2, 2)
    assert _symbols.pattern_of(FUNCTIONS["chunked"]).start is START
    narrower = masking_utils.and_masks(*(masking_utils.sliding_window_overlay(window) for window in (4, 2, 3)))
    assert _symbols.pattern_of(narrower)[:3] == (False, 1, None)


# ---------------------------------------------------------------- memory

LONG = 1024


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation of torch gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


def largest(model, implementation, **inputs):
    model.set_attn_implementation(implementation)
    with Largest() as watch, torch.no_grad():
        model(**inputs)
    return watch.elements


@pytest.mark.parametrize("kind", ["plain", "left", "right", "packed", "static"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "llama4", "modernbert"])
def test_prefill_makes_no_tensor_of_queries_times_keys(name, kind):
    model, inputs = built(name), inputs_of(name, LONG)
    if kind in ("left", "right"):
        inputs["attention_mask"] = padding(kind, LONG)
    elif name == "modernbert" and kind != "plain":
        return                  # it has no cache
    elif kind == "packed":
        inputs |= dict(position_ids=torch.arange(LONG).expand(2, -1) % 300, use_cache=False)
    elif kind == "static":
        cache = next(iter(cache_of(model(inputs["input_ids"][:, :2]))))
        inputs[cache] = hf.StaticCache(config=model.config, max_cache_len=LONG + 100)
    assert largest(model, "fastsoftmax", **inputs) < LONG * LONG
    if kind == "plain":
        assert largest(model, "eager", **inputs) >= LONG * LONG


MEMORY = """
import resource, torch, transformers as hf, fastsoftmax.transformers
def held():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
fastsoftmax.transformers.register()
model = hf.Gemma2Model(hf.Gemma2Config(
    vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, sliding_window=64, attn_implementation="fastsoftmax")).eval()
ids = torch.ones(1, 8192, dtype=torch.long)
mask = torch.ones_like(ids)
mask[:, :9] = 0
with torch.no_grad():
    model(ids[:, :64], attention_mask=mask[:, :64])
    before = held()
    model(ids)
    model(ids, attention_mask=mask)
    print(held() - before)
"""


def test_peak_memory_of_prefill_is_below_one_mask():
    """At 8192 tokens a boolean mask takes 64 MiB, the scores of a head 256."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 32 << 20


# ---------------------------------------------------------------- torch.compile

@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "llama4", "modernbert"])
def test_compiled_models_give_the_same(name, fresh_compiler):
    """As one graph, padded and not, with gradients."""
    model = built(name).train()
    options = {} if name == "modernbert" else dict(use_cache=False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for inputs in (inputs_of(name), inputs_of(name) | dict(attention_mask=padding("left"))):
        tokens = inputs.get("attention_mask", torch.ones(2, LENGTH)).bool()
        found = []
        for call in (compiled, model):
            model.zero_grad()
            result = call(**inputs, **options).logits[tokens]
            result.sin().sum().backward()
            found.append([result.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        for ours, plain in zip(*found, strict=True):
            assert_same(ours, plain, 1e-4)


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("name", ["mistral", "llama4"])
def test_compiled_prefill_has_no_tensor_of_queries_times_keys(name, padded, fresh_compiler):
    """Without a cache, where transformers takes every row for a packed one while it traces."""
    if padded and name == "llama4":
        return                  # chunks of padded rows: where they begin cannot be read, so they have a boolean mask
    sizes = []

    def backend(graph, examples):
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        sizes.extend(x.numel() for x in values if isinstance(x, torch.Tensor))
        return graph.forward

    model, inputs = built(name), inputs_of(name, LONG) | dict(use_cache=False)
    if padded:
        inputs["attention_mask"] = padding("left", LONG)
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend=backend)(**inputs).logits
    assert LONG * 64 <= max(sizes) < LONG * LONG
    tokens = inputs.get("attention_mask", torch.ones(2, LONG)).bool()
    assert_same(found[tokens], logits(model, "fastsoftmax", **inputs)[tokens])


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("name", ["gemma3", "llama4"])
def test_static_caches_compile_once_for_all_steps(name, side, fresh_compiler):
    """One graph for prefill and one for the steps, across the ends of windows and chunks."""
    model, graphs = built(name), []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    inputs = inputs_of(name) | ({} if side is None else dict(attention_mask=padding(side)))
    options = dict(max_new_tokens=14, do_sample=False, cache_implementation="static")
    model.set_attn_implementation("eager")
    expected = model.generate(**inputs, **options)
    model.set_attn_implementation("fastsoftmax")
    model.forward = torch.compile(model.forward, backend=backend, fullgraph=True)
    assert torch.equal(model.generate(**inputs, **options), expected)
    assert len(graphs) == 2


def test_dynamic_lengths_share_a_graph(fresh_compiler):
    model, eager, graphs = built("mistral"), built("mistral"), []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for length in (17, 18, 30):
        inputs = inputs_of("mistral", length) | dict(attention_mask=padding("right", length), use_cache=False)
        with torch.no_grad():
            found = compiled(**inputs).logits
        tokens = inputs["attention_mask"].bool()
        assert_same(found[tokens], logits(eager, "eager", **inputs)[tokens])
    assert len(graphs) == 1


# ---------------------------------------------------------------- arguments and errors

def call(mask=None, module=None, **options):
    query, key, value = torch.randn((3, 2, 4, 6, 8), generator=torch.Generator().manual_seed(5))
    return _attention.attention(module, query, key, value, mask, **options)


@pytest.mark.parametrize("name", ["indices", "block_indices"])
def test_sparse_attention_is_refused(name):
    with pytest.raises(NotImplementedError, match=rf"\b{name}\b"):
        call(**{name: torch.zeros(2, 6, 3, dtype=torch.long)})
    call(**{name: None})


def test_dropout_is_refused_in_training():
    config = hf.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                            num_attention_heads=2, attention_dropout=0.1, attn_implementation="fastsoftmax")
    model = hf.LlamaForCausalLM(config)
    with pytest.raises(NotImplementedError, match="dropout=0.1.*attention_dropout"):
        model.train()(torch.ones(1, 4, dtype=torch.long))
    model.eval()(torch.ones(1, 4, dtype=torch.long))


def test_unknown_arguments_are_ignored():
    assert torch.equal(call(sliding_window=2, deterministic=True, layer_idx=3, use_cache=False)[0], call()[0])


def test_without_a_mask_the_argument_and_then_the_module_says_whether_attention_is_causal():
    class Module(torch.nn.Module):
        is_causal = False

    causal, free = call()[0], call(is_causal=False)[0]
    assert (causal - free).abs().max() > 0.1
    assert torch.equal(call(module=Module())[0], free)
    assert torch.equal(call(module=Module(), is_causal=True)[0], causal)


def test_a_mask_of_two_dimensions_marks_padding():
    """As flash attention's, for models that make none themselves."""
    mask = padding("right", 6, 2)
    see = torch.ones(6, 6, dtype=torch.bool).tril() & mask[:, None, None, :].bool()
    assert_same(call(mask)[0], call(see)[0], 1e-6)


def test_weights_are_not_returned_with_a_warning(monkeypatch):
    warned = []
    monkeypatch.setattr(_attention.logger, "warning_once", warned.append)
    assert call(output_attentions=True)[1] is None
    assert "eager" in warned[0]


PLAIN_IMPORT = """
import transformers, fastsoftmax
assert "torch" not in dir(fastsoftmax) and "fastsoftmax" not in transformers.AttentionInterface().valid_keys()
import fastsoftmax.transformers as ft
assert "fastsoftmax" not in transformers.AttentionInterface().valid_keys()
ft.register(), ft.register()
assert "fastsoftmax" in transformers.AttentionInterface().valid_keys()
assert "fastsoftmax" in transformers.AttentionMaskInterface().valid_keys()
"""
NOT_INSTALLED = """
import sys
sys.modules["transformers"] = None
try:
    import fastsoftmax.transformers
except ImportError as error:
    assert "pip install 'fastsoftmax[transformers]'" in str(error) and "\\n" not in str(error), error
else:
    raise SystemExit("imported")
"""


@pytest.mark.parametrize("code", [PLAIN_IMPORT, NOT_INSTALLED], ids=["registers nothing", "names the extra"])
def test_import(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_examples_do_what_they_show():
    """That of register, and the program in docs/transformers.md."""
    module = fastsoftmax.transformers
    examples = doctest.DocTestFinder().find(module.register, "register", module=module)
    assert doctest.DocTestRunner().run(examples[0]).attempted
    assert not doctest.DocTestRunner().run(examples[0]).failed
    page = Path(__file__).parent.parent / "docs" / "transformers.md"
    program = {}
    exec(re.search(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL).group(1), program)
    assert program["longer"].shape == (1, 110)
    assert program["model"].config._attn_implementation == "fastsoftmax"
