"""Standard retraining (SR): one softmax over all training classes, and the statistics that go with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft import state
from metapeft.buffers import task_mean
from metapeft.episode_specs import of_change, of_data
from metapeft.episodes import counter
from metapeft.finite import refuse_not_finite
from metapeft.hypergradients.problem import Problem, Result, resolve
from metapeft.trainer import BilevelTrainer
from metapeft.updates.attached import AttachedModel, attach
from metapeft.updates.copying import copied, feature_size, viewed


@dataclass(frozen=True)
class Groups:
    """Images in groups: `x (G, n, ...)`, `y (G, n)` global labels. Batch statistics are taken a group at a time."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def tasks(self, which: slice) -> Groups:
        return Groups(self.x[which], self.y[which])


class GroupSampler:
    """Group `i` is a pure function of the arguments and `i`: `size` images without replacement, with their labels.

    Args:
        dataset: an image data set. size: images a group. seed: of the draws.
        augment: as `EpisodeSampler` has it. shift: likewise, but drawn for each image on its own.

    Raises:
        ValueError: a group size that the data set cannot serve.
    """

    def __init__(
        self, dataset: Any, size: int, seed: int = 0, augment: Any = None, shift: Any = None
    ) -> None:
        if not 1 <= size <= len(dataset):
            raise ValueError(f"size={size}: a group has 1 to {len(dataset)} images, all of the data set")
        self.dataset, self.size, self.seed = dataset, size, seed
        self.augment, self.shift = augment, shift
        self._root = counter.root(seed)

    def settings(self) -> dict[str, Any]:
        """What identifies these groups in a run folder."""
        changes = {"shift": of_change(self.shift), "augment": of_change(self.augment)}
        return {"groups": {"data": of_data(self.dataset), "size": self.size, "seed": self.seed, **changes}}

    def batch(self, start: int, count: int) -> Groups:
        """Groups `start .. start + count - 1`."""
        number = np.uint64(start) + np.arange(count, dtype=np.uint64)
        keys = counter.words(counter.child(self._root, number), 3)
        index = torch.from_numpy(counter.draw(keys[:, 0], np.full(count, len(self.dataset)), self.size))
        x = self.dataset.gather(index)
        if self.augment is not None:
            seeds = counter.words(keys[:, 1], self.size).astype(np.int64)
            x = self.augment(x, torch.from_numpy(seeds))
        if self.shift is not None:
            seeds = counter.words(keys[:, 2], self.size).astype(np.int64)
            flat = self.shift(x.flatten(0, 1).unsqueeze(1), torch.from_numpy(seeds).flatten())
            x = flat.squeeze(1).unflatten(0, index.shape)
        return Groups(x, self.dataset.labels[index])


class Pretraining:
    """What a trainer trains in SR: a copy of a backbone and a temporary softmax over all classes.

    The classifier of the backbone is left alone. Batch statistics come from a group of images at a time and move
    the buffers once a step.
    """

    def __init__(
        self, model: AttachedModel, classes: int, seed: int = 0, softmax: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model, trainable = copied(model, keep_classifier=False)
        self.batch_model = viewed(self.model, sites={}, norm="transductive")
        size = feature_size(self.model)
        like = next(self.model.backbone.parameters())
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
        self.trained = self.variables
        self._direct = resolve("direct")

    def hypergradient(self, batch: Groups, w0: Any = None) -> Result:
        """Mean cross-entropy over the groups and its gradient; `.log` has accuracy and statistics."""
        refuse_not_finite(batch.x, "x")
        x = self.model.prepared(batch.x)
        y = batch.y.to(x.device)
        statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

        def outer(u: dict[str, Tensor], w: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            weights = {n.removeprefix("weights."): v for n, v in u.items() if n.startswith("weights.")}
            features = self.batch_model.features(x, {}, weights=weights, statistics=statistics)
            logits = F.linear(features, u["softmax.weight"], u["softmax.bias"])
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

    def load_state(self, given: dict[str, Tensor]) -> None:
        """Take over a checkpoint; raises ValueError where it does not fit."""
        state.take_over(self._own(), given)

    def settings(self) -> dict[str, Any]:
        """What identifies this task in a run folder."""
        shapes = {name: list(value.shape) for name, value in self.variables.items()}
        return {"method": "sr", "shapes": shapes}


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
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """SR: train a copy of a backbone to tell all classes of a data set apart.

    Args:
        backbone: a module whose last `Linear` is its classifier; it is not changed, nor is that classifier.
        data: an image data set.
        steps: outer steps; each sees `group * groups` images.
        group: images that share batch statistics. groups: of them, one after the other in memory.
        optimizer, lr, schedule: as `BilevelTrainer` takes them.
        seed: of the images' order and the temporary softmax.
        augment, shift: applied to each image on its own.
        preprocess: uint8 to floats; None for `data.preprocess`.
        run_dir: a run folder; with `resume=True` one that is there already goes on.
        softmax: `softmax.weight` and `softmax.bias` of an earlier retraining (its checkpoint has them), to continue
            it; None for a random start.

    Returns: the trained copy, and the log: one dict a logged step.

    Example:
        >>> import metapeft as mp
        >>> from metapeft.datasets.images import ImageData
        >>> images = torch.arange(16 * 784).remainder(251).view(16, 1, 28, 28).to(torch.uint8)
        >>> data = ImageData(images, torch.arange(16) % 4, list("abcd"))
        >>> body, log = pretrain(mp.backbones.conv4(width=4), data, steps=2, group=8, groups=1, progress=False)
        >>> log[-1]["step"]
        2
    """
    chosen = data.preprocess if preprocess is None else preprocess
    task = Pretraining(attach(backbone, {}, preprocess=chosen), len(data.classes), seed, softmax)
    trainer = BilevelTrainer(task, optimizer, lr, tasks_per_step=groups, schedule=schedule, progress=progress)
    sampler = GroupSampler(data, group, seed, augment, shift)
    if resume and run_dir is not None and trainer.has_run(run_dir):
        log = trainer.resume(run_dir, sampler)
    else:
        log = trainer.fit(sampler, steps, run_dir=run_dir)
    trained = copy.deepcopy(backbone)
    own = {**dict(task.model.module.named_parameters()), **dict(task.model.module.named_buffers())}
    with torch.no_grad():
        for name, value in [*trained.named_parameters(), *trained.named_buffers()]:
            value.copy_(own[name])
    return trained, log


@torch.no_grad()
def calibrate(
    model: AttachedModel, data: Any, *, groups: int = 50, group: int = 64, seed: int = 0
) -> AttachedModel:
    """Measure batch-norm statistics afresh: the mean over `groups` groups of images.

    Args:
        model: what `attach` returned; it is not changed. data: an image data set.
        groups, group: how many groups, of how many images. seed: of their draw.

    Returns: a model on weights of its own, with the new buffers.
    """
    own, _ = copied(model)
    measured = viewed(own, sites={}, norm="transductive")
    sampler = GroupSampler(data, min(group, len(data)), seed)
    total: dict[str, tuple[Tensor, Tensor]] = {}
    for i in range(groups):
        statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        x = sampler.batch(i, 1).x
        refuse_not_finite(x, "x")
        measured(x, {}, statistics=statistics)
        for name, (mean, variance) in task_mean(statistics).items():
            old = total.get(name, (torch.zeros_like(mean), torch.zeros_like(variance)))
            total[name] = (old[0] + mean / groups, old[1] + variance / groups)
    for name, (mean, variance) in total.items():
        module = own.module.get_submodule(name)
        if module.running_mean is not None:
            module.running_mean.copy_(mean)  # type: ignore[operator]
            module.running_var.copy_(variance)  # type: ignore[operator]
    return own
