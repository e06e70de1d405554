"""Layers before the first one that inner steps move: they stay as they are, and run once on each part of a batch."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metapeft import inner as inner_folder
from metapeft.base.machine.memory import is_out_of_memory
from metapeft.inner.fixed_point import FixedPoint, Step
from metapeft.updates.chains import has_hooks
from metapeft.updates.layers.recording import MovingLayerReached, Recording, Replay
from metapeft.updates.table import registry

if TYPE_CHECKING:
    from metapeft.learner.learner import Learner
    from metapeft.learner.objectives import Objectives, Tensors

log = logging.getLogger("metapeft")


@dataclass(frozen=True)
class FixedLayers:
    """What a learner's forwards leave out once it is kept.

    Args:
        modules: their names, and how often each has run before; empty where there is nothing to keep.
        read: whether a gradient goes on to what a module gives; of most it goes to the next of them alone.
        behind: the outer variables, and generated seeds, that act behind them too.
    """

    modules: tuple[tuple[str, int], ...] = ()
    read: tuple[bool, ...] = ()
    behind: frozenset[str] = frozenset()


def may_have(learner: Learner) -> bool:
    """Whether inner steps may leave layers as they are, and no more than factors of known layers move.

    Seeds per input, solvers of the user's own, which may read any outer variable, selections of the user's own, which
    may couple layers, and hooks, which may look at what runs, are left alone.
    """
    model, inner = learner.model, learner.inner
    own_selection = learner.selection is not None and not registry.made(learner.selection)
    if inner is None or isinstance(inner, FixedPoint | Step) or not inner_folder.registry.made(inner):
        return False
    if learner.per_input or own_selection or any(has_hooks(module) for module in model.backbone.modules()):
        return False
    return all(parameter in model.users for parameter in _moving(learner))


def find(objectives: Objectives, derived: Tensors) -> FixedLayers:
    """Look for fixed layers in a forward on the support set, and see that one with what was kept gives the same.

    They are left alone where it does not, or writes over what was kept, or fails.
    """
    learner = objectives.learner
    u = {name: value.detach().requires_grad_() for name, value in learner.trained.items()}
    seeds = {n: value.detach().requires_grad_() for n, value in derived.items() if n.startswith("seed.")}
    with torch.no_grad():
        recorded = _recorded(objectives, u, seeds, "support")
        if not recorded.places:
            return FixedLayers()
        plain = objectives.run(u, {}, seeds, "support")
    free = [value.detach().clone().requires_grad_() for value in recorded.outputs]
    variables = {**u, **seeds}
    try:
        with torch.enable_grad():
            output = objectives.run(u, {}, seeds, "support", kept=Replay(recorded.places, free))
            reached = torch.autograd.grad(output.sum(), [*free, *variables.values()], allow_unused=True)
        given = [value.detach() for value in free]
        versions = [value._version for value in given]
        with torch.no_grad():
            again = objectives.run(u, {}, seeds, "support", kept=Replay(recorded.places, given))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        log.info("all layers run in each inner step, for with what was kept of some: %s", error)
        return FixedLayers()
    read = tuple(grad is not None for grad in reached[: len(free)])
    written = versions != [value._version for value in given]
    rounding = 1e4 * torch.finfo(plain.dtype).eps * (1.0 + float(plain.abs().max()))
    if not any(read) or written or not float((again - plain).abs().max()) <= rounding:
        log.info("all layers run in each inner step, for with what was kept of some the outputs are others")
        return FixedLayers()
    behind = {name for name, grad in zip(variables, reached[len(free) :]) if grad is not None}
    return FixedLayers(_names(recorded), read, frozenset(behind))


def of(objectives: Objectives) -> FixedLayers | None:
    """Those of the learner's forwards with or without dropout; None until a batch was seen."""
    return objectives.learner.fixed_layers.get(objectives.masks is not None)


def kept(objectives: Objectives, u: Tensors, derived: Tensors) -> dict[str, Tensor]:
    """What the fixed layers give on the parts that the objectives run on: `kept.<part>.<number>`."""
    learner = objectives.learner
    if not may_have(learner):
        return {}
    layers = of(objectives)
    if layers is None:
        layers = learner.fixed_layers[objectives.masks is not None] = find(objectives, derived)
    if not layers.modules:
        return {}
    found: dict[str, Tensor] = {}
    for part in dict.fromkeys([*_parts(objectives, inner=True), *_parts(objectives, inner=False)]):
        recorded = _recorded(objectives, u, derived, part)
        if _names(recorded) != layers.modules:
            return {}  # another kind of input took another way
        objectives.places[part] = recorded.places
        for i, (value, read) in enumerate(zip(recorded.outputs, layers.read)):
            found[f"kept.{part}.{i}"] = (
                value if read else value.detach()
            )  # its value may be read all the same
    return found


def replay(objectives: Objectives, derived: Tensors, part: str) -> Replay | None:
    """What hands back what was kept of a part; None where nothing is.

    Raises LookupError where only other parts were kept: to run all layers instead would lose gradients.
    """
    if not any(name.startswith("kept.") for name in derived):
        return None
    if f"kept.{part}.0" not in derived or part not in objectives.places:
        raise LookupError(
            f"nothing was kept of {part!r}: what is derived belongs to another batch, or another use"
        )
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


def _names(recorded: Recording) -> tuple[tuple[str, int], ...]:
    return tuple((place.name, place.before) for place in recorded.places)


def _recorded(objectives: Objectives, u: Tensors, derived: Tensors, part: str) -> Recording:
    recording = Recording(_moving(objectives.learner))
    with contextlib.suppress(MovingLayerReached):
        objectives.run(u, {}, derived, part, kept=recording)
    return recording


def _moving(learner: Learner) -> set[str]:
    """The parameters whose updates inner steps move."""
    return {name.rpartition(".")[0] for name in learner.adapted}
