"""Torch's `autograd.Function`, called with less ado: a meta-step of one task calls ours some 300 times."""

from __future__ import annotations

from typing import Any

import torch

_transforms_are_active = getattr(torch._C, "_are_functorch_transforms_active", None)


def transforms_are_active() -> bool:
    """Whether this runs under a transform of `torch.func`; True where torch does not tell."""
    return _transforms_are_active is None or bool(_transforms_are_active())


class Function(torch.autograd.Function):
    """A function with `setup_context`, whose `apply` takes all arguments of `forward`, in their order.

    Torch's reads the signature of `forward` at each call, to fill in defaults, which takes twice as long as the rest of
    a call (20 of 30 us, one product of 2 x 2). Under transforms of `torch.func` this one does as torch does.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if transforms_are_active():
            return super().apply(*args)  # type: ignore[no-untyped-call]
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


def wanted(ctx: Any, argument: int) -> bool:
    """Whether this backward pass goes on to an argument: of a frozen weight in an inner gradient it does not.

    Torch tells its own functions so; where it cannot tell (a leaf tensor), the answer is what `needs_input_grad` says.
    """
    if not ctx.needs_input_grad[argument]:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[argument][0]))
    except (AttributeError, RuntimeError):
        return True
