"""Plain adaptation: the inner loop without a graph, and the pieces that every engine shares with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metapeft.base.errors import NumericalError
from metapeft.inner.solver import Bound, Solver, Tensors

Objective = Callable[..., Any]
Start = Mapping[str, Tensor] | Callable[[Tensors], Mapping[str, Tensor]]


class Batches:
    """The inner objective of step k, bound to its batch: `batches(k)(u, w)`.

    Args:
        inner: `inner(u, w)`, or `inner(u, w, batch)` when there is data.
        data: None; a list of batches, one a step; or anything else as the one batch of all steps.
        given: whether there is data at all, so that a batch may be None.
    """

    def __init__(self, inner: Objective | None, data: Any, given: bool) -> None:
        self.inner, self.data, self.given = inner, data, given

    def batch(self, k: int) -> Any:
        if isinstance(self.data, list):
            return self.data[min(k, len(self.data) - 1)]
        return self.data

    def __call__(self, k: int) -> Bound:
        if self.inner is None:
            raise ValueError("inner is None: this solver or method needs an inner objective")
        if not self.given:
            return self.inner
        inner, batch = self.inner, self.batch(k)
        return lambda u, w: inner(u, w, batch)

    @property
    def last(self) -> Bound:
        """The objective on the last batch, which implicit engines differentiate."""
        return self(len(self.data) - 1 if self.given and isinstance(self.data, list) else 0)

    def check(self, steps: int, repeat: bool) -> None:
        """Refuse a list of batches whose length is not the number of steps; `repeat`: it may be shorter."""
        if not (self.given and isinstance(self.data, list)):
            return
        count = len(self.data)
        if count == 0 or (not repeat and count != steps) or (repeat and count > max(steps, 1)):
            wanted = f"1 to {max(steps, 1)}" if repeat else str(steps)
            raise ValueError(
                f"data: the inner level has a list of {count} batches, one a step, but the solver makes "
                f"{steps} steps: give {wanted} of them (a single batch that is a list has to be a tuple)"
            )


def starting_point(w0: Start, u: Tensors, may_be_empty: bool = False) -> Tensors:
    """`w0`, or `w0(u)`, as a dict of floating-point tensors; a start that is no function is a constant."""
    start = w0(u) if callable(w0) else {name: value.detach() for name, value in w0.items()}
    if not isinstance(start, Mapping) or not (start or may_be_empty):
        raise ValueError(f"w0 has to give a non-empty dict of tensors, it gave {type(start).__name__}")
    for name, value in start.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"w0[{name!r}] has to be a floating-point tensor, it is {kind}")
    return dict(start)


def check_value(value: Any, w: Mapping[str, Tensor], task_axis: bool, level: str) -> None:
    """Refuse an objective that does not return one number (a task)."""
    if not isinstance(value, Tensor):
        raise ValueError(f"the {level} objective has to return a tensor, it returned {type(value).__name__}")
    if not task_axis:
        if value.ndim:
            raise ValueError(
                f"the {level} objective returned shape {tuple(value.shape)}: without a task axis it has to "
                "be one number, shape (); take the mean, or say task_axis=True if there is one value a task"
            )
        return
    if value.ndim != 1:
        raise ValueError(
            f"the {level} objective returned shape {tuple(value.shape)}: task_axis=True wants (T,)"
        )
    for name, leaf in w.items():
        if leaf.ndim == 0 or leaf.shape[0] != value.shape[0]:
            raise ValueError(
                f"the {level} objective returned {value.shape[0]} values but w[{name!r}] has shape "
                f"{tuple(leaf.shape)}: with task_axis=True every inner variable has a leading axis of the "
                "same T tasks (expand a start that all tasks share)"
            )


def inner_gradients(
    inner: Bound, u: Mapping[str, Tensor], w: Tensors, task_axis: bool, create_graph: bool
) -> tuple[Tensor, Tensors]:
    """Inner values, detached, and the partial gradient of their sum for all of w at once."""
    value = inner(u, w)
    check_value(value, w, task_axis, "inner")
    total = value.sum() if task_axis else value
    found: Iterable[Tensor | None] = ()
    if total.requires_grad:
        found = torch.autograd.grad(total, tuple(w.values()), create_graph=create_graph, allow_unused=True)
    grads = {name: grad for name, grad in zip(w, found) if grad is not None}
    if not grads:
        raise ValueError(
            "the inner objective does not depend on the inner variables "
            f"({', '.join(w)}): it reads other tensors, or detaches them"
        )
    return value.detach(), {name: grads[name] if name in grads else torch.zeros_like(w[name]) for name in w}


def constants(w: Mapping[str, Tensor]) -> Tensors:
    return {name: value.detach() for name, value in w.items()}


def leaves(w: Mapping[str, Tensor]) -> Tensors:
    return {name: value.detach().requires_grad_() for name, value in w.items()}


def check_inner_values(values: list[Tensor]) -> None:
    """Raise for the first step whose inner objective is not finite."""
    if not values:
        return
    finite = torch.stack(values).isfinite()
    if not bool(finite.all()):
        first = (~finite).nonzero()[0].tolist()
        where = f"step {first[0]}" + (f" of task {first[1]}" if len(first) > 1 else "")
        found = values[first[0]].flatten()[first[1] if len(first) > 1 else 0].item()
        raise NumericalError(
            f"the inner objective is {found} at inner {where}: the inner rate is too large for this problem, "
            "or the objective is not finite at the start (check the data for NaN)"
        )


class Path(NamedTuple):
    """What plain steps leave behind: iterates, states, inner values, and the first inner gradient."""

    w: list[Tensors]
    states: list[dict[str, Any]]
    values: list[Tensor]
    slope: Tensors | None


def plain_steps(
    batches: Batches,
    u: Tensors,
    w: Tensors,
    solver: Solver,
    task_axis: bool,
    state: dict[str, Any] | None = None,
    first: int = 0,
    last: int | None = None,
    keep: bool = False,
) -> Path:
    """Steps `first .. last - 1` (all of the solver's by default) from w; nothing in the path carries a graph.

    `keep`: all iterates and states are in the path, not only the last.
    """
    u, w, slope, values = constants(u), constants(w), None, []
    with torch.no_grad():
        state = solver.init(u, w) if state is None else state
    trace, states = [w], [state]
    for k in range(first, solver.steps if last is None else last):
        if solver.reads == "batch":
            given: Any = batches.batch(k)
        else:
            value, given = inner_gradients(batches(k), u, leaves(w), task_axis, create_graph=False)
            values.append(value)
            slope = given if slope is None else slope
        with torch.no_grad():
            w, state = solver.step(k, u, w, given, state)
        if keep:
            trace.append(w)
            states.append(state)
        else:
            trace, states = [w], [state]
    return Path(trace, states, values, slope)


@overload
def solve(
    inner: Objective | None,
    u: Mapping[str, Tensor],
    w0: Start,
    solver: Solver,
    data: Any = None,
    task_axis: bool = False,
    trace: Literal[False] = False,
    checked: bool = True,
) -> Tensors: ...
@overload
def solve(
    inner: Objective | None,
    u: Mapping[str, Tensor],
    w0: Start,
    solver: Solver,
    data: Any = None,
    task_axis: bool = False,
    *,
    trace: Literal[True],
    checked: bool = True,
) -> list[Tensors]: ...
def solve(
    inner: Objective | None,
    u: Mapping[str, Tensor],
    w0: Start,
    solver: Solver,
    data: Any = None,
    task_axis: bool = False,
    trace: bool = False,
    checked: bool = True,
) -> Tensors | list[Tensors]:
    """Adapt: `w_{k+1} = step(w_k, grad_w sum_t inner_t(u, w_k))` for k < K, no graph kept.

    Args:
        inner: `inner(u, w)`, or `inner(u, w, batch)` with data; returns `()`, or `(T,)` with a task axis.
        u: outer variables, read only.
        w0: start of the inner variables, or a function of u that gives it.
        solver: an inner solver, such as `mp.inner.SGD(steps=5, lr=0.1)`.
        data: the inner batch, or a list of them, one a step.
        task_axis: every inner variable is `(T, ...)`, the objective returns one value a task.
        trace: return the list of all K + 1 iterates, the start first.
        checked: False lets what is not finite stand, in the tasks where it is.

    Returns:
        The adapted inner variables, detached; the same arithmetic as the unrolled loop of the hypergradients.

    Raises:
        NumericalError: an inner objective, or an adapted variable, that is not finite.

    Example:
        >>> import torch
        >>> from metapeft.inner import SGD
        >>> solve(lambda u, w: (w["x"] - u["c"]).square().sum(), {"c": torch.tensor([2.0])},
        ...       {"x": torch.zeros(1)}, SGD(steps=1, lr=0.25))
        {'x': tensor([1.])}
    """
    u, solver = dict(u), solver.with_task_axis(task_axis)
    batches = Batches(inner, data, given=data is not None)
    batches.check(solver.steps, repeat=False)
    with torch.no_grad():
        start = starting_point(w0, u)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        path = plain_steps(batches, u, start, solver, task_axis, keep=trace)
    if checked:
        check_inner_values(path.values)
    for name, value in path.w[-1].items() if checked else ():
        if not bool(value.isfinite().all()):
            raise NumericalError(
                f"the inner variable {name!r} is not finite after {solver.steps} steps, although the inner objective "
                "was until then: the inner rate is too large, or the objective has no finite derivative"
            )
    return path.w if trace else path.w[-1]
