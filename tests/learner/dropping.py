"""A network with dropout, and the plain loop over its tasks with masks made by numpy, word by word."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.base import counter
from tests.learner.formulas import Tensors
from tests.learner.plain import Net, Plain

RATES = {"maps": 0.3, "units": 0.4}


class DropNet(Net):
    """`Net` with channels dropped before its norm, and units before its classifier."""

    def __init__(self, ways: int = 3, norm: bool = True, seed: int = 0) -> None:
        super().__init__(ways, norm, seed)
        self.maps: nn.Module = nn.Dropout2d(RATES["maps"])
        self.units: nn.Module = nn.Dropout(RATES["units"])

    def features(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.norm(self.maps(self.conv(x)))), 2)
        return self.units(torch.tanh(self.hidden(x.flatten(1))))


def given(seed: int, batch: Any, t: int, parts: list[str], place: int, count: int, p: float) -> Tensor:
    """Masks `(items, count)` of one task's parts at the dropout number `place`."""
    known = batch.support_x if batch.support_index is None else batch.support_index
    word = int.from_bytes(hashlib.blake2b(known[t].numpy().tobytes(), digest_size=8).digest(), "little")
    found = []
    for part in parts:
        key = counter.child(counter.root(seed), np.array([word], dtype=np.uint64))
        key = counter.child(key, np.array([part == "query"], dtype=np.uint64))
        items = batch.support_x.shape[1] if part == "support" else batch.query_x.shape[1]
        rows = counter.child(counter.words(key, items)[0], np.array([place], dtype=np.uint64))
        kept = counter.words(rows, count).view(np.int64) >= (p - 0.5) * 2.0**64
        found.append(torch.from_numpy(kept).double() / (1 - p))
    return torch.cat(found)


class DropPlain(Plain):
    """The plain loop with dropout: each forward gets the masks of the items that go through it."""

    def masks(self, x: Tensor) -> dict[str, Tensor]:
        batch = self.batch
        for t in range(len(batch)):
            parts = {"support": batch.support_x[t], "query": batch.query_x[t]}
            for names in (["support"], ["query"], ["support", "query"]):
                items = torch.cat([parts[name] for name in names])
                if items.shape == x.shape and torch.equal(items, x):
                    seed = self.said.seed
                    return {
                        "maps": given(seed, batch, t, names, 0, 3, RATES["maps"])[:, :, None, None],
                        "units": given(seed, batch, t, names, 1, 5, RATES["units"]),
                    }
        raise AssertionError("no task has these items")

    def run(
        self, u: Tensors, factors: Tensors, x: Tensor, reference: Tensor | None, features: bool = False
    ) -> Tensor:
        masks = self.masks(x)
        self.net.maps, self.net.units = (Times(masks[name]) for name in ("maps", "units"))
        return super().run(u, factors, x, reference, features)

    def _support(self, weights: Tensors, x: Tensor, reference: Tensor, body: bool) -> Tensor:
        seen, own = (
            F.conv2d(v, weights["conv.weight"], weights["conv.bias"], padding=1) * self.masks(v)["maps"]
            for v in (reference, x)
        )
        mean = seen.mean((0, 2, 3))[:, None, None]
        deviation = ((seen - mean).square().mean((0, 2, 3)) + 1e-5).sqrt()[:, None, None]
        scale, shift = (weights[f"norm.{name}"][:, None, None] for name in ("weight", "bias"))
        maps = F.avg_pool2d(torch.tanh((own - mean) / deviation * scale + shift), 2).flatten(1)
        hidden = torch.tanh(F.linear(maps, weights["hidden.weight"], weights["hidden.bias"]))
        features = hidden * self.masks(x)["units"]
        return (
            features if body else F.linear(features, weights["classifier.weight"], weights["classifier.bias"])
        )


class Times(nn.Module):
    """A dropout whose mask is given."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask
