"""Exact engines on networks against central differences of the outer value.

The two-layer transformer and the small MLP are smooth. Conv-4 has kinks (ReLU, max-pooling), where no derivative
exists; they form a set of measure zero, and with steps of 1e-6 in float64 the points below are on one side of all
of them: a kink between the two evaluations would show as an error far above the tolerance.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft.episodes.episode import EpisodeBatch
from metapeft.hypergradients import Exact, Recompute, Truncated
from metapeft.inner import SGD
from tests.learner.helpers import stir

STEPS = 3
ENGINES = ["unroll", Recompute(), Recompute("sqrt"), Truncated(STEPS)]
SLOW = pytest.mark.slow


class Transformer(nn.Module):
    """Two layers of attention and layer norm over tokens `(B, 5, 4)`, then the mean and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Linear(4, 8)
            for name in ("first", "second"):
                layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True)
                setattr(self, name, layer)
            self.classifier = nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(self.embed(x))).mean(1))


def batch_of(*shape: int) -> EpisodeBatch:
    random = torch.Generator().manual_seed(2)

    def draw(count: int) -> Tensor:
        return torch.randn(2, count, *shape, generator=random, dtype=torch.float64)

    y = torch.arange(3).expand(2, 3)
    return EpisodeBatch(draw(3), y, draw(6), y.repeat(1, 2), classes=y)


def conv4() -> nn.Module:
    return mp.backbones.conv4(ways=3, channels=1, width=3, size=16).double()


def mlp() -> nn.Module:
    body = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return body.double()


NETWORKS: dict[str, tuple[Any, Any, EpisodeBatch]] = {
    "mlp": (mlp, mp.Full(), batch_of(4)),
    "conv4-lora": (conv4, mp.LoRA(2), batch_of(1, 16, 16)),
    "conv4-cp": (conv4, mp.CP(2), batch_of(1, 16, 16)),
    "transformer": (Transformer, mp.LoRA(2), batch_of(5, 4)),
}


def learner_of(network: str, **options: Any) -> mp.Learner:
    make, format, _ = NETWORKS[network]
    norm = "support" if network.startswith("conv4") else "running"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = mp.Learner(mp.attach(make(), format, norm=norm), **options)
    stir(learner)
    return learner


def assert_slopes(learner: mp.Learner, batch: EpisodeBatch, h: float = 1e-6, relative: float = 1e-5) -> None:
    """Each group's gradient along a random direction equals the central difference of the plainly solved value."""

    def value() -> float:
        objectives = learner.objectives(batch, training=True)
        w, made = learner.solve(objectives)
        with torch.no_grad():
            return float(objectives.outer({}, w, made)[0].mean())

    found = learner.hypergradient(batch)
    for group in learner.outer:
        random = torch.Generator().manual_seed(5)
        way = {
            name: torch.randn(entry.shape, generator=random, dtype=torch.float64)
            for name, entry in learner.trained.items()
            if name.startswith(f"{group}.")
        }
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                for name, step in way.items():
                    learner.trained[name].add_(step, alpha=sign * h)
                values.append(value())
        slope = (values[0] - values[1]) / (2 * h)
        expected = sum(float((found.grads[name] * step).sum()) for name, step in way.items())
        assert abs(expected) > 1e-4, group  # else the comparison would say nothing
        # rounding: 1e-16 / 1e-6 of a value near 1, so 1e-10; curvature: of the order h^2
        assert slope == pytest.approx(expected, rel=relative), group


@pytest.mark.parametrize(
    ("network", "method"),
    [  # the quick tier sees every network and every engine once
        pytest.param(network, method, marks=() if i == j else SLOW, id=f"{network}-{method!r}")
        for i, network in enumerate(NETWORKS)
        for j, method in enumerate(ENGINES)
    ],
)
def test_exact_engines_on_networks(network: str, method: Any) -> None:
    groups = ("weights", "rates") if network == "mlp" else ("weights", "factors", "rates")
    inner = SGD(STEPS, 0.2, rates="step")
    learner = learner_of(network, inner=inner, outer=groups, hypergradient=method)
    assert_slopes(learner, NETWORKS[network][2])


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=() if n == "conv4-lora" else SLOW) for n in NETWORKS]
)
def test_forward_mode_on_networks(network: str) -> None:
    """For few outer variables: the rates, and the selection where there is one."""
    selected = network != "mlp"
    learner = learner_of(
        network,
        inner=SGD(STEPS, 0.2, rates="step"),
        outer=("rates", "selection") if selected else ("rates",),
        selection="softmax" if selected else None,
        hypergradient="forward",
    )
    assert_slopes(learner, NETWORKS[network][2])


@pytest.mark.parametrize("network", ["mlp", pytest.param("transformer", marks=SLOW)])
def test_the_exact_implicit_engine_on_smooth_networks(network: str) -> None:
    """At the regularised minimum, which a strong proximal term makes unique and quick to reach."""
    learner = learner_of(
        network,
        inner=SGD(60, 0.1, proximal=6.0),
        outer=("weights",) if network == "mlp" else ("weights", "factors"),
        hypergradient=Exact(),
        loss=F.cross_entropy,
    )
    assert_slopes(learner, NETWORKS[network][2], h=1e-5, relative=1e-5)


@pytest.mark.parametrize("method", ["unroll", pytest.param("recompute", marks=SLOW)])
def test_gradcheck_of_every_entry_on_the_small_mlp(method: str) -> None:
    """`torch.autograd.gradcheck` of the outer value as a function, with the engine as its backward."""
    learner = learner_of("mlp", inner=SGD(2, 0.3), hypergradient=method)
    batch, names = NETWORKS["mlp"][2], list(learner.trained)

    class Value(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *values: Tensor) -> Tensor:
            for name, value in zip(names, values):
                learner.trained[name].copy_(value)
            found = learner.hypergradient(batch)
            ctx.save_for_backward(*(found.grads[name] for name in names))
            return found.value

        @staticmethod
        def backward(ctx: Any, *upper: Tensor) -> Any:
            return tuple(upper[0] * grad for grad in ctx.saved_tensors)

    inputs = [learner.trained[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(Value.apply, inputs)
