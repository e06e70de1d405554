"""Labelled texts, tokenised once, as a data set that `mp.finetune` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metapeft.base.errors import DataError


class Tokenised:
    """Rows of `text` (and `text_pair`) and `label` as items of token lists, not padded.

    Args:
        rows: of texts. tokenizer: one of transformers, or a function of its arguments. classes: names of the labels.
        max_length: tokens at most.

    Raises:
        DataError: a label that is no class.

    Example:
        >>> lengths = lambda texts, pairs, truncation, max_length: {"input_ids": [[len(text)] for text in texts]}
        >>> Tokenised([{"text": "one", "label": "b"}], lengths, ["a", "b"], 8)[0]
        {'input_ids': [3], 'labels': 1}
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], tokenizer: Any, classes: Sequence[str], max_length: int
    ) -> None:
        numbers = {name: number for number, name in enumerate(classes)}
        for row in rows:
            if str(row["label"]) not in numbers:
                raise DataError(f"the label {row['label']!r} is none of {', '.join(classes)}")
        self.labels = [numbers[str(row["label"])] for row in rows]
        pairs = (
            [row.get("text_pair") or "" for row in rows]
            if any(row.get("text_pair") for row in rows)
            else None
        )
        texts = [row["text"] for row in rows]
        self.fields: dict[str, Any] = dict(tokenizer(texts, pairs, truncation=True, max_length=max_length))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**{name: values[index] for name, values in self.fields.items()}, "labels": self.labels[index]}
