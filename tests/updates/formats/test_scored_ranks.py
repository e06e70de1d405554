"""Ranks from scores: budgets met, costs kept to, and settings that PEFT reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import metapeft as mp

SCORES = mp.Scores({"a": torch.tensor([5.0, 1.0]), "b": torch.tensor([4.0, 3.0, 2.0])}, {"a": 10, "b": 3})


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(0, 20),
)
@settings(max_examples=40, deadline=None)
def test_budgets(values: list[list[float]], total: int) -> None:
    scores = mp.Scores(
        {f"p{i}": torch.tensor(own) for i, own in enumerate(values)},
        {f"p{i}": i + 2 for i in range(len(values))},
    )
    most = sum(map(len, values))
    found = mp.ranks(scores, "total", total=min(total, most))
    assert sum(found.values()) == min(total, most)
    kept = scores.kept(found)
    chosen = [float(scores.values[n][t]) for n, own in kept.items() for t in own]
    left = [float(v) for n, own in scores.values.items() for t, v in enumerate(own) if t not in kept[n]]
    slack = 1e-9 * max(map(abs, [*chosen, *left, 1.0]))
    assert not chosen or not left or min(chosen) >= max(left) - slack
    found = mp.ranks(scores, "parameters", total=total)
    spent = sum(rank * scores.costs[name] for name, rank in found.items())
    missing = [scores.costs[name] for name, own in scores.values.items() if found[name] < len(own)]
    assert spent <= total
    assert not missing or total - spent < min(missing)


def test_rules_and_controls_take_scores() -> None:
    assert mp.ranks(SCORES, "total", total=3) == {"a": 1, "b": 2}
    assert mp.ranks(SCORES, "parameters", total=9) == {"a": 0, "b": 3}
    assert mp.ranks(SCORES, "uniform", total=4) == {"a": 2, "b": 2}
    assert sum(mp.ranks(SCORES, "random", total=3, seed=1).values()) == 3
    assert sorted(mp.ranks(SCORES, "shuffled", total=3, seed=1).values()) == [1, 2]


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        ("threshold", {}, "rule='threshold' is about selection variables"),
        ("shuffled", {}, "needs total= where it is given scores"),
        ("total", {}, "needs total="),
        ("total", {"total": 6}, "from 0 to 5"),
    ],
)
def test_what_scores_cannot_say(rule: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mp.ranks(SCORES, rule, **options)
    with pytest.raises(ValueError, match="a score is not finite"):
        mp.ranks(mp.Scores({"a": torch.tensor([float("nan")])}, {"a": 1}), "total", total=1)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(6, 6)
        self.more = nn.ModuleDict({"value": nn.Linear(6, 6), "key": nn.Linear(6, 6)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.more["key"](self.more["value"](self.value(x)))


@pytest.mark.parametrize("alpha", [None, 16.0])
def test_peft_reads_the_settings(alpha: float | None) -> None:
    peft = pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")
    ranks = {"value.weight": 3, "more.value.weight": 1, "more.key.weight": 0}
    made = peft.get_peft_model(Blocks(), mp.lora_config(ranks, alpha=alpha, lora_dropout=0.1))
    found = {
        name.removeprefix("base_model.model."): (layer.r["default"], layer.scaling["default"])
        for name, layer in made.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    scales = (1.0, 1.0) if alpha is None else (16 / 3, 16.0)
    assert found == {"value": (3, pytest.approx(scales[0])), "more.value": (1, scales[1])}
    for bad, said in (({"value.weight": -1}, "allowed is a whole"), ({"a.weight": 0}, "all ranks are 0")):
        with pytest.raises(ValueError, match=said):
            mp.lora_config(bad)
    with pytest.raises(ValueError, match="weights of layers"):
        mp.lora_config({"attention.in_proj_weight": 2})
