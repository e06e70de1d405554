"""The dropout masks of one batch of tasks: a function of the seed, the episodes and the items in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from metapeft.base import counter
from metapeft.base.trees import tree_leaves
from metapeft.episodes.episode import EpisodeBatch
from metapeft.updates.layers.dropout import never_drops
from metapeft.updates.layers.masks import Masks


class ItemMasks:
    """Masks for the items of a batch, the same ones whenever they are asked for.

    An item's mask is a function of the seed, of its episode, of its part (support or query), of its place in that
    part, and of the number of the dropout within a forward. It is not one of the inner step, nor of the other tasks
    in the batch: so objectives are fixed functions, whatever an engine evaluates again, and a batch may be cut into
    chunks and shared out among ranks. An episode is known by its support set, `support_index` or, where there is
    none, the inputs themselves: one that comes again has the same masks again.

    Args:
        seed: 0 to 2^63 - 1. batch: of T episodes. device: where the numbers are kept.

    Example:
        >>> x, y = torch.zeros(1, 2, 3), torch.tensor([[0, 1]])
        >>> batch = EpisodeBatch(x, y, x, y, classes=y, support_index=torch.tensor([[7, 4]]))
        >>> masks, again = (ItemMasks(0, batch, "cpu").of("both") for _ in range(2))
        >>> masks(0, (4, 3), 0.5, x).shape, torch.equal(masks(0, (4, 3), 0.5, x), again(0, (4, 3), 0.5, x))
        (torch.Size([4, 3]), True)
    """

    def __init__(self, seed: int, batch: EpisodeBatch, device: torch.device | str) -> None:
        episodes = counter.child(counter.root(seed), _identities(batch))
        keys = {}
        for number, (part, x) in enumerate((("support", batch.support_x), ("query", batch.query_x))):
            of_part = counter.child(episodes, np.array([number], dtype=np.uint64))
            keys[part] = counter.words(of_part, tree_leaves(x)[0].shape[1]).view(np.int64)
        self._made = {
            parts: Masks(torch.from_numpy(np.concatenate([keys[part] for part in parts], 1)).to(device))
            for parts in _FORWARDS.values()
        }

    def of(self, part: str, beside_support: bool = False) -> Masks:
        """Masks of a forward on the items of a part, `"support"`, `"query"` or `"both"`.

        Args:
            beside_support: whether the support set goes through it once more, before the items.
        """
        return self._made[_FORWARDS[part, beside_support]]


_FORWARDS = {
    ("support", False): ("support",),
    ("query", False): ("query",),
    ("both", False): ("support", "query"),
    ("query", True): ("support", "query"),
    ("both", True): ("support", "support", "query"),
}


def check_dropout(dropout: object, backbone: nn.Module, outer: Sequence[str], seed: int) -> None:
    """Raise ValueError where `Learner(dropout=...)` is no boolean, or True without effect or without a seed for it.

    Example:
        >>> check_dropout(True, nn.Linear(2, 2), ("weights",), 0)
        Traceback (most recent call last):
        ValueError: dropout=True has no effect: no layer of the backbone has nn.Dropout, or attention with dropout
    """
    if dropout is False:
        return
    if dropout is not True:
        raise ValueError(
            f"dropout={dropout!r}: allowed are True and False; the rates are those of the backbone"
        )
    if not outer:
        raise ValueError(
            "dropout=True has no effect: outer=() trains nothing, and dropout acts only in training"
        )
    if never_drops(backbone):
        raise ValueError(
            "dropout=True has no effect: no layer of the backbone has nn.Dropout, or attention with dropout"
        )
    counter.root(seed)


def _identities(batch: EpisodeBatch) -> counter.Words:
    """A word an episode, `(T,)`."""
    known = tree_leaves(batch.support_x) if batch.support_index is None else [batch.support_index]
    plain = [value.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy() for value in known]
    digests = (
        hashlib.blake2b(b"".join(value[task].tobytes() for value in plain), digest_size=8).digest()
        for task in range(len(plain[0]))
    )
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)
