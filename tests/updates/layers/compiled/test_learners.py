"""Hypergradients, evaluation and runs with compiled kernels: the same numbers, and the same bits on resuming."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from benchmarks.speed import differences, steps_of
from benchmarks.speed_problems import W1
from metapeft.base.state import digest
from metapeft.cli import run as shell
from metapeft.updates.layers.compiled import fit
from metapeft.updates.layers.compiled.switch import compiled_used, in_use
from tests.training.helpers import PLAN, sampler

ENGINES: dict[str, Any] = {
    "unroll": "unroll", "recompute": "recompute", "truncated": mp.hypergradients.Truncated(1),
    "first-order": "first-order", "cg": mp.hypergradients.CG(5, damping=1.0), "forward": "forward",
    "neumann": mp.hypergradients.Neumann(3, lr=0.05), "envelope": "envelope",
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "metapeft": {"format": mp.TensorRing(2), "hidden": 4, "norm": "running"},
    "lora-ml": {"rank": 3, "norm": "running"},
    "metalora-cp": {"rank": 2, "norm": "running"},
    "maml": {"norm": "running"},
    "meta-sgd": {"norm": "running"},
    "reptile": {"norm": "running"},
    "anil": {"norm": "running"},
    "boil": {"norm": "running"},
    "protonet": {"norm": "running"},
}


def body() -> torch.nn.Module:
    made = mp.backbones.conv4(ways=3, channels=1, width=16, size=16)
    for name, value in made.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return made.double()


def gradients(make: Any) -> list[dict[str, torch.Tensor]]:
    """With kernels, then without."""
    found = []
    for on in (True, False):
        with compiled_used(on), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an inner solver that has not converged
            found.append(make().hypergradient(sampler().batch(0, 3)).grads)
    return found


def assert_same(found: list[dict[str, torch.Tensor]]) -> None:
    with_kernels, without = found
    assert with_kernels.keys() == without.keys()
    assert any(bool(value.abs().max() > 0) for value in without.values())
    for name, value in without.items():
        torch.testing.assert_close(
            with_kernels[name], value, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("engine", ENGINES)
def test_every_hypergradient_is_the_same(engine: str) -> None:
    def make() -> mp.Learner:
        implicit = engine in ("cg", "neumann", "envelope", "truncated")
        outer = ("rates",) if engine == "forward" else ("weights",) if implicit else ("weights", "factors")
        inner = mp.inner.SGD(
            2, 0.05, rates="step" if engine == "forward" else None
        )  # it takes a tangent a number
        model = mp.attach(body(), mp.LoRA(2), norm="running")
        return mp.Learner(model, inner=inner, outer=outer, hypergradient=ENGINES[engine])

    assert_same(gradients(make))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_same(name: str) -> None:
    def make() -> mp.Learner:
        learner: mp.Learner = mp.methods.registry.resolve(name)(body(), **METHODS[name])
        for key in sorted(learner.trained):
            if key.startswith("factors."):  # where B is 0 there is little to see
                value, source = learner.trained[key], torch.Generator().manual_seed(3)
                value.add_(0.1 * torch.randn(value.shape, generator=source, dtype=value.dtype))
        return learner

    assert_same(gradients(make))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("norm", ["support", "transductive"])
@pytest.mark.parametrize("name", ["maml", "lora-ml", "metapeft", "anil", "reptile"])
def test_methods_on_batch_statistics_are_the_same(name: str, norm: str) -> None:
    options = {**METHODS[name], "norm": norm}
    assert_same(gradients(lambda: mp.methods.registry.resolve(name)(body(), **options)))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("engine", ["unroll", "recompute", "truncated", "first-order", "forward"])
def test_hypergradients_through_statistics_of_the_support_set_are_the_same(engine: str) -> None:
    def make() -> mp.Learner:
        outer = ("rates",) if engine == "forward" else ("weights",)
        inner = mp.inner.SGD(2, 0.05, rates="step" if engine == "forward" else None)
        model = mp.attach(body(), mp.Full(), norm="support")
        return mp.Learner(model, inner=inner, outer=outer, hypergradient=ENGINES[engine])

    assert_same(gradients(make))


def lora_ml() -> mp.Learner:
    body = mp.backbones.conv4(ways=3, channels=1, width=16, size=16)
    return mp.methods.lora_ml(body, rank=2, inner=mp.inner.SGD(2, 0.05, rates="step"))


def trainer() -> mp.BilevelTrainer:
    return mp.BilevelTrainer(lora_ml(), lr=3e-3, tasks_per_step=4, progress=False)


@pytest.mark.usefixtures("kernels")
def test_a_run_goes_on_as_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit for bit, whatever is in use where it is resumed; and the switch is left alone."""
    calls, own = [], fit.chain
    monkeypatch.setattr(fit, "chain", lambda *given: calls.append(in_use()) or own(*given))
    logs, states = {}, {}
    for begun in (True, False):
        folder = tmp_path / f"begun {begun}"
        with compiled_used(begun):
            whole = trainer()
            logs[begun] = whole.fit(sampler(), 8, sampler("val"), tmp_path / f"whole {begun}", **PLAN)
            trainer().fit(sampler(), 8, sampler("val"), folder, stop_at=3, **PLAN)
        states[begun] = digest(whole.learner.state())
        assert json.loads((folder / "environment.json").read_text())["compiled"] is begun
        assert bool(calls) is begun
        caplog.clear()
        with caplog.at_level(logging.WARNING), compiled_used(not begun):
            last = trainer()
            assert last.resume(folder, sampler(), sampler("val")) == logs[begun]
            assert in_use() is not begun
        assert f"begun {'with' if begun else 'without'} compiled kernels" in caplog.text
        assert digest(last.learner.state()) == states[begun]
        calls.clear()
    assert states[True] != states[False]  # other roundings: the comparison above could fail


@pytest.mark.usefixtures("kernels")
def test_a_run_of_kernels_that_cannot_be_had_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with compiled_used(True):
        trainer().fit(sampler(), 4, run_dir=tmp_path / "x", stop_at=2)
    monkeypatch.setattr("metapeft.updates.layers.compiled.switch._loaded", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(OSError, match=r"need a C\+\+ compiler"):
        trainer().resume(tmp_path / "x", sampler())
    assert not in_use()


@pytest.mark.usefixtures("kernels")
def test_evaluation_is_the_same() -> None:
    learner, found = lora_ml(), []
    for on in (True, False):
        with compiled_used(on):
            found.append(mp.evaluate(learner, sampler("test"), episodes=20).values)
    assert found[0] == pytest.approx(found[1])


@pytest.mark.usefixtures("compiled")
def test_the_benchmark_times_both() -> None:
    """Where kernels are in use and fit, plain torch is a library of its own."""
    small = replace(W1, tasks=2, queries=5, steps=2, width=16)
    assert {"metapeft", "uncompiled"} <= set(steps_of(small)[0])
    apart = differences(small, {"metapeft", "uncompiled", "loop"})
    assert 0 < max(apart.values()) < 1e-11
    assert "uncompiled" not in steps_of(replace(small, backbone="resnet12", size=84, channels=3))[0]
    with compiled_used(False):
        assert "uncompiled" not in steps_of(small)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
def test_the_main_job_of_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"width": 16, "tasks-per-step": 1, "episodes": 2, "validation-episodes": 2, "queries": 2}
    steps = {"pretrain-steps": 2, "steps": 2, "function-steps": 0, "inner-steps": 1, "inner-lrs": 0.01}
    tiny = [word for name, value in (sizes | steps).items() for word in (f"--{name}", str(value))]
    folder = tmp_path / "run"
    assert shell(["train", "--out", str(folder), "--methods", "lora-ml", "--quiet", "--compiled", *tiny]) == 0
    assert not in_use()
    assert json.loads((folder / "config.json").read_text())["train"]["compiled"] is True
    results = json.loads((folder / "results.json").read_text())
    assert results["environment"]["compiled"] is True
    capsys.readouterr()
    evaluate = ["evaluate", str(folder / "lora-ml"), "--episodes", "4", "--queries", "2"]
    shown = []
    for more in ([], ["--compiled"]):
        assert shell([*evaluate, *more]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shell(["train", "--out", str(folder), "--resume", "--quiet", "--no-compiled"]) == 2
    assert "--no-compiled, but the run was started with True" in capsys.readouterr().err
    shutil.rmtree(folder / "lora-ml")
    (folder / "results.json").unlink()
    assert shell(["train", "--out", str(folder), "--resume", "--quiet"]) == 0
    again = json.loads((folder / "results.json").read_text())
    assert again["rows"] == results["rows"]


def test_a_job_without_a_compiler_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("metapeft.updates.layers.compiled.switch._loaded", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert shell(["train", "--out", str(tmp_path / "run"), "--compiled", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "install g++" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
