"""Where inner steps move the last layer alone, the body runs once on each part, and every number stays the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.learner import bilevel
from tests.learner.fixing import ENGINES, OFF, check_gradient, counted, names
from tests.learner.helpers import FORMATS, assert_same, grid, images, stir
from tests.learner.plain import Net, plain_gradients

SGD = mp.inner.SGD


def options_of(kind: str, head: str, norm: str, engine: str, **options: Any) -> dict[str, Any]:
    """Updates on all layers, of which the inner loop moves the classifier's, or a head in its place."""
    learned, (method, inner) = head == "learned", ENGINES[engine]
    outer = ["weights"] + ["factors"] * (learned and engine not in ("envelope", "cg"))
    given = {"inner": inner, "hypergradient": method, "outer": outer, "head": head, "norm": norm, **options}
    return {"adapt": ["classifier.*"], "format": FORMATS[kind], **given} if learned else given


def learner_of(kind: str, head: str, norm: str, engine: str, **options: Any) -> tuple[mp.Learner, Any]:
    """A learner with `options_of` the same, and the network that it was made of."""
    net, given = Net(), options_of(kind, head, norm, engine, **options)
    model = mp.attach(net, given.pop("format", {}), norm=given.pop("norm"), classifier="classifier")
    learner = mp.Learner(model, **given)
    stir(learner)
    return learner, net


@pytest.mark.parametrize(
    ("head", "kind", "engine", "norm"),
    grid(
        ["learned", "zero", "prototype-init"], FORMATS, ["unroll", "first-order", "envelope"],
        ["running", "support", "transductive"], quick=5,
    ),
)  # fmt: skip
@pytest.mark.parametrize("inner_data", ["support", "both"])
def test_the_gradient_is_that_of_a_plain_loop(
    head: str, kind: str, engine: str, norm: str, inner_data: str
) -> None:
    learner, net = learner_of(kind, head, norm, engine, inner_data=inner_data)
    whole = ["conv", "norm", "hidden"] + ["classifier"] * (head != "learned")  # which gives its input
    said = options_of(kind, head, norm, engine, inner_data=inner_data)
    check_gradient(learner, net, whole, **said)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("head", ["learned", "prototype-init"])
def test_it_is_the_gradient_of_the_direct_form(head: str, engine: str) -> None:
    learner, _ = learner_of("lora", head, "running", engine)
    found, direct = (
        bilevel.hypergradient(learner.objectives(images(), training=True), direct_form=form)
        for form in (None, True)
    )
    assert_same(dict(found.grads), dict(direct.grads), 1e-9)


@pytest.mark.parametrize("rates", [None, "step"])
def test_rates_generated_seeds_and_selection(rates: Any) -> None:
    """The generator's seeds of the body stay as they are through the inner steps, and are read by its one run."""
    outer = ["weights", "factors", "generator", "selection"] + ["rates"] * (rates is not None)
    given: dict[str, Any] = {
        "inner": SGD(3, 0.1, rates=rates), "outer": outer, "selection": "softmax",
        "generator": mp.generators.MappingNet(hidden=5),
    }  # fmt: skip
    learner, net = learner_of("cp", "learned", "running", "unroll", **given)
    said = options_of("cp", "learned", "running", "unroll", **given)
    _, expected = plain_gradients(learner.variables, net, images(), **said)
    assert_same(dict(learner.hypergradient(images()).grads), expected)
    assert "hidden" in names(learner)


@pytest.mark.parametrize(("head", "masked"), [("learned", False), ("zero", True)])
def test_adapted_and_evaluated_as_before(head: str, masked: bool) -> None:
    learner, _ = learner_of("lora", head, "running", "unroll")
    batch = images(masked=masked)
    support = (batch.support_x, batch.support_y, None, batch.support_mask)
    fast = learner.adapt_many(*support)(batch.query_x)
    with torch.no_grad():
        objectives = learner.objectives(batch, training=False)
        _, scored = objectives.scored(*learner.solve(objectives))
    learner.fixed_layers = OFF
    slow = learner.adapt_many(*support)(batch.query_x)
    for found in (fast, scored):
        torch.testing.assert_close(found, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["anil", "maml"])
def test_the_body_runs_once_on_each_part(method: str) -> None:
    learner = getattr(mp.methods, method)(Net(), norm="running", inner=SGD(5, 0.1))
    runs = counted(learner.model.backbone.conv)
    learner.hypergradient(images())
    runs.clear()
    learner.hypergradient(images())
    assert len(runs) == (2 if method == "anil" else 6)


class Twice(torch.nn.Module):
    """A network that runs its last layer twice; or one whose last layer is tied to its first."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.body = torch.nn.Linear(16, 3).double()
        self.tied = (
            torch.nn.Linear(3, 3).double() if tied else None
        )  # first, so that the parameter has its name
        self.out = torch.nn.Linear(3, 3).double()
        if self.tied is not None:
            self.out.weight = self.tied.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.body(x.flatten(1)))
        middle = self.out if self.tied is None else self.tied
        return self.out(torch.tanh(middle(hidden)))


@pytest.mark.parametrize("tied", [False, True])
def test_a_last_layer_that_also_acts_before_is_none(tied: bool) -> None:
    torch.manual_seed(0)
    net, formats = Twice(tied), {"out.bias" if tied else "out": mp.Full()}
    both = [
        mp.Learner(mp.attach(net, formats, classifier="out"), SGD(2, 0.5), outer=("weights",))
        for _ in range(2)
    ]
    both[1].fixed_layers = OFF
    found, expected = (learner.hypergradient(images()) for learner in both)
    torch.testing.assert_close(found.value, expected.value)
    assert_same(dict(found.grads), dict(expected.grads), 1e-12)
    x, y = images().support_x, images().support_y
    torch.testing.assert_close(both[0].adapt_many(x, y)(x), both[1].adapt_many(x, y)(x))


def test_a_single_layer_is_its_own_head() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).double()
    alone = mp.Learner(mp.attach(net[1], mp.Full(), targets="head"), SGD(2, 0.5), outer=("weights",))
    beside = mp.Learner(mp.attach(net, mp.Full(), targets="head"), SGD(2, 0.5), outer=("weights",))
    flat = dataclasses.replace(
        images(), support_x=images().support_x.flatten(2), query_x=images().query_x.flatten(2)
    )
    found, expected = alone.hypergradient(flat), beside.hypergradient(images())
    torch.testing.assert_close(found.grads["weights.weight"], expected.grads["weights.1.weight"])


class Shared:
    """A selection of the user's own: one vector for all layers."""

    def start(self, sites: Any) -> dict[str, torch.Tensor]:
        return {"all": torch.tensor([0.3, -0.2], dtype=torch.float64)}

    def __call__(self, sites: Any, factors: Any, logits: Any) -> dict[str, torch.Tensor]:
        weights = logits["all"].softmax(0)
        return {
            n: v * weights.view(1, 2, *[1] * (v.dim() - 2)) if n.endswith(".A") else v
            for n, v in factors.items()
        }


def test_a_selection_of_the_user_s_own_may_couple_layers() -> None:
    outer = ("selection", "weights")
    learner, _ = learner_of("lora", "learned", "running", "unroll", selection=Shared(), outer=outer)
    found, direct = (
        bilevel.hypergradient(learner.objectives(images(), training=True), direct_form=form)
        for form in (None, True)
    )
    assert_same(dict(found.grads), dict(direct.grads), 1e-12)


def test_without_a_step_all_gradients_are_there() -> None:
    learner, _ = learner_of("lora", "learned", "running", "unroll", inner=SGD(0, 0.1))
    found, direct = (
        bilevel.hypergradient(learner.objectives(images(), training=True), direct_form=form)
        for form in (None, True)
    )
    assert_same(dict(found.grads), dict(direct.grads), 1e-12)
