"""Texts as tokens: by a tokenizer of transformers, or a function like one, once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metapeft.backbones.sentence_encoder import encoder_folder
from metapeft.base.errors import DataError
from metapeft.datasets.tensor_store import stored_tensors

_FIELDS = ("input_ids", "token_type_ids")


def resolved_tokenizer(tokenizer: Any) -> tuple[Any, str | None]:
    """The tokenizer that is meant, and how a run folder names it: None for one of the user's own.

    Args:
        tokenizer: `"minilm"`; a folder that `save_pretrained` wrote; a tokenizer of transformers; or a function
            `(texts, pairs, truncation=True, max_length=...) -> {"input_ids": [[...], ...]}`.

    Raises:
        ImportError: transformers, or MiniLM, is not installed. ValueError: what is none of these.
    """
    if callable(tokenizer):
        return tokenizer, None
    if not isinstance(tokenizer, str | os.PathLike):
        raise ValueError(
            f"tokenizer={tokenizer!r}: 'minilm', a folder, or a tokenizer of transformers is needed"
        )
    named = os.fspath(tokenizer)
    folder = encoder_folder() if named == "minilm" else Path(named)
    if not folder.is_dir():
        raise ValueError(
            f"tokenizer={named!r}: there is no such folder; one that save_pretrained() wrote is needed, or 'minilm'"
        )
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    return loader.from_pretrained(folder, local_files_only=True), named


def tokens_of(
    texts: Sequence[str], pairs: Sequence[str] | None, tokenizer: Any, max_length: int, name: str = "texts"
) -> dict[str, Tensor]:
    """Tokens of all texts one after the other, `input_ids (tokens,)` int32, and `lengths (texts,)` int64.

    Where a tokenizer tells the two texts of a pair apart, `token_type_ids (tokens,)` too. What a tokenizer of
    transformers gives is stored in the cache folder, and read from there the next time.

    Args:
        texts, pairs: what is tokenised, each text with its pair. tokenizer: as it came out of `resolved_tokenizer`.
        max_length: tokens at most, longer texts are cut. name: begins the stored file's name.

    Raises:
        DataError: a text without a token.

    Example:
        >>> words = lambda texts, pairs, truncation, max_length: {"input_ids": [[1] * len(t.split()) for t in texts]}
        >>> tokens_of(["one", "and two"], None, words, 8)["lengths"]
        tensor([1, 2])
    """

    def make() -> dict[str, Tensor]:
        given: Mapping[str, Any] = tokenizer(
            list(texts), None if pairs is None else list(pairs), truncation=True, max_length=max_length
        )
        rows = given["input_ids"]
        found = {"lengths": torch.tensor([len(row) for row in rows], dtype=torch.int64)}
        for key in _FIELDS:
            if key in given and (key == "input_ids" or pairs is not None):
                found[key] = torch.tensor([token for row in given[key] for token in row], dtype=torch.int32)
        return found

    vocabulary = _digest(tokenizer)
    if vocabulary is None:
        found = make()
    else:
        content = hashlib.sha256(repr((list(texts), None if pairs is None else list(pairs))).encode())
        found = stored_tensors(f"{name}-tokens", [vocabulary, max_length, content.hexdigest()], make)
    empty = (found["lengths"] < 1).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"{name}: text {empty[0] + 1} has no token: {texts[empty[0]]!r}")
    return found


def _digest(tokenizer: Any) -> str | None:
    """What a tokenizer of transformers does, as a hash; None for anything else."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not callable(getattr(backend, "to_str", None)):
        return None
    said = f"{type(tokenizer).__name__} {backend.to_str()}"  # type: ignore[union-attr]
    return hashlib.sha256(said.encode()).hexdigest()
