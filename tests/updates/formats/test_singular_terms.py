"""Singular terms, and what is kept of them: the update stays what it was, whatever the format."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import metapeft as mp

FORMATS = {"lora": mp.LoRA(3, 6.0), "cp": mp.CP(3, 5.0), "ring": mp.TensorRing((2, 3, 2), 4.0)}


def model(format: Any) -> mp.AttachedModel:
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 4)).double()
    return mp.attach(net, {"0.weight": format, "2.weight": format, "2.bias": mp.Full()})


def trained(model: mp.AttachedModel, tasks: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tasks, *value.shape[1:], generator=generator, dtype=torch.float64)
        for name, value in model.factors().items()
    }


def delta(model: mp.AttachedModel, factors: Any, parameter: str, format: Any = None) -> torch.Tensor:
    site = model.sites[parameter]
    own = {name.rpartition(".")[2]: value for name, value in factors.items() if name.startswith(parameter)}
    return (format or site.format).delta(own)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("parameter", ["0.weight", "2.weight"])
def test_the_update_is_the_same_and_its_terms_are_singular(kind: str, parameter: str) -> None:
    own = model(FORMATS[kind])
    factors = trained(own)
    found = mp.canonical(own, factors)
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in factors.items()}
    assert torch.allclose(delta(own, found, parameter), delta(own, factors, parameter), atol=1e-12)
    assert found["2.bias.delta"] is factors["2.bias.delta"]
    a, b = found[f"{parameter}.A"], found[f"{parameter}.B"]
    if kind == "ring":
        left, right = a.flatten(1, -2).transpose(1, 2), b.flatten(2)  # (T, r1, ...)
    else:
        left, right = a.flatten(2), b.transpose(1, 2)
    for side in (left, right):
        gram = side @ side.transpose(1, 2)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        assert (gram - torch.diag_embed(diagonal)).abs().max() < 1e-10
    sizes = left.norm(dim=2) * right.norm(dim=2) * (found[f"{parameter}.seed"] if kind == "cp" else 1.0)
    assert (sizes[:, :-1] >= sizes[:, 1:]).all()
    if kind != "ring":
        values = torch.linalg.svdvals(delta(own, factors, parameter).flatten(2))[:, :3]
        assert torch.allclose(sizes * own.sites[parameter].format.scale, values, rtol=1e-10)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("which", [[], [1], [0, 2], [0, 1, 2]])
def test_what_is_kept_is_what_the_gates_let_through(kind: str, which: list[int]) -> None:
    own = model(FORMATS[kind])
    factors = trained(own, tasks=1)
    gate = torch.zeros(3, dtype=torch.float64)
    gate[which] = 1.0
    for parameter in ("0.weight", "2.weight"):
        format = own.sites[parameter].format
        local = {n.rpartition(".")[2]: v for n, v in factors.items() if n.startswith(parameter)}
        expected = format.delta(format.select(local, gate))
        kept, silent = format.keep(local, which), format.silenced(local, which)
        assert torch.allclose(format.at_rank(len(which)).delta(kept), expected, atol=1e-12)
        assert torch.allclose(format.delta(silent), expected, atol=1e-12)
        tasks = format.select(
            {n: v.expand(2, *v.shape[1:]) for n, v in local.items()}, torch.stack([gate, 1 - gate])
        )
        assert torch.allclose(format.delta(tasks)[:1], expected, atol=1e-12)


@pytest.mark.parametrize("kind", FORMATS)
def test_silent_terms_stay_silent(kind: str) -> None:
    own = model(FORMATS[kind])
    start = trained(own, tasks=1)
    for parameter in ("0.weight", "2.weight"):
        local = {n.rpartition(".")[2]: v for n, v in start.items() if n.startswith(parameter)}
        start.update(
            {f"{parameter}.{n}": v for n, v in own.sites[parameter].format.silenced(local, [1]).items()}
        )
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64)
    fitted = mp.finetune(own, (x, torch.arange(8) % 4), steps=5, lr=0.1, start=start)
    for parameter in ("0.weight", "2.weight"):
        a, b = fitted.factors[f"{parameter}.A"], fitted.factors[f"{parameter}.B"]
        for dead in (0, 2):
            assert not (a[..., dead] if kind == "ring" else a[:, dead]).any()
            assert not (b[:, dead] if kind == "ring" else b[..., dead]).any()
        assert not torch.equal(b, start[f"{parameter}.B"])


def test_what_has_no_terms_or_a_seed_per_input_is_refused() -> None:
    own = model(mp.CP(2))
    seeds = {**trained(own), "0.weight.seed": torch.ones(2, 5, 2)}
    with pytest.raises(ValueError, match="no seed per input"):
        mp.canonical(own, seeds)
    with pytest.raises(ValueError, match="has no terms to keep"):
        mp.Full().keep({}, [])
    with pytest.raises(ValueError, match="has no terms to silence"):
        mp.Full().silenced({}, [])
