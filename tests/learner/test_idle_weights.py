"""A parameter that the backbone's forward does not use: it stays as it is, that is said once, and training goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp

SAID = "no loss reaches gamma, pooler.bias, pooler.weight, which therefore stay as they are"


class Pooled(nn.Module):
    """As BERT behind a head of the user's own: a pooler and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.pooler, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.gamma = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x).tanh())
        return found


class Routed(Pooled):
    """As a mixture of experts: the pooler runs for some batches only."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).tanh()
        if float(x.sum()) > 0:
            hidden = self.pooler(hidden) * self.gamma
        found: Tensor = self.head(hidden)
        return found


def batch(shift: float = 0.0) -> mp.EpisodeBatch:
    source = torch.Generator().manual_seed(0)
    labels = torch.arange(6).remainder(3).expand(2, 6)
    x, query = (torch.randn(2, 6, 4, generator=source) + shift for _ in range(2))
    return mp.EpisodeBatch(
        support_x=x, support_y=labels, query_x=query, query_y=labels, classes=torch.arange(3).expand(2, 3)
    )


class Drawn:
    def batch(self, start: int, count: int) -> mp.EpisodeBatch:
        return batch(-5.0 if start % 4 else 5.0)


def learner(net: nn.Module, engine: str = "unroll", **options: Any) -> mp.Learner:
    model = mp.attach(net, mp.LoRA(1), targets=["body.weight"])
    chosen: dict[str, Any] = {"inner": mp.inner.SGD(1, 0.1), "hypergradient": engine, **options}
    return mp.Learner(model, **chosen)


ENGINES = [
    "unroll", "recompute", "truncated", "forward", "first-order", "envelope", "finite-difference", "neumann", "cg",
    "exact", "autolora",
]  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore:the inner solver has not converged", "ignore:the inner Hessian", "ignore:the Neumann"
)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_gradients_are_those_without_the_idle_parameters(
    engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    own = learner(Pooled(), engine)
    with caplog.at_level(logging.WARNING, "metapeft"):
        found = own.hypergradient(batch())
        own.hypergradient(batch())
    assert [record.getMessage() for record in caplog.records] == [f"learner: {SAID}"]
    net = Pooled()
    net.requires_grad_(False)
    for layer in (net.body, net.head):
        layer.requires_grad_(True)
    wanted = learner(net, engine).hypergradient(batch()).grads
    assert set(found.grads) == set(wanted)
    for name, grad in wanted.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-6, atol=1e-8)


def test_without_an_inner_loop(caplog: pytest.LogCaptureFixture) -> None:
    own = mp.methods.protonet(Pooled())
    found = own.hypergradient(batch())
    assert set(found.grads) == {"weights.body.weight", "weights.body.bias"}
    assert SAID in caplog.text


@pytest.mark.parametrize("chunk", [None, 1])
def test_training_goes_on_and_leaves_them(
    chunk: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = learner(Pooled())
    before = own.state()
    trainer = mp.BilevelTrainer(
        own, torch.optim.AdamW, lr=0.1, tasks_per_step=2, chunk=chunk, clip=1.0, progress=False,
        options={"weight_decay": 0.1},
    )  # fmt: skip
    trainer.fit(Drawn(), 3, run_dir=tmp_path / "x")
    for name, value in own.state().items():
        idle = "pooler" in name or "gamma" in name
        assert torch.equal(value, before[name]) == (idle or name.startswith("factors"))
    assert caplog.text.count("no loss reaches") == 1


def test_what_some_batches_reach_is_trained_by_them() -> None:
    own = learner(Routed())
    own.hypergradient(batch(5.0))  # the first batch's check runs every layer
    assert "weights.gamma" not in own.hypergradient(batch(-5.0)).grads
    assert "weights.gamma" in own.hypergradient(batch(5.0)).grads


def test_a_group_that_nothing_reaches_is_refused() -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma, self.delta = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0

    with pytest.raises(ValueError, match="no loss reaches any of the 2 outer variables"):
        mp.methods.protonet(Still()).hypergradient(batch())


def test_a_problem_refuses_what_no_loss_reaches_unless_it_is_optional() -> None:
    square = lambda u, w: w["x"].square()  # noqa: E731
    u = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    made: dict[str, Any] = {"u": u, "w0": lambda u: {"x": u["a"]}, "solver": mp.inner.SGD(1, 0.1)}
    with pytest.raises(ValueError, match=r"no gradient reaches the outer variable u\['b'\]"):
        mp.hypergradients.Unroll()(mp.Problem(square, square, **made))
    found = mp.hypergradients.Unroll()(mp.Problem(square, square, **made, optional=frozenset({"b"})))
    assert set(found.grads) == {"a"}
