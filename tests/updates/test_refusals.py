"""What cannot be attached or run is refused by name, in one sentence."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import metapeft as mp
from tests.updates.helpers import randn, random_factors, randomised


def network() -> nn.Module:
    return randomised(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


class Checkpointed(nn.Module):
    gradient_checkpointing = True

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)


def compiled_to_script() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.jit.script(nn.Linear(4, 3)))


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), {nn.Linear}
        )


def integers() -> nn.Module:
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    return layer


BACKBONES: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "no module": (lambda: "resnet", mp.LoRA(1), "backbone=str"),
    "compiled": (lambda: nn.Sequential(torch.compile(nn.Linear(4, 3))), mp.LoRA(1), "0 .* is compiled"),
    "scripted": (compiled_to_script, mp.LoRA(1), "TorchScript"),
    "parallel": (lambda: nn.Sequential(nn.DataParallel(nn.Linear(4, 3))), mp.LoRA(1), "0 .*replicates"),
    "checkpointing": (lambda: nn.Sequential(Checkpointed()), mp.LoRA(1), "0 .*checkpointing"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), mp.LoRA(1), "0 .*lazy"),
    "quantised": (quantised, mp.Full(), "0 .*quantised"),
    "integers": (integers, mp.LoRA(1), "'weight'.*int8"),
    "sparse": (lambda: nn.Embedding(4, 3, sparse=True), mp.LoRA(1), "'weight'.*sparse"),
    "max norm": (lambda: nn.Embedding(4, 3, max_norm=1.0), mp.Full(), "'weight'.*max_norm"),
    "no copy": (lambda: nn.Sequential(Holding(), nn.Linear(4, 3)), mp.LoRA(1), "cannot be copied"),
}


class Holding(nn.Module):
    """Keeps a computed tensor, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.ones(2, requires_grad=True) * 2


@pytest.mark.parametrize("case", BACKBONES)
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_backbones(case: str) -> None:
    make, format, match = BACKBONES[case]
    with pytest.raises(ValueError, match=match) as refusal:
        mp.attach(make(), format)
    assert "\n" not in str(refusal.value)


TARGETS: dict[str, tuple[Any, dict, str]] = {
    "unknown": (mp.LoRA(1), {"targets": "0.wieght"}, "'0.wieght' matches no .* did you mean '0.weight'"),
    "unknown pattern": (mp.LoRA(1), {"targets": ["0", "conv*"]}, "conv"),
    "unknown type": (mp.LoRA(1), {"targets": nn.Conv2d}, "Conv2d"),
    "first match wins": ({"0": mp.LoRA(1), "0.*": mp.Full()}, {}, "matches no parameter that is still free"),
    "shadowed": ({"*": mp.Full(), "0": mp.LoRA(1)}, {}, "'0' matches no parameter that is still free"),
    "bias": (mp.LoRA(1), {"targets": "0.bias"}, "'0.bias' matches only .* LoRA cannot act on"),
    "rank": (mp.LoRA(4), {"targets": "2"}, "LoRA.* on '2.weight'.* largest rank is 3"),
    "ring": (mp.TensorRing((2, 4, 2)), {"targets": "2.weight"}, "largest rank is 3"),
    "dict and targets": ({"0": mp.LoRA(1)}, {"targets": "0"}, "targets='0'"),
    "no format": ("lora", {}, "format='lora'"),
    "no pattern": (mp.LoRA(1), {"targets": 3}, "targets=3"),
    "classifier": (mp.LoRA(1), {"classifier": "1"}, "classifier='1' is no Linear"),
    "head": (mp.LoRA(1), {"classifier": None, "targets": "head"}, "no classifier"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets(case: str) -> None:
    format, options, match = TARGETS[case]
    with pytest.raises(ValueError, match=match):
        mp.attach(network(), format, **options)


def test_rank_is_cut_under_all_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = mp.attach(network(), mp.LoRA(4, alpha=8.0))
    assert model.sites["0.weight"].format == mp.LoRA(4, alpha=8.0)
    assert model.sites["2.weight"].format == mp.LoRA(3, alpha=6.0)  # the scale stays 2
    assert "2.weight to 3" in caplog.text


def test_factors() -> None:
    model, x = mp.attach(network(), mp.CP(2)), randn(3, 4, 4)
    good = random_factors(model, 3)
    bad: list[tuple[dict, str]] = [
        ({name: value for name, value in good.items() if name != "0.weight.B"}, "factors of '0.weight' are"),
        ({**good, "0.wieght.A": good["0.weight.A"]}, "'0.wieght.A', which belongs to no update"),
        ({**good, "0.weight.C": good["0.weight.A"]}, "factors of '0.weight' are"),
        ({**good, "0.weight.A": good["0.weight.A"][:2]}, "0.weight.A has shape \\(2, 2, 4\\)"),
        ({**good, "0.weight.A": good["0.weight.A"][0]}, "0.weight.A has shape \\(2, 4\\)"),
        ({**good, "0.weight.A": good["0.weight.A"].transpose(1, 2)}, "0.weight.A has shape"),
        ({**good, "0.weight.A": good["0.weight.A"].float()}, "0.weight.A has dtype torch.float32"),
    ]
    for factors, match in bad:
        with pytest.raises(ValueError, match=match):
            model(x, factors)
    model(x, good)


def test_inputs() -> None:
    model = mp.attach(network(), mp.LoRA(1))
    start = model.factors()
    for x, match in [
        (randn(4), "\\(T, B, ...\\)"),
        ("text", "x=str"),
        ((randn(2, 3, 4), randn(2, 4, 4)), "the same \\(tasks, inputs\\) axes"),
        (randn(0, 3, 4), "at least one task"),
        (randn(2, 0, 4), "at least one task"),
        (randn(2, 3, 4).float(), "x has dtype torch.float32"),
        (torch.full((2, 3, 4), float("nan"), dtype=torch.float64), "NaN or infinity"),
    ]:
        with pytest.raises(ValueError, match=match):
            model(x, start)
    model(randn(2, 3, 4), start)


def test_weights() -> None:
    model, x = mp.attach(network(), mp.LoRA(1)), randn(2, 3, 4)
    for weights, match in [
        ({"0.wieght": randn(5, 4)}, "'0.wieght', which is no parameter"),
        ({"0.weight": randn(4, 5)}, "weights\\['0.weight'\\] is"),
        ({"0.weight": randn(5, 4).float()}, "float32"),
    ]:
        with pytest.raises(ValueError, match=match):
            model(x, model.factors(), weights=weights)


class Broken(nn.Module):
    """Fails on several tasks in a way that `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.idle = kind, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        if self.kind == "idle":
            return y
        if self.kind == "mixes inputs":
            return self.idle(y - y.mean(0))
        if self.kind == "skips its layer":
            return y @ self.idle.weight.T + 0 * self.idle(y)
        if self.kind == "turns the batch inside":
            return self.idle(y.T.reshape(y.shape))
        if self.kind == "no tensor":
            return [self.idle(y)]
        if self.kind == "another first axis":
            return self.idle(y).T
        if self.kind == "infinite":
            return self.idle(y) / 0
        return self.idle(y)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("mixes inputs", "tasks run at once differ"),
        ("skips its layer", "tasks run at once differ"),
        ("turns the batch inside", "tasks run at once differ|not with one update per task"),
        ("no tensor", "returned list"),
        ("another first axis", "its first axis must be the batch"),
        ("infinite", "not finite"),
        ("", None),
    ],
)
def test_first_batch(kind: str, match: str | None) -> None:
    model = mp.attach(randomised(Broken(kind)), mp.LoRA(2), classifier=None)
    for _ in range(2):  # a refusal is no pass
        if match is None:
            model(randn(2, 3, 4), model.factors())
            continue
        with pytest.raises(ValueError, match=match):
            model(randn(2, 3, 4), model.factors())


def test_a_layer_that_never_runs(caplog: pytest.LogCaptureFixture) -> None:
    """Under "all" it is said; named, it is refused."""
    x = randn(2, 3, 4)
    with caplog.at_level(logging.WARNING):
        model = mp.attach(randomised(Broken("idle")), mp.LoRA(2), classifier=None)
        model(x, model.factors())
        model(x, model.factors())
    assert caplog.text.count("reads none of idle.weight") == 1
    named = mp.attach(randomised(Broken("idle")), mp.LoRA(2), targets=["layer", "idle"], classifier=None)
    with pytest.raises(ValueError, match=r"idle.weight.*never runs the layer"):
        named(x, named.factors())


def test_all_leaves_out_what_cannot_and_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    """The dictionary that the warning has gives the same without a warning; a layer that is named is refused."""
    net = nn.Sequential(nn.Linear(4, 5), integers(), nn.Embedding(4, 3, sparse=True))
    with caplog.at_level(logging.WARNING):
        model = mp.attach(net, mp.LoRA(1))
    assert list(model.sites) == ["0.weight"]
    assert sorted(model.left_out) == ["1.weight", "2.weight"]
    assert len(caplog.records) == 1
    assert (
        "attach(backbone, {'1.weight': None, '2.weight': None, 'all': LoRA(rank=1, alpha=None)})"
        in caplog.text
    )
    caplog.clear()
    same = mp.attach(net, {"1.weight": None, "2.weight": None, "all": mp.LoRA(1)})
    assert list(same.sites) == list(model.sites)
    assert not caplog.records
    with pytest.raises(ValueError, match=r"LoRA cannot act on '2.weight' .Embedding.*sparse"):
        mp.attach(net, mp.LoRA(1), targets=["0", "2"])


class CheckpointedInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, x, use_reentrant=False)


def test_checkpointing_inside_forward() -> None:
    model = mp.attach(randomised(CheckpointedInside()), mp.LoRA(1))
    factors = {name: value.requires_grad_() for name, value in random_factors(model, 2).items()}
    loss = model(randn(2, 3, 4), factors).square().sum()
    with pytest.raises(RuntimeError, match="turn it off"):
        loss.backward()


def test_skeleton_runs_only_through_the_model() -> None:
    model = mp.attach(network(), mp.LoRA(1))
    with pytest.raises(RuntimeError, match="only through the model"):
        model.backbone(randn(3, 4))


def test_an_option_that_a_forward_does_not_have_is_refused() -> None:
    model = mp.attach(nn.Linear(4, 3), mp.LoRA(1))
    for run in (model, model.features):
        with pytest.raises(TypeError, match=r"takes no masc=; its options are weights, mask, "):
            run(randn(2, 3, 4), model.factors(), masc=None)
