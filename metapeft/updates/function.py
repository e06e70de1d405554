"""Torch's `autograd.Function`, called with less ado: a meta-step of one task calls ours some 300 times."""

from __future__ import annotations

from typing import Any

import torch

_transforms_are_active = getattr(torch._C, "_are_functorch_transforms_active", None)


class Function(torch.autograd.Function):
    """A function with `setup_context`, whose `apply` takes all arguments of `forward`, in their order.

    Torch's reads the signature of `forward` at each call, to fill in defaults, which takes twice as long as the rest of
    a call (20 of 30 us, one product of 2 x 2). Under transforms of `torch.func` this one does as torch does.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if _transforms_are_active is None or _transforms_are_active():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]
