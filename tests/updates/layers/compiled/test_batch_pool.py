"""The step with two derivatives on statistics of the batch, against plain torch and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metapeft.updates.layers.compiled.batch_pool import batch_pool, plain_batch_pool

pytestmark = pytest.mark.usefixtures("compiled", "threads")

#: sums of up to some ten thousand products in another order, relative, float64 and float32
EXACT, ROUNDED = 1e-12, 1e-5
#: (tasks, images of a task, channels, outputs, height, width, images that count)
CASES = [
    (2, 5, 64, 64, 14, 14, 5),  # more tiles than a block
    (3, 6, 32, 16, 7, 5, 2),  # statistics of the first two images
    (1, 5, 16, 48, 3, 3, 4),
    (4, 1, 16, 16, 2, 9, 1),
]


def arguments(case: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    tasks, images, channels, outputs, height, width, _ = case
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks * images, channels, height, width, generator=generator, dtype=torch.float64) + 0.5
    weight = torch.randn(tasks, outputs, channels, 3, 3, generator=generator, dtype=torch.float64)
    return [value.to(dtype).requires_grad_() for value in (x, weight * (9 * channels) ** -0.5)]


def derivatives(
    step: Any, case: tuple[int, ...], dtype: torch.dtype, inner: tuple[int, ...] = (0, 1)
) -> list[Tensor]:
    """Values, gradients, and the derivatives of the `inner` ones in everything."""
    generator = torch.Generator().manual_seed(1)

    def like(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)

    given = arguments(case, dtype)
    values = step(*given, case[-1])
    cotangents = [like(value).requires_grad_() for value in values]
    first = torch.autograd.grad(values, given, cotangents, retain_graph=True)
    again = torch.autograd.grad(values, [given[i] for i in inner], cotangents, create_graph=True)
    second = torch.autograd.grad(again, [*cotangents, *given], [like(value) for value in again])
    return [value.detach() for value in (*values, *first, *second)]


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_two_derivatives_are_those_of_plain_torch(case: tuple[int, ...], count: int) -> None:
    torch.set_num_threads(count)
    for inner in ((0, 1), (0,), (1,)):
        expected = derivatives(plain_batch_pool, case, torch.float64, inner)
        for dtype, near in ((torch.float64, EXACT), (torch.float32, ROUNDED)):
            pairs = zip(derivatives(batch_pool, case, dtype, inner), expected, strict=True)
            for number, (value, exact) in enumerate(pairs):
                assert apart(value, exact) <= near, f"{dtype}, inner {inner}, output {number}"


def test_finite_differences() -> None:
    case = (2, 3, 8, 8, 5, 4, 2)

    def step(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return batch_pool(x, weight, case[-1])

    given = arguments(case)
    assert torch.autograd.gradcheck(step, given)
    assert torch.autograd.gradgradcheck(step, given, fast_mode=True)


def test_third_derivatives() -> None:
    case = (2, 3, 8, 8, 5, 4, 2)

    def third(step: Any) -> list[Tensor]:
        given = arguments(case)
        loss = sum(value.square().sum() for value in step(*given, case[-1]))
        first = torch.autograd.grad(loss, given, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), given, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in second), given))

    for found, expected in zip(third(batch_pool), third(plain_batch_pool), strict=True):
        assert apart(found, expected) <= 1e-11


def test_the_same_bits_again() -> None:
    torch.set_num_threads(2)
    for case in CASES[:3]:
        once, again = (derivatives(batch_pool, case, torch.float32) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again))
