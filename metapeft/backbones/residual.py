"""ResNet-12, the standard large backbone of few-shot learning (Oreshkin et al. 2018, arXiv 1805.10123)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from metapeft.backbones._building import check_pooled, check_sizes, recorded, seeded


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions with normalisation, plus a 1x1 projection of the input; then 2x2 max-pooling.

    Maps `(B, inputs, side, side)` to `(B, outputs, side // 2, side // 2)`.

    Example:
        >>> import torch
        >>> ResidualBlock(3, 8)(torch.zeros(2, 3, 10, 10)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.LeakyReLU(0.1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.LeakyReLU(0.1)
        self.conv3 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut_conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(outputs)
        self.relu3 = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu1(self.norm1(self.conv1(x)))
        hidden = self.relu2(self.norm2(self.conv2(hidden)))
        hidden = self.norm3(self.conv3(hidden)) + self.shortcut_norm(self.shortcut_conv(x))
        pooled: Tensor = self.pool(self.relu3(hidden))
        return pooled


@recorded
def resnet12(ways: int = 5, channels: int = 3, width: int = 64, size: int = 84, seed: int = 0) -> nn.Module:
    """ResNet-12: four residual blocks of `width * (1, 2.5, 5, 10)` filters, global average, classifier.

    The widths are 64-160-320-640 by default, rounded down for other values of `width`; the classifier sees
    `F = 10 * width` features. There is no DropBlock: regularisation is not the backbone's affair here.

    Args:
        ways: outputs of the classifier.
        channels: channels of the images.
        width: filters of the first block.
        size: side of the square images in pixels, at least 16 (only checked: the average is global).
        seed: of the initial weights; the global random state is not touched.

    Returns:
        A module from images `(B, channels, size, size)` to logits `(B, ways)`.

    Raises:
        ValueError: for a size that is not a positive integer, or images smaller than 16 pixels.

    Example:
        >>> import torch
        >>> net = resnet12(ways=5, channels=1, width=4, size=28)
        >>> net(torch.zeros(2, 1, 28, 28)).shape, net.classifier.in_features
        (torch.Size([2, 5]), 40)

    Source: Oreshkin et al. 2018, section 4; widths as in Lee et al. 2019 (arXiv 1904.03758), section 4.1.
    """
    check_sizes(ways=ways, channels=channels, width=width)
    check_pooled(size)
    widths = [channels, width, 5 * width // 2, 5 * width, 10 * width]

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for block in range(1, 5):
            layers[f"block{block}"] = ResidualBlock(widths[block - 1], widths[block])
        layers["average"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["classifier"] = nn.Linear(widths[-1], ways)
        net = nn.Sequential(layers)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.1, mode="fan_out", nonlinearity="leaky_relu")
        return net

    return seeded(build, seed)
