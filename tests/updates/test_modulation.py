"""Shifts and gates beside CP and tensor-ring updates: against merged modules, by their formula, through every norm."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.updates.formats.decomposition import decompose
from metapeft.updates.formats.format import Format
from tests.updates.helpers import (
    affects,
    assert_close,
    assert_equals_merged,
    call,
    moved,
    randn,
    random_factors,
    randomised,
)  # fmt: skip
from tests.updates.networks import Attention

TASKS, ITEMS = 3, 4
FORMATS: dict[str, Format] = {
    "both": mp.CP(2, shift=True, gate=True),
    "alone": mp.CP(0, shift=True, gate=True),
    "shift": mp.CP(2, alpha=3.0, shift=True),
    "gated ring": mp.TensorRing(2, gate=True),
}
LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(4, 5), (4,)),
    (nn.Linear(4, 5, bias=False), (2, 3, 4)),
    (nn.Conv1d(4, 6, 3, padding=1, groups=2), (4, 7)),
    (nn.Conv2d(4, 6, 3, padding=1, stride=2, bias=False), (4, 6, 6)),
]


def conv1d(inner: int, out: int) -> nn.Module:
    layer: nn.Module = pytest.importorskip("transformers.pytorch_utils").Conv1D(out, inner)
    return layer


def per_input(model: Any, factors: dict[str, Tensor], items: int = ITEMS, seed: int = 5) -> dict[str, Tensor]:
    """The factors with everything that a generator can write replaced by one for each input."""
    generated = {f"{name}.{local}" for name, site in model.sites.items() for local in site.format.generated}
    return {
        name: randn(value.shape[0], items, *value.shape[1:], seed=seed) if name in generated else value
        for name, value in factors.items()
    }


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_layers(layer: nn.Module, shape: tuple[int, ...], format: str) -> None:
    model, x = mp.attach(randomised(layer), FORMATS[format]), randn(TASKS, ITEMS, *shape)
    assert_equals_merged(model, x)
    assert affects(model, x)
    factors = per_input(model, random_factors(model, TASKS))
    together = model(x, factors)
    for t in range(TASKS):
        for b in range(ITEMS):
            own = {n: v[t, b] if n.split(".")[-1] not in "AB" else v[t] for n, v in factors.items()}
            assert_close(together[t, b], call(model.merged(own), x[t, b : b + 1])[0])


@pytest.mark.parametrize("format", FORMATS)
def test_layers_that_store_their_weight_turned_round(format: str) -> None:
    turned = mp.attach(nn.Sequential(randomised(conv1d(4, 6))), FORMATS[format])
    assert_equals_merged(turned, randn(TASKS, ITEMS, 3, 4))


def test_the_formula() -> None:
    layer = randomised(nn.Conv2d(2, 3, 3))
    model, x = mp.attach(layer, mp.CP(2, shift=True, gate=True)), randn(TASKS, ITEMS, 2, 5, 5)
    factors = random_factors(model, TASKS)
    plain = {name: factors[f"weight.{name}"] for name in ("A", "B", "seed")}
    without = mp.attach(layer, mp.CP(2))(x, {f"weight.{name}": value for name, value in plain.items()})
    gate, shift = (factors[f"weight.{name}"].view(TASKS, 1, 3, 1, 1) for name in ("gate", "shift"))
    assert_close(model(x, factors), (1 + gate) * without + shift, 1e-14)
    assert not any(model.factors()[f"weight.{name}"].any() for name in ("gate", "shift"))
    assert_close(model(x, model.factors()).flatten(0, 1), layer(x.flatten(0, 1)), 1e-13)


def network() -> nn.Module:
    layers = [
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ]
    return randomised(nn.Sequential(*layers))


@pytest.mark.parametrize("norm", ["running", "support", "transductive"])
@pytest.mark.parametrize("format", FORMATS)
def test_between_a_convolution_and_its_norm(format: str, norm: str) -> None:
    """A chain of them runs as one step, but not across what acts between its members."""
    model, x = mp.attach(network(), FORMATS[format], norm=norm), randn(TASKS, ITEMS, 2, 6, 6)
    support = randn(TASKS, 5, 2, 6, 6, seed=1) if norm == "support" else None
    if norm == "transductive":
        factors = random_factors(model, TASKS)
        together = model(x, factors)
        alone = torch.cat(
            [model(x[t : t + 1], {n: v[t : t + 1] for n, v in factors.items()}) for t in range(TASKS)]
        )
        assert_close(together, alone)
    else:
        assert_equals_merged(model, x, support)


@pytest.mark.parametrize("format", FORMATS)
def test_first_and_second_derivatives_are_those_of_plain_weights(format: str) -> None:
    """Of a loss whose gradient in the factors is differentiated again, against `functional_call` on merged weights."""
    net = randomised(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    model, x = mp.attach(net, FORMATS[format]), randn(1, ITEMS, 3)
    factors = {n: v[:1].requires_grad_() for n, v in random_factors(model, 1).items() if v.numel()}
    empty = {n: v for n, v in model.factors().items() if not v.numel()}

    def by_hand() -> Tensor:
        given = {**factors, **empty}
        plain = dict(given.items())
        weights = moved(model, dict(net.named_parameters()), plain)
        y = x[0]
        for layer, name in (("0", "0.weight"), ("2", "2.weight")):
            y = y @ weights[name].T + weights[f"{layer}.bias"]
            if f"{name}.gate" in given:
                y = y * (1 + given[f"{name}.gate"][0])
            if f"{name}.shift" in given:
                y = y + given[f"{name}.shift"][0]
            y = y.tanh() if layer == "0" else y
        return y

    results = []
    for output in (model(x, {**factors, **empty})[0], by_hand()):
        first = torch.autograd.grad(output.square().sum(), list(factors.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(factors.values()))
        results.append([*first, *second])
    for found, expected in zip(*results):
        assert_close(found, expected)


def test_where_a_layer_cannot_have_them(caplog: pytest.LogCaptureFixture) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.words(x))  # type: ignore[no-any-return]

    nets: list[tuple[nn.Module, str]] = [
        (randomised(Tied()), "words.weight"), (nn.Sequential(nn.Embedding(7, 4)), "0.weight"), (
randomised(Attention(True, cross=False)), "attention.in_proj_weight")
    ]  # fmt: skip
    for net, name in nets:
        with pytest.raises(ValueError, match=r"shift and gate act on|that of another layer"):
            mp.attach(net, mp.CP(2, shift=True), targets=name)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "metapeft"):
            model = mp.attach(net, mp.CP(2, gate=True))
        assert name in caplog.text
        assert "no shift and gate" in caplog.text
        assert not any(factor.endswith(".gate") for factor in model.factors() if factor.startswith(name))


def test_export_says_what_peft_cannot_hold(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = mp.attach(nn.Sequential(nn.Linear(3, 2)).double(), mp.CP(1, shift=True))
    learner = mp.Learner(model, mp.inner.SGD(2, 0.5), outer=(), head="prototype-init")
    adapted = learner.adapt(randn(4, 3), torch.tensor([0, 1, 0, 1]))
    if adapted.factors:
        from metapeft.updates.peft_export import export_peft

        one = {name: value[0] for name, value in random_factors(model, 1).items()}
        with pytest.raises(ValueError, match=r"'0\.weight' shifts or gates"):
            export_peft(model, one, tmp_path / "a")
        assert not (tmp_path / "a").exists()
        one["0.weight.shift"] = torch.zeros_like(one["0.weight.shift"])
        export_peft(model, one, tmp_path / "b")


def test_a_dictionary_has_more_terms_than_the_layer_has_rank(tmp_path: Path) -> None:
    layer = randomised(nn.Sequential(nn.Linear(1, 4)))
    with pytest.raises(ValueError, match="its largest rank is 1"):
        mp.attach(layer, mp.CP(3), targets="0.weight")
    for format in (mp.CP(3, dictionary=True), mp.TensorRing(2, dictionary=True)):
        model = mp.attach(layer, format, targets="0.weight")
        assert model.factors()["0.weight.A"].shape[1] == (3 if isinstance(format, mp.CP) else 2)
        assert_equals_merged(model, randn(TASKS, ITEMS, 1))
    assert repr(mp.CP(3)) == "CP(rank=3, alpha=None)"
    assert repr(mp.CP(3, dictionary=True)) == "CP(rank=3, alpha=None, dictionary=True)"


def test_settings_of_runs_say_them_only_where_they_are_used(tmp_path: Path) -> None:
    from metapeft.learner import settings

    assert settings.of(mp.CP(2)) == {"name": "CP", "fields": {"rank": 2, "alpha": None}}
    modulated = mp.TensorRing((1, 2, 1), shift=True)
    assert settings.built(settings.of(modulated), "format") == modulated
    body = mp.backbones.mlp(3, 2, hidden=(4,))
    learner = mp.methods.metapeft(body, format=mp.CP(2, shift=True, gate=True), selection=None)
    assert {name.rpartition(".")[2] for name in learner.seeds} == {"seed", "shift", "gate"}
    mp.save(learner, tmp_path / "run")
    assert mp.load(tmp_path / "run").seeds == learner.seeds
    with pytest.raises(ValueError, match="shift"):
        mp.CP(2, shift=1)  # type: ignore[arg-type]


def test_decomposition_leaves_them_at_zero() -> None:
    delta = randn(3, 4)
    for format in (mp.CP(3, shift=True, gate=True), mp.TensorRing((1, 3, 1), gate=True)):
        factors = decompose(delta, format)
        assert set(factors) == set(format.shapes(mp.attach(nn.Linear(4, 3), format).sites["weight"].geometry))
        assert not any(factors[name].any() for name in ("shift", "gate") if name in factors)
