"""Parts of learners, for tests of what is refused."""

from __future__ import annotations

from typing import Any

import torch

import metapeft as mp


def mse(outputs: Any, targets: Any, reduction: str = "none") -> Any:
    return (outputs - targets).square()


def image_data(**options: Any) -> Any:
    return mp.datasets.ImageData(
        images(4, 1, 8, 8, dtype=torch.uint8), [0, 0, 1, 1], **{"classes": ["a", "b"], **options}
    )


def plain(format: Any = None, **options: Any) -> mp.AttachedModel:
    return mp.attach(mp.backbones.mlp(4, 3, hidden=(8,)), mp.CP(2) if format is None else format, **options)


def many() -> Any:
    return on_images().adapt_many(torch.zeros(2, 2, 64), torch.tensor([[0, 1], [0, 1]]))


def own_features(size: int) -> Any:
    features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    body = mp.backbones.mlp(64, 2, hidden=(4,))
    own = mp.methods.metapeft(body, generator=mapping(features=features, size=size), format=mp.CP(1))
    return own.adapt_many(torch.zeros(2, 2, 1, 8, 8), torch.tensor([[0, 1], [0, 1]]))


def images(*shape: int, **options: Any) -> Any:
    return torch.zeros(*shape, **options)


def mapping(**options: Any) -> Any:
    return mp.generators.MappingNet(**options)


def body() -> torch.nn.Module:
    return mp.backbones.mlp(4, 3, hidden=(8,))


def on_images(**options: Any) -> mp.Learner:
    return mp.methods.maml(mp.backbones.mlp(64, 2, hidden=(4,)), **{"norm": "running", **options})
