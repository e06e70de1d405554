"""Scores of terms against gradients and losses that are taken one example, one term at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from tests.training.finetuning.helpers import bert

FORMATS = {"lora": mp.LoRA(2, 4.0), "cp": mp.CP(2), "ring": mp.TensorRing((2, 2, 2))}


def problem(format: Any) -> tuple[mp.AttachedModel, dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model = mp.attach(net, {"2.*": mp.Full(), "0.weight": format})
    factors = {
        name: 0.5 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in model.factors().items()
    }
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return model, factors, x, torch.arange(7) % 3


def loss_of(
    model: mp.AttachedModel, factors: dict[str, Tensor], gate: Tensor, x: Tensor, y: Tensor
) -> Tensor:
    """The plain loss of the merged weights, as a function of the gates of the first layer."""
    format = model.sites["0.weight"].format
    local = {n.rpartition(".")[2]: v for n, v in factors.items() if n.startswith("0.weight")}
    first = model.module[0].weight + format.delta(format.select(local, gate))[0]
    last = model.module[2].weight + factors["2.weight.delta"][0]
    hidden = torch.tanh(F.linear(x, first, model.module[0].bias))
    return F.cross_entropy(F.linear(hidden, last, model.module[2].bias + factors["2.bias.delta"][0]), y)


@pytest.mark.parametrize("kind", FORMATS)
def test_fisher_is_the_mean_of_squared_gradients_of_examples(kind: str) -> None:
    model, factors, x, y = problem(FORMATS[kind])
    expected = torch.zeros(2, dtype=torch.float64)
    for one in range(7):
        gate = torch.ones(2, dtype=torch.float64, requires_grad=True)
        loss = loss_of(model, factors, gate, x[one : one + 1], y[one : one + 1])
        expected += torch.autograd.grad(loss, gate)[0].square() / 7
    found = mp.scores(model, factors, [(x[:4], y[:4]), (x[4:], y[4:])])
    assert torch.allclose(found.values["0.weight"], expected, rtol=1e-10)
    assert set(found.values) == {"0.weight"}
    assert found.examples == 7


@pytest.mark.parametrize("kind", FORMATS)
def test_ablation_is_what_the_loss_gains(kind: str) -> None:
    model, factors, x, y = problem(FORMATS[kind])
    ones = torch.ones(2, dtype=torch.float64)
    whole = loss_of(model, factors, ones, x, y)
    expected = torch.stack([loss_of(model, factors, ones - torch.eye(2)[j], x, y) - whole for j in range(2)])
    found = mp.scores(model, factors, [(x[:4], y[:4]), (x[4:], y[4:])], kind="ablation")
    assert torch.allclose(found.values["0.weight"], expected, rtol=1e-9, atol=1e-14)


def test_at_an_optimum_the_gradient_of_the_mean_says_nothing() -> None:
    """Where the fit ends, every gate's mean gradient is about 0, and scores tell terms apart all the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=generator, dtype=torch.float64)
    net = nn.Linear(4, 4, bias=False).double()
    signal = x[:, :1] @ torch.ones(1, 4, dtype=torch.float64)
    y = net(x).detach() + signal + 0.1 * torch.randn(400, 4, generator=generator, dtype=torch.float64)
    fitted = mp.finetune(
        net, (x, y), format=mp.LoRA(2), steps=400, batch_size=400, lr=0.03, schedule="cosine", loss=F.mse_loss
    )
    factors = mp.canonical(fitted.model, fitted.factors)
    large, small = mp.scores(fitted.model, factors, [(x, y)], F.mse_loss).values["weight"].tolist()
    assert large > 100 * small
    leaves = {name: value.clone().requires_grad_() for name, value in factors.items()}
    mean = F.mse_loss(fitted.model(x.unsqueeze(0), leaves)[0], y)
    slope = torch.autograd.grad(mean, leaves["weight.A"])[0]
    assert float((slope * factors["weight.A"]).sum(2).square().max()) < 1e-3 * large


def test_sentences_with_padding() -> None:
    """An example's score does not depend on what it is padded with."""
    model = mp.attach(bert(), mp.LoRA(2), targets=["*query", "*value"])
    factors = {name: 0.3 * torch.randn_like(value) for name, value in model.factors().items()}
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    mask, y = (ids > 0).long(), torch.tensor([0, 1])
    together = mp.scores(model, factors, [({"input_ids": ids, "attention_mask": mask}, y)])
    cut = [(slice(i, i + 1), int(n)) for i, n in enumerate(mask.sum(1))]
    short = [({"input_ids": ids[one, :n], "attention_mask": mask[one, :n]}, y[one]) for one, n in cut]
    alone = mp.scores(model, factors, short)
    for name, value in together.values.items():
        assert torch.allclose(value, alone.values[name], rtol=1e-8)


def test_what_is_refused() -> None:
    model, factors, x, y = problem(mp.LoRA(1))
    with pytest.raises(ValueError, match="kind='hessian': allowed are"):
        mp.scores(model, factors, [(x, y)], kind="hessian")
    with pytest.raises(ValueError, match="batches is empty"):
        mp.scores(model, factors, [])
    plain = mp.attach(nn.Linear(2, 2), mp.Full())
    with pytest.raises(ValueError, match="no update with terms"):
        mp.scores(plain, plain.factors(), [])
    with pytest.raises(ValueError, match=r"mp.attach\(backbone, format\)"):
        mp.scores(nn.Linear(2, 2), {}, [])  # type: ignore[arg-type]
