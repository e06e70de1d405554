"""What an inner solver is: a start, one step, and the objective that the steps really minimise."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from metapeft.base.arguments import whole

Tensors = dict[str, Tensor]
#: `(u, w) -> ()`, or `(T,)` with a task axis
Bound = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


class Solver:
    """Base of the inner solvers: subclasses hold settings, never a state that changes.

    A solver of your own inherits from this class and writes `step`. Steps have to be pure: nothing is changed
    in place, all is differentiable in `u`, `w` and the gradients, and the tensors of the new `w` are not
    computed from one another (`distinct`, in variables.py, makes them so).

    Attributes:
        steps: number of inner steps K; 0 is legal.
        reads: what the fourth argument of `step` is: the inner gradients, or the batch of the step itself
            (closed forms and fixed-point maps, which no engine that works on inner gradients accepts).
        anchored: whether `objective` depends on the start, so that implicit engines reach it.
        differentiable: None, or the sentence why no gradient may be taken through `step`.

    Example:
        >>> import torch
        >>> class Halve(Solver):
        ...     steps = 2
        ...     def step(self, k, u, w, grads, state):
        ...         return {name: value - 0.5 * grads[name] for name, value in w.items()}, state
        >>> from metapeft.inner import solve
        >>> solve(lambda u, w: (w["x"] ** 2).sum() / 2, {}, {"x": torch.tensor([4.0])}, Halve())
        {'x': tensor([1.])}
    """

    steps: int
    reads: ClassVar[Literal["gradients", "batch"]] = "gradients"
    differentiable: ClassVar[str | None] = None

    @property
    def anchored(self) -> bool:
        return False

    def rates(self, starts: Mapping[str, Tensor]) -> Tensors:
        """First values of the learnable rates, `"rates.<name>"` -> tensor; empty when none are learnable."""
        return {}

    def init(self, u: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> dict[str, Any]:
        """State before the first step: a dict of tensors, nested in dicts, lists and tuples as one likes."""
        return {}

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        """`(w_{k+1}, state_{k+1})` from `(w_k, state_k)` and the inner gradients at `w_k`."""
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def kept(self, state: dict[str, Any]) -> dict[str, Any]:
        """What of the state after the last step goes on into the next run, where inner variables are kept for it."""
        return state

    def objective(
        self, inner: Bound, u: Mapping[str, Tensor], w: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> Tensor:
        """What the steps minimise: the inner objective with the solver's own proximal and decay terms."""
        return inner(u, w)

    def with_steps(self, steps: int) -> Self:
        """A copy with another number of steps; learned rates beyond their last step repeat the last."""
        whole(0, steps=steps)
        other = copy.copy(self)
        object.__setattr__(other, "steps", steps)  # also where the class is frozen
        return other

    def with_task_axis(self, task_axis: bool) -> Self:
        """The solver for variables with or without a task axis: itself, if steps work entry by entry."""
        return self

    def settings(self) -> dict[str, Any]:
        """The arguments that build this solver again."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"
