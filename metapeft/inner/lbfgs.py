"""L-BFGS with a fixed memory and a fixed rate, a task its own curvature pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.inner.descent import Descent, Per, Setting
from metapeft.inner.solver import Tensors


class LBFGS(Descent):
    """Direction `H_k g_k`, H_k the inverse Hessian that the last `memory` pairs `(s, y)` suggest.

    As `torch.optim.LBFGS` without line search: the first direction is `min(1, 1/||g||_1) g`, a pair with
    `y's <= 1e-10` is left out, `H_k` starts from `(y's / y'y) I`. It is differentiable through the pairs.
    Source: Nocedal & Wright 2006, algorithm 7.4.

    Args:
        steps, rates, proximal, weight_decay: as in `SGD`.
        lr: rate of every step, 1 by default.
        memory: number of pairs kept, 1 or more.

    Example:
        >>> from metapeft.inner import solve
        >>> c = torch.tensor([1.0, 10.0], dtype=torch.float64)
        >>> start = {"x": torch.zeros(2, dtype=torch.float64)}
        >>> found = solve(lambda u, w: (c * (w["x"] - 1).square()).sum() / 2, {}, start, LBFGS(steps=12))
        >>> bool((found["x"] - 1).abs().max() < 1e-6)
        True
    """

    needs_task_axis = True

    def __init__(
        self,
        steps: int,
        lr: Setting = 1.0,
        memory: int = 10,
        *,
        rates: Per | None = None,
        proximal: Setting = 0.0,
        weight_decay: Setting = 0.0,
    ) -> None:
        super().__init__(steps, lr, rates, proximal, weight_decay)
        whole(memory=memory)
        self.memory = memory

    def _rows(self, values: Mapping[str, Tensor]) -> Tensor:
        """Name -> tensor as one matrix, a row a task."""
        tasks = next(iter(values.values())).shape[0] if self.task_axis else 1
        return torch.cat([value.reshape(tasks, -1) for value in values.values()], dim=1)

    def direction(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Tensors, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        x, g = self._rows(w), self._rows(grads)
        if "x" not in state:
            size = g.abs().sum(1, keepdim=True)
            found = torch.where(size > 1, 1 / torch.where(size > 1, size, 1.0), 1.0) * g
            empty = tuple(torch.zeros_like(like).detach() for like in (g, g, size))
            scale = torch.ones_like(size).detach()
            state = {**state, "pairs": [empty] * self.memory, "scale": scale, "x": x, "g": g}
            return self._named(found, w), state
        s, y = x - state["x"], g - state["g"]
        product = (y * s).sum(1, keepdim=True)
        accepted = product > 1e-10
        rho = torch.where(accepted, 1 / torch.where(accepted, product, 1.0), 0.0)
        square = torch.where(accepted, y.square().sum(1, keepdim=True), 1.0)
        scale = torch.where(accepted, product / square, state["scale"])
        # oldest first; a row whose new pair is left out keeps its old ones; rho = 0 does nothing
        pairs = [
            tuple(torch.where(accepted, new, old) for new, old in zip(later, pair))
            for pair, later in zip(state["pairs"], [*state["pairs"][1:], (s, y, rho)])
        ]
        found, weights = g, []
        for s, y, rho in reversed(pairs):
            weight = rho * (s * found).sum(1, keepdim=True)
            weights.append(weight)
            found = found - weight * y
        found = scale * found
        for (s, y, rho), weight in zip(pairs, reversed(weights)):
            found = found + (weight - rho * (y * found).sum(1, keepdim=True)) * s
        return self._named(found, w), {**state, "pairs": pairs, "scale": scale, "x": x, "g": g}

    def _named(self, matrix: Tensor, w: Tensors) -> Tensors:
        parts = torch.split(matrix, [value.numel() // len(matrix) for value in w.values()], dim=1)
        return {name: part.reshape(value.shape) for part, (name, value) in zip(parts, w.items())}
