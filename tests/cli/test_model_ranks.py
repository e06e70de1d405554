"""`metapeft ranks --model`: from a folder and two files of texts to ranks, an adapter and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metapeft.cli import run
from tests.updates.networks import tiny

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "book", "the", "a"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT of two layers and a tokenizer of words, and texts whose second word says the label."""
    transformers = pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    tiny(transformers, "bert").save_pretrained(tmp_path / "model")
    words = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "model")
    texts = [
        {"text": f"{article} {judged} {thing}", "label": label, "text_pair": thing}
        for article in ("the", "a")
        for judged, label in (("good", "yes"), ("bad", "no"))
        for thing in ("film", "book")
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, texts)))
    rows = "\n".join(f"{row['text']},{row['label']},{row['text_pair']}" for row in texts)
    (tmp_path / "validation.csv").write_text(f"text,label,text_pair\n{rows}\n")
    return tmp_path


def options(folder: Path, *more: str, data: str = "train.jsonl", model: str = "model") -> list[str]:
    files = ["--data", str(folder / data), "--validation", str(folder / "validation.csv")]
    small = ["--rank", "2", "--epochs", "2", "--batch-size", "4", "--out", str(folder / "out")]
    return ["ranks", "--model", str(folder / model), *files, *small, *more]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of PEFT's own
def test_ranks_adapter_and_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(folder, "--total", "3")) == 0
    said = json.loads((folder / "out" / "ranks.json").read_text())
    assert sum(said["ranks"].values()) == 3
    assert {name.rpartition(".self.")[2] for name in said["ranks"]} == {"query.weight", "value.weight"}
    assert "3 in all" in capsys.readouterr().out
    page = (folder / "out" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert all(page.count(f">{name}<") >= 2 for name in said["ranks"]), "a layer in both pictures"
    assert all(heading in page for heading in ("Ranks by layer", "Scores by layer"))
    assert run(options(folder, "--total", "3")) == 0  # one that is at its end
    peft = pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(
        folder / "model", num_labels=2, ignore_mismatched_sizes=True
    )
    loaded = peft.PeftModel.from_pretrained(base, folder / "out" / "adapter")
    assert loaded(input_ids=torch.tensor([[6, 2, 4]])).logits.shape == (1, 2)


def test_weights_of_autolora_are_drawn_too(folder: Path) -> None:
    assert run(options(folder, "--method", "autolora", "--total", "3")) == 0
    page = (folder / "out" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "Weights by layer" in page


def test_what_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.jsonl").write_text('{"text": "a film"}')
    (folder / "texts.txt").write_text("a film")
    for arguments, said in (
        (options(folder), "--method fisher needs --total or --parameters"),
        (options(folder, "--method", "prune", "--targets", "nothing"), "'*nothing' matches no parameter"),
        (options(folder, "--total", "3", "--checkpoint", "best"), "--checkpoint belongs to a run"),
        (["ranks", "somewhere", "--rank", "3"], "--rank belongs to a search"),
        (["ranks"], "RUN is missing: metapeft ranks runs/x/metapeft; or give a --model"),
        (["ranks", "--model", str(folder)], "--model needs --data and --validation"),
        (options(folder / "nowhere"), "cannot be read"),
        (options(folder, "--total", "1", data="bad.jsonl"), "needs a text and a label"),
        (options(folder, "--total", "1", data="texts.txt"), "allowed are .jsonl"),
        (options(folder, "--total", "1", model="nowhere"), "that save_pretrained() wrote"),
    ):
        assert run(arguments) == 2, arguments
        assert said in " ".join(capsys.readouterr().err.split()), arguments
