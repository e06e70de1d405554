"""Pooling, convolutions and thin convolutions with derivatives of their own equal torch's, to every order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.updates.layers.bilinear_convolution import Convolution, convolve2d
from metapeft.updates.layers.bilinear_map import bilinear
from metapeft.updates.layers.convolution import _grouped, by_task, spatial
from metapeft.updates.layers.pooling import max_pool
from metapeft.updates.layers.thin_convolution import Products, ShiftedSum, convolve_thin

# torch compiles its own formulas of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
Function = Callable[..., Tensor]


def sample(*shape: int, last: bool = False, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last and x.dim() == 4 else x


def check(own: Function, other: Function, *inputs: Tensor) -> None:
    """Values, first and second derivatives, forward mode, and `vmap` over `jvp` of `grad`."""
    inputs = tuple(value.requires_grad_() for value in inputs)
    torch.testing.assert_close(own(*inputs), other(*inputs), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(own, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(own, inputs, fast_mode=True)
    tangents = tuple(sample(3, *value.shape, seed=i + 5) for i, value in enumerate(inputs))
    points = tuple(value.detach() for value in inputs)
    every = tuple(range(len(points)))

    def curved(function: Function) -> Any:
        def slope(*x: Tensor) -> tuple[Tensor, ...]:
            return torch.func.grad(lambda *x: function(*x).pow(3).sum(), argnums=every)(*x)

        return torch.func.vmap(lambda *t: torch.func.jvp(slope, points, t)[1])(*tangents)

    torch.testing.assert_close(curved(own), curved(other), rtol=1e-9, atol=1e-9)


POOLS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 1), "stride": 1},
    {"kernel_size": 2, "ceil_mode": True},
    {"kernel_size": 2, "stride": 1, "dilation": 2},
]


@pytest.mark.parametrize("options", POOLS, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_pooling(options: dict[str, Any], last: bool) -> None:
    pool = nn.MaxPool2d(**options)
    check(lambda x: max_pool(pool, x), pool, sample(2, 3, 5, 4, last=last))


def test_pooling_takes_the_first_of_equal_values() -> None:
    x = torch.ones(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    pool, weights = nn.MaxPool2d(2), torch.arange(8.0, dtype=torch.float64).view(1, 2, 2, 2)
    found, wanted = (
        torch.autograd.grad((f(x) * weights).sum(), x) for f in (lambda x: max_pool(pool, x), pool)
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


CONVOLUTIONS: list[tuple[Any, ...]] = [
    ((1, 1), (1, 1), (1, 1), 1),
    ((2, 1), (0, 1), (1, 2), 1),
    ((1, 1), (1, 0), (1, 1), 2),
    ((3, 2), (2, 2), (1, 1), 4),
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_convolution(options: tuple[Any, ...], last: bool) -> None:
    x, weight = sample(2, 4, 5, 6, last=last), sample(4, 4 // options[3], 3, 2, seed=1)
    check(lambda x, w: convolve2d(x, w, *options), lambda x, w: F.conv2d(x, w, None, *options), x, weight)


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution_with_weights_of_each_task(options: tuple[Any, ...]) -> None:
    x, weights = sample(2, 4, 4, 3, last=True), sample(2, 4, 4 // options[3], 3, 2, seed=1)

    def plain(x: Tensor, weights: Tensor) -> Tensor:
        return torch.cat([F.conv2d(rows, own, None, *options) for rows, own in zip(x.chunk(2), weights)])

    check(lambda x, w: convolve2d(x, w, *options), plain, x, weights)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Conv1d(4, 6, 3, 1, 1)], ids=str)
def test_one_task_after_the_other_equals_groups(layer: Any) -> None:
    """The CPU's way and that of other devices."""
    options, shape = spatial(layer), (6, 4, 5, 6)[: 2 + len(layer.kernel_size)]
    x, weights = options.pad(sample(*shape)), sample(3, *layer.weight.shape, seed=1)
    torch.testing.assert_close(by_task(options, x, weights), _grouped(options, x, weights))


@pytest.mark.parametrize("kind", ["planes", "rows", "matrix"])
def test_products(kind: Any) -> None:
    shapes = {
        "planes": [(2, 5, 3), (2, 4, 3)],
        "rows": [(2, 4, 5), (2, 4, 3)],
        "matrix": [(2, 4, 5), (2, 5, 3)],
    }
    formulas = {"planes": "tnc,tpc->tpn", "rows": "tpn,tpc->tnc", "matrix": "tpn,tnc->tpc"}
    a, b = (sample(*shape, seed=i) for i, shape in enumerate(shapes[kind]))
    check(lambda a, b: bilinear(Products(kind), a, b), lambda a, b: torch.einsum(formulas[kind], a, b), a, b)


def test_without_what_torch_keeps_to_itself_functions_are_called_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("metapeft.updates.layers.function._transforms_are_active", None)
    test_products("planes")


THIN: list[tuple[Any, ...]] = [
    ((3, 3), (1, 1), (1, 1)),
    ((3, 2), (0, 2), (1, 1)),
    ((1, 3), (0, 3), (1, 2)),
    ((2, 2), (4, 0), (1, 1)),
    ((1, 1), (0, 0), (1, 1)),
]


@pytest.mark.parametrize(("kernel", "padding", "dilation"), THIN, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_thin_convolution(kernel: Any, padding: Any, dilation: Any, last: bool) -> None:
    """Also where the padding is wider than the kernel, and some taps never meet the image."""
    x, weights = sample(4, 3, 4, 5, last=last), sample(2, 2, 3, *kernel, seed=1)

    def plain(x: Tensor, weights: Tensor) -> Tensor:
        y = [
            F.conv2d(rows, own, None, (1, 1), padding, dilation)
            for rows, own in zip(x.unflatten(0, (2, 2)), weights)
        ]
        return torch.stack([one.permute(0, 2, 3, 1).reshape(-1, 2) for one in y])

    check(lambda x, w: convolve_thin(x, w, padding, dilation), plain, x, weights)


def test_a_shifted_sum_and_its_adjoint() -> None:
    map = ShiftedSum((3, 2), (1, 1), (1, 2), (4, 5))
    x = sample(2, 3, 6, 2, 4, 5)
    y = sample(*map.value(x, None).shape, seed=1)
    adjoint = map.adjoint()
    torch.testing.assert_close((map.value(x, None) * y).sum(), (adjoint.value(y, None) * x).sum())
    assert adjoint.adjoint() == map


def test_a_frozen_kernel_costs_nothing_in_an_inner_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivative in W is computed only where the backward pass goes on to it."""
    kinds: list[str] = []
    value = Convolution.value
    monkeypatch.setattr(
        Convolution, "value", lambda self, a, b: (kinds.append(self.kind), value(self, a, b))[1]
    )
    w0 = sample(2, 2, 3, 3, seed=1).requires_grad_()
    x = sample(1, 2, 4, 4).requires_grad_()
    y = convolve2d(x, w0 * 2, (1, 1), (1, 1), (1, 1), 1)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert kinds == ["conv", "to_input"]
    torch.autograd.grad(slope.square().sum(), w0)
    assert kinds.count("to_weight") == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_gradients_have_the_types_of_their_variables(dtype: torch.dtype) -> None:
    x, weight = (
        sample(2, 4, 5, 5).float().requires_grad_(),
        sample(3, 4, 3, 3, seed=1).float().requires_grad_(),
    )
    with torch.autocast("cpu", dtype):
        y = convolve2d(x, weight, (1, 1), (1, 1), (1, 1), 1)
    assert y.dtype == dtype
    grads = torch.autograd.grad(y.float().square().sum(), (x, weight), create_graph=True)
    assert [grad.dtype for grad in grads] == [torch.float32, torch.float32]
    exact = torch.autograd.grad(F.conv2d(x, weight, None, padding=1).square().sum(), (x, weight))
    for found, wanted in zip(grads, exact):
        assert float((found.detach() - wanted).norm() / wanted.norm()) < 0.02
