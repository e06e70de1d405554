"""Planted ranks: teachers are what they say, rules keep their budgets, tables count right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import planted_ranks, rank_tables
from benchmarks.planted_ranks import TEACHERS, Teacher


@pytest.mark.parametrize("teacher", [TEACHERS[0], TEACHERS[7], TEACHERS[13]], ids=lambda one: one.spectrum)
def test_a_teacher_has_the_ranks_that_it_says(teacher: Teacher) -> None:
    student, planted = (net.requires_grad_(False) for net in (teacher.student(), teacher.planted()))
    for name, rank in teacher.ranks().items():
        values = torch.linalg.svdvals(planted.get_parameter(name) - student.get_parameter(name))
        assert int((values > 1e-4).sum()) == rank
        assert rank == 0 or 0.15 < float(values[rank - 1]) <= float(values[0]) < 1.01
    (x, noisy), (_, plain) = (teacher.rows(500, noise, 0) for noise in (0.1, 0.0))
    assert float((noisy - plain).std()) == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(x, teacher.rows(500, 0.1, 1)[0])


@pytest.mark.slow
def test_a_run_goes_on_and_its_tables_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_ranks, "TEACHERS", (Teacher(2, 8, "flat", 4), Teacher(3, 8, "uneven", 1)))
    out = tmp_path / "planted_ranks.json"
    options: dict[str, Any] = {"steps": 2, "noise": (0.1,), "out": out}
    planted_ranks.main(teachers=1, **options)
    first = json.loads(out.read_text())["rows"]
    planted_ranks.main(teachers=2, **options)
    rows = json.loads(out.read_text())["rows"]
    assert rows[0] == first[0]
    assert [row["name"] for row in rows] == ["2 layers of 8, flat, seed 4", "3 layers of 8, uneven, seed 1"]
    for row in rows:
        total = sum(row["rules"]["planted"]["ranks"])
        for rule, found in row["rules"].items():
            assert rule in ("prune", "AutoLoRA, threshold") or sum(found["ranks"]) == total, rule
    text = rank_tables.of_ranks(tmp_path)
    assert all(f"| {rule} |" in text for rule in rank_tables.RULES)
    with pytest.raises(ValueError, match="was measured with"):
        planted_ranks.main(teachers=1, **{**options, "steps": 3})


def test_numbers_of_a_table() -> None:
    def made(loss: float, within: float, depth: int) -> dict[str, Any]:
        rules = {
            name: {"ranks": [2], "within_1": within, "loss": loss * (2.0 if name[0] in "urs" else 1.0)}
            for name in (*rank_tables.RULES, "random 0", "random 1", "shuffled 0")
            if name not in rank_tables.DRAWN
        }
        return {
            "teacher": {"depth": depth, "width": 8},
            "noise": 0.1,
            "seconds": {"Fisher": 1.0},
            "rules": rules,
        }

    found: dict[str, Any] = {
        "rows": [made(0.1, 1.0, 4), made(0.4, 0.5, 8), made(0.2, 0.75, 4)],
        "settings": {"steps": 1, "batch_size": 2},
        "environment": {"commit": "c", "cpu": "x", "threads": 1},
    }
    for one, row in enumerate(found["rows"]):  # so that differences are not all the same
        for number, rule in enumerate(("uniform", "random 0", "random 1", "shuffled 0")):
            row["rules"][rule]["loss"] *= 1 + 0.1 * ((one * (number + 1)) % 3)
    text = rank_tables.planted(found)
    assert "| Fisher, total | 68.8 % | 0.20000 | 1.00 |" in text  # (4 + 4 + 3) of 16 layers
    assert "0.46 (p = " in text  # (2 * 2.2 * 2.4) ** (-1 / 3)
