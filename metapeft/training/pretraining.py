"""Standard retraining (SR): one softmax over all training classes, and the statistics that go with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.base import state
from metapeft.base.arguments import flag, floating, whole
from metapeft.base.finite import refuse_not_finite
from metapeft.base.machine.devices import usable
from metapeft.base.machine.precision import check_autocast, forward_precision, precision_name
from metapeft.hypergradients.problem import Problem, Result, resolve
from metapeft.training.image_groups import ImageGroups, ImageGroupSampler
from metapeft.training.runs.run import Run
from metapeft.training.task import Task
from metapeft.training.trainer import BilevelTrainer
from metapeft.updates.attach_model import attach
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import copied, feature_size, viewed


class Pretraining(Task):
    """What a trainer trains in SR: a copy of a backbone and a temporary softmax over all classes.

    The classifier of the backbone is left alone. Batch statistics come from a group of images at a time and move
    the buffers once a step.
    """

    smaller = "a smaller group of images, whose statistics need all of it at once, or a smaller backbone"

    def __init__(
        self,
        model: AttachedModel,
        classes: int,
        seed: int = 0,
        softmax: Mapping[str, Tensor] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, trainable = copied(model, False, device, dtype)
        self.batch_model = viewed(self.model, sites={}, norm="transductive")
        size = feature_size(
            self.model, "end it in one, which retraining replaces by a softmax over all classes"
        )
        like = next(self.model.backbone.parameters())
        check_autocast(autocast, like)
        self.autocast = autocast
        bound = size**-0.5
        weight = torch.empty(classes, size).uniform_(
            -bound, bound, generator=torch.Generator().manual_seed(seed)
        )
        self.variables: dict[str, Tensor] = {
            **{
                f"weights.{name}": value for name, value in ((n, self.model.parameters[n]) for n in trainable)
            },
            "softmax.weight": weight.to(like),
            "softmax.bias": torch.zeros(classes).to(like),
        }
        for name, value in (softmax or {}).items():
            if name not in ("softmax.weight", "softmax.bias") or value.shape != self.variables[name].shape:
                raise ValueError(
                    f"softmax has {name!r} of shape {tuple(value.shape)}: that of another retraining"
                )
            self.variables[name].copy_(value)
        self._direct = resolve("direct")

    @property
    def trained(self) -> dict[str, Tensor]:
        """The weights and the softmax."""
        return self.variables

    @property
    def backbone(self) -> nn.Module:
        """The copy, whose batch norms keep statistics."""
        return self.model.module

    def hypergradient(self, batch: ImageGroups, w0: Any = None) -> Result:
        """Mean cross-entropy over the groups and its gradient; `.log` has accuracy and statistics."""
        refuse_not_finite(batch.x, "x")
        x = self.model.prepared(batch.x)
        y = batch.y.to(x.device)
        statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

        def outer(u: dict[str, Tensor], w: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            weights = {n.removeprefix("weights."): v for n, v in u.items() if n.startswith("weights.")}
            with forward_precision(self.autocast, u["softmax.weight"]):
                features = self.batch_model.features(x, {}, weights=weights, statistics=statistics)
            logits = F.linear(features.to(u["softmax.bias"]), u["softmax.weight"], u["softmax.bias"])
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y).mean(1)
            return loss, {"accuracy": (logits.argmax(-1) == y).to(loss.dtype).mean(1)}

        found = self._direct(
            Problem(outer, None, self.trained, {}, method="direct", task_axis=True, has_aux=True)
        )
        log = {**found.log, **found.aux, "statistics": statistics}
        return Result(found.value, found.grads, found.w, None, log)

    def _own(self) -> dict[str, Tensor]:
        buffers = {f"buffers.{name}": value for name, value in self.model.backbone.named_buffers()}
        return {**self.variables, **buffers}

    def state(self) -> dict[str, Tensor]:
        """Copies of weights, buffers and the temporary softmax."""
        return state.copies(self._own())

    def load_state(self, given: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint; raises ValueError where it does not fit."""
        state.take_over(self._own(), given)

    def settings(self) -> dict[str, Any]:
        """What identifies this task in a run folder."""
        shapes = {name: list(value.shape) for name, value in self.variables.items()}
        precision = precision_name(self.autocast, self.variables["softmax.weight"])
        said = {} if precision == "float32" else {"precision": precision}  # as in runs of before
        return {"method": "sr", "shapes": shapes, **said}


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
    progress: bool = True,
    resume: bool = False,
    softmax: Mapping[str, Tensor] | None = None,
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
    place = next(backbone.parameters()).device if device is None else usable(device)
    model = attach(backbone, {}, preprocess=chosen)
    task = Pretraining(model, len(data.classes), seed, softmax, place, dtype, autocast)
    trainer = BilevelTrainer(
        task, optimizer, lr, tasks_per_step=groups, schedule=schedule, progress=progress, memory=memory
    )
    if resume and run_dir is not None and trainer.has_run(run_dir):
        log = trainer.resume(run_dir, sampler)
    else:
        log = trainer.fit(sampler, steps, run_dir=run_dir)
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
    return {name: state[name] for name in ("softmax.weight", "softmax.bias")}
