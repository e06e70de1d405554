"""From a full update to a low-rank format: decompositions, and with them conversion between formats."""

from __future__ import annotations

import torch
from torch import Tensor

from metapeft.updates.formats import modulation
from metapeft.updates.formats.cp import CP
from metapeft.updates.formats.format import Format
from metapeft.updates.formats.lora import LoRA
from metapeft.updates.formats.tensor_ring import TensorRing


def decompose(delta: Tensor, format: Format) -> dict[str, Tensor]:
    """Factors of a format whose update approximates `delta` `(out, in, *kernel)`.

    LoRA and CP: the truncated singular value decomposition `delta = U S V^T`, the best of its rank; LoRA shares
    the roots of S between its factors, CP has S as its seed. `|delta - found|_F^2 = sum_{i > r} S_i^2`.
    Tensor ring: TR-SVD of `delta` as an `(in prod(kernel)) x out x 1` tensor, a good, not a best approximation:
    `sum_{i > R0 R1} S_i^2 <= |delta - found|_F^2 <= sum_{i > R0 R1} S_i^2 + sum_{i > R2} s_i^2`, with s the singular
    values of what the first cut leaves as an `(R1 out) x R0` matrix. It is exact where both sums are 0.
    Together with `format.delta` it converts between formats.

    Args:
        delta: one update. format: `LoRA`, `CP` or `TensorRing`.

    Returns: factors with a leading axis of 1; a shift and a gate are 0.

    Raises:
        ValueError: a format that has no low-rank factors, a rank above what the update can have.

    Source: Eckart and Young 1936; Zhao et al. 2016 (arXiv 1606.05535), algorithm 1, through tensorly.

    Example:
        >>> delta = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0, 1.0]))
        >>> torch.allclose(CP(1).delta(decompose(delta, CP(1)))[0], delta)
        True
    """
    if delta.dim() < 2 or not delta.is_floating_point():
        raise ValueError(
            f"delta has shape {tuple(delta.shape)} and dtype {delta.dtype}: (out, in, *kernel) in floats"
        )
    matrix = delta.flatten(1)
    if isinstance(format, TensorRing):
        return _ring(matrix, format, tuple(delta.shape[1:]))
    if not isinstance(format, LoRA):
        raise ValueError(f"{format} has no low-rank factors: decompose into LoRA, CP or TensorRing")
    rank = format.rank
    if rank > min(matrix.shape):
        raise ValueError(
            f"{format}: an update of shape {tuple(delta.shape)} has rank at most {min(matrix.shape)}"
        )
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank] / format.scale, v[:rank]
    down = torch.unflatten(v, 1, delta.shape[1:]) if rank else v.new_zeros(0, *delta.shape[1:])
    if isinstance(format, CP):
        zeros = {name: delta.new_zeros(1, len(delta)) for name in modulation.names(format)}
        return {"A": down.unsqueeze(0), "B": u.unsqueeze(0), "seed": s.unsqueeze(0), **zeros}
    root = s.sqrt()
    return {"A": (down * root.view(-1, *[1] * (down.dim() - 1))).unsqueeze(0), "B": (u * root).unsqueeze(0)}


def _ring(matrix: Tensor, format: TensorRing, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Three cores by TR-SVD; the third has one slice, the seed."""
    import tensorly
    from tensorly.decomposition import tensor_ring

    first, second, third = format.bonds
    out, inner = matrix.shape
    if min(format.bonds) < 1 or first * second > inner or third > out * second:
        raise ValueError(
            f"{format} on a matrix of {out} x {inner}: TR-SVD needs bonds of at least 1 with R0 R1 <= {inner} "
            f"and R2 <= {out} R1"
        )
    with tensorly.backend_context("pytorch"):
        cores = tensor_ring(matrix.t().unsqueeze(2) / format.scale, [first, second, third, first]).factors
    a, b, seed = cores
    return {
        "A": torch.unflatten(a, 1, shape).unsqueeze(0),
        "B": b.unsqueeze(0),
        "seed": seed.squeeze(1).unsqueeze(0),
        **{name: matrix.new_zeros(1, out) for name in modulation.names(format)},
    }
