"""Rates that are learned as logarithms: the same steps, and the gradient by the chain rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from tests.learner.helpers import assert_same, images, learner_of

SOLVERS: dict[str, Any] = {
    "sgd": mp.inner.SGD,
    "momentum": mp.inner.Momentum,
    "nesterov": mp.inner.Nesterov,
    "adam": lambda steps, lr, **options: mp.inner.Adam(steps, lr, eps=1e-2, **options),
    "adamw": lambda steps, lr, **options: mp.inner.AdamW(steps, lr, eps=1e-2, **options),
}


@pytest.mark.parametrize(
    ("name", "per", "method"),
    [
        *((name, "step", "unroll") for name in SOLVERS),
        ("sgd", "element", "unroll"),
        ("momentum", "element", "recompute"),
        ("sgd", "step", "first-order"),
        ("sgd", "step", mp.hypergradients.Truncated(window=3)),
    ],
)
def test_in_a_learner(name: str, per: str, method: Any) -> None:
    """The derivative by the logarithm of a rate is the rate times that by the rate."""
    options: dict[str, Any] = {
        "head": "prototype-init",
        "outer": ("weights", "factors", "rates"),
        "hypergradient": method,
    }
    plain, logs = (
        learner_of("lora", inner=SOLVERS[name](3, 0.1, rates=per, log_rates=on), **options)[0]
        for on in (False, True)
    )
    random = torch.Generator().manual_seed(0)
    for key in plain.variables:
        if key.startswith("rates."):
            factor = 0.5 + torch.rand(plain.variables[key].shape, generator=random, dtype=torch.float64)
            plain.variables[key].mul_(factor)
            logs.variables[key].add_(factor.log())
    expected, found = plain.hypergradient(images()), logs.hypergradient(images())
    torch.testing.assert_close(found.value, expected.value, rtol=1e-11, atol=0)
    rates = {key: plain.variables[key] if key.startswith("rates.") else 1.0 for key in expected.grads}
    assert_same(dict(found.grads), {key: grad * rates[key] for key, grad in expected.grads.items()})


def test_one_step_by_hand() -> None:
    """x = c - r c with r = e^l, so that d/dl (x^2 / 2) = -x r c."""
    solver = mp.inner.SGD(1, 0.25, rates="step", log_rates=True)
    start = {"x": torch.tensor(2.0, dtype=torch.float64)}
    u = solver.rates(start)
    half = lambda u, w: w["x"].square() / 2  # noqa: E731
    found = mp.hypergradient(half, half, u, start, solver)
    torch.testing.assert_close(u["rates.x"].exp(), torch.tensor([0.25], dtype=torch.float64))
    torch.testing.assert_close(found.grads["rates.x"], torch.tensor([-1.5 * 0.25 * 2.0], dtype=torch.float64))


def test_training_keeps_them_above_zero_and_runs_know_them(tmp_path: Path) -> None:
    data = mp.load_dataset("sinusoid")
    body = mp.backbones.mlp(1, 1, hidden=(4,))
    inner = mp.inner.SGD(2, 0.01, rates="step", log_rates=True)
    own = mp.methods.maml(
        body, inner=inner, outer=("weights", "rates"), loss=torch.nn.functional.mse_loss, norm="running"
    )
    trainer = mp.BilevelTrainer(
        own, torch.optim.SGD, lr={"rates": 100.0, "default": 0.0}, tasks_per_step=2, clip=1.0, progress=False
    )
    trainer.fit(mp.EpisodeSampler(data, 1, 4, 4), steps=1, run_dir=tmp_path / "run")
    again = mp.load(tmp_path / "run")
    assert again.inner.log_rates
    rates = {n: v for n, v in again.state().items() if n.startswith("rates.")}
    assert all(torch.equal(value, own.state()[name]) for name, value in rates.items())
    assert any(bool((value < -5).any()) for value in rates.values())  # a rate itself would be below 0
    assert "log_rates" not in mp.inner.SGD(2, 0.01, rates="step").settings()
    assert mp.inner.SGD(2, 0.01, rates="step").with_steps(4).log_rates is False
    assert inner.with_steps(4).log_rates is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1}, 'log_rates=True learns the logarithms of rates, and say rates="step" or "element" too'),
        ({"lr": 0.0, "rates": "step"}, r"log_rates=True .* and lr=0\.0 has none: it has to be above 0"),
        ({"lr": 0.1, "rates": "step", "log_rates": 3}, "log_rates=3: allowed are True and False"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp.inner.SGD(2, **{"log_rates": True, **options})
