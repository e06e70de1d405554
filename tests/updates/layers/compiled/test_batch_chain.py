"""The kernels on statistics of the batch against the same step in plain torch, and against finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.updates.layers.compiled import calling, switch
from metapeft.updates.layers.compiled import compiler as building
from metapeft.updates.layers.compiled.batch_chain import batch_chain, plain_batch_chain
from metapeft.updates.layers.compiled.few_batch import few_batch_chain
from metapeft.updates.layers.compiled.switch import compiled_used, loaded

pytestmark = pytest.mark.usefixtures("compiled", "threads")

EPS = 1e-5
#: sums of up to some ten thousand products in another order, relative, float64 and float32
EXACT, ROUNDED = 1e-12, 1e-5
#: bfloat16 has 8 bits: a number is off by up to 2^-9 of itself. Outputs and their gradients are rounded once each, and
#: so are products with either; sums of them are in float32. Over many numbers that is at most 2^-8 together.
BRIEF = 2.0**-8
#: (tasks, images of a task, channels, outputs, height, width)
DENSE = [
    (1, 3, 64, 64, 42, 42),  # the second layer at 84x84
    (2, 3, 32, 64, 21, 21),  # odd sizes: what the pooling leaves out counts in the statistics
    (3, 5, 64, 32, 10, 10),
    (2, 40, 16, 48, 3, 3),  # more images than are in hand at once
    (1, 7, 16, 16, 2, 9),
    (2, 4, 48, 16, 7, 4),
]
FEW = [
    (1, 2, 3, 64, 84, 84),  # a first layer
    (2, 3, 1, 32, 28, 28),
    (3, 5, 2, 64, 10, 11),
    (2, 4, 3, 16, 7, 9),
]
Step = Callable[..., tuple[Tensor, Tensor, Tensor]]


def arguments(case: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, weight, size, shift; x has a mean, as pooled values have, and takes no gradient where its channels are few."""
    tasks, images, channels, outputs, height, width = case
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = [
        drawn(tasks * images, channels, height, width) + 0.5,
        (9 * channels) ** -0.5 * drawn(outputs, channels, 3, 3),
        drawn(tasks, outputs).square(),
        drawn(tasks, outputs),
    ]
    return [value.to(dtype).requires_grad_(channels > 3 or i > 0) for i, value in enumerate(found)]


def step_of(case: tuple[int, ...]) -> Step:
    return few_batch_chain if case[2] <= 3 else batch_chain


def results(step: Step, given: list[Tensor], g_like: torch.dtype | None = None) -> list[Tensor]:
    """Values, mean and variance, and gradients of all three together in all arguments."""
    found = step(*given, EPS)
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in found]
    cotangents = [value.to(g_like or like.dtype).to(like.dtype) for value, like in zip(drawn, found)]
    wanted = [value for value in given if value.requires_grad]
    grads = torch.autograd.grad(found, wanted, cotangents)
    return [value.detach() for value in (*found, *grads)]


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("case", [*DENSE, *FEW], ids=str)
def test_values_statistics_and_gradients_are_those_of_plain_torch(case: tuple[int, ...], count: int) -> None:
    torch.set_num_threads(count)
    expected = results(plain_batch_chain, arguments(case))
    for dtype, near in ((torch.float64, EXACT), (torch.float32, ROUNDED)):
        pairs = zip(results(step_of(case), arguments(case, dtype)), expected, strict=True)
        for number, (value, exact) in enumerate(pairs):
            assert value.dtype == dtype
            assert apart(value, exact) <= near, f"{dtype}, output {number}"


def rounded(x: Tensor) -> Tensor:
    """In bfloat16, but with the gradient of what was rounded."""
    return x + (x.detach().bfloat16().to(x) - x.detach())


def rounded_chain(
    x: Tensor, weight: Tensor, size: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """In float64, with weights and outputs of the convolution rounded as the kernel does: the same are the largest."""
    tasks = len(size)
    z = torch.unflatten(F.conv2d(x, rounded(weight), padding=1), 0, (tasks, -1))
    mean = z.mean((1, 3, 4))
    centred = rounded(z - mean[:, None, :, None, None])
    variance = centred.square().mean((1, 3, 4))
    scale = size * torch.rsqrt(variance + eps)
    pooled = F.max_pool2d(centred.flatten(0, 1), 2).unflatten(0, (tasks, -1))
    y = torch.relu(pooled * scale[:, None, :, None, None] + shift[:, None, :, None, None])
    return y.flatten(0, 1), mean, variance


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", [*DENSE, *FEW], ids=str)
def test_bfloat16_is_off_by_its_rounding(case: tuple[int, ...], count: int) -> None:
    needs_bfloat16()
    torch.set_num_threads(count)
    few = case[2] <= 3
    given = arguments(case, torch.float32)
    exact = [value.detach().double().requires_grad_(value.requires_grad) for value in given]
    if not few:
        given[0] = given[0].detach().bfloat16().requires_grad_()
        exact[0] = given[0].detach().double().requires_grad_()

    def stored(*values: Any) -> tuple[Tensor, Tensor, Tensor]:
        return few_batch_chain(*values, torch.bfloat16) if few else batch_chain(*values)

    expected = results(plain_batch_chain if few else rounded_chain, exact, torch.bfloat16)
    found = results(stored, given, torch.bfloat16)
    assert found[0].dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in found[4:])
    for number, (value, right) in enumerate(zip(found, expected, strict=True)):
        assert apart(value, right) <= BRIEF, f"output {number}"


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels with AMX's registers emulated: what they do with tiles, on any processor of AVX512_BF16."""
    needs_bfloat16()
    monkeypatch.setattr(building, "_FLAGS", (*building._FLAGS, "-DMETAPEFT_TILES"))
    monkeypatch.setattr(switch, "_loaded", None)
    calling._function.cache_clear()
    with compiled_used(False), compiled_used(True):
        yield
    calling._function.cache_clear()


@pytest.mark.usefixtures("tiles")
def test_tiles_compute_what_vectors_compute() -> None:
    """In sums of another order; with widths that are no multiple of 32 vectors do it."""
    for case in DENSE:
        test_bfloat16_is_off_by_its_rounding(case, 2)


def test_numbers_that_are_not_finite_stay_in_their_task_in_bfloat16() -> None:
    """Also in the gradients, though images of several tasks pass through the same memory one after the other."""
    needs_bfloat16()
    torch.set_num_threads(1)
    for case in [(2, 3, 32, 32, 3, 3), (2, 50, 32, 32, 3, 3), (2, 3, 32, 32, 2, 4)]:
        given = arguments(case, torch.float32)
        x = given[0].detach().bfloat16()
        clean = results(batch_chain, [x.clone().requires_grad_(), *given[1:]])
        x[: case[1]] = torch.nan
        found = results(batch_chain, [x.requires_grad_(), *given[1:]])
        for a, b in zip(found[:4], clean[:4]):  # the weight's gradient is of all tasks
            half = len(a) // 2
            assert torch.equal(a[half:], b[half:])
            assert not a[:half].isfinite().any()


def needs_bfloat16() -> None:
    if not hasattr(loaded(), "batch_forward_bfloat16"):
        pytest.skip("needs a processor with products of bfloat16")


@pytest.mark.parametrize("case", [(2, 2, 8, 8, 4, 5), (2, 2, 2, 8, 5, 4)], ids=str)
def test_finite_differences(case: tuple[int, ...]) -> None:
    given = arguments(case)
    inputs = [value for value in given if value.requires_grad]
    rest = given[: len(given) - len(inputs)]
    assert torch.autograd.gradcheck(lambda *moved: step_of(case)(*rest, *moved, EPS), inputs)


@pytest.mark.parametrize("case", [(2, 2, 8, 8, 4, 5), (2, 2, 2, 8, 5, 4)], ids=str)
def test_derivatives_beyond_the_first(case: tuple[int, ...]) -> None:
    def second(step: Step) -> list[Tensor]:
        given = arguments(case)
        inputs = [value for value in given if value.requires_grad]
        y, mean, variance = step(*given, EPS)
        loss = y.square().sum() + (mean * variance).sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))

    for found, expected in zip(second(step_of(case)), second(plain_batch_chain), strict=True):
        assert apart(found, expected) <= 1e-11


def test_the_same_bits_again() -> None:
    torch.set_num_threads(2)
    for case in (*DENSE[1:4], *FEW[1:3]):
        for dtype in (torch.float32, torch.float64):
            once, again = (results(step_of(case), arguments(case, dtype)) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(once, again))


def test_the_same_bits_again_in_bfloat16() -> None:
    needs_bfloat16()
    torch.set_num_threads(2)
    for case in DENSE[1:4]:
        found = []
        for _ in range(2):
            given = arguments(case, torch.float32)
            given[0] = given[0].detach().bfloat16().requires_grad_()
            found.append(results(batch_chain, given))
        assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("case", [DENSE[1], FEW[1]], ids=str)
def test_a_number_that_is_not_finite_is_in_all_of_its_task(case: tuple[int, ...]) -> None:
    for bad in (torch.nan, torch.inf):
        given = [value.detach() for value in arguments(case)]
        given[0][1, 0, 2, 2] = bad
        y, mean, variance = step_of(case)(*given, EPS)
        first = y.unflatten(0, (case[0], -1))[0]
        assert bool(first.isnan().all())
        assert bool(y[case[1] :].isfinite().all())
        assert bool(mean[1:].isfinite().all() and variance[1:].isfinite().all())
        assert not bool(mean[0].isfinite().any())


def test_ties_go_to_the_first() -> None:
    """As in torch; inside, where a kernel of one tap sees the same number four times."""
    x = torch.ones(1, 16, 4, 4, dtype=torch.float64)
    x[:, :, :, 2:] = 3.0
    x.requires_grad_()
    weight = torch.zeros(16, 16, 3, 3, dtype=torch.float64)
    weight[:, :, 1, 1] = torch.eye(16, dtype=torch.float64)
    rest = torch.ones(1, 16, dtype=torch.float64), torch.full((1, 16), 2.0, dtype=torch.float64)
    g = torch.rand(1, 16, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(step(x, weight, *rest, EPS)[0], x, g)[0]
        for step in (batch_chain, plain_batch_chain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_outputs_that_are_all_the_same_stay_at_the_shift() -> None:
    given = [value.detach() for value in arguments(DENSE[2])]
    flat = torch.zeros_like(given[0])
    y, mean, variance = batch_chain(flat, *given[1:], EPS)
    assert float(mean.abs().max()) == float(variance.abs().max()) == 0
    split = y.unflatten(0, (DENSE[2][0], -1))
    assert torch.equal(split, torch.relu(given[3])[:, None, :, None, None].expand_as(split))


def test_every_pair_of_wanted_gradients() -> None:
    """What is not asked for is not needed for what is."""
    for case in (DENSE[1], FEW[1]):
        given = arguments(case)
        possible = [i for i, value in enumerate(given) if value.requires_grad]
        y = step_of(case)(*given, EPS)[0]
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        all_of_them = torch.autograd.grad(y, [given[i] for i in possible], g, retain_graph=True)
        whole = dict(zip(possible, all_of_them))
        for some in itertools.combinations(possible, 2):
            found = torch.autograd.grad(y, [given[i] for i in some], g, retain_graph=True)
            assert all(torch.equal(a, whole[i]) for a, i in zip(found, some))


def test_layouts_of_memory_do_not_matter_nor_the_default_device() -> None:
    for case in (DENSE[1], FEW[1]):
        given = [value.detach() for value in arguments(case)]
        expected = step_of(case)(*given, EPS)
        turned = [value.movedim(0, -1).contiguous().movedim(-1, 0) for value in given]
        with torch.device("meta"):
            found = step_of(case)(*turned, EPS)
        assert all(apart(a, b) <= EXACT for a, b in zip(found, expected))  # torch multiplies in another order
