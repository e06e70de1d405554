"""iMAML as its code runs it: 16 steps on the loss, one on the regulariser, five iterations of its CG.

Source: aravindr93/imaml_dev, examples/omniglot_implicit_maml.py and implicit_maml/learner_model.py with their default
settings. Its inner steps leave the regulariser out, which then pulls back once; and its matrix is
`(1 + cg_damping) I + H / (lam + 10)`, with `lam = cg_damping = 1`: that of a proximal term of 11, damped by 11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import metapeft as mp
from metapeft.hypergradients import CG
from metapeft.inner.descent import squared_norm

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore::metapeft.hypergradients.NotConverged"),
    pytest.mark.filterwarnings("ignore::metapeft.hypergradients.IndefiniteHessian"),
]
Tensors = dict[str, Tensor]
STEPS, LR, LAM, CG_STEPS, CG_DAMPING, LAM_DAMPING = 16, 1e-2, 1.0, 5, 1.0, 10.0
WAYS, TASKS = 5, 3


class SixteenAndOne(mp.inner.Solver):
    """`w - lr grad f` sixteen times, then `w - lr lam (w - w_0)`; implicitly, a proximal term of `lam + 10`."""

    def __init__(self, steps: int = STEPS + 1) -> None:
        self.steps = steps

    @property
    def anchored(self) -> bool:
        return True

    def init(self, u: Mapping[str, Tensor], w: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"start": dict(w)}

    def step(self, k: int, u: Any, w: Tensors, grads: Any, state: Any) -> tuple[Tensors, Any]:
        if k == self.steps - 1:
            grads = {name: LAM * (w[name] - state["start"][name]) for name in w}
        return {name: w[name] - LR * grads[name] for name in w}, state

    def objective(self, inner: Any, u: Any, w: Any, start: Any) -> Tensor:
        value: Tensor = inner(u, w)
        moved = {name: w[name] - start[name] for name in w}
        return value + (LAM + LAM_DAMPING) / 2 * squared_norm(moved, value)


def network() -> nn.Module:
    """Its network for Omniglot with fewer filters: strided convolutions, batch norms without running statistics."""
    layers: list[nn.Module] = []
    channels = 1
    for block in range(4):
        layers += [nn.ZeroPad2d((0, 1, 0, 1))] if block == 2 else []
        layers += [
            nn.Conv2d(channels, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4, track_running_stats=False),
        ]
        layers += [nn.ReLU()]
        channels = 4
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * 2 * 4, WAYS)).double()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=1.73)
            nn.init.uniform_(module.bias, 0.0, 0.05)
    return net


def its_cg(product: Any, b: Tensor) -> Tensor:
    x = torch.zeros_like(b)
    r = b - product(x)
    p = r
    for _ in range(CG_STEPS):
        rr, image = r @ r, product(p)
        alpha = rr / (p @ image)
        x, r = x + alpha * p, r - alpha * image
        p = r + (r @ r) / rr * p
    return x


def test_its_sixteen_steps_and_one() -> None:
    torch.manual_seed(0)
    net = network()
    x, query = (torch.rand(TASKS, WAYS, 1, 28, 28).double() for _ in range(2))
    y = torch.stack([torch.randperm(WAYS) for _ in range(TASKS)])
    start = {name: value.detach().clone() for name, value in net.named_parameters()}
    names, sizes = list(start), [value.numel() for value in start.values()]

    def loss(w: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, w, (x,)), y)

    def named(flat: Tensor) -> Tensors:
        return {n: part.view_as(start[n]) for n, part in zip(names, flat.split(sizes))}

    def flat(grads: Any) -> Tensor:
        return torch.cat([grad.flatten() for grad in grads])

    total = torch.zeros(sum(sizes)).double()
    for t in range(TASKS):
        w = {name: value.clone().requires_grad_() for name, value in start.items()}
        optimizer = torch.optim.SGD(list(w.values()), lr=LR)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(w, x[t], y[t]).backward()
            optimizer.step()
        optimizer.zero_grad()
        (0.5 * LAM * sum(((w[n] - start[n]) ** 2).sum() for n in w)).backward()
        optimizer.step()
        slope = flat(torch.autograd.grad(loss(w, x[t], y[t]), list(w.values()), create_graph=True))

        def product(v: Tensor, slope: Tensor = slope, w: Tensors = w) -> Tensor:
            curved = flat(torch.autograd.grad(slope @ v, list(w.values()), retain_graph=True))
            return (1.0 + CG_DAMPING) * v + curved / (LAM + LAM_DAMPING)

        outer = flat(torch.autograd.grad(loss(w, query[t], y[t]), list(w.values())))
        total += its_cg(product, outer) / TASKS

    found = [
        mp.hypergradient(
            lambda u, w, t=t: loss(w, query[t], y[t]),
            lambda u, w, t=t: loss(w, x[t], y[t]),
            start,
            lambda u: dict(u),
            SixteenAndOne(),
            CG(iterations=CG_STEPS, damping=CG_DAMPING * (LAM + LAM_DAMPING)),
        ).grads
        for t in range(TASKS)
    ]
    for name, value in named(total).items():
        ours = torch.stack([grads[name] for grads in found]).mean(0)
        # five iterations are not the solution: roundings of both are apart by the iterations' own errors
        torch.testing.assert_close(ours, value, rtol=1e-8, atol=1e-12)
        assert value.abs().max() > 0
