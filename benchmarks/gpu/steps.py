"""Steps on the device against other libraries and plain loops: the same gradient, then times in turn."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks import speed_training
from benchmarks.gpu.part import Context, Part, difference, row, seconds
from benchmarks.speed_peers import PEERS, absent, metapeft
from benchmarks.speed_problems import WORKLOADS, Workload, plain
from benchmarks.speed_training import TRAININGS
from metapeft.training.image_groups import ImageGroups

SMALL: dict[str, Any] = {"width": 4, "tasks": 2, "steps": 2, "queries": 5}


def of_meta_step(context: Context, name: str) -> dict[str, Any]:
    """A meta-step of `benchmarks.speed`, by metapeft and by every peer that is installed."""
    workload = replace(WORKLOADS[name], **SMALL) if context.quick else WORKLOADS[name]
    found: dict[str, Any] = {}
    steps: dict[str, Callable[[], Any]] = {"metapeft": own(workload, context.device)}
    # vmap's form of batch norm and others' patches change the module that they get: one for each
    for peer, (_, engines) in PEERS.items():
        if workload.engine in engines and absent(peer) is None:
            steps[peer] = peers(workload, peer, context.device)
    expected = {key: value.clone() for key, value in steps["metapeft"]().items()}
    for peer, step in steps.items():
        times = row(peer, partial(timed, context, step, expected))
        found[peer] = {key: value for key, value in times.items() if key not in ("name",)}
    own_time = found["metapeft"].get("seconds")
    for one in found.values():
        if own_time and "seconds" in one:
            one["times metapeft"] = round(one["seconds"] / own_time, 3)
    return {"steps": found, "passed": all(one["passed"] for one in found.values())}


def timed(context: Context, step: Callable[[], Any], expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Seconds, peak memory in bytes, and the distance from metapeft's gradient in float32."""
    apart = difference(step(), expected)
    if context.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    repeats = 3 if context.quick else 7
    found: dict[str, Any] = {"seconds": seconds(step, context.device, repeats), "difference": apart}
    if context.device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return {**found, "passed": apart < 1e-3}


def own(workload: Workload, device: torch.device) -> Callable[[], Any]:
    """metapeft's step, by the plain module's names."""
    body = workload.body()
    learner = workload.learner(body)
    names = {ours: theirs for theirs, ours in plain(workload, body, learner).names.items()}
    learner.to(device)
    step = metapeft(learner, workload.batch().to(device))
    return lambda: {names[key]: value.reshape(-1) for key, value in step().items() if key in names}


def peers(workload: Workload, peer: str, device: torch.device) -> Callable[[], Any]:
    """A peer's step, by the plain module's names."""
    body = workload.body()
    one = plain(workload, body, workload.learner(body))
    one.net.to(device)
    step = PEERS[peer][0](workload, one, workload.batch().to(device))
    return lambda: {key: value.reshape(-1) for key, value in step().items()}


def of_training(context: Context, name: str) -> dict[str, Any]:
    """A step of retraining or of a prototypical network against a plain loop, with images a second."""
    training = replace(TRAININGS[name], width=4, size=28, items=64) if context.quick else TRAININGS[name]
    body, groups = training.body().to(context.device), training.batch()
    batch = ImageGroups(groups.x.to(context.device), groups.y.to(context.device))
    steps = {
        "metapeft": speed_training.metapeft(training, body, batch),
        "loop": speed_training.looped(training, body, batch, training.autocast),
    }
    if not context.quick:
        steps["torch.compile"] = speed_training.looped(
            training, body, batch, training.autocast, compiled=True
        )
    found = {}
    for kind, step in steps.items():
        one = row(kind, partial(_seconds, context, step))
        if "seconds" in one:
            one["images_a_second"] = round(training.tasks * training.items / one["seconds"])
        found[kind] = {key: value for key, value in one.items() if key != "name"}
    return {"steps": found, "passed": all(one["passed"] for one in found.values())}


def _seconds(context: Context, step: Callable[[], Any]) -> dict[str, Any]:
    return {"seconds": seconds(step, context.device, 3 if context.quick else 9)}


def of_finetuning(context: Context, updates: int, bfloat16: bool) -> dict[str, Any]:
    """A step of `mp.finetune` on MiniLM's shape against PEFT's, as `benchmarks.finetune_speed` makes it."""
    missing = [name for name in ("transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        return {"left_out": f"not installed: {', '.join(missing)}"}
    from benchmarks import finetune_speed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about names of its own
        found = {
            side: seconds(
                make(updates, bfloat16, context.device),
                context.device,
                *((1, 0) if context.quick else (9, 2)),
            )
            for side, make in (("metapeft", finetune_speed.ours), ("peft", finetune_speed.peft))
        }
    return {**found, "times metapeft": round(found["peft"] / found["metapeft"], 3)}


META = ("W1", "W1 frozen", "MAML", "MAML batch statistics", "W1 first order")
TRAINING = ("SR 84", "SR 84 bfloat16", "ProtoNet 84")


def meta_steps(context: Context) -> list[dict[str, Any]]:
    """A row a meta-step."""
    chosen = META[:1] if context.quick else META
    return [row(name, partial(of_meta_step, context, name)) for name in chosen]


def training_steps(context: Context) -> list[dict[str, Any]]:
    """A row a step without an inner loop."""
    chosen = TRAINING[:1] if context.quick else TRAINING
    return [row(name, partial(of_training, context, name)) for name in chosen]


def finetuning_steps(context: Context) -> list[dict[str, Any]]:
    """A row a number of updates at once, in float32 and bfloat16."""
    kinds = [(1, False)] if context.quick else [(1, False), (1, True), (8, False), (8, True)]
    return [
        row(f"T = {updates}{', bfloat16' * brief}", partial(of_finetuning, context, updates, brief))
        for updates, brief in kinds
    ]


PARTS = (
    Part("meta-steps", meta_steps), Part("training steps", training_steps), Part("fine-tuning", finetuning_steps),
)  # fmt: skip
