"""Decoders of transformers, encoders with a decoder, and a few that read more than words."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.models.case import Case, floats, ids, integers, keywords, words
from benchmarks.models.text import SIZES, case, causal, hf, usual

T5 = {
    "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
    "num_labels": 3, "decoder_start_token_id": 0, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BART = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64,
    "num_labels": 3, "use_cache": False,
}  # fmt: skip


def _marked(source: Any, rows: int) -> Any:
    """Token ids that end in the mark of the end, as T5 and BART classify."""
    found = ids()(source, rows)["input_ids"]
    found[:, -1] = 2
    return {"input_ids": found}


def _bert_without_head() -> nn.Module:
    return hf("BertModel", "BertConfig", **SIZES)


def _encoder_classifier() -> nn.Module:
    return hf("T5ForTokenClassification", "T5Config", **T5)


DECODERS = [
    case(
        "GPT2 LM",
        "GPT2LMHeadModel",
        "GPT2Config",
        words(),
        vocab_size=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    case(
        "GPT2 seqcls",
        "GPT2ForSequenceClassification",
        "GPT2Config",
        words(),
        vocab_size=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        use_cache=False,
        num_labels=3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    usual("GPTNeoX seqcls", "GPTNeoXForSequenceClassification", "GPTNeoXConfig", use_cache=False),
    causal("Llama LM", "LlamaForCausalLM", "LlamaConfig"),
    causal("Llama seqcls", "LlamaForSequenceClassification", "LlamaConfig"),
    causal("Mistral seqcls", "MistralForSequenceClassification", "MistralConfig", sliding_window=4),
    causal("Qwen2 seqcls", "Qwen2ForSequenceClassification", "Qwen2Config"),
    causal("Qwen3 seqcls", "Qwen3ForSequenceClassification", "Qwen3Config"),
    causal("Gemma2 seqcls", "Gemma2ForSequenceClassification", "Gemma2Config", sliding_window=4),
    causal("Gemma3 text LM", "Gemma3ForCausalLM", "Gemma3TextConfig", sliding_window=4),
    usual("Phi seqcls", "PhiForSequenceClassification", "PhiConfig", use_cache=False),
    causal("Phi3 seqcls", "Phi3ForSequenceClassification", "Phi3Config"),
    usual(
        "OPT seqcls",
        "OPTForSequenceClassification",
        "OPTConfig",
        ffn_dim=24,
        word_embed_proj_dim=16,
        use_cache=False,
        pad_token_id=1,
    ),
    case(
        "Bloom seqcls",
        "BloomForSequenceClassification",
        "BloomConfig",
        words(),
        vocab_size=40,
        hidden_size=16,
        n_layer=2,
        n_head=2,
        num_labels=3,
        pad_token_id=0,
        use_cache=False,
    ),
    case(
        "GPTNeo seqcls",
        "GPTNeoForSequenceClassification",
        "GPTNeoConfig",
        words(),
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=16,
        window_size=4,
        num_labels=3,
        pad_token_id=0,
        use_cache=False,
        intermediate_size=24,
    ),
    case(
        "GPTJ seqcls",
        "GPTJForSequenceClassification",
        "GPTJConfig",
        words(),
        vocab_size=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        rotary_dim=4,
        num_labels=3,
        pad_token_id=0,
        use_cache=False,
    ),
    case(
        "Falcon seqcls",
        "FalconForSequenceClassification",
        "FalconConfig",
        words(),
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=3,
        pad_token_id=0,
        use_cache=False,
    ),
    causal("Mixtral LM (experts)", "MixtralForCausalLM", "MixtralConfig", num_local_experts=3),
    causal(
        "Qwen2Moe LM",
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        num_experts=3,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts_per_tok=2,
    ),
    causal("OLMo2 LM", "Olmo2ForCausalLM", "Olmo2Config"),
    case(
        "Mamba LM",
        "MambaForCausalLM",
        "MambaConfig",
        ids(),
        vocab_size=40,
        hidden_size=16,
        state_size=4,
        num_hidden_layers=2,
        use_cache=False,
        use_mambapy=False,
    ),
    case(
        "Mamba2 LM",
        "Mamba2ForCausalLM",
        "Mamba2Config",
        ids(),
        vocab_size=40,
        hidden_size=16,
        state_size=4,
        num_hidden_layers=1,
        num_heads=4,
        head_dim=8,
        n_groups=1,
        chunk_size=4,
        use_cache=False,
    ),
    case(
        "RWKV LM",
        "RwkvForCausalLM",
        "RwkvConfig",
        ids(),
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        attention_hidden_size=16,
        intermediate_size=24,
        context_length=16,
        use_cache=False,
    ),
]

PAIRS = [
    case(
        "T5 cond.gen.",
        "T5ForConditionalGeneration",
        "T5Config",
        words(decoder_input_ids=integers(40, 4)),
        **T5,
    ),
    case(
        "Flan-T5 (gated) seqcls",
        "T5ForSequenceClassification",
        "T5Config",
        _marked,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        **T5,
    ),
    Case("Flan-T5 encoder tokcls", _encoder_classifier, words()),
    case(
        "Bart cond.gen.",
        "BartForConditionalGeneration",
        "BartConfig",
        words(decoder_input_ids=integers(40, 4)),
        **BART,
    ),
    case("Bart seqcls", "BartForSequenceClassification", "BartConfig", _marked, **BART),
]


def _patches() -> nn.Module:
    return hf(
        "PatchTSTForClassification", "PatchTSTConfig", num_input_channels=2, context_length=16, patch_length=4,
        patch_stride=4, d_model=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, num_targets=3,
        use_cls_token=True,
    )  # fmt: skip


def _clip() -> nn.Module:
    inside = {**SIZES, "image_size": 32, "patch_size": 16, "projection_dim": 8}
    return hf(
        "CLIPModel", "CLIPConfig", text_config=dict(inside), vision_config=dict(inside), projection_dim=8
    )


def _vilt() -> nn.Module:
    own = {**SIZES, "image_size": 32, "patch_size": 16, "modality_type_vocab_size": 2, "max_image_length": -1}
    return hf("ViltForQuestionAnswering", "ViltConfig", **own)


OTHERS = [
    Case("PatchTST cls", _patches, keywords(past_values=floats(16, 2))),
    Case(
        "CLIPModel (contrastive)",
        _clip,
        words(pixel_values=floats(3, 32, 32)),
        options={"output": lambda found: found.text_embeds - found.image_embeds},
    ),
    Case("ViLT", _vilt, words(pixel_values=floats(3, 32, 32))),
]
GROUPS = {"decoders": DECODERS, "encoder-decoders": PAIRS, "others": OTHERS}
