"""Which tensors a learner has, and which of them may belong to which loop.

Every tensor has exactly one role: frozen, outer, inner or generated. The outer ones are sorted into groups.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metapeft.base.registry import Registry
from metapeft.base.suggestions import did_you_mean
from metapeft.generators.generator import Generator
from metapeft.heads.head import HEAD, Head
from metapeft.inner.solver import Solver
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import feature_size

if TYPE_CHECKING:
    from metapeft.learner.learner import Learner

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


def seeds_of(model: AttachedModel, starts: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The seeds that a generator can write, with their shapes."""
    named = [f"{name}.{site.format.seed}" for name, site in model.sites.items() if site.format.seed]
    return {name: tuple(starts[name].shape[1:]) for name in named if starts[name].numel()}


def groups(learner: Learner, starts: Mapping[str, Tensor]) -> dict[str, Mapping[str, Tensor]]:
    """Group -> name -> first value, for every tensor that a learner could train.

    Args:
        starts: the factors that every task starts from.
    """
    found: dict[str, Mapping[str, Tensor]] = {group: {} for group in GROUPS}
    found["weights"] = {name: learner.model.parameters[name] for name in learner.trainable}
    found["factors"], found["head"] = starts, learner.head.learned()
    if learner.generator is not None:
        size = learner.generator.size or feature_size(learner.model, "MappingNet(size=...) says it")
        random = torch.Generator().manual_seed(learner.seed)
        found["generator"] = learner.generator.start(learner.seeds, size, random)
    if learner.selection is not None:
        found["selection"] = learner.selection.start(learner.model.sites)
    if learner.inner is not None:
        like = next(learner.model.backbone.parameters())
        found["rates"] = _rates(learner.inner, starts, learner.adapted, learner.adapts_head, like)
    return found


def _rates(
    solver: Solver, starts: Mapping[str, Tensor], adapted: Sequence[str], head: bool, like: Tensor
) -> dict[str, Tensor]:
    """First values of the solver's rates by inner variable; a head's have axes of 1 for ways and features."""
    moved = {name: starts[name] for name in adapted}
    if head:
        moved.update(zip(HEAD, (like.new_zeros(1, 1, 1), like.new_zeros(1, 1))))
    return {name.removeprefix("rates."): value for name, value in solver.rates(moved).items()}


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


def resolved(part: Any, registry: Registry) -> Any:
    """A part by its name, or the part itself."""
    return registry.resolve(part)() if isinstance(part, str) else part
