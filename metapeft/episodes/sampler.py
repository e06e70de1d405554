"""Episodes as a pure function of a data set, a few numbers and the episode's own number."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metapeft.base import counter
from metapeft.base.arguments import flag, whole
from metapeft.base.trees import mapped
from metapeft.datasets.rotated import Rotated
from metapeft.episodes.class_images import ClassImages
from metapeft.episodes.episode import EpisodeBatch
from metapeft.episodes.numbered import Numbered
from metapeft.episodes.protocol import named
from metapeft.episodes.shift import checked_change, resolved_shift
from metapeft.episodes.sizes import Sizes

# Keys below an episode's key. Changing one changes every published index list.
_PURPOSES = 7
_SIZES, _CLASSES, _IMAGES, _SHIFT, _AUGMENT, _TASK, _PARTNER = range(_PURPOSES)

Range = int | tuple[int, int]


class EpisodeSampler(Numbered):
    """`sampler[i]` is episode `i`, `sampler.batch(start, count)` episodes `start .. start + count - 1`.

    A pure function of its arguments and `i`: classes, and images within a class, are drawn uniformly without
    replacement and in random order by a counter-based hash (`metapeft.base.counter`); no image occurs
    twice in an episode. A map-style data set for torch's `DataLoader`: with `batch_size=None`, or with
    `collate_fn=EpisodeBatch.stack`.

    Args:
        dataset: an `ImageData`, or anything with its `.labels .classes .gather(index)`; or a family of
            regression tasks with `.draw(keys, count)`, such as the data set `"sinusoid"` (then `ways=1`).
        ways: N, classes an episode; `(low, high)` draws it, uniformly, for each episode.
        shots: K, support images a class; `(low, high)` draws it for each episode.
        queries: Q, query images a class; `"rest"`: all of its images that are not in the support set.
        seed: 0 to 2^63 - 1.
        shift: True draws one transformation an episode, shared by support and query, from the kinds that
            belong to the data's split (`metapeft.episodes.Shift`); or a callable `(images (T, n, C, H, W)
            uint8, seeds (T,) int64) -> images` of your own.
        augment: a callable `(images (T, n, C, H, W) uint8, seeds (T, n) int64) -> images`, applied before the
            shift to each image on its own, such as `metapeft.episodes.Augment()`.
        rotations: each class turned by 0, 90, 180 and 270 degrees is a class of its own; `sampler.dataset` is
            then the four times larger data set (`metapeft.datasets.Rotated`) that indices point into.
        imbalanced: with a range of shots: draw the shots for each class on its own.
        small: what becomes of classes with fewer than `K + Q` images: `"refuse"`; `"skip"` leaves them out; `"cap"`
            takes as many queries as there are, and leaves out classes without a single one.
        episodes: how many there are, `len(sampler)`; default 2^63 - 1.

    Attributes:
        left_out: names of the classes that no episode has, for they are too small.

    Raises:
        ValueError: for sizes that the data set cannot serve, and for options that would have no effect.

    Example:
        >>> from metapeft.datasets.images import ImageData
        >>> data = ImageData(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), torch.arange(40) % 4, list("abcd"))
        >>> sampler = EpisodeSampler(data, ways=3, shots=1, queries=2, seed=0)
        >>> sampler[7].support_index.tolist() == sampler.batch(5, 4).support_index[2].tolist()
        True
        >>> sampler.batch(0, 8).query_x.shape
        torch.Size([8, 6, 1, 4, 4])
    """

    def __init__(
        self,
        dataset: Any,
        ways: Range = 5,
        shots: Range = 1,
        queries: int | str = 15,
        seed: int = 0,
        shift: Any = False,
        *,
        augment: Any = None,
        rotations: bool = False,
        imbalanced: bool = False,
        episodes: int | None = None,
        small: str = "refuse",
    ) -> None:
        self._root = counter.root(seed)
        flag(rotations=rotations, imbalanced=imbalanced)
        self.generative = callable(getattr(dataset, "draw", None))
        self.sizes = Sizes.checked(ways, shots, queries, imbalanced, small)
        if not self.generative:
            _check_images(dataset)
        self.dataset = Rotated(dataset) if rotations and not self.generative else dataset
        self.ways, self.shots, self.queries = self.sizes.as_given()
        self.seed, self.rotations, self.imbalanced = int(seed), bool(rotations), bool(imbalanced)
        self.small = small
        self.shift = resolved_shift(shift, getattr(dataset, "split", "train"))
        self.augment = checked_change("augment", augment)
        self.episodes = sys.maxsize if episodes is None else episodes
        whole(1, sys.maxsize, episodes=self.episodes)
        if self.generative:
            self._check_generative(ways, shots, queries, shift, augment, rotations, small)
        else:
            self._pool = ClassImages(self.dataset, self.sizes)
        self.left_out = () if self.generative else self._pool.left_out
        self._name_kinds()

    def _at(self, numbers: counter.Integers) -> EpisodeBatch:
        key = self._keys(numbers)
        kind = {"kind": torch.from_numpy(self._kinds_of(key))} if self.kinds else {}
        if self.generative:
            shots = self.sizes.shots[1]
            x, y = self.dataset.draw(key[:, _TASK], self.sizes.needed)
            return EpisodeBatch(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:], **kind)
        fields = self._lists(key)
        return EpisodeBatch(**self._images(key, fields), **fields, **kind)

    def _kinds_at(self, numbers: counter.Integers) -> counter.Integers:
        return self._kinds_of(self._keys(numbers))

    def _partner_keys(self, numbers: counter.Integers) -> counter.Words:
        return self._keys(numbers)[:, _PARTNER]

    def lists(self, start: int, count: int) -> dict[str, Tensor]:
        """The fields of `batch(start, count)` without the images: classes, labels, places, masks."""
        if self.generative:
            raise ValueError(f"{self.dataset.name} makes its tasks up: it has no images to list")
        return self._lists(self._keys(self._span(start, count)))

    def _keys(self, numbers: counter.Integers) -> counter.Words:
        """`(T, 7)`: for each episode a key for each purpose."""
        return counter.words(counter.child(self._root, numbers.astype(np.uint64)), _PURPOSES)

    def _kinds_of(self, key: counter.Words) -> counter.Integers:
        """`(T,)`: the kind that the family of tasks or the shift draws, of equal names the first."""
        knows, drawn_by = (
            (self.dataset, key[:, _TASK]) if self.generative else (self.shift, _seeds(key[:, _SHIFT]))
        )
        kinds: counter.Integers = self._distinct[knows.kinds_of(drawn_by)]
        return kinds

    def _name_kinds(self) -> None:
        knows = self.dataset if self.generative else self.shift
        names = tuple(knows.kinds) if callable(getattr(knows, "kinds_of", None)) else ()
        self.kinds = tuple(dict.fromkeys(names))
        self._distinct = np.array([self.kinds.index(name) for name in names], dtype=np.int64)

    def _lists(self, key: counter.Words) -> dict[str, Tensor]:
        drawn, shots = self.sizes.drawn(key[:, _SIZES])
        tasks, ways = drawn.shape
        classes, support, query, there = self._pool.draw(key[:, _CLASSES], key[:, _IMAGES], shots)
        fields: dict[str, NDArray[Any]] = {"classes": classes}
        for part, piece in (("support", support), ("query", query)):
            fields[f"{part}_index"] = piece.reshape(tasks, -1)
            fields[f"{part}_y"] = np.arange(ways).repeat(piece.shape[2])[None].repeat(tasks, axis=0)
        masks = {}
        if not self.sizes.fixed:
            masks["classes"] = drawn
            masks["support"] = drawn[..., None] & (np.arange(support.shape[2]) < shots[..., None])
        if not self.sizes.fixed or there is not None:
            every = np.ones(query.shape, dtype=bool) if there is None else there
            masks["query"] = drawn[..., None] & every
        masks = {name: mask.reshape(tasks, -1) for name, mask in masks.items()}
        for part, mask in masks.items():
            for name, padding in ((part, -1), (f"{part}_index", -1), (f"{part}_y", 0)):
                if name in fields:
                    fields[name] = np.where(mask, fields[name], padding)
        present = {f"{part}_mask": mask for part, mask in masks.items() if part != "classes"}
        return {name: torch.from_numpy(value) for name, value in (fields | present).items()}

    def _images(self, key: counter.Words, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # what is padded is made of the data set's first item
        parts = {part: fields[f"{part}_index"].clamp(min=0) for part in ("support", "query")}
        changed = self.shift is not None or self.augment is not None
        if changed or hasattr(self.dataset, "pad_id"):  # texts of both parts are padded to one length
            items = self.dataset.gather(torch.cat(list(parts.values()), dim=1))
            items = self._changed(key, items) if changed else items
            shots = parts["support"].shape[1]
            found = {
                "support_x": mapped(items, lambda leaf: leaf[:, :shots].contiguous()),
                "query_x": mapped(items, lambda leaf: leaf[:, shots:].contiguous()),
            }
        else:
            found = {f"{part}_x": self.dataset.gather(index) for part, index in parts.items()}
        for part in parts:
            mask = fields.get(f"{part}_mask")
            images = found[f"{part}_x"]
            if mask is not None and isinstance(images, Tensor):  # of tokens a row of zeros is no text
                images[~mask.to(images.device)] = 0
        return found

    def _changed(self, key: counter.Words, images: Any) -> Any:
        if not isinstance(images, Tensor):
            name = "shift" if self.augment is None else "augment"
            raise ValueError(f"{name} acts on images: it has no effect on {self.dataset.name}; leave it out")
        if self.augment is not None:
            rows = counter.words(key[:, _AUGMENT], images.shape[1])
            images = _checked_images(self.augment(images, _seeds(rows)), images, "augment")
        if self.shift is not None:
            images = _checked_images(self.shift(images, _seeds(key[:, _SHIFT])), images, "shift")
        return images

    def _check_generative(
        self,
        ways: Range,
        shots: Range,
        queries: int | str,
        shift: Any,
        augment: Any,
        rotations: bool,
        small: str,
    ) -> None:
        if ways != 1:
            raise ValueError(f"ways must be 1 for the regression tasks of {self.dataset.name}, not {ways!r}")
        if not isinstance(shots, int):
            raise ValueError(f"shots must be one number for the tasks of {self.dataset.name}, not {shots!r}")
        if isinstance(queries, str) or small != "refuse":
            said = f"queries={queries!r}" if isinstance(queries, str) else f"small={small!r}"
            raise ValueError(
                f"{said}: the tasks of {self.dataset.name} are made up, as many points as are asked for"
            )
        for name, value in (("shift", shift), ("augment", augment), ("rotations", rotations)):
            if value not in (None, False):
                raise ValueError(
                    f"{name} acts on images: it has no effect on {self.dataset.name}; leave it out"
                )

    def __repr__(self) -> str:
        data = self.dataset
        changes = [name for name in ("shift", "augment") if getattr(self, name) is not None]
        more = "".join(f", {name} {named(getattr(self, name))}" for name in changes)
        more += "" if self.small == "refuse" else f", small classes: {self.small}"
        sizes = f"{self.shots} points" if self.generative else f"{self.ways}-way {self.shots}-shot"
        return f"EpisodeSampler({data.name}/{data.split}: {sizes}, {self.queries} queries, seed {self.seed}{more})"


def _check_images(dataset: Any) -> None:
    missing = [
        name
        for name in ("labels", "classes", "gather", "name", "split", "split_hash")
        if not hasattr(dataset, name)
    ]
    if missing:
        raise ValueError(
            f"dataset must be an ImageData, or have what it has; {type(dataset).__name__} has no "
            f"{', '.join(missing)}; ImageData(images, labels, classes) makes one of tensors"
        )


def _seeds(key: counter.Words) -> Tensor:
    return torch.from_numpy((key >> np.uint64(1)).astype(np.int64))


def _checked_images(found: Any, given: Tensor, argument: str) -> Tensor:
    if not isinstance(found, Tensor) or found.dtype != given.dtype or found.shape != given.shape:
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{argument} must return {given.dtype} {tuple(given.shape)}, as it was given, not {what}"
        )
    return found
