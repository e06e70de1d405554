"""What a user chooses of a learner: its outer groups, what is adapted, its head, generator and selection.

Every tensor has exactly one role: frozen, outer, inner or generated. The outer ones are sorted into groups.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from metapeft.base.registry import Registry
from metapeft.base.suggestions import did_you_mean
from metapeft.generators.generator import Generator, check_generator
from metapeft.heads.head import Head
from metapeft.updates.attached import AttachedModel

GROUPS = ("weights", "factors", "generator", "selection", "rates", "head")
_MISSING = {
    "weights": "every parameter of the backbone is frozen (requires_grad=False)",
    "factors": "attach() gave no update",
    "generator": "generator= is missing",
    "selection": "selection= is missing, or no format has terms to select",
    "rates": 'the inner solver has no learnable rates: mp.inner.SGD(..., rates="step")',
    "head": "the head learns nothing of its own (ridge and the nearest-centroid heads do)",
}


def checked_groups(outer: Sequence[str]) -> tuple[str, ...]:
    """The outer groups, each known and named once; raises ValueError otherwise.

    Example:
        >>> checked_groups("weights")
        ('weights',)
    """
    if not isinstance(outer, str | list | tuple | set):
        raise ValueError(
            f"outer={outer!r}: a tuple of groups is needed, of {', '.join(GROUPS)}; () trains nothing"
        )
    names = (outer,) if isinstance(outer, str) else tuple(outer)
    for name in names:
        if name not in GROUPS:
            raise ValueError(
                f"outer={name!r}: the groups are {', '.join(GROUPS)}{did_you_mean(name, GROUPS)}"
            )
    if len(set(names)) != len(names):
        raise ValueError(f"outer={names!r} names a group twice")
    return names


def adapted_names(adapt: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """The factors that the inner solver moves: `"all"`, or those that match a glob.

    Raises:
        ValueError: a pattern that matches nothing.

    Example:
        >>> adapted_names("*.B", ["fc.weight.A", "fc.weight.B"])
        ['fc.weight.B']
    """
    if isinstance(adapt, str) and adapt == "all":
        return list(names)
    if not isinstance(adapt, str | list | tuple | set) or not all(isinstance(name, str) for name in adapt):
        raise ValueError(
            f"adapt={adapt!r}: allowed are 'all', a glob over names of factors, and a list of globs"
        )
    patterns = [adapt] if isinstance(adapt, str) else list(adapt)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "none"
            raise ValueError(f"adapt={pattern!r} matches no factor: there are {shown}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def check_groups(outer: Sequence[str], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise ValueError for an outer group that is empty, with the reason."""
    for group in outer:
        if not groups[group]:
            raise ValueError(f'outer has "{group}", but this learner has none: {_MISSING[group]}')


def classifier_parameters(model: AttachedModel) -> list[str]:
    """The backbone's own classifier, which another head replaces."""
    return [] if model.classifier is None else [f"{model.classifier}.weight", f"{model.classifier}.bias"]


def resolved_head(head: Any, registry: Registry) -> Head:
    """A head by its name, or the head itself; raises ValueError for what is none.

    Example:
        >>> resolved_head(3, Registry("metapeft", "head", {}))
        Traceback (most recent call last):
        ValueError: head is of type int: one of your own derives from mp.heads.Head, with start(features, y, ways, mask)
    """
    found = resolved(head, registry)
    if isinstance(found, Head):
        return found
    own = "one of your own derives from mp.heads.Head, with start(features, y, ways, mask)"
    raise ValueError(f"head is of type {type(found).__name__}: {own}")


def resolved_generator(generator: Any, registry: Registry) -> Generator | None:
    """A generator by its name, or the generator itself; raises ValueError for what is none."""
    found = resolved(generator, registry)
    if isinstance(found, Generator):
        check_generator(found)
    if found is None or isinstance(found, Generator):
        return found
    own = "one of your own derives from mp.generators.Generator"
    raise ValueError(f"generator is of type {type(found).__name__}: {own}; MappingNet(hidden=64) is ours")


def resolved_selection(selection: Any, registry: Registry) -> Any:
    """A selection by its name, or the selection itself; raises ValueError for what is none."""
    found = resolved(selection, registry)
    if found is None or (hasattr(found, "start") and callable(found)):
        return found
    raise ValueError(
        f"selection is of type {type(found).__name__}: 'softmax', or one of your own with start(sites) and "
        "__call__(sites, factors, logits)"
    )


def starts_under(selection: Any, model: AttachedModel) -> dict[str, Tensor]:
    """Where the factors start: an update that the model was given is the same under the selection's first weights."""
    starts = model.factors()
    undone = getattr(selection, "undone", None)
    return starts if model.given_start is None or undone is None else undone(model.sites, starts)


def resolved(part: Any, registry: Registry) -> Any:
    """A part by its name, or the part itself."""
    return registry.resolve(part)() if isinstance(part, str) else part
