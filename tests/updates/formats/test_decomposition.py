"""Decompositions: exact where the format can hold the update, best by Eckart-Young else, refused where impossible."""

import pytest
import torch

import metapeft as mp


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
