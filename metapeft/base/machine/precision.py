"""The forward in bfloat16, everything else in float32; asked first whether the machine has bfloat16."""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("metapeft")

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "sve_bf16")  # of x86, then of ARM
_WITHOUT = ("DEFAULT", "NO AVX", "AVX2")  # kinds of x86 that are older than bfloat16


def has_bfloat16(device: torch.device) -> bool | None:
    """Whether a device computes in bfloat16 itself; False: torch emulates it; None: torch does not tell.

    Example:
        >>> has_bfloat16(torch.device("cpu")) in (True, False, None)
        True
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return None
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is None:  # an older torch knows the family only
        return False if torch.backends.cpu.get_cpu_capability() in _WITHOUT else None
    flags = [ask()[name] for name in _INSTRUCTIONS if name in ask()]
    return any(flags) if flags else None


@functools.cache
def note_emulated(device: torch.device) -> None:
    """Say once a device in the log that bfloat16 is only emulated there."""
    if has_bfloat16(device) is False:
        log.warning(
            "autocast=torch.bfloat16: this machine (%s) has no bfloat16 instructions, so torch emulates them, slower "
            "than float32; leave it out unless you want to see what its rounding does",
            device.type,
        )


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
            "leave them as they are; leave autocast out (in the shell --autocast off), or say dtype=torch.float32"
        )


def forward_precision(autocast: torch.dtype | None, like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context for one forward: products and convolutions in `autocast`, sums and norms in float32.

    That bfloat16 is only emulated is said here, for a learner may be moved after it was made.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with forward_precision(torch.bfloat16, x):
        ...     (x @ x).dtype
        torch.bfloat16
    """
    check_autocast(autocast, like)
    if autocast is None:
        return contextlib.nullcontext()
    note_emulated(like.device)
    # no cache: a cast that was kept from a forward without a graph would cut the next one's
    return torch.autocast(like.device.type, dtype=autocast, cache_enabled=False)


def precision_name(autocast: torch.dtype | None, like: Tensor) -> str:
    """What a protocol says of a learner whose parameters are like `like`.

    Example:
        >>> precision_name(None, torch.zeros(1)), precision_name(torch.bfloat16, torch.zeros(1))
        ('float32', 'bfloat16 forwards')
    """
    return str(like.dtype if autocast is None else f"{autocast} forwards").removeprefix("torch.")
