"""Small learners and batches for the tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.episodes.episode import EpisodeBatch
from metapeft.learner.learner import Learner
from tests.learner.plain import Net

FORMATS = {"full": mp.Full(), "lora": mp.LoRA(2), "cp": mp.CP(2), "tr": mp.TensorRing(2)}
INNER_HEADS = ("learned", "zero", "prototype-init")
CLOSED_HEADS = ("prototypes", "ridge")


def images(
    tasks: int = 2, ways: int = 3, shots: int = 2, queries: int = 2, seed: int = 0, masked: bool = False
) -> EpisodeBatch:
    """Tasks of 4x4 images in float64; with masks, the first task lacks a class and some shots."""
    random = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        return torch.randn(tasks, ways * count, 1, 4, 4, generator=random, dtype=torch.float64)

    support_y = torch.arange(ways).repeat_interleave(shots).expand(tasks, -1)
    query_y = torch.arange(ways).repeat_interleave(queries).expand(tasks, -1)
    masks: dict[str, Any] = {}
    if masked:
        masks = {
            "support_mask": torch.ones_like(support_y, dtype=torch.bool),
            "query_mask": torch.ones_like(query_y, dtype=torch.bool),
        }
        masks["support_mask"][0, -shots:] = False
        masks["support_mask"][1, 0] = False
        masks["query_mask"][0, -queries:] = False
    classes = torch.arange(ways).expand(tasks, -1)
    return EpisodeBatch(draw(shots), support_y, draw(queries), query_y, classes=classes, **masks)


def learner_of(
    kind: str = "lora", norm: str = "running", net: Any = None, warm: bool = True, **options: Any
) -> tuple[Learner, Any]:
    """A learner on a small network, its factors and other variables moved away from their zero start."""
    body = Net() if net is None else net
    learner = Learner(mp.attach(body, FORMATS[kind], norm=norm), **options)
    if warm:
        stir(learner)
    # the plain loop shares the weights that the learner starts from
    return learner, body


def grid(*axes: Iterable[Any], quick: int = 7) -> list[Any]:
    """All combinations; every `quick`-th belongs to the quick tier, the others are marked slow.

    The offset moves with each sweep of the last axis, so that the quick ones show every value of every axis.
    """
    combined = list(itertools.product(*(list(axis) for axis in axes)))
    last = len(list(axes[-1]))
    slow = pytest.mark.slow
    return [
        pytest.param(*values, marks=() if (i + i // last) % quick == 0 else slow)
        for i, values in enumerate(combined)
    ]


@torch.no_grad()
def stir(learner: Learner, seed: int = 1) -> None:
    """Move every variable but W0 and the rates by a little noise: at `B = 0` most gradients are 0."""
    random = torch.Generator().manual_seed(seed)
    for name, value in learner.variables.items():
        if not name.startswith(("weights.", "rates.")):
            value += 0.3 * torch.randn(value.shape, generator=random, dtype=value.dtype)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-8) -> None:
    """Equal names and shapes; differences small against the largest gradient of that variable."""
    assert set(found) == set(expected)
    scale = max(float(value.abs().max()) for value in expected.values() if value.numel())
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        error = float((found[name] - value).abs().max()) if value.numel() else 0.0
        size = float(value.abs().max()) if value.numel() else 0.0
        # beside the own size: a millionth of the largest, for gradients that are 0 but for rounding
        assert error <= tolerance * (size + 1e-6 * scale), (name, error, size)
