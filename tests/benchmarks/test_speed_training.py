"""Steps of training without an inner loop: every row of the benchmark computes the same gradient, and bars can fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.speed import difference, differences, exact_steps, steps_of
from benchmarks.speed_bars import BRIEF, GRADIENT, WITH_AMX, bars, short
from benchmarks.speed_training import TRAININGS
from metapeft.updates.layers.compiled.compiler import compiler
from metapeft.updates.layers.compiled.switch import compiled_used

#: without `torch.compile`, which takes a minute
ROWS = ("metapeft", "uncompiled", "loop", "loop bfloat16")


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    if compiler() is None:
        pytest.skip("needs a C++ compiler: install g++")
    with compiled_used(True):
        yield


@pytest.mark.parametrize("name", ["SR 28 bfloat16", "ProtoNet 28 bfloat16"])
def test_every_row_computes_the_same_gradient(name: str) -> None:
    small = replace(TRAININGS[name], items=24, ways=8, width=16)
    apart = differences(small, ROWS)
    assert set(apart) == set(ROWS)
    assert max(apart.values()) < GRADIENT
    exact = exact_steps(small, {"loop"})["loop"]()
    assert all(float(value.abs().max()) > 0 for key, value in exact.items() if not key.endswith("bias"))
    timed = {who: difference(step(), exact) for who, step in steps_of(small, ROWS)[0].items()}
    assert timed["loop"] < 1e-2
    assert timed["metapeft"] <= BRIEF * timed["loop bfloat16"]


def test_bars_fall_short_where_the_machine_has_tiles() -> None:
    def row(times: float, from_float64: float) -> dict[str, Any]:
        return {"times_metapeft": times, "gradient_difference": 0.0, "float64_difference": from_float64}

    rows = {"metapeft": row(1.0, 0.1), "loop": row(2.0, 0.01), "loop bfloat16": row(1.5, 0.05)}
    measured = {"workload": vars(TRAININGS["SR 84 bfloat16"]), "rows": rows, "compiled": True}
    assert "SR 84 bfloat16" in WITH_AMX
    (without,) = short(bars({"SR 84 bfloat16": measured}))
    assert "distance from float64" in without
    assert len(short(bars({"SR 84 bfloat16": measured | {"amx": True}}))) == 3
