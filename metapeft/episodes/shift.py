"""One change of style an episode, shared by its support and query images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.base.trees import in_order
from metapeft.episodes.shift_kinds import EXACT, KINDS

# A kind belongs to one split, so that validation and test episodes have styles that training never showed.
OF_SPLIT = {
    "train": ("contrast", "noise", "rotate", "shear", "thicken"),
    "val": ("outline", "salt", "stretch"),
    "test": ("blur", "invert", "pixelate", "stripes", "wave"),
}


class Shift:
    """Draws one kind and its strength for each episode and applies it to all of the episode's images.

    `OF_SPLIT` says which kinds belong to which split; `metapeft.episodes.shift_kinds` what each does.

    Args:
        kinds: names of the kinds to draw from.

    Raises:
        ValueError: for a kind that does not exist.

    Example:
        >>> images = torch.full((2, 3, 1, 8, 8), 10, dtype=torch.uint8)
        >>> Shift(["invert"])(images, torch.tensor([1, 2])).unique().tolist()
        [245]
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        named = isinstance(kinds, list | tuple) and kinds and all(kind in KINDS for kind in kinds)
        if not named:
            raise ValueError(f"kinds must be a list of names among {', '.join(sorted(KINDS))}, not {kinds!r}")
        self.kinds = tuple(kinds)

    @classmethod
    def of_split(cls, split: str) -> Shift:
        """The kinds that belong to a split; raises ValueError for a split that has none."""
        if split not in OF_SPLIT:
            raise ValueError(
                f"shift=True knows kinds for the splits {', '.join(OF_SPLIT)}, not {split!r}: "
                "give shift=Shift([...])"
            )
        return cls(OF_SPLIT[split])

    @property
    def name(self) -> str:
        """The kinds, for tables: `"blur+invert"`."""
        return "+".join(self.kinds)

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """`(T, n, C, H, W)` uint8 and a seed a task `(T,)` int64 -> uint8 of the same shape."""
        keys, drawn = self._keys(seeds), self.kinds_of(seeds)
        groups = [np.flatnonzero(drawn == place) for place in range(len(self.kinds))]
        changed = [
            self._changed(kind, images, keys, mine) for kind, mine in zip(self.kinds, groups) if len(mine)
        ]
        return in_order(changed, torch.from_numpy(np.concatenate(groups).argsort()))

    @staticmethod
    def _changed(kind: str, images: Tensor, keys: counter.Words, mine: counter.Integers) -> Tensor:
        """Some of the tasks, all by one kind."""
        chosen = images.index_select(0, torch.from_numpy(mine).to(images.device))
        if kind in EXACT:
            return KINDS[kind](chosen, keys[mine, 1])
        return KINDS[kind](chosen.float(), keys[mine, 1]).round().clamp(0, 255).to(torch.uint8)

    def kinds_of(self, seeds: Tensor) -> counter.Integers:
        """The kinds that a call with these seeds draws: `(T,)`, places in `kinds`.

        Example:
            >>> Shift(["plain", "swap"]).kinds_of(torch.arange(6)).tolist()
            [1, 1, 0, 1, 0, 0]
        """
        return counter.integers(self._keys(seeds)[:, 0], 0, len(self.kinds) - 1)

    @staticmethod
    def _keys(seeds: Tensor) -> counter.Words:
        """`(T, 2)`: of the kind and of its strength."""
        return counter.words(seeds.cpu().numpy().astype(np.uint64), 2)

    def __repr__(self) -> str:
        return f"Shift({list(self.kinds)})"


def resolved_shift(shift: Any, split: str) -> Any:
    """What `shift=` means on a split: None for False, the split's kinds for True, else itself.

    Raises:
        ValueError: what cannot be called; True on a split without kinds.

    Example:
        >>> resolved_shift(True, "val")
        Shift(['outline', 'salt', 'stretch'])
    """
    if shift is None or shift is False:
        return None
    return Shift.of_split(split) if shift is True else checked_change("shift", shift)


def checked_change(name: str, change: Any) -> Any:
    """A change of images, or None; ValueError for what cannot be called."""
    if change is not None and not callable(change):
        raise ValueError(f"{name} must be a callable (images, seeds) -> images, not {change!r}")
    return change


def training_styles() -> Shift:
    """Half of the training images or episodes are plain, the others in one of the training split's styles."""
    styles = OF_SPLIT["train"]
    return Shift([*["plain"] * len(styles), *styles])
