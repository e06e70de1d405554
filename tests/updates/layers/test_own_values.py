"""Layers without a batch axis, loose parameters, computed weights: against merged modules, and in their gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import metapeft as mp
from tests.updates.helpers import (
    FEW,
    affects,
    assert_close,
    assert_equals_merged,
    randn,
    random_factors,
    randomised,
)


class Relative(nn.Module):
    """A table of relative positions, turned around and added to scores, as in T5 and Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mlp = nn.Embedding(7, 2), nn.Linear(2, 2)
        self.query, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (B, 4, 3)
        places = torch.arange(4)
        bias = (
            self.mlp(self.table(places[:, None] - places + 3)).permute(2, 0, 1).unsqueeze(0)
        )  # (1, 2, 4, 4)
        heads = self.query(x).unflatten(-1, (2, 2)).transpose(1, 2)
        scores = heads @ heads.transpose(-1, -2)
        scores += bias
        mixed = scores.softmax(-1) @ heads
        return self.last(mixed.transpose(1, 2).flatten(2).mean(1))


class SharedKeys(nn.Module):
    """A layer that reads the inputs, and a table that no layer looks up, as DeBERTa's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.norm, self.key = nn.Embedding(4, 3), nn.LayerNorm(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:  # (B, 4, 3)
        own = self.key(self.norm(self.places.weight)).repeat(x.shape[0], 1, 1)
        return torch.bmm(self.key(x), own.transpose(1, 2)).sum(1)


class Loose(nn.Module):
    """Parameters that no layer owns, with and without a first axis of 1, alone and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.token = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(1, 1, 3))
        self.matrices = nn.ParameterList([torch.zeros(3, 3), torch.zeros(3, 3)])
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:  # (B, 4, 3)
        x = torch.cat([self.token.expand(len(x), -1, -1), x * self.gamma], 1)
        for matrix in self.matrices:
            x = torch.tanh(F.linear(x, matrix))
        return self.last(x[:, 0] + x.mean(1))


class Latents(nn.Module):
    """What no input goes into, and is told the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.last = _Start(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.start(len(x)) * x).sum(1))


class _Start(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(4, 3))

    def forward(self, count: int) -> Tensor:
        return self.latents.expand(count, -1, -1)


class Cached(nn.Module):
    """Keeps what it computes of a parameter, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.last, self.seen = nn.Parameter(torch.zeros(4, 3)), nn.Linear(3, 2), {}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.seen:
            self.seen["bias"] = torch.tanh(self.bias)
        return self.last((x + self.seen["bias"]).square().mean(1))


class Experts(nn.Module):
    """Rows by index, inside of the module that owns the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for number in range(2):
            rows = torch.nonzero((x[:, 0] > 0) == bool(number))[:, 0]
            y = y.index_add(0, rows, x[rows] @ self.weights[number])
        return y


def computed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Flatten(), norm(nn.Linear(12, 3)), nn.Tanh(), norm(nn.Linear(3, 3)))


class Last(nn.Module):
    """The last output of a recurrent layer, and its state."""

    def __init__(self, net: nn.Module, turned: bool = False) -> None:
        super().__init__()
        self.net, self.turned = net, turned

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.net(x.transpose(0, 1) if self.turned else x)
        state = state[0] if isinstance(state, tuple) else state
        return (y[-1] if self.turned else y[:, -1]) + state.transpose(0, 1).flatten(1).sum(1, keepdim=True)


class Cells(nn.Module):
    """A cell in a loop."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell = kind(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for part in x.unbind(1):
            state = self.cell(part, state)
        return state[0] if isinstance(state, tuple) else state


norms = nn.utils.parametrizations
#: what reads (B, 4, 3)
SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "relative positions": Relative,
    "shared keys": SharedKeys,
    "loose": Loose,
    "latents": Latents,
    "cached": Cached,
    "weight_norm": lambda: computed(norms.weight_norm),
    "weight_norm in a hook": lambda: computed(nn.utils.weight_norm),
    "spectral_norm": lambda: computed(norms.spectral_norm),
    "orthogonal": lambda: computed(norms.orthogonal),
    "pruned": lambda: computed(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "lstm": lambda: Last(nn.LSTM(3, 2, 2, batch_first=True, bidirectional=True)),
    "lstm, projected": lambda: Last(nn.LSTM(3, 4, proj_size=2), turned=True),
    "gru": lambda: Last(nn.GRU(3, 2, bias=False), turned=True),
    "rnn": lambda: Last(nn.RNN(3, 2, batch_first=True)),
    "rnn, relu": lambda: Last(nn.RNN(3, 2, nonlinearity="relu", batch_first=True)),
    "lstm cell": lambda: Cells(nn.LSTMCell),
    "gru cell": lambda: Cells(nn.GRUCell),
    "rnn cell": lambda: Cells(nn.RNNCell),
}
SPACES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transposed, 1-d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, groups=2), (4, 5)),
    "transposed, 2-d": (lambda: nn.ConvTranspose2d(3, 2, 3, 2, output_padding=1), (3, 4, 4)),
    "transposed, 3-d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3)),
    "3-d": (lambda: nn.Conv3d(2, 4, 3, padding=1, groups=2), (2, 3, 3, 3)),
    "experts": (Experts, (3,)),
}


@pytest.mark.parametrize("format", FEW)
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str, format: str) -> None:
    model = mp.attach(randomised(SEQUENCES[name]()), FEW[format], classifier=None)
    assert_equals_merged(model, randn(3, 2, 4, 3))
    assert affects(model, randn(1, 2, 4, 3))


@pytest.mark.parametrize("format", FEW)
@pytest.mark.parametrize("name", SPACES)
def test_spaces(name: str, format: str) -> None:
    make, shape = SPACES[name]
    model = mp.attach(randomised(nn.Sequential(make(), nn.Tanh())), FEW[format])
    assert_equals_merged(model, randn(3, 4, *shape))


def test_every_parameter_has_an_update() -> None:
    """Under Full also what no layer owns; LoRA acts on matrices, and on a token where it is named."""
    net = Loose()
    names = {name for name, _ in net.named_parameters()}
    assert set(mp.attach(net, mp.Full()).sites) == names
    assert set(mp.attach(net, mp.LoRA(1)).sites) == {"matrices.0", "matrices.1", "last.weight"}
    assert set(mp.attach(net, {"token": mp.LoRA(1)}).sites) == {"token"}


@pytest.mark.parametrize("name", ["relative positions", "loose", "weight_norm", "lstm"])
def test_second_derivatives(name: str) -> None:
    """Those of all tasks at once are those of each alone, by finite differences of the first."""
    model = mp.attach(randomised(SEQUENCES[name]()), mp.Full(), classifier=None)
    x, start = randn(2, 2, 4, 3), random_factors(model, 2)
    model(x, start)
    names = list(start)

    def loss(*values: Tensor) -> Tensor:
        return model(x, dict(zip(names, values))).square().sum()

    own = [value.requires_grad_() for value in start.values()]
    assert torch.autograd.gradgradcheck(loss, own, fast_mode=True)


def test_another_number_of_inputs_and_seeds_per_input() -> None:
    model = mp.attach(randomised(Relative()), mp.CP(1), classifier=None)
    factors = random_factors(model, 3)
    x = randn(3, 5, 4, 3)
    few = model(x[:, :2], factors)
    assert_close(model(x, factors)[:, :2], few)
    seeded = {n: v.unsqueeze(1).expand(-1, 2, -1) if n.endswith("seed") else v for n, v in factors.items()}
    assert_close(model(x[:, :2], seeded), few)
