"""Diseases in abstracts of PubMed: entity F1 of MiniLM with an update at ranks by several rules, on NCBI-disease.

2,000 sentences for training at most, the whole test set; query and value of six layers, 24 terms; two seeds.
Source: Dogan et al. 2014, doi 10.1016/j.jbi.2013.12.006.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import metapeft as mp
from benchmarks.language.glue import BATCH, LARGEST, TARGETS, TOTAL
from benchmarks.language.rows import file_of, kept, write
from metapeft.backbones.sentence_encoder import encoder_folder
from metapeft.base.errors import DataError
from metapeft.datasets.store import data_root
from metapeft.learner.labels import IGNORED

TAGS = ("O", "B-Disease", "I-Disease")
RULES = ("uniform", "Fisher", "rank 8")
EPOCHS, RATE, TOKENS = 3, 3e-3, 96


class Tagger(nn.Module):
    """MiniLM's last hidden states, and a tag for each token."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        net: Any = mp.backbones.minilm(len(TAGS), trained=0, seed=seed)
        self.model, self.classifier = net.model, net.classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `(B, L, tags)`."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits: Tensor = self.classifier(hidden)
        return logits


def run(seeds: int = 2, sentences: int = 2000, rules: tuple[str, ...] = RULES, threads: int = 1) -> None:
    """Measure all rows that are not there yet: seeds 0 to one less of each rule."""
    torch.set_num_threads(threads)
    settings = {
        "sentences": sentences, "epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "total": TOTAL,
        "largest": LARGEST, "precision": "bfloat16",
    }  # fmt: skip
    for seed in range(seeds):
        for rule in rules:
            path = file_of("entities", rule.replace(" ", "-").lower(), seed)
            if not kept(path, settings):
                write(path, settings, _row(rule, seed, sentences))


def _row(rule: str, seed: int, sentences: int) -> dict[str, Any]:
    begun = time.monotonic()
    rows = _tokenised("train")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()[:sentences]
    train = Subset(rows, order)
    cut = round(0.8 * len(order))
    fit, choose = Subset(rows, order[:cut]), Subset(rows, order[cut:])
    given: dict[str, Any] = {
        "full": ("classifier.*",), "epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "schedule": "linear",
        "options": {"weight_decay": 0.0}, "clip": 1.0, "autocast": torch.bfloat16, "seed": seed,
    }  # fmt: skip
    net = Tagger(seed).eval()
    model = mp.attach(net, mp.LoRA(LARGEST), targets=TARGETS)
    even, total = {name: torch.zeros(LARGEST) for name in model.sites}, TOTAL
    if rule == "Fisher":
        ranks = mp.search_ranks(
            net, fit, choose, format=mp.LoRA(LARGEST), targets=TARGETS, total=total, **given
        ).ranks
    else:
        ranks = mp.ranks(even, "uniform", total=total if rule == "uniform" else LARGEST * len(even))
    formats: Any = mp.at_ranks(model, ranks)
    fitted = mp.finetune(net, train, format=formats, metrics=(entity_f1,), **given)
    test = _tokenised("test")
    found = fitted.evaluate(Subset(test, range(len(test))))
    curve = [[line["step"], round(line["loss"], 4)] for line in fitted.log]
    return {
        "row": rule, "seed": seed, "score": found["entity_f1"], "scores": found, "ranks": ranks, "curve": curve,
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def entity_f1(outputs: Tensor, y: Tensor) -> float:
    """Harmonic mean of precision and recall of whole entities.

    Example:
        >>> y = torch.tensor([1, 2, 0, 1])
        >>> entity_f1(torch.eye(3)[torch.tensor([1, 2, 0, 0])], y)
        0.6666666666666666
    """
    said, true = spans(outputs.argmax(-1).tolist()), spans(y.tolist())
    both = len(said & true)
    return 2 * both / (len(said) + len(true)) if said or true else 0.0


def spans(tags: list[int]) -> set[tuple[int, int]]:
    """Begin and end of each entity: B and the I that follow it; an I after O begins one too.

    Example:
        >>> sorted(spans([1, 2, 1, 0, 2]))
        [(0, 2), (2, 3), (4, 5)]
    """
    found: set[tuple[int, int]] = set()
    begin: int | None = None
    for place, tag in enumerate([*tags, 0]):
        if begin is not None and tag != 2:
            found.add((begin, place))
            begin = None
        if tag == 1 or (tag == 2 and begin is None):
            begin = place
    return found


def _tokenised(split: str) -> Any:
    """Sentences as tokens with a tag each; of a word the first token has its tag, the others none."""
    from transformers import AutoTokenizer

    path = data_root(None, "text/ncbi-disease") / "conll" / f"{split}.tsv"
    if not path.is_file():
        raise DataError(f"{path} is missing: put the data set's folder there, as published")
    loader: Any = AutoTokenizer
    tokenizer = loader.from_pretrained(encoder_folder(), local_files_only=True)
    rows = _sentences(path)
    given = tokenizer(
        [words for words, _ in rows], is_split_into_words=True, truncation=True, max_length=TOKENS
    )
    found = []
    for place, (_, tags) in enumerate(rows):
        labels, before = [], None
        for word in given.word_ids(place):
            labels.append(TAGS.index(tags[word]) if word is not None and word != before else IGNORED)
            before = word
        found.append({"input_ids": given["input_ids"][place], "labels": labels})
    return found


def _sentences(path: Path) -> list[tuple[list[str], list[str]]]:
    rows = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        cells = [line.split("\t") for line in block.splitlines() if line.strip()]
        if cells:
            rows.append(([cell[0] for cell in cells], [cell[-1] for cell in cells]))
    return rows
