"""A random bilevel quadratic whose K-step iterate is known in closed form.

Inner: `f(u, w) = 1/2 w'Hw - w'(B c) + s/2 |w|^2`, start `w_0 = P t`, so `H_s = H + s I` and
`w_K = (I - lr H_s)^K P t + sum_{j<K} lr (I - lr H_s)^j B c`.
Outer: `F(u, w) = 1/2 |w - y|^2 + d'w + |d|^2 / 2`. Outer variables c, s (inner), d (outer), t (start).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEYS = ("c", "s", "d", "t")


@dataclass(frozen=True)
class Quadratic:
    H: Tensor
    B: Tensor
    P: Tensor
    y: Tensor
    u: dict[str, Tensor]
    lr: float

    def inner(self, u, w):
        x = w["w"]
        return x @ self.H @ x / 2 - x @ (self.B @ u["c"]) + u["s"] / 2 * (x @ x)

    def outer(self, u, w):
        x = w["w"]
        return (x - self.y).square().sum() / 2 + u["d"] @ x + u["d"].square().sum() / 2

    def start(self, u):
        return {"w": self.P @ u["t"]}

    def hessian(self, u):
        return self.H + u["s"] * torch.eye(len(self.H), dtype=self.H.dtype)

    def iterate(self, u, steps):
        """w_K in closed form: powers and their sum in the eigenbasis of H, nothing divided."""
        values, vectors = torch.linalg.eigh(self.H)
        factor = (1 - self.lr * (values + u["s"])).unsqueeze(1)
        powers = factor ** torch.arange(steps + 1, dtype=values.dtype)
        target, origin = vectors.T @ (self.B @ u["c"]), vectors.T @ (self.P @ u["t"])
        return vectors @ (powers[:, -1] * origin + self.lr * powers[:, :-1].sum(1) * target)

    def value(self, u, steps):
        return self.outer(u, {"w": self.iterate(u, steps)})


def quadratic(dim: int, condition: float, seed: int) -> Quadratic:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    basis = torch.linalg.qr(normal(dim, dim))[0]
    spectrum = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), dim, dtype=torch.float64)
    H = basis @ torch.diag(spectrum) @ basis.T
    m = min(dim, 3)
    u = {
        "c": normal(m),
        "s": torch.tensor(0.05 / condition, dtype=torch.float64),
        "d": normal(dim),
        "t": normal(m),
    }
    return Quadratic((H + H.T) / 2, normal(dim, m), normal(dim, m), normal(dim), u, lr=0.9)


def closed_form(value, u):
    """Gradient of a closed form by autograd."""
    leaves = {name: entry.clone().requires_grad_() for name, entry in u.items()}
    found = torch.autograd.grad(
        value(leaves), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found))


def assert_close(found, expected, relative):
    """Equal up to `relative` times the norm of the expected tensor, for each outer variable."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        size = value.norm().item()
        error = (found[name] - value).norm().item()
        assert error <= relative * size + 1e-14, f"{name}: error {error:.3g}, size {size:.3g}"
