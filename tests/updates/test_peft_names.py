"""Names that a user may give to a module, out and in again: regex characters, digits, words of both libraries."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from metapeft.updates.peft_import import read_adapter
from tests.updates.helpers import assert_close, call, randn, random_factors, randomised, task

WORDS = [
    "head", "body", "all", "weight", "bias", "weights", "factors", "generator", "selection", "rates", "seed",
    "delta", "support", "A", "B", "x", "0", "1", "01", "10", "lora_A", "lora_B", "lora_embedding_A",
    "default", "base_model", "model", "lora", "adapter", "lora_", "c_attn", "weight_", "rank_pattern",
]  # fmt: skip
SIGNS = [
    "c++", "a|b", "[a]", "[!a]", "x?", "*", "(", ")", "(a", "a+", "^a", "a$", "\\d", "a{2}", "a b", "a-b",
    "ä", "(?i)a", "%", "{", "a\\",
]  # fmt: skip
PLAIN = ["a", "b", "aa", "conv1_1", "conv1", "x1", "ab"]


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    return pytest.importorskip("peft", reason="pip install 'metapeft[peft]'")


class Named(nn.Module):
    """Layers under names, some inside of a container that has one of the names too."""

    def __init__(self, names: list[str], inside: list[str], container: str) -> None:
        super().__init__()
        deeper = nn.Module()
        for name in inside:
            deeper.add_module(name, nn.Linear(3, 3))
        self.add_module(container, deeper)
        for name in names:
            self.add_module(name, nn.Linear(3, 3))
        self.order = [(self, name) for name in names] + [(deeper, name) for name in inside]

    def forward(self, x: Tensor) -> Tensor:
        for owner, name in self.order:
            x = torch.tanh(owner.get_submodule(name)(x))
        return x


def allowed(names: list[str]) -> list[str]:
    """Those that torch lets a module have as a name."""
    return [name for name in names if not hasattr(nn.Module(), name)]


#: names of which one is a pattern that matches another, or that is not itself as a pattern
ALIKE: list[tuple[list[str], list[str], str]] = [
    (["conv1_1", "z"], ["1", "2"], "conv1"),  # off by 0.26
    (["c++", "b"], ["c", "cc"], "body"),
    (["a|b", "a"], ["b"], "body"),
    (["[a]", "a"], ["[a]", "a", "b"], "[!a]"),
    (["a+", "aa"], ["a", "a+"], "b"),
    (["x?", "x", "xy"], ["*", "y"], "x0"),
    (["(", "a"], ["(", ")"], "[a"),
    (["a$", "^a"], ["a", "^a$"], "$"),
]


def layouts(count: int) -> list[tuple[list[str], list[str], str]]:
    """Seeded draws of names, all of which stand in some draw, after those above."""
    source = random.Random(0)
    names = allowed([*WORDS, *SIGNS, *PLAIN])
    found = list(ALIKE)
    for number in range(count):
        first = names[number % len(names)]
        others = source.sample([name for name in names if name != first], 4)
        found.append(([first, others[0]], [others[1], first, others[2]], others[3]))
    return found


@pytest.mark.filterwarnings(
    "ignore:Found missing adapter keys:UserWarning"
)  # of layers called lora_*, beside it
@pytest.mark.parametrize(("names", "inside", "container"), layouts(50), ids=repr)
def test_any_names(
    peft: ModuleType, tmp_path: Path, names: list[str], inside: list[str], container: str
) -> None:
    """Every layer with a rank and a scale of its own, one without: PEFT's logits and ours are the same."""

    def network() -> nn.Module:
        return randomised(Named(names, inside, container)).eval()

    layers = [name for name, module in network().named_modules() if isinstance(module, nn.Linear)]
    formats = {f"{layer}.weight": mp.LoRA(1 + i % 3, alpha=0.5 + i) for i, layer in enumerate(layers[:-1])}
    model = mp.attach(network(), formats, classifier=None)
    assert {name: site.format for name, site in model.sites.items()} == formats
    factors = task(random_factors(model, 1), 0)
    mp.export_peft(model, factors, tmp_path)
    x = randn(4, 3)
    expected = call(model.merged(factors), x)
    back_formats, back = read_adapter(tmp_path, network())
    assert back_formats == formats
    assert_close(call(mp.attach(network(), back_formats, classifier=None).merged(back), x), expected, 1e-12)
    assert_close(peft.PeftModel.from_pretrained(network(), tmp_path).eval()(x), expected, 1e-6)


@pytest.mark.parametrize("whole", ["head", "classifier", "h.0", "c++", "(", "lora_A", "layer", "default"])
def test_the_name_of_a_classifier_that_is_saved_whole(peft: ModuleType, tmp_path: Path, whole: str) -> None:
    """PEFT takes it for text and for a pattern: what is not both is refused."""

    def network() -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 4))
        net.add_module("h_0" if whole == "h.0" else "body", nn.Linear(4, 4))
        net.add_module(
            whole.split(".")[0], nn.Sequential(nn.Linear(4, 2)) if "." in whole else nn.Linear(4, 2)
        )
        return randomised(net).eval()

    formats = {whole: mp.Full(), "*": mp.LoRA(1)}
    model = mp.attach(network(), formats, classifier=whole)
    factors = task(random_factors(model, 1), 0)
    if whole not in ("head", "classifier"):
        with pytest.raises(ValueError, match="is saved whole, and PEFT takes its name for a pattern"):
            mp.export_peft(model, factors, tmp_path / "adapter")
        return
    mp.export_peft(model, factors, tmp_path)
    x = randn(4, 3)
    expected = call(model.merged(factors), x)
    back_formats, back = read_adapter(tmp_path, network())
    assert_close(call(mp.attach(network(), back_formats, classifier=None).merged(back), x), expected, 1e-12)
    assert_close(peft.PeftModel.from_pretrained(network(), tmp_path).eval()(x), expected, 1e-6)
