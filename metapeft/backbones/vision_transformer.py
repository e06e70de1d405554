"""A small Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Attention is written out as two matrix products and a softmax, over separate query, key and value layers:
torch's fused attention has no second derivative on the CPU, which an unrolled hypergradient needs, and
separate layers can be named as targets of an update.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metapeft.backbones._building import check_depth, check_patches, check_sizes, recorded, seeded


class Attention(nn.Module):
    """Multi-head self-attention on `(B, tokens, width)`: `softmax(Q K^T / sqrt(width / heads)) V` a head.

    Example:
        >>> Attention(width=8, heads=2)(torch.zeros(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, width / heads)
            for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        mixed: Tensor = self.output((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class TransformerBlock(nn.Module):
    """Attention, then a two-layer MLP with GELU, both residual and pre-norm (equations 2 and 3 of the paper).

    Example:
        >>> TransformerBlock(width=8, heads=2, hidden=16)(torch.zeros(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        hidden: Tensor = self.linear2(self.gelu(self.linear1(self.norm2(x))))
        return x + hidden


class VisionTransformer(nn.Module):
    """Patches with learned positions, transformer blocks, mean over the tokens, classifier; see `vit`."""

    def __init__(
        self, ways: int, channels: int, patch: int, tokens: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, ways)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.position(torch.arange(tokens.shape[1], device=tokens.device)[None])
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


@recorded
def vit(
    ways: int = 5,
    channels: int = 1,
    size: int = 28,
    patch: int = 7,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    seed: int = 0,
) -> nn.Module:
    """A small pre-norm ViT with a mean over its tokens instead of a class token, and no dropout.

    Args:
        ways: outputs of the classifier.
        channels: channels of the images.
        size: side of the square images in pixels.
        patch: side of a patch in pixels; divides `size`.
        width: channels of a token, and features `F` of the classifier.
        depth: number of transformer blocks; their MLPs have `4 * width` hidden units.
        heads: attention heads; divides `width`.
        seed: of the initial weights; the global random state is not touched.

    Returns:
        A module from images `(B, channels, size, size)` to logits `(B, ways)`.

    Raises:
        ValueError: for a size that is not a positive integer, a patch that does not divide the image,
            or heads that do not divide the width.

    Example:
        >>> net = vit(ways=5, width=16, depth=2)
        >>> net(torch.zeros(2, 1, 28, 28)).shape, net.classifier.in_features
        (torch.Size([2, 5]), 16)

    Source: Dosovitskiy et al. 2021, section 3.1; mean over tokens: Beyer et al. 2022 (arXiv 2205.01580).
    """
    check_depth(depth)
    check_sizes(ways=ways, channels=channels, width=width, heads=heads)
    if width % heads:
        raise ValueError(
            f"heads={heads}: must divide width={width}, for each head attends with width / heads channels"
        )
    tokens = check_patches(size, patch)
    return seeded(lambda: VisionTransformer(ways, channels, patch, tokens, width, depth, heads), seed)
