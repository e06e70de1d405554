"""Index lists of a protocol: the images that its episodes consist of, in a file that others can check."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metapeft.base.errors import DataError
from metapeft.base.files import write_atomically
from metapeft.base.reading import check_file, read_json, reading, sealed, unsealed
from metapeft.episodes.protocol import Protocol
from metapeft.episodes.sampler import EpisodeSampler

FORMAT = "metapeft episodes 1"
_PARTS = ("classes", "support_index", "query_index")
_CHUNK = 256


def dump(sampler: EpisodeSampler, episodes: int, path: str | os.PathLike[str]) -> Protocol:
    """Write the first `episodes` episodes as JSON: the protocol, and the ids of their classes and images.

    Ids are places in the data set, in the order of labels 0 .. N-1, and -1 where sizes vary and nothing is
    there. The file is moved into place when it is whole.

    Returns:
        The protocol that was written.

    Raises:
        ValueError: for tasks that are made up, not stored, and for episodes that the sampler has not.
        RunError: a path that cannot be written.

    Example:
        >>> import torch; from metapeft.datasets.images import ImageData
        >>> data = ImageData(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8) % 2, ["a", "b"])
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = dump(EpisodeSampler(data, 2, 1, 1), 10, f"{folder}/list.json")
        ...     print(verify(f"{folder}/list.json", data).episodes)
        10
    """
    if not isinstance(sampler, EpisodeSampler):
        raise ValueError(
            f"sampler is of type {type(sampler).__name__}: lists are written of an mp.EpisodeSampler"
        )
    protocol = Protocol.of(sampler, episodes)
    lists = dict(zip(_PARTS, zip(*_drawn(sampler, episodes))))
    content = json.dumps(sealed({"format": FORMAT, "protocol": protocol.as_dict(), **lists}))
    write_atomically(path, content.encode())
    return protocol


def verify(path: str | os.PathLike[str], dataset: Any) -> Protocol:
    """Check a file of `dump` against a data set and against the sampler itself.

    Same data, split and class list; every image exists, has the label of its class and occurs once in its
    episode; and the protocol's seed and sizes draw just these lists.

    Returns:
        The protocol of the file.

    Raises:
        DataError: names the first thing that is wrong.

    Example:
        >>> verify("episodes.json", metapeft.load_dataset("glyphs", split="test"))  # doctest: +SKIP
    """
    protocol, lists, content = _read(Path(path))
    try:
        sampler = EpisodeSampler(
            dataset,
            protocol.ways,
            protocol.shots,
            protocol.queries,
            protocol.seed,
            rotations=protocol.rotations,
            imbalanced=protocol.imbalanced,
            episodes=protocol.episodes,
            small=protocol.small,
        )
    except ValueError as error:
        raise DataError(f"{path} says what cannot be drawn from {dataset!r}: {error}") from error
    for field in ("data", "split", "split_hash"):
        mine = getattr(Protocol.of(sampler, protocol.episodes), field)
        if mine != getattr(protocol, field):
            raise DataError(f"{path} was drawn from {field} {getattr(protocol, field)!r}, not {mine!r}")
    labels = sampler.dataset.labels.cpu().numpy()
    for number, drawn in enumerate(_drawn(sampler, protocol.episodes)):
        classes, support, query = (lists[part][number] for part in _PARTS)
        _check_episode(f"{path}: episode {number}", classes, support, query, labels)
        if (classes.tolist(), support.tolist(), query.tolist()) != drawn:
            raise DataError(f"{path}: episode {number} is not what seed {protocol.seed} draws")
    with reading(path, DataError, "write it again with dump"):
        unsealed(content)  # what the lists do not depend on
    return protocol


def _drawn(sampler: EpisodeSampler, episodes: int) -> Iterator[tuple[list[int], ...]]:
    """For each episode the ids of classes, support and query."""
    for start in range(0, episodes, _CHUNK):
        lists = sampler.lists(start, min(_CHUNK, episodes - start))
        yield from zip(*(lists[part].tolist() for part in _PARTS))


def _read(path: Path) -> tuple[Protocol, dict[str, NDArray[np.int64]], dict[str, Any]]:
    try:
        check_file(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"cannot read {path}: {error}") from None
    content = read_json(path, DataError, "the file is not whole JSON: write it again with dump", unseal=False)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is no list of episodes: it must say 'format': {FORMAT!r}")
    try:
        protocol = Protocol.from_dict(content["protocol"])
        lists = {part: np.array(content[part]) for part in _PARTS}
    except KeyError as error:
        raise DataError(f"{path} is damaged: it has no {error}") from None
    except Exception as error:
        raise DataError(f"{path} is damaged: {error}") from None
    for part, rows in lists.items():
        if rows.dtype != np.int64:
            raise DataError(
                f"{path} is damaged: {part} must hold rows of whole numbers below 2^63, each as long"
            )
        if rows.ndim != 2 or len(rows) != protocol.episodes or not rows.shape[1]:
            raise DataError(f"{path} is damaged: {part} must have {protocol.episodes} rows, not {rows.shape}")
    return protocol, lists, content


def _check_episode(
    where: str,
    classes: NDArray[np.int64],
    support: NDArray[np.int64],
    query: NDArray[np.int64],
    labels: NDArray[np.int64],
) -> None:
    images = np.concatenate([support, query])
    images = images[images >= 0]
    if images.max(initial=-1) >= len(labels):
        raise DataError(f"{where} lists image {images.max()}, but the data set has {len(labels)}")
    if len(np.unique(images)) != len(images):
        raise DataError(f"{where} lists an image twice")
    for part in (support, query):
        if len(part) % len(classes):
            raise DataError(f"{where} has {len(part)} images for {len(classes)} classes")
        owner = np.repeat(classes, len(part) // len(classes))
        if (labels[part[part >= 0]] != owner[part >= 0]).any():
            raise DataError(f"{where} lists an image under a class that it does not belong to")
