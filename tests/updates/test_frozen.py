"""What the user froze stays frozen under Full unless it is named; complex weights are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import randn, randomised

ALL = {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "2.weight", "2.bias"}


def network(*frozen: str) -> nn.Module:
    net = randomised(
        nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5)), nn.Tanh(), nn.Linear(5, 3))
    )
    for name in frozen:
        net.get_submodule(name).requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("frozen", "targets", "left_out"),
    [
        ("0.0", "all", {"0.0.weight", "0.0.bias"}),
        ("0.0", "*", {"0.0.weight", "0.0.bias"}),
        ("0.0", "body", {"0.0.weight", "0.0.bias", "2.weight", "2.bias"}),
        ("0", "all", {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"}),
        ("2", ["all"], {"2.weight", "2.bias"}),
        ("0.0", nn.Linear, {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"}),
        ("0.0", "0.0", ALL - {"0.0.weight", "0.0.bias"}),
        ("0.0", "0.0.weight", ALL - {"0.0.weight"}),
        ("0.0", "0", {"2.weight", "2.bias"}),
        ("0.0", ["0.0.bias", "all"], {"0.0.weight"}),
        ("", "all", set()),  # nothing is singled out
    ],
)
def test_full_leaves_out_what_is_frozen_and_not_named(frozen: str, targets: Any, left_out: set[str]) -> None:
    model = mp.attach(network(frozen), mp.Full(), targets=targets)
    assert set(model.sites) == ALL - left_out


@pytest.mark.parametrize("targets", ["head", "2*", nn.Linear])
def test_where_all_that_is_matched_is_frozen_that_is_said(targets: Any) -> None:
    with pytest.raises(ValueError, match=r"are frozen \(requires_grad=False\); name them"):
        mp.attach(network("2", "0.0"), mp.Full(), targets=targets)


def test_low_rank_updates_are_made_for_frozen_weights() -> None:
    assert set(mp.attach(network("0.0"), mp.LoRA(1)).sites) == {"0.0.weight", "2.weight"}


def test_a_format_for_each_pattern() -> None:
    formats = {"0.0.weight": mp.Full(), "2": mp.LoRA(1), "*": mp.Full()}
    sites = mp.attach(network("0.0"), formats).sites
    assert set(sites) == {"0.0.weight", "0.1.weight", "0.1.bias", "2.weight"}


def batch(seed: int = 0) -> mp.EpisodeBatch:
    source = torch.Generator().manual_seed(seed)
    labels = [torch.arange(6).remainder(3)[torch.randperm(6, generator=source)] for _ in range(4)]
    return mp.EpisodeBatch(
        support_x=randn(2, 6, 4, seed=1), support_y=torch.stack(labels[:2]), query_x=randn(2, 6, 4, seed=2),
        query_y=torch.stack(labels[2:]), classes=torch.arange(3).expand(2, 3),
    )  # fmt: skip


def by_hand(net: nn.Module, data: mp.EpisodeBatch, steps: int, lr: float) -> float:
    """The query loss after descent of what asks for gradients, one task after the other."""
    total = 0.0
    for x, y, query, labels in zip(data.support_x, data.support_y, data.query_x, data.query_y):
        weights: dict[str, Tensor] = dict(net.named_parameters())
        for _ in range(steps):
            moving = {name: value.detach().requires_grad_() for name, value in weights.items()
                      if net.get_parameter(name).requires_grad}  # fmt: skip
            loss = F.cross_entropy(torch.func.functional_call(net, {**weights, **moving}, (x,)), y)
            slopes = torch.autograd.grad(loss, list(moving.values()))
            weights |= {name: value - lr * g for (name, value), g in zip(moving.items(), slopes)}
        total += F.cross_entropy(torch.func.functional_call(net, weights, (query,)), labels).item()
    return total / len(data.support_x)


@pytest.mark.parametrize("frozen", ["0.0", "0", "2", "0.1"])
@pytest.mark.parametrize("method", ["maml", "fomaml"])
def test_frozen_parameters_stay_where_they_are_inside_of_maml(method: str, frozen: str) -> None:
    """They moved: 1.0854 where by hand it is 1.0913, with the first of two layers frozen."""
    net, data = network(frozen), batch()
    learner = getattr(mp.methods, method)(net, inner=mp.inner.SGD(steps=3, lr=0.4), norm="running")
    found = learner.hypergradient(data)
    assert found.value.item() == pytest.approx(by_hand(net, data, 3, 0.4), rel=1e-12)
    assert {name.removeprefix("weights.") for name in found.grads} == {
        name for name, value in net.named_parameters() if value.requires_grad
    }


class Filter(nn.Module):
    """In Fourier space."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(self.gains * torch.fft.rfft(x), n=4)


def filtering() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Filter(), nn.Linear(4, 3))


@pytest.mark.parametrize("method", ["protonet", "fomaml", "anil"])
def test_complex_weights_are_refused_by_name(method: str) -> None:
    """An outer loop left them out in silence."""
    with pytest.raises(ValueError, match=r"'1\.gains'.* (is|dtype is) torch\.complex64"):
        getattr(mp.methods, method)(filtering(), norm="running")


@pytest.mark.parametrize("method", ["protonet", "fomaml", "anil"])
def test_frozen_complex_weights_are_part_of_a_backbone(method: str) -> None:
    net = filtering()
    net[1].requires_grad_(False)
    learner = getattr(mp.methods, method)(net, norm="running")
    data = batch()
    data = mp.EpisodeBatch(
        support_x=data.support_x.float(), support_y=data.support_y, query_x=data.query_x.float(),
        query_y=data.query_y, classes=data.classes,
    )  # fmt: skip
    found = learner.hypergradient(data)
    assert "weights.1.gains" not in found.grads
    assert found.grads["weights.0.weight"].any()
