"""Functions of torch that are wrong under `torch.vmap`, or do not run there: served by others that are right."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metapeft.updates.layers.recurrent import UNROLLED
from metapeft.updates.layers.twice import weight_norm


class VmapGaps(TorchFunctionMode):
    """While it is active, recurrent layers are unrolled, and an embedding's padding row receives no gradient.

    Under `torch.vmap`, torch masks the gradient of the padding row of the first task only, and its kernels of recurrent
    layers take one weight.

    Example:
        >>> tables = torch.ones(2, 3, 1, requires_grad=True)
        >>> look_up = lambda table: F.embedding(torch.tensor([0, 1]), table, padding_idx=0)
        >>> with VmapGaps():
        ...     rows = torch.func.vmap(look_up)(tables)
        >>> torch.autograd.grad(rows.sum(), tables)[0].squeeze(-1)
        tensor([[0., 1., 0.],
                [0., 1., 0.]])
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding or func is torch.embedding:
            return _embedding(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name == "_weight_norm":
            return weight_norm(*args, **kwargs)
        return UNROLLED.get(name, func)(*args, **kwargs)


def _embedding(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if func is F.embedding:
        names, unpadded = ("input", "weight", "padding_idx"), None
    else:
        names, unpadded = ("weight", "indices", "padding_idx"), -1
    given = {**dict(zip(names, args)), **kwargs}
    padding = given.pop("padding_idx", unpadded)
    weight, index = given.pop("weight"), given.pop("input" if func is F.embedding else "indices")
    first = (index, weight) if func is F.embedding else (weight, index)
    rows: Tensor = func(*first, unpadded, *args[3:], **given)
    if padding == unpadded:
        return rows
    padding = padding + weight.shape[0] if padding < 0 else padding
    return torch.where((index == padding).unsqueeze(-1), rows.detach(), rows)
