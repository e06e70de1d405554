"""Reverse mode with an outer loss after every inner step, as MAML++ trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metapeft.base.arguments import number
from metapeft.hypergradients.checked_result import (
    finish,
    gradient,
    outer_value,
    refuse_batch_solver,
    refuse_rigid_solver,
)
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.objective import inner_gradients
from metapeft.inner.variables import constants, distinct, leaf_tensors, starting_point


@dataclass(frozen=True)
class MultiStep(Engine):
    """`d/du sum_k v_k mean_t F_t(u, w_k(u))`, k = 1 .. K, by reverse mode; `value` is that sum.

    It is exact for that sum. With `second_order=False` the inner gradients count as constants, as in `FirstOrder`.
    Time and memory: those of `Unroll`, and one outer forward and backward for each v_k above 0.
    Source: MAML++ (Antoniou et al. 2019, arXiv 1810.09502), eq. 4 and the paragraph on derivative annealing.

    Args:
        weights: v, K numbers of 0 or more that add up to 1; None: 1 for the last step, 0 for the others.
        second_order: whether the inner gradients are differentiated.

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> square, start = lambda u, w: w["x"].square(), lambda u: {"x": u["t"]}
        >>> found = hypergradient(square, square, {"t": torch.tensor(1.0)}, start, SGD(2, 0.25),
        ...                       MultiStep((0.5, 0.5)))
        >>> found.log["step_values"], found.grads  # x = t/2, t/4
        (tensor([0.2500, 0.0625]), {'t': tensor(0.3125)})
    """

    weights: Sequence[float] | None = None
    second_order: bool = True

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        object.__setattr__(self, "weights", tuple(self.weights))
        each: dict[str, Any] = {f"weights[{place}]": weight for place, weight in enumerate(self.weights)}
        number(**each)
        if not math.isclose(sum(self.weights), 1.0, rel_tol=1e-6):
            raise ValueError(f"weights={self.weights!r} add up to {sum(self.weights):g}: they have to give 1")

    def compute(self, problem: Problem) -> Result:
        solver, batches, u = problem.solver, problem.batches, leaf_tensors(problem.u)
        refuse_batch_solver(self, solver)
        refuse_rigid_solver(self, solver)
        steps: int = solver.steps
        weights = (*[0.0] * (steps - 1), 1.0) if self.weights is None else self.weights
        if len(weights) != max(steps, 1):
            raise ValueError(f"weights has {len(weights)} numbers, but the inner solver makes {steps} steps")
        inner_u = u if self.second_order else constants(u)
        w = distinct(starting_point(problem.w0, u))
        state, inner_values, parts = solver.init(u, w), [], []
        for k in range(steps):
            at = w if self.second_order else leaf_tensors(w)
            value, grads = inner_gradients(batches(k), inner_u, at, problem.task_axis, self.second_order)
            inner_values.append(value)
            w, state = solver.step(k, u, w, grads, state)
            if weights[k] and k < steps - 1:
                parts.append((weights[k], outer_value(problem, u, w)[0]))
        values, aux = outer_value(problem, u, w)
        parts.append((weights[-1], values))
        total = torch.stack([weight * part for weight, part in parts]).sum(0)
        log = {"step_values": torch.stack([part.detach() for _, part in parts])}
        found = gradient(total, tuple(u.values()))
        return finish(self, problem, u, w, total, found, aux, inner_values, **log)
