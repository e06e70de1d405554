"""What depends on the outer variables and the batch, but not on the inner ones: computed once, read many times."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metapeft.generators.features import EMBEDDER
from metapeft.generators.support import Support
from metapeft.learner.backbone_pass import BackbonePass
from metapeft.learner.fixed_layers import kept
from metapeft.learner.roles import FixedLayers, Tensors

PREFIX = "derived."  # of what is derived among the outer variables of an engine


@dataclass(frozen=True)
class Derived:
    """What `derive` made.

    Args:
        values: `seed.<name>` (a seed a task), `support.<name>` and `query.<name>` (a seed an input), `head.weight`
            and `head.bias` (the start of an adapted head), and of the layers before the first that inner steps move
            `kept.<part>.<number>`.
        layers: those whose outputs were kept; None for none.
        inner_only: names of what was kept and only the inner objective reads.
    """

    values: dict[str, Tensor]
    layers: FixedLayers | None = None
    inner_only: frozenset[str] = frozenset()


def derive(passes: BackbonePass, u: Tensors, keep: bool = True) -> Derived:
    """Generated seeds, fixed layers and the start of an adapted head.

    Args:
        passes: of the batch. u: outer variables; those that are missing are the learner's own.
        keep: False leaves fixed layers out, and the objectives run all layers each time.
    """
    roles = passes.roles
    seeds = generated_seeds(passes, u)
    layers, outputs = kept(passes, u, seeds) if keep else (None, {})
    values = {**seeds, **outputs}
    if roles.adapts_head:
        known = values if "kept.support.0" in values else seeds
        part = "both" if passes.batch_statistics and "query" in passes.parts.names else "support"
        features = passes.run(u, {}, known, part)[:, : passes.parts.support.count]
        values.update(roles.head_start(u, features, passes.parts.support, passes.ways))
    if layers is None:
        return Derived(values)
    parts = set(passes.inner_runs) - set(passes.outer_runs)
    alone = {f"kept.{part}.{i}" for part in parts for i in range(len(layers.read))}
    return Derived(values, layers, frozenset(alone))


def generated_seeds(passes: BackbonePass, u: Tensors) -> dict[str, Tensor]:
    """Seeds, shifts and gates: start plus what the generator makes of features and labels; `{}` without one.

    `seed.<name>` `(T, ...)` from the support set, or per input `support.<name>` and `query.<name>` `(T, B, ...)`.
    """
    roles = passes.roles
    generator = roles.generator
    if generator is None:
        return {}
    parameters = {name: roles.value(u, f"generator.{name}") for name in roles.generator_names}
    seeds: dict[str, Tensor] = {}
    of_generator = {name: parameters.pop(name) for name in list(parameters) if name.startswith(EMBEDDER)}
    items = passes.seen
    for part, features in passes.features(of_generator).items():
        shown = Support(features) if roles.per_input else Support(features, items.y, items.mask, passes.ways)
        for name, added in generator(parameters, roles.seeds, shown).items():
            begin = roles.value(u, f"factors.{name}")
            if roles.per_input:
                seeds[f"{part}.{name}"] = added + begin.unsqueeze(1)
            else:
                seeds[f"seed.{name}"] = added + begin
    return seeds


def parted(u: Tensors, constant: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An engine's outer variables: those of the learner, and what is derived, with what of it gets no gradient.

    Example:
        >>> parted({"weights.w": Tensor([3.0]), "derived.seed.a": Tensor([1.0])}, {"head.bias": Tensor([2.0])})
        ({'weights.w': tensor([3.])}, {'head.bias': tensor([2.]), 'seed.a': tensor([1.])})
    """
    own = {name: value for name, value in u.items() if not name.startswith(PREFIX)}
    made = {name.removeprefix(PREFIX): value for name, value in u.items() if name.startswith(PREFIX)}
    return own, {**constant, **made}
