"""What dropout cannot serve is refused by name, and what draws nothing is served."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft.updates.copying import viewed
from metapeft.updates.layers import dropout
from metapeft.updates.layers.masks import Masks
from tests.updates.helpers import randn, random_factors, randomised
from tests.updates.layers.test_dropout import (
    ITEMS,
    KEYS,
    TASKS,
    Functional,
    assert_equals_single_tasks,
    dropped_and_plain,
    networks,
)


class Layer(nn.Module):
    """A linear layer behind something that happens in train mode only."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.layer, self.drop, self.what = nn.Linear(4, 4), nn.Dropout(0.5), what
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.layer(x))
        return self.what(self, x) if self.training else x


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.drop = nn.Parameter(torch.ones(5, 4)), nn.Linear(4, 3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.drop(self.table))


def counted(module: Layer, x: Tensor) -> Tensor:
    module.count += 1
    return x


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "drop path": (
        Layer(lambda module, x: x * x.new_empty(len(x), 1).bernoulli_(0.9)), (4,),
        r"cannot serve the backbone \(Layer\): in train mode it calls bernoulli_",
    ),
    "noise": (Layer(lambda module, x: x + torch.randn_like(x)), (4,), "calls randn_like"),
    "layer drop": (Layer(lambda module, x: x if torch.rand([]) > 0.1 else 0 * x), (4,), "calls rand"),
    "alpha": (nn.Sequential(nn.Linear(4, 4), nn.AlphaDropout(0.1)), (4,), r"1 \(AlphaDropout\).*alpha_dropout"),
    "rrelu": (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.RReLU()), (4,), r"2 \(RReLU\).*calls rrelu"),
    "lstm": (
        nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True)), (5, 4),
        r"1 \(LSTM\).*calls lstm",
    ),
    "shared": (Positions(), (5, 4), r"cannot serve drop \(Dropout\).*shape \(5, 4\).*share the mask"),
    "1d without channels": (
        nn.Sequential(nn.Linear(4, 4), nn.Dropout1d(0.5)), (4,), r"1 \(Dropout1d\).*wants 3 axes",
    ),
    "rate": (Layer(lambda module, x: F.dropout(x, 1.5)), (4,), "p=1.5: allowed is 0 to 1"),
    "buffers": (Layer(counted), (4,), "changes the buffer 'count'"),
    "more than dropout": (Layer(lambda module, x: x + 1), (4,), "differ from the same tasks one by one"),
    "none": (Layer(lambda module, x: x).requires_grad_(True), (4,), "the backbone's forward drops nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(name: str) -> None:
    net, shape, sentence = REFUSED[name]
    if name == "none":
        net.drop.p = 0.0
    model = viewed(mp.attach(net.double(), mp.LoRA(1), targets=nn.Linear, classifier=None), dropout=True)
    before = {key: value.clone() for key, value in net.named_buffers()}
    with pytest.raises(ValueError, match=sentence):
        model(randn(TASKS, ITEMS, *shape), random_factors(model, TASKS), masks=Masks(KEYS))
    assert all(torch.equal(value, before[key]) for key, value in net.named_buffers())


def test_what_draws_nothing_is_served() -> None:
    """Recurrent layers and instance norm without anything random in them, beside a layer that drops."""
    layers = [nn.Linear(4, 4), nn.InstanceNorm1d(5, track_running_stats=True), nn.Dropout(0.5)]
    net = nn.Sequential(*layers, nn.LSTM(4, 3, 2, batch_first=True))
    plain = mp.attach(randomised(net), mp.LoRA(1), targets=nn.Linear, classifier=None)
    assert_equals_single_tasks(viewed(plain, dropout=True), plain, randn(TASKS, ITEMS, 5, 4))


def test_masks_that_do_not_fit_are_refused() -> None:
    model, plain = dropped_and_plain(networks()["linear"][0], mp.LoRA(1))
    x, factors = randn(TASKS, ITEMS, 4), plain.factors()
    with pytest.raises(ValueError, match="masks= for 4 rows: this forward has 6"):
        model(x, factors, masks=Masks(KEYS[:2]))
    with pytest.raises(ValueError, match="masks= for 6 rows: this forward has no dropout"):
        plain(x, factors, masks=Masks(KEYS))


def test_another_torch_without_that_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "multi_head_attention_forward", lambda *args: args)
    with pytest.raises(ValueError, match=r"cannot serve nn.MultiheadAttention under torch"):
        dropout._attention_seen_inside.__wrapped__()


def test_no_dropout_is_certain_only_for_known_layers() -> None:
    assert dropout.never_drops(mp.backbones.conv4(width=4))
    assert dropout.never_drops(nn.Sequential(nn.Dropout(0.0), nn.MultiheadAttention(4, 2), nn.LSTM(2, 2, 2)))
    for net in (
        nn.Dropout2d(0.1),
        nn.MultiheadAttention(4, 2, 0.1),
        nn.GRU(2, 2, 2, dropout=0.1),
        Functional(),
    ):
        assert not dropout.never_drops(nn.Sequential(nn.Linear(2, 2), net))
