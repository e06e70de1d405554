"""The implicit meta-step as a user of plain torch would write it: iMAML's loop, then conjugate gradients.

Source: iMAML (Rajeswaran et al. 2019, arXiv 1909.04630), algorithms 1 and 2; with metapeft's number of iterations and
relative residual to stop at, so that both do the same work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

import metapeft as mp
from benchmarks.speed_problems import RATE, Plain, Workload

Named = dict[str, Tensor]
ITERATIONS = 20


def looped(workload: Workload, plain: Plain, batch: mp.EpisodeBatch) -> Callable[[], Named]:
    """One task after the other."""
    objectives = _Objectives(workload, plain)

    def step() -> Named:
        total: Named = {}
        for t in range(workload.tasks):
            task = batch.tasks(slice(t, t + 1))
            data = (task.support_x[0], task.support_y[0], task.query_x[0], task.query_y[0])
            found = _gradient(
                workload, objectives, 1, lambda f, w, data=data: f(_first(w), *data).unsqueeze(0)
            )
            total = {name: total.get(name, 0.0) + value / workload.tasks for name, value in found.items()}
        return total

    return step


def vmapped(workload: Workload, plain: Plain, batch: mp.EpisodeBatch) -> Callable[[], Named]:
    """All tasks under `torch.func.vmap`, with one conjugate-gradient loop around it."""
    objectives = _Objectives(workload, plain)
    data = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)

    def step() -> Named:
        found = _gradient(workload, objectives, workload.tasks, lambda f, w: vmap(f)(w, *data))
        return {name: value / workload.tasks for name, value in found.items()}

    return step


def with_torchopt(workload: Workload, plain: Plain, batch: mp.EpisodeBatch) -> Callable[[], Named]:
    """`torchopt.nn.ImplicitMetaGradientModule`, with its conjugate gradients, a task after the other."""
    import torchopt

    double = next(plain.net.parameters()).dtype == torch.float64
    solver = torchopt.linear_solve.solve_cg(maxiter=ITERATIONS, rtol=1e-10 if double else 1e-5, atol=0.0)
    outer = {name: value for name, value in plain.net.named_parameters() if value.requires_grad}

    class Task(torchopt.nn.ImplicitMetaGradientModule, linear_solve=solver):  # type: ignore[misc, call-arg]
        def __init__(self, net: torch.nn.Module) -> None:
            super().__init__()
            self.register_meta_module("net", net)  # its parameters are the outer variables
            self.own = torch.nn.ParameterList(
                torch.nn.Parameter(dict(net.named_parameters())[name].detach().clone())
                for name in plain.inner
            )

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = functional_call(self.net, dict(zip(plain.inner, self.own)), (x,))
            return found

        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            centre = dict(self.net.named_parameters())
            away = sum((w - centre[name]).square().sum() for name, w in zip(plain.inner, self.own))
            found: Tensor = F.cross_entropy(self.forward(x), y) + workload.proximal / 2 * away
            return found

        def solve(self, x: Tensor, y: Tensor) -> None:
            for _ in range(workload.steps):
                with torch.enable_grad():
                    slopes = torch.autograd.grad(self.objective(x, y), list(self.own))
                with torch.no_grad():
                    for value, slope in zip(self.own, slopes):
                        value -= RATE * slope

    def step() -> Named:
        total = {name: torch.zeros_like(value) for name, value in outer.items()}
        for t in range(workload.tasks):
            task = Task(plain.net)
            task.solve(batch.support_x[t], batch.support_y[t])
            loss = F.cross_entropy(task(batch.query_x[t]), batch.query_y[t])
            found = torch.autograd.grad(loss, list(outer.values()), allow_unused=True, materialize_grads=True)
            for name, grad in zip(outer, found):
                total[name] += grad / workload.tasks
        return total

    return step


class _Objectives:
    """The two objectives of one task, as functions of its inner variables, at the module's own parameters."""

    def __init__(self, workload: Workload, plain: Plain) -> None:
        self.net, self.inner, self.proximal = plain.net, plain.inner, workload.proximal
        self.parameters: Named = dict(plain.net.named_parameters())
        self.outer = {name: self.parameters[name] for name in plain.outer}

    def support(self, w: Named, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        loss = F.cross_entropy(functional_call(self.net, {**self.parameters, **w}, (sx,)), sy)
        away = sum((value - self.parameters[name]).square().sum() for name, value in w.items())
        return loss + self.proximal / 2 * away

    def query(self, w: Named, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(self.net, {**self.parameters, **w}, (qx,)), qy)


def _gradient(workload: Workload, objectives: _Objectives, tasks: int, each: Callable[..., Tensor]) -> Named:
    """Sum over tasks of `dF/du - (d^2 f / du dw) H^-1 dF/dw`; `each(objective, w)` gives one value a task."""
    names = objectives.inner
    w = {
        name: objectives.parameters[name].detach().expand(tasks, *objectives.parameters[name].shape)
        for name in names
    }
    for _ in range(workload.steps):
        w = {name: value.detach().requires_grad_() for name, value in w.items()}
        slopes = torch.autograd.grad(each(objectives.support, w).sum(), list(w.values()))
        w = {name: value - RATE * slope for (name, value), slope in zip(w.items(), slopes)}
    w = {name: value.detach().requires_grad_() for name, value in w.items()}
    inner, outer = list(w.values()), list(objectives.outer.values())
    slopes = torch.autograd.grad(each(objectives.support, w).sum(), inner, create_graph=True)
    found = torch.autograd.grad(
        each(objectives.query, w).sum(), [*inner, *outer], allow_unused=True, materialize_grads=True
    )
    right, direct = list(found[: len(inner)]), found[len(inner) :]
    q = _conjugate_gradients(lambda v: list(torch.autograd.grad(slopes, inner, v, retain_graph=True)), right)
    mixed = torch.autograd.grad(slopes, outer, q, allow_unused=True, materialize_grads=True)
    return {name: a - b for name, a, b in zip(objectives.outer, direct, mixed)}


def _conjugate_gradients(
    product: Callable[[list[Tensor]], list[Tensor]], right: list[Tensor]
) -> list[Tensor]:
    """`H^-1 right` with step sizes and residuals of each task, `(T, ...)`."""
    tolerance = 1e-10 if right[0].dtype == torch.float64 else 1e-5
    sizes = [part[0].numel() for part in right]

    def rows(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.flatten(1) for part in parts], 1)

    def parts(flat: Tensor) -> list[Tensor]:
        return [part.view_as(like) for part, like in zip(torch.split(flat, sizes, 1), right)]

    g = rows(right)
    q, r, p = torch.zeros_like(g), g, g
    squared = r.square().sum(1)
    least = tolerance**2 * squared
    for _ in range(ITERATIONS):
        active = squared > least
        if not bool(active.any()):
            break
        image = rows(product(parts(p)))
        alpha = torch.where(active, squared / (p * image).sum(1), 0.0).unsqueeze(1)
        q, r = q + alpha * p, r - alpha * image
        squared, before = r.square().sum(1), squared
        p = r + torch.where(active, squared / before, 0.0).unsqueeze(1) * p
    return parts(q)


def _first(w: Named) -> Named:
    return {name: value[0] for name, value in w.items()}
