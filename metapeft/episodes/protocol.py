"""What a number was measured on: every accuracy that is printed or stored carries a `Protocol`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args, get_type_hints

from metapeft.episodes.numbered import Numbered

Range = int | tuple[int, int]
_LATER = (("shown", None), ("small", "refuse"))


@dataclass(frozen=True)
class Protocol:
    """The settings that two numbers must share to be comparable.

    Args:
        data: name of the data set.
        split: which part of it.
        split_hash: hash of the split's name and class list.
        ways: N, or its range.
        shots: K, or its range.
        queries: Q a class, or `"rest"`.
        episodes: how many.
        seed: the sampler's.
        shift: `"none"`, or the kinds of shift.
        augment: `"none"`, or how images were augmented.
        rotations: quarter turns are classes of their own.
        imbalanced: shots vary between the classes of an episode.
        inner_steps: of the inner solver; None where nothing adapts.
        norm: `"running"`, `"support"` or `"transductive"`; None where it plays no part.
        head: kind of head.
        precision: `"float32"`, `"float64"`, or `"bfloat16 forwards"`.
        interval: what the interval beside the mean is.
        shown: what the generator was shown in place of the task's support set, a control; None for that itself.
        small: what became of classes with too few images.

    Example:
        >>> print(Protocol("omniglot", "test", "0f", 5, 1, 15, 600, seed=1, inner_steps=5, head="zero"))
        omniglot/test@0f 5-way 1-shot 15-query x600, seed 1, shift none, 5 steps, head zero, 95 % t
    """

    data: str
    split: str
    split_hash: str
    ways: Range
    shots: Range
    queries: int | str
    episodes: int
    seed: int
    shift: str = "none"
    augment: str = "none"
    rotations: bool = False
    imbalanced: bool = False
    inner_steps: int | None = None
    norm: str | None = None
    head: str | None = None
    precision: str = "float32"
    interval: str = "95 % t"
    shown: str | None = None
    small: str = "refuse"

    @classmethod
    def of(
        cls,
        sampler: Numbered,
        episodes: int,
        *,
        inner_steps: int | None = None,
        norm: str | None = None,
        head: str | None = None,
        precision: str = "float32",
        interval: str = "95 % t",
        shown: str | None = None,
    ) -> Protocol:
        """The protocol of a sampler's first `episodes` episodes."""
        return cls(
            data=sampler.dataset.name,
            split=sampler.dataset.split,
            split_hash=sampler.dataset.split_hash,
            ways=sampler.ways,
            shots=sampler.shots,
            queries=sampler.queries,
            episodes=episodes,
            seed=sampler.seed,
            shift=named(sampler.shift),
            augment=named(sampler.augment),
            rotations=sampler.rotations,
            imbalanced=sampler.imbalanced,
            inner_steps=inner_steps,
            norm=norm,
            head=head,
            precision=precision,
            interval=interval,
            shown=shown,
            small=getattr(sampler, "small", "refuse"),  # of one of the user's own
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, of types that JSON has (ranges become lists); later ones where they are set."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if (name, value) not in _LATER
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Protocol:
        """The inverse of `as_dict`; raises ValueError for missing or unknown fields, and for values of another type."""
        if not isinstance(fields, Mapping):
            raise ValueError(f"not the fields of a protocol: {fields!r}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        try:
            found = cls(**values)
        except TypeError as error:
            raise ValueError(f"not the fields of a protocol: {error}") from None
        for name, kind in get_type_hints(cls).items():
            if not any(_is_a(getattr(found, name), allowed) for allowed in get_args(kind) or (kind,)):
                raise ValueError(
                    f"not the fields of a protocol: {name}={fields[name]!r} must be {_said(kind)}"
                )
        return found

    def __str__(self) -> str:
        extra = [name for name in ("rotations", "imbalanced") if getattr(self, name)]
        parts = [
            f"{self.data}/{self.split}@{self.split_hash} {_sized(self.ways)}-way {_sized(self.shots)}-shot "
            f"{self.queries}-query x{self.episodes}",
            f"seed {self.seed}",
            *extra,
            *([f"small classes: {self.small}"] if self.small != "refuse" else []),
            f"shift {self.shift}",
            *([f"augment {self.augment}"] if self.augment != "none" else []),
            *([f"{self.inner_steps} steps"] if self.inner_steps is not None else []),
            *([f"norm {self.norm}"] if self.norm is not None else []),
            *([f"head {self.head}"] if self.head is not None else []),
            *([f"generator shown a task of {_article(self.shown)}"] if self.shown is not None else []),
            *([self.precision] if self.precision != "float32" else []),
            self.interval,
        ]
        return ", ".join(parts)


def _article(shown: str) -> str:
    return shown if shown.startswith("another") else f"the {shown}"


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value is of a type, numbers not bent: True is no int, 5.0 neither."""
    if items := get_args(kind):  # tuple[int, int]
        return isinstance(value, tuple) and [type(item) for item in value] == list(items)
    return type(value) is kind


def _said(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _sized(value: Range) -> str:
    return f"{value[0]}..{value[1]}" if isinstance(value, (tuple, list)) else str(value)


def named(change: Any) -> str:
    """What a protocol calls a shift or an augmentation.

    Example:
        >>> named(None), named(abs)
        ('none', 'abs')
    """
    if change is None:
        return "none"
    return str(getattr(change, "name", None) or getattr(change, "__qualname__", repr(change)))
