"""The factors that a user passes: sorted by parameter, checked, joined for support and query."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metapeft.base.arguments import by_name
from metapeft.updates.formats.modulation import GATE, SHIFT, modulation
from metapeft.updates.formats.site import Site, Sites
from metapeft.updates.layers.call import Update


def by_parameter(sites: Sites, factors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Factors by parameter and local name; raises ValueError for names that are missing or unknown."""
    by_name("tensors", factors=factors)
    result: dict[str, dict[str, Tensor]] = {name: {} for name in sites}
    for name, value in factors.items():
        parameter, _, local = name.rpartition(".")
        if parameter not in result:
            raise ValueError(
                f"factors has {name!r}, which belongs to no update of this model: {_some(sites)}"
            )
        result[parameter][local] = value
    for parameter, own in result.items():
        site = sites[parameter]
        expected = set(site.format.shapes(site.geometry))
        if set(own) != expected:
            raise ValueError(
                f"factors of {parameter!r} are {sorted(own)}, but {site.format} has {sorted(expected)}: "
                "start from model.factors()"
            )
    return result


def _some(sites: Sites) -> str:
    names = list(sites)
    if not names:
        return "it has none"
    return "it has updates on " + ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def updates_of(
    sites: Sites, factors: Mapping[str, Tensor], weights: Mapping[str, Tensor], tasks: int, items: int
) -> dict[str, Update]:
    """Each parameter's update in one run.

    Args:
        factors: `<parameter>.<factor>` -> `(T or 1, ...)`, or `(T or 1, B, ...)` for a seed per input.
        weights: parameter -> the weight that the update is added to.
        tasks, items: `T` and `B` of the run.

    Raises:
        ValueError: names, shapes or dtypes that don't fit.
    """
    return {
        name: _update(sites[name], own, weights[name], tasks, items)
        for name, own in by_parameter(sites, factors).items()
    }


def _update(site: Site, factors: Mapping[str, Tensor], weight: Tensor, tasks: int, items: int) -> Update:
    seeded = False  # whether the seed itself is per input
    for name, wanted in site.format.shapes(site.geometry).items():
        value = factors[name]
        shape = tuple(value.shape)
        per_input = is_per_input(site, name, value)
        seeded = seeded or (per_input and name == site.format.seed)
        leading, own = (shape[:2], shape[2:]) if per_input else (shape[:1], shape[1:])
        if own != wanted or leading[:1] not in ((1,), (tasks,)) or leading[1:] not in ((), (items,)):
            sizes = "".join(f", {size}" for size in wanted)
            also = f" or (1 or {tasks}, {items}{sizes}) per input" if name in site.format.generated else ""
            raise ValueError(
                f"factor {site.parameter}.{name} has shape {shape}: allowed are (1 or {tasks}{sizes}){also}; "
                "one task's factors without the task axis go to merged()"
            )
        if value.dtype != weight.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise ValueError(
                f"factor {site.parameter}.{name} has dtype {value.dtype}, its weight {weight.dtype}"
            )
    plain = {name: value for name, value in factors.items() if name not in (SHIFT, GATE)}
    return Update(site.format, site.geometry, plain, tasks, seeded, modulation(factors))


def is_per_input(site: Site, name: str, value: Tensor) -> bool:
    """Whether a factor of a site, under its local name, is a seed, shift or gate with a batch axis."""
    return name in site.format.generated and value.dim() == len(site.format.shapes(site.geometry)[name]) + 2


def joined(
    sites: Sites, support: Mapping[str, Tensor], query: Mapping[str, Tensor], reference: int, items: int
) -> dict[str, Tensor]:
    """Factors for a support set of `reference` inputs and `items` queries in one run.

    Seeds per input are put one after the other; all others must be the same on both sides.
    """
    by_parameter(sites, support)
    result = dict(query)
    for parameter, own in by_parameter(sites, query).items():
        for local, value in own.items():
            name, site = f"{parameter}.{local}", sites[parameter]
            sides = (support[name], value)
            seeded = [is_per_input(site, local, side) for side in sides]
            if not any(seeded):
                if sides[0] is not value and not torch.equal(sides[0], value):
                    raise ValueError(
                        f"{name} differs between factors and support=(x, factors): only seeds per input may"
                    )
                continue
            if sides[0] is value:
                raise ValueError(
                    f'{name} is a seed per input: under norm="support" the support set brings its own, '
                    "support=(x, factors)"
                )
            parts = [
                side if per_input else side.unsqueeze(1).expand(side.shape[0], count, *side.shape[1:])
                for side, per_input, count in zip(sides, seeded, (reference, items))
            ]
            tasks = max(part.shape[0] for part in parts)
            result[name] = torch.cat([part.expand(tasks, *part.shape[1:]) for part in parts], 1)
    return result


def one_task(sites: Sites, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One task's factors, given without a task axis, with one of 1; raises ValueError for others."""
    for parameter, own in by_parameter(sites, factors).items():
        for local, wanted in sites[parameter].format.shapes(sites[parameter].geometry).items():
            shape = tuple(own[local].shape)
            if shape != wanted:
                raise ValueError(
                    f"{parameter}.{local} has shape {shape}, one task's has {wanted}: factors come without "
                    "the task axis here, and a seed per input is no update of one task"
                )
    return {name: value.unsqueeze(0) for name, value in factors.items()}
