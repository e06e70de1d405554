"""Whole networks: ours, ones from elsewhere, and transformers."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metapeft as mp
from tests.updates.helpers import (
    FEW,
    assert_close,
    assert_equals_merged,
    call,
    randn,
    random_factors,
    randomised,
    task,
)
from tests.updates.networks import OURS, resnet18, text, tiny

TASKS = 8


@pytest.mark.parametrize("format", FEW)
@pytest.mark.parametrize(
    ("name", "norm"), [*((name, "running") for name in OURS), ("conv4", "support"), ("resnet12", "support")]
)
def test_ours(name: str, norm: str, format: str) -> None:
    make, shape = OURS[name]
    model = mp.attach(randomised(make()), FEW[format], norm=norm)
    x, support = randn(TASKS, 2, *shape), randn(TASKS, 3, *shape, seed=1)
    assert_equals_merged(model, x, support if norm == "support" else None, size=0.1)


@pytest.mark.parametrize("format", FEW)
@pytest.mark.parametrize("norm", ["running", "support"])
def test_resnet18(norm: str, format: str) -> None:
    model = mp.attach(randomised(resnet18()), FEW[format], norm=norm)
    x, support = randn(TASKS, 2, 3, 32, 32), randn(TASKS, 3, 3, 32, 32, seed=1)
    assert_equals_merged(model, x, support if norm == "support" else None, size=0.1)


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="pip install 'metapeft[transformers]'")


@pytest.mark.parametrize("format", FEW)
@pytest.mark.parametrize("kind", ["bert", "bert, tied", "gpt2"])
def test_transformers(transformers: ModuleType, kind: str, format: str) -> None:
    model = mp.attach(randomised(tiny(transformers, kind)), FEW[format])
    assert_equals_merged(model, text(TASKS))


def test_attention_masks_reach_the_backbone(transformers: ModuleType) -> None:
    model = mp.attach(randomised(tiny(transformers, "bert")), mp.LoRA(2), targets=["*query", "*value"])
    assert sorted({name.split(".")[-2] for name in model.sites}) == ["query", "value"]
    x, factors = text(TASKS), random_factors(model, TASKS)
    output = model(x, factors)
    hidden = {**x, "input_ids": torch.where(x["attention_mask"] == 1, x["input_ids"], 7)}
    assert_close(model(hidden, factors), output, 1e-12)
    assert not torch.allclose(
        model({**x, "attention_mask": torch.ones_like(x["attention_mask"])}, factors), output
    )
    assert model.features(x, factors).shape == (TASKS, 2, 8)


def test_words_alone_and_other_entries_pass_through(transformers: ModuleType) -> None:
    model = mp.attach(randomised(tiny(transformers, "bert")), mp.CP(1))
    factors, x = random_factors(model, TASKS), text(TASKS, padded=False)
    expected = model(x, factors)
    assert_close(model({"input_ids": x["input_ids"], "output_attentions": False}, factors), expected, 1e-12)
    assert_close(model(x["input_ids"], factors), expected, 1e-12)


def test_tied_output_layer_of_gpt2_has_one_update(transformers: ModuleType) -> None:
    model = mp.attach(randomised(tiny(transformers, "gpt2")), mp.LoRA(2))
    assert "transformer.wte.weight" in model.sites
    assert "lm_head.weight" not in model.sites
    assert model.factors()["transformer.h.0.attn.c_attn.weight.A"].shape == (1, 2, 8)
    assert model.factors()["transformer.h.0.attn.c_attn.weight.B"].shape == (1, 24, 2)


@pytest.mark.peers
@pytest.mark.parametrize("format", FEW)
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_torchvision(torchvision: ModuleType, name: str, format: str) -> None:
    options = {"num_classes": 4}
    if name == "vit_b_16":
        net = torchvision.models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=12, **options
        )
    else:
        net = torchvision.models.resnet18(**options)
    norm = "support" if name == "resnet18" else "running"
    model = mp.attach(randomised(net), FEW[format], norm=norm)
    # large enough for the last statistics: of two images of 1x1 they turn a change of 1e-15 into one of 1e-9
    size = 64 if name == "resnet18" else 32
    x, support = randn(TASKS, 1, 3, size, size), randn(TASKS, 3, 3, size, size, seed=1)
    assert_equals_merged(model, x, support if norm == "support" else None, size=0.02)


@pytest.mark.peers
@pytest.mark.parametrize("format", FEW)
@pytest.mark.parametrize("norm", ["running", "support"])
def test_efficientnet_of_timm(timm: ModuleType, norm: str, format: str) -> None:
    model = mp.attach(
        randomised(timm.create_model("tf_efficientnet_lite0", num_classes=4)), FEW[format], norm=norm
    )
    x, support = randn(TASKS, 1, 3, 64, 64), randn(TASKS, 3, 3, 64, 64, seed=1)
    assert_equals_merged(model, x, support if norm == "support" else None, size=0.02)


@pytest.mark.parametrize("name", OURS)
def test_backbone_is_left_alone_and_shared(name: str) -> None:
    make, shape = OURS[name]
    net = randomised(make())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    model = mp.attach(net, mp.LoRA(2))
    x = randn(2, 2, *shape)
    factors = random_factors(model, 2)
    output = model(x, factors)
    merged = model.merged(task(factors, 0))
    with torch.no_grad():
        for value in merged.parameters():
            value.zero_()
    assert torch.equal(model(x, factors), output)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training
    with torch.no_grad():
        next(net.parameters()).add_(1.0)  # the user's module and the model are one storage
    assert not torch.equal(model(x, factors), output)
    replaced = model(x, factors, weights={key: before[key] for key, _ in net.named_parameters()})
    assert_close(replaced, output, 1e-13)


def test_images_stay_uint8_until_they_reach_the_model() -> None:
    net = randomised(mp.backbones.conv4(ways=3, channels=1, width=4))
    images = torch.randint(
        256, (2, 3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model = mp.attach(net, mp.LoRA(2))
    factors = model.factors()
    assert_close(model(images, factors), model(images.double() / 255, factors), 1e-13)
    own = mp.attach(net, mp.LoRA(2), preprocess=lambda x: x.double() / 100 - 1)
    assert_close(own(images, factors), model(images.double() / 100 - 1, factors), 1e-13)
    assert_close(
        own(images.double(), factors), model(images.double(), factors), 1e-13
    )  # floats pass unchanged


def test_classifier_and_features() -> None:
    net = randomised(mp.backbones.conv4(ways=3, channels=1, width=4))
    x = randn(2, 3, 1, 28, 28)
    model = mp.attach(net, mp.LoRA(2), targets="body")
    assert f"{model.classifier}.weight" not in model.sites
    head = mp.attach(net, mp.Full(), targets="head")
    assert set(head.sites) == {f"{model.classifier}.weight", f"{model.classifier}.bias"}
    factors = random_factors(head, 2)
    features = head.features(x, factors)
    own = net.get_submodule(str(model.classifier))
    for number in range(2):
        delta = {name.split(".")[-2]: value[number] for name, value in factors.items()}
        expected = F.linear(features[number], own.weight + delta["weight"], own.bias + delta["bias"])
        assert_close(head(x, factors)[number], expected, 1e-12)


def test_a_guess_of_the_classifier_is_dropped() -> None:
    """The last Linear of a network that ends in something else is no classifier."""
    net = randomised(nn.Sequential(nn.Linear(4, 3), nn.Tanh()))
    x = randn(2, 3, 4)
    model = mp.attach(net, mp.LoRA(1))
    factors = model.factors()
    assert torch.equal(model.features(x, factors), model(x, factors))
    assert model.classifier is None
    for model in (mp.attach(net, mp.LoRA(1), classifier="0"), mp.attach(net, mp.LoRA(1), targets=["head"])):
        with pytest.raises(ValueError, match="'0' does not make the backbone's output"):
            model(x, factors)


def test_no_update_at_all() -> None:
    net, x = randomised(mp.backbones.conv4(ways=3, channels=1, width=4)), randn(2, 3, 1, 28, 28)
    model = mp.attach(net, {})
    assert model.factors() == {}
    assert_close(model(x, {})[1], call(net.eval(), x[1]), 1e-12)


def test_a_format_for_each_pattern() -> None:
    net = mp.backbones.vit(ways=3, width=8, depth=1, heads=2)
    rules = {
        "*norm*": mp.Full(),
        "blocks.0.attention.query.bias": None,
        "blocks.*": mp.LoRA(1),
        "head": mp.CP(2),
    }
    model = mp.attach(net, rules)
    assert model.sites["blocks.0.norm1.weight"].format == mp.Full()
    assert model.sites["blocks.0.linear1.weight"].format == mp.LoRA(1)
    assert model.sites["classifier.weight"].format == mp.CP(2)
    assert "patches.weight" not in model.sites
    assert set(mp.attach(net, mp.Full(), targets=nn.LayerNorm).sites) == {
        n for n in model.sites if "norm" in n
    }
