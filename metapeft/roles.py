"""Which tensors a learner has, and which of them may belong to which loop.

Every tensor has exactly one role: frozen, outer, inner or generated. The outer ones are sorted into groups.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metapeft._registry import Registry
from metapeft.generators.generator import Generator
from metapeft.heads.head import Head
from metapeft.hypergradients.direct import Direct
from metapeft.hypergradients.problem import Engine
from metapeft.hypergradients.reptile import Reptile
from metapeft.inner.solver import Solver
from metapeft.item_masks import check_dropout
from metapeft.objectives import HEAD
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import feature_size
from metapeft.updates.full import Full

if TYPE_CHECKING:
    from metapeft.learner import Learner

GROUPS = ("weights", "factors", "generator", "selection", "rates", "head")
_MISSING = {
    "weights": "every parameter of the backbone is frozen (requires_grad=False)",
    "factors": "attach() gave no update",
    "generator": "generator= is missing",
    "selection": "selection= is missing, or no format has terms to select",
    "rates": 'the inner solver has no learnable rates: mp.inner.SGD(..., rates="step")',
    "head": "the head learns nothing of its own (ridge and the nearest-centroid heads do)",
}
_log = logging.getLogger(__name__)


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
            near = difflib.get_close_matches(str(name), GROUPS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"outer={name!r}: the groups are {', '.join(GROUPS)}{hint}")
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


def check_model(model: object) -> None:
    """Raise ValueError for what `attach` did not make.

    Example:
        >>> check_model(torch.nn.Linear(2, 2))
        Traceback (most recent call last):
        ValueError: model is of type Linear: mp.attach(backbone, format) makes what is needed
    """
    if not isinstance(model, AttachedModel):
        raise ValueError(
            f"model is of type {type(model).__name__}: mp.attach(backbone, format) makes what is needed"
        )


def check_batch(batch: object) -> None:
    """Raise ValueError for what has not the fields of an `EpisodeBatch`.

    Example:
        >>> check_batch(3)
        Traceback (most recent call last):
        ValueError: batch is of type int: an mp.EpisodeBatch is needed, such as EpisodeSampler(...).batch(0, 4)
    """
    if not hasattr(batch, "support_x"):
        raise ValueError(
            f"batch is of type {type(batch).__name__}: an mp.EpisodeBatch is needed, such as "
            "EpisodeSampler(...).batch(0, 4)"
        )


def check_parts(learner: Learner) -> None:
    """Raise ValueError for parts that do not go together or would have no effect."""
    inner, head = learner.inner, learner.head_name
    if inner is None:
        if learner.adapt_patterns != "all":
            raise ValueError(
                f"adapt={learner.adapt_patterns!r} has no effect: this learner has no inner solver"
            )
        if learner.test_steps is not None:
            raise ValueError(
                f"test_steps={learner.test_steps} has no effect: this learner has no inner solver"
            )
    else:
        if inner.reads != "gradients":
            raise ValueError(
                f"inner={inner!r} works without inner gradients and sees no support set here: a Learner "
                'wants a solver of gradient steps; a head in closed form is head="ridge" or "prototypes"'
            )
        if not learner.adapted and not learner.adapts_head:
            raise ValueError(
                "inner= has nothing to move: no factor is adapted and the head is not an inner one"
            )
    if not learner.head.differentiable and (learner.outer or inner is not None):
        raise ValueError(
            f'head="{head}" has no gradients and is for evaluation only: outer=() and inner=None here, train and '
            "adapt with another"
        )
    check_dropout(learner.dropout, learner.model.module, learner.outer, learner.seed)
    if learner.generator is not None and not learner.seeds:
        raise ValueError("generator= has no seed to write: use a format with one, CP or TensorRing")
    clash = [name for name in learner.adapted if name in learner.seeds]
    if learner.per_input and clash:
        raise ValueError(
            f'{clash[0]} is generated per input, the inner solver cannot move it: adapt=["*.A", "*.B"]'
        )


def check_engine(learner: Learner) -> None:
    """Raise ValueError for an engine without the loop it is about, or that cannot reach an outer group."""
    engine, inner, said = learner.engine, learner.inner, learner.method
    if inner is None and isinstance(engine, Engine) and engine.needs_inner:
        raise ValueError(
            f'hypergradient={said!r} without an inner solver: it is "direct", or inner= is missing'
        )
    if inner is not None and isinstance(engine, Direct):
        raise ValueError(f'hypergradient="direct" has no inner loop: leave out inner={inner!r}')
    lost = unreachable(engine, inner)
    for group, kind in (("factors", "starts"), ("generator", "starts"), ("rates", "rates")):
        if group in learner.outer and kind in lost and (kind == "rates" or adapts_start(learner, group)):
            raise ValueError(f'outer has "{group}", which hypergradient={said!r} cannot reach: {lost[kind]}')
    if isinstance(engine, Reptile):
        _check_reptile(learner)


def unreachable(engine: object, inner: Solver | None) -> dict[str, str]:
    """What an engine cannot reach (`"starts"`, `"rates"`), with the reason; {} for a user's function."""
    return engine.unreachable(inner) if isinstance(engine, Engine) else {}


def _check_reptile(learner: Learner) -> None:
    """Reptile moves what the inner solver starts from, and nothing else."""
    for group in learner.outer:
        if group not in ("weights", "factors"):
            raise ValueError(
                f'outer has "{group}", which hypergradient={learner.method!r} cannot reach: Reptile moves '
                "the starts of what is adapted (factors, or weights under Full updates)"
            )
    started = {f"factors.{name}" for name in learner.adapted} | set(full_weights(learner).values())
    still = [name for name in learner.trained if name not in started]
    if still:
        raise ValueError(
            f"hypergradient={learner.method!r} cannot reach {still[0]!r}: Reptile moves only what is "
            'adapted; freeze it (requires_grad=False), or take "weights" with Full updates on all of them'
        )


def full_weights(learner: Learner) -> dict[str, str]:
    """Adapted Full updates and the outer weight that each is added to: `<p>.delta` -> `weights.<p>`."""
    sites = {
        f"{name}.delta": f"weights.{name}"
        for name, s in learner.model.sites.items()
        if isinstance(s.format, Full)
    }
    return {
        name: weight
        for name, weight in sites.items()
        if name in learner.adapted and weight in learner.trained
    }


def adapts_start(learner: Learner, group: str) -> bool:
    """Whether a factor that the group gives the start of is adapted."""
    names = learner.factor_names if group == "factors" else list(learner.seeds)
    return any(name in learner.adapted for name in names)


def note_few_steps(learner: Learner) -> None:
    """Say in the log that fewer than 3 steps from a zero head and `B = 0` leave factors where they start."""
    low_rank = {name for name, site in learner.model.sites.items() if not site.format.dense}
    moved = [name for name in learner.adapted if name.rpartition(".")[0] in low_rank]
    if learner.inner is not None and learner.head_name == "zero" and moved and learner.inner.steps < 3:
        _log.warning(
            "%s: %d inner step(s) from a zero head and B = 0: the first step moves only the head, the second "
            "also B, the third also A; take 3 or more, or head='prototype-init'",
            learner.name,
            learner.inner.steps,
        )


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
