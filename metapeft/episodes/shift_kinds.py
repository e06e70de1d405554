"""What a shift can do to the images of an episode.

Each kind is a function of images `(T, n, C, H, W)`, float 0 to 255, and one key a task `(T,)` that its
strength comes from, to images of the same shape; the caller rounds and clamps. All tasks are changed at
once, and all images of a task in the same way (noise is of the same strength, drawn anew for each image).
What moves in from outside the picture is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base import counter

Kind = Callable[[Tensor, counter.Words], Tensor]


def contrast(images: Tensor, keys: counter.Words) -> Tensor:
    """`low + span x`: the range shrinks to 0.3 to 0.7 of itself and lands anywhere within 0 .. 255."""
    span, place = _between(images, keys, (0.3, 0.7), (0.0, 1.0))
    return images * span + 255 * (1 - span) * place


def noise(images: Tensor, keys: counter.Words) -> Tensor:
    """Normal noise with a standard deviation of 0.1 to 0.3 of the range."""
    (deviation,) = _between(images, keys, (0.1, 0.3))
    return images + 255 * deviation * _drawn(torch.randn, images, keys)


def rotate(images: Tensor, keys: counter.Words) -> Tensor:
    """A turn by 15 to 60 degrees to either side."""
    degrees, side = _between(images, keys, (15.0, 60.0), (-1.0, 1.0))
    angle = degrees.deg2rad() * side.sign()
    return _warped(
        images, lambda x, y: (x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos())
    )


def shear(images: Tensor, keys: counter.Words) -> Tensor:
    """A slant of 0.3 to 0.8 to either side."""
    slope, side = _between(images, keys, (0.3, 0.8), (-1.0, 1.0))
    return _warped(images, lambda x, y: (x + slope * side.sign() * y, y))


def thicken(images: Tensor, keys: counter.Words) -> Tensor:
    """Each pixel becomes the brightest of the 3x3 around it, mixed in by 0.6 to 1."""
    (share,) = _between(images, keys, (0.6, 1.0))
    return images + share * (_brightest(images) - images)


def outline(images: Tensor, keys: counter.Words) -> Tensor:
    """Brightest minus darkest of the 3x3 around each pixel, 1 to 1.5 times as bright: the edges."""
    (gain,) = _between(images, keys, (1.0, 1.5))
    return gain * (_brightest(images) + _brightest(-images))


def salt(images: Tensor, keys: counter.Words) -> Tensor:
    """8 to 20 % of the pixels become black or white."""
    (share,) = _between(images, keys, (0.08, 0.2))
    pixel = _drawn(torch.rand, images, keys)
    return torch.where(pixel < share, 255 * (pixel < share / 2).to(images.dtype), images)


def stretch(images: Tensor, keys: counter.Words) -> Tensor:
    """One axis is squeezed to 0.45 to 0.7 of its length."""
    length, axis = _between(images, keys, (0.45, 0.7), (0.0, 1.0))
    wide, high = torch.where(axis < 0.5, length, 1.0), torch.where(axis < 0.5, 1.0, length)
    return _warped(images, lambda x, y: (x / wide, y / high))


def blur(images: Tensor, keys: counter.Words) -> Tensor:
    """A Gaussian with a standard deviation of 0.03 to 0.06 of the side."""
    (width,) = _between(images, keys, (0.03, 0.06))

    def weights(side: int) -> Tensor:
        place = torch.arange(side, device=images.device)
        return torch.exp(-0.5 * ((place - place[:, None]) / (width * side)) ** 2)

    return _mixed(images, weights)


def invert(images: Tensor, keys: counter.Words) -> Tensor:
    """`255 - x`."""
    return 255 - images


def pixelate(images: Tensor, keys: counter.Words) -> Tensor:
    """10 to 14 squares a side, each of one value."""
    (squares,) = _between(images, keys, (10.0, 15.0))

    def weights(side: int) -> Tensor:
        square = (torch.arange(side, device=images.device) * squares.floor() / side).floor()
        return (square == square.mT).to(images.dtype)

    return _mixed(images, weights)


def stripes(images: Tensor, keys: counter.Words) -> Tensor:
    """A sine of 2 to 5 periods, in any direction, makes 0.3 to 0.6 of the picture."""
    depth, periods, angle, phase = _between(
        images, keys, (0.3, 0.6), (2.0, 5.0), (0.0, math.pi), (0.0, 2 * math.pi)
    )
    x, y = _places(images)
    wave = (math.pi * periods * (x * angle.cos() + y * angle.sin()) + phase).sin()
    return (1 - depth) * images + depth * 255 * (1 + wave) / 2


def wave(images: Tensor, keys: counter.Words) -> Tensor:
    """Rows slide sideways by a sine of 1.5 to 3 periods and 0.12 to 0.25 of half the width."""
    reach, periods, phase = _between(images, keys, (0.12, 0.25), (1.5, 3.0), (0.0, 2 * math.pi))
    return _warped(images, lambda x, y: (x + reach * (math.pi * periods * y + phase).sin(), y))


def swap(images: Tensor, keys: counter.Words) -> Tensor:
    """Left and right half change places."""
    return images.roll(images.shape[-1] // 2, -1)


def plain(images: Tensor, keys: counter.Words) -> Tensor:
    """No change: beside other kinds, it leaves its share of the episodes as they are."""
    return images


KINDS: dict[str, Kind] = {
    kind.__name__: kind
    for kind in (
        plain,
        swap,
        *(contrast, noise, rotate, shear, thicken),
        *(outline, salt, stretch),
        *(blur, invert, pixelate, stripes, wave),
    )
}


def _between(images: Tensor, keys: counter.Words, *bounds: tuple[float, float]) -> list[Tensor]:
    """For each pair of bounds a number a task, uniform between them, `(T, 1, 1, 1, 1)`."""
    uniform = torch.from_numpy(counter.uniforms(keys, len(bounds))).to(images)
    numbers = [low + (high - low) * column for (low, high), column in zip(bounds, uniform.unbind(1))]
    return [number.view(-1, 1, 1, 1, 1) for number in numbers]


def _drawn(function: Callable[..., Tensor], images: Tensor, keys: counter.Words) -> Tensor:
    """A number a pixel, from a generator of its own for each task."""
    generators = [torch.Generator().manual_seed(seed) for seed in (keys >> np.uint64(1)).tolist()]
    return torch.stack(
        [function(images.shape[1:], dtype=torch.float32, generator=each) for each in generators]
    ).to(images)


def _places(images: Tensor) -> tuple[Tensor, Tensor]:
    """x `(W,)` and y `(H, 1)` of the pixels' centres, -1 .. 1 from edge to edge."""
    height, width = images.shape[-2:]
    x = (2 * torch.arange(width, dtype=images.dtype, device=images.device) + 1) / width - 1
    y = (2 * torch.arange(height, dtype=images.dtype, device=images.device) + 1) / height - 1
    return x, y[:, None]


def _warped(images: Tensor, source: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Each pixel is taken from the place `source(x, y)`, in between bilinearly."""
    tasks, _, _, height, width = images.shape
    shape = (tasks, 1, 1, height, width)
    grid = torch.stack([place.expand(shape) for place in source(*_places(images))], dim=-1)
    found = F.grid_sample(images.flatten(1, 2), grid.view(tasks, height, width, 2), align_corners=False)
    return found.view_as(images)


def _brightest(images: Tensor) -> Tensor:
    return F.max_pool2d(images.flatten(0, 2)[:, None], 3, stride=1, padding=1).view_as(images)


def _mixed(images: Tensor, weights: Callable[[int], Tensor]) -> Tensor:
    """Rows and columns become weighted means of their kind: `weights(side)` is `(T, 1, 1, side, side)`."""
    rows, columns = weights(images.shape[-2]), weights(images.shape[-1])
    rows, columns = rows / rows.sum(-1, keepdim=True), columns / columns.sum(-1, keepdim=True)
    return rows @ images @ columns.mT
