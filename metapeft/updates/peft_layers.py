"""A layer's update as PEFT has it: LoRA factors under its names, a rank, a scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metapeft.updates import factors as _factors
from metapeft.updates.batched import BatchedBackbone
from metapeft.updates.formats.modulation import GATE, SHIFT
from metapeft.updates.formats.site import Site, Sites
from metapeft.updates.leaf import is_gpt2_linear, is_transposed

#: what PEFT writes before the name of a module of the backbone
PREFIX = "base_model.model."
#: how PEFT calls what it puts into an adapted layer
OWN_MODULES: tuple[str, ...] = (
    "base_layer", "lora_dropout", "lora_A", "lora_B", "lora_A.default", "lora_B.default", "lora_embedding_A",
    "lora_embedding_B", "lora_magnitude_vector",
)  # fmt: skip
_LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Adapter:
    """`W0 + (alpha / rank) B A`, the factors by their names inside of a layer of PEFT."""

    tensors: dict[str, Tensor]
    rank: int
    alpha: float


def adapters(
    model: BatchedBackbone, sites: Sites, factors: Mapping[str, Tensor], saved_whole: str | None
) -> tuple[dict[str, Adapter], list[str]]:
    """Layer -> its adapter; and the parameters of rank 0, which PEFT cannot say.

    Args:
        sites: those that are written. factors: of one task, `(1, ...)`.
        saved_whole: the layer that is written as a whole, which has no adapter.

    Raises:
        ValueError: a Full update, or a layer of a type that PEFT's LoRA does not act on, by name.
    """
    found: dict[str, Adapter] = {}
    rank_zero: list[str] = []
    for parameter, local in _factors.by_parameter(sites, factors).items():
        site = sites[parameter]
        users = [layer for layer in model.users.get(parameter, []) if layer != saved_whole]
        if not users and parameter in model.users:
            continue
        if site.format.dense:
            raise ValueError(
                f"{parameter!r} has a Full update, which PEFT's LoRA cannot say: use LoRA, CP or TensorRing"
            )
        if parameter in model.loose:
            raise ValueError(
                f"{parameter!r} is read by other code than a layer of its own, and PEFT's LoRA acts on layers: leave "
                "it out of targets to export"
            )
        if site.format.terms == 0:
            rank_zero.append(parameter)
            continue
        if any(bool(local[name].any()) for name in (SHIFT, GATE) if name in local):
            raise ValueError(
                f"{parameter!r} shifts or gates its layer's output, which PEFT's LoRA cannot say: merged() has "
                "it inside"
            )
        plain = "seed" not in local  # LoRA itself keeps its factors and its scale
        lora = local if plain else site.format.to_lora(local)
        scale = getattr(site.format, "scale", 1.0) if plain else 1.0
        for layer in users:
            found[layer] = _adapter(model.module, layer, parameter, site, lora, scale)
    return found, rank_zero


def _adapter(
    backbone: nn.Module, layer: str, parameter: str, site: Site, lora: Mapping[str, Tensor], scale: float
) -> Adapter:
    refuse_shared(backbone, layer)
    module = backbone.get_submodule(layer)
    if type(module) not in _LAYERS and not is_gpt2_linear(module):
        raise ValueError(
            f"{parameter!r} belongs to {layer!r} ({type(module).__name__}): PEFT's LoRA acts on Linear, "
            "Conv, Embedding and GPT-2's Conv1D; leave it out of targets to export"
        )
    down, up = lora["A"][0], lora["B"][0]
    if is_transposed(module) != site.geometry.transposed:  # the other layer of a tied pair
        down, up = up.T, down.T
    scale, down, up = _within_limit(scale, down, up)
    down = block_diagonal(down, int(getattr(module, "groups", 1)))
    rank = down.shape[0]
    if isinstance(module, nn.Embedding):
        tensors = {"lora_embedding_A": down, "lora_embedding_B": up}
    else:
        pointwise = up.reshape(*up.shape, *[1] * (down.dim() - 2))
        tensors = {"lora_A.weight": down, "lora_B.weight": pointwise}
    return Adapter(tensors, rank, scale * rank)


def refuse_shared(backbone: nn.Module, layer: str) -> None:
    """Raise ValueError where a layer is registered in two places: PEFT's adapter acts in the first of them only."""
    if not layer:
        raise ValueError(
            "the backbone is itself the layer with the update, and PEFT adapts layers inside of a module: put it into "
            "one, such as nn.Sequential"
        )
    module = backbone.get_submodule(layer)
    places: dict[tuple[nn.Module, str], str] = {}
    for name, other in backbone.named_modules(remove_duplicate=False):
        if other is module:
            parent, _, local = name.rpartition(".")
            places.setdefault((backbone.get_submodule(parent), local), name)
    if len(places) > 1:
        raise ValueError(
            f"{' and '.join(places.values())} are one layer, where an update acts at each use and PEFT's only in the "
            "first: leave it out, or make them two"
        )


def block_diagonal(down: Tensor, groups: int) -> Tensor:
    """`A` `(r, in/g, *kernel)` as `(g r, in, *kernel)`, zero but for a copy of it in each group's block.

    Example:
        >>> block_diagonal(torch.ones(1, 2), groups=2)
        tensor([[1., 1., 0., 0.],
                [0., 0., 1., 1.]])
    """
    eye = torch.eye(groups, dtype=down.dtype, device=down.device)
    blocks = torch.einsum("gh,ri...->grhi...", eye, down)
    return blocks.flatten(0, 1).flatten(1, 2)


def _within_limit(scale: float, down: Tensor, up: Tensor) -> tuple[float, Tensor, Tensor]:
    """The same update at the largest rank that the layer can have, where a tensor ring's R^2 is above it."""
    limit = min(up.shape[0], down[0].numel())
    if down.shape[0] <= limit:
        return scale, down, up
    delta = scale * torch.einsum("or,ri...->oi...", up, down)
    eye = torch.eye(limit, dtype=down.dtype, device=down.device)
    if up.shape[0] == limit:
        return 1.0, delta, eye
    return 1.0, eye.view(limit, *down.shape[1:]), delta.flatten(1)
