"""What MetaLoRA's paper says of its formats (Wang & Zhao 2025, arXiv 2504.00460), in its own, input-first notation.

That a seed of ones makes CP a LoRA, that a ring contains CP, the ranks and TensorLy's reconstructions stand in
test_formats.py, seeds per input on whole layers in tests/updates/test_seeds.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import metapeft as mp
from metapeft.updates.formats.format import Format, Geometry
from tests.updates.formats.test_formats import random
from tests.updates.helpers import assert_close, randn

LINEAR, CONV = Geometry((6, 5)), Geometry((6, 5, 3, 2))
SHAPES = {"linear": LINEAR, "conv": CONV}
SEEDED = [mp.CP(3), mp.TensorRing(2), mp.TensorRing((3, 2, 4))]


def published(format: Format, own: dict[str, Tensor]) -> Tensor:
    """`W (I, O)` or `W (k1, k2, I, O)` by the paper's sums, from one task's factors."""
    a, b = own["A"], own["B"]
    if isinstance(format, mp.TensorRing):  # A (r0, i, r1) or (r0, k1, k2, i, r1), B (r1, o, r2), C (r2, r0)
        a = a if a.dim() == 3 else a.permute(0, 2, 3, 1, 4)
        return torch.einsum("a...ib,boc,ca->...io", a, b, own["seed"])
    a = a.movedim(0, -1) if a.dim() == 2 else a.permute(2, 3, 1, 0)  # A (i, r) or (k1, k2, i, r), B (r, o)
    return torch.einsum("...ir,r,ro->...io", a, own["seed"], b.T)


@pytest.mark.parametrize("geometry", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("format", SEEDED, ids=str)
def test_the_update_is_the_published_sum(format: Format, geometry: Geometry) -> None:
    factors = random(format, geometry, tasks=1)
    delta = format.delta(factors)[0]
    ours = delta.T if delta.dim() == 2 else delta.permute(2, 3, 1, 0)  # (o, i, k1, k2) -> (k1, k2, i, o)
    assert_close(ours, published(format, {name: value[0] for name, value in factors.items()}), 1e-12)


@pytest.mark.parametrize("format", SEEDED, ids=str)
def test_an_input_needs_no_update_of_its_own(format: Format) -> None:
    """`((x A) * c) B` and `Z_{r1 r2} = sum_{r0} H_{r0 r1} C_{r2 r0}`, `y = Z B`, against the update of each input."""
    x, factors = randn(1, 7, 5, seed=9), random(format, LINEAR, tasks=1)
    factors["seed"] = randn(1, 7, *factors["seed"].shape[1:], seed=10)
    hidden = (x @ format.down(factors).mT).unsqueeze(2)
    y = (format.mix(hidden, factors) @ format.up(factors, mixed=True).mT.unsqueeze(1)).squeeze(2)
    for item in range(7):
        own = {**factors, "seed": factors["seed"][:, item]}
        assert_close(y[0, item], format.delta(own)[0] @ x[0, item], 1e-12)


@pytest.mark.parametrize("geometry", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("format", SEEDED, ids=str)
def test_averaged_seeds_are_averaged_updates(format: Format, geometry: Geometry) -> None:
    factors = random(format, geometry, tasks=1)
    seeds = randn(4, *factors["seed"].shape[1:], seed=11)
    each = torch.cat([format.delta({**factors, "seed": seed.unsqueeze(0)}) for seed in seeds])
    merged = format.delta({**factors, "seed": seeds.mean(0, keepdim=True)})
    assert_close(merged[0], each.mean(0), 1e-12)


@pytest.mark.parametrize("geometry", SHAPES.values(), ids=SHAPES)
def test_a_ring_has_the_numbers_of_cp_of_the_squared_rank(geometry: Geometry) -> None:
    ring, cp = (
        {name: torch.Size(shape).numel() for name, shape in format.shapes(geometry).items()}
        for format in (mp.TensorRing(3), mp.CP(9))
    )
    assert ring == cp
    kernel = torch.Size(geometry.kernel).numel()
    assert ring["A"] + ring["B"] == 9 * (kernel * geometry.inner + geometry.out)


@pytest.mark.parametrize("format", SEEDED, ids=str)
def test_a_seed_of_zero_beside_b_of_zero_is_dead(format: Format) -> None:
    """The start, 1 or the identity, is not: B has a gradient."""
    target = randn(1, 6, 5, seed=12).float()
    moved = {}
    for name, change in (("start", 1.0), ("dead", 0.0)):
        start = format.start(LINEAR, torch.Generator().manual_seed(0))
        leaves = {
            key: (value * change if key == "seed" else value).requires_grad_() for key, value in start.items()
        }
        found = torch.autograd.grad((format.delta(leaves) * target).sum(), list(leaves.values()))
        moved[name] = {key for key, gradient in zip(leaves, found) if gradient.any()}
    assert moved == {"start": {"B"}, "dead": set()}


@pytest.mark.parametrize("geometry", SHAPES.values(), ids=SHAPES)
def test_ungated_branches_are_one_lora(geometry: Geometry) -> None:
    """`sum_m s_m B_m A_m` is CP of rank M r whose terms of a branch share a seed; with all s 1, LoRA of rank M r."""
    branches = [random(mp.LoRA(2), geometry, tasks=1) for _ in range(3)]
    for number, branch in enumerate(branches):
        branch["A"] = branch["A"] * (number + 1.5)
    scales = randn(1, 3, seed=13)
    summed = sum(scales[0, m] * mp.LoRA(2).delta(branch) for m, branch in enumerate(branches))
    joined = {"A": torch.cat([b["A"] for b in branches], 1), "B": torch.cat([b["B"] for b in branches], 2)}
    assert_close(mp.CP(6).delta({**joined, "seed": scales.repeat_interleave(2, -1)}), summed, 1e-12)
    plain = sum(mp.LoRA(2).delta(branch) for branch in branches)
    assert_close(mp.LoRA(6).delta(joined), plain, 1e-12)
