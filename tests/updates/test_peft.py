"""Adapter folders: PEFT itself loads what is exported, and it comes back as it went."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.updates.peft_import import read_adapter
from tests.updates.helpers import FORMATS, assert_close, call, randn, random_factors, randomised, task
from tests.updates.networks import Tied, tiny

LOW_RANK = {name: FORMATS[name] for name in ("lora", "cp", "ring", "uneven ring")}
IGNORED = [
    "ignore:LoRA adapter added to ConvNd layer with groups",
    "ignore:fan_in_fan_out is set to",
    "ignore:Model with `tie_word_embeddings=True`",
    "ignore:`is_gradient_checkpointing` is deprecated",
    "ignore:Model has `tie_word_embeddings=True`",
]
pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    return pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")


class Mixed(nn.Module):
    """Every kind of layer that PEFT and we both know; names that are suffixes of one another."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.conv = nn.Sequential(
            nn.Conv1d(4, 4, 3, padding=1, groups=2), nn.Tanh(), nn.Conv1d(4, 4, 3, stride=2)
        )
        self.linear, self.head = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(self.words(x).transpose(1, 2)).mean(2)
        return self.head(torch.tanh(self.linear(hidden)))


def words() -> Tensor:
    return torch.randint(7, (5, 6), generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return randomised(Mixed()).eval()


def loaded(peft: ModuleType, backbone: nn.Module, folder: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(backbone, folder).eval()


@pytest.mark.parametrize("format", LOW_RANK)
def test_peft_computes_the_same(peft: ModuleType, tmp_path: Path, format: str) -> None:
    net = network()
    model = mp.attach(net, LOW_RANK[format])
    factors = task(random_factors(model, 1), 0)
    mp.export_peft(model, factors, tmp_path)
    expected = call(model.merged(factors), words())
    assert not torch.allclose(expected, net(words()))
    assert_close(loaded(peft, network(), tmp_path)(words()), expected, 1e-5)


@pytest.mark.parametrize("format", LOW_RANK)
def test_round_trip(tmp_path: Path, format: str) -> None:
    """LoRA comes back bit for bit, CP and tensor ring as LoRA of their rank with the same update."""
    net = network()
    model = mp.attach(net, LOW_RANK[format])
    factors = task(random_factors(model, 1), 0)
    mp.export_peft(model, factors, tmp_path)
    formats, back = read_adapter(tmp_path, net)
    again = mp.attach(net, formats)
    assert_close(call(again.merged(back), words()), call(model.merged(factors), words()), 1e-12)
    if format == "lora":
        assert formats == {name: site.format for name, site in model.sites.items()}
        assert all(torch.equal(back[name], value) for name, value in factors.items())
    mp.export_peft(again, back, tmp_path / "again")
    for file in ("adapter_model.safetensors", "metapeft.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_rank_zero_survives(peft: ModuleType, tmp_path: Path) -> None:
    net = network()
    ranks = {"words": mp.LoRA(0), "conv.0": mp.CP(0), "linear.0": mp.LoRA(3, alpha=1.5), "head": mp.LoRA(1)}
    model = mp.attach(net, ranks)
    factors = task(random_factors(model, 1), 0)
    mp.export_peft(model, factors, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["head", "linear.0"]
    assert config["rank_pattern"] == {"linear.0": 3, "head": 1}
    assert config["alpha_pattern"] == {"linear.0": 1.5, "head": 1}
    formats, back = read_adapter(tmp_path, net)
    assert {name: format.terms for name, format in formats.items()} == {
        "words.weight": 0,
        "conv.0.weight": 0,
        "linear.0.weight": 3,
        "head.weight": 1,
    }
    expected = call(model.merged(factors), words())
    assert_close(call(mp.attach(net, formats).merged(back), words()), expected, 1e-12)
    assert_close(loaded(peft, network(), tmp_path)(words()), expected, 1e-5)


def test_names_that_are_suffixes_of_others(peft: ModuleType, tmp_path: Path) -> None:
    """PEFT matches names from their end: layer "0" must not become "1.0" too."""

    def net() -> nn.Module:
        inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        return randomised(nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 2))).eval()

    model = mp.attach(net(), {"0": mp.LoRA(2), "2": mp.LoRA(1)})
    factors = task(random_factors(model, 1), 0)
    mp.export_peft(model, factors, tmp_path)
    x = randn(3, 4)
    adapted = loaded(peft, net(), tmp_path)
    assert_close(adapted(x), call(model.merged(factors), x), 1e-5)
    assert not any("1.0.lora" in name for name, _ in adapted.named_parameters())


@pytest.mark.parametrize("format", ["lora", "ring"])
@pytest.mark.parametrize("targets", ["*c_attn", "*wte", "all"])
def test_gpt2(peft: ModuleType, tmp_path: Path, targets: str, format: str) -> None:
    """Conv1D stores its weight turned round; with `wte` the tied output layer is adapted too."""
    transformers = pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")

    def net() -> nn.Module:
        return randomised(tiny(transformers, "gpt2")).eval()

    model = mp.attach(net(), LOW_RANK[format], targets=targets)
    factors = task(random_factors(model, 1), 0)
    mp.export_peft(model, factors, tmp_path)
    x = torch.randint(20, (3, 5), generator=torch.Generator().manual_seed(0))
    expected = call(model.merged(factors), {"input_ids": x})
    assert_close(loaded(peft, net(), tmp_path)(input_ids=x).logits, expected, 1e-5)
    formats, back = read_adapter(tmp_path, model.module)
    assert_close(call(mp.attach(model.module, formats).merged(back), {"input_ids": x}), expected, 1e-12)


@pytest.mark.parametrize("linear_first", [True, False])
def test_tied_layers(tmp_path: Path, linear_first: bool) -> None:
    net = randomised(Tied(linear_first))
    model = mp.attach(net, mp.LoRA(2))
    factors = task(random_factors(model, 1), 0)
    mp.export_peft(model, factors, tmp_path)
    formats, back = read_adapter(tmp_path, net)
    assert formats == {name: site.format for name, site in model.sites.items()}
    assert all(torch.equal(back[name], value) for name, value in factors.items())


@pytest.mark.parametrize("ways", [3, 5])
@pytest.mark.parametrize("trained", [True, False])
def test_heads_and_trained_weights(peft: ModuleType, tmp_path: Path, trained: bool, ways: int) -> None:
    net = network()
    model = mp.attach(net, mp.LoRA(2))
    factors = task(random_factors(model, 1), 0)
    body = {name: value for name, value in factors.items() if not name.startswith("head.")}
    head = {"head.weight": randn(ways, 4), "head.bias": randn(ways, seed=1)}
    weights = {name: value + 0.1 if trained else value for name, value in net.named_parameters()}
    mp.export_peft(model, body, tmp_path, weights=weights, head=head)
    assert (tmp_path / "base").exists() == (trained or ways != 3)

    merged = model.merged(factors, weights=weights)
    merged.head = nn.Linear(4, ways).double()
    merged.head.weight.data, merged.head.bias.data = head["head.weight"], head["head.bias"]
    expected = call(merged, words())
    fresh = network()
    if trained or ways != 3:
        with pytest.raises(ValueError, match="load_base"):
            read_adapter(tmp_path, fresh)
        fresh = mp.load_base(fresh, tmp_path)
    formats, back = read_adapter(tmp_path, fresh)
    assert_close(call(mp.attach(fresh, formats).merged(back), words()), expected, 1e-12)
    assert_close(loaded(peft, fresh, tmp_path)(words()), expected, 1e-5)


def test_full_update_of_the_classifier_is_saved_whole(peft: ModuleType, tmp_path: Path) -> None:
    model = mp.attach(network(), {"head": mp.Full(), "*": mp.LoRA(1)}, classifier="head")
    factors = task(random_factors(model, 1), 0)
    mp.export_peft(model, factors, tmp_path)
    expected = call(model.merged(factors), words())
    assert_close(loaded(peft, network(), tmp_path)(words()), expected, 1e-5)
    formats, back = read_adapter(tmp_path, model.module)
    assert_close(call(mp.attach(model.module, formats).merged(back), words()), expected, 1e-12)


def test_an_adapter_of_peft_itself(peft: ModuleType, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["words", "linear.0", "2"],
        rank_pattern={"linear.0": 1},
        use_rslora=True,
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(network(), config, autocast_adapter_dtype=False)
    for name, value in theirs.named_parameters():
        if "lora" in name:
            value.data = 0.3 * torch.randn(value.shape, dtype=torch.float64)
    theirs.save_pretrained(tmp_path)
    formats, factors = read_adapter(tmp_path, network())
    merged = mp.attach(network(), formats).merged({name: value.double() for name, value in factors.items()})
    assert_close(call(merged, words()), theirs.eval()(words()), 1e-5)


def refused(model: Any, folder: Path, match: str, factors: dict | None = None, **options: Any) -> None:
    given = task(random_factors(model, 1), 0) if factors is None else factors
    with pytest.raises(ValueError, match=match):
        mp.export_peft(model, given, folder, **options)
    assert not folder.exists()


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    net, folder = network(), tmp_path / "adapter"
    refused(mp.attach(net, mp.Full(), targets="linear.*"), folder, "'linear.0.weight' has a Full update")
    model = mp.attach(net, mp.CP(2), targets="linear.*")
    factors = task(random_factors(model, 1), 0)
    seeds = {name: value.expand(4, 2) if name.endswith("seed") else value for name, value in factors.items()}
    refused(model, folder, "a seed per input", seeds)
    refused(mp.attach(net, mp.LoRA(2), norm="support"), folder, 'norm="support"')
    attention = randomised(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True))
    refused(mp.attach(attention, mp.LoRA(1)), folder, "MultiheadAttention")
    without = mp.attach(net, mp.LoRA(1), classifier=None)
    refused(without, folder, "no classifier", head={"head.weight": randn(3, 4), "head.bias": randn(3)})
    refused(mp.attach(net, mp.LoRA(1)), folder, "head has", head={"weight": randn(3, 4)})
    mp.export_peft(model, factors, folder)
    with pytest.raises(ValueError, match="is there and not empty"):
        mp.export_peft(model, factors, folder)


def test_damaged_and_foreign_folders(tmp_path: Path) -> None:
    net = network()
    model = mp.attach(net, mp.LoRA(2), targets="linear.*")
    weights = {name: value + 1 for name, value in net.named_parameters()}
    mp.export_peft(model, task(random_factors(model, 1), 0), tmp_path, weights=weights)
    with pytest.raises(ValueError, match="is missing"):
        read_adapter(tmp_path / "nowhere", net)
    with pytest.raises(ValueError, match="other weights"):
        read_adapter(tmp_path, net)
    with pytest.raises(ValueError, match="another backbone"):
        mp.load_base(nn.Linear(2, 2), tmp_path)
    mp.load_base(net, tmp_path)
    read_adapter(tmp_path, net)
    config = tmp_path / "adapter_config.json"
    plain = json.loads(config.read_text())
    for key, value in {"peft_type": "LOHA", "use_dora": True, "bias": "all"}.items():
        config.write_text(json.dumps({**plain, key: value}))
        with pytest.raises(ValueError, match=str(value)):
            read_adapter(tmp_path, net)
    config.write_text(json.dumps(plain))
    base = tmp_path / "base" / "model.safetensors"
    base.write_bytes(base.read_bytes()[:-1])
    with pytest.raises(ValueError, match="SHA-256"):
        read_adapter(tmp_path, net)
    adapter = tmp_path / "adapter_model.safetensors"
    (tmp_path / "metapeft.json").write_text("{}")
    adapter.write_bytes(adapter.read_bytes()[:50])
    with pytest.raises(ValueError, match="damaged"):
        read_adapter(tmp_path, net)
    config.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        read_adapter(tmp_path, net)
