"""First and second derivatives of every option of convolutions, in every format, against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import metapeft as mp
from tests.updates.helpers import FORMATS, randn, random_factors, randomised
from tests.updates.layers.test_layers import CONVOLUTIONS

TASKS = 2


def check(layer: nn.Module, format: Any, channels: int, sides: list[int], fast: bool) -> None:
    """In the input, the factors and the layer's own weights; with `fast`, of a random combination of outputs
    along a random direction, without, every entry by itself."""
    model = mp.attach(randomised(layer), format)
    factors = random_factors(model, TASKS)
    weights = {name: value.detach() for name, value in model.parameters.items()}
    names = [*factors, *weights]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values))
        own = {name: given[name] for name in weights}
        return torch.tanh(model(x, {name: given[name] for name in factors}, weights=own))

    x = randn(TASKS, 1, channels, *sides)
    tensors = [value.clone().requires_grad_() for value in (x, *factors.values(), *weights.values())]
    run(*tensors)  # the first batch's check is no part of it
    assert gradcheck(run, tensors, fast_mode=fast)
    assert gradgradcheck(run, tensors, fast_mode=fast)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    "format", ["full", "cp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "ring"))]
)
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_two_dimensions(options: dict, format: str) -> None:
    check(nn.Conv2d(2, 4, groups=2, **options), FORMATS[format], 2, [5, 5], fast=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("format", ["full", "cp", "uneven ring"])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_every_entry_in_one_dimension(options: dict, format: str) -> None:
    check(nn.Conv1d(2, 2, **options), FORMATS[format], 2, [5], fast=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_many_channels(options: dict) -> None:
    """Many input channels take the products before the sums."""
    check(nn.Conv2d(32, 4, groups=2, **options), mp.CP(2), 32, [5, 5], fast=True)
