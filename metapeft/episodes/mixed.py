"""Episodes of several samplers in one stream: families in which tasks differ in kind."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.base.arguments import by_name, number
from metapeft.base.trees import in_order, mapped, tree_leaves
from metapeft.datasets.images import split_hash
from metapeft.episodes.episode import EpisodeBatch
from metapeft.episodes.numbered import Numbered
from metapeft.episodes.padding import widened
from metapeft.episodes.protocol import Protocol, named

# past the numbers of episodes: a sampler with the same seed has keys of its own
_POSITION = np.array([1 << 63], dtype=np.uint64)
_PURPOSES = 2
_KIND, _PARTNER = range(_PURPOSES)


@dataclass(frozen=True)
class Mixture:
    """What a protocol says of the data: `mixed(a, b)`, its split, and a hash of all that the parts are drawn from."""

    name: str
    split: str
    split_hash: str


class MixedSampler(Numbered):
    """Episode `i` is episode `i` of one of several samplers, which a hash of the seed and `i` chooses.

    Which sampler it is, is the episode's kind: `sampler.kinds` are the names, whatever kinds the samplers know
    themselves. Ids of classes and images are those of its own data.

    Args:
        samplers: name -> sampler; all with the same ways, shots, queries, shapes and types. Query sets whose sizes vary
            are padded to the widest.
        weights: how often each comes, name -> number or in order; None for equally often.
        seed: 0 to 2^63 - 1, of the choice alone; each sampler has its own.

    Raises:
        ValueError: for what is no sampler, samplers that do not fit together, and weights that are not positive.

    Source: Vuorio, Sun, Hu, Lim 2019 (arXiv 1910.13616), section 5: several domains in one stream of tasks.

    Example:
        >>> from metapeft.datasets.images import ImageData
        >>> from metapeft.episodes.sampler import EpisodeSampler
        >>> images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
        >>> data = {name: ImageData(images, torch.arange(8) % 2, ["x", "y"], name=name) for name in "ab"}
        >>> sampler = MixedSampler({name: EpisodeSampler(one, 2, 1, 2) for name, one in data.items()})
        >>> sampler.batch(0, 6).kind.tolist(), sampler.dataset.name
        ([1, 0, 1, 1, 0, 0], 'mixed(a, b)')
    """

    def __init__(
        self,
        samplers: Mapping[str, Numbered],
        weights: Mapping[str, float] | Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        self._root = counter.child(counter.root(seed), _POSITION)
        by_name("sampler", samplers=samplers)
        for name, one in samplers.items():
            if not isinstance(one, Numbered):
                raise ValueError(
                    f"samplers[{name!r}] is of type {type(one).__name__}: an mp.EpisodeSampler is needed"
                )
        if not samplers:
            raise ValueError("samplers is empty: at least one is needed, by its name")
        self.samplers = dict(samplers)
        self._queries = _widest([one.batch(0, 1) for one in samplers.values()])
        self._check_that_they_fit()
        self.kinds = tuple(samplers)
        self.weights = _checked_weights(weights, self.kinds)
        self._bounds = np.cumsum(self.weights)
        parts = list(samplers.values())
        first = parts[0]
        self.episodes = min(one.episodes for one in parts)
        self.ways, self.shots, self.queries, self.seed = first.ways, first.shots, first.queries, int(seed)
        self.rotations = any(one.rotations for one in parts)
        self.imbalanced = any(one.imbalanced for one in parts)
        small = {name: one.small for name, one in samplers.items()}
        self.small = (
            first.small if len(set(small.values())) == 1 else ", ".join(map(": ".join, small.items()))
        )
        self.shift = _together({name: one.shift for name, one in samplers.items()})
        self.augment = _together({name: one.augment for name, one in samplers.items()})
        self.dataset = self._mixture()

    def _at(self, numbers: counter.Integers) -> EpisodeBatch:
        kinds = self._kinds_at(numbers)
        groups = [np.flatnonzero(kinds == kind) for kind in range(len(self.kinds))]
        chosen = [(one, numbers[mine]) for one, mine in zip(self.samplers.values(), groups) if len(mine)]
        parts = [self._fitted(one.at(own)) for one, own in chosen]
        order = torch.from_numpy(np.concatenate(groups).argsort())
        together = parts[0] if len(parts) == 1 else _joined(parts, order)
        return dataclasses.replace(together, kind=torch.from_numpy(kinds))

    def _fitted(self, batch: EpisodeBatch) -> EpisodeBatch:
        return batch if self._queries is None else widened(batch, self._queries, masked=True)

    def _kinds_at(self, numbers: counter.Integers) -> counter.Integers:
        drawn = counter.uniforms(self._keys(numbers)[:, _KIND], 1)[:, 0] * self._bounds[-1]
        kinds: counter.Integers = np.searchsorted(self._bounds[:-1], drawn, side="right").astype(np.int64)
        return kinds

    def _partner_keys(self, numbers: counter.Integers) -> counter.Words:
        return self._keys(numbers)[:, _PARTNER]

    def _keys(self, numbers: counter.Integers) -> counter.Words:
        return counter.words(counter.child(self._root, numbers.astype(np.uint64)), _PURPOSES)

    def _mixture(self) -> Mixture:
        """The hash is of the parts' protocols and weights; a seed that is the mixture's own counts as that."""
        split = "+".join(dict.fromkeys(one.dataset.split for one in self.samplers.values()))
        parts = []
        for weight, (name, one) in zip(self.weights, self.samplers.items()):
            protocol = Protocol.of(one, 1).as_dict()
            own = {"seed": None} if one.seed == self.seed else {}
            parts.append(f"{weight / self._bounds[-1]:.6g} {name}: {protocol | own}")
        return Mixture(f"mixed({', '.join(self.samplers)})", split, split_hash(split, parts))

    def _check_that_they_fit(self) -> None:
        """Raise ValueError for the first two samplers whose episodes cannot stand in one batch."""
        (first, one), *others = ((name, self._described(sampler)) for name, sampler in self.samplers.items())
        for name, other in others:
            for what, mine in one.items():
                if mine != other[what]:
                    raise ValueError(
                        f"samplers {first!r} and {name!r} do not fit together: {what} is {mine} in {first!r} and "
                        f"{other[what]} in {name!r}; episodes of one batch have the same sizes and types"
                    )

    def _described(self, sampler: Numbered) -> dict[str, str]:
        """Sizes, and of each field of an episode what its tensors are."""
        found = {name: str(getattr(sampler, name)) for name in ("ways", "shots", "queries")}
        for name, value in self._fitted(sampler.batch(0, 1)).fields().items():
            leaves = () if value is None else tree_leaves(value)
            said = [f"{str(x.dtype)[6:]} {tuple(x.shape[1:])} on {x.device.type}" for x in leaves]
            if name != "kind":
                found[name] = ", ".join(said) or "None"
        return found

    def __repr__(self) -> str:
        return f"MixedSampler({', '.join(self.samplers)})"


def _joined(parts: Sequence[EpisodeBatch], order: Tensor) -> EpisodeBatch:
    """Batches as one: task `i` is number `order[i]` of them all."""
    fields: dict[str, Any] = {}
    for field, value in parts[0].fields().items():
        if value is not None and field != "kind":
            columns = zip(*(tree_leaves(getattr(batch, field)) for batch in parts))
            leaves = (in_order(column, order) for column in columns)
            fields[field] = mapped(value, functools.partial(_next, leaves))
    return EpisodeBatch(**fields)


def _next(leaves: Iterator[Tensor], _: Tensor) -> Tensor:
    return next(leaves)


def _checked_weights(weights: Any, names: Sequence[str]) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * len(names)
    given = weights
    if isinstance(weights, Mapping):
        given = [weights[name] for name in names] if set(weights) == set(names) else ()
    if not isinstance(given, list | tuple) or len(given) != len(names):
        raise ValueError(f"weights={weights!r}: allowed is a number for each of {', '.join(names)}")
    for name, weight in zip(names, given):
        number(0, above=True, **{f"weights[{name!r}]": weight})
    return tuple(float(weight) for weight in given)


def _widest(batches: Sequence[EpisodeBatch]) -> int | None:
    """The most queries a class, where samplers differ in them or only some have masks; None where nothing is padded."""
    counts = {(batch.query_y.shape[1] // batch.ways, batch.query_mask is None) for batch in batches}
    return max(count for count, _ in counts) if len(counts) > 1 else None


def _together(changes: Mapping[str, Any]) -> Any:
    """The change of images that all have; else what a protocol calls them."""
    first, *others = names = [named(change) for change in changes.values()]
    if all(other == first for other in others):
        return next(iter(changes.values()))
    return SimpleNamespace(name=", ".join(f"{part}: {name}" for part, name in zip(changes, names)))
