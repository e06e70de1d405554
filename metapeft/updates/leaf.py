"""Leaf modules of a backbone: those that own parameters, each run as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

_LISTS = (nn.ParameterList, nn.ParameterDict, parametrize.ParametrizationList)
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class LeafModule:
    """A module that owns parameters: its name, and its parameters by their name inside it."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]

    @property
    def is_layer(self) -> bool:
        """False where other code than its forward reads them: beside layers (a token), in lists, parametrised."""
        if isinstance(self.module, _LISTS) or parametrize.is_parametrized(self.module):
            return False
        if computed_tensors(self.module):
            return False
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


def computed_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that a hook of the module computes from its parameters: weight_norm, spectral_norm, pruning."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and {f"{name}_g", f"{name}_orig"} & module._parameters.keys()
    }


def is_gpt2_linear(module: nn.Module) -> bool:
    """Whether the module is the `Conv1D` of transformers' GPT-2: a linear layer that stores `(in, out)`."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def is_transposed(module: nn.Module) -> bool:
    """Whether the module stores its weight `(in, out)`: an `Embedding`, GPT-2's `Conv1D`, a transposed convolution."""
    return isinstance(module, nn.Embedding | _Transposed) or is_gpt2_linear(module)
