"""What objects say of themselves: a line each, and a learner as a table."""

from __future__ import annotations

from typing import Any

import torch

import metapeft as mp


def learner(**options: Any) -> mp.Learner:
    return mp.methods.metapeft(mp.backbones.mlp(4, 3, hidden=(8,)), format=mp.CP(2), hidden=5, **options)


def test_a_learner_in_a_line_and_as_a_table() -> None:
    own = learner()
    said = repr(own)
    trained, there = (sum(v.numel() for v in group.values()) for group in (own.trained, own.variables))
    for word in ("metapeft", "mlp", "CP(rank=2, alpha=None) on 1", "SGD(steps=5, lr=0.1)", "ClassEncoder"):
        assert word in said, word
    assert f"{trained:,} of {there:,} numbers trained" in said
    table = {group.name: group for group in own.summary().groups}
    assert table["weights"].numbers == 4 * 8 + 8
    assert table["factors"].moved_by == "outer loop (their starts), inner solver, generator"
    assert table["generator"].moved_by == "outer loop"
    assert sum(group.numbers for group in table.values() if group.name != "frozen weights") == there
    printed = str(own.summary())
    assert "tensors of" in printed
    assert all(group in printed for group in table)
    assert own.summary()._repr_html_().count("<tr>") == len(table) + 1


def test_what_nobody_moves_is_said() -> None:
    body = mp.backbones.mlp(4, 3, hidden=(8,))
    body.linear1.bias.requires_grad_(False)  # type: ignore[union-attr]
    own = mp.methods.protonet(body)
    assert repr(own).startswith("Learner(protonet: mlp, no update; no inner loop; outer weights")
    moved = {g.name: g.moved_by for g in own.summary().groups}
    assert moved == {"weights": "outer loop", "head": "nobody", "frozen weights": "nobody"}
    still = mp.methods.centroids(torch.nn.Linear(4, 3))
    assert "nothing trained" in repr(still)


def test_the_others() -> None:
    own = learner()
    assert repr(own.model).startswith(
        "AttachedModel(Sequential: CP(rank=2, alpha=None) on 1 parameter(s), 26 numbers"
    )
    trainer = mp.BilevelTrainer(own, lr={"weights": 1e-4, "default": 1e-3}, progress=False)
    assert repr(trainer).startswith("BilevelTrainer(metapeft, Adam, lr={'weights': 0.0001, ")
    assert repr(trainer).endswith("16 tasks a step; not begun)")
    data = mp.load_dataset("glyphs", split="val", per_class=4)
    sampler = mp.EpisodeSampler(data, 5, 1, 3, seed=4, shift=mp.Shift(["invert"]))
    assert repr(sampler) == "EpisodeSampler(glyphs/val: 5-way 1-shot, 3 queries, seed 4, shift invert)"
    curves = mp.EpisodeSampler(mp.load_dataset("sinusoid"), 1, 10, 5)
    assert repr(curves) == "EpisodeSampler(sinusoid/train: 10 points, 5 queries, seed 0)"
    adapted = own.adapt_many(torch.randn(2, 6, 4), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2))
    assert repr(adapted).startswith("Adapted(2 tasks of 3 ways by metapeft, ")
    assert repr(adapted.task(0)).startswith("Adapted(one task of 3 ways by metapeft, ")
    a, b = (mp.evaluate(mp.methods.centroids(mp.backbones.conv4(width=2)), sampler, 4) for _ in range(2))
    assert repr(a).startswith("Evaluation(")
    assert "glyphs/val" in repr(a)
    assert repr(mp.compare(a, b)) == "Comparison(+0.0000 +- 0.0000)"
