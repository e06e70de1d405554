"""Updates brought to their singular terms: the one form in which terms can be told apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metapeft.updates.factors import by_parameter
from metapeft.updates.formats.cp import CP
from metapeft.updates.formats.format import Format
from metapeft.updates.formats.lora import LoRA
from metapeft.updates.formats.selection import HasSites
from metapeft.updates.formats.tensor_ring import TensorRing


def canonical(model: HasSites, factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same update with the singular terms of each layer as its terms, the largest first.

    `B A = sum_j s_j u_j v_j^T`: any invertible matrix can stand between B and A, so that the terms of a trained
    update mean nothing one by one; those of its singular value decomposition do. LoRA shares the roots of s between
    A and B, CP has s as its seed. A tensor ring's terms, the bond r1, become the singular terms of the chain that its
    cores A and B are without the seed, `M[(r0, i), (o, r2)] = sum_r1 A[r0, i, r1] B[r1, o, r2]`.

    Args:
        model: what `attach` returned. factors: `name -> (T, ...)`.

    Returns: factors of the same names and shapes, with the same update; what has no terms passes through.

    Raises:
        ValueError: factors of another model, a seed per input, a format of one's own that is none of the three.

    Example:
        >>> import metapeft as mp
        >>> model = mp.attach(torch.nn.Linear(4, 3), mp.LoRA(2))
        >>> factors = {name: torch.randn_like(value) for name, value in model.factors().items()}
        >>> found = canonical(model, factors)
        >>> torch.allclose(*(one["weight.B"] @ one["weight.A"] for one in (factors, found)), atol=1e-5)
        True
        >>> (found["weight.B"][0].T @ found["weight.B"][0]).fill_diagonal_(0).abs().max() < 1e-5
        tensor(True)
    """
    result = dict(factors)
    for name, own in by_parameter(model.sites, factors).items():
        format = model.sites[name].format
        if format.terms == 0:
            continue
        for key, wanted in format.shapes(model.sites[name].geometry).items():
            if tuple(own[key].shape[1:]) != wanted:
                raise ValueError(
                    f"{name}.{key} has shape {tuple(own[key].shape)}, a task's has {wanted}: factors (T, ...), no seed "
                    "per input"
                )
        result.update({f"{name}.{key}": value for key, value in _canonical(format, own).items()})
    return result


def _canonical(format: Format, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(format, TensorRing):
        left = own["A"].flatten(1, -2)  # (T, r0 in kernel, r1)
        right = own["B"].flatten(2)  # (T, r1, out r2)
        u, s, v = singular(left, right)
        root = s.sqrt()
        a = (u * root.unsqueeze(1)).view(own["A"].shape)
        return {"A": a, "B": (v * root.unsqueeze(2)).view(own["B"].shape), "seed": own["seed"]}
    if not isinstance(format, LoRA):
        raise ValueError(
            f"{format} is a format of your own: canonical() knows the terms of LoRA, CP and TensorRing"
        )
    up = own["B"] * own["seed"].unsqueeze(1) if isinstance(format, CP) else own["B"]
    u, s, v = singular(up, own["A"].flatten(2))
    if isinstance(format, CP):
        return {"A": v.view(own["A"].shape), "B": u, "seed": s}
    root = s.sqrt()
    return {"A": (v * root.unsqueeze(2)).view(own["A"].shape), "B": u * root.unsqueeze(1)}


def singular(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of `left @ right`, of rank r at most, without that product.

    Args:
        left: `(T, m, r)`. right: `(T, r, n)`, r at most m and n.

    Returns: u `(T, m, r)`, s `(T, r)`, v `(T, r, n)` with `left @ right = u diag(s) v`.

    Example:
        >>> u, s, v = singular(torch.ones(1, 3, 1), torch.ones(1, 1, 4))
        >>> s
        tensor([[3.4641]])
    """
    q, upper = torch.linalg.qr(left)
    p, lower = torch.linalg.qr(right.transpose(1, 2))
    u, s, v = torch.linalg.svd(upper @ lower.transpose(1, 2))
    return q @ u, s, v @ p.transpose(1, 2)
