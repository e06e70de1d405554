"""Conv-4, the standard small backbone of few-shot learning (Vinyals et al. 2016, arXiv 1606.04080)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from metapeft.backbones._building import check_pooled, check_sizes, recorded, seeded


@recorded
def conv4(ways: int = 5, channels: int = 1, width: int = 64, size: int = 28, seed: int = 0) -> nn.Module:
    """Conv-4: four times 3x3 convolution, batch normalisation, ReLU, 2x2 max-pooling; a linear classifier.

    The classifier sees `F = width * (size // 16)^2` features: `width` at 28x28, `25 * width` at 84x84.

    Args:
        ways: outputs of the classifier.
        channels: channels of the images.
        width: filters of each convolution.
        size: side of the square images in pixels, at least 16.
        seed: of the initial weights (PyTorch's own initialisation); the global random state is not touched.

    Returns:
        A module from images `(B, channels, size, size)` to logits `(B, ways)`.

    Raises:
        ValueError: for a size that is not a positive integer, or images smaller than 16 pixels.

    Example:
        >>> import torch
        >>> net = conv4(ways=5, channels=1, width=64)
        >>> net(torch.zeros(2, 1, 28, 28)).shape, net.classifier.in_features
        (torch.Size([2, 5]), 64)
        >>> [name for name, _ in net.named_parameters()][:3]
        ['conv1.weight', 'conv1.bias', 'norm1.weight']

    Source: Vinyals et al. 2016, section 4.1; Snell et al. 2017 (arXiv 1703.05175), section 3.
    """
    check_sizes(ways=ways, channels=channels, width=width)
    side = check_pooled(size)

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for block in range(1, 5):
            layers[f"conv{block}"] = nn.Conv2d(channels if block == 1 else width, width, 3, padding=1)
            layers[f"norm{block}"] = nn.BatchNorm2d(width)
            layers[f"relu{block}"] = nn.ReLU()
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["classifier"] = nn.Linear(width * side**2, ways)
        return nn.Sequential(layers)

    return seeded(build, seed)
