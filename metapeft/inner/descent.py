"""Gradient descent in general: a rate, a direction (the gradient, momentum, Adam), a proximal term."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from metapeft.base.arguments import flag, number, whole
from metapeft.inner.solver import Bound, Solver, Tensors

Setting = float | Tensor | Callable[[Mapping[str, Tensor]], Any]
Per = Literal["step", "element"]
_UNSAID = (("clip", None), ("eps_root", 0.0), ("log_rates", False))


def value_of(setting: Setting, u: Mapping[str, Tensor]) -> Any:
    """A setting at the outer variables u: itself, or what it gives for u."""
    return setting(u) if callable(setting) else setting


def check_setting(name: str, setting: object) -> None:
    """Refuse what is neither a finite number >= 0, nor a tensor of shape (), nor a function of u."""
    if isinstance(setting, Tensor):
        if setting.ndim:
            raise ValueError(
                f"{name} is a tensor of shape {tuple(setting.shape)}, it has to have shape (); for a rate of "
                'its own at every step or element say rates="step" or rates="element"'
            )
    elif not callable(setting):
        given: dict[str, Any] = {name: setting}
        number(more="a tensor of shape () or a function of u", **given)


def descend(w: Tensor, direction: Tensor, rate: float | Tensor) -> Tensor:
    """`w - rate * direction` in one operation."""
    if isinstance(rate, Tensor):
        return torch.addcmul(w, direction, rate, value=-1)
    return torch.sub(w, direction, alpha=rate)


def squared_norm(values: Mapping[str, Tensor], like: Tensor) -> Any:
    """Sum of squares of all entries in the shape of `like`: `()`, or `(T,)` with the sum of each task."""
    return sum(value.square().reshape(*like.shape, -1).sum(-1) for value in values.values())


def is_on(setting: Setting) -> bool:
    """Whether a term with this factor exists at all."""
    return isinstance(setting, Tensor) or callable(setting) or setting != 0


class Descent(Solver):
    """Base: `w_{k+1} = w_k - lr_k direction_k`, the direction computed from the gradient of `objective`.

    Args:
        steps: number of steps K.
        lr: the rate: a number, a tensor `()`, or a function of u that gives a tensor `()` or a dict
            `name -> tensor` that broadcasts against the inner variable.
        rates: None; `"step"`: `u["rates.<name>"]` `(steps,)` holds the rate of each step and variable;
            `"element"`: `(steps, *start)`. `solver.rates(starts)` gives their first values, all `lr`.
        proximal: lambda in `lambda/2 ||w - w_0||^2`, added to the inner objective (iMAML, eq. 3); like `lr`.
        weight_decay: mu in `mu/2 ||w||^2`, added to the inner objective; like `lr`.
        clip: the largest norm of a task's gradient, over all of its inner variables: `g min(1, clip / ||g||)`; None for
            none. Differentiable; where it acts a step is shorter, but a point of rest is the same.
        log_rates: with `rates`: `u["rates.<name>"]` holds natural logarithms, so that an outer step multiplies a rate
            and never makes it negative.

    Raises:
        ValueError: a negative or non-finite number, unknown `rates`, rates whose `lr` is a function.

    Example:
        >>> from metapeft.inner import SGD
        >>> isinstance(SGD(steps=5, lr=0.1), Descent)
        True
    """

    decoupled: ClassVar[bool] = False  # whether `direction` takes care of the decay itself
    needs_task_axis: ClassVar[bool] = False  # whether steps of their own depend on it
    task_axis: bool = False

    def __init__(
        self,
        steps: int,
        lr: Setting,
        rates: Per | None = None,
        proximal: Setting = 0.0,
        weight_decay: Setting = 0.0,
        clip: float | None = None,
        log_rates: bool = False,
    ) -> None:
        whole(0, steps=steps)
        number(above=True, more="or None", clip=1.0 if clip is None else clip)
        check_setting("lr", lr)
        check_setting("proximal", proximal)
        check_setting("weight_decay", weight_decay)
        if rates not in (None, "step", "element"):
            raise ValueError(f'rates={rates!r} has to be None, "step" or "element"')
        if rates is not None and callable(lr):
            raise ValueError(
                f"rates={rates!r} start at lr, which then has to be a number, not a function of u"
            )
        flag(log_rates=log_rates)
        if log_rates and (rates is None or not bool(torch.as_tensor(lr) > 0)):
            why = (
                f"lr={lr!r} has none: it has to be above 0" if rates else 'say rates="step" or "element" too'
            )
            raise ValueError(f"log_rates=True learns the logarithms of rates, and {why}")
        self.steps, self.lr, self.rates_per, self.log_rates = steps, lr, rates, log_rates
        self.proximal, self.weight_decay, self.clip = proximal, weight_decay, clip

    def settings(self) -> dict[str, Any]:
        found = {("rates" if name == "rates_per" else name): value for name, value in vars(self).items()}
        found.pop("task_axis", None)
        # as runs of before there was any have it
        return {name: value for name, value in found.items() if (name, value) not in _UNSAID}

    def with_task_axis(self, task_axis: bool) -> Self:
        if task_axis == self.task_axis or (self.clip is None and not type(self).needs_task_axis):
            return self
        other = self.with_steps(self.steps)
        other.task_axis = task_axis
        return other

    @property
    def anchored(self) -> bool:
        return is_on(self.proximal)

    def rates(self, starts: Mapping[str, Tensor]) -> Tensors:
        """First values of what is learned of the rates: `"rates.<name>"` -> `(steps,)` or `(steps, *start)`."""
        if self.rates_per is None:
            return {}
        shape = {name: value.shape if self.rates_per == "element" else () for name, value in starts.items()}
        lr = float(value_of(self.lr, {}))
        lr = math.log(lr) if self.log_rates else lr
        return {
            f"rates.{name}": value.new_full((self.steps, *shape[name]), lr) for name, value in starts.items()
        }

    def init(self, u: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> dict[str, Any]:
        if self.rates_per is not None:
            for name in w:
                rate = u.get(f"rates.{name}")
                if rate is None or rate.ndim == 0 or (self.steps and not rate.shape[0]):
                    found = "is missing" if rate is None else f"has shape {tuple(rate.shape)}"
                    raise ValueError(
                        f"rates={self.rates_per!r} reads u['rates.{name}'], one rate a step, which {found}: "
                        "add solver.rates(starts) to u"
                    )
        return {"start": dict(w)} if self.anchored else {}

    def kept(self, state: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value for name, value in state.items() if name != "start"
        }  # each run has its own anchor

    def rate(self, k: int, name: str, u: Mapping[str, Tensor], lr: Any) -> float | Tensor:
        if self.rates_per is not None:
            rates = u[f"rates.{name}"]
            rate = rates[min(k, rates.shape[0] - 1)]
            return rate.exp() if self.log_rates else rate
        found: float | Tensor = lr[name] if isinstance(lr, Mapping) else lr
        return found

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        if self.anchored:
            weight, start = value_of(self.proximal, u), state["start"]
            grads = {name: grad + weight * (w[name] - start[name]) for name, grad in grads.items()}
        if is_on(self.weight_decay) and not self.decoupled:
            decay = value_of(self.weight_decay, u)
            grads = {name: grad + decay * w[name] for name, grad in grads.items()}
        if self.clip is not None:
            grads = self._clipped(grads)
        direction, state = self.direction(k, u, w, grads, state)
        lr = value_of(self.lr, u) if self.rates_per is None else None
        if isinstance(lr, Tensor) and lr.ndim:
            raise ValueError(
                f"lr, a function of u, gave a tensor of shape {tuple(lr.shape)}: it has to give shape (), or "
                "a dict name -> tensor that broadcasts against the inner variable"
            )
        return {name: descend(w[name], direction[name], self.rate(k, name, u, lr)) for name in w}, state

    def _clipped(self, grads: Mapping[str, Tensor]) -> Tensors:
        """Gradients of each task cut to the norm `clip`; at 0 with derivative 1."""
        like = next(iter(grads.values()))
        square = squared_norm(grads, like.new_empty(like.shape[:1] if self.task_axis else ()))
        tiny = torch.finfo(like.dtype).tiny
        factor = (self.clip / square.clamp_min(tiny).sqrt()).clamp_max(1.0)
        return {
            name: grad * (factor.view(-1, *[1] * (grad.dim() - 1)) if self.task_axis else factor)
            for name, grad in grads.items()
        }

    def direction(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Tensors, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        """What the rate multiplies, and the next state; plain gradient descent: the gradient."""
        return grads, state

    def objective(
        self, inner: Bound, u: Mapping[str, Tensor], w: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> Tensor:
        """`f(u, w) + proximal/2 ||w - start||^2 + weight_decay/2 ||w||^2`, for each task."""
        value = inner(u, w)
        if self.anchored:
            moved = {name: w[name] - start[name] for name in w}
            value = value + value_of(self.proximal, u) / 2 * squared_norm(moved, value)
        if is_on(self.weight_decay):
            value = value + value_of(self.weight_decay, u) / 2 * squared_norm(w, value)
        return value


class SGD(Descent):
    """Gradient descent: `w_{k+1} = w_k - lr_k (grad_w f(u, w_k) + proximal (w_k - w_0) + weight_decay w_k)`.

    Arguments as in `Descent`: `SGD(steps, lr, rates=None, proximal=0.0, weight_decay=0.0)`.

    Example:
        >>> import torch
        >>> solver = SGD(steps=2, lr=0.5, rates="step")
        >>> solver.rates({"x": torch.zeros(1, 3)})
        {'rates.x': tensor([0.5000, 0.5000])}
        >>> solver.with_steps(4)
        SGD(steps=4, lr=0.5, rates='step', proximal=0.0, weight_decay=0.0)
    """
