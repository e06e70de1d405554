"""The forward in bfloat16, everything else in float32."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def check_autocast(autocast: torch.dtype | None, like: Tensor) -> None:
    """Raise ValueError for a type that `Learner(autocast=...)` does not take, or parameters it does not go with.

    Example:
        >>> check_autocast(torch.float16, torch.zeros(1))
        Traceback (most recent call last):
        ValueError: autocast=torch.float16: allowed are None and torch.bfloat16 (float16 would need scaled losses)
    """
    if autocast not in (None, torch.bfloat16):
        raise ValueError(
            f"autocast={autocast!r}: allowed are None and torch.bfloat16 (float16 would need scaled losses)"
        )
    if autocast is not None and like.dtype != torch.float32:
        raise ValueError(
            f"autocast={autocast!r} is for parameters in float32, these are {like.dtype}: torch.autocast would "
            "leave them as they are; leave it out, or say dtype=torch.float32"
        )


def forward_precision(autocast: torch.dtype | None, like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context for one forward: products and convolutions in `autocast`, sums and norms in float32.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with forward_precision(torch.bfloat16, x):
        ...     (x @ x).dtype
        torch.bfloat16
    """
    check_autocast(autocast, like)
    if autocast is None:
        return contextlib.nullcontext()
    # no cache: a cast that was kept from a forward without a graph would cut the next one's
    return torch.autocast(like.device.type, dtype=autocast, cache_enabled=False)
