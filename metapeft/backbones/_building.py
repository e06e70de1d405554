"""What all backbones need while they are built: seeded initial weights and checked sizes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import nn

from metapeft.base.arguments import plain, whole
from metapeft.base.machine.room import refuse_large

P = ParamSpec("P")
_MOST_POOLINGS = 32  # of an image with a side of 2^32
_MOST_LAYERS = 1000


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module whose initial weights depend on `seed` alone; the global random state is left as it was.

    The weights are drawn on the CPU, so that one seed gives the same start on every device, and moved to
    torch's default device afterwards.

    Raises:
        ValueError: weights that take more memory than is free, before any of them is made.

    Example:
        >>> before = torch.get_rng_state()
        >>> first, second = (seeded(lambda: nn.Linear(3, 2), seed=7) for _ in range(2))
        >>> torch.equal(first.weight, second.weight), torch.equal(before, torch.get_rng_state())
        (True, True)
    """
    device = torch.get_default_device()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        refuse_large(lambda: build().state_dict(), "the weights of a backbone of these sizes")
        torch.default_generator.manual_seed(seed)
        module = build()
    return module.to(device)


def recorded(factory: Callable[P, nn.Module]) -> Callable[P, nn.Module]:
    """Note on the module how it was made, `module.made_by = {"name", "arguments"}`, for run folders.

    An argument by keyword alone came later than the others: it stands there where it is set, so that what was stored
    before still says the same.

    Example:
        >>> @recorded
        ... def line(size: int = 2, *, bias: bool = True) -> nn.Module:
        ...     return nn.Linear(size, 1, bias)
        >>> line(3).made_by, line(bias=False).made_by["arguments"]
        ({'name': 'line', 'arguments': {'size': 3}}, {'size': 2, 'bias': False})
    """
    signature = inspect.signature(factory)
    later = {name: p.default for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}

    @functools.wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> nn.Module:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        module = factory(*args, **kwargs)
        arguments = {
            name: list(v) if isinstance(v, tuple) else plain(v)
            for name, v in given.arguments.items()
            if name not in later or v != later[name]
        }
        object.__setattr__(module, "made_by", {"name": factory.__name__, "arguments": arguments})
        return module

    return build


def check_sizes(**sizes: int) -> None:
    """Raise ValueError for the first argument that is no whole number, of Python or NumPy, of at least 1.

    Example:
        >>> check_sizes(ways=0)
        Traceback (most recent call last):
        ValueError: ways=0: allowed is a whole number of at least 1
    """
    whole(**{name: plain(size) for name, size in sizes.items()})


def check_pooled(size: int, poolings: int = 4) -> int:
    """Return the side `size // 2^poolings` of a map after poolings of 2; raises ValueError where none is left.

    Example:
        >>> check_pooled(84), check_pooled(28, 3)
        (5, 3)
    """
    whole(1, _MOST_POOLINGS, poolings=plain(poolings))
    whole(2**poolings, size=plain(size), more=f"for each of {poolings} poolings halves the side of the image")
    return int(size // 2**poolings)


def check_depth(depth: int, name: str = "depth") -> None:
    """Raise ValueError for a number of blocks, or of layers, that takes minutes to build.

    Example:
        >>> check_depth(10**9)
        Traceback (most recent call last):
        ValueError: depth=1000000000: allowed is a whole number from 1 to 1000
    """
    whole(1, _MOST_LAYERS, **{name: plain(depth)})


def check_patches(size: int, patch: int) -> int:
    """Return the number `(size / patch)^2` of patches of an image; raises ValueError if they do not tile it.

    Example:
        >>> check_patches(32, 4)
        64
    """
    check_sizes(size=size, patch=patch)
    if size % patch:
        raise ValueError(
            f"patch={patch}: must divide the side of the image, size={size}, for patches do not overlap"
        )
    return int((size // patch) ** 2)
