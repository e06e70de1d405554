"""A small curved inner problem, shared by the tests of the solvers."""

from __future__ import annotations

import torch


def curved(seed=0, tasks=None):
    """`f(u, w)` with third derivatives, inner variables `a` (3, 2) and `b` (2,), outer `c` (2,)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    lead = () if tasks is None else (tasks,)
    x, y = normal(*lead, 7, 3), normal(*lead, 7, 2)
    u = {"c": normal(2)}
    start = {"a": normal(*lead, 3, 2), "b": normal(*lead, 2)}

    def inner(u, w, which=slice(None)):
        out = torch.tanh(x[which] @ w["a"] + (w["b"] + u["c"]).unsqueeze(-2))
        return (out - y[which]).square().mean((-1, -2)) + w["a"].square().sum((-1, -2)) / 20

    def outer(u, w, which=slice(None)):
        return (x[which] @ w["a"] * w["b"].unsqueeze(-2) - y[which]).square().mean((-1, -2)) + u[
            "c"
        ].sum() / 9

    return inner, outer, u, start


def torch_trajectory(inner, u, start, optimizer, steps, **options):
    """The iterates of a torch optimiser on the same problem."""
    w = {name: value.clone().requires_grad_() for name, value in start.items()}
    opt = optimizer(list(w.values()), **options)

    def closure():
        opt.zero_grad()
        loss = inner(u, w)
        loss.backward()
        return loss

    trace = [{name: value.detach().clone() for name, value in w.items()}]
    for _ in range(steps):
        opt.step(closure)
        trace.append({name: value.detach().clone() for name, value in w.items()})
    return trace
