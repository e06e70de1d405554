"""A learner's hypergradient against a plain loop over tasks, in float64.

Both sides do the same arithmetic in another order, so 1e-8 relative leaves room for rounding alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import metapeft as mp
from tests.learner.formulas import LEARNED
from tests.learner.helpers import (
    CLOSED_HEADS,
    FORMATS,
    INNER_HEADS,
    assert_same,
    grid,
    images,
    learner_of,
    stir,
)
from tests.learner.plain import plain_gradients

NORMS = ("running", "support", "transductive")
SGD = mp.inner.SGD


def check(kind: str, norm: str = "running", batch: Any = None, **options: Any) -> None:
    """Value and gradient of a learner with these options are those of a plain loop with the same ones."""
    batch = images() if batch is None else batch
    learner, net = learner_of(kind, norm, **options)
    said = {"format": FORMATS[kind], "norm": norm, **options}
    value, expected = plain_gradients(learner.variables, net, batch, **said)
    found = learner.hypergradient(batch)
    torch.testing.assert_close(found.value, value, rtol=1e-9, atol=0)
    assert_same(dict(found.grads), expected)


@pytest.mark.parametrize(
    ("head", "kind", "method", "norm"),
    grid(INNER_HEADS, FORMATS, ["unroll", "first-order", "envelope"], NORMS),
)
def test_adapted_heads(head: str, kind: str, method: str, norm: str) -> None:
    outer = ("weights",) if method == "envelope" else ("weights", "factors")
    check(kind, norm, inner=SGD(2, 0.1), head=head, hypergradient=method, outer=outer)


@pytest.mark.parametrize(
    ("head", "kind", "method", "norm"),
    grid(CLOSED_HEADS, FORMATS, ["unroll", "first-order", "envelope", "direct"], NORMS),
)
def test_heads_in_closed_form(head: str, kind: str, method: str, norm: str) -> None:
    inner = None if method == "direct" else SGD(2, 0.1)
    outer = ["weights"] + ["factors"] * (method != "envelope") + ["head"] * (head == "ridge")
    check(kind, norm, inner=inner, head=head, hypergradient=method, outer=outer)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("head", ["learned", "prototype-init"])
def test_no_inner_loop(head: str, norm: str) -> None:
    check("cp", norm, head=head, outer=("weights", "factors"))


@pytest.mark.parametrize(
    ("norm", "adapt", "kind", "method"),
    grid(
        ["running", "support"], ["all", ["*.A", "*.B"]], ["cp", "tr"], ["unroll", "first-order", "envelope"]
    ),
)
def test_generated_seeds(norm: str, adapt: object, kind: str, method: str) -> None:
    outer = ["weights", "selection"] + ["factors", "generator"] * (method != "envelope")
    if method == "envelope" and adapt != "all":
        outer += ["generator"]
    check(
        kind, norm, inner=SGD(2, 0.1), adapt=adapt, head="prototype-init", hypergradient=method, outer=outer,
        generator=mp.generators.MappingNet(hidden=6), selection="softmax",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("head", "rates", "kind"), grid(INNER_HEADS, ["step", "element"], ["lora", "cp", "tr"])
)
def test_learned_rates_and_selection(head: str, rates: str, kind: str) -> None:
    check(
        kind, inner=SGD(2, 0.1, rates=rates), head=head, selection="softmax",
        outer=("weights", "factors", "selection", "rates"),
    )  # fmt: skip


@pytest.mark.parametrize("adapt", ["*.B", ["conv.*", "hidden.weight.A"]])
@pytest.mark.parametrize("inner_data", ["support", "both"])
@pytest.mark.parametrize("norm", ["running", "support"])
def test_patterns_and_inner_data(norm: str, inner_data: str, adapt: object) -> None:
    check(
        "lora", norm, inner=SGD(2, 0.1), adapt=adapt, head="prototype-init", inner_data=inner_data,
        outer=("weights", "factors"),
    )  # fmt: skip


@pytest.mark.parametrize("head", LEARNED)
@pytest.mark.parametrize("norm", ["running", "support"])
def test_masks(norm: str, head: str) -> None:
    """Also what the head learns itself, and classes of unequal size."""
    check(
        "cp", norm, images(masked=True), inner=SGD(2, 0.1), head=head, generator=mp.generators.MappingNet(hidden=6),
        outer=("weights", "factors", "generator") + ("head",) * bool(LEARNED[head]),
    )  # fmt: skip


def test_rates_that_are_not_trained_are_read() -> None:
    given: dict[str, Any] = {"inner": SGD(2, 0.1, rates="step"), "outer": ("weights",), "head": "zero"}
    learner, net = learner_of("lora", **given)
    for name, value in learner.variables.items():
        if name.startswith("rates."):
            value.copy_(torch.tensor([0.2, 0.05]))
    _, expected = plain_gradients(learner.variables, net, images(), format=FORMATS["lora"], **given)
    assert_same(dict(learner.hypergradient(images()).grads), expected)


def test_regression_with_another_loss() -> None:
    episodes = mp.EpisodeSampler(mp.load_dataset("sinusoid"), 1, 5, 5)
    body = mp.backbones.mlp(1, 1, hidden=(6,)).double()
    batch = episodes.batch(0, 3)
    model, loss = mp.attach(body, mp.LoRA(1)), torch.nn.functional.mse_loss
    learner = mp.Learner(model, SGD(2, 0.01), loss=loss, outer=("weights", "factors"))
    stir(learner)
    found = learner.hypergradient(batch)
    u = {name: value.clone().requires_grad_() for name, value in learner.trained.items()}
    total = torch.zeros((), dtype=torch.float64)
    for t in range(3):
        w = {name: u[f"factors.{name}"][0] for name in learner.factor_names}

        def objective(w: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            weights = {
                name: u[f"weights.{name}"] + (w[f"{name}.B"] @ w[f"{name}.A"] if f"{name}.A" in w else 0)
                for name in dict(body.named_parameters())
            }
            return (torch.func.functional_call(body, weights, (x,)) - y).square().mean()

        for _ in range(2):
            at = {name: value * 1 for name, value in w.items()}
            support = batch.support_x[t].double(), batch.support_y[t].double()
            grads = torch.autograd.grad(objective(at, *support), list(at.values()), create_graph=True)
            w = {name: at[name] - 0.01 * grad for name, grad in zip(at, grads)}
        total = total + objective(w, batch.query_x[t].double(), batch.query_y[t].double()) / 3
    expected = dict(zip(u, torch.autograd.grad(total, list(u.values()))))
    torch.testing.assert_close(found.value, total.detach(), rtol=1e-9, atol=0)
    assert_same(dict(found.grads), expected)
    assert "accuracy" not in found.log


def test_changes_nothing() -> None:
    learner, _ = learner_of("cp", inner=SGD(2, 0.1), head="zero")
    before = learner.state()
    learner.hypergradient(images())
    assert all(torch.equal(value, before[name]) for name, value in learner.state().items())
    assert not any(value.requires_grad for value in learner.variables.values())


def test_higher_agrees_on_maml() -> None:
    """MAML by the library `higher`, on the same network, tasks and rate."""
    higher = pytest.importorskip("higher")
    from tests.learner.plain import Net

    net, batch = Net(norm=False), images(tasks=3)
    learner = mp.Learner(mp.attach(net, mp.Full()), SGD(3, 0.2))
    found = learner.hypergradient(batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    for t in range(3):
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fast, steps):
            for _ in range(3):
                steps.step(torch.nn.functional.cross_entropy(fast(batch.support_x[t]), batch.support_y[t]))
            loss = torch.nn.functional.cross_entropy(fast(batch.query_x[t]), batch.query_y[t])
            (loss / 3).backward()
    assert_same(dict(found.grads), {f"weights.{n}": p.grad for n, p in net.named_parameters()})


@pytest.mark.parametrize("method", ["unroll", "recompute", "forward"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_scale_of_an_adapted_head_is_learned(method: str, steps: int) -> None:
    """Its gradient against central differences of the outer value."""
    learner, _ = learner_of(
        "lora", inner=SGD(steps, 0.1), hypergradient=method, outer=("weights", "head"), head="prototype-init"
    )
    batch = images()
    found = learner.hypergradient(batch).grads["head.log_scale"]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            learner.variables["head.log_scale"] += sign * 1e-5
        values.append(float(learner.hypergradient(batch).value.mean()))
        with torch.no_grad():
            learner.variables["head.log_scale"] -= sign * 1e-5
    assert abs(float(found)) > 1e-4
    assert float(found) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)
