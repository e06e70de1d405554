"""An adapter as the start of models, learners and searches: whole, and on the weights that it was trained on."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import assert_close, call, randn, random_factors, randomised, task

X, Y = randn(12, 4), torch.arange(12) % 3


def network(seed: int = 0) -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), seed).eval()


def exported(folder: Path, *, formats: object = mp.LoRA(3, alpha=2.0)) -> Tensor:
    """Write an adapter of `network()`; returns its outputs on X."""
    model = mp.attach(network(), formats)  # type: ignore[arg-type]
    factors = task(random_factors(model, 1), 0)
    mp.export_peft(model, factors, folder)
    found = call(model.merged(factors), X)
    assert not torch.allclose(found, network()(X))
    return found


def test_the_model_starts_from_the_update(tmp_path: Path) -> None:
    expected = exported(tmp_path)
    model, factors = mp.from_peft(network(), tmp_path)
    assert_close(model(X.unsqueeze(0), factors)[0], expected)
    assert_close(call(model.merged(task(factors, 0)), X), expected)
    for again in (model.factors(), mp.Learner(model, outer=("factors",)).model.factors()):
        assert all(torch.equal(again[name], value) for name, value in factors.items())
    factors["0.weight.B"].zero_()
    assert model.factors()["0.weight.B"].any()


@pytest.mark.parametrize("selection", [None, "softmax"])
@pytest.mark.parametrize("head", ["learned", "zero"])
def test_a_learner_starts_from_the_whole_update(tmp_path: Path, selection: str | None, head: str) -> None:
    expected = exported(tmp_path)
    model, _ = mp.from_peft(network(), tmp_path)
    learner = mp.Learner(model, mp.inner.SGD(0, 0.1), outer=("factors",), selection=selection, head=head)
    adapted = learner.adapt(X, Y)
    if head == "learned":
        assert_close(adapted(X), expected)
    kept = {name: value for name, value in model.factors().items() if head == "learned" or name[0] == "0"}
    assert set(adapted.single_factors()) == set(kept)
    for name, value in adapted.single_factors().items():
        assert_close(value, kept[name][0])


def test_training_and_searches_start_from_the_whole_update(tmp_path: Path) -> None:
    expected = exported(tmp_path)
    model, _ = mp.from_peft(network(), tmp_path)
    still = {"steps": 1, "lr": 0.0, "options": {"weight_decay": 0.0}, "loss": F.cross_entropy}
    assert_close(mp.finetune(model, (X, Y), **still)(X), expected)
    for method in (mp.FisherRanks(), mp.PruneRanks(), mp.AutoLoRARanks(lr=0.0)):
        found = mp.search_ranks(model, (X, Y), (X, Y), method=method, total=6, **still)
        assert_close(found.attached()(X.unsqueeze(0), found.factors)[0], expected, 1e-8)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    expected = exported(tmp_path)
    with pytest.raises(ValueError, match="trained on other weights: their SHA-256 differs"):
        mp.from_peft(network(1), tmp_path)
    other = network()
    with torch.no_grad():
        other[2].bias[0] += 1e-3  # type: ignore[index,union-attr]
    with pytest.raises(ValueError, match="check_base=False"):
        mp.from_peft(other, tmp_path)
    assert mp.from_peft(other, tmp_path, check_base=False)[0].sites
    model, factors = mp.from_peft(
        network().float(), tmp_path
    )  # the same weights, but for digits that are gone
    assert factors["0.weight.A"].dtype == torch.float32
    assert_close(model(X.float().unsqueeze(0), factors)[0].double(), expected, 1e-5)


def test_statistics_of_the_base_are_part_of_it(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return randomised(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))).eval()

    model = mp.attach(net(), mp.LoRA(1))
    mp.export_peft(model, task(random_factors(model, 1), 0), tmp_path)
    mp.from_peft(net(), tmp_path)
    other = net()
    other[1].running_mean += 0.1  # type: ignore[index,operator,assignment]
    with pytest.raises(ValueError, match="other weights"):
        mp.from_peft(other, tmp_path)


def test_a_classifier_that_is_saved_whole_may_be_any(tmp_path: Path) -> None:
    expected = exported(tmp_path, formats={"2": mp.Full(), "*": mp.LoRA(1)})
    other = network()
    other[2] = randomised(nn.Linear(6, 3), 5)  # type: ignore[index]
    model, factors = mp.from_peft(other, tmp_path)
    assert_close(model(X.unsqueeze(0), factors)[0], expected)


def test_the_orders_of_before(tmp_path: Path) -> None:
    model = mp.attach(network(), mp.LoRA(1))
    own = task(random_factors(model, 1), 0)
    mp.export_peft(model, own, tmp_path, weights={"0.bias": torch.ones(6).double()})
    with pytest.warns(FutureWarning, match=r"write load_base\(backbone, folder\)"):
        base = mp.load_base(tmp_path, network())  # type: ignore[arg-type]
    assert base[0].bias.tolist() == [1.0] * 6  # type: ignore[index,union-attr]
    with pytest.warns(FutureWarning, match=r"from_peft\(backbone, folder\)"):
        formats, factors = mp.import_peft(tmp_path, base)
    assert formats == {"0.weight": mp.LoRA(1), "2.weight": mp.LoRA(1)}
    assert all(torch.equal(factors[name], value) for name, value in own.items())
    for one in (mp.load_base, mp.from_peft):
        with pytest.raises(ValueError, match="backbone is of type"):
            one(str(tmp_path), str(tmp_path))  # type: ignore[operator]
        with pytest.raises(ValueError, match="folder is of type int"):
            one(network(), 3)  # type: ignore[operator]


def test_the_readme_has_the_lines_that_load_it(tmp_path: Path) -> None:
    def net() -> nn.Module:
        return mp.backbones.conv4(ways=3, width=4, channels=1, size=16, seed=1)

    learner = mp.methods.lora_ml(net(), rank=2)
    x = torch.randint(256, (6, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    adapted = learner.adapt(x, torch.arange(6) % 3, classes=["a cat", 'a "dog"', "ein Pferd"])
    adapted.export_peft(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    for said in (
        "library_name: peft",
        '"a \\"dog\\""',
        "1 channel(s), 16 x 16",
        "SHA-256",
        "mp.backbones.conv4(",
    ):
        assert said in card, said
    kept = json.loads((tmp_path / "adapter" / "metapeft.json").read_text())
    assert kept["classes"] == ["a cat", 'a "dog"', "ein Pferd"]
    block = re.findall(r"```python\n(.*?)```", card, flags=re.S)[0].replace("...", "net.state_dict()")
    (tmp_path / "block.py").write_text(block)
    names = runpy.run_path(str(tmp_path / "block.py"), {"FOLDER": tmp_path / "adapter", "net": net()})
    assert_close(names["plain"](x / 255), adapted(x), 1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_base_is_named_with_its_revision(tmp_path: Path) -> None:
    net = network()
    net.config = type("Config", (), {"_name_or_path": "org/base", "_commit_hash": "abc", "vocab_size": 9})()
    model = mp.attach(net, mp.LoRA(1))
    mp.export_peft(model, task(random_factors(model, 1), 0), tmp_path, classes=["x", "y", "z"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "abc")
    card = (tmp_path / "README.md").read_text()
    assert 'base_model: "org/base"' in card
    assert 'from_pretrained("org/base", revision="abc")' in card
    assert '- tokenizer: that of "org/base", 9 tokens' in card
    with pytest.raises(ValueError, match="org/base of revision abc"):
        mp.from_peft(network(1), tmp_path)
    with pytest.raises(ValueError, match="classes='xyz'"):
        mp.export_peft(model, task(model.factors(), 0), tmp_path / "b", classes="xyz")
