"""Any optimiser that `higher` makes differentiable, as an inner solver."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.inner.descent import is_on, squared_norm, value_of
from metapeft.inner.nested_tensors import rebuild, tensors
from metapeft.inner.solver import Bound, Solver, Tensors
from metapeft.inner.variables import distinct

# What higher's versions read; anything else (maximize, foreach, ...) they ignore in silence.
OPTIONS = {
    *("lr", "momentum", "dampening", "weight_decay", "nesterov", "betas", "eps", "amsgrad", "alpha"),
    *("centered", "rho", "lr_decay", "initial_accumulator_value", "lambd", "t0", "etas", "step_sizes"),
}


def _higher() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its source compares with `is`
        try:
            import higher
        except ImportError as error:
            raise ValueError("mp.inner.Higher needs the package `higher`: pip install higher") from error
    return higher


class Higher(Solver):
    """Steps of a `torch.optim` optimiser in the differentiable form that `higher` gives it.

    Adadelta, Adagrad, Adam, Adamax, ASGD, RMSprop, Rprop and SGD. higher's Adam differs from torch's where
    eps matters; `mp.inner.Adam` does not. Forward mode cannot take it. Source: Grefenstette et al. 2019.

    Args:
        optimizer: the optimiser's class.
        steps: number of steps.
        options: its settings; each may be a function of u (a learned rate).

    Raises:
        ValueError: an optimiser or an option that higher does not support, by name; higher not installed.

    Example:
        >>> from metapeft.inner import solve
        >>> solver = Higher(torch.optim.SGD, steps=2, lr=0.25, momentum=0.5)
        >>> solve(lambda u, w: 2 * w["x"], {}, {"x": torch.tensor(1.0)}, solver)
        {'x': tensor(-0.2500)}
    """

    def __init__(self, optimizer: type[torch.optim.Optimizer], steps: int, **options: Any) -> None:
        whole(0, steps=steps)
        unknown = sorted(set(options) - OPTIONS)
        if unknown:
            raise ValueError(
                f"option {unknown[0]!r} of {getattr(optimizer, '__name__', optimizer)} is not one that "
                f"higher honours; it honours {', '.join(sorted(OPTIONS))}"
            )
        self.optimizer, self.steps, self.options = optimizer, steps, options
        self._optimizer([torch.zeros(1)])

    def settings(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "steps": self.steps, **self.options}

    def _optimizer(self, like: list[Tensor], u: Mapping[str, Tensor] | None = None) -> Any:
        """higher's optimiser for parameters of these shapes, options at the outer variables u."""
        fixed = {name: value for name, value in self.options.items() if not callable(value)}
        learned = {name: [value(u)] for name, value in self.options.items() if callable(value)} if u else None
        higher = _higher()
        try:
            return higher.optim.create_diff_optim(
                self.optimizer,
                fixed,
                params=[value.detach() for value in like],
                override=learned,
                track_higher_grads=torch.is_grad_enabled(),
            )
        except ValueError as error:
            if "not supported by higher" not in str(error):
                raise
            prefix = "Differentiable"
            found = [name.removeprefix(prefix) for name in dir(higher.optim) if name.startswith(prefix)]
            names = ", ".join(name for name in found if name != "Optimizer")
            raise ValueError(
                f"{getattr(self.optimizer, '__name__', self.optimizer)} has no differentiable form in "
                f"higher, which has {names}; mp.inner has its own Adam, AdamW, Momentum, Nesterov and LBFGS"
            ) from error

    def step(
        self, k: int, u: Mapping[str, Tensor], w: Tensors, grads: Any, state: dict[str, Any]
    ) -> tuple[Tensors, dict[str, Any]]:
        tracked = torch.is_grad_enabled()
        optimizer = self._optimizer(list(w.values()), u)
        if "groups" in state:
            # copies, for some of them are counted up in place
            own = [value.clone() for value in tensors(state["groups"])]
            optimizer.state = [defaultdict(dict, group) for group in rebuild(state["groups"], own)]
        with torch.enable_grad():  # higher takes a gradient of its own, which the callback replaces by ours
            fresh = list(distinct(w).values())
            total = torch.stack([value.sum() for value in fresh]).sum()
            found = optimizer.step(total, params=fresh, grad_callback=lambda _: list(grads.values()))
        after = {name: value if tracked else value.detach() for name, value in zip(w, found)}
        return after, {**state, "groups": [dict(group) for group in optimizer.state]}

    def objective(
        self, inner: Bound, u: Mapping[str, Tensor], w: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> Tensor:
        """`f(u, w) + weight_decay/2 ||w||^2`."""
        value, decay = inner(u, w), self.options.get("weight_decay", 0.0)
        return value + value_of(decay, u) / 2 * squared_norm(w, value) if is_on(decay) else value
