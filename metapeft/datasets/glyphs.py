"""Glyphs: characters of many scripts, drawn in several faces and deformed. Embedded, nothing to download."""

from __future__ import annotations

import functools
import json
import math
import os
import unicodedata
from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base import counter
from metapeft.base.arguments import whole
from metapeft.datasets.glyph_shapes import CANVAS, all_faces
from metapeft.datasets.images import ImageData, check_split
from metapeft.datasets.rootless import refuse_root

# Of the training split with the default options, measured on all of its pixels.
MEAN, DEVIATION = (0.15250,), (0.31614,)
# Largest deformations, uniform on both sides: degrees, shear, log of the scale of each axis, shift and
# elastic displacement as shares of half the picture.
ROTATION, SHEAR, SCALE, SHIFT, ELASTIC = 15.0, 0.25, 0.18, 0.12, 0.14
_KNOTS = 4
_CHUNK = 2048


def read_glyphs(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    *,
    size: int = 28,
    per_class: int = 20,
    seed: int = 0,
) -> ImageData:
    """Glyphs as uint8 `(images, 1, size, size)`, ink 255 on 0; one class a shape, named as Unicode does.

    Each image is a character in one of its 2 to 16 faces (DejaVu Sans, Serif, Mono and STIX, upright and
    slanted, regular and bold), under an affine and an elastic deformation of its own. Of look-alikes, such as
    A and Alpha, o and O, or a letter with and without a dot, one is a class, the rest are left out
    (`glyph_shapes.distinct`).

    Args:
        root: must be None: nothing is read.
        split: `"train"`, `"val"` or `"test"`: different characters.
        size: height and width in pixels, 8 to 56.
        per_class: images a class.
        seed: of the deformations; the classes do not depend on it.

    Raises:
        DataError: where matplotlib's fonts are missing.
        ValueError: for options that do not fit.

    Example:
        >>> read_glyphs(split="val", per_class=2)
        ImageData(glyphs, val: 200 images 1x28x28, 100 classes)
    """
    refuse_root("glyphs", root)
    check_split(split)
    whole(8, CANVAS, size=size)
    whole(per_class=per_class)
    chars = characters()[split]
    stacks = [all_faces(char) for char in chars]
    key = counter.child(counter.root(seed), np.array([ord(char) for char in chars], dtype=np.uint64))
    images = _draw(stacks, counter.words(key, per_class), size)
    labels = torch.arange(len(chars)).repeat_interleave(per_class)
    names = [unicodedata.name(char) for char in chars]
    return ImageData(images, labels, names, split, name="glyphs", mean=MEAN, deviation=DEVIATION)


@functools.cache
def characters() -> dict[str, tuple[str, ...]]:
    """Split -> its characters, by code point."""
    table = json.loads(resources.files("metapeft.datasets").joinpath("splits/glyphs.json").read_text("utf-8"))
    return {
        split: tuple(chr(int(code, 16)) for code in table[split].split())
        for split in ("train", "val", "test")
    }


def _draw(stacks: list[Tensor], keys: counter.Words, size: int) -> Tensor:
    """One image a key `(classes, images)`: a class goes through its faces in turn, from a random one on."""
    faces = np.array([len(stack) for stack in stacks])
    first = keys[:, 0] % faces.astype(np.uint64)
    face = (first.astype(np.int64)[:, None] + np.arange(keys.shape[1])) % faces[:, None]
    picture = torch.from_numpy(((faces.cumsum() - faces)[:, None] + face).ravel())
    uniform = torch.from_numpy(counter.uniforms(keys.ravel(), 6 + 2 * _KNOTS**2)).float() * 2 - 1
    pictures = torch.cat(stacks)[:, None].float()
    pictures = (
        pictures[..., 1:, :] + pictures[..., :-1, :]
    ) / 2  # softened, so that nothing is lost when halved
    pictures = (pictures[..., 1:] + pictures[..., :-1]) / 2
    pieces = [slice(start, start + _CHUNK) for start in range(0, len(picture), _CHUNK)]
    return torch.cat([deform(pictures[picture[piece]], uniform[piece], size) for piece in pieces])


def deform(pictures: Tensor, uniform: Tensor, size: int) -> Tensor:
    """Affine and elastic deformation of all pictures at once.

    Args:
        pictures: `(n, 1, H, W)` float, 0 to 255.
        uniform: `(n, 38)` in -1 .. 1: angle, shear, two scales, two shifts, and 2 x 16 displacements of a 4x4
            grid of knots, between which a bicubic surface runs.
        size: height and width of the result.

    Returns:
        `(n, 1, size, size)` uint8.
    """
    angle, shear, wide, high, right, down = uniform[:, :6].unbind(1)
    cos, sin = (angle * math.radians(ROTATION)).cos(), (angle * math.radians(ROTATION)).sin()
    shear, wide, high = shear * SHEAR, (wide * SCALE).exp(), (high * SCALE).exp()
    across = torch.stack([wide * cos, wide * (shear * cos - sin), right * SHIFT], dim=1)
    down = torch.stack([high * sin, high * (shear * sin + cos), down * SHIFT], dim=1)
    theta = torch.stack([across, down], dim=1)
    grid = F.affine_grid(theta, [len(pictures), 1, size, size], align_corners=False)
    knots = uniform[:, 6:].reshape(-1, 2, _KNOTS, _KNOTS) * ELASTIC
    units = torch.eye(_KNOTS).to(uniform)[:, None, :, None]
    spread = F.interpolate(units, (size, 1), mode="bicubic", align_corners=False)[
        :, 0, :, 0
    ].T  # (size, knots)
    bend = spread @ knots @ spread.T  # a bicubic surface is separable
    found = F.grid_sample(pictures, grid + bend.permute(0, 2, 3, 1), mode="bilinear", align_corners=False)
    return found.round().clamp(0, 255).to(torch.uint8)
