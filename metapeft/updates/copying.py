"""Other models on the same backbone: copies with weights of their own, views with other updates."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from metapeft.updates.attached import AttachedModel
from metapeft.updates.formats.site import Site
from metapeft.updates.module_copies import own_copy


def copied(
    model: AttachedModel,
    keep_classifier: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[AttachedModel, list[str]]:
    """The same model on weights and buffers of its own, none of which asks for gradients.

    Args:
        keep_classifier: False drops the classifier's updates: only `features` is meant to be used.
        device, dtype: of the copy; None for the backbone's.

    Returns: the copy, and the names of the parameters that an outer loop may train: those that asked for
        gradients, less a dropped classifier's.

    Raises:
        ValueError: a complex parameter that asks for gradients, which nothing here can train.
    """
    for name, value in model.module.named_parameters():
        if value.requires_grad and value.is_complex():
            raise ValueError(
                f"{name!r} is {value.dtype}, and complex weights cannot be trained: keep real and imaginary part "
                "as two (torch.view_as_real), or freeze it, requires_grad_(False)"
            )
    module = own_copy(model.module).to(device=device, dtype=dtype)
    held: list[Tensor] = [*module.parameters(), *module.buffers()]
    for tensor in held:
        if tensor.dim() == 4:  # two-dimensional convolutions are faster so
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    dropped = (
        set()
        if keep_classifier or model.classifier is None
        else {f"{model.classifier}.weight", f"{model.classifier}.bias"}
    )
    trainable = [
        name for name, value in model.module.named_parameters() if value.requires_grad and name not in dropped
    ]
    sites = {name: site for name, site in model.sites.items() if name not in dropped}
    preprocess = model.preprocess
    if isinstance(preprocess, nn.Module):
        preprocess = copy.deepcopy(preprocess).to(device=device, dtype=dtype)
    other = AttachedModel(
        module.requires_grad_(False),
        sites,
        model.norm,
        preprocess,
        model.classifier,
        model.classifier_is_certain,
        model.seed,
        output=model.output,
        left_out=model.left_out,
        given_start=model.given_start,
    )
    return other, trainable


def frozen(model: AttachedModel) -> AttachedModel:
    """The same model on the same storage, no parameter of which asks for gradients."""
    module = model.module
    memo: dict[int, object] = {
        id(value): nn.Parameter(value.detach(), False) for value in module.parameters()
    }
    memo.update({id(value): value for value in module.buffers()})
    return AttachedModel(
        copy.deepcopy(module, memo),
        model.sites,
        model.norm,
        model.preprocess,
        model.classifier,
        model.classifier_is_certain,
        model.seed,
        model.dropout,
        model.output,
        model.left_out,
        model.given_start,
    )


def viewed(
    model: AttachedModel,
    sites: dict[str, Site] | None = None,
    norm: str | None = None,
    dropout: bool = False,
) -> AttachedModel:
    """Another model on the same weights and buffers, with other updates or normalisation, or with dropout."""
    return AttachedModel(
        model.module,
        model.sites if sites is None else sites,
        model.norm if norm is None else norm,
        model.preprocess,
        model.classifier,
        model.classifier_is_certain,
        model.seed,
        dropout,
        model.output,
        model.left_out,
        model.given_start,
    )


def feature_size(model: AttachedModel, instead: str) -> int:
    """The number of features that the classifier reads; raises ValueError where there is no classifier.

    Args:
        instead: what to do then, for the message.
    """
    if model.classifier is None:
        raise ValueError(
            f"the backbone has no Linear as classifier, so its number of features is unknown: {instead}"
        )
    return int(model.module.get_submodule(model.classifier).in_features)  # type: ignore[arg-type]
