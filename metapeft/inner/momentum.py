"""Gradient descent with a velocity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metapeft.base.arguments import number
from metapeft.inner.descent import Descent, Per, Setting
from metapeft.inner.solver import Tensors


class Momentum(Descent):
    """Heavy ball, as in `torch.optim.SGD`: direction `v_k = mu v_{k-1} + (1 - tau) g_k`, `v_0 = g_0`.

    With `nesterov` the direction is `g_k + mu v_k`.

    Args:
        steps, lr, rates, proximal, weight_decay, clip, log_rates: as in `SGD`.
        momentum: mu, in [0, 1).
        dampening: tau, in [0, 1); 0 with `nesterov`.
        nesterov: look one velocity ahead.

    Example:
        >>> import torch
        >>> from metapeft.inner import solve
        >>> solver = Momentum(steps=2, lr=0.5, momentum=0.5)
        >>> solve(lambda u, w: w["x"], {}, {"x": torch.tensor(0.0)}, solver)  # - 0.5 - 0.5 (1 + 0.5)
        {'x': tensor(-1.2500)}
    """

    def __init__(
        self,
        steps: int,
        lr: Setting,
        momentum: float = 0.9,
        *,
        dampening: float = 0.0,
        nesterov: bool = False,
        rates: Per | None = None,
        proximal: Setting = 0.0,
        weight_decay: Setting = 0.0,
        clip: float | None = None,
        log_rates: bool = False,
    ) -> None:
        super().__init__(steps, lr, rates, proximal, weight_decay, clip, log_rates)
        number(0, 1, momentum=momentum, dampening=dampening)
        if nesterov and (dampening or not momentum):
            raise ValueError(
                f"nesterov=True needs momentum above 0 and no dampening, not {momentum}, {dampening}"
            )
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov

    def direction(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Tensors, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        velocity = grads
        if "velocity" in state:
            velocity = {
                name: self.momentum * state["velocity"][name] + (1 - self.dampening) * grad
                for name, grad in grads.items()
            }
        state = {**state, "velocity": velocity}
        if not self.nesterov:
            return velocity, state
        return {name: grad + self.momentum * velocity[name] for name, grad in grads.items()}, state


class Nesterov(Momentum):
    """`Momentum` with `nesterov=True` (Sutskever et al. 2013, as in `torch.optim.SGD`).

    Example:
        >>> Nesterov(steps=2, lr=0.5).nesterov
        True
    """

    def __init__(
        self,
        steps: int,
        lr: Setting,
        momentum: float = 0.9,
        *,
        rates: Per | None = None,
        proximal: Setting = 0.0,
        weight_decay: Setting = 0.0,
        clip: float | None = None,
        log_rates: bool = False,
    ) -> None:
        super().__init__(
            steps,
            lr,
            momentum,
            nesterov=True,
            rates=rates,
            proximal=proximal,
            weight_decay=weight_decay,
            clip=clip,
            log_rates=log_rates,
        )

    def settings(self) -> dict[str, Any]:
        fixed = ("dampening", "nesterov")
        return {name: value for name, value in super().settings().items() if name not in fixed}
