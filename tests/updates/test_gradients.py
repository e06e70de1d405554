"""First and second derivatives, against numbers, plain torch.func and `higher`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import metapeft as mp
from tests.updates.helpers import FORMATS, assert_close, moved, randn, random_factors, randomised
from tests.updates.networks import Attention

TRAINABLE = {name: format for name, format in FORMATS.items() if name != "rank 0"}
TASKS = 2

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2, padding=1, padding_mode="reflect"), nn.Tanh()),
        (2, 3, 3),
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.LayerNorm(3), nn.Linear(3, 2)), (3,)),
    "batch norm": (lambda: nn.Sequential(nn.Conv1d(2, 2, 2), nn.BatchNorm1d(2), nn.Tanh()), (2, 4)),
}


@pytest.mark.parametrize("format", ["full", "lora", "cp", "ring"])
@pytest.mark.parametrize("net", NETS)
def test_gradgradcheck(net: str, format: str) -> None:
    """In the factors, the backbone's weights and the input, under support statistics."""
    make, shape = NETS[net]
    model = mp.attach(randomised(make()), FORMATS[format], norm="support")
    factors = random_factors(model, TASKS)
    weights = {name: value.detach() for name, value in model.parameters.items()}
    names = [*factors, *weights]
    x, support = randn(TASKS, 2, *shape), randn(TASKS, 3, *shape, seed=1)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(names, values))
        own = {name: given[name] for name in weights}
        return model(x, {name: given[name] for name in factors}, support, weights=own)

    tensors = [value.clone().requires_grad_() for value in (x, *factors.values(), *weights.values())]
    run(*tensors)  # the first batch's check is no part of it
    assert gradcheck(run, tensors, fast_mode=True)
    assert gradgradcheck(run, tensors, fast_mode=True)


class Small(nn.Module):
    """A bit of everything that has an implementation of its own, smooth throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding="same", groups=2), nn.BatchNorm2d(4)
        self.attention, self.after = Attention(batch_first=False, cross=False), nn.LayerNorm(4)
        self.words, self.head = nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.conv(x))).flatten(2).transpose(1, 2)  # (B, 9, 4)
        hidden = hidden + self.words(index).unsqueeze(1)
        return self.head(self.after(self.attention(hidden, hidden, hidden)).mean(1))


def plain_loop(
    net: nn.Module, model: mp.AttachedModel, start: dict, weights: dict, batch: tuple, steps: int
) -> Tensor:
    """The query loss after `steps` steps, one task after the other, straight from `functional_call`."""
    total = torch.zeros((), dtype=torch.float64)
    for x, index, y in zip(*batch):

        def loss(factors: dict[str, Tensor], x: Tensor = x, index: Tensor = index, y: Tensor = y) -> Tensor:
            own = moved(model, weights, factors)
            return F.cross_entropy(torch.func.functional_call(net, own, (x, index)), y)

        factors = start
        for _ in range(steps):
            gradients = torch.autograd.grad(loss(factors), list(factors.values()), create_graph=True)
            factors = {name: value - 0.5 * g for (name, value), g in zip(factors.items(), gradients)}
        total = total + loss(factors)
    return total


def batched_loop(model: mp.AttachedModel, start: dict, weights: dict, batch: tuple, steps: int) -> Tensor:
    """The same, all tasks at once."""
    x, index, y = batch

    def loss(factors: dict[str, Tensor]) -> Tensor:
        logits = model((x, index), factors, weights=weights)
        return (
            F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
            .unflatten(0, y.shape)
            .mean(1)
            .sum()
        )

    factors = {name: value.expand(len(x), *value.shape[1:]) for name, value in start.items()}
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(factors), list(factors.values()), create_graph=True)
        factors = {name: value - 0.5 * g for (name, value), g in zip(factors.items(), gradients)}
    return loss(factors)


def batch(tasks: int = 3, items: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    index = torch.randint(5, (tasks, items), generator=source)
    index[:, 0] = 0  # the padding row, which receives no gradient
    return randn(tasks, items, 2, 3, 3), index, torch.randint(3, (tasks, items), generator=source)


@pytest.mark.parametrize(("format", "steps"), [*((name, 1) for name in TRAINABLE), ("full", 3), ("ring", 3)])
def test_unrolled_loop_against_functional_call(format: str, steps: int) -> None:
    """Derivatives of starts and of W0 through the loop, to 1e-8 relative (what is measured: 1e-14)."""
    from metapeft.updates.inputs import exact_attention

    net = randomised(Small()).eval()
    model = mp.attach(net, FORMATS[format])
    start = {name: value.requires_grad_() for name, value in random_factors(model, 1, size=0.2).items()}
    weights = {name: value.detach().requires_grad_() for name, value in model.parameters.items()}
    wanted = [*start.values(), *weights.values()]
    with exact_attention():
        one = torch.autograd.grad(plain_loop(net, model, start, weights, batch(), steps), wanted)
    all_tasks = torch.autograd.grad(batched_loop(model, start, weights, batch(), steps), wanted)
    for a, b in zip(all_tasks, one):
        assert_close(a, b, 1e-8 * float(b.abs().max()))
    assert all(value.any() for value in all_tasks)


def test_full_updates_against_higher() -> None:
    """MAML's gradient of W0 is that of `higher`, which steps the weights themselves."""
    higher = pytest.importorskip("higher", reason="pip install 'metapeft[higher]'")
    net = randomised(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3))
    )
    net.eval()
    model = mp.attach(net, mp.Full())
    x, _, y = batch()
    weights = {name: value.detach().requires_grad_() for name, value in model.parameters.items()}
    start = {name: value.requires_grad_() for name, value in model.factors().items()}

    def loss(factors: dict[str, Tensor]) -> Tensor:
        logits = model(x, factors, weights=weights)
        return (
            F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
            .unflatten(0, y.shape)
            .mean(1)
            .sum()
        )

    factors = {name: value.expand(len(x), *value.shape[1:]) for name, value in start.items()}
    for _ in range(3):
        gradients = torch.autograd.grad(loss(factors), list(factors.values()), create_graph=True)
        factors = {name: value - 0.1 * g for (name, value), g in zip(factors.items(), gradients)}
    ours = torch.autograd.grad(loss(factors), list(weights.values()))

    theirs = [torch.zeros_like(value) for value in net.parameters()]
    for task in range(len(x)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fast, steps):
            for _ in range(3):
                steps.step(F.cross_entropy(fast(x[task]), y[task]))
            gradients = torch.autograd.grad(F.cross_entropy(fast(x[task]), y[task]), list(net.parameters()))
        theirs = [sum_ + g for sum_, g in zip(theirs, gradients)]
    for a, b in zip(ours, theirs):
        assert_close(a, b, 1e-8 * float(b.abs().max()))


@pytest.mark.parametrize("format", FORMATS)
def test_every_factor_is_in_the_graph_at_the_start(format: str) -> None:
    """At rank 0 too, where a factor has no entries."""
    model = mp.attach(randomised(Small()), FORMATS[format])
    x, index, _ = batch()
    factors = {name: value.requires_grad_() for name, value in model.factors().items()}
    gradients = torch.autograd.grad(model((x, index), factors).sum(), list(factors.values()))
    assert [g.shape for g in gradients] == [value.shape for value in factors.values()]


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_first_call_inside_a_function_transform(transform: Callable) -> None:
    model, x = mp.attach(randomised(nn.Linear(3, 2)), mp.LoRA(1)), randn(2, 4, 3)
    factors = random_factors(model, 2)
    found = transform(lambda f: model(x, f).square().sum())(factors)
    leaves = {name: value.clone().requires_grad_() for name, value in factors.items()}
    expected = torch.autograd.grad(model(x, leaves).square().sum(), list(leaves.values()))
    for a, b in zip(found.values(), expected):
        assert_close(a, b, 1e-12)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # inside torch's jvp
def test_forward_mode() -> None:
    model, (x, index, _) = mp.attach(randomised(Small()), mp.CP(2)), batch()
    index = index.clamp(min=1)  # the padding row has no derivative
    factors = random_factors(model, 3)
    model((x, index), factors)
    tangent = {name: randn(*value.shape, seed=3) for name, value in factors.items()}
    _, forward = torch.func.jvp(lambda f: model((x, index), f), (factors,), (tangent,))
    step = 1e-6
    ahead, behind = (
        model((x, index), {name: value + sign * step * tangent[name] for name, value in factors.items()})
        for sign in (1, -1)
    )
    assert_close(forward, (ahead - behind) / (2 * step), 1e-7)
