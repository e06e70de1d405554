"""Forwards with other weights on modules that share: right, and nothing is left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import assert_close, call, randn, random_factors, randomised, task


class Twice(nn.Module):
    """A layer, a norm with buffers, or a block under two names; or two layers of one weight."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.norm, self.head = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.b = self.a if kind == "layer" else nn.Linear(4, 4)
        self.again = self.norm if kind == "norm" else nn.BatchNorm1d(4)
        if kind == "block":
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))] * 3)
        if kind == "weight":
            self.b.weight = self.a.weight
        if kind == "attention":
            self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
            self.mixed = self.mix

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(torch.tanh(self.a(x)))
        hidden = self.again(torch.tanh(self.b(hidden)))
        for block in self.blocks if self.kind == "block" else ():
            hidden = hidden + torch.tanh(block(hidden))
        if self.kind == "attention":
            tokens = hidden.unsqueeze(1) * torch.tensor([[1.0], [2.0]], dtype=x.dtype)
            tokens = self.mix(tokens, tokens, tokens, need_weights=False)[0]
            hidden = self.mixed(tokens, tokens, tokens, need_weights=False)[0].sum(1)
        return self.head(hidden)


KINDS = ["layer", "norm", "block", "weight", "attention", "nothing"]
FORMATS: dict[str, Callable[[], object]] = {"full": mp.Full, "lora": lambda: mp.LoRA(2), "none": dict}


def everything(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under each of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_with_other_weights_changes_nothing(kind: str, format: str) -> None:
    """The next one was off by their whole effect, 4.4, where a module has two names."""
    model = mp.attach(randomised(Twice(kind)), FORMATS[format](), norm="running")
    x, factors = randn(2, 5, 4), random_factors(model, 2)
    module, skeleton = everything(model.module), everything(model.backbone)
    values = {name: value.detach().clone() for name, value in module.items()}
    before = model(x, factors)
    first_names = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    other = {name: value.detach() + 1.0 for name, value in first_names.items() if value.is_floating_point()}
    moved = model(x, factors, weights=other)
    assert torch.equal(model(x, factors), before)
    assert everything(model.module).keys() == module.keys()
    assert all(value is module[name] for name, value in everything(model.module).items())
    assert all(value is skeleton[name] for name, value in everything(model.backbone).items())
    assert all(torch.equal(value, module[name]) for name, value in values.items())

    plain = copy.deepcopy(model.module)
    with torch.no_grad():
        for name, value in {**dict(plain.named_parameters()), **dict(plain.named_buffers())}.items():
            if name in other:
                value.copy_(other[name])
    again = mp.attach(plain, FORMATS[format]())
    assert_close(moved, again(x, factors), 1e-12)
    for number in range(2):
        merged = model.merged(task(factors, number), weights=other)
        assert_close(moved[number], call(merged, x[number]), 1e-12)


@pytest.mark.parametrize("alias", ["a", "b"])
@pytest.mark.parametrize("kind", ["layer", "weight"])
def test_a_weight_may_be_given_under_any_of_its_names(kind: str, alias: str) -> None:
    model = mp.attach(randomised(Twice(kind)), mp.LoRA(1))
    x, factors, value = randn(2, 5, 4), random_factors(model, 2), randn(4, 4)
    both = model(x, factors, weights={"a.weight": value, "b.weight": value})
    assert torch.equal(model(x, factors, weights={f"{alias}.weight": value}), both)
    assert not torch.equal(model(x, factors), both)


@pytest.mark.parametrize("kind", ["layer", "weight"])
def test_two_values_for_one_tensor_are_refused(kind: str) -> None:
    model = mp.attach(randomised(Twice(kind)), mp.LoRA(1))
    x, factors = randn(2, 5, 4), random_factors(model, 2)
    before = model(x, factors)
    with pytest.raises(ValueError, match=r"'b\.weight' and 'a\.weight' are one tensor"):
        model(x, factors, weights={"a.weight": randn(4, 4), "b.weight": randn(4, 4, seed=1)})
    assert torch.equal(model(x, factors), before)
    with pytest.raises(ValueError, match=r"'b\.weight' and 'a\.weight' are one tensor"):
        model.merged(task(factors, 0), weights={"a.weight": randn(4, 4), "b.weight": randn(4, 4, seed=1)})


class Aliased(nn.Module):
    """A layer of one's own that has its weight under a second name, in a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)
        self.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.tanh(x @ self.weight))


@pytest.mark.parametrize("format", ["full", "lora"])
def test_a_layer_with_two_names_for_its_weight(format: str) -> None:
    model = mp.attach(randomised(nn.Sequential(Aliased(), nn.Linear(4, 2))), FORMATS[format]())
    x, factors = randn(2, 5, 4), random_factors(model, 2)
    for number in range(2):
        assert_close(model(x, factors)[number], call(model.merged(task(factors, number)), x[number]), 1e-12)


def test_a_forward_that_fails_leaves_nothing_behind_either() -> None:
    model = mp.attach(randomised(Twice("layer")), mp.LoRA(1))
    x, factors = randn(2, 5, 4), random_factors(model, 2)
    before = model(x, factors)
    weights = {name: value.detach() + 1.0 for name, value in model.module.named_parameters()}
    with pytest.raises(ValueError, match="does not run on"):
        model(randn(2, 5, 3), factors, weights=weights)
    assert torch.equal(model(x, factors), before)
