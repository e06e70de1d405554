"""What every sampler can do, for its episodes are a pure function of their numbers."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch import Tensor

from metapeft.base import counter
from metapeft.base.arguments import flag
from metapeft.episodes.episode import Episode, EpisodeBatch

# so many numbers are drawn before a partner counts as missing: of a kind that one episode in a hundred has, 3 in
# 100,000 searches find none
CANDIDATES = 1024
_ROUND = 16


class Numbered(ABC):
    """Episodes by their numbers, the kinds that they are of, and partners of another kind or of the same.

    Attributes:
        episodes: how many there are.
        kinds: the names of the kinds of tasks; empty where none are known.
        dataset, ways, shots, queries, seed, shift, augment, rotations, imbalanced, small: what a protocol says of them.
    """

    episodes: int
    kinds: tuple[str, ...] = ()
    dataset: Any
    ways: int | tuple[int, int]
    shots: int | tuple[int, int]
    queries: int | str
    seed: int
    shift: Any
    augment: Any
    rotations: bool
    imbalanced: bool
    small: str = "refuse"

    @abstractmethod
    def _at(self, numbers: counter.Integers) -> EpisodeBatch:
        """The episodes of checked numbers."""

    @abstractmethod
    def _kinds_at(self, numbers: counter.Integers) -> counter.Integers:
        """Their kinds, where there are any."""

    @abstractmethod
    def _partner_keys(self, numbers: counter.Integers) -> counter.Words:
        """A key an episode for the numbers of its partners."""

    def __len__(self) -> int:
        return self.episodes

    def __getitem__(self, i: int) -> Episode:
        if not 0 <= i < self.episodes:
            raise IndexError(f"episode {i} is not one of 0 .. {self.episodes - 1}")
        return self.batch(i, 1).episode(0)

    def batch(self, start: int, count: int) -> EpisodeBatch:
        """Episodes `start .. start + count - 1`, stacked; ValueError for numbers outside `0 .. len - 1`."""
        return self._at(self._span(start, count))

    def at(self, numbers: Any) -> EpisodeBatch:
        """Episodes of any numbers in any order, stacked.

        Args:
            numbers: `(T,)` whole numbers in `0 .. len - 1`: an array, a tensor or a list.

        Raises:
            ValueError: for anything else.
        """
        return self._at(self._checked(numbers))

    def kind_of(self, numbers: Any) -> counter.Integers:
        """The kinds of episodes, `(T,)` places in `kinds`, without drawing their images.

        Args:
            numbers: as for `at`.

        Raises:
            ValueError: for other numbers; where no kinds are known.
        """
        self._need_kinds()
        return self._kinds_at(self._checked(numbers))

    def partners(self, numbers: Any, same_kind: bool) -> counter.Integers:
        """For each episode the number of another one, of the same kind or of another.

        A pure function of the sampler's arguments and each number alone, whatever else is asked for: the first that
        fits in a stream of its own. Where no kinds are known, any other episode is of the same kind.

        Args:
            numbers: `(T,)`, as for `at`.
            same_kind: whether the partner is of the episode's own kind, or of any other.

        Returns:
            `(T,)` int64.

        Raises:
            ValueError: for other numbers; where there is no other episode, no other kind, or none is found.
        """
        numbers = self._checked(numbers)
        flag(same_kind=same_kind)
        if not same_kind:
            self._need_kinds()
            if len(self.kinds) == 1:
                raise ValueError(
                    f"same_kind=False: all episodes are of the one kind {self.kinds[0]!r}, so none is of another"
                )
        if self.episodes == 1:
            raise ValueError("a sampler with episodes=1 has no other episode")
        found = np.full(len(numbers), -1)
        keys, own = self._partner_keys(numbers), self._kinds_at(numbers) if self.kinds else None
        for first in range(0, CANDIDATES, _ROUND):
            left = np.flatnonzero(found < 0)
            if not len(left):
                return found
            positions = np.arange(first, first + _ROUND, dtype=np.uint64)
            words = counter.child(keys[left, None], positions)
            drawn = counter.integers(words, 0, self.episodes - 2)
            drawn += drawn >= numbers[left, None]  # never itself
            fits = np.ones(drawn.shape, dtype=bool)
            if own is not None:
                kinds = self._kinds_at(drawn.ravel()).reshape(drawn.shape)
                fits = (kinds == own[left, None]) == same_kind
            found[left] = np.where(fits.any(1), drawn[np.arange(len(left)), fits.argmax(1)], -1)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            raise ValueError(
                f"episode {numbers[missing[0]]} has no partner of {'its' if same_kind else 'another'} kind among "
                f"{CANDIDATES} that were drawn from {self.episodes}: are there too few of that kind?"
            )
        return found

    def _need_kinds(self) -> None:
        if not self.kinds:
            raise ValueError(
                "this sampler knows no kinds of tasks: mp.Shift([...]) of several kinds, mp.MixedSampler and a family "
                "of functions do"
            )

    def _span(self, start: int, count: int) -> counter.Integers:
        """The checked numbers `start .. start + count - 1`."""
        for name, value in (("start", start), ("count", count)):
            if not hasattr(value, "__index__"):
                raise ValueError(f"{name}={value!r}: allowed is a whole number")
        start, count = operator.index(start), operator.index(count)
        if count < 1 or start < 0 or start + count > self.episodes:
            raise ValueError(
                f"start={start}, count={count}: a batch has at least one episode, all of them from 0 to "
                f"{self.episodes - 1}"
            )
        return start + np.arange(count, dtype=np.int64)

    def _checked(self, numbers: Any) -> counter.Integers:
        given = np.asarray(numbers.detach().cpu() if isinstance(numbers, Tensor) else numbers)
        if given.ndim != 1 or not len(given) or given.dtype.kind not in "iu":
            raise ValueError(
                f"numbers: an array (T,) of whole numbers is needed, at least one, not {given.dtype} {given.shape}"
            )
        for worst in (given.min(), given.max()):
            if not 0 <= int(worst) < self.episodes:
                raise ValueError(
                    f"numbers holds {worst}: allowed are whole numbers from 0 to {self.episodes - 1}"
                )
        return given.astype(np.int64)
