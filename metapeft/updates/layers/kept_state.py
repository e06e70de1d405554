"""Tensors that modules keep from one forward to the next: a cache made of one task's weights is wrong for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_OWN = {"_parameters", "_buffers", "_modules", "forward"}
_MISSING = object()

Attributes = dict[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Kept:
    """An attribute that a forward changed: its module, its name, and what it was before."""

    name: str
    attribute: str
    before: Any

    def put_back(self, modules: Mapping[str, nn.Module]) -> None:
        """Make it what it was, in a module of that name."""
        module = modules[self.name]
        if self.before is _MISSING:
            vars(module).pop(self.attribute, None)
        else:
            vars(module)[self.attribute] = _contents(self.before)


def attributes(backbone: nn.Module) -> Attributes:
    """What the modules have beside parameters, buffers and modules, with containers as copies."""
    return {
        module: {
            name: _contents(value)
            for name, value in vars(module).items()
            if name not in _OWN and "hook" not in name
        }
        for module in backbone.modules()
    }


def changed(backbone: nn.Module, before: Attributes) -> list[Kept]:
    """The attributes that hold other tensors than before.

    Example:
        >>> import torch
        >>> layer = nn.Identity()
        >>> before = attributes(layer)
        >>> layer.seen = {"x": torch.zeros(1)}
        >>> [kept.attribute for kept in changed(layer, before)]
        ['seen']
    """
    found = []
    for name, module in backbone.named_modules():
        for attribute, value in vars(module).items():
            if attribute in _OWN or "hook" in attribute:
                continue
            was = before[module].get(attribute, _MISSING)
            if _tensors(was) != _tensors(value):
                found.append(Kept(name, attribute, was))
    return found


def _contents(value: Any) -> Any:
    return value.copy() if type(value) in (dict, list, set) else value


def _tensors(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        return [id(value)]
    if isinstance(value, dict):
        return [part for item in value.values() for part in _tensors(item)]
    if isinstance(value, list | tuple):
        return [part for item in value for part in _tensors(item)]
    return []
