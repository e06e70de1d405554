"""Mean and variance through batch norm's kernel equal torch's own, with all their derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metapeft.updates.layers.moments import moments

# torch compiles its own formulas of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def sample(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3.0


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 4, 5, 6), (2, 1, 1, 7)])
@pytest.mark.parametrize("last", [False, True])
def test_equals_var_mean(shape: tuple[int, ...], last: bool) -> None:
    x = sample(*shape)
    x = x.transpose(2, 3).contiguous().transpose(2, 3) if last else x
    variance, mean = torch.var_mean(x, dim=(1, 3), correction=0)
    for found, wanted in zip(moments(x), (mean, variance)):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_derivatives() -> None:
    """First, second and forward derivatives against central differences."""
    x = sample(2, 2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(moments, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(moments, (x,))


def test_a_mean_far_from_zero_in_float32() -> None:
    """No difference of large squares: the variance keeps its digits."""
    x = (sample(1, 8, 2, 50) + 1000.0).float()
    variance = torch.var_mean(x.double(), dim=(1, 3), correction=0)[0]
    torch.testing.assert_close(moments(x)[1].double(), variance, rtol=1e-3, atol=0.0)


def test_under_the_transforms_of_forward_mode() -> None:
    """`vmap` over `jvp` of `grad`, as the forward engine runs it."""
    x, tangents = sample(2, 3, 2, 2), sample(4, 2, 3, 2, 2)

    def slope(x: Tensor, own: bool) -> Tensor:
        def value(x: Tensor) -> Tensor:
            variance, mean = torch.var_mean(x, dim=(1, 3), correction=0)
            if own:
                mean, variance = moments(x)
            return (mean.pow(3) * variance).sum()

        return torch.func.grad(value)(x)

    found, wanted = (
        torch.func.vmap(lambda t, own=own: torch.func.jvp(lambda x: slope(x, own), (x,), (t,))[1])(tangents)
        for own in (True, False)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
