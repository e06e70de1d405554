"""What is known of a published data set, and the check of what lies on disk against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from metapeft.base.errors import DataError


@dataclass(frozen=True)
class Facts:
    """A published data set.

    Args:
        name: as `load_dataset` has it. title: as people write it.
        counts: split -> number of its classes.
        classes: split -> names of its classes in order; empty where the published list has none.
        per_class: images of each class; None where they differ.
        totals: split -> number of its images, where classes differ and it is known.
        bounds: the least and the most images of a class, where they differ.
        mean, deviation: for `.preprocess`, a number a channel.
        pickles: names of its pickles, `{}` for the split.
        folders: where below a root its class folders, or torchmeta's files, may lie.
        split_of: name of a class -> its split or None, where a rule says it; default: by `classes`.
        places: where its files come from, in words.
    """

    name: str
    title: str
    counts: Mapping[str, int]
    mean: Sequence[float]
    deviation: Sequence[float]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    per_class: int | None = None
    totals: Mapping[str, int] = field(default_factory=dict)
    bounds: tuple[int, float] = (1, float("inf"))
    pickles: Sequence[str] = ()
    folders: Sequence[str] = ()
    split_of: Callable[[str], str | None] | None = None
    places: str = ""

    def owner(self, name: str) -> str | None:
        """The split that a class belongs to; None for one that is not of this data set, or where nothing says."""
        if self.split_of is not None:
            return self.split_of(name)
        return next((split for split, names in self.classes.items() if name in names), None)

    def ordered(self, where: object, split: str, labels: Sequence[str], order: Sequence[str]) -> list[str]:
        """The classes of a split in their order: the published one, else the form's own, else by name.

        Raises:
            DataError: classes that are missing, foreign, or another split's.
        """
        held = dict.fromkeys(labels)
        numbered = all(name.startswith(f"{split}/") for name in held)
        expected = self.classes.get(split, ())
        for name in () if numbered else held:
            owner = self.owner(name)
            if owner not in (None, split):
                raise DataError(
                    f"{where}: class {name} of {self.title} belongs to the {owner} split, but stands in {split}: were "
                    "files exchanged, or is it another split of these classes?"
                )
        if expected and not numbered:
            foreign, missing = sorted(set(held) - set(expected)), [one for one in expected if one not in held]
            if foreign or missing:
                raise DataError(
                    f"{where} is not {self.title}'s {split} split: of {len(expected)} classes {len(missing)} are "
                    f"missing ({', '.join(missing[:3]) or 'none'}), and {len(foreign)} are foreign "
                    f"({', '.join(foreign[:3]) or 'none'}); was a class renamed?"
                )
            return list(expected)
        if len(held) != self.counts[split]:
            raise DataError(
                f"{where} has {len(held)} classes in the {split} split of {self.title} instead of "
                f"{self.counts[split]}: is a file missing, or is it another version?"
            )
        return list(order) if set(order) == set(held) and len(order) == len(held) else sorted(held)

    def check_per_class(self, where: object, counts: Mapping[str, int], per_class: int, remedy: str) -> None:
        """Raises DataError for a class that has too few or too many images; `remedy` is the way round."""
        for name, count in counts.items():
            if count != per_class:
                raise DataError(
                    f"{where} has {count} images of class {name} instead of {per_class}; {remedy}"
                )

    def check_totals(self, where: object, split: str, counts: Mapping[str, int], remedy: str) -> None:
        """Raises DataError for a split whose classes have other numbers of images than were published."""
        least, most = self.bounds
        for name, count in counts.items():
            if not least <= count <= most:
                raise DataError(
                    f"{where} has {count} images of class {name}, where {least} to {most} are; {remedy}"
                )
        images, total = sum(counts.values()), self.totals.get(split)
        if total is not None and images != total:
            raise DataError(
                f"{where} has {images} images in the {split} split of {self.title} instead of {total}; {remedy}"
            )
