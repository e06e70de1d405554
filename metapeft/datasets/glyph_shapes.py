"""Shapes of characters: rendered from the fonts that matplotlib ships, and compared."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from metapeft.base.errors import DataError

# DejaVu 2.37 and STIX 1.1, in every face that matplotlib ships.
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
CANVAS, EXTENT = 56, 40  # pixels: the picture's side, and the longer side of the glyph in its middle
SHIFT = 2  # pixels of it between look-alikes: one in a data set's 28x28
_EM = 64
_KINDS = frozenset({"Lu", "Ll", "Lo", "Nd", "Sm", "So"})  # letters, digits, mathematical and other symbols
# Families whose members differ in the place of a dot, in the number of bars or in what is inside a frame.
_FAMILIES = (
    *("APL ", "BLOCK", "BOX DRAWINGS", "BRAILLE", "CIRCLED", "DIGRAM", "DOMINO TILE", "FACE", "HEXAGRAM"),
    *("PLAYING CARD", "QUADRANT", "TETRAGRAM"),
)


def candidates() -> list[str]:
    """Letters, digits and symbols without a decomposition that at least two faces have, by code point."""
    counts = Counter(code for face in FACES for code in _covered(face))
    return [chr(code) for code, faces in sorted(counts.items()) if faces >= 2 and _is_plain(chr(code))]


def _is_plain(char: str) -> bool:
    if unicodedata.category(char) not in _KINDS or unicodedata.decomposition(char):
        return False
    if any(family in unicodedata.name(char) for family in _FAMILIES):
        return False
    return all(_font(face).getmask(char, mode="L").getbbox() for face in faces_of(char))  # none is blank


def distinct(chars: Sequence[str], threshold: float) -> list[str]:
    """Those that are no look-alike of an earlier one that stays: one character a shape.

    The list in `splits/glyphs.json` is `distinct(candidates(), 0.83)`, dealt out to splits by `counter.draw`;
    it is kept as a file so that classes do not depend on the font engine's version.

    Example:
        >>> distinct("AoxΑO", 0.95)
        ['A', 'o', 'x']
    """
    rivals: dict[str, list[str]] = {}
    for earlier, later in look_alikes(chars, threshold):
        rivals.setdefault(later, []).append(earlier)
    kept: dict[str, None] = {}
    for char in chars:
        if not any(rival in kept for rival in rivals.get(char, ())):
            kept[char] = None
    return list(kept)


def faces_of(char: str) -> list[str]:
    """The faces that have a glyph of their own for a character; the box for missing ones does not count."""
    return [face for face in FACES if ord(char) in _covered(face)]


def render(char: str, face: str) -> NDArray[np.uint8]:
    """A character as `(56, 56)`, ink 255: its bounding box is scaled to 40 pixels and centred.

    Size and place are taken out, so that `o` and `O` are one shape.
    """
    page = Image.new("L", (4 * _EM, 4 * _EM))
    ImageDraw.Draw(page).text((_EM, _EM), char, fill=255, font=_font(face))
    box = page.getbbox()
    if box is None:
        raise ValueError(f"{char!r} has no ink in {face}")
    sides = (box[2] - box[0], box[3] - box[1])
    width, height = (max(1, round(side * EXTENT / max(sides))) for side in sides)
    canvas = np.zeros((CANVAS, CANVAS), dtype=np.uint8)
    top, left = (CANVAS - height) // 2, (CANVAS - width) // 2
    glyph = page.crop(box).resize((width, height), Image.Resampling.BILINEAR)
    canvas[top : top + height, left : left + width] = np.asarray(glyph)
    return canvas


def look_alikes(chars: Sequence[str], threshold: float) -> list[tuple[str, str]]:
    """Pairs whose pictures, in any two faces, correlate at `threshold` or more; each as (earlier, later).

    One of the two may be shifted by `SHIFT` across, down or both: a dot in another place moves the bounding box, and
    with it all the rest.

    Args:
        chars: characters to compare, all with all, in all faces of each, as pictures softened to 14x14.
        threshold: 0 to 1.

    Example:
        >>> look_alikes("AoxΑ", 0.95)
        [('A', 'Α')]
    """
    stacks = [all_faces(char) for char in chars]
    owner = np.repeat(np.arange(len(chars)), [len(stack) for stack in stacks])
    pictures = torch.cat(stacks)
    flat = _standard(pictures)
    pairs: set[tuple[int, int]] = set()
    for steps in itertools.product((-SHIFT, 0, SHIFT), repeat=2):
        shifted = _standard(pictures.roll(steps, (1, 2)))  # the margin is wider than that
        for start in range(0, len(flat), 1024):
            rows, columns = np.nonzero((flat[start : start + 1024] @ shifted.T >= threshold).numpy())
            pairs.update(zip(owner[start + rows].tolist(), owner[columns].tolist()))
    return [(chars[a], chars[b]) for a, b in sorted({(min(pair), max(pair)) for pair in pairs}) if a != b]


def all_faces(char: str) -> Tensor:
    """`(faces, 56, 56)` uint8."""
    return torch.from_numpy(np.stack([render(char, face) for face in faces_of(char)]))


def _standard(pictures: Tensor) -> Tensor:
    soft = F.avg_pool2d(pictures[:, None].float(), CANVAS // 14).flatten(1)
    soft = soft - soft.mean(dim=1, keepdim=True)
    return F.normalize(soft)


@functools.cache
def _folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@functools.cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    file = _folder() / f"{face}.ttf"
    if not file.is_file():
        raise DataError(
            f"there is no font {file}: matplotlib ships it; is a distribution's matplotlib without it in use?"
        )
    return ImageFont.truetype(str(file), _EM, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _covered(face: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    _font(face)  # says so if the file is missing
    glyphs = FT2Font(str(_folder() / f"{face}.ttf")).get_charmap()
    return frozenset(code for code, glyph in glyphs.items() if glyph)  # glyph 0 is the box for missing ones
