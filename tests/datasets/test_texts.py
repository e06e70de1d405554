"""Texts as data sets: tokenised once, padded by batch, split by class, read again as a run stores it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.base.errors import DataError
from metapeft.base.files import cache_folder
from metapeft.datasets import tokens
from metapeft.datasets.intents import HELD_OUT, sentences, split_classes
from metapeft.datasets.texts import TextData
from metapeft.episodes.settings import built_episodes, of_data, of_episodes
from tests.datasets import tiny_texts

TEXTS = {"banking77", "clinc150", "text"}
ROWS = [
    {"text": "a b c", "label": "x"},
    {"text": "d", "label": "y"},
    {"text": "e f", "label": "x"},
    {"text": "g h i j", "label": "y"},
]


def letters(texts: list[str], pairs: Any, truncation: bool, max_length: int) -> dict[str, Any]:
    """Letters as numbers from 1; of a pair the second text has the type 1."""
    both = [(one.split(), (two or "").split()) for one, two in zip(texts, pairs or [""] * len(texts))]
    return {
        "input_ids": [[ord(letter[0]) - 96 for letter in one + two][:max_length] for one, two in both],
        "token_type_ids": [([0] * len(one) + [1] * len(two))[:max_length] for one, two in both],
    }


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def intents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Options under which each data set is read: files as published, of few intents."""
    for name in HELD_OUT:
        monkeypatch.setitem(HELD_OUT, name, (2, 3))
    names = [f"intent{number}" for number in range(9)]
    rows = [(f"lost card {number}", name) for name in names for number in range(5)]
    banking, clinc = tmp_path / "b" / "banking_data", tmp_path / "c" / "data"
    banking.mkdir(parents=True)
    clinc.mkdir(parents=True)
    for part, own in (("train", rows[::2]), ("test", rows[1::2])):
        (banking / f"{part}.csv").write_text("text,category\n" + "\n".join(map(",".join, own)) + "\n")
    (clinc / "data_full.json").write_text(
        json.dumps({"train": rows, "val": [], "test": [], "oos_val": [["x", "oos"]]})
    )
    common = {"tokenizer": str(tiny_texts.encoder(tmp_path / "encoder")), "max_length": 8}
    return {
        "banking77": {"root": tmp_path / "b", **common},
        "clinc150": {"root": tmp_path / "c", **common},
        "text": {"root": tiny_texts.texts(tmp_path / "t"), **common},
    }


def test_batches_are_padded_to_their_own_longest_text() -> None:
    data = TextData(ROWS, letters, 8)
    assert (data.classes, data.labels.tolist(), data.lengths) == (("x", "y"), [0, 1, 0, 1], [3, 1, 2, 4])
    found = data.gather(torch.tensor([[0, 1], [2, 2]]))
    assert found["input_ids"].tolist() == [[[1, 2, 3], [4, 0, 0]], [[5, 6, 0], [5, 6, 0]]]
    assert found["attention_mask"].tolist() == [[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [1, 1, 0]]]
    assert set(found) == {"input_ids", "attention_mask"}
    assert data.gather(torch.tensor([1]))["input_ids"].tolist() == [[4]]
    assert data[3] == {"input_ids": [7, 8, 9, 10], "labels": 1}
    assert TextData(ROWS, letters, 2).lengths == [2, 1, 2, 2]


def test_padding_is_the_tokenizers_own() -> None:
    def own(*given: Any, **more: Any) -> dict[str, Any]:
        return letters(*given, **more)

    own.pad_token_id = 99
    assert TextData(ROWS, own, 8).gather(torch.tensor([0, 1]))["input_ids"].tolist() == [
        [1, 2, 3],
        [4, 99, 99],
    ]


def test_pairs_have_types() -> None:
    data = TextData([{"text": "a", "text_pair": "b c", "label": 1}, {"text": "d", "label": 0}], letters, 8)
    found = data.gather(torch.tensor([0, 1]))
    assert found["token_type_ids"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert data.texts == ["a | b c", "d | "]


def test_episodes_have_one_length_and_their_own_classes() -> None:
    rows = [{"text": "a " * (number % 5 + 1), "label": number % 3} for number in range(30)]
    data = TextData(rows, letters, 8)
    sampler = mp.EpisodeSampler(data, 2, 1, 3, seed=3)
    for number in range(8):
        batch = sampler.batch(number, 1)
        assert batch.support_x["input_ids"].shape[2] == batch.query_x["input_ids"].shape[2]
    batch = sampler.batch(0, 4)
    for part in ("support", "query"):
        index, y = getattr(batch, f"{part}_index"), getattr(batch, f"{part}_y")
        lengths = getattr(batch, f"{part}_x")["attention_mask"].sum(-1)
        assert torch.equal(lengths, torch.tensor(data.lengths)[index])
        assert torch.equal(data.labels[index], batch.classes.gather(1, y))


def test_episodes_of_several_sizes_keep_whole_texts() -> None:
    """A padded item is masked; a text without any token would be no number in a mean over tokens."""
    data = TextData(ROWS * 3, letters, 8)
    batch = mp.EpisodeSampler(data, 2, (1, 4), 1, seed=0).batch(0, 8)
    assert not batch.support_mask.all()
    assert (batch.support_x["attention_mask"].sum(-1) > 0).all()


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_data_set_of_texts_keeps_to_the_contract(name: str, intents: dict[str, dict[str, Any]]) -> None:
    parts = {split: mp.load_dataset(name, split=split, **intents[name]) for split in ("train", "val", "test")}
    names = [one for data in parts.values() for one in data.classes]
    assert len(names) == len(set(names))
    for split, data in parts.items():
        assert (data.split, len(data)) == (split, len(data.labels))
        assert data.labels.bincount(minlength=len(data.classes)).min() > 0
        again = mp.load_dataset(**of_data(data)["loaded"])
        assert of_data(again) == of_data(data)
        everything = torch.arange(len(data))
        assert torch.equal(again.gather(everything)["input_ids"], data.gather(everything)["input_ids"])
        sampler = mp.EpisodeSampler(data, 2, 1, 2)
        built = built_episodes(of_episodes(sampler), "episodes")
        assert torch.equal(built.batch(0, 2).query_x["input_ids"], sampler.batch(0, 2).query_x["input_ids"])


def test_a_tokenizer_of_ones_own_is_not_stored(intents: dict[str, dict[str, Any]]) -> None:
    data = mp.load_dataset("text", **{**intents["text"], "tokenizer": letters})
    assert of_data(data)["loaded"] is None
    assert not list(cache_folder().glob("*tokens*"))


def test_texts_are_tokenised_once(
    intents: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mp.load_dataset("banking77", **intents["banking77"])
    made, _ = tokens.resolved_tokenizer(intents["banking77"]["tokenizer"])

    class Refusing:
        backend_tokenizer, pad_token_id = made.backend_tokenizer, 0

        def __call__(self, *given: Any, **more: Any) -> Any:
            raise AssertionError("tokenised again")

    Refusing.__name__ = type(made).__name__
    again = mp.load_dataset("banking77", **{**intents["banking77"], "tokenizer": Refusing()})
    assert again.lengths == data.lengths
    with pytest.raises(AssertionError, match="tokenised again"):  # of another length there is nothing
        mp.load_dataset("banking77", **{**intents["banking77"], "tokenizer": Refusing(), "max_length": 2})


def test_a_damaged_store_is_written_again(intents: dict[str, dict[str, Any]]) -> None:
    before = mp.load_dataset("banking77", **intents["banking77"])
    (file,) = cache_folder().glob("banking77-tokens-*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert torch.equal(
        mp.load_dataset("banking77", **intents["banking77"]).gather(torch.arange(3))["input_ids"],
        before.gather(torch.arange(3))["input_ids"],
    )
    assert file.read_bytes() != bytes(content)


def test_finetune_takes_texts() -> None:
    class Reader(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.classifier = torch.nn.Embedding(30, 4), torch.nn.Linear(4, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            there = attention_mask.unsqueeze(-1).float()
            return self.classifier((self.words(input_ids) * there).sum(1) / there.sum(1))

    torch.manual_seed(0)
    fitted = mp.finetune(
        Reader(), TextData(ROWS, letters, 8), format=mp.Full(), epochs=60, lr=0.1, batch_size=2
    )
    assert fitted.evaluate(TextData(ROWS, letters, 8))["loss"] < 0.1


def test_what_is_refused(tmp_path: Path, intents: dict[str, dict[str, Any]]) -> None:
    folder, options = intents["text"]["root"], {**intents["text"]}
    for wrong, said in (
        (lambda: TextData([], letters, 8), "one text at least"),
        (lambda: TextData(ROWS, letters, 0), "max_length=0"),
        (lambda: TextData(ROWS, 7, 8), "'minilm', a folder, or a tokenizer"),
        (lambda: TextData(ROWS, "nowhere", 8), "there is no such folder"),
        (lambda: TextData(ROWS, letters, 8, ["x"]), "the label 'y' is none of x"),
        (lambda: TextData([*ROWS, {"text": " ", "label": "x"}], letters, 8), "text 5 has no token"),
        (lambda: mp.load_dataset("text", tokenizer=letters), "'text' needs the folder"),
        (lambda: mp.load_dataset("text", **options, split="all"), "split must be one of"),
        (lambda: mp.load_dataset("banking77", **{**options, "root": tmp_path}), "is missing: put"),
        (lambda: mp.load_dataset("banking77", **options, per_intents=3), "did you mean 'per_intent'"),
        (lambda: mp.EpisodeSampler(TextData(ROWS, letters, 8), 2, 1, 1, shift=True).batch(0, 1), "shift acts on"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            wrong()
    (folder / "val.jsonl").write_text('{"text": "lost", "label": "lost"}')
    with pytest.raises(DataError, match="the class 'lost' is in train and in val"):
        mp.load_dataset("text", **options)
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match="has no test"):
        mp.load_dataset("text", split="test", **options)


def test_splits_share_no_intent_and_do_not_depend_on_the_order() -> None:
    names = [f"intent{index}" for index in range(20)]
    parts = split_classes(names, (5, 6))
    assert [len(parts[split]) for split in ("train", "val", "test")] == [9, 5, 6]
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert split_classes(names[::-1], (5, 6)) == parts


def test_sentences_are_those_of_all_parts(intents: dict[str, dict[str, Any]]) -> None:
    for name in HELD_OUT:
        found = sentences(name, intents[name]["root"])
        assert len(found) == 45
        assert {intent for _, intent in found} == {f"intent{number}" for number in range(9)}
