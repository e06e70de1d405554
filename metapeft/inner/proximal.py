"""Gradient steps followed by a proximal map or a projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from metapeft.inner.descent import Descent, Setting
from metapeft.inner.fixed_point import checked
from metapeft.inner.solver import Bound, Tensors


class Proximal(Descent):
    """Proximal gradient: `w_{k+1} = prox(u, w_k - lr grad f(u, w_k), lr)`.

    It is differentiable wherever the proximal map is; its resting point is not stationary for f alone, so
    implicit engines refuse it. Source: Parikh & Boyd 2014, section 4.2; Bertrand et al. 2020 for unrolling it.

    Args:
        steps: number of steps.
        prox: `prox(u, w, lr) -> w`, `argmin_z penalty(u, z) + ||z - w||^2 / (2 lr)`, on name -> tensor.
        lr: a number, or a tensor `()`, or a function of u that gives one.

    Example:
        >>> import torch
        >>> from metapeft.inner import solve
        >>> def soft(u, w, lr):  # the proximal map of the 1-norm
        ...     return {name: x.sign() * (x.abs() - lr).clamp_min(0) for name, x in w.items()}
        >>> start, target = {"x": torch.zeros(2)}, torch.tensor([3.0, 0.5])
        >>> solve(lambda u, w: (w["x"] - target).square().sum() / 2, {}, start, Proximal(9, soft, lr=1.0))
        {'x': tensor([2., 0.])}
    """

    def __init__(
        self, steps: int, prox: Callable[[Mapping[str, Tensor], Tensors, Any], Tensors], lr: Setting
    ) -> None:
        super().__init__(steps, lr)
        if not callable(prox):
            raise ValueError(f"prox={prox!r} has to be a function (u, w, lr) -> w")
        self.prox = prox

    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "prox": self.prox, "lr": self.lr}

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        moved, state = super().step(k, u, w, grads, state)
        lr = self.lr(u) if callable(self.lr) else self.lr
        return checked(self.prox(u, moved, lr), w, "the proximal map"), state

    def objective(
        self, inner: Bound, u: Mapping[str, Tensor], w: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> Tensor:
        raise ValueError(
            f"{type(self).__name__} does not end at a stationary point of the inner objective, which is what "
            "an implicit method differentiates: use unroll, recompute or forward"
        )


class Projected(Proximal):
    """Projected gradient: `w_{k+1} = project(u, w_k - lr grad f(u, w_k))`.

    Args:
        steps: number of steps.
        project: `project(u, w) -> w`, onto the feasible set.
        lr: as in `Proximal`.

    Example:
        >>> import torch
        >>> from metapeft.inner import solve
        >>> onto = lambda u, w: {name: x.clamp(0, 1) for name, x in w.items()}
        >>> away, start = lambda u, w: (w["x"] - 3).square(), {"x": torch.tensor(0.0)}
        >>> solve(away, {}, start, Projected(steps=9, project=onto, lr=0.1))
        {'x': tensor(1.)}
    """

    def __init__(
        self, steps: int, project: Callable[[Mapping[str, Tensor], Tensors], Tensors], lr: Setting
    ) -> None:
        super().__init__(steps, lambda u, w, lr: project(u, w), lr)
        if not callable(project):
            raise ValueError(f"project={project!r} has to be a function (u, w) -> w")
        self.project = project

    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "project": self.project, "lr": self.lr}
