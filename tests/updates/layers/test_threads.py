"""What is computed on several threads is what is computed on one; most other tests run on one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import metapeft as mp
from tests.updates.helpers import FORMATS, assert_close, randn, randomised

TASKS = 4


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def network() -> nn.Module:
    """Convolutions of every way through (few taps, groups, depthwise, many channels), in float64."""
    return randomised(
        nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 24, 3, padding=1, groups=4), nn.Conv2d(24, 24, 3, padding=1, groups=24),
            nn.Conv2d(24, 24, 3, stride=2), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5),
        )
    )  # fmt: skip


@pytest.mark.slow  # its threads wait for each other where the cores are taken
@pytest.mark.parametrize(("format", "norm"), [("full", "running"), ("full", "support"), ("cp", "support")])
def test_a_second_order_step_is_the_same_on_two_threads(format: str, norm: str) -> None:
    y = torch.arange(5).expand(TASKS, 5)
    batch = mp.EpisodeBatch(randn(TASKS, 5, 1, 8, 8), y, randn(TASKS, 10, 1, 8, 8, seed=1), y.repeat(1, 2), y)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
        model = mp.attach(network(), FORMATS[format], norm=norm)
        learner = mp.Learner(model, mp.inner.SGD(2, 0.1), outer=("weights", "factors"))
        found.append(learner.hypergradient(batch).grads)
    for name, value in found[0].items():
        assert_close(found[1][name], value, 1e-10)
    assert all(value.any() for name, value in found[0].items() if "bias" not in name)
