"""Leaf modules of a backbone: those that own parameters, each run as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LeafModule:
    """A module that owns parameters: its name, and its parameters by their name inside it."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]

    @property
    def is_layer(self) -> bool:
        """False for a module that owns a loose parameter beside layers of its own (a ViT and its tokens)."""
        return sum(1 for _ in self.module.parameters()) == len(set(map(id, self.parameters.values())))


def leaf_modules(backbone: nn.Module) -> Iterator[LeafModule]:
    """Every module that owns parameters; `MultiheadAttention` is one leaf module with its output projection."""
    inside_attention: set[nn.Module] = set()
    for name, module in backbone.named_modules():
        if module in inside_attention:
            continue
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.MultiheadAttention):
            own = dict(module.named_parameters())
            inside_attention.update(module.modules())
        if own:
            yield LeafModule(name, module, own)


def is_gpt2_linear(module: nn.Module) -> bool:
    """Whether the module is the `Conv1D` of transformers' GPT-2: a linear layer that stores `(in, out)`."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores its weight `(in, out)`: an `Embedding`, GPT-2's `Conv1D`."""
    return isinstance(module, nn.Embedding) or is_gpt2_linear(module)
