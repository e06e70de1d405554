"""Standard retraining as a stage of the main job: done once, continued, found again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metapeft import placement
from metapeft.checkpoint import load, save
from metapeft.config import TrainConfig
from metapeft.distributed import processes
from metapeft.episodes.shift import OF_SPLIT, Shift
from metapeft.errors import RunError, stored_in
from metapeft.pretraining import pretrain
from metapeft.runs import Run


def training_styles() -> Shift:
    """Half of the training images or episodes are plain, the others in one of the training split's styles."""
    styles = OF_SPLIT["train"]
    return Shift([*["plain"] * len(styles), *styles])


def retrained(
    config: TrainConfig,
    folder: Path,
    body: nn.Module,
    data: Any,
    steps: int,
    group: int,
    groups: int,
    progress: bool,
    softmax: dict[str, Tensor] | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Standard retraining, or its result where it has been done; with `softmax` it continues an earlier one.

    Args:
        config: device, precision, memory and seed. folder: of this stage. body: the start, which is not changed.
        data, steps, group, groups: as `mp.pretrain` takes them. progress: show a bar.

    Returns: the trained copy, on the configured device and in the configured dtype, and the log.
    """
    place = placement.options(config.device, config.dtype, config.autocast)
    done = folder / "done.safetensors"
    if processes().decided(done.exists):
        state, metadata = load(done)
        body = copy.deepcopy(body).to(device=place["device"], dtype=place["dtype"])
        try:
            body.load_state_dict(state)
        except RuntimeError as error:
            raise RunError(
                f"{done} is of another backbone, or of another size: remove it, or start anew"
            ) from error
        with stored_in(done):
            return body, metadata["log"]
    trained, log = pretrain(
        body, data, steps, group=group, groups=groups, seed=config.seed + (softmax is not None), softmax=softmax,
        shift=training_styles(), lr=2e-3 if softmax is None else 1e-3, run_dir=folder / "run", resume=True,
        progress=progress, memory=config.memory, **place,
    )  # fmt: skip
    if processes().main:
        save(done, dict(trained.state_dict()), {"log": log})
    return trained, log


def softmax_of(folder: Path) -> dict[str, Tensor]:
    """The temporary softmax that a retraining in this folder ended with, on the CPU."""
    with Run.open(folder / "run", writable=False) as run:
        state = run.load("latest")[0]["learner"]
    return {name: state[name] for name in ("softmax.weight", "softmax.bias")}
