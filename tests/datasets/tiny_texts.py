"""Small texts, a tokenizer of words and a random BERT, as folders that transformers reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.updates.networks import tiny

WORDS = ["[PAD]", "[UNK]", "lost", "stolen", "card", "loan", "rate", "pay", "the", "my", "a", "new", "old"]


def encoder(folder: Path) -> Path:
    """A folder with a tokenizer of words, and a BERT of two layers of width 8."""
    transformers = pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    tiny(transformers, "bert").bert.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return folder


def texts(folder: Path, each: int = 6) -> Path:
    """A folder of three splits, whose classes are words."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": ("lost", "stolen", "card"), "val": ("loan", "rate"), "test": ("pay", "new", "old")}
    for split, words in parts.items():
        rows = [
            {
                "text": f"{'the ' * (number % 3 + 1)}{word} my a"[: None if number else len(word) + 4],
                "label": word,
            }
            for word in words
            for number in range(each)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder
