"""Two drawings of Omniglot side by side, of which an episode decides the one that carries the label."""

from __future__ import annotations

import os

from metapeft.base.arguments import plain, seed_number
from metapeft.datasets.images import ImageData
from metapeft.datasets.omniglot import read_omniglot
from metapeft.datasets.side_by_side import check_even, side_by_side


def read_omniglot_pairs(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    split_by: str = "vinyals",
    size: int = 28,
    rotations: bool = True,
    validation: int = 0,
    download: bool = False,
    seed: int = 0,
) -> ImageData:
    """Images `(1, size, size)` whose left half is a drawing of the class, the right half one of another class.

    As `"glyph-pairs"`, from the drawings, classes and splits of `read_omniglot`; each drawing is squeezed to half its
    width. With `shift=Shift(["plain", "swap"])` an `EpisodeSampler` swaps the halves of every image in half of its
    episodes. At one shot no support set can say which half counts; at two it can.

    Args:
        root, split, split_by, size, rotations, validation, download: as for Omniglot, with an even size.
        seed: of the companions, which are drawn once, from all drawings of other classes of the split.

    Raises:
        DataError, ValueError: as `read_omniglot`; ValueError for an odd size.

    Example:
        >>> read_omniglot_pairs("data/omniglot-py", "test")  # doctest: +SKIP
        ImageData(omniglot-pairs, test: 33840 images 1x28x28, 1692 classes)
    """
    seed_number(plain(seed))
    data = read_omniglot(
        root,
        split,
        split_by=split_by,
        size=size,
        rotations=rotations,
        validation=validation,
        download=download,
    )
    check_even(size)
    return side_by_side(data, "omniglot-pairs", seed)
