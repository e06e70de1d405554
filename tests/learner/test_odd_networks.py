"""Networks of which the first layers do something out of the ordinary: what is kept of them, and what is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft.learner.items import Items
from tests.learner.fixing import OFF, SGD, direct, names
from tests.learner.helpers import assert_same, images, stir


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
        if self.kind == "in place, unseen":
            a.detach().clamp_(-1.0, 1.0).add_(0.1)
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
        if self.kind == "turned":  # another run of the layer, of which the second axis holds the inputs
            c = self.first(torch.stack([c, 2.0 * c, -c])).tanh().sum(0)
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
        ("turned", ["first", "second"], [False, True]),
        ("values", ["first", "second"], [False, True]),  # the first is read, though no derivative says so
        ("checked", ["first", "second"], [False, True]),
        ("in place", [], []),
        ("in place, unseen", [], []),
    ],
)
def test_what_is_read_of_the_kept(kind: str, kept: list[str], read: list[bool]) -> None:
    learner = odd(kind)
    found = learner.hypergradient(images())
    assert names(learner) == kept
    layers = learner.fixed_layers[False]
    assert list(layers.read) == read
    assert ("weights.first.weight" in layers.behind) == (kind in ("twice", "turned"))
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


class Coupled:
    """A selection of the user's own that scales the updates of all layers by what one of them has become."""

    def start(self, sites: Any) -> dict[str, Tensor]:
        return {"all": torch.tensor([0.3], dtype=torch.float64)}

    def __call__(self, sites: Any, factors: Any, logits: Any) -> dict[str, Tensor]:
        size = logits["all"].exp() * factors["third.weight.A"].square().mean((1, 2))
        return {n: v * size.view(-1, 1, 1) if n.endswith(".A") else v for n, v in factors.items()}


def test_a_selection_of_the_user_s_own_may_couple_moving_layers_to_others() -> None:
    learner = odd("plain", selection=Coupled())
    assert_same(dict(learner.hypergradient(images()).grads), dict(direct(learner, images()).grads), 1e-10)


def test_each_run_of_a_layer_has_its_own_batch_axis() -> None:
    """The layer's updates are generated for each task, so that tasks may not be mixed up."""
    model = mp.attach(Odd("turned"), mp.CP(2), classifier="out")
    outer, generator = ("weights", "generator"), mp.generators.MappingNet(hidden=5)
    learner = mp.Learner(model, SGD(2, 0.3), adapt="third.*", outer=outer, generator=generator)
    stir(learner)
    found = learner.hypergradient(images())
    assert names(learner) == ["first", "second"]
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
