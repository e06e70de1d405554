"""Conv-4, the standard small backbone of few-shot learning (Vinyals et al. 2016, arXiv 1606.04080)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from metapeft.backbones._building import check_pooled, check_sizes, recorded, seeded


@recorded
def conv4(
    ways: int = 5,
    channels: int = 1,
    width: int = 64,
    size: int = 28,
    seed: int = 0,
    *,
    blocks: int = 4,
    neck: int | None = None,
) -> nn.Module:
    """Conv-4: four times 3x3 convolution, batch normalisation, ReLU, 2x2 max-pooling; a linear classifier.

    The classifier sees `F = width * (size // 16)^2` features: `width` at 28x28, `25 * width` at 84x84. Where a task
    asks for a place in the image, `blocks=3, neck=64` keeps the places (3x3 of them at 28x28) up to a linear layer
    that can choose among them.

    Args:
        ways: outputs of the classifier.
        channels: channels of the images.
        width: filters of each convolution.
        size: side of the square images in pixels, at least `2^blocks`.
        seed: of the initial weights (PyTorch's own initialisation); the global random state is not touched.
        blocks: how often that is done, so that `(size // 2^blocks)^2` places are left.
        neck: features after a further linear layer, with bias, between the flattened features and the classifier,
            which then sees `F = neck`; None for no such layer.

    Returns:
        A module from images `(B, channels, size, size)` to logits `(B, ways)`.

    Raises:
        ValueError: for a size that is not a positive integer, or images of which the poolings leave nothing.

    Example:
        >>> import torch
        >>> net = conv4(ways=5, channels=1, width=64)
        >>> net(torch.zeros(2, 1, 28, 28)).shape, net.classifier.in_features
        (torch.Size([2, 5]), 64)
        >>> [name for name, _ in net.named_parameters()][:3]
        ['conv1.weight', 'conv1.bias', 'norm1.weight']
        >>> net = conv4(width=16, blocks=3, neck=64)
        >>> net.neck.in_features, net.classifier.in_features
        (144, 64)

    Source: Vinyals et al. 2016, section 4.1; Snell et al. 2017 (arXiv 1703.05175), section 3.
    """
    check_sizes(ways=ways, channels=channels, width=width, blocks=blocks)
    if neck is not None:
        check_sizes(neck=neck)
    flat = width * check_pooled(size, blocks) ** 2

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for block in range(1, blocks + 1):
            layers[f"conv{block}"] = nn.Conv2d(channels if block == 1 else width, width, 3, padding=1)
            layers[f"norm{block}"] = nn.BatchNorm2d(width)
            layers[f"relu{block}"] = nn.ReLU()
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        if neck is not None:
            layers["neck"] = nn.Linear(flat, neck)
        layers["classifier"] = nn.Linear(neck or flat, ways)
        return nn.Sequential(layers)

    return seeded(build, seed)
