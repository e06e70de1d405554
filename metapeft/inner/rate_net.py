"""Rates and decay that a small net writes anew at every inner step, from gradients and weights of the task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base.arguments import number, whole
from metapeft.inner.solver import Bound, Solver, Tensors

_OWN = ("net.hidden.weight", "net.hidden.bias", "net.out.weight", "net.out.bias")


class RateNet(Solver):
    """`w_{k+1} = e^{b_k} w_k - lr e^{a_k} grad_w f(u, w_k)`, each tensor with a rate and a decay of its own.

    `(a_k, b_k) = bound tanh((V relu(W norm(tau_k) + c) + d_k) / bound)`, where `tau_k` holds the mean of each tensor's
    gradient and of its entries and norm is a layer norm without parameters. V and d start at 0, so that it starts as
    gradient descent. `u["rates.net.*"]` hold what is learned: W `(hidden, 2n)`, c, V `(2n, hidden)` and d `(steps, 2n)`
    for n tensors, in the order of their names; further steps at test repeat the last row of d.

    Args:
        steps: number of steps K.
        lr: the rate that it starts with.
        hidden: width of the net.
        bound: the largest logarithm of a factor.

    Raises:
        ValueError: numbers out of range; from `init`, learned tensors that are missing or of other shapes; from
            implicit engines, for it minimises no objective.

    Source: Baik et al. 2020 (ALFA, arXiv 2011.00209), eq. 4 to 6, there with the rate and the decay of each layer
    themselves, here with their logarithms, which keep their signs.

    Example:
        >>> solver = RateNet(steps=2, lr=0.5, hidden=4)
        >>> start = {"x": torch.zeros(1, 3)}
        >>> solver.rates(start)["rates.net.out.bias"].shape
        torch.Size([2, 2])
        >>> w, _ = solver.step(0, solver.rates(start), start, {"x": torch.ones(1, 3)}, {})
        >>> w["x"]
        tensor([[-0.5000, -0.5000, -0.5000]])
    """

    def __init__(self, steps: int, lr: float, hidden: int = 32, bound: float = 2.0) -> None:
        whole(0, steps=steps)
        whole(hidden=hidden)
        number(above=True, bound=bound)
        number(lr=lr)
        self.steps, self.lr, self.hidden, self.bound = steps, lr, hidden, bound
        self._task_axis = True

    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "lr": self.lr, "hidden": self.hidden, "bound": self.bound}

    def with_task_axis(self, task_axis: bool) -> RateNet:
        other = self.with_steps(self.steps)
        other._task_axis = task_axis
        return other

    def rates(self, starts: Mapping[str, Tensor]) -> Tensors:
        """First values of what is learned, `"rates.net.<name>"`: the same random W whatever the seed, all else 0."""
        size = 2 * len(starts)
        like = next(iter(starts.values()))
        bound = math.sqrt(6.0 / max(size, 1))
        weight = torch.empty(self.hidden, size, dtype=torch.float32).uniform_(
            -bound, bound, generator=torch.Generator().manual_seed(0)
        )
        shapes = [(self.hidden,), (size, self.hidden), (max(self.steps, 1), size)]
        values = [weight.to(like), *(like.new_zeros(shape) for shape in shapes)]
        return {f"rates.{name}": value for name, value in zip(_OWN, values)}

    def init(self, u: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> dict[str, Any]:
        for name, expected in self.rates(w).items():
            found = u.get(name)
            if found is None or found.shape[-1] != expected.shape[-1]:
                what = "is missing" if found is None else "is of other variables"
                raise ValueError(f"RateNet reads u[{name!r}], which {what}: add solver.rates(starts) to u")
        return {}

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        weight, bias, out, offset = (u[f"rates.{name}"] for name in _OWN)
        names = sorted(w)
        read = [self._mean(value[name]) for value in (grads, w) for name in names]
        shape = torch.broadcast_shapes(*(value.shape for value in read))  # type: ignore[no-untyped-call]
        tau = torch.stack([value.expand(shape) for value in read], -1)
        hidden = F.relu(F.linear(F.layer_norm(tau, tau.shape[-1:]), weight, bias))
        raw = F.linear(hidden, out) + offset[min(k, offset.shape[0] - 1)]
        factors = (self.bound * torch.tanh(raw / self.bound)).exp().unbind(-1)  # 2n of () or (T,)
        count = len(names)
        moved = {}
        for i, name in enumerate(names):
            value, grad = w[name], grads[name]
            rate, decay = (self._beside(factor, value) for factor in (factors[i], factors[count + i]))
            moved[name] = decay * value - self.lr * rate * grad
        return {name: moved[name] for name in w}, state

    def objective(
        self, inner: Bound, u: Mapping[str, Tensor], w: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> Tensor:
        if self.steps:
            raise ValueError(
                "RateNet minimises no objective, its decay moves where it stands still: implicit hypergradients need "
                "SGD or another; take 'unroll'"
            )
        return inner(u, w)

    def _mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor's entries, 0 where it has none: `()`, or `(T,)` with a task axis."""
        rows = value.reshape(value.shape[0], -1) if self._task_axis else value.flatten()
        return rows.sum(-1) / max(rows.shape[-1], 1)

    def _beside(self, factor: Tensor, value: Tensor) -> Tensor:
        return factor.view(-1, *[1] * (value.dim() - 1)) if self._task_axis else factor
