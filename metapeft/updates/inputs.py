"""From what a user passes to what a run needs: task axes, support sets, factors, outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from metapeft.updates.call import Update
from metapeft.updates.targets import Site

if TYPE_CHECKING:
    from metapeft.updates.attached import AttachedModel


def leaves(x: Any) -> list[Tensor]:
    """The tensors of an input: itself, or the values of a dict or tuple."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, Mapping):
        return [value for value in x.values() if isinstance(value, Tensor)]
    if isinstance(x, tuple | list):
        return [value for value in x if isinstance(value, Tensor)]
    raise ValueError(
        f"x={type(x).__name__}: allowed are a tensor, a dict of keyword arguments, a tuple of positional ones"
    )


def mapped(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of an input; what is no tensor passes through."""

    def one(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    if isinstance(x, Mapping):
        return {key: one(value) for key, value in x.items()}
    return tuple(one(value) for value in x) if isinstance(x, tuple | list) else one(x)


def sizes(x: Any) -> tuple[int, int]:
    """`(T, B)` of an input whose leaves are `(T, B, ...)`; raises ValueError where they disagree."""
    found = leaves(x)
    shapes = [tuple(value.shape) for value in found]
    if not found or any(value.dim() < 2 for value in found) or len({shape[:2] for shape in shapes}) != 1:
        raise ValueError(
            f"x has leaves of shapes {shapes}: each must start with the same (tasks, inputs) axes, (T, B, ...)"
        )
    tasks, items = shapes[0][:2]
    if tasks == 0 or items == 0:
        raise ValueError(f"x has shape {shapes[0]}: at least one task and one input are needed")
    return tasks, items


def to_device(x: Any, model: AttachedModel) -> Any:
    """Bring an input to the backbone's device and turn uint8 images into its floats."""
    like = next(model.backbone.parameters(), None)
    device = like.device if like is not None else torch.device("cpu")
    dtype = like.dtype if like is not None and like.is_floating_point() else torch.get_default_dtype()

    def one(value: Tensor) -> Tensor:
        value = value.to(device)
        if value.dtype != torch.uint8:
            return value
        if model.preprocess is None:
            return value.to(dtype) / 255
        return model.preprocess(value.flatten(0, 1)).to(dtype).unflatten(0, value.shape[:2])

    leaves(x)
    return mapped(x, one)


def flattened(x: Any, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the backbone's forward, leaves `(T*B, ...)`."""
    flat = mapped(x, lambda value: value.reshape(rows, *value.shape[2:]))
    if isinstance(flat, dict):
        return (), flat
    return (flat, {}) if isinstance(flat, tuple) else ((flat,), {})


def split_support(
    support: Any, factors: Mapping[str, Tensor]
) -> tuple[Any, Mapping[str, Tensor], Tensor | None]:
    """Read `support=`: the set itself, `(x, factors)` or `(x, factors, mask)`."""
    if isinstance(support, tuple) and len(support) in (2, 3) and isinstance(support[1], Mapping):
        return support[0], support[1], support[2] if len(support) == 3 else None
    return support, factors, None


def join(first: Any, second: Any) -> Any:
    """Put the items of one input before those of another, leaf by leaf."""
    a, b = leaves(first), leaves(second)
    if len(a) != len(b) or any(p.shape[0] != q.shape[0] or p.shape[2:] != q.shape[2:] for p, q in zip(a, b)):
        raise ValueError(
            f"support= has leaves of shapes {[tuple(p.shape) for p in a]}, x of {[tuple(q.shape) for q in b]}: "
            "they may differ only in the number of inputs"
        )
    joined = iter([torch.cat([p, q], 1) for p, q in zip(a, b)])
    return mapped(second, lambda _: next(joined))


def join_factors(
    sites: Mapping[str, Site],
    support: Mapping[str, Tensor],
    query: Mapping[str, Tensor],
    reference: int,
    items: int,
) -> dict[str, Tensor]:
    """Factors for support and query in one run: seeds per input are put one after the other."""
    if support is query and not any(per_input(sites, name, value) for name, value in query.items()):
        return dict(query)
    result = {}
    for name, value in query.items():
        own = support.get(name, value)
        if not per_input(sites, name, value) and not per_input(sites, name, own):
            result[name] = value
            continue
        if own is value:
            raise ValueError(
                f'{name} is a seed per input: under norm="support" the support set brings its own, support=(x, factors)'
            )
        parts = []
        for part, count in ((own, reference), (value, items)):
            if not per_input(sites, name, part):
                part = part.unsqueeze(1).expand(part.shape[0], count, *part.shape[1:])
            parts.append(part)
        tasks = max(part.shape[0] for part in parts)
        result[name] = torch.cat([part.expand(tasks, *part.shape[1:]) for part in parts], 1)
    return result


def per_input(sites: Mapping[str, Site], name: str, value: Tensor) -> bool:
    """Whether a factor is a seed with a batch axis."""
    parameter, _, local = name.rpartition(".")
    site = sites.get(parameter)
    if site is None or local != site.format.seed:
        return False
    return value.dim() == len(site.format.shapes(site.geometry)[local]) + 2


def group_factors(sites: Mapping[str, Site], factors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Factors by parameter and local name; raises ValueError for names that are missing or unknown."""
    grouped: dict[str, dict[str, Tensor]] = {name: {} for name in sites}
    for name, value in factors.items():
        parameter, _, local = name.rpartition(".")
        if parameter not in grouped:
            raise ValueError(
                f"factors has {name!r}, which belongs to no update of this model: {_some(sites)}"
            )
        grouped[parameter][local] = value
    for parameter, local_factors in grouped.items():
        expected = set(sites[parameter].format.shapes(sites[parameter].geometry))
        if set(local_factors) != expected:
            missing = sorted(expected - set(local_factors)) or sorted(set(local_factors) - expected)
            raise ValueError(
                f"factors of {parameter!r} are {sorted(local_factors)}, {sites[parameter].format} needs "
                f"{sorted(expected)} (see {missing}): start from model.factors()"
            )
    return grouped


def _some(sites: Mapping[str, Site]) -> str:
    names = list(sites)
    return "it has updates on " + (
        ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
    )


def update_of(site: Site, factors: Mapping[str, Tensor], tasks: int, items: int) -> Update:
    """One parameter's update, its factors checked against the format's shapes."""
    seeded = False
    expected = site.format.shapes(site.geometry)
    for name, value in factors.items():
        shape, wanted = tuple(value.shape), expected[name]
        if name == site.format.seed and len(shape) == len(wanted) + 2:
            good = shape[0] in (1, tasks) and shape[1] == items and shape[2:] == wanted
            seeded = True
        else:
            good = len(shape) == len(wanted) + 1 and shape[0] in (1, tasks) and shape[1:] == wanted
        if not good:
            per = (
                f" or ({tasks}, {items}, {', '.join(map(str, wanted))}) per input"
                if name == site.format.seed
                else ""
            )
            raise ValueError(
                f"factor {site.parameter}.{name} has shape {shape}: allowed are (1 or {tasks}, "
                f"{', '.join(map(str, wanted))}){per}; one task's factors without the axis go to merged()"
            )
    return Update(site.format, site.geometry, factors, tasks, seeded)


def output_tensor(output: Any, rows: int) -> Tensor:
    """The tensor of a backbone's output, with its row axis checked."""
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Mapping):
        logits = output.get("logits")
    value = logits if isinstance(logits, Tensor) else output
    if isinstance(value, tuple) and value and isinstance(value[0], Tensor):
        value = value[0]
    if not isinstance(value, Tensor):
        raise ValueError(
            f"the backbone returned {type(output).__name__}: a tensor, or an output with .logits, is needed"
        )
    if value.dim() == 0 or value.shape[0] != rows:
        raise ValueError(
            f"the backbone returned shape {tuple(value.shape)} for {rows} inputs: its first axis must be the batch"
        )
    return value


@contextlib.contextmanager
def exact_attention() -> Iterator[None]:
    """Keep attention on kernels that call its layers and have second derivatives."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
