"""Give a backbone an update per task: what cannot be attached is refused here, by name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from metapeft.base.arguments import whole
from metapeft.updates.attached import AttachedModel
from metapeft.updates.inputs import Output, Preprocess
from metapeft.updates.module_copies import shared_copy
from metapeft.updates.refusals import refuse_backbone
from metapeft.updates.targets import Formats, Targets, find_classifier, find_sites, note_left_out, patterns

NORMS = ("running", "support", "transductive")


def attach(
    backbone: nn.Module,
    format: Formats,
    targets: Targets = "all",
    norm: str = "running",
    preprocess: Preprocess | None = None,
    classifier: str | None = "auto",
    seed: int = 0,
    output: Output | None = None,
) -> AttachedModel:
    """Give a backbone an update `W0 + Delta_t` for every task of a batch.

    Args:
        backbone: any module; it is not changed, and shares its parameters with the result.
        format: `Full()`, `LoRA()`, `CP()`, `TensorRing()`, or `{pattern: format}`, where the first pattern
            that matches wins; `{}` for no update. What the user froze, `Full` leaves frozen unless it is named.
        targets: `"all"`, `"head"`, `"body"`, a glob over parameter or module names, a module type, or a list.
        norm: where batch norm takes its statistics: `"running"` (the buffers), `"support"` (the task's
            support set), `"transductive"` (the task's batch at hand).
        preprocess: turns uint8 inputs into floats on the model's device; None: `x / 255`.
        classifier: `"auto"` (the last `Linear`), the name of a `Linear`, or None.
        seed: of the factors' random start.
        output: takes the tensor `(rows, ...)` from what the backbone returns; None: of a transformers output or a dict
            its `logits`, else its first tensor, of a tuple the first entry.

    What a target that is no name (`"all"`, a glob, a type) cannot carry is left out: `.left_out` says why, and one
    warning in the log has the dictionary of formats that says the same.

    Raises:
        ValueError: what cannot be attached, by name and with the reason.

    Example:
        >>> import torch
        >>> import metapeft as mp
        >>> model = attach(nn.Linear(3, 2), mp.LoRA(rank=1))
        >>> tuple(model(torch.zeros(4, 5, 3), model.factors()).shape)  # 4 tasks of 5 inputs
        (4, 5, 2)
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: allowed are {', '.join(NORMS)}")
    if preprocess is not None and not callable(preprocess):
        raise ValueError(f"preprocess={preprocess!r}: allowed are a function of uint8 inputs, and None")
    whole(None, seed=seed)
    refuse_backbone(backbone)
    found = find_classifier(backbone, classifier)
    if output is not None and not callable(output):
        raise ValueError(f"output={output!r}: allowed are a function of what the backbone returns, and None")
    left_out: dict[str, str] = {}
    sites = find_sites(backbone, format, targets, found, left_out)
    if left_out:
        note_left_out(left_out, format, targets)
    named = {"head", "body"} & {*patterns(targets), *(format if isinstance(format, Mapping) else ())}
    certain = classifier != "auto" or bool(named)
    return AttachedModel(
        shared_copy(backbone), sites, norm, preprocess, found, certain, seed, output=output, left_out=left_out
    )
