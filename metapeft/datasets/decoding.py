"""One image file as an array."""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from metapeft.base.errors import DataError
from metapeft.base.reading import check_file
from metapeft.datasets.store import Images

_log = logging.getLogger("metapeft")
GROUNDS = ("white", "black")  # on which transparent pictures can be put
MOST_PIXELS = 2**26  # of an image; 8192 x 8192


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
    given = opened(file) if content is None else opened(io.BytesIO(content), str(file))
    with given as image:
        kind = image.mode
        # Pillow reads portable grey maps of 16 bits as 32
        wide = kind.startswith("I;16") or (kind == "I" and image.format == "PPM")
        picture = _on_ground(ImageOps.exif_transpose(_narrow(image) if wide else image), ground).convert(mode)
    if kind in ("I", "F") and not wide:
        raise DataError(f"{file} has pixels of 32 bits, whose range nothing says: save it with 8 or 16 bits")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


@contextmanager
def opened(
    file: Path | str | BinaryIO, name: str = "", again: str = "copy it again, or remove or replace it"
) -> Iterator[Image.Image]:
    """An image file, read whole; what is none, or has more pixels than `MOST_PIXELS`, is a DataError.

    Args:
        file: a path, or what is open. name: of what is open. again: what to do about a damaged one.
    """
    shown = name or file
    try:
        if not name:
            check_file(file)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is a lower one
            with Image.open(file) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise DataError(
                        f"{shown} has {image.width} x {image.height} pixels, more than the {MOST_PIXELS} that are "
                        "read: make it smaller"
                    )
                image.load()
                yield image
    except (DataError, MemoryError):
        raise
    # Pillow's readers raise these and more: SyntaxError for a broken chunk, ValueError for a broken header
    except Exception as error:
        raise DataError(f"{shown} is no whole image ({error}): {again}") from None


def _narrow(image: Image.Image) -> Image.Image:
    """Sixteen bits a pixel as eight, `round(x / 257)`, a few rows at a time."""
    wide = np.asarray(image)
    found = np.empty(wide.shape, np.uint8)
    for start in range(0, len(wide), 256):
        found[start : start + 256] = np.round(wide[start : start + 256] / 257)
    return Image.fromarray(found)


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
