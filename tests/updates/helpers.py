"""What the tests of updates share: random factors, and tasks run at once against tasks run one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.base.trees import mapped
from metapeft.updates.formats.format import Format
from metapeft.updates.inputs import exact_attention, output_tensor

#: every format of the table, with the settings under which the tests of layers and networks run it
GRID: dict[str, dict[str, Format]] = {
    "full": {"full": mp.Full()},
    "lora": {"lora": mp.LoRA(2, alpha=3.0), "rank 0": mp.LoRA(0)},
    "cp": {"cp": mp.CP(2)},
    "tensor-ring": {"ring": mp.TensorRing(2, alpha=1.0), "uneven ring": mp.TensorRing((1, 2, 1))},
}
FORMATS = {label: format for settings in GRID.values() for label, format in settings.items()}
#: one setting of each, for whole networks
FEW = {label: FORMATS[label] for label in map(next, map(iter, GRID.values()))}
#: every selection of the table
SELECTIONS = {"softmax": mp.Softmax()}
#: float64 sums of a few hundred products, in another order
EXACT = 1e-10


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def random_factors(model: Any, tasks: int, seed: int = 0, size: float = 0.3) -> dict[str, Tensor]:
    """Factors of different, non-zero updates for `tasks` tasks."""
    source = generator(seed)
    return {
        name: value
        + size * torch.randn(tasks, *value.shape[1:], generator=source, dtype=torch.float64).to(value)
        for name, value in model.factors().items()
    }


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module in float64 whose parameters and statistics are random, and the same at each call."""
    module = module.double()
    source = generator(seed)
    with torch.no_grad():
        for value in module.parameters():
            fan_in = value[0].numel() if value.dim() > 1 else 1
            value.normal_(std=fan_in**-0.5, generator=source)
        for name, value in module.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(generator=source)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=source)
    return module


def task(factors: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """One task's factors, without the task axis."""
    return {name: value[min(number, value.shape[0] - 1)] for name, value in factors.items()}


def call(module: nn.Module, x: Any) -> Tensor:
    """A plain module's output, from a tensor, a tuple of arguments or a dict of keywords `(B, ...)`."""
    rows = next(
        len(v) for v in (x.values() if isinstance(x, dict) else [x[0] if isinstance(x, tuple) else x])
    )
    with exact_attention():
        if isinstance(x, dict):
            return output_tensor(module(**x), rows)
        return output_tensor(module(*x) if isinstance(x, tuple) else module(x), rows)


def assert_close(a: Tensor, b: Tensor, tolerance: float = EXACT) -> None:
    assert a.shape == b.shape
    error = float((a - b).detach().abs().max()) if a.numel() else 0.0
    assert error <= tolerance * (1.0 + float(b.detach().abs().max() if b.numel() else 0.0)), error


def assert_equals_merged(model: Any, x: Any, support: Any = None, size: float = 0.3) -> None:
    """All tasks of `x` at once equal as many merged plain modules; so does the first task alone."""
    tasks = (next(iter(x.values())) if isinstance(x, dict) else x[0] if isinstance(x, tuple) else x).shape[0]
    factors = random_factors(model, tasks, size=size)
    together = model(x, factors, support)
    assert together.isfinite().all()
    for number in sorted({0, tasks // 2, tasks - 1}):
        own_support = None if support is None else mapped(support, lambda v: v[number])  # noqa: B023
        plain = model.merged(task(factors, number), own_support)
        assert_close(together[number], call(plain, mapped(x, lambda v: v[number])))  # noqa: B023
    first = {name: value[:1] for name, value in factors.items()}
    alone = model(
        mapped(x, lambda v: v[:1]), first, None if support is None else mapped(support, lambda v: v[:1])
    )
    assert_close(alone[0], together[0])


def affects(model: Any, x: Any) -> bool:
    """Whether random factors change the output at all; a test of agreement is worth nothing otherwise."""
    return not torch.equal(model(x, model.factors()), model(x, random_factors(model, 1)))


def moved(model: Any, weights: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`W0 + Delta` of the factors of a task `(1, ...)`, by the backbone's own names, in the graph of both."""
    found = dict(weights)
    for name, site in model.sites.items():
        local = {key: factors[f"{name}.{key}"] for key in site.format.shapes(site.geometry)}
        delta = site.format.delta(local)
        found[name] = found[name] + (delta if site.format.dense else site.geometry.stored(delta))[0]
    return found


def assert_same_derivatives(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], size: float = 1e-8
) -> None:
    """Relative to the largest entry of each tensor; 1e-6 of the largest of all for what is 0 but for rounding.

    (The bias of attention's keys has no effect.)
    """
    assert set(found) == set(expected)
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 0
    for name, value in expected.items():
        own = float(value.abs().max())
        error = float((found[name] - value).abs().max())
        assert error <= size * (own + 1e-6 * largest), (name, error, own)
