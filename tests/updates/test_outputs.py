"""What backbones give, inputs with five axes, and derivatives that torch lacks or has wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import assert_close, randn, random_factors, randomised, task


def test_a_rare_derivative_of_torch() -> None:
    """Its batch norm has a wrong gradient of a single image where that gradient comes channels last."""
    net = randomised(nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(2)))
    x = randn(1, 1, 4, 3, 5).requires_grad_()
    model, wave = mp.attach(net, {}), randn(15, 4)
    found = torch.autograd.grad((model(x, {})[0, 0].T * wave).sum(), x)[0]
    norm = net[0]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert_close(found[0, 0].flatten(1), scale.detach()[:, None] * wave.T)


def test_functions_that_torch_differentiates_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.layer = nn.EmbeddingBag(7, 3, mode="mean"), nn.Linear(3, 3)
            self.points = nn.Parameter(torch.zeros(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = F.hardsigmoid(self.layer(self.bag(x)))
            return torch.cdist(y.unsqueeze(1), self.points).squeeze(1)

    model = mp.attach(randomised(Net()), mp.LoRA(1), classifier=None)
    x, start = torch.arange(2 * 2 * 3).view(2, 2, 3) % 7, random_factors(model, 2)
    assert_close(model(x, start)[1], model.merged(task(start, 1))(x[1]))
    own = [value.requires_grad_() for value in start.values()]
    assert torch.autograd.gradgradcheck(lambda *v: model(x, dict(zip(start, v))).sum(), own, fast_mode=True)


def test_outputs(caplog: pytest.LogCaptureFixture) -> None:
    class Net(nn.Module):
        def __init__(self, give: Callable[[Tensor], object]) -> None:
            super().__init__()
            self.layer, self.give = nn.Linear(3, 2), give

        def forward(self, x: Tensor) -> object:
            return self.give(self.layer(x))

    x = randn(2, 2, 3)
    for give, output in [
        (lambda y: (y, None), None),
        (lambda y: {"out": y}, None),
        (lambda y: {"hidden": y + 1, "logits": y}, None),
        (lambda y: [y + 1, y], lambda found: found[1]),
    ]:
        net = randomised(Net(give))
        model = mp.attach(net, mp.LoRA(1), output=output)
        factors = random_factors(model, 2)
        assert_close(model(x, factors)[1], model.merged(task(factors, 1)).layer(x[1]))
        copy = mp.Learner(model, head="learned").model
        assert_close(copy(x, factors), model(x, factors))
    several = mp.attach(randomised(Net(lambda y: {"start_logits": y, "end_logits": y})), mp.LoRA(1))
    with pytest.raises(ValueError, match=r"returned start_logits, end_logits: say which.*output="):
        several(x, several.factors())
    with pytest.raises(ValueError, match="output=3"):
        mp.attach(nn.Linear(3, 2), mp.LoRA(1), output=3)
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_weight_norm_over_the_last_axis() -> None:
    """Its second derivative is another one than torch's, and right, with an update on it or without."""
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 2, 3), dim=2), nn.Flatten(), nn.Linear(4, 3)
    )
    model = mp.attach(randomised(net), mp.LoRA(1), targets=["0", "2"])
    x, start = randn(2, 2, 3, 4), random_factors(model, 2)
    model(x, start)
    own = [value.requires_grad_() for value in start.values()]
    assert torch.autograd.gradgradcheck(lambda *v: model(x, dict(zip(start, v))).sum(), own, fast_mode=True)
    head = mp.attach(net, {})
    weight = net[0].parametrizations.weight.original1.detach().clone().requires_grad_()
    name = "0.parametrizations.weight.original1"
    assert torch.autograd.gradgradcheck(
        lambda w: head(x, {}, weights={name: w}).sum(), weight, fast_mode=True
    )


def test_what_no_layer_owns_is_not_exported(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.layer = nn.Parameter(torch.ones(3, 3)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x @ self.matrix)

    model = mp.attach(Net(), mp.LoRA(1))
    with pytest.raises(ValueError, match="'matrix' is read by other code than a layer"):
        mp.export_peft(model, task(model.factors(), 0), tmp_path / "adapter")


def test_five_axes_in_a_learner() -> None:
    net = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(16, 2))
    learner = mp.methods.maml(net, norm="running", steps=1)
    adapted = learner.adapt(torch.randn(4, 1, 3, 3, 3), torch.tensor([0, 1, 0, 1]))
    assert adapted(torch.randn(3, 1, 3, 3, 3)).shape == (3, 2)
