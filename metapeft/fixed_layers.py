"""Layers before the first one that inner steps move: they stay as they are, and run once on each part of a batch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metapeft.memory import is_out_of_memory
from metapeft.updates import registry
from metapeft.updates.kept import MovingLayerReached, Recording, Replay

if TYPE_CHECKING:
    from metapeft.learner import Learner
    from metapeft.objectives import Objectives, Tensors


Found = tuple[list[tuple[str, int]], list[bool], frozenset[str]]
NONE: Found = ([], [], frozenset())


@dataclass
class FixedLayers:
    """What a learner's forwards leave out once it is kept; its copies share it.

    Args:
        modules: their names, and how often each has run before; empty where there is nothing to keep, None until a
            batch was seen.
        read: whether the rest of the forward reads what a module gives; most are read by the next of them alone.
        behind: the outer variables, and generated seeds, that act behind them too.
    """

    modules: list[tuple[str, int]] | None = None
    read: list[bool] = field(default_factory=list)
    behind: frozenset[str] = frozenset()


def may_have(learner: Learner) -> bool:
    """Whether inner steps may leave layers as they are, and no more than factors of known layers move.

    Seeds per input, selections of the user's own, which may couple layers, and hooks, which may look at what runs, are
    left alone.
    """
    model = learner.model
    own_selection = learner.selection is not None and not registry.made(learner.selection)
    if learner.inner is None or learner.per_input or own_selection:
        return False
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.backbone.modules()):
        return False
    return all(parameter in model.users for parameter in _moving(learner))


def find(objectives: Objectives, derived: Tensors) -> Found:
    """Look for fixed layers in a forward on the support set, and see that keeping them changes nothing.

    They are left alone where a forward with what was kept gives other numbers: it reads it elsewhere, writes over it,
    or does not do the same each time.
    """
    learner = objectives.learner
    if not may_have(learner):
        return NONE
    u = {name: value.detach().requires_grad_() for name, value in learner.trained.items()}
    seeds = {n: value.detach().requires_grad_() for n, value in derived.items() if n.startswith("seed.")}
    with torch.no_grad():
        recorded = _recorded(objectives, u, seeds, "support")
        if not recorded.places:
            return NONE
        plain = objectives.run(u, {}, seeds, "support")
    free = [value.detach().clone().requires_grad_() for value in recorded.outputs]
    variables = {**u, **seeds}
    try:
        with torch.enable_grad():
            output = objectives.run(u, {}, seeds, "support", kept=Replay(recorded.places, free))
            reached = torch.autograd.grad(output.sum(), [*free, *variables.values()], allow_unused=True)
        read = [grad is not None for grad in reached[: len(free)]]
        given = [v.detach() if is_read else _blank(v) for v, is_read in zip(free, read)]
        versions = [value._version for value in given]
        with torch.no_grad():
            again = objectives.run(u, {}, seeds, "support", kept=Replay(recorded.places, given))
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return NONE
    written = versions != [value._version for value in given]
    rounding = 1e4 * torch.finfo(plain.dtype).eps * (1.0 + float(plain.abs().max()))
    if not any(read) or written or not float((again - plain).abs().max()) <= rounding:
        return NONE
    behind = {name for name, grad in zip(variables, reached[len(free) :]) if grad is not None}
    return [(place.name, place.before) for place in recorded.places], read, frozenset(behind)


def kept(objectives: Objectives, u: Tensors, derived: Tensors) -> dict[str, Tensor]:
    """What the fixed layers give on the parts that the objectives run on: `kept.<part>.<number>`."""
    layers = objectives.learner.fixed_layers
    if layers.modules is None:
        layers.modules, layers.read, layers.behind = find(objectives, derived)
    if not layers.modules:
        return {}
    found: dict[str, Tensor] = {}
    for part in dict.fromkeys([*_parts(objectives, inner=True), *_parts(objectives, inner=False)]):
        recorded = _recorded(objectives, u, derived, part)
        if [(place.name, place.before) for place in recorded.places] != layers.modules:
            return {}  # another kind of input took another way
        objectives.places[part] = recorded.places
        for i, (value, read) in enumerate(zip(recorded.outputs, layers.read)):
            found[f"kept.{part}.{i}"] = value if read else _blank(value)
    return found


def replay(objectives: Objectives, derived: Tensors, part: str) -> Replay | None:
    """What hands back what was kept of a part; None where nothing is.

    Raises LookupError where only other parts were kept: to run all layers instead would lose gradients.
    """
    if not any(name.startswith("kept.") for name in derived):
        return None
    if f"kept.{part}.0" not in derived:
        raise LookupError(f"nothing was kept of {part!r}")
    places = objectives.places[part]
    return Replay(places, [derived[f"kept.{part}.{i}"] for i in range(len(places))])


def _parts(objectives: Objectives, inner: bool) -> list[str]:
    """The parts of the batch on which an objective runs the backbone (`Objectives._logits`)."""
    learner = objectives.learner
    closed = learner.head_name != "learned" and not learner.adapts_head
    apart = ["support"] if closed and learner.model.norm == "transductive" else []  # for the head
    if objectives.both:
        return ["both", *apart]
    if inner:
        return ["support"]
    if objectives.query is None:
        return []
    return ["both"] if closed and not apart else ["query", *apart]


def inner_alone(objectives: Objectives, layers: FixedLayers) -> set[str]:
    """What is kept for the inner objective and not read by the outer one."""
    parts = set(_parts(objectives, inner=True)) - set(_parts(objectives, inner=False))
    return {f"kept.{part}.{i}" for part in parts for i in range(len(layers.read))}


def _blank(like: Tensor) -> Tensor:
    """NaN of a shape, which takes no room."""
    return like.new_full((), torch.nan).expand(like.shape)


def _recorded(objectives: Objectives, u: Tensors, derived: Tensors, part: str) -> Recording:
    recording = Recording(_moving(objectives.learner))
    with contextlib.suppress(MovingLayerReached):
        objectives.run(u, {}, derived, part, kept=recording)
    return recording


def _moving(learner: Learner) -> set[str]:
    """The parameters whose updates inner steps move."""
    return {name.rpartition(".")[0] for name in learner.adapted}
