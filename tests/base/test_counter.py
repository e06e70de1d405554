"""The hash: published values, and draws that are uniform."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metapeft.base import counter


def test_mix_is_splitmix64() -> None:
    """First outputs of Vigna's splitmix64.c for state 0, as published with xoshiro (prng.di.unimi.it)."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert counter.words(np.zeros(1, dtype=np.uint64), 4)[0].tolist() == published


def test_golden_draws() -> None:
    """Index lists that are published must never change; these did not depend on the platform when written."""
    keys = counter.words(counter.root(7), 4)[0]
    assert counter.draw(keys, np.array([20, 20, 600, 4112]), 5).tolist() == [
        [16, 0, 15, 9, 14],
        [9, 18, 15, 1, 5],
        [402, 379, 571, 95, 328],
        [2560, 2529, 2333, 144, 2518],
    ]
    assert counter.words(counter.root(2**63 - 1), 1).tolist() == [[0x690889AE19FE46B3]]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_draws_are_different_places_and_do_not_depend_on_their_neighbours(
    sizes: list[int], count: int, seed: int
) -> None:
    rows = np.array([max(size, count) for size in sizes])
    keys = counter.words(counter.root(seed), len(rows))[0]
    drawn = counter.draw(keys, rows, count)
    assert drawn.min() >= 0
    assert (drawn < rows[:, None]).all()
    assert all(len(set(row)) == count for row in drawn.tolist())
    alone = [counter.draw(keys[i : i + 1], rows[i : i + 1], count)[0] for i in range(len(rows))]
    assert np.array_equal(drawn, np.stack(alone))


@pytest.mark.parametrize("size", [70, 300])
def test_clashes_are_resolved_as_one_by_one(size: int) -> None:
    """Large draws take the first different words of the stream, however many words were made at once."""
    keys = counter.words(counter.root(1), 500)[0]
    count = 8
    drawn = counter.draw(keys, np.full(500, size), count)
    clashes = 0
    for row, key in zip(drawn.tolist(), keys):
        stream = (counter.words(key[None], 100)[0] % np.uint64(size)).tolist()
        clashes += len(set(stream[:count])) < count
        assert row == list(dict.fromkeys(stream))[:count]
    assert clashes > 20  # the case was there


@pytest.mark.parametrize(("size", "count"), [(4, 3), (5, 2)])
def test_every_ordered_draw_is_equally_likely(size: int, count: int) -> None:
    keys = counter.words(counter.root(2), 60_000)[0]
    drawn = counter.draw(keys, np.full(len(keys), size), count)
    code = (drawn * size ** np.arange(count)).sum(axis=1)
    orders = [sum(p * size**i for i, p in enumerate(o)) for o in itertools.permutations(range(size), count)]
    observed = [int((code == order).sum()) for order in orders]
    assert sum(observed) == len(keys)
    assert stats.chisquare(observed).pvalue > 0.001  # seed fixed: no flake


@pytest.mark.parametrize("size", [65, 100, 4112])
def test_each_place_of_a_large_draw_is_uniform(size: int) -> None:
    count = 5
    drawn = counter.draw(counter.words(counter.root(3), 40_000)[0], np.full(40_000, size), count)
    for column in drawn.T:
        assert stats.chisquare(np.bincount(column, minlength=size)).pvalue > 0.001
    octant = np.arange(size) * 8 // size
    table = np.bincount(octant[drawn[:, 0]] * 8 + octant[drawn[:, 1]], minlength=64)
    wide = np.bincount(octant)  # of all ordered pairs of two places, so many lie in each pair of octants
    pairs = (np.outer(wide, wide) - np.diag(wide)).ravel() / (size * (size - 1))
    assert stats.chisquare(table, pairs * len(drawn)).pvalue > 0.001


def test_uniforms_and_integers() -> None:
    keys = counter.words(counter.root(4), 50_000)[0]
    numbers = counter.uniforms(keys, 1)[:, 0]
    assert 0 <= numbers.min() < numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 0.001
    sizes = counter.integers(keys, 2, 10)
    assert set(sizes.tolist()) == set(range(2, 11))
    assert stats.chisquare(np.bincount(sizes)[2:]).pvalue > 0.001


@pytest.mark.parametrize("bit", [0, 31, 62])
def test_one_bit_of_the_seed_changes_half_of_the_bits(bit: int) -> None:
    seeds = range(2000)
    flips = [
        (int(counter.root(seed)[0]) ^ int(counter.root(seed ^ (1 << bit))[0])).bit_count() for seed in seeds
    ]
    assert abs(np.mean(flips) - 32) < 0.5  # 5 standard errors of a fair coin: 4 / sqrt(2000) * 5 = 0.45


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, None, "0"])
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(ValueError, match="allowed is a whole number from 0 to 2\\^63 - 1"):
        counter.root(seed)  # type: ignore[arg-type]
