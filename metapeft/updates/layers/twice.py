"""Functions of torch that have no second derivative, or a wrong one, by ones that have."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metapeft.updates.layers.function import Function


class Twice(TorchFunctionMode):
    """While it is active, hard-sigmoid, Euclidean `cdist` and bags of embeddings have derivatives of every order.

    Args:
        found: receives the name of each function that has one derivative only, and the module that called it.

    Example:
        >>> x = torch.ones((), requires_grad=True)
        >>> with Twice({}):
        ...     y = F.hardsigmoid(x).square()
        >>> slope = torch.autograd.grad(y, x, create_graph=True)[0]
        >>> torch.autograd.grad(slope, x)[0]  # 2 / 36
        tensor(0.0556)
    """

    def __init__(self, found: dict[str, nn.Module | None]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _SERVED and name not in ONCE:
            return func(*args, **(kwargs or {}))
        self.found.setdefault(name, _caller())
        return _SERVED.get(name, func)(*args, **(kwargs or {}))


def hard_sigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """`min(max(x / 6 + 1 / 2, 0), 1)`; never in place.

    Example:
        >>> hard_sigmoid(torch.tensor([-4.0, 0.0, 4.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    y: Tensor = _HardSigmoid.apply(input)
    return y


class _HardSigmoid(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten.hardsigmoid(x)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _inside(ctx.saved_tensors[0], g)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _inside(ctx.saved_tensors[0], tangent)


def _inside(x: Tensor, g: Tensor) -> Tensor:
    return torch.where((x > -3) & (x < 3), g / 6, 0.0)


def distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
    """`torch.cdist`; equal points have the derivative 0, as there.

    Example:
        >>> distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([[5.]])
    """
    if p != 2.0:
        return torch.cdist(x1, x2, p)
    squares = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).square().sum(-1)
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


def bag(input: Tensor, weight: Tensor, offsets: Tensor | None = None, *more: Any, **options: Any) -> Tensor:
    """`F.embedding_bag` of bags of one size, `(B, L)`, where nothing is left out or weighted.

    Example:
        >>> bag(torch.tensor([[0, 1]]), torch.tensor([[1.0], [3.0]]))
        tensor([[2.]])
    """
    names = ("max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights",
             "include_last_offset", "padding_idx")  # fmt: skip
    given = {**dict(zip(names, more)), **options}
    mode = given.pop("mode", "mean")
    plain = not any(value for name, value in given.items() if name not in ("norm_type", "padding_idx"))
    if offsets is not None or input.dim() != 2 or not plain or given.get("padding_idx") is not None:
        return F.embedding_bag(input, weight, offsets, mode=mode, **given)
    rows = F.embedding(input, weight)
    return rows.sum(1) if mode == "sum" else rows.mean(1) if mode == "mean" else rows.amax(1)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`g v / |v|`, the norm over all axes but one, or all (-1); torch's second derivative is wrong where that is last.

    Example:
        >>> weight_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0]]))
        tensor([[6., 8.]])
    """
    others = tuple(axis for axis in range(v.dim()) if axis != dim)
    scaled: Tensor = v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))
    return scaled


_SERVED: dict[str, Callable[..., Any]] = {
    "hardsigmoid": hard_sigmoid, "hardsigmoid_": hard_sigmoid, "cdist": distances, "embedding_bag": bag,
    "_weight_norm": weight_norm,
}  # fmt: skip
#: what has no second derivative, and is not served
ONCE = {
    "grid_sample",
    "pdist",
    "ctc_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "_scaled_dot_product_flash_attention",
}


def _caller() -> nn.Module | None:
    """The innermost module whose method is running."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        inside = frame.f_locals.get("self")
        if isinstance(inside, nn.Module):
            return inside
        frame = frame.f_back
    return None
