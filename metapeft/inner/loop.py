"""Plain adaptation: the inner loop without a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from metapeft.base.errors import NumericalError
from metapeft.base.gradients import twice_differentiable
from metapeft.inner.objective import Batches, Objective, check_inner_values, inner_gradients
from metapeft.inner.solver import Solver, Tensors
from metapeft.inner.variables import Start, constants, leaf_tensors, starting_point


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
            value, given = inner_gradients(batches(k), u, leaf_tensors(w), task_axis, create_graph=False)
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
    with twice_differentiable():
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
