"""Pretrained backbones cut in two: what comes before the last stage runs once an image, the rest carries updates."""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft.datasets.images import Preprocess, split_hash
from metapeft.training.runs.checkpoint import load

SIZE = 32
#: of the network's training images, in units of x / 255 (github.com/akamaster/pytorch_resnet_cifar10, trainer.py)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILES = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
MIXER = {"ways": 64, "size": SIZE, "patch": 4, "width": 64, "depth": 4}
KEPT = 2  # blocks of the mixer with updates
#: data set -> images of a class, and classes at most, of each split
IMAGES = {
    "miniimagenet": {"train": (60, 64), "val": (60, 16), "test": (60, 20)},
    "omniglot": {"train": (20, 192), "test": (20, 60)},
}


class CifarBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut that halves the map and pads channels with zeros where they differ.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2, shortcuts A.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[..., :: self.stride, :: self.stride]
        found: Tensor = F.relu(y + F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding)))
        return found


class CifarResNet(nn.Module):
    """ResNet for images of 32 pixels with three stages of `(depth - 2) / 6` blocks, 16, 32 and 64 channels."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                CifarBlock(inputs, outputs, 1 + (inputs != outputs)),
                *(CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)),
            )
            for inputs, outputs in ((16, 16), (16, 32), (32, 64))
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits


class Tail(nn.Module):
    """Blocks of a mixer, norm, mean over the tokens, classifier."""

    def __init__(self, blocks: nn.Sequential, norm: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.blocks, self.norm, self.classifier = blocks, norm, classifier

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


@dataclass(frozen=True)
class Cut:
    """A backbone in two parts: images -> maps, frozen, and maps -> logits, whose body carries updates."""

    before: Callable[[Tensor], Tensor]
    after: nn.Module


def cifar(depth: int) -> Cut:
    """ResNet-20 or -56 trained on CIFAR-10; updates go on its third stage."""
    net = CifarResNet(depth)
    file = torch.load(_folder() / FILES[depth], map_location="cpu", weights_only=True)
    net.load_state_dict({name.removeprefix("module."): value for name, value in file["state_dict"].items()})
    return in_two(net)


def in_two(net: CifarResNet) -> Cut:
    """The first two stages, and the third."""
    net.eval()

    def before(x: Tensor) -> Tensor:
        found: Tensor = net.layer2(net.layer1(F.relu(net.bn1(net.conv1(x)))))
        return found

    layers = OrderedDict(
        layer3=net.layer3, average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=net.linear
    )
    return Cut(before, nn.Sequential(layers))


def mixer(file: Path) -> Cut:
    """The mixer that `python -m benchmarks.knn pretrain` trained; updates go on its last blocks."""
    net: Any = mp.backbones.mixer(**MIXER)
    net.load_state_dict(load(file)[0])
    net.eval()
    first, last = net.blocks[:-KEPT], net.blocks[-KEPT:]
    return Cut(
        lambda x: first(net.patches(x).flatten(2).transpose(1, 2)), Tail(last, net.norm, net.classifier)
    )


def _folder() -> Path:
    if "METAPEFT_DATA" not in os.environ:
        raise SystemExit("set METAPEFT_DATA to a folder that has weights/ beside the data sets")
    return Path(os.environ["METAPEFT_DATA"]) / "weights"


class Maps:
    """A data set of what the frozen part makes of images: a sampler draws episodes of maps."""

    def __init__(self, name: str, split: str, maps: Tensor, labels: Tensor, classes: list[str]) -> None:
        self.name, self.split, self.maps, self.labels, self.classes = name, split, maps, labels, classes
        self.split_hash = split_hash(split, classes)

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, index: Tensor) -> Tensor:
        """Maps of these images."""
        return self.maps[index]


def images(name: str, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """The first images of the first classes of a split: floats of three channels and 32 pixels, labels, classes."""
    data: Any = mp.load_dataset(name, split=split)
    per_class, classes = IMAGES[name][split]
    labels = torch.as_tensor(data.labels)
    chosen = torch.cat([(labels == c).nonzero().flatten()[:per_class] for c in range(classes)])
    to_floats = Preprocess(MEAN, DEVIATION)
    parts = []
    for index in torch.split(chosen, 256):
        x = data.gather(index).float()
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        parts.append(to_floats(x.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)))
    return torch.cat(parts), labels[chosen], list(data.classes[:classes])


@functools.lru_cache(maxsize=3)
def maps_of(before: Callable[[Tensor], Tensor], name: str, split: str) -> Maps:
    """The maps of a split, computed once in this process."""
    x, labels, classes = images(name, split)
    with torch.no_grad():
        found = torch.cat([before(part) for part in torch.split(x, 128)])
    return Maps(name, split, found, labels, classes)
