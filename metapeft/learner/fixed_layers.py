"""Layers before the first one that inner steps move: they stay as they are, and run once on each part of a batch."""

from __future__ import annotations

import contextlib
import logging

import torch
from torch import Tensor

from metapeft.base.machine.memory import is_out_of_memory
from metapeft.inner.fixed_point import FixedPoint, Step
from metapeft.inner.table import registry as solvers
from metapeft.learner.backbone_pass import BackbonePass
from metapeft.learner.roles import FixedLayers, Roles, Tensors
from metapeft.updates.chains import has_hooks
from metapeft.updates.layers.recording import MovingLayerReached, Recording, Replay
from metapeft.updates.table import registry as updates

log = logging.getLogger("metapeft")


def may_have(roles: Roles) -> bool:
    """Whether inner steps may leave layers as they are, and no more than factors of known layers move.

    Seeds per input, solvers of the user's own, which may read any outer variable, selections of the user's own, which
    may couple layers, and hooks, which may look at what runs, are left alone.
    """
    model, inner = roles.model, roles.inner
    own_selection = roles.selection is not None and not updates.made(roles.selection)
    if (
        inner is None
        or roles.trains_on_batch_statistics
        or isinstance(inner, FixedPoint | Step)
        or not solvers.made(inner)
    ):
        return False
    if roles.per_input or own_selection or any(has_hooks(module) for module in model.backbone.modules()):
        return False
    return all(parameter in model.users for parameter in _moving(roles))


def find(passes: BackbonePass, generated: Tensors) -> FixedLayers:
    """Look for fixed layers in a forward on the support set, and see that one with what was kept gives the same.

    They are left alone where it does not, or writes over what was kept, or fails.
    """
    u = {name: value.detach().requires_grad_() for name, value in passes.roles.trained.items()}
    seeds = {n: value.detach().requires_grad_() for n, value in generated.items() if n.startswith("seed.")}
    with torch.no_grad():
        recorded = _recorded(passes, u, seeds, "support")
        if not recorded.places:
            return FixedLayers()
        plain = passes.run(u, {}, seeds, "support")
    free = [value.detach().clone().requires_grad_() for value in recorded.outputs]
    variables = {**u, **seeds}
    try:
        with torch.enable_grad():
            output = passes.run(u, {}, seeds, "support", fixed=Replay(recorded.places, free))
            reached = torch.autograd.grad(output.sum(), [*free, *variables.values()], allow_unused=True)
        given = [value.detach() for value in free]
        versions = [value._version for value in given]
        with torch.no_grad():
            again = passes.run(u, {}, seeds, "support", fixed=Replay(recorded.places, given))
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


def kept(passes: BackbonePass, u: Tensors, seeds: Tensors) -> tuple[FixedLayers | None, dict[str, Tensor]]:
    """The fixed layers, and what they give on the parts that the objectives run on: `kept.<part>.<number>`.

    Args:
        passes: of the batch. u: outer variables. seeds: generated ones.

    Returns: None and `{}` where nothing is kept.
    """
    roles, dropout = passes.roles, passes.masks is not None
    if not may_have(roles):
        return None, {}
    layers = roles.fixed_layers.get(dropout)
    if layers is None:
        layers = roles.fixed_layers[dropout] = find(passes, seeds)
    if not layers.modules:
        return None, {}
    found: dict[str, Tensor] = {}
    for part in dict.fromkeys([*passes.inner_runs, *passes.outer_runs]):
        recorded = _recorded(passes, u, seeds, part)
        if _names(recorded) != layers.modules:
            return None, {}  # another kind of input took another way
        passes.places[part] = recorded.places
        for i, (value, read) in enumerate(zip(recorded.outputs, layers.read)):
            # what is not read by a next layer has a value all the same
            found[f"kept.{part}.{i}"] = value if read else value.detach()
    return layers, found


def _names(recorded: Recording) -> tuple[tuple[str, int], ...]:
    return tuple((place.name, place.before) for place in recorded.places)


def _recorded(passes: BackbonePass, u: Tensors, seeds: Tensors, part: str) -> Recording:
    recording = Recording(_moving(passes.roles))
    with contextlib.suppress(MovingLayerReached):
        passes.run(u, {}, seeds, part, fixed=recording)
    return recording


def _moving(roles: Roles) -> set[str]:
    """The parameters whose updates inner steps move."""
    return {name.rpartition(".")[0] for name in roles.adapted}
