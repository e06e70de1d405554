"""Generators that are shown another task's support set, or nothing of it."""

from __future__ import annotations

import pytest
import torch

import metapeft as mp
from metapeft.generators import Blind, ClassEncoder, MappingNet, OtherTask, PairEncoder, Support
from tests.generators.test_generators import SEEDS, parameters, support
from tests.learner.helpers import images, learner_of, stir


def test_the_other_task_is_the_one_before() -> None:
    for net, kind in ((MappingNet(hidden=6), ""), (ClassEncoder(hidden=6), "classes")):
        shown, p = support(kind, tasks=3), parameters(net)
        own, other = net(p, SEEDS, shown), OtherTask(net)(p, SEEDS, shown)
        torch.testing.assert_close(other["a.seed"], own["a.seed"][[2, 0, 1]])
        with pytest.raises(ValueError, match="no other"):
            OtherTask(net)(p, SEEDS, Support(shown.features[:1]))


@pytest.mark.parametrize("kind", ["", "classes", "targets"])
def test_the_blind_one_writes_the_same_for_every_task(kind: str) -> None:
    nets = {
        "": MappingNet(hidden=6),
        "classes": ClassEncoder(hidden=6),
        "targets": PairEncoder(hidden=6, size=5, outputs=2),
    }
    net = nets[kind]
    blind, p = Blind(net), parameters(net)
    one = blind(p, SEEDS, support(kind))
    assert torch.equal(one["a.seed"][0], one["a.seed"][1])
    assert one["a.seed"].any()
    assert torch.equal(one["a.seed"], blind(p, SEEDS, support(kind, shots=1, seed=5))["a.seed"])
    assert {n: v.shape for n, v in blind.start(SEEDS, 5, torch.Generator()).items()} == {
        n: v.shape for n, v in p.items()
    }


def test_the_blind_one_per_input() -> None:
    net = Blind(MappingNet(hidden=6, per="input"))
    found = net(parameters(net), SEEDS, Support(torch.randn(2, 4, 5, dtype=torch.float64)))["a.seed"]
    assert found.shape == (2, 4, 3)
    torch.testing.assert_close(found[0, 0].expand(2, 4, 3), found, rtol=1e-12, atol=0)


def test_a_support_set_that_is_shown_in_place_of_the_own() -> None:
    """The generator reads the other's features, labels and mask; adaptation and head read the own."""
    net = ClassEncoder(hidden=4)
    options = {"inner": mp.inner.SGD(1, 0.1), "head": "prototype-init", "outer": ("generator",)}
    learner, _ = learner_of("cp", generator=net, **options)
    batch, other = images(seed=0), images(seed=7, shots=3)
    assert other.support_x.shape != batch.support_x.shape
    objectives = learner.objectives(batch, False, other)
    _, derived = learner.solve(objectives)
    _, expected = learner.solve(learner.objectives(other, False))
    _, own = learner.solve(learner.objectives(batch, False))
    for name in learner.seeds:
        torch.testing.assert_close(derived[f"seed.{name}"], expected[f"seed.{name}"])
        assert not torch.allclose(derived[f"seed.{name}"], own[f"seed.{name}"])
    torch.testing.assert_close(derived["head.weight"].shape, own["head.weight"].shape)
    with pytest.raises(ValueError, match="one for each"):
        learner.objectives(batch, False, images(tasks=3))
    plain, _ = learner_of(
        "cp", generator=None, inner=options["inner"], head="prototype-init", outer=("factors",)
    )
    with pytest.raises(ValueError, match="no effect"):
        plain.objectives(batch, False, other)


def test_an_evaluation_that_shows_another_task() -> None:
    """By the sampler's partners, whatever else is in the batch; the protocol says it."""
    data = mp.load_dataset("glyph-pairs", split="val", size=16, per_class=8)
    sampler = mp.EpisodeSampler(data, 3, 2, 2, seed=3, shift=mp.Shift(["plain", "swap"]))
    body = mp.backbones.conv4(ways=3, width=4, size=16)
    learner = mp.methods.metalora_cp(
        body, rank=2, generator=ClassEncoder(hidden=4), preprocess=data.preprocess
    )
    stir(learner)
    found = {}
    for shown in ("another kind", "same kind"):
        by_two, by_five = (
            mp.evaluate(learner, sampler, 10, tasks_per_batch=count, shown=shown) for count in (2, 5)
        )
        torch.testing.assert_close(by_two.losses, by_five.losses, rtol=1e-4, atol=1e-6)
        assert by_two.protocol is not None
        assert by_two.protocol.shown == shown
        found[shown] = by_five
    assert "a task of another kind" in str(found["another kind"].protocol)
    own = mp.evaluate(learner, sampler, 10)
    assert not torch.allclose(own.losses, found["same kind"].losses)
    assert "shown" not in own.protocol.as_dict()  # type: ignore[union-attr]
    mp.compare(own, found["another kind"])
    again = mp.Protocol.from_dict(found["same kind"].protocol.as_dict())  # type: ignore[union-attr]
    assert again == found["same kind"].protocol
    numbers = sampler.partners(range(4), same_kind=False)
    by_hand = learner.objectives(sampler.batch(0, 4), False, sampler.at(numbers))
    loss, _ = by_hand.scored(*learner.solve(by_hand))
    torch.testing.assert_close(found["another kind"].losses[:4], loss, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="'another kind' and 'same kind'"):
        mp.evaluate(learner, sampler, 4, shown="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="knows no kinds"):
        mp.evaluate(learner, mp.EpisodeSampler(data, 3, 2, 2), 4, shown="another kind")
