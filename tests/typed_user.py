"""A user's program, for mypy: with a public name that is untyped, or one that is unknown, it does not pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor, nn

import metapeft as mp


def learners(body: nn.Module) -> mp.Learner:
    model = mp.attach(body, mp.LoRA(rank=4), targets="all", norm="running")
    assert_type(model, mp.AttachedModel)
    assert_type(model.factors(), dict[str, Tensor])
    assert_type(model.merged({}), nn.Module)
    assert_type(mp.costs(model), dict[str, int])
    inner = mp.inner.SGD(steps=5, lr=0.1)
    assert_type(inner, mp.inner.SGD)
    assert_type(inner.with_steps(3), mp.inner.SGD)
    learner = mp.Learner(
        model,
        inner=inner,
        hypergradient=mp.hypergradients.CG(iterations=5),
        head=mp.heads.PrototypeInit(scale=2.0),
        generator=mp.generators.MappingNet(hidden=8),
        selection=mp.Softmax(),
    )
    assert_type(learner, mp.Learner)
    assert_type(mp.methods.maml(body, steps=3), mp.Learner)
    assert_type(mp.methods.sr_lora(body, head=mp.PrototypeInit(scale=2.0)), mp.Learner)
    assert_type(mp.methods.metapeft(body, format=mp.CP(rank=2), generator=None), mp.Learner)
    assert_type(mp.ranks(learner), dict[str, int])
    return learner


def episodes(images: Tensor) -> mp.EpisodeBatch:
    data = mp.ImageData(images, [0, 0, 1, 1], ["cat", "dog"])
    assert_type(len(data), int)
    sampler = mp.EpisodeSampler(data, ways=2, shots=1, queries=1, seed=0, shift=mp.Shift(["plain"]))
    assert_type(sampler, mp.EpisodeSampler)
    assert_type(sampler[3], mp.Episode)
    batch = sampler.batch(0, 16)
    assert_type(batch, mp.EpisodeBatch)
    assert_type(batch.support_y, Tensor)
    assert_type(mp.Protocol.of(sampler, 600), mp.Protocol)
    return batch


def training(run: Path) -> Any:
    body = mp.backbones.conv4(ways=5, channels=1, width=8)
    assert_type(body, nn.Module)
    trained, log = mp.pretrain(body, mp.load_dataset("glyphs"), steps=1)
    assert_type(trained, nn.Module)
    assert_type(log, list[dict[str, Any]])
    learner = learners(trained)
    trainer = mp.BilevelTrainer(learner, optimizer=torch.optim.Adam, lr=1e-3, tasks_per_step=16)
    assert_type(trainer, mp.BilevelTrainer)
    assert_type(trainer.resume(run), list[dict[str, Any]])
    assert_type(mp.load(run), mp.Learner)
    batch = episodes(torch.zeros(4, 1, 28, 28, dtype=torch.uint8))
    found = learner.hypergradient(batch)
    assert_type(found, mp.Result)
    assert_type(found.grads, dict[str, Tensor])
    assert_type(learner.adapt(batch.support_x[0], batch.support_y[0]), mp.Adapted)
    a, b = mp.evaluate(learner, None), mp.evaluate(learner, None)
    assert_type(a.accuracy, float)
    assert_type(mp.compare(a, b).ci95, float)
    section = mp.report.Section(
        "Curves", figures=[mp.report.Figure(mp.report.curves({"loss": ([0], [1.0])}))]
    )
    assert_type(mp.report.write_report(run, "A run", [section]), Path)
    return trainer


def problems(x: Tensor) -> Tensor:
    def square(u: dict[str, Tensor], w: dict[str, Tensor]) -> Tensor:
        return (w["x"] - u["c"]).square()

    problem = mp.Problem(square, square, {"c": x}, {"x": x}, mp.inner.Adam(steps=2, lr=0.1), "unroll")
    assert_type(problem, mp.Problem)
    found = mp.hypergradient(square, square, {"c": x}, {"x": x}, solver=mp.inner.SGD(2, 0.1), method="cg")
    assert_type(found, mp.Result)
    try:
        return found.value
    except mp.NumericalError as error:
        raise ArithmeticError from error


def mistakes() -> None:
    # each of these is an error, or mypy would say that the comment on it has no use
    mp.Lora  # type: ignore[attr-defined]  # noqa: B018
    mp.inner.Sgd  # type: ignore[attr-defined]  # noqa: B018
    mp.heads.Lora  # type: ignore[attr-defined]  # noqa: B018
    mp.LoRA(rnak=4)  # type: ignore[call-arg]
    mp.inner.SGD(steps="five", lr=0.1)  # type: ignore[arg-type]
    mp.methods.maml(body=3)  # type: ignore[call-arg]
