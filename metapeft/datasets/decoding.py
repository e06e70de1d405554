"""One image file as an array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from metapeft.base.errors import DataError
from metapeft.datasets.store import Images


def decoded(file: Path, size: int, channels: int) -> Images:
    """The pixels of a file as uint8 `(channels, size, size)`, grey or RGB; 16 bits a pixel are scaled to 8.

    Args:
        file: in any format that Pillow reads. size: pixels, to which others are scaled bilinearly.
        channels: 1 or 3.

    Raises:
        DataError: a file that is no whole image, is too large to be one, or has pixels of other kinds.
    """
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(file) as image:
            image.load()
            kind = image.mode
            wide = kind.startswith("I;16")
            narrow = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)) if wide else image
            picture = narrow.convert(mode)
    # Pillow's readers raise these too: SyntaxError for a broken chunk, ValueError for a broken header
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file} is no whole image ({error}): copy it again, or remove or replace it"
        ) from None
    if kind in ("I", "F"):
        raise DataError(f"{file} has pixels of 32 bits, whose range nothing says: save it with 8 or 16 bits")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]
