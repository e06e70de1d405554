"""Standard retraining as a stage of the main job: done once, continued, found again."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from metapeft.base.errors import RunError, stored_in
from metapeft.experiments.config import TEXTS
from metapeft.experiments.job import Job
from metapeft.training.pretraining import pretrain
from metapeft.training.runs.checkpoint import load, save

RATES = ((2e-3, 1e-3), (1e-4, 5e-5))  # at first and where it goes on: of fresh weights, of pretrained ones


def retrained(
    job: Job,
    stage: str,
    body: nn.Module,
    steps: int,
    group: int,
    groups: int,
    softmax: dict[str, Tensor] | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Standard retraining, or its result where it has been done; with `softmax` it continues an earlier one.

    Args:
        stage: name of its folder in that of the job. body: the start, which is not changed.
        steps, group, groups: as `mp.pretrain` takes them.

    Returns: the trained copy, on the configured device and in the configured dtype, and the log.
    """
    folder, place = job.folder / stage, job.place
    done = folder / "done.safetensors"
    if job.processes.decided(done.exists):
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
    job.view.begin(stage, "retraining", "training" if softmax is None else "the retraining goes on")
    trained, log = pretrain(
        body, job.data, steps, group=group, groups=groups, seed=job.config.seed + (softmax is not None),
        softmax=softmax, shift=job.samplers.train.shift, lr=RATES[job.config.data in TEXTS][softmax is not None],
        run_dir=folder / "run",
        resume=True, progress=job.view.tell, memory=job.config.memory, **place,
    )  # fmt: skip
    if job.processes.main:
        save(done, dict(trained.state_dict()), {"log": log})
    return trained, log
