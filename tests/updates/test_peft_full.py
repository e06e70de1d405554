"""Adapters of PEFT that change more of a layer than LoRA does: DoRA, and embeddings that are saved with them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import assert_close, randn, randomised
from tests.updates.networks import tiny

pytestmark = [
    pytest.mark.filterwarnings(text)
    for text in (
        "ignore:fan_in_fan_out is set to", "ignore:Model with `tie_word_embeddings=True`",
        "ignore:.*is_gradient_checkpointing", "ignore:Model has `tie_word_embeddings=True`",
        "ignore:Setting `save_embedding_layers`", "ignore:Could not identify embedding",
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    return pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")


def adapter(peft: ModuleType, net: nn.Module, folder: Path, **options: Any) -> nn.Module:
    """An adapter of PEFT's own with random factors, saved; the model with it."""
    theirs = peft.get_peft_model(
        net, peft.LoraConfig(r=2, lora_alpha=3, **options), autocast_adapter_dtype=False
    )
    source = torch.Generator().manual_seed(0)
    for name, value in theirs.named_parameters():
        if "lora" in name:
            value.data = value.data + 0.3 * torch.randn(value.shape, generator=source, dtype=value.dtype)
    theirs.save_pretrained(folder)
    return theirs.eval()


class Images(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=groups)
        self.line, self.fc = nn.Conv1d(6, 4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.line(torch.tanh(self.conv(x)).mean(3)).mean(2))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(7, 4), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.words(x).mean(1)))


def words(shape: tuple[int, ...] = (5, 6), most: int = 7) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("targets", [["fc"], ["conv", "line", "fc"]])
@pytest.mark.parametrize("rslora", [False, True])
def test_dora_of_linear_layers_and_convolutions(
    peft: ModuleType, tmp_path: Path, targets: list[str], rslora: bool
) -> None:
    net, x = randomised(Images()), randn(5, 4, 4, 4)
    theirs = adapter(
        peft, randomised(Images()), tmp_path, target_modules=targets, use_dora=True, use_rslora=rslora
    )
    model, factors = mp.from_peft(net, tmp_path)
    assert {site.format for site in model.sites.values()} == {mp.Full()}
    assert not torch.allclose(theirs(x), net(x))
    assert_close(model(x.unsqueeze(0), factors)[0], theirs(x).detach(), 1e-6)


def test_dora_of_embeddings(peft: ModuleType, tmp_path: Path) -> None:
    theirs = adapter(peft, randomised(Words()), tmp_path, target_modules=["words", "fc"], use_dora=True)
    model, factors = mp.from_peft(randomised(Words()), tmp_path)
    assert_close(model(words().unsqueeze(0), factors)[0], theirs(words()).detach(), 1e-6)


def test_dora_of_gpt2(peft: ModuleType, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")
    nets = [randomised(tiny(transformers, "gpt2")).eval() for _ in range(2)]
    theirs = adapter(peft, nets[0], tmp_path, target_modules=["c_attn"], use_dora=True, fan_in_fan_out=True)
    model, factors = mp.from_peft(nets[1], tmp_path)
    x = words((3, 5), 20)
    found = model({"input_ids": x.unsqueeze(0)}, factors)[0]
    assert_close(found, theirs(input_ids=x).logits.detach(), 1e-6)


def test_dora_that_cannot_be_read(peft: ModuleType, tmp_path: Path) -> None:
    adapter(peft, randomised(Images()), tmp_path, target_modules=["fc"], use_dora=True)
    file = tmp_path / "adapter_model.safetensors"
    own = load_file(file)
    name = next(name for name in own if "magnitude" in name)
    save_file({**own, name: own[name][:2]}, file)
    with pytest.raises(ValueError, match="a magnitude of 2 numbers for 'fc', which has 3 outputs"):
        mp.from_peft(randomised(Images()), tmp_path)
    del own[name]
    save_file(own, file)
    with pytest.raises(ValueError, match="use_dora=True, but no magnitude of 'fc'"):
        mp.from_peft(randomised(Images()), tmp_path)


def test_dora_of_grouped_convolutions_is_refused(tmp_path: Path) -> None:
    tensors = {"lora_A.weight": torch.zeros(2, 4, 3, 3), "lora_B.weight": torch.zeros(6, 2, 1, 1)}
    tensors["lora_magnitude_vector"] = torch.ones(1, 6, 1, 1)
    prefix = "base_model.model.conv"
    save_file({f"{prefix}.{k}": v for k, v in tensors.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 2, "use_dora": true}')
    with pytest.raises(ValueError, match="DoRA on 'conv', a convolution with groups"):
        mp.from_peft(randomised(Images(groups=2)), tmp_path)


@pytest.mark.parametrize("moved", [False, True])
def test_embeddings_that_are_saved_with_the_adapter(peft: ModuleType, tmp_path: Path, moved: bool) -> None:
    """The base weight that PEFT writes beside the update is this backbone's, or takes its place."""
    transformers = pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")
    nets = [randomised(tiny(transformers, "bert")).eval() for _ in range(2)]
    if moved:
        with torch.no_grad():
            nets[0].get_input_embeddings().weight.add_(
                0.1 * randn(*nets[0].get_input_embeddings().weight.shape)
            )
    targets = ["word_embeddings", "query"]
    theirs = peft.get_peft_model(
        nets[0], peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets), autocast_adapter_dtype=False
    )
    for number, (name, value) in enumerate(theirs.named_parameters()):
        if "lora" in name:
            value.data = 0.3 * randn(*value.shape, seed=number)
    theirs.eval().save_pretrained(tmp_path, save_embedding_layers=True)
    assert any(".base_layer.weight" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    model, factors = mp.from_peft(nets[1], tmp_path)
    full = [name for name, site in model.sites.items() if site.format == mp.Full()]
    assert [name.endswith("word_embeddings.weight") for name in full] == [True] * moved
    x = {"input_ids": words((3, 5), 20)}
    found = model({name: value.unsqueeze(0) for name, value in x.items()}, factors)[0]
    assert_close(
        found, mp.attach(theirs, {})({k: v.unsqueeze(0) for k, v in x.items()}, {})[0].detach(), 1e-6
    )


def test_a_vocabulary_of_another_size_says_what_to_do(tmp_path: Path) -> None:
    tensors = {"lora_embedding_A": torch.ones(1, 9), "lora_embedding_B": torch.ones(4, 1)}
    tensors["base_layer.weight"] = torch.ones(9, 4)
    prefix = "base_model.model.words"
    save_file({f"{prefix}.{k}": v for k, v in tensors.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    with pytest.raises(ValueError, match=r"resize_token_embeddings\(9\) first"):
        mp.from_peft(Words(), tmp_path)
    net = Words()
    net.words = nn.Embedding(9, 4)
    _, factors = mp.from_peft(net, tmp_path)
    assert_close(net.words.weight + factors["words.weight.delta"][0], torch.full((9, 4), 2.0), 1e-6)
