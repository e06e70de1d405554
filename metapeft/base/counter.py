"""Counter-based random numbers: every draw is a hash of (seed, episode, purpose, position), never a state.

`word = mix(key + (position + 1) * STEP)` is the splitmix64 stream that starts at `key` (Steele, Lea, Flood
2014, "Fast splittable pseudorandom number generators", section 4, with Stafford's variant 13 as `mix`). Keys
are made by the same function from their parent, so episode `i` can be drawn without episodes `0 .. i-1`. All
of it is 64-bit integer arithmetic modulo 2^64: the same on every platform, worker and batch size.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from metapeft.base.arguments import plain, seed_number

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

# 2^64 over the golden ratio, odd: position * STEP runs through all of 2^64
STEP = np.uint64(0x9E3779B97F4A7C15)
# of `mix`
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def mix(x: Words) -> Words:
    """A bijection of 64-bit words in which every input bit changes every output bit about half of the time.

    Example:
        >>> [hex(word) for word in mix(np.array([1, 2], dtype=np.uint64)).tolist()]
        ['0x5692161d100b05e5', '0xdbd238973a2b148a']
    """
    x = x ^ (x >> SHIFTS[0])
    x *= FIRST
    x ^= x >> SHIFTS[1]
    x *= SECOND
    x ^= x >> SHIFTS[2]
    return x


def root(seed: int) -> Words:
    """The key `(1,)` of a seed in `0 .. 2^63 - 1`; raises ValueError for any other."""
    seed_number(plain(seed))
    return child(np.zeros(1, dtype=np.uint64), np.array([seed], dtype=np.uint64))


def child(key: Words, position: Words) -> Words:
    """The words at `position` of the streams of `key`, which are keys themselves; shapes broadcast."""
    return mix(key + (position + np.uint64(1)) * STEP)


def words(key: Words, count: int) -> Words:
    """The first `count` words of each key's stream: `(...)` -> `(..., count)`."""
    return mix(key[..., None] + _steps(count))


@functools.cache
def _steps(count: int) -> Words:
    return np.arange(1, count + 1, dtype=np.uint64) * STEP


def uniforms(key: Words, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) a key, multiples of 2^-53: `(...)` -> `(..., count)`."""
    return (words(key, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(word: Words, low: int, high: int) -> Integers:
    """A word -> an integer in `low .. high` (both included), uniform up to `(high - low) / 2^64`."""
    return (word % np.uint64(high - low + 1)).astype(np.int64) + low


def draw(key: Words, sizes: Integers, count: int) -> Integers:
    """`count` of `0 .. size-1` without replacement in random order, all rows at once, each with a size of its
    own.

    Small sizes: the order of `size` words, a uniform permutation. Large ones: places drawn with replacement,
    of which the first `count` different ones stay; the next different one is uniform over what is left, so
    this is uniform too, and costs `count` words however large `size` is. Exact up to the bias of a 64-bit
    word modulo `size`, which is `size / 2^64`.

    Args:
        key: a key a row, `(R,)`.
        sizes: how many there are to draw from in each row, `(R,)`; where it is less than `count`, all of them come
            first, and then numbers that are none of them.
        count: how many to draw.

    Returns:
        `(R, count)` int64.

    Example:
        >>> draw(root(0), np.array([5]), 5).tolist()
        [[2, 0, 3, 1, 4]]
        >>> draw(root(0), np.array([10**12]), 2).tolist()
        [[249420947055, 325729570654]]
    """
    small = sizes <= max(64, 8 * count)
    if small.all():
        return _ordered(key, sizes, count)
    if not small.any():
        return _first_different(key, sizes, count)
    found = np.empty((len(key), count), dtype=np.int64)
    found[small] = _ordered(key[small], sizes[small], count)
    found[~small] = _first_different(key[~small], sizes[~small], count)
    return found


def _ordered(key: Words, sizes: Integers, count: int) -> Integers:
    most = max(int(sizes.max()), count)
    stream = words(key, most)
    stream[np.arange(most) >= sizes[:, None]] = np.iinfo(np.uint64).max
    return np.ascontiguousarray(stream.argsort(axis=1, kind="stable")[:, :count])


def _first_different(key: Words, sizes: Integers, count: int) -> Integers:
    found = (words(key, count) % sizes[:, None].astype(np.uint64)).astype(np.int64)
    ordered = np.sort(found, axis=1)
    clash = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if clash.any():  # the longer stream begins with the same words
        found[clash] = _skipping(key[clash], sizes[clash], count, 2 * count + 8)
    return found


def _skipping(key: Words, sizes: Integers, count: int, tries: int) -> Integers:
    places = words(key, tries) % sizes[:, None].astype(np.uint64)
    again = np.tril(places[:, :, None] == places[:, None, :], -1).any(axis=2)
    found = np.take_along_axis(places, again.argsort(axis=1, kind="stable")[:, :count], axis=1).astype(
        np.int64
    )
    short = tries - again.sum(axis=1) < count
    if short.any():  # the result does not depend on `tries`
        found[short] = _skipping(key[short], sizes[short], count, 2 * tries)
    return found
