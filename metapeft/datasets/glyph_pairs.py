"""Two glyphs side by side, of which an episode decides the one that carries the label: only its support set says so."""

from __future__ import annotations

import os

from metapeft.datasets.glyphs import read_glyphs
from metapeft.datasets.images import ImageData
from metapeft.datasets.rootless import refuse_root
from metapeft.datasets.side_by_side import check_even, side_by_side


def read_glyph_pairs(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    size: int = 28,
    per_class: int = 20,
    seed: int = 0,
) -> ImageData:
    """Images `(1, size, size)` whose left half is a glyph of the class, the right half one of another class.

    Classes, options and errors are those of `read_glyphs`; each glyph is squeezed to half its width. The companion of
    an image is drawn once, from all images of other classes of the split. With `shift=Shift(["plain", "swap"])` an
    `EpisodeSampler` swaps the halves of every image in half of its episodes: only the support set says on which side
    to look.

    Args:
        root: must be None. split, size, per_class, seed: as for glyphs, with an even size.

    Raises:
        ValueError: for options that do not fit.

    Example:
        >>> read_glyph_pairs(split="val", per_class=2)
        ImageData(glyph-pairs, val: 200 images 1x28x28, 100 classes)
    """
    refuse_root("glyph-pairs", root)
    data = read_glyphs(None, split, size=size, per_class=per_class, seed=seed)
    check_even(size)
    return side_by_side(data, "glyph-pairs", seed)
