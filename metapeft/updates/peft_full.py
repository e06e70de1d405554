"""What an adapter of PEFT changes of a layer beyond LoRA, as a full update: DoRA, and base weights that it brings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from metapeft.updates.formats.format import Geometry
from metapeft.updates.formats.lora import LoRA
from metapeft.updates.leaf import is_transposed

#: what PEFT adds to a layer's name, and what it is here
SUFFIXES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".base_layer.weight": "base",
}


def full_delta(
    module: nn.Module,
    weight: Tensor,
    base: Tensor | None,
    lora: tuple[LoRA, Mapping[str, Tensor]],
    magnitude: Tensor | None,
) -> Tensor:
    """`W - W0` as the layer stores it, of `W = V + s B A`, under DoRA of `m V' / |V'|` with that as `V'`.

    The norm is that of each output's row, over inputs and kernel; for an embedding of each of its dimensions.

    Args:
        weight: W0, as the backbone has it. base: V, where the adapter brings it; None for W0.
        lora: format and factors, without the task axis. magnitude: m, of `out` numbers in any shape.

    Source: DoRA, Liu et al. 2024 (arXiv 2402.09353), equation 5.
    """
    format, factors = lora
    geometry = Geometry(tuple(weight.shape), is_transposed(module))
    local = {name: value.unsqueeze(0).to(weight) for name, value in factors.items()}
    start = weight if base is None else base.to(weight)
    moved = start + geometry.stored(format.delta(local))[0]
    if magnitude is not None:
        axis = 1 if geometry.transposed else 0
        rest = [at for at in range(moved.dim()) if at != axis]
        shape = [-1 if at == axis else 1 for at in range(moved.dim())]
        norm = moved.square().sum(rest, keepdim=True).sqrt()
        moved = moved / norm * magnitude.to(weight).reshape(shape)
    return moved - weight


def check_layer(
    folder: Path, layer: str, module: nn.Module, weight: Tensor, given: Mapping[str, Tensor], dora: bool
) -> None:
    """Raise ValueError for a layer whose parts do not make an update of this backbone's."""
    base, magnitude = given.get("base"), given.get("magnitude")
    if base is not None and base.shape != weight.shape:
        rows = isinstance(module, nn.Embedding) and base.shape[1:] == weight.shape[1:]
        advice = f": backbone.resize_token_embeddings({len(base)}) first" if rows else ""
        raise ValueError(
            f"{folder} brings a weight of {layer!r} of shape {tuple(base.shape)}, the backbone has "
            f"{tuple(weight.shape)}{advice}"
        )
    if dora != (magnitude is not None):
        what = "no magnitude of" if dora else "a magnitude (DoRA) of"
        raise ValueError(f"{folder} has use_dora={dora}, but {what} {layer!r}: its files do not go together")
    if magnitude is None:
        return
    if int(getattr(module, "groups", 1)) > 1:
        raise ValueError(
            f"{folder} has DoRA on {layer!r}, a convolution with groups: that cannot be read; merge it with PEFT "
            "(merge_and_unload) and take the merged model as backbone"
        )
    outputs = Geometry(tuple(weight.shape), is_transposed(module)).out
    if magnitude.numel() != outputs:
        raise ValueError(
            f"{folder} has a magnitude of {magnitude.numel()} numbers for {layer!r}, which has {outputs} outputs"
        )
