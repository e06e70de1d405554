"""One image file as an array."""

from __future__ import annotations

import functools
import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from metapeft.base.errors import DataError
from metapeft.datasets.store import Images

_log = logging.getLogger("metapeft")
GROUNDS = ("white", "black")  # on which transparent pictures can be put


def decoded(
    file: Path, size: int, channels: int, ground: str = "white", content: bytes | None = None
) -> Images:
    """The pixels of a file as uint8 `(channels, size, size)`, grey or RGB; 16 bits a pixel are scaled to 8.

    It is turned as its EXIF orientation says. What is transparent shows the ground, which the log says once.

    Args:
        file: in any format that Pillow reads. size: pixels, to which others are scaled bilinearly.
        channels: 1 or 3. ground: `"white"` or `"black"`. content: of the file, which is then only named.

    Raises:
        DataError: a file that is no whole image, is too large to be one, or has pixels of other kinds.
    """
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(file if content is None else io.BytesIO(content)) as image:
            image.load()
            kind = image.mode
            # Pillow reads portable grey maps of 16 bits as 32
            wide = kind.startswith("I;16") or (kind == "I" and image.format == "PPM")
            narrow = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)) if wide else image
            picture = _on_ground(ImageOps.exif_transpose(narrow), ground).convert(mode)
    # Pillow's readers raise these too: SyntaxError for a broken chunk, ValueError for a broken header
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file} is no whole image ({error}): copy it again, or remove or replace it"
        ) from None
    if kind in ("I", "F") and not wide:
        raise DataError(f"{file} has pixels of 32 bits, whose range nothing says: save it with 8 or 16 bits")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _on_ground(picture: Image.Image, ground: str) -> Image.Image:
    """A picture without transparency, over the ground."""
    if not picture.has_transparency_data:
        return picture
    _say_once(ground)
    over = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, ground), over)


@functools.cache
def _say_once(ground: str) -> None:
    _log.warning("some images are transparent: they are put on a %s ground; ground= takes another", ground)
