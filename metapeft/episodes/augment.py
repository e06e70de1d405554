"""Random crops, flips and changes of brightness, each image on its own, all images at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metapeft.base import counter
from metapeft.base.arguments import flag, number, whole


class Augment:
    """Augmentation of training images, drawn by the sampler's hash.

    Args:
        crop: pixels of zero padding on each side, out of which a window of the old size is cut.
        flip: mirror left and right, half of the time (not for characters).
        brightness: largest change of the mean, as a share of itself.
        contrast: largest change of the spread around the mean, as a share of itself.

    Raises:
        ValueError: for a negative strength, or if nothing is left to do.

    Example:
        >>> images = torch.arange(64, dtype=torch.uint8).view(1, 1, 1, 8, 8)
        >>> Augment(crop=2)(images, torch.tensor([[3]])).shape
        torch.Size([1, 1, 1, 8, 8])
    """

    def __init__(
        self, crop: int = 0, flip: bool = False, brightness: float = 0.0, contrast: float = 0.0
    ) -> None:
        whole(0, crop=crop)
        number(brightness=brightness, contrast=contrast)
        flag(flip=flip)
        if not (crop or flip or brightness or contrast):
            raise ValueError("Augment() changes nothing: set crop, flip, brightness or contrast")
        self.crop, self.flip, self.brightness, self.contrast = crop, flip, brightness, contrast

    @property
    def name(self) -> str:
        """The strengths that are set, for tables: `"crop 4+flip"`."""
        strengths = {"crop": self.crop, "brightness": self.brightness, "contrast": self.contrast}
        parts = [f"{name} {value}" for name, value in strengths.items() if value]
        return "+".join(parts + ["flip"] * self.flip)

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """`(T, n, C, H, W)` uint8 and a seed an image `(T, n)` int64 -> uint8 of the same shape."""
        uniform = torch.from_numpy(counter.uniforms(seeds.cpu().numpy().astype(np.uint64).ravel(), 5))
        uniform = uniform.to(images.device)
        flat = images.flatten(0, 1)
        if self.crop or self.flip:
            flat = self._placed(flat, uniform)
        if self.brightness or self.contrast:
            flat = self._lit(flat, uniform)
        return flat.view_as(images)

    def _placed(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Crop and flip by indices: no pixel is interpolated."""
        height, width = images.shape[-2:]
        shift = (uniform[:, :2] * (2 * self.crop + 1)).long() - self.crop
        rows = torch.arange(height, device=images.device) + shift[:, :1]
        columns = torch.arange(width, device=images.device) + shift[:, 1:]
        if self.flip:
            columns = torch.where(uniform[:, 2:3] < 0.5, columns, width - 1 - columns)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        which = torch.arange(len(images), device=images.device)[:, None, None]
        found = images.permute(0, 2, 3, 1)[
            which, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
        ]
        return (found * inside[..., None]).permute(0, 3, 1, 2).contiguous()

    def _lit(self, images: Tensor, uniform: Tensor) -> Tensor:
        change = (2 * uniform[:, 3:5, None, None, None] - 1).float()
        values = images.float()
        mean = values.mean(dim=(1, 2, 3), keepdim=True)
        values = mean * (1 + self.brightness * change[:, 0]) + (values - mean) * (
            1 + self.contrast * change[:, 1]
        )
        return values.round().clamp(0, 255).to(torch.uint8)

    def __repr__(self) -> str:
        return f"Augment({self.name})"
