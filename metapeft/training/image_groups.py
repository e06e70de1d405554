"""Images in groups: what standard retraining sees instead of episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.base.trees import mapped
from metapeft.episodes.settings import of_change, of_data
from metapeft.episodes.shift import checked_change, resolved_shift


@dataclass(frozen=True)
class ImageGroups:
    """Images or texts in groups: leaves of x `(G, n, ...)`, `y (G, n)` global labels.

    Batch statistics are taken a group at a time.
    """

    x: Any
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def tasks(self, which: slice) -> ImageGroups:
        return ImageGroups(mapped(self.x, lambda leaf: leaf[which]), self.y[which])


class ImageGroupSampler:
    """Group `i` is a pure function of the arguments and `i`: `size` images without replacement, with their labels.

    Args:
        dataset: an image data set. size: images a group. seed: of the draws.
        augment: as `EpisodeSampler` has it. shift: likewise, but drawn for each image on its own.

    Raises:
        ValueError: a group size that the data set cannot serve.
    """

    def __init__(
        self, dataset: Any, size: int, seed: int = 0, augment: Any = None, shift: Any = None
    ) -> None:
        if not hasattr(dataset, "gather"):
            raise ValueError(
                f"data is of type {type(dataset).__name__}: an image data set is needed, as mp.load_dataset reads"
            )
        if not 1 <= size <= len(dataset):
            raise ValueError(f"size={size}: a group has 1 to {len(dataset)} images, all of the data set")
        self.dataset, self.size, self.seed = dataset, size, seed
        self.augment = checked_change("augment", augment)
        self.shift = resolved_shift(shift, getattr(dataset, "split", "train"))
        self._root = counter.root(seed)

    def settings(self) -> dict[str, Any]:
        """What identifies these groups in a run folder."""
        changes = {"shift": of_change(self.shift), "augment": of_change(self.augment)}
        return {"groups": {"data": of_data(self.dataset), "size": self.size, "seed": self.seed, **changes}}

    def batch(self, start: int, count: int) -> ImageGroups:
        """Groups `start .. start + count - 1`."""
        number = np.uint64(start) + np.arange(count, dtype=np.uint64)
        keys = counter.words(counter.child(self._root, number), 3)
        index = torch.from_numpy(counter.draw(keys[:, 0], np.full(count, len(self.dataset)), self.size))
        x = self.dataset.gather(index)
        if self.augment is not None:
            seeds = counter.words(keys[:, 1], self.size).astype(np.int64)
            x = self.augment(x, torch.from_numpy(seeds))
        if self.shift is not None:
            seeds = counter.words(keys[:, 2], self.size).astype(np.int64)
            flat = self.shift(x.flatten(0, 1).unsqueeze(1), torch.from_numpy(seeds).flatten())
            x = flat.squeeze(1).unflatten(0, index.shape)
        return ImageGroups(x, self.dataset.labels[index])
