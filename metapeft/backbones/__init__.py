"""Backbones that come along: plain modules whose last layer is an `nn.Linear` named `classifier`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metapeft.backbones.table import registry

if TYPE_CHECKING:
    from metapeft.backbones.convolutional import conv4
    from metapeft.backbones.mlp_mixer import mixer
    from metapeft.backbones.perceptron import mlp
    from metapeft.backbones.residual import resnet12
    from metapeft.backbones.sentence_encoder import SentenceEncoder, minilm
    from metapeft.backbones.vision_transformer import vit
else:

    def __getattr__(name: str) -> Any:
        return registry.attribute(name)


def __dir__() -> list[str]:
    return sorted(registry)


__all__ = [
    "SentenceEncoder",
    "conv4",
    "minilm",
    "mixer",
    "mlp",
    "registry",
    "resnet12",
    "vit",
]
