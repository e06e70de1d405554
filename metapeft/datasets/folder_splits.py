"""Which classes of a folder go into which split: as the folder says, as the user says, or drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from metapeft.base import counter
from metapeft.base.errors import DataError
from metapeft.datasets.images import SPLITS

FRACTIONS = (0.64, 0.16, 0.2)


def drawn_split(
    names: Sequence[str], fractions: Sequence[float] | None, seed: int, ways: int
) -> dict[str, list[str]]:
    """Classes in random order, cut by their shares; by default no split below `ways` where there are enough.

    Example:
        >>> {split: len(part) for split, part in drawn_split([f"c{i}" for i in range(16)], None, 0, 5).items()}
        {'train': 6, 'val': 5, 'test': 5}
    """
    shares = FRACTIONS if fractions is None else fractions
    if len(shares) != 3 or not all(share >= 0 for share in shares) or not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(f"fractions must be three numbers of at least 0 with sum 1, not {fractions!r}")
    order = counter.draw(counter.root(seed), np.array([len(names)]), len(names))[0]
    first, second = (round(len(names) * share) for share in np.cumsum(shares)[:2])
    if fractions is None and len(names) >= 3 * ways:
        second = min(second, len(names) - ways)
        first = min(first, second - ways)
    pieces = np.split(order, [first, second])
    return {split: sorted(names[place] for place in piece) for split, piece in zip(SPLITS, pieces)}


def given_split(
    found: Mapping[str, object], classes: Mapping[str, Sequence[str]], root: object
) -> dict[str, list[str]]:
    """The user's own lists; DataError for a class without a folder, ValueError for one that stands twice."""
    unknown = set(classes) - set(SPLITS)
    if unknown:
        raise ValueError(f"classes has the split {sorted(unknown)[0]!r}: splits are {', '.join(SPLITS)}")
    taken: dict[str, str] = {}
    for split, names in classes.items():
        for name in names:
            if name not in found:
                raise DataError(f"class {name!r} of the {split} split has no folder in {root}")
            if name in taken:
                raise ValueError(
                    f"class {name!r} stands twice in classes ({taken[name]} and {split}): splits share none"
                )
            taken[name] = split
    return {split: sorted(classes.get(split, ())) for split in SPLITS}


def described(parts: Mapping[str, Sequence[str]]) -> str:
    """How many classes each split has, in words.

    Example:
        >>> described({"train": ["a", "b"], "val": []})
        '2 in train, 0 in val'
    """
    return ", ".join(f"{len(names)} in {split}" for split, names in parts.items())


def more_classes(classes: int) -> str:
    """What to type where a split has fewer classes than an episode needs."""
    most = classes // 3
    if most < 2:
        return f"; its {classes} classes are too few for three splits of two: more classes are needed"
    return (
        f"; its {classes} classes give three splits of at most {most} each: take ways={most} or fewer, for the "
        "episodes and for the data set (its option ways, --data-options ways=N in the shell)"
    )
