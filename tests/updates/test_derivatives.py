"""First and second derivatives of whole networks, all tasks at once, against plain loops over the tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metapeft as mp
from metapeft.base.trees import mapped
from metapeft.updates.inputs import exact_attention, output_tensor
from tests.updates.helpers import (
    FEW,
    assert_same_derivatives,
    call,
    generator,
    moved,
    randn,
    random_factors,
    randomised,
)
from tests.updates.networks import OURS, resnet18, text, tiny

TASKS, ITEMS, RATE = 3, 2, 0.3
Tensors = Mapping[str, Tensor]


def network(name: str) -> tuple[nn.Module, Any]:
    """A small network and the inputs of all tasks, `(TASKS, ITEMS, ...)`."""
    if name == "bert":
        return tiny(pytest.importorskip("transformers"), "bert"), text(TASKS)
    if name == "resnet18":  # as large as the last statistics need, see test_torchvision
        return resnet18(), randn(TASKS, ITEMS, 3, 64, 64)
    make, shape = OURS[name]
    return make(), randn(TASKS, ITEMS, *shape)


def labels(tasks: int = TASKS) -> Tensor:
    return torch.randint(3, (tasks, ITEMS), generator=generator())


def by_batch(net: nn.Module) -> nn.Module:
    """A copy whose batch norms take the statistics of what they are given."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
    return net


def one_step(loss: Callable[[Tensors], Tensor], start: Tensors, gradient: Callable[..., Tensors]) -> Tensor:
    """The loss after one step of gradient descent on it, in the graph of the step."""
    moves = gradient(loss, start)
    return loss({name: value - RATE * moves[name] for name, value in start.items()})


def in_the_graph(loss: Callable[[Tensors], Tensor], start: Tensors) -> Tensors:
    return dict(zip(start, torch.autograd.grad(loss(start), list(start.values()), create_graph=True)))


def plain(net: nn.Module, model: mp.AttachedModel, x: Any, y: Tensor, stepped: bool) -> Callable[..., Tensor]:
    """The sum of the tasks' losses as a function of start and weights, a plain `torch.func` loop."""

    def one(task: int, weights: Tensors, factors: Tensors) -> Tensor:
        own = mapped(x, lambda value: value[task])
        arguments = ((), own) if isinstance(own, dict) else ((own,), {})
        output = torch.func.functional_call(net, moved(model, weights, factors), *arguments)
        return F.cross_entropy(output_tensor(output, ITEMS), y[task])

    def total(start: Tensors, weights: Tensors) -> Tensor:
        losses = [partial(one, task, weights) for task in range(len(y))]
        if stepped:
            return sum(one_step(loss, start, lambda f, at: torch.func.grad(f)(at)) for loss in losses)
        return sum(loss(start) for loss in losses)

    return total


def batched(model: mp.AttachedModel, x: Any, y: Tensor, stepped: bool) -> Callable[..., Tensor]:
    """The same, all tasks at once."""
    support = x if model.norm == "support" else None

    def loss(weights: Tensors, factors: Tensors) -> Tensor:
        logits = model(x, factors, support, weights=weights)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / ITEMS

    def total(start: Tensors, weights: Tensors) -> Tensor:
        each = {name: value.expand(len(y), *value.shape[1:]) for name, value in start.items()}
        own = partial(loss, weights)
        return one_step(own, each, in_the_graph) if stepped else own(each)

    return total


def check(net: nn.Module, x: Any, y: Tensor, format: Any, norm: str = "running", size: float = 0.1) -> None:
    """Compare the derivatives of the loss, and those through a step of gradient descent on it."""
    net = randomised(net).eval()
    model = mp.attach(net, format, norm=norm)
    reference = by_batch(net) if norm == "support" else net
    start = random_factors(model, 1, size=size)
    weights = {name: value.detach() for name, value in model.parameters.items()}
    for stepped in (False, True):
        with exact_attention():
            loop = plain(reference, model, x, y, stepped)
            expected = torch.func.grad(loop, argnums=(0, 1))(start, weights)
        leaves = [{name: v.clone().requires_grad_() for name, v in part.items()} for part in (start, weights)]
        batched(model, x, y, stepped)(*leaves).backward()
        for own, wanted in zip(leaves, expected):
            assert_same_derivatives({name: value.grad for name, value in own.items()}, wanted)


SLOW = [("resnet18", "running", name) for name in ("full", "lora", "ring")] + [
    ("resnet18", "support", name) for name in FEW
]


@pytest.mark.parametrize(
    ("name", "norm", "format"),
    [
        ("resnet18", "running", "cp"),
        *((name, "running", format) for name in ("vit", "mixer", "bert") for format in FEW),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_against_a_loop_of_torch_func(name: str, norm: str, format: str) -> None:
    """In start and W0, to 1e-8 relative."""
    net, x = network(name)
    check(net, x, labels(), FEW[format], norm)


@pytest.mark.peers
@pytest.mark.parametrize(("norm", "format"), [*(("running", name) for name in FEW), ("support", "cp")])
def test_efficientnet_of_timm(timm: ModuleType, norm: str, format: str) -> None:
    net = timm.create_model("tf_efficientnet_lite0", num_classes=4)
    # of 8 values a channel the last statistics turn a change of 1e-15 in x into one of 1e-8 here; of 32 they don't
    size = 128 if norm == "support" else 32
    check(net, randn(2, ITEMS, 3, size, size), labels(2), FEW[format], norm, size=0.02)


@pytest.mark.parametrize("name", ["resnet18", "vit", "mixer", "bert"])
def test_full_updates_against_higher(name: str) -> None:
    """MAML's gradient of W0 is that of `higher`, which steps the weights themselves."""
    higher = pytest.importorskip("higher", reason="pip install 'metapeft[higher]'")
    net, x = network(name)
    net = randomised(net).eval()
    model = mp.attach(net, mp.Full())
    y = labels()
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.parameters.items()}
    start = {name: value.requires_grad_() for name, value in model.factors().items()}
    batched(model, x, y, stepped=True)(start, weights).backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    for task in range(TASKS):
        own = mapped(x, lambda value: value[task])  # noqa: B023
        with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (fast, steps):
            steps.step(F.cross_entropy(call(fast, own), y[task]))
            F.cross_entropy(call(fast, own), y[task]).backward()
    expected = {name: value.grad for name, value in net.named_parameters()}
    assert_same_derivatives({name: value.grad for name, value in weights.items()}, expected)
