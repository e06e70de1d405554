"""Layers before the first that inner steps move run once on each part, and every number stays the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft import derived
from metapeft.chunking import Chunking
from metapeft.items import Items
from tests.learner.helpers import CLOSED_HEADS, FORMATS, INNER_HEADS, assert_same, grid, images, stir
from tests.learner.plain import Net, plain_gradients
from tests.learner.test_fixed_body import ENGINES, OFF, counted

SGD = mp.inner.SGD
NORMS = ["running", "support", "transductive"]


def learner_of(kind: str, head: str, norm: str, engine: str, **options: Any) -> tuple[mp.Learner, Any]:
    """Updates on all layers, of which the inner loop moves those of the second half."""
    net, (method, inner) = Net(), ENGINES[engine]
    outer = ["weights"] + ["factors"] * (engine not in ("envelope", "cg"))
    adapt = ["hidden.*"] + ["classifier.*"] * (head == "learned")
    targets = "all" if head == "learned" else "body"
    given = {"inner": inner, "hypergradient": method, "outer": outer, "head": head, "adapt": adapt, **options}
    model = mp.attach(net, FORMATS[kind], targets, norm=norm, classifier="classifier")
    learner = mp.Learner(model, **given)
    stir(learner)
    return learner, net


def direct(learner: mp.Learner, batch: Any) -> Any:
    """Everything computed wherever it is read."""
    return derived.hypergradient(learner, learner.objectives(batch, training=True), direct_form=True)


def names(learner: mp.Learner) -> list[str]:
    """The modules whose outputs are kept."""
    return [name for layers in learner.fixed_layers.values() for name, _ in layers.modules]


@pytest.mark.parametrize(
    ("head", "kind", "engine", "norm"),
    grid([*INNER_HEADS, *CLOSED_HEADS], FORMATS, ["unroll", "first-order", "envelope"], NORMS, quick=7),
)
@pytest.mark.parametrize("inner_data", ["support", "both"])
def test_the_gradient_is_that_of_a_plain_loop(
    head: str, kind: str, engine: str, norm: str, inner_data: str
) -> None:
    learner, net = learner_of(kind, head, norm, engine, inner_data=inner_data)
    found = learner.hypergradient(images())
    assert names(learner) == ["conv", "norm"]
    # of both parts together the plain loop takes no statistics
    if norm == "transductive" and inner_data == "both":
        expected = direct(learner, images())
        value, grads = expected.value, dict(expected.grads)
    else:
        value, grads = plain_gradients(learner, net, images())
    torch.testing.assert_close(found.value, value, rtol=1e-9, atol=0)
    assert_same(dict(found.grads), grads)


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
    learner, net = learner_of(
        "cp", "learned", "running", "unroll", inner=SGD(3, 0.1, rates=rates), outer=outer, selection="softmax",
        generator=mp.generators.MappingNet(hidden=5),
    )  # fmt: skip
    found = learner.hypergradient(images())
    assert names(learner) == ["conv", "norm"]
    assert_same(dict(found.grads), plain_gradients(learner, net, images())[1])


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("outer", [("weights",), ("factors",)])
def test_with_and_without_steps(steps: int, outer: tuple[str, ...]) -> None:
    learner, _ = learner_of("lora", "learned", "running", "unroll", inner=SGD(steps, 0.1), outer=outer)
    found = learner.hypergradient(images())
    assert names(learner) == ["conv", "norm"]
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
    Chunking(recompute=True).view(learner).hypergradient(images())
    assert names(learner) == ["conv", "norm"]


def test_nothing_is_kept_where_the_first_layer_moves() -> None:
    learner, _ = learner_of("lora", "learned", "running", "unroll", adapt="all")
    runs = counted(learner.model.backbone.conv)  # type: ignore[arg-type]
    learner.hypergradient(images())
    assert names(learner) == []
    runs.clear()
    learner.hypergradient(images())
    assert len(runs) == 4  # three inner steps and the queries


class Odd(nn.Module):
    """A network of which the first layers do something out of the ordinary."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.third = (nn.Linear(16, 16).double() for _ in range(3))
            self.out = nn.Linear(16, 3).double()
            self.loose = nn.Parameter(torch.ones(1, 16).double())
        self.kind, self.calls = kind, 0

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x.flatten(1))
        if self.kind == "in place":
            a += 1.0
        if self.kind == "state":
            self.calls += 1
            a = a * (1.0 + 0.1 * self.calls)
        if self.kind == "again":
            a = self.first(torch.tanh(a))
        b = self.second(torch.tanh(a * self.loose))
        if self.kind == "threshold":
            b = torch.where(a.detach() > 3.0, 0.5 * b, b)
        if self.kind == "dropout":
            b = F.dropout(b, 0.4, self.training, inplace=True)
        if self.kind == "values":
            b = torch.where(a.detach() > 0, b, -b)
        c = self.third(torch.tanh(b))
        if self.kind == "skip":
            c = c + a
        if self.kind == "checked":
            assert torch.isfinite(a).all()
        if self.kind == "twice":
            c = self.first(torch.tanh(c))
        return self.out(torch.tanh(c))


def odd(kind: str, adapt: str = "third.*", **options: Any) -> mp.Learner:
    model = mp.attach(Odd(kind), mp.Full() if kind == "loose" else mp.LoRA(1), classifier="out")
    learner = mp.Learner(model, SGD(2, 0.3), adapt=adapt, outer=("weights", "factors"), **options)
    stir(learner)
    return learner


@pytest.mark.parametrize(
    ("kind", "kept", "read"),
    [
        ("plain", ["first", "second"], [False, True]),
        ("skip", ["first", "second"], [True, True]),
        ("twice", ["first", "second"], [False, True]),
        ("values", ["first", "second"], [False, True]),  # the first is read, though no derivative says so
        ("checked", ["first", "second"], [False, True]),
        ("in place", [], []),
    ],
)
def test_what_is_read_of_the_kept(kind: str, kept: list[str], read: list[bool]) -> None:
    learner = odd(kind)
    found = learner.hypergradient(images())
    assert names(learner) == kept
    layers = learner.fixed_layers[False]
    assert list(layers.read) == read
    assert ("weights.first.weight" in layers.behind) == (kind == "twice")
    assert_same(dict(found.grads), dict(direct(learner, images()).grads), 1e-10)


def test_parameters_that_no_layer_owns_and_hooks_leave_everything_as_it_is() -> None:
    learner = odd("loose", adapt="loose.*")
    assert_same(dict(learner.hypergradient(images()).grads), dict(direct(learner, images()).grads), 1e-10)
    assert names(learner) == []
    watched = odd("plain")
    watched.model.backbone.first.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    watched.hypergradient(images())
    assert names(watched) == []
    seen: list[bool] = []
    late = odd("plain")
    late.hypergradient(images())
    look = lambda *given: seen.append(bool(given[-1].isfinite().all()))  # noqa: E731
    late.model.backbone.first.register_forward_hook(look)  # type: ignore[union-attr]
    late.hypergradient(images())
    assert len(seen) == 3
    assert all(seen)


def test_a_value_that_is_compared_later_is_the_true_one() -> None:
    """In the first batch the comparison holds nowhere."""
    learner = odd("threshold")
    learner.hypergradient(images())
    batch = images(seed=1)
    batch = dataclasses.replace(batch, query_x=3.0 * batch.query_x)
    found, expected = learner.hypergradient(batch), direct(learner, batch)
    torch.testing.assert_close(found.value, expected.value, rtol=1e-12, atol=0)
    assert_same(dict(found.grads), dict(expected.grads), 1e-10)


@pytest.mark.parametrize("outer", [("rates",), ("weights", "factors")])
def test_dropout_written_in_place_after_an_evaluation(outer: tuple[str, ...]) -> None:
    """Without masks it writes nothing, so what an evaluation finds does not hold in training."""
    model = mp.attach(Odd("dropout"), mp.LoRA(1), classifier="out")
    inner = SGD(2, 0.3, rates="step" if outer == ("rates",) else None)
    learner = mp.Learner(model, inner, adapt="third.*", outer=outer, dropout=True)
    stir(learner)
    learner.adapt_many(images().support_x, images().support_y)(images().query_x)
    found, expected = learner.hypergradient(images()), direct(learner, images())
    torch.testing.assert_close(found.value, expected.value, rtol=1e-12, atol=0)
    assert_same(dict(found.grads), dict(expected.grads), 1e-10)


def test_a_step_of_the_user_s_own_may_read_any_outer_variable() -> None:
    def step(u: Any, w: Any, grads: Any) -> Any:
        rate = 0.3 * u["weights.first.bias"].square().mean().exp()
        return {name: value - rate * grads[name] for name, value in w.items()}

    learner = odd("plain")
    learner.inner = mp.inner.Step(step, 2)
    found = learner.hypergradient(images())
    assert_same(dict(found.grads), dict(direct(learner, images()).grads), 1e-10)


def test_what_is_derived_of_another_batch_is_refused() -> None:
    learner = odd("plain")
    objectives = learner.objectives(images(), training=False)
    solved = learner.solve(objectives)
    with pytest.raises(LookupError, match="belongs to another batch"):
        objectives.for_query(learner.prepared(Items(images(seed=1).query_x, None))).predict(*solved)


def test_a_forward_that_takes_another_way_is_not_given_what_was_kept_of_the_first() -> None:
    learner = odd("plain")
    learner.hypergradient(images())
    learner.model.backbone.kind = "again"  # type: ignore[assignment]
    found = learner.hypergradient(images())
    assert_same(dict(found.grads), dict(direct(learner, images()).grads), 1e-12)


@pytest.mark.parametrize("norm", ["running", "support"])
def test_dropout_before_and_behind(norm: str) -> None:
    """The masks behind are those that they are without anything kept."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second, out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    layers = (nn.Flatten(), first, nn.Dropout(0.3), nn.Tanh(), second, nn.Dropout(0.4), nn.Tanh(), out)
    model = mp.attach(nn.Sequential(*layers).double(), mp.LoRA(2), norm=norm)
    outer = ("weights", "factors")
    learner = mp.Learner(model, SGD(2, 0.3), adapt=["4.*"], outer=outer, dropout=True, seed=3)
    stir(learner)
    found = learner.hypergradient(images())
    assert names(learner) == ["0", "1", "2", "3"]
    assert_same(dict(found.grads), dict(direct(learner, images()).grads), 1e-12)
    x, y = images().support_x, images().support_y
    before = learner.adapt_many(x, y)(x)
    learner.fixed_layers = OFF
    torch.testing.assert_close(before, learner.adapt_many(x, y)(x))


def test_a_network_with_a_state_is_left_alone() -> None:
    with pytest.raises(ValueError, match="keeps state"):
        odd("state").hypergradient(images())


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
