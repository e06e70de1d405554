"""Where the tensors of a module stand: a tensor may have several names, and so may the module that owns it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def slots(module: nn.Module) -> dict[int, list[str]]:
    """Every parameter and buffer, by its identity -> a name for each module and attribute that holds it.

    A module that is registered under two names holds its tensors once; two modules that share one hold it twice.

    Example:
        >>> layer, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> other.weight = layer.weight
        >>> list(slots(nn.ModuleList([layer, layer, other])).values())
        [['0.weight', '2.weight']]
    """
    found: dict[int, list[str]] = {}
    for name, owner in module.named_modules():
        own = {
            **dict(owner.named_parameters(recurse=False, remove_duplicate=False)),
            **dict(owner.named_buffers(recurse=False, remove_duplicate=False)),
        }
        for local, value in own.items():
            found.setdefault(id(value), []).append(f"{name}.{local}" if name else local)
    return found


class Slots:
    """The slots of a module, by every name that its tensors have; `first` has one name for each tensor.

    `torch.func.functional_call` puts back what it took from each *name*, which leaves its own tensor behind in a module
    that is registered under two: given one name a slot and `tie_weights=False`, it changes nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        by_identity = slots(module)
        named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
        named.update(module.named_buffers(remove_duplicate=False))
        self.first = tuple(slots[0] for slots in by_identity.values())
        self.names = {name: tuple(by_identity[id(value)]) for name, value in named.items()}

    def filled(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One value for each slot of the tensors named.

        Raises:
            ValueError: two different values under two names of one tensor.

        Example:
            >>> import torch
            >>> layer = nn.Linear(2, 2)
            >>> both = nn.ModuleList([layer, layer])
            >>> list(Slots(both).filled({"1.bias": torch.zeros(2)}))
            ['0.bias']
        """
        found: dict[str, Tensor] = {}
        for name, value in values.items():
            for slot in self.names[name]:
                if found.setdefault(slot, value) is not value:
                    raise ValueError(
                        f"{name!r} and {slot!r} are one tensor of the backbone, but two values are given for it"
                    )
        return found
