"""The speed benchmark compares the same gradient, and its bars can fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import speed
from benchmarks.before_after import seconds
from benchmarks.speed import counted, difference, differences, steps_of
from benchmarks.speed_bars import FASTER, GRADIENT, RATES, bars, short, unchecked
from benchmarks.speed_peers import PEERS, absent
from benchmarks.speed_problems import QUICK, WORKLOADS, Workload

SMALL = Workload(tasks=2, steps=2, queries=5, width=18)  # wide enough for the thin convolutions
CASES = {
    "lora": SMALL,
    "frozen": replace(SMALL, frozen=True),
    "cp": replace(SMALL, format="cp"),
    "tr": replace(SMALL, format="tr"),
    "full": replace(SMALL, format="full"),
    "head": replace(SMALL, format="head"),
    "last block": replace(SMALL, targets=("conv4.*", "classifier.*")),
    "batch statistics": replace(SMALL, format="full", norm="transductive"),
    "first order": replace(SMALL, engine="first-order"),
    "implicit": replace(SMALL, engine="cg", proximal=10.0),
    "recompute": replace(SMALL, engine="recompute"),
    "vit": replace(SMALL, backbone="vit", size=14, tasks=1),
}


@pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged")
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c == "vit" else c for c in CASES]
)
def test_every_library_computes_the_same_gradient(case: str) -> None:
    """Those that are installed; the loop and vmap always are."""
    apart = differences(CASES[case])
    assert {"metapeft", "loop", "vmap"} <= set(apart)
    assert set(apart) == {
        "metapeft",
        *(n for n, (_, has) in PEERS.items() if CASES[case].engine in has and not absent(n)),
    }
    assert max(apart.values()) < GRADIENT
    steps = steps_of(CASES[case])[0]
    reference = steps["loop"]()
    assert all(float(value.abs().max()) > 0 for name, value in reference.items() if not name.endswith("bias"))
    assert difference(steps["metapeft"](), reference) < 1e-3


def test_a_wrong_gradient_is_seen() -> None:
    reference = {"a": torch.ones(3), "b": torch.ones(2)}
    assert difference({"a": torch.ones(3), "b": torch.tensor([1.0, 1.1])}, reference) > 1e-2


def result(**times: float) -> dict[str, Any]:
    rows = {who: {"times_metapeft": t, "gradient_difference": 0.0, "median_s": t} for who, t in times.items()}
    return {"rows": rows, "workload": {"tasks": 16, "backbone": "conv4"}}


def failed(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (row["workload"], row["against"], row["measure"]) for row in bars(found) if row["passed"] is False
    ]


def test_bars_name_what_falls_short() -> None:
    good = {"W1": result(metapeft=1.0, higher=6.0, learn2learn=3.0, torchopt=3.5, loop=2.0, vmap=0.96)}
    assert failed(good) == [] == short(bars(good))
    bad = {"W1": result(metapeft=1.0, higher=4.9, vmap=0.9), "W1 cp": result(metapeft=1.6)}
    assert failed(bad) == [("W1", "higher", "time"), ("W1", "vmap", "time"), ("W1 cp", "W1", "time")]
    assert short(bars(bad))[0] == "W1: higher takes 4.90 times the time of metapeft, at least 5 is wanted"
    grown = {f"W1, recompute, K = {k}": result(metapeft=1.0) for k in (1, 100)}
    assert failed(grown) == []  # memory was not measured
    for k, measured in zip((10, 16), grown.values()):
        measured["rows"]["metapeft"]["peak_bytes"] = k
    assert failed(grown) == [("W1, recompute, K = 100", "W1, recompute, K = 1", "memory")]
    grown["W1, recompute, K = 1"]["run"] = "another day"
    assert failed(grown) == []
    good["W1"]["rows"]["loop"]["gradient_difference"] = 1e-7
    assert failed(good) == [("W1", "loop", "distance of gradients")]
    good["W1"]["rows"]["metapeft"]["rate"] = 0.29
    assert ("W1", "matrix rate", "rate") in failed(good)


def test_who_is_not_compared_has_a_row_that_says_why() -> None:
    found = {"W1": result(metapeft=1.0, vmap=0.5)}
    found["W1"]["rows"]["vmap"]["gradient_difference"] = 2e-4
    found["W1"]["rows"]["higher"] = {"absent": "higher is not installed"}
    rows = {(row["against"], row["measure"]): row for row in bars(found)}
    assert {key: row["passed"] for key, row in rows.items()} == {
        ("vmap", "distance of gradients"): False, ("vmap", "time"): None, ("higher", "time"): None,
    }  # fmt: skip
    assert "another gradient" in rows["vmap", "time"]["why"]
    assert rows["higher", "time"]["why"] == "higher is not installed"
    assert unchecked(found, bars(found)) == [
        "W1 against vmap: another gradient, by 2.0e-04 relative", "W1 against higher: higher is not installed",
    ]  # fmt: skip
    found["W1"]["rows"]["vmap"]["gradient_difference"] = float("nan")
    assert failed(found) == [("W1", "vmap", "distance of gradients")]


def test_a_file_keeps_what_it_says_of_workloads_that_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "speed.json"
    monkeypatch.setattr(speed, "measure", lambda name, *_: result(metapeft=1.0, higher=4.0))
    speed.run(quick=True, json_file=file, compiled=False)
    monkeypatch.setattr(speed, "measure", lambda name, *_: result(metapeft=1.0, higher=9.0))
    speed.run(only=["W1 frozen"], json_file=file, compiled=False)
    kept = json.loads(file.read_text())
    assert tuple(kept["workloads"]) == QUICK
    assert [row["workload"] for row in kept["rows"] if row["passed"] and row["ratio"] == 9.0] == ["W1 frozen"]
    assert kept["seconds"] >= 0
    assert [row["workload"] for row in kept["rows"] if row["passed"] is False] == ["W1"]
    speed.run(
        only=["W1 frozen"], json_file=file, check=True, compiled=False
    )  # W1, which is short, is not measured now
    monkeypatch.setattr(speed, "measure", lambda name, *_: result(metapeft=1.0, higher=7.0))
    with pytest.raises(SystemExit):
        speed.run(only=["W1 frozen"], json_file=file, check=True, compiled=False)


def test_names_agree() -> None:
    assert set(QUICK) <= set(WORKLOADS)
    assert set(FASTER) <= set(WORKLOADS)
    assert set(RATES) <= {workload.backbone for workload in WORKLOADS.values()}
    assert {who for bars in FASTER.values() for who in bars} <= {*PEERS, "uncompiled"}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_s_backward_is_counted_as_two_of_its_forward(groups: int) -> None:
    """Whatever its groups are; torch's own count grows with them."""
    x = torch.zeros(2, 8, 5, 5, requires_grad=True)
    weight = torch.zeros(8, 8 // groups, 3, 3, requires_grad=True)

    def forward() -> torch.Tensor:
        return F.conv2d(x, weight, padding=1, groups=groups)

    once, _ = counted(lambda: {"": forward()})
    assert once == 2 * (2 * 8 * 5 * 5) * (8 // groups * 9)
    both, _ = counted(lambda: dict(enumerate(torch.autograd.grad(forward().sum(), (x, weight)))))  # type: ignore[arg-type]
    assert both == 3 * once


def test_the_seconds_of_a_commit_come_from_its_own_code(tmp_path: Path) -> None:
    """A tree with a step of its own is what is timed, after one untimed step."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "speed_peers.py").write_text(
        "def metapeft(learner, batch):\n    return lambda: learner.append(batch)\n"
    )
    (package / "speed_problems.py").write_text(
        "class W:\n    def body(self): return []\n    def learner(self, body): return body\n"
        "    def batch(self): return 1\nWORKLOADS = {'mine': W()}\n"
    )
    found, peak = seconds(tmp_path, "mine", threads=1, steps=3, compiled=False)
    assert len(found) == 3
    assert peak > 50 << 20  # torch alone is more


def test_a_peer_that_does_not_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer.py").write_text("raise OSError('no such library: libold.so.1')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert absent("broken_peer") == "broken_peer: no such library: libold.so.1"
    assert absent("no_such_peer") == "no_such_peer is not installed (requirements-peers.txt)"
