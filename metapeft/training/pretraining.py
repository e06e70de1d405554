"""Standard retraining (SR): one softmax over all training classes, and the statistics that go with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.base.arguments import flag, floating, whole
from metapeft.base.machine.devices import usable
from metapeft.training.image_groups import ImageGroupSampler
from metapeft.training.progress_bar import Told
from metapeft.training.retraining_task import Pretraining
from metapeft.training.runs.run import Run
from metapeft.training.trainer import BilevelTrainer
from metapeft.updates.attach_model import attach


def pretrain(
    backbone: nn.Module,
    data: Any,
    steps: int,
    *,
    group: int = 64,
    groups: int = 2,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    lr: float = 1e-3,
    schedule: Any = "cosine",
    seed: int = 0,
    augment: Any = None,
    shift: Any = None,
    preprocess: Any = None,
    run_dir: Any = None,
    progress: bool | Told = True,
    resume: bool = False,
    softmax: Mapping[str, Tensor] | None = None,
    head: Literal["linear", "cosine"] = "linear",
    loss: Callable[..., Tensor] = F.cross_entropy,
    options: Mapping[str, Any] | None = None,
    ema: float | None = None,
    validation: Any = None,
    validate_every: int = 1000,
    validation_episodes: int = 200,
    memory: int | str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """SR: train a copy of a backbone to tell all classes of a data set apart.

    Args:
        backbone: a module whose last `Linear` is its classifier; it is not changed, nor is that classifier.
        data: an image data set.
        steps: outer steps; each sees `group * groups` images.
        group: images that share batch statistics. groups: of them.
        optimizer, lr, schedule: as `BilevelTrainer` takes them.
        seed: of the images' order and the temporary softmax.
        augment, shift: applied to each image on its own; as `EpisodeSampler` takes them.
        preprocess: uint8 to floats; None for `data.preprocess`.
        run_dir: a run folder; with `resume=True` one that is there already goes on.
        softmax: `softmax.weight` and `softmax.bias` of an earlier retraining (its checkpoint has them), to continue
            it; None for a random start.
        progress: as `BilevelTrainer` takes it.
        head: the temporary head: `"linear"`, or `"cosine"` with a learned scale.
        loss: `loss(logits (images, classes), labels (images,), reduction="none")`, one value an image, such as
            `functools.partial(F.cross_entropy, label_smoothing=0.1)`.
        options: of the optimiser. ema: decay of a moving average of weights and statistics, as `BilevelTrainer` has it.
        validation: an `EpisodeSampler` on validation classes: the copy is the best state found there, by nearest
            centroids of features of length one. validate_every: in steps. validation_episodes: how many.
        memory: what this process may hold, as `BilevelTrainer` takes it: the groups of a step go through in
            chunks that fit. A group itself is not cut.
        device, dtype: of the copy; None for the backbone's. autocast: of the forwards, as `Learner` takes it.

    Returns: the trained copy, and the log: one dict a logged step.

    Raises:
        ValueError: a group that the data set cannot serve, a device that is not here, an autocast that does not
            go with the dtype, a run that was started with other settings.
        MemoryError: memory is too little even for one group.

    Example:
        >>> import metapeft as mp
        >>> from metapeft.datasets.images import ImageData
        >>> images = torch.arange(16 * 784).remainder(251).view(16, 1, 28, 28).to(torch.uint8)
        >>> data = ImageData(images, torch.arange(16) % 4, list("abcd"))
        >>> body, log = pretrain(mp.backbones.conv4(width=4), data, steps=2, group=8, groups=1, progress=False)
        >>> log[-1]["step"]
        2
    """
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"backbone is of type {type(backbone).__name__}: a torch.nn.Module is needed")
    floating(dtype)
    whole(group=group)
    flag(resume=resume)
    if resume and run_dir is None:
        raise ValueError("resume=True goes on with a run folder: give run_dir= too")
    sampler = ImageGroupSampler(data, group, seed, augment, shift)
    chosen = data.preprocess if preprocess is None else preprocess
    # without parameters a new classifier alone is trained
    first = next(backbone.parameters(), torch.empty(0))
    place = first.device if device is None else usable(device)
    model = attach(backbone, {}, preprocess=chosen)
    task = Pretraining(model, len(data.classes), seed, softmax, place, dtype, autocast, head, loss)
    trainer = BilevelTrainer(
        task, optimizer, lr, tasks_per_step=groups, schedule=schedule, options=options, progress=progress,
        memory=memory, ema=ema,
    )  # fmt: skip
    if resume and run_dir is not None and trainer.has_run(run_dir):
        log = trainer.resume(run_dir, sampler, validation)
    else:
        log = trainer.fit(
            sampler, steps, validation, run_dir=run_dir, validate_every=validate_every,
            validation_episodes=validation_episodes,
        )  # fmt: skip
    trained = copy.deepcopy(backbone).to(device=place, dtype=dtype)
    own = {**dict(task.model.module.named_parameters()), **dict(task.model.module.named_buffers())}
    with torch.no_grad():
        for name, value in [*trained.named_parameters(), *trained.named_buffers()]:
            value.copy_(own[name])
    return trained, log


def softmax_of(folder: Path) -> dict[str, Tensor]:
    """The temporary softmax that a retraining in this folder ended with, on the CPU."""
    with Run.open(folder / "run", writable=False) as run:
        state = run.load("latest")[0]["learner"]
    return {name: value for name, value in state.items() if name.startswith("softmax.")}
