"""Seeds per input: every input has an update of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.base.trees import mapped
from tests.updates.helpers import assert_close, call, randn, random_factors, randomised, task
from tests.updates.networks import Attention, Tied

TASKS, ITEMS = 3, 4
SEEDED = {"cp": mp.CP(2, alpha=3.0), "ring": mp.TensorRing(2), "uneven ring": mp.TensorRing((1, 2, 2))}


def seeds_per_input(
    model: Any, factors: dict[str, Tensor], items: int = ITEMS, seed: int = 5
) -> dict[str, Tensor]:
    """The factors with every seed replaced by one for each input."""
    return {
        name: randn(value.shape[0], items, *value.shape[1:], seed=seed) if name.endswith(".seed") else value
        for name, value in factors.items()
    }


def one_input(factors: dict[str, Tensor], t: int, b: int) -> dict[str, Tensor]:
    """What one input's update is, as factors of one task."""
    return {
        name: value[t, b] if name.endswith(".seed") else value[min(t, len(value) - 1)]
        for name, value in factors.items()
    }


def assert_equals_one_by_one(model: Any, x: Any) -> None:
    factors = seeds_per_input(model, random_factors(model, TASKS))
    together = model(x, factors)
    for t in range(TASKS):
        for b in range(ITEMS):
            plain = model.merged(one_input(factors, t, b))
            assert_close(together[t, b], call(plain, mapped(x, lambda v: v[t, b : b + 1]))[0])  # noqa: B023


LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(4, 5), (4,)),
    (nn.Linear(4, 5), (2, 3, 4)),
    (nn.Conv1d(4, 6, 3, padding=1, groups=2), (4, 7)),
    (nn.Conv2d(4, 6, 3, padding=1, stride=2), (4, 6, 6)),
    (nn.Conv2d(32, 6, 3, padding=1, groups=2), (32, 5, 5)),
    (nn.Conv3d(2, 4, 2), (2, 3, 3, 3)),
]


@pytest.mark.parametrize("format", SEEDED)
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_layers(layer: nn.Module, shape: tuple[int, ...], format: str) -> None:
    assert_equals_one_by_one(mp.attach(randomised(layer), SEEDED[format]), randn(TASKS, ITEMS, *shape))


@pytest.mark.parametrize("format", SEEDED)
@pytest.mark.parametrize("module", [nn.Embedding(7, 4, padding_idx=1), Tied(True), Tied(False)])
def test_embeddings(module: nn.Module, format: str) -> None:
    x = torch.randint(7, (TASKS, ITEMS, 5), generator=torch.Generator().manual_seed(0))
    assert_equals_one_by_one(mp.attach(randomised(module), SEEDED[format]), x)


@pytest.mark.parametrize("format", SEEDED)
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention(batch_first: bool, format: str) -> None:
    x = (randn(TASKS, ITEMS, 3, 4), randn(TASKS, ITEMS, 3, 3, seed=1), randn(TASKS, ITEMS, 3, 5, seed=2))
    assert_equals_one_by_one(mp.attach(randomised(Attention(batch_first, cross=True)), SEEDED[format]), x)


def test_seeds_of_one_layer_only() -> None:
    net = randomised(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))
    model, x = mp.attach(net, mp.CP(2)), randn(TASKS, ITEMS, 4)
    factors = random_factors(model, TASKS)
    repeated = factors["0.weight.seed"].unsqueeze(1).expand(TASKS, ITEMS, 2)
    assert_close(model(x, {**factors, "0.weight.seed": repeated}), model(x, factors), 1e-13)


def test_a_leading_one_broadcasts() -> None:
    model, x = mp.attach(randomised(nn.Conv2d(4, 6, 3)), mp.CP(2)), randn(TASKS, ITEMS, 4, 5, 5)
    factors = random_factors(model, TASKS)
    shared = {**factors, "weight.A": factors["weight.A"][:1]}
    spelled = {**factors, "weight.A": factors["weight.A"][:1].expand(TASKS, -1, -1, -1, -1)}
    assert torch.equal(model(x, shared), model(x, spelled))
    per_input = randn(1, ITEMS, 2, seed=3)
    one, all_tasks = ({**factors, "weight.seed": s} for s in (per_input, per_input.expand(TASKS, -1, -1)))
    assert_close(model(x, one), model(x, all_tasks), 1e-13)


def network() -> nn.Module:
    return randomised(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("format", SEEDED)
def test_support_brings_seeds_of_its_own(format: str, masked: bool) -> None:
    """Statistics of `norm="support"` are those of the support set under its own seeds."""
    net = network()
    model = mp.attach(net, SEEDED[format], norm="support")
    support, queries = randn(TASKS, 5, 2, 3, 3), randn(TASKS, ITEMS, 2, 3, 3, seed=1)
    base = random_factors(model, TASKS)
    of_queries, of_support = seeds_per_input(model, base), seeds_per_input(model, base, 5, seed=9)
    mask = torch.ones(TASKS, 5, dtype=torch.bool)
    if masked:
        mask[:, 3:] = False
    together = model(queries, of_queries, (support, of_support, mask) if masked else (support, of_support))

    statistics: dict = {}
    transductive = mp.attach(net, SEEDED[format], norm="transductive")
    transductive(support, of_support, mask=mask, statistics=statistics)
    for t in range(TASKS):
        for b in range(ITEMS):
            plain = mp.attach(net, SEEDED[format]).merged(one_input(of_queries, t, b))
            plain[1].running_mean, plain[1].running_var = (value[t].detach() for value in statistics["1"][:2])
            assert_close(together[t, b], call(plain, queries[t, b : b + 1])[0])


def test_a_seed_per_task_beside_one_per_input() -> None:
    model = mp.attach(network(), mp.CP(2), norm="support")
    support, queries = randn(TASKS, 5, 2, 3, 3), randn(TASKS, ITEMS, 2, 3, 3, seed=1)
    base = random_factors(model, TASKS)
    spelled = {
        name: value.unsqueeze(1).expand(TASKS, 5, 2) if name.endswith(".seed") else value
        for name, value in base.items()
    }
    per_input = seeds_per_input(model, base)
    assert_close(
        model(queries, per_input, (support, base)), model(queries, per_input, (support, spelled)), 1e-13
    )


def test_refusals() -> None:
    model = mp.attach(network(), mp.CP(2), norm="support")
    support, queries = randn(TASKS, 5, 2, 3, 3), randn(TASKS, ITEMS, 2, 3, 3, seed=1)
    base = random_factors(model, TASKS)
    per_input = seeds_per_input(model, base)
    with pytest.raises(ValueError, match="the support set brings its own"):
        model(queries, per_input, support)
    with pytest.raises(ValueError, match="differs between"):
        model(queries, base, (support, {**base, "0.weight.A": base["0.weight.A"] + 1}))
    with pytest.raises(ValueError, match="or \\(1 or 3, 5, 2\\) per input"):
        model(support, per_input, support)  # seeds for another number of inputs
    with pytest.raises(ValueError, match="a seed per input is no update of one task"):
        model.merged(task(per_input, 0), support[0])
    with pytest.raises(ValueError, match="without the task axis"):
        model.merged(base, support[0])
