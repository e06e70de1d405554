"""What cannot carry an update per task, each refused by name with the reason."""

from __future__ import annotations

import torch
from torch import nn

from metapeft.updates.formats.format import Format
from metapeft.updates.leaf import LeafModule, is_gpt2_linear


def refuse_backbone(backbone: nn.Module) -> None:
    """Raise ValueError for a backbone that cannot run on several tasks at once, whatever the targets."""
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"backbone={type(backbone).__name__}: a torch.nn.Module is needed")
    for name, module in backbone.named_modules():
        why = _why_not_run(module)
        if why:
            raise ValueError(f"{name or 'the backbone'} ({type(module).__name__}) {why}")


def _why_not_run(module: nn.Module) -> str:
    # by its type too, for a user's layer may be called `_orig_mod`
    if hasattr(module, "_orig_mod") and type(module).__name__ == "OptimizedModule":
        return "is compiled: attach the original module"
    if isinstance(module, torch.jit.ScriptModule):
        return "is compiled to TorchScript: attach the original module"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "replicates its module: attach the module inside it"
    if (
        getattr(module, "gradient_checkpointing", False) is True
        or getattr(module, "grad_checkpointing", False) is True
    ):
        return "uses gradient checkpointing, which runs layers again in the backward pass: turn it off"
    if "quantized" in type(module).__module__.split("."):
        return (
            "is quantised, so nothing can be differentiated through it: attach the model before quantisation"
        )
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters(recurse=False)):
        return "is lazy and has no shapes yet: run the backbone on one input first"
    return ""


def why_not_modulated(leaf: LeafModule, local: str, tied: bool) -> str:
    """Why a layer's output cannot be shifted and gated beside an update of that parameter; empty where it can."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    if local != "weight" or not (type(leaf.module) in kinds or is_gpt2_linear(leaf.module)):
        return "shift and gate act on what Linear, Conv1d and Conv2d give"
    return "its weight is that of another layer too, whose output is another" if tied else ""


def why_no_update(parameter: nn.Parameter, module: nn.Module, format: Format) -> str:
    """Why a parameter of a module cannot carry an update of this format; empty where it can."""
    if not parameter.is_floating_point():
        return (
            f"its dtype is {parameter.dtype}, updates need floating-point weights (is the model quantised?)"
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and (
        module.max_norm is not None or module.scale_grad_by_freq
    ):
        return "an Embedding with max_norm or scale_grad_by_freq changes its weight or gradient on its own"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        return "sparse gradients have no second derivative: use sparse=False"
    return ""
