"""The attached model that a training without episodes stands on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from metapeft.updates.attach_model import attach
from metapeft.updates.attached import AttachedModel
from metapeft.updates.copying import frozen
from metapeft.updates.formats.format import Format
from metapeft.updates.formats.full import Full
from metapeft.updates.targets import Formats, Pattern, Targets, patterns


def to_train(
    model: nn.Module | AttachedModel,
    format: Formats,
    targets: Targets,
    full: Sequence[str],
    seed: int,
    device: torch.device | None,
) -> AttachedModel:
    """A backbone with updates in a format on `targets`, and full ones where `full` says.

    Args:
        format: one, or `{pattern: format}` in place of targets.
        model: a backbone, or an attached one, which comes back as it is; neither is changed.
        device: of the backbone's copy; None for where it is.

    Raises:
        ValueError: what `attach` refuses; no format for a backbone, or one beside an attached model; a model without
            updates, or whose norm is not the buffers'.

    Example:
        >>> import metapeft as mp
        >>> net = mp.backbones.mlp(4, 2, hidden=(3,))
        >>> list(to_train(net, mp.LoRA(1), "body", ("head",), 0, None).sites)
        ['linear1.weight', 'classifier.weight', 'classifier.bias']
    """
    if isinstance(model, AttachedModel):
        if format is not None or targets != "all" or full or device is not None:
            raise ValueError(
                "format=, targets=, full= and device= are for a backbone: this model was attached with its own"
            )
        attached = model
    else:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model is of type {type(model).__name__}: a torch.nn.Module is needed")
        if format is None and not full:
            raise ValueError("format=None: say what is trained, such as format=mp.LoRA(8, alpha=16.0)")
        formats: dict[Pattern, Format | None] = {pattern: Full() for pattern in full}
        if isinstance(format, Mapping):
            if targets != "all":
                raise ValueError(
                    f"targets={targets!r}: a dict of formats already says where each of them goes"
                )
            formats = {**formats, **format}
        elif format is not None:
            formats.update({pattern: format for pattern in patterns(targets) if pattern not in formats})
        backbone = model if device is None else copy.deepcopy(model).to(device)
        attached = attach(backbone, formats, seed=seed)
    if attached.norm != "running":
        raise ValueError(f'norm="{attached.norm}" is for episodes: rows without tasks need norm="running"')
    if not attached.sites:
        raise ValueError(
            "the model has no updates, so that there is nothing to train: give attach() a format"
        )
    if any(value.requires_grad for value in attached.parameters.values()):
        return frozen(attached)
    return attached
