"""Forward mode: one tangent per entry of the outer variables."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.hypergradients.checked_result import finish, outer_value, refuse_rigid_solver
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.hypergradients.unroll import reached
from metapeft.inner.loop import plain_steps
from metapeft.inner.solver import Bound, Tensors
from metapeft.inner.variables import constants, leaf_tensors, starting_point


def _inner_gradients(inner: Bound, u: Mapping[str, Tensor], w: Tensors) -> Tensors:
    grads: Tensors = torch.func.grad(lambda w: inner(u, w).sum())(w)
    return grads


@dataclass(frozen=True)
class Forward(Engine):
    """`dF/du_i = partial_i F + partial_w F z_i`, with `z_i = dw_K/du_i` carried along the steps: exact.

    Time: about (number of entries of u) x (the inner loop), batched by `torch.func.vmap`; memory does not
    grow with K, but holds one tangent of the inner state and of one step an entry. For a handful of outer
    variables, such as rates and penalties. Source: Franceschi et al. 2017, section 3.2.

    Args:
        chunk: number of entries of u that are carried at once; None: all.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> half = lambda u, w: w["x"].square() / 2
        >>> t, start = torch.tensor(2.0), lambda u: {"x": u["t"]}
        >>> hypergradient(half, half, {"t": t}, start, SGD(1, 0.5), Forward()).grads
        {'t': tensor(0.5000)}
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None:
            whole(chunk=self.chunk)

    def compute(self, problem: Problem) -> Result:
        solver, batches, u = problem.solver, problem.batches, constants(problem.u)
        refuse_rigid_solver(self, solver)
        with torch.no_grad():
            start = starting_point(problem.w0, u)
        path = plain_steps(batches, u, start, solver, problem.task_axis)
        with torch.no_grad():
            values, aux = outer_value(problem, u, path.w[-1])

        def mean_value(u: Tensors) -> Tensor:
            w = starting_point(problem.w0, u)
            state = solver.init(u, w)
            for k in range(solver.steps):
                given = batches.batch(k) if solver.reads == "batch" else _inner_gradients(batches(k), u, w)
                w, state = solver.step(k, u, w, given, state)
            return outer_value(problem, u, w)[0].mean()

        def slope(tangent: Tensors) -> Tensor:
            found: Tensor = torch.func.jvp(mean_value, (u,), (tangent,))[1]
            return found

        sizes = [value.numel() for value in u.values()]
        units = torch.eye(sum(sizes), dtype=values.dtype, device=values.device)
        rows = torch.split(units, sizes, dim=1)
        tangents = {name: row.reshape(len(units), *u[name].shape).to(u[name]) for name, row in zip(u, rows)}
        with warnings.catch_warnings():  # torch's own, while it loads its forward-mode formulas
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            try:
                slopes = torch.func.vmap(slope, chunk_size=self.chunk)(tangents)
            except RuntimeError as error:
                raise ValueError(
                    "forward mode runs objectives and solver under torch.func.jvp and vmap, which refuse something "
                    f'in them; use "unroll" or "recompute". PyTorch says: {error}'
                ) from error
        entries = torch.split(slopes, sizes)
        grads: list[Tensor | None] = [part.reshape(value.shape) for part, value in zip(entries, u.values())]
        if any(grad is not None and not bool(grad.any()) for grad in grads):
            depends = reached(problem, u)  # forward mode itself cannot tell a zero from no dependence
            grads = [grad if depends[name] else None for name, grad in zip(u, grads)]
        return finish(self, problem, leaf_tensors(u), path.w[-1], values, grads, aux, path.values)
