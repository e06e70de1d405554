"""The kernels against the same step in plain torch, and against finite differences."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metapeft.updates.layers.compiled import calling
from metapeft.updates.layers.compiled.chain import chain, plain_chain
from metapeft.updates.layers.compiled.few_channels import few_channel_chain

pytestmark = pytest.mark.usefixtures("compiled", "threads")

#: sums of up to some thousand products in another order, relative, float64 and float32
EXACT, ROUNDED = 1e-13, 1e-5
#: (tasks, images of a task, channels, outputs, height, width, rank, kernels)
LOW_RANK = [
    (2, 3, 16, 32, 14, 14, 4, 1),  # whole blocks of terms, more tiles than a block
    (3, 2, 64, 16, 7, 7, 3, 1),  # odd sizes: what the pooling leaves out
    (1, 5, 32, 48, 3, 3, 1, 1),  # one tile, one task
    (4, 1, 16, 16, 5, 8, 6, 1),  # more than one block of terms
    (2, 3, 16, 16, 2, 9, 0, 1),  # no update
]
OWN = [(3, 4, 32, 48, 6, 9, 0, 3), (1, 5, 16, 16, 6, 4, 0, 1)]
FEW = [(2, 3, 1, 16, 7, 6, 0, 2), (3, 2, 3, 80, 8, 5, 0, 3), (1, 3, 2, 32, 4, 4, 0, 1)]


def arguments(case: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    tasks, images, channels, outputs, height, width, rank, kernels = case
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, size: float = 1.0) -> Tensor:
        return (size * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    near = (9 * channels) ** -0.5
    found = [
        drawn(tasks * images, channels, height, width),
        drawn(kernels, outputs, channels, 3, 3, size=near),
        drawn(tasks, rank, channels, 3, 3, size=near),
        drawn(tasks, outputs, rank),
        drawn(tasks, outputs),
    ]
    few = channels < 8
    return [value.requires_grad_(not few or i in (1, 4)) for i, value in enumerate(found)]


def few(x: Tensor, weight: Tensor, down: Tensor, up: Tensor, shift: Tensor) -> Tensor:
    return few_channel_chain(x, weight, shift)


def derivatives(step: Any, given: list[Tensor], inner: list[int]) -> list[Tensor]:
    """The value, its gradients in all arguments, and the derivatives of those in the `inner` ones."""
    generator = torch.Generator().manual_seed(1)

    def like(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)

    wanted = [value for value in given if value.requires_grad]
    y = step(*given)
    g = like(y).requires_grad_()
    first = torch.autograd.grad(y, wanted, g, allow_unused=True, materialize_grads=True)
    again = torch.autograd.grad(step(*given), [given[i] for i in inner], g, create_graph=True)
    second = torch.autograd.grad(
        again, [g, *wanted], [like(value) for value in again], allow_unused=True, materialize_grads=True
    )
    return [y.detach(), *first, *second]


def inner_of(case: tuple[int, ...]) -> list[int]:
    *_, rank, kernels = case
    if case[2] < 8:
        return [1, 4]
    return [0, 2, 3, 4] if rank else [0, 1, 4] if kernels == case[0] else [0, 4]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("case", [*LOW_RANK, *OWN, *FEW], ids=str)
def test_values_and_derivatives_are_those_of_plain_torch(case: tuple[int, ...], count: int) -> None:
    torch.set_num_threads(count)
    step = few if case[2] < 8 else chain
    for dtype, near in ((torch.float64, EXACT), (torch.float32, ROUNDED)):
        given, inner = arguments(case, dtype), inner_of(case)
        pairs = zip(derivatives(step, given, inner), derivatives(plain_chain, given, inner), strict=True)
        for number, (found, expected) in enumerate(pairs):
            apart = (found - expected).norm()
            assert apart <= near * expected.norm() + near, f"{dtype}, output {number}: {apart:.1e}"


@pytest.mark.parametrize("some", [(0,), (2,), (3,), (4,), (0, 3), (2, 3, 4)], ids=str)
def test_second_derivatives_of_some_gradients_alone(some: tuple[int, ...]) -> None:
    given = arguments(LOW_RANK[0])
    pairs = zip(derivatives(chain, given, [*some]), derivatives(plain_chain, given, [*some]), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_x_that_takes_no_gradient() -> None:
    for case, inner in ((LOW_RANK[1], [2, 3]), (OWN[0], [1, 4])):
        given = arguments(case)
        given[0].requires_grad_(False)
        pairs = zip(derivatives(chain, given, inner), derivatives(plain_chain, given, inner), strict=True)
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


SMALL = {
    "low rank": ((2, 1, 8, 8, 4, 4, 2, 1), chain, (0, 2, 3, 4)),
    "own kernels": ((2, 1, 8, 8, 4, 4, 0, 2), chain, (0, 1, 4)),
    "few channels": ((2, 1, 2, 8, 4, 4, 0, 2), few, (1, 4)),
}


@pytest.mark.parametrize("kind", SMALL)
def test_finite_differences(kind: str) -> None:
    case, step, moved = SMALL[kind]
    given = arguments(case)

    def of_moved(*values: Tensor) -> Tensor:
        whole = list(given)
        for i, value in zip(moved, values):
            whole[i] = value
        return step(*whole)

    inputs = [given[i].detach().requires_grad_() for i in moved]
    assert torch.autograd.gradcheck(of_moved, inputs)
    assert torch.autograd.gradgradcheck(of_moved, inputs, fast_mode=True)


@pytest.mark.parametrize("kind", SMALL)
def test_derivatives_beyond_the_second(kind: str) -> None:
    case, step, moved = SMALL[kind]

    def third(step: Any) -> list[Tensor]:
        given = arguments(case)
        inputs = [given[i] for i in moved]
        first = torch.autograd.grad(step(*given).square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in second), inputs))

    for found, expected in zip(third(step), third(plain_chain), strict=True):
        assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_second_derivatives_in_a_weight_that_tasks_share() -> None:
    """Which takes plain torch: the gradient in the shared weight is differentiated itself."""
    given = arguments(LOW_RANK[1])
    inner = [0, 1, 2, 3, 4]
    pairs = zip(derivatives(chain, given, inner), derivatives(plain_chain, given, inner), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_the_same_bits_again() -> None:
    """Whatever thread is first; with tasks that threads share."""
    torch.set_num_threads(2)
    for case in (LOW_RANK[0], LOW_RANK[2], OWN[0], FEW[1]):
        step = few if case[2] < 8 else chain
        once, again = (derivatives(step, arguments(case, torch.float32), inner_of(case)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, again))


@pytest.mark.parametrize("case", [LOW_RANK[0], FEW[0]], ids=str)
def test_numbers_that_are_not_finite_are_not_lost(case: tuple[int, ...]) -> None:
    step = few if case[2] < 8 else chain
    given = [value.detach() for value in arguments(case)]
    given[0][1, 0, 2, 2] = torch.nan
    found, expected = step(*given).isnan(), plain_chain(*given).isnan()
    assert torch.equal(found, expected)  # in those places, no other
    assert 0 < int(expected.sum()) < expected.numel()


def test_a_task_s_own_kernel_never_takes_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one task's alone, which looks like one that tasks share."""
    monkeypatch.setattr("metapeft.updates.layers.compiled.chain._plain_gradients", None)
    for case in (*LOW_RANK, *OWN):
        derivatives(chain, arguments(case), inner_of(case))


@pytest.mark.parametrize("case", [LOW_RANK[0], FEW[0]], ids=str)
def test_large_numbers_that_are_finite_stay_so(case: tuple[int, ...]) -> None:
    step = few if case[2] < 8 else chain
    x, weight, down, up, shift = (value.detach() for value in arguments(case, torch.float32))
    given = torch.full_like(x, 1e37), torch.zeros_like(weight), down * 0, up * 0, shift * 0
    given[1][:, :, 0, 1, 1] = 1.0
    found, expected = step(*given), plain_chain(*given)
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(found, expected)


def test_memory_is_the_cpu_s_whatever_the_default_device_is() -> None:
    given = [value.detach() for value in arguments(LOW_RANK[0])]
    expected = chain(*given)
    with torch.device("meta"):
        assert torch.equal(chain(*given), expected)


def test_terms_are_those_of_the_sources() -> None:
    header = (Path(calling.__file__).parent / "shape.hpp").read_text()
    assert f"constexpr int TERMS = {calling.TERMS};" in header


def test_ties_go_to_the_first_and_zeros_are_off() -> None:
    """As in torch: the first of equal maxima has the gradient, and a value that ReLU leaves at 0 has none."""
    x = torch.ones(1, 16, 4, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.zeros(1, 16, 16, 3, 3, dtype=torch.float64)
    weight[0, :, :, 1, 1] = torch.eye(16, dtype=torch.float64)
    none = x.new_empty(1, 0, 16, 3, 3), x.new_empty(1, 16, 0)
    for shift in (0.5, -1.0, -2.0):
        moved = torch.full((1, 16), shift, dtype=torch.float64)
        found, expected = (
            torch.autograd.grad(step(x, weight, *none, moved).sum(), x)[0] for step in (chain, plain_chain)
        )
        assert torch.equal(found, expected)
    assert float(torch.autograd.grad(chain(x, weight, *none, -moved).sum(), x)[0].sum()) == 16 * 4


def test_layouts_of_memory_do_not_matter() -> None:
    given = [value.detach() for value in arguments(LOW_RANK[0])]
    expected = chain(*given)
    turned = [value.movedim(0, -1).contiguous().movedim(-1, 0) for value in given]
    assert not turned[0].is_contiguous()
    assert torch.equal(chain(*turned), expected)
    apart = [torch.stack([value, value])[1] for value in given]
    assert torch.equal(chain(*apart), expected)


def test_every_pair_of_wanted_gradients() -> None:
    """What is not asked for is not needed for what is."""
    for case, step in ((LOW_RANK[0], chain), (OWN[0], chain), (FEW[1], few)):
        given = arguments(case)
        possible = [i for i, value in enumerate(given) if value.requires_grad and value.numel()]
        y = step(*given)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        whole = dict(
            zip(possible, torch.autograd.grad(y, [given[i] for i in possible], g, retain_graph=True))
        )
        for some in itertools.combinations(possible, 2):
            found = torch.autograd.grad(y, [given[i] for i in some], g, retain_graph=True)
            assert all(torch.equal(a, whole[i]) for a, i in zip(found, some))
