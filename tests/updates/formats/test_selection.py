"""Selection variables: relaxing, rounding by every rule, retraining at the chosen ranks."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import (
    SELECTIONS,
    assert_close,
    assert_equals_merged,
    randn,
    random_factors,
    randomised,
)

#: formats that have terms, three each
TERMS = [mp.LoRA(3), mp.CP(3), mp.TensorRing((2, 3, 2))]
LOGITS = {
    "a": torch.tensor([3.0, 1.0, 0.0, -2.0]),
    "b": torch.tensor([0.0, 0.0, 0.0]),
    "c": torch.tensor([5.0, -5.0]),
    "d": torch.tensor([1.0]),
}
logits = st.dictionaries(
    st.text("abcd.", min_size=1, max_size=3),
    st.lists(st.floats(-5, 5), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
).map(lambda found: {name: torch.tensor(values) for name, values in found.items()})


def network() -> nn.Module:
    return randomised(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)))


@pytest.mark.parametrize("format", TERMS, ids=str)
@pytest.mark.parametrize("name", SELECTIONS)
def test_relaxed_update_is_the_weighted_sum_of_its_terms(name: str, format: Any) -> None:
    model, selection = mp.attach(network(), format), SELECTIONS[name]
    factors = random_factors(model, 2)
    found = {site: randn(3, seed=number) for number, site in enumerate(model.sites)}
    selected = selection(model.sites, factors, found)
    for parameter, site in model.sites.items():
        keys = site.format.shapes(site.geometry)
        whole, weighed = ({key: f[f"{parameter}.{key}"] for key in keys} for f in (factors, selected))
        alpha = found[parameter].softmax(0)
        assert_close(alpha.sum(), torch.ones((), dtype=torch.float64), 1e-14)
        terms = [
            site.format.delta(site.format.select(whole, row)) for row in torch.eye(3, dtype=torch.float64)
        ]
        assert_close(site.format.delta(weighed), sum(a * t for a, t in zip(alpha, terms)), 1e-13)


def test_gradient_reaches_the_logits() -> None:
    model, selection, x = mp.attach(network(), mp.CP(2)), mp.Softmax(), randn(2, 3, 2, 4, 4)
    factors = random_factors(model, 2)
    found = {name: value.double().requires_grad_() for name, value in selection.start(model.sites).items()}
    loss = model(x, selection(model.sites, factors, found)).square().sum()
    for gradient in torch.autograd.grad(loss, list(found.values())):
        assert gradient.any()
        assert abs(float(gradient.sum())) < 1e-12 * float(
            gradient.abs().sum()
        )  # a softmax ignores a common shift


def test_start_leaves_out_what_has_no_terms() -> None:
    model = mp.attach(network(), {"0.weight": mp.LoRA(2), "3.weight": mp.LoRA(0), "3.bias": mp.Full()})
    assert {name: value.tolist() for name, value in mp.Softmax().start(model.sites).items()} == {
        "0.weight": [0, 0]
    }
    with pytest.raises(ValueError, match=r"disagree on 3.weight"):
        mp.Softmax()(model.sites, model.factors(), {"0.weight": torch.zeros(2), "3.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"not \(2,\)"):
        mp.Softmax()(model.sites, model.factors(), {"0.weight": torch.zeros(3)})


def test_threshold_by_hand() -> None:
    assert mp.ranks(LOGITS) == {"a": 1, "b": 3, "c": 1, "d": 1}
    assert mp.ranks({f"selection.{name}": value for name, value in LOGITS.items()}) == mp.ranks(LOGITS)


@pytest.mark.parametrize("terms", range(1, 60))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_weights_keep_all_terms(terms: int, dtype: torch.dtype) -> None:
    """On an exact tie the rule gives k, whatever 1/k rounds to."""
    for value in (0.0, 0.3, -7.1):
        assert mp.ranks({"a": torch.full((terms,), value, dtype=dtype)}) == {"a": terms}


@settings(max_examples=100, deadline=None)
@given(found=logits, share=st.floats(0, 1))
def test_total_is_met_exactly_by_the_largest_weights(found: dict[str, Tensor], share: float) -> None:
    most = sum(len(value) for value in found.values())
    total = round(share * most)
    chosen = mp.ranks(found, "total", total=total)
    assert sum(chosen.values()) == total
    relative = {
        name: sorted((v.double().softmax(0) * len(v)).tolist(), reverse=True) for name, v in found.items()
    }
    taken = [w for name, own in relative.items() for w in own[: chosen[name]]]
    left = [w for name, own in relative.items() for w in own[chosen[name] :]]
    assert not taken or not left or min(taken) >= max(left) - 1e-9
    assert mp.ranks(found, "total", total=total) == chosen


@settings(max_examples=100, deadline=None)
@given(found=logits, budget=st.integers(0, 200), source=st.randoms(use_true_random=False))
def test_parameter_budget(found: dict[str, Tensor], budget: int, source: object) -> None:
    costs = {name: source.randint(1, 30) for name in found}
    chosen = mp.ranks(found, "parameters", total=budget, costs=costs)
    left = budget - sum(costs[name] * rank for name, rank in chosen.items())
    still_open = [costs[name] for name, rank in chosen.items() if rank < len(found[name])]
    assert left >= 0
    assert not still_open or left < min(still_open)


def test_ties_spread_over_layers() -> None:
    tied = {name: torch.zeros(4) for name in "abc"}
    assert mp.ranks(tied, "total", total=7) == {"a": 3, "b": 2, "c": 2}
    assert mp.ranks(tied, "parameters", total=7, costs=dict.fromkeys("abc", 1)) == {"a": 3, "b": 2, "c": 2}


@settings(max_examples=50, deadline=None)
@given(found=logits, share=st.floats(0, 1))
def test_uniform_is_even(found: dict[str, Tensor], share: float) -> None:
    total = round(share * sum(len(value) for value in found.values()))
    chosen = mp.ranks(found, "uniform", total=total)
    assert sum(chosen.values()) == total
    room = [rank for name, rank in chosen.items() if rank < len(found[name])]
    assert not room or max(chosen.values()) - min(room) <= 1


@settings(max_examples=50, deadline=None)
@given(found=logits, seed=st.integers(0, 100))
def test_controls_keep_the_budget(found: dict[str, Tensor], seed: int) -> None:
    chosen = mp.ranks(found)
    for rule in ("shuffled", "random"):
        control = mp.ranks(found, rule, seed=seed)
        assert sum(control.values()) == sum(chosen.values())
        assert all(control[name] <= len(value) for name, value in found.items())
        assert control == mp.ranks(found, rule, seed=seed)
    assert sorted(mp.ranks(found, "shuffled", seed=seed).values()) == sorted(chosen.values())
    if sum(map(len, found.values())) >= 2:
        assert sum(mp.ranks(found, "random", total=2, seed=seed).values()) == 2


def test_shuffling_gives_every_assignment_as_often() -> None:
    found = {"a": torch.tensor([9.0, 0.0]), "b": torch.zeros(3), "c": torch.tensor([9.0, 9.0, 0.0, 0.0])}
    draws = Counter(tuple(mp.ranks(found, "shuffled", seed=seed).values()) for seed in range(600))
    allowed = {p for p in itertools.permutations(mp.ranks(found).values()) if p[0] <= 2}
    assert set(draws) == allowed
    assert min(draws.values()) > 600 / len(allowed) * 0.7  # 4 standard deviations


def test_svd_finds_planted_ranks() -> None:
    """Above the edge of the noise lies what was planted, however the terms are turned."""
    noise, planted = 0.01, {"a": 0, "b": 1, "c": 3, "d": 5}
    updates = {}
    for number, (name, rank) in enumerate(planted.items()):
        left, right = randn(40, rank, seed=number), randn(rank, 30, seed=number + 10)
        updates[name] = left @ right / 30 + noise * randn(40, 30, seed=number + 20)
    found = {name: randn(8) for name in planted}
    assert mp.ranks(found, "svd", updates=updates, noise=1.1 * noise) == planted
    kernels = {name: value.view(40, 10, 3) for name, value in updates.items()}
    assert mp.ranks(found, "svd", updates=kernels, noise=1.1 * noise) == planted
    exact = {name: randn(9, 2, seed=3) @ randn(2, 7, seed=4) for name in planted}
    assert set(mp.ranks(found, "svd", updates=exact, noise=0.0).values()) == {2}


def test_retraining_at_the_chosen_ranks() -> None:
    net = network()
    for format in (mp.LoRA(3, alpha=6.0), mp.CP(3), mp.TensorRing((2, 3, 2))):
        model = mp.attach(net, format)
        chosen = {"0.weight": 0, "3.weight": 2}
        formats = mp.at_ranks(model, chosen)
        assert {name: found.terms for name, found in formats.items()} == chosen
        again = mp.attach(net, formats)
        assert list(again.sites) == list(model.sites)
        assert_equals_merged(again, randn(8, 2, 2, 4, 4))
        assert mp.at_ranks(again, {"3.weight": 1})["0.weight"].terms == 0  # rank 0 survives
    assert mp.at_ranks(mp.attach(net, mp.LoRA(3, alpha=6.0)), chosen)["3.weight"] == mp.LoRA(2, alpha=6.0)
    with pytest.raises(ValueError, match=r"disagree on 3.weight"):
        mp.at_ranks(model, {"0.weight": 1})


def test_costs_are_the_parameters_of_a_term() -> None:
    net = network()
    for format in (mp.LoRA(3), mp.CP(3), mp.TensorRing((2, 3, 2))):
        model = mp.attach(net, format)
        for name, cost in mp.costs(model).items():
            sizes = []
            for rank in (1, 3):
                other = mp.attach(net, mp.at_ranks(model, {**dict.fromkeys(model.sites, 2), name: rank}))
                sizes.append(sum(value.numel() for value in other.factors().values()))
            assert 2 * cost == sizes[1] - sizes[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rule": "treshold"}, "rule='treshold'"),
        ({"rule": "total"}, "needs total="),
        ({"rule": "threshold", "total": 3}, "takes no total="),
        ({"rule": "uniform", "total": 3, "seed": 0}, "takes no seed="),
        ({"rule": "total", "total": 11}, "from 0 to 10"),
        ({"rule": "total", "total": -1}, "total=-1"),
        ({"rule": "uniform", "total": 1.5}, "total=1.5"),
        ({"rule": "parameters", "total": 5}, "needs costs="),
        ({"rule": "parameters", "total": 5, "costs": {"a": 1}}, "disagree on b, c, d"),
        ({"rule": "parameters", "total": 5, "costs": dict.fromkeys("abcd", 0)}, "at least one parameter"),
        ({"rule": "svd", "updates": {}, "noise": 1.0}, "misses a, b"),
        ({"rule": "svd", "updates": {}, "noise": -1.0}, "noise=-1.0"),
    ],
)
def test_bad_options(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mp.ranks(LOGITS, **options)


@pytest.mark.parametrize("bad", [torch.zeros(2, 2), torch.tensor([float("nan"), 0.0]), [0.0, 1.0]])
def test_bad_logits(bad: object) -> None:
    with pytest.raises(ValueError, match=r"selection\['a'\]"):
        mp.ranks({"a": bad})
    with pytest.raises(ValueError, match="selection=list"):
        mp.ranks([0.0])


def test_a_learner_gives_its_logits() -> None:
    learner = mp.methods.metapeft(mp.backbones.conv4(ways=3, channels=1, width=4))
    for name in learner.selected:
        learner.variables[f"selection.{name}"][0] += 5.0
    ranks = mp.ranks(learner)
    assert set(ranks) == set(learner.selected)
    assert set(ranks.values()) == {1}
    with pytest.raises(ValueError, match="no selection variables"):
        mp.ranks(mp.methods.lora_ml(mp.backbones.conv4(ways=3, channels=1, width=4)))
