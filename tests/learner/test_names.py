"""No name that a user's module can have is taken for one of the library's: the numbers are those of other names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metapeft as mp
from tests.learner.helpers import stir

# every word that the library puts before a dot, or asks names for
WORDS = [
    "head", "body", "weights", "factors", "generator", "selection", "rates", "seed", "support", "query", "both", "kept",
    "derived", "center", "softmax", "bias", "weight", "A", "B", "delta", "classifier", "all", "default",
    "c++", "a b", "*", "[x]", "1", "x-1", "train.ing".replace(".", "_"),
]  # fmt: skip


class Net(nn.Module):
    """A body and a classifier under any names."""

    def __init__(self, body: str, head: str) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.names = body, head
        for name, sizes in ((body, (6, 4)), (head, (3, 6))):
            layer = nn.Linear(sizes[1], sizes[0])
            with torch.no_grad():
                layer.weight.copy_(torch.randn(sizes, generator=random) / 2)
                layer.bias.copy_(torch.randn(sizes[0], generator=random))
            self.add_module(name, layer)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        body, head = (self.get_submodule(name) for name in self.names)
        logits: Tensor = head(torch.tanh(body(x)))
        return logits


METHODS: dict[str, Any] = {
    "maml": lambda net: mp.methods.maml(net, norm="running"),
    "lora, head that is learned": lambda net: mp.Learner(
        mp.attach(net, mp.LoRA(2)), mp.inner.SGD(2, 0.1, rates="step"), outer=("weights", "factors", "rates")
    ),
    "whole": lambda net: mp.Learner(
        mp.attach(net, mp.CP(2), classifier=net.names[1]), mp.inner.SGD(2, 0.1), head="prototype-init",
        outer=("weights", "factors", "generator", "selection", "head"),
        generator=mp.generators.MappingNet(hidden=3), selection="softmax",
    ),
    "closed head": lambda net: mp.Learner(
        mp.attach(net, mp.LoRA(2), classifier=net.names[1]), mp.inner.SGD(2, 0.1), head="ridge",
        outer=("weights", "factors", "head"),
    ),
}  # fmt: skip


GROUPS = ("weights", "factors", "rates", "generator", "selection")
PLAIN = ("first", "second")


def renamed(name: str, old: tuple[str, str], new: tuple[str, str]) -> str:
    """The name of a learner's tensor in a network with other names; a generator's layers have names of its own."""
    if name.startswith("generator.") and ".seed." not in name:
        return name
    for group in GROUPS:
        for part, other in zip(old, new):
            if name.startswith(f"{group}.{part}."):
                return f"{group}.{other}.{name.removeprefix(f'{group}.{part}.')}"
    return name


def numbers(method: str, names: tuple[str, str]) -> dict[str, Tensor]:
    """Value, gradients and predictions of a learner on a network with these names; its start is that of plain names."""
    plain, learner = METHODS[method](Net(*PLAIN)), METHODS[method](Net(*names))
    stir(plain)
    learner.load_state({renamed(name, PLAIN, names): value for name, value in plain.state().items()})
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 6, 4, generator=random, dtype=torch.float64)
    y = torch.arange(3).repeat_interleave(2).expand(2, -1)
    batch = mp.EpisodeBatch(x, y, x.flip(1), y.flip(1), classes=torch.arange(3).expand(2, -1))
    found = learner.hypergradient(batch)
    adapted = learner.adapt_many(x, y)
    return {
        **{renamed(name, names, PLAIN): grad for name, grad in found.grads.items()},
        "value": found.value,
        "logits": adapted(x.flip(1)),
        "merged": adapted.task(1).merged()(x[1]),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("word", WORDS)
def test_a_name_changes_no_number(method: str, word: str) -> None:
    expected = numbers(method, PLAIN)
    for names in ((word, "second"), ("first", word)):
        found = numbers(method, names)
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)


def test_the_number_of_a_network_with_a_head() -> None:
    """A network of a `body` and a `head`, as timm's: what was a KeyError is the number of other names."""
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.arange(3)
    one, other = (mp.methods.maml(Net(*names), norm="running") for names in (("body", "head"), ("f", "g")))
    torch.testing.assert_close(one.adapt(x, y)(x), other.adapt(x, y)(x), rtol=1e-12, atol=0)
