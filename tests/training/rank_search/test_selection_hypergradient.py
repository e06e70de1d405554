"""The hypergradient of the selection variables is the derivative of the loss after one step at them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import metapeft as mp
from metapeft.training.finetuning.items import read_rows
from metapeft.training.finetuning.settings import FineTuning
from metapeft.training.rank_search.autolora import SelectionSearch

FORMATS = {"lora": mp.LoRA(3, 6.0), "cp": mp.CP(2), "ring": mp.TensorRing((2, 3, 1))}
LR = 0.3


def search(format: Any, method: Any) -> SelectionSearch:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model = mp.attach(net, {"0.weight": format, "2.weight": format})
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    rows = [read_rows(data) for data in ((x[:6], torch.arange(6) % 3), (x[6:], torch.arange(6) % 3))]
    made = SelectionSearch(model, *rows, FineTuning(steps=1, lr=LR, batch_size=6), mp.AutoLoRARanks(method))
    for tensors in (made.lower.factors, made.logits):
        for value in tensors.values():
            value.data = 0.5 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return made


def after_one_step(made: SelectionSearch, logits: dict[str, torch.Tensor]) -> float:
    """The validation loss once the update has made a step of gradient descent at these logits."""
    train, validation = made.lower.batch(), made.validation.batch(0)
    leaves = {name: value.detach().clone().requires_grad_() for name, value in made.lower.factors.items()}
    grads = torch.autograd.grad(made.mean_loss(logits, leaves, train), list(leaves.values()))
    moved = {name: value.detach() - LR * grad for (name, value), grad in zip(leaves.items(), grads)}
    return float(made.mean_loss(logits, moved, validation).detach())


@pytest.mark.parametrize("kind", FORMATS)
def test_it_is_the_central_difference_of_the_retrained_loss(kind: str) -> None:
    made = search(FORMATS[kind], "unroll")
    found = made.engine(made.problem(made.lower.batch(), made.validation.batch(0))).grads
    step = 1e-5
    for name, value in made.logits.items():
        plain = {n: v.detach().clone() for n, v in made.logits.items()}
        for j in range(len(value)):
            losses = []
            for sign in (1, -1):
                shifted = {n: v.clone() for n, v in plain.items()}
                shifted[name][j] += sign * step
                losses.append(after_one_step(made, shifted))
            expected = (losses[0] - losses[1]) / (2 * step)
            assert float(found[name][j]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_papers_difference_is_close_to_it(kind: str) -> None:
    exact, paper = (search(FORMATS[kind], method) for method in ("unroll", "finite-difference"))
    a, b = (
        one.engine(one.problem(one.lower.batch(), one.validation.batch(0))).grads for one in (exact, paper)
    )
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-6)


def test_the_lower_step_is_made_anew_at_the_new_logits() -> None:
    made = search(mp.LoRA(3, 6.0), "unroll")
    before = {name: value.detach().clone() for name, value in made.lower.factors.items()}
    train = made.lower.batch()
    made.step()
    leaves = {name: value.clone().requires_grad_() for name, value in before.items()}
    optimizer = torch.optim.AdamW(list(leaves.values()), lr=LR)
    made.mean_loss({n: v.detach() for n, v in made.logits.items()}, leaves, train).backward()
    optimizer.step()
    for name, value in leaves.items():
        assert torch.allclose(made.lower.factors[name], value, atol=1e-12)
