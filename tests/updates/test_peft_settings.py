"""Adapters of others: settings that are no plain LoRA, patterns that are no names, weights that layers share."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.updates.peft_import import read_adapter
from tests.updates.helpers import assert_close, call, randn, random_factors, randomised, task
from tests.updates.networks import Tied

#: what PEFT calls a start -> whether the base weights stay as they are
STARTS = {True: True, False: True, "gaussian": True, "orthogonal": True, "eva": True, "mica": True}
STARTS |= {"pissa": False, "pissa_niter_4": False, "olora": False}


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    return pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")


def network() -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))).float().eval()


def trained(adapted: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora" in name:
                value += 0.3
    return adapted.eval()


def imported(folder: Path, backbone: nn.Module, x: Tensor) -> Tensor:
    formats, factors = read_adapter(folder, backbone)
    return call(mp.attach(backbone, formats, classifier=None).merged(factors), x)


@pytest.mark.parametrize("start", STARTS, ids=str)
@pytest.mark.filterwarnings("ignore:.*(EVA config|eva initialization):UserWarning")
def test_a_start_that_changes_the_base_weights_is_refused(
    peft: ModuleType, tmp_path: Path, start: bool | str
) -> None:
    """PiSSA's and OLoRA's: with the base's own weights the adapter was off by 0.5 to 1.1."""
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=start)
    adapted = trained(peft.get_peft_model(network(), config))
    adapted.save_pretrained(tmp_path)
    x = randn(3, 6).float()
    if STARTS[start]:
        assert_close(imported(tmp_path, network(), x), adapted(x), 1e-6)
        return
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}'.*path_initial_model_for_weight_conv"):
        read_adapter(tmp_path, network())


@pytest.mark.filterwarnings("ignore:.* changes the base weights of the model:UserWarning")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_way_out_that_the_refusal_names_works(peft: ModuleType, tmp_path: Path, start: str) -> None:
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=start)
    adapted = peft.get_peft_model(network(), config)
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "initial")
    adapted.peft_config["default"].init_lora_weights = start
    trained(adapted).save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    x = randn(3, 6).float()
    assert_close(imported(tmp_path / "plain", network(), x), adapted(x), 1e-6)


def ours(folder: Path, **settings: Any) -> Path:
    """An adapter on both layers of the network, with further settings in its configuration."""
    model = mp.attach(network(), {"0": mp.LoRA(2), "2": mp.LoRA(1)}, classifier=None)
    mp.export_peft(model, task(random_factors(model, 1), 0), folder)
    return with_settings(folder, **settings)


def with_settings(folder: Path, **settings: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "lora_ga"},
        {"init_lora_weights": "a start of tomorrow"},
        {"init_lora_weights": 3},
        {"use_dora": True},
        {"lora_bias": True},
        {"use_qalora": True},
        {"use_bdlora": {"blocks": 2}},
        {"alora_invocation_tokens": [1]},
        {"monteclora_config": {"num_samples": 8}},
        {"kasa_config": {}, "arrow_config": {"top_k": 2}},
        {"target_parameters": ["0.weight"]},
        {"trainable_token_indices": [3]},
        {"a_setting_of_tomorrow": 1},
    ],
    ids=str,
)
def test_settings_that_are_not_known_to_be_plain_are_refused(tmp_path: Path, settings: dict) -> None:
    name = list(settings)[-1]
    with pytest.raises(ValueError, match=f"{name}="):
        read_adapter(ours(tmp_path, **settings), network())


def test_settings_that_are_off_or_only_for_training_are_read(tmp_path: Path) -> None:
    settings = {"use_dora": False, "kasa_config": None, "loftq_config": {}, "a_setting_of_tomorrow": False}
    training = {"lora_dropout": 0.3, "runtime_config": {"ephemeral_gpu_offload": True}, "peft_version": "9"}
    folder = ours(tmp_path, **settings, **training)
    assert read_adapter(folder, network())[0] == {"0.weight": mp.LoRA(2), "2.weight": mp.LoRA(1)}


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("encoder.*(" + ".*" * 4 + ")!", "for ever"),
        ("([a-z.0-9]+)+!", "for ever"),
        ("(" * 40, "no regular expression"),
        ("(a*)*", "for ever"),
        ("(.|.)" * 40 + "!", "for ever"),
        ("a?" * 40 + "!", "for ever"),
        ("(0{1,9}){1,9}", "for ever"),
        ("(?=0)0", "for ever"),
        ("(.)\\1", "for ever"),
        ("0" * 2000, "for ever"),
        ("(" * 500 + "0" + ")" * 500, "no regular expression|for ever"),
        ("(", "no regular expression"),
        ("0)|(2", "no regular expression"),
        ("[", "no regular expression"),
        ("*", "no regular expression"),
    ],
)
def test_patterns_of_others_are_matched_within_a_limit(tmp_path: Path, pattern: str, match: str) -> None:
    net = nn.Sequential()
    net.add_module("encoder_block_with_a_long_name" * 2, network())
    model = mp.attach(net, mp.LoRA(1), classifier=None)
    mp.export_peft(model, task(random_factors(model, 1), 0), tmp_path)
    with_settings(tmp_path, alpha_pattern={pattern: 1})
    began = time.perf_counter()
    with pytest.raises(ValueError, match=match) as refusal:
        read_adapter(tmp_path, net)
    assert time.perf_counter() - began < 2.0
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"0": 4}, {"body.0": 4.0, "body.10": 8.0, "c++": 8.0}),
        ({"body.0": 4, "0": 2}, {"body.0": 4.0, "body.10": 8.0, "c++": 8.0}),
        ({"^0$": 4, "^body\\.0$": 3}, {"body.0": 3.0, "body.10": 8.0, "c++": 8.0}),
        ({"[0-9]+": 4}, {"body.0": 4.0, "body.10": 4.0, "c++": 8.0}),
        ({"body\\.(0|10)": 4}, {"body.0": 4.0, "body.10": 4.0, "c++": 8.0}),
        ({"b.*0": 4}, {"body.0": 4.0, "body.10": 4.0, "c++": 8.0}),
        ({"c++": 4}, {"body.0": 8.0, "body.10": 8.0, "c++": 4.0}),
        ({"c\\+\\+": 4}, {"body.0": 8.0, "body.10": 8.0, "c++": 4.0}),
        ({"c++": 4, ".*": 2}, {"body.0": 2.0, "body.10": 2.0, "c++": 2.0}),
    ],
    ids=str,
)
def test_patterns_are_read_by_pefts_own_rule(peft: ModuleType, patterns: dict, expected: dict) -> None:
    """The first that matches; the whole name, as it stands, is looked up last."""
    from metapeft.updates.peft_settings import alphas

    assert alphas({"lora_alpha": 8, "alpha_pattern": patterns}, list(expected), "adapter") == expected
    key = peft.utils.other.get_pattern_key
    assert {layer: patterns.get(key(patterns, layer), 8) for layer in expected} == expected


@pytest.mark.parametrize("alpha", ["8", None, float("nan"), True, [8]], ids=str)
def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, alpha: Any) -> None:
    with pytest.raises(ValueError, match="allowed is a finite number"):
        read_adapter(ours(tmp_path, alpha_pattern={"0": alpha}), network())


class Sharing(nn.Module):
    """Two layers of one weight, or one layer under two names, or both inside of one block under two names."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a if kind == "one layer" else nn.Linear(4, 4)
        if kind == "one weight":
            self.b.weight = self.a.weight
        self.head = nn.Sequential(nn.Linear(4, 4))
        self.again = self.head if kind == "one block" else nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.tanh(self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))))


def sharing(kind: str) -> nn.Module:
    return randomised(Sharing(kind)).float().eval()


@pytest.mark.parametrize(
    ("kind", "targets", "match"),
    [
        ("one weight", ["a"], "only one of the layers that share a weight"),
        ("one weight", ["b"], "only one of the layers that share a weight"),
        ("one weight", ["a", "b"], "adapts them differently"),
        ("one layer", ["a"], "a and b are one layer"),
        ("one block", ["head.0"], None),
        ("nothing", ["a", "head.0"], None),
    ],
)
def test_an_adapter_on_a_part_of_what_is_shared_is_refused(
    peft: ModuleType, tmp_path: Path, kind: str, targets: list[str], match: str | None
) -> None:
    """Here an update acts at each use of its weight: imported, one on `a` was off by 1.03, one on `b` by 2.2."""
    config = peft.LoraConfig(r=2, target_modules=targets)
    adapted = peft.get_peft_model(sharing(kind), config)
    torch.manual_seed(0)
    for name, value in adapted.named_parameters():
        if "lora" in name:
            value.data = torch.randn(value.shape)
    adapted.eval().save_pretrained(tmp_path)
    if match is None:
        x = randn(3, 4).float()
        assert_close(imported(tmp_path, sharing(kind), x), adapted(x), 1e-6)
        return
    with pytest.raises(ValueError, match=match):
        read_adapter(tmp_path, sharing(kind))


@pytest.mark.filterwarnings(
    "ignore:Found missing adapter keys.*again.0:UserWarning"
)  # which are those of head.0
@pytest.mark.parametrize("kind", ["one weight", "one layer", "one block", "nothing"])
def test_what_is_shared_is_exported_if_peft_acts_alike(peft: ModuleType, tmp_path: Path, kind: str) -> None:
    model = mp.attach(sharing(kind), mp.LoRA(2), classifier=None)
    factors = task(random_factors(model, 1), 0)
    if kind == "one layer":  # PEFT puts its adapter on `a` alone: off by 0.48
        with pytest.raises(ValueError, match="a and b are one layer"):
            mp.export_peft(model, factors, tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()
        return
    mp.export_peft(model, factors, tmp_path)
    x = randn(3, 4).float()
    adapted = peft.PeftModel.from_pretrained(sharing(kind), tmp_path).eval()
    assert_close(adapted(x), call(model.merged(factors), x), 1e-6)
    assert_close(imported(tmp_path, sharing(kind), x), call(model.merged(factors), x), 1e-6)


def test_one_of_two_tied_layers_saved_whole_is_refused(peft: ModuleType, tmp_path: Path) -> None:
    net = randomised(Tied(linear_first=False))
    adapted = peft.get_peft_model(net, peft.LoraConfig(target_modules=["words"], modules_to_save=["output"]))
    adapted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="only one of the layers that share a weight"):
        read_adapter(tmp_path, randomised(Tied(linear_first=False)))


def test_a_backbone_that_is_itself_the_layer_is_refused(tmp_path: Path) -> None:
    model = mp.attach(nn.Linear(3, 2), mp.LoRA(1), classifier=None)
    with pytest.raises(ValueError, match="is itself the layer"):
        mp.export_peft(model, task(random_factors(model, 1), 0), tmp_path / "adapter")
