"""The skeleton of a backbone: its structure copied, its parameters shared, its leaf modules taught about tasks."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from metapeft.updates.chains import Chain, chains
from metapeft.updates.formats.site import Site
from metapeft.updates.layers import by_kind, shared_input
from metapeft.updates.layers.call import Call, Holder
from metapeft.updates.layers.dropout import announce, in_training
from metapeft.updates.layers.layout import Key, Layout, spread
from metapeft.updates.layers.nests import arguments, tensors
from metapeft.updates.layers.normalization import batch_norm, is_batch_norm
from metapeft.updates.layers.slots import Slots
from metapeft.updates.layers.vectorized import own_forward
from metapeft.updates.leaf import LeafModule, is_gpt2_linear, leaf_modules
from metapeft.updates.module_copies import shared_copy

_EXACT: dict[type[nn.Module], by_kind.Run] = {
    nn.Linear: by_kind.linear,
    nn.Conv1d: by_kind.convolution,
    nn.Conv2d: by_kind.convolution,
    nn.Embedding: by_kind.embedding,
    nn.LayerNorm: by_kind.layer_norm,
    nn.RMSNorm: by_kind.rms_norm,
    nn.GroupNorm: by_kind.group_norm,
}


def build(
    module: nn.Module, sites: dict[str, Site], holder: Holder, dropout: bool = False
) -> tuple[nn.Module, list[str], dict[str, list[str]]]:
    """Copy a backbone's skeleton and give each leaf module that needs it a forward of its own.

    Returns: the skeleton in eval mode, or with `dropout` in train mode but for its norms; the names of parameters
    with an update that no layer owns; and for every other parameter with an update the leaf modules that use it.
    """
    skeleton = shared_copy(module).eval()
    if dropout:
        in_training(skeleton)
    by_parameter = {id(parameter): name for name, parameter in module.named_parameters()}
    loose: list[str] = []
    users: dict[str, list[str]] = {}
    in_layers = {p for leaf in leaf_modules(skeleton) if leaf.is_layer for p in leaf.parameters.values()}
    for leaf in leaf_modules(skeleton):
        full = {name: by_parameter[id(parameter)] for name, parameter in leaf.parameters.items()}
        local = {name: parameter for name, parameter in full.items() if parameter in sites}
        if not leaf.is_layer:
            loose += [own for name, own in local.items() if leaf.parameters[name] not in in_layers]
            continue
        for parameter in local.values():
            users.setdefault(parameter, []).append(leaf.name)
        if local or is_batch_norm(leaf.module) or leaf.name == holder.classifier:
            _teach(leaf, local, holder)
    for name, child in skeleton.named_modules():
        if is_batch_norm(child) and not dict(child.named_parameters(recurse=False)):
            _teach(LeafModule(name, child, {}), {}, holder)
        if isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward:
            _join(child, f"{name}." if name else "", by_parameter, sites, holder)
    if dropout:
        announce(skeleton, holder)  # last, for what has hooks is in no chain
    return skeleton, loose, users


def _join(
    sequential: nn.Sequential, prefix: str, names: dict[int, str], sites: dict[str, Site], holder: Holder
) -> None:
    """Let the chains in a Sequential run as one step each, if it has any."""
    filed = {
        f"{prefix}{name}": names[id(value)]
        for name, value in sequential.named_parameters(remove_duplicate=False)
        if names[id(value)] in sites
    }
    steps = chains(sequential, prefix, filed)
    if not any(isinstance(step, Chain) for step in steps):
        return

    def forward(input: Tensor) -> Any:
        for step in steps:
            input = _chained(step, holder.current(), input) if isinstance(step, Chain) else step(input)
        return input

    sequential.forward = forward  # type: ignore[method-assign]


def _chained(chain: Chain, call: Call, input: Tensor) -> Any:
    return call.run(f"chain {chain.norm_name}", chain.sites.values(), lambda: chain(call, input))


def let_record(skeleton: nn.Module, users: dict[str, list[str]], holder: Holder) -> None:
    """Let runs record what the modules give, and hand it back.

    Args:
        users: a parameter with an update -> the leaf modules that use it.
    """
    owned: dict[str, list[str]] = {}
    for parameter, names in users.items():
        for name in names:
            owned.setdefault(name, []).append(parameter)

    def teach(name: str, module: nn.Module) -> None:
        plain = module.forward

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = holder.call
            if call is None or call.recording is None:
                return plain(*args, **kwargs)
            return call.run(name, owned.get(name, ()), lambda: plain(*args, **kwargs))

        module.forward = forward

    for name, module in skeleton.named_modules():
        if name:
            teach(name, module)


def _teach(leaf: LeafModule, local: dict[str, str], holder: Holder) -> None:
    """Replace a leaf module's forward.

    Args:
        leaf: the module. local: its parameters that carry an update, by name inside it -> name in the backbone.
        holder: where the forward finds the run that is going on.
    """
    module, clone = leaf.module, shared_copy(leaf.module)
    slots = Slots(clone)
    run = by_kind.linear if is_gpt2_linear(module) else _EXACT.get(type(module))
    plain, channels = module.forward, 1 if isinstance(module, nn.Conv1d | nn.Conv2d) else -1

    def updated(call: Call, visit: tuple[str, int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.tracing is not None and call.tracing.learning and local:
            return shared_input.noted(plain, call.tracing, holder.layouts, visit, args, kwargs)
        updates = {name: call.updates[full] for name, full in local.items() if full in call.updates}
        if is_batch_norm(module):
            return batch_norm(module, clone, call, updates, leaf.name, _first(args, kwargs))
        if not updates:
            return plain(*args, **kwargs)
        if run is None:
            return own_forward(clone, slots, module, call, updates, holder, visit, args, kwargs)

        def modulated(y: Tensor) -> Tensor:
            own = updates["weight"].modulation if "weight" in updates else None
            return y if own is None else own(y, call.tasks, call.items, channels)

        x = _first(args, kwargs)
        layout = holder.layouts.get(
            (*visit, 0 if args else next(iter(kwargs))), Layout(0, x.dim(), x.shape[0])
        )
        axis = layout.locate(x, call.rows, call.tracing is not None)
        if axis:
            return modulated(run(module, call, updates, x.movedim(axis, 0))).movedim(0, axis)
        if axis is None and call.tracing is not None:
            if any(update.modulation is not None for update in updates.values()):
                raise ValueError(
                    f"{leaf.name}: its input has no batch axis, so its output cannot be shifted or gated by task; "
                    "take a format without shift and gate there"
                )
            return shared_input.shared(run, module, call, call.tracing, updates, x)
        return modulated(run(module, call, updates, x if axis == 0 else spread(x, call.rows)))

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = holder.current()
        visit = (leaf.name, call.visits[leaf.name])
        call.visits[leaf.name] += 1
        if call.features and leaf.name == holder.classifier:
            return _first(args, kwargs)
        result = updated(call, visit, args, kwargs)
        if leaf.name == holder.classifier and isinstance(result, Tensor):
            call.classifier_output = result
        if call.shapes is not None:
            call.shapes.update(_shapes(visit, args, kwargs, result))
        return result

    module.forward = forward


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _shapes(
    visit: tuple[str, int], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> dict[Key, tuple[int, ...]]:
    values: dict[Any, Tensor] = {**arguments(args, kwargs)}
    values.update({("output", index): value for index, value in enumerate(tensors(result))})
    return {(*visit, key): tuple(value.shape) for key, value in values.items()}
