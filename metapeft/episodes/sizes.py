"""How many ways, shots and queries an episode has: fixed, or drawn and padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metapeft.base import counter
from metapeft.base.arguments import is_whole, plain

REST = "rest"
SMALL = ("refuse", "skip", "cap")


@dataclass(frozen=True)
class Sizes:
    """Lowest and highest number of ways and shots, both included, and the number of queries a class.

    Attributes:
        queries: a number, or `"rest"`: all that is not in the support set.
        small: what becomes of classes with fewer than `needed` images.

    Example:
        >>> sizes = Sizes.checked((2, 10), 1, 15, False)
        >>> sizes.ways, sizes.needed, sizes.least
        ((2, 10), 16, 16)
        >>> Sizes.checked(5, (1, 3), "rest", False).needed
        4
    """

    ways: tuple[int, int]
    shots: tuple[int, int]
    queries: int | str
    imbalanced: bool
    small: str = "refuse"

    @classmethod
    def checked(
        cls, ways: object, shots: object, queries: object, imbalanced: bool, small: str = "refuse"
    ) -> Sizes:
        """ValueError unless these are positive integers or, for ways and shots, a `(low, high)` of them."""
        queries = plain(queries)
        if queries != REST and not is_whole(queries):
            raise ValueError(
                f'queries={queries!r}: allowed is a whole number of at least 1, or "rest" for all images of a class '
                "that are not in the support set"
            )
        if small not in SMALL:
            raise ValueError(f"small={small!r}: allowed are {', '.join(map(repr, SMALL))}")
        if small == "cap" and queries == REST:
            raise ValueError(
                'small="cap" has no effect on queries="rest", which takes what there is: leave it out'
            )
        found = cls(_range("ways", ways), _range("shots", shots), queries, bool(imbalanced), small)
        if imbalanced and found.shots[0] == found.shots[1]:
            raise ValueError(f"imbalanced=True needs a range of shots, such as shots=(1, 5), not {shots!r}")
        return found

    def as_given(self) -> tuple[int | tuple[int, int], int | tuple[int, int], int | str]:
        """Ways, shots and queries, a range only where it is one."""
        ways, shots = (bounds[0] if bounds[0] == bounds[1] else bounds for bounds in (self.ways, self.shots))
        return ways, shots, self.queries

    @property
    def needed(self) -> int:
        """How many images a class must have to give all that is asked for."""
        return self.shots[1] + (1 if isinstance(self.queries, str) else self.queries)

    @property
    def least(self) -> int:
        """How many images a class must have to be drawn at all."""
        return self.shots[1] + 1 if self.small == "cap" else self.needed

    @property
    def fixed(self) -> bool:
        """True where every episode has the same ways and shots."""
        return self.ways[0] == self.ways[1] and self.shots[0] == self.shots[1]

    def drawn(self, key: counter.Words) -> tuple[NDArray[np.bool_], counter.Integers]:
        """Which ways there are in the episodes of `key` `(T,)`, and the shots of each: both `(T, N)`, N the most."""
        most = self.ways[1]
        if self.fixed:
            shape = (len(key), most)
            return np.ones(shape, dtype=bool), np.full(shape, self.shots[1])
        stream = counter.words(key, 1 + most)
        ways = counter.integers(stream[:, 0], *self.ways)
        shots = counter.integers(stream[:, 1:] if self.imbalanced else stream[:, 1:2], *self.shots)
        return np.arange(most) < ways[:, None], np.broadcast_to(shots, (len(key), most))


def _range(name: str, value: object) -> tuple[int, int]:
    low, high = map(plain, value if isinstance(value, tuple | list) and len(value) == 2 else (value, value))
    if is_whole(low) and is_whole(high, low):
        return low, high
    raise ValueError(
        f"{name}={value!r}: allowed is a whole number of at least 1, or a range (low, high) of them"
    )
