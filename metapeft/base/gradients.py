"""Gradients, whatever the caller has switched off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Gradients on, also inside of `torch.no_grad()`, and attention on a kernel that has second derivatives.

    Raises:
        ValueError: inside of `torch.inference_mode()`, whose tensors never have gradients.

    Example:
        >>> with torch.no_grad(), twice_differentiable():
        ...     torch.is_grad_enabled()
        True
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "gradients are needed here, which torch.inference_mode() rules out: call it outside, or inside of "
            "torch.no_grad()"
        )
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield
