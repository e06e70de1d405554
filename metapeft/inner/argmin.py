"""A minimum found by Newton, as a function that can be differentiated as often as one likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metapeft.base.errors import NumericalError

Slope = Callable[..., Tensor]


class _Argmin(torch.autograd.Function):
    """Forward: the search. Backward: the implicit-function formula, in differentiable operations."""

    @staticmethod
    def forward(ctx: Any, find: Slope, slope: Slope, solve: Slope, *arguments: Tensor) -> Tensor:
        w = find(*arguments)
        ctx.functions = slope, solve
        ctx.save_for_backward(w, *arguments)
        return w

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> tuple[Tensor | None, ...]:
        slope, solve = ctx.functions
        w, *arguments = ctx.saved_tensors
        again = torch.is_grad_enabled()  # whether this backward is differentiated in its turn
        needed = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            if not again:
                w, arguments = w.detach(), [value.detach() for value in arguments]
            q = solve(w, upper[0], *arguments)
            # copies, so that the derivative is partial: w and q do not depend on them
            own = [
                (value.view_as(value) if value.requires_grad else value.detach().requires_grad_())
                if wanted
                else value
                for value, wanted in zip(arguments, needed)
            ]
            product = -(q * slope(w, *own)).sum()
            inputs = [value for value, wanted in zip(own, needed) if wanted]
            found = iter(torch.autograd.grad(product, inputs, create_graph=again, allow_unused=True))
        return (None, None, None, *(next(found) if wanted else None for wanted in needed))


def argmin(find: Slope, slope: Slope, solve: Slope, *arguments: Tensor) -> Tensor:
    """`w(v) = argmin_w f(w, v)`, with `dw/dv = -H^-1 d(grad_w f)/dv` for every argument v.

    Args:
        find: `find(*v) -> w`, the search; no gradient runs through it.
        slope: `slope(w, *v)`, the gradient of f, which is 0 at `find(*v)`.
        solve: `solve(w, g, *v)`, `H^-1 g` with H the Hessian of f at w; differentiable.

    Example:
        >>> a = torch.tensor(4.0, requires_grad=True)  # f = w^3 / 3 - a w, so w = sqrt(a)
        >>> w = argmin(lambda a: a.sqrt(), lambda w, a: w**2 - a, lambda w, g, a: g / (2 * w), a)
        >>> first, = torch.autograd.grad(w, a, create_graph=True)
        >>> first.item(), torch.autograd.grad(first, a)[0].item()  # 1 / (2 sqrt(a)), -1 / (4 a^(3/2))
        (0.25, -0.03125)
    """
    found: Tensor = _Argmin.apply(find, slope, solve, *arguments)  # type: ignore[no-untyped-call]
    return found


def newton(
    loss: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    solve: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    size: Tensor,
    iterations: int,
) -> Tensor:
    """The minimum of a convex function, for a batch of problems; a step is halved while its loss rises.

    Args:
        loss: `w (..., *shape) -> (...)`. slope: its gradient. solve: `(w, g) -> H^-1 g`.
        start: `(..., *shape)`.
        size: broadcasts to w; the search ends where no entry of the slope exceeds 100 eps of it.
        iterations: at most so many steps.

    Raises:
        NumericalError: no minimum within `iterations`.

    Example:
        >>> bowl = lambda w: (w - 3).square().sum(-1)
        >>> newton(bowl, lambda w: 2 * (w - 3), lambda w, g: g / 2, torch.zeros(1), torch.ones(1), 5)
        tensor([3.])
    """
    w, tolerance = start, 100 * torch.finfo(start.dtype).eps
    for _ in range(iterations):
        grad = slope(w)
        if bool((grad.abs() <= tolerance * size).all()):
            return w
        move, before = solve(w, grad), loss(w)
        rate = torch.ones_like(before)
        while True:
            after = w - rate.reshape(*rate.shape, *[1] * (w.ndim - rate.ndim)) * move
            worse = loss(after) > before + tolerance * before.abs()
            if not bool(worse.any()) or float(rate.min()) < 1e-12:
                break
            rate = torch.where(worse, rate / 2, rate)
        w = after
    raise NumericalError(
        f"a regression by Newton has not converged in {iterations} steps: the penalty has to be above 0 "
        "and the data finite (separable classes without a penalty have no minimum)"
    )
