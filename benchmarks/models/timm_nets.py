"""Networks of timm: its smallest variants, on the smallest images that they take."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.models.case import Case, images


def create(name: str, **settings: Any) -> nn.Module:
    """A network of timm with random weights and three classes."""
    from metapeft.base.machine.torchvision_operators import import_torchvision

    import_torchvision()
    import timm

    made: nn.Module = timm.create_model(name, num_classes=3, pretrained=False, **settings)
    return made


def case(name: str, size: int = 32, **settings: Any) -> Case:
    """A case of one network."""
    return Case(name, lambda: create(name, **settings), images(size))


VIT = {"img_size": 32, "depth": 2}
CONVOLUTIONS = [
    case("resnet18"), case("resnet26d"), case("resnext26ts"), case("convnext_atto"), case("mobilenetv3_small_050"),
    case("efficientnet_b0"), case("ghostnet_050"), case("repghostnet_050"),
    case("nf_resnet26", channels=(32, 32, 64, 64)), case("seresnext26ts"),
    case("regnetx_002"), case("mobilenetv2_050"), case("tf_efficientnet_lite0"), case("densenet121"),
    case("vgg11_bn", mlp_ratio=0.02),
    case("hrnet_w18_small", 64), case("inception_v3", 96), case("xception41"),
    case("dm_nfnet_f0", depths=(1, 1, 1, 1), channels=(32, 32, 64, 64), group_size=16),
    case("gcresnext26ts"), case("bat_resnext26ts", 256), case("regnety_002"), case("dla34"), case("repvgg_a0"),
]  # fmt: skip
TRANSFORMERS = [
    case("vit_tiny_patch16_224", **VIT), case("vit_tiny_r_s16_p8_224", 64, img_size=64, depth=2),
    case("convit_tiny", 32, img_size=32, depth=4, local_up_to_layer=2), case("deit_tiny_distilled_patch16_224", **VIT),
    case("beit_base_patch16_224", 32, img_size=32, depth=2, embed_dim=48, num_heads=3),
    case("cait_xxs24_224", **VIT), case("eva02_tiny_patch14_224", 28, img_size=28, depth=2),
    case("vit_relpos_small_patch16_224", 32, img_size=32, depth=2, embed_dim=48, num_heads=3),
    case("xcit_nano_12_p16_224", 32, img_size=32, depth=2),
    case("crossvit_tiny_240", 240, embed_dim=(12, 24), num_heads=(3, 3)),
    case("pit_ti_224", 64, img_size=64),
    case("tnt_s_patch16_224", 32, img_size=32, depth=2, embed_dim=48, num_heads_outer=4),
    case("mixer_s32_224", 64, img_size=64), case("resmlp_12_224", 32, img_size=32),
    case("gmlp_s16_224", 32, img_size=32),
]  # fmt: skip
STAGED = [
    case("davit_tiny", 64, depths=(1, 1, 1, 1), embed_dims=(12, 24, 48, 96), num_heads=(1, 1, 2, 2)),
    case("swin_tiny_patch4_window7_224", 56, img_size=56, depths=(1, 1, 2), embed_dim=12, num_heads=(1, 2, 2)),
    case("levit_128s", 64, img_size=64), case("poolformer_s12"),
    case("coat_lite_tiny", 64, img_size=64), case("mobilevit_xxs", 64), case("edgenext_xx_small", 64),
    case("tiny_vit_5m_224", 64), case("efficientformer_l1", 224), case("maxvit_tiny_tf_224", 64, img_size=64),
    case("swinv2_cr_tiny_224", 64, img_size=64, embed_dim=12, depths=(1, 2), num_heads=(1, 2)),
    case("coatnet_nano_rw_224", 64, img_size=64),
]  # fmt: skip
GROUPS = {"convolutions": CONVOLUTIONS, "transformers": TRANSFORMERS, "stages": STAGED}
