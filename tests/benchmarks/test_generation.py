"""The tables of generation: what they compute from result files, and the rows that they are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import metapeft as mp
from benchmarks import generation
from benchmarks.generation_ceiling import Halved
from benchmarks.generation_kinds import OfKind
from benchmarks.generation_rows import FAMILIES, IMAGE_ROWS, rows_of
from benchmarks.generation_tables import Table


def result(row: str, seed: int, values: list[float], family: str = "glyph-pairs") -> dict[str, Any]:
    return {
        "family": family, "row": row, "inner_steps": 0, "budget": 300, "seed": seed, "values": {"own": values},
        "parameters": 7, "protocol": None,
    }  # fmt: skip


def test_the_verdict_wants_every_seed_and_both_controls() -> None:
    low, high = [0.5, 0.6, 0.5, 0.6], [0.8, 0.9, 0.8, 0.95]
    controls = [result(name, seed, low) for name in ("constant", "blind") for seed in (0, 1)]
    ahead = Table("glyph-pairs", 0, [*controls, *(result("class-encoder", seed, high) for seed in (0, 1))])
    assert ahead.helps("class-encoder", 300)
    assert "helps" in ahead.markdown()
    assert ahead.left("class-encoder", "constant", 300) == pytest.approx((1 - 0.8625) / (1 - 0.55))
    once = Table(
        "glyph-pairs", 0, [*controls, result("class-encoder", 0, high), result("class-encoder", 1, low)]
    )
    assert not once.helps("class-encoder", 300)
    assert "does not help" in once.markdown()
    alone = Table(
        "glyph-pairs", 0, [*controls[:2], *(result("class-encoder", seed, high) for seed in (0, 1))]
    )
    assert not alone.helps("class-encoder", 300)  # without the blind one nothing is said


def test_in_regression_less_is_better() -> None:
    rows = [
        result(n, 0, v, "functions") for n, v in (("constant", [4.0, 5.0, 4.5]), ("blind", [4.0, 5.0, 4.6]))
    ]
    table = Table("functions", 0, [*rows, result("pair-encoder", 0, [1.0, 1.2, 1.1], "functions")])
    assert table.helps("pair-encoder", 300)
    assert table.difference("pair-encoder", "constant", 300).startswith("-3.400")
    assert not Table("functions", 0, [*rows, result("pair-encoder", 0, [9.0, 9.1, 9.2], "functions")]).helps(
        "pair-encoder", 300
    )


@pytest.mark.parametrize("family", ["glyph-pairs", "functions", "functions-arml"])
def test_every_row_can_be_made_and_has_a_gradient(family: str) -> None:
    one = FAMILIES[family]
    batch = one.splits(0)["train"].batch(0, 2)
    for name, row in rows_of(family).items():
        learner = generation.make(one, row, 0, row.least, one.rates[0] if row.least else None)
        assert learner.hypergradient(batch).value.isfinite(), name
        assert (learner.generator is None) == (name in ("constant", "lora-ml", "maml", "a-model-a-kind"))


def test_a_row_is_trained_evaluated_and_kept(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "RESULTS", tmp_path)
    monkeypatch.setattr(generation, "FAMILIES", {"functions": FAMILIES["functions"]})
    small = FAMILIES["functions"]
    object.__setattr__(small, "episodes", 6)
    try:
        generation.run("functions", "pair-encoder", budget=2, runs=tmp_path / "runs", compiled=False)
    finally:
        object.__setattr__(small, "episodes", 2000)
    assert {path.name for path in tmp_path.glob("*.json")} == {"functions-pair-encoder-0-2-0.json"}
    with pytest.raises(SystemExit, match="choose functions"):
        generation.run("functions", "maml", budget=2, inner_steps=1, runs=tmp_path / "runs", compiled=False)


def test_the_half_that_counts_is_left_alone() -> None:
    shift = mp.Shift(["plain", "swap"])
    data = mp.load_dataset("glyph-pairs", split="val", per_class=8)
    sampler = mp.EpisodeSampler(data, 3, 2, 2, seed=3, shift=shift)
    batch, halved = sampler.batch(0, 6), Halved(sampler).batch(0, 6)
    assert set(batch.kind.tolist()) == {0, 1}  # type: ignore[union-attr]
    for t, kind in enumerate(batch.kind.tolist()):  # type: ignore[union-attr]
        own = batch.query_x[t, ..., :14] if kind == 0 else batch.query_x[t, ..., 14:]
        assert torch.equal(halved.query_x[t, ..., :14], own)
        assert not halved.query_x[t, ..., 14:].any()
        # what counts is the class's own glyph: on the left in the data set
        stored = data.gather(batch.query_index[t])[..., :14]
        assert torch.equal(own, stored)


def test_all_rows_of_images_have_one_format_but_those_that_say_so() -> None:
    formats = {name: row.format for name, row in IMAGE_ROWS.items()}
    assert len({str(formats[name]) for name in ("constant", "blind", "mapping-net", "class-encoder")}) == 1


def test_one_model_a_kind_sees_tasks_of_that_kind_alone() -> None:
    sampler = FAMILIES["functions"].splits(0)["train"]
    only = OfKind(sampler, 2, 50)
    batch = only.batch(10, 20)
    assert batch.kind.tolist() == [2] * 20
    assert only.numbers.tolist() == sorted(only.numbers.tolist())
