"""Decompositions: exact where the format can hold the update, best by Eckart-Young else, refused where impossible."""

import pytest
import torch

import metapeft as mp
from metapeft.updates.formats.format import Geometry
from tests.updates.formats.test_formats import random
from tests.updates.helpers import assert_close


def update(rank, shape=(6, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in shape)
    return left @ right.T


@pytest.mark.parametrize(
    "format", [mp.LoRA(3), mp.LoRA(3, alpha=1.0), mp.CP(3), mp.CP(4, alpha=2.0)], ids=str
)
@pytest.mark.parametrize("shape", [(6, 8), (6, 2, 2, 2)], ids=str)
def test_an_update_of_that_rank_comes_back(format, shape):
    delta = update(3).reshape(shape)
    factors = mp.decompose(delta, format)
    assert torch.linalg.norm(format.delta(factors)[0] - delta) <= 1e-12 * torch.linalg.norm(delta)


@pytest.mark.parametrize("shape", [(6, 8), (6, 2, 2, 2)], ids=str)
def test_a_ring_with_large_enough_bonds_is_exact(shape):
    format, delta = mp.TensorRing((2, 3, 2), alpha=2.0), update(3).reshape(shape)
    factors = mp.decompose(delta, format)
    assert {name: tuple(value.shape[1:]) for name, value in factors.items()} == {
        "A": (2, *shape[1:], 3),
        "B": (3, 6, 2),
        "seed": (2, 2),
    }
    assert torch.linalg.norm(format.delta(factors)[0] - delta) <= 1e-12 * torch.linalg.norm(delta)


def test_the_error_is_that_of_eckart_and_young():
    delta = update(6, seed=1)
    tail = torch.linalg.svdvals(delta)[2:]
    for format in (mp.LoRA(2), mp.CP(2)):
        error = torch.linalg.norm(format.delta(mp.decompose(delta, format))[0] - delta)
        assert abs(error - tail.norm()) <= 1e-12 * delta.norm()


@pytest.mark.parametrize("format", [mp.Full(), mp.LoRA(7), mp.TensorRing(4)], ids=str)
def test_what_cannot_be_is_refused(format):
    with pytest.raises(ValueError, match=type(format).__name__):
        mp.decompose(update(2), format)


FORMATS = {"lora": mp.LoRA(4), "cp": mp.CP(4, alpha=2.0), "ring": mp.TensorRing(2)}


@pytest.mark.parametrize("shape", [(6, 8), (6, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("source", FORMATS.values(), ids=FORMATS)
def test_every_format_becomes_every_other(source, shape):
    """Each of these updates has rank 4: exactly by LoRA and CP of that rank, and by a ring with `R0 R1 = 4`."""
    geometry = Geometry(shape)
    delta = source.delta(random(source, geometry, tasks=1))[0]
    assert_close(mp.LoRA(4).delta(source.to_lora(random(source, geometry, tasks=1)))[0], delta, 1e-12)
    for target in (mp.LoRA(4), mp.CP(4), mp.TensorRing((2, 2, 6)), mp.TensorRing((1, 4, 6), alpha=3.0)):
        assert_close(target.delta(mp.decompose(delta, target))[0], delta, 1e-12)


@pytest.mark.parametrize("bonds", [(1, 2, 1), (2, 2, 2), (2, 3, 4), (1, 3, 2)], ids=str)
def test_a_ring_errs_within_its_stated_bounds(bonds):
    """No update of a ring has a rank above `R0 R1`: that tail bounds its error below; above, both truncations of
    TR-SVD together."""
    for seed in range(5):
        delta = update(6, shape=(6, 12), seed=seed)
        format = mp.TensorRing(bonds)
        error = torch.linalg.norm(format.delta(mp.decompose(delta, format))[0] - delta)
        _, values, right = torch.linalg.svd(delta.T, full_matrices=False)
        kept = bonds[0] * bonds[1]
        first = values[kept:].norm()
        # what is left is (R0 x R1) x out, of which R1 out x R0 is cut to R2
        core = (values[:kept, None] * right[:kept]).view(bonds[0], bonds[1], -1)
        second = torch.linalg.svdvals(core.permute(1, 2, 0).flatten(0, 1))[bonds[2] :].norm()
        rounding = 1e-12 * delta.norm()
        assert first - rounding <= error <= torch.hypot(first, second) + rounding
