"""Labelled texts as tokens: gathered by number and padded to the longest, for episodes and for plain training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metapeft.base.arguments import whole
from metapeft.base.errors import DataError
from metapeft.datasets.images import split_hash
from metapeft.datasets.tokens import resolved_tokenizer, tokens_of


class TextData:
    """Texts with their classes, tokenised once; an `EpisodeSampler` draws episodes from it, `mp.finetune` trains on it.

    Args:
        rows: dicts of `text` and `label`, and `text_pair` where texts are pairs; what `read_text_rows` reads.
        tokenizer: one of transformers, a folder of one, `"minilm"`, or a function of a tokenizer's arguments.
        max_length: tokens of a text at most; longer ones are cut.
        classes: names of the labels; None: those that there are, in order.
        split: `"train"`, `"val"`, `"test"` or a name of your own. name: what tables call the data.

    Attributes:
        texts: as they were, a pair joined by ` | `. lengths: tokens of each.
        labels: places in `classes`, `(texts,)` int64.

    Raises:
        DataError: a label that is no class, a text without a token. ValueError: no tokenizer, no texts.

    Example:
        >>> words = lambda texts, pairs, truncation, max_length: {"input_ids": [[7] * len(t.split()) for t in texts]}
        >>> rows = [{"text": "my card", "label": "card"}, {"text": "lend me some money", "label": "loan"}]
        >>> data = TextData(rows, words, 16)
        >>> data.gather(torch.tensor([[0, 1]]))["attention_mask"]
        tensor([[[1, 1, 0, 0],
                 [1, 1, 1, 1]]])
    """

    more_classes = ""
    preprocess = None  # tokens go to the backbone as they are

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        max_length: int,
        classes: Sequence[str] | None = None,
        split: str = "train",
        name: str = "texts",
    ) -> None:
        whole(max_length=max_length)
        if not rows:
            raise ValueError("rows=[]: a data set has one text at least")
        held = dict.fromkeys(str(row["label"]) for row in rows)
        self.classes = tuple(sorted(held) if classes is None else classes)
        numbers = {one: number for number, one in enumerate(self.classes)}
        for label in held:
            if label not in numbers:
                raise DataError(f"the label {label!r} is none of {', '.join(self.classes)}")
        self.labels = torch.tensor([numbers[str(row["label"])] for row in rows])
        self.split, self.name = split, name
        texts = [str(row["text"]) for row in rows]
        pairs = [str(row.get("text_pair") or "") for row in rows]
        several = any(pairs)
        self.texts = [f"{one} | {two}" for one, two in zip(texts, pairs)] if several else texts
        made, self.tokenizer = resolved_tokenizer(tokenizer)
        found = tokens_of(texts, pairs if several else None, made, max_length, name.replace("/", "-"))
        self._counts = found.pop("lengths")
        self._starts = self._counts.cumsum(0) - self._counts
        self._tokens = found
        pad = getattr(made, "pad_token_id", None)
        self.pad_id = 0 if pad is None else int(pad)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [int(count) for count in self._counts]

    @property
    def split_hash(self) -> str:
        """As that of images: equal hashes, equal class lists in equal order."""
        return split_hash(self.split, self.classes)

    def gather(self, index: Tensor) -> dict[str, Tensor]:
        """Tokens by place: int64 of any shape `(...)` -> `input_ids` and `attention_mask` `(..., L)`.

        L is the length of the longest of these texts; `token_type_ids` are there where texts are pairs.
        """
        counts, starts = self._counts[index], self._starts[index]
        place = torch.arange(int(counts.max()) if counts.numel() else 0)
        there = place < counts.unsqueeze(-1)
        where = (starts.unsqueeze(-1) + place).clamp(max=len(self._tokens["input_ids"]) - 1)
        found = {
            name: torch.where(there, tokens[where].long(), self.pad_id if name == "input_ids" else 0)
            for name, tokens in self._tokens.items()
        }
        return {**found, "attention_mask": there.long()}

    def __getitem__(self, place: int) -> dict[str, Any]:
        """One text as lists of tokens, not padded, and its label: an item that `mp.finetune` takes."""
        if not 0 <= place < len(self):
            raise IndexError(f"text {place}: there are {len(self)}")
        begin, end = int(self._starts[place]), int(self._starts[place] + self._counts[place])
        fields = {name: tokens[begin:end].tolist() for name, tokens in self._tokens.items()}
        return {**fields, "labels": int(self.labels[place])}

    def __repr__(self) -> str:
        return f"TextData({self.name}, {self.split}: {len(self)} texts, {len(self.classes)} classes)"
