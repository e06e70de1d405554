"""Random crops, flips and changes of colour, each image on its own, all images at once."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metapeft.base import counter
from metapeft.base.arguments import flag, number, whole

# of red, green and blue in how bright a pixel is: ITU-R BT.601
LUMA = (0.299, 0.587, 0.114)
RATIO = (3.0 / 4.0, 4.0 / 3.0)  # width to height of a resized window, as in Szegedy et al. 2015


class Augment:
    """Augmentation of training images, drawn by the sampler's hash.

    Args:
        crop: pixels of zero padding on each side, out of which a window of the old size is cut.
        flip: mirror left and right, half of the time (not for characters).
        brightness: largest change of the mean, as a share of itself.
        contrast: largest change of the spread around the mean, as a share of itself.
        saturation: largest change of the distance from grey, as a share of itself; of images with three channels.
        window: smallest and largest share of the image's area of a window that is resized to the whole (bilinear, with
            antialiasing), of a ratio of 3/4 to 4/3; None for no resizing. Not together with `crop`.

    Raises:
        ValueError: for a negative strength, or if nothing is left to do; when called, saturation of grey images.

    Source: Szegedy et al. 2015 (arXiv 1409.4842), section 6: windows of random size and ratio.

    Example:
        >>> images = torch.arange(64, dtype=torch.uint8).view(1, 1, 1, 8, 8)
        >>> Augment(crop=2)(images, torch.tensor([[3]])).shape
        torch.Size([1, 1, 1, 8, 8])
    """

    def __init__(
        self,
        crop: int = 0,
        flip: bool = False,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        window: tuple[float, float] | None = None,
    ) -> None:
        whole(0, crop=crop)
        number(brightness=brightness, contrast=contrast, saturation=saturation)
        flag(flip=flip)
        if window is not None:
            self._check_window(window, crop)
        if not (crop or flip or brightness or contrast or saturation or window):
            raise ValueError(
                "Augment() changes nothing: set crop, window, flip, brightness, contrast or saturation"
            )
        self.crop, self.flip, self.brightness, self.contrast = crop, flip, brightness, contrast
        self.saturation, self.window = saturation, window

    @staticmethod
    def _check_window(window: object, crop: int) -> None:
        pair = window if isinstance(window, tuple | list) and len(window) == 2 else (None, None)
        numbers = [
            share
            for share in pair
            if not isinstance(share, bool) and isinstance(share, int | float) and 0 < share <= 1
        ]
        if len(numbers) != 2 or numbers[0] > numbers[1]:
            raise ValueError(
                f"window={window!r}: allowed are two shares of the area above 0 and at most 1, the smaller first"
            )
        if crop:
            raise ValueError(f"crop={crop} and window={window!r} both cut a window: give one of them")

    @property
    def name(self) -> str:
        """The strengths that are set, for tables: `"crop 4+flip"`."""
        strengths = {
            "crop": self.crop, "window": self.window and "-".join(map(str, self.window)),
            "brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation,
        }  # fmt: skip
        parts = [f"{name} {value}" for name, value in strengths.items() if value]
        return "+".join(parts + ["flip"] * self.flip)

    def settings(self) -> dict[str, object]:
        """The arguments that build it again; those that came later stand there where they are set."""
        found: dict[str, object] = {
            "crop": self.crop, "flip": self.flip, "brightness": self.brightness, "contrast": self.contrast,
        }  # fmt: skip
        if self.saturation:
            found["saturation"] = self.saturation
        if self.window is not None:
            found["window"] = list(self.window)
        return found

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """`(T, n, C, H, W)` uint8 and a seed an image `(T, n)` int64 -> uint8 of the same shape."""
        drawn = counter.uniforms(seeds.cpu().numpy().astype(np.uint64).ravel(), 10)
        flat = images.flatten(0, 1)
        mirrored = (drawn[:, 2] >= 0.5) & self.flip
        if self.window is not None:
            flat = self._resized(flat, drawn[:, 5:9])
        if self.crop or self.flip:
            flat = self._cropped(flat, drawn[:, :2], mirrored)
        if self.brightness or self.contrast or self.saturation:
            change = torch.from_numpy(2 * drawn[:, [3, 4, 9]] - 1).float().to(flat.device)
            # a few at a time, which stay in the processor's cache
            few = [slice(i, i + 16) for i in range(0, len(flat), 16)]
            flat = torch.cat([self._coloured(flat[some], change[some]) for some in few])
        return flat.reshape(images.shape)

    def _cropped(self, images: Tensor, drawn: np.ndarray, mirrored: np.ndarray) -> Tensor:
        """Windows of the padded images, some of them mirrored; no pixel is interpolated."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (self.crop,) * 4)
        found = torch.empty_like(images)
        starts = (drawn * (2 * self.crop + 1)).astype(np.int64)
        starts[:, 1] = np.where(mirrored, 2 * self.crop - starts[:, 1], starts[:, 1])
        for window, image, (row, column), flipped in zip(found, padded, starts.tolist(), mirrored.tolist()):
            cut = image[:, row : row + height, column : column + width]
            window.copy_(cut.flip(-1) if flipped else cut)
        return found

    def _resized(self, images: Tensor, drawn: np.ndarray) -> Tensor:
        """Windows of random size and ratio, resized to the whole."""
        assert self.window is not None
        height, width = images.shape[-2:]
        smallest, largest = self.window
        area = (smallest + (largest - smallest) * drawn[:, 0]) * height * width
        ratio = np.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * drawn[:, 1])
        rows = np.clip(np.sqrt(area / ratio).round(), 1, height).astype(np.int64)
        columns = np.clip(np.sqrt(area * ratio).round(), 1, width).astype(np.int64)
        top = (drawn[:, 2] * (height - rows + 1)).astype(np.int64)
        left = (drawn[:, 3] * (width - columns + 1)).astype(np.int64)
        found = torch.empty_like(images)
        for whole_image, image, y, x, h, w in zip(found, images, top, left, rows, columns):
            window = image[None, :, y : y + h, x : x + w]
            whole_image.copy_(F.interpolate(window, (height, width), mode="bilinear", antialias=True)[0])
        return found

    def _coloured(self, images: Tensor, change: Tensor) -> Tensor:
        """Saturation, then contrast and brightness around the mean: of every pixel one linear map, `M v + b`."""
        channels = images.shape[1]
        if self.saturation and channels != 3:
            raise ValueError(
                f"saturation={self.saturation} is about colour images, but these have {channels} channel(s)"
            )
        brightness, contrast = 1 + self.brightness * change[:, :1], 1 + self.contrast * change[:, 1:2]
        values = images.flatten(2).float()
        colours = torch.eye(channels, dtype=torch.float32, device=images.device).expand(len(images), -1, -1)
        if self.saturation:
            distance = (1 + self.saturation * change[:, 2:])[..., None]
            grey = torch.tensor(LUMA, dtype=torch.float32, device=images.device).expand(3, 3)
            colours = distance * colours + (1 - distance) * grey
        mean = torch.bmm(colours, values.mean(2, keepdim=True)).mean(1)
        offset = (mean * (brightness - contrast))[..., None].expand(-1, channels, 1)
        found = torch.baddbmm(offset, contrast[..., None] * colours, values)
        return found.round_().clamp_(0, 255).to(torch.uint8).view_as(images)

    def __repr__(self) -> str:
        return f"Augment({self.name})"
