"""Layers before the first that inner steps move run once on each part, and every number stays the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import metapeft as mp
from tests.learner.fixing import ENGINES, OFF, check_gradient, counted, direct, names
from tests.learner.helpers import CLOSED_HEADS, FORMATS, INNER_HEADS, assert_same, grid, images, stir
from tests.learner.plain import Net

SGD = mp.inner.SGD
NORMS = ["running", "support", "transductive"]


def options_of(kind: str, head: str, norm: str, engine: str, **options: Any) -> dict[str, Any]:
    """Updates on all layers, of which the inner loop moves those of the second half."""
    method, inner = ENGINES[engine]
    outer = ["weights"] + ["factors"] * (engine not in ("envelope", "cg"))
    adapt = ["hidden.*"] + ["classifier.*"] * (head == "learned")
    targets = "all" if head == "learned" else "body"
    return {
        "format": FORMATS[kind], "targets": targets, "norm": norm, "inner": inner, "hypergradient": method,
        "outer": outer, "head": head, "adapt": adapt, **options,
    }  # fmt: skip


def learner_of(kind: str, head: str, norm: str, engine: str, **options: Any) -> tuple[mp.Learner, Any]:
    """A learner with `options_of` the same, and the network that it was made of."""
    net, given = Net(), options_of(kind, head, norm, engine, **options)
    of_model = {name: given.pop(name) for name in ("format", "targets", "norm")}
    learner = mp.Learner(mp.attach(net, **of_model, classifier="classifier"), **given)
    stir(learner)
    return learner, net


@pytest.mark.parametrize(
    ("head", "kind", "engine", "norm"),
    grid([*INNER_HEADS, *CLOSED_HEADS], FORMATS, ["unroll", "first-order", "envelope"], NORMS, quick=7),
)
@pytest.mark.parametrize("inner_data", ["support", "both"])
def test_the_gradient_is_that_of_a_plain_loop(
    head: str, kind: str, engine: str, norm: str, inner_data: str
) -> None:
    learner, net = learner_of(kind, head, norm, engine, inner_data=inner_data)
    said = options_of(kind, head, norm, engine, inner_data=inner_data)
    check_gradient(learner, net, ["conv", "norm"], **said)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("head", ["learned", "prototype-init", "prototypes"])
def test_it_is_the_gradient_of_the_direct_form(head: str, engine: str) -> None:
    learner, _ = learner_of("lora", head, "running", engine)
    found = learner.hypergradient(images())
    assert (not learner.fixed_layers) == (engine in ("forward", "function"))
    assert_same(dict(found.grads), dict(direct(learner, images()).grads), 1e-9)


@pytest.mark.parametrize("rates", [None, "step"])
def test_rates_generated_seeds_and_selection(rates: Any) -> None:
    outer = ["weights", "factors", "generator", "selection"] + ["rates"] * (rates is not None)
    given: dict[str, Any] = {
        "inner": SGD(3, 0.1, rates=rates), "outer": outer, "selection": "softmax",
        "generator": mp.generators.MappingNet(hidden=5),
    }  # fmt: skip
    learner, net = learner_of("cp", "learned", "running", "unroll", **given)
    said = options_of("cp", "learned", "running", "unroll", **given)
    check_gradient(learner, net, ["conv", "norm"], **said)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("outer", [("weights",), ("factors",)])
def test_with_and_without_steps(steps: int, outer: tuple[str, ...]) -> None:
    learner, _ = learner_of("lora", "learned", "running", "unroll", inner=SGD(steps, 0.1), outer=outer)
    found = learner.hypergradient(images())
    # without steps W0 is trained on the statistics of each batch, which nothing is kept of
    assert names(learner) == ([] if outer == ("weights",) and not steps else ["conv", "norm"])
    assert_same(dict(found.grads), dict(direct(learner, images()).grads), 1e-12)


@pytest.mark.parametrize(("head", "masked"), [("learned", False), ("prototypes", True), ("zero", True)])
@pytest.mark.parametrize("norm", NORMS)
def test_adapted_and_evaluated_as_before(head: str, masked: bool, norm: str) -> None:
    learner, _ = learner_of("lora", head, norm, "unroll")
    batch = images(masked=masked)
    support = (batch.support_x, batch.support_y, None, batch.support_mask)

    def answers() -> list[Tensor]:
        tasks = learner.adapt_many(*support)
        with torch.no_grad():
            objectives = learner.objectives(batch, training=False)
            _, scored = objectives.scored(*learner.solve(objectives))
        return [tasks(batch.query_x), tasks(batch.query_x[:, :2]), tasks.task(1)(batch.query_x[1]), scored]

    found = answers()
    assert names(learner) == ["conv", "norm"]
    learner.fixed_layers = OFF
    for fast, slow in zip(found, answers()):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("head", "norm"), [("learned", "running"), ("zero", "support"), ("prototypes", "running")]
)
def test_fixed_layers_run_once_on_each_part(head: str, norm: str) -> None:
    learner, _ = learner_of("lora", head, norm, "unroll", inner=SGD(5, 0.1))
    runs = counted(learner.model.backbone.conv)  # type: ignore[arg-type]
    moving = counted(learner.model.backbone.hidden)  # type: ignore[arg-type]
    learner.hypergradient(images())
    runs.clear()
    moving.clear()
    learner.hypergradient(images(seed=1))
    assert len(runs) == 2
    assert len(moving) >= 6


def test_copies_with_another_engine_do_not_look_again() -> None:
    learner, _ = learner_of("lora", "learned", "running", "unroll")
    learner.with_engine("recompute").hypergradient(images())
    assert names(learner) == ["conv", "norm"]


def test_nothing_is_kept_where_the_first_layer_moves() -> None:
    learner, _ = learner_of("lora", "learned", "running", "unroll", adapt="all")
    runs = counted(learner.model.backbone.conv)  # type: ignore[arg-type]
    learner.hypergradient(images())
    assert names(learner) == []
    runs.clear()
    learner.hypergradient(images())
    assert len(runs) == 4  # three inner steps and the queries


@pytest.mark.parametrize(
    ("name", "adapt", "first"),
    [
        ("conv4", ["conv4.*", "classifier.*"], "chain norm1"),
        ("conv4", ["norm3.*", "conv4.*"], "chain norm1"),
        ("resnet12", ["block4.*"], "block1"),
        ("vit", ["blocks.1.*"], "patches"),
        ("mixer", ["blocks.1.*"], "patches"),
    ],
)
@pytest.mark.parametrize("norm", ["running", "support"])
def test_backbones(name: str, adapt: list[str], first: str, norm: str) -> None:
    sizes: dict[str, dict[str, Any]] = {
        "conv4": {"width": 17, "size": 16},
        "resnet12": {"width": 4, "size": 16, "channels": 1},
        "vit": {"width": 8, "size": 14, "depth": 2, "heads": 2, "channels": 1},
        "mixer": {"width": 8, "size": 8, "depth": 2, "channels": 1},
    }
    net = getattr(mp.backbones, name)(ways=3, **sizes[name]).double()
    formats = {"norm*": mp.Full(), "conv*": mp.LoRA(2), "classifier*": mp.LoRA(2)}
    model = mp.attach(net, formats if name == "conv4" else mp.LoRA(2), norm=norm)
    learner = mp.Learner(model, SGD(2, 0.1), adapt=adapt, outer=("weights", "factors"))
    stir(learner)
    size = sizes[name]["size"]
    batch = mp.EpisodeBatch(
        support_x=torch.randn(2, 3, 1, size, size, generator=torch.Generator().manual_seed(0)).double(),
        support_y=torch.arange(3).expand(2, -1),
        query_x=torch.randn(2, 6, 1, size, size, generator=torch.Generator().manual_seed(1)).double(),
        query_y=torch.arange(6).remainder(3).expand(2, -1),
        classes=torch.arange(3).expand(2, -1),
    )
    found = learner.hypergradient(batch)
    assert names(learner)[0] == first
    assert_same(dict(found.grads), dict(direct(learner, batch).grads), 1e-9)
