"""Quarter turns as further classes (Santoro et al. 2016, arXiv 1605.06065, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from metapeft.datasets.images import ImageData, Preprocess, split_hash

TURNS = ("rot000", "rot090", "rot180", "rot270")


class Rotated:
    """Any image data set four times, each class turned by 0, 90, 180 and 270 degrees being a class of its
    own.

    Image `i` turned `k` times counter-clockwise is image `k * len(data) + i`; class `c` becomes class
    `k * len(data.classes) + c`, named `<name>/rot000` to `<name>/rot270`. Nothing is stored twice.

    Args:
        data: an `ImageData` with square images.

    Example:
        >>> data = ImageData(torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2), [0], ["a"])
        >>> turned = Rotated(data)
        >>> len(turned), turned.classes[1], turned.gather(torch.tensor(1)).flatten().tolist()
        (4, 'a/rot090', [1, 3, 0, 2])
    """

    def __init__(self, data: ImageData) -> None:
        turned = [name for name in data.classes if name.endswith(TURNS)]
        if turned:
            raise ValueError(
                f"rotations would turn classes of {data.name} that are turns already, such as {turned[0]!r}"
            )
        height, width = data.images.shape[-2:]
        if height != width:
            raise ValueError(f"rotations need square images, not {height}x{width}")
        self.data = data
        self.name = data.name
        self.split = data.split
        self.classes = tuple(f"{name}/{turn}" for turn in TURNS for name in data.classes)
        turns = torch.arange(len(TURNS)) * len(data.classes)
        self.labels = (turns[:, None] + data.labels).flatten()

    def __len__(self) -> int:
        return len(TURNS) * len(self.data)

    def gather(self, index: Tensor) -> Tensor:
        """Images by place: int64 of any shape `(...)` -> uint8 `(..., C, H, W)`."""
        images = self.data.gather(index % len(self.data))
        turn = (index // len(self.data)).to(images.device)
        for times in range(1, len(TURNS)):
            mine = turn == times
            images[mine] = images[mine].rot90(times, (-2, -1))
        return images

    @property
    def preprocess(self) -> Preprocess:
        """That of the data set below: turning changes neither mean nor deviation."""
        return self.data.preprocess

    @property
    def split_hash(self) -> str:
        """The hash of the split's name and the four times longer class list."""
        return split_hash(self.split, self.classes)
