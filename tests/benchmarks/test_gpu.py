"""The check of a GPU runs as it is on the CPU; what fails in it is named and does not end the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import equal
from benchmarks.gpu.__main__ import PARTS, main
from benchmarks.gpu.part import Clock, Context, Part, difference, ran
from metapeft.hypergradients.table import registry

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_runs_on_the_cpu(part: Part) -> None:
    found = ran(part, CPU, True, Clock(300))
    assert found["passed"], [row for row in found["rows"] if not row["passed"]] or found["error"]


def test_every_engine_is_compared() -> None:
    assert set(equal.ENGINES) == set(registry.names)


def test_a_gradient_that_is_off_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    made = equal.learner(inner=equal.SGD(1, 0.1), outer=equal.BOTH)
    own = made.hypergradient
    calls = []

    def off(batch):
        found = own(batch)
        calls.append(1)
        if len(calls) == 2:
            next(iter(found.grads.values())).mul_(1.001)
        return found

    monkeypatch.setattr(made, "hypergradient", off)
    found = equal.compared(Context(CPU, True, Clock(60)), lambda: made)
    assert not found["passed"]
    assert found["difference"] > 1e-5


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(context: Context) -> list[dict[str, object]]:
        raise RuntimeError("CUDA error: an illegal memory access")

    fine = Part("fine", lambda context: [{"name": "one", "passed": True}])
    monkeypatch.setattr("benchmarks.gpu.__main__.PARTS", (Part("broken", broken), fine))
    file = tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match="failed: broken"):
        main(file, device="cpu")
    parts = json.loads(file.read_text())["parts"]
    assert parts["broken"]["error"].startswith(
        "RuntimeError: CUDA error: an illegal memory access (test_gpu.py:"
    )
    assert parts["fine"]["passed"]
    with pytest.raises(SystemExit, match="failed: broken, fine"):
        main(file, device="cpu", limit=0)
    assert json.loads(file.read_text())["parts"]["fine"]["error"] == "not run: no time was left"


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU here: --device cpu"):
        main(device="cuda")


def test_differences_are_relative_and_names_are_compared() -> None:
    assert difference({"a": torch.tensor([2.0, 1.0])}, {"a": torch.tensor([2.0, 1.5])}) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="names differ: \\['b'\\]"):
        difference({}, {"b": torch.ones(1)})
