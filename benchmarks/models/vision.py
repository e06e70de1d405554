"""Vision and speech models of transformers, from small configurations."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.models.case import Case, Then, pixels
from benchmarks.models.text import SIZES, case, hf

VIT = {**{k: v for k, v in SIZES.items() if k != "vocab_size"}, "image_size": 32, "patch_size": 16}
STAGES = {"num_labels": 3, "num_channels": 3}


def vit(name: str, model: str, config: str, size: int = 32, **settings: Any) -> Case:
    """A case of the form of a vision transformer."""
    return case(name, model, config, pixels(size), **{**VIT, **settings})


def staged(name: str, model: str, config: str, size: int = 32, **settings: Any) -> Case:
    """A case that halves its maps in stages."""
    return case(name, model, config, pixels(size), **{**STAGES, **settings})


def _clip_and_linear() -> nn.Module:
    body = hf("CLIPVisionModel", "CLIPVisionConfig", **VIT, projection_dim=8)
    return Then(body, lambda output: output.pooler_output, 16)


TRANSFORMERS = [
    vit("ViT", "ViTForImageClassification", "ViTConfig"),
    vit("DeiT", "DeiTForImageClassification", "DeiTConfig"),
    vit("DeiT distilled", "DeiTForImageClassificationWithTeacher", "DeiTConfig"),
    staged(
        "Swin",
        "SwinForImageClassification",
        "SwinConfig",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[1, 2],
        window_size=4,
    ),
    staged(
        "Swinv2",
        "Swinv2ForImageClassification",
        "Swinv2Config",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[1, 2],
        window_size=4,
    ),
    vit("BEiT", "BeitForImageClassification", "BeitConfig", use_relative_position_bias=True),
    vit(
        "Data2Vec vision",
        "Data2VecVisionForImageClassification",
        "Data2VecVisionConfig",
        use_relative_position_bias=True,
    ),
    Case("CLIP vision + linear", _clip_and_linear, pixels()),
    case(
        "CLIP image cls",
        "CLIPForImageClassification",
        "CLIPConfig",
        pixels(),
        num_labels=3,
        projection_dim=8,
        text_config={**SIZES, "projection_dim": 8},
        vision_config={**VIT, "projection_dim": 8},
    ),
    case(
        "SigLIP image cls",
        "SiglipForImageClassification",
        "SiglipConfig",
        pixels(),
        num_labels=3,
        text_config=dict(SIZES),
        vision_config=dict(VIT),
    ),
    vit("DINOv2", "Dinov2ForImageClassification", "Dinov2Config"),
    vit(
        "DINOv2 registers",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        num_register_tokens=2,
    ),
]

STAGED = [
    staged(
        "ConvNext",
        "ConvNextForImageClassification",
        "ConvNextConfig",
        depths=[1, 1],
        hidden_sizes=[8, 16],
        num_stages=2,
    ),
    staged(
        "ConvNextV2",
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        depths=[1, 1],
        hidden_sizes=[8, 16],
        num_stages=2,
    ),
    staged(
        "SegFormer cls",
        "SegformerForImageClassification",
        "SegformerConfig",
        depths=[1, 1],
        hidden_sizes=[8, 16],
        num_encoder_blocks=2,
        sr_ratios=[2, 1],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
    ),
    staged(
        "SegFormer seg",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        depths=[1, 1],
        hidden_sizes=[8, 16],
        num_encoder_blocks=2,
        sr_ratios=[2, 1],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
    ),
    staged("MobileNetV1", "MobileNetV1ForImageClassification", "MobileNetV1Config", depth_multiplier=0.25),
    staged("MobileNetV2", "MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.35),
    staged(
        "ResNet",
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
    ),
    staged(
        "RegNet",
        "RegNetForImageClassification",
        "RegNetConfig",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        groups_width=4,
    ),
    staged(
        "EfficientNet",
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        width_coefficient=0.25,
        depth_coefficient=0.25,
        hidden_dim=320,
        image_size=32,
    ),
    staged(
        "LeViT",
        "LevitForImageClassification",
        "LevitConfig",
        64,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[1, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        mlp_ratio=[2, 2, 2],
        attention_ratio=[2, 2, 2],
    ),
    staged(
        "MobileViT",
        "MobileViTForImageClassification",
        "MobileViTConfig",
        64,
        image_size=64,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[4, 8, 8, 16, 16, 16, 32],
        num_attention_heads=2,
    ),
    staged(
        "PoolFormer",
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        64,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
    ),
    staged(
        "PVTv2",
        "PvtV2ForImageClassification",
        "PvtV2Config",
        64,
        image_size=64,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    ),
    staged(
        "CvT",
        "CvtForImageClassification",
        "CvtConfig",
        32,
        embed_dim=[8, 16, 16],
        num_heads=[1, 2, 2],
        depth=[1, 2, 3],
    ),
    staged(
        "BiT (std conv)",
        "BitForImageClassification",
        "BitConfig",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_groups=4,
    ),
    staged(
        "FocalNet",
        "FocalNetForImageClassification",
        "FocalNetConfig",
        image_size=32,
        embed_dim=8,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
        use_layerscale=True,
    ),
]


GROUPS = {"vision transformers": TRANSFORMERS, "vision in stages": STAGED}
