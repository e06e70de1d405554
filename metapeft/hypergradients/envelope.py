"""The partial derivative at the adapted point."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metapeft.hypergradients.checked_result import finish, gradient, outer_value
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.loop import plain_steps
from metapeft.inner.solver import Solver
from metapeft.inner.variables import constants, leaf_tensors, starting_point

NOTE = (
    "envelope: an approximation, unless outer and inner objective are the same function of the same data "
    "and the adapted point is stationary"
)


@dataclass(frozen=True)
class Envelope(Engine):
    """`partial_u F(u, w)` at the adapted point `w = w_K`, as if w did not depend on u (Danskin).

    It is exact when F and f are the same function of the same data and w is stationary (`grad_w F = 0`); else
    an approximation, and `log["note"]` says so. Time: K inner gradients and one outer gradient; memory of one
    inner step.
    Source: LoRA-ML as published (Block et al. 2025), where A is updated at the adapted U_t.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> both = lambda u, w: (w["x"] - u["c"]).square() / 2 + u["c"]
        >>> c, x = torch.tensor(3.0), torch.tensor(0.0)
        >>> hypergradient(both, both, {"c": c}, {"x": x}, SGD(1, 1.0), Envelope()).grads
        {'c': tensor(1.)}
    """

    repeats_batches = True

    def compute(self, problem: Problem) -> Result:
        u = leaf_tensors(problem.u)
        with torch.no_grad():
            start = starting_point(problem.w0, constants(u))
        path = plain_steps(problem.batches, u, start, problem.solver, problem.task_axis)
        w = path.w[-1]
        values, aux = outer_value(problem, u, w)
        grads = gradient(values, tuple(u.values()))
        return finish(self, problem, u, w, values, grads, aux, path.values, note=NOTE)

    def unreachable(self, solver: Solver | None) -> dict[str, str]:
        return {
            "starts": "the envelope takes the adapted point as a constant, so the starts receive no "
            'gradient; use "unroll" or "first-order".',
            "rates": "the envelope takes the adapted point as a constant, so the inner rates receive no "
            'gradient; use "unroll" or "first-order".',
        }
