"""Speech models of transformers, from small configurations."""

from __future__ import annotations

from torch import nn

from benchmarks.models.case import Case, floats, integers, keywords
from benchmarks.models.text import SIZES, case, hf
from benchmarks.models.vision import VIT

WAVES = {
    **SIZES, "conv_dim": [8, 8], "conv_kernel": [4, 2], "conv_stride": [4, 2], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "mask_time_prob": 0.0,
}  # fmt: skip
WHISPER = {
    "vocab_size": 40, "num_mel_bins": 8, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "max_source_positions": 8, "max_target_positions": 16, "use_cache": False, "num_labels": 3,
    "classifier_proj_size": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "suppress_tokens": None,
    "begin_suppress_tokens": None,
}  # fmt: skip


def _whisper_encoder() -> nn.Module:
    return hf("WhisperForAudioClassification", "WhisperConfig", **WHISPER)


AUDIO = [
    case(
        "Wav2Vec2 seqcls",
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        keywords(input_values=floats(160)),
        **WAVES,
    ),
    case(
        "HuBERT seqcls",
        "HubertForSequenceClassification",
        "HubertConfig",
        keywords(input_values=floats(160)),
        **WAVES,
    ),
    case(
        "WavLM seqcls",
        "WavLMForSequenceClassification",
        "WavLMConfig",
        keywords(input_values=floats(160)),
        **WAVES,
        num_buckets=8,
        max_bucket_distance=16,
    ),
    Case("Whisper encoder cls", _whisper_encoder, keywords(input_features=floats(8, 16))),
    case(
        "Whisper enc-dec",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        keywords(input_features=floats(8, 16), decoder_input_ids=integers(40, 4)),
        **WHISPER,
    ),
    case(
        "AST",
        "ASTForAudioClassification",
        "ASTConfig",
        keywords(input_values=floats(32, 16)),
        **{
            **VIT,
            "max_length": 32,
            "num_mel_bins": 16,
            "patch_size": 8,
            "frequency_stride": 8,
            "time_stride": 8,
        },
    ),
]
GROUPS = {"audio": AUDIO}
