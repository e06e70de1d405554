"""MetaLoRA's evaluation: equal budgets, features under seeds per input, the cut networks, the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import metapeft as mp
from benchmarks import knn, knn_tables
from benchmarks.knn_backbones import CifarResNet, Cut, Maps, Tail, in_two
from benchmarks.knn_rows import RANK, ROWS, SLACK, Gates, budget, fitted, numbers, ring, total
from metapeft.generators.support import Support
from metapeft.updates.formats.format import Geometry

WITH_UPDATES = [name for name, row in ROWS.items() if row.rung is not None]
#: parameters of the published files, by their page
PARAMETERS = {20: 0.27e6, 56: 0.85e6}


@pytest.fixture(scope="module")
def cut() -> Cut:
    torch.manual_seed(0)
    net = CifarResNet(20)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
    return in_two(net)


@pytest.fixture(scope="module")
def maps(cut: Cut) -> Maps:
    x = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Maps("noise", "test", cut.before(x), torch.arange(24) % 3, ["a", "b", "c"])


def moved(learner: Any) -> Any:
    """The learner with all of its trained numbers away from their start."""
    generator = torch.Generator().manual_seed(2)
    for value in learner.trained.values():
        with torch.no_grad():
            value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value))
    return learner


@pytest.mark.parametrize("depth", PARAMETERS)
def test_the_networks_are_those_of_the_files(depth: int) -> None:
    net = CifarResNet(depth)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(PARAMETERS[depth], rel=0.01)
    names = set(net.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer3.0.conv1.weight", "linear.weight"} <= names


def test_both_parts_of_a_cut_are_the_whole() -> None:
    net = CifarResNet(14)
    halves, x = in_two(net), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(halves.after(halves.before(x)), net(x))
    whole: Any = mp.backbones.mixer(ways=3, size=8, width=8, depth=3)
    tail = Tail(whole.blocks[1:], whole.norm, whole.classifier)
    small = torch.randn(2, 3, 8, 8)
    tokens = whole.blocks[:1](whole.patches(small).flatten(2).transpose(1, 2))
    torch.testing.assert_close(tail(tokens), whole(small))


@pytest.mark.parametrize("depth", [20, 56])
def test_all_rows_have_the_same_budget(depth: int) -> None:
    stage = CifarResNet(depth).layer3
    layers = {name: Geometry(tuple(p.shape)) for name, p in stage.named_parameters() if p.dim() > 1}
    limit = budget(layers)
    for name in WITH_UPDATES:
        formats = fitted(ROWS[name], layers, 64)
        own = total(ROWS[name], formats, layers, 64)
        assert (1 - SLACK) * limit <= own <= limit
        for layer in layers:  # none can have one rung more
            rung = next(n for n in range(200) if str(ROWS[name].rung(n)) == str(formats[layer]))  # type: ignore[misc]
            larger = {**formats, layer: ROWS[name].rung(rung + 1)}  # type: ignore[misc]
            assert total(ROWS[name], larger, layers, 64) > limit
    assert {str(one) for one in fitted(ROWS["lora"], layers, 64).values()} == {str(mp.LoRA(RANK))}


def test_what_cannot_come_near_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2% below the budget"):
        fitted(ROWS["tr"], {"a": Geometry((64, 64, 3, 3)), "b": Geometry((64, 32, 3, 3))}, 64)
    with pytest.raises(ValueError, match="even at its smallest"):
        fitted(ROWS["cp"], {"a": Geometry((4, 4))}, 4000)


def test_rings_grow_and_ranks_of_rings_and_cp_match() -> None:
    sizes = [numbers(ring(n), Geometry((12, 10, 3, 3))) for n in range(12)]
    assert sizes == sorted(set(sizes))


def test_the_trained_numbers_are_the_budget_and_the_scale_of_the_head(cut: Cut) -> None:
    layers = {name: Geometry(tuple(p.shape)) for name, p in cut.after.named_parameters() if p.dim() == 4}
    for name in WITH_UPDATES:
        own = sum(value.numel() for value in knn.make(cut, name, 0).trained.values())
        formats = fitted(ROWS[name], layers, 64)
        assert own == total(ROWS[name], formats, layers, 64) + 1


def test_gates_of_one_are_one_lora_and_a_branch_shares_its_gate() -> None:
    gates, seeds = Gates(4, per="input", branches=3), {"a.seed": (6,)}
    parameters = gates.start(seeds, 5, torch.Generator().manual_seed(0))
    shown = Support(torch.randn(1, 7, 5))
    assert not gates(parameters, seeds, shown)[
        "a.seed"
    ].any()  # what is added to a seed of ones: LoRA of rank M r
    moved_on = {name: value + 0.1 * torch.randn(value.shape) for name, value in parameters.items()}
    found = gates(moved_on, seeds, shown)["a.seed"]
    assert found.shape == (1, 7, 6)
    assert torch.equal(found[..., ::2], found[..., 1::2])
    assert found.std(1).min() > 0


@pytest.mark.parametrize("row", ["lora", "multi-lora", "cp", "tr"])
def test_features_are_those_of_the_learner(cut: Cut, maps: Maps, row: str) -> None:
    learner = moved(knn.make(cut, row, 0))
    sampler = mp.EpisodeSampler(maps, 3, 4, 2, seed=0)
    features = knn.adapted_features(learner, maps.maps)
    batch = sampler.batch(0, 3)
    objectives = learner.objectives(batch, training=False)
    with torch.no_grad():
        logits = objectives.predict({}, {})
    head = mp.heads.Prototypes(scale=10.0, normalize="l2")
    scale = {"log_scale": learner.variables["head.log_scale"]}
    tensors = head.start(features[batch.support_index], batch.support_y, 3, None, scale)
    torch.testing.assert_close(
        head.logits(features[batch.query_index], tensors), logits, rtol=1e-4, atol=1e-4
    )


def test_a_shuffled_seed_is_another_images(cut: Cut, maps: Maps) -> None:
    for row in ("cp", "tr"):
        learner = knn.make(cut, row, 0)
        own, shuffled = (knn.adapted_features(learner, maps.maps, s) for s in (False, True))
        torch.testing.assert_close(own, shuffled)  # at the start there is no update
        moved(learner)
        own, shuffled = (knn.adapted_features(learner, maps.maps, s) for s in (False, True))
        assert not torch.allclose(own, shuffled, rtol=1e-3)


def test_what_a_generator_reads_is_the_network_as_it_was(cut: Cut, maps: Maps) -> None:
    learner = moved(knn.make(cut, "cp", 0))
    off = knn.factors_off({n: learner.variables[f"factors.{n}"] for n in learner.model.factors()})
    body = torch.nn.Sequential(*list(cut.after.children())[:-1])
    with torch.no_grad():
        torch.testing.assert_close(
            learner.model.features(maps.maps.unsqueeze(0), off)[0], body(maps.maps), rtol=1e-4, atol=1e-4
        )


def result(row: str, seed: int, values: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "backbone": "resnet20", "data": "omniglot", "row": row, "seed": seed, "values": values, "parameters": 7,
        "about": row, "rate": 0.1, "steps": 3, "train": [16, 3, 3], "seconds": 1.0,
        "environment": {"commit": "abc", "cpu": "c"},
        "protocol": None,
    }  # fmt: skip


def test_the_verdict_wants_both_controls_and_intervals_off_zero() -> None:
    def files(gain: float, shuffled: float) -> list[dict[str, Any]]:
        found = []
        for seed in range(5):
            low = 0.5 + 0.01 * seed
            own = {"5": [low + gain] * 2, "10": [low + gain] * 2}
            found.append(
                result(
                    "cp",
                    seed,
                    {**own, "5 shuffled": [low + shuffled] * 2, "10 shuffled": [low + shuffled] * 2},
                )
            )
            found.append(result("cp-constant", seed, {"5": [low] * 2, "10": [low + 0.001 * seed] * 2}))
        return found

    ahead = knn_tables.Table(files(0.1, 0.0))
    assert ahead.helps("cp", 5)
    assert "`cp` at k = 5" in ahead.verdict()
    assert "No verdict" in knn_tables.Table(files(0.1, 0.0)[:8]).verdict()  # of four seeds
    assert "nowhere" in knn_tables.Table(files(0.0, -0.1)).verdict()
    assert not knn_tables.Table(files(0.1, 0.1)).helps("cp", 5)  # the seed of another image does as well
    assert not knn_tables.Table(files(0.0, -0.1)).helps("cp", 5)
    assert not knn_tables.Table(files(0.001, -0.1)).helps("cp", 10)  # within the spread of seeds
