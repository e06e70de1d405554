"""Gradients of the first batch: a derivative that is wrong under vmap is refused, torch's own such kernel is mended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from tests.updates.helpers import FORMATS, assert_close, moved, randn, random_factors, randomised

TRAINABLE = {name: format for name, format in FORMATS.items() if name != "rank 0"}
TASKS = 3


class Padded(nn.Embedding):
    """A class of one's own: it runs by its own forward, under vmap."""


class Scaled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


class Table(nn.Module):
    """A table that is no Embedding, looked up by one of torch's functions."""

    def __init__(self, look_up: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.look_up = nn.Parameter(torch.empty(7, 4)), look_up

    def forward(self, x: Tensor) -> Tensor:
        return self.look_up(self.weight, x)


TABLES: dict[str, Callable[[], nn.Module]] = {
    "subclass": lambda: Padded(7, 4, padding_idx=0),
    "last row": lambda: Padded(7, 4, padding_idx=-7),
    "scaled": lambda: Scaled(7, 4, padding_idx=0),
    "function": lambda: Table(lambda w, x: F.embedding(x, w, 0)),
    "keywords": lambda: Table(lambda w, x: F.embedding(weight=w, input=x, padding_idx=0)),
    "negative": lambda: Table(lambda w, x: F.embedding(x, w, padding_idx=-7)),
    "low level": lambda: Table(lambda w, x: torch.embedding(w, x, 0, False, False)),
    "no padding": lambda: Table(lambda w, x: torch.embedding(w, x)),
}


EMBEDDINGS = ("subclass", "last row", "scaled")


class Reader(nn.Module):
    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.words, self.head = table, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(x)).sum(1))


def tokens() -> Tensor:
    words = torch.randint(7, (TASKS, 5, 4), generator=torch.Generator().manual_seed(0))
    words[:, :, -1] = 0  # every input is padded
    return words


def derivatives(loss: Tensor, factors: dict[str, Tensor], way: dict[str, Tensor] | None) -> list[Tensor]:
    """First ones, or second ones along a direction."""
    first = torch.autograd.grad(loss, list(factors.values()), create_graph=way is not None)
    if way is None:
        return list(first)
    along = sum((g * way[name]).sum() for name, g in zip(factors, first))
    return list(torch.autograd.grad(along, list(factors.values())))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("table", "format"),  # low-rank updates of what is no Embedding are of its columns
    [(table, format) for table in TABLES for format in TRAINABLE if format == "full" or table in EMBEDDINGS],
)
def test_a_padding_row_has_a_gradient_in_no_task(table: str, format: str, order: int) -> None:
    """Of the tasks after the first it had one, 0.3: against plain modules, one after the other."""
    net = randomised(Reader(TABLES[table]())).eval()
    model, x = mp.attach(net, TRAINABLE[format]), tokens()
    factors = {name: value.requires_grad_() for name, value in random_factors(model, TASKS).items()}
    way = {name: randn(*value.shape, seed=3) for name, value in factors.items()} if order == 2 else None
    found = derivatives(model(x, factors).square().sum(), factors, way)
    for number in range(TASKS):
        one = {name: value[number : number + 1].detach().requires_grad_() for name, value in factors.items()}
        along = None if way is None else {name: value[number : number + 1] for name, value in way.items()}
        weights = moved(model, dict(net.named_parameters()), one)
        alone = torch.func.functional_call(net, weights, (x[number],)).square().sum()
        for a, b in zip(found, derivatives(alone, one, along)):
            assert_close(a[number : number + 1], b, 1e-12)
    if format == "full":
        padding = found[list(factors).index("words.weight.delta")][:, 0]
        assert padding.any() == (table == "no padding")


class WrongOnAll(torch.autograd.Function):
    """`x * w`, as a layer whose author made a mistake in its derivative for several tasks."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, mistake: str) -> Tensor:
        return x * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.mistake = inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        own = g * x
        if ctx.mistake == "first task only":
            own = own * (torch.arange(len(own)) == 0).view(-1, *[1] * (own.dim() - 1))
        elif ctx.mistake == "tasks mixed up":
            own = own.flip(0)
        elif ctx.mistake == "twice":
            own = 2 * own
        elif ctx.mistake == "none":
            own = torch.zeros_like(own)
        return g * w, own.sum_to_size(w.shape), None


class Wrong(torch.autograd.Function):
    """The same of one task: right, whatever happens under vmap."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, mistake: str) -> Tensor:
        return x * w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum_to_size(w.shape), None

    @staticmethod
    def vmap(info: Any, dims: tuple, x: Tensor, w: Tensor, mistake: str) -> tuple[Tensor, int]:
        return WrongOnAll.apply(x, w.unsqueeze(1), mistake), 0


class Gain(nn.Module):
    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.weight, self.mistake = nn.Parameter(torch.ones(4)), mistake

    def forward(self, x: Tensor) -> Tensor:
        return Wrong.apply(x, self.weight, self.mistake)


def gained(mistake: str, norm: bool = False) -> nn.Module:
    layers = [nn.Linear(4, 4), Gain(mistake), nn.Tanh(), nn.Linear(4, 3)]
    return randomised(nn.Sequential(*layers, *([nn.BatchNorm1d(3)] if norm else [])))


@pytest.mark.parametrize("norm", ["running", "support", "transductive"])
@pytest.mark.parametrize("mistake", ["", "first task only", "tasks mixed up", "twice", "none"])
def test_a_derivative_that_is_wrong_for_several_tasks_is_refused(mistake: str, norm: str) -> None:
    """Its values are right: they were all that was compared. A refusal is no pass, so the second call refuses too."""
    model = mp.attach(gained(mistake, norm=True), mp.Full(), norm=norm)
    x = randn(2, 6, 4)
    support = x if norm == "support" else None
    for _ in range(2):
        if not mistake:
            model(x, model.factors(), support)
            continue
        with pytest.raises(ValueError, match=r"the gradient of 1\.weight\.delta is another one"):
            model(x, model.factors(), support)


@pytest.mark.parametrize("context", ["no_grad", "inference_mode", "grad", "jacrev", "one task"])
def test_whatever_the_first_call_is_inside_of(context: str) -> None:
    model = mp.attach(gained("first task only"), mp.Full())
    x = randn(1 if context == "one task" else 2, 6, 4)

    def run() -> Any:
        factors = random_factors(model, len(x))
        if context in ("grad", "jacrev"):
            return getattr(torch.func, context)(lambda f: model(x, f).square().sum())(factors)
        if context == "one task":
            return model(x, factors)
        with getattr(torch, context)():
            return model(x.clone(), factors)

    with pytest.raises(ValueError, match=r"the gradient of 1\.weight\.delta is another one"):
        run()


class NoDerivative(nn.Module):
    """A network whose layers are right, and that torch cannot derive: by rounding, or for want of a graph."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.head = kind, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "no graph":
            with torch.no_grad():
                return self.head(self.layer(x))
        hidden = self.layer(x)
        if self.kind == "rounded":
            hidden = hidden.round()
        if self.kind == "detached":
            hidden = hidden.detach()
        return self.head(hidden)


@pytest.mark.parametrize("kind", ["rounded", "detached", "no graph"])
def test_what_has_no_derivative_still_runs(kind: str) -> None:
    model = mp.attach(randomised(NoDerivative(kind)), mp.LoRA(2), classifier=None)
    assert model(randn(2, 6, 4), model.factors()).shape[:2] == (2, 6)


@pytest.mark.parametrize("norm", ["support", "transductive"])
@pytest.mark.parametrize("items", [1, 2, 9])
def test_norms_that_keep_no_statistics(norm: str, items: int) -> None:
    net = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Tanh(), nn.Linear(5, 3)
    )
    model = mp.attach(randomised(net), mp.Full(), norm=norm)
    x = randn(2, items, 4)
    assert model(x, model.factors(), x if norm == "support" else None).isfinite().all()


def test_it_runs_once_on_a_few_inputs() -> None:
    """Four of each of two tasks at once and each alone, with the 2 + 1 + 1 tasks of the values: 2 + 4 + 16 items."""
    seen: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return x

    model = mp.attach(nn.Sequential(Counting(), nn.Linear(4, 3)), mp.LoRA(1))
    x = torch.zeros(5, 100, 4)
    model(x, model.factors())
    assert sum(seen) == (1 + 2 + 2 + 1 + 1 + 5) * 100 + (2 + 1 + 1) * 4
    model(x, model.factors())
    assert seen[-1] == 500
    assert len(seen) == 5 + 1 + 3 + 1
