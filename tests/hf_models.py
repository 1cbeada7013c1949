"""Tiny models of transformers with random weights, one for each kind of attention, and inputs for them."""

import torch
import transformers as hf

LENGTH = 20             # tokens of an input; windows and chunks are shorter
SMALL = dict(vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             pad_token_id=0, bos_token_id=1, eos_token_id=None)
GROUPED = SMALL | dict(num_key_value_heads=2)
HEADS_OF_16 = GROUPED | dict(head_dim=16)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
BUILD = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**HEADS_OF_16)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=6)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(
        **HEADS_OF_16, sliding_window=6, attn_logit_softcapping=2.0, query_pre_attn_scalar=16)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(
        **HEADS_OF_16, sliding_window=6, layer_types=["sliding_attention", "full_attention"])),
    "gpt_oss": lambda: hf.GptOssForCausalLM(hf.GptOssConfig(
        **HEADS_OF_16, sliding_window=6, num_local_experts=4, num_experts_per_tok=2)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(
        vocab_size=100, n_embd=64, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.0, resid_pdrop=0.0,
        embd_pdrop=0.0, bos_token_id=1, eos_token_id=None, pad_token_id=0)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL, **NO_DROPOUT)),
    "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(
        **SMALL, local_attention=8, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2)),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8,
        **NO_DROPOUT)),
    "whisper": lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(
        vocab_size=100, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, num_mel_bins=8, max_source_positions=20,
        max_target_positions=64, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, pad_token_id=0,
        bos_token_id=1, eos_token_id=99, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(
        vocab_size=100, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0, pad_token_id=0,
        eos_token_id=99, decoder_start_token_id=0)),
    "deepseek_v3": lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(
        **SMALL, num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16,
        v_head_dim=12, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, n_shared_experts=1,
        first_k_dense_replace=1, moe_intermediate_size=32)),
    "llama4": lambda: hf.Llama4ForCausalLM(hf.Llama4TextConfig(
        **HEADS_OF_16, attention_chunk_size=8, num_local_experts=2, intermediate_size_mlp=96,
        interleave_moe_layer_step=2, layer_types=["chunked_attention", "full_attention"], no_rope_layers=[1, 0],
        attn_temperature_tuning=False)),
}
DECODERS = ("llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_oss", "gpt2", "deepseek_v3", "llama4")
TEXT = (*DECODERS, "bert", "modernbert", "t5")
GENERATORS = (*DECODERS, "whisper", "t5")


def built(name, implementation="fastsoftmax"):
    """A model in evaluation mode, of weights so large that attention is far from uniform."""
    torch.manual_seed(0)
    model = BUILD[name]().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.normal_(p.mean().item(), 0.3)
            else:
                p.normal_(0, 1.7 * min(p.shape[-2:]) ** -0.5)
    model.set_attn_implementation(implementation)
    return model


def inputs_of(name, length=LENGTH, batch=2):
    """Random inputs as keyword arguments of the model."""
    generator = torch.Generator().manual_seed(1)

    def ids(n):
        return torch.randint(2, 99, (batch, n), generator=generator)

    if name == "vit":
        return dict(pixel_values=torch.randn(batch, 3, 32, 32, generator=generator))
    if name == "whisper":
        return dict(input_features=torch.randn(batch, 8, 40, generator=generator), decoder_input_ids=ids(length))
    if name == "t5":
        return dict(input_ids=ids(length), decoder_input_ids=ids(length - 3))
    return dict(input_ids=ids(length))


def padding(side, length=LENGTH, padded=5):
    """A mask of two rows, the second padded on this side, on "both" or, "inside", between its tokens."""
    mask = torch.ones(2, length, dtype=torch.long)
    if side in ("left", "both"):
        mask[1, :padded] = 0
    if side in ("right", "both"):
        mask[1, -padded:] = 0
    if side == "inside":
        mask[1, 4:4 + padded] = 0
    return mask
