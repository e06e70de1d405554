"""Reverse mode that keeps inner states, not their graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.hypergradients.checked_result import finish, gradient, outer_value, refuse_rigid_solver
from metapeft.hypergradients.problem import Engine, Problem, Result
from metapeft.inner.loop import Path, plain_steps
from metapeft.inner.nested_tensors import rebuild, tensors
from metapeft.inner.objective import inner_gradients
from metapeft.inner.solver import Tensors
from metapeft.inner.variables import distinct, leaf_tensors, starting_point

Adjoints = list[Tensor | None]


def pull_back(outputs: Sequence[Tensor], adjoints: Adjoints, inputs: Sequence[Tensor]) -> Adjoints:
    """`sum_i adjoint_i d output_i / d input`, None where nothing depends on an input."""
    pairs = [(out, adj) for out, adj in zip(outputs, adjoints) if adj is not None and out.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    heads, cotangents = zip(*pairs)
    return list(torch.autograd.grad(heads, inputs, cotangents, allow_unused=True))


def added(total: Adjoints, more: Adjoints) -> Adjoints:
    return [b if a is None else a if b is None else a + b for a, b in zip(total, more)]


class Room:
    """Room for many copies of some tensors, taken at once.

    Small blocks that stay between large ones that go would leave the heap full of holes: with 100 inner values of 4
    tasks alone kept one by one, a step on Conv-4-64 took 1.4 times the memory.
    """

    def __init__(self, like: Sequence[Tensor], count: int) -> None:
        self.rows = [value.new_empty(count, *value.shape) for value in like]

    def keep(self, place: int, values: list[Tensor]) -> list[Tensor]:
        """The values, copied to their place; as they are where their number or shapes have changed."""
        if [value.shape for value in values] != [rows.shape[1:] for rows in self.rows]:
            return values
        return [rows[place].copy_(value) for rows, value in zip(self.rows, values)]


@dataclass(frozen=True)
class Recompute(Engine):
    """`d/du F(u, w_K(u))` as `Unroll`, with the graph of one inner step alive at a time.

    The adjoints of iterate and state, `a_k = a_{k+1} d(w_{k+1}, s_{k+1})/d(w_k, s_k)`, run backwards over
    stored iterates and states, each step evaluated once more: exact. Time: `Unroll` and K inner gradients
    (nearly 2 K where `every` > 1). Memory: one step, and K iterates; `K/every + every` of them otherwise.
    Source: Griewank 1992 (checkpointing); Chen et al. 2016.

    Args:
        every: keep the iterate of every so many steps; `"sqrt"`: every ceil(sqrt(K)), memory O(sqrt(K)).

    Example:
        >>> import torch
        >>> from metapeft.hypergradients import hypergradient
        >>> from metapeft.inner import SGD
        >>> half = lambda u, w: w["x"].square() / 2
        >>> t, start = torch.tensor(2.0), lambda u: {"x": u["t"]}
        >>> hypergradient(half, half, {"t": t}, start, SGD(1, 0.5), Recompute()).grads
        {'t': tensor(0.5000)}
    """

    every: int | Literal["sqrt"] = 1

    def __post_init__(self) -> None:
        if isinstance(self.every, str) and self.every != "sqrt":
            raise ValueError(f'every={self.every!r}: allowed are a whole number of at least 1, and "sqrt"')
        if self.every != "sqrt":
            whole(every=self.every)

    def compute(self, problem: Problem) -> Result:
        solver, u = problem.solver, leaf_tensors(problem.u)
        refuse_rigid_solver(self, solver)
        steps: int = solver.steps
        every = max(math.isqrt(max(steps - 1, 0)) + 1, 1) if self.every == "sqrt" else self.every
        start = distinct(starting_point(problem.w0, u))
        state = solver.init(u, start)
        marks = [*range(0, steps, every), steps]
        checkpoints, inner_values = self._forward(problem, u, start, state, marks)

        w = leaf_tensors(checkpoints.w[-1])
        values, aux = outer_value(problem, u, w)
        found = gradient(values, [*u.values(), *w.values()])
        grads, adjoints = found[: len(u)], found[len(u) :]  # nothing depends on the last state
        for index in reversed(range(len(marks) - 1)):
            segment = self._segment(problem, u, checkpoints, index, marks)
            for k in reversed(range(marks[index], marks[index + 1])):
                at = k - marks[index]
                more, adjoints = self._step_back(problem, u, segment.w[at], segment.states[at], k, adjoints)
                grads = added(grads, more)
        starts = [*start.values(), *tensors(state)]
        grads = added(grads, pull_back(starts, adjoints, list(u.values())))
        return finish(self, problem, u, w, values, grads, aux, inner_values)

    def _forward(
        self, problem: Problem, u: Tensors, start: Tensors, state: dict[str, Any], marks: list[int]
    ) -> tuple[Path, list[Tensor]]:
        """Iterates and states at the marks, and all inner values."""
        w = {name: value.detach() for name, value in start.items()}
        state = rebuild(state, (value.detach() for value in tensors(state)))
        room = Room([*w.values(), *tensors(state)], len(marks))
        iterates, states = [w], [state]
        of_values: Room | None = None
        inner_values: list[Tensor] = []
        for place, (first, last) in enumerate(itertools.pairwise(marks)):
            path = plain_steps(
                problem.batches, u, iterates[-1], problem.solver, problem.task_axis, states[-1], first, last
            )
            own = room.keep(place, [*path.w[-1].values(), *tensors(path.states[-1])])
            iterates.append(dict(zip(path.w[-1], own)))
            states.append(rebuild(path.states[-1], own[len(w) :]))
            for k, value in enumerate(path.values, first):
                of_values = of_values or Room([value], marks[-1])
                inner_values += of_values.keep(k, [value])
        return Path(iterates, states, inner_values, None), inner_values

    def _segment(self, problem: Problem, u: Tensors, checkpoints: Path, index: int, marks: list[int]) -> Path:
        """All iterates of one segment; its first is a checkpoint, the others are computed again."""
        w, state = checkpoints.w[index], checkpoints.states[index]
        first, last = marks[index], marks[index + 1] - 1
        return plain_steps(
            problem.batches, u, w, problem.solver, problem.task_axis, state, first, last, keep=True
        )

    def _step_back(
        self, problem: Problem, u: Tensors, w: Tensors, state: dict[str, Any], k: int, adjoints: Adjoints
    ) -> tuple[Adjoints, Adjoints]:
        """Gradients for u from step k, and the adjoints of `(w_k, state_k)`."""
        solver, w = problem.solver, leaf_tensors(w)
        entries = [
            value.detach().requires_grad_() if value.is_floating_point() else value
            for value in tensors(state)
        ]
        state = rebuild(state, entries)
        if solver.reads == "batch":
            given = problem.batches.batch(k)
        else:
            _, given = inner_gradients(problem.batches(k), u, w, problem.task_axis, create_graph=True)
        after, state_after = solver.step(k, u, w, given, state)
        outputs = [*after.values(), *tensors(state_after)]
        inputs = [*u.values(), *w.values(), *(entry for entry in entries if entry.requires_grad)]
        found = pull_back(outputs, adjoints, inputs)
        rest = iter(found[len(u) + len(w) :])
        of_state = [next(rest) if entry.requires_grad else None for entry in entries]
        return found[: len(u)], found[len(u) : len(u) + len(w)] + of_state
