"""Tensors that each task has its own of, where a plain run has one for the whole batch.

A layer whose input has no batch axis (a table of relative positions) gives what all inputs share; with an update per
task, each task has its own. Such a value looks to the code around it as the one of a plain run, and every function of
torch that it goes into runs under `torch.func.vmap`, task by task, until it meets the rows of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metapeft.updates.layers.nests import replaced, tensors
from metapeft.updates.layers.task_by_task import each_task

Shape = tuple[int, ...]

#: what only asks a tensor what it looks like
_ASKS = {
    *(
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "stride",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
    ),
    *(
        "__len__",
        "get_device",
        "element_size",
        "storage_offset",
        "__hash__",
        "__repr__",
        "is_shared",
        "is_pinned",
    ),
    *("is_same_size", "type_as_tensor", "__format__", "is_signed", "is_inference"),
}
_COMPUTED = {"T", "mT", "H", "mH", "real", "imag", "data"}  # attributes that are tensors themselves


@dataclass
class Operation:
    """A function that was called with such a value: of its tensors the shape and what they came from, and the results.

    `sources`: None for a plain tensor, else the operation and the result that it is, or `(-1, which)` where it is
    no operation's.
    """

    name: str
    shapes: list[Shape]
    sources: list[tuple[int, int] | None]
    results: list[Shape]


@dataclass(frozen=True)
class Step:
    """How a function is run: axis and length along the rows, of its tensors and of its results; None: without rows."""

    name: str
    axes: tuple[int | None, ...]
    results: tuple[tuple[int, float] | None, ...]


@dataclass
class Tracing:
    """What a run knows of these values: while it is learnt, `noted`; afterwards the `steps`, of which `done` are."""

    parts: int
    rows: int
    steps: tuple[Step, ...] | None = None
    noted: list[Operation] = field(default_factory=list)
    done: int = 0

    @property
    def learning(self) -> bool:
        return self.steps is None


class PerTask(Tensor):
    """A value `(T, *shape)` that looks like one of `shape`.

    Example:
        >>> step = Step("add", (None, 0), ((0, 1.0),))
        >>> own = per_task(torch.tensor([[10.0], [20.0]]), Tracing(2, 4, (step,)))
        >>> own.shape, torch.add(own, torch.arange(4.0).view(4, 1)).view(-1)
        (torch.Size([1]), tensor([10., 11., 22., 23.]))
    """

    value: Tensor
    tracing: Tracing
    source: tuple[int, int]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, of = getattr(func, "__name__", str(func)), getattr(func, "__self__", None)
        attribute = name in ("__get__", "__set__") and getattr(of, "__name__", "") not in _COMPUTED
        if name in _ASKS or attribute:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if name == "__get__":
            name = getattr(of, "__name__", name)
        own = next(value for value in tensors((args, kwargs)) if isinstance(value, PerTask))
        run = _noted if own.tracing.learning else _mapped
        return run(name, func, args, kwargs, own.tracing)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Raise RuntimeError: this one has no memory of its own."""
        raise RuntimeError(f"{func} was called on a value that each task has its own of")


def per_task(value: Tensor, tracing: Tracing, source: tuple[int, int] = (-1, -1)) -> PerTask:
    """A tensor `(T, *shape)`, while learning `(1, *shape)`, as one of `shape`."""
    made: PerTask = Tensor._make_wrapper_subclass(
        PerTask, value.shape[1:], dtype=value.dtype, device=value.device, requires_grad=False
    )
    made.value, made.tracing, made.source = value, tracing, source
    return made


def plain(tree: Any) -> Any:
    """Values of a run that is learnt, as the plain tensors that they are."""
    return replaced(tree, lambda value: value.value[0] if isinstance(value, PerTask) else value)


def steps(one: list[Operation], two: list[Operation], rows: int) -> tuple[Step, ...]:
    """What is to be run so, from what was noted at one batch size and at twice that size.

    An axis that doubles holds the rows; what has one is an ordinary tensor again, and what only such tensors go into
    is no step.

    Args:
        rows: of the larger batch.

    Raises:
        ValueError: the two runs called different functions.
    """
    if [a.name for a in one] != [b.name for b in two]:
        raise ValueError("the backbone's forward calls other functions at another batch size")
    with_rows: set[tuple[int, int]] = set()
    found = []
    for number, (a, b) in enumerate(zip(one, two)):
        own = [source is not None and source not in with_rows for source in b.sources]
        results = [_doubled(p, q) for p, q in zip(a.results, b.results)]
        if not any(own):
            with_rows.update((number, index) for index in range(len(results)))
            continue
        with_rows.update((number, index) for index, axis in enumerate(results) if axis is not None)
        axes = tuple(None if mine else _doubled(p, q) for mine, p, q in zip(own, a.shapes, b.shapes))
        lengths = tuple(
            None if axis is None else (axis, shape[axis] / rows) for axis, shape in zip(results, b.results)
        )
        found.append(Step(b.name, axes, lengths))
    return tuple(found)


def _doubled(one: Shape, two: Shape) -> int | None:
    if len(one) != len(two):
        return None
    return next((axis for axis, (a, b) in enumerate(zip(one, two)) if 0 < 2 * a == b), None)


def _noted(name: str, func: Callable[..., Any], args: Any, kwargs: Any, tracing: Tracing) -> Any:
    """Run a function on plain tensors, and take down what it was given and gave."""
    given = list(tensors((args, kwargs)))
    result = func(*plain(args), **plain(kwargs))
    number = len(tracing.noted)
    sources = [value.source if isinstance(value, PerTask) else None for value in given]
    found = [tuple(value.shape) for value in tensors(result)]
    tracing.noted.append(Operation(name, [tuple(value.shape) for value in given], sources, found))
    count = iter(range(len(found)))
    return replaced(result, lambda value: per_task(value.unsqueeze(0), tracing, (number, next(count))))


def _mapped(name: str, func: Callable[..., Any], args: Any, kwargs: Any, tracing: Tracing) -> Any:
    """Run a function task by task."""
    known = tracing.steps or ()
    step = known[tracing.done] if tracing.done < len(known) else None
    given = list(tensors((args, kwargs)))
    if step is None or step.name != name or len(step.axes) != len(given):
        raise ValueError(
            f"the backbone's forward calls {name!r} on what a layer gives, which it did not before"
        )
    tracing.done += 1
    mapped, dims, places = [], [], []
    for place, (value, axis) in enumerate(zip(given, step.axes)):
        if isinstance(value, PerTask):
            mapped.append(value.value)
            dims.append(0)
            places.append(place)
        elif axis is not None:
            mapped.append(torch.unflatten(value, axis, (tracing.parts, -1)))
            dims.append(axis)
            places.append(place)
    shape_of: list[Any] = []

    def one(*own: Tensor) -> Any:
        filled = dict(zip(places, own))
        count = iter(range(len(given)))
        full = replaced((args, kwargs), lambda value: filled.get(next(count), value))
        result = func(*full[0], **full[1])
        shape_of[:] = [result]
        return tuple(tensors(result))

    values, _ = each_task(one, mapped, dims)
    found = iter([_result(value, along, tracing) for value, along in zip(values, step.results)])
    return replaced(shape_of[0], lambda _: next(found))


def _result(value: Tensor, along: tuple[int, float] | None, tracing: Tracing) -> Tensor:
    """`(T, ...)` as one for each task, or as rows where it has some; each task's are all of the batch if it says so."""
    if along is None:
        return per_task(value, tracing)
    axis, length = along
    if tracing.parts > 1 and value.shape[axis + 1] == round(length * tracing.rows):
        return own_rows(value, axis)
    return value.movedim(0, axis).flatten(axis, axis + 1)


def own_rows(value: Tensor, axis: int) -> Tensor:
    """Of `(T, ...)`, where each task has the rows of all tasks along `axis`, those of its own.

    Example:
        >>> own_rows(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), 0)
        tensor([1, 2, 7, 8])
    """
    each = torch.unflatten(value, axis + 1, (value.shape[0], -1))
    return each.diagonal(0, 0, axis + 1).movedim(-1, axis).flatten(axis, axis + 1)
