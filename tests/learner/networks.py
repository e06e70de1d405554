"""Small networks for the plain loops: smooth, so that all derivatives exist, with batch norm and a classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """A convolution, a batch norm and a classifier; activations are smooth, so that all derivatives exist."""

    def __init__(self, ways: int = 3, norm: bool = True, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(1, 3, 3, padding=1)
            self.norm: nn.Module = nn.BatchNorm2d(3) if norm else nn.Identity()
            self.hidden = nn.Linear(3 * 4, 5)
            self.classifier = nn.Linear(5, ways)
            if norm:
                self.norm.running_mean.normal_()
                self.norm.running_var.uniform_(0.5, 2.0)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.norm(self.conv(x))), 2)
        return torch.tanh(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Features(nn.Module):
    """The same network up to its classifier."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.features(x)
