"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601)."""

from __future__ import annotations

from torch import Tensor, nn

from metapeft.backbones._building import check_depth, check_patches, check_sizes, recorded, seeded


class MixerBlock(nn.Module):
    """One MLP across tokens, one across channels, both residual and pre-norm (equation 1 of the paper).

    Maps `(B, tokens, width)` to the same shape.

    Example:
        >>> import torch
        >>> MixerBlock(tokens=4, width=6, token_hidden=3, channel_hidden=12)(torch.zeros(2, 4, 6)).shape
        torch.Size([2, 4, 6])
    """

    def __init__(self, tokens: int, width: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.token1 = nn.Linear(tokens, token_hidden)
        self.gelu1 = nn.GELU()
        self.token2 = nn.Linear(token_hidden, tokens)
        self.norm2 = nn.LayerNorm(width)
        self.channel1 = nn.Linear(width, channel_hidden)
        self.gelu2 = nn.GELU()
        self.channel2 = nn.Linear(channel_hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        across_tokens = self.token2(self.gelu1(self.token1(self.norm1(x).transpose(1, 2))))
        x = x + across_tokens.transpose(1, 2)
        across_channels: Tensor = self.channel2(self.gelu2(self.channel1(self.norm2(x))))
        return x + across_channels


class Mixer(nn.Module):
    """Patches, mixer blocks, mean over the tokens, classifier; see `mixer`."""

    def __init__(
        self,
        ways: int,
        channels: int,
        patch: int,
        tokens: int,
        width: int,
        depth: int,
        hidden: tuple[int, int],
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(MixerBlock(tokens, width, *hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, ways)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


@recorded
def mixer(
    ways: int = 5,
    channels: int = 3,
    size: int = 32,
    patch: int = 4,
    width: int = 512,
    depth: int = 1,
    token_hidden: int | None = None,
    channel_hidden: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """MLP-Mixer; the defaults are the setting of Block et al.'s vision study (patch 4, width 512, depth 1).

    Args:
        ways: outputs of the classifier.
        channels: channels of the images.
        size: side of the square images in pixels.
        patch: side of a patch in pixels; divides `size`.
        width: channels of a token, and features `F` of the classifier.
        depth: number of mixer blocks.
        token_hidden: hidden units of the MLP across tokens; `width / 2` unless given, as in the Mixer paper.
        channel_hidden: hidden units of the MLP across channels; `4 * width` unless given, as there.
        seed: of the initial weights (PyTorch's own initialisation); the global random state is not touched.

    Returns:
        A module from images `(B, channels, size, size)` to logits `(B, ways)`.

    Raises:
        ValueError: for a size that is not a positive integer, or a patch that does not divide the image.

    Example:
        >>> import torch
        >>> net = mixer(ways=5, width=16, depth=2)
        >>> net(torch.zeros(2, 3, 32, 32)).shape, net.classifier.in_features
        (torch.Size([2, 5]), 16)

    Source: Tolstikhin et al. 2021, section 2 and table 1; Block et al., arXiv 2410.22264 (vision study).
    """
    token_hidden = max(1, width // 2) if token_hidden is None else token_hidden
    channel_hidden = 4 * width if channel_hidden is None else channel_hidden
    check_depth(depth)
    check_sizes(ways=ways, channels=channels, width=width)
    check_sizes(token_hidden=token_hidden, channel_hidden=channel_hidden)
    tokens = check_patches(size, patch)
    hidden = (token_hidden, channel_hidden)
    return seeded(lambda: Mixer(ways, channels, patch, tokens, width, depth, hidden), seed)
