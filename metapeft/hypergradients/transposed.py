"""Linear systems that are not symmetric, one a task, solved all at once by products with their matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: `(T, n) -> (T, n)`, a product with the matrix of each task
Product = Callable[[Tensor], Tensor]


def gmres(product: Product, g: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, int]:
    """`x` with the smallest `||g - A x||` in the Krylov space of `g, A g, ...`, for every task, and its dimension.

    Arnoldi's basis is made orthogonal twice, so that it stays so; a space that is exhausted ends in zeros, which the
    least-squares problem leaves alone.
    Source: Saad and Schultz 1986, algorithm 3, without restarts.

    Example:
        >>> a = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
        >>> x, made = gmres(lambda v: v @ a.T, torch.tensor([[3.0, 1.0]]), 5, 1e-6)
        >>> torch.allclose(x, torch.ones(1, 2)), made
        (True, 2)
    """
    tiny, eps = torch.finfo(g.dtype).tiny, torch.finfo(g.dtype).eps
    size = g.norm(dim=1, keepdim=True)
    basis = [g / size.clamp_min(tiny)]
    columns: list[Tensor] = []
    x, made = torch.zeros_like(g), 0
    while made < min(iterations, g.shape[1]):
        space = torch.stack(basis, 2)  # (T, n, made + 1)
        new = product(basis[-1])
        before = new.norm(dim=1, keepdim=True)
        heights = torch.zeros_like(space[:, 0])
        for _ in range(2):
            along = torch.einsum("tnk,tn->tk", space, new)
            new, heights = new - torch.einsum("tnk,tk->tn", space, along), heights + along
        rest = new.norm(dim=1, keepdim=True)
        ended = rest <= 16 * eps * before  # nothing new: the space is exhausted
        rest = torch.where(ended, 0.0, rest)
        basis.append(torch.where(ended, 0.0, new / rest.clamp_min(tiny)))
        columns.append(torch.cat([heights, rest], 1))
        made += 1
        hessenberg = torch.stack([F.pad(column, (0, made + 1 - column.shape[1])) for column in columns], 2)
        wanted = F.pad(size, (0, made))
        weights = torch.linalg.pinv(hessenberg) @ wanted.unsqueeze(2)
        x = torch.einsum("tnk,tk->tn", torch.stack(basis[:made], 2), weights[..., 0])
        left = (wanted - (hessenberg @ weights)[..., 0]).norm(dim=1)
        if bool((left <= tolerance * size[:, 0]).all()):
            break
    return x, made


def conjugate_normal(
    product: Product, transposed: Product, g: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, int]:
    """`A^T A x = A^T g` by conjugate gradients, each task until its `||g - A x||` is small: LSQR's iterates (CGLS).

    Source: Hestenes and Stiefel 1952, section 10; Björck 1996, algorithm 7.4.1.

    Example:
        >>> a = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
        >>> x, _ = conjugate_normal(lambda v: v @ a.T, lambda v: v @ a, torch.tensor([[3.0, 1.0]]), 5, 1e-6)
        >>> torch.allclose(x, torch.ones(1, 2))
        True
    """
    tiny = torch.finfo(g.dtype).tiny
    x, r = torch.zeros_like(g), g
    s = transposed(r)
    p, gamma, made = s, s.square().sum(1), 0
    size = g.norm(dim=1)
    active = (r.norm(dim=1) > tolerance * size) & (gamma > 0)
    while made < iterations and bool(active.any()):
        image = product(p)
        length = image.square().sum(1)
        alpha = torch.where(active & (length > 0), gamma / length.clamp_min(tiny), 0.0).unsqueeze(1)
        x, r = x + alpha * p, r - alpha * image
        s = transposed(r)
        gamma, before = s.square().sum(1), gamma
        p = s + torch.where(active, gamma / before.clamp_min(tiny), 0.0).unsqueeze(1) * p
        active = active & (r.norm(dim=1) > tolerance * size) & (gamma > 0)
        made += 1
    return x, made


def neumann(product: Product, g: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, int]:
    """`sum_{j<iterations} J^j g`, which is `(I - J)^-1 g` where the spectral radius of J is below 1.

    Example:
        >>> neumann(lambda v: v / 2, torch.ones(1, 1), 3, 0.0)
        (tensor([[1.7500]]), 3)
    """
    total, power, made = torch.zeros_like(g), g, 0
    size = g.norm(dim=1)
    while made < iterations:
        total = total + power
        power = product(power)
        made += 1
        if bool((power.norm(dim=1) <= tolerance * size).all()):  # which is g - (I - J) total
            break
    return total, made
