"""Inner variables that are kept from one run of a solver to the next, with the solver's state beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from metapeft.inner.nested_tensors import rebuild, tensors
from metapeft.inner.solver import Solver, Tensors
from metapeft.inner.wrapped import Wrapped


class WarmStart(dict[str, Tensor]):
    """Inner variables, name -> tensor, and the state (moments, velocities) of the solver that they come from.

    Wherever a start of the inner variables is accepted (`w0=`), so is this; the state goes with it.

    Args:
        variables: name -> tensor, `(T, ...)` where there are tasks.
        state: of the solver; None for a fresh one.

    Example:
        >>> kept = WarmStart({"x": torch.tensor([[1.0], [2.0]])}, {"m": {"x": torch.tensor([[3.0], [4.0]])}})
        >>> kept.tasks, kept.task(1), kept.task(1).state
        (2, {'x': tensor([[2.]])}, {'m': {'x': tensor([[4.]])}})
    """

    def __init__(self, variables: Mapping[str, Tensor], state: Mapping[str, Any] | None = None) -> None:
        super().__init__(variables)
        self.state = None if state is None else dict(state)

    @property
    def tasks(self) -> int:
        """T."""
        return next(iter(self.values())).shape[0]

    def task(self, index: int) -> WarmStart:
        """One of the tasks, as a start for one; ValueError for a number that none has."""
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self.tasks:
            raise ValueError(f"index={index!r}: there are tasks 0 to {self.tasks - 1}")
        return self.for_tasks(1, index)

    def for_tasks(self, count: int, first: int = 0) -> WarmStart:
        """Of tasks `first .. first + count - 1`, each modulo T."""
        tasks = self.tasks

        def picked(value: Tensor) -> Tensor:
            if not value.ndim or value.shape[0] != tasks:  # a counter, which all tasks share
                return value
            return value[torch.arange(first, first + count, device=value.device) % tasks]

        return self.mapped(picked)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> WarmStart:
        """The same with a function of every tensor, those of the state included."""
        state = None if self.state is None else rebuild(self.state, map(function, tensors(self.state)))
        return WarmStart({name: function(value) for name, value in self.items()}, state)

    def fitting(self, start: Mapping[str, Tensor]) -> Tensors:
        """The variables, in the place of a learner's own start; ValueError where names or shapes differ."""
        if sorted(self) != sorted(start):
            raise ValueError(f"w0 has {sorted(self)}, the inner variables are {sorted(start)}")
        for name, value in start.items():
            if self[name].shape != value.shape:
                raise ValueError(
                    f"w0[{name!r}] has shape {tuple(self[name].shape)}, here it has to be {tuple(value.shape)}: "
                    "it was kept for another number of tasks or ways (w0.task(i) is that of one task)"
                )
        return {name: self[name].to(value) for name, value in start.items()}


def as_warm_start(w0: Mapping[str, Tensor]) -> WarmStart:
    """A start of inner variables, with a state or without; ValueError for what is none.

    Example:
        >>> as_warm_start({})
        Traceback (most recent call last):
        ValueError: w0 is empty: inner variables are needed, such as trainer.inner after training with warm_start=True
    """
    hint = "inner variables are needed, such as trainer.inner after training with warm_start=True"
    if not isinstance(w0, Mapping):
        raise ValueError(f"w0 is of type {type(w0).__name__}: {hint}")
    if not w0:
        raise ValueError(f"w0 is empty: {hint}")
    for name, value in w0.items():
        if not isinstance(value, Tensor) or not value.ndim:
            raise ValueError(f"w0[{name!r}] has to be a tensor (T, ...)")
    if len({value.shape[0] for value in w0.values()}) > 1:
        raise ValueError(f"w0 holds different numbers of tasks: {sorted({v.shape[0] for v in w0.values()})}")
    return w0 if isinstance(w0, WarmStart) else WarmStart(w0)


HYPERGRADIENT = "hypergradient"  # of a warm start's state, what is not the solver's


class Resumed(Wrapped):
    """A solver that goes on from the state of an earlier run, and keeps that after its last step.

    A hypergradient that goes on too finds what it left in `left`, and leaves the next by `leave`.

    Args:
        solver: the solver. w0: the start, whose state it takes if it has one.

    Example:
        >>> from metapeft.inner import Momentum, solve
        >>> slope, w = lambda u, w: w["x"], WarmStart({"x": torch.tensor(0.0)})
        >>> for _ in range(2):  # - 0.5 - 0.5 (1 + 0.5)
        ...     solver = Resumed(Momentum(steps=1, lr=0.5, momentum=0.5), w)
        ...     w = solver.kept_with(solve(slope, {}, w, solver))
        >>> w
        {'x': tensor(-1.2500)}
    """

    def __init__(self, solver: Solver, w0: Mapping[str, Tensor] | None) -> None:
        super().__init__(solver)
        before = w0.state if isinstance(w0, WarmStart) else None
        self.left: Tensors | None = before.get(HYPERGRADIENT) if before else None
        self.before = before and {name: value for name, value in before.items() if name != HYPERGRADIENT}
        self.after: dict[
            str, Any
        ] = {}  # "state", of the first run alone: an engine may repeat steps; copies share it

    def init(self, u: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**self.solver.init(u, w), **(self.before or {})}

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        found, state = self.solver.step(k, u, w, grads, state)
        if k == self.steps - 1 and "state" not in self.after:
            last = rebuild(state, (value.detach() for value in tensors(state)))
            self.after["state"] = self.solver.kept(last)
        return found, state

    def kept_with(self, w: Mapping[str, Tensor]) -> WarmStart:
        """The variables that a run ended with, and the state."""
        state = self.after.get("state", self.before)
        own = self.after.get(HYPERGRADIENT)
        return WarmStart(w, state if own is None else {**(state or {}), HYPERGRADIENT: own})

    def leave(self, values: Tensors) -> None:
        """Keep what a hypergradient goes on from, name -> tensor."""
        self.after[HYPERGRADIENT] = values
