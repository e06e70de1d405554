"""Dropout in a learner: against a plain loop with the same masks, in every engine, off where it has to be off.

Float64, the same arithmetic in another order: 1e-8 relative leaves room for rounding alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.episodes.episode import EpisodeBatch
from metapeft.learner.derived import derive
from metapeft.learner.dropout_masks import ItemMasks
from tests.learner.dropping import DropNet, DropPlain
from tests.learner.helpers import CLOSED_HEADS, FORMATS, INNER_HEADS, assert_same, grid, images, learner_of
from tests.learner.plain import plain_gradients

SGD = mp.inner.SGD
NORMS = ("running", "support", "transductive")


def dropping(kind: str = "lora", norm: str = "running", **options: Any) -> mp.Learner:
    return learner_of(kind, norm, net=DropNet(), dropout=True, seed=3, **options)[0]


def check(kind: str, norm: str, batch: Any, **options: Any) -> None:
    """Value and gradient of a learner with these options are those of a plain loop with the same ones and masks."""
    learner = dropping(kind, norm, **options)
    said = {"format": FORMATS[kind], "norm": norm, "seed": 3, **options}
    value, expected = plain_gradients(learner.variables, DropNet(), batch, DropPlain, **said)
    found = learner.hypergradient(batch)
    torch.testing.assert_close(found.value, value, rtol=1e-9, atol=0)
    assert_same(dict(found.grads), expected)


def indexed(batch: EpisodeBatch, seed: int = 0) -> EpisodeBatch:
    random = torch.Generator().manual_seed(seed)
    index = torch.randint(0, 1000, batch.support_y.shape, generator=random)
    return dataclasses.replace(batch, support_index=index)


@pytest.mark.parametrize(
    ("head", "kind", "method", "norm"),
    grid(INNER_HEADS, FORMATS, ["unroll", "first-order", "envelope"], NORMS),
)
def test_first_and_second_derivatives(head: str, kind: str, method: str, norm: str) -> None:
    """Unrolling two steps takes second derivatives of the inner objective, first order and envelope first ones."""
    outer = ("weights",) if method == "envelope" else ("weights", "factors")
    check(kind, norm, images(), inner=SGD(2, 0.1), head=head, hypergradient=method, outer=outer)


@pytest.mark.parametrize("head", CLOSED_HEADS)
@pytest.mark.parametrize("norm", NORMS)
def test_heads_in_closed_form_and_no_inner_loop(norm: str, head: str) -> None:
    """Closed heads read support and query in one forward; without inner loop on batch statistics."""
    check("cp", norm, images(), inner=SGD(2, 0.1), head=head, outer=("weights", "factors"))
    check("cp", norm, indexed(images()), head=head, outer=("weights", "factors"))


@pytest.mark.parametrize("norm", ["running", "support"])
def test_the_same_data_on_both_levels_has_the_same_masks(norm: str) -> None:
    options: dict[str, Any] = {
        "inner": SGD(2, 0.1),
        "inner_data": "both",
        "outer": ("weights", "factors"),
    }
    batch = indexed(images())
    check("lora", norm, batch, **options)
    learner = dropping("lora", norm, **options)
    made = learner.objectives(batch, training=True)
    w = learner.start({}, derive(made.passes, {}).values, made.passes.tasks)
    torch.testing.assert_close(made.inner({}, w, {}), made.outer({}, w, {})[0], rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["running", "support"])
def test_generated_seeds_read_features_without_dropout(norm: str) -> None:
    options: dict[str, Any] = {
        "inner": SGD(1, 0.1), "head": "zero", "outer": ("generator", "factors"),
        "generator": mp.generators.MappingNet(hidden=4),
    }  # fmt: skip
    learner = dropping("cp", norm, **options)
    plain = learner_of("cp", norm, net=DropNet(), **options)[0]
    batch = images()
    features = [one.objectives(batch, training=True).passes.features()["support"] for one in (learner, plain)]
    assert torch.equal(*features)


ENGINES = mp.hypergradients


@pytest.mark.parametrize(
    "method",
    [
        "recompute",
        ENGINES.Recompute(every="sqrt"),
        ENGINES.Truncated(window=3),
        "forward",
        ENGINES.MultiStep(),
    ],
)
def test_exact_engines_agree(method: Any) -> None:
    options: dict[str, Any] = {
        "inner": SGD(3, 0.1, rates="step"), "head": "prototype-init", "outer": ("rates", "selection"),
        "selection": "softmax",
    }  # fmt: skip
    batch = images()
    unrolled, other = (
        dropping("lora", hypergradient=m, **options).hypergradient(batch) for m in ("unroll", method)
    )
    torch.testing.assert_close(other.value, unrolled.value, rtol=1e-12, atol=0)
    assert_same(dict(other.grads), dict(unrolled.grads), 1e-9)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
def test_forward_mode_may_make_the_masks_itself() -> None:
    """Masks that are first asked for inside of jvp and vmap outlive them."""
    learner, batch = dropping("lora", inner=SGD(1, 0.1, rates="step"), outer=("rates",)), images()
    learner.hypergradient(batch)  # what is checked on a first batch is checked here
    made = learner.objectives(batch, training=True)

    def value(rate: Tensor) -> Tensor:
        w = {name: start * rate for name, start in learner.start({}, {}, made.passes.tasks).items()}
        return made.outer({}, w, {})[0].sum()

    def curve(rate: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(torch.func.grad(value), (rate,), (torch.ones_like(rate),))[1]
        return found

    rates = torch.tensor([0.5, 1.0], dtype=torch.float64)
    first, again = (torch.func.vmap(curve)(rates) for _ in range(2))
    assert torch.equal(first, again)
    rate = rates[1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(rate), rate, create_graph=True)
    (second,) = torch.autograd.grad(slope, rate)
    torch.testing.assert_close(first[1], second, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [ENGINES.CG(iterations=60), "exact", ENGINES.Neumann(terms=60, lr=0.2)])
def test_implicit_engines_reach_the_unrolled_limit(method: Any) -> None:
    options: dict[str, Any] = {"inner": SGD(40, 0.2, proximal=4.0), "head": "zero", "outer": ("weights",)}
    batch = images()
    unrolled, other = (
        dropping("lora", hypergradient=m, **options).hypergradient(batch) for m in ("unroll", method)
    )
    assert_same(dict(other.grads), dict(unrolled.grads), 1e-5)


@pytest.mark.parametrize("method", ["unroll", "finite-difference"])
def test_the_value_is_a_function_whose_differences_are_the_gradient(method: str) -> None:
    """Central differences of the value itself: they would be noise if any evaluation drew anew.

    Steps of 1e-5 leave 1e-10 of truncation and as much of rounding; finite differences in w leave their epsilon.
    """
    learner = dropping("full", inner=SGD(1, 0.1), hypergradient=method)
    batch = images()
    found = learner.hypergradient(batch).grads["weights.hidden.weight"]
    weight = learner.variables["weights.hidden.weight"]
    for i, j in ((0, 0), (3, 7), (4, 11)):
        values = []
        for step in (1e-5, -1e-5):
            weight[i, j] += step
            values.append(float(learner.hypergradient(batch).value))
            weight[i, j] -= step
        difference = (values[0] - values[1]) / 2e-5
        assert abs(difference - float(found[i, j])) <= (1e-3 if method != "unroll" else 1e-7) * float(
            found.abs().max()
        )


@pytest.mark.parametrize("norm", NORMS)
def test_changes_nothing_and_moves_no_generator(norm: str) -> None:
    learner, batch = dropping("cp", norm, inner=SGD(2, 0.1), head="zero"), images()
    before, random = learner.state(), torch.get_rng_state()
    first = learner.hypergradient(batch)
    torch.manual_seed(11)
    second = learner.hypergradient(batch)
    torch.set_rng_state(random)
    third = learner.hypergradient(batch)
    assert torch.equal(torch.get_rng_state(), random)
    for other in (second, third):
        assert torch.equal(first.value, other.value)
        assert all(torch.equal(value, other.grads[name]) for name, value in first.grads.items())
    assert all(torch.equal(value, before[name]) for name, value in learner.state().items())


def test_chunks_give_the_same_mean() -> None:
    learner, batch = dropping("lora", inner=SGD(2, 0.1), outer=("weights", "factors")), images(tasks=3)
    whole = learner.hypergradient(batch)
    parts = [learner.hypergradient(batch.tasks(slice(t, t + 1))) for t in range(3)]
    grads = {name: sum(part.grads[name] for part in parts) / 3 for name in whole.grads}
    assert_same(dict(whole.grads), grads, 1e-10)


def test_what_masks_depend_on() -> None:
    """Seed, episode, part, place in the part, dropout and position; not the tasks or the items beside."""
    batch = indexed(images())
    like, shape = torch.zeros(()), (12, 500)

    def made(seed: int = 0, batch: EpisodeBatch = batch, part: str = "support", place: int = 0) -> Tensor:
        return ItemMasks(seed, batch, "cpu").of(part)(place, shape, 0.5, like)

    first = made()
    assert torch.equal(first, made())
    others = [made(seed=1), made(batch=indexed(images(), 1)), made(part="query"), made(place=1)]
    rows = torch.cat([first, *others])
    same = (rows[:, None] == rows[None]).double().mean(-1) - torch.eye(len(rows))
    assert float(same.max()) < 0.65  # 500 independent coins agree in a half, 0.022 give or take
    assert float(same.min()) > -0.01
    assert float(same[~torch.eye(len(rows), dtype=bool)].min()) > 0.35
    both = ItemMasks(0, batch, "cpu").of("both")(0, (24, 500), 0.5, like).view(2, 12, 500)
    assert torch.equal(both[:, :6], first.view(2, 6, 500))
    assert torch.equal(both[:, 6:], made(part="query").view(2, 6, 500))
    beside = (
        ItemMasks(0, batch, "cpu").of("both", beside_support=True)(0, (36, 500), 0.5, like).view(2, 18, 500)
    )
    assert torch.equal(beside, torch.cat([first.view(2, 6, 500), both], 1))
    alone = ItemMasks(0, batch.tasks(slice(1, 2)), "cpu").of("support")(0, (6, 500), 0.5, like)
    assert torch.equal(alone, first[6:])
    fewer = dataclasses.replace(batch, query_x=batch.query_x[:, :2], query_y=batch.query_y[:, :2])
    assert torch.equal(made(batch=fewer), first)


@pytest.mark.parametrize("norm", ["running", "support"])
def test_off_outside_of_training(norm: str) -> None:
    options: dict[str, Any] = {"inner": SGD(2, 0.1), "head": "prototype-init"}
    learner, plain = dropping("cp", norm, **options), learner_of("cp", norm, net=DropNet(), **options)[0]
    batch = images()
    assert not torch.equal(learner.hypergradient(batch).value, plain.hypergradient(batch).value)
    adapted = [one.adapt_many(batch.support_x, batch.support_y) for one in (learner, plain)]
    assert torch.equal(*(one(batch.query_x) for one in adapted))
    merged = adapted[0].task(0).merged()
    torch.testing.assert_close(merged(batch.query_x[0]), adapted[0](batch.query_x)[0], rtol=1e-10, atol=1e-10)

    class Fixed:
        def batch(self, start: int, count: int) -> Any:
            return images(tasks=count, seed=start)

    assert torch.equal(*(mp.evaluate(one, Fixed(), 4).losses for one in (learner, plain)))


def test_other_devices_and_types_keep_it() -> None:
    learner = dropping("lora", inner=SGD(1, 0.1))
    batch = indexed(images())
    before = learner.hypergradient(batch)
    learner.to(dtype=torch.float32)
    after = learner.hypergradient(batch)
    torch.testing.assert_close(after.value.double(), before.value, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"net": nn.Sequential(nn.Linear(4, 3))}, "dropout=True has no effect: no layer"),
        (
            {"net": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.Linear(4, 3))},
            "dropout=True has no effect",
        ),
        ({"outer": ()}, "outer=\\(\\) trains nothing"),
        ({"dropout": 0.5}, "dropout=0.5: allowed are True and False"),
        ({"dropout": 1}, "dropout=1: allowed are True and False"),
        ({"seed": -1}, "seed=-1: allowed is a whole number from 0"),
    ],
)
def test_refused_at_construction(options: dict[str, Any], sentence: str) -> None:
    options = {"net": DropNet(), "dropout": True, "inner": SGD(1, 0.1), "warm": False, **options}
    with pytest.raises(ValueError, match=sentence):
        learner_of(**options)


def test_settings_say_it() -> None:
    assert dropping(inner=SGD(1, 0.1)).settings()["dropout"] is True
    assert learner_of(inner=SGD(1, 0.1))[0].settings()["dropout"] is None
