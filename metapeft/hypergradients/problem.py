"""The one contract of all hypergradients: a bilevel problem goes in, a value and its gradient come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from metapeft.base.errors import second_derivatives
from metapeft.base.gradients import twice_differentiable
from metapeft.hypergradients.table import registry
from metapeft.inner.fixed_point import as_solver
from metapeft.inner.objective import Batches
from metapeft.inner.solver import Solver, Tensors
from metapeft.inner.variables import Start, bound_start


@dataclass(frozen=True)
class Problem:
    """A bilevel problem `min_u F(u, w_K(u))`, where `w_K` comes from the inner solver on `f(u, .)`.

    Args:
        outer: `F(u, w)`, with data `F(u, w, batch)`; returns `()`, or `(T,)` with a task axis; with `has_aux`
            a pair of that and a dict of tensors.
        inner: `f(u, w)`, likewise, without aux; None for `"direct"`.
        u: outer variables, name -> tensor.
        w0: start of the inner variables, name -> tensor, or a function of u that gives it. A function with a parameter
            `batch` is given the pair of `data` too, one with `step` the number of a trainer's outer step, from 0:
            `lambda u, batch, step: ...`.
        solver: inner solver; a bare callable, `step(u, w, grads) -> w` or `solve(u, w) -> w`, is one step.
        method: name of an engine, an engine such as `mp.hypergradients.CG(damping=1.0)`, or a function of the
            problem that returns a `Result`.
        data: None, or `(inner, outer)`; the inner batch may be a list, one batch a step.
        task_axis: inner variables are `(T, ...)`, objectives return `(T,)`; inner gradients are of their sum,
            the outer value is their mean.
        has_aux: the outer objective also returns a dict of tensors, found in `Result.aux`.
        optional: names of outer variables that no loss need reach; where none does, the result has no gradient of them.

    Example:
        >>> import torch
        >>> square = lambda u, w: (w["x"] - u["c"]).square()
        >>> Problem(square, square, {"c": torch.tensor(1.0)}, {"x": torch.tensor(0.0)}).method
        'unroll'
    """

    outer: Callable[..., Any]
    inner: Callable[..., Any] | None
    u: Mapping[str, Tensor]
    w0: Start
    solver: Any = None
    method: Any = "unroll"
    data: tuple[Any, Any] | None = None
    task_axis: bool = False
    has_aux: bool = False
    optional: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.u, Mapping) or not self.u:
            raise ValueError("u has to be a non-empty dict of outer variables, name -> tensor")
        for name, value in self.u.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"u[{name!r}] has to be a floating-point tensor, it is {kind}")
        for name, function in (("outer", self.outer), ("inner", self.inner)):
            if not callable(function) and (name == "outer" or function is not None):
                raise ValueError(f"{name}={function!r} has to be a function of (u, w)")
        if not isinstance(self.w0, Mapping) and not callable(self.w0):
            raise ValueError(
                f"w0={self.w0!r} has to be a dict, name -> tensor, or a function of u that gives it"
            )
        if self.data is not None and not (isinstance(self.data, tuple) and len(self.data) == 2):
            raise ValueError("data has to be a pair (inner batch or list of batches, outer batch)")
        if self.solver is not None and not isinstance(self.solver, Solver):
            object.__setattr__(self, "solver", as_solver(self.solver))
        if self.solver is not None:
            object.__setattr__(self, "solver", self.solver.with_task_axis(self.task_axis))

    @property
    def batches(self) -> Batches:
        """The inner objective, bound step by step to its batches."""
        return Batches(self.inner, None if self.data is None else self.data[0], given=self.data is not None)

    def started(self, step: int | None = None) -> Problem:
        """The same with `w0` bound to what it asks for; raises ValueError where there is no such thing."""
        bound = bound_start(self.w0, {"batch": self.data, "step": step})
        return self if bound is self.w0 else replace(self, w0=bound)

    def outer_value(self, u: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> Any:
        """What the outer objective returns, on its batch if there is one."""
        return self.outer(u, w) if self.data is None else self.outer(u, w, self.data[1])


@dataclass(frozen=True)
class Result:
    """What an engine returns; every tensor is detached.

    Attributes:
        value: outer value, mean over tasks, `()`.
        grads: name -> gradient of that mean, in the shape of `u[name]`.
        w: the inner solution, name -> tensor.
        residual: relative residual of the linear solve, `()` or `(T,)`; None where there is none.
        log: `"values"`: the outer values, `()` or `(T,)`; what else an engine has to say.
        aux: what the outer objective returned beside its value.

    Example:
        >>> import torch
        >>> Result(torch.tensor(0.5), {}, {}).residual is None
        True
    """

    value: Tensor
    grads: Tensors
    w: Tensors
    residual: Tensor | None = None
    log: dict[str, Any] = field(default_factory=dict)
    aux: dict[str, Any] = field(default_factory=dict)


class Engine:
    """Base of the engines: subclasses are frozen dataclasses of settings, with `compute` and `unreachable`.

    `engine(problem)` checks the problem and runs `compute`, with gradients enabled and attention on a kernel
    that has second derivatives. Nothing of the problem is changed.

    Example:
        >>> from metapeft.hypergradients import Unroll
        >>> isinstance(Unroll(), Engine)
        True
    """

    needs_inner = True
    repeats_batches = False  # whether a list of inner batches may be shorter than the number of steps
    goes_on = False  # whether it takes up what it left in the warm start of the call before

    @property
    def fresh_batches(self) -> int:
        """How many inner batches it needs beside one for each step."""
        return 0

    def __call__(self, problem: Problem) -> Result:
        if self.needs_inner:
            if problem.inner is None and (problem.solver is None or problem.solver.reads == "gradients"):
                raise ValueError(f'inner is None, but {self!r} needs an inner objective: use method="direct"')
            if problem.solver is None:
                raise ValueError(
                    f'solver is None, but {self!r} needs one: use method="direct" if w0 is final'
                )
            problem.batches.check(problem.solver.steps, self.repeats_batches, self.fresh_batches)
        problem = problem.started()
        with twice_differentiable(), second_derivatives():
            return self.compute(problem)

    def compute(self, problem: Problem) -> Result:
        """The value and the gradient; gradients are enabled."""
        raise NotImplementedError(f"{type(self).__name__} has no compute")

    def unreachable(self, solver: Solver | None) -> dict[str, str]:
        """Group ("starts", "rates") -> the sentence why this engine gives it no gradient with that solver."""
        return {}


def unreachable(engine: object, solver: Solver | None) -> dict[str, str]:
    """Group ("starts", "rates") -> the sentence why the engine gives it no gradient; {} for a user's function.

    Example:
        >>> from metapeft.hypergradients import Direct
        >>> unreachable(Direct(), None), unreachable(lambda problem: None, None)
        ({'rates': 'there is no inner loop, so there are no inner rates.'}, {})
    """
    return engine.unreachable(solver) if isinstance(engine, Engine) else {}


def resolve(method: Any) -> Callable[[Problem], Result]:
    """The engine that a name, an engine or a user's function stands for.

    Raises:
        ValueError: an unknown name (the nearest is given), a class instead of an engine, anything else.

    Example:
        >>> resolve("cg")
        CG(iterations=20, damping=0.0, tolerance=None, preconditioner=None, start=None)
    """
    if isinstance(method, str):
        engine: Callable[[Problem], Result] = registry.resolve(method)()
        return engine
    if isinstance(method, type) or not callable(method):
        hint = f"; write {method.__name__}()" if isinstance(method, type) else ""
        raise ValueError(f"method={method!r} has to be the name of an engine, an engine or a function{hint}")
    function: Callable[[Problem], Result] = method
    return function


def hypergradient(
    outer: Callable[..., Any],
    inner: Callable[..., Any] | None,
    u: Mapping[str, Tensor],
    w0: Start,
    solver: Any = None,
    method: Any = "unroll",
    data: tuple[Any, Any] | None = None,
    task_axis: bool = False,
    has_aux: bool = False,
) -> Result:
    """`d/du F(u, w_K(u))` of any bilevel problem; `w_K` is what the inner solver returns for `f(u, .)`.

    Arguments are those of `Problem`. Nothing of `u` and `w0` is changed.

    Returns:
        A `Result`: `.value .grads .w .residual .log .aux`.

    Raises:
        ValueError: bad arguments; an outer variable that no loss reaches, by name.
        NumericalError: an objective or a gradient that is not finite; a linear solve that failed.

    Example:
        >>> import torch
        >>> from metapeft.inner import SGD
        >>> outer = lambda u, w: (w["x"] - 1).square()
        >>> inner = lambda u, w: (w["x"] - u["c"]).square() / 2
        >>> c, x = torch.tensor(3.0), torch.tensor(0.0)
        >>> found = hypergradient(outer, inner, {"c": c}, {"x": x}, SGD(steps=1, lr=0.5))
        >>> found.value, found.grads  # x = c / 2, so F = (c / 2 - 1)^2
        (tensor(0.2500), {'c': tensor(0.5000)})
    """
    problem = Problem(outer, inner, u, w0, solver, method, data, task_axis, has_aux)
    with twice_differentiable():  # for engines of the user's own, too
        return resolve(method)(problem.started())
