"""The skeleton of a backbone: its structure copied, its parameters shared, its leaves taught about tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metapeft.updates import layers
from metapeft.updates.call import Call, Holder
from metapeft.updates.normalization import batch_norm, is_batch_norm
from metapeft.updates.targets import Leaf, Site, is_transposed, leaves

Forward = Callable[..., Any]
_EXACT: dict[type[nn.Module], layers.Run] = {
    nn.Linear: layers.linear,
    nn.Conv1d: layers.convolution,
    nn.Conv2d: layers.convolution,
    nn.Embedding: layers.embedding,
    nn.LayerNorm: layers.layer_norm,
    nn.GroupNorm: layers.group_norm,
}


def share(module: nn.Module) -> nn.Module:
    """A copy of a module's structure with the same parameter and buffer objects inside."""
    memo: dict[int, Any] = {id(value): value for value in module.parameters()}
    memo.update({id(value): value for value in module.buffers()})
    return copy.deepcopy(module, memo)


def refuse_backbone(backbone: nn.Module) -> None:
    """Raise ValueError for modules that cannot run with one update per task, by name."""
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"backbone={type(backbone).__name__}: a torch.nn.Module is needed")
    for name, module in backbone.named_modules():
        at = f"{name or 'the backbone'} ({type(module).__name__})"
        if hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{at} is compiled: attach the original module, and compile nothing inside it")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ValueError(f"{at} replicates its module: attach the module inside it")
        if getattr(module, "gradient_checkpointing", False) is True:
            raise ValueError(
                f"{at} uses gradient checkpointing, which runs layers twice: turn it off; method='recompute' saves memory instead"
            )


def build(module: nn.Module, sites: dict[str, Site], holder: Holder) -> tuple[nn.Module, set[str]]:
    """Copy a backbone's skeleton and give each leaf that needs it a forward of its own.

    Returns: the skeleton in eval mode, and the names of parameters with an update that no layer owns.
    """
    skeleton = share(module).eval()
    by_parameter = {id(parameter): name for name, parameter in module.named_parameters()}
    loose: set[str] = set()
    for leaf in leaves(skeleton):
        local = {
            name: by_parameter[id(parameter)]
            for name, parameter in leaf.parameters.items()
            if by_parameter[id(parameter)] in sites
        }
        if not leaf.is_layer:
            loose.update(local.values())
            continue
        normalises = is_batch_norm(leaf.module)
        if local or normalises or leaf.name == holder.classifier:
            _teach(leaf, local, holder)
    for name, child in skeleton.named_modules():
        if is_batch_norm(child) and not dict(child.named_parameters(recurse=False)):
            _teach(Leaf(name, child, {}), {}, holder)
    return skeleton, loose


def _teach(leaf: Leaf, local: dict[str, str], holder: Holder) -> None:
    """Replace one leaf's forward. `local` maps its parameters' names to the backbone's, where they carry an update."""
    module, clone = leaf.module, share(leaf.module)
    run = _EXACT.get(type(module))
    if run is None and is_transposed(module):
        run = layers.linear
    plain: Forward = module.forward

    def updated(call: Call, args: Any, kwargs: Any) -> Any:
        updates = {name: call.updates[full] for name, full in local.items() if full in call.updates}
        call.fired.update(local.values())
        if is_batch_norm(module):
            return batch_norm(module, clone, call, updates, leaf.name, args[0])
        if not updates:
            return plain(*args, **kwargs)
        if run is None:
            return layers.own_forward(clone, module, call, updates, args, kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        return run(module, call, updates, x)

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = holder.current()
        classifies = holder.classifier is not None and leaf.name == holder.classifier
        if classifies and call.features:
            return args[0]
        result = updated(call, args, kwargs)
        if classifies:
            call.classifier_output = result
        return result

    module.forward = forward  # type: ignore[method-assign]
