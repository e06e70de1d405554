"""Adam and AdamW, differentiable also where a gradient is 0."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from metapeft.base.arguments import number
from metapeft.inner.descent import Descent, Per, Setting, is_on, value_of
from metapeft.inner.solver import Bound, Tensors


def safe_sqrt(x: Tensor) -> Tensor:
    """`sqrt(x)`, with derivative 0 instead of infinity at 0.

    Example:
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> torch.autograd.grad(safe_sqrt(x).sum(), x)
        (tensor([0.0000, 0.2500]),)
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


class Adam(Descent):
    """Adam, as `torch.optim.Adam` has it: direction `m_hat / (sqrt(v_hat) + eps)`.

    `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `m_hat = m / (1 - b1^(k+1))`, `v_hat` likewise; where it is
    warm-started, k counts the steps of all runs. Where every gradient so far was 0 the square root has derivative 0.
    Source: Kingma & Ba 2015, algorithm 1.

    Args:
        steps, lr, rates, proximal, weight_decay, clip, log_rates: as in `SGD` (the decay is part of the gradient).
        betas: b1 and b2, in [0, 1).
        eps: above 0. eps_root: added under the root, `m_hat / (sqrt(v_hat + eps_root) + eps)`, where derivatives by
            small gradients are to stay small, as in optax and TorchOpt.

    Example:
        >>> from metapeft.inner import solve
        >>> solve(lambda u, w: 5 * w["x"], {}, {"x": torch.tensor(0.0)}, Adam(steps=3, lr=0.1))
        {'x': tensor(-0.3000)}
    """

    def __init__(
        self,
        steps: int,
        lr: Setting = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        rates: Per | None = None,
        proximal: Setting = 0.0,
        weight_decay: Setting = 0.0,
        clip: float | None = None,
        log_rates: bool = False,
    ) -> None:
        super().__init__(steps, lr, rates, proximal, weight_decay, clip, log_rates)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas={betas!r} has to be a pair of numbers in [0, 1)")
        given: dict[str, Any] = {"betas[0]": betas[0], "betas[1]": betas[1]}
        number(0, 1, **given)
        number(above=True, eps=eps)
        number(eps_root=eps_root)
        self.betas, self.eps, self.eps_root = (betas[0], betas[1]), eps, eps_root

    def init(self, u: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> dict[str, Any]:
        zeros = {name: torch.zeros_like(value, requires_grad=False) for name, value in w.items()}
        return {**super().init(u, w), "m": zeros, "v": zeros, "before": 0}

    def kept(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**super().kept(state), "before": state["before"] + self.steps}

    def direction(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Tensors, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        b1, b2 = self.betas
        m = {name: torch.lerp(state["m"][name], grad, 1 - b1) for name, grad in grads.items()}
        v = {name: torch.addcmul(b2 * state["v"][name], g, g, value=1 - b2) for name, g in grads.items()}
        count = state["before"] + k + 1
        first, second = 1 - b1**count, math.sqrt(1 - b2**count)
        if self.eps_root:
            roots = {name: (value / second**2 + self.eps_root).sqrt() for name, value in v.items()}
        else:
            roots = {name: safe_sqrt(value) / second for name, value in v.items()}
        direction = {name: (m[name] / first) / (roots[name] + self.eps) for name in grads}
        return direction, {**state, "m": m, "v": v}


class AdamW(Adam):
    """Adam with decoupled decay: `w <- (1 - lr weight_decay) w - lr direction`, as `torch.optim.AdamW`.

    With decay its resting point minimises no objective, so implicit engines refuse it.
    Source: Loshchilov & Hutter 2019, algorithm 2.

    Example:
        >>> from metapeft.inner import solve
        >>> solve(lambda u, w: w["x"], {}, {"x": torch.tensor(1.0)}, AdamW(steps=1, lr=0.1, weight_decay=1.0))
        {'x': tensor(0.8000)}
    """

    decoupled: ClassVar[bool] = True

    def __init__(
        self,
        steps: int,
        lr: Setting = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        eps_root: float = 0.0,
        rates: Per | None = None,
        proximal: Setting = 0.0,
        weight_decay: Setting = 1e-2,
        clip: float | None = None,
        log_rates: bool = False,
    ) -> None:
        super().__init__(
            steps,
            lr,
            betas,
            eps=eps,
            eps_root=eps_root,
            rates=rates,
            proximal=proximal,
            weight_decay=weight_decay,
            clip=clip,
            log_rates=log_rates,
        )

    def direction(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Tensors, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        direction, state = super().direction(k, u, w, grads, state)
        if is_on(self.weight_decay):
            decay = value_of(self.weight_decay, u)
            direction = {name: value + decay * w[name] for name, value in direction.items()}
        return direction, state

    def objective(
        self, inner: Bound, u: Mapping[str, Tensor], w: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> Tensor:
        if is_on(self.weight_decay):
            raise ValueError(
                f"AdamW with weight_decay={self.weight_decay!r} comes to rest at a point that minimises no "
                "objective, so there is nothing for an implicit method to differentiate: use Adam, or unroll"
            )
        return super().objective(inner, u, w, start)
