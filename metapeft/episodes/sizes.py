"""How many ways and shots an episode has: fixed, or drawn and padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metapeft.base import counter
from metapeft.base.arguments import is_whole, plain, whole


@dataclass(frozen=True)
class Sizes:
    """Lowest and highest number of ways and shots, both included, and the number of queries a class.

    Example:
        >>> Sizes.checked((2, 10), 1, 15, False).ways
        (2, 10)
    """

    ways: tuple[int, int]
    shots: tuple[int, int]
    queries: int
    imbalanced: bool

    @classmethod
    def checked(cls, ways: object, shots: object, queries: object, imbalanced: bool) -> Sizes:
        """ValueError unless these are positive integers or, for ways and shots, a `(low, high)` of them."""
        whole(queries=plain(queries))
        found = cls(_range("ways", ways), _range("shots", shots), int(str(queries)), bool(imbalanced))
        if imbalanced and found.shots[0] == found.shots[1]:
            raise ValueError(f"imbalanced=True needs a range of shots, such as shots=(1, 5), not {shots!r}")
        return found

    def as_given(self) -> tuple[int | tuple[int, int], int | tuple[int, int], int]:
        """Ways, shots and queries, a range only where it is one."""
        ways, shots = (bounds[0] if bounds[0] == bounds[1] else bounds for bounds in (self.ways, self.shots))
        return ways, shots, self.queries

    @property
    def fixed(self) -> bool:
        """True where every episode has the same sizes, so that nothing is padded."""
        return self.ways[0] == self.ways[1] and self.shots[0] == self.shots[1]

    def masks(self, key: counter.Words) -> dict[str, NDArray[np.bool_]]:
        """What is there, not padding, in the episodes of `key` `(T,)`; nothing where sizes are fixed.

        Returns:
            `classes (T, N)`, `support (T, N K)` and `query (T, N Q)`, N and K being the highest numbers.
        """
        if self.fixed:
            return {}
        most_ways, most_shots = self.ways[1], self.shots[1]
        stream = counter.words(key, 1 + most_ways)
        ways = counter.integers(stream[:, 0], *self.ways)
        shots = counter.integers(stream[:, 1:] if self.imbalanced else stream[:, 1:2], *self.shots)
        present = np.arange(most_ways) < ways[:, None]
        support = present[..., None] & (np.arange(most_shots) < shots[..., None])
        query = present.repeat(self.queries, axis=1)
        return {"classes": present, "support": support.reshape(len(key), -1), "query": query}


def _range(name: str, value: object) -> tuple[int, int]:
    low, high = map(plain, value if isinstance(value, tuple | list) and len(value) == 2 else (value, value))
    if is_whole(low) and is_whole(high, low):
        return low, high
    raise ValueError(
        f"{name}={value!r}: allowed is a whole number of at least 1, or a range (low, high) of them"
    )
