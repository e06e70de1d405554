"""What standard retraining trains: a copy of a backbone and a temporary head over all classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.base import state
from metapeft.base.finite import refuse_not_finite
from metapeft.base.machine.precision import check_autocast, forward_precision, precision_name
from metapeft.heads.centroids import Prototypes
from metapeft.heads.normalized import unit
from metapeft.hypergradients.problem import Problem, Result, resolve
from metapeft.learner.learner import Learner
from metapeft.learner.losses import row_loss
from metapeft.learner.settings import of_loss
from metapeft.training.image_groups import ImageGroups
from metapeft.training.task import Task
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import copied, feature_size, viewed

SCALE = 10.0  # of cosine logits at the start


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
        head: Literal["linear", "cosine"] = "linear",
        loss: Callable[..., Tensor] = F.cross_entropy,
    ) -> None:
        if head not in ("linear", "cosine"):
            raise ValueError(f"head={head!r}: allowed are 'linear' and 'cosine'")
        self.head, self.loss, self.row_loss = head, loss, row_loss(loss)
        self.model, trainable = copied(model, False, device, dtype)
        self.batch_model = viewed(self.model, sites={}, norm="transductive")
        size = feature_size(
            self.model, "end it in one, which retraining replaces by a softmax over all classes"
        )
        like = self.model.like
        check_autocast(autocast, like)
        self.autocast = autocast
        bound = size**-0.5
        weight = torch.empty(classes, size, dtype=torch.float32).uniform_(
            -bound, bound, generator=torch.Generator().manual_seed(seed)
        )
        self.variables: dict[str, Tensor] = {
            **{
                f"weights.{name}": value for name, value in ((n, self.model.parameters[n]) for n in trainable)
            },
            "softmax.weight": weight.to(like),
        }
        if head == "cosine":
            self.variables["softmax.log_scale"] = torch.tensor(math.log(SCALE), dtype=torch.float32).to(like)
        else:
            self.variables["softmax.bias"] = like.new_zeros(classes)
        for name, value in (softmax or {}).items():
            if not name.startswith("softmax.") or value.shape != getattr(
                self.variables.get(name), "shape", None
            ):
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
        y = batch.y.to(self.model.like.device)
        statistics: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

        def outer(u: dict[str, Tensor], w: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            weights = {n.removeprefix("weights."): v for n, v in u.items() if n.startswith("weights.")}
            with forward_precision(self.autocast, u["softmax.weight"]):
                features = self.batch_model.features(x, {}, weights=weights, statistics=statistics)
            logits = self._logits(features.to(u["softmax.weight"]), u)
            rows = self.row_loss(logits.flatten(0, 1), y.flatten())
            if rows.shape != (y.numel(),):
                raise ValueError(
                    f"loss returned shape {tuple(rows.shape)} for {y.numel()} images: it must return one value an image"
                )
            loss = rows.view_as(y).mean(1)
            return loss, {"accuracy": (logits.argmax(-1) == y).to(loss.dtype).mean(1)}

        found = self._direct(
            Problem(outer, None, self.trained, {}, method="direct", task_axis=True, has_aux=True)
        )
        log = {**found.log, **found.aux, "statistics": statistics}
        return Result(found.value, found.grads, found.w, None, log)

    def _logits(self, features: Tensor, u: Mapping[str, Tensor]) -> Tensor:
        """Logits over all classes, `(G, n, classes)`: linear, or `s cos(f, w)` with a learned s."""
        if self.head == "linear":
            return F.linear(features, u["softmax.weight"], u["softmax.bias"])
        return u["softmax.log_scale"].exp() * F.linear(unit(features), unit(u["softmax.weight"]))

    @property
    def learner(self) -> Learner:
        """Nearest centroids of features of length one, as the backbone stands: what a validation evaluates."""
        return Learner(self.model, head=Prototypes(normalize="l2"), outer=(), autocast=self.autocast)

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
        said: dict[str, Any] = (
            {} if precision == "float32" else {"precision": precision}
        )  # as in runs of before
        if self.head != "linear":
            said["head"] = self.head
        if self.loss is not F.cross_entropy:
            said["loss"] = of_loss(self.loss)
        return {"method": "sr", "shapes": shapes, **said}
